//! What the operator says about one plugin: `[plugins.NAME]`.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use qtasks_plugin_api::Trigger;
use qtasks_plugin_api::nearest::nearest_trigger;
use qtasks_plugin_api::plain_words::number;
use serde::de::Unexpected;
use serde::{Deserialize, Serialize};

use super::trust::TrustSetting;

/// Settings of one plugin. Everything has a default.
///
/// ```toml
/// [plugins.fallback]
/// enabled = true
/// priority = 10                                    # higher is asked earlier; else what the manifest says
/// triggers = ["task_executor_run_task_trigger_error"]   # a subset of its handlers, or "global"
/// deadline = 5.0                                   # seconds for one call
/// answers = { task_executor_run_task_trigger_error = "first" }
/// isolation = "in-process"                         # or "process": a supervised process of its own
/// memory_mib = 4096                                # address space of that process
/// cpu_seconds = 3600                               # processor time until it is ended and started anew; without it, no end
/// processes = false                                # whether it may start other processes and programs
/// start_deadline = 10.0                            # seconds until it must run there
/// trust = "enforce"                                # or "override": lock file and signature do not hold for it
/// side_effects = "refuse"                          # or "admit": what loading it changes in the host is accepted
/// [plugins.fallback.config]                        # the plugin's own
/// values = { add = 0 }
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PluginSettings {
    /// Whether it is loaded at all.
    pub enabled: bool,
    /// Instead of the manifest's priority.
    pub priority: Option<i64>,
    /// Instead of all its handlers.
    pub triggers: Triggers,
    /// Longest time for one call of a handler; hung inline handlers cannot be stopped.
    #[serde(deserialize_with = "seconds")]
    pub deadline: Duration,
    /// What this plugin's answer does to the chain, per trigger; else what the trigger's own setting says.
    pub answers: BTreeMap<Trigger, AnswerMode>,
    /// Where its code runs.
    pub isolation: Isolation,
    /// Address space of its own process, in MiB, from [`LEAST_MEMORY_MIB`] to [`MOST_MEMORY_MIB`]; `None` is
    /// [`USUAL_MEMORY_MIB`].
    #[serde(deserialize_with = "memory_mib")]
    pub memory_mib: Option<u64>,
    /// Processor time in one life of its own process, in seconds: then it is ended, which counts as a crash, and started again.
    pub cpu_seconds: Option<NonZeroU64>,
    /// Whether its own process may start others; `None` is `false`.
    pub processes: Option<bool>,
    /// Longest time for it to be created and started; in a process of its own, to be loaded as well.
    #[serde(deserialize_with = "seconds")]
    pub start_deadline: Duration,
    /// Whether lock file and signature hold for it.
    pub trust: TrustSetting,
    /// Whether loading it may change the host's process.
    pub side_effects: SideEffects,
    /// The plugin's own configuration.
    #[serde(deserialize_with = "config")]
    pub config: toml::Table,
}

impl Default for PluginSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            priority: None,
            triggers: Triggers::Handled,
            deadline: Duration::from_secs(5),
            answers: BTreeMap::new(),
            isolation: Isolation::InProcess,
            memory_mib: None,
            cpu_seconds: None,
            processes: None,
            start_deadline: Duration::from_secs(10),
            trust: TrustSetting::Enforce,
            side_effects: SideEffects::Refuse,
            config: toml::Table::new(),
        }
    }
}

impl PluginSettings {
    /// Which limits of a process of its own it is given, and does not have, since it runs in the host.
    pub(crate) fn limits_without_a_process(&self) -> Vec<&'static str> {
        let given = [
            ("memory_mib", self.memory_mib.is_some()),
            ("cpu_seconds", self.cpu_seconds.is_some()),
            ("processes", self.processes.is_some()),
        ];
        let ignored = given.into_iter().filter(|(_, given)| *given && self.isolation == Isolation::InProcess);
        ignored.map(|(key, _)| key).collect()
    }

    /// Whether bytes may run although loading them changes their process. One that is the plugin's own may be changed.
    pub(super) fn admits_side_effects(&self) -> bool {
        self.side_effects == SideEffects::Admit || self.isolation == Isolation::Process
    }
}

/// What becomes of a library that changes its process by being loaded: threads, descriptors, signal handlers, working directory,
/// environment, limits, locale, output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SideEffects {
    /// It is quarantined, unless it has a process of its own.
    #[default]
    Refuse,
    /// It is loaded all the same, and every start says so.
    Admit,
}

/// Where a plugin's code runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// In the host: fast, and a crash of it is a crash of the host.
    #[default]
    InProcess,
    /// In a process of its own, limited and supervised.
    Process,
}

/// Which triggers a plugin is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Triggers {
    /// All that it handles.
    #[default]
    Handled,
    /// These of them.
    Only(Vec<Trigger>),
    /// All that it handles, after the plugins that name the trigger.
    Global,
}

impl<'de> Deserialize<'de> for Triggers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl<'de> serde::de::Visitor<'de> for Written {
            type Value = Triggers;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"global\" or a list of triggers")
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Triggers, E> {
                if word == "global" { Ok(Triggers::Global) } else { Err(E::invalid_value(Unexpected::Str(word), &self)) }
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut names: A) -> Result<Triggers, A::Error> {
                let mut triggers = Vec::new();
                while let Some(name) = names.next_element::<String>()? {
                    triggers.push(trigger(&name).map_err(serde::de::Error::custom)?);
                }
                Ok(Triggers::Only(triggers))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

/// The trigger of this name, or an error that names the nearest.
fn trigger(name: &str) -> Result<Trigger, String> {
    Trigger::from_name(name).ok_or_else(|| format!("no trigger is called `{name}`{}", nearest_trigger(name)))
}

/// What an answer does to the chain of plugins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerMode {
    /// It replaces the answer before it, and the next plugin is asked: the last answer wins.
    #[default]
    ReturnLast,
    /// It ends the chain.
    First,
    /// It is added to the answers before it, and the next plugin is asked: the answer is the list of all. Where a trigger takes several
    /// keys there is no such list, and this is [`ReturnLast`](Self::ReturnLast).
    All,
}

/// Reads a configuration that is handed on as JSON: a date of TOML becomes a text, and a number that JSON cannot say is refused.
pub(crate) fn config<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<toml::Table, D::Error> {
    fn check(value: &mut toml::Value) -> Result<(), String> {
        match value {
            toml::Value::Float(number) if !number.is_finite() => Err(format!("{number} has no JSON form: use a text instead")),
            toml::Value::Datetime(date) => {
                *value = date.to_string().into();
                Ok(())
            }
            toml::Value::Array(items) => items.iter_mut().try_for_each(check),
            toml::Value::Table(members) => members.iter_mut().try_for_each(|(_, value)| check(value)),
            _ => Ok(()),
        }
    }

    let mut table = toml::Table::deserialize(deserializer)?;
    for (key, value) in &mut table {
        check(value).map_err(|reason| serde::de::Error::custom(format!("config.{key}: {reason}")))?;
    }
    Ok(table)
}

/// What the process of a small plugin needs to come up, in MiB of address space.
pub const LEAST_MEMORY_MIB: u64 = 32;
/// What the process of a plugin gets where nobody says how much, in MiB of address space.
pub const USUAL_MEMORY_MIB: u64 = 4096;
/// All the address space that a process has, 128 TiB, in MiB: more would be no limit.
pub const MOST_MEMORY_MIB: u64 = 1 << 27;

fn memory_mib<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match u64::deserialize(deserializer)? {
        much if much > MOST_MEMORY_MIB => Err(serde::de::Error::custom(format!(
            "found {much} MiB; expected at most {MOST_MEMORY_MIB}, which is all that a process can address"
        ))),
        little if little < LEAST_MEMORY_MIB => Err(serde::de::Error::custom(format!(
            "found {little} MiB; expected at least {LEAST_MEMORY_MIB}, without which no process of a plugin comes up"
        ))),
        enough => Ok(Some(enough)),
    }
}

/// A time that every clock can add: above 0, and ten years at most.
pub(crate) fn usable(seconds: f64) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero() && *time <= LONGEST)
}

/// Reads a number of seconds.
pub(crate) fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    usable(seconds).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "{} is no time to wait: expected a number of seconds above 0, ten years at most",
            number(seconds)
        ))
    })
}
