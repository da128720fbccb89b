//! A model of what puts things into the archive (`archive/keeper.rs`): blobs, kept CARs, snapshots.

use std::ops::ControlFlow;

use super::bucket::{self, Put};
use super::daemon::Daemon;
use super::work::{Work, delayed};
use super::world::World;
use crate::mirror::input::{Input, SnapshotStored};
use crate::mirror::keyspace::Task;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::BlobState;
use crate::mirror::store::{Store as _, StoreError};
use crate::types::{Did, Digest};

impl Daemon {
    pub(super) fn archive_blob(
        &mut self,
        world: &mut World,
        did: Did,
        digest: Digest,
        work: &Work,
    ) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let Some(blob) = self.blob_key(&did, digest)? else {
            return Ok(Input::TaskDone { task });
        };
        match Mirror::new(&self.store).blob(blob.did_number, &digest)? {
            Some(row) if row.state == BlobState::Held => {}
            _ => return Ok(Input::TaskDone { task }),
        }
        let mut bytes = Vec::new();
        Mirror::new(&self.store).blob_chunks(blob.did_number, &digest, |chunk| {
            bytes.extend_from_slice(chunk);
            ControlFlow::Continue(())
        })?;
        if *crate::types::Cid::of_blob(&bytes).digest() != digest {
            return Ok(Input::BlobLost { blob, task });
        }
        Ok(
            match self.archive.put(world, bucket::blob_name(&did, digest), bytes) {
                Put::Stored => Input::BlobArchived { blob, task },
                Put::Failed(wait) => delayed(world, task, Task::ArchiveBlob(did, digest), wait),
            },
        )
    }

    pub(super) fn archive_car(
        &mut self,
        world: &mut World,
        did: Did,
        work: &Work,
    ) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let row = Mirror::new(&self.store).account(&did)?;
        let Some(car) = row.and_then(|row| row.kept_car).filter(|car| !car.archived) else {
            return Ok(Input::TaskDone { task });
        };
        let mut bytes = Vec::new();
        Mirror::new(&self.store).car_chunks(&car, |chunk| {
            bytes.extend_from_slice(chunk);
            ControlFlow::Continue(())
        })?;
        let number = car.number;
        Ok(
            match self.archive.put(world, bucket::kept_name(&did, &car), bytes) {
                Put::Stored => Input::CarArchived { did, number, task },
                Put::Failed(wait) => delayed(world, task, Task::ArchiveCar(did), wait),
            },
        )
    }

    pub(super) fn snapshot(&mut self, world: &mut World, did: Did, work: &Work) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let store = self.store.clone();
        let view = store.view();
        let row = Mirror::new(&*view).account(&did)?;
        let Some((row, head)) = row.and_then(|row| row.head.clone().map(|head| (row, head))) else {
            return Ok(Input::TaskDone { task });
        };
        if let Some(mark) = row.snapshot.filter(|_| row.is_snapshotted()) {
            return Ok(Input::SnapshotStored(SnapshotStored {
                did,
                account_number: row.account_number,
                rev: mark.rev,
                commit: mark.commit,
                bytes: mark.bytes,
                task,
            }));
        }
        let account_number = row.account_number;
        let Some((name, file)) = bucket::snapshot(&*view, &did, &row, &head) else {
            return Ok(Input::Damaged {
                did,
                account_number,
                task,
            });
        };
        let bytes = file.len() as u64;
        Ok(match self.archive.put(world, name, file) {
            Put::Stored => Input::SnapshotStored(SnapshotStored {
                did,
                account_number,
                rev: head.rev,
                commit: head.commit,
                bytes,
                task,
            }),
            Put::Failed(wait) => delayed(world, task, Task::Snapshot(did), wait),
        })
    }
}
