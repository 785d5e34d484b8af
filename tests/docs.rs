//! ARCHITECTURE.md cannot rot: what it names is there.

use std::path::Path;

use crate::support::artifacts::ROOT;

/// The texts in backticks outside of code blocks.
fn quoted(markdown: &str) -> Vec<&str> {
    let mut in_block = false;
    let lines = markdown.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !fence && !in_block
    });
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Whether a quoted text is meant as a path of the repository: it has a slash or one of our endings, and nothing that a path
/// has not, such as a space, a placeholder, or the root of another file system.
fn is_path(text: &str) -> bool {
    let plain = text.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
    let ending = [".rs", ".toml", ".md"].iter().any(|ending| text.ends_with(ending));
    plain && !text.starts_with('/') && (text.contains('/') || ending)
}

#[test]
fn every_path_that_the_architecture_names_exists() {
    let root = Path::new(ROOT);
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let paths: Vec<&str> = quoted(&text).into_iter().filter(|text| is_path(text)).collect();
    assert!(!paths.is_empty(), "ARCHITECTURE.md names no path");
    let gone: Vec<&&str> = paths.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names what is not there (paths are from the root of the repository): {gone:?}");
}

#[test]
fn a_path_is_told_from_other_quoted_words() {
    let text = "`host/src/lib.rs` and `App`, `/dev/null`, `plugins/NAME x`\n```\n`in/a/block`\n```\n`README.md` `target/*`";
    assert_eq!(quoted(text).into_iter().filter(|text| is_path(text)).collect::<Vec<_>>(), ["host/src/lib.rs", "README.md"]);
}
