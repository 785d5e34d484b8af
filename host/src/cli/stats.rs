//! `qtasks-host stats inspect`: what an application is, which tasks it knows, how many wait.

use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use qtasks_host::stats::{AppStats, PluginStats, TaskStats};
use qtasks_host::{Running, shown};

use super::client::check_there;
use super::exit_code::ExitStatus;
use super::output::{print, print_json, table};
use super::settings_flags::SettingsFlags;
use super::{log, runtime};

#[derive(Debug, Subcommand)]
pub(crate) enum StatsCommand {
    Inspect(Box<InspectArguments>),
}

/// Show what a worker with these settings would be: plugins are loaded for it, no task is run.
#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The application, the tasks that it knows, or how many tasks the broker has.
    what: What,
    /// `json`, as QTasks has it: the same as --json.
    #[arg(value_name = "json")]
    format: Option<Format>,
    /// Print JSON instead.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsFlags,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    App,
    Tasks,
    Counts,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Json,
}

pub(super) fn run(command: StatsCommand) -> anyhow::Result<ExitStatus> {
    let StatsCommand::Inspect(arguments) = command;
    let settings = arguments.settings.settings()?;
    log::install(&settings.log, &ProgressBar::hidden())?;
    if matches!(arguments.what, What::Counts) {
        check_there(&settings)?;
    }
    let json = arguments.json || arguments.format.is_some();
    runtime::look_at(settings, async |running| look(running, arguments.what, json).await.map(|()| ExitStatus::Success))
}

async fn look(running: &Running, what: What, json: bool) -> anyhow::Result<()> {
    let store = running.open_broker().await?;
    let stats = running.stats(store);
    match what {
        What::App => {
            let app = stats.app().await;
            if json { print_json(&app)? } else { print(&of_app(&app))? }
        }
        What::Tasks => {
            let tasks = stats.tasks().await;
            if json { print_json(&tasks)? } else { print(&of_tasks(&tasks))? }
        }
        What::Counts => {
            let counts = stats.counts().await?;
            if json {
                print_json(&counts)?;
            } else {
                let rows = [
                    ("new", counts.new),
                    ("  of them delayed", counts.delayed),
                    ("process", counts.process),
                    ("success", counts.success),
                    ("error", counts.error),
                    ("  of them set aside", counts.dead_letter),
                    ("cancel", counts.cancel),
                    ("retry", counts.retry),
                ];
                print(&table(&rows.map(|(name, count)| [name.to_owned(), count.to_string()])))?;
            }
        }
    }
    Ok(())
}

fn of_app(app: &AppStats) -> String {
    let settings = &app.settings;
    let limit = |seconds: Option<f64>| seconds.map_or("none".to_owned(), |seconds| format!("{seconds} s"));
    let mut rows = vec![
        ["project".to_owned(), app.project.to_string()],
        ["version".to_owned(), app.version.to_owned()],
        ["broker".to_owned(), app.broker.url.as_deref().unwrap_or_default().to_owned()],
        ["concurrency".to_owned(), settings.concurrency.to_string()],
        ["prefetch".to_owned(), settings.prefetch.to_string()],
        ["max_time".to_owned(), limit(settings.max_time)],
        ["max_attempts".to_owned(), settings.max_attempts.to_string()],
    ];
    rows.extend(app.plugins.iter().map(of_plugin));
    rows.extend(app.tasks.iter().map(|task| [format!("task {}", shown(&task.name)), format!("by {}", task.provided_by)]));
    table(&rows)
}

fn of_plugin(plugin: &PluginStats) -> [String; 2] {
    let name = match (&plugin.identity, &plugin.path) {
        (Some(identity), _) => format!("plugin {} {}", identity.name, identity.version),
        (None, Some(path)) => format!("file {}", shown(path)),
        (None, None) => "plugin".to_owned(),
    };
    let reason = plugin.reason.as_ref().map(|reason| format!(": {}", shown(reason))).unwrap_or_default();
    [name, format!("{}{reason} {}", plugin.state.name(), plugin.handlers.join(", ")).trim_end().to_owned()]
}

fn of_tasks(tasks: &[TaskStats]) -> String {
    if tasks.is_empty() {
        return "no tasks: name a directory with --plugins, or declare commands under [tasks]\n".to_owned();
    }
    let head = ["task", "provided by", "max_time", "attempts"].map(str::to_owned);
    let rows = tasks.iter().map(|task| {
        let limits = &task.limits;
        [
            shown(&task.name).to_string(),
            task.provided_by.clone(),
            limits.max_time.map_or("-".to_owned(), |time| format!("{} s", time.as_secs_f64())),
            limits.attempts.map_or("-".to_owned(), |attempts| attempts.to_string()),
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
