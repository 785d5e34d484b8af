//! What the tests stand on: built plugins, a place of their own, and the host as a library and as a program.

pub(crate) mod app;
pub(crate) mod artifacts;
pub(crate) mod c;
pub(crate) mod host;
pub(crate) mod place;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod versioned;
pub(crate) mod worker;

pub(crate) use app::{TestApp, returning, value_of};
pub(crate) use host::Host;
pub(crate) use place::Place;

/// The trigger that this project is about.
pub(crate) const ERROR: &str = "task_executor_run_task_trigger_error";

/// Asserts that `text` holds each of `parts`, and shows the whole where it does not.
#[track_caller]
pub(crate) fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "expected to read {part:?} in:\n{text}");
    }
}

/// Says that the running test does nothing here, and why. `QTASKS_TEST_NO_SKIP` makes that a failure.
#[track_caller]
pub(crate) fn skipped(reason: &str) {
    assert!(std::env::var_os("QTASKS_TEST_NO_SKIP").is_none(), "QTASKS_TEST_NO_SKIP is set and {reason}");
    println!("skipped: {reason}");
}
