//! What a day looked like: for each host since when its stream is closed, and its lag, five minutes at a time. Pure.
//!
//! It lives in memory and begins anew with the process; whoever shows it says so.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::{HostName, Timestamp};

/// How long one of the day's points is.
pub const POINT: Duration = Duration::from_secs(300);
/// Points of a day.
pub const POINTS_MAX: usize = 288;

/// What is known of the hosts.
#[derive(Debug)]
pub struct History {
    /// When this process began.
    pub began: Timestamp,
    hosts: BTreeMap<HostName, HostHistory>,
}

/// What is known of one.
#[derive(Debug, Default)]
struct HostHistory {
    /// When its stream was last seen open; none: not since the start.
    open_at: Option<Timestamp>,
    is_open: bool,
    points: VecDeque<Point>,
}

/// The worst of some minutes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// When they began, in whole points since 1970.
    pub number: u64,
    /// The greatest lag, in seconds; none while the host was away all the time.
    pub lag: f64,
    /// Whether it was away at any time.
    pub away: bool,
}

impl History {
    /// Begins now.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self {
            began: now,
            hosts: BTreeMap::new(),
        }
    }

    /// Takes how a host stands now. Away for a moment only does not count.
    pub fn note(&mut self, host: &HostName, now: Timestamp, is_open: bool, lag: f64) {
        let known = self.hosts.entry(host.clone()).or_default();
        known.is_open = is_open;
        if is_open {
            known.open_at = Some(now);
        }
        let number = now.millis() / u64::try_from(POINT.as_millis()).unwrap_or(u64::MAX);
        match known.points.back_mut() {
            Some(point) if point.number == number => {
                point.lag = point.lag.max(lag);
                point.away |= !is_open;
            }
            _ => {
                known.points.push_back(Point {
                    number,
                    lag,
                    away: !is_open,
                });
                // What is older than a day, also where nothing was noted for long.
                let least = number.saturating_sub(POINTS_MAX as u64 - 1);
                while known.points.front().is_some_and(|point| point.number < least) {
                    known.points.pop_front();
                }
            }
        }
    }

    /// Since when a host's stream is not open; none: it is.
    #[must_use]
    pub fn away_for(&self, host: &HostName, now: Timestamp) -> Option<Duration> {
        let known = self.hosts.get(host);
        if known.is_some_and(|known| known.is_open) {
            return None;
        }
        let since = known.and_then(|known| known.open_at).unwrap_or(self.began);
        Some(now.since(since))
    }

    /// The day of a host, the oldest first.
    #[must_use]
    pub fn day(&self, host: &HostName) -> Vec<Point> {
        let known = self.hosts.get(host);
        known.map_or_else(Vec::new, |known| known.points.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_900_000_000_000_000);

    #[test]
    fn a_day_is_kept_and_no_more() {
        let host: HostName = "pds.test".parse().expect("valid");
        let mut history = History::new(START);
        assert_eq!(
            history.away_for(&host, START.plus(POINT)),
            Some(POINT),
            "never seen"
        );
        let mut now = START;
        for step in 0..10_000u32 {
            now = now.plus(Duration::from_secs(60));
            history.note(&host, now, step % 7 != 0, f64::from(step));
        }
        let day = history.day(&host);
        assert_eq!(day.len(), POINTS_MAX);
        assert!(day.is_sorted_by_key(|point| point.number));
        assert!(
            (day[POINTS_MAX - 1].lag - 9_999.0).abs() < 0.5,
            "the greatest of a point"
        );
        // After a long pause what is older than a day is gone.
        history.note(&host, now.plus(Duration::from_secs(40 * 3600)), true, 1.0);
        assert_eq!(history.day(&host).len(), 1);
    }

    #[test]
    fn a_host_is_away_since_it_was_last_seen_open() {
        let host: HostName = "pds.test".parse().expect("valid");
        let mut history = History::new(START);
        history.note(&host, START, true, 0.0);
        assert_eq!(history.away_for(&host, START.plus(POINT)), None);
        history.note(&host, START.plus(POINT), false, 0.0);
        assert_eq!(history.away_for(&host, START.plus(2 * POINT)), Some(2 * POINT));
        history.note(&host, START.plus(3 * POINT), true, 0.0);
        assert_eq!(history.away_for(&host, START.plus(3 * POINT)), None);
        assert!(history.day(&host)[1].away);
    }
}
