//! The log: what has still to be shipped to the archive, in the order in which it was applied.
//!
//! Each change stands once in the journal, under its DID and rev, and is named by one outbox row, under a log
//! number; the numbers are dense and never used again. Segments are cut from the outbox. A journal row goes when
//! its segment stands in the archive and a snapshot covers it: until then a delta may be made of it.

use std::ops::ControlFlow;

use super::super::erased::{ErasedMark, is_withheld};
use super::super::input::SegmentShipped;
use super::super::keyspace::{self, AlarmKind, META_LOG, META_NEXT_LOG};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, JournalEntry, JournalOp, LogRow, OutboxEntry, Row as _, Unlogged};
use super::super::store::{Family, KeyRange, Store, StoreError};
use super::{Applier, Group};
use crate::types::{Cid, Did, Digest, HostName, RepoPath, Rev};
use crate::verify::VerifiedRepo;

/// A swap that changed more than this is told by a snapshot. Both limits keep its entry within one segment.
const SWAP_OPS_MAX: usize = 1500;
const SWAP_BYTES_MAX: usize = 4 << 20;
/// Paths compared at once.
const PAGE: usize = 4096;

/// How the log tells of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logged {
    /// By what it changed, on the ground of what was there before.
    AsChange,
    /// Not at all: only a snapshot does.
    NeedsSnapshot,
}

impl Applier {
    /// Journals a change of an account and queues it for the log. Where too much waits for the archive already, it is
    /// left out: then only a snapshot tells what it led to.
    pub(super) fn log_change(
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
        row: &mut AccountRow,
        rev: Rev,
        entry: &JournalEntry,
    ) -> Result<(), StoreError> {
        if group.outbox_full {
            row.unlogged = Some(Unlogged { rev, told: false });
            let message = format!(
                "so much waits for the archive that no more is queued (spool_bytes_max): accounts that change now are in \
                 the archive only when they are snapshotted, and what they were in between is in no backup; see that {} \
                 and the others can be archived",
                row.host
            );
            return Self::raise(group, host, AlarmKind::SpoolFull, "", message, Vec::new());
        }
        if row.unlogged.is_some_and(|gap| !gap.told) {
            // What it builds on is not in the log: from here on it is told again.
            row.unlogged = Some(Unlogged { rev, told: true });
            group.stage.put_outbox(OutboxEntry::Loaded {
                did: did.clone(),
                host: host.clone(),
                rev,
                commit: Cid::of_block(&entry.commit_block),
                received: entry.received,
            });
            return Ok(());
        }
        let bytes = group.stage.put_journal(row.did_number, rev, entry) as u64;
        row.journal_bytes += bytes;
        row.journal_commits += 1;
        group.stage.put_outbox(OutboxEntry::Change {
            did: did.clone(),
            host: host.clone(),
            did_number: row.did_number,
            rev,
            bytes,
        });
        Ok(())
    }

    /// Tells the log where an account stands at its host now.
    pub(super) fn log_status(group: &mut Group<'_>, did: &Did, row: &AccountRow) {
        group.stage.put_outbox(OutboxEntry::Account {
            did: did.clone(),
            host: row.host.clone(),
            status: row.upstream.clone(),
            received: group.now,
        });
    }

    /// Tells the log what a swap changes; what is too much for it, or has nothing to build on, a snapshot tells.
    pub(super) fn log_swap(
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        number: u64,
        repo: &VerifiedRepo,
        sound: bool,
    ) -> Result<Logged, StoreError> {
        let host = row.host.clone();
        // The difference to what the log does not have is of no use in it.
        let sound = sound && !group.outbox_full && row.unlogged.is_none_or(|gap| gap.told);
        let ops = match &row.head {
            // The head that is held already: its change stands in the log under this rev.
            Some(head) if head.rev == repo.rev() => {
                let ops = if sound {
                    Self::swap_ops(group, row.account_number, number)?
                } else {
                    None
                };
                match ops {
                    Some(ops) if ops.is_empty() => return Ok(Logged::AsChange),
                    _ => None,
                }
            }
            Some(_) if sound => Self::swap_ops(group, row.account_number, number)?,
            _ => None,
        };
        let erased = Self::erased_of(group, did, row)?;
        if let (Some(mut ops), Some(head)) = (ops, &row.head) {
            for op in &mut ops {
                let withheld = |cid: &crate::types::Cid| {
                    op.bytes.as_deref().is_some_and(|bytes| is_withheld(cid, bytes))
                };
                if op.cid.as_ref().is_some_and(withheld) {
                    op.bytes = None;
                }
            }
            if let Some(known) = &erased {
                Self::blank_ops(&mut ops, known);
            }
            let entry = JournalEntry {
                commit_block: repo.block().to_vec(),
                since: head.rev,
                swap: true,
                ops,
                time: group.now,
                received: group.now,
                seq: 0,
                host: Some(host.clone()),
            };
            Self::log_change(group, did, &host, row, repo.rev(), &entry)?;
            return Ok(Logged::AsChange);
        }
        row.unlogged = None;
        group.stage.put_outbox(OutboxEntry::Loaded {
            did: did.clone(),
            host,
            rev: repo.rev(),
            commit: repo.cid(),
            received: group.now,
        });
        Ok(Logged::NeedsSnapshot)
    }

    /// A segment's entries are fixed, before its upload.
    pub(super) fn on_segment_cut(group: &mut Group<'_>, first: u64, last: u64) -> Result<(), StoreError> {
        let mut log = read_log(group.stage.store())?;
        if log.cut.is_none() {
            log.cut = Some((first, last));
            group.stage.batch().put(Family::Meta, META_LOG, log.encode());
        }
        Ok(())
    }

    /// A segment stands in the archive.
    pub(super) fn on_segment_shipped(
        &mut self,
        group: &mut Group<'_>,
        shipped: &SegmentShipped,
    ) -> Result<(), StoreError> {
        let mut log = read_log(group.stage.store())?;
        if log.number != shipped.number || log.cut != Some((shipped.first, shipped.last)) {
            return Ok(());
        }
        log.number += 1;
        log.prev = Some(shipped.index);
        log.cut = None;
        log.shipped = Some(shipped.last);
        group.stage.batch().put(Family::Meta, META_LOG, log.encode());

        let count = usize::try_from(shipped.last - shipped.first + 1).unwrap_or(usize::MAX);
        let entries = Mirror::new(group.stage.store()).outbox(shipped.first, count)?;
        for (number, entry) in entries {
            if number > shipped.last {
                break;
            }
            group.stage.take_outbox(number, entry.bytes());
            let OutboxEntry::Change {
                did, did_number, rev, ..
            } = entry
            else {
                continue;
            };
            let Some(mut row) = self.account(group, &did)? else {
                continue;
            };
            row.shipped = row.shipped.max(Some(rev));
            let whole = row.erased == Some(ErasedMark::Whole);
            if whole || row.snapshot.is_some_and(|snapshot| rev <= snapshot.rev) {
                let key = keyspace::encode_journal(did_number, rev);
                group.stage.batch().delete(Family::Journal, key.to_vec());
            }
            group.stage.put_account(&did, row);
        }
        Ok(())
    }

    /// This mirror is the writer of the archive's log, from this place on.
    pub(super) fn on_log_claimed(group: &mut Group<'_>, log: &LogRow) -> Result<(), StoreError> {
        group.stage.batch().put(Family::Meta, META_LOG, log.encode());
        Ok(())
    }

    /// The log of before belongs to another archive: nothing of it is shipped to this one.
    pub(super) fn forget_log(group: &mut Group<'_>) -> Result<(), StoreError> {
        let (mut waiting, mut bad) = (Vec::new(), None);
        let outbox = KeyRange::all();
        group
            .stage
            .store()
            .scan(Family::Outbox, &outbox, &mut |key, value| {
                let entry = OutboxEntry::decode(value).map_err(|error| error.to_string());
                let number = keyspace::decode_outbox(key).map_err(|error| error.to_string());
                match number.and_then(|number| Ok((number, entry?.bytes()))) {
                    Ok(found) => waiting.push(found),
                    Err(error) => bad = Some(StoreError::bad_row(Family::Outbox, key, error)),
                }
                if bad.is_some() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        bad.map_or(Ok(()), Err)?;
        for (number, bytes) in waiting {
            group.stage.take_outbox(number, bytes);
        }
        group.stage.batch().delete(Family::Meta, META_LOG);
        Ok(())
    }

    /// How a fetched generation differs from the one before it, as operations; none when that is too much for the
    /// log.
    pub(super) fn swap_ops(
        group: &Group<'_>,
        old: u64,
        new: u64,
    ) -> Result<Option<Vec<JournalOp>>, StoreError> {
        let mirror = Mirror::new(group.stage.store());
        let (mut ops, mut bytes) = (Vec::new(), 0);
        let mut bad = None;
        let mut after: Option<Vec<u8>> = None;
        loop {
            // A page of old paths, then the same stretch of the new generation; behind the last page, all the rest.
            let page = page_of(&mirror, old, after.as_deref())?;
            let end = (page.len() == PAGE).then(|| page[PAGE - 1].0.clone());
            let mut pending = page.into_iter().peekable();
            let mut push = |path: &[u8], record: Option<(crate::types::Cid, &[u8])>| {
                bytes += path.len() + record.map_or(0, |(_, bytes)| bytes.len());
                match RepoPath::from_bytes(path) {
                    Ok(path) => ops.push(JournalOp {
                        path,
                        cid: record.map(|(cid, _)| cid),
                        bytes: record.map(|(_, bytes)| bytes.to_vec()),
                    }),
                    // A tree may hold what is no path of AT Protocol; the log cannot name it, a snapshot can.
                    Err(error) => bad = Some(error),
                }
                if bad.is_some() || ops.len() > SWAP_OPS_MAX || bytes > SWAP_BYTES_MAX {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let mut full = ControlFlow::Continue(());
            mirror.scan_records(new, after.as_deref(), &mut |path, record| {
                if after.as_deref() == Some(path) {
                    return ControlFlow::Continue(());
                }
                if end.as_deref().is_some_and(|end| path > end) {
                    return ControlFlow::Break(());
                }
                while let Some((gone, _)) = pending.next_if(|(old, _)| old.as_slice() < path) {
                    full = push(&gone, None);
                    if full.is_break() {
                        return full;
                    }
                }
                let same = pending
                    .next_if(|(old, _)| old.as_slice() == path)
                    .is_some_and(|(_, digest)| digest == record.digest);
                if !same {
                    full = push(path, Some((record.cid(), record.bytes)));
                }
                full
            })?;
            for (gone, _) in pending {
                if full.is_continue() {
                    full = push(&gone, None);
                }
            }
            if full.is_break() {
                return Ok(None);
            }
            match end {
                Some(end) => after = Some(end),
                None => return Ok(Some(ops)),
            }
        }
    }
}

/// The next paths of a generation with their digests, behind `after`.
fn page_of(
    mirror: &Mirror<'_>,
    number: u64,
    after: Option<&[u8]>,
) -> Result<Vec<(Vec<u8>, Digest)>, StoreError> {
    let mut page = Vec::new();
    mirror.scan_records(number, after, &mut |path, record| {
        if after != Some(path) {
            page.push((path.to_vec(), record.digest));
        }
        if page.len() == PAGE {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(page)
}

/// How far the archive's log is.
pub(super) fn read_log(store: &dyn Store) -> Result<LogRow, StoreError> {
    Mirror::new(store).log()
}

/// The next log number to give out.
pub(super) fn next_log(store: &dyn Store) -> Result<u64, StoreError> {
    Ok(Mirror::new(store).number(META_NEXT_LOG)?.unwrap_or(1))
}
