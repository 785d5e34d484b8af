//! Replaces plugins while the application runs: what lies in the plugin directory now is what runs from then on.
//!
//! A library whose bytes are unchanged keeps its instance. Other bytes go through the stages of the start, beside what runs; only
//! when all that came up goes together are registry and tasks built anew, whole, and swapped. What made room is drained and
//! stopped. What is refused leaves what ran in its place serving.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, watch};

use crate::plugin::registry::stop;
use crate::plugin::replace::drain;
use crate::plugin::start_watch::{Late, Step, Unfinished};
use crate::plugin::verdicts::Verdicts;
use crate::plugin::watch::DirectoryWatch;
use crate::plugin::{
    DiscoverError, LoadPolicy, LoadReport, Loaded, Loader, Plugin, PluginIdentity, PluginSettings, Registry, RegistryError,
};
use crate::shown::chain;
use crate::signals::caught;
use crate::task::{TaskExecutor, TaskRegistry, TaskRegistryError, TaskSettings};

/// What stays as the application was started with.
#[derive(Debug)]
pub(crate) struct ReplacerSettings {
    /// `None`: there is none, or nothing is to be loaded from it.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) policy: LoadPolicy,
    pub(crate) plugins: BTreeMap<String, PluginSettings>,
    pub(crate) tasks: BTreeMap<String, TaskSettings>,
    pub(crate) drain_deadline: Duration,
}

/// Replaces the plugins of a started application.
#[derive(Debug)]
pub struct Replacer {
    settings: ReplacerSettings,
    executor: Arc<TaskExecutor>,
    reports: ArcSwap<Vec<LoadReport>>,
    /// What tells of changes in the directory since before it was looked at first; taken by who follows them.
    watch: Mutex<Option<DirectoryWatch>>,
    /// Held during a replacement: one at a time. `true` once the application stops, and there are no more.
    stopped: Mutex<bool>,
    /// How many plugins are on their way out.
    draining: Arc<watch::Sender<usize>>,
    /// Whether those on their way out are not waited for.
    at_once: watch::Sender<bool>,
    /// A plugin that hangs while it is loaded, once there is one.
    linker_held_by: watch::Sender<Option<Late>>,
}

/// What a replacement did.
///
/// ```json
/// [{"old": {"plugin": "fallback", "version": "0.1.0", "digest": "…"}, "new": {"plugin": "fallback", "version": "0.2.0", "digest": "…"}}]
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Replaced {
    /// One for each plugin that came or went, by name; empty when everything stayed as it was.
    pub changes: Vec<Change>,
}

/// A plugin that came, went, or made room for another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What ran before; absent for one that is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Arc<PluginIdentity>>,
    /// What runs now; absent for one whose file is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Arc<PluginIdentity>>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => write!(f, "{old} was replaced by {new}"),
            (None, Some(new)) => write!(f, "{new} was added"),
            (Some(old), None) => write!(f, "{old} was removed"),
            (None, None) => Ok(()),
        }
    }
}

/// Why nothing was replaced: all that ran before goes on as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// Nowhere to look.
    #[error("no plugin directory is in use; start with one, named by --plugins or `plugin_dir`, and not in safe mode")]
    NoDirectory,
    /// The plugin directory cannot be searched.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The plugins do not go together.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The tasks do not go together.
    #[error(transparent)]
    Tasks(#[from] TaskRegistryError),
    /// A new plugin hangs in this process, and could not be put into quarantine, so it would hang again.
    #[error(
        "plugin {} did not start within {} s and hangs in the host; take its file away, or start with [plugins.{}] isolation = \"process\"",
        .0.plugin, .0.deadline.as_secs_f64(), .0.plugin
    )]
    Hangs(Late),
    /// A library hangs while it is loaded.
    #[error(
        "plugin {} hangs while it is loaded, and holds the dynamic linker: nothing more can be loaded in this process; {}",
        .0.plugin,
        if .0.quarantined { "restart it, the plugin is in quarantine now" } else { "take its file away, and restart it" }
    )]
    LinkerHeld(Late),
    /// Loading ended without a word.
    #[error("the thread that loads plugins ended: {0}")]
    Lost(String),
    /// Too late.
    #[error("the application is being stopped")]
    Stopping,
}

/// All that goes together, before it is put in place.
struct Next {
    registry: Registry,
    tasks: TaskRegistry,
    reports: Vec<LoadReport>,
}

impl Replacer {
    pub(crate) fn new(
        settings: ReplacerSettings,
        executor: Arc<TaskExecutor>,
        reports: Vec<LoadReport>,
        watch: Option<DirectoryWatch>,
    ) -> Self {
        Self {
            settings,
            executor,
            reports: ArcSwap::from_pointee(reports),
            watch: Mutex::new(watch),
            stopped: Mutex::new(false),
            draining: Arc::default(),
            at_once: watch::Sender::new(false),
            linker_held_by: watch::Sender::new(None),
        }
    }

    /// What became of each file in the plugin directory when it was last looked at.
    #[must_use]
    pub fn reports(&self) -> Arc<Vec<LoadReport>> {
        self.reports.load_full()
    }

    pub(crate) fn executor(&self) -> &Arc<TaskExecutor> {
        &self.executor
    }

    /// Makes what lies in the plugin directory what runs. Events and tasks that are under way end with the plugins that they began
    /// with; from when this returns, every other one meets the new ones. What made room is drained beside: see
    /// [`drained`](Self::drained). A refused file is no error, see [`reports`](Self::reports). A second replacement waits for the first.
    ///
    /// # Errors
    ///
    /// [`ReplaceError`]; nothing has changed then.
    pub async fn replace(self: &Arc<Self>) -> Result<Replaced, ReplaceError> {
        // In a task of its own: whoever stops waiting does not leave it half done.
        let replacer = Arc::clone(self);
        tokio::spawn(async move { replacer.replace_here().await })
            .await
            .unwrap_or_else(|lost| Err(ReplaceError::Lost(lost.to_string())))
    }

    async fn replace_here(self: Arc<Self>) -> Result<Replaced, ReplaceError> {
        let stopped = self.stopped.lock().await;
        if *stopped {
            return Err(ReplaceError::Stopping);
        }
        if let Some(late) = self.linker_held_by.borrow().clone() {
            return Err(ReplaceError::LinkerHeld(late));
        }
        let next = self.look().await?;
        let old = self.executor.dispatcher().registry().plugins().to_vec();
        let replaced = Replaced::between(&old, next.registry.plugins());
        let leaving = old.into_iter().filter(|plugin| !holds(next.registry.plugins(), plugin)).collect::<Vec<_>>();
        self.executor.replace(next.registry, next.tasks);
        self.reports.store(Arc::new(next.reports));
        replaced.log();
        for plugin in leaving {
            self.draining.send_modify(|count| *count += 1);
            let (draining, deadline, at_once) =
                (Draining(Arc::clone(&self.draining)), self.settings.drain_deadline, self.at_once.subscribe());
            tokio::spawn(async move {
                drain(plugin, deadline, at_once).await;
                drop(draining);
            });
        }
        Ok(replaced)
    }

    /// Takes what lies in the directory through the stages, on a thread where that may wait.
    async fn look(self: &Arc<Self>) -> Result<Next, ReplaceError> {
        loop {
            // A thread that hangs keeps its own.
            let policy = LoadPolicy { watch: Arc::default(), ..self.settings.policy.clone() };
            let watch = Arc::clone(&policy.watch);
            let replacer = Arc::clone(self);
            let looked =
                Arc::clone(&watch).load(self.settings.policy.state_dir.clone(), move || replacer.look_here(&policy)).await;
            if matches!(&looked, Err(Unfinished::Hangs(late)) if late.step == Step::Start) {
                // They come up once more, or not at all.
                for plugin in watch.came_up() {
                    stop(plugin).await;
                }
            }
            match looked {
                Ok(Ok(next)) => return Ok(next),
                Ok(Err((error, came_up))) => {
                    for plugin in came_up {
                        stop(plugin).await;
                    }
                    return Err(error);
                }
                Err(Unfinished::Hangs(late)) if late.step == Step::Load => {
                    // Others would wait for it, and look as if they hung themselves.
                    self.linker_held_by.send_replace(Some(late.clone()));
                    return Err(ReplaceError::LinkerHeld(late));
                }
                // Those bytes are refused now, and the others are not.
                Err(Unfinished::Hangs(late)) if late.quarantined => {
                    tracing::error!(
                        "plugin {} did not start within {} s and hangs in the host",
                        late.plugin,
                        late.deadline.as_secs_f64()
                    );
                }
                Err(Unfinished::Hangs(late)) => return Err(ReplaceError::Hangs(late)),
                Err(Unfinished::Lost(said)) => return Err(ReplaceError::Lost(said)),
            }
        }
    }

    /// On failure gives the new plugins that came up, too, which are to be stopped.
    fn look_here(&self, policy: &LoadPolicy) -> Result<Next, (ReplaceError, Vec<Arc<Plugin>>)> {
        let running = self.executor.dispatcher().registry();
        let mut loaded = Loaded::beside(running.plugins());
        self.put_together(&mut loaded, policy).map_err(|error| {
            loaded.plugins.retain(|plugin| !holds(running.plugins(), plugin));
            (error, loaded.plugins)
        })
    }

    fn put_together(&self, loaded: &mut Loaded, policy: &LoadPolicy) -> Result<Next, ReplaceError> {
        let directory = self.settings.directory.as_deref().ok_or(ReplaceError::NoDirectory)?;
        Loader { settings: &self.settings.plugins, policy }.load_directory(directory, loaded)?;
        if policy.watch.is_given_up() {
            return Err(ReplaceError::Lost("a plugin was late".to_owned()));
        }
        let registry = Registry::new(loaded.plugins.clone())?;
        let tasks = self.executor.tasks().with_plugins(&registry, &self.settings.tasks, &policy.state_dir)?;
        let tasks = tasks.with_reports(&loaded.reports, false);
        Ok(Next { registry, tasks, reports: std::mem::take(&mut loaded.reports) })
    }

    /// Waits until a library hangs while it is loaded, and gives its plugin. Whoever runs tasks here has to end then: what needs a
    /// new thread would wait for ever.
    pub(crate) async fn linker_held(&self) -> String {
        let mut held = self.linker_held_by.subscribe();
        match held.wait_for(Option::is_some).await.map(|late| late.clone()) {
            Ok(Some(late)) => late.plugin,
            // The sender is in `self`, so the channel cannot close.
            _ => std::future::pending().await,
        }
    }

    /// Waits until all that made room has been stopped.
    pub async fn drained(&self) {
        // The sender is in `self`, so the channel cannot close.
        let _ = self.draining.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Replaces at each SIGHUP, and after each change in the directory where that is wanted; until it is dropped.
    pub(crate) async fn follow(self: Arc<Self>, mut hangups: Option<Signal>) {
        let mut watch = self.watch.lock().await.take();
        loop {
            let changed = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(()) = caught(&mut hangups) => tracing::info!("SIGHUP: looking at the plugin directory again"),
                () = changed => tracing::info!("the plugin directory has changed: looking at it again"),
            }
            if let Err(error) = self.replace().await {
                tracing::error!("no plugin was replaced: {}", chain(&error));
            }
        }
    }

    /// Forgets what is under probe, for whoever ends the process without waiting for it.
    pub(crate) fn give_up_probes(&self) {
        Verdicts::new(&self.settings.policy.state_dir).give_up_probes();
    }

    /// Stops the plugins, those on their way out among them. There is no replacement any more.
    pub(crate) async fn stop(&self) {
        // One that is under way is waited for: what it brings up must be stopped, too.
        *self.stopped.lock().await = true;
        self.at_once.send_replace(true);
        self.executor.dispatcher().registry().stop().await;
        self.drained().await;
    }
}

/// A plugin on its way out; it is gone when this is dropped.
struct Draining(Arc<watch::Sender<usize>>);

impl Drop for Draining {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

fn holds(plugins: &[Arc<Plugin>], plugin: &Arc<Plugin>) -> bool {
    plugins.iter().any(|other| Arc::ptr_eq(other, plugin))
}

impl Replaced {
    fn between(old: &[Arc<Plugin>], new: &[Arc<Plugin>]) -> Self {
        let mut names: BTreeMap<&str, Change> = BTreeMap::new();
        let unchanged = Change { old: None, new: None };
        for plugin in old.iter().filter(|plugin| !holds(new, plugin)) {
            names.entry(plugin.name()).or_insert(unchanged.clone()).old = Some(Arc::clone(plugin.identity()));
        }
        for plugin in new.iter().filter(|plugin| !holds(old, plugin)) {
            names.entry(plugin.name()).or_insert(unchanged.clone()).new = Some(Arc::clone(plugin.identity()));
        }
        Self { changes: names.into_values().collect() }
    }

    fn log(&self) {
        for change in &self.changes {
            tracing::info!("plugin {change}");
        }
        if self.changes.is_empty() {
            tracing::info!("no plugin was replaced: what runs is what lies there, or what lies there was refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_library_that_holds_the_linker_it_is_told_whether_it_is_in_quarantine() {
        let told = |quarantined| {
            let plugin = "slow".to_owned();
            ReplaceError::LinkerHeld(Late { plugin, deadline: Duration::ZERO, step: Step::Load, quarantined }).to_string()
        };
        assert!(told(true).ends_with("restart it, the plugin is in quarantine now"), "{}", told(true));
        assert!(told(false).ends_with("take its file away, and restart it"), "{}", told(false));
    }
}
