//! JSON as Python's `json.dumps` writes it: `, ` and `: ` between, strings escaped its way. Numbers stay as they are, so none loses a
//! digit.

use std::fmt::Write;

/// The text of a JSON value, as Python writes it; with `ascii`, every other character escaped.
pub(super) fn dumps(json: &str, ascii: bool) -> String {
    let mut text = String::with_capacity(json.len() + json.len() / 8);
    let mut rest = json;
    while let Some(char) = rest.chars().next() {
        if char == '"' {
            let (string, after) = rest.split_at(end_of_string(rest));
            write_string(&mut text, string, ascii);
            rest = after;
            continue;
        }
        match char {
            ' ' | '\t' | '\r' | '\n' => {}
            ',' | ':' => text.extend([char, ' ']),
            _ => text.push(char),
        }
        rest = &rest[char.len_utf8()..];
    }
    text
}

/// Where the string ends with which this text begins.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (place, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return place + 1,
            _ => {}
        }
    }
    text.len()
}

fn write_string(text: &mut String, string: &str, ascii: bool) {
    // Half of a surrogate pair is no text; it stays as it was written.
    let Ok(decoded) = serde_json::from_str::<String>(string) else { return text.push_str(string) };
    text.push('"');
    for char in decoded.chars() {
        match char {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            _ if char < ' ' || (ascii && !char.is_ascii()) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    // Writing to a text cannot fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            _ => text.push(char),
        }
    }
    text.push('"');
}

/// A number as Python's `repr` writes it.
pub(super) fn repr(number: f64) -> String {
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_as_python_does() {
        for (json, ascii, wanted) in [
            ("[]", true, "[]"),
            ("{\"b\":2,\n \"c\" : [1,2]}", true, r#"{"b": 2, "c": [1, 2]}"#),
            (r#"["a,b:c \" , ", "é😀"]"#, true, r#"["a,b:c \" , ", "\u00e9\ud83d\ude00"]"#),
            (r#"["é"]"#, false, r#"["é"]"#),
            ("123456789012345678901234567890", true, "123456789012345678901234567890"),
            (r#"["\\", "\/\u00E9\u0041\u0001\n\u007f"]"#, true, "[\"\\\\\", \"/\\u00e9A\\u0001\\n\u{7f}\"]"),
            (r#"["\ud800"]"#, true, r#"["\ud800"]"#),
        ] {
            assert_eq!(dumps(json, ascii), wanted);
        }
        assert_eq!((repr(1_795_333_232.880_758), repr(20.0)), ("1795333232.880758".to_owned(), "20.0".to_owned()));
    }
}
