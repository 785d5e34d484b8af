//! Libraries that no Rust compiler made, and that know the file format better than the boundary.

use super::{RAISE, answered, good_ones, refused, run};
use crate::support::{Place, c};

faults! {
    no_manifest: "a C library without manifest lies in the directory" => "refused as `manifest`; its constructor never runs";
    junk_root: "the manifest is good, the root symbol is junk" => "refused or quarantined by the probe; the host lives";
    panics_abort: "the manifest says that the library was built with `panic = \"abort\"`" => "refused as `manifest`, with the key to change; none of its code runs";
    root_is_a_function: "the manifest is good, the root symbol is a function" => "refused by the static check";
}

/// Compiles `tests/fixtures/c/NAME.c` into the plugins of `place`; `false` where there is no C compiler.
fn compile(place: &Place, name: &str, definitions: &[&str]) -> bool {
    let target = format!("-DTARGET=\"{}-unknown-linux-gnu\"", std::env::consts::ARCH);
    // A hash table as the linker of Rust makes it: the static check wants one that it can check.
    let arguments = [&["-Wl,--hash-style=gnu", &*target], definitions].concat();
    c::compile(name, &place.plugins().join(format!("lib{name}.so")), &arguments)
}

fn no_manifest() {
    let place = good_ones();
    if !compile(&place, "no_manifest", &[]) {
        return;
    }
    let mark = place.path("mark");
    let ended = answered(run(&place).env("QTASKS_TEST_MARK", &mark).with_input(RAISE));
    refused(&ended, "no_manifest", "manifest", &["it has no plugin manifest (ELF note QTasks)"]);
    assert!(!mark.exists(), "its code was run");
}

fn junk_root() {
    let place = good_ones();
    if !compile(&place, "junk_root", &[]) {
        return;
    }
    // It did no harm, so it is in no quarantine.
    for _ in 0..2 {
        let ended = answered(run(&place).with_input(RAISE));
        refused(&ended, "junk_root", "probe-refused", &["the probe could not load it: ", "abi_stable"]);
    }
}

fn root_is_a_function() {
    let place = good_ones();
    if !compile(&place, "junk_root", &["-DROOT_IS_A_FUNCTION"]) {
        return;
    }
    let ended = answered(run(&place).with_input(RAISE));
    refused(&ended, "junk_root", "elf-root", &["qtasks_plugin_root_1 is a function, expected a data object"]);
}

fn panics_abort() {
    let place = good_ones();
    if !compile(&place, "junk_root", &["-DPANIC=\"abort\""]) {
        return;
    }
    let ended = answered(run(&place).with_input(RAISE));
    let remedy = "remove `panic = \"abort\"` from [profile.release] in its Cargo.toml and rebuild";
    refused(
        &ended,
        "junk_root",
        "manifest",
        &["it was built with panic = \"abort\", so a panic in it would end the host", remedy],
    );
}
