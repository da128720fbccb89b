//! Reading the text exposition of metrics.

use std::collections::BTreeMap;

/// One reading: every series with its value.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Reads an exposition. Panics on a line that is not one.
    pub fn parse(text: &str) -> Self {
        let series = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| series(line).unwrap_or_else(|| panic!("not a metric: {line}")))
            .collect();
        Self { series }
    }

    /// The sum over all series of this name that have all of these labels; `None` when there is none.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self
            .series
            .iter()
            .filter(|(known, having, _)| {
                known == name
                    && labels
                        .iter()
                        .all(|(key, value)| having.get(*key).is_some_and(|v| v == value))
            })
            .map(|(_, _, value)| *value)
            .peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// The same, of whole numbers. Panics when there is no such series: a name that changes must not pass as 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let value = self
            .find(name, labels)
            .unwrap_or_else(|| panic!("there is no metric {name} {labels:?}"));
        assert!(value >= 0.0, "{name} {labels:?} is {value}");
        value as u64
    }
}

/// Label values of ours hold neither commas nor quotes.
fn series(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (name, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = name.split_once('{') else {
        return Some((name.to_owned(), BTreeMap::new(), value));
    };
    let labels = labels
        .strip_suffix('}')?
        .split(',')
        .map(|label| {
            let (key, value) = label.split_once('=')?;
            Some((key.to_owned(), value.trim_matches('"').to_owned()))
        })
        .collect::<Option<_>>()?;
    Some((name.to_owned(), labels, value))
}
