#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Whether what the log tells stands elsewhere: names say where to look, and what was read there decides.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::boundary::{Cover, Stands};
use super::super::log_file::{Change, Entry, LogFile};
use super::super::names::{DidFolder, ObjectName};
use super::super::retention::{Fate, Kept, Plan, Proof, plan};
use super::super::scrub::content::{Bad, check_delta, read_log_file};
use super::account::Listing;
use super::log::End;
use super::moving::Moving;
use super::{Memory, PruneError, Pruner};
use crate::types::{Cid, Did, Rev};

/// Entries that no snapshot covers after this long move to a delta of their own: an account that seldom changes, or
/// cannot be snapshotted, does not hold the whole log.
const MOVE_AFTER: Duration = Duration::from_secs(2 * 24 * 3600);
/// What the archive holds of an account, and where.
#[derive(Default)]
pub(super) struct Covered {
    pub(super) cover: Cover,
    pub(super) listing: Listing,
}

pub(super) type Covers = BTreeMap<Did, Covered>;

impl Pruner<'_> {
    /// Which entries of a segment have to be moved before it goes; and whether it must not go.
    pub(super) async fn judge(
        &self,
        file: &LogFile,
        (covers, memory): (&mut Covers, &mut Memory),
        moving: &mut BTreeMap<Did, Moving>,
    ) -> Result<(Vec<Entry>, Option<End>), PruneError> {
        let mut to_move: Vec<Entry> = Vec::new();
        for entry in &file.index.entries {
            let did = entry.did();
            let cover = match covers.entry(did.clone()) {
                MapEntry::Occupied(known) => known.into_mut(),
                MapEntry::Vacant(place) => match self.cover(did).await {
                    Ok(cover) => place.insert(cover),
                    Err(PruneError::Damaged(why)) => return Ok((to_move, Some(End::HeldUp(why)))),
                    Err(error) => return Err(error),
                },
            };
            match self.may_pass(entry, (cover, memory), moving.get(did)).await? {
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

    /// Whether an entry has to be moved before its segment goes. An inner error: it must not go, and why if that is not
    /// its age.
    async fn may_pass(
        &self,
        entry: &Entry,
        (covered, memory): (&mut Covered, &mut Memory),
        moving: Option<&Moving>,
    ) -> Result<Result<bool, Option<String>>, PruneError> {
        loop {
            match covered.cover.has(entry) {
                Stands::Yes => return Ok(Ok(false)),
                Stands::No => break,
                Stands::IfSound(rev) => self.look_at_snapshot(covered, rev, memory).await?,
                Stands::IfTold(at) => self.look_at_delta(covered, at).await?,
            }
        }
        let (Entry::Commit(change) | Entry::Swap(change)) = entry else {
            let did = entry.did();
            return Ok(Err(Some(format!(
                "{did} was fetched whole, and has no snapshot of that or later which proves"
            ))));
        };
        let mut waiting: Vec<&Change> = Vec::new();
        if let Some(moving) = moving {
            waiting.extend(moving.changes.iter().filter_map(Entry::change));
        }
        let told_otherwise = |moved: &&Change| moved.rev == change.rev && moved.commit != change.commit;
        if waiting.iter().any(told_otherwise) {
            return Ok(Err(Some(format!(
                "the log tells of two commits of {} at rev {}; see `firekeep verify`",
                change.did, change.rev
            ))));
        }
        let leads_here = |moved: &Change| moved.rev == change.since || moved.rev == change.rev;
        if waiting.into_iter().any(leads_here) || self.is_anchored(covered, change.since).await? {
            let is_old = self.now.since(change.received) >= MOVE_AFTER;
            return Ok(if is_old { Ok(true) } else { Err(None) });
        }
        loop {
            match covered.cover.has_moment(change) {
                Stands::Yes => return Ok(Ok(false)),
                Stands::IfSound(rev) => self.look_at_snapshot(covered, rev, memory).await?,
                Stands::IfTold(_) | Stands::No => break,
            }
        }
        Ok(Err(Some(format!(
            "what {} changed at rev {} builds on nothing that the archive holds; see `firekeep verify`",
            change.did, change.rev
        ))))
    }

    /// Whether something in the archive leads to a rev, so that what builds on it can be told by a delta.
    async fn is_anchored(&self, covered: &mut Covered, rev: Rev) -> Result<bool, PruneError> {
        loop {
            match covered.cover.anchors(rev) {
                Stands::Yes => return Ok(true),
                Stands::IfTold(at) => self.look_at_delta(covered, at).await?,
                Stands::IfSound(_) | Stands::No => return Ok(false),
            }
        }
    }

    /// Reads and rebuilds the snapshot of a rev.
    async fn look_at_snapshot(
        &self,
        covered: &mut Covered,
        rev: Rev,
        memory: &mut Memory,
    ) -> Result<(), PruneError> {
        let Covered { cover, listing, .. } = covered;
        if self.proves(listing, rev, memory).await? {
            cover.sound.insert(rev);
            return Ok(());
        }
        cover.rotten.insert(rev);
        for snapshot in &mut listing.plain.snapshots {
            if snapshot.rev == rev {
                snapshot.proof = Proof::Bad;
            }
        }
        if !listing.plain.pinned {
            // What was to be the first of all kept moments is none: an older one is.
            cover.needless_before = base_of(&plan(&listing.plain, &self.keep, self.now));
        }
        Ok(())
    }

    /// Reads a delta: what it tells counts, and not what its name says that it leads over.
    async fn look_at_delta(&self, covered: &mut Covered, at: usize) -> Result<(), PruneError> {
        let Covered { cover, listing, .. } = covered;
        cover.deltas[at].2 = true;
        let (.., object) = &listing.deltas[at];
        if let Some(told) = self.told_by(&object.name).await? {
            cover.told.extend(told);
        }
        Ok(())
    }

    /// What a delta tells; none: it is damaged, and tells nothing.
    pub(super) async fn told_by(
        &self,
        object: &str,
    ) -> Result<Option<BTreeSet<(Rev, Rev, Cid)>>, PruneError> {
        let Ok(ObjectName::Delta(name)) = object.parse() else {
            return Ok(None);
        };
        let Some(body) = self.bucket.get(object).await? else {
            return Ok(None);
        };
        let source = body.into_reader(tokio::runtime::Handle::current());
        let read = tokio::task::spawn_blocking(move || {
            let file = read_log_file(source)?;
            check_delta(&file, &name)?;
            Ok::<_, Bad>(file.index)
        });
        let read = read
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        match read {
            Ok(index) => {
                let changes = index.entries.iter().filter_map(Entry::change);
                let told = changes.map(|change| (change.since, change.rev, change.commit));
                Ok(Some(told.collect()))
            }
            Err(error) => {
                tracing::error!(
                    object,
                    %error,
                    "a delta in the archive is damaged: what it should tell stays in the log; run `firekeep verify`"
                );
                Ok(None)
            }
        }
    }

    /// What the archive holds of an account, as it is listed now.
    pub(super) async fn cover(&self, did: &Did) -> Result<Covered, PruneError> {
        let mut covered = Covered::default();
        let Ok(folder) = DidFolder::try_from(did) else {
            return Ok(covered);
        };
        let mut listing = self.holdings(&folder).await?;
        let cover = &mut covered.cover;
        let snapshots = listing.snapshots.iter();
        cover.snapshots = snapshots
            .map(|(rev, _, name)| (*rev, Cid::dag_cbor(name.commit)))
            .collect();
        let deltas = listing.deltas.iter();
        cover.deltas = deltas.map(|(from, to, _)| (*from, *to, false)).collect();
        let note = self.note(&folder).await?;
        cover.is_gone = note.is_some_and(|note| note.account_erased().is_some());
        match self.held.account(did)? {
            Some(known) => {
                listing.plain.pinned = known.pinned;
                // Not before all else of it is gone: until then it may come back.
                let nothing = listing.snapshots.is_empty() && listing.deltas.is_empty();
                cover.is_gone |= nothing && self.is_long_gone(&known);
                if !known.pinned {
                    cover.needless_before = base_of(&plan(&listing.plain, &self.keep, self.now));
                }
            }
            None => listing.plain.pinned = true,
        }
        covered.listing = listing;
        Ok(covered)
    }
}

/// The first of the moments that a plan keeps.
pub(super) fn base_of(planned: &Plan) -> Option<Rev> {
    let base = planned.snapshots.iter().find(|planned| match &planned.fate {
        Fate::Keep(reasons) => reasons.contains(&Kept::WindowBase),
        Fate::Delete(_) => false,
    });
    base.map(|planned| planned.what.rev)
}
