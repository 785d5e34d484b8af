//! A directory of one test: plugins, state, and whatever else it needs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use serde_json::Value;

use super::artifacts::library;

/// A directory of one test; gone when dropped.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory"));
        std::fs::create_dir(place.plugins()).expect("a new directory");
        // Whatever the umask is: what a group can write to is warned about.
        for directory in [place.root(), &*place.plugins()] {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).expect("our own directory");
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn plugins(&self) -> PathBuf {
        self.path("plugins")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Copies a built library into the plugin directory. A copy, since a link would be the same library to the dynamic linker,
    /// with the same statics as in another test.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        self.copy_as(library(name), &format!("lib{name}.so"))
    }

    pub(crate) fn copy_as(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.plugins().join(name);
        std::fs::copy(from, &to).unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
        to
    }

    /// Writes a file and gives its path.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file in the test's own directory");
        path
    }

    /// Makes a FIFO and gives its path.
    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO in the test's own directory");
        path
    }

    /// The events that a fixture plugin recorded, in order.
    pub(crate) fn events(&self, plugin: &str) -> Vec<Value> {
        let path = self.state().join("plugins").join(plugin).join("events.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    /// The kwargs of the one event of `trigger` that a fixture plugin recorded.
    #[track_caller]
    pub(crate) fn event(&self, plugin: &str, trigger: &str) -> Value {
        let mut found: Vec<Value> = self.events(plugin).into_iter().filter(|event| event["trigger"] == trigger).collect();
        assert_eq!(found.len(), 1, "one event of {trigger} at {plugin}");
        found.remove(0)["kwargs"].take()
    }
}
