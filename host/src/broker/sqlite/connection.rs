//! Opening the file, transactions in it, and what its errors mean.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::broker::error::{BrokerError, BrokerErrorKind};
use crate::broker::url::Synchronous;

/// The layout that this program writes.
const LAYOUT: i64 = 2;
/// "qtas", so that `file` and this program know the file.
const APPLICATION_ID: i64 = 0x7174_6173;
/// How long another process may keep the file locked.
const BUSY: Duration = Duration::from_secs(5);
/// Prepared statements that are kept.
const STATEMENTS: usize = 64;

/// The config under which this program keeps its own values.
const OWN: &str = "qtasks-host";

/// Opens the file, and makes it a task database of `project` where it is new.
pub(super) fn open(path: &Path, synchronous: Synchronous, project: &str, place: &Arc<str>) -> Result<Connection, BrokerError> {
    let mut connection = connect(path, synchronous).map_err(|error| error_of(place, error))?;
    let found = prepare(&mut connection, project).map_err(|error| error_of(place, error))?;
    match found {
        Found::Ours => Ok(connection),
        Found::Foreign => Err(BrokerError::new(place, BrokerErrorKind::Damaged)),
        Found::Layout(found) => Err(BrokerError::new(place, BrokerErrorKind::Layout { found, expected: LAYOUT })),
        Found::Project(other) => Err(BrokerError::new(
            place,
            BrokerErrorKind::Refused(format!(
                "holds the tasks of project {other:?}, and this is {project:?}; use another file, or set name"
            )),
        )),
    }
}

/// A further connection to a file that was opened before.
pub(super) fn connect(path: &Path, synchronous: Synchronous) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Otherwise a statement with `LIMIT ?` is compiled anew each time it is given another number.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", synchronous.name())?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Kibibytes; the rest is the page cache of the system.
    connection.pragma_update(None, "cache_size", -8192)?;
    // Pages of the log, 16 MiB, before they go to their places in the file. Ids are spread over their index, so most of its pages are
    // in the log several times by then, and are written there once.
    connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
    Ok(connection)
}

/// Runs `work` in a transaction that takes the write lock at once, so that it never has to be begun again half-way.
pub(super) fn in_transaction<T>(connection: &Connection, work: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let done = work().and_then(|done| {
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(done)
    });
    // Some errors have ended the transaction already.
    if done.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    done
}

enum Found {
    Ours,
    Foreign,
    Layout(i64),
    Project(String),
}

fn prepare(connection: &mut Connection, project: &str) -> rusqlite::Result<Found> {
    // Whoever finds its tables there waits for nobody who writes.
    let snapshot = connection.transaction()?;
    if let Some(found) = look(&snapshot, project)? {
        return Ok(found);
    }
    drop(snapshot);
    // Two processes may open a new file at the same time.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(found) = look(&transaction, project)? {
        return Ok(found);
    }
    transaction.execute_batch(include_str!("schema.sql"))?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", LAYOUT)?;
    transaction.execute("INSERT INTO config VALUES (?1, 'project', ?2)", (OWN, project))?;
    transaction.commit()?;
    Ok(Found::Ours)
}

/// What stands in the file; `None` when nothing does.
fn look(connection: &Connection, project: &str) -> rusqlite::Result<Option<Found>> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(None);
    }
    if number("application_id")? != APPLICATION_ID {
        return Ok(Some(Found::Foreign));
    }
    let layout = number("user_version")?;
    if layout != LAYOUT {
        return Ok(Some(Found::Layout(layout)));
    }
    let known: String =
        connection.query_row("SELECT value FROM config WHERE name = ?1 AND key = 'project'", [OWN], |row| row.get(0))?;
    Ok(Some(if known == project { Found::Ours } else { Found::Project(known) }))
}

/// What an error of SQLite means for whoever works with tasks.
pub(super) fn error_of(place: &Arc<str>, error: rusqlite::Error) -> BrokerError {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => BrokerErrorKind::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => BrokerErrorKind::ReadOnly,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => BrokerErrorKind::Damaged,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => BrokerErrorKind::Locked(BUSY),
        Some(ErrorCode::SystemIoFailure) => BrokerErrorKind::Other,
        Some(ErrorCode::TooBig) => BrokerErrorKind::Refused("a task or a result is too large for this broker".to_owned()),
        _ => BrokerErrorKind::Other,
    };
    BrokerError::with_source(place, kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_counts_as_done_when_the_url_says() {
        for (synchronous, level) in [(Synchronous::Normal, 1), (Synchronous::Full, 2)] {
            let directory = tempfile::tempdir().expect("a directory");
            let place = "sqlite:".into();
            let opened = open(&directory.path().join("tasks.db"), synchronous, "QueueTasks", &place).expect("a new file");
            let found: i64 = opened.pragma_query_value(None, "synchronous", |row| row.get(0)).expect("a number");
            assert_eq!(found, level, "{synchronous:?}");
        }
    }
}
