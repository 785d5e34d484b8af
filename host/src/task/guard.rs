//! Ends the commands of a host that was killed: else they would run on beside the other runs of their tasks.
//!
//! A process of the host's own program, begun with the first command, is told each process group that begins and ends. It reads the end
//! of the pipe when the host is gone, whatever ended it, and kills the groups that are left.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::plugin::process::guest::own_program;

/// The argument with which the host's program becomes the guard.
pub(crate) const GUARD_ARGUMENT: &str = "command-guard";

/// The process group of a command, killed with all that is left in it when this is dropped, or when the host is no more.
pub(super) struct Group(Pid);

impl Group {
    /// The group that this process leads.
    pub(super) fn led_by(leader: Pid) -> Self {
        tell('+', leader);
        Self(leader)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Gone already is as good as killed.
        let _ = kill_process_group(self.0, Signal::KILL);
        tell('-', self.0);
    }
}

/// The pipe to the guard, once that is started, if it could be.
static GUARD: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Makes sure that the guard is there. Called before a command is started, which is not guarded until its group is told.
pub(super) fn ready() {
    GUARD.get_or_init(start);
}

/// Tells the guard. One that is gone or does not read holds nobody up: a line is written whole or not at all.
fn tell(sign: char, group: Pid) {
    if let Some(Some(pipe)) = GUARD.get() {
        let _ = rustix::io::write(pipe, format!("{sign}{}\n", group.as_raw_nonzero()).as_bytes());
    }
}

/// Starts the guard; gives the pipe to it, which closes with this process.
fn start() -> Option<OwnedFd> {
    let mut command = Command::new(own_program()?);
    // A group of its own: what a terminal tells the host is none of its business.
    command.arg0("qtasks-host").arg(GUARD_ARGUMENT).current_dir("/").process_group(0);
    let started = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().and_then(|mut guard| {
        let pipe = OwnedFd::from(guard.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?);
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(pipe)
    });
    started.inspect_err(|error| tracing::warn!("commands would outlive this process, were it killed: {error}")).ok()
}

/// The guard, from begin to end.
pub(crate) fn run() -> ! {
    let mut groups = BTreeSet::new();
    for line in io::stdin().lines().map_while(Result::ok) {
        let Some((sign, number)) = line.split_at_checked(1) else { continue };
        let Some(group) = number.parse().ok().and_then(Pid::from_raw) else { continue };
        match sign {
            "+" => drop(groups.insert(group.as_raw_nonzero())),
            _ => drop(groups.remove(&group.as_raw_nonzero())),
        }
    }
    for group in groups {
        let _ = Pid::from_raw(group.get()).map(|group| kill_process_group(group, Signal::KILL));
    }
    std::process::exit(0)
}
