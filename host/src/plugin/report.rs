//! What became of each candidate.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::discover::Candidate;
use super::elf;
use super::load_error::{LoadError, LoadErrorKind, chain, path_as_text};
use super::loader::Inspected;
use super::manifest::Manifest;
use super::probe::QuarantinedError;
use super::verdicts::{Verdict, Verdicts};

/// How a candidate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadState {
    /// Its manifest is good; it was not loaded.
    Found,
    /// Created and started.
    Running,
    /// The operator disabled it; it was not loaded.
    Disabled,
    /// Refused.
    Refused,
}

/// What became of one candidate.
///
/// ```json
/// {"path": "/plugins/libfallback.so", "state": "refused", "code": "abi", "reason": "…", "manifest": {…}}
/// ```
#[derive(Debug, Serialize)]
pub struct LoadReport {
    /// The file.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How it ended.
    pub state: LoadState,
    /// What it declares, where that could be read.
    pub manifest: Option<Manifest>,
    /// Why it was refused: the whole chain of causes, and its code.
    #[serde(flatten, serialize_with = "refusal")]
    pub error: Option<LoadError>,
}

impl LoadReport {
    pub(super) fn new(candidate: &Candidate) -> Self {
        Self { path: candidate.path.clone(), state: LoadState::Refused, manifest: None, error: None }
    }

    pub(super) fn refused(&mut self, kind: impl Into<LoadErrorKind>) {
        self.state = LoadState::Refused;
        self.error = Some(LoadError { path: self.path.clone(), kind: kind.into() });
    }

    /// Looks at a candidate without loading it: runs nothing of its code. With `verdicts`, quarantined bytes are refused.
    #[must_use]
    pub fn look(candidate: &Candidate, verdicts: Option<&Verdicts>) -> Self {
        let mut report = Self::new(candidate);
        let inspected = match Inspected::read(candidate) {
            Ok(inspected) => inspected,
            Err(kind) => {
                report.refused(kind);
                return report;
            }
        };
        let verdict = verdicts.map_or(Verdict::Unknown, |verdicts| verdicts.look(&inspected.digest()));
        report.state = LoadState::Found;
        if let Err(error) = elf::check(inspected.bytes()) {
            report.refused(error);
        } else if let Verdict::Quarantined(quarantined) = verdict {
            report.refused(LoadErrorKind::Quarantined(QuarantinedError(*quarantined)));
        }
        report.manifest = Some(inspected.into_manifest());
        report
    }

    /// The plugin's name, where it could be read.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.manifest.as_ref().map(|manifest| manifest.name.as_str())
    }

    /// Why it was refused, as one line: the error and all its causes.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.error.as_ref().map(|error| chain(&error.kind))
    }
}

fn refusal<S: Serializer>(error: &Option<LoadError>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Refusal<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
    let kind = error.as_ref().map(|error| &error.kind);
    Refusal { code: kind.map(LoadErrorKind::code), reason: kind.map(|kind| chain(kind)) }.serialize(serializer)
}
