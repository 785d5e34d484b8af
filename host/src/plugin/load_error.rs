//! Why a plugin library was refused.

use std::path::PathBuf;

use super::bytes::BytesError;
use super::discover::{DiscoverError, FileError};
use super::elf::ElfError;
use super::library::OpenError;
use super::manifest::ManifestError;
use super::probe::{ProbeError, QuarantinedError};
use super::process::spawn::GuestError;
use super::settings::PluginSettings;
use super::trust::TrustError;
use super::verdicts::QuarantineKind;
use crate::shown::{chain, shown};

/// What an application without a guest program does about it.
pub(crate) const GUEST_PROGRAM_EXPECTED: &str = "call qtasks_host::guest::run_if_asked() first in main, or name a qtasks-host binary with \
     `guest_program`; with `probe = false` libraries are loaded at your own risk";

/// A plugin library that was refused.
#[derive(Debug, thiserror::Error)]
#[error("plugin library {} refused: {}", shown(path), chain(kind))]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub kind: LoadErrorKind,
}

/// Why a plugin library was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// Its directory cannot be used.
    #[error(transparent)]
    Directory(#[from] Box<DiscoverError>),
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file cannot be read.
    #[error("unreadable")]
    Read(#[from] BytesError),
    /// The manifest is missing or wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A plugin of this name is there already.
    #[error(
        "the name {name} is taken by {}; keep one of the two, or give one another package name, or `name: \"…\"` in its export_plugin! or define_plugin!",
        shown(first)
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The file that has it.
        first: PathBuf,
    },
    /// A task of this name is there already.
    #[error("it provides the task {task}, as does the plugin {first}; disable one of them with [plugins.NAME] enabled = false")]
    TaskTaken {
        /// The task.
        task: String,
        /// The plugin that provides it already.
        first: String,
    },
    /// A task of this name is the application's, or a command of the operator's.
    #[error(
        "it provides the task {task}, which the application or `[tasks.{task}] command` provides; give one of them another name, or \
         disable the plugin with [plugins.NAME] enabled = false"
    )]
    OwnTask {
        /// The task.
        task: String,
    },
    /// The library cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The static check found it damaged or unfit.
    #[error("the static check refused it")]
    Elf(#[from] ElfError),
    /// The operator's lock file or keys do not vouch for it.
    #[error(transparent)]
    Trust(#[from] Box<TrustError>),
    /// These bytes are in quarantine.
    #[error("it is in quarantine")]
    Quarantined(#[source] QuarantinedError),
    /// The probe refused it.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Nothing to probe or to isolate with.
    #[error("there is no guest program to probe it or to isolate it with, so it is not loaded; {}", GUEST_PROGRAM_EXPECTED)]
    NoGuestProgram,
    /// It does not come up in a process of its own.
    #[error("plugin {plugin} does not run in a process of its own")]
    Isolated {
        /// The plugin.
        plugin: String,
        /// Why.
        source: GuestError,
    },
    /// The library says something else than its file.
    #[error("the library says another manifest when loaded than its file holds: {found}, expected {expected}; rebuild it")]
    ManifestDiffers {
        /// What the loaded library says.
        found: String,
        /// What the file says.
        expected: String,
    },
    /// The configuration does not suit the plugin.
    #[error("[plugins.{plugin}.config]: {message}{hint}")]
    Config {
        /// The plugin.
        plugin: String,
        /// What is wrong.
        message: String,
        /// The nearest known key, as words.
        hint: String,
    },
    /// The plugin refused to be created, or panicked.
    #[error("plugin {plugin} could not be created: {said}")]
    Create {
        /// The plugin.
        plugin: String,
        /// What it said.
        said: String,
    },
    /// The plugin refused to start, or panicked.
    #[error("plugin {plugin} did not start: {said}")]
    Start {
        /// The plugin.
        plugin: String,
        /// What it said.
        said: String,
    },
}

impl LoadErrorKind {
    /// What loading changes in a process, if that is all that is wrong, and if these settings admit it.
    pub(super) fn admitted(self, settings: &PluginSettings) -> Result<String, Self> {
        match self {
            Self::Quarantined(QuarantinedError(found)) | Self::Probe(ProbeError::Quarantined(QuarantinedError(found)))
                if found.kind == QuarantineKind::SideEffect && settings.admits_side_effects() =>
            {
                Ok(found.evidence)
            }
            refused => Err(refused),
        }
    }

    /// A stable code for scripts and for the documentation.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Directory(error) => error.code(),
            Self::File(error) => error.code(),
            Self::Read(error) => error.code(),
            Self::Manifest(ManifestError::Abi { .. }) => "abi",
            Self::Manifest(_) => "manifest",
            Self::NameTaken { .. } => "name-taken",
            Self::TaskTaken { .. } | Self::OwnTask { .. } => "task-taken",
            Self::Open(_) => "open",
            Self::Elf(error) => error.code(),
            Self::Trust(error) => error.code(),
            Self::Quarantined(_) => "quarantined",
            Self::Probe(ProbeError::Quarantined(_)) => "probe-harm",
            Self::Probe(ProbeError::Refused { .. }) => "probe-refused",
            Self::Probe(_) => "probe-failed",
            Self::NoGuestProgram => "no-guest-program",
            Self::Isolated { .. } => "isolated",
            Self::ManifestDiffers { .. } => "manifest-differs",
            Self::Config { .. } => "config",
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
        }
    }
}
