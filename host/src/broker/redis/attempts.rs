//! The attempts that failed, and who was asked about each: a batch of them is one text, a line of JSON each, and each record says where
//! its own are.

use std::collections::HashSet;
use std::sync::Arc;

use qtasks_plugin_api::ErrorBody;
use redis::{Pipeline, RedisResult, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::hash::Hash;
use super::keys::Keys;
use super::link::Link;
use super::python_json::repr;
use crate::broker::error::BrokerError;
use crate::broker::record::DecisionRecord;
use crate::broker::{Attempt, Finish};
use crate::trigger::Decision;

/// A failed attempt as its batch keeps it. Its fields one by one: flattened, they cost twice the time.
#[derive(Serialize)]
struct WrittenAttempt<'a> {
    uuid: Uuid,
    task_name: &'a str,
    attempt: u32,
    at: f64,
    seconds: f64,
    error: &'a ErrorBody,
    #[serde(skip_serializing_if = "<[Decision]>::is_empty")]
    decisions: &'a [Decision],
}

/// Adds the attempt that failed, if one did, as a line of JSON; gives its length.
pub(super) fn write(lines: &mut Vec<u8>, finish: &Finish) -> Option<usize> {
    let Attempt { attempt, at, seconds, error, decisions } = finish.attempt.as_ref()?;
    let (uuid, task_name) = (finish.lease.uuid, &*finish.record.task.name);
    let line = WrittenAttempt { uuid, task_name, attempt: *attempt, at: *at, seconds: *seconds, error, decisions };
    let first = lines.len();
    if serde_json::to_writer(&mut *lines, &line).is_err() {
        // Not met: an attempt holds nothing that has no JSON form.
        lines.truncate(first);
        return None;
    }
    // Plugins and tasks may write their JSON over several lines, between its words; within strings there are none.
    lines[first..].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    let length = lines.len() - first;
    lines.push(b'\n');
    Some(length)
}

/// The attempts of a record that failed.
pub(super) async fn history(link: &Link, keys: &Keys, hash: &Hash) -> Result<Vec<Attempt>, BrokerError> {
    let places = hash.attempts_at();
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let mut ask = Pipeline::new();
    // What others wrote may name anything; that it holds no attempt is no reason not to show the record.
    ask.ignore_errors();
    for (batch, first, length) in places {
        ask.cmd("GETRANGE").arg(keys.batch(batch)).arg(first).arg(u64::from(first) + u64::from(length) - 1);
    }
    let found: Vec<RedisResult<Vec<u8>>> = link.run_all(&ask).await?;
    // What was pruned is gone, and its place empty.
    Ok(found.into_iter().flatten().filter_map(|json| serde_json::from_slice(&json).ok()).collect())
}

/// As much of such a line as is told of decisions.
#[derive(Deserialize)]
struct ReadAttempt {
    uuid: Uuid,
    task_name: String,
    attempt: u32,
    at: f64,
    error: Box<RawValue>,
    #[serde(default)]
    decisions: Vec<Decision>,
}

/// What plugins decided, the latest first.
pub(super) async fn decisions(
    link: &Link,
    keys: &Keys,
    uuid: Option<Uuid>,
    limit: usize,
) -> Result<Vec<DecisionRecord>, BrokerError> {
    /// Batches that are read at once; each may hold as many attempts as a worker finishes at once.
    const PAGE: usize = 16;
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let wanted = match uuid {
        Some(uuid) => Some(with_retries(link, keys, uuid).await?),
        None => None,
    };
    for first in (0..).step_by(PAGE) {
        let mut batches: Vec<String> =
            link.run(redis::cmd("ZREVRANGE").arg(&keys.attempts).arg(first).arg(first + PAGE - 1)).await?;
        if batches.is_empty() {
            break;
        }
        // What others add meanwhile moves the rest on, so that some of it is met again.
        batches.retain(|batch| seen.insert(batch.clone()));
        if batches.is_empty() {
            continue;
        }
        let names: Vec<String> = batches.iter().map(|batch| keys.batch(batch)).collect();
        // What is no text, or is gone, is nothing.
        let attempts: Vec<Option<Vec<u8>>> = link.run(redis::cmd("MGET").arg(names)).await?;
        let lines = attempts.iter().flatten().flat_map(|batch| batch.split(|byte| *byte == b'\n').rev());
        for json in lines.filter(|line| !line.is_empty()) {
            let Some(attempt) =
                read_line(json).filter(|attempt| wanted.as_ref().is_none_or(|wanted| wanted.contains(&attempt.uuid)))
            else {
                continue;
            };
            found.extend(decisions_of(attempt));
            if found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// A task's uuid, and those that its retries run under, as far as their records are there.
async fn with_retries(link: &Link, keys: &Keys, uuid: Uuid) -> Result<HashSet<Uuid>, BrokerError> {
    const LONGEST: usize = 1000;
    let (mut all, mut next) = (HashSet::new(), Some(uuid));
    // Children of a damaged record might lead back to it, or on without end.
    while let Some(uuid) = next.filter(|uuid| all.len() < LONGEST && all.insert(*uuid)) {
        let child: Option<Vec<u8>> = link.run(redis::cmd("HGET").arg(keys.record(uuid)).arg("retry_child_uuid")).await?;
        next = child.and_then(|child| Uuid::try_parse_ascii(&child).ok());
    }
    Ok(all)
}

fn read_line(json: &[u8]) -> Option<ReadAttempt> {
    let read = serde_json::from_slice(json);
    read.inspect_err(|error| tracing::warn!("a recorded attempt is unreadable and left out: {error}")).ok()
}

fn decisions_of(attempt: ReadAttempt) -> Vec<DecisionRecord> {
    let ReadAttempt { uuid, task_name, attempt, at, error, decisions, .. } = attempt;
    let Ok(error) = serde_json::from_str(error.get()).map(Arc::new) else { return Vec::new() };
    let record = |decision| {
        let (task_name, error) = (task_name.clone(), Arc::clone(&error));
        DecisionRecord { at, uuid, task_name, attempt, decision, error }
    };
    decisions.into_iter().rev().map(record).collect()
}

/// Removes batches of attempts that are older, their names last: what is half done is done the next time.
pub(super) async fn prune(link: &Link, keys: &Keys, oldest: f64) -> Result<(), BrokerError> {
    /// So many at once.
    const STEP: usize = 1000;
    loop {
        let mut old = redis::cmd("ZRANGEBYSCORE");
        old.arg(&keys.attempts).arg("-inf").arg(format!("({}", repr(oldest))).arg("LIMIT").arg(0).arg(STEP);
        let names: Vec<String> = link.run(&old).await?;
        if names.is_empty() {
            return Ok(());
        }
        let batches: Vec<String> = names.iter().map(|name| keys.batch(name)).collect();
        let remove = redis::cmd("UNLINK").arg(batches).to_owned();
        let forget = redis::cmd("ZREM").arg(&keys.attempts).arg(names).to_owned();
        link.together::<Value>([remove, forget]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Lease, Record};
    use crate::task::Task;

    #[test]
    fn an_attempt_is_one_line_however_its_json_was_written() {
        let record = Record::new(Task::new("add").expect("a name"));
        let mut error = ErrorBody::new("E", "two\nlines");
        error.kwargs = RawValue::from_string("{\"a\":\n{\"b\": \"c\\n\"}\n}".to_owned()).expect("JSON");
        let attempt = Attempt { attempt: 1, at: 1.0, seconds: 0.5, error: Box::new(error.clone()), decisions: Vec::new() };
        let lease = Lease { uuid: record.task.uuid, delivery: 1 };
        let finish = Finish { lease, record, retry: None, attempt: Some(attempt) };
        let mut lines = b"before\n".to_vec();
        let length = write(&mut lines, &finish).expect("there is one");
        let lines: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').collect();
        let [_, line, []] = &*lines else { panic!("{lines:?}") };
        assert_eq!(line.len(), length);
        let read: Attempt = serde_json::from_slice(line).expect("an attempt");
        assert_eq!((read.error.message, read.error.kwargs.get()), (error.message, "{\"a\": {\"b\": \"c\\n\"} }"));
    }
}
