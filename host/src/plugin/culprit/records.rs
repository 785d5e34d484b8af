//! The file in the state directory to which a dying host writes which plugin ended it.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plugin::bytes::Digest;
use crate::plugin::verdicts::{QuarantineKind, Subject, Verdicts};
use crate::shown::{chain, path_as_text, shown};

/// Largest file of records that is read: 1 MiB.
const MAX_RECORDS: u64 = 1 << 20;

/// A plugin that ended a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) plugin: String,
    #[serde(serialize_with = "path_as_text")]
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    /// `signal 11`, or `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<String>,
}

/// The file of records.
pub(in crate::plugin) fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("culprits.jsonl")
}

/// How the file of records is opened: whoever may write there could have put a FIFO or a link in its place.
pub(in crate::plugin) const SAFELY: i32 = libc::O_NONBLOCK | libc::O_NOFOLLOW;

/// Puts into quarantine what ended an earlier host. Whatever goes wrong is logged; what could not be written down is heeded again.
pub fn heed(state_dir: &Path) {
    let found = records(state_dir);
    if found.records.is_empty() {
        return;
    }
    let verdicts = Verdicts::new(state_dir);
    let mut heeded = true;
    for Record { plugin, path, digest, cause } in &found.records {
        let cause = cause.as_deref().unwrap_or("no cause is on record");
        let evidence = format!("the host ended ({cause}) while it ran code of this plugin");
        let subject = Subject { digest: *digest, path: path.clone(), plugin: plugin.clone() };
        if let Err(error) = verdicts.quarantine(&subject, QuarantineKind::KilledTheHost, evidence) {
            tracing::error!("{}", chain(&error));
            heeded = false;
        }
    }
    if heeded {
        forget_records(state_dir, &found);
    }
}

/// What earlier hosts recorded.
#[derive(Debug, Default)]
struct Records {
    records: Vec<Record>,
    /// Where it stood in the file.
    place: Range<u64>,
}

/// What earlier hosts recorded, the latest of it where that is much; a damaged line is told, and left out.
fn records(state_dir: &Path) -> Records {
    let path = file(state_dir);
    let (first, bytes) = match read(&path) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Records::default(),
        Err(error) => {
            tracing::warn!("{} cannot be read, so nobody knows whether a plugin ended an earlier host: {error}", shown(&path));
            return Records::default();
        }
    };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let read = lines.filter_map(|line| {
        let record = serde_json::from_slice(line);
        record.inspect_err(|error| tracing::warn!("{} has a line that is no record: {error}", shown(&path))).ok()
    });
    Records { records: read.collect(), place: first..first + bytes.len() as u64 }
}

/// The end of the file, and where it begins.
fn read(path: &Path) -> io::Result<(u64, Vec<u8>)> {
    let mut file = OpenOptions::new().read(true).custom_flags(SAFELY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file; remove it"));
    }
    let first = file.seek(SeekFrom::Start(metadata.len().saturating_sub(MAX_RECORDS)))?;
    let mut bytes = Vec::new();
    file.take(MAX_RECORDS).read_to_end(&mut bytes)?;
    Ok((first, bytes))
}

/// Makes empty lines of what was heeded. Another host may be adding a record at the end just now: emptied, the file would lose it.
fn forget_records(state_dir: &Path, heeded: &Records) {
    let path = file(state_dir);
    let forgotten = OpenOptions::new().write(true).custom_flags(SAFELY).open(&path).and_then(|mut file| {
        file.seek(SeekFrom::Start(heeded.place.start))?;
        io::copy(&mut io::repeat(b'\n').take(heeded.place.end - heeded.place.start), &mut file)?;
        file.flush()
    });
    match forgotten {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(
                "what was heeded of {} cannot be removed from it, and is heeded again at each start: {error}",
                shown(&path)
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(plugin: &str) -> String {
        let digest = "ab".repeat(32);
        format!(r#"{{"plugin":"{plugin}","path":"/plugins/lib{plugin}.so","digest":"{digest}","cause":"exit"}}"#)
    }

    fn plugins(found: &Records) -> Vec<String> {
        found.records.iter().map(|record| record.plugin.clone()).collect()
    }

    #[test]
    fn a_good_record_is_found_beside_whatever_else_stands_there() {
        let state = tempfile::tempdir().expect("a directory");
        let found = |bytes: &[u8]| {
            std::fs::write(file(state.path()), bytes).expect("our own file");
            plugins(&records(state.path()))
        };
        assert_eq!(found(b""), Vec::<String>::new());
        assert_eq!(found([b"\xff\xfe\n", record("a").as_bytes(), b"\n"].concat().as_slice()), ["a"]);
        // Torn in the middle by a power cut; the next one begins on a line of its own.
        assert_eq!(found([&record("a").as_bytes()[..20], b"\n", record("b").as_bytes(), b"\n"].concat().as_slice()), ["b"]);
        assert_eq!(found(["x".repeat(3 << 20).as_bytes(), b"\n", record("c").as_bytes(), b"\n"].concat().as_slice()), ["c"]);
        forget_records(state.path(), &records(state.path()));
        assert_eq!(plugins(&records(state.path())), Vec::<String>::new());
    }

    #[test]
    fn what_another_host_adds_meanwhile_is_not_forgotten() {
        let state = tempfile::tempdir().expect("a directory");
        let add = |plugin: &str| {
            let file = OpenOptions::new().append(true).create(true).open(file(state.path()));
            file.and_then(|mut file| file.write_all(format!("\n{}\n", record(plugin)).as_bytes())).expect("our own file");
        };
        add("a");
        let heeded = records(state.path());
        add("b");
        forget_records(state.path(), &heeded);
        assert_eq!((plugins(&heeded), plugins(&records(state.path()))), (vec!["a".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn a_fifo_or_a_link_in_its_place_is_not_waited_for() {
        let state = tempfile::tempdir().expect("a directory");
        let path = file(state.path());
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
        assert!(records(state.path()).records.is_empty());
        forget_records(state.path(), &Records::default());
        std::fs::remove_file(&path).expect("our own file");
        let elsewhere = state.path().join("elsewhere");
        std::fs::write(&elsewhere, record("a")).expect("our own file");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("our own link");
        assert!(records(state.path()).records.is_empty());
        forget_records(state.path(), &Records { records: Vec::new(), place: 0..10 });
        assert_eq!(std::fs::read_to_string(&elsewhere).expect("it is left alone"), record("a"));
    }
}
