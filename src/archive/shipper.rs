#![allow(clippy::disallowed_methods, reason = "shell: the clock, the bucket")]
//! Ships the log: every `flush_interval` what was applied since goes into the archive, as one segment or more.
//!
//! What a segment holds is fixed in the mirror before its upload, so every try writes the same entries under the
//! same number. A number that is taken is read and judged: with the same index it is an earlier try of ours, with
//! another one somebody else writes under our name, and this mirror stops. After the upload, and before the mirror
//! hears of it, the writers' claims are looked at: who was taken over stops as well, and what it has just written is
//! not taken for archived. Before the upload and after it, this mirror's own claim must be there: where a disk is not
//! mounted it is not, and nothing that is put there counts.
//!
//! While the archive is away the outbox grows in the mirror; nothing is dropped.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bucket::{Body, Bucket, PutOptions, PutOutcome};
use super::content_type::ContentType;
use super::held::{Gate, Going};
use super::log_cut::{Segment, next_segment};
use super::log_file::LogFile;
use super::names::SegmentName;
use super::snapshot_file::{FileStats, SnapshotEncoder};
use super::writer::{self, ClaimError, SHARD};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::metrics::labels::{Direction, Outcome};
use crate::mirror::handle::{ApplierHandle, Stopped};
use crate::mirror::input::{Input, SegmentShipped};
use crate::mirror::keyspace;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::LogRow;
use crate::mirror::store::{Family, Store, StoreError};
use crate::types::Digest;

/// First and longest wait after the archive failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A segment that the store has not taken by then is tried again: this long, and longer for a large one.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Slower than this, in bytes a second, is no upload.
const UPLOAD_RATE_MIN: u64 = 16 << 10;
/// The longest wait while the daemon is stopping.
const HURRY: Duration = Duration::from_millis(100);

/// What shipping needs.
pub struct Shipper {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// The archive.
    pub bucket: Bucket,
    /// The name of this mirror in its claim.
    pub instance: String,
    /// The clock.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The log is shipped this often, if there is anything.
    pub flush_interval: Duration,
    /// Tries that failed since one went well.
    pub failures: AtomicU32,
    /// Held while something goes from the mirror into the archive.
    pub gate: Gate,
    /// Set while what stands in the archive's place is not the mirror's archive.
    pub paused: AtomicBool,
    /// The last segment that was put, with its digest.
    pub last: Mutex<Option<(String, Digest)>>,
}

/// Why shipping ended.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// Another mirror took over.
    #[error(
        "another Firekeep has taken over {0}, so this one must not write there any more; if that is wrong, stop the \
         other one and start this one once with --take-over"
    )]
    Superseded(String),
    /// Another process writes under this mirror's name.
    #[error(
        "{0} is there already and holds something else: another process writes to this archive with a copy of this \
         data folder; stop one of them, and start the other once with --take-over"
    )]
    Copied(String),
    /// The mirror failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A segment that is to be put.
struct Built {
    /// Where the log is.
    log: LogRow,
    segment: Segment,
    body: Vec<u8>,
    stats: FileStats,
}

/// What one step of shipping came to.
enum Step {
    Shipped {
        /// Whether there was more than fitted into the segment.
        more: bool,
    },
    Nothing,
    /// The archive took nothing.
    Failed(String),
}

impl Shipper {
    /// Ships until it is cancelled; from `hurry` on without waiting for the interval.
    ///
    /// # Errors
    /// When this mirror is not the writer any more, or the mirror itself fails.
    pub async fn run(
        self: Arc<Self>,
        hurry: CancellationToken,
        cancel: CancellationToken,
    ) -> Result<(), ShipError> {
        loop {
            let step = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                step = self.ship_next() => step?,
            };
            let wait = match step {
                Step::Shipped { more } => {
                    if self.failures.swap(0, Ordering::Relaxed) > 0 {
                        tracing::info!("the log reaches the archive again");
                    }
                    self.metrics.segments.of(Outcome::Ok).inc();
                    // A long queue goes on at once; what came meanwhile waits for its turn.
                    if more { Duration::ZERO } else { self.flush_interval }
                }
                Step::Nothing => {
                    self.failures.store(0, Ordering::Relaxed);
                    self.flush_interval
                }
                Step::Failed(why) => {
                    self.metrics.segments.of(Outcome::Error).inc();
                    let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                    if failures == 0 {
                        tracing::warn!(
                            "cannot ship the log: {why}; it is kept here, and tried again until it works"
                        );
                    }
                    let wait = RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1);
                    wait + self.clock.jitter(wait / 4)
                }
            };
            let hurried = hurry.is_cancelled();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = hurry.cancelled(), if !hurried => {}
                () = sleep(if hurried { wait.min(HURRY) } else { wait }) => {}
            }
        }
    }

    /// Whether the newest try failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > 0
    }

    /// Whether this mirror is still the writer of the archive that stands there.
    ///
    /// # Errors
    /// A line for a person, when it is not, or that cannot be told.
    pub async fn is_writer(&self) -> Result<(), String> {
        let generation = Mirror::new(&*self.store)
            .log()
            .map_err(|error| error.to_string())?
            .generation;
        self.check_place(generation).await?;
        match writer::is_superseded(&self.bucket, generation).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(format!("another Firekeep has taken over {}", self.bucket)),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn ship_next(self: &Arc<Self>) -> Result<Step, ShipError> {
        // Whoever paused it says why.
        if self.paused.load(Ordering::Relaxed) {
            return Ok(Step::Nothing);
        }
        if self.applier.totals().unshipped == 0 {
            self.metrics.log_oldest.set(0.0);
            return Ok(Step::Nothing);
        }
        let _at_work = self.gate.at_work(Going::Log).await;
        let this = Arc::clone(self);
        let built = tokio::task::spawn_blocking(move || this.build()).await;
        let Some(Built {
            log,
            segment,
            body,
            stats,
        }) = built.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?
        else {
            return Ok(Step::Nothing);
        };
        let age = self.clock.now().since(segment.oldest);
        self.metrics.log_oldest.set(age.as_secs_f64());
        let (first, last) = (segment.first, segment.last);
        if log.cut.is_none() {
            self.applier.apply(Input::SegmentCut { first, last }).await?;
        }
        let within = UPLOAD_TIMEOUT + Duration::from_secs(stats.file_bytes / UPLOAD_RATE_MIN);
        match timeout(within, self.upload(&log, &segment, body, &stats)).await {
            Ok(uploaded) => {
                if let Err(why) = uploaded? {
                    return Ok(Step::Failed(why));
                }
            }
            Err(_) => {
                let why = format!("{} took nothing within {} s", self.bucket, within.as_secs());
                return Ok(Step::Failed(why));
            }
        }
        self.applier
            .apply(Input::SegmentShipped(SegmentShipped {
                number: log.number,
                first,
                last,
                index: segment.file.root,
            }))
            .await?;
        let took = self.clock.now().since(segment.oldest);
        self.metrics.log_age.observe(took.as_secs_f64());
        Ok(Step::Shipped {
            more: segment.is_full,
        })
    }

    /// The next segment, packed.
    fn build(&self) -> Result<Option<Built>, StoreError> {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let log = mirror.log()?;
        let Some(segment) = next_segment(&mirror, &log)? else {
            return Ok(None);
        };
        let car = segment.file.encode_car();
        // What nobody could read again must not be acknowledged.
        if let Err(error) = LogFile::decode(&*car) {
            let first = keyspace::encode_outbox(segment.first);
            let what = format!("the segment made of it could not be read again: {error}");
            return Err(StoreError::bad_row(Family::Outbox, &first, what));
        }
        let (body, stats) = pack(&car);
        Ok(Some(Built {
            log,
            segment,
            body,
            stats,
        }))
    }

    /// Puts the segment, and makes sure that it counts.
    async fn upload(
        &self,
        log: &LogRow,
        segment: &Segment,
        body: Vec<u8>,
        stats: &FileStats,
    ) -> Result<Result<(), String>, ShipError> {
        if let Err(why) = self.check_place(log.generation).await {
            return Ok(Err(why));
        }
        let segment_name = SegmentName {
            shard: SHARD,
            generation: log.generation,
            number: log.number,
            edition: 0,
        };
        let name = segment_name.to_string();
        match self.check_last().await {
            Ok(None) => {}
            Ok(Some(replaced)) => return Err(ShipError::Copied(format!("{replaced} in {}", self.bucket))),
            Err(why) => return Ok(Err(why)),
        }
        let options = PutOptions {
            sha256: Some(stats.sha256),
            ..PutOptions::create(ContentType::zstd())
        };
        let put = self.bucket.put(&name, Body::Bytes(body.into()), &options);
        match put.await {
            Ok(PutOutcome::Created) => {
                self.metrics
                    .store_bytes
                    .of(Direction::Sent)
                    .inc_by(stats.file_bytes);
            }
            Ok(PutOutcome::AlreadyThere) => match writer::read_segment(&self.bucket, &segment_name).await {
                Ok(file) if file.root == segment.file.root => {}
                Ok(_) | Err(ClaimError::Damaged { .. } | ClaimError::Taken { .. }) => {
                    return Err(ShipError::Copied(format!("{name} in {}", self.bucket)));
                }
                Err(ClaimError::Bucket(error)) => return Ok(Err(error.to_string())),
            },
            Err(error) => return Ok(Err(error.to_string())),
        }
        match writer::is_left_behind(&self.bucket, &segment_name).await {
            Ok(false) => {}
            Ok(true) => {
                return Err(ShipError::Copied(format!(
                    "what comes behind {name} in {}",
                    self.bucket
                )));
            }
            Err(error) => return Ok(Err(error.to_string())),
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((name, stats.sha256));
        match writer::is_superseded(&self.bucket, log.generation).await {
            Ok(false) => Ok(self.check_place(log.generation).await),
            Ok(true) => Err(ShipError::Superseded(self.bucket.to_string())),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Where the store keeps nobody out, another writer may have replaced our last segment: then it is named.
    async fn check_last(&self) -> Result<Option<String>, String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((name, sha256)) = last.filter(|_| !self.bucket.create_only_is_atomic()) else {
            return Ok(None);
        };
        match self.bucket.head(&name).await {
            Ok(Some(head)) if head.sha256.is_some_and(|found| found != sha256) => Ok(Some(name)),
            Ok(_) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What stands in the archive's place is the archive that this mirror claimed.
    async fn check_place(&self, generation: u64) -> Result<(), String> {
        match writer::is_claimed_by(&self.bucket, generation, &self.instance).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "{} is not the archive that this mirror writes: its claim is not there; if a disk is not mounted, \
                 mount it",
                self.bucket
            )),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A CAR in a zstd frame.
///
/// # Panics
/// When memory runs out.
#[must_use]
pub fn pack(car: &[u8]) -> (Vec<u8>, FileStats) {
    let mut encoder =
        SnapshotEncoder::new(Vec::new(), Some(car.len() as u64)).expect("zstd sets up in memory");
    encoder.write_all(car).expect("a Vec takes all");
    encoder.finish().expect("as long as announced")
}

#[cfg(test)]
mod cost;
#[cfg(test)]
mod tests;
