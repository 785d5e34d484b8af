//! Reads a library's manifest from its ELF note. Runs no code of the library.

use std::collections::BTreeSet;

use object::elf::{FileHeader64, NoteType, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, pod};
use qtasks_plugin_api::Trigger;
use qtasks_plugin_api::abi::{ABI_MAJOR, ABI_MINOR};
use qtasks_plugin_api::bounds::{self, BoundsError, MAX_MANIFEST_BYTES};
use qtasks_plugin_api::manifest::{GLOBAL, SCHEMA_VERSION};
use qtasks_plugin_api::nearest::nearest_trigger;
use qtasks_plugin_api::note::{NOTE_OWNER, NOTE_TYPE};

pub use qtasks_plugin_api::manifest::{Abi, HandlerEntry, Manifest, Mode, TaskEntry};

use super::elf;

/// Why a file has no manifest that this host can use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not an ELF file for 64-bit little-endian machines.
    #[error("it is not a 64-bit ELF library: {0}")]
    NotElf(String),
    /// No note of ours.
    #[error("it has no plugin manifest (ELF note {NOTE_OWNER}); a plugin is a cdylib that uses export_plugin!")]
    Missing,
    /// More than one.
    #[error("it has {found} plugin manifests, expected one; a library holds one export_plugin!")]
    Several {
        /// How many.
        found: usize,
    },
    /// Outside the bounds.
    #[error("its manifest is outside the bounds")]
    Bounds(#[from] BoundsError),
    /// Another format.
    #[error("its manifest has format {found}, this host reads {SCHEMA_VERSION}; update the host")]
    Schema {
        /// The format found.
        found: u64,
    },
    /// Not the JSON that it should be.
    #[error("its manifest is not what export_plugin! writes: {0}; rebuild the plugin")]
    Shape(String),
    /// Another boundary.
    #[error("it was built for ABI {}.{}, this host speaks {ABI_MAJOR}.{ABI_MINOR}; {}", .found.major, .found.minor, remedy(.found))]
    Abi {
        /// What the plugin was built for.
        found: Abi,
    },
    /// A panic would end the host.
    #[error(
        "it was built with panic = \"{found}\", so a panic in it would end the host; remove `panic = \"{found}\"` from [profile.release] in its Cargo.toml and rebuild"
    )]
    Panic {
        /// The strategy found.
        found: String,
    },
    /// A trigger that this host does not fire.
    #[error("it handles the trigger {found}, which this host does not know{hint}")]
    Trigger {
        /// The name found.
        found: String,
        /// The nearest known one, as words.
        hint: String,
    },
    /// The same twice: who asks by name could mean either.
    #[error("it {does} {name} twice; name it once in export_plugin! and rebuild the plugin")]
    Twice {
        /// What it does with what is named.
        does: &'static str,
        /// The trigger or the task.
        name: String,
    },
    /// An unusable name.
    #[error("its name {found:?} is not a plugin name: use 1 to 64 letters, digits, `-` and `_`")]
    Name {
        /// The name found.
        found: String,
    },
}

fn remedy(found: &Abi) -> String {
    if found.major > ABI_MAJOR || (found.major == ABI_MAJOR && found.least_host_minor > ABI_MINOR) {
        "update the host, or rebuild the plugin with this host's qtasks-plugin-api".to_owned()
    } else {
        "rebuild the plugin with this host's qtasks-plugin-api".to_owned()
    }
}

/// A manifest with the text it was read from.
#[derive(Debug, Clone)]
pub struct ManifestText {
    /// The JSON text, as it lies in the file.
    pub text: String,
    /// The same, read.
    pub manifest: Manifest,
}

/// Reads and checks the manifest of a library file's `bytes`.
///
/// # Errors
///
/// [`ManifestError`], the first thing that is wrong. The ABI number is looked at before anything that a later format may change.
pub fn read(bytes: &[u8]) -> Result<ManifestText, ManifestError> {
    let text = bounds_checked(note(bytes)?)?;
    let manifest = parse(text)?;
    check(&manifest)?;
    Ok(ManifestText { text: text.to_owned(), manifest })
}

/// Finds the one note of ours, through the program headers: section headers may be stripped.
fn note(bytes: &[u8]) -> Result<&[u8], ManifestError> {
    let not_elf = |error: object::Error| ManifestError::NotElf(error.to_string());
    let (header, _) = pod::from_bytes::<FileHeader64<Endianness>>(bytes)
        .map_err(|()| ManifestError::NotElf(format!("{} bytes are too short for an ELF header", bytes.len())))?;
    if !header.is_supported() {
        let said = elf::check_shape(bytes).err();
        return Err(ManifestError::NotElf(said.map_or_else(|| "its header is damaged".to_owned(), |said| said.to_string())));
    }
    let endian = header.endian().map_err(not_elf)?;
    let mut found = Vec::new();
    for segment in header.program_headers(endian, bytes).map_err(not_elf)? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, bytes).map_err(not_elf)? else { continue };
        while let Some(note) = notes.next().map_err(not_elf)? {
            if note.name() == NOTE_OWNER.as_bytes() && note.n_type(endian) == NoteType(NOTE_TYPE) {
                found.push(note.desc());
            }
        }
    }
    match found.as_slice() {
        [] => Err(ManifestError::Missing),
        [one] => Ok(one),
        several => Err(ManifestError::Several { found: several.len() }),
    }
}

fn bounds_checked(bytes: &[u8]) -> Result<&str, BoundsError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(BoundsError::TooLong { len: bytes.len(), max: MAX_MANIFEST_BYTES });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| BoundsError::NotUtf8 { valid_up_to: error.valid_up_to() })?;
    bounds::check_depth(text)?;
    Ok(text)
}

/// The two numbers that decide whether the rest can be understood at all.
#[derive(serde::Deserialize)]
struct Numbers {
    schema: u64,
    abi: Abi,
}

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    let shape = |error: serde_json::Error| ManifestError::Shape(error.to_string());
    let numbers: Numbers = serde_json::from_str(text).map_err(shape)?;
    if numbers.abi.major != ABI_MAJOR || numbers.abi.least_host_minor > ABI_MINOR {
        return Err(ManifestError::Abi { found: numbers.abi });
    }
    if numbers.schema != u64::from(SCHEMA_VERSION) {
        return Err(ManifestError::Schema { found: numbers.schema });
    }
    serde_json::from_str(text).map_err(shape)
}

fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    let name = manifest.name.as_bytes();
    let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if name.is_empty() || name.len() > 64 || !plain {
        return Err(ManifestError::Name { found: manifest.name.chars().take(80).collect() });
    }
    if manifest.panic != "unwind" {
        return Err(ManifestError::Panic { found: manifest.panic.clone() });
    }
    for handler in &manifest.handlers {
        if handler.trigger != GLOBAL && Trigger::from_name(&handler.trigger).is_none() {
            let hint = nearest_trigger(&handler.trigger);
            return Err(ManifestError::Trigger { found: handler.trigger.clone(), hint });
        }
    }
    once("handles", manifest.handlers.iter().map(|handler| handler.trigger.as_str()))?;
    once("provides the task", manifest.tasks.iter().map(|task| task.name.as_str()))
}

fn once<'a>(does: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ManifestError::Twice { does, name: name.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use qtasks_plugin_api::{Error, Export, Host, Plugin, TaskContext, TaskError, define_plugin};

    use super::*;

    struct Ordinary;

    impl Plugin for Ordinary {
        type Config = ();
        fn create(_config: (), _host: Host) -> Result<Self, Error> {
            Ok(Self)
        }
    }

    impl Ordinary {
        fn add(&self, _context: &TaskContext, (a, b): (i64, i64), (): ()) -> Result<i64, TaskError> {
            Ok(a + b)
        }
        fn on_any(&self, _event: qtasks_plugin_api::Event<'_>) {}
    }

    define_plugin! { plugin: Ordinary, handlers: { global => inline on_any }, tasks: { add => add } }

    #[test]
    fn what_a_manifest_names_twice_is_refused() {
        let good = parse(Ordinary::MANIFEST).expect("a manifest");
        check(&good).expect("each once");
        let mut handlers = good.clone();
        handlers.handlers.extend(good.handlers.clone());
        assert!(check(&handlers).expect_err("twice").to_string().starts_with("it handles global twice; "));
        let mut tasks = good.clone();
        tasks.tasks.extend(good.tasks.clone());
        assert!(check(&tasks).expect_err("twice").to_string().starts_with("it provides the task add twice; "));
    }
}
