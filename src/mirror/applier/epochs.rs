//! Whether an event belongs to the numbering that we followed until now.
//!
//! A host that was restored from an older copy numbers anew, with or without saying so. The last applied
//! events are remembered with a fingerprint each ([`HostRow::ring`]), and a connection begins a few of them
//! early ([`resume_cursor`]): if what comes again is not what came before, the host has another history, and
//! that begins a new epoch. The cursor is reset then, never the data.

use std::time::Duration;

use super::super::rows::{HostRow, Listing, RING_MAX};
use crate::types::Timestamp;

/// How many known events a new connection asks for again.
const OVERLAP_EVENTS: usize = 32;
/// Not if the newest event is older than this: the host may keep no more than a day, and would report a gap
/// where there is none.
const OVERLAP_AGE_MAX: Duration = Duration::from_secs(12 * 3600);

/// How an event stands to what was applied before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It comes after all of it.
    Next,
    /// It was applied before.
    Seen,
    /// Its number was applied before with something else, or was not there: the host has another history.
    OtherHistory,
}

/// Judges an event by its number and fingerprint.
pub(super) fn place(row: &HostRow, seq: u64, fingerprint: u64) -> Place {
    let Some(cursor) = row.cursor else {
        return Place::Next;
    };
    if seq > cursor {
        return Place::Next;
    }
    match row.ring.binary_search_by_key(&seq, |(known, _)| *known) {
        Ok(found) if row.ring[found].1 == fingerprint => Place::Seen,
        Ok(_) => Place::OtherHistory,
        // Before what we remember: it cannot be told from what we applied and forgot.
        Err(0) => Place::Seen,
        // Between two that we remember: there was no such event.
        Err(_) => Place::OtherHistory,
    }
}

/// Takes an applied event into the ring.
pub(super) fn remember(row: &mut HostRow, seq: u64, fingerprint: u64) {
    row.cursor = Some(seq);
    row.highest_seq = row.highest_seq.max(seq);
    row.ring.push((seq, fingerprint));
    if row.ring.len() > RING_MAX {
        row.ring.remove(0);
    }
}

/// Begins a new epoch: numbers mean nothing new yet, and every account has to be compared. The highest number
/// ever seen stays, for whoever has to move a restored host past it.
pub(super) fn begin_epoch(row: &mut HostRow, now: Timestamp) {
    row.epoch += 1;
    row.cursor = None;
    row.ring.clear();
    row.listing = Listing::Unfinished { cursor: None };
    row.rolled_back_at = Some(now);
}

/// The cursor that a connection should ask for: everything the first time, else a little less than what was
/// applied last.
#[must_use]
pub fn resume_cursor(row: Option<&HostRow>, now: Timestamp) -> u64 {
    let Some(row) = row else { return 0 };
    let Some(cursor) = row.cursor else { return 0 };
    let recent = row.last_event.is_some_and(|at| now.since(at) < OVERLAP_AGE_MAX);
    if !recent {
        return cursor;
    }
    let at = row.ring.len().saturating_sub(OVERLAP_EVENTS);
    row.ring
        .get(at)
        .map_or(cursor, |(seq, _)| seq.saturating_sub(1).min(cursor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn row(events: impl IntoIterator<Item = (u64, u64)>) -> HostRow {
        let mut row = HostRow::new("https://pds.test");
        row.last_event = Some(NOW);
        for (seq, fingerprint) in events {
            remember(&mut row, seq, fingerprint);
        }
        row
    }

    #[test]
    fn known_events_are_told_from_another_history() {
        let row = row([(5, 50), (7, 70), (9, 90)]);
        assert_eq!(place(&row, 10, 1), Place::Next);
        assert_eq!(place(&row, 9, 90), Place::Seen);
        assert_eq!(place(&row, 9, 91), Place::OtherHistory);
        assert_eq!(place(&row, 8, 80), Place::OtherHistory, "there was no event 8");
        assert_eq!(place(&row, 4, 40), Place::Seen, "before all that is remembered");
        assert_eq!(place(&HostRow::new(""), 1, 1), Place::Next);
    }

    #[test]
    fn the_ring_is_bounded_and_the_highest_number_stays() {
        let mut row = row((1..=1000).map(|seq| (seq, seq)));
        assert_eq!(row.ring.len(), RING_MAX);
        begin_epoch(&mut row, NOW);
        assert_eq!((row.epoch, row.cursor, row.highest_seq), (1, None, 1000));
        remember(&mut row, 3, 3);
        assert_eq!((row.cursor, row.highest_seq), (Some(3), 1000));
    }

    #[test]
    fn a_connection_begins_a_little_early() {
        assert_eq!(resume_cursor(None, NOW), 0);
        assert_eq!(resume_cursor(Some(&HostRow::new("")), NOW), 0);
        assert_eq!(resume_cursor(Some(&row([(10, 1), (12, 2)])), NOW), 9);
        let long = row((1..=100).map(|seq| (seq * 2, seq)));
        assert_eq!(resume_cursor(Some(&long), NOW), 2 * 69 - 1);
        // On a quiet host the host's window may have passed: nothing is asked for twice.
        assert_eq!(resume_cursor(Some(&long), NOW.plus(OVERLAP_AGE_MAX)), 200);
    }
}
