//! Writes JSON at compile time, so that a manifest can lie in the library file as plain bytes.

/// A JSON text of at most `N` bytes under construction in a `const` context.
///
/// With `N = 0` it only counts: run the same writing code twice, first to learn the length, then to fill the bytes.
#[derive(Debug)]
pub struct ConstJson<const N: usize> {
    bytes: [u8; N],
    len: usize,
    last: u8,
}

impl<const N: usize> ConstJson<N> {
    /// An empty text.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0, last: 0 }
    }

    /// How many bytes were written, or would have been.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[must_use]
    pub const fn into_bytes(self) -> [u8; N] {
        self.bytes
    }

    const fn byte(&mut self, byte: u8) {
        if self.len < N {
            self.bytes[self.len] = byte;
        }
        self.len += 1;
        self.last = byte;
    }

    /// Writes `text` as it is.
    pub const fn raw(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut index = 0;
        while index < bytes.len() {
            self.byte(bytes[index]);
            index += 1;
        }
    }

    /// Writes a comma unless the last byte opened a list or an object.
    pub const fn separator(&mut self) {
        if self.last != b'[' && self.last != b'{' {
            self.byte(b',');
        }
    }

    /// Writes `"name":`, after a comma where one is due.
    pub const fn key(&mut self, name: &str) {
        self.separator();
        self.string(name);
        self.byte(b':');
    }

    /// Writes a JSON string.
    pub const fn string(&mut self, text: &str) {
        self.byte(b'"');
        self.escaped(text.as_bytes());
        self.byte(b'"');
    }

    const fn escaped(&mut self, bytes: &[u8]) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut index = 0;
        while index < bytes.len() {
            let byte = bytes[index];
            match byte {
                b'"' | b'\\' => {
                    self.byte(b'\\');
                    self.byte(byte);
                }
                0..0x20 => {
                    self.raw("\\u00");
                    self.byte(HEX[(byte >> 4) as usize]);
                    self.byte(HEX[(byte & 15) as usize]);
                }
                _ => self.byte(byte),
            }
            index += 1;
        }
    }

    /// Writes a JSON list of strings from a text whose items are separated by `separator`.
    pub const fn split_list(&mut self, text: &str, separator: u8) {
        let bytes = text.as_bytes();
        self.byte(b'[');
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut end = 0;
            while end < rest.len() && rest[end] != separator {
                end += 1;
            }
            let (item, after) = rest.split_at(end);
            if !item.is_empty() {
                self.separator();
                self.byte(b'"');
                self.escaped(item);
                self.byte(b'"');
            }
            rest = if after.is_empty() { after } else { after.split_at(1).1 };
        }
        self.byte(b']');
    }

    /// Writes a JSON integer.
    pub const fn integer(&mut self, value: i64) {
        if value < 0 {
            self.byte(b'-');
        }
        let mut digits = [0u8; 20];
        let mut count = 0;
        let mut rest = value.unsigned_abs();
        loop {
            digits[count] = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        while count > 0 {
            count -= 1;
            self.byte(digits[count]);
        }
    }
}

impl<const N: usize> Default for ConstJson<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_lists_are_split_and_numbers_keep_their_sign() {
        let mut json = ConstJson::<256>::new();
        json.raw("{");
        json.key("a\"b");
        json.string("line\nnext \\ é");
        json.key("list");
        json.split_list("one:two::\"three\"", b':');
        json.key("least");
        json.integer(i64::MIN);
        json.raw("}");
        let len = json.len();
        let text = String::from_utf8(json.into_bytes()[..len].to_vec()).expect("UTF-8");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value, serde_json::json!({"a\"b": "line\nnext \\ é", "list": ["one", "two", "\"three\""], "least": i64::MIN}));
    }
}
