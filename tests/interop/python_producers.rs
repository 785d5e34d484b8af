//! Unmodified Python producers, served by a native worker.

use serde_json::{Value, json};

use super::{Interop, MIRROR, assert_has, key, text};
use crate::support::assert_says;
use crate::support::python::{Client, Flavour};

/// JSON as Python writes it: all that a reader might round, reorder or cut.
const ODD_ARGS: &str = r#"[0, -1, 1000000000000000000000000000000, 1.5, 1e-07, 1.0, 0.1, "\u00e9\u6f22\ud83d\ude00 \n\"\\ \u0000", null, true, [[], {}, [[["deep"]]]]]"#;
const ODD_KWARGS: &str = r#"{"z": {"\u00fc": [{"y": -1000000000000000000000000000000}]}, "a": "", "\u00e9": false}"#;

#[test]
fn an_async_producer_is_served() {
    a_producer_is_served(Flavour::Async);
}

#[test]
fn a_sync_producer_is_served() {
    a_producer_is_served(Flavour::Sync);
}

fn a_producer_is_served(flavour: Flavour) {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let mut client = interop.client(flavour);
    assert!(!client.ping(), "no worker is there yet");
    let worker = project.start(&[MIRROR]);
    let uuids = client.add(&[
        &format!(r#"{{"task": "mirror", "args": {ODD_ARGS}, "kwargs": {ODD_KWARGS}, "priority": 7}}"#),
        r#"{"task": "mirror"}"#,
        r#"{"task": "raise", "kwargs": {"message": "sea is frozen", "code": 7, "big": 1000000000000000000000000000000}}"#,
        r#"{"task": "raise_text", "args": ["\u00fcber"]}"#,
        r#"{"task": "cancel_me"}"#,
        r#"{"task": "no_such_task", "args": [1]}"#,
        r#"{"task": "async_add", "args": [1, 2]}"#,
    ]);
    let results = client.results(&uuids);
    let [odd, plain, raised, raised_text, cancelled, unknown, added] = &*results else { panic!("{results:?}") };

    assert_has(odd, &json!({"status": "success", "uuid": uuids[0], "priority": 7, "task_name": "mirror", "traceback": null}));
    // The text that Python makes of what it read: whatever it read otherwise than it was sent would show.
    assert_eq!((text(odd, "args_text"), text(odd, "kwargs_text")), (ODD_ARGS, ODD_KWARGS));
    assert_eq!(text(odd, "returning_text"), format!(r#"{{"args": {ODD_ARGS}, "kwargs": {ODD_KWARGS}}}"#));
    assert!(odd["updated_at"].as_f64() >= odd["created_at"].as_f64(), "{odd}");
    assert_has(plain, &json!({"status": "success", "returning": {"args": [], "kwargs": {}}}));
    assert_has(added, &json!({"status": "success", "returning": 3}));

    assert_has(raised, &json!({"status": "error", "returning": null, "retry": null, "error_message": "sea is frozen"}));
    assert_has(raised, &json!({"error_type": "TaskPluginTriggerError"}));
    assert_says(text(raised, "traceback"), &["TaskPluginTriggerError", "sea is frozen"]);
    // What QTasks loses: the payload, which a Python client can read as JSON text.
    assert_says(text(raised, "error_kwargs"), &["1000000000000000000000000000000"]);
    let payload: Value = serde_json::from_str(text(raised, "error_kwargs")).expect("JSON");
    assert_has(&payload, &json!({"message": "sea is frozen", "code": 7}));
    assert_says(text(raised_text, "traceback"), &["TaskPluginTriggerError", "über"]);

    assert_has(cancelled, &json!({"status": "cancel", "cancel_reason": "no longer wanted"}));
    assert_has(unknown, &json!({"status": "error", "retry": null, "args": [1]}));
    assert_says(text(unknown, "traceback"), &["no_such_task"]);

    // The worker goes on after all that.
    assert_eq!(client.run(r#"{"task": "async_add", "args": [40, 2]}"#)["returning"], 42);
    assert!(client.ping());
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn what_a_plugin_answered_is_the_result_and_python_can_read_who_it_was() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted", "documented_example"]);
    let mut client = interop.client(Flavour::Async);
    let worker = project.start(&[]);
    let uuids = client.add(&[r#"{"task": "raise", "kwargs": {"message": "sea is frozen"}}"#, r#"{"task": "echo"}"#]);
    let results = client.results(&uuids);
    assert_has(&results[0], &json!({"status": "success", "returning": 123, "traceback": null}));
    let who = json!({
        "resolved_by": "documented-example 0.1.0 result", "original_error_type": "TaskPluginTriggerError",
        "original_error_message": "sea is frozen",
    });
    assert_has(&results[0], &who);
    assert_has(&results[0]["types"], &json!({"resolved_by": "str", "original_error_type": "str"}));
    // What nobody had to resolve says so by saying nothing.
    assert!(results[1].get("resolved_by").is_none(), "{}", results[1]);
    assert!(worker.stop().0.success());
}

/// The tasks of a chain of retries, from the first.
fn chain(client: &mut Client, first: &str) -> Vec<Value> {
    let mut tasks: Vec<Value> = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(uuid) = next {
        let task = client.ask(&json!({"ask": "get", "uuids": [uuid]}))[0].take();
        next = task["retry_child_uuid"].as_str().map(str::to_owned);
        tasks.push(task);
    }
    tasks
}

#[test]
fn retries_are_children_with_ids_of_their_own_as_qtasks_writes_them() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let mut client = interop.client(Flavour::Async);
    let worker = project.start(&[
        r#"tasks.fails.command = ["sh", "-c", "echo no luck >&2; exit 3"]"#,
        "tasks.fails.attempts = 3",
        r#"tasks.flaky.command = ["sh", "-c", "echo x >> tries; n=$(wc -l < tries); [ $n -ge 2 ] && echo $n"]"#,
        "tasks.flaky.attempts = 3",
    ]);
    let uuids = client.add(&[
        r#"{"task": "fails", "args": ["a"], "kwargs": {"y": 9}, "priority": 3}"#,
        r#"{"task": "flaky", "args": [1000000000000000000000000000000]}"#,
    ]);
    let results = client.results(&uuids);

    let tasks = chain(&mut client, &uuids[0]);
    let [first, second, third] = &*tasks else { panic!("three attempts: {tasks:?}") };
    assert_eq!(results[0]["uuid"], third["uuid"], "a client follows the children");
    assert_has(first, &json!({"status": "retry", "retry": 2, "retry_child_uuid": second["uuid"], "retry_parent_uuid": null}));
    assert_has(
        second,
        &json!({"status": "retry", "retry": 1, "retry_child_uuid": third["uuid"], "retry_parent_uuid": first["uuid"]}),
    );
    assert_has(third, &json!({"status": "error", "retry": 0, "retry_child_uuid": null, "retry_parent_uuid": second["uuid"]}));
    for task in &tasks {
        // Unlike in QTasks, what failed can be run again from its record.
        assert_has(task, &json!({"task_name": "fails", "priority": 3, "args": ["a"], "kwargs": {"y": 9}}));
        assert_says(text(task, "traceback"), &["TaskPluginTriggerError", "ended with"]);
    }

    let tasks = chain(&mut client, &uuids[1]);
    let [first, second] = &*tasks else { panic!("two attempts: {tasks:?}") };
    assert_eq!(results[1]["uuid"], second["uuid"]);
    assert_has(first, &json!({"status": "retry", "retry": 2, "retry_child_uuid": second["uuid"]}));
    assert_has(second, &json!({"status": "success", "returning": 2, "retry": 1, "retry_parent_uuid": first["uuid"]}));
    assert_eq!(text(second, "args_text"), "[1000000000000000000000000000000]");

    // Our own clients follow them as well.
    let last = project.wait(&uuids[0]);
    assert_has(
        &last,
        &json!({"uuid": results[0]["uuid"], "status": "error", "retry_parent_uuid": results[0]["retry_parent_uuid"]}),
    );
    for uuid in &uuids {
        assert_eq!(interop.server.hash(&key(uuid))["retry"], "2");
    }
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}
