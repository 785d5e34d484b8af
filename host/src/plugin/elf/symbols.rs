//! The symbol table, and the hash tables by which the loader finds symbols in it.

use object::elf;

use super::dynamic::{DT_GNU_HASH, DT_HASH, DT_STRTAB, DT_SYMENT, DT_SYMTAB, Tags};
use super::error::ElfError;
use super::image::{Image, u16_at, u32_at, u64_at};
use super::segments::Segments;
use super::strings::Strings;

/// Bytes of one symbol.
const SYMBOL_BYTES: usize = 24;
/// Functions that end the process, from ISO C and POSIX.
const ENDING: [&str; 5] = ["exit", "_exit", "_Exit", "quick_exit", "abort"];

/// One symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    pub(super) value: u64,
    size: u64,
}

impl Symbol {
    fn read(bytes: &[u8; SYMBOL_BYTES]) -> Self {
        Self {
            name: u32_at(bytes, 0).unwrap_or_default(),
            info: bytes[4],
            other: bytes[5],
            section: u16_at(bytes, 6).unwrap_or_default(),
            value: u64_at(bytes, 8).unwrap_or_default(),
            size: u64_at(bytes, 16).unwrap_or_default(),
        }
    }

    pub(super) fn kind(&self) -> elf::SymbolType {
        elf::SymbolType(self.info & 0xf)
    }

    fn bind(&self) -> elf::SymbolBind {
        elf::SymbolBind(self.info >> 4)
    }

    fn visibility(&self) -> elf::SymbolVisibility {
        elf::SymbolVisibility(self.other & 3)
    }

    pub(super) fn is_defined(&self) -> bool {
        self.section != elf::SHN_UNDEF.0
    }

    /// Whether it is imported, as the link editor writes it.
    fn is_import(&self) -> bool {
        !self.is_defined() && self.bind() != elf::STB_LOCAL && self.value == 0
    }

    /// Whether its value is an address of the library.
    pub(super) fn has_address(&self) -> bool {
        self.is_defined() && self.section != elf::SHN_ABS.0 && self.kind() != elf::STT_TLS
    }
}

/// The symbol table, as long as the hash tables say.
#[derive(Debug)]
pub(super) struct Symbols<'a> {
    pub(super) strings: Strings<'a>,
    rows: &'a [[u8; SYMBOL_BYTES]],
    /// Those of [`ENDING`] that it imports.
    pub(super) ending_imports: Vec<&'static str>,
}

impl<'a> Symbols<'a> {
    /// Reads and checks the tables.
    pub(super) fn read(segments: &Segments<'a>, tags: &Tags, strings: Strings<'a>) -> Result<Self, ElfError> {
        let image = &segments.image;
        let address = tags.require(DT_SYMTAB, "the loader finds every symbol there")?;
        tags.expect(DT_SYMENT, SYMBOL_BYTES as u64, DT_SYMTAB)?;
        let available = image
            .from(address)
            .filter(|_| address.is_multiple_of(8))
            .ok_or_else(|| ElfError::dynamic(DT_SYMTAB.name, address, "a multiple of 8 within a segment's part of the file"))?;
        let (rows, _) = available.as_chunks::<SYMBOL_BYTES>();
        let mut symbols = Self { strings, rows, ending_imports: Vec::new() };
        let count = symbols.count(image, tags, address)?;
        symbols.rows = rows.get(..count).ok_or_else(|| {
            ElfError::dynamic(DT_SYMTAB.name, address, format!("{count} symbols within one segment's part of the file"))
        })?;
        symbols.check(segments)?;
        Ok(symbols)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<Symbol> {
        self.rows.get(index).map(Symbol::read)
    }

    /// How many symbols there are: only the hash tables say so.
    fn count(&self, image: &Image<'a>, tags: &Tags, symtab: u64) -> Result<usize, ElfError> {
        let gnu = match tags.get(DT_GNU_HASH) {
            Some(address) => Some(GnuHash::read(image, address)?.check(self)?),
            None => None,
        };
        let sysv = match tags.get(DT_HASH) {
            Some(address) => Some(check_sysv_hash(image, address, self, gnu.is_none())?),
            None => None,
        };
        match (gnu, sysv) {
            (None, None) => Err(ElfError::DynamicMissing {
                field: DT_GNU_HASH.name,
                needed_by: "and DT_HASH is too: the loader finds no symbol",
            }),
            (Some(GnuCount::Exactly(gnu)), Some(sysv)) if gnu != sysv => {
                let expected = format!("{gnu:#x}, the number of symbols by DT_GNU_HASH");
                Err(ElfError::Hash { table: DT_HASH.name, field: "nchain", found: sysv as u64, expected })
            }
            (_, Some(count)) | (Some(GnuCount::Exactly(count)), None) => Ok(count),
            // A library that exports nothing has no end of its symbols in DT_GNU_HASH; the names follow the symbols.
            (Some(GnuCount::AtLeast(least)), None) => {
                let strtab = tags.get(DT_STRTAB).unwrap_or_default();
                let room = strtab.checked_sub(symtab).map_or(self.rows.len(), |gap| (gap / SYMBOL_BYTES as u64) as usize);
                let room = room.min(self.rows.len());
                // Other tables may lie between: what cannot be an import is no symbol any more.
                let imports = self.rows.get(least..room).unwrap_or_default().iter().map(Symbol::read);
                Ok(least + imports.take_while(Symbol::is_import).count())
            }
        }
    }

    fn check(&mut self, segments: &Segments<'_>) -> Result<(), ElfError> {
        let image = &segments.image;
        let first = self.rows.first().ok_or_else(|| ElfError::dynamic(DT_SYMTAB.name, 0, "at least symbol 0"))?;
        if first.iter().any(|byte| *byte != 0) {
            return Err(ElfError::dynamic(DT_SYMTAB.name, 0, "a table whose symbol 0 is all zeros"));
        }
        let (image_start, image_end) = image.bounds();
        for (index, row) in self.rows.iter().enumerate().skip(1) {
            let symbol = Symbol::read(row);
            let wrong =
                |field, found: u64, expected: &str| ElfError::Symbol { index, field, found, expected: expected.to_owned() };
            if symbol.name as usize >= self.strings.len() {
                return Err(wrong("st_name", symbol.name.into(), "an offset within the string table"));
            }
            if !symbol.is_defined() {
                // The loader binds a symbol that is not for others to see to this library, where it is not.
                if symbol.bind() == elf::STB_LOCAL {
                    return Err(wrong("st_info", symbol.info.into(), "a global or weak binding for an undefined symbol"));
                }
                if symbol.visibility() != elf::STV_DEFAULT {
                    return Err(wrong("st_other", symbol.other.into(), "the default visibility for an undefined symbol"));
                }
                let name = u64::from(symbol.name);
                let ending = ENDING.into_iter().find(|ending| self.strings.is(name, ending.as_bytes()));
                if let Some(name) = ending.filter(|name| !self.ending_imports.contains(name)) {
                    self.ending_imports.push(name);
                }
            } else if symbol.has_address() {
                if symbol.value < image_start || symbol.value > image_end {
                    return Err(wrong("st_value", symbol.value, "an address within the library"));
                }
                let good = match symbol.kind() {
                    // Assembler may give a function further names in its middle.
                    elf::STT_FUNC => image.is_code(symbol.value),
                    // The loader calls this one.
                    elf::STT_GNU_IFUNC => segments.starts_function(symbol.value),
                    _ => true,
                };
                if !good {
                    return Err(wrong("st_value", symbol.value, "the address of a function"));
                }
            } else if symbol.kind() == elf::STT_TLS {
                let size = segments.tls.as_ref().map_or(0, |tls| tls.memory_bytes);
                if symbol.value > size {
                    return Err(wrong("st_value", symbol.value, "an offset within PT_TLS"));
                }
            }
        }
        Ok(())
    }

    /// Checks that the library exports an object `name` that can be a plugin's root.
    pub(super) fn check_root(&self, name: &str, image: &Image<'_>) -> Result<(), ElfError> {
        let mut of_that_name =
            self.rows.iter().map(Symbol::read).filter(|symbol| self.strings.is(symbol.name.into(), name.as_bytes()));
        let symbol = of_that_name.next().ok_or(ElfError::NoRoot)?;
        let wrong = |found, expected| Err(ElfError::Root { found, expected });
        if !symbol.is_defined() {
            return wrong("imported", "defined");
        }
        match symbol.bind() {
            elf::STB_GLOBAL => {}
            elf::STB_LOCAL => return wrong("local", "global"),
            elf::STB_WEAK => return wrong("weak", "global"),
            _ => return wrong("of an unknown binding", "global"),
        }
        match symbol.kind() {
            elf::STT_OBJECT => {}
            elf::STT_FUNC | elf::STT_GNU_IFUNC => return wrong("a function", "a data object"),
            elf::STT_TLS => return wrong("thread-local", "a data object"),
            _ => return wrong("of another type", "a data object"),
        }
        if symbol.visibility() != elf::STV_DEFAULT {
            return wrong("of restricted visibility", "of default visibility");
        }
        let pointer = 8;
        if symbol.size < pointer || !symbol.value.is_multiple_of(pointer) {
            return wrong("too small or misaligned", "an aligned object of at least a pointer");
        }
        if !symbol.has_address() || !image.is_memory(symbol.value, symbol.size) {
            return wrong("outside the segments", "within one loaded segment");
        }
        Ok(())
    }
}

/// What `DT_GNU_HASH` says about the number of symbols.
#[derive(Debug, Clone, Copy)]
enum GnuCount {
    Exactly(usize),
    AtLeast(usize),
}

/// `DT_GNU_HASH`. Layout: glibc `elf/dl-setup_hash.c`; how it is followed: `elf/dl-lookup.c`, `do_lookup_x`.
struct GnuHash<'a> {
    first_hashed: usize,
    bloom_shift: u32,
    bloom: &'a [[u8; 8]],
    buckets: &'a [[u8; 4]],
    /// One for each symbol from `first_hashed` on, and whatever lies behind.
    chains: &'a [[u8; 4]],
}

fn gnu_wrong(field: &'static str, found: u64, expected: impl Into<String>) -> ElfError {
    ElfError::Hash { table: DT_GNU_HASH.name, field, found, expected: expected.into() }
}

impl<'a> GnuHash<'a> {
    fn read(image: &Image<'a>, address: u64) -> Result<Self, ElfError> {
        let outside = || ElfError::dynamic(DT_GNU_HASH.name, address, "a whole hash table within one segment's part of the file");
        let bytes = image.from(address).filter(|_| address.is_multiple_of(8)).ok_or_else(outside)?;
        let word = |at| u32_at(bytes, at).ok_or_else(outside);
        let (bucket_count, first_hashed, bloom_words, bloom_shift) = (word(0)?, word(4)?, word(8)?, word(12)?);
        // glibc asserts this one.
        if !bloom_words.is_power_of_two() {
            return Err(gnu_wrong("bloom filter size", bloom_words.into(), "a power of two"));
        }
        if bloom_shift >= 32 {
            return Err(gnu_wrong("bloom filter shift", bloom_shift.into(), "less than 32"));
        }
        if bucket_count == 0 {
            return Err(gnu_wrong("bucket count", 0, "at least 1"));
        }
        let (bloom, rest) = split::<8>(bytes.get(16..).unwrap_or_default(), bloom_words).ok_or_else(outside)?;
        let (buckets, rest) = split::<4>(rest, bucket_count).ok_or_else(outside)?;
        Ok(Self { first_hashed: first_hashed as usize, bloom_shift, bloom, buckets, chains: rest.as_chunks::<4>().0 })
    }

    /// Walks every chain. Symbols are sorted by bucket, so the chains lie one behind the other and the walk is linear.
    fn check(&self, symbols: &Symbols<'_>) -> Result<GnuCount, ElfError> {
        let mut next = self.first_hashed;
        // Names may share their ends, but not so often: keeps the time linear for a table made to be slow.
        let mut name_bytes_left = symbols.strings.len().saturating_mul(16);
        for (bucket, first) in self.buckets.iter().enumerate() {
            let first = u32::from_le_bytes(*first) as usize;
            if first == 0 {
                continue;
            }
            if first != next {
                return Err(gnu_wrong("bucket", first as u64, format!("{next:#x}, the symbol behind the last chain")));
            }
            loop {
                let chain = self.chains.get(next - self.first_hashed).map(|chain| u32::from_le_bytes(*chain));
                let chain = chain.ok_or_else(|| gnu_wrong("chain", next as u64, "an end within the segment"))?;
                let row = symbols.rows.get(next).map(Symbol::read);
                let hashed = row.and_then(|symbol| symbols.strings.gnu_hash(symbol.name));
                let (hash, len) = hashed.ok_or_else(|| gnu_wrong("chain", next as u64, "a symbol with a name"))?;
                name_bytes_left =
                    name_bytes_left.checked_sub(len).ok_or_else(|| gnu_wrong("names", len as u64, "names that overlap less"))?;
                self.check_hash(hash, chain, bucket)?;
                next += 1;
                if chain & 1 == 1 {
                    break;
                }
            }
        }
        if next == self.first_hashed { Ok(GnuCount::AtLeast(next)) } else { Ok(GnuCount::Exactly(next)) }
    }

    /// Checks that the loader, asked for the name of this hash, gets past the filter and into this bucket.
    fn check_hash(&self, hash: u32, chain: u32, bucket: usize) -> Result<(), ElfError> {
        if hash | 1 != chain | 1 {
            return Err(gnu_wrong("chain", chain.into(), format!("{:#x}, the hash of the symbol's name", hash & !1)));
        }
        if hash as usize % self.buckets.len() != bucket {
            return Err(gnu_wrong("bucket", bucket as u64, "the one of the symbol's hash"));
        }
        let word = self.bloom.get((hash as usize / 64) & (self.bloom.len() - 1)).map_or(0, |word| u64::from_le_bytes(*word));
        let mask = 1_u64 << (hash % 64) | 1_u64 << ((hash >> self.bloom_shift) % 64);
        if word & mask != mask {
            return Err(gnu_wrong("bloom filter", word, "the bits of every symbol's hash"));
        }
        Ok(())
    }
}

/// The first `count` chunks of `N` bytes, and what is behind them.
fn split<const N: usize>(bytes: &[u8], count: u32) -> Option<(&[[u8; N]], &[u8])> {
    let (head, rest) = bytes.split_at_checked((count as usize).checked_mul(N)?)?;
    Some((head.as_chunks().0, rest))
}

/// Walks `DT_HASH` (gABI, "Hash Table") and gives the number of symbols. Each symbol is in one chain at most, so that a walk of
/// more steps than symbols goes round in a circle. The loader asks it for names only when there is no `DT_GNU_HASH`.
fn check_sysv_hash(image: &Image<'_>, address: u64, symbols: &Symbols<'_>, names: bool) -> Result<usize, ElfError> {
    let wrong = |field, found: u32, expected: &str| ElfError::Hash {
        table: DT_HASH.name,
        field,
        found: found.into(),
        expected: expected.to_owned(),
    };
    let outside = || ElfError::dynamic(DT_HASH.name, address, "a whole hash table within one segment's part of the file");
    let bytes = image.from(address).filter(|_| address.is_multiple_of(4)).ok_or_else(outside)?;
    let bucket_count = u32_at(bytes, 0).ok_or_else(outside)?;
    let chain_count = u32_at(bytes, 4).ok_or_else(outside)?;
    if bucket_count == 0 || chain_count == 0 {
        return Err(wrong("nbucket or nchain", 0, "at least 1"));
    }
    let (buckets, rest) = split::<4>(bytes.get(8..).unwrap_or_default(), bucket_count).ok_or_else(outside)?;
    let (chains, _) = split::<4>(rest, chain_count).ok_or_else(outside)?;
    if chains.len() > symbols.rows.len() {
        return Err(wrong("nchain", chain_count, "at most the symbols that fit into the segment"));
    }
    let mut steps_left = chains.len();
    let mut name_bytes_left = symbols.strings.len().saturating_mul(16);
    for (bucket, first) in buckets.iter().enumerate() {
        let mut index = u32::from_le_bytes(*first);
        while index != 0 {
            let next = chains.get(index as usize).ok_or_else(|| wrong("chain", index, "less than nchain"))?;
            steps_left = steps_left.checked_sub(1).ok_or_else(|| wrong("chain", index, "chains without a circle"))?;
            if names {
                let symbol = symbols.rows.get(index as usize).map(Symbol::read);
                let name = symbol.and_then(|symbol| symbols.strings.get(symbol.name.into()));
                let name = name.ok_or_else(|| wrong("chain", index, "a symbol with a name"))?;
                name_bytes_left =
                    name_bytes_left.checked_sub(name.len()).ok_or_else(|| wrong("names", index, "names that overlap less"))?;
                if elf::hash(name) as usize % buckets.len() != bucket {
                    return Err(wrong("bucket", index, "the one of the symbol's hash"));
                }
            }
            index = u32::from_le_bytes(*next);
        }
    }
    Ok(chains.len())
}
