//! Tasks in this process: for `run FILE`, for tests, and for applications that need no more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::component::Component;
use super::error::{BrokerError, BrokerErrorKind};
use super::record::{DecisionRecord, Fields, Record, TaskStatus, unix_now};
use super::{Again, Answer, Broker, Cancellation, Cancelled, Counts, Filter, Finish, Lease, Requeued, Storage, Taken};
use crate::task::BoxFuture;

/// How many decisions are kept.
const KEPT_DECISIONS: usize = 10_000;

/// A queue and its records in this process, shared by whoever adds tasks and the workers that take them.
#[derive(Debug)]
pub struct MemoryBackend {
    place: Arc<str>,
    /// Whether ended tasks are kept, for whoever asks.
    keep: bool,
    state: Mutex<State>,
    /// Something changed that somebody who waits should look at.
    changed: Notify,
    /// Places for new tasks.
    room: Semaphore,
}

/// Where a task waits: higher priority first, then in order of arrival.
type Place = (Reverse<i64>, i64);

#[derive(Debug, Default)]
struct State {
    tasks: HashMap<Uuid, Entry>,
    ready: BTreeMap<Place, Uuid>,
    delayed: BTreeMap<(Instant, i64), Uuid>,
    /// Of arrivals and of deliveries.
    next_number: i64,
    /// Taken and not finished.
    held: BTreeSet<Uuid>,
    closed: bool,
    draining: bool,
    cancellations: Option<mpsc::UnboundedSender<Cancellation>>,
    decisions: VecDeque<DecisionRecord>,
    config: BTreeMap<String, BTreeMap<String, String>>,
    running: bool,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    number: i64,
    delivery: i64,
}

/// What a worker finds.
enum Look {
    Tasks(Vec<Taken>),
    /// Nothing yet; the next delayed task is due then.
    Wait(Option<Instant>),
    End,
}

impl MemoryBackend {
    /// A capacity that nobody reaches.
    pub const UNBOUNDED: usize = Semaphore::MAX_PERMITS;

    /// An empty queue. At most `capacity` tasks have not ended: who adds more waits. Ended tasks are kept when `keep` says so.
    #[must_use]
    pub fn new(capacity: usize, keep: bool) -> Self {
        let room = Semaphore::new(capacity.min(Self::UNBOUNDED));
        Self { place: "memory:".into(), keep, state: Mutex::default(), changed: Notify::new(), room }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more tasks will be added: workers end once everything is finished.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_waiters();
    }

    /// Nothing more is taken or added: workers end once what runs is finished. What waits stays where it is.
    pub fn drain(&self) {
        self.state().draining = true;
        self.room.close();
        self.changed.notify_waiters();
    }

    /// How many tasks wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let state = self.state();
        state.ready.len() + state.delayed.len()
    }

    fn ended(&self, count: usize) {
        self.room.add_permits(count);
        self.changed.notify_waiters();
    }
}

impl State {
    /// Puts a task in its place.
    fn place(&mut self, uuid: Uuid) {
        let Some(entry) = self.tasks.get(&uuid) else { return };
        let wait = entry.record.due.map(|due| due - unix_now()).filter(|wait| *wait > 0.0);
        match wait.and_then(|wait| Duration::try_from_secs_f64(wait).ok()) {
            Some(wait) => {
                self.delayed.insert((Instant::now() + wait, entry.number), uuid);
            }
            None => {
                self.ready.insert((Reverse(entry.record.task.priority), entry.number), uuid);
            }
        }
    }

    /// Takes a task out of its place, if it waits.
    fn unplace(&mut self, uuid: Uuid) {
        self.ready.retain(|_, waiting| *waiting != uuid);
        self.delayed.retain(|_, waiting| *waiting != uuid);
    }

    fn insert(&mut self, record: Record) {
        self.next_number += 1;
        let uuid = record.task.uuid;
        self.tasks.insert(uuid, Entry { record, number: self.next_number, delivery: 0 });
        self.place(uuid);
    }

    fn look(&mut self, most: usize, now: Instant) -> Look {
        if self.draining {
            return Look::End;
        }
        while let Some(first) = self.delayed.first_entry().filter(|first| first.key().0 <= now) {
            let uuid = first.remove();
            if let Some(entry) = self.tasks.get(&uuid) {
                self.ready.insert((Reverse(entry.record.task.priority), entry.number), uuid);
            }
        }
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((_, uuid)) = self.ready.pop_first()
        {
            let Some(entry) = self.tasks.get_mut(&uuid) else { continue };
            // Never one that was there before, also where a task of this uuid was removed and is added again.
            self.next_number += 1;
            entry.delivery = self.next_number;
            entry.record.status = TaskStatus::Process;
            entry.record.due = None;
            entry.record.updated_at = unix_now();
            self.held.insert(uuid);
            taken.push(Taken { lease: Lease { uuid, delivery: entry.delivery }, record: entry.record.clone() });
        }
        if !taken.is_empty() {
            return Look::Tasks(taken);
        }
        if self.closed && self.held.is_empty() && self.delayed.is_empty() {
            return Look::End;
        }
        Look::Wait(self.delayed.first_key_value().map(|((due, _), _)| *due))
    }

    /// Whether the lease still holds; it does not from now on.
    fn release(&mut self, lease: Lease) -> bool {
        let ours = self.tasks.get(&lease.uuid).is_some_and(|entry| entry.delivery == lease.delivery);
        ours && self.held.remove(&lease.uuid)
    }

    fn remember(&mut self, finish: &Finish) {
        let Some(attempt) = &finish.attempt else { return };
        let error = Arc::new((*attempt.error).clone());
        for decision in &attempt.decisions {
            if self.decisions.len() == KEPT_DECISIONS {
                self.decisions.pop_front();
            }
            self.decisions.push_back(DecisionRecord {
                at: attempt.at,
                uuid: finish.lease.uuid,
                task_name: finish.record.task.name.to_string(),
                attempt: attempt.attempt,
                decision: decision.clone(),
                error: Arc::clone(&error),
            });
        }
    }

    /// Removes ended records that `forget` names.
    fn remove_ended(&mut self, forget: impl Fn(&Record) -> bool) -> u64 {
        let before = self.tasks.len();
        self.tasks.retain(|_, entry| !(entry.record.status.has_ended() && forget(&entry.record)));
        (before - self.tasks.len()) as u64
    }
}

/// An operation that needs no waiting.
fn at_once<'a, T: Send + 'a>(done: T) -> Answer<'a, T> {
    Box::pin(std::future::ready(Ok(done)))
}

impl Broker for MemoryBackend {
    fn component(&self) -> Component {
        Component::new("MemoryBroker", &self.place)
    }

    fn prefetch(&self, _most: usize) -> usize {
        0
    }

    fn add(&self, records: Vec<Record>) -> Answer<'_, ()> {
        Box::pin(async move {
            let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
            match self.room.acquire_many(count).await {
                Ok(places) => places.forget(),
                Err(_) => return Err(BrokerError::new(&self.place, BrokerErrorKind::Closed)),
            }
            let mut state = self.state();
            let mut new = BTreeSet::new();
            let mut is_known = |uuid| state.tasks.contains_key(&uuid) || !new.insert(uuid);
            if let Some(known) = records.iter().find(|record| is_known(record.task.uuid)) {
                let known = BrokerErrorKind::Known(known.task.uuid);
                drop(state);
                self.room.add_permits(records.len());
                return Err(BrokerError::new(&self.place, known));
            }
            records.into_iter().for_each(|record| state.insert(record));
            drop(state);
            self.changed.notify_waiters();
            Ok(())
        })
    }

    fn attach(&self) -> Answer<'_, mpsc::UnboundedReceiver<Cancellation>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().cancellations = Some(sender);
        at_once(receiver)
    }

    fn take(&self, most: usize) -> Answer<'_, Vec<Taken>> {
        Box::pin(async move {
            loop {
                // Registered before looking, so that a change in between is not missed.
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let look = self.state().look(most, Instant::now());
                match look {
                    Look::Tasks(taken) => return Ok(taken),
                    Look::End => return Ok(Vec::new()),
                    Look::Wait(None) => changed.await,
                    Look::Wait(Some(due)) => {
                        // Elapsed or changed, the next look tells.
                        let _ = tokio::time::timeout_at(due, changed).await;
                    }
                }
            }
        })
    }

    fn finish(&self, batch: Arc<[Finish]>) -> Answer<'_, Vec<Lease>> {
        let mut lost = Vec::new();
        let mut ended = 0;
        let mut state = self.state();
        for finish in &*batch {
            if !state.release(finish.lease) {
                lost.push(finish.lease);
                continue;
            }
            if self.keep {
                state.remember(finish);
            }
            if let Some(entry) = state.tasks.get_mut(&finish.lease.uuid) {
                let mut history = std::mem::take(&mut entry.record.history);
                // The last one is of no use to a record that nobody keeps.
                history.extend(finish.attempt.clone().filter(|_| self.keep || finish.retry.is_some()));
                let cancel_asked = entry.record.cancel_asked.take();
                entry.record = Record { history, cancel_asked, ..finish.record.clone() };
            }
            match finish.retry {
                Some(Again { after, .. }) => {
                    if let Some(entry) = state.tasks.get_mut(&finish.lease.uuid) {
                        entry.record.status = TaskStatus::New;
                        // What is to be cancelled need not wait for its next attempt.
                        let asked = entry.record.cancel_asked.is_some();
                        entry.record.due = entry.record.clone().after(after).due.filter(|_| !asked);
                    }
                    state.place(finish.lease.uuid);
                }
                None => {
                    ended += 1;
                    if !self.keep {
                        state.tasks.remove(&finish.lease.uuid);
                    }
                }
            }
        }
        drop(state);
        self.ended(ended);
        at_once(lost)
    }

    fn take_over(&self) -> Answer<'_, Vec<Taken>> {
        // Workers and tasks live in the same process.
        at_once(Vec::new())
    }

    fn give_back(&self, taken: Vec<Taken>) -> Answer<'_, ()> {
        let mut state = self.state();
        for Taken { lease, record } in taken {
            if state.release(lease) {
                if let Some(entry) = state.tasks.get_mut(&lease.uuid) {
                    let cancel_asked = entry.record.cancel_asked.take();
                    entry.record = Record { status: TaskStatus::New, cancel_asked, ..record };
                }
                state.place(lease.uuid);
            }
        }
        drop(state);
        self.changed.notify_waiters();
        at_once(())
    }

    fn detach(&self) -> Answer<'_, u64> {
        let mut state = self.state();
        state.cancellations = None;
        let held = std::mem::take(&mut state.held);
        let count = held.len() as u64;
        for uuid in held {
            if let Some(entry) = state.tasks.get_mut(&uuid) {
                entry.record.status = TaskStatus::New;
                // Who still holds it must not finish it any more.
                entry.delivery += 1;
            }
            state.place(uuid);
        }
        at_once(count)
    }
}

impl Storage for MemoryBackend {
    fn storage_component(&self) -> Component {
        Component::new("MemoryStorage", &self.place)
    }

    fn get(&self, uuid: Uuid) -> Answer<'_, Option<Record>> {
        at_once(self.state().tasks.get(&uuid).map(|entry| entry.record.clone()))
    }

    fn list(&self, filter: Filter) -> Answer<'_, Vec<Record>> {
        let state = self.state();
        let mut found: Vec<&Entry> = state.tasks.values().filter(|entry| filter.fits(&entry.record)).collect();
        found.sort_by_key(|entry| Reverse(entry.number));
        let records = found.into_iter().take(filter.limit).map(|entry| Record { history: Vec::new(), ..entry.record.clone() });
        at_once(records.collect())
    }

    fn update(&self, uuid: Uuid, fields: Fields) -> Answer<'_, bool> {
        let mut state = self.state();
        let Some(entry) = state.tasks.get_mut(&uuid) else { return at_once(false) };
        let status = entry.record.status;
        let replaced = entry.record.replace(fields);
        // Where a task stands is the queue's to say; a task that ended may be given another end.
        if !(status.has_ended() && entry.record.status.has_ended()) {
            entry.record.status = status;
        }
        Box::pin(std::future::ready(match replaced {
            Ok(()) => Ok(true),
            Err(error) => Err(BrokerError::new(&self.place, BrokerErrorKind::Refused(error.to_string()))),
        }))
    }

    fn cancel(&self, uuid: Uuid, reason: String) -> Answer<'_, Cancelled> {
        let mut state = self.state();
        let Some(status) = state.tasks.get(&uuid).map(|entry| entry.record.status) else { return at_once(Cancelled::Unknown) };
        match status {
            TaskStatus::New => {
                state.unplace(uuid);
                if let Some(entry) = state.tasks.get_mut(&uuid) {
                    entry.record = entry.record.clone().cancelled(reason);
                }
                drop(state);
                self.ended(1);
                at_once(Cancelled::Done)
            }
            TaskStatus::Process => {
                if let Some(cancellations) = &state.cancellations {
                    // A worker that is gone has given the task back already.
                    let _ = cancellations.send(Cancellation { uuid, reason: reason.clone() });
                }
                if let Some(entry) = state.tasks.get_mut(&uuid) {
                    // Should its worker not come to it.
                    entry.record.cancel_asked = Some(reason);
                }
                at_once(Cancelled::Asked)
            }
            _ => at_once(Cancelled::Ended),
        }
    }

    fn requeue(&self, uuid: Uuid) -> Answer<'_, Requeued> {
        Box::pin(async move {
            // Its end gives a place back, as that of any other.
            let Ok(place) = self.room.acquire().await else {
                return Err(BrokerError::new(&self.place, BrokerErrorKind::Closed));
            };
            let mut state = self.state();
            let Some(entry) = state.tasks.get_mut(&uuid) else { return Ok(Requeued::Unknown) };
            if !entry.record.status.has_ended() {
                return Ok(Requeued::Underway);
            }
            entry.record = entry.record.clone().again();
            state.place(uuid);
            drop(state);
            place.forget();
            self.changed.notify_waiters();
            Ok(Requeued::Done)
        })
    }

    fn decisions(&self, uuid: Option<Uuid>, limit: usize) -> Answer<'_, Vec<DecisionRecord>> {
        let state = self.state();
        let found = state.decisions.iter().rev().filter(|decision| uuid.is_none_or(|uuid| decision.uuid == uuid));
        at_once(found.take(limit).cloned().collect())
    }

    fn counts(&self) -> Answer<'_, Counts> {
        let state = self.state();
        let mut counts = Counts { delayed: state.delayed.len() as u64, ..Counts::default() };
        state.tasks.values().for_each(|entry| counts.add(entry.record.status, entry.record.dead_letter.is_some()));
        at_once(counts)
    }

    fn prune(&self, results: Duration, decisions: Duration) -> Answer<'_, u64> {
        let now = unix_now();
        let mut state = self.state();
        state.decisions.retain(|decision| decision.at >= now - decisions.as_secs_f64());
        at_once(state.remove_ended(|record| record.updated_at < now - results.as_secs_f64()))
    }

    fn delete_finished(&self) -> Answer<'_, u64> {
        at_once(self.state().remove_ended(|_| true))
    }

    fn flush_all(&self) -> Answer<'_, u64> {
        let mut state = self.state();
        let removed = state.tasks.len();
        let open = state.tasks.values().filter(|entry| !entry.record.status.has_ended()).count();
        let (closed, draining) = (state.closed, state.draining);
        let cancellations = state.cancellations.take();
        *state = State { closed, draining, cancellations, next_number: state.next_number, ..State::default() };
        drop(state);
        self.ended(open);
        at_once(removed as u64)
    }

    fn changed(&self, at_most: Duration) -> BoxFuture<'_, ()> {
        let changed = self.changed.notified();
        Box::pin(async move {
            // Elapsed or changed, the caller looks again.
            let _ = tokio::time::timeout(at_most, changed).await;
        })
    }

    fn config_set(&self, name: String, key: String, value: String) -> Answer<'_, ()> {
        self.state().config.entry(name).or_default().insert(key, value);
        at_once(())
    }

    fn config_get_all(&self, name: String) -> Answer<'_, Vec<(String, String)>> {
        let state = self.state();
        let values = state.config.get(&name).into_iter().flatten();
        at_once(values.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn set_running(&self) -> Answer<'_, ()> {
        self.state().running = true;
        at_once(())
    }

    fn is_running(&self) -> Answer<'_, bool> {
        let state = self.state();
        at_once(state.running && state.cancellations.is_some())
    }
}

#[cfg(test)]
mod tests;
