//! The program headers: where the loader maps what, and how it finds the rest.

use object::elf;

use super::PAGE;
use super::error::ElfError;
use super::header::{Header, PROGRAM_HEADER_BYTES};
use super::image::{Image, Load, range, u32_at, u64_at};
use super::notes;
use super::unwind::UnwindTable;

/// Largest alignment of a segment: 2 MiB, the largest page size that a linker of x86-64 or `AArch64` has by default (GNU ld's
/// `max-page-size` until 2.30). A larger one would make the loader reserve that much more address space.
const MAX_ALIGN: u64 = 2 << 20;
/// Largest address space of a library: 4 GiB, twice what the small code model of the psABIs can reach.
const MAX_SPAN: u64 = 4 << 30;
/// Bytes of one entry of the dynamic table.
pub(super) const DYNAMIC_ENTRY_BYTES: u64 = 16;

/// Thread-local memory, as `PT_TLS` says.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) memory_bytes: u64,
}

/// What the program headers say, checked.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    pub(super) image: Image<'a>,
    /// Address of the dynamic table.
    pub(super) dynamic_address: u64,
    /// The dynamic table, whole entries.
    pub(super) dynamic: &'a [u8],
    pub(super) tls: Option<Tls>,
    pub(super) build_id: Option<&'a [u8]>,
    pub(super) unwind: Option<UnwindTable<'a>>,
}

impl Segments<'_> {
    /// Whether the loader may call `address`: it is code, and by the unwind table not the middle of a function. Functions without
    /// an entry in that table (`_init`, or C built without unwind tables) are believed.
    pub(super) fn starts_function(&self, address: u64) -> bool {
        let inside = |table: &UnwindTable<'_>| table.is_inside_function(&self.image, address);
        self.image.is_code(address) && !self.unwind.as_ref().is_some_and(inside)
    }
}

/// One program header.
#[derive(Debug, Clone, Copy)]
struct Segment {
    index: usize,
    kind: elf::ProgramType,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

impl Segment {
    fn read(index: usize, bytes: &[u8; PROGRAM_HEADER_BYTES]) -> Self {
        let word = |offset| u64_at(bytes, offset).unwrap_or_default();
        Self {
            index,
            kind: elf::ProgramType(u32_at(bytes, 0).unwrap_or_default()),
            flags: u32_at(bytes, 4).unwrap_or_default(),
            offset: word(8),
            address: word(16),
            file_bytes: word(32),
            memory_bytes: word(40),
            align: word(48),
        }
    }

    fn wrong(&self, field: &'static str, found: impl Into<u64>, expected: impl Into<String>) -> ElfError {
        let kind = match self.kind {
            elf::PT_LOAD => "PT_LOAD",
            elf::PT_DYNAMIC => "PT_DYNAMIC",
            elf::PT_NOTE => "PT_NOTE",
            elf::PT_TLS => "PT_TLS",
            elf::PT_PHDR => "PT_PHDR",
            elf::PT_GNU_RELRO => "PT_GNU_RELRO",
            elf::PT_GNU_PROPERTY => "PT_GNU_PROPERTY",
            elf::PT_GNU_EH_FRAME => "PT_GNU_EH_FRAME",
            _ => "other",
        };
        ElfError::Segment { index: self.index, kind, field, found: found.into(), expected: expected.into() }
    }

    /// The bytes of a segment that lies within a loaded one, at the address and at the offset that it names.
    fn within<'a>(&self, image: &Image<'a>) -> Result<&'a [u8], ElfError> {
        let found = image
            .at(self.address, self.file_bytes)
            .ok_or_else(|| self.wrong("p_vaddr", self.address, "its bytes within one PT_LOAD segment's part of the file"))?;
        if image.offset_of(self.address) != Some(self.offset) {
            return Err(self.wrong("p_offset", self.offset, "where its PT_LOAD segment puts its p_vaddr"));
        }
        Ok(found)
    }
}

/// Reads and checks all program headers.
pub(super) fn read<'a>(bytes: &'a [u8], header: &Header<'a>) -> Result<Segments<'a>, ElfError> {
    let (rows, _) = header.program_headers.as_chunks::<PROGRAM_HEADER_BYTES>();
    let all = || rows.iter().enumerate().map(|(index, row)| Segment::read(index, row));
    let mut stack = None;
    let mut dynamic_count = 0;
    let mut loads = Vec::new();
    for segment in all() {
        match segment.kind {
            elf::PT_INTERP => return Err(ElfError::Program { found: "PT_INTERP, it names a program interpreter" }),
            elf::PT_GNU_STACK => stack = Some(segment.flags),
            elf::PT_DYNAMIC => dynamic_count += 1,
            elf::PT_LOAD => push_load(bytes, &segment, &mut loads)?,
            _ => {}
        }
    }
    let image = Image { bytes, loads };
    if !image.loads.iter().any(Load::is_executable) {
        return Err(ElfError::NoCode);
    }
    if image.span() > MAX_SPAN {
        return Err(ElfError::Span { found: image.span(), max: MAX_SPAN });
    }
    if stack.is_none_or(|flags| flags & elf::PF_X.0 != 0) {
        return Err(ElfError::ExecutableStack { found: stack });
    }
    if dynamic_count != 1 {
        return Err(ElfError::DynamicCount { found: dynamic_count });
    }
    let mut found = Segments { image, dynamic_address: 0, dynamic: &[], tls: None, build_id: None, unwind: None };
    for segment in all() {
        match segment.kind {
            elf::PT_DYNAMIC => found.dynamic = dynamic(&segment, &found.image)?,
            elf::PT_TLS => {
                if found.tls.is_some() {
                    return Err(segment.wrong("p_type", segment.kind.0, "one PT_TLS"));
                }
                found.tls = Some(tls(&segment, &found.image)?);
            }
            elf::PT_GNU_RELRO => relro(&segment, &found.image)?,
            elf::PT_PHDR => program_headers(&segment, header, &found.image)?,
            elf::PT_GNU_EH_FRAME => found.unwind = Some(unwind_table(&segment, &found.image)?),
            elf::PT_NOTE | elf::PT_GNU_PROPERTY => {
                let build_id = note_segment(&segment, &found.image)?;
                found.build_id = found.build_id.or(build_id);
            }
            _ => {}
        }
        if segment.kind == elf::PT_DYNAMIC {
            found.dynamic_address = segment.address;
        }
    }
    Ok(found)
}

fn push_load(bytes: &[u8], segment: &Segment, loads: &mut Vec<Load>) -> Result<(), ElfError> {
    let Segment { offset, address, file_bytes, memory_bytes, align, flags, .. } = *segment;
    if range(bytes, offset, file_bytes).is_none() {
        let (field, found) = if offset > bytes.len() as u64 { ("p_offset", offset) } else { ("p_filesz", file_bytes) };
        return Err(segment.wrong(field, found, format!("its bytes within the file of {} bytes", bytes.len())));
    }
    if file_bytes > memory_bytes {
        return Err(segment.wrong("p_filesz", file_bytes, format!("at most p_memsz, {memory_bytes:#x}")));
    }
    // Half of the address space is beyond what any user process has, so sums below never wrap around.
    let end = address.checked_add(memory_bytes).filter(|end| *end < 1 << 62);
    let end = end.ok_or_else(|| segment.wrong("p_memsz", memory_bytes, "an end within the address space"))?;
    if !align.is_power_of_two() || !(PAGE..=MAX_ALIGN).contains(&align) {
        return Err(segment.wrong("p_align", align, format!("a power of two from {PAGE:#x} to {MAX_ALIGN:#x}")));
    }
    if address % align != offset % align {
        return Err(segment.wrong("p_offset", offset, "the same remainder by p_align as p_vaddr"));
    }
    let load = Load { start: address, file_end: address.saturating_add(file_bytes), end, offset, align, flags };
    if load.is_writable() && load.is_executable() {
        return Err(ElfError::WritableCode { index: segment.index });
    }
    // Only AArch64 has code that cannot be read (execute-only memory).
    let may_be_unreadable = cfg!(target_arch = "aarch64") && load.is_executable();
    if !load.is_readable() && !may_be_unreadable {
        return Err(segment.wrong("p_flags", flags, "readable"));
    }
    if let Some(last) = loads.last() {
        // A page that two segments share has the rights and the bytes of the second one only.
        let shares_page = address / PAGE * PAGE < last.end.next_multiple_of(PAGE);
        if address < last.end || (shares_page && last.flags != flags) {
            return Err(segment.wrong(
                "p_vaddr",
                address,
                format!("behind the segment before it, which ends at {:#x}", last.end),
            ));
        }
        let last_file_end = last.offset.saturating_add(last.file_end - last.start);
        if file_bytes > 0 && offset < last_file_end {
            return Err(segment.wrong(
                "p_offset",
                offset,
                format!("behind the segment before it, which ends at {last_file_end:#x}"),
            ));
        }
    }
    // An empty segment maps nothing; GNU ld and objcopy may leave one.
    if memory_bytes > 0 {
        loads.push(load);
    }
    Ok(())
}

fn dynamic<'a>(segment: &Segment, image: &Image<'a>) -> Result<&'a [u8], ElfError> {
    if !segment.address.is_multiple_of(8) {
        return Err(segment.wrong("p_vaddr", segment.address, "a multiple of 8"));
    }
    if segment.file_bytes == 0 || !segment.file_bytes.is_multiple_of(DYNAMIC_ENTRY_BYTES) {
        return Err(segment.wrong("p_filesz", segment.file_bytes, "whole entries of 16 bytes, at least one"));
    }
    if segment.memory_bytes != segment.file_bytes {
        return Err(segment.wrong("p_memsz", segment.memory_bytes, format!("p_filesz, {:#x}", segment.file_bytes)));
    }
    let found = segment.within(image)?;
    // glibc relocates the table in place when this flag says that it may (`l_ld_readonly`).
    let writable = image.load_at(segment.address).is_some_and(Load::is_writable);
    if writable != (segment.flags & elf::PF_W.0 != 0) {
        return Err(segment.wrong("p_flags", segment.flags, "writable exactly when its PT_LOAD segment is"));
    }
    Ok(found)
}

fn tls(segment: &Segment, image: &Image<'_>) -> Result<Tls, ElfError> {
    let Segment { address, file_bytes, memory_bytes, align, .. } = *segment;
    if file_bytes > memory_bytes {
        return Err(segment.wrong("p_filesz", file_bytes, format!("at most p_memsz, {memory_bytes:#x}")));
    }
    if align > PAGE || !(align == 0 || align.is_power_of_two()) {
        return Err(segment.wrong("p_align", align, format!("a power of two, at most {PAGE:#x}")));
    }
    if align > 1 && !address.is_multiple_of(align) {
        return Err(segment.wrong("p_vaddr", address, format!("a multiple of p_align, {align:#x}")));
    }
    if file_bytes > 0 {
        segment.within(image)?;
    }
    Ok(Tls { memory_bytes })
}

/// What the loader write-protects after relocation. A range that starts or ends elsewhere takes the plugin's own variables.
fn relro(segment: &Segment, image: &Image<'_>) -> Result<(), ElfError> {
    let Segment { address, memory_bytes, .. } = *segment;
    let Some(load) = image.load_at(address).filter(|load| load.is_writable() && load.start == address) else {
        return Err(segment.wrong("p_vaddr", address, "the start of a writable PT_LOAD segment"));
    };
    // lld and mold round the end up to the next page, beyond the segment's last byte.
    let limit = load.end.next_multiple_of(load.align);
    if address.checked_add(memory_bytes).is_none_or(|end| end > limit) {
        return Err(segment.wrong("p_memsz", memory_bytes, "an end within its PT_LOAD segment"));
    }
    if segment.file_bytes > memory_bytes {
        return Err(segment.wrong("p_filesz", segment.file_bytes, format!("at most p_memsz, {memory_bytes:#x}")));
    }
    Ok(())
}

fn program_headers(segment: &Segment, header: &Header<'_>, image: &Image<'_>) -> Result<(), ElfError> {
    if segment.offset != header.phoff {
        return Err(segment.wrong("p_offset", segment.offset, format!("e_phoff, {:#x}", header.phoff)));
    }
    let len = header.program_headers.len() as u64;
    if segment.file_bytes != len || segment.memory_bytes != len {
        return Err(segment.wrong("p_filesz", segment.file_bytes, format!("{len:#x}, the size of all program headers")));
    }
    segment.within(image).map(|_| ())
}

/// The table that a panic is unwound by.
fn unwind_table<'a>(segment: &Segment, image: &Image<'a>) -> Result<UnwindTable<'a>, ElfError> {
    let bytes = segment.within(image)?;
    UnwindTable::read(segment.address, bytes).map_err(|(field, found, expected)| segment.wrong(field, found, expected))
}

fn note_segment<'a>(segment: &Segment, image: &Image<'a>) -> Result<Option<&'a [u8]>, ElfError> {
    // The loader walks the notes by p_memsz, in memory.
    if segment.memory_bytes != segment.file_bytes {
        return Err(segment.wrong("p_memsz", segment.memory_bytes, format!("p_filesz, {:#x}", segment.file_bytes)));
    }
    let bytes = segment.within(image)?;
    notes::check(bytes, segment.offset, segment.align)
}
