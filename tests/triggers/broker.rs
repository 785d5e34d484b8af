//! Triggers of the component `Broker`.

use super::*;

rows! {
    BrokerListenStart: broker_listen_start;
    BrokerAddWorker: broker_add_worker;
    BrokerAddBefore: broker_add_before;
    BrokerAddAfter: broker_add_after;
    BrokerGet: broker_get;
    BrokerUpdate: broker_update;
    BrokerStart: broker_start;
    BrokerStop: broker_stop;
    BrokerRemoveFinishedTask: broker_remove_finished_task;
    BrokerFlushAll: broker_flush_all;
}

pub(super) fn broker() -> Value {
    json!({"name": "MemoryBroker", "url": "memory:"})
}

pub(super) fn storage() -> Value {
    json!({"name": "MemoryStorage", "url": "memory:"})
}

async fn broker_listen_start(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!(7));
    stage.work().await;
    let event = stage.event();
    assert_eq!((stage.events().len(), &event["broker"], &event["worker"]["name"]), (1, &broker(), &json!("Worker")));
}

async fn broker_start(isolation: &str, trigger: Trigger) {
    broker_listen_start(isolation, trigger).await;
}

async fn broker_stop(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.work().await;
    assert_eq!(stage.event(), json!({"broker": broker()}));
}

/// What the triggers that pass a task part by part have in common.
async fn replaces_parts(stage: &Stage, component: (&str, Value), name: &str) {
    let record = stage.echo().await;
    let mut event = stage.event();
    assert_eq!(event[component.0], component.1);
    event.as_object_mut().expect("an object").retain(|key, _| !["broker", "storage", "worker"].contains(&key.as_str()));
    let mut expected = json!({
        "task_name": "echo", "uuid": record.task.uuid, "priority": 3, "args": [1], "kw": {"b": 2},
        "created_at": record.task.created_at,
    });
    if name == "name" {
        expected["name"] = json!("echo");
    }
    assert_eq!(event, expected);
    for (answer, replaced) in [
        (json!({name: "other"}), json!({"task_name": "other", "returning": ["other", [1], {"b": 2}]})),
        (json!({"priority": 5}), json!({"priority": 5})),
        (json!({"args": [7]}), json!({"args": [7], "returning": returned(json!([7]), json!({"b": 2}))})),
        (json!({"kw": {"c": 7}}), json!({"kwargs": {"c": 7}, "returning": returned(json!([1]), json!({"c": 7}))})),
        (json!({}), json!({})),
        (json!({"priority": "high"}), json!({})),
        (json!({name: "", "priority": 5}), json!({})),
        (json!({"args": 7}), json!({})),
        (json!({"uuid": "0b6aecd7-8c0a-7b33-8a4c-0f3ba6a9a3a5"}), json!({})),
        (json!({"created_at": "now"}), json!({})),
        (json!("echo"), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
    let uuid = Uuid::new_v4();
    stage.prompt(&json!({"uuid": uuid}));
    let record = stage.echo().await;
    assert_eq!((record.task.uuid == uuid, shown(&record)), (stage.renames, echoed(json!({}))));
    stage.prompt(&json!({"created_at": 12.5}));
    let record = stage.echo().await;
    assert_eq!((record.task.created_at == 12.5, shown(&record)), (stage.renames, echoed(json!({}))));
}

async fn broker_add_worker(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    replaces_parts(&stage, ("broker", broker()), "task_name").await;
    assert_eq!(stage.event()["worker"]["name"], "Worker");
}

/// Of the component `Worker`, and otherwise the same; QTasks takes `name` back.
pub(super) async fn worker_add(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let name = json!("Worker");
    stage.echo().await;
    let worker = stage.event()["worker"].clone();
    assert_eq!(worker["name"], name);
    replaces_parts(&stage, ("name", json!("echo")), "name").await;
}

/// What the triggers have in common that pass a record before it is kept: any of its fields may be replaced.
pub(super) async fn replaces_fields(stage: &Stage, key: &str) {
    for (answer, replaced) in [
        (json!({key: {"priority": 5}}), json!({"priority": 5})),
        (json!({"note": "mine"}), json!({"note": "mine"})),
        (json!({}), json!({})),
        (json!({key: {"priority": 5, "kwargs": 7}}), json!({})),
        (json!([{"priority": 5}]), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
}

async fn broker_add_before(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let event = stage.event();
    assert_eq!((&event["broker"], &event["storage"]), (&broker(), &storage()));
    assert_eq!(event["model"], serde_json::to_value(Record::new(record.task)).expect("JSON"));
    replaces_fields(&stage, "model").await;
    stage.prompt(&json!({"model": {"args": [7]}}));
    assert_eq!(stage.echo().await.returning.expect("a result").get(), r#"{"args":[7],"kwargs":{"b":2}}"#);
    stage.prompt(&json!({"model": {"status": "cancel"}}));
    assert_eq!(shown(&stage.echo().await), echoed(json!({})), "a task that is added waits, whatever a plugin makes of it");
}

async fn broker_add_after(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"model": {"args": [7]}}));
    let record = stage.echo().await;
    assert_eq!(shown(&record), echoed(json!({})), "a one-way trigger");
    let event = stage.event();
    assert_eq!((&event["broker"], &event["storage"]), (&broker(), &storage()));
    assert_eq!(event["model"], serde_json::to_value(Record::new(record.task)).expect("JSON"));
}

async fn broker_get(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    assert_eq!(stage.event(), json!({"broker": broker(), "task": record}));
    replaces_what_is_read(&stage, "task", record.task.uuid).await;
}

/// What the triggers have in common that are asked about a record that is read.
pub(super) async fn replaces_what_is_read(stage: &Stage, key: &str, uuid: Uuid) {
    for (answer, replaced) in [
        (json!({key: {"returning": 7}}), json!({"returning": 7})),
        (json!({"priority": 5, "note": 1}), json!({"priority": 5, "note": 1})),
        (json!({key: {"args": {}, "priority": 5}}), json!({})),
        (json!("lost"), json!({})),
    ] {
        stage.prompt(&answer);
        let read = stage.queue.get(uuid).await.expect("memory does not fail").expect("a record");
        assert_eq!(shown(&read), echoed(replaced), "{answer}");
        let kept = stage.store.backend().get(uuid).await.expect("memory does not fail").expect("a record");
        assert_eq!(shown(&kept), echoed(json!({})), "what is kept stays as it is");
    }
}

async fn broker_update(isolation: &str, trigger: Trigger) {
    replaces_updates(isolation, trigger, ("broker", broker())).await;
}

/// Broker and storage are asked about the same.
pub(super) async fn replaces_updates(isolation: &str, trigger: Trigger, component: (&str, Value)) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    let event = stage.event();
    assert_eq!(event[component.0], component.1);
    assert_eq!(event["kw"]["name"], json!(format!("QueueTasks:{}", record.task.uuid)));
    assert_eq!(event["kw"]["mapping"]["status"], "process");
    assert!(event["kw"]["mapping"]["updated_at"].is_f64(), "{event}");
    for (answer, replaced) in [
        (json!({"kw": {"mapping": {"priority": 5}}}), json!({"priority": 5})),
        (json!({"mapping": {"args": [7], "note": 1}}), {
            json!({"args": [7], "note": 1, "returning": returned(json!([7]), json!({"b": 2}))})
        }),
        (json!({"kw": {}}), json!({})),
        (json!({"mapping": [7]}), json!({})),
        (json!({"mapping": {"priority": "high", "note": 1}}), json!({})),
        (json!({"mapping": {"priority": 5}, "name": "QueueTasks:somebody"}), json!({})),
        (json!(7), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(replaced), "{answer}");
    }
    // What a client updates, in another record's place.
    let (one, other) = (record.task.uuid, stage.echo().await.task.uuid);
    stage.prompt(&json!({"name": format!("QueueTasks:{other}")}));
    let fields = serde_json::from_str(r#"{"note": 123456789012345678901234567890}"#).expect("fields");
    assert!(stage.store.update(one, fields).await.expect("memory does not fail"));
    let note = |record: Record| record.extras.get("note").map(|note| note.get().to_owned());
    let (one, other) = (stage.ended(one).await, stage.ended(other).await);
    assert_eq!((note(one), note(other).as_deref()), (None, Some("123456789012345678901234567890")));
}

async fn broker_remove_finished_task(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let record = stage.echo().await;
    assert_eq!(stage.event(), json!({"broker": broker(), "storage": storage(), "model": record}));
    replaces_fields(&stage, "model").await;
    stage.prompt(&json!({"model": {"returning": 7}}));
    assert_eq!(shown(&stage.echo().await), echoed(json!({"returning": 7})));
    for status in ["new", "process"] {
        stage.prompt(&json!({"model": {"status": status}}));
        assert_eq!(shown(&stage.echo().await), echoed(json!({})), "what has ended has ended");
    }
}

async fn broker_flush_all(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.echo().await;
    assert_eq!(stage.queue.flush_all().await.expect("memory does not fail"), 1);
    assert_eq!(stage.event(), json!({"broker": broker()}));
}
