//! Starts a guest, hands it its library, and ends it with everything it started.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

use super::ended::describe;
use super::frame::{self, Frame, FrameError, Kind};
use crate::plugin::verdicts::this_host;
use crate::shown::shown;

use super::guest::{GUEST_ARGUMENT, Purpose, Report, Start};

/// A running guest. Dropping it kills its whole process group.
#[derive(Debug)]
pub(crate) struct Guest {
    child: Child,
    socket: Arc<UnixStream>,
    nonce: String,
    /// For messages.
    program: String,
    number: Arc<Number>,
    /// How many bytes it printed before it had its library, which are not the library's.
    printed_before: u64,
}

/// A guest's number, until its status is taken: from then on it may be another process's.
#[derive(Debug)]
struct Number(Mutex<Option<Pid>>);

impl Number {
    fn kill(&self) {
        kill(*self.lock());
    }

    /// Before its status is taken.
    fn kill_at_last(&self) {
        kill(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a guest with what is left of its group, while its number is locked, and so still its own.
fn kill(guest: Option<Pid>) {
    if let Some(pid) = guest {
        // Gone already is as good as killed.
        let _ = kill_process_group(pid, Signal::KILL);
        // By its own number too: it may have left its group.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills a guest whatever the thread that has it waits for.
#[derive(Debug)]
pub(super) struct Killer {
    number: Arc<Number>,
    socket: Arc<UnixStream>,
}

impl Killer {
    pub(super) fn kill(&self) {
        self.number.kill();
        hang_up(&self.socket);
    }
}

/// A process that left the group may hold the other end: whoever reads here waits for nobody any more.
fn hang_up(socket: &UnixStream) {
    // Closed already is as good.
    let _ = socket.shutdown(Shutdown::Both);
}

/// Why a guest did not come up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The program cannot be started, or is no guest of this version. It was not given the library.
    #[error("the guest program {program} cannot be used: {reason}; name the qtasks-host binary with `guest_program`")]
    Spawn {
        /// The program.
        program: String,
        /// The reason.
        reason: String,
    },
    /// It ended before it reported, or badly after it.
    #[error("its process {ended}{output}")]
    Died {
        /// How it ended.
        ended: String,
        /// What it printed last, as words.
        output: String,
    },
    /// It did not report in time.
    #[error("its process did not report within {} s and was killed", .0.as_secs_f64())]
    Deadline(Duration),
    /// It reported that all is well, and did not end in time.
    #[error("its process did not end within {} s after it reported and was killed", .0.as_secs_f64())]
    NoEnd(Duration),
    /// It reported nonsense.
    #[error("its process reported nonsense: {0}")]
    Nonsense(String),
    /// It reported that it cannot load the plugin.
    #[error("{reason}")]
    Refused {
        /// A stable code.
        code: String,
        /// Why.
        reason: String,
    },
    /// The machine refused something.
    #[error("the host could not prepare the process: {0}")]
    Host(#[from] io::Error),
}

impl Guest {
    /// Starts a guest, which waits for its library and has the rights of any process until it gets that.
    ///
    /// # Errors
    ///
    /// [`GuestError`] when it cannot be started.
    pub(crate) fn spawn(program: &Path, start: &Start) -> Result<Self, GuestError> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program);
        command
            // For whoever looks at the machine's processes; `/proc/self/exe` would say nothing.
            .arg0("qtasks-host")
            .args([GUEST_ARGUMENT, &start.init.plugin])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        for name in ["PATH", "HOME", "LANG", "TZ"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let child = command
            .spawn()
            .map_err(|error| GuestError::Spawn { program: shown(program).to_string(), reason: error.to_string() })?;
        if start.purpose == Purpose::Serve {
            // Nobody reads what it prints before it has reported; whoever prints more than there is room for waits.
            const ROOM: usize = 1 << 20;
            let _ = child.stdout.as_ref().map(|pipe| rustix::pipe::fcntl_setpipe_size(pipe, ROOM));
            let _ = child.stderr.as_ref().map(|pipe| rustix::pipe::fcntl_setpipe_size(pipe, ROOM));
        }
        // The command keeps the guest's end of the socket open until it is dropped, and with it the end of the stream hidden.
        drop(command);
        let number = Number(Mutex::new(i32::try_from(child.id()).ok().and_then(Pid::from_raw)));
        let program = shown(program).to_string();
        Ok(Self {
            child,
            socket: Arc::new(ours),
            nonce: start.nonce.clone(),
            program,
            number: Arc::new(number),
            printed_before: 0,
        })
    }

    /// Waits until it asks for its library, and hands it the one behind `library`, which it loads at once.
    ///
    /// # Errors
    ///
    /// [`GuestError::Spawn`] when it is no guest of this version: nothing of the library has run then.
    pub(crate) fn hand_over(&mut self, library: BorrowedFd<'_>, start: &Start, deadline: Duration) -> Result<(), GuestError> {
        if let Err(reason) = self.hello(deadline) {
            self.kill();
            return Err(GuestError::Spawn { program: self.program.clone(), reason });
        }
        self.printed_before = self.in_its_pipes();
        let json = serde_json::to_vec(start).map_err(io::Error::from)?;
        let bytes = frame::encode(Kind::Start, 0, &[&json]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [library];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent =
            sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
        io::Write::write_all(&mut &*self.socket, &bytes[sent..])?;
        Ok(())
    }

    /// Waits for its first words; gives what is wrong with them.
    fn hello(&mut self, deadline: Duration) -> Result<(), String> {
        let until = Instant::now() + deadline;
        let found = match self.next_frame(until) {
            Ok(Frame { kind: Kind::Hello, payload, .. }) => payload,
            Err(FrameError::Stream(error)) if is_late(&error) => {
                return Err(format!("it did not ask for its library within {} s", deadline.as_secs_f64()));
            }
            Err(FrameError::Ended | FrameError::Stream(_)) => {
                let ended = self.wait(until).map_or_else(|| "closed its standard input".to_owned(), describe);
                return Err(format!("it {ended} before it asked for its library{}", self.last_words()));
            }
            _ => return Err("it wrote something else than the first words of a guest".to_owned()),
        };
        let (found, expected) = (String::from_utf8_lossy(&found), this_host());
        let excerpt = || found.chars().take(80).collect::<String>();
        if found == expected { Ok(()) } else { Err(format!("it is {:?}, this host is {expected}", excerpt())) }
    }

    /// Waits for the guest's report; what it logs before goes to `logged`.
    ///
    /// # Errors
    ///
    /// [`GuestError`]; the guest is dead by then.
    pub(crate) fn report(&mut self, deadline: Duration, mut logged: impl FnMut(&[u8])) -> Result<Report, GuestError> {
        let until = Instant::now() + deadline;
        let frame = loop {
            match self.next_frame(until) {
                Ok(frame) if frame.kind == Kind::Report => break frame,
                Ok(frame) if frame.kind == Kind::Log => logged(&frame.payload),
                Ok(_) => {}
                Err(FrameError::Stream(error)) if is_late(&error) => {
                    self.kill();
                    return Err(GuestError::Deadline(deadline));
                }
                Err(FrameError::Ended | FrameError::Stream(_)) => return Err(self.died(until, deadline)),
                Err(error) => {
                    self.kill();
                    return Err(GuestError::Nonsense(error.to_string()));
                }
            }
        };
        let report: Report = serde_json::from_slice(&frame.payload).map_err(|error| {
            self.kill();
            GuestError::Nonsense(error.to_string())
        })?;
        // Only the program that was started knows the nonce: a constructor that writes to the socket does not.
        if report.nonce != self.nonce {
            self.kill();
            return Err(GuestError::Nonsense("a report without the nonce of this start".to_owned()));
        }
        match report.refused {
            Some((code, reason)) => Err(GuestError::Refused { code, reason }),
            None => Ok(report),
        }
    }

    fn next_frame(&mut self, until: Instant) -> Result<Frame, FrameError> {
        frame::read(&mut Until { socket: &self.socket, until })
    }

    /// How it ended, once its socket is closed. A guest that closed the socket and lives on is killed at the deadline.
    fn died(&mut self, until: Instant, deadline: Duration) -> GuestError {
        match self.wait(until) {
            Some(status) => {
                GuestError::Died { ended: format!("{} before it reported", describe(status)), output: self.last_words() }
            }
            None => GuestError::Deadline(deadline),
        }
    }

    /// Waits until it has ended; at `until` it is killed, and nothing is told.
    pub(crate) fn wait(&mut self, until: Instant) -> Option<ExitStatus> {
        let pid = self.pid()?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        while !has_ended(pid, pidfd.as_ref().ok(), until) {
            if Instant::now() >= until {
                self.kill();
                return None;
            }
        }
        self.reap()
    }

    /// Kills what is left of its group and takes its status.
    fn reap(&mut self) -> Option<ExitStatus> {
        self.number.kill_at_last();
        self.child.wait().ok()
    }

    /// What kills it from another thread.
    pub(super) fn killer(&self) -> Killer {
        Killer { number: Arc::clone(&self.number), socket: Arc::clone(&self.socket) }
    }

    /// The end of what it printed, as words for a message. It has ended, so nothing more comes.
    fn last_words(&mut self) -> String {
        const KEPT: u64 = 64 << 10;
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            // A pipe that somebody else still holds must not be waited for.
            let _ = rustix::io::ioctl_fionbio(&stderr, true);
            let _ = stderr.take(KEPT).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        // Rust's advice about backtraces comes last, and says nothing.
        let telling = |line: &&str| !line.trim().is_empty() && !line.starts_with("note: ");
        let line = text.lines().rev().find(telling).map(|line| line.chars().take(200).collect::<String>());
        line.map_or_else(String::new, |line| format!("; its last words: {}", line.escape_debug()))
    }

    /// How many bytes it printed since it was handed its library, as long as nobody reads them.
    pub(crate) fn printed(&self) -> u64 {
        self.in_its_pipes().saturating_sub(self.printed_before)
    }

    fn in_its_pipes(&self) -> u64 {
        let pipes = [self.child.stdout.as_ref().map(AsFd::as_fd), self.child.stderr.as_ref().map(AsFd::as_fd)];
        pipes.into_iter().flatten().map(|pipe| rustix::io::ioctl_fionread(pipe).unwrap_or(0)).sum()
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Kills it with its group, and takes its status so that no zombie stays.
    pub(crate) fn kill(&mut self) {
        self.reap();
    }

    /// Lets nobody wait for its socket any more.
    pub(super) fn hang_up(&self) {
        hang_up(&self.socket);
    }

    /// The socket, for a guest that goes on to serve.
    pub(crate) fn socket(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// What it prints.
    pub(crate) fn take_output(&mut self) -> (Option<std::process::ChildStdout>, Option<std::process::ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }
}

/// Whether a child has ended, whose status is left to be taken. Without a descriptor for it, which a sandbox of the host's own may
/// refuse, it is asked for again and again; else one is told, at `until` at the latest.
fn has_ended(pid: Pid, pidfd: Option<&OwnedFd>, until: Instant) -> bool {
    const AGAIN: Duration = Duration::from_millis(1);
    let left = until.saturating_duration_since(Instant::now());
    if let Some(pidfd) = pidfd {
        let mut waited = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
        // A signal to this thread says nothing about the child.
        return rustix::event::poll(&mut waited, rustix::event::Timespec::try_from(left).ok().as_ref()) == Ok(1);
    }
    std::thread::sleep(AGAIN.min(left));
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Nobody else takes its status: without one to be had it has ended.
    !matches!(waitid(WaitId::Pid(pid), ended), Ok(None))
}

/// A socket that is read until a moment, however small the pieces are in which something comes.
struct Until<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        let mut socket = self.socket;
        socket.read(buffer)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a read came to its time-out.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A nonce for one start.
pub(crate) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_child_is_noticed_without_a_descriptor_for_it_and_its_status_is_left() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a child");
        let pid = Pid::from_child(&child);
        assert!(!has_ended(pid, None, Instant::now()), "it waits for its input");
        drop(child.stdin.take());
        let until = Instant::now() + Duration::from_secs(60);
        while !has_ended(pid, None, until) {
            assert!(Instant::now() < until, "it has nothing to wait for");
        }
        assert!(child.wait().expect("its status is there").success());
    }
}
