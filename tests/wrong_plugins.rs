//! What rustc says to the author of a plugin that does not compile: where, and in which words.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::support::Place;
use crate::support::artifacts::plugin_api;

/// One of rustc's errors.
#[derive(Deserialize)]
struct Refusal {
    level: String,
    message: String,
    spans: Vec<Span>,
    children: Vec<Note>,
}

#[derive(Deserialize)]
struct Span {
    is_primary: bool,
    text: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
    highlight_start: usize,
    highlight_end: usize,
}

#[derive(Deserialize)]
struct Note {
    message: String,
}

impl Refusal {
    /// What is underlined.
    fn at(&self) -> &str {
        let lines = self.spans.iter().filter(|span| span.is_primary).flat_map(|span| &span.text);
        lines.map(|line| &line.text[line.highlight_start - 1..line.highlight_end - 1]).next().unwrap_or_default()
    }

    fn says(&self, words: &str) -> bool {
        self.message.contains(words) || self.children.iter().any(|note| note.message.contains(words))
    }
}

/// The errors of a plugin `P` with these methods, and with these words after `plugin: P` in its `export_plugin!`.
fn refusals(methods: &str, words: &str) -> Vec<Refusal> {
    compiled(&format!(
        "use qtasks_plugin_api::*;
         pub struct P;
         impl Plugin for P {{
             type Config = ();
             fn create(_: (), _: Host) -> Result<Self, Error> {{ Ok(Self) }}
         }}
         impl P {{ {methods} }}
         export_plugin! {{ plugin: P{words} }}"
    ))
}

fn compiled(source: &str) -> Vec<Refusal> {
    let place = Place::new();
    let file = place.path("plugin.rs");
    std::fs::write(&file, source).expect("a place of its own");
    let rlib = plugin_api();
    let output = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"))
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=json", "--allow=dead_code", "-o"])
        .args([&place.path("out"), &file])
        .args(["--extern".into(), format!("qtasks_plugin_api={}", rlib.display())])
        .arg("-L")
        .arg(format!("dependency={}", rlib.with_file_name("deps").display()))
        .envs([("CARGO_PKG_NAME", "p"), ("CARGO_PKG_VERSION", "1.0.0"), ("CARGO_PKG_DESCRIPTION", ""), ("CARGO_PKG_AUTHORS", "")])
        .output()
        .expect("rustc stands beside cargo");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let errors = said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    let errors: Vec<Refusal> = errors.filter(|said: &Refusal| said.level == "error" && !said.spans.is_empty()).collect();
    assert_eq!(output.status.success(), errors.is_empty(), "{said}");
    errors
}

/// Checks that there is one error alone, at `at`, with each of `words`.
fn check(methods: &str, table: &str, at: &str, words: &[&str]) {
    let errors = refusals(methods, table);
    let found: Vec<_> = errors.iter().map(|error| (error.at(), &error.message)).collect();
    let [error] = &errors[..] else { panic!("{methods} {table}: {found:?}") };
    assert_eq!(error.at(), at, "{methods} {table}: {found:?}");
    for words in words {
        let notes: Vec<&String> = error.children.iter().map(|note| &note.message).collect();
        assert!(error.says(words), "{methods} {table}: no {words:?} in {found:?} {notes:?}");
    }
}

#[test]
fn a_handler_of_a_wrong_type_is_underlined_where_the_table_names_it() {
    let take = "it takes an `Event<'_>`, or for `task_executor_run_task_trigger_error` a `TriggerError<'_>`";
    let forgotten = "an `async fn` is named with `=> async`";
    for (method, mode, words) in [
        ("fn on(&self, _: Event<'_>) -> std::time::Duration { todo!() }", "", ["a handler cannot return `Duration`", forgotten]),
        (
            "fn on(&self, _: Event<'_>) -> std::time::Duration { todo!() }",
            "inline",
            ["cannot return `Duration`", "Answer::result"],
        ),
        ("async fn on(&self, _: Event<'_>) -> std::time::Duration { todo!() }", "async", ["cannot return `Duration`", ""]),
        ("async fn on(&self, _: Event<'_>) {}", "", ["cannot return `impl Future<Output = ()>`", forgotten]),
        ("fn on(&self, _: Event<'_>) {}", "async", ["`()` is not a future", ""]),
        ("fn on(&self, _: u32) {}", "", ["a handler cannot take a `u32`", take]),
        ("fn on(&self, _: &TriggerError<'_>) {}", "inline", ["a handler cannot take a `&", take]),
        ("fn on(&mut self, _: Event<'_>) {}", "", ["mismatched types", "expected fn pointer `fn(&P, _) -> _`"]),
        ("fn on(&self) {}", "inline", ["mismatched types", "expected fn pointer `fn(&P, _) -> _`"]),
        ("fn no(&self, _: Event<'_>) {}", "inline", ["no function or associated item named `on` found", ""]),
        (
            "async fn on(&self, _: Event<'_>) { let rc = std::rc::Rc::new(1); std::future::ready(()).await; drop(rc) }",
            "async",
            ["future cannot be sent between threads safely", "this value is used across an await"],
        ),
    ] {
        check(method, &format!(", handlers: {{ worker_start => {mode} on }}"), "on", &words);
    }
}

#[test]
fn a_task_of_a_wrong_type_is_underlined_where_the_table_names_it() {
    let error = "`E` is `TaskError`, a text, or an error that is `Send + Sync + 'static`";
    let boxed = "Result<i32, Box<dyn std::error::Error>> { Ok(1) }";
    let signature = "expected fn pointer `fn(&P, &qtasks_plugin_api::TaskContext, _, _) -> _`";
    for (method, mode, words) in [
        ("fn run(&self, _: &TaskContext, _: (), _: ()) -> i32 { 1 }", "", ["a task cannot return `i32`", "a `Result<T, E>`"]),
        (&format!("fn run(&self, _: &TaskContext, _: (), _: ()) -> {boxed}"), "inline", ["a task cannot return `", error]),
        (&format!("async fn run(&self, _: &TaskContext, _: (), _: ()) -> {boxed}"), "async", ["a task cannot return `", error]),
        (
            "async fn run(&self, _: &TaskContext, _: (), _: ()) -> Result<i32, Error> { Ok(1) }",
            "",
            ["a task cannot return `impl Future<", "an `async fn` is named with `=> async`"],
        ),
        (
            "fn run(&self, _: &TaskContext, _: (), _: ()) -> Result<std::time::Instant, Error> { todo!() }",
            "",
            ["a task cannot return `", "`T` is any type with serde's `Serialize`"],
        ),
        (
            "fn run(&self, _: &TaskContext, _: (P,), _: ()) -> Result<i32, Error> { Ok(1) }",
            "",
            ["`P: serde::Deserialize<'de>`", ""],
        ),
        ("fn run(&self, _: TaskContext, _: (), _: ()) -> Result<i32, Error> { Ok(1) }", "", ["mismatched types", signature]),
        ("fn run(&mut self, _: &TaskContext, _: (), _: ()) -> Result<i32, Error> { Ok(1) }", "", ["mismatched types", signature]),
        ("fn run(&self, _: &TaskContext, _: ()) -> Result<i32, Error> { Ok(1) }", "inline", ["mismatched types", signature]),
    ] {
        check(method, &format!(", tasks: {{ count => {mode} run }}"), "run", &words);
    }
}

#[test]
fn any_word_of_the_macro_may_be_the_last_with_a_comma_or_without() {
    let words = ["name: \"x\"", "version: \"2.0.0\"", "priority: 3", "handlers: { global => on }", "tasks: { run => run }"];
    let methods = "fn on(&self, _: Event<'_>) {}
                   fn run(&self, _: &TaskContext, _: (), _: ()) -> Result<i32, Error> { Ok(1) }";
    for last in 0..words.len() {
        for end in ["", ","] {
            assert!(refusals(methods, &format!(", {}{end}", words[last])).is_empty(), "{}{end}", words[last]);
            let all = words[..=last].join(", ");
            assert!(refusals(methods, &format!(", {all}{end}")).is_empty(), "{all}{end}");
        }
    }
}

#[test]
fn a_wrong_use_of_the_macro_is_one_error_that_says_what_is_expected() {
    let order = "expected, in this order and each but the first left out at will: `plugin: TYPE`, `name: \"…\"`, ";
    let mode = "found `=> sync on`; expected `=> METHOD`, `=> inline METHOD` or `=> async METHOD`";
    for (words, expected) in [
        ("priority: 3, name: \"x\"", order),
        ("handler: {}", order),
        ("handlers: [worker_start => on]", order),
        ("handlers: { worker_start: on }", order),
        ("handlers: { worker_start => sync on }", mode),
    ] {
        let errors = refusals("fn on(&self, _: Event<'_>) {}", &format!(", {words}"));
        let said: Vec<&str> = errors.iter().map(|error| &*error.message).collect();
        assert!(said.len() == 1 && said[0].starts_with(expected), "{words}: {said:?}");
    }
}

#[test]
fn a_misspelt_trigger_is_told_the_nearest() {
    for (found, words) in [
        ("worker_strat", "no trigger is called `worker_strat`; did you mean `worker_start`? See `Trigger` for all names"),
        ("task_executor_run_task_error", "did you mean `task_executor_run_task_trigger_error`?"),
        ("zzz", "no trigger is called `zzz`: see `Trigger` for the names"),
        (&"x".repeat(600), "no trigger is called `xxx"),
    ] {
        let errors = refusals("fn on(&self, _: Event<'_>) {}", &format!(", handlers: {{ {found} => on }}"));
        assert!(errors.iter().any(|error| error.says(words)), "{found}: {:?}", errors[0].message);
    }
}

#[test]
fn a_task_is_named_as_it_can_be_asked_for() {
    let method = "fn run(&self, _: &TaskContext, _: (), _: ()) -> Result<i32, Error> { Ok(1) }";
    assert!(refusals(method, r#", tasks: { run => run, "my.task" => inline run }"#).is_empty());
    for name in [r#""""#, r#""my:task""#] {
        let errors = refusals(method, &format!(", tasks: {{ {name} => run }}"));
        let words = "a task's name is not empty, and has no `:`, which ends it in the queue";
        assert!(errors.iter().any(|error| error.says(words)), "{name}");
    }
    let errors = refusals(method, r#", tasks: { "twice" => run, twice => run }"#);
    assert!(errors.iter().any(|error| error.says("the task `twice` is listed twice")));
}

#[test]
fn a_configuration_that_is_none_is_told_what_is_expected() {
    for item in ["struct C { #[serde(default)] a: u8 }", "struct C(u8);", "struct A { a: u8 } struct B<T> { a: T }", "fn c() {}"]
    {
        let errors = compiled(&format!("qtasks_plugin_api::config! {{ {item} }}"));
        let said: Vec<&str> = errors.iter().map(|error| &*error.message).collect();
        let expected = "expected `struct NAME { FIELD: TYPE, … }` or `enum NAME { VALUE, … }`, one or several; ";
        assert!(said.len() == 1 && said[0].starts_with(expected), "{item}: {said:?}");
    }
}

#[test]
fn what_a_method_borrows_it_may_return() {
    let methods = r#"
        fn own(&self, _: Event<'_>) -> &str { "" }
        fn typed(&self, event: TriggerError<'_>) -> Result<Option<usize>, Error> { Ok(Some(event.e.message.len())) }
        async fn waits(&self, event: TriggerError<'_>) -> Option<usize> { std::future::ready(()).await; Some(event.e.message.len()) }
        async fn waits_own<'a>(&'a self, event: Event<'_>) -> &'a str { std::future::ready(()).await; drop(event); "" }
        fn boxed<'a>(&'a self, event: Event<'a>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
            Box::pin(async move { drop(event) })
        }
        fn task<'a>(&'a self, ctx: &'a TaskContext, _: Vec<i32>, _: ()) -> Result<&'a str, String> { Ok(ctx.uuid()) }
        async fn waiting_task<'a>(&'a self, ctx: &'a TaskContext, _: (u8, String), _: ()) -> Result<&'a str, Error> { Ok(ctx.uuid()) }
    "#;
    let words = ", handlers: { global => own, worker_start => inline typed, worker_stop => async waits,
                     broker_start => async waits_own, broker_stop => async boxed },
                 tasks: { task => inline task, waiting_task => async waiting_task }";
    let errors: Vec<String> = refusals(methods, words).into_iter().map(|error| error.message).collect();
    assert!(errors.is_empty(), "{errors:?}");
}
