//! `qtasks-host worker`: runs tasks from a broker until it is told to stop.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use qtasks_host::broker::BrokerUrl;
use qtasks_host::plugin::{fatal, start_watch};
use qtasks_host::signals::Signals;
use qtasks_host::starter::Ran;
use qtasks_host::worker::Worked;
use qtasks_host::{App, shown};

use super::exit_code::ExitStatus;
use super::settings_flags::SettingsFlags;
use super::{log, runtime};

/// Run tasks from the broker until SIGTERM or Ctrl-C.
///
/// Tasks are what the plugins in the directory provide, and commands that the settings declare.
/// Several workers, on one machine or (over Redis) on several, share the tasks of a project.
///
/// The broker is a file by default, tasks.db in the state directory. Another one:
///
///     qtasks-host worker --broker sqlite:/var/lib/qtasks/tasks.db
///     qtasks-host worker --broker redis://localhost:6379/0
///
/// Over Redis, QTasks' Python producers and workers are served as they are.
///
/// On the first signal nothing more is begun, and what runs has `drain_deadline` to end; the rest is
/// given back to the broker. A second signal stops at once. A worker that is killed loses nothing
/// either: its tasks are taken over when its `lease` is over, and run again; one that has taken
/// `max_losses` workers down is set aside (`task dead-letter list`).
///
/// On SIGHUP, and with --watch after each change in the plugin directory, the worker looks at it again:
/// what lies there is what runs from then on. A new version of a plugin goes through the same checks
/// as at the start, and comes up beside the old one, which is then drained and stopped; one that is
/// refused leaves the old one serving. Settings stay as they were at the start.
///
/// On SIGUSR1 it says in its log how each plugin stands, and how many tasks there are.
///
/// Exits with 0 when all that ran has ended or was given back, with 130 after a second signal, with
/// 70 when the broker cannot be used at the start, or its file was removed or replaced, or when a new
/// version of a plugin hangs while it is loaded here, which is in quarantine then. A broker that goes
/// away later is waited for; a worker that is stopped meanwhile tries on for at most 10 seconds after
/// `drain_deadline`, and exits with 70 when something could be neither recorded nor given back: it
/// comes back when the lease is over, and runs again.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct WorkerArguments {
    #[command(flatten)]
    settings: SettingsFlags,
    /// Replace plugins when something in the plugin directory changes (setting `watch`).
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(arguments: &WorkerArguments) -> anyhow::Result<ExitStatus> {
    let mut settings = arguments.settings.settings()?;
    settings.watch |= arguments.watch;
    log::install(&settings.log, &ProgressBar::hidden())?;
    runtime::name_culprits(&settings.state_dir);
    // Longer than the worker itself takes then: it can be that it does not come to its end.
    let grace = settings.drain_deadline.saturating_add(Duration::from_secs(10));
    if let Err(error) = start_watch::end_when_linker_is_held(grace, ExitStatus::Failed as u8) {
        tracing::warn!("a library that hangs while it is loaded may have to be ended by hand: {error}");
    }
    let broker = settings.broker();
    let runtime = runtime::start()?;
    let ran = runtime.block_on(async {
        let mut signals = Signals::catch();
        let Some(running) = App::new(settings).start_until_told(&mut signals).await else { return Ok(Ran::AtOnce) };
        let running = running?;
        // Names and not the tasks themselves: whoever holds those keeps a plugin from being drained.
        let known: Vec<String> = running.executor().tasks().iter().map(|task| task.name().to_owned()).collect();
        if broker.url == BrokerUrl::Memory {
            tracing::warn!(
                "tasks wait in this worker's own memory, where nobody can add one: name a file or a server with --broker"
            );
        }
        if known.is_empty() {
            tracing::warn!("this worker knows no task: name a directory with --plugins, or declare commands under [tasks]");
        }
        tracing::info!("project {} at {}; tasks: {}", broker.name, broker.url, shown(&known.join(", ")));
        anyhow::Ok(running.starter().await?.with_signals(signals).run().await?)
    });
    if start_watch::linker_is_held() {
        // Not even a runtime can be shut down: a thread of it may wait for the linker.
        std::mem::forget(runtime);
        return ran.map(|_| ExitStatus::Failed);
    }
    // A thread that is in a hung plugin or a blocking task must not keep the process alive.
    runtime.shutdown_timeout(Duration::ZERO);
    match ran? {
        Ran::Drained(worked) => {
            if worked.given_back > 0 {
                tracing::warn!("tasks given back to the broker: {}", worked.given_back);
            }
            let Worked { not_recorded, not_given_back, .. } = worked;
            if not_recorded == 0 && not_given_back == 0 {
                return Ok(ExitStatus::Success);
            }
            tracing::error!(
                "tasks that ended and could not be recorded: {not_recorded}; that could not be given back: {not_given_back}; \
                 they come back when the lease is over, and run again"
            );
            Ok(ExitStatus::Failed)
        }
        Ran::LinkerHeld => Ok(ExitStatus::Failed),
        // At once: a library that is just being loaded, and hangs, would hold up a usual end.
        Ran::AtOnce => fatal::end_at_once(ExitStatus::Interrupted as u8),
    }
}
