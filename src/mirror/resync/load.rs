#![allow(clippy::disallowed_methods, reason = "shell: part of the fetcher")]
//! Proving what was received while its rows go into the mirror, under a number of their own.

use super::*;

/// Rows of a loaded repository are written in batches of this many bytes.
const LOAD_BATCH_BYTES: usize = 1 << 20;

impl Fetcher {
    /// Proves a received CAR and loads it; what was loaded of one that does not prove is removed again. One that
    /// proves, but is behind `ours`, is kept as it came instead.
    pub(super) fn check_and_load(
        &self,
        car: &IndexedCar,
        number: u64,
        did: &Did,
        key: HeadKey<'_>,
        ours: Option<(Rev, Cid)>,
        now: Timestamp,
    ) -> Result<Judged, StoreError> {
        let Some(root) = car.roots().first().copied() else {
            return Ok(Judged::Failed(Failed::unproven("the CAR has no root".to_owned())));
        };
        let loaded = self.load(car, root, number, did, key, now);
        match self.loaded_or_unloaded(loaded, number)? {
            Ok(FetchedContent::Loaded { repo, blobs, .. })
                if ours.is_some_and(|ours| is_behind(&repo, ours)) =>
            {
                self.unload(number)?;
                self.keep_beside(car, (number, did), repo, blobs, now)
            }
            Ok(content) => Ok(Judged::Proven(Box::new(content))),
            Err(RepoFault::Head(reason @ (RejectReason::BadSignature | RejectReason::HighS))) => {
                Ok(Judged::OtherKey(reason))
            }
            Err(fault) if fault.is_lax() => self.keep_if_whole(car, number, did, key, now, fault.to_string()),
            Err(fault) => Ok(Judged::Failed(Failed::unproven(fault.to_string()))),
        }
    }

    /// What was loaded, if it is proven; else nothing of it is left.
    pub(super) fn loaded_or_unloaded(
        &self,
        loaded: Result<(VerifiedRepo, Vec<BlobMention>), RepoFault<StoreError>>,
        number: u64,
    ) -> Result<Result<FetchedContent, RepoFault<StoreError>>, StoreError> {
        match loaded {
            Ok((repo, blobs)) => Ok(Ok(FetchedContent::Loaded {
                account_number: number,
                repo,
                blobs,
            })),
            Err(RepoFault::Visit(error)) => Err(error),
            Err(fault) => {
                self.unload(number)?;
                Ok(Err(fault))
            }
        }
    }

    pub(super) fn load(
        &self,
        car: &impl BlockSource,
        root: Cid,
        number: u64,
        did: &Did,
        key: HeadKey<'_>,
        now: Timestamp,
    ) -> Result<(VerifiedRepo, Vec<BlobMention>), RepoFault<StoreError>> {
        // Every row carries the rev of the swap, which is the head's.
        let block = car.block(&root).map_err(RepoFault::Read)?;
        let block = block.ok_or(RepoFault::Head(RejectReason::CommitMissing))?;
        let rev = Commit::decode(&block)
            .map_err(|_| RepoFault::Head(RejectReason::CommitMalformed))?
            .rev;
        let mut batch = Batch::new();
        let mut blobs = std::collections::BTreeMap::new();
        let erased = Mirror::new(&*self.store).erased(did).map_err(RepoFault::Visit)?;
        let repo = check_repo(car, root, did, key, now, |path, cid, bytes| {
            // Its place is proven like any other; its bytes are not taken.
            let gone = erased.as_ref().is_some_and(|erased| erased.withholds(&cid));
            let bytes = if gone { &[] } else { bytes };
            let value = RecordValue {
                rev,
                digest: *cid.digest(),
                bytes,
            };
            batch.put(
                Family::Records,
                keyspace::encode_record(number, path),
                value.encode(),
            );
            for blob in scan_record(bytes).blobs {
                let digest = *blob.cid.digest();
                batch.put(
                    Family::BlobRefs,
                    keyspace::encode_blob_ref(number, &digest, path),
                    Vec::new(),
                );
                blobs.entry(digest).or_insert(BlobMention {
                    digest,
                    mime: blob.mime,
                    size: blob.size,
                });
            }
            if batch.bytes() >= LOAD_BATCH_BYTES {
                self.store.write(std::mem::take(&mut batch))?;
            }
            Ok(())
        })?;
        self.store.write(batch).map_err(RepoFault::Visit)?;
        Ok((repo, blobs.into_values().collect()))
    }

    pub(super) fn unload(&self, number: u64) -> Result<(), StoreError> {
        debug_assert_ne!(number, NO_NUMBER);
        let (from, to) = keyspace::number_bounds(number);
        let mut batch = Batch::new();
        for family in [Family::Records, Family::BlobRefs] {
            batch.delete_range(family, from, to);
        }
        self.store.write(batch)
    }
}

/// Whether a proven repository is older than the head that is held, or another one at the same rev.
pub(super) fn is_behind(repo: &VerifiedRepo, (rev, commit): (Rev, Cid)) -> bool {
    repo.rev() < rev || (repo.rev() == rev && repo.cid() != commit)
}
