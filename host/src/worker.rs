//! The worker: takes tasks from a broker, runs them, finishes them.

pub mod report;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::broker::MemoryBroker;
use crate::task::{Ended, Execution, Task, TaskExecutor};

pub use report::{Status, TaskReport};

/// Runs tasks from a broker, several at once.
#[derive(Debug)]
pub struct Worker {
    executor: Arc<TaskExecutor>,
    concurrency: usize,
}

impl Worker {
    /// A worker that runs at most `concurrency` tasks at once.
    #[must_use]
    pub fn new(executor: Arc<TaskExecutor>, concurrency: usize) -> Self {
        Self { executor, concurrency }
    }

    /// Runs until the broker says that there will be no more tasks. Reports go to `reports` in the order in which tasks end;
    /// when nobody receives them any more, the worker ends early and leaves the rest in the broker.
    pub async fn run(&self, broker: Arc<MemoryBroker>, reports: mpsc::Sender<TaskReport>) {
        let mut lanes = JoinSet::new();
        // No lane at all would leave every task waiting.
        for _ in 0..self.concurrency.max(1) {
            lanes.spawn(lane(Arc::clone(&self.executor), Arc::clone(&broker), reports.clone()));
        }
        while let Some(ended) = lanes.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a worker lane ended: {error}");
            }
        }
    }
}

async fn lane(executor: Arc<TaskExecutor>, broker: Arc<MemoryBroker>, reports: mpsc::Sender<TaskReport>) {
    while let Some(task) = broker.take().await {
        let (mut task, execution) = execute(&executor, task).await;
        if let Ended::Retry { after } = execution.ended {
            tracing::info!(task = &*task.name, uuid = %task.uuid, attempt = task.attempt, seconds = after.as_secs_f64(), "the task will run again");
            task.attempt += 1;
            broker.retry(task, after);
            continue;
        }
        let sent = reports.send(TaskReport::new(task, execution)).await;
        broker.finish();
        if sent.is_err() {
            broker.drain();
        }
    }
}

/// One attempt. A panic of the application's own code around the task, a middleware's, is the task's error.
async fn execute(executor: &TaskExecutor, task: Task) -> (Task, Execution) {
    let ran = AssertUnwindSafe(executor.execute(task.clone())).catch_unwind().await;
    match ran {
        // Another attempt begins with the arguments that the task came with, as in QTasks.
        Ok((_, execution)) if matches!(execution.ended, Ended::Retry { .. }) => (task, execution),
        Ok(ran) => ran,
        Err(payload) => (task, Execution::panicked(&*payload)),
    }
}

/// Runs one task to its end, waiting between attempts.
pub(crate) async fn run_to_end(executor: &TaskExecutor, mut task: Task) -> TaskReport {
    loop {
        let (mut ran, execution) = execute(executor, task).await;
        let Ended::Retry { after } = execution.ended else { return TaskReport::new(ran, execution) };
        tokio::time::sleep(after).await;
        ran.attempt += 1;
        task = ran;
    }
}
