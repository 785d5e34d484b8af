//! Detached signatures: `libx.so.minisig` beside `libx.so`, as `minisign -Sm libx.so` makes it.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::PathBuf;

use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Deserializer};

use crate::plugin::discover::{FileError, PluginDirectory};
use crate::shown::shown;

/// Largest signature file that is read: 8 KiB. minisign's own have about 300 bytes.
const MAX_SIGNATURE_BYTES: u64 = 8 << 10;

/// A public key that libraries may be signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    id: KeyId,
    key: PublicKey,
}

impl TrustedKey {
    /// Reads the base64 text of a minisign public key: the second line of `minisign.pub`.
    ///
    /// # Errors
    ///
    /// [`TrustedKeyError`].
    pub fn from_base64(text: &str) -> Result<Self, TrustedKeyError> {
        let wrong = || TrustedKeyError { found: text.chars().take(80).collect() };
        let key = PublicKey::from_base64(text).map_err(|_| wrong())?;
        Ok(Self { id: KeyId::of_base64(text).ok_or_else(wrong)?, key })
    }
}

impl<'de> Deserialize<'de> for TrustedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_base64(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Reads `trusted_keys`. An empty list is refused: it could mean that nobody is trusted, or that nobody is asked.
pub(crate) fn trusted_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TrustedKey>, D::Error> {
    let keys = Vec::deserialize(deserializer)?;
    if keys.is_empty() {
        return Err(serde::de::Error::custom("`trusted_keys` is empty; expected at least one key, or leave it out"));
    }
    Ok(keys)
}

/// A text that is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no minisign public key, expected base64 text as in \"RW…\"; take the second line of minisign.pub")]
pub struct TrustedKeyError {
    /// The text, its first 80 characters.
    pub found: String,
}

/// The number that minisign gives a key, as it prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId(u64);

impl KeyId {
    /// Keys and signatures both begin with two bytes for the algorithm and eight for the key. `minisign-verify` keeps them to
    /// itself, and whoever reads a refusal needs them.
    fn of_base64(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'A'..=b'Z' => Some(byte - b'A'),
            b'a'..=b'z' => Some(byte - b'a' + 26),
            b'0'..=b'9' => Some(byte - b'0' + 52),
            b'+' => Some(62),
            b'/' => Some(63),
            _ => None,
        };
        // 14 digits of 6 bits: 80 bits for the ten bytes, and 4 more.
        let digits = text.as_bytes().get(..14)?;
        let bits = digits.iter().try_fold(0_u128, |bits, byte| Some(bits << 6 | u128::from(digit(*byte)?)))?;
        Some(Self(((bits >> 4) as u64).swap_bytes()))
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016X}", self.0)
    }
}

/// Why a library has no good signature.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// There is none.
    #[error(
        "it is not signed: there is no {}, and `trusted_keys` wants one; sign the library with `minisign -Sm FILE`",
        shown(path)
    )]
    Missing {
        /// The signature file that was looked for.
        path: PathBuf,
    },
    /// It cannot be used as a file.
    #[error("its signature cannot be used")]
    File(#[source] FileError),
    /// It cannot be read.
    #[error("its signature {} cannot be read", shown(path))]
    Read {
        /// The signature file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not a signature.
    #[error("its signature {} is malformed: {reason}; sign the library again with `minisign -Sm FILE`", shown(path))]
    Malformed {
        /// The signature file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// By somebody who is not trusted.
    #[error(
        "its signature {} is by the unknown key {found}, expected {}; sign it with a trusted key, or add the key to `trusted_keys`",
        shown(path),
        known_text(known)
    )]
    UnknownKey {
        /// The signature file.
        path: PathBuf,
        /// Who signed.
        found: KeyId,
        /// Who is trusted.
        known: Vec<KeyId>,
    },
    /// For other bytes.
    #[error(
        "its signature {} by key {key} is wrong: the library or the signature was changed after signing; get both again from where they come",
        shown(path)
    )]
    Wrong {
        /// The signature file.
        path: PathBuf,
        /// The key that it names.
        key: KeyId,
    },
}

fn known_text(known: &[KeyId]) -> String {
    known.iter().map(KeyId::to_string).collect::<Vec<_>>().join(" or ")
}

impl SignatureError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "signature-missing",
            Self::File(_) | Self::Read { .. } => "signature-unreadable",
            Self::Malformed { .. } => "signature-malformed",
            Self::UnknownKey { .. } => "signature-unknown-key",
            Self::Wrong { .. } => "signature-wrong",
        }
    }
}

/// Checks that the signature `name` is over exactly `bytes`, by one of `keys`.
pub(super) fn check(directory: &PluginDirectory, name: &OsStr, bytes: &[u8], keys: &[TrustedKey]) -> Result<(), SignatureError> {
    let path = directory.path().join(name);
    let malformed = |reason| SignatureError::Malformed { path: path.clone(), reason };
    let opened = directory.open_file(name).map_err(|error| match error {
        FileError::Vanished { path } => SignatureError::Missing { path },
        error => SignatureError::File(error),
    })?;
    let mut text = Vec::new();
    let read = opened.file.take(MAX_SIGNATURE_BYTES + 1).read_to_end(&mut text);
    read.map_err(|source| SignatureError::Read { path: path.clone(), source })?;
    if text.len() as u64 > MAX_SIGNATURE_BYTES {
        return Err(malformed("it has more than 8192 bytes"));
    }
    let text = String::from_utf8(text).map_err(|_| malformed("it is not UTF-8 text"))?;
    let signature = Signature::decode(&text).map_err(|_| malformed("it is not what minisign writes"))?;
    let found = text.lines().nth(1).and_then(KeyId::of_base64).ok_or_else(|| malformed("it names no key"))?;
    // Two keys may have one number: it is random, and nobody keeps it unique.
    let mut fitting = keys.iter().filter(|key| key.id == found).peekable();
    if fitting.peek().is_none() {
        return Err(SignatureError::UnknownKey { path, found, known: keys.iter().map(|key| key.id).collect() });
    }
    let allow_legacy = false;
    let mut error = SignatureError::Wrong { path: path.clone(), key: found };
    for key in fitting {
        match key.key.verify(bytes, &signature, allow_legacy) {
            Ok(()) => return Ok(()),
            Err(minisign_verify::Error::UnexpectedAlgorithm) => {
                error =
                    malformed("it is of the old kind, over the file and not over its hash (minisign before 0.10, or option -l)");
            }
            Err(_) => {}
        }
    }
    Err(error)
}
