//! What the operator says about one task: `[tasks.NAME]`.

use std::time::Duration;

use qtasks_plugin_api::plain_words::number;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::command::CommandTask;

/// Settings of one task. With `command`, the task is the command; else it is the application's or a plugin's task of this name.
///
/// ```toml
/// [tasks.count_words]
/// command = ["wc", "-w"]       # arguments as JSON on its standard input, a JSON result from its standard output
/// max_time = 10.0              # seconds for one attempt
/// attempts = 3                 # runs in all; an error is tried again until they are used up
/// retry_on = ["TimeoutError", "ArithmeticError"]   # only errors of these kinds and their children (see ErrorKinds); else every one
/// retry_delay = 2.0            # seconds before the second run; else none
/// retry_backoff = 1.5          # each further delay is so many times the one before it, up to max_retry_delay; else 1
/// intercept = "all"            # ask the plugins about every failure, not only about plugin errors
/// ```
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// Program and arguments. Only what stands here can run; nothing of a task's input chooses a program.
    #[serde(deserialize_with = "command")]
    pub command: Option<Vec<String>>,
    /// Longest time for one attempt.
    #[serde(deserialize_with = "optional_seconds")]
    pub max_time: Option<Duration>,
    /// Runs in all.
    #[serde(deserialize_with = "some_attempts")]
    pub attempts: Option<u32>,
    /// Which errors are tried again, by kind.
    pub retry_on: Option<Vec<String>>,
    /// Time before the second run.
    #[serde(deserialize_with = "delay")]
    pub retry_delay: Option<Duration>,
    /// By what each further delay grows.
    #[serde(deserialize_with = "factor")]
    pub retry_backoff: Option<f64>,
    /// What is sent to the plugins.
    pub intercept: Option<Intercept>,
    /// What the task sees as `ctx.config()`. For a task of the application: one of a plugin reads its plugin's, a command none.
    #[serde(deserialize_with = "crate::plugin::settings::config")]
    pub config: toml::Table,
}

/// Which failures the plugins are asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intercept {
    /// Plugin errors, as in QTasks.
    #[default]
    PluginErrors,
    /// Every failure: errors, panics, time-outs, exit statuses.
    All,
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    CommandTask::new(&words).map_err(D::Error::custom)?;
    Ok(Some(words))
}

/// No delay at all is one, too.
fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    let delay = if seconds == 0.0 { Some(Duration::ZERO) } else { crate::plugin::settings::usable(seconds) };
    let expected = "expected a number of seconds, 0 or more, ten years at most";
    delay.map(Some).ok_or_else(|| D::Error::custom(format!("retry_delay is {}; {expected}", number(seconds))))
}

fn some_attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    attempts(deserializer).map(Some)
}

/// How often at most a task runs.
pub(crate) fn attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom("found 0 attempts; expected at least 1, which is the first run")),
        attempts => Ok(attempts),
    }
}

fn factor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let factor = f64::deserialize(deserializer)?;
    if factor.is_finite() && factor >= 1.0 {
        return Ok(Some(factor));
    }
    Err(D::Error::custom(format!("retry_backoff is {}; expected a number, 1 or more", number(factor))))
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::plugin::settings::seconds(deserializer).map(Some)
}
