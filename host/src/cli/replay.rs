//! `qtasks-host decisions replay`: what other plugins, or other settings, would make of the errors on record.

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use qtasks_host::plugin::LoadState;
use qtasks_host::replay::{Decided, Replayed};
use qtasks_host::trigger::OutcomeKind;
use qtasks_host::{Running, Settings, shown};
use uuid::Uuid;

use super::client::{check_shared, check_there};
use super::exit_code::{ExitStatus, UsageError};
use super::output::{print, print_json_lines, table, tell};
use super::settings_flags::{SettingsFlags, whole};
use super::task::{ago, unknown};
use super::{log, runtime};

/// Ask plugins again about the errors on record, and show where they would decide otherwise.
///
/// Give it the settings of the worker, and with --plugins the directory that the worker is to have: a new version, another plugin, or the
/// same with other settings. No task is run and nothing on record changes. The plugins are really called, with a state directory of
/// their own that is removed in the end: what one of them writes elsewhere or sends, it writes and sends.
#[derive(Debug, Args)]
pub(crate) struct ReplayArguments {
    /// Only about this task.
    #[arg(long, value_name = "UUID", value_parser = super::task::task_uuid)]
    task: Option<Uuid>,
    /// About the tasks of so many decisions, and so many that ended with an error, the latest first.
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true, value_parser = whole(0..=u32::MAX))]
    limit: u32,
    /// Show what would be decided as before, too.
    #[arg(long)]
    all: bool,
    /// Print one JSON object a line instead: the error with its payload, both answers, and each plugin that was asked are in it.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsFlags,
}

pub(super) fn run(arguments: &ReplayArguments) -> anyhow::Result<ExitStatus> {
    let mut settings = arguments.settings.settings()?;
    log::install(&settings.log, &ProgressBar::hidden())?;
    check_shared(&settings)?;
    check_there(&settings)?;
    if settings.plugin_dir.is_none() {
        return Err(UsageError("there are no plugins to ask: name their directory with --plugins".to_owned()).into());
    }
    let state = apart(&mut settings)?;
    let status = runtime::look_at(settings, async |running| replay(running, arguments).await);
    if let Err(error) = state.close() {
        tell(format_args!("qtasks-host: the state directory of the replay is left behind: {error}\n"));
    }
    status
}

/// Nothing that a replay leaves behind is to meet a worker's next start: not what a plugin keeps in its data directory, and no
/// quarantine.
fn apart(settings: &mut Settings) -> anyhow::Result<tempfile::TempDir> {
    let state = tempfile::Builder::new().prefix("qtasks-host-replay-").tempdir();
    let state = state.context("cannot make a state directory for the replay")?;
    settings.broker = Some(settings.broker().url);
    settings.state_dir = state.path().to_owned();
    Ok(state)
}

async fn replay(running: &Running, arguments: &ReplayArguments) -> anyhow::Result<ExitStatus> {
    let store = running.open_broker().await?;
    let replay = running.replay(&store);
    let tasks = match arguments.task {
        Some(uuid) => vec![uuid],
        None => replay.tasks_with_errors(arguments.limit as usize).await?,
    };
    let (mut asked, mut otherwise, mut gone) = (0, 0, 0);
    let mut rows = Vec::new();
    for uuid in tasks {
        let errors = match replay.task(uuid).await? {
            Some(errors) => errors,
            None if arguments.task.is_some() => return unknown(uuid),
            None => {
                gone += 1;
                continue;
            }
        };
        asked += errors.len();
        otherwise += errors.iter().filter(|error| !error.same).count();
        let shown: Vec<Replayed> = errors.into_iter().filter(|error| arguments.all || !error.same).collect();
        if arguments.json {
            print_json_lines(&shown)?;
        } else {
            rows.extend(shown.iter().map(row));
        }
    }
    if !rows.is_empty() {
        rows.insert(0, ["uuid", "task", "attempt", "when", "recorded", "now", "error"].map(str::to_owned));
        print(&table(&rows))?;
    }
    tell(format_args!("{}: {} as before, {otherwise} otherwise{}\n", of(asked, "error"), asked - otherwise, told_of(gone)));
    let refused = running.plugin_reports().iter().any(|report| report.state == LoadState::Refused);
    Ok(match otherwise {
        _ if refused => ExitStatus::PluginRefused,
        0 => ExitStatus::Success,
        _ => ExitStatus::DecidedOtherwise,
    })
}

fn told_of(gone: usize) -> String {
    match gone {
        0 => String::new(),
        1 => "; 1 task with decisions has no record any more".to_owned(),
        _ => format!("; {gone} tasks with decisions have no record any more"),
    }
}

fn of(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn row(error: &Replayed) -> [String; 7] {
    [
        error.uuid.to_string(),
        shown(&*error.task).to_string(),
        error.attempt.to_string(),
        ago(error.at),
        answer(error.recorded.as_ref()).unwrap_or_else(|| "nobody".to_owned()),
        answer(error.now.as_ref()).unwrap_or_else(|| nobody(error)),
        shortened(&error.error.to_string(), 80),
    ]
}

fn answer(decided: Option<&Decided>) -> Option<String> {
    let Decided { by, value } = decided?;
    let value = value.as_ref().map(|value| format!(" {}", shortened(value.get(), 40))).unwrap_or_default();
    Some(format!("{} {}: {}{value}", by.by.name, by.by.version, by.outcome.name()))
}

/// Why nobody answers.
fn nobody(error: &Replayed) -> String {
    if error.decisions.is_empty() {
        return "nobody is asked".to_owned();
    }
    let failed = error.decisions.iter().filter(|decision| decision.outcome == OutcomeKind::Failed);
    let failed: Vec<&str> = failed.map(|decision| &*decision.by.name).collect();
    if failed.is_empty() { "nobody".to_owned() } else { format!("nobody ({} failed)", failed.join(", ")) }
}

fn shortened(text: &str, most: usize) -> String {
    let text = shown(text).to_string();
    if text.chars().count() <= most { text } else { text.chars().take(most).chain(['…']).collect() }
}
