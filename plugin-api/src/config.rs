//! A plugin's own configuration: a serde struct, and its JSON Schema as a constant.

use std::collections::{BTreeMap, HashMap};

use serde::de::DeserializeOwned;

use crate::const_json::ConstJson;

/// The shape of a JSON value, as a constant: it goes into the manifest, which is read without running the plugin.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    /// Any JSON value.
    Any,
    /// No configuration: nothing, or an empty object.
    Nothing,
    /// `true` or `false`.
    Boolean,
    /// A whole number of at least `least`.
    Integer {
        /// The smallest value allowed.
        least: i64,
    },
    /// Any number.
    Number,
    /// A text.
    String,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// The value, or `null`.
    Optional(&'static Schema),
    /// A list.
    List(&'static Schema),
    /// An object with any keys.
    Map(&'static Schema),
    /// An object with exactly these fields.
    Object(&'static [Field]),
    /// A JSON Schema of the author's own, as JSON text.
    Raw(&'static str),
}

/// One field of [`Schema::Object`].
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// What it means, from its doc comment.
    pub description: &'static str,
    /// The shape of its value.
    pub schema: &'static Schema,
    /// Whether it must be given.
    pub required: bool,
}

impl Schema {
    /// Writes the JSON Schema.
    pub const fn write<const N: usize>(&self, json: &mut ConstJson<N>) {
        if let Schema::Raw(text) = self {
            json.raw(text);
            return;
        }
        json.raw("{");
        self.write_members(json);
        json.raw("}");
    }

    /// Whether a field of this shape must be given, when it has no default of its own.
    #[doc(hidden)]
    #[must_use]
    pub const fn is_required(&self) -> bool {
        match self {
            Schema::Optional(_) => false,
            Schema::Object(fields) => {
                let mut index = 0;
                while index < fields.len() && !fields[index].required {
                    index += 1;
                }
                index < fields.len()
            }
            _ => true,
        }
    }

    const fn write_members<const N: usize>(&self, json: &mut ConstJson<N>) {
        match self {
            Schema::Any => {}
            Schema::Nothing => Schema::Object(&[]).write_members(json),
            Schema::Boolean => json.raw("\"type\":\"boolean\""),
            Schema::Integer { least } => {
                json.raw("\"type\":\"integer\"");
                if *least != i64::MIN {
                    json.raw(",\"minimum\":");
                    json.integer(*least);
                }
            }
            Schema::Number => json.raw("\"type\":\"number\""),
            Schema::String => json.raw("\"type\":\"string\""),
            Schema::Choice(names) => {
                json.raw("\"enum\":[");
                let mut index = 0;
                while index < names.len() {
                    json.separator();
                    json.string(names[index]);
                    index += 1;
                }
                json.raw("]");
            }
            Schema::Optional(inner) => {
                json.raw("\"anyOf\":[");
                inner.write(json);
                json.raw(",{\"type\":\"null\"}]");
            }
            Schema::List(inner) => {
                json.raw("\"type\":\"array\",\"items\":");
                inner.write(json);
            }
            Schema::Map(inner) => {
                json.raw("\"type\":\"object\",\"additionalProperties\":");
                inner.write(json);
            }
            Schema::Object(fields) => write_object(fields, json),
            Schema::Raw(text) => {
                json.raw("\"allOf\":[");
                json.raw(text);
                json.raw("]");
            }
        }
    }
}

const fn write_object<const N: usize>(fields: &[Field], json: &mut ConstJson<N>) {
    json.raw("\"type\":\"object\",\"additionalProperties\":false,\"properties\":{");
    let mut index = 0;
    while index < fields.len() {
        let field = &fields[index];
        json.key(field.name);
        json.raw("{");
        if !field.description.is_empty() {
            json.key("description");
            json.string(field.description.trim_ascii());
        }
        if !matches!(field.schema, Schema::Any) {
            json.separator();
            field.schema.write_members(json);
        }
        json.raw("}");
        index += 1;
    }
    json.raw("},\"required\":[");
    let mut index = 0;
    while index < fields.len() {
        if fields[index].required {
            json.separator();
            json.string(fields[index].name);
        }
        index += 1;
    }
    json.raw("]");
}

/// A plugin's configuration.
///
/// Write it with [`config!`](crate::config), use `()` for none, or implement this for a serde struct of your own with a
/// [`Schema::Raw`] beside it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no configuration of a plugin: its JSON Schema is not known",
    note = "declare the struct within `qtasks_plugin_api::config! {{ … }}`, or implement `PluginConfig` for it"
)]
pub trait PluginConfig: DeserializeOwned {
    /// Its JSON Schema.
    const SCHEMA: Schema;

    /// Reads it from the JSON object that the operator wrote as `[plugins.NAME.config]`.
    ///
    /// # Errors
    ///
    /// When the text does not have this shape.
    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl PluginConfig for () {
    const SCHEMA: Schema = Schema::Nothing;

    fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        serde_json::from_str::<Nothing>(text).map(|Nothing {}| ())
    }
}

/// A type that may stand in a [`config!`](crate::config) struct.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand in a `config!` struct: its JSON Schema is not known",
    note = "declare a struct or an enum of names within `qtasks_plugin_api::config! {{ … }}`, or use `serde_json::Value`"
)]
pub trait ConfigValue {
    /// Its JSON Schema.
    const SCHEMA: Schema;

    /// What stands for a field that was not given; `None` makes it required. There is one for a [`Schema::Optional`] and for a
    /// [`Schema::Object`] without required fields.
    #[must_use]
    fn when_absent() -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}

macro_rules! config_values {
    ($($schema:expr => $($ty:ty),+;)*) => {
        $($(impl ConfigValue for $ty { const SCHEMA: Schema = $schema; })+)*
    };
}

config_values! {
    Schema::Any => serde_json::Value;
    Schema::Map(&Schema::Any) => serde_json::Map<String, serde_json::Value>;
    Schema::Boolean => bool;
    Schema::Integer { least: i64::MIN } => i8, i16, i32, i64, isize;
    Schema::Integer { least: 0 } => u8, u16, u32, u64, usize;
    Schema::Number => f32, f64;
    Schema::String => String, std::path::PathBuf;
}

impl<T: ConfigValue> ConfigValue for Option<T> {
    const SCHEMA: Schema = Schema::Optional(&T::SCHEMA);

    fn when_absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: ConfigValue> ConfigValue for Vec<T> {
    const SCHEMA: Schema = Schema::List(&T::SCHEMA);
}

impl<T: ConfigValue> ConfigValue for BTreeMap<String, T> {
    const SCHEMA: Schema = Schema::Map(&T::SCHEMA);
}

impl<T: ConfigValue> ConfigValue for HashMap<String, T> {
    const SCHEMA: Schema = Schema::Map(&T::SCHEMA);
}

/// Declares configuration structs (and enums of names): derives serde's `Deserialize`, refuses unknown keys, and knows their
/// JSON Schema at compile time. Doc comments become descriptions; `= value` makes a field optional, and so does a struct as its type all
/// of whose fields are.
///
/// ```
/// qtasks_plugin_api::config! {
///     /// How to answer.
///     pub struct Config {
///         /// The answer.
///         value: i64 = 123,
///         /// Only for these tasks.
///         tasks: Vec<String> = vec!["add".to_owned()],
///         tone: Tone = Tone::plain,
///         limits: Limits,
///     }
///
///     pub struct Limits { max: u32 = 10 }
///
///     pub enum Tone { plain, loud }
/// }
/// # use qtasks_plugin_api::PluginConfig;
/// let config = Config::from_json(r#"{"tone": "loud"}"#)?;
/// assert_eq!((config.value, config.limits.max), (123, 10));
/// assert!(Config::from_json(r#"{"vlaue": 1}"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[macro_export]
macro_rules! config {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])* $field_vis:vis $field:ident : $ty:ty $(= $default:expr)?),* $(,)?
        }
        $($others:tt)*
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[doc = $doc])* $field_vis $field: $ty,)*
        }

        impl<'de> $crate::__private::serde::Deserialize<'de> for $name {
            fn deserialize<D>(deserializer: D) -> ::core::result::Result<Self, D::Error>
            where
                D: $crate::__private::serde::Deserializer<'de>,
            {
                #[derive($crate::__private::serde::Deserialize)]
                #[serde(crate = "::qtasks_plugin_api::__private::serde", deny_unknown_fields)]
                struct Given {
                    $($field: ::core::option::Option<$ty>,)*
                }
                let given: Given = $crate::from_object(deserializer)?;
                ::core::result::Result::Ok(Self {
                    $($field: match given.$field {
                        ::core::option::Option::Some(value) => value,
                        ::core::option::Option::None => $crate::__field_default!($ty $(, $default)?).ok_or_else(|| {
                            $crate::__private::serde::de::Error::missing_field(
                                $crate::__private::plain_name(::core::stringify!($field)),
                            )
                        })?,
                    },)*
                })
            }
        }

        impl $crate::ConfigValue for $name {
            const SCHEMA: $crate::Schema = $crate::Schema::Object(&[$(
                $crate::Field {
                    name: $crate::__private::plain_name(::core::stringify!($field)),
                    description: ::core::concat!($($doc,)*),
                    schema: &<$ty as $crate::ConfigValue>::SCHEMA,
                    required: $crate::__field_required!($ty $(, $default)?),
                },
            )*]);

            fn when_absent() -> ::core::option::Option<Self> {
                ::core::option::Option::Some(Self {
                    $($field: $crate::__field_default!($ty $(, $default)?)?,)*
                })
            }
        }

        impl $crate::PluginConfig for $name {
            const SCHEMA: $crate::Schema = <Self as $crate::ConfigValue>::SCHEMA;
        }

        $crate::config! { $($others)* }
    };
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[doc = $doc:literal])* $variant:ident),+ $(,)?
        }
        $($others:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, $crate::__private::serde::Deserialize)]
        #[serde(crate = "::qtasks_plugin_api::__private::serde")]
        #[allow(non_camel_case_types, reason = "a variant's name is the text the operator writes")]
        $vis enum $name {
            $($(#[doc = $doc])* $variant,)+
        }

        impl $crate::ConfigValue for $name {
            const SCHEMA: $crate::Schema = $crate::Schema::Choice(&[
                $($crate::__private::plain_name(::core::stringify!($variant))),+
            ]);
        }

        $crate::config! { $($others)* }
    };
    () => {};
    ($($other:tt)*) => {
        ::core::compile_error!(
            "expected `struct NAME { FIELD: TYPE, … }` or `enum NAME { VALUE, … }`, one or several; a field may have doc comments and \
             no other attribute: one with a default is `FIELD: TYPE = DEFAULT`, and one of type `Option` may be left out"
        );
    };
}

/// A field's name as it is written in the configuration: a keyword of Rust needs an `r#` in the struct alone.
#[must_use]
pub const fn plain_name(identifier: &str) -> &str {
    match identifier.as_bytes() {
        [b'r', b'#', ..] => identifier.split_at(2).1,
        _ => identifier,
    }
}

/// What stands in for a field of [`config!`](crate::config) that was not given, if anything does.
#[doc(hidden)]
#[macro_export]
macro_rules! __field_default {
    ($ty:ty, $default:expr) => {
        ::core::option::Option::<$ty>::Some($default)
    };
    ($ty:ty) => {
        <$ty as $crate::ConfigValue>::when_absent()
    };
}

/// Whether a field of [`config!`](crate::config) must be given.
#[doc(hidden)]
#[macro_export]
macro_rules! __field_required {
    ($ty:ty, $default:expr) => {
        false
    };
    ($ty:ty) => {
        <$ty as $crate::ConfigValue>::SCHEMA.is_required()
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    crate::config! {
        /// Everything a field can be.
        #[derive(Debug)]
        struct Everything {
            /// Values by "task".
            values: BTreeMap<String, serde_json::Value>,
            /// How many, in all.
            count: u32 = 3,
            note: Option<String>,
            tone: Tone = Tone::plain,
            nested: Vec<Inner> = Vec::new(),
        }

        #[derive(Debug)]
        struct Inner {
            ratio: f64,
        }

        enum Tone { plain, loud }
    }

    crate::config! {
        #[derive(Debug, PartialEq)]
        struct Outer {
            limits: Limits,
            needed: Needed,
        }

        #[derive(Debug, PartialEq)]
        struct Limits {
            max: u32 = 10,
            label: Option<String>,
            deeper: Deeper,
        }

        #[derive(Debug, PartialEq)]
        struct Deeper {
            least: u8 = 1,
        }

        #[derive(Debug, PartialEq)]
        struct Needed {
            always: bool,
            limits: Limits,
        }
    }

    #[test]
    fn a_struct_that_has_a_default_for_each_field_may_be_left_out() {
        let limits = |max| Limits { max, label: None, deeper: Deeper { least: 1 } };
        let config = Outer::from_json(r#"{"needed": {"always": true, "limits": {"max": 3}}}"#).expect("valid");
        assert_eq!(config, Outer { limits: limits(10), needed: Needed { always: true, limits: limits(3) } });
        let missing = Outer::from_json(r#"{"limits": {}}"#).expect_err("`always` is required").to_string();
        assert!(missing.contains("missing field `needed`"), "{missing}");
        let schema = schema_of::<Outer>();
        assert_eq!(schema["required"], json!(["needed"]));
        let properties = &schema["properties"];
        assert_eq!((&properties["limits"]["required"], &properties["needed"]["required"]), (&json!([]), &json!(["always"])));
    }

    crate::config! {
        #[derive(Debug)]
        struct Keywords {
            r#type: Kind,
            r#match: Option<String>,
        }
    }
    crate::config! {
        enum Kind { r#async, sync }
    }

    #[test]
    fn a_keyword_of_rust_is_a_key_like_any_other() {
        let config = Keywords::from_json(r#"{"type": "async", "match": "a*"}"#).expect("valid");
        assert_eq!((config.r#type, config.r#match.as_deref()), (Kind::r#async, Some("a*")));
        let missing = Keywords::from_json("{}").expect_err("`type` is required");
        assert!(missing.to_string().contains("missing field `type`"), "{missing}");
        let schema = schema_of::<Keywords>();
        assert_eq!((&schema["properties"]["type"]["enum"], &schema["required"]), (&json!(["async", "sync"]), &json!(["type"])));
        assert!(schema["properties"]["match"].is_object(), "{schema}");
    }

    #[test]
    fn a_list_is_no_configuration_and_no_part_of_one() {
        for list in [r#"[{}, 3, null, "loud", []]"#, r#"{"values": {}, "nested": [[0.5]]}"#] {
            let error = Everything::from_json(list).expect_err(list).to_string();
            assert!(error.contains("invalid type: sequence, expected a map"), "{list}: {error}");
        }
    }

    fn schema_of<C: PluginConfig>() -> serde_json::Value {
        let mut json = ConstJson::<4096>::new();
        C::SCHEMA.write(&mut json);
        let len = json.len();
        serde_json::from_slice(&json.into_bytes()[..len]).expect("the schema is JSON")
    }

    #[test]
    fn the_schema_describes_the_struct() {
        assert_eq!(
            schema_of::<Everything>(),
            json!({
                "type": "object", "additionalProperties": false,
                "properties": {
                    "values": {"description": "Values by \"task\".", "type": "object", "additionalProperties": {}},
                    "count": {"description": "How many, in all.", "type": "integer", "minimum": 0},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "tone": {"enum": ["plain", "loud"]},
                    "nested": {"type": "array", "items": {
                        "type": "object", "additionalProperties": false,
                        "properties": {"ratio": {"type": "number"}}, "required": ["ratio"],
                    }},
                },
                "required": ["values"],
            })
        );
        assert_eq!(schema_of::<()>()["properties"], json!({}));
    }

    #[test]
    fn defaults_fill_in_and_wrong_fields_are_named() {
        let config = Everything::from_json(r#"{"values": {"a": null}, "nested": [{"ratio": 0.5}]}"#).expect("valid");
        assert_eq!((config.count, config.note, config.tone), (3, None, Tone::plain));
        assert_eq!(config.values["a"], json!(null));
        assert!((config.nested[0].ratio - 0.5).abs() < f64::EPSILON);
        let missing = Everything::from_json("{}").expect_err("`values` is required");
        assert!(missing.to_string().contains("missing field `values`"), "{missing}");
        let unknown = Everything::from_json(r#"{"values": {}, "cuont": 1}"#).expect_err("a misspelt key");
        assert!(unknown.to_string().contains("unknown field `cuont`"), "{unknown}");
        let tone = Everything::from_json(r#"{"values": {}, "tone": "shrill"}"#).expect_err("no such tone");
        assert!(tone.to_string().contains("unknown variant `shrill`"), "{tone}");
        assert!(<() as PluginConfig>::from_json("{}").is_ok());
        assert!(<() as PluginConfig>::from_json(r#"{"a": 1}"#).is_err());
    }
}
