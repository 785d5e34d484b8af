//! The host's side of a plugin that lives in a process of its own: calls go over the socket, several at once; a call that misses
//! its deadline costs the process its life; a process that ends is started again, later each time, until the plugin is tripped.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use qtasks_plugin_api::manifest::Mode;
use qtasks_plugin_api::{ErrorBody, HostServices, Level, LogLine};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::frame::{self, Frame, FrameError, Kind};
use super::guest::{LoggedLine, Start};
use super::sandbox::SandboxLevel;
use super::spawn::{Guest, GuestError, describe, nonce};
use crate::plugin::bytes::SealedLibrary;
use crate::plugin::outcome::{CRASH_ERROR, DEADLINE_ERROR, MOST_CALLS, Outcome, TRIPPED_ERROR, failed, too_many};
use crate::plugin::services::TracingServices;
use crate::plugin::verdicts::{QuarantineKind, Subject, Verdicts};
use crate::shown::chain;

/// A call that was told to end gets this long before its process is killed.
const GRACE: Duration = Duration::from_millis(100);
/// This many ends of its process within [`WINDOW`] trip a plugin.
const FAILURES: usize = 5;
/// See [`FAILURES`].
const WINDOW: Duration = Duration::from_secs(60);
/// The first wait before a restart; it doubles with each failure in the window.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Log lines and lines of output that a plugin's process gets through in a second; what is more is counted and dropped.
const LINES_A_SECOND: u32 = 1000;

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

/// One life of the process.
#[derive(Debug)]
struct Connection {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
    guest: Mutex<Guest>,
    /// How it ended, once it has.
    ended: OnceLock<String>,
}

impl Recipe {
    fn start(&self) -> Result<(Guest, SandboxLevel), GuestError> {
        let start = Start { nonce: nonce(), ..self.start.clone() };
        let mut guest = Guest::start(&self.program, self.library.file().as_fd(), &start)?;
        let report = guest.report(self.deadline)?;
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
            let Some(ended) = state.connection.ended.get().cloned() else { return Ok(Arc::clone(&state.connection)) };
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
                Err(GuestError::Spawn { program, reason }) => {
                    state.not_before = Some(now + FIRST_WAIT);
                    return Err(error(CRASH_ERROR, format!("the guest program {program} cannot be started: {reason}")));
                }
                Err(GuestError::Host(reason)) => {
                    state.not_before = Some(now + FIRST_WAIT);
                    return Err(error(CRASH_ERROR, format!("the plugin's process cannot be started: {reason}")));
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
        if connection.ended.get().is_some() {
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
        let connection = &self.state.get_mut().connection;
        connection.guest.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
}

/// Id of the stop call; ordinary ids count from 1.
const STOP: u64 = u64::MAX;

/// Runs blocking code where the runtime allows it.
fn blocking<T>(body: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(body),
        _ => body(),
    }
}

impl Connection {
    fn new(mut guest: Guest, plugin: &str) -> Result<Arc<Self>, GuestError> {
        let socket = guest.socket()?;
        socket.set_read_timeout(None)?;
        socket.set_nonblocking(true)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(socket)?.into_split();
        let (stdout, stderr) = guest.take_output();
        let connection = Arc::new(Self {
            writer: tokio::sync::Mutex::new(writer),
            pending: Mutex::default(),
            guest: Mutex::new(guest),
            ended: OnceLock::new(),
        });
        let services = Arc::new(TracingServices::new(plugin.into()));
        for (stream, descriptor) in [("stdout", stdout.map(OwnedFd::from)), ("stderr", stderr.map(OwnedFd::from))] {
            if let Some(descriptor) = descriptor {
                rustix::io::ioctl_fionbio(&descriptor, true).map_err(io::Error::from)?;
                tokio::spawn(log_output(pipe::Receiver::from_owned_fd(descriptor)?, stream, Arc::clone(&services)));
            }
        }
        tokio::spawn(Arc::clone(&connection).read(reader, services));
        Ok(connection)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Outcome>>> {
        // Nothing panics while the lock is held.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(self: &Arc<Self>, id: u64, frame: Vec<u8>) -> Outcome {
        if frame.len() > frame::MAX_FRAME {
            return failed("TooLong", format!("the call has {} bytes, at most {} are sent", frame.len(), frame::MAX_FRAME));
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.pending();
            if pending.len() >= MOST_CALLS {
                return too_many();
            }
            pending.insert(id, sender);
        }
        let mut waiting = Waiting { connection: self, id, answered: false };
        self.send(&frame).await;
        // Looked at after the insertion: an end before it would have found no sender to drop.
        if let Some(ended) = self.ended.get() {
            return crashed(ended);
        }
        let outcome = receiver.await;
        waiting.answered = true;
        outcome.unwrap_or_else(|_| crashed(self.ended.get().map_or("ended", String::as_str)))
    }

    async fn send(&self, bytes: &[u8]) {
        // A broken socket is noticed by the reader, which knows more about it.
        let _ = self.writer.lock().await.write_all(bytes).await;
    }

    /// Takes what comes from the process until it ends, and then tells everybody who waits.
    async fn read(self: Arc<Self>, reader: OwnedReadHalf, services: Arc<TracingServices>) {
        // A frame of the usual size comes with one read.
        let mut reader = BufReader::new(reader);
        let mut limit = LineLimit::default();
        let nonsense = loop {
            match next_frame(&mut reader).await {
                Ok(Frame { kind: Kind::Outcome, id, payload }) => {
                    let outcome =
                        frame::decode_outcome(&payload).unwrap_or_else(|error| failed("BoundsError", error.to_string()));
                    self.answer(id, outcome);
                }
                // The answer to `Stop`.
                Ok(Frame { kind: Kind::Report, payload, .. }) => {
                    let stopped: Option<String> = serde_json::from_slice(&payload).unwrap_or_default();
                    self.answer(STOP, stopped.map_or(Outcome::Pass, |message| failed("Error", message)));
                }
                Ok(Frame { kind: Kind::Log, payload, .. }) => {
                    if limit.take(&services) {
                        log_line(&payload, &services);
                    }
                }
                Ok(other) => break Some(format!("a frame of kind {:?}", other.kind)),
                Err(FrameError::Ended | FrameError::Stream(_)) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        self.end(nonsense.map_or_else(String::new, |nonsense| format!("sent nonsense and was killed: {nonsense}"))).await;
    }

    fn answer(&self, id: u64, outcome: Outcome) {
        let sender = self.pending().remove(&id);
        if let Some(sender) = sender {
            // Whoever does not wait any more has given up at a deadline.
            let _ = sender.send(outcome);
        }
    }

    /// Ends this life of the process. `reason` is empty when the process ended by itself.
    async fn end(&self, reason: String) {
        let ended_now = blocking(|| {
            let mut guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
            if self.ended.get().is_some() {
                return false;
            }
            let ended = if reason.is_empty() {
                let status = guest.wait(Instant::now() + GRACE);
                status.map_or_else(|| "closed its socket and was killed".to_owned(), describe)
            } else {
                guest.kill();
                reason
            };
            // While the guest is locked: the reader sees the stream end as soon as it is killed, and would tell a reason of its own.
            // And before the senders are dropped: whoever waits reads it then.
            self.ended.set(ended).is_ok()
        });
        if ended_now {
            self.pending().clear();
        }
    }
}

/// A call in the map of those that wait. When nobody waits any more it leaves, and the plugin is told.
struct Waiting<'a> {
    connection: &'a Arc<Connection>,
    id: u64,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.connection.pending().remove(&self.id);
        if !self.answered && self.connection.ended.get().is_none() {
            let (connection, cancel) = (Arc::clone(self.connection), frame::encode(Kind::Cancel, self.id, &[]));
            tokio::spawn(async move { connection.send(&cancel).await });
        }
    }
}

async fn next_frame(reader: &mut BufReader<OwnedReadHalf>) -> Result<Frame, FrameError> {
    let mut prefix = [0; 4];
    match reader.read_exact(&mut prefix).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Ended),
        other => other?,
    };
    let mut body = vec![0; frame::checked_length(prefix)?];
    reader.read_exact(&mut body).await?;
    frame::decode(body)
}

fn log_line(payload: &[u8], services: &TracingServices) {
    if let Ok(line) = serde_json::from_slice::<LoggedLine>(payload) {
        let level = Level::from_number(line.level);
        services.log(LogLine { level, target: &line.target, message: &line.message, fields: &line.fields });
    }
}

/// Logs what the process prints, line by line.
async fn log_output(stream: pipe::Receiver, name: &'static str, services: Arc<TracingServices>) {
    const LONGEST: u64 = 8 << 10;
    let mut reader = BufReader::new(stream);
    let mut limit = LineLimit::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await {
            Ok(1..) => {
                if limit.take(&services) {
                    let text = String::from_utf8_lossy(&line);
                    services.log(LogLine { level: Level::Info, target: name, message: text.trim_end(), fields: "" });
                }
            }
            _ => return,
        }
    }
}

/// Lets [`LINES_A_SECOND`] lines through, and says how many it dropped.
struct LineLimit {
    since: Instant,
    taken: u32,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self { since: Instant::now(), taken: 0 }
    }
}

impl LineLimit {
    fn take(&mut self, services: &TracingServices) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            let dropped = self.taken.saturating_sub(LINES_A_SECOND);
            if dropped > 0 {
                let message = format!("{dropped} lines were dropped: at most {LINES_A_SECOND} a second are logged");
                services.log(LogLine { level: Level::Warn, target: "host", message: &message, fields: "" });
            }
            *self = Self::default();
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= LINES_A_SECOND
    }
}

fn crashed(ended: &str) -> Outcome {
    failed(CRASH_ERROR, format!("the plugin's process {ended}"))
}

fn error(kind: &'static str, message: String) -> Box<ErrorBody> {
    Box::new(ErrorBody::new(kind, message))
}
