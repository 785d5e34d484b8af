//! The loaded segments, and checked reads of the file by the address at which its bytes will lie.

use object::elf;

/// One `PT_LOAD`, checked: its range lies in the file, and no sum of its fields wraps around.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// First address.
    pub(super) start: u64,
    /// End of what comes from the file.
    pub(super) file_end: u64,
    /// End of the memory; what is beyond `file_end` is zeros.
    pub(super) end: u64,
    /// Where `start` lies in the file.
    pub(super) offset: u64,
    /// `p_align`.
    pub(super) align: u64,
    /// `p_flags`.
    pub(super) flags: u32,
}

impl Load {
    pub(super) fn is_writable(&self) -> bool {
        self.flags & elf::PF_W.0 != 0
    }

    pub(super) fn is_executable(&self) -> bool {
        self.flags & elf::PF_X.0 != 0
    }

    pub(super) fn is_readable(&self) -> bool {
        self.flags & elf::PF_R.0 != 0
    }

    /// Whether `len` bytes from `address` on are memory of this segment.
    pub(super) fn holds(&self, address: u64, len: u64) -> bool {
        address >= self.start && address.checked_add(len).is_some_and(|end| end <= self.end)
    }
}

/// A library as it will lie in memory, at addresses relative to where the loader puts it.
#[derive(Debug)]
pub(super) struct Image<'a> {
    pub(super) bytes: &'a [u8],
    /// By address, without overlaps.
    pub(super) loads: Vec<Load>,
}

impl<'a> Image<'a> {
    /// The segment that `address` lies in.
    pub(super) fn load_at(&self, address: u64) -> Option<&Load> {
        let after = self.loads.partition_point(|load| load.start <= address);
        self.loads.get(after.checked_sub(1)?).filter(|load| address < load.end)
    }

    /// What the file holds from `address` to the end of its segment, when that memory can be read.
    pub(super) fn from(&self, address: u64) -> Option<&'a [u8]> {
        let load = self.load_at(address).filter(|load| load.is_readable())?;
        let len = load.file_end.checked_sub(address)?;
        range(self.bytes, load.offset.checked_add(address - load.start)?, len)
    }

    /// What the file holds at `address`, `len` bytes of one segment.
    pub(super) fn at(&self, address: u64, len: u64) -> Option<&'a [u8]> {
        self.from(address)?.get(..usize::try_from(len).ok()?)
    }

    /// Where in the file the byte at `address` lies.
    pub(super) fn offset_of(&self, address: u64) -> Option<u64> {
        let load = self.load_at(address)?;
        load.offset.checked_add(address - load.start)
    }

    /// Whether `len` bytes from `address` on are memory of one segment.
    pub(super) fn is_memory(&self, address: u64, len: u64) -> bool {
        self.load_at(address).is_some_and(|load| load.holds(address, len))
    }

    /// Whether code may start at `address`.
    pub(super) fn is_code(&self, address: u64) -> bool {
        self.load_at(address).is_some_and(|load| load.is_executable() && address < load.file_end)
    }

    /// First address of the first segment, and end of the last.
    pub(super) fn bounds(&self) -> (u64, u64) {
        (self.loads.first().map_or(0, |load| load.start), self.loads.last().map_or(0, |load| load.end))
    }

    /// Address space that the segments take together.
    pub(super) fn span(&self) -> u64 {
        let (start, end) = self.bounds();
        end.saturating_sub(start)
    }
}

/// `len` bytes of `bytes` from `offset` on.
pub(super) fn range(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    bytes.get(usize::try_from(offset).ok()?..end)
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}
