#![allow(clippy::disallowed_methods, reason = "shell: runs tasks and reads the clock")]
//! The dispatcher of persisted work.
//!
//! `tasks` rows say what is due when. This loop starts what is due, within a limit for each kind, and gives
//! every result to the applier, which removes or reschedules the row in the batch that applies the result. A
//! crash between the two repeats the work, and every piece of work can be repeated.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::archive_watch::ArchiveWatch;
use super::hosts::Hosts;
use crate::archive::keeper::Keeper;
use crate::clock::Clock;
use crate::http::request::FetchError;
use crate::identity::resolver::{ResolveError, Resolver};
use crate::metrics::Metrics;
use crate::metrics::labels::FetchResult;
use crate::mirror::blobs::{BlobFetcher, LIST_PAGES_MAX};
use crate::mirror::handle::ApplierHandle;
use crate::mirror::input::{BlobKey, Input};
use crate::mirror::keyspace::{self, Task, TaskKind};
use crate::mirror::listing::{Listed, list_host};
use crate::mirror::reader::Mirror;
use crate::mirror::resync::{Fetcher, stored_identity};
use crate::mirror::rows::{BlobFailure, Listing, SyncState};
use crate::mirror::store::{Family, Store, StoreError};
use crate::mirror::sweep;
use crate::types::{Did, HostName, Timestamp};

/// How many pieces of each kind of work run at once.
const LIMITS: [(TaskKind, usize); 10] = [
    (TaskKind::FetchRepo, 4),
    (TaskKind::FetchBlob, 6),
    (TaskKind::ResolveIdentity, 8),
    (TaskKind::ListRepos, 2),
    (TaskKind::AuditAccount, 2),
    (TaskKind::SweepBlobs, 4),
    (TaskKind::ArchiveBlob, 4),
    (TaskKind::Snapshot, 2),
    (TaskKind::ArchiveCar, 1),
    (TaskKind::ArchiveIdentity, 2),
];
/// The kinds that need the archive, and only what is here.
const ARCHIVING: [TaskKind; 3] = [TaskKind::ArchiveBlob, TaskKind::Snapshot, TaskKind::ArchiveCar];
/// Due tasks that one look passes over at most, so that a long queue of one kind cannot hide the others for good.
const SCAN_MAX: usize = 20_000;
/// Due tasks of kinds that may not run now, such as archiving while the archive is away, that one look passes over.
const PASS_MAX: usize = 50 * SCAN_MAX;
/// Between two looks at least this long passes, so that many small results share one look.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Without any sign, the rows are looked at again after this long.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// After an identity could not be resolved.
const IDENTITY_RETRY: Duration = Duration::from_secs(10);
/// After a host did not list its blobs.
const AUDIT_RETRY: Duration = Duration::from_secs(300);
/// Work of a host that is not followed (any more) is looked at again after this long.
const UNFOLLOWED_RETRY: Duration = Duration::from_secs(3600);

/// What the work needs.
pub struct Workshop {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// Fetches repositories.
    pub fetcher: Fetcher,
    /// Fetches blobs.
    pub blobs: BlobFetcher,
    /// Reads DID documents.
    pub resolver: Resolver,
    /// Writes the archive; empty while it cannot be reached.
    pub keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// What the newest look at the archive found.
    pub archive: Arc<ArchiveWatch>,
    /// Within this time a host is asked again for every blob.
    pub sweep_interval: Duration,
    /// While so many bytes of blobs wait for the archive, no more are fetched.
    pub held_bytes_max: u64,
    /// Base URLs of the followed hosts.
    pub urls: Arc<Hosts>,
    /// The clock.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Why the dispatcher ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The mirror failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] crate::mirror::handle::Stopped),
}

/// Runs due work until it is cancelled; then starts only what `drain` allows, until that is cancelled too.
///
/// # Errors
/// When the mirror fails or the applier is gone.
pub async fn run(
    shop: Arc<Workshop>,
    stop: CancellationToken,
    drained: CancellationToken,
) -> Result<(), WorkError> {
    let mut running: JoinSet<(Task, Result<(), WorkError>)> = JoinSet::new();
    let mut busy: HashSet<Task> = HashSet::new();
    loop {
        let draining = stop.is_cancelled();
        for (key, task) in due(&shop, &busy, draining)? {
            busy.insert(task.clone());
            let shop = Arc::clone(&shop);
            running.spawn(async move {
                let result = shop.perform(key, task.clone()).await;
                (task, result)
            });
        }
        tokio::select! {
            biased;
            () = drained.cancelled() => return Ok(()),
            Some(done) = running.join_next() => {
                let (task, result) = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                busy.remove(&task);
                result?;
            }
            () = shop.applier.tasks_added() => {}
            () = stop.cancelled(), if !draining => {}
            () = sleep(IDLE_INTERVAL) => {}
        }
        while let Some(done) = running.try_join_next() {
            let (task, result) = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            busy.remove(&task);
            result?;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// What is due, not running, and within the limits.
fn due(shop: &Workshop, busy: &HashSet<Task>, draining: bool) -> Result<Vec<(Vec<u8>, Task)>, StoreError> {
    let mut free: BTreeMap<TaskKind, usize> = LIMITS.into_iter().collect();
    if draining {
        // What is open is shipped; nothing new is fetched.
        free.retain(|kind, _| ARCHIVING.contains(kind));
    }
    if shop.keeper.get().is_none() || !shop.archive.may_write() {
        free.retain(|kind, _| !ARCHIVING.contains(kind) && *kind != TaskKind::ArchiveIdentity);
    }
    if shop.applier.totals().held_bytes >= shop.held_bytes_max {
        free.remove(&TaskKind::FetchBlob);
    }
    for task in busy {
        if let Some(free) = free.get_mut(&task.kind()) {
            *free = free.saturating_sub(1);
        }
    }
    free.retain(|_, free| *free > 0);
    let mut chosen: Vec<(Vec<u8>, Task)> = Vec::new();
    let (mut seen, mut passed) = (0, 0);
    let mut bad = None;
    let range = keyspace::due_range(shop.clock.now().millis());
    shop.store.scan(Family::Tasks, &range, &mut |key, _| {
        seen += 1;
        if free.is_empty() || seen > SCAN_MAX || passed > PASS_MAX {
            return ControlFlow::Break(());
        }
        let task = match keyspace::decode_task(key) {
            Ok((_, task)) => task,
            Err(error) => {
                bad = Some(StoreError::bad_row(Family::Tasks, key, error));
                return ControlFlow::Break(());
            }
        };
        let Some(slots) = free.get_mut(&task.kind()) else {
            // What may not run now does not stand in the way of what may.
            (seen, passed) = (seen - 1, passed + 1);
            return ControlFlow::Continue(());
        };
        if busy.contains(&task) || chosen.iter().any(|(_, other)| *other == task) {
            return ControlFlow::Continue(());
        }
        *slots -= 1;
        if *slots == 0 {
            free.remove(&task.kind());
        }
        chosen.push((key.to_vec(), task));
        ControlFlow::Continue(())
    })?;
    bad.map_or(Ok(chosen), Err)
}

impl Workshop {
    /// Does a piece of work and has the applier take its result. The task's row is gone, or moved to a later
    /// time, when this returns.
    async fn perform(&self, key: Vec<u8>, task: Task) -> Result<(), WorkError> {
        let input = match task {
            Task::FetchRepo(did) => match self.url_of(&did)? {
                Some(url) => self.fetcher.fetch(did, key, &url).await?,
                None => self.unfollowed(key, Task::FetchRepo(did)),
            },
            Task::FetchBlob(did, digest) => match (self.host_of(&did)?, self.blob_key(&did, digest)?) {
                (_, None) => Input::TaskDone { task: key },
                (None, _) => self.unfollowed(key, Task::FetchBlob(did, digest)),
                (Some((host, url)), Some(blob)) => {
                    let fetched = self.blobs.fetch(&host, blob, key, &url).await?;
                    self.count_blob(&did, &fetched)?;
                    fetched
                }
            },
            Task::ResolveIdentity(did) => self.resolve(did, key).await,
            Task::ListRepos(host) => return self.list(host, key).await,
            Task::AuditAccount(did) => return self.audit(did, key).await,
            Task::SweepBlobs(host) => self.sweep(host, key).await?,
            Task::ArchiveBlob(did, digest) => match (self.keeper.get(), self.blob_key(&did, digest)?) {
                (Some(keeper), Some(blob)) => keeper.blob(blob, key).await?,
                _ => Input::TaskDone { task: key },
            },
            Task::Snapshot(did) => match self.keeper.get() {
                Some(keeper) => keeper.snapshot(did, key).await?,
                None => return Ok(()),
            },
            Task::ArchiveIdentity(did) => match self.keeper.get() {
                Some(keeper) => self.archive_identity(keeper, did, key).await?,
                None => return Ok(()),
            },
            Task::ArchiveCar(did) => match self.keeper.get() {
                Some(keeper) => keeper.quarantined(did, key).await?,
                None => return Ok(()),
            },
            // The applier drops generations in the batch that replaces them.
            Task::DropGeneration(_) => Input::TaskDone { task: key },
        };
        Ok(self.applier.apply(input).await?)
    }

    /// The base URL of the account's host, if that is followed and still the account's.
    fn url_of(&self, did: &Did) -> Result<Option<String>, StoreError> {
        Ok(self.host_of(did)?.map(|(_, url)| url))
    }

    fn host_of(&self, did: &Did) -> Result<Option<(HostName, String)>, StoreError> {
        let row = Mirror::new(&*self.store).account(did)?;
        let row = row.filter(|row| !matches!(row.sync, SyncState::Moved { .. }));
        Ok(row.and_then(|row| self.urls.get(&row.host).map(|url| (row.host, url))))
    }

    fn blob_key(&self, did: &Did, digest: crate::types::Digest) -> Result<Option<BlobKey>, StoreError> {
        let row = Mirror::new(&*self.store).account(did)?;
        Ok(row.map(|row| BlobKey {
            did: did.clone(),
            did_number: row.did_number,
            digest,
        }))
    }

    fn count_blob(&self, did: &Did, fetched: &Input) -> Result<(), StoreError> {
        let result = match fetched {
            Input::BlobStored { .. } => FetchResult::Ok,
            Input::BlobFailed { failure, .. } => match failure {
                BlobFailure::NotFound => FetchResult::NotFound,
                BlobFailure::WrongBytes => FetchResult::Mismatch,
                BlobFailure::TooLarge => FetchResult::TooLarge,
                BlobFailure::Refused | BlobFailure::Unreachable | BlobFailure::HostError => {
                    FetchResult::Failed
                }
            },
            _ => return Ok(()),
        };
        if let Some(row) = Mirror::new(&*self.store).account(did)? {
            self.metrics.host(&row.host).blob_fetches.of(result).inc();
        }
        Ok(())
    }

    fn unfollowed(&self, key: Vec<u8>, task: Task) -> Input {
        Input::TaskDelayed {
            key,
            task,
            retry_at: self.clock.now().plus(UNFOLLOWED_RETRY),
        }
    }

    /// Asks a host again for some of the blobs that we hold of it.
    async fn sweep(&self, host: HostName, key: Vec<u8>) -> Result<Input, WorkError> {
        let row = Mirror::new(&*self.store).host(&host)?;
        let Some(mark) = row.and_then(|row| row.sweep) else {
            return Ok(Input::TaskDone { task: key });
        };
        let Some(url) = self.urls.get(&host) else {
            return Ok(self.unfollowed(key, Task::SweepBlobs(host)));
        };
        let (store, name) = (Arc::clone(&self.store), host.clone());
        let (now, interval) = (self.clock.now(), self.sweep_interval);
        let batch = tokio::task::spawn_blocking(move || {
            sweep::Batch::next(&Mirror::new(&*store), &name, mark, now, interval)
        });
        let mut batch = batch
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        while let Some(blob) = batch.ask() {
            let answer = self.blobs.ask(blob, &url).await;
            batch.take(answer);
        }
        let (verdicts, mark) = batch.finish(self.clock.now());
        Ok(Input::BlobsSwept {
            host,
            verdicts,
            mark,
            task: key,
        })
    }

    /// Reads what the directory says of an account, and archives it.
    async fn archive_identity(
        &self,
        keeper: &Arc<Keeper>,
        did: Did,
        key: Vec<u8>,
    ) -> Result<Input, WorkError> {
        match self.resolver.testimony(&did).await {
            Ok(said) => Ok(keeper.identity(did, said, key).await?),
            Err(error) => {
                tracing::debug!(%did, %error, "cannot read the account's identity for the archive");
                let wait = if error.is_transient() {
                    IDENTITY_RETRY
                } else {
                    UNFOLLOWED_RETRY
                };
                let retry_at = self.clock.now().plus(wait).plus(self.clock.jitter(wait));
                let task = Task::ArchiveIdentity(did);
                Ok(Input::TaskDelayed { key, task, retry_at })
            }
        }
    }

    async fn resolve(&self, did: Did, task: Vec<u8>) -> Input {
        let retry_at = self
            .clock
            .now()
            .plus(IDENTITY_RETRY)
            .plus(self.clock.jitter(IDENTITY_RETRY));
        let resolved = match self.resolver.resolve(&did, true).await {
            Ok(identity) => Some(stored_identity(&identity)),
            // It was read less than a minute ago: that is fresh enough to judge by.
            Err(ResolveError::TooSoon { .. }) => {
                self.resolver.get(&did).map(|identity| stored_identity(&identity))
            }
            Err(error) => {
                tracing::debug!(%did, %error, "cannot resolve the account's identity");
                None
            }
        };
        Input::Identity {
            did,
            resolved,
            task,
            retry_at,
        }
    }

    async fn list(&self, host: HostName, key: Vec<u8>) -> Result<(), WorkError> {
        let row = Mirror::new(&*self.store).host(&host)?;
        let (Some(url), Some(row)) = (self.urls.get(&host), row) else {
            return Ok(self.applier.apply(Input::TaskDone { task: key }).await?);
        };
        // A finished one begins anew: from time to time everything is compared.
        let cursor = match row.listing {
            Listing::Unfinished { cursor } => cursor,
            Listing::Finished { .. } => None,
        };
        let upstream = &self.fetcher.upstream;
        match list_host(upstream, &self.clock, &self.applier, &host, &url, cursor, key).await? {
            Listed::Finished => tracing::info!(%host, "every account of this host is listed"),
            Listed::Failed(error) => {
                tracing::warn!(%host, %error, "cannot list the host's accounts; trying again")
            }
        }
        Ok(())
    }

    async fn audit(&self, did: Did, key: Vec<u8>) -> Result<(), WorkError> {
        let Some((host, url)) = self.host_of(&did)? else {
            return Ok(self
                .applier
                .apply(self.unfollowed(key, Task::AuditAccount(did)))
                .await?);
        };
        let asked_at = self.clock.now();
        let audited = match self.fetcher.standing(&did, &url).await {
            Ok((status, head)) => Input::Audited {
                did: did.clone(),
                host,
                status,
                head,
                asked_at,
                task: key.clone(),
            },
            Err(error) => {
                let retry_at = self
                    .clock
                    .now()
                    .plus(error.wait().unwrap_or(AUDIT_RETRY).max(AUDIT_RETRY));
                let delayed = Input::TaskDelayed {
                    key,
                    task: Task::AuditAccount(did),
                    retry_at,
                };
                return Ok(self.applier.apply(delayed).await?);
            }
        };
        let shown = matches!(&audited, Input::Audited { status: Some(status), .. } if status.is_active());
        if !shown {
            return Ok(self.applier.apply(audited).await?);
        }
        let listed = self.audit_pages(&did, &url, asked_at).await?;
        let last = match listed {
            Ok(()) => audited,
            Err(error) if error.is_transient() => Input::TaskDelayed {
                key,
                task: Task::AuditAccount(did),
                retry_at: self
                    .clock
                    .now()
                    .plus(error.wait().unwrap_or(AUDIT_RETRY).max(AUDIT_RETRY)),
            },
            // The host refuses (a deactivated account, say); a later fetch audits again.
            Err(error) => {
                tracing::debug!(%did, %error, "the host does not list this account's blobs");
                audited
            }
        };
        Ok(self.applier.apply(last).await?)
    }

    async fn audit_pages(
        &self,
        did: &Did,
        url: &str,
        asked_at: Timestamp,
    ) -> Result<Result<(), FetchError>, WorkError> {
        let mut cursor: Option<String> = None;
        for _ in 0..LIST_PAGES_MAX {
            let (digests, next) = match self.blobs.list_page(did, url, cursor.as_deref()).await {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            self.applier
                .apply(Input::BlobsListed {
                    did: did.clone(),
                    digests,
                    complete: next.is_none().then_some(asked_at),
                })
                .await?;
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(Ok(()))
    }
}
