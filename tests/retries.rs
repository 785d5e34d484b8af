//! Retries that a task itself asks for: how many, after which kinds of errors, and after how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use qtasks_host::{App, Status, TaskError, TaskReport};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{ERROR, TestApp, assert_says};

/// Registers `fail(kind)`, which fails with an error of that type; the counter counts its runs.
fn fails(runs: &Arc<AtomicU32>) -> impl FnOnce(&mut App) + use<> {
    let runs = Arc::clone(runs);
    move |app| {
        app.inline_task("fail", move |_ctx, (kind,): (String,), (): ()| {
            runs.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(TaskError::other(kind, "as told"))
        });
    }
}

/// Runs `fail(kind)` with these settings; gives the report, how often it ran, and how long it took on the paused clock.
async fn fail(kind: &str, settings: &[&str]) -> (TaskReport, u32, Duration) {
    let runs = Arc::default();
    let app = settings.iter().fold(TestApp::with(&[]), |app, line| app.set(*line));
    let app = app.start_with(fails(&runs)).await;
    let begun = Instant::now();
    let report = app.run("fail", json!([kind]), json!({})).await;
    let took = begun.elapsed();
    assert_eq!((report.status, &*report.error.as_ref().expect("an error").kind), (Status::Error, kind));
    assert_eq!(report.attempt, runs.load(Ordering::Relaxed));
    (report, runs.load(Ordering::Relaxed), took)
}

#[tokio::test(start_paused = true)]
async fn an_error_is_tried_again_when_it_is_of_a_named_kind_or_a_child_of_one() {
    const ATTEMPTS: &str = "tasks.fail.attempts = 3";
    const KINDS: &str = "tasks.fail.retry_on = ['TimeoutError', 'ArithmeticError']";
    for (kind, runs) in [
        ("TimeoutError", 3),
        ("ArithmeticError", 3),
        ("ZeroDivisionError", 3),
        ("OverflowError", 3),
        // A parent is none of its children, and a name is no pattern.
        ("OSError", 1),
        ("Exception", 1),
        ("ValueError", 1),
        ("MyTimeoutError", 1),
        ("timeouterror", 1),
    ] {
        assert_eq!(fail(kind, &[ATTEMPTS, KINDS]).await.1, runs, "{kind}");
    }
    for (kind, runs) in [("ParseIntError", 3), ("Panic", 3), ("KeyboardInterrupt", 1)] {
        assert_eq!(fail(kind, &[ATTEMPTS, "tasks.fail.retry_on = ['Exception']"]).await.1, runs, "{kind}");
    }
    assert_eq!(fail("ValueError", &[ATTEMPTS, "tasks.fail.retry_on = []"]).await.1, 1, "no kind at all");
    assert_eq!(fail("ValueError", &[ATTEMPTS]).await.1, 3, "every kind");
    assert_eq!(fail("TimeoutError", &[KINDS]).await.1, 1, "without attempts there are none");
}

#[tokio::test(start_paused = true)]
async fn the_operator_may_add_kinds() {
    let settings = [
        "tasks.fail.attempts = 2",
        "tasks.fail.retry_on = ['ConnectionError']",
        "error_kinds.HttpError = 'ConnectionError'",
        "error_kinds.Http500 = 'HttpError'",
    ];
    assert_eq!(fail("Http500", &settings).await.1, 2);
    assert_eq!(fail("Http404", &settings).await.1, 1);
}

#[tokio::test]
async fn an_error_of_the_system_is_of_the_kind_that_python_would_raise() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let nobody_listens = free.expect("loopback");
    let app = TestApp::with(&[])
        .set("tasks.connect.attempts = 2")
        .set("tasks.connect.retry_on = ['ConnectionError']")
        .set("tasks.late.attempts = 2")
        .set("tasks.late.retry_on = ['TimeoutError']")
        .start_with(|app| {
            app.task("connect", move |_ctx, (): (), (): ()| async move {
                tokio::net::TcpStream::connect(nobody_listens).await?;
                Ok::<_, TaskError>(())
            });
            app.task("late", async |_ctx, (): (), (): ()| -> Result<(), TaskError> {
                Ok(tokio::time::timeout(Duration::ZERO, std::future::pending()).await?)
            });
        })
        .await;
    for (task, kind) in [("connect", "ConnectionRefusedError"), ("late", "TimeoutError")] {
        let report = app.run(task, json!([]), json!({})).await;
        assert_eq!((&*report.error.expect("an error").kind, report.attempt), (kind, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn each_delay_is_so_many_times_the_one_before_it_up_to_the_cap() {
    const ATTEMPTS: &str = "tasks.fail.attempts = 4";
    for (settings, seconds) in [
        (&[ATTEMPTS][..], 0),
        (&[ATTEMPTS, "tasks.fail.retry_delay = 0", "tasks.fail.retry_backoff = 10"], 0),
        (&[ATTEMPTS, "tasks.fail.retry_backoff = 10"], 0),
        (&[ATTEMPTS, "tasks.fail.retry_delay = 2"], 2 + 2 + 2),
        (&[ATTEMPTS, "tasks.fail.retry_delay = 2", "tasks.fail.retry_backoff = 3"], 2 + 6 + 18),
        (&[ATTEMPTS, "tasks.fail.retry_delay = 2", "tasks.fail.retry_backoff = 3", "max_retry_delay = 5"], 2 + 5 + 5),
        (&[ATTEMPTS, "tasks.fail.retry_delay = 2", "tasks.fail.retry_backoff = 1e300", "max_retry_delay = 5"], 2 + 5 + 5),
    ] {
        // The clock is tokio's paused one: it moves by the delays and by nothing else.
        assert_eq!(fail("ValueError", settings).await.2.as_secs(), seconds, "{settings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_plugin_error_is_tried_again_and_a_plugins_own_delay_goes_before_the_tasks() {
    let app = TestApp::with(&["scripted"])
        .set("tasks.raise.attempts = 2")
        .set("tasks.raise.retry_on = ['TaskPluginTriggerError']")
        .set("tasks.raise.retry_delay = 100")
        .start()
        .await;
    let begun = Instant::now();
    assert_eq!((app.raise().await.attempt, begun.elapsed().as_secs()), (2, 100));
    let app = TestApp::with(&["scripted"])
        .set("plugins.scripted.config.directive = { directive = 'retry_after', seconds = 7 }")
        .set("tasks.raise.attempts = 2")
        .set("tasks.raise.retry_on = []")
        .set("tasks.raise.retry_delay = 100")
        .start()
        .await;
    let begun = Instant::now();
    assert_eq!((app.raise().await.attempt, begun.elapsed().as_secs()), (2, 7));
    assert_eq!(app.place.events("scripted").iter().filter(|event| event["trigger"] == ERROR).count(), 2);
}

#[tokio::test]
async fn an_error_that_a_plugin_replaced_is_tried_again_as_what_it_is_now() {
    for (kind, attempt) in [("ConnectionError", 3), ("ValueError", 1)] {
        let report = TestApp::with(&["scripted"])
            .set(format!(
                "plugins.scripted.config.directive = {{ directive = 'replace_error', error = {{ type = '{kind}', message = 'm' }} }}"
            ))
            .set("tasks.raise.attempts = 3")
            .set("tasks.raise.retry_on = ['ConnectionError']")
            .start()
            .await
            .raise()
            .await;
        assert_eq!((report.attempt, &*report.error.as_ref().expect("an error").kind), (attempt, kind));
        assert_eq!(report.original_error.expect("the original").kind, "TaskPluginTriggerError");
        assert_eq!(report.resolved_by.expect("a plugin").outcome, qtasks_host::trigger::OutcomeKind::ReplaceError);
    }
}

#[tokio::test]
async fn an_attempt_keeps_who_was_asked_about_its_error_and_nobody_else() {
    let app = TestApp::with(&["scripted"]).answer("scripted", "task_executor_args_replace", "{}");
    let report = app.set("tasks.raise.attempts = 2").start().await.raise().await;
    let asked = |decisions: &[qtasks_host::trigger::Decision]| decisions.iter().map(|one| one.trigger.name()).collect::<Vec<_>>();
    assert_eq!(asked(&report.history[0].decisions), [ERROR]);
    assert_eq!(asked(&report.decisions), ["task_executor_args_replace", ERROR], "of the last one all is told");
}

#[tokio::test]
async fn a_cancellation_is_never_tried_again() {
    let app = TestApp::with(&["scripted"])
        .set("tasks.cancel_me.attempts = 3")
        .set("tasks.cancel_me.retry_on = ['TaskCancelError', 'BaseException']")
        .start()
        .await;
    let report = app.run("cancel_me", json!([]), json!({})).await;
    assert_eq!((report.status, report.attempt), (Status::Cancel, 1));
}

#[tokio::test(start_paused = true)]
async fn a_worker_keeps_the_delay_in_its_broker() {
    let runs = Arc::default();
    let app = TestApp::with(&[]).set("tasks.fail.attempts = 3").set("tasks.fail.retry_delay = 60").start_with(fails(&runs)).await;
    let task = qtasks_host::Task::new("fail").and_then(|task| task.with_arguments(["ValueError"], json!({}))).expect("a task");
    let begun = Instant::now();
    let reports = app.work_through([task]).await;
    assert_eq!((reports[0].attempt, runs.load(Ordering::Relaxed)), (3, 3));
    assert_says(&reports[0].error.as_ref().expect("an error").message, &["as told"]);
    // What is due is kept in Unix seconds, by the wall clock, which is not paused.
    assert!((115..=121).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}
