//! Relocations: every address that the loader writes to, and every function that it calls.

use object::elf;

use super::dynamic::{
    DT_FINI, DT_FINI_ARRAY, DT_FINI_ARRAYSZ, DT_INIT, DT_INIT_ARRAY, DT_INIT_ARRAYSZ, DT_JMPREL, DT_PLTGOT, DT_PLTREL,
    DT_PLTRELSZ, DT_RELA, DT_RELACOUNT, DT_RELAENT, DT_RELASZ, DT_RELR, DT_RELRENT, DT_RELRSZ, DT_TLSDESC_GOT, Tag, Tags,
};
use super::error::ElfError;
use super::header::Machine;
use super::image::{Image, Load, u64_at};
use super::segments::Segments;
use super::symbols::Symbols;

/// Bytes of one entry of `DT_RELA` and `DT_JMPREL`.
const RELA_BYTES: usize = 24;
/// Bytes of an address.
const WORD: u64 = 8;
/// How far outside the library a pointer into it may point: before an array, or behind its end.
const POINTER_SLACK: u64 = 16 << 20;

/// What the loader does for a relocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Writes an address of this library.
    Relative,
    /// Writes an address of this library that a function of it gives.
    Indirect,
    /// Writes a symbol's address or size.
    Symbol,
    /// Writes a function's address into the procedure linkage table.
    Jump,
    /// Writes the number of a symbol's thread-local block, or an offset in one.
    Tls,
    /// Writes a descriptor of thread-local memory, two words.
    TlsDescriptor,
}

/// What the loader of `machine` does for relocations of `kind`: glibc `sysdeps/*/dl-machine.h`, `elf_machine_rela`. Kinds that
/// only programs or text relocations have (copy, 32-bit, relative to the place) are left out.
fn action(machine: Machine, kind: u32) -> Option<Action> {
    let kind = elf::RelocationType(kind);
    match machine {
        Machine::X86_64 => Some(match kind {
            elf::R_X86_64_RELATIVE => Action::Relative,
            elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT | elf::R_X86_64_SIZE64 => Action::Symbol,
            elf::R_X86_64_JUMP_SLOT => Action::Jump,
            elf::R_X86_64_DTPMOD64 | elf::R_X86_64_DTPOFF64 | elf::R_X86_64_TPOFF64 => Action::Tls,
            elf::R_X86_64_TLSDESC => Action::TlsDescriptor,
            elf::R_X86_64_IRELATIVE => Action::Indirect,
            elf::R_X86_64_NONE => Action::Nothing,
            _ => return None,
        }),
        Machine::Aarch64 => Some(match kind {
            elf::R_AARCH64_RELATIVE => Action::Relative,
            elf::R_AARCH64_ABS64 | elf::R_AARCH64_GLOB_DAT => Action::Symbol,
            elf::R_AARCH64_JUMP_SLOT => Action::Jump,
            elf::R_AARCH64_TLS_DTPMOD | elf::R_AARCH64_TLS_DTPREL | elf::R_AARCH64_TLS_TPREL => Action::Tls,
            elf::R_AARCH64_TLSDESC => Action::TlsDescriptor,
            elf::R_AARCH64_IRELATIVE => Action::Indirect,
            elf::R_AARCH64_NONE => Action::Nothing,
            _ => return None,
        }),
    }
}

/// Checks all relocations and the functions that the loader calls; gives the number of relocations.
pub(super) fn check(machine: Machine, segments: &Segments<'_>, tags: &Tags, symbols: &Symbols<'_>) -> Result<u64, ElfError> {
    let image = &segments.image;
    check_functions(segments, tags)?;
    tags.expect(DT_RELAENT, RELA_BYTES as u64, DT_RELA)?;
    tags.expect(DT_RELRENT, WORD, DT_RELR)?;
    tags.expect(DT_PLTREL, elf::DT_RELA.0.cast_unsigned(), DT_JMPREL)?;
    let mut walk = Walk {
        machine,
        relative_kind: machine.relative_kind(),
        bounds: image.bounds(),
        segments,
        image,
        symbols,
        has_tls: segments.tls.is_some(),
        target: image.loads.iter().find(|load| load.is_writable()).copied(),
        watched: Watched::new(segments, tags)?,
    };
    let mut count = 0;
    if let Some(table) = table::<RELA_BYTES>(image, tags, DT_RELA, DT_RELASZ)? {
        let relative = tags.get(DT_RELACOUNT).unwrap_or_default();
        if relative > table.len() as u64 {
            return Err(ElfError::dynamic(
                DT_RELACOUNT.name,
                relative,
                format!("at most {}, the entries of DT_RELA", table.len()),
            ));
        }
        walk.table(DT_RELA.name, table, relative as usize)?;
        count += table.len();
    } else if let Some(relative) = tags.get(DT_RELACOUNT).filter(|relative| *relative > 0) {
        return Err(ElfError::dynamic(DT_RELACOUNT.name, relative, "0, there is no DT_RELA"));
    }
    if let Some(table) = table::<RELA_BYTES>(image, tags, DT_JMPREL, DT_PLTRELSZ)? {
        walk.table(DT_JMPREL.name, table, 0)?;
        check_slots(table)?;
        count += table.len();
    }
    if let Some(table) = table::<{ WORD as usize }>(image, tags, DT_RELR, DT_RELRSZ)? {
        walk.packed(table)?;
        count += table.len();
    }
    walk.watched.all_relocated()?;
    Ok(count as u64)
}

/// A table of whole entries of `N` bytes within the file.
fn table<'a, const N: usize>(image: &Image<'a>, tags: &Tags, address: Tag, len: Tag) -> Result<Option<&'a [[u8; N]]>, ElfError> {
    let Some((start, bytes)) = tags.table(address, len)? else { return Ok(None) };
    if !bytes.is_multiple_of(N as u64) {
        return Err(ElfError::dynamic(len.name, bytes, format!("whole entries of {N} bytes")));
    }
    // mold leaves empty tables, and their address may be anywhere.
    if bytes == 0 {
        return Ok(None);
    }
    let found = image.at(start, bytes).filter(|_| start.is_multiple_of(WORD));
    let found = found.ok_or_else(|| {
        ElfError::dynamic(
            address.name,
            start,
            format!("a multiple of 8, with {bytes:#x} bytes within one segment's part of the file"),
        )
    })?;
    Ok(Some(found.as_chunks().0))
}

/// The three words of an entry: `r_offset`, `r_info`, `r_addend`.
fn words(entry: &[u8; RELA_BYTES]) -> [u64; 3] {
    let (words, _) = entry.as_chunks::<8>();
    match words {
        [address, info, addend] => [u64::from_le_bytes(*address), u64::from_le_bytes(*info), u64::from_le_bytes(*addend)],
        _ => [0; 3],
    }
}

/// Every entry of the procedure linkage table has a slot of its own: one that is written twice leaves another unwritten.
fn check_slots(entries: &[[u8; RELA_BYTES]]) -> Result<(), ElfError> {
    let mut slots: Vec<(u64, usize)> = entries.iter().enumerate().map(|(index, entry)| (words(entry)[0], index)).collect();
    // They are sorted already but for indirect functions, which costs one pass.
    slots.sort_unstable();
    let twice = slots.windows(2).find(|pair| matches!(pair, [(first, _), (second, _)] if second - first < WORD));
    match twice {
        Some([_, (found, index)]) if *found != 0 => {
            let expected = "a slot of its own";
            Err(ElfError::Relocation { table: DT_JMPREL.name, index: *index, field: "r_offset", found: *found, expected })
        }
        _ => Ok(()),
    }
}

/// Addresses that the loader jumps to, or writes to besides relocations.
fn check_functions(segments: &Segments<'_>, tags: &Tags) -> Result<(), ElfError> {
    let image = &segments.image;
    for tag in [DT_INIT, DT_FINI] {
        if let Some(address) = tags.get(tag).filter(|address| !segments.starts_function(*address)) {
            return Err(ElfError::dynamic(tag.name, address, "the address of a function"));
        }
    }
    for (tag, bytes) in [(DT_PLTGOT, 3 * WORD), (DT_TLSDESC_GOT, WORD)] {
        let Some(address) = tags.get(tag) else { continue };
        let writable = image.load_at(address).is_some_and(|load| load.is_writable() && load.holds(address, bytes));
        // Without a procedure linkage table nothing is written there.
        if tags.get(DT_JMPREL).is_some() && !writable {
            return Err(ElfError::dynamic(tag.name, address, format!("{bytes} bytes within a writable segment")));
        }
    }
    Ok(())
}

/// What relocations may not overwrite (the dynamic table), and what they must all fill (the arrays of start and end functions).
struct Watched {
    dynamic: (u64, u64),
    arrays: [FunctionArray; 2],
}

/// `DT_INIT_ARRAY` or `DT_FINI_ARRAY`: pointers to functions that the loader calls.
struct FunctionArray {
    name: &'static str,
    start: u64,
    end: u64,
    relocated: Vec<bool>,
}

impl Watched {
    fn new(segments: &Segments<'_>, tags: &Tags) -> Result<Self, ElfError> {
        let image = &segments.image;
        let array = |address: Tag, len: Tag| {
            let found = table::<{ WORD as usize }>(image, tags, address, len)?;
            let start = tags.get(address).unwrap_or_default();
            let slots = found.map_or(0, <[_]>::len);
            let end = start.saturating_add(slots as u64 * WORD);
            Ok::<_, ElfError>(FunctionArray { name: address.name, start, end, relocated: vec![false; slots] })
        };
        let arrays = [array(DT_INIT_ARRAY, DT_INIT_ARRAYSZ)?, array(DT_FINI_ARRAY, DT_FINI_ARRAYSZ)?];
        let dynamic = (segments.dynamic_address, segments.dynamic_address.saturating_add(segments.dynamic.len() as u64));
        Ok(Self { dynamic, arrays })
    }

    fn covers(&self, address: u64, bytes: u64) -> bool {
        let [starts, ends] = &self.arrays;
        let in_array = |array: &FunctionArray| overlap(address, bytes, array.start, array.end);
        overlap(address, bytes, self.dynamic.0, self.dynamic.1) || in_array(starts) || in_array(ends)
    }

    fn all_relocated(&self) -> Result<(), ElfError> {
        for array in &self.arrays {
            // An address in the file that nobody adds the library's own to points nowhere.
            if let Some(index) = array.relocated.iter().position(|done| !done) {
                return Err(ElfError::StartFunction { array: array.name, index, found: "is not relocated" });
            }
        }
        Ok(())
    }
}

fn overlap(address: u64, bytes: u64, start: u64, end: u64) -> bool {
    address < end && address.saturating_add(bytes) > start
}

/// Where a relocation makes a pointer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Points {
    /// To this address of the library.
    To(u64),
    /// To what another library has under a name.
    Elsewhere,
    /// It is no pointer.
    Nowhere,
}

/// The walk over all tables.
struct Walk<'a> {
    machine: Machine,
    /// The number of the relocation that writes an address of this library.
    relative_kind: u32,
    bounds: (u64, u64),
    segments: &'a Segments<'a>,
    image: &'a Image<'a>,
    symbols: &'a Symbols<'a>,
    has_tls: bool,
    /// The writable segment that the last relocation wrote to.
    target: Option<Load>,
    watched: Watched,
}

impl Walk<'_> {
    /// `DT_RELA` or `DT_JMPREL`, whose first `relative` entries the loader applies without a look at their type.
    fn table(&mut self, table: &'static str, entries: &[[u8; RELA_BYTES]], relative: usize) -> Result<(), ElfError> {
        for (index, entry) in entries.iter().enumerate() {
            let [address, info, addend] = words(entry);
            let (kind, symbol) = (info as u32, (info >> 32) as u32);
            // Nearly all are of this kind, so it has a way of its own through the rules below.
            if info == u64::from(self.relative_kind)
                && self.target.is_some_and(|load| load.holds(address, WORD))
                && self.points_into_library(addend)
                && !self.watched.covers(address, WORD)
                && table == DT_RELA.name
            {
                continue;
            }
            let wrong = |field, found, expected| ElfError::Relocation { table, index, field, found, expected };
            let action = action(self.machine, kind).ok_or_else(|| ElfError::RelocationType {
                table,
                index,
                found: kind,
                machine: self.machine.name(),
            })?;
            if index < relative && action != Action::Relative {
                return Err(wrong("r_info", kind.into(), "a relative relocation, DT_RELACOUNT says so"));
            }
            if table == DT_JMPREL.name && matches!(action, Action::Relative | Action::Symbol | Action::Tls) {
                return Err(wrong("r_info", kind.into(), "a relocation of the procedure linkage table"));
            }
            if action == Action::Nothing {
                continue;
            }
            let bytes = if action == Action::TlsDescriptor { 2 * WORD } else { WORD };
            if !self.may_write(address, bytes) {
                return Err(wrong("r_offset", address, "an address within a writable segment"));
            }
            let points = match action {
                Action::Relative if symbol != 0 => return Err(wrong("r_info", symbol.into(), "no symbol")),
                Action::Relative if !self.points_into_library(addend) => {
                    return Err(wrong("r_addend", addend, "an address within the library"));
                }
                Action::Relative => Points::To(addend),
                Action::Indirect if symbol != 0 => return Err(wrong("r_info", symbol.into(), "no symbol")),
                Action::Indirect if !self.segments.starts_function(addend) => {
                    return Err(wrong("r_addend", addend, "the address of a function"));
                }
                Action::Indirect => Points::Elsewhere,
                _ => {
                    self.with_symbol(action, symbol, addend).map_err(|(field, found, expected)| wrong(field, found, expected))?
                }
            };
            if self.watched.covers(address, bytes) {
                self.fill(address, bytes, points).map_err(|(found, expected)| wrong("r_offset", found, expected))??;
            }
        }
        Ok(())
    }

    fn with_symbol(&self, action: Action, index: u32, addend: u64) -> Result<Points, (&'static str, u64, &'static str)> {
        let symbol = self.symbols.get(index as usize).ok_or(("r_info", index.into(), "the number of a symbol"))?;
        let is_tls = symbol.kind() == elf::STT_TLS;
        if matches!(action, Action::Tls | Action::TlsDescriptor) {
            return match index {
                0 if !self.has_tls => Err(("r_info", 0, "PT_TLS, it is about this library's thread-local memory")),
                0 => Ok(Points::Nowhere),
                _ if !is_tls => Err(("r_info", index.into(), "a thread-local symbol")),
                _ => Ok(Points::Nowhere),
            };
        }
        if is_tls {
            return Err(("r_info", index.into(), "a symbol that is not thread-local"));
        }
        if index == 0 && action == Action::Jump {
            return Err(("r_info", 0, "the number of a symbol"));
        }
        if symbol.has_address() { Ok(Points::To(symbol.value.wrapping_add(addend))) } else { Ok(Points::Elsewhere) }
    }

    fn points_into_library(&self, address: u64) -> bool {
        let (start, end) = self.bounds;
        // Addresses are signed here: a pointer may point before the library's start.
        address.wrapping_sub(start).wrapping_add(POINTER_SLACK) <= (end - start) + 2 * POINTER_SLACK
    }

    fn may_write(&mut self, address: u64, bytes: u64) -> bool {
        if self.target.is_some_and(|load| load.holds(address, bytes)) {
            return true;
        }
        let found = self.image.load_at(address).filter(|load| load.is_writable() && load.holds(address, bytes)).copied();
        self.target = found.or(self.target);
        found.is_some()
    }

    /// A relocation that may touch what is watched. The outer error is about the relocation, the inner about the array.
    fn fill(&mut self, address: u64, bytes: u64, points: Points) -> Result<Result<(), ElfError>, (u64, &'static str)> {
        let (start, end) = self.watched.dynamic;
        if overlap(address, bytes, start, end) {
            return Err((address, "an address outside the dynamic table"));
        }
        let segments = self.segments;
        for array in self.watched.arrays.iter_mut().filter(|array| overlap(address, bytes, array.start, array.end)) {
            let within = address.wrapping_sub(array.start);
            if !within.is_multiple_of(WORD) || bytes != WORD {
                return Err((address, "a whole entry of the array of functions"));
            }
            let index = (within / WORD) as usize;
            let found = match points {
                Points::To(target) if !segments.starts_function(target) => Some("does not point to a function"),
                Points::Nowhere => Some("is relocated as something else than a pointer"),
                _ => None,
            };
            if let Some(found) = found {
                return Ok(Err(ElfError::StartFunction { array: array.name, index, found }));
            }
            if let Some(done) = array.relocated.get_mut(index) {
                *done = true;
            }
        }
        Ok(Ok(()))
    }

    /// `DT_RELR` (gABI, "Relative relocations"): an even word is an address, an odd one a bitmap of the 63 words that follow.
    fn packed(&mut self, words: &[[u8; WORD as usize]]) -> Result<(), ElfError> {
        let table = DT_RELR.name;
        let mut next = None;
        for (index, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let wrong = |field, found, expected| ElfError::Relocation { table, index, field, found, expected };
            let (start, bits) = if word & 1 == 0 {
                (word, 1)
            } else {
                (next.ok_or_else(|| wrong("bitmap", word, "an address before the first bitmap"))?, word >> 1)
            };
            let step = if word & 1 == 0 { WORD } else { 63 * WORD };
            next = Some(start.checked_add(step).ok_or_else(|| wrong("address", start, "an address within a writable segment"))?);
            if bits == 0 {
                continue;
            }
            let first = start.saturating_add(u64::from(bits.trailing_zeros()) * WORD);
            let len = u64::from(63 - bits.leading_zeros() - bits.trailing_zeros()) * WORD + WORD;
            if !self.may_write(first, len) {
                return Err(wrong("address", first, "addresses within a writable segment"));
            }
            if self.watched.covers(first, len) {
                for bit in (0..63).filter(|bit| bits >> bit & 1 == 1) {
                    let address = start.saturating_add(bit * WORD);
                    let points =
                        self.image.at(address, WORD).and_then(|bytes| u64_at(bytes, 0)).map_or(Points::Nowhere, Points::To);
                    self.fill(address, WORD, points).map_err(|(found, expected)| wrong("address", found, expected))??;
                }
            }
        }
        Ok(())
    }
}
