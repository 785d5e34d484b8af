//! A backend with the plugins asked at every step: QTasks' components Broker and Storage.
//!
//! Each operation fires the triggers that QTasks fires around it, in its order; what is written stays one step of the backend.
//! A partial answer replaces only what it names, and an answer that does not fit is told and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::Trigger;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::answered::{fields_in, fields_of, parts_of_item, replace, replace_whole};
use super::component::{Component, TaskParts};
use super::error::BrokerError;
use super::global_config::GlobalConfig;
use super::record::{Fields, Record, TaskStatus};
use super::{Backend, Filter, Finish, Lease, Taken};
use crate::task::Task;
use crate::trigger::{Dispatched, Dispatcher};

/// A backend, and the plugins that are asked about what it does. Shared by everybody who works with the tasks of one project.
#[derive(Debug)]
pub struct Store {
    backend: Arc<dyn Backend>,
    dispatcher: Arc<Dispatcher>,
    project: Arc<str>,
    broker: Component,
    storage: Component,
}

/// kwargs of the triggers that carry the broker, its storage and a record.
#[derive(Serialize)]
struct ModelKwargs<'a> {
    broker: &'a Component,
    storage: &'a Component,
    model: &'a Record,
}

/// What is written to which record.
struct Update {
    uuid: Uuid,
    fields: Fields,
}

/// `kw` of an update: the record's key in QTasks' storage, and its fields.
#[derive(Serialize)]
struct Kw {
    name: String,
    mapping: Fields,
}

impl Kw {
    /// What an answer makes of it: a `mapping` in it replaces the fields that it names. `None`: the answer does not fit.
    fn replaced(&self, answer: &RawValue, project: &str) -> Option<(Self, Update)> {
        let mut given = fields_of(answer)?;
        let name = match given.remove("name") {
            Some(name) => serde_json::from_str(name.get()).ok()?,
            None => self.name.clone(),
        };
        let uuid = name.strip_prefix(project)?.strip_prefix(':')?.parse().ok()?;
        let mut mapping = self.mapping.clone();
        if let Some(given) = given.remove("mapping") {
            let given = fields_of(&given)?;
            // Any task will do to see whether the fields are those of a record.
            Record::new(Task::new("any").ok()?).replace(given.clone()).ok()?;
            mapping.extend(given);
        }
        Some((Self { name, mapping: mapping.clone() }, Update { uuid, fields: mapping }))
    }
}

impl Store {
    /// The tasks of `project` in `backend`.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, dispatcher: Arc<Dispatcher>, project: impl Into<Arc<str>>) -> Self {
        let (broker, storage) = (backend.component(), backend.storage_component());
        Self { backend, dispatcher, project: project.into(), broker, storage }
    }

    /// The backend, with nobody asked.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Fires events.
    #[must_use]
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// The project's name.
    #[must_use]
    pub fn project(&self) -> &Arc<str> {
        &self.project
    }

    /// The broker as plugins see it.
    #[must_use]
    pub fn broker(&self) -> &Component {
        &self.broker
    }

    /// The storage as plugins see it.
    #[must_use]
    pub fn storage(&self) -> &Component {
        &self.storage
    }

    /// The values that workers and clients of the project share.
    #[must_use]
    pub fn global_config(&self) -> GlobalConfig<'_> {
        GlobalConfig::new(&*self.backend, &self.dispatcher)
    }

    /// Puts new tasks into the queue, all or none. Gives them as they were put.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn add(&self, mut records: Vec<Record>) -> Result<Vec<Record>, BrokerError> {
        for record in &mut records {
            self.ask_about_model(Trigger::BrokerAddBefore, record).await;
            if self.asks(Trigger::StorageAdd) {
                self.ask_about_new(record).await;
            }
            if record.status != TaskStatus::New {
                tracing::warn!(uuid = %record.task.uuid, "a plugin made a new task {}; it is added as new", record.status.name());
                record.status = TaskStatus::New;
            }
        }
        self.backend.add(records.clone()).await?;
        if self.asks(Trigger::BrokerAddAfter) {
            for record in &records {
                self.fire(Trigger::BrokerAddAfter, &self.model(record)).await;
            }
        }
        Ok(records)
    }

    async fn ask_about_new(&self, record: &mut Record) {
        #[derive(Serialize)]
        struct StorageAdd<'a> {
            storage: &'a Component,
            uuid: Uuid,
            task_status: &'a Record,
        }
        let trigger = Trigger::StorageAdd;
        let kwargs = StorageAdd { storage: &self.storage, uuid: record.task.uuid, task_status: record };
        let mut answered = self.fire(trigger, &kwargs).await;
        let uuid = answered.take("uuid");
        replace_whole(record, trigger, answered.take("task_status"));
        // After the record, which may come back whole with the uuid that it had.
        replace(record, trigger, uuid.map(|uuid| ("uuid".to_owned(), uuid)).into_iter().collect());
    }

    /// Takes up to `most` tasks for `worker`; waits until there is one. An empty list: there will be no more.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn take(&self, most: usize, worker: &(impl Serialize + Sync)) -> Result<Vec<Taken>, BrokerError> {
        #[derive(Serialize)]
        struct AddWorker<'a, W> {
            broker: &'a Component,
            worker: &'a W,
            #[serde(flatten)]
            parts: TaskParts<'a>,
        }
        #[derive(Serialize)]
        struct AddProcess<'a> {
            storage: &'a Component,
            task_data: String,
            priority: i64,
        }
        let mut taken = self.backend.take(most).await?;
        for Taken { lease, record } in &mut taken {
            if self.asks(Trigger::StorageAddProcess) {
                let task_data = format!("{}:{}:{}", record.task.name, record.task.uuid, record.task.priority);
                let kwargs = AddProcess { storage: &self.storage, task_data, priority: record.task.priority };
                let mut answered = self.fire(Trigger::StorageAddProcess, &kwargs).await;
                let mut fields = match answered.take("task_data").map(|item| (parts_of_item(&item), item)) {
                    Some((Some(parts), _)) => parts,
                    Some((None, item)) => {
                        let trigger = Trigger::StorageAddProcess;
                        tracing::warn!(%trigger, "task_data is {item}; expected a text task_name:uuid:priority");
                        Fields::new()
                    }
                    None => Fields::new(),
                };
                fields.extend(answered.take("priority").map(|priority| ("priority".to_owned(), priority)));
                replace(record, Trigger::StorageAddProcess, fields);
            }
            if self.asks(Trigger::BrokerAddWorker) {
                let kwargs = AddWorker { broker: &self.broker, worker, parts: TaskParts::of(record) };
                let answered = self.fire(Trigger::BrokerAddWorker, &kwargs).await;
                replace(record, Trigger::BrokerAddWorker, fields_in(answered));
            }
            if self.asks(Trigger::BrokerUpdate) || self.asks(Trigger::StorageUpdate) {
                let now = serde_json::value::to_raw_value(&record.updated_at).unwrap_or_default();
                let status = serde_json::value::to_raw_value(&record.status).unwrap_or_default();
                let mapping = [("status".to_owned(), status), ("updated_at".to_owned(), now)].into();
                if let Some(Update { uuid, fields }) = self.ask_about_update(lease.uuid, mapping).await {
                    // What was taken must not be lost because something beside it could not be written.
                    if let Err(error) = self.backend.update(uuid, fields.clone()).await {
                        tracing::warn!(%uuid, "what a plugin made of an update was not written: {error}");
                    }
                    if uuid == lease.uuid {
                        replace(record, Trigger::StorageUpdate, fields);
                    }
                }
            }
        }
        Ok(taken)
    }

    /// Replaces fields of a record, as the plugins let it; `false`: there is none.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn update(&self, uuid: Uuid, fields: Fields) -> Result<bool, BrokerError> {
        let mut update = Update { uuid, fields };
        if self.asks(Trigger::BrokerUpdate) || self.asks(Trigger::StorageUpdate) {
            let changed = self.ask_about_update(uuid, update.fields.clone()).await;
            update = changed.unwrap_or(update);
        }
        self.backend.update(update.uuid, update.fields).await
    }

    /// Asks about an update; gives what a plugin made of it, if one did.
    async fn ask_about_update(&self, uuid: Uuid, mapping: Fields) -> Option<Update> {
        #[derive(Serialize)]
        struct BrokerUpdate<'a> {
            broker: &'a Component,
            kw: &'a Kw,
        }
        #[derive(Serialize)]
        struct StorageUpdate<'a> {
            storage: &'a Component,
            kw: &'a Kw,
        }
        let mut kw = Kw { name: format!("{}:{uuid}", self.project), mapping };
        let mut changed = None;
        for trigger in [Trigger::BrokerUpdate, Trigger::StorageUpdate] {
            let mut answered = match trigger {
                Trigger::BrokerUpdate => self.fire(trigger, &BrokerUpdate { broker: &self.broker, kw: &kw }).await,
                _ => self.fire(trigger, &StorageUpdate { storage: &self.storage, kw: &kw }).await,
            };
            let Some(answer) = answered.take("kw") else { continue };
            match kw.replaced(&answer, &self.project) {
                Some((replaced, update)) => (kw, changed) = (replaced, Some(update)),
                None => {
                    let project = &self.project;
                    tracing::warn!(
                        %trigger,
                        "nothing was replaced: expected a `name` \"{project}:UUID\", a `mapping` of a record's fields, or both, not {answer}"
                    );
                }
            }
        }
        changed
    }

    /// Asks about a record that is about to be kept as ended.
    pub async fn before_finish(&self, record: &mut Record) {
        self.ask_about_model(Trigger::BrokerRemoveFinishedTask, record).await;
    }

    /// Says that a record is kept as ended.
    pub async fn finished(&self, record: &Record) {
        #[derive(Serialize)]
        struct StorageFinished<'a> {
            storage: &'a Component,
            task_broker: &'a Record,
            model: &'a Record,
        }
        let kwargs = StorageFinished { storage: &self.storage, task_broker: record, model: record };
        self.fire(Trigger::StorageRemoveFinishedTask, &kwargs).await;
    }

    /// Records what became of attempts. Gives the leases that were lost before.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]: nothing was recorded, and the same batch may be given again.
    pub async fn finish(&self, batch: Arc<[Finish]>) -> Result<Vec<Lease>, BrokerError> {
        self.backend.finish(batch).await
    }

    /// Takes over what lost workers held, and puts it back into the queue. Gives which tasks these are.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn running_older_tasks(&self, worker: &(impl Serialize + Sync)) -> Result<Vec<Uuid>, BrokerError> {
        #[derive(Serialize)]
        struct Older<'a, W> {
            storage: &'a Component,
            worker: &'a W,
            #[serde(flatten)]
            parts: TaskParts<'a>,
        }
        #[derive(Serialize)]
        struct Broker<'a, W> {
            broker: &'a Component,
            worker: &'a W,
        }
        self.fire(Trigger::BrokerRunningOlderTasks, &Broker { broker: &self.broker, worker }).await;
        let mut stranded = self.backend.take_over().await?;
        if stranded.is_empty() {
            return Ok(Vec::new());
        }
        if self.asks(Trigger::StorageRunningOlderTasks) {
            for Taken { record, .. } in &mut stranded {
                let kwargs = Older { storage: &self.storage, worker, parts: TaskParts::of(record) };
                let answered = self.fire(Trigger::StorageRunningOlderTasks, &kwargs).await;
                replace(record, Trigger::StorageRunningOlderTasks, fields_in(answered));
            }
        }
        let uuids = stranded.iter().map(|taken| taken.lease.uuid).collect();
        self.backend.give_back(stranded).await?;
        Ok(uuids)
    }

    /// One record, with its history.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn get(&self, uuid: Uuid) -> Result<Option<Record>, BrokerError> {
        #[derive(Serialize)]
        struct StorageGet<'a> {
            storage: &'a Component,
            result: &'a Record,
        }
        #[derive(Serialize)]
        struct BrokerGet<'a> {
            broker: &'a Component,
            task: &'a Record,
        }
        let Some(mut record) = self.backend.get(uuid).await? else { return Ok(None) };
        if self.asks(Trigger::StorageGet) {
            let mut answered = self.fire(Trigger::StorageGet, &StorageGet { storage: &self.storage, result: &record }).await;
            replace_whole(&mut record, Trigger::StorageGet, answered.take("result"));
        }
        if self.asks(Trigger::BrokerGet) {
            let mut answered = self.fire(Trigger::BrokerGet, &BrokerGet { broker: &self.broker, task: &record }).await;
            replace_whole(&mut record, Trigger::BrokerGet, answered.take("task"));
        }
        Ok(Some(record))
    }

    /// Records, the latest first, without their histories. A plugin may leave some out, and replace fields of others.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn get_all(&self, filter: Filter) -> Result<Vec<Record>, BrokerError> {
        #[derive(Serialize)]
        struct GetAll<'a> {
            storage: &'a Component,
            results: &'a [Record],
        }
        let records = self.backend.list(filter).await?;
        if !self.asks(Trigger::StorageGetAll) {
            return Ok(records);
        }
        let mut answered = self.fire(Trigger::StorageGetAll, &GetAll { storage: &self.storage, results: &records }).await;
        let Some(answer) = answered.take("results") else { return Ok(records) };
        let Ok(list) = serde_json::from_str::<Vec<Fields>>(answer.get()) else {
            let trigger = Trigger::StorageGetAll;
            tracing::warn!(%trigger, "the answer is no list of objects; nothing was replaced: {answer}");
            return Ok(records);
        };
        let of = |fields: &Fields| {
            let uuid: Uuid = serde_json::from_str(fields.get("uuid")?.get()).ok()?;
            records.iter().find(|record| record.task.uuid == uuid).cloned()
        };
        let kept = list.into_iter().filter_map(|fields| {
            let mut record = of(&fields)?;
            replace(&mut record, Trigger::StorageGetAll, fields);
            Some(record)
        });
        Ok(kept.collect())
    }

    /// Removes every ended record. Gives how many.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn delete_finished_tasks(&self) -> Result<u64, BrokerError> {
        self.fire_storage(Trigger::StorageDeleteFinishedTasks).await;
        self.backend.delete_finished().await
    }

    /// Removes ended records older than `results` and decisions older than `decisions`. Gives how many records.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn prune(&self, results: Duration, decisions: Duration) -> Result<u64, BrokerError> {
        self.fire_storage(Trigger::StorageDeleteFinishedTasks).await;
        self.backend.prune(results, decisions).await
    }

    /// Removes everything. Gives how many records.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn flush_all(&self) -> Result<u64, BrokerError> {
        self.fire_broker(Trigger::BrokerFlushAll).await;
        self.fire_storage(Trigger::StorageFlushAll).await;
        self.backend.flush_all().await
    }

    /// Says that the broker, its storage and the global config begin to serve `worker`.
    pub async fn started(&self, worker: &(impl Serialize + Sync)) {
        #[derive(Serialize)]
        struct Start<'a, W> {
            broker: &'a Component,
            worker: &'a W,
        }
        self.fire(Trigger::BrokerStart, &Start { broker: &self.broker, worker }).await;
        self.fire_storage(Trigger::StorageStart).await;
        self.global_config().started().await;
        self.fire(Trigger::BrokerListenStart, &Start { broker: &self.broker, worker }).await;
    }

    /// Says that the broker, its storage and the global config end.
    pub async fn stopped(&self) {
        self.global_config().stopped().await;
        self.fire_storage(Trigger::StorageStop).await;
        self.fire_broker(Trigger::BrokerStop).await;
    }

    async fn fire_broker(&self, trigger: Trigger) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            broker: &'a Component,
        }
        self.fire(trigger, &Kwargs { broker: &self.broker }).await;
    }

    async fn fire_storage(&self, trigger: Trigger) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            storage: &'a Component,
        }
        self.fire(trigger, &Kwargs { storage: &self.storage }).await;
    }

    pub(super) fn asks(&self, trigger: Trigger) -> bool {
        self.dispatcher.has_subscribers(trigger)
    }

    pub(super) async fn fire(&self, trigger: Trigger, kwargs: &(impl Serialize + Sync)) -> Dispatched {
        self.dispatcher.fire(trigger, kwargs).await
    }

    fn model<'a>(&'a self, model: &'a Record) -> ModelKwargs<'a> {
        ModelKwargs { broker: &self.broker, storage: &self.storage, model }
    }

    async fn ask_about_model(&self, trigger: Trigger, record: &mut Record) {
        if self.asks(trigger) {
            let mut answered = self.fire(trigger, &self.model(record)).await;
            replace_whole(record, trigger, answered.take("model"));
        }
    }
}
