#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Snapshots and deltas of each account, and everything of one that was deleted long ago.

use std::collections::BTreeSet;

use super::super::bucket::{Body, ListedObject, PutOptions};
use super::super::content_type::ContentType;
use super::super::erase::note::{Note, What};
use super::super::names::{self, BlobName, DidFolder, ErasedName, IdentityName, ObjectName, SnapshotName};
use super::super::retention::{
    Delta, Fate, Holdings, Kept, KeptAsItCame, Plan, Proof, Snapshot, plan, superseded,
};
use super::super::scrub::content::check_snapshot;
use super::blobs::Candidates;
use super::cover::base_of;
use super::log::folder_of;
use super::{Known, May, Memory, PruneError, Pruned, Pruner};
use crate::types::{Did, Rev};

/// Times that a plan is made anew because something of it does not prove.
const PLANS_MAX: usize = 100;

/// What is listed of an account's repository.
#[derive(Default)]
pub(super) struct Listing {
    /// As the plan wants it.
    pub(super) plain: Holdings,
    pub(super) snapshots: Vec<(Rev, ListedObject, SnapshotName)>,
    pub(super) deltas: Vec<(Rev, Rev, ListedObject)>,
    /// CARs that are kept as they came.
    pub(super) kept: Vec<(KeptAsItCame, ListedObject)>,
}

impl Listing {
    /// The names of everything that holds records.
    pub(super) fn objects(&self) -> impl Iterator<Item = &ListedObject> {
        let snapshots = self.snapshots.iter().map(|(_, object, _)| object);
        let deltas = self.deltas.iter().map(|(.., object)| object);
        let kept = self.kept.iter().map(|(_, object)| object);
        snapshots.chain(deltas).chain(kept)
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
                match self.account(&did, memory, pruned, &mut candidates).await {
                    // The others do not wait for that.
                    Err(PruneError::Damaged(why)) => pruned.damaged.push(why),
                    done => done?,
                }
            }
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => break,
            }
        }
        self.deleted_accounts(memory, pruned).await?;
        self.blobs(candidates, memory, pruned).await
    }

    /// Those of which nothing that is listed with the repositories tells.
    async fn deleted_accounts(&self, memory: &mut Memory, pruned: &mut Pruned) -> Result<(), PruneError> {
        let deleted = self.held.deleted_accounts()?;
        let known: BTreeSet<&Did> = deleted.iter().collect();
        memory.removed.retain(|did| known.contains(did));
        for did in deleted.iter().filter_map(|did| DidFolder::try_from(did).ok()) {
            if memory.removed.contains(did.did()) {
                continue;
            }
            match self.deleted(&did, memory, pruned).await {
                Err(PruneError::Damaged(why)) => pruned.damaged.push(why),
                done => done?,
            }
        }
        Ok(())
    }

    /// What stands there of an account's repository.
    pub(super) async fn holdings(&self, did: &DidFolder) -> Result<Listing, PruneError> {
        let mut listing = Listing::default();
        for object in self.list(&folder_of(did)).await? {
            match object.name.parse() {
                Ok(ObjectName::Snapshot(name)) => listing.snapshots.push((name.rev, object, name)),
                Ok(ObjectName::Delta(name)) => listing.deltas.push((name.from(), name.to(), object)),
                Ok(ObjectName::Quarantined(name)) => {
                    listing.kept.push(((name.rev, name.commit), object));
                }
                _ => {}
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
            steps: None,
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
        if self.is_long_gone(&known) {
            return self.deleted(did, memory, pruned).await;
        }
        let mut listing = self.holdings(did).await?;
        let mut bad = BTreeSet::new();
        let planned = self.proven_plan(&mut listing, known, memory, &mut bad).await?;
        for rev in &bad {
            self.held.snapshot_lost(did.did(), *rev).await?;
        }
        if !bad.is_empty() || planned.is_none() {
            pruned.unproven.push(did.to_string());
        }
        self.kept_cars(did, &listing, pruned).await?;
        let Some(planned) = planned else {
            return Ok(());
        };
        let goes = removable(&planned);
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
            self.collect_blobs(did, listing, (memory, candidates)).await?;
        }
        Ok(())
    }

    /// CARs that are kept as they came, and that no moment of the window needs any more.
    async fn kept_cars(
        &self,
        did: &DidFolder,
        listing: &Listing,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        if listing.kept.is_empty() {
            return Ok(());
        }
        let all: Vec<KeptAsItCame> = listing.kept.iter().map(|(kept, _)| *kept).collect();
        let gone = |known: &Known| {
            let held = known.pinned || known.deleted.is_some();
            let over = (known.kept_car, known.followed_again);
            (!held).then(|| superseded(&all, over, &self.keep, self.now))
        };
        for (kept, object) in &listing.kept {
            let may = |known: &Known| gone(known).is_some_and(|gone| gone.contains(kept));
            if self.held.account(did.did())?.is_some_and(|known| may(&known)) {
                self.check_right().await?;
                self.remove_while(did, object, ("kept_cars", &may), pruned)
                    .await?;
            }
        }
        Ok(())
    }

    /// Removes an object of an account, if it may go still. Whether it did.
    async fn remove_while(
        &self,
        did: &DidFolder,
        object: &ListedObject,
        (kind, may): (&'static str, May<'_>),
        pruned: &mut Pruned,
    ) -> Result<bool, PruneError> {
        if self.cancel.is_cancelled() {
            return Err(PruneError::Cancelled);
        }
        if !self.held.remove_while(did.did(), &object.name, may).await? {
            return Ok(false);
        }
        tracing::debug!(object = object.name, "removed from the archive: no longer needed");
        pruned.count(kind, object.size);
        tokio::time::sleep(self.pause).await;
        Ok(true)
    }

    /// The snapshot that the kept moments begin with, read and rebuilt.
    pub(super) async fn proven_base(
        &self,
        listing: &mut Listing,
        memory: &mut Memory,
    ) -> Result<Option<Rev>, PruneError> {
        for _ in 0..PLANS_MAX {
            let Some(base) = base_of(&plan(&listing.plain, &self.keep, self.now)) else {
                return Ok(None);
            };
            if self.proves(listing, base, memory).await? {
                return Ok(Some(base));
            }
            for snapshot in &mut listing.plain.snapshots {
                if snapshot.rev == base {
                    snapshot.proof = Proof::Bad;
                }
            }
        }
        Ok(None)
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
            if removable(&planned).is_empty() {
                return Ok(Some(planned));
            }
            if listing.plain.deltas.iter().any(|delta| delta.steps.is_none()) {
                self.read_steps(listing, memory).await?;
                continue;
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

    /// What each delta leads to is read, before anything goes because it leads there.
    async fn read_steps(&self, listing: &mut Listing, memory: &mut Memory) -> Result<(), PruneError> {
        for (at, (.., object)) in listing.deltas.iter().enumerate() {
            let steps = match memory.steps.get(&object.name) {
                Some(steps) => steps.clone(),
                None => {
                    let told = self.told_by(&object.name).await?.unwrap_or_default();
                    let steps: Vec<_> = told.into_iter().map(|(since, rev, _)| (since, rev)).collect();
                    memory.steps.insert(object.name.clone(), steps.clone());
                    steps
                }
            };
            listing.plain.deltas[at].steps = Some(steps);
        }
        Ok(())
    }

    /// Whether the snapshot of a rev rebuilds to its signed root, every byte read.
    pub(super) async fn proves(
        &self,
        listing: &Listing,
        rev: Rev,
        memory: &mut Memory,
    ) -> Result<bool, PruneError> {
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
            let may = |known: &Known| !known.pinned && known.deleted.is_none();
            if !self.remove_while(did, object, (kind, &may), pruned).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Everything of an account whose time of grace is over. What there is of it is listed before the mirror lets go,
    /// and each object goes only while the account is deleted still: what comes when it returns stays. The repository
    /// goes last, so that it is come back to until all is gone.
    pub(super) async fn deleted(
        &self,
        did: &DidFolder,
        memory: &mut Memory,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        let may = |known: &Known| self.is_long_gone(known);
        let Some(known) = self.held.account(did.did())?.filter(&may) else {
            return Ok(());
        };
        self.check_right().await?;
        let mut objects = Vec::new();
        for (prefix, kind) in [
            (BlobName::prefix(did), "blobs"),
            (IdentityName::prefix(did), "identities"),
            (SnapshotName::prefix(did), "deleted"),
        ] {
            let mut listed = self.list(&prefix).await?;
            listed.retain(|object| object.name.parse::<ObjectName>().is_ok());
            // Deltas before what they lean on.
            listed.sort_by_key(|object| !object.name.contains(".delta."));
            objects.extend(listed.into_iter().map(|object| (object, kind)));
        }
        if known.empty && objects.is_empty() {
            memory.removed.insert(did.did().clone());
            return Ok(());
        }
        let before = self.note(did).await?;
        if !known.empty && !self.held.drop_account(did.did()).await? {
            return Ok(());
        }
        let name = ErasedName { did: did.clone() };
        let mut note = before.unwrap_or_else(|| Note::new(did.did().clone()));
        if note.erasures.iter().all(|erasure| erasure.what != What::Deleted) {
            note.erasure(&What::Deleted, self.now, "retention").done = Some(self.now);
            let options = PutOptions {
                create_only: false,
                ..PutOptions::create(ContentType::json())
            };
            let body = Body::Bytes(note.encode().into());
            self.bucket.put(&name.to_string(), body, &options).await?;
            tracing::info!(did = %did, "this account was deleted at its host, and its time of grace is over: it is removed");
        }
        for (object, kind) in objects {
            if !self.remove_while(did, &object, (kind, &may), pruned).await? {
                tracing::info!(did = %did, "this account is not deleted any more: what is left of it stays");
                return Ok(());
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
