//! What a call came to, wherever it ran.

use qtasks_plugin_api::ErrorBody;
use qtasks_plugin_api::abi::loaded::Received;
pub(super) use qtasks_plugin_api::abi::loaded::checked;

/// What a call came to. A failure of the plugin is an outcome like the others: it never stops the host.
pub type Outcome = Received;

/// `type` of a call that did not end in time.
pub const DEADLINE_ERROR: &str = "DeadlineExceeded";
/// `type` of a call whose plugin's process ended.
pub const CRASH_ERROR: &str = "PluginCrashed";
/// `type` of a call to a plugin that was tripped.
pub const TRIPPED_ERROR: &str = "PluginTripped";
/// `type` of a call that would nest too deep in other calls.
pub const NESTED_ERROR: &str = "NestedTooDeep";

/// `type` of a call that found too many others under way.
pub const BUSY_ERROR: &str = "TooManyCalls";

/// This many calls of one plugin may be under way at once, in this process or in its own.
pub(super) const MOST_CALLS: usize = 1024;

/// A call beyond [`MOST_CALLS`].
pub(super) fn too_many() -> Outcome {
    failed(BUSY_ERROR, format!("{MOST_CALLS} calls of this plugin are under way already"))
}

/// A failure, in the host's words.
pub(super) fn failed(kind: &'static str, message: String) -> Outcome {
    Outcome::Failed(Box::new(ErrorBody::new(kind, message)))
}
