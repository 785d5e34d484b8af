//! Runs an application until it is told to stop: QTasks' component `Starter`.

use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::Trigger;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::broker::{BrokerError, Component, Store};
use crate::plugin::start_watch::linker_is_held;
use crate::queue_tasks::QueueTasks;
use crate::replacer::Replacer;
use crate::signals::Signals;
use crate::stats::Stats;
use crate::task::TaskReport;
use crate::worker::{Stop, Worked, Worker, WorkerSettings};

/// A worker with everything around it, ready to [run](Starter::run).
#[derive(Debug)]
pub struct Starter {
    replacer: Arc<Replacer>,
    store: Arc<Store>,
    worker: Worker,
    settings: WorkerSettings,
    /// `None`: left to the application.
    signals: Option<Signals>,
    reports: Option<mpsc::Sender<TaskReport>>,
}

/// How a run of an application ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// What ran has ended, or was given back to the broker, unless that was away: [`Worked`] says so. The plugins were stopped.
    Drained(Worked),
    /// A second signal came: whatever ran was dropped, and comes back to the broker.
    AtOnce,
    /// A library hangs while it is loaded, and holds the dynamic linker, so that no plugin could be stopped. What ran had the drain
    /// deadline to end, and comes back to the broker otherwise. The process has to end [at once](crate::plugin::fatal::end_at_once).
    LinkerHeld,
}

/// `starter` in an event:
///
/// ```json
/// {"name": "Starter", "url": "sqlite:tasks.db"}
/// ```
fn info(store: &Store) -> Component {
    Component { name: "Starter", url: store.broker().url.clone() }
}

#[derive(Serialize)]
struct Kwargs {
    starter: Component,
}

impl Starter {
    /// Runs the application's tasks from `store`.
    pub(crate) fn new(replacer: Arc<Replacer>, store: Arc<Store>, settings: WorkerSettings) -> Self {
        let worker = Worker::new(Arc::clone(replacer.executor()), Arc::clone(&store), settings);
        Self { replacer, store, worker, settings, signals: None, reports: None }
    }

    /// Ends the run at SIGTERM and Ctrl-C, replaces plugins at SIGHUP, and says in the log at SIGUSR1 how they stand. Without it they are
    /// left to the application: the run ends when its [`Stop`] is asked, plugins are replaced by its
    /// [`Replacer`](crate::Running::replacer), and how they stand is in its [`Stats`](crate::Running::stats).
    #[must_use]
    pub fn with_signals(self, signals: Signals) -> Self {
        Self { signals: Some(signals), ..self }
    }

    /// Sends a report of each task that ended here, after it was recorded. When nobody receives them any more, the run ends.
    #[must_use]
    pub fn reports_to(self, reports: mpsc::Sender<TaskReport>) -> Self {
        Self { reports: Some(reports), ..self }
    }

    /// Asks the run to stop, from any thread, before or while it runs: nothing more is begun, and what runs may end.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.worker.stop()
    }

    /// Adds tasks to what this runs; [`QueueTasks::stop`] stops it.
    #[must_use]
    pub fn queue_tasks(&self) -> QueueTasks {
        QueueTasks::of_starter(Arc::clone(&self.store), info(&self.store), self.stop())
    }

    /// Runs a worker until it is asked to [`Stop`], or until the broker has no more tasks to give; then stops the plugins. With
    /// `watch = true` they are replaced after each change in the plugin directory.
    ///
    /// [With signals](Self::with_signals), SIGTERM and Ctrl-C stop it, SIGHUP replaces plugins, and at SIGUSR1 the log says how each of them
    /// stands. After the first signal to stop, what runs has the drain deadline of the settings to end. A second one stops at once: async tasks and commands are dropped, a
    /// blocking task's thread goes on until its process ends.
    ///
    /// A library that hangs while it is loaded in a replacement ends the run as a first signal does, since nothing that needs a new
    /// thread goes on in this process.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] when the broker cannot be reached at the start, or its file is not there any more. The plugins are stopped then,
    /// too.
    pub async fn run(self) -> Result<Ran, BrokerError> {
        let Self { replacer, store, worker, settings, mut signals, reports } = self;
        let drain_deadline = settings.drain_deadline;
        let hangups = signals.as_mut().and_then(Signals::take_hangups);
        let inquiries = signals.as_mut().and_then(Signals::take_inquiries);
        // In a set, so that it ends with this future. A replacement that has begun is finished all the same, and waited for below.
        let mut following = JoinSet::new();
        following.spawn(Arc::clone(&replacer).follow(hangups));
        following.spawn(Stats::new(Arc::clone(&replacer), Arc::clone(&store), settings).tell_when_asked(inquiries));
        store.dispatcher().fire(Trigger::StarterStart, &Kwargs { starter: info(&store) }).await;
        let stop = worker.stop();
        let working = async {
            let worked = worker.run(reports).await;
            // What a plugin would still have to do may wait for the linker.
            if linker_is_held() {
                return worked.map(|_| Ran::LinkerHeld);
            }
            store.dispatcher().fire(Trigger::StarterStop, &Kwargs { starter: info(&store) }).await;
            following.shutdown().await;
            replacer.stop().await;
            worked.map(Ran::Drained)
        };
        // To the very end: a plugin's `stop`, or a library that is just being loaded, may take its time.
        tokio::select! {
            ran = working => ran,
            () = told_twice(signals, &stop, drain_deadline) => {
                replacer.give_up_probes();
                give_back(&store).await;
                Ok(Ran::AtOnce)
            }
            () = held_up(&replacer, &stop, drain_deadline) => {
                give_back(&store).await;
                Ok(Ran::LinkerHeld)
            }
        }
    }
}

/// Stops at the first signal, and returns at the second.
async fn told_twice(signals: Option<Signals>, stop: &Stop, drain_deadline: Duration) {
    let Some(mut signals) = signals else { return std::future::pending().await };
    if !signals.has_told() {
        let name = signals.next().await;
        tracing::warn!("{name}: finishing what runs, within {} s; another signal stops at once", drain_deadline.as_secs_f64());
    }
    stop.now();
    let name = signals.next().await;
    tracing::warn!("{name} again: stopping at once");
}

/// Stops when a library holds the dynamic linker for ever, and returns when what runs has had its time.
async fn held_up(replacer: &Replacer, stop: &Stop, drain_deadline: Duration) {
    /// For the worker to give back what did not end.
    const SETTLING: Duration = Duration::from_secs(5);
    let plugin = replacer.linker_held().await;
    tracing::error!(
        "plugin {plugin} hangs while it is loaded, and holds the dynamic linker, for which every new thread waits; this worker \
         finishes what runs, within {} s, and ends: restart it",
        drain_deadline.as_secs_f64()
    );
    stop.now();
    tokio::time::sleep(drain_deadline.saturating_add(SETTLING)).await;
}

/// Gives back what a worker that was dropped held, unless the broker keeps us waiting: then it comes back when the lease is over.
async fn give_back(store: &Store) {
    const LONGEST: Duration = Duration::from_secs(1);
    match tokio::time::timeout(LONGEST, store.backend().detach()).await {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => tracing::warn!("tasks given back: {count}"),
        Ok(Err(error)) => tracing::error!("tasks could not be given back; they come back when the lease is over: {error}"),
        Err(_) => tracing::error!("the broker does not answer; tasks come back when the lease is over"),
    }
}
