//! The quick way to finish: one transaction of plain commands, which the server runs only while this worker's claim stands.
//!
//! Through a script every text is copied and hashed several times over; plain commands cost the server half. But only a script can look at
//! leases before it writes. So the worker has a claim, a key that stands for as long as nobody has taken anything from it: whoever does,
//! takes the claim away in the same script. The transaction watches that key (`WATCH`), so the server runs all of it, or nothing
//! of it where the claim is gone. Then, and for whatever else is not plain, `finish.lua` looks at each lease by itself.
//!
//! A lease is as good as the claim under which it was taken, so each claim has a number of its own, and so has the claim that each lease
//! was taken under.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, Value};
use uuid::Uuid;

use super::attempts;
use super::fields;
use super::keys::Keys;
use super::link::{Link, error_of};
use super::python_json::repr;
use super::queue::Before;
use super::script;
use crate::broker::{BrokerError, Finish};
use crate::shown::chain;

/// This worker's claim.
#[derive(Debug)]
pub(super) struct Claim {
    key: String,
    /// Its number; 0 while there is none.
    current: AtomicU64,
    last: AtomicU64,
    /// Connections that watch the claim, and nobody uses now.
    watching: Mutex<Vec<Watching>>,
    batches: AtomicU64,
    worker: Uuid,
}

/// A connection whose next transaction runs only if the claim is still as it was found, and how it was found.
struct Watching {
    connection: MultiplexedConnection,
    found: u64,
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watching").field("found", &self.found).finish_non_exhaustive()
    }
}

impl Claim {
    /// No claim yet.
    pub(super) fn new(keys: &Keys, worker: Uuid) -> Self {
        let zero = AtomicU64::default;
        Self { key: keys.claim(worker), current: zero(), last: zero(), watching: Mutex::default(), batches: zero(), worker }
    }

    /// The number of the claim that leases are taken under from now on; 0: none.
    pub(super) fn number(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// A name for a batch of attempts that nobody else gives.
    pub(super) fn name_batch(&self) -> String {
        let (worker, _) = self.worker.as_u64_pair();
        format!("{worker:016x}.{:x}", self.batches.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a claim anew where there is none. What is taken before it stands is not under it.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub(super) async fn renew(&self, link: &Link) -> Result<(), BrokerError> {
        if self.number() == 0 {
            let number = self.last.fetch_add(1, Ordering::SeqCst) + 1;
            link.run::<Value>(redis::cmd("SET").arg(&self.key).arg(number)).await?;
            self.current.store(number, Ordering::SeqCst);
        }
        Ok(())
    }

    /// From now on there is none; the server was told, or is told by whoever takes this worker's tasks.
    pub(super) fn forget(&self) {
        self.current.store(0, Ordering::SeqCst);
    }

    /// Takes the claim away, so that nothing comes through any more that was sent under it, however late it arrives.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub(super) async fn give_up(&self, link: &Link) -> Result<(), BrokerError> {
        self.forget();
        link.run::<Value>(redis::cmd("DEL").arg(&self.key)).await.map(drop)
    }

    /// Records the ends of tasks that were taken under the claim of this number, all or none. `false`: perhaps none, and the claim has to
    /// be given up before they are recorded otherwise.
    pub(super) async fn finish(&self, link: &Link, keys: &Keys, number: u64, batch: &[(&Finish, Arc<Before>)]) -> bool {
        match self.try_finish(link, keys, number, batch).await {
            Ok(done) => done,
            Err(error) => {
                tracing::debug!("what ended is recorded the slow way: {}", chain(&error_of(link.place(), error)));
                false
            }
        }
    }

    async fn try_finish(
        &self,
        link: &Link,
        keys: &Keys,
        number: u64,
        batch: &[(&Finish, Arc<Before>)],
    ) -> Result<bool, RedisError> {
        let idle = self.watching.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut watching = match idle {
            Some(watching) if watching.found == number => watching,
            _ => self.watch(link).await?,
        };
        if watching.found != number {
            return Ok(false);
        }
        let mut transaction = self.transaction(keys, batch);
        // For the next one.
        self.add_watch(&mut transaction);
        let answers = watching.connection.req_packed_commands(&transaction, transaction.len() - 3, 3).await?;
        let [ran, _, found] = &*answers else { return Ok(false) };
        watching.found = number_in(found);
        self.watching.lock().unwrap_or_else(PoisonError::into_inner).push(watching);
        // Not an array: the server ran nothing of it.
        let Value::Array(ran) = ran else { return Ok(false) };
        // What somebody has put in the place of a record is left as it is; anything else that fails must not.
        let failed = |(place, answer): (usize, &Value)| match answer {
            Value::ServerError(error) => !(error.code() == "WRONGTYPE" && (1..=batch.len()).contains(&place)),
            _ => false,
        };
        Ok(!ran.iter().enumerate().any(failed))
    }

    /// Opens a connection that watches the claim and knows the scripts.
    async fn watch(&self, link: &Link) -> Result<Watching, RedisError> {
        let mut connection = link.connect().await?;
        let mut first = Pipeline::new();
        for script in [&script::NOTE_MISSING, &script::DROP_MISSING] {
            first.cmd("SCRIPT").arg("LOAD").arg(script.text());
        }
        self.add_watch(&mut first);
        let answers = connection.req_packed_commands(&first, first.len() - 1, 1).await?;
        let found = answers.first().map_or(0, number_in);
        Ok(Watching { connection, found })
    }

    fn add_watch(&self, pipeline: &mut Pipeline) {
        pipeline.cmd("WATCH").arg(&self.key).cmd("GET").arg(&self.key);
    }

    fn transaction(&self, keys: &Keys, batch: &[(&Finish, Arc<Before>)]) -> Pipeline {
        let size = batch.len();
        let records: Vec<String> = batch.iter().map(|(finish, _)| keys.record(finish.lease.uuid)).collect();
        let name = self.name_batch();
        let mut note_missing = script::NOTE_MISSING.call(&keys.project);
        let mut attempts: Vec<u8> = Vec::with_capacity(768 * size);
        let mut release = command("HDEL", size + 1, 40 * size);
        release.arg(&keys.leases);
        let mut items = command("ZREM", size + 1, 80 * size);
        items.arg(&keys.process);
        let mut ended = command("RPUSH", size + 1, 64 * size);
        ended.arg(&keys.ended);

        // The guard, the records, and the rest: whoever reads the answers tells them apart by their places.
        let mut all = Pipeline::with_capacity(size + 10);
        all.cmd("MULTI");
        note_missing.arg(&records);
        all.add_command(note_missing);
        for ((finish, before), key) in batch.iter().zip(&records) {
            let record = &finish.record;
            let flat = fields::of_ended(record, record.status, Some(&before.task));
            let mut write = command("HSET", flat.len() + 3, 512);
            write.arg(key);
            for part in &flat {
                write.arg(&**part);
            }
            let first = attempts.len();
            if let Some(length) = attempts::write(&mut attempts, finish) {
                write.arg("attempts_at").arg(format!("{}{name}:{first}:{length}", before.attempts_at));
            }
            all.add_command(write);
            let mut text = Uuid::encode_buffer();
            let uuid = &*finish.lease.uuid.hyphenated().encode_lower(&mut text);
            ended.arg(format!("{} {uuid}", repr(record.updated_at)));
            release.arg(uuid);
            items.arg(&before.item);
        }
        if let Some((finish, _)) = batch.last().filter(|_| !attempts.is_empty()) {
            all.cmd("SET").arg(keys.batch(&name)).arg(attempts);
            all.cmd("ZADD").arg(&keys.attempts).arg(repr(finish.record.updated_at)).arg(name);
        }
        all.add_command(release).add_command(items).add_command(ended);
        all.cmd("PUBLISH").arg(&keys.changed).arg("");
        all.add_command(script::DROP_MISSING.call(&keys.project));
        all.cmd("EXEC");
        all
    }
}

/// A command with room for its arguments.
fn command(name: &str, arguments: usize, bytes: usize) -> Cmd {
    let mut command = Cmd::with_capacity(arguments + 1, bytes + 64);
    command.arg(name);
    command
}

/// A claim's number as the server gives it; 0 where there is none.
fn number_in(answer: &Value) -> u64 {
    match answer {
        Value::BulkString(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or_default(),
        _ => 0,
    }
}
