//! Lock files and signatures: what they let in, what they keep out, what the operator reads, and what an override leaves to see.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use minisign::KeyPair;
use qtasks_host::plugin::{LoadState, TrustState};
use serde_json::{Value, json};

use crate::support::host::Ended;
use crate::support::{Host, Place, TestApp, assert_says};

fn lock(place: &Place) -> Host {
    Host::new(place).args(["plugin", "lock", "--plugins"]).arg(place.plugins())
}

fn list(place: &Place) -> Host {
    Host::new(place).args(["plugin", "list", "--plugins"]).arg(place.plugins())
}

/// A place with two plugins.
fn place() -> Place {
    let place = Place::new();
    for plugin in ["documented_example", "penguins"] {
        place.copy(plugin);
    }
    place
}

fn lock_text(place: &Place) -> String {
    std::fs::read_to_string(place.plugins().join("plugins.lock")).expect("a lock file")
}

/// Other bytes that are the same plugin: nobody reads what comes after the sections.
fn change(library: &Path) {
    let mut bytes = std::fs::read(library).expect("readable");
    bytes.push(0);
    std::fs::write(library, bytes).expect("writable");
}

fn key() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().expect("a key")
}

fn sign(key: &KeyPair, library: &Path) {
    let bytes = std::fs::read(library).expect("readable");
    let signature = minisign::sign(Some(&key.pk), &key.sk, bytes.as_slice(), None, None).expect("signed");
    std::fs::write(signature_of(library), signature.into_string()).expect("written");
}

fn signature_of(library: &Path) -> std::path::PathBuf {
    library.with_extension("so.minisig")
}

/// The number of a key, as minisign prints it.
fn id(key: &KeyPair) -> String {
    key.pk.keynum().iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

#[test]
fn lock_writes_what_lies_there_sorted_and_says_what_changed() {
    let place = place();
    place.copy("no_manifest");
    std::fs::write(place.plugins().join("text.so"), "text").expect("written");
    let ended = lock(&place).end().expect_code(0);
    assert_says(
        &ended.stdout,
        &[
            "left out: libno_manifest.so: refused: it has no plugin manifest",
            "left out: text.so: refused: ",
            "+ documented-example 0.1.0 with SHA-256 ",
            "+ penguins 0.1.0 with SHA-256 ",
            "wrote /",
            "/plugins/plugins.lock, plugins: 2\n",
        ],
    );
    let written: toml::Table = toml::from_str(&lock_text(&place)).expect("TOML");
    let names: Vec<_> = written["plugin"].as_array().expect("a list").iter().map(|entry| entry["name"].as_str()).collect();
    assert_eq!(names, [Some("documented-example"), Some("penguins")]);
    let leftovers = std::fs::read_dir(place.plugins()).expect("listed").flatten();
    assert!(!leftovers.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".tmp")));

    let before = lock_text(&place);
    assert_says(&lock(&place).end().expect_code(0).stdout, &["is up to date, plugins: 2"]);
    assert_eq!(lock_text(&place), before);

    std::fs::remove_file(place.plugins().join("libdocumented_example.so")).expect("removed");
    change(&place.plugins().join("libpenguins.so"));
    let ended = lock(&place).end().expect_code(0);
    assert_says(
        &ended.stdout,
        &["- documented-example 0.1.0 with", "- penguins 0.1.0 with", "+ penguins 0.1.0 with", "plugins: 1\n"],
    );
}

#[test]
fn lock_check_writes_nothing_and_says_whether_anything_would_change() {
    let place = place();
    let ended = lock(&place).arg("--check").end().expect_code(4);
    assert_says(
        &ended.stdout,
        &["+ penguins 0.1.0", "plugins.lock would change, plugins: 2", "write it with `qtasks-host plugin lock`"],
    );
    assert!(!place.plugins().join("plugins.lock").exists());
    lock(&place).end().expect_code(0);
    assert_says(&lock(&place).arg("--check").end().expect_code(0).stdout, &["is up to date"]);
    change(&place.plugins().join("libpenguins.so"));
    let before = lock_text(&place);
    lock(&place).arg("--check").end().expect_code(4);
    assert_eq!(lock_text(&place), before);
}

/// Beside the lock file, which only a rename reaches.
fn unfinished(place: &Place) -> Vec<String> {
    let names = std::fs::read_dir(place.plugins()).expect("listed").flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.ends_with(".tmp")).collect()
}

#[test]
fn a_lock_file_that_cannot_be_put_in_its_place_leaves_nothing_beside_it() {
    let place = place();
    std::fs::create_dir_all(place.plugins().join("plugins.lock/full")).expect("made");
    let ended = lock(&place).end();
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert_says(&ended.stderr, &["cannot write the lock file /", "make its directory writable"]);
    assert_eq!(unfinished(&place), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_of_the_same_number_left_is_in_nobodys_way() {
    let place = place();
    let script = "echo half > plugins/.plugins.lock.$$.tmp; exec \"$0\" \"$@\"";
    Host::shell(&place, script).args(["plugin", "lock", "--plugins", "plugins"]).end().expect_code(0);
    assert_eq!(unfinished(&place), Vec::<String>::new());
    list(&place).end().expect_code(0);
}

#[test]
fn lock_runs_no_code_of_a_library() {
    let place = Place::new();
    place.copy("constructor_leaves_a_mark");
    let mark = place.path("mark");
    lock(&place).env("QTASKS_TEST_MARK", &mark).end().expect_code(0);
    assert!(!mark.exists());
}

#[tokio::test]
async fn what_is_locked_runs_and_says_so() {
    let app = TestApp::with(&["documented_example", "penguins"]);
    lock(&app.place).end().expect_code(0);
    let app = app.start().await;
    let report = app.file("libpenguins.so");
    assert_eq!((report.state, report.trust), (LoadState::Running, Some(TrustState::Locked)));
    assert_says(&list(&app.place).end().expect_code(0).stdout, &["penguins 0.1.0 (locked): task "]);
}

#[tokio::test]
async fn without_lock_and_keys_nothing_is_checked_and_that_is_shown() {
    let app = TestApp::with(&["penguins"]).start().await;
    assert_eq!(app.file("libpenguins.so").trust, Some(TrustState::Unchecked));
}

#[tokio::test]
async fn other_bytes_than_the_locked_ones_are_refused_with_both_digests_and_the_command() {
    let app = TestApp::with(&["documented_example", "penguins"]);
    lock(&app.place).end().expect_code(0);
    let locked: toml::Table = toml::from_str(&lock_text(&app.place)).expect("TOML");
    let expected = locked["plugin"][1]["sha256"].as_str().expect("a digest").to_owned();
    change(&app.place.plugins().join("libpenguins.so"));
    let app = app.start().await;
    assert_eq!(app.file("libdocumented_example.so").state, LoadState::Running);
    let reason = app.refusal("libpenguins.so", "lock-mismatch");
    let command = format!("accept it with `qtasks-host plugin lock --plugins {}`", app.place.plugins().display());
    assert_says(
        &reason,
        &["penguins 0.1.0 with SHA-256 ", "is not in the lock file /", "plugins.lock, expected penguins 0.1.0", &command],
    );
    assert_says(&reason, &[&format!("expected penguins 0.1.0 with SHA-256 {expected};")]);
    assert!(!reason.starts_with(&format!("penguins 0.1.0 with SHA-256 {expected}")), "{reason}");
}

#[tokio::test]
async fn a_plugin_that_the_lock_does_not_know_is_refused_and_never_probed() {
    let app = TestApp::with(&["documented_example"]);
    lock(&app.place).end().expect_code(0);
    app.place.copy("constructor_leaves_a_mark");
    let mark = app.place.path("mark");
    let ended = Host::run(&app.place).env("QTASKS_TEST_MARK", &mark).end().expect_code(0);
    assert_says(&ended.stderr, &["lock-unknown", "constructor-leaves-a-mark 0.1.0", "it knows none of this name"]);
    assert!(!mark.exists(), "code of a library that nobody vouches for was run");
}

#[tokio::test]
async fn another_version_than_the_locked_one_is_refused_with_both() {
    let app = TestApp::with(&["penguins"]);
    lock(&app.place).end().expect_code(0);
    let text = lock_text(&app.place).replace("0.1.0", "0.0.9");
    std::fs::write(app.place.plugins().join("plugins.lock"), text).expect("written");
    let reason = app.start().await.refusal("libpenguins.so", "lock-mismatch");
    assert_says(&reason, &["penguins 0.1.0 with SHA-256", "expected penguins 0.0.9 with SHA-256"]);
}

#[tokio::test]
async fn a_damaged_lock_refuses_everything_with_line_and_reason() {
    let digest = "0".repeat(64);
    let too_large = format!("plugin = []\n#{}", "x".repeat(5 << 20));
    for (text, code, said) in [
        ("", "lock-damaged", "line 1: missing field `plugin`"),
        ("[[plugin]]\nname = \"a\"\nversion = ", "lock-damaged", "line 3: "),
        (
            "[[plugin]]\nname = \"a\"\nversion = \"1\"\nsha256 = \"12\"\n",
            "lock-damaged",
            "is no SHA-256 digest, expected 64 hexadecimal",
        ),
        (
            &format!("[[plugin]]\nname = \"a\"\nversion = \"1\"\nsha256 = \"{digest}\"\nsha512 = \"1\"\n"),
            "lock-damaged",
            "line 5: unknown field `sha512`",
        ),
        ("\u{0}", "lock-damaged", "line 1: "),
        // What a stranger wrote into it is obeyed by no terminal.
        ("\"\\u001b[31m\" = 1\n", "lock-damaged", "unknown field `\\u{1b}[31m`"),
        (&too_large, "lock-damaged", "more than 4194304 bytes"),
    ] {
        let app = TestApp::with(&["documented_example", "penguins"]);
        std::fs::write(app.place.plugins().join("plugins.lock"), text).expect("written");
        let app = app.start().await;
        for file in ["libdocumented_example.so", "libpenguins.so"] {
            let reason = app.refusal(file, code);
            assert_says(
                &reason,
                &["plugins.lock cannot be used", "write it anew with `qtasks-host plugin lock --plugins /", said],
            );
            assert!(!reason.contains('\n'), "{reason:?}");
        }
        // The command heals it, and says that it was damaged.
        let ended = lock(&app.place).end().expect_code(0);
        assert_says(&ended.stdout, &["plugins.lock could not be used: it is damaged", "+ penguins 0.1.0", "plugins: 2"]);
        assert!(!ended.stdout.contains('\u{1b}'), "{}", ended.stdout);
        list(&app.place).end().expect_code(0);
    }
    let app = TestApp::with(&["penguins"]);
    std::fs::write(app.place.plugins().join("plugins.lock"), b"plugin = []\n\n# \xff").expect("written");
    assert_says(&app.start().await.refusal("libpenguins.so", "lock-damaged"), &["line 3: it is not UTF-8 text"]);
}

#[tokio::test]
async fn a_lock_that_others_can_write_to_or_that_is_no_file_refuses_everything() {
    let app = TestApp::with(&["penguins"]);
    lock(&app.place).end().expect_code(0);
    let file = app.place.plugins().join("plugins.lock");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("ours");
    let reason = app.start().await.refusal("libpenguins.so", "lock-unsafe");
    assert_says(&reason, &["plugins.lock cannot be used", "everybody can write to", "`chmod o-w /"]);
    let app = TestApp::with(&["penguins"]);
    app.place.fifo("plugins/plugins.lock");
    assert_says(&app.start().await.refusal("libpenguins.so", "lock-unsafe"), &["is a FIFO, expected a regular file"]);
}

#[tokio::test]
async fn a_lock_file_of_the_settings_must_be_there_and_can_be_anywhere() {
    let place = place();
    let file = place.path("locks.toml");
    let with_file = |host: Host| host.arg("--lock-file").arg(&file);
    let ended = with_file(list(&place)).end().expect_code(4);
    assert_says(&ended.stdout, &["libpenguins.so: refused: the lock file ", "`lock_file` names it, and it is not there"]);
    assert_says(&ended.stdout, &[&format!("--lock-file {}`", file.display())]);
    with_file(lock(&place)).end().expect_code(0);
    assert!(file.exists() && !place.plugins().join("plugins.lock").exists());
    assert_says(&with_file(list(&place)).end().expect_code(0).stdout, &["penguins 0.1.0 (locked)"]);
    with_file(lock(&place)).arg("--check").end().expect_code(0);
    // A bare name is one of the directory that the host was started in.
    let ended = list(&place).args(["--lock-file", "locks.toml"]).current_dir(place.root()).end().expect_code(0);
    assert_says(&ended.stdout, &["penguins 0.1.0 (locked)"]);
}

#[tokio::test]
async fn a_good_signature_by_a_trusted_key_lets_a_library_in() {
    let (ours, theirs) = (key(), key());
    let keys = format!("trusted_keys = [\"{}\", \"{}\"]", theirs.pk.to_base64(), ours.pk.to_base64());
    let app = TestApp::with(&["penguins", "documented_example"]).set(keys);
    sign(&ours, &app.place.plugins().join("libpenguins.so"));
    sign(&theirs, &app.place.plugins().join("libdocumented_example.so"));
    let app = app.start().await;
    for file in ["libpenguins.so", "libdocumented_example.so"] {
        assert_eq!((app.file(file).state, app.file(file).trust), (LoadState::Running, Some(TrustState::Signed)));
    }
    lock(&app.place).end().expect_code(0);
    let both = list(&app.place).arg("--trusted-key").arg(ours.pk.to_base64()).arg("--trusted-key").arg(theirs.pk.to_base64());
    assert_says(&both.end().expect_code(0).stdout, &["penguins 0.1.0 (locked-and-signed): "]);
}

/// The number of a key is random, and nobody keeps it unique.
#[tokio::test]
async fn of_two_trusted_keys_with_one_number_either_will_do() {
    let (ours, theirs) = (key(), key());
    // Two bytes for the algorithm and eight for the number are the first 14 digits.
    let other = format!("{}{}", &ours.pk.to_base64()[..14], &theirs.pk.to_base64()[14..]);
    let app = TestApp::with(&["penguins"]).set(format!("trusted_keys = [\"{other}\", \"{}\"]", ours.pk.to_base64()));
    sign(&ours, &app.place.plugins().join("libpenguins.so"));
    assert_eq!(app.start().await.file("libpenguins.so").trust, Some(TrustState::Signed));
}

/// Starts with one library whose signature `make` makes, under the trust in `key`.
async fn signature_refusal(key: &KeyPair, code: &str, make: impl FnOnce(&Path)) -> String {
    let app = TestApp::with(&["penguins"]).set(format!("trusted_keys = [\"{}\"]", key.pk.to_base64()));
    make(&app.place.plugins().join("libpenguins.so"));
    app.start().await.refusal("libpenguins.so", code)
}

#[tokio::test]
async fn signatures_that_do_not_hold_are_told_apart() {
    let (ours, theirs) = (key(), key());
    let reason = signature_refusal(&ours, "signature-missing", |_| ()).await;
    assert_says(
        &reason,
        &["it is not signed: there is no /", "/libpenguins.so.minisig", "sign the library with `minisign -Sm FILE`"],
    );

    let reason = signature_refusal(&ours, "signature-unknown-key", |library| sign(&theirs, library)).await;
    assert_says(
        &reason,
        &[&format!("by the unknown key {}, expected {};", id(&theirs), id(&ours)), "add the key to `trusted_keys`"],
    );

    let changed = |library: &Path| {
        sign(&ours, library);
        change(library);
    };
    let reason = signature_refusal(&ours, "signature-wrong", changed).await;
    assert_says(&reason, &[&format!("by key {} is wrong", id(&ours)), "changed after signing"]);

    let tampered = |library: &Path| {
        sign(&ours, library);
        let signature = signature_of(library);
        let text = std::fs::read_to_string(&signature)
            .expect("readable")
            .replace("trusted comment: timestamp", "trusted comment: Timestamp");
        std::fs::write(signature, text).expect("written");
    };
    signature_refusal(&ours, "signature-wrong", tampered).await;

    for (text, said) in [
        (&b""[..], "it is not what minisign writes"),
        (b"untrusted comment: x\nRWQf\ntrusted comment: y\nAAAA\n", "it is not what minisign writes"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (&[b'x'; 8193], "it has more than 8192 bytes"),
    ] {
        let write = |library: &Path| std::fs::write(signature_of(library), text).expect("written");
        let reason = signature_refusal(&ours, "signature-malformed", write).await;
        assert_says(&reason, &["/libpenguins.so.minisig is malformed", said, "sign the library again"]);
    }
}

#[tokio::test]
async fn a_signature_that_is_no_file_is_refused_and_nobody_waits_for_it() {
    let app = TestApp::with(&["penguins"]).set(format!("trusted_keys = [\"{}\"]", key().pk.to_base64()));
    app.place.fifo("plugins/libpenguins.so.minisig");
    let reason = app.start().await.refusal("libpenguins.so", "signature-unreadable");
    assert_says(&reason, &["its signature cannot be used", "libpenguins.so.minisig is a FIFO"]);
}

#[test]
fn a_signature_of_the_old_kind_is_told_as_such() {
    // Of minisign's own documentation: over the file "test" itself, and not over its hash.
    let place = place();
    let text = "untrusted comment: signature from minisign secret key\nRWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\ntrusted comment: timestamp:1555779966\tfile:test\nQtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";
    std::fs::write(place.plugins().join("libpenguins.so.minisig"), text).expect("written");
    let trusting = list(&place).arg("--trusted-key").arg("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3");
    assert_says(
        &trusting.end().expect_code(4).stdout,
        &["libpenguins.so.minisig is malformed: it is of the old kind, over the file"],
    );
}

#[test]
fn keys_that_are_none_and_no_keys_are_wrong_settings() {
    let place = place();
    for (setting, said) in [
        ("trusted_keys=[\"RWabc\"]", "\"RWabc\" is no minisign public key, expected base64 text"),
        ("trusted_keys=[]", "`trusted_keys` is empty; expected at least one key, or leave it out"),
        ("plugins.penguins.trust=\"always\"", "unknown variant `always`, expected `enforce` or `override`"),
    ] {
        assert_says(&list(&place).set(setting).end().expect_code(2).stderr, &[said]);
    }
}

#[test]
fn a_lock_file_that_is_no_file_name_is_told_so() {
    let place = place();
    for found in ["", ".."] {
        let ended = list(&place).set(&format!("lock_file=\"{found}\"")).end().expect_code(4);
        assert_says(&ended.stdout, &["cannot be used", &format!("`lock_file` is {found:?}, expected the path of a file")]);
    }
}

/// Whatever the umask is.
fn close_to_groups(place: &Place) {
    for entry in std::fs::read_dir(place.plugins()).expect("listed").flatten() {
        std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o644)).expect("ours");
    }
}

#[test]
fn a_lock_file_that_a_group_can_write_to_is_warned_about_and_refused_in_strict_mode() {
    let place = place();
    close_to_groups(&place);
    lock(&place).end().expect_code(0);
    std::fs::set_permissions(place.plugins().join("plugins.lock"), std::fs::Permissions::from_mode(0o664)).expect("ours");
    let ended = list(&place).end().expect_code(0);
    assert_says(&ended.stderr, &["WARN", "lock file: group ", "plugins.lock (mode 0664)"]);
    let ended = list(&place).arg("--strict").end().expect_code(4);
    assert_says(&ended.stdout, &["plugins.lock cannot be used", "which strict mode refuses"]);
}

#[test]
fn so_is_one_whose_directory_a_group_can_write_to() {
    let place = place();
    close_to_groups(&place);
    let directory = place.path("locks");
    std::fs::create_dir(&directory).expect("made");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o775)).expect("ours");
    let with_file = |host: Host| host.arg("--lock-file").arg(directory.join("plugins.lock"));
    with_file(lock(&place)).end().expect_code(0);
    let ended = with_file(list(&place)).end().expect_code(0);
    assert_says(&ended.stderr, &["WARN", "lock file /", "/locks (mode 0775)"]);
    let ended = with_file(list(&place)).arg("--strict").end().expect_code(4);
    assert_says(&ended.stdout, &["plugins.lock cannot be used", "/locks (mode 0775), which strict mode refuses"]);
}

const OVERRIDE: &str = "plugins.penguins.trust=\"override\"";

/// What `plugin list --json` says of the penguins.
fn listed(ended: &Ended) -> Value {
    let reports: Vec<Value> = serde_json::from_str(&ended.stdout).expect("JSON");
    let penguins =
        reports.into_iter().find(|report| report["path"].as_str().is_some_and(|path| path.ends_with("libpenguins.so")));
    penguins.expect("a report")
}

#[test]
fn an_override_lets_in_what_the_lock_refuses_and_is_seen_for_ever_after() {
    let place = place();
    lock(&place).end().expect_code(0);
    change(&place.plugins().join("libpenguins.so"));
    list(&place).end().expect_code(4);
    for _ in 0..2 {
        let ended = Host::run(&place).set(OVERRIDE).end().expect_code(0);
        let said =
            ["WARN", "[plugins.penguins] trust = \"override\": it would be refused: penguins 0.1.0", "is not in the lock file"];
        assert_says(&ended.stderr, &said);
        assert!(!ended.stderr.contains("plugin refused"), "{}", ended.stderr);
        let ended = list(&place).set(OVERRIDE).end().expect_code(0);
        assert_says(&ended.stdout, &["penguins 0.1.0 (trust overridden): task ", "documented-example 0.1.0 (locked): "]);
        let report = listed(&list(&place).set(OVERRIDE).arg("--json").end().expect_code(0));
        assert_eq!((&report["trust"], &report["state"]), (&json!("overridden"), &json!("found")));
    }
    // A lock that holds the library does not hide the override: other bytes would be let in as well.
    lock(&place).end().expect_code(0);
    let ended = list(&place).set(OVERRIDE).arg("--json").end().expect_code(0);
    assert_eq!(listed(&ended)["trust"], json!("overridden"));
    assert_says(&ended.stderr, &["nothing would refuse it; remove the override"]);
    assert_eq!(listed(&list(&place).arg("--json").end().expect_code(0))["trust"], json!("locked"));
}

#[test]
fn an_override_lets_in_what_has_no_signature_and_nothing_else() {
    let place = place();
    let signed = |host: Host| host.arg("--trusted-key").arg(key().pk.to_base64());
    let ended = signed(list(&place)).set(OVERRIDE).arg("--json").end().expect_code(4);
    assert_eq!(listed(&ended)["trust"], json!("overridden"));
    let ended = signed(list(&place)).set(OVERRIDE).end().expect_code(4);
    assert_says(&ended.stdout, &["libdocumented_example.so: refused: it is not signed"]);
    // The static check is no question of trust.
    std::fs::write(place.plugins().join("libpenguins.so"), "text").expect("written");
    assert_says(&signed(list(&place)).set(OVERRIDE).end().expect_code(4).stdout, &["libpenguins.so: refused: "]);
}
