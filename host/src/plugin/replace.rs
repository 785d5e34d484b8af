//! What a second look at the plugin directory makes of the plugins that run: which stay, which make room, and how those leave.
//!
//! What lies in the directory is what runs, with one exception: a file that is refused leaves what ran in its place serving.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::bytes::Digest;
use super::instance::Plugin;
use super::loader::{Loaded, check_tasks};
use super::manifest::Manifest;
use super::registry;
use super::report::LoadState;

impl Loaded {
    /// Beside what runs: plugins that are linked in stay, the others wait for the turn of their files.
    pub(crate) fn beside(running: &[Arc<Plugin>]) -> Self {
        let (before, plugins) = running.iter().cloned().partition(|plugin| plugin.digest().is_some());
        Self { plugins, before, reports: Vec::new() }
    }

    /// The plugin that runs from these very bytes.
    pub(super) fn running(&self, digest: Digest) -> Option<&Arc<Plugin>> {
        self.before.iter().find(|plugin| plugin.digest() == Some(digest))
    }

    /// Those that will still be there when this one has come in: it takes the place of the plugin of its name, and of its file.
    pub(super) fn not_replaced_by<'a>(
        &'a self,
        manifest: &'a Manifest,
        path: &'a Path,
    ) -> impl Iterator<Item = &'a Arc<Plugin>> + Clone {
        self.before.iter().filter(move |plugin| plugin.name() != manifest.name && !plugin.is_at(path))
    }

    /// Notes a plugin that runs. What ran from its file may be found at another one, and stays where it is until then.
    pub(super) fn take_in(&mut self, plugin: Arc<Plugin>) {
        self.before.retain(|old| old.name() != plugin.name());
        self.plugins.push(plugin);
    }

    /// Once every file had its turn: a plugin whose file, or whose new version, was refused goes on as it was.
    pub(super) fn keep_what_was_refused(&mut self) {
        for plugin in std::mem::take(&mut self.before) {
            let of_it = |report: &&super::LoadReport| plugin.is_at(&report.path) || report.name() == Some(plugin.name());
            let is_refused = self.reports.iter().filter(of_it).any(|report| report.state == LoadState::Refused);
            // What took the place of its file may have taken its tasks as well.
            if is_refused && check_tasks(plugin.manifest(), self.plugins.iter()).is_ok() {
                tracing::warn!("plugin {} goes on: what was to replace it was refused", plugin.identity());
                self.plugins.push(plugin);
            }
        }
    }
}

/// The first pause between two looks whether a plugin is still in use; each is twice as long as the one before.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// The longest pause.
const LAST_LOOK: Duration = Duration::from_millis(250);

/// Waits until nobody uses a plugin any more that nobody can begin to use, and stops it.
///
/// At `deadline` a plugin in a process of its own is stopped all the same, and what still runs there fails. Nobody can end code in
/// this process, and `stop` is promised to come after the last call; so there it is waited for, until `at_once` says that the host
/// itself stops.
pub(crate) async fn drain(mut plugin: Arc<Plugin>, deadline: Duration, mut at_once: watch::Receiver<bool>) {
    let identity = Arc::clone(plugin.identity());
    // Beyond what a clock can say there is no deadline.
    let until = Instant::now().checked_add(deadline);
    let (mut pause, mut told) = (FIRST_LOOK, false);
    // A count that falls tells nobody, so it is looked at. It never rises: whoever could hand the plugin on has let go of it.
    loop {
        plugin = match Arc::try_unwrap(plugin) {
            Ok(alone) => {
                plugin = Arc::new(alone);
                break;
            }
            Err(shared) => shared,
        };
        if !told && until.is_some_and(|until| Instant::now() >= until) {
            let seconds = deadline.as_secs_f64();
            if plugin.can_be_killed() {
                tracing::warn!("plugin {identity} is stopped, though calls of it still run after {seconds} s");
                break;
            }
            tracing::warn!("plugin {identity} still runs calls after {seconds} s; it is stopped once they have ended");
            told = true;
        }
        if tokio::time::timeout(pause, at_once.wait_for(|at_once| *at_once)).await.is_ok() {
            break;
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
    registry::stop(plugin).await;
    tracing::info!("plugin {identity} was drained and stopped");
}
