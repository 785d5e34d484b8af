//! The way of one event through several plugins: order, chaining, which answer counts, and failures that stop nothing.

use std::sync::Arc;

use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{StartError, Status};
use serde_json::{Value, json};

use crate::support::app::asked;
use crate::support::{ERROR, TestApp, assert_says, returning, value_of};

use OutcomeKind::{Failed, Pass, Result as Answered};

/// Three plugins that handle every trigger, and one task that raises.
fn three() -> TestApp {
    TestApp::with(&["scripted", "scripted_b", "scripted_c"])
}

fn names(report: &qtasks_host::TaskReport) -> Vec<&str> {
    asked(report).into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn plugins_of_one_priority_are_asked_by_name() {
    let app = three().start().await;
    assert_eq!(names(&app.raise().await), ["scripted", "scripted-b", "scripted-c"]);
}

#[tokio::test]
async fn a_higher_priority_is_asked_earlier_and_equal_ones_stay_by_name() {
    let app = three().set("plugins.scripted-c.priority = 7").set("plugins.scripted.priority = -1").start().await;
    assert_eq!(names(&app.raise().await), ["scripted-c", "scripted-b", "scripted"]);
}

#[tokio::test]
async fn plugins_that_name_the_trigger_are_asked_before_global_ones_of_any_priority() {
    let app = TestApp::with(&["global_recorder", "documented_example", "same_name_a"])
        .set("plugins.global-recorder.priority = 1000")
        .set("plugins.documented-example.priority = -1000")
        .start_with(|app| {
            app.inline_task("raise", |ctx, (): (), (): ()| Err::<(), _>(ctx.plugin_error(json!({}))));
        })
        .await;
    let report = app.run("raise", json!([]), json!({})).await;
    assert_eq!(names(&report), ["same-name", "documented-example", "global-recorder"]);
}

#[tokio::test]
async fn a_plugin_set_to_global_is_asked_after_those_that_name_the_trigger() {
    let app = TestApp::with(&["scripted", "documented_example", "same_name_a"])
        .set("plugins.documented-example.triggers = 'global'")
        .set("plugins.documented-example.priority = 1000")
        .start()
        .await;
    assert_eq!(names(&app.raise().await), ["same-name", "documented-example", "scripted"]);
}

#[tokio::test]
async fn a_global_plugin_that_names_triggers_in_its_settings_is_asked_for_these_alone_and_among_the_named() {
    let app = TestApp::with(&["scripted", "scripted_b", "same_name_a"])
        .set(format!("plugins.scripted-b.triggers = ['{ERROR}']"))
        .set("plugins.scripted-b.priority = 1")
        .start()
        .await;
    assert_eq!(names(&app.raise().await), ["scripted-b", "same-name", "scripted"]);
    let triggers: Vec<Value> = app.place.events("scripted-b").into_iter().map(|mut event| event["trigger"].take()).collect();
    assert_eq!(triggers, [ERROR]);
    assert!(app.place.events("scripted").len() > 1, "the other one is still asked for everything");
}

#[tokio::test]
async fn a_trigger_that_a_plugin_does_not_handle_is_no_setting_for_it() {
    for (setting, value) in [("triggers", "['worker_start']"), ("answers", "{ worker_start = 'first' }")] {
        let app = TestApp::with(&["documented_example"]).set(format!("plugins.documented-example.{setting} = {value}"));
        let (_place, started) = app.try_start_with(|_| ()).await;
        let error = started.expect_err("the application does not start");
        assert!(matches!(error, StartError::Registry(_)), "{error:?}");
        let said = format!("[plugins.documented-example] {setting} names worker_start, which the plugin does not handle");
        assert_says(&error.to_string(), &[&said, ERROR]);
    }
    let near = "task_executor_before_execute";
    let app = TestApp::with(&["documented_example"]).set(format!("plugins.documented-example.triggers = ['{near}']"));
    let error = app.try_start_with(|_| ()).await.1.expect_err("the application does not start").to_string();
    assert_says(&error, &[&format!("triggers names {near}"), &format!("did you mean `{ERROR}`?")]);
}

#[tokio::test]
async fn an_answers_setting_for_a_trigger_that_the_plugin_is_not_asked_for_is_none() {
    let app = TestApp::with(&["global_recorder"])
        .set("plugins.global-recorder.triggers = ['worker_start']")
        .set("plugins.global-recorder.answers = { worker_stop = 'first' }");
    let (_place, started) = app.try_start_with(|_| ()).await;
    let error = started.expect_err("the application does not start").to_string();
    assert_eq!(
        error,
        "[plugins.global-recorder] answers names worker_stop, which `triggers` leaves out; add it there, or remove it here"
    );
}

#[tokio::test]
async fn a_retry_that_no_attempt_is_left_for_neither_takes_an_answer_away_nor_ends_the_chain() {
    let retrying = || {
        TestApp::with(&["scripted", "scripted_b", "scripted_c"])
            .set("plugins.scripted-b.config.directive = { directive = 'retry_after', seconds = 0 }")
            .set("max_attempts = 1")
    };
    let app = retrying().answer("scripted", ERROR, "1").start().await;
    let report = app.raise().await;
    assert_eq!(returning(&report), "1");
    assert_eq!(asked(&report), [("scripted", Answered), ("scripted-b", OutcomeKind::RetryAfter), ("scripted-c", Pass)]);
    assert_eq!(report.resolved_by.expect("somebody answered").by.name.as_ref(), "scripted");
    assert_eq!(app.place.event("scripted-c", ERROR)["result"], json!(1));
    let app = retrying().answer("scripted-c", ERROR, "3").set(format!("triggers.{ERROR}.answers = 'first'")).start().await;
    assert_eq!(returning(&app.raise().await), "3");
}

#[tokio::test]
async fn a_plugin_that_takes_the_name_of_the_applications_task_is_refused_alone() {
    let own = |app: &mut qtasks_host::App| {
        app.inline_task("echo", |_ctx, (): (), (): ()| Ok::<_, std::fmt::Error>("own"));
    };
    let app = TestApp::with(&["scripted", "documented_example"]).start_with(own).await;
    assert_says(&app.refusal("libscripted.so", "task-taken"), &["it provides the task echo, which the application"]);
    assert_eq!(returning(&app.run("echo", json!([]), json!({})).await), r#""own""#);
}

#[tokio::test]
async fn the_last_answer_wins() {
    let app = three().answer("scripted", ERROR, "1").answer("scripted-b", ERROR, "2").start().await;
    let report = app.raise().await;
    assert_eq!(returning(&report), "2");
    assert_eq!(asked(&report), [("scripted", Answered), ("scripted-b", Answered), ("scripted-c", Pass)]);
    assert_eq!(report.resolved_by.expect("somebody answered").by.name.as_ref(), "scripted-b");
}

#[tokio::test]
async fn first_stops_at_the_first_answer() {
    let app = three()
        .answer("scripted-b", ERROR, "2")
        .answer("scripted-c", ERROR, "3")
        .set(format!("triggers.{ERROR}.answers = 'first'"))
        .start()
        .await;
    let report = app.raise().await;
    assert_eq!(returning(&report), "2");
    assert_eq!(asked(&report), [("scripted", Pass), ("scripted-b", Answered)]);
}

#[tokio::test]
async fn all_collects_the_answers_in_order() {
    let app = three()
        .answer("scripted", ERROR, "null")
        .answer("scripted-b", ERROR, r#"{"result": [2]}"#)
        .answer("scripted-c", ERROR, "3")
        .set(format!("triggers.{ERROR}.answers = 'all'"))
        .start()
        .await;
    assert_eq!(returning(&app.raise().await), "[null,[2],3]");
    assert_eq!(app.place.event("scripted-c", ERROR)["result"], json!([null, [2]]));
}

#[tokio::test]
async fn a_plugins_own_answers_setting_goes_before_the_triggers() {
    let app = three()
        .answer("scripted", ERROR, "1")
        .answer("scripted-b", ERROR, "2")
        .answer("scripted-c", ERROR, "3")
        .set(format!("triggers.{ERROR}.answers = 'return_last'"))
        .set(format!("plugins.scripted-b.answers = {{ {ERROR} = 'first' }}"))
        .start()
        .await;
    let report = app.raise().await;
    assert_eq!((returning(&report), names(&report)), ("2", vec!["scripted", "scripted-b"]));
}

#[tokio::test]
async fn the_next_plugin_receives_the_result_of_the_one_before() {
    let app = three().answer("scripted", ERROR, r#"{"bird": null}"#).answer("scripted-b", ERROR, "0").start().await;
    assert_eq!(returning(&app.raise().await), "0");
    let seen = |plugin| app.place.event(plugin, ERROR);
    assert_eq!(seen("scripted").get("result"), None);
    assert_eq!(seen("scripted-b")["result"], json!({"bird": null}));
    assert_eq!(seen("scripted-c")["result"], json!(0));
    assert_eq!(seen("scripted-c")["e"], seen("scripted")["e"], "the rest of the event stays as it was");
}

#[tokio::test]
async fn a_plugin_that_passes_leaves_the_result_of_the_one_before_to_the_next() {
    let app = three().answer("scripted", ERROR, "[1]").start().await;
    assert_eq!(returning(&app.raise().await), "[1]");
    assert_eq!(app.place.event("scripted-c", ERROR)["result"], json!([1]));
}

#[tokio::test]
async fn a_failing_plugin_neither_stops_the_chain_nor_replaces_the_error() {
    let app = TestApp::with(&["scripted", "fails_in_handler", "panics_in_handler", "panics_in_async_handler"]).start().await;
    let report = app.raise().await;
    assert_eq!(
        asked(&report),
        [("fails-in-handler", Failed), ("panics-in-async-handler", Failed), ("panics-in-handler", Failed), ("scripted", Pass)]
    );
    let report = value_of(&report);
    assert_eq!((&report["status"], &report["error"]["message"]), (&json!("error"), &json!("sea is frozen")));
    assert_eq!(report.get("resolved_by"), None);
}

#[tokio::test]
async fn an_answer_survives_the_failures_around_it() {
    let app = TestApp::with(&["scripted", "scripted_b", "scripted_c"])
        .set("plugins.scripted.config.fail = true")
        .answer("scripted-b", ERROR, "5")
        .set("plugins.scripted-c.config.fail = true")
        .start()
        .await;
    let report = app.raise().await;
    assert_eq!((report.status, returning(&report)), (Status::Success, "5"));
    let (about_the_error, elsewhere): (Vec<_>, Vec<_>) =
        report.decisions.iter().partition(|decision| decision.trigger.name() == ERROR);
    let outcomes: Vec<_> = about_the_error.iter().map(|decision| (&*decision.by.name, decision.outcome)).collect();
    assert_eq!(outcomes, [("scripted", Failed), ("scripted-b", Answered), ("scripted-c", Failed)]);
    // The two that fail everywhere are told at every other step as well.
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|decision| decision.outcome == Failed));
}

#[tokio::test]
async fn a_failure_is_told_with_its_message_causes_and_place() {
    let app = TestApp::with(&["scripted", "fails_in_handler", "panics_in_handler", "panics_in_async_handler"]).start().await;
    let report = value_of(&app.raise().await);
    let failure = |index: usize| &report["decisions"][index]["failure"];
    assert_eq!((&failure(0)["type"], &failure(0)["message"]), (&json!("BadFallback"), &json!("the fallback is not a number")));
    assert_eq!(failure(0)["causes"], json!(["invalid digit found in string"]));
    for (index, file) in [(1, "panics_in_async_handler.rs:"), (2, "panics_in_handler.rs:")] {
        assert_eq!((&failure(index)["type"], &failure(index)["message"]), (&json!("Panic"), &json!("no answer for raise")));
        assert_says(failure(index)["location"].as_str().expect("a place"), &[file]);
    }
}

#[tokio::test]
async fn a_panic_behind_the_first_await_is_caught_as_well() {
    let app = TestApp::with(&["panics_in_async_handler", "documented_example"])
        .start_with(|app| {
            app.inline_task("later", |ctx, (): (), (): ()| Err::<(), _>(ctx.plugin_error(json!({}))));
        })
        .await;
    for _ in 0..2 {
        let report = app.run("later", json!([]), json!({})).await;
        assert_eq!(returning(&report), "123");
        assert_says(
            &value_of(&report)["decisions"][1]["failure"].to_string(),
            &["no answer for later", "panics_in_async_handler.rs:"],
        );
    }
}

#[tokio::test]
async fn beyond_its_deadline_a_plugin_has_failed_and_the_next_one_is_asked() {
    for hung in ["hangs_in_handler", "never_ready"] {
        let name = hung.replace('_', "-");
        let app = TestApp::with(&["scripted", hung, "same_name_a"])
            .set(format!("plugins.{name}.deadline = 0.05"))
            .set(format!("plugins.{name}.priority = 1"))
            .start()
            .await;
        let report = app.raise().await;
        assert_eq!(returning(&report), "1", "{hung}");
        let report = value_of(&report);
        let decision = &report["decisions"][0];
        assert_eq!((&decision["plugin"], &decision["outcome"]), (&json!(name), &json!("failed")));
        assert_eq!(decision["failure"]["type"], "DeadlineExceeded");
        assert_eq!(decision["failure"]["message"], "did not end within 0.05 s");
        app.running.stop().await;
    }
}

/// A plugin goes when its application goes; but a call that was given up at its deadline may still run in it then.
#[tokio::test]
async fn a_plugin_lives_on_while_an_async_call_runs_in_it_beyond_the_deadline() {
    let app = TestApp::with(&["blocks_in_async_handler", "scripted"]);
    let go_on = app.place.fifo("go_on");
    let app = app
        .set(format!("plugins.blocks-in-async-handler.config.go_on = {}", toml::Value::from(go_on.to_str().expect("plain"))))
        .set("plugins.blocks-in-async-handler.deadline = 0.05")
        .start()
        .await;
    assert_eq!(app.raise().await.decisions[0].failure.as_ref().expect("a failure").kind, "DeadlineExceeded");
    let plugin = Arc::downgrade(&app.running.executor().dispatcher().registry().plugins()[0]);
    app.running.stop().await;
    assert!(plugin.upgrade().is_some(), "the plugin was destroyed under a running call");
    std::fs::write(&go_on, "go on").expect("the handler reads");
    while plugin.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn calls_that_have_ended_leave_room_for_more_than_may_be_under_way_at_once() {
    let app = TestApp::with(&["blocks_in_async_handler", "scripted"])
        .set("plugins.scripted.triggers = []")
        .set("plugins.blocks-in-async-handler.config.go_on = '/dev/null'")
        .start()
        .await;
    for _ in 0..1100 {
        let report = app.raise().await;
        assert_eq!(asked(&report), [("blocks-in-async-handler", Pass)]);
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_the_trigger_is_a_failure_of_the_plugin() {
    const ARGS: &str = "task_executor_args_replace";
    let app = TestApp::with(&["scripted", "scripted_b"])
        .answer("scripted", ARGS, r#"{"kwargs": {}}"#)
        .answer("scripted-b", ARGS, "[1]")
        .start()
        .await;
    let report = app.run("echo", json!([1]), json!({"b": 2})).await;
    assert_eq!(returning(&report), r#"{"args":[1],"kwargs":{"b":2}}"#);
}

#[tokio::test]
async fn answers_to_a_one_way_trigger_are_ignored() {
    let app = TestApp::with(&["scripted"]).answer("scripted", "task_executor_before_execute", "[1]").start().await;
    let report = app.run("echo", json!([]), json!({})).await;
    assert_eq!(report.status, Status::Success);
    app.place.event("scripted", "task_executor_before_execute");
}
