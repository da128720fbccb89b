#![allow(clippy::disallowed_methods, reason = "shell: opens the archive")]
//! The link between a mirror and its archive.
//!
//! A mirror remembers the id of the archive that its "archived" marks belong to. An archive that cannot be
//! reached stops nothing but archiving, and is tried again. Another archive, or one that was emptied, is a
//! question for a person: an unmounted disk looks just like it. That it is still the mirror's is looked at from
//! time to time: a daemon that has nothing to archive would not notice.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::archive_watch::{AWAY, ArchiveWatch, GOOD, NOT_SEEN, REFUSED};
use super::cold_start::{self, FillError};
use super::{DaemonError, exit};
use crate::archive::bucket::{Bucket, BucketErrorKind};
use crate::archive::identity::{self, ArchiveId, ArchiveInfo, IdentityError};
use crate::archive::keeper::Keeper;
use crate::archive::settings::{ArchiveConfig, ArchiveUrl};
use crate::archive::shipper::Shipper;
use crate::archive::writer::{self, ClaimError, How};
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::resolver::Resolver;
use crate::metrics::Metrics;
use crate::mirror::handle::{ApplierHandle, Stopped};
use crate::mirror::input::Input;
use crate::mirror::keyspace::{META_ARCHIVE_ID, META_INSTANCE};
use crate::mirror::numbers::Numbers;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::LogRow;
use crate::mirror::store::{Batch, Family, Store, StoreError};
use crate::serve::Health;
use crate::serve::blob::{BlobArchive, OpenBlob};
use crate::types::{Cid, Did};

/// Between two tries to reach the archive.
const RETRY: Duration = Duration::from_secs(10);
/// Between two looks at an archive that was not as it should be, at most.
const RECHECK: Duration = Duration::from_secs(60);
/// A look takes no longer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// What the health endpoints say while the archive must not be used.
const GONE: &str = "the archive is gone, refuses, or is another one";

/// An archive that was opened, and whose id is known to be the mirror's, or is to become it.
pub struct Opened {
    pub(super) bucket: Bucket,
    pub(super) id: ArchiveId,
}

/// What linking needs.
pub struct ArchiveLink {
    /// The configuration in force.
    pub config: Config,
    /// Numbers for what is loaded.
    pub numbers: Arc<Numbers>,
    /// DID documents.
    pub resolver: Resolver,
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// Filled when the archive is open.
    pub keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// Filled when the archive is open.
    pub bucket: Arc<OnceLock<Bucket>>,
    /// Filled when the archive is open.
    pub shipper: Arc<OnceLock<Arc<Shipper>>>,
    /// The clock.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Where objects are made.
    pub temp_dir: PathBuf,
    /// Whether a person said that this archive may be another one.
    pub new_archive: bool,
    /// Whether a person said that this mirror becomes the writer in another one's place.
    pub take_over: bool,
    /// What was seen last.
    pub watch: Arc<ArchiveWatch>,
    /// What the health endpoints say.
    pub health: Arc<Health>,
}

/// Why an archive is not linked.
enum Unlinked {
    /// It cannot be reached: later perhaps.
    Unreachable(String),
    /// It must not be used.
    Refused(String),
}

/// Opens the archive at start; inside, why it cannot be reached.
///
/// # Errors
/// When it must not be used: exit code 78.
pub async fn open_archive(
    config: &Config,
    store: &dyn Store,
    new_archive: bool,
    clock: &Clock,
) -> Result<Result<Opened, String>, DaemonError> {
    match try_open(&config.archive, store, new_archive, clock).await {
        Ok(opened) => Ok(Ok(opened)),
        Err(Unlinked::Refused(text)) => Err(DaemonError::config(text)),
        Err(Unlinked::Unreachable(text)) => Ok(Err(text)),
    }
}

/// Looks at the archive of a mirror that is not there yet: a mistake should not leave a mirror behind.
///
/// # Errors
/// When it must not be used: exit code 78; when another mirror writes there: 11.
pub async fn check_archive(config: &Config, take_over: bool) -> Result<(), DaemonError> {
    if let ArchiveUrl::Folder(path) = &config.archive.url
        && path.starts_with(&config.data_dir)
        && !path.exists()
    {
        // It is not there yet either.
        return Ok(());
    }
    let bucket = Bucket::open(&config.archive).await;
    let checked = match &bucket {
        Ok(bucket) => identity::check(bucket).await,
        Err(error) => Err(error.clone().into()),
    };
    match (checked.map_err(|error| judge(&config.archive, &error)), bucket) {
        (Ok(()), Ok(bucket)) if !take_over => match writer::must_be_free(&bucket).await {
            Err(error @ (ClaimError::Taken { .. } | ClaimError::Damaged { .. })) => {
                Err(NotAdopted::from(error).into())
            }
            _ => Ok(()),
        },
        // One that cannot be reached is told when it is opened.
        (Ok(()) | Err(Unlinked::Unreachable(_)), _) => Ok(()),
        (Err(Unlinked::Refused(text)), _) => Err(DaemonError::config(text)),
    }
}

fn judge(config: &ArchiveConfig, error: &IdentityError) -> Unlinked {
    match error {
        IdentityError::Bucket(bucket)
            if bucket.is_transient()
                || matches!(bucket.kind, BucketErrorKind::Full | BucketErrorKind::ClockSkew) =>
        {
            Unlinked::Unreachable(error.to_string())
        }
        _ => Unlinked::Refused(format!("archive = \"{}\": {error}", config.url)),
    }
}

async fn try_open(
    config: &ArchiveConfig,
    store: &dyn Store,
    new_archive: bool,
    clock: &Clock,
) -> Result<Opened, Unlinked> {
    let judge = |error: IdentityError| judge(config, &error);
    let bucket = Bucket::open(config).await.map_err(|error| judge(error.into()))?;
    let known = store
        .get(Family::Meta, META_ARCHIVE_ID)
        .map_err(|e| Unlinked::Refused(e.to_string()))?;
    let known = known.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let found = identity::read(&bucket)
        .await
        .map_err(judge)?
        .map(|info| info.id.to_string());
    if let Some(known) = &known
        && found.as_ref() != Some(known)
        && !new_archive
    {
        let what = match found {
            None => "holds no archive".to_owned(),
            Some(found) => format!("holds archive {found}"),
        };
        return Err(Unlinked::Refused(format!(
            "archive = \"{}\": it {what}, but this mirror was archived to archive {known}; if a disk is not mounted \
             or the bucket is wrong, mend that; to archive everything again, here, start once with --new-archive",
            config.url
        )));
    }
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&clock.random().to_be_bytes());
    seed[8..].copy_from_slice(&clock.random().to_be_bytes());
    let id = identity::open_or_create(&bucket, ArchiveId::from_bytes(seed), clock.now())
        .await
        .map_err(judge)?;
    Ok(Opened { bucket, id })
}

/// Why an opened archive is not linked.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    /// It must not be written, or the bucket failed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The mirror failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// What the archive has more of could not be given back to the mirror.
    #[error(transparent)]
    NotHealed(#[from] FillError),
}

impl NotAdopted {
    /// Whether trying again is no use: another mirror writes there, or ours fails.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Claim(ClaimError::Bucket(_) | ClaimError::Damaged { .. })
                | Self::NotHealed(FillError::Read(_))
        )
    }

    /// Whether it may go well later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Claim(ClaimError::Bucket(error)) if error.is_transient())
    }
}

impl From<NotAdopted> for DaemonError {
    fn from(error: NotAdopted) -> Self {
        let code = match &error {
            NotAdopted::Claim(ClaimError::Taken { .. }) => exit::OWNED,
            NotAdopted::Claim(_) => exit::CONFIG,
            NotAdopted::Store(_) | NotAdopted::Stopped(_) | NotAdopted::NotHealed(_) => exit::FAILED,
        };
        Self {
            code,
            text: error.to_string(),
        }
    }
}

/// What tells this mirror from others: made up once, and kept in it.
pub(super) fn instance(store: &dyn Store, clock: &Clock) -> Result<String, StoreError> {
    if let Some(known) = store.get(Family::Meta, META_INSTANCE)? {
        return Ok(String::from_utf8_lossy(&known).into_owned());
    }
    let fresh = format!("{:016x}{:016x}", clock.random(), clock.random());
    let mut batch = Batch::new();
    batch.put(Family::Meta, META_INSTANCE, fresh.as_bytes());
    store.write_durable(batch)?.into_inner();
    Ok(fresh)
}

impl ArchiveLink {
    /// Links an opened archive: from here on there is a keeper, and the log is shipped.
    ///
    /// # Errors
    /// When another mirror writes there, the bucket fails, or the applier is gone.
    pub async fn adopt(&self, opened: Opened) -> Result<(), NotAdopted> {
        let instance = instance(&*self.store, &self.clock)?;
        let known = self.store.get(Family::Meta, META_ARCHIVE_ID)?;
        let log = match known.as_deref() == Some(opened.id.to_string().as_bytes()) {
            true => Some(Mirror::new(&*self.store).log()?),
            false => None,
        };
        let bucket = &opened.bucket;
        let claimed =
            writer::claim(bucket, &instance, log.as_ref(), self.take_over, self.clock.now()).await?;
        if !writer::honours_create_only(bucket, claimed.log.generation).await? {
            tracing::warn!(
                "this store does not keep a second Firekeep out of the archive: one is only noticed afterwards, so \
                 start no other on it"
            );
        }
        self.applier
            .apply(Input::ArchiveLinked {
                id: opened.id.to_string(),
            })
            .await?;
        super::care::obey(bucket, &self.store, &self.applier).await?;
        match claimed.how {
            How::GoesOn => {}
            How::First => tracing::info!("this mirror writes the archive from now on"),
            How::TookOver => tracing::warn!(
                generation = claimed.log.generation,
                "this mirror has taken the archive over; the one that wrote it stops by itself"
            ),
            How::FellBack => tracing::error!(
                generation = claimed.log.generation,
                "the archive has more of this mirror's log than the mirror: the data folder is an older copy of \
                 itself, or runs elsewhere too. What the archive has stays, and is given back to the mirror"
            ),
        }
        match (&log, claimed.how) {
            (_, How::GoesOn) => {}
            // The claim is noted when the mirror has what the archive has: what is cut short begins again.
            (Some(before), How::FellBack | How::TookOver) => self.heal(&opened, before, claimed.log).await?,
            _ => self.applier.apply(Input::LogClaimed(claimed.log)).await?,
        }
        match opened.bucket.clean_up(Some(self.clock.now())).await {
            Ok(Some(0) | None) => {}
            Ok(Some(count)) => tracing::info!(count, "removed unfinished uploads from the archive"),
            Err(error) => tracing::warn!(%error, "cannot look for unfinished uploads"),
        }
        let keeper = Keeper::new(
            Arc::clone(&self.store),
            opened.bucket.clone(),
            self.clock.clone(),
            self.temp_dir.clone(),
            Arc::clone(&self.metrics),
        );
        let shipper = Shipper {
            store: Arc::clone(&self.store),
            applier: self.applier.clone(),
            bucket: opened.bucket.clone(),
            instance,
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            flush_interval: self.config.flush_interval,
            failures: AtomicU32::new(0),
            gate: keeper.gate.clone(),
            paused: AtomicBool::new(false),
            last: Mutex::new(None),
        };
        self.show(Ok(()));
        // All are set once: an archive is linked once.
        let _first = self.bucket.set(opened.bucket).is_ok()
            && self.keeper.set(Arc::new(keeper)).is_ok()
            && self.shipper.set(Arc::new(shipper)).is_ok();
        tracing::info!(archive = %self.config.archive.url, id = %opened.id, "archive open");
        Ok(())
    }

    /// Gives the mirror what its archive has more of.
    async fn heal(&self, opened: &Opened, before: &LogRow, log: LogRow) -> Result<(), NotAdopted> {
        let mirror = (&self.config, &self.store, &self.numbers);
        let around = (&self.resolver, &self.clock, self.temp_dir.as_path());
        let filled = cold_start::heal(&self.applier, opened, mirror, around, (before, log)).await?;
        if filled.accounts > 0 || !filled.lacking.is_empty() {
            filled.tell();
        }
        Ok(())
    }

    /// Links what was opened at start, if it was. An archive that fails for a moment does not keep the daemon from
    /// following: it is linked later.
    ///
    /// # Errors
    /// When another mirror writes there, or the applier is gone.
    pub async fn adopt_at_start(&self, opened: Result<Opened, String>) -> Result<(), NotAdopted> {
        let away = match opened {
            Err(why) => why,
            Ok(opened) => match self.adopt(opened).await {
                Err(error) if error.is_transient() => error.to_string(),
                adopted => return adopted,
            },
        };
        self.show(Err(Unlinked::Unreachable(away)));
        Ok(())
    }

    /// Tries to reach the archive until it is linked; from then on looks whether it is still there, until `cancel`.
    ///
    /// # Errors
    /// When another mirror writes there: exit code 11.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), DaemonError> {
        let mut wait = if self.keeper.get().is_some() {
            self.config.archive_check_interval
        } else {
            RETRY
        };
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            if self.keeper.get().is_some() {
                let found = self.look().await;
                self.show(found);
                wait = if self.watch.is_good() {
                    self.config.archive_check_interval
                } else {
                    self.config.archive_check_interval.min(RECHECK)
                };
                continue;
            }
            match try_open(&self.config.archive, &*self.store, self.new_archive, &self.clock).await {
                Ok(opened) => match self.adopt(opened).await {
                    Ok(()) => wait = self.config.archive_check_interval,
                    Err(error) if error.is_final() => return Err(error.into()),
                    Err(error) => self.show(Err(Unlinked::Unreachable(error.to_string()))),
                },
                Err(unlinked) => self.show(Err(unlinked)),
            }
        }
    }

    /// Whether what stands there now is the mirror's archive.
    async fn look(&self) -> Result<(), Unlinked> {
        let refused = |what: String| {
            Unlinked::Refused(format!(
                "archive = \"{}\": it {what}; nothing is archived until it is back",
                self.config.archive.url
            ))
        };
        let known = self
            .store
            .get(Family::Meta, META_ARCHIVE_ID)
            .map_err(|error| Unlinked::Unreachable(error.to_string()))?;
        let known = known.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let found = match tokio::time::timeout(LOOK_TIMEOUT, self.read_identity()).await {
            Ok(found) => found.map_err(|error| judge(&self.config.archive, &error))?,
            Err(_) => return Err(Unlinked::Unreachable("it does not answer in time".to_owned())),
        };
        match found.map(|info| info.id.to_string()) {
            None => Err(refused("holds no archive any more".to_owned())),
            found if found == known => Ok(()),
            Some(found) => Err(refused(format!("holds another archive now, {found}"))),
        }
    }

    /// A folder is opened anew, by its name: what was mounted there may be gone.
    async fn read_identity(&self) -> Result<Option<ArchiveInfo>, IdentityError> {
        if let (ArchiveUrl::S3 { .. }, Some(bucket)) = (&self.config.archive.url, self.bucket.get()) {
            return identity::read(bucket).await;
        }
        match Bucket::open_existing(&self.config.archive).await? {
            Some(bucket) => identity::read(&bucket).await,
            None => Ok(None),
        }
    }

    fn show(&self, found: Result<(), Unlinked>) {
        let (seen, trouble) = match found {
            Ok(()) => (GOOD, None),
            Err(Unlinked::Unreachable(text)) => (AWAY, Some(text)),
            Err(Unlinked::Refused(text)) => (REFUSED, Some(text)),
        };
        let (before, changed) = self.watch.see(seen, trouble.clone());
        self.metrics.archive_up.set(i64::from(seen == GOOD));
        let text = trouble.unwrap_or_default();
        match seen {
            AWAY if before != seen => {
                tracing::warn!(
                    "the archive cannot be reached ({text}); following goes on, and it is tried again"
                );
            }
            REFUSED if changed => tracing::error!("{text}"),
            GOOD if !matches!(before, GOOD | NOT_SEEN) => tracing::info!("the archive is there again"),
            _ => {}
        }
        if let Some(shipper) = self.shipper.get() {
            shipper.paused.store(!self.watch.may_write(), Ordering::Relaxed);
        }
        match seen {
            REFUSED => self.health.failed(GONE),
            GOOD => self.health.recovered(),
            // Nothing says that it is another one; what was refused before stays refused.
            _ => {}
        }
    }
}

/// The archive's blobs, from the moment it is linked.
pub struct LateBucket(pub Arc<OnceLock<Bucket>>);

impl BlobArchive for LateBucket {
    fn open<'a>(&'a self, did: &'a Did, cid: &'a Cid) -> OpenBlob<'a> {
        match self.0.get() {
            Some(bucket) => bucket.open(did, cid),
            None => Box::pin(std::future::ready(Err(std::io::Error::other(
                "the archive is not open",
            )))),
        }
    }
}
