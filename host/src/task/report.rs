//! What became of a task, as people and programs read it.

use std::sync::Arc;

use qtasks_plugin_api::ErrorBody;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::executor::{Ended, Execution};
use super::model::Task;
use crate::trigger::{Decision, Resolution};

/// A task's status, as in QTasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has a result.
    Success,
    /// It ended with an error.
    Error,
    /// It was cancelled.
    Cancel,
}

/// An attempt that failed, and who was asked about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// Which, from 1.
    pub attempt: u32,
    /// When it ended, in Unix seconds.
    pub at: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The error it raised.
    pub error: Box<ErrorBody>,
    /// Each plugin that was asked, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decision>,
}

/// What became of a task.
///
/// ```json
/// {"uuid": "…", "task": "add", "status": "success", "attempt": 1, "returning": 123,
///  "original_error": {"type": "TaskPluginTriggerError", "message": "…", "args": [], "kwargs": {…}},
///  "resolved_by": {"plugin": "documented-example", "version": "0.1.0", "outcome": "result"}}
/// ```
///
/// `returning` is there with status `success`, `error` with `error`, `cancel_reason` with `cancel`; `dead_letter` is the reason for
/// which a plugin set the task aside, with status `error`. Of a task that ran more than once `history` has the attempts before.
#[derive(Debug, Serialize)]
pub struct TaskReport {
    /// The task's id.
    pub uuid: Uuid,
    /// Its name.
    pub task: Arc<str>,
    /// How it ended.
    pub status: Status,
    /// In which attempt, from 1.
    pub attempt: u32,
    /// The result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returning: Option<Box<RawValue>>,
    /// The error it ended with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<ErrorBody>>,
    /// Why it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<String>,
    /// Why it was set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
    /// The error that the task raised, where a plugin decided what becomes of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_error: Option<Box<ErrorBody>>,
    /// Which plugin decided, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_by: Option<Resolution>,
    /// The attempts that failed before the last one, in order, where the broker hands them on: in memory it does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Attempt>,
    /// Of the last attempt: each plugin that was asked about the error, and each that answered or failed at another step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decision>,
}

impl TaskReport {
    /// The report of a run that is not tried again.
    pub(crate) fn new(task: Task, execution: Execution) -> Self {
        let Execution { ended, original_error, resolved_by, decisions, .. } = execution;
        let mut report = Self {
            uuid: task.uuid,
            task: task.name,
            status: Status::Error,
            attempt: task.attempt,
            returning: None,
            error: None,
            cancel_reason: None,
            dead_letter: None,
            original_error,
            resolved_by,
            history: Vec::new(),
            decisions,
        };
        match ended {
            Ended::Success { returning } => {
                report.status = Status::Success;
                report.returning = Some(returning);
            }
            Ended::Error { error } => report.error = Some(error),
            Ended::Cancel { reason } => {
                report.status = Status::Cancel;
                report.cancel_reason = Some(reason);
            }
            Ended::DeadLetter { reason } => {
                report.error.clone_from(&report.original_error);
                report.dead_letter = Some(reason);
            }
            // The worker tries again instead of reporting.
            Ended::Retry { .. } => report.error.clone_from(&report.original_error),
        }
        // Where nobody decided, the error itself is the original.
        report.original_error = report.original_error.filter(|_| report.resolved_by.is_some());
        report
    }
}
