//! Messages that end a Python worker or that no reader of JSON takes: set aside with the reason, and the worker goes on.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Interop, MIRROR, PROCESS, QUEUE, assert_has, key, text};
use crate::support::assert_says;
use crate::support::python::Flavour;

/// One bad message. `UUID` in the item stands for the id of its record.
struct Poison {
    what: &'static str,
    item: &'static [u8],
    uuid: Uuid,
    record: Record,
    /// What the reason must say.
    said: &'static [&'static str],
}

enum Record {
    /// A good one.
    Good,
    Missing,
    /// A good one but for this field.
    With(&'static str, Vec<u8>),
    Without(&'static str),
    /// A string in the place of the hash.
    Text,
}

fn poison(what: &'static str, item: &'static [u8], record: Record, said: &'static [&'static str]) -> Poison {
    Poison { what, item, uuid: Uuid::new_v4(), record, said }
}

fn poisons() -> Vec<Poison> {
    const ITEM: &[u8] = b"mirror:UUID:0";
    let args = |bytes: &[u8]| Record::With("args", bytes.to_vec());
    let version_7 = "0b6aecd7-8c0a-7b33-8a4c-0f3ba6a9a3a5".parse().expect("a uuid");
    vec![
        poison("colon in the name", b"mir:ror:UUID:0", Record::Good, &["mir:ror"]),
        poison("no record", ITEM, Record::Missing, &["record"]),
        Poison { uuid: version_7, ..poison("uuid of version 7", ITEM, Record::Good, &["version"]) },
        poison("bad JSON", ITEM, args(b"[1,"), &["args"]),
        poison("priority that is no integer", b"mirror:UUID:1.5", Record::Good, &["1.5"]),
        // Lua and C read these as numbers, which no queue can be sorted by.
        poison("priority that is not a number", b"mirror:UUID:nan", Record::Good, &["nan"]),
        poison("priority without end", b"mirror:UUID:inf", Record::Good, &["inf"]),
        poison("a field is missing", ITEM, Record::Without("args"), &["args"]),
        poison("another field is missing", ITEM, Record::Without("created_at"), &["created_at"]),
        poison("NaN", ITEM, args(b"[NaN]"), &["args"]),
        poison("Infinity", ITEM, Record::With("kwargs", br#"{"a": -Infinity}"#.to_vec()), &["kwargs"]),
        poison("a lone surrogate", ITEM, args(br#"["\ud800"]"#), &["args"]),
        poison("a byte that is no UTF-8", ITEM, args(b"[\"\xff\"]"), &["args"]),
        poison("a string in the place of the record", ITEM, Record::Text, &["not a hash", "WRONGTYPE"]),
        poison("JSON that is too deep", ITEM, args(&[[b'['; 100_000], [b']'; 100_000]].concat()), &["args"]),
        poison("args that are no list", ITEM, args(b"{}"), &["args", "opens with `[`"]),
        poison("kwargs that are no object", ITEM, Record::With("kwargs", b"[]".to_vec()), &["kwargs", "opens with `{`"]),
        poison("a time that is none", ITEM, Record::With("created_at", b"noon".to_vec()), &["created_at"]),
        poison("no uuid", b"mirror:now:0", Record::Missing, &["task_name:uuid:priority"]),
        poison("too short", b"mirror", Record::Missing, &["task_name:uuid:priority"]),
        poison("empty", b"", Record::Missing, &["task_name:uuid:priority"]),
    ]
}

impl Poison {
    fn push(&self, interop: &Interop) {
        let uuid = self.uuid.to_string();
        let key = key(&uuid);
        let server = &interop.server;
        let good: [(&str, &[u8]); 7] = [
            ("task_name", b"mirror"),
            ("priority", b"0"),
            ("args", b"[1]"),
            ("kwargs", b"{}"),
            ("created_at", b"1795333232.880758"),
            ("updated_at", b"1795333232.880758"),
            ("status", b"new"),
        ];
        let mut hset = vec![&b"HSET"[..], key.as_bytes()];
        match &self.record {
            Record::Missing => hset.clear(),
            Record::Text => {
                hset.clear();
                server.command::<()>(&["SET", &key, "a text"]);
            }
            Record::Good => good.iter().for_each(|(name, value)| hset.extend([name.as_bytes(), value])),
            Record::Without(field) => {
                let left = good.iter().filter(|(name, _)| name != field);
                left.for_each(|(name, value)| hset.extend([name.as_bytes(), value]));
            }
            Record::With(field, other) => {
                let changed = good.iter().map(|(name, value)| (name, if name == field { &**other } else { *value }));
                changed.for_each(|(name, value)| hset.extend([name.as_bytes(), value]));
            }
        }
        if !hset.is_empty() {
            server.command::<()>(&hset);
        }
        server.command::<()>(&[b"RPUSH", QUEUE.as_bytes(), &self.item()]);
    }

    /// The item, with the id.
    fn item(&self) -> Vec<u8> {
        let uuid = self.uuid.to_string();
        let parts = self.item.split(|byte| *byte == b':').map(|part| if part == b"UUID" { uuid.as_bytes() } else { part });
        parts.collect::<Vec<_>>().join(&b':')
    }

    /// Whether this dead letter is this: by the item that was found in the queue, which is kept.
    fn is(&self, dead: &Value) -> bool {
        dead["found_item"].as_str().is_some_and(|found| found.as_bytes() == self.item())
    }
}

#[test]
fn what_cannot_be_read_is_set_aside_with_the_reason_and_the_worker_goes_on() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let poisons = poisons();
    poisons.iter().for_each(|poison| poison.push(&interop));
    let good = project.add(&["mirror", "--args", "[1]"]);
    let worker = project.start(&[MIRROR]);
    assert_has(&project.wait(&good), &json!({"status": "success"}));
    let mut client = interop.client(Flavour::Async);
    assert_eq!(client.run(r#"{"task": "mirror", "args": [2]}"#)["status"], "success", "and one that came later");

    let dead = project.client(&["task", "dead-letter", "list", "--json"]).end().expect_code(0).results();
    for poison in &poisons {
        let found = dead.iter().find(|record| poison.is(record));
        let found = found.unwrap_or_else(|| panic!("{}: nothing of it in {dead:#?}", poison.what));
        assert_has(found, &json!({"status": "error"}));
        println!("{}: {}", poison.what, text(found, "dead_letter"));
        assert_says(text(found, "dead_letter"), poison.said);
    }
    assert_eq!(dead.len(), poisons.len(), "each once: {dead:#?}");
    interop.server.wait_for(&["LLEN", QUEUE], 0);
    interop.server.wait_for(&["ZCARD", PROCESS], 0);
    let (status, said) = worker.stop();
    assert!(status.success(), "{said}");
}

#[test]
fn a_name_that_is_no_utf8_is_nobodys_and_its_producer_is_told() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let odd = poison("a name that is no UTF-8", b"mirr\xffr:UUID:0", Record::Good, &[]);
    odd.push(&interop);
    let worker = project.start(&[MIRROR]);
    let record = project.wait(&odd.uuid.to_string());
    assert_has(&record, &json!({"status": "error"}));
    assert_says(text(&record, "traceback"), &["mirr\u{fffd}r"]);
    assert_eq!(interop.client(Flavour::Async).results(&[odd.uuid.to_string()])[0]["status"], "error");
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn an_id_in_upper_case_runs_and_leaves_nothing_behind() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let upper = Poison {
        uuid: "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5".parse().expect("a uuid"),
        ..poison("upper case", b"mirror:0B6AECD7-8C0A-4B33-8A4C-0F3BA6A9A3A5:0", Record::Good, &[])
    };
    upper.push(&interop);
    let worker = project.start(&[MIRROR]);
    assert_eq!(project.wait(&upper.uuid.to_string())["status"], "success");
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn a_key_of_another_type_is_told_and_loses_no_task() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let leases = "qtasks-host:QueueTasks:leases";
    interop.server.command::<()>(&["SET", leases, "somebody else's"]);
    let mut client = interop.client(Flavour::Async);
    let uuid = client.add(&[r#"{"task": "echo"}"#]).remove(0);
    let mut worker = project.start(&[]);
    assert_says(&worker.read_until("no tasks can be taken"), &[leases, "is a string; expected a hash, move it away"]);
    assert_eq!(interop.server.command::<u64>(&["LLEN", QUEUE]), 1, "it waits on");
    interop.server.command::<()>(&["DEL", leases]);
    assert_has(&client.results(&[uuid])[0], &json!({"status": "success"}));
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn a_name_with_a_byte_that_ends_texts_in_c_leaves_nothing_behind() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    let uuid = Uuid::new_v4().to_string();
    let record = ["priority", "0", "args", "[]", "kwargs", "{}", "created_at", "1.5", "updated_at", "1.5", "status", "new"];
    let its_key = key(&uuid);
    let hset = [["HSET", &its_key, "task_name", "a\0b"].as_slice(), &record].concat();
    interop.server.command::<()>(&hset);
    interop.server.command::<()>(&["RPUSH", QUEUE, &format!("a\0b:{uuid}:0")]);
    let worker = project.start(&[]);
    interop.server.wait_for(&["HGET", &its_key, "status"], Some("error".to_owned()));
    interop.server.wait_for(&["ZCARD", PROCESS], 0);
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn what_others_write_among_this_programs_keys_loses_nothing_and_hides_nothing() {
    let Some(interop) = Interop::start() else { return };
    let server = &interop.server;
    let own = |name: &str| format!("qtasks-host:QueueTasks:{name}");
    let project = interop.project(&["documented_example"]);
    let fails = r#"tasks.fails.command = ["sh", "-c", "exit 3"]"#;
    let mut worker = project.start(&[fails]);
    let first = project.add(&["fails"]);
    assert_has(&project.wait(&first), &json!({"status": "success", "returning": 123}));

    // Places of attempts that are none, a list where a text is expected, and one that would be answered with more than is read of anything.
    let good = server.hash(&key(&first))["attempts_at"].clone();
    server.command::<()>(&["RPUSH", &own("attempts:0aff"), "an element"]);
    server.command::<()>(&["ZADD", &own("attempts"), "1e12", "0aff"]);
    let bad = "0aff:0:9 0aff:0 0aff:x:1 0aff:9223372036854775808:1 0aff:4294967295:1 0a/ff:0:9 : ::";
    server.command::<()>(&["HSET", &key(&first), "attempts_at", &format!("{bad} {good} 0aff:0:4294967295 {good}")]);
    let history = |uuid: &str| project.json(&["task", "get", uuid], 0)["history"].as_array().map(Vec::len);
    assert_eq!(history(&first), Some(1), "what names an attempt, up to what asks for too much");
    assert_eq!(project.client(&["decisions", "list", "--json"]).end().expect_code(0).results().len(), 1);

    // A text where numbers of deliveries are counted: an error, again and again, until somebody takes it away; the task still waits.
    server.command::<()>(&["SET", &own("deliveries"), "many"]);
    let second = project.add(&["fails"]);
    worker.read_until("not an integer");
    assert_eq!(server.command::<u64>(&["LLEN", QUEUE]), 1);
    server.command::<()>(&["SET", &own("deliveries"), "1000"]);
    assert_has(&project.wait(&second), &json!({"status": "success", "returning": 123}));
    let (status, said) = worker.stop();
    assert!(status.success(), "{said}");
}

#[test]
fn what_was_unreadable_is_not_run_with_arguments_that_nobody_gave() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&[]);
    let bad = poison("NaN", b"mirror:UUID:0", Record::With("args", b"[NaN]".to_vec()), &["args"]);
    bad.push(&interop);
    let worker = project.start(&[MIRROR]);
    let uuid = bad.uuid.to_string();
    // Before that it is no record that a client could read.
    interop.server.wait_for(&["HGET", &key(&uuid), "status"], Some("error".to_owned()));
    for command in [["task", "retry"].as_slice(), &["task", "dead-letter", "requeue"]] {
        let words = [command, &[&uuid]].concat();
        assert_eq!(project.json(&words, 6)["requeue"], "unreadable");
        assert_says(&project.client(&words).end().stdout, &["cannot run again, since what was found was no task"]);
    }
    let record = project.json(&["task", "get", &uuid], 0);
    assert_has(&record, &json!({"status": "error", "found_args": "[NaN]"}));
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}

#[test]
fn a_task_that_nobody_has_any_more_can_be_run_again_or_cancelled() {
    let Some(interop) = Interop::start() else { return };
    let project = interop.project(&["scripted"]);
    // A Python worker that ends between taking a task and noting that it has it leaves such a record behind.
    let strand = |uuid: &str, status: &str| {
        let record = ["priority", "0", "args", "[]", "kwargs", "{}", "created_at", "1.5", "updated_at", "1.5"];
        let its_key = key(uuid);
        let fields = [["HSET", &its_key, "task_name", "echo", "status", status].as_slice(), &record].concat();
        interop.server.command::<()>(&fields);
    };
    let [runs, ends, held] = [(); 3].map(|()| Uuid::new_v4().to_string());
    strand(&runs, "new");
    strand(&ends, "process");
    strand(&held, "process");
    interop.server.command::<()>(&["ZADD", PROCESS, "0", &format!("echo:{held}:0")]);
    assert_eq!(project.json(&["task", "retry", &held], 6)["requeue"], "underway", "a Python worker has it");
    assert_eq!(project.json(&["task", "cancel", &held], 6)["cancel"], "foreign");
    interop.server.command::<()>(&["ZREM", PROCESS, &format!("echo:{held}:0")]);
    assert_eq!(project.json(&["task", "retry", &runs], 0)["requeue"], "done");
    assert_eq!(project.json(&["task", "retry", &runs], 6)["requeue"], "underway", "it waits now");
    assert_eq!(project.json(&["task", "cancel", &ends], 0)["cancel"], "done");
    assert_eq!(project.status(&ends), "cancel");
    let worker = project.start(&[]);
    assert_eq!(project.wait(&runs)["status"], "success");
    interop.assert_nothing_left();
    assert!(worker.stop().0.success());
}
