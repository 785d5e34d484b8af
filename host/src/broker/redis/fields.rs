//! What is written into the hash of a record: QTasks' fields first, as it writes them, then this program's, which Python's clients read as
//! attributes.

use std::borrow::Cow;
use std::sync::Arc;

use qtasks_plugin_api::ErrorBody;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::python_json::{dumps, repr};
use crate::broker::record::{Fields, Record, TaskStatus};
use crate::task::Task;
use crate::trigger::Resolution;

/// Fields and values in a row, as HSET takes them.
pub(super) type Flat<'a> = Vec<Cow<'a, str>>;

/// Fields of others whose names Python's clients or this program could not read where they stand: a JSON object.
pub(super) const OTHER_FIELDS: &str = "other_fields";

/// Fields that this program writes and reads, QTasks' among them.
pub(super) const OWN: &[&str] = &[
    "task_name",
    "priority",
    "args",
    "kwargs",
    "created_at",
    "updated_at",
    "status",
    "returning",
    "traceback",
    "cancel_reason",
    "retry",
    "retry_parent_uuid",
    "retry_child_uuid",
    "attempt",
    "attempts",
    "max_time",
    "due",
    "losses",
    "begun",
    "cancel_asked",
    "attempts_at",
    "dead_letter",
    "resolved_by",
    "error_type",
    "error_message",
    "error_args",
    "error_kwargs",
    "error_causes",
    "error_location",
    "original_error_type",
    "original_error_message",
    OTHER_FIELDS,
];

/// Python's reserved words, which cannot be attributes of its dataclasses, and the names that those have already.
const RESERVED: &[&str] = &[
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif", "else",
    "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise",
    "return", "try", "while", "with", "yield", "uuid",
];

/// An item of the queue: `task_name:uuid:priority`.
pub(super) fn item(name: &str, uuid: Uuid, priority: i64) -> String {
    format!("{name}:{uuid}:{priority}")
}

/// A number in a row of fields.
fn number<'a>(number: impl ToString) -> Cow<'a, str> {
    Cow::Owned(number.to_string())
}

fn field<'a>(flat: &mut Flat<'a>, name: &'a str, value: impl Into<Cow<'a, str>>) {
    flat.extend([name.into(), value.into()]);
}

/// A record that begins to wait, with all that it needs.
pub(super) fn of_new(record: &Record) -> Flat<'_> {
    let task = &record.task;
    let mut flat = Flat::with_capacity(24);
    field(&mut flat, "task_name", &*task.name);
    field(&mut flat, "priority", number(task.priority));
    field(&mut flat, "args", dumps(task.args.get(), true));
    field(&mut flat, "kwargs", dumps(task.kwargs.get(), true));
    field(&mut flat, "created_at", repr(task.created_at));
    field(&mut flat, "updated_at", repr(record.updated_at));
    field(&mut flat, "status", TaskStatus::New.name());
    if let Some(retry) = record.retry {
        field(&mut flat, "retry", number(retry));
    }
    if let Some(parent) = record.retry_parent_uuid {
        field(&mut flat, "retry_parent_uuid", number(parent));
    }
    extras(&mut flat, record);
    if task.attempt != 1 {
        field(&mut flat, "attempt", number(task.attempt));
    }
    if let Some(attempts) = task.attempts {
        field(&mut flat, "attempts", number(attempts));
    }
    if let Some(max_time) = task.max_time {
        field(&mut flat, "max_time", repr(max_time.as_secs_f64()));
    }
    if let Some(due) = record.due {
        field(&mut flat, "due", repr(due));
    }
    flat
}

/// What an attempt makes of a record. QTasks writes all fields again, and empties the arguments of a task that failed; here what is
/// as it was `before` stays as it is.
pub(super) fn of_ended<'a>(record: &'a Record, status: TaskStatus, before: Option<&Task>) -> Flat<'a> {
    let task = &record.task;
    let mut flat = Flat::with_capacity(32);
    let is_new = |same: fn(&Task, &Task) -> bool| before.is_none_or(|before| !same(before, task));
    if is_new(|before, task| before.name == task.name) {
        field(&mut flat, "task_name", &*task.name);
    }
    if is_new(|before, task| before.priority == task.priority) {
        field(&mut flat, "priority", number(task.priority));
    }
    if is_new(|before, task| Arc::ptr_eq(&before.args, &task.args)) {
        field(&mut flat, "args", dumps(task.args.get(), true));
    }
    if is_new(|before, task| Arc::ptr_eq(&before.kwargs, &task.kwargs)) {
        field(&mut flat, "kwargs", dumps(task.kwargs.get(), true));
    }
    #[expect(clippy::float_cmp, reason = "the same number, or another one")]
    if is_new(|before, task| before.created_at == task.created_at) {
        field(&mut flat, "created_at", repr(task.created_at));
    }
    field(&mut flat, "updated_at", repr(record.updated_at));
    field(&mut flat, "status", status.name());
    if let Some(returning) = &record.returning {
        field(&mut flat, "returning", dumps(returning.get(), false));
    }
    if let Some(traceback) = &record.traceback {
        field(&mut flat, "traceback", &**traceback);
    }
    if let Some(reason) = &record.cancel_reason {
        field(&mut flat, "cancel_reason", &**reason);
    }
    if let Some(retry) = record.retry {
        field(&mut flat, "retry", number(retry));
    }
    if let Some(child) = record.retry_child_uuid {
        field(&mut flat, "retry_child_uuid", number(child));
    }
    if task.attempt != 1 {
        field(&mut flat, "attempt", number(task.attempt));
    }
    if let Some(reason) = &record.dead_letter {
        field(&mut flat, "dead_letter", &**reason);
    }
    if let Some(error) = &record.error {
        error_fields(&mut flat, error);
    }
    // The rest of it stands with its attempt: a hash of short values takes the server half the time and room.
    if let Some(error) = &record.original_error {
        field(&mut flat, "original_error_type", &*error.kind);
        field(&mut flat, "original_error_message", &*error.message);
    }
    if let Some(Resolution { by, outcome }) = &record.resolved_by {
        field(&mut flat, "resolved_by", format!("{} {} {}", by.name, by.version, outcome.name()));
    }
    extras(&mut flat, record);
    flat
}

fn error_fields<'a>(flat: &mut Flat<'a>, error: &'a ErrorBody) {
    field(flat, "error_type", &*error.kind);
    field(flat, "error_message", &*error.message);
    field(flat, "error_args", error.args.get());
    field(flat, "error_kwargs", error.kwargs.get());
    if !error.causes.is_empty() {
        field(flat, "error_causes", json(&error.causes));
    }
    if let Some(location) = &error.location {
        field(flat, "error_location", &**location);
    }
}

/// Fields of others: a text as it is, anything else as JSON. A text that would be read as JSON is quoted.
fn extras<'a>(flat: &mut Flat<'a>, record: &'a Record) {
    let mut others = Fields::new();
    for (name, value) in &record.extras {
        if !is_attribute(name) {
            others.insert(name.clone(), value.clone());
            continue;
        }
        match serde_json::from_str::<String>(value.get()) {
            Ok(text) if !is_json(&text) => field(flat, name, text),
            _ => field(flat, name, value.get()),
        }
    }
    if !others.is_empty() {
        field(flat, OTHER_FIELDS, json(&others));
    }
}

/// Whether a field of others of this name can stand among the fields of a hash.
fn is_attribute(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic())
        && chars.all(|char| char.is_ascii_alphanumeric() || char == '_')
        && !RESERVED.contains(&name)
        && !OWN.contains(&name)
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

fn json<'a>(value: &impl Serialize) -> Cow<'a, str> {
    // Records hold nothing that has no JSON form.
    Cow::Owned(serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::hash::Hash;
    use super::*;

    #[test]
    fn fields_of_others_come_back_as_they_were() {
        let extras =
            r#"{"a":"plain","b":"5","c":5,"class":[1],"d":{"e":null},"error_type":"mine","f-g":"\"q\"","h":"\"q\"","i":true}"#;
        let mut record = Record::new(Task::new("add").expect("a name"));
        record.extras = serde_json::from_str(extras).expect("fields");
        let flat = of_new(&record);
        assert!(flat.chunks(2).any(|pair| pair == ["a", "plain"]), "{flat:?}");
        // Python's clients make an attribute of each field.
        assert!(flat.chunks(2).all(|pair| !["class", "error_type", "f-g"].contains(&&*pair[0])), "{flat:?}");
        let pairs = flat.chunks(2).map(|pair| (pair[0].as_bytes().to_vec(), pair[1].as_bytes().to_vec())).collect();
        let back = Hash::new(pairs).record(record.task.uuid).expect("a record");
        assert_eq!(serde_json::to_string(&back.extras).expect("JSON"), extras);
    }

    #[test]
    fn arguments_that_a_plugin_gave_are_written_as_python_would_and_others_stay() {
        let before = Task::new("add").and_then(|task| task.with_arguments(["é"], serde_json::json!({}))).expect("a task");
        let mut record = Record::new(before.clone());
        record.task.set_args(&RawValue::from_string(r#"["é",{"a":1}]"#.to_owned()).expect("JSON")).expect("a list");
        let flat = of_ended(&record, TaskStatus::Success, Some(&before));
        assert!(flat.chunks(2).any(|pair| pair == ["args", r#"["\u00e9", {"a": 1}]"#]), "{flat:?}");
        assert!(flat.chunks(2).all(|pair| pair[0] != "kwargs"), "{flat:?}");
    }
}
