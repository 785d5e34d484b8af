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

/// Every string that a function called `code` gives, in all of the plugin room.
fn codes(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            codes(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("Rust");
            for body in source.split("fn code(&self) -> &'static str {").skip(1) {
                let body = body.split("\n    }").next().unwrap_or_default();
                found.extend(body.split('"').skip(1).step_by(2).map(str::to_owned));
            }
        }
    }
}

#[test]
fn every_code_of_a_refusal_has_its_entry_for_operators_and_every_entry_its_code() {
    let root = Path::new(ROOT);
    let mut known = Vec::new();
    codes(&root.join("host/src/plugin"), &mut known);
    assert!(known.len() > 40, "the codes are found in the source: {known:?}");
    let page = std::fs::read_to_string(root.join("docs/refused.md")).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let entries: Vec<&str> =
        rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let without_entry: Vec<&String> = known.iter().filter(|code| !entries.contains(&code.as_str())).collect();
    let without_code: Vec<&&str> = entries.iter().filter(|entry| !known.iter().any(|code| code == **entry)).collect();
    assert!(without_entry.is_empty(), "docs/refused.md has no entry for {without_entry:?}");
    assert!(without_code.is_empty(), "docs/refused.md has entries for codes that are gone: {without_code:?}");
}
