//! The ELF header: is this a library for this machine at all?

use object::elf;

use super::error::ElfError;
use super::image::{u16_at, u32_at, u64_at};

/// Bytes of a 64-bit ELF header.
const HEADER_BYTES: usize = 64;
/// Bytes of a 64-bit program header.
pub(super) const PROGRAM_HEADER_BYTES: usize = 56;
/// glibc knows the ABI versions 0 to 4 of the GNU OS ABI (`sysdeps/gnu/ldsodefs.h`, `VALID_ELF_ABIVERSION`).
const LAST_GNU_ABI_VERSION: u8 = 4;

/// The machines whose relocations are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// What this build runs on.
    const HOST: Option<Self> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Self::X86_64)
    } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
        Some(Self::Aarch64)
    } else {
        None
    };

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The number of the relocation that writes an address of the library itself.
    pub(super) fn relative_kind(self) -> u32 {
        match self {
            Self::X86_64 => elf::R_X86_64_RELATIVE.0,
            Self::Aarch64 => elf::R_AARCH64_RELATIVE.0,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::X86_64 => elf::EM_X86_64.0,
            Self::Aarch64 => elf::EM_AARCH64.0,
        }
    }
}

/// Where the program headers are, and for which machine.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) machine: Machine,
    /// Offset of the program headers in the file.
    pub(super) phoff: u64,
    /// The program headers' bytes: whole ones, at least one.
    pub(super) program_headers: &'a [u8],
}

/// Reads and checks the header of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Result<Header<'_>, ElfError> {
    if !bytes.starts_with(b"\x7fELF") {
        // A file too short for the magic is still worth a word on what it holds.
        return Err(match bytes.len() {
            short @ 0..4 => ElfError::TooShort { found: short },
            _ => ElfError::NotElf { found: kind_of(bytes) },
        });
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Err(ElfError::TooShort { found: bytes.len() }) };
    let [class, data, version, os_abi, abi_version] = [header[4], header[5], header[6], header[7], header[8]];
    let padding = &header[9..16];
    if class != elf::ELFCLASS64.0 {
        return Err(ElfError::Class { found: class });
    }
    if data != elf::ELFDATA2LSB.0 {
        return Err(ElfError::ByteOrder { found: data });
    }
    if version != elf::EV_CURRENT.0 {
        return Err(ElfError::Version { field: "EI_VERSION", found: version.into() });
    }
    if os_abi != elf::ELFOSABI_SYSV.0 && os_abi != elf::ELFOSABI_GNU.0 {
        return Err(ElfError::OsAbi { found: os_abi });
    }
    let last = if os_abi == elf::ELFOSABI_GNU.0 { LAST_GNU_ABI_VERSION } else { 0 };
    if abi_version > last {
        return Err(ElfError::header("EI_ABIVERSION", abi_version, "0"));
    }
    // glibc refuses these too ("nonzero padding in e_ident").
    if let Some(found) = padding.iter().copied().find(|byte| *byte != 0) {
        return Err(ElfError::header("EI_PAD", found, "zeros"));
    }
    check_kind(header)?;
    let machine = machine(header)?;
    let (phoff, program_headers) = program_headers(bytes, header)?;
    Ok(Header { machine, phoff, program_headers })
}

fn check_kind(header: &[u8; HEADER_BYTES]) -> Result<(), ElfError> {
    let version = u32_at(header, 20).unwrap_or_default();
    if version != u32::from(elf::EV_CURRENT.0) {
        return Err(ElfError::Version { field: "e_version", found: version });
    }
    let kind = u16_at(header, 16).unwrap_or_default();
    if kind != elf::ET_DYN.0 {
        return Err(ElfError::Type { found: kind });
    }
    let header_bytes = u16_at(header, 52).unwrap_or_default();
    if usize::from(header_bytes) != HEADER_BYTES {
        return Err(ElfError::header("e_ehsize", header_bytes, "64"));
    }
    Ok(())
}

fn machine(header: &[u8; HEADER_BYTES]) -> Result<Machine, ElfError> {
    let found = u16_at(header, 18).unwrap_or_default();
    Machine::HOST
        .filter(|host| host.number() == found)
        .ok_or(ElfError::Machine { found, expected: Machine::HOST.map_or("a machine that this check knows", Machine::name) })
}

fn program_headers<'a>(bytes: &'a [u8], header: &[u8; HEADER_BYTES]) -> Result<(u64, &'a [u8]), ElfError> {
    let size = u16_at(header, 54).unwrap_or_default();
    if usize::from(size) != PROGRAM_HEADER_BYTES {
        return Err(ElfError::header("e_phentsize", size, "56"));
    }
    let count = u16_at(header, 56).unwrap_or_default();
    // PN_XNUM says that the number is elsewhere, in a section header; glibc does not follow that.
    if count == 0 || count == elf::PN_XNUM {
        return Err(ElfError::header("e_phnum", count, "1 to 65534 program headers"));
    }
    let phoff = u64_at(header, 32).unwrap_or_default();
    let len = usize::from(count) * PROGRAM_HEADER_BYTES;
    let found = super::image::range(bytes, phoff, len as u64).filter(|_| phoff >= HEADER_BYTES as u64 && phoff.is_multiple_of(8));
    let headers = found.ok_or_else(|| {
        ElfError::header(
            "e_phoff",
            phoff,
            format!("a multiple of 8 behind the header, with {len} bytes in the file of {} bytes", bytes.len()),
        )
    })?;
    Ok((phoff, headers))
}

/// What a file that is not ELF seems to be, by its first bytes.
fn kind_of(bytes: &[u8]) -> &'static str {
    const MAGICS: &[(&[u8], &str)] = &[
        (b"\xcf\xfa\xed\xfe", "a Mach-O file (macOS)"),
        (b"\xce\xfa\xed\xfe", "a 32-bit Mach-O file (macOS)"),
        (b"\xca\xfe\xba\xbe", "a Mach-O universal file (macOS), or a Java class"),
        (b"MZ", "a PE file (Windows)"),
        (b"\0asm", "a WebAssembly module"),
        (b"!<arch>\n", "a static library (ar archive)"),
        (b"!<thin>\n", "a static library (thin ar archive)"),
        (b"#!", "a script"),
        (b"\x1f\x8b", "gzip data (unpack it)"),
        (b"\x28\xb5\x2f\xfd", "zstd data (unpack it)"),
        (b"\xfd7zXZ\0", "xz data (unpack it)"),
        (b"BZh", "bzip2 data (unpack it)"),
        (b"PK\x03\x04", "a zip archive (unpack it)"),
        (b"BC\xc0\xde", "LLVM bitcode"),
    ];
    if let Some((_, name)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return name;
    }
    let start = bytes.get(..512).unwrap_or(bytes);
    if start.iter().all(|byte| *byte == 0) {
        "zeros, as a copy leaves that did not end"
    } else if start.starts_with(b"INPUT") || start.starts_with(b"GROUP") || start.starts_with(b"/* GNU ld script") {
        "a linker script"
    } else if start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace() || *byte >= 0x80) {
        "text"
    } else {
        "data of an unknown kind"
    }
}
