//! Errors: a plugin's own, and the error of a task, which is what the plugins are asked about.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::strict::to_raw_value;

/// `type` of a plugin error, as QTasks names the exception.
pub const PLUGIN_ERROR: &str = "TaskPluginTriggerError";
/// `type` of a cancellation, as QTasks names the exception.
pub const CANCEL_ERROR: &str = "TaskCancelError";
/// `type` of a caught panic.
pub const PANIC_ERROR: &str = "Panic";

type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// An error as it crosses the boundary and as it is kept with the task:
///
/// ```json
/// {"type": "ParseIntError", "message": "invalid digit found in string", "args": [], "kwargs": {},
///  "causes": ["…"], "location": "src/lib.rs:7:9"}
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error's type: a Rust type name without its path, or a QTasks exception name.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// What happened, for a person.
    pub message: String,
    /// Positional payload, a JSON list.
    #[serde(default = "empty_list")]
    pub args: Box<RawValue>,
    /// Named payload, a JSON object.
    #[serde(default = "empty_object")]
    pub kwargs: Box<RawValue>,
    /// The messages of the causes, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// Source line of a panic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}

fn empty_list() -> Box<RawValue> {
    static EMPTY: LazyLock<Box<RawValue>> = LazyLock::new(|| to_raw(&[(); 0], "[]"));
    EMPTY.clone()
}

fn empty_object() -> Box<RawValue> {
    static EMPTY: LazyLock<Box<RawValue>> = LazyLock::new(|| to_raw(&serde_json::Map::new(), "{}"));
    EMPTY.clone()
}

/// `value` as JSON text; `fallback` where it has no JSON form.
fn to_raw<T: Serialize + ?Sized>(value: &T, fallback: &str) -> Box<RawValue> {
    to_raw_value(value).or_else(|_| RawValue::from_string(fallback.to_owned())).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl ErrorBody {
    /// An error without payload.
    #[must_use]
    pub fn new(kind: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            message: message.into(),
            args: empty_list(),
            kwargs: empty_object(),
            causes: Vec::new(),
            location: None,
        }
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        } else if self.kwargs.get() != "{}" {
            write!(f, ": {}", self.kwargs.get())?;
        }
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        if let Some(location) = &self.location {
            write!(f, " (at {location})")?;
        }
        Ok(())
    }
}

/// A plugin's own error. Any error, and any text, becomes one with `?` or `.into()`.
#[derive(Debug, Clone)]
pub struct Error(Box<ErrorBody>);

impl Error {
    /// An error that is only a message.
    #[must_use]
    pub fn msg(message: impl fmt::Display) -> Self {
        Self::from_body(ErrorBody::new("Error", message.to_string()))
    }

    /// An error that came across the boundary.
    #[must_use]
    pub fn from_body(body: impl Into<Box<ErrorBody>>) -> Self {
        Self(body.into())
    }

    /// The error as it crosses the boundary.
    #[must_use]
    pub fn into_body(self) -> Box<ErrorBody> {
        self.0
    }

    fn from_boxed(type_name: &'static str, error: &BoxError) -> Self {
        let mut body = ErrorBody::new(short_type_name(type_name), error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            body.causes.push(cause.to_string());
            source = cause.source();
        }
        Self::from_body(body)
    }
}

impl<E: Into<BoxError> + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self::from_boxed(std::any::type_name::<E>(), &error.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `core::num::error::ParseIntError` → `ParseIntError`; texts and boxed errors have no type worth naming.
fn short_type_name(full: &'static str) -> &'static str {
    let plain = full.split('<').next().unwrap_or(full);
    match plain.rsplit("::").next().unwrap_or(plain) {
        "String" | "&str" | "Box" => "Error",
        name => name,
    }
}

/// Raised by a task to ask the plugins: `ctx.plugin_error(…)`, or directly with a text.
///
/// QTasks keeps `args` and `kwargs` apart: `ctx.plugin_error` fills kwargs, [`TaskPluginTriggerError::new`] fills args.
#[derive(Debug, Clone)]
pub struct TaskPluginTriggerError(Box<ErrorBody>);

impl TaskPluginTriggerError {
    /// A direct error: `args` is `["text"]`, `kwargs` is empty.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        let mut body = ErrorBody::new(PLUGIN_ERROR, text.as_str());
        body.args = to_raw(&[text.as_str()], "[]");
        Self(Box::new(body))
    }

    /// An error with named payload: `args` is empty. A `message` among the kwargs is also the error's message.
    ///
    /// `kwargs` must become a JSON object; anything else is kept under the key `value`.
    #[must_use]
    pub fn with_kwargs(kwargs: impl Serialize) -> Self {
        let mut body = ErrorBody::new(PLUGIN_ERROR, "");
        match to_raw_value(&kwargs) {
            Ok(raw) if raw.get().starts_with('{') => body.kwargs = raw,
            Ok(raw) => body.kwargs = to_raw(&serde_json::json!({ "value": raw }), "{}"),
            Err(error) => body.message = format!("the payload of the plugin error has no JSON form: {error}"),
        }
        if let Ok(Message { message: Some(message) }) = serde_json::from_str(body.kwargs.get()) {
            body.message = message;
        }
        Self(Box::new(body))
    }
}

/// The member of a payload that is also the error's message.
#[derive(Deserialize)]
struct Message {
    message: Option<String>,
}

impl fmt::Display for TaskPluginTriggerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for TaskPluginTriggerError {}

/// Raised by a task to end as `cancel`: never retried, no plugin is asked.
#[derive(Debug, Clone)]
pub struct TaskCancelError(String);

impl TaskCancelError {
    /// A cancellation with its reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for TaskCancelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for TaskCancelError {}

/// How a task ended that did not return. Made by `?` from any error, any text, or from the two types above.
#[derive(Debug, Clone)]
pub enum TaskError {
    /// The plugins are to be asked.
    Plugin(Box<ErrorBody>),
    /// The task cancels itself.
    Cancel {
        /// Why.
        reason: String,
    },
    /// Any other error.
    Other(Box<ErrorBody>),
}

impl TaskError {
    /// An error of type `kind` with a message.
    #[must_use]
    pub fn other(kind: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::Other(Box::new(ErrorBody::new(kind, message)))
    }

    /// The error as it crosses the boundary.
    #[must_use]
    pub fn into_body(self) -> Box<ErrorBody> {
        match self {
            Self::Plugin(body) | Self::Other(body) => body,
            Self::Cancel { reason } => Box::new(ErrorBody::new(CANCEL_ERROR, reason)),
        }
    }

    /// Sorts an error that came across the boundary by its type.
    #[must_use]
    pub fn from_body(body: impl Into<Box<ErrorBody>>) -> Self {
        let body = body.into();
        match &*body.kind {
            PLUGIN_ERROR => Self::Plugin(body),
            CANCEL_ERROR => Self::Cancel { reason: body.message },
            _ => Self::Other(body),
        }
    }
}

impl<E: Into<BoxError> + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        let boxed: BoxError = error.into();
        match boxed.downcast::<TaskPluginTriggerError>() {
            Ok(error) => Self::Plugin(error.0),
            Err(boxed) => match boxed.downcast::<TaskCancelError>() {
                Ok(error) => Self::Cancel { reason: error.0 },
                Err(boxed) => Self::Other(Error::from_boxed(std::any::type_name::<E>(), &boxed).0),
            },
        }
    }
}

/// What a plugin's handlers and tasks share returns the plugin's own error.
impl From<Error> for TaskError {
    fn from(error: Error) -> Self {
        Self::from_body(error.into_body())
    }
}

/// A handler may call what its tasks call.
impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        Self::from_body(error.into_body())
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plugin(body) | Self::Other(body) => body.fmt(f),
            Self::Cancel { reason } => write!(f, "cancelled: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_and_kwargs_stay_apart_as_in_qtasks() {
        let direct = TaskError::from(TaskPluginTriggerError::new("Direct error")).into_body();
        assert_eq!((direct.args.get(), direct.kwargs.get()), (r#"["Direct error"]"#, "{}"));
        let named = TaskPluginTriggerError::with_kwargs(serde_json::json!({"message": "m", "code": 7}));
        let named = TaskError::from(named).into_body();
        assert_eq!((&*named.kind, named.args.get(), named.message.as_str()), (PLUGIN_ERROR, "[]", "m"));
        assert_eq!(crate::Json::from(&*named.kwargs).get::<u32>("code"), Some(7));
    }

    #[test]
    fn any_error_becomes_a_task_error_with_its_type_and_causes() {
        fn task(text: &str) -> Result<i32, TaskError> {
            if text.is_empty() {
                Err("nothing given")?;
            }
            Ok(text.parse::<i32>()?)
        }
        let body = task("x").expect_err("not a number").into_body();
        assert_eq!(body.kind, "ParseIntError");
        assert_eq!(task("").expect_err("empty").into_body().kind, "Error");
        let cancelled = TaskError::from(TaskCancelError::new("stop it"));
        assert!(matches!(cancelled, TaskError::Cancel { reason } if reason == "stop it"));
        fn shared(text: &str) -> Result<i32, Error> {
            Ok(text.parse::<i32>()?)
        }
        let body = (|| Ok::<_, TaskError>(shared("x")?))().expect_err("not a number").into_body();
        assert_eq!(body.kind, "ParseIntError");
        let body = (|| Ok::<_, Error>(task("x")?))().expect_err("not a number").into_body();
        assert_eq!(body.kind, "ParseIntError");
        let boxed: BoxError = Box::new(TaskPluginTriggerError::new("boxed"));
        assert!(matches!(TaskError::from(boxed), TaskError::Plugin(_)));
    }
}
