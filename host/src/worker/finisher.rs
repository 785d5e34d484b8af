//! Records what became of tasks, many at once. What cannot be recorded now is kept and tried again: a result is never dropped.

use std::sync::Arc;

use qtasks_plugin_api::Trigger;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::function_info::FunctionInfo;
use super::stop::Stop;
use super::{FIRST_PAUSE, LAST_WRITES, LONGEST_PAUSE, Shared};
use crate::broker::{Finish, Lease, Record};
use crate::shown::chain;
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

/// Starts the finisher, which ends when the last sender is gone and everything is recorded. Once the worker is `drained` the broker has
/// [`LAST_WRITES`] for it. Gives how much could not be recorded.
pub(super) fn start(
    shared: Arc<Shared>,
    reports: Option<mpsc::Sender<TaskReport>>,
    stop: Stop,
    drained: Stop,
) -> (mpsc::Sender<Ended>, JoinHandle<u64>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (sender, tokio::spawn(run(Arc::new(Finisher { shared, reports, stop, drained, given_up: Stop::default() }), receiver)))
}

/// Batches on their way at the same time: while the broker works on one, the next is made ready.
const ON_THEIR_WAY: usize = 2;

struct Finisher {
    shared: Arc<Shared>,
    reports: Option<mpsc::Sender<TaskReport>>,
    stop: Stop,
    drained: Stop,
    /// The broker has had its time: what comes after is given up, too, and does not wait as long again.
    given_up: Stop,
}

/// What became of a batch.
enum Batch {
    /// It was recorded. Others are to be told of these of it, and whether they have ended.
    Recorded(Vec<(Record, bool)>),
    /// It was given up: so many.
    GivenUp(u64),
}

async fn run(finisher: Arc<Finisher>, mut ended: mpsc::Receiver<Ended>) -> u64 {
    let (mut recording, mut telling) = (JoinSet::new(), JoinSet::new());
    let mut given_up = 0;
    let mut batch = Vec::new();
    loop {
        let done = if recording.len() < ON_THEIR_WAY {
            tokio::select! {
                biased;
                Some(done) = recording.join_next() => done,
                count = ended.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    recording.spawn(Arc::clone(&finisher).record_and_report(std::mem::take(&mut batch)));
                    continue;
                }
            }
        } else if let Some(done) = recording.join_next().await {
            done
        } else {
            continue;
        };
        given_up += finisher.tell_all(done, &mut telling);
    }
    while let Some(done) = recording.join_next().await {
        given_up += finisher.tell_all(done, &mut telling);
    }
    while telling.join_next().await.is_some() {}
    given_up
}

impl Finisher {
    /// Records a batch and reports it.
    async fn record_and_report(self: Arc<Self>, batch: Vec<Ended>) -> Batch {
        let (finishes, reports): (Vec<Finish>, Vec<Option<TaskReport>>) =
            batch.into_iter().map(|ended| (ended.finish, ended.report)).unzip();
        let finishes: Arc<[Finish]> = finishes.into();
        let Some(lost) = self.record(&finishes).await else {
            return Batch::GivenUp(finishes.len() as u64);
        };
        for lease in &lost {
            tracing::warn!(uuid = %lease.uuid, "the lease was lost before the task ended: another worker has it, and this result is dropped");
        }
        let asked = TOLD.iter().any(|trigger| self.shared.executor.dispatcher().has_subscribers(*trigger));
        let mut to_tell = Vec::new();
        for (finish, report) in finishes.iter().zip(reports) {
            if lost.contains(&finish.lease) {
                continue;
            }
            if asked {
                to_tell.push((finish.record.clone(), finish.retry.is_none()));
            }
            if let (Some(sender), Some(report)) = (&self.reports, report)
                && sender.send(report).await.is_err()
            {
                // Nobody reads any more.
                self.stop.now();
            }
        }
        Batch::Recorded(to_tell)
    }

    /// Whoever is told afterwards does not hold up what comes next. Gives how many were given up.
    fn tell_all(&self, recorded: Result<Batch, JoinError>, telling: &mut JoinSet<()>) -> u64 {
        let given_up = match recorded {
            Ok(Batch::Recorded(to_tell)) => {
                for (record, has_ended) in to_tell {
                    telling.spawn(tell(Arc::clone(&self.shared), record, has_ended));
                }
                0
            }
            Ok(Batch::GivenUp(count)) => count,
            Err(error) => {
                tracing::error!("a batch of results was not recorded; these tasks will run again: {error}");
                // At least: nobody can tell how many.
                1
            }
        };
        while telling.try_join_next().is_some() {}
        given_up
    }

    /// Records a batch; gives the leases that were lost. `None`: given up.
    async fn record(&self, batch: &Arc<[Finish]>) -> Option<Vec<Lease>> {
        let mut last_error = None;
        let recorded = async {
            let mut pause = FIRST_PAUSE;
            loop {
                let error = match self.shared.store.finish(Arc::clone(batch)).await {
                    Ok(lost) => return lost,
                    Err(error) => error,
                };
                tracing::error!(
                    "results that cannot be recorded now: {}; trying again in {} s: {}",
                    batch.len(),
                    pause.as_secs_f64(),
                    chain(&error)
                );
                last_error = Some(error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        let time_is_over = async {
            self.drained.wait().await;
            // Each batch from its own beginning: whoever is sent the reports may have held it up.
            let _ = timeout(LAST_WRITES, self.given_up.wait()).await;
        };
        tokio::select! {
            biased;
            lost = recorded => return Some(lost),
            () = time_is_over => self.given_up.now(),
        }
        let why = last_error.map_or_else(|| "the broker does not answer".to_owned(), |error| chain(&error));
        tracing::error!("results that could not be recorded, whose tasks will run again: {}; {why}", batch.len());
        None
    }
}

async fn tell(shared: Arc<Shared>, record: Record, has_ended: bool) {
    #[derive(Serialize)]
    struct Kwargs<'a> {
        task_func: Option<FunctionInfo>,
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
