//! Lists the candidates of a plugin directory. Runs no code of theirs, and one bad entry never hides the others.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// Largest library file: 512 MiB.
pub const MAX_LIBRARY_BYTES: u64 = 512 << 20;

/// A file found in the plugin directory, not yet looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
}

/// Why a directory cannot be searched, or a candidate not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// The directory cannot be listed.
    #[error("cannot list the plugin directory {}; name an existing, readable directory with --plugins or `plugin_dir`", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Not a regular file.
    #[error("{} is {found}, a plugin library is a regular file; remove it from the plugin directory", path.display())]
    NotAFile {
        /// The entry.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Too large.
    #[error("{} has {found} bytes, a plugin library has at most {MAX_LIBRARY_BYTES}", path.display())]
    TooLarge {
        /// The entry.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The entry.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Lists the entries of `directory` whose name ends in `.so`, by name. Sub-directories are not entered.
///
/// # Errors
///
/// [`DiscoverError::Directory`] when the directory cannot be listed.
pub fn discover(directory: &Path) -> Result<Vec<Candidate>, DiscoverError> {
    let failed = |source| DiscoverError::Directory { path: directory.to_owned(), source };
    // The loader's own search rules apply to names without a slash, so every path is made absolute.
    let directory = std::path::absolute(directory).map_err(failed)?;
    let mut names: Vec<OsString> = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if is_library_name(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|name| Candidate { path: directory.join(name) }).collect())
}

fn is_library_name(name: &OsString) -> bool {
    let bytes = name.as_bytes();
    bytes.ends_with(b".so") && !bytes.starts_with(b".")
}

impl Candidate {
    /// Reads the file's bytes. Never waits on a FIFO and never reads more than [`MAX_LIBRARY_BYTES`].
    ///
    /// # Errors
    ///
    /// [`DiscoverError`] when it is no regular file, is too large, or cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, DiscoverError> {
        let failed = |source: std::io::Error| DiscoverError::Read { path: self.path.clone(), source };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let descriptor: OwnedFd =
            rustix::fs::openat(CWD, &self.path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let mut file = File::from(descriptor);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(DiscoverError::NotAFile { path: self.path.clone(), found: describe(metadata.file_type()) });
        }
        let mut bytes = Vec::new();
        // The size may change while we read, so the limit is on what is read and not on what was promised.
        file.by_ref().take(MAX_LIBRARY_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_LIBRARY_BYTES {
            return Err(DiscoverError::TooLarge { path: self.path.clone(), found: metadata.len() });
        }
        Ok(bytes)
    }
}

fn describe(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a special file"
    }
}
