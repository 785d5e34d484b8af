//! The process and the runtime that tasks and plugins run in.

use std::path::Path;

use anyhow::Context;
use qtasks_host::plugin::fatal;
use qtasks_host::shown;
use tokio::runtime::Runtime;

use super::exit_code::UsageError;

/// tokio's own variable; a wrong value of it would end tokio in a panic.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// From now on a plugin that ends this process is named, or it is told that none will be.
pub(crate) fn name_culprits(state_dir: &Path) {
    if let Err(error) = fatal::name_culprits(state_dir) {
        tracing::warn!("a plugin that ends this process will not be named: {}: {error}", shown(state_dir));
    }
}

/// A thread for each core, or as many as `TOKIO_WORKER_THREADS` says.
///
/// # Errors
///
/// When that is no number of threads, or the system refuses them.
pub(crate) fn start() -> anyhow::Result<Runtime> {
    if let Some(found) = std::env::var_os(THREADS)
        && found.to_str().and_then(|text| text.parse::<usize>().ok()).is_none_or(|threads| threads == 0)
    {
        let wrong = format!("the environment variable {THREADS} is {found:?}; expected a number of threads, 1 or more");
        return Err(UsageError(wrong).into());
    }
    Runtime::new().context("cannot start the runtime")
}
