//! The queue in the file: what each operation writes, in one transaction each.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use qtasks_plugin_api::ErrorBody;
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::row::{self, COLUMNS, Stored};
use crate::broker::record::{Record, TaskStatus, unix_now};
use crate::broker::{Again, Finish, Lease, Taken, UNREADABLE_TASK_ERROR};
use crate::shown::few;

/// Puts new tasks in; gives the uuid that is there already, in which case none was put in.
pub(super) fn add(connection: &Connection, records: &[Record]) -> rusqlite::Result<Option<Uuid>> {
    let mut known = connection.prepare_cached("SELECT 1 FROM task WHERE uuid = ?1")?;
    let mut added = HashSet::with_capacity(records.len());
    for record in records {
        let uuid = record.task.uuid;
        if !added.insert(uuid) || known.exists([uuid])? {
            return Ok(Some(uuid));
        }
    }
    let mut insert = connection.prepare_cached(row::INSERT)?;
    records.iter().try_for_each(|record| row::insert(&mut insert, record))?;
    Ok(None)
}

/// Whether a task can be taken now.
pub(super) fn has_ready(connection: &Connection) -> rusqlite::Result<bool> {
    let mut ready = connection.prepare_cached("SELECT 1 FROM task WHERE status = 0 AND due IS NULL LIMIT 1")?;
    if ready.exists([])? {
        return Ok(true);
    }
    let mut due = connection.prepare_cached("SELECT 1 FROM task WHERE status = 0 AND due IS NOT NULL AND due <= ?1 LIMIT 1")?;
    due.exists([unix_now()])
}

/// When the next delayed task is due, in Unix seconds.
pub(super) fn next_due(connection: &Connection) -> rusqlite::Result<Option<f64>> {
    let mut due = connection.prepare_cached("SELECT min(due) FROM task WHERE status = 0 AND due IS NOT NULL")?;
    due.query_row([], |row| row.get(0))
}

/// Leases up to `most` tasks to `worker`.
pub(super) fn take(connection: &Connection, worker: Uuid, most: usize) -> rusqlite::Result<Vec<Taken>> {
    let now = unix_now();
    connection.prepare_cached("UPDATE task SET due = NULL WHERE status = 0 AND due IS NOT NULL AND due <= ?1")?.execute([now])?;
    let mut statement = connection.prepare_cached(&TAKE)?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    leased(connection, statement.query_map(params![worker, now, most], row::read)?)
}

static TAKE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE task SET status = 1, worker = ?1, updated_at = ?2, delivery = delivery + 1
         WHERE seq IN (SELECT seq FROM task WHERE status = 0 AND due IS NULL ORDER BY priority DESC, seq LIMIT ?3)
         RETURNING {COLUMNS}"
    )
});

/// What was leased, in its order. A row that holds no task is set aside, so that it is met once.
fn leased<I>(connection: &Connection, rows: I) -> rusqlite::Result<Vec<Taken>>
where
    I: Iterator<Item = rusqlite::Result<Result<Stored, row::Unreadable>>>,
{
    let mut taken = Vec::new();
    for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
        match row {
            Ok(stored) => taken.push(stored),
            Err(unreadable) => set_aside(connection, &unreadable)?,
        }
    }
    // SQLite gives rows in no order of ours.
    taken.sort_by_key(|stored| (std::cmp::Reverse(stored.record.task.priority), stored.seq));
    Ok(taken
        .into_iter()
        .map(|Stored { delivery, record, .. }| Taken { lease: Lease { uuid: record.task.uuid, delivery }, record })
        .collect())
}

/// Makes a record of a row that is no task, with what stood in the place of its arguments as extra fields.
fn set_aside(connection: &Connection, unreadable: &row::Unreadable) -> rusqlite::Result<()> {
    let reason = format!("its row in the database is no task: {}", unreadable.reason);
    tracing::error!(seq = unreadable.seq, "a task was set aside, {reason}");
    let found = connection
        .prepare_cached("SELECT args, kwargs FROM task WHERE seq = ?1")?
        .query_row([unreadable.seq], |row| Ok([row::found(row, 0)?, row::found(row, 1)?]))?;
    let extras = json_text(&BTreeMap::from([("found_args", &found[0]), ("found_kwargs", &found[1])]))?;
    let error = json_text(&ErrorBody::new(UNREADABLE_TASK_ERROR, reason.as_str()))?;
    connection
        .prepare_cached(
            "UPDATE task SET status = 3, worker = NULL, updated_at = ?5, traceback = ?2, dead_letter = ?2, error = ?3,
             original_error = NULL, resolved_by = NULL, result = NULL, extras = ?4, args = '[]', kwargs = '{}'
             WHERE seq = ?1",
        )?
        .execute(params![unreadable.seq, reason, error, extras, unix_now()])?;
    Ok(())
}

fn json_text(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// Records what became of attempts; gives the leases that were lost.
pub(super) fn finish(connection: &Connection, batch: &[Finish]) -> rusqlite::Result<Vec<Lease>> {
    let mut replace = connection.prepare_cached(row::REPLACE)?;
    let mut insert_attempt = connection.prepare_cached(row::INSERT_ATTEMPT)?;
    let mut forget_delay =
        connection.prepare_cached("UPDATE task SET due = NULL WHERE uuid = ?1 AND cancel_asked IS NOT NULL")?;
    let mut lost = Vec::new();
    for finish in batch {
        let Finish { lease, record, retry, attempt } = finish;
        let changed = match retry {
            None => row::replace(&mut replace, *lease, record)?,
            Some(Again { after, .. }) => {
                let again = Record { status: TaskStatus::New, ..record.clone() }.after(*after);
                row::replace(&mut replace, *lease, &again)?
            }
        };
        if !changed {
            lost.push(*lease);
            continue;
        }
        if retry.is_some() {
            // What is to be cancelled need not wait for its next attempt.
            forget_delay.execute([lease.uuid])?;
        }
        if let Some(attempt) = attempt {
            row::insert_attempt(&mut insert_attempt, lease.uuid, &record.task.name, attempt)?;
        }
    }
    Ok(lost)
}

/// Puts tasks back where they were.
pub(super) fn give_back(connection: &Connection, taken: &[Taken]) -> rusqlite::Result<()> {
    let mut replace = connection.prepare_cached(row::REPLACE)?;
    for Taken { lease, record } in taken {
        let waiting = Record { status: TaskStatus::New, ..record.clone() };
        row::replace(&mut replace, *lease, &waiting)?;
    }
    Ok(())
}

/// Notes that the task of this lease begins.
pub(super) fn begin(connection: &Connection, lease: Lease) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE task SET begun = delivery WHERE uuid = ?1 AND delivery = ?2 AND status = 1")?
        .execute((lease.uuid, lease.delivery))?;
    Ok(())
}

/// Makes `worker` known.
pub(super) fn attach(connection: &Connection, worker: Uuid) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO worker (id, beat, seen_at) VALUES (?1, 0, ?2)")?
        .execute((worker, unix_now()))?;
    Ok(())
}

/// Forgets `worker`; gives how many tasks it still had, which wait again.
pub(super) fn detach(connection: &Connection, worker: Uuid) -> rusqlite::Result<u64> {
    connection.prepare_cached("DELETE FROM worker WHERE id = ?1")?.execute([worker])?;
    connection.prepare_cached("DELETE FROM cancellation WHERE worker = ?1")?.execute([worker])?;
    // The delivery goes up, so that whoever still holds the task cannot finish it.
    let given_back = connection
        .prepare_cached(
            "UPDATE task SET status = 0, worker = NULL, delivery = delivery + 1, updated_at = ?2 WHERE status = 1 AND worker = ?1",
        )?
        .execute((worker, unix_now()))?;
    Ok(given_back as u64)
}

/// The workers that are there, with their beats.
pub(super) fn beats(connection: &Connection) -> rusqlite::Result<Vec<(Uuid, i64)>> {
    let mut statement = connection.prepare_cached("SELECT id, beat FROM worker")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Leases to `worker` what `dead` held, if it still stands at that beat. What was lost with too many workers is set aside.
pub(super) fn take_over(
    connection: &Connection,
    worker: Uuid,
    dead: &[(Uuid, i64)],
    max_losses: u32,
) -> rusqlite::Result<Vec<Taken>> {
    let mut all = Vec::new();
    for (other, beat) in dead {
        let stands =
            connection.prepare_cached("SELECT beat FROM worker WHERE id = ?1")?.query_row([other], |row| row.get::<_, i64>(0));
        if stands.optional()? != Some(*beat) {
            continue;
        }
        connection.prepare_cached("DELETE FROM worker WHERE id = ?1")?.execute([other])?;
        // Nobody reads them any more; the records say the same.
        connection.prepare_cached("DELETE FROM cancellation WHERE worker = ?1")?.execute([other])?;
        let reason = format!("{max_losses} workers were lost while they had this task");
        let error = json_text(&ErrorBody::new(WORKER_LOST_ERROR, reason.as_str()))?;
        let set_aside: Vec<Uuid> = connection
            .prepare_cached(
                "UPDATE task SET status = 3, worker = NULL, losses = losses + 1, delivery = delivery + 1, updated_at = ?3,
                 error = ?4, traceback = ?5, dead_letter = ?5
                 WHERE status = 1 AND worker = ?1 AND begun = delivery AND losses + 1 >= ?2 RETURNING uuid",
            )?
            .query_map(params![other, max_losses, unix_now(), error, reason], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if !set_aside.is_empty() {
            tracing::error!(
                "tasks set aside, since {max_losses} workers were lost while they had them: {}: {}",
                set_aside.len(),
                few(&set_aside)
            );
        }
        let sql = format!(
            "UPDATE task SET worker = ?2, losses = max(1, losses + (begun IS delivery)), delivery = delivery + 1, updated_at = ?3
             WHERE status = 1 AND worker = ?1 RETURNING {COLUMNS}"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![other, worker, unix_now()], row::read)?;
        all.extend(leased(connection, rows)?);
    }
    Ok(all)
}

/// `type` of the error of a task that was set aside because its workers were lost.
const WORKER_LOST_ERROR: &str = "WorkerLost";
