//! Why a broker could not do what it was asked.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

/// Why a broker could not do what it was asked, and which one it was.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{place}: {kind}")]
pub struct BrokerError {
    /// The broker, as its URL without a password.
    pub place: Arc<str>,
    /// What is wrong.
    pub kind: BrokerErrorKind,
    /// What the library beneath says.
    pub source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What is wrong with a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// Nobody answers, or the connection broke.
    #[error("cannot be reached; is it running, and is the address right?")]
    Unreachable,
    /// It is there and wants a password, or another one.
    #[error("refuses this user or password")]
    Forbidden,
    /// No room on the disk, or in the server's memory.
    #[error("is full; make room, what was recorded so far is safe")]
    Full,
    /// No right to write.
    #[error(
        "cannot be written; expected a file and a directory that this user may write to, also to read them, since SQLite keeps its log \
         beside the file; or a server that is no replica"
    )]
    ReadOnly,
    /// Not a database of this program.
    #[error("is damaged or something else than a task database; move it away or restore a copy")]
    Damaged,
    /// Another process keeps it locked.
    #[error("is locked by another process for longer than {} s", .0.as_secs())]
    Locked(Duration),
    /// The file that was opened has no name any more.
    #[error(
        "is not the file any more that was opened: it was removed or replaced; put it back, or start again with what is there"
    )]
    Gone,
    /// A database of another version of this program.
    #[error("has layout {found}, this program knows {expected}; use the program that wrote it, or another file")]
    Layout {
        /// Its number.
        found: i64,
        /// Ours.
        expected: i64,
    },
    /// A task of this uuid is there already.
    #[error("task {0} is there already; expected a new uuid")]
    Known(Uuid),
    /// Something that this broker cannot hold.
    #[error("{0}")]
    Refused(String),
    /// The broker was closed while this waited.
    #[error("was closed")]
    Closed,
    /// Anything else.
    #[error("failed")]
    Other,
}

/// By what is wrong, and where.
impl PartialEq for BrokerError {
    fn eq(&self, other: &Self) -> bool {
        (&self.place, &self.kind) == (&other.place, &other.kind)
    }
}

impl BrokerError {
    /// An error of the broker at `place`.
    pub(super) fn new(place: &Arc<str>, kind: BrokerErrorKind) -> Self {
        Self { place: Arc::clone(place), kind, source: None }
    }

    /// The same, with what the library beneath said.
    pub(super) fn with_source(place: &Arc<str>, kind: BrokerErrorKind, source: impl StdError + Send + Sync + 'static) -> Self {
        Self { place: Arc::clone(place), kind, source: Some(Arc::new(source)) }
    }

    /// Whether it was done all the same, perhaps: no answer says that it was not.
    #[must_use]
    pub fn leaves_open(&self) -> bool {
        use BrokerErrorKind::{Closed, Other, Unreachable};
        matches!(self.kind, Unreachable | Closed | Other)
    }

    /// Whether the same may go well later, with nobody doing anything about it.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self.kind, BrokerErrorKind::Unreachable | BrokerErrorKind::Locked(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_was_not_done_and_what_was_not_answered_may_have_been() {
        use BrokerErrorKind::{Closed, Damaged, Forbidden, Full, Gone, Known, Locked, Other, ReadOnly, Refused, Unreachable};
        let leaves_open = |kind| BrokerError::new(&"memory:".into(), kind).leaves_open();
        for kind in [Unreachable, Closed, Other] {
            assert!(leaves_open(kind.clone()), "{kind:?}");
        }
        let refused = Refused("too many".to_owned());
        for kind in [Forbidden, Full, ReadOnly, Damaged, Locked(Duration::from_secs(5)), Gone, Known(Uuid::nil()), refused] {
            assert!(!leaves_open(kind.clone()), "{kind:?}");
        }
    }
}
