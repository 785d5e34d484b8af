//! Paths as they are printed: what a stranger put into a file name must not write lines of its own into a log or a terminal.

use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use uuid::Uuid;

/// A path for messages. Control characters, characters that turn the direction of text, and bytes that are not UTF-8 are
/// escaped, and so is the backslash, so that nothing can look like an escape. Every place that prints a path uses it.
///
/// ```
/// use qtasks_host::shown;
/// assert_eq!(shown("/plugins/libx.so").to_string(), "/plugins/libx.so");
/// assert_eq!(shown("/plugins/a\nERROR b.so").to_string(), "/plugins/a\\nERROR b.so");
/// ```
pub fn shown<P: AsRef<Path> + ?Sized>(path: &P) -> Shown<'_> {
    Shown(path.as_ref())
}

/// What [`shown`] gives.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_os_str().as_bytes().utf8_chunks() {
            for char in chunk.valid().chars() {
                if is_plain(char) && char != '\\' {
                    formatter.write_char(char)?
                } else {
                    write!(formatter, "{}", char.escape_default())?
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(formatter, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// Writes a path into JSON: as it is where it is text, and as it is shown where it is not. JSON has no other way.
pub(crate) fn path_as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => serializer.collect_str(&shown(path)),
    }
}

/// Whether a character prints as itself, where it stands.
pub(crate) fn is_plain(char: char) -> bool {
    let turns_text = matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    !char.is_control() && !turns_text
}

/// The beginning of bytes, as text that everybody can read.
pub(crate) fn readable(bytes: &[u8]) -> String {
    const MOST: usize = 4096;
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]).into_owned()
}

/// The first of many ids, and how many there are beside them.
pub(crate) fn few(uuids: &[Uuid]) -> String {
    const SHOWN: usize = 5;
    let shown = uuids.iter().take(SHOWN).map(Uuid::to_string).collect::<Vec<_>>().join(", ");
    match uuids.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// An error and all its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some variants name their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    on_one_line(&text)
}

/// The text with its control characters escaped: it may hold line ends and what a terminal obeys.
///
/// ```
/// assert_eq!(qtasks_host::on_one_line("a\nERROR b\u{1b}[31m"), "a\\nERROR b\\u{1b}[31m");
/// ```
#[must_use]
pub fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() { line.extend(letter.escape_default()) } else { line.push(letter) }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn nothing_of_a_name_acts_on_a_terminal() {
        for (name, said) in [
            (&b"plain \xc3\xa9.so"[..], "plain \u{e9}.so"),
            (b"a\nb\r\x1b[31m.so", "a\\nb\\r\\u{1b}[31m.so"),
            (b"not-\xff-utf8.so", "not-\\xff-utf8.so"),
            (b"back\\slash", "back\\\\slash"),
            ("evil\u{202e}os.".as_bytes(), "evil\\u{202e}os."),
        ] {
            assert_eq!(shown(OsStr::from_bytes(name)).to_string(), said);
        }
    }
}
