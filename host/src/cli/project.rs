//! `qtasks-host ping` and `qtasks-host flush-all`: the project as a whole.

use std::io::{self, BufRead, IsTerminal};

use anyhow::Context;
use clap::Args;

use super::client::with_queue;
use super::exit_code::{ExitStatus, UsageError};
use super::output::{print, print_json, tell};
use super::settings_flags::ClientFlags;

#[derive(Debug, Args)]
pub(crate) struct PingArguments {
    /// Print the answer as JSON instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

#[derive(Debug, Args)]
pub(crate) struct FlushAllArguments {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print how many records were removed as JSON instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientFlags,
}

pub(super) fn ping(arguments: &PingArguments) -> anyhow::Result<ExitStatus> {
    with_queue(&arguments.client, async |queue| {
        let running = queue.ping().await?;
        let (project, place) = (queue.store().project(), queue.store().broker().url.as_deref().unwrap_or_default());
        if arguments.json {
            print_json(&serde_json::json!({"project": project, "broker": place, "running": running}))?;
        } else if running {
            print(&format!("a worker of {project} is at {place}\n"))?;
        } else {
            print(&format!("no worker of {project} is at {place}\n"))?;
        }
        Ok(if running { ExitStatus::Success } else { ExitStatus::NotInTime })
    })
}

pub(super) fn flush_all(arguments: &FlushAllArguments) -> anyhow::Result<ExitStatus> {
    with_queue(&arguments.client, async |queue| {
        let (project, place) = (queue.store().project(), queue.store().broker().url.as_deref().unwrap_or_default());
        if !arguments.yes && !confirmed(project, place)? {
            print("nothing was removed\n")?;
            return Ok(ExitStatus::Success);
        }
        let removed = queue.flush_all().await?;
        if arguments.json {
            print_json(&serde_json::json!({"removed": removed}))?;
        } else {
            print(&format!("tasks of {project} removed from {place}: {removed}\n"))?;
        }
        Ok(ExitStatus::Success)
    })
}

/// Asks for the project's name, which nobody types by mistake.
fn confirmed(project: &str, place: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        let said = "flush-all removes every task, result and decision; without a terminal to ask on, say --yes";
        return Err(UsageError(said.to_owned()).into());
    }
    tell(format_args!(
        "This removes every task, result and decision of {project} from {place}.\nType the project's name to go on: "
    ));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim() == project)
}
