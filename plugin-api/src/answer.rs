//! What a handler answers.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, ErrorBody};
use crate::strict::to_raw_value;

/// What a handler answers to an event.
///
/// Any JSON value is an answer, falsy ones too: `0`, `""`, `false`, `[]`, `null`. Only [`Answer::Pass`] means "not handled".
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Answer {
    /// Not handled: the next plugin is asked, and in the end the error goes on.
    Pass,
    /// This JSON value.
    Result(Box<RawValue>),
    /// What to do with the task instead.
    Directive(Directive),
    /// The handler failed; the next plugin is asked.
    Failed(Error),
}

/// What a handler of `task_executor_run_task_trigger_error` may ask for instead of giving a result.
///
/// On the wire: `{"directive": "retry_after", "seconds": 2.5}`, `{"directive": "cancel", "reason": "…"}`,
/// `{"directive": "replace_error", "error": {…}}`, `{"directive": "dead_letter", "reason": "…"}`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "directive", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Directive {
    /// Run the task again after this many seconds. Where no attempt is left this is no answer: that of an earlier plugin stands, the
    /// next one is asked, and in the end the error goes on.
    RetryAfter {
        /// Seconds to wait.
        seconds: f64,
    },
    /// End the task as `cancel`.
    Cancel {
        /// Why.
        reason: String,
    },
    /// Let the error go on, but as this one. The original is kept beside it.
    ReplaceError {
        /// The new error.
        error: Box<ErrorBody>,
    },
    /// Set the task aside for a person to look at.
    DeadLetter {
        /// Why.
        reason: String,
    },
}

// By hand: serde buffers an internally tagged enum, and what is buffered is no longer the raw JSON that an `ErrorBody` keeps.
impl<'de> Deserialize<'de> for Directive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            directive: String,
            seconds: Option<f64>,
            reason: Option<String>,
            error: Option<Box<ErrorBody>>,
        }
        let Wire { directive, seconds, reason, error } = Wire::deserialize(deserializer)?;
        let missing = |field| move || D::Error::missing_field(field);
        Ok(match directive.as_str() {
            "retry_after" => Self::RetryAfter { seconds: seconds.ok_or_else(missing("seconds"))? },
            "cancel" => Self::Cancel { reason: reason.ok_or_else(missing("reason"))? },
            "replace_error" => Self::ReplaceError { error: error.ok_or_else(missing("error"))? },
            "dead_letter" => Self::DeadLetter { reason: reason.ok_or_else(missing("reason"))? },
            _ => return Err(D::Error::unknown_variant(&directive, &["retry_after", "cancel", "replace_error", "dead_letter"])),
        })
    }
}

impl Directive {
    /// Its name on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RetryAfter { .. } => "retry_after",
            Self::Cancel { .. } => "cancel",
            Self::ReplaceError { .. } => "replace_error",
            Self::DeadLetter { .. } => "dead_letter",
        }
    }
}

impl Answer {
    /// Answers with a value. A value without a JSON form makes the handler fail.
    #[must_use]
    pub fn result(value: impl Serialize) -> Self {
        match to_raw_value(&value) {
            Ok(raw) => Self::Result(raw),
            Err(error) => Self::Failed(Error::msg(format_args!("the answer has no JSON form: {error}"))),
        }
    }

    /// Asks for another attempt after `delay`.
    #[must_use]
    pub fn retry_after(delay: Duration) -> Self {
        Self::Directive(Directive::RetryAfter { seconds: delay.as_secs_f64() })
    }

    /// Ends the task as `cancel`.
    #[must_use]
    pub fn cancel(reason: impl Into<String>) -> Self {
        Self::Directive(Directive::Cancel { reason: reason.into() })
    }

    /// Lets the error go on as another one.
    #[must_use]
    pub fn replace_error(kind: impl Into<std::borrow::Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::Directive(Directive::ReplaceError { error: Box::new(ErrorBody::new(kind, message)) })
    }

    /// Sets the task aside.
    #[must_use]
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::Directive(Directive::DeadLetter { reason: reason.into() })
    }
}

/// A type that a handler may return.
///
/// `()` is "not handled"; `Option` is "not handled" when `None`; `Result` fails with any error; numbers, texts, booleans, lists
/// of these and [`serde_json::Value`] are answers. For any other serde type use [`Answer::result`].
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "a value of any serde type is answered with `Answer::result(value)`",
    note = "an `async fn` is named with `=> async`"
)]
pub trait IntoAnswer {
    /// The answer.
    fn into_answer(self) -> Answer;
}

impl IntoAnswer for Answer {
    fn into_answer(self) -> Answer {
        self
    }
}

impl IntoAnswer for () {
    fn into_answer(self) -> Answer {
        Answer::Pass
    }
}

impl<T: IntoAnswer> IntoAnswer for Option<T> {
    fn into_answer(self) -> Answer {
        self.map_or(Answer::Pass, T::into_answer)
    }
}

impl<T: IntoAnswer, E: Into<Error>> IntoAnswer for Result<T, E> {
    fn into_answer(self) -> Answer {
        self.map_or_else(|error| Answer::Failed(error.into()), T::into_answer)
    }
}

macro_rules! values_are_answers {
    ($($ty:ty),+) => {
        $(impl IntoAnswer for $ty {
            fn into_answer(self) -> Answer {
                Answer::result(self)
            }
        })+
    };
}

values_are_answers!(
    bool,
    i8,
    i16,
    i32,
    i64,
    isize,
    u8,
    u16,
    u32,
    u64,
    usize,
    f32,
    f64,
    String,
    &str,
    serde_json::Value,
    Box<RawValue>
);

impl<T: Serialize> IntoAnswer for Vec<T> {
    fn into_answer(self) -> Answer {
        Answer::result(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn text(answer: impl IntoAnswer) -> String {
        match answer.into_answer() {
            Answer::Result(raw) => raw.get().to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn falsy_values_are_answers_and_only_nothing_is_a_pass() {
        assert_eq!(text(123), "123");
        assert_eq!(text(0), "0");
        assert_eq!(text(""), r#""""#);
        assert_eq!(text(false), "false");
        assert_eq!(text(Value::Null), "null");
        assert_eq!(text(json!([])), "[]");
        assert_eq!(text(Vec::<i32>::new()), "[]");
        assert_eq!(text(()), "Pass");
        assert_eq!(text(None::<i32>), "Pass");
        assert_eq!(text(Some(1.5)), "1.5");
    }

    #[test]
    fn an_error_or_a_number_without_json_form_is_a_failure() {
        assert!(matches!(Err::<(), _>("no").into_answer(), Answer::Failed(_)));
        assert!(matches!(f64::NAN.into_answer(), Answer::Failed(_)));
    }

    #[test]
    fn an_answer_is_small_since_each_step_of_its_way_moves_it() {
        assert!(size_of::<Answer>() <= 32, "{} bytes", size_of::<Answer>());
    }

    #[test]
    fn directives_are_named_on_the_wire() {
        let Answer::Directive(directive) = Answer::retry_after(Duration::from_millis(2500)) else {
            panic!("a directive");
        };
        let wire = serde_json::to_value(&directive).expect("JSON");
        assert_eq!(wire, json!({"directive": "retry_after", "seconds": 2.5}));
        assert_eq!(wire["directive"], directive.name());
    }

    #[test]
    fn every_directive_is_read_back_from_the_wire() {
        for answer in
            [Answer::retry_after(Duration::ZERO), Answer::cancel("c"), Answer::replace_error("E", "m"), Answer::dead_letter("d")]
        {
            let Answer::Directive(given) = answer else { panic!("a directive") };
            let wire = serde_json::to_string(&given).expect("JSON");
            let read: Directive = serde_json::from_str(&wire).expect(&wire);
            assert_eq!(format!("{read:?}"), format!("{given:?}"));
        }
        for (wire, said) in [(r#"{"directive": "cancel"}"#, "reason"), (r#"{"directive": "sleep"}"#, "unknown variant `sleep`")] {
            let error = serde_json::from_str::<Directive>(wire).expect_err(wire).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
