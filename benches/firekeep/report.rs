//! Figures, their table, their JSON, and two of those compared.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// A change of a figure below this is noise on a shared machine.
const NOISE_PERCENT: f64 = 10.0;

/// What is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
    /// Only shown.
    None,
}

/// One measured figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// What bounds it, as measured in the same run, and its name.
    pub limit: Option<(String, f64)>,
    /// What is aimed at; in the unit, or where there is a limit and `of_limit`, as a share of it.
    pub target: Target,
    /// Whether the target is a share of the limit.
    pub of_limit: bool,
}

impl Figure {
    /// A figure that stands by itself.
    pub fn new(name: impl Into<String>, value: f64, unit: &str, target: Target) -> Self {
        Self {
            name: name.into(),
            value,
            unit: unit.to_owned(),
            limit: None,
            target,
            of_limit: false,
        }
    }

    /// With what bounds it.
    pub fn beside(mut self, limit: &str, value: f64) -> Self {
        self.limit = Some((limit.to_owned(), value));
        self
    }

    /// The target is a share of the limit.
    pub fn of_limit(mut self) -> Self {
        self.of_limit = true;
        self
    }

    fn share(&self) -> Option<f64> {
        self.limit.as_ref().map(|(_, limit)| self.value / limit)
    }

    fn is_met(&self) -> Option<bool> {
        let value = if self.of_limit { self.share()? } else { self.value };
        match self.target {
            Target::AtLeast(least) => Some(value >= least),
            Target::AtMost(most) => Some(value <= most),
            Target::None => None,
        }
    }

    fn target_text(&self) -> String {
        let text = |value: f64| {
            if self.of_limit {
                format!("{:.0} % of it", value * 100.0)
            } else {
                number(value)
            }
        };
        match self.target {
            Target::AtLeast(least) => format!("≥ {}", text(least)),
            Target::AtMost(most) => format!("≤ {}", text(most)),
            Target::None => String::new(),
        }
    }
}

/// All figures of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Logical CPUs.
    pub cpus: usize,
    /// The factor on the sizes.
    pub scale: u64,
    /// The figures.
    pub figures: Vec<Figure>,
}

impl Report {
    /// An empty one.
    pub fn new(scale: u64) -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            scale,
            figures: Vec::new(),
        }
    }

    /// Adds a figure, and says it at once.
    pub fn add(&mut self, figure: Figure) {
        eprintln!("  {}: {} {}", figure.name, number(figure.value), figure.unit);
        self.figures.push(figure);
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut out = format!(
            "| what ({} CPUs, scale {}) | figure | limit in the same run | share | target | met |\n|---|---|---|---|---|---|\n",
            self.cpus, self.scale
        );
        for figure in &self.figures {
            let limit = figure.limit.as_ref();
            let limit = limit.map_or_else(String::new, |(name, value)| format!("{} {name}", number(*value)));
            let share = figure
                .share()
                .map_or_else(String::new, |share| format!("{:.0} %", share * 100.0));
            let met = figure
                .is_met()
                .map_or("", |met| if met { "yes" } else { "**no**" });
            writeln!(
                out,
                "| {} | {} {} | {limit} | {share} | {} | {met} |",
                figure.name,
                number(figure.value),
                figure.unit,
                figure.target_text()
            )
            .expect("a String takes all");
        }
        out
    }

    /// Writes the JSON.
    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 1000.0 => format!("{value:.0}"),
        _ => {
            let digits = format!("{value:.0}");
            let places = digits.len();
            let grouped = digits.chars().enumerate().map(|(at, digit)| {
                let gap = at > 0 && (places - at).is_multiple_of(3);
                format!("{}{digit}", if gap { " " } else { "" })
            });
            grouped.collect()
        }
    }
}

/// Prints two runs side by side. What both measured on different limits is compared by its share of them: that
/// holds on another machine too.
pub fn compare(old: &Path, new: &Path) -> ExitCode {
    let read = |file: &Path| -> Result<Report, String> {
        let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", file.display()))
    };
    let (old, new) = match (read(old), read(new)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("| what | before | after | change |\n|---|---|---|---|");
    for figure in &new.figures {
        let Some(before) = old.figures.iter().find(|before| before.name == figure.name) else {
            println!(
                "| {} | | {} {} | new |",
                figure.name,
                number(figure.value),
                figure.unit
            );
            continue;
        };
        let ratio = match (before.share(), figure.share()) {
            (Some(before), Some(after)) => after / before,
            _ => figure.value / before.value,
        };
        let change = (ratio - 1.0) * 100.0;
        let noise = if change.abs() < NOISE_PERCENT {
            ", within noise"
        } else {
            ""
        };
        println!(
            "| {} | {} | {} {} | {change:+.0} %{noise} |",
            figure.name,
            number(before.value),
            number(figure.value),
            figure.unit
        );
    }
    ExitCode::SUCCESS
}
