//! The way of one event: to whom, in which order, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use qtasks_plugin_api::manifest::Mode;
use qtasks_plugin_api::{ErrorBody, Trigger, bounds};
use serde::Serialize;
use serde_json::value::RawValue;

use super::answers::{Answered, Gathered, Resolution};
use super::decision::{Decision, OutcomeKind};
use super::settings::TriggerSettings;
use crate::plugin::{AnswerMode, Outcome, Registry, Subscription};

/// What came of one event.
#[derive(Debug, Default)]
pub struct Dispatched {
    /// The answer that counts, and who gave it. `None`: nobody answered.
    pub answer: Option<(Answered, Resolution)>,
    /// One for each plugin that was asked, in order.
    pub decisions: Vec<Decision>,
}

impl Dispatched {
    /// The value for the returnable kwarg `key`, if a plugin replaced it.
    pub fn take(&mut self, key: &str) -> Option<Box<RawValue>> {
        match &mut self.answer {
            Some((Answered::Values(values), _)) => {
                let position = values.iter().position(|(name, _)| *name == key)?;
                Some(values.swap_remove(position).1)
            }
            _ => None,
        }
    }
}

/// Fires events at the plugins in the registry.
#[derive(Debug)]
pub struct Dispatcher {
    registry: ArcSwap<Registry>,
    /// By [`Trigger::index`], whether anybody asked: an event that nobody wants costs one load of it.
    subscribed: Vec<AtomicBool>,
    /// Indexed by [`Trigger::index`].
    answers: Vec<AnswerMode>,
    next_event: AtomicU64,
}

impl Dispatcher {
    /// A dispatcher over `registry`.
    #[must_use]
    pub fn new(registry: Registry, settings: &BTreeMap<Trigger, TriggerSettings>) -> Self {
        let mode = |trigger| settings.get(trigger).copied().unwrap_or_default().answers;
        Self {
            subscribed: Trigger::ALL.iter().map(|trigger| (!registry.subscriptions(*trigger).is_empty()).into()).collect(),
            registry: ArcSwap::from_pointee(registry),
            answers: Trigger::ALL.iter().map(mode).collect(),
            next_event: AtomicU64::new(1),
        }
    }

    /// The plugins in use now.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.load_full()
    }

    /// Whether anybody asked for `trigger`.
    #[must_use]
    pub fn has_subscribers(&self, trigger: Trigger) -> bool {
        self.subscribed[trigger.index()].load(Ordering::Relaxed)
    }

    /// Fires `trigger` with `kwargs`, which must become a JSON object. With no subscriber nothing is serialised.
    ///
    /// Each subscriber is asked in turn, within its own deadline. A plugin's failure is recorded, and the next one is asked.
    #[inline]
    pub async fn fire(&self, trigger: Trigger, kwargs: &(impl Serialize + Sync)) -> Dispatched {
        if !self.has_subscribers(trigger) {
            return Dispatched::default();
        }
        self.fire_subscribed(trigger, kwargs, true).await
    }

    /// Fires `task_executor_run_task_trigger_error`. Where the task `may_run_again` no more, a `retry_after` is recorded and is no answer:
    /// that of a plugin before it stands, and the next one is asked.
    pub async fn fire_error(&self, kwargs: &(impl Serialize + Sync), may_run_again: bool) -> Dispatched {
        let trigger = Trigger::TaskExecutorRunTaskTriggerError;
        if !self.has_subscribers(trigger) {
            return Dispatched::default();
        }
        self.fire_subscribed(trigger, kwargs, may_run_again).await
    }

    async fn fire_subscribed(&self, trigger: Trigger, kwargs: &(impl Serialize + Sync), may_run_again: bool) -> Dispatched {
        let registry = self.registry.load_full();
        let event = self.next_event.fetch_add(1, Ordering::Relaxed);
        let mut kwargs = match to_json(kwargs) {
            Ok(text) => Kwargs::Own(text),
            Err(error) => {
                tracing::error!(%trigger, "the event cannot be sent, no plugin was asked: {error}");
                return Dispatched::default();
            }
        };
        let subscriptions = registry.subscriptions(trigger);
        let mut gathered = Gathered::new(may_run_again);
        let mut dispatched = Dispatched { answer: None, decisions: Vec::with_capacity(subscriptions.len()) };
        let mut resolution = None;
        let mut stale = false;
        for subscription in subscriptions {
            if stale {
                match gathered.kwargs_for_next(kwargs.text()) {
                    Ok(text) => kwargs = Kwargs::Own(text),
                    Err(error) => tracing::error!(%trigger, "the answers so far cannot be passed on: {error}"),
                }
                stale = false;
            }
            let begun = Instant::now();
            let outcome = call(subscription, trigger, &mut kwargs).await;
            let mode = subscription.answers.unwrap_or(self.answers[trigger.index()]);
            let (kind, failure) = match take(&mut gathered, trigger, mode, outcome) {
                Ok(kind) => (kind, None),
                Err(failure) => (OutcomeKind::Failed, Some(failure)),
            };
            let by = Arc::clone(subscription.plugin.identity());
            if let Some(failure) = &failure {
                tracing::warn!(plugin = %by.name, %trigger, event, "the plugin failed, the next one is asked: {failure}");
            }
            let answered = match kind {
                OutcomeKind::Pass | OutcomeKind::Failed => false,
                OutcomeKind::RetryAfter => may_run_again,
                _ => true,
            };
            dispatched.decisions.push(Decision {
                event,
                trigger,
                by: Arc::clone(&by),
                outcome: kind,
                duration: begun.elapsed(),
                failure,
            });
            if answered {
                resolution = Some(Resolution { by, outcome: kind });
                stale = true;
                if mode == AnswerMode::First {
                    break;
                }
            }
        }
        dispatched.answer = gathered.into_answered().zip(resolution);
        dispatched
    }

    /// Puts another registry in place. Events under way end with the plugins they began with.
    pub fn replace(&self, registry: Registry) {
        let registry = Arc::new(registry);
        self.registry.store(Arc::clone(&registry));
        for trigger in Trigger::ALL {
            let subscribed = !registry.subscriptions(*trigger).is_empty();
            self.subscribed[trigger.index()].store(subscribed, Ordering::Relaxed);
        }
    }
}

/// The kwargs as JSON text, in one allocation for an event of the usual size.
fn to_json(kwargs: &impl Serialize) -> serde_json::Result<String> {
    const USUAL_EVENT_BYTES: usize = 768;
    let mut text = Vec::with_capacity(USUAL_EVENT_BYTES);
    serde_json::to_writer(&mut text, kwargs)?;
    if text.len() > bounds::MAX_BYTES {
        let (found, most) = (text.len(), bounds::MAX_BYTES);
        return Err(serde::ser::Error::custom(format_args!("{found} bytes, at most {most} are sent")));
    }
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

/// An event's kwargs: written once, and shared once a call may outlive the dispatch that made it.
enum Kwargs {
    Own(String),
    Shared(Arc<String>),
}

impl Kwargs {
    fn text(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Shared(text) => text,
        }
    }

    fn shared(&mut self) -> Arc<String> {
        let shared = match self {
            Self::Own(text) => Arc::new(std::mem::take(text)),
            Self::Shared(text) => Arc::clone(text),
        };
        *self = Self::Shared(Arc::clone(&shared));
        shared
    }
}

async fn call(subscription: &Subscription, trigger: Trigger, kwargs: &mut Kwargs) -> Outcome {
    let plugin = &subscription.plugin;
    if subscription.mode == Mode::Inline
        && let Some(outcome) = plugin.call_inline(subscription.entry, trigger.name(), kwargs.text())
    {
        return outcome;
    }
    let deadline = Some(plugin.settings().deadline);
    plugin.call(subscription.entry, subscription.mode, trigger.name(), &kwargs.shared(), deadline).await
}

/// What an outcome means; a failure when it does not fit the trigger.
fn take(gathered: &mut Gathered, trigger: Trigger, mode: AnswerMode, outcome: Outcome) -> Result<OutcomeKind, Box<ErrorBody>> {
    match outcome {
        Outcome::Pass => Ok(OutcomeKind::Pass),
        // The answers to a one-way trigger are ignored, as in QTasks.
        Outcome::Result(_) if trigger.returnable_keys().is_empty() => Ok(OutcomeKind::Pass),
        Outcome::Result(value) => {
            gathered.take_value(trigger, mode, value)?;
            Ok(OutcomeKind::Result)
        }
        Outcome::Directive(directive) => {
            let kind = kind_of(&directive)?;
            gathered.take_directive(trigger, directive)?;
            Ok(kind)
        }
        Outcome::Failed(error) => Err(error),
        other => Err(Box::new(ErrorBody::new("AnswerError", format!("an outcome this host does not know: {other:?}")))),
    }
}

fn kind_of(directive: &qtasks_plugin_api::Directive) -> Result<OutcomeKind, Box<ErrorBody>> {
    use qtasks_plugin_api::Directive;
    match directive {
        Directive::RetryAfter { .. } => Ok(OutcomeKind::RetryAfter),
        Directive::Cancel { .. } => Ok(OutcomeKind::Cancel),
        Directive::ReplaceError { .. } => Ok(OutcomeKind::ReplaceError),
        Directive::DeadLetter { .. } => Ok(OutcomeKind::DeadLetter),
        other => Err(Box::new(ErrorBody::new("AnswerError", format!("a directive this host does not know: {}", other.name())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_beyond_the_bounds_is_not_sent() {
        // Two quotes.
        let most = "x".repeat(bounds::MAX_BYTES - 2);
        assert_eq!(to_json(&most).map(|text| text.len()).map_err(|error| error.to_string()), Ok(bounds::MAX_BYTES));
        let error = to_json(&(most + "x")).expect_err("one byte too many").to_string();
        assert_eq!(error, "67108865 bytes, at most 67108864 are sent");
    }
}
