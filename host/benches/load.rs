//! What loading a plugin costs beyond `dlopen` itself. `cargo bench -p qtasks-host --bench load`
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_host::plugin::manifest::{self, ManifestText};
use qtasks_host::plugin::{Candidate, Loader, Plugin, PluginSettings, Registry};
use support::{figure, library_of, median, ratio};

const COPIES: usize = 200;
/// In a child process: which of the two ways to load, for its memory.
const MEMORY_OF: &str = "QTASKS_BENCH_MEMORY_OF";

fn main() {
    if let Some(way) = std::env::var_os(MEMORY_OF) {
        let directory = std::env::args().nth(1).expect("a directory");
        return print_memory(way == "load", Path::new(&directory));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let library = stripped(&library_of("fallback"), directory.path());
    figure("library_size", std::fs::metadata(&library).expect("a file").len() as f64 / 1024.0, "KiB");
    let (raw, loaded) = (copies(&library, &directory.path().join("raw")), copies(&library, &directory.path().join("loaded")));

    time(&raw, &loaded);
    let (opened, loaded) = (memory("dlopen", &raw), memory("load", &loaded));
    for (name, place) in [("memory", 0), ("private_memory", 1)] {
        figure(&format!("dlopen_{name}"), opened[place] / COPIES as f64, "KiB each");
        figure(&format!("load_{name}"), loaded[place] / COPIES as f64, "KiB each");
        ratio(&format!("load_{name}_over_dlopen"), loaded[place] / opened[place]);
    }
}

/// Resident and private memory that a process of its own takes for all copies, in KiB.
fn memory(way: &str, copies: &[PathBuf]) -> [f64; 2] {
    let output = Command::new(std::env::current_exe().expect("this bench"))
        .arg(copies[0].parent().expect("a directory"))
        .env(MEMORY_OF, way)
        .output()
        .expect("it runs again");
    serde_json::from_slice(&output.stdout).expect("two numbers")
}

/// A copy without symbols, as it would be installed.
fn stripped(library: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join("stripped");
    std::fs::copy(library, &copy).expect("a copy");
    let status = Command::new("strip").arg(&copy).status();
    if !status.is_ok_and(|status| status.success()) {
        println!("note: no `strip` here, the library keeps its symbols");
    }
    copy
}

/// Copies that are plugins of different names: the name is written over in the note and in the library's own copy of it.
fn copies(library: &Path, directory: &Path) -> Vec<PathBuf> {
    std::fs::create_dir(directory).expect("a directory");
    let bytes = std::fs::read(library).expect("a library");
    let pattern = br#""name":"fallback""#;
    let places: Vec<usize> = (0..bytes.len() - pattern.len()).filter(|at| bytes[*at..].starts_with(pattern)).collect();
    assert!(!places.is_empty(), "the manifest holds the name");
    (0..COPIES)
        .map(|number| {
            let mut copy = bytes.clone();
            for place in &places {
                copy[place + 8..place + 16].copy_from_slice(format!("fall{number:04}").as_bytes());
            }
            let path = directory.join(format!("lib{number:04}.so"));
            std::fs::write(&path, copy).expect("a copy");
            path
        })
        .collect()
}

/// Times both ways in turn, a file each.
fn time(raw: &[PathBuf], loaded: &[PathBuf]) {
    let settings = BTreeMap::new();
    let loader = Loader { settings: &settings, state_dir: Path::new("/nonexistent") };
    let mut plugins: Vec<Arc<Plugin>> = Vec::new();
    let mut pairs: Vec<(Duration, Duration)> = Vec::new();
    let mut reading = Vec::new();
    for (raw, loaded) in raw.iter().zip(loaded) {
        let begun = Instant::now();
        dlopen(raw);
        let opening = begun.elapsed();

        let begun = Instant::now();
        let (candidate, in_file) = read(loaded);
        reading.push(begun.elapsed());

        let begun = Instant::now();
        plugins.push(Arc::new(bring_up(&loader, &candidate, in_file, &plugins)));
        pairs.push((begun.elapsed(), opening));
    }
    let begun = Instant::now();
    let registry = Registry::new(plugins).expect("they go together");
    let registering = begun.elapsed() / COPIES as u32;
    assert_eq!(registry.plugins().len(), COPIES);

    let loading = median(pairs.iter().map(|(loading, _)| *loading)) + registering;
    let opening = median(pairs.iter().map(|(_, opening)| *opening));
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    figure("read_and_manifest", micros(median(reading.into_iter())), "µs");
    figure("dlopen", micros(opening), "µs");
    figure("load", micros(loading), "µs");
    ratio("load_over_dlopen", median(pairs.iter().map(|(loading, opening)| (*loading + registering).div_duration_f64(*opening))));
}

fn read(path: &Path) -> (Candidate, ManifestText) {
    let candidate = Candidate { path: path.to_owned() };
    let bytes = candidate.read().expect("a file");
    (candidate, manifest::read(&bytes).expect("a manifest"))
}

fn bring_up(loader: &Loader<'_>, candidate: &Candidate, in_file: ManifestText, others: &[Arc<Plugin>]) -> Plugin {
    loader.bring_up(candidate, in_file, PluginSettings::default(), others).expect("a plugin")
}

fn dlopen(path: &Path) {
    // SAFETY: a sample of this repository, whose constructors do nothing.
    #[allow(unsafe_code, reason = "the raw dlopen is what is compared with")]
    let library = unsafe { libloading::Library::new(path) }.expect("a library");
    std::mem::forget(library);
}

/// Prints by how much resident and private memory grow, in KiB: `[1.0, 1.0]`.
///
/// Resident memory counts pages of the library files too, which the kernel maps sixteen at a time and shares with its cache of the
/// files; private memory is what a plugin really costs.
fn print_memory(load: bool, directory: &Path) {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let settings = BTreeMap::new();
    let loader = Loader { settings: &settings, state_dir: Path::new("/nonexistent") };
    let mut plugins: Vec<Arc<Plugin>> = Vec::new();
    let before = ["VmRSS:", "RssAnon:"].map(memory_now);
    for path in &paths {
        if load {
            let (candidate, in_file) = read(path);
            plugins.push(Arc::new(bring_up(&loader, &candidate, in_file, &plugins)));
        } else {
            dlopen(path);
        }
    }
    let after = ["VmRSS:", "RssAnon:"].map(memory_now);
    println!("[{}, {}]", after[0] - before[0], after[1] - before[1]);
}

/// A line of the kernel's account of this process, in KiB.
fn memory_now(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a size");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
