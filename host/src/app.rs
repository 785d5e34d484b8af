//! The application: tasks, plugins and settings put together, and started.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use qtasks_plugin_api::nearest::nearest;
use qtasks_plugin_api::{Export, TaskContext, TaskError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broker::{BrokerError, BrokerUrl};
use crate::plugin::load_error::GUEST_PROGRAM_EXPECTED;
use crate::plugin::registry::stop;
use crate::plugin::start_watch::{Late, Unfinished};
use crate::plugin::verdicts::Verdicts;
use crate::plugin::watch::DirectoryWatch;
use crate::plugin::{
    DiscoverError, LoadErrorKind, LoadPolicy, Loaded, Loader, Plugin, PluginSettings, Registry, RegistryError, Triggers,
};
use crate::private_dir::{self, StateDirError};
use crate::replacer::{Replacer, ReplacerSettings};
use crate::running::Running;
use crate::settings::Settings;
use crate::shown::{chain, shown};
use crate::signals::Signals;
use crate::starter::Ran;
use crate::task::{Middleware, TaskExecutor, TaskLimits, TaskRegistry, TaskRegistryError};
use crate::trigger::Dispatcher;

/// Gives the plugin's name, and the plugin unless the operator disabled it.
type LinkedIn = Box<dyn FnOnce(&Loader<'_>, &[Arc<Plugin>]) -> Result<(String, Option<Plugin>), LoadErrorKind> + Send>;

/// An application before its start: register tasks, link plugins in, then [`App::start`].
///
/// One that loads libraries from a `plugin_dir` calls [`guest::run_if_asked`](crate::guest::run_if_asked) first in `main`: they are probed in
/// another process of the same program.
///
/// ```
/// use qtasks_host::{App, Settings, Task, TaskContext, TaskError};
/// use serde_json::json;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut app = App::new(Settings::default());
/// app.task("add", async |_ctx: TaskContext, (a, b): (i64, i64), _kwargs: ()| {
///     a.checked_add(b).ok_or_else(|| TaskError::from("too large"))
/// });
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let running = app.start().await?;
/// let report = running.run(Task::new("add")?.with_arguments(json!([1, 2]), json!({}))?).await;
/// assert_eq!(report.returning.as_deref().map(|json| json.get()), Some("3"));
/// running.stop().await;
/// # Ok(()) })
/// # }
/// ```
pub struct App {
    settings: Settings,
    tasks: TaskRegistry,
    middlewares: Vec<Box<dyn Middleware>>,
    linked_in: Vec<LinkedIn>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("settings", &self.settings).field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

/// Why an application does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The plugin directory cannot be searched.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// Where verdicts and data would lie is nobody's, or somebody else's.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// Libraries are to be probed, and there is nothing to probe them with.
    #[error(
        "plugin_dir is {}, whose libraries are probed in a process of their own before they are loaded, and there is no program for it; {GUEST_PROGRAM_EXPECTED}",
        shown(directory)
    )]
    NoGuestProgram {
        /// The plugin directory.
        directory: PathBuf,
    },
    /// A plugin that is linked in was refused.
    #[error("a plugin that is linked into the application was refused: {}", chain(&**.0))]
    LinkedIn(Box<LoadErrorKind>),
    /// Settings for a plugin that is not there.
    #[error("[plugins.{name}]: no plugin of this name was found in {place}{hint}")]
    UnknownPlugin {
        /// The name in the settings.
        name: String,
        /// Where was looked.
        place: String,
        /// The nearest found one, as words.
        hint: String,
    },
    /// The plugins do not go together.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The tasks do not go together.
    #[error(transparent)]
    Tasks(#[from] TaskRegistryError),
    /// A plugin hangs in this process, where nobody can end it.
    #[error(
        "plugin {} did not start within {} s and hangs in the host{}; or give it a process of its own with [plugins.{}] isolation = \"process\"",
        .0.plugin, .0.deadline.as_secs_f64(),
        if .0.quarantined { ": it is in quarantine now, start again and the others run" } else { ": disable it" },
        .0.plugin
    )]
    Hangs(Late),
    /// Loading ended without a word.
    #[error("the thread that loads plugins ended: {0}")]
    Lost(String),
}

/// Why an application does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its broker cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl App {
    /// An application with these settings, without tasks.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, tasks: TaskRegistry::default(), middlewares: Vec::new(), linked_in: Vec::new() }
    }

    /// Registers an async task: an `async fn` or `async |ctx, args, kwargs| …`, with `args` read from a JSON list (a tuple, a `Vec`, or
    /// `()`) and `kwargs` from a JSON object (a struct, a map, or `()`).
    ///
    /// What a closure captures it keeps for the next run, so each run gets a clone:
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use qtasks_host::{App, Settings, TaskContext, TaskError};
    /// # let mut app = App::new(Settings::default());
    /// let sizes: Arc<[u32]> = [640, 1280].into();
    /// app.task("size", move |_ctx: TaskContext, (index,): (usize,), _kwargs: ()| {
    ///     let sizes = Arc::clone(&sizes);
    ///     async move { sizes.get(index).copied().ok_or_else(|| TaskError::from("no such size")) }
    /// });
    /// ```
    pub fn task<F, A, K, T, E, Fut>(&mut self, name: &str, function: F) -> &mut Self
    where
        F: Fn(TaskContext, A, K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.tasks.asynchronous(name, TaskLimits::default(), function);
        self
    }

    /// Registers a sync task that may wait: it runs on a thread made for that.
    pub fn blocking_task<F, A, K, T, E>(&mut self, name: &str, function: F) -> &mut Self
    where
        F: Fn(&TaskContext, A, K) -> Result<T, E> + Send + Sync + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.tasks.blocking(name, TaskLimits::default(), function);
        self
    }

    /// Registers a sync task that is short and never waits: it runs on the worker's own thread.
    pub fn inline_task<F, A, K, T, E>(&mut self, name: &str, function: F) -> &mut Self
    where
        F: Fn(&TaskContext, A, K) -> Result<T, E> + Send + Sync + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.tasks.inline(name, TaskLimits::default(), function);
        self
    }

    /// Registers a task that yields several results: what `function` gives is iterated on a thread where waiting is allowed, and the
    /// task's result is the list of what came. The first error ends the task. Once nobody waits any more, no further item is asked for.
    ///
    /// ```
    /// # use qtasks_host::{App, Settings, TaskError};
    /// # let mut app = App::new(Settings::default());
    /// app.generator_task("lines", |_ctx, (path,): (String,), (): ()| {
    ///     let text = std::fs::read_to_string(path)?;
    ///     Ok::<_, TaskError>(text.lines().map(|line| Ok(line.to_owned())).collect::<Vec<_>>())
    /// });
    /// ```
    pub fn generator_task<F, A, K, I, T, E>(&mut self, name: &str, function: F) -> &mut Self
    where
        F: Fn(TaskContext, A, K) -> Result<I, E> + Send + Sync + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        I: IntoIterator<Item = Result<T, E>>,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.tasks.generator(name, TaskLimits::default(), function);
        self
    }

    /// Links a plugin in, asked for `triggers`. Its settings are `[plugins.NAME]` as for any other; no library is loaded.
    pub fn add_plugin<P: Export>(&mut self, triggers: Triggers) -> &mut Self {
        self.linked_in.push(Box::new(move |loader, others| {
            let (name, settings) = loader.settings_of::<P>()?;
            if !settings.enabled {
                return Ok((name, None));
            }
            let triggers = if settings.triggers == Triggers::Handled { triggers } else { settings.triggers.clone() };
            let plugin = loader.linked_in::<P>(PluginSettings { triggers, ..settings }, others)?;
            Ok((name, Some(plugin)))
        }));
        self
    }

    /// Adds code that runs around every task, after what was added before.
    pub fn middleware(&mut self, middleware: impl Middleware) -> &mut Self {
        self.middlewares.push(Box::new(middleware));
        self
    }

    /// Starts, opens the broker of the settings, and runs a worker until SIGTERM or Ctrl-C: then nothing more is begun, what runs may
    /// end, and a second signal stops at once. Everything in between is [`App::start`], [`Running::starter`] and
    /// [`Starter::run`](crate::starter::Starter::run).
    ///
    /// ```no_run
    /// # use qtasks_host::{App, Settings, TaskContext, TaskError};
    /// # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut app = App::new(Settings { broker: Some("sqlite:tasks.db".parse()?), ..Settings::default() });
    /// app.task("add", async |_ctx: TaskContext, (a, b): (i64, i64), _kwargs: ()| Ok::<_, TaskError>(a + b));
    /// app.run().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RunError`].
    pub async fn run(self) -> Result<Ran, RunError> {
        let mut signals = Signals::catch();
        let Some(running) = self.start_until_told(&mut signals).await else { return Ok(Ran::AtOnce) };
        Ok(running?.starter().await?.with_signals(signals).run().await?)
    }

    /// [Starts](Self::start), unless a second signal comes meanwhile, which gives `None`. A first one waits, since a probe that is cut
    /// off says nothing good of its library; at the second one, what was under probe is as unknown as before.
    pub async fn start_until_told(self, signals: &mut Signals) -> Option<Result<Running, StartError>> {
        let state_dir = &self.settings.state_dir;
        let verdicts = Verdicts::new(&std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.clone()));
        let started = signals.during(self.start()).await;
        if started.is_none() {
            verdicts.give_up_probes();
        }
        started
    }

    /// Loads the plugins, completes the tasks, and is ready to run. A plugin library that is refused stops nothing: see
    /// [`Running::plugin_reports`].
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(mut self) -> Result<Running, StartError> {
        private_dir::check(&self.settings.state_dir)?;
        // A library may change the working directory when it is loaded; what comes after it must be found all the same.
        let Settings { state_dir, guest_program, plugin_dir, lock_file, broker, .. } = &mut self.settings;
        let file_of_tasks = match broker {
            Some(BrokerUrl::Sqlite { path, .. }) => Some(path),
            _ => None,
        };
        let paths = [Some(state_dir), guest_program.as_mut(), plugin_dir.as_mut(), lock_file.as_mut(), file_of_tasks];
        for path in paths.into_iter().flatten() {
            *path = std::path::absolute(&*path).unwrap_or_else(|_| std::mem::take(path));
        }
        let mut policy = self.settings.load_policy();
        policy.own_tasks.extend(self.tasks.iter().map(|task| task.name().to_owned()));
        let (watch, state_dir) = (Arc::clone(&policy.watch), policy.state_dir.clone());
        // Before it is looked at: what changes from here on is seen.
        let changes = self.watch();
        // A plugin's create and start may wait.
        match watch.load(state_dir, move || self.start_here(policy, changes)).await {
            Ok(Ok(running)) => Ok(running),
            Ok(Err((error, came_up))) => {
                for plugin in came_up {
                    stop(plugin).await;
                }
                Err(error)
            }
            Err(Unfinished::Hangs(late)) => Err(StartError::Hangs(late)),
            Err(Unfinished::Lost(said)) => Err(StartError::Lost(said)),
        }
    }

    fn watch(&self) -> Option<DirectoryWatch> {
        let Settings { watch: true, safe_mode: false, plugin_dir: Some(directory), .. } = &self.settings else { return None };
        let watch = DirectoryWatch::new(directory, self.settings.lock_file.as_deref());
        watch.inspect_err(|error| tracing::error!("{} is not watched for changes: {error}", shown(directory))).ok()
    }

    /// On failure gives the plugins that came up, too, which are to be stopped.
    fn start_here(self, policy: LoadPolicy, changes: Option<DirectoryWatch>) -> Result<Running, (StartError, Vec<Arc<Plugin>>)> {
        let mut loaded = Loaded::default();
        self.put_together(&mut loaded, policy, changes).map_err(|error| (error, loaded.plugins))
    }

    fn put_together(
        self,
        loaded: &mut Loaded,
        policy: LoadPolicy,
        changes: Option<DirectoryWatch>,
    ) -> Result<Running, StartError> {
        let Self { settings, tasks, middlewares, linked_in } = self;
        let loader = Loader { settings: &settings.plugins, policy: &policy };
        let mut linked_names = Vec::new();
        for link in linked_in {
            let (name, plugin) = link(&loader, &loaded.plugins).map_err(|kind| StartError::LinkedIn(Box::new(kind)))?;
            loaded.plugins.extend(plugin.map(Arc::new));
            linked_names.push(name);
        }
        match &settings.plugin_dir {
            Some(directory) if settings.safe_mode => {
                tracing::warn!("safe mode: nothing is loaded from {}", shown(directory));
            }
            // One by one they would be refused, and nobody might look.
            Some(directory) if policy.probe && policy.guest_program.is_none() => {
                return Err(StartError::NoGuestProgram { directory: directory.clone() });
            }
            Some(directory) => loader.load_directory(directory, loaded)?,
            None => {}
        }
        check_names(&settings, loaded, &linked_names)?;
        let registry = Registry::new(loaded.plugins.clone())?;
        let tasks = tasks.complete(&registry, &settings.tasks, &settings.state_dir, &loaded.reports, settings.safe_mode)?;
        warn_of_limits(&settings);
        warn_of_retries(&settings, &tasks);
        warn_of_configurations(&settings, &tasks);
        let dispatcher = Arc::new(Dispatcher::new(registry, &settings.triggers));
        let executor = Arc::new(TaskExecutor::new(tasks, dispatcher, middlewares, settings.executor()));
        let (broker, worker) = (settings.broker(), settings.worker());
        let replacing = ReplacerSettings {
            directory: settings.plugin_dir.filter(|_| !settings.safe_mode),
            policy,
            plugins: settings.plugins,
            tasks: settings.tasks,
            drain_deadline: settings.drain_deadline,
        };
        let replacer = Arc::new(Replacer::new(replacing, Arc::clone(&executor), std::mem::take(&mut loaded.reports), changes));
        Ok(Running { executor, broker, worker, replacer })
    }
}

/// Every `[plugins.NAME]` must be somebody's. A library whose manifest cannot be read might be the one that is meant, so then it
/// is only warned about.
fn check_names(settings: &Settings, loaded: &Loaded, linked_names: &[String]) -> Result<(), StartError> {
    let mut known: BTreeMap<&str, ()> = linked_names.iter().map(|name| (name.as_str(), ())).collect();
    known.extend(loaded.reports.iter().filter_map(|report| report.name().map(|name| (name, ()))));
    let nameless = settings.safe_mode || loaded.reports.iter().any(|report| report.name().is_none());
    let place = settings.plugin_dir.as_ref().map_or_else(|| "the application".to_owned(), |path| shown(path).to_string());
    for name in settings.plugins.keys().filter(|name| !known.contains_key(name.as_str())) {
        let hint = nearest(name, known.keys().copied());
        if !nameless {
            return Err(StartError::UnknownPlugin { name: name.clone(), place, hint });
        }
        tracing::warn!("[plugins.{name}]: no plugin of this name was found in {place}{hint}");
    }
    Ok(())
}

/// Limits that would silently not hold.
fn warn_of_limits(settings: &Settings) {
    for (name, plugin) in &settings.plugins {
        let keys = plugin.limits_without_a_process();
        if !keys.is_empty() {
            let keys = keys.join(", ");
            tracing::warn!(
                "[plugins.{name}] {keys}: only a process of its own has limits; expected isolation = \"process\" beside it"
            );
        }
    }
}

/// Retries that would silently never happen.
fn warn_of_retries(settings: &Settings, tasks: &TaskRegistry) {
    for (name, task) in &settings.tasks {
        for kind in task.retry_on.iter().flatten() {
            if let Some(meant) = settings.error_kinds.meant_by(kind) {
                tracing::warn!(
                    "[tasks.{name}] retry_on: no error kind {kind} is known, only {meant}; yours belong to [error_kinds]"
                );
            }
        }
        let retries = task.retry_on.is_some() || task.retry_delay.is_some() || task.retry_backoff.is_some();
        if retries && tasks.get(name).is_some_and(|function| function.limits().attempts.is_none()) {
            tracing::warn!("[tasks.{name}]: without `attempts`, only tasks that say their own are tried again");
        }
    }
}

/// Configurations that nobody would read.
fn warn_of_configurations(settings: &Settings, tasks: &TaskRegistry) {
    for (name, _) in settings.tasks.iter().filter(|(_, task)| !task.config.is_empty()) {
        match tasks.get(name).map(|function| function.provided_by()) {
            None | Some("application") => {}
            Some("command") => {
                tracing::warn!("[tasks.{name}.config] is read by nobody: a command gets its arguments and nothing else");
            }
            Some(plugin) => tracing::warn!(
                "[tasks.{name}.config] is read by nobody: the task is the plugin's, and reads [plugins.{plugin}.config]"
            ),
        }
    }
}
