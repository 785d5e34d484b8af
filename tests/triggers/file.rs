//! A broker in a file that plugins take for the one in memory.

use std::fmt;

use qtasks_host::broker::url::Synchronous;
use qtasks_host::broker::{
    Answer, Broker, BrokerSettings, BrokerUrl, Cancellation, Cancelled, Component, Counts, DecisionRecord, Fields, Filter,
    Finish, Lease, Requeued, Storage, Taken, open,
};
use qtasks_host::task::BoxFuture;
use tokio::sync::mpsc;

use super::*;
use crate::support::Place;

/// A broker in a file of the test's own.
pub(super) struct InAFile {
    _place: Place,
    file: Arc<dyn Backend>,
}

impl InAFile {
    pub(super) async fn open() -> Self {
        let place = Place::new();
        let url = BrokerUrl::Sqlite { path: place.path("tasks.db"), synchronous: Synchronous::Normal };
        let file = open(&BrokerSettings::new(url)).await.expect("a file");
        Self { _place: place, file }
    }
}

impl fmt::Debug for InAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InAFile")
    }
}

impl Broker for InAFile {
    fn component(&self) -> Component {
        MemoryBackend::new(MemoryBackend::UNBOUNDED, true).component()
    }
    methods_of! { file:
        prefetch(most: usize) -> usize;
        add(records: Vec<Record>) -> Answer<'_, ()>;
        attach() -> Answer<'_, mpsc::UnboundedReceiver<Cancellation>>;
        take(most: usize) -> Answer<'_, Vec<Taken>>;
        finish(batch: Arc<[Finish]>) -> Answer<'_, Vec<Lease>>;
        give_back(taken: Vec<Taken>) -> Answer<'_, ()>;
        detach() -> Answer<'_, u64>;
        take_over() -> Answer<'_, Vec<Taken>>;
    }
}

impl Storage for InAFile {
    fn storage_component(&self) -> Component {
        MemoryBackend::new(MemoryBackend::UNBOUNDED, true).storage_component()
    }
    methods_of! { file:
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
