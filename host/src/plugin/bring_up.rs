//! The last stages: opens a library whose bytes were found good, compares what it says with its manifest, creates and starts the plugin;
//! in this process, or in one of its own. A plugin that is linked in has these stages alone.

use std::num::NonZeroU64;
use std::sync::Arc;

use qtasks_plugin_api::abi::loaded::{CallError, Instance, Layout, Module, ModuleError};
use qtasks_plugin_api::plain_words::explained;
use qtasks_plugin_api::{CONFIG_ERROR, Export, HostServices, Init, to_raw_value};
use serde_json::value::RawValue;

use super::culprit::{self, Culprit, Mark};
use super::inspected::Inspected;
use super::instance::{Home, Origin, Plugin};
use super::library::{self, OpenError};
use super::load_error::LoadErrorKind;
use super::loader::{Loader, check_name, check_tasks};
use super::manifest::{Manifest, ManifestError, ManifestText};
use super::process::guest::{Purpose, Start};
use super::process::recipe::Recipe;
use super::process::sandbox::Limits;
use super::process::spawn::GuestError;
use super::process::supervisor::Isolated;
use super::services::TracingServices;
use super::settings::{Isolation, MOST_MEMORY_MIB, PluginSettings, USUAL_MEMORY_MIB};
use super::start_watch::Step;
use super::verdicts::{Subject, Verdicts};
use crate::private_dir;

impl Loader<'_> {
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
        let open = || unsafe { library::open(&path, layout) };
        let subject = Subject { digest: sealed.digest(), path: candidate.path, plugin: manifest.name.clone() };
        // Its constructors ran in a probe, and may do something else here.
        let watched = self.policy.watch.begin(&manifest.name, Some(subject.clone()), settings.start_deadline, Step::Load);
        let module = culprit::inside(Some(mark), open).map_err(log_layout_dump)?;
        let found = culprit::inside(Some(mark), || module.manifest()).map_err(ManifestError::from)?;
        drop(watched);
        if found != expected {
            let excerpt = |text: &str| text.chars().take(120).collect::<String>();
            return Err(LoadErrorKind::ManifestDiffers { found: excerpt(found), expected: excerpt(&expected) });
        }
        let instance = culprit::inside(Some(mark), || self.create(module, &manifest, settings, Some(subject)))?;
        Ok((manifest, Home::Here(instance, Mark::new(Some(mark)))))
    }

    fn open_in_process(&self, inspected: Inspected, settings: &PluginSettings) -> Result<(Manifest, Home), LoadErrorKind> {
        let subject = inspected.subject();
        let Inspected { bytes, manifest: ManifestText { text, manifest }, .. } = inspected;
        let init = self.init(&manifest, settings)?;
        // The one place it may write to; made here, since the sandbox can name only what exists.
        let prepared = private_dir::make(&init.data_dir);
        let config = init.config.clone();
        let failed = |source| isolated_error(&manifest, &config, source);
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
                    memory_bytes: settings.memory_mib.unwrap_or(USUAL_MEMORY_MIB).min(MOST_MEMORY_MIB) << 20,
                    cpu_seconds: settings.cpu_seconds.map(NonZeroU64::get),
                    descriptors: 1024,
                    writable: Some(init.data_dir.clone()),
                    network: true,
                    processes: settings.processes.unwrap_or_default(),
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
        self.check_own_tasks(&manifest)?;
        check_tasks(&manifest, others.iter())?;
        let instance = self.create(Module::linked_in::<P>(), &manifest, &settings, None)?;
        Ok(Plugin::new(manifest, Origin::LinkedIn, settings, Home::Here(instance, Mark::new(None))))
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
        let _watched = self.policy.watch.begin(&manifest.name, subject, settings.start_deadline, Step::Start);
        let services = TracingServices::new(manifest.name.as_str().into());
        let instance = module.create(&init, services).map_err(|source| create_error(manifest, &init.config, source))?;
        instance.start().map_err(|source| LoadErrorKind::Start { plugin: manifest.name.clone(), said: source.to_string() })?;
        Ok(instance)
    }
}

fn linked_in_manifest<P: Export>() -> Result<Manifest, LoadErrorKind> {
    Ok(serde_json::from_str(P::MANIFEST).map_err(|error| ManifestError::Shape(error.to_string()))?)
}

fn isolated_error(manifest: &Manifest, config: &RawValue, source: GuestError) -> LoadErrorKind {
    match source {
        GuestError::Refused { code, reason } if code == "config" => config_error(manifest, config, &reason),
        source => LoadErrorKind::Isolated { plugin: manifest.name.clone(), source },
    }
}

fn create_error(manifest: &Manifest, config: &RawValue, source: CallError) -> LoadErrorKind {
    match source {
        CallError::Plugin(body) if body.kind == CONFIG_ERROR => config_error(manifest, config, &body.message),
        source => LoadErrorKind::Create { plugin: manifest.name.clone(), said: source.to_string() },
    }
}

fn config_error(manifest: &Manifest, config: &RawValue, said: &str) -> LoadErrorKind {
    let (message, hint) = explained(said, config.get(), "a table");
    LoadErrorKind::Config { plugin: manifest.name.clone(), message, hint }
}

/// The comparison of layouts is up to 28 KB long: it goes to the debug log, the message stays readable.
fn log_layout_dump(error: OpenError) -> OpenError {
    if let OpenError::Module(ModuleError::Layout { dump }) = &error {
        dump.lines().for_each(|line| tracing::debug!("layout comparison: {line}"));
    }
    error
}
