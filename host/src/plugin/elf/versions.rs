//! Symbol versions: glibc follows their lists, indexes by their numbers, and asserts that it knows every library they name.
//!
//! Layout: LSB core specification, "Symbol Versioning"; how it is followed: glibc `elf/dl-version.c`, `_dl_check_map_versions`.

use object::elf;

use super::dynamic::{DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM, DT_VERSYM, Tags};
use super::error::ElfError;
use super::image::{Image, u16_at, u32_at};
use super::strings::Strings;
use super::symbols::Symbols;

/// Version numbers without the bit that hides a symbol.
const INDEX_MASK: u16 = 0x7fff;

/// The version numbers that a library defines or needs.
struct Known([u64; 512]);

impl Known {
    fn insert(&mut self, index: u16) {
        if let Some(word) = self.0.get_mut(usize::from(index & INDEX_MASK) / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn has(&self, index: u16) -> bool {
        self.0.get(usize::from(index & INDEX_MASK) / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }
}

fn wrong(field: &'static str, found: impl Into<u64>, expected: impl Into<String>) -> ElfError {
    ElfError::Versions { field, found: found.into(), expected: expected.into() }
}

/// Checks the three tables, if there are any.
pub(super) fn check(image: &Image<'_>, tags: &Tags, symbols: &Symbols<'_>, needed: &[String]) -> Result<(), ElfError> {
    let needs = tags.table(DT_VERNEED, DT_VERNEEDNUM)?;
    let definitions = tags.table(DT_VERDEF, DT_VERDEFNUM)?;
    let Some(address) = tags.get(DT_VERSYM) else {
        return match (needs, definitions) {
            (None, None) => Ok(()),
            _ => Err(ElfError::DynamicMissing { field: DT_VERSYM.name, needed_by: "DT_VERNEED and DT_VERDEF are about it" }),
        };
    };
    let mut known = Known([0; 512]);
    // VER_NDX_LOCAL and VER_NDX_GLOBAL.
    known.insert(0);
    known.insert(1);
    if let Some((address, count)) = needs {
        check_needs(&List::new(image, DT_VERNEED.name, address)?, count, &symbols.strings, needed, &mut known)?;
    }
    if let Some((address, count)) = definitions {
        check_definitions(&List::new(image, DT_VERDEF.name, address)?, count, &symbols.strings, &mut known)?;
    }
    let numbers = image.at(address, symbols.len() as u64 * 2).filter(|_| address.is_multiple_of(2)).ok_or_else(|| {
        ElfError::dynamic(DT_VERSYM.name, address, "a number for each symbol within one segment's part of the file")
    })?;
    for number in numbers.as_chunks::<2>().0 {
        let number = u16::from_le_bytes(*number);
        if !known.has(number) {
            return Err(wrong("a symbol's version", number, "0, 1, or a version that DT_VERNEED or DT_VERDEF names"));
        }
    }
    Ok(())
}

/// A list whose entries name the distance to the next one.
struct List<'a> {
    bytes: &'a [u8],
}

impl<'a> List<'a> {
    fn new(image: &Image<'a>, field: &'static str, address: u64) -> Result<Self, ElfError> {
        let bytes = image.from(address).filter(|_| address.is_multiple_of(4));
        let bytes =
            bytes.ok_or_else(|| ElfError::dynamic(field, address, "a multiple of 4 within a segment's part of the file"))?;
        Ok(Self { bytes })
    }

    /// Version numbers have 15 bits, and a definition may name a parent. Keeps the time linear when lists overlap.
    fn most_entries(&self) -> usize {
        (self.bytes.len() / 8).min(2 * usize::from(INDEX_MASK))
    }

    fn entry<const N: usize>(&self, at: usize) -> Result<&'a [u8; N], ElfError> {
        let found = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        found.ok_or_else(|| wrong("an entry's offset", at as u64, "within the segment's part of the file"))
    }
}

/// Where an entry's follower is, by the distance it names; `None` behind the last of `count` entries.
fn follow(field: &'static str, at: usize, distance: u32, left: u64) -> Result<Option<usize>, ElfError> {
    match (distance, left) {
        (0, 0) => Ok(None),
        (0, _) => Err(wrong(field, distance, "the distance to the next entry, there are more by their number")),
        (_, 0) => Err(wrong(field, distance, "0, there are no more entries by their number")),
        (distance, _) => {
            at.checked_add(distance as usize).map(Some).ok_or_else(|| wrong(field, distance, "a distance within the segment"))
        }
    }
}

fn check_needs(list: &List<'_>, count: u64, strings: &Strings<'_>, needed: &[String], known: &mut Known) -> Result<(), ElfError> {
    let mut at = 0;
    let mut left = nonzero(DT_VERNEEDNUM.name, count)?;
    if count > needed.len() as u64 {
        return Err(wrong(DT_VERNEEDNUM.name, count, format!("at most {}, the libraries in DT_NEEDED", needed.len())));
    }
    let mut entries_left = list.most_entries();
    loop {
        let entry = list.entry::<16>(at)?;
        let version = u16_at(entry, 0).unwrap_or_default();
        if version != 1 {
            return Err(wrong("vn_version", version, "1"));
        }
        let file = word(entry, 4);
        if !needed.iter().any(|name| strings.is(file.into(), name.as_bytes())) {
            // glibc asserts that the library is loaded.
            return Err(wrong("vn_file", file, "the name of a library in DT_NEEDED"));
        }
        let mut aux_at = at.saturating_add(word(entry, 8) as usize);
        let mut aux_left = nonzero("vn_cnt", u16_at(entry, 2).unwrap_or_default().into())?;
        loop {
            let aux = list.entry::<16>(aux_at)?;
            entries_left =
                entries_left.checked_sub(1).ok_or_else(|| wrong("vna_next", aux_at as u64, "lists that do not overlap"))?;
            check_name("vna_name", strings, word(aux, 8), word(aux, 0))?;
            let index = u16_at(aux, 6).unwrap_or_default();
            if index & INDEX_MASK < 2 {
                return Err(wrong("vna_other", index, "2 or more"));
            }
            known.insert(index);
            aux_left -= 1;
            match follow("vna_next", aux_at, word(aux, 12), aux_left)? {
                Some(next) => aux_at = next,
                None => break,
            }
        }
        left -= 1;
        match follow("vn_next", at, word(entry, 12), left)? {
            Some(next) => at = next,
            None => return Ok(()),
        }
    }
}

fn check_definitions(list: &List<'_>, count: u64, strings: &Strings<'_>, known: &mut Known) -> Result<(), ElfError> {
    let mut at = 0;
    let mut left = nonzero(DT_VERDEFNUM.name, count)?;
    let mut entries_left = list.most_entries();
    loop {
        let entry = list.entry::<20>(at)?;
        let version = u16_at(entry, 0).unwrap_or_default();
        if version != 1 {
            return Err(wrong("vd_version", version, "1"));
        }
        let index = u16_at(entry, 4).unwrap_or_default();
        if index & INDEX_MASK == 0 {
            return Err(wrong("vd_ndx", index, "1 or more"));
        }
        known.insert(index);
        let mut aux_at = at.saturating_add(word(entry, 12) as usize);
        let mut aux_left = nonzero("vd_cnt", u16_at(entry, 6).unwrap_or_default().into())?;
        let mut hash = Some(word(entry, 8));
        loop {
            let aux = list.entry::<8>(aux_at)?;
            entries_left =
                entries_left.checked_sub(1).ok_or_else(|| wrong("vda_next", aux_at as u64, "lists that do not overlap"))?;
            match hash.take() {
                // The first name is the version's own, and the hash is that name's; the others are its parents.
                Some(hash) => check_name("vda_name", strings, word(aux, 0), hash)?,
                None => drop(name("vda_name", strings, word(aux, 0))?),
            }
            aux_left -= 1;
            match follow("vda_next", aux_at, word(aux, 4), aux_left)? {
                Some(next) => aux_at = next,
                None => break,
            }
        }
        left -= 1;
        match follow("vd_next", at, word(entry, 16), left)? {
            Some(next) => at = next,
            None => return Ok(()),
        }
    }
}

fn nonzero(field: &'static str, count: u64) -> Result<u64, ElfError> {
    if count == 0 { Err(wrong(field, count, "at least 1")) } else { Ok(count) }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32_at(bytes, at).unwrap_or_default()
}

/// A version's name. Longer ones than this are none: it keeps the time linear.
fn name<'a>(field: &'static str, strings: &Strings<'a>, offset: u32) -> Result<&'a [u8], ElfError> {
    let found = strings.get(offset.into()).filter(|name| !name.is_empty() && name.len() <= 1024);
    found.ok_or_else(|| wrong(field, offset, "a name within the string table"))
}

fn check_name(field: &'static str, strings: &Strings<'_>, offset: u32, hash: u32) -> Result<(), ElfError> {
    let expected = elf::hash(name(field, strings, offset)?);
    if hash != expected {
        return Err(wrong(field, hash, format!("{expected:#x}, the hash of the version's name")));
    }
    Ok(())
}
