//! Triggers of the components `Starter` and `Stats`.

use super::*;

rows! {
    StarterStart: starter_start;
    StarterStop: starter_stop;
    StatsInspect: stats_inspect;
}

async fn starter_start(isolation: &str, trigger: Trigger) {
    let Stage { app: Started { place, running, .. }, store, .. } = Stage::new(isolation, trigger).await;
    let starter: Starter = running.starter_over(store);
    let queue = starter.queue_tasks();
    let working = async {
        let added = queue.add_task(task("echo")).await.expect("memory does not fail");
        let waited = queue.wait(added.task.uuid, Duration::from_secs(30)).await.expect("memory does not fail");
        assert!(matches!(waited, Waited::Ended(_)), "{waited:?}");
        queue.stop().await;
    };
    let (ran, ()) = tokio::join!(starter.run(), working);
    ran.expect("memory does not fail");
    let expected = json!({"trigger": trigger, "kwargs": {"starter": {"name": "Starter", "url": "memory:"}}});
    assert_eq!(place.events("scripted"), [expected]);
    assert_eq!(trigger.kwargs(), ["starter"]);
}

async fn starter_stop(isolation: &str, trigger: Trigger) {
    starter_start(isolation, trigger).await;
}

async fn stats_inspect(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.prompt(&json!({"stats": 7}));
    stage.echo().await;
    let stats = stage.app.running.stats(Arc::clone(&stage.store));
    let app = json!(stats.app().await);
    assert_eq!(stage.event(), json!({"stats": {"name": "Stats", "url": "memory:"}}));
    assert_eq!((&app["project"], &app["broker"]["url"]), (&json!("QueueTasks"), &json!("memory:")));
    // From memory nothing is taken ahead.
    assert_eq!(app["settings"]["prefetch"], if isolation == IN_A_FILE { 256 } else { 0 });
    let plugin = &app["plugins"][0];
    assert_eq!(
        (&plugin["plugin"], &plugin["state"], &plugin["isolation"]),
        (&json!("scripted"), &json!("running"), &json!(plugin_in(isolation)))
    );
    let fail = json!(stats.task("fail").await.expect("a task"));
    assert_eq!((&fail["provided_by"], &fail["attempts"], &fail["generator"]), (&json!("application"), &json!(2), &json!(false)));
    assert_eq!(json!(stats.task("count").await.expect("a task"))["generator"], true);
    assert!(stats.task("nobody").await.is_none());
    let names: Vec<String> = stats.tasks().await.into_iter().map(|task| task.name).collect();
    assert!(["count", "echo", "fail", "other"].iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");
    assert_eq!(app["tasks"].as_array().map(Vec::len), Some(names.len()));
    assert_eq!(stats.counts().await.expect("memory does not fail").success, 1);
    assert_eq!(stage.events().len(), 6, "each look is one event");
}
