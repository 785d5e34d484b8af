//! Triggers of the component `GlobalConfig`.

use super::*;

rows! {
    GlobalConfigSet: global_config_set;
    GlobalConfigGet: global_config_get;
    GlobalConfigGetAll: global_config_get_all;
    GlobalConfigGetMatch: global_config_get_match;
    GlobalConfigStart: global_config_start;
    GlobalConfigStop: global_config_stop;
    GlobalConfigSetStatus: global_config_set_status;
}

fn global_config() -> Value {
    json!({"name": "GlobalConfig"})
}

async fn global_config_set(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let config = stage.queue.global_config();
    config.set("limits", "rate", "1").await.expect("memory does not fail");
    let expected = json!({"global_config": global_config(), "name": "limits", "name_": "limits", "key": "rate", "value": "1"});
    assert_eq!(stage.event(), expected);
    for (answer, [name, key, value]) in [
        (json!({"name": "other"}), ["other", "rate", "2"]),
        (json!({"key": "burst"}), ["limits", "burst", "2"]),
        (json!({"value": "7"}), ["limits", "rate", "7"]),
        (json!({}), ["limits", "rate", "2"]),
        (json!({"value": 7}), ["limits", "rate", "2"]),
        (json!({"name_": "other"}), ["limits", "rate", "2"]),
        (json!("7"), ["limits", "rate", "2"]),
    ] {
        stage.queue.flush_all().await.expect("memory does not fail");
        stage.prompt(&answer);
        config.set("limits", "rate", "2").await.expect("memory does not fail");
        let mut all = Vec::new();
        for known in ["limits", "other"] {
            let values = config.get_all(known).await.expect("memory does not fail");
            all.extend(values.into_iter().map(|(key, value)| [known.to_owned(), key, value]));
        }
        assert_eq!(all, [[name, key, value].map(str::to_owned)], "{answer}");
    }
}

async fn global_config_get(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    let config = stage.queue.global_config();
    config.set("limits", "rate", "1").await.expect("memory does not fail");
    let get = async |key| config.get("limits", key).await.expect("memory does not fail");
    assert_eq!(get("rate").await.as_deref(), Some("1"));
    assert_eq!(stage.event(), json!({"global_config": global_config(), "get": "1"}));
    assert_eq!(get("burst").await, None);
    assert_eq!(stage.event()["get"], Value::Null);
    for (answer, value) in [
        (json!({"get": "7"}), Some("7")),
        (json!("7"), Some("7")),
        (json!(null), None),
        (json!({"get": 7}), Some("1")),
        (json!([]), Some("1")),
    ] {
        stage.prompt(&answer);
        assert_eq!(get("rate").await.as_deref(), value, "{answer}");
    }
    stage.prompt(&json!("running"));
    assert!(stage.queue.ping().await.expect("memory does not fail"), "a ping reads the status, which the plugin replaced");
}

async fn global_config_get_all(isolation: &str, trigger: Trigger) {
    replaces_pairs(isolation, trigger, json!({"rate": "1", "burst": "2"})).await;
}

async fn global_config_get_match(isolation: &str, trigger: Trigger) {
    replaces_pairs(isolation, trigger, json!({"rate": "1"})).await;
}

async fn replaces_pairs(isolation: &str, trigger: Trigger, found: Value) {
    let stage = Stage::new(isolation, trigger).await;
    let config = stage.queue.global_config();
    for (key, value) in [("rate", "1"), ("burst", "2")] {
        config.set("limits", key, value).await.expect("memory does not fail");
    }
    let read = async || {
        let pairs = match trigger {
            Trigger::GlobalConfigGetAll => config.get_all("limits").await,
            _ => config.get_match("limits", "ra").await,
        };
        let pairs = pairs.expect("memory does not fail").into_iter();
        Value::Object(pairs.map(|(key, value)| (key, Value::from(value))).collect())
    };
    assert_eq!(read().await, found);
    assert_eq!(stage.event(), json!({"global_config": global_config(), "get": found}));
    for (answer, value) in [
        (json!({"get": {"rate": "7"}}), json!({"rate": "7"})),
        (json!({"a": "1", "b": "2"}), json!({"a": "1", "b": "2"})),
        (json!({"get": {"rate": 7}}), found.clone()),
        (json!(["rate"]), found),
    ] {
        stage.prompt(&answer);
        assert_eq!(read().await, value, "{answer}");
    }
}

async fn global_config_start(isolation: &str, trigger: Trigger) {
    let stage = Stage::new(isolation, trigger).await;
    stage.work().await;
    assert_eq!((stage.event(), stage.events().len()), (json!({"global_config": global_config()}), 1));
}

async fn global_config_stop(isolation: &str, trigger: Trigger) {
    global_config_start(isolation, trigger).await;
}

async fn global_config_set_status(isolation: &str, trigger: Trigger) {
    global_config_start(isolation, trigger).await;
}
