//! Real files, real memfds, real `dlopen`.
#![expect(unsafe_code, reason = "dlopen and a call into the library have no safe form")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::*;

const CAP: u64 = 1 << 20;

/// A library whose function `version` gives `version`.
fn build(directory: &Path, version: u32) -> PathBuf {
    let source = directory.join(format!("v{version}.c"));
    let library = directory.join(format!("v{version}.so"));
    std::fs::write(&source, format!("int version(void) {{ return {version}; }}")).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success());
    library
}

fn candidate(path: &Path) -> Candidate {
    Candidate { path: path.to_owned() }
}

/// Opens, leaks and asks.
fn version_at(path: &Path) -> i32 {
    // SAFETY: the library is the one of `build`, which has no constructors and this one function.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.unwrap();
    // SAFETY: as above.
    let version = unsafe { library.get::<extern "C" fn() -> i32>("version") }.unwrap();
    let version = version();
    std::mem::forget(library);
    version
}

fn storages(directory: &Path) -> [Storage<'_>; 2] {
    [Storage::Memory, Storage::Directory(directory)]
}

#[test]
fn two_versions_of_one_path_are_two_libraries() {
    let directory = tempfile::tempdir().unwrap();
    let versions = [build(directory.path(), 1), build(directory.path(), 2)];
    let plugin = directory.path().join("plugin.so");
    for storage in storages(directory.path()) {
        let mut numbers = Vec::new();
        for (version, file) in (1..).zip(&versions) {
            std::fs::copy(file, &plugin).unwrap();
            let sealed = LibraryBytes::read_into(&candidate(&plugin), CAP, storage).unwrap().into_sealed();
            assert_eq!(version_at(&sealed.dlopen_path()), version, "{storage:?}");
            numbers.push(sealed.copy.as_raw_fd());
            // Dropped here: the second one gets the same number, as tests of other threads leave the high ones alone.
        }
        assert!(numbers.iter().all(|number| *number >= 256), "out of the way of sockets and files: {numbers:?}");
    }
}

#[test]
fn a_name_used_again_gives_the_old_library() {
    // Why `dlopen_path` is as it is. When this fails, glibc has changed and the spelling may be simpler.
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("plugin.so");
    for version in [11, 12] {
        std::fs::rename(build(directory.path(), version), &name).unwrap();
        assert_eq!(version_at(&name), 11);
    }
}

#[test]
fn an_overwritten_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = build(directory.path(), 3);
    let other = std::fs::read(build(directory.path(), 4)).unwrap();
    for storage in storages(directory.path()) {
        let original = std::fs::read(&plugin).unwrap();
        let bytes = LibraryBytes::read_into(&candidate(&plugin), CAP, storage).unwrap();
        std::fs::write(&plugin, &other).unwrap();
        assert_eq!(bytes.as_slice(), original);
        assert_eq!(version_at(&bytes.into_sealed().dlopen_path()), 3);
        std::fs::write(&plugin, &original).unwrap();
    }
}

#[test]
fn a_sealed_copy_refuses_writes() {
    let directory = tempfile::tempdir().unwrap();
    let sealed = LibraryBytes::read(&candidate(&build(directory.path(), 5)), CAP).unwrap().into_sealed();
    let seals = rustix::fs::fcntl_get_seals(sealed.file()).unwrap();
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL), "{seals:?}");
    let mut file = sealed.file();
    file.rewind().unwrap();
    assert_eq!(file.write(b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(file.set_len(0).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let again = std::fs::OpenOptions::new().write(true).open(sealed.dlopen_path());
    assert!(again.and_then(|mut file| file.write(b"x")).is_err(), "also through its path");
}

#[test]
fn a_private_copy_has_no_name_and_no_writer() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = build(directory.path(), 6);
    let place = directory.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let sealed = LibraryBytes::read_into(&candidate(&plugin), CAP, Storage::Directory(&place)).unwrap().into_sealed();
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "nothing is left behind");
    assert!(sealed.file().write(b"x").is_err());
    let metadata = sealed.file().metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (0, 0o400));
    let missing = directory.path().join("missing");
    let error = LibraryBytes::read_into(&candidate(&plugin), CAP, Storage::Directory(&missing)).unwrap_err();
    assert_eq!(error.code(), "bytes-copy");
    assert!(error.to_string().contains("TMPDIR"), "{error}");
}

#[test]
fn who_is_killed_while_a_private_copy_is_made_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let from = File::from(OwnedFd::from(reader));
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| private_copy(&from, Path::new("pipe"), CAP, place.path()).map(|(_, copied)| copied));
        // More than a pipe holds: once it is written, the copy has begun, and waits for more.
        writer.write_all(&[7; 256 << 10]).unwrap();
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        drop(writer);
        assert_eq!(copying.join().unwrap().unwrap(), 256 << 10);
    });
}

#[test]
fn the_digest_is_that_of_sha256sum() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file.so");
    for len in [0, 1, 55, 56, 64, 65_535, 65_536, 65_537, 200_000] {
        std::fs::write(&file, (0..len).map(|index| (index % 251) as u8).collect::<Vec<u8>>()).unwrap();
        let output = Command::new("sha256sum").arg(&file).output().unwrap();
        let expected = String::from_utf8(output.stdout).unwrap()[..64].to_owned();
        for storage in storages(directory.path()) {
            let bytes = LibraryBytes::read_into(&candidate(&file), CAP, storage).unwrap();
            assert_eq!(bytes.as_slice().len(), len);
            assert_eq!(bytes.digest().to_string(), expected, "{len} bytes");
        }
        let json = format!("\"{expected}\"");
        let digest: Digest = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&digest).unwrap(), json);
        assert_eq!(expected.to_uppercase().parse(), Ok(digest));
    }
}

#[test]
fn what_is_no_digest_is_refused() {
    for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32), &format!("+{}", "0".repeat(63))] {
        let error = text.parse::<Digest>().unwrap_err();
        assert!(error.to_string().contains("64 hexadecimal digits"), "{error}");
    }
}

#[test]
fn what_is_no_plain_file_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo.so");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for (path, found) in [(fifo.as_path(), "a FIFO"), (directory.path(), "a directory"), (Path::new("/dev/zero"), "a device")] {
        let error = LibraryBytes::read(&candidate(path), CAP).unwrap_err();
        assert_eq!(error.code(), "bytes-not-a-file");
        assert!(error.to_string().contains(found) && error.to_string().contains("expected a regular file"), "{error}");
    }
    let error = LibraryBytes::read(&candidate(&directory.path().join("missing.so")), CAP).unwrap_err();
    assert_eq!(error.code(), "bytes-open");
}

#[test]
fn the_cap_holds_for_what_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file.so");
    std::fs::write(&file, [7; 100]).unwrap();
    assert_eq!(LibraryBytes::read(&candidate(&file), 100).unwrap().as_slice().len(), 100);
    let error = LibraryBytes::read(&candidate(&file), 99).unwrap_err();
    assert_eq!(error.code(), "bytes-too-large");
    assert!(error.to_string().contains("100 bytes or more, expected at most 99"), "{error}");
    // Its size says 0, and there is more to read.
    let proc = LibraryBytes::read(&candidate(Path::new("/proc/self/maps")), 10).unwrap_err();
    assert!(matches!(proc, BytesError::TooLarge { found: 11, .. }), "{proc}");
}

#[test]
fn spellings_are_never_used_twice() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file.so");
    std::fs::write(&file, b"x").unwrap();
    let sealed = LibraryBytes::read(&candidate(&file), CAP).unwrap().into_sealed();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5000 {
        let path = sealed.dlopen_path();
        assert!(path.as_os_str().len() < 200);
        assert!(seen.insert(path.into_os_string()), "as text: paths compare equal without their dots");
    }
    assert_eq!(std::fs::read(sealed.dlopen_path()).unwrap(), b"x");
}
