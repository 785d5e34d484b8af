//! One plugin in two versions, each of which says which it is, and notes when it is started and stopped.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;

use qtasks_host::plugin::LoadState;
use qtasks_host::{Replaced, Replacer};
use serde_json::{Value, json};

use super::app::Started;
use super::artifacts::library;
use super::{Place, TestApp, returning};

/// The file that holds the plugin, whatever version.
pub(crate) const FILE: &str = "libversioned.so";

/// Puts a library in the plugin's place, the way `install` and package managers do: written beside, and renamed.
pub(crate) fn put(place: &Place, name: &str) {
    place.copy_as(library(name), ".new");
    std::fs::rename(place.plugins().join(".new"), place.plugins().join(FILE)).expect("our own directory");
}

/// The library of a version under another plugin's name: the same tasks.
pub(crate) fn renamed(version: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(library(version)).expect("a library");
    let (found, renamed) = (br#""name":"versioned""#, br#""name":"a-version""#);
    let places: Vec<usize> = (0..bytes.len() - found.len()).filter(|at| bytes[*at..].starts_with(found)).collect();
    for at in places {
        bytes[at..at + found.len()].copy_from_slice(renamed);
    }
    bytes
}

/// An application that will run version 1, beside `scripted`.
pub(crate) fn app(isolation: &str) -> TestApp {
    let app = TestApp::with(&["scripted"]);
    put(&app.place, "versioned_1");
    app.set("plugins.scripted.config.record = false").set(format!("plugins.versioned.isolation = '{isolation}'"))
}

impl Started {
    pub(crate) fn replacer(&self) -> Arc<Replacer> {
        Arc::clone(self.running.replacer())
    }

    /// Makes what lies in the plugin directory what runs.
    #[track_caller]
    pub(crate) fn replaced(&self) -> impl Future<Output = Replaced> {
        let replacer = self.replacer();
        async move { replacer.replace().await.expect("what lies there goes together") }
    }

    /// Which version answers an error, and which runs a task.
    pub(crate) async fn versions(&self) -> (Value, Value) {
        let parsed = |report| serde_json::from_str(returning(&report)).expect("JSON");
        (parsed(self.raise().await), parsed(self.run("which", json!([]), json!({})).await))
    }

    /// Looks at the directory again, and asserts that the plugin's file is refused with this code, and that version 1 goes on; gives
    /// the reason.
    pub(crate) async fn refused_now(&self, code: &str) -> String {
        assert_eq!(self.replaced().await.changes, [], "what is refused replaces nothing");
        let reports = self.running.plugin_reports();
        let report = reports.iter().find(|report| report.path.ends_with(FILE)).expect("a report of it");
        assert_eq!(report.state, LoadState::Refused, "{report:?}");
        assert_eq!(report.error.as_ref().map(|error| error.kind.code()), Some(code), "{report:?}");
        assert_eq!(self.versions().await, (json!(1), json!(1)));
        report.reason().expect("a refusal has a reason")
    }
}

/// What the instances noted of their lives: what happened, to which version, and how many errors it had been asked about.
pub(crate) fn lives(place: &Place) -> Vec<(String, u64, u64)> {
    let text = std::fs::read_to_string(place.state().join("plugins/versioned/life.jsonl")).expect("it was started");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines
        .map(|line| {
            let number = |key: &str| line[key].as_u64().expect("a number");
            (line["what"].as_str().expect("a text").to_owned(), number("version"), number("asked"))
        })
        .collect()
}

/// The versions that were stopped, in order.
pub(crate) fn stops(place: &Place) -> Vec<u64> {
    lives(place).into_iter().filter(|(what, ..)| what == "stopped").map(|(_, version, _)| version).collect()
}

/// The FIFO that a call of the plugin waits for. Make it after the start.
pub(crate) struct GoOn(PathBuf);

impl GoOn {
    pub(crate) fn new(place: &Place) -> Self {
        Self(place.fifo("state/plugins/versioned/go_on"))
    }

    /// Waits until a call waits; it goes on when the value is dropped.
    pub(crate) async fn is_waited_for(&self) -> File {
        let path = self.0.clone();
        let open = move || OpenOptions::new().write(true).open(path);
        tokio::task::spawn_blocking(open).await.expect("it opens").expect("the plugin reads")
    }
}
