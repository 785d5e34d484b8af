use super::*;

fn subject(plugin: &str, digit: &str) -> Subject {
    let digest = serde_json::from_value(digit.repeat(64).into()).expect("a digest");
    Subject { digest, path: format!("/plugins/lib{plugin}.so").into(), plugin: plugin.to_owned() }
}

#[test]
fn a_quarantine_is_lifted_by_a_whole_name_or_by_eight_digits_of_the_digest() {
    let state = tempfile::tempdir().expect("a directory");
    let verdicts = Verdicts::new(state.path());
    let quarantine = |plugin, digit| {
        verdicts.quarantine(&subject(plugin, digit), QuarantineKind::Crash, "it crashed".to_owned()).expect("room");
    };
    quarantine("a", "b");
    quarantine("bbbbbbbb", "a");
    let lifted = |which| {
        let found = verdicts.clear(Some(which)).expect("our own files");
        found.into_iter().map(|entry| entry.plugin).collect::<Vec<_>>()
    };
    for nobody in ["", "b", "bbbbbbb", "aaaaaaa", "A"] {
        assert_eq!(lifted(nobody), Vec::<String>::new(), "{nobody:?}");
    }
    assert_eq!(lifted("bbbbbbbb"), ["bbbbbbbb"], "a name comes before a digest");
    assert_eq!(lifted("bbbbbbbb"), ["a"]);
}

#[test]
fn what_is_in_quarantine_is_listed_by_path_with_how_often_it_was_seen_and_when() {
    let state = tempfile::tempdir().expect("a directory");
    let verdicts = Verdicts::new(state.path());
    let quarantine = |plugin: &str, digit: &str| {
        verdicts.quarantine(&subject(plugin, digit), QuarantineKind::SideEffect, "seen".to_owned()).expect("room");
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
    let begun = now();
    // The first letters of the digests are in another order than those of the paths, both ways.
    for (plugin, digit) in [("c", "1"), ("a", "8"), ("e", "0"), ("b", "3"), ("d", "9"), ("f", "5")] {
        quarantine(plugin, digit);
    }
    quarantine("b", "3");
    // A later version of the host probes it again, and finds it no better.
    verdicts.begin(&subject("d", "9")).expect("room");
    quarantine("d", "9");
    let found = verdicts.quarantined().expect("our own directory");
    let seen: Vec<_> = found.iter().map(|entry| (&*entry.plugin, entry.count)).collect();
    assert_eq!(seen, [("a", 1), ("b", 2), ("c", 1), ("d", 2), ("e", 1), ("f", 1)]);
    assert!(found.iter().all(|entry| (begun..=now()).contains(&entry.since)), "{found:?}");
}

/// Other harm was done, whoever saw it; this kind may be admitted, and then this host must have compared the layout.
#[test]
fn side_effects_are_those_that_this_hosts_probe_saw() {
    let state = tempfile::tempdir().expect("a directory");
    let verdicts = Verdicts::new(state.path());
    for (kind, holds) in [(QuarantineKind::SideEffect, false), (QuarantineKind::Crash, true)] {
        let subject = subject("a", "d");
        verdicts.quarantine(&subject, kind, "seen".to_owned()).expect("room");
        assert!(matches!(verdicts.look(&subject.digest), Verdict::Quarantined(entry) if entry.kind == kind));
        let entry = verdicts.read(&verdicts.file(&subject.digest)).expect("it was written");
        verdicts.write(Entry { host: "another".to_owned(), ..entry }).expect("room");
        assert_eq!(matches!(verdicts.look(&subject.digest), Verdict::Quarantined(_)), holds, "{kind:?}");
    }
}

#[test]
fn a_kind_of_a_later_version_is_a_quarantine_too() {
    let state = tempfile::tempdir().expect("a directory");
    let (verdicts, subject) = (Verdicts::new(state.path()), subject("a", "e"));
    verdicts.quarantine(&subject, QuarantineKind::Crash, "it sang".to_owned()).expect("room");
    let path = verdicts.file(&subject.digest);
    let text = fs::read_to_string(&path).expect("it was written").replace(r#""crash""#, r#""singing""#);
    fs::write(&path, text).expect("room");
    let Verdict::Quarantined(entry) = verdicts.look(&subject.digest) else { panic!("it is in quarantine") };
    assert_eq!((entry.kind, &*entry.evidence), (QuarantineKind::Other, "it sang"));
}

/// A plugin writes some of the evidence, such as the error with which it does not start again.
#[test]
fn evidence_without_end_is_a_quarantine_too() {
    let state = tempfile::tempdir().expect("a directory");
    let (verdicts, subject) = (Verdicts::new(state.path()), subject("a", "f"));
    for text in ["it sang: ", "\u{1}", "\u{10ffff}"] {
        let given = verdicts.quarantine(&subject, QuarantineKind::RepeatedFailure, text.repeat(1 << 20)).expect("room");
        let Verdict::Quarantined(entry) = verdicts.look(&subject.digest) else { panic!("it is in quarantine") };
        assert!(entry.evidence == given.evidence && entry.evidence.starts_with(text), "{}", entry.evidence);
    }
}

#[test]
fn what_a_killed_host_left_behind_goes_and_what_another_may_be_writing_stays() {
    let state = tempfile::tempdir().expect("a directory");
    let verdicts = Verdicts::new(state.path());
    let good = |digit| verdicts.good(&subject("a", digit)).expect("room");
    good("a");
    let aged = |name: &str, minutes: u64| {
        let path = verdicts.directory.join(name);
        let file = fs::File::create(&path).expect("our own directory");
        file.set_modified(SystemTime::now() - Duration::from_secs(minutes * 60)).expect("our own file");
        path
    };
    let [old, young, other] = [aged("b.1.1.tmp", 70), aged("b.1.2.tmp", 50), aged("b.txt", 70)];
    good("c");
    assert!(!old.exists() && young.exists() && other.exists());
    assert_eq!(verdicts.files().len(), 2);
}

#[test]
fn of_too_many_verdicts_the_oldest_good_ones_go() {
    let state = tempfile::tempdir().expect("a directory");
    let verdicts = Verdicts::new(state.path());
    let aged = |path: &Path, minutes: u64| {
        let file = fs::OpenOptions::new().create(true).append(true).open(path).expect("our own file");
        file.set_modified(SystemTime::now() - Duration::from_secs(minutes * 60)).expect("our own file");
    };
    let [harmful, old, young, last] = ["a", "b", "c", "d"].map(|digit| subject("p", digit));
    verdicts.quarantine(&harmful, QuarantineKind::Crash, "seen".to_owned()).expect("room");
    for (subject, minutes) in [(&old, 50), (&young, 10)] {
        verdicts.good(subject).expect("room");
        aged(&verdicts.file(&subject.digest), minutes);
    }
    aged(&verdicts.file(&harmful.digest), 60);
    for number in 0..MAX_ENTRIES {
        aged(&verdicts.directory.join(format!("{number}.json")), 20 + number as u64 % 20);
    }
    verdicts.good(&last).expect("room");
    let is_left = |subject: &Subject| verdicts.file(&subject.digest).exists();
    assert_eq!([&harmful, &old, &young, &last].map(is_left), [true, false, true, true]);
    assert!(verdicts.files().len() < MAX_ENTRIES, "the next ones have room");
}

#[test]
fn a_probe_is_given_up_by_who_began_it_and_is_nobodys_failure_while_its_process_may_live() {
    let state = tempfile::tempdir().expect("a directory");
    let (verdicts, subject) = (Verdicts::new(state.path()), subject("a", "c"));
    let unfinished = |verdict| matches!(verdict, Verdict::Quarantined(entry) if entry.kind == QuarantineKind::Unfinished);
    let by = |change: &dyn Fn(&mut ProcessMark)| {
        verdicts.begin(&subject).expect("room");
        let mut entry = verdicts.read(&verdicts.file(&subject.digest)).expect("it was written");
        change(entry.process.as_mut().expect("this process"));
        verdicts.write(entry).expect("room");
        verdicts.look(&subject.digest)
    };
    assert!(matches!(by(&|_| {}), Verdict::Unknown), "this process is at it");
    assert!(unfinished(by(&|process| process.started += 1)), "it has ended");
    assert!(unfinished(by(&|process| process.boot = "another".to_owned())), "the machine went down");
    let of_a_container = |process: &mut ProcessMark| (process.started, process.namespace) = (1, "pid:[1]".into());
    assert!(matches!(by(&of_a_container), Verdict::Unknown), "nobody here can tell");
    verdicts.give_up_probes();
    assert!(verdicts.file(&subject.digest).exists(), "it is another process'");
    by(&|_| {});
    verdicts.give_up_probes();
    assert!(!verdicts.file(&subject.digest).exists());
    verdicts.quarantine(&subject, QuarantineKind::Crash, "another host saw it".to_owned()).expect("room");
    verdicts.forget(&subject);
    assert!(matches!(verdicts.look(&subject.digest), Verdict::Quarantined(_)), "it stays");
}
