//! A library's bytes, read once: what is checked, hashed and trusted is what the dynamic linker maps.
//!
//! The file is copied into a sealed memfd; the digest and every check are over the sealed copy, and so is `dlopen`. Whoever
//! overwrites the file meanwhile changes nothing. Where memfds are refused, a copy in a private directory takes their place.
//!
//! A library in a memfd has no directory, so `$ORIGIN` in its search path leads nowhere; the static check refuses search paths.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::discover::Candidate;
use crate::shown::shown;

/// Bytes read at once: small enough to be hashed out of the cache they were read into.
const CHUNK: usize = 64 << 10;

/// Numbers the copies and the spellings of this process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Why a library's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BytesError {
    /// The file cannot be opened.
    #[error("cannot open {}; make it a regular file that the host's user can read", shown(path))]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("{} is {found}, expected a regular file; remove it from the plugin directory", shown(path))]
    NotAFile {
        /// The entry.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Too large.
    #[error(
        "{} has {found} bytes or more, expected at most {max_bytes}; strip the library of its debug information",
        shown(path)
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes, or how many had been read.
        found: u64,
        /// The cap.
        max_bytes: u64,
    },
    /// Written to while it was read.
    #[error("{} was written to while it was read; put libraries in place with a rename, and load it again", shown(path))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is no place for the copy.
    #[error(
        "cannot keep a copy of {} {place}; free some memory, or name a writable directory without noexec in TMPDIR",
        shown(path)
    )]
    Copy {
        /// The file.
        path: PathBuf,
        /// Where the copy was to be.
        place: &'static str,
        /// The reason.
        source: io::Error,
    },
}

impl BytesError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "bytes-open",
            Self::NotAFile { .. } => "bytes-not-a-file",
            Self::TooLarge { .. } => "bytes-too-large",
            Self::Changed { .. } => "bytes-changed",
            Self::Read { .. } => "bytes-read",
            Self::Copy { .. } => "bytes-copy",
        }
    }
}

/// The SHA-256 of a library: what locks, caches and the quarantine know it by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no SHA-256 digest, expected 64 hexadecimal digits; take it from `sha256sum FILE`")]
pub struct DigestError {
    /// The text, its first 80 characters.
    pub found: String,
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let wrong = || DigestError { found: text.chars().take(80).collect() };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut digest = [0; 32];
        if pairs.len() != digest.len() || !rest.is_empty() {
            return Err(wrong());
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the copy is kept.
#[derive(Debug, Clone, Copy)]
pub enum Storage<'a> {
    /// In a sealed memfd.
    Memory,
    /// In a directory of mode 0700 that is made in this one, and removed again before this returns: only a descriptor is left.
    Directory(&'a Path),
}

/// A library's sealed copy, with its bytes at hand for the checks.
///
/// The bytes are a `Vec`: a mapping would need `unsafe` and would save nothing that lasts. They are dropped, before the library
/// is opened, by [`into_sealed`](Self::into_sealed), so that of 200 plugins only the one that is loaded and the next one are held twice.
#[derive(Debug)]
pub struct LibraryBytes {
    bytes: Vec<u8>,
    sealed: SealedLibrary,
}

impl LibraryBytes {
    /// Reads a candidate's file, into memory or else, where memfds are refused, into the system's temporary directory.
    ///
    /// Never waits on a FIFO, and reads at most `max_bytes`.
    ///
    /// # Errors
    ///
    /// [`BytesError`].
    pub fn read(candidate: &Candidate, max_bytes: u64) -> Result<Self, BytesError> {
        match Self::read_into(candidate, max_bytes, Storage::Memory) {
            // A memfd can be refused by the sysctl vm.memfd_noexec, by seccomp or by SELinux.
            Err(BytesError::Copy { .. }) => Self::read_into(candidate, max_bytes, Storage::Directory(&std::env::temp_dir())),
            result => result,
        }
    }

    /// Like [`read`](Self::read), with the copy in a place of the caller's choice.
    ///
    /// # Errors
    ///
    /// [`BytesError`].
    pub fn read_into(candidate: &Candidate, max_bytes: u64, storage: Storage<'_>) -> Result<Self, BytesError> {
        let path = &candidate.path;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        let file = opened.map_err(|errno| BytesError::Open { path: path.clone(), source: errno.into() })?;
        Self::from_file(File::from(file), path, max_bytes, storage)
    }

    /// Reads a file that is open already, from where it stands; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`BytesError`], all but [`BytesError::Open`].
    pub fn from_file(file: File, path: &Path, max_bytes: u64, storage: Storage<'_>) -> Result<Self, BytesError> {
        let read = |source| BytesError::Read { path: path.to_owned(), source };
        let before = file.metadata().map_err(read)?;
        if !before.is_file() {
            return Err(BytesError::NotAFile { path: path.to_owned(), found: describe(&before) });
        }
        let too_large = |found| BytesError::TooLarge { path: path.to_owned(), found, max_bytes };
        if before.len() > max_bytes {
            return Err(too_large(before.len()));
        }
        let (copy, copied) = match storage {
            Storage::Memory => memory_copy(&file, path, max_bytes)?,
            Storage::Directory(parent) => private_copy(&file, path, max_bytes, parent)?,
        };
        // The size may change while we read, so the limit is on what is read and not on what was promised.
        if copied > max_bytes {
            return Err(too_large(copied));
        }
        let after = file.metadata().map_err(read)?;
        let state = |metadata: &Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime_nsec());
        if state(&before) != state(&after) {
            return Err(BytesError::Changed { path: path.to_owned() });
        }
        // Everything from here on is about the copy that nobody can write to any more.
        let (bytes, digest) = read_and_hash(&copy).map_err(read)?;
        Ok(Self { bytes, sealed: SealedLibrary { digest, copy } })
    }

    /// The bytes, for the checks.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The SHA-256 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.sealed.digest
    }

    /// The sealed copy.
    #[must_use]
    pub fn sealed(&self) -> &SealedLibrary {
        &self.sealed
    }

    /// Lets go of the bytes and keeps what `dlopen` and a child process need.
    #[must_use]
    pub fn into_sealed(self) -> SealedLibrary {
        self.sealed
    }
}

/// A copy that nobody can write to, with its digest. Holds a descriptor, which may be closed once the library is open.
#[derive(Debug)]
pub struct SealedLibrary {
    digest: Digest,
    copy: File,
}

impl SealedLibrary {
    /// The SHA-256 of the copy.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The copy, to be handed to a child process. Open for reading; close-on-exec.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.copy
    }

    /// A path for `dlopen`, in a spelling that this process has not used before.
    ///
    /// glibc compares the name with those of the libraries that are open (`elf/dl-load.c`, `_dl_map_object`) before it looks at
    /// the file: `/proc/self/fd/7`, used again for another file, gives the old library. So the path says a number that is never
    /// used twice, bit by bit: `./` for 0 and `.//` for 1, which the kernel skips. The path works as long as this value lives;
    /// the library stays when it is dropped.
    #[must_use]
    pub fn dlopen_path(&self) -> PathBuf {
        let mut path = String::from("/proc/self/fd/");
        let mut number = COUNTER.fetch_add(1, Ordering::Relaxed) + 1;
        while number > 0 {
            path.push_str(if number & 1 == 0 { "./" } else { ".//" });
            number >>= 1;
        }
        path.push_str(&self.copy.as_raw_fd().to_string());
        path.into()
    }
}

fn describe(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
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

/// Why a copy ended: the file and its copy have different remedies.
enum CopyError {
    From(io::Error),
    To(io::Error),
}

impl CopyError {
    fn at(self, path: &Path, place: &'static str) -> BytesError {
        let path = path.to_owned();
        match self {
            Self::From(source) => BytesError::Read { path, source },
            Self::To(source) => BytesError::Copy { path, place, source },
        }
    }
}

/// Copies at most one byte more than allowed.
fn copy_capped(mut from: &File, mut to: &File, max_bytes: u64) -> Result<u64, CopyError> {
    let mut buffer = vec![0; CHUNK];
    let mut left = max_bytes.saturating_add(1);
    while left > 0 {
        let wanted = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let read = match from.read(buffer.get_mut(..wanted).unwrap_or_default()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.map_err(CopyError::From)?,
        };
        let Some(filled) = buffer.get(..read).filter(|filled| !filled.is_empty()) else { break };
        to.write_all(filled).map_err(CopyError::To)?;
        left = left.saturating_sub(read as u64);
    }
    Ok(max_bytes.saturating_add(1) - left)
}

fn memory_copy(file: &File, path: &Path, max_bytes: u64) -> Result<(File, u64), BytesError> {
    let place = "in memory (memfd)";
    let failed = |source: io::Error| BytesError::Copy { path: path.to_owned(), place, source };
    // The name is what /proc/PID/maps and debuggers show. The kernel takes 249 bytes.
    let name: String =
        path.file_name().unwrap_or_default().to_string_lossy().chars().filter(|char| *char != '\0').take(60).collect();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC is known since Linux 6.3, and wanted there: without it the kernel logs a warning, or makes it non-executable.
    let memory = match rustix::fs::memfd_create(name.as_str(), flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name.as_str(), flags),
        result => result,
    };
    let memory = File::from(out_of_the_way(memory.map_err(|errno| failed(errno.into()))?));
    let copied = copy_capped(file, &memory, max_bytes).map_err(|error| error.at(path, place))?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(|errno| failed(errno.into()))?;
    Ok((memory, copied))
}

/// Gives a descriptor a high number. The name of an open library leads to it for ever, and debuggers and backtraces follow that
/// name: once it is closed, a low number would soon lead to a socket or a FIFO, a high one leads to another library or nowhere.
fn out_of_the_way(descriptor: OwnedFd) -> OwnedFd {
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(8192);
    let least = (soft / 2).min(4096) as i32;
    rustix::io::fcntl_dupfd_cloexec(&descriptor, least).unwrap_or(descriptor)
}

fn private_copy(file: &File, path: &Path, max_bytes: u64, parent: &Path) -> Result<(File, u64), BytesError> {
    let place = "in a private directory";
    let failed = |source: io::Error| BytesError::Copy { path: path.to_owned(), place, source };
    let directory = private_directory(parent).map_err(failed)?;
    let made = nameless_file(&directory);
    // Before anything is copied, which may take its time: nothing is left behind then where this process is killed meanwhile. The
    // descriptors are enough, and nobody else finds the copy by name.
    let removed = std::fs::remove_dir(&directory);
    let (writer, reader) = made.map_err(|errno| failed(errno.into()))?;
    removed.map_err(failed)?;
    let copied = copy_capped(file, &File::from(writer), max_bytes).map_err(|error| error.at(path, place))?;
    Ok((File::from(out_of_the_way(reader)), copied))
}

fn private_directory(parent: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let process = std::process::id();
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let directory = parent.join(format!("qtasks-{process}-{number}"));
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            // A process of the same number left it, or somebody wants to get in our way: the next number is free.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A new file in `directory` that has no name any more, as a descriptor that writes it and one that can only read it.
fn nameless_file(directory: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = rustix::fs::openat(CWD, directory, flags | OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    let name = "library.so";
    // Mode 0400 binds those who open it later, not the descriptor that creates it.
    let writer = rustix::fs::openat(&directory, name, flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::RUSR)?;
    let reader = rustix::fs::openat(&directory, name, flags | OFlags::RDONLY, Mode::empty());
    rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
    Ok((writer, reader?))
}

/// Reads the copy from its start, and hashes it in the same pass.
fn read_and_hash(mut copy: &File) -> io::Result<(Vec<u8>, Digest)> {
    copy.rewind()?;
    let len = usize::try_from(copy.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(io::Error::other)?;
    let mut hasher = Sha256::new();
    loop {
        let start = bytes.len();
        if Read::take(&mut copy, CHUNK.min(len - start) as u64).read_to_end(&mut bytes)? == 0 {
            break;
        }
        hasher.update(bytes.get(start..).unwrap_or_default());
    }
    Ok((bytes, Digest(hasher.finalize().into())))
}

#[cfg(test)]
mod tests;
