//! QTasks' documented plugin: logs the error and answers 123.
#![forbid(unsafe_code)]

use qtasks_plugin_api::{Error, Host, Level, Plugin, TriggerError, export_plugin};

struct DocumentedExample(Host);

impl Plugin for DocumentedExample {
    type Config = ();
    fn create(_config: (), host: Host) -> Result<Self, Error> {
        Ok(Self(host))
    }
}

impl DocumentedExample {
    fn on_error(&self, event: TriggerError<'_>) -> i32 {
        self.0.log(Level::Error, format_args!("{} raised {}: {}", event.task_func.name, event.e.kind, event.e.message));
        123
    }
}

export_plugin! { plugin: DocumentedExample, handlers: { task_executor_run_task_trigger_error => on_error } }

#[cfg(test)]
mod tests {
    use super::*;
    use qtasks_plugin_api::testing::{RaisedTask, TestHost};

    #[test]
    fn every_error_is_logged_and_answered_with_the_bare_number() {
        let host = TestHost::<DocumentedExample>::start("{}").expect("it starts");
        let outcome = host.raise(&RaisedTask::new("add").message("too large"));
        assert_eq!(outcome.result(), Some(123.into()));
        assert_eq!(host.log(), [(Level::Error, "add raised TaskPluginTriggerError: too large".to_owned())]);
    }
}
