//! The signals that a worker obeys.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, Ctrl-C, SIGHUP and SIGUSR1, from when they are caught on: until then each ends the process.
#[derive(Debug)]
pub struct Signals {
    /// `None`: it cannot be caught here, and ends the process as the system has it.
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
    user: Option<Signal>,
    /// Whether one has asked to stop already.
    told: bool,
    /// The last one that counted.
    last: Option<Counted>,
}

type Counted = (&'static str, Instant);

/// The same signal twice in so short a time is one: `timeout` of GNU sends it to the process and to its group. No hand is as quick.
const ONE: Duration = Duration::from_millis(100);

impl Signals {
    /// Catches them. Needs a tokio runtime around it.
    #[must_use]
    pub fn catch() -> Self {
        let [hangup, user] = [SignalKind::hangup(), SignalKind::user_defined1()].map(caught_from_now_on);
        Self { hangup, user, ..Self::catch_stops() }
    }

    /// Catches those that ask to stop, and leaves the others as the system has them: where no plugin is replaced, SIGHUP ends the process
    /// with its terminal.
    #[must_use]
    pub fn catch_stops() -> Self {
        Self {
            terminate: caught_from_now_on(SignalKind::terminate()),
            interrupt: caught_from_now_on(SignalKind::interrupt()),
            hangup: None,
            user: None,
            told: false,
            last: None,
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
    pub fn has_told(&self) -> bool {
        self.told
    }

    /// SIGHUP, for somebody else to wait for.
    pub(crate) fn take_hangups(&mut self) -> Option<Signal> {
        self.hangup.take()
    }

    /// SIGUSR1, likewise.
    pub(crate) fn take_inquiries(&mut self) -> Option<Signal> {
        self.user.take()
    }

    /// Waits for one that asks to stop; gives its name.
    pub async fn next(&mut self) -> &'static str {
        loop {
            let name = tokio::select! {
                Some(()) = caught(&mut self.terminate) => "SIGTERM",
                Some(()) = caught(&mut self.interrupt) => "Ctrl-C",
                else => std::future::pending().await,
            };
            if counts(&mut self.last, (name, Instant::now())) {
                return name;
            }
        }
    }
}

/// Whether a signal counts beside the last one that did.
fn counts(last: &mut Option<Counted>, next: Counted) -> bool {
    let counts = last.is_none_or(|(name, at)| name != next.0 || next.1.saturating_duration_since(at) >= ONE);
    if counts {
        *last = Some(next);
    }
    counts
}

fn caught_from_now_on(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| tracing::warn!("signals cannot be caught, they end this process: {error}")).ok()
}

/// Waits for a signal; for ever where it cannot be caught.
pub(crate) async fn caught(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_sent_twice_at_once_counts_once() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut last = None;
        assert!(counts(&mut last, ("SIGTERM", begun)));
        assert!(!counts(&mut last, ("SIGTERM", after(1))));
        // However often it is sent, it is waited for no longer.
        assert!(!counts(&mut last, ("SIGTERM", after(99))));
        assert!(counts(&mut last, ("SIGTERM", after(100))));
        assert!(counts(&mut last, ("Ctrl-C", after(101))));
    }
}
