//! What a handler is given: the event, typed or as raw JSON.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::host::{CancelFlag, Host};
use crate::json::Json;

/// One call of a handler or a task, as it arrives in the plugin.
#[derive(Debug)]
pub struct Call<'a> {
    /// The trigger's or task's name.
    pub name: &'a str,
    /// The JSON text that came with it.
    pub input: &'a str,
    /// Tells whether somebody still waits.
    pub cancel: &'a CancelFlag,
    /// The host.
    pub host: &'a Host,
}

/// A type that a handler may take.
#[diagnostic::on_unimplemented(
    message = "a handler cannot take a `{Self}`",
    note = "it takes an `Event<'_>`, or for `task_executor_run_task_trigger_error` a `TriggerError<'_>`; `event.kwargs.to()` reads other types"
)]
pub trait FromCall<'a>: Sized {
    /// Reads it from the call.
    ///
    /// # Errors
    ///
    /// When the event's kwargs do not have this shape.
    fn from_call(call: &Call<'a>) -> Result<Self, Error>;
}

/// An event as it came: the trigger's name and the kwargs as JSON text.
///
/// Takes every trigger; a handler of `global` gets this one.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The trigger's name.
    pub trigger: &'a str,
    /// The kwargs: a JSON object whose keys QTasks documents for the trigger.
    pub kwargs: Json<'a>,
    /// Tells whether somebody still waits for the answer.
    pub cancel: &'a CancelFlag,
}

impl<'a> FromCall<'a> for Event<'a> {
    fn from_call(call: &Call<'a>) -> Result<Self, Error> {
        Ok(Self {
            trigger: call.name,
            kwargs: serde_json::from_str(call.input).map_err(|error| unreadable(call, &error))?,
            cancel: call.cancel,
        })
    }
}

fn unreadable(call: &Call<'_>, error: &serde_json::Error) -> Error {
    Error::msg(format_args!(
        "the kwargs of {} are not what this handler takes: {error}; take an `Event<'_>` to see them as they are",
        call.name
    ))
}

/// An event of `task_executor_run_task_trigger_error`: a task raised a plugin error.
///
/// ```json
/// {"task_executor": {"name": "TaskExecutor", "attempt": 1, "attempts": 3},
///  "task_func": {"name": "add", "provided_by": "application"},
///  "task_broker": {"uuid": "…", "task_name": "add", "priority": 0, "args": [1], "kwargs": {"b": 2}},
///  "e": {"type": "TaskPluginTriggerError", "message": "…", "args": [], "kwargs": {"message": "…"}},
///  "result": 123}
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TriggerError<'a> {
    /// The executor.
    #[serde(borrow)]
    pub task_executor: TaskExecutorInfo<'a>,
    /// The task's function.
    #[serde(borrow)]
    pub task_func: TaskFunc<'a>,
    /// The task as the broker has it.
    #[serde(borrow)]
    pub task_broker: TaskBroker<'a>,
    /// The error.
    #[serde(borrow)]
    pub e: RaisedError<'a>,
    /// What the plugins before this one answered last, if any did.
    #[serde(borrow, default, deserialize_with = "answered", skip_serializing_if = "Option::is_none")]
    pub result: Option<Json<'a>>,
    /// Tells whether somebody still waits for the answer.
    #[serde(skip)]
    pub cancel: CancelFlag,
}

/// A `null` that is there is an answer, which serde's `Option` takes for an absent one.
fn answered<'de: 'a, 'a, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Json<'a>>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// The executor that runs the task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskExecutorInfo<'a> {
    /// `TaskExecutor`.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Which run of this task this is, from 1.
    pub attempt: u32,
    /// How many runs there may be in all, when a plugin asks for them.
    pub attempts: u32,
}

impl TaskExecutorInfo<'_> {
    /// Whether asking for another attempt is of no use.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.attempt >= self.attempts
    }
}

/// The task's function.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskFunc<'a> {
    /// The task's name.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Who provides it: `application`, `command`, or a plugin's name.
    #[serde(borrow)]
    pub provided_by: Cow<'a, str>,
}

/// The task as the broker has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskBroker<'a> {
    /// Version 4, lower-case, hyphenated.
    #[serde(borrow)]
    pub uuid: Cow<'a, str>,
    /// The task's name.
    #[serde(borrow)]
    pub task_name: Cow<'a, str>,
    /// Higher runs first.
    pub priority: i64,
    /// Positional arguments, a JSON list.
    #[serde(borrow)]
    pub args: Json<'a>,
    /// Named arguments, a JSON object.
    #[serde(borrow)]
    pub kwargs: Json<'a>,
}

/// The error that the task raised.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RaisedError<'a> {
    /// `TaskPluginTriggerError`, or what else was intercepted: `Panic`, `TimeoutError`, a Rust type name.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'a, str>,
    /// What happened.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    /// Positional payload, a JSON list.
    #[serde(borrow)]
    pub args: Json<'a>,
    /// Named payload, a JSON object.
    #[serde(borrow)]
    pub kwargs: Json<'a>,
}

impl fmt::Display for RaisedError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.message, self.kwargs.text()) {
            ("", "{}") => f.write_str(&self.kind),
            ("", payload) => write!(f, "{}: {payload}", self.kind),
            (message, _) => write!(f, "{}: {message}", self.kind),
        }
    }
}

impl<'a> FromCall<'a> for TriggerError<'a> {
    // In the handler's own code, and read in one go: each move of an event is 256 bytes.
    #[inline]
    fn from_call(call: &Call<'a>) -> Result<Self, Error> {
        let read = serde_json::from_str(call.input);
        read.map(|event| Self { cancel: call.cancel.clone(), ..event }).map_err(|error| unreadable(call, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_was_raised_is_told_with_its_message_or_else_its_payload() {
        for (message, kwargs, told) in
            [("", "{}", "E"), ("", r#"{"code":7}"#, r#"E: {"code":7}"#), ("m", r#"{"code":7}"#, "E: m")]
        {
            let raised = format!(r#"{{"type": "E", "message": "{message}", "args": [], "kwargs": {kwargs}}}"#);
            assert_eq!(serde_json::from_str::<RaisedError<'_>>(&raised).expect("an error").to_string(), told);
        }
    }
}
