#![allow(clippy::disallowed_methods, reason = "shell: runs tasks, asks the network")]
//! The hosts that are followed: those of the configuration, and those that were added while the daemon runs.
//!
//! An added host stands in the mirror with a mark, and is taken up again at the next start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use super::follow::{Follow, KeyCache};
use super::start::HostParts;
use crate::clock::Clock;
use crate::http::client::Upstream;
use crate::http::request::Limits;
use crate::identity::document::PdsEndpoint;
use crate::metrics::Metrics;
use crate::mirror::Store;
use crate::mirror::applier::epochs::resume_cursor;
use crate::mirror::handle::ApplierHandle;
use crate::mirror::input::{Ask, Input};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::Scope;
use crate::stream::session::Start;
use crate::stream::subscriber::{Subscriber, SubscriberLimits};
use crate::types::HostName;

/// Hosts that may be added, at most: each has a stream of its own.
const ADDED_MAX: usize = 100;
/// A host that is to be added answers within this time.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of the followed hosts now.
#[derive(Debug, Default)]
pub struct Hosts(RwLock<BTreeMap<HostName, String>>);

impl Hosts {
    /// With these to begin with.
    #[must_use]
    pub fn new(urls: BTreeMap<HostName, String>) -> Self {
        Self(RwLock::new(urls))
    }

    /// A host's base URL, if it is followed.
    #[must_use]
    pub fn get(&self, host: &HostName) -> Option<String> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(host)
            .cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeMap<HostName, String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, host: HostName, url: Option<String>) {
        let mut hosts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match url {
            Some(url) => drop(hosts.insert(host, url)),
            None => drop(hosts.remove(&host)),
        }
    }
}

/// A host that is to be followed from now on, until this token is cancelled.
pub type Late = (HostParts, CancellationToken);

/// Makes what following a host needs.
pub struct Follower {
    /// The followed hosts.
    pub hosts: Arc<Hosts>,
    /// Whether plain http is allowed.
    pub dev_mode: bool,
    /// The network.
    pub upstream: Upstream,
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// Parsed keys, shared by all hosts.
    pub keys: Arc<KeyCache>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The clock.
    pub clock: Clock,
    late: mpsc::UnboundedSender<Late>,
    added: Mutex<BTreeMap<HostName, CancellationToken>>,
    one: tokio::sync::Mutex<()>,
}

#[derive(Deserialize)]
struct DescribeServer {
    #[expect(dead_code, reason = "a PDS has one; that it is there is what is asked")]
    did: String,
}

impl Follower {
    /// For these hosts; those that are added come out of the receiver.
    #[must_use]
    pub fn new(
        hosts: Arc<Hosts>,
        dev_mode: bool,
        upstream: Upstream,
        (store, applier): (Arc<dyn Store>, ApplierHandle),
        (metrics, clock): (Arc<Metrics>, Clock),
    ) -> (Self, mpsc::UnboundedReceiver<Late>) {
        let (late, receiver) = mpsc::unbounded_channel();
        let follower = Self {
            hosts,
            dev_mode,
            upstream,
            store,
            applier,
            keys: Arc::default(),
            metrics,
            clock,
            late,
            added: Mutex::default(),
            one: tokio::sync::Mutex::default(),
        };
        (follower, receiver)
    }

    /// What following a host needs.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn parts(&self, host: &HostName, url: &str) -> Result<HostParts, String> {
        let endpoint = PdsEndpoint::parse(url, self.dev_mode).map_err(|error| error.to_string())?;
        let (subscriber, queue) = Subscriber::new(
            endpoint,
            self.upstream.clone(),
            self.clock.clone(),
            SubscriberLimits::default(),
        );
        let (reader, name, now) = (Arc::clone(&self.store), host.clone(), self.clock.clone());
        let start = move || {
            let row = Mirror::new(&*reader).host(&name).ok().flatten();
            Some(Start {
                cursor: resume_cursor(row.as_ref(), now.now()),
                applied: row.and_then(|row| row.cursor).unwrap_or(0),
            })
        };
        let follow = Follow {
            host: host.clone(),
            store: Arc::clone(&self.store),
            applier: self.applier.clone(),
            keys: Arc::clone(&self.keys),
            clock: self.clock.clone(),
            metrics: self.metrics.host(host),
        };
        Ok(HostParts {
            subscriber,
            queue,
            start: Box::new(start),
            follow,
        })
    }

    /// Takes up the hosts that were added before the last stop.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn take_up(&self) -> Result<(), crate::mirror::StoreError> {
        for (host, row) in Mirror::new(&*self.store).hosts()? {
            if !row.added || self.hosts.get(&host).is_some() {
                continue;
            }
            if let Err(error) = self.begin(&host, &row.url) {
                tracing::error!(%host, %error, "an added host cannot be followed any more");
            }
        }
        Ok(())
    }

    fn begin(&self, host: &HostName, url: &str) -> Result<(), String> {
        let parts = self.parts(host, url)?;
        let token = CancellationToken::new();
        let gone = |_| "the daemon is stopping".to_owned();
        self.late.send((parts, token.clone())).map_err(gone)?;
        self.hosts.put(host.clone(), Some(url.to_owned()));
        self.lock_added().insert(host.clone(), token);
        Ok(())
    }

    fn lock_added(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostName, CancellationToken>> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a host from now on, or more or fewer of its accounts.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn follow(&self, url: &str, scope: Scope) -> Result<HostName, String> {
        let _one = self.one.lock().await;
        let endpoint = PdsEndpoint::parse(url, self.dev_mode).map_err(|error| error.to_string())?;
        let (host, url) = (endpoint.host().clone(), endpoint.origin());
        let known = self.hosts.get(&host).is_some();
        if known && !self.lock_added().contains_key(&host) {
            return Err(format!("{host} stands in the configuration: change it there"));
        }
        if !known {
            if self.lock_added().len() >= ADDED_MAX {
                return Err(format!(
                    "{ADDED_MAX} hosts were added already, and no more are followed"
                ));
            }
            let describe = format!("{url}/xrpc/com.atproto.server.describeServer");
            let limits = Limits {
                total: PROBE_TIMEOUT,
                first_byte: PROBE_TIMEOUT,
                ..Limits::json(256 << 10)
            };
            let answer = self
                .upstream
                .get_json_within::<DescribeServer>(&describe, &limits);
            answer
                .await
                .map_err(|error| format!("{host} does not answer as a PDS: {error}"))?;
        }
        self.ask(&host, &url, scope, true).await?;
        if !known {
            self.begin(&host, &url)?;
            tracing::info!(%host, scope = scope.label(), "this host was added, and is followed from now on");
        }
        Ok(host)
    }

    /// Ends following an added host. What is held of it stays.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn unfollow(&self, host: &HostName) -> Result<(), String> {
        let _one = self.one.lock().await;
        let token = self.lock_added().remove(host);
        let Some(token) = token else {
            return Err(match self.hosts.get(host) {
                Some(_) => format!("{host} stands in the configuration: take it out there"),
                None => format!("{host} is not followed"),
            });
        };
        let row = Mirror::new(&*self.store)
            .host(host)
            .map_err(|error| error.to_string())?;
        if let Some(row) = row {
            self.ask(host, &row.url, row.scope, false).await?;
        }
        token.cancel();
        self.hosts.put(host.clone(), None);
        tracing::info!(%host, "this host is no longer followed; what is held of it stays");
        Ok(())
    }

    async fn ask(&self, host: &HostName, url: &str, scope: Scope, added: bool) -> Result<(), String> {
        let ask = Ask::Host {
            host: host.clone(),
            url: url.to_owned(),
            scope,
            added,
        };
        let applied = self.applier.apply(Input::Asked(ask)).await;
        applied.map_err(|error| error.to_string())
    }
}

/// Follows hosts as they are added, until reading is to stop; what was read is handed over first.
///
/// # Errors
/// When the mirror fails, or the applier is gone.
pub async fn follow_late(
    mut late: mpsc::UnboundedReceiver<Late>,
    stop: CancellationToken,
) -> Result<(), DaemonError> {
    let mut running: JoinSet<Result<(), DaemonError>> = JoinSet::new();
    loop {
        let (parts, ended) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(done) = running.join_next() => {
                done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
                continue;
            }
            next = late.recv() => match next {
                Some(next) => next,
                None => break,
            },
        };
        let (subscriber, queue, start) = (parts.subscriber, parts.queue, parts.start);
        let stop = stop.clone();
        running.spawn(async move {
            let cancel = ended.clone();
            let both = async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => ended.cancel(),
                    () = ended.cancelled() => {}
                }
            };
            tokio::join!(subscriber.run(start, cancel), both);
            Ok(())
        });
        let follow = Arc::new(parts.follow);
        running.spawn(async move {
            let done = follow.run(queue, CancellationToken::new()).await;
            done.map_err(|error| DaemonError::failed(error.to_string()))
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    }
    Ok(())
}
