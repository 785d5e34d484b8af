//! The host as a program.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::Place;

/// One run of the binary `qtasks-host` in a directory of the test.
pub(crate) struct Host(Command);

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    /// The program alone. Nothing of the developer's own settings or state reaches it.
    pub(crate) fn new(place: &Place) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qtasks-host"));
        command.current_dir(place.root()).env("XDG_STATE_HOME", place.path("xdg")).env_remove("RUST_LOG");
        Self(command)
    }

    /// The program, started by this shell script with its path as `$0`.
    pub(crate) fn shell(place: &Place, script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_qtasks-host")]);
        command.current_dir(place.root()).env("XDG_STATE_HOME", place.path("xdg")).env_remove("RUST_LOG");
        Self(command)
    }

    /// `qtasks-host run` over the plugins and the state directory of the place.
    pub(crate) fn run(place: &Place) -> Self {
        Self::new(place).arg("run").arg("--plugins").arg(place.plugins()).arg("--state-dir").arg(place.state())
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.0.arg(argument);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.0.args(arguments);
        self
    }

    pub(crate) fn set(self, assignment: &str) -> Self {
        self.arg("--set").arg(assignment)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.0.current_dir(directory);
        self
    }

    /// Runs it to its end with this standard input.
    pub(crate) fn with_input(self, input: impl AsRef<[u8]>) -> Ended {
        let mut child = self.spawn();
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.as_ref().to_owned();
        let feeding = std::thread::spawn(move || {
            // A program that refuses its settings reads nothing.
            let _ = stdin.write_all(&input);
        });
        let ended = Ended::of(child);
        feeding.join().expect("the feeder only writes");
        ended
    }

    /// Runs it to its end without input.
    pub(crate) fn end(self) -> Ended {
        self.with_input("")
    }

    /// Starts it with pipes for all three streams.
    pub(crate) fn spawn(mut self) -> Child {
        self.0.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.0.spawn().expect("the program can be started")
    }
}

impl Ended {
    /// What a run comes to that was started before.
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().expect("the program ends");
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("results are text"),
            stderr: String::from_utf8(output.stderr).expect("log lines are text"),
        }
    }

    /// The results, one JSON object a line.
    pub(crate) fn results(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
    }

    /// The only result.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        let mut results = self.results();
        assert_eq!(results.len(), 1, "one result in {self:?}");
        results.remove(0)
    }

    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stderr: {}\nstdout: {}", self.stderr, self.stdout);
        self
    }
}

/// Reads a stream up to the first line that holds `part`; gives all lines read.
pub(crate) fn read_until(stream: &mut impl Read, part: &str) -> String {
    let mut text = String::new();
    let mut byte = [0];
    // Byte by byte, so that nothing behind the line is taken away from whoever reads on.
    while stream.read(&mut byte).expect("the stream can be read") == 1 {
        text.push(char::from(byte[0]));
        if byte[0] == b'\n' && text.lines().next_back().is_some_and(|line| line.contains(part)) {
            return text;
        }
    }
    panic!("the stream ended before {part:?} came: {text}")
}
