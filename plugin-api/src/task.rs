//! Tasks: what a task body is given and what it returns.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::bounds;
use crate::error::{Error, TaskCancelError, TaskError, TaskPluginTriggerError};
use crate::event::Call;
use crate::host::{CancelFlag, Host, Level};
use crate::strict::to_raw_value;

/// One run of a task, as it crosses the boundary:
///
/// ```json
/// {"task": {"name": "add", "uuid": "…", "attempt": 1, "attempts": 3}, "args": [1], "kwargs": {"b": 2}}
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskInput<'a> {
    /// Which run of which task.
    pub task: TaskRun,
    /// Positional arguments, a JSON list.
    #[serde(borrow)]
    pub args: &'a RawValue,
    /// Named arguments, a JSON object.
    #[serde(borrow)]
    pub kwargs: &'a RawValue,
}

/// Which run of which task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskRun {
    /// The task's name.
    pub name: std::sync::Arc<str>,
    /// Version 4, lower-case, hyphenated.
    pub uuid: std::sync::Arc<str>,
    /// Which run this is, from 1.
    pub attempt: u32,
    /// How many there may be in all.
    pub attempts: u32,
}

/// What a task body knows of itself.
#[derive(Debug, Clone)]
pub struct TaskContext {
    run: TaskRun,
    cancel: CancelFlag,
    host: Host,
}

impl TaskContext {
    /// A context for one run.
    #[must_use]
    pub fn new(run: TaskRun, cancel: CancelFlag, host: Host) -> Self {
        Self { run, cancel, host }
    }

    /// Which run of which task, as it crosses the boundary.
    #[must_use]
    pub fn run(&self) -> &TaskRun {
        &self.run
    }

    /// The task's name.
    #[must_use]
    pub fn task_name(&self) -> &str {
        &self.run.name
    }

    /// The task's id.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.run.uuid
    }

    /// Which run this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.run.attempt
    }

    /// How many runs there may be in all.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.run.attempts
    }

    /// Whether no further attempt will follow this one.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.run.attempt >= self.run.attempts
    }

    /// Whether nobody waits for this run any more. A long sync task should look now and then; an async one is dropped.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Sends a line to the host's log.
    pub fn log(&self, level: Level, message: impl std::fmt::Display) {
        self.host.log(level, message);
    }

    /// The host: clock, data directory, log.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The configuration of whoever provides the task: `[plugins.NAME.config]`, or `[tasks.NAME.config]` of an application's.
    ///
    /// # Errors
    ///
    /// When it does not have the shape of a `T`.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        self.host.config()
    }

    /// Makes the error that asks the plugins: `Err(ctx.plugin_error(json!({"message": "…"})))?`.
    #[must_use]
    pub fn plugin_error(&self, kwargs: impl Serialize) -> TaskPluginTriggerError {
        TaskPluginTriggerError::with_kwargs(kwargs)
    }

    /// Makes the error that ends the task as `cancel`: `Err(ctx.cancel("no longer wanted"))?`.
    #[must_use]
    pub fn cancel(&self, reason: impl Into<String>) -> TaskCancelError {
        TaskCancelError::new(reason)
    }
}

/// Reads arguments from JSON: a list into a tuple or a `Vec`, an object into a struct or a map, and nothing into `()`.
///
/// # Errors
///
/// Error type `ArgumentError`, naming `part` and what was found.
pub fn read_argument<T: DeserializeOwned>(part: &str, json: &str) -> Result<T, TaskError> {
    // `()` is `null` to serde, and no arguments are `[]` and `{}` to QTasks.
    let inside = json.trim().strip_prefix(['[', '{']).and_then(|rest| rest.strip_suffix([']', '}']));
    let is_empty = inside.is_some_and(|inside| inside.trim().is_empty());
    // What takes no room is most likely `()`: an error that nobody sees costs more than all the rest.
    if is_empty
        && size_of::<T>() == 0
        && let Ok(nothing) = serde_json::from_str("null")
    {
        return Ok(nothing);
    }
    serde_json::from_str(json)
        .or_else(|error| if is_empty { serde_json::from_str("null").map_err(|_| error) } else { Err(error) })
        .map_err(|error: serde_json::Error| {
            let mut reason = error.to_string();
            if reason.contains("expected unit") {
                "this task takes none".clone_into(&mut reason);
            }
            // Arguments are one JSON value: what trails are more items of a list than its tuple has.
            let reason = reason.replace("trailing characters", "more values than this task takes");
            TaskError::other("ArgumentError", format!("{part} {}: {reason}", excerpt(json)))
        })
}

fn excerpt(json: &str) -> std::borrow::Cow<'_, str> {
    const SHOWN: usize = 120;
    match json.char_indices().nth(SHOWN) {
        None => json.into(),
        Some((end, _)) => format!("{}…", &json[..end]).into(),
    }
}

/// A task's call, taken apart.
#[derive(Debug)]
pub struct OpenTask<'a> {
    /// What the body knows of itself.
    pub context: TaskContext,
    /// Positional arguments, a JSON list.
    pub args: &'a str,
    /// Named arguments, a JSON object.
    pub kwargs: &'a str,
}

/// Takes a task's call apart.
///
/// # Errors
///
/// When the host sent something else than a [`TaskInput`].
pub fn open_task<'a>(call: &Call<'a>) -> Result<OpenTask<'a>, TaskError> {
    let input: TaskInput<'a> = serde_json::from_str(call.input)
        .map_err(|error| Error::msg(format_args!("the host's call of task {} is unreadable: {error}", call.name)))
        .map_err(|error| TaskError::Other(error.into_body()))?;
    let context = TaskContext::new(input.task, call.cancel.clone(), call.host.clone());
    Ok(OpenTask { context, args: input.args.get(), kwargs: input.kwargs.get() })
}

/// A task's result, as JSON text.
///
/// # Errors
///
/// Error type `ResultError` when the value has no JSON form, or one beyond [`bounds`].
pub fn write_result<T: Serialize>(value: &T) -> Result<Box<RawValue>, TaskError> {
    let refused = |reason: String| TaskError::other("ResultError", format!("the task's result {reason}"));
    let result = to_raw_value(value).map_err(|error| refused(format!("has no JSON form: {error}")))?;
    bounds::check_payload(result.get()).map_err(|error| refused(format!("is {error}")))?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_tuples_structs_and_nothing() {
        #[derive(Deserialize)]
        struct Named {
            b: i32,
        }
        let (a,): (i32,) = read_argument("args", "[1]").expect("a tuple");
        let named: Named = read_argument("kwargs", r#"{"b": 2}"#).expect("a struct");
        let () = read_argument("args", "[]").expect("no positional arguments");
        let () = read_argument("kwargs", "{}").expect("no named arguments");
        assert_eq!((a, named.b), (1, 2));
        let error = read_argument::<(i32,)>("args", r#"["x"]"#).expect_err("not a number");
        assert!(error.to_string().contains(r#"args ["x"]"#), "{error}");
        let () = read_argument("args", " [ ] ").expect("no positional arguments");
        let () = read_argument("kwargs", "{\n}").expect("no named arguments");
        let error = read_argument::<(i32,)>("args", "[1, 2]").expect_err("one too many");
        assert_eq!(error.to_string(), "ArgumentError: args [1, 2]: more values than this task takes at line 1 column 5");
        let error = read_argument::<()>("kwargs", r#"{"a": 1}"#).expect_err("one too many");
        assert_eq!(error.to_string(), r#"ArgumentError: kwargs {"a": 1}: this task takes none"#);
        let long = format!("[{}]", "é".repeat(1000));
        let error = read_argument::<(i32,)>("args", &long).expect_err("no JSON").to_string();
        assert!(error.starts_with(&format!("ArgumentError: args [{}…: ", "é".repeat(119))), "{error}");
    }
}
