//! The fault suite: what a plugin can do wrong, and what the host does then. Each module begins with its table of faults, from
//! which its tests are made and `docs/faults.md` is rendered; so neither can have a fault that the other has not.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::support::artifacts::ROOT;
use crate::support::host::Ended;
use crate::support::{Host, Place, TestApp, assert_says};

/// A fault and what becomes of it. Its test is a function of that name.
struct Row {
    module: &'static str,
    test: &'static str,
    fault: &'static str,
    outcome: &'static str,
}

/// Makes the table `ROWS`, and a test from the function that each row is named by: a row without a function does not compile, and
/// a function without a row is dead code.
macro_rules! faults {
    ($($test:ident: $fault:literal => $outcome:literal;)*) => {
        pub(super) const ROWS: &[crate::faults::Row] =
            &[$(crate::faults::Row { module: module_path!(), test: stringify!($test), fault: $fault, outcome: $outcome }),*];

        mod test {
            $(#[test]
            fn $test() {
                super::$test();
            })*
        }
    };
}

mod at_load;
mod in_c;
mod in_handlers_here;
mod in_handlers_isolated;
mod in_the_directory;
mod replacements;
mod restarts;
mod state;
mod stops;

/// The table, part by part.
const PARTS: &[(&str, &[Row])] = &[
    ("In the plugin directory", in_the_directory::ROWS),
    ("While a library is loaded", at_load::ROWS),
    ("Libraries that are no Rust", in_c::ROWS),
    ("In a handler or task, in a process of its own", in_handlers_isolated::ROWS),
    ("Started again after its process ended", restarts::ROWS),
    ("In a handler or task, in the host's process", in_handlers_here::ROWS),
    ("While it is replaced", replacements::ROWS),
    ("When the host is stopped or killed", stops::ROWS),
    ("Verdicts, quarantine and the state directory", state::ROWS),
];

#[test]
fn the_document_is_rendered_from_the_tables() {
    let path = Path::new(ROOT).join("docs/faults.md");
    if std::env::var_os("QTASKS_BLESS").is_some() {
        std::fs::write(&path, rendering()).expect("the repository can be written to");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == rendering(),
        "docs/faults.md is not what the tables of tests/faults say; renew it with\n\
         QTASKS_BLESS=1 cargo test -p qtasks-host --test integration the_document_is_rendered"
    );
}

fn rendering() -> String {
    let mut text = String::from(
        "# Faults\n\n\
         What a plugin can do wrong, and what the host does then. Each row is a test of `tests/faults/`, and this file is rendered \
         from the tables there; to renew it:\n\n\
         ```sh\nQTASKS_BLESS=1 cargo test -p qtasks-host --test integration the_document_is_rendered\n```\n",
    );
    for (title, rows) in PARTS {
        let _ = write!(text, "\n## {title}\n\n| fault | outcome | test |\n|---|---|---|\n");
        for Row { module, test, fault, outcome } in *rows {
            let module = module.rsplit("::").next().unwrap_or_default();
            let _ = writeln!(text, "| {fault} | {outcome} | `{module}::test::{test}` |");
        }
    }
    text
}

/// A task that raises; `documented-example` answers 123.
const RAISE: &str = "{\"task\": \"raise\", \"kwargs\": {\"message\": \"sea is frozen\"}}\n";

/// A directory with one task that raises, the plugin that answers 123, and the plugin under test. The good ones were probed before:
/// a test may set a short deadline for the probe of the other.
fn beside_good_ones(plugin: &str) -> Place {
    let place = good_ones();
    place.copy(plugin);
    place
}

fn good_ones() -> Place {
    static PROBED: OnceLock<Place> = OnceLock::new();
    let copied = || {
        let place = Place::new();
        place.copy("scripted");
        place.copy("documented_example");
        place
    };
    let probed = PROBED.get_or_init(|| {
        let place = copied();
        run(&place).with_input(RAISE).expect_code(0);
        place
    });
    let place = copied();
    let to = place.state().join("verdicts");
    std::fs::create_dir_all(&to).expect("a new directory");
    for verdict in std::fs::read_dir(probed.state().join("verdicts")).expect("there are verdicts") {
        let verdict = verdict.expect("readable");
        std::fs::copy(verdict.path(), to.join(verdict.file_name())).expect("copied");
    }
    place
}

/// As many calls as are allowed wait for a plugin that never answers; the next one does not wait with them.
fn one_call_too_many(isolation: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let settings = [format!("plugins.never-ready.isolation='{isolation}'"), "plugins.never-ready.deadline=600.0".to_owned()];
        let app = settings.into_iter().fold(TestApp::with(&["scripted", "never_ready"]), TestApp::set).start().await;
        let mut calls: FuturesUnordered<_> = (0..=1024).map(|_| app.raise()).collect();
        let first = calls.next().await.expect("there are some");
        let failure = first.decisions[0].failure.as_ref().expect("it was not called");
        assert_eq!((&*failure.kind, &*failure.message), ("TooManyCalls", "1024 calls of this plugin are under way already"));
        assert_eq!(first.error.expect("nobody answered").message, "sea is frozen");
    });
}

/// A handler of one plugin and a task of another hold a lock each, and want the other's: what became of the task that raised, of which
/// the handler is told, and of the other one.
fn two_plugins_wait_for_each_other(place: &Place, host: Host) -> [serde_json::Value; 2] {
    let [first, second] = ["lock_a", "lock_b"].map(|name| place.write(name, ""));
    let go_on = place.fifo("go_on");
    let mut child = host.set("concurrency=2").spawn();
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"{\"task\": \"take_locks\"}\n").expect("it reads");
    wait_until_locked(&second);
    stdin.write_all(RAISE.as_bytes()).expect("it reads");
    wait_until_locked(&first);
    drop(OpenOptions::new().write(true).open(go_on).expect("the task reads"));
    drop(stdin);
    let results = Ended::of(child).results();
    ["raise", "take_locks"].map(|task| {
        let found = results.iter().find(|result| result["task"] == task);
        found.unwrap_or_else(|| panic!("no result of {task} in {results:?}")).clone()
    })
}

fn wait_until_locked(path: &Path) {
    while File::open(path).expect("our own file").try_lock().is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// `qtasks-host run` whose guests find the place of the test in their home directory.
fn run(place: &Place) -> Host {
    Host::run(place).env("HOME", place.root())
}

/// Asserts that the other plugins answered this one [`RAISE`].
#[track_caller]
fn answered(ended: Ended) -> Ended {
    let ended = ended.expect_code(0);
    let result = ended.result();
    assert_eq!((&result["returning"], &result["original_error"]["message"]), (&123.into(), &"sea is frozen".into()));
    ended
}

/// Asserts that the log tells of the refusal of this plugin's library with this code and these words.
#[track_caller]
fn refused(ended: &Ended, plugin: &str, code: &str, words: &[&str]) {
    let file = format!("lib{plugin}.so");
    let line = ended.stderr.lines().find(|line| line.contains("plugin refused") && line.contains(&file));
    let line = line.unwrap_or_else(|| panic!("no refusal of {file} in:\n{}", ended.stderr));
    assert_says(line, &[&format!("code=\"{code}\"")]);
    assert_says(line, words);
}

/// What is in quarantine, as `plugin quarantine list --json` has it.
fn quarantine(place: &Place) -> Vec<serde_json::Value> {
    let list = Host::new(place).args(["plugin", "quarantine", "list", "--json", "--state-dir"]).arg(place.state());
    serde_json::from_str(&list.end().expect_code(0).stdout).expect("a JSON list")
}

/// A FIFO with one byte in it, which a fixture takes, and then holds the FIFO open.
struct Held {
    writer: File,
}

impl Held {
    /// `held` in the home directory of the test's guests.
    fn new(place: &Place) -> Self {
        Self::at(place, "held")
    }

    fn at(place: &Place, name: &str) -> Self {
        let path = place.fifo(name);
        // With a reader of our own, opening waits for nobody.
        let mut both = OpenOptions::new().read(true).write(true).open(&path).expect("the FIFO is there");
        both.write_all(b"x").expect("there is room for one byte");
        let writer = OpenOptions::new().write(true).open(&path).expect("the FIFO is there");
        Self { writer }
    }

    /// Whether a fixture was there.
    fn was_taken(&self) -> bool {
        rustix::io::ioctl_fionread(&self.writer).expect("a FIFO tells what is in it") == 0
    }

    /// Waits until a fixture is there.
    fn wait_until_taken(&self) {
        while !self.was_taken() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Whether everybody who held it is gone within `seconds`.
    fn is_let_go_within(&self, seconds: i64) -> bool {
        // Without a reader the writing end is in error.
        let mut writer = [PollFd::new(&self.writer, PollFlags::empty())];
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut writer, Some(&timeout)).expect("a FIFO can be waited for") == 1
    }
}
