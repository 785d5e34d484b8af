//! Values that are checked where they are read, so that whoever is told of a wrong one sees its line, or its flag.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use tracing_subscriber::EnvFilter;

pub(super) fn concurrency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match usize::deserialize(deserializer)? {
        0 => Err(D::Error::custom("concurrency is 0; expected at least 1: with none, no task could ever run")),
        lanes => Ok(lanes),
    }
}

/// A name that is not mixed up with keys of this program.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() || name.contains(':') || name == "qtasks-host" {
        return Err(D::Error::custom(format!(
            "name is {name:?}; expected at least one character, no `:`, and not \"qtasks-host\", which is the prefix of this program's \
             own keys"
        )));
    }
    Ok(name)
}

/// A word alone is a level. To `EnvFilter` any other word would be a target that nobody has, and nothing would be logged any more.
pub(super) fn log<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let filter = String::deserialize(deserializer)?;
    let is_word = |part: &&str| !part.is_empty() && !part.contains(['=', '[']);
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    if let Some(word) = filter.split(',').map(str::trim).filter(is_word).find(|part| !is_level(part)) {
        let levels = LEVELS.join(", ");
        return Err(D::Error::custom(format!(
            "log is {filter:?}: {word:?} is no level; expected {levels}, or a target with its level: {word}=debug"
        )));
    }
    if let Err(error) = EnvFilter::try_new(&filter) {
        return Err(D::Error::custom(format!(
            "log is {filter:?}; expected error, warn, info, debug, trace, or a filter such as warn,plugin=debug: {error}"
        )));
    }
    Ok(filter)
}
