//! A worker's beat: a number that goes up while the worker lives. Whoever sees it stand still for the lease's time, by its own clock,
//! may take over what the worker held. No two clocks are compared, so none can be wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::connection::{error_of, in_transaction};
use crate::broker::Cancellation;
use crate::broker::record::unix_now;
use crate::broker::watched::{BEATS_OF_A_LEASE, Written};
use crate::shown::chain;

/// Longest time between two beats.
const LONGEST: Duration = Duration::from_secs(1);
/// Requests to cancel are looked for this often.
const LOOK: Duration = Duration::from_millis(500);

/// This process' worker.
#[derive(Debug)]
pub(super) struct Beat {
    worker: Uuid,
    every: Duration,
    next_beat: Instant,
    next_look: Instant,
    cancellations: UnboundedSender<Cancellation>,
    written: Written,
    /// Whether it was said that beats cannot be written.
    told: bool,
}

impl Beat {
    pub(super) fn new(worker: Uuid, lease: Duration, cancellations: UnboundedSender<Cancellation>, written: Written) -> Self {
        let now = Instant::now();
        // Others may have a shorter lease.
        let every = LONGEST.min(lease / BEATS_OF_A_LEASE);
        Self { worker, every, next_beat: now + every, next_look: now + LOOK, cancellations, written, told: false }
    }

    /// When there is something to do next.
    pub(super) fn next(&self) -> Instant {
        self.next_beat.min(self.next_look)
    }

    /// Does what is due. That it fails is told once; the next beat may come in time.
    pub(super) fn once(&mut self, connection: &Connection, place: &Arc<str>) {
        let now = Instant::now();
        let beat_is_due = self.next_beat <= now;
        if self.next_look <= now {
            self.next_look = now + LOOK;
        }
        if beat_is_due {
            self.next_beat = now + self.every;
        }
        match self.try_once(connection, beat_is_due) {
            // A file that is full can still be read.
            Ok(()) if beat_is_due => {
                if std::mem::take(&mut self.told) {
                    tracing::info!("{place}: the worker's beat is written again");
                }
            }
            Ok(()) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!("the worker's beat could not be written, trying again: {}", chain(&error_of(place, error)));
                }
            }
        }
    }

    fn try_once(&self, connection: &Connection, beat_is_due: bool) -> rusqlite::Result<()> {
        if beat_is_due {
            let mut statement = connection.prepare_cached(
                "INSERT INTO worker (id, beat, seen_at) VALUES (?1, 1, ?2)
                 ON CONFLICT (id) DO UPDATE SET beat = beat + 1, seen_at = excluded.seen_at",
            )?;
            statement.execute((self.worker, unix_now()))?;
            self.written.now();
        }
        let asked: bool = connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM cancellation WHERE worker = ?1)")?
            .query_row([self.worker], |row| row.get(0))?;
        if !asked {
            return Ok(());
        }
        let found = in_transaction(connection, || {
            let mut statement = connection.prepare_cached("DELETE FROM cancellation WHERE worker = ?1 RETURNING uuid, reason")?;
            let rows = statement.query_map([self.worker], |row| Ok(Cancellation { uuid: row.get(0)?, reason: row.get(1)? }))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        // A worker that is about to end does not listen any more.
        found.into_iter().for_each(|cancellation| drop(self.cancellations.send(cancellation)));
        Ok(())
    }
}
