//! The clients of a worker: `qtasks-host task`, `decisions`, `ping`, `flush-all`.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::redis::RedisServer;
use crate::support::worker::{Project, Worker};
use crate::support::{Host, Place, assert_says, skipped};

/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A command that waits until the test lets it go.
const WAITS: &str = r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo 7"]"#;

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
    assert_eq!(record["history"][0]["error"]["type"], "UnknownTask", "an attempt like any other");
    let record = add(&["cancel_me"]).expect_code(0).json();
    assert_eq!((&record["status"], &record["cancel_reason"]), (&json!("cancel"), &json!("no longer wanted")));
    drop(worker);
    let ended = add(&["echo", "--timeout", "0"]).expect_code(6);
    assert_says(&ended.stderr, &["has not ended in time", "qtasks-host ping"]);
    let record = ended.json();
    assert_eq!(record["status"], "new");
    let uuid = record["uuid"].as_str().expect("a uuid");
    let ended = project.client(&["task", "get", uuid, "--wait", "--timeout", "0", "--json"]).end().expect_code(6);
    assert_says(&ended.stderr, &["the task has not ended in time"]);
    assert_eq!(ended.json()["status"], "new");
}

#[test]
fn retries_that_lead_back_to_the_first_are_not_followed_for_ever() {
    let Some(server) = RedisServer::start() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let uuids = [project.add(&["a"]), project.add(&["a"])];
    for (uuid, child) in [(&uuids[0], &uuids[1]), (&uuids[1], &uuids[0])] {
        let key = format!("QueueTasks:{uuid}");
        server.command::<()>(&["HSET", &key, "status", "retry", "retry_child_uuid", child, "retry", "1"]);
    }
    assert_eq!(project.wait(&uuids[0])["status"], "retry");
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
fn whoever_begins_to_wait_while_the_server_is_away_waits_for_that_too() {
    let Some(mut server) = RedisServer::durable() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let uuid = project.add(&["a"]);
    server.kill();
    let get = |words: &[&str]| project.client(&[&["task", "get", &uuid], words].concat());
    assert_says(&get(&[]).end().expect_code(70).stderr, &["cannot be reached"]);
    assert_says(&get(&["--wait", "--timeout", "0.1"]).end().expect_code(70).stderr, &["trying again", "cannot be reached"]);
    let mut waits = Worker::begin(get(&["--wait"]));
    assert_says(&waits.read_until("trying again"), &["cannot be reached"]);
    server.restart();
    let worker = project.start(&[r#"tasks.a.command = ["echo", "7"]"#]);
    assert!(waits.end().0.success());
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
fn a_client_finds_the_file_of_tasks_in_the_state_directory_that_it_is_told_and_logs_as_it_is_told() {
    let place = Place::new();
    let client = |words: &[&str]| Host::new(&place).args(words).args(["--state-dir", "here"]).end().expect_code(0).stdout;
    let uuid = client(&["task", "add", "any"]);
    assert!(place.path("here/tasks.db").exists());
    assert_says(&client(&["task", "list"]), &[uuid.trim_end()]);
    let loud = Host::new(&place).args(["task", "list", "--state-dir", "here", "--log", "loud"]).end().expect_code(2);
    assert_says(&loud.stderr, &["--log: log is \"loud\"", "is no level"]);
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
fn tasks_that_were_added_and_could_not_be_printed_are_told() {
    let project = Project::sqlite(&[]);
    let add = |words: &str| {
        let script = format!("exec \"$0\" task add {words} --broker {} > /dev/full", project.url);
        Host::shell(&project.place, &script).end().expect_code(70).stderr
    };
    project.place.write("tasks.jsonl", "{\"task\": \"a\"}\n\n".repeat(700));
    let said = add("--from tasks.jsonl");
    let told = "tasks.jsonl:999: all tasks up to this line were added, the last 500 with no uuid printed; to add the rest, go on from line 1000";
    assert_says(&said, &["cannot print: No space left", told]);
    let listed = || project.client(&["task", "list", "--limit", "2000", "--json"]).end().expect_code(0).results();
    assert_eq!(listed().len(), 500, "it does not go on unseen");
    let said = add("one");
    assert_says(&said, &["cannot print: No space left", "the task was added: "]);
    let uuid = said.split_once("was added: ").expect("it is told").1.lines().next().expect("a uuid");
    assert!(listed().iter().any(|record| record["uuid"] == uuid), "{uuid}");
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
    assert_eq!(project.client(&["task", "dead-letter", "list", "--limit", "0"]).end().expect_code(0).stdout, "no tasks\n");
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
fn a_task_whose_plugin_is_not_loaded_is_set_aside_until_it_is() {
    let project = Project::sqlite(&["scripted"]);
    let library = project.place.plugins().join("libscripted.so");
    let mode = |mode| std::fs::set_permissions(&library, std::fs::Permissions::from_mode(mode)).expect("our own file");
    let uuid = project.add(&["echo", "--args", "[1]"]);
    mode(0o666);
    let worker = project.start(&[]);
    let record = project.wait(&uuid);
    assert_eq!(record["error"]["type"], "UnknownTask");
    let said = record["dead_letter"].as_str().expect("a reason");
    let path = library.display().to_string();
    assert_says(said, &["nobody provides a task \"echo\"; or it is a plugin's: ", &path, " was refused: ", "chmod o-w"]);
    assert!(worker.stop().0.success());
    mode(0o644);
    let worker = project.start(&["plugins.scripted.enabled = false"]);
    assert_eq!(project.json(&["task", "dead-letter", "requeue", &uuid], 0)["requeue"], "done");
    let record = project.wait(&uuid);
    assert_says(record["dead_letter"].as_str().expect("a reason"), &["\"echo\", since plugin scripted (", ") is disabled"]);
    assert!(worker.stop().0.success());
    let worker = project.start(&[]);
    project.client(&["task", "dead-letter", "requeue", "--all"]).end().expect_code(0);
    assert_eq!(project.wait(&uuid)["returning"]["args"], json!([1]));
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
    let delayed = project.client(&["task", "add", "--from", "-", "--delay", "3600"]);
    delayed.with_input("{\"task\": \"c\"}\n").expect_code(0);
    let counts = project.client(&["stats", "inspect", "counts", "json"]).end().expect_code(0).json();
    assert_eq!((&counts["new"], &counts["delayed"]), (&json!(4), &json!(2)));
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
fn what_a_task_says_is_on_one_line_and_obeyed_by_no_terminal() {
    let project = Project::sqlite(&[]);
    let uuid = project.add(&["any", "--args", "[\"\u{9b}31m\",\n1]"]);
    let ended = project.client(&["task", "get", &uuid]).end().expect_code(0);
    assert_says(&ended.stdout, &["\nargs      [\"\\u{9b}31m\", 1]\nkwargs "]);
}

#[test]
fn all_that_is_known_of_a_task_is_shown() {
    let Some(server) = RedisServer::start() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    let worker = project.start(&[r#"tasks.fails.command = ["sh", "-c", "exit 3"]"#, "tasks.fails.attempts = 2"]);
    let first = project.add(&["fails"]);
    let last = project.wait(&first)["uuid"].as_str().expect("that of its retry").to_owned();
    assert!(worker.stop().0.success());
    let shown = |uuid: &str| -> String {
        let shown = project.client(&["task", "get", uuid]).end().expect_code(0).stdout;
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    };
    let error = "TaskPluginTriggerError: sh ended with exit status: 3";
    let said = shown(&first);
    assert_says(&said, &["\nstatus retry\n", &format!("\nretried as {last}\n"), &format!("\nattempt 1 {error}, ")]);
    let said = shown(&last);
    assert_says(&said, &["\nstatus error\n", "\nattempt 2 of 2\n", &format!("\nretry of {first}\n")]);
    assert_says(&said, &[&format!("\nerror {error}\n"), "\npayload [] {\"command\":\"sh\",\"exit_status\":3,"]);
    let waits = project.add(&["waits", "--delay", "3600"]);
    server.command::<()>(&["HSET", &format!("QueueTasks:{waits}"), "note", "mine", "losses", "2"]);
    assert_says(&shown(&waits), &["\ndue in 59 min\n", "\nnote \"mine\"\n", "\nlost workers 2\n"]);
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
fn whoever_has_a_result_from_a_redis_server_finds_a_worker_there() {
    let Some(server) = RedisServer::start() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    assert_eq!(project.json(&["ping"], 6)["running"], false);
    let worker = project.start(&[r#"tasks.a.command = ["echo", "7"]"#]);
    project.wait(&project.add(&["a"]));
    assert_eq!(project.json(&["ping"], 0)["running"], true);
    assert!(worker.stop().0.success());
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

/// Where there is a `script` to make a terminal.
#[test]
fn on_a_terminal_flush_all_wants_to_read_the_name_of_the_project() {
    if let Err(error) = std::process::Command::new("script").arg("--version").output() {
        return skipped(&format!("script cannot be run: {error}"));
    }
    let project = Project::sqlite(&[]);
    let uuid = project.add(&["a"]);
    let typed = |name: &str| {
        let flush = format!("$0 flush-all --broker {}", project.url);
        let host = Host::shell(&project.place, &format!("script -qec \"{flush}\" /dev/null"));
        host.with_input(format!("{name}\n")).expect_code(0).stdout
    };
    assert_says(&typed("yes"), &["Type the project's name to go on: ", "nothing was removed"]);
    assert_eq!(project.status(&uuid), "new");
    assert_says(&typed("QueueTasks"), &["tasks of QueueTasks removed from ", ": 1"]);
    project.client(&["task", "get", &uuid]).end().expect_code(5);
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
fn a_server_that_lets_nobody_in_or_nobody_write_is_told() {
    let Some(server) = RedisServer::start() else { return };
    let project = Project::at(Place::new(), server.url(), &[]);
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let said = project.client(&["task", "add", "a"]).end().expect_code(70).stderr;
    assert_says(&said, &["redis://127.0.0.1", "cannot be written"]);
    assert!(!said.contains("may have been added"), "{said}");
    server.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    server.command::<()>(&["CONFIG", "SET", "requirepass", "geheim"]);
    for url in [project.url.clone(), project.url.replace("//", "//:falsch@")] {
        let said = Host::new(&project.place).args(["task", "add", "a", "--broker", &url]).end().expect_code(70).stderr;
        assert_says(&said, &["redis://", "refuses this user or password"]);
        assert!(!said.contains("falsch"), "{said}");
    }
    let url = project.url.replace("//", "//:geheim@");
    Host::new(&project.place).args(["task", "add", "a", "--broker", &url]).end().expect_code(0);
}

#[test]
fn a_server_that_is_too_old_is_told_with_its_version() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let url = format!("redis://{}/0", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("the client connects"));
            let mut line = String::new();
            // It says yes to whatever it is told before it is asked what it is.
            while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                let answer = match line.trim_end() {
                    "INFO" => "$21\r\nredis_version:6.0.16\n\r\n",
                    // Each command but that one begins with how many words it has.
                    "SELECT" | "CLIENT" | "HELLO" => "+OK\r\n",
                    _ => "",
                };
                std::io::Write::write_all(stream.get_mut(), answer.as_bytes()).expect("the client reads");
                line.clear();
            }
        }
    });
    let said = Host::new(&Place::new()).args(["ping", "--broker", &url]).end().expect_code(2).stderr;
    assert_says(&said, &[&url, "is Redis 6.0.16; expected 6.2 or later"]);
}

#[test]
fn a_task_that_is_none_is_told_before_anything_is_added() {
    let project = Project::sqlite(&[]);
    for (words, said) in [
        (&["a:b"] as &[&str], "\"a:b\" is not a task name"),
        (&["a", "--args", "{}"], "args is {}; expected a JSON list"),
        (&["a", "--kwargs", "[}"], "--kwargs is \"[}\", which is no JSON"),
        (&["a", "--uuid", "0b6aecd7-8c0a-7b33-8a4c-0f3ba6a9a3a5"], "version 7; expected version 4"),
        (&["a", "--attempts", "0"], "expected a whole number from 1 to 4294967295"),
        (&["a", "--delay", "-1"], "--delay"),
        (&["a", "--delay", "1e9"], "expected a number of seconds, 0 or more, ten years at most"),
    ] {
        let ended = project.client(&[&["task", "add"], words].concat()).end().expect_code(2);
        assert_says(&ended.stderr, &[said]);
    }
    let uuid = project.add(&["a"]);
    let twice = project.client(&["task", "add", "a", "--uuid", &uuid]).end().expect_code(2);
    assert_says(&twice.stderr, &[&uuid, "is there already; expected a new uuid"]);
    assert!(!twice.stderr.contains("may have been added"), "{}", twice.stderr);
}

#[test]
fn a_number_that_is_none_is_told_which_are() {
    let project = Project::sqlite(&[]);
    let said = |words: &[&str]| project.client(words).end().expect_code(2).stderr;
    for list in [&["task", "list"][..], &["task", "dead-letter", "list"], &["decisions", "list"], &["decisions", "replay"]] {
        for number in ["-1", "4294967296", "all"] {
            let said = said(&[list, &["--limit", number]].concat());
            assert_says(&said, &[number, "--limit <N>", "expected a whole number from 0 to 4294967295"]);
        }
    }
    let range = "expected a whole number from -9223372036854775808 to 9223372036854775807";
    assert_says(&said(&["task", "add", "a", "--priority", "99999999999999999999"]), &["--priority <N>", range]);
    assert_says(&said(&["task", "add", "a", "--attempts", "-1"]), &["--attempts <N>", "from 1 to 4294967295"]);
    assert_says(&said(&["worker", "--concurrency", "1.5"]), &["--concurrency <N>", range]);
    for flag in ["--concurrency", "--prefetch", "--max-attempts"] {
        assert_says(&said(&["worker", flag, "-1"]), &[&format!("{flag}: "), "`-1`", "expected a whole number from 0"]);
    }
}

#[test]
fn what_is_no_id_of_a_task_is_told_what_one_is() {
    let project = Project::sqlite(&[]);
    for words in [["task", "get", "nonsense"], ["task", "cancel", "nonsense"], ["task", "retry", "nonsense"]] {
        let ended = project.client(&words).end().expect_code(2);
        assert_says(&ended.stderr, &["nonsense", "the id of a task, a uuid as `task add` prints it"]);
    }
}
