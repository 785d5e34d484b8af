//! The command line: one subcommand a file, over the same library that an application uses.

mod exit_code;
mod input;
mod log;
mod plugin;
mod run;
mod settings_flags;
mod summary;

use clap::{Parser, Subcommand};

pub(crate) use exit_code::{ExitStatus, exit_code_of};

/// Runs tasks whose error handling lives in native plugins.
///
/// A task that raises a plugin error is handed to the plugins found in the plugin directory; what a plugin answers becomes the
/// task's result, and with no answer the error goes on.
#[derive(Debug, Parser)]
#[command(version, after_long_help = exit_code::HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArguments>),
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
        Command::Plugin(command) => plugin::run(command),
    }
}
