//! What each operation of the queue sends, and what comes back.

use std::collections::HashMap;

use redis::Value;
use uuid::Uuid;

use super::fields::{self, Flat, item};
use super::hash::{Hash, Pairs};
use super::keys::Keys;
use super::link::Link;
use super::python_json::{dumps, repr};
use super::script;
use crate::broker::error::{BrokerError, BrokerErrorKind};
use crate::broker::record::{Record, TaskStatus, unix_now};
use crate::broker::{Lease, Taken};
use crate::shown::few;
use crate::task::Task;

/// So many tasks at the head of the queue are looked at for those of a higher priority.
const WINDOW: usize = 256;
/// Most tasks in one call: the server does nothing else meanwhile.
pub(super) const MOST: usize = 512;

/// A task as a script hands it out: its item, its uuid, its delivery.
pub(super) type Handed = (Vec<u8>, String, i64);

/// A task as it was when it was taken.
#[derive(Debug, Clone)]
pub(super) struct Before {
    pub(super) task: Task,
    /// Its item in the queue, as it stands among those that are in process.
    pub(super) item: Vec<u8>,
    /// Where its earlier attempts stand, and a space; empty where there are none.
    pub(super) attempts_at: String,
}

/// What became of what was handed out.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) taken: Vec<Taken>,
    /// Of each that was taken.
    pub(super) before: Vec<(Lease, Before)>,
    /// What cannot run, and why.
    pub(super) unreadable: Vec<Unreadable>,
}

/// A task that cannot run.
pub(super) struct Unreadable {
    pub(super) lease: Lease,
    pub(super) item: String,
    pub(super) hash: Hash,
    pub(super) reason: String,
}

/// Reads the records of what was handed out, and tells tasks from what is none. Higher priorities first.
pub(super) async fn sort(link: &Link, keys: &Keys, handed: Vec<Handed>) -> Result<Sorted, BrokerError> {
    let mut sorted = Sorted::default();
    if handed.is_empty() {
        return Ok(sorted);
    }
    let mut read = redis::pipe();
    for (_, uuid, _) in &handed {
        read.cmd("HGETALL").arg(format!("{}:{uuid}", keys.project));
    }
    let hashes: Vec<Pairs> = link.run_all(&read).await?;
    for ((item, uuid, delivery), hash) in handed.into_iter().zip(hashes) {
        let hash = Hash::new(hash);
        let name = String::from_utf8_lossy(&item);
        // The script has looked at its shape.
        let Ok(uuid) = Uuid::try_parse(&uuid) else { continue };
        let lease = Lease { uuid, delivery };
        match record_of(&name, uuid, &hash) {
            Ok(record) => {
                let attempts_at = Some(hash.attempts_text()).filter(|text| !text.is_empty()).map(|text| format!("{text} "));
                let before = Before { task: record.task.clone(), item, attempts_at: attempts_at.unwrap_or_default() };
                sorted.before.push((lease, before));
                sorted.taken.push(Taken { lease, record });
            }
            Err(reason) => sorted.unreadable.push(Unreadable { lease, item: name.into_owned(), hash, reason }),
        }
    }
    sorted.taken.sort_by_key(|taken| std::cmp::Reverse(taken.record.task.priority));
    Ok(sorted)
}

/// The record of a task that is to run; name and priority are the item's, as for QTasks' workers.
fn record_of(item: &str, uuid: Uuid, hash: &Hash) -> Result<Record, String> {
    let mut parts = item.rsplitn(3, ':');
    let (priority, _, name) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
    if hash.is_empty() {
        return Err("it has no record: its hash is missing".to_owned());
    }
    if uuid.get_version_num() != 4 {
        return Err(format!(
            "its uuid has version {}: expected version 4, since QTasks reads others as another id",
            uuid.get_version_num()
        ));
    }
    let mut record = hash.record(uuid)?;
    record.task.set_name(name).map_err(|error| error.to_string())?;
    record.task.priority =
        priority.parse().map_err(|_| format!("the priority in its item is {priority:?}: expected a whole number"))?;
    record.status = TaskStatus::Process;
    record.due = None;
    record.updated_at = unix_now();
    Ok(record)
}

pub(super) fn counted<'a>(call: &mut redis::Cmd, flat: &Flat<'a>) {
    call.arg(flat.len());
    for part in flat {
        call.arg(&**part);
    }
}

/// Puts new tasks in; gives the uuid that is there already.
pub(super) async fn add(link: &Link, keys: &Keys, records: &[Record]) -> Result<(), BrokerError> {
    let mut call = script::ADD.call(&keys.project);
    call.arg(records.len());
    for record in records {
        let task = &record.task;
        call.arg(task.uuid.to_string()).arg(item(&task.name, task.uuid, task.priority));
        call.arg(record.due.map(repr).unwrap_or_default());
        counted(&mut call, &fields::of_new(record));
    }
    let known: String = link.call(&script::ADD, &call).await?;
    match known.parse() {
        Ok(known) => Err(BrokerError::new(link.place(), BrokerErrorKind::Known(known))),
        Err(_) => Ok(()),
    }
}

/// What was found in the queue.
pub(super) struct Took {
    pub(super) handed: Vec<Handed>,
    /// When the next delayed task is due.
    pub(super) next_due: Option<f64>,
    /// Nothing waited, not even what is no task.
    pub(super) was_empty: bool,
}

/// Leases up to `most` tasks to `worker`.
pub(super) async fn take(link: &Link, keys: &Keys, worker: Uuid, most: usize) -> Result<Took, BrokerError> {
    let mut call = script::TAKE.call(&keys.project);
    call.arg(worker.to_string()).arg(repr(unix_now())).arg(most.clamp(1, MOST)).arg(WINDOW);
    let (items, first, due, found): (Vec<Vec<u8>>, i64, String, usize) = link.call(&script::TAKE, &call).await?;
    let handed = (first..).zip(items).map(|(delivery, item)| {
        // The script has looked at its shape: task_name:uuid:priority.
        let uuid = item.rsplit(|byte| *byte == b':').nth(1).unwrap_or_default().to_ascii_lowercase();
        (item, String::from_utf8_lossy(&uuid).into_owned(), delivery)
    });
    Ok(Took { handed: handed.collect(), next_due: due.parse().ok(), was_empty: found == 0 })
}

/// Sets aside what cannot run. Its lease may be lost meanwhile, which is told by nobody: another worker sets it aside then.
pub(super) async fn set_aside(link: &Link, keys: &Keys, unreadable: &[Unreadable]) -> Result<(), BrokerError> {
    let mut call = script::FINISH.call(&keys.project);
    let now = unix_now();
    // Nothing has run, so no attempt needs the name of a batch.
    call.arg(unreadable.len()).arg("");
    for Unreadable { lease, .. } in unreadable {
        call.arg(lease.uuid.to_string()).arg(lease.delivery).arg(repr(now)).arg(TaskStatus::Error.name());
    }
    for Unreadable { lease, item, hash, reason } in unreadable {
        tracing::error!(uuid = %lease.uuid, item, "a task was set aside: {reason}");
        let fields = hash.set_aside(item, now, reason);
        call.arg("").arg("").arg(fields.len() * 2);
        for (name, value) in fields {
            call.arg(name).arg(value);
        }
        call.arg("");
    }
    link.call::<Vec<String>>(&script::FINISH, &call).await.map(drop)
}

/// Notes that the attempt of this lease begins.
pub(super) async fn begin(link: &Link, keys: &Keys, lease: Lease) -> Result<(), BrokerError> {
    let mut call = script::BEGIN.call(&keys.project);
    call.arg(lease.uuid.to_string()).arg(lease.delivery);
    link.call::<Value>(&script::BEGIN, &call).await.map(drop)
}

/// Puts leased tasks back to the front of the queue, in this order, as these records have them now.
pub(super) async fn give_back(link: &Link, keys: &Keys, taken: &[Taken]) -> Result<(), BrokerError> {
    for part in taken.rchunks(MOST) {
        let mut call = script::GIVE_BACK.call(&keys.project);
        call.arg(repr(unix_now())).arg(part.len());
        for Taken { lease, record } in part.iter().rev() {
            let task = &record.task;
            call.arg(lease.uuid.to_string()).arg(lease.delivery).arg(item(&task.name, lease.uuid, task.priority));
            let (args, kwargs) = (dumps(task.args.get(), true), dumps(task.kwargs.get(), true));
            let fields = [("task_name", &*task.name), ("args", &args), ("kwargs", &kwargs)];
            call.arg(fields.len() * 2 + 2).arg("priority").arg(task.priority);
            fields.iter().for_each(|(name, value)| {
                call.arg(*name).arg(*value);
            });
        }
        link.call::<Value>(&script::GIVE_BACK, &call).await?;
    }
    Ok(())
}

/// Puts back leases of which nothing but their number is known.
pub(super) async fn give_back_unknown(link: &Link, keys: &Keys, leases: &[(String, i64)]) -> Result<(), BrokerError> {
    for part in leases.chunks(MOST) {
        let mut call = script::GIVE_BACK.call(&keys.project);
        call.arg(repr(unix_now())).arg(part.len());
        for (uuid, delivery) in part {
            call.arg(uuid).arg(delivery).arg("").arg(0);
        }
        link.call::<Value>(&script::GIVE_BACK, &call).await?;
    }
    Ok(())
}

/// A lease as the server keeps it.
pub(super) struct Held {
    pub(super) uuid: String,
    pub(super) delivery: i64,
    pub(super) worker: Uuid,
    pub(super) item: Vec<u8>,
}

/// All leases.
pub(super) async fn leases(link: &Link, keys: &Keys) -> Result<Vec<Held>, BrokerError> {
    let all: HashMap<String, Vec<u8>> = link.run(redis::cmd("HGETALL").arg(&keys.leases)).await?;
    let read = |(uuid, value): (String, Vec<u8>)| {
        let mut parts = value.splitn(3, |byte| *byte == b' ');
        let delivery = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let worker = Uuid::try_parse_ascii(parts.next()?).ok()?;
        Some(Held { uuid, delivery, worker, item: parts.next()?.to_vec() })
    };
    Ok(all.into_iter().filter_map(read).collect())
}

/// The workers that are there, with their beats, and those that are not and hold leases all the same.
pub(super) async fn beats(link: &Link, keys: &Keys) -> Result<Vec<(Uuid, i64)>, BrokerError> {
    let beats: HashMap<String, i64> = link.run(redis::cmd("HGETALL").arg(&keys.workers)).await?;
    let mut beats: HashMap<Uuid, i64> =
        beats.into_iter().filter_map(|(worker, beat)| Some((worker.parse().ok()?, beat))).collect();
    for held in leases(link, keys).await? {
        beats.entry(held.worker).or_insert(NO_BEAT);
    }
    Ok(beats.into_iter().collect())
}

/// Stands for a worker that is not there.
const NO_BEAT: i64 = -1;

/// Leases to `worker` what these held, where they still stand at that beat.
pub(super) async fn take_over(
    link: &Link,
    keys: &Keys,
    worker: Uuid,
    dead: &[(Uuid, i64)],
    max_losses: u32,
) -> Result<Vec<Handed>, BrokerError> {
    let mut call = script::TAKE_OVER.call(&keys.project);
    call.arg(worker.to_string()).arg(repr(unix_now())).arg(max_losses);
    for (dead, beat) in dead {
        call.arg(dead.to_string()).arg(if *beat == NO_BEAT { String::new() } else { beat.to_string() });
    }
    let (handed, set_aside): (Vec<Handed>, Vec<String>) = link.call(&script::TAKE_OVER, &call).await?;
    if !set_aside.is_empty() {
        let set_aside: Vec<Uuid> = set_aside.iter().filter_map(|uuid| uuid.parse().ok()).collect();
        tracing::error!(
            "tasks set aside, since {max_losses} workers were lost while they had them: {}: {}",
            set_aside.len(),
            few(&set_aside)
        );
    }
    Ok(handed)
}

/// The items that workers have which keep no leases.
pub(super) async fn foreign(link: &Link, keys: &Keys) -> Result<Vec<Vec<u8>>, BrokerError> {
    let items: Vec<Vec<u8>> = link.run(redis::cmd("ZRANGE").arg(&keys.process).arg(0).arg(-1)).await?;
    let ours: std::collections::HashSet<Vec<u8>> = leases(link, keys).await?.into_iter().map(|held| held.item).collect();
    Ok(items.into_iter().filter(|item| !ours.contains(item)).collect())
}

/// Leases to `worker` a task that another kind of worker left.
pub(super) async fn adopt(link: &Link, keys: &Keys, worker: Uuid, item: &[u8]) -> Result<Vec<Handed>, BrokerError> {
    let mut call = script::ADOPT.call(&keys.project);
    call.arg(worker.to_string()).arg(repr(unix_now())).arg(item);
    link.call(&script::ADOPT, &call).await
}

/// Forgets `worker`; gives how many tasks it still had, which wait again.
pub(super) async fn detach(link: &Link, keys: &Keys, worker: Uuid) -> Result<u64, BrokerError> {
    let mut call = script::DETACH.call(&keys.project);
    call.arg(worker.to_string()).arg(repr(unix_now()));
    link.call(&script::DETACH, &call).await
}
