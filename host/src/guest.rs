//! What this program becomes where a host has started it as something else: the process of a plugin, or the guard of the commands.

use std::ffi::OsString;

use crate::plugin::process::guest;
use crate::task::guard;

/// Runs this process as a guest or as a guard if its arguments ask for it, and then does not return.
///
/// An application that loads plugin libraries or has command tasks calls this first in `main`, before it starts a thread. Other processes
/// of the same program are then what probes libraries and holds isolated plugins, unless the settings name another one for that, and what
/// ends the commands of a host that was killed.
pub fn run_if_asked() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [first, _name] if first == guest::GUEST_ARGUMENT => guest::run(),
        [first] if first == guard::GUARD_ARGUMENT => guard::run(),
        _ => guest::runs_if_asked(),
    }
}
