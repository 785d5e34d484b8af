//! A library that was read, and of which nothing has run.

use std::fs::File;
use std::io::Seek as _;
use std::path::Path;

use super::bytes::{BytesError, Digest, LibraryBytes, Storage};
use super::discover::{Candidate, Found, MAX_LIBRARY_BYTES};
use super::load_error::LoadErrorKind;
use super::manifest::{self, Manifest, ManifestText};
use super::trust::{self, Trust, TrustSetting, TrustState};
use super::verdicts::Subject;

/// A candidate whose bytes and manifest were read.
#[derive(Debug)]
pub struct Inspected {
    pub(super) candidate: Candidate,
    pub(super) bytes: LibraryBytes,
    pub(super) manifest: ManifestText,
}

impl Inspected {
    /// Reads a candidate's bytes, once, and its manifest. Runs nothing of it.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind::Read`] or [`LoadErrorKind::Manifest`].
    pub fn read(candidate: &Candidate) -> Result<Self, LoadErrorKind> {
        let bytes = LibraryBytes::read(candidate, MAX_LIBRARY_BYTES)?;
        let manifest = manifest::read(bytes.as_slice())?;
        Ok(Self { candidate: candidate.clone(), bytes, manifest })
    }

    /// Like [`read`](Self::read), from the file that was opened, and checked, when it was found.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind::File`], [`LoadErrorKind::Read`] or [`LoadErrorKind::Manifest`].
    pub fn open(found: Found) -> Result<Self, LoadErrorKind> {
        let Found { candidate, file, .. } = found;
        let bytes = read_open_file(file?, &candidate.path)?;
        let manifest = manifest::read(bytes.as_slice())?;
        Ok(Self { candidate, bytes, manifest })
    }

    /// SHA-256 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.bytes.digest()
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest.manifest
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Whether the operator vouches for it.
    pub(super) fn judge(&self, trust: &Trust<'_>, setting: TrustSetting) -> Result<TrustState, LoadErrorKind> {
        let manifest = self.manifest();
        let path = &self.candidate.path;
        let subject = trust::Subject { manifest, path, digest: self.digest(), bytes: self.bytes() };
        Ok(trust.judge(subject, setting)?)
    }

    pub(super) fn into_manifest(self) -> Manifest {
        self.manifest.manifest
    }

    pub(super) fn subject(&self) -> Subject {
        let plugin = self.manifest.manifest.name.clone();
        Subject { digest: self.bytes.digest(), path: self.candidate.path.clone(), plugin }
    }
}

/// Reads an open file into memory or else, where memfds are refused, into the system's temporary directory.
fn read_open_file(file: File, path: &Path) -> Result<LibraryBytes, BytesError> {
    let again = file.try_clone();
    match (LibraryBytes::from_file(file, path, MAX_LIBRARY_BYTES, Storage::Memory), again) {
        (Err(BytesError::Copy { .. }), Ok(mut again)) => {
            again.rewind().map_err(|source| BytesError::Read { path: path.to_owned(), source })?;
            LibraryBytes::from_file(again, path, MAX_LIBRARY_BYTES, Storage::Directory(&std::env::temp_dir()))
        }
        (result, _) => result,
    }
}
