//! A plugin that hangs while it is loaded, or in `create` or `start`, in this process: nobody can end it, so the host's start ends,
//! with its name, and the next start keeps it out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::fatal::end_at_once;
use super::instance::Plugin;
use super::verdicts::{QuarantineKind, Subject, Verdicts};
use crate::shown::chain;

/// Who is being started, and since when. Written by the thread that loads, read by whoever waits for it.
#[derive(Debug, Default)]
pub struct StartWatch(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    starting: Option<Starting>,
    /// What that thread has brought up.
    came_up: Vec<Weak<Plugin>>,
    /// Nobody waits for that thread any more. A plugin that was only slow may set it free.
    given_up: bool,
}

#[derive(Debug)]
struct Starting {
    plugin: String,
    /// Absent for a plugin that is linked in: there are no bytes to quarantine.
    subject: Option<Subject>,
    since: Instant,
    deadline: Duration,
    step: Step,
}

/// What a plugin may hang in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `dlopen`: while it lasts, the dynamic linker loads nothing else in this process.
    Load,
    /// `create` or `start`.
    Start,
}

/// A plugin that is late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// The plugin.
    pub plugin: String,
    /// Its deadline.
    pub deadline: Duration,
    /// In what it hangs.
    pub step: Step,
    /// Whether its bytes are in quarantine now.
    pub quarantined: bool,
}

/// Why a loading thread gave nothing.
#[derive(Debug)]
pub(crate) enum Unfinished {
    /// A plugin hangs in it.
    Hangs(Late),
    /// It ended without a word.
    Lost(String),
}

/// Whether a library holds the dynamic linker of this process for ever, and who waits to hear it.
static LINKER_IS_HELD: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Whether a library hangs in this process while it is loaded. It holds the dynamic linker then, for which a process that ends as
/// usual waits: such a process has to end [at once](super::fatal::end_at_once).
#[must_use]
pub fn linker_is_held() -> bool {
    *LINKER_IS_HELD.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this process ends with `code` within `grace` after a library was found to hold the dynamic linker, whatever its other
/// threads are doing: any of them may be waiting for the linker, those of a runtime and that of a timer among them. For a program that
/// owns its process.
///
/// # Errors
///
/// When the system gives no thread.
pub fn end_when_linker_is_held(grace: Duration, code: u8) -> io::Result<()> {
    let (begun, begins) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("qtasks-watchdog".to_owned()).spawn(move || {
        // Room for one, and somebody who waits: a thread's first steps take the linker, too.
        let _ = begun.send(());
        let (held, told) = &LINKER_IS_HELD;
        let held = held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(told.wait_while(held, |held| !*held));
        std::thread::sleep(grace);
        end_at_once(code);
    })?;
    begins.recv().map_err(io::Error::other)
}

fn hold_linker() {
    *LINKER_IS_HELD.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    LINKER_IS_HELD.1.notify_all();
}

/// How often it is looked whether a plugin is late.
const LOOK: Duration = Duration::from_millis(50);

impl StartWatch {
    /// Runs `load` on a thread of the runtime where it may wait, and gives what it gave, unless a plugin is late there: then its bytes
    /// are in quarantine, and that thread is left to itself. Who looks after it is a thread of its own, begun before: a library that
    /// holds the dynamic linker may hold up those of the runtime.
    ///
    /// # Errors
    ///
    /// [`Unfinished`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) async fn load<T: Send + 'static>(
        self: Arc<Self>,
        state_dir: PathBuf,
        load: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let runtime = Handle::current();
        let (ended, ends) = oneshot::channel();
        let watching = std::thread::Builder::new().name("qtasks-load".to_owned()).spawn(move || {
            // Whoever asked may have stopped waiting; what was begun goes to its end all the same.
            let _ = ended.send(self.load_here(&runtime, &state_dir, load));
        });
        let lost = |error: String| Err(Unfinished::Lost(error));
        match watching {
            Ok(_) => ends.await.unwrap_or_else(|error| lost(error.to_string())),
            Err(error) => lost(error.to_string()),
        }
    }

    fn load_here<T: Send + 'static>(
        &self,
        runtime: &Handle,
        state_dir: &Path,
        load: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        // Before anything is loaded: a thread's first use of the runtime takes the linker, and so would that of a channel.
        let _entered = runtime.enter();
        let slot = Arc::new((Mutex::new(None), Condvar::new()));
        let filled = Arc::clone(&slot);
        let loading = runtime.spawn_blocking(move || {
            let loaded = load();
            *filled.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
            filled.1.notify_one();
        });
        loop {
            let has_ended = loading.is_finished();
            let empty = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut looked, _) =
                slot.1.wait_timeout_while(empty, LOOK, |slot| slot.is_none()).unwrap_or_else(PoisonError::into_inner);
            if let Some(loaded) = looked.take() {
                return Ok(loaded);
            }
            if has_ended {
                let ended = runtime.block_on(loading);
                return Err(Unfinished::Lost(ended.map_or_else(|error| error.to_string(), |()| "it gave nothing".to_owned())));
            }
            if let Some(late) = self.late(state_dir) {
                return Err(Unfinished::Hangs(late));
            }
        }
    }

    /// What the thread had brought up when it was given up.
    pub(crate) fn came_up(&self) -> Vec<Arc<Plugin>> {
        self.watched().came_up.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether nobody waits any more for what is loaded.
    pub(crate) fn is_given_up(&self) -> bool {
        self.watched().given_up
    }

    /// Notes a plugin that came up; false when nobody waits for it any more.
    pub(super) fn comes_up(&self, plugin: &Arc<Plugin>) -> bool {
        let mut watched = self.watched();
        if !watched.given_up {
            watched.came_up.push(Arc::downgrade(plugin));
        }
        !watched.given_up
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A plugin begins; it has ended when the value is dropped.
    pub(super) fn begin(&self, plugin: &str, subject: Option<Subject>, deadline: Duration, step: Step) -> impl Drop {
        struct Ended<'a>(&'a StartWatch);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.watched().starting = None;
            }
        }
        self.watched().starting = Some(Starting { plugin: plugin.to_owned(), subject, since: Instant::now(), deadline, step });
        Ended(self)
    }

    /// Who is late, if anybody; its bytes go into quarantine.
    fn late(&self, state_dir: &Path) -> Option<Late> {
        let mut watched = self.watched();
        let Watched { starting, given_up, .. } = &mut *watched;
        let Starting { plugin, subject, since, deadline, step } = starting.as_ref()?;
        if since.elapsed() < *deadline {
            return None;
        }
        *given_up = true;
        let what = match step {
            Step::Load => {
                hold_linker();
                "loading it"
            }
            Step::Start => "its create or start",
        };
        let evidence = format!("{what} did not end within {} s in the host", deadline.as_secs_f64());
        let quarantine = |subject| Verdicts::new(state_dir).quarantine(subject, QuarantineKind::TimeOut, evidence.clone());
        let quarantined = subject.as_ref().is_some_and(|subject| match quarantine(subject) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!("{}", chain(&error));
                false
            }
        });
        Some(Late { plugin: plugin.clone(), deadline: *deadline, step: *step, quarantined })
    }
}
