//! The manifest: what a plugin library declares about itself, readable without running it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::{Schema, plain_name};
use crate::const_json::ConstJson;
use crate::nearest::likest_trigger;
use crate::trigger::{Trigger, same_text};

/// The manifest's own format. A host refuses manifests of a higher number.
pub const SCHEMA_VERSION: u32 = 1;

/// How a handler or a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Directly on the caller's thread: short, never waiting for anything.
    Inline,
    /// On a thread where waiting is allowed. The default.
    Blocking,
    /// On the plugin's own small async runtime.
    Async,
}

impl Mode {
    /// Its name in the manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Blocking => "blocking",
            Self::Async => "async",
        }
    }
}

/// The name under which a handler is asked for every trigger.
pub const GLOBAL: &str = "global";

/// What `export_plugin!` knows at compile time; [`write()`] makes the manifest of it.
#[derive(Debug, Clone, Copy)]
pub struct StaticManifest {
    /// The plugin's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// One line on what it is for.
    pub description: &'static str,
    /// Authors, separated by colons as cargo hands them out.
    pub authors: &'static str,
    /// Whether panics unwind in this build.
    pub unwinds: bool,
    /// Higher is asked earlier.
    pub priority: i64,
    /// Trigger name (or [`GLOBAL`]) and mode, in the order of the entries.
    pub handlers: &'static [(&'static str, Mode)],
    /// Task name and mode, after the handlers in the order of the entries.
    pub tasks: &'static [(&'static str, Mode)],
    /// The shape of its configuration.
    pub config: Schema,
}

/// Writes the manifest as JSON. Runs at compile time.
pub const fn write<const N: usize>(manifest: &StaticManifest, json: &mut ConstJson<N>) {
    json.raw("{");
    json.key("schema");
    json.integer(SCHEMA_VERSION as i64);
    json.key("name");
    json.string(manifest.name);
    json.key("version");
    json.string(manifest.version);
    json.key("description");
    json.string(manifest.description);
    json.key("authors");
    json.split_list(manifest.authors, b':');
    json.key("abi");
    json.raw("{");
    json.key("major");
    json.integer(crate::abi::ABI_MAJOR as i64);
    json.key("minor");
    json.integer(crate::abi::ABI_MINOR as i64);
    json.key("least_host_minor");
    json.integer(crate::abi::LEAST_HOST_MINOR as i64);
    json.raw("}");
    json.key("sdk");
    json.string(env!("CARGO_PKG_VERSION"));
    json.key("rustc");
    json.string(env!("QTASKS_PLUGIN_RUSTC"));
    json.key("target");
    json.string(env!("QTASKS_PLUGIN_TARGET"));
    json.key("panic");
    json.string(if manifest.unwinds { "unwind" } else { "abort" });
    json.key("priority");
    json.integer(manifest.priority);
    json.key("handlers");
    write_entries("trigger", manifest.handlers, json);
    json.key("tasks");
    write_entries("name", manifest.tasks, json);
    json.key("config");
    manifest.config.write(json);
    json.raw("}");
}

const fn write_entries<const N: usize>(key: &str, entries: &[(&str, Mode)], json: &mut ConstJson<N>) {
    json.raw("[");
    let mut index = 0;
    while index < entries.len() {
        json.separator();
        json.raw("{");
        json.key(key);
        json.string(entries[index].0);
        json.key("mode");
        json.string(entries[index].1.name());
        json.raw("}");
        index += 1;
    }
    json.raw("]");
}

/// A manifest as read.
///
/// ```json
/// {"schema": 1, "name": "fallback", "version": "0.1.0", "description": "…", "authors": ["…"],
///  "abi": {"major": 1, "minor": 0, "least_host_minor": 0}, "sdk": "0.1.0", "rustc": "rustc 1.95.0 (…)",
///  "target": "x86_64-unknown-linux-gnu", "panic": "unwind", "priority": 0,
///  "handlers": [{"trigger": "task_executor_run_task_trigger_error", "mode": "blocking"}],
///  "tasks": [{"name": "add", "mode": "inline"}], "config": {"type": "object", "properties": {}}}
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The manifest's own format.
    pub schema: u32,
    /// The plugin's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One line on what it is for.
    pub description: String,
    /// Who wrote it.
    pub authors: Vec<String>,
    /// The boundary it was built against.
    pub abi: Abi,
    /// Version of this crate at its build.
    pub sdk: String,
    /// The compiler, as `rustc --version` prints it.
    pub rustc: String,
    /// The target triple.
    pub target: String,
    /// `unwind`, or `abort`, which no in-process guard survives.
    pub panic: String,
    /// Higher is asked earlier; the operator may set another.
    pub priority: i64,
    /// Its handlers.
    pub handlers: Vec<HandlerEntry>,
    /// The tasks it provides.
    pub tasks: Vec<TaskEntry>,
    /// JSON Schema of its configuration.
    pub config: Box<RawValue>,
}

/// The boundary a plugin was built against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abi {
    /// Changes when old plugins can no longer be loaded.
    pub major: u32,
    /// Grows with each ability that can be asked for.
    pub minor: u32,
    /// The least minor that a host must have for this plugin.
    pub least_host_minor: u32,
}

/// One handler in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerEntry {
    /// A trigger's name, or `global`.
    pub trigger: String,
    /// How it runs.
    pub mode: Mode,
}

/// One task in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// The task's name.
    pub name: String,
    /// How it runs.
    pub mode: Mode,
}

/// Refuses, at compile time, a name that is no trigger, and says which is near.
///
/// # Panics
///
/// When it is none; in a constant that is an error of the compiler.
#[must_use]
pub const fn known_trigger(name: &'static str) -> &'static str {
    if Trigger::from_name(name).is_none() && !same_text(name, GLOBAL) {
        const ROOM: usize = 512;
        let mut message = ConstJson::<ROOM>::new();
        message.raw("no trigger is called `");
        message.raw(name);
        if let Some(near) = likest_trigger(name) {
            message.raw("`; did you mean `");
            message.raw(near.name());
            message.raw("`? See `Trigger` for all names; `global` is every trigger");
        } else {
            message.raw("`: see `Trigger` for the names; `global` is every trigger");
        }
        let len = if message.len() < ROOM { message.len() } else { ROOM };
        panic!("{}", text_of(message.into_bytes().split_at(len).0));
    }
    name
}

/// A task's name as it stands in the table, without the `r#` of a keyword. Refuses, at compile time, one that nobody could ask for.
///
/// # Panics
///
/// When it is empty or has a colon; in a constant that is an error of the compiler.
#[must_use]
pub const fn task_name(written: &str) -> &str {
    let name = plain_name(written);
    let mut index = 0;
    while index < name.len() && name.as_bytes()[index] != b':' {
        index += 1;
    }
    assert!(index > 0 && index == name.len(), "a task's name is not empty, and has no `:`, which ends it in the queue");
    name
}

/// Refuses, at compile time, a name that stands in `entries` twice, with `message`.
///
/// # Panics
///
/// When it does; in a constant that is an error of the compiler.
pub const fn listed_once(entries: &[(&str, Mode)], name: &str, message: &'static str) {
    let (mut index, mut found) = (0, 0);
    while index < entries.len() {
        if same_text(entries[index].0, name) {
            found += 1;
        }
        index += 1;
    }
    assert!(found < 2, "{}", message);
}

/// How long the manifest is.
#[must_use]
pub const fn manifest_len(facts: &StaticManifest) -> usize {
    let mut json = ConstJson::<0>::new();
    write(facts, &mut json);
    json.len()
}

/// The manifest's bytes.
#[must_use]
pub const fn manifest_bytes<const N: usize>(facts: &StaticManifest) -> [u8; N] {
    let mut json = ConstJson::<N>::new();
    write(facts, &mut json);
    json.into_bytes()
}

/// The bytes as text.
///
/// # Panics
///
/// When they are not UTF-8, which a manifest always is.
#[must_use]
pub const fn text_of(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("a manifest is written from texts"),
    }
}

/// The text as bytes.
#[must_use]
pub const fn bytes_of<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(text.as_bytes());
    bytes
}
