//! What a library does while it is loaded: the first load of unknown bytes is in a guest process.

use std::net::TcpListener;

use super::{Held, RAISE, answered, beside_good_ones, quarantine, refused, run};
use crate::support::worker::Project;
use crate::support::{Host, assert_says};

faults! {
    constructor_segfaults: "a constructor writes to memory that is not there" => "quarantined as `crash`, naming SIGSEGV";
    constructor_aborts: "a constructor aborts" => "quarantined as `crash`, naming SIGABRT";
    constructor_divides_by_zero: "a constructor divides by zero" => "quarantined as `crash`, naming SIGFPE";
    constructor_exits_0: "a constructor calls `exit(0)`" => "quarantined as `crash`: an exit code is no report";
    constructor_exits_at_once: "a constructor calls `_exit(0)`" => "quarantined as `crash`: an exit code is no report";
    constructor_sleeps_for_ever: "a constructor sleeps for ever" => "killed at the probe's deadline, quarantined as `time-out`";
    constructor_joins_the_hosts_group: "a constructor moves its process to the host's group, and sleeps" => "killed at the probe's deadline all the same, quarantined as `time-out`";
    constructor_drips: "a constructor writes to the host's socket, a byte now and then" => "killed at the probe's deadline all the same, quarantined as `time-out`";
    constructor_spins: "a constructor spins" => "killed at the probe's deadline, quarantined as `time-out`";
    constructor_deadlocks_the_loader: "a constructor waits for a thread that calls `dlopen`" => "killed at the probe's deadline, quarantined as `time-out`";
    constructor_prints_a_lot: "a constructor prints 1 GiB" => "it fills its pipe and waits: killed at the probe's deadline, quarantined as `time-out`";
    constructor_closes_all_descriptors: "a constructor closes every descriptor, the host's socket too" => "quarantined as `crash`";
    constructor_forges_a_report: "a constructor writes a good report to every descriptor" => "quarantined as `crash`: the report lacks the nonce";
    constructor_allocates_without_end: "a constructor allocates without end" => "ended by the probe's limit of memory, quarantined as `crash`";
    constructor_kills_its_parent: "a constructor kills the process that probes it" => "the sandbox refuses the signal; the plugin runs";
    constructor_connects: "a constructor opens a TCP connection" => "the sandbox refuses it in the probe; in the host's own process nothing does";
    constructor_leaves_a_child: "a constructor leaves a process behind" => "the sandbox refuses it a process; with `processes = true` it is killed with its process group";
    constructor_leaves_a_daemon: "a constructor leaves a process in a session of its own behind" => "the sandbox refuses it a process; with `processes = true` it is not reached, and lives on, sandboxed";
    constructor_borrows_a_thread: "a constructor makes another thread of its process write a file" => "the sandbox holds for every thread";
    destructor_crashes_at_exit: "an exit handler crashes" => "quarantined as `crash`, at its end";
    destructor_hangs_at_exit: "an exit handler never ends" => "killed, quarantined as `time-out`";
    constructor_spawns_a_thread: "a constructor leaves a thread" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_catches_sigsegv: "a constructor takes over signal handlers" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_ignores_sigpipe: "a constructor ignores and blocks signals" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_changes_directory_and_umask: "a constructor changes directory and umask" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own; verdicts keep their mode";
    constructor_leaves_a_descriptor: "a constructor leaves a descriptor open" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_sets_environment: "a constructor sets an environment variable" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_sets_locale: "a constructor sets the locale" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_lowers_limits: "a constructor lowers a limit" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_changes_priority_and_personality: "a constructor changes priority and personality" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own";
    constructor_prints_a_line: "a constructor prints what looks like a result" => "quarantined as `side-effect`; runs where the settings admit it, or in a process of its own; where it is admitted, it is on standard error, and no result";
    directory_changed_under_relative_paths: "a constructor changes directory, and the host's directories and its file of tasks are relative" => "the libraries after it are found all the same, and so are the tasks";
    the_host_dies_while_it_probes: "the host is killed while it probes" => "the guest ends with it; the next start quarantines the library as `unfinished`";
}

/// The host lives, the others answer, and the library is in quarantine: refused at the second start without a probe, which would
/// find it harmful once more.
fn harmful(plugin: &str, kind: &str, evidence: &[&str]) {
    harmful_within("30", plugin, kind, evidence);
}

fn harmful_within(deadline: &str, plugin: &str, kind: &str, evidence: &[&str]) {
    let place = beside_good_ones(plugin);
    let start = || answered(run(&place).args(["--probe-deadline", deadline]).with_input(RAISE));
    let first = start();
    refused(&first, plugin, "probe-harm", &["the probe found it harmful", &format!("({kind})"), "seen 1 time(s)"]);
    refused(&first, plugin, "probe-harm", evidence);
    let second = start();
    refused(&second, plugin, "quarantined", &["it is in quarantine: ", &format!("({kind})"), "seen 1 time(s)"]);
    refused(&second, plugin, "quarantined", evidence);
    let list = quarantine(&place);
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!((list[0]["kind"].as_str(), list[0]["plugin"].as_str()), (Some(kind), Some(&*plugin.replace('_', "-"))));
    assert_says(list[0]["evidence"].as_str().expect("a text"), evidence);
}

/// It never ends, and so it is killed.
fn hangs(plugin: &str) {
    harmful_within("0.5", plugin, "time-out", &["its process did not report within 0.5 s and was killed"]);
}

fn constructor_segfaults() {
    harmful("constructor_segfaults", "crash", &["its process was killed by signal 11 (SIGSEGV) before it reported"]);
}

fn constructor_aborts() {
    harmful("constructor_aborts", "crash", &["its process was killed by signal 6 (SIGABRT) before it reported"]);
}

fn constructor_divides_by_zero() {
    harmful("constructor_divides_by_zero", "crash", &["its process was killed by signal 8 (SIGFPE) before it reported"]);
}

fn constructor_exits_0() {
    harmful("constructor_exits_0", "crash", &["its process ended with exit(0) before it reported"]);
}

fn constructor_exits_at_once() {
    harmful("constructor_exits_at_once", "crash", &["its process ended with exit(0) before it reported"]);
}

fn constructor_sleeps_for_ever() {
    hangs("constructor_sleeps_for_ever");
}

fn constructor_joins_the_hosts_group() {
    hangs("constructor_joins_the_hosts_group");
}

fn constructor_drips() {
    hangs("constructor_drips");
}

fn constructor_spins() {
    hangs("constructor_spins");
}

fn constructor_deadlocks_the_loader() {
    hangs("constructor_deadlocks_the_loader");
}

/// Nobody reads what a guest prints while it is probed, so a library that prints more than a pipe holds waits.
fn constructor_prints_a_lot() {
    hangs("constructor_prints_a_lot");
}

fn constructor_closes_all_descriptors() {
    harmful("constructor_closes_all_descriptors", "crash", &["before it reported"]);
}

fn constructor_forges_a_report() {
    let evidence = "its process reported nonsense: a report without the nonce of this start";
    harmful("constructor_forges_a_report", "crash", &[evidence]);
}

fn constructor_allocates_without_end() {
    let evidence = ["was killed by signal 6 (SIGABRT)", "its last words: ", "memory allocation of 67108864 bytes failed"];
    harmful("constructor_allocates_without_end", "crash", &evidence);
}

fn destructor_crashes_at_exit() {
    harmful("destructor_crashes_at_exit", "crash", &["its process was killed by signal 11 (SIGSEGV) after it reported"]);
}

fn destructor_hangs_at_exit() {
    harmful("destructor_hangs_at_exit", "time-out", &["its process did not end within 1 s after it reported and was killed"]);
}

/// Harm to a host, unless the operator admits it; in a process of its own, it is that process which is changed.
fn changes(plugin: &str, said: &[&str]) {
    harmful(plugin, "side-effect", said);
    let place = beside_good_ones(plugin);
    let name = plugin.replace('_', "-");
    let admitted = format!("plugins.{name}.side_effects=admit");
    // Each start says so, whether it probes or knows.
    for _ in 0..2 {
        let ended = answered(run(&place).set(&admitted).with_input(RAISE));
        assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
        let line = ended.stderr.lines().find(|line| line.contains("it runs, since `side_effects` is \"admit\""));
        let line = line.unwrap_or_else(|| panic!("no side effects in:\n{}", ended.stderr));
        assert_says(line, &[&name]);
        assert_says(line, said);
    }
    let list = |set: &[&str]| {
        let host = Host::new(&place).args(["plugin", "list", "--plugins"]).arg(place.plugins());
        let host = host.arg("--state-dir").arg(place.state());
        set.iter().fold(host, |host, set| host.set(set)).end().stdout
    };
    let line = |text: &str| text.lines().find(|line| line.contains(plugin) || line.contains(&name)).map(str::to_owned);
    assert_says(&line(&list(&[&admitted])).expect("it is listed"), &[&name, "(loading it changes its process: ", said[0]]);
    assert_says(&line(&list(&[])).expect("it is listed"), &["refused: it is in quarantine", "(side-effect)"]);
    let isolated = answered(run(&place).set(&format!("plugins.{name}.isolation=process")).with_input(RAISE));
    assert!(!isolated.stderr.contains("plugin refused"), "{}", isolated.stderr);
    assert_says(&isolated.stderr, &["loading the library had side effects: "]);
    // No longer admitted, it is what it was, and it is said how to admit it.
    let said = ["(side-effect)", "`isolation = \"process\"`", "`side_effects = \"admit\"`"];
    refused(&answered(run(&place).with_input(RAISE)), plugin, "quarantined", &said);
}

fn constructor_spawns_a_thread() {
    changes("constructor_spawns_a_thread", &["threads: 1 → 2"]);
}

fn constructor_catches_sigsegv() {
    changes(
        "constructor_catches_sigsegv",
        &["signal 11 (SIGSEGV) has another handler", "signal 15 (SIGTERM) has another handler"],
    );
}

fn constructor_ignores_sigpipe() {
    changes("constructor_ignores_sigpipe", &["(SIGUSR2) is ignored", "blocked signals: ", " → 0000000000000200"]);
}

fn constructor_changes_directory_and_umask() {
    changes("constructor_changes_directory_and_umask", &["working directory: / → /proc", "umask: ", " → 0000"]);
}

fn constructor_leaves_a_descriptor() {
    changes("constructor_leaves_a_descriptor", &["descriptors: "]);
}

fn constructor_sets_environment() {
    changes("constructor_sets_environment", &["environment"]);
}

fn constructor_sets_locale() {
    changes("constructor_sets_locale", &["locale: C → "]);
}

fn constructor_lowers_limits() {
    changes("constructor_lowers_limits", &["limits changed"]);
}

fn constructor_changes_priority_and_personality() {
    let ours = rustix::process::getpriority_process(None).expect("a priority");
    let lowered = format!("priority: {ours} → {}", (ours + 3).min(19));
    changes("constructor_changes_priority_and_personality", &[&lowered, "personality: 00000000 → 00040000"]);
}

fn constructor_prints_a_line() {
    harmful("constructor_prints_a_line", "side-effect", &["output: 21 bytes, which will be among the host's"]);
    let place = beside_good_ones("constructor_prints_a_line");
    let ended = run(&place).set("plugins.constructor-prints-a-line.side_effects=admit").with_input(RAISE).expect_code(0);
    assert_eq!(ended.result()["returning"], 123);
}

/// The library comes before the good ones in the order of names.
fn directory_changed_under_relative_paths() {
    let place = beside_good_ones("constructor_changes_directory_and_umask");
    let host = || {
        let host = Host::new(&place).args(["run", "--plugins", "plugins", "--state-dir", "state"]);
        host.set("plugins.constructor-changes-directory-and-umask.side_effects=admit")
    };
    for _ in 0..2 {
        let ended = answered(host().with_input(RAISE));
        assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
    }
    // A worker's file of tasks is where its clients find it.
    let project = Project::at(place, "sqlite:tasks.db".to_owned(), &[]);
    let worker = project.start(&["plugins.constructor-changes-directory-and-umask.side_effects=admit"]);
    let record = project.wait(&project.add(&["raise", "--kwargs", r#"{"message": "sea is frozen"}"#]));
    assert_eq!(record["returning"], 123);
    assert!(worker.stop().0.success());
}

/// With landlock of ABI 6 or later; an older kernel lets the signal through, and the next start finds the library `unfinished`.
fn constructor_kills_its_parent() {
    let place = beside_good_ones("constructor_kills_its_parent");
    let ended = run(&place).with_input(RAISE);
    if ended.code.is_none() {
        let next = answered(run(&place).with_input(RAISE));
        refused(&next, "constructor_kills_its_parent", "quarantined", &["(unfinished)"]);
        return;
    }
    assert!(!answered(ended).stderr.contains("plugin refused"));
}

fn constructor_borrows_a_thread() {
    let place = beside_good_ones("constructor_borrows_a_thread");
    answered(run(&place).set("plugins.constructor-borrows-a-thread.isolation=process").with_input(RAISE));
    assert!(!place.path("escaped").exists(), "a guest wrote outside of its data directory");
}

/// With landlock of ABI 4 or later; an older kernel lets the probe connect as well.
fn constructor_connects() {
    let place = beside_good_ones("constructor_connects");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    place.write("port", listener.local_addr().expect("it is bound").port().to_string());
    let ended = answered(run(&place).env("RUST_LOG", "info").with_input(RAISE));
    assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
    listener.set_nonblocking(true).expect("it is ours");
    let connected = std::iter::from_fn(|| listener.accept().ok()).count();
    let enforced = !ended.stderr.contains("this kernel does not enforce the probe's whole sandbox");
    assert!(connected == 1 || !enforced, "the host connected, and {connected} did in all");
}

fn constructor_leaves_a_child() {
    let place = beside_good_ones("constructor_leaves_a_child");
    let held = Held::new(&place);
    // In the host's own process the child would be the host's to the end and beyond.
    let host = || run(&place).set("plugins.constructor-leaves-a-child.isolation=process");
    answered(host().with_input(RAISE));
    assert!(!held.was_taken(), "neither the probe nor its own process has a child");
    answered(host().set("plugins.constructor-leaves-a-child.processes=true").with_input(RAISE));
    assert!(held.was_taken(), "there was a child");
    assert!(held.is_let_go_within(10), "it is gone");
}

/// A process that leaves its group and its session is nobody's any more: only a namespace or a cgroup of its own would reach it.
fn constructor_leaves_a_daemon() {
    let place = beside_good_ones("constructor_leaves_a_daemon");
    let held = Held::new(&place);
    let host = || run(&place).set("plugins.constructor-leaves-a-daemon.isolation=process");
    answered(host().with_input(RAISE));
    assert!(!held.was_taken(), "neither the probe nor its own process has a child");
    answered(host().set("plugins.constructor-leaves-a-daemon.processes=true").with_input(RAISE));
    assert!(held.was_taken(), "there was a child");
    assert!(!held.is_let_go_within(0), "it lives on; it ends when this test lets go of the FIFO");
}

fn the_host_dies_while_it_probes() {
    let place = beside_good_ones("constructor_sleeps_for_ever");
    let held = Held::new(&place);
    let mut host = run(&place).args(["--probe-deadline", "60"]).spawn();
    while !held.was_taken() {
        assert_eq!(host.try_wait().expect("the child is ours"), None, "it probes");
        std::thread::yield_now();
    }
    host.kill().expect("the child is ours");
    host.wait().expect("the child is ours");
    assert!(held.is_let_go_within(10), "the guest ends with its host");
    let next = answered(run(&place).with_input(RAISE));
    let said = ["a probe of it began and never ended", "(unfinished)", "quarantine clear constructor-sleeps-for-ever"];
    refused(&next, "constructor_sleeps_for_ever", "quarantined", &said);
    assert_eq!(quarantine(&place)[0]["kind"], "unfinished");
}
