//! Plugins are replaced while the application runs: no event is lost or doubled. How a worker is told to is in `worker_replacement.rs`, what
//! can go wrong in `faults/replacements.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use qtasks_host::{ReplaceError, Status, Triggers};
use qtasks_plugin_api::{Error, Plugin, TaskContext, TaskError, define_plugin};
use serde_json::{Value, json};

use crate::support::app::Started;
use crate::support::artifacts::library;
use crate::support::versioned::{FILE, GoOn, app, lives, put, renamed, stops};
use crate::support::{Host, TestApp, assert_says, returning};

async fn a_new_version_takes_over(isolation: &str) {
    let app = app(isolation).start().await;
    assert_eq!(app.versions().await, (json!(1), json!(1)));
    assert_eq!(app.replaced().await.changes, [], "unchanged bytes keep their instance");
    put(&app.place, "versioned_2");
    let replaced = json!(app.replaced().await);
    assert_eq!(replaced.as_array().map(Vec::len), Some(1), "{replaced}");
    let side = |side: &str| (replaced[0][side]["plugin"].clone(), replaced[0][side]["version"].clone());
    assert_eq!((side("old"), side("new")), ((json!("versioned"), json!("1.0.0")), (json!("versioned"), json!("2.0.0"))));
    assert_eq!(app.versions().await, (json!(2), json!(2)));
    // Tasks came and went with it.
    assert_eq!(returning(&app.run("only_in_2", json!([]), json!({})).await), "2");
    let unknown = app.run("only_in_1", json!([]), json!({})).await.error.expect("nobody has it any more");
    assert_says(&unknown.message, &["nobody provides a task \"only_in_1\"", "did you mean `only_in_2`?"]);
    app.replacer().drained().await;
    assert_eq!(stops(&app.place), [1], "the old one was stopped, once");
    let stats = json!(app.running.stats(app.running.open_broker().await.expect("a file")).app().await);
    let versions: Vec<&Value> = stats["plugins"].as_array().expect("a list").iter().map(|plugin| &plugin["version"]).collect();
    assert_eq!(versions, ["0.1.0", "2.0.0"]);
    let place = app.place;
    app.running.stop().await;
    assert_eq!(stops(&place), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_takes_over_here() {
    a_new_version_takes_over("in-process").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_takes_over_isolated() {
    a_new_version_takes_over("process").await;
}

/// Several tasks raise all the while. Each error is answered once, by the version that is on record for it, and what all instances
/// were asked until they were stopped is what was raised.
async fn under_load(isolation: &str, replacements: usize) {
    let app = Arc::new(app(isolation).start().await);
    let go_on = Arc::new(AtomicBool::new(true));
    let raising: Vec<_> = (0..4)
        .map(|_| {
            let (app, go_on) = (Arc::clone(&app), Arc::clone(&go_on));
            tokio::spawn(async move {
                let mut raised = 0;
                while go_on.load(Ordering::Relaxed) {
                    let report = app.raise().await;
                    raised += 1;
                    let resolved = report.resolved_by.as_ref().expect("somebody answered");
                    assert_eq!(resolved.by.version.split('.').next(), Some(returning(&report)));
                    let asked = report.decisions.iter().filter(|decision| &*decision.by.name == "versioned");
                    assert_eq!(asked.count(), 1);
                }
                raised
            })
        })
        .collect();
    for number in 0..replacements {
        put(&app.place, if number.is_multiple_of(2) { "versioned_2" } else { "versioned_1" });
        assert_eq!(app.replaced().await.changes.len(), 1);
    }
    go_on.store(false, Ordering::Relaxed);
    let mut raised = 0;
    for one in raising {
        raised += one.await.expect("every error is answered");
    }
    let app = Arc::into_inner(app).expect("nobody raises any more");
    app.running.stop().await;
    let stopped: Vec<(String, u64, u64)> = lives(&app.place).into_iter().filter(|(what, ..)| what == "stopped").collect();
    assert_eq!(stopped.len(), replacements + 1);
    assert_eq!(stopped.iter().map(|(_, _, asked)| asked).sum::<u64>(), raised, "after its end nobody is asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_event_is_lost_or_doubled_here() {
    under_load("in-process", 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_event_is_lost_or_doubled_isolated() {
    under_load("process", 10).await;
}

/// What is refused replaces nothing, whatever name the file has by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_renamed_and_is_then_refused_leaves_what_runs_from_it() {
    let app = app("in-process").start().await;
    let (first, second) = (app.place.plugins().join(FILE), app.place.plugins().join("librenamed.so"));
    std::fs::rename(first, &second).expect("our own file");
    assert_eq!(app.replaced().await.changes, [], "the same bytes");
    let garbage = app.place.write("garbage", "no library");
    std::fs::rename(garbage, second).expect("our own files");
    assert_eq!(app.replaced().await.changes, []);
    assert_eq!(app.versions().await, (json!(1), json!(1)));
    app.running.stop().await;
}

/// Whoever has one of these names last, it is the bytes that count.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_changed_their_names_with_each_other_keep_their_instances() {
    let app = app("in-process").start().await;
    let [first, second, beside] = [FILE, "libscripted.so", ".beside"].map(|name| app.place.plugins().join(name));
    std::fs::rename(&first, &beside).expect("our own file");
    std::fs::rename(&second, &first).expect("our own file");
    std::fs::rename(&beside, &second).expect("our own file");
    assert_eq!(app.replaced().await.changes, [], "the same bytes");
    // The name of one is another's, and comes before the one that it has now.
    std::fs::rename(&second, app.place.plugins().join("libz.so")).expect("our own file");
    app.place.copy_as(library("documented_example"), "libscripted.so");
    let added = app.replaced().await;
    assert_eq!(added.changes.len(), 1);
    assert_says(&added.changes[0].to_string(), &["documented-example 0.1.0 (", ") was added"]);
    assert_eq!(app.versions().await, (json!(1), json!(1)));
    let place = app.place;
    app.running.stop().await;
    assert_eq!(lives(&place).len(), 2, "one was started, and stopped");
}

/// As a package does that names its file after its version.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_in_a_file_of_another_name_takes_over_or_leaves_what_runs_like_any_other() {
    for (refuses, expected) in [(0, 2), (2, 1)] {
        let app = app("in-process").set(format!("plugins.versioned.config.refuses = {refuses}")).start().await;
        std::fs::remove_file(app.place.plugins().join(FILE)).expect("our own file");
        app.place.copy_as(library("versioned_2"), "libversioned-2.so");
        assert_eq!(app.replaced().await.changes.len(), usize::from(refuses == 0));
        assert_eq!(app.versions().await, (json!(expected), json!(expected)));
        app.running.stop().await;
    }
}

/// The names of the plugins that run, with their versions.
fn running(app: &Started) -> Vec<String> {
    let registry = app.running.executor().dispatcher().registry();
    registry.plugins().iter().map(|plugin| format!("{} {}", plugin.name(), plugin.identity().version)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_whose_file_holds_another_one_now_goes() {
    let app = app("in-process").start().await;
    app.place.copy_as(library("documented_example"), FILE);
    let changes: Vec<String> = app.replaced().await.changes.iter().map(ToString::to_string).collect();
    assert_says(&changes.join("\n"), &["documented-example 0.1.0 (", ") was added\n", "versioned 1.0.0 (", ") was removed"]);
    assert_eq!(running(&app), ["documented-example 0.1.0", "scripted 0.1.0"]);
    app.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_came_in_from_another_file_runs_alone_though_its_old_file_is_refused() {
    let app = TestApp::with(&["same_name_a"]).start().await;
    app.place.copy_as(library("same_name_b"), "liba.so");
    app.place.write("plugins/libsame_name_a.so", "no library");
    assert_eq!(app.replaced().await.changes.len(), 1);
    assert_eq!(running(&app), ["same-name 2.0.0"]);
    app.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_whose_tasks_went_to_the_one_in_its_file_goes_though_its_new_version_is_refused() {
    let app = app("in-process").start().await;
    app.place.write("plugins/.new", renamed("versioned_2"));
    std::fs::rename(app.place.plugins().join(".new"), app.place.plugins().join(FILE)).expect("our own directory");
    app.place.copy_as(library("versioned_2"), "libz.so");
    app.replaced().await;
    assert_eq!(running(&app), ["a-version 2.0.0", "scripted 0.1.0"]);
    app.running.stop().await;
}

/// Who withdraws trust from what runs is told so, and restarts: a lock file that somebody forgot to renew takes no plugin away.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_vouches_for_other_bytes_leaves_what_runs() {
    let app = app("in-process").start().await;
    put(&app.place, "versioned_2");
    let plugins = app.place.plugins();
    Host::new(&app.place).args(["plugin", "lock", "--plugins"]).arg(&plugins).end().expect_code(0);
    put(&app.place, "versioned_1");
    let reason = app.refused_now("lock-mismatch").await;
    assert_says(&reason, &["versioned 1.0.0", "is not in the lock file", "expected versioned 2.0.0"]);
    put(&app.place, "versioned_2");
    assert_eq!(app.replaced().await.changes.len(), 1, "the one that it vouches for comes in");
    assert_eq!(app.versions().await, (json!(2), json!(2)));
    app.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replaced_once_the_application_has_stopped() {
    let app = app("in-process").start().await;
    let replacer = app.replacer();
    app.running.stop().await;
    put(&app.place, "versioned_2");
    assert!(matches!(replacer.replace().await, Err(ReplaceError::Stopping)));
    assert_eq!(lives(&app.place).len(), 2, "one was started, and stopped");
}

async fn what_runs_ends_in_the_version_it_began_with(isolation: &str) {
    let app = Arc::new(app(isolation).start().await);
    let go_on = GoOn::new(&app.place);
    let waiting = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.run("wait", json!([]), json!({})).await }
    });
    let held = go_on.is_waited_for().await;
    put(&app.place, "versioned_2");
    assert_eq!(app.replaced().await.changes.len(), 1);
    assert_eq!(app.versions().await, (json!(2), json!(2)));
    assert_eq!(stops(&app.place), Vec::<u64>::new(), "a call of it runs");
    drop(held);
    assert_eq!(returning(&waiting.await.expect("it runs")), "1");
    app.replacer().drained().await;
    assert_eq!(stops(&app.place), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_ends_in_the_version_it_began_with_here() {
    what_runs_ends_in_the_version_it_began_with("in-process").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_ends_in_the_version_it_began_with_isolated() {
    what_runs_ends_in_the_version_it_began_with("process").await;
}

#[tokio::test]
async fn a_replacement_is_finished_though_its_caller_stops_waiting() {
    let app = app("in-process").start().await;
    put(&app.place, "versioned_2");
    let replacer = app.replacer();
    let mut begun = Box::pin(replacer.replace());
    assert!(begun.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "a library takes time");
    drop(begun);
    assert_eq!(app.replaced().await.changes, [], "the one before it has done all");
    assert_eq!(app.versions().await, (json!(2), json!(2)));
}

#[tokio::test]
async fn a_plugin_that_is_added_where_nobody_was_asked_before_is_asked() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.inline_task("raise", |ctx, (): (), _kwargs: Value| Err::<(), _>(ctx.plugin_error(json!({}))));
        })
        .await;
    assert_eq!(app.raise().await.status, Status::Error);
    put(&app.place, "versioned_1");
    app.replaced().await;
    assert_eq!(returning(&app.raise().await), "1");
}

/// A plugin that is linked in.
struct LinkedIn;

impl Plugin for LinkedIn {
    type Config = ();

    fn create(_config: (), _host: qtasks_plugin_api::Host) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl LinkedIn {
    fn task(&self, _ctx: &TaskContext, (): (), (): ()) -> Result<u64, TaskError> {
        Ok(7)
    }
}

define_plugin! { plugin: LinkedIn, name: "linked-in", handlers: {}, tasks: { linked_in => inline task } }

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_added_and_removed_and_linked_in_ones_and_own_tasks_stay() {
    let app = TestApp::with(&["scripted"])
        .set("plugins.scripted.config.record = false")
        .set("tasks.own.config.greeting = 'hello'")
        .start_with(|app| {
            app.inline_task("own", |ctx, (): (), (): ()| Ok::<_, TaskError>(ctx.config::<Value>()?));
            app.add_plugin::<LinkedIn>(Triggers::Handled);
        })
        .await;
    let linked_in = async || returning(&app.run("linked_in", json!([]), json!({})).await).to_owned();
    let own = async || returning(&app.run("own", json!([]), json!({})).await).to_owned();
    assert_eq!(app.raise().await.status, Status::Error);
    put(&app.place, "versioned_1");
    let added = app.replaced().await;
    assert_says(&added.changes[0].to_string(), &["versioned 1.0.0 (", ") was added"]);
    assert_eq!(app.versions().await, (json!(1), json!(1)));
    assert_eq!(own().await, r#"{"greeting":"hello"}"#);
    assert_eq!(linked_in().await, "7");
    std::fs::remove_file(app.place.plugins().join(FILE)).expect("our own file");
    let removed = app.replaced().await;
    assert_says(&removed.changes[0].to_string(), &["versioned 1.0.0 (", ") was removed"]);
    assert_eq!(app.raise().await.status, Status::Error);
    assert_eq!(own().await, r#"{"greeting":"hello"}"#);
    assert_eq!(linked_in().await, "7");
    app.replacer().drained().await;
    assert_eq!(stops(&app.place), [1]);
}
