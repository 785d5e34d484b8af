//! Tasks in one file: the default broker. Several processes may work with it at once.
//!
//! SQLite in WAL mode: readers never wait. Each process writes through one thread (`writer`), which commits whatever waits together.

mod beat;
mod connection;
mod queue;
mod records;
mod row;
mod wakeup;
mod writer;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use self::beat::Beat;
use self::connection::error_of;
use self::writer::Writer;
use super::component::Component;
use super::error::{BrokerError, BrokerErrorKind};
use super::record::{DecisionRecord, Fields, Record, unix_now};
use super::settings::BrokerSettings;
use super::url::Synchronous;
use super::watched::{Watched, Written};
use super::{Answer, Broker, Cancellation, Cancelled, Counts, Filter, Finish, Lease, Requeued, Storage, Taken};
use crate::private_dir;
use crate::task::BoxFuture;

/// A worker that spoke in this time is there.
const RUNNING: Duration = Duration::from_secs(20);

/// Device and number of a file.
type Identity = (u64, u64);

fn identity_of(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// A task database, opened.
#[derive(Debug)]
pub struct SqliteBackend {
    place: Arc<str>,
    /// The file's name, and what it was when it was opened.
    path: PathBuf,
    identity: Option<Identity>,
    writer: Arc<Writer>,
    reader: Arc<Mutex<Connection>>,
    /// This process as a worker.
    worker: Uuid,
    lease: Duration,
    max_losses: u32,
    written: Written,
    watched: Mutex<Watched>,
    /// The file may have changed.
    changed: Arc<Notify>,
}

impl SqliteBackend {
    /// Opens the file, and makes it where it is new. Blocks for as long as the disk takes.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub fn open(path: &Path, synchronous: Synchronous, settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let place: Arc<str> = settings.url.to_string().into();
        if let Some(directory) = path.parent().filter(|_| settings.make_directory) {
            private_dir::make(directory).map_err(|error| BrokerError::with_source(&place, BrokerErrorKind::ReadOnly, error))?;
        }
        let connection = connection::open(path, synchronous, &settings.name, &place)?;
        let reader = connection::connect(path, synchronous).map_err(|error| error_of(&place, error))?;
        let (changed, written) = (Arc::new(Notify::new()), Written::default());
        let identity = identity_of(path);
        wakeup::watch(path, &changed).map_err(|error| BrokerError::with_source(&place, BrokerErrorKind::Other, error))?;
        Ok(Self {
            writer: Arc::new(Writer::start(connection, Arc::clone(&place))?),
            reader: Arc::new(Mutex::new(reader)),
            worker: Uuid::new_v4(),
            lease: settings.lease,
            max_losses: settings.max_losses,
            watched: Mutex::new(Watched::new(written.clone())),
            written,
            changed,
            path: path.to_owned(),
            identity,
            place,
        })
    }

    /// Whether others who open this broker find the same file.
    fn check_in_place(&self) -> Result<(), BrokerError> {
        if identity_of(&self.path) == self.identity {
            return Ok(());
        }
        Err(BrokerError::new(&self.place, BrokerErrorKind::Gone))
    }

    /// Writes, and wakes who waits in this process.
    fn write<T, F>(&self, work: F) -> Answer<'_, T>
    where
        F: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let writing = self.writer.write(work);
        Box::pin(async move {
            let done = writing.await;
            self.changed.notify_waiters();
            done
        })
    }

    /// Reads on a thread where waiting is allowed.
    fn read<T, F>(&self, work: F) -> Answer<'_, T>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reader, place) = (Arc::clone(&self.reader), Arc::clone(&self.place));
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || {
                // A panic leaves a connection as good as it was.
                let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                work(&reader)
            });
            match read.await {
                Ok(read) => read.map_err(|error| error_of(&place, error)),
                Err(error) => Err(BrokerError::with_source(&place, BrokerErrorKind::Other, error)),
            }
        })
    }
}

impl Broker for SqliteBackend {
    fn component(&self) -> Component {
        Component::new("SqliteBroker", &self.place)
    }

    fn add(&self, records: Vec<Record>) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.write(move |connection| queue::add(connection, &records)).await? {
                None => Ok(()),
                Some(known) => Err(BrokerError::new(&self.place, BrokerErrorKind::Known(known))),
            }
        })
    }

    fn attach(&self) -> Answer<'_, mpsc::UnboundedReceiver<Cancellation>> {
        let worker = self.worker;
        Box::pin(async move {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.write(move |connection| queue::attach(connection, worker)).await?;
            self.written.now();
            self.writer.beat(Some(Beat::new(worker, self.lease, sender, self.written.clone())))?;
            Ok(receiver)
        })
    }

    fn take(&self, most: usize) -> Answer<'_, Vec<Taken>> {
        let worker = self.worker;
        Box::pin(async move {
            loop {
                // Registered before looking, so that a change in between is not missed.
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let taken =
                    self.writer.write_if(queue::has_ready, move |connection| queue::take(connection, worker, most)).await?;
                if let Some(taken) = taken.filter(|taken| !taken.is_empty()) {
                    return Ok(taken);
                }
                match self.read(queue::next_due).await? {
                    None => changed.await,
                    Some(due) => {
                        let wait = Duration::try_from_secs_f64(due - unix_now()).unwrap_or_default();
                        // Elapsed or changed, the next look tells.
                        let _ = tokio::time::timeout(wait, changed).await;
                    }
                }
            }
        })
    }

    fn finish(&self, batch: Arc<[Finish]>) -> Answer<'_, Vec<Lease>> {
        self.write(move |connection| queue::finish(connection, &batch))
    }

    fn take_over(&self) -> Answer<'_, Vec<Taken>> {
        let (worker, max_losses) = (self.worker, self.max_losses);
        Box::pin(async move {
            self.check_in_place()?;
            let mut beats = self.read(queue::beats).await?;
            beats.retain(|(other, _)| *other != worker);
            let dead = self.watched.lock().unwrap_or_else(PoisonError::into_inner).dead(&beats, self.lease);
            if dead.is_empty() {
                return Ok(Vec::new());
            }
            self.write(move |connection| queue::take_over(connection, worker, &dead, max_losses)).await
        })
    }

    fn begin(&self, lease: Lease) -> Answer<'_, ()> {
        self.write(move |connection| queue::begin(connection, lease))
    }

    fn give_back(&self, taken: Vec<Taken>) -> Answer<'_, ()> {
        self.write(move |connection| queue::give_back(connection, &taken))
    }

    fn detach(&self) -> Answer<'_, u64> {
        let worker = self.worker;
        Box::pin(async move {
            self.writer.beat(None)?;
            self.write(move |connection| queue::detach(connection, worker)).await
        })
    }
}

impl Storage for SqliteBackend {
    fn storage_component(&self) -> Component {
        Component::new("SqliteStorage", &self.place)
    }

    fn get(&self, uuid: Uuid) -> Answer<'_, Option<Record>> {
        self.read(move |connection| records::get(connection, uuid))
    }

    fn list(&self, filter: Filter) -> Answer<'_, Vec<Record>> {
        self.read(move |connection| records::list(connection, &filter))
    }

    fn update(&self, uuid: Uuid, fields: Fields) -> Answer<'_, bool> {
        Box::pin(async move {
            match self.write(move |connection| records::update(connection, uuid, &fields)).await? {
                None => Ok(false),
                Some(Ok(())) => Ok(true),
                Some(Err(error)) => Err(BrokerError::new(&self.place, BrokerErrorKind::Refused(error.to_string()))),
            }
        })
    }

    fn cancel(&self, uuid: Uuid, reason: String) -> Answer<'_, Cancelled> {
        self.write(move |connection| records::cancel(connection, uuid, &reason))
    }

    fn requeue(&self, uuid: Uuid) -> Answer<'_, Requeued> {
        self.write(move |connection| records::requeue(connection, uuid))
    }

    fn decisions(&self, uuid: Option<Uuid>, limit: usize) -> Answer<'_, Vec<DecisionRecord>> {
        self.read(move |connection| records::decisions(connection, uuid, limit))
    }

    fn counts(&self) -> Answer<'_, Counts> {
        self.read(records::counts)
    }

    fn prune(&self, results: Duration, decisions: Duration) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut removed = 0;
            loop {
                let (step, more) = self.write(move |connection| records::prune(connection, results, decisions)).await?;
                removed += step;
                if !more {
                    return Ok(removed);
                }
            }
        })
    }

    fn delete_finished(&self) -> Answer<'_, u64> {
        self.write(records::delete_finished)
    }

    fn flush_all(&self) -> Answer<'_, u64> {
        self.write(records::flush_all)
    }

    fn changed(&self, at_most: Duration) -> BoxFuture<'_, ()> {
        let changed = self.changed.notified();
        Box::pin(async move {
            // Elapsed or changed, the caller looks again.
            let _ = tokio::time::timeout(at_most, changed).await;
        })
    }

    fn config_set(&self, name: String, key: String, value: String) -> Answer<'_, ()> {
        self.write(move |connection| records::config_set(connection, &name, &key, &value))
    }

    fn config_get_all(&self, name: String) -> Answer<'_, Vec<(String, String)>> {
        self.read(move |connection| records::config_get_all(connection, &name))
    }

    fn set_running(&self) -> Answer<'_, ()> {
        let worker = self.worker;
        self.write(move |connection| records::set_running(connection, worker))
    }

    fn is_running(&self) -> Answer<'_, bool> {
        self.read(|connection| records::is_running(connection, RUNNING))
    }
}
