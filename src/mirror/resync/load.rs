#![allow(clippy::disallowed_methods, reason = "shell: part of the fetcher")]
//! Proving what was received while its rows go into the mirror, under a number of their own.

use super::*;

/// Rows of a loaded repository are written in batches of this many bytes.
const LOAD_BATCH_BYTES: usize = 1 << 20;
/// From this length of its CAR on a repository's records are loaded as sorted table files, past the log and the
/// write buffers: what is smaller would only make many small files.
pub(super) const BULK_BYTES_MIN: u64 = 4 << 20;
/// Bytes of records that are handed over to the loader at once, and how often, before it has to take them.
const BULK_CHUNK_BYTES: usize = 256 << 10;
const BULK_CHUNKS_MAX: usize = 8;

/// Rows in key order.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Where the record rows of a repository go, in tree order, which is key order.
enum RecordSink<'s> {
    /// Into batches, through the log.
    Batches,
    /// To the thread that writes table files.
    Bulk {
        chunk: Rows,
        bytes: usize,
        chunks: &'s std::sync::mpsc::SyncSender<Rows>,
    },
}

impl RecordSink<'_> {
    /// Whether somebody still takes rows.
    fn put(&mut self, batch: &mut Batch, key: Vec<u8>, value: Vec<u8>) -> bool {
        match self {
            Self::Batches => {
                batch.put(Family::Records, key, value);
                true
            }
            Self::Bulk { chunk, bytes, .. } => {
                *bytes += key.len() + value.len();
                chunk.push((key, value));
                *bytes < BULK_CHUNK_BYTES || self.hand_over()
            }
        }
    }

    fn hand_over(&mut self) -> bool {
        match self {
            Self::Batches => true,
            Self::Bulk { chunk, bytes, chunks } => {
                *bytes = 0;
                chunks.send(std::mem::take(chunk)).is_ok()
            }
        }
    }
}

/// Why loading ended early.
enum LoadError {
    Store(StoreError),
    /// The thread that writes table files gave up, and says why itself.
    LoaderGone,
}

impl LoadError {
    /// The store's failure. When the loader is gone it has told its own, which comes first.
    fn expect_store(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::LoaderGone => unreachable!("a loader that gives up says why"),
        }
    }
}

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
        let loaded = if car.bytes() < BULK_BYTES_MIN {
            self.load(car, root, number, did, key, now)
        } else {
            self.load_large(car, root, number, did, key, now)
        };
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

    /// Proves a received CAR of this length while its rows go in.
    fn load_large(
        &self,
        car: &IndexedCar,
        root: Cid,
        number: u64,
        did: &Did,
        key: HeadKey<'_>,
        now: Timestamp,
    ) -> Result<(VerifiedRepo, Vec<BlobMention>), RepoFault<StoreError>> {
        let (chunks, taken) = std::sync::mpsc::sync_channel::<Rows>(BULK_CHUNKS_MAX);
        let store = Arc::clone(&self.store);
        std::thread::scope(|scope| {
            let loader = scope.spawn(move || {
                let mut rows = taken.into_iter().flatten();
                store.bulk_load(Family::Records, &mut rows).map(drop)
            });
            let sink = RecordSink::Bulk {
                chunk: Rows::new(),
                bytes: 0,
                chunks: &chunks,
            };
            let proven = self.load_into(car, root, number, did, key, now, sink);
            drop(chunks);
            let loaded = loader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            loaded.map_err(RepoFault::Visit)?;
            proven.map_err(|fault| fault.map_visit(LoadError::expect_store))
        })
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
        let proven = self.load_into(car, root, number, did, key, now, RecordSink::Batches);
        proven.map_err(|fault| fault.map_visit(LoadError::expect_store))
    }

    #[expect(clippy::too_many_arguments, reason = "what `load` takes, and where to")]
    fn load_into(
        &self,
        car: &impl BlockSource,
        root: Cid,
        number: u64,
        did: &Did,
        key: HeadKey<'_>,
        now: Timestamp,
        mut sink: RecordSink<'_>,
    ) -> Result<(VerifiedRepo, Vec<BlobMention>), RepoFault<LoadError>> {
        let of_store = |error| RepoFault::Visit(LoadError::Store(error));
        // Every row carries the rev of the swap, which is the head's.
        let block = car.block(&root).map_err(RepoFault::Read)?;
        let block = block.ok_or(RepoFault::Head(RejectReason::CommitMissing))?;
        let rev = Commit::decode(&block)
            .map_err(|_| RepoFault::Head(RejectReason::CommitMalformed))?
            .rev;
        let mut batch = Batch::new();
        let mut blobs = std::collections::BTreeMap::new();
        let erased = Mirror::new(&*self.store).erased(did).map_err(of_store)?;
        let repo = check_repo(car, root, did, key, now, |path, cid, bytes| {
            // Its place is proven like any other; its bytes are not taken.
            let gone = erased.as_ref().is_some_and(|erased| erased.withholds(&cid));
            let bytes = if gone { &[] } else { bytes };
            let value = RecordValue {
                rev,
                digest: *cid.digest(),
                bytes,
            };
            let taken = sink.put(&mut batch, keyspace::encode_record(number, path), value.encode());
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
                let full = std::mem::take(&mut batch);
                self.store.write(full).map_err(LoadError::Store)?;
            }
            if taken { Ok(()) } else { Err(LoadError::LoaderGone) }
        })?;
        if !sink.hand_over() {
            return Err(RepoFault::Visit(LoadError::LoaderGone));
        }
        self.store.write(batch).map_err(of_store)?;
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
