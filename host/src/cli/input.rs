//! Reads tasks as JSON Lines, one bounded line at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use qtasks_host::broker::BrokerErrorKind;
use qtasks_host::shown;
use qtasks_host::task::TaskModelError;
use qtasks_host::{QueueTasks, Task};
use tokio::runtime::Handle;

/// Longest input line: 16 MiB.
const MAX_LINE: u64 = 16 << 20;

/// What came of the input.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) refused: u64,
    /// Why it could not be read to its end.
    pub(crate) broken: Option<anyhow::Error>,
}

/// Where tasks come from.
pub(crate) struct Input {
    name: String,
    reader: Box<dyn BufRead + Send>,
    /// The line that was read last, from 1.
    number: u64,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { name: "standard input".to_owned(), reader: Box::new(BufReader::new(io::stdin())), number: 0 });
        }
        let name = shown(path).to_string();
        let file = File::open(path).with_context(|| format!("cannot open the tasks in {name}"))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            anyhow::bail!("cannot read tasks from {name}: it is a directory; expected a file with one task as JSON a line");
        }
        Ok(Self { name, reader: Box::new(BufReader::new(file)), number: 0 })
    }

    /// Adds every task; a line that is none is told to stderr, with its number and the reason. Blocks the thread.
    pub(crate) fn feed(mut self, queue: &QueueTasks, runtime: &Handle) -> Lines {
        let mut lines = Lines::default();
        loop {
            let reason = match self.next_task() {
                Ok(None) => break,
                Err(broken) => {
                    lines.broken = Some(broken);
                    break;
                }
                Ok(Some(Err(reason))) => reason,
                Ok(Some(Ok(task))) => match runtime.block_on(queue.add_tasks([task])) {
                    Ok(_) => continue,
                    // The run ends: nobody takes tasks any more.
                    Err(error) if error.kind == BrokerErrorKind::Closed => break,
                    Err(error) => self.at(self.number, error.kind),
                },
            };
            lines.refused += 1;
            tracing::error!("{reason}");
        }
        lines
    }

    /// The next task, or why the line that should be one is none; `None` at the end. Blank lines are skipped.
    pub(crate) fn next_task(&mut self) -> anyhow::Result<Option<Result<Task, String>>> {
        let mut line = Vec::new();
        loop {
            line.clear();
            self.number += 1;
            let read = self.reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
            if read.with_context(|| format!("cannot read on from {} at line {}", self.name, self.number))? == 0 {
                return Ok(None);
            }
            let parsed = if line.len() as u64 > MAX_LINE {
                self.skip_line()?;
                Err(format!("longer than {MAX_LINE} bytes"))
            } else {
                parse(&line)
            };
            match parsed {
                Ok(None) => {}
                Ok(Some(task)) => return Ok(Some(Ok(task))),
                Err(reason) => return Ok(Some(Err(self.at(self.number, reason)))),
            }
        }
    }

    /// The number of the line that was read last.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// A reason with the place of the line of this number.
    pub(crate) fn at(&self, number: u64, reason: impl std::fmt::Display) -> String {
        format!("{}:{number}: {reason}", self.name)
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (used, ended) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(position) => (position + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(used);
            if ended {
                return Ok(());
            }
        }
    }
}

/// The task on a line; `None` for a blank one.
fn parse(line: &[u8]) -> Result<Option<Task>, String> {
    let text = std::str::from_utf8(line).map_err(|error| format!("not UTF-8: {error}"))?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(None);
    }
    Task::from_json(text).map(Some).map_err(|error: TaskModelError| error.to_string())
}
