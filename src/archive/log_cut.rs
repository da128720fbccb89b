//! What the mirror has for the archive, as files: segments from the outbox, deltas from the journal.
//!
//! Pure: reads a consistent view and builds. The same view and the same cut give the same file.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::log_file::{
    Change, ENTRIES_BYTES_MAX, Entry, FORMAT, ITEMS_MAX, LogFile, LogIndex, Op, Origin, PLAIN_BYTES_MAX,
    block_bytes,
};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{JournalEntry, LogRow, OutboxEntry};
use crate::mirror::store::{Family, StoreError};
use crate::types::{Cid, Did, HostName, Rev, Timestamp};

/// Entries read at once: what is read beyond the end of a file is read again for the next.
const PAGE: usize = ITEMS_MAX / 8;
/// What the index of a file takes at most, and the header before it.
const INDEX_BYTES: u64 = 2 << 20;

/// A segment that is to be written, and the log numbers that it holds.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The file.
    pub file: LogFile,
    /// Its first log number.
    pub first: u64,
    /// Its last.
    pub last: u64,
    /// When the oldest of its entries reached us.
    pub oldest: Timestamp,
    /// Whether there was more than fits into it.
    pub is_full: bool,
}

/// The next segment: of the cut that is fixed already, or of as much of the outbox as fits into one.
///
/// # Errors
/// When the store cannot be read, or the outbox names what the journal does not hold.
pub fn next_segment(mirror: &Mirror<'_>, log: &LogRow) -> Result<Option<Segment>, StoreError> {
    let behind = log.shipped.map_or(0, |last| last + 1);
    let mut from = log.cut.map_or(behind, |(first, _)| first);
    let mut parts = Parts::default();
    let (mut first, mut last, mut is_full) = (None, 0, false);
    'pages: loop {
        let page = mirror.outbox(from, PAGE)?;
        let is_last = page.len() < PAGE;
        for (number, row) in page {
            let (entry, blocks) = entry_of(mirror, number, row)?;
            let fits = parts.push(entry, blocks);
            is_full |= !fits;
            if !fits || log.cut.is_some_and(|(_, end)| number > end) {
                break 'pages;
            }
            first.get_or_insert(number);
            last = number;
            from = number + 1;
            if log.cut.is_some_and(|(_, end)| number == end) {
                break 'pages;
            }
        }
        if is_last {
            break;
        }
    }
    let Some(first) = first else { return Ok(None) };
    if log.cut.is_some_and(|cut| cut != (first, last)) {
        return Err(StoreError::bad_row(
            Family::Outbox,
            &crate::mirror::keyspace::encode_outbox(first),
            "the outbox no longer holds what the next segment was to hold",
        ));
    }
    let oldest = parts.oldest.unwrap_or_default();
    let file = parts.finish(Origin::Segment {
        shard: 0,
        generation: log.generation,
        number: log.number,
        prev: log.prev,
        first,
    });
    Ok(Some(Segment {
        file,
        first,
        last,
        oldest,
        is_full,
    }))
}

/// The account's changes behind rev `from`, as one delta: as many as fit into a file, each of which builds on the one
/// before it, up to `to`; and the rev that they lead to. None where that chain ends: what a repository was that was
/// fetched whole in between, only snapshots say. `host` stands for the host of changes that do not name theirs.
///
/// One file at a time, so that a long journal takes no more memory than a short one.
///
/// # Errors
/// When the store cannot be read.
pub fn next_delta(
    mirror: &Mirror<'_>,
    did: &Did,
    did_number: u64,
    host: &HostName,
    (from, to): (Rev, Rev),
) -> Result<Option<(LogFile, Rev)>, StoreError> {
    let (mut at, mut parts) = (from, Parts::default());
    mirror.each_journal_entry(did_number, Some(from), |rev, journalled| {
        if rev <= from {
            return ControlFlow::Continue(());
        }
        if rev > to || journalled.since != at {
            return ControlFlow::Break(());
        }
        let host = journalled.host.clone().unwrap_or_else(|| host.clone());
        let (entry, blocks) = change_entry(did.clone(), host, rev, journalled);
        if !parts.push(entry, blocks) {
            return ControlFlow::Break(());
        }
        at = rev;
        ControlFlow::Continue(())
    })?;
    let did = did.clone();
    Ok((at > from).then(|| (parts.finish(Origin::Delta { did, from, to: at }), at)))
}

fn entry_of(mirror: &Mirror<'_>, number: u64, row: OutboxEntry) -> Result<(Entry, Blocks), StoreError> {
    Ok(match row {
        OutboxEntry::Change {
            did,
            host,
            did_number,
            rev,
            ..
        } => {
            let journalled = mirror.journal_entry(did_number, rev)?.ok_or_else(|| {
                StoreError::bad_row(
                    Family::Outbox,
                    &crate::mirror::keyspace::encode_outbox(number),
                    "it names a change that the journal does not hold",
                )
            })?;
            change_entry(did, host, rev, journalled)
        }
        OutboxEntry::Loaded {
            did,
            host,
            rev,
            commit,
            received,
        } => {
            let loaded = Entry::Loaded {
                did,
                host,
                rev,
                commit,
                received,
            };
            (loaded, Blocks::new())
        }
        OutboxEntry::Account {
            did,
            host,
            status,
            received,
        } => {
            let account = Entry::Account {
                did,
                host,
                status,
                received,
            };
            (account, Blocks::new())
        }
    })
}

/// What an entry names, with the bytes that are held.
type Blocks = Vec<(Cid, Bytes)>;

fn change_entry(did: Did, host: HostName, rev: Rev, journalled: JournalEntry) -> (Entry, Blocks) {
    let commit = Cid::of_block(&journalled.commit_block);
    let mut blocks = Blocks::with_capacity(1 + journalled.ops.len());
    blocks.push((commit, journalled.commit_block.into()));
    let ops = journalled.ops.into_iter().map(|op| {
        if let (Some(cid), Some(bytes)) = (op.cid, op.bytes) {
            blocks.push((cid, bytes.into()));
        }
        Op {
            path: op.path,
            cid: op.cid,
        }
    });
    let change = Change {
        did,
        host,
        seq: journalled.seq,
        since: journalled.since,
        rev,
        time: journalled.time,
        received: journalled.received,
        commit,
        ops: ops.collect(),
    };
    let entry = if journalled.swap {
        Entry::Swap(change)
    } else {
        Entry::Commit(change)
    };
    (entry, blocks)
}

/// A file in the making.
#[derive(Default)]
struct Parts {
    entries: Vec<Entry>,
    blocks: BTreeMap<Cid, Bytes>,
    items: usize,
    /// Bytes of the entries in the index.
    index_bytes: usize,
    /// Bytes of the blocks behind it.
    bytes: u64,
    oldest: Option<Timestamp>,
}

impl Parts {
    /// Adds an entry with its blocks, unless the file is full. The first always fits.
    fn push(&mut self, entry: Entry, mut blocks: Blocks) -> bool {
        blocks.sort_unstable_by_key(|(cid, _)| *cid);
        blocks.dedup_by_key(|(cid, _)| *cid);
        blocks.retain(|(cid, _)| !self.blocks.contains_key(cid));
        let items = self.items + entry.items();
        let new_bytes = blocks.iter().map(|(_, block)| block_bytes(block.len()));
        let bytes = self.bytes + new_bytes.sum::<u64>();
        let index_bytes = self.index_bytes.saturating_add(entry.encoded_bytes());
        let too_much =
            items > ITEMS_MAX || index_bytes > ENTRIES_BYTES_MAX || bytes + INDEX_BYTES > PLAIN_BYTES_MAX;
        if !self.entries.is_empty() && too_much {
            return false;
        }
        (self.items, self.index_bytes, self.bytes) = (items, index_bytes, bytes);
        self.oldest.get_or_insert(match &entry {
            Entry::Commit(change) | Entry::Swap(change) => change.received,
            Entry::Loaded { received, .. } | Entry::Account { received, .. } => *received,
        });
        self.entries.push(entry);
        self.blocks.extend(blocks);
        true
    }

    fn finish(self, origin: Origin) -> LogFile {
        let index = LogIndex {
            format: FORMAT,
            origin,
            entries: self.entries,
        };
        LogFile::new(index, self.blocks)
    }
}

#[cfg(test)]
mod tests;
