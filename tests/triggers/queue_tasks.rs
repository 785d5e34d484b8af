//! Triggers of the component `QueueTasks`.

use std::time::Duration;

use super::*;

rows! {
    QtasksAddTaskBeforeBroker: qtasks_add_task_before_broker;
    QtasksAddTaskAfterBroker: qtasks_add_task_after_broker;
    QtasksGet: qtasks_get;
    QtasksStop: qtasks_stop;
    QtasksPing: qtasks_ping;
    QtasksFlushAll: qtasks_flush_all;
}

fn qtasks() -> Value {
    json!({"name": "QueueTasks", "version": env!("CARGO_PKG_VERSION")})
}

fn broker() -> Value {
    json!({"name": "MemoryBroker", "url": "memory:"})
}

async fn qtasks_add_task_before_broker(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    assert_eq!(shown(&stage.echo().await), echoed(json!({})));
    let expected = json!({
        "qtasks": qtasks(), "broker": broker(), "task_name": "echo", "priority": 3, "args": [1], "kw": {"b": 2},
    });
    assert_eq!(stage.event(), expected);
    for (answer, replaced) in [
        (json!({"task_name": "other"}), json!({"task_name": "other", "returning": ["other", [1], {"b": 2}]})),
        (json!({"priority": 5}), json!({"priority": 5})),
        (json!({"extra": {"note": [7]}}), json!({"note": [7]})),
        (json!({"args": [7]}), json!({"args": [7], "returning": returned(json!([7]), json!({"b": 2}))})),
        (json!({"kw": {"c": 7}}), json!({"kwargs": {"c": 7}, "returning": returned(json!([1]), json!({"c": 7}))})),
        (json!({}), json!({})),
        // None of these fits.
        (json!({"priority": 1.5}), json!({})),
        (json!({"task_name": "a:b", "priority": 9}), json!({})),
        (json!({"args": {}}), json!({})),
        (json!({"kw": []}), json!({})),
        (json!({"extra": [1]}), json!({})),
        (json!({"extra": {"status": "success"}}), json!({})),
        (json!({"model": 1}), json!({})),
        (json!([1]), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
}

async fn qtasks_add_task_after_broker(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"args": [7]}));
    assert_eq!(shown(&stage.echo().await), echoed(json!({})), "a one-way trigger");
    let expected = json!({
        "qtasks": qtasks(), "broker": broker(), "task_name": "echo", "priority": 3, "args": [1], "kwargs": {"b": 2},
    });
    assert_eq!(stage.event(), expected);
}

async fn qtasks_get(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let event = stage.event();
    assert_eq!((&event["qtasks"], &event["broker"]), (&qtasks(), &broker()));
    assert_eq!(event["task"], serde_json::to_value(&record).expect("JSON"));
    let uuid = record.task.uuid;
    for (answer, replaced) in [
        (json!({"task": {"returning": 7}}), json!({"returning": 7})),
        (json!({"priority": 5}), json!({"priority": 5})),
        (json!({"task": {"status": "lost"}}), json!({})),
        (json!(7), json!({})),
    ] {
        stage.prompt(&answer);
        let read = stage.queue.get(uuid).await.expect("memory does not fail").expect("a record");
        assert_eq!(shown(&read), echoed(replaced), "{answer}");
    }
    let asked = stage.events().len();
    assert!(stage.queue.get(Uuid::new_v4()).await.expect("memory does not fail").is_none());
    assert_eq!(stage.events().len(), asked, "of a task that nobody knows there is nothing to ask");
}

async fn qtasks_stop(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.queue.stop().await;
    assert_eq!(stage.event(), json!({"qtasks": qtasks(), "starter": null}), "a client alone");
    let Stage { app: Started { place, running, .. }, store, .. } = stage;
    let starter = running.starter_over(store);
    let queue = starter.queue_tasks();
    let stop = starter.stop();
    queue.stop().await;
    assert!(stop.is_asked());
    starter.run().await.expect("it ends, since it was told to");
    let event = place.events("scripted").pop().expect("an event");
    assert_eq!(event["kwargs"], json!({"qtasks": qtasks(), "starter": {"name": "Starter", "url": "memory:"}}));
}

async fn qtasks_ping(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    assert!(!stage.queue.ping().await.expect("memory does not fail"), "there is no worker");
    assert_eq!(stage.event(), json!({"qtasks": qtasks(), "global_config": {"name": "GlobalConfig"}}));
    let worker = stage.app.running.worker(Arc::clone(&stage.store));
    let stop = worker.stop();
    let pinging = async {
        let added = stage.queue.add_task(task("echo")).await.expect("memory does not fail");
        stage.queue.wait(added.task.uuid, Duration::from_secs(30)).await.expect("memory does not fail");
        assert!(stage.queue.ping().await.expect("memory does not fail"), "a worker is there");
        stop.now();
    };
    let (worked, ()) = tokio::join!(worker.run(None), pinging);
    worked.expect("memory does not fail");
}

async fn qtasks_flush_all(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    assert_eq!(stage.queue.flush_all().await.expect("memory does not fail"), 1);
    assert_eq!(stage.event(), json!({"qtasks": qtasks(), "broker": broker()}));
    assert!(stage.queue.get(record.task.uuid).await.expect("memory does not fail").is_none());
}
