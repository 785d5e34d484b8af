//! The tasks that can run, by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use qtasks_plugin_api::{Host, Init, TaskContext, TaskError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::to_raw_value;

use super::command::{CommandError, CommandTask};
use super::function::{Body, TaskFunction, TaskLimits, async_body, generator_body, sync_body};
use super::settings::TaskSettings;
use crate::nearest::nearest;
use crate::plugin::Registry;
use crate::plugin::services::TracingServices;

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
    tasks: BTreeMap<Arc<str>, TaskFunction>,
    twice: Option<TaskRegistryError>,
}

impl TaskRegistry {
    /// The task of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TaskFunction> {
        self.tasks.get(name)
    }

    /// All tasks, by name.
    pub fn iter(&self) -> impl Iterator<Item = &TaskFunction> {
        self.tasks.values()
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
        let name: Arc<str> = name.into();
        let host = plain_host(&name, &toml::Table::new(), Path::new(""));
        let function = TaskFunction { name: Arc::clone(&name), provided_by: provided_by.into(), limits, host, body };
        if let Some(first) = self.tasks.insert(Arc::clone(&name), function) {
            // Told when the application starts, so that registering stays a plain statement.
            self.twice.get_or_insert(TaskRegistryError::Twice {
                task: name.to_string(),
                first: first.provided_by.to_string(),
                second: provided_by.to_owned(),
            });
        }
    }

    /// Adds what plugins provide and what the operator declared, and applies the operator's limits. In safe mode, limits of
    /// unknown tasks are no error.
    ///
    /// # Errors
    ///
    /// [`TaskRegistryError`], the first thing that is wrong.
    pub fn complete(
        mut self,
        plugins: &Registry,
        settings: &BTreeMap<String, TaskSettings>,
        state_dir: &Path,
        safe_mode: bool,
    ) -> Result<Self, TaskRegistryError> {
        for (name, provided) in plugins.tasks() {
            self.add(name, provided.plugin.name(), TaskLimits::default(), Body::Plugin(provided.clone()));
        }
        for (name, settings) in settings {
            if let Some(words) = &settings.command {
                let command =
                    CommandTask::new(words).map_err(|source| TaskRegistryError::Command { task: name.clone(), source })?;
                self.add(name, "command", TaskLimits::default(), Body::Command(command));
            }
        }
        for (name, settings) in settings {
            let Some(function) = self.tasks.get_mut(name.as_str()) else {
                // A plugin that is not loaded may be the one that provides it.
                if safe_mode {
                    continue;
                }
                return Err(TaskRegistryError::Unknown { task: name.clone(), hint: self.nearest(name) });
            };
            let limits = &mut function.limits;
            limits.max_time = settings.max_time.or(limits.max_time);
            limits.attempts = settings.attempts.or(limits.attempts);
            limits.intercept = settings.intercept.or(limits.intercept);
            if let Some(kinds) = &settings.retry_on {
                limits.retry_on = Some(kinds.as_slice().into());
            }
            limits.retry_delay = settings.retry_delay.or(limits.retry_delay);
            limits.retry_backoff = settings.retry_backoff.or(limits.retry_backoff);
            function.host = plain_host(&function.name, &settings.config, state_dir);
        }
        match self.twice.take() {
            Some(twice) => Err(twice),
            None => Ok(self),
        }
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
