//! Two versions of a plugin replace each other, again and again, while threads fire events: each event has one answer, by the version
//! that is on record for it; what holds a descriptor or a thread lets go of it; what a replacement costs for good is printed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qtasks_host::App;
use qtasks_host::settings::{Override, Settings};
use qtasks_host::trigger::Dispatcher;
use qtasks_plugin_api::Trigger;
use serde_json::{Value, json};

use crate::libraries::stripped;
use crate::support::{figure, fixture, median};

/// Threads that fire events.
const THREADS: usize = 2;

/// At least so many replacements, under at least so many events.
pub(crate) fn run(isolation: &str, replacements: usize, events: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let plugins = directory.path().join("plugins");
    std::fs::create_dir(&plugins).expect("a directory");
    let versions = ["versioned_1", "versioned_2"].map(|version| {
        let place = directory.path().join(version);
        std::fs::create_dir(&place).expect("a directory");
        stripped(&fixture(version), &place)
    });
    let put = |number: usize| {
        // Written beside and renamed, as a library is installed.
        std::fs::copy(&versions[number % 2], plugins.join(".new")).expect("a copy");
        std::fs::rename(plugins.join(".new"), plugins.join("libversioned.so")).expect("our own directory");
    };
    put(0);
    // Threads on which something may wait stay for a while for the next; here only for a short one, so that those that stay are seen.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().thread_keep_alive(Duration::from_millis(50)).build().expect("a runtime");
    let running = runtime.block_on(App::new(settings(directory.path(), &plugins, isolation)).start()).expect("it starts");
    let replacer = running.replacer();
    let replace = |number: usize| {
        put(number);
        let begun = Instant::now();
        let replaced = runtime.block_on(replacer.replace()).expect("they go together");
        assert_eq!(replaced.changes.len(), 1, "{replaced:?} of {:?}", replacer.reports());
        begun.elapsed()
    };
    // What is made once is made before it is counted.
    const WARM_UP: usize = 20;
    for number in 1..=WARM_UP {
        replace(number);
    }
    runtime.block_on(replacer.drained());
    let before = Holdings::settled();

    let (fired, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let event = event();
    let dispatcher = running.executor().dispatcher();
    let (mut times, begun) = (Vec::new(), Instant::now());
    let answered = std::thread::scope(|scope| {
        // Also when a check fails: the threads would fire for ever.
        let end = End(&done);
        let fire = || {
            let _inside = runtime.enter();
            let mut answered = [0u64; 2];
            while !done.load(Ordering::Relaxed) {
                answered[runtime.block_on(fire(dispatcher, &event))] += 1;
                fired.fetch_add(1, Ordering::Relaxed);
            }
            answered
        };
        let firing: Vec<_> = (0..THREADS).map(|_| scope.spawn(fire)).collect();
        times.extend((1..=replacements).map(|number| replace(WARM_UP + number)));
        while fired.load(Ordering::Relaxed) < events && !firing.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(end);
        let answered = firing.into_iter().map(|thread| thread.join().expect("every event has its answer"));
        answered.fold([0, 0], |[one, two], [more, most]| [one + more, two + most])
    });
    let took = begun.elapsed();
    runtime.block_on(replacer.drained());
    let after = Holdings::settled();
    let fired = fired.into_inner();
    runtime.block_on(running.stop());
    let [one, two] = answered;
    assert_eq!(one + two, fired, "each event has one answer");
    assert_eq!(
        asked(directory.path()),
        (fired, replacements + WARM_UP + 1),
        "events that handlers saw, and versions that were stopped"
    );
    assert!(after.descriptors <= before.descriptors, "descriptors: {before:?}, {after:?}");
    assert!(after.threads <= before.threads, "threads: {before:?}, {after:?}");

    let say = |name: &str, value: f64, unit: &str| figure(&format!("soak_{name}_{}", isolation.replace('-', "_")), value, unit);
    say("replacements", replacements as f64, &format!("in {:.0} s", took.as_secs_f64()));
    say("events", fired as f64, &format!("each answered once: {one} by version 1, {two} by version 2"));
    say("events_lost_or_doubled", 0.0, "(gate: 0)");
    say("descriptors", after.descriptors as f64, &format!("before: {} (gate: flat)", before.descriptors));
    say("threads", after.threads as f64, &format!("before: {} (gate: flat)", before.threads));
    let kib = |after: u64, before: u64| after.saturating_sub(before) as f64 / replacements as f64;
    let size = std::fs::metadata(&versions[0]).expect("our own file").len() / 1024;
    say("private_memory", kib(after.private_kib, before.private_kib), "KiB a replacement, which stay: nothing is unloaded");
    say(
        "resident_memory",
        kib(after.resident_kib, before.resident_kib),
        &format!("KiB a replacement, with what is used of its sealed copy of {size} KiB"),
    );
    let tenth = times.len().div_ceil(10);
    let millis = |times: &[Duration]| median(times.iter().copied()).as_secs_f64() * 1e3;
    say("first_tenth", millis(&times[..tenth]), "ms a replacement, while events are fired");
    say("last_tenth", millis(&times[times.len() - tenth..]), "ms a replacement, while events are fired");
}

/// Ends the threads that fire.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn settings(directory: &Path, plugins: &Path, isolation: &str) -> Settings {
    let path = |path: &Path| toml::Value::from(path.to_str().expect("a plain path"));
    let assignments = [
        format!("plugin_dir = {}", path(plugins)),
        format!("state_dir = {}", path(&directory.join("state"))),
        format!("guest_program = {}", toml::Value::from(env!("CARGO_BIN_EXE_qtasks-host"))),
        format!("plugins.versioned.isolation = '{isolation}'"),
    ];
    let overrides = assignments.map(|assignment| Override { flag: String::new(), assignment });
    Settings::read(None, &overrides).expect("good settings")
}

/// The kwargs of an error.
fn event() -> Value {
    let e = json!({"type": "TaskPluginTriggerError", "message": "sea is frozen", "args": [], "kwargs": {}});
    let func = json!({"name": "resize", "provided_by": "application"});
    let task =
        json!({"task_name": "resize", "uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5", "priority": 0, "args": [], "kwargs": {}});
    let executor = json!({"name": "TaskExecutor", "attempt": 1, "attempts": 1});
    json!({"task_executor": executor, "task_func": func, "task_broker": task, "e": e})
}

/// Fires an error, and gives the version that answered it, counted from 0.
async fn fire(dispatcher: &Dispatcher, event: &Value) -> usize {
    let mut dispatched = dispatcher.fire(Trigger::TaskExecutorRunTaskTriggerError, event).await;
    let answer = dispatched.take("result");
    let [decision] = &*dispatched.decisions else { panic!("one plugin is asked once: {dispatched:?}") };
    match (answer.as_ref().map(|json| json.get()), &*decision.by.version) {
        (Some("1"), "1.0.0") => 0,
        (Some("2"), "2.0.0") => 1,
        other => panic!("{other:?}: {dispatched:?}"),
    }
}

/// How many events the instances noted at their ends, and how many ends.
fn asked(directory: &Path) -> (u64, usize) {
    let text = std::fs::read_to_string(directory.join("state/plugins/versioned/life.jsonl")).expect("they noted it");
    let lives = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let ends: Vec<u64> =
        lives.filter(|life| life["what"] == "stopped").map(|life| life["asked"].as_u64().expect("a number")).collect();
    (ends.iter().sum(), ends.len())
}

/// What this process holds.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    private_kib: u64,
    resident_kib: u64,
}

impl Holdings {
    /// Once idle threads are gone.
    fn settled() -> Self {
        std::thread::sleep(Duration::from_secs(1));
        Self::now()
    }

    fn now() -> Self {
        let count = |path| std::fs::read_dir(path).expect("proc(5)").count();
        let status = std::fs::read_to_string("/proc/self/status").expect("proc(5)");
        let kib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            private_kib: kib("RssAnon:"),
            resident_kib: kib("VmRSS:"),
        }
    }
}
