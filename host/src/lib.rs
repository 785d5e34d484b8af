//! A task worker whose error handling lives in native plugins.
//!
//! A task that cannot go on raises a *plugin error*. The executor fires `task_executor_run_task_trigger_error` at the plugins that
//! asked for it; what a plugin answers becomes the task's result, and with no answer the error goes on. Plugins are `cdylib`s
//! built against `qtasks-plugin-api`, found in a directory and loaded at run time.
//!
//! # The life of an application
//!
//! 1. [`App::new`] with [`Settings`], [`App::task`] for each task, [`App::add_plugin`] for plugins that are linked in.
//! 2. [`App::start`] loads the plugin directory; [`Running::plugin_reports`] says what became of each file.
//! 3. [`Running::run`] runs one task to its end, or [`Running::worker`] takes them from a [`broker`].
//! 4. [`Running::stop`] stops the plugins. Nothing is ever unloaded.
//!
//! # Rooms
//!
//! Imports run downwards only: [`app`] → [`worker`] → [`broker`] → [`task`] → [`trigger`] → [`plugin`].

mod nearest;
mod shown;

pub mod app;
pub mod broker;
#[doc(hidden)]
pub mod fuzzing;
pub mod plugin;
pub mod settings;
pub mod task;
pub mod trigger;
pub mod worker;

pub use app::{App, Running, StartError};
pub use plugin::Triggers;
pub use settings::Settings;
pub use shown::{Shown, shown};
pub use task::{Status, Task, TaskCancelError, TaskContext, TaskError, TaskPluginTriggerError, TaskReport};

/// The README's Rust is compiled and run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
