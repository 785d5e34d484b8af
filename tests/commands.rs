//! Tasks that are commands: what goes in, what comes out, and what is left of them when they fail or take too long.

use std::io::Read;
use std::time::Duration;

use qtasks_host::task::TaskSettings;
use qtasks_host::{App, Settings, StartError, Status};
use serde_json::{Value, json};

use crate::support::app::Started;
use crate::support::{Place, TestApp, assert_says, returning, value_of};

/// An application with the shell script as task `script`.
async fn script(script: &str, plugins: &[&str]) -> Started {
    TestApp::with(plugins).set(format!("tasks.script.command = ['sh', '-c', {}]", toml::Value::from(script))).start().await
}

async fn error(text: &str) -> Value {
    let app = script(text, &[]).await;
    let report = value_of(&app.run("script", json!([]), json!({})).await);
    assert_eq!(report["status"], "error");
    report["error"].clone()
}

#[tokio::test]
async fn arguments_go_in_as_json_and_the_result_comes_out_as_json() {
    let app = TestApp::with(&[]).set("tasks.cat.command = ['cat']").start().await;
    let line = r#"{"task": "cat", "args": [123456789012345678901234567890, "$(id)"], "kwargs": {"b": "; exit 1"}}"#;
    assert_eq!(
        returning(&app.run_line(line).await),
        r#"{"args": [123456789012345678901234567890, "$(id)"], "kwargs": {"b": "; exit 1"}}"#
    );
}

#[tokio::test]
async fn a_command_need_not_read_its_input() {
    let app = script("echo '[null]'", &[]).await;
    let long = "x".repeat(1 << 20);
    assert_eq!(returning(&app.run("script", json!([long]), json!({})).await), "[null]");
}

#[tokio::test]
async fn an_exit_status_other_than_zero_is_a_plugin_error_with_status_and_complaint() {
    let error = error("echo 'the sea is frozen' >&2; exit 3").await;
    assert_eq!(error["type"], "TaskPluginTriggerError");
    assert_eq!(
        error["kwargs"],
        json!({
            "message": "sh ended with exit status: 3", "command": "sh", "exit_status": 3, "stderr": "the sea is frozen\n",
        })
    );
}

#[tokio::test]
async fn a_command_that_a_signal_ended_has_no_exit_status() {
    let error = error("kill -KILL $$").await;
    assert_eq!(error["kwargs"]["exit_status"], Value::Null);
    assert_says(error["message"].as_str().expect("a text"), &["sh ended with signal: 9"]);
}

#[tokio::test]
async fn the_plugins_are_asked_about_a_failed_command() {
    let app = script("exit 1", &["documented_example"]).await;
    assert_eq!(returning(&app.run("script", json!([]), json!({})).await), "123");
}

#[tokio::test]
async fn of_a_long_complaint_the_end_is_kept() {
    let error = error("head -c 100000 /dev/zero | tr '\\0' x >&2; printf END >&2; exit 1").await;
    let kept = error["kwargs"]["stderr"].as_str().expect("a text");
    assert_eq!(kept.len(), 4096);
    assert!(kept.ends_with("xxxEND"));
}

#[tokio::test]
async fn output_that_is_not_one_json_value_is_a_command_error_that_shows_it() {
    for (print, shown) in [("echo hello", "\"hello\\n\""), ("echo '1 2'", "1 2"), ("true", "\"\""), ("echo '{'", "{")] {
        let error = error(print).await;
        assert_eq!(error["type"], "CommandError");
        assert_says(error["message"].as_str().expect("a text"), &["sh: printed", shown, "expected one JSON value"]);
    }
    let error = error("printf '\"\\377\"'").await;
    assert_says(error["message"].as_str().expect("a text"), &["not UTF-8"]);
}

#[tokio::test]
async fn too_much_output_is_refused_and_the_command_is_not_blocked() {
    let error = error("head -c 17000000 /dev/zero | tr '\\0' 1").await;
    assert_says(error["message"].as_str().expect("a text"), &["sh: printed more than 16777216 bytes"]);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_command_error_and_no_plugin_error() {
    let app = TestApp::with(&["documented_example"]).set("tasks.gone.command = ['/nowhere/program']").start().await;
    let report = app.run("gone", json!([]), json!({})).await;
    assert_eq!((report.status, report.decisions.len()), (Status::Error, 0));
    let error = report.error.expect("an error");
    assert_eq!(error.kind, "CommandError");
    assert_says(&error.message, &["/nowhere/program: cannot be started: No such file"]);
}

#[tokio::test]
async fn a_relative_path_of_a_command_is_told_with_where_it_was_looked_for() {
    let app = TestApp::with(&[]).set("tasks.gone.command = ['./gone.sh']").start().await;
    let error = app.run("gone", json!([]), json!({})).await.error.expect("an error");
    let here = std::env::current_dir().expect("a place");
    assert_says(&error.message, &[&format!("./gone.sh: cannot be started from {}: No such file", here.display())]);
}

#[tokio::test]
async fn a_command_without_words_is_no_setting() {
    for words in [vec![], vec![String::new()]] {
        let place = Place::new();
        let nothing = TaskSettings { command: Some(words), ..TaskSettings::default() };
        let tasks = [("nothing".to_owned(), nothing)].into();
        let settings = Settings { state_dir: place.state(), tasks, ..Settings::default() };
        let error = App::new(settings).start().await.expect_err("the application does not start");
        assert!(matches!(error, StartError::Tasks(_)), "{error:?}");
        assert_eq!(error.to_string(), "[tasks.nothing]");
        assert_says(
            &std::error::Error::source(&error).expect("a cause").to_string(),
            &["`command` is empty", "[\"wc\", \"-w\"]"],
        );
    }
}

#[tokio::test]
async fn a_plugin_that_takes_the_name_of_a_command_is_refused_alone() {
    let app = TestApp::with(&["scripted"]).set("tasks.echo.command = ['echo', '7']").start().await;
    let reason = app.refusal("libscripted.so", "task-taken");
    assert_says(
        &reason,
        &["it provides the task echo, which the application or `[tasks.echo] command` provides", "another name"],
    );
    assert_eq!(returning(&app.run("echo", json!([]), json!({})).await), "7");
}

/// The clock is tokio's paused one: it jumps to the time limit when nothing but the commands is left to wait for, and it stands
/// while the test reads from the FIFO.
#[tokio::test(start_paused = true)]
async fn beyond_max_time_a_command_is_killed_with_everything_it_started() {
    let app = TestApp::with(&[]);
    let fifo = app.place.fifo("alive");
    // Both shells hold the FIFO open for as long as they live.
    let script = format!("exec 3>'{}'; sh -c 'echo up >&3; sleep 1000'; sleep 1000", fifo.display());
    let app = app
        .set(format!("tasks.script.command = ['sh', '-c', {}]", toml::Value::from(script)))
        .set("tasks.script.max_time = 5")
        .start()
        .await;
    let (sender, first_line) = tokio::sync::oneshot::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let mut alive = std::fs::File::open(fifo).expect("the FIFO is there");
        let mut line = [0; 3];
        alive.read_exact(&mut line).expect("the inner shell writes");
        sender.send(line).expect("the test waits");
        alive
    });
    let running = app.run("script", json!([]), json!({}));
    let (report, line, alive) = tokio::join!(running, first_line, reading);
    assert_eq!(line.expect("read"), *b"up\n");
    assert_eq!(report.error.expect("an error").kind, "TimeoutError");
    // The end of the file comes when nobody is left who could write.
    let mut rest = String::new();
    alive.expect("read").read_to_string(&mut rest).expect("the FIFO can be read");
    assert_eq!(rest, "");
}

#[tokio::test]
async fn what_a_command_leaves_behind_ends_with_it() {
    let app = TestApp::with(&[]);
    let fifo = app.place.fifo("alive");
    // The one left behind holds standard output open, and the FIFO for as long as it lives.
    let script = format!("exec 3>'{}'; while :; do sleep 1000; done & echo 1", fifo.display());
    let app = app.set(format!("tasks.script.command = ['sh', '-c', {}]", toml::Value::from(script))).start().await;
    let (sender, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut rest = String::new();
        // The end of the file comes when nobody is left who could write.
        let read = std::fs::File::open(fifo).and_then(|mut alive| alive.read_to_string(&mut rest));
        sender.send(read.map_err(|error| error.to_string()))
    });
    assert_eq!(returning(&app.run("script", json!([]), json!({})).await), "1");
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("nobody is left");
    assert_eq!(ended, Ok(Ok(0)));
}

/// The daemon lives until somebody writes to the FIFO `go_on`. Waited for, it would keep the task until its `max_time`.
#[tokio::test]
async fn a_daemon_that_holds_the_streams_of_its_command_is_not_waited_for() {
    for (end, status) in [("echo 1", Status::Success), ("exit 3", Status::Error)] {
        let app = TestApp::with(&[]);
        let (up, go_on) = (app.place.fifo("up"), app.place.fifo("go_on"));
        let daemon = format!("setsid sh -c 'echo up > {}; read line < {}'", up.display(), go_on.display());
        let script = format!("{daemon} & read line < {}; {end}", up.display());
        let app = app
            .set(format!("tasks.script.command = ['sh', '-c', {}]", toml::Value::from(script)))
            .set("tasks.script.max_time = 30")
            .start()
            .await;
        let report = app.run("script", json!([]), json!({})).await;
        assert_eq!(report.status, status, "{}", value_of(&report));
        if status == Status::Error {
            assert_eq!(value_of(&report)["error"]["kwargs"]["exit_status"], 3);
        }
        std::fs::write(go_on, "go\n").expect("the daemon reads");
    }
}
