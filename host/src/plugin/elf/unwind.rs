//! The table by which a panic is unwound: it knows where functions start and end, also in a stripped library.
//!
//! Layout: LSB core specification, "Exception Frames", and "Pointer Encoding" of DWARF extensions.

use super::image::{Image, u32_at};

/// `DW_EH_PE_udata4`.
const UNSIGNED_WORD: u8 = 0x03;
/// `DW_EH_PE_datarel | DW_EH_PE_sdata4`: relative to the table.
const SORTED_PAIRS: u8 = 0x3b;

/// `PT_GNU_EH_FRAME`: pairs of a function's address and its entry's, sorted by the former.
#[derive(Debug)]
pub(super) struct UnwindTable<'a> {
    address: u64,
    /// Empty when the table is in a form that no linker of today writes.
    pairs: &'a [[u8; 8]],
}

impl<'a> UnwindTable<'a> {
    pub(super) fn read(address: u64, bytes: &'a [u8]) -> Result<Self, (&'static str, u64, &'static str)> {
        let version = bytes.first().copied().unwrap_or_default();
        if version != 1 || bytes.len() < 8 {
            return Err(("version", version.into(), "1, with a header of 8 bytes"));
        }
        let ([_, _, UNSIGNED_WORD, SORTED_PAIRS, ..], Some(count)) = (bytes, u32_at(bytes, 8)) else {
            return Ok(Self { address, pairs: &[] });
        };
        let pairs = bytes.get(12..).unwrap_or_default().as_chunks().0;
        let pairs = pairs.get(..count as usize).ok_or(("fde_count", count.into(), "at most what p_filesz holds"))?;
        Ok(Self { address, pairs })
    }

    /// Whether `address` is behind the start of a function and before its end.
    pub(super) fn is_inside_function(&self, image: &Image<'_>, address: u64) -> bool {
        let start_of = |pair: &[u8; 8]| self.address_at(u32_at(pair, 0));
        let after = self.pairs.partition_point(|pair| start_of(pair) <= address);
        let Some(pair) = after.checked_sub(1).and_then(|at| self.pairs.get(at)) else { return false };
        let start = start_of(pair);
        start < address && self.len_of(image, pair, start).is_some_and(|len| address - start < len)
    }

    /// The length of the function at `start`; `None` when its entry is not of the usual form.
    fn len_of(&self, image: &Image<'_>, pair: &[u8; 8], start: u64) -> Option<u64> {
        let entry = self.address_at(u32_at(pair, 4));
        let bytes = image.at(entry, 16)?;
        // Its start is relative to the place that says so (`DW_EH_PE_pcrel | DW_EH_PE_sdata4`), or this is another encoding.
        let said = entry.wrapping_add(8).wrapping_add(extend(u32_at(bytes, 8)));
        if said == start { u32_at(bytes, 12).map(u64::from) } else { None }
    }

    /// The address at a distance from the table.
    fn address_at(&self, distance: Option<u32>) -> u64 {
        self.address.wrapping_add(extend(distance))
    }
}

/// A signed distance, to be added with wrap-around.
fn extend(distance: Option<u32>) -> u64 {
    i64::from(distance.unwrap_or_default().cast_signed()).cast_unsigned()
}
