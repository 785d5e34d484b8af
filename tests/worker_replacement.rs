//! A worker replaces its plugins: at SIGHUP, or when it watches their directory.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::support::versioned::{FILE, put, stops};
use crate::support::worker::{Project, Worker};
use crate::support::{Host, assert_says};

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
