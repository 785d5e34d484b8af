//! What the commands of a client share: they work with the project's tasks, and load no plugins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;
use qtasks_host::broker::{Backend, BrokerError, BrokerSettings, BrokerUrl, Store, open};
use qtasks_host::plugin::Registry;
use qtasks_host::queue_tasks::QueueTasks;
use qtasks_host::trigger::Dispatcher;
use qtasks_host::{Settings, shown};

use super::exit_code::UsageError;
use super::log;
use super::settings_flags::ClientFlags;

/// Runs `work` with the project's tasks. Where there is no file of them it makes none: a path that is mistyped would look like a
/// project without tasks.
pub(crate) fn with_queue<T, F>(flags: &ClientFlags, work: impl FnOnce(QueueTasks) -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    with_queue_within(flags, Duration::ZERO, work)
}

/// The same, and a broker that is away is waited for, for so long.
pub(crate) fn with_queue_within<T, F>(
    flags: &ClientFlags,
    patience: Duration,
    work: impl FnOnce(QueueTasks) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let settings = flags.settings()?;
    check_there(&settings)?;
    work_with(settings, patience, work)
}

/// Where there is no file of tasks, whoever only looks makes none.
///
/// # Errors
///
/// [`UsageError`], where there is none.
pub(crate) fn check_there(settings: &Settings) -> Result<(), UsageError> {
    match settings.broker().url {
        BrokerUrl::Sqlite { path, .. } if matches!(path.try_exists(), Ok(false)) => {
            let said = "there is no such file; expected the one that a worker or `task add` has made: name it with --broker";
            Err(UsageError(format!("sqlite:{}: {said}", shown(&path))))
        }
        _ => Ok(()),
    }
}

/// Tasks in the memory of another process are nobody's to look at, and one that is added to this one's is gone with this command.
///
/// # Errors
///
/// [`UsageError`], where the broker is memory.
pub(crate) fn check_shared(settings: &Settings) -> Result<(), UsageError> {
    match settings.broker {
        Some(BrokerUrl::Memory) => Err(UsageError(
            "memory: is the memory of this command alone, where no worker is; expected sqlite:PATH or redis://HOST[:PORT][/DB]"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Runs `work` with the project's tasks, whose file is made where there is none.
pub(crate) fn with_new_queue<T, F>(flags: &ClientFlags, work: impl FnOnce(QueueTasks) -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    work_with(flags.settings()?, Duration::ZERO, work)
}

fn work_with<T, F>(settings: Settings, patience: Duration, work: impl FnOnce(QueueTasks) -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    check_shared(&settings)?;
    log::install(&settings.log, &ProgressBar::hidden())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let broker = settings.broker();
        let backend = open_within(&broker, patience).await?;
        let nobody = Dispatcher::new(Registry::default(), &BTreeMap::new());
        work(QueueTasks::new(Arc::new(Store::new(backend, Arc::new(nobody), broker.name)))).await
    })
}

async fn open_within(broker: &BrokerSettings, patience: Duration) -> Result<Arc<dyn Backend>, BrokerError> {
    const PAUSE: Duration = Duration::from_millis(500);
    let (begun, mut told) = (Instant::now(), false);
    loop {
        let error = match open(broker).await {
            Err(error) if error.is_away() => error,
            opened => return opened,
        };
        let left = patience.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("nobody can tell now what became of the task, trying again: {error}");
        }
        tokio::time::sleep(PAUSE.min(left)).await;
    }
}
