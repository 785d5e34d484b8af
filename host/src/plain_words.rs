//! What serde says of a value that does not fit, in the words of whoever wrote it: a setting is no `usize`, and no `struct`.

/// The same message, with a type of Rust's told as what may be written instead. `object` is what an object is called there.
pub(crate) fn in_plain_words(message: &str, object: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::in_plain_words;

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
