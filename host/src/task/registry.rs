//! The tasks that can run, by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use qtasks_plugin_api::nearest::nearest;
use qtasks_plugin_api::{Host, Init, TaskContext, TaskError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::to_raw_value;

use super::command::{CommandError, CommandTask};
use super::function::{Body, TaskFunction, TaskLimits, async_body, generator_body, sync_body};
use super::model::{TaskModelError, checked_name};
use super::settings::TaskSettings;
use crate::plugin::services::TracingServices;
use crate::plugin::{LoadReport, Registry};

/// Why tasks do not go together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskRegistryError {
    /// A name is taken.
    #[error("task {task} is provided by {first} and by {second}; give one of them another name")]
    Twice {
        /// The name.
        task: String,
        /// Who has it.
        first: String,
        /// Who also wants it.
        second: String,
    },
    /// A name under which no task can be asked for.
    #[error("the {provided_by} provides a task under an unusable name")]
    Name {
        /// Who provides it.
        provided_by: String,
        /// What is wrong with the name.
        source: TaskModelError,
    },
    /// Settings for a task that nobody provides.
    #[error("[tasks.{task}]: nobody provides a task of this name, and there is no `command` in it{hint}")]
    Unknown {
        /// The name.
        task: String,
        /// The nearest known one, as words.
        hint: String,
    },
    /// A command that cannot run.
    #[error("[tasks.{task}]")]
    Command {
        /// The task.
        task: String,
        /// Why.
        source: CommandError,
    },
}

/// The tasks that can run.
#[derive(Debug, Default)]
pub struct TaskRegistry {
    /// Shared: a run ends with what it began with, whatever is replaced meanwhile.
    tasks: BTreeMap<Arc<str>, Arc<TaskFunction>>,
    /// Tasks that nobody provides, since the plugin that would is not loaded: why.
    not_loaded: BTreeMap<String, String>,
    /// Why something is not loaded of which nobody knows what it would provide.
    unread: Option<String>,
    /// What was wrong first. Told when the application starts, so that registering stays a plain statement.
    refused: Option<TaskRegistryError>,
}

impl TaskRegistry {
    /// The task of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<TaskFunction>> {
        self.tasks.get(name)
    }

    /// All tasks, by name.
    pub fn iter(&self) -> impl Iterator<Item = &TaskFunction> {
        self.tasks.values().map(AsRef::as_ref)
    }

    /// The nearest known name, as words for a message.
    #[must_use]
    pub fn nearest(&self, name: &str) -> String {
        nearest(name, self.tasks.keys().map(AsRef::as_ref))
    }

    /// Adds a sync closure that may wait: it runs on a thread made for that.
    pub fn blocking<F, A, K, T, E>(&mut self, name: &str, limits: TaskLimits, function: F)
    where
        F: Fn(&TaskContext, A, K) -> Result<T, E> + Send + Sync + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.add_application(name, limits, Body::Blocking(Arc::new(sync_body(function))));
    }

    /// Adds a sync closure that is short and never waits: it runs on the worker's own thread.
    pub fn inline<F, A, K, T, E>(&mut self, name: &str, limits: TaskLimits, function: F)
    where
        F: Fn(&TaskContext, A, K) -> Result<T, E> + Send + Sync + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.add_application(name, limits, Body::Inline(Box::new(sync_body(function))));
    }

    /// Adds an async closure.
    pub fn asynchronous<F, A, K, T, E, Fut>(&mut self, name: &str, limits: TaskLimits, function: F)
    where
        F: Fn(TaskContext, A, K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.add_application(name, limits, Body::Async(Box::new(async_body(function))));
    }

    /// Adds a sync closure that gives something to iterate, which may wait: the result is the list of what it yields.
    pub fn generator<F, A, K, I, T, E>(&mut self, name: &str, limits: TaskLimits, function: F)
    where
        F: Fn(TaskContext, A, K) -> Result<I, E> + Send + Sync + 'static,
        A: DeserializeOwned,
        K: DeserializeOwned,
        I: IntoIterator<Item = Result<T, E>>,
        T: Serialize,
        E: Into<TaskError>,
    {
        self.add_application(name, limits, Body::Generator(Arc::new(generator_body(function))));
    }

    fn add_application(&mut self, name: &str, limits: TaskLimits, body: Body) {
        self.add(name, "application", limits, body);
    }

    fn add(&mut self, name: &str, provided_by: &str, limits: TaskLimits, body: Body) {
        let name: Arc<str> = match checked_name(name.into()) {
            Ok(name) => name,
            Err(source) => {
                self.refused.get_or_insert(TaskRegistryError::Name { provided_by: provided_by.to_owned(), source });
                return;
            }
        };
        let function = Arc::new(function(Arc::clone(&name), provided_by, limits, body));
        if let Some(first) = self.tasks.insert(Arc::clone(&name), function) {
            self.refused.get_or_insert(TaskRegistryError::Twice {
                task: name.to_string(),
                first: first.provided_by.to_string(),
                second: provided_by.to_owned(),
            });
        }
    }

    /// Adds what plugins provide and what the operator declared, and applies the operator's limits. Those of a task that nobody provides
    /// are no error where a plugin that is not loaded may be the one, by these reports or in safe mode.
    ///
    /// # Errors
    ///
    /// [`TaskRegistryError`], the first thing that is wrong.
    pub fn complete(
        mut self,
        plugins: &Registry,
        settings: &BTreeMap<String, TaskSettings>,
        state_dir: &Path,
        reports: &[LoadReport],
        safe_mode: bool,
    ) -> Result<Self, TaskRegistryError> {
        for (name, settings) in settings {
            if let Some(words) = &settings.command {
                let command =
                    CommandTask::new(words).map_err(|source| TaskRegistryError::Command { task: name.clone(), source })?;
                self.add(name, "command", TaskLimits::default(), Body::Command(command));
            }
        }
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        let none = TaskSettings::default();
        for (name, function) in &mut self.tasks {
            // Nobody else has one before the start.
            if let Some(function) = Arc::get_mut(function) {
                function.apply(settings.get(&**name).unwrap_or(&none), state_dir);
            }
        }
        let completed = self.with_plugins(plugins, settings, state_dir)?.with_reports(reports, safe_mode);
        for name in settings.keys().filter(|name| completed.get(name).is_none()) {
            let hint = completed.nearest(name);
            if completed.kept_away(name).is_none() {
                return Err(TaskRegistryError::Unknown { task: name.clone(), hint });
            }
            tracing::warn!("[tasks.{name}]: nobody provides this task now; a plugin that is not loaded may be the one{hint}");
        }
        Ok(completed)
    }

    /// The same tasks of the application and of the operator, with what these plugins provide instead of what others did.
    ///
    /// # Errors
    ///
    /// [`TaskRegistryError::Twice`] when a plugin provides a task that the application or the operator has.
    pub fn with_plugins(
        &self,
        plugins: &Registry,
        settings: &BTreeMap<String, TaskSettings>,
        state_dir: &Path,
    ) -> Result<Self, TaskRegistryError> {
        let own = self.tasks.iter().filter(|(_, function)| !matches!(function.body, Body::Plugin(_)));
        let mut all =
            Self { tasks: own.map(|(name, function)| (Arc::clone(name), Arc::clone(function))).collect(), ..Self::default() };
        for (name, provided) in plugins.tasks() {
            let (limits, plugin) = (TaskLimits::default(), provided.plugin.name());
            let mut function = function(name.as_str().into(), plugin, limits, Body::Plugin(provided.clone()));
            if let Some(settings) = settings.get(name) {
                function.apply(settings, state_dir);
            }
            if let Some(first) = all.tasks.insert(Arc::clone(&function.name), Arc::new(function)) {
                let (task, first) = (name.clone(), first.provided_by.to_string());
                return Err(TaskRegistryError::Twice { task, first, second: plugin.to_owned() });
            }
        }
        Ok(all)
    }

    /// The same, which can tell of a task that nobody provides which of these plugins would, and why it is not loaded. In safe mode none is.
    #[must_use]
    pub fn with_reports(mut self, reports: &[LoadReport], safe_mode: bool) -> Self {
        self.not_loaded.clear();
        self.unread = safe_mode.then(|| "no plugin library is loaded in safe mode".to_owned());
        for report in reports {
            match (report.why_not_loaded(), &report.manifest) {
                (Some(why), Some(manifest)) => {
                    let missing = manifest.tasks.iter().filter(|task| !self.tasks.contains_key(&*task.name));
                    self.not_loaded.extend(missing.map(|task| (task.name.clone(), why.clone())));
                }
                (Some(why), None) => drop(self.unread.get_or_insert(why)),
                (None, _) => {}
            }
        }
        self
    }

    /// What keeps away the plugin that would provide this task, in words that follow those that nobody does. `None`: no plugin would.
    pub(super) fn kept_away(&self, name: &str) -> Option<String> {
        let known = self.not_loaded.get(name).map(|why| format!(", since {why}"));
        known.or_else(|| self.unread.as_ref().map(|why| format!("{}; or it is a plugin's: {why}", self.nearest(name))))
    }
}

fn function(name: Arc<str>, provided_by: &str, limits: TaskLimits, body: Body) -> TaskFunction {
    let host = plain_host(&name, &toml::Table::new(), Path::new(""));
    TaskFunction { name, provided_by: provided_by.into(), limits, host, body }
}

impl TaskFunction {
    /// Puts the operator's limits over its own.
    fn apply(&mut self, settings: &TaskSettings, state_dir: &Path) {
        let limits = &mut self.limits;
        limits.max_time = settings.max_time.or(limits.max_time);
        limits.attempts = settings.attempts.or(limits.attempts);
        limits.intercept = settings.intercept.or(limits.intercept);
        if let Some(kinds) = &settings.retry_on {
            limits.retry_on = Some(kinds.as_slice().into());
        }
        limits.retry_delay = settings.retry_delay.or(limits.retry_delay);
        limits.retry_backoff = settings.retry_backoff.or(limits.retry_backoff);
        self.host = plain_host(&self.name, &settings.config, state_dir);
    }
}

/// The host as a task of the application sees it.
fn plain_host(task: &Arc<str>, config: &toml::Table, state_dir: &Path) -> Host {
    let init = Init {
        plugin: task.to_string(),
        data_dir: state_dir.join("tasks").join(&**task),
        // A TOML table always has a JSON form.
        config: to_raw_value(config).unwrap_or_default(),
        host_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Host::new(TracingServices::new(Arc::clone(task)), init)
}
