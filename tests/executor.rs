//! One run of one task: its steps in order, its limits, what is intercepted, and what answers and directives make of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qtasks_host::task::{BoxFuture, Middleware};
use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{Status, Task, TaskContext, TaskError};
use qtasks_plugin_api::bounds::MAX_DEPTH;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::app::{Started, asked};
use crate::support::{ERROR, TestApp, assert_says, returning, value_of};

fn triggers(app: &Started, plugin: &str) -> Vec<String> {
    app.place.events(plugin).iter().map(|event| event["trigger"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn a_success_fires_every_step_in_order() {
    let app = TestApp::with(&["global_recorder"])
        .start_with(|app| {
            app.inline_task("add", |_ctx, (a, b): (i64, i64), (): ()| Ok::<_, TaskError>(a + b));
        })
        .await;
    assert_eq!(returning(&app.run("add", json!([1, 2]), json!({})).await), "3");
    let executor = json!({"name": "TaskExecutor", "attempt": 1, "attempts": 5});
    let events: Vec<(String, Value)> = app
        .place
        .events("global-recorder")
        .into_iter()
        .map(|mut event| {
            assert_eq!(event["kwargs"]["task_executor"], executor, "{event}");
            let kwargs = event["kwargs"].as_object_mut().expect("kwargs are an object");
            kwargs.remove("task_executor");
            if let Some(task) = kwargs.get_mut("task_broker") {
                (task["uuid"], task["created_at"]) = (Value::Null, Value::Null);
            }
            (event["trigger"].as_str().expect("a name").to_owned(), event["kwargs"].take())
        })
        .collect();
    let expected = [
        ("task_executor_middlewares_execute", json!({"middlewares_before": []})),
        ("task_executor_args_replace", json!({"args": [1, 2], "kw": {}, "args_info": []})),
        ("task_executor_before_execute", json!({})),
        ("task_executor_run_task", json!({"result": 3})),
        ("task_executor_after_execute", json!({})),
        ("task_executor_after_execute_result_replace", json!({"result": 3})),
        ("task_executor_middlewares_execute", json!({"middlewares_after": []})),
        ("task_executor_decode", json!({"result": 3})),
        (
            "task_executor_task_close",
            json!({
                "task_func": {"name": "add", "provided_by": "application"},
                "task_broker": {"uuid": null, "task_name": "add", "priority": 0, "args": [1, 2], "kwargs": {}, "created_at": null},
            }),
        ),
    ];
    assert_eq!(events, expected.map(|(trigger, kwargs)| (trigger.to_owned(), kwargs)));
}

#[tokio::test]
async fn a_resolved_error_goes_on_through_the_later_steps_like_a_result() {
    let app = TestApp::with(&["global_recorder", "documented_example", "penguins"]).start().await;
    let bird = json!({
        "species": "Gentoo", "bill_length_mm": "NA", "bill_depth_mm": 1, "flipper_length_mm": 1, "body_mass_g": 1,
    });
    assert_eq!(returning(&app.run("penguin_ratios", json!([]), bird).await), "123");
    assert_eq!(
        triggers(&app, "global-recorder"),
        [
            "task_executor_middlewares_execute",
            "task_executor_args_replace",
            "task_executor_before_execute",
            ERROR,
            "task_executor_after_execute",
            "task_executor_after_execute_result_replace",
            "task_executor_middlewares_execute",
            "task_executor_decode",
            "task_executor_task_close",
        ]
    );
    assert_eq!(app.place.event("global-recorder", "task_executor_decode")["result"], 123);
}

#[tokio::test]
async fn an_error_that_nobody_answers_ends_the_steps_and_still_closes_the_task() {
    let app = TestApp::with(&["scripted"]).start().await;
    assert_eq!(app.raise().await.status, Status::Error);
    assert_eq!(triggers(&app, "scripted")[2..], ["task_executor_before_execute", ERROR, "task_executor_task_close"]);
}

/// Tasks that fail in every way but a plugin error.
fn register_failures(app: &mut qtasks_host::App) {
    app.task("pending", async |_ctx: TaskContext, (): (), (): ()| {
        std::future::pending::<()>().await;
        Ok::<_, TaskError>(())
    });
    app.inline_task("panic_inline", |_ctx, (): (), (): ()| -> Result<(), TaskError> { panic!("inline, as told") });
    app.blocking_task("panic_blocking", |_ctx, (): (), (): ()| -> Result<(), TaskError> { panic!("blocking, as told") });
    app.task("panic_async", async |_ctx: TaskContext, (): (), (): ()| -> Result<(), TaskError> {
        tokio::task::yield_now().await;
        panic!("async, as told")
    });
    app.inline_task("parse", |_ctx, (text,): (String,), (): ()| Ok::<_, TaskError>(text.parse::<i32>()?));
}

#[tokio::test]
async fn more_than_max_time_is_a_timeout_error() {
    let app = TestApp::with(&[]).set("tasks.pending.max_time = 0.05").start_with(register_failures).await;
    let error = app.run("pending", json!([]), json!({})).await.error.expect("an error");
    assert_eq!((&*error.kind, error.message.as_str()), ("TimeoutError", "time limit exceeded for task pending: 0.05 s"));
}

#[tokio::test]
async fn a_tasks_own_max_time_goes_before_its_settings_and_these_before_the_general_one() {
    let app = TestApp::with(&[]).set("max_time = 0.03").start_with(register_failures).await;
    let said = |report: qtasks_host::TaskReport| report.error.expect("an error").message;
    assert_says(&said(app.run("pending", json!([]), json!({})).await), &["0.03 s"]);
    assert_says(&said(app.run_line(r#"{"task": "pending", "max_time": 0.01}"#).await), &["0.01 s"]);
    let app = TestApp::with(&[]).set("max_time = 0.03").set("tasks.pending.max_time = 0.02").start_with(register_failures).await;
    assert_says(&said(app.run("pending", json!([]), json!({})).await), &["0.02 s"]);
    assert_says(&said(app.run_line(r#"{"task": "pending", "max_time": 0.01}"#).await), &["0.01 s"]);
}

#[tokio::test]
async fn a_panic_in_any_kind_of_closure_is_an_error_of_type_panic() {
    let app = TestApp::with(&[]).start_with(register_failures).await;
    for way in ["inline", "blocking", "async"] {
        let report = app.run(&format!("panic_{way}"), json!([]), json!({})).await;
        let error = report.error.expect("an error");
        assert_eq!((report.status, &*error.kind), (Status::Error, "Panic"));
        assert_eq!(error.message, format!("{way}, as told"));
        assert_says(&error.location.expect("a place"), &["executor.rs:"]);
    }
}

#[tokio::test]
async fn a_panic_in_a_plugins_task_is_an_error_of_type_panic() {
    let app = TestApp::with(&["panics_in_task"]).start().await;
    let error = app.run("panic", json!([]), json!({})).await.error.expect("an error");
    assert_eq!((&*error.kind, error.message.as_str()), ("Panic", "no result in attempt 1"));
    assert_says(&error.location.expect("a place"), &["panics_in_task.rs:"]);
}

#[tokio::test]
async fn by_default_the_plugins_are_asked_about_plugin_errors_only() {
    let app = TestApp::with(&["documented_example"]).set("max_time = 0.05").start_with(register_failures).await;
    for (task, args) in [("pending", json!([])), ("panic_inline", json!([])), ("panic_async", json!([])), ("parse", json!(["x"]))]
    {
        let report = app.run(task, args, json!({})).await;
        assert_eq!((report.status, report.decisions.len()), (Status::Error, 0), "{task}");
    }
}

#[tokio::test]
async fn with_intercept_all_the_plugins_are_asked_about_every_failure_by_its_type() {
    let app = TestApp::with(&["documented_example", "global_recorder"])
        .set("intercept = 'all'")
        .set("max_time = 0.05")
        .start_with(register_failures)
        .await;
    let failures = [
        ("pending", json!([]), "TimeoutError"),
        ("panic_inline", json!([]), "Panic"),
        ("panic_blocking", json!([]), "Panic"),
        ("panic_async", json!([]), "Panic"),
        ("parse", json!(["x"]), "ParseIntError"),
        ("parse", json!([1]), "ArgumentError"),
    ];
    for (task, args, _) in &failures {
        assert_eq!(returning(&app.run(task, args.clone(), json!({})).await), "123", "{task}");
    }
    let kinds: Vec<Value> = app
        .place
        .events("global-recorder")
        .into_iter()
        .filter(|event| event["trigger"] == ERROR)
        .map(|event| event["kwargs"]["e"]["type"].clone())
        .collect();
    assert_eq!(kinds, failures.map(|(.., kind)| kind));
}

#[tokio::test]
async fn intercept_may_be_set_for_one_task() {
    let app = TestApp::with(&["documented_example"]).set("tasks.parse.intercept = 'all'").start_with(register_failures).await;
    assert_eq!(returning(&app.run("parse", json!(["x"]), json!({})).await), "123");
    assert_eq!(app.run("panic_inline", json!([]), json!({})).await.status, Status::Error);
    let app = TestApp::with(&["documented_example"])
        .set("intercept = 'all'")
        .set("tasks.parse.intercept = 'plugin-errors'")
        .start_with(register_failures)
        .await;
    assert_eq!(app.run("parse", json!(["x"]), json!({})).await.status, Status::Error);
    assert_eq!(returning(&app.run("panic_inline", json!([]), json!({})).await), "123");
}

fn directive(json: &str) -> TestApp {
    TestApp::with(&["scripted"]).set(format!("plugins.scripted.config.directive = {json}"))
}

#[tokio::test]
async fn retry_after_runs_the_task_again_until_it_ends() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let app = directive("{ directive = 'retry_after', seconds = 0 }")
        .start_with(move |app| {
            app.inline_task("third_time", move |ctx, (): (), (): ()| {
                counted.fetch_add(1, Ordering::Relaxed);
                if ctx.attempt() < 3 { Err(TaskError::from(ctx.plugin_error(json!({})))) } else { Ok(ctx.attempt()) }
            });
        })
        .await;
    let report = app.run("third_time", json!([]), json!({})).await;
    assert_eq!((returning(&report), report.attempt, runs.load(Ordering::Relaxed)), ("3", 3, 3));
    let outcomes: Vec<_> = report.history.iter().map(|before| (before.attempt, before.decisions[0].outcome)).collect();
    assert_eq!(outcomes, [(1, OutcomeKind::RetryAfter), (2, OutcomeKind::RetryAfter)]);
    let attempts: Vec<Value> = app
        .place
        .events("scripted")
        .into_iter()
        .filter(|event| event["trigger"] == ERROR)
        .map(|event| event["kwargs"]["task_executor"]["attempt"].clone())
        .collect();
    assert_eq!(attempts, [1, 2]);
}

#[tokio::test]
async fn with_no_attempt_left_the_original_error_stands() {
    let app = directive("{ directive = 'retry_after', seconds = 0 }").set("max_attempts = 2").start().await;
    let report = app.raise().await;
    assert_eq!(asked(&report), [("scripted", OutcomeKind::RetryAfter)]);
    let report = value_of(&report);
    assert_eq!((&report["status"], &report["attempt"]), (&json!("error"), &json!(2)));
    assert_eq!(report["error"]["message"], "sea is frozen");
    assert_eq!(report.get("resolved_by"), None);
}

#[tokio::test(start_paused = true)]
async fn retry_after_waits_as_long_as_asked_and_no_longer_than_the_cap() {
    for (seconds, cap, waited) in [("30", "3600", 30), ("1e9", "7", 7), ("1e300", "7", 7)] {
        let app = directive(&format!("{{ directive = 'retry_after', seconds = {seconds} }}"))
            .set("max_attempts = 2")
            .set(format!("max_retry_delay = {cap}"))
            .start()
            .await;
        let begun = tokio::time::Instant::now();
        assert_eq!(app.raise().await.attempt, 2);
        // The clock is tokio's paused one: it moves by the delay and by nothing else.
        assert_eq!(begun.elapsed().as_secs(), waited);
    }
}

#[tokio::test]
async fn cancel_ends_the_task_with_the_reason_and_the_original_error() {
    let app = directive("{ directive = 'cancel', reason = 'the sea is frozen' }").start().await;
    let report = value_of(&app.raise().await);
    assert_eq!((&report["status"], &report["cancel_reason"]), (&json!("cancel"), &json!("the sea is frozen")));
    assert_eq!(report["original_error"]["message"], "sea is frozen");
    assert_eq!(report["resolved_by"], json!({"plugin": "scripted", "version": "0.1.0", "outcome": "cancel"}));
}

#[tokio::test]
async fn replace_error_lets_another_error_go_on_and_keeps_the_original() {
    let app =
        directive("{ directive = 'replace_error', error = { type = 'SeaFrozen', message = 'come back in May' } }").start().await;
    let report = value_of(&app.raise().await);
    assert_eq!(report["status"], "error");
    assert_eq!(report["error"], json!({"type": "SeaFrozen", "message": "come back in May", "args": [], "kwargs": {}}));
    assert_eq!(report["original_error"]["type"], "TaskPluginTriggerError");
}

#[tokio::test]
async fn dead_letter_sets_the_task_aside_with_its_error() {
    let app = directive("{ directive = 'dead_letter', reason = 'for a person' }").start().await;
    let report = value_of(&app.raise().await);
    assert_eq!((&report["status"], &report["dead_letter"]), (&json!("error"), &json!("for a person")));
    assert_eq!((&report["error"], &report["error"]["message"]), (&report["original_error"], &json!("sea is frozen")));
}

#[tokio::test]
async fn a_later_answer_replaces_a_directive_and_a_later_directive_an_answer() {
    let app = directive("{ directive = 'cancel', reason = 'no' }");
    app.place.copy("scripted_b");
    let app = app.answer("scripted-b", ERROR, "5").start().await;
    assert_eq!(returning(&app.raise().await), "5");
    let app = directive("{ directive = 'cancel', reason = 'no' }").set("plugins.scripted.priority = -1");
    app.place.copy("scripted_b");
    let app = app.answer("scripted-b", ERROR, "5").start().await;
    assert_eq!(app.raise().await.status, Status::Cancel);
}

#[tokio::test]
async fn attempts_try_any_error_again_without_a_plugin() {
    for settings in [true, false] {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        let app = TestApp::with(&[]);
        let app = if settings { app.set("tasks.fails.attempts = 3") } else { app };
        let app = app
            .start_with(move |app| {
                app.inline_task("fails", move |_ctx, (): (), (): ()| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    Err::<(), _>("always")
                });
            })
            .await;
        let line = if settings { r#"{"task": "fails"}"# } else { r#"{"task": "fails", "attempts": 3}"# };
        let report = app.run_line(line).await;
        assert_eq!((report.status, report.attempt, runs.load(Ordering::Relaxed)), (Status::Error, 3, 3));
        let own = app.run_line(r#"{"task": "fails", "attempts": 2}"#).await;
        assert_eq!((own.status, own.attempt), (Status::Error, 2), "what a task says goes before its settings");
    }
}

#[tokio::test]
async fn partial_answers_replace_only_the_arguments_they_name() {
    const ARGS: &str = "task_executor_args_replace";
    for (answer, result) in [
        (r#"{"args": [7]}"#, r#"{"args":[7],"kwargs":{"b":2}}"#),
        (r#"{"kw": {"c": 3}}"#, r#"{"args":[1],"kwargs":{"c":3}}"#),
        (r#"{"args": [], "kw": {}}"#, r#"{"args":[],"kwargs":{}}"#),
        ("{}", r#"{"args":[1],"kwargs":{"b":2}}"#),
    ] {
        let app = TestApp::with(&["scripted"]).answer("scripted", ARGS, answer).start().await;
        assert_eq!(returning(&app.run("echo", json!([1]), json!({"b": 2})).await), result, "{answer}");
    }
}

#[tokio::test]
async fn replaced_arguments_of_another_shape_are_left_out_and_the_task_runs_with_its_own() {
    for answer in [r#"{"args": {}}"#, r#"{"kw": 3}"#, r#"{"args": [7], "kw": []}"#] {
        let app = TestApp::with(&["scripted"]).answer("scripted", "task_executor_args_replace", answer).start().await;
        let report = app.run("echo", json!([1]), json!({"b": 2})).await;
        assert_eq!(returning(&report), r#"{"args":[1],"kwargs":{"b":2}}"#, "{answer}");
    }
}

#[tokio::test]
async fn the_result_may_be_replaced_after_the_run_after_the_execution_and_at_decoding() {
    for trigger in ["task_executor_run_task", "task_executor_after_execute_result_replace", "task_executor_decode"] {
        for (answer, result) in [("null", "null"), (r#"{"result": "other"}"#, r#""other""#)] {
            let app = TestApp::with(&["scripted"]).answer("scripted", trigger, answer).start().await;
            let report = app.run("echo", json!([1]), json!({})).await;
            assert_eq!(returning(&report), result, "{trigger}");
        }
    }
}

/// Marks the task on its way in and its result on the way out; fails where it is told to.
struct Marks(&'static str, Option<&'static str>);

impl Middleware for Marks {
    fn name(&self) -> &str {
        self.0
    }

    fn before<'a>(&'a self, task: &'a mut Task) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(async move {
            if self.1 == Some("before") {
                return Err("the middleware fails before".into());
            }
            let mut args: Vec<Value> = serde_json::from_str(task.args.get())?;
            args.push(self.0.into());
            *task = task.clone().with_arguments(args, Arc::clone(&task.kwargs))?;
            Ok(())
        })
    }

    fn after<'a>(&'a self, _task: &'a Task, returning: &'a mut Box<RawValue>) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(async move {
            if self.1 == Some("after") {
                return Err(TaskError::from(qtasks_host::TaskPluginTriggerError::new("the middleware fails after")));
            }
            *returning = RawValue::from_string(format!("[{:?}, {returning}]", self.0))?;
            Ok(())
        })
    }
}

#[tokio::test]
async fn middlewares_run_around_the_task_in_the_order_in_which_they_were_added() {
    let app = TestApp::with(&["global_recorder"])
        .start_with(|app| {
            app.middleware(Marks("outer", None)).middleware(Marks("inner", None));
            app.inline_task("echo", |_ctx, args: Vec<Value>, (): ()| Ok::<_, TaskError>(args));
        })
        .await;
    let report = app.run("echo", json!([1]), json!({})).await;
    assert_eq!(returning(&report), r#"["inner", ["outer", [1,"outer","inner"]]]"#);
    let fired: Vec<Value> = app
        .place
        .events("global-recorder")
        .into_iter()
        .filter(|event| event["trigger"] == "task_executor_middlewares_execute")
        .map(|mut event| {
            event["kwargs"].as_object_mut().expect("an object").remove("task_executor");
            event["kwargs"].take()
        })
        .collect();
    assert_eq!(fired, [json!({"middlewares_before": ["outer", "inner"]}), json!({"middlewares_after": ["outer", "inner"]})]);
}

#[tokio::test]
async fn an_error_in_a_middleware_is_the_tasks_error_and_no_plugin_is_asked() {
    for when in ["before", "after"] {
        let app = TestApp::with(&["documented_example"])
            .set("intercept = 'all'")
            .start_with(|app| {
                app.middleware(Marks("failing", Some(when)));
                app.inline_task("echo", |_ctx, args: Vec<Value>, (): ()| Ok::<_, TaskError>(args));
            })
            .await;
        let report = app.run("echo", json!([]), json!({})).await;
        assert_eq!((report.status, report.decisions.len()), (Status::Error, 0));
        assert_says(&report.error.expect("an error").message, &["the middleware fails", when]);
    }
}

/// Nests a result one level deeper than it was.
struct Nests;

impl Middleware for Nests {
    fn name(&self) -> &str {
        "nests"
    }

    fn after<'a>(&'a self, _task: &'a Task, returning: &'a mut Box<RawValue>) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(async move {
            *returning = RawValue::from_string(format!("[{returning}]"))?;
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_result_that_a_middleware_makes_has_the_bounds_of_every_result() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.middleware(Nests);
            app.inline_task("deep", |_ctx, (depth,): (usize,), (): ()| {
                Ok::<_, TaskError>(RawValue::from_string("[".repeat(depth) + &"]".repeat(depth))?)
            });
        })
        .await;
    assert_eq!(app.run("deep", json!([MAX_DEPTH - 1]), json!({})).await.status, Status::Success);
    let error = app.run("deep", json!([MAX_DEPTH]), json!({})).await.error.expect("an error");
    assert_eq!(error.kind, "ResultError");
    assert_says(&error.message, &["the middleware nests made a result that is JSON nested deeper than"]);
}

#[tokio::test]
async fn an_unknown_task_names_the_nearest() {
    let app = TestApp::with(&["penguins"]).start().await;
    let error = app.run("penguin_ratio", json!([]), json!({})).await.error.expect("an error");
    assert_eq!(error.kind, "UnknownTask");
    assert_eq!(error.message, r#"nobody provides a task "penguin_ratio"; did you mean `penguin_ratios`?"#);
}

#[tokio::test]
async fn a_task_that_cancels_itself_ends_as_cancel_and_no_plugin_is_asked() {
    let app = TestApp::with(&["scripted", "documented_example"])
        .set("intercept = 'all'")
        .set("tasks.cancel_me.attempts = 3")
        .start_with(|app| {
            app.task("cancel_here", async |ctx: TaskContext, (): (), (): ()| Err::<(), _>(ctx.cancel("no longer wanted")));
        })
        .await;
    for task in ["cancel_me", "cancel_here"] {
        let report = app.run(task, json!([]), json!({})).await;
        assert_eq!((report.status, report.attempt, report.decisions.len()), (Status::Cancel, 1, 0), "{task}");
        assert_eq!(report.cancel_reason.as_deref(), Some("no longer wanted"));
    }
    assert!(!triggers(&app, "scripted").iter().any(|trigger| trigger == ERROR));
}

#[tokio::test]
async fn settings_for_a_task_that_nobody_provides_name_the_nearest() {
    let (_place, started) = TestApp::with(&["penguins"]).set("tasks.penguin_ratio.attempts = 2").try_start_with(|_| ()).await;
    let error = started.expect_err("the application does not start").to_string();
    assert_says(&error, &["[tasks.penguin_ratio]: nobody provides a task of this name", "did you mean `penguin_ratios`?"]);
}

#[tokio::test]
async fn each_attempt_begins_with_the_arguments_that_the_task_came_with() {
    let seen: Arc<std::sync::Mutex<Vec<Vec<Value>>>> = Arc::default();
    let sees = Arc::clone(&seen);
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.middleware(Marks("mark", None));
            app.inline_task("fail", move |_ctx, args: Vec<Value>, (): ()| {
                sees.lock().expect("nobody panics").push(args);
                Err::<(), _>(TaskError::from("again"))
            });
        })
        .await;
    let report = app.run_line(r#"{"task": "fail", "args": [1], "attempts": 3}"#).await;
    assert_eq!((report.status, report.attempt), (Status::Error, 3));
    assert_eq!(*seen.lock().expect("nobody panics"), vec![vec![json!(1), json!("mark")]; 3]);
}

/// Panics where nobody guards it.
struct Panics;

impl Middleware for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    fn before<'a>(&'a self, _task: &'a mut Task) -> BoxFuture<'a, Result<(), TaskError>> {
        panic!("the middleware panics")
    }
}

#[tokio::test]
async fn a_panic_of_a_middleware_is_the_error_of_its_task_and_the_worker_goes_on() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.middleware(Panics);
            app.inline_task("add", |_ctx, (a, b): (i64, i64), (): ()| Ok::<_, TaskError>(a + b));
        })
        .await;
    let mut reports = app.work_through((0..3).map(|_| Task::new("add").expect("a name"))).await.into_iter();
    for _ in 0..3 {
        let error = reports.next().expect("every task has its report").error.expect("an error");
        assert_eq!((&*error.kind, &*error.message), ("Panic", "the middleware panics"));
    }
}
