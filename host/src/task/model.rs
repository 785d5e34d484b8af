//! A task as it waits and as it runs.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qtasks_plugin_api::bounds::{self, BoundsError};
use qtasks_plugin_api::plain_words::{in_plain_words, number};
use qtasks_plugin_api::{TaskError, from_object};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::plugin::settings::usable;

/// What a run of a task gives: its result as JSON text.
pub(super) type Returned = Result<Box<RawValue>, TaskError>;

/// A task: which one, with what, and how far it has come.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its id, version 4: other versions are misread by QTasks' Python clients.
    pub uuid: Uuid,
    /// Its name. No `:` in it, which is QTasks' separator.
    pub name: Arc<str>,
    /// Higher runs first.
    pub priority: i64,
    /// Positional arguments, a JSON list. Kept as text, so that big integers stay exact.
    pub args: Arc<RawValue>,
    /// Named arguments, a JSON object.
    pub kwargs: Arc<RawValue>,
    /// Longest time for one attempt, instead of the task's own.
    pub max_time: Option<Duration>,
    /// Runs in all, instead of the task's own.
    pub attempts: Option<u32>,
    /// Which run comes next, from 1.
    pub attempt: u32,
    /// When it was made, in Unix seconds.
    pub created_at: f64,
}

/// Why something is not a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskModelError {
    /// Not JSON, or not of a task's shape.
    #[error("not a task: {0}; expected {{\"task\": \"name\", \"args\": […], \"kwargs\": {{…}}}}")]
    Shape(String),
    /// An unusable name.
    #[error("{0:?} is not a task name: expected at least one character and no `:`")]
    Name(String),
    /// Arguments of another shape.
    #[error("{part} is {found}; expected {expected}")]
    Arguments {
        /// `args` or `kwargs`.
        part: &'static str,
        /// The beginning of what was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Longer, or nested deeper, than anything may be.
    #[error("{part} is {found}")]
    Bounds {
        /// `args` or `kwargs`.
        part: &'static str,
        /// What was found, and what is taken.
        found: BoundsError,
    },
    /// Another version than 4.
    #[error("uuid {0} has version {1}; expected version 4, which is what QTasks reads")]
    UuidVersion(Uuid, usize),
    /// A time that is none.
    #[error("max_time {} is no time: expected a number of seconds above 0, ten years at most", number(*.0))]
    MaxTime(f64),
    /// No attempt at all.
    #[error("attempts is 0; expected at least 1")]
    Attempts,
}

impl Task {
    /// A task with a new id, without arguments.
    ///
    /// # Errors
    ///
    /// [`TaskModelError::Name`].
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, TaskModelError> {
        Ok(Self {
            uuid: Uuid::new_v4(),
            name: checked_name(name.into())?,
            priority: 0,
            args: raw("[]"),
            kwargs: raw("{}"),
            max_time: None,
            attempts: None,
            attempt: 1,
            created_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        })
    }

    /// Gives it another name.
    ///
    /// # Errors
    ///
    /// [`TaskModelError::Name`].
    pub fn set_name(&mut self, name: impl Into<Arc<str>>) -> Result<(), TaskModelError> {
        self.name = checked_name(name.into())?;
        Ok(())
    }

    /// Gives it other positional arguments, a JSON list.
    ///
    /// # Errors
    ///
    /// [`TaskModelError::Arguments`] or [`TaskModelError::Bounds`].
    pub fn set_args(&mut self, args: &RawValue) -> Result<(), TaskModelError> {
        self.args = arguments("args", '[', "a JSON list", args.to_owned())?;
        Ok(())
    }

    /// Gives it other named arguments, a JSON object.
    ///
    /// # Errors
    ///
    /// [`TaskModelError::Arguments`] or [`TaskModelError::Bounds`].
    pub fn set_kwargs(&mut self, kwargs: &RawValue) -> Result<(), TaskModelError> {
        self.kwargs = arguments("kwargs", '{', "a JSON object", kwargs.to_owned())?;
        Ok(())
    }

    /// The same task with these arguments: anything that becomes a JSON list, and anything that becomes a JSON object.
    ///
    /// # Errors
    ///
    /// [`TaskModelError::Arguments`] or [`TaskModelError::Bounds`].
    pub fn with_arguments(mut self, args: impl Serialize, kwargs: impl Serialize) -> Result<Self, TaskModelError> {
        let text = |part, value: serde_json::Result<Box<RawValue>>| {
            value.map_err(|error| TaskModelError::Arguments { part, found: error.to_string(), expected: "a JSON value" })
        };
        self.args = arguments("args", '[', "a JSON list", text("args", qtasks_plugin_api::to_raw_value(&args))?)?;
        self.kwargs = arguments("kwargs", '{', "a JSON object", text("kwargs", qtasks_plugin_api::to_raw_value(&kwargs))?)?;
        Ok(self)
    }

    /// Reads a task from one JSON line:
    ///
    /// ```json
    /// {"task": "add", "args": [1], "kwargs": {"b": 2}, "uuid": "…", "priority": 0, "max_time": 2.5, "attempts": 3}
    /// ```
    ///
    /// Everything but `task` is optional.
    ///
    /// # Errors
    ///
    /// [`TaskModelError`], the first thing that is wrong.
    pub fn from_json(line: &str) -> Result<Self, TaskModelError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Line<'a> {
            #[serde(borrow)]
            task: Cow<'a, str>,
            args: Option<Box<RawValue>>,
            kwargs: Option<Box<RawValue>>,
            uuid: Option<Uuid>,
            #[serde(default)]
            priority: i64,
            max_time: Option<f64>,
            attempts: Option<u32>,
        }
        bounds::check_depth(line).map_err(|error| TaskModelError::Shape(error.to_string()))?;
        let line: Line<'_> = whole_object(line).map_err(|error| TaskModelError::Shape(reason(&error)))?;
        let mut task = Self::new(line.task)?;
        if let Some(args) = line.args {
            task.args = arguments("args", '[', "a JSON list", args)?;
        }
        if let Some(kwargs) = line.kwargs {
            task.kwargs = arguments("kwargs", '{', "a JSON object", kwargs)?;
        }
        if let Some(uuid) = line.uuid {
            if uuid.get_version_num() != 4 {
                return Err(TaskModelError::UuidVersion(uuid, uuid.get_version_num()));
            }
            task.uuid = uuid;
        }
        if let Some(seconds) = line.max_time {
            task.max_time = Some(usable(seconds).ok_or(TaskModelError::MaxTime(seconds))?);
        }
        if line.attempts == Some(0) {
            return Err(TaskModelError::Attempts);
        }
        task.priority = line.priority;
        task.attempts = line.attempts;
        Ok(task)
    }
}

/// Reads a text that is one object and nothing else.
fn whole_object<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let object = from_object(&mut deserializer)?;
    deserializer.end()?;
    Ok(object)
}

/// The words of serde_json without its line, which is that of no file, and without the names of Rust's types.
fn reason(error: &serde_json::Error) -> String {
    // What is wrong from its first character on has no column.
    let said = error.to_string().replace(" at line 1 column 0", "").replace("expected ident", "no JSON");
    in_plain_words(&said, "a JSON object").replace(" at line 1 column ", " at column ")
}

pub(super) fn checked_name(name: Arc<str>) -> Result<Arc<str>, TaskModelError> {
    if name.is_empty() || name.contains(':') {
        return Err(TaskModelError::Name(name.chars().take(80).collect()));
    }
    Ok(name)
}

fn raw(text: &str) -> Arc<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned()).into()
}

fn arguments(
    part: &'static str,
    opening: char,
    expected: &'static str,
    value: Box<RawValue>,
) -> Result<Arc<RawValue>, TaskModelError> {
    if !value.get().trim_start().starts_with(opening) {
        return Err(TaskModelError::Arguments { part, found: value.get().chars().take(60).collect(), expected });
    }
    bounds::check_payload(value.get()).map_err(|found| TaskModelError::Bounds { part, found })?;
    Ok(value.into())
}

/// The task as plugins see it: `task_broker` in an event.
impl Serialize for Task {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct TaskBroker<'a> {
            uuid: &'a str,
            task_name: &'a str,
            priority: i64,
            args: &'a RawValue,
            kwargs: &'a RawValue,
            created_at: f64,
        }
        TaskBroker {
            uuid: self.uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()),
            task_name: &self.name,
            priority: self.priority,
            args: &self.args,
            kwargs: &self.kwargs,
            created_at: self.created_at,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_line_becomes_a_task_and_nothing_of_it_is_lost() {
        let line = r#"{"task": "add", "args": [123456789012345678901234567890], "kwargs": {"b": 1e400}, "priority": -3,
            "uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5", "max_time": 0.5, "attempts": 2}"#;
        let task = Task::from_json(line).expect("a task");
        assert_eq!(task.args.get(), "[123456789012345678901234567890]");
        assert_eq!(task.kwargs.get(), r#"{"b": 1e400}"#);
        assert_eq!((task.priority, task.attempts, task.attempt), (-3, Some(2), 1));
        assert_eq!(task.max_time, Some(Duration::from_millis(500)));
        assert_eq!(Task::from_json(r#"{"task": "add"}"#).expect("a task").kwargs.get(), "{}");
    }

    #[test]
    fn a_bad_line_says_what_was_found_and_expected() {
        for (line, said) in [
            ("{", "not a task: EOF"),
            ("nonsense", "not a task: no JSON at column 2; expected {\"task\": "),
            ("null", "invalid type: null, expected a JSON object"),
            (r#"["a", [1], {}, null, 0, null, null]"#, "invalid type: list, expected a JSON object; "),
            (r#"{"task": "a"} {}"#, "trailing characters at column 15"),
            (r#"{"args": []}"#, "missing field `task`"),
            (r#"{"task": "a", "arg": []}"#, "unknown field `arg`"),
            (r#"{"task": "a:b"}"#, r#""a:b" is not a task name"#),
            (r#"{"task": "a", "args": {}}"#, "args is {}; expected a JSON list"),
            (r#"{"task": "a", "kwargs": 3}"#, "kwargs is 3; expected a JSON object"),
            (r#"{"task": "a", "uuid": "0b6aecd7-8c0a-7b33-8a4c-0f3ba6a9a3a5"}"#, "version 7; expected version 4"),
            (r#"{"task": "a", "max_time": 0}"#, "max_time 0 is no time"),
            (
                r#"{"task": "a", "max_time": 1e19}"#,
                "max_time 1e19 is no time: expected a number of seconds above 0, ten years at most",
            ),
            (r#"{"task": "a", "attempts": 0}"#, "expected at least 1"),
            (r#"{"task": "a", "max_time": "5"}"#, r#"string "5", expected a number at column 29; "#),
            (r#"{"task": "a", "attempts": -1}"#, "integer `-1`, expected a whole number from 0 to 4294967295 at column 28; "),
            (r#"{"task": "a", "priority": 1.5}"#, "floating point `1.5`, expected a whole number at column 29; "),
        ] {
            let error = Task::from_json(line).expect_err(line).to_string();
            assert!(error.contains(said), "{line}: {error}");
        }
        let deep = format!(r#"{{"task": "a", "args": {}{}}}"#, "[".repeat(200), "]".repeat(200));
        assert!(Task::from_json(&deep).expect_err("too deep").to_string().contains("nested deeper than 128"));
        let deep = raw(&("[".repeat(200) + &"]".repeat(200)));
        let task = Task::new("a").expect("a task");
        for (refused, said) in [
            (task.clone().with_arguments(&deep, ()), "args is JSON nested deeper than 128"),
            (task.with_arguments([0; 0], BTreeMap::from([("a", deep)])), "kwargs is JSON nested deeper than 128"),
        ] {
            assert_eq!(refused.expect_err(said).to_string(), said);
        }
    }
}
