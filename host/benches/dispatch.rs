//! What dispatch costs beyond the JSON and the call itself. `cargo bench -p qtasks-host --bench dispatch`
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

mod interleaved;
mod support;

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;

use interleaved::{Compared, compare};
use qtasks_host::settings::{Override, Settings};
use qtasks_host::task::Task;
use qtasks_host::trigger::{Answered, Trigger};
use qtasks_host::{App, Running, TaskContext, TaskError};
use qtasks_plugin_api::{Json, RaisedError, TaskBroker, TaskExecutorInfo, TaskFunc, TriggerError};
use serde_json::json;
use serde_json::value::RawValue;
use support::{figure, library_of, median, ratio};

const ERROR: Trigger = Trigger::TaskExecutorRunTaskTriggerError;
const ROUNDS: usize = 200;
const ITERATIONS: u32 = 500;
/// Where code, heap and stack come to lie differs from process to process, and moves the ratio by a twentieth: the middle of so many.
const PROCESSES: usize = 5;
/// In such a process.
const ONE_OF_THEM: &str = "QTASKS_BENCH_DISPATCH";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let running = runtime.block_on(start());
    if std::env::var_os(ONE_OF_THEM).is_some() {
        let Compared { left, right, ratio } = dispatch_over_bare(&runtime, &running);
        println!("[{}, {}, {ratio}]", left.as_nanos(), right.as_nanos());
        return;
    }
    in_processes_of_their_own();
    unsubscribed(&runtime, &running);
    raise_and_answer(&runtime, &running);
}

/// A host with the sample `fallback`, whose handler is inline and typed, through a real `dlopen`.
async fn start() -> Running {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::copy(library_of("fallback"), directory.path().join("libfallback.so")).expect("a copy");
    let path = toml::Value::from(directory.path().to_str().expect("a plain path"));
    let assignments = [
        format!("plugin_dir = {path}"),
        format!("state_dir = {path}"),
        format!("guest_program = {}", toml::Value::from(env!("CARGO_BIN_EXE_qtasks-host"))),
        "plugins.fallback.config.values.resize_image = 123".to_owned(),
    ];
    let overrides = assignments.map(|assignment| Override { flag: String::new(), assignment });
    let mut app = App::new(Settings::read(None, &overrides).expect("good settings"));
    app.inline_task("resize_image", |ctx: &TaskContext, _: (String,), _: Size| -> Result<(), TaskError> {
        Err(ctx.plugin_error(json!({"message": "the image is larger than the limit", "bytes": 20_971_520})).into())
    });
    let running = app.start().await.expect("it starts");
    assert!(running.executor().dispatcher().has_subscribers(ERROR), "the sample is loaded");
    running
}

/// What the task takes.
#[derive(serde::Deserialize)]
struct Size {
    #[expect(dead_code, reason = "the task raises before it looks")]
    width: u32,
}

const EVENT_BYTES: usize = 376;

/// An event of [`EVENT_BYTES`].
fn event<'a>(args: &'a RawValue, kwargs: &'a RawValue, e_args: &'a RawValue, e_kwargs: &'a RawValue) -> TriggerError<'a> {
    TriggerError {
        task_executor: TaskExecutorInfo { name: "TaskExecutor".into(), attempt: 1, attempts: 5 },
        task_func: TaskFunc { name: "resize_image".into(), provided_by: "application".into() },
        task_broker: TaskBroker {
            uuid: "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5".into(),
            task_name: "resize_image".into(),
            priority: 0,
            args: Json::from(args),
            kwargs: Json::from(kwargs),
        },
        e: RaisedError {
            kind: "TaskPluginTriggerError".into(),
            message: "too large".into(),
            args: Json::from(e_args),
            kwargs: Json::from(e_kwargs),
        },
        result: None,
        cancel: Default::default(),
    }
}

/// What any plugin system would do for one event: write it, call, read it, write the answer, read the answer.
extern "C" fn bare_handler(event: *const u8, len: usize, answer: &mut Vec<u8>) {
    // SAFETY: the only caller passes a live `str`.
    #[allow(unsafe_code, reason = "the bare call is a C call")]
    let bytes = unsafe { std::slice::from_raw_parts(event, len) };
    let event: TriggerError<'_> = serde_json::from_str(std::str::from_utf8(bytes).expect("UTF-8")).expect("an event");
    black_box(&event);
    serde_json::to_writer(answer, &123).expect("JSON");
}

fn in_processes_of_their_own() {
    let measured: Vec<[f64; 3]> = (0..PROCESSES)
        .map(|_| {
            let own = std::env::current_exe().expect("this bench");
            let output = Command::new(own).env(ONE_OF_THEM, "1").output().expect("it runs again");
            serde_json::from_slice(&output.stdout).expect("three numbers")
        })
        .collect();
    let middle = |place: usize| median(measured.iter().map(|figures| figures[place]));
    figure("dispatch", middle(0), "ns");
    figure("bare", middle(1), "ns");
    ratio("dispatch_over_bare", middle(2));
}

fn dispatch_over_bare(runtime: &tokio::runtime::Runtime, running: &Running) -> Compared {
    let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
    let (args, kwargs) = (raw(r#"["photo.jpg"]"#), raw(r#"{"width": 640}"#));
    let (e_args, e_kwargs) = (raw("[]"), raw(r#"{"bytes": 20971520}"#));
    let event = event(&args, &kwargs, &e_args, &e_kwargs);
    assert_eq!(serde_json::to_string(&event).expect("JSON").len(), EVENT_BYTES);

    let dispatcher = running.executor().dispatcher();
    runtime.block_on(async {
        let dispatch = || {
            let mut fired = std::pin::pin!(dispatcher.fire(ERROR, &event));
            // An inline handler is never pending: one poll is the whole dispatch.
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let std::task::Poll::Ready(dispatched) = fired.as_mut().poll(&mut context) else { panic!("an inline handler waits") };
            assert!(matches!(&dispatched.answer, Some((Answered::Values(values), _)) if values[0].1.get() == "123"));
        };
        let handler: extern "C" fn(*const u8, usize, &mut Vec<u8>) = black_box(bare_handler);
        let bare = || {
            let text = serde_json::to_string(&event).expect("JSON");
            let mut answer = Vec::new();
            handler(text.as_ptr(), text.len(), &mut answer);
            let answer: Box<RawValue> = serde_json::from_slice(&answer).expect("JSON");
            assert_eq!(answer.get(), "123");
        };
        compare(ROUNDS, ITERATIONS, dispatch, bare)
    })
}

fn unsubscribed(runtime: &tokio::runtime::Runtime, running: &Running) {
    let dispatcher = running.executor().dispatcher();
    let kwargs = json!({"worker": {"name": "Worker"}});
    let compared = runtime.block_on(async {
        let fire = || {
            let mut fired = std::pin::pin!(dispatcher.fire(Trigger::WorkerStart, black_box(&kwargs)));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(fired.as_mut().poll(&mut context).is_ready());
        };
        compare(ROUNDS, 10_000, fire, || {
            black_box(&kwargs);
        })
    });
    figure("unsubscribed", compared.left.as_secs_f64() * 1e9, "ns");
}

fn raise_and_answer(runtime: &tokio::runtime::Runtime, running: &Running) {
    let task = Task::new("resize_image").and_then(|task| task.with_arguments(json!(["photo.jpg"]), json!({"width": 640})));
    let task = task.expect("a task");
    let executor = Arc::clone(running.executor());
    let compared = runtime.block_on(async {
        let run = || {
            let mut executed = std::pin::pin!(executor.execute(task.clone()));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let std::task::Poll::Ready((_, execution)) = executed.as_mut().poll(&mut context) else {
                panic!("an inline task waits")
            };
            assert!(execution.resolved_by.is_some());
        };
        compare(ROUNDS, ITERATIONS, run, || {
            black_box(task.clone());
        })
    });
    figure("raise_and_answer", compared.left.as_secs_f64() * 1e6, "µs");
}
