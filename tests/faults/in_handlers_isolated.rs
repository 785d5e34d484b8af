//! What a handler or a task does to its process, where the process is its own: the host goes on, every task is accounted for, the
//! original error is kept, and the next plugin is asked.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{RAISE, beside_good_ones, one_call_too_many, run};
use crate::support::host::Ended;
use crate::support::{Host, Place, assert_says};

faults! {
    segfault: "a handler writes to memory that is not there" => "`PluginCrashed` naming SIGSEGV; a new process for the next call";
    abort: "a handler aborts" => "`PluginCrashed` naming SIGABRT";
    exit_0: "a handler calls `exit(0)`" => "`PluginCrashed` naming exit(0)";
    exit_on_another_thread: "a thread of the plugin calls `exit(0)`" => "`PluginCrashed` naming exit(0)";
    stack_overflow: "a handler overflows its stack" => "`PluginCrashed` naming SIGABRT; the runtime's last words are logged";
    kill_its_group: "a handler kills its own process group" => "`PluginCrashed` naming SIGKILL; the host is in another group";
    memory_balloon: "a handler allocates without end" => "`PluginCrashed` naming SIGABRT, at `memory_mib`";
    memory_in_a_file: "a handler makes a file that is in memory alone, or a segment that others share" => "its own error: the sandbox refuses it; `memory_mib` would not see it";
    endless_loop: "a handler never ends, spinning" => "`DeadlineExceeded`; its process is killed";
    sleep_for_ever: "a handler never ends, sleeping" => "`DeadlineExceeded`; its process is killed";
    stops_itself: "a handler raises SIGSTOP" => "`DeadlineExceeded`; its process is killed";
    closes_descriptors: "a handler closes every descriptor" => "`DeadlineExceeded` or `PluginCrashed`; its process is killed";
    panic_in_async: "an async handler panics" => "`Panic` with message and place; the process stays";
    ends_when_told: "a handler ends once it is told that its deadline passed" => "`DeadlineExceeded`; the process stays";
    never_ready: "an async handler awaits what never happens" => "`DeadlineExceeded`; the process is killed";
    starts_a_process: "a handler starts a program, or becomes another one" => "its own error: the sandbox refuses it, unless `processes = true`";
    reads_its_environment: "a handler reads its environment" => "of the host's there are `PATH`, `HOME`, `LANG` and `TZ`";
    reads_standard_input: "a handler reads its standard input" => "it is empty";
    looks_for_descriptors: "a handler looks for what the host has open" => "it is not open there";
    under_lower_limits: "the host runs under limits that are lower than the plugin's" => "they hold for the plugin as well; it writes no core file in any case";
    writes_to_dev_null: "a handler writes to `/dev/null`" => "it may";
    writes_to_the_hosts_socket: "a handler writes to the host's socket what no guest says there" => "`PluginCrashed`, naming it; its process is killed";
    starts_a_thread: "a handler starts a thread" => "it may";
    burns_processor_time: "a handler takes processor time without end" => "`PluginCrashed` naming SIGXCPU, at `cpu_seconds`; a new process for the next call";
    writes_a_large_file: "a handler writes a file of 2 GiB" => "`PluginCrashed` naming SIGXFSZ, at 1 GiB";
    throws_a_foreign_exception: "a handler throws an exception as C++ does" => "`PluginCrashed` naming SIGABRT; the runtime's last words are logged";
    longjmps: "a handler jumps out of itself with `longjmp`" => "`PluginCrashed` naming SIGSEGV";
    answer_of_no_text: "a handler answers bytes that are not UTF-8" => "`BoundsError`; the process stays";
    answer_of_no_json: "a handler answers text that is not JSON" => "`BoundsError`; the process stays";
    answer_of_64_gib: "a handler claims an answer of 64 GiB" => "`BoundsError` before a byte is read; the process stays";
    answer_of_static_memory: "a handler answers with memory that cannot be freed" => "`PluginCrashed` naming SIGABRT";
    answer_of_freed_memory: "a handler answers with memory that it has freed" => "`PluginCrashed` naming SIGSEGV";
    error_with_nul: "a handler fails with a text that holds a NUL" => "its own error, as it is";
    error_of_65_mib: "a handler fails with a text of 65 MiB" => "`BoundsError`; the process stays";
    too_many_at_once: "1024 calls wait for a plugin that never answers" => "the next one is `TooManyCalls` at once";
    leaks_descriptors: "a handler leaks a descriptor a call" => "at its limit its own calls fail; the host's descriptors are its own";
    leaks_threads: "a handler leaks a thread a call" => "at its limit its own calls fail, or its process ends";
    leaks_memory: "a handler leaks 1 MiB a call" => "`PluginCrashed` naming SIGABRT, at `memory_mib`; a new process for the next call";
    logs_without_measure: "a handler logs 100,000 lines" => "1000 lines a second get through";
    prints_without_measure: "a handler prints 100,000 lines" => "1000 lines a second get through, as log lines; standard output is clean";
    answer_of_65_mib: "a handler answers 65 MiB" => "`BoundsError`; the process stays";
    answer_nested_129_deep: "a handler answers JSON nested 129 deep" => "`BoundsError`; the process stays";
    answer_nested_100_000_deep: "a handler answers JSON nested 100,000 deep" => "its own error or `BoundsError`; the process stays";
    many_at_once: "a handler crashes while other calls run in the same process" => "each call is answered, by a failure if need be";
    closes_itself: "a handler closes its own library" => "it stays loaded; its answer counts";
    two_plugins_wait_for_each_other: "a handler and a task of another plugin wait for each other" => "`DeadlineExceeded`; its process is killed, and what it held goes to the other, which ends";
    task_segfault: "a task writes to memory that is not there" => "the task's error is `PluginCrashed` naming SIGSEGV";
    task_sleeps_for_ever: "a task never ends" => "`TimeoutError` after `max_time`; its process is killed, the next task runs";
    stop_hangs: "a plugin never stops" => "its process is killed at the stop's deadline";
    stop_fails: "a plugin fails when it is stopped" => "the host ends well, and says why";
    stop_crashes: "a plugin crashes when it is stopped" => "the host ends well";
}

pub(super) const PLUGIN: &str = "misbehaves-in-handler";

pub(super) fn place() -> Place {
    beside_good_ones("misbehaves_in_handler")
}

/// The plugin is asked first, in a process of its own, and does this.
pub(super) fn isolated(place: &Place, how: &str) -> Host {
    let set = ["isolation=process", "priority=1", "memory_mib=1024", &format!("config.how={how}")];
    set.into_iter().fold(run(place).args(["--concurrency", "1"]), |host, set| host.set(&format!("plugins.{PLUGIN}.{set}")))
}

/// The failures of the plugin, one for each of `tasks` tasks, which the next plugin answered.
#[track_caller]
pub(super) fn failures(ended: Ended, tasks: usize) -> Vec<(String, String)> {
    let ended = ended.expect_code(0);
    let results = ended.results();
    assert_eq!(results.len(), tasks, "{}", ended.stderr);
    let failure = |result: &Value| {
        assert_eq!((&result["returning"], &result["status"]), (&123.into(), &"success".into()), "{result}");
        assert_eq!(result["original_error"]["message"], "sea is frozen", "{result}");
        assert_eq!(result["resolved_by"]["plugin"], "documented-example", "{result}");
        let decision = &result["decisions"][0];
        assert_eq!((&decision["plugin"], &decision["outcome"]), (&PLUGIN.into(), &"failed".into()), "{result}");
        let text = |key: &str| decision["failure"][key].as_str().expect("a text").to_owned();
        (text("type"), text("message"))
    };
    results.iter().map(failure).collect()
}

/// Two calls, and so two processes, end the same way.
#[track_caller]
fn ends(how: &str, kind: &str, words: &str) -> String {
    let place = place();
    let host = isolated(&place, how).set(&format!("plugins.{PLUGIN}.deadline={}", if kind == "PluginCrashed" { 20 } else { 2 }));
    let ended = host.with_input(RAISE.repeat(2));
    let stderr = ended.stderr.clone();
    for (found, message) in failures(ended, 2) {
        assert_eq!(found, kind, "{message}");
        assert_says(&message, &[words]);
    }
    stderr
}

fn segfault() {
    let stderr = ends("segfault", "PluginCrashed", "the plugin's process was killed by signal 11 (SIGSEGV)");
    assert_says(&stderr, &["its process was killed by signal 11 (SIGSEGV); it is started again"]);
}

fn abort() {
    ends("abort", "PluginCrashed", "the plugin's process was killed by signal 6 (SIGABRT)");
}

fn exit_0() {
    ends("exit", "PluginCrashed", "the plugin's process ended with exit(0)");
}

fn exit_on_another_thread() {
    ends("exit_elsewhere", "PluginCrashed", "the plugin's process ended with exit(0)");
}

fn stack_overflow() {
    let stderr = ends("stack_overflow", "PluginCrashed", "the plugin's process was killed by signal 6 (SIGABRT)");
    assert_says(&stderr, &["has overflowed its stack"]);
}

fn kill_its_group() {
    ends("kill_group", "PluginCrashed", "the plugin's process was killed by signal 9 (SIGKILL)");
}

fn memory_balloon() {
    let stderr = ends("balloon", "PluginCrashed", "the plugin's process was killed by signal 6 (SIGABRT)");
    assert_says(&stderr, &["memory allocation of 16777216 bytes failed"]);
}

fn memory_in_a_file() {
    let place = place();
    for processes in [false, true] {
        for how in ["hide_memory", "hide_secret_memory", "hide_shared_memory"] {
            not_permitted(isolated(&place, how).set(&format!("plugins.{PLUGIN}.processes={processes}")));
        }
    }
}

/// The system refuses the plugin what it does.
#[track_caller]
fn not_permitted(host: Host) {
    for (kind, message) in failures(host.with_input(RAISE), 1) {
        assert_eq!(kind, "PermissionError", "{message}");
        assert_says(&message, &["Operation not permitted"]);
    }
}

fn starts_a_process() {
    let place = place();
    for how in ["start_process", "become_another", "become_another_at"] {
        not_permitted(isolated(&place, how));
    }
    let allowed = isolated(&place, "start_process").set(&format!("plugins.{PLUGIN}.processes=true"));
    assert_eq!(answer_of(allowed), "exit status: 0");
}

fn reads_its_environment() {
    let place = place();
    let host = isolated(&place, "environment").env("LANG", "C.UTF-8").env("TZ", "UTC").env("QTASKS_TEST_SECRET", "x");
    let seen = answer_of(host);
    let home = place.root().to_str().expect("a plain path");
    for (name, value) in
        [("HOME", home), ("LANG", "C.UTF-8"), ("TZ", "UTC"), ("PATH", &std::env::var("PATH").expect("a test has one"))]
    {
        assert_eq!(seen[name], value, "{seen}");
    }
    assert_eq!(seen.as_object().map(serde_json::Map::len), Some(4), "{seen}");
}

fn reads_standard_input() {
    assert_eq!(answer_of(isolated(&place(), "read_stdin")), 0);
}

/// The same, with the host started by this shell script.
fn isolated_by(place: &Place, script: &str, how: &str) -> Host {
    let host = Host::shell(place, &format!("{script} && exec \"$0\" \"$@\"")).arg("run").arg("--plugins").arg(place.plugins());
    let set = ["isolation=process", "priority=1", &format!("config.how={how}")];
    let host = host.arg("--state-dir").arg(place.state());
    set.into_iter().fold(host, |host, set| host.set(&format!("plugins.{PLUGIN}.{set}")))
}

fn looks_for_descriptors() {
    let place = place();
    let open = json!(place.write("open", ""));
    let seen = answer_of(isolated_by(&place, "exec 9<open", "descriptors"));
    assert!(seen.as_array().is_some_and(|seen| !seen.is_empty() && !seen.contains(&open)), "{seen}");
}

fn under_lower_limits() {
    let limits = answer_of(isolated_by(&place(), "ulimit -n 200", "limits"));
    let limit = |name: &str| {
        let line = limits.as_str().and_then(|limits| limits.lines().find_map(|line| line.strip_prefix(name)));
        line.expect("Linux has it").split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["200", "200"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
}

fn writes_to_dev_null() {
    assert_eq!(answer_of(isolated(&place(), "write_to_null")), 456);
}

fn writes_to_the_hosts_socket() {
    ends("forge_a_frame", "PluginCrashed", "sent nonsense and was killed: a frame of kind Hello");
    ends("forge_a_length", "PluginCrashed", "sent nonsense and was killed: a frame of 4294967295 bytes");
}

fn starts_a_thread() {
    assert_eq!(answer_of(isolated(&place(), "start_thread")), 789);
}

/// What the plugin answered, alone.
#[track_caller]
fn answer_of(host: Host) -> Value {
    let ended = host.set(&format!("plugins.{PLUGIN}.answers.task_executor_run_task_trigger_error=first")).with_input(RAISE);
    let result = ended.expect_code(0).result();
    assert_eq!(result["resolved_by"]["plugin"], PLUGIN, "{result}");
    result["returning"].clone()
}

fn burns_processor_time() {
    let place = place();
    let host = isolated(&place, "spin").set(&format!("plugins.{PLUGIN}.cpu_seconds=1"));
    for (kind, message) in failures(host.set(&format!("plugins.{PLUGIN}.deadline=60")).with_input(RAISE.repeat(2)), 2) {
        assert_eq!(kind, "PluginCrashed", "{message}");
        assert_says(&message, &["the plugin's process was killed by signal 24 (SIGXCPU)"]);
    }
}

fn writes_a_large_file() {
    ends("large_file", "PluginCrashed", "the plugin's process was killed by signal 25 (SIGXFSZ)");
}

fn throws_a_foreign_exception() {
    let stderr = ends("foreign_exception", "PluginCrashed", "the plugin's process was killed by signal 6 (SIGABRT)");
    assert_says(&stderr, &["Rust cannot catch foreign exceptions"]);
}

fn longjmps() {
    ends("longjmp", "PluginCrashed", "the plugin's process was killed by signal 11 (SIGSEGV)");
}

fn answer_of_no_text() {
    stays("answer_of_no_text", "BoundsError", "text that is not UTF-8 from byte 1 on");
}

fn answer_of_no_json() {
    stays("answer_of_no_json", "BoundsError", "text that is not JSON");
}

fn answer_of_64_gib() {
    stays("answer_of_64_gib", "BoundsError", "68719476736 bytes, at most 67108864 are taken");
}

fn answer_of_static_memory() {
    ends("answer_of_static_memory", "PluginCrashed", "the plugin's process was killed by signal 6 (SIGABRT)");
}

fn answer_of_freed_memory() {
    ends("answer_of_freed_memory", "PluginCrashed", "the plugin's process was killed by signal 11 (SIGSEGV)");
}

fn error_with_nul() {
    stays("error_with_nul", "OSError", "a\0b");
}

fn error_of_65_mib() {
    stays("error_of_65_mib", "BoundsError", "at most 67108864 are taken");
}

/// Two calls fail, and their process is none the worse.
#[track_caller]
fn stays(how: &str, kind: &str, words: &str) {
    let place = place();
    let ended = isolated(&place, how).set(&format!("plugins.{PLUGIN}.deadline=60")).with_input(RAISE.repeat(2));
    assert!(!ended.stderr.contains("it is started again"), "{}", ended.stderr);
    for (found, message) in failures(ended, 2) {
        assert_eq!(found, kind, "{message}");
        assert_says(&message, &[words]);
    }
}

fn endless_loop() {
    let stderr = ends("spin", "DeadlineExceeded", "did not end within 2 s");
    assert_says(&stderr, &["missed its deadline and did not end when told"]);
}

fn sleep_for_ever() {
    ends("sleep", "DeadlineExceeded", "did not end within 2 s");
}

fn stops_itself() {
    ends("stop_signal", "DeadlineExceeded", "did not end within 2 s");
}

/// Whether the host sees the end of the stream depends on who else in the guest still waits on the socket.
fn closes_descriptors() {
    let place = place();
    let host = isolated(&place, "close_descriptors").set(&format!("plugins.{PLUGIN}.deadline=1"));
    for (kind, message) in failures(host.with_input(RAISE.repeat(2)), 2) {
        assert!(["DeadlineExceeded", "PluginCrashed"].contains(&&*kind), "{kind}: {message}");
    }
}

fn async_fixture(fixture: &str, deadline: f64, kind: &str, words: &[&str]) {
    let place = beside_good_ones(fixture);
    let name = fixture.replace('_', "-");
    let host = run(&place)
        .set(&format!("plugins.{name}.isolation=process"))
        .set(&format!("plugins.{name}.priority=1"))
        .set(&format!("plugins.{name}.deadline={deadline}"));
    let ended = host.with_input(RAISE.repeat(2)).expect_code(0);
    let results = ended.results();
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!((&result["returning"], &result["original_error"]["message"]), (&123.into(), &"sea is frozen".into()));
        let failure = &result["decisions"][0]["failure"];
        assert_eq!(failure["type"], kind, "{failure}");
        assert_says(&failure.to_string(), words);
    }
}

fn panic_in_async() {
    async_fixture("panics_in_async_handler", 20.0, "Panic", &["no answer for raise", "panics_in_async_handler.rs:"]);
}

/// It has little time for it, and the machine may be busy: once is enough.
fn ends_when_told() {
    let place = beside_good_ones("hangs_in_handler");
    let set = ["isolation=process", "priority=1", "deadline=0.2"].map(|set| format!("plugins.hangs-in-handler.{set}"));
    let host = set.iter().fold(run(&place).args(["--concurrency", "1"]), |host, set| host.set(set));
    let ended = host.with_input(RAISE.repeat(4)).expect_code(0);
    for result in ended.results() {
        assert_eq!(result["decisions"][0]["failure"]["type"], "DeadlineExceeded", "{result}");
    }
    assert_says(&ended.stderr, &["plugin=hangs-in-handler", "cancelled"]);
    assert!(ended.stderr.matches("it is started again").count() < 3, "{}", ended.stderr);
}

fn never_ready() {
    async_fixture("never_ready", 1.0, "DeadlineExceeded", &["did not end within 1 s"]);
}

fn leaks_memory() {
    leaks("leak_memory", 1100, &["PluginCrashed"]);
}

/// A call that leaks answers nothing, until nothing is left to leak.
fn leaks(how: &str, tasks: usize, allowed: &[&str]) {
    let place = place();
    let ended = isolated(&place, how).with_input(RAISE.repeat(tasks)).expect_code(0);
    let results = ended.results();
    assert_eq!(results.len(), tasks);
    let mut failed = 0;
    for result in &results {
        assert_eq!((&result["returning"], &result["original_error"]["message"]), (&123.into(), &"sea is frozen".into()));
        if let Some(kind) = result["decisions"][0]["failure"]["type"].as_str() {
            failed += 1;
            assert!(allowed.contains(&kind), "{result}");
        }
    }
    assert!(failed > 0 && failed < tasks, "{failed} of {tasks} calls failed: the limit was not reached, or reached at once");
}

fn leaks_descriptors() {
    leaks("leak_descriptor", 1100, &["OSError"]);
}

fn leaks_threads() {
    leaks("leak_thread", 700, &["BlockingIOError", "Panic", "PluginCrashed", "PluginTripped"]);
}

fn lines_of_many(how: &str) -> Ended {
    let place = place();
    let ended = isolated(&place, how).set(&format!("plugins.{PLUGIN}.deadline=60")).with_input(RAISE).expect_code(0);
    assert_eq!(ended.result()["returning"], 123);
    let lines = ended.stderr.lines().filter(|line| line.contains("of many")).count();
    assert!(lines > 0 && lines < 50_000, "{lines} lines got through");
    assert_says(&ended.stderr, &["1000 lines in a second: those that follow in it are dropped"]);
    ended
}

fn logs_without_measure() {
    lines_of_many("log");
}

/// Its lines are log lines of the host, so that standard output has nothing but results: `result` above would not read it.
fn prints_without_measure() {
    assert_says(&lines_of_many("print").stderr, &["at=\"stdout\""]);
}

/// The process answers, and so goes on.
fn answers(how: &str, kinds: &[&str], words: &str) {
    let place = place();
    let ended = isolated(&place, how).set(&format!("plugins.{PLUGIN}.deadline=60")).with_input(RAISE.repeat(2));
    assert!(!ended.stderr.contains("started again"), "{}", ended.stderr);
    for (kind, message) in failures(ended, 2) {
        assert!(kinds.contains(&&*kind), "{kind}: {message}");
        assert_says(&message, &[words]);
    }
}

fn answer_of_65_mib() {
    answers("large_answer", &["BoundsError"], "68157442 bytes, at most 67108864 are taken");
}

fn answer_nested_129_deep() {
    answers("deep_answer", &["BoundsError"], "JSON nested deeper than 128");
}

fn answer_nested_100_000_deep() {
    answers("deepest_answer", &["BoundsError", "Error"], "");
}

fn too_many_at_once() {
    one_call_too_many("process");
}

fn many_at_once() {
    let place = place();
    let ended = isolated(&place, "segfault").args(["--log", "error"]).set("concurrency=8").with_input(RAISE.repeat(40));
    for (kind, message) in failures(ended, 40) {
        assert!(["PluginCrashed", "PluginTripped"].contains(&&*kind), "{kind}: {message}");
        assert_says(&message, &["signal 11 (SIGSEGV)"]);
    }
}

fn closes_itself() {
    assert_eq!(answer_of(isolated(&place(), "close_itself")), 456);
}

fn two_plugins_wait_for_each_other() {
    let place = place();
    place.copy("takes_locks_the_other_way");
    let host = isolated(&place, "take_two_locks").set(&format!("plugins.{PLUGIN}.deadline=2"));
    let host = host.set("plugins.takes-locks-the-other-way.isolation=process").set("tasks.take_locks.max_time=600");
    let [raised, other] = super::two_plugins_wait_for_each_other(&place, host);
    assert_eq!((&raised["returning"], &raised["original_error"]["message"]), (&123.into(), &"sea is frozen".into()));
    assert_eq!(raised["decisions"][0]["failure"]["type"], "DeadlineExceeded", "{raised}");
    assert_eq!(other["status"], "success", "{other}");
}

const MISBEHAVE: &str = "{\"task\": \"misbehave\"}\n";

fn task_segfault() {
    let place = place();
    let ended = isolated(&place, "segfault").with_input([MISBEHAVE, RAISE].concat()).expect_code(1);
    let results = ended.results();
    assert_eq!(results.len(), 2, "{}", ended.stderr);
    assert_eq!((&results[0]["status"], &results[0]["error"]["type"]), (&"error".into(), &"PluginCrashed".into()), "{results:?}");
    assert_says(results[0]["error"]["message"].as_str().expect("a text"), &["signal 11 (SIGSEGV)"]);
    assert_eq!(results[1]["returning"], 123);
}

fn task_sleeps_for_ever() {
    let place = place();
    let ended = isolated(&place, "sleep").args(["--max-time", "1"]);
    let ended = ended.set(&format!("plugins.{PLUGIN}.deadline=0.5")).with_input([MISBEHAVE, RAISE].concat()).expect_code(1);
    let results = ended.results();
    assert_eq!(results.len(), 2, "{}", ended.stderr);
    assert_eq!(results[0]["error"]["type"], "TimeoutError", "{}", results[0]);
    assert_eq!(results[1]["returning"], 123);
}

fn stop_hangs() {
    let place = place();
    let begun = Instant::now();
    let ended = isolated(&place, "null").set(&format!("plugins.{PLUGIN}.config.how_at_stop=sleep")).with_input(RAISE);
    assert_says(
        &ended.expect_code(0).stderr,
        &["the plugin did not stop cleanly: did not stop within 5 s; its process was killed"],
    );
    assert!(begun.elapsed() >= Duration::from_secs(5));
}

fn stop_fails() {
    let place = place();
    // The locks are not there.
    let ended = isolated(&place, "null").set(&format!("plugins.{PLUGIN}.config.how_at_stop=take_two_locks")).with_input(RAISE);
    assert_says(&ended.expect_code(0).stderr, &["the plugin did not stop cleanly: ", "No such file or directory"]);
}

fn stop_crashes() {
    let place = place();
    let ended = isolated(&place, "null").set(&format!("plugins.{PLUGIN}.config.how_at_stop=segfault")).with_input(RAISE);
    let stderr = ended.expect_code(0).stderr;
    assert_says(&stderr, &["the plugin did not stop cleanly: ", "signal 11 (SIGSEGV)"]);
}
