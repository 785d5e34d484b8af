//! Tasks that yield several results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use qtasks_host::{Status, TaskError};
use qtasks_plugin_api::bounds::{MAX_BYTES, MAX_DEPTH};
use serde_json::json;
use serde_json::value::RawValue;

use crate::support::{ERROR, TestApp, assert_says, returning};

#[tokio::test]
async fn the_result_is_the_list_of_what_was_yielded() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.generator_task("count", |_ctx, (from, to): (u64, u64), (): ()| Ok::<_, TaskError>((from..to).map(Ok)));
        })
        .await;
    for (args, list) in [
        (json!([0, 3]), "[0,1,2]"),
        (json!([0, 0]), "[]"),
        (json!([18446744073709551613_u64, 18446744073709551615_u64]), "[18446744073709551613,18446744073709551614]"),
    ] {
        assert_eq!(returning(&app.run("count", args, json!({})).await), list);
    }
    let error = app.run("count", json!(["x"]), json!({})).await.error.expect("an error");
    assert_eq!(error.kind, "ArgumentError");
}

#[tokio::test]
async fn the_list_has_the_bounds_of_every_result() {
    let app = TestApp::with(&[])
        .start_with(|app| {
            app.generator_task("deep", |_ctx, (depth,): (usize,), (): ()| {
                Ok::<_, TaskError>([Ok::<_, TaskError>(RawValue::from_string("[".repeat(depth) + &"]".repeat(depth))?)])
            });
            app.generator_task("long", |_ctx, (): (), (): ()| {
                let half = "x".repeat(MAX_BYTES / 2);
                Ok::<_, TaskError>((0..3).map(move |_| Ok::<_, TaskError>(half.clone())))
            });
        })
        .await;
    let error = app.run("long", json!([]), json!({})).await.error.expect("an error");
    assert_eq!((&*error.kind, &*error.message), ("ResultError", "more than 67108864 bytes were yielded"));
    assert_eq!(app.run("deep", json!([MAX_DEPTH - 1]), json!({})).await.status, Status::Success);
    let error = app.run("deep", json!([MAX_DEPTH]), json!({})).await.error.expect("an error");
    assert_eq!(error.kind, "ResultError");
    assert_says(&error.message, &["the list of what was yielded is JSON nested deeper than"]);
}

#[tokio::test]
async fn the_first_error_is_the_tasks_and_nothing_more_is_yielded() {
    let yielded = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&yielded);
    let app = TestApp::with(&["scripted"])
        .answer("scripted", ERROR, "[\"recovered\"]")
        .start_with(move |app| {
            app.generator_task("fail", move |ctx, (way,): (String,), (): ()| {
                let counted = Arc::clone(&counted);
                if way == "at once" {
                    return Err(TaskError::from("at once, as told"));
                }
                Ok((0..5).map(move |number| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    match (number, &*way) {
                        (2, "plugin error") => Err(ctx.plugin_error(json!({})).into()),
                        (2, "panic") => panic!("in mid-way, as told"),
                        (2, _) => Err(TaskError::from("in mid-way, as told")),
                        (number, _) => Ok(number),
                    }
                }))
            });
        })
        .await;
    let report = app.run("fail", json!(["error"]), json!({})).await;
    assert_eq!((report.status, yielded.swap(0, Ordering::Relaxed)), (Status::Error, 3));
    assert_says(&report.error.expect("an error").message, &["in mid-way, as told"]);
    let error = app.run("fail", json!(["panic"]), json!({})).await.error.expect("an error");
    assert_eq!((&*error.kind, &*error.message), ("Panic", "in mid-way, as told"));
    assert_eq!(app.run("fail", json!(["at once"]), json!({})).await.error.expect("an error").message, "at once, as told");
    assert_eq!(returning(&app.run("fail", json!(["plugin error"]), json!({})).await), "[\"recovered\"]");
}

#[tokio::test]
async fn an_endless_one_ends_at_its_time_limit() {
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
    /// Tells when it is dropped: when nobody iterates any more.
    struct Tells(tokio::sync::mpsc::UnboundedSender<()>);
    impl Drop for Tells {
        fn drop(&mut self) {
            // The test may be over.
            let _ = self.0.send(());
        }
    }
    let app = TestApp::with(&[])
        .set("tasks.endless.max_time = 0.05")
        .start_with(move |app| {
            app.generator_task("endless", move |_ctx, (): (), (): ()| {
                let tells = Tells(sender.clone());
                Ok::<_, TaskError>(std::iter::repeat_with(move || {
                    let _ = &tells;
                    Ok(1)
                }))
            });
        })
        .await;
    let error = app.run("endless", json!([]), json!({})).await.error.expect("an error");
    assert_eq!(error.kind, "TimeoutError");
    let ended = tokio::time::timeout(Duration::from_secs(30), ended.recv()).await;
    assert_eq!(ended.expect("it ends soon after"), Some(()));
}
