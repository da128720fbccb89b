//! The clock and the dice: the only place that reads real time or entropy.
//!
//! Everything else takes `now` or random bits as an argument, or holds a [`Clock`]. A manual clock stands
//! still until a test moves it, and its dice always fall the same way.

#![allow(clippy::disallowed_methods, reason = "shell: reads the system's clock")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

/// A source of time and entropy. Cheap to clone; clones of a manual clock share its hands.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    Manual(Arc<Hands>),
}

#[derive(Debug)]
struct Hands {
    micros: AtomicU64,
    dice: AtomicU64,
}

impl Clock {
    /// The machine's own.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// One that only moves when told to, for tests.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(Hands {
            micros: AtomicU64::new(start.micros()),
            dice: AtomicU64::new(0),
        })))
    }

    /// The time now. The machine's clock may step back: never subtract two of these without saturating.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO);
                Timestamp::default().plus(since)
            }
            Source::Manual(hands) => Timestamp::from_micros(hands.micros.load(Ordering::SeqCst)),
        }
    }

    /// When a wait from now on is over, and up to a quarter of it later.
    #[must_use]
    pub fn later(&self, wait: Duration) -> Timestamp {
        self.now().plus(wait).plus(self.jitter(wait / 4))
    }

    /// 64 random bits, for jitter and names; not for keys.
    #[must_use]
    pub fn random(&self) -> u64 {
        match &self.0 {
            Source::System => rand::random(),
            Source::Manual(hands) => split_mix(hands.dice.fetch_add(1, Ordering::SeqCst)),
        }
    }

    /// A wait between three quarters and five quarters of the period, so that periodic work spreads out.
    #[must_use]
    pub fn jitter(&self, period: Duration) -> Duration {
        let micros = u64::try_from(period.as_micros()).unwrap_or(u64::MAX / 2);
        let spread = self.random() % (micros / 2 + 1);
        Duration::from_micros((micros - micros / 4).saturating_add(spread))
    }

    /// Moves a manual clock forward; the machine's own is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(hands) = &self.0 {
            let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
            hands.micros.fetch_add(micros, Ordering::SeqCst);
        }
    }
}

/// The SplitMix64 step: spreads a counter evenly over 64 bits.
const fn split_mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_when_told() {
        let start = Timestamp::from_micros(7);
        let clock = Clock::manual(start);
        let other = clock.clone();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_micros(3));
        assert_eq!(other.now(), Timestamp::from_micros(10));
        assert_ne!(clock.random(), other.random());
        assert_eq!(Clock::manual(start).random(), Clock::manual(start).random());
    }

    #[test]
    fn the_system_clock_is_in_this_century() {
        let clock = Clock::system();
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().expect("valid");
        assert!(clock.now() > first);
        clock.advance(Duration::from_secs(1 << 40));
        assert!(clock.now() < "2126-01-01T00:00:00Z".parse().expect("valid"));
        assert_ne!(clock.random(), clock.random());
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let clock = Clock::manual(Timestamp::default());
        let period = Duration::from_secs(8);
        for _ in 0..100 {
            let wait = clock.jitter(period);
            assert!(
                wait >= Duration::from_secs(6) && wait <= Duration::from_secs(10),
                "{wait:?}"
            );
        }
        assert_eq!(clock.jitter(Duration::ZERO), Duration::ZERO);
    }
}
