//! `qtasks-host task`: add tasks, look at them, cancel them, run them again.

mod add;
mod show;

pub(crate) use show::ago;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use qtasks_host::broker::{Cancelled, Filter, Requeued, TaskStatus};
use qtasks_host::queue_tasks::{QueueTasks, Waited};
use uuid::Uuid;

use super::client::{with_queue, with_queue_within};
use super::exit_code::ExitStatus;
use super::output::{print, print_json, print_json_lines, tell};
use super::settings_flags::{ClientFlags, number_of_seconds, whole};

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    Add(Box<add::AddArguments>),
    /// Show what is known of a task: its result, its error, every attempt, what plugins decided.
    Get(Box<GetArguments>),
    /// List tasks, the latest first.
    List(Box<ListArguments>),
    /// Cancel a task that waits, or ask the worker that runs it to.
    Cancel(Box<CancelArguments>),
    /// Run an ended task again, from its first attempt.
    Retry(Box<RetryArguments>),
    /// What was set aside, for a person to look at.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
}

/// Reads the id of a task.
pub(super) fn task_uuid(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| "expected the id of a task, a uuid as `task add` prints it".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// The task.
    #[arg(value_parser = task_uuid)]
    uuid: Uuid,
    /// Wait until it has ended, also while the broker is away.
    #[arg(long)]
    wait: bool,
    /// Wait at most so long [default: for ever].
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Print the record as JSON instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only tasks of this status.
    #[arg(long)]
    status: Option<StatusArgument>,
    /// Only tasks of this name.
    #[arg(long = "task", value_name = "NAME")]
    task_name: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true, value_parser = whole(0..=u32::MAX))]
    limit: u32,
    /// Print one JSON object a line instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// The task.
    #[arg(value_parser = task_uuid)]
    uuid: Uuid,
    /// Why; kept with the task.
    #[arg(long, value_name = "TEXT", default_value = "cancelled by the operator")]
    reason: String,
    /// Print what became of it as JSON instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

#[derive(Debug, Args)]
pub(crate) struct RetryArguments {
    /// The task.
    #[arg(value_parser = task_uuid)]
    uuid: Uuid,
    /// Print what became of it as JSON instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// List what was set aside, the latest first.
    List(Box<DeadLetterListArguments>),
    /// Run tasks that were set aside again, from their first attempt.
    Requeue(Box<RequeueArguments>),
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetterListArguments {
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true, value_parser = whole(0..=u32::MAX))]
    limit: u32,
    /// Print one JSON object a line instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

#[derive(Debug, Args)]
pub(crate) struct RequeueArguments {
    /// The tasks.
    #[arg(required_unless_present = "all", value_parser = task_uuid)]
    uuids: Vec<Uuid>,
    /// All that were set aside.
    #[arg(long, conflicts_with = "uuids")]
    all: bool,
    /// Print one JSON object a line instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

/// A status on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum StatusArgument {
    New,
    Process,
    Success,
    Error,
    Retry,
    Cancel,
}

impl From<StatusArgument> for TaskStatus {
    fn from(argument: StatusArgument) -> Self {
        match argument {
            StatusArgument::New => Self::New,
            StatusArgument::Process => Self::Process,
            StatusArgument::Success => Self::Success,
            StatusArgument::Error => Self::Error,
            StatusArgument::Retry => Self::Retry,
            StatusArgument::Cancel => Self::Cancel,
        }
    }
}

/// A number of seconds on the command line.
fn seconds(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 10.0 * 365.0 * 24.0 * 3600.0;
    let seconds = number_of_seconds(text)?;
    if (0.0..=LONGEST).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err("expected a number of seconds, 0 or more, ten years at most".to_owned())
}

pub(super) fn run(command: TaskCommand) -> anyhow::Result<ExitStatus> {
    match command {
        TaskCommand::Add(arguments) => add::run(&arguments),
        TaskCommand::Get(arguments) => get(&arguments),
        TaskCommand::List(arguments) => {
            let ListArguments { status, task_name, limit, json, client } = *arguments;
            let filter = Filter { status: status.map(TaskStatus::from), task_name, ..Filter::latest(limit as usize) };
            list(&client, filter, json)
        }
        TaskCommand::Cancel(arguments) => cancel(&arguments),
        TaskCommand::Retry(arguments) => {
            let RetryArguments { uuid, json, client } = *arguments;
            with_queue(&client, async |queue| requeue(&queue, &[uuid], Which::Any, json).await)
        }
        TaskCommand::DeadLetter(DeadLetterCommand::List(arguments)) => {
            let DeadLetterListArguments { limit, json, client } = *arguments;
            list(&client, Filter { dead_letter: true, ..Filter::latest(limit as usize) }, json)
        }
        TaskCommand::DeadLetter(DeadLetterCommand::Requeue(arguments)) => {
            let RequeueArguments { mut uuids, all, json, client } = *arguments;
            with_queue(&client, async |queue| {
                if all {
                    let filter = Filter { dead_letter: true, ..Filter::latest(usize::MAX) };
                    let dead = queue.store().backend().list(filter).await?;
                    uuids = dead.iter().map(|record| record.task.uuid).collect();
                    if uuids.is_empty() && !json {
                        print("no tasks\n")?;
                    }
                }
                requeue(&queue, &uuids, Which::SetAside, json).await
            })
        }
    }
}

fn get(arguments: &GetArguments) -> anyhow::Result<ExitStatus> {
    let timeout = arguments.timeout.unwrap_or(Duration::MAX);
    let (begun, patience) = (Instant::now(), if arguments.wait { timeout } else { Duration::ZERO });
    with_queue_within(&arguments.client, patience, async |queue| {
        if arguments.wait {
            return wait(&queue, arguments.uuid, timeout.saturating_sub(begun.elapsed()), arguments.json).await;
        }
        let Some(record) = queue.get(arguments.uuid).await? else { return unknown(arguments.uuid) };
        show::record(&record, arguments.json)?;
        Ok(ExitStatus::Success)
    })
}

/// Waits for a task, and prints it.
async fn wait(queue: &QueueTasks, uuid: Uuid, timeout: Duration, json: bool) -> anyhow::Result<ExitStatus> {
    match queue.wait(uuid, timeout).await? {
        Waited::Ended(record) => {
            show::record(&record, json)?;
            Ok(if record.status == TaskStatus::Error { ExitStatus::TasksFailed } else { ExitStatus::Success })
        }
        Waited::NotYet(record) => {
            show::record(&record, json)?;
            tell("qtasks-host: the task has not ended in time\n");
            Ok(ExitStatus::NotInTime)
        }
        Waited::Unknown => unknown(uuid),
    }
}

pub(super) fn unknown(uuid: Uuid) -> anyhow::Result<ExitStatus> {
    tell(format_args!(
        "qtasks-host: no task {uuid} is known here: it was never added, or its result was removed; check --broker and --name\n"
    ));
    Ok(ExitStatus::Unknown)
}

fn list(client: &ClientFlags, filter: Filter, json: bool) -> anyhow::Result<ExitStatus> {
    with_queue(client, async |queue| {
        let records = queue.store().get_all(filter).await?;
        if json {
            print_json_lines(&records)?
        } else {
            print(&show::list(&records))?
        }
        Ok(ExitStatus::Success)
    })
}

fn cancel(arguments: &CancelArguments) -> anyhow::Result<ExitStatus> {
    let CancelArguments { uuid, reason, json, client } = arguments;
    with_queue(client, async |queue| {
        let cancelled = queue.cancel(*uuid, reason.as_str()).await?;
        if *json {
            print_json(&serde_json::json!({"uuid": uuid, "cancel": cancelled}))?;
        } else {
            print(match cancelled {
                Cancelled::Done => "cancelled\n",
                Cancelled::Asked => "it runs; its worker was asked to cancel it\n",
                Cancelled::Ended => "it has ended already\n",
                Cancelled::Foreign => "a Python worker has it, which cannot be told\n",
                Cancelled::Unknown => "",
            })?;
        }
        match cancelled {
            Cancelled::Done | Cancelled::Asked => Ok(ExitStatus::Success),
            Cancelled::Ended | Cancelled::Foreign => Ok(ExitStatus::NotInTime),
            Cancelled::Unknown => unknown(*uuid),
        }
    })
}

/// Which tasks are to run again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Any,
    SetAside,
}

async fn requeue(queue: &QueueTasks, uuids: &[Uuid], which: Which, json: bool) -> anyhow::Result<ExitStatus> {
    let mut status = ExitStatus::Success;
    for uuid in uuids {
        if which == Which::SetAside
            && let Some(record) = queue.store().backend().get(*uuid).await?
            && record.dead_letter.is_none()
        {
            if json {
                print_json_lines(&[serde_json::json!({"uuid": uuid, "requeue": "not_set_aside"})])?;
            } else {
                print(&format!("{uuid} was not set aside; `task retry` runs any ended task again\n"))?;
            }
            status = ExitStatus::NotInTime;
            continue;
        }
        let requeued = queue.retry(*uuid).await?;
        if json {
            print_json_lines(&[serde_json::json!({"uuid": uuid, "requeue": requeued})])?;
        } else {
            print(&match requeued {
                Requeued::Done => format!("{uuid} waits again\n"),
                Requeued::Underway => format!("{uuid} waits or runs already\n"),
                Requeued::Unreadable => {
                    format!(
                        "{uuid} cannot run again, since what was found was no task: see it with `task get`, and add it anew\n"
                    )
                }
                Requeued::Unknown => String::new(),
            })?;
        }
        status = match requeued {
            Requeued::Done => status,
            Requeued::Underway | Requeued::Unreadable => ExitStatus::NotInTime,
            Requeued::Unknown => unknown(*uuid)?,
        };
    }
    Ok(status)
}
