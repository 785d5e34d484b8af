//! Length-prefixed frames between host and guest.
//!
//! A frame is `length: u32 | kind: u8 | id: u64 | payload`, little-endian; `length` counts what follows it. Both sides take at most
//! [`MAX_FRAME`] bytes and believe nothing of what they read: a guest runs foreign code, and may write what it likes.

use std::io::{self, Read};

use qtasks_plugin_api::abi::loaded::Received;
use qtasks_plugin_api::bounds;
use qtasks_plugin_api::manifest::Mode;

use crate::plugin::outcome::Outcome;

/// Largest frame: the largest payload and some words around it.
pub(crate) const MAX_FRAME: usize = bounds::MAX_BYTES + 4096;
/// Kind and id.
const HEAD: usize = 1 + 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Host to guest: begin. The payload is a `Start` as JSON; the library's descriptor comes with it.
    Start = 1,
    /// Host to guest: run an entry.
    Call = 2,
    /// Host to guest: nobody waits for this call any more.
    Cancel = 3,
    /// Host to guest: stop the plugin and end.
    Stop = 4,
    /// Guest to host, before anything else: its version. It waits for its library.
    Hello = 9,
    /// Guest to host: a report as JSON, with the nonce.
    Report = 10,
    /// Guest to host: what a call came to.
    Outcome = 11,
    /// Guest to host: a log line as JSON.
    Log = 12,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Start, Self::Call, Self::Cancel, Self::Stop, Self::Hello, Self::Report, Self::Outcome, Self::Log]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// One frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) payload: Vec<u8>,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the stream ended")]
    Ended,
    #[error("a frame of {0} bytes; expected {HEAD} to {MAX_FRAME}")]
    Length(usize),
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    #[error("an outcome that is none: {0}")]
    Outcome(String),
    #[error("a call that is none")]
    Call,
    #[error(transparent)]
    Stream(#[from] io::Error),
}

/// The bytes of a frame, in one piece, so that one write sends it.
pub(crate) fn encode(kind: Kind, id: u64, payload: &[&[u8]]) -> Vec<u8> {
    let length = HEAD + payload.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(4 + length);
    // A longer frame than u32 can say is refused by every reader, so a wrong length does no harm.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&id.to_le_bytes());
    for part in payload {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Checks a frame's length before anything is read or reserved for it.
pub(crate) fn checked_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    if (HEAD..=MAX_FRAME).contains(&length) { Ok(length) } else { Err(FrameError::Length(length)) }
}

/// Takes a frame's body apart.
pub(crate) fn decode(mut body: Vec<u8>) -> Result<Frame, FrameError> {
    let (Some(&number), Some(id)) = (body.first(), body.get(1..HEAD)) else { return Err(FrameError::Length(body.len())) };
    let kind = Kind::from_number(number).ok_or(FrameError::Kind(number))?;
    let id = u64::from_le_bytes(id.try_into().map_err(|_| FrameError::Length(body.len()))?);
    body.drain(..HEAD);
    Ok(Frame { kind, id, payload: body })
}

/// Reads one frame; waits for it.
pub(crate) fn read(stream: &mut impl Read) -> Result<Frame, FrameError> {
    let mut prefix = [0; 4];
    match stream.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Ended),
        other => other?,
    }
    let mut body = vec![0; checked_length(prefix)?];
    stream.read_exact(&mut body)?;
    decode(body)
}

/// A call's payload: `entry: u32 | mode: u8 | name length: u16 | name | input`.
pub(crate) fn encode_call(id: u64, entry: u32, mode: Mode, name: &str, input: &str) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let name = name.get(..usize::from(length)).unwrap_or_default();
    let mode = match mode {
        Mode::Inline => 0,
        Mode::Blocking => 1,
        Mode::Async => 2,
    };
    encode(Kind::Call, id, &[&entry.to_le_bytes(), &[mode], &length.to_le_bytes(), name.as_bytes(), input.as_bytes()])
}

/// A call, taken apart.
pub(crate) struct Call<'a> {
    pub(crate) entry: u32,
    pub(crate) mode: Mode,
    pub(crate) name: &'a str,
    pub(crate) input: &'a str,
}

pub(crate) fn decode_call(payload: &[u8]) -> Result<Call<'_>, FrameError> {
    let (entry, rest) = payload.split_first_chunk::<4>().ok_or(FrameError::Call)?;
    let (mode, rest) = rest.split_first().ok_or(FrameError::Call)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(FrameError::Call)?;
    let (name, input) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or(FrameError::Call)?;
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| FrameError::Call);
    let mode = match mode {
        0 => Mode::Inline,
        1 => Mode::Blocking,
        2 => Mode::Async,
        _ => return Err(FrameError::Call),
    };
    Ok(Call { entry: u32::from_le_bytes(*entry), mode, name: text(name)?, input: text(input)? })
}

/// An outcome's frame: `kind: u8 | JSON`.
pub(crate) fn encode_outcome(id: u64, outcome: &Outcome) -> Vec<u8> {
    let json = |value: serde_json::Result<Vec<u8>>| value.unwrap_or_else(|_| b"null".to_vec());
    let (number, payload) = match outcome {
        Received::Pass => (0u8, Vec::new()),
        Received::Result(value) => (1, value.get().as_bytes().to_vec()),
        Received::Directive(directive) => (2, json(serde_json::to_vec(directive))),
        Received::Failed(error) => (3, json(serde_json::to_vec(error))),
        // `Received` grows with the boundary's minor; what this guest cannot write, the host would not know either.
        _ => (0, Vec::new()),
    };
    encode(Kind::Outcome, id, &[&[number], &payload])
}

pub(crate) fn decode_outcome(payload: &[u8]) -> Result<Outcome, FrameError> {
    let refused = |error: &dyn std::fmt::Display| FrameError::Outcome(error.to_string());
    let (number, json) = payload.split_first().ok_or_else(|| refused(&"no kind"))?;
    let text = std::str::from_utf8(json).map_err(|error| refused(&error))?;
    bounds::check_depth(text).map_err(|error| refused(&error))?;
    let json_error = |error: serde_json::Error| refused(&error);
    match number {
        0 => Ok(Received::Pass),
        1 => serde_json::from_str(text).map(Received::Result).map_err(json_error),
        2 => serde_json::from_str(text).map(Received::Directive).map_err(json_error),
        3 => serde_json::from_str(text).map(Received::Failed).map_err(json_error),
        other => Err(refused(&format_args!("kind {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let bytes = encode_call(7, 3, Mode::Async, "task_executor_decode", r#"{"a": "é"}"#);
        let frame = read(&mut bytes.as_slice()).expect("a frame");
        assert_eq!((frame.kind, frame.id), (Kind::Call, 7));
        let call = decode_call(&frame.payload).expect("a call");
        assert_eq!((call.entry, call.mode, call.name, call.input), (3, Mode::Async, "task_executor_decode", r#"{"a": "é"}"#));
        let outcome = Outcome::Result(serde_json::from_str("123456789012345678901234567890").expect("JSON"));
        let frame = read(&mut encode_outcome(9, &outcome).as_slice()).expect("a frame");
        let Ok(Received::Result(value)) = decode_outcome(&frame.payload) else { panic!("a result") };
        assert_eq!(value.get(), "123456789012345678901234567890");
    }

    #[test]
    fn bytes_that_are_no_frame_are_refused_before_anything_is_reserved() {
        assert!(matches!(read(&mut [0xff; 16].as_slice()), Err(FrameError::Length(_))));
        assert!(matches!(read(&mut [8, 0, 0, 0].as_slice()), Err(FrameError::Length(8))));
        assert!(matches!(read(&mut [].as_slice()), Err(FrameError::Ended)));
        let unknown = [9, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(read(&mut unknown.as_slice()), Err(FrameError::Kind(99))));
        for wrong in [b"".as_slice(), b"\x09{}", b"\x01{", b"\x01\xff", b"\x02{\"directive\": \"explode\"}"] {
            assert!(decode_outcome(wrong).is_err(), "{wrong:?}");
        }
        for wrong in [b"".as_slice(), b"\0\0\0\0", b"\0\0\0\0\x07\0\0", b"\0\0\0\0\0\xff\xff"] {
            assert!(decode_call(wrong).is_err(), "{wrong:?}");
        }
    }
}
