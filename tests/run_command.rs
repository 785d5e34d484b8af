//! `qtasks-host run`: tasks in, results out, what is said on stderr, and the exit code.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::host::{Ended, read_until};
use crate::support::{ERROR, Host, Place, assert_says, skipped};

/// A place with these plugins.
fn place(plugins: &[&str]) -> Place {
    let place = Place::new();
    for plugin in plugins {
        place.copy(plugin);
    }
    place
}

const RAISE: &str = r#"{"task": "raise", "kwargs": {"message": "no such bird"}}"#;

#[test]
fn each_task_becomes_one_line_of_json_with_all_that_is_known() {
    let place = place(&["scripted", "documented_example"]);
    let uuid = "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5";
    let line = format!(r#"{{"task": "raise", "kwargs": {{"message": "no such bird"}}, "uuid": "{uuid}"}}"#);
    let mut result = Host::run(&place).with_input(line).expect_code(0).result();
    for decision in result["decisions"].as_array_mut().expect("a list") {
        assert!(decision["seconds"].take().as_f64().is_some_and(|seconds| seconds > 0.0));
        assert!(decision["event"].take().is_u64());
        assert!(decision["digest"].take().as_str().is_some_and(|digest| digest.len() == 64));
    }
    let trigger = "task_executor_run_task_trigger_error";
    let decision = |plugin, outcome| {
        json!({
            "event": null, "seconds": null, "trigger": trigger, "plugin": plugin, "version": "0.1.0", "digest": null,
            "outcome": outcome,
        })
    };
    assert_eq!(
        result,
        json!({
            "uuid": uuid, "task": "raise", "status": "success", "attempt": 1, "returning": 123,
            "original_error": {
                "type": "TaskPluginTriggerError", "message": "no such bird", "args": [], "kwargs": {"message": "no such bird"},
            },
            "resolved_by": {"plugin": "documented-example", "version": "0.1.0", "outcome": "result"},
            "decisions": [decision("documented-example", "result"), decision("scripted", "pass")],
        })
    );
}

#[test]
fn tasks_come_from_a_file_as_well() {
    let place = place(&["scripted"]);
    let file = place.write("tasks.jsonl", "{\"task\": \"echo\", \"args\": [1]}\n{\"task\": \"async_add\", \"args\": [1, 2]}");
    let ended = Host::run(&place).arg("--concurrency").arg("1").arg(file).end().expect_code(0);
    let returned: Vec<Value> = ended.results().into_iter().map(|mut result| result["returning"].take()).collect();
    assert_eq!(returned, [json!({"args": [1], "kwargs": {}}), json!(3)]);
}

#[test]
fn results_are_alone_on_stdout_and_the_summary_is_on_stderr() {
    let place = place(&["scripted", "documented_example"]);
    let input = format!("{RAISE}\n{{\"task\": \"echo\"}}\n{{\"task\": \"cancel_me\"}}\n");
    let ended = Host::run(&place).with_input(input).expect_code(0);
    assert_eq!(ended.results().len(), 3);
    assert_says(&ended.stderr, &["3 tasks: 2 success, 0 error, 1 cancel", "resolved by", "documented-example (result) 1"]);
    // Columns: plugin, asked, answered, passed, failed.
    let line = ended.stderr.lines().find(|line| line.trim_start().starts_with("scripted ")).expect("a line for the plugin");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[..5], ["scripted", "1", "0", "1", "0"]);
}

#[test]
fn of_a_task_that_ran_again_every_error_and_whoever_was_asked_is_told_and_counted() {
    let place = place(&["scripted", "retry_later"]);
    let host = Host::run(&place).set("plugins.retry-later.config.delay_seconds = 0").set("max_attempts = 3");
    let ended = host.with_input(RAISE).expect_code(1);
    let result = ended.result();
    assert_eq!((&result["attempt"], &result["error"]["message"]), (&json!(3), &json!("no such bird")));
    let history = result["history"].as_array().expect("a list");
    assert_eq!(history.len(), 2);
    for (attempt, number) in history.iter().zip(1..) {
        assert_eq!((&attempt["attempt"], &attempt["error"]["message"]), (&json!(number), &json!("no such bird")));
        let asked: Vec<_> = attempt["decisions"].as_array().expect("a list").iter().map(|asked| &asked["outcome"]).collect();
        assert_eq!(asked, ["retry_after", "pass"]);
    }
    // Columns: plugin, asked, answered, passed, failed.
    let line = ended.stderr.lines().find(|line| line.trim_start().starts_with("retry-later ")).expect("a line for the plugin");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[..5], ["retry-later", "3", "2", "1", "0"]);
}

#[test]
fn a_summary_has_an_end_whatever_names_tasks_have() {
    let input: String = (0..1010).map(|number| format!("{{\"task\": \"nobodys-{number:04}\"}}\n")).collect();
    let ended = Host::run(&place(&[])).with_input(input).expect_code(1);
    assert_says(&ended.stderr, &["1010 tasks: 0 success, 1010 error, 0 cancel"]);
    let rows: Vec<&str> = ended.stderr.lines().filter(|line| line.ends_with("         1         0")).collect();
    assert_eq!(rows.len(), 1000);
    let others = ended.stderr.lines().find(|line| line.trim_start().starts_with("(others) ")).expect("a line for the others");
    assert_eq!(others.split_whitespace().collect::<Vec<_>>(), ["(others)", "0", "10", "0"]);
}

#[test]
fn an_error_that_nobody_answered_is_exit_code_1() {
    let ended = Host::run(&place(&["scripted"])).with_input(RAISE).expect_code(1);
    assert_eq!(ended.result()["error"]["kwargs"], json!({"message": "no such bird"}));
    assert_says(&ended.stderr, &["1 task: 0 success, 1 error, 0 cancel"]);
}

#[test]
fn bad_lines_are_told_by_number_and_reason_and_the_others_run() {
    let place = place(&["scripted"]);
    let input = [
        r#"{"task": "echo", "args": [1]}"#,
        "",
        "   \t ",
        r#"{"task": "echo", "arg": [1]}"#,
        "not json",
        r#"{"task": "echo", "args": {"a": 1}}"#,
        r#"{"task": "a:b"}"#,
        r#"{"task": "echo", "args": [2]}"#,
    ];
    let file = place.write("tasks.jsonl", input.join("\n"));
    let ended = Host::run(&place).args(["--concurrency", "1"]).arg(&file).end().expect_code(3);
    let args: Vec<Value> = ended.results().into_iter().map(|mut result| result["returning"]["args"].take()).collect();
    assert_eq!(args, [json!([1]), json!([2])]);
    let at = |line: u32| format!("tasks.jsonl:{line}: ");
    assert_says(
        &ended.stderr,
        &[&(at(4) + "not a task: unknown field `arg`"), &(at(5) + "not a task: no JSON at column 2"), "input lines refused: 4"],
    );
    assert_says(
        &ended.stderr,
        &[&(at(6) + r#"args is {"a": 1}; expected a JSON list"#), &(at(7) + r#""a:b" is not a task name"#)],
    );
    assert!(!ended.stderr.contains(&at(2)) && !ended.stderr.contains(&at(3)), "blank lines are no lines: {}", ended.stderr);
}

#[test]
fn bad_bytes_and_endless_lines_are_bad_lines() {
    let mut input = b"\xff\n".to_vec();
    input.extend(std::iter::repeat_n(b' ', (16 << 20) + 10));
    input.extend(b"\n\xef\xbb\xbf{\"task\": \"echo\"}\r\n");
    let ended = Host::run(&place(&["scripted"])).with_input(input).expect_code(3);
    assert_eq!(ended.result()["status"], "success");
    assert_says(&ended.stderr, &["standard input:1: not UTF-8", "standard input:2: longer than 16777216 bytes"]);
}

#[test]
fn a_uuid_that_is_under_way_already_is_a_bad_line_and_the_others_run() {
    let place = place(&[]);
    place.fifo("go_on");
    let hold = r#"{"task": "hold", "uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5"}"#;
    let mut child = Host::run(&place)
        .set(r#"tasks.hold.command = ["sh", "-c", "read line < go_on; echo 1"]"#)
        .set(r#"tasks.other.command = ["echo", "2"]"#)
        .args(["--concurrency", "1"])
        .spawn();
    let input = format!("{hold}\n{hold}\n{{\"task\": \"other\"}}\n");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("the host reads");
    let told = read_until(child.stderr.as_mut().expect("a pipe"), "standard input:2: ");
    assert_says(&told, &["task 0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5 is there already; expected a new uuid"]);
    std::fs::write(place.path("go_on"), "go\n").expect("the command reads");
    let ended = Ended::of(child).expect_code(3);
    let returned: Vec<Value> = ended.results().into_iter().map(|mut result| result["returning"].take()).collect();
    assert_eq!(returned, [json!(1), json!(2)]);
    assert_says(&ended.stderr, &["input lines refused: 1"]);
}

#[test]
fn a_mark_of_byte_order_before_the_first_task_is_none_of_it() {
    let ended = Host::run(&place(&["scripted"])).with_input("\u{feff}{\"task\": \"echo\", \"args\": [1]}\n").expect_code(0);
    assert_eq!(ended.result()["returning"]["args"], json!([1]));
}

#[test]
fn a_bad_line_goes_before_an_error_in_the_exit_code() {
    let ended = Host::run(&place(&["scripted"])).with_input(format!("nonsense\n{RAISE}\n")).expect_code(3);
    assert_says(&ended.stderr, &["1 task: 0 success, 1 error, 0 cancel", "input lines refused: 1"]);
}

#[test]
fn no_task_at_all_is_a_success() {
    let ended = Host::run(&place(&["fallback"])).end().expect_code(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", "0 tasks: 0 success, 0 error, 0 cancel\n"));
}

#[test]
fn a_refused_plugin_is_told_with_path_and_reason_and_stops_nothing() {
    let place = place(&["scripted", "panics_in_create", "documented_example"]);
    let ended = Host::run(&place).with_input(RAISE).expect_code(0);
    assert_eq!(ended.result()["returning"], 123);
    assert_says(&ended.stderr, &["WARN", "plugin refused", "libpanics_in_create.so", "no creation", "panics_in_create.rs:"]);
}

#[test]
fn what_a_plugin_logs_in_any_of_three_ways_is_in_the_log_under_its_name() {
    for isolation in ["in-process", "process"] {
        let place = place(&["scripted", "logs_everything"]);
        let host = Host::run(&place).args(["--log", "trace"]);
        let ended = host.set(&format!("plugins.logs-everything.isolation = {isolation:?}")).with_input(RAISE).expect_code(1);
        let levels = [
            ("TRACE", "the least"),
            ("DEBUG", "a detail"),
            ("INFO", "from tracing"),
            ("WARN", "from log"),
            ("ERROR", "from the host"),
        ];
        for (level, words) in levels {
            let line =
                ended.stderr.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {}", ended.stderr));
            assert_says(line, &[level, "plugin=logs-everything"]);
        }
        let line = ended.stderr.lines().find(|line| line.contains("from tracing")).expect("found above");
        assert_says(line, &["answer", "42", "logs_everything"]);
    }
    // In a process of its own nobody reads what it says before it has started, and it is told all the same.
    let place = place(&["scripted", "logs_everything"]);
    let ended = Host::run(&place).set("plugins.logs-everything.isolation = 'process'").with_input(RAISE).expect_code(1);
    assert_says(&ended.stderr, &["from create", "from its output", "from log"]);
}

#[test]
fn a_plugin_that_fails_is_told_as_it_happens() {
    let ended = Host::run(&place(&["scripted", "fails_in_handler"])).with_input(RAISE).expect_code(1);
    assert_says(&ended.stderr, &["WARN", "the plugin failed, the next one is asked: BadFallback: ", " plugin=fails-in-handler"]);
}

#[test]
fn a_plugin_that_panics_when_it_is_dropped_is_told() {
    let ended = Host::run(&place(&["panics_in_drop"])).end().expect_code(0);
    assert_says(&ended.stderr, &["ERROR", "the plugin's Drop panicked: Panic: no end (at "]);
}

#[test]
fn an_event_is_one_line_of_the_log_whatever_a_plugin_says() {
    let ended = Host::run(&place(&["scripted", "logs_everything"])).with_input(RAISE).expect_code(1);
    let line = ended.stderr.lines().find(|line| line.contains(r"two\nERROR lines")).unwrap_or_else(|| panic!("{}", ended.stderr));
    assert_says(line, &["WARN", "plugin=logs-everything"]);
    assert!(!ended.stderr.contains("\nERROR lines") && !ended.stderr.contains('\u{1b}'), "{}", ended.stderr);
}

#[test]
fn the_log_level_holds_for_plugins_too() {
    let run = |level| Host::run(&place(&["scripted", "logs_everything"])).args(["--log", level]).with_input(RAISE).stderr;
    let warned = run("warn");
    assert!(warned.contains("from log") && !warned.contains("from tracing"), "{warned}");
    let detailed = run("debug");
    assert!(detailed.contains("a detail") && !detailed.contains("the least"), "{detailed}");
    let silent = run("off");
    assert!(!silent.contains("from the host"), "{silent}");
}

#[test]
fn a_handler_sees_that_its_deadline_passed() {
    let place = place(&["scripted", "hangs_in_handler"]);
    place.fifo("go_on");
    let mut child = Host::run(&place)
        .set("plugins.hangs-in-handler.deadline = 0.05")
        .set(r#"tasks.wait.command = ["sh", "-c", "read line < go_on; echo 1"]"#)
        .args(["--concurrency", "1"])
        .spawn();
    // The second task keeps the host alive until the handler has seen its flag.
    write!(child.stdin.take().expect("a pipe"), "{RAISE}\n{{\"task\": \"wait\"}}\n").expect("the host reads");
    let read = read_until(child.stderr.as_mut().expect("a pipe"), "cancelled");
    assert_says(read.lines().next_back().expect("a line"), &["plugin=hangs-in-handler"]);
    std::fs::write(place.path("go_on"), "go\n").expect("the command reads");
    let output = child.wait_with_output().expect("the host ends");
    assert_says(&String::from_utf8_lossy(&output.stdout), &["DeadlineExceeded"]);
}

#[test]
fn flags_go_before_the_file_and_the_file_before_the_defaults() {
    let place = place(&["scripted", "documented_example"]);
    let file =
        "max_attempts = 7\nmax_time = 9.0\n[plugins.documented-example]\nenabled = false\n[plugins.scripted]\npriority = 3\n";
    let config = place.write("settings.toml", file);
    let attempts = |host: Host| {
        host.with_input(RAISE);
        place.events("scripted").iter().rfind(|event| event["trigger"] == ERROR).expect("an event")["kwargs"]["task_executor"]["attempts"].clone()
    };
    assert_eq!(attempts(Host::run(&place)), 5);
    assert_eq!(attempts(Host::run(&place).arg("--config").arg(&config)), 7);
    assert_eq!(attempts(Host::run(&place).arg("--config").arg(&config).args(["--max-attempts", "8"])), 8);
    assert_eq!(attempts(Host::run(&place).arg("--config").arg(&config).set("max_attempts=9")), 9);
    let ended = Host::run(&place).arg("--config").arg(&config).with_input(RAISE).expect_code(1);
    assert_eq!(ended.result()["decisions"].as_array().map(Vec::len), Some(1), "the file disables the other plugin");
    Host::run(&place)
        .arg("--config")
        .arg(&config)
        .set("plugins.documented-example.enabled=true")
        .with_input(RAISE)
        .expect_code(0);
}

#[test]
fn the_file_qtasks_host_toml_is_read_where_the_host_is_started_and_its_paths_are_meant_from_there() {
    let place = place(&["scripted", "documented_example"]);
    place.write("qtasks-host.toml", "plugin_dir = 'plugins'\nstate_dir = 'here'\n");
    assert_eq!(Host::new(&place).arg("run").with_input(RAISE).expect_code(0).result()["returning"], 123);
    assert!(place.path("here/plugins/scripted/events.jsonl").exists());
    let elsewhere = Host::new(&place).current_dir("/").arg("run").arg("--config").arg(place.path("qtasks-host.toml"));
    assert_eq!(elsewhere.with_input(RAISE).expect_code(0).result()["returning"], 123);
}

#[test]
fn a_configuration_that_nobody_reads_is_told() {
    let place = place(&["scripted"]);
    let host = Host::run(&place).set("tasks.words.command=[\"wc\"]").set("tasks.words.config.a=1").set("tasks.echo.config.a=1");
    let told = host.end().expect_code(0).stderr;
    assert_says(&told, &["[tasks.words.config] is read by nobody: a command gets its arguments and nothing else"]);
    assert_says(&told, &["[tasks.echo.config] is read by nobody", "reads [plugins.scripted.config]"]);
}

#[test]
fn limits_that_would_not_hold_are_told() {
    let place = place(&["scripted"]);
    let host = || Host::run(&place).set("plugins.scripted.memory_mib=64").set("plugins.scripted.processes=false");
    let told = host().end().expect_code(0).stderr;
    let said = "[plugins.scripted] memory_mib, processes: only a process of its own has limits; expected isolation = \"process\"";
    assert_says(&told, &["WARN", said]);
    let good =
        host().set("plugins.scripted.memory_mib=512").set("plugins.scripted.isolation=process").end().expect_code(0).stderr;
    assert!(!good.contains("has limits"), "{good}");
}

#[test]
fn retries_that_would_never_happen_are_told() {
    let place = place(&["scripted"]);
    let misspelt = Host::run(&place).set("tasks.echo.retry_on=['TimeoutErorr']").end().expect_code(0).stderr;
    let kind = "[tasks.echo] retry_on: no error kind TimeoutErorr is known, only TimeoutError; yours belong to [error_kinds]";
    assert_says(&misspelt, &[kind, "[tasks.echo]: without `attempts`, only tasks that say their own are tried again"]);
    let good = Host::run(&place).set("tasks.echo.retry_on=['TimeoutError', 'ParseIntError']").set("tasks.echo.attempts=2");
    let good = good.end().expect_code(0).stderr;
    assert!(!good.contains("[tasks.echo]"), "{good}");
}

#[test]
fn a_value_that_is_not_toml_is_taken_as_a_text() {
    let place = place(&["scripted", "documented_example"]);
    let host = Host::run(&place).set("intercept=all").set("max_time=0.5").set("tasks.bad.command=[\"false\"]");
    assert_eq!(host.with_input(r#"{"task": "async_add", "args": ["x", 1]}"#).expect_code(0).result()["returning"], 123);
}

#[test]
fn a_mistake_in_the_settings_file_is_told_by_line_with_the_nearest_key() {
    let place = place(&[]);
    let config = place.write("settings.toml", "concurrency = 2\n\n[plugins.fallback]\npriorty = 3\n");
    let ended = Host::run(&place).arg("--config").arg(&config).end().expect_code(2);
    assert_says(
        &ended.stderr,
        &["settings file ", "settings.toml: ", "line 4", "unknown field `priorty`", "did you mean `priority`?"],
    );
    assert_eq!(ended.stdout, "");
    for (wrong, said) in [
        ("concurrency = 0", "concurrency is 0; expected at least 1"),
        ("name = ''", "name is \"\"; expected at least one character"),
        ("log = 'loud'", "log is \"loud\": \"loud\" is no level"),
        ("[tasks.a]\ncommand = []", "`command` is empty"),
    ] {
        let config = place.write("settings.toml", wrong);
        let ended = Host::run(&place).arg("--config").arg(&config).end().expect_code(2);
        let line = format!("line {}", wrong.lines().count());
        assert_says(&ended.stderr, &["settings file ", "settings.toml: ", &line, said]);
    }
}

#[test]
fn a_directory_without_plugins_is_told_and_so_is_with_debug_each_plugin_that_runs() {
    let place = place(&[]);
    std::fs::copy(crate::support::artifacts::library("fallback"), place.plugins().join("libfallback.so.1")).expect("a copy");
    assert_says(&Host::run(&place).with_input(RAISE).stderr, &["WARN", "no plugin library (*.so) in "]);
    place.copy("fallback");
    let ended = Host::run(&place).args(["--log", "debug"]).with_input(RAISE);
    assert_says(&ended.stderr, &["plugin fallback 0.1.0 runs, from ", "libfallback.so"]);
    assert!(!ended.stderr.contains("no plugin library"), "{}", ended.stderr);
}

#[test]
fn wrong_settings_are_exit_code_2_and_name_their_flag() {
    let ended = |host: fn(Host) -> Host| host(Host::run(&place(&["fallback"]))).with_input(RAISE).expect_code(2).stderr;
    assert_says(&ended(|host| host.set("concurency=2")), &["--set concurency=2: unknown field", "did you mean `concurrency`?"]);
    assert_says(&ended(|host| host.args(["--max-time", "-1"])), &["--max-time: ", "expected a number of seconds above 0"]);
    assert_says(&ended(|host| host.args(["--max-time", "1h"])), &["'1h'", "expected a number of seconds, such as 90 or 0.5"]);
    assert_says(&ended(|host| host.args(["--max-time=-1"])), &["--max-time: ", "expected a number of seconds above 0"]);
    assert_says(&ended(|host| host.args(["--intercept", "al"])), &["--intercept: ", "did you mean `all`?"]);
    assert_says(&ended(|host| host.set("triggers.worker_strat.answers=first")), &["unknown trigger `worker_strat`"]);
    assert_says(&ended(|host| host.set("plugins.fallback.triggers=[\"worker_strat\"]")), &["did you mean `worker_start`?"]);
    assert_says(&ended(|host| host.set("plugins.fallbck.priority=1")), &["no plugin of this name", "did you mean `fallback`?"]);
    assert_says(&ended(|host| host.set("tasks.x.attempts=1")), &["[tasks.x]: nobody provides a task of this name"]);
    assert_says(&ended(|host| host.set("tasks.x.command=[]")), &["--set tasks.x.command=[]: `command` is empty"]);
    assert_says(
        &ended(|host| host.args(["--config", "gone.toml"])),
        &["cannot read the settings file gone.toml", "No such file"],
    );
    assert_says(&ended(|host| host.args(["--log", "plugin=loud"])), &["--log: log is \"plugin=loud\"; expected error, warn"]);
    assert_says(
        &ended(|host| host.args(["--log", "warn,plugn"])),
        &["--log: log is \"warn,plugn\": \"plugn\" is no level; expected off, error, warn", "plugn=debug"],
    );
    assert_says(
        &ended(|host| host.env("TOKIO_WORKER_THREADS", "0")),
        &["TOKIO_WORKER_THREADS is \"0\"; expected a number of threads"],
    );
    let gone = Host::new(&place(&[])).args(["run", "--plugins", "gone"]).with_input(RAISE).expect_code(2);
    assert_says(&gone.stderr, &["cannot list the plugin directory /", "/gone; name an existing", "No such file"]);
    assert_says(&ended(|host| host.arg("--colour")), &["--colour"]);
}

#[test]
fn a_file_of_tasks_that_is_not_there_is_exit_code_70() {
    let ended = Host::run(&place(&[])).arg("gone.jsonl").end().expect_code(70);
    assert_says(&ended.stderr, &["qtasks-host: cannot open the tasks in gone.jsonl: No such file"]);
}

/// Where there is a `script` to make a terminal.
#[test]
fn on_a_terminal_there_is_a_progress_bar_and_each_result_has_a_line_of_its_own() {
    if let Err(error) = std::process::Command::new("script").arg("--version").output() {
        return skipped(&format!("script cannot be run: {error}"));
    }
    let place = place(&[]);
    place.write("tasks.jsonl", "{\"task\": \"nap\"}\n".repeat(3));
    place.write("qtasks-host.toml", "[tasks.nap]\ncommand = ['sh', '-c', 'sleep 0.2; echo 1']\n");
    let shown = |flags: &str| {
        let run = format!("$0 run --state-dir state --concurrency 1 {flags} tasks.jsonl");
        // Without a name for its kind, no terminal gets a bar.
        let host = Host::shell(&place, &format!("script -qec \"{run}\" /dev/null")).env("TERM", "xterm");
        host.end().expect_code(0).stdout
    };
    let with_bar = shown("");
    assert!(with_bar.contains(" 1 tasks, "), "{with_bar:?}");
    let results: Vec<&str> = with_bar.match_indices("{\"uuid\"").map(|(at, _)| &with_bar[..at]).collect();
    assert_eq!(results.len(), 3);
    for before in results {
        // A new line, or one that was cleared.
        assert!(before.is_empty() || before.ends_with('\n') || before.ends_with("\r\u{1b}[2K"), "{before:?}");
    }
    let without = shown("--no-progress");
    assert!(!without.contains(" 1 tasks, ") && without.contains("3 tasks: 3 success"), "{without:?}");
}

#[test]
fn a_directory_of_tasks_is_told_before_anything_is_loaded() {
    let ended = Host::run(&place(&["panics_in_stop"])).arg("/").end().expect_code(70);
    assert_eq!(
        ended.stderr,
        "qtasks-host: cannot read tasks from /: it is a directory; expected a file with one task as JSON a line\n"
    );
}

#[test]
fn an_input_that_breaks_is_told_after_the_summary_and_the_plugins_are_stopped() {
    // Its first page is nobody's.
    let ended = Host::run(&place(&["panics_in_stop"])).arg("/proc/self/mem").end().expect_code(70);
    assert_says(&ended.stderr, &["0 tasks: 0 success", "the plugin did not stop cleanly"]);
    assert_says(&ended.stderr, &["qtasks-host: cannot read on from /proc/self/mem at line 1: Input/output error"]);
}

#[test]
fn a_stdout_that_takes_nothing_is_told_after_the_summary_and_the_plugins_are_stopped() {
    let place = place(&["panics_in_stop"]);
    place.write("tasks.jsonl", "{\"task\": \"nobodys\"}\n");
    let script = "exec \"$0\" run --plugins plugins --state-dir state tasks.jsonl > /dev/full";
    let ended = Host::shell(&place, script).end().expect_code(70);
    assert_says(&ended.stderr, &["1 task: 0 success, 1 error", "the plugin did not stop cleanly"]);
    assert_says(&ended.stderr, &["qtasks-host: cannot print results: No space left on device"]);
}

#[test]
fn a_stderr_that_takes_nothing_stops_nothing() {
    // A plugin that logs, a line that is no task, and a summary.
    let place = place(&["documented_example", "scripted"]);
    let script = "exec \"$0\" run --plugins plugins --state-dir state 2> /dev/full";
    let ended = Host::shell(&place, script).with_input(format!("nonsense\n{RAISE}\n")).expect_code(3);
    assert_eq!(ended.result()["returning"], 123);
    // And what keeps a command from running at all.
    Host::shell(&place, "exec \"$0\" run gone.jsonl 2> /dev/full").end().expect_code(70);
    Host::shell(&place, "exec \"$0\" run --plugins gone 2> /dev/full").end().expect_code(2);
}

#[test]
fn the_name_of_a_task_is_shown_in_the_summary_and_obeyed_by_no_terminal() {
    let input = r#"{"task": "a\n999 tasks\u001b[31m\u202e"}"#;
    let ended = Host::run(&place(&[])).with_input(input).expect_code(1);
    assert_says(&ended.stderr, &[r"  a\n999 tasks\u{1b}[31m\u{202e}         0         1         0"]);
}

#[test]
fn a_state_directory_that_others_can_write_to_is_refused() {
    let place = place(&[]);
    std::fs::create_dir(place.state()).expect("a new directory");
    std::fs::set_permissions(place.state(), std::fs::Permissions::from_mode(0o777)).expect("our own directory");
    let refused = Host::run(&place).end().expect_code(2);
    assert_says(&refused.stderr, &["state is not safe: everybody can write to it (mode 0777)", "mend it with `chmod 700 "]);
    let refused = Host::new(&place).args(["task", "add", "a", "--state-dir", "state"]).end().expect_code(2);
    assert_says(&refused.stderr, &["the state directory ", " is not safe"]);
}

#[test]
fn what_a_plugin_prints_in_the_hosts_process_is_among_no_results() {
    let place = place(&["misbehaves_in_handler"]);
    let host = Host::run(&place).set("plugins.misbehaves-in-handler.config.how=print").set("tasks.raise.command=['false']");
    let ended = host.with_input(RAISE);
    assert_eq!(ended.result()["task"], "raise");
    assert_says(&ended.stderr, &["line 0 of many"]);
}

#[test]
fn help_tells_the_exit_codes() {
    let ended = Host::new(&place(&[])).arg("--help").end().expect_code(0);
    assert_says(&ended.stdout, &["Exit codes:", "  3  at least one input line was no task", "130"]);
}

#[test]
fn a_closed_stdout_ends_a_run_before_it_has_done_everything() {
    let place = place(&["scripted"]);
    let mut child = Host::run(&place).spawn();
    drop(child.stdout.take());
    // More than a pipe and the read-ahead hold, so that the host must notice.
    let line = format!("{{\"task\": \"echo\", \"args\": [\"{}\"]}}\n", "x".repeat(100));
    let mut stdin = child.stdin.take().expect("a pipe");
    for _ in 0..5000 {
        if stdin.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    drop(stdin);
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("log lines are text");
    assert_eq!(child.wait().expect("it ends").code(), Some(70), "{stderr}");
    assert_says(&stderr, &["tasks read and not begun: ", "nobody reads the results any more, so nothing more is begun"]);
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_closed_stdout_ends_a_run_that_waits_for_input() {
    let place = place(&["scripted"]);
    let mut child = Host::run(&place).spawn();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"{\"task\": \"echo\"}\n").expect("the host reads");
    // Standard input stays open: only the closed output tells that nobody cares any more.
    assert_eq!(child.wait().expect("it ends").code(), Some(70));
    drop(stdin);
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().try_into().expect("a process id")).expect("a process id is not 0");
    // Before its handler is in place, the signal would just end the process.
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("the child is not waited for yet");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux tells it").trim();
        u64::from_str_radix(mask, 16).expect("a mask") & (1 << (Signal::INT.as_raw() - 1)) != 0
    };
    while !caught() {
        std::thread::yield_now();
    }
    kill_process(pid, Signal::INT).expect("the child is ours");
}

/// A host that runs one command until somebody writes to the FIFO `go_on`, with more of them waiting.
fn busy_host(place: &Place) -> Child {
    let started = place.fifo("started");
    place.fifo("go_on");
    let mut child = Host::run(place)
        .set(r#"tasks.hold.command = ["sh", "-c", "echo up >> started; read line < go_on; echo 1"]"#)
        .args(["--concurrency", "1"])
        .spawn();
    child.stdin.take().expect("a pipe").write_all("{\"task\": \"hold\"}\n".repeat(3).as_bytes()).expect("the host reads");
    read_until(&mut std::fs::File::open(started).expect("the FIFO is there"), "up");
    child
}

#[test]
fn an_interrupt_finishes_what_runs_and_begins_nothing_more() {
    let place = place(&[]);
    let mut child = busy_host(&place);
    interrupt(&child);
    let told = read_until(child.stderr.as_mut().expect("a pipe"), "finishing what runs");
    // Another command would wait for a reader of `started` for ever.
    std::fs::write(place.path("go_on"), "go\n").expect("the command reads");
    let output = child.wait_with_output().expect("the host ends");
    assert_eq!(output.status.code(), Some(130));
    let results = String::from_utf8(output.stdout).expect("text");
    assert_eq!(results.lines().count(), 1, "{results}");
    assert_says(&results, &[r#""status":"success""#, r#""returning":1"#]);
    let summary = String::from_utf8_lossy(&output.stderr);
    assert_says(&summary, &["1 task: 1 success"]);
    // As many as it had read by then, which are the other two unless it is very slow.
    let (_, waiting) = told.split_once("will not be begun: ").expect("how many wait");
    let waiting = waiting.split(';').next().expect("a number");
    assert_eq!(summary.contains(&format!("tasks read and not begun: {waiting}")), waiting != "0", "{told}{summary}");
}

/// A run replaces no plugins, so it has no use of SIGHUP: it ends with its terminal, unless it was begun to outlive it, as by `nohup`.
#[test]
fn a_hangup_ends_a_run_as_the_system_has_it() {
    let place = place(&[]);
    let mut child = busy_host(&place);
    kill_process(Pid::from_child(&child), Signal::HUP).expect("the child is ours");
    if hangups_are_ignored() {
        interrupt(&child);
        read_until(child.stderr.as_mut().expect("a pipe"), "finishing what runs");
        std::fs::write(place.path("go_on"), "go\n").expect("the command reads");
        child.wait().expect("the host ends");
    } else {
        // And the command with it.
        assert_eq!(child.wait().expect("the host ends").signal(), Some(Signal::HUP.as_raw()));
    }
}

/// Whether these tests were begun by something like `nohup`, which every process of theirs inherits.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask of signals").trim();
    u64::from_str_radix(mask, 16).expect("hexadecimal digits") & 1 != 0
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let place = place(&[]);
    let mut child = busy_host(&place);
    interrupt(&child);
    read_until(child.stderr.as_mut().expect("a pipe"), "finishing what runs");
    let status = loop {
        // Sent again and again, since nothing tells when the host listens for the second one.
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        interrupt(&child);
    };
    assert_eq!((status.code(), status.signal()), (Some(130), None));
    // The command is killed too: a FIFO that nobody reads any more cannot be opened for writing without waiting.
    let go_on = place.path("go_on");
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    while rustix::fs::open(&go_on, flags, Mode::empty()).is_ok() {}
}

#[test]
fn an_interrupt_while_nothing_runs_and_the_input_stays_open_ends_the_host() {
    let place = place(&[]);
    for _ in 0..20 {
        let mut child = Host::run(&place).spawn();
        // Kept open: the reader waits for it.
        let stdin = child.stdin.take();
        interrupt(&child);
        let output = child.wait_with_output().expect("the host ends");
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        drop(stdin);
    }
}
