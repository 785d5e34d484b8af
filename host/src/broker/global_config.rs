//! Values that workers and clients of one project share: QTasks' component GlobalConfig.

use qtasks_plugin_api::Trigger;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Backend;
use super::component::Component;
use super::error::BrokerError;
use crate::trigger::Dispatcher;

/// The global config of a project: texts by name and key.
#[derive(Debug, Clone, Copy)]
pub struct GlobalConfig<'a> {
    backend: &'a dyn Backend,
    dispatcher: &'a Dispatcher,
}

/// kwargs of the triggers that carry the component alone.
#[derive(Serialize)]
struct Kwargs {
    global_config: Component,
}

/// kwargs of the triggers that carry what was read.
#[derive(Serialize)]
struct GetKwargs<'a, T> {
    global_config: Component,
    get: &'a T,
}

const COMPONENT: Component = GlobalConfig::COMPONENT;

impl<'a> GlobalConfig<'a> {
    /// The component as plugins see it.
    pub(crate) const COMPONENT: Component = Component::named("GlobalConfig");

    pub(super) const fn new(backend: &'a dyn Backend, dispatcher: &'a Dispatcher) -> Self {
        Self { backend, dispatcher }
    }

    /// Sets the value of `key` in the config `name`.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn set(self, name: &str, key: &str, value: &str) -> Result<(), BrokerError> {
        #[derive(Serialize)]
        struct Set<'a> {
            global_config: Component,
            name: &'a str,
            /// What QTasks 1.7.3 really passes; it reads `name` back.
            name_: &'a str,
            key: &'a str,
            value: &'a str,
        }
        let (mut name, mut key, mut value) = (name.to_owned(), key.to_owned(), value.to_owned());
        let trigger = Trigger::GlobalConfigSet;
        if self.dispatcher.has_subscribers(trigger) {
            let kwargs = Set { global_config: COMPONENT, name: &name, name_: &name, key: &key, value: &value };
            let mut answered = self.dispatcher.fire(trigger, &kwargs).await;
            for (part, answer) in [("name", &mut name), ("key", &mut key), ("value", &mut value)] {
                read(trigger, answered.take(part), answer);
            }
        }
        self.backend.config_set(name, key, value).await
    }

    /// The value of `key` in the config `name`.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn get(self, name: &str, key: &str) -> Result<Option<String>, BrokerError> {
        let all = self.backend.config_get_all(name.to_owned()).await?;
        let mut found = all.into_iter().find_map(|(known, value)| (known == key).then_some(value));
        self.ask(Trigger::GlobalConfigGet, &mut found).await;
        Ok(found)
    }

    /// Keys and values of the config `name`.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn get_all(self, name: &str) -> Result<Vec<(String, String)>, BrokerError> {
        let all = self.backend.config_get_all(name.to_owned()).await?;
        self.ask_about_pairs(Trigger::GlobalConfigGetAll, all).await
    }

    /// Keys and values of the config `name` whose key begins with `prefix`.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn get_match(self, name: &str, prefix: &str) -> Result<Vec<(String, String)>, BrokerError> {
        let mut all = self.backend.config_get_all(name.to_owned()).await?;
        all.retain(|(key, _)| key.starts_with(prefix));
        self.ask_about_pairs(Trigger::GlobalConfigGetMatch, all).await
    }

    /// Says that a worker is there; to be said again every few seconds.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn set_status(self) -> Result<(), BrokerError> {
        self.dispatcher.fire(Trigger::GlobalConfigSetStatus, &Kwargs { global_config: COMPONENT }).await;
        self.backend.set_running().await
    }

    /// Whether a worker of the project is there.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn is_running(self) -> Result<bool, BrokerError> {
        let mut status = self.backend.is_running().await?.then(|| "running".to_owned());
        self.ask(Trigger::GlobalConfigGet, &mut status).await;
        Ok(status.as_deref() == Some("running"))
    }

    pub(super) async fn started(self) {
        self.dispatcher.fire(Trigger::GlobalConfigStart, &Kwargs { global_config: COMPONENT }).await;
    }

    pub(super) async fn stopped(self) {
        self.dispatcher.fire(Trigger::GlobalConfigStop, &Kwargs { global_config: COMPONENT }).await;
    }

    async fn ask<T: Serialize + DeserializeOwned + Sync>(self, trigger: Trigger, get: &mut T) {
        if self.dispatcher.has_subscribers(trigger) {
            let mut answered = self.dispatcher.fire(trigger, &GetKwargs { global_config: COMPONENT, get: &*get }).await;
            read(trigger, answered.take("get"), get);
        }
    }

    /// Plugins see an object, as a config is one.
    async fn ask_about_pairs(self, trigger: Trigger, pairs: Vec<(String, String)>) -> Result<Vec<(String, String)>, BrokerError> {
        if !self.dispatcher.has_subscribers(trigger) {
            return Ok(pairs);
        }
        let mut object: std::collections::BTreeMap<String, String> = pairs.into_iter().collect();
        self.ask(trigger, &mut object).await;
        Ok(object.into_iter().collect())
    }
}

/// Puts what was answered in the place of what was there; an answer of another shape is told, and changes nothing.
fn read<T: DeserializeOwned>(trigger: Trigger, answer: Option<Box<RawValue>>, place: &mut T) {
    let Some(answer) = answer else { return };
    match serde_json::from_str(answer.get()) {
        Ok(value) => *place = value,
        Err(error) => tracing::warn!(%trigger, "an answer was left out, it is {answer}: {error}"),
    }
}
