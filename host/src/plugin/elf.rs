//! Looks at a library's bytes before the dynamic linker does. Runs no code of the library.
//!
//! `dlopen` believes what it reads: of files with one bit turned over or their end cut off, about 30 % kill or hang the process
//! inside it. So everything that glibc's loader follows without a check of its own is followed here first, with bounds: the
//! headers, the segments, the dynamic table, the hash tables, symbols, versions and every relocation. Section headers are never
//! looked at: the loader ignores them, and `strip` may remove them.
//!
//! What the rules rest on: the System V gABI (chapters 4 "Object Files" and 5 "Program Loading and Dynamic Linking"), the
//! psABI supplements of x86-64 and AArch64 for relocation types, the LSB for symbol versions, and glibc's `elf/dl-load.c`,
//! `elf/get-dynamic-info.h`, `elf/dl-lookup.c`, `elf/dl-version.c` and `elf/do-rel.h` for what is asserted or followed
//! unchecked. A rule is here only when every linker tried (GNU ld, gold, lld, mold) keeps to it.
//!
//! The files, in the order of the work: `header`, `segments` (which gives the `image` that all later reads go through), `dynamic`,
//! `strings`, `symbols`, `versions`, `relocations`. `unwind` tells the latter where functions start.

mod dynamic;
mod error;
mod header;
mod image;
mod notes;
mod relocations;
mod segments;
mod strings;
mod symbols;
#[cfg(test)]
mod tests;
mod unwind;
mod versions;

pub use error::ElfError;
use qtasks_plugin_api::abi::ROOT_SYMBOL;
use strings::Strings;
use symbols::Symbols;

/// Smallest page of the machines we run on. A kernel with larger pages only makes the loader stricter.
const PAGE: u64 = 4096;

/// What a library is like, as its bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ElfFacts {
    /// The machine it runs on, as Rust names it: `x86_64` or `aarch64`.
    pub machine: &'static str,
    /// Its own name, `DT_SONAME`.
    pub soname: Option<String>,
    /// The libraries it needs, in its order.
    pub needed: Vec<String>,
    /// What it imports that can end the process. Rust's own standard library imports `abort`.
    pub ending_imports: Vec<String>,
    /// Thread-local memory in bytes, for each thread.
    pub tls_bytes: u64,
    /// Whether that memory must come from the small static reserve (`DF_STATIC_TLS`).
    pub static_tls: bool,
    /// Address space it takes when loaded, in bytes.
    pub memory_span: u64,
    /// The linker's build id, if there is one.
    pub build_id: Option<Vec<u8>>,
    /// How many symbols its dynamic table has.
    pub symbols: u64,
    /// How many relocations the loader applies; `DT_RELR` words count once each.
    pub relocations: u64,
}

/// Checks that `bytes` are a library that this build of the host can load, and that it exports the plugin root.
///
/// # Errors
///
/// [`ElfError`], the first thing that is wrong.
pub fn check(bytes: &[u8]) -> Result<ElfFacts, ElfError> {
    let (facts, symbols, image) = examine(bytes)?;
    symbols.check_root(ROOT_SYMBOL, &image)?;
    Ok(facts)
}

/// Like [`check`], for any shared library: without the rule on the plugin's root symbol.
///
/// # Errors
///
/// [`ElfError`], the first thing that is wrong.
pub fn check_shape(bytes: &[u8]) -> Result<ElfFacts, ElfError> {
    examine(bytes).map(|(facts, ..)| facts)
}

fn examine(bytes: &[u8]) -> Result<(ElfFacts, Symbols<'_>, image::Image<'_>), ElfError> {
    let header = header::read(bytes)?;
    let segments = segments::read(bytes, &header)?;
    let image = &segments.image;
    let tags = dynamic::read(&segments)?;
    let strings = Strings::read(image, &tags)?;
    strings::refuse_search_path(&tags, &strings)?;
    let symbols = Symbols::read(&segments, &tags, strings)?;
    let needed = strings::needed(&tags, &strings)?;
    let soname = strings::soname(&tags, &strings)?;
    versions::check(image, &tags, &symbols, &needed)?;
    let tls_bytes = dynamic::check_tls_size(&tags, segments.tls.as_ref())?;
    let relocations = relocations::check(header.machine, &segments, &tags, &symbols)?;
    let facts = ElfFacts {
        machine: header.machine.name(),
        soname,
        needed,
        ending_imports: symbols.ending_imports.iter().map(|name| (*name).to_owned()).collect(),
        tls_bytes,
        static_tls: tags.static_tls(),
        memory_span: image.span(),
        build_id: segments.build_id.map(<[u8]>::to_vec),
        symbols: symbols.len() as u64,
        relocations,
    };
    Ok((facts, symbols, segments.image))
}
