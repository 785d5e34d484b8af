//! `qtasks-host run`: tasks in as JSON Lines, results out as JSON Lines.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use qtasks_host::broker::MemoryBackend;
use qtasks_host::signals::Signals;
use qtasks_host::{App, QueueTasks, Running, TaskReport};
use tokio::sync::{Notify, mpsc};

use super::exit_code::ExitStatus;
use super::input::{Input, Lines};
use super::output::{keep_results_apart, results, results_are_on_a_terminal, tell};
use super::settings_flags::SettingsFlags;
use super::summary::Summary;
use super::{log, runtime};

/// Tasks read ahead of the worker.
const READ_AHEAD: usize = 1024;

/// Run tasks from a file or from standard input, and print one result per line.
///
/// No broker is used: what was read and not finished is gone when the process is killed. What must
/// not be lost is for `task add --from FILE` and a `worker`.
///
/// Each input line is a task:
///
///     {"task": "add", "args": [1], "kwargs": {"b": 2}}
///
/// with optional "uuid" (version 4, of no task that still waits or runs), "priority" (higher
/// first), "max_time" (seconds) and "attempts" (runs in all). Blank lines are skipped. A line that
/// is no task is told on stderr with its number and the reason, and the others run.
///
/// Each output line is a result, in the order in which tasks end: uuid, task, status (success,
/// error, cancel), attempt, and returning, error or cancel_reason. Where a plugin decided, also
/// original_error, resolved_by and decisions. Of a task that ran more than once, history has the
/// attempts before: the error of each, and the plugins that were asked about it.
///
/// Tasks are what the plugins in the directory provide, and commands that the settings declare:
///
///     [tasks.count_words]
///     command = ["wc", "-w"]
///
/// A command gets {"args": […], "kwargs": {…}} on its standard input and prints its result as
/// JSON; a non-zero exit is a plugin error.
///
/// SIGTERM or Ctrl-C finishes what runs and begins nothing more; a second signal stops at once.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RunArguments {
    /// Tasks as JSON Lines; - is standard input.
    #[arg(default_value = "-", value_name = "FILE")]
    tasks: PathBuf,
    #[command(flatten)]
    settings: SettingsFlags,
    /// No progress bar, even on a terminal.
    #[arg(long)]
    no_progress: bool,
}

pub(super) fn run(arguments: &RunArguments) -> anyhow::Result<ExitStatus> {
    let settings = arguments.settings.settings()?;
    let bar = log::progress_bar(!arguments.no_progress);
    log::install(&settings.log, &bar)?;
    runtime::name_culprits(&settings.state_dir);
    keep_results_apart();
    let input = Input::open(&arguments.tasks)?;
    let runtime = runtime::start()?;
    let status = runtime.block_on(run_tasks(App::new(settings), input, &bar));
    // A thread that waits for standard input, or for a hung plugin, must not keep the process alive.
    runtime.shutdown_timeout(Duration::ZERO);
    status
}

async fn run_tasks(app: App, input: Input, bar: &ProgressBar) -> anyhow::Result<ExitStatus> {
    let mut signals = Signals::catch_stops();
    let Some(running) = app.start_until_told(&mut signals).await else { return Ok(ExitStatus::Interrupted) };
    let running = running?;
    if signals.has_told() {
        running.stop().await;
        return Ok(ExitStatus::Interrupted);
    }
    let ended = work_through(&running, signals, input, bar).await;
    if matches!(ended, Ok(None)) {
        return Ok(ExitStatus::Interrupted);
    }
    // Also where the input or the output broke: plugins may have something to finish.
    running.stop().await;
    ended.map(|status| status.unwrap_or(ExitStatus::Interrupted))
}

/// Runs what comes in, prints what comes out, and tells what it came to. `None`: a second signal stopped it at once.
async fn work_through(
    running: &Running,
    signals: Signals,
    input: Input,
    bar: &ProgressBar,
) -> anyhow::Result<Option<ExitStatus>> {
    let broker = Arc::new(MemoryBackend::new(READ_AHEAD, false));
    let store = running.store(Arc::<MemoryBackend>::clone(&broker));
    let (sender, receiver) = mpsc::channel(READ_AHEAD);

    let handle = tokio::runtime::Handle::current();
    let feeding = tokio::task::spawn_blocking({
        let (broker, queue) = (Arc::clone(&broker), QueueTasks::new(Arc::clone(&store)));
        move || {
            let fed = input.feed(&queue, &handle);
            broker.close();
            fed
        }
    });
    let interrupt = Arc::new(Interrupt::default());
    let listening = tokio::spawn(listen_for_signals(signals, Arc::clone(&broker), Arc::clone(&interrupt)));
    let worker = running.worker(store);
    let work = worker.run(Some(sender));
    let printing = async {
        // Nobody reads any more: an idle worker would wait for input that has no use.
        print(receiver, bar, || broker.drain()).await
    };
    let (printed, worked) = tokio::select! {
        ended = async { tokio::join!(printing, work) } => ended,
        // The worker is dropped with all that runs in it: commands are killed with their process groups.
        () = interrupt.at_once.notified() => return Ok(None),
    };
    let interrupted = interrupt.asked.load(Ordering::Acquire);
    listening.abort();

    worked?;
    let Printed { summary, broken } = printed;
    // A reader that nobody needs any more may still wait for standard input, which may never end.
    let lines = if interrupted || broken.is_some() { Lines::default() } else { feeding.await.context("the reader ended")? };
    bar.finish_and_clear();
    tell(&summary);
    if lines.refused > 0 {
        tell(format_args!("input lines refused: {}\n", lines.refused));
    }
    if broker.waiting() > 0 {
        tell(format_args!("tasks read and not begun: {}\n", broker.waiting()));
    }
    for plugin in running.executor().dispatcher().registry().plugins() {
        if let Some(reason) = plugin.tripped().await {
            tell(format_args!("plugin {} was {reason}\n", plugin.name()));
        }
    }
    if let Some(broken) = broken.or(lines.broken) {
        return Err(broken);
    }
    Ok(Some(match () {
        () if interrupted => ExitStatus::Interrupted,
        () if lines.refused > 0 => ExitStatus::BadInput,
        () if summary.errors() > 0 => ExitStatus::TasksFailed,
        () => ExitStatus::Success,
    }))
}

/// What a signal asked for.
#[derive(Debug, Default)]
struct Interrupt {
    /// Finish what runs.
    asked: AtomicBool,
    /// Stop at once.
    at_once: Notify,
}

async fn listen_for_signals(mut signals: Signals, broker: Arc<MemoryBackend>, interrupt: Arc<Interrupt>) {
    let name = signals.next().await;
    // Before the drain: an idle worker ends at once, and whoever waits for it looks here.
    interrupt.asked.store(true, Ordering::Release);
    broker.drain();
    tracing::warn!(
        "{name}: finishing what runs; tasks that wait and will not be begun: {}; another signal stops at once",
        broker.waiting()
    );
    signals.next().await;
    interrupt.at_once.notify_one();
}

/// What was run, and why not all of it was printed.
struct Printed {
    summary: Summary,
    broken: Option<anyhow::Error>,
}

/// Prints results as they come. Where that breaks, `stop` is called, and what still ends is counted.
async fn print(mut reports: mpsc::Receiver<TaskReport>, bar: &ProgressBar, stop: impl Fn()) -> Printed {
    let mut printed = Printed { summary: Summary::default(), broken: None };
    let mut output = results();
    let beside_bar = results_are_on_a_terminal();
    let (mut batch, mut lines) = (Vec::new(), Vec::new());
    while reports.recv_many(&mut batch, READ_AHEAD).await > 0 {
        batch.iter().for_each(|report| printed.summary.add(report));
        bar.inc(batch.len() as u64);
        if printed.broken.is_none() {
            let mut write = || {
                batch.iter().try_for_each(|report| add_line(&mut lines, report))?;
                Ok(output.write_all(&lines).and_then(|()| output.flush())?)
            };
            // On one terminal with the bar, results go above it.
            let written: anyhow::Result<()> = if beside_bar { bar.suspend(write) } else { write() };
            if let Err(error) = written {
                let closed = error.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe);
                let said =
                    if closed { "nobody reads the results any more, so nothing more is begun" } else { "cannot print results" };
                printed.broken = Some(error.context(said));
                stop();
            }
            lines.clear();
        }
        batch.clear();
        bar.set_message(format!("{} errors", printed.summary.errors()));
    }
    printed
}

/// JSON that passes through keeps its own line ends, which stand only between members: one result is one line.
fn add_line(lines: &mut Vec<u8>, report: &TaskReport) -> anyhow::Result<()> {
    let begin = lines.len();
    serde_json::to_writer(&mut *lines, report).context("a result has no JSON form")?;
    lines[begin..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    lines.push(b'\n');
    Ok(())
}
