//! The one run of one task: every step that QTasks documents, in its order, each firing its trigger.
//!
//! middlewares before → args replace → before execute → run → (on a plugin error: the error trigger) → after execute → result
//! replace → middlewares after → decode → close. Only the run itself is intercepted: an error of a middleware is the task's error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use qtasks_plugin_api::{Directive, ErrorBody, TaskError, Trigger, bounds};
use serde::Serialize;
use serde_json::value::RawValue;

use super::error_kinds::{ErrorKinds, UNKNOWN_TASK_ERROR};
use super::function::{TaskFunction, TaskLimits, panicked};
use super::middleware::Middleware;
use super::model::Task;
use super::registry::TaskRegistry;
use super::settings::Intercept;
use crate::plugin::Registry;
use crate::trigger::{Answered, Decision, Dispatched, Dispatcher, OutcomeKind, Resolution};

/// Limits for tasks that have none of their own.
#[derive(Debug, Clone)]
pub struct ExecutorSettings {
    /// Longest time for one attempt; `None` is no limit.
    pub max_time: Option<Duration>,
    /// How many runs a plugin may ask for with `retry_after`, where the task itself does not say.
    pub max_attempts: u32,
    /// Longest delay that `retry_after` and `retry_backoff` get.
    pub max_retry_delay: Duration,
    /// Which failures the plugins are asked about.
    pub intercept: Intercept,
    /// Which error is a kind of which, for `retry_on`.
    pub error_kinds: ErrorKinds,
}

impl Default for ExecutorSettings {
    fn default() -> Self {
        Self {
            max_time: None,
            max_attempts: 5,
            max_retry_delay: Duration::from_secs(3600),
            intercept: Intercept::PluginErrors,
            error_kinds: ErrorKinds::default(),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Ended {
    /// With a result: the task's own, or a plugin's.
    Success {
        /// The result, as JSON text.
        returning: Box<RawValue>,
    },
    /// With an error that nobody answered.
    Error {
        /// The error: the original, or what a plugin replaced it with.
        error: Box<ErrorBody>,
    },
    /// Cancelled, by itself or by a plugin.
    Cancel {
        /// Why.
        reason: String,
    },
    /// Another attempt is to follow.
    Retry {
        /// After this delay.
        after: Duration,
        /// How many attempts were left after this one.
        left: u32,
    },
    /// Set aside by a plugin, for a person to look at.
    DeadLetter {
        /// Why.
        reason: String,
    },
}

/// What became of one run.
#[derive(Debug)]
pub struct Execution {
    /// How it ended.
    pub ended: Ended,
    /// The error that the task raised, whatever became of it.
    pub original_error: Option<Box<ErrorBody>>,
    /// Who answered the error, and how.
    pub resolved_by: Option<Resolution>,
    /// Each plugin that was asked about the error, and each that answered or failed at another step.
    pub decisions: Vec<Decision>,
    /// How long the run took, plugins included.
    pub duration: Duration,
}

/// Runs tasks.
pub struct TaskExecutor {
    tasks: ArcSwap<TaskRegistry>,
    dispatcher: Arc<Dispatcher>,
    middlewares: Vec<Box<dyn Middleware>>,
    settings: ExecutorSettings,
}

impl std::fmt::Debug for TaskExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskExecutor").field("tasks", &self.tasks).field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// `task_executor` in an event.
#[derive(Debug, Clone, Copy, Serialize)]
struct ExecutorInfo {
    name: &'static str,
    attempt: u32,
    attempts: u32,
}

impl ExecutorInfo {
    fn new(task: &Task, attempts: u32) -> Self {
        Self { name: "TaskExecutor", attempt: task.attempt, attempts }
    }
}

/// `task_func` in an event.
#[derive(Debug, Clone, Copy, Serialize)]
struct FunctionInfo<'a> {
    name: &'a str,
    provided_by: &'a str,
}

impl<'a> FunctionInfo<'a> {
    fn of(function: &'a TaskFunction) -> Self {
        Self { name: function.name(), provided_by: function.provided_by() }
    }
}

/// kwargs of `task_executor_run_task_trigger_error`.
#[derive(Serialize)]
struct TriggerErrorKwargs<'a> {
    task_executor: ExecutorInfo,
    task_func: FunctionInfo<'a>,
    task_broker: &'a Task,
    e: &'a ErrorBody,
}

/// kwargs of the triggers that carry a result.
#[derive(Serialize)]
struct ResultKwargs<'a> {
    task_executor: ExecutorInfo,
    result: &'a RawValue,
}

/// What one run knows of itself.
struct Run<'a> {
    function: &'a TaskFunction,
    info: ExecutorInfo,
    max_time: Option<Duration>,
    /// Runs in all, where the task itself says so.
    own_attempts: Option<u32>,
    original_error: Option<Box<ErrorBody>>,
    resolved_by: Option<Resolution>,
    decisions: Vec<Decision>,
}

impl TaskExecutor {
    /// An executor of `tasks`.
    #[must_use]
    pub fn new(
        tasks: TaskRegistry,
        dispatcher: Arc<Dispatcher>,
        middlewares: Vec<Box<dyn Middleware>>,
        settings: ExecutorSettings,
    ) -> Self {
        Self { tasks: ArcSwap::from_pointee(tasks), dispatcher, middlewares, settings }
    }

    /// The tasks that it can run now.
    #[must_use]
    pub fn tasks(&self) -> Arc<TaskRegistry> {
        self.tasks.load_full()
    }

    /// Puts other plugins in place, and the tasks that go with them. What runs ends with the plugins it began with.
    pub fn replace(&self, registry: Registry, tasks: TaskRegistry) {
        // An error of a new task is for the new plugins.
        self.dispatcher.replace(registry);
        self.tasks.store(Arc::new(tasks));
    }

    /// Limits for tasks that have none of their own.
    #[must_use]
    pub fn settings(&self) -> &ExecutorSettings {
        &self.settings
    }

    /// The plugins' dispatcher.
    #[must_use]
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// Runs one attempt of `task`.
    pub async fn execute(&self, mut task: Task) -> (Task, Execution) {
        let begun = Instant::now();
        let Some(function) = self.tasks.load().get(&task.name).cloned() else {
            let execution = Execution::of_nobodys(&self.tasks.load(), &task.name, begun);
            return (task, execution);
        };
        let limits = function.limits();
        let max_time = task.max_time.or(limits.max_time).or(self.settings.max_time);
        let own_attempts = task.attempts.or(limits.attempts);
        let attempts = own_attempts.unwrap_or(self.settings.max_attempts);
        let info = ExecutorInfo::new(&task, attempts);
        let mut run = Run {
            function: &function,
            info,
            max_time,
            own_attempts,
            original_error: None,
            resolved_by: None,
            decisions: Vec::new(),
        };
        let ended = match self.steps(&mut run, &mut task).await {
            Ok(ended) => ended,
            Err(error) => run.raised(error, &self.settings),
        };
        self.close(&mut run, &task).await;
        let Run { original_error, resolved_by, decisions, .. } = run;
        (task, Execution { ended, original_error, resolved_by, decisions, duration: begun.elapsed() })
    }

    /// The steps up to decoding. An error is one that the plugins are not asked about, or did not answer.
    async fn steps(&self, run: &mut Run<'_>, task: &mut Task) -> Result<Ended, TaskError> {
        self.middlewares_before(run, task).await?;
        self.replace_arguments(run, task).await;
        self.fire(run, Trigger::TaskExecutorBeforeExecute, &ExecutorKwargs { task_executor: run.info }).await;
        let mut result = match run.function.run(task, run.info.attempts, run.max_time).await {
            Ok(results) if run.function.is_generator() => self.replace_results(run, results).await,
            Ok(result) => self.replace_result(run, Trigger::TaskExecutorRunTask, result).await,
            Err(error) => match self.ask_plugins(run, task, error).await? {
                Resolved::Result(result) => result,
                Resolved::Ended(ended) => return Ok(ended),
            },
        };
        self.fire(run, Trigger::TaskExecutorAfterExecute, &ExecutorKwargs { task_executor: run.info }).await;
        result = self.replace_result(run, Trigger::TaskExecutorAfterExecuteResultReplace, result).await;
        self.middlewares_after(run, task, &mut result).await?;
        let returning = self.replace_result(run, Trigger::TaskExecutorDecode, result).await;
        Ok(Ended::Success { returning })
    }

    /// Fires one step's trigger. Who answered or failed is kept with the run; who passed is not worth a line at every step.
    async fn fire(&self, run: &mut Run<'_>, trigger: Trigger, kwargs: &(impl Serialize + Sync)) -> Dispatched {
        let mut dispatched = self.dispatcher.fire(trigger, kwargs).await;
        let told = dispatched.decisions.drain(..).filter(|decision| decision.outcome != OutcomeKind::Pass);
        run.decisions.extend(told);
        dispatched
    }

    async fn middlewares_before(&self, run: &mut Run<'_>, task: &mut Task) -> Result<(), TaskError> {
        for middleware in &self.middlewares {
            middleware.before(task).await?;
        }
        self.fire_middlewares(run, "middlewares_before").await;
        Ok(())
    }

    async fn middlewares_after(&self, run: &mut Run<'_>, task: &Task, result: &mut Box<RawValue>) -> Result<(), TaskError> {
        for middleware in &self.middlewares {
            middleware.after(task, result).await?;
            bounds::check_payload(result.get()).map_err(|error| {
                TaskError::other("ResultError", format!("the middleware {} made a result that is {error}", middleware.name()))
            })?;
        }
        self.fire_middlewares(run, "middlewares_after").await;
        Ok(())
    }

    async fn fire_middlewares(&self, run: &mut Run<'_>, key: &'static str) {
        let trigger = Trigger::TaskExecutorMiddlewaresExecute;
        if self.dispatcher.has_subscribers(trigger) {
            let names: Vec<&str> = self.middlewares.iter().map(|middleware| middleware.name()).collect();
            let kwargs = serde_json::json!({"task_executor": run.info, key: names});
            self.fire(run, trigger, &kwargs).await;
        }
    }

    async fn replace_arguments(&self, run: &mut Run<'_>, task: &mut Task) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            task_executor: ExecutorInfo,
            args: &'a RawValue,
            kw: &'a RawValue,
            args_info: [(); 0],
        }
        let trigger = Trigger::TaskExecutorArgsReplace;
        let kwargs = Kwargs { task_executor: run.info, args: &task.args, kw: &task.kwargs, args_info: [] };
        let mut replaced = self.fire(run, trigger, &kwargs).await;
        if replaced.answer.is_some() {
            let args = replaced.take("args").map_or_else(|| Arc::clone(&task.args), Arc::from);
            let kwargs = replaced.take("kw").map_or_else(|| Arc::clone(&task.kwargs), Arc::from);
            match task.clone().with_arguments(args, kwargs) {
                Ok(replaced) => *task = replaced,
                // A plugin's mistake is not the task's: it runs with the arguments that it came with.
                Err(error) => tracing::warn!(%trigger, task = &*task.name, uuid = %task.uuid, "an answer was left out: {error}"),
            }
        }
    }

    async fn replace_result(&self, run: &mut Run<'_>, trigger: Trigger, result: Box<RawValue>) -> Box<RawValue> {
        let mut replaced = self.fire(run, trigger, &ResultKwargs { task_executor: run.info, result: &result }).await;
        replaced.take("result").unwrap_or(result)
    }

    /// The same for the list of what a generator yielded, which stays a list.
    async fn replace_results(&self, run: &mut Run<'_>, results: Box<RawValue>) -> Box<RawValue> {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            task_executor: ExecutorInfo,
            results: &'a RawValue,
        }
        let trigger = Trigger::TaskExecutorRunTaskGen;
        let mut replaced = self.fire(run, trigger, &Kwargs { task_executor: run.info, results: &results }).await;
        match replaced.take("results") {
            Some(replaced) if replaced.get().starts_with('[') => replaced,
            Some(other) => {
                tracing::warn!(%trigger, task = run.function.name(), "an answer was left out, it is no list: {other}");
                results
            }
            None => results,
        }
    }

    /// Hands an error to the plugins, if it is one for them.
    async fn ask_plugins(&self, run: &mut Run<'_>, task: &Task, error: TaskError) -> Result<Resolved, TaskError> {
        let body = self.for_plugins(run.function.limits(), error)?;
        let mut dispatched = self.fire_error(run.info, FunctionInfo::of(run.function), task, &body).await;
        run.decisions.append(&mut dispatched.decisions);
        let resolved = match dispatched.answer {
            Some((answered, resolution)) => self.resolve(run.info, answered, &body).zip(Some(resolution)),
            None => None,
        };
        let Some((resolved, resolution)) = resolved else { return Err(TaskError::Other(body)) };
        run.original_error = Some(body);
        run.resolved_by = Some(resolution);
        resolved
    }

    /// What the plugins would answer today, had `task` raised `error` in the attempt that it says. The answer is given and not followed:
    /// nothing runs, and nothing of the task changes. `None`: with these settings they are not asked about such an error.
    ///
    /// A task that nobody provides here counts as the application's, with no limits of its own.
    pub async fn ask_about(&self, task: &Task, error: &ErrorBody) -> Option<Dispatched> {
        // Found before a task is run, and no plugin's to answer.
        if error.kind == UNKNOWN_TASK_ERROR {
            return None;
        }
        let function = self.tasks.load().get(&task.name).cloned();
        let limits = function.as_ref().map(|function| function.limits().clone()).unwrap_or_default();
        let error = self.for_plugins(&limits, TaskError::from_body(error.clone())).ok()?;
        let task_func = match &function {
            Some(function) => FunctionInfo::of(function),
            None => FunctionInfo { name: &task.name, provided_by: "application" },
        };
        let attempts = task.attempts.or(limits.attempts).unwrap_or(self.settings.max_attempts);
        Some(self.fire_error(ExecutorInfo::new(task, attempts), task_func, task, &error).await)
    }

    /// The error, if it is one for the plugins; else as it was.
    fn for_plugins(&self, limits: &TaskLimits, error: TaskError) -> Result<Box<ErrorBody>, TaskError> {
        let everything = limits.intercept.unwrap_or(self.settings.intercept) == Intercept::All;
        match error {
            TaskError::Plugin(body) => Ok(body),
            TaskError::Other(body) if everything => Ok(body),
            other => Err(other),
        }
    }

    async fn fire_error(&self, info: ExecutorInfo, task_func: FunctionInfo<'_>, task: &Task, error: &ErrorBody) -> Dispatched {
        let kwargs = TriggerErrorKwargs { task_executor: info, task_func, task_broker: task, e: error };
        self.dispatcher.fire_error(&kwargs, info.attempt < info.attempts).await
    }

    /// What an answer makes of the run. An error goes on as the task's own does: the task is tried again while it has attempts for
    /// such an error.
    fn resolve(&self, info: ExecutorInfo, answered: Answered, original: &ErrorBody) -> Option<Result<Resolved, TaskError>> {
        let ended = match answered {
            Answered::Values(values) => return values.into_iter().next().map(|(_, result)| Ok(Resolved::Result(result))),
            Answered::Directive(Directive::RetryAfter { seconds }) => {
                let delay = Duration::try_from_secs_f64(seconds).unwrap_or(self.settings.max_retry_delay);
                let after = delay.min(self.settings.max_retry_delay);
                Ended::Retry { after, left: info.attempts.saturating_sub(info.attempt) }
            }
            Answered::Directive(Directive::Cancel { reason }) => Ended::Cancel { reason },
            Answered::Directive(Directive::ReplaceError { error }) => return Some(Err(TaskError::Other(error))),
            Answered::Directive(Directive::DeadLetter { reason }) => Ended::DeadLetter { reason },
            // Dispatch refuses directives that it does not know.
            Answered::Directive(_) => return Some(Err(TaskError::Other(Box::new(original.clone())))),
        };
        Some(Ok(Resolved::Ended(ended)))
    }

    async fn close(&self, run: &mut Run<'_>, task: &Task) {
        #[derive(Serialize)]
        struct Kwargs<'a> {
            task_executor: ExecutorInfo,
            task_func: FunctionInfo<'a>,
            task_broker: &'a Task,
        }
        let task_func = FunctionInfo::of(run.function);
        let kwargs = Kwargs { task_executor: run.info, task_func, task_broker: task };
        self.fire(run, Trigger::TaskExecutorTaskClose, &kwargs).await;
    }
}

/// What the plugins made of an error.
enum Resolved {
    /// A result, which goes on like the task's own.
    Result(Box<RawValue>),
    /// An end.
    Ended(Ended),
}

/// kwargs of the triggers that carry the executor alone.
#[derive(Serialize)]
struct ExecutorKwargs {
    task_executor: ExecutorInfo,
}

impl Run<'_> {
    /// How a run ends whose error goes on: again, while the task itself asks for more attempts after such an error; else as an error.
    fn raised(&mut self, error: TaskError, settings: &ExecutorSettings) -> Ended {
        let body = match error {
            TaskError::Cancel { reason } => return Ended::Cancel { reason },
            TaskError::Plugin(body) | TaskError::Other(body) => body,
        };
        self.original_error.get_or_insert_with(|| body.clone());
        let (limits, attempt) = (self.function.limits(), self.info.attempt);
        let wanted = |kinds: &Arc<[String]>| kinds.iter().any(|wanted| settings.error_kinds.is_a(&body.kind, wanted));
        let left = self.own_attempts.unwrap_or_default().saturating_sub(attempt);
        if left > 0 && limits.retry_on.as_ref().is_none_or(wanted) {
            return Ended::Retry { after: limits.delay_after(attempt, settings.max_retry_delay), left };
        }
        Ended::Error { error: body }
    }
}

impl Execution {
    /// A run that ended in a panic outside of the task's own body.
    pub(crate) fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        Self::failed(panicked(payload).into_body(), Instant::now())
    }

    /// A run that was ended from outside.
    pub(crate) fn cancelled(reason: String) -> Self {
        Self {
            ended: Ended::Cancel { reason },
            original_error: None,
            resolved_by: None,
            decisions: Vec::new(),
            duration: Duration::ZERO,
        }
    }

    /// A task that nobody provides. One that a plugin would is set aside, to be run once it is loaded.
    fn of_nobodys(tasks: &TaskRegistry, name: &str, begun: Instant) -> Self {
        let kept_away = tasks.kept_away(name);
        let is_kept_away = kept_away.is_some();
        let message = format!("nobody provides a task {name:?}{}", kept_away.unwrap_or_else(|| tasks.nearest(name)));
        let mut execution = Self::failed(Box::new(ErrorBody::new(UNKNOWN_TASK_ERROR, message.as_str())), begun);
        if is_kept_away {
            execution.ended = Ended::DeadLetter { reason: message };
        }
        execution
    }

    fn failed(error: Box<ErrorBody>, begun: Instant) -> Self {
        Self {
            original_error: Some(error.clone()),
            ended: Ended::Error { error },
            resolved_by: None,
            decisions: Vec::new(),
            duration: begun.elapsed(),
        }
    }
}
