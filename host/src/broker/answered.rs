//! What plugins' answers make of a record.

use qtasks_plugin_api::Trigger;
use serde_json::value::RawValue;

use super::record::{Fields, Record};
use crate::trigger::{Answered, Dispatched};

/// The members of a JSON object.
pub(crate) fn fields_of(value: &RawValue) -> Option<Fields> {
    serde_json::from_str(value.get()).ok()
}

/// All that an event's answers replaced.
pub(crate) fn fields_in(dispatched: Dispatched) -> Fields {
    match dispatched.answer {
        Some((Answered::Values(values), _)) => values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        _ => Fields::new(),
    }
}

/// The parts of a queue item `task_name:uuid:priority`, as fields; what they hold is checked where they are put.
pub(super) fn parts_of_item(item: &RawValue) -> Option<Fields> {
    let text: String = serde_json::from_str(item.get()).ok()?;
    let (name, rest) = text.split_once(':')?;
    let (uuid, priority) = rest.split_once(':')?;
    let text = |text: &str| serde_json::value::to_raw_value(text).ok();
    let priority = RawValue::from_string(priority.to_owned()).ok()?;
    let fields = [("task_name", text(name)?), ("uuid", text(uuid)?), ("priority", priority)];
    Some(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Replaces what a plugin named. An answer that does not fit changes nothing, and is told.
pub(crate) fn replace(record: &mut Record, trigger: Trigger, fields: Fields) {
    if let Err(error) = record.replace(fields) {
        tracing::warn!(%trigger, task = &*record.task.name, uuid = %record.task.uuid, "an answer was left out: {error}");
    }
}

/// Replaces what the object that a plugin answered names.
pub(crate) fn replace_whole(record: &mut Record, trigger: Trigger, answer: Option<Box<RawValue>>) {
    let Some(answer) = answer else { return };
    match fields_of(&answer) {
        Some(fields) => replace(record, trigger, fields),
        None => tracing::warn!(%trigger, "the answer is no object; nothing was replaced: {answer}"),
    }
}
