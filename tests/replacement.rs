//! Plugins are replaced while the application runs: no event is lost or doubled, and what is refused leaves the old one serving.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use qtasks_host::plugin::LoadState;
use qtasks_host::trigger::Trigger;
use qtasks_host::{ReplaceError, Replaced, Triggers};
use serde_json::{Value, json};

use crate::support::app::{Started, asked};
use crate::support::artifacts::library;
use crate::support::{Place, TestApp, assert_says, returning};

const HERE: &str = "in-process";
const ISOLATED: &str = "process";

/// The file that holds the plugin under test, whatever version.
const FILE: &str = "libversioned.so";

/// Puts a library in the place of the plugin under test, the way `install` and package managers do: written beside, and renamed.
fn put(place: &Place, name: &str) {
    put_as(place, name, FILE);
}

fn put_as(place: &Place, name: &str, file: &str) {
    place.copy_as(library(name), ".new");
    std::fs::rename(place.plugins().join(".new"), place.plugins().join(file)).expect("our own directory");
}

/// An application that runs version 1.
fn app(isolation: &str) -> TestApp {
    let app = TestApp::with(&["scripted"]);
    put(&app.place, "versioned_1");
    app.set("plugins.scripted.config.record = false").set(format!("plugins.versioned.isolation = '{isolation}'"))
}

async fn started(isolation: &str) -> Started {
    app(isolation).start().await
}

impl Started {
    async fn replaced(&self) -> Replaced {
        self.running.replace_plugins().await.expect("what lies there goes together")
    }

    /// Which version answers an error, and which runs a task.
    async fn versions(&self) -> (Value, Value) {
        let parsed = |report| serde_json::from_str(returning(&report)).expect("JSON");
        (parsed(self.raise().await), parsed(self.run("which", json!([]), json!({})).await))
    }

    /// Replaces, and says why the file was refused.
    async fn refused_now(&self, file: &str, code: &str) -> String {
        let replaced = self.replaced().await;
        assert_eq!(replaced.changes, [], "what is refused replaces nothing");
        let reports = self.running.plugin_reports();
        let of_it = |path: &Path| path.file_name().is_some_and(|name| name == file);
        let report = reports.iter().find(|report| of_it(&report.path)).expect("a report of it");
        assert_eq!(report.state, LoadState::Refused, "{report:?}");
        assert_eq!(report.error.as_ref().map(|error| error.kind.code()), Some(code), "{report:?}");
        report.reason().expect("a refusal has a reason")
    }
}

/// What the instances noted of their lives: `[what, version, asked]`.
fn lives(place: &Place) -> Vec<(String, u64, u64)> {
    let path = place.state().join("plugins/versioned/life.jsonl");
    let text = std::fs::read_to_string(path).expect("it was started");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .map(|line| {
            let number = |key: &str| line[key].as_u64().expect("a number");
            (line["what"].as_str().expect("a text").to_owned(), number("version"), number("asked"))
        })
        .collect()
}

fn stops(place: &Place) -> Vec<u64> {
    lives(place).into_iter().filter(|(what, ..)| what == "stopped").map(|(_, version, _)| version).collect()
}

/// A FIFO that version 1 waits for.
struct GoOn(std::path::PathBuf);

impl GoOn {
    fn new(place: &Place) -> Self {
        Self(place.fifo("state/plugins/versioned/go_on"))
    }

    /// Waits until the plugin waits, and lets it go when the value is dropped.
    async fn is_waited_for(&self) -> std::fs::File {
        let path = self.0.clone();
        let open = move || std::fs::OpenOptions::new().write(true).open(path);
        tokio::task::spawn_blocking(open).await.expect("it opens").expect("the plugin reads")
    }
}

/// From here on: what is put in place of version 1, in this process and in one of its own.
async fn a_new_version_takes_over(isolation: &str) {
    let app = started(isolation).await;
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
    app.running.replacer().drained().await;
    assert_eq!(stops(&app.place), [1], "the old one was stopped, once");
    let stats = json!(app.running.stats(app.running.open_broker().await.expect("a file")).app().await);
    let plugins: Vec<&Value> = stats["plugins"].as_array().expect("a list").iter().map(|plugin| &plugin["version"]).collect();
    assert_eq!(plugins, ["0.1.0", "2.0.0"]);
    let place = app.place;
    app.running.stop().await;
    assert_eq!(stops(&place), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_takes_over_here() {
    a_new_version_takes_over(HERE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_takes_over_isolated() {
    a_new_version_takes_over(ISOLATED).await;
}
