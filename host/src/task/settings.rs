//! What the operator says about one task: `[tasks.NAME]`.

use std::time::Duration;

use serde::Deserialize;

/// Settings of one task. With `command`, the task is the command; else it is the application's or a plugin's task of this name.
///
/// ```toml
/// [tasks.count_words]
/// command = ["wc", "-w"]       # arguments as JSON on its standard input, a JSON result from its standard output
/// max_time = 10.0              # seconds for one attempt
/// attempts = 3                 # runs in all; an error is tried again until they are used up
/// intercept = "all"            # ask the plugins about every failure, not only about plugin errors
/// ```
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// Program and arguments. Only what stands here can run; nothing of a task's input chooses a program.
    pub command: Option<Vec<String>>,
    /// Longest time for one attempt.
    #[serde(deserialize_with = "optional_seconds")]
    pub max_time: Option<Duration>,
    /// Runs in all.
    pub attempts: Option<u32>,
    /// What is sent to the plugins.
    pub intercept: Option<Intercept>,
    /// What the task sees as `ctx.config()`. For a task of the application or a command.
    pub config: toml::Table,
}

/// Which failures the plugins are asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intercept {
    /// Plugin errors, as in QTasks.
    #[default]
    PluginErrors,
    /// Every failure: errors, panics, time-outs, exit statuses.
    All,
}

fn optional_seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::plugin::settings::seconds(deserializer).map(Some)
}
