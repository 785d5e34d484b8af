//! What the host gives a plugin: its log, its clock, its configuration and a directory of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How important a log line is. Higher is chattier, as in `log` and `tracing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something looks wrong.
    Warn = 2,
    /// What the operator should know.
    Info = 3,
    /// What the author should know.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl Level {
    /// The level of this number; numbers beyond [`Level::Trace`] are traces, 0 is an error.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 | 1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            4 => Self::Debug,
            _ => Self::Trace,
        }
    }
}

/// One line of a plugin's log.
#[derive(Debug, Clone, Copy)]
pub struct LogLine<'a> {
    /// How important.
    pub level: Level,
    /// Where in the plugin, usually a module path.
    pub target: &'a str,
    /// What happened.
    pub message: &'a str,
    /// Structured fields, a JSON object, or empty for none.
    pub fields: &'a str,
}

/// What stands behind [`Host`]. Implemented by a host, called from any thread of a plugin, concurrently.
pub trait HostServices: Send + Sync + 'static {
    /// Takes a log line.
    fn log(&self, line: LogLine<'_>);

    /// The chattiest level worth sending.
    fn max_level(&self) -> Level;

    /// The time.
    fn now(&self) -> SystemTime;
}

/// What the host tells a plugin when it creates it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Init {
    /// The plugin's name.
    pub plugin: String,
    /// A directory of the plugin's own; it may not exist yet.
    pub data_dir: PathBuf,
    /// The plugin's configuration, a JSON object.
    pub config: Box<RawValue>,
    /// The host's version, for logs.
    pub host_version: String,
}

/// The host, as a plugin sees it. Cheap to clone, usable from any thread for as long as the process lives.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    services: Box<dyn HostServices>,
    init: Init,
}

impl Host {
    /// Binds `services` and what the host told.
    pub fn new(services: impl HostServices, init: Init) -> Self {
        Self { inner: Arc::new(Inner { services: Box::new(services), init }) }
    }

    /// Sends a line to the host's log, under the plugin's name; the host keeps 8 KiB of it. `tracing` and `log` macros in a plugin end
    /// here too.
    pub fn log(&self, level: Level, message: impl fmt::Display) {
        if level <= self.inner.services.max_level() {
            let message = message.to_string();
            self.log_line(LogLine { level, target: &self.inner.init.plugin, message: &message, fields: "" });
        }
    }

    /// Sends a prepared line to the host's log.
    pub fn log_line(&self, line: LogLine<'_>) {
        self.inner.services.log(line);
    }

    /// The chattiest level that the host's log takes.
    #[must_use]
    pub fn max_level(&self) -> Level {
        self.inner.services.max_level()
    }

    /// The host's time: what a test may set.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.inner.services.now()
    }

    /// The plugin's name.
    #[must_use]
    pub fn plugin(&self) -> &str {
        &self.inner.init.plugin
    }

    /// A directory for this plugin alone. It is not made before it is asked for here.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn data_dir(&self) -> std::io::Result<&Path> {
        std::fs::create_dir_all(&self.inner.init.data_dir)?;
        Ok(&self.inner.init.data_dir)
    }

    /// The plugin's configuration, as the operator wrote it.
    ///
    /// # Errors
    ///
    /// When it does not have the shape of a `T`.
    pub fn config<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.inner.init.config.get())
    }

    /// The host's version.
    #[must_use]
    pub fn host_version(&self) -> &str {
        &self.inner.init.host_version
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("init", &self.inner.init).finish_non_exhaustive()
    }
}

/// Nanoseconds since the Unix epoch, as the clock crosses the boundary. Enough until the year 2554.
pub(crate) fn to_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn from_nanos(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

/// Tells a running call that nobody waits for it any more: its deadline passed, or the worker shuts down.
///
/// `inline` handlers are never cancelled. Reading it costs one atomic load.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Option<Arc<AtomicBool>>);

impl CancelFlag {
    /// A flag that can be set.
    #[must_use]
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// A flag that is never set.
    #[must_use]
    pub const fn never() -> Self {
        Self(None)
    }

    /// Whether the call should end early.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Sets it; a flag that is never set stays so.
    pub fn cancel(&self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }
}
