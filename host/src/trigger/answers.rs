//! What an answer means: which kwargs it replaces, and what the next plugin sees.
//!
//! QTasks: "answers named below replace the corresponding variables; absent or none means unchanged", and "the next plugin
//! receives the result from the previous one". Which answers fit a trigger is said in `plugin-api/src/fit.rs`.

use std::borrow::Cow;
use std::sync::Arc;

use qtasks_plugin_api::fit::{Unfit, check_directive, replaced_keys};
use qtasks_plugin_api::nearest::nearest;
use qtasks_plugin_api::{Directive, ErrorBody, Trigger, bounds};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::plugin::{AnswerMode, PluginIdentity};

/// What the plugins answered together: the returnable kwargs as they left them, or what is to become of the task.
#[derive(Debug, Clone)]
pub enum Answered {
    /// Key and value of each kwarg that a plugin replaced.
    Values(Vec<(&'static str, Box<RawValue>)>),
    /// What to do with the task. Only for `task_executor_run_task_trigger_error`.
    Directive(Directive),
}

/// Who gave the answer that counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// The plugin; name and version here, its digest stands with its decision.
    #[serde(flatten, serialize_with = "without_digest")]
    pub by: Arc<PluginIdentity>,
    /// What it answered.
    pub outcome: super::OutcomeKind,
}

fn without_digest<S: Serializer>(by: &Arc<PluginIdentity>, serializer: S) -> Result<S::Ok, S::Error> {
    PluginIdentity { digest: None, ..PluginIdentity::clone(by) }.serialize(serializer)
}

/// Gathers the answers of one event.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Whether the task has an attempt left that a `retry_after` could mean.
    may_run_again: bool,
    answered: Option<Answered>,
    /// What the answer is a list of, while the last one was of mode `all`.
    all: Option<Vec<Box<RawValue>>>,
}

impl Gathered {
    pub(super) fn new(may_run_again: bool) -> Self {
        Self { may_run_again, answered: None, all: None }
    }

    /// Takes a value that a plugin answered to `trigger`.
    ///
    /// An object answered to a trigger with several returnable keys replaces the keys it names, and no others; in mode `all` too, since
    /// values of different keys make no list.
    pub(super) fn take_value(&mut self, trigger: Trigger, mode: AnswerMode, answer: Box<RawValue>) -> Result<(), Box<ErrorBody>> {
        let replaced = replaced_keys(trigger, answer).map_err(unfit)?;
        if mode == AnswerMode::All && trigger.returnable_keys().len() == 1 {
            let mut all = self.all.take().unwrap_or_else(|| match &self.answered {
                // The answer before it, of a plugin with another mode, is the first of the list.
                Some(Answered::Values(before)) => before.iter().map(|(_, value)| value.clone()).collect(),
                _ => Vec::new(),
            });
            let before = all.len();
            all.extend(replaced.into_iter().map(|(_, value)| value));
            let list = list_of(&all);
            if list.is_err() {
                // What was answered before stands.
                all.truncate(before);
            }
            self.all = Some(all);
            self.answered = Some(Answered::Values(vec![(trigger.returnable_keys()[0], list?)]));
            return Ok(());
        }
        self.all = None;
        match &mut self.answered {
            Some(Answered::Values(earlier)) => {
                for (key, value) in replaced {
                    match earlier.iter_mut().find(|(known, _)| *known == key) {
                        Some(slot) => slot.1 = value,
                        None => earlier.push((key, value)),
                    }
                }
            }
            other => *other = Some(Answered::Values(replaced)),
        }
        Ok(())
    }

    /// Takes a directive that a plugin gave. One that nobody can follow leaves the answer before it.
    pub(super) fn take_directive(&mut self, trigger: Trigger, directive: Directive) -> Result<(), Box<ErrorBody>> {
        check_directive(trigger, &directive).map_err(unfit)?;
        if matches!(directive, Directive::RetryAfter { .. }) && !self.may_run_again {
            return Ok(());
        }
        self.all = None;
        self.answered = Some(Answered::Directive(directive));
        Ok(())
    }

    /// What the next plugin sees: the kwargs with what was replaced so far.
    pub(super) fn kwargs_for_next(&self, kwargs: &str) -> Result<String, serde_json::Error> {
        let Some(Answered::Values(replaced)) = &self.answered else { return Ok(kwargs.to_owned()) };
        let given: Object<'_> = serde_json::from_str(kwargs)?;
        serde_json::to_string(&Replaced { given, replaced })
    }

    pub(super) fn into_answered(self) -> Option<Answered> {
        self.answered
    }
}

fn answer_error(message: String) -> Box<ErrorBody> {
    Box::new(ErrorBody::new("AnswerError", message))
}

fn unfit(unfit: Unfit) -> Box<ErrorBody> {
    let hint = match &unfit {
        Unfit::UnknownKey { trigger, key } => nearest(key, trigger.returnable_keys().iter().copied()),
        _ => String::new(),
    };
    let mut body = unfit.into_body();
    body.message.push_str(&hint);
    Box::new(body)
}

fn list_of(values: &[Box<RawValue>]) -> Result<Box<RawValue>, Box<ErrorBody>> {
    let list = serde_json::value::to_raw_value(values).map_err(|error| answer_error(error.to_string()))?;
    // Each answer was within the bounds; all of them together need not be.
    bounds::check_payload(list.get()).map_err(|error| answer_error(format!("the list of all answers is {error}")))?;
    Ok(list)
}

/// The members of a JSON object, in their order.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(Self)
    }
}

struct Replaced<'a> {
    given: Object<'a>,
    replaced: &'a [(&'static str, Box<RawValue>)],
}

impl Serialize for Replaced<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in &self.given.0 {
            if !self.replaced.iter().any(|(name, _)| name == key) {
                map.serialize_entry(key, value)?;
            }
        }
        for (key, value) in self.replaced {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    fn values(trigger: Trigger, mode: AnswerMode, answers: &[&str]) -> Vec<(&'static str, String)> {
        let mut gathered = Gathered::new(true);
        for answer in answers {
            gathered.take_value(trigger, mode, raw(answer)).expect("a fitting answer");
        }
        match gathered.into_answered() {
            Some(Answered::Values(values)) => values.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_single_key_takes_the_bare_value_and_the_named_one() {
        let error = Trigger::TaskExecutorRunTaskTriggerError;
        let last = AnswerMode::ReturnLast;
        assert_eq!(values(error, last, &["123"]), [("result", "123".into())]);
        assert_eq!(values(error, last, &[r#"{"result": 5}"#]), [("result", "5".into())]);
        assert_eq!(values(error, last, &[r#"{"result": 5, "note": 1}"#]), [("result", r#"{"result": 5, "note": 1}"#.into())]);
        assert_eq!(values(error, last, &["1", "null"]), [("result", "null".into())]);
        assert_eq!(values(error, AnswerMode::All, &["1", "[]", "null"]), [("result", "[1,[],null]".into())]);
    }

    #[test]
    fn a_partial_answer_replaces_only_what_it_names() {
        let trigger = Trigger::QtasksAddTaskBeforeBroker;
        let answered = values(trigger, AnswerMode::ReturnLast, &[r#"{"priority": 5}"#, r#"{"task_name": "b", "priority": 7}"#]);
        assert_eq!(answered, [("priority", "7".to_owned()), ("task_name", r#""b""#.to_owned())]);
        let mut gathered = Gathered::new(true);
        let wrong = gathered.take_value(trigger, AnswerMode::ReturnLast, raw(r#"{"priorty": 5}"#)).expect_err("no such key");
        assert!(wrong.message.contains("did you mean `priority`?"), "{wrong}");
        assert!(gathered.take_value(trigger, AnswerMode::ReturnLast, raw("[1]")).is_err());
        gathered.take_value(trigger, AnswerMode::ReturnLast, raw(r#"{"priority": 5}"#)).expect("fits");
        let next = gathered.kwargs_for_next(r#"{"task_name": "a", "priority": 0, "args": [123456789012345678901234567890]}"#);
        assert_eq!(next.expect("JSON"), r#"{"task_name":"a","args":[123456789012345678901234567890],"priority":5}"#);
    }

    #[test]
    fn all_makes_a_list_of_the_answers_before_it_and_never_of_different_keys() {
        let error = Trigger::TaskExecutorRunTaskTriggerError;
        let take = |answers: &[(AnswerMode, &str)]| {
            let mut gathered = Gathered::new(true);
            for (mode, answer) in answers {
                match *answer {
                    "cancel" => gathered.take_directive(error, Directive::Cancel { reason: String::new() }).expect("fits"),
                    answer => gathered.take_value(error, *mode, raw(answer)).expect("fits"),
                }
            }
            match gathered.into_answered() {
                Some(Answered::Values(values)) => values[0].1.get().to_owned(),
                other => panic!("{other:?}"),
            }
        };
        let (all, last) = (AnswerMode::All, AnswerMode::ReturnLast);
        let deepest = "[".repeat(bounds::MAX_DEPTH) + &"]".repeat(bounds::MAX_DEPTH);
        let mut gathered = Gathered::new(true);
        gathered.take_value(error, all, raw("1")).expect("fits");
        let refused = gathered.take_value(error, all, raw(&deepest)).expect_err("one level too many in a list");
        assert!(refused.message.contains("the list of all answers is JSON nested deeper"), "{refused}");
        gathered.take_value(error, all, raw("2")).expect("fits");
        let Some(Answered::Values(list)) = gathered.into_answered() else { panic!("a list") };
        assert_eq!(list[0].1.get(), "[1,2]", "what does not fit changes nothing");
        assert_eq!(take(&[(last, "1"), (all, "2"), (all, "3")]), "[1,2,3]");
        assert_eq!(take(&[(all, "1"), (last, "2"), (all, "3")]), "[2,3]", "what was replaced does not come back");
        assert_eq!(take(&[(all, "1"), (last, "cancel"), (all, "3")]), "[3]");
        let several = Trigger::QtasksAddTaskBeforeBroker;
        let answered = values(several, all, &[r#"{"priority": 5}"#, r#"{"task_name": "b"}"#]);
        assert_eq!(answered, [("priority", "5".to_owned()), ("task_name", r#""b""#.to_owned())]);
    }

    #[test]
    fn directives_belong_to_the_error_trigger_and_are_checked() {
        let mut gathered = Gathered::new(true);
        let cancel = Directive::Cancel { reason: "no".into() };
        assert!(gathered.take_directive(Trigger::WorkerStart, cancel).is_err());
        let never = Directive::RetryAfter { seconds: -1.0 };
        assert!(gathered.take_directive(Trigger::TaskExecutorRunTaskTriggerError, never).is_err());
    }
}
