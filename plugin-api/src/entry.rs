//! What stands behind each line of a plugin's table: how a handler or a task is called, and what it may return.

#[cfg(feature = "async")]
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::answer::{Answer, IntoAnswer};
use crate::error::{Error, TaskError};
use crate::event::{Call, FromCall};
use crate::manifest::Mode;
#[cfg(feature = "async")]
use crate::runtime::{BoxFuture, OwnedCall};
use crate::task::{OpenTask, TaskContext, read_argument, write_result};

/// One handler or task.
#[derive(Debug)]
pub struct Entry<P: 'static> {
    /// How it runs.
    pub mode: Mode,
    /// The function.
    pub run: Run<P>,
}

/// The function of an entry.
#[derive(Debug)]
pub enum Run<P: 'static> {
    /// Runs on the calling thread.
    Sync(fn(&P, &Call<'_>) -> Answer),
    /// Runs on the plugin's runtime.
    #[cfg(feature = "async")]
    Async(fn(Arc<P>, OwnedCall) -> BoxFuture<'static, Answer>),
}

impl<P> Entry<P> {
    /// A sync entry.
    #[must_use]
    pub const fn sync(mode: Mode, run: fn(&P, &Call<'_>) -> Answer) -> Self {
        Self { mode, run: Run::Sync(run) }
    }

    /// An async entry.
    #[cfg(feature = "async")]
    #[must_use]
    pub const fn asynchronous(run: fn(Arc<P>, OwnedCall) -> BoxFuture<'static, Answer>) -> Self {
        Self { mode: Mode::Async, run: Run::Async(run) }
    }
}

// These take function pointers, so that rustc blames the method, and not the call, for a type that it cannot take or return.

/// Calls a handler.
#[inline]
pub fn handle<'p, 'a, P, E, A>(plugin: &'p P, call: &Call<'a>, method: fn(&'p P, E) -> A) -> Answer
where
    E: FromCall<'a>,
    A: IntoAnswer,
{
    match E::from_call(call) {
        Ok(event) => method(plugin, event).into_answer(),
        Err(error) => Answer::Failed(error),
    }
}

/// Calls an async handler.
#[cfg(feature = "async")]
pub fn handle_async<'c, P, E, F>(plugin: &'c P, call: &Call<'c>, method: fn(&'c P, E) -> F) -> BoxFuture<'c, Answer>
where
    E: FromCall<'c>,
    F: Future<Output: IntoAnswer> + Send + 'c,
{
    match E::from_call(call) {
        Ok(event) => {
            let handling = method(plugin, event);
            Box::pin(async { handling.await.into_answer() })
        }
        Err(error) => Box::pin(std::future::ready(Answer::Failed(error))),
    }
}

/// Runs a task.
pub fn run_task<'p, 'c, P, A, K, R>(
    plugin: &'p P,
    opened: &'c Result<OpenTask<'_>, TaskError>,
    method: fn(&'p P, &'c TaskContext, A, K) -> R,
) -> Answer
where
    A: DeserializeOwned,
    K: DeserializeOwned,
    R: TaskReturn,
{
    match begin_task(plugin, opened, method) {
        Ok(returned) => returned.into_answer(),
        Err(error) => refused(error),
    }
}

/// Runs an async task.
#[cfg(feature = "async")]
pub fn run_task_async<'c, P, A, K, F>(
    plugin: &'c P,
    opened: &'c Result<OpenTask<'_>, TaskError>,
    method: fn(&'c P, &'c TaskContext, A, K) -> F,
) -> BoxFuture<'c, Answer>
where
    A: DeserializeOwned,
    K: DeserializeOwned,
    F: Future<Output: TaskReturn> + Send + 'c,
{
    match begin_task(plugin, opened, method) {
        Ok(running) => Box::pin(async { running.await.into_answer() }),
        Err(error) => Box::pin(std::future::ready(refused(error))),
    }
}

fn begin_task<'p, 'c, P, A: DeserializeOwned, K: DeserializeOwned, R>(
    plugin: &'p P,
    opened: &'c Result<OpenTask<'_>, TaskError>,
    method: fn(&'p P, &'c TaskContext, A, K) -> R,
) -> Result<R, TaskError> {
    let OpenTask { context, args, kwargs } = opened.as_ref().map_err(Clone::clone)?;
    Ok(method(plugin, context, read_argument("args", args)?, read_argument("kwargs", kwargs)?))
}

fn refused(error: TaskError) -> Answer {
    Answer::Failed(Error::from_body(error.into_body()))
}

/// What a task may return.
#[diagnostic::on_unimplemented(
    message = "a task cannot return `{Self}`",
    note = "it returns a `Result<T, E>`; `T` is any type with serde's `Serialize`",
    note = "`E` is `TaskError`, a text, or an error that is `Send + Sync + 'static`, such as `Box<dyn Error + Send + Sync>`",
    note = "an `async fn` is named with `=> async`"
)]
pub trait TaskReturn {
    /// The answer.
    fn into_answer(self) -> Answer;
}

#[diagnostic::do_not_recommend]
impl<T: Serialize, E: Into<TaskError>> TaskReturn for Result<T, E> {
    fn into_answer(self) -> Answer {
        match self.map_err(Into::into).and_then(|value| write_result(&value)) {
            Ok(raw) => Answer::Result(raw),
            Err(error) => refused(error),
        }
    }
}
