//! Where tasks wait and results stay.
//!
//! A backend is both: a [`Broker`], the queue that workers take from, and a [`Storage`], the records that people and clients read.
//! [`open`] chooses one by URL: [`sqlite`] is a file, [`redis`] is shared with QTasks' Python workers and clients, [`memory`] is this
//! process. [`Store`] is what everybody above uses: a backend, with the plugins asked at every step.
//!
//! How a task is never lost: a worker does not take a task off the queue, it takes a lease on it. The lease holds while the worker's
//! beat goes on; when the beat stops for the lease's time, measured by the observer's own clock, another worker takes the task over. Each
//! delivery has a number, and a worker that comes back late finishes nothing, since its number is no longer the task's.

pub(crate) mod answered;
pub mod component;
pub mod error;
pub mod global_config;
pub mod memory;
pub mod record;
pub mod redis;
pub mod settings;
pub mod sqlite;
pub mod store;
pub mod url;
mod watched;

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use uuid::Uuid;

use crate::task::BoxFuture;

pub use self::redis::RedisBackend;
pub use crate::task::Attempt;
pub use component::Component;
pub use error::{BrokerError, BrokerErrorKind};
pub use global_config::GlobalConfig;
pub use memory::MemoryBackend;
pub use record::{DecisionRecord, Fields, Record, TaskStatus, unix_now};
pub use settings::BrokerSettings;
pub use sqlite::SqliteBackend;
pub use store::Store;
pub use url::BrokerUrl;

/// What the operations of a backend give.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BrokerError>>;

/// Both halves of a backend.
pub trait Backend: Broker + Storage {}

impl<B: Broker + Storage> Backend for B {}

/// A task handed to a worker, and which time it was: only the last delivery can finish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The task, as the backend knows it, whatever a plugin made of the record.
    pub uuid: Uuid,
    /// Higher with each delivery of this task.
    pub delivery: i64,
}

/// A task under a lease.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The right to finish it.
    pub lease: Lease,
    /// The task.
    pub record: Record,
}

/// What a worker says when an attempt has ended.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The right to say it.
    pub lease: Lease,
    /// The record as it is to be kept. With `retry`, as it is to run again.
    pub record: Record,
    /// Another attempt is to follow.
    pub retry: Option<Again>,
    /// The attempt's error and who was asked about it, if there was one.
    pub attempt: Option<Attempt>,
}

/// Another attempt is to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// After this time.
    pub after: Duration,
    /// How many attempts are left.
    pub left: u32,
}

/// Somebody wants a running task cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancellation {
    /// Which.
    pub uuid: Uuid,
    /// Why.
    pub reason: String,
}

/// Which records are asked for.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only of this status.
    pub status: Option<TaskStatus>,
    /// Only of this name.
    pub task_name: Option<String>,
    /// Only those that were set aside.
    pub dead_letter: bool,
    /// At most so many, the latest first.
    pub limit: usize,
}

/// What became of a request to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancelled {
    /// It waited, and is cancelled now.
    Done,
    /// It runs; its worker was told.
    Asked,
    /// It has ended already.
    Ended,
    /// A worker of another kind has it, which cannot be told (Redis, with Python workers).
    Foreign,
    /// Nobody knows it.
    Unknown,
}

/// What became of a request to run a task again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Requeued {
    /// It waits again, with all its attempts.
    Done,
    /// It waits or runs already.
    Underway,
    /// What was found in its place was no task, so there is nothing to run: it has to be added anew.
    Unreadable,
    /// Nobody knows it.
    Unknown,
}

/// `type` of the error of what was set aside since it is no task.
pub(crate) const UNREADABLE_TASK_ERROR: &str = "UnreadableTask";

/// How many tasks there are, by status.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Waiting, delayed ones among them.
    pub new: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// With a worker.
    pub process: u64,
    /// Ended with a result.
    pub success: u64,
    /// Ended with an error.
    pub error: u64,
    /// Cancelled.
    pub cancel: u64,
    /// Followed by a retry child (Redis).
    pub retry: u64,
    /// Of those with an error, set aside.
    pub dead_letter: u64,
}

/// The queue. All futures may be dropped at any point: what was begun is done or not done, and a task that was taken for nobody comes
/// back with [`Broker::detach`].
pub trait Broker: Debug + Send + Sync {
    /// The broker as plugins see it.
    fn component(&self) -> Component;

    /// How many tasks a worker should take ahead, when it may take `most`: none where taking costs next to nothing.
    fn prefetch(&self, most: usize) -> usize {
        most
    }

    /// Puts new tasks into the queue, all or none, each no earlier than its `due`. They are safe when this returns.
    ///
    /// Fails with [`BrokerErrorKind::Known`] when a uuid is taken.
    fn add(&self, records: Vec<Record>) -> Answer<'_, ()>;

    /// Becomes a worker: from now on this backend's beat goes on, and leases hold. Gives the requests to cancel what it holds.
    fn attach(&self) -> Answer<'_, mpsc::UnboundedReceiver<Cancellation>>;

    /// Takes up to `most` tasks, of higher priority first, then first in first out; waits until there is one. An empty list: there will
    /// be no more.
    fn take(&self, most: usize) -> Answer<'_, Vec<Taken>>;

    /// Records what became of attempts, each whole or not at all. Gives the leases that were lost before: nothing is recorded for them.
    fn finish(&self, batch: Arc<[Finish]>) -> Answer<'_, Vec<Lease>>;

    /// Takes over what workers held whose beat has stopped.
    fn take_over(&self) -> Answer<'_, Vec<Taken>>;

    /// Notes that the attempt of this lease begins now: should its worker be lost, the task counts as one that may have ended it. Asked
    /// for tasks that a lost worker had before, since it costs a visit to the broker.
    fn begin(&self, _lease: Lease) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Puts tasks back where they were, at the front of their priority.
    fn give_back(&self, taken: Vec<Taken>) -> Answer<'_, ()>;

    /// Stops being a worker: gives back all that is held, and ends the beat. Gives how many were given back.
    fn detach(&self) -> Answer<'_, u64>;
}

/// The records.
pub trait Storage: Debug + Send + Sync {
    /// The storage as plugins see it.
    fn storage_component(&self) -> Component;

    /// One record, with its history.
    fn get(&self, uuid: Uuid) -> Answer<'_, Option<Record>>;

    /// Records, the latest first, without their histories.
    fn list(&self, filter: Filter) -> Answer<'_, Vec<Record>>;

    /// Replaces fields of a record; `false`: there is none. Names that are not a record's own are kept as extra fields.
    fn update(&self, uuid: Uuid, fields: Fields) -> Answer<'_, bool>;

    /// Cancels a task that waits, or asks the worker that runs it to.
    fn cancel(&self, uuid: Uuid, reason: String) -> Answer<'_, Cancelled>;

    /// Lets an ended task run again from its first attempt.
    fn requeue(&self, uuid: Uuid) -> Answer<'_, Requeued>;

    /// What plugins decided, the latest first; of one task, or of all.
    fn decisions(&self, uuid: Option<Uuid>, limit: usize) -> Answer<'_, Vec<DecisionRecord>>;

    /// How many tasks there are.
    fn counts(&self) -> Answer<'_, Counts>;

    /// Removes ended records older than `results` and decisions older than `decisions`. Gives how many records.
    fn prune(&self, results: Duration, decisions: Duration) -> Answer<'_, u64>;

    /// Removes every ended record. Gives how many.
    fn delete_finished(&self) -> Answer<'_, u64>;

    /// Removes everything: tasks, results, decisions, the global config. Gives how many records.
    fn flush_all(&self) -> Answer<'_, u64>;

    /// Waits until something may have changed since the last call, or this time is over. May return early.
    fn changed(&self, at_most: Duration) -> BoxFuture<'_, ()>;

    /// Sets a value of the global config `name`.
    fn config_set(&self, name: String, key: String, value: String) -> Answer<'_, ()>;

    /// All values of the global config `name`.
    fn config_get_all(&self, name: String) -> Answer<'_, Vec<(String, String)>>;

    /// Says that a worker of this project is there, for the next 20 seconds or so.
    fn set_running(&self) -> Answer<'_, ()>;

    /// Whether a worker of this project is there.
    fn is_running(&self) -> Answer<'_, bool>;
}

/// Opens the backend that the URL names.
///
/// # Errors
///
/// [`BrokerError`].
pub async fn open(settings: &BrokerSettings) -> Result<Arc<dyn Backend>, BrokerError> {
    match &settings.url {
        BrokerUrl::Memory => Ok(Arc::new(MemoryBackend::new(MemoryBackend::UNBOUNDED, true))),
        BrokerUrl::Sqlite { path, synchronous } => {
            let (path, synchronous, own) = (path.clone(), *synchronous, settings.clone());
            let opened = tokio::task::spawn_blocking(move || SqliteBackend::open(&path, synchronous, &own)).await;
            let place = || settings.url.to_string().into();
            let opened = opened.map_err(|error| BrokerError::with_source(&place(), BrokerErrorKind::Other, error))?;
            Ok(Arc::new(opened?))
        }
        BrokerUrl::Redis(url) => Ok(Arc::new(RedisBackend::open(url, settings).await?)),
    }
}

/// The last of the retries that have ids of their own (Redis), or the task itself, and its record, which has the history of all; `None`:
/// nobody knows it.
///
/// # Errors
///
/// [`BrokerError`].
pub async fn last_retry(storage: &dyn Storage, uuid: Uuid) -> Result<(Uuid, Option<Record>), BrokerError> {
    let mut uuid = uuid;
    // Children of a damaged record might lead back to it.
    let mut followed = HashSet::from([uuid]);
    loop {
        let record = storage.get(uuid).await?;
        let retried = record.as_ref().filter(|record| record.status == TaskStatus::Retry);
        match retried.and_then(|record| record.retry_child_uuid) {
            Some(child) if followed.insert(child) => uuid = child,
            _ => return Ok((uuid, record)),
        }
    }
}

impl Filter {
    /// Everything, the latest `limit`.
    #[must_use]
    pub fn latest(limit: usize) -> Self {
        Self { status: None, task_name: None, dead_letter: false, limit }
    }

    /// Whether it lets this record through.
    #[must_use]
    pub fn fits(&self, record: &Record) -> bool {
        self.status.is_none_or(|status| status == record.status)
            && self.task_name.as_deref().is_none_or(|name| name == &*record.task.name)
            && (!self.dead_letter || record.dead_letter.is_some())
    }
}

impl Counts {
    /// Counts a record.
    pub(crate) fn add(&mut self, status: TaskStatus, dead_letter: bool) {
        *match status {
            TaskStatus::New => &mut self.new,
            TaskStatus::Process => &mut self.process,
            TaskStatus::Success => &mut self.success,
            TaskStatus::Error => &mut self.error,
            TaskStatus::Retry => &mut self.retry,
            TaskStatus::Cancel => &mut self.cancel,
        } += 1;
        self.dead_letter += u64::from(dead_letter);
    }
}
