#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Entries of the log that no snapshot covers, and that move to deltas of their own.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::bucket::{Body, PutOptions, PutOutcome};
use super::super::content_type::ContentType;
use super::super::log_file::{
    Change, ENTRIES_BYTES_MAX, Entry, FORMAT, ITEMS_MAX, LogFile, LogIndex, Origin, PLAIN_BYTES_MAX,
    block_bytes,
};
use super::super::names::{DeltaName, DidFolder};
use super::super::shipper::pack;
use super::cover::Covers;
use super::{PruneError, Pruner};
use crate::types::{Cid, Did, Rev};

/// Entries of one account that move to deltas of their own.
#[derive(Default)]
pub(super) struct Moving {
    pub(super) changes: Vec<Entry>,
    pub(super) blocks: BTreeMap<Cid, Bytes>,
}

impl Pruner<'_> {
    /// Puts deltas of an account's entries. Returns how many.
    pub(super) async fn move_entries(
        &self,
        did: &Did,
        moving: Moving,
        covers: &mut Covers,
    ) -> Result<u64, PruneError> {
        let mut count = 0;
        let folder = DidFolder::try_from(did).map_err(|error| PruneError::Damaged(error.to_string()))?;
        let snapshots = covers
            .get(did)
            .map(|covered| covered.cover.snapshots.keys().copied().collect());
        let mut files = deltas_of(did, moving, &snapshots.unwrap_or_default());
        files.reverse();
        while let Some(file) = files.pop() {
            let (Origin::Delta { from, to, .. }, Some(Entry::Commit(last) | Entry::Swap(last))) =
                (&file.index.origin, file.index.entries.last())
            else {
                continue;
            };
            let name = DeltaName::new(folder.clone(), *from, *to, *last.commit.digest())
                .map_err(|error| PruneError::Damaged(error.to_string()))?;
            let (body, stats) = pack(&file.encode_car());
            let body = Body::Bytes(body.into());
            let options = PutOptions {
                sha256: Some(stats.sha256),
                ..PutOptions::create(ContentType::zstd())
            };
            let text = name.to_string();
            if self.bucket.put(&text, body.clone(), &options).await? == PutOutcome::AlreadyThere {
                let changes = file.index.entries.iter().filter_map(Entry::change);
                let mut ours = changes.map(|change| (change.since, change.rev, change.commit));
                match self.told_by(&text).await? {
                    Some(told) if ours.all(|link| told.contains(&link)) => {}
                    // It leads there on another way: ours go there one by one.
                    Some(_) if file.index.entries.len() > 1 => {
                        files.extend(one_by_one(did, &file).into_iter().rev());
                        continue;
                    }
                    Some(_) => {}
                    None => {
                        let options = PutOptions {
                            create_only: false,
                            ..options
                        };
                        self.bucket.put(&text, body, &options).await?;
                    }
                }
            }
            count += 1;
        }
        // Listed anew when it is asked for the next time.
        covers.remove(did);
        Ok(count)
    }
}

pub(super) fn blocks_of(change: &Change) -> impl Iterator<Item = Cid> {
    std::iter::once(change.commit).chain(change.ops.iter().filter_map(|op| op.cid))
}

/// Each change of a delta as a delta.
fn one_by_one(did: &Did, file: &LogFile) -> Vec<LogFile> {
    let each = file.index.entries.iter().filter_map(|entry| {
        let change = entry.change()?;
        let origin = Origin::Delta {
            did: did.clone(),
            from: change.since,
            to: change.rev,
        };
        let index = LogIndex {
            format: FORMAT,
            origin,
            entries: vec![entry.clone()],
        };
        Some(LogFile::new(index, file.blocks.clone()))
    });
    each.collect()
}

/// Entries as deltas: each of changes that build on each other, and none across a snapshot.
fn deltas_of(did: &Did, moving: Moving, snapshots: &BTreeSet<Rev>) -> Vec<LogFile> {
    let Moving { changes, blocks } = moving;
    let mut runs: Vec<Vec<Entry>> = Vec::new();
    let (mut items, mut index_bytes, mut bytes) = (0, 0_usize, 0_u64);
    let mut told = BTreeSet::new();
    for entry in changes {
        let Some(change) = entry.change().cloned() else {
            continue;
        };
        // Told again by a mirror that fell back.
        if !told.insert(change.rev) {
            continue;
        }
        let own: u64 = blocks_of(&change)
            .filter_map(|cid| blocks.get(&cid))
            .map(|block| block_bytes(block.len()))
            .sum();
        let last = runs.last().and_then(|run| run.last()).and_then(Entry::change);
        let goes_on = last.is_some_and(|last| last.rev == change.since) && !snapshots.contains(&change.since);
        items += entry.items();
        index_bytes = index_bytes.saturating_add(entry.encoded_bytes());
        bytes += own;
        let fits = items <= ITEMS_MAX
            && index_bytes <= ENTRIES_BYTES_MAX
            && bytes + (ENTRIES_BYTES_MAX as u64) <= PLAIN_BYTES_MAX;
        match runs.last_mut() {
            Some(run) if goes_on && fits => run.push(entry),
            _ => {
                (items, index_bytes, bytes) = (entry.items(), entry.encoded_bytes(), own);
                runs.push(vec![entry]);
            }
        }
    }
    let files = runs.into_iter().filter_map(|entries| {
        let (first, last) = (entries.first()?.change()?, entries.last()?.change()?);
        let origin = Origin::Delta {
            did: did.clone(),
            from: first.since,
            to: last.rev,
        };
        let index = LogIndex {
            format: FORMAT,
            origin,
            entries,
        };
        Some(LogFile::new(index, blocks.clone()))
    });
    files.collect()
}
