//! What an application is and does, as people and programs look at it: QTasks' component `Stats`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use qtasks_plugin_api::Trigger;
use serde::{Serialize, Serializer};
use tokio::signal::unix::Signal;

use crate::broker::{BrokerError, Component, Counts, Store};
use crate::plugin::{Isolation, LoadReport, LoadState, Origin, Plugin, PluginIdentity};
use crate::replacer::Replacer;
use crate::shown::{chain, path_as_text, shown};
use crate::signals::caught;
use crate::task::{Intercept, TaskExecutor, TaskFunction, TaskLimits};
use crate::worker::WorkerSettings;

/// Looks at an application. Each look fires `stats_inspect`.
#[derive(Debug)]
pub struct Stats {
    executor: Arc<TaskExecutor>,
    store: Arc<Store>,
    worker: WorkerSettings,
    replacer: Arc<Replacer>,
}

/// What an application is.
///
/// ```json
/// {"project": "QueueTasks", "version": "0.1.0", "broker": {"name": "SqliteBroker", "url": "sqlite:tasks.db"},
///  "storage": {…}, "settings": {…}, "plugins": [{…}], "tasks": [{…}]}
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct AppStats {
    /// The project.
    pub project: Arc<str>,
    /// This program's version.
    pub version: &'static str,
    /// Where tasks wait; no password is shown.
    pub broker: Component,
    /// Where results stay.
    pub storage: Component,
    /// How it works.
    pub settings: SettingsStats,
    /// Its plugins, those that were refused among them.
    pub plugins: Vec<PluginStats>,
    /// The tasks that it knows.
    pub tasks: Vec<TaskStats>,
}

/// The settings that say how tasks are run. Times in seconds; `null` is no limit.
#[derive(Debug, Clone, Serialize)]
pub struct SettingsStats {
    /// Tasks that run at once.
    pub concurrency: usize,
    /// Tasks that a worker takes ahead at most.
    pub prefetch: usize,
    /// Time that what runs may take to end when the worker is stopped.
    pub drain_deadline: f64,
    /// How long results are kept.
    pub keep_results: f64,
    /// How long decisions are kept.
    pub keep_decisions: f64,
    /// Longest time for one attempt.
    pub max_time: Option<f64>,
    /// Runs that a plugin's `retry_after` may lead to, where the task does not say.
    pub max_attempts: u32,
    /// Longest delay before a retry.
    pub max_retry_delay: f64,
    /// Which failures the plugins are asked about.
    pub intercept: Intercept,
}

/// A plugin, or a file that was meant to be one.
#[derive(Debug, Clone, Serialize)]
pub struct PluginStats {
    /// Name, version and digest, where they could be read.
    #[serde(flatten)]
    pub identity: Option<PluginIdentity>,
    /// Where it was found; absent for one that is linked in.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_path")]
    pub path: Option<PathBuf>,
    /// How it stands.
    pub state: PluginState,
    /// Why it is not asked, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it has a process of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Its place in the order of dispatch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// The triggers that it handles; `global` is every one.
    pub handlers: Vec<String>,
    /// The tasks that it provides.
    pub tasks: Vec<String>,
}

/// How a plugin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    /// It is asked.
    Running,
    /// It is no longer asked, since it hangs or its process keeps ending.
    Tripped,
    /// The operator disabled it.
    Disabled,
    /// It was refused.
    Refused,
}

impl PluginState {
    /// Its name in messages and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Tripped => "tripped",
            Self::Disabled => "disabled",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for PluginStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.identity, &self.path) {
            (Some(identity), _) => write!(f, "plugin {identity}")?,
            (None, Some(path)) => write!(f, "file {}", shown(path))?,
            (None, None) => f.write_str("plugin")?,
        }
        write!(f, ": {}", self.state.name())?;
        match &self.reason {
            Some(reason) => write!(f, ": {}", shown(reason)),
            None => Ok(()),
        }
    }
}

/// A task that can run. Times in seconds; where a limit is absent, the general one of the settings holds.
#[derive(Debug, Clone, Serialize)]
pub struct TaskStats {
    /// Its name.
    pub name: String,
    /// `application`, `command`, or a plugin's name.
    pub provided_by: String,
    /// Whether its result is the list of what it yields.
    pub generator: bool,
    /// Its own limits.
    #[serde(flatten)]
    pub limits: TaskLimits,
}

impl Stats {
    pub(crate) fn new(replacer: Arc<Replacer>, store: Arc<Store>, worker: WorkerSettings) -> Self {
        Self { executor: Arc::clone(replacer.executor()), store, worker, replacer }
    }

    /// What the application is.
    pub async fn app(&self) -> AppStats {
        self.inspect().await;
        let mut plugins = Vec::new();
        for plugin in self.executor.dispatcher().registry().plugins() {
            plugins.push(PluginStats::of(plugin).await);
        }
        plugins.extend(self.replacer.reports().iter().filter_map(PluginStats::of_file));
        AppStats {
            project: Arc::clone(self.store.project()),
            version: env!("CARGO_PKG_VERSION"),
            broker: self.store.broker().clone(),
            storage: self.store.storage().clone(),
            settings: self.settings(),
            plugins,
            tasks: self.executor.tasks().iter().map(TaskStats::of).collect(),
        }
    }

    /// Every task that the application knows, by name.
    pub async fn tasks(&self) -> Vec<TaskStats> {
        self.inspect().await;
        self.executor.tasks().iter().map(TaskStats::of).collect()
    }

    /// One task that the application knows.
    pub async fn task(&self, name: &str) -> Option<TaskStats> {
        self.inspect().await;
        self.executor.tasks().get(name).map(|function| TaskStats::of(function))
    }

    /// How many tasks there are in the store.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn counts(&self) -> Result<Counts, BrokerError> {
        self.inspect().await;
        self.store.backend().counts().await
    }

    /// Says in the log how each plugin stands and how many tasks there are, at each signal; until it is dropped.
    pub(crate) async fn tell_when_asked(self, mut asked: Option<Signal>) {
        while caught(&mut asked).await.is_some() {
            let app = self.app().await;
            let url = app.broker.url.as_deref().unwrap_or_default();
            tracing::info!("SIGUSR1: project {} at {url}, host {}", app.project, app.version);
            for plugin in &app.plugins {
                match plugin.state {
                    PluginState::Running | PluginState::Disabled => tracing::info!("{plugin}"),
                    PluginState::Tripped | PluginState::Refused => tracing::warn!("{plugin}"),
                }
            }
            match self.store.backend().counts().await {
                Ok(Counts { new, delayed, process, .. }) => {
                    tracing::info!("tasks: {new} wait, {delayed} of them for a later time; {process} are being run");
                }
                Err(error) => tracing::warn!("how many tasks there are cannot be told: {}", chain(&error)),
            }
        }
    }

    async fn inspect(&self) {
        #[derive(Serialize)]
        struct Kwargs {
            stats: Component,
        }
        let stats = Component { name: "Stats", url: self.store.broker().url.clone() };
        self.store.dispatcher().fire(Trigger::StatsInspect, &Kwargs { stats }).await;
    }

    fn settings(&self) -> SettingsStats {
        let executor = self.executor.settings();
        SettingsStats {
            concurrency: self.worker.concurrency,
            prefetch: self.store.backend().prefetch(self.worker.prefetch),
            drain_deadline: self.worker.drain_deadline.as_secs_f64(),
            keep_results: self.worker.keep_results.as_secs_f64(),
            keep_decisions: self.worker.keep_decisions.as_secs_f64(),
            max_time: executor.max_time.map(|time| time.as_secs_f64()),
            max_attempts: executor.max_attempts,
            max_retry_delay: executor.max_retry_delay.as_secs_f64(),
            intercept: executor.intercept,
        }
    }
}

impl PluginStats {
    async fn of(plugin: &Plugin) -> Self {
        let reason = plugin.tripped().await;
        let path = match plugin.origin() {
            Origin::Library { path, .. } => Some(path.clone()),
            Origin::LinkedIn => None,
        };
        let manifest = plugin.manifest();
        Self {
            identity: Some(PluginIdentity::clone(plugin.identity())),
            path,
            state: if reason.is_some() { PluginState::Tripped } else { PluginState::Running },
            reason,
            isolation: Some(plugin.settings().isolation),
            priority: Some(plugin.priority()),
            handlers: manifest.handlers.iter().map(|handler| handler.trigger.clone()).collect(),
            tasks: manifest.tasks.iter().map(|task| task.name.clone()).collect(),
        }
    }

    /// A file that did not become a plugin.
    fn of_file(report: &LoadReport) -> Option<Self> {
        let state = match report.state {
            LoadState::Running => return None,
            LoadState::Disabled => PluginState::Disabled,
            LoadState::Found | LoadState::Refused => PluginState::Refused,
        };
        let manifest = report.manifest.as_ref();
        let identity = manifest.map(|manifest| PluginIdentity {
            name: manifest.name.as_str().into(),
            version: manifest.version.as_str().into(),
            digest: None,
        });
        Some(Self {
            identity,
            path: Some(report.path.clone()),
            state,
            reason: report.reason(),
            isolation: None,
            priority: None,
            handlers: manifest.iter().flat_map(|it| &it.handlers).map(|handler| handler.trigger.clone()).collect(),
            tasks: manifest.iter().flat_map(|it| &it.tasks).map(|task| task.name.clone()).collect(),
        })
    }
}

impl TaskStats {
    fn of(function: &TaskFunction) -> Self {
        Self {
            name: function.name().to_owned(),
            provided_by: function.provided_by().to_owned(),
            generator: function.is_generator(),
            limits: function.limits().clone(),
        }
    }
}

fn optional_path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => path_as_text(path, serializer),
        None => serializer.serialize_none(),
    }
}
