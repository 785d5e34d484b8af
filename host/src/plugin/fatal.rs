//! Names the plugin that ends the host: on standard error, and in the state directory for the next start.
//!
//! Everything here runs in a dying process: only `write(2)` on descriptors opened before, on texts made before.
#![expect(unsafe_code, reason = "signal handlers and atexit have no safe form")]

use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Once, OnceLock};

use super::culprit::{self, Culprit};
use crate::private_dir;
use crate::shown::shown;

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Exit code of a host that a plugin ended by `exit()`: something outside of the host's control failed (EX_SOFTWARE of sysexits.h).
const EXIT_CODE: libc::c_int = 70;

/// The file of records, opened before anything goes wrong.
static RECORDS: AtomicI32 = AtomicI32::new(-1);
/// The process that is to be named for: a child that a plugin forks has these handlers, too, and its end is no end of the host.
static HOST: AtomicI32 = AtomicI32::new(-1);
/// What was installed for each of [`SIGNALS`] before.
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS.len()] = [const { OnceLock::new() }; SIGNALS.len()];

/// From now on a plugin that ends this process is named. For a program that owns its process, such as the `qtasks-host` binary:
/// it takes over the handlers of fatal signals, and hands on to the ones that were there.
///
/// # Errors
///
/// When the file of records in `state_dir` cannot be opened; nothing is installed then.
pub fn name_culprits(state_dir: &Path) -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    private_dir::make(state_dir)?;
    let file =
        OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(culprit::SAFELY).open(culprit::file(state_dir))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is not a regular file; remove it", shown(&culprit::file(state_dir)))));
    }
    // Open for the rest of the process; an earlier one stays open too, since a handler may be using it.
    RECORDS.store(file.into_raw_fd(), Ordering::Relaxed);
    HOST.store(this_process(), Ordering::Relaxed);
    INSTALLED.call_once(install);
    Ok(())
}

/// Ends this process now, without what a process does that ends as usual: handlers, destructors of libraries, and the wait for the
/// dynamic linker before them. What is buffered is lost.
pub fn end_at_once(code: u8) -> ! {
    // SAFETY: it ends the process, and returns to nobody.
    unsafe { libc::_exit(code.into()) }
}

fn install() {
    for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: an all-zero sigaction is a valid one (default action, empty mask), completed below.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = on_fatal_signal as *const () as usize;
        // On the alternate stack that std gives each of its threads: the signal may be a stack overflow.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: both point to live sigactions, and the handler does only what a signal handler may.
        if unsafe { libc::sigaction(signal, action, previous.as_mut_ptr()) } == 0 {
            // SAFETY: the call succeeded, so it was written; all-zero was valid as well.
            let _ = before.set(unsafe { previous.assume_init() });
        }
    }
    // SAFETY: `on_exit` neither unwinds nor expects anything of the process but open descriptors.
    unsafe { libc::atexit(on_exit) };
}

fn this_process() -> libc::pid_t {
    // SAFETY: it reads nothing of this process' memory, and cannot fail.
    unsafe { libc::getpid() }
}

/// Whose code this thread runs, if it is one of the host's.
fn culprit_of_the_host() -> Option<&'static Culprit> {
    culprit::on_this_thread().filter(|_| HOST.load(Ordering::Relaxed) == this_process())
}

extern "C" fn on_fatal_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if let Some(culprit) = culprit_of_the_host() {
        let mut digits = [0; 3];
        let number = decimal(signal.unsigned_abs(), &mut digits);
        tell(&[b"qtasks-host: fatal signal ", number, b" inside ", culprit.name.as_bytes(), b"\n"]);
        record(culprit, &[b"signal ", number]);
    }
    // The next fault, or the raise below, ends in what was installed before: std's handler, or the default.
    if let Some(before) = SIGNALS.iter().position(|known| *known == signal).and_then(|index| BEFORE[index].get()) {
        // SAFETY: `before` is what sigaction gave for this signal.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let sent_by_the_kernel = unsafe { (*info).si_code } > 0;
    if !sent_by_the_kernel {
        // A fault happens again when this returns; a signal that somebody sent has to be sent again. Once more where what was there
        // before leaves the rest to the default, and to a fault that happens again, as std's handler does.
        // SAFETY: raise is async-signal-safe.
        unsafe { libc::raise(signal) };
        if is_left_to_its_default(signal) {
            // SAFETY: as above.
            unsafe { libc::raise(signal) };
        }
    }
}

fn is_left_to_its_default(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action this only asks, and `action` has room for the answer.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it was written, or is all zero, which is a valid one.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_DFL
}

extern "C" fn on_exit() {
    if let Some(culprit) = culprit_of_the_host() {
        tell(&[b"qtasks-host: exit() was called inside ", culprit.name.as_bytes(), b"\n"]);
        record(culprit, &[b"exit"]);
        // A plugin that ends the host in the middle of its tasks must not make that look like success.
        // SAFETY: ends the process at once, which is what it is about to do.
        unsafe { libc::_exit(EXIT_CODE) };
    }
}

fn record(culprit: &Culprit, cause: &[&[u8]]) {
    // Only the first signal is the plugin's: std answers a stack overflow with another one.
    static RECORDED: AtomicBool = AtomicBool::new(false);
    if RECORDED.swap(true, Ordering::Relaxed) {
        return;
    }
    // In one write, and on a line of its own whatever stands before it.
    let [first, second] = [cause.first(), cause.get(1)].map(|part| part.copied().unwrap_or_default());
    write(RECORDS.load(Ordering::Relaxed), &[b"\n", culprit.record.as_bytes(), b",\"cause\":\"", first, second, b"\"}\n"]);
}

fn tell(parts: &[&[u8]]) {
    write(libc::STDERR_FILENO, parts);
}

fn write(descriptor: libc::c_int, parts: &[&[u8]]) {
    const MOST: usize = 8;
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST];
    for (vector, part) in vectors.iter_mut().zip(parts) {
        *vector = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    }
    // SAFETY: pointers and lengths are those of slices, which writev only reads; those beyond are empty. A bad descriptor is only an
    // error, and nobody is left to tell of one.
    let _ = unsafe { libc::writev(descriptor, vectors.as_ptr(), MOST as libc::c_int) };
}

/// A number below 1000 as text, without allocation.
fn decimal(number: u32, digits: &mut [u8; 3]) -> &[u8] {
    let mut rest = number % 1000;
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 || start == 0 {
            return &digits[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn signal_numbers_become_text() {
        for number in [0, 6, 11, 64, 128] {
            assert_eq!(decimal(number, &mut [0; 3]), number.to_string().as_bytes());
        }
    }
}
