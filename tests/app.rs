//! `qtasks_host` as a library: closures of every kind, plugins that are linked in, and a worker over a broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qtasks_host::broker::{Again, Attempt, Broker, Cancelled, Finish, MemoryBackend, Record, Storage};
use qtasks_host::plugin::LoadState;
use qtasks_host::{App, Settings, StartError, Status, Task, TaskContext, TaskError, Triggers};
use qtasks_plugin_api::{Error, ErrorBody, Event, Host, Plugin, TriggerError, config, define_plugin};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Barrier, Notify, mpsc};

use crate::support::app::asked;
use crate::support::{ERROR, Place, TestApp, assert_says, returning};

#[derive(Deserialize)]
struct Named {
    b: i64,
}

#[derive(Serialize)]
struct Sum {
    sum: i64,
}

fn add(a: i64, b: i64) -> Result<Sum, TaskError> {
    let sum = a.checked_add(b).ok_or_else(|| TaskError::other("Overflow", format!("{a} and {b} are too large")))?;
    Ok(Sum { sum })
}

#[tokio::test]
async fn closures_may_be_async_blocking_or_inline_and_take_what_serde_reads() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.task("async", async |_ctx: TaskContext, (a,): (i64,), Named { b }| add(a, b));
            app.blocking_task("blocking", |_ctx, (a,): (i64,), Named { b }| add(a, b));
            app.inline_task("inline", |_ctx, (a,): (i64,), Named { b }| add(a, b));
        })
        .await;
    for way in ["async", "blocking", "inline"] {
        assert_eq!(returning(&app.run(way, json!([1]), json!({"b": 2})).await), r#"{"sum":3}"#, "{way}");
        let error = app.run(way, json!([i64::MAX]), json!({"b": 1})).await.error.expect("an error");
        assert_eq!(error.kind, "Overflow");
        let error = app.run(way, json!(["1"]), json!({"b": 1})).await.error.expect("an error");
        assert_eq!(error.kind, "ArgumentError");
        assert_says(&error.message, &[r#"args ["1"]"#, "expected a whole number"]);
    }
}

#[tokio::test]
async fn a_task_knows_its_name_id_attempt_and_configuration() {
    let app = TestApp::with(&[])
        .set("tasks.who.config.greeting = 'hello'")
        .set("tasks.who.attempts = 2")
        .start_with(|app| {
            app.inline_task("who", |ctx, (): (), (): ()| {
                let config: BTreeMap<String, String> = ctx.config()?;
                Ok::<_, TaskError>((
                    config["greeting"].clone(),
                    ctx.task_name().to_owned(),
                    ctx.attempt(),
                    ctx.attempts(),
                    ctx.is_last_attempt(),
                    ctx.uuid().to_owned(),
                ))
            });
        })
        .await;
    let uuid = "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5";
    let report = app.run_line(&format!(r#"{{"task": "who", "uuid": "{uuid}"}}"#)).await;
    assert_eq!(returning(&report), format!(r#"["hello","who",1,2,false,"{uuid}"]"#));
    let only = app.run_line(&format!(r#"{{"task": "who", "uuid": "{uuid}", "attempts": 1}}"#)).await;
    assert_eq!(returning(&only), format!(r#"["hello","who",1,1,true,"{uuid}"]"#));
}

#[tokio::test]
async fn a_task_without_settings_has_its_data_directory_in_the_state_directory_too() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.inline_task("where", |ctx, (): (), (): ()| Ok::<_, TaskError>(ctx.host().data_dir()?.to_owned()));
        })
        .await;
    let directory = app.place.state().join("tasks/where");
    assert_eq!(returning(&app.run("where", json!([]), json!({})).await), json!(directory).to_string());
    assert!(directory.is_dir());
}

#[tokio::test]
async fn a_task_under_a_name_that_nobody_can_ask_for_is_told_at_the_start() {
    for name in ["", "a:b"] {
        let app = TestApp::with(&[]);
        let (_place, started) = app
            .try_start_with(|app| {
                app.inline_task(name, |_ctx, (): (), (): ()| Ok::<_, TaskError>(()));
            })
            .await;
        let StartError::Tasks(refused) = started.expect_err("no such name") else { panic!("it is about tasks") };
        assert_eq!(refused.to_string(), "the application provides a task under an unusable name");
        let reason = std::error::Error::source(&refused).expect("a reason").to_string();
        assert_says(&reason, &[&format!("{name:?} is not a task name"), "no `:`"]);
    }
}

#[tokio::test]
async fn a_result_beyond_the_bounds_is_an_error() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.inline_task("deep", |_ctx, (depth,): (usize,), (): ()| {
                Ok::<_, TaskError>(serde_json::value::RawValue::from_string("[".repeat(depth) + &"]".repeat(depth))?)
            });
        })
        .await;
    assert_eq!(app.run("deep", json!([128]), json!({})).await.status, Status::Success);
    let error = app.run("deep", json!([129]), json!({})).await.error.expect("an error");
    assert_eq!((&*error.kind, &*error.message), ("ResultError", "the task's result is JSON nested deeper than 128"));
}

#[tokio::test]
async fn a_result_without_json_form_is_an_error() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.inline_task("map", |_ctx, (): (), (): ()| Ok::<_, TaskError>(BTreeMap::from([(vec![1], 2)])));
        })
        .await;
    assert_eq!(app.run("map", json!([]), json!({})).await.error.expect("an error").kind, "ResultError");
}

#[tokio::test]
async fn an_application_with_a_plugin_directory_and_nothing_to_probe_with_does_not_start() {
    let place = Place::new();
    place.copy("documented_example");
    let settings = || Settings { plugin_dir: Some(place.plugins()), state_dir: place.state(), ..Settings::default() };
    let error = App::new(settings()).start().await.expect_err("it does not start");
    let directory = place.plugins().display().to_string();
    assert_says(
        &error.to_string(),
        &[&directory, "call qtasks_host::guest::run_if_asked() first in main, or name a qtasks-host"],
    );
    let running = App::new(Settings { safe_mode: true, ..settings() }).start().await.expect("it loads nothing");
    running.stop().await;
    let running = App::new(Settings { probe: false, ..settings() }).start().await.expect("at its own risk");
    assert_eq!(running.plugin_reports()[0].state, LoadState::Running);
    running.stop().await;
}

#[tokio::test]
async fn two_tasks_may_not_have_one_name() {
    let mut app = App::new(Settings::default());
    app.inline_task("a", |_ctx, (): (), (): ()| Ok::<_, TaskError>(1))
        .inline_task("a", |_ctx, (): (), (): ()| Ok::<_, TaskError>(2));
    let error = app.start().await.expect_err("the application does not start");
    assert_says(&error.to_string(), &["task a is provided by application and by application"]);
}

config! {
    pub(crate) struct Config {
        answer: i64 = 1,
    }
}

/// A plugin that is linked in.
struct LinkedIn(i64);

impl Plugin for LinkedIn {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self, Error> {
        if config.answer < 0 {
            return Err("answers are not negative here".into());
        }
        Ok(Self(config.answer))
    }
}

impl LinkedIn {
    fn on_error(&self, _event: TriggerError<'_>) -> i64 {
        self.0
    }

    fn on_decode(&self, _event: Event<'_>) -> Option<i64> {
        (self.0 == 7).then_some(77)
    }

    fn double(&self, _ctx: &TaskContext, (number,): (i64,), _kwargs: ()) -> Result<i64, TaskError> {
        Ok(2 * number)
    }

    fn misses(&self, _ctx: &TaskContext, (): (), (): ()) -> Result<(), TaskError> {
        Err(TaskError::other("DeadlineExceeded", "that of the post office"))
    }
}

define_plugin! {
    plugin: LinkedIn,
    name: "linked-in",
    handlers: { task_executor_run_task_trigger_error => on_error, task_executor_decode => inline on_decode },
    tasks: { double => inline double, misses => misses },
}

#[tokio::test]
async fn a_linked_in_plugin_is_asked_beside_loaded_ones_provides_tasks_and_has_settings() {
    let app = TestApp::with(&["scripted"])
        .set("plugins.linked-in.config.answer = 5")
        .start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Handled);
        })
        .await;
    let report = app.raise().await;
    assert_eq!(returning(&report), "5");
    assert_eq!(asked(&report).iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["linked-in", "scripted"]);
    assert_eq!(returning(&app.run("double", json!([21]), json!({})).await), "42");
    app.running.stop().await;
}

#[tokio::test]
async fn an_error_that_is_called_as_a_missed_deadline_is_no_time_out_while_there_is_time() {
    let app = TestApp::with(&[])
        .set("tasks.misses.max_time = 60")
        .start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Handled);
        })
        .await;
    let error = app.run("misses", json!([]), json!({})).await.error.expect("an error");
    assert_eq!((&*error.kind, &*error.message), ("DeadlineExceeded", "that of the post office"));
}

#[tokio::test]
async fn a_linked_in_plugin_may_be_asked_for_some_triggers_only() {
    let error = qtasks_plugin_api::Trigger::TaskExecutorRunTaskTriggerError;
    for (triggers, result) in [(Triggers::Handled, "77"), (Triggers::Only(vec![error]), "7")] {
        let app = TestApp::with(&["scripted"])
            .set("plugins.linked-in.config.answer = 7")
            .start_with(move |app| {
                app.add_plugin::<LinkedIn>(triggers);
            })
            .await;
        assert_eq!(returning(&app.raise().await), result);
    }
}

#[tokio::test]
async fn a_linked_in_global_plugin_is_asked_after_those_that_name_the_trigger() {
    let app = TestApp::with(&["scripted", "same_name_a"])
        .set("plugins.linked-in.priority = 1000")
        .start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Global);
        })
        .await;
    let report = app.raise().await;
    let names: Vec<_> = asked(&report).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["same-name", "linked-in", "scripted"]);
}

#[tokio::test]
async fn the_operators_triggers_go_before_the_applications() {
    let app = TestApp::with(&["scripted"])
        .set("plugins.linked-in.config.answer = 7")
        .set("plugins.linked-in.triggers = ['task_executor_decode']")
        .start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Handled);
        })
        .await;
    assert_eq!(app.raise().await.status, Status::Error);
    assert_eq!(returning(&app.run("echo", json!([]), json!({})).await), "77");
}

#[tokio::test]
async fn a_linked_in_plugin_that_refuses_keeps_the_application_from_starting() {
    let (_place, started) = TestApp::with(&[])
        .set("plugins.linked-in.config.answer = -1")
        .try_start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Handled);
        })
        .await;
    let error = started.expect_err("the application does not start");
    assert!(matches!(error, StartError::LinkedIn(_)), "{error:?}");
    let said =
        "a plugin that is linked into the application was refused: plugin linked-in could not be created: Error: answers are";
    assert_says(&error.to_string(), &[said]);
}

#[tokio::test]
async fn a_linked_in_plugin_that_the_operator_disabled_is_not_asked() {
    let app = TestApp::with(&["scripted"])
        .set("plugins.linked-in.enabled = false")
        .set("plugins.linked-in.config.answer = -1")
        .start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Handled);
        })
        .await;
    let report = app.raise().await;
    assert_eq!(asked(&report).len(), 1, "only the loaded one");
    assert_eq!(app.run("double", json!([1]), json!({})).await.error.expect("an error").kind, "UnknownTask");
}

#[tokio::test]
async fn a_plugin_may_not_be_linked_in_twice() {
    let (_place, started) = TestApp::with(&[])
        .try_start_with(|app| {
            app.add_plugin::<LinkedIn>(Triggers::Handled).add_plugin::<LinkedIn>(Triggers::Global);
        })
        .await;
    let error = started.expect_err("the application does not start");
    assert!(matches!(error, StartError::LinkedIn(_)), "{error:?}");
    assert_says(&error.to_string(), &["the name linked-in is taken by a plugin that is linked in", "or `name: \"…\"` in its"]);
}

/// Each task ends only when all of them have begun.
#[tokio::test]
async fn a_worker_runs_as_many_tasks_at_once_as_its_concurrency_says() {
    const AT_ONCE: usize = 8;
    let barrier = Arc::new(Barrier::new(AT_ONCE));
    let app = TestApp::with(&["documented_example"])
        .set(format!("concurrency = {AT_ONCE}"))
        .start_with(move |app| {
            app.task("meet", move |ctx: TaskContext, (number,): (usize,), (): ()| {
                let barrier = Arc::clone(&barrier);
                async move {
                    barrier.wait().await;
                    if number % 2 == 0 { Ok(number) } else { Err(TaskError::from(ctx.plugin_error(json!({})))) }
                }
            });
        })
        .await;
    let tasks =
        (0..AT_ONCE).map(|number| Task::new("meet").and_then(|task| task.with_arguments([number], json!({}))).expect("a task"));
    let reports = app.work_through(tasks).await;
    let mut results: Vec<&str> = reports.iter().map(returning).collect();
    results.sort_unstable();
    assert_eq!(results, ["0", "123", "123", "123", "123", "2", "4", "6"]);
    app.running.stop().await;
}

#[tokio::test]
async fn a_worker_that_may_run_no_task_at_once_runs_one() {
    let mut app = App::new(Settings { concurrency: 0, ..Settings::default() });
    app.inline_task("a", |_ctx, (): (), (): ()| Ok::<_, TaskError>(1));
    let running = app.start().await.expect("the application starts");
    let backend = Arc::new(MemoryBackend::new(10, false));
    let store = running.store(Arc::<MemoryBackend>::clone(&backend));
    store.add(vec![Record::new(Task::new("a").expect("a name"))]).await.expect("room");
    backend.close();
    let (sender, mut receiver) = mpsc::channel(1);
    let worker = running.worker(store);
    let worked = tokio::time::timeout(Duration::from_secs(60), worker.run(Some(sender))).await.expect("it ends");
    worked.expect("memory does not fail");
    assert_eq!(returning(&receiver.recv().await.expect("a report")), "1");
}

#[tokio::test]
async fn a_worker_takes_higher_priorities_first_and_runs_retries_through_the_broker() {
    let begun = Arc::new(Mutex::new(Vec::new()));
    let app = TestApp::with(&["scripted"])
        .set("plugins.scripted.config.directive = { directive = 'retry_after', seconds = 0 }")
        .set("concurrency = 1")
        .start_with(|app| {
            let begun = Arc::clone(&begun);
            app.inline_task("second_time", move |ctx, (name,): (String,), (): ()| {
                if ctx.attempt() < 2 {
                    begun.lock().expect("no panic under the lock").push(name);
                    Err(TaskError::from(ctx.plugin_error(json!({}))))
                } else {
                    Ok(name)
                }
            });
        })
        .await;
    let tasks = [("low", -1), ("high", 5), ("middle", 0)].map(|(name, priority)| {
        let mut task = Task::new("second_time").and_then(|task| task.with_arguments([name], json!({}))).expect("a task");
        task.priority = priority;
        task
    });
    let reports = app.work_through(tasks).await;
    assert_eq!(reports.iter().map(|report| report.attempt).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(*begun.lock().expect("no panic under the lock"), ["high", "middle", "low"]);
}

#[tokio::test]
async fn a_worker_whose_reports_nobody_wants_any_more_leaves_the_rest_in_the_broker() {
    let app = TestApp::with(&[])
        .set("concurrency = 1")
        .set("drain_deadline = 0.01")
        .start_with(|app| {
            app.inline_task("nothing", |_ctx, (): (), (): ()| Ok::<_, TaskError>(()));
            app.task("for_ever", async |_ctx, (): (), (): ()| std::future::pending::<Result<(), TaskError>>().await);
        })
        .await;
    let backend = Arc::new(MemoryBackend::new(10, false));
    let store = app.running.store(Arc::<MemoryBackend>::clone(&backend));
    let tasks = ["nothing", "for_ever", "for_ever"].map(|name| Record::new(Task::new(name).expect("a name")));
    store.add(tasks.into()).await.expect("room");
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let worked = app.running.worker(store).run(Some(sender)).await.expect("memory does not fail");
    // At least the last one was not begun; what was begun and never ends is given back.
    assert_eq!(backend.waiting(), 2);
    assert!(worked.given_back <= 1, "{worked:?}");
}

#[tokio::test]
async fn of_a_task_that_was_removed_while_it_ran_nothing_is_reported() {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&go_on));
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.task("waits", move |_ctx: TaskContext, (): (), (): ()| {
                let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
                async move {
                    begins.notify_one();
                    goes_on.notified().await;
                    Ok::<_, TaskError>(())
                }
            });
        })
        .await;
    let backend = Arc::new(MemoryBackend::new(10, true));
    let store = app.running.store(Arc::<MemoryBackend>::clone(&backend));
    store.add(vec![Record::new(Task::new("waits").expect("a name"))]).await.expect("room");
    let (sender, mut receiver) = mpsc::channel(1);
    let removes = async {
        begun.notified().await;
        assert_eq!(store.flush_all().await, Ok(1));
        backend.close();
        go_on.notify_one();
    };
    let worker = app.running.worker(Arc::clone(&store));
    let (worked, ()) = tokio::join!(worker.run(Some(sender)), removes);
    worked.expect("memory does not fail");
    assert!(receiver.recv().await.is_none());
}

#[tokio::test]
async fn a_task_that_is_cancelled_before_its_next_attempt_is_reported_with_those_before() {
    let app = TestApp::with(&[]).start().await;
    let backend = Arc::new(MemoryBackend::new(10, true));
    let store = app.running.store(Arc::<MemoryBackend>::clone(&backend));
    store.add(vec![Record::new(Task::new("fails").expect("a name"))]).await.expect("room");
    let taken = backend.take(1).await.expect("a task").remove(0);
    assert_eq!(backend.cancel(taken.lease.uuid, "enough".to_owned()).await, Ok(Cancelled::Asked));
    let error = Box::new(ErrorBody::new("E", "the first time"));
    let attempt = Some(Attempt { attempt: 1, at: 1.5, seconds: 0.5, error, decisions: Vec::new() });
    let retry = Some(Again { after: Duration::ZERO, left: 1 });
    let again = Finish { lease: taken.lease, record: taken.record, retry, attempt };
    assert_eq!(backend.finish(Arc::new([again])).await, Ok(Vec::new()));
    backend.close();
    let (sender, mut receiver) = mpsc::channel(1);
    app.running.worker(store).run(Some(sender)).await.expect("memory does not fail");
    let report = receiver.recv().await.expect("a report");
    assert_eq!((report.status, report.cancel_reason.as_deref()), (Status::Cancel, Some("enough")));
    assert_eq!(report.history.iter().map(|attempt| &*attempt.error.message).collect::<Vec<_>>(), ["the first time"]);
}

#[tokio::test]
async fn one_library_in_two_applications_has_statics_of_its_own_in_each() {
    let first = TestApp::with(&["scripted"]).answer("scripted", ERROR, "1").start().await;
    let second = TestApp::with(&["scripted"]).answer("scripted", ERROR, "2").start().await;
    assert_eq!((returning(&first.raise().await), returning(&second.raise().await)), ("1", "2"));
}

#[test]
fn stats_say_which_plugin_is_set_aside_and_why() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let aside = [
        ("in-process", "sleep", 0.2, 3, "set aside: 3 of its calls went on after their deadline"),
        ("process", "segfault", 60.0, 5, "set aside after 5 failures within 60 s; the last: its process was killed by signal 11"),
    ];
    for (isolation, how, deadline, failures, reason) in aside {
        runtime.block_on(async {
            let app = TestApp::with(&["misbehaves_in_handler", "scripted"])
                .set(format!("plugins.misbehaves-in-handler.isolation = '{isolation}'"))
                .set(format!("plugins.misbehaves-in-handler.config.how = '{how}'"))
                .set(format!("plugins.misbehaves-in-handler.deadline = {deadline:?}"))
                .start()
                .await;
            let stats = app.running.stats(app.running.open_broker().await.expect("a file"));
            let states = async || {
                let plugins = json!(stats.app().await.plugins);
                let of =
                    |plugin: &str| plugins.as_array().expect("a list").iter().find(|stats| stats["plugin"] == plugin).cloned();
                (of("misbehaves-in-handler").expect("a plugin"), of("scripted").expect("a plugin"))
            };
            for _ in 0..failures {
                assert_eq!(states().await.0["state"], "running");
                app.raise().await;
            }
            let report = app.raise().await;
            let failure = report.decisions[0].failure.as_ref().expect("it is not asked");
            assert_eq!(failure.kind, "PluginTripped");
            let (aside, other) = states().await;
            assert_eq!((&aside["state"], &other["state"]), (&json!("tripped"), &json!("running")));
            assert_says(aside["reason"].as_str().expect("a reason"), &[reason]);
            assert_eq!(other.get("reason"), None);
        });
    }
    // Nobody can end the calls that sleep in this process.
    runtime.shutdown_background();
}
