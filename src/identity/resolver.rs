#![allow(clippy::disallowed_methods, reason = "shell: waits for the network")]
//! Fetching DID documents and audit logs, and remembering them.
//!
//! [`Resolver::get`] only looks into the cache and never waits; [`Resolver::resolve`] fetches. One DID is
//! fetched once at a time, however many ask. A document is fresh for a day; after that it still answers, for
//! a directory that is down must not stop a backup, while [`Resolver::run`] fetches it again. Failures are
//! remembered too, briefly. A `refresh` passes the cache by, at most once a minute per DID, so that a forger
//! of signatures cannot make us hammer the directory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::http::client::Upstream;
use crate::http::request::{FetchError, Limits};
use crate::types::{Did, DidMethod, Timestamp};

use super::document::{DOCUMENT_BYTES_MAX, DocumentError, Identity, UnresolvableDid, document_url};
use super::plc_log::{LOG_BYTES_MAX, PlcLog, PlcLogError};

pub use testimony::Testimony;

/// How a [`Resolver`] behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverConfig {
    /// The PLC directory, without a slash at the end.
    pub plc_url: String,
    /// Looks up `localhost`, and takes endpoints without TLS.
    pub dev_mode: bool,
    /// Identities kept. One takes about half a kilobyte.
    pub entries_max: u64,
    /// How long a document counts as fresh.
    pub fresh_for: Duration,
    /// How long a document answers at all without having been fetched again.
    pub kept_for: Duration,
    /// How long a failure that may pass is remembered.
    pub transient_failure_for: Duration,
    /// How long a failure that will not pass by itself is remembered.
    pub lasting_failure_for: Duration,
    /// Least time between two refreshes of one DID.
    pub refresh_interval: Duration,
    /// Requests to the PLC directory at once.
    pub plc_requests_max: usize,
    /// Requests to all hosts of `did:web` at once; each host has one DID, so at most one.
    pub web_requests_max: usize,
}

impl ResolverConfig {
    /// The usual limits, with this directory.
    #[must_use]
    pub fn new(plc_url: &str, dev_mode: bool) -> Self {
        Self {
            plc_url: plc_url.trim_end_matches('/').to_owned(),
            dev_mode,
            entries_max: 50_000,
            fresh_for: Duration::from_secs(24 * 3600),
            kept_for: Duration::from_secs(30 * 24 * 3600),
            transient_failure_for: Duration::from_secs(15),
            lasting_failure_for: Duration::from_secs(300),
            refresh_interval: Duration::from_secs(60),
            plc_requests_max: 8,
            web_requests_max: 4,
        }
    }
}

/// Stale DIDs that wait for [`Resolver::run`]; more are dropped and come back with the next look.
const STALE_QUEUE_MAX: usize = 256;
/// Audit logs kept, and for how long: one repository may need its log more than once while it is judged.
const LOGS_MAX: u64 = 64;
const LOG_KEPT_FOR: Duration = Duration::from_secs(60);
/// Pause after a 429 of the directory that names no time, and the longest pause that it may name.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Why a DID could not be looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no place to look.
    #[error("{0}")]
    Unresolvable(UnresolvableDid),
    /// The directory or the host does not know it.
    #[error("no such DID")]
    NotFound,
    /// It was given up for good.
    #[error("the DID was tombstoned")]
    Tombstoned,
    /// What stands there is no document of it.
    #[error("{0}")]
    Document(DocumentError),
    /// What stands there is no log that verifies.
    #[error("{0}")]
    Log(PlcLogError),
    /// Nothing came.
    #[error("{0}")]
    Fetch(FetchError),
    /// The last refresh is too recent; what the cache holds is no older than that.
    #[error("the DID was looked up less than {} s ago", interval.as_secs())]
    TooSoon {
        /// The least interval.
        interval: Duration,
        /// When the next refresh may be.
        wait: Duration,
    },
    /// The directory asked to be left alone.
    #[error("the PLC directory asked us to wait another {} s", wait.as_secs())]
    Paused {
        /// How much longer.
        wait: Duration,
    },
}

impl ResolveError {
    /// Whether trying again later may help without anything changing at the source.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_transient(),
            Self::TooSoon { .. } | Self::Paused { .. } => true,
            Self::Unresolvable(_) | Self::NotFound | Self::Tombstoned | Self::Document(_) | Self::Log(_) => {
                false
            }
        }
    }
}

/// What happened since the start, for metrics.
#[derive(Debug, Default)]
pub struct ResolverCounts {
    /// Looks that the cache answered.
    pub hits: AtomicU64,
    /// Looks that it did not.
    pub misses: AtomicU64,
    /// Hits on a document that was no longer fresh.
    pub stale_hits: AtomicU64,
    /// Documents fetched.
    pub fetched: AtomicU64,
    /// Fetches that failed, in a way that may pass.
    pub failed_transient: AtomicU64,
    /// Fetches that failed for good.
    pub failed_lasting: AtomicU64,
    /// Refreshes that were refused because the last one was too recent.
    pub refreshes_refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

type Outcome = Result<Arc<Identity>, ResolveError>;
type Flight = Shared<BoxFuture<'static, Outcome>>;
type WeakFlight = WeakShared<BoxFuture<'static, Outcome>>;

/// Looks DIDs up. Cheap to clone; clones share the cache.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    upstream: Upstream,
    clock: Clock,
    config: ResolverConfig,
    cache: moka::sync::Cache<Did, Arc<Entry>>,
    /// Audit logs, each with the time at which it was fetched.
    logs: moka::sync::Cache<Did, (Arc<PlcLog>, Timestamp)>,
    /// The fetches under way, each with its number. Weak, so that a fetch for which nobody waits any more ends
    /// and frees its place.
    flights: Mutex<HashMap<Did, (u64, WeakFlight)>>,
    next_flight: AtomicU64,
    plc_places: Semaphore,
    web_places: Semaphore,
    /// Until when the directory wants no request, in microseconds.
    plc_paused_until: AtomicU64,
    stale: mpsc::Sender<Did>,
    stale_queue: Mutex<Option<mpsc::Receiver<Did>>>,
    counts: ResolverCounts,
}

/// What is known of one DID.
#[derive(Debug, Clone, Default)]
struct Entry {
    identity: Option<Arc<Identity>>,
    /// The last fetch's failure, and until when it answers.
    failure: Option<(ResolveError, Timestamp)>,
    /// When the cache was last passed by.
    refreshed_at: Option<Timestamp>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver with an empty cache.
    #[must_use]
    pub fn new(upstream: Upstream, clock: Clock, config: ResolverConfig) -> Self {
        let (stale, stale_queue) = mpsc::channel(STALE_QUEUE_MAX);
        Self(Arc::new(Inner {
            upstream,
            clock,
            cache: moka::sync::Cache::builder()
                .max_capacity(config.entries_max)
                .time_to_live(config.kept_for)
                .build(),
            logs: moka::sync::Cache::builder()
                .max_capacity(LOGS_MAX)
                .time_to_live(LOG_KEPT_FOR)
                .build(),
            flights: Mutex::default(),
            next_flight: AtomicU64::new(0),
            plc_places: Semaphore::new(config.plc_requests_max),
            web_places: Semaphore::new(config.web_requests_max),
            plc_paused_until: AtomicU64::new(0),
            stale,
            stale_queue: Mutex::new(Some(stale_queue)),
            counts: ResolverCounts::default(),
            config,
        }))
    }

    /// What happened since the start.
    #[must_use]
    pub fn counts(&self) -> &ResolverCounts {
        &self.0.counts
    }

    /// What the cache holds. Never waits or fetches; what is not fresh is queued for [`Resolver::run`].
    #[must_use]
    pub fn get(&self, did: &Did) -> Option<Arc<Identity>> {
        let counts = &self.0.counts;
        let Some(entry) = self.0.cache.get(did) else {
            count(&counts.misses);
            return None;
        };
        let Some(identity) = &entry.identity else {
            count(&counts.misses);
            return None;
        };
        count(&counts.hits);
        let now = self.0.clock.now();
        if self.0.is_due(&entry, now) {
            count(&counts.stale_hits);
            // Full means busy: the next look queues it again.
            self.0.stale.try_send(did.clone()).unwrap_or_default();
        }
        Some(Arc::clone(identity))
    }

    /// Looks a DID up, in the cache unless `refresh` is set, else at its source.
    ///
    /// # Errors
    /// When there is none, or it cannot be fetched now; a failure answers for a while without another try.
    /// [`ResolveError::TooSoon`] when the last refresh was less than [`ResolverConfig::refresh_interval`] ago, so
    /// that what the cache holds is as good as it gets.
    pub async fn resolve(&self, did: &Did, refresh: bool) -> Outcome {
        let now = self.0.clock.now();
        let entry = self.0.cache.get(did).unwrap_or_default();
        let failure = entry.failure.as_ref().filter(|(_, until)| now < *until);
        if refresh {
            if let Some((error, _)) = failure {
                return Err(error.clone());
            }
            if let Some(last) = entry.refreshed_at {
                let interval = self.0.config.refresh_interval;
                let age = now.since(last);
                if age < interval {
                    count(&self.0.counts.refreshes_refused);
                    let wait = interval - age;
                    return Err(ResolveError::TooSoon { interval, wait });
                }
            }
        } else {
            if let Some(identity) = self.get(did) {
                return Ok(identity);
            }
            if let Some((error, _)) = failure {
                return Err(error.clone());
            }
        }
        self.flight(did, refresh).await
    }

    /// The audit log of a `did:plc`, verified from its first operation to its last; at most a minute old.
    ///
    /// # Errors
    /// When it cannot be fetched now, or does not verify.
    pub async fn audit_log(&self, did: &Did) -> Result<Arc<PlcLog>, ResolveError> {
        let inner = &self.0;
        if did.method() != DidMethod::Plc {
            return Err(ResolveError::Unresolvable(UnresolvableDid(
                "only a did:plc has a log",
            )));
        }
        if let Some((log, at)) = inner.logs.get(did)
            && inner.clock.now().since(at) < LOG_KEPT_FOR
        {
            return Ok(log);
        }
        let url = format!("{}/{did}/log/audit", inner.config.plc_url);
        let answer = inner.get(&url, true, LOG_BYTES_MAX).await?;
        let parsed = PlcLog::parse(did, &answer).map(Arc::new);
        let log = parsed.map_err(ResolveError::Log)?;
        inner
            .logs
            .insert(did.clone(), (Arc::clone(&log), inner.clock.now()));
        Ok(log)
    }

    /// Fetches stale documents again, one after the other, until cancelled. To be run once.
    pub async fn run(&self, cancel: CancellationToken) {
        let queue = lock(&self.0.stale_queue).take();
        let Some(mut queue) = queue else { return };
        loop {
            let did = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                did = queue.recv() => did,
            };
            let Some(did) = did else { return };
            let entry = self.0.cache.get(&did).unwrap_or_default();
            if !self.0.is_due(&entry, self.0.clock.now()) {
                continue;
            }
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                outcome = self.flight(&did, false) => outcome,
            };
            if let Err(error) = outcome {
                tracing::debug!(%did, %error, "stale DID document not fetched again");
            }
        }
    }

    /// The fetch of this DID that is under way, or a new one.
    fn flight(&self, did: &Did, refresh: bool) -> Flight {
        let mut flights = lock(&self.0.flights);
        let under_way = flights.get(did).and_then(|(_, flight)| flight.upgrade());
        if let Some(flight) = under_way {
            return flight;
        }
        let landing = Landing {
            inner: Arc::clone(&self.0),
            did: did.clone(),
            number: self.0.next_flight.fetch_add(1, Ordering::Relaxed),
        };
        let number = landing.number;
        let flight = async move {
            let landing = landing;
            landing.inner.fetch_and_remember(&landing.did, refresh).await
        }
        .boxed()
        .shared();
        let weak = flight
            .downgrade()
            .expect("a flight that was never polled is not over");
        flights.insert(did.clone(), (number, weak));
        flight
    }
}

/// Takes a fetch off the list when it ends or is given up.
struct Landing {
    inner: Arc<Inner>,
    did: Did,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.inner.flights);
        // Its place may be another's already, begun when nobody waited for this one any more.
        if flights
            .get(&self.did)
            .is_some_and(|(number, _)| *number == self.number)
        {
            flights.remove(&self.did);
        }
    }
}

impl Inner {
    /// Whether a document is due to be fetched again.
    fn is_due(&self, entry: &Entry, now: Timestamp) -> bool {
        let failed_recently = entry.failure.as_ref().is_some_and(|(_, until)| now < *until);
        !failed_recently
            && entry
                .identity
                .as_ref()
                .is_some_and(|identity| now.since(identity.resolved_at) >= self.config.fresh_for)
    }

    async fn fetch_and_remember(&self, did: &Did, refresh: bool) -> Outcome {
        let outcome = self.fetch(did).await;
        let now = self.clock.now();
        let before = self.cache.get(did).unwrap_or_default();
        let refreshed_at = if refresh { Some(now) } else { before.refreshed_at };
        let entry = match &outcome {
            Ok(identity) => {
                count(&self.counts.fetched);
                Entry {
                    identity: Some(Arc::clone(identity)),
                    failure: None,
                    refreshed_at,
                }
            }
            // What we know stays true while the source cannot be asked.
            Err(error) if error.is_transient() => {
                count(&self.counts.failed_transient);
                Entry {
                    identity: before.identity.clone(),
                    failure: Some((error.clone(), now.plus(self.config.transient_failure_for))),
                    // Nothing was refreshed: it may be tried again when the failure is forgotten.
                    refreshed_at: before.refreshed_at,
                }
            }
            Err(error) => {
                count(&self.counts.failed_lasting);
                Entry {
                    identity: None,
                    failure: Some((error.clone(), now.plus(self.config.lasting_failure_for))),
                    refreshed_at,
                }
            }
        };
        self.cache.insert(did.clone(), Arc::new(entry));
        outcome
    }

    async fn fetch(&self, did: &Did) -> Outcome {
        let config = &self.config;
        let url = document_url(did, &config.plc_url, config.dev_mode).map_err(ResolveError::Unresolvable)?;
        let is_plc = did.method() == DidMethod::Plc;
        let document = self.get(&url, is_plc, DOCUMENT_BYTES_MAX).await?;
        Identity::from_document(did, &document, config.dev_mode, self.clock.now())
            .map(Arc::new)
            .map_err(ResolveError::Document)
    }

    /// A document of the directory or of a web host, when it is its turn.
    async fn get(&self, url: &str, is_plc: bool, bytes_max: u64) -> Result<Vec<u8>, ResolveError> {
        let places = if is_plc {
            &self.plc_places
        } else {
            &self.web_places
        };
        let place = places.acquire().await.expect("the semaphore is never closed");
        if is_plc {
            self.check_pause()?;
        }
        let fetched = match self.upstream.get(url, &Limits::document(bytes_max)).await {
            Ok(answer) => answer.body.collect().await,
            Err(error) => Err(error),
        };
        drop(place);
        fetched.map_err(|error| match error {
            FetchError::Status { status: 404, .. } => ResolveError::NotFound,
            FetchError::Status { status: 410, .. } => ResolveError::Tombstoned,
            FetchError::Status { status: 429, .. } if is_plc => {
                self.pause(&error);
                ResolveError::Fetch(error)
            }
            other => ResolveError::Fetch(other),
        })
    }

    fn check_pause(&self) -> Result<(), ResolveError> {
        let until = Timestamp::from_micros(self.plc_paused_until.load(Ordering::Relaxed));
        let wait = until.since(self.clock.now());
        // Longer than any pause: the clock was set back, and the pause means nothing any more.
        if wait.is_zero() || wait > PAUSE_MAX {
            Ok(())
        } else {
            Err(ResolveError::Paused { wait })
        }
    }

    fn pause(&self, error: &FetchError) {
        let wait = error.wait().unwrap_or(PAUSE).min(PAUSE_MAX);
        let until = self.clock.now().plus(wait);
        self.plc_paused_until.store(until.micros(), Ordering::Relaxed);
    }
}

/// The maps behind these locks are whole between any two statements, so a panic elsewhere left them usable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

mod testimony;
#[cfg(test)]
mod tests;
