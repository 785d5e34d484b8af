//! What it takes to start a plugin's process, again and again on the same bytes.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use super::guest::Start;
use super::output::{LineLimit, log_line};
use super::sandbox::SandboxLevel;
use super::spawn::{Guest, GuestError, Killer, nonce};
use crate::plugin::bytes::SealedLibrary;
use crate::plugin::services::TracingServices;
use crate::plugin::verdicts::{Subject, Verdicts};

/// What it takes to start the process.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) library: SealedLibrary,
    pub(crate) start: Start,
    pub(crate) deadline: Duration,
    /// Where it is noted that the plugin fails again and again.
    pub(crate) verdicts: Verdicts,
    pub(crate) subject: Subject,
}

impl Recipe {
    /// The plugin's name.
    pub(super) fn plugin(&self) -> &str {
        &self.start.init.plugin
    }

    /// Starts the process and waits until the plugin runs in it: up to twice the deadline. What kills the process that is coming up is
    /// given to `coming`.
    pub(super) fn start(&self, coming: impl FnOnce(Killer)) -> Result<(Guest, SandboxLevel), GuestError> {
        let start = Start { nonce: nonce(), ..self.start.clone() };
        let mut guest = Guest::spawn(&self.program, &start)?;
        coming(guest.killer());
        guest.hand_over(self.library.file().as_fd(), &start, self.deadline)?;
        let (services, mut limit) = (TracingServices::new(self.plugin().into()), LineLimit::default());
        let report = guest.report(self.deadline, |line| {
            if limit.take(&services) {
                log_line(line, &services);
            }
        })?;
        if !report.side_effects.is_empty() {
            tracing::warn!(plugin = %self.plugin(), "loading the library had side effects: {}", report.side_effects.join("; "));
        }
        Ok((guest, report.sandbox))
    }
}
