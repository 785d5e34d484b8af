//! Triggers of the component `Worker`.

use super::broker::{broker, replaces_fields};
use super::*;

rows! {
    WorkerStart: worker_start;
    WorkerStop: worker_stop;
    WorkerAdd: worker_add;
    WorkerExecuteBefore: worker_execute_before;
    WorkerRunTaskBefore: worker_run_task_before;
    WorkerTaskErrorRetry: worker_task_error_retry;
    WorkerRemoveFinishedTask: worker_remove_finished_task;
    WorkerExecuteAfter: worker_execute_after;
}

fn echo() -> Value {
    json!({"name": "echo", "provided_by": "scripted"})
}

async fn worker_start(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.work().await;
    let worker = &stage.event()["worker"];
    assert_eq!((&worker["name"], worker["concurrency"].is_u64(), stage.events().len()), (&json!("Worker"), true, 1));
}

async fn worker_stop(isolation: &str, trigger: Trigger) {
    worker_start(isolation, trigger).await;
}

async fn worker_add(isolation: &str, trigger: Trigger) {
    broker::worker_add(isolation, trigger).await;
}

async fn worker_execute_before(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let event = stage.event();
    assert_eq!((&event["task_func"], &event["task_broker"]), (&echo(), &json!(record.task)));
    assert_eq!((&event["model"]["uuid"], &event["model"]["status"]), (&json!(record.task.uuid), &json!("process")));
    replaces_fields(&stage, "model").await;
    stage.prompt(&json!({"model": {"args": [7]}}));
    assert_eq!(stage.echo().await.returning.expect("a result").get(), r#"{"args":[7],"kwargs":{"b":2}}"#);
}

async fn worker_run_task_before(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let event = stage.event();
    assert_eq!((&event["task_func"], &event["task_broker"]), (&echo(), &json!(record.task)));
    for (answer, replaced) in [
        (json!({"task_func": {"name": "other"}}), json!({"returning": ["other", [1], {"b": 2}]})),
        (json!({"task_broker": {"args": [7]}}), json!({"returning": returned(json!([7]), json!({"b": 2}))})),
        (json!({"task_broker": {"kwargs": {}}}), json!({"returning": returned(json!([1]), json!({}))})),
        (json!({}), json!({})),
        (json!({"task_func": "other"}), json!({})),
        (json!({"task_func": {"name": 7}}), json!({})),
        (json!({"task_broker": {"args": 7}}), json!({})),
        (json!({"task_broker": [7]}), json!({})),
        (json!({"args": [7]}), json!({})),
    ] {
        stage.prompt(&answer);
        // What is kept of the task stays as it came.
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
}

async fn worker_task_error_retry(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.run(task("fail")).await;
    assert_eq!((record.task.attempt, stage.events().len()), (2, 1), "it was tried again once");
    let event = stage.event();
    assert_eq!((&event["broker"], &event["trace"]), (&broker(), &json!("Error: as told")));
    assert_eq!(event["task_func"], json!({"name": "fail", "provided_by": "application"}));
    assert_eq!((&event["task_broker"]["uuid"], &event["model"]["uuid"]), (&json!(record.task.uuid), &json!(record.task.uuid)));
    // A retry that runs another task, with other arguments.
    stage.prompt(&json!({"model": {"task_name": "echo", "args": [7]}}));
    let record = stage.run(task("fail")).await;
    assert_eq!(record.returning.as_ref().expect("a result").get(), r#"{"args":[7],"kwargs":{"b":2}}"#);
    assert_eq!((&*record.task.name, record.task.priority, record.task.attempt), ("echo", 3, 2));
    for wrong in [json!({"model": {"priority": "high"}}), json!([7])] {
        stage.prompt(&wrong);
        let record = stage.run(task("fail")).await;
        assert_eq!((&*record.task.name, record.task.priority, record.task.attempt), ("fail", 3, 2), "{wrong}");
    }
}

async fn worker_remove_finished_task(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let event = stage.event();
    assert_eq!((&event["broker"], &event["task_func"]), (&broker(), &echo()));
    assert_eq!((&event["task_broker"], &event["model"]), (&json!(record.task), &json!(record)));
    for (answer, replaced) in [
        (json!({"model": {"returning": 7}}), json!({"returning": 7})),
        (json!({"task_broker": {"priority": 5}}), json!({"priority": 5})),
        (json!({"model": {"note": 1}, "task_broker": {"args": []}}), json!({"note": 1, "args": []})),
        (json!({}), json!({})),
        (json!({"model": {"status": "process"}}), json!({})),
        (json!({"task_broker": {"status": "new"}}), json!({})),
        (json!({"model": 7}), json!({})),
        (json!({"task_broker": {"kwargs": 7}}), json!({})),
        (json!({"returning": 7}), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
}

async fn worker_execute_after(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"model": {"returning": 7}}));
    let record = stage.echo().await;
    assert_eq!(shown(&record), echoed(json!({})), "a one-way trigger");
    assert_eq!(stage.event(), json!({"task_func": echo(), "task_broker": record.task, "model": record}));
}
