//! How fast a followed host is asked: within our own budget, and as slowly as the host itself says.
//!
//! A host says so in every answer (`RateLimit-Limit`, `-Remaining`, `-Reset`, `-Policy`) and with a 429 or 503
//! (`Retry-After`). What it says is trusted only to slow us down, and for an hour at most. A request whose turn
//! comes within [`WAIT_MAX`] waits for it; one whose turn is later is told when to come back, so that it holds no
//! place that a request to another host could use.
//!
//! A PDS may give its backup a key that lifts its limits (`x-ratelimit-bypass`): [`BypassKey`], for that host alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::types::Timestamp;

use super::advice;

/// Longest wait for a turn.
pub const WAIT_MAX: Duration = Duration::from_secs(2);
/// Longest time that a host is left alone because it asks for it.
pub const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// After a 429 that says nothing else.
const PAUSE: Duration = Duration::from_secs(10);
/// So much of our own budget may be saved up and spent at once.
const BURST: Duration = Duration::from_secs(30);
/// From this share of what the host allows, the rest is spread until it allows more.
const SPREAD_PERCENT: u64 = 10;
/// The header of a PDS's key.
pub const BYPASS_HEADER: &str = "x-ratelimit-bypass";
/// Longest key.
const KEY_BYTES_MAX: usize = 512;

/// A PDS's key that lifts its rate limits. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct BypassKey(Box<str>);

impl BypassKey {
    /// Takes a key: what stands in its file, less the line break.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("is empty");
        }
        if text.len() > KEY_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("must be one line of at most 512 visible ASCII characters");
        }
        Ok(Self(text.into()))
    }

    /// The key, for the header alone.
    #[must_use]
    pub const fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for BypassKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BypassKey(…)")
    }
}

/// What an answer says of the host's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Advice {
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Requests that it allows in a window.
    pub limit: Option<u64>,
    /// How many of them are left.
    pub remaining: Option<u64>,
    /// Until the next window.
    pub reset: Option<Duration>,
    /// The window.
    pub window: Option<Duration>,
}

impl Advice {
    /// Reads an answer's headers. What cannot be read says nothing.
    #[must_use]
    pub fn read<'h>(header: impl Fn(&str) -> Option<&'h str>, now: Timestamp) -> Self {
        let number = |name: &str| header(name).and_then(|value| value.trim().parse::<u64>().ok());
        let (quota, window) = header("ratelimit-policy").map_or((None, None), read_policy);
        Self {
            retry_after: header("retry-after").and_then(|value| advice::retry_after(value, now)),
            limit: number("ratelimit-limit").or(quota),
            remaining: number("ratelimit-remaining"),
            reset: header("ratelimit-reset").and_then(|value| advice::rate_limit_reset(value, now)),
            window,
        }
    }
}

/// The first policy of `3000;w=300, …`: quota and window.
fn read_policy(value: &str) -> (Option<u64>, Option<Duration>) {
    let first = value.split(',').next().unwrap_or_default();
    let mut parts = first.split(';').map(str::trim);
    let quota = parts.next().and_then(|quota| quota.parse().ok());
    let window = parts.find_map(|part| part.strip_prefix("w="));
    let window = window.and_then(|seconds| seconds.trim().parse().ok());
    (quota, window.map(Duration::from_secs))
}

/// Turns at one host.
#[derive(Debug, Default)]
pub struct Pace {
    /// Between two requests, by our own budget; zero: no budget.
    interval: Duration,
    /// When the budget is back to nothing used.
    next: Timestamp,
    /// The host is left alone until then.
    paused_until: Timestamp,
    /// What the host allows is nearly used up.
    spread: Option<Spread>,
}

#[derive(Debug, Clone, Copy)]
struct Spread {
    /// The limit that it is about: a host may have several.
    limit: u64,
    interval: Duration,
    until: Timestamp,
    next: Timestamp,
}

impl Pace {
    /// With a budget of so many requests a second; zero: none.
    #[must_use]
    pub fn new(requests_per_second: u32) -> Self {
        Self {
            interval: match requests_per_second {
                0 => Duration::ZERO,
                rate => Duration::from_secs(1) / rate,
            },
            ..Self::default()
        }
    }

    /// Takes the next turn, and tells how long it is until then.
    ///
    /// # Errors
    /// It is longer than [`WAIT_MAX`]: nothing was taken.
    pub fn turn(&mut self, now: Timestamp) -> Result<Duration, Duration> {
        self.mend(now);
        let mut at = now.max(self.paused_until).max(self.next.minus(BURST));
        if let Some(spread) = &self.spread {
            at = at.max(spread.next);
        }
        let wait = at.since(now);
        if wait > WAIT_MAX {
            return Err(wait);
        }
        if !self.interval.is_zero() {
            self.next = self.next.max(at).plus(self.interval);
        }
        if let Some(spread) = &mut self.spread {
            spread.next = at.plus(spread.interval);
        }
        Ok(wait)
    }

    /// Times that lie further ahead than any can: the clock was set back, and they mean nothing any more.
    fn mend(&mut self, now: Timestamp) {
        if self.paused_until.since(now) > PAUSE_MAX {
            self.paused_until = now;
        }
        if self.next.since(now) > BURST + WAIT_MAX + self.interval {
            self.next = now;
        }
        self.spread = self
            .spread
            .filter(|spread| now < spread.until && spread.until.since(now) <= PAUSE_MAX);
    }

    /// Takes in what an answer of this status says.
    pub fn heard(&mut self, status: u16, advice: &Advice, now: Timestamp) {
        self.mend(now);
        let renewed = advice.reset.or(advice.window);
        let pause = match status {
            429 => Some(advice.retry_after.or(renewed).unwrap_or(PAUSE)),
            503 => advice.retry_after,
            _ => renewed.filter(|_| advice.remaining == Some(0)),
        };
        if let Some(pause) = pause {
            self.paused_until = self.paused_until.max(now.plus(pause.min(PAUSE_MAX)));
        }
        let (Some(limit), Some(remaining), Some(reset)) = (advice.limit, advice.remaining, renewed) else {
            return;
        };
        let same = self.spread.filter(|spread| spread.limit == limit);
        if remaining.saturating_mul(100) > limit.saturating_mul(SPREAD_PERCENT) {
            if same.is_some() {
                self.spread = None;
            }
            return;
        }
        let interval = reset.min(PAUSE_MAX) / u32::try_from(remaining.saturating_add(1)).unwrap_or(u32::MAX);
        // Of two limits the tighter one counts.
        if same.is_some() || self.spread.is_none_or(|other| other.interval < interval) {
            self.spread = Some(Spread {
                limit,
                interval,
                until: now.plus(reset.min(PAUSE_MAX)),
                next: same.map_or(now, |spread| spread.next).min(now.plus(interval)),
            });
        }
    }
}

/// The paces of all followed hosts, and their keys. Others, such as a directory, have no pace here.
#[derive(Debug, Default)]
pub struct Pacing(BTreeMap<String, (Mutex<Pace>, Option<BypassKey>)>);

impl Pacing {
    /// For these hosts, by their authority (host, and port where it is not the scheme's own), with so many requests
    /// a second for each.
    #[must_use]
    pub fn new(
        requests_per_second: u32,
        hosts: impl IntoIterator<Item = (String, Option<BypassKey>)>,
    ) -> Self {
        let pace = || Mutex::new(Pace::new(requests_per_second));
        Self(
            hosts
                .into_iter()
                .map(|(host, key)| (host, (pace(), key)))
                .collect(),
        )
    }

    /// As [`Pace::turn`]; at once for a host that has no pace.
    ///
    /// # Errors
    /// As [`Pace::turn`].
    pub fn turn(&self, authority: &str, now: Timestamp) -> Result<Duration, Duration> {
        self.0.get(authority).map_or(Ok(Duration::ZERO), |(pace, _)| {
            pace.lock().unwrap_or_else(PoisonError::into_inner).turn(now)
        })
    }

    /// As [`Pace::heard`].
    pub fn heard<'h>(
        &self,
        authority: &str,
        status: u16,
        header: impl Fn(&str) -> Option<&'h str>,
        now: Timestamp,
    ) {
        if let Some((pace, _)) = self.0.get(authority) {
            let advice = Advice::read(header, now);
            let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.heard(status, &advice, now);
        }
    }

    /// The key of this host, if there is one: for requests to this very host.
    #[must_use]
    pub fn bypass_key(&self, authority: &str) -> Option<&BypassKey> {
        self.0.get(authority).and_then(|(_, key)| key.as_ref())
    }
}

#[cfg(test)]
mod tests;
