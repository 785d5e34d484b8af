//! Lists the candidates of a plugin directory. Runs no code of theirs, and one bad entry never hides the others.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Largest library file: 512 MiB.
pub const MAX_LIBRARY_BYTES: u64 = 512 << 20;

/// A file found in the plugin directory, not yet looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
}

/// Why a directory cannot be searched.
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
