//! Takes candidates through the stages: read, manifest, (static check, trust, probe: their place is here), open, compare, create,
//! start. Every candidate ends in a report; one that is refused never stops the others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qtasks_plugin_api::abi::loaded::{CallError, Instance, Module};
use qtasks_plugin_api::{Export, Init};
use serde::{Serialize, Serializer};
use serde_json::value::to_raw_value;

use super::discover::{Candidate, DiscoverError, discover};
use super::instance::{Origin, Plugin};
use super::library::{self, OpenError};
use super::manifest::{self, Manifest, ManifestError, ManifestText};
use super::services::TracingServices;
use super::settings::PluginSettings;
use crate::nearest::nearest_in;

/// A plugin library that was refused.
#[derive(Debug, thiserror::Error)]
#[error("plugin library {} refused", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub kind: LoadErrorKind,
}

/// Why a plugin library was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// The file cannot be read.
    #[error("unreadable")]
    Read(#[from] DiscoverError),
    /// The manifest is missing or wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A plugin of this name is there already.
    #[error("the name {name} is taken by {}; keep one of the two, or give one another package name", first.display())]
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
    /// The library cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
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
    #[error("plugin {plugin} could not be created: {source}")]
    Create {
        /// The plugin.
        plugin: String,
        /// What it said.
        source: CallError,
    },
    /// The plugin refused to start, or panicked.
    #[error("plugin {plugin} did not start: {source}")]
    Start {
        /// The plugin.
        plugin: String,
        /// What it said.
        source: CallError,
    },
}

impl LoadErrorKind {
    /// A stable code for scripts and for the documentation.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "unreadable",
            Self::Manifest(ManifestError::Abi { .. }) => "abi",
            Self::Manifest(_) => "manifest",
            Self::NameTaken { .. } => "name-taken",
            Self::TaskTaken { .. } => "task-taken",
            Self::Open(_) => "open",
            Self::ManifestDiffers { .. } => "manifest-differs",
            Self::Config { .. } => "config",
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
        }
    }
}

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
    fn new(candidate: &Candidate) -> Self {
        Self { path: candidate.path.clone(), state: LoadState::Refused, manifest: None, error: None }
    }

    fn refused(&mut self, kind: impl Into<LoadErrorKind>) {
        self.state = LoadState::Refused;
        self.error = Some(LoadError { path: self.path.clone(), kind: kind.into() });
    }

    /// Looks at a candidate without loading it: runs nothing of its code.
    #[must_use]
    pub fn look(candidate: &Candidate) -> Self {
        let mut report = Self::new(candidate);
        match read_manifest(candidate) {
            Ok(found) => {
                report.state = LoadState::Found;
                report.manifest = Some(found.manifest);
            }
            Err(kind) => report.refused(kind),
        }
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

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some variants name their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What became of a plugin directory.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The plugins that run, by name.
    pub plugins: Vec<Arc<Plugin>>,
    /// One report for each candidate, in the order of their file names.
    pub reports: Vec<LoadReport>,
}

/// Loads plugins by the operator's settings.
#[derive(Debug, Clone, Copy)]
pub struct Loader<'a> {
    /// `[plugins.NAME]`.
    pub settings: &'a BTreeMap<String, PluginSettings>,
    /// Each plugin's data directory is `STATE_DIR/plugins/NAME`.
    pub state_dir: &'a Path,
}

impl Loader<'_> {
    /// Loads what lies in `directory` beside what is loaded already. Runs the code of every library whose manifest is good, on
    /// this thread.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when the directory cannot be listed; anything else is in the reports.
    pub fn load_directory(&self, directory: &Path, loaded: &mut Loaded) -> Result<(), DiscoverError> {
        for candidate in discover(directory)? {
            let report = self.load(&candidate, &mut loaded.plugins);
            if let Some(error) = &report.error {
                tracing::warn!(path = %error.path.display(), code = error.kind.code(), "plugin refused: {}", chain(&error.kind));
            }
            loaded.reports.push(report);
        }
        loaded.plugins.sort_by(|left, right| left.name().cmp(right.name()));
        Ok(())
    }

    /// Looks at what lies in `directory` without loading it: runs no code of any library.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when the directory cannot be listed; anything else is in the reports.
    pub fn look(&self, directory: &Path) -> Result<Vec<LoadReport>, DiscoverError> {
        let mut reports: Vec<LoadReport> = Vec::new();
        for candidate in discover(directory)? {
            let mut report = LoadReport::look(&candidate);
            if let Some(name) = report.name().map(str::to_owned) {
                let enabled = self.settings.get(&name).is_none_or(|settings| settings.enabled);
                let taken = reports.iter().find(|other| other.state == LoadState::Found && other.name() == Some(&name));
                match taken.map(|other| other.path.clone()) {
                    _ if !enabled => report.state = LoadState::Disabled,
                    Some(first) => report.refused(LoadErrorKind::NameTaken { name, first }),
                    None => {}
                }
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Takes one candidate through the stages; adds it to `plugins` when it runs.
    pub fn load(&self, candidate: &Candidate, plugins: &mut Vec<Arc<Plugin>>) -> LoadReport {
        let mut report = LoadReport::new(candidate);
        match self.stages(candidate, plugins, &mut report.manifest) {
            Ok(Some(plugin)) => {
                report.state = LoadState::Running;
                plugins.push(Arc::new(plugin));
            }
            Ok(None) => report.state = LoadState::Disabled,
            Err(kind) => report.refused(kind),
        }
        report
    }

    fn stages(
        &self,
        candidate: &Candidate,
        others: &[Arc<Plugin>],
        declared: &mut Option<Manifest>,
    ) -> Result<Option<Plugin>, LoadErrorKind> {
        let in_file = read_manifest(candidate)?;
        *declared = Some(in_file.manifest.clone());
        let settings = self.settings.get(&in_file.manifest.name).cloned().unwrap_or_default();
        if !settings.enabled {
            return Ok(None);
        }
        self.bring_up(candidate, in_file, settings, others).map(Some)
    }

    /// The stages after the manifest was read: opens the library, compares, creates, starts.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind`], the first thing that is wrong.
    pub fn bring_up(
        &self,
        candidate: &Candidate,
        in_file: ManifestText,
        settings: PluginSettings,
        others: &[Arc<Plugin>],
    ) -> Result<Plugin, LoadErrorKind> {
        let ManifestText { text: expected, manifest } = in_file;
        check_name(&manifest, others)?;
        check_tasks(&manifest, others)?;
        #[expect(unsafe_code, reason = "the operator put this file into the plugin directory, and its manifest was read")]
        // SAFETY: as said: the operator vouches for the file, which is what `open` asks for.
        let module = unsafe { library::open(&candidate.path) }.map_err(log_layout_dump)?;
        let found = module.manifest().map_err(ManifestError::from)?;
        if found != expected {
            let excerpt = |text: &str| text.chars().take(120).collect::<String>();
            return Err(LoadErrorKind::ManifestDiffers { found: excerpt(found), expected: excerpt(&expected) });
        }
        let instance = self.create(module, &manifest, &settings)?;
        Ok(Plugin::new(manifest, Origin::Library(candidate.path.clone()), settings, instance))
    }

    /// The operator's settings for a plugin that is linked into the application.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind::Manifest`] when its manifest is not one.
    pub fn settings_of<P: Export>(&self) -> Result<PluginSettings, LoadErrorKind> {
        let manifest = linked_in_manifest::<P>()?;
        Ok(self.settings.get(&manifest.name).cloned().unwrap_or_default())
    }

    /// Creates and starts a plugin that is linked into the application, beside `others`.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind`] when its name or a task of it is taken, when it refuses its configuration or its start, or panics.
    pub fn linked_in<P: Export>(&self, settings: PluginSettings, others: &[Arc<Plugin>]) -> Result<Plugin, LoadErrorKind> {
        let manifest = linked_in_manifest::<P>()?;
        check_name(&manifest, others)?;
        check_tasks(&manifest, others)?;
        let instance = self.create(Module::linked_in::<P>(), &manifest, &settings)?;
        Ok(Plugin::new(manifest, Origin::LinkedIn, settings, instance))
    }

    fn create(&self, module: Module, manifest: &Manifest, settings: &PluginSettings) -> Result<Instance, LoadErrorKind> {
        let config = to_raw_value(&settings.config).map_err(|error| LoadErrorKind::Config {
            plugin: manifest.name.clone(),
            message: error.to_string(),
            hint: String::new(),
        })?;
        let init = Init {
            plugin: manifest.name.clone(),
            data_dir: self.state_dir.join("plugins").join(&manifest.name),
            config,
            host_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let services = TracingServices::new(manifest.name.as_str().into());
        let instance = module.create(&init, services).map_err(|source| create_error(manifest, source))?;
        instance.start().map_err(|source| LoadErrorKind::Start { plugin: manifest.name.clone(), source })?;
        Ok(instance)
    }
}

/// A name has one plugin.
fn check_name(manifest: &Manifest, others: &[Arc<Plugin>]) -> Result<(), LoadErrorKind> {
    let Some(first) = others.iter().find(|other| other.name() == manifest.name) else { return Ok(()) };
    let first = match first.origin() {
        Origin::Library(path) => path.clone(),
        Origin::LinkedIn => PathBuf::from("a plugin that is linked in"),
    };
    Err(LoadErrorKind::NameTaken { name: manifest.name.clone(), first })
}

/// A task has one provider.
fn check_tasks(manifest: &Manifest, others: &[Arc<Plugin>]) -> Result<(), LoadErrorKind> {
    for task in &manifest.tasks {
        let provides = |other: &&Arc<Plugin>| other.manifest().tasks.iter().any(|known| known.name == task.name);
        if let Some(first) = others.iter().find(provides) {
            return Err(LoadErrorKind::TaskTaken { task: task.name.clone(), first: first.name().to_owned() });
        }
    }
    Ok(())
}

fn read_manifest(candidate: &Candidate) -> Result<ManifestText, LoadErrorKind> {
    Ok(manifest::read(&candidate.read()?)?)
}

fn linked_in_manifest<P: Export>() -> Result<Manifest, LoadErrorKind> {
    Ok(serde_json::from_str(P::MANIFEST).map_err(|error| ManifestError::Shape(error.to_string()))?)
}

fn create_error(manifest: &Manifest, source: CallError) -> LoadErrorKind {
    let plugin = manifest.name.clone();
    match source {
        CallError::Plugin(body) if body.kind == "ConfigError" => {
            LoadErrorKind::Config { plugin, hint: nearest_in(&body.message), message: body.message }
        }
        source => LoadErrorKind::Create { plugin, source },
    }
}

/// The comparison of layouts is up to 28 KB long: it goes to the debug log, the message stays readable.
fn log_layout_dump(error: OpenError) -> OpenError {
    if let OpenError::Module(qtasks_plugin_api::abi::loaded::ModuleError::Layout { dump }) = &error {
        tracing::debug!("layout comparison: {dump}");
    }
    error
}
