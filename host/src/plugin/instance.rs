//! A created plugin, ready to be called.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qtasks_plugin_api::abi::loaded::Instance;
use qtasks_plugin_api::manifest::Mode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::bytes::Digest;
use super::culprit::{Depth, Mark, inside, inside_from};
use super::hung::{Hung, RunningCall};
use super::manifest::Manifest;
use super::outcome::{DEADLINE_ERROR, NESTED_ERROR, Outcome, TRIPPED_ERROR, checked, failed, too_many};
use super::process::supervisor::Isolated;
use super::settings::PluginSettings;
use crate::shown::shown;

/// Which plugin it was: kept with every decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginIdentity {
    /// The plugin's name.
    #[serde(rename = "plugin")]
    pub name: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// SHA-256 of its library, in hexadecimal; `None` for one that is linked in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Arc<str>>,
}

/// `fallback 0.1.0 (1f2e3d4c5b6a)`
impl fmt::Display for PluginIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", shown(&*self.name), shown(&*self.version))?;
        match self.digest.as_ref().and_then(|digest| digest.get(..12)) {
            Some(digest) => write!(f, " ({digest})"),
            None => Ok(()),
        }
    }
}

/// Where a plugin comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A library file.
    Library {
        /// Where it was found.
        path: PathBuf,
        /// The SHA-256 of the bytes that were loaded.
        digest: Digest,
    },
    /// Linked into the application.
    LinkedIn,
}

/// A created plugin. Shared by everybody who may call it; stopped once, when the application shuts down.
#[derive(Debug)]
pub struct Plugin {
    identity: Arc<PluginIdentity>,
    origin: Origin,
    /// Where its bytes were found last; a file can be renamed while a plugin runs from it.
    found_at: Mutex<Option<PathBuf>>,
    manifest: Manifest,
    settings: PluginSettings,
    home: Home,
    hung: Arc<Hung>,
}

/// Where a plugin's code runs.
#[derive(Debug)]
pub(super) enum Home {
    /// In this process, with its mark for the threads it runs on.
    Here(Instance, Mark),
    /// In a process of its own.
    Process(Box<Isolated>),
}

impl Drop for Home {
    fn drop(&mut self) {
        // The instance goes next, which runs the plugin's code, and its mark after it.
        if let Self::Here(_, mark) = self {
            mark.begin();
        }
    }
}

/// Calls are numbered across all plugins: completions of async calls find their way back by number.
static NEXT_CALL: AtomicU64 = AtomicU64::new(1);

impl Plugin {
    pub(super) fn new(manifest: Manifest, origin: Origin, settings: PluginSettings, home: Home) -> Self {
        let (digest, found_at) = match &origin {
            Origin::Library { path, digest } => (Some(digest.to_string().into()), Some(path.clone())),
            Origin::LinkedIn => (None, None),
        };
        let identity = PluginIdentity { name: manifest.name.as_str().into(), version: manifest.version.as_str().into(), digest };
        let found_at = Mutex::new(found_at);
        Self { identity: Arc::new(identity), origin, found_at, manifest, settings, home, hung: Arc::default() }
    }

    /// Name and version.
    #[must_use]
    pub fn identity(&self) -> &Arc<PluginIdentity> {
        &self.identity
    }

    /// The plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Notes where its bytes were found.
    pub(super) fn was_found_at(&self, path: &Path) {
        *self.found_at() = Some(path.to_owned());
    }

    /// Whether its bytes were found there last.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.found_at().as_deref() == Some(path)
    }

    fn found_at(&self) -> MutexGuard<'_, Option<PathBuf>> {
        // Nothing panics while the lock is held.
        self.found_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The SHA-256 of its library; `None` for a plugin that is linked in.
    pub(super) fn digest(&self) -> Option<Digest> {
        match &self.origin {
            Origin::Library { digest, .. } => Some(*digest),
            Origin::LinkedIn => None,
        }
    }

    /// Whether its code can be ended whatever it does.
    pub(super) fn can_be_killed(&self) -> bool {
        matches!(self.home, Home::Process(_))
    }

    /// What it declares.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the operator says about it.
    #[must_use]
    pub fn settings(&self) -> &PluginSettings {
        &self.settings
    }

    /// Its place in the order of dispatch.
    #[must_use]
    pub fn priority(&self) -> i64 {
        self.settings.priority.unwrap_or(self.manifest.priority)
    }

    /// Calls an inline entry on this thread; `None` when the plugin does not live in this process, or was tripped.
    #[must_use]
    pub fn call_inline(&self, entry: u32, name: &str, input: &str) -> Option<Outcome> {
        match &self.home {
            Home::Here(..) if self.hung.is_tripped() => None,
            Home::Here(instance, mark) => Some(match Depth::of_this_thread() {
                Ok(_) => inside(mark.culprit, || checked(instance.call(0, entry, name, input))),
                Err(reason) => failed(NESTED_ERROR, reason),
            }),
            Home::Process(_) => None,
        }
    }

    /// Calls an entry the way its mode asks for, for at most `deadline`. Dropping the future cancels the call.
    ///
    /// A blocking call that ignores its cancel flag goes on in its thread after the deadline; nobody waits for it.
    pub async fn call<N>(
        self: &Arc<Self>,
        entry: u32,
        mode: Mode,
        name: N,
        input: &Arc<String>,
        deadline: Option<Duration>,
    ) -> Outcome
    where
        N: AsRef<str> + Send + 'static,
    {
        let id = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
        let (instance, mark) = match &self.home {
            Home::Here(instance, mark) => (instance, mark.culprit),
            Home::Process(isolated) => return isolated.call(id, entry, mode, name.as_ref(), input, deadline).await,
        };
        if let Some(reason) = self.hung.tripped() {
            return failed(TRIPPED_ERROR, reason);
        }
        let depth = match Depth::of_this_thread() {
            Ok(depth) => depth,
            Err(reason) => return failed(NESTED_ERROR, reason),
        };
        match mode {
            Mode::Inline => inside(mark, || checked(instance.call(id, entry, name.as_ref(), input))),
            Mode::Blocking => {
                let Some(running) = self.hung.begin() else { return too_many() };
                let (plugin, input, ended) = (Arc::clone(self), Arc::clone(input), running.clone());
                let call = tokio::task::spawn_blocking(move || {
                    let outcome = match &plugin.home {
                        Home::Here(instance, mark) => {
                            inside_from(depth, mark.culprit, || checked(instance.call(id, entry, name.as_ref(), &input)))
                        }
                        Home::Process(_) => failed("CallLost", "the plugin moved to another process".to_owned()),
                    };
                    ended.end();
                    outcome
                });
                let call = async { call.await.unwrap_or_else(|error| failed("CallLost", error.to_string())) };
                wait(instance, id, deadline, &running, call).await
            }
            Mode::Async => {
                let Some(running) = self.hung.begin() else { return too_many() };
                let (sender, receiver) = oneshot::channel();
                let (plugin, ended) = (Arc::clone(self), running.clone());
                let then = move |outcome| {
                    ended.end();
                    // A receiver that is gone has stopped waiting at its deadline.
                    let _ = sender.send(checked(outcome));
                    // Only now: a call that goes on after its deadline must not lose its plugin.
                    drop(plugin);
                };
                inside(mark, || instance.call_async(id, entry, name.as_ref(), input, then));
                let call = async { receiver.await.unwrap_or_else(|error| failed("CallLost", error.to_string())) };
                wait(instance, id, deadline, &running, call).await
            }
        }
    }

    /// Why it is no longer called, if it was tripped.
    pub async fn tripped(&self) -> Option<String> {
        match &self.home {
            Home::Here(..) => self.hung.tripped(),
            Home::Process(isolated) => isolated.tripped(),
        }
    }

    /// Stops the plugin; its last call has ended. Blocks, and needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// What the plugin said, or its panic; a plugin in a process of its own must also end within `deadline`.
    pub fn stop(&self, deadline: Duration) -> Result<(), String> {
        match &self.home {
            Home::Here(instance, mark) => inside(mark.culprit, || instance.stop()).map_err(|error| error.to_string()),
            Home::Process(isolated) => tokio::runtime::Handle::current().block_on(isolated.stop(deadline)),
        }
    }
}

/// Waits for a call in this process, and cancels it at the deadline.
async fn wait(
    instance: &Instance,
    id: u64,
    deadline: Option<Duration>,
    running: &RunningCall,
    call: impl Future<Output = Outcome>,
) -> Outcome {
    let mut cancel = CancelOnDrop { instance, id: Some(id) };
    let outcome = match deadline {
        None => Some(call.await),
        Some(deadline) => tokio::time::timeout(deadline, call).await.ok(),
    };
    match outcome {
        Some(outcome) => {
            cancel.id = None;
            outcome
        }
        None => {
            running.abandon();
            failed(DEADLINE_ERROR, format!("did not end within {} s", deadline.unwrap_or_default().as_secs_f64()))
        }
    }
}

/// Cancels the call unless it ended.
struct CancelOnDrop<'a> {
    instance: &'a Instance,
    id: Option<u64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.instance.cancel(id);
        }
    }
}
