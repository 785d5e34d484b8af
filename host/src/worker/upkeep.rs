//! What a worker does now and then: say that it is there, take over what lost workers held, remove what is old.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use super::Shared;
use super::settings::WorkerSettings;
use super::stop::Stop;
use crate::broker::{BrokerError, BrokerErrorKind, Store};
use crate::shown::{chain, few};

/// QTasks' clients take a project for dead 20 seconds after it last spoke.
const SAY_RUNNING: Duration = Duration::from_secs(7);
/// Where it could not be said.
const SAY_AGAIN: Duration = Duration::from_millis(500);
const PRUNE: Duration = Duration::from_secs(60);

/// What fails is told, and tried again the next time. Ends by itself, and the worker with it, only when the broker is not there any more
/// for anybody else: what is added goes elsewhere, and nobody would know.
pub(super) async fn run(shared: Arc<Shared>, settings: WorkerSettings, stop: Stop) -> BrokerError {
    let mut running = interval_at(Instant::now() + SAY_RUNNING, SAY_RUNNING);
    let mut look_for_lost = interval(settings.look_for_lost);
    let mut prune = interval(PRUNE);
    for interval in [&mut running, &mut look_for_lost, &mut prune] {
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let store = &shared.store;
    loop {
        let done = tokio::select! {
            _ = running.tick() => {
                if !say_running(store).await {
                    // Clients that ask meanwhile are told that nobody is there.
                    running.reset_after(SAY_AGAIN);
                }
                Ok(())
            }
            _ = look_for_lost.tick() => store.running_older_tasks(&shared.info).await.map(|uuids| {
                if !uuids.is_empty() {
                    tracing::warn!("tasks of lost workers that wait again: {}: {}", uuids.len(), few(&uuids));
                }
            }),
            _ = prune.tick() => store.prune(settings.keep_results, settings.keep_decisions).await.map(|count| {
                if count > 0 {
                    tracing::debug!("old results removed: {count}");
                }
            }),
        };
        if let Err(error) = done {
            if error.kind == BrokerErrorKind::Gone {
                stop.now();
                return error;
            }
            tracing::warn!("upkeep of the broker: {}", chain(&error));
        }
    }
}

/// Lets the project's clients know that a worker is there; `false`: they do not know.
pub(super) async fn say_running(store: &Store) -> bool {
    let said = store.global_config().set_status().await;
    if let Err(error) = &said {
        tracing::debug!("the broker was not told that a worker runs: {}", chain(error));
    }
    said.is_ok()
}
