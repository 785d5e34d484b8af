//! Real libraries, built here by `cc` and `rustc`: good ones of every kind pass, and each fault is refused by its name.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use object::elf;

use super::{ElfError, check, check_shape};

const C_SOURCE: &str = r#"
    #include <stdlib.h>
    #include <string.h>
    __thread int per_thread = 7;
    static int started;
    static int first(const char *text) { return (int)strlen(text) + per_thread; }
    int (*const functions[])(const char *) = {first, atoi};
    const char *names[] = {"first", "atoi"};
    const void *const qtasks_plugin_root_1[] = {functions, names, &started};
    static int (*choose(void))(const char *) { return first; }
    int indirect(const char *text) __attribute__((ifunc("choose")));
    __attribute__((constructor)) static void start(void) { started = indirect("12"); }
    __attribute__((destructor)) static void end(void) { started = 0; }
    void ends(int now) { if (now) exit(1); abort(); }
"#;

const RUST_SOURCE: &str = r#"
    pub struct Root([fn() -> usize; 2]);
    thread_local! { static CALLS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) }; }
    fn first() -> usize { CALLS.with_borrow_mut(|calls| { calls.push(format!("{:?}", std::time::Instant::now())); calls.len() }) }
    fn second() -> usize { std::panic::catch_unwind(|| first() / (first() - 2)).unwrap_or(0) }
    #[unsafe(no_mangle)]
    pub static qtasks_plugin_root_1: Root = Root([first, second]);
"#;

/// A library that [`check`] finds good, linked by GNU ld with everything in it.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| cc("good", C_SOURCE, &["-O1"]).unwrap());

fn cc(name: &str, source: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    cc_in(tempfile::tempdir().unwrap().path(), name, source, arguments)
}

fn cc_in(directory: &Path, name: &str, source: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let path = directory.join(format!("{name}.c"));
    std::fs::write(&path, source).unwrap();
    compile(Command::new("cc").args(["-shared", "-fPIC"]).arg(&path).args(arguments), &directory.join(format!("{name}.so")))
}

fn rustc(name: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("{name}.rs"));
    std::fs::write(&path, RUST_SOURCE).unwrap();
    let output = directory.path().join(format!("lib{name}.so"));
    compile(Command::new("rustc").args(arguments).args(["--edition", "2024", "--crate-type", "cdylib"]).arg(&path), &output)
}

/// `None` when this machine's compiler or linker does not know an option.
fn compile(command: &mut Command, output: &Path) -> Option<Vec<u8>> {
    let built = command.arg("-o").arg(output).output().unwrap();
    if built.status.success() { Some(std::fs::read(output).unwrap()) } else { None }
}

fn assert_good(name: &str, bytes: &[u8]) {
    let facts = check(bytes).unwrap_or_else(|error| panic!("{name}: {} {error}", error.code()));
    assert!(facts.symbols > 1 && facts.relocations > 0 && facts.memory_span > 0, "{name}: {facts:?}");
    // The loader needs no section headers, and `strip --strip-section-headers` removes them.
    let mut without = bytes.to_vec();
    without[40..48].fill(0);
    without[60..64].fill(0);
    assert_eq!(check(&without), Ok(facts), "{name} without section headers");
}

#[test]
fn good_c_libraries_pass() {
    let kinds: &[(&str, &[&str])] = &[
        ("o0", &["-O0"]),
        ("o2", &["-O2", "-g"]),
        ("os", &["-Os", "-fno-asynchronous-unwind-tables"]),
        ("stripped", &["-O2", "-s"]),
        ("sysv", &["-Wl,--hash-style=sysv"]),
        ("gnu", &["-Wl,--hash-style=gnu"]),
        ("both", &["-Wl,--hash-style=both"]),
        ("now", &["-Wl,-z,relro,-z,now"]),
        ("lazy", &["-Wl,-z,norelro,-z,lazy"]),
        ("unsorted", &["-Wl,-z,nocombreloc"]),
        ("one_segment", &["-Wl,-z,noseparate-code"]),
        ("relr", &["-Wl,-z,pack-relative-relocs"]),
        ("large_pages", &["-Wl,-z,max-page-size=0x200000"]),
        ("descriptors", &["-mtls-dialect=gnu2"]),
        ("static_tls", &["-ftls-model=initial-exec"]),
        ("no_plt", &["-fno-plt"]),
        ("soname", &["-Wl,-soname,libplugin.so.1", "-Wl,--build-id=sha1", "-lm", "-Wl,--no-as-needed"]),
        ("no_start_files", &["-nostartfiles"]),
        ("gold", &["-fuse-ld=gold"]),
        ("gold_both", &["-fuse-ld=gold", "-Wl,--hash-style=both", "-O2"]),
        ("lld", &["-fuse-ld=lld"]),
        ("lld_both", &["-fuse-ld=lld", "-Wl,--hash-style=both", "-O2", "-s"]),
        ("lld_packed", &["-fuse-ld=lld", "-Wl,--pack-dyn-relocs=relr", "-Wl,-z,now"]),
        ("lld_rodynamic", &["-fuse-ld=lld", "-Wl,-z,rodynamic"]),
        ("mold", &["-fuse-ld=mold"]),
        ("mold_both", &["-fuse-ld=mold", "-Wl,--hash-style=both", "-O2", "-s"]),
        ("mold_packed", &["-fuse-ld=mold", "-Wl,--pack-dyn-relocs=relr"]),
    ];
    let mut built = 0;
    for (name, arguments) in kinds {
        if let Some(bytes) = cc(&format!("c_{name}"), C_SOURCE, arguments) {
            assert_good(name, &bytes);
            built += 1;
        }
    }
    assert!(built >= 10, "only {built} kinds could be built");
}

#[test]
fn good_rust_libraries_pass() {
    let kinds: &[(&str, &[&str])] = &[
        ("debug", &["-g"]),
        ("release", &["-O"]),
        ("fat_lto", &["-O", "-Clto=fat", "-Ccodegen-units=1"]),
        ("stripped", &["-O", "-Cstrip=symbols"]),
        ("size", &["-Copt-level=z", "-Cpanic=abort"]),
        ("gnu_ld", &["-O", "-Clink-arg=-fuse-ld=bfd"]),
        ("lld", &["-O", "-Clink-arg=-fuse-ld=lld"]),
        ("mold", &["-O", "-Clink-arg=-fuse-ld=mold"]),
        // `rustc +nightly` is rustup's; where there is none, this is one kind less.
        ("nightly", &["+nightly", "-O"]),
    ];
    let mut built = 0;
    for (name, arguments) in kinds {
        if let Some(bytes) = rustc(&format!("rust_{name}"), arguments) {
            assert_good(name, &bytes);
            built += 1;
        }
    }
    assert!(built >= 5, "only {built} kinds could be built");
}

#[test]
fn libraries_without_exports_have_a_good_shape() {
    for (number, style) in ["sysv", "gnu", "both"].into_iter().enumerate() {
        let source =
            "#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { atexit((void (*)(void))start); }";
        let bytes = cc(&format!("no_exports_{number}"), source, &[&format!("-Wl,--hash-style={style}")]).unwrap();
        check_shape(&bytes).unwrap();
        assert_eq!(check(&bytes), Err(ElfError::NoRoot));
    }
}

#[test]
fn versioned_symbols_pass() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("versions.map");
    std::fs::write(&script, "ONE { global: one; }; TWO { global: two; qtasks_plugin_root_1; local: *; } ONE;").unwrap();
    let source = "int one(void) { return 1; } int two(void) { return one(); } void *const qtasks_plugin_root_1[] = {one, two};";
    let bytes = cc("versions", source, &[&format!("-Wl,--version-script={}", script.display())]).unwrap();
    assert_good("versions", &bytes);
}

#[test]
fn the_facts_are_those_of_the_library() {
    let bytes = cc("facts", C_SOURCE, &["-Wl,-soname,libfacts.so", "-Wl,--build-id=0x0102abcd"]).unwrap();
    let facts = check(&bytes).unwrap();
    assert_eq!(facts.machine, std::env::consts::ARCH);
    assert_eq!(facts.soname.as_deref(), Some("libfacts.so"));
    assert!(facts.needed.iter().any(|name| name == "libc.so.6"), "{facts:?}");
    let mut ending = facts.ending_imports.clone();
    ending.sort_unstable();
    assert_eq!(ending, ["abort", "exit"]);
    assert_eq!(facts.tls_bytes, 4);
    assert_eq!(facts.build_id.as_deref(), Some([1, 2, 0xab, 0xcd].as_slice()));
    assert!(!facts.static_tls);
}

/// A library to be damaged, with its places by name.
#[derive(Clone)]
struct Damaged(Vec<u8>);

impl Damaged {
    fn good() -> Self {
        Self(GOOD.clone())
    }

    fn put(mut self, at: usize, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// Where the `number`th program header of a kind lies.
    fn segment(&self, kind: elf::ProgramType, number: usize) -> usize {
        let headers = (0..usize::from(self.0[56])).map(|index| 64 + 56 * index);
        headers.filter(|at| self.0[*at..at + 4] == kind.0.to_le_bytes()).nth(number).unwrap()
    }

    /// Where the entry of a tag lies in the file.
    fn tag(&self, tag: elf::DynamicTag) -> usize {
        let start = self.u64_at(self.segment(elf::PT_DYNAMIC, 0) + 8) as usize;
        (start..).step_by(16).find(|at| self.u64_at(*at) == tag.0.cast_unsigned()).unwrap()
    }

    fn tag_value(self, tag: elf::DynamicTag, value: u64) -> Self {
        let at = self.tag(tag) + 8;
        self.put(at, value.to_le_bytes())
    }

    fn retag(self, tag: elf::DynamicTag, other: elf::DynamicTag) -> Self {
        let at = self.tag(tag);
        self.put(at, other.0.to_le_bytes())
    }

    /// The offset in the file of what a tag points to.
    fn at_tag(&self, tag: elf::DynamicTag) -> usize {
        let address = self.u64_at(self.tag(tag) + 8);
        let loads = (0..).map(|number| self.segment(elf::PT_LOAD, number));
        let load =
            loads.take(4).find(|at| (self.u64_at(at + 16)..self.u64_at(at + 16) + self.u64_at(at + 32)).contains(&address));
        let load = load.unwrap();
        (address - self.u64_at(load + 16) + self.u64_at(load + 8)) as usize
    }

    /// Changes the field at `field` of the `number`th program header of a kind.
    fn in_segment(self, kind: elf::ProgramType, number: usize, field: usize, value: u64) -> Self {
        let at = self.segment(kind, number);
        let value = value.to_le_bytes();
        if field < 8 { self.put(at + field, &value[..4]) } else { self.put(at + field, value) }
    }

    /// The symbol of a name: where it lies in the file.
    fn symbol(&self, name: &str) -> usize {
        let (symbols, strings) = (self.at_tag(elf::DT_SYMTAB), self.at_tag(elf::DT_STRTAB));
        let named = format!("{name}\0");
        (symbols..)
            .step_by(24)
            .find(|at| {
                let offset = u32::from_le_bytes(self.0[*at..at + 4].try_into().unwrap()) as usize;
                self.0[strings + offset..].starts_with(named.as_bytes())
            })
            .unwrap()
    }

    #[track_caller]
    fn refused(&self, code: &str, words: &[&str]) {
        let error = check(&self.0).expect_err("refused");
        assert_eq!(error.code(), code, "{error}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
    }
}

const FLAGS: usize = 4;
const OFFSET: usize = 8;
const ADDRESS: usize = 16;
const FILE_BYTES: usize = 32;
const MEMORY_BYTES: usize = 40;
const ALIGN: usize = 48;

#[test]
fn files_of_another_kind_are_named() {
    let kinds: &[(&[u8], &str)] = &[
        (b"\xcf\xfa\xed\xfe\x07\0\0\x01", "Mach-O"),
        (b"MZ\x90\0\x03", "PE file"),
        (b"\0asm\x01\0\0\0", "WebAssembly"),
        (b"!<arch>\nlib.o/", "static library"),
        (b"#!/bin/sh\n", "script"),
        (b"hello, world\n", "text"),
        (&[0; 4096], "zeros"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x01\x02\x03\x04", "unknown"),
    ];
    for (bytes, words) in kinds {
        Damaged(bytes.to_vec()).refused("elf-not-elf", &[words, "cdylib"]);
    }
    for len in [0, 1, 3] {
        Damaged(vec![0x7f; len]).refused("elf-too-short", &["64"]);
    }
    Damaged(GOOD[..63].to_vec()).refused("elf-too-short", &["63 bytes"]);
    let mut random = vec![0xa5; 4096];
    random[..4].copy_from_slice(b"\x7fELF");
    Damaged(random).refused("elf-class", &["EI_CLASS 165"]);
}

#[test]
fn headers_of_another_target_are_named() {
    let good = Damaged::good;
    good().put(4, [1]).refused("elf-class", &["32-bit", "this host is 64-bit"]);
    good().put(5, [2]).refused("elf-byte-order", &["big-endian"]);
    good().put(6, [0]).refused("elf-version", &["EI_VERSION is 0"]);
    good().put(7, [9]).refused("elf-os-abi", &["FreeBSD", "EI_OSABI 9"]);
    good().put(8, [7]).refused("elf-header", &["EI_ABIVERSION"]);
    good().put(12, [1]).refused("elf-header", &["EI_PAD"]);
    assert!(check(&good().put(7, [3]).0).is_ok(), "GNU/Linux");
    for (kind, word) in [(0, "no type"), (1, "object file"), (2, "program"), (4, "core dump")] {
        good().put(16, [kind, 0]).refused("elf-type", &[word, "cdylib"]);
    }
    good().put(18, [243, 0]).refused("elf-machine", &["riscv", std::env::consts::ARCH]);
    for version in [0, 2] {
        good().put(20, [version]).refused("elf-version", &["e_version", "expected 1"]);
    }
    good().put(54, [32, 0]).refused("elf-header", &["e_phentsize is 0x20, expected 56"]);
    good().put(56, [0, 0]).refused("elf-header", &["e_phnum"]);
    good().put(56, [255, 255]).refused("elf-header", &["e_phnum is 0xffff"]);
    good().put(56, [254, 255]).refused("elf-header", &["e_phoff"]);
    for phoff in [0, 8, 65, GOOD.len() as u64, u64::MAX, u64::MAX - 7] {
        good().put(32, phoff.to_le_bytes()).refused("elf-header", &["e_phoff"]);
    }
}

#[test]
fn segments_that_lead_outside_are_refused() {
    let load = |field, value: u64| Damaged::good().in_segment(elf::PT_LOAD, 1, field, value);
    load(OFFSET, 1 << 40).refused("elf-segment", &["PT_LOAD", "p_offset is 0x10000000000", "within the file"]);
    load(OFFSET, u64::MAX - 4095).refused("elf-segment", &["p_offset"]);
    load(FILE_BYTES, u64::MAX).refused("elf-segment", &["p_filesz"]);
    load(MEMORY_BYTES, 1).refused("elf-segment", &["at most p_memsz"]);
    load(MEMORY_BYTES, u64::MAX).refused("elf-segment", &["p_memsz", "address space"]);
    for align in [0, 3, 8, 1 << 22, 1 << 40] {
        load(ALIGN, align).refused("elf-segment", &["p_align", "power of two"]);
    }
    load(OFFSET, 0x1001).refused("elf-segment", &["same remainder"]);
    load(ADDRESS, 0).refused("elf-segment", &["p_vaddr", "behind the segment before it"]);
    load(OFFSET, 0).refused("elf-segment", &["p_offset", "behind the segment before it"]);
    load(FLAGS, 7).refused("elf-writable-code", &["writable and executable"]);
    load(FLAGS, 4).refused("elf-no-code", &["no executable segment"]);
    Damaged::good().in_segment(elf::PT_LOAD, 3, MEMORY_BYTES, 5 << 30).refused("elf-span", &["at most 4294967296"]);
    Damaged::good().in_segment(elf::PT_LOAD, 3, FLAGS, 2).refused("elf-segment", &["p_flags", "readable"]);
}

#[test]
fn other_program_headers_are_checked() {
    let good = Damaged::good;
    good().in_segment(elf::PT_GNU_STACK, 0, FLAGS, 7).refused("elf-executable-stack", &["executable stack", "noexecstack"]);
    good().in_segment(elf::PT_GNU_STACK, 0, 0, 0).refused("elf-executable-stack", &["no PT_GNU_STACK"]);
    good().in_segment(elf::PT_GNU_STACK, 0, 0, 3).refused("elf-program", &["PT_INTERP"]);
    good().in_segment(elf::PT_DYNAMIC, 0, 0, 0).refused("elf-dynamic-count", &["0 dynamic tables"]);
    good().in_segment(elf::PT_GNU_RELRO, 0, 0, 2).refused("elf-dynamic-count", &["2 dynamic tables"]);
    good().in_segment(elf::PT_DYNAMIC, 0, ADDRESS, 1 << 30).refused("elf-segment", &["PT_DYNAMIC", "p_vaddr"]);
    good().in_segment(elf::PT_DYNAMIC, 0, FILE_BYTES, 17).refused("elf-segment", &["whole entries of 16 bytes"]);
    good().in_segment(elf::PT_DYNAMIC, 0, FLAGS, 4).refused("elf-segment", &["PT_DYNAMIC", "p_flags"]);
    good().in_segment(elf::PT_GNU_RELRO, 0, MEMORY_BYTES, 1 << 20).refused("elf-segment", &["PT_GNU_RELRO", "p_memsz"]);
    good().in_segment(elf::PT_NOTE, 0, ADDRESS, 1 << 30).refused("elf-segment", &["PT_NOTE"]);
    good().in_segment(elf::PT_TLS, 0, FILE_BYTES, 1 << 20).refused("elf-segment", &["PT_TLS", "p_filesz"]);
    good().in_segment(elf::PT_TLS, 0, ALIGN, 3).refused("elf-segment", &["PT_TLS", "p_align"]);
    good().in_segment(elf::PT_TLS, 0, MEMORY_BYTES, 2 << 20).refused("elf-tls-size", &["2097152 bytes", "at most 1048576"]);
    let large = C_SOURCE.replace("__thread int per_thread = 7;", "__thread int per_thread; __thread char large[65536];");
    let bytes = cc("large_static_tls", &large, &["-ftls-model=initial-exec"]).unwrap();
    Damaged(bytes).refused("elf-tls-size", &["static reserve", "at most 4096"]);
    let note = Damaged::good();
    let at = note.u64_at(note.segment(elf::PT_NOTE, 0) + 8) as usize;
    note.clone().put(at + 4, u32::MAX.to_le_bytes()).refused("elf-note", &["n_descsz"]);
    note.put(at, u32::MAX.to_le_bytes()).refused("elf-note", &["n_namesz"]);
}

#[test]
fn the_dynamic_table_is_checked() {
    let good = Damaged::good;
    good().tag_value(elf::DT_STRTAB, 1 << 40).refused("elf-dynamic", &["DT_STRTAB"]);
    good().tag_value(elf::DT_STRSZ, u64::MAX).refused("elf-dynamic", &["DT_STRTAB"]);
    good().tag_value(elf::DT_STRSZ, 3).refused("elf-dynamic", &["DT_STRSZ", "first and last byte"]);
    good().tag_value(elf::DT_SYMTAB, 12).refused("elf-dynamic", &["DT_SYMTAB"]);
    good().tag_value(elf::DT_SYMENT, 16).refused("elf-dynamic", &["DT_SYMENT is 0x10, expected 24"]);
    good().tag_value(elf::DT_GNU_HASH, u64::MAX).refused("elf-dynamic", &["DT_GNU_HASH"]);
    good().tag_value(elf::DT_RELA, u64::MAX - 7).refused("elf-dynamic", &["DT_RELA"]);
    good().tag_value(elf::DT_RELASZ, 25).refused("elf-dynamic", &["DT_RELASZ", "whole entries"]);
    good().tag_value(elf::DT_RELAENT, 16).refused("elf-dynamic", &["DT_RELAENT"]);
    good().tag_value(elf::DT_RELACOUNT, 1000).refused("elf-dynamic", &["DT_RELACOUNT"]);
    good().tag_value(elf::DT_PLTREL, 17).refused("elf-dynamic", &["DT_PLTREL is 0x11, expected 7"]);
    good().tag_value(elf::DT_JMPREL, 1).refused("elf-dynamic", &["DT_JMPREL"]);
    good().tag_value(elf::DT_PLTGOT, 0).refused("elf-dynamic", &["DT_PLTGOT"]);
    good().tag_value(elf::DT_INIT, 0x10).refused("elf-dynamic", &["DT_INIT", "function"]);
    good().tag_value(elf::DT_VERSYM, u64::MAX).refused("elf-dynamic", &["DT_VERSYM"]);
    good().tag_value(elf::DT_VERNEED, u64::MAX - 3).refused("elf-dynamic", &["DT_VERNEED"]);
    good().tag_value(elf::DT_VERNEEDNUM, 200).refused("elf-versions", &["DT_VERNEEDNUM"]);
    good().retag(elf::DT_RELASZ, elf::DT_DEBUG).refused("elf-dynamic-missing", &["DT_RELASZ is missing", "DT_RELA"]);
    good().retag(elf::DT_SYMTAB, elf::DT_DEBUG).refused("elf-dynamic-missing", &["DT_SYMTAB"]);
    good().retag(elf::DT_GNU_HASH, elf::DT_DEBUG).refused("elf-dynamic-missing", &["DT_GNU_HASH", "DT_HASH"]);
    good().retag(elf::DT_FINI, elf::DT_INIT).refused("elf-dynamic-twice", &["DT_INIT is there twice"]);
    good().retag(elf::DT_FINI, elf::DT_TEXTREL).refused("elf-text-relocations", &["DT_TEXTREL", "-fPIC"]);
    good().retag(elf::DT_FINI, elf::DT_AUXILIARY).refused("elf-unsupported", &["DT_AUXILIARY"]);
    good().retag(elf::DT_FINI, elf::DT_FLAGS).tag_value(elf::DT_FLAGS, 4).refused("elf-text-relocations", &["DF_TEXTREL"]);
    let flags_1 = |flags: u64| good().retag(elf::DT_FINI, elf::DT_FLAGS_1).tag_value(elf::DT_FLAGS_1, flags);
    flags_1(elf::DF_1_PIE.0).refused("elf-program", &["DF_1_PIE"]);
    flags_1(elf::DF_1_NOOPEN.0).refused("elf-unsupported", &["DF_1_NOOPEN"]);
    // Without its end the table would go on in the next section.
    let unended = good();
    let (start, len) = (unended.segment(elf::PT_DYNAMIC, 0) + FILE_BYTES, unended.tag(elf::DT_NULL));
    let len = len as u64 - unended.u64_at(unended.segment(elf::PT_DYNAMIC, 0) + OFFSET);
    let unended = unended.put(start, len.to_le_bytes()).put(start + 8, len.to_le_bytes());
    unended.refused("elf-dynamic-missing", &["DT_NULL"]);
}

#[test]
fn search_paths_and_needed_paths_are_refused() {
    for (number, path) in ["/opt/lib", "lib", "$ORIGIN"].into_iter().enumerate() {
        for tags in ["--enable-new-dtags", "--disable-new-dtags"] {
            let bytes = cc(&format!("rpath_{number}{tags}"), C_SOURCE, &[&format!("-Wl,-rpath,{path},{tags}")]).unwrap();
            let tag = if tags.starts_with("--enable") { "DT_RUNPATH" } else { "DT_RPATH" };
            Damaged(bytes).refused("elf-search-path", &[tag, path, "-rpath"]);
        }
    }
    // A library without a soname, linked by its path, is needed by its path.
    let directory = tempfile::tempdir().unwrap();
    cc_in(directory.path(), "nameless", "int nameless(void) { return 1; }", &[]).unwrap();
    let library = directory.path().join("nameless.so");
    let bytes = cc("by_path", C_SOURCE, &["-Wl,--no-as-needed", library.to_str().unwrap()]).unwrap();
    Damaged(bytes).refused("elf-needed", &[library.to_str().unwrap(), "soname"]);
}

#[test]
fn symbols_and_their_tables_are_checked() {
    let good = Damaged::good();
    let hash = good.at_tag(elf::DT_GNU_HASH);
    good.clone().put(hash, [0; 4]).refused("elf-hash", &["bucket count"]);
    good.clone().put(hash + 8, 3_u32.to_le_bytes()).refused("elf-hash", &["bloom filter size", "power of two"]);
    good.clone().put(hash + 8, (1_u32 << 31).to_le_bytes()).refused("elf-dynamic", &["DT_GNU_HASH"]);
    good.clone().put(hash + 12, [99]).refused("elf-hash", &["shift"]);
    good.clone().put(hash + 16, [0; 8]).refused("elf-hash", &["bloom filter"]);
    let symbol = |name: &str| good.symbol(name);
    good.clone().put(symbol("exit"), u32::MAX.to_le_bytes()).refused("elf-symbol", &["st_name"]);
    good.clone().put(symbol("exit") + 4, [2]).refused("elf-symbol", &["st_info", "undefined"]);
    good.clone().put(symbol("exit") + 5, [2]).refused("elf-symbol", &["st_other", "undefined"]);
    good.clone().put(symbol("ends") + 8, u64::MAX.to_le_bytes()).refused("elf-symbol", &["st_value", "within the library"]);
    good.clone().put(symbol("ends") + 8, [0; 8]).refused("elf-symbol", &["st_value", "function"]);
    let resolver = good.u64_at(symbol("indirect") + 8) + 1;
    good.clone().put(symbol("indirect") + 8, resolver.to_le_bytes()).refused("elf-symbol", &["st_value", "function"]);
    good.clone().put(symbol("per_thread") + 8, [0xff; 8]).refused("elf-symbol", &["PT_TLS"]);
    let versym = good.at_tag(elf::DT_VERSYM);
    good.clone().put(versym + 2, [0xff, 0x7f]).refused("elf-versions", &["0x7fff"]);
    let verneed = good.at_tag(elf::DT_VERNEED);
    good.clone().put(verneed, [2]).refused("elf-versions", &["vn_version"]);
    good.clone().put(verneed + 4, [1]).refused("elf-versions", &["vn_file", "DT_NEEDED"]);
    good.clone().put(verneed + 8, u32::MAX.to_le_bytes()).refused("elf-versions", &["offset"]);
    good.clone().put(verneed + 12, [16]).refused("elf-versions", &[]);
    good.clone().put(verneed + 16, [0; 4]).refused("elf-versions", &["vna_name", "hash"]);
}

#[test]
fn circles_in_hash_tables_end() {
    let good = Damaged(cc("circle", C_SOURCE, &["-Wl,--hash-style=sysv"]).unwrap());
    let hash = good.at_tag(elf::DT_HASH);
    let word = |at: usize| u32::from_le_bytes(good.0[at..at + 4].try_into().unwrap());
    let buckets = word(hash) as usize;
    let first = (0..buckets).map(|bucket| word(hash + 8 + 4 * bucket)).find(|symbol| *symbol != 0).unwrap();
    let chain = hash + 8 + 4 * buckets + 4 * first as usize;
    good.clone().put(chain, first.to_le_bytes()).refused("elf-hash", &["DT_HASH", "circle"]);
    good.clone().put(chain, u32::MAX.to_le_bytes()).refused("elf-hash", &["nchain"]);
    good.put(hash + 4, u32::MAX.to_le_bytes()).refused("elf-dynamic", &["DT_HASH"]);
}

#[test]
fn relocations_are_checked() {
    let good = Damaged::good();
    let rela = good.at_tag(elf::DT_RELA);
    let relocation = |at: usize, value: u64| good.clone().put(rela + at, value.to_le_bytes());
    // The first one, of the array of start functions.
    relocation(0, 0).refused("elf-relocation", &["DT_RELA entry 0", "r_offset", "writable segment"]);
    relocation(0, u64::MAX - 3).refused("elf-relocation", &["r_offset"]);
    relocation(16, 0).refused("elf-start-function", &["DT_INIT_ARRAY entry 0", "does not point to a function"]);
    relocation(16, 1 << 40).refused("elf-relocation", &["r_addend"]);
    // The second one is of our own function, which the unwind table knows.
    let (offset, target) = (good.u64_at(rela), good.u64_at(rela + 24 + 16));
    relocation(24 + 16, target + 5).refused("elf-start-function", &["entry 1", "does not point to a function"]);
    relocation(0, offset + 4).refused("elf-relocation", &["whole entry of the array"]);
    relocation(0, good.u64_at(good.segment(elf::PT_DYNAMIC, 0) + ADDRESS) + 24).refused("elf-relocation", &["dynamic table"]);
    relocation(8, 6 << 32 | 8).refused("elf-relocation", &["no symbol"]);
    for kind in [2, 5, 10, 999] {
        relocation(8, kind).refused("elf-relocation-type", &[&format!("type {kind}")]);
    }
    relocation(8, 6).refused("elf-relocation", &["DT_RELACOUNT says so"]);
    let plt = good.at_tag(elf::DT_JMPREL);
    good.clone().put(plt + 12, u32::MAX.to_le_bytes()).refused("elf-relocation", &["number of a symbol"]);
    good.clone().put(plt + 12, [0; 4]).refused("elf-relocation", &["number of a symbol"]);
    good.clone().put(plt + 8, [8]).refused("elf-relocation", &["procedure linkage table"]);
    let slot = good.u64_at(plt).to_le_bytes();
    good.clone().put(plt + 24, slot).refused("elf-relocation", &["a slot of its own"]);
    let size = good.u64_at(good.tag(elf::DT_INIT_ARRAYSZ) + 8);
    good.clone().tag_value(elf::DT_INIT_ARRAYSZ, size - 1).refused("elf-dynamic", &["DT_INIT_ARRAYSZ"]);
}

#[test]
fn an_array_longer_than_its_relocations_is_refused() {
    // The word behind the array of end functions belongs to constants that are not relocated.
    let source = format!("{C_SOURCE}\nvolatile const struct {{ void *pointer; long number; }} constant = {{names, 7}};");
    let good = Damaged(cc("long_array", &source, &["-O1"]).unwrap());
    check(&good.0).unwrap();
    let size = good.u64_at(good.tag(elf::DT_FINI_ARRAYSZ) + 8);
    let error = check(&good.tag_value(elf::DT_FINI_ARRAYSZ, size + 64).0).unwrap_err();
    assert_eq!(error.code(), "elf-start-function", "{error}");
}

#[test]
fn packed_relocations_are_checked() {
    let Some(bytes) = cc("packed", C_SOURCE, &["-Wl,-z,pack-relative-relocs"]) else { return };
    let good = Damaged(bytes);
    let relr = good.at_tag(elf::DT_RELR);
    good.clone().put(relr, 1_u64.to_le_bytes()).refused("elf-relocation", &["DT_RELR", "before the first bitmap"]);
    good.clone().put(relr, 0x10_u64.to_le_bytes()).refused("elf-relocation", &["DT_RELR", "writable segment"]);
    good.clone().put(relr, (u64::MAX - 1).to_le_bytes()).refused("elf-relocation", &["DT_RELR"]);
    good.clone().put(relr + 8, u64::MAX.to_le_bytes()).refused("elf-relocation", &["DT_RELR"]);
    good.tag_value(elf::DT_RELRENT, 16).refused("elf-dynamic", &["DT_RELRENT"]);
}

#[test]
fn the_root_must_be_a_public_object() {
    let root = "const void *const qtasks_plugin_root_1[] = {functions, names, &started};";
    let with = |name: &str, other: &str| Damaged(cc(name, &C_SOURCE.replace(root, other), &["-O1"]).unwrap());
    with("root_missing", "").refused("elf-no-root", &["qtasks_plugin_root_1", "export_plugin!"]);
    with("root_function", "void qtasks_plugin_root_1(void) {}").refused("elf-root", &["a function, expected a data object"]);
    let imported = "extern const void *qtasks_plugin_root_1[]; const void *uses(void) { return qtasks_plugin_root_1; }";
    with("root_imported", imported).refused("elf-root", &["imported, expected defined"]);
    with("root_weak", &format!("__attribute__((weak)) {root}")).refused("elf-root", &["weak, expected global"]);
    with("root_tls", "__thread long qtasks_plugin_root_1;").refused("elf-root", &["thread-local"]);
    with("root_small", "const char qtasks_plugin_root_1 = 1;").refused("elf-root", &["too small"]);
    with("root_hidden", &format!("__attribute__((visibility(\"hidden\"))) {root}")).refused("elf-no-root", &[]);
    with("root_protected", &format!("__attribute__((visibility(\"protected\"))) {root}")).refused("elf-root", &["visibility"]);
    let good = Damaged::good();
    let symbol = good.symbol("qtasks_plugin_root_1");
    good.put(symbol + 16, (1_u64 << 40).to_le_bytes()).refused("elf-root", &["outside the segments"]);
}

#[test]
fn every_cut_that_loses_something_is_refused() {
    let last = (0..4).map(|number| Damaged::good().segment(elf::PT_LOAD, number));
    let end =
        last.map(|at| Damaged::good().u64_at(at + OFFSET) + Damaged::good().u64_at(at + FILE_BYTES)).max().unwrap() as usize;
    for len in (0..end).step_by(64).chain([63, 64, 65, 119, 120, end - 1]) {
        check(&GOOD[..len]).expect_err("a cut within the segments");
    }
    assert_eq!(check(&GOOD[..end]), check(&GOOD), "what lies behind the segments is not loaded");
}

/// Numbers that look random: xorshift (Marsaglia 2003).
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

#[test]
fn no_bytes_make_it_panic() {
    // Overflow checks are on in tests, so that a sum that wraps around is a panic here, too.
    let good = Damaged::good();
    let places =
        [0..64 + 56 * usize::from(good.0[56]), good.tag(elf::DT_NEEDED)..good.tag(elf::DT_NULL) + 16, 0..0x1000, 0..good.0.len()];
    let words: [&[u8]; 6] = [&[0; 8], &[0xff; 8], &[0xff; 4], &[0, 0, 0, 0x80], &[0xff, 0xff, 0xff, 0x7f], &[0x7f, 0xff]];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for round in 0..40_000 {
        let mut bytes = good.0.clone();
        let place = &places[round % places.len()];
        for _ in 0..1 + next(&mut state) % 3 {
            let at = place.start + next(&mut state) % place.len();
            let word = words[next(&mut state) % words.len()];
            match (round % 3, bytes.get_mut(at..at + word.len())) {
                (0, Some(target)) => target.copy_from_slice(word),
                _ => bytes[at] ^= 1 << (next(&mut state) % 8),
            }
        }
        if round % 16 == 0 {
            bytes.truncate(next(&mut state) % good.0.len());
        }
        if let Err(error) = check(&bytes) {
            assert!(error.to_string().contains("expected") || error.to_string().contains(';'), "{error}");
        }
    }
}
