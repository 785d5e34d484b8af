//! What reads foreign bytes, for the fuzz targets in `fuzz/`: each function takes any bytes and must not panic.

use qtasks_plugin_api::{Directive, ErrorBody, bounds};

use crate::plugin::process::frame;
use crate::plugin::{elf, manifest};
use crate::task::Task;

/// A library file, as the static check reads it.
pub fn static_check(bytes: &[u8]) {
    let _ = std::hint::black_box(elf::check(bytes));
}

/// A library file, as the manifest reader reads it.
pub fn manifest(bytes: &[u8]) {
    let _ = std::hint::black_box(manifest::read(bytes));
}

/// What a plugin's process sends, until it is nonsense.
pub fn frames(mut bytes: &[u8]) {
    while let Ok(frame) = frame::read(&mut bytes) {
        let _ = std::hint::black_box(frame::decode_outcome(&frame.payload));
        let _ = std::hint::black_box(frame::decode_call(&frame.payload).map(|call| call.entry));
    }
}

/// A payload, and a task line.
pub fn json(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = std::hint::black_box(Task::from_json(text));
    if bounds::check_json(text).is_ok() {
        let _ = std::hint::black_box(serde_json::from_str::<Directive>(text));
        let _ = std::hint::black_box(serde_json::from_str::<ErrorBody>(text));
        // Within the bounds a value may be built, and dropped without overflowing the stack.
        let _ = std::hint::black_box(serde_json::from_str::<serde_json::Value>(text));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Each file of a corpus, whole and cut off at some hundred places.
    fn run_corpus(target: &str, run: impl Fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut files = 0;
        for entry in std::fs::read_dir(&directory).expect("the corpus is there") {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
            run(&bytes);
            let step = bytes.len().div_ceil(300).max(1);
            for end in (0..bytes.len()).step_by(step) {
                run(&bytes[..end]);
            }
            files += 1;
        }
        assert!(files > 0, "the corpus of {target} is empty");
    }

    #[test]
    fn the_corpora_pass_through_their_targets() {
        run_corpus("static_check", super::static_check);
        run_corpus("manifest", super::manifest);
        run_corpus("frames", super::frames);
        run_corpus("json", super::json);
    }
}
