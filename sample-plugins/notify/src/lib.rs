//! Appends every task error as one JSON line to a file, and leaves the error as it is.
#![forbid(unsafe_code)]

use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use qtasks_plugin_api::{Error, Host, Json, Plugin, TriggerError, config, export_plugin};
use serde::Serialize;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;

config! {
    /// Where to write.
    struct Config {
        /// Name of a file in the plugin's data directory.
        file: String = "events.jsonl".to_owned(),
    }
}

struct Notify {
    path: PathBuf,
    host: Host,
}

impl Plugin for Notify {
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self, Error> {
        // A path would lead out of the plugin's own directory.
        let mut parts = Path::new(&config.file).components();
        let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
            return Err(Error::msg(format_args!("file = {:?} is not a plain file name", config.file)));
        };
        Ok(Self { path: host.data_dir()?.join(name), host })
    }
}

/// One line of the file.
#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since the Unix epoch.
    time: f64,
    task: &'a str,
    uuid: &'a str,
    attempt: u32,
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
    kwargs: Json<'a>,
}

impl Notify {
    async fn on_error(&self, event: TriggerError<'_>) -> Result<(), Error> {
        let line = serde_json::to_string(&Line {
            time: self.host.now().duration_since(UNIX_EPOCH)?.as_secs_f64(),
            task: &event.task_broker.task_name,
            uuid: &event.task_broker.uuid,
            attempt: event.task_executor.attempt,
            kind: &event.e.kind,
            message: &event.e.message,
            kwargs: event.e.kwargs,
        })?;
        self.append(line).await?;
        tracing::debug!(task = &*event.task_broker.task_name, "noted");
        Ok(())
    }

    /// Appends a whole line: calls overlap, and only a single write in append mode cannot be torn apart by another.
    async fn append(&self, line: String) -> std::io::Result<()> {
        // The kwargs are passed on as they were written, and outside its strings JSON may contain line ends.
        let mut line = line.replace(['\n', '\r'], " ");
        line.push('\n');
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).await?;
        // By default tokio cuts a buffer of more than 2 MiB into several writes.
        file.set_max_buf_size(line.len());
        file.write_all(line.as_bytes()).await?;
        file.flush().await
    }
}

export_plugin! {
    plugin: Notify,
    handlers: { task_executor_run_task_trigger_error => async on_error },
}

#[cfg(test)]
mod tests {
    use super::*;
    use qtasks_plugin_api::testing::{RaisedTask, TestHost};
    use serde_json::{Value, json};
    use std::time::Duration;

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).expect("the file is there");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    #[test]
    fn every_error_is_one_line_and_stays_an_error() {
        let host = TestHost::<Notify>::start("{}").expect("it starts");
        host.set_now(UNIX_EPOCH + Duration::from_millis(1500));
        assert!(host.raise(&RaisedTask::new("add").message("too\nlarge").attempt(2, 3)).is_pass());
        assert!(host.raise(&RaisedTask::new("parse").error_kind("ParseIntError").payload("text", "x")).is_pass());
        let lines = lines(&host.data_dir().join("events.jsonl"));
        assert_eq!(
            lines[0],
            json!({
                "time": 1.5, "task": "add", "uuid": "00000000-0000-4000-8000-000000000000", "attempt": 2,
                "type": "TaskPluginTriggerError", "message": "too\nlarge", "kwargs": {"message": "too\nlarge"},
            })
        );
        assert_eq!((&lines[1]["type"], &lines[1]["kwargs"]), (&json!("ParseIntError"), &json!({"text": "x"})));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn overlapping_events_leave_whole_lines() {
        let host = TestHost::<Notify>::start(r#"{"file": "errors.jsonl"}"#).expect("it starts");
        let long = "x".repeat(3 << 20);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert!(host.raise(&RaisedTask::new("add").message(&long)).is_pass()));
            }
        });
        assert_eq!(lines(&host.data_dir().join("errors.jsonl")).len(), 2);
    }

    #[test]
    fn a_file_outside_the_data_directory_is_refused() {
        for file in ["../events.jsonl", "/tmp/events.jsonl", "a/b", ".", ""] {
            let refusal = TestHost::<Notify>::start(&json!({ "file": file }).to_string()).expect_err("not a file name");
            assert!(refusal.to_string().contains("is not a plain file name"), "{refusal}");
        }
    }
}
