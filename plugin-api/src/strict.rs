//! JSON text of a value, refusing what JSON cannot say: serde_json writes NaN and infinity as `null` without a word.

use serde::ser::{
    Error, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant,
};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// `value` as JSON text.
///
/// # Errors
///
/// When it has no JSON form: a NaN or an infinity anywhere in it, a map whose keys are not texts, or its own `Serialize` fails.
pub fn to_raw_value(value: &(impl Serialize + ?Sized)) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(&Strict(value))
}

/// Serialises a value through [`StrictSerializer`].
struct Strict<'a, T: ?Sized>(&'a T);

impl<T: Serialize + ?Sized> Serialize for Strict<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(StrictSerializer(serializer))
    }
}

/// Hands everything on but floats that are not finite.
struct StrictSerializer<S>(S);

fn not_finite<E: Error>(value: impl std::fmt::Display) -> E {
    E::custom(format_args!("{value} has no JSON form: use null or a text instead"))
}

macro_rules! hand_on {
    ($($name:ident: $ty:ty),* $(,)?) => {
        $(fn $name(self, value: $ty) -> Result<S::Ok, S::Error> {
            self.0.$name(value)
        })*
    };
}

impl<S: Serializer> Serializer for StrictSerializer<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = StrictSerializer<S::SerializeSeq>;
    type SerializeTuple = StrictSerializer<S::SerializeTuple>;
    type SerializeTupleStruct = StrictSerializer<S::SerializeTupleStruct>;
    type SerializeTupleVariant = StrictSerializer<S::SerializeTupleVariant>;
    type SerializeMap = StrictSerializer<S::SerializeMap>;
    type SerializeStruct = StrictSerializer<S::SerializeStruct>;
    type SerializeStructVariant = StrictSerializer<S::SerializeStructVariant>;

    hand_on! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_char: char, serialize_str: &str, serialize_bytes: &[u8], serialize_unit_struct: &'static str,
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.0.serialize_f32(value) } else { Err(not_finite(value)) }
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.0.serialize_f64(value) } else { Err(not_finite(value)) }
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Strict(value))
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit()
    }

    fn serialize_unit_variant(self, name: &'static str, index: u32, variant: &'static str) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Strict(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Strict(value))
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(len).map(StrictSerializer)
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(len).map(StrictSerializer)
    }

    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len).map(StrictSerializer)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, len).map(StrictSerializer)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.0.serialize_map(len).map(StrictSerializer)
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, len).map(StrictSerializer)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, index, variant, len).map(StrictSerializer)
    }
}

macro_rules! compounds {
    ($($compound:ident::$element:ident($($key:ident)?)),* $(,)?) => {
        $(impl<S: $compound> $compound for StrictSerializer<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $element<T: Serialize + ?Sized>(&mut self, $($key: &'static str,)? value: &T) -> Result<(), S::Error> {
                self.0.$element($($key,)? &Strict(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        })*
    };
}

compounds! {
    SerializeSeq::serialize_element(), SerializeTuple::serialize_element(), SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(), SerializeStruct::serialize_field(key), SerializeStructVariant::serialize_field(key),
}

impl<S: SerializeMap> SerializeMap for StrictSerializer<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Strict(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        New(f64),
        Tuple(f64, f32),
        Named { x: Option<f64> },
    }

    #[test]
    fn what_json_can_say_is_written_as_serde_json_writes_it() {
        let raw = RawValue::from_string("123456789012345678901234567890".to_owned()).expect("a number");
        let value =
            (Shape::Unit, Shape::New(0.5), Shape::Tuple(1.0, 2.5), Shape::Named { x: None }, raw, json!({"a": [null, "é"]}));
        let strict = to_raw_value(&value).expect("a JSON form");
        assert_eq!(strict.get(), serde_json::to_string(&value).expect("a JSON form"));
    }

    #[test]
    fn a_float_that_is_none_is_refused_wherever_it_hides() {
        for refused in [
            to_raw_value(&f64::NAN),
            to_raw_value(&[f32::INFINITY]),
            to_raw_value(&BTreeMap::from([("a", Some(f64::NEG_INFINITY))])),
            to_raw_value(&Shape::New(f64::NAN)),
            to_raw_value(&Shape::Tuple(0.0, f32::NAN)),
            to_raw_value(&Shape::Named { x: Some(f64::NAN) }),
        ] {
            let error = refused.expect_err("no JSON form").to_string();
            assert!(error.contains("has no JSON form"), "{error}");
        }
    }
}
