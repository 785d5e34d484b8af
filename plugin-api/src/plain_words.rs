//! What serde says of a value that does not fit, in the words of whoever wrote it: a setting is no `usize`, and no `struct`.

use crate::nearest::nearest_in;

/// What `serde_json` said of `json`, with the keys that lead to the value instead of a column of a text that nobody saw, and whether a
/// name is near one that is not known, as words that follow. `object` is what an object is called there.
#[must_use]
pub fn explained(said: &str, json: &str, object: &str) -> (String, String) {
    let hint = nearest_in(said);
    let (said, offset) = without_place(said, json);
    let mut keys = offset.map_or_else(Vec::new, |offset| keys_at(json, offset));
    // "unknown field `x`" names its key.
    keys.pop_if(|key| said.contains(&format!("`{key}`")));
    let place = if keys.is_empty() { String::new() } else { format!("{}: ", keys.join(".")) };
    (format!("{place}{}", in_plain_words(said, object)), hint)
}

/// The words alone, and how many bytes of `json` were read before them.
pub(crate) fn without_place<'a>(said: &'a str, json: &str) -> (&'a str, Option<usize>) {
    let place = said.rsplit_once(" at line ").and_then(|(words, place)| {
        let (line, column) = place.split_once(" column ")?;
        let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
        let before: usize = json.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
        Some((words, before + column))
    });
    place.map_or((said, None), |(words, offset)| (words, Some(offset)))
}

/// The keys that lead to the byte of this number, from 1, of a JSON text.
fn keys_at(json: &str, offset: usize) -> Vec<&str> {
    let mut keys = Vec::new();
    let mut rest = 0..offset.min(json.len());
    while let Some(at) = rest.next() {
        match json.as_bytes()[at] {
            b'{' | b'[' => keys.push(None),
            b'}' | b']' => drop(keys.pop()),
            b'"' => {
                let mut escaped = false;
                let end = rest.find(|at| match json.as_bytes()[*at] {
                    _ if escaped => {
                        escaped = false;
                        false
                    }
                    byte => {
                        escaped = byte == b'\\';
                        byte == b'"'
                    }
                });
                if let (Some(end), Some(key)) = (end, keys.last_mut())
                    && json[end + 1..].trim_ascii_start().starts_with(':')
                {
                    *key = Some(&json[at + 1..end]);
                }
            }
            _ => {}
        }
    }
    keys.into_iter().flatten().collect()
}

/// The same message, with a type of Rust's told as what may be written instead. `object` is what an object is called there.
#[must_use]
pub fn in_plain_words(message: &str, object: &str) -> String {
    let Some((said, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let (kind, place) = expected.split_at(expected.find(" at ").unwrap_or(expected.len()));
    let words = match kind {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "a nonzero u64" => "a whole number from 1 on",
        "i8" => "a whole number from -128 to 127",
        "i16" => "a whole number from -32768 to 32767",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a map" => object,
        "a sequence" => "a list",
        _ => return message.to_owned(),
    };
    let said =
        said.replace("` as i128", "`").replace("` as u128", "`").replace(": map", ": object").replace(": sequence", ": list");
    format!("{said}, expected {words}{place}")
}

/// A number as whoever wrote it may have: not with 300 digits.
#[must_use]
pub fn number(number: f64) -> String {
    if number == 0.0 || (1e-5..1e16).contains(&number.abs()) { number.to_string() } else { format!("{number:e}") }
}

#[cfg(test)]
mod tests {
    use super::{explained, in_plain_words, keys_at, number};

    #[test]
    fn a_number_is_as_short_as_it_can_be() {
        let all = [0.0, -1.0, 0.5, 1e15, 1e300, -1e300, 1e-7, f64::NAN, f64::INFINITY].map(number);
        assert_eq!(all, ["0", "-1", "0.5", "1000000000000000", "1e300", "-1e300", "1e-7", "NaN", "inf"]);
    }

    #[test]
    fn a_place_is_told_as_the_keys_that_lead_to_it() {
        let json = r#"{"a":1,"\"b":[{"c":"d:\"{"},{"e":[2]}],"f":{}}"#;
        for (before, keys) in [
            (r#"{"a":1"#, &["a"][..]),
            (r#"{"a":1,"\"b":[{"c":"d:\"{""#, &["\\\"b", "c"]),
            (r#"{"a":1,"\"b":[{"c":"d:\"{"},{"e":[2"#, &["\\\"b", "e"]),
            (r#"{"a":1,"\"b":[{"c":"d:\"{"},{"e":[2]}]"#, &["\\\"b"]),
            (r#"{"a":1,"\"b":[{"c":"d:\"{"},{"e":[2]}],"f":{"#, &["f"]),
            (json, &[]),
        ] {
            assert!(json.starts_with(before), "{before}");
            assert_eq!(keys_at(json, before.len()), keys, "{before}");
        }
        assert!(keys_at(json, usize::MAX).is_empty());
    }

    #[test]
    fn what_was_said_has_its_keys_and_the_nearest_name() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "its shape alone is of interest")]
        struct Limits {
            max: u32,
        }
        type Config = std::collections::BTreeMap<String, Limits>;
        let said = |json: &str| {
            let error = serde_json::from_str::<Config>(json).expect_err(json).to_string();
            explained(&error, json, "a table")
        };
        let expected = r#"limits.max: invalid type: string "ten", expected a whole number from 0 to 4294967295"#;
        for json in [r#"{"limits":{"max":"ten"}}"#, "{\n \"limits\" : {\n  \"max\" :\n \"ten\" } }"] {
            assert_eq!(said(json), (expected.to_owned(), String::new()), "{json}");
        }
        let (message, hint) = said(r#"{"limits":{"maxx":1}}"#);
        assert_eq!(message + &hint, "limits: unknown field `maxx`, expected `max`; did you mean `max`?");
    }

    #[test]
    fn types_of_rust_become_words_and_the_rest_stays() {
        for (message, plain) in [
            ("invalid type: string \"x\", expected usize", "invalid type: string \"x\", expected a whole number from 0 on"),
            ("invalid type: sequence, expected a map", "invalid type: list, expected a table"),
            (
                "invalid type: `9` as i128, expected i64 at line 1 column 2",
                "invalid type: `9`, expected a whole number at line 1 column 2",
            ),
            ("invalid type: integer `1`, expected a string", "invalid type: integer `1`, expected a string"),
            ("unknown field `u8`, expected `u16`", "unknown field `u8`, expected `u16`"),
            ("missing field `a`", "missing field `a`"),
        ] {
            assert_eq!(in_plain_words(message, "a table"), plain);
        }
    }
}
