//! What a guest gives up before it loads anything: privileges, memory without end, files, the network, its neighbours, processes of
//! its own.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};

/// The newest landlock that is asked for; an older kernel gives what it has.
const LANDLOCK: ABI = ABI::V6;

/// The largest file that a guest may write: 1 GiB.
const FILE_BYTES: u64 = 1 << 30;

/// Limits of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Address space, in bytes.
    pub(crate) memory_bytes: u64,
    /// Processor time in the life of the process, in seconds.
    pub(crate) cpu_seconds: Option<u64>,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// The one directory that may be written to.
    pub(crate) writable: Option<PathBuf>,
    /// Whether it may open TCP connections.
    pub(crate) network: bool,
    /// Whether it may start other processes. Threads it may start in any case; memory outside of its address space, in none.
    pub(crate) processes: bool,
}

/// What was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLevel {
    /// The kernel enforces everything that was asked for.
    Full,
    /// An older kernel enforces a part: files, but not the network or signals; or not that it starts no processes and hides no memory.
    Partial,
    /// No landlock: only limits and no new privileges.
    Limits,
}

/// Gives everything up. Cannot be undone.
///
/// # Errors
///
/// When a limit cannot be set. A kernel without landlock or seccomp is no error: the level says so.
pub(crate) fn enter(limits: &Limits) -> Result<SandboxLevel, String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| format!("no_new_privs: {error}"))?;
    let limit = |name: &str, resource, value: u64| lower(resource, value).map_err(|error| format!("limit of {name}: {error}"));
    limit("address space", Resource::As, limits.memory_bytes)?;
    limit("core files", Resource::Core, 0)?;
    limit("file size", Resource::Fsize, FILE_BYTES)?;
    limit("descriptors", Resource::Nofile, limits.descriptors)?;
    if let Some(seconds) = limits.cpu_seconds {
        limit("processor time", Resource::Cpu, seconds)?;
    }
    let level = landlock(limits).map_err(|error| format!("landlock: {error}"))?;
    // Last: the filter stays out of the way of what comes before it.
    let held = hide_no_memory() && (limits.processes || start_no_processes());
    Ok(if level == SandboxLevel::Full && !held { SandboxLevel::Partial } else { level })
}

/// Sets a limit, or keeps the one that is there where it is lower already.
fn lower(resource: Resource, value: u64) -> rustix::io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let least = |value: u64| now.maximum.map_or(value, |maximum| maximum.min(value));
    // At the first of the two a process is told by SIGXCPU, which names the reason; at the second it is killed.
    let grace = u64::from(resource == Resource::Cpu);
    setrlimit(resource, Rlimit { current: Some(least(value)), maximum: Some(least(value.saturating_add(grace))) })
}

/// Refuses this process the system calls that start another one, or another program. Unlike a limit on their number, which counts
/// all that the user runs and which root does not have, this is about this process alone. False where the kernel cannot.
fn start_no_processes() -> bool {
    // A `clone` that makes a thread passes.
    let threads = libc::CLONE_THREAD.unsigned_abs().into();
    let no_thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(threads), 0)
        .and_then(|condition| SeccompRule::new(vec![condition]));
    let Ok(no_thread) = no_thread else { return false };
    let calls = vec![
        (libc::SYS_clone, vec![no_thread]),
        (libc::SYS_execve, Vec::new()),
        (libc::SYS_execveat, Vec::new()),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_fork, Vec::new()),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_vfork, Vec::new()),
    ];
    // A filter cannot see what `clone3` is to make; said to be missing, it is followed by a `clone`.
    refuse(vec![(libc::SYS_clone3, Vec::new())], libc::ENOSYS) && refuse(calls, libc::EPERM)
}

/// Refuses this process memory that the limit of its address space does not see: files that are nowhere but in memory, and segments
/// that stay when nobody maps them. False where the kernel cannot.
fn hide_no_memory() -> bool {
    refuse([libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_shmget].map(|call| (call, Vec::new())).into(), libc::EPERM)
}

/// From now on these system calls of this process, where a rule of theirs matches or they have none, do nothing but give `errno`.
fn refuse(calls: Vec<(i64, Vec<SeccompRule>)>, errno: i32) -> bool {
    let apply = |architecture| {
        let action = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(calls.into_iter().collect(), SeccompAction::Allow, action, architecture)?;
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&program)
    };
    TargetArch::try_from(std::env::consts::ARCH).is_ok_and(|architecture| apply(architecture).is_ok())
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
