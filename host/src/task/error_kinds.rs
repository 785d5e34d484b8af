//! Which error is a kind of which: Python's hierarchy, this program's own errors, and what the operator adds.
//!
//! Every error is an `Exception` unless something else is known of it: a Rust error has its type's name and no hierarchy.

use std::collections::BTreeMap;

use qtasks_plugin_api::nearest::nearest;
use qtasks_plugin_api::{CANCEL_ERROR, PANIC_ERROR, PLUGIN_ERROR};
use serde::Deserialize;

use super::command::COMMAND_ERROR;
use crate::plugin::{CRASH_ERROR, DEADLINE_ERROR, TRIPPED_ERROR};

/// Error kinds and their parents: `[error_kinds]`.
///
/// ```toml
/// [error_kinds]
/// HttpError = "ConnectionError"      # retry_on = ["ConnectionError"] means it, too
/// DeadlineExceeded = "TimeoutError"  # this program's own may be put elsewhere than under Exception
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct ErrorKinds {
    /// The operator's: parent by kind.
    own: BTreeMap<String, String>,
}

/// Why error kinds do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKindsError {
    /// Python's own have their place.
    #[error("error_kinds: {0} is one of Python's own kinds, whose parents are known; give yours another name")]
    Builtin(String),
    /// A parent that nobody knows.
    #[error(
        "error_kinds: {kind} = {parent:?}, but there is no kind {parent}{hint}; if it is yours, add {parent} = \"Exception\""
    )]
    UnknownParent {
        /// The child.
        kind: String,
        /// Its parent.
        parent: String,
        /// The nearest known one, as words.
        hint: String,
    },
    /// Kinds that are kinds of themselves.
    #[error("error_kinds: {0} is a kind of itself; expected parents that lead to Exception")]
    Cycle(String),
}

impl ErrorKinds {
    /// The kinds of Python and of this program, and these: parent by kind.
    ///
    /// # Errors
    ///
    /// [`ErrorKindsError`], the first thing that is wrong.
    pub fn new(own: BTreeMap<String, String>) -> Result<Self, ErrorKindsError> {
        let kinds = Self { own };
        for (kind, parent) in &kinds.own {
            if is_pythons(kind) {
                return Err(ErrorKindsError::Builtin(kind.clone()));
            }
            if !kinds.is_known(parent) {
                let hint = nearest(parent, kinds.known());
                return Err(ErrorKindsError::UnknownParent { kind: kind.clone(), parent: parent.clone(), hint });
            }
        }
        for kind in kinds.own.keys() {
            let mut above = kind;
            // A way up that is longer than the table goes in a circle.
            for _ in &kinds.own {
                match kinds.own.get(above) {
                    Some(parent) if parent == kind => return Err(ErrorKindsError::Cycle(kind.clone())),
                    Some(parent) => above = parent,
                    None => break,
                }
            }
        }
        Ok(kinds)
    }

    /// Whether an error of type `kind` is a `wanted`: that itself, or a child of it at any depth.
    #[must_use]
    pub fn is_a(&self, kind: &str, wanted: &str) -> bool {
        let (kind, wanted) = (canonical(kind), canonical(wanted));
        if kind == wanted {
            return true;
        }
        if let Some(parent) = self.own.get(kind) {
            return self.is_a(parent, wanted);
        }
        let mut parents = python_parents(kind).peekable();
        if parents.peek().is_none() {
            return kind != ROOT && self.is_a("Exception", wanted);
        }
        parents.any(|parent| self.is_a(parent, wanted))
    }

    /// The known kind that was most likely meant by one that nobody knows.
    #[must_use]
    pub fn meant_by(&self, kind: &str) -> Option<&str> {
        /// More than two letters wrong is another word.
        const TYPO: usize = 2;
        if self.is_known(kind) {
            return None;
        }
        let likeness = |known: &&str| strsim::damerau_levenshtein(kind, known);
        self.known().min_by_key(likeness).filter(|known| likeness(known) <= TYPO)
    }

    fn is_known(&self, kind: &str) -> bool {
        self.known().any(|known| known == kind)
    }

    fn known(&self) -> impl Iterator<Item = &str> {
        let pythons = PYTHON.iter().map(|(kind, _)| *kind).chain(ALIASES.iter().map(|(alias, _)| *alias));
        pythons.chain([ROOT]).chain(OWN.iter().copied()).chain(self.own.keys().map(String::as_str))
    }
}

impl TryFrom<BTreeMap<String, String>> for ErrorKinds {
    type Error = ErrorKindsError;

    fn try_from(own: BTreeMap<String, String>) -> Result<Self, Self::Error> {
        Self::new(own)
    }
}

fn is_pythons(kind: &str) -> bool {
    canonical(kind) == ROOT || python_parents(canonical(kind)).next().is_some()
}

fn python_parents(kind: &str) -> impl Iterator<Item = &'static str> {
    PYTHON.iter().filter(move |(child, _)| *child == kind).map(|(_, parent)| *parent)
}

/// The name that an exception of Python says it has.
fn canonical(kind: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == kind).map_or(kind, |(_, name)| name)
}

/// `type` of the error of a task that nobody provides.
pub const UNKNOWN_TASK_ERROR: &str = "UnknownTask";

const ROOT: &str = "BaseException";

/// This program's own. They are under `Exception`, as every kind is of which nothing else is said.
const OWN: &[&str] = &[
    PLUGIN_ERROR,
    CANCEL_ERROR,
    PANIC_ERROR,
    COMMAND_ERROR,
    UNKNOWN_TASK_ERROR,
    DEADLINE_ERROR,
    CRASH_ERROR,
    TRIPPED_ERROR,
    "ArgumentError",
    "ResultError",
    "TaskLost",
    "Error",
];

/// Other names of the same classes.
const ALIASES: &[(&str, &str)] = &[("EnvironmentError", "OSError"), ("IOError", "OSError")];

/// Python 3.13's built-in exceptions, without warnings, which are not raised: each with its parent.
/// <https://docs.python.org/3.13/library/exceptions.html#exception-hierarchy>
const PYTHON: &[(&str, &str)] = &[
    ("BaseExceptionGroup", "BaseException"),
    ("GeneratorExit", "BaseException"),
    ("KeyboardInterrupt", "BaseException"),
    ("SystemExit", "BaseException"),
    ("CancelledError", "BaseException"),
    ("Exception", "BaseException"),
    ("ArithmeticError", "Exception"),
    ("FloatingPointError", "ArithmeticError"),
    ("OverflowError", "ArithmeticError"),
    ("ZeroDivisionError", "ArithmeticError"),
    ("AssertionError", "Exception"),
    ("AttributeError", "Exception"),
    ("BufferError", "Exception"),
    ("EOFError", "Exception"),
    ("ExceptionGroup", "BaseExceptionGroup"),
    ("ExceptionGroup", "Exception"),
    ("ImportError", "Exception"),
    ("ModuleNotFoundError", "ImportError"),
    ("LookupError", "Exception"),
    ("IndexError", "LookupError"),
    ("KeyError", "LookupError"),
    ("MemoryError", "Exception"),
    ("NameError", "Exception"),
    ("UnboundLocalError", "NameError"),
    ("OSError", "Exception"),
    ("BlockingIOError", "OSError"),
    ("ChildProcessError", "OSError"),
    ("ConnectionError", "OSError"),
    ("BrokenPipeError", "ConnectionError"),
    ("ConnectionAbortedError", "ConnectionError"),
    ("ConnectionRefusedError", "ConnectionError"),
    ("ConnectionResetError", "ConnectionError"),
    ("FileExistsError", "OSError"),
    ("FileNotFoundError", "OSError"),
    ("InterruptedError", "OSError"),
    ("IsADirectoryError", "OSError"),
    ("NotADirectoryError", "OSError"),
    ("PermissionError", "OSError"),
    ("ProcessLookupError", "OSError"),
    ("TimeoutError", "OSError"),
    ("ReferenceError", "Exception"),
    ("RuntimeError", "Exception"),
    ("NotImplementedError", "RuntimeError"),
    ("PythonFinalizationError", "RuntimeError"),
    ("RecursionError", "RuntimeError"),
    ("StopAsyncIteration", "Exception"),
    ("StopIteration", "Exception"),
    ("SyntaxError", "Exception"),
    ("IndentationError", "SyntaxError"),
    ("TabError", "IndentationError"),
    ("SystemError", "Exception"),
    ("TypeError", "Exception"),
    ("ValueError", "Exception"),
    ("UnicodeError", "ValueError"),
    ("UnicodeDecodeError", "UnicodeError"),
    ("UnicodeEncodeError", "UnicodeError"),
    ("UnicodeTranslateError", "UnicodeError"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(own: &[(&str, &str)]) -> Result<ErrorKinds, ErrorKindsError> {
        ErrorKinds::new(own.iter().map(|(kind, parent)| ((*kind).to_owned(), (*parent).to_owned())).collect())
    }

    #[test]
    fn a_kind_is_itself_and_what_its_parents_are_and_nothing_else() {
        let kinds = kinds(&[("HttpError", "ConnectionError"), ("Http500", "HttpError"), (DEADLINE_ERROR, "TimeoutError")]);
        let kinds = kinds.expect("a hierarchy");
        for (kind, wanted) in [
            ("ZeroDivisionError", "ZeroDivisionError"),
            ("ZeroDivisionError", "ArithmeticError"),
            ("ZeroDivisionError", "Exception"),
            ("TimeoutError", "OSError"),
            ("TimeoutError", "IOError"),
            ("ExceptionGroup", "BaseExceptionGroup"),
            ("ExceptionGroup", "Exception"),
            ("KeyboardInterrupt", "BaseException"),
            ("Http500", "OSError"),
            (DEADLINE_ERROR, "TimeoutError"),
            (PLUGIN_ERROR, "Exception"),
            ("ParseIntError", "Exception"),
            ("ParseIntError", "BaseException"),
        ] {
            assert!(kinds.is_a(kind, wanted), "{kind} is a {wanted}");
        }
        for (kind, wanted) in [
            ("ArithmeticError", "ZeroDivisionError"),
            ("TimeoutError", "ArithmeticError"),
            ("KeyboardInterrupt", "Exception"),
            ("HttpError", "Http500"),
            ("ParseIntError", "ValueError"),
            ("BaseException", "Exception"),
        ] {
            assert!(!kinds.is_a(kind, wanted), "{kind} is no {wanted}");
        }
    }

    #[test]
    fn every_kind_of_python_leads_to_the_root() {
        let kinds = ErrorKinds::default();
        for (kind, parent) in PYTHON {
            assert!(kinds.is_a(kind, ROOT), "{kind}");
            assert!(is_pythons(parent), "{parent}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (own, said) in [
            (&[("A", "B"), ("B", "C"), ("C", "A")][..], "error_kinds: A is a kind of itself"),
            (&[("A", "A")], "error_kinds: A is a kind of itself"),
            (&[("A", "B"), ("B", "C"), ("C", "B")], "error_kinds: B is a kind of itself"),
            (&[("ValueError", "OSError")], "ValueError is one of Python's own kinds"),
            (&[("IOError", "Exception")], "IOError is one of Python's own kinds"),
            (&[("A", "ConectionError")], "there is no kind ConectionError; did you mean `ConnectionError`?"),
        ] {
            let error = kinds(own).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(kinds(&[]).expect("nothing").meant_by("TimeoutErorr"), Some("TimeoutError"));
        assert_eq!(kinds(&[]).expect("nothing").meant_by("ParseIntError"), None);
    }
}
