//! The `qtasks-host` binary: arguments in, exit code out.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // Before anything else: a guest must not inherit what a host sets up.
    qtasks_host::plugin::process::guest::run_if_asked();
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("qtasks-host: {error:#}");
            cli::exit_code_of(&error).into()
        }
    }
}
