//! The plugin libraries under test: built once per process, in the profile of the tests, found by what cargo says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::Deserialize;

/// The repository.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The library of a sample plugin or a fixture, by the name of its target: `documented_example`, `panics_in_start`.
///
/// With `QTASKS_TEST_PLUGINS=DIR` it is `DIR/libNAME.so`, and nothing is built.
pub(crate) fn library(name: &str) -> &'static Path {
    static LIBRARIES: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let libraries = LIBRARIES.get_or_init(|| match std::env::var_os("QTASKS_TEST_PLUGINS") {
        Some(directory) => prebuilt(Path::new(&directory)),
        None => build(&mut cargo(), &["--workspace", "--lib", "--examples"]),
    });
    libraries.get(name).unwrap_or_else(|| panic!("no library {name} among {:?}", libraries.keys()))
}

/// The libraries of a directory, by the names they have there.
fn prebuilt(directory: &Path) -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("QTASKS_TEST_PLUGINS={directory:?}: {error}"));
    let name = |path: &Path| Some(path.file_name()?.to_str()?.strip_prefix("lib")?.strip_suffix(".so")?.to_owned());
    entries.map(|entry| entry.expect("the directory can be read").path()).filter_map(|path| Some((name(&path)?, path))).collect()
}

/// The cargo that built the tests.
pub(crate) fn cargo() -> Command {
    Command::new(env!("CARGO"))
}

/// One line of cargo's `--message-format=json`.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    crate_types: Vec<String>,
}

/// What a plugin is compiled against: `qtasks-plugin-api`, with every feature that a plugin of the workspace has switched on.
pub(crate) fn plugin_api() -> &'static Path {
    static RLIB: OnceLock<PathBuf> = OnceLock::new();
    RLIB.get_or_init(|| {
        let built = built(&mut cargo(), &["--workspace", "--lib"]).into_iter();
        let files = built.filter(|message| message.target.as_ref().is_some_and(|target| target.name == "qtasks_plugin_api"));
        let rlib = files.flat_map(|message| message.filenames).find(|path| path.extension().is_some_and(|end| end == "rlib"));
        rlib.expect("cargo builds qtasks-plugin-api")
    })
}

/// Runs `cargo build` with `arguments`, in the profile of the tests, and takes each cdylib's path from what it says.
pub(crate) fn build(cargo: &mut Command, arguments: &[&str]) -> BTreeMap<String, PathBuf> {
    built(cargo, arguments)
        .into_iter()
        .filter_map(|message| {
            let target = message.target.filter(|target| target.crate_types.iter().any(|kind| kind == "cdylib"))?;
            let library = message.filenames.into_iter().find(|path| path.extension().is_some_and(|end| end == "so"))?;
            Some((target.name.replace('-', "_"), library))
        })
        .collect()
}

/// What cargo says that it built.
///
/// Where the network and the lock file are concerned, the environment of the tests holds here as well; the lock file itself is
/// complete, since the cargo that built the tests wrote it.
fn built(cargo: &mut Command, arguments: &[&str]) -> Vec<Message> {
    cargo.args(["build", "--locked", "--message-format=json-render-diagnostics"]).args(arguments);
    cargo.current_dir(ROOT).stderr(Stdio::piped());
    if !cfg!(debug_assertions) && !arguments.contains(&"--profile") {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo can be started");
    assert!(output.status.success(), "{cargo:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("cargo said {line}: {error}")))
        .collect()
}
