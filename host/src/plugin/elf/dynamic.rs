//! The dynamic table: which tags there are, and which of them a plugin may not have.

use object::elf;

use super::error::ElfError;
use super::image::u64_at;
use super::segments::{DYNAMIC_ENTRY_BYTES, Segments, Tls};

/// Most entries of a dynamic table. A library has about 30 and one for each library it needs.
const MAX_ENTRIES: usize = 1024;
/// Most thread-local memory of a library that takes it from glibc's static reserve, which is about 1.6 KiB for all libraries
/// loaded later (tunable `glibc.rtld.optional_static_tls`).
const MAX_STATIC_TLS: u64 = 4 << 10;
/// Most thread-local memory of any library: every thread that touches it gets this much.
const MAX_TLS: u64 = 1 << 20;

/// A tag with its name, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    number: u64,
    pub(super) name: &'static str,
}

macro_rules! tags {
    ($($name:ident),* $(,)?) => {
        $(pub(super) const $name: Tag = Tag { number: elf::$name.0 as u64, name: stringify!($name) };)*
        /// The tags that are there at most once: what is not here, the loader does not follow.
        const SINGLE: &[Tag] = &[$($name),*];
    };
}

tags! {
    DT_STRTAB, DT_STRSZ, DT_SYMTAB, DT_SYMENT, DT_HASH, DT_GNU_HASH, DT_SONAME,
    DT_RELA, DT_RELASZ, DT_RELAENT, DT_RELACOUNT, DT_RELR, DT_RELRSZ, DT_RELRENT, DT_JMPREL, DT_PLTRELSZ, DT_PLTREL, DT_PLTGOT,
    DT_INIT, DT_FINI, DT_INIT_ARRAY, DT_INIT_ARRAYSZ, DT_FINI_ARRAY, DT_FINI_ARRAYSZ,
    DT_VERSYM, DT_VERNEED, DT_VERNEEDNUM, DT_VERDEF, DT_VERDEFNUM,
    DT_FLAGS, DT_FLAGS_1, DT_TLSDESC_GOT, DT_TLSDESC_PLT,
}

/// The table's entries up to its end.
#[derive(Debug)]
pub(super) struct Tags {
    single: [Option<u64>; SINGLE.len()],
    /// Offsets of the needed libraries' names.
    pub(super) needed: Vec<u64>,
    /// A path where the loader would look for them: its tag, and the offset of its text.
    pub(super) search_path: Option<(&'static str, u64)>,
}

impl Tags {
    pub(super) fn get(&self, tag: Tag) -> Option<u64> {
        let at = SINGLE.iter().position(|known| *known == tag)?;
        self.single.get(at).copied().flatten()
    }

    /// A tag that something else cannot do without.
    pub(super) fn require(&self, tag: Tag, needed_by: &'static str) -> Result<u64, ElfError> {
        self.get(tag).ok_or(ElfError::DynamicMissing { field: tag.name, needed_by })
    }

    /// A table's address and length; `None` when the library has no such table.
    pub(super) fn table(&self, address: Tag, len: Tag) -> Result<Option<(u64, u64)>, ElfError> {
        match (self.get(address), self.get(len)) {
            (Some(address), Some(len)) => Ok(Some((address, len))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(ElfError::DynamicMissing { field: len.name, needed_by: address.name }),
            (None, Some(_)) => Err(ElfError::DynamicMissing { field: address.name, needed_by: len.name }),
        }
    }

    /// Checks that a tag which gives an entry's size or kind gives `expected`, when there is what it describes.
    pub(super) fn expect(&self, tag: Tag, expected: u64, described: Tag) -> Result<(), ElfError> {
        match (self.get(tag), self.get(described)) {
            (Some(found), _) if found != expected => Err(ElfError::dynamic(tag.name, found, expected.to_string())),
            (None, Some(_)) => Err(ElfError::DynamicMissing { field: tag.name, needed_by: described.name }),
            _ => Ok(()),
        }
    }

    pub(super) fn static_tls(&self) -> bool {
        self.get(DT_FLAGS).is_some_and(|flags| flags & elf::DF_STATIC_TLS.0 != 0)
    }
}

/// Reads the table and refuses what a plugin may not ask for.
pub(super) fn read(segments: &Segments<'_>) -> Result<Tags, ElfError> {
    let mut tags = Tags { single: [None; SINGLE.len()], needed: Vec::new(), search_path: None };
    let mut ended = false;
    let (entries, _) = segments.dynamic.as_chunks::<{ DYNAMIC_ENTRY_BYTES as usize }>();
    for entry in entries.iter().take(MAX_ENTRIES) {
        let number = u64_at(entry, 0).unwrap_or_default();
        let value = u64_at(entry, 8).unwrap_or_default();
        let tag = elf::DynamicTag(number.cast_signed());
        match tag {
            elf::DT_NULL => {
                ended = true;
                break;
            }
            elf::DT_NEEDED => tags.needed.push(value),
            elf::DT_RPATH => tags.search_path = Some(("DT_RPATH", value)),
            elf::DT_RUNPATH => tags.search_path = Some(("DT_RUNPATH", value)),
            _ => {
                refuse(tag)?;
                if let Some(at) = SINGLE.iter().position(|known| known.number == number)
                    && let Some(place) = tags.single.get_mut(at)
                    && place.replace(value).is_some()
                {
                    return Err(ElfError::DynamicTwice { field: SINGLE.get(at).map_or("a tag", |tag| tag.name) });
                }
            }
        }
    }
    if !ended {
        return Err(ElfError::DynamicMissing { field: "DT_NULL", needed_by: "it ends the table" });
    }
    refuse_flags(&tags)?;
    Ok(tags)
}

fn refuse(tag: elf::DynamicTag) -> Result<(), ElfError> {
    let unsupported = |found, reason| Err(ElfError::Unsupported { found, reason });
    match tag {
        elf::DT_TEXTREL => Err(ElfError::TextRelocations { found: "DT_TEXTREL" }),
        elf::DT_FILTER => unsupported("DT_FILTER", "its symbols would come from another library"),
        elf::DT_AUXILIARY => unsupported("DT_AUXILIARY", "its symbols would come from another library"),
        elf::DT_AUDIT => unsupported("DT_AUDIT", "it would have the dynamic linker watched by another library"),
        elf::DT_DEPAUDIT => unsupported("DT_DEPAUDIT", "it would have the dynamic linker watched by another library"),
        elf::DT_REL | elf::DT_RELSZ | elf::DT_RELENT => {
            unsupported("DT_REL", "glibc applies only relocations with addends (DT_RELA) on this machine")
        }
        _ => Ok(()),
    }
}

fn refuse_flags(tags: &Tags) -> Result<(), ElfError> {
    let flags = tags.get(DT_FLAGS).unwrap_or_default();
    if flags & elf::DF_TEXTREL.0 != 0 {
        return Err(ElfError::TextRelocations { found: "DF_TEXTREL" });
    }
    let flags_1 = tags.get(DT_FLAGS_1).unwrap_or_default();
    if flags_1 & elf::DF_1_PIE.0 != 0 {
        return Err(ElfError::Program { found: "DF_1_PIE, it is a position-independent executable" });
    }
    if flags_1 & elf::DF_1_NOOPEN.0 != 0 {
        return Err(ElfError::Unsupported { found: "DF_1_NOOPEN", reason: "it forbids dlopen" });
    }
    Ok(())
}

/// Checks the size of the thread-local memory, and gives it.
pub(super) fn check_tls_size(tags: &Tags, tls: Option<&Tls>) -> Result<u64, ElfError> {
    let found = tls.map_or(0, |tls| tls.memory_bytes);
    let static_tls = tags.static_tls();
    let max = if static_tls { MAX_STATIC_TLS } else { MAX_TLS };
    if found > max {
        return Err(ElfError::TlsSize { found, max, static_tls });
    }
    Ok(found)
}
