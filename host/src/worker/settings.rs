//! How a worker works.

use std::time::Duration;

/// How a worker works. [`crate::Settings`] says these for an application.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSettings {
    /// Tasks that run at once.
    pub concurrency: usize,
    /// Tasks that are at most taken ahead, while they are short.
    pub prefetch: usize,
    /// How long what runs may take to end when the worker is stopped.
    pub drain_deadline: Duration,
    /// How often the worker looks for tasks of lost workers.
    pub look_for_lost: Duration,
    /// How long results are kept.
    pub keep_results: Duration,
    /// How long decisions are kept.
    pub keep_decisions: Duration,
}
