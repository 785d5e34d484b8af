//! What a started application can be asked for.

use std::sync::Arc;

use crate::broker::{Backend, BrokerError, BrokerSettings, Store};
use crate::plugin::LoadReport;
use crate::replacer::{ReplaceError, Replaced, Replacer};
use crate::replay::Replay;
use crate::starter::Starter;
use crate::stats::Stats;
use crate::task::{Task, TaskExecutor, TaskReport};
use crate::worker::{Worker, WorkerSettings};

/// A started application.
#[derive(Debug)]
pub struct Running {
    pub(crate) executor: Arc<TaskExecutor>,
    pub(crate) broker: BrokerSettings,
    pub(crate) worker: WorkerSettings,
    pub(crate) replacer: Arc<Replacer>,
}

impl Running {
    /// What became of each file in the plugin directory when it was last looked at.
    #[must_use]
    pub fn plugin_reports(&self) -> Arc<Vec<LoadReport>> {
        self.replacer.reports()
    }

    /// Looks at the plugin directory again, and makes what lies there what runs: see [`Replacer::replace`]. A [`Starter`] does so at
    /// each SIGHUP, and, with `watch = true`, after each change.
    ///
    /// # Errors
    ///
    /// [`ReplaceError`]; nothing has changed then.
    pub async fn replace_plugins(&self) -> Result<Replaced, ReplaceError> {
        self.replacer.replace().await
    }

    /// What replaces plugins, for any thread to call.
    #[must_use]
    pub fn replacer(&self) -> &Arc<Replacer> {
        &self.replacer
    }

    /// What runs the tasks.
    #[must_use]
    pub fn executor(&self) -> &Arc<TaskExecutor> {
        &self.executor
    }

    /// Opens the broker of the settings, whose triggers go to this application's plugins.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn open_broker(&self) -> Result<Arc<Store>, BrokerError> {
        Ok(self.store(crate::broker::open(&self.broker).await?))
    }

    /// A backend of the application's own, whose triggers go to this application's plugins.
    #[must_use]
    pub fn store(&self, backend: Arc<dyn Backend>) -> Arc<Store> {
        Arc::new(Store::new(backend, Arc::clone(self.executor.dispatcher()), Arc::clone(&self.broker.name)))
    }

    /// A worker with the limits of the settings.
    #[must_use]
    pub fn worker(&self, store: Arc<Store>) -> Worker {
        Worker::new(Arc::clone(&self.executor), store, self.worker)
    }

    /// What runs this application as a worker over the broker of the settings.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; the plugins are stopped then.
    pub async fn starter(self) -> Result<Starter, BrokerError> {
        match self.open_broker().await {
            Ok(store) => Ok(self.starter_over(store)),
            Err(error) => {
                self.stop().await;
                Err(error)
            }
        }
    }

    /// What runs this application as a worker over `store`.
    #[must_use]
    pub fn starter_over(self, store: Arc<Store>) -> Starter {
        Starter::new(self.replacer, store, self.worker)
    }

    /// What this application is and does, for people and programs to look at.
    #[must_use]
    pub fn stats(&self, store: Arc<Store>) -> Stats {
        Stats::new(Arc::clone(&self.replacer), store, self.worker)
    }

    /// What asks this application's plugins about the errors that `store` has on record. They are told nothing of what is read.
    #[must_use]
    pub fn replay<'a>(&'a self, store: &'a Store) -> Replay<'a> {
        Replay::new(&self.executor, store.backend().as_ref())
    }

    /// Runs one task to its end, all its attempts, with no broker.
    pub async fn run(&self, task: Task) -> TaskReport {
        crate::worker::run_to_end(&self.executor, task).await
    }

    /// Stops the plugins. What still runs in them keeps its plugin alive; nothing is unloaded.
    pub async fn stop(self) {
        self.replacer.stop().await;
    }
}
