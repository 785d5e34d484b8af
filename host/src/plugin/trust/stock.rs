//! What lies in a plugin directory now, as a lock file would have it. Runs no code of any library.

use std::path::Path;

use super::TrustPolicy;
use super::lock::{Lock, LockEntry, LockError, LockPlace};
use crate::plugin::discover::{DiscoverError, Found, discover};
use crate::plugin::elf;
use crate::plugin::inspected::Inspected;
use crate::plugin::load_error::LoadErrorKind;
use crate::plugin::report::LoadReport;

/// Why no stock can be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StockError {
    /// The plugin directory cannot be searched.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The lock file's directory cannot be used.
    #[error("the lock file has no place to be in")]
    Lock(#[from] LockError),
}

/// What lies in a plugin directory.
#[derive(Debug)]
pub struct Stock {
    /// Every library whose manifest and static check are good.
    pub lock: Lock,
    /// Everything else, with the reason.
    pub left_out: Vec<LoadReport>,
    /// Where the lock file of the directory is.
    pub place: LockPlace,
}

/// Takes stock of a plugin directory.
///
/// # Errors
///
/// [`StockError`] when the directory or the place of its lock file cannot be used.
pub fn take_stock(directory: &Path, policy: &TrustPolicy) -> Result<Stock, StockError> {
    let discovered = discover(directory, policy.strictness)?;
    let place = LockPlace::new(policy, discovered.directory())?;
    let (mut lock, mut left_out) = (Lock::default(), Vec::new());
    for found in discovered {
        let mut report = LoadReport::new(&found.candidate);
        match entry(found) {
            Ok(entry) => {
                lock.plugins.insert(entry);
            }
            Err(kind) => {
                report.refused(kind);
                left_out.push(report);
            }
        }
    }
    Ok(Stock { lock, left_out, place })
}

fn entry(found: Found) -> Result<LockEntry, LoadErrorKind> {
    let inspected = Inspected::open(found)?;
    elf::check(inspected.bytes())?;
    let digest = inspected.digest();
    Ok(LockEntry::new(&inspected.into_manifest(), digest))
}
