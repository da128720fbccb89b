#![allow(clippy::disallowed_methods, reason = "shell: files, the bucket")]
//! Puts the CAR of a quarantined repository into the archive: as it came, under a name that says so.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::super::bucket::{Body, PutOptions, PutOutcome};
use super::super::content_type::ContentType;
use super::super::held::Going;
use super::super::names::{DidFolder, QuarantinedName};
use super::super::snapshot_file::{FileStats, SnapshotEncoder};
use super::{Failed, Keeper};
use crate::mirror::input::Input;
use crate::mirror::keyspace::Task;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::KeptCar;
use crate::mirror::store::StoreError;
use crate::types::Did;

impl Keeper {
    /// Archives an account's kept CAR.
    ///
    /// # Errors
    /// When our own store fails.
    pub async fn quarantined(self: &Arc<Self>, did: Did, task: Vec<u8>) -> Result<Input, StoreError> {
        let _at_work = self.gate.at_work(Going::Repositories).await;
        let row = Mirror::new(&*self.store).account(&did)?;
        let Some(car) = row
            .and_then(|row| row.kept_car)
            .filter(|car| !car.archived && !car.damaged)
        else {
            return Ok(Input::TaskDone { task });
        };
        match self.put_quarantined(&did, &car).await {
            Ok(()) => {
                self.recovered();
                Ok(Input::CarArchived {
                    did,
                    number: car.number,
                    task,
                })
            }
            Err(Failed::Store(error)) => Err(error),
            Err(failed) => {
                // A newer one may have taken its place while it was read: then this is over, and that has a task.
                let row = Mirror::new(&*self.store).account(&did)?;
                if row
                    .and_then(|row| row.kept_car)
                    .is_none_or(|now| now.number != car.number)
                {
                    return Ok(Input::TaskDone { task });
                }
                if let Failed::Unproven(detail) = &failed {
                    tracing::error!(%did, detail, "the CAR that is kept of a quarantined account is damaged");
                    let number = car.number;
                    return Ok(Input::CarDamaged { did, number, task });
                }
                let what = format!("quarantined repository of {did}");
                Ok(self.delayed(&what, &failed, task, Task::ArchiveCar(did)))
            }
        }
    }

    async fn put_quarantined(self: &Arc<Self>, did: &Did, car: &KeptCar) -> Result<(), Failed> {
        let name = QuarantinedName {
            did: DidFolder::try_from(did).map_err(|error| Failed::Name(error.to_string()))?,
            rev: car.rev,
            commit: *car.commit.digest(),
            edition: 0,
        }
        .to_string();
        let (this, kept) = (Arc::clone(self), car.clone());
        let made = tokio::task::spawn_blocking(move || this.pack_car(&kept)).await;
        let (file, stats) = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let options = PutOptions {
            sha256: Some(stats.sha256),
            ..PutOptions::create(ContentType::zstd())
        };
        let body = Body::File(file.path().to_owned());
        if self.put(&name, body, stats.file_bytes, &options).await? == PutOutcome::AlreadyThere {
            self.check_snapshot(&name, car.commit).await?;
        }
        Ok(())
    }

    /// Packs the bytes as they came, and hashes them again on the way.
    fn pack_car(&self, car: &KeptCar) -> Result<(tempfile::NamedTempFile, FileStats), Failed> {
        let file = tempfile::NamedTempFile::new_in(&self.temp_dir)?;
        let out = BufWriter::new(File::options().write(true).open(file.path())?);
        let mut encoder = SnapshotEncoder::new(out, Some(car.bytes))?;
        let (mut hasher, mut written, mut left) = (Sha256::new(), Ok(()), Some(car.bytes));
        let view = self.store.view();
        let read = Mirror::new(&*view).car_chunks(car, |chunk| {
            left = left.and_then(|left| left.checked_sub(chunk.len() as u64));
            hasher.update(chunk);
            if left.is_some() {
                written = encoder.write_all(chunk);
            }
            match (left, &written) {
                (Some(_), Ok(())) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        if let Err(error @ (StoreError::BadRow { .. } | StoreError::Corrupt { .. })) = read {
            return Err(Failed::Unproven(error.to_string()));
        }
        read?;
        if written.is_ok() && (left != Some(0) || <[u8; 32]>::from(hasher.finalize()) != car.sha256) {
            return Err(Failed::Unproven("its bytes are not those that came".to_owned()));
        }
        written?;
        let (out, stats) = encoder.finish().map_err(std::io::Error::other)?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Ok((file, stats))
    }
}
