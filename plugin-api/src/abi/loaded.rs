//! The host's side of the boundary: a root module, checked, and the instances made from it.
//!
//! Everything a plugin hands over is looked at before it is believed: null pointers, lengths beyond the cap, text that is not
//! UTF-8 or not JSON, nesting beyond the limit, kinds and directives that this version does not know.
#![expect(unsafe_code, reason = "a root symbol is turned into a module here, and host services into a context pointer")]

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use abi_stable::StableAbi as _;
use abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError, RootModule as _};
use abi_stable::std_types::RStr;
use serde_json::value::RawValue;

use super::{AbiCall, AbiCompletion, AbiHost, AbiOutcome, PluginModuleRef, exported, kind, same_layout};
use crate::answer::Directive;
use crate::bounds::{self, BoundsError};
use crate::error::ErrorBody;
use crate::export::Export;
use crate::host::{HostServices, Init, Level, LogLine, to_nanos};

/// A plugin's root module. Lives as long as the process: plugin libraries are never unloaded.
#[derive(Clone, Copy)]
pub struct Module(PluginModuleRef);

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").finish_non_exhaustive()
    }
}

/// Whether the boundary's layout is to be compared, which costs about as much as `dlopen` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Now.
    Compare,
    /// It was compared for exactly these bytes, by a process of this version.
    ComparedBefore,
}

/// Why a root symbol is not a module that this host can call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The library was built with an abi_stable that lays out its header differently.
    #[error(
        "its abi_stable header is {found}, this host needs {expected}; rebuild the plugin with this host's qtasks-plugin-api"
    )]
    Header {
        /// What the library has.
        found: String,
        /// What the host has.
        expected: String,
    },
    /// The layouts of the boundary differ.
    #[error("the boundary's types are laid out differently in the plugin; rebuild it with this host's qtasks-plugin-api")]
    Layout {
        /// The full comparison, for the debug log: up to 28 KB.
        dump: String,
    },
    /// Any other complaint of abi_stable.
    #[error("its root module cannot be used: {0}")]
    Other(String),
}

impl Module {
    /// The module of a plugin that is linked into this program.
    #[must_use]
    pub fn linked_in<P: Export>() -> Self {
        Self(exported::module::<P, false>())
    }

    /// The module behind a library's root symbol.
    ///
    /// # Safety
    ///
    /// `symbol` must be the address of the static that `export_plugin!` exports as [`ROOT_SYMBOL`](super::ROOT_SYMBOL), in a
    /// library that stays loaded until the process ends. With [`Layout::ComparedBefore`], exactly the same library bytes must have
    /// passed [`Layout::Compare`] in a process of this version.
    ///
    /// # Errors
    ///
    /// [`ModuleError`] when the library's boundary is not this host's.
    pub unsafe fn from_root_symbol(symbol: *const (), layout: Layout) -> Result<Self, ModuleError> {
        // SAFETY: an `AbiHeaderRef` is a transparent reference to the header that every `LibHeader` begins with, and the caller
        // promises that `symbol` points to one for the rest of the process.
        let header = unsafe { std::mem::transmute::<*const (), AbiHeaderRef>(symbol) };
        let header: &'static LibHeader = header.upgrade().map_err(module_error)?;
        let module = if layout == Layout::ComparedBefore || is_this_version(header) {
            // SAFETY: the caller promises that the layout of exactly these bytes was compared before, or it was compared just now.
            unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() }
        } else {
            header.init_root_module::<PluginModuleRef>()
        };
        module.map(Self).map_err(module_error)
    }

    /// The manifest as the library itself tells it.
    ///
    /// # Errors
    ///
    /// [`BoundsError`] when it is not a text within the bounds.
    pub fn manifest(self) -> Result<&'static str, BoundsError> {
        let text = (self.0.manifest())();
        bounds::check_raw(text.as_ptr(), text.len(), bounds::MAX_MANIFEST_BYTES)?;
        bounds::utf8(text.as_rslice().as_slice())
    }

    /// Whether the plugin has the ability of this id. Abilities come with later minors of the boundary; none exists in 1.0.
    #[must_use]
    pub fn has_ability(self, id: u64) -> bool {
        !(self.0.query())(id).is_null()
    }

    /// Creates an instance. `services` stay in memory until the process ends, since a plugin's threads may outlive it.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the plugin refuses, panics, or answers nonsense.
    pub fn create(self, init: &Init, services: impl HostServices) -> Result<Instance, CallError> {
        let init = serde_json::to_string(init).map_err(|error| CallError::Init(error.to_string()))?;
        let created = (self.0.create())(RStr::from_str(&init), AbiHost::leak(services));
        match created.outcome.receive(bounds::MAX_BYTES)? {
            Received::Failed(error) => Err(CallError::Plugin(error)),
            _ if created.instance.is_null() => Err(CallError::NoInstance),
            _ => Ok(Instance { module: self.0, pointer: created.instance }),
        }
    }
}

/// Whether the library was built from the same description of the boundary, so that there is nothing to compare.
fn is_this_version(header: &LibHeader) -> bool {
    header.version_strings().version == PluginModuleRef::VERSION_STRINGS.version
        && header.layout().is_some_and(|theirs| same_layout::same(PluginModuleRef::LAYOUT, theirs))
}

fn module_error(error: LibraryError) -> ModuleError {
    match error {
        LibraryError::InvalidAbiHeader(found) => {
            let expected = abi_stable::library::AbiHeader::VALUE;
            ModuleError::Header {
                found: format!("{}.{}", found.abi_major, found.abi_minor),
                expected: format!("{}.{}", expected.abi_major, expected.abi_minor),
            }
        }
        LibraryError::AbiInstability(dump) => ModuleError::Layout { dump: dump.to_string() },
        other => ModuleError::Other(other.to_string()),
    }
}

/// Why a plugin could not be created, started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The plugin said so, or panicked.
    #[error("{0}")]
    Plugin(Box<ErrorBody>),
    /// The plugin answered something that is not an outcome.
    #[error("it answered outside the bounds")]
    Bounds(#[from] BoundsError),
    /// It reported success and gave no instance.
    #[error("it reported success and gave no instance")]
    NoInstance,
    /// The host's own words had no JSON form.
    #[error("the init message has no JSON form: {0}")]
    Init(String),
}

/// A created plugin. Dropping it destroys the plugin; the library stays.
pub struct Instance {
    module: PluginModuleRef,
    pointer: *const (),
}

// SAFETY: the functions of a root module may be called from any thread, as `PluginModule` says; `export_plugin!` makes this
// true by asking `Send + Sync` of every plugin.
unsafe impl Send for Instance {}
// SAFETY: as above; calls may overlap.
unsafe impl Sync for Instance {}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

impl Instance {
    /// Starts the plugin. Call once, before the first call.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the plugin refuses or panics.
    pub fn start(&self) -> Result<(), CallError> {
        lifecycle((self.module.start())(self.pointer))
    }

    /// Stops the plugin. Call once, after the last call ended.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the plugin refuses or panics.
    pub fn stop(&self) -> Result<(), CallError> {
        lifecycle((self.module.stop())(self.pointer))
    }

    /// Runs a sync entry on this thread.
    ///
    /// # Errors
    ///
    /// [`BoundsError`] when the plugin answers something that is not an outcome.
    pub fn call(&self, id: u64, entry: u32, name: &str, input: &str) -> Result<Received, BoundsError> {
        (self.module.call())(self.pointer, abi_call(id, entry, name, input)).receive(bounds::MAX_BYTES)
    }

    /// Starts an async entry; `then` gets the outcome, once, on a thread of the plugin's, which it must not block.
    ///
    /// `id` must be unique among the running async calls of this process.
    pub fn call_async(&self, id: u64, entry: u32, name: &str, input: &str, then: impl FnOnce(ReceivedResult) + Send + 'static) {
        pending().insert(id, Box::new(then));
        let completion = AbiCompletion { complete };
        (self.module.call_async())(self.pointer, abi_call(id, entry, name, input), completion);
    }

    /// Tells a running call that nobody waits for it; an unknown id is ignored.
    pub fn cancel(&self, id: u64) {
        (self.module.cancel())(self.pointer, id);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        (self.module.destroy())(self.pointer);
    }
}

fn abi_call<'a>(id: u64, entry: u32, name: &'a str, input: &'a str) -> AbiCall<'a> {
    AbiCall { id, entry, name: RStr::from_str(name), input: RStr::from_str(input) }
}

fn lifecycle(outcome: AbiOutcome) -> Result<(), CallError> {
    match outcome.receive(bounds::MAX_BYTES)? {
        Received::Failed(error) => Err(CallError::Plugin(error)),
        _ => Ok(()),
    }
}

/// What an async call came to.
pub type ReceivedResult = Result<Received, BoundsError>;

type Pending = HashMap<u64, Box<dyn FnOnce(ReceivedResult) + Send>>;

/// The async calls under way. By id and not by pointer: a plugin that completes a call twice completes nothing the second time.
fn pending() -> std::sync::MutexGuard<'static, Pending> {
    static PENDING: LazyLock<Mutex<Pending>> = LazyLock::new(Mutex::default);
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn complete(id: u64, outcome: AbiOutcome) {
    // A panic must not unwind into the plugin's frames; the host's hook has already printed it.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let then = pending().remove(&id);
        if let Some(then) = then {
            then(outcome.receive(bounds::MAX_BYTES));
        }
    }));
}

/// What a call came to, checked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Received {
    /// Not handled.
    Pass,
    /// A JSON value.
    Result(Box<RawValue>),
    /// What to do with the task.
    Directive(Directive),
    /// The plugin's own failure, or the error a task raised.
    Failed(Box<ErrorBody>),
}

/// What a call came to, where an answer outside the bounds is a failure of the plugin's own.
#[must_use]
pub fn checked(received: ReceivedResult) -> Received {
    received.unwrap_or_else(|error| {
        Received::Failed(Box::new(ErrorBody::new("BoundsError", format!("answered outside the bounds: {error}"))))
    })
}

impl AbiOutcome {
    /// Checks what came. A payload that is not what it claims to be is leaked: its vtable is not to be trusted either.
    pub(super) fn receive(self, max_bytes: usize) -> Result<Received, BoundsError> {
        let Self { kind, payload } = self;
        if let Err(error) = bounds::check_raw(payload.as_ptr(), payload.len(), max_bytes) {
            std::mem::forget(payload);
            return Err(error);
        }
        match kind {
            kind::PASS => Ok(Received::Pass),
            kind::RESULT => {
                let text = bounds::utf8(payload.as_rstr().as_rslice().as_slice())?;
                bounds::check_depth(text)?;
                // The result outlives the call, so it is copied once, in the pass that checks it.
                serde_json::from_str(text).map(Received::Result).map_err(|error| BoundsError::NotJson(error.to_string()))
            }
            kind::DIRECTIVE => {
                let text = bounds::utf8(payload.as_rstr().as_rslice().as_slice())?;
                bounds::check_depth(text)?;
                serde_json::from_str(text).map(Received::Directive).map_err(|error| BoundsError::Directive(error.to_string()))
            }
            kind::FAILED => {
                let text = bounds::utf8(payload.as_rstr().as_rslice().as_slice())?;
                bounds::check_depth(text)?;
                serde_json::from_str(text).map(Received::Failed).map_err(|error| BoundsError::NotJson(error.to_string()))
            }
            other => Err(BoundsError::UnknownKind(other)),
        }
    }
}

impl AbiHost {
    fn leak<S: HostServices>(services: S) -> Self {
        let context: &'static S = Box::leak(Box::new(services));
        Self {
            context: std::ptr::from_ref(context).cast(),
            log: host_log::<S>,
            max_level: host_max_level::<S>,
            now: host_now::<S>,
            query: host_query,
        }
    }
}

/// Turns a context back into the services, and keeps a panic of theirs out of the plugin's frames.
fn with_services<S: HostServices, T>(context: *const (), fallback: T, body: impl FnOnce(&S) -> T) -> T {
    // SAFETY: the plugin passes back the `context` that `leak::<S>` put beside this very function.
    let services = unsafe { &*context.cast::<S>() };
    catch_unwind(AssertUnwindSafe(|| body(services))).unwrap_or(fallback)
}

extern "C" fn host_log<S: HostServices>(context: *const (), level: u32, target: RStr<'_>, message: RStr<'_>, fields: RStr<'_>) {
    with_services::<S, ()>(context, (), |services| {
        services.log(LogLine {
            level: Level::from_number(level),
            target: target.as_str(),
            message: message.as_str(),
            fields: fields.as_str(),
        });
    });
}

extern "C" fn host_max_level<S: HostServices>(context: *const ()) -> u32 {
    with_services::<S, u32>(context, Level::Error as u32, |services| services.max_level() as u32)
}

extern "C" fn host_now<S: HostServices>(context: *const ()) -> u64 {
    with_services::<S, u64>(context, 0, |services| to_nanos(services.now()))
}

extern "C" fn host_query(_context: *const (), _id: u64) -> *const () {
    std::ptr::null()
}
