//! What the benches share.

use std::path::PathBuf;
use std::process::Command;

/// Builds the plugin library of `package` in this profile and gives its path, as cargo says it.
pub(crate) fn library_of(package: &str) -> PathBuf {
    built(&package.replace('-', "_"), &["--lib", "--package", package])
}

#[allow(dead_code, reason = "not every bench loads a fixture")]
/// The same for a fixture of the tests.
pub(crate) fn fixture(example: &str) -> PathBuf {
    built(example, &["--package", "qtasks-test-fixtures", "--example", example])
}

fn built(target: &str, arguments: &[&str]) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--message-format=json-render-diagnostics"])
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    let artifact = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == target && message["filenames"].is_array())
        .find_map(|message| message["filenames"][0].as_str().map(PathBuf::from));
    artifact.expect("cargo names the library")
}

/// A figure that stands for itself.
pub(crate) fn figure(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.3} {unit}");
}

#[allow(dead_code, reason = "not every bench compares")]
/// A figure that compares two things measured in the same run.
pub(crate) fn ratio(name: &str, value: f64) {
    println!("ratio {name} {value:.3}");
}

/// The middle value.
pub(crate) fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_by(|left, right| left.partial_cmp(right).expect("no NaN is measured"));
    sorted[sorted.len() / 2]
}
