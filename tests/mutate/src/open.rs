//! Opens a library in a process of its own, and says what became of that process.
//!
//! # Safety
//!
//! The library is damaged on purpose. Only the child opens it, and the child has nothing to lose.
#![expect(unsafe_code, reason = "dlopen has no safe form")]

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::process::{Resource, Rlimit, setrlimit};

/// A library is opened within a millisecond; after this it never will be.
const DEADLINE: Duration = Duration::from_secs(2);

/// What became of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Opened, and the process ended well.
    Fine,
    /// `dlopen` gave an error.
    Error,
    /// A signal ended the process inside `dlopen`.
    Killed,
    /// A signal ended the process after `dlopen`, when the library's end functions ran.
    KilledAtExit,
    /// The deadline passed.
    Hung,
    /// The process ended inside `dlopen` without a word.
    Exited,
}

impl Opened {
    /// Whether `dlopen` did not return.
    pub(crate) fn is_fatal(self) -> bool {
        matches!(self, Self::Killed | Self::Hung | Self::Exited)
    }
}

/// Opens `path` in this process, and says so.
pub(crate) fn open_here(path: &Path) {
    // Thousands of core dumps are of no use; without this limit the run is only slower.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // SAFETY: nothing is lost when this process dies.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
        Ok(library) => {
            std::mem::forget(library);
            print!("opened");
        }
        Err(_) => print!("error"),
    }
    let _ = std::io::stdout().flush();
}

/// Opens `path` in a child of this program.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program)
        .arg("--open")
        .arg(path)
        .env_remove("LD_BIND_NOW")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > DEADLINE {
            child.kill()?;
            child.wait()?;
            return Ok(Opened::Hung);
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said)?;
    }
    Ok(match (said.as_str(), status.signal()) {
        ("opened", None) => Opened::Fine,
        ("error", None) => Opened::Error,
        ("opened" | "error", Some(_)) => Opened::KilledAtExit,
        (_, Some(_)) => Opened::Killed,
        (_, None) => Opened::Exited,
    })
}
