//! The lives of a plugin's process: one that has ended is started again, later each time, until the plugin is tripped. A restart goes
//! on by itself, on a thread of its own: no call waits for it beyond its own deadline, and a call that gives up does not end it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qtasks_plugin_api::ErrorBody;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::connection::Connection;
use super::recipe::Recipe;
use super::spawn::{GuestError, Killer};
use crate::plugin::outcome::{CRASH_ERROR, TRIPPED_ERROR};
use crate::plugin::verdicts::QuarantineKind;
use crate::shown::chain;

/// This many ends of its process within [`WINDOW`] trip a plugin.
const FAILURES: usize = 5;
/// See [`FAILURES`].
const WINDOW: Duration = Duration::from_secs(60);
/// The first wait before a restart; it doubles with each failure in the window.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// A living process, or why there is none.
type Living = Result<Arc<Connection>, Box<ErrorBody>>;

/// All lives of a plugin's process, for those who call it and for the restart.
#[derive(Debug)]
pub(super) struct Lives {
    recipe: Recipe,
    /// Held for moments only, and never while a process starts.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The last life.
    connection: Arc<Connection>,
    failures: Failures,
    /// Set once an end of the process is counted, until it runs again.
    not_before: Option<Instant>,
    standing: Standing,
}

#[derive(Debug)]
enum Standing {
    /// It is called. Where its process has ended, the first call to meet that begins a restart.
    Called,
    Restarting(Restart),
    Tripped(String),
    Stopped,
}

/// The restart that is under way: the only one.
#[derive(Debug)]
struct Restart {
    /// What comes of it, for all who wait. Where it is closed without that, they look again.
    outcome: watch::Receiver<Option<Living>>,
    /// The process that is coming up.
    coming: Option<Killer>,
}

/// How a restart ended.
enum Ended {
    Up(Arc<Connection>),
    /// The host's own trouble says nothing about the plugin.
    Trouble(GuestError),
    Tripped(String),
    /// It failed and nobody waits, so the next call has it tried again; or the plugin was stopped.
    Left,
}

impl Lives {
    /// The first life has begun.
    pub(super) fn new(recipe: Recipe, connection: Arc<Connection>) -> Self {
        let state = State { connection, failures: Failures::default(), not_before: None, standing: Standing::Called };
        Self { recipe, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A living process: the one there is, or a new one in its time. Dropping the future leaves the restart to itself.
    pub(super) async fn living(self: &Arc<Self>) -> Living {
        loop {
            let mut outcome = {
                let mut state = self.state();
                match &state.standing {
                    Standing::Tripped(reason) => return Err(error(TRIPPED_ERROR, reason.clone())),
                    Standing::Stopped => return Err(error(CRASH_ERROR, "the plugin's process was stopped".to_owned())),
                    Standing::Restarting(restart) => restart.outcome.clone(),
                    Standing::Called if state.connection.ended().is_none() => return Ok(Arc::clone(&state.connection)),
                    Standing::Called => self.begin(&mut state)?,
                }
            };
            if let Ok(living) = outcome.wait_for(Option::is_some).await
                && let Some(living) = &*living
            {
                return living.clone();
            }
        }
    }

    fn begin(self: &Arc<Self>, state: &mut State) -> Result<watch::Receiver<Option<Living>>, Box<ErrorBody>> {
        let (sender, outcome) = watch::channel(None);
        let (lives, runtime) = (Arc::clone(self), Handle::current());
        // No thread of the runtime: handlers that hang may hold them all, and the end of the runtime would wait for this one.
        let thread = std::thread::Builder::new().name("plugin-start".to_owned());
        let begun = thread.spawn(move || lives.restart(&sender, &runtime));
        begun.map_err(|trouble| error(CRASH_ERROR, GuestError::Host(trouble).to_string()))?;
        state.standing = Standing::Restarting(Restart { outcome: outcome.clone(), coming: None });
        Ok(outcome)
    }

    fn restart(&self, outcome: &watch::Sender<Option<Living>>, runtime: &Handle) {
        // The state has a receiver as well.
        let somebody_waits = || outcome.receiver_count() > 1;
        // Whatever comes of it, it must not be under way for ever.
        let ended = catch_unwind(AssertUnwindSafe(|| self.start_again(runtime, somebody_waits)))
            .unwrap_or_else(|_| Ended::Trouble(GuestError::Host(io::Error::other("a panic while it was started"))));
        let mut state = self.state();
        if let Standing::Stopped = state.standing {
            drop(state);
            if let Ended::Up(connection) = ended {
                connection.kill();
            }
            return;
        }
        state.standing = Standing::Called;
        let living = match ended {
            Ended::Up(connection) => {
                state.connection = Arc::clone(&connection);
                state.not_before = None;
                Ok(connection)
            }
            Ended::Trouble(trouble) => {
                state.not_before = Some(Instant::now() + FIRST_WAIT);
                Err(error(CRASH_ERROR, trouble.to_string()))
            }
            Ended::Tripped(reason) => {
                state.standing = Standing::Tripped(reason.clone());
                Err(error(TRIPPED_ERROR, reason))
            }
            Ended::Left => return,
        };
        drop(state);
        outcome.send_replace(Some(living));
    }

    /// Starts the process in its time; where that fails, again for as long as somebody waits.
    fn start_again(&self, runtime: &Handle, somebody_waits: impl Fn() -> bool) -> Ended {
        let mut reason = self.state().connection.ended().unwrap_or_default().to_owned();
        let mut failed = false;
        loop {
            let not_before = match self.count(&reason) {
                Ok(Some(not_before)) => not_before,
                Ok(None) => return Ended::Left,
                Err(TooMany) => return Ended::Tripped(self.trip(&reason)),
            };
            if failed && !somebody_waits() {
                return Ended::Left;
            }
            std::thread::sleep(not_before.saturating_duration_since(Instant::now()));
            let started = self.recipe.start(|coming| self.comes_up(coming));
            // The new life belongs to the runtime of the call that began this.
            let _entered = runtime.enter();
            match started.and_then(|(guest, _)| Connection::new(guest, self.recipe.plugin())) {
                Ok(connection) => return Ended::Up(connection),
                Err(trouble @ (GuestError::Spawn { .. } | GuestError::Host(_))) => return Ended::Trouble(trouble),
                Err(error) => {
                    reason = format!("did not come up again: {error}");
                    failed = true;
                    self.state().not_before = None;
                }
            }
        }
    }

    /// Leaves it to whoever stops the plugin to end the process that is coming up.
    fn comes_up(&self, coming: Killer) {
        match &mut self.state().standing {
            Standing::Restarting(restart) => restart.coming = Some(coming),
            // It was stopped meanwhile.
            _ => coming.kill(),
        }
    }

    /// Notes an end of the process, once, and gives when it may be started again; `None` for a plugin that was stopped.
    fn count(&self, reason: &str) -> Result<Option<Instant>, TooMany> {
        let mut state = self.state();
        if let Standing::Stopped = state.standing {
            return Ok(None);
        }
        if state.not_before.is_none() {
            let now = Instant::now();
            let wait = state.failures.count(now)?;
            tracing::warn!(plugin = %self.recipe.plugin(), seconds = wait.as_secs_f64(), "its process {reason}; it is started again");
            state.not_before = Some(now + wait);
        }
        Ok(state.not_before)
    }

    /// Says and notes that the plugin is set aside.
    fn trip(&self, last: &str) -> String {
        let Recipe { verdicts, subject, .. } = &self.recipe;
        let plugin = self.recipe.plugin();
        let tripped = format!("set aside after {FAILURES} failures within {} s; the last: its process {last}", WINDOW.as_secs());
        tracing::error!(%plugin, "{tripped}");
        // The next start refuses these bytes; that they could not be noted costs it the same failures again.
        if let Err(error) = verdicts.quarantine(subject, QuarantineKind::RepeatedFailure, tripped.clone()) {
            tracing::error!(%plugin, "{}", chain(&error));
        }
        tripped
    }

    /// Why it is no longer called, if so.
    pub(super) fn tripped(&self) -> Option<String> {
        match &self.state().standing {
            Standing::Tripped(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Lets no call and no restart begin any more, and kills the process that is coming up. Gives the last life, which may go on.
    pub(super) fn close(&self) -> Arc<Connection> {
        let mut state = self.state();
        // Of a plugin that was tripped it goes on to be told why.
        if !matches!(state.standing, Standing::Tripped(_)) {
            let before = std::mem::replace(&mut state.standing, Standing::Stopped);
            if let Standing::Restarting(Restart { coming: Some(coming), .. }) = before {
                coming.kill();
            }
        }
        Arc::clone(&state.connection)
    }
}

/// The ends of a process within the last [`WINDOW`].
#[derive(Debug, Default)]
struct Failures(VecDeque<Instant>);

/// [`FAILURES`] were counted.
#[derive(Debug, PartialEq)]
struct TooMany;

impl Failures {
    /// Counts one, and says how long to wait before the process is started again.
    fn count(&mut self, now: Instant) -> Result<Duration, TooMany> {
        self.0.push_back(now);
        while self.0.front().is_some_and(|first| now.duration_since(*first) > WINDOW) {
            self.0.pop_front();
        }
        let earlier = u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX);
        if self.0.len() < FAILURES { Ok(FIRST_WAIT * 2u32.saturating_pow(earlier)) } else { Err(TooMany) }
    }
}

fn error(kind: &'static str, message: String) -> Box<ErrorBody> {
    Box::new(ErrorBody::new(kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_waits_longer_and_the_fifth_in_a_minute_is_one_too_many() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let waits: Vec<_> = (0..6).map(|second| failures.count(now + Duration::from_secs(second))).collect();
        let waited = |milliseconds| Ok(Duration::from_millis(milliseconds));
        assert_eq!(waits, [waited(50), waited(100), waited(200), waited(400), Err(TooMany), Err(TooMany)]);
    }

    #[test]
    fn ends_of_more_than_a_minute_ago_are_forgotten() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for second in [0, 16, 32, 48, 64, 80, 96] {
            assert!(failures.count(now + Duration::from_secs(second)).is_ok(), "at {second} s there are four in a minute");
        }
        assert_eq!(failures.count(now + Duration::from_secs(1000)), Ok(FIRST_WAIT));
    }
}
