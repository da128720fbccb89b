//! Many runs, counted together, in whatever order and in however many pieces they were made.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::faults::Fault;
use super::run::{Report, run};

/// What came of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Runs.
    pub seeds: u64,
    /// Events of all of them.
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
        let report = run_caught(seed);
        watch(&report);
        table.count(&report);
    }
    table
}

/// Runs a seed; a panic is a failure of this seed alone.
#[must_use]
pub fn run_caught(seed: u64) -> Report {
    catch_unwind(AssertUnwindSafe(|| run(seed, false))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Report {
            seed,
            failure: Some(format!("panicked: {}", text.unwrap_or("without a word"))),
            ..Report::default()
        }
    })
}

impl Report {
    /// The command that plays it again, with its trace.
    #[must_use]
    pub fn replay(&self) -> String {
        format!("make sim SEED={}", self.seed)
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

    /// Adds the runs of another table.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.settled_max = self.settled_max.max(other.settled_max);
        for (fault, count) in &other.fired {
            *self.fired.entry(*fault).or_default() += count;
        }
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.failed.extend(&other.failed);
        self.failed.sort_unstable();
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

    /// The table as lines that [`Table::from_lines`] reads: what is kept of a piece of a sweep in which no seed
    /// failed.
    #[must_use]
    pub fn to_lines(&self) -> String {
        let mut out = format!(
            "seeds {}\nsteps {}\nsettled {}\n",
            self.seeds, self.steps, self.settled_max
        );
        for (fault, count) in &self.fired {
            out += &format!("fault {count} {}\n", fault.label());
        }
        for (reason, count) in &self.reasons {
            out += &format!("reason {count} {reason}\n");
        }
        out + "end\n"
    }

    /// Reads what [`Table::to_lines`] wrote; none if anything about it is odd, or its end is missing.
    #[must_use]
    pub fn from_lines(text: &str) -> Option<Self> {
        let mut table = Self::default();
        let mut lines = text.strip_suffix("end\n")?.lines();
        let mut number = |word: &str| -> Option<u64> {
            let line = lines.next()?;
            line.strip_prefix(word)?.strip_prefix(' ')?.parse().ok()
        };
        (table.seeds, table.steps, table.settled_max) =
            (number("seeds")?, number("steps")?, number("settled")?);
        for line in lines {
            let mut words = line.splitn(3, ' ');
            let (kind, count, name) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
            match kind {
                "fault" => {
                    let fault = Fault::ALL.into_iter().find(|fault| fault.label() == name)?;
                    table.fired.insert(fault, count);
                }
                "reason" => drop(table.reasons.insert(name.to_owned(), count)),
                _ => return None,
            }
        }
        Some(table)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<34}{}", "seeds", self.seeds)?;
        writeln!(f, "{:<34}{}", "events", self.steps)?;
        writeln!(f, "{:<34}{}", "failures", self.failed.len())?;
        writeln!(f, "{:<34}{}", "longest healing, simulated s", self.settled_max)?;
        for fault in Fault::ALL {
            let count = self.fired.get(&fault).copied().unwrap_or_default();
            writeln!(f, "fault {:<28}{count}", fault.label())?;
        }
        for (reason, count) in &self.reasons {
            writeln!(f, "{reason:<34}{count}")?;
        }
        Ok(())
    }
}
