//! What may lie in and above a plugin directory, and what the operator reads then. One bad entry never stops the others.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use qtasks_host::plugin::discover::{Found, MAX_ENTRIES};
use qtasks_host::plugin::{DiscoverError, FileError, Strictness, discover};
use rustix::fs::{CWD, FileType, Mode};

use crate::support::{Host, Place, assert_says};

/// Somebody who is neither root nor whoever runs the tests: "nobody" on every system.
const STRANGER: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own file");
}

/// A place with two plugins, and modes that no umask changed.
fn safe_place() -> Place {
    let place = Place::new();
    set_mode(&place.plugins(), 0o755);
    for plugin in ["documented_example", "penguins"] {
        set_mode(&place.copy(plugin), 0o644);
    }
    place
}

fn found(place: &Place) -> Vec<Found> {
    discover(&place.plugins(), Strictness::Lenient).expect("a safe directory").collect()
}

#[track_caller]
fn refused(error: FileError, code: &str, said: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    assert_says(&error.to_string(), said);
}

/// Makes one more entry and gives why it is refused. The others are found all the same.
#[track_caller]
fn refusal(make: impl FnOnce(&Place, &Path)) -> FileError {
    let place = safe_place();
    make(&place, &place.plugins().join("strange.so"));
    only_refusal(&place, "strange.so")
}

#[track_caller]
fn only_refusal(place: &Place, name: &str) -> FileError {
    let mut refusals = Vec::new();
    for found in found(place) {
        let path = found.candidate.path;
        match found.file {
            Ok(_) => assert!(!path.ends_with(name), "{} is refused", path.display()),
            Err(error) => refusals.push((path, error)),
        }
    }
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let (path, error) = refusals.remove(0);
    assert_eq!(path, place.plugins().join(name));
    error
}

/// The names that were found and may be read.
fn good_names(place: &Place) -> Vec<String> {
    let good = found(place).into_iter().filter(|found| found.file.is_ok());
    good.map(|found| found.candidate.path.file_name().expect("a name").to_string_lossy().into_owned()).collect()
}

#[track_caller]
fn directory_refusal(directory: &Path, strictness: Strictness, code: &str, said: &[&str]) -> DiscoverError {
    let error = discover(directory, strictness).expect_err("a directory that is refused");
    assert_eq!(error.code(), code, "{error}");
    assert_says(&error.to_string(), said);
    error
}

/// Whether tests that give files to another user can run. `QTASKS_TEST_NO_SKIP=1` makes a skip a failure.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("QTASKS_TEST_NO_SKIP").is_none(), "{test} needs root");
        println!("skipped: {test} needs root");
    }
    root
}

#[test]
fn what_is_no_regular_file_is_told_what_it_is() {
    refused(
        refusal(|_, path| std::fs::create_dir(path).expect("made")),
        "file-not-regular",
        &["strange.so is a directory, expected a regular file; remove it"],
    );
    // Neither open waits for a writer, which would never come.
    refused(refusal(|place, _| drop(place.fifo("plugins/strange.so"))), "file-not-regular", &["strange.so is a FIFO"]);
    let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).expect("bound"));
    refused(refusal(|_, path| socket(path)), "file-not-regular", &["strange.so is a socket"]);
}

#[test]
fn a_device_is_refused_and_never_opened() {
    if !is_root("a_device_is_refused_and_never_opened") {
        return;
    }
    // The numbers of /dev/zero, which could be read for ever.
    let make = |path: &Path| rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 5));
    let place = safe_place();
    if let Err(error) = make(&place.plugins().join("strange.so")) {
        assert!(std::env::var_os("QTASKS_TEST_NO_SKIP").is_none(), "{error}");
        println!("skipped: no device can be made: {error}");
        return;
    }
    refused(only_refusal(&place, "strange.so"), "file-not-regular", &["strange.so is a device"]);
}

#[test]
fn links_that_lead_nowhere_say_where_they_lead() {
    let link = |target: &'static str| refusal(move |_, path| symlink(target, path).expect("made"));
    for target in ["gone.so", "/nowhere/at/all.so"] {
        let error = link(target);
        assert_says(&std::error::Error::source(&error).expect("a reason").to_string(), &["No such file"]);
        refused(error, "file-link-broken", &["strange.so", &format!("a link to {target}")]);
    }
    let error = link("strange.so");
    assert_says(&std::error::Error::source(&error).expect("a reason").to_string(), &["Too many levels"]);
    refused(error, "file-link-broken", &["a link to strange.so"]);
}

#[test]
fn a_link_out_of_the_directory_is_refused_with_where_it_leads() {
    let outside = |place: &Place| {
        let file = place.write("outside.so", "a library of another directory");
        std::fs::canonicalize(file).expect("it is there")
    };
    for absolute in [true, false] {
        let place = safe_place();
        let outside = outside(&place);
        let target = if absolute { outside.clone() } else { PathBuf::from("../outside.so") };
        symlink(target, place.plugins().join("strange.so")).expect("made");
        let said = format!("is a link that leads out of the plugin directory, to {}", outside.display());
        refused(only_refusal(&place, "strange.so"), "file-link-out", &[&said, "put the file itself there"]);
    }
    let zero = refusal(|_, path| symlink("/dev/zero", path).expect("made"));
    refused(zero, "file-link-out", &["to /dev/zero"]);
    let magic = refusal(|_, path| symlink("/proc/self/exe", path).expect("made"));
    refused(magic, "file-link-out", &["leads out of the plugin directory"]);
}

#[test]
fn a_link_within_the_directory_is_followed() {
    let place = safe_place();
    let plugins = place.plugins();
    std::fs::rename(plugins.join("libpenguins.so"), plugins.join("libpenguins.so.0.1.0")).expect("renamed");
    symlink("libpenguins.so.0.1.0", plugins.join("libpenguins.so")).expect("made");
    std::fs::create_dir(plugins.join("versions")).expect("made");
    set_mode(&plugins.join("versions"), 0o755);
    place.copy_as(&plugins.join("libdocumented_example.so"), "versions/1.so");
    symlink(plugins.join("versions/1.so"), plugins.join("libversioned.so")).expect("made");
    assert_eq!(good_names(&place), ["libdocumented_example.so", "libpenguins.so", "libversioned.so"]);
    set_mode(&plugins.join("versions"), 0o777);
    let error = only_refusal(&place, "libversioned.so");
    assert_says(&std::error::Error::source(&error).expect("a reason").to_string(), &["everybody can write to", "/versions"]);
    refused(error, "file-link-place", &["libversioned.so is a link that leads through a directory that is not safe"]);
}

#[test]
fn a_second_name_of_a_file_is_a_duplicate_that_names_the_first() {
    for hard in [true, false] {
        let error = refusal(|place, path| {
            let library = place.plugins().join("libpenguins.so");
            if hard { std::fs::hard_link(library, path) } else { symlink("libpenguins.so", path) }.expect("made");
        });
        refused(error, "file-duplicate", &["strange.so is the same file as", "/plugins/libpenguins.so, which is taken"]);
    }
}

#[test]
fn files_that_others_can_write_to_are_refused_with_the_mode_and_the_chmod() {
    let place = safe_place();
    let library = place.plugins().join("libpenguins.so");
    for (mode, code, said) in [
        (0o646, "file-world-writable", ["(mode 0646), expected mode 0644", "`chmod o-w /"]),
        (0o4755, "file-set-id", ["has mode 4755, with set-user-ID", "`chmod ug-s /"]),
        (0o2755, "file-set-id", ["has mode 2755, with set-user-ID or set-group-ID", "expected mode 0755"]),
    ] {
        set_mode(&library, mode);
        refused(only_refusal(&place, "libpenguins.so"), code, &said);
    }
}

#[test]
fn what_a_group_can_write_to_is_warned_about_and_refused_in_strict_mode() {
    let place = safe_place();
    let library = place.plugins().join("libpenguins.so");
    set_mode(&library, 0o664);
    let lenient = found(&place);
    let cautions = &lenient[1].cautions;
    assert!(lenient[1].file.is_ok(), "{lenient:?}");
    assert_eq!(cautions.iter().map(FileError::code).collect::<Vec<_>>(), ["file-group-writable"]);
    let strict: Vec<Found> = discover(&place.plugins(), Strictness::Strict).expect("a safe directory").collect();
    assert!(strict[0].file.is_ok(), "{strict:?}");
    let error = strict.into_iter().nth(1).expect("two").file.expect_err("refused");
    refused(error, "file-group-writable", &["(mode 0664), which strict mode refuses, expected mode 0644", "`chmod g-w /"]);

    set_mode(&place.plugins(), 0o775);
    let lenient = discover(&place.plugins(), Strictness::Lenient).expect("a warning");
    let cautions = lenient.directory().cautions();
    assert_eq!(cautions.iter().map(DiscoverError::code).collect::<Vec<_>>(), ["dir-group-writable"]);
    let said = ["/plugins (mode 0775), which strict mode refuses; expected mode 0755; mend it with `chmod g-w /"];
    directory_refusal(&place.plugins(), Strictness::Strict, "dir-group-writable", &said);

    let list = || Host::new(&place).args(["plugin", "list", "--plugins"]).arg(place.plugins());
    let ended = list().end().expect_code(0);
    let cautions = ["WARN", "dir-group-writable", "file-group-writable", "chmod g-w"];
    assert_says(&ended.stderr, &cautions);
    assert_says(&Host::run(&place).end().expect_code(0).stderr, &cautions);
    assert_says(&list().arg("--strict").end().expect_code(2).stderr, &["is open to group ", "which strict mode refuses"]);
    set_mode(&place.plugins(), 0o755);
    assert_says(&list().arg("--strict").end().expect_code(4).stdout, &["libpenguins.so: refused: group "]);
}

#[test]
fn a_directory_that_everybody_can_write_to_is_refused_and_so_is_what_lies_below_one() {
    let place = safe_place();
    for mode in [0o777, 0o1777] {
        set_mode(&place.plugins(), mode);
        let said = [&*format!("/plugins (mode {mode:04o}), expected mode"), "everybody can write to", "`chmod o-w /"];
        directory_refusal(&place.plugins(), Strictness::Lenient, "dir-world-writable", &said);
    }
    set_mode(&place.plugins(), 0o755);
    set_mode(place.root(), 0o777);
    let said = [&*format!("everybody can write to {} (mode 0777)", place.root().display())];
    directory_refusal(&place.plugins(), Strictness::Lenient, "dir-world-writable", &said);
    // As /tmp is.
    set_mode(place.root(), 0o1777);
    assert_eq!(good_names(&place).len(), 2);
}

#[test]
fn what_belongs_to_somebody_else_is_refused_with_both_users() {
    if !is_root("what_belongs_to_somebody_else_is_refused_with_both_users") {
        return;
    }
    let place = safe_place();
    let library = place.plugins().join("libpenguins.so");
    chown(&library, Some(STRANGER), None).expect("root may");
    let said = ["user 65534 owns", "libpenguins.so, expected root or user 0, who runs the host", "`chown 0 /"];
    refused(only_refusal(&place, "libpenguins.so"), "file-owner", &said);
    chown(&library, Some(0), None).expect("root may");
    for directory in [place.plugins(), place.root().to_owned()] {
        chown(&directory, Some(STRANGER), None).expect("root may");
        let said = [&*format!("user 65534 owns {}, expected root or user 0", directory.display())];
        directory_refusal(&place.plugins(), Strictness::Lenient, "dir-owner", &said);
        chown(&directory, Some(0), None).expect("root may");
    }
    // A link on the way can be turned elsewhere by its owner.
    let link = place.path("link");
    symlink(place.plugins(), &link).expect("made");
    std::os::unix::fs::lchown(&link, Some(STRANGER), None).expect("root may");
    directory_refusal(&link, Strictness::Lenient, "dir-owner", &["/link, expected root or user 0"]);
}

#[test]
fn a_file_that_the_hosts_user_cannot_read_is_refused_and_the_others_are_found() {
    let place = safe_place();
    let library = place.plugins().join("libpenguins.so");
    set_mode(&library, 0);
    if !rustix::process::geteuid().is_root() {
        let error = only_refusal(&place, "libpenguins.so");
        assert_says(&std::error::Error::source(&error).expect("a reason").to_string(), &["Permission denied"]);
        refused(error, "file-unreadable", &["cannot open", "that the host's user can read"]);
        return;
    }
    // Root reads everything, so the host is started as somebody else, from a copy that anybody may run.
    let program = place.path("qtasks-host");
    std::fs::copy(env!("CARGO_BIN_EXE_qtasks-host"), &program).expect("copied");
    for path in [place.root(), &*program] {
        set_mode(path, 0o755);
    }
    let mut command = std::process::Command::new(program);
    command.args(["plugin", "list", "--plugins"]).arg(place.plugins()).current_dir(place.root());
    let output = std::os::unix::process::CommandExt::uid(&mut command, STRANGER).output().expect("root may");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_says(&said, &["libpenguins.so: refused: cannot open", "Permission denied", "documented-example 0.1.0"]);
}

#[test]
fn a_file_that_vanishes_after_it_was_listed_is_told_so() {
    let place = safe_place();
    let mut discovered = discover(&place.plugins(), Strictness::Lenient).expect("a safe directory");
    std::fs::remove_file(place.plugins().join("libdocumented_example.so")).expect("removed");
    let gone = discovered.next().expect("it was listed").file.expect_err("it is gone");
    refused(gone, "file-vanished", &["libdocumented_example.so vanished after it was listed"]);
    assert!(discovered.next().expect("two were listed").file.is_ok());
}

#[test]
fn a_directory_that_is_swapped_after_it_was_listed_changes_nothing() {
    let place = safe_place();
    let mut discovered = discover(&place.plugins(), Strictness::Lenient).expect("a safe directory");
    std::fs::rename(place.plugins(), place.path("away")).expect("renamed");
    std::fs::create_dir(place.plugins()).expect("made");
    std::fs::write(place.plugins().join("libdocumented_example.so"), "swapped").expect("written");
    let file = discovered.next().expect("it was listed").file.expect("it is still open");
    let expected = std::fs::metadata(place.path("away").join("libdocumented_example.so")).expect("there").len();
    assert_eq!(file.metadata().expect("open").len(), expected);
}

#[test]
fn names_that_no_terminal_should_see_are_refused_and_escaped() {
    for (name, said) in [
        (&b"line\nERROR forged.so"[..], "/line\\nERROR forged.so is not plain UTF-8 text"),
        (b"\x1b[2J.so", "/\\u{1b}[2J.so is not plain"),
        (b"not-\xff-utf8.so", "/not-\\xff-utf8.so is not plain"),
    ] {
        let place = safe_place();
        let name = OsStr::from_bytes(name);
        std::fs::write(place.plugins().join(name), "text").expect("written");
        let mut refusals = found(&place).into_iter().filter_map(|found| found.file.err());
        refused(refusals.next().expect("one"), "file-name", &[said, "rename the file"]);
        // Neither in text, nor in JSON, nor in the log does any of it come through.
        let list = || Host::new(&place).args(["plugin", "list", "--plugins"]).arg(place.plugins());
        let ended = list().end().expect_code(4);
        assert_eq!(ended.stdout.lines().count(), 3, "{}", ended.stdout);
        assert_says(&ended.stdout, &[said]);
        let ended = list().arg("--json").end().expect_code(4);
        let reports: Vec<serde_json::Value> = serde_json::from_str(&ended.stdout).expect("JSON in spite of the name");
        assert_eq!(reports.iter().filter(|report| report["code"] == "file-name").count(), 1);
        let ended = Host::run(&place).end().expect_code(0);
        assert!(ended.stderr.lines().any(|line| line.contains("file-name") && line.contains(said)), "{}", ended.stderr);
        assert!(!ended.stderr.lines().any(|line| line.starts_with("ERROR forged")), "{}", ended.stderr);
        assert!(!ended.stderr.contains('\x1b'), "{}", ended.stderr);
    }
}

#[test]
fn long_names_are_taken_and_too_long_paths_are_told() {
    let place = safe_place();
    let name = format!("{}.so", "x".repeat(252));
    place.copy_as(&place.plugins().join("libpenguins.so"), &name);
    assert!(good_names(&place).contains(&name));
    let error = directory_refusal(Path::new(&"/x".repeat(4000)), Strictness::Lenient, "dir-unreadable", &["cannot list"]);
    assert!(std::error::Error::source(&error).is_some());
    let long = place.root().join("y".repeat(300));
    let error = directory_refusal(&long, Strictness::Lenient, "dir-unreadable", &["cannot list"]);
    assert_says(&std::error::Error::source(&error).expect("a reason").to_string(), &["too long"]);
}

#[test]
fn directories_are_not_entered_however_deep_or_closed_they_are() {
    let place = safe_place();
    let mut deep = place.plugins();
    for _ in 0..50 {
        deep.push("deep");
    }
    std::fs::create_dir_all(&deep).expect("made");
    place.copy_as(&place.plugins().join("libpenguins.so"), deep.join("libdeep.so").to_str().expect("plain"));
    let closed = place.plugins().join("closed");
    std::fs::create_dir(&closed).expect("made");
    set_mode(&closed, 0);
    assert_eq!(good_names(&place), ["libdocumented_example.so", "libpenguins.so"]);
}

#[test]
fn what_editors_leave_behind_is_no_candidate() {
    let place = safe_place();
    for name in [".libpenguins.so", ".libpenguins.so.swp", "libpenguins.so.bak", "libpenguins.so~", "#libpenguins.so#", "4913"] {
        std::fs::write(place.plugins().join(name), "text").expect("written");
    }
    assert_eq!(found(&place).len(), 2);
}

#[test]
fn ten_thousand_entries_are_looked_at_and_no_more() {
    let place = safe_place();
    for number in 2..MAX_ENTRIES {
        std::fs::write(place.plugins().join(format!("{number:05}.txt")), "").expect("written");
    }
    assert_eq!(good_names(&place).len(), 2);
    for number in 0..100 {
        std::fs::write(place.plugins().join(format!("more-{number}.so")), "").expect("written");
    }
    let said = ["has 10001 entries or more, expected at most 10000", "name a directory that holds plugins alone"];
    directory_refusal(&place.plugins(), Strictness::Lenient, "dir-too-many", &said);
}

#[test]
fn ten_thousand_candidates_need_one_descriptor_at_a_time() {
    let place = Place::new();
    for number in 0..MAX_ENTRIES {
        std::fs::write(place.plugins().join(format!("{number:05}.so")), "").expect("written");
    }
    let mut count = 0;
    for found in discover(&place.plugins(), Strictness::Lenient).expect("as many as are looked at") {
        assert!(found.file.is_ok(), "{found:?}");
        count += 1;
    }
    assert_eq!(count, MAX_ENTRIES);
}

#[test]
fn every_way_to_write_a_directory_ends_in_its_absolute_path() {
    let place = safe_place();
    let real = std::fs::canonicalize(place.plugins()).expect("it is there");
    symlink("plugins", place.path("link")).expect("made");
    symlink(&real, place.path("absolute-link")).expect("made");
    for path in ["plugins", "plugins/", "plugins/../plugins/.", "link", "absolute-link", "link/../plugins"] {
        let discovered = discover(&place.path(path), Strictness::Lenient).expect("a safe directory");
        assert_eq!(discovered.directory().path(), real, "{path}");
        assert_eq!(discovered.count(), 2, "{path}");
    }
    // From where the host was started, too.
    for path in [".", "../plugins"] {
        let ended =
            Host::new(&place).current_dir(&real).args(["plugin", "list", "--json", "--plugins", path]).end().expect_code(0);
        assert_says(&ended.stdout, &[&format!("\"path\": \"{}/libpenguins.so\"", real.display())]);
    }
}

#[test]
fn an_empty_name_is_told_to_be_empty() {
    directory_refusal(Path::new(""), Strictness::Lenient, "dir-empty-name", &["is an empty text", "write `.` for the one"]);
    let place = safe_place();
    let settings = place.write("empty.toml", "plugin_dir = ''\n");
    let list = || Host::new(&place).args(["plugin", "list"]);
    for host in [list().set("plugin_dir=''"), list().arg("--config").arg(settings)] {
        assert_says(&host.end().expect_code(2).stderr, &["the plugin directory is an empty text, expected a directory"]);
    }
}

#[test]
fn what_is_no_directory_is_told_with_the_reason() {
    let place = safe_place();
    for (path, reason) in [("plugins/libpenguins.so", "Not a directory"), ("gone", "No such file"), ("loop", "Too many levels")] {
        if path == "loop" {
            symlink("loop", place.path("loop")).expect("made");
        }
        let said = format!("cannot list the plugin directory {}", place.path(path).display());
        let error = directory_refusal(&place.path(path), Strictness::Lenient, "dir-unreadable", &[&said]);
        assert_says(&std::error::Error::source(&error).expect("a reason").to_string(), &[reason]);
    }
}
