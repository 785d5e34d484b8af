//! Why a library's bytes are refused.

use object::elf;
use qtasks_plugin_api::abi::ROOT_SYMBOL;

/// What mends a file whose own fields contradict each other.
const DAMAGED: &str = "the file is damaged or was cut short: copy or build it again";

/// Why the bytes of a library are refused. Every variant names the field, what it holds and what it should hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// No room for a header.
    #[error("the file has {found} bytes, an ELF header takes 64; {DAMAGED}")]
    TooShort {
        /// Length of the file in bytes.
        found: usize,
    },
    /// Another kind of file.
    #[error("it is {found}, a plugin is an ELF library; build the plugin for Linux with crate-type = [\"cdylib\"]")]
    NotElf {
        /// What it seems to be.
        found: &'static str,
    },
    /// Not 64-bit.
    #[error("it is a {} ELF file (EI_CLASS {found}), this host is 64-bit (EI_CLASS 2); build the plugin for this host's target", if *.found == 1 { "32-bit" } else { "damaged" })]
    Class {
        /// `EI_CLASS`.
        found: u8,
    },
    /// Not little-endian.
    #[error("it is a {} ELF file (EI_DATA {found}), this host is little-endian (EI_DATA 1); build the plugin for this host's target", if *.found == 2 { "big-endian" } else { "damaged" })]
    ByteOrder {
        /// `EI_DATA`.
        found: u8,
    },
    /// Another version of ELF.
    #[error("{field} is {found}, expected 1, the only version of ELF; {DAMAGED}")]
    Version {
        /// `EI_VERSION` or `e_version`.
        field: &'static str,
        /// What it holds.
        found: u32,
    },
    /// Another operating system.
    #[error("it was built for {} (EI_OSABI {found}), expected 0 (System V) or 3 (GNU/Linux); build the plugin for this host's target", os_name(*.found))]
    OsAbi {
        /// `EI_OSABI`.
        found: u8,
    },
    /// Another machine.
    #[error("it was built for {} (e_machine {found}), this host runs on {expected}; build the plugin with --target {expected}-unknown-linux-gnu", machine_name(*.found))]
    Machine {
        /// `e_machine`.
        found: u16,
        /// This host's machine.
        expected: &'static str,
    },
    /// Not a library.
    #[error("it is {} (e_type {found}), expected a shared library (e_type 3); build the plugin with crate-type = [\"cdylib\"]", type_name(*.found))]
    Type {
        /// `e_type`.
        found: u16,
    },
    /// A program.
    #[error("it is a program ({found}), expected a shared library; build the plugin with crate-type = [\"cdylib\"]")]
    Program {
        /// What says so.
        found: &'static str,
    },
    /// Another field of the header.
    #[error("ELF header: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Header {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// A field of a program header.
    #[error("program header {index} ({kind}): {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Segment {
        /// Which one, counted from 0.
        index: usize,
        /// Its type.
        kind: &'static str,
        /// The field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// Code that can be written.
    #[error(
        "program header {index}: the segment is writable and executable, expected one or the other; link the plugin without -N (omagic) and without packing it"
    )]
    WritableCode {
        /// Which one, counted from 0.
        index: usize,
    },
    /// No code.
    #[error("it has no executable segment, a plugin has code; {DAMAGED}")]
    NoCode,
    /// Too much address space.
    #[error("its segments span {found} bytes of memory, expected at most {max}; reduce its static data, or {DAMAGED}")]
    Span {
        /// Bytes.
        found: u64,
        /// Bytes.
        max: u64,
    },
    /// Not one dynamic table.
    #[error("it has {found} dynamic tables (PT_DYNAMIC), expected one; link the plugin as a shared library, not static")]
    DynamicCount {
        /// How many.
        found: usize,
    },
    /// A stack with code, or no word on it.
    #[error("it {}, which would make every stack of the host executable; link the plugin with -z noexecstack and mark its assembler files with .note.GNU-stack", if .found.is_some() { "asks for an executable stack (PT_GNU_STACK)" } else { "does not say that its stack needs no execution (no PT_GNU_STACK)" })]
    ExecutableStack {
        /// `p_flags` of `PT_GNU_STACK`, if there is one.
        found: Option<u32>,
    },
    /// An entry of the dynamic table.
    #[error("dynamic table: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Dynamic {
        /// The tag.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// The dynamic table lacks an entry.
    #[error("dynamic table: {field} is missing, {needed_by}; {DAMAGED}")]
    DynamicMissing {
        /// The tag.
        field: &'static str,
        /// Who needs it.
        needed_by: &'static str,
    },
    /// The dynamic table has an entry twice.
    #[error("dynamic table: {field} is there twice, expected once; {DAMAGED}")]
    DynamicTwice {
        /// The tag.
        field: &'static str,
    },
    /// An own search path.
    #[error(
        "it has {field} {found:?}, expected none: it would choose libraries by path; link the plugin without -rpath, or run `patchelf --remove-rpath` on it"
    )]
    SearchPath {
        /// `DT_RPATH` or `DT_RUNPATH`.
        field: &'static str,
        /// The path.
        found: String,
    },
    /// A needed library by path or without a name.
    #[error(
        "it needs the library {found:?} (DT_NEEDED), expected a name without `/`: a path would bypass the system's search; link against a library with a soname"
    )]
    Needed {
        /// The name.
        found: String,
    },
    /// Relocations in code.
    #[error(
        "it has text relocations ({found}), expected none; compile all of it, C parts too, as position-independent code (-fPIC)"
    )]
    TextRelocations {
        /// What says so.
        found: &'static str,
    },
    /// Something that a plugin may not ask the dynamic linker for.
    #[error("it has {found}, expected none: {reason}; link the plugin without it")]
    Unsupported {
        /// The tag or flag.
        found: &'static str,
        /// What it would do.
        reason: &'static str,
    },
    /// Too much thread-local memory.
    #[error("it has {found} bytes of thread-local memory{}, expected at most {max}; {}", if *.static_tls { " in the static reserve (DF_STATIC_TLS)" } else { "" }, if *.static_tls { "compile it without -ftls-model=initial-exec" } else { "keep large data on the heap" })]
    TlsSize {
        /// Bytes.
        found: u64,
        /// Bytes.
        max: u64,
        /// Whether it must come from the static reserve.
        static_tls: bool,
    },
    /// A string that is not where it should be.
    #[error("string table: {field} at {found:#x}, expected {expected}; {DAMAGED}")]
    Strings {
        /// Whose string.
        field: &'static str,
        /// Its offset.
        found: u64,
        /// What it should be.
        expected: String,
    },
    /// A hash table that leads astray.
    #[error("{table}: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Hash {
        /// `DT_HASH` or `DT_GNU_HASH`.
        table: &'static str,
        /// What part of it.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// A symbol.
    #[error("symbol {index}: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Symbol {
        /// Which one.
        index: usize,
        /// The field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// A symbol version.
    #[error("symbol versions: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Versions {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// A relocation.
    #[error("{table} entry {index}: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Relocation {
        /// `DT_RELA`, `DT_JMPREL` or `DT_RELR`.
        table: &'static str,
        /// Which one.
        index: usize,
        /// The field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: &'static str,
    },
    /// A kind of relocation that the loader of this machine does not apply.
    #[error(
        "{table} entry {index} has the relocation type {found}, which no library for {machine} has; compile all of it as position-independent code (-fPIC), or {DAMAGED}"
    )]
    RelocationType {
        /// `DT_RELA` or `DT_JMPREL`.
        table: &'static str,
        /// Which one.
        index: usize,
        /// The type's number.
        found: u32,
        /// This host's machine.
        machine: &'static str,
    },
    /// A function pointer that the loader calls.
    #[error("{array} entry {index} {found}, expected a relocation that points to a function; {DAMAGED}")]
    StartFunction {
        /// `DT_INIT_ARRAY` or `DT_FINI_ARRAY`.
        array: &'static str,
        /// Which one.
        index: usize,
        /// What is wrong with it.
        found: &'static str,
    },
    /// A note that runs over its segment.
    #[error("note at {offset:#x}: {field} is {found:#x}, expected {expected}; {DAMAGED}")]
    Note {
        /// Offset in the file.
        offset: u64,
        /// The field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: String,
    },
    /// No root symbol.
    #[error("it does not export {ROOT_SYMBOL}; use export_plugin!, and link without a version script that hides symbols")]
    NoRoot,
    /// A root symbol of another kind.
    #[error(
        "its symbol {ROOT_SYMBOL} is {found}, expected {expected}; build it with export_plugin! and export no symbol of that name yourself"
    )]
    Root {
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl ElfError {
    /// A stable name, for logs and for tools.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooShort { .. } => "elf-too-short",
            Self::NotElf { .. } => "elf-not-elf",
            Self::Class { .. } => "elf-class",
            Self::ByteOrder { .. } => "elf-byte-order",
            Self::Version { .. } => "elf-version",
            Self::OsAbi { .. } => "elf-os-abi",
            Self::Machine { .. } => "elf-machine",
            Self::Type { .. } => "elf-type",
            Self::Program { .. } => "elf-program",
            Self::Header { .. } => "elf-header",
            Self::Segment { .. } => "elf-segment",
            Self::WritableCode { .. } => "elf-writable-code",
            Self::NoCode => "elf-no-code",
            Self::Span { .. } => "elf-span",
            Self::DynamicCount { .. } => "elf-dynamic-count",
            Self::ExecutableStack { .. } => "elf-executable-stack",
            Self::Dynamic { .. } => "elf-dynamic",
            Self::DynamicMissing { .. } => "elf-dynamic-missing",
            Self::DynamicTwice { .. } => "elf-dynamic-twice",
            Self::SearchPath { .. } => "elf-search-path",
            Self::Needed { .. } => "elf-needed",
            Self::TextRelocations { .. } => "elf-text-relocations",
            Self::Unsupported { .. } => "elf-unsupported",
            Self::TlsSize { .. } => "elf-tls-size",
            Self::Strings { .. } => "elf-strings",
            Self::Hash { .. } => "elf-hash",
            Self::Symbol { .. } => "elf-symbol",
            Self::Versions { .. } => "elf-versions",
            Self::Relocation { .. } => "elf-relocation",
            Self::RelocationType { .. } => "elf-relocation-type",
            Self::StartFunction { .. } => "elf-start-function",
            Self::Note { .. } => "elf-note",
            Self::NoRoot => "elf-no-root",
            Self::Root { .. } => "elf-root",
        }
    }

    pub(super) fn header(field: &'static str, found: impl Into<u64>, expected: impl Into<String>) -> Self {
        Self::Header { field, found: found.into(), expected: expected.into() }
    }

    pub(super) fn dynamic(field: &'static str, found: u64, expected: impl Into<String>) -> Self {
        Self::Dynamic { field, found, expected: expected.into() }
    }
}

fn os_name(os_abi: u8) -> &'static str {
    match elf::OsAbi(os_abi) {
        elf::ELFOSABI_FREEBSD => "FreeBSD",
        elf::ELFOSABI_NETBSD => "NetBSD",
        elf::ELFOSABI_OPENBSD => "OpenBSD",
        elf::ELFOSABI_SOLARIS => "Solaris",
        elf::ELFOSABI_STANDALONE => "no operating system",
        _ => "another operating system",
    }
}

fn machine_name(machine: u16) -> &'static str {
    match elf::Machine(machine) {
        elf::EM_X86_64 => "x86_64",
        elf::EM_AARCH64 => "aarch64",
        elf::EM_386 => "i686",
        elf::EM_ARM => "arm",
        elf::EM_RISCV => "riscv",
        elf::EM_PPC64 => "powerpc64",
        elf::EM_S390 => "s390x",
        elf::EM_LOONGARCH => "loongarch64",
        elf::EM_MIPS => "mips",
        elf::EM_BPF => "bpf",
        _ => "another machine",
    }
}

fn type_name(kind: u16) -> &'static str {
    match elf::FileType(kind) {
        elf::ET_NONE => "of no type",
        elf::ET_REL => "an object file",
        elf::ET_EXEC => "a program",
        elf::ET_DYN => "a shared library",
        elf::ET_CORE => "a core dump",
        _ => "of an unknown type",
    }
}
