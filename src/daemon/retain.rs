#![allow(clippy::disallowed_methods, reason = "shell: waits and reads the clock")]
//! Retention by the clock: every `prune_interval` what is no longer needed goes from the archive, and what was erased
//! is looked for once more.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::archive_link::ArchiveLink;
use super::archive_watch::ArchiveWatch;
use super::care::{Caretaker, Forget, OneAtATime};
use crate::archive::held::MirrorSide;
use crate::archive::keeper::Keeper;
use crate::archive::probe::old_versions;
use crate::archive::prune::{PruneError, Pruned};
use crate::archive::retention::Keep;
use crate::archive::shipper::Shipper;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::metrics::labels::Outcome;
use crate::mirror::Store;
use crate::mirror::handle::ApplierHandle;

/// The first run comes this long after the start, or sooner where the interval is shorter.
const FIRST: Duration = Duration::from_secs(600);
/// After a run that failed.
const RETRY: Duration = Duration::from_secs(3600);
/// Where nothing goes by itself: how often what was erased is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Between two looks whether the archive is open.
const LOOK: Duration = Duration::from_millis(200);

/// What retention needs.
pub struct Retain {
    /// The mirror.
    store: Arc<dyn Store>,
    /// The way to the applier.
    applier: ApplierHandle,
    /// There while the archive is open.
    keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// There while the archive is open.
    shipper: Arc<OnceLock<Arc<Shipper>>>,
    /// What the newest look at the archive found.
    archive: Arc<ArchiveWatch>,
    /// What stays.
    keep: Keep,
    /// How often it is applied.
    interval: Option<Duration>,
    /// The clock.
    clock: Clock,
    /// Counts.
    metrics: Arc<Metrics>,
    /// Where temporary files are made.
    temp_dir: PathBuf,
    /// One run at a time, and what it remembers.
    one: OneAtATime,
    /// Ends what is under way.
    pub cancel: CancellationToken,
}

impl Retain {
    /// For the archive of this link.
    #[must_use]
    pub fn new(link: &ArchiveLink, config: &Config) -> Self {
        Self {
            store: Arc::clone(&link.store),
            applier: link.applier.clone(),
            keeper: Arc::clone(&link.keeper),
            shipper: Arc::clone(&link.shipper),
            archive: Arc::clone(&link.watch),
            keep: config.keep,
            interval: config.prune_interval,
            clock: link.clock.clone(),
            metrics: Arc::clone(&link.metrics),
            temp_dir: link.temp_dir.clone(),
            one: OneAtATime::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// Prunes by the clock, until it is cancelled.
    pub async fn run(self: Arc<Self>) {
        let interval = self.interval.unwrap_or(LOOK_AGAIN);
        let mut wait = interval.min(FIRST);
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait + self.clock.jitter(wait / 10)) => {}
            }
            let Some(care) = self.caretaker() else {
                wait = LOOK.max(interval / 10).min(RETRY);
                continue;
            };
            let done = match self.interval {
                Some(_) => self.prune(&care).await.1.is_none(),
                None => self.look_again(&care).await.is_ok(),
            };
            wait = if done { interval } else { interval.min(RETRY) };
        }
    }

    /// While the archive is open and the mirror's own.
    fn caretaker(&self) -> Option<Caretaker> {
        let (keeper, shipper) = (self.keeper.get()?, self.shipper.get()?);
        self.archive.may_write().then(|| Caretaker {
            side: MirrorSide {
                store: Arc::clone(&self.store),
                applier: self.applier.clone(),
                bucket: keeper.bucket.clone(),
                gate: keeper.gate.clone(),
            },
            instance: shipper.instance.clone(),
            keep: self.keep,
            clock: self.clock.clone(),
            temp_dir: self.temp_dir.clone(),
            _last: None,
        })
    }

    /// Looks for what was erased, a day later.
    async fn look_again(&self, care: &Caretaker) -> Result<(), PruneError> {
        let (_, open) = care.look_again(self.cancel.clone()).await?;
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.metrics.erasures_open.set(open);
        Ok(())
    }

    async fn prune(&self, care: &Caretaker) -> (Pruned, Option<String>) {
        let mut memory = self.one.lock().await;
        let (pruned, mut error) = care.prune(&mut memory, self.cancel.clone()).await;
        let bytes: u64 = pruned.removed.values().map(|(_, bytes)| bytes).sum();
        self.metrics.pruned_objects.inc_by(pruned.objects());
        self.metrics.pruned_bytes.inc_by(bytes);
        if let Some(why) = &pruned.held_up {
            tracing::warn!("the archive's log is not removed any further: {why}");
        }
        for did in &pruned.unproven {
            tracing::error!(%did, "a snapshot of this account in the archive does not prove; run `firekeep verify`");
        }
        // What was erased is looked for again whatever became of that.
        if let Err(failed) = self.look_again(care).await {
            error = error.or(Some(failed));
        }
        match &error {
            None => {
                self.metrics.prunes.of(Outcome::Ok).inc();
                self.metrics.last_prune.set(self.clock.now().seconds_f64());
                tracing::info!(
                    removed = ?pruned.removed,
                    accounts = pruned.accounts,
                    moved = pruned.moved,
                    "retention was applied to the archive"
                );
            }
            Some(PruneError::Cancelled) => {}
            Some(error) => {
                self.metrics.prunes.of(Outcome::Error).inc();
                tracing::warn!(removed = ?pruned.removed, "retention was not applied in full: {error}; it is tried again");
            }
        }
        (pruned, error.map(|error| error.to_string()))
    }

    /// `firekeep prune`.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn prune_now(&self) -> Result<Value, String> {
        let care = self.caretaker().ok_or_else(closed)?;
        match self.prune(&care).await {
            (pruned, None) => Ok(json!({
                "archive": care.side.bucket.to_string(),
                "pruned": pruned,
                "old_versions": old_versions(&care.side.bucket).await,
            })),
            (pruned, Some(error)) => Err(format!(
                "{error}; {} objects were removed before",
                pruned.objects()
            )),
        }
    }

    /// `firekeep forget`.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn forget(&self, forget: Forget, by: String, dry_run: bool) -> Result<Value, String> {
        let care = self.caretaker().ok_or_else(closed)?;
        let (one, cancel) = (Arc::clone(&self.one), self.cancel.clone());
        // It goes on though nobody waits for the answer any more.
        let done = tokio::spawn(async move {
            let _one = one.lock().await;
            care.forget(&forget, &by, dry_run, cancel).await
        });
        done.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

fn closed() -> String {
    "the archive is not open, or is not the one that this mirror writes; `firekeep status` says which"
        .to_owned()
}
