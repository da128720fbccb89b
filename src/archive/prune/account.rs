#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Snapshots and deltas of each account, and everything of one that was deleted long ago.

use std::collections::BTreeSet;

use super::super::bucket::{Body, ListedObject, PutOptions};
use super::super::content_type::ContentType;
use super::super::erase::note::Note;
use super::super::names::{self, BlobName, DidFolder, ErasedName, IdentityName, ObjectName, SnapshotName};
use super::super::retention::{Delta, Fate, Gone, Holdings, Kept, Plan, Proof, Snapshot, plan};
use super::super::scrub::content::check_snapshot;
use super::blobs::Candidates;
use super::log::folder_of;
use super::{Known, Memory, PruneError, Pruned, Pruner};
use crate::types::{Did, Rev};

/// Times that a plan is made anew because something of it does not prove.
const PLANS_MAX: usize = 100;

/// What is listed of an account's repository.
pub(super) struct Listing {
    /// As the plan wants it.
    pub(super) plain: Holdings,
    snapshots: Vec<(Rev, ListedObject, SnapshotName)>,
    deltas: Vec<(Rev, Rev, ListedObject)>,
    others: Vec<ListedObject>,
}

impl Listing {
    /// The names of its snapshots and deltas.
    pub(super) fn objects(&self) -> impl Iterator<Item = &ListedObject> {
        let snapshots = self.snapshots.iter().map(|(_, object, _)| object);
        snapshots.chain(self.deltas.iter().map(|(.., object)| object))
    }
}

impl Pruner<'_> {
    /// Account after account.
    pub(super) async fn accounts(&self, memory: &mut Memory, pruned: &mut Pruned) -> Result<(), PruneError> {
        let (mut last, mut candidates) = (None::<Did>, Candidates::default());
        let mut after = None::<String>;
        loop {
            let page = self.bucket.list(names::REPOS, after.as_deref()).await?;
            for object in &page.objects {
                let did = match object.name.parse() {
                    Ok(ObjectName::Snapshot(name)) => name.did,
                    Ok(ObjectName::Delta(name)) => name.did().clone(),
                    Ok(ObjectName::Quarantined(name)) => name.did,
                    // Not ours: never removed.
                    _ => continue,
                };
                if last.as_ref() == Some(did.did()) {
                    continue;
                }
                last = Some(did.did().clone());
                pruned.accounts += 1;
                self.account(&did, memory, pruned, &mut candidates).await?;
            }
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => break,
            }
        }
        self.blobs(candidates, memory, pruned).await
    }

    /// What stands there of an account's repository.
    pub(super) async fn holdings(&self, did: &DidFolder) -> Result<Listing, PruneError> {
        let mut listing = Listing {
            plain: Holdings::default(),
            snapshots: Vec::new(),
            deltas: Vec::new(),
            others: Vec::new(),
        };
        for object in self.list(&folder_of(did)).await? {
            match object.name.parse() {
                Ok(ObjectName::Snapshot(name)) => listing.snapshots.push((name.rev, object, name)),
                Ok(ObjectName::Delta(name)) => listing.deltas.push((name.from(), name.to(), object)),
                Ok(_) => listing.others.push(object),
                Err(_) => {}
            }
        }
        let snapshots = listing.snapshots.iter().map(|(rev, object, _)| Snapshot {
            rev: *rev,
            bytes: object.size,
            proof: Proof::Unknown,
        });
        listing.plain.snapshots = snapshots.collect();
        let deltas = listing.deltas.iter().map(|(from, to, object)| Delta {
            from: *from,
            to: *to,
            bytes: object.size,
        });
        listing.plain.deltas = deltas.collect();
        Ok(listing)
    }

    async fn account(
        &self,
        did: &DidFolder,
        memory: &mut Memory,
        pruned: &mut Pruned,
        candidates: &mut Candidates,
    ) -> Result<(), PruneError> {
        // Of what this mirror does not know it does not know either whether somebody pins it.
        let Some(known) = self.held.account(did.did())? else {
            return Ok(());
        };
        let mut listing = self.holdings(did).await?;
        let mut bad = BTreeSet::new();
        let planned = self.proven_plan(&mut listing, known, memory, &mut bad).await?;
        if !bad.is_empty() || planned.is_none() {
            pruned.unproven.push(did.to_string());
        }
        let Some(planned) = planned else {
            return Ok(());
        };
        let goes = removable(&planned);
        if is_gone(&planned) {
            return self.deleted(did, pruned).await;
        }
        if !goes.is_empty() {
            self.check_right().await?;
            // Once more, by what stands there now, and what is known now.
            let mut listing = self.holdings(did).await?;
            let known = self.held.account(did.did())?.unwrap_or(Known {
                pinned: true,
                ..Known::default()
            });
            let again = self.proven_plan(&mut listing, known, memory, &mut bad).await?;
            let still = again.map_or_else(BTreeSet::new, |again| removable(&again));
            self.remove_planned(did, &listing, &goes & &still, pruned).await?;
        }
        if !known.pinned && known.deleted.is_none() {
            let listing = self.holdings(did).await?;
            self.collect_blobs(did, &listing, candidates).await?;
        }
        Ok(())
    }

    /// A plan whose snapshots that stand in for others are read and proven. None: none of them proves.
    async fn proven_plan(
        &self,
        listing: &mut Listing,
        known: Known,
        memory: &mut Memory,
        bad: &mut BTreeSet<Rev>,
    ) -> Result<Option<Plan>, PruneError> {
        listing.plain.pinned = known.pinned;
        listing.plain.deleted = known.deleted;
        let mut sound = BTreeSet::new();
        for _ in 0..PLANS_MAX {
            for snapshot in &mut listing.plain.snapshots {
                snapshot.proof = match (bad.contains(&snapshot.rev), sound.contains(&snapshot.rev)) {
                    (true, _) => Proof::Bad,
                    (false, true) => Proof::Sound,
                    (false, false) => Proof::Unknown,
                };
            }
            let planned = plan(&listing.plain, &self.keep, self.now);
            if removable(&planned).is_empty() || is_gone(&planned) {
                return Ok(Some(planned));
            }
            let leant_on = planned.snapshots.iter().find(|planned| match &planned.fate {
                Fate::Keep(why) => {
                    planned.what.proof == Proof::Unknown
                        && [
                            Kept::Newest,
                            Kept::NewestSound,
                            Kept::WindowBase,
                            Kept::NothingLeadsHere,
                        ]
                        .iter()
                        .any(|kept| why.contains(kept))
                }
                Fate::Delete(_) => false,
            });
            let Some(leant_on) = leant_on.map(|planned| planned.what.rev) else {
                let proves = planned
                    .snapshots
                    .iter()
                    .any(|planned| planned.what.proof == Proof::Sound);
                return Ok(proves.then_some(planned));
            };
            match self.proves(listing, leant_on, memory).await? {
                true => sound.insert(leant_on),
                false => bad.insert(leant_on),
            };
        }
        Ok(None)
    }

    /// Whether the snapshot of a rev rebuilds to its signed root, every byte read.
    async fn proves(&self, listing: &Listing, rev: Rev, memory: &mut Memory) -> Result<bool, PruneError> {
        for (_, object, name) in listing.snapshots.iter().filter(|(of, ..)| *of == rev) {
            if memory.proven.contains(&object.name) {
                return Ok(true);
            }
            let note = self.note(&name.did).await?;
            let Some(body) = self.bucket.get(&object.name).await? else {
                continue;
            };
            let (source, name) = (body.into_reader(tokio::runtime::Handle::current()), name.clone());
            let checked = tokio::task::spawn_blocking(move || {
                let erased = |cid: &_| note.as_ref().is_some_and(|note| note.withholds(cid));
                check_snapshot(source, &name, &[], &erased, |_, _| {})
            });
            match checked
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            {
                Ok(_) => {
                    memory.proven.insert(object.name.clone());
                    return Ok(true);
                }
                Err(error) => tracing::error!(
                    object = object.name,
                    %error,
                    "a snapshot in the archive is damaged: what it was to stand in for stays; run `firekeep verify`"
                ),
            }
        }
        Ok(false)
    }

    /// Deltas from the newest to the oldest, then snapshots: what is left always leads from a snapshot on.
    async fn remove_planned(
        &self,
        did: &DidFolder,
        listing: &Listing,
        goes: BTreeSet<Planned>,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        let deltas = listing.deltas.iter().rev();
        let deltas = deltas.filter(|(from, to, _)| goes.contains(&Planned::Delta(*from, *to)));
        let deltas = deltas.map(|(.., object)| (object, "deltas"));
        let snapshots = listing.snapshots.iter();
        let snapshots = snapshots.filter(|(rev, ..)| goes.contains(&Planned::Snapshot(*rev)));
        let snapshots = snapshots.map(|(_, object, _)| (object, "snapshots"));
        for (object, kind) in deltas.chain(snapshots) {
            // An alarm may have pinned it a moment ago.
            if self.held.account(did.did())?.is_none_or(|known| known.pinned) {
                return Ok(());
            }
            self.remove(&object.name, kind, object.size, pruned).await?;
        }
        Ok(())
    }

    /// Everything of an account whose time of grace is over: a note first, the repository last, so that it is come
    /// back to until all is gone.
    async fn deleted(&self, did: &DidFolder, pruned: &mut Pruned) -> Result<(), PruneError> {
        self.check_right().await?;
        let long_ago = |known: Known| {
            let since = known.deleted.map(|at| self.now.since(at));
            !known.pinned && since.is_some_and(|since| since >= self.keep.deleted)
        };
        let Some(known) = self.held.account(did.did())?.filter(|known| long_ago(*known)) else {
            return Ok(());
        };
        let name = ErasedName { did: did.clone() };
        let mut note = self
            .note(did)
            .await?
            .unwrap_or_else(|| Note::new(did.did().clone()));
        let held = self.list(&SnapshotName::prefix(did)).await?;
        let held = held.iter().filter_map(|object| match object.name.parse() {
            Ok(ObjectName::Snapshot(name)) => Some(name.rev),
            Ok(ObjectName::Delta(name)) => Some(name.to()),
            _ => None,
        });
        let through = held.chain(known.head).chain(known.snapshot).max();
        if note.removed(through, self.now, "retention") {
            let options = PutOptions {
                create_only: false,
                ..PutOptions::create(ContentType::json())
            };
            let body = Body::Bytes(note.encode().into());
            self.bucket.put(&name.to_string(), body, &options).await?;
        }
        tracing::info!(did = %did, "this account was deleted at its host, and its time of grace is over: it is removed");
        self.held.drop_account(did.did()).await?;
        for (prefix, kind) in [
            (BlobName::prefix(did), "blobs"),
            (IdentityName::prefix(did), "identities"),
            (SnapshotName::prefix(did), "deleted"),
        ] {
            let mut objects = self.list(&prefix).await?;
            // Deltas before what they lean on.
            objects.sort_by_key(|object| !object.name.contains(".delta."));
            for object in objects {
                if object.name.parse::<ObjectName>().is_ok() {
                    self.remove(&object.name, kind, object.size, pruned).await?;
                }
            }
        }
        Ok(())
    }
}

/// Something of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Planned {
    Snapshot(Rev),
    Delta(Rev, Rev),
}

/// What a plan removes.
fn removable(planned: &Plan) -> BTreeSet<Planned> {
    let snapshots = planned.snapshots.iter().filter(|planned| !planned.stays());
    let snapshots = snapshots.map(|planned| Planned::Snapshot(planned.what.rev));
    let deltas = planned.deltas.iter().filter(|planned| !planned.stays());
    let deltas = deltas.map(|planned| Planned::Delta(planned.what.from, planned.what.to));
    snapshots.chain(deltas).collect()
}

fn is_gone(planned: &Plan) -> bool {
    let gone = Fate::Delete(Gone::DeletedLongAgo);
    planned.snapshots.iter().any(|planned| planned.fate == gone)
        || planned.deltas.iter().any(|planned| planned.fate == gone)
}
