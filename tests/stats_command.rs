//! `qtasks-host stats inspect`: what a worker with these settings would be.

use serde_json::{Value, json};

use crate::support::assert_says;
use crate::support::worker::Project;

#[test]
fn stats_tell_what_a_worker_would_be() {
    let project = Project::sqlite(&["documented_example", "scripted", "no_entry_point"]);
    let inspect = |what: &str| {
        let host = project.client(&["stats", "inspect", what, "--json"]).arg("--plugins").arg(project.place.plugins());
        let host = host
            .arg("--state-dir")
            .arg(project.place.state())
            .set("tasks.echo.attempts = 4")
            .set("plugins.documented-example.priority = -7");
        let settings = "--concurrency 2 --prefetch 3 --drain-deadline 5 --keep-results 6 --keep-decisions 7 --max-time 8 --max-attempts 9 \
                        --max-retry-delay 10 --intercept all";
        host.args(settings.split_whitespace()).end().expect_code(0).json()
    };
    let app = inspect("app");
    let settings = json!({
        "concurrency": 2, "prefetch": 3, "drain_deadline": 5.0, "keep_results": 6.0, "keep_decisions": 7.0, "max_time": 8.0,
        "max_attempts": 9, "max_retry_delay": 10.0, "intercept": "all",
    });
    assert_eq!(app["settings"], settings);
    assert_eq!((&app["project"], &app["broker"]["url"]), (&json!("QueueTasks"), &json!(project.url)));
    let states: Vec<(&Value, &Value)> =
        app["plugins"].as_array().expect("a list").iter().map(|plugin| (&plugin["plugin"], &plugin["state"])).collect();
    assert!(states.contains(&(&json!("documented-example"), &json!("running"))), "{app}");
    assert!(states.iter().any(|(_, state)| **state == "refused"), "{app}");
    let plugins = app["plugins"].as_array().expect("a list");
    let example = plugins.iter().find(|plugin| plugin["plugin"] == "documented-example").expect("it runs");
    assert_eq!((&example["handlers"], &example["priority"]), (&json!(["task_executor_run_task_trigger_error"]), &json!(-7)));
    let tasks = inspect("tasks");
    let echo = tasks.as_array().expect("a list").iter().find(|task| task["name"] == "echo").expect("a task of the plugin");
    assert_eq!((&echo["provided_by"], &echo["attempts"]), (&json!("scripted"), &json!(4)));
}

#[test]
fn stats_are_told_in_rows_as_well() {
    let project = Project::sqlite(&["documented_example", "scripted", "no_entry_point"]);
    let text = project.place.write("plugins/text.so", "no library");
    let inspect = |what: &str, plugins: &[&str]| {
        let host = project.client(&["stats", "inspect", what]).args(plugins).arg("--state-dir").arg(project.place.state());
        let ended = host.set("max_time = 1.5").end().expect_code(0);
        // Columns are as wide as they need to be.
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        ended.stdout.lines().map(words).collect::<Vec<_>>().join("\n")
    };
    let plugins = ["--plugins", "plugins", "--set", "tasks.echo.attempts = 4", "--set", "tasks.echo.max_time = 2.5"];
    let broker = format!("broker {}\n", project.url);
    let file = format!("file {} refused: ", text.display());
    let app = inspect("app", &plugins);
    assert_says(&app, &["project QueueTasks\n", &broker, "max_time 1.5 s\n", &file, "too short for an ELF header"]);
    let running = "plugin documented-example 0.1.0 running task_executor_run_task_trigger_error\n";
    assert_says(&app, &[running, "plugin no-entry-point 0.1.0 refused: ", "\ntask echo by scripted\n"]);
    let tasks = inspect("tasks", &plugins);
    assert_says(&tasks, &["task provided by max_time attempts\n", "\necho scripted 2.5 s 4\n", "\nraise scripted - -\n"]);
    assert_eq!(inspect("tasks", &[]), "no tasks: name a directory with --plugins, or declare commands under [tasks]");
    project.add(&["echo"]);
    project.add(&["echo", "--delay", "3600"]);
    let counts =
        ["new 2", "of them delayed 1", "process 0", "success 0", "error 0", "of them set aside 0", "cancel 0", "retry 0"];
    assert_eq!(inspect("counts", &[]), counts.join("\n"));
}

#[test]
fn stats_count_what_was_set_aside() {
    let project = Project::sqlite(&["scripted"]);
    let worker = project.start(&["plugins.scripted.config.directive = { directive = 'dead_letter', reason = 'look at me' }"]);
    for task in ["raise", "nobody_has_it", "echo"] {
        project.wait(&project.add(&[task]));
    }
    let counts = project.client(&["stats", "inspect", "counts"]).end().expect_code(0).stdout;
    assert_says(&counts, &["success              1\n", "error                2\n", "  of them set aside  1\n"]);
    assert!(worker.stop().0.success());
}

#[test]
fn stats_end_though_a_plugin_hangs() {
    let project = Project::sqlite(&["hangs_in_start"]);
    let host = project.client(&["stats", "inspect", "app"]).arg("--plugins").arg(project.place.plugins());
    let ended = host.arg("--state-dir").arg(project.place.state()).set("plugins.hangs-in-start.start_deadline = 0.2").end();
    assert_says(&ended.expect_code(2).stderr, &["plugin hangs-in-start did not start within 0.2 s"]);
}

#[test]
fn stats_name_a_plugin_that_ends_them() {
    let project = Project::sqlite(&["misbehaves_in_handler"]);
    let host = project.client(&["stats", "inspect", "app"]).arg("--plugins").arg(project.place.plugins());
    let host = host.arg("--state-dir").arg(project.place.state());
    let host = host.set("plugins.misbehaves-in-handler.config.how=answer");
    let ended = host.set("plugins.misbehaves-in-handler.config.how_at_end=segfault").end();
    assert_says(&ended.stderr, &["fatal signal 11 inside plugin misbehaves-in-handler"]);
}
