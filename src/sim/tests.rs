//! The simulation: repeatable, then a sweep.

use super::run;

#[test]
fn a1_the_same_seed_gives_the_same_trace() {
    for seed in 1..=4 {
        let (once, twice) = (run(seed, false), run(seed, false));
        assert_eq!(once, twice, "seed {seed}");
    }
}

#[test]
fn sweep() {
    let mut bad = 0;
    for seed in 1..=300 {
        let report = run(seed, false);
        if let Some(failure) = &report.failure {
            bad += 1;
            println!("seed {seed}: {} steps: {failure}", report.steps);
        }
    }
    println!("bad {bad}");
}
