//! What is particular to tasks in a file: leases across processes, disks that are full, files that are damaged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_host::broker::url::Synchronous;
use qtasks_host::broker::{
    Backend, BrokerErrorKind, BrokerSettings, BrokerUrl, Cancelled, Filter, Finish, Record, Requeued, TaskStatus, open,
};
use rusqlite::Connection;

use crate::brokers::{take_one, task};
use crate::support::worker::{Project, Worker};
use crate::support::{Place, assert_says, c};

const LEASE: Duration = Duration::from_millis(150);
/// What a test waits for must come within this time, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(place: &Place) -> BrokerSettings {
    let url = BrokerUrl::Sqlite { path: place.path("tasks.db"), synchronous: Synchronous::Normal };
    BrokerSettings { lease: LEASE, max_losses: 2, ..BrokerSettings::new(url) }
}

/// A worker over the file.
async fn worker(place: &Place) -> Arc<dyn Backend> {
    let backend = open(&settings(place)).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.source));
    backend.attach().await.expect("a worker");
    backend
}

/// Looks until the tasks of a lost worker were taken over.
async fn take_over(backend: &Arc<dyn Backend>) -> Vec<qtasks_host::broker::Taken> {
    let begun = Instant::now();
    loop {
        let taken = backend.take_over().await.expect("an answer");
        if !taken.is_empty() {
            return taken;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing was taken over");
        tokio::time::sleep(LEASE / 10).await;
    }
}

/// The file as a stranger sees it.
fn file(place: &Place) -> Connection {
    Connection::open(place.path("tasks.db")).expect("the file is there")
}

#[tokio::test]
async fn the_tasks_of_a_dead_worker_come_back_once_and_it_finishes_them_no_more() {
    let place = Place::new();
    let (dead, one, other) = (worker(&place).await, worker(&place).await, worker(&place).await);
    one.add(vec![task("a", 0), task("b", 0)]).await.expect("room");
    let old = take_one(&dead).await;
    // With its last handle a worker is gone, and with it its beat, as after a crash.
    drop(dead);
    let taken = take_over(&one).await;
    assert_eq!(taken.iter().map(|taken| taken.lease.uuid).collect::<Vec<_>>(), [old.lease.uuid]);
    assert_eq!((taken[0].record.losses, taken[0].record.status), (1, TaskStatus::Process));
    assert!(taken[0].lease.delivery > old.lease.delivery);
    assert!(other.take_over().await.expect("an answer").is_empty(), "once");
    let late = Finish { lease: old.lease, record: old.record, retry: None, attempt: None };
    assert_eq!(other.finish(Arc::new([late])).await, Ok(vec![old.lease]));
    // Given back, it has its old place: before the one that was added after it.
    one.give_back(taken).await.expect("an answer");
    assert_eq!(&*take_one(&other).await.record.task.name, "a");
}

#[tokio::test]
async fn a_request_to_a_dead_worker_goes_with_it_and_stays_on_the_record() {
    let place = Place::new();
    let (dead, one) = (worker(&place).await, worker(&place).await);
    one.add(vec![task("a", 0)]).await.expect("room");
    let uuid = take_one(&dead).await.lease.uuid;
    drop(dead);
    assert_eq!(one.cancel(uuid, "not any more".to_owned()).await, Ok(Cancelled::Asked));
    let taken = take_over(&one).await;
    assert_eq!(taken[0].record.cancel_asked.as_deref(), Some("not any more"));
    let left: i64 = file(&place).query_row("SELECT count(*) FROM cancellation", [], |row| row.get(0)).expect("a number");
    assert_eq!(left, 0, "nobody reads it any more");
}

#[tokio::test]
async fn a_request_to_a_worker_that_leaves_goes_with_it() {
    let place = Place::new();
    let (leaves, one) = (worker(&place).await, worker(&place).await);
    one.add(vec![task("a", 0)]).await.expect("room");
    let uuid = take_one(&leaves).await.lease.uuid;
    assert_eq!(one.cancel(uuid, "not any more".to_owned()).await, Ok(Cancelled::Asked));
    assert_eq!(leaves.detach().await, Ok(1));
    let left: i64 = file(&place).query_row("SELECT count(*) FROM cancellation", [], |row| row.get(0)).expect("a number");
    assert_eq!(left, 0, "nobody reads it any more");
}

#[tokio::test]
async fn a_worker_that_was_seen_by_a_clock_that_is_ahead_is_not_there() {
    let place = Place::new();
    let one = worker(&place).await;
    one.set_running().await.expect("room");
    assert_eq!(one.is_running().await, Ok(true));
    one.detach().await.expect("an answer");
    let ahead = qtasks_host::broker::unix_now() + 3600.0;
    file(&place).execute("INSERT INTO worker VALUES (x'00', 1, ?1)", [ahead]).expect("SQL");
    assert_eq!(one.is_running().await, Ok(false));
}

#[tokio::test]
async fn old_rows_are_removed_to_the_last_however_many_they_are() {
    let place = Place::new();
    let one = worker(&place).await;
    let file = file(&place);
    file.execute_batch(
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 4500)
         INSERT INTO task (uuid, name, priority, args, kwargs, created_at, updated_at, status, attempt)
         SELECT randomblob(16), 'a', 0, '[]', '{}', 1.5, 1.5, 2, 1 FROM number;
         WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 4500)
         INSERT INTO attempt (uuid, task_name, attempt, at, seconds, error, decisions)
         SELECT randomblob(16), 'a', 1, 1.5, 0.5, '{}', '[]' FROM number;",
    )
    .expect("SQL");
    let left = |table: &str| -> i64 {
        file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a number")
    };
    let (hour, ages) = (Duration::from_secs(3600), Duration::from_secs(1 << 40));
    assert_eq!(one.prune(hour, ages).await, Ok(4500));
    assert_eq!((left("task"), left("attempt")), (0, 4500));
    assert_eq!(one.prune(hour, hour).await, Ok(0));
    assert_eq!(left("attempt"), 0);
}

#[tokio::test]
async fn the_tasks_of_a_living_worker_are_never_taken_over() {
    let place = Place::new();
    let (living, other) = (worker(&place).await, worker(&place).await);
    living.add(vec![task("a", 0)]).await.expect("room");
    take_one(&living).await;
    let file = file(&place);
    let beat = || file.query_row("SELECT min(beat) FROM worker", [], |row| row.get::<_, i64>(0)).expect("it is known");
    let begun = Instant::now();
    // Several times the lease, counted by the workers' own beats.
    while beat() < 24 {
        assert_eq!(other.take_over().await.map(|taken| taken.len()), Ok(0));
        assert!(begun.elapsed() < PATIENCE, "the worker does not beat");
        tokio::time::sleep(LEASE / 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_locked_for_several_leases_takes_no_task_from_a_living_worker() {
    let place = Place::new();
    // SQLite looks every tenth of a second whether a lock is gone; a lease is longer than that.
    let lease = Duration::from_secs(1);
    let settings = BrokerSettings { lease, ..settings(&place) };
    let (living, other) = (open(&settings).await.expect("a new file"), open(&settings).await.expect("the same file"));
    for worker in [&living, &other] {
        worker.attach().await.expect("a worker");
    }
    living.add(vec![task("a", 0)]).await.expect("room");
    let taken = take_one(&living).await;
    let file = file(&place);
    let beats = || {
        let mut beats = file.prepare("SELECT beat FROM worker ORDER BY id").expect("our own words");
        let beats = beats.query_map([], |row| row.get::<_, i64>(0)).expect("the file can be read");
        beats.collect::<Result<Vec<_>, _>>().expect("numbers")
    };
    for _ in 0..2 {
        file.execute_batch("BEGIN IMMEDIATE").expect("nobody else keeps it locked");
        // Not a synchronisation: the time in which no worker can show that it lives. A worker looks for lost ones all the while.
        let begun = Instant::now();
        while begun.elapsed() < 2 * lease {
            assert_eq!(other.take_over().await.map(|taken| taken.len()), Ok(0));
            tokio::time::sleep(lease / 20).await;
        }
        file.execute_batch("ROLLBACK").expect("our own lock");
        let (first, begun) = (beats(), Instant::now());
        while beats().iter().zip(&first).any(|(now, first)| now - first < 9) {
            assert_eq!(other.take_over().await.map(|taken| taken.len()), Ok(0));
            assert!(begun.elapsed() < PATIENCE, "the workers do not beat");
            tokio::time::sleep(lease / 20).await;
        }
    }
    let finish = Finish { lease: taken.lease, record: taken.record, retry: None, attempt: None };
    assert_eq!(living.finish(Arc::new([finish])).await, Ok(Vec::new()), "the lease is its own still");
}

#[test]
fn whoever_only_looks_waits_for_nobody_who_writes() {
    let project = Project::sqlite(&[]);
    let uuid = project.add(&["a"]);
    let file = file(&project.place);
    file.execute_batch("BEGIN IMMEDIATE").expect("nobody else keeps it locked");
    assert_eq!(project.status(&uuid), "new");
    assert_says(&project.client(&["task", "list"]).end().expect_code(0).stdout, &[&uuid]);
    let refused = project.client(&["task", "add", "a"]).end().expect_code(70);
    assert_says(&refused.stderr, &["tasks.db: is locked by another process for longer than 5 s"]);
    file.execute_batch("ROLLBACK").expect("our own lock");
    project.add(&["a"]);
}

#[tokio::test]
async fn a_task_that_its_workers_do_not_survive_is_set_aside() {
    let place = Place::new();
    let client = worker(&place).await;
    let record = task("a", 0);
    let uuid = record.task.uuid;
    client.add(vec![record]).await.expect("room");
    for loss in 1..=2 {
        let worker = worker(&place).await;
        let taken = take_one(&worker).await;
        if loss == 2 {
            worker.begin(taken.lease).await.expect("an answer");
        }
        drop(worker);
        if loss == 1 {
            let taken = take_over(&client).await;
            client.give_back(taken).await.expect("an answer");
        }
    }
    let begun = Instant::now();
    let record = loop {
        assert!(client.take_over().await.expect("an answer").is_empty(), "two losses are enough");
        let record = client.get(uuid).await.expect("an answer").expect("it is there");
        if record.status.has_ended() {
            break record;
        }
        assert!(begun.elapsed() < PATIENCE, "{record:?}");
        tokio::time::sleep(LEASE / 10).await;
    };
    assert_eq!((record.status, record.losses), (TaskStatus::Error, 2));
    assert_says(record.dead_letter.as_deref().expect("set aside"), &["2 workers were lost"]);
    assert_eq!(record.error.expect("an error").kind, "WorkerLost");
    assert_eq!(client.list(Filter { dead_letter: true, ..Filter::latest(5) }).await.expect("records").len(), 1);
}

#[tokio::test]
async fn a_row_that_is_no_task_is_set_aside_and_the_others_come() {
    let place = Place::new();
    let backend = worker(&place).await;
    let damages = [
        ("args", "'[1'"),
        ("args", "'{}'"),
        ("kwargs", "'[]'"),
        ("args", "CAST(x'5bff5d' AS TEXT)"),
        ("extras", "'5'"),
        ("attempt", "-1"),
        ("name", "CAST(x'ff' AS TEXT)"),
        ("kwargs", &format!("'{}1{}'", "{\"a\":".repeat(200), "}".repeat(200))),
    ];
    let mut records: Vec<Record> = damages.iter().map(|_| task("damaged", 5)).collect();
    records.push(task("good", 0));
    let first = records[0].task.uuid;
    backend.add(records).await.expect("room");
    let file = file(&place);
    for (seq, (column, value)) in (1..).zip(&damages) {
        let sql = format!("UPDATE task SET {column} = {value} WHERE seq = {seq}");
        assert_eq!(file.execute(&sql, []).unwrap_or_else(|error| panic!("{sql}: {error}")), 1);
    }
    assert_eq!(&*take_one(&backend).await.record.task.name, "good");
    let reasons: Vec<String> = {
        let mut statement = file.prepare("SELECT dead_letter FROM task WHERE status = 3 ORDER BY seq").expect("SQL");
        let rows = statement.query_map([], |row| row.get(0)).expect("rows");
        rows.collect::<Result<_, _>>().expect("texts")
    };
    assert_eq!(reasons.len(), damages.len());
    for reason in &reasons {
        assert_says(reason, &["its row in the database is no task: "]);
    }
    assert_says(&reasons[1], &["args is no JSON list"]);
    assert_says(&reasons[7], &["nested deeper than 128"]);
    // What was found is not lost, and nobody runs what stands there instead.
    let record = backend.get(first).await.expect("an answer").expect("it is there");
    assert_eq!(record.extras["found_args"].get(), r#""[1""#);
    assert_eq!(record.error.expect("an error").kind, "UnreadableTask");
    assert_eq!(backend.requeue(first).await, Ok(Requeued::Unreadable));
    // Looking at them harms nothing either.
    assert!(backend.list(Filter::latest(100)).await.expect("records").iter().any(|record| &*record.task.name == "good"));
}

#[tokio::test]
async fn a_file_of_another_kind_or_layout_is_refused_and_left_alone() {
    let place = Place::new();
    let refused = async |prepare: &dyn Fn(&Connection)| {
        std::fs::remove_file(place.path("tasks.db")).ok();
        prepare(&file(&place));
        let before = std::fs::read(place.path("tasks.db")).expect("the file is there");
        let error = open(&settings(&place)).await.expect_err("no task database");
        assert_eq!(std::fs::read(place.path("tasks.db")).expect("the file is there")[100..], before[100..], "left alone");
        error.kind
    };
    let foreign = refused(&|file| file.execute_batch("CREATE TABLE cooking (recipe TEXT)").expect("SQL")).await;
    assert_eq!(foreign, BrokerErrorKind::Damaged);
    drop(backend_at(&place, "layout.db").await);
    std::fs::copy(place.path("layout.db"), place.path("tasks.db")).expect("a copy");
    file(&place).pragma_update(None, "user_version", 99).expect("SQL");
    let error = open(&settings(&place)).await.expect_err("another layout");
    assert_eq!(error.kind, BrokerErrorKind::Layout { found: 99, expected: 2 });
    assert_says(&error.to_string(), &["has layout 99, this program knows 2"]);
}

async fn backend_at(place: &Place, name: &str) -> Arc<dyn Backend> {
    let url = BrokerUrl::Sqlite { path: place.path(name), synchronous: Synchronous::Full };
    open(&BrokerSettings::new(url)).await.expect("a new file")
}

/// The library that makes a disk full or read-only for the process it is preloaded into; `None` where there is no C compiler.
fn full_disk(place: &Place) -> Option<PathBuf> {
    let library = place.path("full_disk.so");
    c::compile("full_disk", &library, &[]).then_some(library)
}

#[test]
fn a_full_disk_is_told_and_nothing_is_lost_by_it() {
    let project = Project::sqlite(&[]);
    let Some(shim) = full_disk(&project.place) else { return };
    let full = project.place.path("full");
    let go_on = project.place.fifo("go_on");
    let command = project
        .worker()
        .set(r#"tasks.waits.command = ["sh", "-c", "read line < go_on; echo 7"]"#)
        .set("lease = 3600.0")
        .env("LD_PRELOAD", &shim)
        .env("QTASKS_TEST_FULL", &full);
    let mut worker = Worker::spawn(command);
    let uuid = project.add(&["waits"]);
    let writer = std::fs::OpenOptions::new().write(true).open(&go_on).expect("the command reads");
    // The disk fills up while the task runs: its result waits in the worker.
    std::fs::write(&full, "").expect("a mark");
    std::io::Write::write_all(&mut &writer, b"go\n").expect("the command reads");
    drop(writer);
    let said = worker.read_until("results that cannot be recorded");
    assert_says(&said, &["sqlite:", "is full; make room, what was recorded so far is safe"]);
    // A task that comes meanwhile cannot be taken, and waits.
    let second = project.add(&["waits"]);
    assert_says(&worker.read_until("no tasks can be taken"), &["is full; make room"]);
    assert_eq!((project.status(&uuid), project.status(&second)), ("process".into(), "new".into()));
    std::fs::remove_file(&full).expect("our own mark");
    assert_eq!(project.wait(&uuid)["returning"], 7);
    crate::support::worker::let_go(&go_on);
    assert_eq!(project.wait(&second)["returning"], 7);
    assert!(worker.stop().0.success());
}

#[test]
fn a_file_that_cannot_be_written_is_told() {
    let project = Project::sqlite(&[]);
    let Some(shim) = full_disk(&project.place) else { return };
    let uuid = project.add(&["a"]);
    let mark = project.place.write("read_only", "");
    let told = "tasks.db: cannot be written; expected a file and a directory that this user may write to, also to read them, since SQLite";
    for words in [&["task", "add", "a"][..], &["task", "list"]] {
        let client = project.client(words).env("LD_PRELOAD", &shim).env("QTASKS_TEST_READ_ONLY", &mark).end();
        assert_says(&client.expect_code(70).stderr, &[told]);
    }
    std::fs::remove_file(&mark).expect("our own mark");
    assert_eq!(project.status(&uuid), "new", "nothing is lost");
}

#[test]
fn a_file_that_is_damaged_is_told_and_left_alone() {
    let project = Project::sqlite(&[]);
    project.add(&["a"]);
    let path = project.place.path("tasks.db");
    let mut bytes = std::fs::read(&path).expect("the file is there");
    // The pages behind the first, which names the tables.
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, &bytes).expect("our own file");
    let said = project.client(&["task", "list"]).end().expect_code(70).stderr;
    assert_says(&said, &["tasks.db: is damaged or something else than a task database; move it away or restore a copy"]);
    std::fs::write(&path, &bytes[..1000]).expect("our own file");
    let said = project.client(&["task", "list"]).end().expect_code(70).stderr;
    assert_says(&said, &["is damaged"]);
    assert_eq!(std::fs::read(&path).expect("the file is there"), &bytes[..1000]);
}

#[test]
fn a_worker_whose_file_was_removed_or_replaced_ends_and_says_so() {
    for replaced in [false, true] {
        let project = Project::sqlite(&[]);
        let uuid = project.add(&["nobody_provides_it"]);
        let worker = project.start(&["lease = 0.3"]);
        assert_eq!(project.wait(&uuid)["status"], "error", "it works with the file");
        let path = project.place.path("tasks.db");
        if replaced {
            std::fs::copy(&path, project.place.path("copy")).expect("our own file");
            std::fs::rename(project.place.path("copy"), &path).expect("our own files");
        } else {
            std::fs::remove_file(&path).expect("our own file");
        }
        let (status, said) = worker.end();
        assert_eq!(status.code(), Some(70), "{said}");
        assert_says(&said, &["tasks.db: is not the file any more that was opened: it was removed or replaced", "start again"]);
    }
}
