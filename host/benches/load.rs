//! What loading a plugin costs beyond `dlopen` itself. `cargo bench -p qtasks-host --bench load`
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

#[path = "support/libraries.rs"]
mod libraries;
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libraries::{COPIES, copies, policy, stripped};
use qtasks_host::plugin::bytes::LibraryBytes;
use qtasks_host::plugin::discover::MAX_LIBRARY_BYTES;
use qtasks_host::plugin::{Candidate, Inspected, Loader, Plugin, PluginSettings, Registry};
use qtasks_plugin_api::abi::loaded::Layout;
use sha2::Digest;
use support::{figure, library_of, median, ratio};

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
    let [raw, loaded, warm] = ["raw", "loaded", "warm"].map(|name| copies(&library, &directory.path().join(name), &name[..1]));

    time(&raw, &loaded, &warm, &directory.path().join("state"));
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

/// Times all ways in turn, a file each.
fn time(raw: &[PathBuf], cold: &[PathBuf], warm: &[PathBuf], state_dir: &Path) {
    let settings = BTreeMap::new();
    let policy = policy(state_dir);
    let loader = Loader { settings: &settings, policy: &policy };
    // Every file is known: a verdict for each is written beforehand, as if a host had been here before.
    for path in warm {
        loader.verify(&inspect(path)).expect("a good library");
    }
    let mut plugins: Vec<Arc<Plugin>> = Vec::new();
    let mut rounds: Vec<Round> = Vec::new();
    for ((raw, cold), warm) in raw.iter().zip(cold).zip(warm) {
        let mut round = Round::default();
        let timed = |time: &mut Duration, begun: Instant| *time = begun.elapsed();

        let begun = Instant::now();
        let bytes = std::fs::read(raw).expect("a file");
        let memfd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        let mut sealed = std::fs::File::from(memfd);
        sealed.write_all(&bytes).expect("room");
        let digest = sha2::Sha256::digest(&bytes);
        timed(&mut round.parts, begun);
        std::hint::black_box(digest);
        drop((bytes, sealed));

        let begun = Instant::now();
        dlopen(raw);
        timed(&mut round.dlopen, begun);

        // Beside it the same bytes from memory, as the host opens them.
        let candidate = Candidate { path: raw.clone() };
        let sealed = LibraryBytes::read(&candidate, MAX_LIBRARY_BYTES).expect("a file").into_sealed();
        let begun = Instant::now();
        dlopen(&sealed.dlopen_path());
        timed(&mut round.dlopen_memfd, begun);
        drop(sealed);

        let inspected = inspect(cold);
        let begun = Instant::now();
        plugins.push(Arc::new(loader.bring_up(inspected, PluginSettings::default(), Layout::Compare).expect("a plugin")));
        timed(&mut round.load, begun);

        let begun = Instant::now();
        let inspected = inspect(warm);
        let layout = loader.verify(&inspected).expect("a good library");
        timed(&mut round.stages, begun);
        assert_eq!(layout, Layout::ComparedBefore, "the verdict is warm");
        let begun = Instant::now();
        plugins.push(Arc::new(loader.bring_up(inspected, PluginSettings::default(), layout).expect("a plugin")));
        timed(&mut round.warm_load, begun);
        rounds.push(round);
    }
    let begun = Instant::now();
    let count = plugins.len();
    let registry = Registry::new(plugins).expect("they go together");
    let registering = begun.elapsed() / u32::try_from(count).expect("few");
    assert_eq!(registry.plugins().len(), 2 * COPIES);

    type Part = fn(&Round) -> Duration;
    let figures: [(&str, Part); 6] = [
        ("read_memfd_hash", |round| round.parts),
        ("dlopen", |round| round.dlopen),
        ("dlopen_memfd", |round| round.dlopen_memfd),
        ("load", |round| round.load),
        ("stages_before_load", |round| round.stages),
        ("load_with_warm_verdict", |round| round.warm_load),
    ];
    for (name, part) in figures {
        figure(name, median(rounds.iter().map(part)).as_secs_f64() * 1e6, "µs");
    }
    figure("registering", registering.as_secs_f64() * 1e6, "µs");
    let over = |left: &dyn Fn(&Round) -> Duration, right: &dyn Fn(&Round) -> Duration| {
        median(rounds.iter().map(|round| (left(round) + registering).div_duration_f64(right(round))))
    };
    ratio("load_over_dlopen", over(&|round| round.load, &|round| round.dlopen));
    ratio("load_over_dlopen_memfd", over(&|round| round.load, &|round| round.dlopen_memfd));
    ratio("warm_load_over_dlopen_memfd", over(&|round| round.warm_load, &|round| round.dlopen_memfd));
    ratio("warm_load_over_dlopen", over(&|round| round.warm_load, &|round| round.dlopen));
    ratio("staged_load_over_parts", over(&|round| round.stages + round.warm_load, &|round| round.parts + round.dlopen));
}

/// What one file of each kind took.
#[derive(Default)]
struct Round {
    parts: Duration,
    dlopen: Duration,
    dlopen_memfd: Duration,
    load: Duration,
    stages: Duration,
    warm_load: Duration,
}

fn inspect(path: &Path) -> Inspected {
    Inspected::read(&Candidate { path: path.to_owned() }).expect("a plugin library")
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
    let policy = policy(Path::new("/nonexistent"));
    let loader = Loader { settings: &settings, policy: &policy };
    let mut plugins: Vec<Arc<Plugin>> = Vec::new();
    let before = ["VmRSS:", "RssAnon:"].map(memory_now);
    for path in &paths {
        if load {
            let plugin = loader.bring_up(inspect(path), PluginSettings::default(), Layout::Compare);
            plugins.push(Arc::new(plugin.expect("a plugin")));
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
