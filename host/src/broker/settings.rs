//! How a backend is to be opened.

use std::sync::Arc;
use std::time::Duration;

use super::url::{BrokerUrl, Synchronous};

/// How a backend is to be opened. [`crate::Settings`] says these for an application.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Where.
    pub url: BrokerUrl,
    /// Whether to make the directory of the file where it is missing. For a path that somebody wrote, a missing one is a mistake.
    pub make_directory: bool,
    /// The project: tasks of one are unknown to another. `QueueTasks` is QTasks' own default.
    pub name: Arc<str>,
    /// How long a worker's beat may stop before its tasks are taken over. It beats at least six times in this time, and at least once
    /// a second.
    pub lease: Duration,
    /// After how many lost workers a task is set aside: it is what ends them.
    pub max_losses: u32,
    /// Redis: how long a task of a Python worker may stand still before it is taken over. `None`: for ever, since a Python worker has no
    /// beat that would tell a dead one from a slow one.
    pub recover_foreign_after: Option<Duration>,
}

impl BrokerSettings {
    /// The defaults, for this URL.
    #[must_use]
    pub fn new(url: BrokerUrl) -> Self {
        Self {
            url,
            make_directory: false,
            name: "QueueTasks".into(),
            lease: Duration::from_secs(10),
            max_losses: 3,
            recover_foreign_after: None,
        }
    }

    /// The file that is used where nothing is said: `tasks.db` in the state directory.
    #[must_use]
    pub fn default_url(state_dir: &std::path::Path) -> BrokerUrl {
        BrokerUrl::Sqlite { path: state_dir.join("tasks.db"), synchronous: Synchronous::Normal }
    }
}
