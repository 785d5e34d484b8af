//! Records what became of tasks, many at once. What cannot be recorded now is kept and tried again: a result is never dropped.

use std::sync::Arc;

use qtasks_plugin_api::Trigger;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::lane::FunctionInfo;
use super::stop::Stop;
use super::{FIRST_PAUSE, LONGEST_PAUSE, Shared, chain};
use crate::broker::{Finish, Lease, Record};
use crate::task::TaskReport;

/// An attempt that has ended, on its way to the broker.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) finish: Finish,
    /// What is told of a task that will not run again.
    pub(super) report: Option<TaskReport>,
}

/// Most that is recorded at once.
const BATCH: usize = 512;
/// Ended attempts that wait; lanes wait for room beyond that.
const WAITING: usize = 1024;

/// Who is told afterwards.
const TOLD: [Trigger; 2] = [Trigger::StorageRemoveFinishedTask, Trigger::WorkerExecuteAfter];

/// Starts the finisher, which ends when the last sender is gone and everything is recorded.
pub(super) fn start(
    shared: Arc<Shared>,
    reports: Option<mpsc::Sender<TaskReport>>,
    stop: Stop,
) -> (mpsc::Sender<Ended>, JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (sender, tokio::spawn(run(shared, receiver, reports, stop)))
}

async fn run(shared: Arc<Shared>, mut ended: mpsc::Receiver<Ended>, mut reports: Option<mpsc::Sender<TaskReport>>, stop: Stop) {
    let mut batch = Vec::new();
    // Who is told afterwards must not hold up what comes next.
    let mut telling = JoinSet::new();
    while ended.recv_many(&mut batch, BATCH).await > 0 {
        let (finishes, told): (Vec<Finish>, Vec<Option<TaskReport>>) =
            batch.drain(..).map(|ended| (ended.finish, ended.report)).unzip();
        let finishes: Arc<[Finish]> = finishes.into();
        let Some(lost) = record(&shared, &finishes, &stop).await else { continue };
        for lease in &lost {
            tracing::warn!(uuid = %lease.uuid, "the lease was lost before the task ended: another worker has it, and this result is dropped");
        }
        for (finish, report) in finishes.iter().zip(told) {
            if lost.contains(&finish.lease) {
                continue;
            }
            if TOLD.iter().any(|trigger| shared.executor.dispatcher().has_subscribers(*trigger)) {
                telling.spawn(tell(Arc::clone(&shared), finish.record.clone(), finish.retry.is_none()));
            }
            if let (Some(sender), Some(report)) = (&reports, report)
                && sender.send(report).await.is_err()
            {
                // Nobody reads any more.
                stop.now();
                reports = None;
            }
        }
        while telling.try_join_next().is_some() {}
    }
    while telling.join_next().await.is_some() {}
}

/// Records a batch; gives the leases that were lost. `None`: given up, since the worker was stopped while the broker is away.
async fn record(shared: &Shared, batch: &Arc<[Finish]>, stop: &Stop) -> Option<Vec<Lease>> {
    /// How often a stopped worker still tries.
    const LAST_ATTEMPTS: u32 = 5;
    let mut pause = FIRST_PAUSE;
    let mut after_stop = 0;
    loop {
        let error = match shared.store.finish(Arc::clone(batch)).await {
            Ok(lost) => return Some(lost),
            Err(error) => error,
        };
        if stop.is_asked() {
            after_stop += 1;
            if after_stop == LAST_ATTEMPTS {
                tracing::error!("{} results could not be recorded; these tasks will run again: {}", batch.len(), chain(&error));
                return None;
            }
        }
        tracing::error!(
            "{} results cannot be recorded, trying again in {} s: {}",
            batch.len(),
            pause.as_secs_f64(),
            chain(&error)
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn tell(shared: Arc<Shared>, record: Record, has_ended: bool) {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        task_func: Option<FunctionInfo<'a>>,
        task_broker: &'a crate::task::Task,
        model: &'a Record,
    }
    if has_ended {
        shared.store.finished(&record).await;
    }
    let task_func = FunctionInfo::of(&shared, &record.task.name);
    let kwargs = Kwargs { task_func, task_broker: &record.task, model: &record };
    shared.store.dispatcher().fire(Trigger::WorkerExecuteAfter, &kwargs).await;
}
