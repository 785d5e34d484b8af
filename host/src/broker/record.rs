//! What a broker knows of a task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qtasks_plugin_api::ErrorBody;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::task::{Attempt, Status, Task, TaskReport};
use crate::trigger::{Decision, Resolution};

/// Fields of a record by name, each as JSON text.
pub type Fields = BTreeMap<String, Box<RawValue>>;

/// Where a task stands, as QTasks names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// It waits.
    New,
    /// A worker has it.
    Process,
    /// It has a result.
    Success,
    /// It ended with an error.
    Error,
    /// It failed, and a child with an id of its own runs it again (Redis).
    Retry,
    /// It was cancelled.
    Cancel,
}

impl TaskStatus {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::New, Self::Process, Self::Success, Self::Error, Self::Retry, Self::Cancel];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Process => "process",
            Self::Success => "success",
            Self::Error => "error",
            Self::Retry => "retry",
            Self::Cancel => "cancel",
        }
    }

    /// The status of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.name() == name)
    }

    /// Whether nothing more will happen to this record by itself.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Success | Self::Error | Self::Cancel | Self::Retry)
    }
}

/// A task, where it stands and what became of it. As JSON it is the `model` and the `task` of events, with QTasks' field names:
///
/// ```json
/// {"uuid": "…", "task_name": "add", "priority": 0, "args": [1], "kwargs": {"b": 2}, "created_at": 1795333232.880758,
///  "updated_at": 1795333232.8910656, "status": "success", "attempt": 1, "returning": 3}
/// ```
///
/// With status `error` there are `error` (`type`, `message`, `args`, `kwargs`) and `traceback` (a text), with `cancel` `cancel_reason`;
/// `original_error` and `resolved_by` where a plugin decided; `dead_letter` is the reason for which the task was set aside.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// The task.
    #[serde(flatten, serialize_with = "with_its_limits")]
    pub task: Task,
    /// When this was last written, in Unix seconds.
    pub updated_at: f64,
    /// Where it stands.
    pub status: TaskStatus,
    /// Not before this time, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<f64>,
    /// The result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returning: Option<Box<RawValue>>,
    /// The error it ended with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<ErrorBody>>,
    /// The same for a person, or what a Python worker wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// Why somebody wanted it cancelled while a worker had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_asked: Option<String>,
    /// Why it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<String>,
    /// Why it was set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
    /// The error that the task raised, where a plugin decided what becomes of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_error: Option<Box<ErrorBody>>,
    /// Which plugin decided, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_by: Option<Resolution>,
    /// QTasks: how many retries were left before this attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<i64>,
    /// QTasks: the task whose retry this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_parent_uuid: Option<Uuid>,
    /// QTasks: the task that is this one's retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_child_uuid: Option<Uuid>,
    /// How many workers were lost with it: one for all that the first of them held, begun or not, and from then on those that had begun
    /// it.
    #[serde(skip_serializing_if = "is_zero")]
    pub losses: u32,
    /// The attempts that failed, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Attempt>,
    /// Fields of others.
    #[serde(flatten)]
    pub extras: Fields,
}

/// A task as an event shows it, and how often and how long it may run.
fn with_its_limits<S: Serializer>(task: &Task, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Limited<'a> {
        #[serde(flatten)]
        task: &'a Task,
        attempt: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        attempts: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        max_time: Option<f64>,
    }
    let max_time = task.max_time.map(|time| time.as_secs_f64());
    Limited { task, attempt: task.attempt, attempts: task.attempts, max_time }.serialize(serializer)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What one plugin said about one error, as it is kept.
#[derive(Debug, Clone, Serialize)]
pub struct DecisionRecord {
    /// When, in Unix seconds.
    pub at: f64,
    /// The task's id.
    pub uuid: Uuid,
    /// Its name.
    pub task_name: String,
    /// Which of its attempts.
    pub attempt: u32,
    /// Who said what.
    #[serde(flatten)]
    pub decision: Decision,
    /// The error that was asked about, as the task raised it.
    pub error: Arc<ErrorBody>,
}

/// Why an answer is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}; expected {expected}")]
pub struct FieldError {
    field: String,
    found: String,
    expected: &'static str,
}

/// The names that no field of others may have.
const OWN_FIELDS: &[&str] = &[
    "uuid",
    "task_name",
    "name",
    "priority",
    "args",
    "kwargs",
    "kw",
    "created_at",
    "updated_at",
    "status",
    "due",
    "attempt",
    "attempts",
    "max_time",
    "returning",
    "error",
    "traceback",
    "cancel_asked",
    "cancel_reason",
    "dead_letter",
    "original_error",
    "resolved_by",
    "retry",
    "retry_parent_uuid",
    "retry_child_uuid",
    "losses",
    "history",
];

impl FieldError {
    fn new(field: &str, found: &RawValue, expected: &'static str) -> Self {
        Self { field: field.to_owned(), found: found.get().chars().take(60).collect(), expected }
    }
}

impl From<Task> for Record {
    fn from(task: Task) -> Self {
        Self::new(task)
    }
}

impl Record {
    /// A task that is to wait from now on.
    #[must_use]
    pub fn new(task: Task) -> Self {
        Self {
            updated_at: task.created_at,
            status: TaskStatus::New,
            due: None,
            returning: None,
            error: None,
            traceback: None,
            cancel_asked: None,
            cancel_reason: None,
            dead_letter: None,
            original_error: None,
            resolved_by: None,
            retry: None,
            retry_parent_uuid: None,
            retry_child_uuid: None,
            losses: 0,
            history: Vec::new(),
            extras: Fields::new(),
            task,
        }
    }

    /// The same, not before `delay` is over.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.due = (!delay.is_zero()).then(|| unix_now() + delay.as_secs_f64());
        self
    }

    /// Adds fields of others, in the place of those that they name. All or none.
    ///
    /// # Errors
    ///
    /// [`FieldError`] when one has the name of a record's own field.
    pub fn add_extras(&mut self, extras: Fields) -> Result<(), FieldError> {
        if let Some((name, value)) = extras.iter().find(|(name, _)| OWN_FIELDS.contains(&name.as_str())) {
            return Err(FieldError::new(name, value, "a field that is not a record's own"));
        }
        self.extras.extend(extras);
        Ok(())
    }

    /// The record of a task that will not run again.
    #[must_use]
    pub fn ended(mut self, report: &TaskReport) -> Self {
        self.status = match report.status {
            Status::Success => TaskStatus::Success,
            Status::Error => TaskStatus::Error,
            Status::Cancel => TaskStatus::Cancel,
        };
        self.updated_at = unix_now();
        self.task.attempt = report.attempt;
        self.returning.clone_from(&report.returning);
        self.traceback = report.error.as_ref().map(ToString::to_string);
        self.error.clone_from(&report.error);
        self.cancel_reason.clone_from(&report.cancel_reason);
        self.dead_letter.clone_from(&report.dead_letter);
        self.original_error.clone_from(&report.original_error);
        self.resolved_by.clone_from(&report.resolved_by);
        self
    }

    /// The record of a task that waits for its first attempt again, with nothing left of what became of it.
    #[must_use]
    pub fn again(self) -> Self {
        let mut task = self.task;
        task.attempt = 1;
        let (extras, history) = (self.extras, self.history);
        Self { updated_at: unix_now(), extras, history, ..Self::new(task) }
    }

    /// The record as it is wanted cancelled.
    #[must_use]
    pub fn cancelled(mut self, reason: String) -> Self {
        self.status = TaskStatus::Cancel;
        self.updated_at = unix_now();
        self.due = None;
        self.cancel_reason = Some(reason);
        self
    }

    /// The record as set aside, for a person to look at.
    #[must_use]
    pub fn set_aside(mut self, error: ErrorBody, reason: impl Into<String>) -> Self {
        self.status = TaskStatus::Error;
        self.updated_at = unix_now();
        self.traceback = Some(error.to_string());
        self.error = Some(Box::new(error));
        self.dead_letter = Some(reason.into());
        self
    }

    /// Replaces what `fields` name, and nothing else. A name that is not a record's own is kept as an extra field. All or none.
    ///
    /// # Errors
    ///
    /// [`FieldError`] when a value has another shape than its field.
    pub fn replace(&mut self, fields: Fields) -> Result<(), FieldError> {
        let mut changed = self.clone();
        for (name, value) in fields {
            changed.replace_one(name, value)?;
        }
        *self = changed;
        Ok(())
    }

    fn replace_one(&mut self, name: String, value: Box<RawValue>) -> Result<(), FieldError> {
        fn read<'a, T: Deserialize<'a>>(name: &str, value: &'a RawValue, expected: &'static str) -> Result<T, FieldError> {
            serde_json::from_str(value.get()).map_err(|_| FieldError::new(name, value, expected))
        }
        let wrong = |found: &RawValue, expected| FieldError::new(&name, found, expected);
        match name.as_str() {
            "uuid" => {
                const EXPECTED: &str = "a uuid of version 4";
                let uuid: Uuid = read(&name, &value, EXPECTED)?;
                if uuid.get_version_num() != 4 {
                    return Err(wrong(&value, EXPECTED));
                }
                self.task.uuid = uuid;
            }
            "task_name" | "name" => {
                const EXPECTED: &str = "a task name: at least one character and no `:`";
                let text: String = read(&name, &value, EXPECTED)?;
                self.task.set_name(text).map_err(|_| wrong(&value, EXPECTED))?;
            }
            "priority" => self.task.priority = read(&name, &value, "a whole number")?,
            "args" => self.task.set_args(&value).map_err(|_| wrong(&value, "a JSON list"))?,
            "kwargs" | "kw" => self.task.set_kwargs(&value).map_err(|_| wrong(&value, "a JSON object"))?,
            "created_at" => self.task.created_at = read(&name, &value, "Unix seconds")?,
            "updated_at" => self.updated_at = read(&name, &value, "Unix seconds")?,
            "status" => self.status = read(&name, &value, "new, process, success, error, retry or cancel")?,
            "due" => self.due = read(&name, &value, "Unix seconds, or null")?,
            "returning" => self.returning = Some(value),
            "traceback" => self.traceback = read(&name, &value, "a text, or null")?,
            "cancel_reason" => self.cancel_reason = read(&name, &value, "a text, or null")?,
            "dead_letter" => self.dead_letter = read(&name, &value, "a text, or null")?,
            "retry" => self.retry = read(&name, &value, "a whole number, or null")?,
            // The host's own account of what happened is not a plugin's to change; a whole model that comes back names them too.
            "error" | "original_error" | "resolved_by" | "attempt" | "attempts" | "max_time" | "losses" | "history"
            | "cancel_asked" | "retry_parent_uuid" | "retry_child_uuid" => {}
            _ => {
                self.extras.insert(name, value);
            }
        }
        Ok(())
    }
}

/// Now, in Unix seconds.
#[must_use]
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        serde_json::from_str(json).expect("an object")
    }

    #[test]
    fn fields_replace_what_they_name_and_nothing_else() {
        let mut record = Record::new(Task::new("add").expect("a name"));
        let before = record.task.uuid;
        record
            .replace(fields(r#"{"priority": 5, "kw": {"b": 123456789012345678901234567890}, "note": [1]}"#))
            .expect("good fields");
        assert_eq!((record.task.priority, record.task.uuid), (5, before));
        assert_eq!((record.task.args.get(), record.task.kwargs.get()), ("[]", r#"{"b": 123456789012345678901234567890}"#));
        let json = serde_json::to_value(&record).expect("JSON");
        assert_eq!((&json["note"][0], &json["task_name"], &json["status"]), (&1.into(), &"add".into(), &"new".into()));
        for (wrong, said) in [
            (r#"{"priority": 1.5}"#, "priority is 1.5; expected a whole number"),
            (r#"{"task_name": "a:b", "priority": 9}"#, "task_name is"),
            (r#"{"args": {}}"#, "args is {}; expected a JSON list"),
            (r#"{"uuid": "0b6aecd7-8c0a-7b33-8a4c-0f3ba6a9a3a5"}"#, "version 4"),
        ] {
            let error = record.replace(fields(wrong)).expect_err(wrong).to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(record.task.priority, 5, "all or none");
    }

    #[test]
    fn extra_fields_may_have_any_name_but_a_records_own() {
        let mut record = Record::new(Task::new("add").expect("a name"));
        record.add_extras(fields(r#"{"note": 1, "owner": "ann"}"#)).expect("names of others");
        record.add_extras(fields(r#"{"note": 2}"#)).expect("a name of others");
        for own in OWN_FIELDS {
            let error = record.add_extras(fields(&format!(r#"{{"note": 3, "{own}": 1}}"#))).expect_err(own).to_string();
            assert_eq!(error, format!("{own} is 1; expected a field that is not a record's own"));
            // Whatever a record does with a field of its own, it does not keep it as somebody else's.
            let _ = record.replace(fields(&format!(r#"{{"{own}": 1}}"#)));
        }
        assert_eq!(serde_json::to_string(&record.extras).expect("JSON"), r#"{"note":2,"owner":"ann"}"#);
        let json = serde_json::to_value(&record).expect("JSON");
        let known = |name: &&String| OWN_FIELDS.contains(&name.as_str()) || ["note", "owner"].contains(&name.as_str());
        assert!(json.as_object().expect("an object").keys().all(|name| known(&name)), "{json}");
    }
}
