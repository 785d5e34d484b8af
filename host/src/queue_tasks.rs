//! The client side: QTasks' component `QueueTasks`.
//!
//! Whoever has the project's tasks at hand can add to them and wait for what becomes of them; no worker need be in this process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use qtasks_plugin_api::Trigger;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use crate::broker::Component;
use crate::broker::answered::{fields_in, fields_of, replace, replace_whole};
use crate::broker::{BrokerError, Cancelled, GlobalConfig, Record, Requeued, Store, last_retry};
use crate::shown::chain;
use crate::trigger::Dispatched;
use crate::worker::Stop;

/// Adds tasks to a project, and asks what became of them.
///
/// ```
/// use std::time::Duration;
/// use qtasks_host::broker::Record;
/// use qtasks_host::queue_tasks::Waited;
/// use qtasks_host::{App, Settings, Task, TaskContext, TaskError};
/// use serde_json::json;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let settings = Settings { broker: Some("memory:".parse()?), ..Settings::default() };
/// let mut app = App::new(settings);
/// app.task("add", async |_ctx: TaskContext, (a, b): (i64, i64), _kwargs: ()| {
///     a.checked_add(b).ok_or_else(|| TaskError::from("too large"))
/// });
/// let starter = app.start().await?.starter().await?;
/// let queue = starter.queue_tasks();
/// let worker = tokio::spawn(starter.run());
///
/// let task = Task::new("add")?.with_arguments(json!([1, 2]), json!({}))?;
/// let added = queue.add_task(Record::from(task).after(Duration::from_millis(10))).await?;
/// let Waited::Ended(record) = queue.wait(added.task.uuid, Duration::from_secs(10)).await? else { panic!("it ends") };
/// assert_eq!(record.returning.as_deref().map(|json| json.get()), Some("3"));
///
/// queue.stop().await;
/// worker.await??;
/// # Ok(()) })
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct QueueTasks {
    store: Arc<Store>,
    /// What runs the application, where that is in this process.
    starter: Option<(Component, Stop)>,
}

/// What waiting for a task came to.
#[derive(Debug, Clone)]
pub enum Waited {
    /// It has ended; the record of its last retry, where it had QTasks' retries.
    Ended(Box<Record>),
    /// The time is over; this is how it stands.
    NotYet(Box<Record>),
    /// Nobody knows it: it was never added, or its result was removed.
    Unknown,
}

/// `qtasks` in an event:
///
/// ```json
/// {"name": "QueueTasks", "version": "0.1.0"}
/// ```
#[derive(Debug, Clone, Copy, Serialize)]
struct QueueTasksInfo<'a> {
    name: &'a str,
    version: &'static str,
}

/// A waiting client looks at least this often, as QTasks' clients do: a broker may be unable to tell it of a change.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// First pause of a waiting client whose broker is away; no later one is longer than [`LOOK_AGAIN`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

impl QueueTasks {
    /// The tasks of `store`.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, starter: None }
    }

    /// The tasks of an application that runs in this process, and can be asked to stop.
    pub(crate) fn of_starter(store: Arc<Store>, starter: Component, stop: Stop) -> Self {
        Self { store, starter: Some((starter, stop)) }
    }

    /// The project's broker and storage, with the plugins asked.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The values that workers and clients of the project share.
    #[must_use]
    pub fn global_config(&self) -> GlobalConfig<'_> {
        self.store.global_config()
    }

    /// Adds a task: a [`crate::Task`], or a [`Record`] made of one, to add it [with a delay](Record::after) or
    /// [with extra fields](Record::add_extras). It is safe when this returns. Gives the record as it was added, which plugins may have
    /// changed: wait for the uuid that stands there.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn add_task(&self, task: impl Into<Record>) -> Result<Record, BrokerError> {
        let record = task.into();
        let mut added = self.add_tasks([record.clone()]).await?;
        Ok(added.pop().unwrap_or(record))
    }

    /// Adds tasks, all or none; over Redis at most 512 at once. Gives the records as they were added, in their order.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; nothing was added, unless it [leaves that open](BrokerError::leaves_open).
    pub async fn add_tasks<T: Into<Record>>(&self, tasks: impl IntoIterator<Item = T>) -> Result<Vec<Record>, BrokerError> {
        let mut records: Vec<Record> = tasks.into_iter().map(Into::into).collect();
        if self.asks(Trigger::QtasksAddTaskBeforeBroker) {
            for record in &mut records {
                self.ask_about_task(record).await;
            }
        }
        let records = self.store.add(records).await?;
        if self.asks(Trigger::QtasksAddTaskAfterBroker) {
            for record in &records {
                self.tell_of_task(record).await;
            }
        }
        Ok(records)
    }

    async fn ask_about_task(&self, record: &mut Record) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            qtasks: QueueTasksInfo<'a>,
            broker: &'a Component,
            task_name: &'a str,
            priority: i64,
            args: &'a RawValue,
            kw: &'a RawValue,
        }
        let trigger = Trigger::QtasksAddTaskBeforeBroker;
        let task = &record.task;
        let kwargs = Kwargs {
            qtasks: self.info(),
            broker: self.store.broker(),
            task_name: &task.name,
            priority: task.priority,
            args: &task.args,
            kw: &task.kwargs,
        };
        let mut answered = self.fire(trigger, &kwargs).await;
        if let Some(extra) = answered.take("extra") {
            let added = match fields_of(&extra) {
                Some(extras) => record.add_extras(extras).map_err(|error| error.to_string()),
                None => Err(format!("extra is {extra}; expected a JSON object")),
            };
            if let Err(error) = added {
                tracing::warn!(%trigger, task = &*record.task.name, uuid = %record.task.uuid, "an answer was left out: {error}");
            }
        }
        replace(record, trigger, fields_in(answered));
    }

    async fn tell_of_task(&self, record: &Record) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            qtasks: QueueTasksInfo<'a>,
            broker: &'a Component,
            task_name: &'a str,
            priority: i64,
            args: &'a RawValue,
            kwargs: &'a RawValue,
        }
        let task = &record.task;
        let kwargs = Kwargs {
            qtasks: self.info(),
            broker: self.store.broker(),
            task_name: &task.name,
            priority: task.priority,
            args: &task.args,
            kwargs: &task.kwargs,
        };
        self.fire(Trigger::QtasksAddTaskAfterBroker, &kwargs).await;
    }

    /// What is known of a task.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn get(&self, uuid: Uuid) -> Result<Option<Record>, BrokerError> {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            qtasks: QueueTasksInfo<'a>,
            broker: &'a Component,
            task: &'a Record,
        }
        let trigger = Trigger::QtasksGet;
        let Some(mut record) = self.store.get(uuid).await? else { return Ok(None) };
        if self.asks(trigger) {
            let kwargs = Kwargs { qtasks: self.info(), broker: self.store.broker(), task: &record };
            let mut answered = self.fire(trigger, &kwargs).await;
            replace_whole(&mut record, trigger, answered.take("task"));
        }
        Ok(Some(record))
    }

    /// Waits until a task has ended, for at most `timeout`. Follows the retries that QTasks runs under ids of their own. Plugins are
    /// asked about the record that is given, not about each look at it. A broker that goes away meanwhile is waited for, too.
    ///
    /// # Errors
    ///
    /// [`BrokerError`], at once where waiting cannot help, else when it lasts until the timeout.
    pub async fn wait(&self, uuid: Uuid, timeout: Duration) -> Result<Waited, BrokerError> {
        let until = Instant::now().checked_add(timeout);
        let mut uuid = uuid;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = until.map_or(LOOK_AGAIN, |until| until.saturating_duration_since(Instant::now()));
            // Begun before the look, so that a change right after it is not missed.
            let mut changed = self.store.backend().changed(left.min(LOOK_AGAIN));
            let changed_already = changed.as_mut().now_or_never().is_some();
            match self.look(&mut uuid, left.is_zero()).await {
                Ok(Some(waited)) => return Ok(waited),
                Ok(None) => pause = FIRST_PAUSE,
                Err(error) if error.is_away() && !left.is_zero() => {
                    // Said once.
                    if pause == FIRST_PAUSE {
                        tracing::warn!("nobody can tell now what became of the task, trying again: {}", chain(&error));
                    }
                    tokio::time::sleep(pause.min(left)).await;
                    pause = (pause * 2).min(LOOK_AGAIN);
                    continue;
                }
                Err(error) => return Err(error),
            }
            if !changed_already {
                changed.await;
            }
        }
    }

    /// Looks at a task, or at the last of its retries, which `uuid` is from then on. `None`: it has not ended, and may still.
    async fn look(&self, uuid: &mut Uuid, is_last: bool) -> Result<Option<Waited>, BrokerError> {
        let (last, record) = last_retry(self.store.backend().as_ref(), *uuid).await?;
        *uuid = last;
        let Some(record) = record else { return Ok(Some(Waited::Unknown)) };
        let ended = record.status.has_ended();
        if !ended && !is_last {
            return Ok(None);
        }
        let Some(record) = self.get(last).await? else { return Ok(Some(Waited::Unknown)) };
        let record = Box::new(record);
        Ok(Some(if ended { Waited::Ended(record) } else { Waited::NotYet(record) }))
    }

    /// Cancels a task that waits, or asks the worker that runs it to; of a task that was retried, the last retry.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn cancel(&self, uuid: Uuid, reason: impl Into<String>) -> Result<Cancelled, BrokerError> {
        self.store.backend().cancel(uuid, reason.into()).await
    }

    /// Runs an ended task again, from its first attempt.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn retry(&self, uuid: Uuid) -> Result<Requeued, BrokerError> {
        self.store.backend().requeue(uuid).await
    }

    /// Whether a worker of the project is there.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn ping(&self) -> Result<bool, BrokerError> {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            qtasks: QueueTasksInfo<'a>,
            global_config: Component,
        }
        self.fire(Trigger::QtasksPing, &Kwargs { qtasks: self.info(), global_config: GlobalConfig::COMPONENT }).await;
        self.global_config().is_running().await
    }

    /// Removes everything of the project: tasks, results, decisions, the global config. Gives how many records.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn flush_all(&self) -> Result<u64, BrokerError> {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            qtasks: QueueTasksInfo<'a>,
            broker: &'a Component,
        }
        self.fire(Trigger::QtasksFlushAll, &Kwargs { qtasks: self.info(), broker: self.store.broker() }).await;
        self.store.flush_all().await
    }

    /// Asks the application to stop, where it runs in this process: see [`crate::starter::Starter::queue_tasks`]. For a client alone
    /// there is nothing to stop but what plugins do about it.
    pub async fn stop(&self) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            qtasks: QueueTasksInfo<'a>,
            starter: Option<&'a Component>,
        }
        let starter = self.starter.as_ref().map(|(starter, _)| starter);
        self.fire(Trigger::QtasksStop, &Kwargs { qtasks: self.info(), starter }).await;
        if let Some((_, stop)) = &self.starter {
            stop.now();
        }
    }

    fn info(&self) -> QueueTasksInfo<'_> {
        QueueTasksInfo { name: self.store.project(), version: env!("CARGO_PKG_VERSION") }
    }

    fn asks(&self, trigger: Trigger) -> bool {
        self.store.dispatcher().has_subscribers(trigger)
    }

    async fn fire(&self, trigger: Trigger, kwargs: &(impl Serialize + Sync)) -> Dispatched {
        self.store.dispatcher().fire(trigger, kwargs).await
    }
}
