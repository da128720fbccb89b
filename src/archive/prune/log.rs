#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Segments: oldest first, once each of their entries stands elsewhere, and behind a boundary.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::super::boundary::{BOUNDARY_BYTES_MAX, Boundary, Cover, Listed, STANDINGS_MAX, listed};
use super::super::bucket::{Body, PutOptions, PutOutcome};
use super::super::content_type::ContentType;
use super::super::log_file::{
    Change, ENTRIES_BYTES_MAX, Entry, FORMAT, ITEMS_MAX, LogFile, LogIndex, Origin, PLAIN_BYTES_MAX,
    block_bytes,
};
use super::super::names::{self, BoundaryName, DeltaName, DidFolder, ObjectName, SegmentName, SnapshotName};
use super::super::retention::{Fate, Kept, plan};
use super::super::shipper::pack;
use super::super::writer::{SHARD, read_segment};
use super::{PruneError, Pruned, Pruner};
use crate::types::{Cid, Did, Rev};

/// Entries that no snapshot covers after this long move to a delta of their own: an account that seldom changes, or
/// cannot be snapshotted, does not hold the whole log.
const MOVE_AFTER: Duration = Duration::from_secs(2 * 24 * 3600);
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

/// Entries of one account that move to deltas of their own.
#[derive(Default)]
struct Moving {
    changes: Vec<Entry>,
    blocks: BTreeMap<Cid, Bytes>,
}

/// How a walk along the log ended.
enum End {
    /// There is more.
    Step,
    /// What comes next is young, or the newest.
    Young,
    /// For another reason.
    HeldUp(String),
}

impl Pruner<'_> {
    /// Removes what may go, boundary after boundary.
    pub(super) async fn log(&self, pruned: &mut Pruned) -> Result<(), PruneError> {
        let mut covers = BTreeMap::new();
        loop {
            let (log, sizes) = self.listed_log().await?;
            let before = self.boundary(&log).await?;
            self.remove_leftovers(&log, &sizes, pruned).await?;
            let room = log.segments.len().saturating_sub(STAY);
            if room == 0 {
                return Ok(());
            }
            let (boundary, passed, moving, end) =
                self.walk(&log, &sizes, before.as_ref(), &mut covers).await?;
            if let End::HeldUp(why) = &end {
                pruned.held_up = Some(why.clone());
            }
            if passed.is_empty() {
                return Ok(());
            }
            self.check_right().await?;
            for (did, moving) in moving {
                pruned.moved += self.move_entries(&did, moving, &mut covers).await?;
            }
            // What the boundary claims is looked at once more, as it stands there now.
            for (did, rev) in &boundary.led_to {
                let cover = self.cover(did).await?;
                if !cover.leads_to(*rev) {
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
        log: &Listed,
        sizes: &BTreeMap<String, u64>,
        before: Option<&Boundary>,
        covers: &mut BTreeMap<Did, Cover>,
    ) -> Result<(Boundary, Vec<Passed>, BTreeMap<Did, Moving>, End), PruneError> {
        let last = log.segments[log.segments.len() - STAY].place();
        let mut at = log.segments[0];
        let mut boundary = Boundary::at(at.place(), None, before, self.now);
        let (mut passed, mut moving, mut waiting) = (Vec::new(), BTreeMap::<Did, Moving>::new(), 0);
        let mut file = read_segment(self.bucket, &at).await?;
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
            let (to_move, stop) = self.judge(&file, covers, &mut moving).await?;
            let next = match stop {
                Some(end) => Err(end),
                None => self.next_of(log, &at, file.root).await?.map_err(End::HeldUp),
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
                .filter_map(|(did, cover)| cover.is_gone.then_some(did))
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

    /// Which entries of a segment have to be moved before it goes; and whether it must not go.
    async fn judge(
        &self,
        file: &LogFile,
        covers: &mut BTreeMap<Did, Cover>,
        moving: &mut BTreeMap<Did, Moving>,
    ) -> Result<(Vec<Entry>, Option<End>), PruneError> {
        let mut to_move: Vec<Entry> = Vec::new();
        for entry in &file.index.entries {
            let did = entry.did();
            let cover = match covers.entry(did.clone()) {
                MapEntry::Occupied(known) => known.into_mut(),
                MapEntry::Vacant(place) => place.insert(self.cover(did).await?),
            };
            match self.may_pass(entry, cover, moving.get(did)) {
                Ok(false) => {}
                Ok(true) => {
                    moving.entry(did.clone()).or_default().changes.push(entry.clone());
                    to_move.push(entry.clone());
                }
                Err(why) => return Ok((to_move, Some(why.map_or(End::Young, End::HeldUp)))),
            }
        }
        Ok((to_move, None))
    }

    /// Whether an entry has to be moved before its segment goes. An error: it must not go, and why if that is not its
    /// age.
    fn may_pass(
        &self,
        entry: &Entry,
        cover: &Cover,
        moving: Option<&Moving>,
    ) -> Result<bool, Option<String>> {
        if cover.has(entry) {
            return Ok(false);
        }
        let (Entry::Commit(change) | Entry::Swap(change)) = entry else {
            let did = entry.did();
            return Err(Some(format!(
                "{did} was fetched whole, and has no snapshot of that or later"
            )));
        };
        if self.now.since(change.received) < MOVE_AFTER {
            return Err(None);
        }
        let moves_on = moving.is_some_and(|moving| {
            let mut changes = moving.changes.iter().filter_map(Entry::change);
            changes.any(|moved| moved.rev == change.since || moved.rev == change.rev)
        });
        let anchored = cover.snapshots.contains(&change.since)
            || cover
                .deltas
                .iter()
                .any(|(from, to)| *from < change.since && change.since <= *to);
        if moves_on || anchored {
            return Ok(true);
        }
        Err(Some(format!(
            "what {} changed at rev {} builds on nothing that the archive holds; see `firekeep verify`",
            change.did, change.rev
        )))
    }

    /// The segment behind one; an inner error says why there is none.
    async fn next_of(
        &self,
        log: &Listed,
        at: &SegmentName,
        root: Cid,
    ) -> Result<Result<(SegmentName, LogFile), String>, PruneError> {
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
            let file = read_segment(self.bucket, &name).await?;
            if matches!(&file.index.origin, Origin::Segment { prev, .. } if *prev == Some(root)) {
                return Ok(Ok((name, file)));
            }
        }
        Ok(Err(format!(
            "nothing goes on from {at}: the log is broken there; see `firekeep verify`"
        )))
    }

    /// What the archive holds of an account, as it stands there now.
    async fn cover(&self, did: &Did) -> Result<Cover, PruneError> {
        let mut cover = Cover::default();
        let Ok(folder) = DidFolder::try_from(did) else {
            return Ok(cover);
        };
        let holdings = self.holdings(&folder).await?;
        cover.snapshots = holdings
            .plain
            .snapshots
            .iter()
            .map(|snapshot| snapshot.rev)
            .collect();
        cover.deltas = holdings
            .plain
            .deltas
            .iter()
            .map(|delta| (delta.from, delta.to))
            .collect();
        let note = self.note(&folder).await?;
        let erased = note.is_some_and(|note| note.account_erased().is_some());
        if let Some(known) = self.held.account(did)? {
            let long_ago = known
                .deleted
                .is_some_and(|at| self.now.since(at) >= self.keep.deleted);
            cover.is_gone = erased || (long_ago && !known.pinned);
            if !known.pinned {
                let planned = plan(&holdings.plain, &self.keep, self.now);
                let base = planned.snapshots.iter().find(|planned| match &planned.fate {
                    Fate::Keep(reasons) => reasons.contains(&Kept::WindowBase),
                    Fate::Delete(_) => false,
                });
                cover.needless_before = base.map(|planned| planned.what.rev);
            }
        } else {
            cover.is_gone = erased;
        }
        Ok(cover)
    }

    /// Puts deltas of an account's entries. Returns how many.
    async fn move_entries(
        &self,
        did: &Did,
        moving: Moving,
        covers: &mut BTreeMap<Did, Cover>,
    ) -> Result<u64, PruneError> {
        let mut count = 0;
        let folder = DidFolder::try_from(did).map_err(|error| PruneError::Damaged(error.to_string()))?;
        let cover = covers.entry(did.clone()).or_default();
        for file in deltas_of(did, moving, &cover.snapshots) {
            let (Origin::Delta { from, to, .. }, Some(Entry::Commit(last) | Entry::Swap(last))) =
                (&file.index.origin, file.index.entries.last())
            else {
                continue;
            };
            let name = DeltaName::new(folder.clone(), *from, *to, *last.commit.digest())
                .map_err(|error| PruneError::Damaged(error.to_string()))?;
            let (body, stats) = pack(&file.encode_car());
            let options = PutOptions {
                sha256: Some(stats.sha256),
                ..PutOptions::create(ContentType::zstd())
            };
            let text = name.to_string();
            // One that is there says the same: the name tells which commits it leads over.
            self.bucket.put(&text, Body::Bytes(body.into()), &options).await?;
            cover.deltas.push((*from, *to));
            count += 1;
        }
        Ok(count)
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

fn blocks_of(change: &Change) -> impl Iterator<Item = Cid> {
    std::iter::once(change.commit).chain(change.ops.iter().filter_map(|op| op.cid))
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

/// The folder of an account's snapshots.
pub(super) fn folder_of(did: &DidFolder) -> String {
    debug_assert!(
        SnapshotName::prefix(did).starts_with(names::REPOS),
        "one place for all"
    );
    SnapshotName::prefix(did)
}
