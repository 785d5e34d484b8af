//! A task worker whose error handling lives in native plugins.
//!
//! A task that cannot go on raises a *plugin error*. The executor fires `task_executor_run_task_trigger_error` at the plugins that
//! asked for it; what a plugin answers becomes the task's result, and with no answer the error goes on. Plugins are `cdylib`s
//! built against `qtasks-plugin-api`, found in a directory and loaded at run time.
//!
//! # The life of a worker
//!
//! [`App::run`] is all of it, until a signal says stop. Step by step:
//!
//! 1. [`App::new`] with [`Settings`], [`App::task`] for each task, [`App::add_plugin`] for plugins that are linked in.
//! 2. [`App::start`] loads the plugin directory; [`Running::plugin_reports`] says what became of each file.
//! 3. [`Running::starter`] opens the [`broker`] of the settings: an SQLite file, a Redis server, or this process' memory.
//! 4. [`starter::Starter::run`] fires `starter_start` and runs a [`worker::Worker`]. It attaches to the broker, from where on its beat
//!    keeps its leases; it takes tasks, runs them, and records what became of them, many at once. Now and then it takes over what
//!    lost workers held, and removes what is old.
//! 5. At SIGHUP, or when the watched plugin directory has changed, a [`Replacer`] makes what lies there what runs.
//! 6. At SIGTERM, Ctrl-C, a [`worker::Stop`] or [`QueueTasks::stop`] nothing more is taken. What runs has the drain deadline to end; the
//!    rest is given back to the broker.
//! 7. `starter_stop` is fired and the plugins are stopped. Nothing is ever unloaded.
//!
//! A client needs no worker: [`QueueTasks`] over [`Running::open_broker`] adds tasks from any process, and waits for their records. An
//! application without a broker runs single tasks with [`Running::run`] and ends with [`Running::stop`].
//!
//! # Rooms
//!
//! Imports run downwards only: [`app`] → [`running`] → [`starter`], [`stats`], [`replay`] → [`replacer`], [`signals`], [`queue_tasks`] → [`worker`] → [`broker`] → [`task`] → [`trigger`] → [`plugin`].

mod private_dir;
mod shown;

pub mod app;
pub mod broker;
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
pub mod plugin;
pub mod queue_tasks;
pub mod replacer;
pub mod replay;
pub mod running;
pub mod settings;
pub mod signals;
pub mod starter;
pub mod stats;
pub mod task;
pub mod trigger;
pub mod worker;

pub use app::{App, RunError, StartError};
pub use plugin::Triggers;
pub use private_dir::StateDirError;
pub use queue_tasks::QueueTasks;
pub use replacer::{ReplaceError, Replaced, Replacer};
pub use running::Running;
pub use settings::Settings;
pub use shown::{Shown, on_one_line, shown};
pub use task::{Status, Task, TaskCancelError, TaskContext, TaskError, TaskPluginTriggerError, TaskReport};

/// The README's Rust is compiled and run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
