#![allow(clippy::disallowed_methods, reason = "shell: the clock, the archive")]
//! Writes the states of hosts, and Firekeep's own, into the archive: when they changed, and not more often than
//! accounts are snapshotted. What comes in between stands in the log. A state that nothing changed costs nothing.
//!
//! A host's state is read first, then all is shipped that the log had at that moment, and only then is it put: its
//! cursor never runs ahead of the archive. What begins anew (a first state, a new numbering, a listing that is done)
//! is written at once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::archive_watch::ArchiveWatch;
use super::hosts::Hosts;
use crate::archive::keeper::Keeper;
use crate::archive::shipper::Shipper;
use crate::archive::state_cut::{host_state, service_state};
use crate::archive::state_file::HostState;
use crate::clock::Clock;
use crate::mirror::keyspace;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{HostRow, Listing, Row as _, StateMark};
use crate::mirror::store::{Batch, Family, KeyRange, Store, StoreError};
use crate::types::{HostName, Timestamp};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at alarms; and between two tries where the archive took nothing.
const SERVICE_LOOK: Duration = Duration::from_secs(15);
/// The name of Firekeep's own state among the marks: no host's.
const SERVICE: &str = "";

/// What writing states needs.
pub struct States {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// There while the archive is open.
    pub keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// There while the archive is open.
    pub shipper: Arc<OnceLock<Arc<Shipper>>>,
    /// What the newest look at the archive found.
    pub archive: Arc<ArchiveWatch>,
    /// The followed hosts, with their base URLs.
    pub hosts: Arc<Hosts>,
    /// At most this often.
    pub interval: Duration,
    /// The clock.
    pub clock: Clock,
}

/// What stands between two looks.
#[derive(Default)]
struct Seen {
    /// States that wait until the log is shipped.
    waiting: BTreeMap<HostName, HostState>,
    /// When a host's state was last compared.
    looked: BTreeMap<HostName, Timestamp>,
    /// What makes a state due at once: epoch, listing, and the first event.
    turned: BTreeMap<HostName, (u64, bool, bool)>,
    service_looked: Option<Timestamp>,
    service_due: Option<Timestamp>,
    alarms: Option<u64>,
    failing: bool,
}

impl States {
    /// Writes until it is cancelled.
    ///
    /// # Errors
    /// When the mirror fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), StoreError> {
        let (this, mut seen) = (Arc::new(self), Seen::default());
        loop {
            let step = async {
                match this.keeper.get() {
                    Some(keeper) if this.archive.may_write() => this.step(keeper, &mut seen).await,
                    _ => Ok(Ok(())),
                }
            };
            let stepped = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                stepped = step => stepped?,
            };
            let wait = match stepped {
                Ok(()) => {
                    seen.failing = false;
                    LOOK
                }
                Err(why) => {
                    if !std::mem::replace(&mut seen.failing, true) {
                        tracing::warn!(
                            "cannot archive the states of hosts: {why}; tried again until it works"
                        );
                    }
                    SERVICE_LOOK
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = sleep(wait) => {}
            }
        }
    }

    async fn step(
        self: &Arc<Self>,
        keeper: &Keeper,
        seen: &mut Seen,
    ) -> Result<Result<(), String>, StoreError> {
        for host in self.hosts.all().keys() {
            if !seen.waiting.contains_key(host)
                && let Some(state) = self.due(host, seen).await?
            {
                seen.waiting.insert(host.clone(), state);
            }
            let Some(state) = seen.waiting.get(host) else {
                continue;
            };
            if !self.is_shipped(state.log_next)? {
                continue;
            }
            if let Err(why) = self.may_put().await {
                return Ok(Err(why));
            }
            if let Err(why) = keeper.host_state(state).await {
                // Not the same one again: it would be of the past.
                seen.waiting.remove(host);
                seen.looked.remove(host);
                return Ok(Err(why));
            }
            self.mark(host.as_str(), state.fingerprint(), state.time)?;
            seen.waiting.remove(host);
        }
        self.service(keeper, seen).await
    }

    /// The host's state, if it is time and it has changed.
    async fn due(
        self: &Arc<Self>,
        host: &HostName,
        seen: &mut Seen,
    ) -> Result<Option<HostState>, StoreError> {
        let Some(row) = Mirror::new(&*self.store).host(host)? else {
            return Ok(None);
        };
        let mark = self.marked(host.as_str())?;
        let now = self.clock.now();
        let turn = turn_of(&row);
        let turned = seen.turned.get(host).is_none_or(|known| *known != turn);
        let last = seen
            .looked
            .get(host)
            .copied()
            .max(mark.as_ref().map(|mark| mark.at));
        let young = last.is_some_and(|last| now.since(last) < self.interval);
        // After a start nothing has turned that the last state did not say, as far as it is known.
        let first_look = !seen.turned.contains_key(host) && mark.is_some();
        if young && (!turned || first_look) {
            seen.turned.entry(host.clone()).or_insert(turn);
            return Ok(None);
        }
        let (this, name) = (Arc::clone(self), host.clone());
        let built = tokio::task::spawn_blocking(move || {
            let view = this.store.view();
            host_state(&Mirror::new(&*view), &name, now)
        });
        let built = built
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let Some(state) = built else {
            return Ok(None);
        };
        seen.turned.insert(host.clone(), turn);
        seen.looked.insert(host.clone(), now);
        Ok(Some(state).filter(|state| mark.is_none_or(|mark| mark.digest != state.fingerprint())))
    }

    async fn service(
        self: &Arc<Self>,
        keeper: &Keeper,
        seen: &mut Seen,
    ) -> Result<Result<(), String>, StoreError> {
        let now = self.clock.now();
        if seen
            .service_looked
            .is_some_and(|last| now.since(last) < SERVICE_LOOK)
        {
            return Ok(Ok(()));
        }
        seen.service_looked = Some(now);
        // Pins come with alarms, and both are looked for in all accounts only then, or when it is time.
        let alarms = self.alarms()?;
        let due = seen.service_due.is_none_or(|due| now >= due);
        if seen.alarms.replace(alarms) == Some(alarms) && !due {
            return Ok(Ok(()));
        }
        let this = Arc::clone(self);
        let built = tokio::task::spawn_blocking(move || {
            let view = this.store.view();
            service_state(&Mirror::new(&*view), &this.hosts.all(), now)
        });
        let state = built
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let digest = state.fingerprint();
        seen.service_due = Some(now.plus(self.interval));
        if self.marked(SERVICE)?.is_some_and(|mark| mark.digest == digest) {
            return Ok(Ok(()));
        }
        let put = match self.may_put().await {
            Ok(()) => keeper.service_state(&state).await,
            refused => refused,
        };
        if put.is_err() {
            seen.service_due = None;
            return Ok(put);
        }
        self.mark(SERVICE, digest, now)?;
        Ok(Ok(()))
    }

    /// Something that changes when an alarm does.
    fn alarms(&self) -> Result<u64, StoreError> {
        use std::hash::{Hash as _, Hasher as _};
        let mut hash = std::collections::hash_map::DefaultHasher::new();
        self.store
            .scan(Family::Alarms, &KeyRange::all(), &mut |key, value| {
                (key, value).hash(&mut hash);
                ControlFlow::Continue(())
            })?;
        Ok(hash.finish())
    }

    fn is_shipped(&self, log_next: u64) -> Result<bool, StoreError> {
        let open = Mirror::new(&*self.store).outbox(0, 1)?;
        Ok(open.first().is_none_or(|(number, _)| *number >= log_next))
    }

    /// A mirror that was taken over says nothing any more.
    async fn may_put(&self) -> Result<(), String> {
        match self.shipper.get() {
            Some(shipper) => shipper.is_writer().await,
            None => Err("the archive is not open".to_owned()),
        }
    }

    fn marked(&self, name: &str) -> Result<Option<StateMark>, StoreError> {
        let key = keyspace::meta_state(name);
        let Some(value) = self.store.get(Family::Meta, &key)? else {
            return Ok(None);
        };
        let mark =
            StateMark::decode(&value).map_err(|error| StoreError::bad_row(Family::Meta, &key, error))?;
        let archive = self.store.get(Family::Meta, keyspace::META_ARCHIVE_ID)?;
        Ok(Some(mark).filter(|mark| archive.as_deref() == Some(mark.archive.as_bytes())))
    }

    fn mark(&self, name: &str, digest: crate::types::Digest, at: Timestamp) -> Result<(), StoreError> {
        let archive = self.store.get(Family::Meta, keyspace::META_ARCHIVE_ID)?;
        let mark = StateMark {
            archive: String::from_utf8_lossy(&archive.unwrap_or_default()).into_owned(),
            digest,
            at,
        };
        let mut batch = Batch::new();
        batch.put(Family::Meta, keyspace::meta_state(name), mark.encode());
        self.store.write_durable(batch)?.into_inner();
        Ok(())
    }
}

fn turn_of(row: &HostRow) -> (u64, bool, bool) {
    let listed = matches!(row.listing, Listing::Finished { .. });
    (row.epoch, listed, row.cursor.is_some())
}
