//! Who is asked for which trigger, in which order. Built whole and swapped whole, so that dispatch takes no lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::Trigger;
use qtasks_plugin_api::manifest::{GLOBAL, Mode};
use qtasks_plugin_api::nearest::nearest;

use super::instance::Plugin;
use super::settings::{AnswerMode, Triggers};

/// One handler of one plugin, in its place.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// The handler's number in it.
    pub entry: u32,
    /// How it runs.
    pub mode: Mode,
    /// What its answer does, where the operator said so for this plugin.
    pub answers: Option<AnswerMode>,
}

/// A task that a plugin provides.
#[derive(Debug, Clone)]
pub struct ProvidedTask {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// The task's number in it.
    pub entry: u32,
    /// How it runs.
    pub mode: Mode,
}

/// Why plugins do not go together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The operator says something of a trigger that the plugin does not handle.
    #[error("[plugins.{plugin}] {setting} names {trigger}, which the plugin does not handle (it handles: {handled}){hint}")]
    NotHandled {
        /// The plugin.
        plugin: String,
        /// `triggers` or `answers`.
        setting: &'static str,
        /// The trigger.
        trigger: Trigger,
        /// What it handles.
        handled: String,
        /// The nearest, as words.
        hint: String,
    },
    /// The operator says what an answer to a trigger does, and that the plugin is not asked for it.
    #[error("[plugins.{plugin}] answers names {trigger}, which `triggers` leaves out; add it there, or remove it here")]
    NotAsked {
        /// The plugin.
        plugin: String,
        /// The trigger.
        trigger: Trigger,
    },
}

/// The plugins in use.
#[derive(Debug)]
pub struct Registry {
    plugins: Vec<Arc<Plugin>>,
    /// Indexed by [`Trigger::index`].
    subscriptions: Vec<Box<[Subscription]>>,
    tasks: BTreeMap<String, ProvidedTask>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { plugins: Vec::new(), subscriptions: vec![Box::default(); Trigger::COUNT], tasks: BTreeMap::new() }
    }
}

/// A plugin gets this long to stop.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// A process that missed it is killed within this time.
const GRACE: Duration = Duration::from_secs(1);

/// A subscription's place: plugins that name the trigger, then global ones; by priority, then by name.
type Place = (bool, std::cmp::Reverse<i64>, Arc<str>, u32);

impl Registry {
    /// Puts plugins together. Their names are distinct, and each task has one provider; the loader has seen to that.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] when a plugin is to be asked for what it does not handle.
    pub fn new(plugins: Vec<Arc<Plugin>>) -> Result<Self, RegistryError> {
        let mut places: Vec<Vec<(Place, Subscription)>> = vec![Vec::new(); Trigger::COUNT];
        let mut tasks = BTreeMap::new();
        for plugin in &plugins {
            subscribe(plugin, &mut places)?;
            provide(plugin, &mut tasks);
        }
        let subscriptions = places
            .into_iter()
            .map(|mut list| {
                list.sort_by(|left, right| left.0.cmp(&right.0));
                list.into_iter().map(|(_, subscription)| subscription).collect()
            })
            .collect();
        Ok(Self { plugins, subscriptions, tasks })
    }

    /// Who is asked for `trigger`, in order.
    #[must_use]
    pub fn subscriptions(&self, trigger: Trigger) -> &[Subscription] {
        &self.subscriptions[trigger.index()]
    }

    /// All plugins, in order of their names.
    #[must_use]
    pub fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }

    /// Stops the plugins, one after the other. What still runs in them keeps its plugin alive; nothing is unloaded.
    pub async fn stop(&self) {
        for plugin in &self.plugins {
            stop(Arc::clone(plugin)).await;
        }
    }

    /// The tasks that plugins provide, by name.
    #[must_use]
    pub fn tasks(&self) -> &BTreeMap<String, ProvidedTask> {
        &self.tasks
    }
}

/// Stops a plugin, and lets go of it on a thread where its destruction may wait.
pub(crate) async fn stop(plugin: Arc<Plugin>) {
    let identity = Arc::clone(plugin.identity());
    let stopped = tokio::task::spawn_blocking(move || plugin.stop(STOP_DEADLINE));
    let said = match tokio::time::timeout(STOP_DEADLINE + GRACE, stopped).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(said))) => said,
        Ok(Err(error)) => error.to_string(),
        // Its thread is left to itself: nobody can end it.
        Err(_) => format!("did not stop within {} s", STOP_DEADLINE.as_secs()),
    };
    tracing::warn!(plugin = %identity.name, "the plugin did not stop cleanly: {said}");
}

fn subscribe(plugin: &Arc<Plugin>, places: &mut [Vec<(Place, Subscription)>]) -> Result<(), RegistryError> {
    let handlers = &plugin.manifest().handlers;
    let (wanted, last) = match &plugin.settings().triggers {
        Triggers::Handled => (None, false),
        Triggers::Global => (None, true),
        Triggers::Only(wanted) => (Some(wanted), false),
    };
    let named = wanted.into_iter().flatten().map(|trigger| ("triggers", trigger));
    let named = named.chain(plugin.settings().answers.keys().map(|trigger| ("answers", trigger)));
    for (setting, trigger) in named {
        if !handles(plugin, *trigger) {
            return Err(RegistryError::NotHandled {
                plugin: plugin.name().to_owned(),
                setting,
                trigger: *trigger,
                handled: handlers.iter().map(|handler| handler.trigger.as_str()).collect::<Vec<_>>().join(", "),
                hint: nearest(trigger.name(), handlers.iter().map(|handler| handler.trigger.as_str())),
            });
        }
    }
    let asked = |trigger: &Trigger| wanted.is_none_or(|wanted| wanted.contains(trigger));
    if let Some(trigger) = plugin.settings().answers.keys().find(|trigger| !asked(trigger)) {
        return Err(RegistryError::NotAsked { plugin: plugin.name().to_owned(), trigger: *trigger });
    }
    for trigger in Trigger::ALL.iter().copied() {
        if !asked(&trigger) {
            continue;
        }
        let named = handlers.iter().any(|handler| handler.trigger == trigger.name());
        let name = if named { trigger.name() } else { GLOBAL };
        for (entry, handler) in (0u32..).zip(handlers).filter(|(_, handler)| handler.trigger == name) {
            let after_named = last || (!named && wanted.is_none());
            let place = (after_named, std::cmp::Reverse(plugin.priority()), Arc::clone(&plugin.identity().name), entry);
            let answers = plugin.settings().answers.get(&trigger).copied();
            let subscription = Subscription { plugin: Arc::clone(plugin), entry, mode: handler.mode, answers };
            places[trigger.index()].push((place, subscription));
        }
    }
    Ok(())
}

fn handles(plugin: &Plugin, trigger: Trigger) -> bool {
    plugin.manifest().handlers.iter().any(|handler| handler.trigger == trigger.name() || handler.trigger == GLOBAL)
}

fn provide(plugin: &Arc<Plugin>, tasks: &mut BTreeMap<String, ProvidedTask>) {
    let first_task = plugin.manifest().handlers.len();
    for (entry, task) in (0u32..).skip(first_task).zip(&plugin.manifest().tasks) {
        tasks.insert(task.name.clone(), ProvidedTask { plugin: Arc::clone(plugin), entry, mode: task.mode });
    }
}
