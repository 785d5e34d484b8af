//! "Did you mean …": the nearest known name to one that was mistyped.

use qtasks_plugin_api::Trigger;

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

/// The same for a name that is no trigger's: one where words were left out is nearest, and where none is near, it says where all are.
pub(crate) fn nearest_trigger(found: &str) -> String {
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
fn lacks_words(found: &str, name: &str) -> bool {
    let mut words = name.split('_');
    found.split('_').all(|word| words.any(|known| known == word))
}

/// The same for serde's words "unknown field `x`, expected one of `a`, `b`": it names all that is known.
pub(crate) fn nearest_in(message: &str) -> String {
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
    use super::{nearest, nearest_in, nearest_trigger};

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
