//! Whose probe it is that is on record.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessMark {
    pid: u32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot (proc(5)).
    pub(super) started: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(super) boot: String,
    /// `/proc/self/ns/pid`: in whose numbering. Another container's processes cannot be seen from here.
    #[serde(default)]
    pub(super) namespace: PathBuf,
}

impl ProcessMark {
    /// This process, or another one that can be seen from here.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in parentheses that may hold anything, so counting begins behind it.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Some(Self { pid, started, boot, namespace })
    }

    /// Whether it is known to have ended.
    pub(super) fn has_ended(&self) -> bool {
        match Self::of(std::process::id()) {
            // Its machine went down since, or it is another machine's.
            Some(this) if this.boot != self.boot => true,
            Some(this) if !self.namespace.as_os_str().is_empty() && this.namespace != self.namespace => false,
            _ => Self::of(self.pid).is_none_or(|now| now.started != self.started),
        }
    }
}
