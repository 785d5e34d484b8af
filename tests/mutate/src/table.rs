//! The counts, by kind of damage and by library.

use crate::damage::Damage;
use crate::open::Opened;

/// What became of the files that were opened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) fine: usize,
    pub(crate) error: usize,
    pub(crate) killed: usize,
    pub(crate) killed_at_exit: usize,
    pub(crate) hung: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, opened: Opened) {
        *match opened {
            Opened::Fine => &mut self.fine,
            Opened::Error => &mut self.error,
            Opened::Killed | Opened::Exited => &mut self.killed,
            Opened::KilledAtExit => &mut self.killed_at_exit,
            Opened::Hung => &mut self.hung,
        } += 1;
    }

    fn sum(self, other: Self) -> Self {
        Self {
            fine: self.fine + other.fine,
            error: self.error + other.error,
            killed: self.killed + other.killed,
            killed_at_exit: self.killed_at_exit + other.killed_at_exit,
            hung: self.hung + other.hung,
        }
    }
}

/// One kind of damage to one library.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Row {
    pub(crate) files: usize,
    pub(crate) refused: usize,
    pub(crate) panicked: usize,
    pub(crate) passed: Counts,
    /// The refused ones, when they were opened as well.
    pub(crate) refused_opened: Counts,
}

/// All rows, in the order of their first file.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<(Damage, &'static str, Row)>);

impl Table {
    pub(crate) fn row(&mut self, damage: Damage, seed: &'static str) -> &mut Row {
        let at = self.0.iter().position(|(known, name, _)| *known == damage && *name == seed).unwrap_or_else(|| {
            self.0.push((damage, seed, Row::default()));
            self.0.len() - 1
        });
        &mut self.0[at].2
    }

    pub(crate) fn total(&self) -> Row {
        self.0.iter().fold(Row::default(), |sum, (.., row)| Row {
            files: sum.files + row.files,
            refused: sum.refused + row.refused,
            panicked: sum.panicked + row.panicked,
            passed: sum.passed.sum(row.passed),
            refused_opened: sum.refused_opened.sum(row.refused_opened),
        })
    }

    pub(crate) fn print(&self) {
        println!(
            "                      |       |         |          passed the check           |     refused, and opened all the same"
        );
        println!(
            "damage        library | files | refused |  fine  error killed atexit   hung   |  fine  error killed atexit   hung"
        );
        for (damage, seed, row) in &self.0 {
            print_row(&format!("{damage:?}"), seed, row);
        }
        let total = self.total();
        print_row("all", "", &total);
        let share = |part: usize| 100.0 * part as f64 / total.files.max(1) as f64;
        println!(
            "past the check and killed or hung inside dlopen: {} of {}, {:.2} %",
            total.fatal(),
            total.files,
            share(total.fatal())
        );
        let without = total.fatal() + total.refused_opened.killed + total.refused_opened.hung;
        println!("killed or hung inside dlopen, of all that were opened: {without}, {:.2} % of all", share(without));
    }
}

fn print_row(damage: &str, seed: &str, row: &Row) {
    let counts = |counts: &Counts| {
        format!("{:5} {:6} {:6} {:6} {:6}", counts.fine, counts.error, counts.killed, counts.killed_at_exit, counts.hung)
    };
    println!(
        "{damage:14}{seed:8}|{:6} |{:8} | {}   | {}",
        row.files,
        row.refused,
        counts(&row.passed),
        counts(&row.refused_opened)
    );
}
