//! Every function of the boundary, with both of its sides in one program: there a sanitizer sees into both, and so does Miri.
#![expect(unsafe_code, reason = "a root symbol is taken as a host takes it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::exported::Root;
use super::loaded::{CallError, Instance, Layout, Module, Received};
use super::{AbiOutcome, kind};
use crate::answer::{Answer, Directive};
use crate::bounds::{self, BoundsError};
use crate::error::{Error, ErrorBody, PANIC_ERROR, PLUGIN_ERROR, TaskError};
use crate::event::{Event, TriggerError};
use crate::export::Plugin;
use crate::host::{Host, HostServices, Init, Level, LogLine};
use crate::task::TaskContext;
use crate::testing::{RaisedTask, TestHost};
use crate::trigger::Trigger;

crate::config! {
    struct Config {
        /// In which function it panics.
        panics_in: String = String::new(),
        /// In which function it gives an error.
        fails_in: String = String::new(),
    }
}

struct Tried {
    config: Config,
    host: Host,
}

impl Config {
    fn begin(&self, function: &str) -> Result<(), Error> {
        assert!(self.panics_in != function, "a panic in {function}");
        if self.fails_in == function { Err(Error::msg(format_args!("an error in {function}"))) } else { Ok(()) }
    }
}

impl Plugin for Tried {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self, Error> {
        config.begin("create")?;
        Ok(Self { config, host })
    }

    fn start(&self) -> Result<(), Error> {
        self.config.begin("start")
    }

    fn stop(&self) -> Result<(), Error> {
        self.config.begin("stop")
    }
}

impl Drop for Tried {
    fn drop(&mut self) {
        let _ = self.config.begin("drop");
    }
}

impl Tried {
    fn on_error(&self, event: TriggerError<'_>) -> Result<Answer, Error> {
        Ok(match &*event.e.message {
            "value" => Answer::result(json!({"of": event.task_func.name, "at": self.host.now()})),
            "retry" => Answer::retry_after(Duration::from_millis(1500)),
            "fail" => Err("no answer")?,
            "panic" => panic!("no answer at all"),
            "wait" => {
                while !event.cancel.is_cancelled() {
                    std::thread::yield_now();
                }
                Answer::cancel("nobody waits")
            }
            _ => Answer::Pass,
        })
    }

    fn on_any(&self, event: Event<'_>) -> String {
        self.host.log(Level::Info, format_args!("{} with {}", event.trigger, event.kwargs.text()));
        event.kwargs.text().to_owned()
    }

    fn add(&self, ctx: &TaskContext, (a, b): (i64, i64), (): ()) -> Result<i64, TaskError> {
        a.checked_add(b).ok_or_else(|| ctx.plugin_error(json!({"message": "too large", "attempt": ctx.attempt()})).into())
    }

    fn panics(&self, _: &TaskContext, (): (), (): ()) -> Result<(), TaskError> {
        panic!("in a task")
    }
}

crate::define_plugin! {
    plugin: Tried,
    handlers: { task_executor_run_task_trigger_error => on_error, global => inline on_any },
    tasks: { add => add, panics => inline panics },
}

fn started(config: Value) -> Result<TestHost<Tried>, CallError> {
    TestHost::start(&config.to_string())
}

fn raised(host: &TestHost<Tried>, message: &str) -> crate::testing::Outcome {
    host.raise(&RaisedTask::new("resize").message(message))
}

#[test]
fn what_a_handler_gives_comes_back_whole() {
    let host = started(json!({})).expect("it starts");
    host.set_now(SystemTime::UNIX_EPOCH + Duration::from_secs(7));
    let value = raised(&host, "value").result().expect("a value");
    assert_eq!((&value["of"], &value["at"]["secs_since_epoch"]), (&json!("resize"), &json!(7)));
    assert!(raised(&host, "pass").is_pass());
    assert!(matches!(raised(&host, "retry").directive(), Some(Directive::RetryAfter { .. })));
    assert_eq!(raised(&host, "fail").failure().map(|error| error.message.as_str()), Some("no answer"));
    let panic = raised(&host, "panic");
    let panic: &ErrorBody = panic.failure().expect("a panic");
    assert_eq!((&*panic.kind, panic.message.as_str()), (PANIC_ERROR, "no answer at all"));
    assert_eq!(host.fire(Trigger::StorageGet, &json!({"é": [1]})).result(), Some(json!(r#"{"é":[1]}"#)));
    assert_eq!(host.log(), [(Level::Info, r#"storage_get with {"é":[1]}"#.to_owned())]);
    host.stop().expect("it stops");
}

#[test]
fn what_a_task_gives_or_raises_comes_back_whole() {
    let host = started(json!({})).expect("it starts");
    assert_eq!(host.run_task("add", &json!([1, 2]), &json!({})).expect("a sum"), json!(3));
    let raised = host.run_task("add", &json!([i64::MAX, 1]), &json!({})).expect_err("too large").into_body();
    assert_eq!((&*raised.kind, raised.message.as_str()), (PLUGIN_ERROR, "too large"));
    assert_eq!(serde_json::from_str::<Value>(raised.kwargs.get()).expect("JSON")["attempt"], 1);
    let panic = host.run_task("panics", &json!([]), &json!({})).expect_err("a panic").into_body();
    assert_eq!(&*panic.kind, PANIC_ERROR);
    assert!(host.run_task("add", &json!(["one"]), &json!({})).is_err(), "arguments of another shape");
}

#[test]
fn an_error_or_a_panic_outside_of_calls_comes_back_and_ends_nothing() {
    for (function, way) in [("create", "panics_in"), ("create", "fails_in"), ("start", "panics_in"), ("start", "fails_in")] {
        let error = started(json!({way: function})).expect_err(function).to_string();
        assert!(error.contains(&format!("in {function}")), "{error}");
    }
    for way in ["panics_in", "fails_in"] {
        let error = started(json!({way: "stop"})).expect("it starts").stop().expect_err("stop").to_string();
        assert!(error.contains("in stop"), "{error}");
    }
    let error = started(json!({"panic_in": "create"})).expect_err("no such key").to_string();
    assert!(error.contains("ConfigError") && error.contains("panic_in"), "{error}");
    // Nobody is left to be told but the log.
    drop(started(json!({"panics_in": "drop"})).expect("it starts"));
}

/// Counts lines, and panics at each.
struct Panics(Arc<AtomicU32>);

impl HostServices for Panics {
    fn log(&self, line: LogLine<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("the log of {}", line.target)
    }

    fn max_level(&self) -> Level {
        Level::Trace
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

static ROOT: Root = Root::new::<Tried>();

fn init() -> Init {
    Init {
        plugin: "tried".to_owned(),
        data_dir: "/nonexistent".into(),
        config: serde_json::from_str("{}").expect("JSON"),
        host_version: "test".to_owned(),
    }
}

/// An instance as a host makes it, from the root symbol.
fn instance(layout: Layout, lines: &Arc<AtomicU32>) -> Instance {
    // SAFETY: this is the static that `export_plugin!` exports, for the rest of the process, and built from this very description.
    let module = unsafe { Module::from_root_symbol((&raw const ROOT).cast(), layout) }.expect("our own root");
    assert_eq!(module.manifest(), Ok(<Tried as crate::export::Export>::MANIFEST));
    assert!(!module.has_ability(7));
    let instance = module.create(&init(), Panics(Arc::clone(lines))).expect("it is created");
    instance.start().expect("it starts");
    instance
}

#[test]
fn a_root_is_read_as_a_host_reads_it_and_a_panic_of_the_hosts_stays_there() {
    for layout in [Layout::Compare, Layout::ComparedBefore] {
        let lines = Arc::default();
        let instance = instance(layout, &lines);
        let answer = instance.call(1, 1, "worker_start", "{}").expect("an outcome");
        assert!(matches!(answer, Received::Result(_)), "{answer:?}");
        assert_eq!(lines.load(Ordering::Relaxed), 1);
        let Ok(Received::Failed(error)) = instance.call(2, 9, "worker_start", "{}") else { panic!("no such entry") };
        assert_eq!(error.message, "entry 9 was called, this plugin has 4");
        instance.stop().expect("it stops");
    }
}

#[test]
fn a_call_that_nobody_waits_for_is_told_so() {
    let instance = instance(Layout::Compare, &Arc::default());
    let kwargs = RaisedTask::new("resize").message("wait").kwargs().to_string();
    let answer = std::thread::scope(|scope| {
        let calling = scope.spawn(|| instance.call(7, 0, "task_executor_run_task_trigger_error", &kwargs));
        while !calling.is_finished() {
            // Until it has begun, nobody knows the id.
            instance.cancel(7);
            std::thread::yield_now();
        }
        calling.join().expect("no panic")
    });
    assert!(matches!(answer, Ok(Received::Directive(Directive::Cancel { .. }))), "{answer:?}");
}

#[test]
fn an_outcome_is_checked_before_it_is_believed() {
    let received = |kind, text: &str, most| AbiOutcome { kind, payload: text.into() }.receive(most);
    let deep = "[".repeat(bounds::MAX_DEPTH + 1) + &"]".repeat(bounds::MAX_DEPTH + 1);
    assert!(matches!(received(kind::PASS, "", 0), Ok(Received::Pass)));
    assert!(matches!(received(kind::RESULT, "12345", 4), Err(BoundsError::TooLong { len: 5, max: 4 })));
    assert!(matches!(received(kind::RESULT, "[1,", 64), Err(BoundsError::NotJson(_))));
    assert!(matches!(received(kind::RESULT, &deep, 1024), Err(BoundsError::TooDeep)));
    assert!(matches!(received(kind::DIRECTIVE, r#"{"directive": "sleep"}"#, 64), Err(BoundsError::Directive(_))));
    assert!(matches!(received(kind::FAILED, "{}", 64), Err(BoundsError::NotJson(_))));
    // Within an error they would be kept as text, and read by nobody later.
    let error = format!(r#"{{"type": "E", "message": "m", "args": {deep}}}"#);
    assert!(matches!(received(kind::FAILED, &error, 1024), Err(BoundsError::TooDeep)));
    let directive = format!(r#"{{"directive": "replace_error", "error": {error}}}"#);
    assert!(matches!(received(kind::DIRECTIVE, &directive, 1024), Err(BoundsError::TooDeep)));
    assert!(matches!(received(9, "1", 64), Err(BoundsError::UnknownKind(9))));
}

#[cfg(feature = "async")]
mod waiting {
    use std::sync::mpsc;

    use super::*;

    struct Waiting;

    impl Plugin for Waiting {
        type Config = ();

        fn create((): (), _: Host) -> Result<Self, Error> {
            Ok(Self)
        }
    }

    impl Waiting {
        async fn on_error(&self, event: TriggerError<'_>) -> Answer {
            tokio::task::yield_now().await;
            assert!(event.e.message != "panic", "in a poll");
            if event.e.message == "never" {
                std::future::pending::<()>().await;
            }
            Answer::result(event.task_func.name.into_owned())
        }

        async fn doubled(&self, _: &TaskContext, (number,): (u32,), (): ()) -> Result<u32, TaskError> {
            tokio::task::yield_now().await;
            Ok(number * 2)
        }
    }

    crate::define_plugin! {
        plugin: Waiting,
        handlers: { task_executor_run_task_trigger_error => async on_error },
        tasks: { doubled => async doubled },
    }

    #[test]
    fn an_async_call_that_nobody_waits_for_is_dropped() {
        let instance = Module::linked_in::<Waiting>().create(&init(), Panics(Arc::default())).expect("it is created");
        instance.start().expect("it starts");
        let (sender, outcome) = mpsc::channel();
        let kwargs = RaisedTask::new("resize").message("never").kwargs().to_string();
        let id = 1 << 62;
        instance.call_async(id, 0, "task_executor_run_task_trigger_error", &kwargs, move |outcome| drop(sender.send(outcome)));
        instance.cancel(id);
        let outcome = outcome.recv_timeout(Duration::from_secs(60)).expect("it ends");
        let Ok(Received::Failed(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.to_string(), "Cancelled: the call was cancelled before it ended");
        instance.stop().expect("it stops");
    }

    #[test]
    fn what_is_async_is_completed_once_whatever_becomes_of_it() {
        let host = TestHost::<Waiting>::start("{}").expect("it starts");
        assert_eq!(host.raise(&RaisedTask::new("resize")).result(), Some(json!("resize")));
        assert_eq!(host.run_task("doubled", &json!([4]), &json!({})).expect("a number"), json!(8));
        let panic = host.raise(&RaisedTask::new("resize").message("panic"));
        assert_eq!(panic.failure().map(|error| error.message.as_str()), Some("in a poll"));
        host.stop().expect("it stops");
    }
}
