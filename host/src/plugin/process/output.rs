//! What a plugin's process logs and prints, on its way to the host's log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_plugin_api::{HostServices, Level, LogLine};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use super::guest::LoggedLine;
use crate::plugin::services::TracingServices;

/// Log lines and lines of output that a plugin's process gets through in a second; what is more is counted and dropped.
const LINES_A_SECOND: u32 = 1000;

/// Logs a line that the plugin logged there.
pub(super) fn log_line(payload: &[u8], services: &TracingServices) {
    if let Ok(line) = serde_json::from_slice::<LoggedLine>(payload) {
        let level = Level::from_number(line.level);
        services.log(LogLine { level, target: &line.target, message: &line.message, fields: &line.fields });
    }
}

/// Logs what the process prints, line by line.
pub(super) async fn log_output(stream: pipe::Receiver, name: &'static str, services: Arc<TracingServices>) {
    const LONGEST: u64 = 8 << 10;
    let mut reader = BufReader::new(stream);
    let mut limit = LineLimit::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await {
            Ok(1..) => {
                if limit.take(&services) {
                    let text = String::from_utf8_lossy(&line);
                    services.log(LogLine { level: Level::Info, target: name, message: text.trim_end(), fields: "" });
                }
            }
            _ => return,
        }
    }
}

/// Lets [`LINES_A_SECOND`] lines through. It says at once that it drops some, since there may be none after them, and later how many.
pub(super) struct LineLimit {
    since: Instant,
    taken: u32,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self { since: Instant::now(), taken: 0 }
    }
}

impl LineLimit {
    pub(super) fn take(&mut self, services: &TracingServices) -> bool {
        let warn = |message: String| services.log(LogLine { level: Level::Warn, target: "host", message: &message, fields: "" });
        if self.since.elapsed() >= Duration::from_secs(1) {
            let dropped = self.taken.saturating_sub(LINES_A_SECOND);
            if dropped > 0 {
                warn(format!("{dropped} lines were dropped: at most {LINES_A_SECOND} a second are logged"));
            }
            *self = Self::default();
        }
        self.taken = self.taken.saturating_add(1);
        if self.taken == LINES_A_SECOND + 1 {
            warn(format!("{LINES_A_SECOND} lines in a second: those that follow in it are dropped"));
        }
        self.taken <= LINES_A_SECOND
    }
}
