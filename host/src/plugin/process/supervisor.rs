//! The host's side of a plugin that lives in a process of its own: a call that misses its deadline costs the process its life; a process
//! that ends is started again, later each time, until the plugin is tripped. [`Connection`] is one life of it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_plugin_api::ErrorBody;
use qtasks_plugin_api::manifest::Mode;

use super::connection::{Connection, GRACE, STOP, blocking};
use super::frame::{self, Kind};
use super::guest::Start;
use super::output::{LineLimit, log_line};
use super::sandbox::SandboxLevel;
use super::spawn::{Guest, GuestError, nonce};
use crate::plugin::bytes::SealedLibrary;
use crate::plugin::outcome::{CRASH_ERROR, DEADLINE_ERROR, Outcome, TRIPPED_ERROR, failed};
use crate::plugin::services::TracingServices;
use crate::plugin::verdicts::{QuarantineKind, Subject, Verdicts};
use crate::shown::chain;

/// This many ends of its process within [`WINDOW`] trip a plugin.
const FAILURES: usize = 5;
/// See [`FAILURES`].
const WINDOW: Duration = Duration::from_secs(60);
/// The first wait before a restart; it doubles with each failure in the window.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// What it takes to start the process, again and again on the same bytes.
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

/// A plugin in a process of its own.
#[derive(Debug)]
pub(crate) struct Isolated {
    recipe: Recipe,
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
struct State {
    connection: Arc<Connection>,
    failures: VecDeque<Instant>,
    /// Set once an end of the process is counted, until it runs again.
    not_before: Option<Instant>,
    tripped: Option<String>,
}

impl Recipe {
    fn start(&self) -> Result<(Guest, SandboxLevel), GuestError> {
        let start = Start { nonce: nonce(), ..self.start.clone() };
        let mut guest = Guest::spawn(&self.program, &start)?;
        guest.hand_over(self.library.file().as_fd(), &start, self.deadline)?;
        let (services, mut limit) = (TracingServices::new(self.start.init.plugin.as_str().into()), LineLimit::default());
        let report = guest.report(self.deadline, |line| {
            if limit.take(&services) {
                log_line(line, &services);
            }
        })?;
        if !report.side_effects.is_empty() {
            tracing::warn!(plugin = %self.start.init.plugin, "loading the library had side effects: {}", report.side_effects.join("; "));
        }
        Ok((guest, report.sandbox))
    }
}

impl Isolated {
    /// Starts the process and waits until the plugin runs in it. Needs a tokio runtime around it, and blocks.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(crate) fn start(recipe: Recipe) -> Result<Self, GuestError> {
        let (guest, sandbox) = recipe.start()?;
        if sandbox != SandboxLevel::Full {
            tracing::warn!(plugin = %recipe.start.init.plugin, ?sandbox, "this kernel does not enforce the whole sandbox");
        }
        let connection = Connection::new(guest, &recipe.start.init.plugin)?;
        let state = State { connection, failures: VecDeque::new(), not_before: None, tripped: None };
        Ok(Self { recipe, state: tokio::sync::Mutex::new(state) })
    }

    /// Runs an entry in the process. Dropping the future tells the plugin that nobody waits.
    pub(crate) async fn call(
        &self,
        id: u64,
        entry: u32,
        mode: Mode,
        name: &str,
        input: &str,
        deadline: Option<Duration>,
    ) -> Outcome {
        // A deadline beyond what a clock can say is none.
        let until = deadline.and_then(|deadline| tokio::time::Instant::now().checked_add(deadline));
        let connection = match self.connection(until).await {
            Ok(connection) => connection,
            Err(error) => return Outcome::Failed(error),
        };
        let call = connection.call(id, frame::encode_call(id, entry, mode, name, input));
        let Some(until) = until else { return call.await };
        tokio::pin!(call);
        match tokio::time::timeout_at(until, &mut call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let cancel = frame::encode(Kind::Cancel, id, &[]);
                // Together: the call may still be writing its own frame, and hold what the other has to wait for.
                let told = async { tokio::join!(connection.send(&cancel), &mut call) };
                if tokio::time::timeout(GRACE, told).await.is_err() {
                    connection.end(format!("was killed: a call of {name} missed its deadline and did not end when told")).await;
                }
                let seconds = deadline.unwrap_or_default().as_secs_f64();
                failed(DEADLINE_ERROR, format!("did not end within {seconds} s"))
            }
        }
    }

    /// A living process: the one there is, or a new one in its time.
    async fn connection(&self, until: Option<tokio::time::Instant>) -> Result<Arc<Connection>, Box<ErrorBody>> {
        let starting = async {
            let mut state = self.state.lock().await;
            if let Some(reason) = &state.tripped {
                return Err(error(TRIPPED_ERROR, reason.clone()));
            }
            let Some(ended) = state.connection.ended().map(str::to_owned) else { return Ok(Arc::clone(&state.connection)) };
            self.restart(&mut state, &ended).await
        };
        match until {
            None => starting.await,
            Some(until) => tokio::time::timeout_at(until, starting)
                .await
                .unwrap_or_else(|_| Err(error(CRASH_ERROR, "the plugin's process is being started again".to_owned()))),
        }
    }

    async fn restart(&self, state: &mut State, ended: &str) -> Result<Arc<Connection>, Box<ErrorBody>> {
        let mut reason = ended.to_owned();
        loop {
            let now = Instant::now();
            // Once for each end: a caller that gave up while it waited has counted it, and the next one waits on.
            let Some(not_before) = state.not_before else {
                self.count_failure(state, now, &reason)?;
                continue;
            };
            tokio::time::sleep_until(not_before.into()).await;
            match self.start_again().await {
                Ok(connection) => {
                    state.connection = Arc::clone(&connection);
                    state.not_before = None;
                    return Ok(connection);
                }
                // The host's own trouble says nothing about the plugin.
                Err(trouble @ (GuestError::Spawn { .. } | GuestError::Host(_))) => {
                    state.not_before = Some(now + FIRST_WAIT);
                    return Err(error(CRASH_ERROR, trouble.to_string()));
                }
                Err(error) => {
                    reason = format!("did not come up again: {error}");
                    state.not_before = None;
                }
            }
        }
    }

    /// Notes one end of the process, and when it may be started again; trips the plugin when there were too many.
    fn count_failure(&self, state: &mut State, now: Instant, reason: &str) -> Result<(), Box<ErrorBody>> {
        let plugin = &self.recipe.start.init.plugin;
        state.failures.push_back(now);
        while state.failures.front().is_some_and(|first| now.duration_since(*first) > WINDOW) {
            state.failures.pop_front();
        }
        if state.failures.len() >= FAILURES {
            let tripped =
                format!("set aside after {FAILURES} failures within {} s; the last: its process {reason}", WINDOW.as_secs());
            tracing::error!(%plugin, "{tripped}");
            let Recipe { verdicts, subject, .. } = &self.recipe;
            // The next start refuses these bytes; that they could not be noted costs it the same failures again.
            if let Err(error) = verdicts.quarantine(subject, QuarantineKind::RepeatedFailure, tripped.clone()) {
                tracing::error!(%plugin, "{}", chain(&error));
            }
            state.tripped = Some(tripped.clone());
            return Err(error(TRIPPED_ERROR, tripped));
        }
        let wait = FIRST_WAIT * 2u32.saturating_pow(u32::try_from(state.failures.len() - 1).unwrap_or(u32::MAX));
        tracing::warn!(%plugin, seconds = wait.as_secs_f64(), "its process {reason}; it is started again");
        state.not_before = Some(now + wait);
        Ok(())
    }

    async fn start_again(&self) -> Result<Arc<Connection>, GuestError> {
        // Blocks this thread for as long as a start takes, a few milliseconds; tokio moves its other tasks away.
        let (guest, _) = blocking(|| self.recipe.start())?;
        Connection::new(guest, &self.recipe.start.init.plugin)
    }

    /// Why it is no longer called, if so.
    pub(crate) async fn tripped(&self) -> Option<String> {
        self.state.lock().await.tripped.clone()
    }

    /// Tells the plugin to stop, and ends the process at `deadline` at the latest.
    pub(crate) async fn stop(&self, deadline: Duration) -> Result<(), String> {
        let connection = Arc::clone(&self.state.lock().await.connection);
        if connection.ended().is_some() {
            return Ok(());
        }
        let stopped = connection.call(STOP, frame::encode(Kind::Stop, STOP, &[]));
        let outcome = tokio::time::timeout(deadline, stopped).await;
        connection.end("was stopped".to_owned()).await;
        match outcome {
            Ok(Outcome::Failed(error)) => Err(error.to_string()),
            Ok(_) => Ok(()),
            Err(_) => Err(format!("did not stop within {} s; its process was killed", deadline.as_secs_f64())),
        }
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.state.get_mut().connection.kill();
    }
}

fn error(kind: &'static str, message: String) -> Box<ErrorBody> {
    Box::new(ErrorBody::new(kind, message))
}
