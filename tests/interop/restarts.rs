//! A server that goes away.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Interop, PATIENCE, PROCESS, QUEUE, assert_has, key, opened_for};
use crate::support::python::{Flavour, Python};
use crate::support::redis::{RedisServer, free_port};
use crate::support::worker::Project;
use crate::support::{Host, Place, assert_says};

/// Tasks that wait while the server is killed.
const TASKS: usize = 400;

/// A server that knows after a restart what it answered before.
fn durable() -> Option<Interop> {
    let python = Python::find()?;
    Some(Interop { server: RedisServer::durable()?, python })
}

fn counting(project: &Project) -> String {
    let runs = toml::Value::from(project.place.path("runs").to_str().expect("a plain path"));
    format!("plugins.counts-runs.config.file = {runs}")
}

#[test]
fn a_task_that_ends_while_the_server_is_away_keeps_its_result() {
    let Some(mut interop) = durable() else { return };
    let project = interop.project(&["counts_runs"]);
    let go_on = project.place.fifo("go_on");
    let mut client = interop.client(Flavour::Async);
    let runs = client.add(&[r#"{"task": "waits"}"#]).remove(0);
    let worker = project.start(&[
        r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo x >> ended; echo 7"]"#,
        "concurrency = 1",
        &counting(&project),
    ]);
    // Opening the FIFO for writing waits until the task runs.
    let mut writer = opened_for("the command", &go_on);
    let waits = client.add(&[r#"{"task": "count", "args": [1]}"#]).remove(0);
    drop(client);
    interop.server.kill();
    writer.write_all(b"go\n").expect("the command reads");
    // It ends now, with nobody there to be told.
    while !project.place.path("ended").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    interop.server.restart();
    let results = interop.client(Flavour::Async).results(&[&runs, &waits]);
    assert_has(&results[0], &json!({"status": "success", "returning": 7, "uuid": runs}));
    assert_has(&results[1], &json!({"status": "success", "returning": 1}));
    let ended = std::fs::read_to_string(project.place.path("ended")).expect("the command wrote");
    assert_eq!(ended.lines().count(), 1, "it ran once");
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn a_server_that_is_away_for_ten_leases_takes_no_task_from_a_living_worker() {
    let Some(interop) = durable() else { return };
    for_ten_leases(interop, |server| server.kill(), RedisServer::restart);
}

#[test]
fn a_server_that_is_full_for_ten_leases_takes_no_task_from_a_living_worker() {
    let Some(interop) = durable() else { return };
    // It can still be read, so that each worker sees the other's beat stand still.
    let room = |bytes| move |server: &mut RedisServer| server.command::<()>(&["CONFIG", "SET", "maxmemory", bytes]);
    for_ten_leases(interop, room("1"), room("0"));
}

/// Two workers, one with a task, while nobody can write; the task has to run once.
fn for_ten_leases(mut interop: Interop, breaks: impl FnOnce(&mut RedisServer), mends: impl FnOnce(&mut RedisServer)) {
    let project = interop.project(&[]);
    let go_on = project.place.fifo("go_on");
    let settings = [
        r#"tasks.waits.command = ["sh", "-c", "echo x >> started; read line < go_on; echo 7"]"#,
        "concurrency = 1",
        "lease = 1.0",
    ];
    let workers = [project.start(&settings), project.start(&settings)];
    let mut client = interop.client(Flavour::Async);
    let uuid = client.add(&[r#"{"task": "waits"}"#]).remove(0);
    let mut writer = opened_for("the command", &go_on);
    drop(client);
    breaks(&mut interop.server);
    // Not a synchronisation: the time in which no worker can show that it lives.
    std::thread::sleep(Duration::from_secs(10));
    mends(&mut interop.server);
    // Both beat again; one that thought the other dead would take its task over now.
    let beats = || interop.server.command::<Vec<i64>>(&["HVALS", "qtasks-host:QueueTasks:workers"]);
    let (first, begun) = (beats(), Instant::now());
    while beats().len() < 2 || beats().iter().zip(&first).any(|(now, first)| now - first < 18) {
        assert!(begun.elapsed() < PATIENCE, "the workers beat: {first:?}, {:?}", beats());
        std::thread::sleep(Duration::from_millis(20));
    }
    writer.write_all(b"go\n").expect("the command reads");
    let result = interop.client(Flavour::Async).results(&[&uuid]).remove(0);
    assert_has(&result, &json!({"status": "success", "returning": 7, "uuid": uuid}));
    let started = std::fs::read_to_string(project.place.path("started")).expect("the command wrote");
    assert_eq!(started.lines().count(), 1, "it ran once");
    interop.assert_nothing_left();
    for worker in workers {
        assert!(worker.stop().0.success());
    }
}

/// Asserts that these tasks have an end soon, and shows where things stand otherwise.
#[track_caller]
fn assert_all_end(interop: &Interop, uuids: &[String]) {
    let begun = Instant::now();
    let status = |uuid: &String| -> String { interop.server.command(&["HGET", &key(uuid), "status"]) };
    for uuid in uuids {
        while !matches!(&*status(uuid), "success" | "error" | "cancel") {
            let stands = || -> Vec<String> {
                let keys = interop.server.keys().into_iter().filter(|key| !key.starts_with("QueueTasks:"));
                let text = |key: String| match &*interop.server.command::<String>(&["TYPE", &key]) {
                    "hash" => format!("{key}: {:?}", interop.server.hash(&key)),
                    "list" => format!("{key}: {:?}", interop.server.command::<Vec<String>>(&["LRANGE", &key, "0", "-1"])),
                    kind => format!("{key}: a {kind}"),
                };
                keys.chain([QUEUE.to_owned()]).map(text).collect()
            };
            assert!(begun.elapsed() < PATIENCE, "{:?} in {:#?}", interop.server.hash(&key(uuid)), stands());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn restarts_under_load_lose_no_task_and_run_none_twice() {
    let Some(mut interop) = durable() else { return };
    let project = interop.project(&["counts_runs"]);
    let tasks: Vec<String> = (0..TASKS).map(|number| format!(r#"{{"task": "count", "args": [{number}]}}"#)).collect();
    let uuids = interop.client(Flavour::Async).add(&tasks.iter().map(String::as_str).collect::<Vec<_>>());
    let worker = project.start(&[&counting(&project), "concurrency = 2"]);
    // A worker that finds no server at its start ends, so the first kill comes after its first task.
    assert_all_end(&interop, &uuids[..1]);
    for millis in [5, 20, 60] {
        // Not a synchronisation: the point of the kill is meant to be any.
        std::thread::sleep(Duration::from_millis(millis));
        interop.server.kill();
        interop.server.restart();
    }
    assert_all_end(&interop, &uuids);
    let results = interop.client(Flavour::Async).results(&uuids);
    for (number, task) in results.iter().enumerate() {
        assert_has(task, &json!({"status": "success", "returning": number}));
    }
    let runs = std::fs::read_to_string(project.place.path("runs")).expect("the plugin wrote");
    assert_eq!(runs.lines().count(), TASKS, "each ran once: its worker lived on");
    assert_eq!(runs.lines().collect::<BTreeSet<_>>(), uuids.iter().map(String::as_str).collect());
    interop.assert_nothing_left();
    // It may have tried to say so while the server was away.
    interop.server.wait_for(&["HGET", "QueueTasks:GlobalConfig:main", "status"], Some("running".to_owned()));
    assert_eq!(project.json(&["ping"], 0)["running"], true);
    assert!(worker.stop().0.success());
}

#[test]
fn a_worker_comes_back_to_a_server_that_forgot_everything() {
    let Some(mut interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let worker = project.start(&[]);
    assert_eq!(interop.client(Flavour::Async).run(r#"{"task": "echo"}"#)["status"], "success");
    interop.server.kill();
    interop.server.restart();
    let mut client = interop.client(Flavour::Async);
    assert_eq!(client.run(r#"{"task": "echo"}"#)["status"], "success");
    // QTasks' own worker renews a key that is gone, in vain.
    interop.server.wait_for(&["HGET", "QueueTasks:GlobalConfig:main", "status"], Some("running".to_owned()));
    assert!(client.ping());
    assert_eq!(interop.server.command::<u64>(&["LLEN", QUEUE]) + interop.server.command::<u64>(&["ZCARD", PROCESS]), 0);
    assert!(worker.stop().0.success());
}

#[test]
fn a_server_that_is_not_there_is_told_with_its_address_and_without_its_password() {
    let place = Place::new();
    let address = format!("127.0.0.1:{}/0", free_port());
    let url = format!("redis://me:geheim@{address}");
    for words in [&["worker"] as &[&str], &["ping"], &["task", "add", "echo"], &["stats", "inspect", "counts"]] {
        let ended = Host::new(&place).args(words).args(["--broker", &url]).end().expect_code(70);
        assert_says(&ended.stderr, &[&address, "cannot be reached"]);
        assert!(!ended.stderr.contains("geheim"), "{}", ended.stderr);
    }
}

#[test]
fn a_full_server_is_told_and_the_results_wait_for_room() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let go_on = project.place.fifo("go_on");
    let mut worker = project.start(&[r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo 7"]"#]);
    let mut client = interop.client(Flavour::Async);
    let uuid = client.add(&[r#"{"task": "waits"}"#]).remove(0);
    let mut writer = opened_for("the command", &go_on);
    interop.server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    writer.write_all(b"go\n").expect("the command reads");
    assert_says(&worker.read_until("cannot be recorded"), &["is full; make room", "trying again"]);
    assert_eq!(interop.server.command::<u64>(&["HLEN", "qtasks-host:QueueTasks:leases"]), 1, "it is the worker's still");
    interop.server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_has(&client.results(&[uuid])[0], &json!({"status": "success", "returning": 7}));
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}
