//! Tasks as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qtasks_host::broker::Record;
use qtasks_host::shown;
use serde_json::value::RawValue;

use crate::cli::output::{print, print_json, table};

/// Prints one record.
pub(crate) fn record(record: &Record, json: bool) -> anyhow::Result<()> {
    if json { print_json(record) } else { print(&description(record)) }
}

fn description(record: &Record) -> String {
    let task = &record.task;
    let mut lines: Vec<[String; 2]> = Vec::new();
    let mut line = |name: &str, value: String| lines.push([name.to_owned(), value]);
    line("uuid", task.uuid.to_string());
    line("task", shown(&*task.name).to_string());
    line("status", record.status.name().to_owned());
    line("priority", task.priority.to_string());
    line("args", json(&task.args));
    line("kwargs", json(&task.kwargs));
    line("attempt", task.attempts.map_or(task.attempt.to_string(), |attempts| format!("{} of {attempts}", task.attempt)));
    line("created", ago(task.created_at));
    line("updated", ago(record.updated_at));
    if let Some(due) = record.due {
        line("due", ago(due));
    }
    if let Some(returning) = &record.returning {
        line("returning", json(returning));
    }
    if let Some(error) = &record.error {
        line("error", shown(&error.to_string()).to_string());
        line("payload", format!("{} {}", json(&error.args), json(&error.kwargs)));
    } else if let Some(traceback) = &record.traceback {
        line("traceback", traceback.lines().last().map(|last| shown(last).to_string()).unwrap_or_default());
    }
    if let Some(original) = &record.original_error {
        line("raised", shown(&original.to_string()).to_string());
    }
    if let Some(resolution) = &record.resolved_by {
        line("resolved by", format!("{} {} ({})", resolution.by.name, resolution.by.version, resolution.outcome.name()));
    }
    for (name, value) in [("cancelled", &record.cancel_reason), ("set aside", &record.dead_letter)] {
        if let Some(value) = value {
            line(name, shown(value).to_string());
        }
    }
    if let Some(child) = record.retry_child_uuid {
        line("retried as", child.to_string());
    }
    if let Some(parent) = record.retry_parent_uuid {
        line("retry of", parent.to_string());
    }
    if record.losses > 0 {
        line("lost workers", record.losses.to_string());
    }
    for (name, value) in &record.extras {
        line(&shown(name).to_string(), json(value));
    }
    for attempt in &record.history {
        line(&format!("attempt {}", attempt.attempt), format!("{}, {}", shown(&attempt.error.to_string()), ago(attempt.at)));
        for decision in &attempt.decisions {
            let failure =
                decision.failure.as_ref().map(|failure| format!(": {}", shown(&failure.to_string()))).unwrap_or_default();
            line("", format!("{} {} answered {}{failure}", decision.by.name, decision.by.version, decision.outcome.name()));
        }
    }
    table(&lines)
}

/// JSON as it is kept, on one line: its own line ends stand only between members.
fn json(value: &RawValue) -> String {
    value.get().replace(['\n', '\r'], " ")
}

/// One line a record.
pub(crate) fn list(records: &[Record]) -> String {
    if records.is_empty() {
        return "no tasks\n".to_owned();
    }
    let head = ["uuid", "task", "status", "attempt", "updated", ""].map(str::to_owned);
    let rows = records.iter().map(|record| {
        let note = record.dead_letter.as_deref().or(record.cancel_reason.as_deref()).map(str::to_owned);
        let note = note.or_else(|| record.error.as_ref().map(ToString::to_string));
        let note = note.or_else(|| record.returning.as_ref().map(ToString::to_string));
        let note: String = shown(&note.unwrap_or_default()).to_string().chars().take(80).collect();
        [
            record.task.uuid.to_string(),
            shown(&*record.task.name).to_string(),
            record.status.name().to_owned(),
            record.task.attempt.to_string(),
            ago(record.updated_at),
            note,
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// A time as how long ago, or how far ahead, it is.
pub(crate) fn ago(unix_seconds: f64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let distance = Duration::try_from_secs_f64((now - unix_seconds).abs()).unwrap_or(Duration::MAX);
    let seconds = distance.as_secs();
    let amount = match seconds {
        0 => format!("{} ms", distance.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    };
    if unix_seconds > now { format!("in {amount}") } else { format!("{amount} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_the_unit_that_fits() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later than that").as_secs_f64();
        for (seconds, told) in [
            (1.01, "1 s ago"),
            (119.01, "119 s ago"),
            (120.01, "2 min ago"),
            (7199.01, "119 min ago"),
            (7200.01, "2 h ago"),
            (172_799.01, "47 h ago"),
            (172_800.01, "2 days ago"),
            (-90.99, "in 90 s"),
            (-3600.99, "in 60 min"),
        ] {
            assert_eq!(ago(now - seconds), told);
        }
    }
}
