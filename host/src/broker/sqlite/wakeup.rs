//! Wakes who waits when another process has written to the file: the system tells of each write to the write-ahead log, so nobody has
//! to look again and again.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::Notify;

/// A write is seen before the commit that it belongs to, so who is woken looks again this long after it, and then once more.
const AGAIN: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(20)];
/// A commit is several writes; who is woken need not be woken by each.
const GATHER: Duration = Duration::from_micros(100);
/// Where the system does not tell, this often is looked.
const WITHOUT_TELLING: Duration = Duration::from_millis(50);
/// How long the thread may outlive the backend.
const LINGER: Duration = Duration::from_secs(1);

/// Starts a thread that wakes whoever waits on `changed` when the file may have changed. It ends when nobody else has `changed`.
///
/// # Errors
///
/// When the system gives no thread.
pub(super) fn watch(database: &Path, changed: &Arc<Notify>) -> std::io::Result<()> {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let log = PathBuf::from(log);
    let changed = Arc::downgrade(changed);
    let watching = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
        .and_then(|events| inotify::add_watch(&events, &log, WatchFlags::MODIFY).map(|_| events));
    let thread = std::thread::Builder::new().name("qtasks-wakeup".to_owned());
    match watching {
        Ok(events) => thread.spawn(move || told(&events, &changed))?,
        Err(error) => {
            tracing::warn!("writes of other processes are looked for every {} ms: {error}", WITHOUT_TELLING.as_millis());
            thread.spawn(move || {
                while wake(&changed) {
                    std::thread::sleep(WITHOUT_TELLING)
                }
            })?
        }
    };
    Ok(())
}

/// Wakes who waits; `false` when nobody can any more.
fn wake(changed: &Weak<Notify>) -> bool {
    changed.upgrade().is_some_and(|changed| {
        changed.notify_waiters();
        true
    })
}

fn told(events: &OwnedFd, changed: &Weak<Notify>) {
    let mut buffer = [0; 4096];
    let mut again = [].iter();
    loop {
        let pause: Option<&Duration> = again.next();
        let ready =
            match poll(&mut [PollFd::new(events, PollFlags::IN)], Timespec::try_from(*pause.unwrap_or(&LINGER)).ok().as_ref()) {
                Ok(ready) => ready > 0,
                Err(Errno::INTR) => false,
                Err(error) => {
                    tracing::error!("writes of other processes are no longer seen: {error}");
                    return;
                }
            };
        if ready {
            std::thread::sleep(GATHER);
            // What happened is of no interest, only that something did. Read once: whoever writes on would be followed without end.
            let _ = rustix::io::read(events, &mut buffer);
            again = AGAIN.iter();
        }
        let alive = if ready || pause.is_some() { wake(changed) } else { changed.strong_count() > 0 };
        if !alive {
            return;
        }
    }
}
