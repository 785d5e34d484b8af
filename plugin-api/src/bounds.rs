//! Bounds on what crosses the boundary, the same on both sides.

/// Longest payload: 64 MiB.
pub const MAX_BYTES: usize = 64 << 20;
/// Longest manifest: 1 MiB.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;
/// Deepest nesting of JSON lists and objects. Dropping a far deeper value overflows the stack; serde_json reads one level less.
pub const MAX_DEPTH: usize = 128;

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoundsError {
    /// A length without a place.
    #[error("a null pointer with a length of {len} bytes")]
    Null {
        /// The length claimed.
        len: usize,
    },
    /// Longer than the cap; not read.
    #[error("{len} bytes, at most {max} are taken")]
    TooLong {
        /// The length claimed.
        len: usize,
        /// The cap.
        max: usize,
    },
    /// Not UTF-8.
    #[error("text that is not UTF-8 from byte {valid_up_to} on")]
    NotUtf8 {
        /// How many bytes are well-formed.
        valid_up_to: usize,
    },
    /// Not JSON.
    #[error("text that is not JSON: {0}")]
    NotJson(String),
    /// Nested too deep.
    #[error("JSON nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// An outcome kind of a later version.
    #[error("an outcome of unknown kind {0}; this host knows pass, result, directive and failed")]
    UnknownKind(u32),
    /// A directive of a later version, or one without its fields.
    #[error("a directive that this host does not know: {0}")]
    Directive(String),
}

/// Checks a claimed place and length before any byte is read.
pub(crate) fn check_raw(pointer: *const u8, len: usize, max: usize) -> Result<(), BoundsError> {
    if len > max {
        return Err(BoundsError::TooLong { len, max });
    }
    if pointer.is_null() && len > 0 {
        return Err(BoundsError::Null { len });
    }
    Ok(())
}

/// Checks bytes that claim to be text.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, BoundsError> {
    std::str::from_utf8(bytes).map_err(|error| BoundsError::NotUtf8 { valid_up_to: error.valid_up_to() })
}

/// Checks that a text is one JSON value, nested at most [`MAX_DEPTH`] deep.
///
/// # Errors
///
/// [`BoundsError::NotJson`] or [`BoundsError::TooDeep`].
pub fn check_json(text: &str) -> Result<(), BoundsError> {
    check_depth(text)?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| BoundsError::NotJson(error.to_string()))?;
    Ok(())
}

/// Checks that a payload is no longer than [`MAX_BYTES`].
///
/// # Errors
///
/// [`BoundsError::TooLong`].
pub fn check_size(text: &str) -> Result<(), BoundsError> {
    if text.len() > MAX_BYTES { Err(BoundsError::TooLong { len: text.len(), max: MAX_BYTES }) } else { Ok(()) }
}

/// Checks the length and the nesting of a JSON text without parsing it.
///
/// # Errors
///
/// [`BoundsError::TooLong`] or [`BoundsError::TooDeep`].
pub fn check_payload(text: &str) -> Result<(), BoundsError> {
    check_size(text)?;
    check_depth(text)
}

/// Checks the nesting of a JSON text without parsing it.
///
/// # Errors
///
/// [`BoundsError::TooDeep`].
pub fn check_depth(text: &str) -> Result<(), BoundsError> {
    if is_deeper(text, MAX_DEPTH) { Err(BoundsError::TooDeep) } else { Ok(()) }
}

/// Whether lists and objects are nested deeper than `most` in a JSON text.
pub(crate) fn is_deeper(text: &str, most: usize) -> bool {
    // One byte opens at most one level.
    if text.len() <= most {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > most {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_of_strings() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(check_json(&nested(MAX_DEPTH)), Ok(()));
        assert_eq!(check_json(&nested(MAX_DEPTH + 1)), Err(BoundsError::TooDeep));
        assert_eq!(check_json(&nested(100_000)), Err(BoundsError::TooDeep));
        let text = format!(r#""\"{}""#, "[".repeat(500));
        assert_eq!(check_json(&text), Ok(()));
        assert!(matches!(check_json("[1,"), Err(BoundsError::NotJson(_))));
        assert_eq!(check_payload(&nested(MAX_DEPTH + 1)), Err(BoundsError::TooDeep));
        assert_eq!(check_payload(&" ".repeat(MAX_BYTES + 1)), Err(BoundsError::TooLong { len: MAX_BYTES + 1, max: MAX_BYTES }));
    }

    #[test]
    fn a_claim_is_checked_before_it_is_read() {
        assert_eq!(check_raw(std::ptr::null(), 0, 8), Ok(()));
        assert_eq!(check_raw(std::ptr::null(), 1, 8), Err(BoundsError::Null { len: 1 }));
        assert_eq!(check_raw(std::ptr::null(), usize::MAX, 8), Err(BoundsError::TooLong { len: usize::MAX, max: 8 }));
    }
}
