//! The exit codes, all of them.

use std::process::ExitCode;

use qtasks_host::StartError;
use qtasks_host::broker::{BrokerError, BrokerErrorKind};
use qtasks_host::plugin::DiscoverError;
use qtasks_host::plugin::trust::stock::StockError;
use qtasks_host::settings::SettingsError;

/// What the process says when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// Everything asked for was done; no task ended in `error`.
    Success = 0,
    /// At least one task ended in `error`.
    TasksFailed = 1,
    /// Wrong arguments or settings; nothing was run. clap uses the same number.
    Usage = 2,
    /// At least one input line was no task, or one that is there already; the others were run, or added.
    BadInput = 3,
    /// `plugin list` or `plugin inspect` saw a library that would be refused, `plugin lock --check` a lock file that would change, or
    /// `decisions replay` was refused one.
    PluginRefused = 4,
    /// No such task, at this broker, in this project.
    Unknown = 5,
    /// The task has not ended in time, or cannot be changed any more; or no worker is there.
    NotInTime = 6,
    /// `decisions replay`: at least one error would be decided otherwise.
    DecidedOtherwise = 7,
    /// Something outside of the program's control failed: a file, a stream, the broker. Or a `worker` that was stopped could neither
    /// record nor give back all that it had, or a new version of a plugin hung while a worker loaded it.
    Failed = 70,
    /// `run` was stopped by SIGTERM or Ctrl-C: what ran was finished, the rest was not begun. Or a second signal stopped `run` or `worker` at once.
    /// Or `stats inspect` or `decisions replay` was stopped.
    Interrupted = 130,
}

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  everything was done, no task ended in `error`
    1  at least one task ended in `error`
    2  wrong arguments or settings, nothing was run
    3  at least one input line was no task, or one that is there already; the
       others were run, or added
    4  `plugin list` or `plugin inspect` saw a library that would be refused,
       `decisions replay` one that was, or `plugin lock --check` a lock file
       that would change
    5  no such task at this broker, in this project
    6  the task has not ended in time, or cannot be changed any more; or no
       worker is there
    7  `decisions replay`: at least one error would be decided otherwise
   70  a file, a stream or the broker failed; `worker`: the broker was away
       when it was stopped, what it had comes back when the lease is over;
       or a new version of a plugin hung while it was loaded
  130  `run`: stopped by SIGTERM or Ctrl-C, what ran was finished, the rest was
       not begun; `stats inspect`, `decisions replay`: stopped by them;
       `worker`: stopped at once by a second signal, what ran runs again";

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

/// What the user got wrong, where no library error says it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// The exit code for an error that kept a command from being run.
pub(crate) fn exit_code_of(error: &anyhow::Error) -> ExitStatus {
    let usage = error.is::<UsageError>() || error.is::<SettingsError>();
    let settings = error.is::<StartError>() || error.is::<DiscoverError>() || error.is::<StockError>();
    let refused = |error: &BrokerError| matches!(error.kind, BrokerErrorKind::Known(_) | BrokerErrorKind::Refused(_));
    let usage = usage || error.downcast_ref::<BrokerError>().is_some_and(refused);
    if usage || settings { ExitStatus::Usage } else { ExitStatus::Failed }
}
