//! What plugins are shown of a component and of a task.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::record::Record;

/// A component as plugins see it:
///
/// ```json
/// {"name": "SqliteBroker", "url": "sqlite:tasks.db"}
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// The component's class.
    pub name: &'static str,
    /// Where it works, without a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Arc<str>>,
}

impl Component {
    /// A component that works at `url`.
    #[must_use]
    pub fn new(name: &'static str, url: &Arc<str>) -> Self {
        Self { name, url: Some(Arc::clone(url)) }
    }

    /// A component that is nowhere in particular.
    #[must_use]
    pub const fn named(name: &'static str) -> Self {
        Self { name, url: None }
    }
}

/// A task in the parts that QTasks passes one by one.
#[derive(Serialize)]
pub(crate) struct TaskParts<'a> {
    task_name: &'a str,
    uuid: Uuid,
    priority: i64,
    args: &'a RawValue,
    kw: &'a RawValue,
    created_at: f64,
}

impl<'a> TaskParts<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        let task = &record.task;
        Self {
            task_name: &task.name,
            uuid: task.uuid,
            priority: task.priority,
            args: &task.args,
            kw: &task.kwargs,
            created_at: task.created_at,
        }
    }
}
