//! What stands in the hash of a record, read. Nothing in it is believed: others write there as well.

use qtasks_plugin_api::{ErrorBody, bounds};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::fields::{OTHER_FIELDS, OWN};
use super::python_json::repr;
use crate::broker::UNREADABLE_TASK_ERROR;
use crate::broker::record::{Fields, Record, TaskStatus, unix_now};
use crate::plugin::PluginIdentity;
use crate::plugin::settings::usable;
use crate::shown::readable;
use crate::task::Task;
use crate::trigger::{OutcomeKind, Resolution};

/// Fields and values as the server gives them.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What stands in a hash.
#[derive(Debug)]
pub(super) struct Hash(Pairs);

impl Hash {
    pub(super) fn new(pairs: Pairs) -> Self {
        Self(pairs)
    }

    /// A field's bytes. A hash has few fields.
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| &**value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A field's text.
    fn text(&self, name: &str) -> Result<Option<&str>, String> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        if bytes.len() > bounds::MAX_BYTES {
            return Err(format!("the field {name} has {} bytes, at most {} are taken", bytes.len(), bounds::MAX_BYTES));
        }
        std::str::from_utf8(bytes).map(Some).map_err(|error| format!("the field {name} is no UTF-8: {error}"))
    }

    fn required(&self, name: &str) -> Result<&str, String> {
        self.text(name)?.ok_or_else(|| format!("the field {name} is missing"))
    }

    /// A field's JSON, which opens with `opening`.
    fn json(&self, name: &str, opening: Option<char>) -> Result<Option<Box<RawValue>>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let wrong = |reason: String| format!("the field {name} is {}: {reason}", beginning(text));
        checked_json(text).map_err(wrong)?;
        if opening.is_some_and(|opening| !text.trim_start().starts_with(opening)) {
            return Err(wrong(format!("expected JSON that opens with `{}`", opening.unwrap_or_default())));
        }
        RawValue::from_string(text.to_owned()).map(Some).map_err(|error| wrong(error.to_string()))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("the field {name} is {}: expected {expected}", beginning(text)))
    }

    fn seconds(&self, name: &str) -> Result<Option<f64>, String> {
        Ok(self.parsed::<f64>(name, "Unix seconds")?.filter(|seconds| seconds.is_finite()))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(json) = self.json(name, None)? else { return Ok(None) };
        serde_json::from_str(json.get()).map(Some).map_err(|error| format!("the field {name}: {error}"))
    }

    fn owned(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.text(name)?.map(str::to_owned))
    }

    fn error(&self) -> Result<Option<Box<ErrorBody>>, String> {
        let Some(kind) = self.owned("error_type")? else { return Ok(None) };
        let mut error = ErrorBody::new(kind, self.text("error_message")?.unwrap_or_default());
        if let Some(args) = self.json("error_args", Some('['))? {
            error.args = args;
        }
        if let Some(kwargs) = self.json("error_kwargs", Some('{'))? {
            error.kwargs = kwargs;
        }
        error.causes = self.read("error_causes")?.unwrap_or_default();
        error.location = self.owned("error_location")?;
        Ok(Some(Box::new(error)))
    }

    fn original_error(&self) -> Result<Option<Box<ErrorBody>>, String> {
        let Some(kind) = self.owned("original_error_type")? else { return Ok(None) };
        Ok(Some(Box::new(ErrorBody::new(kind, self.text("original_error_message")?.unwrap_or_default()))))
    }

    /// Where the attempts that failed stand, as text.
    pub(super) fn attempts_text(&self) -> &str {
        self.text("attempts_at").ok().flatten().unwrap_or_default()
    }

    /// Where the attempts that failed stand: the name of a batch, the first byte in it, and how many. Of more than is
    /// read of anything, the latest: the last one is the record's own error.
    pub(super) fn attempts_at(&self) -> Vec<(&str, u32, u32)> {
        // Others may have written it; what names no place is passed over.
        fn place(at: &str) -> Option<(&str, u32, u32)> {
            let mut parts = at.splitn(3, ':');
            let (batch, first, length) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            (is_batch(batch) && length > 0).then_some((batch, first, length))
        }
        let mut room = bounds::MAX_BYTES;
        let fits = |(_, _, length): &(&str, u32, u32)| {
            let left = room.checked_sub(*length as usize);
            room = left.unwrap_or_default();
            left.is_some()
        };
        let mut places: Vec<_> = self.attempts_text().rsplit(' ').filter_map(place).take_while(fits).collect();
        places.reverse();
        places
    }

    /// The record, or why there is none in it.
    pub(super) fn record(&self, uuid: Uuid) -> Result<Record, String> {
        let name = self.required("task_name")?;
        let mut task = Task::new(name).map_err(|error| error.to_string())?;
        task.uuid = uuid;
        task.priority = self.parsed("priority", "a whole number")?.ok_or("the field priority is missing")?;
        task.args = self.json("args", Some('['))?.ok_or("the field args is missing")?.into();
        task.kwargs = self.json("kwargs", Some('{'))?.ok_or("the field kwargs is missing")?.into();
        task.created_at = self.seconds("created_at")?.ok_or("the field created_at is missing")?;
        task.attempt = self.parsed("attempt", "a whole number").ok().flatten().unwrap_or(1).max(1);
        task.max_time = self.seconds("max_time").unwrap_or_default().and_then(usable);
        let mut record = Record::new(task);
        record.updated_at = self.seconds("updated_at")?.ok_or("the field updated_at is missing")?;
        let status = self.required("status")?;
        record.status = TaskStatus::from_name(status).ok_or_else(|| {
            format!("the field status is {}: expected new, process, success, error, retry or cancel", beginning(status))
        })?;
        // What a task needs was read above. The rest others write as well: what cannot be read of it is as good as not there.
        record.retry = self.parsed("retry", "a whole number").unwrap_or_default();
        record.retry_parent_uuid = self.parsed("retry_parent_uuid", "a uuid").unwrap_or_default();
        record.retry_child_uuid = self.parsed("retry_child_uuid", "a uuid").unwrap_or_default();
        record.task.attempts = match (self.parsed("attempts", "a whole number").unwrap_or_default(), record.retry) {
            // The retries of a child are counted down, whoever wrote it.
            (None, Some(left)) if record.retry_parent_uuid.is_some() => {
                u32::try_from(left).ok().map(|left| record.task.attempt.saturating_add(left))
            }
            (attempts, _) => attempts,
        };
        let waits = record.status == TaskStatus::New;
        record.due = self.seconds("due").unwrap_or_default().filter(|due| waits && *due > unix_now());
        record.traceback = self.owned("traceback").unwrap_or_default();
        record.cancel_reason = self.owned("cancel_reason").unwrap_or_default();
        record.dead_letter = self.owned("dead_letter").unwrap_or_default();
        record.cancel_asked = self.owned("cancel_asked").unwrap_or_default();
        record.losses = self.parsed("losses", "a whole number").ok().flatten().unwrap_or_default();
        record.error = self.error().unwrap_or_default();
        record.original_error = self.original_error().unwrap_or_default();
        record.resolved_by = self.resolution().unwrap_or_default();
        record.extras = self.extras()?;
        match self.json("returning", None) {
            Ok(returning) => record.returning = returning,
            // Python writes results that are no JSON: `NaN`. The rest of the record is worth no less.
            Err(_) => {
                let text = self.text("returning")?.unwrap_or_default();
                record.extras.insert("returning_text".to_owned(), raw(text)?);
            }
        }
        Ok(record)
    }

    /// `PLUGIN VERSION OUTCOME`: one field costs the server less than three.
    fn resolution(&self) -> Result<Option<Resolution>, String> {
        let mut words = self.text("resolved_by")?.unwrap_or_default().rsplitn(3, ' ');
        let (Some(outcome), Some(version), Some(name)) = (words.next(), words.next(), words.next()) else { return Ok(None) };
        let Ok(outcome) = serde_json::from_value::<OutcomeKind>(outcome.into()) else { return Ok(None) };
        let by = PluginIdentity { name: name.into(), version: version.into(), digest: None };
        Ok(Some(Resolution { by: by.into(), outcome }))
    }

    fn extras(&self) -> Result<Fields, String> {
        let mut extras: Fields = self.read(OTHER_FIELDS).ok().flatten().unwrap_or_default();
        for (name, value) in &self.0 {
            let Ok(name) = std::str::from_utf8(name) else { continue };
            if OWN.contains(&name) {
                continue;
            }
            // What is not text is nobody's to read.
            let Ok(value) = std::str::from_utf8(value) else { continue };
            let value = match checked_json(value) {
                Ok(()) => RawValue::from_string(value.to_owned()).map_err(|error| error.to_string())?,
                Err(_) => raw(value)?,
            };
            extras.insert(name.to_owned(), value);
        }
        Ok(extras)
    }

    /// The fields that make a readable record of this, set aside for `reason`. What could not be read is kept as text.
    pub(super) fn set_aside(&self, item: &str, now: f64, reason: &str) -> Vec<(String, String)> {
        let (rest, priority) = item.rsplit_once(':').unwrap_or((item, ""));
        let name = rest.rsplit_once(':').map_or(rest, |(name, _)| name);
        let now = repr(now);
        let mut fields: Vec<(String, String)> = Vec::new();
        let mut ours = |name: &str, good: bool, instead: String| {
            if !good {
                fields.push((name.to_owned(), instead));
                if let Some(found) = self.bytes(name) {
                    fields.push((format!("found_{name}"), readable(found)));
                }
            }
        };
        let kept_name = self.text("task_name").ok().flatten().filter(|name| Task::new(*name).is_ok());
        ours(
            "task_name",
            kept_name.is_some(),
            Task::new(name).map_or_else(|_| "unreadable".to_owned(), |task| task.name.to_string()),
        );
        let priority = priority.parse::<i64>().unwrap_or_default().to_string();
        ours("priority", matches!(self.parsed::<i64>("priority", ""), Ok(Some(_))), priority);
        ours("args", matches!(self.json("args", Some('[')), Ok(Some(_))), "[]".to_owned());
        ours("kwargs", matches!(self.json("kwargs", Some('{')), Ok(Some(_))), "{}".to_owned());
        ours("created_at", matches!(self.seconds("created_at"), Ok(Some(_))), now.clone());
        // Python's clients read these where they are there.
        ours("returning", self.json("returning", None).is_ok(), "null".to_owned());
        ours("retry", self.parsed::<i64>("retry", "").is_ok(), "0".to_owned());
        let error = [
            ("found_item", readable(item.as_bytes())),
            ("updated_at", now),
            ("status", TaskStatus::Error.name().to_owned()),
            ("traceback", format!("{UNREADABLE_TASK_ERROR}: {reason}")),
            ("error_type", UNREADABLE_TASK_ERROR.to_owned()),
            ("error_message", reason.to_owned()),
            ("dead_letter", reason.to_owned()),
        ];
        fields.extend(error.map(|(name, value)| (name.to_owned(), value)));
        fields
    }
}

fn raw(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::value::to_raw_value(text).map_err(|error| error.to_string())
}

/// Whether this may be the name of a batch of attempts.
fn is_batch(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'.')
}

/// Checks that plugins and tasks will be able to read this.
fn checked_json(text: &str) -> Result<(), String> {
    bounds::check_json(text).map_err(|error| error.to_string())?;
    // Half of a surrogate pair passes as JSON until somebody reads the string.
    if text.contains("\\ud") || text.contains("\\uD") {
        serde_json::from_str::<serde_json::Value>(text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The beginning of a text, for a message.
fn beginning(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hash(fields: &[(&str, &[u8])]) -> Hash {
        Hash::new(fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect())
    }

    const GOOD: &[(&str, &[u8])] = &[
        ("task_name", b"add"),
        ("priority", b"0"),
        ("args", b"[1, 123456789012345678901234567890]"),
        ("kwargs", br#"{"b": "\u00e9"}"#),
        ("created_at", b"1795333232.880758"),
        ("updated_at", b"1795333232.880758"),
        ("status", b"new"),
    ];

    fn with<'a>(name: &'a str, value: &'a [u8]) -> Hash {
        let mut fields = GOOD.to_vec();
        fields.retain(|(other, _)| *other != name);
        fields.push((name, value));
        hash(&fields)
    }

    #[test]
    fn a_hash_that_python_wrote_is_a_record() {
        let record = hash(GOOD).record(Uuid::nil()).expect("a record");
        assert_eq!((&*record.task.name, record.task.args.get()), ("add", "[1, 123456789012345678901234567890]"));
        assert_eq!((record.task.created_at, record.status, record.task.attempt), (1_795_333_232.880_758, TaskStatus::New, 1));
        let mut child = GOOD.to_vec();
        child.extend([("retry", b"2".as_slice()), ("retry_parent_uuid", b"18a03a11-e6df-445f-afd3-dbab244c2818")]);
        assert_eq!(hash(&child).record(Uuid::nil()).map(|record| record.task.attempts), Ok(Some(3)));
    }

    #[test]
    fn a_result_of_python_that_is_no_json_is_kept_as_a_text_and_the_rest_of_its_record_is_read() {
        let mut fields = GOOD.to_vec();
        fields.extend([("returning", b"[NaN]".as_slice()), ("note", b"mine")]);
        let record = hash(&fields).record(Uuid::nil()).expect("a record");
        assert!(record.returning.is_none());
        assert_eq!(serde_json::to_string(&record.extras).expect("JSON"), r#"{"note":"mine","returning_text":"[NaN]"}"#);
    }

    #[test]
    fn what_is_no_record_says_why_and_is_readable_once_set_aside() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (name, value, said) in [
            ("args", b"(1, 2)".as_slice(), "the field args is \"(1, 2)\""),
            ("args", b"{}", "opens with `[`"),
            ("args", b"[NaN]", "the field args"),
            ("args", b"[Infinity]", "the field args"),
            ("args", br#"["\ud800"]"#, "the field args"),
            ("args", deep.as_bytes(), "deeper than 128"),
            ("kwargs", b"{\"a\": \xff}", "no UTF-8"),
            ("priority", b"1.5", "expected a whole number"),
            ("task_name", b"a:b", "not a task name"),
            ("status", b"done", "expected new, process"),
            ("created_at", b"soon", "expected Unix seconds"),
        ] {
            let hash = with(name, value);
            let reason = hash.record(Uuid::nil()).expect_err(said);
            assert!(reason.contains(said), "{reason}");
            let mut fields: HashMap<_, _> = hash.0.clone().into_iter().collect();
            let set_aside = hash.set_aside("add:x:0", 1.5, &reason);
            fields.extend(set_aside.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())));
            let record =
                Hash::new(fields.into_iter().collect()).record(Uuid::nil()).unwrap_or_else(|again| panic!("{name}: {again}"));
            assert_eq!((record.status, record.dead_letter), (TaskStatus::Error, Some(reason)));
        }
        for (missing, _) in GOOD {
            let fields: Vec<_> = GOOD.iter().filter(|(name, _)| name != missing).copied().collect();
            assert_eq!(hash(&fields).record(Uuid::nil()).map(drop), Err(format!("the field {missing} is missing")));
        }
    }
}
