//! `qtasks-host task add`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use qtasks_host::broker::{BrokerError, BrokerErrorKind, Record, TaskStatus};
use qtasks_host::queue_tasks::Waited;
use qtasks_host::{QueueTasks, Task};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{seconds, show};
use crate::cli::client::with_new_queue;
use crate::cli::exit_code::{ExitStatus, UsageError};
use crate::cli::input::Input;
use crate::cli::output::{print, print_json_lines, tell};
use crate::cli::settings_flags::{ClientFlags, number_of_seconds, whole};

/// Tasks of a file are added in steps of this many, which is what every broker takes at once.
const STEP: usize = 500;
/// And a step ends with the task that makes its arguments this long, in bytes: all of it is in memory, and one answer is waited for.
const ROOM: usize = 8 << 20;

/// Add a task, or all tasks of a file, and print their uuids.
///
///     qtasks-host task add resize --args '["a.png"]' --kwargs '{"width": 800}'
///     qtasks-host task add --from tasks.jsonl
///
/// A task that was added is safe when its uuid is printed. Where the broker goes away before it
/// answers, the command says on stderr which tasks may have been added all the same; where their
/// uuids cannot be printed, which were added.
///
/// A line of a file that is no task, or whose uuid is there already, is told on stderr with its
/// number and the reason, and the others are added; the command exits with 3 then.
///
/// With --wait the command says the uuid on stderr, waits until the task has ended, also while the
/// broker is away, prints what became of it, and exits with 1 when it ended in `error`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AddArguments {
    /// The task's name.
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    name: Option<String>,
    /// Positional arguments, a JSON list.
    #[arg(long, value_name = "JSON", conflicts_with = "from")]
    args: Option<String>,
    /// Named arguments, a JSON object.
    #[arg(long, value_name = "JSON", conflicts_with = "from")]
    kwargs: Option<String>,
    /// Its id, a uuid of version 4 [default: a new one].
    #[arg(long, conflicts_with = "from", value_parser = super::task_uuid)]
    uuid: Option<Uuid>,
    /// Higher runs first [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "from", value_parser = whole(i64::MIN..=i64::MAX))]
    priority: Option<i64>,
    /// Longest time for one attempt [default: the task's own].
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, conflicts_with = "from", value_parser = number_of_seconds)]
    max_time: Option<f64>,
    /// Runs in all [default: the task's own].
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "from", value_parser = whole(1..=u32::MAX))]
    attempts: Option<u32>,
    /// Run it no earlier than after this time [default: 0].
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    delay: Option<Duration>,
    /// Tasks as JSON Lines, as `run` takes them; - is standard input.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Wait until the task has ended.
    #[arg(long, conflicts_with = "from")]
    wait: bool,
    /// Wait at most so long [default: for ever].
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Print the records as JSON Lines instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

pub(super) fn run(arguments: &AddArguments) -> anyhow::Result<ExitStatus> {
    match &arguments.from {
        Some(from) => add_all(arguments, Input::open(from)?),
        None => add_one(arguments, task(arguments)?),
    }
}

/// The task that the flags describe, checked as a line of a file would be.
fn task(arguments: &AddArguments) -> Result<Task, UsageError> {
    let json = |flag: &str, text: &Option<String>| {
        text.as_ref()
            .map(|text| {
                RawValue::from_string(text.clone())
                    .map_err(|error| UsageError(format!("{flag} is {text:?}, which is no JSON: {error}; quote it for the shell")))
            })
            .transpose()
    };
    let line = Line {
        task: arguments.name.as_deref().unwrap_or_default(),
        args: json("--args", &arguments.args)?,
        kwargs: json("--kwargs", &arguments.kwargs)?,
        uuid: arguments.uuid,
        priority: arguments.priority.unwrap_or(0),
        max_time: arguments.max_time,
        attempts: arguments.attempts,
    };
    // As text, not as a value, which would round big numbers.
    let line = serde_json::to_string(&line).map_err(|error| UsageError(error.to_string()))?;
    Task::from_json(&line).map_err(|error| UsageError(error.to_string()))
}

/// A line of a file of tasks.
#[derive(Serialize)]
struct Line<'a> {
    task: &'a str,
    args: Option<Box<RawValue>>,
    kwargs: Option<Box<RawValue>>,
    uuid: Option<Uuid>,
    priority: i64,
    max_time: Option<f64>,
    attempts: Option<u32>,
}

fn record(task: Task, delay: Option<Duration>) -> Record {
    Record::new(task).after(delay.unwrap_or_default())
}

fn add_one(arguments: &AddArguments, task: Task) -> anyhow::Result<ExitStatus> {
    with_new_queue(&arguments.client, async |queue| {
        let uuid = task.uuid;
        let added = queue.add_task(record(task, arguments.delay)).await.inspect_err(|error| tell_if_open(&[uuid], error))?;
        let tell_uuid = || tell(format_args!("qtasks-host: the task was added: {}\n", added.task.uuid));
        if !arguments.wait {
            told(std::slice::from_ref(&added), arguments.json).inspect_err(|_| tell_uuid())?;
            return Ok(ExitStatus::Success);
        }
        // Whatever happens to this command, the task can be asked for.
        tell_uuid();
        let timeout = arguments.timeout.unwrap_or(Duration::MAX);
        match queue.wait(added.task.uuid, timeout).await? {
            Waited::Ended(record) => {
                show::record(&record, arguments.json)?;
                Ok(if record.status == TaskStatus::Error { ExitStatus::TasksFailed } else { ExitStatus::Success })
            }
            Waited::NotYet(record) => {
                show::record(&record, arguments.json)?;
                tell("qtasks-host: the task was added and has not ended in time; is a worker there? (qtasks-host ping)\n");
                Ok(ExitStatus::NotInTime)
            }
            Waited::Unknown => super::unknown(added.task.uuid),
        }
    })
}

fn add_all(arguments: &AddArguments, input: Input) -> anyhow::Result<ExitStatus> {
    with_new_queue(&arguments.client, async |queue| {
        let (mut input, mut refused) = (input, 0);
        loop {
            let mut step = Step::default();
            while !step.is_full()
                && let Some(line) = input.next_task()?
            {
                match line {
                    Ok(task) => step.push(record(task, arguments.delay), input.number()),
                    Err(reason) => {
                        refused += 1;
                        tracing::error!("{reason}");
                    }
                }
            }
            if step.records.is_empty() {
                break;
            }
            // So that a person knows where to go on.
            let told = |added: &[Record], input: &Input, last: u64| {
                told(added, arguments.json).inspect_err(|_| {
                    let count = added.len();
                    let added = input
                        .at(last, format_args!("all tasks up to this line were added, the last {count} with no uuid printed"));
                    tell(format_args!("qtasks-host: {added}; to add the rest, go on from line {}\n", last + 1));
                })
            };
            match add_together(&queue, &step.records).await {
                Ok(added) => told(&added, &input, input.number())?,
                // One by one, so that what is there already is refused alone: the same file can be added once more to its end.
                Err(error) if is_known(&error) => {
                    for (record, number) in step.records.into_iter().zip(step.numbers) {
                        match add_together(&queue, &[record]).await {
                            Ok(added) => told(&added, &input, number)?,
                            Err(error) if is_known(&error) => {
                                refused += 1;
                                tracing::error!("{}", input.at(number, error.kind));
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(if refused > 0 { ExitStatus::BadInput } else { ExitStatus::Success })
    })
}

/// Adds tasks, all or none.
async fn add_together(queue: &QueueTasks, records: &[Record]) -> Result<Vec<Record>, BrokerError> {
    let uuids: Vec<Uuid> = records.iter().map(|record| record.task.uuid).collect();
    queue.add_tasks(records.iter().cloned()).await.inspect_err(|error| tell_if_open(&uuids, error))
}

fn is_known(error: &BrokerError) -> bool {
    matches!(error.kind, BrokerErrorKind::Known(_))
}

/// Tasks that are added together.
#[derive(Default)]
struct Step {
    records: Vec<Record>,
    /// Of their lines.
    numbers: Vec<u64>,
    bytes: usize,
}

impl Step {
    fn push(&mut self, record: Record, number: u64) {
        self.bytes += record.task.args.get().len() + record.task.kwargs.get().len();
        self.records.push(record);
        self.numbers.push(number);
    }

    fn is_full(&self) -> bool {
        self.records.len() >= STEP || self.bytes >= ROOM
    }
}

/// Says which tasks may have been added where no answer tells, so that nobody adds them twice unknowingly.
fn tell_if_open(uuids: &[Uuid], error: &BrokerError) {
    const SHOWN: usize = 5;
    if !error.leaves_open() {
        return;
    }
    let shown: Vec<String> = uuids.iter().take(SHOWN).map(Uuid::to_string).collect();
    let more = uuids.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more, all of them or none") } else { String::new() };
    tell(format_args!(
        "qtasks-host: may have been added all the same, look with `task get` before you add again: {}{more}\n",
        shown.join(", ")
    ));
}

fn told(added: &[Record], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json_lines(added);
    }
    print(&added.iter().map(|record| format!("{}\n", record.task.uuid)).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_bounded_in_tasks_and_in_bytes_and_holds_at_least_one() {
        let task = |bytes: usize| {
            Task::new("any").and_then(|task| task.with_arguments(["x".repeat(bytes)], serde_json::json!({}))).expect("a task")
        };
        let size = |bytes: usize| {
            let mut step = Step::default();
            while !step.is_full() {
                step.push(record(task(bytes), None), 1);
            }
            step.records.len()
        };
        assert_eq!(size(1), STEP);
        assert_eq!(size(ROOM / 4), 4);
        assert_eq!(size(ROOM * 2), 1);
    }
}
