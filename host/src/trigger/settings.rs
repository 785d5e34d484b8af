//! What the operator says about one trigger: `[triggers.NAME]`.

use serde::Deserialize;

use crate::plugin::AnswerMode;

/// Settings of one trigger.
///
/// ```toml
/// [triggers.task_executor_run_task_trigger_error]
/// answers = "return_last"      # or "first", or "all"
/// ```
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TriggerSettings {
    /// What an answer does to the chain, where the plugin's own settings do not say otherwise.
    pub answers: AnswerMode,
}
