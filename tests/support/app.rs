//! The host as a library.

use std::sync::Arc;

use qtasks_host::broker::{MemoryBackend, Record};
use qtasks_host::plugin::{LoadReport, LoadState};
use qtasks_host::settings::Override;
use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{App, Running, Settings, StartError, Task, TaskReport};
use serde_json::{Value, json};

use super::Place;

/// An application over plugin libraries in a directory of its own.
pub(crate) struct TestApp {
    pub(crate) place: Place,
    settings: Vec<String>,
}

/// A started [`TestApp`].
pub(crate) struct Started {
    pub(crate) place: Place,
    pub(crate) running: Running,
    /// What became of each file at the start.
    reports: Arc<Vec<LoadReport>>,
}

impl TestApp {
    /// An application with copies of these libraries.
    pub(crate) fn with(plugins: &[&str]) -> Self {
        let place = Place::new();
        for plugin in plugins {
            place.copy(plugin);
        }
        Self { place, settings: Vec::new() }
    }

    /// One more setting, as a line of `qtasks-host.toml` with the whole key: `plugins.scripted.priority = 5`.
    pub(crate) fn set(mut self, assignment: impl Into<String>) -> Self {
        self.settings.push(assignment.into());
        self
    }

    /// What the fixture `scripted`, `scripted-b` or `scripted-c` answers to a trigger: JSON text.
    pub(crate) fn answer(self, plugin: &str, trigger: &str, json: &str) -> Self {
        self.set(format!("plugins.{plugin}.config.answers.{trigger} = {}", toml::Value::from(json)))
    }

    pub(crate) async fn start(self) -> Started {
        self.start_with(|_| ()).await
    }

    /// Starts with what `register` adds: tasks, linked-in plugins, middlewares.
    pub(crate) async fn start_with(self, register: impl FnOnce(&mut App)) -> Started {
        let (place, started) = self.try_start_with(register).await;
        let running = started.expect("the application starts");
        Started { place, reports: running.plugin_reports(), running }
    }

    pub(crate) async fn try_start_with(self, register: impl FnOnce(&mut App)) -> (Place, Result<Running, StartError>) {
        let Self { place, settings } = self;
        let path = |path: std::path::PathBuf| toml::Value::from(path.to_str().expect("a plain path"));
        let own = [
            format!("plugin_dir = {}", path(place.plugins())),
            format!("state_dir = {}", path(place.state())),
            format!("guest_program = {}", path(env!("CARGO_BIN_EXE_qtasks-host").into())),
        ];
        let overrides: Vec<Override> = own
            .into_iter()
            .chain(settings)
            .map(|assignment| Override { flag: format!("--set {assignment}"), assignment })
            .collect();
        let settings = Settings::read(None, &overrides).unwrap_or_else(|error| panic!("{error}"));
        let mut app = App::new(settings);
        register(&mut app);
        let started = app.start().await;
        (place, started)
    }
}

impl Started {
    /// Runs one task to its end.
    pub(crate) async fn run(&self, task: &str, args: Value, kwargs: Value) -> TaskReport {
        let task = Task::new(task).and_then(|task| task.with_arguments(args, kwargs)).expect("a good task");
        self.running.run(task).await
    }

    /// Runs one task given as a JSON line.
    pub(crate) async fn run_line(&self, line: &str) -> TaskReport {
        self.running.run(Task::from_json(line).expect("a good task")).await
    }

    /// Runs `raise` of the fixture `scripted`, which raises a plugin error with a message.
    pub(crate) async fn raise(&self) -> TaskReport {
        self.run("raise", json!([]), json!({"message": "sea is frozen"})).await
    }

    /// Works through `tasks` with a worker over a broker in memory; gives the reports in the order in which they came.
    pub(crate) async fn work_through(&self, tasks: impl IntoIterator<Item = Task>) -> Vec<TaskReport> {
        let backend = Arc::new(MemoryBackend::new(MemoryBackend::UNBOUNDED, false));
        let store = self.running.store(Arc::<MemoryBackend>::clone(&backend));
        store.add(tasks.into_iter().map(Record::new).collect()).await.expect("room");
        backend.close();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let worker = self.running.worker(store);
        let mut reports = Vec::new();
        let receive = async {
            while let Some(report) = receiver.recv().await {
                reports.push(report);
            }
        };
        let (worked, ()) = tokio::join!(worker.run(Some(sender)), receive);
        worked.expect("memory does not fail");
        reports
    }

    /// What became of the file of this name at the start.
    #[track_caller]
    pub(crate) fn file(&self, name: &str) -> &LoadReport {
        let reports = &self.reports;
        let found = reports.iter().find(|report| report.path.file_name().is_some_and(|file| file == name));
        found.unwrap_or_else(|| {
            panic!("no report of {name} among {:?}", reports.iter().map(|report| &report.path).collect::<Vec<_>>())
        })
    }

    /// Asserts that the file was refused, with this code; gives the reason.
    #[track_caller]
    pub(crate) fn refusal(&self, name: &str, code: &str) -> String {
        let report = self.file(name);
        assert_eq!(report.state, LoadState::Refused, "{report:?}");
        let error = report.error.as_ref().expect("a refusal has an error");
        assert_eq!(error.kind.code(), code, "{error:?}");
        assert_eq!(error.path, report.path);
        report.reason().expect("a refusal has a reason")
    }
}

/// The result as JSON text, exactly as it would be printed.
#[track_caller]
pub(crate) fn returning(report: &TaskReport) -> &str {
    report.returning.as_ref().unwrap_or_else(|| panic!("a result: {}", value_of(report))).get()
}

/// The report as it would be printed.
pub(crate) fn value_of(report: &TaskReport) -> Value {
    serde_json::to_value(report).expect("a report has a JSON form")
}

/// Who was asked, in order, and what they answered.
pub(crate) fn asked(report: &TaskReport) -> Vec<(&str, OutcomeKind)> {
    report.decisions.iter().map(|decision| (&*decision.by.name, decision.outcome)).collect()
}
