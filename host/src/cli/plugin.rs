//! `qtasks-host plugin`: looks at plugin libraries, and locks them. Nothing of theirs is run.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use qtasks_host::plugin::trust::lock::{Lock, Locked};
use qtasks_host::plugin::trust::stock::{Stock, take_stock};
use qtasks_host::plugin::verdicts::{Quarantined, Verdicts};
use qtasks_host::plugin::{Candidate, LoadReport, LoadState, Loader, TrustState, culprit};
use qtasks_host::{Settings, shown};

use super::exit_code::{ExitStatus, UsageError};
use super::log;
use super::output::{print, print_json};
use super::settings_flags::SettingsFlags;

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// List the libraries of the plugin directory: name, version, triggers and tasks, or why one would be refused.
    List(Box<ListArguments>),
    /// Show everything that one library declares.
    Inspect(InspectArguments),
    /// Accept the libraries that lie in the plugin directory now: write their digests to the lock file.
    Lock(Box<LockArguments>),
    /// What was found harmful and is refused from now on.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    settings: SettingsFlags,
    /// Print a JSON list instead.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The library file.
    file: PathBuf,
    /// Print the load report as JSON instead.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LockArguments {
    #[command(flatten)]
    settings: SettingsFlags,
    /// Write nothing; exit with 4 when the lock file would change.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List what is in quarantine, with the reason.
    List(Box<ListArguments>),
    /// Lift the quarantine: the library is probed again when it is loaded next.
    Clear(Box<ClearArguments>),
}

#[derive(Debug, Args)]
pub(crate) struct ClearArguments {
    /// Plugin name, or the beginning of the digest.
    #[arg(required_unless_present = "all")]
    which: Option<String>,
    /// Lift everything.
    #[arg(long, conflicts_with = "which")]
    all: bool,
    #[command(flatten)]
    settings: SettingsFlags,
}

pub(super) fn run(command: PluginCommand) -> anyhow::Result<ExitStatus> {
    match command {
        PluginCommand::List(arguments) => list(&arguments),
        PluginCommand::Inspect(arguments) => inspect(arguments),
        PluginCommand::Lock(arguments) => lock(&arguments),
        PluginCommand::Quarantine(QuarantineCommand::List(arguments)) => list_quarantine(&arguments),
        PluginCommand::Quarantine(QuarantineCommand::Clear(arguments)) => clear_quarantine(&arguments),
    }
}

fn list(arguments: &ListArguments) -> anyhow::Result<ExitStatus> {
    let settings = arguments.settings.settings()?;
    let directory = plugin_dir(&settings)?;
    // Warnings: permissions that are too wide, and overridden trust.
    log::install(&settings.log, &ProgressBar::hidden())?;
    let policy = settings.load_policy();
    let loader = Loader { settings: &settings.plugins, policy: &policy };
    let reports = loader.look(directory)?;
    if arguments.json {
        print_json(&reports)?;
    } else if reports.is_empty() {
        print(&format!("no plugin library (*.so) in {}\n", shown(directory)))?;
    } else {
        print(&reports.iter().map(line).collect::<String>())?;
    }
    Ok(status(&reports))
}

fn plugin_dir(settings: &Settings) -> Result<&PathBuf, UsageError> {
    let missing = || UsageError("no plugin directory: name one with --plugins or the setting `plugin_dir`".to_owned());
    settings.plugin_dir.as_ref().ok_or_else(missing)
}

fn lock(arguments: &LockArguments) -> anyhow::Result<ExitStatus> {
    let settings = arguments.settings.settings()?;
    log::install(&settings.log, &ProgressBar::hidden())?;
    let Stock { lock, left_out, place } = take_stock(plugin_dir(&settings)?, &settings.load_policy().trust)?;
    let path = place.path();
    let mut text: String = left_out.iter().map(|report| format!("left out: {}", line(report))).collect();
    let before = match place.read() {
        Ok(Locked::Present(before)) => Some(before),
        Ok(Locked::Absent) => None,
        Err(error) => {
            text.push_str(&format!("{} could not be used: {:#}\n", shown(&path), anyhow::Error::from(error)));
            None
        }
    };
    let unchanged = before.as_ref() == Some(&lock);
    text.push_str(&changes(&before.unwrap_or_default(), &lock));
    let (count, path) = (lock.plugins.len(), shown(&path));
    let status = if unchanged {
        text.push_str(&format!("{path} is up to date, plugins: {count}\n"));
        ExitStatus::Success
    } else if arguments.check {
        text.push_str(&format!("{path} would change, plugins: {count}; write it with `qtasks-host plugin lock`\n"));
        ExitStatus::PluginRefused
    } else {
        place.write(&lock)?;
        text.push_str(&format!("wrote {path}, plugins: {count}\n"));
        ExitStatus::Success
    };
    print(&text)?;
    Ok(status)
}

/// What comes and goes, one library a line.
fn changes(before: &Lock, after: &Lock) -> String {
    let removed = before.plugins.difference(&after.plugins).map(|entry| format!("- {entry}\n"));
    let added = after.plugins.difference(&before.plugins).map(|entry| format!("+ {entry}\n"));
    removed.chain(added).collect()
}

fn inspect(arguments: InspectArguments) -> anyhow::Result<ExitStatus> {
    let report = LoadReport::look(&Candidate { path: arguments.file }, None);
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&description(&report))?;
    }
    Ok(status(std::slice::from_ref(&report)))
}

fn list_quarantine(arguments: &ListArguments) -> anyhow::Result<ExitStatus> {
    let settings = arguments.settings.settings()?;
    let quarantined = verdicts(&settings)?.quarantined()?;
    if arguments.json {
        print_json(&quarantined)?;
    } else if quarantined.is_empty() {
        print("nothing is in quarantine\n")?;
    } else {
        print(&quarantined.iter().map(quarantine_line).collect::<String>())?;
    }
    Ok(ExitStatus::Success)
}

fn clear_quarantine(arguments: &ClearArguments) -> anyhow::Result<ExitStatus> {
    let settings = arguments.settings.settings()?;
    let lifted = verdicts(&settings)?.clear(arguments.which.as_deref())?;
    match &arguments.which {
        Some(which) if lifted.is_empty() => {
            let place = shown(&settings.state_dir);
            let said = "see `plugin quarantine list`, and check --state-dir";
            return Err(UsageError(format!("nothing in quarantine is called {which:?} in {place}; {said}")).into());
        }
        None if lifted.is_empty() => print("nothing is in quarantine\n")?,
        _ => {}
    }
    print(&lifted.iter().map(|entry| format!("lifted: {}", quarantine_line(entry))).collect::<String>())?;
    Ok(ExitStatus::Success)
}

/// What a start would find in quarantine now.
fn verdicts(settings: &Settings) -> anyhow::Result<Verdicts> {
    // Warnings: a verdict that is not believed.
    log::install(&settings.log, &ProgressBar::hidden())?;
    culprit::heed(&settings.state_dir);
    Ok(Verdicts::new(&settings.state_dir))
}

fn quarantine_line(entry: &Quarantined) -> String {
    let digest: String = entry.digest.to_string().chars().take(12).collect();
    let path = shown(&entry.path);
    let (plugin, evidence) = (shown(&entry.plugin), shown(&entry.evidence));
    format!("{plugin} {digest} {}: {evidence} (seen {} time(s), {path})\n", entry.kind.name(), entry.count)
}

fn status(reports: &[LoadReport]) -> ExitStatus {
    let refused = reports.iter().any(|report| report.state == LoadState::Refused);
    if refused { ExitStatus::PluginRefused } else { ExitStatus::Success }
}

fn line(report: &LoadReport) -> String {
    let file = shown(report.path.file_name().unwrap_or_default());
    match (&report.manifest, report.reason()) {
        (_, Some(reason)) => {
            let code = report.error.as_ref().map_or(String::new(), |error| format!(" [{}]", error.kind.code()));
            format!("{file}: refused: {reason}{code}\n")
        }
        (Some(manifest), None) => {
            let disabled = if report.state == LoadState::Disabled { " (disabled)" } else { "" };
            let trust = match report.trust {
                None | Some(TrustState::Unchecked) => String::new(),
                Some(TrustState::Overridden) => " (trust overridden)".to_owned(),
                Some(trust) => format!(" ({})", trust.name()),
            };
            let effects = report.side_effects.as_ref().map_or_else(String::new, |effects| format!(" ({})", shown(effects)));
            let handlers = manifest.handlers.iter().map(|handler| handler.trigger.as_str());
            let tasks = manifest.tasks.iter().map(|task| format!("task {}", task.name));
            let provides: Vec<String> = handlers.map(str::to_owned).chain(tasks).collect();
            let (version, provides) = (shown(&manifest.version), provides.join(", "));
            format!("{} {version}{disabled}{trust}{effects}: {}\n", manifest.name, shown(&provides))
        }
        (None, None) => format!("{file}: nothing is known of it\n"),
    }
}

fn description(report: &LoadReport) -> String {
    let mut text = format!("file         {}\n", shown(&report.path));
    if let Some(manifest) = &report.manifest {
        let abi = &manifest.abi;
        text.push_str(&format!(
            "name         {}\nversion      {}\ndescription  {}\nauthors      {}\nabi          {}.{}\nsdk          {}\nbuilt by     {}\ntarget       {}\npanic        {}\npriority     {}\n",
            shown(&manifest.name),
            shown(&manifest.version),
            shown(&manifest.description),
            shown(&manifest.authors.join(", ")),
            abi.major,
            abi.minor,
            shown(&manifest.sdk),
            shown(&manifest.rustc),
            shown(&manifest.target),
            shown(&manifest.panic),
            manifest.priority,
        ));
        for handler in &manifest.handlers {
            text.push_str(&format!("handles      {} ({})\n", shown(&handler.trigger), handler.mode.name()));
        }
        for task in &manifest.tasks {
            text.push_str(&format!("task         {} ({})\n", shown(&task.name), task.mode.name()));
        }
        // Line ends between its words are lines of its own, and nothing else.
        text.push_str(&format!("config       {}\n", shown(&manifest.config.to_string())));
    }
    if let Some(reason) = report.reason() {
        text.push_str(&format!("refused      {reason}\n"));
    }
    text
}
