//! Instants of wall-clock time, as whole microseconds since 1970-01-01T00:00:00Z.
//!
//! A pure value: code that needs "now" takes it as an argument (see `clock`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::SyntaxError;

/// A moment, in microseconds since the Unix epoch. Arithmetic saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From microseconds since the epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Milliseconds since the epoch, rounded down.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 / 1000
    }

    /// Seconds since the epoch, for metrics.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a metric needs no microsecond in the year 2200"
    )]
    pub fn seconds_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Later by a duration.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// Earlier by a duration.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// How long after `earlier`; zero if it is not after.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl FromStr for Timestamp {
    type Err = SyntaxError;

    /// Parses RFC 3339, with any offset.
    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let bad = SyntaxError::new("time", "must be RFC 3339, such as 2026-01-02T03:04:05Z");
        let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| bad)?;
        u64::try_from(parsed.unix_timestamp_nanos() / 1000)
            .map(Self)
            .map_err(|_| bad)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2026-01-02T03:04:05.678Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.millis()) * 1_000_000;
        let Ok(t) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
            return f.write_str("9999-12-31T23:59:59.999Z");
        };
        let (date, hour, minute, second) = (t.date(), t.hour(), t.minute(), t.second());
        write!(
            f,
            "{date}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
            t.millisecond()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let t: Timestamp = "2026-01-02T03:04:05.678901Z".parse().expect("valid");
        assert_eq!(t.to_string(), "2026-01-02T03:04:05.678Z");
        assert_eq!("2026-01-02T04:04:05.678901+01:00".parse(), Ok(t));
        assert!("2026-01-02 03:04".parse::<Timestamp>().is_err());
        assert!("1960-01-01T00:00:00Z".parse::<Timestamp>().is_err());
        assert_eq!(
            Timestamp::from_micros(u64::MAX).to_string(),
            "9999-12-31T23:59:59.999Z"
        );
    }

    #[test]
    fn arithmetic_saturates() {
        let zero = Timestamp::default();
        assert_eq!(zero.minus(Duration::from_secs(1)), zero);
        assert_eq!(zero.since(zero.plus(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(
            Timestamp::from_micros(u64::MAX).plus(Duration::MAX).micros(),
            u64::MAX
        );
    }
}
