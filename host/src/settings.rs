//! The operator's settings: `qtasks-host.toml`.

mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::from_object;
use qtasks_plugin_api::nearest::nearest_in;
use qtasks_plugin_api::plain_words::in_plain_words;
use serde::Deserialize;

use crate::broker::url::Synchronous;
use crate::broker::{BrokerSettings, BrokerUrl};
use crate::plugin::process::guest;
use crate::plugin::trust::signature::TrustedKey;
use crate::plugin::{LoadPolicy, PluginSettings, Strictness, TrustPolicy};
use crate::private_dir::{self, StateDirError};
use crate::shown::shown;
use crate::task::{ErrorKinds, ExecutorSettings, Intercept, TaskSettings};
use crate::trigger::{Trigger, TriggerSettings};
use crate::worker::WorkerSettings;

/// All settings. Everything has a default.
///
/// ```toml
/// plugin_dir = "plugins"          # where plugin libraries lie; none are loaded without it
/// state_dir = "/var/lib/qtasks"   # verdicts on libraries, and data directories of plugins
/// guest_program = "../bin/qtasks-host"   # what probes and isolates plugins; by default the program itself, see `guest::run_if_asked`
/// probe = true                    # load unknown library bytes in a process of their own first
/// probe_deadline = 5.0            # seconds
/// watch = false                   # a worker replaces plugins when something in plugin_dir changes, and not only at SIGHUP
/// safe_mode = false               # load no plugin library at all
/// strict = false                  # refuse directories and libraries that a group can write to
/// lock_file = "plugins.lock"      # digests of the libraries that may be loaded; else plugins.lock in plugin_dir, if there is one
/// trusted_keys = ["RWQf6LRC…"]    # minisign public keys; every library needs a signature by one of them then
/// broker = "sqlite:tasks.db"      # or "redis://host:6379/0", or "memory:"; by default tasks.db in state_dir
/// name = "QueueTasks"             # the project: tasks of one are unknown to another
/// concurrency = 4                 # tasks that run at once
/// prefetch = 256                  # tasks that a worker takes ahead at most, while they are short
/// lease = 10.0                    # seconds without a sign of life after which a worker's tasks are taken over
/// max_losses = 3                  # lost workers after which a task is set aside: it is what ends them
/// drain_deadline = 30.0           # seconds that what runs may take to end when the worker is stopped, or its plugin is replaced
/// keep_results = 604800.0         # seconds
/// keep_decisions = 2592000.0      # seconds
/// recover_foreign_after = 3600.0  # Redis: seconds after which a task left by a Python worker is taken over; never without it
/// max_time = 30.0                 # seconds for one attempt; no limit without it
/// max_attempts = 5                # runs that a plugin's retry_after may lead to
/// max_retry_delay = 3600.0        # seconds; longest delay before a retry, a plugin's or with back-off
/// intercept = "plugin-errors"     # or "all": ask the plugins about every failure
/// log = "info"                    # error, warn, info, debug, trace, or a filter such as "warn,plugin=debug"
///
/// [plugins.fallback]              # see PluginSettings
/// [tasks.count_words]             # see TaskSettings
/// [triggers.task_executor_run_task_trigger_error]   # see TriggerSettings
/// [error_kinds]                   # see ErrorKinds
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where plugin libraries lie.
    pub plugin_dir: Option<PathBuf>,
    /// Where verdicts, the quarantine and the data of plugins are; by default `qtasks-host` in the user's state directory.
    pub state_dir: PathBuf,
    /// What probes libraries, and isolates plugins: a `qtasks-host` binary. Without it the program itself, if it calls
    /// [`guest::run_if_asked`](crate::guest::run_if_asked) first in `main`.
    pub guest_program: Option<PathBuf>,
    /// Whether library bytes that this host has never loaded are loaded in a process of their own first.
    pub probe: bool,
    /// Longest time for a probe.
    #[serde(deserialize_with = "crate::plugin::settings::seconds")]
    pub probe_deadline: Duration,
    /// Whether a worker replaces plugins when something in `plugin_dir` changes.
    pub watch: bool,
    /// Start without any plugin library, whatever `plugin_dir` says.
    pub safe_mode: bool,
    /// Refuse directories and libraries that a group can write to.
    pub strict: bool,
    /// The lock file; without it, `plugins.lock` in the plugin directory, where there is one.
    pub lock_file: Option<PathBuf>,
    /// Who may sign libraries. When there is one, every library needs a signature.
    #[serde(deserialize_with = "crate::plugin::trust::signature::trusted_keys")]
    pub trusted_keys: Vec<TrustedKey>,
    /// Where tasks wait and results stay; `None` is `tasks.db` in `state_dir`.
    pub broker: Option<BrokerUrl>,
    /// The project.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// Tasks that run at once.
    #[serde(deserialize_with = "values::concurrency")]
    pub concurrency: usize,
    /// Tasks that a worker takes ahead at most.
    pub prefetch: usize,
    /// Time without a sign of life after which a worker's tasks are taken over.
    #[serde(deserialize_with = "crate::plugin::settings::seconds")]
    pub lease: Duration,
    /// Lost workers after which a task is set aside.
    #[serde(deserialize_with = "losses")]
    pub max_losses: u32,
    /// Time that what runs may take to end when the worker is stopped, or its plugin is replaced.
    #[serde(deserialize_with = "crate::plugin::settings::seconds")]
    pub drain_deadline: Duration,
    /// How long results are kept.
    #[serde(deserialize_with = "crate::plugin::settings::seconds")]
    pub keep_results: Duration,
    /// How long decisions are kept.
    #[serde(deserialize_with = "crate::plugin::settings::seconds")]
    pub keep_decisions: Duration,
    /// Redis: time after which a task left by a Python worker is taken over.
    #[serde(deserialize_with = "optional_seconds")]
    pub recover_foreign_after: Option<Duration>,
    /// Longest time for one attempt.
    #[serde(deserialize_with = "optional_seconds")]
    pub max_time: Option<Duration>,
    /// Runs that a plugin's `retry_after` may lead to, where the task does not say.
    #[serde(deserialize_with = "crate::task::settings::attempts")]
    pub max_attempts: u32,
    /// Longest delay that `retry_after` and `retry_backoff` get.
    #[serde(deserialize_with = "crate::plugin::settings::seconds")]
    pub max_retry_delay: Duration,
    /// Which failures the plugins are asked about.
    pub intercept: Intercept,
    /// What is logged.
    #[serde(deserialize_with = "values::log")]
    pub log: String,
    /// By plugin name.
    #[serde(deserialize_with = "tables")]
    pub plugins: BTreeMap<String, PluginSettings>,
    /// By task name.
    #[serde(deserialize_with = "tables")]
    pub tasks: BTreeMap<String, TaskSettings>,
    /// By trigger.
    #[serde(deserialize_with = "tables")]
    pub triggers: BTreeMap<Trigger, TriggerSettings>,
    /// The operator's own error kinds.
    pub error_kinds: ErrorKinds,
}

impl Default for Settings {
    fn default() -> Self {
        let executor = ExecutorSettings::default();
        Self {
            plugin_dir: None,
            state_dir: default_state_dir(),
            guest_program: None,
            watch: false,
            safe_mode: false,
            strict: false,
            lock_file: None,
            trusted_keys: Vec::new(),
            probe: true,
            probe_deadline: Duration::from_secs(5),
            broker: None,
            name: "QueueTasks".to_owned(),
            concurrency: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            prefetch: 256,
            lease: Duration::from_secs(10),
            max_losses: 3,
            drain_deadline: Duration::from_secs(30),
            keep_results: Duration::from_secs(7 * DAY),
            keep_decisions: Duration::from_secs(30 * DAY),
            recover_foreign_after: None,
            max_time: executor.max_time,
            max_attempts: executor.max_attempts,
            max_retry_delay: executor.max_retry_delay,
            intercept: executor.intercept,
            log: "info".to_owned(),
            plugins: BTreeMap::new(),
            tasks: BTreeMap::new(),
            triggers: BTreeMap::new(),
            error_kinds: executor.error_kinds,
        }
    }
}

/// Seconds.
const DAY: u64 = 24 * 3600;

/// `$XDG_STATE_HOME/qtasks-host`, as the XDG Base Directory Specification has it; empty for a user without a home.
fn default_state_dir() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|path| path.is_absolute()).map(|home| home.join(".local/state"));
    state.or_else(home).map(|state| state.join("qtasks-host")).unwrap_or_default()
}

fn optional_seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::plugin::settings::seconds(deserializer).map(Some)
}

fn losses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("found 0 losses; expected at least 1: with none, every task would be set aside")),
        losses => Ok(losses),
    }
}

/// Reads `[plugins.NAME]` and its like: tables by name, none of them a list of values.
fn tables<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(transparent, bound = "V: Deserialize<'de>")]
    struct Table<V>(#[serde(deserialize_with = "from_object")] V);

    let tables = BTreeMap::<K, Table<V>>::deserialize(deserializer)?;
    Ok(tables.into_iter().map(|(name, Table(table))| (name, table)).collect())
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings file {}", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("settings file {}: {message}{hint}", shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
        /// The nearest known key, as words.
        hint: String,
    },
    /// A setting of the command line is not what it should be.
    #[error("{flag}: {message}{hint}")]
    Flag {
        /// The flag, as it was given.
        flag: String,
        /// What is wrong.
        message: String,
        /// The nearest known key, as words.
        hint: String,
    },
    /// Where this program's own files would lie is nobody's, or somebody else's.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
}

/// One setting given on the command line: a TOML assignment such as `plugins.fallback.priority = 10`, and the flag it came from.
#[derive(Debug, Clone)]
pub struct Override {
    /// The flag, for messages.
    pub flag: String,
    /// The assignment.
    pub assignment: String,
}

impl Settings {
    /// Reads the settings file, if there is one, and puts `overrides` on top.
    ///
    /// # Errors
    ///
    /// [`SettingsError`], naming file and line, or the flag.
    pub fn read(file: Option<&Path>, overrides: &[Override]) -> Result<Self, SettingsError> {
        let mut table = match file {
            None => toml::Table::new(),
            Some(path) => read_file(path)?,
        };
        for given in overrides {
            let refused = |error: &toml::de::Error| SettingsError::Flag {
                flag: given.flag.clone(),
                message: in_plain_words(error.message(), "a table"),
                hint: nearest_in(error.message()),
            };
            let assignment: toml::Table = toml::from_str(&given.assignment).map_err(|error| refused(&error))?;
            merge(&mut table, assignment);
            // Checked one by one, so that the message names the flag that is wrong.
            Self::deserialize(table.clone()).map_err(|error| refused(&error))?;
        }
        let settings = Self::deserialize(table).map_err(|error| SettingsError::Flag {
            flag: "settings".to_owned(),
            message: in_plain_words(error.message(), "a table"),
            hint: nearest_in(error.message()),
        })?;
        // A client of a server needs none.
        if !settings.state_dir.as_os_str().is_empty() || settings.broker.is_none() || settings.plugin_dir.is_some() {
            private_dir::check(&settings.state_dir)?;
        }
        Ok(settings)
    }

    /// The loader's part.
    #[must_use]
    pub fn load_policy(&self) -> LoadPolicy {
        LoadPolicy {
            state_dir: self.state_dir.clone(),
            guest_program: self.guest_program.clone().or_else(guest::own_program),
            probe: self.probe,
            probe_deadline: self.probe_deadline,
            watch: Arc::default(),
            trust: TrustPolicy {
                strictness: if self.strict { Strictness::Strict } else { Strictness::Lenient },
                lock_file: self.lock_file.clone(),
                trusted_keys: self.trusted_keys.clone(),
            },
            own_tasks: self.tasks.iter().filter(|(_, task)| task.command.is_some()).map(|(name, _)| name.clone()).collect(),
        }
    }

    /// The broker's part.
    #[must_use]
    pub fn broker(&self) -> BrokerSettings {
        BrokerSettings {
            url: self.broker.clone().unwrap_or_else(|| BrokerSettings::default_url(&self.state_dir)),
            make_directory: self.broker.is_none(),
            name: self.name.as_str().into(),
            lease: self.lease,
            max_losses: self.max_losses,
            recover_foreign_after: self.recover_foreign_after,
        }
    }

    /// The worker's part.
    #[must_use]
    pub fn worker(&self) -> WorkerSettings {
        WorkerSettings {
            concurrency: self.concurrency,
            prefetch: self.prefetch,
            drain_deadline: self.drain_deadline,
            look_for_lost: self.lease / 2,
            keep_results: self.keep_results,
            keep_decisions: self.keep_decisions,
        }
    }

    /// The executor's part.
    #[must_use]
    pub fn executor(&self) -> ExecutorSettings {
        ExecutorSettings {
            max_time: self.max_time,
            max_attempts: self.max_attempts,
            max_retry_delay: self.max_retry_delay,
            intercept: self.intercept,
            error_kinds: self.error_kinds.clone(),
        }
    }
}

/// The file's table, after a check that names lines: a table no longer knows where it was written.
fn read_file(path: &Path) -> Result<toml::Table, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let refused = |error: toml::de::Error| SettingsError::File {
        path: path.to_owned(),
        hint: nearest_in(error.message()),
        message: error.to_string().trim_end().replace(error.message(), &in_plain_words(error.message(), "a table")),
    };
    toml::from_str::<Settings>(&text).map_err(refused)?;
    let mut table: toml::Table = toml::from_str(&text).map_err(refused)?;
    // A path in a file is meant from where the file lies.
    let directory = path.parent().unwrap_or(Path::new(""));
    for key in ["plugin_dir", "state_dir", "guest_program", "lock_file"] {
        if let Some(toml::Value::String(written)) = table.get_mut(key)
            // An empty path stays empty: joined, it would be the directory of the file, which nobody wrote.
            && !written.is_empty()
        {
            *written = directory.join(&*written).to_string_lossy().into_owned();
        }
    }
    if let Some(toml::Value::String(written)) = table.get_mut("broker")
        && let Ok(BrokerUrl::Sqlite { path, synchronous }) = written.parse()
    {
        let parameters = if synchronous == Synchronous::Full { "?synchronous=full" } else { "" };
        *written = format!("sqlite:{}{parameters}", directory.join(path).to_string_lossy());
    }
    Ok(table)
}

/// Puts `over` on top of `table`, tables into tables.
fn merge(table: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(over)) => merge(inner, over),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(assignments: &[&str]) -> Result<Settings, SettingsError> {
        let overrides: Vec<Override> =
            assignments.iter().map(|text| Override { flag: format!("--set {text}"), assignment: (*text).to_owned() }).collect();
        Settings::read(None, &overrides)
    }

    #[test]
    fn every_setting_can_be_given_and_later_ones_win() {
        let settings = given(&[
            "concurrency = 7",
            "plugins.fallback.priority = 3",
            "plugins.fallback.config.values.add = 0",
            "plugins.fallback.priority = 4",
            "tasks.words.command = ['wc', '-w']",
            "triggers.task_executor_decode.answers = 'first'",
            "plugins.fallback.triggers = 'global'",
        ])
        .expect("good settings");
        assert_eq!(settings.concurrency, 7);
        let fallback = &settings.plugins["fallback"];
        assert_eq!((fallback.priority, &fallback.triggers), (Some(4), &crate::plugin::Triggers::Global));
        assert_eq!(fallback.config["values"]["add"].as_integer(), Some(0));
    }

    #[test]
    fn a_wrong_setting_names_the_flag_and_the_nearest_key() {
        for (assignment, said) in [
            ("concurency = 1", "unknown field `concurency`"),
            ("concurency = 1", "did you mean `concurrency`?"),
            ("plugins.a.priorty = 1", "did you mean `priority`?"),
            ("max_time = 1e300", ": 1e300 is no time to wait"),
            ("tasks.a.retry_delay = 1e300", "retry_delay is 1e300; "),
            ("max_time = -1", "expected a number of seconds above 0"),
            (
                "plugins.a.triggers = ['task_executor_run_task_triger_error']",
                "did you mean `task_executor_run_task_trigger_error`?",
            ),
            ("plugins.a.triggers = 'everything'", "expected \"global\" or a list"),
            ("triggers.worker_strat.answers = 'first'", "unknown trigger `worker_strat`; did you mean `worker_start`?"),
            ("plugins.a.triggers = ['oops']", "no trigger is called `oops`; docs/triggers.md lists"),
            ("tasks.a.attempts = 0", "found 0 attempts; expected at least 1"),
            ("max_attempts = 0", "found 0 attempts; expected at least 1"),
            ("max_losses = 0", "found 0 losses; expected at least 1"),
            ("plugins.a.memory_mib = 31", "found 31 MiB; expected at least 32"),
            ("plugins.a.memory_mib = 17592186044416", "found 17592186044416 MiB; expected at most 134217728"),
            ("intercept = 'al'", "did you mean `all`?"),
            ("concurrency = 0", "--set concurrency = 0: concurrency is 0; expected at least 1"),
            ("log = 'loud'", "--set log = 'loud': log is \"loud\": \"loud\" is no level; expected off, error, warn"),
            ("tasks.a.command = []", "--set tasks.a.command = []: `command` is empty; expected the program and its arguments"),
            ("concurrency = -1", "integer `-1`, expected a whole number from 0 on"),
            ("max_losses = 'x'", r#"string "x", expected a whole number from 0 to 4294967295"#),
            ("max_time = 'x'", r#"string "x", expected a number"#),
            ("plugins.a.cpu_seconds = 0", "integer `0`, expected a whole number from 1 on"),
            ("plugins.a.priority = 'x'", r#"string "x", expected a whole number"#),
            ("plugins.a = [false]", "invalid type: list, expected a table"),
            ("plugins = 3", "integer `3`, expected a table"),
            ("tasks.a = [['cat']]", "invalid type: list, expected a table"),
            ("tasks.a.command = 'cat'", r#"string "cat", expected a list"#),
            ("triggers.worker_start = ['first']", "invalid type: list, expected a table"),
            ("plugins.a.config.b = [{ c = nan }]", "config.b: NaN has no JSON form"),
            ("tasks.a.config.b = -inf", "config.b: -inf has no JSON form"),
            ("plugins.a.config = 3", "integer `3`, expected a table"),
            ("plugins.a.triggers = 3", "integer `3`, expected \"global\" or a list of triggers"),
            ("plugins.a.triggers = [3]", "integer `3`, expected a string"),
            ("tasks.a.retry_om = ['TimeoutError']", "did you mean `retry_on`?"),
            ("tasks.a.retry_delay = -1", "retry_delay is -1; expected a number of seconds, 0 or more"),
            ("tasks.a.retry_backoff = 0.5", "retry_backoff is 0.5; expected a number, 1 or more"),
            ("error_kinds = { A = 'B', B = 'A' }", "A is a kind of itself"),
            ("error_kinds.MyError = 'ConectionError'", "did you mean `ConnectionError`?"),
        ] {
            let error = given(&[assignment]).expect_err(assignment).to_string();
            assert!(error.contains(said), "{assignment}: {error}");
        }
    }

    #[test]
    fn a_file_of_tasks_named_in_a_settings_file_is_meant_from_there_and_stays_as_durable_as_it_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("settings.toml");
        let tasks = directory.path().join("tasks.db");
        for parameters in ["", "?synchronous=full"] {
            std::fs::write(&file, format!("broker = 'sqlite:tasks.db{parameters}'")).expect("our own file");
            let settings = Settings::read(Some(&file), &[]).expect("good settings");
            let url = settings.broker.expect("it is set").to_string();
            assert_eq!(url, format!("sqlite:{}{parameters}", tasks.display()));
        }
        std::fs::write(&file, "broker = 'redis://localhost'\nplugin_dir = ''").expect("our own file");
        let settings = Settings::read(Some(&file), &[]).expect("good settings");
        assert_eq!((settings.broker, settings.plugin_dir), (Some(BrokerUrl::Redis("redis://localhost".into())), Some("".into())));
    }

    #[test]
    fn a_project_has_a_name_that_no_key_is_mixed_up_with() {
        for name in ["", "a:b", "qtasks-host"] {
            let error = given(&[&format!("name = '{name}'")]).expect_err("a name that is none").to_string();
            let said = format!("--set name = '{name}': name is {name:?}; expected at least one character");
            assert!(error.starts_with(&said), "{error}");
        }
        assert_eq!(given(&["name = 'qtasks'"]).expect("a good name").name, "qtasks");
    }
}
