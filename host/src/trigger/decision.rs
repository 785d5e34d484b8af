//! What is kept of each handler's call.

use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::{ErrorBody, Trigger};
use serde::{Deserialize, Serialize, Serializer};

use crate::plugin::PluginIdentity;

/// What a handler answered, without the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// Not handled.
    Pass,
    /// A value.
    Result,
    /// Another attempt.
    RetryAfter,
    /// The task is to be cancelled.
    Cancel,
    /// The error is to go on as another.
    ReplaceError,
    /// The task is to be set aside.
    DeadLetter,
    /// The plugin's own failure.
    Failed,
}

impl OutcomeKind {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Result => "result",
            Self::RetryAfter => "retry_after",
            Self::Cancel => "cancel",
            Self::ReplaceError => "replace_error",
            Self::DeadLetter => "dead_letter",
            Self::Failed => "failed",
        }
    }
}

/// One handler's call, as recorded: who, what, how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Decision {
    /// The event; the same for all handlers of one firing, unique in this process.
    pub event: u64,
    /// The trigger.
    pub trigger: Trigger,
    /// The plugin.
    #[serde(flatten)]
    pub by: Arc<PluginIdentity>,
    /// What it answered.
    pub outcome: OutcomeKind,
    /// How long the call took, in seconds on the wire.
    #[serde(rename = "seconds", serialize_with = "as_seconds")]
    pub duration: Duration,
    /// The plugin's own failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<ErrorBody>>,
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// A [`Decision`] as it is written. Read without `flatten`, which cannot hold JSON as text.
#[derive(Deserialize)]
struct Written {
    event: u64,
    trigger: Trigger,
    plugin: Arc<str>,
    version: Arc<str>,
    digest: Option<Arc<str>>,
    outcome: OutcomeKind,
    seconds: f64,
    failure: Option<Box<ErrorBody>>,
}

impl From<Written> for Decision {
    fn from(written: Written) -> Self {
        let Written { event, trigger, plugin, version, digest, outcome, seconds, failure } = written;
        let by = Arc::new(PluginIdentity { name: plugin, version, digest });
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Self { event, trigger, by, outcome, duration, failure }
    }
}
