//! The lock file: which bytes each plugin has.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::TrustPolicy;
use crate::plugin::bytes::Digest;
use crate::plugin::discover::{DiscoverError, FileError, OpenedFile, PluginDirectory};
use crate::plugin::manifest::Manifest;
use crate::shown::shown;

/// Name of the lock file in a plugin directory.
pub const LOCK_NAME: &str = "plugins.lock";
/// Largest lock file that is read: 4 MiB, room for some 20,000 plugins.
const MAX_LOCK_BYTES: u64 = 4 << 20;

/// The first lines of every lock file.
const HEADER: &str = "\
# Libraries that may be loaded, by SHA-256. Written by `qtasks-host plugin lock`, which accepts what lies in the plugin directory;
# while this file is there, everything else is refused.
";

/// One library that may be loaded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockEntry {
    /// The plugin's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the library file.
    pub sha256: Digest,
}

impl LockEntry {
    pub(super) fn new(manifest: &Manifest, sha256: Digest) -> Self {
        Self { name: manifest.name.clone(), version: manifest.version.clone(), sha256 }
    }
}

impl fmt::Display for LockEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} with SHA-256 {}", shown(&self.name), shown(&self.version), self.sha256)
    }
}

/// What a lock file says.
///
/// ```toml
/// [[plugin]]
/// name = "fallback"
/// version = "0.1.0"
/// sha256 = "5c4a…"
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Sorted, each once.
    #[serde(rename = "plugin")]
    pub plugins: BTreeSet<LockEntry>,
}

/// Why a lock file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The settings name no file.
    #[error("`lock_file` is {found:?}, expected the path of a file")]
    Name {
        /// What they name.
        found: PathBuf,
    },
    /// It is named in the settings and is not there.
    #[error("`lock_file` names it, and it is not there")]
    Missing,
    /// Its directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DiscoverError),
    /// It cannot be used as a file.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no lock file, or no longer.
    #[error("it is damaged: line {line}: {reason}")]
    Damaged {
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// Too large.
    #[error("it is damaged: it has more than {max_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It cannot be written.
    #[error("cannot write the lock file {}; make its directory writable, or name another file with `lock_file`", shown(path))]
    Write {
        /// The lock file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl LockError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "lock-name",
            Self::Missing => "lock-missing",
            Self::Directory(_) | Self::File(_) => "lock-unsafe",
            Self::Damaged { .. } | Self::TooLarge { .. } => "lock-damaged",
            Self::Read(_) => "lock-unreadable",
            Self::Write { .. } => "lock-unwritable",
        }
    }
}

/// What was found where the lock file is expected.
#[derive(Debug)]
pub enum Locked {
    /// Nothing.
    Absent,
    /// A lock file.
    Present(Lock),
}

/// Where a lock file is: an open directory, and a name in it. A lock file is trusted with everything, so its place is checked as
/// the plugin directory is.
#[derive(Debug)]
pub struct LockPlace {
    directory: Arc<PluginDirectory>,
    name: OsString,
}

impl LockPlace {
    /// The lock file of a plugin directory, or the one of the settings.
    ///
    /// # Errors
    ///
    /// [`LockError::Name`] or [`LockError::Directory`] when the one in the settings is none, or its directory cannot be used.
    pub fn new(policy: &TrustPolicy, plugins: &Arc<PluginDirectory>) -> Result<Self, LockError> {
        let Some(file) = &policy.lock_file else {
            return Ok(Self { directory: Arc::clone(plugins), name: LOCK_NAME.into() });
        };
        let name = file.file_name().ok_or_else(|| LockError::Name { found: file.clone() })?.to_owned();
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = Arc::new(PluginDirectory::open(parent, policy.strictness)?);
        for caution in directory.cautions() {
            tracing::warn!(code = caution.code(), "lock file {}: {caution}", shown(file));
        }
        Ok(Self { directory, name })
    }

    /// The lock file, absolute.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    /// Reads the lock file.
    ///
    /// # Errors
    ///
    /// [`LockError`] when it is there and cannot be used.
    pub fn read(&self) -> Result<Locked, LockError> {
        let file = match self.directory.open_file(&self.name) {
            Ok(OpenedFile { file, cautions, .. }) => {
                for caution in cautions {
                    tracing::warn!(code = caution.code(), "lock file: {caution}");
                }
                file
            }
            Err(FileError::Vanished { .. }) => return Ok(Locked::Absent),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(MAX_LOCK_BYTES + 1).read_to_end(&mut bytes).map_err(LockError::Read)?;
        if bytes.len() as u64 > MAX_LOCK_BYTES {
            return Err(LockError::TooLarge { max_bytes: MAX_LOCK_BYTES });
        }
        parse(&bytes).map(Locked::Present)
    }

    /// Writes the lock file: to a temporary name beside it, to the disk, and then into its place, so that every reader sees the
    /// old one or the new one.
    ///
    /// # Errors
    ///
    /// [`LockError::Write`].
    pub fn write(&self, lock: &Lock) -> Result<(), LockError> {
        let failed = |source| LockError::Write { path: self.path(), source };
        let text = toml::to_string(lock).map_err(|error| failed(io::Error::other(error)))?;
        let mut temporary = OsString::from(".");
        temporary.push(&self.name);
        temporary.push(format!(".{}.tmp", std::process::id()));
        let written = self.write_through(&temporary, &format!("{HEADER}\n{text}"));
        if written.is_err() {
            // What failed is told; a temporary file that cannot be removed either is in nobody's way.
            let _ = rustix::fs::unlinkat(self.directory.descriptor(), &temporary, AtFlags::empty());
        }
        written.map_err(failed)
    }

    fn write_through(&self, temporary: &OsStr, text: &str) -> io::Result<()> {
        let directory = self.directory.descriptor();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let opened = match rustix::fs::openat(directory, temporary, flags, mode) {
            // A process of the same number left it.
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(directory, temporary, AtFlags::empty())?;
                rustix::fs::openat(directory, temporary, flags, mode)
            }
            opened => opened,
        };
        let mut file = File::from(opened?);
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rustix::fs::renameat(directory, temporary, directory, &self.name)?;
        Ok(rustix::fs::fsync(directory)?)
    }
}

/// Reads a lock file's text. Every key must be known: a lock that was meant to say more must not be taken for one that says less.
fn parse(bytes: &[u8]) -> Result<Lock, LockError> {
    let damaged = |start: usize, reason: &str| {
        let before = bytes.get(..start).unwrap_or(bytes);
        // The reason may quote the file, which anything may be written in.
        let reason = shown(reason).to_string();
        LockError::Damaged { line: before.iter().filter(|byte| **byte == b'\n').count() + 1, reason }
    };
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.valid_up_to(), "it is not UTF-8 text"))?;
    toml::from_str(text).map_err(|error| damaged(error.span().map_or(0, |span| span.start), error.message()))
}
