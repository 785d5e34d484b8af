//! Names the plugin that ends the host: on standard error, and in the state directory for the next start.
//!
//! Everything here runs in a dying process: only `write(2)` on descriptors opened before, on texts made before.
#![expect(unsafe_code, reason = "signal handlers and atexit have no safe form")]

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Once, OnceLock};

use super::culprit::{self, Culprit};

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// Exit code of a host that a plugin ended by `exit()`: something outside of the host's control failed (EX_SOFTWARE of sysexits.h).
const EXIT_CODE: libc::c_int = 70;

/// The file of records, opened before anything goes wrong.
static RECORDS: AtomicI32 = AtomicI32::new(-1);
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
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(culprit::file(state_dir))?;
    // Open for the rest of the process; an earlier one stays open too, since a handler may be using it.
    RECORDS.store(file.into_raw_fd(), Ordering::Relaxed);
    INSTALLED.call_once(install);
    Ok(())
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

extern "C" fn on_fatal_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if let Some(culprit) = culprit::on_this_thread() {
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
        // A fault happens again when this returns; a signal that somebody sent has to be sent again.
        // SAFETY: raise is async-signal-safe.
        unsafe { libc::raise(signal) };
    }
}

extern "C" fn on_exit() {
    if let Some(culprit) = culprit::on_this_thread() {
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
    let descriptor = RECORDS.load(Ordering::Relaxed);
    write(descriptor, &[culprit.record.as_bytes(), b",\"cause\":\""]);
    write(descriptor, cause);
    write(descriptor, &[b"\"}\n"]);
}

fn tell(parts: &[&[u8]]) {
    write(libc::STDERR_FILENO, parts);
}

fn write(descriptor: libc::c_int, parts: &[&[u8]]) {
    for part in parts {
        // SAFETY: the pointer and length are a slice's; a bad descriptor is only an error. Nobody is left to tell of one.
        let _ = unsafe { libc::write(descriptor, part.as_ptr().cast(), part.len()) };
    }
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
