//! Errors on record, asked about again: what would these plugins, with these settings, make of what happened before?

use std::collections::HashSet;
use std::sync::Arc;

use qtasks_plugin_api::{Directive, ErrorBody, to_raw_value};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::broker::{Attempt, BrokerError, Filter, Record, Storage, TaskStatus, last_retry};
use crate::task::{Task, TaskExecutor};
use crate::trigger::{Answered, Decision, Dispatched, OutcomeKind, Resolution};

/// Asks the plugins of an application about errors on record. What they answer is compared and not followed: no task is run, and
/// nothing on record changes. The plugins are really called, so what one of them writes or sends is written and sent.
///
/// ```
/// # use qtasks_host::{App, Settings};
/// # async fn example(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
/// let running = App::new(settings).start().await?;       // with the plugins that a worker is to have
/// let store = running.open_broker().await?;
/// let replay = running.replay(&store);
/// for uuid in replay.tasks_with_errors(100).await? {
///     for error in replay.task(uuid).await?.into_iter().flatten().filter(|error| !error.same) {
///         println!("{} {}: {:?}, and it was {:?}", error.task, error.uuid, error.now, error.recorded);
///     }
/// }
/// running.stop().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Replay<'a> {
    executor: &'a TaskExecutor,
    storage: &'a dyn Storage,
}

/// An error that was asked about again.
///
/// ```json
/// {"uuid": "…", "task": "resize", "attempt": 1, "at": 1795333232.880758,
///  "error": {"type": "TaskPluginTriggerError", "message": "…", "args": [], "kwargs": {…}},
///  "recorded": {"plugin": "fallback", "version": "0.1.0", "outcome": "result", "value": 123},
///  "now": {"plugin": "fallback", "version": "0.2.0", "outcome": "retry_after", "value": 2.5},
///  "same": false, "decisions": […]}
/// ```
///
/// `recorded` or `now` is `null` where nobody answered, and the error went on.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// The task's id, or its last retry's.
    pub uuid: Uuid,
    /// Its name.
    pub task: Arc<str>,
    /// Which of its attempts, from 1.
    pub attempt: u32,
    /// When that ended, in Unix seconds.
    pub at: f64,
    /// The error that it raised.
    pub error: Box<ErrorBody>,
    /// What a plugin answered then.
    pub recorded: Option<Decided>,
    /// What a plugin answers now.
    pub now: Option<Decided>,
    /// Whether both come to the same for the task, whichever plugin says it.
    pub same: bool,
    /// Each plugin that was asked now, in order. Empty: with these settings, none is asked about such an error.
    pub decisions: Vec<Decision>,
}

/// The answer that counted.
#[derive(Debug, Serialize)]
pub struct Decided {
    /// Who gave it, and its kind.
    #[serde(flatten)]
    pub by: Resolution,
    /// The result, the reason of `cancel` and `dead_letter`, the error of `replace_error`, the seconds of `retry_after`. On record are
    /// those by which a task ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
}

impl<'a> Replay<'a> {
    /// Asks the plugins of `executor` about what is in `storage`.
    #[must_use]
    pub fn new(executor: &'a TaskExecutor, storage: &'a dyn Storage) -> Self {
        Self { executor, storage }
    }

    /// The tasks that have errors on record, the latest first: those of the latest `limit` decisions, and the latest `limit` that ended
    /// with an error, whether or not a plugin was asked about it. Of a task whose retries have ids of their own, the last one.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn tasks_with_errors(&self, limit: usize) -> Result<Vec<Uuid>, BrokerError> {
        let decided = self.storage.decisions(None, limit).await?;
        let failed = self.storage.list(Filter { status: Some(TaskStatus::Error), ..Filter::latest(limit) }).await?;
        let decided = decided.iter().map(|decision| (decision.at, decision.uuid));
        let mut found: Vec<_> = decided.chain(failed.iter().map(|record| (record.updated_at, record.task.uuid))).collect();
        found.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let (mut tasks, mut seen) = (Vec::new(), HashSet::new());
        for (_, uuid) in found {
            if seen.insert(uuid) {
                let (last, _) = last_retry(self.storage, uuid).await?;
                if last == uuid || seen.insert(last) {
                    tasks.push(last);
                }
            }
        }
        Ok(tasks)
    }

    /// Asks about each error of one task and its retries, in order; none that plugins were not and are not asked about. `None`: there is
    /// no such task, or no more.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn task(&self, uuid: Uuid) -> Result<Option<Vec<Replayed>>, BrokerError> {
        let (_, Some(record)) = last_retry(self.storage, uuid).await? else { return Ok(None) };
        let mut replayed = Vec::new();
        for (index, attempt) in record.history.iter().enumerate() {
            let task = Task { attempt: attempt.attempt, ..record.task.clone() };
            let Dispatched { answer, decisions } = match self.executor.ask_about(&task, &attempt.error).await {
                Some(dispatched) => dispatched,
                None if attempt.decisions.is_empty() => continue,
                None => Dispatched::default(),
            };
            let recorded = recorded(&record, attempt, index + 1 == record.history.len());
            let now = answer.map(|(answered, by)| Decided { value: value_of(answered), by });
            replayed.push(Replayed {
                uuid: task.uuid,
                task: task.name,
                attempt: task.attempt,
                at: attempt.at,
                error: attempt.error.clone(),
                same: same(recorded.as_ref(), now.as_ref()),
                recorded,
                now,
                decisions,
            });
        }
        Ok(Some(replayed))
    }
}

/// The answer that counted in `attempt`.
fn recorded(record: &Record, attempt: &Attempt, is_last: bool) -> Option<Decided> {
    let ended = record.status.has_ended() && record.status != TaskStatus::Retry;
    // What is on record of the task's end is of this attempt.
    let its_end = is_last && ended && attempt.attempt == record.task.attempt;
    let answered = |decision: &&Decision| match decision.outcome {
        OutcomeKind::Pass | OutcomeKind::Failed => false,
        // Where no attempt was left it was none.
        OutcomeKind::RetryAfter => !its_end,
        _ => true,
    };
    let Decision { by, outcome, .. } = attempt.decisions.iter().rfind(answered)?;
    let by = Resolution { by: Arc::clone(by), outcome: *outcome };
    let value = match by.outcome {
        _ if !its_end => None,
        OutcomeKind::Result => record.returning.clone(),
        OutcomeKind::Cancel => json_of(record.cancel_reason.as_ref()),
        OutcomeKind::DeadLetter => json_of(record.dead_letter.as_ref()),
        OutcomeKind::ReplaceError => json_of(record.error.as_ref()),
        _ => None,
    };
    Some(Decided { by, value })
}

fn value_of(answered: Answered) -> Option<Box<RawValue>> {
    match answered {
        Answered::Values(values) => values.into_iter().next().map(|(_, result)| result),
        Answered::Directive(Directive::RetryAfter { seconds }) => json_of(Some(&seconds)),
        Answered::Directive(Directive::Cancel { reason } | Directive::DeadLetter { reason }) => json_of(Some(&reason)),
        Answered::Directive(Directive::ReplaceError { error }) => json_of(Some(&error)),
        // Dispatch refuses directives that it does not know.
        Answered::Directive(_) => None,
    }
}

fn json_of(value: Option<&impl Serialize>) -> Option<Box<RawValue>> {
    to_raw_value(value?).ok()
}

fn same(recorded: Option<&Decided>, now: Option<&Decided>) -> bool {
    match (recorded, now) {
        (Some(recorded), Some(now)) => {
            let values = recorded.value.as_deref().zip(now.value.as_deref());
            recorded.by.outcome == now.by.outcome && values.is_none_or(|(recorded, now)| equal(recorded, now))
        }
        (recorded, now) => recorded.is_none() && now.is_none(),
    }
}

/// Whether two texts are the same JSON: a broker may spell it in its own way.
fn equal(one: &RawValue, other: &RawValue) -> bool {
    let parsed = |text: &RawValue| serde_json::from_str::<Value>(text.get());
    one.get() == other.get() || matches!((parsed(one), parsed(other)), (Ok(one), Ok(other)) if one == other)
}
