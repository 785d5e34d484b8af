use qtasks_plugin_api::ErrorBody;
use serde_json::json;

use super::*;
use crate::task::{Attempt, Task};

fn record(name: &str, priority: i64) -> Record {
    let mut task = Task::new(name).expect("a name");
    task.priority = priority;
    Record::new(task)
}

async fn take_one(backend: &MemoryBackend) -> Option<Taken> {
    backend.take(1).await.expect("memory does not fail").pop()
}

fn finish(taken: Taken, retry: Option<Duration>) -> Arc<[Finish]> {
    let retry = retry.map(|after| Again { after, left: 1 });
    let mut record = taken.record;
    record.status = if retry.is_some() { TaskStatus::New } else { TaskStatus::Success };
    Arc::new([Finish { lease: taken.lease, record, retry, attempt: None }])
}

#[tokio::test(start_paused = true)]
async fn higher_priority_first_then_first_in_first_out_and_delayed_ones_in_their_time() {
    let backend = MemoryBackend::new(10, false);
    let records = [("a", 0), ("b", 5), ("c", 0), ("d", -1)].map(|(name, priority)| record(name, priority));
    backend.add(records.into()).await.expect("room");
    backend.close();
    let first = take_one(&backend).await.expect("a task");
    assert_eq!(&*first.record.task.name, "b");
    backend.finish(finish(first, Some(Duration::from_secs(60)))).await.expect("ours");
    let begun = Instant::now();
    let mut order = Vec::new();
    while let Some(taken) = take_one(&backend).await {
        order.push(taken.record.task.name.to_string());
        assert!(backend.finish(finish(taken, None)).await.expect("ours").is_empty());
    }
    assert_eq!(order, ["a", "c", "d", "b"]);
    assert!(begun.elapsed() >= Duration::from_secs(59), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_full_queue_waits_for_room_and_a_draining_one_takes_nothing() {
    let backend = MemoryBackend::new(1, false);
    backend.add(vec![record("a", 0)]).await.expect("room");
    let taken = take_one(&backend).await.expect("a task");
    let mut second = backend.add(vec![record("b", 0)]);
    tokio::select! {
        biased;
        _ = second.as_mut() => panic!("the place is taken until the task is finished"),
        () = std::future::ready(()) => {}
    }
    backend.finish(finish(taken, None)).await.expect("ours");
    second.await.expect("room again");
    backend.drain();
    assert!(take_one(&backend).await.is_none());
    assert_eq!(backend.waiting(), 1);
    assert_eq!(backend.add(vec![record("c", 0)]).await.expect_err("draining").kind, BrokerErrorKind::Closed);
}

#[tokio::test]
async fn a_task_that_runs_again_takes_a_place_as_a_new_one_does() {
    let backend = MemoryBackend::new(MemoryBackend::UNBOUNDED, true);
    let task = record("a", 0);
    let uuid = task.task.uuid;
    backend.add(vec![task]).await.expect("room");
    for _ in 0..2 {
        let taken = take_one(&backend).await.expect("a task");
        assert!(backend.finish(finish(taken, None)).await.expect("ours").is_empty());
        assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Done));
        assert_eq!(backend.requeue(uuid).await, Ok(Requeued::Underway));
    }
    assert_eq!(backend.room.available_permits(), MemoryBackend::UNBOUNDED - 1);
}

#[tokio::test]
async fn whatever_ends_a_task_gives_its_place_back() {
    let backend = MemoryBackend::new(5, true);
    let places = || backend.room.available_permits();
    let (waits, runs) = (record("a", 0), record("b", 1));
    let uuid = waits.task.uuid;
    backend.add(vec![waits.clone(), runs]).await.expect("room");
    assert_eq!(backend.add(vec![record("c", 0), waits]).await.expect_err("it is there").kind, BrokerErrorKind::Known(uuid));
    assert_eq!(places(), 3);
    assert_eq!(backend.cancel(uuid, String::new()).await, Ok(Cancelled::Done));
    assert_eq!(places(), 4);
    take_one(&backend).await.expect("a task");
    assert_eq!(backend.flush_all().await, Ok(2), "one has ended, one runs");
    assert_eq!(places(), 5);
}

#[tokio::test]
async fn of_decisions_the_latest_are_kept() {
    let backend = MemoryBackend::new(10, true);
    backend.add(vec![record("a", 0)]).await.expect("room");
    let taken = take_one(&backend).await.expect("a task");
    let decision = |event: u64| {
        let said =
            json!({"event": event, "trigger": "worker_start", "plugin": "p", "version": "1", "outcome": "pass", "seconds": 0});
        serde_json::from_str(&said.to_string()).expect("a decision")
    };
    let decisions = (0..=KEPT_DECISIONS as u64).map(decision).collect();
    let attempt = Attempt { attempt: 1, at: 1.5, seconds: 0.5, error: Box::new(ErrorBody::new("E", "m")), decisions };
    let finish = Finish { lease: taken.lease, record: taken.record, retry: None, attempt: Some(attempt) };
    backend.finish(Arc::new([finish])).await.expect("ours");
    let kept = backend.decisions(None, usize::MAX).await.expect("memory does not fail");
    let events = kept.iter().map(|kept| kept.decision.event);
    assert!(events.eq((1..=KEPT_DECISIONS as u64).rev()), "the first one is gone");
}

#[tokio::test]
async fn what_was_given_back_is_finished_by_its_new_holder_alone() {
    let backend = MemoryBackend::new(10, true);
    backend.add(vec![record("a", 0), record("b", 0)]).await.expect("room");
    let old = take_one(&backend).await.expect("a task");
    assert_eq!(backend.detach().await.expect("memory does not fail"), 1);
    let new = take_one(&backend).await.expect("the same task");
    assert_eq!((new.lease.uuid, &*new.record.task.name), (old.lease.uuid, "a"), "it keeps its place");
    let lease = old.lease;
    assert_eq!(backend.finish(finish(old, None)).await.expect("an answer"), [lease]);
    assert!(backend.finish(finish(new, None)).await.expect("an answer").is_empty());
    assert_eq!(backend.counts().await.expect("counts"), Counts { new: 1, success: 1, ..Counts::default() });
}
