//! The boundary: every type and function that crosses between host and plugin library.
//!
//! Only bytes cross. JSON text goes in as a borrowed [`RStr`], an outcome with JSON text comes out as an [`RString`], which is
//! freed by the library that made it. [`PluginModule`] is the root module that a library exports under [`ROOT_SYMBOL`]; it never
//! grows: a new ability is asked for by id through `query`.
//!
//! Everything of abi_stable stays behind this module: [`exported`] is the plugin's side of it, [`loaded`] the host's.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RStr, RString};

pub mod exported;
pub mod loaded;
mod same_layout;

#[cfg(test)]
mod boundary_test;
#[cfg(test)]
mod layout_test;

/// The boundary's number. Plugins and hosts of different majors do not meet.
pub const ABI_MAJOR: u32 = 1;
/// Grows with each ability that can be asked for through `query`.
pub const ABI_MINOR: u32 = 0;
/// The least minor of a host that plugins of this version need.
pub const LEAST_HOST_MINOR: u32 = 0;
/// The symbol under which a plugin library exports its root.
pub const ROOT_SYMBOL: &str = "qtasks_plugin_root_1";

/// Kinds of [`AbiOutcome`].
mod kind {
    /// Not handled; the payload is empty.
    pub(super) const PASS: u32 = 0;
    /// The payload is any JSON value.
    pub(super) const RESULT: u32 = 1;
    /// The payload is a `Directive` as JSON.
    pub(super) const DIRECTIVE: u32 = 2;
    /// The payload is an `ErrorBody` as JSON.
    pub(super) const FAILED: u32 = 3;
}

/// What one call came to. Owned by the receiver; the payload is freed through its own vtable.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct AbiOutcome {
    kind: u32,
    payload: RString,
}

/// One call of a handler or a task. Borrowed for the length of the call.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct AbiCall<'a> {
    /// Names the call for `cancel` and for the completion; unique within the host.
    id: u64,
    /// Position among the plugin's handlers and tasks, in the order of its manifest.
    entry: u32,
    /// Trigger or task.
    name: RStr<'a>,
    /// JSON: kwargs of an event, or a `TaskInput`.
    input: RStr<'a>,
}

/// The host's services, given to `create` and valid until the process ends.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct AbiHost {
    context: *const (),
    /// Level, target, message, fields as a JSON object or empty.
    log: extern "C" fn(*const (), u32, RStr<'_>, RStr<'_>, RStr<'_>),
    max_level: extern "C" fn(*const ()) -> u32,
    /// Nanoseconds since the Unix epoch.
    now: extern "C" fn(*const ()) -> u64,
    /// Services of later versions, by id; null for an unknown one.
    query: extern "C" fn(*const (), u64) -> *const (),
}

/// Where an async call's outcome goes: called once, from any thread, with the call's id.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct AbiCompletion {
    complete: extern "C" fn(u64, AbiOutcome),
}

/// What `create` came to: an instance unless the outcome failed.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct AbiCreated {
    instance: *const (),
    outcome: AbiOutcome,
}

/// The root module. Frozen: fields are neither added nor changed within an ABI major.
///
/// Every function may be called from any thread. `create` is called once at a time; `start` once, after it; `call`,
/// `call_async` and `cancel` between `start` and `stop`, concurrently; `stop` once, after the calls have ended; `destroy` last.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef, prefix_fields = PluginModulePrefix)))]
#[sabi(missing_field(panic))]
pub struct PluginModule {
    manifest: extern "C" fn() -> RStr<'static>,
    create: extern "C" fn(RStr<'_>, AbiHost) -> AbiCreated,
    start: extern "C" fn(*const ()) -> AbiOutcome,
    call: extern "C" fn(*const (), AbiCall<'_>) -> AbiOutcome,
    call_async: extern "C" fn(*const (), AbiCall<'_>, AbiCompletion),
    cancel: extern "C" fn(*const (), u64),
    stop: extern "C" fn(*const ()) -> AbiOutcome,
    destroy: extern "C" fn(*const ()),
    #[sabi(last_prefix_field)]
    query: extern "C" fn(u64) -> *const (),
}

impl RootModule for PluginModuleRef {
    abi_stable::declare_root_module_statics! {PluginModuleRef}
    const BASE_NAME: &'static str = "qtasks_plugin";
    const NAME: &'static str = "qtasks_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}
