//! The simulation: repeatable, then a sweep, and an oracle that can say no.

use std::collections::BTreeSet;

use super::sweep::run_caught;
use super::{Report, Table, run, sweep};
use crate::mirror::rows::DesyncReason;
use crate::verify::RejectReason;

/// Seeds of the sweep. `examples/sim.rs` runs more.
const SEEDS: u64 = 300;

/// Reasons that the simulation does not produce, and why.
const NOT_PRODUCED: [(RejectReason, &str); 1] = [(
    RejectReason::BlocksTooLarge,
    "frames of two megabytes would take most of the sweep's time; verify's own tests have them",
)];

/// Reasons to fetch that the simulation cannot produce, and why.
const NOT_WANTED: [(DesyncReason, &str); 3] = [
    (
        DesyncReason::New,
        "a new account is not noted as desynchronised; it is counted when it is swapped in",
    ),
    (
        DesyncReason::StreamGap,
        "nothing gives it: a gap leads to a listing",
    ),
    (DesyncReason::Requested, "nothing gives it yet"),
];

#[test]
fn a_table_can_be_kept_and_added_up_in_pieces() {
    let whole = sweep(1..=6, drop_report);
    let mut sum = Table::default();
    for seeds in [4..=6, 1..=3] {
        let part = sweep(seeds, drop_report);
        let kept = part.to_lines();
        assert_eq!(Table::from_lines(&kept), Some(part.clone()));
        for cut in 0..kept.len() {
            assert_eq!(Table::from_lines(&kept[..cut]), None, "cut at {cut}");
        }
        sum.add(&part);
    }
    assert_eq!(sum, whole);
    assert!(
        !whole.never_fired().is_empty(),
        "six seeds cannot have every fault"
    );
}

const fn drop_report(_: &Report) {}

// The name comes first in the alphabet, so that it runs first: without it every other result means nothing.
#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in 1..=6 {
        let (once, twice) = (run(seed, false), run(seed, false));
        assert_eq!(once, twice, "seed {seed}");
        assert!(once.steps > 100, "seed {seed}: {} steps", once.steps);
    }
    assert_ne!(run(1, false).hash, run(2, false).hash);
}

#[test]
fn a_sweep_keeps_every_promise_and_meets_every_fault() {
    // Two at a time; counted in the order of the seeds.
    let half = |remainder: u64| -> Vec<Report> {
        let seeds = (1..=SEEDS).filter(|seed| seed % 2 == remainder);
        seeds.map(run_caught).collect()
    };
    let mut reports = std::thread::scope(|scope| {
        let odd = scope.spawn(|| half(1));
        let mut reports = half(0);
        reports.extend(odd.join().expect("a run does not panic"));
        reports
    });
    reports.sort_by_key(|report| report.seed);
    let mut table = Table::default();
    for report in &reports {
        table.count(report);
        if let Some(failure) = &report.failure {
            println!("seed {}: {failure}\n  replay: {}", report.seed, report.replay());
        }
    }
    println!("{table}");
    assert_eq!(
        table.failed, [0; 0],
        "seeds that broke a promise; how to replay them stands above"
    );
    assert_eq!(table.never_fired(), [], "faults that never happened");

    let given: BTreeSet<_> = RejectReason::ALL
        .into_iter()
        .filter(|reason| !table.has_reason("reject", reason.label()))
        .collect();
    let excepted = NOT_PRODUCED.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(given, excepted, "reasons that were never given");

    let wanted: BTreeSet<_> = DesyncReason::ALL
        .into_iter()
        .filter(|reason| !table.has_reason("desync", reason.as_str()))
        .collect();
    let excepted = NOT_WANTED.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(wanted, excepted, "reasons to fetch that never came up");
    assert!(table.has_reason("swapped", DesyncReason::New.as_str()));
}
