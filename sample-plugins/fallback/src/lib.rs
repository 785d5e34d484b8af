//! Answers failed tasks with a fixed value per task, from the configuration.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use qtasks_plugin_api::{Error, Host, Plugin, TriggerError, config, export_plugin};
use serde_json::Value;

config! {
    /// Which task falls back to what.
    struct Config {
        /// Fallback value by task name; any JSON value. Tasks that are not listed keep their error.
        values: BTreeMap<String, Value> = BTreeMap::new(),
    }
}

struct Fallback {
    values: BTreeMap<String, Value>,
}

impl Plugin for Fallback {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self, Error> {
        Ok(Self { values: config.values })
    }
}

impl Fallback {
    fn on_error(&self, event: TriggerError<'_>) -> Option<Value> {
        self.values.get(&*event.task_broker.task_name).cloned()
    }
}

export_plugin! {
    plugin: Fallback,
    handlers: { task_executor_run_task_trigger_error => inline on_error },
}

#[cfg(test)]
mod tests {
    use super::*;
    use qtasks_plugin_api::testing::{RaisedTask, TestHost};
    use serde_json::json;

    #[test]
    fn a_listed_task_gets_its_value_and_the_others_keep_their_error() {
        let host = TestHost::<Fallback>::start(r#"{"values": {"add": 0, "search": [], "nothing": null}}"#).expect("it starts");
        assert_eq!(host.raise(&RaisedTask::new("add")).result(), Some(json!(0)));
        assert_eq!(host.raise(&RaisedTask::new("search")).result(), Some(json!([])));
        assert_eq!(host.raise(&RaisedTask::new("nothing")).result(), Some(json!(null)));
        assert!(host.raise(&RaisedTask::new("multiply")).is_pass());
    }

    #[test]
    fn a_misspelt_key_refuses_the_plugin() {
        let refusal = TestHost::<Fallback>::start(r#"{"vlaues": {}}"#).expect_err("an unknown key");
        assert!(refusal.to_string().contains("vlaues"), "{refusal}");
    }
}
