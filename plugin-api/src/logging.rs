//! Sends what a plugin logs with `tracing` or `log` to the host, under the plugin's name.
//!
//! Both crates keep their logger in a static, and each plugin library has its own copy of that static. So the host's logger is
//! invisible to a plugin, and a plugin installs these two when it is created. A plugin that is linked into an application
//! shares the application's statics and installs nothing.

use std::fmt::{Debug, Write as _};
use std::sync::Once;

use serde_json::{Map, Value};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Event, Metadata, Subscriber};

use crate::host::{Host, Level, LogLine};

/// Installs both. Later calls in the same library do nothing.
pub(crate) fn install(host: &Host) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the plugin installed a logger of its own, which is its good right.
        if log::set_boxed_logger(Box::new(LogBridge(host.clone()))).is_ok() {
            log::set_max_level(log::LevelFilter::Trace);
        }
        let dispatch = tracing_core::Dispatch::new(TracingBridge(host.clone()));
        let _ = tracing_core::dispatcher::set_global_default(dispatch);
    });
}

struct LogBridge(Host);

impl log::Log for LogBridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        Level::from_number(metadata.level() as u32) <= self.0.max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log_line(LogLine {
                level: Level::from_number(record.level() as u32),
                target: record.target(),
                message: &record.args().to_string(),
                fields: "",
            });
        }
    }

    fn flush(&self) {}
}

struct TracingBridge(Host);

fn level_of(level: tracing_core::Level) -> Level {
    match level {
        tracing_core::Level::ERROR => Level::Error,
        tracing_core::Level::WARN => Level::Warn,
        tracing_core::Level::INFO => Level::Info,
        tracing_core::Level::DEBUG => Level::Debug,
        _ => Level::Trace,
    }
}

impl Subscriber for TracingBridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && level_of(*metadata.level()) <= self.0.max_level()
    }

    // Spans stay inside the plugin: the host knows which call it made.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Fields::default();
        event.record(&mut line);
        let fields = if line.fields.is_empty() { String::new() } else { Value::Object(line.fields).to_string() };
        self.0.log_line(LogLine {
            level: level_of(*event.metadata().level()),
            target: event.metadata().target(),
            message: &line.message,
            fields: &fields,
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing into a String does not fail; a Debug impl that says so anyway loses its own text only.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.put(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.put(field, value.into());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN and no infinity: those are logged as text.
        let value = serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number);
        self.put(field, value);
    }
}
