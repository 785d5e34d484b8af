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
//! 3. [`Running::run`] runs one task to its end, or [`Running::starter`] runs a worker that takes them from a [`broker`];
//!    [`QueueTasks`] adds tasks to it, from here or from anywhere.
//! 4. [`Running::stop`] stops the plugins, or [`starter::Starter::run`] at its end. Nothing is ever unloaded.
//!
//! [`App::run`] is all of it until a signal says stop.
//!
//! # Rooms
//!
//! Imports run downwards only: [`app`] → [`starter`], [`stats`] → [`queue_tasks`] → [`worker`] → [`broker`] → [`task`] → [`trigger`] → [`plugin`].

mod nearest;
mod shown;

pub mod app;
pub mod broker;
#[doc(hidden)]
pub mod fuzzing;
pub mod plugin;
pub mod queue_tasks;
pub mod settings;
pub mod starter;
pub mod stats;
pub mod task;
pub mod trigger;
pub mod worker;

pub use app::{App, RunError, Running, StartError};
pub use plugin::Triggers;
pub use queue_tasks::QueueTasks;
pub use settings::Settings;
pub use shown::{Shown, shown};
pub use task::{Status, Task, TaskCancelError, TaskContext, TaskError, TaskPluginTriggerError, TaskReport};

/// The README's Rust is compiled and run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
