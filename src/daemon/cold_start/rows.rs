#![allow(clippy::disallowed_methods, reason = "shell: the archive")]
//! What an account out of the archive becomes in the mirror: records under a number of their own, and blobs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ColdStart, FillError, Sources};
use crate::archive::state_file::HostState;
use crate::mirror::applier::restored::LISTED_AFTER;
use crate::mirror::erased::ErasedRow;
use crate::mirror::input::BlobMention;
use crate::mirror::keyspace::{self, NO_NUMBER};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{BlobRow, BlobState, HostRow, JournalEntry, Listing, RecordValue, SweepMark};
use crate::mirror::store::{Batch, Family, StoreError};
use crate::types::{Cid, Did, Digest, HostName, Rev, Timestamp};

/// Blobs are asked for again only some time after a start.
const SWEEP_AFTER: Duration = Duration::from_secs(600);
/// Rows are written in batches of this many bytes.
pub(super) const BATCH_BYTES: usize = 1 << 20;

impl Sources {
    /// The hosts of which the archive tells, and that are not configured: when it was as told, and their accounts.
    pub(super) fn unfollowed(&self) -> Vec<(&HostName, Timestamp, usize)> {
        let ours = |state: &HostState| {
            let of = state.accounts.keys();
            of.filter(|did| self.host_of(did).as_ref() == Some(&state.host))
                .count()
        };
        let others = self
            .states
            .iter()
            .filter(|(host, _)| !self.followed.contains(*host));
        let others = others.map(|(host, state)| (host, state.time, ours(state)));
        others.filter(|(.., accounts)| *accounts > 0).collect()
    }

    /// Says so.
    pub(super) fn tell_unfollowed(&self) {
        for (host, since, accounts) in self.unfollowed() {
            tracing::warn!(
                %host,
                accounts,
                "the archive has accounts of this host, and it is not configured: they are restored as they stood at \
                 {since}, and not followed; to follow them, add it to the hosts of the configuration"
            );
        }
    }
}

impl ColdStart {
    /// The account's blobs: those that the archive has, and those that it lacks.
    pub(super) async fn blobs(
        &self,
        did: &Did,
        mentions: Vec<BlobMention>,
        withheld: Option<&[Cid]>,
        now: Timestamp,
    ) -> Result<Vec<(Digest, BlobRow)>, FillError> {
        let archived: BTreeMap<Digest, u64> = self.reader.blobs(did).await?.into_iter().collect();
        let mut rows: BTreeMap<Digest, BlobRow> = BTreeMap::new();
        for (digest, size) in &archived {
            let mut row = BlobRow::wanted(Some(*size), None, now);
            row.state = BlobState::Archived;
            let hidden = withheld.is_some_and(|hidden| hidden.contains(&Cid::raw(*digest)));
            row.withheld_since = hidden.then_some(now);
            rows.insert(*digest, row);
        }
        for mention in mentions {
            let wanted = BlobRow::wanted(mention.size, None, now);
            let row = rows.entry(mention.digest).or_insert(wanted);
            row.mime = mention.mime;
        }
        if let Some(erased) = Mirror::new(&*self.store).erased(did)? {
            for (digest, row) in &mut rows {
                if erased.withholds_blob(digest) {
                    row.state = BlobState::Erased;
                }
            }
        }
        Ok(rows.into_iter().collect())
    }

    pub(super) fn unload(&self, number: u64) -> Result<(), StoreError> {
        let (from, to) = keyspace::number_bounds(number);
        let mut batch = Batch::new();
        for family in [Family::Records, Family::BlobRefs] {
            batch.delete_range(family, from, to);
        }
        self.store.write(batch)
    }
}

/// Writes records of a generation, in batches.
pub(super) struct RowWriter<'c> {
    cold: &'c ColdStart,
    number: u64,
    batch: Batch,
    failed: Option<StoreError>,
    /// What of the account is not taken.
    erased: Option<ErasedRow>,
}

impl<'c> RowWriter<'c> {
    pub(super) fn new(cold: &'c ColdStart, number: u64, erased: Option<ErasedRow>) -> Self {
        debug_assert_ne!(number, NO_NUMBER, "a generation has a number");
        Self {
            cold,
            number,
            batch: Batch::new(),
            failed: None,
            erased,
        }
    }

    /// Whether a record's bytes are not taken.
    pub(super) fn withholds(&self, cid: &Cid) -> bool {
        self.erased.as_ref().is_some_and(|erased| erased.withholds(cid))
    }

    pub(super) fn put(&mut self, path: &[u8], cid: Cid, bytes: &[u8], rev: Rev) {
        let bytes = if self.withholds(&cid) { &[] } else { bytes };
        let digest = *cid.digest();
        let value = RecordValue { rev, digest, bytes };
        let key = keyspace::encode_record(self.number, path);
        self.batch.put(Family::Records, key, value.encode());
        self.flush(BATCH_BYTES);
    }

    /// Applies a change; the error is the path of a record whose bytes are not there.
    pub(super) fn apply(&mut self, rev: Rev, entry: &JournalEntry) -> Result<(), String> {
        for op in &entry.ops {
            match (&op.cid, &op.bytes) {
                (Some(cid), Some(bytes)) => self.put(op.path.as_bytes(), *cid, bytes, rev),
                (Some(cid), None) if self.withholds(cid) => self.put(op.path.as_bytes(), *cid, &[], rev),
                (Some(_), None) => return Err(op.path.to_string()),
                (None, _) => {
                    let key = keyspace::encode_record(self.number, op.path.as_bytes());
                    self.batch.delete(Family::Records, key);
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, at: usize) {
        if self.batch.bytes() >= at
            && self.failed.is_none()
            && let Err(error) = self.cold.store.write(std::mem::take(&mut self.batch))
        {
            self.failed = Some(error);
        }
    }

    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        self.flush(0);
        self.failed.map_or(Ok(()), Err)
    }
}

/// A host as the archive knows it. It is listed again soon, for what no event told.
pub(super) fn host_row(state: &HostState, url: &str, now: Timestamp) -> HostRow {
    let listed = state.listed.filter(|_| state.cursor.is_some());
    HostRow {
        epoch: state.epoch,
        cursor: state.cursor,
        highest_seq: state.highest_seq,
        listing: match listed {
            Some(at) => Listing::Finished { at },
            None => Listing::Unfinished { cursor: None },
        },
        last_event: state.last_event,
        ring: state.ring.clone(),
        rolled_back_at: state.rolled_back_at,
        next_listing: Some(now.plus(LISTED_AFTER)),
        sweep: Some(SweepMark {
            next: now.plus(SWEEP_AFTER),
            ..SweepMark::new(now)
        }),
        ..HostRow::new(url)
    }
}

/// A host of which only the log speaks: all its accounts are compared.
pub(super) fn row_of_log(seq: Option<u64>, url: &str) -> HostRow {
    HostRow {
        cursor: seq,
        highest_seq: seq.unwrap_or(0),
        ..HostRow::new(url)
    }
}
