//! Tasks: what a task body is given and what it returns.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::bounds;
use crate::error::{Error, TaskCancelError, TaskError, TaskPluginTriggerError};
use crate::event::Call;
use crate::host::{CancelFlag, Host, Level};
use crate::plain_words::{explained, without_place};
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
/// `args` is always a list: one argument is `(a,): (i64,)`. A tuple takes as many values as it has. Where the last of them may be left
/// out, a struct takes the list, its fields in their order, those with `#[serde(default)]` last:
///
/// ```
/// #[derive(serde::Deserialize)]
/// struct Resize {
///     file: String,
///     #[serde(default)]
///     width: Option<u32>,
/// }
///
/// let Resize { file, width } = qtasks_plugin_api::read_argument("args", r#"["a.png"]"#)?;
/// assert_eq!((file.as_str(), width), ("a.png", None));
/// # Ok::<(), qtasks_plugin_api::TaskError>(())
/// ```
///
/// In `kwargs` a field of type `Option` may be left out without more.
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
        .map_err(|error: serde_json::Error| unsuited(part, json, std::any::type_name::<T>(), &error.to_string()))
}

/// What is wrong with arguments, for whoever gave them, and where that is the task itself, for its author.
#[cold]
fn unsuited(part: &str, json: &str, type_name: &str, said: &str) -> TaskError {
    let (words, offset) = without_place(said, json);
    let is_whole = offset == Some(json.len() - json.trim_start().len());
    let counts = words
        .strip_prefix("invalid length ")
        .and_then(|rest| rest.split_once(", expected "))
        .filter(|_| offset == Some(json.trim_end().len()));
    let reason = if words.contains("expected unit") {
        "this task takes none".to_owned()
    } else if words == "trailing characters" {
        // Arguments are one JSON value: what trails are more items of a list than its tuple has.
        "more values than this task takes".to_owned()
    } else if let Some((found, expected)) = counts {
        let expected: String = expected.chars().filter(char::is_ascii_digit).collect();
        format!("found {found} of the {expected} values that this task takes")
    } else if is_whole && words.starts_with("invalid type: sequence") {
        let bare = plain_type(type_name);
        format!("args is a list, and this task takes one bare value: its author writes `(a,): ({bare},)`")
    } else if is_whole && words.starts_with("invalid type: map") {
        let bare = plain_type(type_name);
        format!("kwargs is an object, and this task takes one bare `{bare}`: its author writes a struct that has a field of it")
    } else {
        let (message, hint) = explained(said, json, "a JSON object");
        message + &hint
    };
    TaskError::other("ArgumentError", format!("{part} {}: {reason}", excerpt(json)))
}

/// `core::option::Option<alloc::string::String>` → `Option<String>`.
fn plain_type(full: &str) -> String {
    let mut pieces = full.split("::").peekable();
    let mut plain = String::new();
    while let Some(piece) = pieces.next() {
        let is_path = pieces.peek().is_some();
        plain += if is_path { piece.trim_end_matches(|letter: char| letter.is_alphanumeric() || letter == '_') } else { piece };
    }
    plain
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
        assert_eq!(error.to_string(), "ArgumentError: args [1, 2]: more values than this task takes");
        let error = read_argument::<()>("kwargs", r#"{"a": 1}"#).expect_err("one too many");
        assert_eq!(error.to_string(), r#"ArgumentError: kwargs {"a": 1}: this task takes none"#);
        let long = format!("[{}]", "é".repeat(1000));
        let error = read_argument::<(i32,)>("args", &long).expect_err("no JSON").to_string();
        assert!(error.starts_with(&format!("ArgumentError: args [{}…: ", "é".repeat(119))), "{error}");
    }

    #[test]
    fn what_arguments_do_not_suit_is_told_in_words_of_who_gave_them_and_of_who_takes_them() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "its shape alone is of interest")]
        struct Size {
            width: u32,
            #[serde(default)]
            height: u32,
        }
        fn said<T: DeserializeOwned + std::fmt::Debug>(part: &str, json: &str) -> String {
            read_argument::<T>(part, json).expect_err(json).to_string().replace("ArgumentError: ", "")
        }
        let bare = "args is a list, and this task takes one bare value: its author writes";
        assert_eq!(said::<i64>("args", "[5]"), format!("args [5]: {bare} `(a,): (i64,)`"));
        assert_eq!(said::<String>("args", " [\"a\"]"), format!("args  [\"a\"]: {bare} `(a,): (String,)`"));
        assert_eq!(said::<Option<String>>("args", "[1, 2]"), format!("args [1, 2]: {bare} `(a,): (Option<String>,)`"));
        assert_eq!(said::<(i64, i64)>("args", "[5]"), "args [5]: found 1 of the 2 values that this task takes");
        assert_eq!(said::<Size>("args", "[]"), "args []: found 0 of the 2 values that this task takes");
        assert_eq!(
            said::<(Vec<u8>,)>("args", "[[1, 300]]"),
            "args [[1, 300]]: invalid value: integer `300`, expected a whole number from 0 to 255"
        );
        assert_eq!(said::<((u8, u8),)>("args", "[[1]]"), "args [[1]]: invalid length 1, expected a tuple of size 2");
        assert_eq!(
            said::<Size>("kwargs", r#"{"width": "x"}"#),
            r#"kwargs {"width": "x"}: width: invalid type: string "x", expected a whole number from 0 to 4294967295"#
        );
        assert_eq!(
            said::<Size>("kwargs", r#"{"widht": 1}"#),
            r#"kwargs {"widht": 1}: unknown field `widht`, expected `width` or `height`; did you mean `width`?"#
        );
        assert!(
            said::<u8>("kwargs", r#"{"a": 1}"#)
                .ends_with("and this task takes one bare `u8`: its author writes a struct that has a field of it")
        );
    }

    #[test]
    fn the_last_positional_arguments_may_be_left_out_where_a_struct_takes_them() {
        #[derive(Deserialize)]
        struct Resize(String, #[serde(default)] Option<u32>, #[serde(default)] Option<bool>);
        for (json, expected) in
            [(r#"["a"]"#, (None, None)), (r#"["a", 1]"#, (Some(1), None)), (r#"["a", 1, true]"#, (Some(1), Some(true)))]
        {
            let Resize(file, width, keep) = read_argument("args", json).expect(json);
            assert_eq!((file.as_str(), (width, keep)), ("a", expected), "{json}");
        }
    }
}
