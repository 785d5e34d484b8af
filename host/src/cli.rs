//! The command line: one subcommand a file, over the same library that an application uses.

mod client;
mod decisions;
mod exit_code;
mod input;
mod log;
mod output;
mod plugin;
mod project;
mod replay;
mod run;
mod runtime;
mod settings_flags;
mod stats;
mod summary;
mod task;
mod worker;

use clap::{Parser, Subcommand};

pub(crate) use exit_code::{ExitStatus, exit_code_of};
pub(crate) use output::tell;

/// Runs tasks whose error handling lives in native plugins.
///
/// A task that raises a plugin error is handed to the plugins found in the plugin directory; what a plugin answers becomes the
/// task's result, and with no answer the error goes on. `worker` takes tasks from a broker, a file or a Redis server, where `task add`
/// and other clients put them; `run` takes them from a file of tasks.
#[derive(Debug, Parser)]
#[command(version, after_long_help = exit_code::HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArguments>),
    Worker(Box<worker::WorkerArguments>),
    /// Add tasks to the broker, look at them, cancel them, run them again.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// What plugins decided about errors, and what others would decide.
    #[command(subcommand)]
    Decisions(decisions::DecisionsCommand),
    /// What an application is, which tasks it knows, how many tasks the broker has.
    #[command(subcommand)]
    Stats(stats::StatsCommand),
    /// Ask whether a worker of the project is there.
    Ping(Box<project::PingArguments>),
    /// Remove every task, result and decision of the project.
    FlushAll(Box<project::FlushAllArguments>),
    /// Look at plugin libraries, without running anything of theirs.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
}

/// Runs one command.
///
/// # Errors
///
/// What keeps the command from being run at all; `exit_code_of` knows its exit code.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitStatus> {
    match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Worker(arguments) => worker::run(&arguments),
        Command::Task(command) => task::run(command),
        Command::Decisions(command) => decisions::run(command),
        Command::Stats(command) => stats::run(command),
        Command::Ping(arguments) => project::ping(&arguments),
        Command::FlushAll(arguments) => project::flush_all(&arguments),
        Command::Plugin(command) => plugin::run(command),
    }
}
