#![allow(clippy::disallowed_methods, reason = "shell: part of the fetcher")]
//! Keeping what does not rebuild, or is behind ours: the received CAR goes into the mirror byte for byte, under a number of its own.

use std::collections::BTreeMap;
use std::io;

use sha2::{Digest as _, Sha256};

use super::{Failed, Fetcher, Judged};
use crate::mirror::input::{BlobMention, FetchedContent};
use crate::mirror::keyspace;
use crate::mirror::reader::{BLOB_CHUNK_BYTES, Mirror};
use crate::mirror::rows::KeptCar;
use crate::mirror::spool::IndexedCar;
use crate::mirror::store::{Batch, Family, StoreError};
use crate::repo::mst::BlockSource as _;
use crate::repo::record::scan_record;
use crate::types::{Cid, Did, Rev, Timestamp};
use crate::verify::{HeadKey, RepoFault, VerifiedRepo, check_lax_repo};

/// Largest CAR that is kept as it came, in bytes.
pub const KEPT_CAR_BYTES_MAX: u64 = 1 << 30;

impl Fetcher {
    /// A repository breaks a rule of the tree. If it is signed and all there, its CAR is kept; nothing of it is
    /// kept otherwise. `fault` says what is wrong.
    pub(super) fn keep_if_whole(
        &self,
        car: &IndexedCar,
        number: u64,
        did: &Did,
        key: HeadKey<'_>,
        now: Timestamp,
        fault: String,
    ) -> Result<Judged, StoreError> {
        let root = car.roots()[0];
        let mut blobs = BTreeMap::new();
        let erased = Mirror::new(&*self.store).erased(did)?;
        let mut holds_erased = false;
        let checked = check_lax_repo(car, root, did, key, now, |_, bytes| {
            holds_erased |= erased
                .as_ref()
                .is_some_and(|erased| erased.withholds(&Cid::of_block(bytes)));
            for blob in scan_record(bytes).blobs {
                let digest = *blob.cid.digest();
                blobs.entry(digest).or_insert(BlobMention {
                    digest,
                    mime: blob.mime,
                    size: blob.size,
                });
            }
            Ok::<(), StoreError>(())
        });
        let repo = match checked {
            Ok(repo) => repo,
            Err(RepoFault::Visit(error)) => return Err(error),
            Err(missing) => {
                return Ok(Judged::Failed(Failed::unproven(format!(
                    "{fault}; and {missing}"
                ))));
            }
        };
        if holds_erased {
            // As it came it holds what a person wants gone, and without that it is not as it came.
            let text = format!("{fault}; and it holds a record that was erased here");
            return Ok(Judged::Failed(Failed::unproven(text)));
        }
        if car.bytes() > self.kept_car_bytes_max {
            let text = format!(
                "{fault}; its {} bytes are more than the {} that are kept of such a repository",
                car.bytes(),
                self.kept_car_bytes_max
            );
            return Ok(Judged::Failed(Failed::unproven(text)));
        }
        let car = match self.keep(car, number, (repo.rev(), repo.cid()), now)? {
            Ok(car) => car,
            Err(error) => {
                self.drop_chunks(number)?;
                let fault = RepoFault::<StoreError>::Read(error);
                return Ok(Judged::Failed(Failed::unproven(fault.to_string())));
            }
        };
        Ok(Judged::Proven(Box::new(FetchedContent::Kept {
            car,
            repo,
            reason: fault,
            blobs: blobs.into_values().collect(),
        })))
    }

    /// A proven repository is behind ours: its CAR is kept, unless it is too large for that.
    pub(super) fn keep_beside(
        &self,
        car: &IndexedCar,
        (number, did): (u64, &Did),
        repo: VerifiedRepo,
        blobs: Vec<BlobMention>,
        now: Timestamp,
    ) -> Result<Judged, StoreError> {
        let mut kept = None;
        // What holds something that was erased is not kept as it came.
        let erased = Mirror::new(&*self.store).erased(did)?;
        let records = erased.into_iter().flat_map(|erased| erased.records);
        let mut holds = false;
        for digest in records {
            let block = car.block(&Cid::dag_cbor(digest.into_array()));
            // One that cannot be read may hold it.
            holds |= block.map_or(true, |block| block.is_some());
        }
        if !holds && car.bytes() <= self.kept_car_bytes_max {
            match self.keep(car, number, (repo.rev(), repo.cid()), now)? {
                Ok(car) => kept = Some(car),
                Err(error) => {
                    self.drop_chunks(number)?;
                    let fault = RepoFault::<StoreError>::Read(error);
                    return Ok(Judged::Failed(Failed::unproven(fault.to_string())));
                }
            }
        }
        let content = FetchedContent::Behind {
            car: kept,
            repo,
            blobs,
        };
        Ok(Judged::Proven(Box::new(content)))
    }

    /// Chunks are not synced by themselves: the batch that names them comes after them.
    fn keep(
        &self,
        car: &IndexedCar,
        number: u64,
        (rev, commit): (Rev, Cid),
        now: Timestamp,
    ) -> Result<io::Result<KeptCar>, StoreError> {
        let (mut hasher, mut bytes, mut chunk_number) = (Sha256::new(), 0u64, 0u32);
        let mut failed = Ok(());
        let read = car.each_chunk(BLOB_CHUNK_BYTES, |chunk| {
            hasher.update(chunk);
            bytes += chunk.len() as u64;
            let mut batch = Batch::new();
            let key = keyspace::encode_blob_data(number, commit.digest(), chunk_number);
            batch.put(Family::BlobData, key, chunk);
            chunk_number += 1;
            failed = self.store.write(batch);
            failed.is_ok()
        });
        failed?;
        Ok(read.map(|()| KeptCar {
            number,
            rev,
            commit,
            bytes,
            sha256: hasher.finalize().into(),
            since: now,
            archived: false,
            damaged: false,
        }))
    }

    fn drop_chunks(&self, number: u64) -> Result<(), StoreError> {
        let (from, to) = keyspace::number_bounds(number);
        let mut batch = Batch::new();
        batch.delete_range(Family::BlobData, from, to);
        self.store.write(batch)
    }
}
