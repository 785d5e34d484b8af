//! The way from the root to the plugin directory: who may write to it, and so to what the host runs.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Strictness;
use crate::shown::shown;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Why a plugin directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// No name at all.
    #[error("the plugin directory is an empty text, expected a directory; write `.` for the one that the host was started in")]
    Empty,
    /// The directory cannot be listed.
    #[error(
        "cannot list the plugin directory {}; name an existing, readable directory with --plugins or `plugin_dir`",
        shown(path)
    )]
    Directory {
        /// The directory, absolute.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Everybody can write to it, or to a directory above.
    #[error(
        "the plugin directory {} is not safe: everybody can write to {} (mode {mode:04o}), expected mode {:04o}; mend it with `chmod o-w {}`",
        shown(path), shown(place), mode & !0o002, shown(place)
    )]
    WorldWritable {
        /// The directory.
        path: PathBuf,
        /// It, or one above it.
        place: PathBuf,
        /// Permission bits found.
        mode: u32,
    },
    /// A group can write to it, or to a directory above.
    #[error(
        "the plugin directory {} is open to group {group}: it can write to {} (mode {mode:04o}), which strict mode refuses; expected mode {:04o}; mend it with `chmod g-w {}`",
        shown(path), shown(place), mode & !0o020, shown(place)
    )]
    GroupWritable {
        /// The directory.
        path: PathBuf,
        /// It, or one above it.
        place: PathBuf,
        /// Permission bits found.
        mode: u32,
        /// The group's number.
        group: u32,
    },
    /// Somebody else owns it, or a directory or link on the way.
    #[error(
        "the plugin directory {} is not safe: user {owner} owns {}, expected root or user {user}, who runs the host; mend it with `chown -h {user} {}`",
        shown(path),
        shown(place),
        shown(place)
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// It, one above it, or a link on the way.
        place: PathBuf,
        /// The owner's number.
        owner: u32,
        /// The number of the host's user.
        user: u32,
    },
    /// More entries than anybody's plugins.
    #[error(
        "the plugin directory {} has {found} entries or more, expected at most {limit}; name a directory that holds plugins alone",
        shown(path)
    )]
    TooMany {
        /// The directory.
        path: PathBuf,
        /// Entries counted before it was given up.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

impl DiscoverError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "dir-empty-name",
            Self::Directory { .. } => "dir-unreadable",
            Self::WorldWritable { .. } => "dir-world-writable",
            Self::GroupWritable { .. } => "dir-group-writable",
            Self::Owner { .. } => "dir-owner",
            Self::TooMany { .. } => "dir-too-many",
        }
    }
}

/// A directory at the end of a safe way.
pub(super) struct Walked {
    pub(super) path: PathBuf,
    pub(super) descriptor: OwnedFd,
    pub(super) cautions: Vec<DiscoverError>,
}

/// Walks from the root to `path`, one name at a time and from descriptor to descriptor, so that what is checked is what is
/// opened. Links on the way are read and walked as well.
pub(super) fn walk(path: &Path, strictness: Strictness) -> Result<Walked, DiscoverError> {
    if path.as_os_str().is_empty() {
        return Err(DiscoverError::Empty);
    }
    let wanted = std::path::absolute(path).map_err(|source| DiscoverError::Directory { path: path.to_owned(), source })?;
    let failed = |errno: Errno| DiscoverError::Directory { path: wanted.clone(), source: errno.into() };
    let mut inspector = Inspector::new(&wanted, strictness);
    let root = || rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mut names: VecDeque<OsString> = names_of(&wanted).collect();
    let (mut here, mut at) = (root().map_err(failed)?, PathBuf::from("/"));
    inspector.directory(&at, &rustix::fs::fstat(&here).map_err(failed)?, Role::Above)?;
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(&here, &name, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&next).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                inspector.owner(&at.join(&name), &stat)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(Errno::LOOP));
                }
                let target = rustix::fs::readlinkat(&next, "", Vec::new()).map_err(failed)?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    (here, at) = (root().map_err(failed)?, PathBuf::from("/"));
                }
                for name in names_of(&target).collect::<Vec<_>>().into_iter().rev() {
                    names.push_front(name);
                }
            }
            FileType::Directory if name == OsStr::new("..") => {
                here = next;
                at.pop();
            }
            FileType::Directory => {
                here = next;
                at.push(&name);
                inspector.directory(&at, &stat, Role::Above)?;
            }
            _ => return Err(failed(Errno::NOTDIR)),
        }
    }
    inspector.directory(&at, &rustix::fs::fstat(&here).map_err(failed)?, Role::Itself)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor = rustix::fs::openat(&here, ".", flags, Mode::empty()).map_err(failed)?;
    Ok(Walked { path: at, descriptor, cautions: inspector.cautions })
}

/// The names to walk, with `..`, which is walked too.
fn names_of(path: &Path) -> impl Iterator<Item = OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
}

/// What a directory is to the plugin directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Itself,
    Above,
}

/// Judges owners and modes on the way to one directory.
pub(super) struct Inspector<'a> {
    path: &'a Path,
    strictness: Strictness,
    user: u32,
    pub(super) cautions: Vec<DiscoverError>,
}

impl<'a> Inspector<'a> {
    pub(super) fn new(path: &'a Path, strictness: Strictness) -> Self {
        Self { path, strictness, user: rustix::process::geteuid().as_raw(), cautions: Vec::new() }
    }

    fn owner(&self, place: &Path, stat: &Stat) -> Result<(), DiscoverError> {
        let (owner, user) = (stat.st_uid, self.user);
        if owner == 0 || owner == user {
            return Ok(());
        }
        Err(DiscoverError::Owner { path: self.path.to_owned(), place: place.to_owned(), owner, user })
    }

    /// An access control list needs no look of its own: its mask is what the group's bits show.
    pub(super) fn directory(&mut self, place: &Path, stat: &Stat, role: Role) -> Result<(), DiscoverError> {
        self.owner(place, stat)?;
        let mode = stat.st_mode & 0o7777;
        // Under the sticky bit nobody can rename or remove what belongs to others, such as the next directory on the way, whose
        // owner is checked. New files anybody can still make, so it is not enough for the plugin directory itself.
        if mode & 0o1000 != 0 && role == Role::Above {
            return Ok(());
        }
        let (path, place) = (self.path.to_owned(), place.to_owned());
        if mode & 0o002 != 0 {
            return Err(DiscoverError::WorldWritable { path, place, mode });
        }
        if mode & 0o020 != 0 {
            let caution = DiscoverError::GroupWritable { path, place, mode, group: stat.st_gid };
            match self.strictness {
                Strictness::Strict => return Err(caution),
                // The directory itself was seen on the way already, but for the root.
                Strictness::Lenient if role == Role::Above || mode & 0o1000 != 0 => self.cautions.push(caution),
                Strictness::Lenient => {}
            }
        }
        Ok(())
    }
}
