//! Tasks: what they are ([`model`]), what runs them ([`function`], [`command`] with its `guard`), who knows them ([`registry`]), and the
//! one run of one task with all its steps ([`executor`]).

pub mod command;
pub mod error_kinds;
pub mod executor;
pub mod function;
pub(crate) mod guard;
pub mod middleware;
pub mod model;
pub mod registry;
pub mod report;
pub mod settings;

pub use error_kinds::{ErrorKinds, ErrorKindsError};
pub use executor::{Ended, Execution, ExecutorSettings, TaskExecutor};
pub use function::{BoxFuture, TaskFunction, TaskLimits};
pub use middleware::Middleware;
pub use model::{Task, TaskModelError};
pub use qtasks_plugin_api::{TaskCancelError, TaskContext, TaskError, TaskPluginTriggerError};
pub use registry::{TaskRegistry, TaskRegistryError};
pub use report::{Attempt, Status, TaskReport};
pub use settings::{Intercept, TaskSettings};
