//! One life of a plugin's process: calls go over its socket, several at once, and what it says is taken until it ends.

use std::collections::HashMap;
use std::io::{self, Cursor};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::ended::describe;
use super::frame::{self, Frame, FrameError, Kind};
use super::output::{LineLimit, log_line, log_output};
use super::spawn::{Guest, GuestError};
use crate::plugin::outcome::{CRASH_ERROR, MOST_CALLS, Outcome, failed, too_many};
use crate::plugin::services::TracingServices;

/// A call that was told to end gets this long before its process is killed.
pub(super) const GRACE: Duration = Duration::from_millis(100);
/// What a process printed before it ended is read within this time.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Id of the stop call; ordinary ids count from 1.
pub(super) const STOP: u64 = u64::MAX;

/// One life of the process.
#[derive(Debug)]
pub(super) struct Connection {
    writer: tokio::sync::Mutex<Writer>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
    guest: Mutex<Guest>,
    /// How it ended, once it has.
    ended: OnceLock<String>,
}

impl Connection {
    pub(super) fn new(mut guest: Guest, plugin: &str) -> Result<Arc<Self>, GuestError> {
        let socket = guest.socket()?;
        socket.set_read_timeout(None)?;
        socket.set_nonblocking(true)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(socket)?.into_split();
        let (stdout, stderr) = guest.take_output();
        let connection = Arc::new(Self {
            writer: tokio::sync::Mutex::new(Writer { socket: writer, begun: Cursor::default() }),
            pending: Mutex::default(),
            guest: Mutex::new(guest),
            ended: OnceLock::new(),
        });
        let services = Arc::new(TracingServices::new(plugin.into()));
        let mut logging = JoinSet::new();
        for (stream, descriptor) in [("stdout", stdout.map(OwnedFd::from)), ("stderr", stderr.map(OwnedFd::from))] {
            if let Some(descriptor) = descriptor {
                rustix::io::ioctl_fionbio(&descriptor, true).map_err(io::Error::from)?;
                logging.spawn(log_output(pipe::Receiver::from_owned_fd(descriptor)?, stream, Arc::clone(&services)));
            }
        }
        let life = Arc::clone(&connection);
        tokio::spawn(async move {
            life.read(reader, services).await;
            // What it printed last is still to be read. What it started, and what left its group, may hold the other ends on.
            // Not `join_all`, which panics where the runtime ends first and has dropped what it waits for.
            let _ = tokio::time::timeout(LAST_WORDS, async { while logging.join_next().await.is_some() {} }).await;
        });
        Ok(connection)
    }

    /// How it ended, once it has.
    pub(super) fn ended(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    /// Kills the process, whoever waits for it.
    pub(super) fn kill(&self) {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Outcome>>> {
        // Nothing panics while the lock is held.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn call(self: &Arc<Self>, id: u64, frame: Vec<u8>) -> Outcome {
        if frame.len() > frame::MAX_FRAME {
            return failed("TooLong", format!("the call has {} bytes, at most {} are sent", frame.len(), frame::MAX_FRAME));
        }
        let (sender, mut receiver) = oneshot::channel();
        {
            let mut pending = self.pending();
            if pending.len() >= MOST_CALLS {
                return too_many();
            }
            pending.insert(id, sender);
        }
        let mut waiting = Waiting { connection: self, id, answered: false };
        self.send(frame).await;
        // Looked at after the insertion: an end before it would have found no sender to drop.
        if let Some(ended) = self.ended.get() {
            // It may have answered before that.
            return receiver.try_recv().unwrap_or_else(|_| crashed(ended));
        }
        let outcome = receiver.await;
        waiting.answered = true;
        outcome.unwrap_or_else(|_| crashed(self.ended.get().map_or("ended", String::as_str)))
    }

    pub(super) async fn send(&self, frame: Vec<u8>) {
        // A broken socket is noticed by the reader, which knows more about it.
        let _ = self.writer.lock().await.send(frame).await;
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
    pub(super) async fn end(&self, reason: String) {
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
            // Whatever else holds its end of the socket, nothing more is read.
            guest.hang_up();
            // While the guest is locked: the reader sees the stream end as soon as it is killed, and would tell a reason of its own.
            // And before the senders are dropped: whoever waits reads it then.
            self.ended.set(ended).is_ok()
        });
        if ended_now {
            self.pending().clear();
        }
    }
}

/// The socket's writing end.
#[derive(Debug)]
struct Writer {
    socket: OwnedWriteHalf,
    /// The frame of a sender that was dropped in the middle of it. The other side waits for the rest, and would take what comes next
    /// for it.
    begun: Cursor<Vec<u8>>,
}

impl Writer {
    /// Sends a frame, after what is left of the one before it.
    async fn send(&mut self, frame: Vec<u8>) -> io::Result<()> {
        self.socket.write_all_buf(&mut self.begun).await?;
        self.begun = Cursor::new(frame);
        self.socket.write_all_buf(&mut self.begun).await?;
        self.begun = Cursor::default();
        Ok(())
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
            // Whoever drops a call outside of any runtime has ended the one that the plugin lives with.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { connection.send(cancel).await });
            }
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

fn crashed(ended: &str) -> Outcome {
    failed(CRASH_ERROR, format!("the plugin's process {ended}"))
}

/// Runs blocking code where the runtime allows it.
pub(super) fn blocking<T>(body: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(body),
        _ => body(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{OpenOptions, Permissions};
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use qtasks_plugin_api::Init;

    use super::super::guest::{Purpose, Start};
    use super::super::sandbox::Limits;
    use super::*;

    /// A start that says nothing of interest.
    fn start() -> Start {
        let limits =
            Limits { memory_bytes: 0, cpu_seconds: None, descriptors: 0, writable: None, network: true, processes: true };
        let init = Init {
            plugin: "any".to_owned(),
            data_dir: std::path::PathBuf::new(),
            config: Box::default(),
            host_version: String::new(),
        };
        Start { nonce: String::new(), purpose: Purpose::Serve, manifest: String::new(), init, limits, max_level: 0 }
    }

    /// A process that is this script in `place`.
    fn connected(place: &std::path::Path, script: &str) -> Arc<Connection> {
        let program = place.join("guest");
        std::fs::write(&program, script).expect("our own file");
        std::fs::set_permissions(&program, Permissions::from_mode(0o700)).expect("our own file");
        let guest = Guest::spawn(&program, &start()).expect("a process");
        Connection::new(guest, "any").expect("a socket")
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_process_left_behind_keeps_nothing_open_once_it_has_ended() {
        let place = tempfile::tempdir().expect("a directory");
        let fifo = |name| {
            let path = place.path().join(name);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
            OpenOptions::new().read(true).write(true).open(&path).expect("our own FIFO")
        };
        let (mut ready, held) = (fifo("ready"), fifo("held"));
        // What is left behind has a group of its own, and all three of the process's streams, until the FIFO is let go.
        let script = "#!/bin/sh\nexec 3<&0\nsetsid sh -c 'echo > \"$0/ready\"; exec cat \"$0/held\"' \"${0%/*}\" &\n";
        let connection = connected(place.path(), script);
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        ready.read_exact(&mut [0]).expect("it is there");
        assert_eq!(alive(), 3, "one for the socket, one for each of two streams");
        connection.end("was killed".to_owned()).await;
        let begun = Instant::now();
        while alive() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the clock stands still for what is waited for here");
            tokio::time::sleep(LAST_WORDS).await;
        }
        drop(held);
    }

    #[tokio::test]
    async fn an_answer_that_came_before_the_end_counts() {
        let place = tempfile::tempdir().expect("a directory");
        let go_on = place.path().join("go_on");
        rustix::fs::mknodat(rustix::fs::CWD, &go_on, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
        let answer = frame::encode_outcome(7, &Outcome::Pass);
        std::fs::write(place.path().join("answer"), answer).expect("our own file");
        let script = "#!/bin/sh\nhere=\"${0%/*}\"\nread line < \"$here/go_on\"\nexec cat \"$here/answer\" >&0\n";
        let connection = connected(place.path(), script);
        // The caller does not come on until it has all ended.
        let held = connection.writer.lock().await;
        let caller = Arc::clone(&connection);
        let call = tokio::spawn(async move { caller.call(7, Vec::new()).await });
        while !connection.pending().contains_key(&7) {
            tokio::task::yield_now().await;
        }
        std::fs::write(&go_on, "now\n").expect("it reads");
        while connection.ended().is_none() {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert!(matches!(call.await.expect("it ends"), Outcome::Pass), "it answered");
    }

    #[tokio::test]
    async fn a_sender_that_is_dropped_leaves_no_half_of_a_frame() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().expect("two sockets");
        let (_reader, socket) = ours.into_split();
        socket.writable().await.expect("there is room");
        let mut writer = Writer { socket, begun: Cursor::default() };
        let first = frame::encode(Kind::Call, 1, &[&[b'x'; 8 << 20]]);
        tokio::select! {
            biased;
            _ = writer.send(first.clone()) => panic!("no socket holds that much"),
            () = std::future::ready(()) => {}
        }
        let second = frame::encode(Kind::Cancel, 1, &[]);
        let (mut both, mut came) = (first, Vec::new());
        both.extend_from_slice(&second);
        let sending = async {
            writer.send(second).await.expect("somebody reads");
            drop(writer);
        };
        let (read, ()) = tokio::join!(theirs.read_to_end(&mut came), sending);
        assert_eq!(read.expect("it can be read"), both.len());
        assert!(came == both);
    }
}
