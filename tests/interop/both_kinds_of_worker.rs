//! Native and Python workers on one queue.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::{Interop, PATIENCE, PROCESS, QUEUE, assert_has, opened_for};
use crate::support::python::Flavour;

/// Tasks of the first part, in which the native worker is held up.
const HELD: usize = 30;
/// Tasks of the second, in which whoever is faster takes them.
const FREE: u64 = 300;

#[test]
fn both_kinds_of_worker_share_a_queue_and_each_task_runs_once() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["counts_runs"]);
    let go_on = project.place.fifo("go_on");
    let runs = toml::Value::from(project.place.path("runs").to_str().expect("a plain path"));
    // The task's arguments come on its standard input: one line, noted before it waits.
    let held = r#"tasks.echo.command = ["sh", "-c", "cat >> held; read line < go_on; echo 0"]"#;
    let native = project.start(&[held, "concurrency = 1", "prefetch = 1", &format!("plugins.counts-runs.config.file = {runs}")]);
    let mut client = interop.client(Flavour::Async);

    let tasks: Vec<String> = (0..HELD).map(|number| format!(r#"{{"task": "echo", "args": [{number}]}}"#)).collect();
    let first = client.add(&tasks.iter().map(String::as_str).collect::<Vec<_>>());
    // Opening the FIFO for writing waits until the native worker has a task.
    let mut writer = opened_for("the command", &go_on);
    let mut python = interop.python_worker(&project);
    interop.server.wait_for(&["LLEN", QUEUE], 0);
    writer.write_all("go\n".repeat(HELD).as_bytes()).expect("a pipe has room for that");
    let results = client.results(&first);
    assert!(results.iter().all(|task| task["status"] == "success"), "{results:?}");
    // Our task gives 0, theirs gives back its arguments.
    let by_native = results.iter().filter(|task| task["returning"] == 0).count();
    let held = std::fs::read_to_string(project.place.path("held")).expect("the command wrote");
    assert_eq!(held.lines().count(), by_native, "each ran once");
    assert!((1..HELD).contains(&by_native), "both had some: {by_native} of {HELD}");

    let tasks: Vec<String> = (0..FREE).map(|number| format!(r#"{{"task": "count", "args": [{number}]}}"#)).collect();
    let mut second = client.add(&tasks.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, task) in (0..FREE).zip(client.results(&second)) {
        assert_has(&task, &json!({"status": "success", "returning": number}));
    }
    let runs = std::fs::read_to_string(project.place.path("runs")).expect("both wrote");
    let mut ran: Vec<&str> = runs.lines().collect();
    ran.sort_unstable();
    second.sort_unstable();
    assert_eq!(ran, second);

    python.assert_runs();
    interop.assert_nothing_left();
    assert!(native.stop().0.success());
}

#[test]
fn what_a_killed_python_worker_had_is_taken_over_where_the_operator_says_so() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let mut client = interop.client(Flavour::Async);
    // All of them, since a Python worker takes what it can get, and runs ten.
    let uuids = client.add(&[r#"{"task": "hangs"}"#; HELD]);
    let python = interop.python_worker(&project);
    interop.server.wait_for(&["ZCARD", PROCESS], HELD);
    drop(python);
    let native = project.start(&[r#"tasks.hangs.command = ["echo", "5"]"#, "recover_foreign_after = 0.1", "lease = 0.3"]);
    for task in client.results(&uuids) {
        assert_has(&task, &json!({"status": "success", "returning": 5}));
    }
    interop.assert_nothing_left();
    assert!(native.stop().0.success());
}

#[test]
fn a_task_that_comes_as_a_native_worker_is_killed_is_there_for_the_next() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let mut client = interop.client(Flavour::Async);
    let native = project.start(&[]);
    client.run(r#"{"task": "echo"}"#);
    // Stopped while it waits at the server for a task.
    let waits = || interop.server.command::<String>(&["CLIENT", "LIST"]).lines().any(|line| line.contains(" flags=b "));
    let begun = Instant::now();
    loop {
        native.signal(Signal::STOP);
        if waits() {
            break;
        }
        native.signal(Signal::CONT);
        assert!(begun.elapsed() < PATIENCE, "it waits for tasks");
        std::thread::sleep(Duration::from_millis(5));
    }
    let uuid = client.add(&[r#"{"task": "echo", "args": [1]}"#]).remove(0);
    native.signal(Signal::KILL);
    drop(native);
    // It never left the queue, so the next worker may be of either kind.
    let mut next = interop.python_worker(&project);
    assert_has(&client.results(&[uuid])[0], &json!({"status": "success", "returning": {"args": [1], "kwargs": {}}}));
    interop.assert_nothing_left();
    next.assert_runs();
}

#[test]
fn qtasks_own_administration_is_undisturbed_and_disturbs_nothing() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let go_on = project.place.fifo("go_on");
    let native = project.start(&[r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo 7"]"#]);
    let mut client = interop.client(Flavour::Async);
    let mut uuids = client.add(&[r#"{"task": "waits"}"#, r#"{"task": "echo"}"#, r#"{"task": "raise"}"#]);
    uuids.push(project.add(&["echo", "--delay", "3600"]));
    client.results(&uuids[1..3]);
    // A task that runs, one of each end and one that is delayed: whatever we keep beside them, it is there now.
    let writer = opened_for("the command", &go_on);
    uuids.sort_unstable();
    assert_eq!(client.ask(&json!({"ask": "get_all"})), json!(uuids));
    for key in interop.server.keys() {
        assert!(key.starts_with("QueueTasks:") || key.starts_with("qtasks-host:"), "{key}");
    }

    client.ask(&json!({"ask": "flush_all"}));
    let theirs: Vec<String> = interop.server.keys().into_iter().filter(|key| key.starts_with("QueueTasks:")).collect();
    // The worker may have said once more that it is there.
    assert!(theirs.iter().all(|key| key.starts_with("QueueTasks:GlobalConfig:")), "{theirs:?}");
    drop(writer);
    // The worker does not mind: what it had is nobody's any more, and it takes what comes.
    assert_has(&client.run(r#"{"task": "echo", "args": [1]}"#), &json!({"status": "success"}));
    assert!(native.stop().0.success());

    // And ours removes theirs.
    client.add(&[r#"{"task": "echo"}"#]);
    project.json(&["flush-all", "--yes"], 0);
    assert_eq!(client.ask(&json!({"ask": "get_all"})), json!([]));
    assert_eq!(interop.server.keys(), Vec::<String>::new());
}
