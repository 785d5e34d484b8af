//! What a guest gives up before it loads anything: privileges, memory without end, files, the network, its neighbours.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// The newest landlock that is asked for; an older kernel gives what it has.
const LANDLOCK: ABI = ABI::V6;

/// Limits of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Address space, in bytes.
    pub(crate) memory_bytes: u64,
    /// Processor time, in seconds.
    pub(crate) cpu_seconds: Option<u64>,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// The one directory that may be written to.
    pub(crate) writable: Option<PathBuf>,
    /// Whether it may open TCP connections.
    pub(crate) network: bool,
}

/// What was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLevel {
    /// The kernel enforces everything that was asked for.
    Full,
    /// An older kernel enforces a part: files, but not the network or signals.
    Partial,
    /// No landlock: only limits and no new privileges.
    Limits,
}

/// Gives everything up. Cannot be undone.
///
/// # Errors
///
/// When a limit cannot be set. A kernel without landlock is no error: the level says so.
pub(crate) fn enter(limits: &Limits) -> Result<SandboxLevel, String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| format!("no_new_privs: {error}"))?;
    let limit = |name: &str, resource, value: u64| lower(resource, value).map_err(|error| format!("limit of {name}: {error}"));
    limit("address space", Resource::As, limits.memory_bytes)?;
    limit("core files", Resource::Core, 0)?;
    limit("descriptors", Resource::Nofile, limits.descriptors)?;
    if let Some(seconds) = limits.cpu_seconds {
        limit("processor time", Resource::Cpu, seconds)?;
    }
    landlock(limits).map_err(|error| format!("landlock: {error}"))
}

/// Sets a limit, or keeps the one that is there where it is lower already.
fn lower(resource: Resource, value: u64) -> rustix::io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let value = now.maximum.map_or(value, |maximum| maximum.min(value));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}

fn landlock(limits: &Limits) -> Result<SandboxLevel, landlock::RulesetError> {
    let writes: BitFlags<AccessFs> = AccessFs::from_write(LANDLOCK);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(writes)?;
    if !limits.network {
        ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    let mut created = ruleset.scope(Scope::from_all(LANDLOCK))?.create()?;
    let null = [Path::new("/dev/null")];
    for path in limits.writable.iter().map(PathBuf::as_path).chain(null) {
        if let Ok(directory) = PathFd::new(path) {
            let access = if path.is_dir() { writes } else { writes & AccessFs::from_file(LANDLOCK) };
            created = created.add_rule(PathBeneath::new(directory, access))?;
        }
    }
    Ok(match created.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => SandboxLevel::Full,
        RulesetStatus::PartiallyEnforced => SandboxLevel::Partial,
        RulesetStatus::NotEnforced => SandboxLevel::Limits,
    })
}
