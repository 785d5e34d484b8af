//! Plugins: found in a directory, looked at, loaded, created, and called by trigger name.
//!
//! A library's way through the files, in order: [`mod@discover`] lists candidates and runs nothing; [`manifest`] reads what a
//! library declares, still running nothing; [`loader`] takes it through these stages; `bring_up` opens it with `library`, and starts it;
//! [`instance`] is a plugin that can be called; [`registry`] says who is asked for which trigger; `watch`
//! and `replace` are about what changes in the directory later.
//!
//! This room knows nothing of tasks: it moves bytes to named triggers and to numbered entries.

pub mod discover;
pub mod bytes;
pub mod manifest;
pub mod elf;
pub mod trust;
pub mod verdicts;
pub mod probe;
pub mod process;
pub(crate) mod library;
pub mod load_error;
pub mod start_watch;
pub mod inspected;
mod read_ahead;
pub mod report;
pub mod loader;
pub(crate) mod bring_up;
pub mod outcome;
pub mod instance;
pub(crate) mod hung;
pub mod culprit;
pub mod fatal;
pub mod registry;
pub(crate) mod watch;
pub(crate) mod replace;
pub mod services;
pub mod settings;

pub use discover::{Candidate, DiscoverError, FileError, Strictness, discover};
pub use inspected::Inspected;
pub use instance::{Origin, Plugin, PluginIdentity};
pub use load_error::{LoadError, LoadErrorKind};
pub use loader::{LoadPolicy, Loaded, Loader};
pub use manifest::{Manifest, ManifestError};
pub use outcome::{BUSY_ERROR, CRASH_ERROR, DEADLINE_ERROR, NESTED_ERROR, Outcome, TRIPPED_ERROR};
pub use registry::{Registry, RegistryError, Subscription};
pub use report::{LoadReport, LoadState};
pub use settings::{AnswerMode, Isolation, PluginSettings, Triggers};
pub use trust::{TrustError, TrustPolicy, TrustSetting, TrustState};
