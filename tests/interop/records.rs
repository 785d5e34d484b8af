//! The bytes of the records: those that QTasks 1.7.3 writes, and what we add to them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Interop, NAME, QUEUE, key};
use crate::support::python::{Client, Flavour};

type Fields = BTreeMap<String, String>;

/// Fields that every record has.
const ALWAYS: [&str; 7] = ["task_name", "priority", "args", "kwargs", "created_at", "updated_at", "status"];
/// Fields that we add to records that ended. A Python client makes attributes of them, so each must be an identifier.
const OURS: [&str; 14] = [
    "resolved_by",
    "error_type",
    "error_message",
    "error_args",
    "error_kwargs",
    "error_causes",
    "error_location",
    "original_error_type",
    "original_error_message",
    "attempt",
    "attempts",
    "losses",
    "attempts_at",
    "dead_letter",
];

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    names.into_iter().collect()
}

/// Asserts that Python would have written the same bytes for the same values.
#[track_caller]
fn assert_as_python_writes(client: &mut Client, record: &Fields) {
    let again = client.ask(&json!({"ask": "as_python_writes", "hashes": [record]}));
    assert_eq!(again, json!([record]));
}

#[test]
fn a_new_record_of_a_native_producer_is_one_of_a_python_producer() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let mut client = interop.client(Flavour::Async);
    let native =
        project.add(&["add", "--args", r#"[ 1,"é😀\/\u00FC",1e5 ]"#, "--kwargs", "{\"b\":\t{\"ü\":[]}}", "--priority", "-4"]);
    let python =
        client.add(&[r#"{"task": "add", "args": [1, "é😀/ü", 2], "kwargs": {"b": {"ü": []}}, "priority": -4}"#]).remove(0);
    let (ours, theirs) = (interop.server.hash(&key(&native)), interop.server.hash(&key(&python)));
    assert_eq!(names(ours.keys().map(String::as_str)), names(ALWAYS));
    assert_eq!(theirs.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    for name in ["task_name", "priority", "kwargs", "status"] {
        assert_eq!(ours[name], theirs[name], "{name}");
    }
    assert_eq!(theirs["args"], r#"[1, "\u00e9\ud83d\ude00/\u00fc", 2]"#);
    // A number stays as it was written: Python would make 100000.0 of this one.
    assert_eq!(ours["args"], r#"[1, "\u00e9\ud83d\ude00/\u00fc", 1e5]"#);
    assert_eq!(ours["created_at"], ours["updated_at"]);
    let mut plain = ours.clone();
    plain.insert("args".to_owned(), theirs["args"].clone());
    assert_as_python_writes(&mut client, &plain);

    let queue: Vec<String> = interop.server.command(&["LRANGE", QUEUE, "0", "-1"]);
    assert_eq!(queue, [format!("add:{native}:-4"), format!("add:{python}:-4")]);
}

/// What became of the same tasks, by name and place in the chain of retries.
fn ended(interop: &Interop, client: &mut Client) -> BTreeMap<String, Fields> {
    let mut found = BTreeMap::new();
    let uuids = client.add(&[
        r#"{"task": "echo", "args": ["é"], "kwargs": {"b": 2}}"#,
        r#"{"task": "raise", "kwargs": {"message": "sea is frozen"}}"#,
        r#"{"task": "cancel_me"}"#,
        r#"{"task": "fails", "args": [1], "kwargs": {"y": 9}, "priority": 3}"#,
        r#"{"task": "no_such_task"}"#,
    ]);
    client.results(&uuids);
    for uuid in uuids {
        let (mut next, mut place) = (Some(uuid), 0);
        while let Some(uuid) = next {
            let record = interop.server.hash(&key(&uuid));
            next = record.get("retry_child_uuid").cloned();
            found.insert(format!("{} {place}", record["task_name"]), record);
            place += 1;
        }
    }
    found
}

#[test]
fn records_that_ended_have_the_fields_that_python_workers_write() {
    let (Some(ours), Some(theirs)) = (Interop::start(), Interop::start()) else { return };
    let project = ours.project(&["scripted"]);
    let native = project.start(&[r#"tasks.fails.command = ["sh", "-c", "exit 3"]"#, "tasks.fails.attempts = 3"]);
    let mut client = ours.client(Flavour::Async);
    let written = ended(&ours, &mut client);
    let their_project = theirs.project(&[]);
    let mut python = theirs.python_worker(&their_project);
    let as_python_does = ended(&theirs, &mut theirs.client(Flavour::Async));
    python.assert_runs();

    assert_eq!(written.keys().collect::<Vec<_>>(), as_python_does.keys().collect::<Vec<_>>());
    for (what, record) in &written {
        let theirs = &as_python_does[what];
        let found: BTreeSet<&str> = record.keys().map(String::as_str).filter(|name| !OURS.contains(name)).collect();
        assert_eq!(found, names(theirs.keys().map(String::as_str)), "{what}: {record:?}");
        for name in ["status", "retry", "cancel_reason"] {
            assert_eq!(record.get(name), theirs.get(name), "{what}: {name}");
        }
        assert_as_python_writes(&mut client, record);
    }
    // Not ASCII-escaped, as Python's is not.
    assert!(as_python_does["echo 0"]["returning"].contains('é') && written["echo 0"]["returning"].contains('é'));
    // Where Python loses what the task was given, we keep it.
    for place in 0..3 {
        let record = &written[&format!("fails {place}")];
        assert_eq!((&*record["args"], &*record["kwargs"], &*record["priority"]), ("[1]", r#"{"y": 9}"#, "3"), "{record:?}");
    }
    assert!(native.stop().0.success());
}

/// Whether a client's command stands between its MULTI and the WATCH that opens its next transaction.
fn in_transaction(lines: &[String], line: &String) -> bool {
    let client = |line: &str| line.split(']').next().and_then(|head| head.rsplit(' ').next().map(str::to_owned));
    let before = lines.iter().take_while(|other| *other != line).filter(|other| client(other) == client(line));
    let bound = |line: &&String| ["\"MULTI\"", "\"WATCH\""].iter().any(|bound| line.contains(bound));
    before.filter(bound).last().is_some_and(|bound| bound.contains("\"MULTI\""))
}

#[test]
fn a_task_is_taken_and_ended_in_one_step_each_and_nobody_polls() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let mut client = interop.client(Flavour::Async);
    let native = project.start(&[]);
    client.run(r#"{"task": "echo"}"#);
    let mut monitor = interop.server.monitor();
    let uuid = client.add(&[r#"{"task": "echo"}"#]).remove(0);
    client.results(&[&uuid]);
    interop.assert_nothing_left();
    let mark = "the end of this test";
    interop.server.command::<String>(&["ECHO", mark]);
    let lines = monitor.read_until(mark);
    // What a script does is told with the script's mark in the place of a client's address.
    let steps = |command: &str, part: &str| -> Vec<&String> {
        let command = format!("\"{command}\"");
        lines.iter().filter(|line| line.to_ascii_uppercase().contains(&command) && line.contains(part)).collect()
    };
    let process = format!("\"{NAME}:task_process\"");
    for (command, part) in [("ZADD", &*process), ("ZREM", &*process), ("HSET", "\"success\"")] {
        let found = steps(command, part);
        assert!(!found.is_empty(), "{command} {part} in {lines:#?}");
        assert!(found.iter().all(|line| line.contains(" lua] ") || in_transaction(&lines, line)), "{found:#?} in {lines:#?}");
    }
    assert!(steps("LPOP", QUEUE).len() <= 4, "{lines:#?}");
    assert!(native.stop().0.success());
}
