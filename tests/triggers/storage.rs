//! Triggers of the component `Storage`.

use qtasks_host::broker::Filter;

use super::broker::{replaces_updates, replaces_what_is_read, storage};
use super::*;

rows! {
    StorageAdd: storage_add;
    StorageGet: storage_get;
    StorageGetAll: storage_get_all;
    StorageUpdate: storage_update;
    StorageRemoveFinishedTask: storage_remove_finished_task;
    StorageStart: storage_start;
    StorageStop: storage_stop;
    StorageAddProcess: storage_add_process;
    StorageDeleteFinishedTasks: storage_delete_finished_tasks;
    StorageFlushAll: storage_flush_all;
}

async fn storage_add(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let uuid = record.task.uuid;
    let expected = json!({"storage": storage(), "uuid": uuid, "task_status": Record::new(record.task)});
    assert_eq!(stage.event(), expected);
    for (answer, replaced) in [
        (json!({"task_status": {"priority": 5}}), json!({"priority": 5})),
        (json!({"task_status": {"status": "error", "note": 1}}), json!({"note": 1})),
        (json!({"task_status": {"args": [7]}}), { json!({"args": [7], "returning": returned(json!([7]), json!({"b": 2}))}) }),
        (json!({}), json!({})),
        (json!({"task_status": "error"}), json!({})),
        (json!({"uuid": 7}), json!({})),
        (json!({"priority": 5}), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
    let other = Uuid::new_v4();
    stage.prompt(&json!({"uuid": other}));
    let record = stage.echo().await;
    assert_eq!((record.task.uuid, shown(&record)), (other, echoed(json!({}))));
}

async fn storage_get(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    assert_eq!(stage.event(), json!({"storage": storage(), "result": record}));
    replaces_what_is_read(&stage, "result", record.task.uuid).await;
}

async fn storage_get_all(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let (first, second) = (stage.echo().await, stage.echo().await);
    let all = async || stage.store.get_all(Filter::latest(10)).await.expect("memory does not fail");
    let uuids = |records: &[Record]| records.iter().map(|record| record.task.uuid).collect::<Vec<_>>();
    let both = [second.task.uuid, first.task.uuid];
    assert_eq!(uuids(&all().await), both);
    assert_eq!(stage.event(), json!({"storage": storage(), "results": [second, first]}));
    let [_, uuid] = both;
    stage.prompt(&json!({"results": [{"uuid": uuid, "priority": 5}]}));
    let some = all().await;
    assert_eq!((uuids(&some), shown(&some[0])), (vec![uuid], echoed(json!({"priority": 5}))));
    for wrong in [json!({"results": 7}), json!([7]), json!({"priority": 5})] {
        stage.prompt(&wrong);
        assert_eq!(uuids(&all().await), both, "{wrong}");
    }
}

async fn storage_update(isolation: &str, trigger: Trigger) {
    replaces_updates(isolation, trigger, ("storage", storage())).await;
}

async fn storage_remove_finished_task(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"model": {"returning": 7}}));
    let record = stage.echo().await;
    assert_eq!(shown(&record), echoed(json!({})), "a one-way trigger");
    let event = stage.event();
    assert_eq!(event, json!({"storage": storage(), "task_broker": record, "model": record}));
    let asked = stage.events().len();
    stage.run(task("fail")).await;
    assert_eq!(stage.events().len(), asked + 1, "an attempt that another one follows is no end");
}

async fn storage_start(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.work().await;
    assert_eq!(stage.event(), json!({"storage": storage()}));
    assert_eq!(stage.events().len(), 1);
}

async fn storage_stop(isolation: &str, trigger: Trigger) {
    storage_start(isolation, trigger).await;
}

async fn storage_add_process(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let uuid = stage.echo().await.task.uuid;
    assert_eq!(stage.event(), json!({"storage": storage(), "task_data": format!("echo:{uuid}:3"), "priority": 3}));
    for (answer, replaced) in [
        (json!({"priority": 5}), json!({"priority": 5})),
        (json!({"task_data": format!("other:{uuid}:7")}), {
            json!({"task_name": "other", "priority": 7, "returning": ["other", [1], {"b": 2}]})
        }),
        (json!({}), json!({})),
        (json!({"priority": "high"}), json!({})),
        (json!({"task_data": "other"}), json!({})),
        (json!({"task_data": ["other"]}), json!({})),
        (json!({"task_data": format!("other:{uuid}:high")}), json!({})),
        (json!(5), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
    let other = Uuid::new_v4();
    stage.prompt(&json!({"task_data": format!("echo:{other}:3")}));
    assert_eq!(stage.echo().await.task.uuid == other, stage.renames);
}

async fn storage_delete_finished_tasks(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let uuid = stage.echo().await.task.uuid;
    let waits = stage.queue.add_task(task("echo")).await.expect("memory does not fail").task.uuid;
    assert_eq!(stage.store.delete_finished_tasks().await.expect("memory does not fail"), 1);
    assert_eq!(stage.event(), json!({"storage": storage()}));
    let left = async |uuid| stage.queue.get(uuid).await.expect("memory does not fail").is_some();
    assert_eq!((left(uuid).await, left(waits).await), (false, true));

    // A worker removes what is old.
    let asked = stage.events().len();
    let worker = stage.app.running.worker(Arc::clone(&stage.store));
    let stop = worker.stop();
    let seen = async {
        while stage.events().len() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.now();
    };
    let (worked, ()) = tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(worker.run(None), seen) })
        .await
        .expect("the worker tidies up");
    worked.expect("memory does not fail");
    assert_eq!(stage.event(), json!({"storage": storage()}));
}

async fn storage_flush_all(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.echo().await;
    assert_eq!(stage.queue.flush_all().await.expect("memory does not fail"), 1);
    assert_eq!(stage.event(), json!({"storage": storage()}));
}
