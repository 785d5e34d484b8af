//! A Redis server of a test's own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue, ToRedisArgs};
use rustix::process::{Pid, Signal, kill_process};

use super::skipped;

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Another process may take a port between our look at it and the server's.
const TRIES: usize = 5;

/// A server on a port and in a directory of its own; stopped with the test.
pub(crate) struct RedisServer {
    directory: tempfile::TempDir,
    port: u16,
    durable: bool,
    child: Child,
}

impl RedisServer {
    /// A server that forgets; `None`, told and counted as a skip, where there is no `redis-server`.
    pub(crate) fn start() -> Option<Self> {
        Self::start_as(false)
    }

    /// A server that knows after a restart what it answered before.
    pub(crate) fn durable() -> Option<Self> {
        Self::start_as(true)
    }

    fn start_as(durable: bool) -> Option<Self> {
        if let Err(error) = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status() {
            skipped(&format!("redis-server cannot be run: {error}"));
            return None;
        }
        for _ in 0..TRIES {
            let port = free_port();
            let directory = tempfile::tempdir().expect("a temporary directory");
            let child = spawn(&directory, port, durable);
            let mut server = Self { directory, port, durable, child };
            if server.is_up() {
                return Some(server);
            }
        }
        panic!("redis-server did not stay on any of {TRIES} free ports");
    }

    /// Waits until it answers; `false` when it ended instead.
    fn is_up(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.child.try_wait().expect("our own child").is_some() {
                return false;
            }
            // While it reads its file it answers, with an error.
            let info = self.connection().and_then(|mut connection| redis::cmd("INFO").query::<String>(&mut connection));
            let pong = self.connection().and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            if let (Ok(info), Ok(_)) = (info, pong) {
                // Whoever else answers on the port is not ours.
                let ours = format!("process_id:{}", self.child.id());
                if info.lines().any(|line| line.trim_end() == ours) {
                    return true;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("redis-server does not answer on port {}", self.port);
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn connection(&self) -> redis::RedisResult<Connection> {
        redis::Client::open(self.url())?.get_connection()
    }

    /// The answer to a command.
    #[track_caller]
    pub(crate) fn command<T: FromRedisValue>(&self, words: &[impl ToRedisArgs]) -> T {
        let mut connection = self.connection().expect("the server runs");
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query(&mut connection).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The fields of a hash.
    #[track_caller]
    pub(crate) fn hash(&self, key: &str) -> BTreeMap<String, String> {
        self.command(&["HGETALL", key])
    }

    /// Every key.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.command(&["KEYS", "*"])
    }

    /// Waits until the answer to a command is this.
    #[track_caller]
    pub(crate) fn wait_for<T: FromRedisValue + PartialEq + std::fmt::Debug>(&self, words: &[&str], wanted: T) {
        let begun = Instant::now();
        loop {
            let answer: T = self.command(words);
            if answer == wanted {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{words:?} gives {answer:?}, not {wanted:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Listens to every command that the server is given from now on.
    pub(crate) fn monitor(&self) -> Monitor {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("the server runs");
        stream.write_all(b"MONITOR\r\n").expect("the server reads");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out that is not zero");
        let mut monitor = Monitor(BufReader::new(stream));
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    /// SIGSTOP: it answers nobody, and who connects finds it there.
    pub(crate) fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT, after a [`Self::hang`].
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("it ends");
    }

    /// Starts it again after a [`Self::kill`], where it was.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.directory, self.port, self.durable);
        assert!(self.is_up(), "redis-server cannot come back to port {}", self.port);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port on which nobody listens now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn spawn(directory: &tempfile::TempDir, port: u16, durable: bool) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
        // Not `everysec`: a server that waits for its disk then answers before it has written, and a kill takes that away.
        .args(["--appendonly", if durable { "yes" } else { "no" }, "--appendfsync", "always"])
        .arg("--dir")
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it could be run a moment ago")
}

/// What a server is told, as it tells it.
pub(crate) struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the server goes on");
        line.trim_end().to_owned()
    }

    /// All lines up to the first that holds `part`.
    pub(crate) fn read_until(&mut self, part: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            lines.push(self.line());
            if lines.last().is_some_and(|line| line.contains(part)) {
                return lines;
            }
        }
    }
}
