//! Whether the operator vouches for a library: a lock file of SHA-256 digests, detached signatures, or both. Each is optional, and
//! enforced when it is there. Judged are the sealed bytes, which are the bytes that are loaded.

pub mod lock;
pub mod signature;
pub mod stock;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::lock::{Lock, LockEntry, LockError, LockPlace, Locked};
use self::signature::{SignatureError, TrustedKey};
use super::bytes::Digest;
use super::discover::{PluginDirectory, Strictness};
use super::manifest::Manifest;
use crate::shown::{chain, shown};

/// Whom to trust, whatever plugin a library holds.
#[derive(Debug, Clone, Default)]
pub struct TrustPolicy {
    /// What is made of directories and files that a group can write to.
    pub strictness: Strictness,
    /// The lock file, which must be there then. Else `plugins.lock` in the plugin directory, where there is one.
    pub lock_file: Option<PathBuf>,
    /// When not empty, every library needs a signature by one of these keys.
    pub trusted_keys: Vec<TrustedKey>,
}

/// What the operator says about trust in one plugin: `[plugins.NAME] trust`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustSetting {
    /// Lock file and signature hold.
    #[default]
    Enforce,
    /// They are looked at and do not hold. Said at every start, and shown wherever the plugin is listed.
    Override,
}

/// What a library is trusted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustState {
    /// There is no lock file and no trusted key: it lay in the directory, that is all.
    Unchecked,
    /// Its digest is in the lock file.
    Locked,
    /// It has a good signature.
    Signed,
    /// Both.
    LockedAndSigned,
    /// The operator overrode the checks for this plugin, whatever they say.
    Overridden,
}

impl TrustState {
    /// Its name in messages and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Locked => "locked",
            Self::Signed => "signed",
            Self::LockedAndSigned => "locked-and-signed",
            Self::Overridden => "overridden",
        }
    }
}

/// Why a library is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The lock file says nothing that could be relied on.
    #[error(
        "the lock file {} cannot be used, so nothing that it covers is loaded; mend it, or write it anew with `{command}`",
        shown(path)
    )]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What writes a lock file.
        command: String,
        /// What is wrong with it.
        source: Arc<LockError>,
    },
    /// The lock file has no such library.
    #[error(
        "{found} is not in the lock file {}, expected {}; if you trust this file, accept it with `{command}`",
        shown(path),
        expected_text(expected)
    )]
    NotLocked {
        /// The lock file.
        path: PathBuf,
        /// The library.
        found: LockEntry,
        /// What the lock file has under this name.
        expected: Vec<LockEntry>,
        /// What would accept it.
        command: String,
    },
    /// No good signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

fn expected_text(expected: &[LockEntry]) -> String {
    match expected {
        [] => "a plugin that is in it; it knows none of this name".to_owned(),
        entries => entries.iter().map(LockEntry::to_string).collect::<Vec<_>>().join(" or "),
    }
}

impl TrustError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Lock { source, .. } => source.code(),
            Self::NotLocked { expected, .. } if expected.is_empty() => "lock-unknown",
            Self::NotLocked { .. } => "lock-mismatch",
            Self::Signature(error) => error.code(),
        }
    }
}

/// A library whose trust is to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// What it declares.
    pub manifest: &'a Manifest,
    /// Where it is; its signature lies beside it.
    pub path: &'a Path,
    /// SHA-256 of `bytes`.
    pub digest: Digest,
    /// The sealed bytes.
    pub bytes: &'a [u8],
}

/// Trust in the libraries of one directory.
#[derive(Debug)]
pub struct Trust<'a> {
    policy: &'a TrustPolicy,
    directory: Arc<PluginDirectory>,
    lock_path: PathBuf,
    lock: Result<Option<Lock>, Arc<LockError>>,
}

impl<'a> Trust<'a> {
    /// Reads the lock file. One that cannot be used is no error here: it refuses every library.
    #[must_use]
    pub fn new(policy: &'a TrustPolicy, directory: Arc<PluginDirectory>) -> Self {
        let place = LockPlace::new(policy, &directory);
        let lock_path = place.as_ref().map_or_else(|_| policy.lock_file.clone().unwrap_or_default(), |place| place.path());
        let read = place.and_then(|place| match place.read()? {
            Locked::Absent if policy.lock_file.is_some() => Err(LockError::Missing),
            Locked::Absent => Ok(None),
            Locked::Present(lock) => Ok(Some(lock)),
        });
        Self { policy, directory, lock_path, lock: read.map_err(Arc::new) }
    }

    /// Judges one library.
    ///
    /// # Errors
    ///
    /// [`TrustError`] when the lock file or the signature is against it and `setting` does not override them.
    pub fn judge(&self, subject: Subject<'_>, setting: TrustSetting) -> Result<TrustState, Box<TrustError>> {
        let judged = self.check(subject);
        if setting == TrustSetting::Enforce {
            return judged;
        }
        let reason = match judged {
            Err(error) => format!("it would be refused: {}", chain(&*error)),
            Ok(_) => "nothing would refuse it; remove the override".to_owned(),
        };
        let name = &subject.manifest.name;
        tracing::warn!(path = %shown(subject.path), "[plugins.{name}] trust = \"override\": {reason}");
        Ok(TrustState::Overridden)
    }

    fn check(&self, subject: Subject<'_>) -> Result<TrustState, Box<TrustError>> {
        let locked = self.check_lock(subject)?;
        let signed = !self.policy.trusted_keys.is_empty();
        if signed {
            let mut name = subject.path.file_name().map_or_else(OsString::new, OsString::from);
            name.push(".minisig");
            signature::check(&self.directory, &name, subject.bytes, &self.policy.trusted_keys)
                .map_err(|error| Box::new(error.into()))?;
        }
        Ok(match (locked, signed) {
            (true, true) => TrustState::LockedAndSigned,
            (true, false) => TrustState::Locked,
            (false, true) => TrustState::Signed,
            (false, false) => TrustState::Unchecked,
        })
    }

    /// Whether there is a lock that holds the library.
    fn check_lock(&self, subject: Subject<'_>) -> Result<bool, Box<TrustError>> {
        let lock = self.lock.as_ref().map_err(|error| TrustError::Lock {
            path: self.lock_path.clone(),
            command: self.lock_command(),
            source: Arc::clone(error),
        });
        let lock = lock.map_err(Box::new)?;
        let Some(lock) = lock else { return Ok(false) };
        let found = LockEntry::new(subject.manifest, subject.digest);
        if lock.plugins.contains(&found) {
            return Ok(true);
        }
        let expected = lock.plugins.iter().filter(|entry| entry.name == found.name).cloned().collect();
        Err(Box::new(TrustError::NotLocked { path: self.lock_path.clone(), found, expected, command: self.lock_command() }))
    }

    fn lock_command(&self) -> String {
        let named = self.policy.lock_file.as_ref().map(|path| format!(" --lock-file {}", shown(path)));
        format!("qtasks-host plugin lock --plugins {}{}", shown(self.directory.path()), named.unwrap_or_default())
    }
}
