//! What a handler or a task does to the host's own process. What ends the process cannot be survived there: the plugin is named,
//! and kept out of the next start.

use std::io::Write as _;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use qtasks_host::broker::MemoryBackend;
use qtasks_host::trigger::Decision;
use qtasks_host::{QueueTasks, Task, Triggers};
use qtasks_plugin_api::{Error, Event, Plugin, define_plugin};
use tokio::runtime::Handle;

use super::{RAISE, answered, beside_good_ones, one_call_too_many, quarantine, refused, run};
use crate::support::host::Ended;
use crate::support::{Host, Place, TestApp, assert_says};

faults! {
    segfault: "a handler writes to memory that is not there" => "ends the host; the plugin is named, and in quarantine from then on";
    abort: "a handler aborts" => "ends the host; the plugin is named, and in quarantine from then on";
    exit_0: "a handler calls `exit(0)`" => "ends the host with exit code 70; the plugin is named, and in quarantine from then on";
    other_fatal_signals: "a handler raises SIGBUS, SIGILL or SIGFPE" => "ends the host; the plugin is named, and in quarantine from then on";
    child_aborts: "a process that a handler forks aborts" => "the host goes on, and nobody is named";
    stack_overflow: "a handler overflows its stack" => "ends the host; the plugin is named, and in quarantine from then on";
    looked_at_before_the_next_start: "the operator looks at the plugins, or lifts the quarantine, before the next start" => "the plugin that ended the host is in quarantine; lifted, it is loaded";
    exit_on_another_thread: "a thread of the plugin calls `exit(0)`" => "ends the host, unnamed: the thread is not the host's";
    task_segfault: "a task writes to memory that is not there" => "ends the host; the plugin is named, and in quarantine from then on";
    segfault_inline: "an inline handler or task writes to memory that is not there" => "ends the host; the plugin is named, and in quarantine from then on";
    segfault_at_its_end: "a plugin writes to memory that is not there when it is stopped or destroyed" => "ends the host; the plugin is named, and in quarantine from then on";
    throws_a_foreign_exception: "a handler throws an exception as C++ does" => "ends the host; the plugin is named, and in quarantine from then on";
    longjmps: "a handler jumps out of itself with `longjmp`" => "ends the host; the plugin is named, and in quarantine from then on";
    answer_of_static_memory: "a handler answers with memory that cannot be freed" => "ends the host; the plugin is named, and in quarantine from then on";
    answer_of_freed_memory: "a handler answers with memory that it has freed" => "ends the host; the plugin is named, and in quarantine from then on";
    answer_of_no_text: "a handler answers bytes that are not UTF-8" => "`BoundsError`";
    answer_of_no_json: "a handler answers text that is not JSON" => "`BoundsError`";
    answer_of_64_gib: "a handler claims an answer of 64 GiB" => "`BoundsError` before a byte is read";
    error_with_nul: "a handler fails with a text that holds a NUL" => "its own error, as it is";
    error_of_65_mib: "a handler fails with a text of 65 MiB" => "`BoundsError`";
    endless_loop: "a handler never ends, spinning" => "`DeadlineExceeded`; after three at once `PluginTripped`";
    sleep_for_ever: "a handler never ends, sleeping" => "`DeadlineExceeded`; after three at once `PluginTripped`";
    hangs_beside_an_inline_handler: "three calls of a plugin hang that has an inline handler, too" => "`PluginTripped` for that one as well";
    answer_of_65_mib: "a handler answers 65 MiB" => "`BoundsError`";
    answer_nested_129_deep: "a handler answers JSON nested 129 deep" => "`BoundsError`";
    answer_nested_100_000_deep: "a handler answers JSON nested 100,000 deep" => "its own error or `BoundsError`";
    answer_beyond_numbers: "a handler answers a number that no machine type holds" => "passed on as it was written";
    answer_with_a_key_twice: "a handler answers an object with a key twice" => "passed on as it was written";
    leaks_descriptors: "a handler leaks a descriptor a call" => "not reached: they are the host's; every task is answered as long as there are some";
    too_many_at_once: "1024 calls wait for a plugin that never answers" => "the next one is `TooManyCalls` at once";
    reaches_itself: "a handler adds a task, of which it is told" => "`NestedTooDeep` at eight calls within each other; every task is added";
    reaches_itself_inline: "an inline handler adds a task, of which it is told" => "the same, on one thread";
    closes_itself: "a handler closes its own library" => "it stays loaded; its answer counts";
    two_plugins_wait_for_each_other: "a handler and a task of another plugin wait for each other" => "`DeadlineExceeded` and `TimeoutError`: both are given up";
    safe_mode: "a plugin keeps the host from starting" => "`--safe-mode` loads nothing";
}

const PLUGIN: &str = "misbehaves-in-handler";

fn place() -> Place {
    beside_good_ones("misbehaves_in_handler")
}

/// The plugin is asked first, and does this.
fn here(place: &Place, how: &str) -> Host {
    let host = run(place).args(["--concurrency", "1"]);
    host.set(&format!("plugins.{PLUGIN}.priority=1")).set(&format!("plugins.{PLUGIN}.config.how={how}"))
}

/// The host dies, and the next one knows why.
fn fatal(how: &str, input: &str, code: Option<i32>, last_words: &str, cause: &str) {
    let place = place();
    let ended = here(&place, how).with_input(input);
    assert_eq!(ended.code, code, "{ended:?}");
    assert_says(
        &ended.stderr,
        &[&format!("qtasks-host: {last_words} inside plugin {PLUGIN} 0.1.0 ("), "libmisbehaves_in_handler.so)"],
    );
    // Before anything is started again, too.
    let list = quarantine(&place);
    assert_eq!((list.len(), &list[0]["kind"], &list[0]["plugin"]), (1, &"killed-the-host".into(), &PLUGIN.into()));
    let next = answered(here(&place, how).with_input(RAISE));
    let evidence = format!("the host ended ({cause}) while it ran code of this plugin (killed-the-host), seen 1 time(s)");
    refused(&next, "misbehaves_in_handler", "quarantined", &[&evidence]);
}

fn segfault() {
    fatal("segfault", RAISE, None, "fatal signal 11", "signal 11");
}

fn abort() {
    fatal("abort", RAISE, None, "fatal signal 6", "signal 6");
}

fn exit_0() {
    fatal("exit", RAISE, Some(70), "exit() was called", "exit");
}

fn stack_overflow() {
    fatal("stack_overflow", RAISE, None, "fatal signal 11", "signal 11");
}

fn other_fatal_signals() {
    for (how, number) in [("sigbus", libc::SIGBUS), ("sigill", libc::SIGILL), ("sigfpe", libc::SIGFPE)] {
        fatal(how, RAISE, None, &format!("fatal signal {number}"), &format!("signal {number}"));
    }
}

/// It has the host's memory, and so its mark and its handlers of signals.
fn child_aborts() {
    let place = place();
    for _ in 0..2 {
        let ended = answered(here(&place, "child_aborts").with_input(RAISE));
        assert_eq!(ended.result()["decisions"][0]["outcome"], "result", "{}", ended.stderr);
        assert!(!ended.stderr.contains("fatal signal"), "{}", ended.stderr);
    }
    assert!(quarantine(&place).is_empty());
}

fn task_segfault() {
    fatal("segfault", "{\"task\": \"misbehave\"}\n", None, "fatal signal 11", "signal 11");
}

fn segfault_at_its_end() {
    for end in ["how_at_stop", "how_at_end"] {
        let place = place();
        let host = || here(&place, "answer").set(&format!("plugins.{PLUGIN}.config.{end}=segfault"));
        let ended = host().with_input(RAISE);
        assert_eq!((ended.code, ended.results().len()), (None, 1), "{ended:?}");
        assert_says(&ended.stderr, &[&format!("qtasks-host: fatal signal 11 inside plugin {PLUGIN} 0.1.0 (")]);
        let next = answered(host().with_input(RAISE));
        refused(&next, "misbehaves_in_handler", "quarantined", &["signal 11", "(killed-the-host)"]);
    }
}

fn segfault_inline() {
    for input in [RAISE, "{\"task\": \"crash\"}\n"] {
        let place = beside_good_ones("crashes_inline");
        let ended = run(&place).with_input(input);
        assert_eq!(ended.code, None, "{ended:?}");
        assert_says(&ended.stderr, &["qtasks-host: fatal signal 11 inside plugin crashes-inline 0.1.0 ("]);
        let next = answered(run(&place).with_input(RAISE));
        refused(&next, "crashes_inline", "quarantined", &["signal 11", "(killed-the-host)"]);
    }
}

fn looked_at_before_the_next_start() {
    let plugin = |place: &Place, words: &[&str]| Host::new(place).arg("plugin").args(words).arg("--state-dir").arg(place.state());
    let place = place();
    here(&place, "segfault").with_input(RAISE);
    let listed = plugin(&place, &["list", "--plugins", "plugins"]).end().expect_code(4);
    assert_says(&listed.stdout, &["libmisbehaves_in_handler.so: refused: ", "the host ended (signal 11)", "[quarantined]"]);
    assert_says(&plugin(&place, &["quarantine", "clear", PLUGIN]).end().expect_code(0).stdout, &["lifted: ", PLUGIN]);
    let good = RAISE.replace("sea is frozen", "be good");
    let decision = &here(&place, "segfault").with_input(&good).expect_code(0).result()["decisions"][0];
    assert_eq!((&decision["plugin"], &decision["outcome"]), (&PLUGIN.into(), &"result".into()));
    assert!(quarantine(&place).is_empty());
}

/// The host marks the threads that it sends into a plugin. A thread that a plugin made is not marked, so nobody is named, and the
/// exit code is the plugin's.
fn exit_on_another_thread() {
    let place = place();
    let ended = here(&place, "exit_elsewhere").with_input(RAISE);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    assert!(!ended.stderr.contains("inside plugin"), "{}", ended.stderr);
    assert!(quarantine(&place).is_empty());
}

/// Nobody can end such calls in this process, so there may be three of them.
fn hangs(how: &str) {
    let place = place();
    let ended = here(&place, how).set(&format!("plugins.{PLUGIN}.deadline=0.2")).with_input(RAISE.repeat(5)).expect_code(0);
    let results = ended.results();
    let failure = |result: &serde_json::Value| {
        assert_eq!((&result["returning"], &result["original_error"]["message"]), (&123.into(), &"sea is frozen".into()));
        result["decisions"][0]["failure"]["type"].as_str().expect("a text").to_owned()
    };
    let kinds: Vec<String> = results.iter().map(failure).collect();
    assert_eq!(kinds, ["DeadlineExceeded", "DeadlineExceeded", "DeadlineExceeded", "PluginTripped", "PluginTripped"]);
    let reason = "set aside: 3 of its calls went on after their deadline, and cannot be ended in this process";
    assert_eq!(results[4]["decisions"][0]["failure"]["message"], reason);
    assert_says(&ended.stderr, &[&format!("plugin {PLUGIN} was {reason}")]);
}

fn endless_loop() {
    hangs("spin");
}

fn sleep_for_ever() {
    hangs("sleep");
}

/// A plugin that is linked in, hangs in one handler until the test lets it go, and counts the calls of another one.
struct HangsAndCounts;

static HANG: AtomicBool = AtomicBool::new(true);
static COUNTED: AtomicUsize = AtomicUsize::new(0);

impl Plugin for HangsAndCounts {
    type Config = ();

    fn create(_config: (), _host: qtasks_plugin_api::Host) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl HangsAndCounts {
    fn hang(&self, _event: Event<'_>) {
        while HANG.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn count(&self, _event: Event<'_>) {
        COUNTED.fetch_add(1, Ordering::Relaxed);
    }
}

define_plugin! {
    plugin: HangsAndCounts,
    name: "hangs-and-counts",
    handlers: { task_executor_run_task_trigger_error => hang, task_executor_before_execute => inline count },
}

fn hangs_beside_an_inline_handler() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let app = TestApp::with(&["scripted"]).set("plugins.hangs-and-counts.deadline = 0.05");
        let app = app.start_with(|app| _ = app.add_plugin::<HangsAndCounts>(Triggers::Handled)).await;
        for asked in 1..=3 {
            app.raise().await;
            assert_eq!(COUNTED.load(Ordering::Relaxed), asked);
        }
        let report = app.raise().await;
        HANG.store(false, Ordering::Relaxed);
        assert_eq!(COUNTED.load(Ordering::Relaxed), 3, "it is not called any more");
        let of_it = |decision: &&Decision| &*decision.by.name == "hangs-and-counts";
        let failures: Vec<_> = report
            .decisions
            .iter()
            .filter(of_it)
            .map(|decision| decision.failure.as_ref().map(|failure| &*failure.kind))
            .collect();
        assert_eq!(failures, [Some("PluginTripped"); 2]);
    });
}

fn asked(how: &str) -> Ended {
    let place = place();
    here(&place, how).set(&format!("plugins.{PLUGIN}.deadline=60")).with_input(RAISE).expect_code(0)
}

fn out_of_bounds(how: &str, kinds: &[&str], words: &str) {
    let result = answered(asked(how)).result();
    let failure = &result["decisions"][0]["failure"];
    assert!(kinds.contains(&failure["type"].as_str().expect("a text")), "{failure}");
    assert_says(failure["message"].as_str().expect("a text"), &[words]);
}

fn throws_a_foreign_exception() {
    fatal("foreign_exception", RAISE, None, "fatal signal 6", "signal 6");
}

fn longjmps() {
    fatal("longjmp", RAISE, None, "fatal signal 11", "signal 11");
}

fn answer_of_static_memory() {
    fatal("answer_of_static_memory", RAISE, None, "fatal signal 6", "signal 6");
}

fn answer_of_freed_memory() {
    fatal("answer_of_freed_memory", RAISE, None, "fatal signal 11", "signal 11");
}

fn answer_of_no_text() {
    out_of_bounds("answer_of_no_text", &["BoundsError"], "text that is not UTF-8 from byte 1 on");
}

fn answer_of_no_json() {
    out_of_bounds("answer_of_no_json", &["BoundsError"], "text that is not JSON");
}

fn answer_of_64_gib() {
    out_of_bounds("answer_of_64_gib", &["BoundsError"], "68719476736 bytes, at most 67108864 are taken");
}

fn error_with_nul() {
    out_of_bounds("error_with_nul", &["OSError"], "a\0b");
}

fn error_of_65_mib() {
    out_of_bounds("error_of_65_mib", &["BoundsError"], "at most 67108864 are taken");
}

fn answer_of_65_mib() {
    out_of_bounds("large_answer", &["BoundsError"], "68157442 bytes, at most 67108864 are taken");
}

fn answer_nested_129_deep() {
    out_of_bounds("deep_answer", &["BoundsError"], "JSON nested deeper than 128");
}

fn answer_nested_100_000_deep() {
    out_of_bounds("deepest_answer", &["BoundsError", "Error"], "");
}

/// The plugin answers this text, and has the last word.
fn passes_through(text: &str) {
    let place = place();
    let set = format!("plugins.{PLUGIN}.answers={{task_executor_run_task_trigger_error = \"first\"}}");
    let how = format!("plugins.{PLUGIN}.config.how={}", toml::Value::from(text));
    let host = run(&place).set(&format!("plugins.{PLUGIN}.priority=1")).set(&set).set(&how);
    let ended = host.with_input(RAISE).expect_code(0);
    assert_says(&ended.stdout, &[&format!("\"returning\":{text},")]);
}

fn answer_beyond_numbers() {
    passes_through("1e999");
    passes_through("123456789012345678901234567890");
}

fn answer_with_a_key_twice() {
    passes_through(r#"{"a":1,"a":2}"#);
}

fn leaks_descriptors() {
    let place = place();
    let ended = here(&place, "leak_descriptor").with_input(RAISE.repeat(100)).expect_code(0);
    assert_eq!(ended.results().len(), 100);
    assert!(ended.results().iter().all(|result| result["returning"] == 123));
}

/// What a handler of the application's own needs to add a task to the project that it handles.
#[derive(Debug)]
struct Adding {
    runtime: Handle,
    queue: QueueTasks,
    asked: AtomicUsize,
}

impl Adding {
    /// Adds one more task, of which the handler will be told before this returns. Tasks are added by the hundred if nobody ends it.
    fn add(&self) {
        if self.asked.fetch_add(1, Ordering::Relaxed) < 100 {
            let added = self.queue.add_task(Task::new("another").expect("a task"));
            tokio::task::block_in_place(|| self.runtime.block_on(added)).expect("it is added");
        }
    }
}

/// A plugin that is linked in and adds a task for each that is added.
macro_rules! adds_tasks {
    ($plugin:ident, $adding:ident, name: $name:literal, handlers: $handlers:tt) => {
        struct $plugin;
        static $adding: OnceLock<Adding> = OnceLock::new();

        impl Plugin for $plugin {
            type Config = ();

            fn create(_config: (), _host: qtasks_plugin_api::Host) -> Result<Self, Error> {
                Ok(Self)
            }
        }

        impl $plugin {
            fn on_add(&self, _event: Event<'_>) {
                $adding.get().expect("the test has begun").add();
            }
        }

        define_plugin! { plugin: $plugin, name: $name, handlers: $handlers }
    };
}

adds_tasks! { Adds, ADDING, name: "adds", handlers: { qtasks_add_task_before_broker => on_add } }
adds_tasks! { AddsInline, ADDING_INLINE, name: "adds-inline", handlers: { qtasks_add_task_before_broker => inline on_add } }

fn adds_until_it_nests_too_deep<P: qtasks_plugin_api::Export>(adding: &'static OnceLock<Adding>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let app = TestApp::with(&[]).start_with(|app| _ = app.add_plugin::<P>(Triggers::Handled)).await;
        let store = app.running.store(Arc::new(MemoryBackend::new(MemoryBackend::UNBOUNDED, true)));
        let queue = QueueTasks::new(store);
        let adding =
            adding.get_or_init(|| Adding { runtime: Handle::current(), queue: queue.clone(), asked: AtomicUsize::new(0) });
        // Spawned: the test's own thread is none of the runtime's.
        let first = Task::new("first").expect("a task");
        tokio::spawn(async move { queue.add_task(first).await }).await.expect("it ends").expect("it is added");
        assert_eq!(adding.asked.load(Ordering::Relaxed), 8);
        let counts = adding.queue.store().backend().counts().await.expect("memory");
        assert_eq!(counts.new, 9, "all that were added, the one of which nobody was told as well");
    });
}

fn reaches_itself() {
    adds_until_it_nests_too_deep::<Adds>(&ADDING);
}

fn reaches_itself_inline() {
    adds_until_it_nests_too_deep::<AddsInline>(&ADDING_INLINE);
}

fn closes_itself() {
    let place = place();
    let set = format!("plugins.{PLUGIN}.answers={{task_executor_run_task_trigger_error = \"first\"}}");
    let results = here(&place, "close_itself").set(&set).with_input(RAISE.repeat(2)).expect_code(0).results();
    assert!(results.len() == 2 && results.iter().all(|result| result["returning"] == 456), "{results:?}");
}

fn two_plugins_wait_for_each_other() {
    let place = place();
    place.copy("takes_locks_the_other_way");
    let host = here(&place, "take_two_locks").set(&format!("plugins.{PLUGIN}.deadline=2")).set("tasks.take_locks.max_time=2");
    let [raised, other] = super::two_plugins_wait_for_each_other(&place, host);
    assert_eq!((&raised["returning"], &raised["original_error"]["message"]), (&123.into(), &"sea is frozen".into()));
    assert_eq!(raised["decisions"][0]["failure"]["type"], "DeadlineExceeded", "{raised}");
    assert_eq!((&other["status"], &other["error"]["type"]), (&"error".into(), &"TimeoutError".into()), "{other}");
}

fn too_many_at_once() {
    one_call_too_many("in-process");
}

fn safe_mode() {
    let place = beside_good_ones("constructor_leaves_a_mark");
    let mark = place.path("mark");
    let config = place.path("qtasks-host.toml");
    let mut file = std::fs::File::create(&config).expect("the place can be written to");
    // What the settings say of plugins and their tasks must not keep it from starting.
    file.write_all(b"[plugins.misbehaves-in-handler]\npriority = 1\n[tasks.raise]\nmax_time = 3\n").expect("written");
    let host = run(&place).arg("--config").arg(&config).args(["--safe-mode"]).env("QTASKS_TEST_MARK", &mark);
    let ended = host.with_input("{\"task\": \"nobodys\"}\n").expect_code(1);
    assert_says(&ended.stderr, &["safe mode: nothing is loaded from ", "1 task: 0 success, 1 error"]);
    assert!(!mark.exists());
}
