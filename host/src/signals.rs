//! The signals that a worker obeys.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, Ctrl-C and SIGHUP, from when they are caught on: until then each ends the process.
#[derive(Debug)]
pub struct Signals {
    /// `None`: it cannot be caught here, and ends the process as the system has it.
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
    /// Whether one has asked to stop already.
    told: bool,
}

impl Signals {
    /// Catches them. Needs a tokio runtime around it.
    #[must_use]
    pub fn catch() -> Self {
        let catch = |kind| {
            signal(kind).inspect_err(|error| tracing::warn!("signals cannot be caught, they end this process: {error}")).ok()
        };
        Self {
            terminate: catch(SignalKind::terminate()),
            interrupt: catch(SignalKind::interrupt()),
            hangup: catch(SignalKind::hangup()),
            told: false,
        }
    }

    /// Waits for `starting`. A first signal waits with it, since a probe that is cut off leaves its library in quarantine; a second one
    /// gives `None`.
    pub async fn during<T>(&mut self, starting: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(starting);
        for stops in ["stopping once it has started; another signal stops at once", "stopping at once"] {
            tokio::select! {
                started = &mut starting => return Some(started),
                name = self.next() => tracing::warn!("{name}: {stops}"),
            }
            self.told = true;
        }
        None
    }

    /// Whether one has asked to stop already.
    pub(crate) fn has_told(&self) -> bool {
        self.told
    }

    /// SIGHUP, for somebody else to wait for.
    pub(crate) fn take_hangups(&mut self) -> Option<Signal> {
        self.hangup.take()
    }

    /// Waits for one that asks to stop.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = caught(&mut self.terminate) => "SIGTERM",
            Some(()) = caught(&mut self.interrupt) => "Ctrl-C",
            else => std::future::pending().await,
        }
    }
}

/// Waits for a signal; for ever where it cannot be caught.
pub(crate) async fn caught(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}
