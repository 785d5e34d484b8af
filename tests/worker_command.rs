//! `qtasks-host worker` and its clients: `task`, `decisions`, `stats`, `ping`, `flush-all`.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::redis::RedisServer;
use crate::support::worker::{Project, Worker, let_go};
use crate::support::{Host, Place, assert_says};

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A command that waits until the test lets it go.
const WAITS: &str = r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo 7"]"#;

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
    let of_another = project.client(&["decisions", "list", "--task", "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5"]).end();
    assert_eq!(of_another.expect_code(0).stdout, "no decisions\n");
    let shown = project.client(&["task", "get", &uuid]).end().expect_code(0).stdout;
    assert_says(&shown, &["resolved by", "documented-example 0.1.0 (result)", "raised", "sea is frozen"]);
    assert!(worker.stop().0.success());
}

#[test]
fn waiting_for_a_task_tells_its_end_by_the_exit_code() {
    let project = Project::sqlite(&["scripted"]);
    let worker = project.start(&[r#"tasks.fails.command = ["sh", "-c", "echo no luck >&2; exit 3"]"#]);
    let add = |words: &[&str]| project.client(&[&["task", "add", "--wait", "--json"], words].concat()).end();
    let record = add(&["echo", "--args", "[1]"]).expect_code(0).json();
    assert_eq!(record["returning"], json!({"args": [1], "kwargs": {}}));
    let record = add(&["fails"]).expect_code(1).json();
    assert_eq!((&record["status"], &record["error"]["kwargs"]["exit_status"]), (&json!("error"), &json!(3)));
    let record = add(&["ecko"]).expect_code(1).json();
    assert_says(
        record["error"]["message"].as_str().expect("a text"),
        &["nobody provides a task \"ecko\"", "did you mean `echo`?"],
    );
    let record = add(&["cancel_me"]).expect_code(0).json();
    assert_eq!((&record["status"], &record["cancel_reason"]), (&json!("cancel"), &json!("no longer wanted")));
    drop(worker);
    let ended = add(&["echo", "--timeout", "0"]).expect_code(6);
    assert_says(&ended.stderr, &["has not ended in time", "qtasks-host ping"]);
    assert_eq!(ended.json()["status"], "new");
}

#[test]
fn whoever_waits_for_a_task_waits_on_while_the_server_is_away() {
    let Some(mut server) = RedisServer::durable() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let go_on = project.place.fifo("go_on");
    let worker = project.start(&[WAITS]);
    let mut monitor = server.monitor();
    // Whoever listens for ends of tasks waits.
    let listens = "\"SUBSCRIBE\" \"qtasks-host:QueueTasks:changed\"";
    let mut adds = Worker::begin(project.client(&["task", "add", "waits", "--wait"]));
    let added = adds.read_until("the task was added: ");
    monitor.read_until(listens);
    let uuid = added.split_whitespace().next_back().expect("its uuid");
    let writer = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    let mut gets = Worker::begin(project.client(&["task", "get", uuid, "--wait"]));
    monitor.read_until(listens);
    server.kill();
    for client in [&mut adds, &mut gets] {
        assert_says(&client.read_until("trying again"), &["cannot be reached"]);
    }
    server.restart();
    std::io::Write::write_all(&mut &writer, b"go\n").expect("the command reads");
    for client in [adds, gets] {
        let (status, said) = client.end();
        assert!(status.success(), "{said}");
        assert_eq!(said.matches("trying again").count(), 1, "{said}");
    }
    assert_eq!(project.json(&["task", "get", uuid], 0)["returning"], 7);
    assert!(worker.stop().0.success());
}

#[test]
fn a_server_that_stays_away_until_the_timeout_is_told_with_the_uuid() {
    let Some(mut server) = RedisServer::start() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let mut client = Worker::begin(project.client(&["task", "add", "waits", "--wait", "--timeout", "1"]));
    client.read_until("the task was added: ");
    server.kill();
    let (status, said) = client.end();
    assert_eq!(status.code(), Some(70), "{said}");
    assert_says(&said, &["trying again", "qtasks-host: redis://127.0.0.1", "cannot be reached"]);
}

#[test]
fn a_client_adds_nothing_to_its_own_memory() {
    let place = Place::new();
    let ended = Host::new(&place).args(["task", "add", "echo", "--broker", "memory:"]).end().expect_code(2);
    assert_says(&ended.stderr, &["the memory of this command alone", "expected sqlite:PATH"]);
}

#[test]
fn a_client_that_only_looks_makes_no_file_of_tasks() {
    let project = Project::sqlite(&[]);
    let uuid = "3fa85f64-5717-4562-b3fc-2c963f66afa6";
    let looks: [&[&str]; 9] = [
        &["stats", "inspect", "counts"],
        &["task", "list"],
        &["task", "get", uuid],
        &["task", "cancel", uuid],
        &["task", "retry", uuid],
        &["task", "dead-letter", "list"],
        &["decisions", "list"],
        &["ping"],
        &["flush-all", "--yes"],
    ];
    let path = project.place.path("tasks.db");
    for words in looks {
        let ended = project.client(words).end().expect_code(2);
        assert_says(&ended.stderr, &["tasks.db: there is no such file", "`task add`"]);
        assert!(!path.exists(), "{words:?}");
    }
    project.add(&["any"]);
    assert!(path.exists());
    project.client(&["task", "list"]).end().expect_code(0);
}

#[test]
fn what_tasks_say_is_nobody_elses_to_read_whoever_makes_the_state_directory() {
    let place = Place::new();
    // An umask that takes nothing away.
    Host::shell(&place, "umask 0; exec \"$0\" task add any").end().expect_code(0);
    let made = std::fs::metadata(place.path("xdg/qtasks-host")).expect("the state directory");
    assert_eq!(made.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_long_file_of_tasks_is_added_over_each_broker() {
    let server = RedisServer::start();
    let redis = server.iter().map(|server| Project::at(Place::new(), server.url(), &[]));
    for project in redis.chain([Project::sqlite(&[])]) {
        let file = project.place.write("tasks.jsonl", "{\"task\": \"echo\"}\n".repeat(1100));
        let file = file.to_str().expect("a plain path");
        let added = project.client(&["task", "add", "--from", file]).end().expect_code(0).stdout;
        assert_eq!(added.lines().count(), 1100, "{}", project.url);
        let waiting = project.client(&["task", "list", "--status", "new", "--limit", "2000", "--json"]).end().results();
        assert_eq!(waiting.len(), 1100, "{}", project.url);
    }
}

#[test]
fn long_lines_of_a_file_are_added_as_they_come_and_not_all_at_once() {
    let project = Project::sqlite(&[]);
    let mut client = project.client(&["task", "add", "--from", "-"]).spawn();
    let mut stdin = client.stdin.take().expect("a pipe");
    let long = format!("{{\"task\": \"echo\", \"args\": [\"{}\"]}}\n", "x".repeat(3 << 20));
    // Three are more than 8 MiB.
    std::io::Write::write_all(&mut stdin, long.repeat(3).as_bytes()).expect("the client reads");
    let begun = Instant::now();
    while project.json(&["stats", "inspect", "counts"], 0)["new"] != 3 {
        assert!(begun.elapsed() < PATIENCE, "they wait for more");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::io::Write::write_all(&mut stdin, long.as_bytes()).expect("the client reads");
    drop(stdin);
    let ended = client.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stdout).lines().count(), 4);
}

#[test]
fn tasks_that_may_have_been_added_are_named_when_no_answer_comes() {
    let Some(server) = RedisServer::start() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let uuids: Vec<String> = (1..=7).map(|number| format!("0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a{number}")).collect();
    let lines: String = uuids.iter().map(|uuid| format!("{{\"task\": \"echo\", \"uuid\": \"{uuid}\"}}\n")).collect();
    let file = project.place.write("tasks.jsonl", lines);
    let adds: [&[&str]; 2] = [&["--from", file.to_str().expect("a plain path")], &["echo", "--uuid", &uuids[0]]];
    // It takes what is to be written, and does not answer.
    server.command::<()>(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    for (add, more) in adds.into_iter().zip([" and 2 more", "a1\n"]) {
        let client = Worker::begin(project.client(&[&["task", "add"], add].concat()));
        let begun = Instant::now();
        while !server.command::<String>(&["CLIENT", "LIST"]).contains("cmd=evalsha") {
            assert!(begun.elapsed() < PATIENCE, "the client sends its tasks");
            std::thread::sleep(Duration::from_millis(5));
        }
        server.command::<u64>(&["CLIENT", "KILL", "TYPE", "normal"]);
        let (status, said) = client.end();
        assert_eq!(status.code(), Some(70), "{said}");
        assert_says(&said, &["may have been added all the same", &uuids[0], more, "cannot be reached"]);
        assert!(!said.contains(&uuids[5]), "{said}");
    }
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
        let worker = project.start(&settings);
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
        let next = project.start(&[r#"tasks.waits.command = ["echo", "8"]"#, "lease = 0.3"]);
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

#[test]
fn a_worker_that_can_neither_record_nor_give_back_exits_with_70_and_its_tasks_run_again() {
    let Some(mut server) = RedisServer::durable() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let (ends, runs) = (project.place.fifo("ends"), project.place.fifo("runs"));
    let uuids = ["ends", "runs"].map(|name| project.add(&[name]));
    let mut worker = project.start(&[
        r#"tasks.ends.command = ["sh", "-c", "read line < ends"]"#,
        r#"tasks.runs.command = ["sh", "-c", "read line < runs"]"#,
        "concurrency = 2",
        "drain_deadline = 0.05",
    ]);
    let open = |fifo| std::fs::OpenOptions::new().write(true).open(fifo).expect("the command reads");
    let (mut ends, runs) = (open(&ends), open(&runs));
    server.kill();
    std::io::Write::write_all(&mut ends, b"go\n").expect("the command reads");
    worker.read_until("results that cannot be recorded now: 1");
    let (status, said) = worker.stop();
    assert_eq!(status.code(), Some(70), "{said}");
    assert_says(
        &said,
        &[
            "and are to be given back: 1",
            "ended and could not be recorded: 1; that could not be given back: 1; they come back when the lease is over",
        ],
    );
    drop(runs);
    server.restart();
    let next = project.start(&[r#"tasks.ends.command = ["echo", "8"]"#, r#"tasks.runs.command = ["echo", "8"]"#, "lease = 0.3"]);
    for uuid in &uuids {
        assert_eq!(project.wait(uuid)["returning"], 8);
    }
    assert!(next.stop().0.success());
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
fn what_a_plugin_set_aside_is_listed_and_requeued() {
    let project = Project::sqlite(&["scripted"]);
    let set_aside = "plugins.scripted.config.directive = { directive = 'dead_letter', reason = 'look at me' }";
    let worker = project.start(&[set_aside]);
    let (dead, good) = (project.add(&["raise"]), project.add(&["echo"]));
    assert_eq!(project.wait(&dead)["dead_letter"], "look at me");
    project.wait(&good);
    let list = project.client(&["task", "dead-letter", "list", "--json"]).end().expect_code(0).results();
    assert_eq!(list.iter().map(|record| &record["uuid"]).collect::<Vec<_>>(), [&json!(dead)]);
    assert_says(&project.client(&["task", "dead-letter", "list"]).end().stdout, &[&dead, "look at me"]);
    let refused = project.client(&["task", "dead-letter", "requeue", &good]).end().expect_code(6);
    assert_says(&refused.stdout, &[&format!("{good} was not set aside; `task retry` runs any ended task again")]);
    assert_eq!(project.json(&["task", "dead-letter", "requeue", &good], 6)["requeue"], "not_set_aside");
    assert_eq!(project.status(&good), "success");
    assert!(worker.stop().0.success());
    let requeued = project.client(&["task", "dead-letter", "requeue", "--all"]).end().expect_code(0);
    assert_says(&requeued.stdout, &[&format!("{dead} waits again")]);
    for words in [&["task", "dead-letter", "list"][..], &["task", "dead-letter", "requeue", "--all"]] {
        assert_eq!(project.client(words).end().expect_code(0).stdout, "no tasks\n");
    }
    let worker = project.start(&["plugins.scripted.config.answers.task_executor_run_task_trigger_error = '5'"]);
    assert_eq!(project.wait(&dead)["returning"], 5);
    assert!(worker.stop().0.success());
}

#[test]
fn lists_are_filtered_and_files_of_tasks_are_added() {
    let project = Project::sqlite(&[]);
    let lines = "{\"task\": \"a\", \"priority\": 3}\n\nnonsense\n{\"task\": \"b\", \"args\": [1]}\n";
    let added = project.client(&["task", "add", "--from", "-"]).with_input(lines).expect_code(3);
    assert_eq!(added.stdout.lines().count(), 2);
    assert_says(&added.stderr, &["standard input:3: not a task"]);
    project.add(&["a", "--delay", "3600", "--priority", "-2", "--attempts", "3", "--max-time", "1.5"]);
    let names = |words: &[&str]| -> Vec<String> {
        let list = project.client(&[&["task", "list", "--json"], words].concat()).end().expect_code(0).results();
        list.iter().map(|record| record["task_name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&[]), ["a", "b", "a"]);
    assert_eq!(names(&["--task", "b"]), ["b"]);
    assert_eq!(names(&["--limit", "1"]), ["a"]);
    assert!(names(&["--status", "success"]).is_empty());
    let latest = project.client(&["task", "list", "--json", "--limit", "1"]).end().result();
    assert_eq!((&latest["priority"], &latest["attempts"], &latest["max_time"]), (&json!(-2), &json!(3), &json!(1.5)));
    assert!(latest["due"].as_f64() > latest["created_at"].as_f64());
    let counts = project.client(&["stats", "inspect", "counts", "json"]).end().expect_code(0).json();
    assert_eq!((&counts["new"], &counts["delayed"]), (&json!(3), &json!(1)));
}

#[test]
fn a_file_of_tasks_some_of_which_are_there_already_is_added_to_its_end() {
    let server = RedisServer::start();
    let redis = server.iter().map(|server| Project::at(Place::new(), server.url(), &[]));
    for project in redis.chain([Project::sqlite(&[])]) {
        let uuid = |digit: &str| format!("3fa85f64-5717-4562-b3fc-{}", digit.repeat(12));
        project.add(&["a", "--uuid", &uuid("2")]);
        let line = |digit: &str| format!("{{\"task\": \"a\", \"uuid\": \"{}\"}}\n", uuid(digit));
        let lines = [line("1"), line("2"), line("3"), line("3")].concat();
        let add = || project.client(&["task", "add", "--from", "-"]).with_input(&lines).expect_code(3);
        let added = add();
        assert_eq!(added.stdout, format!("{}\n{}\n", uuid("1"), uuid("3")));
        let refused = |number: u8, digit: &str| format!("standard input:{number}: task {} is there already", uuid(digit));
        assert_says(&added.stderr, &[&refused(2, "2"), &refused(4, "3")]);
        let again = add();
        assert_eq!(again.stdout, "");
        assert_says(&again.stderr, &[&refused(1, "1"), &refused(2, "2"), &refused(3, "3"), &refused(4, "3")]);
    }
}

#[test]
fn stats_tell_what_a_worker_would_be() {
    let project = Project::sqlite(&["documented_example", "scripted", "no_entry_point"]);
    let inspect = |what: &str| {
        let host = project.client(&["stats", "inspect", what, "--json"]).arg("--plugins").arg(project.place.plugins());
        host.arg("--state-dir").arg(project.place.state()).set("tasks.echo.attempts = 4").end().expect_code(0).json()
    };
    let app = inspect("app");
    assert_eq!((&app["project"], &app["broker"]["url"]), (&json!("QueueTasks"), &json!(project.url)));
    let states: Vec<(&Value, &Value)> =
        app["plugins"].as_array().expect("a list").iter().map(|plugin| (&plugin["plugin"], &plugin["state"])).collect();
    assert!(states.contains(&(&json!("documented-example"), &json!("running"))), "{app}");
    assert!(states.iter().any(|(_, state)| **state == "refused"), "{app}");
    let tasks = inspect("tasks");
    let echo = tasks.as_array().expect("a list").iter().find(|task| task["name"] == "echo").expect("a task of the plugin");
    assert_eq!((&echo["provided_by"], &echo["attempts"]), (&json!("scripted"), &json!(4)));
}

#[test]
fn stats_end_though_a_plugin_hangs() {
    let project = Project::sqlite(&["hangs_in_start"]);
    let host = project.client(&["stats", "inspect", "app"]).arg("--plugins").arg(project.place.plugins());
    let ended = host.arg("--state-dir").arg(project.place.state()).set("plugins.hangs-in-start.start_deadline = 0.2").end();
    assert_says(&ended.expect_code(2).stderr, &["plugin hangs-in-start did not start within 0.2 s"]);
}

#[test]
fn stats_name_a_plugin_that_ends_them() {
    let project = Project::sqlite(&["misbehaves_in_handler"]);
    let host = project.client(&["stats", "inspect", "app"]).arg("--plugins").arg(project.place.plugins());
    let host = host.arg("--state-dir").arg(project.place.state());
    let host = host.set("plugins.misbehaves-in-handler.config.how=answer");
    let ended = host.set("plugins.misbehaves-in-handler.config.how_at_end=segfault").end();
    assert_says(&ended.stderr, &["fatal signal 11 inside plugin misbehaves-in-handler"]);
}

#[test]
fn what_a_task_says_is_on_one_line_and_obeyed_by_no_terminal() {
    let project = Project::sqlite(&[]);
    let uuid = project.add(&["any", "--args", "[\"\u{9b}31m\",\n1]"]);
    let ended = project.client(&["task", "get", &uuid]).end().expect_code(0);
    assert_says(&ended.stdout, &["\nargs      [\"\\u{9b}31m\", 1]\nkwargs "]);
}

#[test]
fn ping_asks_for_a_worker_of_this_project() {
    let project = Project::sqlite(&[]);
    project.add(&["a"]);
    assert_eq!(project.json(&["ping"], 6)["running"], false);
    let worker = project.start(&[r#"tasks.a.command = ["true"]"#]);
    // Who has run a task is there.
    project.wait(&project.add(&["a"]));
    assert_eq!(project.json(&["ping"], 0)["running"], true);
    assert!(worker.stop().0.success());
    let ended = project.client(&["ping"]).end().expect_code(6);
    assert_says(&ended.stdout, &["no worker of QueueTasks is at sqlite:"]);
}

#[test]
fn flush_all_asks_before_it_removes_everything() {
    let project = Project::sqlite(&[]);
    let uuid = project.add(&["a"]);
    let ended = project.client(&["flush-all"]).with_input("QueueTasks\n").expect_code(2);
    assert_says(&ended.stderr, &["removes every task, result and decision", "say --yes"]);
    assert_eq!(project.status(&uuid), "new");
    assert_eq!(project.json(&["flush-all", "--yes"], 0)["removed"], 1);
    let gone = project.client(&["task", "get", &uuid]).end().expect_code(5);
    assert_says(&gone.stderr, &[&uuid, "check --broker and --name"]);
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
fn a_broker_that_is_none_is_told_with_what_was_expected() {
    let place = Place::new();
    let ping = |url: &str| Host::new(&place).args(["ping", "--broker", url]).end();
    assert_says(&ping("tasks.db").expect_code(2).stderr, &["--broker", "\"tasks.db\" is no broker", "expected sqlite:PATH"]);
    let password = ping("rediss://me:geheim@localhost").expect_code(2).stderr;
    assert!(!password.contains("geheim"), "{password}");
    let missing = ["task", "add", "a", "--broker", "sqlite:no/such/directory/tasks.db"];
    let missing = Host::new(&place).args(missing).end().expect_code(70).stderr;
    assert_says(&missing, &["sqlite:no/such/directory/tasks.db: cannot be written", "unable to open database file"]);
    place.write("garbage.db", "this is no database at all, but it is long enough to be one, or so it may seem to a hasty reader");
    let damaged = ping("sqlite:garbage.db").expect_code(70).stderr;
    assert_says(&damaged, &["is damaged or something else than a task database", "file is not a database"]);
    let made = Host::new(&place).args(["task", "add", "a", "--broker", "sqlite:a.db", "--name", "one"]);
    made.end().expect_code(0);
    let other = Host::new(&place).args(["ping", "--broker", "sqlite:a.db", "--name", "two"]).end().expect_code(2).stderr;
    assert_says(&other, &["holds the tasks of project \"one\"", "and this is \"two\""]);
    let name = Host::new(&place).args(["ping", "--name", "a:b"]).end().expect_code(2).stderr;
    assert_says(&name, &["name is \"a:b\"", "no `:`"]);
}

#[test]
fn a_task_that_is_none_is_told_before_anything_is_added() {
    let project = Project::sqlite(&[]);
    for (words, said) in [
        (&["a:b"] as &[&str], "\"a:b\" is not a task name"),
        (&["a", "--args", "{}"], "args is {}; expected a JSON list"),
        (&["a", "--kwargs", "[}"], "--kwargs is \"[}\", which is no JSON"),
        (&["a", "--uuid", "0b6aecd7-8c0a-7b33-8a4c-0f3ba6a9a3a5"], "version 7; expected version 4"),
        (&["a", "--attempts", "0"], "expected at least 1"),
        (&["a", "--delay", "-1"], "--delay"),
    ] {
        let ended = project.client(&[&["task", "add"], words].concat()).end().expect_code(2);
        assert_says(&ended.stderr, &[said]);
    }
    let uuid = project.add(&["a"]);
    let twice = project.client(&["task", "add", "a", "--uuid", &uuid]).end().expect_code(2);
    assert_says(&twice.stderr, &[&uuid, "is there already; expected a new uuid"]);
}

#[test]
fn what_is_no_id_of_a_task_is_told_what_one_is() {
    let project = Project::sqlite(&[]);
    for words in [["task", "get", "nonsense"], ["task", "cancel", "nonsense"], ["task", "retry", "nonsense"]] {
        let ended = project.client(&words).end().expect_code(2);
        assert_says(&ended.stderr, &["nonsense", "the id of a task, a uuid as `task add` prints it"]);
    }
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
