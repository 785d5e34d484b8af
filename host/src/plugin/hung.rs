//! The calls of a plugin that are under way in this process, and those of them that went on after their deadline: nobody can end
//! them here, so a plugin that has too many is tripped.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::outcome::MOST_CALLS;

/// This many hung calls at once trip a plugin.
const MOST: u32 = 3;

/// A plugin's calls.
#[derive(Debug, Default)]
pub(super) struct Hung {
    under_way: AtomicUsize,
    calls: AtomicU32,
    tripped: AtomicBool,
    reason: OnceLock<String>,
}

/// One call, as its two ends see it: the one that waits, and the one that runs.
#[derive(Debug, Clone)]
pub(super) struct RunningCall {
    hung: Arc<Hung>,
    state: Arc<AtomicU8>,
}

const RUNNING: u8 = 0;
const ABANDONED: u8 = 1;
const ENDED: u8 = 2;

impl Hung {
    /// A call begins, unless too many are under way.
    pub(super) fn begin(self: &Arc<Self>) -> Option<RunningCall> {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= MOST_CALLS {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(RunningCall { hung: Arc::clone(self), state: Arc::new(AtomicU8::new(RUNNING)) })
    }

    pub(super) fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::Relaxed)
    }

    /// Why the plugin is no longer called, if so. For good: what hangs once hangs again.
    pub(super) fn tripped(&self) -> Option<String> {
        if self.is_tripped() { self.reason.get().cloned() } else { None }
    }

    /// How many calls hang now.
    #[cfg(test)]
    pub(super) fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl RunningCall {
    /// Nobody waits for it any more.
    pub(super) fn abandon(&self) {
        // Counted before it is said: `end` takes back what it finds abandoned.
        let calls = self.hung.calls.fetch_add(1, Ordering::AcqRel) + 1;
        if self.state.compare_exchange(RUNNING, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.hung.calls.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        if calls >= MOST {
            let reason =
                format!("set aside: {calls} of its calls went on after their deadline, and cannot be ended in this process");
            // Set before the flag: whoever sees the flag finds the reason.
            if self.hung.reason.set(reason).is_ok() {
                self.hung.tripped.store(true, Ordering::Release);
            }
        }
    }

    /// It has ended, in time or not. Said once.
    pub(super) fn end(&self) {
        self.hung.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.state.swap(ENDED, Ordering::AcqRel) == ABANDONED {
            self.hung.calls.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_tripped_by_calls_that_hang_at_once_and_not_by_late_ones() {
        let hung: Arc<Hung> = Arc::default();
        for _ in 0..10 {
            let late = hung.begin().expect("few are under way");
            late.abandon();
            late.end();
        }
        assert_eq!((hung.calls(), hung.tripped()), (0, None));
        let in_time = hung.begin().expect("few are under way");
        in_time.end();
        in_time.abandon();
        assert_eq!(hung.calls(), 0, "it had ended before anybody gave up");
        let mut all: Vec<_> = (0..MOST_CALLS).map(|_| hung.begin().expect("as many as may be")).collect();
        assert!(hung.begin().is_none() && hung.begin().is_none());
        all.pop().expect("there are some").end();
        all.push(hung.begin().expect("one has ended"));
        all.iter().for_each(RunningCall::end);
        for _ in 0..MOST {
            hung.begin().expect("few are under way").abandon();
        }
        assert!(hung.tripped().is_some_and(|reason| reason.contains("3 of its calls")));
    }
}
