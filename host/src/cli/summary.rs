//! What a run came to, per task and per plugin.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::sync::Arc;
use std::time::Duration;

use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{Status, TaskReport, shown};

/// Most tasks that are counted one by one. Whoever adds tasks names them, and a plugin may rename them: each may have a name of its own.
const MOST_TASKS: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Summary {
    tasks: BTreeMap<Arc<str>, TaskCounts>,
    /// Those beyond [`MOST_TASKS`], together.
    other_tasks: Option<TaskCounts>,
    plugins: BTreeMap<Arc<str>, PluginCounts>,
}

#[derive(Debug, Default)]
struct TaskCounts {
    success: u64,
    error: u64,
    cancel: u64,
    /// Plugin and what it answered.
    resolved: BTreeMap<(Arc<str>, &'static str), u64>,
}

#[derive(Debug, Default)]
struct PluginCounts {
    asked: u64,
    passed: u64,
    failed: u64,
    time: Duration,
}

impl Summary {
    pub(crate) fn add(&mut self, report: &TaskReport) {
        let task = if self.tasks.len() < MOST_TASKS || self.tasks.contains_key(&report.task) {
            self.tasks.entry(Arc::clone(&report.task)).or_default()
        } else {
            self.other_tasks.get_or_insert_default()
        };
        match report.status {
            Status::Success => task.success += 1,
            Status::Error => task.error += 1,
            Status::Cancel => task.cancel += 1,
        }
        if let Some(resolution) = &report.resolved_by {
            let key = (Arc::clone(&resolution.by.name), resolution.outcome.name());
            *task.resolved.entry(key).or_default() += 1;
        }
        let earlier = report.history.iter().flat_map(|attempt| &attempt.decisions);
        for decision in earlier.chain(&report.decisions) {
            let plugin = self.plugins.entry(Arc::clone(&decision.by.name)).or_default();
            plugin.asked += 1;
            plugin.time += decision.duration;
            match decision.outcome {
                OutcomeKind::Pass => plugin.passed += 1,
                OutcomeKind::Failed => plugin.failed += 1,
                _ => {}
            }
        }
    }

    pub(crate) fn errors(&self) -> u64 {
        self.sum(|task| task.error)
    }

    fn sum(&self, count: impl Fn(&TaskCounts) -> u64) -> u64 {
        self.tasks.values().chain(&self.other_tasks).map(count).sum()
    }

    /// Whoever adds a task names it, so its name is shown and obeyed by no terminal.
    fn rows(&self) -> impl Iterator<Item = (String, &TaskCounts)> {
        let others = self.other_tasks.iter().map(|others| ("(others)".to_owned(), others));
        self.tasks.iter().map(|(name, task)| (shown(&**name).to_string(), task)).chain(others)
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (success, error, cancel) = (self.sum(|task| task.success), self.sum(|task| task.error), self.sum(|task| task.cancel));
        let count = success + error + cancel;
        let word = if count == 1 { "task" } else { "tasks" };
        writeln!(f, "{count} {word}: {success} success, {error} error, {cancel} cancel")?;
        let names = self.rows().map(|(name, _)| name).chain(self.plugins.keys().map(|name| name.to_string()));
        let width = names.map(|name| name.chars().count()).max().unwrap_or(0).max(6);
        if !self.tasks.is_empty() {
            writeln!(f, "  {:width$}  {:>8}  {:>8}  {:>8}  resolved by", "task", "success", "error", "cancel")?;
        }
        for (name, task) in self.rows() {
            let mut resolved = String::new();
            for ((plugin, outcome), count) in &task.resolved {
                let gap = if resolved.is_empty() { "" } else { ", " };
                write!(resolved, "{gap}{plugin} ({outcome}) {count}")?;
            }
            let line = format!("  {name:width$}  {:>8}  {:>8}  {:>8}  {resolved}", task.success, task.error, task.cancel);
            writeln!(f, "{}", line.trim_end())?;
        }
        if !self.plugins.is_empty() {
            writeln!(f, "  {:width$}  {:>8}  {:>8}  {:>8}  {:>8}  mean", "plugin", "asked", "answered", "passed", "failed")?;
        }
        for (name, plugin) in &self.plugins {
            let answered = plugin.asked - plugin.passed - plugin.failed;
            let mean = plugin.time.as_secs_f64() * 1e6 / plugin.asked as f64;
            writeln!(
                f,
                "  {name:width$}  {:>8}  {answered:>8}  {:>8}  {:>8}  {mean:.1} µs",
                plugin.asked, plugin.passed, plugin.failed
            )?;
        }
        Ok(())
    }
}
