//! Triggers: an event is fired, the plugins that asked for it are asked in order, and what they answered is gathered.
//!
//! [`dispatch`] is the way of one event; [`answers`] says what an answer means for a trigger's kwargs; [`decision`] is what is kept
//! of each call.

pub mod answers;
pub mod decision;
pub mod dispatch;
pub mod settings;

pub use answers::{Answered, Resolution};
pub use decision::{Decision, OutcomeKind};
pub use dispatch::{Dispatched, Dispatcher};
pub use qtasks_plugin_api::Trigger;
pub use settings::TriggerSettings;
