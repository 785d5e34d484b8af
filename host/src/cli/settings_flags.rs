//! Every setting as a flag. A flag wins over the settings file.

use std::path::{Path, PathBuf};

use clap::Args;
use qtasks_host::Settings;
use qtasks_host::settings::{Override, SettingsError};

/// The settings file used when none is named.
const DEFAULT_FILE: &str = "qtasks-host.toml";

#[derive(Debug, Args)]
pub(crate) struct SettingsFlags {
    /// Settings file [default: qtasks-host.toml, if there is one here].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory with plugin libraries (setting `plugin_dir`). Without it no plugin is loaded.
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Directory for verdicts, the quarantine and the data of plugins (setting `state_dir`) [default: qtasks-host in the user's state directory].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Load no plugin library at all (setting `safe_mode`).
    #[arg(long)]
    safe_mode: bool,
    /// Refuse directories and libraries that a group can write to (setting `strict`).
    #[arg(long)]
    strict: bool,
    /// Digests of the libraries that may be loaded (setting `lock_file`) [default: plugins.lock in the plugin directory, if there is
    /// one].
    #[arg(long, value_name = "FILE")]
    lock_file: Option<PathBuf>,
    /// A minisign public key that libraries must be signed with; may be given several times (setting `trusted_keys`).
    #[arg(long = "trusted-key", value_name = "KEY")]
    trusted_keys: Vec<String>,
    /// Whether unknown library bytes are loaded in a process of their own first (setting `probe`) [default: true].
    #[arg(long, value_name = "BOOL")]
    probe: Option<bool>,
    /// Longest time for a probe (setting `probe_deadline`) [default: 5].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    probe_deadline: Option<f64>,
    /// The qtasks-host binary that probes and isolates plugins (setting `guest_program`) [default: this one].
    #[arg(long, value_name = "FILE")]
    guest_program: Option<PathBuf>,
    /// Tasks that run at once (setting `concurrency`) [default: one for each core].
    #[arg(long, value_name = "N")]
    concurrency: Option<u64>,
    /// Longest time for one attempt of a task, where the task does not say (setting `max_time`) [default: no limit].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    max_time: Option<f64>,
    /// Runs that a plugin's retry_after may lead to, where the task does not say (setting `max_attempts`) [default: 5].
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Longest delay that a plugin's retry_after gets (setting `max_retry_delay`) [default: 3600].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    max_retry_delay: Option<f64>,
    /// Which failures the plugins are asked about: plugin-errors, or all (setting `intercept`) [default: plugin-errors].
    #[arg(long, value_name = "WHICH")]
    intercept: Option<String>,
    /// What is logged on stderr: error, warn, info, debug, trace, or a filter such as warn,plugin=debug (setting `log`)
    /// [default: info].
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Any other setting, as in the file: --set plugins.fallback.priority=10 --set 'tasks.words.command=["wc","-w"]'.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingsFlags {
    /// The settings: the file's, with the flags on top.
    ///
    /// # Errors
    ///
    /// [`SettingsError`], naming file and line, or the flag.
    pub(crate) fn settings(&self) -> Result<Settings, SettingsError> {
        let default = Path::new(DEFAULT_FILE);
        let file = self.config.as_deref().or_else(|| default.exists().then_some(default));
        let mut settings = Settings::read(file, &self.overrides())?;
        if settings.guest_program.is_none() {
            // This very program; a failure leaves plugins unloaded, with the reason told for each.
            settings.guest_program = std::env::current_exe().ok();
        }
        Ok(settings)
    }

    fn overrides(&self) -> Vec<Override> {
        let text = |value: &str| toml::Value::from(value).to_string();
        let path = |value: &PathBuf| text(&value.to_string_lossy());
        let number = |value: f64| toml::Value::from(value).to_string();
        let keys = self.trusted_keys.iter().map(|key| text(key)).collect::<Vec<_>>();
        let keys = (!keys.is_empty()).then(|| format!("[{}]", keys.join(", ")));
        let given = [
            ("--plugins", "plugin_dir", self.plugins.as_ref().map(path)),
            ("--state-dir", "state_dir", self.state_dir.as_ref().map(path)),
            ("--safe-mode", "safe_mode", self.safe_mode.then(|| "true".to_owned())),
            ("--strict", "strict", self.strict.then(|| "true".to_owned())),
            ("--lock-file", "lock_file", self.lock_file.as_ref().map(path)),
            ("--trusted-key", "trusted_keys", keys),
            ("--probe", "probe", self.probe.map(|value| value.to_string())),
            ("--probe-deadline", "probe_deadline", self.probe_deadline.map(number)),
            ("--guest-program", "guest_program", self.guest_program.as_ref().map(path)),
            ("--concurrency", "concurrency", self.concurrency.map(|value| value.to_string())),
            ("--max-time", "max_time", self.max_time.map(number)),
            ("--max-attempts", "max_attempts", self.max_attempts.map(|value| value.to_string())),
            ("--max-retry-delay", "max_retry_delay", self.max_retry_delay.map(number)),
            ("--intercept", "intercept", self.intercept.as_deref().map(text)),
            ("--log", "log", self.log.as_deref().map(text)),
        ];
        let named = given.into_iter().filter_map(|(flag, key, value)| {
            value.map(|value| Override { flag: flag.to_owned(), assignment: format!("{key} = {value}") })
        });
        let set = self.set.iter().map(|given| Override { flag: format!("--set {given}"), assignment: assignment(given) });
        named.chain(set).collect()
    }
}

/// `KEY=VALUE` as TOML: a value that is not TOML is meant as a text, so that nobody has to quote twice for the shell.
fn assignment(given: &str) -> String {
    match given.split_once('=') {
        Some((key, value)) if toml::from_str::<toml::Table>(&format!("value = {value}")).is_err() => {
            format!("{key} = {}", toml::Value::from(value))
        }
        _ => given.to_owned(),
    }
}
