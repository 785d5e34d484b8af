//! What plugins are told of the function behind a task.

use std::sync::Arc;

use serde::Serialize;

use super::Shared;

/// `task_func` in an event; `null` for a task that nobody provides.
#[derive(Debug, Serialize)]
pub(super) struct FunctionInfo {
    name: Arc<str>,
    provided_by: Arc<str>,
}

impl FunctionInfo {
    pub(super) fn of(shared: &Shared, name: &str) -> Option<Self> {
        let tasks = shared.executor.tasks();
        let function = tasks.get(name)?;
        Some(Self { name: function.name().into(), provided_by: function.provided_by().into() })
    }
}
