//! A plugin's own process that ended, and is started again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_host::TaskReport;
use serde_json::{Value, json};

use super::in_handlers_isolated::{PLUGIN, failures, isolated, place};
use super::replacements::on_threads;
use super::{Held, RAISE, quarantine};
use crate::support::app::Started;
use crate::support::artifacts::library;
use crate::support::{Place, TestApp, assert_says, returning};

faults! {
    starts_again: "a handler crashes now and then" => "each call gets a living process; what it answers counts";
    tripped: "a handler crashes five times within a minute" => "`PluginTripped`: it is not asked again, the summary says why, and it is quarantined as `repeated-failure`";
    never_comes_up_again: "a handler crashes, and its next process hangs in its start" => "`PluginCrashed` at each call's deadline, and other tasks go on; nothing is left of the process";
    cannot_be_started_for_a_while: "a handler crashes, and the guest program cannot be used for a while" => "`PluginCrashed`, naming the program; the plugin is not to blame: later calls are answered";
    comes_up_slowly: "a handler crashes, and its next process takes longer to start than a call may" => "`PluginCrashed` at the call's deadline; the start goes on, and later calls are answered";
    stopped_while_it_comes_up: "the application is stopped while a process hangs in being started again" => "it is killed at once; the call that waits for it is `PluginCrashed`";
    dropped_while_it_comes_up: "the application is dropped while a process hangs in being started again" => "it is killed at once";
}

fn starts_again() {
    let place = place();
    let good = RAISE.replace("sea is frozen", "be good");
    let host = isolated(&place, "segfault")
        .set(&format!("plugins.{PLUGIN}.answers={{task_executor_run_task_trigger_error = \"first\"}}"));
    let ended = host.with_input([RAISE, &good, RAISE, &good].concat()).expect_code(0);
    let answers: Vec<Value> = ended.results().into_iter().map(|mut result| result["returning"].take()).collect();
    assert_eq!(answers, [123, 456, 123, 456], "{}", ended.stderr);
}

fn tripped() {
    let place = place();
    let ended = isolated(&place, "segfault").with_input(RAISE.repeat(8));
    let stderr = ended.stderr.clone();
    let failures = failures(ended, 8);
    let kinds: Vec<&str> = failures.iter().map(|(kind, _)| &**kind).collect();
    assert_eq!(kinds, [["PluginCrashed"; 5].as_slice(), &["PluginTripped"; 3]].concat());
    let reason = "set aside after 5 failures within 60 s; the last: its process was killed by signal 11 (SIGSEGV)";
    assert_eq!(failures[7].1, reason);
    assert_says(&stderr, &[&format!("plugin {PLUGIN} was {reason}")]);
    // And from the next start on, until somebody lifts it.
    let quarantined = quarantine(&place);
    assert_eq!((quarantined.len(), &quarantined[0]["kind"]), (1, &Value::from("repeated-failure")));
    assert_eq!(quarantined[0]["evidence"], reason);
}

/// In this time a process must have come up. No test waits for that long.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// The FIFO that a process of the plugin holds which comes up again.
fn held(place: &Place) -> Held {
    let data_dir = format!("state/plugins/{PLUGIN}");
    std::fs::create_dir_all(place.path(&data_dir)).expect("a directory of the test's own");
    Held::at(place, &format!("{data_dir}/held"))
}

const COMES_UP: (&str, &str) = ("PluginCrashed", "the plugin's process is being started again");

fn never_comes_up_again() {
    for threads in ["1", "4"] {
        let (place, begun) = (place(), Instant::now());
        let held = held(&place);
        let set = ["config.how_at_restart=hold", "deadline=2", &format!("start_deadline={}", START_DEADLINE.as_secs())];
        let host = isolated(&place, "segfault").env("TOKIO_WORKER_THREADS", threads);
        let host = set.into_iter().fold(host, |host, set| host.set(&format!("plugins.{PLUGIN}.{set}")));
        let ended = host.with_input(RAISE.repeat(3));
        assert!(begun.elapsed() < START_DEADLINE, "{}", ended.stderr);
        assert!(!ended.stderr.contains("did not stop cleanly"), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("it is started again").count(), 1, "{}", ended.stderr);
        let failures = failures(ended, 3);
        assert_says(&failures[0].1, &["signal 11 (SIGSEGV)"]);
        for (kind, message) in &failures[1..] {
            assert_eq!((&**kind, &**message), COMES_UP);
        }
        assert!(held.was_taken(), "it was started again");
        assert!(held.is_let_go_within(10), "it is gone");
    }
    on_each_runtime(async || {
        let ComingUp { waiting, app: _app, .. } = ComingUp::new("hold", 2.0).await;
        assert_eq!(failure(&waiting.await.expect("a report")), COMES_UP);
    });
}

fn cannot_be_started_for_a_while() {
    let app = TestApp::with(&["scripted", "misbehaves_in_handler"]).set("plugins.scripted.triggers = []");
    let write = |path: &Path, script: &str| {
        // Renamed over the other: a program that is being started cannot be written to.
        let beside = path.with_extension("new");
        std::fs::write(&beside, format!("#!/bin/sh\n{script}\n")).expect("the test's own directory");
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).expect("our own file");
        std::fs::rename(&beside, path).expect("our own file");
    };
    let (program, good) = (app.place.path("guest"), format!("exec {} \"$@\"", env!("CARGO_BIN_EXE_qtasks-host")));
    write(&program, &good);
    let guest = format!("guest_program = {}", toml::Value::from(program.to_str().expect("a plain path")));
    let set = ["isolation = 'process'", "config.how = 'segfault'"].map(|set| format!("plugins.{PLUGIN}.{set}"));
    let app = set.into_iter().chain([guest]).fold(app, TestApp::set);
    on_threads(async {
        let app = app.start().await;
        assert_says(failure(&app.raise().await).1, &["signal 11 (SIGSEGV)"]);
        write(&program, "exit 3");
        for _ in 0..6 {
            let report = app.raise().await;
            assert_eq!(failure(&report).0, "PluginCrashed");
            let said = ["the guest program ", "it ended with exit(3) before it asked for its library", "`guest_program`"];
            assert_says(failure(&report).1, &said);
        }
        write(&program, &good);
        assert_eq!(returning(&app.run("raise", json!([]), json!({"message": "be good"})).await), "456");
        assert!(quarantine(&app.place).is_empty());
        app.running.stop().await;
    });
}

fn comes_up_slowly() {
    on_each_runtime(async || {
        let ComingUp { app, waiting, held } = ComingUp::new("wait", 3.0).await;
        assert_eq!(failure(&waiting.await.expect("a report")), COMES_UP);
        let good = || app.run("raise", json!([]), json!({"message": "be good"}));
        let let_go = async { drop(held) };
        // Another process would find nobody at the other end of the FIFO, and wait for ever.
        let (first, second, third, ()) = tokio::join!(good(), good(), good(), let_go);
        assert_eq!([&first, &second, &third].map(returning), ["456"; 3]);
    });
}

fn stopped_while_it_comes_up() {
    on_each_runtime(async || {
        let ComingUp { app, waiting, held } = ComingUp::new("hold", 600.0).await;
        app.running.executor().dispatcher().registry().stop().await;
        assert!(held.is_let_go_within(10), "it is gone");
        let stopped = ("PluginCrashed", "the plugin's process was stopped");
        assert_eq!(failure(&waiting.await.expect("a report")), stopped);
        assert_eq!(failure(&app.raise().await), stopped);
    });
}

fn dropped_while_it_comes_up() {
    on_each_runtime(async || {
        let ComingUp { app, waiting, held } = ComingUp::new("hold", 600.0).await;
        waiting.abort();
        assert!(waiting.await.is_err_and(|error| error.is_cancelled()));
        let Started { place, running, .. } = Arc::into_inner(app).expect("only this test has it");
        drop(running);
        assert!(held.is_let_go_within(10), "it is gone");
        drop(place);
    });
}

/// Runs a test on one thread, and on two.
#[track_caller]
fn on_each_runtime(test: impl AsyncFn()) {
    use tokio::runtime::Builder;
    // Where it is not built yet, that takes longer than anything here.
    library("misbehaves_in_handler");
    for mut runtime in [Builder::new_current_thread(), Builder::new_multi_thread()] {
        let begun = Instant::now();
        runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(test());
        assert!(begun.elapsed() < START_DEADLINE, "somebody waited for the process");
    }
}

/// An application whose plugin crashed in a call, and does something when it is started again.
struct ComingUp {
    app: Arc<Started>,
    /// A task that needs the process.
    waiting: tokio::task::JoinHandle<TaskReport>,
    /// What the process holds that comes up.
    held: Held,
}

impl ComingUp {
    async fn new(how: &str, deadline: f64) -> Self {
        let app = TestApp::with(&["scripted", "misbehaves_in_handler"]).set("plugins.scripted.triggers = []");
        let held = held(&app.place);
        let set = [
            "isolation = 'process'".to_owned(),
            format!("deadline = {deadline:?}"),
            format!("start_deadline = {}", START_DEADLINE.as_secs()),
            "config.how = 'segfault'".to_owned(),
            format!("config.how_at_restart = '{how}'"),
        ];
        let app = set.into_iter().fold(app, |app, set| app.set(format!("plugins.{PLUGIN}.{set}")));
        let own = |app: &mut qtasks_host::App| {
            app.inline_task("own", |_ctx, (): (), (): ()| Ok::<_, qtasks_host::TaskError>("done"));
        };
        let app = Arc::new(app.start_with(own).await);
        assert_says(failure(&app.raise().await).1, &["signal 11 (SIGSEGV)"]);
        let waiting = tokio::spawn({
            let app = Arc::clone(&app);
            async move { app.raise().await }
        });
        while !held.was_taken() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(returning(&app.run("own", json!([]), json!({})).await), r#""done""#, "other tasks go on");
        Self { app, waiting, held }
    }
}

/// How the plugin failed that alone was asked about a task's error.
#[track_caller]
fn failure(report: &TaskReport) -> (&str, &str) {
    let failure = report.decisions[0].failure.as_ref().expect("it failed");
    (&failure.kind, &failure.message)
}
