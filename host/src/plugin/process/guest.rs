//! The guest's side: gives up what it does not need, loads the one library it was handed, reports, and serves calls.

use std::io::{self, BufReader, IoSliceMut, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use qtasks_plugin_api::abi::loaded::{Instance, Layout};
use qtasks_plugin_api::manifest::Mode;
use qtasks_plugin_api::{HostServices, Init, Level, LogLine};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, kill_process_group, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, FrameError, Kind};
use super::sandbox::{self, Limits, SandboxLevel};
use super::surroundings::Surroundings;
use crate::plugin::library;
use crate::plugin::outcome::checked;
use crate::plugin::verdicts::this_host;

/// The argument with which the host's executable becomes a guest. The plugin's name follows, for whoever looks at the processes.
pub const GUEST_ARGUMENT: &str = "plugin-guest";

/// What a guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// Load, compare, report, end.
    Probe,
    /// Load, create, start, report, and serve calls.
    Serve,
}

/// How a guest begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) nonce: String,
    pub(crate) purpose: Purpose,
    /// The manifest as it lies in the file.
    pub(crate) manifest: String,
    pub(crate) init: Init,
    pub(crate) limits: Limits,
    pub(crate) max_level: u32,
}

/// What a guest says once it is up, or why it is not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) nonce: String,
    pub(crate) sandbox: SandboxLevel,
    /// What loading changed in the process: `threads: 1 → 2`.
    pub(crate) side_effects: Vec<String>,
    /// A stable code and the reason.
    pub(crate) refused: Option<(String, String)>,
}

/// Whether this program has said that it runs as a guest. One that has not would run its own `main` instead.
static RUNS_IF_ASKED: AtomicBool = AtomicBool::new(false);

/// Notes that this program runs as a guest when it is asked to.
pub(crate) fn runs_if_asked() {
    RUNS_IF_ASKED.store(true, Ordering::Relaxed);
}

/// This program, if it is a guest when it is asked to be. As the one that runs: another may lie at its path by now.
pub(crate) fn own_program() -> Option<PathBuf> {
    RUNS_IF_ASKED.load(Ordering::Relaxed).then(|| "/proc/self/exe".into())
}

/// The guest, from begin to end.
pub(crate) fn run() -> ! {
    match serve() {
        Ok(()) => std::process::exit(0),
        Err(reason) => {
            // Nobody may be left to read it.
            let _ = writeln!(io::stderr(), "plugin guest: {reason}");
            std::process::exit(1)
        }
    }
}

fn serve() -> Result<(), String> {
    let host = getppid();
    // For whoever looks at the machine's processes: of a program that is started as `/proc/self/exe` the name would be `exe`.
    let _ = rustix::thread::set_name(c"plugin-guest");
    close_what_was_inherited();
    let mut socket = take_socket().map_err(|error| format!("no socket on standard input: {error}"))?;
    // Version and ABI: a verdict of another version would say nothing about this one.
    socket.write_all(&frame::encode(Kind::Hello, 0, &[this_host().as_bytes()])).map_err(|error| format!("no host: {error}"))?;
    let (start, library) = receive_start(&mut socket)?;
    let writer = Arc::new(Writer(Mutex::new(socket.try_clone().map_err(|error| error.to_string())?)));
    let sandbox = sandbox::enter(&start.limits)?;
    // Not before: the sandbox holds for this thread and those that it begins later, and a library may make any thread run its code.
    match start.purpose {
        Purpose::Probe => end_with_the_host(host),
        Purpose::Serve => watch_for_the_host(&socket),
    }
    .map_err(|error| format!("cannot watch the host: {error}"))?;
    let mut report = Report { nonce: start.nonce.clone(), sandbox, side_effects: Vec::new(), refused: None };
    let loaded = load(&start, &library, &writer, &mut report.side_effects);
    let instance = match loaded {
        Ok(instance) => instance,
        Err(refused) => {
            report.refused = Some(refused);
            None
        }
    };
    let json = serde_json::to_vec(&report).map_err(|error| error.to_string())?;
    writer.send(&frame::encode(Kind::Report, 0, &[&json]));
    match instance {
        // A frame of the usual size comes with one read.
        Some(instance) => answer_calls(&mut BufReader::new(socket), instance, &writer),
        // Ends as a program ends, static destructors and all: a crash in them is the host's to see.
        None => Ok(()),
    }
}

/// Closes every descriptor but the standard streams: what the host, or C code in it, opened without close-on-exec is not this plugin's.
fn close_what_was_inherited() {
    #[expect(unsafe_code, reason = "close_range has no safe form")]
    // SAFETY: this is the first thing that this process does; whatever is open from 3 on, nobody in it has it. A kernel without the call
    // leaves them open, as it would be without this.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Moves the socket away from standard input, where a plugin would find it.
fn take_socket() -> io::Result<UnixStream> {
    let moved = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 100)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(moved.into())
}

/// The first frame, with the library's descriptor beside it.
fn receive_start(socket: &mut UnixStream) -> Result<(Start, OwnedFd), String> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut prefix = [0; 4];
    let received = recvmsg(&*socket, &mut [IoSliceMut::new(&mut prefix)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(|error| format!("no first frame: {error}"))?;
    if received.bytes != prefix.len() {
        return Err("the first frame is cut short".to_owned());
    }
    let library = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut body = vec![0; frame::checked_length(prefix).map_err(|error| error.to_string())?];
    socket.read_exact(&mut body).map_err(|error| error.to_string())?;
    let frame = frame::decode(body).map_err(|error| error.to_string())?;
    if frame.kind != Kind::Start {
        return Err(format!("the first frame is {:?}, expected Start", frame.kind));
    }
    let start = serde_json::from_slice(&frame.payload).map_err(|error| error.to_string())?;
    library.map(|library| (start, library)).ok_or_else(|| "no library came with the first frame".to_owned())
}

/// Has the kernel end this process when the thread of the host that started it ends. That thread waits for a probe to its end, and a
/// probe starts no processes; so this costs no thread, whose beginning and end take a third of a probe's time.
fn end_with_the_host(host: Option<Pid>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It was the parent when it sent the library. If it is no more, it ended before the kernel was told.
    if getppid() == host { Ok(()) } else { Err(io::Error::other("it is gone")) }
}

/// Ends this process and all it started when the host is gone, whatever the plugin is doing. Waits until the watch has begun: a
/// thread's first steps take the dynamic linker's lock, which a constructor that never ends would hold for ever.
fn watch_for_the_host(socket: &UnixStream) -> io::Result<()> {
    let socket = socket.try_clone()?;
    let (begun, begins) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("host-watch".to_owned()).spawn(move || {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut watched = [PollFd::new(&socket, PollFlags::RDHUP)];
        // There is room for it, and somebody who waits.
        let _ = begun.send(());
        while poll(&mut watched, None).is_err() {}
        end_with_what_it_started();
    })?;
    begins.recv().map_err(io::Error::other)
}

/// Ends this process and all it started.
fn end_with_what_it_started() {
    // The group that the host started it in, and not the one that a plugin may have moved it to.
    let me = getpid();
    let _ = kill_process_group(me, Signal::KILL);
    let _ = kill_process(me, Signal::KILL);
}

fn load(
    start: &Start,
    library: &OwnedFd,
    writer: &Arc<Writer>,
    side_effects: &mut Vec<String>,
) -> Result<Option<Instance>, (String, String)> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", library.as_raw_fd()));
    let before = Surroundings::now();
    #[expect(unsafe_code, reason = "this process exists to run this library's constructors")]
    // SAFETY: what they do stays in this process, which gave up its rights; the host checked the bytes and believes no word of it.
    let opened = unsafe { library::open(&path, Layout::Compare) };
    let module = opened.map_err(|error| ("open".to_owned(), error.to_string()))?;
    *side_effects = before.changes_since();
    let found = module.manifest().map_err(|error| ("manifest".to_owned(), error.to_string()))?;
    if found != start.manifest {
        let excerpt = |text: &str| text.chars().take(120).collect::<String>();
        let (found, expected) = (excerpt(found), excerpt(&start.manifest));
        return Err((
            "manifest-differs".to_owned(),
            format!("the library says when loaded: {found}; its file holds: {expected}"),
        ));
    }
    if start.purpose == Purpose::Probe {
        return Ok(None);
    }
    let services = Remote { writer: Arc::clone(writer), max_level: Level::from_number(start.max_level) };
    let instance = module.create(&start.init, services).map_err(|error| match error {
        qtasks_plugin_api::abi::loaded::CallError::Plugin(body) if body.kind == qtasks_plugin_api::CONFIG_ERROR => {
            ("config".to_owned(), body.message)
        }
        error => ("create".to_owned(), error.to_string()),
    })?;
    instance.start().map_err(|error| ("start".to_owned(), error.to_string()))?;
    Ok(Some(instance))
}

/// Serves calls until the host says stop.
fn answer_calls(socket: &mut impl Read, instance: Instance, writer: &Arc<Writer>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let instance = Arc::new(instance);
    loop {
        let Frame { kind, id, payload } = match frame::read(socket) {
            Ok(frame) => frame,
            Err(FrameError::Ended) => {
                // The host is gone. Whoever is woken first, this thread or the watch, leaves nothing behind.
                end_with_what_it_started();
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        match kind {
            Kind::Call => answer_call(&runtime, &instance, writer, id, payload)?,
            Kind::Cancel => instance.cancel(id),
            Kind::Stop => {
                let stopped = instance.stop().err().map(|error| error.to_string());
                let json = serde_json::to_vec(&stopped).map_err(|error| error.to_string())?;
                writer.send(&frame::encode(Kind::Report, id, &[&json]));
                return Ok(());
            }
            other => return Err(format!("a frame of kind {other:?}, which a host does not send")),
        }
    }
}

fn answer_call(
    runtime: &tokio::runtime::Runtime,
    instance: &Arc<Instance>,
    writer: &Arc<Writer>,
    id: u64,
    payload: Vec<u8>,
) -> Result<(), String> {
    let call = frame::decode_call(&payload).map_err(|error| error.to_string())?;
    match call.mode {
        Mode::Inline => {
            let outcome = checked(instance.call(id, call.entry, call.name, call.input));
            writer.send(&frame::encode_outcome(id, &outcome));
        }
        Mode::Blocking => {
            let (instance, writer) = (Arc::clone(instance), Arc::clone(writer));
            runtime.spawn_blocking(move || {
                // Decoded once already, so it decodes again.
                if let Ok(call) = frame::decode_call(&payload) {
                    let outcome = checked(instance.call(id, call.entry, call.name, call.input));
                    writer.send(&frame::encode_outcome(id, &outcome));
                }
            });
        }
        Mode::Async => {
            let (writer, kept) = (Arc::clone(writer), Arc::clone(instance));
            instance.call_async(id, call.entry, call.name, call.input, move |received| {
                writer.send(&frame::encode_outcome(id, &checked(received)));
                // Only now: the call needs its plugin until it has ended.
                drop(kept);
            });
        }
    }
    Ok(())
}

/// The socket's writing end. A host that is gone ends this process through the watch, so a failed write needs no telling.
struct Writer(Mutex<UnixStream>);

impl Writer {
    fn send(&self, bytes: &[u8]) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = io::Write::write_all(&mut *stream, bytes);
    }
}

/// A log line on its way to the host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoggedLine {
    pub(crate) level: u32,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) fields: String,
}

/// The host's services, as a plugin in a guest sees them.
struct Remote {
    writer: Arc<Writer>,
    max_level: Level,
}

impl HostServices for Remote {
    fn log(&self, line: LogLine<'_>) {
        let line = LoggedLine {
            level: line.level as u32,
            target: line.target.to_owned(),
            message: line.message.to_owned(),
            fields: line.fields.to_owned(),
        };
        if let Ok(json) = serde_json::to_vec(&line) {
            self.writer.send(&frame::encode(Kind::Log, 0, &[&json]));
        }
    }

    fn max_level(&self) -> Level {
        self.max_level
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
