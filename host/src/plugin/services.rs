//! The host's services as a plugin gets them: log lines go to this process's `tracing`, under the plugin's name.

use std::sync::Arc;
use std::time::SystemTime;

use qtasks_plugin_api::{HostServices, Level, LogLine};
use tracing::level_filters::LevelFilter;

/// Services for one plugin, or for the application's own tasks.
#[derive(Debug)]
pub struct TracingServices {
    name: Arc<str>,
}

impl TracingServices {
    /// Services that log under `name`.
    #[must_use]
    pub fn new(name: Arc<str>) -> Self {
        Self { name }
    }
}

macro_rules! emit {
    ($level:ident, $self:ident, $line:ident) => {
        if $line.fields.is_empty() {
            tracing::$level!(target: "plugin", plugin = %$self.name, at = $line.target, "{}", $line.message)
        } else {
            tracing::$level!(target: "plugin", plugin = %$self.name, at = $line.target, fields = $line.fields, "{}", $line.message)
        }
    };
}

impl HostServices for TracingServices {
    fn log(&self, line: LogLine<'_>) {
        match line.level {
            Level::Error => emit!(error, self, line),
            Level::Warn => emit!(warn, self, line),
            Level::Info => emit!(info, self, line),
            Level::Debug => emit!(debug, self, line),
            Level::Trace => emit!(trace, self, line),
        }
    }

    fn max_level(&self) -> Level {
        match LevelFilter::current() {
            LevelFilter::TRACE => Level::Trace,
            LevelFilter::DEBUG => Level::Debug,
            LevelFilter::INFO => Level::Info,
            LevelFilter::WARN => Level::Warn,
            _ => Level::Error,
        }
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
