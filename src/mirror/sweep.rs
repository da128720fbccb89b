//! Asking hosts again for what we hold of them: a takedown of a blob is no event, so nobody tells us of it.
//!
//! Round after round every stored blob that a record refers to is asked for, at an even pace: a round takes most
//! of the interval, so that each blob comes up within it. A few blobs are one piece of work; how far the round is
//! stands in the host's row, so a restart goes on where it was. A host that fails says nothing of its blobs.
//!
//! Records are not asked for: a host that took one down goes on giving it in `getRepo` and `sync.getRecord`, for
//! the tree could not be proven without it, and only its `repo.getRecord`, which a backup does not answer, hides it.

use std::time::Duration;

use super::input::{BlobKey, BlobVerdict};
use super::reader::Mirror;
use super::rows::{AccountRow, SweepMark, SweepPoint, SyncState};
use super::store::StoreError;
use crate::http::request::FetchError;
use crate::types::{Did, Digest, HostName, Timestamp};

/// What a round takes of the interval: the rest is for blobs that come while it runs, and for hosts that are away.
const ROUND_PERCENT: u32 = 80;
/// A host is asked for at most five blobs a second (a reference PDS allows one address ten requests): 432,000 a
/// day. With more, a round takes longer than the interval.
const GAP_LEAST: Duration = Duration::from_millis(200);
/// What part of the interval the longest pause is, after which a host's blobs are counted again too: those that
/// came meanwhile must not wait for the few before them.
const PAUSES: u32 = 24;
/// A host's wish to be left alone is granted for so long.
const WAIT_MOST: Duration = Duration::from_secs(3600);
/// One piece of work is about so long, and asks for no more than this.
const BATCH_TIME: Duration = Duration::from_secs(10);
const BATCH_MAX: usize = 50;
/// Rows of accounts and blobs that one piece of work looks at.
const LOOKED_MAX: usize = 20_000;
const PAGE: usize = 256;
/// After a host failed.
const RETRY: Duration = Duration::from_secs(300);
/// So many blobs in a row that it cannot speak of are a host that fails.
const UNCLEAR_MAX: usize = 3;
/// What it fails at so many times is passed over until the next round.
const FAILURES_MAX: u32 = 5;

/// What a host says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It gives it.
    Served,
    /// It says that it has no such blob, or may not give it.
    Withheld,
    /// It gives nothing of this account.
    AccountOff,
    /// It failed at this one.
    Unclear,
    /// It fails, or asks to be left alone (for so long).
    Away(Option<Duration>),
}

impl Answer {
    /// What a refusal means. Only plain words of the host itself count as withheld: a proxy before a host that is
    /// down says 404 too.
    #[must_use]
    pub fn of(error: &FetchError) -> Self {
        let FetchError::Status {
            status,
            error: name,
            message,
            ..
        } = error
        else {
            return match error {
                FetchError::Redirected { .. } | FetchError::Encoding { .. } | FetchError::BadUrl { .. } => {
                    Self::Unclear
                }
                FetchError::TooLarge { .. } => Self::Served,
                _ => Self::Away(error.wait()),
            };
        };
        let said = message.to_ascii_lowercase();
        let none = name == "BlobNotFound" || said.contains("blob not found");
        let taken = name.eq_ignore_ascii_case("BlobTakendown") || said.contains("taken down");
        match *status {
            429 | 502..=504 => Self::Away(error.wait()),
            451 => Self::Withheld,
            400 | 403 | 404 | 410 if name.starts_with("Repo") => Self::AccountOff,
            400 | 403 | 404 | 410 if !name.is_empty() && (none || taken) => Self::Withheld,
            _ => Self::Unclear,
        }
    }
}

impl SweepMark {
    /// Before the first round.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self {
            began: now,
            after: None,
            passed: 0,
            stored: 0,
            counted_at: Timestamp::from_micros(0),
            failures: 0,
            next: now,
            finished: None,
        }
    }

    /// How long to wait between two blobs, to be through in time.
    fn gap(&self, now: Timestamp, interval: Duration) -> Duration {
        let end = self.began.plus(interval * ROUND_PERCENT / 100);
        let left = self.stored.saturating_sub(self.passed).max(1);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        (end.since(now) / left).clamp(GAP_LEAST, (interval / PAUSES).max(GAP_LEAST))
    }
}

/// Whether the host is asked for blobs of this account: it gives nothing of one that is off, and neither do we.
fn is_asked(row: &AccountRow, host: &HostName) -> bool {
    let away = matches!(row.sync, SyncState::Moved { .. });
    row.host == *host && row.head.is_some() && row.upstream.is_active() && !away
}

/// One piece of a round: the blobs to be asked for, and what was said of them.
#[derive(Debug)]
pub struct Batch {
    mark: SweepMark,
    interval: Duration,
    blobs: Vec<BlobKey>,
    /// Stored blobs that were looked at for it.
    looked: u64,
    /// Where the round is when all of them are settled.
    reached: Option<SweepPoint>,
    /// Nothing comes after them.
    ends: bool,
    /// The next to be asked for.
    at: usize,
    /// Up to which all is settled.
    settled: usize,
    unclear: usize,
    /// The host failed, and asked for this wait.
    stopped: Option<Option<Duration>>,
    verdicts: Vec<BlobVerdict>,
}

impl Batch {
    /// What is to be asked for next, by the host's mark. Counts the host's blobs from time to time.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn next(
        mirror: &Mirror<'_>,
        host: &HostName,
        mut mark: SweepMark,
        now: Timestamp,
        interval: Duration,
    ) -> Result<Self, StoreError> {
        if now.since(mark.counted_at) >= interval / PAUSES {
            mark.stored = count_stored(mirror, host)?;
            mark.counted_at = now;
        }
        let gap = mark.gap(now, interval);
        let size = (BATCH_TIME.as_millis() / gap.as_millis().max(1)).clamp(1, BATCH_MAX as u128) as usize;
        let mut batch = Self {
            reached: mark.after.clone(),
            mark,
            interval,
            blobs: Vec::new(),
            looked: 0,
            ends: false,
            at: 0,
            settled: 0,
            unclear: 0,
            stopped: None,
            verdicts: Vec::new(),
        };
        batch.collect(mirror, host, size)?;
        Ok(batch)
    }

    fn collect(&mut self, mirror: &Mirror<'_>, host: &HostName, size: usize) -> Result<(), StoreError> {
        let mut budget = LOOKED_MAX;
        // The account that the batch before ended in.
        if let Some(SweepPoint {
            did,
            digest: Some(digest),
        }) = self.reached.clone()
            && let Some(row) = mirror.account(&did)?
            && is_asked(&row, host)
        {
            self.collect_account(mirror, &did, &row, Some(digest), size, &mut budget)?;
        }
        while self.blobs.len() < size && budget > 0 {
            let after = self.reached.as_ref().map(|point| point.did.as_str().to_owned());
            let page = mirror.accounts(after.as_deref(), PAGE)?;
            self.ends = page.len() < PAGE;
            for (did, row) in page {
                if self.blobs.len() >= size || budget == 0 {
                    self.ends = false;
                    break;
                }
                budget = budget.saturating_sub(1);
                if is_asked(&row, host) {
                    self.collect_account(mirror, &did, &row, None, size, &mut budget)?;
                } else {
                    self.reached = Some(SweepPoint { did, digest: None });
                }
            }
            if self.ends {
                break;
            }
        }
        // The last account of all may have more blobs than there was room for.
        self.ends &= self.reached.as_ref().is_none_or(|point| point.digest.is_none());
        Ok(())
    }

    fn collect_account(
        &mut self,
        mirror: &Mirror<'_>,
        did: &Did,
        row: &AccountRow,
        mut after: Option<Digest>,
        size: usize,
        budget: &mut usize,
    ) -> Result<(), StoreError> {
        let did = did.clone();
        while self.blobs.len() < size && *budget > 0 {
            let page = mirror.blobs_page(row.did_number, after.as_ref(), PAGE)?;
            if page.is_empty() {
                self.reached = Some(SweepPoint { did, digest: None });
                return Ok(());
            }
            for (digest, blob) in page {
                if self.blobs.len() >= size || *budget == 0 {
                    break;
                }
                *budget -= 1;
                after = Some(digest);
                self.looked += u64::from(blob.state.is_stored());
                if blob.state.is_stored() && mirror.blob_is_referenced(row.account_number, &digest)? {
                    self.blobs.push(BlobKey {
                        did: did.clone(),
                        did_number: row.did_number,
                        digest,
                    });
                }
            }
        }
        self.reached = Some(SweepPoint { did, digest: after });
        Ok(())
    }

    /// The blob to ask for now; none when all are settled, or the host fails.
    #[must_use]
    pub fn ask(&self) -> Option<&BlobKey> {
        self.blobs.get(self.at).filter(|_| self.stopped.is_none())
    }

    /// Takes what the host says of it.
    pub fn take(&mut self, answer: Answer) {
        let Some(blob) = self.blobs.get(self.at) else {
            return;
        };
        match answer {
            Answer::Served | Answer::Withheld => {
                let (blob, served) = (blob.clone(), answer == Answer::Served);
                self.verdicts.push(BlobVerdict { blob, served });
                self.at += 1;
                (self.settled, self.unclear) = (self.at, 0);
            }
            Answer::AccountOff => {
                let off = blob.did.clone();
                while self.blobs.get(self.at).is_some_and(|blob| blob.did == off) {
                    self.at += 1;
                }
                (self.settled, self.unclear) = (self.at, 0);
            }
            Answer::Unclear => {
                self.at += 1;
                self.unclear += 1;
                if self.unclear >= UNCLEAR_MAX {
                    self.stopped = Some(None);
                }
            }
            Answer::Away(wait) => self.stopped = Some(wait),
        }
    }

    /// What the host said, and where the round is now.
    #[must_use]
    pub fn finish(self, now: Timestamp) -> (Vec<BlobVerdict>, SweepMark) {
        let mut mark = self.mark;
        if let Some(wait) = self.stopped {
            mark.failures = if self.settled > 0 { 1 } else { mark.failures + 1 };
            let mut settled = self.settled;
            if mark.failures >= FAILURES_MAX {
                (settled, mark.failures) = (self.at.max(1), 0);
            }
            if let Some(last) = settled.checked_sub(1).and_then(|last| self.blobs.get(last)) {
                mark.after = Some(SweepPoint {
                    did: last.did.clone(),
                    digest: Some(last.digest),
                });
            }
            mark.passed += settled as u64;
            let retry = RETRY.min(self.interval / 10);
            mark.next = now.plus(wait.unwrap_or_default().min(WAIT_MOST).max(retry));
            return (self.verdicts, mark);
        }
        mark.failures = 0;
        mark.passed += self.looked;
        mark.after = self.reached;
        if self.ends {
            (mark.began, mark.after, mark.passed) = (now, None, 0);
            mark.finished = Some(now);
        }
        let asked = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX).max(1);
        mark.next = now.plus(mark.gap(now, self.interval) * asked);
        (self.verdicts, mark)
    }
}

/// The stored blobs of a host's accounts.
fn count_stored(mirror: &Mirror<'_>, host: &HostName) -> Result<u64, StoreError> {
    let mut numbers = Vec::new();
    mirror.each_account(|_, row| {
        if is_asked(&row, host) {
            numbers.push(row.did_number);
        }
        std::ops::ControlFlow::Continue(())
    })?;
    let mut stored = 0;
    for number in numbers {
        mirror.each_blob_of(number, |row| {
            stored += u64::from(row.state.is_stored());
            std::ops::ControlFlow::Continue(())
        })?;
    }
    Ok(stored)
}

#[cfg(test)]
mod tests;
