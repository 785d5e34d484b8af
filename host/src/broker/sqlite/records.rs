//! The records in the file: what people and clients read and change.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use uuid::Uuid;

use super::row::{self, ATTEMPT_COLUMNS, COLUMNS, Stored};
use crate::broker::record::{DecisionRecord, FieldError, Fields, Record, TaskStatus, unix_now};
use crate::broker::{Cancelled, Counts, Filter, Requeued, UNREADABLE_TASK_ERROR};

/// Old rows are removed in steps of this many, so that no writer waits long.
const STEP: i64 = 2000;

/// One record, without its history.
fn find(connection: &Connection, uuid: Uuid) -> rusqlite::Result<Option<Stored>> {
    let sql = format!("SELECT {COLUMNS} FROM task WHERE uuid = ?1");
    let found = connection.prepare_cached(&sql)?.query_row([uuid], row::read).optional()?;
    found
        .transpose()
        .map_err(|unreadable| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Null, unreadable.reason.into()))
}

/// One record, with its history.
pub(super) fn get(connection: &Connection, uuid: Uuid) -> rusqlite::Result<Option<Record>> {
    let Some(Stored { mut record, .. }) = find(connection, uuid)? else { return Ok(None) };
    let sql = format!("SELECT {ATTEMPT_COLUMNS} FROM attempt WHERE uuid = ?1 ORDER BY id");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([uuid], row::read_attempt)?;
    record.history =
        rows.filter_map(|row| row.map(|read| read.map(|(_, _, attempt)| attempt)).transpose()).collect::<Result<_, _>>()?;
    Ok(Some(record))
}

/// Records, the latest first.
pub(super) fn list(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<Record>> {
    let mut sql = format!("SELECT {COLUMNS} FROM task WHERE TRUE");
    let mut values: Vec<Value> = Vec::new();
    if let Some(status) = filter.status {
        sql.push_str(" AND status = ?");
        values.push(row::number_of(status).into());
    }
    if let Some(name) = &filter.task_name {
        sql.push_str(" AND name = ?");
        values.push(name.clone().into());
    }
    if filter.dead_letter {
        sql.push_str(" AND dead_letter IS NOT NULL");
    }
    sql.push_str(" ORDER BY seq DESC LIMIT ?");
    values.push(i64::try_from(filter.limit).unwrap_or(i64::MAX).into());
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), row::read)?;
    let mut records = Vec::new();
    for row in rows {
        match row? {
            Ok(stored) => records.push(stored.record),
            Err(unreadable) => tracing::warn!(seq = unreadable.seq, "a task is unreadable and left out: {}", unreadable.reason),
        }
    }
    Ok(records)
}

/// Replaces fields; `None`: there is no such task.
pub(super) fn update(connection: &Connection, uuid: Uuid, fields: &Fields) -> rusqlite::Result<Option<Result<(), FieldError>>> {
    let Some(Stored { seq, mut record, .. }) = find(connection, uuid)? else { return Ok(None) };
    let status = record.status;
    if let Err(error) = record.replace(fields.clone()) {
        return Ok(Some(Err(error)));
    }
    // Where a task stands is the queue's to say; a task that ended may be given another end.
    if !(status.has_ended() && record.status.has_ended()) {
        record.status = status;
    }
    let task = &record.task;
    let extras = serde_json::to_string(&record.extras).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection
        .prepare_cached(
            "UPDATE task SET name = ?2, priority = ?3, args = ?4, kwargs = ?5, updated_at = ?6, status = ?7, result = ?8,
             traceback = ?9, cancel_reason = ?10, dead_letter = ?11, extras = ?12 WHERE seq = ?1",
        )?
        .execute(params![
            seq,
            &*task.name,
            task.priority,
            task.args.get(),
            task.kwargs.get(),
            record.updated_at,
            row::number_of(record.status),
            record.returning.as_ref().map(|json| json.get()),
            record.traceback,
            record.cancel_reason,
            record.dead_letter,
            extras,
        ])?;
    Ok(Some(Ok(())))
}

/// Cancels what waits; leaves a note for the worker of what runs.
pub(super) fn cancel(connection: &Connection, uuid: Uuid, reason: &str) -> rusqlite::Result<Cancelled> {
    let found = connection
        .prepare_cached("SELECT status, worker FROM task WHERE uuid = ?1")?
        .query_row([uuid], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<Uuid>>(1)?)))
        .optional()?;
    let Some((status, worker)) = found else { return Ok(Cancelled::Unknown) };
    match (row::status_of(status), worker) {
        (Some(TaskStatus::New), _) => {
            connection
                .prepare_cached("UPDATE task SET status = 5, due = NULL, cancel_reason = ?2, updated_at = ?3 WHERE uuid = ?1")?
                .execute(params![uuid, reason, unix_now()])?;
            Ok(Cancelled::Done)
        }
        (Some(TaskStatus::Process), Some(worker)) => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO cancellation (uuid, worker, reason) VALUES (?1, ?2, ?3)")?
                .execute(params![uuid, worker, reason])?;
            // Should its worker not come to it.
            connection.prepare_cached("UPDATE task SET cancel_asked = ?2 WHERE uuid = ?1")?.execute(params![uuid, reason])?;
            Ok(Cancelled::Asked)
        }
        _ => Ok(Cancelled::Ended),
    }
}

/// Lets an ended task wait again.
pub(super) fn requeue(connection: &Connection, uuid: Uuid) -> rusqlite::Result<Requeued> {
    let found = connection
        .prepare_cached("SELECT status, iif(json_valid(error), error ->> '$.type', NULL) FROM task WHERE uuid = ?1")?
        .query_row([uuid], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?)))
        .optional()?;
    match found.map(|(status, error)| (row::status_of(status), error)) {
        None => Ok(Requeued::Unknown),
        Some((Some(status), _)) if !status.has_ended() => Ok(Requeued::Underway),
        Some((_, Some(error))) if error == UNREADABLE_TASK_ERROR => Ok(Requeued::Unreadable),
        Some(_) => {
            connection
                .prepare_cached(
                    "UPDATE task SET status = 0, due = NULL, attempt = 1, losses = 0, begun = NULL, cancel_asked = NULL, updated_at = ?2, result = NULL,
                     error = NULL, traceback = NULL, cancel_reason = NULL, dead_letter = NULL, original_error = NULL,
                     resolved_by = NULL WHERE uuid = ?1",
                )?
                .execute(params![uuid, unix_now()])?;
            Ok(Requeued::Done)
        }
    }
}

/// What plugins decided, the latest first.
pub(super) fn decisions(connection: &Connection, uuid: Option<Uuid>, limit: usize) -> rusqlite::Result<Vec<DecisionRecord>> {
    let wanted = if uuid.is_some() { "WHERE uuid = ?1" } else { "WHERE ?1 IS NULL" };
    let sql = format!("SELECT {ATTEMPT_COLUMNS} FROM attempt {wanted} ORDER BY id DESC");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([uuid], row::read_attempt)?;
    let mut decisions = Vec::new();
    for row in rows {
        let Some((uuid, task_name, attempt)) = row? else { continue };
        let error = Arc::new(*attempt.error);
        for decision in attempt.decisions.into_iter().rev() {
            if decisions.len() == limit {
                return Ok(decisions);
            }
            let task_name = task_name.clone();
            let (at, attempt, error) = (attempt.at, attempt.attempt, Arc::clone(&error));
            decisions.push(DecisionRecord { at, uuid, task_name, attempt, decision, error });
        }
    }
    Ok(decisions)
}

/// How many tasks there are.
pub(super) fn counts(connection: &Connection) -> rusqlite::Result<Counts> {
    let mut statement =
        connection.prepare_cached("SELECT status, count(*), count(due), count(dead_letter) FROM task GROUP BY status")?;
    let mut rows = statement.query([])?;
    let mut counts = Counts::default();
    while let Some(row) = rows.next()? {
        let number = count(row, 1)?;
        match row::status_of(row.get(0)?) {
            Some(TaskStatus::New) => (counts.new, counts.delayed) = (number, count(row, 2)?),
            Some(TaskStatus::Process) => counts.process = number,
            Some(TaskStatus::Success) => counts.success = number,
            Some(TaskStatus::Error) => (counts.error, counts.dead_letter) = (number, count(row, 3)?),
            Some(TaskStatus::Retry) => counts.retry = number,
            Some(TaskStatus::Cancel) => counts.cancel = number,
            None => {}
        }
    }
    Ok(counts)
}

/// A count, which SQLite gives as a signed number.
fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::unsigned_abs)
}

/// Removes one step of what is older; gives how many records, and whether there may be more.
pub(super) fn prune(connection: &Connection, results: Duration, decisions: Duration) -> rusqlite::Result<(u64, bool)> {
    let now = unix_now();
    let removed = connection
        .prepare_cached("DELETE FROM task WHERE seq IN (SELECT seq FROM task WHERE status >= 2 AND updated_at < ?1 LIMIT ?2)")?
        .execute(params![now - results.as_secs_f64(), STEP])?;
    // Attempts are written in the order of time, so the first that is young enough ends the search.
    let mut oldest = connection.prepare_cached("SELECT id, at FROM attempt ORDER BY id LIMIT ?1")?;
    let old: Vec<(i64, f64)> = oldest.query_map([STEP], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let last = old.iter().take_while(|(_, at)| *at < now - decisions.as_secs_f64()).last();
    let forgotten = match last {
        Some((last, _)) => connection.prepare_cached("DELETE FROM attempt WHERE id <= ?1")?.execute([last])?,
        None => 0,
    };
    let step = usize::try_from(STEP).unwrap_or(usize::MAX);
    Ok((removed as u64, removed >= step || forgotten >= step))
}

/// Removes every ended record.
pub(super) fn delete_finished(connection: &Connection) -> rusqlite::Result<u64> {
    Ok(connection.prepare_cached("DELETE FROM task WHERE status >= 2")?.execute([])? as u64)
}

/// Removes everything but the workers that are there and what this program keeps for itself.
pub(super) fn flush_all(connection: &Connection) -> rusqlite::Result<u64> {
    let removed = connection.prepare_cached("SELECT count(*) FROM task")?.query_row([], |row| count(row, 0))?;
    connection.execute_batch(
        "DELETE FROM task; DELETE FROM attempt; DELETE FROM cancellation; DELETE FROM config WHERE name <> 'qtasks-host';",
    )?;
    Ok(removed)
}

pub(super) fn config_set(connection: &Connection, name: &str, key: &str, value: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO config (name, key, value) VALUES (?1, ?2, ?3)")?
        .execute((name, key, value))?;
    Ok(())
}

pub(super) fn config_get_all(connection: &Connection, name: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare_cached("SELECT key, value FROM config WHERE name = ?1 ORDER BY key")?;
    let rows = statement.query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Says that `worker` is there.
pub(super) fn set_running(connection: &Connection, worker: Uuid) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE worker SET seen_at = ?2 WHERE id = ?1")?.execute((worker, unix_now()))?;
    Ok(())
}

/// Whether a worker was seen in the last `within`.
pub(super) fn is_running(connection: &Connection, within: Duration) -> rusqlite::Result<bool> {
    let now = unix_now();
    let mut statement = connection.prepare_cached("SELECT 1 FROM worker WHERE seen_at BETWEEN ?1 AND ?2")?;
    // A clock that was set back leaves times in the future, which say nothing.
    statement.exists([now - within.as_secs_f64(), now + within.as_secs_f64()])
}
