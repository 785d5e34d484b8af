//! Reads a library while the one before it is loaded: reading and hashing take longer than loading, and need nothing of it.

use std::sync::mpsc::sync_channel;
use std::thread;

use super::discover::{Candidate, FileError, Found};
use super::inspected::Inspected;
use super::load_error::LoadErrorKind;

/// What was found, and read.
pub(super) struct ReadLibrary {
    pub(super) candidate: Candidate,
    pub(super) cautions: Vec<FileError>,
    pub(super) inspected: Result<Inspected, LoadErrorKind>,
}

impl From<Found> for ReadLibrary {
    fn from(mut found: Found) -> Self {
        let (candidate, cautions) = (found.candidate.clone(), std::mem::take(&mut found.cautions));
        Self { candidate, cautions, inspected: Inspected::open(found) }
    }
}

/// Gives each of `found` to `then`, in their order, on this thread; they are opened and read on another one, one ahead.
pub(super) fn each(found: impl Iterator<Item = Found> + Send, mut then: impl FnMut(ReadLibrary)) {
    let mut found = found.fuse();
    thread::scope(|scope| {
        // Nothing waits in between: whoever has read one holds it until it is asked for.
        let (sender, receiver) = sync_channel(0);
        let reading = || {
            for found in &mut found {
                if sender.send(ReadLibrary::from(found)).is_err() {
                    break;
                }
            }
            drop(sender);
        };
        let thread = thread::Builder::new().name("qtasks-read".to_owned()).spawn_scoped(scope, reading);
        // Where no thread was to be had, nothing was read, and nobody sends.
        receiver.into_iter().for_each(&mut then);
        if let Ok(thread) = thread
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    });
    found.map(ReadLibrary::from).for_each(then);
}
