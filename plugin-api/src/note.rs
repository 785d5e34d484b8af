//! The ELF note that carries the manifest inside the library file.
//!
//! Layout as in the ELF specification, "Note Section": three 32-bit words (name size, descriptor size, type), the name and the
//! descriptor, each padded to four bytes. A note in an allocated section is also reachable through `PT_NOTE`, so it survives
//! `strip` and removed section headers.

/// The note's owner name, without its terminating zero.
pub const NOTE_OWNER: &str = "QTasks";
/// The note's type: a plugin manifest as JSON.
pub const NOTE_TYPE: u32 = 0x5154_0001;
/// Section that [`export_plugin!`](crate::export_plugin) places the note in.
pub const NOTE_SECTION: &str = ".note.qtasks.plugin";

const OWNER_WITH_ZERO: u32 = NOTE_OWNER.len() as u32 + 1;

/// A note with a descriptor of `N` bytes.
#[repr(C, align(4))]
#[derive(Debug)]
pub struct Note<const N: usize> {
    owner_size: u32,
    descriptor_size: u32,
    kind: u32,
    owner: [u8; 8],
    descriptor: [u8; N],
}

impl<const N: usize> Note<N> {
    /// A manifest note.
    ///
    /// # Panics
    ///
    /// When the descriptor is 4 GiB or longer; in a constant that is an error of the compiler.
    #[must_use]
    pub const fn new(descriptor: [u8; N]) -> Self {
        assert!(N < u32::MAX as usize, "a manifest is far smaller than 4 GiB");
        Self { owner_size: OWNER_WITH_ZERO, descriptor_size: N as u32, kind: NOTE_TYPE, owner: *b"QTasks\0\0", descriptor }
    }

    /// The descriptor.
    #[must_use]
    pub const fn descriptor(&self) -> &[u8; N] {
        &self.descriptor
    }
}
