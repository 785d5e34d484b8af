//! JSON that only passes through: kept as text, so that nothing is lost on the way.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// A borrowed JSON value, kept as its text until somebody asks for a part of it.
///
/// Integers beyond 64 bits, key order and number spelling stay as they were written.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json<'a>(#[serde(borrow)] &'a RawValue);

impl<'a> Json<'a> {
    /// The JSON text.
    #[must_use]
    pub fn text(self) -> &'a str {
        self.0.get()
    }

    /// The JSON text on one line: line ends between members become blanks. Inside of strings JSON has none.
    #[must_use]
    pub fn one_line(self) -> Cow<'a, str> {
        let text = self.text();
        if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() }
    }

    /// Reads the whole value as a `T`.
    ///
    /// # Errors
    ///
    /// When the value does not have the shape of a `T`.
    pub fn to<T: Deserialize<'a>>(self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.0.get())
    }

    /// Reads the member `key` of an object as a `T`; `None` when there is no such member, or it is of another shape.
    #[must_use]
    pub fn get<T: DeserializeOwned>(self, key: &str) -> Option<T> {
        let members: HashMap<Cow<'a, str>, &'a RawValue> = self.to().ok()?;
        serde_json::from_str(members.get(key)?.get()).ok()
    }
}

/// Reads a `T` from an object alone: the structs that serde derives also take a list, of their values in order.
///
/// # Errors
///
/// When it is no object, or not of the shape of a `T`.
pub fn from_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Members<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(members))
        }
    }

    deserializer.deserialize_map(Members(PhantomData))
}

impl<'a> From<&'a RawValue> for Json<'a> {
    fn from(raw: &'a RawValue) -> Self {
        Self(raw)
    }
}

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_text_until_somebody_asks_for_a_part_of_it() {
        let json: Json<'_> = serde_json::from_str("{\"a\":\r\n 123456789012345678901234567890, \"b\": \"x\\ny\"}").expect("JSON");
        assert_eq!(json.one_line(), r#"{"a":   123456789012345678901234567890, "b": "x\ny"}"#);
        assert_eq!((json.get::<String>("b").as_deref(), json.get::<u8>("a"), json.get::<u8>("c")), (Some("x\ny"), None, None));
        let short: Json<'_> = serde_json::from_str("[1]").expect("JSON");
        assert!(matches!(short.one_line(), Cow::Borrowed("[1]")));
        assert_eq!((short.get::<u8>("0"), short.to::<[u8; 1]>().ok()), (None, Some([1])));
    }
}
