//! What every broker promises, over each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qtasks_host::broker::url::Synchronous;
use qtasks_host::broker::{
    Again, Attempt, Backend, BrokerErrorKind, BrokerSettings, BrokerUrl, Cancellation, Cancelled, Counts, Fields, Filter, Finish,
    MemoryBackend, Record, Requeued, Taken, TaskStatus, open,
};
use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{Status, Task};
use qtasks_plugin_api::ErrorBody;
use serde_json::{Value, json};

use crate::support::Place;
use crate::support::redis::RedisServer;

/// A broker of a test's own, and how to open it once more as another process would.
pub(crate) struct Brokers {
    /// Gone with the test.
    _place: Place,
    /// Stopped with the test.
    pub(crate) redis: Option<RedisServer>,
    pub(crate) settings: Option<BrokerSettings>,
    memory: Option<Arc<dyn Backend>>,
}

impl Brokers {
    fn at(place: Place, redis: Option<RedisServer>, url: BrokerUrl) -> Option<Self> {
        let settings = BrokerSettings { lease: Duration::from_millis(300), ..BrokerSettings::new(url) };
        Some(Self { _place: place, redis, settings: Some(settings), memory: None })
    }

    fn sqlite() -> Option<Self> {
        let place = Place::new();
        let url = BrokerUrl::Sqlite { path: place.path("tasks.db"), synchronous: Synchronous::Normal };
        Self::at(place, None, url)
    }

    /// `None` where there is no server to run: a skip.
    pub(crate) fn redis() -> Option<Self> {
        let server = RedisServer::start()?;
        let url = server.url().parse().expect("a broker's URL");
        Self::at(Place::new(), Some(server), url)
    }

    fn memory() -> Option<Self> {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(MemoryBackend::UNBOUNDED, true));
        Some(Self { _place: Place::new(), redis: None, settings: None, memory: Some(memory) })
    }

    /// A handle of its own on the same tasks.
    pub(crate) async fn open(&self) -> Arc<dyn Backend> {
        match &self.settings {
            Some(settings) => open(settings).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.source)),
            None => Arc::clone(self.memory.as_ref().expect("one of both")),
        }
    }
}

/// One test over each broker.
macro_rules! over_each_broker {
    (@$broker:ident $over:ident $($name:ident)*) => {
        mod $over {
            $(#[tokio::test] async fn $name() {
                if let Some(brokers) = super::Brokers::$broker() {
                    super::$name(brokers).await;
                }
            })*
        }
    };
    ($($name:ident)*) => {
        over_each_broker! { @memory over_memory $($name)* }
        over_each_broker! { @sqlite over_sqlite $($name)* }
        over_each_broker! { @redis overredis $($name)* }
    };
}

over_each_broker! {
    a_record_comes_back_as_it_was_put
    higher_priorities_come_first_and_within_one_the_earlier
    delayed_tasks_come_in_their_time
    a_uuid_is_taken_once
    a_finished_task_keeps_its_result_its_attempts_and_its_decisions
    decisions_are_told_of_every_attempt_until_they_are_old
    a_retry_waits_and_comes_back_with_its_attempt
    who_asks_for_a_task_that_was_retried_means_its_last_retry
    a_task_that_runs_again_keeps_what_is_known_of_every_attempt
    a_lease_ends_with_the_next_delivery
    what_is_given_back_waits_as_its_record_says_now
    what_waits_is_cancelled_and_what_runs_is_told
    a_request_to_cancel_is_on_the_record_until_the_task_ends
    what_a_lost_worker_had_not_begun_is_never_set_aside
    an_ended_task_can_run_again
    an_ended_task_that_runs_again_is_as_new
    fields_can_be_replaced
    a_field_that_null_replaces_is_gone
    where_a_task_stands_is_no_field_but_its_end_is
    old_results_are_removed_and_nothing_else
    everything_can_be_removed
    who_waits_is_told_of_changes
    the_global_config_is_shared
}

pub(crate) fn task(name: &str, priority: i64) -> Record {
    let mut task = Task::new(name).and_then(|task| task.with_arguments(json!([name]), json!({"é": "ü"}))).expect("a task");
    task.priority = priority;
    Record::new(task)
}

/// The only task that can be taken.
pub(crate) async fn take_one(backend: &Arc<dyn Backend>) -> Taken {
    let mut taken = backend.take(1).await.expect("a task");
    assert_eq!(taken.len(), 1);
    taken.remove(0)
}

/// Nothing can be taken now: the future waits.
async fn assert_nothing_to_take(backend: &Arc<dyn Backend>) {
    assert_eq!(backend.counts().await.map(|counts| counts.new - counts.delayed), Ok(0), "nothing waits");
}

pub(crate) fn ended(taken: &Taken, status: TaskStatus) -> Finish {
    let mut record = taken.record.clone();
    record.status = status;
    record.returning = (status == TaskStatus::Success).then(|| serde_json::value::to_raw_value(&json!({"n": 1})).expect("JSON"));
    Finish { lease: taken.lease, record, retry: None, attempt: None }
}

pub(crate) async fn finish(backend: &Arc<dyn Backend>, finish: Finish) -> bool {
    backend.finish(Arc::new([finish])).await.expect("an answer").is_empty()
}

fn json_of(record: &Record) -> Value {
    serde_json::to_value(record).expect("JSON")
}

async fn a_record_comes_back_as_it_was_put(brokers: Brokers) {
    let backend = brokers.open().await;
    let mut record = task("odd", -7);
    record.task.max_time = Some(Duration::from_millis(1500));
    record.task.attempts = Some(4);
    record.extras = serde_json::from_str::<Fields>(r#"{"note": {"deep": [1]}}"#).expect("fields");
    record.task.args = serde_json::from_str::<Box<_>>("[123456789012345678901234567890, 1.0]").map(Arc::from).expect("JSON");
    let uuid = record.task.uuid;
    backend.add(vec![record.clone()]).await.expect("room");
    let found = brokers.open().await.get(uuid).await.expect("an answer").expect("it is there");
    // Redis holds JSON spaced as Python spaces it; big numbers are looked at below.
    assert_eq!(json_of(&found), json_of(&record));
    assert_eq!(found.task.args.get(), "[123456789012345678901234567890, 1.0]");
    assert_eq!((found.task.attempts, found.task.max_time), (Some(4), Some(Duration::from_millis(1500))));
    backend.attach().await.expect("a worker");
    let taken = take_one(&backend).await;
    assert_eq!((taken.record.status, taken.record.task.attempts), (TaskStatus::Process, Some(4)));
    assert_eq!(backend.get(uuid).await.expect("an answer").expect("it is there").status, TaskStatus::Process);
    assert!(backend.get(Task::new("other").expect("a name").uuid).await.expect("an answer").is_none());
}

async fn higher_priorities_come_first_and_within_one_the_earlier(brokers: Brokers) {
    let backend = brokers.open().await;
    let records = [("a", 0), ("b", 9), ("c", 0), ("d", -5), ("e", 9)].map(|(name, priority)| task(name, priority));
    backend.add(records.into()).await.expect("room");
    backend.attach().await.expect("a worker");
    let mut order = Vec::new();
    while order.len() < 5 {
        order.extend(backend.take(2).await.expect("tasks").into_iter().map(|taken| taken.record.task.name.to_string()));
    }
    assert_eq!(order, ["b", "e", "a", "c", "d"]);
}

async fn delayed_tasks_come_in_their_time(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    let later = task("later", 9).after(Duration::from_millis(200));
    let due = later.due.expect("it is delayed");
    backend.add(vec![later, task("now", 0)]).await.expect("room");
    assert_eq!(&*take_one(&backend).await.record.task.name, "now");
    assert_eq!(backend.counts().await.expect("counts").delayed, 1);
    let taken = take_one(&backend).await;
    assert_eq!(&*taken.record.task.name, "later");
    assert!(qtasks_host::broker::unix_now() >= due - 0.001);
}

async fn a_uuid_is_taken_once(brokers: Brokers) {
    let backend = brokers.open().await;
    let first = task("a", 0);
    backend.add(vec![first.clone()]).await.expect("room");
    let error = backend.add(vec![task("b", 0), first.clone()]).await.expect_err("it is there already");
    assert_eq!(error.kind, BrokerErrorKind::Known(first.task.uuid));
    assert!(error.to_string().contains("expected a new uuid"), "{error}");
    let twice = task("c", 0);
    let error = backend.add(vec![twice.clone(), twice.clone()]).await.expect_err("the first of the two is there already");
    assert_eq!(error.kind, BrokerErrorKind::Known(twice.task.uuid));
    assert_eq!(backend.counts().await.expect("counts").new, 1, "all or none");
}

async fn a_finished_task_keeps_its_result_its_attempts_and_its_decisions(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0)]).await.expect("room");
    let taken = take_one(&backend).await;
    let uuid = taken.lease.uuid;
    let mut finished = ended(&taken, TaskStatus::Success);
    let attempt = attempt_asked_about(1);
    finished.record.original_error = Some(attempt.error.clone());
    finished.attempt = Some(attempt);
    assert!(finish(&backend, finished).await);
    let record = brokers.open().await.get(uuid).await.expect("an answer").expect("it is there");
    let found = json_of(&record);
    assert_eq!((&found["status"], &found["returning"]), (&json!("success"), &json!({"n": 1})));
    let attempt = &found["history"][0];
    assert_eq!(found["original_error"]["kwargs"], json!({"depth": 3}), "with its payload");
    assert_eq!((&attempt["attempt"], &attempt["error"]["message"]), (&json!(1), &json!("sea is frozen")));
    assert_eq!(attempt["decisions"][0]["digest"], json!("ab"));
    let decisions = backend.decisions(Some(uuid), 10).await.expect("decisions");
    assert_eq!(decisions.len(), 1);
    let found = serde_json::to_value(&decisions[0]).expect("JSON");
    let wanted = json!({"task_name": "a", "attempt": 1, "plugin": "p", "version": "1.0.0", "digest": "ab", "outcome": "result"});
    for (key, value) in wanted.as_object().expect("an object") {
        assert_eq!(&found[key], value, "{key}: {found}");
    }
    assert_eq!(found["error"]["message"], json!("sea is frozen"));
    assert!(backend.decisions(None, 0).await.expect("decisions").is_empty());
}

/// An attempt of now that failed, with what a plugin decided about it.
fn attempt_asked_about(attempt: u32) -> Attempt {
    let by = serde_json::from_str(r#"{"plugin": "p", "version": "1.0.0", "digest": "ab"}"#).map(Arc::new).expect("an identity");
    let decision = qtasks_host::trigger::Decision {
        event: 7,
        trigger: qtasks_host::trigger::Trigger::TaskExecutorRunTaskTriggerError,
        by,
        outcome: OutcomeKind::Result,
        duration: Duration::from_micros(250),
        failure: None,
    };
    let mut error = Box::new(ErrorBody::new("TaskPluginTriggerError", "sea is frozen"));
    error.kwargs = serde_json::value::to_raw_value(&json!({"depth": 3})).expect("JSON");
    Attempt { attempt, at: qtasks_host::broker::unix_now(), seconds: 0.25, error, decisions: vec![decision] }
}

async fn decisions_are_told_of_every_attempt_until_they_are_old(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0), task("b", 0)]).await.expect("room");
    let first = take_one(&backend).await;
    let uuid = first.lease.uuid;
    let mut again = ended(&first, TaskStatus::Process);
    again.record.task.attempt = 2;
    again.retry = Some(Again { after: Duration::ZERO, left: 1 });
    again.attempt = Some(attempt_asked_about(1));
    assert!(finish(&backend, again).await);
    for _ in 0..2 {
        let taken = take_one(&backend).await;
        let mut last = ended(&taken, TaskStatus::Error);
        last.attempt = Some(attempt_asked_about(taken.record.task.attempt));
        assert!(finish(&backend, last).await);
    }
    let told = async |uuid| {
        let decisions = backend.decisions(uuid, 10).await.expect("decisions");
        decisions.iter().map(|decision| (decision.task_name.clone(), decision.attempt)).collect::<Vec<_>>()
    };
    assert_eq!(told(Some(uuid)).await, [("a".to_owned(), 2), ("a".to_owned(), 1)], "also where a retry has an id of its own");
    let mut all = told(None).await;
    all.sort();
    assert_eq!(all, [("a".to_owned(), 1), ("a".to_owned(), 2), ("b".to_owned(), 1)]);
    let latest = backend.decisions(Some(uuid), 1).await.expect("decisions");
    assert_eq!(latest.iter().map(|decision| decision.attempt).collect::<Vec<_>>(), [2]);
    assert_eq!(backend.decisions(None, 2).await.map(|decisions| decisions.len()), Ok(2));
    let hour = Duration::from_secs(3600);
    assert_eq!(backend.prune(hour, hour).await, Ok(0));
    assert_eq!(told(None).await.len(), 3, "they are young");
    backend.prune(hour, Duration::ZERO).await.expect("an answer");
    assert_eq!(told(None).await, []);
    assert!(backend.get(uuid).await.expect("an answer").is_some(), "a record stays for longer");
    backend.delete_finished().await.expect("an answer");
    assert_eq!(backend.counts().await, Ok(Counts::default()), "those that a retry followed are gone, too");
}

async fn a_retry_waits_and_comes_back_with_its_attempt(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0)]).await.expect("room");
    let taken = take_one(&backend).await;
    let mut again = ended(&taken, TaskStatus::Process);
    again.record.task.attempt = 2;
    again.retry = Some(Again { after: Duration::from_millis(100), left: 2 });
    assert!(finish(&backend, again).await);
    // Over Redis a child with an id of its own waits, and the parent says so.
    let counts = Counts { retry: 0, ..backend.counts().await.expect("counts") };
    assert_eq!(counts, Counts { new: 1, delayed: 1, ..Counts::default() });
    let again = take_one(&backend).await;
    assert_eq!((again.record.task.attempt, again.record.status), (2, TaskStatus::Process));
    assert_eq!(again.record.task.args.get(), taken.record.task.args.get());
    assert!(again.lease.delivery > taken.lease.delivery);
}

async fn who_asks_for_a_task_that_was_retried_means_its_last_retry(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0)]).await.expect("room");
    let taken = take_one(&backend).await;
    let uuid = taken.lease.uuid;
    let mut again = ended(&taken, TaskStatus::Process);
    again.record.task.attempt = 2;
    again.retry = Some(Again { after: Duration::from_secs(3600), left: 1 });
    let error = Box::new(ErrorBody::new("E", "the first time"));
    again.attempt = Some(Attempt { attempt: 1, at: 1.5, seconds: 0.25, error, decisions: Vec::new() });
    assert!(finish(&backend, again).await);
    assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Underway));
    assert_eq!(backend.cancel(uuid, "enough".to_owned()).await, Ok(Cancelled::Done));
    assert_eq!(backend.cancel(uuid, "enough".to_owned()).await, Ok(Cancelled::Ended));
    let counts = backend.counts().await.expect("counts");
    assert_eq!((counts.new, counts.delayed, counts.cancel), (0, 0, 1));
    assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Done));
    let once_more = take_one(&backend).await;
    assert_eq!((once_more.lease.uuid, once_more.record.task.attempt), (uuid, 1));
    let record = backend.get(uuid).await.expect("an answer").expect("it is there");
    let errors: Vec<&str> = record.history.iter().map(|attempt| attempt.error.message.as_str()).collect();
    assert_eq!(errors, ["the first time"], "what is known of its attempts stays");
}

async fn a_task_that_runs_again_keeps_what_is_known_of_every_attempt(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0)]).await.expect("room");
    let first = take_one(&backend).await;
    let mut again = ended(&first, TaskStatus::Process);
    again.record.task.attempt = 2;
    again.retry = Some(Again { after: Duration::ZERO, left: 1 });
    again.attempt = Some(attempt_asked_about(1));
    assert!(finish(&backend, again).await);
    let second = take_one(&backend).await;
    assert!(finish(&backend, Finish { attempt: Some(attempt_asked_about(2)), ..ended(&second, TaskStatus::Error) }).await);
    let uuid = first.lease.uuid;
    assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Done));
    let record = backend.get(uuid).await.expect("an answer").expect("it is there");
    assert_eq!(record.history.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2]);
}

async fn a_lease_ends_with_the_next_delivery(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0), task("b", 0)]).await.expect("room");
    let old = take_one(&backend).await;
    assert_eq!(backend.detach().await.expect("an answer"), 1);
    let other = brokers.open().await;
    other.attach().await.expect("another worker");
    let new = take_one(&other).await;
    assert_eq!(new.lease.uuid, old.lease.uuid, "it keeps its place");
    backend.give_back(vec![old.clone()]).await.expect("an answer");
    assert!(!finish(&backend, ended(&old, TaskStatus::Error)).await);
    assert!(finish(&other, ended(&new, TaskStatus::Success)).await);
    assert!(!finish(&other, ended(&new, TaskStatus::Error)).await, "once");
    assert_eq!(other.counts().await.expect("counts"), Counts { new: 1, success: 1, ..Counts::default() });
    assert_eq!(&*take_one(&other).await.record.task.name, "b", "who had it first put nothing back");
}

async fn what_is_given_back_waits_as_its_record_says_now(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0), task("b", 0)]).await.expect("room");
    let mut taken = backend.take(2).await.expect("tasks");
    let fields: Fields = serde_json::from_str(r#"{"task_name": "c", "priority": 5, "args": [7]}"#).expect("fields");
    taken[1].record.replace(fields).expect("good fields");
    let uuid = taken[1].lease.uuid;
    backend.give_back(taken).await.expect("an answer");
    let first = take_one(&backend).await;
    assert_eq!((first.lease.uuid, &*first.record.task.name, first.record.task.priority), (uuid, "c", 5));
    assert_eq!(first.record.task.args.get(), "[7]");
}

async fn what_waits_is_cancelled_and_what_runs_is_told(brokers: Brokers) {
    let backend = brokers.open().await;
    let mut cancellations = backend.attach().await.expect("a worker");
    let (runs, waits, delayed) = (task("runs", 1), task("waits", 0), task("delayed", 0).after(Duration::from_secs(60)));
    let uuids = [&runs, &waits, &delayed].map(|record| record.task.uuid);
    backend.add(vec![runs, waits, delayed]).await.expect("room");
    let taken = take_one(&backend).await;
    let client = brokers.open().await;
    let cancel = |uuid| client.cancel(uuid, "no longer wanted".to_owned());
    assert_eq!(cancel(uuids[0]).await, Ok(Cancelled::Asked));
    assert_eq!(cancel(uuids[1]).await, Ok(Cancelled::Done));
    assert_eq!(cancel(uuids[2]).await, Ok(Cancelled::Done));
    assert_eq!(cancel(uuids[1]).await, Ok(Cancelled::Ended));
    assert_eq!(cancel(Task::new("none").expect("a name").uuid).await, Ok(Cancelled::Unknown));
    let told = cancellations.recv().await.expect("the worker is told");
    assert_eq!(told, Cancellation { uuid: uuids[0], reason: "no longer wanted".to_owned() });
    let record = client.get(uuids[1]).await.expect("an answer").expect("it is there");
    assert_eq!((record.status, record.cancel_reason.as_deref()), (TaskStatus::Cancel, Some("no longer wanted")));
    let record = client.get(uuids[2]).await.expect("an answer").expect("it is there");
    assert_eq!((record.status, record.due), (TaskStatus::Cancel, None));
    assert_nothing_to_take(&backend).await;
    assert!(finish(&backend, ended(&taken, TaskStatus::Cancel)).await);
}

async fn an_ended_task_can_run_again(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0)]).await.expect("room");
    let taken = take_one(&backend).await;
    let uuid = taken.lease.uuid;
    assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Underway));
    let mut failed = ended(&taken, TaskStatus::Error);
    failed.record = failed.record.set_aside(ErrorBody::new("E", "m"), "for a person");
    assert!(finish(&backend, failed).await);
    let dead = Filter { dead_letter: true, ..Filter::latest(10) };
    assert_eq!(backend.list(dead.clone()).await.expect("records").len(), 1);
    assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Done));
    assert_eq!(backend.prune(Duration::ZERO, Duration::ZERO).await, Ok(0), "it has not ended any more");
    let again = take_one(&backend).await;
    assert_eq!((again.lease.uuid, again.record.task.attempt), (uuid, 1));
    assert!(again.record.error.is_none() && again.record.dead_letter.is_none());
    assert!(backend.list(dead).await.expect("records").is_empty());
    assert_eq!(backend.requeue(Task::new("none").expect("a name").uuid).await, Ok(Requeued::Unknown));
}

async fn an_ended_task_that_runs_again_is_as_new(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    let mut record = task("a", 0);
    record.extras = serde_json::from_str(r#"{"note": 1}"#).expect("fields");
    let uuid = record.task.uuid;
    let new = |record: &Record| Record { updated_at: 0.0, ..record.clone() };
    let wanted = json_of(&new(&record));
    backend.add(vec![record]).await.expect("room");
    let taken = take_one(&backend).await;
    let mut failed = ended(&taken, TaskStatus::Success);
    failed.record = failed.record.set_aside(ErrorBody::new("E", "m"), "for a person");
    failed.record.due = Some(qtasks_host::broker::unix_now() + 3600.0);
    failed.record.cancel_reason = Some("not any more".to_owned());
    failed.record.original_error = Some(Box::new(ErrorBody::new("O", "m")));
    let by = attempt_asked_about(1).decisions[0].by.clone();
    failed.record.resolved_by = Some(qtasks_host::trigger::Resolution { by, outcome: OutcomeKind::ReplaceError });
    assert!(finish(&backend, failed).await);
    let found = json_of(&backend.get(uuid).await.expect("an answer").expect("it is there"));
    for field in ["returning", "error", "traceback", "dead_letter", "cancel_reason", "original_error", "resolved_by"] {
        assert!(found.get(field).is_some(), "{field}: {found}");
    }
    assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Done));
    assert_eq!(json_of(&new(&backend.get(uuid).await.expect("an answer").expect("it is there"))), wanted);
    assert_eq!(take_one(&backend).await.lease.uuid, uuid, "it waits for no time");
}

async fn fields_can_be_replaced(brokers: Brokers) {
    let backend = brokers.open().await;
    let record = task("a", 0);
    let uuid = record.task.uuid;
    backend.add(vec![record]).await.expect("room");
    let fields: Fields = serde_json::from_str(r#"{"priority": 3, "note": true}"#).expect("fields");
    assert_eq!(backend.update(uuid, fields).await, Ok(true));
    let found = json_of(&backend.get(uuid).await.expect("an answer").expect("it is there"));
    assert_eq!((&found["priority"], &found["note"], &found["args"]), (&json!(3), &json!(true), &json!(["a"])));
    let wrong: Fields = serde_json::from_str(r#"{"args": 5}"#).expect("fields");
    let error = backend.update(uuid, wrong).await.expect_err("no list");
    assert!(error.to_string().contains("args is 5; expected a JSON list"), "{error}");
    assert_eq!(backend.update(Task::new("none").expect("a name").uuid, Fields::new()).await, Ok(false));
}

async fn a_field_that_null_replaces_is_gone(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("a", 0)]).await.expect("room");
    let mut failed = ended(&take_one(&backend).await, TaskStatus::Error);
    failed.record = failed.record.set_aside(ErrorBody::new("E", "m"), "for a person");
    failed.record.cancel_reason = Some("not any more".to_owned());
    let uuid = failed.lease.uuid;
    assert!(finish(&backend, failed).await);
    let fields: Fields =
        serde_json::from_str(r#"{"traceback": null, "cancel_reason": null, "dead_letter": null}"#).expect("fields");
    assert_eq!(backend.update(uuid, fields).await, Ok(true));
    let record = backend.get(uuid).await.expect("an answer").expect("it is there");
    assert_eq!((record.traceback, record.cancel_reason, record.dead_letter), (None, None, None));
}

async fn where_a_task_stands_is_no_field_but_its_end_is(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    let record = task("a", 0);
    let uuid = record.task.uuid;
    backend.add(vec![record]).await.expect("room");
    let status_after = async |status: &str| {
        let fields: Fields = serde_json::from_str(&format!(r#"{{"status": "{status}"}}"#)).expect("fields");
        assert_eq!(backend.update(uuid, fields).await, Ok(true));
        backend.get(uuid).await.expect("an answer").expect("it is there").status
    };
    assert_eq!(status_after("success").await, TaskStatus::New);
    let taken = take_one(&backend).await;
    assert_eq!(status_after("new").await, TaskStatus::Process);
    assert!(finish(&backend, ended(&taken, TaskStatus::Success)).await);
    assert_eq!(status_after("process").await, TaskStatus::Success);
    assert_eq!(status_after("error").await, TaskStatus::Error);
    assert_nothing_to_take(&backend).await;
}

async fn a_request_to_cancel_is_on_the_record_until_the_task_ends(brokers: Brokers) {
    let (first, client) = (brokers.open().await, brokers.open().await);
    let _told = first.attach().await.expect("a worker");
    client.add(vec![task("a", 0)]).await.expect("room");
    let taken = take_one(&first).await;
    assert_eq!(taken.record.cancel_asked, None);
    assert_eq!(client.cancel(taken.lease.uuid, "no longer wanted".into()).await, Ok(Cancelled::Asked));
    // The worker had not heard of it when its attempt failed. What is to be cancelled does not wait for its next attempt.
    let retry = Some(Again { after: Duration::from_secs(3600), left: 3 });
    assert!(finish(&first, Finish { retry, ..ended(&taken, TaskStatus::Success) }).await);
    let waits = first.list(Filter { status: Some(TaskStatus::New), ..Filter::latest(2) }).await.expect("records");
    assert_eq!(waits.iter().map(|record| record.due).collect::<Vec<_>>(), [None]);
    let asked = |taken: &Taken| taken.record.cancel_asked.clone();
    let again = take_one(&first).await;
    assert_eq!(asked(&again).as_deref(), Some("no longer wanted"));
    first.give_back(vec![again]).await.expect("an answer");
    let once_more = take_one(&first).await;
    assert_eq!(asked(&once_more).as_deref(), Some("no longer wanted"), "given back");
    assert_eq!(first.detach().await, Ok(1));
    if let Some(server) = &brokers.redis {
        let left = |key: &String| key.contains(":cancel:") || key.contains(":claim:");
        assert_eq!(server.keys().into_iter().filter(left).collect::<Vec<_>>(), [""; 0], "of a worker that left");
    }
    let second = brokers.open().await;
    second.attach().await.expect("a worker");
    let last = take_one(&second).await;
    assert_eq!(asked(&last).as_deref(), Some("no longer wanted"), "its worker left");
    assert!(finish(&second, ended(&last, TaskStatus::Cancel)).await);
    assert_eq!(client.requeue(last.lease.uuid).await, Ok(Requeued::Done));
    assert_eq!(asked(&take_one(&second).await), None, "who runs it again wants it");
}

async fn what_a_lost_worker_had_not_begun_is_never_set_aside(brokers: Brokers) {
    if brokers.settings.is_none() {
        // In one process, workers and tasks end together.
        return;
    }
    let client = brokers.open().await;
    client.attach().await.expect("a worker");
    let (kills, neighbour) = (task("kills", 0), task("neighbour", 0));
    let (killer, innocent) = (kills.task.uuid, neighbour.task.uuid);
    client.add(vec![kills, neighbour]).await.expect("room");
    for loss in 1..=3 {
        let worker = brokers.open().await;
        worker.attach().await.expect("a worker");
        let taken = worker.take(2).await.expect("tasks");
        assert_eq!(taken.len(), 2, "{loss}");
        if loss > 1 {
            let begun = taken.iter().find(|taken| taken.lease.uuid == killer).expect("it was taken");
            worker.begin(begun.lease).await.expect("an answer");
        }
        drop(worker);
        let begun = Instant::now();
        let taken = loop {
            let taken = client.take_over().await.expect("an answer");
            if !taken.is_empty() {
                break taken;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing was taken over");
            tokio::time::sleep(Duration::from_millis(30)).await;
        };
        assert_eq!(taken.len(), if loss < 3 { 2 } else { 1 });
        client.give_back(taken).await.expect("an answer");
    }
    let record = client.get(killer).await.expect("an answer").expect("it is there");
    assert_eq!((record.status, record.losses), (TaskStatus::Error, 3));
    assert!(record.dead_letter.is_some(), "{record:?}");
    let taken = take_one(&client).await;
    assert_eq!((taken.lease.uuid, taken.record.losses), (innocent, 1));
    assert!(finish(&client, ended(&taken, TaskStatus::Success)).await);
    if let Some(server) = &brokers.redis {
        assert_eq!(server.command::<u64>(&["ZCARD", "QueueTasks:task_process"]), 0, "nobody has any of them");
    }
    // Whoever lets it run again wants to see it run.
    assert_eq!(client.requeue(killer).await, Ok(Requeued::Done));
    let taken = take_one(&client).await;
    assert_eq!((taken.lease.uuid, taken.record.losses), (killer, 0));
}

async fn old_results_are_removed_and_nothing_else(brokers: Brokers) {
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("old", 3), task("young", 2), task("runs", 1), task("waits", 0)]).await.expect("room");
    for age in [3600.0, 0.0] {
        let taken = take_one(&backend).await;
        let mut done = ended(&taken, TaskStatus::Success);
        done.record.updated_at = qtasks_host::broker::unix_now() - age;
        assert!(finish(&backend, done).await);
    }
    take_one(&backend).await;
    let hour = Duration::from_secs(3000);
    assert_eq!(backend.prune(hour, hour).await, Ok(1));
    assert_eq!(backend.prune(hour, hour).await, Ok(0));
    let names = |records: Vec<Record>| records.iter().map(|record| record.task.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(backend.list(Filter::latest(10)).await.expect("records")), ["waits", "runs", "young"]);
    let success = Filter { status: Some(TaskStatus::Success), ..Filter::latest(10) };
    assert_eq!(names(backend.list(success).await.expect("records")), ["young"]);
    let named = Filter { task_name: Some("runs".to_owned()), ..Filter::latest(10) };
    assert_eq!(names(backend.list(named).await.expect("records")), ["runs"]);
    assert_eq!(backend.delete_finished().await, Ok(1));
    assert_eq!(backend.counts().await.expect("counts"), Counts { new: 1, process: 1, ..Counts::default() });
}

async fn everything_can_be_removed(brokers: Brokers) {
    let backend = brokers.open().await;
    let mut cancellations = backend.attach().await.expect("a worker");
    backend.add(vec![task("asked about", 1)]).await.expect("room");
    let asked_about = take_one(&backend).await;
    assert!(finish(&backend, Finish { attempt: Some(attempt_asked_about(1)), ..ended(&asked_about, TaskStatus::Error) }).await);
    backend.config_set("limits".into(), "rate".into(), "5".into()).await.expect("room");
    let first = task("a", 0);
    backend.add(vec![first.clone(), task("b", 0).after(Duration::from_secs(60)), task("c", 0)]).await.expect("room");
    let taken = take_one(&backend).await;
    assert_eq!(backend.flush_all().await, Ok(4));
    assert_eq!(backend.counts().await.expect("counts"), Counts::default());
    assert_eq!(backend.decisions(None, 10).await.map(|decisions| decisions.len()), Ok(0));
    assert_eq!(backend.config_get_all("limits".into()).await, Ok(Vec::new()));
    assert!(!finish(&backend, ended(&taken, TaskStatus::Success)).await, "what ran is nobody's any more");
    backend.add(vec![task("d", 0)]).await.expect("room");
    assert_eq!(&*take_one(&backend).await.record.task.name, "d");
    // Under its old uuid, it is another task.
    backend.add(vec![first]).await.expect("room");
    let again = take_one(&backend).await;
    assert_eq!(again.lease.uuid, taken.lease.uuid);
    assert!(!finish(&backend, ended(&taken, TaskStatus::Error)).await, "what ran of the old one is nothing of this one");
    assert_eq!(backend.cancel(again.lease.uuid, "enough".to_owned()).await, Ok(Cancelled::Asked));
    assert_eq!(cancellations.recv().await.map(|told| told.uuid), Some(again.lease.uuid), "its worker is there");
    assert!(finish(&backend, ended(&again, TaskStatus::Success)).await);
}

async fn who_waits_is_told_of_changes(brokers: Brokers) {
    let (worker, client) = (brokers.open().await, brokers.open().await);
    worker.attach().await.expect("a worker");
    // A take that waits sees what another handle adds.
    let waiting = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move { take_one(&worker).await }
    });
    client.add(vec![task("a", 0)]).await.expect("room");
    let taken = waiting.await.expect("it takes");
    // A client that waits sees the end.
    let changed = client.changed(Duration::from_secs(600));
    let begun = Instant::now();
    assert!(finish(&worker, ended(&taken, TaskStatus::Success)).await);
    changed.await;
    assert!(begun.elapsed() < Duration::from_secs(300));
}

async fn the_global_config_is_shared(brokers: Brokers) {
    let (one, other) = (brokers.open().await, brokers.open().await);
    one.config_set("limits".into(), "rate".into(), "5".into()).await.expect("room");
    one.config_set("limits".into(), "burst".into(), "\"é\"".into()).await.expect("room");
    one.config_set("limits".into(), "rate".into(), "6".into()).await.expect("room");
    let mut found = other.config_get_all("limits".into()).await.expect("values");
    found.sort();
    assert_eq!(found, [("burst".to_owned(), "\"é\"".to_owned()), ("rate".to_owned(), "6".to_owned())]);
    assert_eq!(other.config_get_all("none".into()).await, Ok(Vec::new()));
    assert_eq!(other.is_running().await, Ok(false));
    one.attach().await.expect("a worker");
    one.set_running().await.expect("room");
    assert_eq!(other.is_running().await, Ok(true));
    one.detach().await.expect("an answer");
    assert_eq!(other.is_running().await, Ok(brokers.redis.is_some()), "only a server remembers it for a while, as in QTasks");
}

#[test]
fn a_status_of_a_report_is_a_status_of_a_record() {
    // Written the same, since clients read both.
    for (report, record) in
        [(Status::Success, TaskStatus::Success), (Status::Error, TaskStatus::Error), (Status::Cancel, TaskStatus::Cancel)]
    {
        assert_eq!(serde_json::to_value(report).expect("JSON"), serde_json::to_value(record).expect("JSON"));
    }
}
