//! The gates of loading: what must hold whatever lies in the plugin directory. `cargo bench -p qtasks-host --bench gates`
//!
//! With `QTASKS_GATES_FULL=1` the fuzzing takes a million inputs instead of fifty thousand, and 10,000 replacements come under ten
//! million events.
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

#[path = "support/libraries.rs"]
mod libraries;
#[path = "support/soak.rs"]
mod soak;
mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libraries::{COPIES, copies, policy, stripped};
use qtasks_host::App;
use qtasks_host::plugin::{Candidate, Inspected, LoadPolicy, Loader, PluginSettings, elf, manifest};
use qtasks_host::settings::{Override, Settings};
use support::{figure, fixture, library_of, median};

/// In a child process: what it is to time.
const TIME_OF: &str = "QTASKS_BENCH_TIME_OF";

fn main() {
    if let Ok(what) = std::env::var(TIME_OF) {
        let [known, state] = [1, 2].map(|place| PathBuf::from(std::env::args_os().nth(place).expect("a directory")));
        return print_time(&what, &known, &state);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let library = stripped(&library_of("fallback"), directory.path());
    let known = copies(&library, &directory.path().join("known"), "k");
    let state = directory.path().join("state");
    probes(&known, &state);
    hanging_probes(directory.path());
    start_with_known_plugins(&directory.path().join("known"), &state);
    static_check(&library);
    fuzz(&library);
    let full = full();
    soak::run("in-process", if full { 10_000 } else { 300 }, if full { 10_000_000 } else { 200_000 });
    soak::run("process", if full { 1_000 } else { 50 }, if full { 1_000_000 } else { 20_000 });
}

fn full() -> bool {
    std::env::var_os("QTASKS_GATES_FULL").is_some()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn inspect(path: &Path) -> Inspected {
    Inspected::read(&Candidate { path: path.to_owned() }).expect("a plugin library")
}

/// The first sight of each library: static check, a verdict noted as probing, the probe, the verdict.
fn probes(paths: &[PathBuf], state: &Path) {
    let (settings, policy) = (BTreeMap::new(), policy(state));
    let loader = Loader { settings: &settings, policy: &policy };
    let times = paths.iter().map(|path| {
        let inspected = inspect(path);
        let begun = Instant::now();
        loader.verify(&inspected).expect("a good library");
        begun.elapsed()
    });
    let times: Vec<Duration> = times.collect();
    figure("probe_median", millis(median(times.iter().copied())), "ms (gate: 5)");
    figure("probe_slowest", millis(times.iter().max().copied().unwrap_or_default()), "ms");
}

/// Libraries that hang when they are loaded: how long after the probe's deadline it is over, its process ended and reaped. A process
/// of a probe cannot start others.
fn hanging_probes(directory: &Path) {
    const PROBES: usize = 20;
    let settings = BTreeMap::new();
    let library = std::fs::read(fixture("constructor_sleeps_for_ever")).expect("a library");
    let policy = LoadPolicy { probe_deadline: Duration::from_millis(100), ..policy(&directory.join("hanging")) };
    let loader = Loader { settings: &settings, policy: &policy };
    let over = (0..PROBES).map(|number| {
        // Other bytes each time: what is in quarantine is not probed.
        let path = directory.join(format!("libhanging{number}.so"));
        std::fs::write(&path, [&*library, number.to_string().as_bytes()].concat()).expect("a copy");
        let inspected = inspect(&path);
        let begun = Instant::now();
        let refused = loader.verify(&inspected).expect_err("it hangs");
        let over = begun.elapsed().saturating_sub(policy.probe_deadline);
        assert_eq!(refused.code(), "probe-harm", "{refused}");
        over
    });
    figure("probe_gone_after_deadline", millis(over.max().unwrap_or_default()), "ms, the slowest of 20 (gate: 100)");
}

/// A start with known plugins, and what of it is not the loading of each: in turn, each in a process that has loaded nothing before.
fn start_with_known_plugins(known: &Path, state: &Path) {
    const ROUNDS: usize = 7;
    let took = |what: &str| {
        let mut child = Command::new(std::env::current_exe().expect("this bench"));
        let output = child.args([known, state]).env(TIME_OF, what).output().expect("it runs again");
        String::from_utf8_lossy(&output.stdout).trim().parse::<f64>().expect("a number")
    };
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (took("start"), took("loading"))).collect();
    figure("start_200_known", median(rounds.iter().map(|round| round.0)), "ms");
    figure("start_200_loading", median(rounds.iter().map(|round| round.1)), "ms: reading, hashing, opening, creating");
    let beyond = median(rounds.iter().map(|(start, loading)| start - loading));
    figure("start_200_beyond_loading", beyond, "ms (gate: 20)");
}

/// In a child process: prints how long its start takes, or the loading alone, in milliseconds.
fn print_time(what: &str, known: &Path, state: &Path) {
    let took = if what == "start" { start(known, state) } else { loading(known, state) };
    println!("{}", millis(took));
}

fn start(known: &Path, state: &Path) -> Duration {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let path = |path: &Path| toml::Value::from(path.to_str().expect("a plain path"));
    let assignments = [
        format!("plugin_dir = {}", path(known)),
        format!("state_dir = {}", path(state)),
        format!("guest_program = {}", toml::Value::from(env!("CARGO_BIN_EXE_qtasks-host"))),
    ];
    let overrides = assignments.map(|assignment| Override { flag: String::new(), assignment });
    let app = App::new(Settings::read(None, &overrides).expect("good settings"));
    let begun = Instant::now();
    let running = runtime.block_on(app.start()).expect("it starts");
    let took = begun.elapsed();
    assert_eq!(running.executor().dispatcher().registry().plugins().len(), COPIES);
    runtime.block_on(running.stop());
    took
}

fn loading(known: &Path, state: &Path) -> Duration {
    let (settings, policy) = (BTreeMap::new(), policy(state));
    let loader = Loader { settings: &settings, policy: &policy };
    let mut took = Duration::ZERO;
    for entry in std::fs::read_dir(known).expect("a directory") {
        let path = entry.expect("an entry").path();
        let begun = Instant::now();
        let inspected = inspect(&path);
        took += begun.elapsed();
        let layout = loader.verify(&inspected).expect("a good library");
        let begun = Instant::now();
        let plugin = loader.bring_up(inspected, PluginSettings::default(), layout).expect("a plugin");
        took += begun.elapsed();
        // Nothing is unloaded; the plugin would only be destroyed.
        std::mem::forget(plugin);
    }
    took
}

/// The static check of a file of 10 MiB, hashing apart.
fn static_check(library: &Path) {
    let mut bytes = std::fs::read(library).expect("a library");
    bytes.resize(10 << 20, 0);
    let times = (0..200).map(|_| {
        let begun = Instant::now();
        elf::check(&bytes).expect("a good library");
        begun.elapsed()
    });
    figure("static_check_10_mib", median(times).as_secs_f64() * 1e6, "µs (gate: 100)");
}

/// Damaged bytes through the static check and the manifest reader: neither may panic.
fn fuzz(library: &Path) {
    let inputs = if full() { 1_000_000 } else { 50_000 };
    let good = std::fs::read(library).expect("a library");
    let (mut bytes, mut random) = (good.clone(), Random(0x9e37_79b9_7f4a_7c15));
    // Most of what both readers look at lies at the beginning of the file.
    let interesting = good.len().min(16 << 10);
    let mut panics = 0;
    std::panic::set_hook(Box::new(|_| ()));
    for _ in 0..inputs {
        let places: Vec<usize> = (0..1 + random.below(4))
            .map(|_| if random.below(4) == 0 { random.below(good.len()) } else { random.below(interesting) })
            .collect();
        for place in &places {
            bytes[*place] = random.below(256) as u8;
        }
        let end = if random.below(8) == 0 { random.below(good.len()) } else { good.len() };
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let _ = std::hint::black_box(elf::check(&bytes[..end]));
            let _ = std::hint::black_box(manifest::read(&bytes[..end]));
        }));
        panics += u32::from(checked.is_err());
        for place in places {
            bytes[place] = good[place];
        }
    }
    drop(std::panic::take_hook());
    figure("fuzzed_inputs", f64::from(inputs), "");
    figure("fuzz_panics", f64::from(panics), "(gate: 0)");
    assert_eq!(panics, 0, "a reader of foreign bytes panics");
}

/// xorshift64*: the same inputs in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}
