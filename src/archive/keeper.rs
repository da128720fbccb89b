#![allow(clippy::disallowed_methods, reason = "shell: files, the clock, the bucket")]
//! Puts blobs and snapshots into the archive.
//!
//! A snapshot is proven before it is written: every record is hashed and the tree rebuilt to the signed root,
//! from one consistent view of the mirror. What does not prove is never archived as good. Nothing here marks
//! anything as archived; the applier does, when it is told.

use std::fs::File;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use self::deltas::Behind;
use super::bucket::{Body, Bucket, BucketError, BucketErrorKind, PutOptions, PutOutcome};
use super::content_type::ContentType;
use super::held::{Gate, Going};
use super::names::{self, BlobName, DidFolder, SnapshotName};
use super::snapshot_file::{FileStats, SnapshotDecoder, SnapshotEncoder};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::metrics::labels::{Direction, Outcome, StoreOp};
use crate::mirror::input::{BlobKey, Input, SnapshotStored};
use crate::mirror::keyspace::Task;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, BlobRow, BlobState, Head};
use crate::mirror::store::{Store, StoreError};
use crate::repo::car::CarReader;
use crate::repo::export::{ExportError, prove};
use crate::types::{Cid, Did, Rev, Timestamp};

/// Blobs up to this size are put from memory, larger ones through a file.
const BLOB_MEMORY_BYTES_MAX: u64 = 8 << 20;
/// Largest CAR that a snapshot is checked as.
const CAR_BYTES_MAX: u64 = 16 << 30;
/// First and longest wait after the archive failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// An account whose DID cannot be an object's name is looked at again after this long.
const UNNAMEABLE_RETRY: Duration = Duration::from_secs(24 * 3600);

/// What archiving needs.
pub struct Keeper {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The archive.
    pub bucket: Bucket,
    /// The clock.
    pub clock: Clock,
    /// Where objects are made before they are put.
    pub temp_dir: PathBuf,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Held while something goes from the mirror into the archive.
    pub gate: Gate,
    failures: AtomicU32,
}

/// A snapshot that is to be put.
struct Made {
    file: tempfile::NamedTempFile,
    stats: FileStats,
    head: Head,
    /// What deltas are to lead to it from; none if nothing does.
    behind: Option<Behind>,
}

/// Why an object was not archived.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("write the object to a temporary file: {0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Name(String),
    /// What the mirror holds does not prove.
    #[error("the mirror's copy does not prove: {0}")]
    Unproven(String),
    #[error("object {name} in the archive is not what it should be: {detail}")]
    Foreign { name: String, detail: String },
}

impl Keeper {
    /// A keeper of this archive.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        bucket: Bucket,
        clock: Clock,
        temp_dir: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            bucket,
            clock,
            temp_dir,
            metrics,
            gate: Gate::default(),
            failures: AtomicU32::new(0),
        }
    }

    /// Snapshots an account's head.
    ///
    /// # Errors
    /// When our own store fails.
    pub async fn snapshot(self: &Arc<Self>, did: Did, task: Vec<u8>) -> Result<Input, StoreError> {
        let _at_work = self.gate.at_work(Going::Repositories).await;
        let Some(row) = Mirror::new(&*self.store).account(&did)? else {
            return Ok(Input::TaskDone { task });
        };
        let (number, began) = (row.account_number, Instant::now());
        let stored = match &row.head {
            None => return Ok(Input::TaskDone { task }),
            Some(_) if row.is_snapshotted() => row.snapshot.map(|mark| (mark.rev, mark.commit, mark.bytes)),
            Some(_) => None,
        };
        let stored = match stored {
            Some(stored) => stored,
            None => match self.put_snapshot(&did).await {
                Ok(stored) => {
                    self.recovered();
                    self.metrics.snapshots.of(Outcome::Ok).inc();
                    let took = began.elapsed().as_secs_f64();
                    self.metrics.snapshot_duration.observe(took);
                    self.metrics.last_snapshot.set(self.clock.now().seconds_f64());
                    stored
                }
                Err(Failed::Store(error)) => return Err(error),
                Err(Failed::Unproven(detail)) => {
                    self.metrics.snapshots.of(Outcome::Error).inc();
                    tracing::error!(%did, detail, "the mirror's copy of this account is damaged; it is fetched again");
                    return Ok(Input::Damaged {
                        did,
                        account_number: number,
                        task,
                    });
                }
                Err(failed) => {
                    self.metrics.snapshots.of(Outcome::Error).inc();
                    let what = format!("snapshot of {did}");
                    return Ok(self.delayed(&what, &failed, task, Task::Snapshot(did)));
                }
            },
        };
        let (rev, commit, bytes) = stored;
        Ok(Input::SnapshotStored(SnapshotStored {
            did,
            account_number: number,
            rev,
            commit,
            bytes,
            task,
        }))
    }

    async fn put_snapshot(self: &Arc<Self>, did: &Did) -> Result<(Rev, Cid, u64), Failed> {
        let folder = DidFolder::try_from(did).map_err(|error| Failed::Name(error.to_string()))?;
        let (this, owner) = (Arc::clone(self), did.clone());
        let made = tokio::task::spawn_blocking(move || this.make_snapshot(&owner)).await;
        let Made {
            file,
            stats,
            head,
            behind,
        } = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        // Before the snapshot: once it stands there, the journal that they are made of may go.
        if let Some(behind) = behind {
            self.put_deltas(&folder, behind).await?;
        }
        let name = SnapshotName {
            did: folder,
            rev: head.rev,
            commit: *head.commit.digest(),
            edition: 0,
        }
        .to_string();
        let options = PutOptions {
            sha256: Some(stats.sha256),
            ..PutOptions::create(ContentType::zstd())
        };
        let body = Body::File(file.path().to_owned());
        let put = self.put(&name, body.clone(), stats.file_bytes, &options).await?;
        if put == PutOutcome::AlreadyThere
            && let Err(failed) = self.check_snapshot(&name, head.commit).await
        {
            let Failed::Foreign { detail, .. } = failed else {
                return Err(failed);
            };
            tracing::error!(
                object = name,
                detail,
                "a snapshot in the archive is damaged; it is replaced"
            );
            let replacing = PutOptions {
                create_only: false,
                ..options
            };
            self.put(&name, body, stats.file_bytes, &replacing).await?;
        }
        Ok((head.rev, head.commit, stats.file_bytes))
    }

    /// Writes a proven snapshot of the account's head, as of one moment, to a temporary file; and says what
    /// leads to it from the one before.
    fn make_snapshot(&self, did: &Did) -> Result<Made, Failed> {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let row = mirror
            .account(did)?
            .ok_or_else(|| Failed::Unproven("its row is gone".to_owned()))?;
        let AccountRow {
            head: Some(head),
            account_number,
            did_number,
            host,
            snapshot,
            ..
        } = row
        else {
            return Err(Failed::Unproven("it has no head".to_owned()));
        };
        let rows = mirror.rows(account_number);
        let proven = prove(&rows, head.data).map_err(unproven)?;
        let file = tempfile::NamedTempFile::new_in(&self.temp_dir)?;
        let plain_bytes = proven.car_bytes(head.commit_block.len());
        let out = BufWriter::new(File::options().write(true).open(file.path())?);
        let mut encoder = SnapshotEncoder::new(out, Some(plain_bytes))?;
        proven
            .write_car(&rows, head.commit, &head.commit_block, &mut encoder)
            .map_err(unproven)?;
        let (out, stats) = encoder.finish().map_err(std::io::Error::other)?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let behind = snapshot.map(|before| Behind {
            did: did.clone(),
            did_number,
            host,
            from: before.rev,
            to: head.rev,
        });
        Ok(Made {
            file,
            stats,
            head,
            behind,
        })
    }

    /// An object of that name was there: an earlier try of ours, if it can be read.
    async fn check_snapshot(&self, name: &str, commit: Cid) -> Result<(), Failed> {
        let foreign = |detail: String| Failed::Foreign {
            name: name.to_owned(),
            detail,
        };
        let body = self
            .counted(StoreOp::Get, self.bucket.get(name))
            .await?
            .ok_or_else(|| foreign("it vanished".to_owned()))?;
        self.metrics.store_bytes.of(Direction::Received).inc_by(body.size);
        let reader = body.into_reader(tokio::runtime::Handle::current());
        let checked = tokio::task::spawn_blocking(move || {
            let decoder = SnapshotDecoder::new(reader, CAR_BYTES_MAX).map_err(|error| error.to_string())?;
            let mut car = CarReader::new(decoder).map_err(|error| error.to_string())?;
            if car.roots().first() != Some(&commit) {
                return Err("its root is another commit".to_owned());
            }
            let mut block = Vec::new();
            while car
                .next_block(&mut block)
                .map_err(|error| error.to_string())?
                .is_some()
            {}
            Ok(())
        });
        let checked = checked
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        checked.map_err(foreign)
    }

    /// Puts a held blob into the archive.
    ///
    /// # Errors
    /// When our own store fails.
    pub async fn blob(self: &Arc<Self>, blob: BlobKey, task: Vec<u8>) -> Result<Input, StoreError> {
        let _at_work = self.gate.at_work(Going::Blobs).await;
        let row = match Mirror::new(&*self.store).blob(blob.did_number, &blob.digest)? {
            Some(row) if row.state == BlobState::Held => row,
            _ => return Ok(Input::TaskDone { task }),
        };
        match self.put_blob(&blob, &row).await {
            Ok(()) => {
                self.recovered();
                Ok(Input::BlobArchived { blob, task })
            }
            Err(Failed::Store(error)) => Err(error),
            Err(Failed::Unproven(detail)) => {
                tracing::error!(did = %blob.did, cid = %blob.cid(), detail, "a blob in the mirror is damaged; it is fetched again");
                Ok(Input::BlobLost { blob, task })
            }
            Err(failed) => {
                let what = format!("blob {} of {}", blob.cid(), blob.did);
                let again = Task::ArchiveBlob(blob.did, blob.digest);
                Ok(self.delayed(&what, &failed, task, again))
            }
        }
    }

    async fn put_blob(self: &Arc<Self>, blob: &BlobKey, row: &BlobRow) -> Result<(), Failed> {
        let did = DidFolder::try_from(&blob.did).map_err(|error| Failed::Name(error.to_string()))?;
        let name = BlobName {
            did,
            blob: blob.digest,
        }
        .to_string();
        let size = row.size.unwrap_or(u64::MAX);
        let (this, key) = (Arc::clone(self), blob.clone());
        let read = tokio::task::spawn_blocking(move || this.read_blob(&key, size)).await;
        let (body, _file) = read.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let content_type = ContentType::or_binary(row.mime.as_deref());
        let mut options = PutOptions {
            sha256: Some(blob.digest),
            ..PutOptions::create(content_type)
        };
        if self.put(&name, body.clone(), size, &options).await? == PutOutcome::Created {
            return Ok(());
        }
        // Only its bytes tell that what stands there is this blob. If they do not, our proven ones replace them.
        if !self.holds(&name, &blob.digest).await? {
            options.create_only = false;
            self.put(&name, body, size, &options).await?;
        }
        Ok(())
    }

    async fn put(
        &self,
        name: &str,
        body: Body,
        bytes: u64,
        options: &PutOptions,
    ) -> Result<PutOutcome, BucketError> {
        self.must_be_there().await?;
        let put = self.counted(StoreOp::Put, self.bucket.put(name, body, options));
        let outcome = put.await?;
        self.must_be_there().await?;
        if outcome == PutOutcome::Created {
            self.metrics.store_bytes.of(Direction::Sent).inc_by(bytes);
        }
        Ok(outcome)
    }

    /// A folder whose disk is not mounted takes everything: nothing is put there, and what was is not archived.
    async fn must_be_there(&self) -> Result<(), BucketError> {
        match &self.bucket {
            Bucket::Folder(_) if self.bucket.head(names::ARCHIVE).await?.is_none() => Err(BucketError {
                kind: BucketErrorKind::Other,
                action: "find the archive in",
                place: self.bucket.to_string(),
                detail: format!(
                    "there is no {}: its disk is not mounted, or it was emptied",
                    names::ARCHIVE
                ),
            }),
            _ => Ok(()),
        }
    }

    /// A request to the bucket, counted and timed.
    async fn counted<T>(
        &self,
        op: StoreOp,
        request: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let began = Instant::now();
        let result = request.await;
        let outcome = if result.is_ok() {
            Outcome::Ok
        } else {
            Outcome::Error
        };
        self.metrics.store_requests.of(op, outcome).inc();
        self.metrics
            .store_duration
            .of(op)
            .observe(began.elapsed().as_secs_f64());
        result
    }

    /// The blob's bytes, hashed again: in memory, or in a file that lives as long as the second value.
    fn read_blob(
        &self,
        blob: &BlobKey,
        size: u64,
    ) -> Result<(Body, Option<tempfile::NamedTempFile>), Failed> {
        use std::io::Write as _;

        let mut file = match size > BLOB_MEMORY_BYTES_MAX {
            true => Some(tempfile::NamedTempFile::new_in(&self.temp_dir)?),
            false => None,
        };
        let (mut memory, mut hasher, mut failed) = (Vec::new(), Sha256::new(), None);
        Mirror::new(&*self.store).blob_chunks(blob.did_number, &blob.digest, |chunk| {
            hasher.update(chunk);
            let written = match &mut file {
                Some(file) => file.write_all(chunk),
                None => {
                    memory.extend_from_slice(chunk);
                    Ok(())
                }
            };
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if <[u8; 32]>::from(hasher.finalize()) != blob.digest {
            return Err(Failed::Unproven("its bytes do not hash to its CID".to_owned()));
        }
        Ok(match file {
            Some(file) => (Body::File(file.path().to_owned()), Some(file)),
            None => (Body::Bytes(Bytes::from(memory)), None),
        })
    }

    fn delayed(&self, what: &str, failed: &Failed, key: Vec<u8>, task: Task) -> Input {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        if failures == 0 {
            tracing::warn!("cannot archive the {what}: {failed}; trying again until it works");
        } else {
            tracing::debug!("cannot archive the {what}: {failed}");
        }
        let wait = match failed {
            Failed::Name(_) => UNNAMEABLE_RETRY,
            _ => RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1),
        };
        let retry_at: Timestamp = self.clock.now().plus(wait).plus(self.clock.jitter(wait / 4));
        Input::TaskDelayed { key, task, retry_at }
    }

    /// Whether the newest try to archive something failed.
    pub fn is_failing(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > 0
    }

    fn recovered(&self) {
        if self.failures.swap(0, Ordering::Relaxed) > 0 {
            tracing::info!("the archive works again");
        }
    }
}

fn unproven(error: ExportError<StoreError>) -> Failed {
    match error {
        ExportError::Rows(error @ (StoreError::BadRow { .. } | StoreError::Corrupt { .. })) => {
            Failed::Unproven(error.to_string())
        }
        ExportError::Rows(error) => Failed::Store(error),
        ExportError::Write(error) => Failed::File(error),
        other => Failed::Unproven(other.to_string()),
    }
}

mod deltas;
mod quarantined;
pub mod state;
#[cfg(test)]
mod tests;
