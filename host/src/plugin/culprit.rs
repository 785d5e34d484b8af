//! Who is running on this thread, and within how many calls: so that a plugin that ends the host is named, and kept out of the next
//! start, and so that handlers that reach themselves through the host come to an end.
//!
//! A call into a plugin in this process marks its thread. When the process dies of a signal or by `exit()` while a thread is
//! marked, `fatal` writes the mark to standard error and to a file in the state directory; [`heed`] makes quarantine of it, at the next
//! start, or when somebody looks before.

mod records;

use std::cell::Cell;
use std::path::Path;

use self::records::Record;
use super::bytes::Digest;
use crate::shown::shown;

pub use self::records::heed;
pub(super) use self::records::{SAFELY, file};

/// Who runs on a thread. Lives until the process ends, since a signal may ask at any time.
#[derive(Debug)]
pub(super) struct Culprit {
    /// `plugin fallback 0.1.0 (/plugins/libfallback.so)`
    pub(super) name: String,
    /// The beginning of the record: an object without its last brace, to which the cause is added.
    pub(super) record: String,
}

/// Calls into plugins may nest this deep: a handler that fires events, by adding a task for instance, may be asked about them.
const DEEPEST: u8 = 8;

/// Where a thread is.
#[derive(Debug, Clone, Copy)]
struct Inside {
    culprit: Option<&'static Culprit>,
    depth: u8,
}

thread_local! {
    static INSIDE: Cell<Inside> = const { Cell::new(Inside { culprit: None, depth: 0 }) };
}

/// Within how many calls of plugins a thread runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depth(u8);

impl Depth {
    /// This thread's; an error, in words, when no further call may nest. An async handler begins anew, on a thread of its plugin: its
    /// deadline, and those of the calls around it, are all that bounds what it fires.
    pub(super) fn of_this_thread() -> Result<Self, String> {
        match INSIDE.get().depth {
            DEEPEST.. => Err(format!(
                "not called: {DEEPEST} calls of plugins are under way within each other here; a handler fires events that reach it again"
            )),
            depth => Ok(Self(depth)),
        }
    }
}

impl Culprit {
    /// Makes the mark of a plugin. Its memory stays until the process ends.
    pub(super) fn leak(plugin: &str, version: &str, path: &Path, digest: Digest) -> &'static Self {
        let record = Record { plugin: plugin.to_owned(), path: path.to_owned(), digest, cause: None };
        // A record of texts always has a JSON form.
        let mut record = serde_json::to_string(&record).unwrap_or_default();
        record.pop();
        Box::leak(Box::new(Self { name: format!("plugin {plugin} {version} ({})", shown(path)), record }))
    }
}

/// Runs `body` with this thread marked.
pub(super) fn inside<T>(culprit: Option<&'static Culprit>, body: impl FnOnce() -> T) -> T {
    inside_from(Depth(INSIDE.get().depth), culprit, body)
}

/// Like [`inside`], on a thread to which a call was handed from a thread at `depth`.
pub(super) fn inside_from<T>(depth: Depth, culprit: Option<&'static Culprit>, body: impl FnOnce() -> T) -> T {
    // Restored also when `body` unwinds: a guard inside of it may let a panic of the host's own through.
    struct Restore(Inside);
    impl Drop for Restore {
        fn drop(&mut self) {
            INSIDE.set(self.0);
        }
    }
    let _restore = Restore(INSIDE.replace(Inside { culprit, depth: depth.0.saturating_add(1) }));
    body()
}

/// The mark of a plugin, for as long as it is there and, once [begun](Self::begin), until it is dropped.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) culprit: Option<&'static Culprit>,
    before: Option<Inside>,
}

impl Mark {
    pub(super) fn new(culprit: Option<&'static Culprit>) -> Self {
        Self { culprit, before: None }
    }

    /// Marks this thread, on which it is about to be dropped.
    pub(super) fn begin(&mut self) {
        let inside = INSIDE.get();
        INSIDE.set(Inside { culprit: self.culprit, ..inside });
        self.before = Some(inside);
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            INSIDE.set(before);
        }
    }
}

/// Who runs on this thread. Safe to ask from a signal handler: a plain load of a thread-local without constructor.
pub(super) fn on_this_thread() -> Option<&'static Culprit> {
    INSIDE.get().culprit
}
