//! JSON as Python's `json.dumps` spaces it: `, ` and `: `. Numbers and strings stay as they are, so nothing loses digits.

/// The text of a JSON value, spaced as Python does; with `ascii`, every other character escaped.
pub(super) fn spaced(json: &str, ascii: bool) -> String {
    let mut text = String::with_capacity(json.len() + json.len() / 8);
    let (mut in_string, mut escaped) = (false, false);
    for char in json.chars() {
        if in_string {
            match char {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            if ascii && !char.is_ascii() {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
                continue;
            }
        } else {
            match char {
                ' ' | '\t' | '\r' | '\n' => continue,
                '"' => in_string = true,
                _ => {}
            }
        }
        text.push(char);
        if !in_string && (char == ',' || char == ':') {
            text.push(' ');
        }
    }
    text
}

/// A number as Python's `repr` writes it.
pub(super) fn repr(number: f64) -> String {
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spaced_as_python_does() {
        for (json, ascii, wanted) in [
            ("[]", true, "[]"),
            ("{\"b\":2,\n \"c\" : [1,2]}", true, r#"{"b": 2, "c": [1, 2]}"#),
            (r#"["a,b:c \" , ", "é😀"]"#, true, r#"["a,b:c \" , ", "\u00e9\ud83d\ude00"]"#),
            (r#"["é"]"#, false, r#"["é"]"#),
            ("123456789012345678901234567890", true, "123456789012345678901234567890"),
            (r#""\\","#, true, r#""\\", "#),
        ] {
            assert_eq!(spaced(json, ascii), wanted);
        }
        assert_eq!((repr(1_795_333_232.880_758), repr(20.0)), ("1795333232.880758".to_owned(), "20.0".to_owned()));
    }
}
