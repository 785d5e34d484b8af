//! What lies in the plugin directory beside the good libraries. More of it is in `tests/loading.rs`, and what is wrong within a file
//! in `host/src/plugin/elf/tests.rs`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use super::{RAISE, answered, beside_good_ones, good_ones, refused, run};
use crate::support::artifacts::library;
use crate::support::{Host, Place, assert_says, c, skipped};

faults! {
    link_in_a_circle: "a symbolic link leads to itself" => "refused as unreadable";
    link_to_an_endless_device: "a symbolic link leads to `/dev/zero`" => "refused: a device is no file";
    socket: "a Unix socket" => "refused, nobody waits";
    name_with_control_characters: "a file name with a line end and an escape sequence" => "refused; the log shows the name escaped, on one line";
    name_that_is_no_text: "a file name that is not UTF-8" => "refused: rename it";
    name_of_255_bytes: "a file name of 255 bytes" => "loaded like any other";
    file_that_nobody_may_read: "a file that the host may not read" => "refused: unreadable, or to root no library";
    disk_that_fails: "a file that cannot be read to its end" => "refused as `bytes-read` with the system's reason";
    compressed: "a library that was compressed" => "refused as `manifest`, with what it is";
    packed: "a library without the headers that a packer does away with" => "refused as `manifest`";
    same_file_twice: "a link to a library that is there as well" => "the second name is refused";
    a_thousand_files: "a thousand files that are no libraries" => "each is refused, the good ones run";
    unfinished_copies: "copies that editors and package tools leave behind" => "no candidates";
}

/// The good ones run beside what `make` made as `strange.so`, and what was refused is told in one line with these words.
fn strange(make: impl FnOnce(&Path), words: &[&str]) {
    let place = good_ones();
    make(&place.plugins().join("strange.so"));
    let ended = answered(run(&place).with_input(RAISE));
    let line = ended.stderr.lines().find(|line| line.contains("plugin refused") && line.contains("strange.so"));
    assert_says(line.unwrap_or_else(|| panic!("no refusal in:\n{}", ended.stderr)), words);
}

fn link_in_a_circle() {
    strange(|path| symlink("strange.so", path).expect("made"), &["code=\"file-link-broken\"", "symbolic links"]);
}

fn link_to_an_endless_device() {
    strange(
        |path| symlink("/dev/zero", path).expect("made"),
        &["is a link that leads out of the plugin directory, to /dev/zero"],
    );
}

fn socket() {
    strange(|path| drop(UnixListener::bind(path).expect("bound")), &["strange.so is a socket, expected a regular file"]);
}

fn name_with_control_characters() {
    let place = good_ones();
    fs::write(place.plugins().join("a\n\u{1b}[2Jstrange.so"), "no library").expect("written");
    let ended = answered(run(&place).with_input(RAISE));
    assert!(!ended.stderr.contains('\u{1b}'), "{:?}", ended.stderr);
    let line = ended.stderr.lines().find(|line| line.contains("strange.so")).expect("a refusal");
    assert_says(line, &["plugin refused", "2Jstrange.so", "code="]);
    let listed = Host::new(&place).args(["plugin", "list", "--plugins"]).arg(place.plugins()).end().expect_code(4);
    assert_says(&listed.stdout, &["a\\n\\u{1b}[2Jstrange.so: refused: "]);
    assert!(!listed.stdout.contains('\u{1b}'), "{:?}", listed.stdout);
}

/// The plugin that answers 123 has this name alone.
fn named(name: &[u8]) {
    let place = Place::new();
    place.copy("scripted");
    fs::copy(library("documented_example"), place.plugins().join(OsStr::from_bytes(name))).expect("copied");
    for _ in 0..2 {
        answered(run(&place).with_input(RAISE));
    }
    let listed = Host::new(&place).args(["plugin", "list", "--json", "--plugins"]).arg(place.plugins()).end().expect_code(0);
    assert_says(&listed.stdout, &["\"documented-example\""]);
}

fn name_that_is_no_text() {
    let place = good_ones();
    fs::copy(library("penguins"), place.plugins().join(OsStr::from_bytes(b"\xff\xfe.so"))).expect("copied");
    let ended = answered(run(&place).with_input(RAISE));
    assert_says(&ended.stderr, &["\\xff\\xfe.so is not plain UTF-8 text", "rename the file", "code=\"file-name\""]);
}

fn name_of_255_bytes() {
    named(&[[b'x'; 252].as_slice(), b".so"].concat());
}

fn file_that_nobody_may_read() {
    // Root reads it all the same, and finds no library.
    let said = if rustix::process::geteuid().is_root() { "too short for an ELF header" } else { "Permission denied" };
    strange(
        |path| {
            fs::write(path, "secret").expect("written");
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("it is ours");
        },
        &[said],
    );
}

fn disk_that_fails() {
    let place = beside_good_ones("scripted_b");
    let shim = place.path("bad_disk.so");
    if !c::compile("bad_disk", &shim, &[]) {
        return;
    }
    let ended = answered(run(&place).env("LD_PRELOAD", &shim).with_input(RAISE));
    refused(&ended, "scripted_b", "bytes-read", &["cannot read ", "Input/output error"]);
}

fn compressed() {
    for (program, kind) in [("gzip", "gzip data"), ("xz", "xz data")] {
        let library = fs::File::open(library("penguins")).expect("a library");
        match Command::new(program).args(["-1", "-c"]).stdin(library).output() {
            Ok(output) => strange(
                |path| fs::write(path, output.stdout).expect("written"),
                &["code=\"manifest\"", "not a 64-bit ELF library", kind, "unpack it"],
            ),
            Err(error) => skipped(&format!("{program} cannot be run: {error}")),
        }
    }
}

/// As UPX leaves a program: the segments, and neither notes nor a dynamic table.
fn packed() {
    let mut bytes = fs::read(library("penguins")).expect("a library");
    let headers = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    for header in (0..headers).map(|number| 64 + 56 * number) {
        let kind = &mut bytes[header..header + 4];
        if kind != 1u32.to_le_bytes() {
            kind.fill(0);
        }
    }
    strange(
        |path| fs::write(path, bytes).expect("written"),
        &["code=\"manifest\"", "it has no plugin manifest (ELF note QTasks)"],
    );
}

fn same_file_twice() {
    strange(
        |path| symlink("libdocumented_example.so", path).expect("made"),
        &["is the same file as ", "libdocumented_example.so", "code=\"file-duplicate\""],
    );
}

fn a_thousand_files() {
    let place = good_ones();
    for number in 0..1000 {
        fs::write(place.plugins().join(format!("{number}.so")), "no library").expect("written");
    }
    let ended = answered(run(&place).with_input(RAISE));
    assert_eq!(ended.stderr.lines().filter(|line| line.contains("plugin refused")).count(), 1000);
}

fn unfinished_copies() {
    let place = beside_good_ones("penguins");
    for name in [".libx.so.swp", "libx.so~", "libx.so.bak", "libx.so.dpkg-new", "libx.so.tmp", "#libx.so#"] {
        fs::write(place.plugins().join(name), "no library").expect("written");
    }
    assert!(!answered(run(&place).with_input(RAISE)).stderr.contains("plugin refused"));
}
