//! "Did you mean …": the nearest known name to one that was mistyped.

use crate::trigger::{Trigger, same_text};

/// `"; did you mean `x`?"`, or nothing when no known name is near.
#[must_use]
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|name| (likeness(found, name), name))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

/// From this likeness on, a name may be meant.
const NEAR: f64 = 0.75;

/// How alike two names are, from 0 to 1: Jaro's measure, and Winkler's more for a common beginning. In constants, too.
const fn likeness(found: &str, known: &str) -> f64 {
    /// A name has a bit for each of its bytes.
    const LONGEST: usize = u128::BITS as usize;
    let (found, known) = (found.as_bytes(), known.as_bytes());
    let longer = if found.len() > known.len() { found.len() } else { known.len() };
    if found.is_empty() || known.is_empty() || longer > LONGEST {
        return 0.0;
    }
    let apart = (longer / 2).saturating_sub(1);
    let (mut in_found, mut in_known, mut common) = (0u128, 0u128, 0);
    let mut at = 0;
    while at < found.len() {
        let mut other = at.saturating_sub(apart);
        while other < known.len() && other <= at + apart {
            if found[at] == known[other] && in_known >> other & 1 == 0 {
                in_found |= 1 << at;
                in_known |= 1 << other;
                common += 1;
                break;
            }
            other += 1;
        }
        at += 1;
    }
    if common == 0 {
        return 0.0;
    }
    let mut swapped = 0;
    while in_found != 0 {
        if found[in_found.trailing_zeros() as usize] != known[in_known.trailing_zeros() as usize] {
            swapped += 1;
        }
        in_found &= in_found - 1;
        in_known &= in_known - 1;
    }
    let mut begins = 0;
    while begins < 4 && begins < found.len() && begins < known.len() && found[begins] == known[begins] {
        begins += 1;
    }
    let common = common as f64;
    let kept = common - (swapped / 2) as f64;
    let jaro = (common / found.len() as f64 + common / known.len() as f64 + kept / common) / 3.0;
    jaro + 0.1 * begins as f64 * (1.0 - jaro)
}

/// The trigger whose name is most like one that is none. In constants, too.
pub(crate) const fn likest_trigger(found: &str) -> Option<Trigger> {
    let (mut likest, mut most) = (None, NEAR);
    let mut index = 0;
    while index < Trigger::COUNT {
        let trigger = Trigger::ALL[index];
        let likeness = likeness(found, trigger.name()) + if lacks_words(found, trigger.name()) { 1.0 } else { 0.0 };
        if likeness >= most {
            (likest, most) = (Some(trigger), likeness);
        }
        index += 1;
    }
    likest
}

/// The same for a name that is no trigger's: one where words were left out is nearest, and where none is near, it says where all are.
#[must_use]
pub fn nearest_trigger(found: &str) -> String {
    const FEW: usize = 3;
    let known = || Trigger::ALL.iter().map(|trigger| trigger.name());
    let longer: Vec<String> = known().filter(|name| lacks_words(found, name)).map(|name| format!("`{name}`")).collect();
    if (1..=FEW).contains(&longer.len()) {
        return format!("; did you mean {}?", longer.join(" or "));
    }
    let near = nearest(found, known());
    if near.is_empty() { "; docs/triggers.md lists all triggers".to_owned() } else { near }
}

/// Whether all words of `found` stand in `name`, in their order.
const fn lacks_words(found: &str, name: &str) -> bool {
    let (mut word, mut left) = first_word(found);
    let mut rest = Some(name);
    while let Some(name) = rest {
        let (known, after) = first_word(name);
        if same_text(word, known) {
            let Some(next) = left else { return true };
            (word, left) = first_word(next);
        }
        rest = after;
    }
    false
}

/// The word that a name begins with, and the others.
const fn first_word(name: &str) -> (&str, Option<&str>) {
    let mut end = 0;
    while end < name.len() && name.as_bytes()[end] != b'_' {
        end += 1;
    }
    let (word, rest) = name.split_at(end);
    (word, if rest.is_empty() { None } else { Some(rest.split_at(1).1) })
}

/// The same for serde's words "unknown field `x`, expected one of `a`, `b`": it names all that is known.
#[must_use]
pub fn nearest_in(message: &str) -> String {
    if let Some(found) = message.strip_prefix("unknown trigger `").and_then(|rest| rest.split('`').next()) {
        return nearest_trigger(found);
    }
    let Some(rest) = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `")) else {
        return String::new();
    };
    let mut names = rest.split('`').step_by(2);
    let found = names.next().unwrap_or_default();
    nearest(found, names)
}

#[cfg(test)]
mod tests {
    use super::{likeness, nearest, nearest_in, nearest_trigger};

    #[test]
    fn likeness_is_that_of_jaro_and_winkler() {
        for (found, known, expected) in [
            ("martha", "marhta", 0.961),
            ("dwayne", "duane", 0.840),
            ("dixon", "dicksonx", 0.813),
            ("same", "same", 1.0),
            ("abc", "xyz", 0.0),
            ("", "x", 0.0),
            (&"x".repeat(129), "x", 0.0),
        ] {
            let likeness = likeness(found, known);
            assert!((likeness - expected).abs() < 0.001, "{found} {known}: {likeness}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_and_a_strange_one_is_not() {
        assert_eq!(nearest("fallbck", ["fallback", "notify"]), "; did you mean `fallback`?");
        assert_eq!(nearest("zzz", ["fallback", "notify"]), "");
        let words = "unknown field `prioritty`, expected one of `enabled`, `priority`, `config`";
        assert_eq!(nearest_in(words), "; did you mean `priority`?");
        assert_eq!(nearest_in("invalid type: string"), "");
        assert_eq!(nearest_in("unknown trigger `worker_strat`"), "; did you mean `worker_start`?");
    }

    #[test]
    fn a_trigger_without_some_of_its_words_is_known_and_a_strange_one_is_told_where_they_stand() {
        assert_eq!(nearest_trigger("task_executor_run_task_error"), "; did you mean `task_executor_run_task_trigger_error`?");
        assert_eq!(
            nearest_trigger("task_error"),
            "; did you mean `worker_task_error_retry` or `task_executor_run_task_trigger_error`?"
        );
        assert_eq!(nearest_trigger("oops"), "; docs/triggers.md lists all triggers");
    }
}
