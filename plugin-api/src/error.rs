//! Errors: a plugin's own, and the error of a task, which is what the plugins are asked about.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::bounds::{MAX_BYTES, MAX_DEPTH, is_deeper};
use crate::strict::to_raw_value;

/// `type` of a plugin error, as QTasks names the exception.
pub const PLUGIN_ERROR: &str = "TaskPluginTriggerError";
/// `type` of a cancellation, as QTasks names the exception.
pub const CANCEL_ERROR: &str = "TaskCancelError";
/// `type` of a caught panic.
pub const PANIC_ERROR: &str = "Panic";
/// `type` of what a plugin says of a configuration that does not suit it.
pub const CONFIG_ERROR: &str = "ConfigError";

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
        let kind = error.downcast_ref().map_or_else(|| short_type_name(type_name), name_in_python);
        let mut body = ErrorBody::new(kind, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            // What an error means for its task is nothing that caused it.
            if !cause.is::<Raised>() && !cause.is::<Cancelled>() {
                body.causes.push(cause.to_string());
            }
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
        // tokio's, of whatever version.
        "Elapsed" => "TimeoutError",
        name => name,
    }
}

/// What Python calls the same failure of the system, so that `retry_on = ["ConnectionError"]` means it.
fn name_in_python(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "FileExistsError",
        io::ErrorKind::BrokenPipe => "BrokenPipeError",
        io::ErrorKind::ConnectionAborted => "ConnectionAbortedError",
        io::ErrorKind::ConnectionRefused => "ConnectionRefusedError",
        io::ErrorKind::ConnectionReset => "ConnectionResetError",
        io::ErrorKind::Interrupted => "InterruptedError",
        io::ErrorKind::IsADirectory => "IsADirectoryError",
        io::ErrorKind::NotADirectory => "NotADirectoryError",
        io::ErrorKind::NotConnected => "ConnectionError",
        io::ErrorKind::NotFound => "FileNotFoundError",
        io::ErrorKind::PermissionDenied => "PermissionError",
        io::ErrorKind::TimedOut => "TimeoutError",
        io::ErrorKind::UnexpectedEof => "EOFError",
        io::ErrorKind::WouldBlock => "BlockingIOError",
        _ => "OSError",
    }
}

/// Raised by a task to ask the plugins: `ctx.plugin_error(…)`, or directly with a text.
///
/// QTasks keeps `args` and `kwargs` apart: `ctx.plugin_error` fills kwargs, [`TaskPluginTriggerError::new`] fills args.
#[derive(Debug, Clone)]
pub struct TaskPluginTriggerError(Raised);

/// What is in it, found as a source by whoever has it wrapped in an error of another type: `anyhow`'s tells no other way what it holds.
#[derive(Debug, Clone)]
struct Raised(Box<ErrorBody>);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the plugins are to be asked")
    }
}

impl StdError for Raised {}

/// Levels of JSON around a payload that are read in one piece with it: an error, in a decision, in a list, with room to spare.
const WRAPPED: usize = 8;

impl TaskPluginTriggerError {
    /// A direct error: `args` is `["text"]`, `kwargs` is empty.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        let mut body = ErrorBody::new(PLUGIN_ERROR, text.as_str());
        body.args = to_raw(&[text.as_str()], "[]");
        Self(Raised(Box::new(body)))
    }

    /// An error with named payload: `args` is empty. A `message` among the kwargs is also the error's message.
    ///
    /// `kwargs` must become a JSON object; anything else is kept under the key `value`. What has no JSON form, or is longer or
    /// deeper than the [bounds](crate::bounds) allow for what lies within an error, is left out, and the message says so.
    #[must_use]
    pub fn with_kwargs(kwargs: impl Serialize) -> Self {
        let mut body = ErrorBody::new(PLUGIN_ERROR, "");
        match to_raw_value(&kwargs) {
            Ok(raw) if is_deeper(raw.get(), MAX_DEPTH - WRAPPED) => {
                body.message = format!("the payload of the plugin error is JSON nested deeper than {}", MAX_DEPTH - WRAPPED);
            }
            Ok(raw) if raw.get().len() > MAX_BYTES => {
                let len = raw.get().len();
                body.message = format!("the payload of the plugin error is {len} bytes, at most {MAX_BYTES} are taken");
            }
            Ok(raw) if raw.get().starts_with('{') => body.kwargs = raw,
            // As text: a `Value` would round what is beyond 64 bits.
            Ok(raw) => body.kwargs = to_raw(&BTreeMap::from([("value", raw)]), "{}"),
            Err(error) => body.message = format!("the payload of the plugin error has no JSON form: {error}"),
        }
        if let Ok(Message { message: Some(message) }) = serde_json::from_str(body.kwargs.get()) {
            body.message = message;
        }
        Self(Raised(Box::new(body)))
    }
}

/// The member of a payload that is also the error's message.
#[derive(Deserialize)]
struct Message {
    message: Option<String>,
}

impl fmt::Display for TaskPluginTriggerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl StdError for TaskPluginTriggerError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// Raised by a task to end as `cancel`: never retried, no plugin is asked.
#[derive(Debug, Clone)]
pub struct TaskCancelError(Cancelled);

/// Its reason, found as [`Raised`] is.
#[derive(Debug, Clone)]
struct Cancelled(String);

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task cancels itself")
    }
}

impl StdError for Cancelled {}

impl TaskCancelError {
    /// A cancellation with its reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(Cancelled(reason.into()))
    }
}

impl fmt::Display for TaskCancelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.0)
    }
}

impl StdError for TaskCancelError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// How a task ended that did not return. Made by `?` from any error, any text, or from the two types above, also where an error of
/// another type has one of them as its source.
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
        let boxed: BoxError = match error.into().downcast::<TaskPluginTriggerError>() {
            Ok(error) => return Self::Plugin(error.0.0),
            Err(boxed) => boxed,
        };
        // Whatever the two are wrapped in, they mean what they mean.
        let mut source: Option<&(dyn StdError + 'static)> = Some(&*boxed);
        while let Some(error) = source {
            if let Some(Raised(body)) = error.downcast_ref() {
                return Self::Plugin(body.clone());
            }
            if let Some(Cancelled(reason)) = error.downcast_ref() {
                return Self::Cancel { reason: reason.clone() };
            }
            source = error.source();
        }
        Self::Other(Error::from_boxed(std::any::type_name::<E>(), &boxed).0)
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
    fn an_error_is_told_with_its_message_or_else_its_payload_its_causes_and_its_place() {
        let mut body = ErrorBody::new("E", "");
        assert_eq!(body.to_string(), "E");
        body.kwargs = RawValue::from_string(r#"{"code":7}"#.to_owned()).expect("JSON");
        assert_eq!(body.to_string(), r#"E: {"code":7}"#);
        (body.message, body.causes) = ("m".to_owned(), vec!["nearest".to_owned(), "first".to_owned()]);
        body.location = Some("lib.rs:7:9".to_owned());
        assert_eq!(body.to_string(), "E: m: nearest: first (at lib.rs:7:9)");
    }

    #[test]
    fn a_payload_is_kept_as_text_and_one_that_nobody_could_read_again_is_left_out() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        let raised = |payload| TaskError::from(TaskPluginTriggerError::with_kwargs(payload)).into_body();
        let big = raised(raw("123456789012345678901234567890"));
        assert_eq!(big.kwargs.get(), r#"{"value":123456789012345678901234567890}"#);
        let deep = raised(raw(&("[".repeat(121) + &"]".repeat(121))));
        assert_eq!((&*deep.kind, deep.kwargs.get()), (PLUGIN_ERROR, "{}"));
        assert_eq!(deep.message, "the payload of the plugin error is JSON nested deeper than 120");
        let none = TaskError::from(TaskPluginTriggerError::with_kwargs(f64::NAN)).into_body();
        assert_eq!(none.kwargs.get(), "{}");
        assert!(none.message.starts_with("the payload of the plugin error has no JSON form: NaN"), "{none}");
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

    #[test]
    fn what_the_system_refuses_is_called_as_python_calls_it() {
        let kind = |error: io::Error| TaskError::from(error).into_body().kind;
        assert_eq!(kind(std::fs::read("/nowhere/at/all").expect_err("not there")), "FileNotFoundError");
        assert_eq!(kind(std::fs::create_dir("/").expect_err("there already")), "FileExistsError");
        assert_eq!(kind(io::ErrorKind::ConnectionRefused.into()), "ConnectionRefusedError");
        assert_eq!(kind(io::Error::other("no more of it")), "OSError");
        let boxed: BoxError = Box::new(io::Error::from(io::ErrorKind::TimedOut));
        assert_eq!(TaskError::from(boxed).into_body().kind, "TimeoutError");
    }

    /// As `anyhow::Error` becomes a boxed error: of a type of its own, with the source of what it holds.
    #[derive(Debug)]
    struct Wrapped<E>(E);

    impl<E: fmt::Display> fmt::Display for Wrapped<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    impl<E: StdError> StdError for Wrapped<E> {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.0.source()
        }
    }

    #[test]
    fn an_error_for_the_plugins_and_a_cancellation_are_known_in_whatever_they_are_wrapped() {
        let raised = TaskPluginTriggerError::with_kwargs(serde_json::json!({"code": 7}));
        let TaskError::Plugin(body) = TaskError::from(Wrapped(raised)) else { panic!("an error for the plugins") };
        assert_eq!((&*body.kind, body.kwargs.get()), (PLUGIN_ERROR, r#"{"code":7}"#));
        let cancelled = TaskError::from(Wrapped(Wrapped(TaskCancelError::new("stop it"))));
        assert!(matches!(cancelled, TaskError::Cancel { reason } if reason == "stop it"));
        assert!(Error::from(TaskPluginTriggerError::new("in a handler")).into_body().causes.is_empty());
        assert!(Error::from(TaskCancelError::new("in a handler")).into_body().causes.is_empty());
    }
}
