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
    let filter =
        EnvFilter::try_new(filter).with_context(|| UsageError(format!("setting `log` is {filter:?}, which is no filter")))?;
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
