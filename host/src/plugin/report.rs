//! What became of each candidate.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::discover::{Candidate, Found};
use super::elf;
use super::inspected::Inspected;
use super::load_error::{LoadError, LoadErrorKind};
use super::manifest::Manifest;
use super::probe::QuarantinedError;
use super::settings::PluginSettings;
use super::trust::{Trust, TrustState};
use super::verdicts::{Verdict, Verdicts};
use crate::shown::{chain, path_as_text, shown};

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
/// {"path": "/plugins/libfallback.so", "state": "refused", "trust": "locked", "code": "abi", "reason": "…", "manifest": {…}}
/// ```
#[derive(Debug, Serialize)]
pub struct LoadReport {
    /// The file.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// How it ended.
    pub state: LoadState,
    /// What it is trusted for, where that was asked and not refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustState>,
    /// What loading it changes in a process, where that is known and the operator admits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side_effects: Option<String>,
    /// What it declares, where that could be read.
    pub manifest: Option<Manifest>,
    /// Why it was refused: the whole chain of causes, and its code.
    #[serde(flatten, serialize_with = "refusal")]
    pub error: Option<LoadError>,
}

impl LoadReport {
    pub(super) fn new(candidate: &Candidate) -> Self {
        Self {
            path: candidate.path.clone(),
            state: LoadState::Refused,
            trust: None,
            side_effects: None,
            manifest: None,
            error: None,
        }
    }

    pub(super) fn refused(&mut self, kind: impl Into<LoadErrorKind>) {
        self.state = LoadState::Refused;
        self.error = Some(LoadError { path: self.path.clone(), kind: kind.into() });
    }

    /// Looks at a candidate without loading it: runs nothing of its code. With `verdicts`, quarantined bytes are refused.
    #[must_use]
    pub fn look(candidate: &Candidate, verdicts: Option<&Verdicts>) -> Self {
        Self::of(candidate, Inspected::read(candidate), |inspected, _| {
            elf::check(inspected.bytes())?;
            verdicts.map_or(Ok(()), |verdicts| look_up(inspected, verdicts))
        })
    }

    /// The same for what lies in a plugin directory, where the question of trust can be asked.
    pub(super) fn look_at_found(
        found: Found,
        verdicts: &Verdicts,
        trust: &Trust<'_>,
        settings: &BTreeMap<String, PluginSettings>,
    ) -> Self {
        let candidate = found.candidate.clone();
        Self::of(&candidate, Inspected::open(found), |inspected, report| {
            let settings = report.name().and_then(|name| settings.get(name)).cloned().unwrap_or_default();
            // What is disabled is not loaded, so nothing refuses it.
            if !settings.enabled {
                return Ok(());
            }
            elf::check(inspected.bytes())?;
            report.trust = Some(inspected.judge(trust, settings.trust)?);
            if let Err(kind) = look_up(inspected, verdicts) {
                report.side_effects = Some(kind.admitted(&settings)?);
            }
            Ok(())
        })
    }

    fn of(
        candidate: &Candidate,
        inspected: Result<Inspected, LoadErrorKind>,
        checks: impl FnOnce(&Inspected, &mut Self) -> Result<(), LoadErrorKind>,
    ) -> Self {
        let mut report = Self::new(candidate);
        let checked = inspected.and_then(|inspected| {
            report.manifest = Some(inspected.manifest().clone());
            checks(&inspected, &mut report)
        });
        match checked {
            Ok(()) => report.state = LoadState::Found,
            Err(kind) => report.refused(kind),
        }
        report
    }

    /// The plugin's name, where it could be read.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.manifest.as_ref().map(|manifest| manifest.name.as_str())
    }

    /// Why it is not loaded, for somebody who wants something of it; `None` where it is.
    pub(crate) fn why_not_loaded(&self) -> Option<String> {
        let path = shown(&self.path);
        let plugin = self.name().map_or_else(|| path.to_string(), |name| format!("plugin {name} ({path})"));
        match (self.state, self.reason()) {
            (LoadState::Refused, reason) => Some(format!("{plugin} was refused: {}", reason.unwrap_or_default())),
            (LoadState::Disabled, _) => Some(format!("{plugin} is disabled")),
            _ => None,
        }
    }

    /// Why it was refused, as one line: the error and all its causes.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.error.as_ref().map(|error| chain(&error.kind))
    }
}

/// Refuses quarantined bytes.
fn look_up(inspected: &Inspected, verdicts: &Verdicts) -> Result<(), LoadErrorKind> {
    match verdicts.look(&inspected.digest()) {
        Verdict::Quarantined(quarantined) => Err(LoadErrorKind::Quarantined(QuarantinedError(*quarantined))),
        _ => Ok(()),
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
