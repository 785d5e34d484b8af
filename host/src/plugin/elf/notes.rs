//! Walks notes: glibc reads those of the machine's properties without a look at the end of the segment.

use object::elf;

use super::error::ElfError;
use super::image::{range, u32_at};

/// Checks the notes of a segment at `offset` in the file, and gives the linker's build id if it is among them.
///
/// Layout: gABI, "Note Section". Names and descriptors are padded to four bytes, to eight where `p_align` is eight.
pub(super) fn check(bytes: &[u8], offset: u64, align: u64) -> Result<Option<&[u8]>, ElfError> {
    let padding: u64 = if align == 8 { 8 } else { 4 };
    let mut build_id = None;
    let mut at: u64 = 0;
    // Twelve bytes or fewer at the end are padding: the loader's own walk ends there, too.
    while let Some(header) = range(bytes, at, 12) {
        let word = |index| u64::from(u32_at(header, index).unwrap_or_default());
        let (name_bytes, descriptor_bytes) = (word(0), word(4));
        let wrong = |field, found| ElfError::Note {
            offset: offset.saturating_add(at),
            field,
            found,
            expected: format!("its bytes within the segment of {} bytes", bytes.len()),
        };
        let name = range(bytes, at + 12, name_bytes).ok_or_else(|| wrong("n_namesz", name_bytes))?;
        let descriptor_at = (at + 12 + name_bytes).next_multiple_of(padding);
        let descriptor = range(bytes, descriptor_at, descriptor_bytes).ok_or_else(|| wrong("n_descsz", descriptor_bytes))?;
        if name == b"GNU\0" && word(8) == u64::from(elf::NT_GNU_BUILD_ID.0) {
            build_id = build_id.or(Some(descriptor));
        }
        at = (descriptor_at + descriptor_bytes).next_multiple_of(padding);
    }
    Ok(build_id)
}
