//! The way of one task through a worker, from its lease to what is recorded of it.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use qtasks_plugin_api::Trigger;

use super::finisher::Ended;
use super::function_info::FunctionInfo;
use super::{Shared, WorkerInfo, execute};
use crate::broker::answered::{fields_in, fields_of, replace, replace_whole};
use crate::broker::component::{Component, TaskParts};
use crate::broker::{Again, Attempt, Finish, Record, Taken, unix_now};
use crate::shown::chain;
use crate::task::{self, Execution, Task, TaskReport};

/// A task has come to this worker.
pub(super) async fn added(shared: &Shared, taken: &mut Taken) {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        worker: &'a WorkerInfo,
        /// What the answer is read from; QTasks passes `task_name` and reads `name`.
        name: &'a str,
        #[serde(flatten)]
        parts: TaskParts<'a>,
    }
    let trigger = Trigger::WorkerAdd;
    if asks(shared, trigger) {
        let record = &taken.record;
        let kwargs = Kwargs { worker: &shared.info, name: &record.task.name, parts: TaskParts::of(record) };
        let answered = shared.store.dispatcher().fire(trigger, &kwargs).await;
        replace(&mut taken.record, trigger, fields_in(answered));
    }
}

/// Runs one attempt, and says what is to be recorded.
pub(super) async fn run(shared: &Shared, taken: Taken, cancelled: oneshot::Receiver<String>) -> Ended {
    let Taken { lease, mut record } = taken;
    if record.losses > 0
        && let Err(error) = shared.store.backend().begin(lease).await
    {
        tracing::warn!(uuid = %lease.uuid, "should this task end its worker, it is not noted: {}", chain(&error));
    }
    before(shared, &mut record).await;
    let task = task_to_run(shared, &record).await;
    let begun = unix_now();
    let name = Arc::clone(&task.name);
    let (ran, execution) = tokio::select! {
        biased;
        ran = execute(&shared.executor, task.clone()) => ran,
        // Nobody who could send is left when the worker ends, which drops this as well.
        Ok(reason) = cancelled => (task, Execution::cancelled(reason)),
    };
    let attempt = failed_attempt(record.task.attempt, begun, &execution);
    if let task::Ended::Retry { after, left } = execution.ended {
        tracing::info!(task = &*name, uuid = %ran.uuid, attempt = ran.attempt, seconds = after.as_secs_f64(), "the task will run again");
        record.traceback = execution.original_error.as_ref().map(ToString::to_string);
        record.updated_at = unix_now();
        ask_about_retry(shared, &mut record).await;
        record.task.attempt += 1;
        return Ended { finish: Finish { lease, record, retry: Some(Again { after, left }), attempt }, report: None };
    }
    let mut report = TaskReport::new(ran, execution);
    report.history.clone_from(&record.history);
    let mut record = record.ended(&report);
    after(shared, &mut record).await;
    Ended { finish: Finish { lease, record, retry: None, attempt }, report: Some(report) }
}

/// What is recorded of a task that was cancelled before it began.
pub(super) async fn cancelled(shared: &Shared, taken: Taken, reason: String) -> Ended {
    let mut report = TaskReport::new(taken.record.task.clone(), Execution::cancelled(reason));
    report.history.clone_from(&taken.record.history);
    let mut record = taken.record.ended(&report);
    after(shared, &mut record).await;
    Ended { finish: Finish { lease: taken.lease, record, retry: None, attempt: None }, report: Some(report) }
}

fn asks(shared: &Shared, trigger: Trigger) -> bool {
    shared.store.dispatcher().has_subscribers(trigger)
}

async fn before(shared: &Shared, record: &mut Record) {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        worker: &'a WorkerInfo,
        task_broker: &'a Task,
        task_func: Option<FunctionInfo>,
        model: &'a Record,
    }
    let trigger = Trigger::WorkerExecuteBefore;
    if asks(shared, trigger) {
        let task_func = FunctionInfo::of(shared, &record.task.name);
        let kwargs = Kwargs { worker: &shared.info, task_broker: &record.task, task_func, model: record };
        let mut answered = shared.store.dispatcher().fire(trigger, &kwargs).await;
        replace_whole(record, trigger, answered.take("model"));
    }
}

/// The task as it is to run, which a plugin may change for this run alone.
async fn task_to_run(shared: &Shared, record: &Record) -> Task {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        worker: &'a WorkerInfo,
        task_func: Option<FunctionInfo>,
        task_broker: &'a Task,
    }
    let trigger = Trigger::WorkerRunTaskBefore;
    if !asks(shared, trigger) {
        return record.task.clone();
    }
    let task_func = FunctionInfo::of(shared, &record.task.name);
    let kwargs = Kwargs { worker: &shared.info, task_func, task_broker: &record.task };
    let mut answered = shared.store.dispatcher().fire(trigger, &kwargs).await;
    let mut run = Record::new(record.task.clone());
    replace_whole(&mut run, trigger, answered.take("task_broker"));
    if let Some(function) = answered.take("task_func") {
        match fields_of(&function).and_then(|mut function| function.remove("name")) {
            Some(name) => replace(&mut run, trigger, [("task_name".to_owned(), name)].into()),
            None => tracing::warn!(%trigger, "the answer has no task_func with a `name`; it was left as it is: {function}"),
        }
    }
    run.task
}

/// The attempt, if it raised an error.
pub(super) fn failed_attempt(attempt: u32, begun: f64, execution: &Execution) -> Option<Attempt> {
    let error = execution.original_error.clone()?;
    let asked = |decision: &&crate::trigger::Decision| decision.trigger == Trigger::TaskExecutorRunTaskTriggerError;
    let decisions = execution.decisions.iter().filter(asked).cloned().collect();
    let seconds = execution.duration.as_secs_f64();
    Some(Attempt { attempt, at: begun + seconds, seconds, error, decisions })
}

async fn ask_about_retry(shared: &Shared, record: &mut Record) {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        broker: &'a Component,
        task_func: Option<FunctionInfo>,
        task_broker: &'a Task,
        trace: &'a str,
        model: &'a Record,
    }
    let trigger = Trigger::WorkerTaskErrorRetry;
    if asks(shared, trigger) {
        let kwargs = Kwargs {
            broker: shared.store.broker(),
            task_func: FunctionInfo::of(shared, &record.task.name),
            task_broker: &record.task,
            trace: record.traceback.as_deref().unwrap_or_default(),
            model: record,
        };
        let mut answered = shared.store.dispatcher().fire(trigger, &kwargs).await;
        replace_whole(record, trigger, answered.take("model"));
    }
}

async fn after(shared: &Shared, record: &mut Record) {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        worker: &'a WorkerInfo,
        broker: &'a Component,
        task_func: Option<FunctionInfo>,
        task_broker: &'a Task,
        model: &'a Record,
    }
    let trigger = Trigger::WorkerRemoveFinishedTask;
    let status = record.status;
    if asks(shared, trigger) {
        let kwargs = Kwargs {
            worker: &shared.info,
            broker: shared.store.broker(),
            task_func: FunctionInfo::of(shared, &record.task.name),
            task_broker: &record.task,
            model: record,
        };
        let mut answered = shared.store.dispatcher().fire(trigger, &kwargs).await;
        let of_model: Option<Box<RawValue>> = answered.take("model");
        replace_whole(record, trigger, answered.take("task_broker"));
        replace_whole(record, trigger, of_model);
    }
    shared.store.before_finish(record).await;
    if !record.status.has_ended() {
        let (task, uuid) = (&*record.task.name, record.task.uuid);
        tracing::warn!(task, %uuid, "a plugin made an ended task {}; it stays {}", record.status.name(), status.name());
        record.status = status;
    }
}
