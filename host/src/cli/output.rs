//! What commands print: results on stdout, for people or as JSON.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use anyhow::Context;
use qtasks_host::on_one_line;
use serde::Serialize;

/// What results are written to, where that is not the process' own standard output.
static APART: OnceLock<File> = OnceLock::new();

/// From now on what plugins print in this process goes to stderr: on stdout are results and nothing else. Called before one is loaded.
pub(crate) fn keep_results_apart() {
    let apart = || {
        let results = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        Ok::<_, rustix::io::Errno>(File::from(results))
    };
    // A system that refuses another descriptor leaves it as it is.
    if let Ok(results) = apart() {
        let _ = APART.set(results);
    }
}

/// Where results go.
pub(crate) fn results() -> Box<dyn Write> {
    match APART.get() {
        Some(apart) => Box::new(apart),
        None => Box::new(io::stdout()),
    }
}

/// Whether results go to a terminal.
pub(crate) fn results_are_on_a_terminal() -> bool {
    APART.get().map_or_else(|| io::stdout().is_terminal(), IsTerminal::is_terminal)
}

/// Prints a value as JSON, over several lines.
pub(crate) fn print_json(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("the report has no JSON form")?;
    print(&format!("{text}\n"))
}

/// Prints values as JSON Lines.
pub(crate) fn print_json_lines<T: Serialize>(values: &[T]) -> anyhow::Result<()> {
    let mut text = String::new();
    for value in values {
        // JSON that passes through keeps its own line ends, which stand only between members: one value is one line.
        let line = serde_json::to_string(value).context("a record has no JSON form")?;
        text.push_str(&line.replace(['\n', '\r'], " "));
        text.push('\n');
    }
    print(&text)
}

/// A closed pipe is not an error: whoever reads has seen enough.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match results().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// Says something on stderr. Where that takes nothing, nobody is left to be told, and what is under way goes on: `eprintln!` would
/// panic.
pub(crate) fn tell(text: impl Display) {
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}

/// A table: each column as wide as its widest cell, two spaces between. A row is one line, and no terminal obeys it, whatever a task,
/// a plugin or a broker put into it.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| on_one_line(cell))).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
