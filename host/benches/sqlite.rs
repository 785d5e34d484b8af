//! Tasks through the embedded queue: enqueue, run, plugin error, answer, finish. `cargo bench -p qtasks-host --bench sqlite`
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_host::broker::url::Synchronous;
use qtasks_host::broker::{BrokerSettings, BrokerUrl, Counts, Record, Store, open};
use qtasks_host::settings::{Override, Settings};
use qtasks_host::{App, Running, Task, TaskContext, TaskError};
use serde_json::json;
use support::{figure, library_of, median, ratio};
use tokio::sync::mpsc;

/// Tasks of one round: as many of each producer.
const TASKS: usize = 312 * PRODUCERS;
/// Who adds tasks at the same time, one task at a time each.
const PRODUCERS: usize = 64;
const ROUNDS: usize = 3;
const WANTED_PER_SECOND: f64 = 10_000.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let running = start().await;
        let (mut normal, mut full, mut drained) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            normal.push(through(&running, Synchronous::Normal).await);
            full.push(through(&running, Synchronous::Full).await);
            drained.push(drain(&running).await);
        }
        let normal = median(normal.into_iter());
        figure("sqlite_tasks_per_second_normal", normal, "/s");
        ratio("sqlite_normal_over_wanted", normal / WANTED_PER_SECOND);
        figure("sqlite_tasks_per_second_full", median(full.into_iter()), "/s");
        figure("sqlite_drain_tasks_per_second_normal", median(drained.into_iter()), "/s");
        let latency = latency(&running).await;
        figure("sqlite_latency_p50", latency.as_secs_f64() * 1e3, "ms");
    });
}

/// A host with the sample `fallback` in this process, through a real `dlopen`.
async fn start() -> Running {
    let directory = tempfile::tempdir().expect("a directory").keep();
    std::fs::copy(library_of("fallback"), directory.join("libfallback.so")).expect("a copy");
    let path = toml::Value::from(directory.to_str().expect("a plain path"));
    let assignments = [
        format!("plugin_dir = {path}"),
        format!("state_dir = {path}"),
        format!("guest_program = {}", toml::Value::from(env!("CARGO_BIN_EXE_qtasks-host"))),
        "plugins.fallback.config.values.resize_image = 123".to_owned(),
        "concurrency = 8".to_owned(),
    ];
    let overrides = assignments.map(|assignment| Override { flag: String::new(), assignment });
    let mut app = App::new(Settings::read(None, &overrides).expect("good settings"));
    app.inline_task("resize_image", |ctx: &TaskContext, _: (String,), (): ()| -> Result<(), TaskError> {
        Err(ctx.plugin_error(json!({"message": "the image is larger than the limit", "bytes": 20_971_520})).into())
    });
    app.start().await.expect("it starts")
}

fn record() -> Record {
    let task = Task::new("resize_image").and_then(|task| task.with_arguments(("a.png",), json!({})));
    Record::new(task.expect("a task"))
}

async fn database(running: &Running, synchronous: Synchronous) -> (tempfile::TempDir, Arc<Store>) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = BrokerUrl::Sqlite { path: directory.path().join("tasks.db"), synchronous };
    let store = running.store(open(&BrokerSettings::new(url)).await.expect("a new database"));
    (directory, store)
}

/// Tasks per second while they are added and worked through at the same time.
async fn through(running: &Running, synchronous: Synchronous) -> f64 {
    let (_directory, store) = database(running, synchronous).await;
    let begun = Instant::now();
    let working = work(running, &store);
    let producing = async {
        let mut producers = tokio::task::JoinSet::new();
        for _ in 0..PRODUCERS {
            let store = Arc::clone(&store);
            producers.spawn(async move {
                for _ in 0..TASKS / PRODUCERS {
                    store.add(vec![record()]).await.expect("room");
                }
            });
        }
        producers.join_all().await;
    };
    tokio::join!(working, producing);
    rate(begun, &store).await
}

/// Tasks per second of a worker alone.
async fn drain(running: &Running) -> f64 {
    let (_directory, store) = database(running, Synchronous::Normal).await;
    store.add((0..TASKS).map(|_| record()).collect()).await.expect("room");
    let begun = Instant::now();
    work(running, &store).await;
    rate(begun, &store).await
}

async fn rate(begun: Instant, store: &Store) -> f64 {
    let seconds = begun.elapsed().as_secs_f64();
    let counts = store.backend().counts().await.expect("counts");
    let done = TASKS as u64;
    assert_eq!(counts, Counts { success: done, ..Counts::default() });
    done as f64 / seconds
}

/// Works until all tasks have ended.
async fn work(running: &Running, store: &Arc<Store>) {
    let worker = running.worker(Arc::clone(store));
    let stop = worker.stop();
    let (sender, mut reports) = mpsc::channel(1024);
    let counting = async {
        for _ in 0..TASKS {
            reports.recv().await.expect("a report of each");
        }
        stop.now();
    };
    let (worked, ()) = tokio::join!(worker.run(Some(sender)), counting);
    worked.expect("the broker is there");
}

/// From adding a task to having its report, one at a time, in another process' view of the file: its own handle.
async fn latency(running: &Running) -> Duration {
    let directory = tempfile::tempdir().expect("a directory");
    let url = BrokerUrl::Sqlite { path: directory.path().join("tasks.db"), synchronous: Synchronous::Normal };
    let settings = BrokerSettings::new(url);
    let store = running.store(open(&settings).await.expect("a new database"));
    let client = running.store(open(&settings).await.expect("the same database"));
    let worker = running.worker(store);
    let stop = worker.stop();
    let measuring = async {
        let mut times = Vec::new();
        for _ in 0..200 {
            let record = record();
            let uuid = record.task.uuid;
            let begun = Instant::now();
            client.add(vec![record]).await.expect("room");
            loop {
                let changed = client.backend().changed(Duration::from_secs(1));
                let found = client.get(uuid).await.expect("an answer").expect("it was added");
                if found.status.has_ended() {
                    break;
                }
                changed.await;
            }
            times.push(begun.elapsed());
        }
        stop.now();
        times
    };
    let (worked, times) = tokio::join!(worker.run(None), measuring);
    worked.expect("the broker is there");
    median(times.into_iter())
}
