//! Which answers fit a trigger: the rules by which a host takes them, and [`TestHost`](crate::testing::TestHost) with it.
//!
//! QTasks: "answers named below replace the corresponding variables". A trigger with one returnable key takes the bare value as well as
//! `{"key": value}`: the documented plugin answers `123`, real ones answer `{"result": 123}`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::answer::Directive;
use crate::error::ErrorBody;
use crate::trigger::Trigger;

/// Why an answer does not fit. The plugin has failed then, and the next one is asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// A trigger with several returnable keys was not answered with an object.
    #[error("answered {found} to {trigger}; expected an object with any of: {}", .trigger.returnable_keys().join(", "))]
    NoObject {
        /// What was answered to.
        trigger: Trigger,
        /// The beginning of the answer.
        found: String,
    },
    /// A key that the trigger does not take.
    #[error("answered `{key}` to {trigger}, which takes: {}", .trigger.returnable_keys().join(", "))]
    UnknownKey {
        /// What was answered to.
        trigger: Trigger,
        /// The key.
        key: String,
    },
    /// A directive where none can be followed.
    #[error("answered {directive} to {trigger}; only {} takes directives", Trigger::TaskExecutorRunTaskTriggerError)]
    NoDirectives {
        /// What was answered to.
        trigger: Trigger,
        /// The directive's name.
        directive: &'static str,
    },
    /// A delay that is none.
    #[error("answered retry_after {0}; expected a number of seconds, 0 or more")]
    Seconds(f64),
}

impl Unfit {
    /// As the plugin's failure.
    #[must_use]
    pub fn into_body(self) -> ErrorBody {
        ErrorBody::new("AnswerError", self.to_string())
    }
}

/// The returnable kwargs that a value answered to `trigger` replaces, by the order of their names. A trigger that has none takes no
/// answer: as in QTasks it is ignored, whatever it is.
///
/// # Errors
///
/// [`Unfit`].
pub fn replaced_keys(trigger: Trigger, answer: Box<RawValue>) -> Result<Vec<(&'static str, Box<RawValue>)>, Unfit> {
    let keys = trigger.returnable_keys();
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let text = answer.get();
    let members: Option<BTreeMap<Cow<'_, str>, &RawValue>> =
        if text.starts_with('{') { serde_json::from_str(text).ok() } else { None };
    if let [only] = keys {
        let named = members.as_ref().filter(|members| members.len() == 1).and_then(|members| members.get(*only));
        let value = named.map(|value| (*value).to_owned());
        return Ok(vec![(only, value.unwrap_or(answer))]);
    }
    let Some(members) = members else {
        return Err(Unfit::NoObject { trigger, found: text.chars().take(80).collect() });
    };
    let fitting = members.into_iter().map(|(name, value)| match keys.iter().find(|key| **key == name) {
        Some(key) => Ok((*key, value.to_owned())),
        None => Err(Unfit::UnknownKey { trigger, key: name.into_owned() }),
    });
    fitting.collect()
}

/// Checks that a directive can be followed.
///
/// # Errors
///
/// [`Unfit`].
pub fn check_directive(trigger: Trigger, directive: &Directive) -> Result<(), Unfit> {
    if trigger != Trigger::TaskExecutorRunTaskTriggerError {
        return Err(Unfit::NoDirectives { trigger, directive: directive.name() });
    }
    match directive {
        Directive::RetryAfter { seconds } if !(seconds.is_finite() && *seconds >= 0.0) => Err(Unfit::Seconds(*seconds)),
        _ => Ok(()),
    }
}
