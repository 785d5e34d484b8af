//! QTasks' documented error path, word for word: a plugin error, a plugin's answer, and the answer as the task's result.

use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{Status, TaskContext, TaskError, TaskPluginTriggerError};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::support::app::asked;
use crate::support::{ERROR, TestApp, returning, value_of};

/// Any positional arguments.
type Args = Vec<IgnoredAny>;
/// Any named arguments.
type Kwargs = Map<String, Value>;

fn register(app: &mut qtasks_host::App) {
    app.task("plugin_error", async |ctx: TaskContext, _args: Args, kwargs: Kwargs| {
        Err::<(), TaskError>(ctx.plugin_error(kwargs).into())
    });
    app.task("direct", async |_ctx: TaskContext, _args: Args, _kwargs: ()| {
        Err::<(), _>(TaskPluginTriggerError::new("Direct error"))
    });
}

#[tokio::test]
async fn the_documented_plugin_answers_123_and_123_becomes_the_result() {
    let app = TestApp::with(&["documented_example"]).start_with(register).await;
    for (task, kwargs) in [("plugin_error", json!({"message": "no such bird"})), ("direct", json!({}))] {
        let report = app.run(task, json!([]), kwargs).await;
        assert_eq!((report.status, returning(&report)), (Status::Success, "123"), "{task}");
        assert_eq!(asked(&report), [("documented-example", OutcomeKind::Result)]);
    }
    app.running.stop().await;
}

#[tokio::test]
async fn an_answered_error_is_kept_beside_the_result_with_who_answered() {
    let app = TestApp::with(&["documented_example"]).start_with(register).await;
    let report = value_of(&app.run("plugin_error", json!([]), json!({"message": "no such bird", "code": 7})).await);
    assert_eq!(report["resolved_by"], json!({"plugin": "documented-example", "version": "0.1.0", "outcome": "result"}));
    assert_eq!(report["original_error"]["type"], "TaskPluginTriggerError");
    assert_eq!(report["original_error"]["kwargs"], json!({"message": "no such bird", "code": 7}));
    assert_eq!(report.get("error"), None);
}

#[tokio::test]
async fn without_a_plugin_the_error_goes_on_with_its_payload_args_and_kwargs_apart() {
    let app = TestApp::with(&[]).start_with(register).await;
    let named = value_of(&app.run("plugin_error", json!([]), json!({"message": "no such bird", "code": 7})).await);
    assert_eq!(named["status"], "error");
    assert_eq!(
        named["error"],
        json!({
            "type": "TaskPluginTriggerError", "message": "no such bird", "args": [],
            "kwargs": {"message": "no such bird", "code": 7},
        })
    );
    let direct = value_of(&app.run("direct", json!([]), json!({})).await);
    let error = json!({"type": "TaskPluginTriggerError", "message": "Direct error", "args": ["Direct error"], "kwargs": {}});
    assert_eq!((&direct["status"], &direct["error"]), (&json!("error"), &error));
    assert_eq!((direct.get("resolved_by"), direct.get("original_error")), (None, None));
}

#[tokio::test]
async fn a_plugin_that_passes_leaves_the_error_as_it_was() {
    let app = TestApp::with(&["global_recorder"]).start_with(register).await;
    let report = app.run("direct", json!([]), json!({})).await;
    assert_eq!(asked(&report), [("global-recorder", OutcomeKind::Pass)]);
    let report = value_of(&report);
    assert_eq!((&report["status"], &report["error"]["args"]), (&json!("error"), &json!(["Direct error"])));
    assert_eq!(report.get("resolved_by"), None);
}

#[tokio::test]
async fn the_event_tells_executor_function_task_and_error() {
    let app = TestApp::with(&["global_recorder"]).start_with(register).await;
    let line = r#"{"task": "plugin_error", "args": [1, [2]], "kwargs": {"b": {"c": 3}}, "priority": -4,
        "uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5"}"#;
    app.run_line(line).await;
    let mut event = app.place.event("global-recorder", ERROR);
    assert!(event["task_broker"]["created_at"].take().as_f64().is_some_and(|created_at| created_at > 1.7e9));
    assert_eq!(
        event,
        json!({
            "task_executor": {"name": "TaskExecutor", "attempt": 1, "attempts": 5},
            "task_func": {"name": "plugin_error", "provided_by": "application"},
            "task_broker": {
                "uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5", "task_name": "plugin_error", "priority": -4,
                "args": [1, [2]], "kwargs": {"b": {"c": 3}}, "created_at": null,
            },
            "e": {"type": "TaskPluginTriggerError", "message": "", "args": [], "kwargs": {"b": {"c": 3}}},
        })
    );
}

#[tokio::test]
async fn every_falsy_json_value_is_an_answer() {
    for falsy in ["0", "0.0", r#""""#, "false", "[]", "null", "{}"] {
        let app = TestApp::with(&["scripted"]).answer("scripted", ERROR, falsy).start().await;
        let report = app.raise().await;
        assert_eq!((report.status, returning(&report)), (Status::Success, falsy));
        assert_eq!(asked(&report), [("scripted", OutcomeKind::Result)]);
    }
}

#[tokio::test]
async fn an_answer_may_be_the_bare_value_or_be_named_result() {
    for (answer, result) in
        [("5", "5"), (r#"{"result": 5}"#, "5"), (r#"{"result": null}"#, "null"), (r#"{"results": 5}"#, r#"{"results": 5}"#)]
    {
        let app = TestApp::with(&["scripted"]).answer("scripted", ERROR, answer).start().await;
        assert_eq!(returning(&app.raise().await), result, "{answer}");
    }
}

#[tokio::test]
async fn a_big_integer_passes_through_arguments_event_answer_and_result_digit_by_digit() {
    const BIG: &str = "123456789012345678901234567890";
    let app = TestApp::with(&["answers_with_arguments", "global_recorder"]).start_with(register).await;
    let report = app.run_line(&format!(r#"{{"task": "direct", "args": [{BIG}, -0.10, 1E2]}}"#)).await;
    assert_eq!(returning(&report), format!("[{BIG}, -0.10, 1E2]"));
    let recorded = std::fs::read_to_string(app.place.state().join("plugins/global-recorder/events.jsonl")).expect("recorded");
    assert!(recorded.contains(BIG), "the next plugin saw other digits: {recorded}");
}

#[tokio::test]
async fn a_big_integer_may_be_a_plugins_own_answer() {
    const BIG: &str = "-98765432109876543210987654321098765432109876543210";
    let app = TestApp::with(&["scripted"]).answer("scripted", ERROR, BIG).start().await;
    assert_eq!(returning(&app.raise().await), BIG);
}

#[tokio::test]
async fn tasks_of_a_plugin_raise_as_those_of_the_application_do() {
    let app = TestApp::with(&["scripted"]).start().await;
    let named = value_of(&app.run("raise", json!([]), json!({"message": "m", "code": 7})).await);
    assert_eq!((&named["error"]["args"], &named["error"]["kwargs"]), (&json!([]), &json!({"message": "m", "code": 7})));
    let direct = value_of(&app.run("raise_text", json!(["Direct error"]), json!({})).await);
    assert_eq!((&direct["error"]["args"], &direct["error"]["kwargs"]), (&json!(["Direct error"]), &json!({})));
    assert_eq!(app.place.events("scripted").iter().filter(|event| event["trigger"] == ERROR).count(), 2);
}
