//! `qtasks-host decisions`: what plugins said about errors.

use clap::{Args, Subcommand};
use qtasks_host::broker::DecisionRecord;
use qtasks_host::shown;
use uuid::Uuid;

use super::client::with_queue;
use super::exit_code::ExitStatus;
use super::output::{print, print_json_lines, table};
use super::replay::ReplayArguments;
use super::settings_flags::{ClientFlags, whole};
use super::task::ago;

#[derive(Debug, Subcommand)]
pub(crate) enum DecisionsCommand {
    /// List what plugins decided about errors, the latest first.
    List(Box<ListArguments>),
    Replay(Box<ReplayArguments>),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only about this task.
    #[arg(long, value_name = "UUID", value_parser = super::task::task_uuid)]
    task: Option<Uuid>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true, value_parser = whole(0..=u32::MAX))]
    limit: u32,
    /// Print one JSON object a line instead: the plugin's digest and the original error with its payload are in it.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

pub(super) fn run(command: DecisionsCommand) -> anyhow::Result<ExitStatus> {
    let arguments = match command {
        DecisionsCommand::List(arguments) => arguments,
        DecisionsCommand::Replay(arguments) => return super::replay::run(&arguments),
    };
    with_queue(&arguments.client, async |queue| {
        let decisions = queue.store().backend().decisions(arguments.task, arguments.limit as usize).await?;
        if arguments.json {
            print_json_lines(&decisions)?;
        } else if decisions.is_empty() {
            print("no decisions\n")?;
        } else {
            print(&lines(&decisions))?;
        }
        Ok(ExitStatus::Success)
    })
}

fn lines(decisions: &[DecisionRecord]) -> String {
    let head = ["uuid", "task", "attempt", "when", "plugin", "outcome", "took", "error"].map(str::to_owned);
    let rows = decisions.iter().map(|record| {
        let decision = &record.decision;
        let error: String = shown(&record.error.to_string()).to_string().chars().take(80).collect();
        [
            record.uuid.to_string(),
            shown(&record.task_name).to_string(),
            record.attempt.to_string(),
            ago(record.at),
            format!("{} {}", decision.by.name, decision.by.version),
            decision.outcome.name().to_owned(),
            format!("{:.1?}", decision.duration),
            error,
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
