//! Command tasks: a program that the operator declared, run as a child process.
//!
//! `{"args": […], "kwargs": {…}}` goes to its standard input, its standard output is the JSON result, and a non-zero exit is a
//! plugin error that carries the exit status and the end of its standard error. Nothing of a task's input chooses a program or
//! becomes a word of the command line, and no shell is involved.

use std::process::Stdio;
use std::time::Duration;

use qtasks_plugin_api::{TaskError, TaskPluginTriggerError, bounds};
use rustix::process::Pid;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::guard::{self, Group};
use super::model::{Returned, Task};
use crate::shown::shown;

/// Largest result of a command: 16 MiB.
const MAX_OUTPUT: usize = 16 << 20;
/// How much of the end of standard error is kept: 4 KiB.
const KEPT_STDERR: usize = 4 << 10;
/// How long a command's streams are read on once it has ended and somebody else still holds them.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// `type` of a command that could not be run or whose output is no result.
pub const COMMAND_ERROR: &str = "CommandError";

/// Why a declared command is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No words.
    #[error("`command` is empty; expected the program and its arguments: command = [\"wc\", \"-w\"]")]
    Empty,
}

/// A declared command.
#[derive(Debug, Clone)]
pub(super) struct CommandTask {
    program: String,
    arguments: Vec<String>,
}

impl CommandTask {
    pub(super) fn new(words: &[String]) -> Result<Self, CommandError> {
        match words {
            [program, arguments @ ..] if !program.is_empty() => {
                Ok(Self { program: program.clone(), arguments: arguments.to_vec() })
            }
            _ => Err(CommandError::Empty),
        }
    }

    /// One run. Dropping the future kills the process and everything in its group.
    pub(super) async fn run(&self, task: &Task) -> Returned {
        guard::ready();
        let spawned = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it starts ends with it.
            .process_group(0)
            .spawn();
        let mut child = spawned.map_err(|error| self.error(format!("cannot be started{}: {error}", self.looked_from())))?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = leader.map(Group::led_by);
        let input = format!("{{\"args\": {}, \"kwargs\": {}}}\n", task.args, task.kwargs);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input closes the pipe, which is its good right.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let (mut output, mut complaint) = (Vec::new(), Vec::new());
        let streams = async { tokio::join!(feed, head(stdout, &mut output), tail(stderr, &mut complaint)) };
        let ended = async {
            let status = child.wait().await;
            // What it leaves behind would hold its pipes open, and outlive its task.
            drop(group);
            status
        };
        let status = {
            tokio::pin!(streams, ended);
            tokio::select! {
                status = &mut ended => {
                    // A daemon has left the group and may hold the pipes for ever. What the command itself printed is there by now.
                    let _ = tokio::time::timeout(LAST_WORDS, streams).await;
                    status
                }
                _ = &mut streams => ended.await,
            }
        };
        let status = status.map_err(|error| self.error(format!("cannot be waited for: {error}")))?;
        if !status.success() {
            let complaint = String::from_utf8_lossy(&complaint).into_owned();
            return Err(TaskPluginTriggerError::with_kwargs(json!({
                "message": format!("{} ended with {status}", self.program),
                "command": self.program,
                "exit_status": status.code(),
                "stderr": complaint,
            }))
            .into());
        }
        if output.len() > MAX_OUTPUT {
            return Err(self.error(format!("printed more than {MAX_OUTPUT} bytes")));
        }
        let text = String::from_utf8(output).map_err(|error| self.error(format!("printed text that is not UTF-8: {error}")))?;
        bounds::check_json(&text).map_err(|error| {
            let excerpt: String = text.chars().take(80).collect();
            self.error(format!("printed {excerpt:?}, expected one JSON value: {error}"))
        })?;
        RawValue::from_string(text.trim().to_owned()).map_err(|error| self.error(error.to_string()))
    }

    /// A path that is relative is meant from where this process works.
    fn looked_from(&self) -> String {
        let is_relative = self.program.contains('/') && !self.program.starts_with('/');
        let here = std::env::current_dir().ok().filter(|_| is_relative);
        here.map(|here| format!(" from {}", shown(&here))).unwrap_or_default()
    }

    fn error(&self, message: String) -> TaskError {
        TaskError::other(COMMAND_ERROR, format!("{}: {message}", self.program))
    }
}

/// Keeps everything that a stream gives, up to one byte more than is taken. Reads on to the end, so that the program does not block.
async fn head(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    // A broken pipe ends the output where it broke; what was printed so far must then be JSON, or is refused.
    let _ = (&mut stream).take(MAX_OUTPUT as u64 + 1).read_to_end(kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// Keeps the end of what a stream gives.
async fn tail(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0; KEPT_STDERR];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..read]);
        if kept.len() > KEPT_STDERR {
            kept.drain(..kept.len() - KEPT_STDERR);
        }
    }
}
