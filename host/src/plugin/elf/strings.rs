//! The string table, and the names in it that the dynamic table points to.

use super::dynamic::{DT_SONAME, DT_STRSZ, DT_STRTAB, Tags};
use super::error::ElfError;
use super::image::Image;

/// `DT_STRTAB`: names, each with a zero at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strings<'a> {
    bytes: &'a [u8],
}

impl<'a> Strings<'a> {
    pub(super) fn read(image: &Image<'a>, tags: &Tags) -> Result<Self, ElfError> {
        let address = tags.require(DT_STRTAB, "every symbol and every needed library has its name there")?;
        let len = tags.require(DT_STRSZ, "DT_STRTAB has no other end")?;
        let bytes = image.at(address, len).ok_or_else(|| {
            ElfError::dynamic(DT_STRTAB.name, address, format!("{len} bytes within one segment's part of the file"))
        })?;
        // gABI, "String Table": the first and the last byte are zero. So every name within ends within.
        match (bytes.first(), bytes.last()) {
            (Some(0), Some(0)) => Ok(Self { bytes }),
            _ => Err(ElfError::dynamic(DT_STRSZ.name, len, "a table whose first and last byte are zero")),
        }
    }

    /// The name at `offset`, without its zero.
    pub(super) fn get(&self, offset: u64) -> Option<&'a [u8]> {
        let rest = self.bytes.get(usize::try_from(offset).ok()?..)?;
        rest.get(..rest.iter().position(|byte| *byte == 0)?)
    }

    /// The GNU hash (`object::elf::gnu_hash`) of the name at `offset`, and its length: one pass, as there may be many names.
    pub(super) fn gnu_hash(&self, offset: u32) -> Option<(u32, usize)> {
        let rest = self.bytes.get(offset as usize..)?;
        let mut hash: u32 = 5381;
        for (len, byte) in rest.iter().enumerate() {
            if *byte == 0 {
                return Some((hash, len));
            }
            hash = hash.wrapping_mul(33).wrapping_add((*byte).into());
        }
        None
    }

    /// Whether the name at `offset` is `name`; looks at no more than that.
    pub(super) fn is(&self, offset: u64, name: &[u8]) -> bool {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..));
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.first() == Some(&0))
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Refuses a library that says where to look for the libraries it needs: whoever writes there chooses what runs.
pub(super) fn refuse_search_path(tags: &Tags, strings: &Strings<'_>) -> Result<(), ElfError> {
    let Some((field, offset)) = tags.search_path else { return Ok(()) };
    let found = strings.get(offset).map(|path| String::from_utf8_lossy(path).into_owned()).unwrap_or_default();
    Err(ElfError::SearchPath { field, found })
}

/// The names of the needed libraries.
pub(super) fn needed(tags: &Tags, strings: &Strings<'_>) -> Result<Vec<String>, ElfError> {
    let name_at = |offset: &u64| {
        let name = text(strings, "DT_NEEDED", *offset)?;
        if name.is_empty() || name.contains('/') {
            return Err(ElfError::Needed { found: name });
        }
        Ok(name)
    };
    tags.needed.iter().map(name_at).collect()
}

/// The library's own name.
pub(super) fn soname(tags: &Tags, strings: &Strings<'_>) -> Result<Option<String>, ElfError> {
    tags.get(DT_SONAME).map(|offset| text(strings, "DT_SONAME", offset)).transpose()
}

fn text(strings: &Strings<'_>, field: &'static str, offset: u64) -> Result<String, ElfError> {
    // Longer than any file name may be (NAME_MAX is 255), and short enough to be read for each of many entries.
    let name = strings.get(offset).filter(|name| name.len() <= 4096 && std::str::from_utf8(name).is_ok());
    let wrong = || ElfError::Strings { field, found: offset, expected: "a name in UTF-8 within the table".to_owned() };
    name.map(|name| String::from_utf8_lossy(name).into_owned()).ok_or_else(wrong)
}
