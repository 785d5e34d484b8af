//! What a library may change in its process by being loaded, and should not.
#![expect(unsafe_code, reason = "sigaction and setlocale have no safe form that only asks")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};
use std::io::Read as _;
use std::mem::MaybeUninit;

use super::ended::signal_name;
use crate::shown::shown;

/// Longest change that is told with both of its values.
const MOST_TOLD: usize = 120;

/// The state of this process that all code in it shares.
pub(super) struct Surroundings {
    values: BTreeMap<&'static str, String>,
    /// The address of what handles each signal; 0 is the default, 1 is to ignore it (`signal(7)`).
    handlers: BTreeMap<c_int, usize>,
}

impl Surroundings {
    /// As they are now.
    pub(super) fn now() -> Self {
        let status = about_this_process("status");
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        let entries = |path| std::fs::read_dir(path).map_or(0, Iterator::count).to_string();
        let environment: BTreeMap<_, _> = std::env::vars_os().collect();
        let values = BTreeMap::from([
            ("threads", entries("/proc/self/task")),
            ("descriptors", entries("/proc/self/fd")),
            ("blocked signals", line("SigBlk:")),
            ("umask", line("Umask:")),
            (
                "working directory",
                std::env::current_dir().map_or_else(|error| error.to_string(), |path| shown(&path).to_string()),
            ),
            ("environment", format!("{environment:?}")),
            ("limits", about_this_process("limits")),
            ("locale", locale()),
            ("personality", about_this_process("personality").trim().to_owned()),
            (
                "priority",
                rustix::process::getpriority_process(None).map_or_else(|error| error.to_string(), |nice| nice.to_string()),
            ),
        ]);
        Self { values, handlers: handlers() }
    }

    /// What is different now, one text a change.
    pub(super) fn changes_since(&self) -> Vec<String> {
        let after = Self::now();
        let changed = self.values.iter().filter_map(|(name, before)| match after.values.get(name) {
            Some(after) if after == before => None,
            Some(after) if before.len() + after.len() < MOST_TOLD => Some(format!("{name}: {before} → {after}")),
            _ => Some(format!("{name} changed")),
        });
        let handled = after.handlers.iter().filter(|(signal, handler)| self.handlers.get(signal) != Some(handler));
        changed.chain(handled.map(|(signal, handler)| told(*signal, *handler))).collect()
    }
}

fn told(signal: c_int, handler: usize) -> String {
    let how = match handler {
        libc::SIG_DFL => "is left to its default",
        libc::SIG_IGN => "is ignored",
        _ => "has another handler",
    };
    format!("signal {signal} ({}) {how}", signal_name(signal))
}

/// What handles each signal of this process.
fn handlers() -> BTreeMap<c_int, usize> {
    let handler = |signal| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: without a new action this only asks, and `action` has room for the answer; an all-zero sigaction is a valid one.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: it was written, or is all zero.
        (asked == 0).then(|| (signal, unsafe { action.assume_init() }.sa_sigaction))
    };
    (1..=libc::SIGRTMAX()).filter_map(handler).collect()
}

/// The locale of C code, all categories of it.
fn locale() -> String {
    // SAFETY: without a name this only asks. The text stays until the next call that sets a locale; nobody else in a guest does so
    // but the library, and it is being loaded on this thread.
    let asked = unsafe { libc::setlocale(libc::LC_ALL, std::ptr::null()) };
    if asked.is_null() {
        return String::new();
    }
    // SAFETY: it is not null, so it is a text that ends in a zero.
    unsafe { CStr::from_ptr(asked) }.to_string_lossy().into_owned()
}

/// A file of the kernel's about this process, in one read where that is enough; it makes the file anew for each.
fn about_this_process(name: &str) -> String {
    let mut text = String::with_capacity(4096);
    let read = std::fs::File::open(format!("/proc/self/{name}")).and_then(|mut file| file.read_to_string(&mut text));
    if read.is_err() {
        text.clear();
    }
    text
}
