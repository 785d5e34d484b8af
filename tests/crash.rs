//! Workers that are killed at random points under load: every task ends with its result, and runs again only where its worker was lost.
//!
//! `QTASKS_TEST_CRASH_ROUNDS` says how many kills there are, 20 without it. The counts are printed: `cargo test crash -- --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_host::Task;
use qtasks_host::broker::{Backend, BrokerSettings, Filter, Record, TaskStatus, open};
use rustix::process::Signal;
use serde_json::json;
use uuid::Uuid;

use crate::support::Place;
use crate::support::redis::RedisServer;
use crate::support::worker::{Project, Worker};

/// Tasks that are added in each round.
const ADDED: u64 = 100;
/// Longest life of a worker after its first sign of life.
const LIFE_MILLIS: u64 = 250;
/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn rounds() -> u64 {
    std::env::var("QTASKS_TEST_CRASH_ROUNDS").map_or(20, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Numbers that look like chance, the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Whether the first attempt of this task raises an error, and a plugin says that it is to be tried again.
fn is_tried_again(number: u64) -> bool {
    number.is_multiple_of(5)
}

/// A worker that is at work.
fn worker(project: &Project) -> Worker {
    let file = toml::Value::from(project.place.path("runs").to_str().expect("a plain path"));
    let file = format!("plugins.counts-runs.config.file = {file}");
    project.start(&[&file, "lease = 0.15", "concurrency = 4", "max_losses = 1000000"])
}

/// How often each task ran.
fn runs(project: &Project) -> BTreeMap<Uuid, u64> {
    let text = std::fs::read_to_string(project.place.path("runs")).unwrap_or_default();
    let mut runs = BTreeMap::new();
    for line in text.lines() {
        *runs.entry(line.parse().expect("a uuid")).or_insert(0) += 1;
    }
    runs
}

async fn ended(backend: &Arc<dyn Backend>) -> BTreeSet<Uuid> {
    let filter = Filter { status: Some(TaskStatus::Success), ..Filter::latest(usize::MAX) };
    backend.list(filter).await.expect("records").iter().map(|record| record.task.uuid).collect()
}

/// Kills workers of the project again and again, and counts what became of the tasks.
pub(crate) async fn kill_workers(project: &Project, seed: u64) {
    let url = &project.url;
    let settings = BrokerSettings::new(url.parse().expect("a broker"));
    let backend = open(&settings).await.expect("the broker is there");
    let mut chance = Chance(seed);
    let mut added = BTreeMap::new();
    // What had ended at each kill, with how often it had run: it must not run again.
    let mut settled: BTreeMap<Uuid, u64> = BTreeMap::new();
    for round in 0..rounds() {
        let records: Vec<Record> = (0..ADDED)
            .map(|number| {
                let number = round * ADDED + number;
                let name = if is_tried_again(number) { "count_again" } else { "count" };
                let task = Task::new(name).and_then(|task| task.with_arguments((number,), json!({}))).expect("a task");
                added.insert(task.uuid, number);
                Record::new(task)
            })
            .collect();
        backend.add(records).await.expect("room");
        let worker = worker(project);
        // Not a synchronisation: the point of the kill is meant to be any.
        tokio::time::sleep(Duration::from_millis(chance.below(LIFE_MILLIS))).await;
        worker.signal(Signal::KILL);
        worker.end();
        let ended = ended(&backend).await;
        let now = runs(project);
        settled.extend(ended.iter().map(|uuid| (*uuid, now.get(uuid).copied().unwrap_or_default())));
    }
    let last = worker(project);
    let begun = Instant::now();
    while ended(&backend).await.len() < added.len() {
        assert!(begun.elapsed() < PATIENCE, "{:?} of {} tasks", backend.counts().await, added.len());
        backend.changed(Duration::from_millis(200)).await;
    }
    assert!(last.stop().0.success());

    let runs = runs(project);
    let (mut again, mut lost) = (0, 0);
    for (uuid, number) in &added {
        let mut count = |record: &Record, attempts: u64| {
            let uuid = record.task.uuid;
            let ran = runs.get(&uuid).copied().unwrap_or_default();
            assert!(ran >= attempts, "{uuid} has an end and ran {ran} times");
            assert!(ran <= u64::from(record.losses) + attempts, "{uuid} ran {ran} times and was lost {} times", record.losses);
            if let Some(settled) = settled.get(&uuid) {
                assert_eq!(ran, *settled, "{uuid} ran again after it had ended");
            }
            again += ran - attempts;
            lost += u64::from(record.losses);
        };
        let found = async |uuid| backend.get(uuid).await.expect("an answer").unwrap_or_else(|| panic!("{uuid} was forgotten"));
        let mut record = found(*uuid).await;
        let mut attempts = if is_tried_again(*number) { 2 } else { 1 };
        // On a Redis server each attempt has a record of its own.
        if let Some(child) = record.retry_child_uuid {
            count(&record, 1);
            attempts -= 1;
            record = found(child).await;
        }
        assert_eq!(record.returning.as_ref().map(|json| json.get()), Some(number.to_string().as_str()), "{record:?}");
        count(&record, attempts);
    }
    println!(
        "{url}: {} kills, {} tasks, all with their results; {lost} leases ran out, {again} tasks ran once more for that; seed {seed}",
        rounds(),
        added.len(),
    );
}

#[tokio::test]
async fn killed_workers_lose_no_task_of_a_file() {
    kill_workers(&Project::sqlite(&["counts_runs"]), 1).await;
}

#[tokio::test]
async fn killed_workers_lose_no_task_of_a_redis_server() {
    let Some(server) = RedisServer::start() else { return };
    kill_workers(&Project::at(Place::new(), server.url(), &["counts_runs"]), 2).await;
}
