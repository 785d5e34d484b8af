//! Triggers of the component `TaskExecutor`.

use super::*;

rows! {
    TaskExecutorMiddlewaresExecute: task_executor_middlewares_execute;
    TaskExecutorArgsReplace: task_executor_args_replace;
    TaskExecutorBeforeExecute: task_executor_before_execute;
    TaskExecutorRunTask: task_executor_run_task;
    TaskExecutorRunTaskGen: task_executor_run_task_gen;
    TaskExecutorRunTaskTriggerError: task_executor_run_task_trigger_error;
    TaskExecutorAfterExecute: task_executor_after_execute;
    TaskExecutorAfterExecuteResultReplace: task_executor_after_execute_result_replace;
    TaskExecutorDecode: task_executor_decode;
    TaskExecutorTaskClose: task_executor_task_close;
}

fn executor(attempts: u32) -> Value {
    json!({"name": "TaskExecutor", "attempt": 1, "attempts": attempts})
}

async fn task_executor_middlewares_execute(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"middlewares_before": ["mine"]}));
    assert_eq!(shown(&stage.echo().await), echoed(json!({})), "a one-way trigger");
    let expected = [
        json!({"task_executor": executor(5), "middlewares_before": []}),
        json!({"task_executor": executor(5), "middlewares_after": []}),
    ];
    assert_eq!(stage.events(), expected);
    // Of the two lists, each event has its own.
    assert_eq!(trigger.kwargs(), ["task_executor", "middlewares_before", "middlewares_after"]);
}

async fn task_executor_args_replace(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.echo().await;
    let expected = json!({"task_executor": executor(5), "args": [1], "kw": {"b": 2}, "args_info": []});
    assert_eq!(stage.event(), expected);
    for (answer, returning) in [
        (json!({"args": [7]}), returned(json!([7]), json!({"b": 2}))),
        (json!({"kw": {"c": 7}}), returned(json!([1]), json!({"c": 7}))),
        (json!({}), returned(json!([1]), json!({"b": 2}))),
        (json!({"args": {}}), returned(json!([1]), json!({"b": 2}))),
        (json!({"args": [7], "kw": null}), returned(json!([1]), json!({"b": 2}))),
        (json!([7]), returned(json!([1]), json!({"b": 2}))),
    ] {
        stage.prompt(&answer);
        // The task is kept with the arguments that it came with.
        assert_eq!(shown(&stage.echo().await), echoed(json!({"returning": returning})), "{answer}");
    }
}

async fn task_executor_before_execute(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!(7));
    assert_eq!(shown(&stage.echo().await), echoed(json!({})), "a one-way trigger");
    assert_eq!(stage.event(), json!({"task_executor": executor(5)}));
}

async fn task_executor_after_execute(isolation: &str, trigger: Trigger) {
    task_executor_before_execute(isolation, trigger).await;
}

async fn task_executor_run_task(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    replaces_result(&stage).await;
    let asked = stage.events().len();
    let count = Task::new("count").and_then(|task| task.with_arguments([2], json!({}))).expect("a task");
    stage.run(count).await;
    assert_eq!(stage.events().len(), asked, "a task that yields has a trigger of its own");
}

async fn replaces_result(stage: &Stage) {
    stage.echo().await;
    assert_eq!(stage.event(), json!({"task_executor": executor(5), "result": returned(json!([1]), json!({"b": 2}))}));
    for (answer, returning) in [(json!({"result": 7}), json!(7)), (json!([7]), json!([7])), (json!({"a": 1}), json!({"a": 1}))] {
        stage.prompt(&answer);
        assert_eq!(shown(&stage.echo().await), echoed(json!({"returning": returning})), "{answer}");
    }
    stage.prompt(&json!(null));
    assert_eq!(stage.echo().await.returning.expect("a result").get(), "null");
}

async fn task_executor_after_execute_result_replace(isolation: &str, trigger: Trigger) {
    replaces_result(&Stage::new(isolation, trigger).await).await;
}

async fn task_executor_decode(isolation: &str, trigger: Trigger) {
    replaces_result(&Stage::new(isolation, trigger).await).await;
}

async fn task_executor_run_task_gen(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let count = || Task::new("count").and_then(|task| task.with_arguments([3], json!({}))).expect("a task");
    let result = async || stage.run(count()).await.returning.expect("a result").get().to_owned();
    assert_eq!(result().await, "[0,1,2]");
    assert_eq!(stage.event(), json!({"task_executor": executor(5), "results": [0, 1, 2]}));
    for (answer, results) in
        [(json!({"results": [7]}), "[7]"), (json!([]), "[]"), (json!({"results": 7}), "[0,1,2]"), (json!(null), "[0,1,2]")]
    {
        stage.prompt(&answer);
        assert_eq!(result().await, results, "{answer}");
    }
    let asked = stage.events().len();
    stage.echo().await;
    assert_eq!(stage.events().len(), asked, "a task that returns has a trigger of its own");
}

async fn task_executor_run_task_trigger_error(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let raise =
        || Task::new("raise").and_then(|task| task.with_arguments([(); 0], json!({"message": "frozen"}))).expect("a task");
    let record = stage.run(raise()).await;
    assert_eq!(record.error.expect("nobody answered").message, "frozen");
    let expected = json!({
        "task_executor": executor(5), "task_func": {"name": "raise", "provided_by": "scripted"}, "task_broker": record.task,
        "e": {"type": "TaskPluginTriggerError", "message": "frozen", "args": [], "kwargs": {"message": "frozen"}},
    });
    assert_eq!(stage.event(), expected);
    for (answer, returning) in
        [(json!({"result": 7}), "7"), (json!(0), "0"), (json!(null), "null"), (json!("frozen"), "\"frozen\"")]
    {
        stage.prompt(&answer);
        let record = stage.run(raise()).await;
        assert_eq!(record.returning.expect("a result").get(), returning);
        assert_eq!(record.original_error.expect("it is kept").message, "frozen");
    }
}

async fn task_executor_task_close(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"task_broker": {"args": [7]}}));
    let record = stage.echo().await;
    assert_eq!(shown(&record), echoed(json!({})), "a one-way trigger");
    let task_func = json!({"name": "echo", "provided_by": "scripted"});
    assert_eq!(stage.event(), json!({"task_executor": executor(5), "task_func": task_func, "task_broker": record.task}));
    stage.run(task("fail")).await;
    assert_eq!(stage.event()["task_func"]["name"], "fail", "however it ended");
}
