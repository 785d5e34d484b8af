//! Damaged libraries through the whole safe path of a host: static check, probe, a process of its own, and a call there. This
//! process is the host: that it is there to print the table is the test.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qtasks_host::plugin::{Candidate, Isolation, LoadPolicy, LoadState, Loader, PluginSettings, Registry, TrustPolicy};
use qtasks_host::trigger::{Dispatcher, OutcomeKind, Trigger};
use serde_json::json;

use crate::damage::{Damage, Random};
use crate::seeds::Seed;

/// The plugin that the seed holds.
const PLUGIN: &str = "documented-example";

/// Damages the plugin library `count` times and takes each file through the host. Gives how many ended how.
pub(crate) fn run(seed: &Seed, count: usize, mut random: Random, directory: &Path) -> Result<BTreeMap<String, usize>> {
    // A damaged library may sleep for ever; nobody waits long for it.
    let deadline = Duration::from_secs(1);
    let policy = LoadPolicy {
        state_dir: directory.join("state"),
        guest_program: Some(std::env::current_exe().context("this program has a path")?),
        probe: true,
        probe_deadline: deadline,
        trust: TrustPolicy::default(),
        watch: Arc::default(),
        own_tasks: Default::default(),
    };
    let isolated =
        PluginSettings { isolation: Isolation::Process, deadline, start_deadline: deadline, ..PluginSettings::default() };
    let settings = BTreeMap::from([(PLUGIN.to_owned(), isolated)]);
    let loader = Loader { settings: &settings, policy: &policy };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _entered = runtime.enter();

    let path = directory.join("damaged.so");
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..=count {
        // The first file is the good one: if that does not answer, nothing here means anything.
        let damage = Damage::ALL[number % Damage::ALL.len()];
        let bytes = if number == 0 { seed.bytes.clone() } else { damage.apply(&seed.bytes, &mut random) };
        std::fs::write(&path, &bytes)?;
        let ending = take_through(&loader, &runtime, &path);
        if number == 0 {
            ensure!(ending == "answered", "the undamaged library ended as {ending}");
        } else {
            *endings.entry(ending).or_default() += 1;
        }
    }
    Ok(endings)
}

fn take_through(loader: &Loader<'_>, runtime: &tokio::runtime::Runtime, path: &Path) -> String {
    let mut plugins = Vec::new();
    let report = loader.load(&Candidate { path: path.to_owned() }, &mut plugins);
    if report.state != LoadState::Running {
        let code = report.error.map_or("disabled", |error| error.kind.code());
        return format!("refused: {code}");
    }
    let registry = match Registry::new(plugins.clone()) {
        Ok(registry) => registry,
        Err(error) => return format!("refused: {error}"),
    };
    let dispatcher = Arc::new(Dispatcher::new(registry, &BTreeMap::new()));
    let kwargs = json!({
        "task_executor": {"name": "TaskExecutor", "attempt": 1, "attempts": 1},
        "task_func": {"name": "add", "provided_by": "application"},
        "task_broker": {"uuid": "0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5", "task_name": "add", "priority": 0, "args": [], "kwargs": {}},
        "e": {"type": "TaskPluginTriggerError", "message": "m", "args": [], "kwargs": {}},
    });
    let fired = runtime.block_on(dispatcher.fire(Trigger::TaskExecutorRunTaskTriggerError, &kwargs));
    let ending = match fired.decisions.first() {
        Some(decision) if decision.outcome == OutcomeKind::Failed => {
            let kind = decision.failure.as_ref().map_or_else(String::new, |failure| failure.kind.to_string());
            format!("called, and failed: {kind}")
        }
        Some(_) => "answered".to_owned(),
        None => "not asked".to_owned(),
    };
    for plugin in &plugins {
        // What it says in the end is of no interest: it ends at its deadline at the latest.
        let _ = plugin.stop(Duration::from_secs(1));
    }
    ending
}
