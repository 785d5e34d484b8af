//! What goes wrong while plugins are replaced.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use qtasks_host::plugin::LoadReport;
use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{ReplaceError, Status};
use qtasks_plugin_api::Trigger;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::quarantine;
use crate::support::app::Started;
use crate::support::artifacts::library;
use crate::support::versioned::{FILE, GoOn, app, put, renamed, stops};
use crate::support::worker::{Project, Worker};
use crate::support::{TestApp, assert_says, returning};

faults! {
    overwritten: "a library that runs is overwritten in place" => "what runs is a sealed copy: undisturbed; garbage is refused at the next look";
    deleted: "a library that runs is deleted" => "undisturbed; at the next look drained and stopped";
    half_written: "the watched directory is looked at while a new version is half written" => "refused, the old version serves; once whole, it takes over; nothing is in quarantine";
    new_version_crashes: "a new version crashes when it is loaded" => "`probe-harm`, in quarantine; the old version serves";
    new_version_refuses: "a new version refuses to start" => "`start`, or `isolated` in a process of its own; the old version serves";
    new_version_hangs_here: "a new version hangs in its start, in the host's process" => "quarantined as `time-out`; the old version serves, and the other files are looked at";
    new_version_starts_too_late: "a new version takes longer to start than it may, in the host's process" => "quarantined as `time-out`; the old version serves; the new one is stopped once it has started";
    new_version_hangs_and_no_verdict_can_be_written: "a new version hangs in its start, in the host's process, and the state directory cannot be written to" => "nothing is replaced, and it is said what to do; the old version serves";
    hangs_after_others_came_up: "a library hangs in its start, in the host's process, when a new one before it has come up" => "the new one runs once; what came up beside it is stopped";
    new_version_hangs_isolated: "a new version hangs in its start, in a process of its own" => "`isolated`; the old version serves";
    new_version_hangs_while_it_is_loaded: "a library hangs while a worker loads it, and did not in the probe" => "quarantined as `time-out`; the worker finishes what it can, and exits with 70; its tasks run again";
    the_linker_is_held_from_the_runtime: "a library hangs while a worker loads it, and the only thread of the worker's runtime waits for the dynamic linker" => "quarantined as `time-out`; the worker exits with 70 within ten seconds of its drain deadline; its tasks run again";
    task_of_the_application: "a new version provides a task that the application has" => "`task-taken`; the old version serves";
    trigger_not_handled: "a plugin is added that does not handle what the settings name" => "nothing is replaced; it is stopped";
    not_taken_over_and_hangs_in_its_stop: "a new version that does not go together with another hangs in its stop, in the host's process" => "nothing is replaced; the application goes on, and ends";
    task_of_another_plugin: "a new version provides a task of another plugin" => "`task-taken`; the old version serves";
    directory_gone: "the plugin directory is gone" => "nothing is replaced";
    replaced_during_a_handler: "a version is replaced while a handler of it runs" => "the call ends with its answer; only then is the version stopped";
    call_outlives_the_drain_here: "a call of the old version outlives the drain deadline, in the host's process" => "warned about; the call ends with its answer; only then is the version stopped";
    call_outlives_the_drain_isolated: "a call of the old version outlives the drain deadline, in a process of its own" => "stopped; the call fails as `PluginCrashed`";
    stop_hangs_here: "the old version hangs in its stop, in the host's process" => "warned about after 5 s; the new version serves all the while";
    stop_hangs_isolated: "the old version hangs in its stop, in a process of its own" => "killed after 5 s; the new version serves all the while";
}

/// Runs a test on threads of its own.
pub(super) fn on_threads(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(test);
}

pub(super) const BOTH: [&str; 2] = ["in-process", "process"];

/// Stops the application, and asserts that these versions were stopped in all.
async fn stopped(app: Started, versions: &[u64]) {
    app.running.stop().await;
    assert_eq!(stops(&app.place), versions);
}

fn overwritten() {
    on_threads(async {
        for isolation in BOTH {
            let app = app(isolation).start().await;
            let file = fs::OpenOptions::new().write(true).open(app.place.plugins().join(FILE)).expect("our own file");
            let length = usize::try_from(file.metadata().expect("our own file").len()).expect("it fits");
            file.write_all_at(&vec![0xcc; length], 0).expect("our own file");
            assert_eq!(app.versions().await, (json!(1), json!(1)));
            let reason = app.refused_now("manifest").await;
            assert_says(&reason, &["ELF"]);
            stopped(app, &[1]).await;
        }
    });
}

fn deleted() {
    on_threads(async {
        for isolation in BOTH {
            let app = app(isolation).start().await;
            fs::remove_file(app.place.plugins().join(FILE)).expect("our own file");
            assert_eq!(app.versions().await, (json!(1), json!(1)));
            let replaced = app.replaced().await;
            assert_says(&replaced.changes[0].to_string(), &["versioned 1.0.0 (", ") was removed"]);
            assert_eq!(app.raise().await.status, Status::Error);
            app.replacer().drained().await;
            stopped(app, &[1]).await;
        }
    });
}

fn half_written() {
    let project = Project::sqlite(&[]);
    put(&project.place, "versioned_1");
    let mut worker = Worker::spawn(project.worker().arg("--watch"));
    let bytes = fs::read(library("versioned_2")).expect("a library");
    // Not in the middle: behind what is loaded there may be megabytes of debug information, without which it runs as well.
    let (half, rest) = bytes.split_at(64 << 10);
    let path = project.place.plugins().join(FILE);
    // In place, as `cp` does it.
    fs::write(&path, half).expect("our own file");
    assert_says(&worker.read_until("plugin refused"), &[FILE, "code="]);
    worker.read_until("versioned 1.0.0 (");
    assert_eq!(project.wait(&project.add(&["which"]))["returning"], 1);
    let mut file = fs::OpenOptions::new().append(true).open(&path).expect("our own file");
    std::io::Write::write_all(&mut file, rest).expect("our own file");
    drop(file);
    worker.read_until("was replaced by versioned 2.0.0");
    assert_eq!(project.wait(&project.add(&["which"]))["returning"], 2);
    assert!(quarantine(&project.place).is_empty());
    assert!(worker.stop().0.success());
}

fn new_version_crashes() {
    on_threads(async {
        for isolation in BOTH {
            let app = app(isolation).start().await;
            put(&app.place, "constructor_segfaults");
            assert_says(&app.refused_now("probe-harm").await, &["SIGSEGV"]);
            assert_says(&app.refused_now("quarantined").await, &["SIGSEGV"]);
            let stats = json!(app.running.stats(app.running.open_broker().await.expect("a file")).app().await);
            let plugins = stats["plugins"].as_array().expect("a list").iter();
            let states: Vec<_> = plugins.map(|plugin| (plugin["plugin"].clone(), plugin["state"].clone())).collect();
            let both = [("scripted", "running"), ("versioned", "running"), ("constructor-segfaults", "refused")];
            assert_eq!(states, both.map(|(name, state)| (json!(name), json!(state))));
            put(&app.place, "versioned_2");
            assert_eq!(app.replaced().await.changes.len(), 1);
            app.replacer().drained().await;
            stopped(app, &[1, 2]).await;
        }
    });
}

fn new_version_refuses() {
    on_threads(async {
        for (isolation, code) in BOTH.into_iter().zip(["start", "isolated"]) {
            let app = app(isolation).set("plugins.versioned.config.refuses = 2").start().await;
            put(&app.place, "versioned_2");
            assert_says(&app.refused_now(code).await, &["version 2 refuses"]);
            stopped(app, &[1]).await;
        }
    });
}

/// The new version hangs; another file is new, and comes in.
async fn new_version_hangs(isolation: &str, code: &str) {
    let app = app(isolation).set("plugins.versioned.config.hangs_in_start = 2").set("plugins.versioned.start_deadline = 2");
    let app = app.start().await;
    put(&app.place, "versioned_2");
    app.place.copy("documented_example");
    let added = app.replaced().await;
    assert_says(&added.changes[0].to_string(), &["documented-example 0.1.0", "was added"]);
    assert_eq!(added.changes.len(), 1);
    fs::remove_file(app.place.plugins().join("libdocumented_example.so")).expect("our own file");
    let removed = app.replaced().await;
    assert_eq!(removed.changes.len(), 1);
    app.refused_now(code).await;
    stopped(app, &[1]).await;
}

fn new_version_hangs_here() {
    // The thread that hangs is nobody's to end, and the runtime would wait for it.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(new_version_hangs("in-process", "quarantined"));
    runtime.shutdown_background();
}

fn new_version_starts_too_late() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let place = runtime.block_on(async {
        let app =
            app("in-process").set("plugins.versioned.config.waits_in_start = 2").set("plugins.versioned.start_deadline = 2");
        let app = app.start().await;
        let go_on = GoOn::new(&app.place);
        put(&app.place, "versioned_2");
        assert_says(&app.refused_now("quarantined").await, &["its create or start did not end within 2 s"]);
        drop(go_on.is_waited_for().await);
        app.running.stop().await;
        app.place
    });
    // It waits for the thread that was left to itself.
    drop(runtime);
    let mut ends = stops(&place);
    ends.sort_unstable();
    assert_eq!(ends, [1, 2]);
}

fn new_version_hangs_and_no_verdict_can_be_written() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let app =
            app("in-process").set("plugins.versioned.config.hangs_in_start = 2").set("plugins.versioned.start_deadline = 2");
        let app = app.set("probe = false").start().await;
        app.place.write("state/verdicts", "no directory");
        put(&app.place, "versioned_2");
        let error = app.running.replace_plugins().await.expect_err("it would hang again");
        assert!(matches!(error, ReplaceError::Hangs(_)), "{error:?}");
        assert_says(
            &error.to_string(),
            &[
                "plugin versioned did not start within 2 s",
                "take its file away, or start with [plugins.versioned] isolation = \"process\"",
            ],
        );
        assert_eq!(app.versions().await, (json!(1), json!(1)));
        stopped(app, &[1]).await;
    });
    runtime.shutdown_background();
}

fn new_version_hangs_isolated() {
    on_threads(new_version_hangs("process", "isolated"));
}

fn hangs_after_others_came_up() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        for isolation in BOTH {
            let app = TestApp::with(&["scripted"]).set(format!("plugins.versioned.isolation = '{isolation}'"));
            let app = app.set("plugins.hangs-in-start.start_deadline = 2").set("plugins.scripted.config.record = false");
            // The settings name plugins that are not there yet: of this file nobody knows which one it is.
            app.place.write("plugins/libz.so", "not yet");
            let app = app.start().await;
            put(&app.place, "versioned_1");
            app.place.copy_as(library("hangs_in_start"), "libz.so");
            assert_eq!(app.replaced().await.changes.len(), 1);
            assert_eq!(app.versions().await, (json!(1), json!(1)));
            assert_eq!(stops(&app.place), [1], "it came up twice");
            stopped(app, &[1, 1]).await;
        }
    });
    runtime.shutdown_background();
}

/// It holds the dynamic linker, for which every new thread of the process waits, and others at their first use of some thread-locals,
/// so no worker can go on. Whether it still gives its tasks back, or they come back when its lease is over, is a matter of luck.
fn new_version_hangs_while_it_is_loaded() {
    let project = Project::sqlite(&["constructor_hangs_in_the_host"]);
    let library = project.place.plugins().join("libconstructor_hangs_in_the_host.so");
    let bytes = fs::read(&library).expect("our own file");
    // The settings name a plugin that is not there yet: of this file nobody knows which one it is.
    fs::write(&library, "not yet").expect("our own file");
    put(&project.place, "versioned_1");
    let hangs = "plugins.constructor-hangs-in-the-host.start_deadline = 0.5";
    let mut worker = project.start(&["drain_deadline = 0.2", "lease = 2", hangs]);
    let go_on = project.place.fifo("state/plugins/versioned/go_on");
    let uuid = project.add(&["wait"]);
    let held = fs::OpenOptions::new().write(true).open(&go_on).expect("the task reads");
    fs::write(&library, &bytes).expect("our own file");
    worker.signal(Signal::HUP);
    let said = worker.read_until("this worker finishes what runs");
    assert_says(&said, &["plugin constructor-hangs-in-the-host", "holds the dynamic linker", "restart it"]);
    let (status, said) = worker.end();
    assert_eq!(status.code(), Some(70), "{said}");
    drop(held);
    let entries = quarantine(&project.place);
    assert_eq!((entries.len(), &entries[0]["kind"]), (1, &json!("time-out")), "{entries:?}");
    let next = project.start(&["lease = 2"]);
    drop(fs::OpenOptions::new().write(true).open(&go_on).expect("the task reads, this time to its end"));
    assert_eq!(project.wait(&uuid)["returning"], 1);
    assert!(next.stop().0.success());
}

/// As if a plugin used a thread-local of its own for the first time.
fn the_linker_is_held_from_the_runtime() {
    let project = Project::sqlite(&["constructor_hangs_in_the_host", "opens_a_library"]);
    let library = project.place.plugins().join("libconstructor_hangs_in_the_host.so");
    let bytes = fs::read(&library).expect("our own file");
    fs::write(&library, "not yet").expect("our own file");
    let hangs = project.place.fifo("hangs");
    let settings = ["drain_deadline = 0.2", "lease = 2", "plugins.constructor-hangs-in-the-host.start_deadline = 5"];
    let command = settings.iter().fold(project.worker().env("TOKIO_WORKER_THREADS", "1"), |host, setting| host.set(setting));
    let worker = Worker::spawn(command);
    fs::write(&library, &bytes).expect("our own file");
    worker.signal(Signal::HUP);
    drop(fs::OpenOptions::new().write(true).open(&hangs).expect("the library is being loaded in the host"));
    let uuid = project.add(&["open"]);
    let (status, said) = worker.end();
    assert_eq!(status.code(), Some(70), "{said}");
    let entries = quarantine(&project.place);
    assert_eq!((entries.len(), &entries[0]["kind"]), (1, &json!("time-out")), "{entries:?}");
    let next = project.start(&["lease = 2"]);
    assert_eq!(project.wait(&uuid)["returning"], true);
    assert!(next.stop().0.success());
}

fn task_of_the_application() {
    on_threads(async {
        for isolation in BOTH {
            let own = |app: &mut qtasks_host::App| {
                app.inline_task("only_in_2", |_ctx, (): (), (): ()| Ok::<_, qtasks_host::TaskError>("own"));
            };
            let app = app(isolation).start_with(own).await;
            put(&app.place, "versioned_2");
            let reason = app.refused_now("task-taken").await;
            assert_says(&reason, &["it provides the task only_in_2, which the application", "give one of them another name"]);
            assert_eq!(returning(&app.run("only_in_2", json!([]), json!({})).await), r#""own""#);
            stopped(app, &[1]).await;
        }
    });
}

fn trigger_not_handled() {
    on_threads(async {
        let app = app("in-process").set("plugins.documented-example.triggers = ['storage_get']");
        // Of a file without a manifest nobody knows whether it is the plugin that is meant.
        fs::write(app.place.plugins().join("libdocumented_example.so"), "not yet").expect("our own directory");
        let app = app.start().await;
        app.place.copy("documented_example");
        let error = app.running.replace_plugins().await.expect_err("they do not go together");
        assert!(matches!(error, ReplaceError::Registry(_)), "{error:?}");
        assert_says(
            &error.to_string(),
            &["[plugins.documented-example] triggers names storage_get, which the plugin does not handle"],
        );
        assert_eq!(app.versions().await, (json!(1), json!(1)));
        stopped(app, &[1]).await;
    });
}

fn not_taken_over_and_hangs_in_its_stop() {
    // The thread that hangs is nobody's to end, and the runtime would wait for it.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let app = app("in-process").set("plugins.versioned.config.hangs_in_stop = 2");
        let app = app.set("plugins.documented-example.triggers = ['storage_get']");
        fs::write(app.place.plugins().join("libdocumented_example.so"), "not yet").expect("our own directory");
        let app = app.start().await;
        app.place.copy("documented_example");
        put(&app.place, "versioned_2");
        let error = app.running.replace_plugins().await.expect_err("they do not go together");
        assert!(matches!(error, ReplaceError::Registry(_)), "{error:?}");
        assert_eq!(app.versions().await, (json!(1), json!(1)));
        app.running.stop().await;
        let mut stopped = stops(&app.place);
        stopped.sort_unstable();
        assert_eq!(stopped, [1, 2]);
    });
    runtime.shutdown_background();
}

fn task_of_another_plugin() {
    on_threads(async {
        let app = TestApp::with(&["scripted"]).set("plugins.scripted.config.record = false");
        put(&app.place, "versioned_1");
        let app = app.start().await;
        fs::write(app.place.plugins().join("liba.so"), renamed("versioned_2")).expect("our own directory");
        assert_eq!(app.replaced().await.changes, []);
        let reports = app.running.plugin_reports();
        let of_it = |report: &&LoadReport| report.path.ends_with("liba.so");
        let reason = reports.iter().find(of_it).and_then(LoadReport::reason).expect("it was refused");
        assert_says(&reason, &["it provides the task which, as does the plugin versioned"]);
        // What it takes the place of has it no longer.
        fs::rename(app.place.plugins().join("liba.so"), app.place.plugins().join(FILE)).expect("our own directory");
        assert_eq!(app.replaced().await.changes.len(), 2, "one came, one went");
        assert_eq!(app.versions().await, (json!(2), json!(2)));
        app.replacer().drained().await;
        stopped(app, &[1]).await;
    });
}

fn directory_gone() {
    on_threads(async {
        let app = app("in-process").start().await;
        fs::rename(app.place.plugins(), app.place.path("elsewhere")).expect("our own directory");
        let error = app.running.replace_plugins().await.expect_err("there is none");
        assert!(matches!(error, ReplaceError::Discover(_)), "{error:?}");
        assert_eq!(app.versions().await, (json!(1), json!(1)));
        stopped(app, &[1]).await;
    });
}

/// A version that waits in a handler, with its call, and what lets it go.
pub(super) async fn waits_in_a_handler(app: TestApp) -> (Arc<Started>, tokio::task::JoinHandle<Value>, fs::File) {
    let app = Arc::new(app.set("plugins.versioned.deadline = 600").set("plugins.scripted.triggers = []").start().await);
    let go_on = GoOn::new(&app.place);
    let dispatcher = Arc::clone(app.running.executor().dispatcher());
    let call = tokio::spawn(async move {
        let mut dispatched = dispatcher.fire(Trigger::StorageGet, &json!({"storage": {}, "result": {}})).await;
        assert_eq!(dispatched.decisions.len(), 1);
        let decision = &dispatched.decisions[0];
        let (outcome, failure) = (decision.outcome, decision.failure.as_ref().map(|error| error.kind.clone()));
        match dispatched.take("result") {
            Some(result) => serde_json::from_str(result.get()).expect("JSON"),
            None => {
                assert_eq!(outcome, OutcomeKind::Failed);
                json!(failure)
            }
        }
    });
    let held = go_on.is_waited_for().await;
    (app, call, held)
}

async fn raises_at(app: &Started, version: u64) {
    assert_eq!(serde_json::from_str::<Value>(returning(&app.raise().await)).expect("JSON"), json!(version));
}

fn replaced_during_a_handler() {
    on_threads(async {
        for isolation in BOTH {
            let (app, call, held) = waits_in_a_handler(app(isolation)).await;
            put(&app.place, "versioned_2");
            app.replaced().await;
            raises_at(&app, 2).await;
            assert_eq!(stops(&app.place), Vec::<u64>::new());
            drop(held);
            assert_eq!(call.await.expect("an answer"), json!(1));
            app.replacer().drained().await;
            assert_eq!(stops(&app.place), [1]);
        }
    });
}

fn call_outlives_the_drain_here() {
    let project = Project::sqlite(&[]);
    put(&project.place, "versioned_1");
    let mut worker = project.start(&["drain_deadline = 0.2"]);
    let go_on = project.place.fifo("state/plugins/versioned/go_on");
    let uuid = project.add(&["wait"]);
    let held = fs::OpenOptions::new().write(true).open(go_on).expect("the task reads");
    put(&project.place, "versioned_2");
    worker.signal(Signal::HUP);
    worker.read_until("versioned 1.0.0 (");
    worker.read_until(") still runs calls after 0.2 s; it is stopped once they have ended");
    assert_eq!(stops(&project.place), Vec::<u64>::new());
    // Until this has run, it is looked several times whether the call has ended, which is not worth a line each.
    assert_eq!(project.wait(&project.add(&["which", "--delay", "1"]))["returning"], 2);
    drop(held);
    assert_eq!(project.wait(&uuid)["returning"], 1);
    worker.read_until(") was drained and stopped");
    assert_eq!(stops(&project.place), [1]);
    let (status, said) = worker.stop();
    assert!(status.success());
    assert_eq!(said.matches("still runs calls after").count(), 1, "{said}");
}

fn call_outlives_the_drain_isolated() {
    on_threads(async {
        let (app, call, held) = waits_in_a_handler(app("process").set("drain_deadline = 0.2")).await;
        put(&app.place, "versioned_2");
        app.replaced().await;
        app.replacer().drained().await;
        assert_eq!(call.await.expect("a failure"), json!("PluginCrashed"));
        raises_at(&app, 2).await;
        drop(held);
    });
}

async fn stop_hangs(isolation: &str) {
    let app = app(isolation).set("plugins.versioned.config.hangs_in_stop = 1").start().await;
    put(&app.place, "versioned_2");
    assert_eq!(app.replaced().await.changes.len(), 1);
    assert_eq!(app.versions().await, (json!(2), json!(2)));
    app.replacer().drained().await;
    assert_eq!(app.versions().await, (json!(2), json!(2)));
    stopped(app, &[1, 2]).await;
}

fn stop_hangs_here() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(stop_hangs("in-process"));
    runtime.shutdown_background();
}

fn stop_hangs_isolated() {
    on_threads(stop_hangs("process"));
}
