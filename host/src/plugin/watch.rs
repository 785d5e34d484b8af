//! Tells when something in the plugin directory has changed, and has been quiet since.
//!
//! The system tells of what happens in a directory. It does not tell that the path leads to another directory from now on, as it does
//! when a symbolic link on the way is swapped, or something is mounted there. So once a second it is looked where the path leads to:
//! one `stat`, which sees a swap at any place of the way, where watches on every directory and link of it would be many, and would
//! have to be moved at every swap. A lock file that lies elsewhere is looked at in the same way.

use std::ffi::CStr;
use std::fs::{Metadata, metadata};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

/// What is being written is mostly done when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(300);
/// What never becomes quiet is looked at all the same, this long after the first change.
const LONGEST: Duration = Duration::from_secs(10);
/// How often it is looked where the paths lead to.
const LOOK: Duration = Duration::from_secs(1);

/// A watched plugin directory, and the lock file that the settings name.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    paths: Paths,
    /// No pipe, but a descriptor that is read as one is: the one way that tokio has to wait for a descriptor without `unsafe`.
    events: pipe::Receiver,
    /// `None`: there is no directory at the path now, or none that can be watched.
    watch: Option<i32>,
    /// What the paths led to when they were looked at last.
    seen: Place,
    look: Interval,
}

#[derive(Debug, Clone)]
struct Paths {
    directory: PathBuf,
    /// `None`: it is the one in the directory, if there is one.
    lock_file: Option<PathBuf>,
}

/// What the paths lead to.
#[derive(Debug, PartialEq)]
struct Place {
    directory: Option<Identity>,
    /// With its size, and when it was changed last: it may be written in place.
    lock_file: Option<(Identity, u64, (i64, i64))>,
}

/// Device and inode.
type Identity = (u64, u64);

impl Paths {
    fn look(&self) -> Place {
        let identity = |found: &Metadata| -> Identity { (found.dev(), found.ino()) };
        let lock_file = self.lock_file.as_ref().and_then(|path| metadata(path).ok());
        Place {
            directory: metadata(&self.directory).ok().as_ref().map(identity),
            lock_file: lock_file.map(|found| (identity(&found), found.size(), (found.ctime(), found.ctime_nsec()))),
        }
    }
}

impl DirectoryWatch {
    /// Watches the directory, and the lock file, if the settings name one. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// When the system gives no watch, or there is no directory.
    pub(crate) fn new(directory: &Path, lock_file: Option<&Path>) -> io::Result<Self> {
        let events = pipe::Receiver::from_owned_fd_unchecked(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?)?;
        let paths = Paths { directory: directory.to_owned(), lock_file: lock_file.map(Path::to_owned) };
        // Before it is watched, here and later: what is swapped in between is found at the next look.
        let seen = paths.look();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Self { paths, events, watch: None, seen, look };
        watch.watch = Some(watch.add()?);
        Ok(watch)
    }

    fn add(&self) -> Result<i32, Errno> {
        let written = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
        let named = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.events, &self.paths.directory, written | named | itself)
    }

    /// Waits until something has changed and then nothing more for a moment. A future that is
    /// dropped may have seen a change already: whoever drops it looks at the directory then, or never again.
    pub(crate) async fn changed(&mut self) {
        self.event().await;
        let first = Instant::now();
        while first.elapsed() < LONGEST && tokio::time::timeout(QUIET, self.event()).await.is_ok() {}
        // A lock file in the directory is told of twice; the caller is about to see it as it is now.
        self.leads_elsewhere().await;
    }

    /// Waits for one change that may be of interest.
    async fn event(&mut self) {
        loop {
            let seen = tokio::select! {
                _ = self.look.tick() => {
                    if self.leads_elsewhere().await {
                        return;
                    }
                    continue;
                }
                seen = self.events.readable() => seen.and_then(|()| Ok(read(self.events.as_fd())?)),
            };
            let seen = match seen {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::error!("the plugin directory is watched no longer: {error}");
                    return std::future::pending().await;
                }
            };
            // No event fits into a byte, so this takes none; where there is none, tokio learns that it has to wait.
            let _ = self.events.try_read(&mut [0]);
            if seen.directory_gone {
                self.give_up_watch();
                self.leads_elsewhere().await;
                return;
            }
            if seen.of_interest {
                return;
            }
        }
    }

    /// Looks where the paths lead to, and watches the directory that is there; tells whether it is another, or the lock file is.
    async fn leads_elsewhere(&mut self) -> bool {
        let paths = self.paths.clone();
        // Not on this thread: a network file system whose server is gone keeps who asks.
        let Ok(now) = tokio::task::spawn_blocking(move || paths.look()).await else { return false };
        let changed = now != self.seen;
        if now.directory != self.seen.directory {
            self.give_up_watch();
        }
        self.seen = now;
        if self.watch.is_none() && self.seen.directory.is_some() {
            self.watch = self.add().ok();
            return changed || self.watch.is_some();
        }
        changed
    }

    /// The system follows a directory that was moved away; of one that was removed it has no watch any more.
    fn give_up_watch(&mut self) {
        if let Some(old) = self.watch.take() {
            let _ = inotify::remove_watch(&self.events, old);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[tokio::test]
    async fn a_directory_that_was_removed_is_watched_again_once_it_is_back() {
        let place = directory();
        let plugins = place.path().join("plugins");
        std::fs::create_dir(&plugins).expect("our own directory");
        let mut watch = DirectoryWatch::new(&plugins, None).expect("a watch");
        std::fs::remove_dir(&plugins).expect("our own directory");
        watch.changed().await;
        std::fs::create_dir(&plugins).expect("our own directory");
        watch.changed().await;
        std::fs::write(plugins.join("a.so"), "").expect("our own directory");
        watch.changed().await;
    }

    #[tokio::test]
    async fn after_more_than_the_kernel_keeps_the_directory_is_looked_at() {
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("Linux");
        let most: usize = most.trim().parse().expect("a number");
        let place = directory();
        let mut watch = DirectoryWatch::new(place.path(), None).expect("a watch");
        // None of them is of interest, and each is at least two events.
        let ignored = place.path().join("ignored");
        for _ in 0..=most / 2 {
            std::fs::write(&ignored, "").expect("our own directory");
            std::fs::remove_file(&ignored).expect("our own file");
        }
        watch.changed().await;
    }

    #[tokio::test]
    async fn what_is_no_library_and_belongs_to_none_is_not_told() {
        let place = directory();
        let watch = DirectoryWatch::new(place.path(), None).expect("a watch");
        let told = |name: &str| {
            std::fs::write(place.path().join(name), "").expect("our own directory");
            read(watch.events.as_fd()).expect("events").of_interest
        };
        assert_eq!([told("a.so"), told("a.so.minisig"), told("plugins.lock")], [true; 3]);
        assert_eq!([told(".a.so.tmp"), told("a.so.swp"), told("tasks.db")], [false; 3]);
    }
}
