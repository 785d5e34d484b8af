//! Write a native plugin for task errors in safe Rust.
//!
//! A plugin is a struct with methods, and a table that says which trigger each method handles. Built as a `cdylib` and dropped
//! into the host's plugin directory, it is asked whenever a task raises a plugin error; what it answers becomes the task's
//! result.
//!
//! ```
//! use qtasks_plugin_api::{Error, Host, Plugin, TriggerError, export_plugin};
//!
//! struct ErrorHandler;
//!
//! impl Plugin for ErrorHandler {
//!     type Config = ();
//!     fn create(_config: (), _host: Host) -> Result<Self, Error> {
//!         Ok(Self)
//!     }
//! }
//!
//! impl ErrorHandler {
//!     fn on_error(&self, _event: TriggerError<'_>) -> i32 {
//!         123
//!     }
//! }
//!
//! export_plugin! {
//!     plugin: ErrorHandler,
//!     handlers: { task_executor_run_task_trigger_error => on_error },
//! }
//! ```
//!
//! # The life of a plugin
//!
//! 1. The host reads the manifest that [`export_plugin!`] placed in the library, without running anything.
//! 2. It loads the library and compares the boundary's layout.
//! 3. [`Plugin::create`] makes the plugin from its configuration; [`Plugin::start`] may refuse to go on.
//! 4. Handlers and tasks are called, concurrently, from any thread: blocking ones (the default) where waiting is allowed,
//!    `inline` ones directly on the dispatching thread, `async` ones on the plugin's own runtime (feature `async`).
//! 5. After the last call, [`Plugin::stop`]. The library is never unloaded.
//!
//! A panic anywhere in these is caught inside the plugin and becomes an error with its message and place.
//!
//! [`testing`] runs a plugin in a unit test through the same boundary, with no host and no `dlopen`.

// The macros name this crate by its outside name, in its own tests too.
extern crate self as qtasks_plugin_api;

mod answer;
mod config;
mod entry;
mod error;
mod event;
mod export;
mod guard;
mod host;
mod json;
mod strict;
mod task;
mod trigger;

pub mod abi;
pub mod bounds;
pub mod const_json;
pub mod fit;
mod logging;
pub mod manifest;
pub mod nearest;
pub mod note;
pub mod plain_words;
#[cfg(feature = "async")]
pub mod runtime;
pub mod testing;

pub use answer::{Answer, Directive, IntoAnswer};
pub use config::{ConfigValue, Field, PluginConfig, Schema};
pub use entry::TaskReturn;
pub use error::{
    CANCEL_ERROR, CONFIG_ERROR, Error, ErrorBody, PANIC_ERROR, PLUGIN_ERROR, TaskCancelError, TaskError, TaskPluginTriggerError,
};
pub use event::{Call, Event, FromCall, RaisedError, TaskBroker, TaskExecutorInfo, TaskFunc, TriggerError};
pub use export::{Export, Plugin};
pub use guard::guard;
pub use host::{CancelFlag, Host, HostServices, Init, Level, LogLine};
pub use json::{Json, from_object};
pub use strict::to_raw_value;
pub use task::{TaskContext, TaskInput, TaskRun, read_argument, write_result};
pub use trigger::Trigger;

/// What the macros use; not for anybody else.
#[doc(hidden)]
pub mod __private {
    pub use crate::abi::exported::Root;
    pub use crate::config::plain_name;
    pub use crate::entry::{Entry, handle, run_task};
    #[cfg(feature = "async")]
    pub use crate::entry::{handle_async, run_task_async};
    pub use crate::export::Export;
    pub use crate::manifest::{
        Mode, StaticManifest, bytes_of, known_trigger, listed_once, manifest_bytes, manifest_len, task_name, text_of,
    };
    pub use crate::note::Note;
    pub use crate::task::open_task;
    pub use serde;
}
