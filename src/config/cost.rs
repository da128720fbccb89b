//! What an archive costs in write requests, before it is paid: from the settings alone. A test of the shipper holds this
//! against what it really writes.

use std::time::Duration;

const DAY_SECONDS: f64 = 24.0 * 3600.0;
const MONTH_DAYS: f64 = 30.0;

/// Dollars a million write requests, at AWS S3's list price. Other stores ask less, or nothing.
pub const DOLLARS_A_MILLION: f64 = 5.0;

/// What the accounts of a PDS do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Habits {
    /// How many accounts.
    pub accounts: f64,
    /// Commits of each, a day.
    pub writes_a_day: f64,
    /// So many of its commits bring a blob: between 0 and 1.
    pub blobs_a_write: f64,
}

impl Habits {
    /// A PDS of a hundred active accounts.
    pub const A_HUNDRED: Self = Self {
        accounts: 100.0,
        writes_a_day: 20.0,
        blobs_a_write: 0.1,
    };
}

/// Write requests of a month of 30 days, about: a segment for each `flush_interval` in which something changed (writes
/// come at random), the blobs, and of each account that changed a snapshot and a delta a day.
#[must_use]
pub fn writes_a_month(habits: &Habits, flush_interval: Duration) -> f64 {
    let commits = habits.accounts * habits.writes_a_day * MONTH_DAYS;
    let rate = habits.accounts * habits.writes_a_day / DAY_SECONDS;
    let segments = commits / (1.0 + rate * flush_interval.as_secs_f64());
    let changed = habits.accounts * habits.writes_a_day.min(1.0) * MONTH_DAYS;
    segments + commits * habits.blobs_a_write + 2.0 * changed
}

/// Segments of a month in which something changes all the time.
#[must_use]
pub fn segments_at_most(flush_interval: Duration) -> f64 {
    MONTH_DAYS * DAY_SECONDS / flush_interval.as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_pds_costs_nothing_and_a_longer_interval_less() {
        let quiet = Habits {
            writes_a_day: 0.0,
            ..Habits::A_HUNDRED
        };
        assert!(writes_a_month(&quiet, Duration::from_secs(1)).abs() < 1e-9);
        let each = |seconds| writes_a_month(&Habits::A_HUNDRED, Duration::from_secs(seconds));
        assert!(each(1) > each(60) && each(60) > each(900));
        // However long the interval: blobs, snapshots and deltas stay.
        assert!(each(3600) > 12_000.0);
    }

    #[test]
    fn segments_have_a_most() {
        assert!((segments_at_most(Duration::from_secs(1)) - 2_592_000.0).abs() < 1.0);
        let busy = Habits {
            writes_a_day: 1e6,
            blobs_a_write: 0.0,
            ..Habits::A_HUNDRED
        };
        let most = segments_at_most(Duration::from_secs(1)) + 6_000.0;
        let busy = writes_a_month(&busy, Duration::from_secs(1));
        assert!(busy <= most && busy > most * 0.99, "{busy} {most}");
    }
}
