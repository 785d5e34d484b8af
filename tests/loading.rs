//! What can be wrong with a file in the plugin directory, and what the operator reads then. One bad file never stops the others.

use std::path::Path;

use qtasks_host::StartError;
use qtasks_host::plugin::LoadState;
use serde_json::json;

use crate::support::app::Started;
use crate::support::artifacts::library;
use crate::support::{Host, Place, TestApp, assert_says, returning, versioned};

async fn only(plugin: &str) -> Started {
    TestApp::with(&[plugin]).start().await
}

#[tokio::test]
async fn a_good_plugin_runs_and_its_manifest_is_in_the_report() {
    let app = only("documented_example").await;
    let report = app.file("libdocumented_example.so");
    assert_eq!((report.state, report.reason()), (LoadState::Running, None));
    let manifest = report.manifest.as_ref().expect("a manifest");
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("documented-example", "0.1.0"));
    assert_says(&manifest.description, &["answers 123"]);
}

#[tokio::test]
async fn a_library_without_manifest_is_told_what_a_plugin_is() {
    let reason = only("no_manifest").await.refusal("libno_manifest.so", "manifest");
    assert_says(&reason, &["no plugin manifest (ELF note QTasks)", "export_plugin!"]);
}

#[tokio::test]
async fn a_manifest_without_root_symbol_is_told_the_symbol() {
    let reason = only("no_entry_point").await.refusal("libno_entry_point.so", "elf-no-root");
    assert_says(&reason, &["does not export qtasks_plugin_root_1", "use export_plugin!"]);
}

#[tokio::test]
async fn another_abi_is_told_both_numbers_and_the_remedy() {
    let reason = only("abi_of_the_future").await.refusal("libabi_of_the_future.so", "abi");
    assert_says(&reason, &["built for ABI 99.0, this host speaks 1.0", "update the host, or rebuild the plugin"]);
}

#[tokio::test]
async fn a_library_that_says_another_manifest_than_its_file_is_refused_with_both() {
    let reason = only("manifest_lies").await.refusal("libmanifest_lies.so", "probe-harm");
    assert_says(&reason, &["another-name", "honest-name", "(lying-manifest)", "replace the file"]);
}

#[tokio::test]
async fn a_panic_in_create_is_told_with_message_and_place() {
    let reason = only("panics_in_create").await.refusal("libpanics_in_create.so", "create");
    assert_says(&reason, &["plugin panics-in-create could not be created: Panic: no creation", "panics_in_create.rs:"]);
}

#[tokio::test]
async fn a_panic_in_start_is_told_with_message_and_place() {
    let reason = only("panics_in_start").await.refusal("libpanics_in_start.so", "start");
    assert_says(&reason, &["plugin panics-in-start did not start: Panic: no start", "panics_in_start.rs:"]);
}

#[tokio::test]
async fn a_plugin_that_refuses_to_be_created_has_its_words_shown() {
    let reason = only("refuses_in_create").await.refusal("librefuses_in_create.so", "create");
    assert_eq!(reason, "plugin refuses-in-create could not be created: Error: not on this machine");
}

#[tokio::test]
async fn of_two_plugins_with_one_name_the_first_runs_and_the_second_names_it() {
    let app = TestApp::with(&["same_name_a", "same_name_b", "scripted"]).start().await;
    assert_eq!(app.file("libsame_name_a.so").state, LoadState::Running);
    let reason = app.refusal("libsame_name_b.so", "name-taken");
    assert_says(&reason, &["the name same-name is taken by", "/plugins/libsame_name_a.so", "keep one of the two"]);
    assert_eq!(returning(&app.raise().await), "1");
}

/// Starts over a directory in which `make` made `strange.so`.
async fn strange(make: impl FnOnce(&Place, &Path)) -> String {
    let app = TestApp::with(&["documented_example", "penguins"]);
    make(&app.place, &app.place.plugins().join("strange.so"));
    let app = app.start().await;
    assert_eq!(app.file("libdocumented_example.so").state, LoadState::Running);
    let report = app.file("strange.so");
    assert_eq!(report.state, LoadState::Refused);
    let reason = report.reason().expect("a reason");
    app.running.stop().await;
    reason
}

#[tokio::test]
async fn a_text_that_is_called_a_library_is_no_elf_file() {
    let text = "# a note to myself: the plugins go here, and this line is longer than an ELF header is\n";
    let reason = strange(|_, path| std::fs::write(path, text).expect("written")).await;
    assert_says(&reason, &["not a 64-bit ELF library", "it is text, a plugin is an ELF library"]);
    let reason = strange(|_, path| std::fs::write(path, "short").expect("written")).await;
    assert_says(&reason, &["5 bytes are too short for an ELF header"]);
}

#[tokio::test]
async fn an_empty_file_is_too_short() {
    let reason = strange(|_, path| std::fs::write(path, "").expect("written")).await;
    assert_says(&reason, &["0 bytes are too short"]);
}

#[tokio::test]
async fn a_copy_that_is_cut_off_is_damaged_and_no_second_one_of_its_name() {
    let cut_off = |place: &Place, path: &Path| {
        let whole = std::fs::read(place.plugins().join("libdocumented_example.so")).expect("a library");
        // The manifest lies before it.
        std::fs::write(path, &whole[..64 << 10]).expect("written");
    };
    assert_says(&strange(cut_off).await, &["the static check refused it: "]);
}

#[tokio::test]
async fn a_directory_is_no_plugin_library() {
    let reason = strange(|_, path| std::fs::create_dir(path).expect("made")).await;
    assert_says(&reason, &["strange.so is a directory, expected a regular file", "remove it"]);
}

#[tokio::test]
async fn a_fifo_is_no_plugin_library_and_nobody_waits_for_its_writer() {
    let reason = strange(|place, _| drop(place.fifo("plugins/strange.so"))).await;
    assert_says(&reason, &["strange.so is a FIFO, expected a regular file"]);
}

#[tokio::test]
async fn a_link_to_nowhere_is_unreadable() {
    let reason = strange(|_, path| std::os::unix::fs::symlink("/nowhere/at/all.so", path).expect("made")).await;
    assert_says(&reason, &["cannot open", "strange.so, a link to /nowhere/at/all.so", "No such file"]);
}

/// Offset of the manifest in a library file: the note's owner, then the JSON.
fn manifest_offset(bytes: &[u8]) -> usize {
    let begin = b"QTasks\0\0{\"schema\"";
    bytes.windows(begin.len()).position(|window| window == begin).expect("a plugin has a manifest")
}

#[tokio::test]
async fn a_plugin_that_was_cut_off_before_its_manifest_is_refused_without_being_opened() {
    let bytes = std::fs::read(library("documented_example")).expect("readable");
    let manifest = manifest_offset(&bytes);
    for length in [64, manifest, manifest + 40] {
        strange(|_, path| std::fs::write(path, &bytes[..length]).expect("written")).await;
    }
}

#[tokio::test]
async fn hidden_files_and_other_names_are_no_candidates() {
    let app = TestApp::with(&["documented_example"]);
    for name in [".hidden.so", "plugin.so.bak", "README.md", "lib.SO"] {
        std::fs::write(app.place.plugins().join(name), "not looked at").expect("written");
    }
    let app = app.start().await;
    assert_eq!(app.running.plugin_reports().len(), 1);
}

#[tokio::test]
async fn candidates_are_taken_in_the_order_of_their_names() {
    let app = TestApp::with(&["same_name_b"]);
    app.place.copy_as(library("same_name_a"), "liba_first.so");
    let app = app.start().await;
    app.refusal("libsame_name_b.so", "name-taken");
    assert_eq!(app.file("liba_first.so").manifest.as_ref().expect("a manifest").version, "1.0.0");
}

#[tokio::test]
async fn an_unknown_key_of_a_plugins_config_names_the_nearest() {
    let app = TestApp::with(&["fallback"]).set("plugins.fallback.config.vlaues = {}").start().await;
    let reason = app.refusal("libfallback.so", "config");
    assert_says(&reason, &["[plugins.fallback.config]: unknown field `vlaues`", "did you mean `values`?"]);
}

#[tokio::test]
async fn a_wrong_value_in_a_plugins_config_is_told_with_its_key() {
    let wrong = [
        ("delay_seconds = 'x'", "delay_seconds: invalid type: string \"x\", expected a number"),
        ("kinds = ['a', 3]", "kinds: invalid type: integer `3`, expected a string"),
    ];
    for (setting, said) in wrong {
        for isolation in ["in-process", "process"] {
            let app = TestApp::with(&["retry_later"])
                .set(format!("plugins.retry-later.config.{setting}"))
                .set(format!("plugins.retry-later.isolation = '{isolation}'"));
            let reason = app.start().await.refusal("libretry_later.so", "config");
            assert_eq!(reason, format!("[plugins.retry-later.config]: {said}"), "{isolation}");
        }
    }
}

#[tokio::test]
async fn a_date_in_a_plugins_config_is_a_text() {
    let app = TestApp::with(&["fallback", "scripted"]).set("plugins.fallback.config.values.raise = 1979-05-27").start().await;
    assert_eq!(returning(&app.raise().await), r#""1979-05-27""#);
}

#[tokio::test]
async fn a_plugin_without_configuration_takes_none() {
    let app = TestApp::with(&["penguins"]).set("plugins.penguins.config.year = 2009").start().await;
    assert_says(&app.refusal("libpenguins.so", "config"), &["[plugins.penguins.config]: unknown field `year`"]);
}

/// Otherwise what it has begun in its `start` would go on, in an application that does not.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_that_came_up_are_stopped_when_the_application_does_not_start() {
    for isolation in ["in-process", "process"] {
        let app = versioned::app(isolation).set("plugins.nobody.priority = 1");
        let (place, started) = app.try_start_with(|_| ()).await;
        assert!(matches!(started, Err(StartError::UnknownPlugin { .. })), "{started:?}");
        assert_eq!(versioned::stops(&place), [1], "{isolation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_stopped_when_the_broker_of_their_application_cannot_be_opened() {
    for isolation in ["in-process", "process"] {
        let app = versioned::app(isolation).set("broker = 'sqlite:/no/such/directory/tasks.db'").start().await;
        app.running.starter().await.expect_err("no such directory");
        assert_eq!(versioned::stops(&app.place), [1], "{isolation}");
    }
}

#[test]
fn a_plugin_that_never_ends_to_stop_holds_up_no_start_that_failed() {
    // The thread that hangs is nobody's to end, and the runtime would wait for it.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let app = versioned::app("in-process").set("plugins.versioned.config.hangs_in_stop = 1");
        let (place, started) = app.set("plugins.nobody.priority = 1").try_start_with(|_| ()).await;
        assert!(matches!(started, Err(StartError::UnknownPlugin { .. })), "{started:?}");
        assert_eq!(versioned::stops(&place), [1]);
    });
    runtime.shutdown_background();
}

#[tokio::test]
async fn settings_for_an_unknown_plugin_name_the_nearest() {
    let (_place, started) = TestApp::with(&["fallback"]).set("plugins.fallbck.priority = 1").try_start_with(|_| ()).await;
    let error = started.expect_err("the application does not start");
    assert!(matches!(error, StartError::UnknownPlugin { .. }), "{error:?}");
    assert_says(&error.to_string(), &["[plugins.fallbck]: no plugin of this name was found in", "did you mean `fallback`?"]);
}

#[tokio::test]
async fn settings_for_an_unknown_plugin_are_no_error_beside_a_file_whose_name_is_unknown() {
    let app = TestApp::with(&["fallback", "no_manifest"]).set("plugins.fallbck.priority = 1").start().await;
    assert_eq!(app.file("libfallback.so").state, LoadState::Running);
}

#[tokio::test]
async fn a_disabled_plugin_is_neither_loaded_nor_asked() {
    let app = TestApp::with(&["documented_example", "panics_in_create", "scripted"])
        .set("plugins.documented-example.enabled = false")
        .set("plugins.panics-in-create.enabled = false")
        .start()
        .await;
    assert_eq!(app.file("libdocumented_example.so").state, LoadState::Disabled);
    assert_eq!(app.file("libpanics_in_create.so").state, LoadState::Disabled);
    assert_eq!(app.raise().await.decisions.len(), 1);
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_told_with_the_setting() {
    let app = TestApp::with(&[]);
    std::fs::remove_dir(app.place.plugins()).expect("it is empty");
    let (_place, started) = app.try_start_with(|_| ()).await;
    let error = started.expect_err("the application does not start");
    assert!(matches!(error, StartError::Discover(_)), "{error:?}");
    assert_says(&error.to_string(), &["cannot list the plugin directory", "/plugins", "--plugins or `plugin_dir`"]);
}

#[tokio::test]
async fn panics_in_stop_and_drop_do_not_take_the_host_down() {
    let app = TestApp::with(&["panics_in_stop", "panics_in_drop", "documented_example", "scripted"]).start().await;
    assert_eq!(app.raise().await.decisions.len(), 2);
    app.running.stop().await;
}

/// Every defect at once.
#[tokio::test]
async fn one_bad_file_never_stops_the_others() {
    let bad = [
        "abi_of_the_future",
        "manifest_lies",
        "no_entry_point",
        "no_manifest",
        "panics_in_create",
        "panics_in_start",
        "refuses_in_create",
        "same_name_b",
    ];
    let app = TestApp::with(&bad);
    for good in ["documented_example", "fails_in_handler", "panics_in_handler", "panics_in_drop", "panics_in_stop", "same_name_a"]
    {
        app.place.copy(good);
    }
    app.place.copy("scripted");
    std::fs::write(app.place.plugins().join("text.so"), "text").expect("written");
    std::fs::create_dir(app.place.plugins().join("directory.so")).expect("made");
    app.place.fifo("plugins/fifo.so");
    // The plugin that answers 123 comes last, so that it has the last word.
    let app =
        app.set("plugins.documented-example.priority = -1").set("plugins.documented-example.triggers = 'global'").start().await;
    let reports = app.running.plugin_reports();
    let refused: Vec<_> = reports
        .iter()
        .filter(|report| report.state == LoadState::Refused)
        .map(|report| report.path.file_name().expect("a name").to_str().expect("plain"))
        .collect();
    let mut expected: Vec<String> = bad.iter().map(|name| format!("lib{name}.so")).collect();
    expected.extend(["directory.so", "fifo.so", "text.so"].map(str::to_owned));
    expected.sort();
    assert_eq!(refused, expected);
    let report = app.run("raise", json!([]), json!({})).await;
    assert_eq!(returning(&report), "123");
    app.running.stop().await;
}

#[test]
fn a_plugin_that_hangs_in_start_ends_the_start_by_name_and_the_next_one_runs_without_it() {
    let place = Place::new();
    for plugin in ["documented_example", "hangs_in_start", "scripted"] {
        place.copy(plugin);
    }
    let host = || Host::run(&place).set("plugins.hangs-in-start.start_deadline=0.2").with_input("{\"task\": \"raise\"}");
    let hung = host().expect_code(2);
    assert_says(
        &hung.stderr,
        &[
            "plugin hangs-in-start did not start within 0.2 s and hangs in the host",
            "it is in quarantine now",
            "isolation = \"process\"",
        ],
    );
    let next = host().expect_code(0);
    assert_says(&next.stderr, &["libhangs_in_start.so", "quarantined", "its create or start did not end within 0.2 s"]);
    assert_eq!(next.result()["returning"], 123);
}

#[test]
fn a_library_that_hangs_while_the_host_loads_it_ends_the_start_by_name_and_the_next_one_runs_without_it() {
    let place = Place::new();
    for plugin in ["constructor_hangs_in_the_host", "documented_example", "scripted"] {
        place.copy(plugin);
    }
    let host =
        || Host::run(&place).set("plugins.constructor-hangs-in-the-host.start_deadline=0.5").with_input("{\"task\": \"raise\"}");
    assert_says(
        &host().expect_code(2).stderr,
        &["plugin constructor-hangs-in-the-host did not start within 0.5 s and hangs in the host", "it is in quarantine now"],
    );
    let next = host().expect_code(0);
    assert_says(&next.stderr, &["quarantined", "loading it did not end within 0.5 s in the host"]);
    assert_eq!(next.result()["returning"], 123);
}

#[tokio::test]
async fn a_plugin_that_has_started_is_not_late_while_another_one_is_looked_at() {
    let app =
        TestApp::with(&["documented_example"]).set("plugins.documented-example.start_deadline = 2").set("probe_deadline = 4");
    app.place.copy_as(library("constructor_sleeps_for_ever"), "libz.so");
    let app = app.start().await;
    app.refusal("libz.so", "probe-harm");
    assert_eq!(app.file("libdocumented_example.so").state, LoadState::Running);
    app.running.stop().await;
}

#[test]
fn limits_of_a_task_whose_plugin_is_refused_stop_nothing() {
    let place = Place::new();
    place.copy("penguins");
    let library = place.plugins().join("libpenguins.so");
    let run = || {
        Host::run(&place)
            .set("tasks.penguin_ratios.max_time = 5")
            .set("tasks.ok.command = ['echo', '1']")
            .with_input("{\"task\": \"ok\"}")
    };
    assert_eq!(run().expect_code(0).result()["returning"], 1);
    // Cut so that its manifest can be read, and so that it cannot.
    for length in [30_000, 300] {
        let bytes = std::fs::read(&library).expect("our own file");
        std::fs::write(&library, &bytes[..length]).expect("our own file");
        let ended = run().expect_code(0);
        assert_says(&ended.stderr, &["libpenguins.so", "refused", "[tasks.penguin_ratios]: nobody provides this task now"]);
        assert_eq!(ended.result()["returning"], 1);
    }
    // Of what is disabled nobody provides anything either.
    place.copy("penguins");
    let disabled = Host::run(&place).set("tasks.penguin_ratios.max_time = 5").set("plugins.penguins.enabled = false");
    assert_says(&disabled.end().expect_code(0).stderr, &["[tasks.penguin_ratios]: nobody provides this task now"]);
    std::fs::remove_file(&library).expect("our own file");
    // This one is refused, and would not provide it.
    place.copy("panics_in_create");
    assert_says(&run().expect_code(2).stderr, &["[tasks.penguin_ratios]: nobody provides a task of this name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_in_start_in_its_own_process_is_refused_alone() {
    let started = TestApp::with(&["documented_example", "hangs_in_start"])
        .set("plugins.hangs-in-start.isolation = \"process\"")
        .set("plugins.hangs-in-start.start_deadline = 0.2")
        .start()
        .await;
    let reason = started.refusal("libhangs_in_start.so", "isolated");
    assert_says(
        &reason,
        &["plugin hangs-in-start does not run in a process of its own", "did not report within 0.2 s and was killed"],
    );
    started.running.stop().await;
}
