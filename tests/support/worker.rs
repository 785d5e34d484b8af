//! `qtasks-host worker` and its clients as programs, over a broker of the test's own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::host::Ended;
use super::{Host, Place};

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A project of one test.
pub(crate) struct Project {
    pub(crate) place: Place,
    pub(crate) url: String,
}

impl Project {
    /// A project in a file, with copies of these libraries.
    pub(crate) fn sqlite(plugins: &[&str]) -> Self {
        let place = Place::new();
        let url = format!("sqlite:{}", place.path("tasks.db").display());
        Self::at(place, url, plugins)
    }

    /// A project at `url`, with copies of these libraries.
    pub(crate) fn at(place: Place, url: String, plugins: &[&str]) -> Self {
        for plugin in plugins {
            place.copy(plugin);
        }
        Self { place, url }
    }

    /// A client's command over the broker: `&["task", "add", "echo"]`.
    pub(crate) fn client(&self, words: &[&str]) -> Host {
        Host::new(&self.place).args(words).args(["--broker", &self.url])
    }

    /// Runs a client's command with `--json`, expects this exit code, and gives what it printed.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str], code: i32) -> Value {
        let ended = self.client(words).arg("--json").end().expect_code(code);
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    }

    /// Adds a task; gives its uuid.
    #[track_caller]
    pub(crate) fn add(&self, words: &[&str]) -> String {
        let ended = self.client(&[&["task", "add"], words].concat()).end().expect_code(0);
        ended.stdout.trim_end().to_owned()
    }

    /// The record of a task once it has ended.
    #[track_caller]
    pub(crate) fn wait(&self, uuid: &str) -> Value {
        let ended = self.client(&["task", "get", uuid, "--wait", "--timeout", "60", "--json"]).end();
        assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    }

    /// The status of a task now.
    #[track_caller]
    pub(crate) fn status(&self, uuid: &str) -> String {
        self.json(&["task", "get", uuid], 0)["status"].as_str().expect("a status").to_owned()
    }

    /// A worker's command, before it is started.
    pub(crate) fn worker(&self) -> Host {
        self.worker_over(&self.place.plugins())
    }

    /// A worker's command over another plugin directory.
    pub(crate) fn worker_over(&self, plugins: &Path) -> Host {
        let host = Host::new(&self.place).args(["worker", "--broker", &self.url]);
        host.arg("--plugins").arg(plugins).arg("--state-dir").arg(self.place.state())
    }

    /// Starts a worker with these settings, and waits until it is at work.
    pub(crate) fn start(&self, settings: &[&str]) -> Worker {
        Worker::spawn(settings.iter().fold(self.worker(), |host, setting| host.set(setting)))
    }
}

/// A worker that runs, or a client that waits; killed with the test.
pub(crate) struct Worker {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Worker {
    /// Starts it, and waits until it is at work.
    pub(crate) fn spawn(command: Host) -> Self {
        let mut worker = Self::begin(command);
        worker.read_until("; tasks: ");
        worker
    }

    /// Starts it.
    pub(crate) fn begin(command: Host) -> Self {
        let mut child = command.spawn();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (sender, lines) = channel();
        // Read on whether or not the test wants to know, so that the worker never waits for room.
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { child, lines, said: String::new() }
    }

    /// Reads its log up to the first line that holds `part`; gives that line.
    #[track_caller]
    pub(crate) fn read_until(&mut self, part: &str) -> String {
        loop {
            let line = match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(error) => panic!("waiting for {part:?}: {error}; the worker said:\n{}", self.said),
            };
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(part) {
                return line;
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child");
    }

    /// Waits for its end; gives how it ended, and all it said.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("it ends");
        self.said.extend(self.lines.iter().map(|line| line + "\n"));
        (status, std::mem::take(&mut self.said))
    }

    /// SIGTERM, and what came of it.
    pub(crate) fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.end()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets a command that reads this FIFO go on.
pub(crate) fn let_go(fifo: &Path) {
    let mut fifo = std::fs::OpenOptions::new().write(true).open(fifo).expect("the command reads");
    fifo.write_all(b"go\n").expect("the command reads");
}

impl Ended {
    /// What was printed, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
