//! The `qtasks-host` binary: arguments in, exit code out.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // Before anything else: a guest must not inherit what a host sets up.
    qtasks_host::guest::run_if_asked();
    let arguments = cli::Arguments::parse();
    let status = cli::run(arguments).unwrap_or_else(|error| {
        cli::tell(format_args!("qtasks-host: {error:#}\n"));
        cli::exit_code_of(&error)
    });
    if qtasks_host::plugin::start_watch::linker_is_held() {
        qtasks_host::plugin::fatal::end_at_once(status as u8);
    }
    status.into()
}
