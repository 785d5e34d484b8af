//! A host that is stopped, dropped or killed at a bad moment.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use super::replacements::{BOTH, on_threads, waits_in_a_handler};
use super::{Held, RAISE, answered, good_ones, quarantine, run};
use crate::support::app::Started;
use crate::support::versioned::{app, put, stops};
use crate::support::worker::{Project, Worker};
use crate::support::{Host, Place};

faults! {
    stopped_during_a_call: "the application is stopped while a call runs on another thread" => "the call ends with its answer";
    stopped_while_one_is_drained: "the application is stopped while a version that made room is still called" => "here the call ends with its answer, in a process of its own it fails as `PluginCrashed`; neither is waited for";
    dropped_during_a_call: "the application is dropped while a call runs on another thread" => "the call ends with its answer";
    sigterm_while_it_probes: "a worker gets SIGTERM while it probes at its start" => "it ends once the probe has; nothing is in quarantine";
    sigterm_while_run_probes: "`run` gets SIGTERM while it probes at its start" => "it ends once the probe has, or at a second signal; no library is quarantined for it";
    sigterm_while_it_replaces: "a worker gets SIGTERM while it probes a new version" => "it ends once the probe has; nothing is in quarantine";
    stopped_at_once_while_it_replaces: "a worker gets a second signal while it probes a new version" => "it ends at once; no library is quarantined for it";
    killed_beside_a_plugins_own_process: "the host is killed beside a plugin's own process, which has started another one, or hangs" => "all of them end with the host";
    killed_while_it_writes_verdicts: "the host is killed while it writes verdicts" => "each is whole, or not there; what was being probed is quarantined as `unfinished`";
}

fn stopped_during_a_call() {
    on_threads(async {
        let (app, call, held) = waits_in_a_handler(app("in-process")).await;
        let app = Arc::into_inner(app).expect("only this test has it");
        app.running.stop().await;
        drop(held);
        assert_eq!(call.await.expect("an answer"), json!(1));
    });
}

fn stopped_while_one_is_drained() {
    on_threads(async {
        for (isolation, ended) in BOTH.into_iter().zip([json!(1), json!("PluginCrashed")]) {
            let (app, call, held) = waits_in_a_handler(app(isolation)).await;
            put(&app.place, "versioned_2");
            app.replaced().await;
            let app = Arc::into_inner(app).expect("only this test has it");
            // The drain deadline is far away, and the call waits for what is let go only now.
            app.running.stop().await;
            drop(held);
            assert_eq!(call.await.expect("an end"), ended);
        }
    });
}

fn dropped_during_a_call() {
    on_threads(async {
        for isolation in BOTH {
            let (app, call, held) = waits_in_a_handler(app(isolation)).await;
            let Started { place, running, .. } = Arc::into_inner(app).expect("only this test has it");
            drop(running);
            drop(held);
            assert_eq!(call.await.expect("an answer"), json!(1));
            drop(place);
        }
    });
}

/// A worker whose start probes a library that sleeps for ever, and sees a second later that it does.
fn worker_that_probes(project: &Project) -> Worker {
    let home = project.place.root().to_owned();
    Worker::begin(project.worker().env("HOME", home).args(["--probe-deadline", "2"]))
}

fn sigterm_while_it_probes() {
    let project = Project::sqlite(&["constructor_sleeps_for_ever", "documented_example"]);
    let held = Held::new(&project.place);
    let mut worker = worker_that_probes(&project);
    held.wait_until_taken();
    worker.signal(Signal::TERM);
    worker.read_until("SIGTERM: stopping once it has started; another signal stops at once");
    let (status, said) = worker.end();
    assert!(status.success(), "{status}: {said}");
    // It did hang; the good one, which came after it, was not cut off.
    let kinds: Vec<_> = quarantine(&project.place).iter().map(|entry| entry["kind"].clone()).collect();
    assert_eq!(kinds, ["time-out"]);
    assert!(held.is_let_go_within(0), "the guest is gone");
}

fn sigterm_while_run_probes() {
    for second in [None, Some(Signal::INT)] {
        let place = Place::new();
        for plugin in ["constructor_sleeps_for_ever", "documented_example"] {
            place.copy(plugin);
        }
        let held = Held::new(&place);
        let tasks = place.write("tasks.jsonl", RAISE);
        let command = run(&place).env("HOME", place.root()).args(["--probe-deadline", "2"]).arg(tasks);
        let mut running = Worker::begin(command);
        held.wait_until_taken();
        running.signal(Signal::TERM);
        running.read_until("SIGTERM: stopping once it has started; another signal stops at once");
        second.inspect(|signal| running.signal(*signal));
        assert_eq!(running.end().0.code(), Some(130));
        let kinds: Vec<_> = quarantine(&place).iter().map(|entry| entry["kind"].clone()).collect();
        // It did hang, where anybody waited for it.
        assert_eq!(kinds, if second.is_some() { Vec::new() } else { vec![json!("time-out")] });
        assert!(held.is_let_go_within(60), "the guest is gone");
    }
}

/// A worker that looks at its directory again, and probes a library that never ends to be loaded; a new version comes after it.
fn replacing() -> (Project, Held, Worker) {
    let project = Project::sqlite(&[]);
    put(&project.place, "versioned_1");
    let held = Held::new(&project.place);
    let mut worker = worker_that_probes(&project);
    worker.read_until("; tasks: ");
    project.place.copy("constructor_sleeps_for_ever");
    put(&project.place, "versioned_2");
    worker.signal(Signal::HUP);
    held.wait_until_taken();
    (project, held, worker)
}

fn sigterm_while_it_replaces() {
    let (project, held, worker) = replacing();
    let (status, said) = worker.stop();
    assert!(status.success(), "{status}: {said}");
    let kinds: Vec<_> = quarantine(&project.place).iter().map(|entry| entry["kind"].clone()).collect();
    assert_eq!(kinds, ["time-out"]);
    assert!(held.is_let_go_within(0), "the guest is gone");
    // What came up in the end was stopped as well.
    let mut stopped = stops(&project.place);
    stopped.sort_unstable();
    assert_eq!(stopped, [1, 2]);
}

fn stopped_at_once_while_it_replaces() {
    let (project, held, mut worker) = replacing();
    worker.signal(Signal::TERM);
    worker.read_until("SIGTERM: finishing what runs");
    worker.signal(Signal::INT);
    assert_eq!(worker.end().0.code(), Some(130));
    assert!(quarantine(&project.place).is_empty());
    assert!(held.is_let_go_within(60), "the guest is gone");
}

fn killed_beside_a_plugins_own_process() {
    for plugin in ["constructor_leaves_a_child", "constructor_sleeps_for_ever"] {
        let place = Place::new();
        place.copy(plugin);
        let held = Held::new(&place);
        let set = ["isolation=process", "processes=true", "start_deadline=600"]
            .map(|set| format!("plugins.{}.{set}", plugin.replace('_', "-")));
        let mut host = set.iter().fold(run(&place).set("probe=false"), |host, set| host.set(set)).spawn();
        held.wait_until_taken();
        host.kill().expect("our own child");
        host.wait().expect("our own child");
        assert!(held.is_let_go_within(60), "it is gone");
    }
}

fn killed_while_it_writes_verdicts() {
    for moment in 0..8 {
        let place = Place::new();
        place.copy("documented_example");
        place.copy("scripted");
        let mut child = run(&place).spawn();
        // The moment is after so many looks that found a verdict: any moment will do.
        let verdicts = place.state().join("verdicts");
        let mut looks = 0;
        while looks < moment * 40 && child.try_wait().expect("our own child").is_none() {
            looks += usize::from(fs::read_dir(&verdicts).is_ok_and(|mut files| files.next().is_some()));
            std::thread::sleep(Duration::from_micros(100));
        }
        kill_process(rustix::process::Pid::from_child(&child), Signal::KILL).expect("our own child");
        child.wait().expect("it ends");
        for file in fs::read_dir(&verdicts).into_iter().flatten() {
            let path = file.expect("readable").path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let whole = serde_json::from_slice::<Value>(&fs::read(&path).expect("readable"));
                assert!(whole.is_ok(), "{}: {whole:?}", path.display());
            }
        }
        let unfinished = quarantine(&place);
        assert!(unfinished.iter().all(|entry| entry["kind"] == "unfinished"), "{unfinished:?}");
        let clear = Host::new(&place).args(["plugin", "quarantine", "clear", "--all", "--state-dir"]).arg(place.state());
        clear.end().expect_code(0);
        answered(run(&place).with_input(RAISE));
    }
    // A rename that never came leaves this.
    let place = good_ones();
    fs::write(place.state().join("verdicts/.0.0.tmp"), "{\"host\": ").expect("our own directory");
    assert!(quarantine(&place).is_empty());
    answered(run(&place).with_input(RAISE));
}
