//! The integration tests: one binary, a file for each theme, through real libraries wherever a plugin is involved.

mod support;

mod abi;
mod app;
mod brokers;
mod chaining;
mod client_commands;
mod commands;
mod crash;
mod discovery;
mod dispatch;
mod docs;
mod documented_path;
mod executor;
mod faults;
mod generators;
mod interop;
mod loading;
mod plugin_command;
mod redis;
mod replacement;
mod replay;
mod retries;
mod run_command;
mod samples;
mod sqlite;
mod stats_command;
mod triggers;
mod trust;
mod worker_command;
mod worker_replacement;
mod wrong_plugins;
