//! A queue in memory: higher priority first, first in first out within one, and tasks that wait for their time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::task::Task;

/// Tasks waiting in this process. Shared by whoever adds tasks and the workers that take them.
#[derive(Debug)]
pub struct MemoryBroker {
    state: Mutex<State>,
    /// Something changed that a waiting worker should look at.
    changed: Notify,
    /// Places for new tasks.
    room: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    ready: BinaryHeap<Waiting<(i64, Reverse<u64>)>>,
    delayed: BinaryHeap<Waiting<Reverse<(Instant, u64)>>>,
    next_number: u64,
    running: usize,
    closed: bool,
    draining: bool,
}

/// A task in its place.
#[derive(Debug)]
struct Waiting<P> {
    place: P,
    task: Task,
}

impl<P: PartialEq> PartialEq for Waiting<P> {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl<P: Eq> Eq for Waiting<P> {}

impl<P: Ord> PartialOrd for Waiting<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P: Ord> Ord for Waiting<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place.cmp(&other.place)
    }
}

/// What a worker finds.
enum Look {
    Task(Task),
    /// Nothing yet; the next delayed task is due then.
    Wait(Option<Instant>),
    End,
}

impl MemoryBroker {
    /// An empty queue in which at most `capacity` new tasks wait.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), room: Semaphore::new(capacity) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task; waits while the queue is full. Gives the task back when nothing is taken any more.
    ///
    /// # Errors
    ///
    /// The task, when the queue drains.
    pub async fn add(&self, task: Task) -> Result<(), Box<Task>> {
        match self.room.acquire().await {
            Ok(place) => place.forget(),
            Err(_) => return Err(Box::new(task)),
        }
        self.state().push(task);
        self.changed.notify_one();
        Ok(())
    }

    /// No more tasks will be added: workers end once everything is finished.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_waiters();
    }

    /// Nothing more is taken: workers end once what runs is finished. What waits stays where it is.
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

    /// Takes the next task; waits for one. `None`: there will be no more.
    ///
    /// Every task taken must be given to [`MemoryBroker::finish`] or [`MemoryBroker::retry`].
    pub async fn take(&self) -> Option<Task> {
        loop {
            // Registered before looking, so that a change in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let look = self.state().look(Instant::now());
            match look {
                Look::Task(task) => {
                    // Others may be ready as well.
                    self.changed.notify_one();
                    return Some(task);
                }
                Look::End => return None,
                Look::Wait(None) => changed.await,
                Look::Wait(Some(due)) => {
                    // Elapsed or changed, the next look tells.
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
            }
        }
    }

    /// Ends a task that was taken.
    pub fn finish(&self) {
        self.state().running -= 1;
        self.room.add_permits(1);
        self.changed.notify_waiters();
    }

    /// Puts a task that was taken back, for another attempt after `delay`.
    pub fn retry(&self, task: Task, delay: Duration) {
        let mut state = self.state();
        state.running -= 1;
        if delay.is_zero() {
            state.push(task);
        } else {
            let place = Reverse((Instant::now() + delay, state.number()));
            state.delayed.push(Waiting { place, task });
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn push(&mut self, task: Task) {
        let place = (task.priority, Reverse(self.number()));
        self.ready.push(Waiting { place, task });
    }

    fn look(&mut self, now: Instant) -> Look {
        if self.draining {
            return Look::End;
        }
        while self.delayed.peek().is_some_and(|waiting| waiting.place.0.0 <= now) {
            if let Some(waiting) = self.delayed.pop() {
                self.push(waiting.task);
            }
        }
        if let Some(waiting) = self.ready.pop() {
            self.running += 1;
            return Look::Task(waiting.task);
        }
        if self.closed && self.running == 0 && self.delayed.is_empty() {
            return Look::End;
        }
        Look::Wait(self.delayed.peek().map(|waiting| waiting.place.0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, priority: i64) -> Task {
        let mut task = Task::new(name).expect("a name");
        task.priority = priority;
        task
    }

    #[tokio::test(start_paused = true)]
    async fn higher_priority_first_then_first_in_first_out_and_delayed_ones_in_their_time() {
        let broker = MemoryBroker::new(10);
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", -1)] {
            broker.add(task(name, priority)).await.expect("room");
        }
        broker.close();
        let first = broker.take().await.expect("a task");
        assert_eq!(&*first.name, "b");
        broker.retry(first, Duration::from_secs(60));
        let begun = Instant::now();
        let mut order = Vec::new();
        while let Some(task) = broker.take().await {
            order.push(task.name.to_string());
            broker.finish();
        }
        assert_eq!(order, ["a", "c", "d", "b"]);
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_full_queue_waits_for_room_and_a_draining_one_gives_back() {
        let broker = MemoryBroker::new(1);
        broker.add(task("a", 0)).await.expect("room");
        let taken = broker.take().await.expect("a task");
        assert_eq!(&*taken.name, "a");
        let mut second = Box::pin(broker.add(task("b", 0)));
        tokio::select! {
            biased;
            _ = second.as_mut() => panic!("the place is taken until the task is finished"),
            () = std::future::ready(()) => {}
        }
        broker.finish();
        second.await.expect("room again");
        broker.drain();
        assert!(broker.take().await.is_none());
        assert_eq!(broker.waiting(), 1);
        assert_eq!(&*broker.add(task("c", 0)).await.expect_err("draining").name, "c");
    }
}
