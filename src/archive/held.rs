#![allow(
    clippy::disallowed_methods,
    reason = "shell: the applier, threads that may block"
)]
//! What pruning and erasing ask of the mirror, and what they have it let go of.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::bucket::Bucket;
use super::names::{ERASED, ObjectName};
use super::prune::{Answered, Held, Known, KnownBlob, May, PruneError, read_note};
use crate::mirror::handle::ApplierHandle;
use crate::mirror::input::{BlobKey, Erase, Input};
use crate::mirror::keyspace::{AlarmKind, NO_NUMBER};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, BlobState, SyncState};
use crate::mirror::store::{Family, KeyRange};
use crate::mirror::{Store, StoreError};
use crate::repo::record::scan_record;
use crate::types::{AccountStatus, Cid, Did, Digest, Rev, Timestamp};

/// What goes from the mirror into the archive. Each has a gate of its own: the log does not wait for a large blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Going {
    /// Segments.
    Log,
    /// Snapshots and deltas, and what is kept as it came.
    Repositories,
    /// Blobs.
    Blobs,
}

/// Whoever puts something into the archive that was read from the mirror holds this open meanwhile; whoever had the
/// mirror let go of something waits until all of them are through.
#[derive(Debug, Clone, Default)]
pub struct Gate([Arc<RwLock<()>>; 3]);

impl Gate {
    /// Held while something goes from the mirror into the archive.
    pub async fn at_work(&self, what: Going) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0[what as usize]).read_owned().await
    }

    /// Waits until nobody is at work, and keeps others from it.
    pub async fn alone(&self, what: Going) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0[what as usize]).write_owned().await
    }

    /// Waits until everybody is through who is at work now.
    pub async fn pass(&self) {
        for what in [Going::Log, Going::Repositories, Going::Blobs] {
            drop(self.alone(what).await);
        }
    }
}

/// The mirror, as far as the archive's keeping is concerned.
#[derive(Clone)]
pub struct MirrorSide {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// The archive.
    pub bucket: Bucket,
    /// Shared with whoever puts into the archive.
    pub gate: Gate,
}

/// What the archive's notes say was erased, and the mirror does not know yet: it is to keep that out, before anything
/// goes into the archive that was fetched again. A note that cannot be read is said, and passed over.
///
/// # Errors
/// When the store does not answer, or the mirror cannot be read.
pub async fn noted_elsewhere(bucket: &Bucket, store: &Arc<dyn Store>) -> Result<Vec<Erase>, PruneError> {
    let (mut told, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = bucket.list(ERASED, after.as_deref()).await?;
        for object in &page.objects {
            let Ok(ObjectName::Erased(name)) = object.name.parse() else {
                continue;
            };
            let note = match read_note(bucket, &name).await {
                Ok(Some(note)) => note,
                Ok(None) => continue,
                Err(PruneError::Damaged(why)) => {
                    tracing::error!(
                        "{why}; what was erased of this account is not known, and may be fetched again"
                    );
                    continue;
                }
                Err(error) => return Err(error),
            };
            let known = Mirror::new(&**store).erased(&note.did)?.unwrap_or_default();
            let (records, blobs) = (note.records(), note.blobs());
            let whole = note.account_erased().is_some();
            let mut all = known.clone();
            all.add(
                &records.iter().copied().collect::<Vec<_>>(),
                &blobs.iter().copied().collect::<Vec<_>>(),
            );
            all.whole |= whole;
            if all == known {
                continue;
            }
            let erase = Erase {
                did: note.did,
                whole,
                lasting: true,
                records: records.into_iter().collect(),
                blobs: blobs.into_iter().collect(),
                kept_car: true,
            };
            told.push(erase);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(told),
        }
    }
}

/// Told of each record: path, CID and bytes.
pub type Visit<'a> = dyn FnMut(&[u8], Cid, &[u8]) + 'a;

/// What erasing asks of the mirror.
pub trait Letting: Send + Sync {
    /// Visits every record that is held of an account, in whatever generation.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    fn each_record(&self, did: &Did, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// Whether the CAR that is kept as it came holds one of these records.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    fn kept_car_holds(&self, did: &Did, records: &[Cid]) -> Result<bool, StoreError>;

    /// Has the mirror let go; when this returns nothing that it held is on its way into the archive, and nothing of
    /// it is left on the disk.
    fn erase(&self, erase: Erase) -> Answered<'_, ()>;
}

/// What of the mirror's disk may hold bytes of records and blobs.
const FAMILIES: [Family; 5] = [
    Family::Records,
    Family::Journal,
    Family::Parked,
    Family::BlobData,
    Family::BlobRefs,
];

impl Held for MirrorSide {
    fn account(&self, did: &Did) -> Result<Option<Known>, StoreError> {
        let mirror = Mirror::new(&*self.store);
        let Some(row) = mirror.account(did)? else {
            return Ok(None);
        };
        let deleted = row.upstream == AccountStatus::Deleted;
        let follows = row.sync == SyncState::Live && row.kept_car.is_none();
        Ok(Some(Known {
            pinned: mirror.is_pinned(did, &row)?,
            deleted: row.deletion_confirmed_at.filter(|_| deleted),
            empty: row.head.is_none() && row.account_number == NO_NUMBER && row.kept_car.is_none(),
            snapshot: row.snapshot.map(|mark| mark.rev),
            kept_car: row.kept_car.as_ref().map(|car| (car.rev, *car.commit.digest())),
            followed_again: row.followed_again_at.filter(|_| follows),
        }))
    }

    fn blob(&self, did: &Did, digest: &Digest) -> Result<KnownBlob, StoreError> {
        let mirror = Mirror::new(&*self.store);
        let Some(account) = mirror.account(did)? else {
            return Ok(KnownBlob::Unknown);
        };
        if account.account_number == NO_NUMBER {
            return Ok(KnownBlob::Unknown);
        }
        let beside = !account.pins.is_empty() || account.kept_car.is_some();
        if beside || mirror.blob_is_referenced(account.account_number, digest)? {
            return Ok(KnownBlob::Referenced);
        }
        let Some(row) = mirror.blob(account.did_number, digest)? else {
            return Ok(KnownBlob::Unknown);
        };
        Ok(match (row.needed_at, account.blobs_listed_at) {
            // Its host was asked since, and does not list it.
            (Some(needed), Some(listed)) if needed < listed => KnownBlob::Unreferenced(needed),
            _ => KnownBlob::Referenced,
        })
    }

    fn waiting_blobs(&self, did: &Did) -> Result<BTreeSet<Digest>, StoreError> {
        let mut found = BTreeSet::new();
        let mirror = Mirror::new(&*self.store);
        if let Some(account) = mirror.account(did)? {
            mirror.each_journal_entry(account.did_number, None, |_, entry| {
                for bytes in entry.ops.iter().filter_map(|op| op.bytes.as_deref()) {
                    found.extend(scan_record(bytes).blobs.iter().map(|blob| *blob.cid.digest()));
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }

    fn deleted_accounts(&self) -> Result<Vec<Did>, StoreError> {
        let mut deleted = Vec::new();
        Mirror::new(&*self.store).each_account(|did, row| {
            if row.upstream == AccountStatus::Deleted && row.deletion_confirmed_at.is_some() {
                deleted.push(did);
            }
            ControlFlow::Continue(())
        })?;
        Ok(deleted)
    }

    fn remove_blob<'a>(
        &'a self,
        did: &'a Did,
        digest: Digest,
        name: &'a str,
        before: Timestamp,
    ) -> Answered<'a, bool> {
        Box::pin(async move {
            let _alone = self.gate.alone(Going::Blobs).await;
            let Some(account) = Mirror::new(&*self.store).account(did)? else {
                return Ok(false);
            };
            let blob = BlobKey {
                did: did.clone(),
                did_number: account.did_number,
                digest,
            };
            self.applier.apply(Input::BlobDropped { blob, before }).await?;
            let row = Mirror::new(&*self.store).blob(account.did_number, &digest)?;
            let may_go = row.is_some_and(|row| matches!(row.state, BlobState::Withdrawn | BlobState::Erased));
            if may_go {
                self.bucket.delete(name).await?;
            }
            Ok(may_go)
        })
    }

    fn remove_while<'a>(&'a self, did: &'a Did, name: &'a str, may: May<'a>) -> Answered<'a, bool> {
        Box::pin(async move {
            // What is put there again while it is looked at would be taken for archived.
            let _repositories = self.gate.alone(Going::Repositories).await;
            let _blobs = self.gate.alone(Going::Blobs).await;
            let may_go = self.account(did)?.is_some_and(|known| may(&known));
            if may_go {
                self.bucket.delete(name).await?;
            }
            Ok(may_go)
        })
    }

    fn drop_account<'a>(&'a self, did: &'a Did) -> Answered<'a, bool> {
        Box::pin(async move {
            self.erase(Erase {
                did: did.clone(),
                whole: true,
                lasting: false,
                records: Vec::new(),
                blobs: Vec::new(),
                kept_car: true,
            })
            .await?;
            // The applier refuses if it came back meanwhile.
            let row = Mirror::new(&*self.store).account(did)?;
            let gone = |row: &AccountRow| row.head.is_none() && row.upstream == AccountStatus::Deleted;
            Ok(row.is_some_and(|row| gone(&row)))
        })
    }

    fn snapshot_lost<'a>(&'a self, did: &'a Did, rev: Rev) -> Answered<'a, ()> {
        Box::pin(async move {
            let newest = Mirror::new(&*self.store)
                .account(did)?
                .and_then(|row| row.snapshot);
            let again = newest.is_some_and(|mark| mark.rev == rev);
            if again {
                let (did, blob) = (did.clone(), None);
                self.applier.apply(Input::ArchiveLost { did, blob }).await?;
            }
            let fate = if again {
                "it is made again"
            } else {
                "what was to go in its favour stays"
            };
            let message = format!(
                "the snapshot of {did} at rev {rev} in {} does not prove: {fate}; run `firekeep verify`",
                self.bucket
            );
            let kind = AlarmKind::ArchiveDamaged;
            self.applier.apply(Input::OwnAlarm { kind, message }).await?;
            Ok(())
        })
    }
}

impl Letting for MirrorSide {
    fn each_record(&self, did: &Did, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let Some(row) = mirror.account(did)? else {
            return Ok(());
        };
        let pinned = row.pins.iter().filter_map(|pin| pin.generation);
        for number in pinned
            .chain([row.account_number])
            .filter(|number| *number != NO_NUMBER)
        {
            mirror.scan_records(number, None, &mut |path, record| {
                visit(path, record.cid(), record.bytes);
                ControlFlow::Continue(())
            })?;
        }
        mirror.each_journal_entry(row.did_number, None, |_, entry| {
            for op in &entry.ops {
                if let Some(cid) = op.cid {
                    visit(op.path.as_bytes(), cid, op.bytes.as_deref().unwrap_or_default());
                }
            }
            ControlFlow::Continue(())
        })
    }

    fn kept_car_holds(&self, did: &Did, records: &[Cid]) -> Result<bool, StoreError> {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let Some(car) = mirror.account(did)?.and_then(|row| row.kept_car) else {
            return Ok(false);
        };
        // Each block stands behind its CID, so the bytes of the CID tell. A chunk may end within them.
        let (mut found, mut tail) = (false, Vec::new());
        let wanted: Vec<Vec<u8>> = records.iter().map(|cid| cid.digest().to_vec()).collect();
        mirror.car_chunks(&car, |chunk| {
            tail.extend_from_slice(chunk);
            found |= wanted
                .iter()
                .any(|digest| tail.windows(digest.len()).any(|window| window == digest));
            tail.drain(..tail.len().saturating_sub(31));
            match found {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok(found)
    }

    fn erase(&self, erase: Erase) -> Answered<'_, ()> {
        Box::pin(async move {
            self.applier.apply(Input::Erase(Box::new(erase))).await?;
            // Whatever was read before goes where it goes; then it is looked for there.
            self.gate.pass().await;
            let store = Arc::clone(&self.store);
            let compacted = tokio::task::spawn_blocking(move || {
                FAMILIES
                    .into_iter()
                    .try_for_each(|family| store.compact_range(family, &KeyRange::all()))
            });
            Ok(compacted
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
        })
    }
}

#[cfg(test)]
mod tests;
