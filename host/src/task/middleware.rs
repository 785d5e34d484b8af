//! Code of the application's around every task.

use serde_json::value::RawValue;

use super::function::BoxFuture;
use super::model::Task;
use qtasks_plugin_api::TaskError;

/// Runs before and after each task. An error of it ends the task; the plugins are not asked about it, as in QTasks.
pub trait Middleware: Send + Sync + 'static {
    /// Its name, in the events of `task_executor_middlewares_execute`.
    fn name(&self) -> &str;

    /// Runs first, and may change the task's arguments for this attempt. How often and how long it may run is settled by then.
    fn before<'a>(&'a self, _task: &'a mut Task) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Runs after the result is known, and may replace it. One beyond the bounds of every result is a `ResultError`.
    fn after<'a>(&'a self, _task: &'a Task, _returning: &'a mut Box<RawValue>) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
