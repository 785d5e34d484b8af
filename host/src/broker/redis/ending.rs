//! What is sent when attempts have ended: one script that looks at each lease, whatever else was recorded meanwhile. The quick way is
//! `claim`'s.

use std::sync::Arc;

use qtasks_plugin_api::ErrorBody;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::fields::{self, item};
use super::keys::Keys;
use super::link::Link;
use super::python_json::repr;
use super::queue::{Before, MOST, counted};
use super::{attempts, script};
use crate::broker::error::BrokerError;
use crate::broker::record::{TaskStatus, unix_now};
use crate::broker::{Again, Attempt, Finish, Lease};

/// Most that one call says, in bytes; the end of a task that says more has a call of its own.
const ROOM: usize = 8 << 20;

/// Records what became of attempts, which were as they stand beside it when they were taken; gives the leases that were lost. `name` is
/// the one under which the attempts that failed are kept.
pub(super) async fn finish(
    link: &Link,
    keys: &Keys,
    name: &str,
    batch: &[(&Finish, Option<Arc<Before>>)],
) -> Result<Vec<Lease>, BrokerError> {
    let mut call = script::FINISH.call(&keys.project);
    call.arg(batch.len()).arg(name);
    for (Finish { lease, record, retry, .. }, _) in batch {
        let status = if retry.is_some() { TaskStatus::Retry } else { record.status };
        call.arg(lease.uuid.to_string()).arg(lease.delivery).arg(repr(record.updated_at)).arg(status.name());
    }
    for (finish, before) in batch {
        one_finish(&mut call, finish, before.as_deref());
    }
    let lost: Vec<String> = link.call(&script::FINISH, &call).await?;
    let is_lost = |lease: &Lease| lost.iter().any(|lost| lost.parse() == Ok(lease.uuid));
    Ok(batch.iter().map(|(finish, _)| finish.lease).filter(is_lost).collect())
}

/// Ends of tasks in parts that fit into one call each.
pub(super) fn parts(batch: &[Finish]) -> impl Iterator<Item = &[Finish]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let mut said = 0;
        let fits = |finish: &&Finish| {
            said += weight(finish);
            said <= ROOM
        };
        let count = rest.iter().take(MOST).take_while(fits).count().max(1).min(rest.len());
        let (part, after) = rest.split_at(count);
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// About how many bytes this end of a task is, where it has many.
fn weight(Finish { record, attempt, .. }: &Finish) -> usize {
    let error = |error: &ErrorBody| {
        let texts = [&*error.kind, &error.message, error.args.get(), error.kwargs.get()].into_iter();
        let causes = error.causes.iter().chain(&error.location).map(String::len);
        texts.map(str::len).chain(causes).sum::<usize>()
    };
    let of_attempt = |attempt: &Attempt| {
        let decisions = attempt.decisions.iter().filter_map(|decision| decision.failure.as_deref());
        error(&attempt.error) + decisions.map(error).sum::<usize>()
    };
    let arguments = record.task.args.get().len() + record.task.kwargs.get().len();
    let texts = [&record.traceback, &record.cancel_reason, &record.dead_letter].into_iter().flatten().map(String::len);
    record.returning.as_ref().map_or(0, |json| json.get().len())
        + [&record.error, &record.original_error].into_iter().flatten().map(|body| error(body)).sum::<usize>()
        + attempt.as_ref().map_or(0, of_attempt)
        + texts.sum::<usize>()
        + record.extras.values().map(|json| json.get().len()).sum::<usize>()
        // A retry takes them along, and so does a record of which is not known how it was.
        + arguments
}

/// The id of the retry that follows this delivery: the same however often its end is sent.
fn child_of(lease: Lease) -> Uuid {
    let digest = Sha256::new().chain_update(lease.uuid).chain_update(lease.delivery.to_be_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn one_finish(call: &mut redis::Cmd, finish: &Finish, before: Option<&Before>) {
    let Finish { lease, record, retry, attempt } = finish;
    let mut line = Vec::new();
    attempts::write(&mut line, finish);
    call.arg(line);
    call.arg(before.map_or("", |before| &before.attempts_at));
    let before = before.map(|before| &before.task);
    let Some(Again { after, left }) = *retry else {
        counted(call, &fields::of_ended(record, record.status, before));
        call.arg("");
        return;
    };
    // As QTasks retries: a child with an id of its own waits, and this record says which.
    let child_uuid = child_of(*lease);
    let mut parent = record.clone();
    parent.retry = Some(left.into());
    parent.retry_child_uuid = Some(child_uuid);
    parent.task.attempt = attempt.as_ref().map_or(record.task.attempt, |attempt| attempt.attempt);
    counted(call, &fields::of_ended(&parent, TaskStatus::Retry, before));
    let mut child = record.clone();
    child.task.uuid = child_uuid;
    child.task.created_at = unix_now();
    child.updated_at = child.task.created_at;
    child.retry = Some(i64::from(left) - 1);
    child.retry_parent_uuid = Some(lease.uuid);
    let child = child.after(after);
    let task = &child.task;
    call.arg(child_uuid.to_string()).arg(item(&task.name, task.uuid, task.priority));
    call.arg(child.due.map(repr).unwrap_or_default());
    counted(call, &fields::of_new(&child));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Record;
    use crate::task::Task;

    #[test]
    fn no_call_holds_more_than_there_is_room_for() {
        let ended = |bytes: usize| {
            let mut record = Record::new(Task::new("add").expect("a name"));
            let mut error = ErrorBody::new("E", "");
            error.causes = vec!["x".repeat(bytes)];
            record.error = Some(Box::new(error));
            Finish { lease: Lease { uuid: record.task.uuid, delivery: 1 }, record, retry: None, attempt: None }
        };
        let sizes = |batch: &[Finish]| parts(batch).map(<[Finish]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&vec![ended(10); MOST + 1]), [MOST, 1]);
        let large = ROOM / 3;
        assert_eq!(sizes(&[ended(large), ended(large), ended(large), ended(ROOM * 2), ended(1), ended(1)]), [2, 1, 1, 2]);
    }

    #[test]
    fn a_retry_has_one_id_for_each_delivery_that_qtasks_reads() {
        let lease = Lease { uuid: Uuid::new_v4(), delivery: 7 };
        assert_eq!(child_of(lease), child_of(lease));
        assert_ne!(child_of(lease), child_of(Lease { delivery: 8, ..lease }));
        assert_ne!(child_of(lease), child_of(Lease { uuid: Uuid::new_v4(), ..lease }));
        assert_eq!(child_of(lease).get_version_num(), 4);
    }
}
