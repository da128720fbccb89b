//! Many runs, counted together.

use std::collections::BTreeMap;
use std::fmt;

use super::faults::Fault;
use super::run::{Report, run};

/// What came of a sweep.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Runs.
    pub seeds: u64,
    /// Steps of all of them.
    pub steps: u64,
    /// How often each fault fired.
    pub fired: BTreeMap<Fault, u64>,
    /// How often each reason was given.
    pub reasons: BTreeMap<String, u64>,
    /// The longest time from the end of the faults to convergence, in simulated seconds.
    pub settled_max: u64,
    /// Seeds that broke a promise.
    pub failed: Vec<u64>,
}

/// Runs these seeds, showing each report.
pub fn sweep(seeds: impl IntoIterator<Item = u64>, mut watch: impl FnMut(&Report)) -> Table {
    let mut table = Table::default();
    for seed in seeds {
        let report = run(seed, false);
        watch(&report);
        table.count(&report);
    }
    table
}

impl Report {
    /// The command that plays it again, with its trace.
    #[must_use]
    pub fn replay(&self) -> String {
        let seed = self.seed;
        format!("cargo run --no-default-features --features sim --example sim -- --seed {seed} --trace")
    }
}

impl Table {
    /// Counts one run.
    pub fn count(&mut self, report: &Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.settled_max = self.settled_max.max(report.settled_in);
        for (fault, count) in &report.fired {
            *self.fired.entry(*fault).or_default() += count;
        }
        for (reason, count) in &report.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
    }

    /// Whether a reason was given in any run.
    #[must_use]
    pub fn has_reason(&self, kind: &str, label: &str) -> bool {
        self.reasons.contains_key(&format!("{kind} {label}"))
    }

    /// Faults that no run had.
    #[must_use]
    pub fn never_fired(&self) -> Vec<Fault> {
        let never = Fault::ALL
            .into_iter()
            .filter(|fault| !self.fired.contains_key(fault));
        never.collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<34}{}", "seeds", self.seeds)?;
        writeln!(f, "{:<34}{}", "steps", self.steps)?;
        writeln!(f, "{:<34}{}", "failures", self.failed.len())?;
        writeln!(f, "{:<34}{}", "longest healing, simulated s", self.settled_max)?;
        for (fault, count) in &self.fired {
            writeln!(f, "fault {:<28}{count}", fault.label())?;
        }
        for (reason, count) in &self.reasons {
            writeln!(f, "{reason:<34}{count}")?;
        }
        Ok(())
    }
}
