//! The first load of bytes that this host has never loaded: in a guest process, under a deadline. Fails closed.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use qtasks_plugin_api::Init;

use super::process::ended::describe;
use super::process::guest::{Purpose, Start};
use super::process::sandbox::{Limits, SandboxLevel};
use super::process::spawn::{Guest, GuestError, nonce};
use super::verdicts::{QuarantineKind, Quarantined, Subject, VerdictError, Verdicts};
use crate::shown::shown;

/// Address space of a probe: room for any library, none for a balloon.
const PROBE_MEMORY: u64 = 2 << 30;
/// A probe that has reported gets this long to end as programs end.
const END: Duration = Duration::from_secs(1);

/// What a probe came to, where it did not find the bytes good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The bytes are in quarantine from now on.
    #[error("the probe found it harmful")]
    Quarantined(#[source] QuarantinedError),
    /// The library cannot be loaded, and did no harm.
    #[error("the probe could not load it: {reason}")]
    Refused {
        /// A stable code.
        code: String,
        /// Why.
        reason: String,
    },
    /// No probe could be held, so the library is not loaded.
    #[error("it could not be probed, so it is not loaded")]
    Failed(#[source] GuestError),
    /// The verdict could not be written down, so the library is not loaded.
    #[error("it could not be probed, so it is not loaded")]
    Verdict(#[from] VerdictError),
}

/// Bytes in quarantine, as an error.
#[derive(Debug, thiserror::Error)]
#[error("{} ({}), seen {} time(s); {}", .0.evidence, .0.kind.name(), .0.count, remedy(.0))]
pub struct QuarantinedError(pub Quarantined);

/// What the operator can do about it.
fn remedy(Quarantined { plugin, kind, .. }: &Quarantined) -> String {
    match kind {
        QuarantineKind::SideEffect => format!(
            "replace the file, or set `isolation = \"process\"` under [plugins.{plugin}], where only its own process is changed, or \
             `side_effects = \"admit\"` there"
        ),
        _ => format!("replace the file, or lift it with `qtasks-host plugin quarantine clear {plugin}`"),
    }
}

/// Probes the library behind `library`, and writes the verdict down.
///
/// # Errors
///
/// [`ProbeError`], unless the bytes are good. [`QuarantineKind::SideEffect`] says that nothing else is wrong with them.
pub(super) fn probe(
    program: &Path,
    library: BorrowedFd<'_>,
    manifest: &str,
    subject: &Subject,
    verdicts: &Verdicts,
    deadline: Duration,
) -> Result<(), ProbeError> {
    let start = start(manifest, subject, deadline);
    let mut guest = Guest::spawn(program, &start).map_err(ProbeError::Failed)?;
    // The process comes up meanwhile: noting this so that a power cut does not lose it takes a disk as long.
    verdicts.begin(subject)?;
    let probed = guest.hand_over(library, &start, deadline).and_then(|()| {
        let mut report = guest.report(deadline, |_| {})?;
        if report.sandbox != SandboxLevel::Full {
            tracing::info!(path = %shown(&subject.path), sandbox = ?report.sandbox, "this kernel does not enforce the probe's whole sandbox");
        }
        // It has said that it is well; now it must also end well.
        match guest.wait(Instant::now() + END) {
            Some(status) if status.success() => {
                let printed = guest.printed();
                if printed > 0 {
                    report.side_effects.push(format!("output: {printed} bytes, which will be among the host's"));
                }
                Ok(report.side_effects)
            }
            Some(status) => {
                Err(GuestError::Died { ended: format!("{} after it reported", describe(status)), output: String::new() })
            }
            None => Err(GuestError::NoEnd(END)),
        }
    });
    let harm = match probed {
        Ok(side_effects) if side_effects.is_empty() => return Ok(verdicts.good(subject)?),
        Ok(side_effects) => (QuarantineKind::SideEffect, format!("loading it changes its process: {}", side_effects.join("; "))),
        Err(error @ (GuestError::Died { .. } | GuestError::Nonsense(_))) => (QuarantineKind::Crash, error.to_string()),
        Err(error @ (GuestError::Deadline(_) | GuestError::NoEnd(_))) => (QuarantineKind::TimeOut, error.to_string()),
        Err(GuestError::Refused { code, reason }) if code == "manifest-differs" => (QuarantineKind::LyingManifest, reason),
        Err(GuestError::Refused { code, reason }) => {
            verdicts.forget(subject);
            return Err(ProbeError::Refused { code, reason });
        }
        Err(error @ (GuestError::Spawn { .. } | GuestError::Host(_))) => {
            verdicts.forget(subject);
            return Err(ProbeError::Failed(error));
        }
    };
    let quarantined = verdicts.quarantine(subject, harm.0, harm.1)?;
    Err(ProbeError::Quarantined(QuarantinedError(quarantined)))
}

fn start(manifest: &str, subject: &Subject, deadline: Duration) -> Start {
    Start {
        nonce: nonce(),
        purpose: Purpose::Probe,
        manifest: manifest.to_owned(),
        init: Init {
            plugin: subject.plugin.clone(),
            data_dir: std::path::PathBuf::new(),
            config: Box::default(),
            host_version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        limits: Limits {
            memory_bytes: PROBE_MEMORY,
            // The deadline is wall time; this ends a spinning probe even if the host is gone.
            cpu_seconds: Some(deadline.as_secs() + 1),
            descriptors: 64,
            writable: None,
            network: false,
            processes: false,
        },
        max_level: 0,
    }
}
