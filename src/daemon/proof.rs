#![allow(clippy::disallowed_methods, reason = "shell: the archive, the clock, files")]
//! Proof in the background: all of the archive and of the mirror is read and proven within `scrub_interval`, and some
//! accounts are restored from the archive alone every `drill_interval`.
//!
//! Slow on purpose, and taken up where it was after a stop. What is found is logged, raised as an alarm, and mended where
//! a good copy is at hand: a damaged snapshot or blob is put into the archive again, a damaged copy in the mirror is
//! fetched again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::archive_watch::ArchiveWatch;
use super::drill::{self, ACCOUNTS, DrillError, Options, Report};
use crate::archive::keeper::Keeper;
use crate::archive::names::ObjectName;
use crate::archive::scrub::run::{self, Progress, ScrubError};
use crate::archive::scrub::{Checkpoint, Fault, Finding, Sample};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::metrics::labels::{Outcome, ProofKind};
use crate::mirror::handle::{ApplierHandle, Stopped};
use crate::mirror::input::Input;
use crate::mirror::keyspace::{AlarmKind, encode_number, meta_proof};
use crate::mirror::numbers::Numbers;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::BlobState;
use crate::mirror::store::{Batch, Family, Store, StoreError};
use crate::types::Timestamp;

mod mirror;

/// Between two looks at whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// After the archive failed, or a drill could not be done.
const RETRY: Duration = Duration::from_secs(60);
/// So soon after a first start nothing is read: other things come first.
const AFTER_START: Duration = Duration::from_secs(600);
/// Bytes a second that are read of the archive.
const RATE: u64 = 8 << 20;
/// How often it is kept how far the archive is read.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Largest checkpoint that is read.
const CHECKPOINT_BYTES_MAX: u64 = 256 << 20;
/// Findings that are logged one by one.
const LOGGED_MAX: usize = 20;

/// What proving needs.
pub struct Proof {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// Numbers for what is loaded.
    pub numbers: Arc<Numbers>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// There while the archive is open.
    pub keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// What the newest look at the archive found.
    pub archive: Arc<ArchiveWatch>,
    /// How often all is read.
    pub scrub_interval: Duration,
    /// How often accounts are restored.
    pub drill_interval: Duration,
    /// Whether plain http may stand in DID documents.
    pub dev_mode: bool,
    /// Where checkpoints are kept.
    pub data_dir: PathBuf,
    /// Where accounts are restored to.
    pub temp_dir: PathBuf,
    /// The clock.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// One drill at a time.
    pub drilling: tokio::sync::Mutex<()>,
}

/// Why proving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The mirror failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Proof {
    /// Proves until it is cancelled.
    ///
    /// # Errors
    /// When the mirror fails.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) -> Result<(), ProofError> {
        self.show_last()?;
        tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(()),
            done = self.scrub_archive() => done,
            done = self.scrub_mirror() => done,
            done = self.drills() => done,
        }
    }

    /// What is known of the last ones, as metrics.
    fn show_last(&self) -> Result<(), StoreError> {
        for (what, gauge) in [
            ("scrub", &self.metrics.last_scrub),
            ("mirror", &self.metrics.last_mirror_scrub),
            ("drill", &self.metrics.last_drill),
            ("drill_failed", &self.metrics.last_failed_drill),
        ] {
            if let Some(at) = self.last(what)? {
                gauge.set(at.seconds_f64());
            }
        }
        Ok(())
    }

    /// Waits until a kind of proof is due.
    async fn due(&self, what: &str, interval: Duration) -> Result<(), StoreError> {
        let started = self.clock.now();
        loop {
            let now = self.clock.now();
            let due = match self.last(what)? {
                Some(last) => now.since(last) >= interval,
                None => now.since(started) >= AFTER_START.min(interval),
            };
            if due {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    fn last(&self, what: &str) -> Result<Option<Timestamp>, StoreError> {
        let millis = Mirror::new(&*self.store).number(&meta_proof(what))?;
        Ok(millis.map(|millis| Timestamp::from_micros(millis.saturating_mul(1000))))
    }

    fn mark(&self, what: &str, at: Timestamp) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(Family::Meta, meta_proof(what), encode_number(at.millis()));
        self.store.write_durable(batch)?.into_inner();
        Ok(())
    }

    /// The archive, once it is open and the right one.
    async fn keeper(&self) -> Arc<Keeper> {
        loop {
            if let Some(keeper) = self.keeper.get()
                && self.archive.is_good()
            {
                return Arc::clone(keeper);
            }
            sleep(LOOK).await;
        }
    }

    // the archive

    async fn scrub_archive(&self) -> Result<(), ProofError> {
        loop {
            self.due("read", self.scrub_interval).await?;
            let keeper = self.keeper().await;
            match self.read_archive(&keeper).await {
                Ok(report) => {
                    let now = self.clock.now();
                    self.mark("read", now)?;
                    let bad = self.judge(report.findings.kept()).await?;
                    let more = report
                        .findings
                        .bad()
                        .saturating_sub(report.findings.kept().len() as u64);
                    let bad = bad + more;
                    self.metrics
                        .scrub_findings
                        .set(i64::try_from(bad).unwrap_or(i64::MAX));
                    let outcome = if bad == 0 { Outcome::Ok } else { Outcome::Error };
                    self.metrics.verify_runs.of(ProofKind::Archive, outcome).inc();
                    self.metrics.verify_failures.of(ProofKind::Archive).inc_by(bad);
                    if bad == 0 {
                        self.mark("scrub", now)?;
                        self.metrics.last_scrub.set(now.seconds_f64());
                        tracing::info!("all of the archive was read, and is sound");
                    }
                }
                Err(why) => {
                    tracing::warn!("cannot read all of the archive: {why}; it goes on later");
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn read_archive(&self, keeper: &Keeper) -> Result<crate::archive::scrub::Report, String> {
        let path = self.data_dir.join("scrub.json");
        let from = read_checkpoint(&path);
        let options = run::Options {
            sample: Sample::all(),
            rate: Some(RATE),
        };
        let mut next = Instant::now() + KEEP_INTERVAL;
        let mut keep = |checkpoint: &Checkpoint| {
            if Instant::now() < next {
                return Ok(());
            }
            next = Instant::now() + KEEP_INTERVAL;
            write_checkpoint(&path, checkpoint)
        };
        let progress = Arc::new(Progress::default());
        let read = run::verify(&keeper.bucket, options, from, progress, &mut keep).await;
        match read {
            Ok(report) => {
                drop(std::fs::remove_file(&path));
                Ok(report)
            }
            Err(error @ ScrubError::OtherCheckpoint(_)) => {
                drop(std::fs::remove_file(&path));
                Err(error.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Tells what was found, and mends what can be. How many things are damaged.
    async fn judge(&self, findings: &[Finding]) -> Result<u64, ProofError> {
        let mut bad: Vec<&Finding> = Vec::new();
        let mut log_damaged = false;
        for finding in findings.iter().filter(|finding| finding.fault.is_bad()) {
            if !self.should_be_there(finding)? {
                continue;
            }
            if bad.len() < LOGGED_MAX {
                tracing::error!(
                    object = finding.object,
                    affects = finding.affects,
                    "the archive is damaged: {}",
                    finding.detail
                );
            }
            log_damaged |= self.mend(finding).await?;
            bad.push(finding);
        }
        let Some(first) = bad.first() else { return Ok(0) };
        if log_damaged {
            // What the log no longer tells, snapshots do.
            self.applier.apply(Input::SnapshotAll).await?;
        }
        let message = format!(
            "{} objects of the archive are damaged or missing, first {}: {}; what can be is put there again. `firekeep \
             verify` names all of them",
            bad.len(),
            first.object,
            first.detail
        );
        let kind = AlarmKind::ArchiveDamaged;
        self.applier.apply(Input::OwnAlarm { kind, message }).await?;
        Ok(bad.len() as u64)
    }

    /// Whether the mirror takes for archived what is not there. Many a host lacks blobs that its records refer to, and
    /// an account's first snapshot may be on its way.
    fn should_be_there(&self, finding: &Finding) -> Result<bool, StoreError> {
        if finding.fault == Fault::NoSnapshot {
            let did = finding.did.as_ref().and_then(|did| did.parse().ok());
            let row = match did {
                Some(did) => Mirror::new(&*self.store).account(&did)?,
                None => None,
            };
            return Ok(row.is_none_or(|row| row.snapshot.is_some()));
        }
        if finding.fault != Fault::MissingBlob {
            return Ok(true);
        }
        let Ok(ObjectName::Blob(name)) = finding.object.parse() else {
            return Ok(true);
        };
        let mirror = Mirror::new(&*self.store);
        let Some(row) = mirror.account(name.did.did())? else {
            return Ok(true);
        };
        let blob = mirror.blob(row.did_number, &name.blob)?;
        Ok(blob.is_some_and(|blob| blob.state == BlobState::Archived))
    }

    /// Puts again what is damaged or gone, if it is ours to put. Whether it is a part of the log.
    async fn mend(&self, finding: &Finding) -> Result<bool, ProofError> {
        match finding.object.parse() {
            Ok(ObjectName::Blob(name)) => {
                let (did, blob) = (name.did.did().clone(), Some(name.blob));
                self.applier.apply(Input::ArchiveLost { did, blob }).await?;
                Ok(false)
            }
            Ok(ObjectName::Snapshot(name)) => {
                let did = name.did.did().clone();
                let row = Mirror::new(&*self.store).account(&did)?;
                let newest = row.and_then(|row| row.snapshot).map(|mark| mark.rev);
                if newest == Some(name.rev) {
                    self.applier.apply(Input::ArchiveLost { did, blob: None }).await?;
                }
                Ok(false)
            }
            Ok(ObjectName::Segment(_)) => Ok(true),
            _ => Ok(false),
        }
    }

    // drills

    async fn drills(&self) -> Result<(), ProofError> {
        loop {
            self.due("drilled", self.drill_interval).await?;
            self.keeper().await;
            let options = Options {
                accounts: ACCOUNTS,
                seed: self.clock.random() >> 12,
            };
            match self.drill(options).await? {
                Ok(_) => {}
                Err(DrillError::Empty(_)) => sleep(LOOK).await,
                Err(error) => {
                    tracing::warn!("a trial restore could not be done: {error}; it is tried again");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Restores some accounts for a trial, and says what came of it.
    ///
    /// # Errors
    /// When the mirror fails.
    pub async fn drill(&self, options: Options) -> Result<Result<Report, DrillError>, ProofError> {
        let _one = self.drilling.lock().await;
        let Some(keeper) = self.keeper.get() else {
            let text = "the archive is not open".to_owned();
            return Ok(Err(DrillError::Empty(text)));
        };
        let place = (&self.clock, self.temp_dir.as_path());
        let bucket = keeper.bucket.clone();
        let report = match drill::drill(bucket, Some(&self.store), options, place, self.dev_mode).await {
            Ok(report) => report,
            Err(error) => return Ok(Err(error)),
        };
        let now = self.clock.now();
        self.mark("drilled", now)?;
        if report.is_good() {
            self.metrics.drills.of(Outcome::Ok).inc();
            self.metrics.verify_runs.of(ProofKind::Drill, Outcome::Ok).inc();
            self.metrics.last_drill.set(now.seconds_f64());
            self.mark("drill", now)?;
            tracing::info!(
                accounts = report.accounts.len(),
                "a trial restore from the archive alone went well"
            );
            return Ok(Ok(report));
        }
        self.metrics.drills.of(Outcome::Error).inc();
        self.metrics
            .verify_runs
            .of(ProofKind::Drill, Outcome::Error)
            .inc();
        let bad = report
            .accounts
            .iter()
            .filter(|account| !account.problems.is_empty())
            .count();
        self.metrics
            .verify_failures
            .of(ProofKind::Drill)
            .inc_by(bad as u64);
        self.metrics.last_failed_drill.set(now.seconds_f64());
        self.mark("drill_failed", now)?;
        let failed = report.accounts.iter().find_map(|account| {
            let problem = account.problems.first()?;
            Some(format!("{}: {problem}", account.did))
        });
        let message = format!(
            "a trial restore from the archive alone failed: {}; `firekeep drill --seed {}` shows all of it",
            failed.unwrap_or_default(),
            report.seed
        );
        tracing::error!("{message}");
        let kind = AlarmKind::DrillFailed;
        self.applier.apply(Input::OwnAlarm { kind, message }).await?;
        Ok(Ok(report))
    }
}

fn read_checkpoint(path: &Path) -> Option<Checkpoint> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > CHECKPOINT_BYTES_MAX {
        return None;
    }
    // One that does not decode is of another version: it begins anew.
    Checkpoint::decode(&std::fs::read(path).ok()?).ok()
}

/// Never half a file.
fn write_checkpoint(path: &Path, checkpoint: &Checkpoint) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&checkpoint.encode())?;
    file.persist(path)?;
    Ok(())
}
