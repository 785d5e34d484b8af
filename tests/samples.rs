//! Every sample plugin, loaded as a user would load it.

use std::path::Path;

use qtasks_host::Status;
use serde_json::{Value, json};

use crate::support::artifacts::ROOT;
use crate::support::{ERROR, Host, Place, TestApp, assert_says, returning, value_of};

const SAMPLES: [&str; 6] = ["documented_example", "fallback", "notify", "penguin_recovery", "penguins", "retry_later"];

#[tokio::test]
async fn all_samples_run_beside_each_other_with_their_defaults() {
    let app = TestApp::with(&SAMPLES).start().await;
    let reports = app.running.plugin_reports();
    for report in &*reports {
        assert_eq!(report.reason(), None, "{}", report.path.display());
    }
    let names: Vec<_> = reports.iter().filter_map(|report| report.name()).collect();
    assert_eq!(names, ["documented-example", "fallback", "notify", "penguin-recovery", "penguins", "retry-later"]);
    app.running.stop().await;
}

#[tokio::test]
async fn documented_example_answers_123() {
    let app = TestApp::with(&["documented_example", "penguins"]).start().await;
    let report = app.run("penguin_ratios", json!([]), unmeasured()).await;
    assert_eq!(returning(&report), "123");
}

fn unmeasured() -> Value {
    json!({
        "species": "Gentoo", "island": "Biscoe", "bill_length_mm": "NA", "bill_depth_mm": "NA",
        "flipper_length_mm": "NA", "body_mass_g": "NA", "sex": "NA", "year": 2009,
    })
}

#[tokio::test]
async fn fallback_answers_listed_tasks_with_their_fixed_value() {
    let app = TestApp::with(&["fallback", "scripted"]).set("plugins.fallback.config.values = { raise = [] }").start().await;
    assert_eq!(returning(&app.raise().await), "[]");
    assert_eq!(app.run("raise_text", json!(["x"]), json!({})).await.status, Status::Error);
}

#[tokio::test]
async fn notify_writes_the_error_down_and_leaves_it() {
    let app = TestApp::with(&["notify", "scripted"]).start().await;
    assert_eq!(app.raise().await.status, Status::Error);
    let line = app.place.events("notify").remove(0);
    assert_eq!(
        (&line["task"], &line["type"], &line["kwargs"]),
        (&json!("raise"), &json!("TaskPluginTriggerError"), &json!({"message": "sea is frozen"}))
    );
}

#[tokio::test]
async fn retry_later_tries_again_and_then_sets_the_task_aside() {
    let app = TestApp::with(&["retry_later", "scripted"])
        .set("plugins.retry-later.config = { delay_seconds = 0, dead_letter = true }")
        .set("max_attempts = 3")
        .start()
        .await;
    let report = value_of(&app.raise().await);
    assert_eq!((&report["status"], &report["attempt"]), (&json!("error"), &json!(3)));
    assert_eq!(report["dead_letter"], "TaskPluginTriggerError in the last of 3 attempts");
    let attempts: Vec<Value> = app
        .place
        .events("scripted")
        .into_iter()
        .filter(|event| event["trigger"] == ERROR)
        .map(|event| event["kwargs"]["task_executor"]["attempt"].clone())
        .collect();
    assert_eq!(attempts, [1, 2, 3]);
}

#[tokio::test]
async fn penguins_and_their_recovery_work_together() {
    let app = TestApp::with(&["penguins", "penguin_recovery"]).start().await;
    let report = value_of(&app.run("penguin_ratios", json!([]), unmeasured()).await);
    assert_eq!((&report["status"], &report["returning"]["species"]), (&json!("success"), &json!("Gentoo")));
    assert_eq!(report["original_error"]["kwargs"]["missing"].as_array().map(Vec::len), Some(4));
    let statistics = app.run("species_statistics", json!(["Emperor"]), json!({})).await;
    assert_eq!(statistics.error.expect("an ordinary error").kind, "UnknownSpecies");
}

/// The whole table through the program, as the sample's settings file says it is done.
#[test]
fn the_penguin_run_answers_exactly_for_the_birds_and_counts_that_failed() {
    let place = Place::new();
    for sample in SAMPLES {
        place.copy(sample);
    }
    let samples = Path::new(ROOT).join("sample-plugins/penguins");
    let ended = Host::run(&place)
        .current_dir(ROOT)
        .arg("--config")
        .arg(samples.join("qtasks-host.toml"))
        .arg(samples.join("tasks.jsonl"))
        .end()
        .expect_code(0);
    let results = ended.results();
    assert_eq!(results.len(), 349);
    assert!(results.iter().all(|result| result["status"] == "success"));

    let mut resolved: Vec<&Value> = results.iter().filter(|result| result.get("resolved_by").is_some()).collect();
    resolved.sort_by_key(|result| result["returning"].to_string());
    let answers: Vec<(&str, &Value)> =
        resolved.iter().map(|result| (result["resolved_by"]["plugin"].as_str().expect("a name"), &result["returning"])).collect();
    let measurements = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"];
    // Means of the measured birds of a species, worked out from data/penguins.csv by other means, divided, to four places.
    let adelie = json!({
        "species": "Adelie", "bill_ratio": 2.1144, "mass_per_flipper": 19.4819, "estimated_from_species_mean": measurements,
    });
    let gentoo = json!({
        "species": "Gentoo", "bill_ratio": 3.1708, "mass_per_flipper": 23.3716, "estimated_from_species_mean": measurements,
    });
    assert_eq!(answers, [("fallback", &json!(0)), ("penguin-recovery", &adelie), ("penguin-recovery", &gentoo)]);

    let count = results.iter().find(|result| result["task"] == "count_adelies").expect("was run");
    assert_eq!(count["returning"], 152);
    assert_says(
        &ended.stderr,
        &["349 tasks: 349 success, 0 error, 0 cancel", "penguin-recovery (result) 2", "fallback (result) 1"],
    );
}
