//! Plugins are replaced while the application runs: no event is lost or doubled. What can go wrong is in `faults/replacements.rs`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use qtasks_host::{ReplaceError, Status, Triggers};
use qtasks_plugin_api::{Error, Plugin, TaskContext, TaskError, define_plugin};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::app::Started;
use crate::support::artifacts::library;
use crate::support::versioned::{FILE, GoOn, app, lives, put, renamed, stops};
use crate::support::worker::{Project, Worker};
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

/// A project whose worker runs version 1.
fn project() -> Project {
    let project = Project::sqlite(&[]);
    put(&project.place, "versioned_1");
    project
}

#[test]
fn sighup_replaces_the_plugins_of_a_worker_and_no_task_is_lost() {
    let project = project();
    let mut worker = project.start(&[]);
    let file = project.place.write("tasks.jsonl", "{\"task\": \"which\"}\n".repeat(500));
    let file = file.to_str().expect("a plain path");
    let mut uuids = Vec::new();
    for round in 0..4 {
        let added = project.client(&["task", "add", "--from", file]).end().expect_code(0).stdout;
        uuids.extend(added.lines().map(str::to_owned));
        put(&project.place, if round % 2 == 0 { "versioned_2" } else { "versioned_1" });
        worker.signal(Signal::HUP);
        let line = worker.read_until("was replaced by");
        let (old, new) = if round % 2 == 0 { ("1.0.0", "2.0.0") } else { ("2.0.0", "1.0.0") };
        assert_says(&line, &[&format!("plugin versioned {old} ("), &format!(") was replaced by versioned {new} (")]);
        worker.read_until(") was drained and stopped");
        let now = project.wait(&project.add(&["which"]));
        assert_eq!(now["returning"], if round % 2 == 0 { 2 } else { 1 });
    }
    assert_eq!(project.wait(uuids.last().expect("2000 tasks"))["status"], "success");
    assert!(worker.stop().0.success());
    let ended = project.client(&["task", "list", "--status", "success", "--limit", "3000", "--json"]).end().results();
    assert_eq!(ended.len(), uuids.len() + 4);
    assert!(ended.iter().all(|record| record["returning"] == 1 || record["returning"] == 2));
    assert_eq!(stops(&project.place).len(), 5);
}

/// How many descriptors and threads a worker has.
fn holdings(worker: &Worker) -> (usize, usize) {
    let count = |of: &str| {
        let path = format!("/proc/{}/{of}", worker.pid().as_raw_nonzero());
        std::fs::read_dir(path).expect("our own child").count()
    };
    (count("fd"), count("task"))
}

#[test]
fn a_hundred_replacements_leave_no_descriptor_and_no_thread_behind() {
    let project = project();
    let mut worker = project.start(&[]);
    let mut replace = |number: usize| {
        put(&project.place, if number.is_multiple_of(2) { "versioned_2" } else { "versioned_1" });
        worker.signal(Signal::HUP);
        worker.read_until("was replaced by");
        worker.read_until(") was drained and stopped");
        holdings(&worker)
    };
    // The first ones make what is made once.
    let before = (0..20).map(&mut replace).last().expect("some");
    let after = (20..100).map(&mut replace).last().expect("some");
    // Some come and go, such as threads that the runtime keeps for a while; one for each replacement would be 80.
    let flat = |before: usize, after: usize| after < before + 20;
    assert!(flat(before.0, after.0) && flat(before.1, after.1), "descriptors and threads: {before:?}, later {after:?}");
    assert!(worker.stop().0.success());
    assert_eq!(stops(&project.place).len(), 101);
}

#[test]
fn a_watched_directory_replaces_by_itself() {
    let project = project();
    let mut worker = Worker::spawn(project.worker().arg("--watch"));
    put(&project.place, "versioned_2");
    assert_says(&worker.read_until("was replaced by"), &["versioned 2.0.0"]);
    assert_eq!(project.wait(&project.add(&["which"]))["returning"], 2);
    std::fs::remove_file(project.place.plugins().join(FILE)).expect("our own file");
    assert_says(&worker.read_until("was removed"), &["versioned 2.0.0"]);
    // A directory that is put in the place of the old one is the plugin directory from then on.
    let next = project.place.path("next");
    std::fs::create_dir(&next).expect("a new directory");
    std::fs::rename(project.place.plugins(), project.place.path("last")).expect("our own directory");
    std::fs::rename(&next, project.place.plugins()).expect("our own directory");
    put(&project.place, "versioned_1");
    assert_says(&worker.read_until("was added"), &["versioned 1.0.0"]);
    assert_eq!(project.wait(&project.add(&["which"]))["returning"], 1);
    assert!(worker.stop().0.success());
}

/// As releases are put in place: a link beside, and renamed over the old one.
fn lead(link: &Path, to: &str) {
    let beside = link.with_extension("new");
    symlink(to, &beside).expect("a new link");
    std::fs::rename(beside, link).expect("our own link");
}

#[test]
fn a_watched_directory_is_followed_through_links_that_are_swapped() {
    let project = project();
    let path = |name: &str| project.place.path(name);
    std::fs::rename(project.place.plugins(), path("v1")).expect("our own directory");
    for directory in ["plugins", "first", "second"] {
        std::fs::create_dir(path(directory)).expect("a new directory");
    }
    put(&project.place, "versioned_2");
    std::fs::rename(project.place.plugins(), path("v2")).expect("our own directory");
    lead(&path("first/plugins"), "../v1");
    lead(&path("second/plugins"), "../v1");
    lead(&path("current"), "first");
    let mut worker = Worker::spawn(project.worker_over(&path("current/plugins")).arg("--watch"));
    lead(&path("first/plugins"), "../v2");
    assert_says(&worker.read_until("was replaced by"), &["versioned 2.0.0"]);
    // What happens in the directory that is there now is seen as well.
    std::fs::remove_file(path("v2").join(FILE)).expect("our own file");
    assert_says(&worker.read_until("was removed"), &["versioned 2.0.0"]);
    lead(&path("current"), "second");
    assert_says(&worker.read_until("was added"), &["versioned 1.0.0"]);
    std::fs::remove_file(path("v1").join(FILE)).expect("our own file");
    assert_says(&worker.read_until("was removed"), &["versioned 1.0.0"]);
    assert!(worker.stop().0.success());
}

#[test]
fn a_watched_directory_is_looked_at_when_a_lock_file_elsewhere_changes() {
    let project = project();
    let (lock, plugins) = (project.place.path("allowed.toml"), project.place.plugins());
    let renew = || {
        let host = Host::new(&project.place).args(["plugin", "lock", "--plugins"]).arg(&plugins);
        host.arg("--lock-file").arg(&lock).end().expect_code(0);
    };
    renew();
    let mut worker = Worker::spawn(project.worker().arg("--lock-file").arg(&lock).arg("--watch"));
    put(&project.place, "versioned_2");
    assert_says(&worker.read_until("plugin refused"), &["lock-mismatch"]);
    assert_says(&worker.read_until("goes on"), &["plugin versioned 1.0.0 (", ") goes on: what was to replace it was refused"]);
    worker.read_until("no plugin was replaced");
    let before = std::fs::read(&lock).expect("a lock file");
    renew();
    assert_says(&worker.read_until("was replaced by"), &["versioned 2.0.0"]);
    put(&project.place, "versioned_1");
    worker.read_until("no plugin was replaced");
    // In place, as an editor may do it.
    std::fs::write(&lock, before).expect("our own file");
    assert_says(&worker.read_until("was replaced by"), &["versioned 1.0.0"]);
    assert!(worker.stop().0.success());
}

#[test]
fn a_watched_directory_is_looked_at_for_whatever_changes_what_may_run() {
    let project = project();
    let path = |name: &str| project.place.plugins().join(name);
    let mut worker = Worker::spawn(project.worker().arg("--watch"));
    symlink("nowhere", path("libz.so")).expect("a new link");
    assert_says(&worker.read_until("plugin refused"), &["libz.so"]);
    worker.read_until("no plugin was replaced");
    std::fs::set_permissions(path(FILE), std::fs::Permissions::from_mode(0o777)).expect("our own file");
    assert_says(&worker.read_until("plugin refused"), &[FILE]);
    worker.read_until("no plugin was replaced");
    std::fs::write(path("libversioned.so.minisig"), "no signature").expect("our own directory");
    worker.read_until("the plugin directory has changed");
    worker.read_until("no plugin was replaced");
    std::fs::set_permissions(path(FILE), std::fs::Permissions::from_mode(0o755)).expect("our own file");
    worker.read_until("no plugin was replaced");
    std::fs::write(path("plugins.lock"), "no lock").expect("our own directory");
    assert_says(&worker.read_until("plugin refused"), &["code=\"lock"]);
    assert!(worker.stop().0.success());
}

#[test]
fn a_watched_directory_that_never_becomes_quiet_is_looked_at_all_the_same() {
    let project = project();
    let mut worker = Worker::spawn(project.worker().arg("--watch"));
    put(&project.place, "versioned_2");
    let busy = project.place.plugins().join("busy.lock");
    let go_on = Arc::new(AtomicBool::new(true));
    let writing = std::thread::spawn({
        let go_on = Arc::clone(&go_on);
        move || {
            while go_on.load(Ordering::Relaxed) {
                std::fs::write(&busy, "").expect("our own directory");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    });
    worker.read_until("was replaced by");
    go_on.store(false, Ordering::Relaxed);
    writing.join().expect("it only writes");
    assert!(worker.stop().0.success());
}

#[test]
fn without_a_plugin_directory_sighup_says_so_and_the_worker_goes_on() {
    let project = Project::sqlite(&[]);
    let tasks = r#"tasks.seven.command = ["echo", "7"]"#;
    let host = Host::new(&project.place).args(["worker", "--broker", &project.url]);
    let mut worker = Worker::spawn(host.arg("--state-dir").arg(project.place.state()).set(tasks));
    worker.signal(Signal::HUP);
    worker.read_until("no plugin was replaced: no plugin directory is in use");
    assert_eq!(project.wait(&project.add(&["seven"]))["returning"], 7);
    assert!(worker.stop().0.success());
}
