//! The records: what people and clients read and change.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::Value;
use uuid::Uuid;

use super::attempts;
use super::fields;
use super::hash::{Hash, Pairs};
use super::keys::Keys;
use super::link::Link;
use super::python_json::repr;
use super::script;
use crate::broker::error::{BrokerError, BrokerErrorKind};
use crate::broker::record::{Fields, Record, TaskStatus, unix_now};
use crate::broker::{Cancelled, Counts, Filter, Requeued};

/// Keys that one step of a walk through the server looks at.
const STEP: usize = 1000;
/// QTasks' clients take a project for dead when this many seconds went by without a word.
const RUNNING: u64 = 20;

/// Two fields of a hash, where they are there.
type TwoFields = (Option<Vec<u8>>, Option<Vec<u8>>);

/// One step of a walk through the keys that fit `pattern`; gives where the next one begins, 0 at the end.
async fn scan(link: &Link, cursor: u64, pattern: &str, only_hashes: bool) -> Result<(u64, Vec<Vec<u8>>), BrokerError> {
    let mut command = redis::cmd("SCAN");
    command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP);
    if only_hashes {
        command.arg("TYPE").arg("hash");
    }
    link.run(&command).await
}

async fn read(link: &Link, keys: &Keys, uuid: Uuid) -> Result<Hash, BrokerError> {
    let pairs = link.run(redis::cmd("HGETALL").arg(keys.record(uuid))).await?;
    Ok(Hash::new(pairs))
}

/// One record, with its history.
pub(super) async fn get(link: &Link, keys: &Keys, uuid: Uuid) -> Result<Option<Record>, BrokerError> {
    let hash = read(link, keys, uuid).await?;
    if hash.is_empty() {
        return Ok(None);
    }
    let read = hash.record(uuid).map_err(|reason| {
        let refused = format!("the record {} is no task: {reason}", keys.record(uuid));
        BrokerError::new(link.place(), BrokerErrorKind::Refused(refused))
    });
    let mut record = read?;
    record.history = attempts::history(link, keys, &hash).await?;
    // Its payload stands with the attempt that raised it, for as long as that is kept.
    if let (Some(original), Some(last)) = (&mut record.original_error, record.history.last()) {
        original.clone_from(&last.error);
    }
    Ok(Some(record))
}

/// Records, the latest first.
pub(super) async fn list(link: &Link, keys: &Keys, filter: &Filter) -> Result<Vec<Record>, BrokerError> {
    let (mut cursor, pattern) = (0, keys.records());
    let mut found: HashMap<Uuid, Record> = HashMap::new();
    loop {
        let (next, step) = scan(link, cursor, &pattern, true).await?;
        let uuids: Vec<Uuid> = step.iter().filter_map(|key| keys.uuid_of(key)).collect();
        let hashes: Vec<Pairs> =
            link.together(uuids.iter().map(|uuid| redis::cmd("HGETALL").arg(keys.record(*uuid)).to_owned())).await?;
        for (uuid, pairs) in uuids.into_iter().zip(hashes) {
            match Hash::new(pairs).record(uuid) {
                Ok(record) if filter.fits(&record) => {
                    found.insert(uuid, Record { history: Vec::new(), ..record });
                }
                Ok(_) => {}
                Err(reason) => tracing::warn!(%uuid, "a task is unreadable and left out: {reason}"),
            }
        }
        // Not more in memory than what may be among the latest.
        if found.len() > filter.limit.saturating_mul(2).max(STEP) {
            found = latest(found, filter.limit).map(|record| (record.task.uuid, record)).collect();
        }
        cursor = next;
        if cursor == 0 {
            return Ok(latest(found, filter.limit).collect());
        }
    }
}

fn latest(found: HashMap<Uuid, Record>, limit: usize) -> impl Iterator<Item = Record> {
    let mut records: Vec<Record> = found.into_values().collect();
    records.sort_by(|a, b| b.task.created_at.total_cmp(&a.task.created_at).then_with(|| a.task.uuid.cmp(&b.task.uuid)));
    records.into_iter().take(limit)
}

/// Replaces fields; `false`: there is no such record.
pub(super) async fn update(link: &Link, keys: &Keys, uuid: Uuid, fields: Fields) -> Result<bool, BrokerError> {
    loop {
        let Some(before) = get(link, keys, uuid).await? else { return Ok(false) };
        let mut record = before.clone();
        record
            .replace(fields.clone())
            .map_err(|error| BrokerError::new(link.place(), BrokerErrorKind::Refused(error.to_string())))?;
        // Where a task stands is the queue's to say; a task that ended may be given another end.
        if !(before.status.has_ended() && record.status.has_ended()) {
            record.status = before.status;
        }
        let removed = [
            ("traceback", before.traceback.is_some() && record.traceback.is_none()),
            ("cancel_reason", before.cancel_reason.is_some() && record.cancel_reason.is_none()),
            ("dead_letter", before.dead_letter.is_some() && record.dead_letter.is_none()),
        ];
        let removed: Vec<&str> = removed.into_iter().filter_map(|(name, is_removed)| is_removed.then_some(name)).collect();
        let mut call = script::UPDATE.call(&keys.project);
        call.arg(uuid.to_string()).arg(before.status.name()).arg(removed.len()).arg(removed);
        for part in fields::of_ended(&record, record.status, None) {
            call.arg(&*part);
        }
        match link.call::<String>(&script::UPDATE, &call).await?.as_str() {
            "done" => return Ok(true),
            "unknown" => return Ok(false),
            // It went on meanwhile.
            _ => {}
        }
    }
}

/// Cancels what waits; leaves a note for the worker of what runs.
pub(super) async fn cancel(link: &Link, keys: &Keys, uuid: Uuid, reason: &str) -> Result<Cancelled, BrokerError> {
    let mut call = script::CANCEL.call(&keys.project);
    call.arg(uuid.to_string()).arg(repr(unix_now())).arg(reason);
    Ok(match link.call::<String>(&script::CANCEL, &call).await?.as_str() {
        "done" => Cancelled::Done,
        "asked" => Cancelled::Asked,
        "ended" => Cancelled::Ended,
        "foreign" => Cancelled::Foreign,
        _ => Cancelled::Unknown,
    })
}

/// Lets an ended task wait again.
pub(super) async fn requeue(link: &Link, keys: &Keys, uuid: Uuid) -> Result<Requeued, BrokerError> {
    let mut call = script::REQUEUE.call(&keys.project);
    call.arg(uuid.to_string()).arg(repr(unix_now()));
    Ok(match link.call::<String>(&script::REQUEUE, &call).await?.as_str() {
        "done" => Requeued::Done,
        "underway" => Requeued::Underway,
        "unreadable" => Requeued::Unreadable,
        _ => Requeued::Unknown,
    })
}

/// How many tasks there are.
pub(super) async fn counts(link: &Link, keys: &Keys) -> Result<Counts, BrokerError> {
    let mut counts = Counts { delayed: link.run(redis::cmd("ZCARD").arg(&keys.delayed)).await?, ..Counts::default() };
    let (mut cursor, pattern) = (0, keys.records());
    loop {
        let (next, step) = scan(link, cursor, &pattern, true).await?;
        let ask = |key: &Vec<u8>| redis::cmd("HMGET").arg(key).arg("status").arg("dead_letter").to_owned();
        let found: Vec<TwoFields> = link.together(step.iter().map(ask)).await?;
        for (status, dead_letter) in found {
            let status = status.and_then(|status| TaskStatus::from_name(&String::from_utf8_lossy(&status)));
            if let Some(status) = status {
                counts.add(status, dead_letter.is_some());
            }
        }
        cursor = next;
        if cursor == 0 {
            return Ok(counts);
        }
    }
}

/// Removes ended records and decisions that are older; gives how many records. Records that Python workers ended are looked for one
/// step at a time, from `cursor` on, which moves.
pub(super) async fn prune(
    link: &Link,
    keys: &Keys,
    results: Duration,
    decisions: Duration,
    cursor: &AtomicU64,
) -> Result<u64, BrokerError> {
    let now = unix_now();
    let oldest = now - results.as_secs_f64();
    let mut removed = 0;
    loop {
        let mut call = script::PRUNE.call(&keys.project);
        call.arg(repr(oldest)).arg(STEP).arg(repr(now));
        let (step, looked): (u64, usize) = link.call(&script::PRUNE, &call).await?;
        removed += step;
        if looked < STEP {
            break;
        }
    }
    let (next, step) = scan(link, cursor.load(Relaxed), &keys.records(), true).await?;
    cursor.store(next, Relaxed);
    removed += remove_ended(link, keys, Some(oldest), step).await?;
    attempts::prune(link, keys, now - decisions.as_secs_f64()).await?;
    Ok(removed)
}

/// Removes those of these records that have ended, before this time or at any; gives how many.
async fn remove_ended(link: &Link, keys: &Keys, before: Option<f64>, records: Vec<Vec<u8>>) -> Result<u64, BrokerError> {
    if records.is_empty() {
        return Ok(0);
    }
    let mut call = script::REMOVE_ENDED.call(&keys.project);
    call.arg(before.map(repr).unwrap_or_default()).arg(records);
    link.call(&script::REMOVE_ENDED, &call).await
}

/// Removes every ended record.
pub(super) async fn delete_finished(link: &Link, keys: &Keys) -> Result<u64, BrokerError> {
    // Those that Python workers ended are in no list of ours.
    let (mut cursor, pattern, mut removed) = (0, keys.records(), 0);
    loop {
        let (next, step) = scan(link, cursor, &pattern, true).await?;
        removed += remove_ended(link, keys, None, step).await?;
        cursor = next;
        if cursor == 0 {
            link.run::<Value>(redis::cmd("DEL").arg(&keys.ended)).await?;
            return Ok(removed);
        }
    }
}

/// Removes everything but the workers that are there and the number of deliveries, by which a late worker is known.
pub(super) async fn flush_all(link: &Link, keys: &Keys) -> Result<u64, BrokerError> {
    let mut removed = 0;
    let workers: u64 = link.run(redis::cmd("HLEN").arg(&keys.workers)).await?;
    for pattern in keys.all() {
        let mut cursor = 0;
        loop {
            let (next, mut step) = scan(link, cursor, &pattern, false).await?;
            step.retain(|key| workers == 0 || !keys.stays_with_workers(key));
            if !step.is_empty() {
                removed += step.iter().filter(|key| keys.uuid_of(key).is_some()).count() as u64;
                link.run::<Value>(redis::cmd("DEL").arg(step)).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(removed)
}

pub(super) async fn config_set(link: &Link, keys: &Keys, name: &str, key: &str, value: &str) -> Result<(), BrokerError> {
    link.run::<Value>(redis::cmd("HSET").arg(keys.config(name)).arg(key).arg(value)).await.map(drop)
}

pub(super) async fn config_get_all(link: &Link, keys: &Keys, name: &str) -> Result<Vec<(String, String)>, BrokerError> {
    let all: HashMap<Vec<u8>, Vec<u8>> = link.run(redis::cmd("HGETALL").arg(keys.config(name))).await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let mut all: Vec<(String, String)> = all.into_iter().map(|(key, value)| (text(key), text(value))).collect();
    all.sort();
    Ok(all)
}

/// Says that a worker is there. Written anew each time: QTasks only prolongs the key, and never gets it back once it is gone.
pub(super) async fn set_running(link: &Link, keys: &Keys) -> Result<(), BrokerError> {
    let main = keys.config("main");
    let set = redis::cmd("HSET").arg(&main).arg("name").arg(&keys.project).arg("status").arg("running").to_owned();
    let expire = redis::cmd("EXPIRE").arg(&main).arg(RUNNING).to_owned();
    link.together::<Value>([set, expire]).await.map(drop)
}

pub(super) async fn is_running(link: &Link, keys: &Keys) -> Result<bool, BrokerError> {
    let status: Option<Vec<u8>> = link.run(redis::cmd("HGET").arg(keys.config("main")).arg("status")).await?;
    Ok(status.as_deref() == Some(b"running"))
}
