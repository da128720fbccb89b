#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "shell: measures processes"
)]
//! `make bench`: how fast Firekeep is, beside what the machine can do, measured in the same run.
//!
//! The daemon is the real program in a process of its own, fed by the load generator in another. A *limit* is what
//! bounds a figure physically: signature verifications, hashing, compression. A *target* is what we want of it.
//!
//! `bench [ROW…] [--scale N] [--json FILE]` measures; `bench compare OLD NEW` compares two JSON files.

mod daemon;
mod limits;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Report;

const USAGE: &str = "usage: bench [ROW…] [--scale N] [--json FILE] | bench compare OLD NEW";

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["load", ref rest @ ..] => daemon::serve_load(rest),
        ["compare", old, new] => report::compare(old.as_ref(), new.as_ref()),
        ["compare", ..] => usage(),
        _ => measure(&words),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}\nrows: {}", rows::ALL.map(|(name, _)| name).join(" "));
    ExitCode::from(2)
}

fn measure(words: &[&str]) -> ExitCode {
    let (mut scale, mut json, mut wanted) = (1, None, Vec::new());
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--scale" => match words.next().and_then(|text| text.parse().ok()) {
                Some(number) if number > 0 => scale = number,
                _ => return usage(),
            },
            "--json" => match words.next() {
                Some(file) => json = Some(PathBuf::from(file)),
                None => return usage(),
            },
            name if rows::ALL.iter().any(|(known, _)| *known == name) => wanted.push(name),
            _ => return usage(),
        }
    }
    let mut report = Report::new(scale);
    for (name, row) in rows::ALL {
        if wanted.is_empty() || wanted.contains(&name) {
            eprintln!("bench: {name}");
            row(scale, &mut report);
        }
    }
    print!("{}", report.table());
    match json.map(|file| report.write(&file)) {
        Some(Err(error)) => {
            eprintln!("bench: cannot write the figures: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
