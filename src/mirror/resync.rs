#![allow(clippy::disallowed_methods, reason = "shell: the network and the clock")]
//! Fetching a repository: compared first, received whole, proven whole, loaded under a number of its own.
//!
//! Runs outside the applier and holds nothing of an account while the network is slow. Whatever goes wrong,
//! the copy that the mirror has stays, and the result says when to try again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::blobs::did_value;
use super::input::{BlobMention, FetchFailure, Fetched, FetchedContent, Input};
use super::keyspace::{self, NO_NUMBER, Task};
use super::numbers::Numbers;
use super::reader::Mirror;
use super::rows::{AccountRow, DesyncReason, RecordValue, StoredIdentity, SyncState};
use super::spool::{IndexedCar, Spool};
use super::store::{Batch, Family, Store, StoreError};
use crate::clock::Clock;
use crate::http::client::Upstream;
use crate::http::request::{FetchError, Limits};
use crate::identity::document::Identity;
use crate::identity::plc_log::LoggedKey;
use crate::identity::resolver::{ResolveError, Resolver};
use crate::repo::commit::Commit;
use crate::repo::mst::BlockSource;
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::types::{AccountStatus, Cid, Did, DidMethod, HostName, Rev, Timestamp};
use crate::verify::{HeadKey, RejectReason, RepoFault, VerifiedRepo, check_repo};

use self::catch_up::FetchCounts;

pub mod catch_up;
mod load;
pub mod quarantine;

/// Largest repository that is fetched, in bytes.
pub const REPO_BYTES_MAX: u64 = 4 << 30;
/// First wait after a failed fetch; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LONGEST: Duration = Duration::from_secs(3600);
/// An account that its host does not serve is asked for again after this long, unless the host says sooner
/// that it is back.
const INACTIVE_RETRY: Duration = Duration::from_secs(6 * 3600);

/// Keys of before that a head is held against, at most.
const EARLIER_KEYS_MAX: usize = 16;

/// What fetching needs.
#[derive(Clone)]
pub struct Fetcher {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// Numbers for what is loaded.
    pub numbers: Arc<Numbers>,
    /// The way to hosts.
    pub upstream: Upstream,
    /// DID documents.
    pub resolver: Resolver,
    /// The clock.
    pub clock: Clock,
    /// Where large repositories are spooled.
    pub spool_dir: PathBuf,
    /// What it cost.
    pub counts: Arc<catch_up::FetchCounts>,
    /// Largest CAR that is kept as it came because it does not rebuild: [`quarantine::KEPT_CAR_BYTES_MAX`].
    pub kept_car_bytes_max: u64,
}

#[derive(Deserialize)]
struct LatestCommit {
    cid: String,
}

#[derive(Deserialize)]
struct RepoStatus {
    active: bool,
    status: Option<String>,
}

/// Why an attempt ended without a repository.
pub(super) struct Failed {
    pub(super) failure: FetchFailure,
    /// The host's own wish.
    wait: Option<Duration>,
    /// Nothing was asked: it is not the turn of this host.
    paced: bool,
}

impl Failed {
    const fn new(failure: FetchFailure) -> Self {
        Self {
            failure,
            wait: None,
            paced: false,
        }
    }

    const fn unproven(text: String) -> Self {
        Self::new(FetchFailure::Unproven(text))
    }
}

/// A received CAR held against a key.
enum Judged {
    /// It is proven and loaded, or all there and kept as it came.
    Proven(Box<FetchedContent>),
    /// The head is not signed by this key; nothing was loaded.
    OtherKey(RejectReason),
    /// It is not a complete repository, whatever the key.
    Failed(Failed),
}

impl Fetcher {
    /// Fetches an account that is wanted. `url` is the base URL of its host.
    ///
    /// # Errors
    /// When our own store fails.
    pub async fn fetch(&self, did: Did, task: Vec<u8>, url: &str) -> Result<Input, StoreError> {
        let asked_at = self.clock.now();
        let Some(row) = Mirror::new(&*self.store).account(&did)? else {
            return Ok(Input::TaskDone { task });
        };
        let (reason, tries) = match row.sync {
            SyncState::Wanted { reason, tries, .. } => (reason, tries),
            SyncState::Quarantined { tries, .. } => (DesyncReason::Quarantined, tries),
            SyncState::Diverged { .. } => (DesyncReason::HeadDiffers, 0),
            _ => return Ok(Input::TaskDone { task }),
        };
        if !row.upstream.is_active() {
            let retry_at = self.clock.now().plus(INACTIVE_RETRY);
            return Ok(Input::FetchFailed {
                did,
                host: row.host,
                failure: FetchFailure::Inactive(row.upstream),
                asked_at,
                task,
                retry_at,
            });
        }
        let erased = Mirror::new(&*self.store).erased(&did)?;
        let from_erased = erased.map_or(0, |erased| erased.count());
        match self.attempt(&did, &row, reason, url).await? {
            Ok((identity, content)) => Ok(Input::Fetched(Box::new(Fetched {
                did,
                from_number: row.account_number,
                from_erased,
                identity,
                content,
                task,
            }))),
            // No try of its own: it is moved to when it may be asked.
            Err(failed) if failed.paced => Ok(Input::TaskDelayed {
                key: task,
                task: Task::FetchRepo(did),
                retry_at: self.clock.later(failed.wait.unwrap_or_default()),
            }),
            Err(failed) => {
                let retry_at = self.retry_at(&failed, tries);
                Ok(Input::FetchFailed {
                    did,
                    host: row.host,
                    failure: failed.failure,
                    asked_at,
                    task,
                    retry_at,
                })
            }
        }
    }

    fn retry_at(&self, failed: &Failed, tries: u32) -> Timestamp {
        let backoff = match failed.failure {
            FetchFailure::Inactive(_) => INACTIVE_RETRY,
            _ => RETRY_FIRST.saturating_mul(1 << tries.min(12)).min(RETRY_LONGEST),
        };
        let wait = failed
            .wait
            .unwrap_or_default()
            .clamp(backoff, RETRY_LONGEST.max(backoff));
        self.clock.now().plus(wait).plus(self.clock.jitter(wait / 4))
    }

    async fn attempt(
        &self,
        did: &Did,
        row: &AccountRow,
        reason: DesyncReason,
        url: &str,
    ) -> Result<Result<(StoredIdentity, FetchedContent), Failed>, StoreError> {
        // What may have changed is read again; any other reason can live with what was read within a day. No
        // identity, but a head: the host said that it changed.
        let announced = row.identity.is_none() && row.head.is_some();
        let refresh = announced || matches!(reason, DesyncReason::BadSignature | DesyncReason::Moved);
        let identity = match self.resolver.resolve(did, refresh).await {
            // What the cache holds is less than a minute old.
            Err(ResolveError::TooSoon { .. }) => self.resolver.resolve(did, false).await,
            resolved => resolved,
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => return Ok(Err(Failed::new(FetchFailure::NoIdentity(error.to_string())))),
        };
        let stored = stored_identity(&identity);
        let Some(key) = identity.key.clone() else {
            let text = "its DID document has no usable signing key".to_owned();
            return Ok(Err(Failed::new(FetchFailure::NoIdentity(text))));
        };
        if !stored.speaks_at(&row.host) {
            return Ok(Err(Failed::new(FetchFailure::NotThisHost(stored))));
        }
        let known = [row.head.as_ref().map(|head| head.commit), row.kept_head()];
        if known != [None; 2] && reason != DesyncReason::CopyDamaged {
            match self.latest_commit(did, url).await {
                Ok(Some(commit)) if known.contains(&Some(commit)) => {
                    return Ok(Ok((stored, FetchedContent::Unchanged { commit })));
                }
                Ok(_) => {}
                Err(error) => return Ok(Err(failure_of(&error))),
            }
        }
        if let Some(head) = Self::base_of(row, reason) {
            match self.catch_up(did, row, head, &key, url).await? {
                Ok(Some(content)) => return Ok(Ok((stored, content))),
                Ok(None) => {}
                Err(failed) => return Ok(Err(failed)),
            }
        }
        let spool = match self.download(did, url, None).await {
            Ok(spool) => spool,
            Err(failed) => return Ok(Err(failed)),
        };
        FetchCounts::add(&self.counts.whole_bytes, spool.bytes());
        self.prove(spool, did, row, stored, key).await
    }

    /// Holds a received CAR against the account's current key. If nothing but the signature is at fault, the
    /// keys of before are tried: until its next write, the head of an account that moved is still signed by one.
    async fn prove(
        &self,
        spool: Spool,
        did: &Did,
        row: &AccountRow,
        mut identity: StoredIdentity,
        mut key: SigningKey,
    ) -> Result<Result<(StoredIdentity, FetchedContent), Failed>, StoreError> {
        let car = match blocking(move || spool.index()).await {
            Ok(car) => Arc::new(car),
            Err(error) => return Ok(Err(Failed::unproven(error.to_string()))),
        };
        let number = self.numbers.next()?;
        let ours = row.head.as_ref().map(|head| (head.rev, head.commit));
        let mut judged = self.judge(&car, number, did, &key, ours).await?;
        // What the resolver remembers may be the document of before.
        if let Judged::OtherKey(_) = judged
            && let Some(newer) = self.newer_key(did, &row.host, &key).await
        {
            (identity, key) = newer;
            judged = self.judge(&car, number, did, &key, ours).await?;
        }
        let reason = match judged {
            Judged::Proven(content) => return Ok(Ok((identity, *content))),
            Judged::Failed(failed) => return Ok(Err(failed)),
            Judged::OtherKey(reason) => reason,
        };
        let keys = match self.earlier_keys(did, &key).await {
            Ok(keys) => keys,
            Err(error) => {
                let text = format!("its head is not signed by its current key, and its key history: {error}");
                return Ok(Err(Failed::new(FetchFailure::NoIdentity(text))));
            }
        };
        let (this, did, now) = (self.clone(), did.clone(), self.clock.now());
        blocking(move || {
            for logged in &keys {
                match this.check_and_load(&car, number, &did, HeadKey::Earlier(logged), ours, now)? {
                    Judged::Proven(content) => return Ok(Ok((identity, *content))),
                    Judged::Failed(failed) => return Ok(Err(failed)),
                    Judged::OtherKey(_) => {}
                }
            }
            let fault = RepoFault::<StoreError>::Head(reason);
            Ok(Err(Failed::unproven(fault.to_string())))
        })
        .await
    }

    async fn judge(
        &self,
        car: &Arc<IndexedCar>,
        number: u64,
        did: &Did,
        key: &SigningKey,
        ours: Option<(Rev, Cid)>,
    ) -> Result<Judged, StoreError> {
        let (this, car, did, key) = (self.clone(), Arc::clone(car), did.clone(), key.clone());
        let now = self.clock.now();
        blocking(move || this.check_and_load(&car, number, &did, HeadKey::Current(&key), ours, now)).await
    }

    /// What the DID document names when it is read again, if that is another key and still this host.
    async fn newer_key(
        &self,
        did: &Did,
        host: &HostName,
        known: &SigningKey,
    ) -> Option<(StoredIdentity, SigningKey)> {
        let identity = self.resolver.resolve(did, true).await.ok()?;
        let key = identity.key.clone().filter(|key| key != known)?;
        let stored = stored_identity(&identity);
        stored.speaks_at(host).then_some((stored, key))
    }

    /// The keys that the account had before; none but for a `did:plc`.
    async fn earlier_keys(&self, did: &Did, current: &SigningKey) -> Result<Vec<LoggedKey>, ResolveError> {
        if did.method() != DidMethod::Plc {
            return Ok(Vec::new());
        }
        let log = self.resolver.audit_log(did).await?;
        Ok(log.earlier_keys(current, EARLIER_KEYS_MAX))
    }

    /// What the host says of an account: its standing (none if the host does not know it) and its head.
    ///
    /// # Errors
    /// When the host does not answer as it should.
    pub async fn standing(
        &self,
        did: &Did,
        url: &str,
    ) -> Result<(Option<AccountStatus>, Option<Cid>), FetchError> {
        let status_url = format!("{url}/xrpc/com.atproto.sync.getRepoStatus?did={}", did_value(did));
        let status: RepoStatus = match self.upstream.get_json(&status_url, 64 << 10).await {
            Ok(status) => status,
            Err(error) if error.xrpc_error() == Some("RepoNotFound") => return Ok((None, None)),
            Err(error) => return Err(error),
        };
        let status = AccountStatus::from_wire(status.active, status.status.as_deref());
        if !status.is_active() {
            return Ok((Some(status), None));
        }
        Ok((Some(status), self.latest_commit(did, url).await?))
    }

    async fn latest_commit(&self, did: &Did, url: &str) -> Result<Option<Cid>, FetchError> {
        let url = format!(
            "{url}/xrpc/com.atproto.sync.getLatestCommit?did={}",
            did_value(did)
        );
        let latest: LatestCommit = self.upstream.get_json(&url, 64 << 10).await?;
        Ok(latest.cid.parse().ok())
    }

    /// Receives a repository, or what of it is newer than a rev.
    pub(super) async fn download(&self, did: &Did, url: &str, since: Option<Rev>) -> Result<Spool, Failed> {
        let mut url = format!("{url}/xrpc/com.atproto.sync.getRepo?did={}", did_value(did));
        if let Some(since) = since {
            url.push_str(&format!("&since={since}"));
        }
        let answer = self.upstream.get(&url, &Limits::download(REPO_BYTES_MAX)).await;
        let mut body = answer.map_err(|error| failure_of(&error))?.body;
        let mut spool = Spool::new();
        loop {
            match body.chunk().await {
                Ok(Some(chunk)) => {
                    // Past 8 MiB this writes to a file; the runtime has other threads.
                    let written = tokio::task::block_in_place(|| spool.write(&chunk, &self.spool_dir));
                    if let Err(error) = written {
                        let text = format!("cannot spool to {}: {error}", self.spool_dir.display());
                        return Err(Failed::new(FetchFailure::Unproven(text)));
                    }
                }
                Ok(None) => return Ok(spool),
                Err(error) => return Err(failure_of(&error)),
            }
        }
    }
}

/// Runs what computes or waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// What the mirror keeps of a DID document.
#[must_use]
pub fn stored_identity(identity: &Identity) -> StoredIdentity {
    StoredIdentity {
        key: identity.key.as_ref().map(SigningKey::to_did_key),
        host: identity.host.as_ref().map(|endpoint| endpoint.host().to_string()),
        handle: identity.handle.clone(),
        read_at: identity.resolved_at,
    }
}

/// Tells what a host's answer means for the account.
fn failure_of(error: &FetchError) -> Failed {
    let failure = match error.xrpc_error() {
        Some("RepoNotFound") => FetchFailure::NotFound,
        Some("RepoDeactivated") => FetchFailure::Inactive(AccountStatus::Deactivated),
        Some("RepoTakendown") => FetchFailure::Inactive(AccountStatus::Takendown),
        Some("RepoSuspended") => FetchFailure::Inactive(AccountStatus::Suspended),
        _ => FetchFailure::Unreachable(error.to_string()),
    };
    Failed {
        failure,
        wait: error.wait(),
        paced: matches!(error, FetchError::Paced { .. }),
    }
}

#[cfg(test)]
mod tests;
