//! Damages good libraries in six ways, runs the static check on each, and has the dynamic linker open those that pass, each in a
//! process of its own. Says how many damaged files get past the check and then kill or hang the process inside `dlopen`.
//!
//! `cargo run -p qtasks-mutate --release -- --seed 1 --count 2000`

mod damage;
mod host;
mod open;
mod seeds;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use damage::{Damage, Random};
use open::Opened;
use qtasks_host::plugin::bytes::LibraryBytes;
use qtasks_host::plugin::discover::{Candidate, MAX_LIBRARY_BYTES};
use qtasks_host::plugin::elf;
use table::{Row, Table};

/// Damages plugin libraries and counts what gets past the static check.
#[derive(Debug, Parser)]
struct Arguments {
    /// Start of the random numbers; the same seed damages the same libraries alike.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Damaged files, shared among the libraries and the kinds of damage.
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// Open the refused files as well, to see what the check is good for.
    #[arg(long)]
    open_refused: bool,
    /// Take the damaged plugin through the whole safe path of a host instead, and call what still loads.
    #[arg(long)]
    through_host: bool,
    /// Keep the files that pass and kill or hang the process, here.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Check these libraries only, undamaged, and say how long that takes.
    #[arg(long, num_args = 1..)]
    check: Vec<PathBuf>,
    /// Open this library and end; how the program calls itself.
    #[arg(long, hide = true)]
    open: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    // With --through-host this program is the host, and its own guests.
    qtasks_host::guest::run_if_asked();
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.open {
        open::open_here(path);
        return Ok(ExitCode::SUCCESS);
    }
    if !arguments.check.is_empty() {
        return check_only(&arguments.check);
    }
    if arguments.through_host {
        return through_host(&arguments);
    }
    mutate(&arguments)
}

fn through_host(arguments: &Arguments) -> Result<ExitCode> {
    let directory = tempfile::tempdir()?;
    let seeds = seeds::build(directory.path())?;
    let plugin = seeds.first().context("the plugin is among the good libraries")?;
    let endings = host::run(plugin, arguments.count, Random::new(arguments.seed), directory.path())?;
    for (ending, count) in &endings {
        println!("{count:8}  {ending}");
    }
    println!("{} damaged libraries through discovery, probe, load and call; host deaths: 0", arguments.count);
    Ok(ExitCode::SUCCESS)
}

/// Says what the check makes of whole files: every good library must pass.
fn check_only(paths: &[PathBuf]) -> Result<ExitCode> {
    let mut refused = 0;
    for path in paths {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (mut best, mut result) = (f64::INFINITY, elf::check_shape(&bytes));
        for _ in 0..20 {
            let start = Instant::now();
            result = elf::check_shape(std::hint::black_box(&bytes));
            best = best.min(start.elapsed().as_secs_f64() * 1e6);
        }
        let candidate = Candidate { path: path.clone() };
        let (mut read, mut digest) = (f64::INFINITY, None);
        for _ in 0..5 {
            let start = Instant::now();
            digest = Some(LibraryBytes::read(&candidate, MAX_LIBRARY_BYTES)?.digest());
            read = read.min(start.elapsed().as_secs_f64() * 1e6);
        }
        match result {
            Ok(facts) => println!(
                "good    {best:8.1} us, read and hashed in {read:8.1} us {:.8} {:10} bytes {:7} relocations {:6} symbols  {}",
                digest.map(|digest| digest.to_string()).unwrap_or_default(),
                bytes.len(),
                facts.relocations,
                facts.symbols,
                path.display()
            ),
            Err(error) => {
                refused += 1;
                println!("refused {} {}: {error}", error.code(), path.display());
            }
        }
    }
    println!("{} libraries, {refused} refused", paths.len());
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mutate(arguments: &Arguments) -> Result<ExitCode> {
    let directory = tempfile::tempdir()?;
    let seeds = seeds::build(directory.path())?;
    for seed in &seeds {
        let checked = elf::check(&seed.bytes).with_context(|| format!("the undamaged {} is refused", seed.name))?;
        ensure!(checked.memory_span > 0, "the undamaged {} takes no memory", seed.name);
        ensure!(open::open(&seed.path)? == Opened::Fine, "the undamaged {} cannot be opened", seed.name);
    }
    let mut table = Table::default();
    let mut random = Random::new(arguments.seed);
    let damaged_path = directory.path().join("damaged.so");
    for number in 0..arguments.count {
        let seed = &seeds[number % seeds.len()];
        let damage = Damage::ALL[number / seeds.len() % Damage::ALL.len()];
        let bytes = damage.apply(&seed.bytes, &mut random);
        let row = table.row(damage, seed.name);
        row.files += 1;
        let checked = std::panic::catch_unwind(|| elf::check(&bytes));
        let passed = match &checked {
            Ok(Ok(_)) => true,
            Ok(Err(_)) => false,
            Err(_) => {
                row.panicked += 1;
                continue;
            }
        };
        row.refused += usize::from(!passed);
        if !passed && !arguments.open_refused {
            continue;
        }
        std::fs::write(&damaged_path, &bytes)?;
        let opened = open::open(&damaged_path)?;
        let counts = if passed { &mut row.passed } else { &mut row.refused_opened };
        counts.add(opened);
        if passed
            && opened.is_fatal()
            && let Some(keep) = &arguments.keep
        {
            std::fs::create_dir_all(keep)?;
            std::fs::write(keep.join(format!("{number:06}-{}-{damage:?}-{opened:?}.so", seed.name)), &bytes)?;
        }
    }
    table.print();
    let panicked = table.total().panicked;
    ensure!(panicked == 0, "the static check panicked {panicked} times");
    Ok(ExitCode::SUCCESS)
}

impl Row {
    /// Files that pass the check and then end or hang the process that opens them.
    fn fatal(&self) -> usize {
        self.passed.killed + self.passed.hung
    }
}
