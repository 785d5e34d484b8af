//! What is particular to tasks on a Redis server: claims, what QTasks' Python leaves there, and what a server forgets.

use std::sync::Arc;
use std::time::Duration;

use qtasks_host::broker::{Attempt, BrokerErrorKind, BrokerSettings, Counts, Filter, Finish, Taken, TaskStatus, open};
use qtasks_plugin_api::ErrorBody;

use crate::brokers::{Brokers, ended, finish, take_one, task};

#[tokio::test]
async fn a_worker_of_a_redis_server_whose_claim_is_gone_records_what_is_its_own_and_nothing_else() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    let remove_claim = || {
        let claims: Vec<String> =
            server.keys().into_iter().filter(|key| key.starts_with("qtasks-host:QueueTasks:claim:")).collect();
        assert_eq!(claims.len(), 1, "{claims:?}");
        server.command::<()>(&["DEL", &claims[0]]);
    };
    backend.add((0..4).map(|_| task("a", 0)).collect()).await.expect("room");
    let taken = backend.take(4).await.expect("tasks");
    let attempt = |error: &str| {
        let error = Box::new(ErrorBody::new("TaskPluginTriggerError", error));
        Some(Attempt { attempt: 1, at: 1.5, seconds: 0.5, error, decisions: Vec::new() })
    };
    let done = |taken: &Taken, error: &str| Finish { attempt: attempt(error), ..ended(taken, TaskStatus::Success) };
    assert!(finish(&backend, done(&taken[0], "under the claim")).await);
    remove_claim();
    // Of these two, the second one is another worker's by now.
    let other = format!("{} 0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5 a:{}:0", i64::MAX / 2, taken[2].lease.uuid);
    server.command::<()>(&["HSET", "qtasks-host:QueueTasks:leases", &taken[2].lease.uuid.to_string(), &other]);
    let lost = backend.finish(Arc::new([done(&taken[1], "without"), done(&taken[2], "without")])).await;
    assert_eq!(lost, Ok(vec![taken[2].lease]));
    // There is a claim again, and what was taken before it is looked at one by one.
    assert!(finish(&backend, done(&taken[3], "before it")).await);
    backend.add(vec![task("b", 0)]).await.expect("room");
    let under_the_next = take_one(&backend).await;
    assert!(finish(&backend, done(&under_the_next, "under the next")).await);
    for (taken, error) in
        [(&taken[0], "under the claim"), (&taken[1], "without"), (&taken[3], "before it"), (&under_the_next, "under the next")]
    {
        // The same once more, as after an answer that did not arrive, is neither lost nor recorded twice.
        assert!(finish(&backend, done(taken, error)).await, "{error}");
        let record = backend.get(taken.lease.uuid).await.expect("an answer").expect("it is there");
        assert_eq!((record.status, record.history.len()), (TaskStatus::Success, 1), "{error}");
        assert_eq!(record.history[0].error.message, error);
    }
    let left = backend.get(taken[2].lease.uuid).await.expect("an answer").expect("it is there");
    assert_eq!((left.status, left.history.len()), (TaskStatus::Process, 0));
}

#[tokio::test]
async fn a_record_that_was_removed_from_a_redis_server_meanwhile_stays_removed() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    // All at once, and one by one.
    for has_claim in [true, false] {
        backend.add(vec![task("a", 0), task("b", 0)]).await.expect("room");
        let taken = backend.take(2).await.expect("tasks");
        server.command::<()>(&["DEL", &format!("QueueTasks:{}", taken[0].lease.uuid)]);
        if !has_claim {
            let claim = server.keys().into_iter().find(|key| key.starts_with("qtasks-host:QueueTasks:claim:"));
            server.command::<()>(&["DEL", &claim.expect("it has one so far")]);
        }
        let batch: Vec<Finish> = taken.iter().map(|taken| ended(taken, TaskStatus::Success)).collect();
        assert_eq!(backend.finish(batch.into()).await, Ok(Vec::new()));
        assert_eq!(backend.get(taken[0].lease.uuid).await.map(|found| found.is_none()), Ok(true), "{has_claim}");
        let kept = backend.get(taken[1].lease.uuid).await.expect("an answer").expect("it is there");
        assert_eq!(kept.status, TaskStatus::Success);
        assert!(!server.keys().iter().any(|key| key.ends_with(":missing")), "{:?}", server.keys());
    }
}

#[tokio::test]
async fn what_a_python_worker_has_is_taken_over_only_where_it_has_had_it_for_long_and_not_ended_it() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let after = Duration::from_millis(50);
    let settings = brokers.settings.clone().expect("a server's");
    let backend = open(&BrokerSettings { recover_foreign_after: Some(after), ..settings }).await.expect("the server runs");
    backend.attach().await.expect("a worker");
    let record = task("a", 0);
    let item = format!("a:{}:0", record.task.uuid);
    backend.add(vec![record.clone()]).await.expect("room");
    server.command::<()>(&["LPOP", "QueueTasks:task_queue"]);
    let python_has_it = || server.command::<()>(&["ZADD", "QueueTasks:task_process", "0", &item]);
    let looked = async || {
        let taken = backend.take_over().await.expect("an answer");
        // Not a synchronisation: the time after which it is too long.
        tokio::time::sleep(after).await;
        taken
    };
    python_has_it();
    assert!(looked().await.is_empty(), "it was seen for the first time");
    server.command::<()>(&["ZREM", "QueueTasks:task_process", &item]);
    assert!(looked().await.is_empty());
    python_has_it();
    assert!(looked().await.is_empty(), "it was taken once more");
    let taken = looked().await;
    assert_eq!(taken.iter().map(|taken| taken.lease.uuid).collect::<Vec<_>>(), [record.task.uuid]);
    assert!(finish(&backend, ended(&taken[0], TaskStatus::Success)).await);
    // As QTasks' workers leave it where they are killed between the two steps of an end.
    python_has_it();
    assert!(looked().await.is_empty());
    assert!(looked().await.is_empty(), "it has ended");
    assert_eq!(server.command::<u64>(&["ZCARD", "QueueTasks:task_process"]), 0);
}

#[tokio::test]
async fn an_old_record_that_a_python_worker_ended_is_removed_from_a_redis_server() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    let records = [task("a", 0), task("b", 0)];
    backend.add(records.to_vec()).await.expect("room");
    server.command::<()>(&["DEL", "QueueTasks:task_queue"]);
    for (record, updated_at) in records.iter().zip(["1.5", "99999999999.5"]) {
        let key = format!("QueueTasks:{}", record.task.uuid);
        server.command::<()>(&["HSET", &key, "status", "success", "returning", "7", "updated_at", updated_at]);
    }
    let hour = Duration::from_secs(3600);
    assert_eq!(backend.prune(hour, hour).await, Ok(1));
    let left = backend.list(Filter::latest(10)).await.expect("records");
    assert_eq!(left.iter().map(|record| &*record.task.name).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn a_delayed_task_whose_record_was_removed_from_a_redis_server_is_gone() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    let mut delayed = task("delayed", 9);
    delayed.due = Some(1.5);
    let key = format!("QueueTasks:{}", delayed.task.uuid);
    backend.add(vec![delayed, task("now", 0)]).await.expect("room");
    // As QTasks' `flush_all` does, which knows nothing of what is delayed.
    server.command::<()>(&["DEL", &key]);
    assert_eq!(&*take_one(&backend).await.record.task.name, "now");
    assert_eq!(backend.counts().await.expect("counts"), Counts { process: 1, ..Counts::default() });
}

#[tokio::test]
async fn a_task_that_is_twice_in_the_queue_of_a_redis_server_is_taken_once() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    let record = task("a", 0);
    let item = format!("a:{}:0", record.task.uuid);
    let queue_again = || server.command::<u64>(&["RPUSH", "QueueTasks:task_queue", &item]);
    backend.add(vec![record]).await.expect("room");
    queue_again();
    let taken = backend.take(5).await.expect("tasks");
    assert_eq!(taken.len(), 1);
    queue_again();
    backend.add(vec![task("b", 0)]).await.expect("room");
    let others = backend.take(5).await.expect("tasks");
    assert_eq!(others.iter().map(|taken| &*taken.record.task.name).collect::<Vec<_>>(), ["b"], "the other one runs");
    assert!(finish(&backend, ended(&taken[0], TaskStatus::Success)).await, "its lease is as it was");
}

#[tokio::test]
async fn more_tasks_than_a_redis_server_takes_in_one_step_are_refused_and_none_is_added() {
    let Some(brokers) = Brokers::redis() else { return };
    let backend = brokers.open().await;
    let tasks = |count| (0..count).map(|_| task("a", 0)).collect();
    let error = backend.add(tasks(513)).await.expect_err("one too many");
    assert_eq!(error.kind, BrokerErrorKind::Refused("tasks at once: 513, expected at most 512".to_owned()));
    assert_eq!(backend.counts().await.expect("counts").new, 0);
    backend.add(tasks(512)).await.expect("room");
    assert_eq!(backend.counts().await.expect("counts").new, 512);
}

#[tokio::test]
async fn a_redis_server_forgets_in_time_that_a_worker_is_there() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.set_running().await.expect("room");
    // As QTasks has it.
    assert!((1..=20).contains(&server.command::<i64>(&["TTL", "QueueTasks:GlobalConfig:main"])));
}

#[tokio::test]
async fn a_note_of_a_clock_that_is_ahead_keeps_no_old_record_of_a_redis_server() {
    let Some(brokers) = Brokers::redis() else { return };
    let server = brokers.redis.as_ref().expect("it runs");
    let backend = brokers.open().await;
    backend.attach().await.expect("a worker");
    backend.add(vec![task("ahead", 1), task("old", 0)]).await.expect("room");
    for age in [-3600.0, 3600.0] {
        let taken = take_one(&backend).await;
        let mut done = ended(&taken, TaskStatus::Success);
        done.record.updated_at = qtasks_host::broker::unix_now() - age;
        assert!(finish(&backend, done).await);
    }
    let hour = Duration::from_secs(3000);
    assert_eq!(backend.prune(hour, hour).await, Ok(1));
    let left = backend.list(Filter::latest(10)).await.expect("records");
    assert_eq!(left.iter().map(|record| &*record.task.name).collect::<Vec<_>>(), ["ahead"]);
    assert_eq!(server.command::<u64>(&["LLEN", "qtasks-host:QueueTasks:ended"]), 0, "both notes were read");
}
