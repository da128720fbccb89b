#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Blobs to which nothing refers that is kept: neither the head, nor what waits for the archive, nor a kept snapshot,
//! delta or CAR, nor the log; and that their host, asked since, does not list either.

use std::collections::{BTreeMap, BTreeSet};

use super::super::boundary::listed;
use super::super::bucket::ListedObject;
use super::super::log_file::{Entry, LogFile};
use super::super::names::{BlobName, DidFolder, ObjectName, SegmentName};
use super::super::retention::{Blob, Use, plan, time_of};
use super::super::scrub::content::read_log_file;
use super::super::snapshot_file::SnapshotDecoder;
use super::super::writer::{ClaimError, SHARD, read_segment};
use super::account::Listing;
use super::{KnownBlob, Memory, PruneError, Pruned, Pruner};
use crate::repo::car::CarReader;
use crate::repo::record::scan_record;
use crate::types::{Codec, Did, Digest, Rev, Timestamp};

/// Blobs that one run looks at, at most; the next one looks at the rest.
const CANDIDATES_MAX: usize = 200_000;
/// Largest CAR of a snapshot.
const CAR_BYTES_MAX: u64 = 16 << 30;

/// Blobs to which no head refers, by account.
#[derive(Default)]
pub(super) struct Candidates {
    accounts: BTreeMap<Did, Account>,
    count: usize,
}

struct Account {
    /// With when each was needed last.
    blobs: BTreeMap<Digest, (ListedObject, Timestamp)>,
    /// Snapshots and deltas that stay, and CARs that are kept as they came.
    kept: Vec<String>,
    base: (Rev, Timestamp),
}

impl Pruner<'_> {
    /// Notes the blobs of an account that could go.
    pub(super) async fn collect_blobs(
        &self,
        did: &DidFolder,
        mut listing: Listing,
        (memory, candidates): (&mut Memory, &mut Candidates),
    ) -> Result<(), PruneError> {
        let mut blobs = BTreeMap::new();
        for object in self.list(&BlobName::prefix(did)).await? {
            let Ok(ObjectName::Blob(name)) = object.name.parse() else {
                continue;
            };
            if candidates.count + blobs.len() >= CANDIDATES_MAX {
                break;
            }
            if let KnownBlob::Unreferenced(needed) = self.held.blob(did.did(), &name.blob)? {
                blobs.insert(name.blob, (object, needed));
            }
        }
        if blobs.is_empty() {
            return Ok(());
        }
        let base = self.proven_base(&mut listing, memory).await?;
        // Without a time at which everything that is kept began, nothing is known to have ended.
        let Some(base) = base.and_then(|rev| Some((rev, time_of(rev, self.now)?))) else {
            return Ok(());
        };
        blobs.retain(|_, (_, needed)| *needed < base.1);
        if !blobs.is_empty() {
            candidates.count += blobs.len();
            let kept = listing.objects().map(|object| object.name.clone()).collect();
            let account = Account { blobs, kept, base };
            candidates.accounts.insert(did.did().clone(), account);
        }
        Ok(())
    }

    /// Removes those to which nothing kept refers.
    pub(super) async fn blobs(
        &self,
        mut candidates: Candidates,
        memory: &mut Memory,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        for (did, account) in &mut candidates.accounts {
            // Before the log is read: what is told there meanwhile goes from here afterwards.
            let waiting = self.held.waiting_blobs(did)?;
            account.blobs.retain(|digest, _| !waiting.contains(digest));
            self.read_kept(did, account, memory).await?;
        }
        candidates.accounts.retain(|_, account| !account.blobs.is_empty());
        if candidates.accounts.is_empty() {
            return Ok(());
        }
        self.read_log(&mut candidates).await?;
        for (did, account) in candidates.accounts {
            self.check_right().await?;
            self.remove_blobs(&did, account, pruned).await?;
        }
        Ok(())
    }

    /// Takes out the blobs to which a kept snapshot or delta refers.
    async fn read_kept(
        &self,
        did: &Did,
        account: &mut Account,
        memory: &mut Memory,
    ) -> Result<(), PruneError> {
        let kept: BTreeSet<&String> = account.kept.iter().collect();
        account.blobs.retain(|digest, _| {
            let known = memory.referenced.get(&(did.clone(), *digest));
            !known.is_some_and(|object| kept.contains(object))
        });
        for object in &account.kept {
            if self.cancel.is_cancelled() {
                return Err(PruneError::Cancelled);
            }
            if account.blobs.is_empty() {
                return Ok(());
            }
            let Some(mentioned) = self.mentions(object).await? else {
                // What it refers to is not known: all of it stays.
                account.blobs.clear();
                return Ok(());
            };
            account.blobs.retain(|digest, _| {
                let found = mentioned.contains(digest);
                if found {
                    memory.referenced.insert((did.clone(), *digest), object.clone());
                }
                !found
            });
        }
        Ok(())
    }

    /// The blobs that the records in a snapshot or delta refer to; none: it cannot be read.
    async fn mentions(&self, object: &str) -> Result<Option<BTreeSet<Digest>>, PruneError> {
        let Some(body) = self.bucket.get(object).await? else {
            return Ok(None);
        };
        let source = body.into_reader(tokio::runtime::Handle::current());
        let is_delta = object.contains(".delta.");
        let read = tokio::task::spawn_blocking(move || {
            if is_delta {
                return read_log_file(source).ok().map(|file| mentions_of(&file));
            }
            let mut decoder = SnapshotDecoder::new(source, CAR_BYTES_MAX).ok()?;
            let mut car = CarReader::new(&mut decoder).ok()?;
            let (mut block, mut found) = (Vec::new(), BTreeSet::new());
            while let Some((cid, _)) = car.next_block(&mut block).ok()? {
                if cid.codec() == Codec::DagCbor {
                    found.extend(scan_record(&block).blobs.iter().map(|blob| *blob.cid.digest()));
                }
            }
            Some(found)
        });
        Ok(read
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())))
    }

    /// Takes out the blobs to which the log refers.
    async fn read_log(&self, candidates: &mut Candidates) -> Result<(), PruneError> {
        let mut segments = Vec::new();
        for object in self.list(&SegmentName::prefix(SHARD)).await? {
            if let Ok(ObjectName::Segment(name)) = object.name.parse() {
                segments.push(name);
            }
        }
        let mut oldest: Option<Timestamp> = None;
        for name in listed(segments, []).segments {
            if self.cancel.is_cancelled() {
                return Err(PruneError::Cancelled);
            }
            let file = match read_segment(self.bucket, &name).await {
                Ok(file) => file,
                Err(ClaimError::Damaged { .. }) => {
                    // It may tell of any blob that was needed since the log begins.
                    for account in candidates.accounts.values_mut() {
                        account
                            .blobs
                            .retain(|_, (_, needed)| oldest.is_some_and(|oldest| *needed < oldest));
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let received = file.index.entries.iter().filter_map(Entry::change);
            oldest = received.map(|change| change.received).chain(oldest).min();
            for change in file.index.entries.iter().filter_map(|entry| entry.change()) {
                let Some(account) = candidates.accounts.get_mut(&change.did) else {
                    continue;
                };
                let records = change.ops.iter().filter_map(|op| file.blocks.get(&op.cid?));
                for blob in records.flat_map(|record| scan_record(record).blobs) {
                    account.blobs.remove(blob.cid.digest());
                }
            }
        }
        Ok(())
    }

    async fn remove_blobs(&self, did: &Did, account: Account, pruned: &mut Pruned) -> Result<(), PruneError> {
        let Ok(folder) = DidFolder::try_from(did) else {
            return Ok(());
        };
        let mut listing = self.holdings(&folder).await?;
        let Some(known) = self.held.account(did)?.filter(|known| !known.pinned) else {
            return Ok(());
        };
        listing.plain.pinned = known.pinned;
        listing.plain.deleted = known.deleted;
        let (base, ended) = account.base;
        let blobs = account.blobs.iter().map(|(digest, (object, _))| Blob {
            digest: *digest,
            bytes: object.size,
            // Nothing that is kept refers to it, and all since `base` is kept.
            uses: Some(vec![Use {
                from: base,
                until: Some((base, ended)),
            }]),
        });
        listing.plain.blobs = blobs.collect();
        for planned in plan(&listing.plain, &self.keep, self.now).blobs {
            if planned.stays() || self.cancel.is_cancelled() {
                continue;
            }
            let digest = planned.what.digest;
            let name = BlobName {
                did: folder.clone(),
                blob: digest,
            };
            let name = name.to_string();
            if self
                .held
                .remove_blob(did, digest, &name, ended.min(self.now))
                .await?
            {
                tracing::debug!(
                    object = name,
                    "removed from the archive: nothing kept refers to it"
                );
                pruned.count("blobs", planned.what.bytes);
                tokio::time::sleep(self.pause).await;
            }
        }
        Ok(())
    }
}

fn mentions_of(file: &LogFile) -> BTreeSet<Digest> {
    let blobs = file.blocks.values().flat_map(|block| scan_record(block).blobs);
    blobs.map(|blob| *blob.cid.digest()).collect()
}
