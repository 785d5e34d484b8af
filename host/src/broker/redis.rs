//! Tasks on a Redis server, together with QTasks' Python workers and clients: their keys and formats, byte for byte, and this program's
//! own keys beside them.
//!
//! QTasks has no leases: its keys say what waits (`NAME:task_queue`), what somebody has (`NAME:task_process`), and what is known of
//! each task (`NAME:<uuid>`). Under `qtasks-host:NAME:` this program keeps who has it since which delivery, the workers' beats, delayed
//! tasks, and the attempts that failed. Each step is one script or one transaction, so that no crash falls in between.

mod attempts;
mod beat;
mod changes;
mod claim;
mod ending;
mod fields;
mod hash;
mod keys;
mod link;
mod python_json;
mod queue;
mod records;
mod script;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Client, Value};
use tokio::sync::mpsc;
use uuid::Uuid;

use self::beat::Beat;
use self::changes::Changes;
use self::claim::Claim;
use self::keys::Keys;
use self::link::Link;
use super::component::Component;
use super::error::{BrokerError, BrokerErrorKind};
use super::record::{DecisionRecord, Fields, Record, unix_now};
use super::settings::BrokerSettings;
use super::watched::{Watched, Written};
use super::{Answer, Broker, Cancellation, Cancelled, Counts, Filter, Finish, Lease, Requeued, Storage, Taken};
use crate::task::BoxFuture;

/// How long an answer may take; a script over many tasks takes milliseconds.
const RESPONSE: Duration = Duration::from_secs(10);
/// Longest wait for a task in one command. After each the delayed tasks are looked at.
const WAIT: Duration = Duration::from_secs(1);
/// The first version with `BLMOVE` and `LPOP` of several.
const OLDEST: (u32, u32) = (6, 2);

/// A project's tasks on a Redis server.
#[derive(Debug)]
pub struct RedisBackend {
    place: Arc<str>,
    keys: Arc<Keys>,
    client: Client,
    link: Link,
    /// Commands that wait hold up whatever is sent after them, so they have a connection of their own.
    waiting: Link,
    changes: Changes,
    /// This process as a worker.
    worker: Uuid,
    lease: Duration,
    max_losses: u32,
    recover_foreign_after: Option<Duration>,
    beat: Mutex<Option<Beat>>,
    written: Written,
    watched: Mutex<Watched>,
    /// Items that workers without leases have, and since when they were seen.
    foreign: Mutex<HashMap<Vec<u8>, Instant>>,
    /// What this worker knows that it has, as it was taken. The server may know of more, where an answer did not arrive.
    held: Mutex<HashMap<Lease, Held>>,
    /// Locked from the moment the server hands out tasks until they are in `held`: in between they are not unknown.
    handing: tokio::sync::Mutex<()>,
    claim: Claim,
    /// An answer did not arrive.
    unsure: AtomicBool,
    /// How far the search for records that Python workers ended has come.
    pruned: AtomicU64,
}

/// A task that this worker has.
#[derive(Debug)]
struct Held {
    before: Arc<queue::Before>,
    /// The claim that it was taken under; 0 where somebody may have taken it since, or where its end was sent once.
    claim: u64,
}

impl RedisBackend {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn open(url: &str, settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let place: Arc<str> = settings.url.to_string().into();
        let client = Client::open(url).map_err(|error| {
            // What the client says of a URL may hold the password.
            let detail = error.detail().filter(|detail| !url.contains(*detail)).unwrap_or("it cannot be read");
            let expected = "expected redis://[USER[:PASSWORD]@]HOST[:PORT][/DB] or redis+unix:///PATH";
            BrokerError::new(&place, BrokerErrorKind::Refused(format!("is no address of a Redis server: {detail}; {expected}")))
        })?;
        let link = Link::new(client.clone(), Arc::clone(&place), RESPONSE);
        let about: String = link.run(redis::cmd("INFO").arg("server")).await?;
        let version = about.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
        let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
        let number = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        if number < OLDEST {
            let refused = format!("is Redis {version}; expected {}.{} or later", OLDEST.0, OLDEST.1);
            return Err(BrokerError::new(&place, BrokerErrorKind::Refused(refused)));
        }
        let (keys, worker, written) = (Arc::new(Keys::new(&settings.name)), Uuid::new_v4(), Written::default());
        Ok(Self {
            claim: Claim::new(&keys, worker),
            keys,
            waiting: Link::new(client.clone(), Arc::clone(&place), WAIT + RESPONSE),
            client,
            link,
            changes: Changes::new(),
            worker,
            lease: settings.lease,
            max_losses: settings.max_losses,
            recover_foreign_after: settings.recover_foreign_after,
            beat: Mutex::default(),
            watched: Mutex::new(Watched::new(written.clone())),
            written,
            foreign: Mutex::default(),
            held: Mutex::default(),
            handing: tokio::sync::Mutex::default(),
            unsure: AtomicBool::default(),
            pruned: AtomicU64::default(),
            place,
        })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Lease, Held>> {
        locked(&self.held)
    }

    /// Remembers what was taken, under which claim, and sets aside what cannot run.
    async fn keep(&self, handed: Vec<queue::Handed>, claim: u64) -> Result<Vec<Taken>, BrokerError> {
        // Without its record, a task is leased to this worker and unknown to it.
        let sorted = self.unsure_while(queue::sort(&self.link, &self.keys, handed)).await?;
        self.held().extend(sorted.before.into_iter().map(|(lease, before)| (lease, Held { before: before.into(), claim })));
        if !sorted.unreadable.is_empty()
            && let Err(error) = queue::set_aside(&self.link, &self.keys, &sorted.unreadable).await
        {
            // They are leased to this worker, which will find them again.
            self.unsure.store(true, Ordering::Relaxed);
            if sorted.taken.is_empty() {
                return Err(error);
            }
        }
        Ok(sorted.taken)
    }

    async fn try_take(&self, most: usize) -> Result<Vec<Taken>, BrokerError> {
        loop {
            let handing = self.handing.lock().await;
            self.give_back_if_unsure().await?;
            let claim = self.claim.number();
            let took = self.unsure_while(queue::take(&self.link, &self.keys, self.worker, most)).await?;
            let taken = self.keep(took.handed, claim).await?;
            drop(handing);
            if !taken.is_empty() {
                return Ok(taken);
            }
            if took.was_empty {
                self.wait(took.next_due).await?;
            }
        }
    }

    /// Where an answer did not arrive, the server may think that this worker has more than it knows of.
    async fn give_back_if_unsure(&self) -> Result<(), BrokerError> {
        if !self.unsure.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        self.unsure_while(self.give_back_unknown()).await
    }

    /// Whatever fails on the way may have been done all the same.
    async fn unsure_while<T>(&self, operation: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        let done = operation.await;
        if done.is_err() {
            self.unsure.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Waits until there may be a task.
    async fn wait(&self, due: Option<f64>) -> Result<(), BrokerError> {
        let until_due = due.map_or(WAIT, |due| Duration::try_from_secs_f64((due - unix_now()).clamp(0.0, 1.0)).unwrap_or(WAIT));
        // Zero would be for ever.
        let wait = until_due.clamp(Duration::from_millis(1), WAIT).as_secs_f64();
        let mut command = redis::cmd("BLMOVE");
        // From the head of the queue to its head: it wakes and changes nothing, so nobody's death can lose a task here.
        command.arg(&self.keys.queue).arg(&self.keys.queue).arg("LEFT").arg("LEFT").arg(format!("{wait:.3}"));
        self.waiting.run::<Value>(&command).await.map(drop)
    }

    /// Puts back what the server thinks this worker has, and it does not know of.
    async fn give_back_unknown(&self) -> Result<(), BrokerError> {
        let leases = queue::leases(&self.link, &self.keys).await?;
        let unknown: Vec<(String, i64)> = {
            let held = self.held();
            let knows = |lease: &queue::Held| {
                lease.uuid.parse().is_ok_and(|uuid| held.contains_key(&Lease { uuid, delivery: lease.delivery }))
            };
            let ours = leases.into_iter().filter(|lease| lease.worker == self.worker && !knows(lease));
            ours.map(|lease| (lease.uuid, lease.delivery)).collect()
        };
        if !unknown.is_empty() {
            tracing::warn!("tasks that wait again, since their way to this worker was cut: {}", unknown.len());
        }
        queue::give_back_unknown(&self.link, &self.keys, &unknown).await
    }

    /// Records what became of so many attempts as fit into one call: quickly what was taken under the claim that stands, and what is
    /// left one by one.
    async fn finish_part(&self, part: &[Finish]) -> Result<Vec<Lease>, BrokerError> {
        let claim = self.claim.number();
        let (mut quick, mut slow) = (Vec::new(), Vec::new());
        {
            let mut held = self.held();
            for finish in part {
                match held.get_mut(&finish.lease) {
                    Some(one) if claim != 0 && one.claim == claim && finish.retry.is_none() => {
                        // Whatever becomes of it, it is not sent so twice: it may arrive late.
                        one.claim = 0;
                        quick.push((finish, Arc::clone(&one.before)));
                    }
                    one => slow.push((finish, one.map(|one| Arc::clone(&one.before)))),
                }
            }
        }
        if !quick.is_empty() {
            if self.claim.finish(&self.link, &self.keys, claim, &quick).await {
                self.finished(quick.iter().map(|(finish, _)| *finish));
            } else {
                self.claim.give_up(&self.link).await?;
                slow.extend(quick.into_iter().map(|(finish, before)| (finish, Some(before))));
            }
        }
        let mut lost = Vec::new();
        if !slow.is_empty() {
            let name = self.claim.name_batch();
            lost = ending::finish(&self.link, &self.keys, &name, &slow).await?;
            self.finished(slow.iter().map(|(finish, _)| *finish));
            if let Err(error) = self.claim.renew(&self.link).await {
                // Without one, everything is recorded the slow way.
                tracing::debug!("no claim: {}", crate::shown::chain(&error));
            }
        }
        Ok(lost)
    }

    fn finished<'a>(&self, finished: impl Iterator<Item = &'a Finish>) {
        let mut held = self.held();
        for finish in finished {
            held.remove(&finish.lease);
        }
    }

    /// Takes over what Python workers have not finished for too long, where the operator says how long that is.
    async fn adopt(&self, after: Duration) -> Result<Vec<Taken>, BrokerError> {
        let items = queue::foreign(&self.link, &self.keys).await?;
        let now = Instant::now();
        let left: Vec<Vec<u8>> = {
            let mut foreign = locked(&self.foreign);
            foreign.retain(|item, _| items.contains(item));
            let mut since = |item: &Vec<u8>| *foreign.entry(item.clone()).or_insert(now);
            items.iter().filter(|item| now.duration_since(since(item)) >= after).cloned().collect()
        };
        let mut taken = Vec::new();
        for item in left {
            tracing::warn!(item = %String::from_utf8_lossy(&item), "a Python worker has had this task for too long; it is taken over");
            let claim = self.claim.number();
            let adopting = self.unsure_while(queue::adopt(&self.link, &self.keys, self.worker, &item));
            let kept = match adopting.await {
                Ok(handed) => self.keep(handed, claim).await,
                Err(error) => Err(error),
            };
            match kept {
                Ok(kept) => taken.extend(kept),
                // What was taken over so far is not to be forgotten for this one.
                Err(error) => {
                    tracing::warn!("{}", crate::shown::chain(&error));
                    break;
                }
            }
        }
        Ok(taken)
    }
}

/// No code that can panic runs while one of these locks is held.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker for RedisBackend {
    fn component(&self) -> Component {
        Component::new("RedisBroker", &self.place)
    }

    fn add(&self, records: Vec<Record>) -> Answer<'_, ()> {
        Box::pin(async move {
            // All or none holds within one script; what is longer is too long for one.
            if records.len() > queue::MOST {
                let refused = format!("tasks at once: {}, expected at most {}", records.len(), queue::MOST);
                return Err(BrokerError::new(&self.place, BrokerErrorKind::Refused(refused)));
            }
            queue::add(&self.link, &self.keys, &records).await
        })
    }

    fn attach(&self) -> Answer<'_, mpsc::UnboundedReceiver<Cancellation>> {
        Box::pin(async move {
            let (sender, receiver) = mpsc::unbounded_channel();
            // Before the first lease, so that no lease is without a worker.
            let known = redis::cmd("HSETNX").arg(&self.keys.workers).arg(self.worker.to_string()).arg(0).to_owned();
            self.link.run::<Value>(&known).await?;
            self.written.now();
            self.claim.renew(&self.link).await?;
            let (client, written) = (self.client.clone(), self.written.clone());
            let beat = Beat::start(client, &self.place, &self.keys, self.worker, self.lease, sender, written)?;
            *locked(&self.beat) = Some(beat);
            Ok(receiver)
        })
    }

    fn take(&self, most: usize) -> Answer<'_, Vec<Taken>> {
        Box::pin(self.try_take(most))
    }

    fn finish(&self, batch: Arc<[Finish]>) -> Answer<'_, Vec<Lease>> {
        Box::pin(async move {
            let mut lost = Vec::new();
            for part in ending::parts(&batch) {
                lost.extend(self.finish_part(part).await?);
            }
            Ok(lost)
        })
    }

    fn take_over(&self) -> Answer<'_, Vec<Taken>> {
        Box::pin(async move {
            let _handing = self.handing.lock().await;
            self.give_back_if_unsure().await?;
            let mut beats = queue::beats(&self.link, &self.keys).await?;
            beats.retain(|(other, _)| *other != self.worker);
            let dead = locked(&self.watched).dead(&beats, self.lease);
            let mut taken = Vec::new();
            if !dead.is_empty() {
                let claim = self.claim.number();
                let taking = queue::take_over(&self.link, &self.keys, self.worker, &dead, self.max_losses);
                taken = self.keep(self.unsure_while(taking).await?, claim).await?;
            }
            if let Some(after) = self.recover_foreign_after {
                match self.adopt(after).await {
                    Ok(adopted) => taken.extend(adopted),
                    // What was taken over above is not to be forgotten for these.
                    Err(error) => tracing::warn!("{}", crate::shown::chain(&error)),
                }
            }
            Ok(taken)
        })
    }

    fn begin(&self, lease: Lease) -> Answer<'_, ()> {
        Box::pin(queue::begin(&self.link, &self.keys, lease))
    }

    fn give_back(&self, taken: Vec<Taken>) -> Answer<'_, ()> {
        Box::pin(async move {
            {
                // Whether this arrives or not, they are not this worker's any more.
                let mut held = self.held();
                for taken in &taken {
                    held.remove(&taken.lease);
                }
            }
            self.unsure_while(queue::give_back(&self.link, &self.keys, &taken)).await
        })
    }

    fn detach(&self) -> Answer<'_, u64> {
        Box::pin(async move {
            *locked(&self.beat) = None;
            self.held().clear();
            self.claim.forget();
            queue::detach(&self.link, &self.keys, self.worker).await
        })
    }
}

impl Storage for RedisBackend {
    fn storage_component(&self) -> Component {
        Component::new("RedisStorage", &self.place)
    }

    fn get(&self, uuid: Uuid) -> Answer<'_, Option<Record>> {
        Box::pin(records::get(&self.link, &self.keys, uuid))
    }

    fn list(&self, filter: Filter) -> Answer<'_, Vec<Record>> {
        Box::pin(async move { records::list(&self.link, &self.keys, &filter).await })
    }

    fn update(&self, uuid: Uuid, fields: Fields) -> Answer<'_, bool> {
        Box::pin(records::update(&self.link, &self.keys, uuid, fields))
    }

    fn cancel(&self, uuid: Uuid, reason: String) -> Answer<'_, Cancelled> {
        Box::pin(async move { records::cancel(&self.link, &self.keys, uuid, &reason).await })
    }

    fn requeue(&self, uuid: Uuid) -> Answer<'_, Requeued> {
        Box::pin(records::requeue(&self.link, &self.keys, uuid))
    }

    fn decisions(&self, uuid: Option<Uuid>, limit: usize) -> Answer<'_, Vec<DecisionRecord>> {
        Box::pin(attempts::decisions(&self.link, &self.keys, uuid, limit))
    }

    fn counts(&self) -> Answer<'_, Counts> {
        Box::pin(records::counts(&self.link, &self.keys))
    }

    fn prune(&self, results: Duration, decisions: Duration) -> Answer<'_, u64> {
        Box::pin(records::prune(&self.link, &self.keys, results, decisions, &self.pruned))
    }

    fn delete_finished(&self) -> Answer<'_, u64> {
        Box::pin(records::delete_finished(&self.link, &self.keys))
    }

    fn flush_all(&self) -> Answer<'_, u64> {
        Box::pin(records::flush_all(&self.link, &self.keys))
    }

    fn changed(&self, at_most: Duration) -> BoxFuture<'_, ()> {
        Box::pin(self.changes.wait(&self.client, &self.keys, at_most))
    }

    fn config_set(&self, name: String, key: String, value: String) -> Answer<'_, ()> {
        Box::pin(async move { records::config_set(&self.link, &self.keys, &name, &key, &value).await })
    }

    fn config_get_all(&self, name: String) -> Answer<'_, Vec<(String, String)>> {
        Box::pin(async move { records::config_get_all(&self.link, &self.keys, &name).await })
    }

    fn set_running(&self) -> Answer<'_, ()> {
        Box::pin(records::set_running(&self.link, &self.keys))
    }

    fn is_running(&self) -> Answer<'_, bool> {
        Box::pin(records::is_running(&self.link, &self.keys))
    }
}
