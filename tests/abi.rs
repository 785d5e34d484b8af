//! One boundary across profiles, compilers and time.

use std::path::{Path, PathBuf};
use std::process::Command;

use qtasks_host::plugin::LoadState;

use crate::support::artifacts::{ROOT, build, cargo};
use crate::support::{TestApp, returning};

/// Loads a library that is documented-example, and has it answer.
async fn answers_123(library: &Path) {
    let app = TestApp::with(&["scripted"]);
    app.place.copy_as(library, "libsubject.so");
    let app = app.start().await;
    let report = app.file("libsubject.so");
    assert_eq!((report.state, report.reason()), (LoadState::Running, None), "{}", library.display());
    assert_eq!(returning(&app.raise().await), "123");
    app.running.stop().await;
}

/// Builds documented-example with this cargo in a target directory of its own.
fn documented_example(mut cargo: Command, directory: &str, profile: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    cargo.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR");
    let target = target.to_str().expect("a plain path");
    let mut libraries = build(&mut cargo, &["-p", "documented-example", "--lib", "--profile", profile, "--target-dir", target]);
    libraries.remove("documented_example").expect("cargo names the library")
}

#[tokio::test]
async fn a_plugin_of_the_other_profile_loads_and_answers() {
    let other = if cfg!(debug_assertions) { "release" } else { "dev" };
    answers_123(&documented_example(cargo(), "other-profile", other)).await;
}

#[tokio::test]
async fn a_plugin_of_another_compiler_loads_and_answers() {
    let rustup = || {
        let mut rustup = Command::new("rustup");
        // What the running cargo set for its own compiler.
        for name in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "CARGO"] {
            rustup.env_remove(name);
        }
        rustup.args(["run", "nightly"]);
        rustup
    };
    let version = rustup().args(["rustc", "--version"]).output();
    let Some(version) = version.ok().filter(|output| output.status.success()) else {
        // No skips is about what a package brings; a second toolchain is there or not.
        let allowed = std::env::var_os("QTASKS_TEST_WITHOUT_NIGHTLY").is_some();
        assert!(
            allowed || std::env::var_os("QTASKS_TEST_NO_SKIP").is_none_or(|value| value != "1"),
            "there is no nightly toolchain"
        );
        println!("skipped: there is no nightly toolchain (rustup toolchain install nightly)");
        return;
    };
    let mut nightly = rustup();
    nightly.arg("cargo");
    let library = documented_example(nightly, "nightly", "dev");
    let bytes = std::fs::read(&library).expect("readable");
    let version = version.stdout.trim_ascii();
    assert!(bytes.windows(version.len()).any(|window| window == version), "the manifest names another compiler");
    answers_123(&library).await;
}

/// What was built for the first version of the boundary goes on to load for as long as `ABI_MAJOR` is 1.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
#[tokio::test]
async fn a_stored_plugin_of_abi_1_0_loads_and_answers() {
    answers_123(&Path::new(ROOT).join("tests/abi/1.0/libdocumented_example.so")).await;
}
