//! Tells when something in the plugin directory has changed, and has been quiet since.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// What is being written is mostly done when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(300);
/// What never becomes quiet is looked at all the same, this long after the first change.
const LONGEST: Duration = Duration::from_secs(10);
/// How often a directory that is gone is looked for.
const MISSING: Duration = Duration::from_secs(1);

/// A watched plugin directory.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    path: PathBuf,
    /// No pipe, but a descriptor that is read as one is: the one way that tokio has to wait for a descriptor without `unsafe`.
    events: pipe::Receiver,
    /// `None`: there is no directory at the path now.
    watch: Option<i32>,
}

impl DirectoryWatch {
    /// Watches the directory. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// When the system gives no watch, or there is no directory.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut watch = Self { path: path.to_owned(), events: pipe::Receiver::from_owned_fd_unchecked(events)?, watch: None };
        watch.watch = Some(watch.add()?);
        Ok(watch)
    }

    fn add(&self) -> Result<i32, Errno> {
        let written = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
        let named = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.events, &self.path, written | named | itself)
    }

    /// Waits until something has changed and then nothing more for a moment. A future that is
    /// dropped may have seen a change already: whoever drops it looks at the directory then, or never again.
    pub(crate) async fn changed(&mut self) {
        self.event().await;
        let first = Instant::now();
        while first.elapsed() < LONGEST && tokio::time::timeout(QUIET, self.event()).await.is_ok() {}
    }

    /// Waits for one change that may be of interest.
    async fn event(&mut self) {
        loop {
            if self.watch.is_none() {
                tokio::time::sleep(MISSING).await;
                let Ok(found) = self.add() else { continue };
                self.watch = Some(found);
                return;
            }
            let seen = match self.events.readable().await.and_then(|()| Ok(read(self.events.as_fd())?)) {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::error!("the plugin directory is watched no longer: {error}");
                    return std::future::pending().await;
                }
            };
            // No event fits into a byte, so this takes none; where there is none, tokio learns that it has to wait.
            let _ = self.events.try_read(&mut [0]);
            if seen.directory_gone {
                // The old watch follows a directory that was moved away; one that was removed has none any more.
                if let Some(old) = self.watch.take() {
                    let _ = inotify::remove_watch(&self.events, old);
                }
                self.watch = self.add().ok();
                return;
            }
            if seen.of_interest {
                return;
            }
        }
    }
}

/// What a batch of events says.
#[derive(Default)]
struct Seen {
    of_interest: bool,
    directory_gone: bool,
}

/// Takes all events that are there.
fn read(events: BorrowedFd<'_>) -> Result<Seen, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(events, &mut buffer);
    let mut seen = Seen::default();
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::AGAIN) => return Ok(seen),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        let flags = event.events();
        seen.directory_gone |= flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF);
        // Too many at once for the kernel: any of them may have been one.
        seen.of_interest |= flags.contains(ReadFlags::QUEUE_OVERFLOW) || event.file_name().is_some_and(is_of_interest);
    }
}

/// Libraries, their signatures, and lock files; not what an editor or `install` writes to before it is renamed, and not a database
/// that happens to lie here.
fn is_of_interest(name: &CStr) -> bool {
    let name = name.to_bytes();
    !name.starts_with(b".") && [b".so".as_slice(), b".minisig", b".lock"].iter().any(|ending| name.ends_with(ending))
}
