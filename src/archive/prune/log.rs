#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Segments: oldest first, once each of their entries stands elsewhere, and behind a boundary.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::boundary::{BOUNDARY_BYTES_MAX, Boundary, Listed, STANDINGS_MAX, listed};
use super::super::bucket::{Body, PutOptions, PutOutcome};
use super::super::content_type::ContentType;
use super::super::log_file::{Entry, LogFile, Origin};
use super::super::names::{self, BoundaryName, DidFolder, ObjectName, SegmentName, SnapshotName};
use super::super::writer::{ClaimError, SHARD, read_segment};
use super::cover::Covers;
use super::moving::{Moving, blocks_of};
use super::{Memory, PruneError, Pruned, Pruner};
use crate::types::{Cid, Did};

/// Segments that go behind one boundary.
const STEP: usize = 500;
/// Bytes of entries that wait to be moved.
const MOVE_BYTES: u64 = 48 << 20;
/// Newest segments that always stay: whoever ships looks for the one before its own.
const STAY: usize = 2;

/// A segment that may go once what it holds was moved.
struct Passed {
    name: SegmentName,
    bytes: u64,
}

/// How a walk along the log ended.
pub(super) enum End {
    /// There is more.
    Step,
    /// What comes next is young, or the newest.
    Young,
    /// For another reason.
    HeldUp(String),
    /// What comes next is damaged: it stays, and what goes on from it.
    Damaged(String),
}

impl Pruner<'_> {
    /// Removes what may go, boundary after boundary.
    pub(super) async fn log(&self, memory: &mut Memory, pruned: &mut Pruned) -> Result<(), PruneError> {
        loop {
            let mut covers = Covers::new();
            let (log, sizes) = self.listed_log().await?;
            let before = self.boundary(&log).await?;
            self.remove_leftovers(&log, &sizes, pruned).await?;
            let room = log.segments.len().saturating_sub(STAY);
            if room == 0 {
                return Ok(());
            }
            let (boundary, passed, moving, end) = self
                .walk((&log, &sizes), before.as_ref(), (&mut covers, memory))
                .await?;
            if let End::Damaged(why) = &end {
                pruned.damaged.push(why.clone());
            }
            if let End::HeldUp(why) | End::Damaged(why) = &end {
                pruned.held_up = Some(why.clone());
            }
            if passed.is_empty() {
                return Ok(());
            }
            self.check_right().await?;
            for (did, moving) in moving {
                pruned.moved += self.move_entries(&did, moving, &mut covers).await?;
            }
            // What the boundary claims is looked at once more, as it stands there now. An account that came back
            // meanwhile is not gone.
            let gone = covers.iter().filter(|(_, covered)| covered.cover.is_gone);
            let gone: Vec<Did> = gone.map(|(did, _)| did.clone()).collect();
            for did in gone {
                if !self.cover(&did).await?.cover.is_gone {
                    let why =
                        format!("{did} was deleted a moment ago, and is not any more; it is tried again");
                    return Err(PruneError::Damaged(why));
                }
            }
            for (did, rev) in &boundary.led_to {
                if !self.cover(did).await?.cover.leads_to(*rev) {
                    let why = format!("{did} was held at rev {rev} a moment ago, and is not any more");
                    return Err(PruneError::Damaged(why));
                }
            }
            self.put_boundary(&boundary).await?;
            tracing::info!(begins = %boundary.name, segments = passed.len(), "the archive's log begins later from now on");
            for Passed { name, bytes } in passed {
                self.remove(&name.to_string(), "segments", bytes, pruned).await?;
            }
            if !matches!(end, End::Step) {
                let (log, sizes) = self.listed_log().await?;
                return self.remove_leftovers(&log, &sizes, pruned).await;
            }
        }
    }

    async fn listed_log(&self) -> Result<(Listed, BTreeMap<String, u64>), PruneError> {
        let (mut segments, mut boundaries, mut sizes) = (Vec::new(), Vec::new(), BTreeMap::new());
        for object in self.list(&SegmentName::prefix(SHARD)).await? {
            match object.name.parse() {
                Ok(ObjectName::Segment(name)) => segments.push(name),
                Ok(ObjectName::Boundary(name)) => boundaries.push(name),
                // Not ours: never removed.
                _ => continue,
            }
            sizes.insert(object.name, object.size);
        }
        Ok((listed(segments, boundaries), sizes))
    }

    /// The newest boundary. One that cannot be read stops everything: what it allowed is not known.
    async fn boundary(&self, log: &Listed) -> Result<Option<Boundary>, PruneError> {
        let Some(name) = log.boundary else { return Ok(None) };
        let text = name.to_string();
        let damaged = |detail: String| PruneError::Damaged(format!("{text} in {}: {detail}", self.bucket));
        let body = self.bucket.get(&text).await?;
        let bytes = match body {
            Some(body) => body.bytes(BOUNDARY_BYTES_MAX).await?,
            None => return Err(damaged("it vanished".to_owned())),
        };
        if log.segments.first().map(SegmentName::place) != Some(name) {
            return Err(damaged(
                "the segment that the log begins with is not there".to_owned(),
            ));
        }
        Boundary::decode(&bytes, &name).map(Some).map_err(damaged)
    }

    /// What an earlier run left: segments before the beginning, editions and boundaries of before.
    async fn remove_leftovers(
        &self,
        log: &Listed,
        sizes: &BTreeMap<String, u64>,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        let gone = log.removed.iter().chain(&log.replaced);
        for name in gone.map(SegmentName::to_string) {
            let bytes = sizes.get(&name).copied().unwrap_or(0);
            self.remove(&name, "segments", bytes, pruned).await?;
        }
        for name in log.old_boundaries.iter().map(BoundaryName::to_string) {
            let bytes = sizes.get(&name).copied().unwrap_or(0);
            self.remove(&name, "boundaries", bytes, pruned).await?;
        }
        Ok(())
    }

    /// Goes along the log from its beginning, as far as everything is covered, or can be moved.
    async fn walk(
        &self,
        (log, sizes): (&Listed, &BTreeMap<String, u64>),
        before: Option<&Boundary>,
        (covers, memory): (&mut Covers, &mut Memory),
    ) -> Result<(Boundary, Vec<Passed>, BTreeMap<Did, Moving>, End), PruneError> {
        let last = log.segments[log.segments.len() - STAY].place();
        let mut at = log.segments[0];
        let mut boundary = Boundary::at(at.place(), None, before, self.now);
        let (mut passed, mut moving, mut waiting) = (Vec::new(), BTreeMap::<Did, Moving>::new(), 0);
        let mut file = match read_segment(self.bucket, &at).await {
            Ok(file) => file,
            Err(error @ ClaimError::Damaged { .. }) => {
                return Ok((boundary, passed, moving, End::Damaged(error.to_string())));
            }
            Err(error) => return Err(error.into()),
        };
        if let (Some(before), Origin::Segment { prev, .. }) = (before, &file.index.origin) {
            boundary.prev = *prev;
            if *prev != before.prev {
                let why = format!("{at} does not go on from where the log's beginning says");
                return Ok((boundary, passed, moving, End::HeldUp(why)));
            }
        }
        loop {
            if at.place() >= last || self.cancel.is_cancelled() {
                return Ok((boundary, passed, moving, End::Young));
            }
            let (to_move, stop) = self.judge(&file, (covers, memory), &mut moving).await?;
            let next = match stop {
                Some(end) => Err(end),
                None => self.next_of(log, &at, file.root).await?,
            };
            let (next, next_file) = match next {
                Ok(next) => next,
                Err(end) => {
                    // It stays: nothing of it moves.
                    forget(&mut moving, &to_move);
                    return Ok((boundary, passed, moving, end));
                }
            };
            for entry in &to_move {
                let moving = moving.entry(entry.did().clone()).or_default();
                let named = entry.change().into_iter().flat_map(blocks_of);
                for cid in named {
                    if let Some(bytes) = file.blocks.get(&cid) {
                        waiting += bytes.len() as u64;
                        moving.blocks.insert(cid, bytes.clone());
                    }
                }
            }
            let gone: BTreeSet<&Did> = covers
                .iter()
                .filter_map(|(did, covered)| covered.cover.is_gone.then_some(did))
                .collect();
            boundary.pass(&file.index, |did| gone.contains(did));
            if boundary.standings.len() > STANDINGS_MAX {
                let why = format!("its boundary would have to keep more than {STANDINGS_MAX} standings");
                return Err(PruneError::Damaged(why));
            }
            let bytes = sizes.get(&at.to_string()).copied().unwrap_or(0);
            passed.push(Passed { name: at, bytes });
            // Written by somebody who was taken over from: behind the boundary too, and in no place of the log.
            let stale = log.segments.iter().filter(|name| **name > at && **name < next);
            passed.extend(stale.map(|name| Passed {
                name: *name,
                bytes: sizes.get(&name.to_string()).copied().unwrap_or(0),
            }));
            boundary.name = next.place();
            boundary.prev = Some(file.root);
            (at, file) = (next, next_file);
            if passed.len() >= STEP || waiting > MOVE_BYTES {
                return Ok((boundary, passed, moving, End::Step));
            }
        }
    }

    /// The segment behind one; an inner error says why there is none.
    async fn next_of(
        &self,
        log: &Listed,
        at: &SegmentName,
        root: Cid,
    ) -> Result<Result<(SegmentName, LogFile), End>, PruneError> {
        let mut candidates: Vec<SegmentName> = Vec::new();
        let later = log.segments.iter().filter(|name| *name > at);
        for name in later {
            let known = candidates.iter().any(|known| known.generation == name.generation);
            if !known && name.number == at.number.saturating_add(1) {
                candidates.push(*name);
            }
        }
        // Whoever took over goes first: what the one before wrote behind that is stale.
        for name in candidates.into_iter().rev() {
            let file = match read_segment(self.bucket, &name).await {
                Ok(file) => file,
                Err(error @ ClaimError::Damaged { .. }) => return Ok(Err(End::Damaged(error.to_string()))),
                Err(error) => return Err(error.into()),
            };
            if matches!(&file.index.origin, Origin::Segment { prev, .. } if *prev == Some(root)) {
                return Ok(Ok((name, file)));
            }
        }
        Ok(Err(End::HeldUp(format!(
            "nothing goes on from {at}: the log is broken there; see `firekeep verify`"
        ))))
    }

    async fn put_boundary(&self, boundary: &Boundary) -> Result<(), PruneError> {
        let name = boundary.name.to_string();
        let bytes = Bytes::from(boundary.encode());
        let options = PutOptions::create(ContentType::json());
        match self.bucket.put(&name, Body::Bytes(bytes), &options).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::AlreadyThere => Err(PruneError::Damaged(format!(
                "{name} is there already: another process prunes {}",
                self.bucket
            ))),
        }
    }
}

fn forget(moving: &mut BTreeMap<Did, Moving>, entries: &[Entry]) {
    for entry in entries {
        if let Some(moving) = moving.get_mut(entry.did()) {
            moving.changes.retain(|known| known != entry);
        }
    }
}

/// The folder of an account's snapshots.
pub(super) fn folder_of(did: &DidFolder) -> String {
    debug_assert!(
        SnapshotName::prefix(did).starts_with(names::REPOS),
        "one place for all"
    );
    SnapshotName::prefix(did)
}
