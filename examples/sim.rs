//! Runs the simulation: `sim SEEDS [FIRST]` for a sweep, `sim --seed N [--trace]` for one run.

use std::collections::BTreeMap;
use std::process::ExitCode;

use firekeep::sim::{Report, run, sweep};

/// Simulated seconds of healing that are worth a line.
const SLOW: u64 = 4600;

const USAGE: &str = "usage: sim SEEDS [FIRST]  |  sim --seed N [--trace]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let numbers: Option<Vec<u64>> = words
        .iter()
        .filter(|word| !word.starts_with("--"))
        .map(|word| word.parse().ok())
        .collect();
    match (&words[..], numbers.as_deref()) {
        (["--seed", _], Some([seed])) => one(&run(*seed, false)),
        (["--seed", _, "--trace"], Some([seed])) => one(&run(*seed, true)),
        ([_], Some([seeds])) => many(*seeds, 1),
        ([_, _], Some([seeds, first])) => many(*seeds, *first),
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
        "seed {}: {} steps, trace {:016x}, settled in {} s",
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

fn many(seeds: u64, first: u64) -> ExitCode {
    let table = sweep(first..first + seeds, |report| {
        if let Some(failure) = &report.failure {
            println!("seed {}: {failure}", report.seed);
            println!("  replay: {}", report.replay());
        } else if report.settled_in > SLOW {
            println!("slow: seed {} healed in {} s", report.seed, report.settled_in);
        }
    });
    println!("{table}");
    let never: BTreeMap<_, _> = table
        .never_fired()
        .into_iter()
        .map(|fault| (fault.label(), ()))
        .collect();
    for fault in never.keys() {
        println!("never fired: {fault}");
    }
    if table.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(4)
    }
}
