//! Directories that are their owner's alone: the state directory says what tasks and plugins are about, and which libraries are good.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::shown::shown;

/// Makes a directory and whatever of the way to it is missing, for this user alone. One that is there stays as it is.
///
/// # Errors
///
/// When the system refuses.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Why a state directory is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// Nobody said which, and the user has none.
    #[error("there is no state directory, since this user has no home; name one with --state-dir or `state_dir`")]
    None,
    /// Everybody can write to it.
    #[error(
        "the state directory {} is not safe: everybody can write to it (mode {mode:04o}), expected mode 0700; mend it with `chmod 700 {}`",
        shown(path),
        shown(path)
    )]
    WorldWritable {
        /// The directory.
        path: PathBuf,
        /// Permission bits found.
        mode: u32,
    },
    /// Somebody else owns it.
    #[error(
        "the state directory {} is not safe: user {owner} owns it, expected root or user {user}, who runs this; name another one with \
         --state-dir or `state_dir`",
        shown(path)
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// The owner's number.
        owner: u32,
        /// The number of the user who runs this.
        user: u32,
    },
}

/// Checks that nobody else decides what is in a state directory. One that is not there is made in time.
///
/// # Errors
///
/// [`StateDirError`].
pub(crate) fn check(path: &Path) -> Result<(), StateDirError> {
    if path.as_os_str().is_empty() {
        return Err(StateDirError::None);
    }
    // What cannot be looked at is told by whoever writes to it.
    let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
    judge(path, found.uid(), found.mode() & 0o7777, rustix::process::geteuid().as_raw())
}

fn judge(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), StateDirError> {
    let path = || path.to_owned();
    if owner != 0 && owner != user {
        return Err(StateDirError::Owner { path: path(), owner, user });
    }
    if mode & 0o002 != 0 {
        return Err(StateDirError::WorldWritable { path: path(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_of_the_user_or_of_root_and_nobody_else_writes_to_it() {
        let (path, directory) = (Path::new("/state"), PathBuf::from("/state"));
        assert_eq!(judge(path, 7, 0o700, 7), Ok(()));
        assert_eq!(judge(path, 0, 0o775, 7), Ok(()));
        assert_eq!(judge(path, 8, 0o700, 7), Err(StateDirError::Owner { path: directory.clone(), owner: 8, user: 7 }));
        assert_eq!(judge(path, 8, 0o700, 0), Err(StateDirError::Owner { path: directory.clone(), owner: 8, user: 0 }));
        assert_eq!(judge(path, 7, 0o1777, 7), Err(StateDirError::WorldWritable { path: directory, mode: 0o1777 }));
        assert_eq!((check(Path::new("")), check(Path::new("/nowhere/at/all"))), (Err(StateDirError::None), Ok(())));
    }
}
