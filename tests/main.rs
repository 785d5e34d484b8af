//! The integration tests: one binary, a file for each theme, through real libraries wherever a plugin is involved.

mod support;

mod chaining;
mod dispatch;
mod documented_path;
mod executor;
mod loading;
mod samples;
