//! The process and the runtime that tasks and plugins run in.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use qtasks_host::plugin::fatal;
use qtasks_host::signals::Signals;
use qtasks_host::{App, Running, Settings, shown};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::exit_code::{ExitStatus, UsageError};
use super::output::keep_results_apart;

/// tokio's own variable; a wrong value of it would end tokio in a panic.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// From now on a plugin that ends this process is named, or it is told that none will be.
pub(crate) fn name_culprits(state_dir: &Path) {
    if let Err(error) = fatal::name_culprits(state_dir) {
        tracing::warn!(
            "a plugin that ends this process will not be named, since its state directory cannot be used: {}: {error}; name another with \
             --state-dir or `state_dir`",
            shown(state_dir)
        );
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

/// Starts the plugins of these settings, lets `look` ask them, and stops them. A signal ends it, and a second one at once: an inline
/// handler that hangs would never let it end.
///
/// # Errors
///
/// When the application does not start, and whatever `look` says.
pub(crate) fn look_at(
    settings: Settings,
    look: impl AsyncFnOnce(&Running) -> anyhow::Result<ExitStatus>,
) -> anyhow::Result<ExitStatus> {
    name_culprits(&settings.state_dir);
    keep_results_apart();
    let runtime = start()?;
    let status = runtime.block_on(async {
        // A library whose probe is cut off would be in quarantine.
        let mut signals = Signals::catch_stops();
        let Some(running) = App::new(settings).start_until_told(&mut signals).await else { return Ok(ExitStatus::Interrupted) };
        let running = running?;
        let told = signals.has_told();
        let stops = Arc::new(Notify::new());
        // On another thread than what hangs.
        tokio::spawn(listen(signals, Arc::clone(&stops)));
        let looked = tokio::select! {
            looked = look(&running), if !told => looked,
            () = stops.notified(), if !told => Ok(ExitStatus::Interrupted),
            else => Ok(ExitStatus::Interrupted),
        };
        running.stop().await;
        looked
    });
    // A thread that is in a hung plugin must not keep the process alive.
    runtime.shutdown_timeout(Duration::ZERO);
    status
}

async fn listen(mut signals: Signals, stops: Arc<Notify>) {
    if !signals.has_told() {
        let name = signals.next().await;
        tracing::warn!("{name}: stopping; another signal stops at once");
        stops.notify_one();
    }
    signals.next().await;
    fatal::end_at_once(ExitStatus::Interrupted as u8)
}
