//! The host's services as a plugin gets them: log lines go to this process's `tracing`, under the plugin's name.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use qtasks_plugin_api::{HostServices, Level, LogLine};
use tracing::level_filters::LevelFilter;

/// Most bytes of a line's message, and of its fields, that reach the log.
const LONGEST: usize = 8 << 10;

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
        let (message, fields) = (bounded(line.message), bounded(line.fields));
        let line = LogLine { message: &message, fields: &fields, ..line };
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

fn bounded(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return text.into();
    }
    format!("{}… ({} bytes in all)", &text[..text.floor_char_boundary(LONGEST)], text.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert!(matches!(bounded("short"), Cow::Borrowed("short")));
        let long = format!("x{}", "é".repeat(LONGEST));
        let cut = bounded(&long);
        assert!(cut.starts_with("xé") && cut.ends_with("é… (16385 bytes in all)"), "{}", &cut[cut.len() - 40..]);
        assert!(cut.len() < LONGEST + 40);
    }
}
