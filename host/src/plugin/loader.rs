//! Takes candidates through the stages: read, manifest, static check, trust, probe, open, compare, create, start. Every candidate ends in a report; one that is refused never stops the others.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Seek as _;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::abi::loaded::{CallError, Instance, Layout, Module};
use qtasks_plugin_api::{Export, HostServices, Init};
use serde_json::value::to_raw_value;

use super::bytes::{BytesError, Digest, LibraryBytes, Storage};
use super::culprit::{self, Culprit, Record};
use super::discover::{Candidate, DiscoverError, Found, MAX_LIBRARY_BYTES, PluginDirectory, discover};
use super::elf;
use super::instance::{Home, Origin, Plugin};
use super::library::{self, OpenError};
use super::load_error::LoadErrorKind;
use super::manifest::{self, Manifest, ManifestError, ManifestText};
use super::probe::{self, QuarantinedError};
use super::process::guest::{Purpose, Start};
use super::process::sandbox::Limits;
use super::process::spawn::GuestError;
use super::process::supervisor::{Isolated, Recipe};
use super::report::{LoadReport, LoadState};
use super::services::TracingServices;
use super::settings::{Isolation, PluginSettings};
use super::start_watch::StartWatch;
use super::trust::{self, Trust, TrustPolicy, TrustSetting, TrustState};
use super::verdicts::{QuarantineKind, Subject, Verdict, Verdicts};
use crate::nearest::nearest_in;
use crate::shown::{chain, shown};

/// What became of a plugin directory.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The plugins that run, by name.
    pub plugins: Vec<Arc<Plugin>>,
    /// One report for each candidate, in the order of their file names.
    pub reports: Vec<LoadReport>,
    /// Plugins of libraries that ran before, and whose files did not have their turn yet.
    pub(super) before: Vec<Arc<Plugin>>,
}

/// How libraries are loaded, whatever plugin they hold.
#[derive(Debug, Clone)]
pub struct LoadPolicy {
    /// Each plugin's data directory is `STATE_DIR/plugins/NAME`; verdicts are in `STATE_DIR/verdicts`.
    pub state_dir: PathBuf,
    /// The `qtasks-host` binary, which is started as a guest to probe and to isolate. An application may name itself when it calls
    /// [`run_if_asked`](super::process::guest::run_if_asked) first in `main`.
    pub guest_program: Option<PathBuf>,
    /// Whether bytes that this host has never loaded are loaded in a guest first. Without it a bad library may end the host.
    pub probe: bool,
    /// Longest time for a probe.
    pub probe_deadline: Duration,
    /// Who is being started.
    pub watch: Arc<StartWatch>,
    /// Whom to trust.
    pub trust: TrustPolicy,
}

/// Loads plugins by the operator's settings.
#[derive(Debug, Clone, Copy)]
pub struct Loader<'a> {
    /// `[plugins.NAME]`.
    pub settings: &'a BTreeMap<String, PluginSettings>,
    /// How libraries are loaded.
    pub policy: &'a LoadPolicy,
}

/// A candidate whose bytes and manifest were read.
#[derive(Debug)]
pub struct Inspected {
    candidate: Candidate,
    bytes: LibraryBytes,
    manifest: ManifestText,
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

    fn subject(&self) -> Subject {
        let plugin = self.manifest.manifest.name.clone();
        Subject { digest: self.bytes.digest(), path: self.candidate.path.clone(), plugin }
    }
}

impl Loader<'_> {
    /// Loads what lies in `directory` beside what is loaded already. Runs the code of every library whose manifest is good.
    /// Blocks, and needs a tokio runtime around it where plugins are isolated.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when the directory cannot be listed; anything else is in the reports.
    pub fn load_directory(&self, directory: &Path, loaded: &mut Loaded) -> Result<(), DiscoverError> {
        self.quarantine_culprits();
        let discovered = discover(directory, self.policy.trust.strictness)?;
        log_cautions(discovered.directory());
        let trust = Trust::new(&self.policy.trust, Arc::clone(discovered.directory()));
        for found in discovered {
            let report = self.load_found(found, &trust, loaded);
            if let Some(error) = &report.error {
                tracing::warn!(path = %shown(&error.path), code = error.kind.code(), "plugin refused: {}", chain(&error.kind));
            }
            loaded.reports.push(report);
        }
        loaded.keep_what_was_refused();
        loaded.plugins.sort_by(|left, right| left.name().cmp(right.name()));
        Ok(())
    }

    /// Looks at what lies in `directory` without loading it: runs no code of any library.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when the directory cannot be listed; anything else is in the reports.
    pub fn look(&self, directory: &Path) -> Result<Vec<LoadReport>, DiscoverError> {
        let verdicts = Verdicts::new(&self.policy.state_dir);
        let mut reports: Vec<LoadReport> = Vec::new();
        let discovered = discover(directory, self.policy.trust.strictness)?;
        log_cautions(discovered.directory());
        let trust = Trust::new(&self.policy.trust, Arc::clone(discovered.directory()));
        for found in discovered {
            log_file_cautions(&found);
            let mut report = LoadReport::look_at_found(found, &verdicts, &trust, self.settings);
            if let Some(name) = report.name().map(str::to_owned).filter(|_| report.state == LoadState::Found) {
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
    /// Its directory is opened and checked, and its lock file holds, as if the whole directory were loaded.
    pub fn load(&self, candidate: &Candidate, plugins: &mut Vec<Arc<Plugin>>) -> LoadReport {
        let parent = candidate.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = match PluginDirectory::open(parent, self.policy.trust.strictness) {
            Ok(directory) => Arc::new(directory),
            Err(error) => {
                let mut report = LoadReport::new(candidate);
                report.refused(Box::new(error));
                return report;
            }
        };
        let found = directory.candidate(candidate.path.file_name().unwrap_or(OsStr::new("")));
        let mut loaded = Loaded { plugins: std::mem::take(plugins), ..Loaded::default() };
        let report = self.load_found(found, &Trust::new(&self.policy.trust, directory), &mut loaded);
        *plugins = loaded.plugins;
        report
    }

    fn load_found(&self, found: Found, trust: &Trust<'_>, loaded: &mut Loaded) -> LoadReport {
        log_file_cautions(&found);
        let mut report = LoadReport::new(&found.candidate);
        match self.stages(found, trust, loaded, &mut report) {
            Ok(Some(plugin)) => {
                report.state = LoadState::Running;
                loaded.take_in(plugin, &report.path);
            }
            Ok(None) => report.state = LoadState::Disabled,
            Err(kind) => report.refused(kind),
        }
        report
    }

    fn stages(
        &self,
        found: Found,
        trust: &Trust<'_>,
        loaded: &Loaded,
        report: &mut LoadReport,
    ) -> Result<Option<Arc<Plugin>>, LoadErrorKind> {
        let inspected = Inspected::open(found)?;
        let manifest = report.manifest.insert(inspected.manifest.manifest.clone());
        let settings = self.settings.get(&manifest.name).cloned().unwrap_or_default();
        if !settings.enabled {
            return Ok(None);
        }
        check_name(manifest, &loaded.plugins)?;
        if let Some(running) = loaded.running(inspected.digest()) {
            report.trust = Some(inspected.judge(trust, settings.trust)?);
            return Ok(Some(Arc::clone(running)));
        }
        check_tasks(manifest, loaded.plugins.iter().chain(loaded.not_replaced_by(manifest, &report.path)))?;
        elf::check(inspected.bytes())?;
        report.trust = Some(inspected.judge(trust, settings.trust)?);
        let layout = self.first_load(&inspected)?;
        self.bring_up(inspected, settings, layout).map(|plugin| Some(Arc::new(plugin)))
    }

    /// The stages that decide whether bytes do harm: static check, quarantine, probe. Says whether the boundary's layout was
    /// compared on the way. Whether the operator trusts them is another question, which is asked between the two.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind`], the first thing that is wrong.
    pub fn verify(&self, inspected: &Inspected) -> Result<Layout, LoadErrorKind> {
        elf::check(inspected.bytes())?;
        self.first_load(inspected)
    }

    fn first_load(&self, inspected: &Inspected) -> Result<Layout, LoadErrorKind> {
        let verdicts = Verdicts::new(&self.policy.state_dir);
        let subject = inspected.subject();
        match verdicts.look(&subject.digest) {
            Verdict::Good { .. } => Ok(Layout::ComparedBefore),
            Verdict::Quarantined(quarantined) => Err(LoadErrorKind::Quarantined(QuarantinedError(*quarantined))),
            Verdict::Unknown if !self.policy.probe => Ok(Layout::Compare),
            Verdict::Unknown => {
                let program = self.guest_program()?;
                let manifest = &inspected.manifest.text;
                let deadline = self.policy.probe_deadline;
                probe::probe(program, inspected.bytes.sealed().file().as_fd(), manifest, &subject, &verdicts, deadline)?;
                Ok(Layout::ComparedBefore)
            }
        }
    }

    /// Keeps out what ended an earlier host.
    fn quarantine_culprits(&self) {
        let verdicts = Verdicts::new(&self.policy.state_dir);
        for Record { plugin, path, digest, cause } in culprit::take_records(&self.policy.state_dir) {
            let cause = cause.unwrap_or_else(|| "no cause is on record".to_owned());
            let evidence = format!("the host ended ({cause}) while it ran code of this plugin");
            let subject = Subject { digest, path, plugin };
            if let Err(error) = verdicts.quarantine(&subject, QuarantineKind::KilledTheHost, evidence) {
                tracing::error!("{}", chain(&error));
            }
        }
    }

    fn guest_program(&self) -> Result<&Path, LoadErrorKind> {
        self.policy.guest_program.as_deref().ok_or(LoadErrorKind::NoGuestProgram)
    }

    /// The stages after the bytes were found good: opens the library, compares manifests, creates, starts; here or in a process of
    /// its own.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind`], the first thing that is wrong.
    pub fn bring_up(&self, inspected: Inspected, settings: PluginSettings, layout: Layout) -> Result<Plugin, LoadErrorKind> {
        let origin = Origin::Library { path: inspected.candidate.path.clone(), digest: inspected.digest() };
        let (manifest, home) = match settings.isolation {
            Isolation::InProcess => self.open_here(inspected, &settings, layout)?,
            Isolation::Process => self.open_in_process(inspected, &settings)?,
        };
        Ok(Plugin::new(manifest, origin, settings, home))
    }

    fn open_here(
        &self,
        inspected: Inspected,
        settings: &PluginSettings,
        layout: Layout,
    ) -> Result<(Manifest, Home), LoadErrorKind> {
        let Inspected { candidate, bytes, manifest: ManifestText { text: expected, manifest } } = inspected;
        let mark = Culprit::leak(&manifest.name, &manifest.version, &candidate.path, bytes.digest());
        let sealed = bytes.into_sealed();
        let path = sealed.dlopen_path();
        #[expect(unsafe_code, reason = "the operator put this file into the plugin directory, and `verify` found it good")]
        // SAFETY: as said: the operator vouches for the file; `layout` is what `verify` said of these very bytes, and the path leads
        // to the sealed copy of them.
        let opened = culprit::inside(Some(mark), || unsafe { library::open(&path, layout) });
        let module = opened.map_err(log_layout_dump)?;
        let found = module.manifest().map_err(ManifestError::from)?;
        if found != expected {
            let excerpt = |text: &str| text.chars().take(120).collect::<String>();
            return Err(LoadErrorKind::ManifestDiffers { found: excerpt(found), expected: excerpt(&expected) });
        }
        let subject = Subject { digest: sealed.digest(), path: candidate.path, plugin: manifest.name.clone() };
        let instance = culprit::inside(Some(mark), || self.create(module, &manifest, settings, Some(subject)))?;
        Ok((manifest, Home::Here(instance, Some(mark))))
    }

    fn open_in_process(&self, inspected: Inspected, settings: &PluginSettings) -> Result<(Manifest, Home), LoadErrorKind> {
        let subject = inspected.subject();
        let Inspected { bytes, manifest: ManifestText { text, manifest }, .. } = inspected;
        let init = self.init(&manifest, settings)?;
        // The one place it may write to; made here, since the sandbox can name only what exists.
        let prepared = std::fs::create_dir_all(&init.data_dir);
        let failed = |source| isolated_error(&manifest, source);
        prepared.map_err(|error| failed(GuestError::Host(error)))?;
        let recipe = Recipe {
            program: self.guest_program()?.to_owned(),
            library: bytes.into_sealed(),
            deadline: settings.start_deadline,
            verdicts: Verdicts::new(&self.policy.state_dir),
            subject,
            start: Start {
                nonce: String::new(),
                purpose: Purpose::Serve,
                manifest: text,
                limits: Limits {
                    memory_bytes: settings.memory_mib.saturating_mul(1 << 20),
                    cpu_seconds: settings.cpu_seconds.map(NonZeroU64::get),
                    descriptors: 1024,
                    writable: Some(init.data_dir.clone()),
                    network: true,
                    processes: settings.processes,
                },
                init,
                max_level: TracingServices::new("".into()).max_level() as u32,
            },
        };
        Ok((manifest.clone(), Home::Process(Box::new(Isolated::start(recipe).map_err(failed)?))))
    }

    /// Name and settings of a plugin that is linked into the application.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind::Manifest`] when its manifest is not one.
    pub fn settings_of<P: Export>(&self) -> Result<(String, PluginSettings), LoadErrorKind> {
        let name = linked_in_manifest::<P>()?.name;
        let settings = self.settings.get(&name).cloned().unwrap_or_default();
        Ok((name, settings))
    }

    /// Creates and starts a plugin that is linked into the application, beside `others`.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind`] when its name or a task of it is taken, when it refuses its configuration or its start, or panics.
    pub fn linked_in<P: Export>(&self, settings: PluginSettings, others: &[Arc<Plugin>]) -> Result<Plugin, LoadErrorKind> {
        let manifest = linked_in_manifest::<P>()?;
        check_name(&manifest, others)?;
        check_tasks(&manifest, others.iter())?;
        let instance = self.create(Module::linked_in::<P>(), &manifest, &settings, None)?;
        Ok(Plugin::new(manifest, Origin::LinkedIn, settings, Home::Here(instance, None)))
    }

    fn init(&self, manifest: &Manifest, settings: &PluginSettings) -> Result<Init, LoadErrorKind> {
        let config = to_raw_value(&settings.config).map_err(|error| LoadErrorKind::Config {
            plugin: manifest.name.clone(),
            message: error.to_string(),
            hint: String::new(),
        })?;
        Ok(Init {
            plugin: manifest.name.clone(),
            data_dir: self.policy.state_dir.join("plugins").join(&manifest.name),
            config,
            host_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn create(
        &self,
        module: Module,
        manifest: &Manifest,
        settings: &PluginSettings,
        subject: Option<Subject>,
    ) -> Result<Instance, LoadErrorKind> {
        let init = self.init(manifest, settings)?;
        let _watched = self.policy.watch.begin(&manifest.name, subject, settings.start_deadline);
        let services = TracingServices::new(manifest.name.as_str().into());
        let instance = module.create(&init, services).map_err(|source| create_error(manifest, source))?;
        instance.start().map_err(|source| LoadErrorKind::Start { plugin: manifest.name.clone(), said: source.to_string() })?;
        Ok(instance)
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

fn log_cautions(directory: &PluginDirectory) {
    for caution in directory.cautions() {
        tracing::warn!(code = caution.code(), "{}", chain(caution));
    }
}

fn log_file_cautions(found: &Found) {
    for caution in &found.cautions {
        tracing::warn!(code = caution.code(), "{}", chain(caution));
    }
}

/// A name has one plugin.
fn check_name(manifest: &Manifest, others: &[Arc<Plugin>]) -> Result<(), LoadErrorKind> {
    let Some(first) = others.iter().find(|other| other.name() == manifest.name) else { return Ok(()) };
    let first = match first.origin() {
        Origin::Library { path, .. } => path.clone(),
        Origin::LinkedIn => PathBuf::from("a plugin that is linked in"),
    };
    Err(LoadErrorKind::NameTaken { name: manifest.name.clone(), first })
}

/// A task has one provider.
fn check_tasks<'a>(manifest: &Manifest, others: impl Iterator<Item = &'a Arc<Plugin>> + Clone) -> Result<(), LoadErrorKind> {
    for task in &manifest.tasks {
        let provides = |other: &&Arc<Plugin>| other.manifest().tasks.iter().any(|known| known.name == task.name);
        if let Some(first) = others.clone().find(provides) {
            return Err(LoadErrorKind::TaskTaken { task: task.name.clone(), first: first.name().to_owned() });
        }
    }
    Ok(())
}

fn linked_in_manifest<P: Export>() -> Result<Manifest, LoadErrorKind> {
    Ok(serde_json::from_str(P::MANIFEST).map_err(|error| ManifestError::Shape(error.to_string()))?)
}

fn isolated_error(manifest: &Manifest, source: GuestError) -> LoadErrorKind {
    let plugin = manifest.name.clone();
    match source {
        GuestError::Refused { code, reason } if code == "config" => {
            LoadErrorKind::Config { plugin, hint: nearest_in(&reason), message: reason }
        }
        source => LoadErrorKind::Isolated { plugin, source },
    }
}

fn create_error(manifest: &Manifest, source: CallError) -> LoadErrorKind {
    let plugin = manifest.name.clone();
    match source {
        CallError::Plugin(body) if body.kind == "ConfigError" => {
            LoadErrorKind::Config { plugin, hint: nearest_in(&body.message), message: body.message }
        }
        source => LoadErrorKind::Create { plugin, said: source.to_string() },
    }
}

/// The comparison of layouts is up to 28 KB long: it goes to the debug log, the message stays readable.
fn log_layout_dump(error: OpenError) -> OpenError {
    if let OpenError::Module(qtasks_plugin_api::abi::loaded::ModuleError::Layout { dump }) = &error {
        tracing::debug!("layout comparison: {dump}");
    }
    error
}
