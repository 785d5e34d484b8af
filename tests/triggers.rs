//! Every trigger, fired by the work that it is about, at a real plugin in this process and in one of its own: with exactly the kwargs
//! that the table of triggers says, and with every returnable key replaced alone, which changes that and nothing else. And once more
//! with the tasks in a file instead of in memory.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qtasks_host::broker::{Backend, MemoryBackend, Record, Store};
use qtasks_host::queue_tasks::Waited;
use qtasks_host::starter::Starter;
use qtasks_host::{App, QueueTasks, Task, TaskError};
use qtasks_plugin_api::Trigger;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::TestApp;
use crate::support::app::Started;
use crate::support::artifacts::ROOT;

/// Makes the table `ROWS`, and of each function that a row is named by three tests: with the plugin in this process, in one of its own,
/// and in this process with the tasks in a file.
macro_rules! rows {
    ($($trigger:ident: $test:ident;)*) => {
        pub(super) const ROWS: &[qtasks_plugin_api::Trigger] = &[$(qtasks_plugin_api::Trigger::$trigger),*];

        mod in_process {
            $(#[tokio::test]
            async fn $test() {
                super::$test("in-process", qtasks_plugin_api::Trigger::$trigger).await;
            })*
        }

        mod in_a_file {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::IN_A_FILE, qtasks_plugin_api::Trigger::$trigger).await;
            })*
        }

        mod isolated {
            $(#[tokio::test]
            async fn $test() {
                super::$test("process", qtasks_plugin_api::Trigger::$trigger).await;
            })*
        }
    };
}

/// Methods that are those of a broker in this field.
macro_rules! methods_of {
    ($field:ident: $($name:ident($($argument:ident: $type:ty),*) -> $given:ty;)*) => {
        $(fn $name(&self $(, $argument: $type)*) -> $given {
            self.$field.$name($($argument),*)
        })*
    };
}

mod broker;
mod file;
mod global_config;
mod lost_worker;
mod queue_tasks;
mod running;
mod storage;
mod task_executor;
mod worker;

const PARTS: &[&[Trigger]] = &[
    queue_tasks::ROWS,
    broker::ROWS,
    storage::ROWS,
    lost_worker::ROWS,
    global_config::ROWS,
    running::ROWS,
    worker::ROWS,
    task_executor::ROWS,
];

#[test]
fn every_trigger_has_its_row_and_no_row_is_there_twice() {
    let mut rows: Vec<Trigger> = PARTS.concat();
    rows.sort_unstable();
    assert_eq!(rows, Trigger::ALL);
}

#[test]
fn the_table_of_triggers_is_rendered_from_the_code() {
    let path = Path::new(ROOT).join("docs/triggers.md");
    if std::env::var_os("QTASKS_BLESS").is_some() {
        std::fs::write(&path, rendering()).expect("the repository can be written to");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == rendering(),
        "docs/triggers.md is not what plugin-api/src/trigger.rs says; renew it with\n\
         QTASKS_BLESS=1 cargo test -p qtasks-host --test integration the_table_of_triggers_is_rendered"
    );
}

fn rendering() -> String {
    let mut text = String::from(
        "# Triggers\n\n\
         Every point at which plugins are asked. The names are those of QTasks, letter for letter. `kwargs` are what a handler is \
         given; an answer may replace the keys behind the arrow, each alone or several at once, and what it does not name stays as it \
         is. Where one key is returnable, the bare value is an answer, too. A trigger without such keys is one-way: answers to it are \
         ignored. An answer that does not fit is told in the log, and changes nothing.\n\n\
         A component (`worker`, `broker`, `task_executor`, …) comes as a JSON description of itself. `model`, `task`, `result` of a \
         storage, and `task_broker` are a task with its fields: `uuid`, `task_name`, `priority`, `args`, `kwargs`, `created_at`, and of \
         a record also `updated_at`, `status`, and what became of it. A `uuid` or a `created_at` that is answered once a task was taken \
         is the task's for that run; a record in a file keeps its own of both, and one on a Redis server its own `uuid`. `task_func` is \
         null where nobody provides the task.\n\n\
         A task that is to run again has not ended: of its attempt `worker_execute_after` is fired, and none of the three \
         `*_remove_finished_task`; nor is it added a second time. So it is over every broker, also where each attempt has a record of \
         its own, as on a Redis server.\n\n\
         Each row is a test of `tests/triggers/`, and this file is rendered from the table in `plugin-api/src/trigger.rs`; to renew \
         it:\n\n\
         ```sh\nQTASKS_BLESS=1 cargo test -p qtasks-host --test integration the_table_of_triggers_is_rendered\n```\n",
    );
    let mut component = "";
    for trigger in Trigger::ALL {
        if trigger.component() != component {
            component = trigger.component();
            let _ = write!(text, "\n## {component}\n\n| trigger | kwargs | → may be replaced | fired |\n|---|---|---|---|\n");
        }
        let list = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let (kwargs, keys) = (list(trigger.kwargs()), list(trigger.returnable_keys()));
        let _ = writeln!(text, "| `{trigger}` | {kwargs} | {keys} | {} |", trigger.when());
    }
    text
}

/// An application with the fixture `scripted`, which is asked for one trigger alone and answers what it is prompted.
struct Stage {
    app: Started,
    trigger: Trigger,
    store: Arc<Store>,
    queue: QueueTasks,
    /// Whether a record is kept with the uuid and the time that a plugin gave its task on the way to a worker. In a file it keeps its
    /// own, and what was answered holds for the run alone.
    renames: bool,
}

impl Stage {
    async fn new(isolation: &str, trigger: Trigger) -> Self {
        if isolation == IN_A_FILE {
            return Self::over(isolation, trigger, Arc::new(file::InAFile::open().await)).await;
        }
        Self::over(isolation, trigger, Arc::new(MemoryBackend::new(MemoryBackend::UNBOUNDED, true))).await
    }

    async fn over(isolation: &str, trigger: Trigger, backend: Arc<dyn Backend>) -> Self {
        let app = TestApp::with(&["scripted"])
            .set(format!("plugins.scripted.isolation = '{}'", plugin_in(isolation)))
            .set(format!("plugins.scripted.triggers = ['{trigger}']"))
            .set("plugins.scripted.config.prompted = true")
            .set("tasks.fail.attempts = 2")
            .start_with(register)
            .await;
        let store = app.running.store(backend);
        Self { app, trigger, queue: QueueTasks::new(Arc::clone(&store)), store, renames: isolation != IN_A_FILE }
    }

    /// From now on the plugin answers this.
    fn prompt(&self, answer: &Value) {
        let directory = self.app.place.state().join("plugins/scripted");
        std::fs::create_dir_all(&directory).expect("a directory of the plugin");
        // Put there in one step: the plugin may be reading.
        std::fs::write(directory.join("next.json"), answer.to_string()).expect("a file of the plugin");
        std::fs::rename(directory.join("next.json"), directory.join("answer.json")).expect("a file of the plugin");
    }

    /// The kwargs of every event so far.
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        let events = self.app.place.events("scripted");
        assert!(
            events.iter().all(|event| event["trigger"] == self.trigger.name()),
            "asked for {} alone: {events:?}",
            self.trigger
        );
        events.into_iter().map(|mut event| event["kwargs"].take()).collect()
    }

    /// The kwargs of the last event, which are exactly those that the table names.
    #[track_caller]
    fn event(&self) -> Value {
        let event = self.events().pop().expect("an event");
        let mut expected = self.trigger.kwargs().to_vec();
        expected.sort_unstable();
        let mut passed: Vec<&str> = event.as_object().expect("an object").keys().map(String::as_str).collect();
        passed.sort_unstable();
        assert_eq!(passed, expected, "kwargs of {}", self.trigger);
        event
    }

    /// Works until nothing waits or runs any more.
    async fn work(&self) {
        let worker = self.app.running.worker(Arc::clone(&self.store));
        let stop = worker.stop();
        let idle = async {
            let backend = self.store.backend();
            loop {
                let changed = backend.changed(Duration::from_secs(30));
                let counts = backend.counts().await.expect("memory does not fail");
                if counts.new + counts.process == 0 {
                    return stop.now();
                }
                changed.await;
            }
        };
        let (worked, ()) = tokio::join!(worker.run(None), idle);
        worked.expect("memory does not fail");
    }

    /// Adds `echo(1, b=2)`, works, and gives what became of it.
    async fn echo(&self) -> Record {
        self.run(task("echo")).await
    }

    async fn run(&self, task: Task) -> Record {
        let added = self.queue.add_task(task).await.expect("memory does not fail");
        self.work().await;
        self.ended(added.task.uuid).await
    }

    async fn ended(&self, uuid: Uuid) -> Record {
        match self.queue.wait(uuid, Duration::ZERO).await.expect("memory does not fail") {
            Waited::Ended(record) => *record,
            other => panic!("it has ended: {other:?}"),
        }
    }
}

/// Not where the plugin is, which is here, but where the tasks are.
const IN_A_FILE: &str = "in a file";

/// Where the plugin is.
fn plugin_in(isolation: &str) -> &str {
    if isolation == IN_A_FILE { "in-process" } else { isolation }
}

/// `echo` gives its arguments back, `other` says that it is another, `fail` fails, `count` yields numbers.
fn register(app: &mut App) {
    type Kwargs = serde_json::Map<String, Value>;
    app.inline_task("other", |_ctx, args: Vec<Value>, kwargs: Kwargs| Ok::<_, TaskError>(json!(["other", args, kwargs])));
    app.inline_task("fail", |_ctx, _args: Vec<Value>, _kwargs: Kwargs| Err::<(), _>("as told"));
    app.generator_task("count", |_ctx, (to,): (u32,), (): ()| Ok::<_, TaskError>((0..to).map(Ok)));
}

/// `name(1, b=2)` with priority 3.
fn task(name: &str) -> Task {
    let mut task = Task::new(name).and_then(|task| task.with_arguments([1], json!({"b": 2}))).expect("a task");
    task.priority = 3;
    task
}

/// A record as it is shown to plugins, without what differs from run to run.
fn shown(record: &Record) -> Value {
    let mut value = serde_json::to_value(record).expect("a record has a JSON form");
    for field in ["uuid", "created_at", "updated_at"] {
        assert!(value.as_object_mut().expect("an object").remove(field).is_some(), "{field} in {value}");
    }
    value
}

/// [`shown`], of `echo(1, b=2)` that ended well, with these fields replaced; `null` is none.
fn echoed(replaced: Value) -> Value {
    let mut record = json!({
        "task_name": "echo", "priority": 3, "args": [1], "kwargs": {"b": 2}, "attempt": 1, "status": "success",
        "returning": {"args": [1], "kwargs": {"b": 2}},
    });
    let Value::Object(replaced) = replaced else { panic!("an object of fields") };
    for (field, value) in replaced {
        record[field] = value;
    }
    record.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    record
}

/// What `echo` returns for these arguments.
fn returned(args: Value, kwargs: Value) -> Value {
    json!({"args": args, "kwargs": kwargs})
}
