//! Runs a plugin in a unit test: no host, no `dlopen`, through the same boundary functions that a host calls.
//!
//! ```
//! use qtasks_plugin_api::testing::{RaisedTask, TestHost};
//! # use qtasks_plugin_api::{Error, Host, Plugin, TriggerError, define_plugin};
//! # struct ErrorHandler;
//! # impl Plugin for ErrorHandler {
//! #     type Config = ();
//! #     fn create(_: (), _: Host) -> Result<Self, Error> { Ok(Self) }
//! # }
//! # impl ErrorHandler { fn on_error(&self, _: TriggerError<'_>) -> i32 { 123 } }
//! # define_plugin! { plugin: ErrorHandler, handlers: { task_executor_run_task_trigger_error => on_error } }
//! let host = TestHost::<ErrorHandler>::start("{}").expect("the plugin starts");
//! let outcome = host.raise(&RaisedTask::new("add").message("too large"));
//! assert_eq!(outcome.result(), Some(123.into()));
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::abi::loaded::{CallError, Instance, Module, Received, checked};
use crate::answer::Directive;
use crate::error::{CONFIG_ERROR, ErrorBody, PLUGIN_ERROR, TaskError};
use crate::export::Export;
use crate::fit::{check_directive, replaced_keys};
use crate::host::{HostServices, Init, Level, LogLine};
use crate::manifest::{GLOBAL, Manifest, Mode};
use crate::plain_words::explained;
use crate::trigger::Trigger;

/// A plugin under test, created and started; stopped and destroyed when dropped.
pub struct TestHost<P> {
    instance: Instance,
    manifest: Manifest,
    recorded: Arc<Recorded>,
    data_dir: std::path::PathBuf,
    is_stopped: bool,
    calls: Mutex<Calls>,
    plugin: PhantomData<fn() -> P>,
}

/// How calls are made.
#[derive(Debug, Clone, Copy)]
struct Calls {
    attempt: u32,
    attempts: u32,
    deadline: Duration,
}

#[derive(Debug)]
struct Recorded {
    lines: Mutex<Vec<(Level, String)>>,
    now: Mutex<SystemTime>,
}

#[derive(Debug)]
struct Services(Arc<Recorded>);

impl HostServices for Services {
    fn log(&self, line: LogLine<'_>) {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push((line.level, line.message.to_owned()));
    }

    fn max_level(&self) -> Level {
        Level::Trace
    }

    fn now(&self) -> SystemTime {
        *self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Async calls are told apart by ids that are unique in the process.
static NEXT_CALL: AtomicU64 = AtomicU64::new(1 << 63);

impl<P: Export> TestHost<P> {
    /// Creates and starts the plugin with `config`, a JSON object.
    ///
    /// # Errors
    ///
    /// What an operator would see: the plugin's refusal, or its panic, and of a configuration that does not suit it the same words.
    ///
    /// # Panics
    ///
    /// When `config` is not JSON.
    pub fn start(config: &str) -> Result<Self, CallError> {
        let recorded = Arc::new(Recorded { lines: Mutex::default(), now: Mutex::new(SystemTime::UNIX_EPOCH) });
        let module = Module::linked_in::<P>();
        let manifest: Manifest = serde_json::from_str(P::MANIFEST).expect("the macro writes manifests");
        let number = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
        let data_dir = std::env::temp_dir().join(format!("qtasks-plugin-{}-{number}", std::process::id()));
        let init = Init {
            plugin: manifest.name.clone(),
            data_dir: data_dir.clone(),
            config: serde_json::from_str(config).expect("the configuration is JSON"),
            host_version: "testing".to_owned(),
        };
        let instance = module.create(&init, Services(Arc::clone(&recorded))).map_err(|error| in_operators_words(error, &init))?;
        instance.start()?;
        let calls = Mutex::new(Calls { attempt: 1, attempts: 1, deadline: Duration::MAX });
        Ok(Self { instance, manifest, recorded, data_dir, is_stopped: false, calls, plugin: PhantomData })
    }

    /// The manifest, as an operator sees it.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Fires a trigger with its kwargs at this plugin's handler for it, or else at its global one. Its answer is taken as a host takes it:
    /// one that does not [fit](crate::fit) the trigger is a failure, and to a trigger without returnable keys every value is a pass.
    ///
    /// # Panics
    ///
    /// When the plugin has no handler for it.
    #[must_use]
    pub fn fire(&self, trigger: Trigger, kwargs: &Value) -> Outcome {
        let handlers = &self.manifest.handlers;
        let entry = handlers
            .iter()
            .position(|handler| handler.trigger == trigger.name())
            .or_else(|| handlers.iter().position(|handler| handler.trigger == GLOBAL))
            .unwrap_or_else(|| panic!("{} has no handler for {trigger}", self.manifest.name));
        Outcome(taken(trigger, self.call(entry, handlers[entry].mode, trigger.name(), &kwargs.to_string())))
    }

    /// Fires `task_executor_run_task_trigger_error` for a task that raised.
    #[must_use]
    pub fn raise(&self, task: &RaisedTask) -> Outcome {
        self.fire(Trigger::TaskExecutorRunTaskTriggerError, &task.kwargs())
    }

    /// Runs one of the plugin's tasks: its first and last attempt, until [`set_attempt`](Self::set_attempt) says another.
    ///
    /// # Errors
    ///
    /// What the task raised.
    ///
    /// # Panics
    ///
    /// When the plugin has no such task, or answers what a task cannot, or JSON that cannot be read as a [`Value`].
    pub fn run_task(&self, name: &str, args: &Value, kwargs: &Value) -> Result<Value, TaskError> {
        let tasks = &self.manifest.tasks;
        let position = tasks
            .iter()
            .position(|task| task.name == name)
            .unwrap_or_else(|| panic!("{} has no task {name}", self.manifest.name));
        let Calls { attempt, attempts, .. } = *self.calls();
        let input = json!({
            "task": {"name": name, "uuid": UUID, "attempt": attempt, "attempts": attempts},
            "args": args, "kwargs": kwargs,
        });
        let entry = self.manifest.handlers.len() + position;
        match self.call(entry, tasks[position].mode, name, &input.to_string()) {
            Received::Result(value) => Ok(read(&value)),
            Received::Failed(body) => Err(TaskError::from_body(body)),
            other => panic!("task {name} of {} answered {other:?}", self.manifest.name),
        }
    }

    /// As a host calls it, which takes an answer outside the bounds for a failure.
    fn call(&self, entry: usize, mode: Mode, name: &str, input: &str) -> Received {
        let id = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
        let entry = u32::try_from(entry).expect("a plugin has few entries");
        let Calls { deadline, .. } = *self.calls();
        if deadline == Duration::MAX {
            return self.call_as(id, entry, mode, name, input);
        }
        std::thread::scope(|scope| {
            let (running, ended) = mpsc::channel::<()>();
            scope.spawn(move || {
                let mut wait = deadline;
                // Again and again, since only a call that has begun can be cancelled.
                while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    self.instance.cancel(id);
                    wait = Duration::from_millis(1);
                }
            });
            let received = self.call_as(id, entry, mode, name, input);
            drop(running);
            received
        })
    }

    fn call_as(&self, id: u64, entry: u32, mode: Mode, name: &str, input: &str) -> Received {
        if mode != Mode::Async {
            return checked(self.instance.call(id, entry, name, input));
        }
        let (sender, receiver) = mpsc::channel();
        self.instance.call_async(id, entry, name, input, move |outcome| {
            // A test that no longer waits has failed already.
            let _ = sender.send(outcome);
        });
        checked(receiver.recv().expect("every async call is completed"))
    }

    /// What the plugin logged so far with [`Host::log`](crate::Host::log). What it logs with `log` and `tracing` macros goes to
    /// the test program's own logger, as that of every plugin that is linked in.
    #[must_use]
    pub fn log(&self) -> Vec<(Level, String)> {
        self.recorded.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the time that the plugin sees; it begins at the Unix epoch.
    pub fn set_now(&self, now: SystemTime) {
        *self.recorded.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Sets which attempt of how many the tasks run in; it begins with the first of one. That of a handler's event is
    /// [`RaisedTask::attempt`].
    pub fn set_attempt(&self, attempt: u32, attempts: u32) {
        let mut calls = self.calls();
        (calls.attempt, calls.attempts) = (attempt, attempts);
    }

    /// Cancels each call, of a handler or a task, that runs for longer than this, as a host does at a deadline; it begins with none.
    /// What is blocking learns of it and goes on, and what it comes to is given all the same. What is async is dropped, a failure of
    /// the type `Cancelled`. What is inline is never cancelled.
    pub fn set_deadline(&self, deadline: Duration) {
        self.calls().deadline = deadline;
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plugin's data directory; removed with the plugin.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data_dir
    }

    /// Stops the plugin and gives what `stop` said.
    ///
    /// # Errors
    ///
    /// The plugin's error, or its panic.
    pub fn stop(mut self) -> Result<(), CallError> {
        self.is_stopped = true;
        self.instance.stop()
    }
}

// By hand, since a derive would ask for `Debug` of the plugin, and so would `expect_err` on `start`.
impl<P> fmt::Debug for TestHost<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestHost").field("plugin", &self.manifest.name).finish_non_exhaustive()
    }
}

impl<P> Drop for TestHost<P> {
    fn drop(&mut self) {
        if !self.is_stopped {
            // A test that wants to know what it says calls `stop`.
            let _ = self.instance.stop();
        }
        // Most plugins never make their directory.
        let _ = std::fs::remove_dir_all(&self.data_dir);
    }
}

const UUID: &str = "00000000-0000-4000-8000-000000000000";

/// A task that raised, as an event is made of it.
#[derive(Debug, Clone)]
pub struct RaisedTask {
    name: String,
    args: Value,
    kwargs: Value,
    error_kind: String,
    message: String,
    payload: Map<String, Value>,
    attempt: u32,
    attempts: u32,
}

impl RaisedTask {
    /// A first attempt of `task`, without arguments, that raised a plugin error without payload.
    #[must_use]
    pub fn new(task: impl Into<String>) -> Self {
        Self {
            name: task.into(),
            args: json!([]),
            kwargs: json!({}),
            error_kind: PLUGIN_ERROR.to_owned(),
            message: String::new(),
            payload: Map::new(),
            attempt: 1,
            attempts: 3,
        }
    }

    /// The task's arguments.
    #[must_use]
    pub fn arguments(mut self, args: Value, kwargs: Value) -> Self {
        (self.args, self.kwargs) = (args, kwargs);
        self
    }

    /// The error's message, also as `message` in its payload.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self.payload.insert("message".to_owned(), self.message.clone().into());
        self
    }

    /// One more member of the error's kwargs.
    #[must_use]
    pub fn payload(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.payload.insert(key.into(), value.into());
        self
    }

    /// Another error type than `TaskPluginTriggerError`.
    #[must_use]
    pub fn error_kind(mut self, kind: impl Into<String>) -> Self {
        self.error_kind = kind.into();
        self
    }

    /// Which attempt of how many.
    #[must_use]
    pub fn attempt(mut self, attempt: u32, attempts: u32) -> Self {
        (self.attempt, self.attempts) = (attempt, attempts);
        self
    }

    /// The event's kwargs.
    #[must_use]
    pub fn kwargs(&self) -> Value {
        json!({
            "task_executor": {"name": "TaskExecutor", "attempt": self.attempt, "attempts": self.attempts},
            "task_func": {"name": self.name, "provided_by": "application"},
            "task_broker": {
                "uuid": UUID, "task_name": self.name, "priority": 0, "args": self.args, "kwargs": self.kwargs,
            },
            "e": {"type": self.error_kind, "message": self.message, "args": [], "kwargs": self.payload},
        })
    }
}

/// What a handler answered.
#[derive(Debug)]
pub struct Outcome(Received);

impl Outcome {
    /// Whether it was "not handled".
    #[must_use]
    pub fn is_pass(&self) -> bool {
        matches!(self.0, Received::Pass)
    }

    /// The value it answered.
    ///
    /// # Panics
    ///
    /// When it is JSON that cannot be read as a [`Value`], such as `1e400`.
    #[must_use]
    pub fn result(&self) -> Option<Value> {
        match &self.0 {
            Received::Result(value) => Some(read(value)),
            _ => None,
        }
    }

    /// The directive it gave.
    #[must_use]
    pub fn directive(&self) -> Option<&Directive> {
        match &self.0 {
            Received::Directive(directive) => Some(directive),
            _ => None,
        }
    }

    /// Its own failure: an error it returned, a panic, or an answer that is outside the [bounds](crate::bounds) or does not
    /// [fit](crate::fit) the trigger.
    #[must_use]
    pub fn failure(&self) -> Option<&ErrorBody> {
        match &self.0 {
            Received::Failed(error) => Some(error),
            _ => None,
        }
    }
}

fn in_operators_words(error: CallError, init: &Init) -> CallError {
    match error {
        CallError::Plugin(mut body) if body.kind == CONFIG_ERROR => {
            let (message, hint) = explained(&body.message, init.config.get(), "a table");
            body.message = message + &hint;
            CallError::Plugin(body)
        }
        error => error,
    }
}

/// What a host takes an answer to `trigger` for.
fn taken(trigger: Trigger, received: Received) -> Received {
    let fits = match &received {
        Received::Result(_) if trigger.returnable_keys().is_empty() => return Received::Pass,
        Received::Result(value) => replaced_keys(trigger, value.clone()).map(drop),
        Received::Directive(directive) => check_directive(trigger, directive),
        Received::Pass | Received::Failed(_) => Ok(()),
    };
    match fits {
        Ok(()) => received,
        Err(unfit) => Received::Failed(Box::new(unfit.into_body())),
    }
}

fn read(value: &RawValue) -> Value {
    serde_json::from_str(value.get()).unwrap_or_else(|error| panic!("{value} cannot be read as a `serde_json::Value`: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::{Error, Host, Plugin};

    struct CountsStops;

    static STOPS: AtomicU32 = AtomicU32::new(0);

    impl Plugin for CountsStops {
        type Config = ();

        fn create(_config: (), _host: Host) -> Result<Self, Error> {
            Ok(Self)
        }

        fn stop(&self) -> Result<(), Error> {
            STOPS.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    crate::define_plugin! { plugin: CountsStops }

    struct AnswersDeep;

    impl Plugin for AnswersDeep {
        type Config = ();

        fn create(_config: (), _host: Host) -> Result<Self, Error> {
            Ok(Self)
        }
    }

    impl AnswersDeep {
        fn on_any(&self, _event: crate::Event<'_>) -> Box<RawValue> {
            RawValue::from_string("[".repeat(200) + &"]".repeat(200)).expect("JSON")
        }
    }

    crate::define_plugin! { plugin: AnswersDeep, handlers: { global => on_any } }

    #[test]
    fn an_answer_outside_the_bounds_is_a_failure_as_a_host_takes_it() {
        let host = TestHost::<AnswersDeep>::start("{}").expect("it starts");
        let outcome = host.raise(&RaisedTask::new("t"));
        let failure = outcome.failure().expect("a failure");
        assert_eq!(failure.to_string(), "BoundsError: answered outside the bounds: JSON nested deeper than 128");
        assert_eq!((outcome.is_pass(), outcome.result()), (false, None));
    }

    /// Answers with the kwarg `value`, or else with the directive that its kwargs are.
    struct AnswersAsTold;

    impl Plugin for AnswersAsTold {
        type Config = ();

        fn create(_config: (), _host: Host) -> Result<Self, Error> {
            Ok(Self)
        }
    }

    impl AnswersAsTold {
        fn on_any(&self, event: crate::Event<'_>) -> Result<crate::Answer, Error> {
            Ok(match event.kwargs.get::<Value>("value") {
                Some(value) => crate::Answer::result(value),
                None => crate::Answer::Directive(event.kwargs.to()?),
            })
        }
    }

    crate::define_plugin! { plugin: AnswersAsTold, handlers: { global => on_any } }

    #[test]
    fn an_answer_is_taken_as_a_host_takes_it() {
        let host = TestHost::<AnswersAsTold>::start("{}").expect("it starts");
        let answered = |told: Value, trigger| host.fire(trigger, &told);
        let (error, several, none) =
            (Trigger::TaskExecutorRunTaskTriggerError, Trigger::QtasksAddTaskBeforeBroker, Trigger::WorkerStart);
        let value = |value: Value| json!({"value": value});
        let retry = |seconds: f64| json!({"directive": "retry_after", "seconds": seconds});
        for (told, trigger, failure) in [
            (value(json!({"priorty": 5})), several, "answered `priorty` to qtasks_add_task_before_broker, which takes: "),
            (value(json!([1])), several, "answered [1] to qtasks_add_task_before_broker; expected an object with any of: "),
            (
                retry(1.0),
                several,
                "answered retry_after to qtasks_add_task_before_broker; only task_executor_run_task_trigger_error takes ",
            ),
            (retry(-1.0), error, "answered retry_after -1; expected a number of seconds, 0 or more"),
        ] {
            let outcome = answered(told, trigger);
            let found = outcome.failure().expect("it does not fit").to_string();
            assert!(found.starts_with(&format!("AnswerError: {failure}")), "{found}");
        }
        assert_eq!(answered(value(json!({"priority": 5})), several).result(), Some(json!({"priority": 5})));
        assert_eq!(answered(value(json!(0)), error).result(), Some(json!(0)));
        assert_eq!(answered(retry(0.0), error).directive().map(Directive::name), Some("retry_after"));
        assert!(answered(value(json!(0)), none).is_pass());
        assert!(answered(retry(1.0), none).failure().is_some());
    }

    crate::config! {
        struct Configured { limits: Limits }

        struct Limits { max: u32 = 10 }
    }

    impl Plugin for Configured {
        type Config = Self;

        fn create(config: Self, _host: Host) -> Result<Self, Error> {
            if config.limits.max == 0 { Err("nothing could run")? } else { Ok(config) }
        }
    }

    crate::define_plugin! { plugin: Configured }

    #[test]
    fn what_is_wrong_in_a_configuration_is_said_as_a_host_says_it() {
        for (config, said) in [
            (
                r#"{"limits": {"max": "ten"}}"#,
                r#"ConfigError: limits.max: invalid type: string "ten", expected a whole number from 0 to 4294967295"#,
            ),
            (r#"{"limits": {"maxx": 1}}"#, "ConfigError: limits: unknown field `maxx`, expected `max`; did you mean `max`?"),
            (r#"{"limits": [1]}"#, "ConfigError: limits: invalid type: list, expected a table"),
            (r#"{"limits": {"max": 0}}"#, "Error: nothing could run"),
        ] {
            assert_eq!(TestHost::<Configured>::start(config).expect_err(config).to_string(), said);
        }
    }

    struct Waits;

    impl Plugin for Waits {
        type Config = ();

        fn create(_config: (), _host: Host) -> Result<Self, Error> {
            Ok(Self)
        }
    }

    impl Waits {
        fn on_any(&self, event: crate::Event<'_>) -> &str {
            while !event.cancel.is_cancelled() {
                std::thread::yield_now();
            }
            "cancelled"
        }

        fn wait(&self, ctx: &crate::TaskContext, _args: (), _kwargs: ()) -> Result<i32, TaskError> {
            while !ctx.is_cancelled() {
                std::thread::yield_now();
            }
            Err("nobody waits any more")?
        }

        fn attempt(&self, ctx: &crate::TaskContext, _args: (), _kwargs: ()) -> Result<(u32, u32, bool), TaskError> {
            Ok((ctx.attempt(), ctx.attempts(), ctx.is_last_attempt()))
        }

        #[cfg(feature = "async")]
        async fn never(&self, _ctx: &crate::TaskContext, _args: (), _kwargs: ()) -> Result<i32, TaskError> {
            std::future::pending().await
        }
    }

    #[cfg(not(feature = "async"))]
    crate::define_plugin! { plugin: Waits, handlers: { global => on_any }, tasks: { wait => wait, attempt => inline attempt } }
    #[cfg(feature = "async")]
    crate::define_plugin! {
        plugin: Waits,
        handlers: { global => on_any },
        tasks: { wait => wait, attempt => inline attempt, never => async never },
    }

    #[test]
    fn a_call_is_cancelled_at_its_deadline_and_gives_what_it_comes_to() {
        let host = TestHost::<Waits>::start("{}").expect("it starts");
        let raised = |name| host.run_task(name, &json!([]), &json!({})).expect_err("it is cancelled").to_string();
        for deadline in [Duration::ZERO, Duration::from_millis(20)] {
            let begun = std::time::Instant::now();
            host.set_deadline(deadline);
            assert_eq!(host.raise(&RaisedTask::new("t")).result(), Some(json!("cancelled")));
            assert_eq!(raised("wait"), "Error: nobody waits any more");
            assert!(begun.elapsed() >= 2 * deadline);
            if cfg!(feature = "async") {
                assert_eq!(raised("never"), "Cancelled: the call was cancelled before it ended");
            }
            assert!(host.run_task("attempt", &json!([]), &json!({})).is_ok());
        }
    }

    #[test]
    fn a_task_runs_in_the_attempt_that_was_set() {
        let host = TestHost::<Waits>::start("{}").expect("it starts");
        let attempt = || host.run_task("attempt", &json!([]), &json!({})).expect("it runs");
        assert_eq!(attempt(), json!([1, 1, true]));
        host.set_attempt(1, 3);
        assert_eq!(attempt(), json!([1, 3, false]));
        host.set_attempt(3, 3);
        assert_eq!(attempt(), json!([3, 3, true]));
    }

    #[test]
    fn what_a_plugin_under_test_wrote_is_removed_with_it() {
        let host = TestHost::<AnswersDeep>::start("{}").expect("it starts");
        let directory = host.data_dir().to_owned();
        std::fs::create_dir_all(directory.join("deeper")).expect("a directory of its own");
        drop(host);
        assert!(!directory.exists());
    }

    #[test]
    fn a_plugin_is_stopped_once_by_hand_or_when_its_host_is_dropped() {
        drop(TestHost::<CountsStops>::start("{}").expect("it starts"));
        assert_eq!(STOPS.load(Ordering::Relaxed), 1);
        TestHost::<CountsStops>::start("{}").expect("it starts").stop().expect("it stops");
        assert_eq!(STOPS.load(Ordering::Relaxed), 2);
    }
}
