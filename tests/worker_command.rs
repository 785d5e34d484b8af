//! `qtasks-host worker`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::redis::RedisServer;
use crate::support::worker::{Project, Worker, let_go};
use crate::support::{Place, assert_says};

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A command that waits until the test lets it go.
const WAITS: &str = r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo 7"]"#;

/// The command lines of the processes that a worker has started, word by word.
fn started_by(worker: &Worker) -> Vec<Vec<String>> {
    let parent = worker.pid().as_raw_nonzero().to_string();
    let processes = std::fs::read_dir("/proc").expect("Linux").filter_map(|entry| Some(entry.ok()?.path()));
    let is_its = |path: &PathBuf| {
        // After the name, which may hold anything, in parentheses: the state, the parent.
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent)
    };
    let words = |path: PathBuf| {
        let line = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        line.split_terminator('\0').map(str::to_owned).collect()
    };
    processes.filter(is_its).map(words).collect()
}

#[test]
fn a_worker_says_at_sigusr1_how_its_plugins_stand() {
    let project = Project::sqlite(&["misbehaves_in_handler", "scripted", "no_entry_point"]);
    let crashes = ["isolation = 'process'", "config.how = 'segfault'"].map(|set| format!("plugins.misbehaves-in-handler.{set}"));
    let mut worker = project.start(&crashes.each_ref().map(String::as_str));
    let delayed = project.add(&["echo", "--delay", "3600"]);
    let say = |worker: &mut Worker, state: &str, reason: &str| {
        worker.signal(Signal::USR1);
        assert_says(&worker.read_until("SIGUSR1: "), &["QueueTasks ", &project.url]);
        assert_says(&worker.read_until("plugin misbehaves-in-handler 0.1.0 ("), &[&format!("): {state}{reason}")]);
        worker.read_until("plugin scripted 0.1.0 (");
        assert_says(&worker.read_until("plugin no-entry-point 0.1.0: refused: "), &["WARN", "does not export"]);
        assert_says(&worker.read_until("tasks: "), &["1 wait, 1 of them for a later time; 0 are being run"]);
    };
    say(&mut worker, "running", "");
    // The sixth is told that the plugin is set aside, so by then it is.
    for _ in 0..6 {
        project.wait(&project.add(&["raise"]));
    }
    say(
        &mut worker,
        "tripped",
        ": set aside after 5 failures within 60 s; the last: its process was killed by signal 11 (SIGSEGV)",
    );
    assert_eq!(project.status(&delayed), "new");
    assert!(worker.stop().0.success());
}

#[test]
fn a_plugins_process_is_shown_with_the_plugins_name() {
    let project = Project::sqlite(&["scripted", "documented_example"]);
    let worker = project.start(&["plugins.scripted.isolation = 'process'"]);
    assert_eq!(started_by(&worker), [["qtasks-host", "plugin-guest", "scripted"]]);
    assert!(worker.stop().0.success());
}

#[test]
fn a_task_is_added_run_answered_by_a_plugin_and_read_with_all_that_was_decided() {
    let project = Project::sqlite(&["scripted", "documented_example"]);
    let uuid = project.add(&["raise", "--kwargs", r#"{"message": "sea is frozen", "n": 123456789012345678901234567890}"#]);
    assert_eq!(project.status(&uuid), "new");
    let worker = project.start(&[]);
    let record = project.wait(&uuid);
    let wanted = json!({"task_name": "raise", "status": "success", "returning": 123, "attempt": 1, "priority": 0});
    for (key, value) in wanted.as_object().expect("an object") {
        assert_eq!(&record[key], value, "{key}: {record}");
    }
    assert_eq!(record["original_error"]["message"], "sea is frozen");
    assert_eq!(record["resolved_by"], json!({"plugin": "documented-example", "version": "0.1.0", "outcome": "result"}));
    let asked: Vec<&Value> = record["history"][0]["decisions"].as_array().expect("a list").iter().collect();
    assert_eq!(asked.len(), 2, "{record}");
    // The payload is kept as it was, to the digit.
    let text = project.client(&["task", "get", &uuid, "--json"]).end().stdout;
    assert_says(&text, &["123456789012345678901234567890"]);

    let decisions = project.client(&["decisions", "list", "--json"]).end().expect_code(0).results();
    assert_eq!(decisions.len(), 2);
    let of_plugin = decisions.iter().find(|decision| decision["plugin"] == "documented-example").expect("its decision");
    assert_eq!((&of_plugin["uuid"], &of_plugin["outcome"], &of_plugin["attempt"]), (&json!(uuid), &json!("result"), &json!(1)));
    assert_eq!((of_plugin["digest"].as_str().map(str::len), &of_plugin["error"]["message"]), (Some(64), &json!("sea is frozen")));
    assert!(of_plugin["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert_eq!(project.client(&["decisions", "list", "--json", "--limit", "1"]).end().expect_code(0).results().len(), 1);
    let of_another = project.client(&["decisions", "list", "--task", "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5"]).end();
    assert_eq!(of_another.expect_code(0).stdout, "no decisions\n");
    let shown = project.client(&["task", "get", &uuid]).end().expect_code(0).stdout;
    assert_says(&shown, &["resolved by", "documented-example 0.1.0 (result)", "raised", "sea is frozen"]);
    assert!(worker.stop().0.success());
}

#[test]
fn a_worker_that_nobody_can_give_a_task_to_says_so() {
    let project = Project::sqlite(&[]);
    let (status, said) = project.start(&["broker = 'memory:'"]).stop();
    assert!(status.success(), "{status}");
    assert_says(
        &said,
        &["tasks wait in this worker's own memory, where nobody can add one: name a file or a server with --broker"],
    );
    assert_says(&said, &["this worker knows no task: name a directory with --plugins, or declare commands under [tasks]"]);
}

#[test]
fn sigterm_finishes_what_runs_and_leaves_the_rest_waiting() {
    let project = Project::sqlite(&[]);
    let go_on = project.place.fifo("go_on");
    let (first, second) = (project.add(&["waits"]), project.add(&["waits"]));
    let mut worker = project.start(&[WAITS, "concurrency = 1"]);
    // Opening the FIFO for writing waits until the command reads.
    let writer = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    worker.signal(Signal::TERM);
    worker.read_until("finishing what runs");
    std::io::Write::write_all(&mut &writer, b"go\n").expect("the command reads");
    let (status, _) = worker.end();
    assert!(status.success(), "{status}");
    assert_eq!((project.status(&first), project.status(&second)), ("success".into(), "new".into()));
    assert_eq!(project.json(&["task", "get", &first], 0)["returning"], 7);
}

#[test]
fn a_task_that_kills_its_workers_is_set_aside_and_its_neighbours_are_not() {
    let server = RedisServer::start();
    let redis = server.iter().map(|server| Project::at(Place::new(), server.url(), &[]));
    for project in redis.chain([Project::sqlite(&[])]) {
        // The neighbours run for longer than their worker would live beside it.
        let settings = [
            r#"tasks.kills.command = ["sh", "-c", "kill -9 $PPID"]"#,
            r#"tasks.neighbour.command = ["sh", "-c", "sleep 0.3; echo 7"]"#,
            "concurrency = 4",
            "lease = 0.3",
        ];
        let killer = project.add(&["kills"]);
        let neighbours: Vec<String> = (0..5).map(|_| project.add(&["neighbour"])).collect();
        for _ in 1..=3 {
            let (status, said) = project.start(&settings).end();
            assert!(!status.success(), "{said}");
        }
        let mut worker = project.start(&settings);
        let told = worker.read_until("tasks set aside, since 3 workers were lost while they had them: 1: ");
        assert_says(&told, &[&killer]);
        let record = project.wait(&killer);
        assert_eq!((&record["status"], &record["losses"]), (&json!("error"), &json!(3)), "{}: {record}", project.url);
        assert_says(record["dead_letter"].as_str().expect("set aside"), &["3 workers were lost"]);
        for neighbour in neighbours {
            let record = project.wait(&neighbour);
            assert_eq!((&record["status"], &record["returning"]), (&json!("success"), &json!(7)), "{}: {record}", project.url);
            assert!(record["losses"].as_u64().unwrap_or_default() <= 1, "{record}");
        }
        assert!(worker.stop().0.success());
    }
}

/// Stops a worker's process, and not while it writes to a file: nobody else could.
fn stop_between_writes(project: &Project, worker: &Worker) {
    loop {
        worker.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", worker.pid().as_raw_nonzero());
        while !std::fs::read_to_string(&stat)
            .expect("our own child")
            .rsplit_once(") ")
            .is_some_and(|(_, state)| state.starts_with('T'))
        {
            std::thread::yield_now();
        }
        let Some(path) = project.url.strip_prefix("sqlite:") else { return };
        let file = rusqlite::Connection::open(path).expect("the worker made it");
        file.busy_timeout(Duration::ZERO).expect("a setting");
        if file.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok() {
            return;
        }
        worker.signal(Signal::CONT);
    }
}

#[test]
fn a_worker_that_slept_records_nothing_of_what_was_taken_over_meanwhile() {
    let server = RedisServer::start();
    let redis = server.iter().map(|server| Project::at(Place::new(), server.url(), &[]));
    for project in redis.chain([Project::sqlite(&[])]) {
        let go_on = project.place.fifo("go_on");
        let uuid = project.add(&["waits"]);
        let mut sleeper = project.start(&[WAITS, "lease = 0.3"]);
        let mut command = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
        stop_between_writes(&project, &sleeper);
        let mut next = project.start(&[r#"tasks.waits.command = ["echo", "8"]"#, "lease = 0.3"]);
        assert_says(&next.read_until("tasks of lost workers that wait again: 1: "), &[&uuid]);
        assert_eq!(project.wait(&uuid)["returning"], 8, "{}", project.url);
        sleeper.signal(Signal::CONT);
        std::io::Write::write_all(&mut command, b"go\n").expect("the command reads");
        sleeper.read_until("the lease was lost before the task ended");
        assert_eq!(project.json(&["task", "get", &uuid], 0)["returning"], 8, "{}", project.url);
        assert!(sleeper.stop().0.success() && next.stop().0.success());
    }
}

#[test]
fn a_request_to_cancel_outlives_the_worker_that_it_was_made_to() {
    let server = RedisServer::start();
    let redis = server.iter().map(|server| Project::at(Place::new(), server.url(), &[]));
    for project in redis.chain([Project::sqlite(&[])]) {
        let go_on = project.place.fifo("go_on");
        let uuid = project.add(&["waits"]);
        let worker = project.start(&[WAITS]);
        let command = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
        worker.signal(Signal::KILL);
        worker.end();
        // Nobody knows yet that it is gone.
        let asked = project.client(&["task", "cancel", &uuid, "--reason", "no longer wanted"]).end().expect_code(0);
        assert_says(&asked.stdout, &["asked"]);
        drop(command);
        let next = project.start(&[WAITS, "lease = 0.3"]);
        let record = project.wait(&uuid);
        assert_eq!((&record["status"], &record["cancel_reason"]), (&json!("cancel"), &json!("no longer wanted")), "{record}");
        assert!(next.stop().0.success());
    }
}

#[test]
fn what_outlives_the_drain_deadline_is_given_back_and_runs_again() {
    let project = Project::sqlite(&[]);
    let go_on = project.place.fifo("go_on");
    let uuid = project.add(&["waits"]);
    let worker = project.start(&[WAITS, "drain_deadline = 0.05"]);
    drop(std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads"));
    let (status, said) = worker.stop();
    assert!(status.success(), "{status}");
    // The command saw the end of the file, or was killed; either way its task is whole.
    let state = project.status(&uuid);
    if state == "new" {
        assert_says(&said, &["given back"]);
        let next = project.start(&[WAITS]);
        let_go(&go_on);
        assert_eq!(project.wait(&uuid)["returning"], 7);
        assert!(next.stop().0.success());
    } else {
        assert_eq!(state, "success");
    }
}

/// What a worker says of a task that it had when its server went away, which `let_end` lets end or not.
fn loses_a_task(let_end: bool, told: &[&str]) {
    let Some(mut server) = RedisServer::durable() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let go_on = project.place.fifo("go_on");
    let uuid = project.add(&["waits"]);
    let mut worker = project.start(&[WAITS, "drain_deadline = 0.05"]);
    let mut command = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    server.kill();
    if let_end {
        std::io::Write::write_all(&mut command, b"go\n").expect("the command reads");
        worker.read_until("results that cannot be recorded now: 1");
    }
    let (status, said) = worker.stop();
    assert_eq!(status.code(), Some(70), "{said}");
    assert_says(&said, told);
    assert_says(&said, &["they come back when the lease is over"]);
    drop(command);
    server.restart();
    let next = project.start(&[r#"tasks.waits.command = ["echo", "8"]"#, "lease = 0.3"]);
    assert_eq!(project.wait(&uuid)["returning"], 8);
    assert!(next.stop().0.success());
}

#[test]
fn a_worker_that_cannot_record_exits_with_70_and_its_task_runs_again() {
    loses_a_task(true, &["ended and could not be recorded: 1; that could not be given back: 0"]);
}

#[test]
fn a_worker_that_cannot_give_back_exits_with_70_and_its_task_runs_again() {
    let told = ["and are to be given back: 1", "ended and could not be recorded: 0; that could not be given back: 1"];
    loses_a_task(false, &told);
}

#[test]
fn a_server_that_hangs_holds_up_the_end_of_a_worker_for_a_bounded_time() {
    for let_end in [true, false] {
        let Some(server) = RedisServer::start() else { return };
        let project = Project::at(Place::new(), server.url(), &[]);
        let go_on = project.place.fifo("go_on");
        let uuid = project.add(&["waits"]);
        let drain = if let_end { "drain_deadline = 30" } else { "drain_deadline = 0.05" };
        let mut worker = project.start(&[WAITS, drain]);
        let mut command = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
        server.hang();
        let begun = Instant::now();
        worker.signal(Signal::TERM);
        if let_end {
            worker.read_until("finishing what runs");
            std::io::Write::write_all(&mut command, b"go\n").expect("the command reads");
        }
        let (status, said) = worker.end();
        // One wait for an answer alone may take ten seconds, and a drain 30.
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}: {said}", begun.elapsed());
        assert_eq!(status.code(), Some(70), "{said}");
        let told =
            if let_end { "could not be recorded: 1; that could not be given back: 0" } else { "could not be given back: 1" };
        assert_says(
            &said,
            &["the broker does not answer", told, "they come back when the lease is over"][usize::from(!let_end)..],
        );
        drop(command);
        server.go_on();
        let next = project.start(&[r#"tasks.waits.command = ["echo", "8"]"#, "lease = 0.3"]);
        let returned = project.wait(&uuid)["returning"].clone();
        // What was sent may still be done.
        assert!(returned == 8 || (let_end && returned == 7), "{returned}");
        assert!(next.stop().0.success());
    }
}

#[test]
fn a_worker_says_when_its_server_is_back() {
    let Some(mut server) = RedisServer::durable() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let mut worker = project.start(&[r#"tasks.a.command = ["echo", "7"]"#]);
    // Who has run a task is there.
    project.wait(&project.add(&["a"]));
    server.kill();
    worker.read_until("the worker's beat could not be written, trying again");
    server.restart();
    worker.read_until("the worker's beat is written again");
    let uuid = project.add(&["a"]);
    assert_eq!(project.wait(&uuid)["returning"], 7);
    assert!(worker.stop().0.success());
}

#[test]
fn a_worker_says_once_that_its_file_takes_no_beat_and_when_it_does_again() {
    let project = Project::sqlite(&[]);
    let mut worker = project.start(&[r#"tasks.a.command = ["echo", "7"]"#]);
    project.wait(&project.add(&["a"]));
    let file = rusqlite::Connection::open(project.place.path("tasks.db")).expect("the worker's file");
    let full = "CREATE TRIGGER full BEFORE UPDATE ON worker BEGIN SELECT RAISE(FAIL, 'no room'); END";
    file.execute_batch(full).expect("nobody keeps it locked");
    assert_says(&worker.read_until("the worker's beat could not be written, trying again"), &["no room"]);
    // By the time that it may run, two more beats were due.
    project.wait(&project.add(&["a", "--delay", "2"]));
    file.execute_batch("DROP TRIGGER full").expect("nobody keeps it locked");
    worker.read_until("the worker's beat is written again");
    let (status, said) = worker.stop();
    assert!(status.success());
    assert_eq!(said.matches("beat could not be written").count(), 1, "{said}");
}

#[test]
fn a_second_signal_stops_at_once_and_the_task_comes_back() {
    let project = Project::sqlite(&[]);
    let go_on = project.place.fifo("go_on");
    let uuid = project.add(&["waits"]);
    let mut worker = project.start(&[WAITS]);
    let writer = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    worker.signal(Signal::INT);
    worker.read_until("another signal stops at once");
    worker.signal(Signal::TERM);
    let (status, said) = worker.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert_says(&said, &["SIGTERM again: stopping at once", "tasks given back: 1"]);
    assert_eq!(project.status(&uuid), "new");
    drop(writer);
}

#[test]
fn what_a_command_of_a_killed_worker_runs_ends_with_it() {
    let project = Project::sqlite(&[]);
    let started = project.place.fifo("started");
    // By the time that it has its input, it is guarded.
    let holds = r#"tasks.holds.command = ["sh", "-c", "read input; sleep 1000 & echo $$ $! > started; wait"]"#;
    let worker = project.start(&[holds]);
    project.add(&["holds"]);
    let told = std::fs::read_to_string(started).expect("the command writes");
    let processes: Vec<&str> = told.split_whitespace().collect();
    assert_eq!(processes.len(), 2, "{told}");
    worker.signal(Signal::KILL);
    // Whoever inherits them may not have waited for them yet.
    let runs = |pid: &&&str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, state)| !state.trim_start().starts_with(['Z', 'X']))
    };
    let begun = Instant::now();
    while processes.iter().any(|pid| runs(&pid)) {
        assert!(begun.elapsed() < PATIENCE, "they run on: {told}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_running_task_is_cancelled_through_its_worker() {
    let project = Project::sqlite(&[]);
    let go_on = project.place.fifo("go_on");
    let (runs, waits) = (project.add(&["waits"]), project.add(&["waits", "--delay", "3600"]));
    let worker = project.start(&[WAITS]);
    let writer = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    assert_eq!(project.json(&["task", "cancel", &runs, "--reason", "no longer wanted"], 0)["cancel"], "asked");
    let record = project.wait(&runs);
    assert_eq!((&record["status"], &record["cancel_reason"]), (&json!("cancel"), &json!("no longer wanted")));
    assert_eq!(project.json(&["task", "cancel", &waits], 0)["cancel"], "done");
    assert_eq!(project.json(&["task", "cancel", &waits], 6)["cancel"], "ended");
    project.client(&["task", "cancel", "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5"]).end().expect_code(5);
    drop(writer);
    assert!(worker.stop().0.success());
}

#[test]
fn a_plugin_is_told_that_the_task_was_cancelled_about_which_it_was_asked() {
    for isolation in ["in-process", "process"] {
        let project = Project::sqlite(&["scripted", "hangs_in_handler"]);
        let isolation = format!("plugins.hangs-in-handler.isolation = {isolation:?}");
        let mut worker = project.start(&[&isolation, "plugins.hangs-in-handler.deadline = 600"]);
        let uuid = project.add(&["raise"]);
        worker.read_until("waiting");
        project.client(&["task", "cancel", &uuid]).end().expect_code(0);
        worker.read_until("cancelled");
        assert_eq!(project.wait(&uuid)["status"], "cancel");
        assert!(worker.stop().0.success());
    }
}

#[test]
fn a_task_that_a_worker_holds_and_has_not_begun_is_cancelled_at_once() {
    let project = Project::sqlite(&[]);
    let go_on = project.place.fifo("go_on");
    let (runs, held) = (project.add(&["waits"]), project.add(&["waits"]));
    // Of those that were lost with a worker, one at a time runs.
    let file = rusqlite::Connection::open(project.place.path("tasks.db")).expect("the client made it");
    file.execute("UPDATE task SET losses = 1", []).expect("SQL");
    let worker = project.start(&[WAITS, "concurrency = 4"]);
    let writer = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    assert_eq!(project.json(&["task", "cancel", &held], 0)["cancel"], "asked", "both were taken at once");
    assert_eq!(project.wait(&held)["status"], "cancel");
    assert_eq!(project.status(&runs), "process");
    std::io::Write::write_all(&mut &writer, b"go\n").expect("the command reads");
    assert_eq!(project.wait(&runs)["returning"], 7);
    assert!(worker.stop().0.success());
}

#[test]
fn every_attempt_keeps_its_error_and_an_ended_task_can_run_again() {
    let project = Project::sqlite(&[]);
    let command = r#"tasks.flaky.command = ["sh", "-c", "echo x >> tries; n=$(wc -l < tries); [ $n -ge 3 ] && echo $n || { echo try $n >&2; exit $n; }"]"#;
    let worker = project.start(&[command, "tasks.flaky.attempts = 2", "tasks.flaky.retry_delay = 0.01"]);
    let uuid = project.add(&["flaky"]);
    let record = project.wait(&uuid);
    assert_eq!((&record["status"], &record["attempt"]), (&json!("error"), &json!(2)));
    let exits = |record: &Value| -> Vec<Value> {
        let history = record["history"].as_array().expect("a list").iter();
        history.map(|attempt| attempt["error"]["kwargs"]["exit_status"].clone()).collect()
    };
    assert_eq!(exits(&record), [1, 2]);
    assert_eq!(project.json(&["task", "retry", &uuid], 0)["requeue"], "done");
    let record = project.wait(&uuid);
    assert_eq!((&record["status"], &record["returning"], &record["attempt"]), (&json!("success"), &json!(3), &json!(1)));
    assert_eq!(exits(&record), [1, 2], "what happened is not forgotten");
    assert!(worker.stop().0.success());
    project.client(&["task", "retry", "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5"]).end().expect_code(5);
}

#[test]
fn a_worker_removes_results_and_decisions_when_they_are_old() {
    let project = Project::sqlite(&["documented_example", "scripted"]);
    let worker = project.start(&[]);
    let uuid = project.add(&["raise"]);
    assert_eq!(project.wait(&uuid)["returning"], 123);
    assert!(worker.stop().0.success());
    let worker = project.start(&["keep_results = 0.001", "keep_decisions = 0.001"]);
    let begun = Instant::now();
    let is_gone = |words: &[&str], code, stdout| {
        let ended = project.client(words).end();
        (ended.code, &*ended.stdout) == (Some(code), stdout)
    };
    while !(is_gone(&["task", "get", &uuid], 5, "") && is_gone(&["decisions", "list"], 0, "no decisions\n")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "they are kept");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(worker.stop().0.success());
}

#[test]
fn two_workers_share_the_tasks_and_each_runs_once() {
    let project = Project::sqlite(&["counts_runs"]);
    let file =
        format!("plugins.counts-runs.config.file = {}", toml::Value::from(project.place.path("runs").to_str().expect("plain")));
    let lines: String = (0..500).map(|number| format!("{{\"task\": \"count\", \"args\": [{number}]}}\n")).collect();
    let workers = [project.start(&[&file]), project.start(&[&file])];
    let added = project.client(&["task", "add", "--from", "-"]).with_input(lines).expect_code(0);
    let uuids: Vec<&str> = added.stdout.lines().collect();
    for uuid in &uuids {
        assert_eq!(project.wait(uuid)["status"], "success");
    }
    for worker in workers {
        assert!(worker.stop().0.success());
    }
    let runs = std::fs::read_to_string(project.place.path("runs")).expect("the plugin wrote");
    let mut ran: Vec<&str> = runs.lines().collect();
    ran.sort_unstable();
    let mut added = uuids.clone();
    added.sort_unstable();
    assert_eq!(ran, added);
}

#[test]
fn what_a_draining_worker_took_ahead_another_one_runs_meanwhile() {
    let project = Project::sqlite(&[]);
    let fifo = project.place.fifo("go_on");
    let settings = [
        r#"tasks.quick.command = ["echo", "1"]"#,
        r#"tasks.waits.command = ["sh", "-c", "echo x > begun; read line < go_on; echo 7"]"#,
        "concurrency = 1",
    ];
    let add = |name: &str| project.add(&[name]);
    // Short tasks first, so that the worker takes ahead.
    let mut uuids: Vec<String> = (0..10).map(|_| add("quick")).collect();
    let waits = add("waits");
    uuids.extend((0..5).map(|_| add("quick")));
    let mut draining = project.start(&settings);
    while !project.place.path("begun").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    draining.signal(Signal::TERM);
    draining.read_until("SIGTERM");
    let other = project.start(&settings);
    for uuid in &uuids {
        assert_eq!(project.wait(uuid)["status"], "success");
    }
    assert_eq!(project.status(&waits), "process", "the first worker still drains");
    let_go(&fifo);
    assert_eq!(project.wait(&waits)["returning"], 7);
    assert!(draining.end().0.success());
    assert!(other.stop().0.success());
}
