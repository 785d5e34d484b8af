//! Tasks through a Redis server: run, plugin error, answer, finish. `cargo bench -p qtasks-host --bench redis`
//!
//! Needs `redis-server`; the comparison also a Python with `qtasks` 1.7.3, which QTASKS_TEST_PYTHON names (else `python3`).
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

#[path = "support/redis_by_hand.rs"]
mod by_hand;
mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use by_hand::{TASK, pipelined, prepare, release};
use qtasks_host::broker::{BrokerSettings, BrokerUrl, Record, Store, open};
use qtasks_host::settings::{Override, Settings};
use qtasks_host::{App, Running, Task, TaskContext, TaskError};
use redis::Connection;
use serde_json::json;
use support::{figure, library_of, median, ratio};

/// Tasks of one round.
const TASKS: usize = 30_000;
/// Tasks of one round of Python's worker.
const PYTHON_TASKS: usize = 1_500;
const ROUNDS: usize = 5;

fn main() {
    if let [_, worker, url, name] = &*std::env::args().collect::<Vec<_>>()
        && worker == "worker"
    {
        return work(url, name);
    }
    let Some(server) = Server::start() else { return println!("skipped: redis-server cannot be run") };
    let mut connection = server.connection();
    let native = Worker::native(&server);
    assert!(native.is_ready(&mut connection), "this program's worker runs tasks");
    let mut python = Worker::python(&server);
    let mut rounds: Vec<Round> = Vec::new();
    let mut pythons = Vec::new();
    for _ in 0..ROUNDS {
        let (rate, took) = through(&mut connection, &server, &native, TASKS).expect("this program's worker lives");
        if let Some(worker) = &python {
            match through(&mut connection, &server, worker, PYTHON_TASKS) {
                Some((python, _)) => pythons.push((rate, python)),
                None => {
                    println!("note: QTasks' Python worker ended by itself, its later rounds are not measured");
                    python = None;
                }
            }
        }
        let (same, bare) = (pipelined(&mut connection, TASKS, true), pipelined(&mut connection, TASKS, false));
        rounds.push(Round { rate, took, same, bare });
    }
    let of = |part: fn(&Round) -> f64| median(rounds.iter().map(part));
    figure("redis_tasks_per_second", of(|round| round.rate), "/s");
    figure("redis_worker_cpu_per_task", of(|round| round.took.worker), "µs");
    figure("redis_server_cpu_per_task", of(|round| round.took.server), "µs");
    figure("redis_pipelined_same_commands_per_second", of(|round| round.same), "/s");
    ratio("redis_over_pipelined_same_commands", of(|round| round.rate / round.same));
    figure("redis_pipelined_qtasks_commands_per_second", of(|round| round.bare), "/s");
    ratio("redis_over_pipelined_qtasks_commands", of(|round| round.rate / round.bare));
    if pythons.is_empty() {
        println!("skipped: no Python with qtasks 1.7.3, the ratio to its worker is not measured");
    } else {
        figure("qtasks_python_tasks_per_second", median(pythons.iter().map(|(_, python)| *python)), "/s");
        ratio("redis_over_qtasks_python", median(pythons.iter().map(|(native, python)| native / python)));
    }
    drop(python);
    figure("redis_worker_peak_memory", native.peak_memory(), "MB");
    let (p50, p99) = latency(&server, &native);
    figure("redis_latency_p50", p50, "ms");
    figure("redis_latency_p99", p99, "ms");
    figure("redis_worker_idle", native.idle() * 100.0, "% of a core");
}

/// What one round of each showed, in tasks per second.
struct Round {
    rate: f64,
    took: Took,
    /// The same commands with no task run.
    same: f64,
    /// QTasks' own alone.
    bare: f64,
}

/// The worker's process: this program, with the sample `fallback` through a real `dlopen`. One thread runs its tasks, as Python's
/// worker has one: the server needs a core as well (`qtasks-host worker` does so with `TOKIO_WORKER_THREADS=1`).
fn work(url: &str, name: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let app = app(url, name);
        app.run().await.expect("it runs");
    });
}

fn app(url: &str, name: &str) -> App {
    let directory = std::env::var("BENCH_PLUGINS").expect("the bench says where the plugins are");
    let text = |text: &str| toml::Value::from(text);
    let assignments = [
        format!("plugin_dir = {}", text(&directory)),
        format!("state_dir = {}", text(&directory)),
        format!("guest_program = {}", text(env!("CARGO_BIN_EXE_qtasks-host"))),
        format!("broker = {}", text(url)),
        format!("name = {}", text(name)),
        format!("plugins.fallback.config.values.{TASK} = 123"),
        "concurrency = 8".to_owned(),
    ];
    let overrides = assignments.map(|assignment| Override { flag: String::new(), assignment });
    let mut app = App::new(Settings::read(None, &overrides).expect("good settings"));
    app.inline_task(TASK, |ctx: &TaskContext, _: (String,), (): ()| -> Result<(), TaskError> {
        Err(ctx.plugin_error(json!({"message": "the image is larger than the limit", "bytes": 20_971_520})).into())
    });
    app
}

struct Server {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let directory = tempfile::tempdir().expect("a directory");
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self { child, port, directory };
        let begun = Instant::now();
        while redis::Client::open(server.url()).and_then(|client| client.get_connection()).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn connection(&self) -> Connection {
        redis::Client::open(self.url()).and_then(|client| client.get_connection()).expect("the server runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker in a process of its own, over a project of its own; ends with the bench.
struct Worker {
    child: Child,
    project: &'static str,
}

impl Worker {
    fn native(server: &Server) -> Self {
        let plugins = server.directory.path().join("plugins");
        std::fs::create_dir(&plugins).expect("a new directory");
        std::fs::copy(library_of("fallback"), plugins.join("libfallback.so")).expect("a copy");
        let project = "Native";
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["worker", &server.url(), project])
            .env("BENCH_PLUGINS", &plugins)
            .stderr(Stdio::null())
            .spawn()
            .expect("this program runs");
        Self { child, project }
    }

    /// Python's, once it has run a task; `None` where there is none.
    fn python(server: &Server) -> Option<Self> {
        let python = std::env::var("QTASKS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let is_there = "import importlib.metadata as m; import redis; assert m.version('qtasks') == '1.7.3'";
        let found = Command::new(&python).args(["-c", is_there]).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/python/qtasks_worker.py");
        let project = "Python";
        let child = Command::new(&python)
            .arg(script)
            .args([&server.url(), project])
            .current_dir(server.directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it ran a moment ago");
        let worker = Self { child, project };
        worker.is_ready(&mut server.connection()).then_some(worker)
    }

    /// Waits until it has run a task; `false` when it ends before.
    fn is_ready(&self, connection: &mut Connection) -> bool {
        prepare(connection, self.project, 1);
        release(connection, self.project);
        self.done(connection).is_some()
    }

    /// When nothing was left for it to do; `None` when it ends before. Looked at twice: between two commands of QTasks' worker a task
    /// is nowhere.
    fn done(&self, connection: &mut Connection) -> Option<Instant> {
        let begun = Instant::now();
        while !self.has_ended() {
            assert!(begun.elapsed() < Duration::from_secs(120), "the worker of {} does not work", self.project);
            let looked = Instant::now();
            if is_done(connection, self.project) {
                std::thread::sleep(Duration::from_millis(50));
                if is_done(connection, self.project) {
                    return Some(looked);
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Whether its process has ended; it is taken note of only when this is dropped.
    fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('Z'))
    }

    /// The most memory that it had, in megabytes.
    fn peak_memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
        peak.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }

    /// The share of a core that it takes with nothing to do.
    fn idle(&self) -> f64 {
        const LOOK: Duration = Duration::from_secs(10);
        let begin = self.cpu_seconds();
        std::thread::sleep(LOOK);
        (self.cpu_seconds() - begin) / LOOK.as_secs_f64()
    }

    fn cpu_seconds(&self) -> f64 {
        cpu_seconds(&self.child)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has taken of the cores so far, in ticks of 10 ms: threads that ended are counted as well.
fn cpu_seconds(process: &Child) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = |field: usize| fields.split(' ').nth(field).and_then(|ticks| ticks.parse::<f64>().ok()).expect("a number");
    // utime and stime.
    (ticks(11) + ticks(12)) / 100.0
}

fn is_done(connection: &mut Connection, project: &str) -> bool {
    let left: (u64, u64) = redis::pipe()
        .cmd("LLEN")
        .arg(format!("{project}:task_queue"))
        .cmd("ZCARD")
        .arg(format!("{project}:task_process"))
        .query(connection)
        .expect("the server runs");
    left == (0, 0)
}

/// What one task took of a core, in microseconds.
struct Took {
    worker: f64,
    server: f64,
}

/// Tasks per second of a worker that finds them all waiting; `None` when it ends before they do.
fn through(connection: &mut Connection, server: &Server, worker: &Worker, tasks: usize) -> Option<(f64, Took)> {
    let _: () = redis::cmd("FLUSHDB").query(connection).expect("the server runs");
    prepare(connection, worker.project, tasks);
    let before = (worker.cpu_seconds(), cpu_seconds(&server.child));
    let begun = Instant::now();
    release(connection, worker.project);
    let seconds = worker.done(connection)?.duration_since(begun).as_secs_f64();
    let per_task = |before: f64, now: f64| (now - before) / tasks as f64 * 1e6;
    let took = Took { worker: per_task(before.0, worker.cpu_seconds()), server: per_task(before.1, cpu_seconds(&server.child)) };
    let sample: String = redis::cmd("EVAL")
        .arg("local n = 0; for _, key in ipairs(redis.call('KEYS', KEYS[1] .. ':????????-*')) do if redis.call('HGET', key, 'returning') == '123' then n = n + 1 end end; return tostring(n)")
        .arg(1)
        .arg(worker.project)
        .query(connection)
        .expect("the server runs");
    assert_eq!(sample, tasks.to_string(), "every task has the plugin's answer");
    Some((tasks as f64 / seconds, took))
}

/// From adding a task to having its result in a client of its own, one at a time: median and 99th percentile, in milliseconds.
fn latency(server: &Server, worker: &Worker) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut times = runtime.block_on(async {
        // A client only: it loads no plugin.
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings { state_dir: directory.path().to_owned(), ..Settings::default() };
        let running: Running = App::new(settings).start().await.expect("it starts");
        let url: BrokerUrl = server.url().parse().expect("a URL");
        let settings = BrokerSettings { name: worker.project.into(), ..BrokerSettings::new(url) };
        let store = running.store(open(&settings).await.expect("the server runs"));
        let mut times = Vec::new();
        for _ in 0..500 {
            times.push(one_task(&store).await);
        }
        times
    });
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

async fn one_task(client: &Arc<Store>) -> f64 {
    let task = Task::new(TASK).and_then(|task| task.with_arguments(("a.png",), json!({}))).expect("a task");
    let uuid = task.uuid;
    let begun = Instant::now();
    client.add(vec![Record::new(task)]).await.expect("room");
    loop {
        let mut changed = client.backend().changed(Duration::from_secs(1));
        let changed_already = futures_util::FutureExt::now_or_never(changed.as_mut()).is_some();
        let found = client.get(uuid).await.expect("an answer").expect("it was added");
        if found.status.has_ended() {
            return begun.elapsed().as_secs_f64() * 1e3;
        }
        if !changed_already {
            changed.await;
        }
    }
}
