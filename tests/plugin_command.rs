//! `qtasks-host plugin list` and `inspect`: what a library declares, without running anything of it.

use serde_json::{Value, json};

use crate::support::versioned::renamed;
use crate::support::{Host, Place, assert_says};

fn list(place: &Place) -> Host {
    Host::new(place).args(["plugin", "list", "--plugins"]).arg(place.plugins())
}

#[test]
fn list_shows_names_versions_triggers_and_tasks() {
    let place = Place::new();
    for plugin in ["documented_example", "penguins", "global_recorder"] {
        place.copy(plugin);
    }
    let ended = list(&place).set("plugins.penguins.enabled=false").end().expect_code(0);
    assert_eq!(
        ended.stdout,
        "documented-example 0.1.0: task_executor_run_task_trigger_error\n\
         global-recorder 0.1.0: global\n\
         penguins 0.1.0 (disabled): task penguin_ratios, task species_statistics\n"
    );
}

#[test]
fn list_says_why_a_library_would_be_refused_and_shows_the_others() {
    let place = Place::new();
    for plugin in ["abi_of_the_future", "documented_example", "no_manifest", "same_name_a", "same_name_b"] {
        place.copy(plugin);
    }
    place.fifo("plugins/fifo.so");
    let ended = list(&place).end().expect_code(4);
    assert_eq!(ended.stdout.lines().count(), 6, "{}", ended.stdout);
    assert_says(
        &ended.stdout,
        &[
            "fifo.so: refused: /",
            "libabi_of_the_future.so: refused: it was built for ABI 99.0, this host speaks 1.0",
            " [abi]\n",
            "documented-example 0.1.0: ",
            "libno_manifest.so: refused: it has no plugin manifest",
            "same-name 1.0.0: ",
            "libsame_name_b.so: refused: the name same-name is taken by",
        ],
    );
}

#[test]
fn what_the_static_check_finds_is_said_without_loading_the_library() {
    let place = Place::new();
    let library = place.copy("no_entry_point");
    let reason = "the static check refused it: ";
    let said = [reason, "does not export qtasks_plugin_root_1", "elf-no-root"];
    assert_says(&list(&place).end().expect_code(4).stdout, &said);
    let ended = Host::new(&place).args(["plugin", "inspect"]).arg(&library).end().expect_code(4);
    assert_says(&ended.stdout, &said[..2]);
    let reports: Value = serde_json::from_str(&list(&place).arg("--json").end().expect_code(4).stdout).expect("a JSON list");
    assert_eq!(reports[0]["code"], "elf-no-root");
    assert_says(reports[0]["reason"].as_str().expect("a text"), &said[..2]);
}

#[test]
fn list_says_whose_task_a_library_would_take() {
    let place = Place::new();
    place.copy("versioned_1");
    place.write("plugins/libversioned_2.so", renamed("versioned_2"));
    place.copy("scripted");
    let ended = list(&place).set("tasks.echo.command=['true']").end().expect_code(4);
    let said = [
        "libscripted.so: refused: it provides the task echo, which the application or `[tasks.echo] command` provides",
        "libversioned_2.so: refused: it provides the task which, as does the plugin versioned",
        " [task-taken]\n",
    ];
    assert_says(&ended.stdout, &said);
    let ended = list(&place).set("plugins.versioned.enabled=false").end().expect_code(0);
    assert_says(&ended.stdout, &["a-version 2.0.0: "]);
}

#[test]
fn list_as_json_is_the_librarys_load_reports() {
    let place = Place::new();
    let (good, bad) = (place.copy("documented_example"), place.copy("no_manifest"));
    let ended = list(&place).arg("--json").end().expect_code(4);
    let mut reports: Vec<Value> = serde_json::from_str(&ended.stdout).expect("a JSON list");
    assert_eq!(
        reports[0]["manifest"]["handlers"],
        json!([{"trigger": "task_executor_run_task_trigger_error", "mode": "blocking"}])
    );
    let manifest = reports[0]["manifest"].take();
    assert_eq!(
        (&manifest["name"], &manifest["abi"]["major"], &manifest["panic"]),
        (&json!("documented-example"), &json!(1), &json!("unwind"))
    );
    assert_eq!(reports[0], json!({"path": good, "state": "found", "trust": "unchecked", "manifest": null}));
    let reason = reports[1]["reason"].take();
    assert_says(reason.as_str().expect("a text"), &["no plugin manifest"]);
    assert_eq!(reports[1], json!({"path": bad, "state": "refused", "manifest": null, "code": "manifest", "reason": null}));
}

#[test]
fn an_empty_directory_is_said_to_be_empty() {
    let place = Place::new();
    assert_says(&list(&place).end().expect_code(0).stdout, &["no plugin library (*.so) in "]);
}

#[test]
fn without_a_directory_list_is_a_wrong_use() {
    let place = Place::new();
    let ended = Host::new(&place).args(["plugin", "list"]).end().expect_code(2);
    assert_says(&ended.stderr, &["no plugin directory: name one with --plugins or the setting `plugin_dir`"]);
    let ended = Host::new(&place).args(["plugin", "list", "--plugins", "gone"]).end().expect_code(2);
    assert_says(&ended.stderr, &[&format!("cannot list the plugin directory {}", place.path("gone").display()), "No such file"]);
}

#[test]
fn inspect_shows_everything_that_a_library_declares() {
    let place = Place::new();
    let library = place.copy("fallback");
    let ended = Host::new(&place).args(["plugin", "inspect"]).arg(&library).end().expect_code(0);
    assert_says(
        &ended.stdout,
        &[
            "name         fallback\n",
            "version      0.1.0\n",
            "abi          1.0\n",
            "panic        unwind\n",
            "handles      task_executor_run_task_trigger_error (inline)\n",
            "\"values\"",
        ],
    );
    let as_json = Host::new(&place).args(["plugin", "inspect", "--json"]).arg(&library).end().expect_code(0);
    let report: Value = serde_json::from_str(&as_json.stdout).expect("JSON");
    let values = &report["manifest"]["config"]["properties"]["values"];
    assert_eq!((&values["type"], &report["state"]), (&json!("object"), &json!("found")));
    let said = |key: &str| match &report["manifest"][key] {
        Value::String(text) => text.clone(),
        Value::Array(texts) => texts.iter().map(|text| text.as_str().expect("a text")).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let rows =
        [("description", "description"), ("authors", "authors"), ("sdk", "sdk"), ("built by", "rustc"), ("target", "target")];
    for (row, key) in rows.into_iter().chain([("priority", "priority")]) {
        assert!(!said(key).is_empty(), "{key}");
        assert_says(&ended.stdout, &[&format!("\n{row:<13}{}\n", said(key))]);
    }
    let ended = Host::new(&place).args(["plugin", "inspect"]).arg(place.copy("penguins")).end().expect_code(0);
    assert_says(&ended.stdout, &["\ntask         penguin_ratios (inline)\n", "\ntask         species_statistics (inline)\n"]);
}

#[test]
fn inspect_of_a_bad_file_says_why() {
    let place = Place::new();
    for (file, said) in [(place.copy("no_manifest"), "no plugin manifest"), (place.path("gone.so"), "No such file")] {
        let ended = Host::new(&place).args(["plugin", "inspect"]).arg(&file).end().expect_code(4);
        assert_says(&ended.stdout, &["refused      ", said]);
    }
}

#[test]
fn only_a_run_runs_code_of_a_library() {
    let place = Place::new();
    let library = place.copy("constructor_leaves_a_mark");
    let mark = place.path("mark");
    let with_mark = |host: Host| host.env("QTASKS_TEST_MARK", &mark).end().expect_code(0);
    assert_says(&with_mark(list(&place)).stdout, &["constructor-leaves-a-mark 0.1.0"]);
    with_mark(list(&place).arg("--json"));
    with_mark(Host::new(&place).args(["plugin", "inspect"]).arg(library));
    assert!(!mark.exists(), "code of a library was run to look at it");
    with_mark(Host::run(&place));
    assert!(mark.exists(), "the mark is what shows that code was run");
}

#[test]
fn a_disabled_library_is_not_even_opened() {
    let place = Place::new();
    place.copy("constructor_leaves_a_mark");
    let mark = place.path("mark");
    Host::run(&place).set("plugins.constructor-leaves-a-mark.enabled=false").env("QTASKS_TEST_MARK", &mark).end().expect_code(0);
    assert!(!mark.exists());
}

#[test]
fn what_a_manifest_says_is_shown_and_obeyed_by_no_terminal() {
    let place = Place::new();
    place.copy("penguins");
    let library = place.plugins().join("libpenguins.so");
    let mut bytes = std::fs::read(&library).expect("our own file");
    // A name of a task, in JSON, with an escape and the end of a line in it.
    let (found, forged) = (br#""penguin_ratios""#, br#""\u001b[31m\nXy""#);
    assert_eq!(found.len(), forged.len());
    let places: Vec<usize> = (0..bytes.len() - found.len()).filter(|at| bytes[*at..].starts_with(found)).collect();
    for at in places {
        bytes[at..at + forged.len()].copy_from_slice(forged);
    }
    std::fs::write(&library, bytes).expect("our own file");
    let inspect = Host::new(&place).args(["plugin", "inspect"]).arg(&library).end();
    for ended in [inspect, list(&place).end()] {
        assert!(!ended.stdout.contains('\u{1b}'), "{}", ended.stdout);
        assert_says(&ended.stdout, &["\\u{1b}[31m\\nXy"]);
    }
}
