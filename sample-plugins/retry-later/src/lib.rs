//! Asks for another attempt with growing delays, for the error types worth it.
#![forbid(unsafe_code)]

use std::time::Duration;

use qtasks_plugin_api::{Answer, Error, Host, PLUGIN_ERROR, Plugin, TriggerError, config, export_plugin};

config! {
    /// What to retry, and when.
    struct Config {
        /// Error types worth another attempt. By default time-outs, and plugin errors, which failed commands raise too.
        kinds: Vec<String> = vec!["TimeoutError".to_owned(), PLUGIN_ERROR.to_owned()],
        /// Seconds before the second attempt.
        delay_seconds: f64 = 1.0,
        /// Each later delay is this many times the one before.
        factor: f64 = 2.0,
        /// After the last attempt: set the task aside (true), or let its error go on (false).
        dead_letter: bool = false,
    }
}

/// Powers grow fast; a task that waits longer than a day is rather forgotten than retried.
const LONGEST_DELAY_SECONDS: f64 = 86_400.0;

struct RetryLater {
    config: Config,
}

impl Plugin for RetryLater {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self, Error> {
        if config.delay_seconds < 0.0 || config.factor < 1.0 {
            return Err("delay_seconds must be at least 0, and factor at least 1".into());
        }
        Ok(Self { config })
    }
}

impl RetryLater {
    fn on_error(&self, event: TriggerError<'_>) -> Answer {
        if !self.config.kinds.iter().any(|kind| *kind == event.e.kind) {
            return Answer::Pass;
        }
        if !event.task_executor.is_last_attempt() {
            return Answer::retry_after(self.delay_after(event.task_executor.attempt));
        }
        if self.config.dead_letter {
            let attempts = event.task_executor.attempts;
            return Answer::dead_letter(format!("{} in the last of {attempts} attempts", event.e.kind));
        }
        Answer::Pass
    }

    fn delay_after(&self, attempt: u32) -> Duration {
        // An infinite growth would make no number of a delay of 0.
        let growth = self.config.factor.powf(f64::from(attempt) - 1.0).min(f64::MAX);
        Duration::from_secs_f64((self.config.delay_seconds * growth).min(LONGEST_DELAY_SECONDS))
    }
}

export_plugin! {
    plugin: RetryLater,
    handlers: { task_executor_run_task_trigger_error => inline on_error },
}

#[cfg(test)]
mod tests {
    use super::*;
    use qtasks_plugin_api::Directive;
    use qtasks_plugin_api::testing::{RaisedTask, TestHost};
    use serde_json::json;

    fn start(config: serde_json::Value) -> TestHost<RetryLater> {
        TestHost::start(&config.to_string()).expect("it starts")
    }

    fn delay(host: &TestHost<RetryLater>, attempt: u32) -> f64 {
        match host.raise(&RaisedTask::new("fetch").attempt(attempt, u32::MAX)).directive() {
            Some(Directive::RetryAfter { seconds }) => *seconds,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn delays_grow_up_to_a_day() {
        let host = start(json!({"delay_seconds": 0.5, "factor": 3.0}));
        assert_eq!([1, 2, 3].map(|attempt| delay(&host, attempt)), [0.5, 1.5, 4.5]);
        assert_eq!(delay(&host, 4_000_000_000), LONGEST_DELAY_SECONDS);
        assert_eq!(delay(&start(json!({"delay_seconds": 0})), 4_000_000_000), 0.0);
    }

    #[test]
    fn only_the_listed_error_types_are_retried() {
        let host = start(json!({}));
        let task = RaisedTask::new("fetch");
        assert!(host.raise(&task).directive().is_some());
        assert!(host.raise(&task.clone().error_kind("TimeoutError")).directive().is_some());
        assert!(host.raise(&task.clone().error_kind("ParseIntError")).is_pass());
        let host = start(json!({"kinds": ["ParseIntError"]}));
        assert!(host.raise(&task.clone().error_kind("ParseIntError")).directive().is_some());
        assert!(host.raise(&task).is_pass());
    }

    #[test]
    fn after_the_last_attempt_the_error_goes_on_or_the_task_is_set_aside() {
        let task = RaisedTask::new("fetch").attempt(3, 3);
        assert!(start(json!({})).raise(&task).is_pass());
        let outcome = start(json!({"dead_letter": true})).raise(&task);
        let Some(Directive::DeadLetter { reason }) = outcome.directive() else {
            panic!("{outcome:?}");
        };
        assert_eq!(reason, "TaskPluginTriggerError in the last of 3 attempts");
    }

    #[test]
    fn a_shrinking_delay_is_refused() {
        assert!(TestHost::<RetryLater>::start(r#"{"delay_seconds": -1}"#).is_err());
        assert!(TestHost::<RetryLater>::start(r#"{"factor": 0.5}"#).is_err());
    }
}
