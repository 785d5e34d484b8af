//! What a call to a plugin in a process of its own costs beyond the two context switches. `cargo bench -p qtasks-host --bench isolation`
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

mod interleaved;
mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use interleaved::compare;
use qtasks_host::settings::{Override, Settings};
use qtasks_host::trigger::{Answered, Dispatcher, Trigger};
use qtasks_host::{App, Running};
use serde_json::{Value, json};
use support::{figure, library_of, ratio};

const ERROR: Trigger = Trigger::TaskExecutorRunTaskTriggerError;
/// In a child process: be the other end of the bare ping-pong.
const ECHO: &str = "QTASKS_BENCH_ECHO";
/// Calls in a round.
const CALLS: u32 = 200;
/// Bytes of an answer's frame.
const ANSWER: usize = 32;

fn main() {
    if std::env::var_os(ECHO).is_some() {
        return echo();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let running = runtime.block_on(start(directory.path()));
    let event = event();
    let question = event.to_string().len() + 64;
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut child = Command::new(std::env::current_exe().expect("this bench"))
        .env(ECHO, question.to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("the other end");

    let dispatcher = running.executor().dispatcher();
    let mut socket = &ours;
    let (sent, mut received) = (vec![0u8; question], [0u8; ANSWER]);
    // On the runtime's own thread, as a worker's lane is; entering the runtime is shared by all calls of a round.
    let ask_all = || {
        let (dispatcher, event) = (Arc::clone(dispatcher), event.clone());
        let asking = runtime.spawn(async move {
            for _ in 0..CALLS {
                ask(&dispatcher, &event).await;
            }
        });
        runtime.block_on(asking).expect("every call is answered");
    };
    let ping_pong = || {
        for _ in 0..CALLS {
            socket.write_all(&sent).expect("the other end reads");
            socket.read_exact(&mut received).expect("the other end answers");
        }
    };
    let compared = compare(50, 1, ask_all, ping_pong);
    figure("isolated_call", compared.left.as_secs_f64() * 1e6 / f64::from(CALLS), "µs");
    figure("bare_ping_pong", compared.right.as_secs_f64() * 1e6 / f64::from(CALLS), "µs");
    ratio("isolated_call_over_ping_pong", compared.ratio);
    drop(ours);
    child.wait().expect("the other end ends");
    runtime.block_on(running.stop());
}

async fn ask(dispatcher: &Dispatcher, event: &Value) {
    let dispatched = dispatcher.fire(ERROR, event).await;
    assert!(matches!(&dispatched.answer, Some((Answered::Values(values), _)) if values[0].1.get() == "123"));
}

async fn start(directory: &std::path::Path) -> Running {
    std::fs::copy(library_of("fallback"), directory.join("libfallback.so")).expect("a copy");
    let path = toml::Value::from(directory.to_str().expect("a plain path"));
    let assignments = [
        format!("plugin_dir = {path}"),
        format!("state_dir = {path}"),
        format!("guest_program = {}", toml::Value::from(env!("CARGO_BIN_EXE_qtasks-host"))),
        "plugins.fallback.isolation = 'process'".to_owned(),
        "plugins.fallback.config.values.resize_image = 123".to_owned(),
    ];
    let overrides = assignments.map(|assignment| Override { flag: String::new(), assignment });
    let running = App::new(Settings::read(None, &overrides).expect("good settings")).start().await.expect("it starts");
    assert!(running.executor().dispatcher().has_subscribers(ERROR), "the sample is loaded");
    running
}

/// An event of about 370 bytes.
fn event() -> Value {
    json!({
        "task_executor": {"name": "TaskExecutor", "attempt": 1, "attempts": 5},
        "task_func": {"name": "resize_image", "provided_by": "application"},
        "task_broker": {
            "uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5", "task_name": "resize_image", "priority": 0,
            "args": ["photo.jpg"], "kwargs": {"width": 640},
        },
        "e": {"type": "TaskPluginTriggerError", "message": "too large", "args": [], "kwargs": {"bytes": 20_971_520}},
    })
}

/// Reads a question, writes an answer, until the socket ends.
fn echo() {
    let size: usize = std::env::var(ECHO).expect("set").parse().expect("a number");
    let stdin = std::io::stdin();
    let mut socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(&stdin, 10).expect("a socket"));
    let (mut question, answer) = (vec![0u8; size], [0u8; ANSWER]);
    while socket.read_exact(&mut question).is_ok() && socket.write_all(&answer).is_ok() {}
}
