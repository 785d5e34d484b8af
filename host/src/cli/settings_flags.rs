//! Every setting as a flag. A flag wins over the settings file.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use qtasks_host::Settings;
use qtasks_host::settings::{Override, SettingsError};

/// The settings file used when none is named.
const DEFAULT_FILE: &str = "qtasks-host.toml";

/// A number, as a setting takes it; which ones a setting takes it says itself.
pub(crate) fn number_of_seconds(text: &str) -> Result<f64, &'static str> {
    text.parse().map_err(|_| "expected a number of seconds, such as 90 or 0.5")
}

/// A whole number in this range.
pub(crate) fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
    }
}

/// The same, as a setting takes it.
const ANY: RangeInclusive<i64> = i64::MIN..=i64::MAX;

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
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
    probe_deadline: Option<f64>,
    /// The qtasks-host binary that probes and isolates plugins (setting `guest_program`) [default: this one].
    #[arg(long, value_name = "FILE")]
    guest_program: Option<PathBuf>,
    #[command(flatten)]
    broker: BrokerFlags,
    /// Tasks that run at once (setting `concurrency`) [default: one for each core].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole(ANY))]
    concurrency: Option<i64>,
    /// Tasks that a worker takes ahead at most, while they are short (setting `prefetch`) [default: 256].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole(ANY))]
    prefetch: Option<i64>,
    /// Time without a sign of life after which a worker's tasks are taken over (setting `lease`) [default: 10].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
    lease: Option<f64>,
    /// Time that what runs may take to end when the worker is stopped (setting `drain_deadline`) [default: 30].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
    drain_deadline: Option<f64>,
    /// How long results are kept (setting `keep_results`) [default: 604800, a week].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
    keep_results: Option<f64>,
    /// How long decisions are kept (setting `keep_decisions`) [default: 2592000, 30 days].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
    keep_decisions: Option<f64>,
    /// Longest time for one attempt of a task, where the task does not say (setting `max_time`) [default: no limit].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
    max_time: Option<f64>,
    /// Runs that a plugin's retry_after may lead to, where the task does not say (setting `max_attempts`) [default: 5].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole(ANY))]
    max_attempts: Option<i64>,
    /// Longest delay before a retry, a plugin's or with back-off (setting `max_retry_delay`) [default: 3600].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = number_of_seconds)]
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
        read(self.config.as_deref(), &self.overrides())
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
            ("--broker", "broker", self.broker.broker.as_deref().map(text)),
            ("--name", "name", self.broker.project.as_deref().map(text)),
            ("--prefetch", "prefetch", self.prefetch.map(|value| value.to_string())),
            ("--lease", "lease", self.lease.map(number)),
            ("--drain-deadline", "drain_deadline", self.drain_deadline.map(number)),
            ("--keep-results", "keep_results", self.keep_results.map(number)),
            ("--keep-decisions", "keep_decisions", self.keep_decisions.map(number)),
            ("--concurrency", "concurrency", self.concurrency.map(|value| value.to_string())),
            ("--max-time", "max_time", self.max_time.map(number)),
            ("--max-attempts", "max_attempts", self.max_attempts.map(|value| value.to_string())),
            ("--max-retry-delay", "max_retry_delay", self.max_retry_delay.map(number)),
            ("--intercept", "intercept", self.intercept.as_deref().map(text)),
            ("--log", "log", self.log.as_deref().map(text)),
        ];
        overrides(given, &self.set)
    }
}

/// Where tasks wait and results stay.
#[derive(Debug, Args)]
pub(crate) struct BrokerFlags {
    /// Where tasks wait and results stay: sqlite:PATH[?synchronous=full], redis://HOST[:PORT][/DB] or memory: (setting `broker`)
    /// [default: tasks.db in the state directory].
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// The project: tasks of one are unknown to another (setting `name`) [default: QueueTasks].
    #[arg(long = "name", value_name = "NAME")]
    project: Option<String>,
}

/// The settings of a client, which loads no plugins.
#[derive(Debug, Args)]
pub(crate) struct ClientFlags {
    /// Settings file [default: qtasks-host.toml, if there is one here].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    broker: BrokerFlags,
    /// Directory in which tasks.db lies where no broker is named (setting `state_dir`) [default: qtasks-host in the user's state
    /// directory].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What is logged on stderr (setting `log`) [default: info].
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl ClientFlags {
    /// The settings: the file's, with the flags on top.
    ///
    /// # Errors
    ///
    /// [`SettingsError`], naming file and line, or the flag.
    pub(crate) fn settings(&self) -> Result<Settings, SettingsError> {
        let text = |value: &str| toml::Value::from(value).to_string();
        let given = [
            ("--broker", "broker", self.broker.broker.as_deref().map(text)),
            ("--name", "name", self.broker.project.as_deref().map(text)),
            ("--state-dir", "state_dir", self.state_dir.as_ref().map(|path| text(&path.to_string_lossy()))),
            ("--log", "log", self.log.as_deref().map(text)),
        ];
        read(self.config.as_deref(), &overrides(given, &[]))
    }
}

/// Reads the file that is named, or the one that lies here.
fn read(file: Option<&Path>, overrides: &[Override]) -> Result<Settings, SettingsError> {
    let default = Path::new(DEFAULT_FILE);
    Settings::read(file.or_else(|| default.exists().then_some(default)), overrides)
}

/// Flags as assignments: each its name, its setting and its value as TOML, and then those of `--set`.
fn overrides<const N: usize>(given: [(&str, &str, Option<String>); N], set: &[String]) -> Vec<Override> {
    let named = given.into_iter().filter_map(|(flag, key, value)| {
        value.map(|value| Override { flag: flag.to_owned(), assignment: format!("{key} = {value}") })
    });
    let set = set.iter().map(|given| Override { flag: format!("--set {given}"), assignment: assignment(given) });
    named.chain(set).collect()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use clap::{CommandFactory, Parser};
    use qtasks_host::broker::BrokerUrl;
    use qtasks_host::task::Intercept;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        settings: SettingsFlags,
    }

    #[test]
    fn every_flag_is_the_setting_that_its_help_names() {
        let words = "host --plugins p --state-dir s --safe-mode --strict --lock-file l --probe false --probe-deadline 1 --guest-program g \
                     --broker memory: --name n --concurrency 2 --prefetch 3 --lease 4 --drain-deadline 5 --keep-results 6 \
                     --keep-decisions 7 --max-time 8 --max-attempts 9 --max-retry-delay 10 --intercept all --log warn";
        let flags = Flags::try_parse_from(words.split_whitespace()).expect("flags");
        let settings = flags.settings.settings().expect("settings");
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!((settings.plugin_dir, Some(settings.state_dir)), (path("p"), path("s")));
        assert_eq!((settings.lock_file, settings.guest_program), (path("l"), path("g")));
        assert_eq!((settings.safe_mode, settings.strict, settings.probe), (true, true, false));
        assert_eq!((settings.broker, &*settings.name), (Some(BrokerUrl::Memory), "n"));
        assert_eq!((settings.concurrency, settings.prefetch, settings.max_attempts), (2, 3, 9));
        assert_eq!((settings.intercept, &*settings.log), (Intercept::All, "warn"));
        let times = [
            settings.probe_deadline,
            settings.lease,
            settings.drain_deadline,
            settings.keep_results,
            settings.keep_decisions,
            settings.max_time.unwrap_or_default(),
            settings.max_retry_delay,
        ];
        assert_eq!(times, [1, 4, 5, 6, 7, 8, 10].map(Duration::from_secs));
    }

    #[test]
    fn the_defaults_that_help_tells_are_those_of_the_settings() {
        let command = Flags::command();
        let told: BTreeMap<String, f64> = command
            .get_arguments()
            .filter_map(|argument| {
                let help = argument.get_help()?.to_string();
                let setting = help.split_once("(setting `")?.1.split_once('`')?.0.to_owned();
                let default = help.split_once("[default: ")?.1.split([',', ']']).next()?.parse().ok()?;
                Some((setting, default))
            })
            .collect();
        let settings = Settings::default();
        let wanted = [
            ("drain_deadline", settings.drain_deadline),
            ("keep_decisions", settings.keep_decisions),
            ("keep_results", settings.keep_results),
            ("lease", settings.lease),
            ("max_attempts", Duration::from_secs(settings.max_attempts.into())),
            ("max_retry_delay", settings.max_retry_delay),
            ("prefetch", Duration::from_secs(settings.prefetch as u64)),
            ("probe_deadline", settings.probe_deadline),
        ];
        let wanted = wanted.map(|(setting, default)| (setting.to_owned(), default.as_secs_f64()));
        assert_eq!(told.into_iter().collect::<Vec<_>>(), wanted);
    }
}
