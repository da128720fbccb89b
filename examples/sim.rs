#![allow(clippy::disallowed_methods, reason = "shell: a clock, and a folder")]
//! Runs the simulation; `make sim` calls it.
//!
//! `sim SEEDS [FIRST] [--done FOLDER]` sweeps: seeds that passed are remembered in the folder and not run again.
//! `sim --seed N [--trace]` plays one.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use firekeep::sim::{Report, Table, run, sweep};

/// Simulated seconds of healing that are worth a line.
const SLOW: u64 = 4 * 3600;
/// Seeds that are run, and remembered, together.
const PIECE: u64 = 50;
/// How often progress is told where no terminal is.
const PROGRESS_EVERY: Duration = Duration::from_secs(15);

const USAGE: &str = "usage: sim SEEDS [FIRST] [--done FOLDER]  |  sim --seed N [--trace]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (words, done) = match &words[..] {
        [rest @ .., "--done", folder] => (rest, Some(PathBuf::from(folder))),
        all => (all, None),
    };
    let numbers: Option<Vec<u64>> = words
        .iter()
        .filter(|word| !word.starts_with("--"))
        .map(|word| word.parse().ok())
        .collect();
    match (words, numbers.as_deref()) {
        (["--seed", _], Some([seed])) => one(&run(*seed, false)),
        (["--seed", _, "--trace"], Some([seed])) => one(&run(*seed, true)),
        ([_], Some([seeds])) if *seeds > 0 => many(*seeds, 1, done.as_deref()),
        ([_, _], Some([seeds, first])) if *seeds > 0 => many(*seeds, *first, done.as_deref()),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn one(report: &Report) -> ExitCode {
    for line in &report.trace {
        println!("{line}");
    }
    println!(
        "seed {}: {} events, trace {:016x}, settled in {} s",
        report.seed, report.steps, report.hash, report.settled_in
    );
    match &report.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("{failure}");
            ExitCode::from(4)
        }
    }
}

/// A piece of a sweep: which seeds.
#[derive(Clone, Copy)]
struct Piece {
    first: u64,
    seeds: u64,
}

impl Piece {
    fn file(self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}", self.first, self.first + self.seeds - 1))
    }

    /// Its table, if it passed in an earlier run.
    fn remembered(self, folder: &Path) -> Option<Table> {
        let table = Table::from_lines(&fs::read_to_string(self.file(folder)).ok()?)?;
        (table.seeds == self.seeds).then_some(table)
    }

    fn remember(self, folder: &Path, table: &Table) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let file = self.file(folder);
        let new = file.with_extension(format!("new{}", std::process::id()));
        fs::write(&new, table.to_lines())?;
        fs::rename(new, file)
    }
}

fn many(seeds: u64, first: u64, folder: Option<&Path>) -> ExitCode {
    let end = first.saturating_add(seeds);
    let all = (first..end).step_by(PIECE as usize).map(|first| Piece {
        first,
        seeds: PIECE.min(end - first),
    });
    let (mut table, mut due) = (Table::default(), Vec::new());
    for piece in all {
        match folder.and_then(|folder| piece.remembered(folder)) {
            Some(known) => table.add(&known),
            None => due.push(piece),
        }
    }
    if table.seeds > 0 {
        eprintln!(
            "{} of {seeds} seeds passed in an earlier run of this commit",
            table.seeds
        );
    }
    run_pieces(&due, &mut table, seeds, folder);
    println!("{table}");
    for seed in &table.failed {
        println!("failed: seed {seed}; replay: make sim SEED={seed}");
    }
    for fault in table.never_fired() {
        println!(
            "never fired: {}; more seeds, or a fault that cannot happen",
            fault.label()
        );
    }
    if table.failed.is_empty() && table.never_fired().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(4)
    }
}

/// Runs pieces on every core.
fn run_pieces(pieces: &[Piece], table: &mut Table, seeds: u64, folder: Option<&Path>) {
    let (next, cores) = (
        AtomicU64::new(0),
        thread::available_parallelism().map_or(1, usize::from),
    );
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..cores {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let seeds = piece.first..piece.first + piece.seeds;
                    if send.send((*piece, sweep(seeds, tell))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut progress = Progress::new(seeds);
        for (piece, part) in receive {
            // Seeds that failed are run again next time, and those beside them.
            if let Some(folder) = folder
                && part.failed.is_empty()
                && let Err(error) = piece.remember(folder, &part)
            {
                eprintln!(
                    "what passed cannot be remembered in {}: {error}",
                    folder.display()
                );
            }
            table.add(&part);
            progress.show(table);
        }
        progress.end();
    });
}

fn tell(report: &Report) {
    if let Some(failure) = &report.failure {
        println!("seed {}: {failure}\n  replay: {}", report.seed, report.replay());
    } else if report.settled_in > SLOW {
        println!(
            "slow: seed {} healed in {} simulated s",
            report.seed, report.settled_in
        );
    }
}

/// A line that is written over on a terminal, and now and then a plain line elsewhere.
struct Progress {
    seeds: u64,
    terminal: bool,
    began: Instant,
    last: Instant,
}

impl Progress {
    fn new(seeds: u64) -> Self {
        let now = Instant::now();
        Self {
            seeds,
            terminal: io::stderr().is_terminal(),
            began: now,
            last: now,
        }
    }

    fn show(&mut self, table: &Table) {
        if !self.terminal && self.last.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.last = Instant::now();
        let line = format!(
            "{} of {} seeds, {} events, {} failures, {} s",
            table.seeds,
            self.seeds,
            table.steps,
            table.failed.len(),
            self.began.elapsed().as_secs()
        );
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            // Nothing depends on the line being seen.
            io::stderr().flush().unwrap_or_default();
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}
