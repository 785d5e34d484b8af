//! What is known of library bytes from before: probed and found good, or quarantined, with the reason.
//!
//! One small JSON file per SHA-256 digest in the host's state directory, written to a temporary name and renamed. A verdict holds
//! for exactly these bytes and exactly this host; a file that cannot be read, is not ours, or is of another host counts as absent.
//! Before a probe starts the digest is noted as *probing*, so that even a power cut names the culprit.

mod process_mark;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use self::process_mark::ProcessMark;
use super::bytes::Digest;
use crate::private_dir;
use crate::shown::{path_as_text, shown};
use qtasks_plugin_api::abi::{ABI_MAJOR, ABI_MINOR};

/// Largest verdict file that is read: 64 KiB.
const MAX_FILE: u64 = 64 << 10;
/// Most characters of evidence that are kept, some of which are a library's own words: what is larger than [`MAX_FILE`] would not be
/// believed.
const MAX_EVIDENCE: usize = 2000;
/// Most verdicts that are kept; the oldest go first.
const MAX_ENTRIES: usize = 20_000;
/// A temporary file that is older was left behind by a host that was killed: writing one takes milliseconds.
const LEFT_BEHIND: Duration = Duration::from_secs(60 * 60);

/// What was wrong with quarantined bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuarantineKind {
    /// Its process died while it was loaded.
    Crash,
    /// It was not loaded in time.
    TimeOut,
    /// Loading it changed the process that it was loaded in: harm to a host, unless the operator admits it.
    SideEffect,
    /// The library says another manifest when loaded than its file holds.
    LyingManifest,
    /// A probe began and no end is on record: the machine or the host went down with it.
    Unfinished,
    /// The host died while it ran code of this plugin.
    KilledTheHost,
    /// Its process failed again and again.
    RepeatedFailure,
    /// Something that a later version of the host has a name for; the evidence says it.
    #[serde(other)]
    Other,
}

impl QuarantineKind {
    /// Its name in messages and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::TimeOut => "time-out",
            Self::SideEffect => "side-effect",
            Self::LyingManifest => "lying-manifest",
            Self::Unfinished => "unfinished",
            Self::KilledTheHost => "killed-the-host",
            Self::RepeatedFailure => "repeated-failure",
            Self::Other => "other",
        }
    }
}

/// Bytes that are refused from now on, and why.
///
/// ```json
/// {"digest": "…", "path": "/plugins/libx.so", "plugin": "x", "kind": "crash", "evidence": "was killed by signal 11 (SIGSEGV)",
///  "since": 1795333232, "count": 2}
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Quarantined {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// Where the bytes were found last.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// The plugin's name.
    pub plugin: String,
    /// What was wrong.
    pub kind: QuarantineKind,
    /// What was seen.
    pub evidence: String,
    /// Seconds since the Unix epoch.
    pub since: u64,
    /// How often.
    pub count: u32,
}

/// What is known of some bytes.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Nothing that holds for this host.
    Unknown,
    /// Probed by this host, loaded without harm, and the boundary's layout compared.
    Good,
    /// Refused until somebody lifts it.
    Quarantined(Box<Quarantined>),
}

/// The file of one digest.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Host version and ABI that the verdict was found with.
    host: String,
    state: State,
    /// The process that is at it, for `probing`.
    #[serde(default)]
    process: Option<ProcessMark>,
    subject: Subject,
    #[serde(default)]
    quarantined: Option<Quarantined>,
}

impl Entry {
    /// Whether it says that this process probes the bytes.
    fn is_of_this_process(&self) -> bool {
        self.state == State::Probing && self.process == ProcessMark::of(std::process::id())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Probing,
    Good,
    Quarantined,
}

/// Whose bytes they are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(super) digest: Digest,
    #[serde(serialize_with = "path_as_text")]
    pub(super) path: PathBuf,
    pub(super) plugin: String,
}

/// Why verdicts could not be written down, or looked through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerdictError {
    /// One cannot be written.
    #[error(
        "cannot write the verdict {}; make the state directory writable for the host, or name another with `state_dir`",
        shown(path)
    )]
    Write {
        /// Its file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// They cannot be listed.
    #[error(
        "cannot list the verdicts in {}; do this as the user that the host runs as, or name another directory with `state_dir`",
        shown(path)
    )]
    List {
        /// Their directory.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// The verdicts of one state directory.
#[derive(Debug, Clone)]
pub struct Verdicts {
    directory: PathBuf,
}

/// Which host a verdict holds for.
pub(crate) fn this_host() -> String {
    format!("{} abi {ABI_MAJOR}.{ABI_MINOR}", env!("CARGO_PKG_VERSION"))
}

impl Verdicts {
    /// The verdicts below `state_dir`. Nothing is made before something is written.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("verdicts") }
    }

    /// What is known of these bytes. A quarantine holds for every host version; `good`, and side effects, only for this one.
    #[must_use]
    pub fn look(&self, digest: &Digest) -> Verdict {
        let Some(entry) = self.read(&self.file(digest)).filter(|entry| entry.subject.digest == *digest) else {
            return Verdict::Unknown;
        };
        match (entry.state, entry.quarantined) {
            // The one harm that an operator may admit, so the bytes may be loaded: only if this host has probed them.
            (State::Quarantined, Some(quarantined))
                if quarantined.kind == QuarantineKind::SideEffect && entry.host != this_host() =>
            {
                Verdict::Unknown
            }
            (State::Quarantined, Some(quarantined)) => Verdict::Quarantined(Box::new(quarantined)),
            (State::Good, _) if entry.host == this_host() => Verdict::Good,
            // Somebody else is at it right now; this host asks for itself.
            (State::Probing, _) if entry.process.as_ref().is_some_and(|process| !process.has_ended()) => Verdict::Unknown,
            (State::Probing, before) => Verdict::Quarantined(Box::new(quarantined(
                &entry.subject,
                QuarantineKind::Unfinished,
                "a probe of it began and never ended: the host or the machine went down",
                before.map_or(0, |before| before.count),
            ))),
            _ => Verdict::Unknown,
        }
    }

    /// Notes that a probe begins.
    pub(super) fn begin(&self, subject: &Subject) -> Result<(), VerdictError> {
        let process = ProcessMark::of(std::process::id());
        // How often harm was seen before is counted on.
        let quarantined = self.read(&self.file(&subject.digest)).and_then(|entry| entry.quarantined);
        self.write(Entry { host: this_host(), state: State::Probing, process, subject: subject.clone(), quarantined })
    }

    /// Notes that the bytes are good. Where there is no room for that they are forgotten: still under probe once this process has
    /// ended, they would be taken for what ended it.
    pub(super) fn good(&self, subject: &Subject) -> Result<(), VerdictError> {
        self.write(Entry { host: this_host(), state: State::Good, process: None, subject: subject.clone(), quarantined: None })
            .inspect_err(|_| self.forget(subject))
    }

    /// Forgets that this process probes the bytes: a probe that could not be held says nothing about them. What another host has found
    /// meanwhile stays.
    pub(super) fn forget(&self, subject: &Subject) {
        let path = self.file(&subject.digest);
        if self.read(&path).is_some_and(|entry| entry.is_of_this_process()) {
            // Gone already is as good as removed.
            let _ = fs::remove_file(path);
        }
    }

    /// Forgets what this process noted as under probe, and will not end.
    pub(crate) fn give_up_probes(&self) {
        for entry in self.files().iter().filter_map(|path| self.read(path)) {
            self.forget(&entry.subject);
        }
    }

    /// Quarantines the bytes.
    pub(super) fn quarantine(
        &self,
        subject: &Subject,
        kind: QuarantineKind,
        evidence: String,
    ) -> Result<Quarantined, VerdictError> {
        let before = self.read(&self.file(&subject.digest)).and_then(|entry| entry.quarantined).map_or(0, |before| before.count);
        let quarantined = quarantined(subject, kind, &evidence, before);
        self.write(Entry {
            host: this_host(),
            state: State::Quarantined,
            process: None,
            subject: subject.clone(),
            quarantined: Some(quarantined.clone()),
        })?;
        Ok(quarantined)
    }

    /// Everything in quarantine, by path.
    ///
    /// # Errors
    ///
    /// [`VerdictError::List`] when nobody can tell: the directory is there, and cannot be listed.
    pub fn quarantined(&self) -> Result<Vec<Quarantined>, VerdictError> {
        match fs::read_dir(&self.directory) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(VerdictError::List { path: self.directory.clone(), source });
            }
            _ => {}
        }
        let mut found: Vec<Quarantined> = self
            .files()
            .into_iter()
            .filter_map(|path| self.read(&path))
            .filter_map(|entry| match self.look(&entry.subject.digest) {
                Verdict::Quarantined(quarantined) => Some(*quarantined),
                _ => None,
            })
            .collect();
        found.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(found)
    }

    /// Lifts the quarantine of the plugin of this name, or else of the bytes whose digest begins with `which`, at least eight digits of
    /// it; of all, without one. Gives what was lifted.
    ///
    /// # Errors
    ///
    /// [`VerdictError`] when a file cannot be removed, or the directory cannot be listed.
    pub fn clear(&self, which: Option<&str>) -> Result<Vec<Quarantined>, VerdictError> {
        const LEAST_DIGITS: usize = 8;
        let mut found = self.quarantined()?;
        if let Some(which) = which {
            let is_named = found.iter().any(|entry| entry.plugin == which);
            let begins = |entry: &Quarantined| which.len() >= LEAST_DIGITS && entry.digest.to_string().starts_with(which);
            found.retain(|entry| if is_named { entry.plugin == which } else { begins(entry) });
        }
        for entry in &found {
            let path = self.file(&entry.digest);
            fs::remove_file(&path).map_err(|source| VerdictError::Write { path, source })?;
        }
        Ok(found)
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{digest}.json"))
    }

    fn files(&self) -> Vec<PathBuf> {
        self.paths().filter(|path| has_extension(path, "json")).take(MAX_ENTRIES * 2).collect()
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> + use<> {
        fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    /// A file that is foreign, writable by others, too large or damaged counts as absent.
    fn read(&self, path: &Path) -> Option<Entry> {
        let metadata = fs::symlink_metadata(path).ok()?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        if !metadata.is_file() || !ours || metadata.len() > MAX_FILE {
            tracing::warn!(
                path = %shown(path),
                "a verdict that is not this host's own is ignored: expected a file of this user's that nobody else may write to, \
                 of {MAX_FILE} bytes at most; is this the user that the host runs as?"
            );
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn write(&self, entry: Entry) -> Result<(), VerdictError> {
        let path = self.file(&entry.subject.digest);
        let failed = |source| VerdictError::Write { path: path.clone(), source };
        private_dir::make(&self.directory).map_err(failed)?;
        let json = serde_json::to_vec(&entry).map_err(|error| failed(error.into()))?;
        // Processes of several containers may have the same number. No random number: a thread's first one waits for the dynamic
        // linker, which the library that is to be quarantined may hold.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
        let temporary = path.with_extension(format!("{}.{now}.tmp", std::process::id()));
        let write = || -> std::io::Result<()> {
            // The owner's alone, whatever the umask: a verdict that others may write to is not believed when it is read.
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&json)?;
            // Only what is on the disk survives a power cut, under its name, which is what `probing` is for. A good verdict that is
            // lost costs another probe.
            let must_last = entry.state != State::Good;
            if must_last {
                file.sync_all()?;
            }
            fs::rename(&temporary, &path)?;
            if !must_last {
                return Ok(());
            }
            match fs::File::open(&self.directory)?.sync_all() {
                // A network's file system may know no such thing.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
                synced => synced,
            }
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&temporary);
            failed(source)
        })?;
        self.prune(modified(&path));
        Ok(())
    }

    /// Removes what is too much, and what was left behind. What was just written says when it is by the clock of the file system, which
    /// may be another machine's.
    fn prune(&self, now: Option<SystemTime>) {
        let is_left_behind = |path: &Path| {
            let age = now.zip(modified(path)).and_then(|(now, then)| now.duration_since(then).ok());
            age.is_some_and(|age| age > LEFT_BEHIND)
        };
        let mut files = Vec::new();
        for path in self.paths() {
            if has_extension(&path, "json") {
                files.push(path);
            } else if has_extension(&path, "tmp") && is_left_behind(&path) {
                let _ = fs::remove_file(path);
            }
        }
        let excess = files.len().saturating_sub(MAX_ENTRIES);
        if excess == 0 {
            return;
        }
        // Only what can be found out again goes: a quarantine stays until somebody lifts it.
        let known_good = |path: &PathBuf| self.read(path).is_none_or(|entry| entry.state == State::Good);
        let mut aged: Vec<(SystemTime, PathBuf)> =
            files.into_iter().filter(known_good).filter_map(|path| Some((modified(&path)?, path))).collect();
        aged.sort();
        // Some more than that, since looking at all of them takes its time.
        for (_, path) in aged.into_iter().take(excess + MAX_ENTRIES / 10) {
            let _ = fs::remove_file(path);
        }
    }
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).ok()?.modified().ok()
}

fn quarantined(subject: &Subject, kind: QuarantineKind, evidence: &str, before: u32) -> Quarantined {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Quarantined {
        digest: subject.digest,
        path: subject.path.clone(),
        plugin: subject.plugin.clone(),
        kind,
        evidence: evidence.chars().take(MAX_EVIDENCE).collect(),
        since,
        count: before.saturating_add(1),
    }
}
