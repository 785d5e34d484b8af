//! Chaining and `return_last` over arbitrary answers: whatever plugins answer, in whatever order, the last answer is the result,
//! each plugin saw the one before, and a failure changes nothing. The plugins are linked in: this is about dispatch, not loading.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use proptest::prelude::*;
use qtasks_host::settings::Override;
use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{App, Settings, Status, Task, TaskReport, Triggers};
use qtasks_plugin_api::{Answer, Error, Host, Plugin, TriggerError, config, define_plugin};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

config! {
    pub(crate) struct Config {
        /// What to answer, as JSON text.
        answer: Option<String>,
        fail: bool = false,
    }
}

/// The plugin in place `N` of the chain.
struct Step<const N: usize>(Config);

/// A plugin that was asked, and the `result` it saw.
type Sight = (usize, Option<String>);

/// By task.
static SEEN: LazyLock<Mutex<HashMap<String, Vec<Sight>>>> = LazyLock::new(Mutex::default);

impl<const N: usize> Plugin for Step<N> {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self, Error> {
        Ok(Self(config))
    }
}

impl<const N: usize> Step<N> {
    fn on_error(&self, event: TriggerError<'_>) -> Result<Answer, Error> {
        let seen = event.result.map(|result| result.text().to_owned());
        let mut all = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(event.task_broker.uuid.into_owned()).or_default().push((N, seen));
        if self.0.fail {
            return Err("failed as told".into());
        }
        self.0.answer.clone().map_or(Ok(Answer::Pass), |text| Ok(Answer::Result(RawValue::from_string(text)?)))
    }
}

macro_rules! steps {
    ($($number:literal = $name:literal),*) => {
        $(define_plugin! {
            plugin: Step<$number>,
            name: $name,
            handlers: { task_executor_run_task_trigger_error => inline on_error },
        })*

        fn link(app: &mut App, count: usize) {
            $(if $number < count {
                app.add_plugin::<Step<$number>>(Triggers::Handled);
            })*
        }
    };
}

steps! { 0 = "step-0", 1 = "step-1", 2 = "step-2", 3 = "step-3" }

/// What one plugin does.
#[derive(Debug, Clone)]
enum Move {
    Pass,
    Answer(Value),
    Fail,
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![Just("result".to_owned()), Just(String::new()), ".{0,6}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|members| Value::Object(Map::from_iter(members))),
        ]
    })
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => Just(Move::Pass),
        2 => Just(Move::Fail),
        1 => Just(Move::Answer(Value::Null)),
        5 => json_value().prop_map(Move::Answer),
    ];
    prop::collection::vec(one, 0..=4)
}

/// The value that an answer means: itself, or what it names `result`.
fn meant(answer: &Value) -> String {
    match answer.as_object() {
        Some(members) if members.len() == 1 && members.contains_key("result") => members["result"].to_string(),
        _ => answer.to_string(),
    }
}

fn sights(report: &TaskReport) -> Vec<Sight> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&report.uuid.to_string()).unwrap_or_default()
}

async fn run(moves: &[Move]) -> TaskReport {
    let mut settings: Vec<String> = Vec::new();
    for (number, step) in moves.iter().enumerate() {
        // The first one is asked first.
        settings.push(format!("plugins.step-{number}.priority = -{number}"));
        match step {
            Move::Pass => {}
            Move::Fail => settings.push(format!("plugins.step-{number}.config.fail = true")),
            Move::Answer(value) => {
                let text = toml::Value::from(value.to_string());
                settings.push(format!("plugins.step-{number}.config.answer = {text}"));
            }
        }
    }
    let overrides: Vec<Override> =
        settings.into_iter().map(|assignment| Override { flag: assignment.clone(), assignment }).collect();
    let mut app = App::new(Settings::read(None, &overrides).expect("good settings"));
    app.inline_task("raise", |ctx, (): (), (): ()| Err::<(), _>(ctx.plugin_error(json!({"message": "the original"}))));
    link(&mut app, moves.len());
    let running = app.start().await.expect("the application starts");
    let report = running.run(Task::new("raise").expect("a name")).await;
    running.stop().await;
    report
}

/// serde takes a `null` for an absent member unless it is told otherwise.
#[tokio::test]
async fn a_null_answer_is_seen_by_the_next_plugin_as_an_answer() {
    let report = run(&[Move::Pass, Move::Answer(Value::Null), Move::Pass]).await;
    assert_eq!(sights(&report), [(0, None), (1, None), (2, Some("null".to_owned()))]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_answer_is_the_result_and_each_plugin_saw_the_one_before(moves in moves()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let report = runtime.block_on(run(&moves));
        let mut last: Option<String> = None;
        let mut expected_sights = Vec::new();
        let mut expected_outcomes = Vec::new();
        for (number, step) in moves.iter().enumerate() {
            expected_sights.push((number, last.clone()));
            expected_outcomes.push(match step {
                Move::Pass => OutcomeKind::Pass,
                Move::Fail => OutcomeKind::Failed,
                Move::Answer(value) => {
                    last = Some(meant(value));
                    OutcomeKind::Result
                }
            });
        }
        let outcomes: Vec<OutcomeKind> = report.decisions.iter().map(|decision| decision.outcome).collect();
        prop_assert_eq!(outcomes, expected_outcomes);
        prop_assert_eq!(sights(&report), expected_sights);
        match last {
            Some(answer) => {
                prop_assert_eq!(report.status, Status::Success);
                prop_assert_eq!(report.returning.map(|result| result.get().to_owned()), Some(answer));
                prop_assert_eq!(report.original_error.map(|error| error.message), Some("the original".to_owned()));
            }
            None => {
                prop_assert_eq!(report.status, Status::Error);
                prop_assert_eq!(report.error.map(|error| error.message), Some("the original".to_owned()));
            }
        }
    }
}
