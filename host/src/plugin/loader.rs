//! Takes candidates through the stages: read, manifest, static check, trust, probe, and what `bring_up` does. Every
//! candidate ends in a report; one that is refused never stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::abi::loaded::Layout;

use super::culprit;
use super::discover::{Candidate, DiscoverError, FileError, PluginDirectory, discover};
use super::elf;
use super::inspected::Inspected;
use super::instance::{Origin, Plugin};
use super::load_error::LoadErrorKind;
use super::manifest::Manifest;
use super::probe::{self, QuarantinedError};
use super::read_ahead::{self, ReadLibrary};
use super::registry::STOP_DEADLINE;
use super::report::{LoadReport, LoadState};
use super::settings::{Isolation, PluginSettings};
use super::start_watch::StartWatch;
use super::trust::{Trust, TrustPolicy};
use super::verdicts::{Verdict, Verdicts};
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
    /// What is started as a guest to probe and to isolate: a `qtasks-host` binary, or a program that calls
    /// [`run_if_asked`](crate::guest::run_if_asked) first in `main`.
    pub guest_program: Option<PathBuf>,
    /// Whether bytes that this host has never loaded are loaded in a guest first. Without it a bad library may end the host.
    pub probe: bool,
    /// Longest time for a probe.
    pub probe_deadline: Duration,
    /// Who is being started.
    pub watch: Arc<StartWatch>,
    /// Whom to trust.
    pub trust: TrustPolicy,
    /// Tasks that no plugin may provide, since the application or the operator does.
    pub own_tasks: BTreeSet<String>,
}

/// Loads plugins by the operator's settings.
#[derive(Debug, Clone, Copy)]
pub struct Loader<'a> {
    /// `[plugins.NAME]`.
    pub settings: &'a BTreeMap<String, PluginSettings>,
    /// How libraries are loaded.
    pub policy: &'a LoadPolicy,
}

impl Loader<'_> {
    /// Loads what lies in `directory` beside what is loaded already. Runs the code of every library whose manifest is good.
    /// Blocks, and needs a tokio runtime around it where plugins are isolated.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when the directory cannot be listed; anything else is in the reports.
    pub fn load_directory(&self, directory: &Path, loaded: &mut Loaded) -> Result<(), DiscoverError> {
        culprit::heed(&self.policy.state_dir);
        let discovered = discover(directory, self.policy.trust.strictness)?;
        log_cautions(discovered.directory());
        let trust = Trust::new(&self.policy.trust, Arc::clone(discovered.directory()));
        read_ahead::each(discovered, |read| {
            if self.policy.watch.is_given_up() {
                return;
            }
            let report = self.load_read(read, &trust, loaded);
            if let Some(error) = &report.error {
                tracing::warn!(path = %shown(&error.path), code = error.kind.code(), "plugin refused: {}", chain(&error.kind));
            }
            loaded.reports.push(report);
        });
        if loaded.reports.is_empty() {
            tracing::warn!("no plugin library (*.so) in {}", shown(directory));
        }
        loaded.keep_what_was_refused();
        loaded.plugins.sort_by(|left, right| left.name().cmp(right.name()));
        Ok(())
    }

    /// Looks at what lies in `directory` without loading it: runs no code of any library. As at a start, what ended an earlier host is in
    /// quarantine by then.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when the directory cannot be listed; anything else is in the reports.
    pub fn look(&self, directory: &Path) -> Result<Vec<LoadReport>, DiscoverError> {
        culprit::heed(&self.policy.state_dir);
        let verdicts = Verdicts::new(&self.policy.state_dir);
        let mut reports: Vec<LoadReport> = Vec::new();
        let discovered = discover(directory, self.policy.trust.strictness)?;
        log_cautions(discovered.directory());
        let trust = Trust::new(&self.policy.trust, Arc::clone(discovered.directory()));
        for found in discovered {
            log_file_cautions(&found.cautions);
            let mut report = LoadReport::look_at_found(found, &verdicts, &trust, self.settings);
            if let Some(manifest) = report.manifest.as_ref().filter(|_| report.state == LoadState::Found) {
                if self.settings.get(&manifest.name).is_some_and(|settings| !settings.enabled) {
                    report.state = LoadState::Disabled;
                } else if let Err(kind) = self.check_beside(manifest, &reports) {
                    report.refused(kind);
                }
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Whether a library would go together with those that were found before, and with what is the operator's.
    fn check_beside(&self, manifest: &Manifest, before: &[LoadReport]) -> Result<(), LoadErrorKind> {
        let found = before.iter().filter(|other| other.state == LoadState::Found);
        let others = found.filter_map(|other| Some((other.manifest.as_ref()?, &other.path)));
        if let Some((_, first)) = others.clone().find(|(other, _)| other.name == manifest.name) {
            return Err(LoadErrorKind::NameTaken { name: manifest.name.clone(), first: first.clone() });
        }
        self.check_own_tasks(manifest)?;
        for task in &manifest.tasks {
            let provides = |(other, _): &(&Manifest, &PathBuf)| other.tasks.iter().any(|known| known.name == task.name);
            if let Some((first, _)) = others.clone().find(provides) {
                return Err(LoadErrorKind::TaskTaken { task: task.name.clone(), first: first.name.clone() });
            }
        }
        Ok(())
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
        let report = self.load_read(found.into(), &Trust::new(&self.policy.trust, directory), &mut loaded);
        *plugins = loaded.plugins;
        report
    }

    fn load_read(&self, read: ReadLibrary, trust: &Trust<'_>, loaded: &mut Loaded) -> LoadReport {
        log_file_cautions(&read.cautions);
        let mut report = LoadReport::new(&read.candidate);
        match read.inspected.and_then(|inspected| self.stages(inspected, trust, loaded, &mut report)) {
            Ok(Some(plugin)) => {
                let (name, version) = (plugin.name(), &plugin.manifest().version);
                tracing::debug!("plugin {name} {version} runs, from {}", shown(&report.path));
                report.state = LoadState::Running;
                loaded.take_in(plugin);
            }
            Ok(None) => report.state = LoadState::Disabled,
            Err(kind) => report.refused(kind),
        }
        report
    }

    fn stages(
        &self,
        inspected: Inspected,
        trust: &Trust<'_>,
        loaded: &Loaded,
        report: &mut LoadReport,
    ) -> Result<Option<Arc<Plugin>>, LoadErrorKind> {
        let manifest = report.manifest.insert(inspected.manifest().clone());
        let settings = self.settings.get(&manifest.name).cloned().unwrap_or_default();
        if !settings.enabled {
            return Ok(None);
        }
        // A damaged library is told as that, whatever it says of itself.
        elf::check(inspected.bytes())?;
        check_name(manifest, &loaded.plugins)?;
        if let Some(running) = loaded.running(inspected.digest()) {
            check_tasks(manifest, loaded.plugins.iter())?;
            report.trust = Some(inspected.judge(trust, settings.trust)?);
            running.was_found_at(&report.path);
            return Ok(Some(Arc::clone(running)));
        }
        self.check_own_tasks(manifest)?;
        check_tasks(manifest, loaded.plugins.iter().chain(loaded.not_replaced_by(manifest, &report.path)))?;
        report.trust = Some(inspected.judge(trust, settings.trust)?);
        let (layout, side_effects) = self.first_load(&inspected, &settings)?;
        report.side_effects = side_effects;
        if let (Some(effects), Isolation::InProcess) = (&report.side_effects, settings.isolation) {
            tracing::warn!(plugin = %manifest.name, "{effects}; it runs, since `side_effects` is \"admit\"");
        }
        let plugin = Arc::new(self.bring_up(inspected, settings, layout)?);
        if !self.policy.watch.comes_up(&plugin)
            && let Err(said) = plugin.stop(STOP_DEADLINE)
        {
            tracing::warn!(plugin = plugin.name(), "the plugin did not stop cleanly: {said}");
        }
        Ok(Some(plugin))
    }

    /// The stages that decide whether bytes do harm: static check, quarantine, probe. Says whether the boundary's layout was
    /// compared on the way. Whether the operator trusts them is another question, which is asked between the two.
    ///
    /// # Errors
    ///
    /// [`LoadErrorKind`], the first thing that is wrong.
    pub fn verify(&self, inspected: &Inspected) -> Result<Layout, LoadErrorKind> {
        elf::check(inspected.bytes())?;
        let settings = self.settings.get(&inspected.manifest().name).cloned().unwrap_or_default();
        self.first_load(inspected, &settings).map(|(layout, _)| layout)
    }

    /// Also says what loading changes in a process, where the settings admit it.
    fn first_load(&self, inspected: &Inspected, settings: &PluginSettings) -> Result<(Layout, Option<String>), LoadErrorKind> {
        let verdicts = Verdicts::new(&self.policy.state_dir);
        let subject = inspected.subject();
        let judged = match verdicts.look(&subject.digest) {
            Verdict::Good => Ok(()),
            Verdict::Quarantined(quarantined) => Err(LoadErrorKind::Quarantined(QuarantinedError(*quarantined))),
            Verdict::Unknown if !self.policy.probe => return Ok((Layout::Compare, None)),
            Verdict::Unknown => {
                let program = self.guest_program()?;
                let manifest = &inspected.manifest.text;
                let deadline = self.policy.probe_deadline;
                probe::probe(program, inspected.bytes.sealed().file().as_fd(), manifest, &subject, &verdicts, deadline)
                    .map_err(LoadErrorKind::from)
            }
        };
        let side_effects = match judged {
            Ok(()) => None,
            Err(kind) => Some(kind.admitted(settings)?),
        };
        Ok((Layout::ComparedBefore, side_effects))
    }

    /// What the application and the operator provide is theirs.
    pub(super) fn check_own_tasks(&self, manifest: &Manifest) -> Result<(), LoadErrorKind> {
        match manifest.tasks.iter().find(|task| self.policy.own_tasks.contains(&task.name)) {
            Some(task) => Err(LoadErrorKind::OwnTask { task: task.name.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn guest_program(&self) -> Result<&Path, LoadErrorKind> {
        self.policy.guest_program.as_deref().ok_or(LoadErrorKind::NoGuestProgram)
    }
}

fn log_cautions(directory: &PluginDirectory) {
    for caution in directory.cautions() {
        tracing::warn!(code = caution.code(), "{}", chain(caution));
    }
}

fn log_file_cautions(cautions: &[FileError]) {
    for caution in cautions {
        tracing::warn!(code = caution.code(), "{}", chain(caution));
    }
}

/// A name has one plugin.
pub(super) fn check_name(manifest: &Manifest, others: &[Arc<Plugin>]) -> Result<(), LoadErrorKind> {
    let Some(first) = others.iter().find(|other| other.name() == manifest.name) else { return Ok(()) };
    let first = match first.origin() {
        Origin::Library { path, .. } => path.clone(),
        Origin::LinkedIn => PathBuf::from("a plugin that is linked in"),
    };
    Err(LoadErrorKind::NameTaken { name: manifest.name.clone(), first })
}

/// A task has one provider.
pub(super) fn check_tasks<'a>(
    manifest: &Manifest,
    others: impl Iterator<Item = &'a Arc<Plugin>> + Clone,
) -> Result<(), LoadErrorKind> {
    for task in &manifest.tasks {
        let provides = |other: &&Arc<Plugin>| other.manifest().tasks.iter().any(|known| known.name == task.name);
        if let Some(first) = others.clone().find(provides) {
            return Err(LoadErrorKind::TaskTaken { task: task.name.clone(), first: first.name().to_owned() });
        }
    }
    Ok(())
}
