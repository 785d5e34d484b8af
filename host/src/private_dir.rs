//! Directories that are their owner's alone: the state directory says what tasks and plugins are about.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Makes a directory and whatever of the way to it is missing, for this user alone. One that is there stays as it is.
///
/// # Errors
///
/// When the system refuses.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
