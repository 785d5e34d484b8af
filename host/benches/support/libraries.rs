//! Many libraries of one plugin.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use qtasks_host::plugin::{LoadPolicy, TrustPolicy};

/// How many copies of a plugin a bench loads.
pub(crate) const COPIES: usize = 200;

/// A copy without symbols, as it would be installed.
pub(crate) fn stripped(library: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join("stripped");
    std::fs::copy(library, &copy).expect("a copy");
    let status = Command::new("strip").arg(&copy).status();
    if !status.is_ok_and(|status| status.success()) {
        println!("note: no `strip` here, the library keeps its symbols");
    }
    copy
}

/// Copies that are plugins of different names: the name is written over in the note and in the library's own copy of it.
pub(crate) fn copies(library: &Path, directory: &Path, initial: &str) -> Vec<PathBuf> {
    std::fs::create_dir(directory).expect("a directory");
    let bytes = std::fs::read(library).expect("a library");
    let pattern = br#""name":"fallback""#;
    let places: Vec<usize> = (0..bytes.len() - pattern.len()).filter(|at| bytes[*at..].starts_with(pattern)).collect();
    assert!(!places.is_empty(), "the manifest holds the name");
    (0..COPIES)
        .map(|number| {
            let mut copy = bytes.clone();
            for place in &places {
                copy[place + 8..place + 16].copy_from_slice(format!("{initial}all{number:04}").as_bytes());
            }
            let path = directory.join(format!("lib{number:04}.so"));
            std::fs::write(&path, copy).expect("a copy");
            path
        })
        .collect()
}

/// A host that was given the binary as its guest program.
pub(crate) fn policy(state_dir: &Path) -> LoadPolicy {
    LoadPolicy {
        state_dir: state_dir.to_owned(),
        guest_program: Some(env!("CARGO_BIN_EXE_qtasks-host").into()),
        probe: true,
        probe_deadline: Duration::from_secs(5),
        trust: TrustPolicy::default(),
        watch: Arc::default(),
        own_tasks: Default::default(),
    }
}
