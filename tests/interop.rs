//! The real thing: QTasks' Python producers, clients and workers as they were published, and ours, over one Redis server.
//!
//! Needs `redis-server` and a Python with QTasks; see `support::redis` and `support::python`.

mod both_kinds_of_worker;
mod native_producers;
mod poison;
mod python_producers;
mod records;
mod restarts;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::Place;
use crate::support::python::{Client, Flavour, Python, PythonWorker};
use crate::support::redis::RedisServer;
use crate::support::worker::Project;

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// QTasks' own default.
const NAME: &str = "QueueTasks";
/// Where tasks wait.
const QUEUE: &str = "QueueTasks:task_queue";
/// What workers have.
const PROCESS: &str = "QueueTasks:task_process";

/// A task that gives back its arguments to the letter, as one JSON object.
const MIRROR: &str = r#"tasks.mirror.command = ["cat"]"#;

/// A server, and a Python with QTasks.
struct Interop {
    server: RedisServer,
    python: Python,
}

impl Interop {
    /// `None` where the test cannot run.
    fn start() -> Option<Self> {
        let python = Python::find()?;
        Some(Self { server: RedisServer::start()?, python })
    }

    /// A project of native workers and clients, with copies of these libraries.
    fn project(&self, plugins: &[&str]) -> Project {
        Project::at(Place::new(), self.server.url(), plugins)
    }

    fn client(&self, flavour: Flavour) -> Client {
        self.python.client(flavour, &self.server.url(), NAME)
    }

    /// A Python worker, which writes to files in the directory of the project.
    fn python_worker(&self, project: &Project) -> PythonWorker {
        self.python.worker(&project.url, NAME, project.place.root())
    }

    /// Nothing waits and nobody has anything.
    #[track_caller]
    fn assert_nothing_left(&self) {
        // A Python worker takes its task out of the set after its client can see the result.
        self.server.wait_for(&["ZRANGE", PROCESS, "0", "-1"], Vec::<String>::new());
        assert_eq!(self.server.command::<Vec<String>>(&["LRANGE", QUEUE, "0", "-1"]), Vec::<String>::new());
    }
}

/// Opens a FIFO for writing once a command reads it: only then is there somebody to let go on. A plain open would wait for ever for
/// a worker that has ended.
#[track_caller]
fn opened_for(reader: &str, fifo: &Path) -> File {
    let begun = Instant::now();
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(fifo) {
            Ok(file) => return file,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{reader} does not run: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The key of a task's record.
fn key(uuid: &str) -> String {
    format!("{NAME}:{uuid}")
}

/// A field that is a text.
#[track_caller]
fn text<'a>(task: &'a Value, name: &str) -> &'a str {
    task[name].as_str().unwrap_or_else(|| panic!("{name} is a text: {task}"))
}

/// Asserts that a JSON object has these values, whatever else it has.
#[track_caller]
fn assert_has(found: &Value, wanted: &Value) {
    for (name, value) in wanted.as_object().expect("an object") {
        assert_eq!(&found[name], value, "{name}: {found}");
    }
}

#[test]
fn python_with_python_does_what_these_tests_measure_against() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let mut worker = interop.python_worker(&project);
    for flavour in [Flavour::Async, Flavour::Sync] {
        let mut client = interop.client(flavour);
        let uuids = client.add(&[
            r#"{"task": "echo", "args": [1000000000000000000000000000000, "\u00e9"], "kwargs": {"a": [1.0]}}"#,
            r#"{"task": "raise", "kwargs": {"message": "lost", "code": 7}}"#,
            r#"{"task": "cancel_me"}"#,
            r#"{"task": "fails", "priority": 3}"#,
        ]);
        let results = client.results(&uuids);
        assert_eq!(
            text(&results[0], "returning_text"),
            r#"{"args": [1000000000000000000000000000000, "\u00e9"], "kwargs": {"a": [1.0]}}"#
        );
        assert_has(&results[1], &json!({"status": "error", "retry": null}));
        assert!(!text(&results[1], "traceback").contains("lost"), "1.7.3 loses the payload, which ours does not");
        assert_has(&results[2], &json!({"status": "cancel", "cancel_reason": "no longer wanted"}));
        assert_has(&results[3], &json!({"status": "error", "retry": 0, "priority": 0}));
        assert_ne!(results[3]["uuid"], json!(uuids[3]), "a client follows the retries");
        assert!(client.ping());
    }
    worker.assert_runs();
    interop.assert_nothing_left();
}
