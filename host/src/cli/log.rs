//! Log lines on stderr, which they share with the progress bar.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use qtasks_host::on_one_line;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use super::exit_code::UsageError;

/// A bar on a terminal, nothing anywhere else.
pub(crate) fn progress_bar(wanted: bool) -> ProgressBar {
    if !wanted || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {pos} tasks, {per_sec}, {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

/// Sends log lines to stderr, with the bar out of their way.
///
/// # Errors
///
/// When `filter` is no filter.
pub(crate) fn install(filter: &str, bar: &ProgressBar) -> anyhow::Result<()> {
    check_words(filter)?;
    let filter = EnvFilter::try_new(filter).with_context(|| {
        UsageError(format!(
            "setting `log` is {filter:?}; expected error, warn, info, debug, trace, or a filter such as warn,plugin=debug"
        ))
    })?;
    let bar = bar.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .fmt_fields(debug_fn(write_field).delimited(" "))
        .with_writer(move || BesideBar(bar.clone()))
        .init();
    Ok(())
}

/// An event is one line, whatever a plugin or a task put into it: it must not look like another one, and no terminal must obey it.
fn write_field(line: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(line, "{field}=")?;
    }
    line.write_str(&on_one_line(&format!("{value:?}")))
}

/// A word alone is a level. To `EnvFilter` any other word would be a target that nobody has, and nothing would be logged any more.
fn check_words(filter: &str) -> anyhow::Result<()> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_word = |part: &&str| !part.is_empty() && !part.contains(['=', '[']);
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    let Some(word) = filter.split(',').map(str::trim).filter(is_word).find(|part| !is_level(part)) else { return Ok(()) };
    let levels = LEVELS.join(", ");
    let wrong =
        format!("setting `log` is {filter:?}: {word:?} is no level; expected {levels}, or a target with its level: {word}=debug");
    Err(UsageError(wrong).into())
}

struct BesideBar(ProgressBar);

impl Write for BesideBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A log that nobody reads any more, or a full disk, is no reason to stop anything: an error here would be a panic of whoever
        // logs.
        let _ = self.0.suspend(|| io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
