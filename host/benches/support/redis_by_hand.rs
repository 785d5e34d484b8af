//! What is sent to Redis by hand: tasks as Python's producer writes them, and the worker's commands with no worker.

use std::time::Instant;

use redis::{Connection, Pipeline};
use uuid::Uuid;

/// Tasks in one go of the loop without task logic.
const PIPELINED: usize = 64;
pub(crate) const TASK: &str = "resize_image";
const NOW: &str = "1795333232.880758";

/// Puts tasks aside, as Python's producer writes them.
pub(crate) fn prepare(connection: &mut Connection, project: &str, tasks: usize) {
    for _ in 0..tasks.div_ceil(500) {
        let mut pipeline = Pipeline::new();
        for _ in 0..tasks.min(500) {
            let uuid = Uuid::new_v4();
            let fields = [
                ("task_name", TASK),
                ("priority", "0"),
                ("args", r#"["a.png"]"#),
                ("kwargs", "{}"),
                ("created_at", NOW),
                ("updated_at", NOW),
                ("status", "new"),
            ];
            pipeline.hset_multiple(format!("{project}:{uuid}"), &fields).ignore();
            pipeline.rpush(format!("staged:{project}"), format!("{TASK}:{uuid}:0")).ignore();
        }
        pipeline.query::<()>(connection).expect("the server runs");
    }
}

/// Lets what was put aside wait in the queue, all at once.
pub(crate) fn release(connection: &mut Connection, project: &str) {
    let renamed: redis::RedisResult<()> =
        redis::cmd("RENAME").arg(format!("staged:{project}")).arg(format!("{project}:task_queue")).query(connection);
    renamed.expect("tasks were put aside");
}

/// Tasks per second of the same commands in a row, with no scripts, no leases checked and no task run: what the server gives. With
/// `all`, this program's own keys as well; without, what QTasks' worker sends for each task.
pub(crate) fn pipelined(connection: &mut Connection, tasks: usize, all: bool) -> f64 {
    let project = "Loop";
    let _: () = redis::cmd("FLUSHDB").query(connection).expect("the server runs");
    prepare(connection, project, tasks);
    let begun = Instant::now();
    release(connection, project);
    loop {
        let items: Option<Vec<String>> =
            redis::cmd("LPOP").arg(format!("{project}:task_queue")).arg(PIPELINED).query(connection).expect("the server runs");
        let Some(items) = items else { break };
        let uuids: Vec<&str> = items.iter().map(|item| item.split(':').nth(1).expect("a uuid")).collect();
        let mut pipeline = Pipeline::new();
        for uuid in &uuids {
            let hash = format!("{project}:{uuid}");
            pipeline.cmd("HSET").arg(&hash).arg("status").arg("process").arg("updated_at").arg(NOW).ignore();
            pipeline.cmd("HGETALL").arg(&hash);
        }
        if all {
            leases(&mut pipeline, project, &items, &uuids)
        } else {
            each(&mut pipeline, "ZADD", project, &items)
        }
        let records: Vec<std::collections::HashMap<String, String>> = pipeline.query(connection).expect("the server runs");
        let mut pipeline = Pipeline::new();
        if all {
            ends(&mut pipeline, project, &items, &uuids);
        } else {
            for (uuid, record) in uuids.iter().zip(&records) {
                let set = pipeline.cmd("HSET").arg(format!("{project}:{uuid}"));
                for name in ["task_name", "priority", "args", "kwargs", "created_at"] {
                    set.arg(name).arg(&record[name]);
                }
                set.arg("updated_at").arg(NOW).arg("status").arg("success").arg("returning").arg("123").ignore();
            }
            each(&mut pipeline, "ZREM", project, &items);
        }
        pipeline.query::<()>(connection).expect("the server runs");
    }
    tasks as f64 / begun.elapsed().as_secs_f64()
}

/// Adds items to those in process, or removes them, one at a time.
fn each(pipeline: &mut Pipeline, command: &str, project: &str, items: &[String]) {
    for item in items {
        let one = pipeline.cmd(command).arg(format!("{project}:task_process"));
        if command == "ZADD" {
            one.arg(0).arg(item).ignore()
        } else {
            one.arg(item).ignore()
        };
    }
}

/// What this program's worker writes when it has taken tasks.
fn leases(pipeline: &mut Pipeline, project: &str, items: &[String], uuids: &[&str]) {
    let set = pipeline.cmd("HSET").arg(own(project, "leases"));
    for (item, uuid) in items.iter().zip(uuids) {
        set.arg(uuid).arg(format!("1 {uuid} {item}"));
    }
    set.ignore();
    let add = pipeline.cmd("ZADD").arg(format!("{project}:task_process"));
    for item in items {
        add.arg(0).arg(item);
    }
    add.ignore();
}

/// What this program's worker writes when tasks have ended.
fn ends(pipeline: &mut Pipeline, project: &str, items: &[String], uuids: &[&str]) {
    let error = r#"{"type":"TaskPluginTriggerError","message":"the image is larger than the limit","args":[],"kwargs":{"message":"the image is larger than the limit","bytes":20971520}}"#;
    pipeline.atomic();
    let (mut attempts, mut ended) = (String::new(), Vec::new());
    for uuid in uuids {
        let line = format!(
            r#"{{"uuid":"{uuid}","task_name":"{TASK}","attempt":1,"at":{NOW},"seconds":0.00001,"error":{error},"decisions":[{{"event":1,"trigger":"task_executor_run_task_trigger_error","plugin":"fallback","version":"0.1.0","digest":"{uuid}{uuid}","outcome":"result","seconds":0.000002}}]}}"#
        );
        let fields = [
            ("updated_at", NOW),
            ("status", "success"),
            ("returning", "123"),
            ("original_error_type", "TaskPluginTriggerError"),
            ("original_error_message", "the image is larger than the limit"),
            ("resolved_by", "fallback 0.1.0 result"),
            ("attempts_at", &format!("0b6aecd78c0a4b33.1:{}:{}", attempts.len(), line.len())),
        ];
        pipeline.hset_multiple(format!("{project}:{uuid}"), &fields).ignore();
        attempts = attempts + &line + "\n";
        ended.push(format!("{NOW} {uuid}"));
    }
    let batch = Uuid::new_v4();
    pipeline.cmd("SET").arg(own(project, &format!("attempts:{batch}"))).arg(attempts).ignore();
    pipeline.cmd("ZADD").arg(own(project, "attempts")).arg(NOW).arg(batch.to_string()).ignore();
    pipeline.cmd("HDEL").arg(own(project, "leases")).arg(uuids).ignore();
    pipeline.cmd("ZREM").arg(format!("{project}:task_process")).arg(items).ignore();
    pipeline.cmd("RPUSH").arg(own(project, "ended")).arg(ended).ignore();
    pipeline.cmd("PUBLISH").arg(own(project, "changed")).arg("").ignore();
}

fn own(project: &str, name: &str) -> String {
    format!("qtasks-host:{project}:{name}")
}
