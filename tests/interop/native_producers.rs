//! Native producers and clients, with unmodified Python workers.

use std::time::Duration;

use qtasks_host::broker::{BrokerSettings, Store, open};
use qtasks_host::plugin::Registry;
use qtasks_host::queue_tasks::{QueueTasks, Waited};
use qtasks_host::trigger::Dispatcher;
use qtasks_host::{Task, broker::TaskStatus};
use serde_json::json;

use super::{Interop, assert_has, text};
use crate::support::assert_says;
use crate::support::python::Flavour;

/// As a person would write it; what arrives is what Python would have written.
const ARGS: &str = r#"[1,1000000000000000000000000000000,1.5,"é漢😀",[[],{}]]"#;
const KWARGS: &str = r#"{"ü":{"deep":[null,true]}}"#;
const RETURNED: &str =
    r#"{"args": [1, 1000000000000000000000000000000, 1.5, "é漢😀", [[], {}]], "kwargs": {"ü": {"deep": [null, true]}}}"#;

#[test]
fn a_python_worker_runs_what_the_command_line_adds() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    assert_eq!(project.json(&["ping"], 6)["running"], false);
    let echo = project.add(&["echo", "--args", ARGS, "--kwargs", KWARGS, "--priority", "5"]);
    let raise = project.add(&["raise", "--kwargs", r#"{"message": "sea is frozen"}"#]);
    let cancel = project.add(&["cancel_me"]);
    let fails = project.add(&["fails", "--args", r#"["é"]"#]);
    let unknown = project.add(&["no_such_task"]);
    let mut worker = interop.python_worker(&project);

    let shown = project.client(&["task", "get", &echo, "--wait", "--timeout", "60", "--json"]).end().expect_code(0);
    // As text, since a value would round the big number.
    let returning = shown.stdout.split_once("\"returning\":").map(|(_, rest)| rest.trim_start()).expect("a result");
    assert!(returning.starts_with(RETURNED), "{}", shown.stdout);
    assert_has(&shown.json(), &json!({"uuid": echo, "task_name": "echo", "status": "success", "priority": 0}));
    let raised = project.wait(&raise);
    assert_has(&raised, &json!({"status": "error", "task_name": "raise"}));
    assert_says(text(&raised, "traceback"), &["TaskPluginTriggerError"]);
    assert_has(&project.wait(&cancel), &json!({"status": "cancel", "cancel_reason": "no longer wanted"}));
    let last = project.wait(&fails);
    assert_has(&last, &json!({"status": "error", "retry": 0, "task_name": "fails"}));
    assert_ne!(last["uuid"], json!(fails), "the last of its retries");
    assert_says(text(&last, "traceback"), &["ValueError: no luck"]);
    assert_says(text(&project.wait(&unknown), "traceback"), &["KeyError: 'no_such_task'"]);

    assert_eq!(project.json(&["ping"], 0)["running"], true, "a Python worker is a worker");
    let counts = project.json(&["stats", "inspect", "counts"], 0);
    assert_has(&counts, &json!({"new": 0, "process": 0, "success": 1, "error": 3, "cancel": 1, "retry": 2}));
    let app = project.json(&["stats", "inspect", "app"], 0);
    assert_has(&app["broker"], &json!({"url": project.url}));
    let list = project.client(&["task", "list", "--json", "--status", "cancel"]).end().expect_code(0).results();
    assert_eq!(list.iter().map(|record| text(record, "uuid")).collect::<Vec<_>>(), [cancel]);
    worker.assert_runs();
    interop.assert_nothing_left();
}

#[tokio::test]
async fn a_python_worker_runs_what_a_rust_program_adds() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let settings = BrokerSettings::new(project.url.parse().expect("a broker"));
    let backend = open(&settings).await.expect("the server is there");
    let nobody = Dispatcher::new(Registry::default(), &Default::default());
    let queue = QueueTasks::new(Store::new(backend, nobody.into(), settings.name).into());
    let mut worker = interop.python_worker(&project);
    let line = format!(r#"{{"task": "echo", "args": {ARGS}, "kwargs": {KWARGS}, "priority": -3}}"#);
    let added = queue.add_task(Task::from_json(&line).expect("a task")).await.expect("room");
    let Ok(Waited::Ended(record)) = queue.wait(added.task.uuid, Duration::from_secs(60)).await else { panic!("it ends") };
    assert_eq!((record.status, record.task.uuid), (TaskStatus::Success, added.task.uuid));
    assert_eq!(record.returning.as_ref().map(|json| json.get()), Some(RETURNED));
    assert!(queue.ping().await.expect("an answer"));
    worker.assert_runs();
}

#[test]
fn a_python_client_reads_what_native_clients_added_and_cancelled() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let mut client = interop.client(Flavour::Sync);
    let waits = project.add(&["echo", "--args", ARGS, "--kwargs", KWARGS]);
    let cancelled = project.add(&["echo"]);
    assert_eq!(project.json(&["task", "cancel", &cancelled, "--reason", "no längér wanted"], 0)["cancel"], "done");
    let found = client.ask(&json!({"ask": "get", "uuids": [waits, cancelled]}));
    assert_has(&found[0], &json!({"status": "new", "returning": null, "priority": 0, "task_name": "echo"}));
    assert_eq!(
        text(&found[0], "args_text"),
        r#"[1, 1000000000000000000000000000000, 1.5, "\u00e9\u6f22\ud83d\ude00", [[], {}]]"#
    );
    assert_has(&found[1], &json!({"status": "cancel", "cancel_reason": "no längér wanted"}));
    assert!(!client.ping());
    // What waits is what a Python worker is given.
    let mut worker = interop.python_worker(&project);
    assert_eq!(client.results(&[&waits])[0]["status"], "success");
    worker.assert_runs();
    assert!(client.ping());
    interop.assert_nothing_left();
    // It was cancelled before anybody had it.
    assert_eq!(project.status(&cancelled), "cancel");
}
