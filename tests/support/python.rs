//! QTasks as it was published: a Python with the package, as producers, clients and workers have it.
//!
//! `QTASKS_TEST_PYTHON` names an interpreter that has the package `qtasks`, `python3` without it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::artifacts::ROOT;
use super::skipped;

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// The version whose behaviour the tests are about.
const VERSION: &str = "1.7.3";

/// An interpreter with the package.
#[derive(Clone)]
pub(crate) struct Python(OsString);

/// The two that the package has of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flavour {
    Async,
    Sync,
}

impl Python {
    /// `None`, told and counted as a skip, where there is no Python with QTasks and what it needs for Redis.
    pub(crate) fn find() -> Option<Self> {
        static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
        let program = std::env::var_os("QTASKS_TEST_PYTHON").unwrap_or_else(|| "python3".into());
        let found = FOUND.get_or_init(|| {
            let script = "import qtasks.asyncio, redis, qtasks.version; print(qtasks.version.__version__)";
            let output = Command::new(&program).args(["-c", script]).output();
            let output = output.map_err(|error| format!("{program:?} cannot be run: {error}"))?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            match String::from_utf8_lossy(&output.stdout).trim() {
                VERSION => Ok(()),
                "" => Err(format!("{program:?} has no qtasks: {}", stderr.lines().next_back().unwrap_or_default())),
                other => Err(format!("{program:?} has qtasks {other}, not {VERSION}")),
            }
        });
        match found {
            Ok(()) => Some(Self(program)),
            Err(reason) => {
                skipped(&format!("{reason}; QTASKS_TEST_PYTHON names another interpreter"));
                None
            }
        }
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(Path::new(ROOT).join("tests/interop").join(name));
        // The package's own setting for how often a client looks at a task: once a second without it.
        command.env("QTASKS_RESULT_TIME_INTERVAL", "0.05").env("PYTHONUNBUFFERED", "1");
        command
    }

    /// A client of the project `name`.
    pub(crate) fn client(&self, flavour: Flavour, url: &str, name: &str) -> Client {
        let flavour = match flavour {
            Flavour::Async => "async",
            Flavour::Sync => "sync",
        };
        let mut command = self.script("client.py");
        command.args([flavour, url, name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it could be run a moment ago");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Client { child, stdin, answers: lines(stdout) }
    }

    /// A worker of the project `name`, which writes to files in `directory`.
    pub(crate) fn worker(&self, url: &str, name: &str, directory: &Path) -> PythonWorker {
        let mut command = self.script("worker.py");
        command.args([url, name]).current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it could be run a moment ago");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        PythonWorker { child, said: lines(stderr) }
    }
}

/// The lines of a stream, read on whether or not the test wants to know.
fn lines(stream: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || stream.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    lines
}

/// A Python process that adds tasks, waits for them, and does whatever else a client does.
pub(crate) struct Client {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Client {
    /// One question of `client.py`, as JSON text: numbers go through as they are written.
    #[track_caller]
    pub(crate) fn ask_text(&mut self, question: &str) -> Value {
        self.send(question);
        self.answer(question)
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, question: &Value) -> Value {
        self.ask_text(&question.to_string())
    }

    fn send(&mut self, question: &str) {
        writeln!(self.stdin, "{question}").expect("the client reads");
    }

    #[track_caller]
    fn answer(&mut self, question: &str) -> Value {
        let line = match self.answers.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("{question:.200}: {error}"),
        };
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        match answer.get_mut("answer") {
            Some(answer) => answer.take(),
            None => panic!("{question:.200}: {}", answer["raised"].as_str().unwrap_or_default()),
        }
    }

    /// Adds tasks, each a JSON object with `task`, and `args`, `kwargs` and `priority` as wanted; gives their uuids.
    #[track_caller]
    pub(crate) fn add(&mut self, tasks: &[&str]) -> Vec<String> {
        let question = format!(r#"{{"ask": "add", "tasks": [{}]}}"#, tasks.join(", "));
        serde_json::from_value(self.ask_text(&question)).expect("uuids")
    }

    /// Waits for tasks, all at once; gives each as the client sees it.
    #[track_caller]
    pub(crate) fn results(&mut self, uuids: &[impl AsRef<str>]) -> Vec<Value> {
        let uuids: Vec<&str> = uuids.iter().map(AsRef::as_ref).collect();
        match self.ask(&json!({"ask": "results", "uuids": uuids})) {
            Value::Array(tasks) => tasks,
            other => panic!("{other}"),
        }
    }

    /// Adds one task and waits for it.
    #[track_caller]
    pub(crate) fn run(&mut self, task: &str) -> Value {
        let uuids = self.add(&[task]);
        self.results(&uuids).remove(0)
    }

    #[track_caller]
    pub(crate) fn ping(&mut self) -> bool {
        self.ask(&json!({"ask": "ping"})) == true
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python worker that runs; killed with the test.
pub(crate) struct PythonWorker {
    child: Child,
    said: Receiver<String>,
}

impl PythonWorker {
    /// Asserts that it still runs, and shows what it said where it does not: one message that it cannot read ends it.
    #[track_caller]
    pub(crate) fn assert_runs(&mut self) {
        if let Some(status) = self.child.try_wait().expect("our own child") {
            panic!("the Python worker ended with {status}:\n{}", self.said.iter().map(|line| line + "\n").collect::<String>());
        }
    }
}

impl Drop for PythonWorker {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
