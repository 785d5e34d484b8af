//! Lists the candidates of a plugin directory and opens their files. Runs no code of theirs, and one bad entry never hides the
//! others: it is found with the reason why its file cannot be used.
//!
//! Whoever can write to a plugin library, to its directory, or to a directory above can run code as the host. So the directory is
//! walked to from the root, owner and mode are checked on the way, and its descriptor is kept: everything is opened relative to
//! it, and a directory that is swapped later changes nothing.

mod entry;
mod place;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

pub use entry::FileError;
pub(super) use entry::OpenedFile;
pub use place::DiscoverError;

/// Largest library file: 512 MiB.
pub const MAX_LIBRARY_BYTES: u64 = 512 << 20;
/// Most entries of a plugin directory, of whatever name.
pub const MAX_ENTRIES: usize = 10_000;

/// A file that may be a plugin library, not yet looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
}

/// What is made of permissions that are common and yet let others in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strictness {
    /// What a group can write to is warned about: many systems give each user a group of their own.
    #[default]
    Lenient,
    /// What a group can write to is refused.
    Strict,
}

/// An open plugin directory that was found safe.
#[derive(Debug)]
pub struct PluginDirectory {
    path: PathBuf,
    descriptor: OwnedFd,
    strictness: Strictness,
    cautions: Vec<DiscoverError>,
}

impl PluginDirectory {
    /// Opens a directory: resolved, with owner and mode of it and of everything above it checked.
    ///
    /// # Errors
    ///
    /// [`DiscoverError`].
    pub fn open(path: &Path, strictness: Strictness) -> Result<Self, DiscoverError> {
        let place::Walked { path, descriptor, cautions } = place::walk(path, strictness)?;
        Ok(Self { path, descriptor, strictness, cautions })
    }

    /// Where it is: absolute, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What strict mode would refuse it for.
    #[must_use]
    pub fn cautions(&self) -> &[DiscoverError] {
        &self.cautions
    }

    /// The directory itself.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Opens one entry, checked as a library file is.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn candidate(&self, name: &OsStr) -> Found {
        let candidate = Candidate { path: self.path.join(name) };
        match self.open_file(name) {
            Ok(OpenedFile { file, cautions, .. }) => Found { candidate, file: Ok(file), cautions },
            Err(error) => Found { candidate, file: Err(error), cautions: Vec::new() },
        }
    }

    pub(super) fn open_file(&self, name: &OsStr) -> Result<OpenedFile, FileError> {
        entry::open(self, name)
    }
}

/// One entry that may be a plugin library.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub candidate: Candidate,
    /// Its file, open for reading, or why it cannot be used.
    pub file: Result<File, FileError>,
    /// What strict mode would refuse it for.
    pub cautions: Vec<FileError>,
}

/// The candidates of a directory in the order of their names. Each file is opened when its turn comes, so that 10,000 candidates
/// need a few descriptors and not 10,000.
#[derive(Debug)]
pub struct Discovered {
    directory: Arc<PluginDirectory>,
    names: vec::IntoIter<OsString>,
    /// The first name of each file, by device and inode.
    seen: HashMap<(u64, u64), OsString>,
}

impl Discovered {
    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Arc<PluginDirectory> {
        &self.directory
    }
}

impl Iterator for Discovered {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let name = self.names.next()?;
        let path = self.directory.path.join(&name);
        let mut cautions = Vec::new();
        let file = self.directory.open_file(&name).and_then(|opened| match self.seen.get(&opened.identity) {
            // A link, or a second name: the dynamic linker would give the same library, with the same statics, again.
            Some(first) => Err(FileError::Duplicate { path: path.clone(), first: self.directory.path.join(first) }),
            None => {
                self.seen.insert(opened.identity, name);
                cautions = opened.cautions;
                Ok(opened.file)
            }
        });
        Some(Found { candidate: Candidate { path }, file, cautions })
    }
}

/// Opens `directory` and lists its entries whose name ends in `.so`, by name. Hidden ones are left out, which is what editors and
/// `install` make while they write; sub-directories are not entered.
///
/// # Errors
///
/// [`DiscoverError`] when the directory cannot be listed, is not safe, or holds more than [`MAX_ENTRIES`].
pub fn discover(directory: &Path, strictness: Strictness) -> Result<Discovered, DiscoverError> {
    let directory = PluginDirectory::open(directory, strictness)?;
    let failed = |errno: rustix::io::Errno| DiscoverError::Directory { path: directory.path.clone(), source: errno.into() };
    let mut names: Vec<OsString> = Vec::new();
    let mut count = 0;
    for entry in rustix::fs::Dir::read_from(&directory.descriptor).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        count += 1;
        if count > MAX_ENTRIES {
            return Err(DiscoverError::TooMany { path: directory.path, found: count, limit: MAX_ENTRIES });
        }
        let name = OsString::from_vec(name);
        if is_library_name(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(Discovered { directory: Arc::new(directory), names: names.into_iter(), seen: HashMap::new() })
}

fn is_library_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.ends_with(b".so") && !bytes.starts_with(b".")
}
