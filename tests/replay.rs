//! `qtasks-host decisions replay`: what other plugins, or other settings, would make of the errors on record.

use std::time::Duration;

use qtasks_host::broker::{self, BrokerSettings};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::redis::RedisServer;
use crate::support::worker::{Project, Worker};
use crate::support::{Host, Place, assert_says};

const FAILS: &str = r#"tasks.fails.command = ["false"]"#;
const FAILS_TOO: &str = r#"tasks.fails_too.command = ["false"]"#;

/// A project in each kind of broker that outlives its workers.
fn projects(server: Option<&RedisServer>, plugins: &[&str]) -> Vec<Project> {
    let redis = server.map(|server| Project::at(Place::new(), server.url(), plugins));
    redis.into_iter().chain([Project::sqlite(plugins)]).collect()
}

impl Project {
    /// `decisions replay` over the plugins of the place, with nothing of the worker's but these settings.
    fn replay(&self, words: &[&str], settings: &[&str]) -> Host {
        let host = self.client(&["decisions", "replay"]).args(words).arg("--plugins").arg(self.place.plugins());
        settings.iter().fold(host.env("TMPDIR", self.place.path("tmp")), |host, setting| host.set(setting))
    }

    /// Runs these tasks under these settings, one after the other, to their ends.
    fn work(&self, tasks: &[&str], settings: &[&str]) -> Vec<String> {
        std::fs::create_dir(self.place.path("tmp")).expect("a new directory");
        let worker = self.start(settings);
        let one_by_one = tasks.iter().map(|task| {
            let uuid = self.add(&[task]);
            self.wait(&uuid);
            uuid
        });
        let uuids = one_by_one.collect();
        assert!(worker.stop().0.success());
        uuids
    }

    fn record(&self, uuid: &str) -> Value {
        let ended = self.client(&["task", "get", uuid, "--json"]).end();
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    }
}

/// What was and would be answered to an error: outcomes and values.
fn answers(replayed: &Value) -> [Value; 4] {
    let part = |when: &str, key: &str| replayed[when][key].clone();
    [part("recorded", "outcome"), part("recorded", "value"), part("now", "outcome"), part("now", "value")]
}

#[test]
fn what_would_be_decided_otherwise_is_shown_and_nothing_on_record_changes() {
    let server = RedisServer::start();
    for project in projects(server.as_ref(), &["fallback"]) {
        let tasks = [FAILS, FAILS_TOO, r#"tasks.nobodys.command = ["false"]"#];
        let with = |values: &'static str| [&tasks[..], &[values]].concat();
        let then = r#"plugins.fallback.config.values = { fails = 1, fails_too = { of = ["Gentoo", 2.5] } }"#;
        let uuids = project.work(&["fails", "fails_too", "nobodys"], &with(then));
        let before: Vec<Value> = uuids.iter().map(|uuid| project.record(uuid)).collect();

        let ended = project.replay(&[], &with(then)).end().expect_code(0);
        assert_eq!(ended.stdout, "");
        assert_says(&ended.stderr, &["3 errors: 3 as before, 0 otherwise\n"]);

        let now = r#"plugins.fallback.config.values = { fails = 2, fails_too = { of = ["Gentoo", 2.5] }, nobodys = 0 }"#;
        let ended = project.replay(&[], &with(now)).end().expect_code(7);
        assert_says(&ended.stderr, &["3 errors: 1 as before, 2 otherwise\n"]);
        let lines: Vec<&str> = ended.stdout.lines().collect();
        let [head, nobodys, fails] = lines[..] else { panic!("{}", ended.stdout) };
        assert_says(head, &["uuid", "recorded", "now", "error"]);
        let nobodys = nobodys.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_says(&nobodys, &[&uuids[2], "ago nobody fallback 0.1.0: result 0 TaskPluginTriggerError: false ended with"]);
        assert_says(fails, &[&uuids[0], "fallback 0.1.0: result 1  fallback 0.1.0: result 2"]);

        let all = project.replay(&["--all", "--json"], &with(now)).end().expect_code(7).results();
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!(answers(&all[0]), [json!(null), json!(null), json!("result"), json!(0)]);
        assert_eq!(all[0]["recorded"], json!(null));
        assert_eq!((&all[1]["same"], &all[1]["recorded"]["value"]), (&json!(true), &json!({"of": ["Gentoo", 2.5]})));
        assert_eq!((&all[2]["uuid"], &all[2]["attempt"], &all[2]["same"]), (&json!(uuids[0]), &json!(1), &json!(false)));
        assert_eq!(all[2]["error"]["kwargs"]["exit_status"], json!(1));
        assert_eq!(all[2]["decisions"][0]["plugin"], json!("fallback"));
        assert!(all[2]["decisions"][0]["digest"].is_string());

        for words in [&["--json", "--task", &uuids[2]], &["--json", "--limit", "1"]] {
            let one = project.replay(words, &with(now)).end().expect_code(7).result();
            assert_eq!((&one["uuid"], answers(&one)), (&json!(uuids[2]), answers(&all[0])), "{words:?}");
        }
        let after: Vec<Value> = uuids.iter().map(|uuid| project.record(uuid)).collect();
        assert_eq!(after, before);
    }
}

#[test]
fn a_first_plugin_is_tried_on_errors_that_nobody_was_asked_about() {
    let server = RedisServer::start();
    for project in projects(server.as_ref(), &[]) {
        project.work(&["fails"], &[FAILS]);
        project.place.copy("fallback");
        let values = "plugins.fallback.config.values = { fails = 1 }";
        let replayed = project.replay(&["--json"], &[FAILS, values]).end().expect_code(7).result();
        assert_eq!(answers(&replayed), [json!(null), json!(null), json!("result"), json!(1)]);
    }
}

#[test]
fn every_attempt_is_asked_about_as_the_attempt_that_it_was() {
    let server = RedisServer::start();
    for project in projects(server.as_ref(), &["retry_later"]) {
        let settings = [FAILS, "max_attempts = 2", "plugins.retry-later.config.delay_seconds = 0"];
        let with = |dead_letter: &'static str| [&settings[..], &[dead_letter]].concat();
        let uuids = project.work(&["fails"], &with("plugins.retry-later.config.dead_letter = true"));
        let replay =
            |dead_letter, code| project.replay(&["--all", "--json"], &with(dead_letter)).end().expect_code(code).results();
        let reason = "TaskPluginTriggerError in the last of 2 attempts";
        let same = replay("plugins.retry-later.config.dead_letter = true", 0);
        assert_eq!(same.len(), 2, "{same:?}");
        assert_eq!(answers(&same[0]), [json!("retry_after"), json!(null), json!("retry_after"), json!(0.0)]);
        assert_eq!(answers(&same[1]), [json!("dead_letter"), json!(reason), json!("dead_letter"), json!(reason)]);
        let other = replay("plugins.retry-later.config.dead_letter = false", 7);
        assert_eq!((&other[0]["same"], &other[1]["same"]), (&json!(true), &json!(false)));
        assert_eq!(other[1]["now"], json!(null));
        // Also where each retry has an id of its own, and the first one's is all that whoever added the task knows.
        let first = project.replay(&["--task", &uuids[0]], &with("plugins.retry-later.config.dead_letter = true"));
        assert_says(&first.end().expect_code(0).stderr, &["2 errors: 2 as before, 0 otherwise\n"]);
    }
}

#[test]
fn a_retry_that_nobody_could_follow_was_no_answer() {
    let project = Project::sqlite(&["scripted"]);
    let retries = r#"plugins.scripted.config.directive = { directive = "retry_after", seconds = 0.0 }"#;
    project.work(&["fails"], &[FAILS, retries, "max_attempts = 1"]);
    let replayed = project.replay(&["--all", "--json"], &[FAILS, retries, "max_attempts = 1"]).end().expect_code(0).result();
    assert_eq!((&replayed["recorded"], &replayed["now"]), (&json!(null), &json!(null)));
    assert_eq!(replayed["decisions"][0]["outcome"], json!("retry_after"));
}

#[test]
fn the_reason_and_the_error_that_were_answered_are_compared() {
    for (then, now, differs) in [
        (r#"{ directive = "cancel", reason = "no" }"#, r#"{ directive = "cancel", reason = "no" }"#, false),
        (r#"{ directive = "cancel", reason = "no" }"#, r#"{ directive = "cancel", reason = "never" }"#, true),
        (r#"{ directive = "cancel", reason = "no" }"#, r#"{ directive = "dead_letter", reason = "no" }"#, true),
        (
            r#"{ directive = "replace_error", error = { type = "HttpError", message = "404" } }"#,
            r#"{ directive = "replace_error", error = { type = "HttpError", message = "404" } }"#,
            false,
        ),
        (
            r#"{ directive = "replace_error", error = { type = "HttpError", message = "404" } }"#,
            r#"{ directive = "replace_error", error = { type = "HttpError", message = "410" } }"#,
            true,
        ),
    ] {
        let project = Project::sqlite(&["scripted"]);
        let directive = |directive| format!("plugins.scripted.config.directive = {directive}");
        project.work(&["fails"], &[FAILS, &directive(then)]);
        let code = if differs { 7 } else { 0 };
        let replayed = project.replay(&["--all", "--json"], &[FAILS, &directive(now)]).end().expect_code(code).result();
        assert_eq!(replayed["same"], json!(!differs), "{replayed}");
        assert!(!replayed["recorded"]["value"].is_null(), "{replayed}");
    }
}

#[test]
fn a_plugin_meets_nothing_of_the_workers_state_and_leaves_nothing_there() {
    let project = Project::sqlite(&["scripted"]);
    let answers = r#"plugins.scripted.config.answers = { task_executor_run_task_trigger_error = "7" }"#;
    project.work(&["fails"], &[FAILS, answers]);
    let noted = project.place.events("scripted").len();
    let failing = [FAILS, "plugins.scripted.config.fail = true"];
    let ended = project.replay(&[], &failing).arg("--state-dir").arg(project.place.state()).end().expect_code(7);
    assert_says(&ended.stdout, &["scripted 0.1.0: result 7  nobody (scripted failed)"]);
    assert_eq!(project.place.events("scripted").len(), noted, "it has a data directory of its own");
    let left = std::fs::read_dir(project.place.path("tmp")).expect("the directory for what is temporary").count();
    assert_eq!(left, 0, "which is removed in the end");
}

#[test]
fn a_crash_costs_the_replay_and_no_quarantine_of_the_worker() {
    let project = Project::sqlite(&["misbehaves_in_handler"]);
    project.work(&["fails"], &[FAILS]);
    let crash = r#"plugins.misbehaves-in-handler.config.how = "segfault""#;
    let isolated = "plugins.misbehaves-in-handler.isolation = \"process\"";
    let ended = project.replay(&["--all", "--json"], &[FAILS, crash, isolated]).end();
    let failure = &ended.result()["decisions"][0]["failure"];
    assert_says(&failure.to_string(), &["SIGSEGV"]);
    let ended = project.replay(&[], &[FAILS, crash]).arg("--state-dir").arg(project.place.state()).end();
    assert_eq!(ended.code, None, "{ended:?}");
    assert_says(&ended.stderr, &["fatal signal 11 inside plugin misbehaves-in-handler 0.1.0"]);
    let quarantine = Host::new(&project.place).args(["plugin", "quarantine", "list", "--json", "--state-dir"]);
    assert_eq!(quarantine.arg(project.place.state()).end().expect_code(0).stdout.trim(), "[]");
}

#[test]
fn a_replay_ends_at_a_signal_and_at_the_second_one_whatever_hangs() {
    let project = Project::sqlite(&[]);
    project.work(&["fails"], &[FAILS]);
    project.place.copy("hangs_inline");
    for (isolation, hangs_this_process) in [("process", false), ("in-process", true)] {
        let isolation = format!("plugins.hangs-inline.isolation = {isolation:?}");
        let settings = [FAILS, &isolation, "plugins.hangs-inline.deadline = 600"];
        let mut replay = Worker::begin(project.replay(&[], &settings));
        replay.read_until("hanging");
        replay.signal(Signal::TERM);
        replay.read_until("SIGTERM: stopping; another signal stops at once");
        if hangs_this_process {
            replay.signal(Signal::INT);
        }
        let (status, said) = replay.end();
        assert_eq!(status.code(), Some(130), "{said}");
    }
}

#[test]
fn errors_that_are_not_for_plugins_are_left_out_or_told() {
    let project = Project::sqlite(&["fallback"]);
    let slow = r#"tasks.slow.command = ["sleep", "60"]"#;
    let settings = [slow, "max_time = 0.05", r#"plugins.fallback.config.values = { slow = 1, ecko = 2 }"#];
    let with = |intercept: &'static str| [&settings[..], &[intercept]].concat();
    project.work(&["slow", "ecko"], &with(r#"intercept = "all""#));
    let ended = project.replay(&["--all"], &with(r#"intercept = "all""#)).end().expect_code(0);
    assert_says(&ended.stderr, &["1 error: 1 as before, 0 otherwise\n"]);
    let ended = project.replay(&[], &settings).end().expect_code(7);
    assert_says(&ended.stdout, &["fallback 0.1.0: result 1  nobody is asked  TimeoutError"]);
}

#[tokio::test]
async fn a_task_whose_record_is_gone_is_told() {
    let project = Project::sqlite(&["fallback"]);
    let uuids = project.work(&["fails"], &[FAILS, "plugins.fallback.config.values = { fails = 1 }"]);
    let settings = BrokerSettings::new(project.url.parse().expect("a URL"));
    let backend = broker::open(&settings).await.expect("the file of tasks");
    assert_eq!(backend.prune(Duration::ZERO, Duration::from_secs(3600)).await, Ok(1));
    let ended = project.replay(&[], &[FAILS]).end().expect_code(0);
    assert_says(&ended.stderr, &["0 errors: 0 as before, 0 otherwise; 1 task with decisions has no record any more\n"]);
    let ended = project.replay(&["--task", &uuids[0]], &[FAILS]).end().expect_code(5);
    assert_says(&ended.stderr, &["is known here", "its result was removed"]);
}

#[test]
fn what_cannot_be_replayed_is_refused_with_what_to_do() {
    let project = Project::sqlite(&["fallback"]);
    let ended = project.replay(&[], &[]).end().expect_code(2);
    assert_says(&ended.stderr, &["tasks.db: there is no such file", "`task add`"]);
    assert!(!project.place.path("tasks.db").exists());
    project.add(&["any"]);
    let ended = project.client(&["decisions", "replay"]).end().expect_code(2);
    assert_says(&ended.stderr, &["there are no plugins to ask", "--plugins"]);
    let memory = Host::new(&project.place).args(["decisions", "replay", "--broker", "memory:"]).end().expect_code(2);
    assert_says(&memory.stderr, &["the memory of this command alone", "expected sqlite:PATH"]);
    project.place.write("plugins/libcut.so", "\x7fELF");
    std::fs::create_dir(project.place.path("tmp")).expect("a new directory");
    let ended = project.replay(&[], &[]).end().expect_code(4);
    assert_says(&ended.stderr, &["libcut.so", "0 errors: 0 as before"]);
}
