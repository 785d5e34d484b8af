//! The one thread of this process that writes to the file. Whatever waits to be written is written in one transaction, so that many
//! small writes cost one commit, and each is answered when that commit is done.
//!
//! The worker's beat is kept here too: a thread of its own, which no busy runtime holds up.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::beat::Beat;
use super::connection::{error_of, in_transaction};
use crate::broker::error::{BrokerError, BrokerErrorKind};

/// Most requests in one transaction.
const BATCH: usize = 128;

/// Hands requests to the writing thread, which ends with the last of these.
#[derive(Debug)]
pub(super) struct Writer {
    place: Arc<str>,
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

enum Request {
    Job(Box<dyn Job>),
    /// Begins, or with `None` ends, the beat.
    Beat(Option<Box<Beat>>),
}

/// Something to be written. It may run more than once before it is answered, each time from the start.
trait Job: Send {
    /// Whether there is anything to write; asked outside of a transaction.
    fn is_needed(&mut self, connection: &Connection) -> rusqlite::Result<bool>;
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, outcome: Result<(), BrokerError>);
}

struct Work<N, F, T> {
    needed: N,
    work: F,
    done: Option<T>,
    reply: oneshot::Sender<Result<Option<T>, BrokerError>>,
}

impl<N, F, T> Job for Work<N, F, T>
where
    N: FnMut(&Connection) -> rusqlite::Result<bool> + Send,
    F: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn is_needed(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        (self.needed)(connection)
    }

    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.done = None;
        self.done = Some((self.work)(connection)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), BrokerError>) {
        let Self { done, reply, .. } = *self;
        // Who asked may not wait any more.
        let _ = reply.send(outcome.map(|()| done));
    }
}

impl Writer {
    /// Starts the thread, which owns the connection from now on.
    pub(super) fn start(connection: Connection, place: Arc<str>) -> Result<Self, BrokerError> {
        let (sender, receiver) = channel();
        let own_place = Arc::clone(&place);
        let thread = std::thread::Builder::new()
            .name("qtasks-sqlite".to_owned())
            .spawn(move || run(&connection, &own_place, &receiver))
            .map_err(|error| BrokerError::with_source(&place, BrokerErrorKind::Other, error))?;
        Ok(Self { place, requests: Some(sender), thread: Some(thread) })
    }

    /// Runs `work` in a transaction, and gives what it gave once that is committed.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, BrokerError>
    where
        F: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let done = self.write_if(|_| Ok(true), work).await?;
        done.ok_or_else(|| BrokerError::new(&self.place, BrokerErrorKind::Other))
    }

    /// The same, if `needed` says that there is something to write; asked with no lock taken.
    pub(super) async fn write_if<T, N, F>(&self, needed: N, work: F) -> Result<Option<T>, BrokerError>
    where
        N: FnMut(&Connection) -> rusqlite::Result<bool> + Send + 'static,
        F: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let closed = || BrokerError::new(&self.place, BrokerErrorKind::Closed);
        self.send(Request::Job(Box::new(Work { needed, work, done: None, reply })))?;
        answer.await.map_err(|_| closed())?
    }

    /// Begins, or with `None` ends, the beat.
    pub(super) fn beat(&self, beat: Option<Beat>) -> Result<(), BrokerError> {
        self.send(Request::Beat(beat.map(Box::new)))
    }

    fn send(&self, request: Request) -> Result<(), BrokerError> {
        let sent = self.requests.as_ref().map(|requests| requests.send(request));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(BrokerError::new(&self.place, BrokerErrorKind::Closed)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // What was asked for is written before the process may end. A panic there was told by its hook.
            let _ = thread.join();
        }
    }
}

fn run(connection: &Connection, place: &Arc<str>, requests: &Receiver<Request>) {
    let mut beat: Option<Box<Beat>> = None;
    let mut batch: Vec<Box<dyn Job>> = Vec::new();
    loop {
        let wait = beat.as_ref().map_or(Duration::MAX, |beat| beat.next().saturating_duration_since(Instant::now()));
        // `Duration::MAX` is more than a clock can add.
        let first = if beat.is_some() {
            requests.recv_timeout(wait)
        } else {
            requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        let mut next = match first {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Some(request) = next {
            match request {
                Request::Job(job) => batch.push(job),
                Request::Beat(other) => beat = other,
            }
            next = if batch.len() < BATCH { requests.try_recv().ok() } else { None };
        }
        write_all(connection, place, &mut batch);
        if let Some(beat) = beat.as_mut().filter(|beat| beat.next() <= Instant::now()) {
            beat.once(connection, place);
        }
    }
}

/// Writes what waits in one transaction. When that fails, each has a transaction of its own: one that cannot be written does not keep
/// the others from it. A file that others keep locked is locked for all of them: they are not kept waiting one after the other.
fn write_all(connection: &Connection, place: &Arc<str>, batch: &mut Vec<Box<dyn Job>>) {
    let mut needed = Vec::with_capacity(batch.len());
    for mut job in batch.drain(..) {
        match job.is_needed(connection) {
            Ok(true) => needed.push(job),
            Ok(false) => job.answer(Ok(())),
            Err(error) => job.answer(Err(error_of(place, error))),
        }
    }
    if needed.is_empty() {
        return;
    }
    let together = in_transaction(connection, || needed.iter_mut().try_for_each(|job| job.run(connection)));
    let together = together.map_err(|error| error_of(place, error));
    if together.as_ref().err().is_none_or(|error| matches!(error.kind, BrokerErrorKind::Locked(_))) {
        needed.into_iter().for_each(|job| job.answer(together.clone()));
        return;
    }
    for mut job in needed {
        let alone = in_transaction(connection, || job.run(connection));
        job.answer(alone.map_err(|error| error_of(place, error)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_cannot_be_written_does_not_keep_from_it_what_came_with_it() {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch("CREATE TABLE found (n INTEGER)").expect("SQL");
        let writer = Writer::start(connection, "sqlite:".into()).expect("a thread");
        let (go_on, waits) = channel::<()>();
        let put = |sql: &'static str| writer.write(move |connection| connection.execute(sql, []));
        let (first, good, bad, last, ()) = tokio::join!(
            // While the thread is here, the others gather. Run again with them, it finds nobody to wait for.
            writer.write(move |_| Ok(waits.recv().is_ok())),
            put("INSERT INTO found VALUES (1)"),
            put("INSERT INTO nowhere VALUES (2)"),
            put("INSERT INTO found VALUES (3)"),
            async { drop(go_on) },
        );
        assert_eq!((first, good, last), (Ok(false), Ok(1), Ok(1)));
        assert_eq!(bad.expect_err("no such table").kind, BrokerErrorKind::Other);
        let sum = writer.write(|connection| connection.query_row("SELECT sum(n) FROM found", [], |row| row.get::<_, i64>(0)));
        assert_eq!(sum.await, Ok(4));
    }

    #[tokio::test]
    async fn a_file_that_is_locked_is_waited_for_once_by_all() {
        static WAITED: AtomicUsize = AtomicUsize::new(0);
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Connection::open(directory.path().join("tasks.db")).expect("a file");
        let (other, mut connection) = (open(), open());
        let give_up = |_| {
            WAITED.fetch_add(1, Ordering::Relaxed);
            false
        };
        connection.busy_handler(Some(give_up)).expect("a handler");
        other.execute_batch("CREATE TABLE found (n INTEGER)").expect("SQL");
        let writer = Writer::start(connection, "sqlite:".into()).expect("a thread");
        let (go_on, waits) = channel::<()>();
        // While the thread is here, the others gather.
        let held = writer.write_if(move |_| Ok(waits.recv().is_ok()), |_| Ok(()));
        let put = || writer.write(|connection| connection.execute("INSERT INTO found VALUES (1)", []));
        other.execute_batch("BEGIN IMMEDIATE").expect("nobody else keeps it locked");
        let (_, one, two, ()) = tokio::join!(held, put(), put(), async { drop(go_on) });
        for refused in [one, two] {
            assert!(matches!(refused.expect_err("locked").kind, BrokerErrorKind::Locked(_)));
        }
        assert_eq!(WAITED.load(Ordering::Relaxed), 1);
        other.execute_batch("ROLLBACK").expect("our own lock");
        assert_eq!(put().await, Ok(1));
    }
}
