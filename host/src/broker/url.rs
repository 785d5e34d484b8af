//! Which broker: `sqlite:PATH[?synchronous=full]`, `redis://…`, `memory:`.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::shown::shown;

/// Where tasks wait and results stay.
#[derive(Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// This process.
    Memory,
    /// A file.
    Sqlite {
        /// Where it is.
        path: PathBuf,
        /// When a commit counts as done.
        synchronous: Synchronous,
    },
    /// A Redis server: `redis://[user[:password]@]host[:port][/db]` or `redis+unix:///path`. Without TLS.
    Redis(String),
}

/// When a commit to a file counts as done: SQLite's `synchronous`, in WAL mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// When the system has it: no crash of a process loses it, a power cut may lose the last moments.
    #[default]
    Normal,
    /// When the disk has it.
    Full,
}

impl Synchronous {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}

/// Text that names no broker.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{found:?} is no broker: expected sqlite:PATH[?synchronous=full], redis://HOST[:PORT][/DB], redis+unix:///PATH or memory:"
)]
pub struct BrokerUrlError {
    found: String,
}

impl std::str::FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || BrokerUrlError { found: without_password(text) };
        match text.split_once(':') {
            Some(("memory", "" | "//")) => Ok(Self::Memory),
            Some(("sqlite", path)) => {
                // `sqlite:///tmp/a` is what other programs write; `sqlite://a` would name a host.
                let path = match path.strip_prefix("//") {
                    Some(absolute) if absolute.starts_with('/') => absolute,
                    Some(_) => return Err(refused()),
                    None => path,
                };
                let (path, synchronous) = match path.split_once('?') {
                    None | Some((_, "synchronous=normal")) => (path, Synchronous::Normal),
                    Some((_, "synchronous=full")) => (path, Synchronous::Full),
                    Some(_) => return Err(refused()),
                };
                let path = path.split('?').next().unwrap_or_default();
                if path.is_empty() || path.contains('\0') {
                    return Err(refused());
                }
                Ok(Self::Sqlite { path: path.into(), synchronous })
            }
            Some(("redis" | "redis+unix", rest)) if rest.len() > 2 && rest.starts_with("//") => Ok(Self::Redis(text.to_owned())),
            _ => Err(refused()),
        }
    }
}

/// As it stands in messages: without a password.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite { path, synchronous: Synchronous::Normal } => write!(f, "sqlite:{}", shown(path)),
            Self::Sqlite { path, synchronous: Synchronous::Full } => write!(f, "sqlite:{}?synchronous=full", shown(path)),
            Self::Redis(url) => f.write_str(&without_password(url)),
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may hold an `@`; a host does not.
    match rest.rsplit_once('@') {
        Some((user, place)) => match user.split_once(':') {
            Some((user, _)) => format!("{scheme}://{user}:…@{place}"),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    }
}

impl<'de> Deserialize<'de> for BrokerUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_broker_and_never_tells_a_password() {
        for (text, told) in [
            ("memory:", "memory:"),
            ("sqlite:tasks.db", "sqlite:tasks.db"),
            ("sqlite:///var/tasks.db", "sqlite:/var/tasks.db"),
            ("sqlite:a.db?synchronous=full", "sqlite:a.db?synchronous=full"),
            ("redis://localhost", "redis://localhost"),
            ("redis://:geheim@localhost:1/2", "redis://:…@localhost:1/2"),
            ("redis://me:p@ss@localhost", "redis://me:…@localhost"),
        ] {
            let url: BrokerUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), told);
        }
        for text in
            ["", "sqlite:", "sqlite://tasks.db", "redis:", "redis://", "rediss://localhost", "postgres://x:secret@y", "tasks.db"]
        {
            let error = text.parse::<BrokerUrl>().expect_err(text).to_string();
            assert!(error.contains("expected sqlite:PATH") && !error.contains("secret"), "{error}");
        }
    }
}
