//! Libraries from `tests/fixtures/c`, built by the C compiler of the machine.

use std::path::Path;
use std::process::Command;

use super::artifacts::ROOT;
use super::skipped;

/// Compiles `NAME.c` into the shared library `to`; `false`, told as a skip, where there is no C compiler.
pub(crate) fn compile(name: &str, to: &Path, arguments: &[&str]) -> bool {
    let source = Path::new(ROOT).join("tests/fixtures/c").join(format!("{name}.c"));
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-Wall", "-Wno-attributes"]).args(arguments).arg(&source).arg("-o").arg(to).arg("-ldl");
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) => {
            skipped(&format!("cc cannot be run: {error}"));
            false
        }
    }
}
