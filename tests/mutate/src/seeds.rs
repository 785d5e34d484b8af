//! The good libraries: a plugin in Rust, and one in C.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A good library.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

impl Seed {
    fn read(name: &'static str, path: PathBuf) -> Result<Self> {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { name, path, bytes })
    }
}

/// Builds the libraries; what has no place of its own goes into `directory`.
pub(crate) fn build(directory: &Path) -> Result<Vec<Seed>> {
    let c = directory.join("seed.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/seed.c");
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&c).arg(source).status().context("cc does not run")?;
    ensure!(status.success(), "cc cannot build the library in C");
    Ok(vec![Seed::read("rust", library_of("documented-example")?)?, Seed::read("c", c)?])
}

/// Builds the plugin library of `package` in release and gives its path, as cargo says it.
fn library_of(package: &str) -> Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--lib", "--message-format=json-render-diagnostics", "--package", package])
        .output()
        .context("cargo does not run")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let name = package.replace('-', "_");
    let artifact = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name && message["filenames"].is_array())
        .find_map(|message| message["filenames"][0].as_str().map(PathBuf::from));
    artifact.with_context(|| format!("cargo names no library of {package}"))
}
