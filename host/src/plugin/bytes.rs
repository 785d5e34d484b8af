//! stub
use super::discover::{Candidate, DiscoverError};
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
/// digest
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let mut bytes = [0; 32];
        if text.len() != 64 {
            return Err(serde::de::Error::custom("not a digest"));
        }
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = text
                .get(2 * i..2 * i + 2)
                .and_then(|h| u8::from_str_radix(h, 16).ok())
                .ok_or_else(|| serde::de::Error::custom("not a digest"))?;
        }
        Ok(Self(bytes))
    }
}
/// bytes
#[derive(Debug)]
pub struct LibraryBytes {
    file: OwnedFd,
    bytes: Vec<u8>,
    digest: Digest,
}
/// error
#[derive(Debug, thiserror::Error)]
pub enum BytesError {
    /// read
    #[error(transparent)]
    Read(#[from] DiscoverError),
    /// memfd
    #[error("cannot make a private copy")]
    Copy(#[from] std::io::Error),
}
impl LibraryBytes {
    /// read
    pub fn read(candidate: &Candidate) -> Result<Self, BytesError> {
        let bytes = candidate.read()?;
        let fd =
            rustix::fs::memfd_create("plugin", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let mut file = File::from(fd);
        file.write_all(&bytes)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(std::io::Error::from)?;
        let digest = Digest(Sha256::digest(&bytes).into());
        Ok(Self { file: file.into(), bytes, digest })
    }
    /// slice
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
    /// digest
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// path
    pub fn dlopen_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
    /// fd
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
    /// leak path
    pub fn into_dlopen_path(self) -> PathBuf {
        let p = self.dlopen_path();
        std::mem::forget(self.file);
        p
    }
    /// fd
    pub fn into_descriptor(self) -> std::io::Result<OwnedFd> {
        Ok(self.file)
    }
}
