//! Records as rows. What stands in a file is as little believed as what comes over a network.

use qtasks_plugin_api::bounds;
use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::broker::record::{Fields, Record, TaskStatus};
use crate::broker::{Attempt, Lease};
use crate::plugin::settings::usable;
use crate::task::Task;

/// The columns of a record, in the order in which [`read`] expects them.
pub(super) const COLUMNS: &str = "seq, uuid, delivery, name, priority, args, kwargs, created_at, updated_at, status, attempt, \
     attempts, max_time, due, losses, result, error, traceback, cancel_reason, dead_letter, original_error, resolved_by, extras, \
     cancel_asked";

/// A row that holds a record.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) seq: i64,
    pub(super) delivery: i64,
    pub(super) record: Record,
}

/// A row that holds none.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) seq: i64,
    pub(super) reason: String,
}

/// Reads a row of [`COLUMNS`].
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Result<Stored, Unreadable>> {
    let seq = row.get(0)?;
    Ok(read_record(row).map(|(delivery, record)| Stored { seq, delivery, record }).map_err(|reason| Unreadable { seq, reason }))
}

fn read_record(row: &Row<'_>) -> Result<(i64, Record), String> {
    let wrong = |error: rusqlite::Error| error.to_string();
    let task = Task {
        uuid: row.get(1).map_err(wrong)?,
        name: row.get(3).map_err(wrong)?,
        priority: row.get(4).map_err(wrong)?,
        args: json(row, 5, "args")?.filter(|json| json.get().starts_with('[')).ok_or("args is no JSON list")?.into(),
        kwargs: json(row, 6, "kwargs")?.filter(|json| json.get().starts_with('{')).ok_or("kwargs is no JSON object")?.into(),
        created_at: row.get(7).map_err(wrong)?,
        attempt: row.get(10).map_err(wrong)?,
        attempts: row.get(11).map_err(wrong)?,
        max_time: row.get::<_, Option<f64>>(12).map_err(wrong)?.and_then(usable),
    };
    let mut record = Record::new(task);
    record.updated_at = row.get(8).map_err(wrong)?;
    record.status =
        row.get(9).map_err(wrong).and_then(|number: i64| status_of(number).ok_or_else(|| format!("status is {number}")))?;
    record.due = row.get(13).map_err(wrong)?;
    record.losses = row.get(14).map_err(wrong)?;
    record.returning = json(row, 15, "returning")?;
    record.error = parsed(row, 16, "error")?;
    record.traceback = row.get(17).map_err(wrong)?;
    record.cancel_reason = row.get(18).map_err(wrong)?;
    record.dead_letter = row.get(19).map_err(wrong)?;
    record.original_error = parsed(row, 20, "original_error")?;
    record.resolved_by = parsed(row, 21, "resolved_by")?;
    record.extras = parsed(row, 22, "extras")?.unwrap_or_default();
    record.cancel_asked = row.get(23).map_err(wrong)?;
    Ok((row.get(2).map_err(wrong)?, record))
}

fn text<'a>(row: &'a Row<'_>, column: usize, name: &str) -> Result<Option<&'a str>, String> {
    match row.get_ref(column).map_err(|error| error.to_string())? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|error| format!("{name}: {error}"))?;
            bounds::check_depth(text).map_err(|error| format!("{name}: {error}"))?;
            Ok(Some(text))
        }
        other => Err(format!("{name} is of type {}", other.data_type())),
    }
}

/// What stands in a column, as a text, whatever it is.
pub(super) fn found(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) => crate::shown::readable(bytes),
        other => other.data_type().to_string(),
    })
}

fn json(row: &Row<'_>, column: usize, name: &str) -> Result<Option<Box<RawValue>>, String> {
    let text = text(row, column, name)?;
    text.map(|text| RawValue::from_string(text.to_owned()).map_err(|error| format!("{name}: {error}"))).transpose()
}

fn parsed<T: DeserializeOwned>(row: &Row<'_>, column: usize, name: &str) -> Result<Option<T>, String> {
    let text = text(row, column, name)?;
    text.map(|text| serde_json::from_str(text).map_err(|error| format!("{name}: {error}"))).transpose()
}

/// A status as its column has it.
pub(super) const fn number_of(status: TaskStatus) -> i64 {
    match status {
        TaskStatus::New => 0,
        TaskStatus::Process => 1,
        TaskStatus::Success => 2,
        TaskStatus::Error => 3,
        TaskStatus::Retry => 4,
        TaskStatus::Cancel => 5,
    }
}

pub(super) fn status_of(number: i64) -> Option<TaskStatus> {
    TaskStatus::ALL.iter().copied().find(|status| number_of(*status) == number)
}

/// Puts a new record in.
pub(super) fn insert(statement: &mut CachedStatement<'_>, record: &Record) -> rusqlite::Result<()> {
    let task = &record.task;
    statement.execute(params![
        task.uuid,
        &*task.name,
        task.priority,
        task.args.get(),
        task.kwargs.get(),
        task.created_at,
        record.updated_at,
        number_of(record.status),
        task.attempt,
        task.attempts,
        task.max_time.map(|time| time.as_secs_f64()),
        record.due,
        extras(&record.extras)?,
    ])?;
    Ok(())
}

/// The statement for [`insert`]. Deliveries begin anywhere, so that a lease on a task that was removed is none on one that is added again
/// under its uuid.
pub(super) const INSERT: &str = "INSERT INTO task \
     (uuid, name, priority, args, kwargs, created_at, updated_at, status, attempt, attempts, max_time, due, extras, delivery) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, random() & 0x3fffffffffffffff)";

/// Replaces all of a record but its place, its leases and its losses, under this lease. Gives whether the lease held.
pub(super) fn replace(statement: &mut CachedStatement<'_>, lease: Lease, record: &Record) -> rusqlite::Result<bool> {
    let task = &record.task;
    let changed = statement.execute(params![
        lease.uuid,
        lease.delivery,
        &*task.name,
        task.priority,
        task.args.get(),
        task.kwargs.get(),
        record.updated_at,
        number_of(record.status),
        task.attempt,
        record.due,
        record.returning.as_ref().map(|json| json.get()),
        to_text(record.error.as_ref())?,
        record.traceback,
        record.cancel_reason,
        record.dead_letter,
        to_text(record.original_error.as_ref())?,
        to_text(record.resolved_by.as_ref())?,
        extras(&record.extras)?,
    ])?;
    Ok(changed == 1)
}

/// The statement for [`replace`]. Deliveries are numbered across workers, so the number alone says whose lease holds.
pub(super) const REPLACE: &str = "UPDATE task SET name = ?3, priority = ?4, args = ?5, kwargs = ?6, updated_at = ?7, status = ?8, \
     attempt = ?9, due = ?10, result = ?11, error = ?12, traceback = ?13, cancel_reason = ?14, dead_letter = ?15, \
     original_error = ?16, resolved_by = ?17, extras = ?18, worker = NULL \
     WHERE uuid = ?1 AND delivery = ?2 AND status = 1";

fn extras(extras: &Fields) -> rusqlite::Result<Option<String>> {
    to_text(Some(extras).filter(|extras| !extras.is_empty()))
}

fn to_text<T: Serialize>(value: Option<T>) -> rusqlite::Result<Option<String>> {
    let text = value.map(|value| serde_json::to_string(&value)).transpose();
    text.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// Adds an attempt that failed.
pub(super) fn insert_attempt(
    statement: &mut CachedStatement<'_>,
    uuid: Uuid,
    name: &str,
    attempt: &Attempt,
) -> rusqlite::Result<()> {
    let (error, decisions) = (to_text(Some(&attempt.error))?, to_text(Some(&attempt.decisions))?);
    statement.execute(params![uuid, name, attempt.attempt, attempt.at, attempt.seconds, error, decisions])?;
    Ok(())
}

/// The statement for [`insert_attempt`].
pub(super) const INSERT_ATTEMPT: &str =
    "INSERT INTO attempt (uuid, task_name, attempt, at, seconds, error, decisions) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// The columns of an attempt, in the order in which [`read_attempt`] expects them.
pub(super) const ATTEMPT_COLUMNS: &str = "uuid, task_name, attempt, at, seconds, error, decisions";

/// Reads a row of [`ATTEMPT_COLUMNS`]; `None` where it holds no attempt.
pub(super) fn read_attempt(row: &Row<'_>) -> rusqlite::Result<Option<(Uuid, String, Attempt)>> {
    let read = || -> Result<(Uuid, String, Attempt), String> {
        let wrong = |error: rusqlite::Error| error.to_string();
        let attempt = Attempt {
            attempt: row.get(2).map_err(wrong)?,
            at: row.get(3).map_err(wrong)?,
            seconds: row.get(4).map_err(wrong)?,
            error: parsed(row, 5, "error")?.ok_or("error is NULL")?,
            decisions: parsed(row, 6, "decisions")?.unwrap_or_default(),
        };
        Ok((row.get(0).map_err(wrong)?, row.get(1).map_err(wrong)?, attempt))
    };
    Ok(read().inspect_err(|reason| tracing::warn!("a recorded attempt is unreadable and left out: {reason}")).ok())
}
