//! The worker: takes tasks from a broker, runs them, finishes them.
//!
//! One loop ([`Worker::run`]) decides what is taken and what runs; `lane` is the way of one task; `finisher` records what became
//! of tasks, many at once; `upkeep` does what has to be done now and then.

mod finisher;
mod function_info;
mod lane;
pub mod settings;
mod stop;
mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use qtasks_plugin_api::Trigger;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::broker::{Answer, BrokerError, Cancellation, Store, Taken, unix_now};
use crate::shown::chain;
use crate::task::{Ended, Execution, Task, TaskExecutor, TaskReport};

pub use settings::WorkerSettings;
pub use stop::Stop;

/// Runs tasks from a broker, several at once.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    settings: WorkerSettings,
    stop: Stop,
}

/// What the loop, the lanes and the finisher share.
#[derive(Debug)]
struct Shared {
    executor: Arc<TaskExecutor>,
    store: Arc<Store>,
    info: WorkerInfo,
}

/// `worker` in an event:
///
/// ```json
/// {"name": "Worker", "id": "0b6aecd7-…", "concurrency": 4}
/// ```
#[derive(Debug, Clone, Serialize)]
struct WorkerInfo {
    name: &'static str,
    id: Uuid,
    concurrency: usize,
}

/// kwargs of the triggers that carry the worker alone.
#[derive(Serialize)]
struct WorkerKwargs<'a> {
    worker: &'a WorkerInfo,
}

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worked {
    /// Tasks that were taken, not finished, and given back to the broker.
    pub given_back: u64,
    /// Tasks that were taken, not finished, and not given back, since the broker is away: they come back when the lease is over.
    pub not_given_back: u64,
    /// Tasks that ended, which could not be recorded: they run again when they come back, at the latest when the lease is over.
    pub not_recorded: u64,
}

/// Longest pause between attempts to reach a broker that is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// First pause between attempts to reach a broker that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// What ended may take this long to be recorded after the drain deadline, and the rest as long to be given back: half of the usual
/// lease each, since a broker that hangs for all of it lets others run these tasks anyway.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Tasks are taken ahead for about this much work.
const AHEAD: Duration = Duration::from_millis(20);

impl Worker {
    /// A worker over `store`.
    #[must_use]
    pub fn new(executor: Arc<TaskExecutor>, store: Arc<Store>, settings: WorkerSettings) -> Self {
        // No lane at all would leave every task waiting.
        let prefetch = store.backend().prefetch(settings.prefetch);
        let settings = WorkerSettings { concurrency: settings.concurrency.max(1), prefetch, ..settings };
        let info = WorkerInfo { name: "Worker", id: Uuid::new_v4(), concurrency: settings.concurrency };
        Self { shared: Arc::new(Shared { executor, store, info }), settings, stop: Stop::default() }
    }

    /// Asks this worker to stop, from any thread.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Runs until the broker says that there will be no more tasks, or until it is stopped: then nothing more is taken, what runs has
    /// the drain deadline to end, and the rest is given back to the broker. Where that does not answer, this gives up at most 10 seconds
    /// after the drain deadline.
    ///
    /// Reports go to `reports`, each after it was recorded; when nobody receives them any more, the worker stops.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] when the broker cannot be reached at the start. Later the worker waits for it, unless its file was removed or
    /// replaced: then it is stopped, and this is the error.
    pub async fn run(&self, reports: Option<mpsc::Sender<TaskReport>>) -> Result<Worked, BrokerError> {
        let store = &self.shared.store;
        let cancellations = store.backend().attach().await?;
        self.fire(Trigger::WorkerStart).await;
        store.started(&self.shared.info).await;
        // Before the first task, so that nobody finds a result of a project that seems to have no worker.
        upkeep::say_running(store).await;
        // In a set, so that it ends with this future, also where that is dropped.
        let mut upkeep = JoinSet::new();
        upkeep.spawn(upkeep::run(Arc::clone(&self.shared), self.settings, self.stop.clone()));
        let drained = Stop::default();
        let (finishing, finisher) = finisher::start(Arc::clone(&self.shared), reports, self.stop.clone(), drained.clone());

        let lanes = Lanes::new(Arc::clone(&self.shared), finishing, self.settings);
        // On a thread of the runtime, where the lanes are: a lane that ends need not wake whoever waits for this future. In a set for
        // the same reason as above.
        let mut working = JoinSet::new();
        working.spawn(work(Arc::clone(&self.shared), self.stop.clone(), lanes, cancellations));
        let mut worked = Worked::default();
        match working.join_next().await {
            Some(Ok(so_far)) => worked = so_far,
            Some(Err(error)) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
            None => {}
        }
        drained.now();
        worked.not_recorded = finisher.await.unwrap_or_else(|error| {
            tracing::error!("the finisher ended: {error}");
            1
        });
        let gone = upkeep.try_join_next();
        upkeep.shutdown().await;
        let not_told = match timeout(LAST_WRITES, store.backend().detach()).await {
            Ok(Ok(given_back)) => {
                worked.given_back += given_back;
                worked.not_given_back = 0;
                None
            }
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some("it does not answer".to_owned()),
        };
        if let Some(why) = not_told {
            tracing::error!(
                "the broker could not be told that this worker ends; what it has comes back when the lease is over: {why}"
            );
        }
        self.fire(Trigger::WorkerStop).await;
        store.stopped().await;
        match gone {
            Some(Ok(gone)) => Err(gone),
            _ => Ok(worked),
        }
    }

    async fn fire(&self, trigger: Trigger) {
        let kwargs = WorkerKwargs { worker: &self.shared.info };
        self.shared.store.dispatcher().fire(trigger, &kwargs).await;
    }
}

/// Takes and runs tasks until there is nothing more to take, and until what runs has ended or the drain deadline has come. What still
/// runs then is dropped, and with it the last way to the finisher. Gives how many tasks were given back before they had begun, and how
/// many are still to be given back.
async fn work(
    shared: Arc<Shared>,
    stop: Stop,
    mut lanes: Lanes,
    mut cancellations: mpsc::UnboundedReceiver<Cancellation>,
) -> Worked {
    let (store, info) = (&shared.store, &shared.info);
    let mut taking: Option<Answer<'_, Vec<Taken>>> = None;
    let mut pause = FIRST_PAUSE;
    let mut told = true;
    let stopped = stop.wait();
    tokio::pin!(stopped);
    loop {
        let room = lanes.room();
        if taking.is_none() && room > 0 {
            taking = Some(Box::pin(store.take(room, info)));
        }
        tokio::select! {
            // In this order: what a request to cancel is about was taken before it.
            biased;
            () = &mut stopped => break,
            Some(taken) = async { Some(taking.as_mut()?.await) }, if taking.is_some() => {
                taking = None;
                match taken {
                    Ok(taken) if taken.is_empty() => break,
                    Ok(taken) => {
                        (pause, told) = (FIRST_PAUSE, true);
                        lanes.add(taken).await;
                    }
                    Err(error) => {
                        // Said once, and again when it has been going on for long.
                        if told || pause == LONGEST_PAUSE {
                            tracing::error!("no tasks can be taken, trying again: {}", chain(&error));
                            told = false;
                        }
                        let waited = pause;
                        taking = Some(Box::pin(async move {
                            tokio::time::sleep(waited).await;
                            store.take(room, info).await
                        }));
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
            Some(cancellation) = cancellations.recv() => lanes.cancel(cancellation),
            () = lanes.ended(), if lanes.running() > 0 => lanes.start_waiting(),
        }
    }
    drop(taking);
    let deadline = lanes.settings.drain_deadline;
    let begun = Instant::now();
    let given_back = lanes.give_back_waiting(deadline).await;
    if timeout(deadline.saturating_sub(begun.elapsed()), lanes.drain()).await.is_err() {
        tracing::warn!("tasks that still ran after {} s, and are to be given back: {}", deadline.as_secs_f64(), lanes.running());
    }
    Worked { given_back, not_given_back: lanes.left + lanes.running() as u64, not_recorded: 0 }
}

/// What was taken: some of it runs, the rest waits for a lane.
struct Lanes {
    shared: Arc<Shared>,
    finishing: mpsc::Sender<finisher::Ended>,
    settings: WorkerSettings,
    waiting: VecDeque<Taken>,
    /// Those that wait of what lost workers had. One at a time runs: what ends this worker is then known from its neighbours.
    suspects: VecDeque<Taken>,
    running: JoinSet<(Uuid, Duration)>,
    /// The one that runs of these.
    suspect: Option<Uuid>,
    /// How to cancel what runs.
    cancels: HashMap<Uuid, oneshot::Sender<String>>,
    /// How many neither wait nor run, and are this worker's until it ends.
    left: u64,
    /// About how long a task takes, in seconds.
    usual: f64,
}

impl Lanes {
    fn new(shared: Arc<Shared>, finishing: mpsc::Sender<finisher::Ended>, settings: WorkerSettings) -> Self {
        Self {
            shared,
            finishing,
            settings,
            waiting: VecDeque::new(),
            suspects: VecDeque::new(),
            running: JoinSet::new(),
            suspect: None,
            cancels: HashMap::new(),
            left: 0,
            // Until something was measured, nothing is taken ahead.
            usual: f64::INFINITY,
        }
    }

    fn running(&self) -> usize {
        self.running.len()
    }

    /// How many tasks may be taken now. Ahead of the lanes only as much is taken as will run shortly: what waits here is kept from
    /// other workers.
    fn room(&self) -> usize {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rough number, bounded below"
        )]
        let shortly = (AHEAD.as_secs_f64() / self.usual * self.settings.concurrency as f64) as usize;
        let ahead = shortly.min(self.settings.prefetch);
        // Many at once cost the broker less than one after the other.
        if self.waiting.len() > ahead / 2 || self.suspects.len() > self.settings.concurrency {
            return 0;
        }
        (self.settings.concurrency + ahead).saturating_sub(self.running.len() + self.waiting.len())
    }

    async fn add(&mut self, taken: Vec<Taken>) {
        for mut taken in taken {
            lane::added(&self.shared, &mut taken).await;
            match taken.record.cancel_asked.clone() {
                // Whoever had it did not come to it.
                Some(reason) => self.end_cancelled(taken, reason),
                None if taken.record.losses > 0 => self.suspects.push_back(taken),
                None => self.waiting.push_back(taken),
            }
        }
        self.start_waiting();
    }

    /// The next task that may begin.
    fn next_waiting(&mut self) -> Option<Taken> {
        if self.suspect.is_none()
            && let Some(taken) = self.suspects.pop_front()
        {
            self.suspect = Some(taken.lease.uuid);
            return Some(taken);
        }
        self.waiting.pop_front()
    }

    fn start_waiting(&mut self) {
        while self.running.len() < self.settings.concurrency
            && let Some(taken) = self.next_waiting()
        {
            let uuid = taken.lease.uuid;
            let (cancel, cancelled) = oneshot::channel();
            self.cancels.insert(uuid, cancel);
            let (shared, finishing) = (Arc::clone(&self.shared), self.finishing.clone());
            // In a box: it is large, and moves several times on its way to a thread.
            self.running.spawn(Box::pin(async move {
                let begun = Instant::now();
                let ended = lane::run(&shared, taken, cancelled).await;
                let took = begun.elapsed();
                // The finisher outlives every lane.
                let _ = finishing.send(ended).await;
                (uuid, took)
            }));
        }
    }

    /// Waits until one of those that run has ended, and takes note of all that have.
    async fn ended(&mut self) {
        let mut ended = self.running.join_next().await;
        while let Some(one) = ended {
            self.one_ended(one);
            ended = self.running.try_join_next();
        }
    }

    fn one_ended(&mut self, ended: Result<(Uuid, Duration), tokio::task::JoinError>) {
        match ended {
            Ok((uuid, took)) => {
                self.cancels.remove(&uuid);
                self.suspect.take_if(|suspect| *suspect == uuid);
                let took = took.as_secs_f64();
                self.usual = if self.usual.is_finite() { self.usual + (took - self.usual) / 16.0 } else { took };
            }
            // Its lease holds until this worker ends; then another one runs it. Nobody can tell whose lane it was.
            Err(error) => {
                self.suspect = None;
                self.left += 1;
                tracing::error!("a worker lane ended: {error}");
            }
        }
    }

    fn cancel(&mut self, Cancellation { uuid, reason }: Cancellation) {
        if let Some(cancel) = self.cancels.remove(&uuid) {
            // It may have ended just now.
            let _ = cancel.send(reason);
            return;
        }
        let take_out = |waiting: &mut VecDeque<Taken>| {
            let place = waiting.iter().position(|taken| taken.lease.uuid == uuid)?;
            waiting.remove(place)
        };
        if let Some(taken) = take_out(&mut self.waiting).or_else(|| take_out(&mut self.suspects)) {
            self.end_cancelled(taken, reason);
        }
    }

    /// Ends a task that has not begun.
    fn end_cancelled(&mut self, taken: Taken, reason: String) {
        let uuid = taken.lease.uuid;
        let (shared, finishing) = (Arc::clone(&self.shared), self.finishing.clone());
        self.running.spawn(async move {
            // The finisher outlives every lane.
            let _ = finishing.send(lane::cancelled(&shared, taken, reason).await).await;
            (uuid, Duration::ZERO)
        });
    }

    /// Gives back what waits for a lane, so that other workers need not wait for what runs here. Gives how many; none where the broker
    /// does not answer within `longest`.
    async fn give_back_waiting(&mut self, longest: Duration) -> u64 {
        let waiting: Vec<Taken> = self.suspects.drain(..).chain(self.waiting.drain(..)).collect();
        if waiting.is_empty() {
            return 0;
        }
        let count = waiting.len() as u64;
        let why = match timeout(longest, self.shared.store.backend().give_back(waiting)).await {
            Ok(Ok(())) => return count,
            Ok(Err(error)) => chain(&error),
            Err(_) => "the broker does not answer".to_owned(),
        };
        tracing::warn!("tasks that wait here are to be given back when this worker ends: {why}");
        self.left += count;
        0
    }

    /// Waits for all that runs.
    async fn drain(&mut self) {
        while !self.running.is_empty() {
            self.ended().await;
        }
    }
}

/// One attempt. A panic of the application's own code around the task, a middleware's, is the task's error.
async fn execute(executor: &TaskExecutor, task: Task) -> (Task, Execution) {
    let ran = AssertUnwindSafe(executor.execute(task.clone())).catch_unwind().await;
    match ran {
        // Another attempt begins with the arguments that the task came with, as in QTasks.
        Ok((_, execution)) if matches!(execution.ended, Ended::Retry { .. }) => (task, execution),
        Ok(ran) => ran,
        Err(payload) => (task, Execution::panicked(&*payload)),
    }
}

/// Runs one task to its end, waiting between attempts, with no broker.
pub(crate) async fn run_to_end(executor: &TaskExecutor, mut task: Task) -> TaskReport {
    let mut history = Vec::new();
    loop {
        let begun = unix_now();
        let (mut ran, execution) = execute(executor, task).await;
        let Ended::Retry { after, .. } = execution.ended else {
            return TaskReport { history, ..TaskReport::new(ran, execution) };
        };
        history.extend(lane::failed_attempt(ran.attempt, begun, &execution));
        tokio::time::sleep(after).await;
        ran.attempt += 1;
        task = ran;
    }
}
