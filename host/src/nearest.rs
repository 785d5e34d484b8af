//! "Did you mean …": the nearest known name to one that was mistyped.

/// `"; did you mean `x`?"`, or nothing when no known name is near.
pub(crate) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    const NEAR: f64 = 0.75;
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(found, name), name))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

/// The same for serde's words "unknown field `x`, expected one of `a`, `b`": it names all that is known.
pub(crate) fn nearest_in(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `")) else {
        return String::new();
    };
    let mut names = rest.split('`').step_by(2);
    let found = names.next().unwrap_or_default();
    nearest(found, names)
}

#[cfg(test)]
mod tests {
    use super::{nearest, nearest_in};

    #[test]
    fn the_nearest_name_is_offered_and_a_strange_one_is_not() {
        assert_eq!(nearest("fallbck", ["fallback", "notify"]), "; did you mean `fallback`?");
        assert_eq!(nearest("zzz", ["fallback", "notify"]), "");
        let words = "unknown field `prioritty`, expected one of `enabled`, `priority`, `config`";
        assert_eq!(nearest_in(words), "; did you mean `priority`?");
        assert_eq!(nearest_in("invalid type: string"), "");
    }
}
