//! What the host keeps between two starts, damaged, forged, or shared.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{RAISE, answered, beside_good_ones, good_ones, quarantine, refused, run};
use crate::support::artifacts::library;
use crate::support::host::{Ended, read_until};
use crate::support::{Host, Place, assert_says, c, skipped};

faults! {
    verdict_truncated: "a verdict's file is cut off" => "ignored: probed again";
    verdict_garbage: "a verdict's file is garbage" => "ignored: probed again";
    verdict_of_another_host: "a verdict is of another host version" => "ignored: probed again";
    verdict_world_writable: "a verdict says good, and everybody may write to it" => "ignored with a warning: probed again";
    verdict_of_somebody_else: "a verdict says good, and belongs to another user" => "ignored with a warning: probed again";
    verdict_is_a_link: "a verdict is a symbolic link" => "ignored with a warning: probed again";
    verdict_of_other_bytes: "a verdict's file holds the verdict of other bytes" => "ignored: probed again";
    verdict_endless: "a verdict's file is larger than any verdict" => "ignored with a warning: probed again";
    verdicts_by_the_thousand: "there are more than twenty thousand verdicts" => "the oldest good ones go; what is in quarantine stays there";
    verdicts_under_any_umask: "the host runs with a umask that lets the group write" => "verdicts and the record of culprits are the owner's alone, and hold";
    state_is_a_file: "the state directory cannot be written to" => "nothing is loaded that was not probed; tasks run";
    disk_is_full: "the disk of the state directory is full" => "what is known good runs, nothing is loaded that was not probed";
    disk_is_full_after_a_probe: "the disk of the state directory is full once a probe has begun" => "the library is not loaded, and not in quarantine: probed again when there is room";
    power_cut: "the power is cut while a verdict is written" => "that a library is under probe, or in quarantine, is on the disk before anything more is done";
    disk_is_read_only: "the disk of the state directory is read-only" => "what is known good runs, nothing is loaded that was not probed";
    probing_by_the_dead: "a probe is on record whose host is gone" => "quarantined as `unfinished`";
    probing_by_the_living: "a probe is on record whose host lives" => "probed again";
    hosts_at_once: "several hosts start on one state directory" => "each probes or believes; none is disturbed";
    a_mended_file: "a quarantined file is replaced" => "the new bytes are probed and run";
    lifted_by_hand: "a quarantine is lifted" => "probed again, and back in quarantine if it is no better";
    no_guest_program: "the guest program is another: it ends, it says nothing, it says something else" => "nothing new is loaded, nothing is in quarantine for it";
    host_replaced_while_it_runs: "the host's own file is replaced by another program while it runs" => "probes and processes of plugins go on with the program that runs";
    guest_program_that_prints: "the guest program, or the dynamic linker, prints before there is a library" => "no side effect of the library: it is loaded like any other";
    culprits_garbage: "the record of culprits is garbage" => "left out, the good lines count";
}

/// The verdict of the library in this state directory.
fn verdict(place: &Place, plugin: &str) -> PathBuf {
    let name = plugin.replace('_', "-");
    let files =
        fs::read_dir(place.state().join("verdicts")).expect("there are verdicts").map(|file| file.expect("readable").path());
    let of_plugin = |path: &PathBuf| read(path)["subject"]["plugin"] == *name;
    files.into_iter().find(of_plugin).unwrap_or_else(|| panic!("no verdict of {name}"))
}

fn read(path: &PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn write(path: &PathBuf, verdict: &Value) {
    fs::write(path, verdict.to_string()).expect("the place can be written to");
}

/// A harmful library, whose verdict `damage` turns into something that must not be believed: it is probed once more.
fn not_believed(damage: impl FnOnce(&PathBuf, Value)) -> String {
    let place = beside_good_ones("constructor_segfaults");
    answered(run(&place).with_input(RAISE));
    let path = verdict(&place, "constructor_segfaults");
    let mut forged = read(&path);
    forged["state"] = json!("good");
    forged["quarantined"] = Value::Null;
    damage(&path, forged);
    let ended = answered(run(&place).with_input(RAISE));
    refused(&ended, "constructor_segfaults", "probe-harm", &["SIGSEGV", "(crash)"]);
    assert_eq!(read(&path)["state"], "quarantined", "the verdict is written anew");
    assert_eq!(quarantine(&place).len(), 1);
    ended.stderr
}

fn verdict_truncated() {
    not_believed(|path, verdict| {
        let text = verdict.to_string();
        fs::write(path, &text[..text.len() / 2]).expect("written");
    });
}

fn verdict_garbage() {
    not_believed(|path, _| fs::write(path, [0xff; 100]).expect("written"));
}

fn verdict_of_another_host() {
    not_believed(|path, mut verdict| {
        verdict["host"] = json!("0.0.1 abi 1.0");
        write(path, &verdict);
    });
}

const NOT_OURS: &str = "a verdict that is not this host's own is ignored";

fn verdict_world_writable() {
    let stderr = not_believed(|path, verdict| {
        write(path, &verdict);
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("the file is ours");
    });
    assert_says(&stderr, &[NOT_OURS]);
}

fn verdict_of_somebody_else() {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can give a file away");
    }
    let stderr = not_believed(|path, verdict| {
        write(path, &verdict);
        std::os::unix::fs::chown(path, Some(65534), None).expect("root may");
    });
    assert_says(&stderr, &[NOT_OURS]);
}

fn verdict_is_a_link() {
    let stderr = not_believed(|path, verdict| {
        let elsewhere = path.with_extension("elsewhere");
        write(&elsewhere, &verdict);
        fs::remove_file(path).expect("the file is ours");
        std::os::unix::fs::symlink(elsewhere, path).expect("made");
    });
    assert_says(&stderr, &[NOT_OURS]);
}

fn verdict_of_other_bytes() {
    not_believed(|path, mut verdict| {
        let digest = verdict["subject"]["digest"].as_str().expect("a text").to_owned();
        let other = if digest.starts_with('0') { "1" } else { "0" };
        verdict["subject"]["digest"] = json!(other.to_owned() + &digest[1..]);
        write(path, &verdict);
    });
}

fn verdict_endless() {
    let stderr = not_believed(|path, verdict| {
        fs::write(path, verdict.to_string() + &" ".repeat(1 << 20)).expect("written");
    });
    assert_says(&stderr, &[NOT_OURS]);
}

fn verdicts_under_any_umask() {
    for umask in ["002", "000"] {
        let place = Place::new();
        place.copy("documented_example");
        place.copy("scripted");
        place.copy("constructor_segfaults");
        let start = || {
            let host = Host::shell(&place, &format!("umask {umask}; exec \"$0\" \"$@\""));
            answered(
                host.arg("run").arg("--plugins").arg(place.plugins()).arg("--state-dir").arg(place.state()).with_input(RAISE),
            )
        };
        refused(&start(), "constructor_segfaults", "probe-harm", &["SIGSEGV"]);
        let mode = fs::metadata(verdict(&place, "constructor_segfaults")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let culprits = fs::metadata(place.state().join("culprits.jsonl")).expect("there").permissions().mode();
        assert_eq!(culprits & 0o777, 0o600);
        let second = start();
        refused(&second, "constructor_segfaults", "quarantined", &["SIGSEGV"]);
        assert!(!second.stderr.contains(NOT_OURS), "{}", second.stderr);
    }
}

fn verdicts_by_the_thousand() {
    let place = beside_good_ones("constructor_segfaults");
    answered(run(&place).with_input(RAISE));
    let good = read(&verdict(&place, "documented_example"));
    let directory = place.state().join("verdicts");
    for number in 0..20_000 {
        write(&directory.join(format!("{number:064x}.json")), &good);
    }
    place.copy("scripted_b");
    let ended = answered(run(&place).with_input(RAISE));
    refused(&ended, "constructor_segfaults", "quarantined", &["SIGSEGV"]);
    let left = fs::read_dir(&directory).expect("it is there").count();
    assert!((10_000..=20_000).contains(&left), "{left} verdicts are left");
    assert_eq!(read(&verdict(&place, "scripted_b"))["state"], "good", "the new one is among them");
    assert_eq!(quarantine(&place).len(), 1);
}

fn state_is_a_file() {
    let place = Place::new();
    place.copy("documented_example");
    place.write("state", "not a directory");
    let ended = Host::run(&place).with_input("{\"task\": \"nobodys\"}\n").expect_code(1);
    let words = ["it could not be probed, so it is not loaded: cannot write the verdict ", "make the state directory writable"];
    refused(&ended, "documented_example", "probe-failed", &words);
    assert_says(
        &ended.stderr,
        &[
            "a plugin that ends this process will not be named, since its state directory cannot be used: ",
            "1 task: 0 success, 1 error",
        ],
    );
    // Nobody can tell, which is not the same as nothing.
    let list = Host::new(&place).args(["plugin", "quarantine", "list", "--state-dir"]).arg(place.state()).end();
    assert_says(&list.expect_code(70).stderr, &["cannot list the verdicts in ", "Not a directory"]);
}

/// A library that is new cannot have its probe noted.
fn disk_that_takes_nothing(mark: &str, reason: &str) {
    let place = beside_good_ones("fallback");
    let shim = place.path("full_disk.so");
    if !c::compile("full_disk", &shim, &[]) {
        return;
    }
    let start = || run(&place).env("LD_PRELOAD", &shim).env(mark, place.path("mark"));
    place.write("mark", "");
    let ended = answered(start().with_input(RAISE));
    let verdict = format!("cannot write the verdict {}", place.state().join("verdicts").display());
    let words = ["it could not be probed, so it is not loaded", &verdict, reason, "make the state directory writable"];
    refused(&ended, "fallback", "probe-failed", &words);
    let files = fs::read_dir(place.state().join("verdicts")).expect("there are verdicts");
    let names: Vec<_> = files.map(|file| file.expect("readable").file_name().into_string().expect("plain")).collect();
    assert!(names.len() == 2 && names.iter().all(|name| name.ends_with(".json")), "{names:?}");
    fs::remove_file(place.path("mark")).expect("our own mark");
    assert!(!answered(start().with_input(RAISE)).stderr.contains("plugin refused"), "there is room again");
}

fn disk_is_full() {
    disk_that_takes_nothing("QTASKS_TEST_FULL", "No space left on device");
}

/// The guest fills the disk before it begins, and after its probe was noted.
fn disk_is_full_after_a_probe() {
    let place = good_ones();
    let shim = place.path("full_disk.so");
    if !c::compile("full_disk", &shim, &[]) {
        return;
    }
    place.copy("fallback");
    let (verdicts, mark) = (place.state().join("verdicts"), place.path("mark"));
    let noted = format!("grep -qs probing {}/*.json", verdicts.display());
    let host = env!("CARGO_BIN_EXE_qtasks-host");
    let script = format!("#!/bin/sh\nuntil {noted}; do :; done\n: >{}\nexec {host} \"$@\"\n", mark.display());
    let program = place.write("guest", script);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let filled = run(&place).arg("--guest-program").arg(&program).env("LD_PRELOAD", &shim).env("QTASKS_TEST_FULL", &mark);
    let ended = answered(filled.with_input(RAISE));
    refused(&ended, "fallback", "probe-failed", &["cannot write the verdict ", "No space left on device"]);
    let ended = answered(run(&place).with_input(RAISE));
    assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
    assert!(quarantine(&place).is_empty());
}

/// Nobody cuts the power here; it is looked at what would be there if somebody did.
fn power_cut() {
    let place = beside_good_ones("constructor_segfaults");
    let shim = place.path("disk_order.so");
    if !c::compile("disk_order", &shim, &[]) {
        return;
    }
    let order = place.path("order");
    let ended = answered(run(&place).env("LD_PRELOAD", &shim).env("QTASKS_TEST_ORDER", &order).with_input(RAISE));
    refused(&ended, "constructor_segfaults", "probe-harm", &["SIGSEGV"]);
    let order = fs::read_to_string(order).expect("verdicts were written");
    let verdicts = place.state().join("verdicts");
    let done: Vec<(&str, &Path)> =
        order.lines().map(|line| line.split_once(' ').expect("two words")).map(|(what, path)| (what, Path::new(path))).collect();
    let [probing, quarantined] = done.as_chunks::<3>().0 else { panic!("two were written: {done:?}") };
    for [(first, written), (second, renamed), (third, directory)] in [probing, quarantined] {
        assert_eq!([*first, *second, *third], ["sync", "rename", "sync"]);
        assert!(written == renamed && written.starts_with(&verdicts) && *directory == verdicts, "{done:?}");
    }
}

fn disk_is_read_only() {
    disk_that_takes_nothing("QTASKS_TEST_READ_ONLY", "Read-only file system");
}

/// What `proc(5)` says of this process, which lives.
fn this_process() -> Value {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux tells it");
    let fields = stat.rsplit_once(')').expect("the second field is in parentheses").1;
    let started: u64 = fields.split_whitespace().nth(19).expect("the 22nd field").parse().expect("a number");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux tells it");
    json!({"pid": std::process::id(), "started": started, "boot": boot.trim()})
}

/// A good library whose probe is on record as being held by `process`.
fn probing(process: &Value) -> Place {
    let place = good_ones();
    let path = verdict(&place, "documented_example");
    let mut record = read(&path);
    record["state"] = json!("probing");
    record["process"] = process.clone();
    write(&path, &record);
    place
}

fn probing_by_the_dead() {
    let mut process = this_process();
    // The number is somebody's, the life is not.
    process["started"] = json!(1);
    let place = probing(&process);
    let ended = run(&place).with_input(RAISE).expect_code(1);
    let words = ["a probe of it began and never ended: the host or the machine went down", "(unfinished)"];
    refused(&ended, "documented_example", "quarantined", &words);
    assert_eq!(ended.result()["error"]["message"], "sea is frozen");
    assert_eq!(quarantine(&place)[0]["kind"], "unfinished");
}

fn probing_by_the_living() {
    let place = probing(&this_process());
    assert!(quarantine(&place).is_empty());
    answered(run(&place).with_input(RAISE));
    assert_eq!(read(&verdict(&place, "documented_example"))["state"], "good");
}

fn hosts_at_once() {
    let place = Place::new();
    for plugin in ["documented_example", "scripted", "constructor_segfaults"] {
        place.copy(plugin);
    }
    std::thread::scope(|scope| {
        let hosts: Vec<_> = (0..4).map(|_| scope.spawn(|| answered(run(&place).with_input(RAISE)))).collect();
        for host in hosts {
            let ended = host.join().expect("the host answers");
            let line = ended.stderr.lines().find(|line| line.contains("libconstructor_segfaults.so")).expect("a refusal");
            assert_says(line, &["SIGSEGV", "(crash)"]);
        }
    });
    assert_eq!(quarantine(&place).len(), 1);
    let files = fs::read_dir(place.state().join("verdicts")).expect("there are verdicts");
    let names: Vec<_> = files.map(|file| file.expect("readable").file_name().into_string().expect("plain")).collect();
    assert!(names.len() == 3 && names.iter().all(|name| name.ends_with(".json")), "{names:?}");
}

fn a_mended_file() {
    let place = beside_good_ones("constructor_segfaults");
    refused(&answered(run(&place).with_input(RAISE)), "constructor_segfaults", "probe-harm", &[]);
    place.copy_as(library("penguins"), "libconstructor_segfaults.so");
    let ended = answered(run(&place).with_input(RAISE));
    assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
}

fn lifted_by_hand() {
    let place = beside_good_ones("constructor_segfaults");
    let empty = Host::new(&place).args(["plugin", "quarantine", "list", "--state-dir"]).arg(place.state());
    assert_eq!(empty.end().expect_code(0).stdout, "nothing is in quarantine\n");
    answered(run(&place).with_input(RAISE));
    let command = |words: &[&str]| {
        let host = Host::new(&place).args(["plugin", "quarantine"]).args(words);
        host.arg("--state-dir").arg(place.state()).end()
    };
    let list = command(&["list"]).expect_code(0).stdout;
    assert_says(&list, &["constructor-segfaults ", " crash: its process was killed by signal 11 (SIGSEGV)", "seen 1 time(s), /"]);
    assert_says(&list, &["/plugins/libconstructor_segfaults.so)\n"]);
    // A plugin writes some of the evidence, which no terminal obeys.
    let path = verdict(&place, "constructor_segfaults");
    let mut sung = read(&path);
    sung["quarantined"]["evidence"] = json!("\u{1b}[31mred");
    write(&path, &sung);
    let list = command(&["list"]).expect_code(0).stdout;
    assert_says(&list, &[" crash: \\u{1b}[31mred (seen"]);
    let looked = Host::new(&place).args(["plugin", "list", "--plugins"]).arg(place.plugins());
    let looked = looked.arg("--state-dir").arg(place.state()).end().expect_code(4);
    assert_says(&looked.stdout, &["libconstructor_segfaults.so: refused: it is in quarantine: "]);
    assert!(!looked.stdout.contains('\u{1b}'), "{}", looked.stdout);
    // What is disabled is not loaded, so nothing refuses it.
    let looked = Host::new(&place).args(["plugin", "list", "--plugins"]).arg(place.plugins());
    let looked = looked.arg("--state-dir").arg(place.state()).set("plugins.constructor-segfaults.enabled=false").end();
    assert_says(&looked.expect_code(0).stdout, &["constructor-segfaults 0.1.0 (disabled)"]);
    assert_says(
        &command(&["clear", "nobody"]).expect_code(2).stderr,
        &["nothing in quarantine is called \"nobody\" in /", "--state-dir"],
    );
    assert_says(&command(&["clear", "constructor-segfaults"]).expect_code(0).stdout, &["lifted: constructor-segfaults "]);
    assert!(quarantine(&place).is_empty());
    let lifting = ["SIGSEGV", "or lift it with `qtasks-host plugin quarantine clear constructor-segfaults`"];
    refused(&answered(run(&place).with_input(RAISE)), "constructor_segfaults", "probe-harm", &lifting);
    assert_says(&command(&["clear", "--all"]).expect_code(0).stdout, &["lifted: constructor-segfaults "]);
    assert!(quarantine(&place).is_empty());
    assert_eq!(command(&["clear", "--all"]).expect_code(0).stdout, "nothing is in quarantine\n");
}

fn culprits_garbage() {
    let place = good_ones();
    let digest = read(&verdict(&place, "documented_example"))["subject"]["digest"].clone();
    let record = json!({"plugin": "documented-example", "path": "/gone.so", "digest": digest, "cause": "signal 11"});
    fs::write(place.state().join("culprits.jsonl"), format!("not json\n{record}\n{{\"plugin\":")).expect("written");
    let ended = run(&place).with_input(RAISE).expect_code(1);
    refused(&ended, "documented_example", "quarantined", &["the host ended (signal 11)", "(killed-the-host)"]);
    assert_eq!(ended.result()["error"]["message"], "sea is frozen");
}

/// A library is not to blame for what another program does that was never given it.
fn no_guest_program() {
    let place = beside_good_ones("fallback");
    for (script, said) in [
        ("exit 0", "it ended with exit(0) before it asked for its library"),
        (
            "echo 'no such option' >&2; exit 2",
            "it ended with exit(2) before it asked for its library; its last words: no such option",
        ),
        ("exec 0>&-; exec sleep 600", "it closed its standard input before it asked for its library"),
        ("exec sleep 600", "it did not ask for its library within 1 s"),
        ("echo hello >&0; exec sleep 600", "it wrote something else than the first words of a guest"),
        (
            // Length, kind and id of a frame, and a version.
            "printf '\\016\\0\\0\\0\\t\\0\\0\\0\\0\\0\\0\\0\\0' >&0; printf 9.9.9 >&0; exec sleep 600",
            "it is \"9.9.9\", this host is",
        ),
    ] {
        let program = place.write("guest", format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        let host = run(&place).arg("--guest-program").arg(&program).args(["--probe-deadline", "1"]);
        let ended = answered(host.with_input(RAISE));
        refused(&ended, "fallback", "probe-failed", &[said, "name the qtasks-host binary with `guest_program`"]);
    }
    assert!(quarantine(&place).is_empty());
    assert!(
        answered(run(&place).with_input(RAISE)).stderr.lines().all(|line| !line.contains("refused")),
        "probed by the right one"
    );
}

/// As an upgrade does it. The plugin's process crashes at the first error, and is started again for the second.
fn host_replaced_while_it_runs() {
    let place = beside_good_ones("misbehaves_in_handler");
    let host = Host::shell(&place, "cp \"$0\" host && exec ./host \"$@\"").arg("run").arg("--plugins").arg(place.plugins());
    let host = host.arg("--state-dir").arg(place.state());
    let set = ["isolation=process", "config.how=segfault", "answers.task_executor_run_task_trigger_error=first", "priority=1"];
    let set = set.map(|set| format!("plugins.misbehaves-in-handler.{set}"));
    let mut child = set.iter().fold(host, |host, set| host.set(set)).spawn();
    let (stdin, stdout) = (child.stdin.as_mut().expect("a pipe"), child.stdout.as_mut().expect("a pipe"));
    stdin.write_all(RAISE.as_bytes()).expect("it reads");
    assert_says(&read_until(stdout, "returning"), &["SIGSEGV", "\"returning\":123"]);
    fs::rename(place.write("another", "#!/bin/sh\nexit 3\n"), place.path("host")).expect("our own files");
    stdin.write_all(RAISE.replace("sea is frozen", "be good").as_bytes()).expect("it reads");
    let ended = Ended::of(child);
    assert_eq!(ended.result()["returning"], 456, "{}", ended.stderr);
}

/// As the dynamic linker does in each process while `/etc/ld.so.preload` names what is not there.
fn guest_program_that_prints() {
    let place = beside_good_ones("fallback");
    let script =
        format!("#!/bin/sh\necho of all programs\necho of all programs >&2\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_qtasks-host"));
    let program = place.write("guest", script);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let ended = answered(run(&place).arg("--guest-program").arg(&program).with_input(RAISE));
    assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
    assert!(quarantine(&place).is_empty());
}
