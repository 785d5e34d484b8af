//! One entry of the plugin directory: opened only once it is known to be a file that nobody else could have written.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::place::{Inspector, Role};
use super::{DiscoverError, PluginDirectory, Strictness};
use crate::shown::{is_plain, shown};

/// Why an entry of the plugin directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A name that no program should have to print.
    #[error("the name {} is not plain UTF-8 text, expected a name without control characters; rename the file", shown(path))]
    Name {
        /// The entry.
        path: PathBuf,
    },
    /// Listed, and gone when it was to be opened.
    #[error(
        "{} vanished after it was listed; if it was replaced, put libraries in place with a rename, and load it again",
        shown(path)
    )]
    Vanished {
        /// The entry.
        path: PathBuf,
    },
    /// Not a regular file.
    #[error("{} is {found}, expected a regular file; remove it from the plugin directory", shown(path))]
    NotRegular {
        /// The entry.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A link that leads out of the directory.
    #[error(
        "{} is a link that leads out of the plugin directory, to {}, expected a file in the directory; put the file itself there",
        shown(path),
        shown(target)
    )]
    LinkOut {
        /// The entry.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A link that leads nowhere.
    #[error("cannot open {}, a link to {}; remove it, or make it lead to a file in the directory", shown(path), shown(target))]
    LinkBroken {
        /// The entry.
        path: PathBuf,
        /// What the link says.
        target: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A link that leads through a directory that others can write to.
    #[error("{} is a link that leads through a directory that is not safe", shown(path))]
    LinkPlace {
        /// The entry.
        path: PathBuf,
        /// What is wrong with the directory.
        source: Box<DiscoverError>,
    },
    /// Another name for a file that was found before.
    #[error("{} is the same file as {}, which is taken; remove one of the two, or copy the file", shown(path), shown(first))]
    Duplicate {
        /// The entry.
        path: PathBuf,
        /// The name that comes first.
        first: PathBuf,
    },
    /// Somebody else's.
    #[error(
        "user {owner} owns {}, expected root or user {user}, who runs the host; if you trust it, take it over with `chown {user} {}`",
        shown(path),
        shown(path)
    )]
    Owner {
        /// The entry.
        path: PathBuf,
        /// The owner's number.
        owner: u32,
        /// The number of the host's user.
        user: u32,
    },
    /// Runs with another's rights when started as a program, which no library is.
    #[error("{} has mode {mode:04o}, with set-user-ID or set-group-ID, expected mode {:04o}; mend it with `chmod ug-s {}`", shown(path), mode & 0o1777, shown(path))]
    SetId {
        /// The entry.
        path: PathBuf,
        /// Permission bits found.
        mode: u32,
    },
    /// Everybody can write to it.
    #[error("everybody can write to {} (mode {mode:04o}), expected mode {:04o}; mend it with `chmod o-w {}`", shown(path), mode & !0o002, shown(path))]
    WorldWritable {
        /// The entry.
        path: PathBuf,
        /// Permission bits found.
        mode: u32,
    },
    /// A group can write to it.
    #[error(
        "group {group} can write to {} (mode {mode:04o}), which strict mode refuses, expected mode {:04o}; mend it with `chmod g-w {}`",
        shown(path), mode & !0o020, shown(path)
    )]
    GroupWritable {
        /// The entry.
        path: PathBuf,
        /// Permission bits found.
        mode: u32,
        /// The group's number.
        group: u32,
    },
    /// The system will not open it.
    #[error("cannot open {}; make it a regular file that the host's user can read", shown(path))]
    Unreadable {
        /// The entry.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl FileError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "file-name",
            Self::Vanished { .. } => "file-vanished",
            Self::NotRegular { .. } => "file-not-regular",
            Self::LinkOut { .. } => "file-link-out",
            Self::LinkBroken { .. } => "file-link-broken",
            Self::LinkPlace { .. } => "file-link-place",
            Self::Duplicate { .. } => "file-duplicate",
            Self::Owner { .. } => "file-owner",
            Self::SetId { .. } => "file-set-id",
            Self::WorldWritable { .. } => "file-world-writable",
            Self::GroupWritable { .. } => "file-group-writable",
            Self::Unreadable { .. } => "file-unreadable",
        }
    }
}

/// An entry's file, open for reading.
#[derive(Debug)]
pub(in crate::plugin) struct OpenedFile {
    pub(in crate::plugin) file: File,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    pub(in crate::plugin) cautions: Vec<FileError>,
}

/// Opens an entry by its name: first as a mere place (`O_PATH`), which neither waits for a FIFO's writer nor wakes a device, and
/// for reading only when it is a regular file that only trusted users can write to. The second open is of the very same file.
///
/// A mount with `noexec` needs no look: what the dynamic linker maps is a sealed copy in memory, never this file.
pub(super) fn open(directory: &PluginDirectory, name: &OsStr) -> Result<OpenedFile, FileError> {
    let path = directory.path.join(name);
    // A slash would be a way out of the directory; the directory never lists one.
    if !name.to_str().is_some_and(|name| name.chars().all(|char| is_plain(char) && char != '/')) {
        return Err(FileError::Name { path });
    }
    let unreadable = |errno: Errno| FileError::Unreadable { path: path.clone(), source: errno.into() };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut place = rustix::fs::openat(&directory.descriptor, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => FileError::Vanished { path: path.clone() },
        errno => unreadable(errno),
    })?;
    let mut stat = rustix::fs::fstat(&place).map_err(unreadable)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        place = follow(directory, name, &place)?;
        stat = rustix::fs::fstat(&place).map_err(unreadable)?;
    }
    let cautions = check(&path, &stat, directory.strictness)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, proc_path(&place), flags, Mode::empty()).map_err(unreadable)?;
    Ok(OpenedFile { file: File::from(file), identity: (stat.st_dev as u64, stat.st_ino as u64), cautions })
}

/// The place that a link leads to, if it is in the directory.
///
/// `openat2` keeps the way there beneath the directory. It knows only relative links, and old kernels and sandboxes do not know
/// it, so what it refuses is followed freely; in both cases it counts where the way ended.
fn follow(directory: &PluginDirectory, name: &OsStr, link: &OwnedFd) -> Result<OwnedFd, FileError> {
    let path = directory.path.join(name);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let followed = rustix::fs::openat2(&directory.descriptor, name, flags, Mode::empty(), beneath)
        .or_else(|_| rustix::fs::openat(&directory.descriptor, name, flags, Mode::empty()));
    let broken = |errno: Errno| FileError::LinkBroken {
        path: path.clone(),
        target: rustix::fs::readlinkat(link, "", Vec::new())
            .map_or_else(|_| PathBuf::from("an unknown place"), |target| OsString::from_vec(target.into_bytes()).into()),
        source: errno.into(),
    };
    let place = followed.map_err(broken)?;
    let (target, home) = (real_path(&place).map_err(broken)?, real_path(&directory.descriptor).map_err(broken)?);
    let Ok(inside) = target.strip_prefix(&home) else {
        return Err(FileError::LinkOut { path, target });
    };
    let mut inspector = Inspector::new(&directory.path, directory.strictness);
    for between in inside.ancestors().skip(1).filter(|between| !between.as_os_str().is_empty()) {
        let stat = rustix::fs::statat(&directory.descriptor, between, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(broken)?;
        let checked = inspector.directory(&directory.path.join(between), &stat, Role::Itself);
        checked.map_err(|error| FileError::LinkPlace { path: path.clone(), source: Box::new(error) })?;
    }
    Ok(place)
}

fn proc_path(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// Where an open file or directory is, as the kernel sees it.
fn real_path(descriptor: impl AsFd) -> Result<PathBuf, Errno> {
    let path = rustix::fs::readlinkat(CWD, proc_path(descriptor), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

/// Kind, owner and mode of a file; gives what only strict mode would refuse.
fn check(path: &Path, stat: &Stat, strictness: Strictness) -> Result<Vec<FileError>, FileError> {
    let path = path.to_owned();
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        _ => Some("a special file"),
    };
    if let Some(found) = found {
        return Err(FileError::NotRegular { path, found });
    }
    let (owner, user) = (stat.st_uid, rustix::process::geteuid().as_raw());
    if owner != 0 && owner != user {
        return Err(FileError::Owner { path, owner, user });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o6000 != 0 {
        return Err(FileError::SetId { path, mode });
    }
    if mode & 0o002 != 0 {
        return Err(FileError::WorldWritable { path, mode });
    }
    if mode & 0o020 == 0 {
        return Ok(Vec::new());
    }
    let caution = FileError::GroupWritable { path, mode, group: stat.st_gid };
    if strictness == Strictness::Strict { Err(caution) } else { Ok(vec![caution]) }
}
