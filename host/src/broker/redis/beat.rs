//! A worker's beat, on a thread of its own: it goes on however busy the runtime is. Whoever sees it stand still for the lease's time
//! takes over what the worker had.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use redis::{Client, Connection};
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::keys::Keys;
use super::link::error_of;
use crate::broker::watched::{BEATS_OF_A_LEASE, Written};
use crate::broker::{BrokerError, BrokerErrorKind, Cancellation};
use crate::shown::chain;

/// Requests to cancel are looked for this often, and there is a beat at least as often: others may have a shorter lease.
const LOOK: Duration = Duration::from_millis(500);

/// The beat of this process' worker; ends when this is dropped.
#[derive(Debug)]
pub(super) struct Beat {
    _stop: Sender<()>,
}

struct Thread {
    client: Client,
    place: Arc<str>,
    keys: Arc<Keys>,
    worker: Uuid,
    every: Duration,
    /// Longest wait for an answer.
    patience: Duration,
    cancellations: UnboundedSender<Cancellation>,
    written: Written,
    connection: Option<Connection>,
}

impl Beat {
    pub(super) fn start(
        client: Client,
        place: &Arc<str>,
        keys: &Arc<Keys>,
        worker: Uuid,
        lease: Duration,
        cancellations: UnboundedSender<Cancellation>,
        written: Written,
    ) -> Result<Self, BrokerError> {
        let (stop, stopped) = channel();
        let (place, keys) = (Arc::clone(place), Arc::clone(keys));
        let mut thread = Thread {
            client,
            place: Arc::clone(&place),
            keys,
            worker,
            every: LOOK.min(lease / BEATS_OF_A_LEASE),
            patience: LOOK.min(lease / 3),
            cancellations,
            written,
            connection: None,
        };
        let run = move || {
            let (mut next_beat, mut told) = (Instant::now(), false);
            let step = LOOK.min(thread.every);
            while stopped.recv_timeout(step) == Err(RecvTimeoutError::Timeout) {
                let now = Instant::now();
                let beat_is_due = next_beat <= now;
                if beat_is_due {
                    next_beat = now + thread.every;
                }
                match thread.once(beat_is_due) {
                    Ok(()) => {
                        if std::mem::take(&mut told) {
                            tracing::info!("{}: the worker's beat is written again", thread.place);
                        }
                    }
                    Err(error) => {
                        thread.connection = None;
                        // Not another beat: the same one, as soon as it can be.
                        next_beat = now;
                        if !std::mem::replace(&mut told, true) {
                            let error = error_of(&thread.place, error);
                            tracing::error!("the worker's beat could not be written, trying again: {}", chain(&error));
                        }
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("redis-beat".to_owned())
            .spawn(run)
            .map_err(|error| BrokerError::with_source(&place, BrokerErrorKind::Other, error))?;
        Ok(Self { _stop: stop })
    }
}

impl Thread {
    fn once(&mut self, beat_is_due: bool) -> redis::RedisResult<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let connection = self.client.get_connection_with_timeout(self.patience)?;
                connection.set_read_timeout(Some(self.patience))?;
                connection.set_write_timeout(Some(self.patience))?;
                none.insert(connection)
            }
        };
        if beat_is_due {
            redis::cmd("HINCRBY").arg(&self.keys.workers).arg(self.worker.to_string()).arg(1).exec(connection)?;
            self.written.now();
        }
        let key = self.keys.cancellations(self.worker);
        let (asked, _): (HashMap<String, String>, u64) =
            redis::pipe().atomic().cmd("HGETALL").arg(&key).cmd("DEL").arg(&key).query(connection)?;
        for (uuid, reason) in asked {
            if let Ok(uuid) = uuid.parse() {
                // A worker that is about to end does not listen any more.
                let _ = self.cancellations.send(Cancellation { uuid, reason });
            }
        }
        Ok(())
    }
}
