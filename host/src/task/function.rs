//! What runs when a task runs: a closure of the application, a plugin's entry, or a command.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qtasks_plugin_api::{
    CancelFlag, ErrorBody, Host, PANIC_ERROR, TaskContext, TaskError, TaskInput, TaskRun, bounds, guard, read_argument,
    write_result,
};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::command::CommandTask;
use super::model::{Returned, Task};
use super::settings::Intercept;
use crate::plugin::registry::ProvidedTask;
use crate::plugin::{DEADLINE_ERROR, Outcome};

/// A future that may be sent to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

type SyncBody = dyn Fn(&TaskContext, &str, &str) -> Returned + Send + Sync;
type AsyncBody = dyn Fn(TaskContext, &str, &str) -> BoxFuture<'static, Returned> + Send + Sync;

/// What runs when a task runs.
pub(super) enum Body {
    /// Directly on the worker's thread.
    Inline(Box<SyncBody>),
    /// On a thread where waiting is allowed.
    Blocking(Arc<SyncBody>),
    /// The same, and its result is the list of what it yields.
    Generator(Arc<SyncBody>),
    /// On the worker's runtime.
    Async(Box<AsyncBody>),
    /// In a plugin.
    Plugin(ProvidedTask),
    /// In a child process.
    Command(CommandTask),
}

/// Limits of one task; each may be absent. Times are in seconds as JSON.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TaskLimits {
    /// Longest time for one attempt.
    #[serde(serialize_with = "optional_seconds")]
    pub max_time: Option<Duration>,
    /// Runs in all.
    pub attempts: Option<u32>,
    /// Which errors are tried again while there are attempts: those of these kinds, and their children. Absent: every one.
    pub retry_on: Option<Arc<[String]>>,
    /// Time before the second run. Absent: none.
    #[serde(serialize_with = "optional_seconds")]
    pub retry_delay: Option<Duration>,
    /// Each further delay is so many times the one before it. Absent: as long.
    pub retry_backoff: Option<f64>,
    /// Which failures the plugins are asked about.
    pub intercept: Option<Intercept>,
}

fn optional_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

impl TaskLimits {
    /// How long to wait after the failure of `attempt`, for at most `longest`.
    pub(super) fn delay_after(&self, attempt: u32, longest: Duration) -> Duration {
        let first = self.retry_delay.unwrap_or_default().as_secs_f64();
        let growth = self.retry_backoff.unwrap_or(1.0).powf(f64::from(attempt.saturating_sub(1)));
        // No delay at all does not grow, and one that no clock could add is too long.
        let seconds = if first > 0.0 { first * growth } else { 0.0 };
        Duration::try_from_secs_f64(seconds).map_or(longest, |delay| delay.min(longest))
    }
}

/// A task that can run.
pub struct TaskFunction {
    pub(super) name: Arc<str>,
    pub(super) provided_by: Arc<str>,
    pub(super) limits: TaskLimits,
    pub(super) host: Host,
    pub(super) body: Body,
}

impl std::fmt::Debug for TaskFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskFunction").field("name", &self.name).field("provided_by", &self.provided_by).finish_non_exhaustive()
    }
}

impl TaskFunction {
    /// The task's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `application`, `command`, or a plugin's name.
    #[must_use]
    pub fn provided_by(&self) -> &str {
        &self.provided_by
    }

    /// The task's own limits.
    #[must_use]
    pub fn limits(&self) -> &TaskLimits {
        &self.limits
    }

    /// Whether its result is the list of what it yields.
    #[must_use]
    pub fn is_generator(&self) -> bool {
        matches!(self.body, Body::Generator(_))
    }

    /// One run. A panic is an error; more than `max_time` is a `TimeoutError`.
    pub(super) async fn run(&self, task: &Task, attempts: u32, max_time: Option<Duration>) -> Returned {
        let uuid: Arc<str> = Arc::from(&*task.uuid.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        let run = TaskRun { name: Arc::clone(&self.name), uuid, attempt: task.attempt, attempts };
        if let Body::Inline(body) = &self.body {
            let context = TaskContext::new(run, CancelFlag::never(), self.host.clone());
            return flatten(guard(|| body(&context, task.args.get(), task.kwargs.get())));
        }
        if let Body::Plugin(provided) = &self.body {
            let begun = Instant::now();
            // The plugin's own deadline, which also ends a process that does not end by itself.
            let returned = run_in_plugin(provided, task, run, max_time).await;
            // Not by the type alone: a task may raise an error that is called so.
            let late = max_time.filter(|limit| begun.elapsed() >= *limit);
            return match (&returned, late) {
                (Err(TaskError::Other(error)), Some(limit)) if error.kind == DEADLINE_ERROR => Err(timed_out(&self.name, limit)),
                _ => returned,
            };
        }
        let flag = CancelFlag::new();
        let mut running = Cancelling { flag: flag.clone(), armed: true };
        let context = TaskContext::new(run, flag, self.host.clone());
        let body = self.start(task, context);
        let returned = match max_time {
            None => body.await,
            Some(max_time) => tokio::time::timeout(max_time, body).await.unwrap_or_else(|_| Err(timed_out(&self.name, max_time))),
        };
        running.armed = matches!(&returned, Err(TaskError::Other(error)) if error.kind == TIMEOUT_ERROR);
        returned
    }

    async fn start(&self, task: &Task, context: TaskContext) -> Returned {
        match &self.body {
            Body::Inline(body) => flatten(guard(|| body(&context, task.args.get(), task.kwargs.get()))),
            Body::Blocking(body) | Body::Generator(body) => {
                let (body, args, kwargs) = (Arc::clone(body), Arc::clone(&task.args), Arc::clone(&task.kwargs));
                let joined =
                    tokio::task::spawn_blocking(move || flatten(guard(|| body(&context, args.get(), kwargs.get())))).await;
                joined.unwrap_or_else(|error| Err(TaskError::other("TaskLost", error.to_string())))
            }
            Body::Async(body) => {
                let mut future = flatten(guard(|| Ok(body(context, task.args.get(), task.kwargs.get()))))?;
                // Each poll behind the guard of its own, which knows a panic's place.
                std::future::poll_fn(|context| {
                    guard(|| future.as_mut().poll(context)).unwrap_or_else(|panic| Poll::Ready(Err(TaskError::Other(panic))))
                })
                .await
            }
            Body::Plugin(provided) => run_in_plugin(provided, task, context.run().clone(), None).await,
            Body::Command(command) => command.run(task).await,
        }
    }
}

/// `type` of a run that took more than its `max_time`, as Python names it.
pub const TIMEOUT_ERROR: &str = "TimeoutError";

fn timed_out(task: &str, max_time: Duration) -> TaskError {
    let seconds = max_time.as_secs_f64();
    TaskError::other(TIMEOUT_ERROR, format!("time limit exceeded for task {task}: {seconds} s"))
}

/// Sets the flag of a run that nobody waits for any more.
struct Cancelling {
    flag: CancelFlag,
    armed: bool,
}

impl Drop for Cancelling {
    fn drop(&mut self) {
        if self.armed {
            self.flag.cancel();
        }
    }
}

fn flatten<T>(guarded: Result<Result<T, TaskError>, Box<ErrorBody>>) -> Result<T, TaskError> {
    guarded.unwrap_or_else(|panic| Err(TaskError::Other(panic)))
}

pub(super) fn panicked(payload: &(dyn std::any::Any + Send)) -> TaskError {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked with a value that is not text".to_owned());
    TaskError::other(PANIC_ERROR, message)
}

async fn run_in_plugin(provided: &ProvidedTask, task: &Task, run: TaskRun, max_time: Option<Duration>) -> Returned {
    let input = TaskInput { task: run, args: &task.args, kwargs: &task.kwargs };
    let input = serde_json::to_string(&input).map_err(|error| TaskError::other("ArgumentError", error.to_string()))?;
    let name = Arc::clone(&task.name);
    match provided.plugin.call(provided.entry, provided.mode, name, &Arc::new(input), max_time).await {
        Outcome::Result(value) => Ok(value),
        Outcome::Failed(error) => Err(TaskError::from_body(error)),
        other => {
            let plugin = provided.plugin.name();
            Err(TaskError::other(
                "ResultError",
                format!("plugin {plugin} answered {other:?} to a task; expected a result or an error"),
            ))
        }
    }
}

/// A sync closure as a body.
pub(super) fn sync_body<F, A, K, T, E>(function: F) -> impl Fn(&TaskContext, &str, &str) -> Returned + Send + Sync + 'static
where
    F: Fn(&TaskContext, A, K) -> Result<T, E> + Send + Sync + 'static,
    A: DeserializeOwned,
    K: DeserializeOwned,
    T: Serialize,
    E: Into<TaskError>,
{
    move |context, args, kwargs| {
        let returned = function(context, read_argument("args", args)?, read_argument("kwargs", kwargs)?);
        returned.map_err(Into::into).and_then(|value| write_result(&value))
    }
}

/// A sync closure that gives something to iterate as a body.
pub(super) fn generator_body<F, A, K, I, T, E>(
    function: F,
) -> impl Fn(&TaskContext, &str, &str) -> Returned + Send + Sync + 'static
where
    F: Fn(TaskContext, A, K) -> Result<I, E> + Send + Sync + 'static,
    A: DeserializeOwned,
    K: DeserializeOwned,
    I: IntoIterator<Item = Result<T, E>>,
    T: Serialize,
    E: Into<TaskError>,
{
    move |context, args, kwargs| {
        let items = function(context.clone(), read_argument("args", args)?, read_argument("kwargs", kwargs)?);
        let mut list = String::from("[");
        for item in items.map_err(Into::into)? {
            // An endless one ends here, at its time limit or when the worker ends.
            if context.is_cancelled() {
                return Err(TaskError::other("TaskLost", "nobody waits for the results any more"));
            }
            let item = write_result(&item.map_err(Into::into)?)?;
            if list.len() + item.get().len() > bounds::MAX_BYTES {
                return Err(TaskError::other("ResultError", format!("more than {} bytes were yielded", bounds::MAX_BYTES)));
            }
            if list.len() > 1 {
                list.push(',');
            }
            list.push_str(item.get());
        }
        list.push(']');
        // Each item may have been as deep as any result, and the list is one level more.
        let refused =
            |error: &dyn std::fmt::Display| TaskError::other("ResultError", format!("the list of what was yielded is {error}"));
        bounds::check_depth(&list).map_err(|error| refused(&error))?;
        RawValue::from_string(list).map_err(|error| refused(&error))
    }
}

/// An async closure as a body.
pub(super) fn async_body<F, A, K, T, E, Fut>(
    function: F,
) -> impl Fn(TaskContext, &str, &str) -> BoxFuture<'static, Returned> + Send + Sync + 'static
where
    F: Fn(TaskContext, A, K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    A: DeserializeOwned,
    K: DeserializeOwned,
    T: Serialize,
    E: Into<TaskError>,
{
    move |context, args, kwargs| {
        let arguments = read_argument("args", args).and_then(|args| Ok((args, read_argument("kwargs", kwargs)?)));
        match arguments {
            Ok((args, kwargs)) => {
                let future = function(context, args, kwargs);
                Box::pin(async move { future.await.map_err(Into::into).and_then(|value| write_result(&value)) })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}
