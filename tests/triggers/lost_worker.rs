//! Triggers about the tasks of lost workers. A broker in memory loses its workers with its tasks, so one that was lost is played.

use std::fmt;
use std::sync::Mutex;

use qtasks_host::broker::{
    Answer, Broker, Cancellation, Cancelled, Component, Counts, DecisionRecord, Fields, Filter, Finish, Lease, Requeued, Storage,
    Taken,
};
use qtasks_host::task::BoxFuture;
use tokio::sync::mpsc;

use super::broker::{broker, storage};
use super::*;

rows! {
    BrokerRunningOlderTasks: broker_running_older_tasks;
    StorageRunningOlderTasks: storage_running_older_tasks;
}

/// A broker in memory, and what a lost worker had taken from it.
struct Lost {
    memory: MemoryBackend,
    taken: Mutex<Vec<Taken>>,
}

impl Lost {
    fn new() -> Arc<Self> {
        Arc::new(Self { memory: MemoryBackend::new(MemoryBackend::UNBOUNDED, true), taken: Mutex::default() })
    }

    /// Adds `echo(1, b=2)`, which is taken at once and never heard of again.
    async fn strand(&self) -> Uuid {
        let record = Record::new(task("echo"));
        let uuid = record.task.uuid;
        self.memory.add(vec![record]).await.expect("memory does not fail");
        let taken = self.memory.take(1).await.expect("memory does not fail");
        self.taken.lock().expect("nobody panics").extend(taken);
        uuid
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lost")
    }
}

impl Broker for Lost {
    methods_of! { memory:
        component() -> Component;
        prefetch(most: usize) -> usize;
        add(records: Vec<Record>) -> Answer<'_, ()>;
        attach() -> Answer<'_, mpsc::UnboundedReceiver<Cancellation>>;
        take(most: usize) -> Answer<'_, Vec<Taken>>;
        finish(batch: Arc<[Finish]>) -> Answer<'_, Vec<Lease>>;
        give_back(taken: Vec<Taken>) -> Answer<'_, ()>;
        detach() -> Answer<'_, u64>;
    }

    fn take_over(&self) -> Answer<'_, Vec<Taken>> {
        let taken = std::mem::take(&mut *self.taken.lock().expect("nobody panics"));
        Box::pin(std::future::ready(Ok(taken)))
    }
}

impl Storage for Lost {
    methods_of! { memory:
        storage_component() -> Component;
        get(uuid: Uuid) -> Answer<'_, Option<Record>>;
        list(filter: Filter) -> Answer<'_, Vec<Record>>;
        update(uuid: Uuid, fields: Fields) -> Answer<'_, bool>;
        cancel(uuid: Uuid, reason: String) -> Answer<'_, Cancelled>;
        requeue(uuid: Uuid) -> Answer<'_, Requeued>;
        decisions(uuid: Option<Uuid>, limit: usize) -> Answer<'_, Vec<DecisionRecord>>;
        counts() -> Answer<'_, Counts>;
        prune(results: Duration, decisions: Duration) -> Answer<'_, u64>;
        delete_finished() -> Answer<'_, u64>;
        flush_all() -> Answer<'_, u64>;
        changed(at_most: Duration) -> BoxFuture<'_, ()>;
        config_set(name: String, key: String, value: String) -> Answer<'_, ()>;
        config_get_all(name: String) -> Answer<'_, Vec<(String, String)>>;
        set_running() -> Answer<'_, ()>;
        is_running() -> Answer<'_, bool>;
    }
}

async fn broker_running_older_tasks(isolation: &str, trigger: Trigger) {
    let lost = Lost::new();
    let stage = Stage::over(isolation, trigger, Arc::<Lost>::clone(&lost)).await;
    stage.prompt(&json!({"worker": 7}));
    let uuid = lost.strand().await;
    stage.work().await;
    assert_eq!(shown(&stage.ended(uuid).await), echoed(json!({})), "the worker looked for it, and ran it");
    let event = stage.event();
    assert_eq!((&event["broker"], &event["worker"]["name"]), (&broker(), &json!("Worker")));
}

async fn storage_running_older_tasks(isolation: &str, trigger: Trigger) {
    let lost = Lost::new();
    let stage = Stage::over(isolation, trigger, Arc::<Lost>::clone(&lost)).await;
    let strand = async || {
        let uuid = lost.strand().await;
        stage.work().await;
        stage.ended(uuid).await
    };
    let record = strand().await;
    assert_eq!(shown(&record), echoed(json!({})));
    let mut event = stage.event();
    assert_eq!(event["worker"].take()["name"], "Worker");
    let expected = json!({
        "storage": storage(), "worker": null, "task_name": "echo", "uuid": record.task.uuid, "priority": 3, "args": [1],
        "kw": {"b": 2}, "created_at": record.task.created_at,
    });
    assert_eq!(event, expected);
    for (answer, replaced) in [
        (json!({"task_name": "other"}), json!({"task_name": "other", "returning": ["other", [1], {"b": 2}]})),
        (json!({"priority": 5}), json!({"priority": 5})),
        (json!({"args": [7]}), json!({"args": [7], "returning": returned(json!([7]), json!({"b": 2}))})),
        (json!({"kw": {}}), json!({"kwargs": {}, "returning": returned(json!([1]), json!({}))})),
        (json!({}), json!({})),
        (json!({"args": 7, "priority": 5}), json!({})),
        (json!(7), json!({})),
    ] {
        stage.prompt(&answer);
        assert_eq!(shown(&strand().await), echoed(replaced), "{answer}");
    }
    let uuid = Uuid::new_v4();
    stage.prompt(&json!({"uuid": uuid, "created_at": 12.5}));
    let record = strand().await;
    assert_eq!((record.task.uuid, record.task.created_at, shown(&record)), (uuid, 12.5, echoed(json!({}))));
}
