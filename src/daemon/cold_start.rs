#![allow(
    clippy::disallowed_methods,
    reason = "shell: the archive, the clock, a terminal"
)]
//! A mirror out of its archive: a new machine with an empty data folder, or one that has fallen behind its own archive.
//!
//! All that the bucket proves is taken from there, and nothing of it is fetched from a PDS again; what it does not prove
//! is named, and fetched. Accounts come one by one, each in one batch, so that a process that is killed goes on where it
//! was. The hosts' cursors come last: nothing is followed before.
//!
//! The archive has one writer, and this mirror becomes it before it reads the log: what another one adds later counts
//! for nothing.

mod account;
mod heal;
mod progress;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use self::account::{Prepared, UNTOLD, is_passing};
pub use self::heal::heal;
use self::progress::Shown;
use self::rows::{host_row, row_of_log};
use super::archive_link::{NotAdopted, Opened, instance};
use super::{DaemonError, exit};
use crate::archive::bucket::Bucket;
use crate::archive::held::noted_elsewhere;
use crate::archive::log_pass::{LogPass, LogRange};
use crate::archive::names::SnapshotName;
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::archive::state_file::{AccountState, HostState, PinState};
use crate::archive::writer::{self, Claimed};
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::resolver::Resolver;
use crate::mirror::applier::Applier;
use crate::mirror::handle::Stopped;
use crate::mirror::input::{Input, Refilled};
use crate::mirror::keyspace::{META_COLD_START, NO_NUMBER};
use crate::mirror::numbers::Numbers;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::LogRow;
use crate::mirror::store::{Family, Store, StoreError};
use crate::types::{AccountStatus, Did, HostName, Rev};

/// Accounts that are put together at once.
const AT_ONCE: usize = 4;
/// Accounts that are named one by one because something of them could not be had.
const NAMED_MAX: usize = 100;
/// Between two tries while the archive does not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// Why a mirror could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The archive cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The mirror failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A temporary file.
    #[error("cannot use a temporary file: {0}")]
    Temporary(std::io::Error),
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What filling needs.
pub struct ColdStart {
    store: Arc<dyn Store>,
    numbers: Arc<Numbers>,
    pub(super) reader: ArchiveReader,
    /// None: the archive alone has to say who may sign.
    resolver: Option<Resolver>,
    clock: Clock,
    /// The followed hosts, with their base URLs.
    hosts: BTreeMap<HostName, String>,
    dev_mode: bool,
}

/// What was read of the archive before the first account.
pub(super) struct Sources {
    snapshots: BTreeMap<Did, (SnapshotName, u64)>,
    log: LogPass,
    states: BTreeMap<HostName, HostState>,
    pins: BTreeMap<Did, Vec<PinState>>,
    followed: BTreeSet<HostName>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Filled {
    /// Accounts that the archive gave.
    pub accounts: u64,
    /// Their records.
    pub records: u64,
    /// Accounts of which something has to come from their hosts, and why.
    pub lacking: Vec<(Did, String)>,
}

impl Sources {
    /// What its host's state says of an account.
    fn state_of(&self, did: &Did) -> Option<(&HostState, &AccountState)> {
        let states = self.states.values();
        let of = states.filter_map(|state| Some((state, state.accounts.get(did)?)));
        // That of a host which it left, and which was not followed any more, is the older one.
        of.max_by_key(|(state, _)| state.time)
    }

    fn host_of(&self, did: &Did) -> Option<HostName> {
        let told = self.log.accounts.get(did).and_then(|told| told.host.clone());
        told.or_else(|| self.state_of(did).map(|(state, _)| state.host.clone()))
    }

    /// The accounts that have something to restore.
    pub(super) fn restorable(&self) -> impl Iterator<Item = &Did> {
        self.snapshots.keys()
    }

    /// The newest that was said of its standing.
    fn status_of(&self, did: &Did) -> AccountStatus {
        let told = self.log.accounts.get(did).and_then(|told| told.status.as_ref());
        match (self.state_of(did), told) {
            (Some((state, known)), Some((at, _))) if *at <= state.time => known.status.clone(),
            (_, Some((_, status))) => status.clone(),
            (Some((_, known)), None) => known.status.clone(),
            // Nobody is asked who could say that it is shown.
            (None, None)
                if self
                    .host_of(did)
                    .is_some_and(|host| !self.followed.is_empty() && !self.followed.contains(&host)) =>
            {
                AccountStatus::Other("unknown".to_owned())
            }
            (None, None) => UNTOLD,
        }
    }

    fn dids(&self) -> BTreeSet<Did> {
        let mut dids: BTreeSet<Did> = self.snapshots.keys().cloned().collect();
        dids.extend(self.log.accounts.keys().cloned());
        for state in self.states.values() {
            dids.extend(state.accounts.keys().cloned());
        }
        dids
    }
}

/// Fills an empty mirror from its archive, if there is one; the mirror is the archive's writer then. Returns whether
/// it did.
///
/// # Errors
/// When another mirror writes there (exit code 11), or the mirror or the archive fails.
pub async fn fill_if_empty(
    applier: &mut Applier,
    opened: Option<&Opened>,
    (config, store, numbers): (&Config, &Arc<dyn Store>, &Arc<Numbers>),
    (resolver, clock, temp_dir): (&Resolver, &Clock, &Path),
    take_over: bool,
) -> Result<bool, DaemonError> {
    let Some(opened) = opened else {
        // What is half filled must not follow: its log numbers and cursors stand in the archive.
        if store
            .get(Family::Meta, META_COLD_START)
            .map_err(super::start::store_error)?
            .is_some()
        {
            return Err(DaemonError::failed(
                "this mirror is half filled from its archive, which cannot be reached now; start again when it can"
                    .to_owned(),
            ));
        }
        // Where it cannot be reached, the mirror is filled from the hosts.
        return Ok(false);
    };
    let failed = |error: FillError| DaemonError::failed(format!("cannot fill the mirror: {error}"));
    let id = opened.id.to_string();
    let begun = store
        .get(Family::Meta, META_COLD_START)
        .map_err(super::start::store_error)?;
    match begun {
        Some(of) if of != id.as_bytes() => {
            return Err(DaemonError::config(format!(
                "this mirror was being filled from archive {}, and {} is archive {id}; give the one it was begun with, \
                 or remove the data folder {} to begin anew",
                String::from_utf8_lossy(&of),
                opened.bucket,
                config.data_dir.display()
            )));
        }
        Some(_) => tracing::info!("filling the mirror from its archive goes on"),
        None => {
            let empty = applier.is_empty().map_err(super::start::store_error)?;
            if !empty
                || !holds_backup(&opened.bucket)
                    .await
                    .map_err(|error| failed(error.into()))?
            {
                return Ok(false);
            }
        }
    }
    let instance = instance(&**store, clock).map_err(super::start::store_error)?;
    let claimed = writer::claim(&opened.bucket, &instance, None, take_over, clock.now()).await;
    let Claimed { log, .. } = claimed.map_err(NotAdopted::Claim)?;
    applier.begin_cold_start(&id).map_err(super::start::store_error)?;
    let noted = noted_elsewhere(&opened.bucket, store).await;
    for erase in noted.map_err(|error| DaemonError::failed(error.to_string()))? {
        let erase = vec![Input::Erase(Box::new(erase))];
        applier
            .apply(erase, clock.now())
            .map_err(super::start::store_error)?;
    }
    let cold = ColdStart::new(opened, (config, store, numbers), (resolver, clock, temp_dir)).await;
    let cold = Arc::new(cold.map_err(|error| failed(error.into()))?);
    let filled = cold.fill(applier, &id, log).await.map_err(failed)?;
    filled.tell();
    Ok(true)
}

/// Whether an archive has anything of accounts.
async fn holds_backup(bucket: &Bucket) -> Result<bool, ReadError> {
    for prefix in ["v1/repos/", "v1/log/", "v1/hosts/"] {
        if !bucket.list(prefix, None).await?.objects.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl ColdStart {
    async fn new(
        opened: &Opened,
        (config, store, numbers): (&Config, &Arc<dyn Store>, &Arc<Numbers>),
        (resolver, clock, temp_dir): (&Resolver, &Clock, &Path),
    ) -> Result<Self, ReadError> {
        let hosts = config
            .hosts
            .iter()
            .map(|host| (host.name.clone(), host.url.clone()));
        Ok(Self {
            store: Arc::clone(store),
            numbers: Arc::clone(numbers),
            reader: ArchiveReader::of_bucket(opened.bucket.clone(), temp_dir).await?,
            resolver: Some(resolver.clone()),
            clock: clock.clone(),
            hosts: hosts.collect(),
            dev_mode: config.dev_mode,
        })
    }

    /// One that has nothing but the archive, and fills a store that nobody follows with.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn alone(
        store: Arc<dyn Store>,
        reader: ArchiveReader,
        clock: &Clock,
        dev_mode: bool,
    ) -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new(Self {
            numbers: Arc::new(Numbers::open(Arc::clone(&store))?),
            store,
            reader,
            resolver: None,
            clock: clock.clone(),
            hosts: BTreeMap::new(),
            dev_mode,
        }))
    }

    /// Puts one account together that the mirror in `store` holds a damaged copy of; none: the archive cannot either.
    ///
    /// # Errors
    /// When the archive or the mirror fails.
    pub(super) async fn one(
        store: &Arc<dyn Store>,
        numbers: &Arc<Numbers>,
        (bucket, temp_dir, clock): (Bucket, &Path, &Clock),
        (did, from_number): (&Did, u64),
        dev_mode: bool,
    ) -> Result<Option<Input>, FillError> {
        let one = Arc::new(Self {
            store: Arc::clone(store),
            numbers: Arc::clone(numbers),
            reader: ArchiveReader::of_bucket(bucket, temp_dir).await?,
            resolver: None,
            clock: clock.clone(),
            hosts: BTreeMap::new(),
            dev_mode,
        });
        let sources = one.all_sources().await?;
        let prepared = one.prepare(did.clone(), sources, from_number).await?;
        let restored = Some(prepared.restored).filter(|restored| restored.repo.is_some());
        Ok(restored.map(|restored| Input::Restored(Box::new(restored))))
    }

    /// Everything that is not one account's, as the archive is now.
    pub(super) async fn all_sources(&self) -> Result<Arc<Sources>, FillError> {
        let range = LogRange {
            from: 0,
            until: (u64::MAX, u64::MAX),
        };
        Ok(Arc::new(self.read_sources(range, &mut |_, _| {}).await?))
    }

    /// Reads everything that is not one account's.
    async fn sources(&self, range: LogRange, shown: &mut Shown) -> Result<Sources, FillError> {
        loop {
            let mut seen = |read, of| shown.segments(read, of);
            match self.read_sources(range, &mut seen).await {
                Err(error) if is_passing(&error) => {
                    tracing::warn!("the archive does not answer ({error}); waiting for it");
                    tokio::time::sleep(PAUSE).await;
                }
                sources => return Ok(sources?),
            }
        }
    }

    async fn read_sources(
        &self,
        range: LogRange,
        seen: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Sources, ReadError> {
        let snapshots = self.reader.newest_snapshots().await?;
        let newest = snapshots.iter().map(|(did, (name, _))| (did.clone(), name.rev));
        let newest: BTreeMap<Did, Rev> = newest.collect();
        let mut log = self.reader.pass_log(range, &newest, seen).await?;
        for (did, rev) in self.reader.newest_deltas().await? {
            if newest.get(&did).is_some_and(|known| rev > *known) {
                log.reaches(&did, rev);
            }
        }
        for fault in &log.faults {
            tracing::error!("the archive's log: {fault}");
        }
        let mut states = BTreeMap::new();
        let mut hosts: BTreeSet<HostName> = self.hosts.keys().cloned().collect();
        // Accounts of hosts that are not configured stand as they stood; who restores single ones need not know.
        if !hosts.is_empty() {
            hosts.extend(self.reader.hosts().await?);
        }
        for host in &hosts {
            let (state, unusable) = self.reader.host_state(host).await?;
            for fault in unusable {
                tracing::error!("the archive's state of a host: {fault}");
            }
            states.extend(state.map(|state| (host.clone(), state)));
        }
        let (service, unusable) = self.reader.service_state().await?;
        for fault in unusable {
            tracing::error!("the archive's state of Firekeep: {fault}");
        }
        Ok(Sources {
            snapshots,
            log,
            states,
            pins: service.map(|service| service.pins).unwrap_or_default(),
            followed: self.hosts.keys().cloned().collect(),
        })
    }

    /// Fills an empty mirror.
    async fn fill(
        self: &Arc<Self>,
        applier: &mut Applier,
        id: &str,
        log: LogRow,
    ) -> Result<Filled, FillError> {
        let mut shown = Shown::new(&self.clock);
        let range = LogRange {
            from: 0,
            until: (log.generation, log.number),
        };
        let sources = Arc::new(self.sources(range, &mut shown).await?);
        sources.tell_unfollowed();
        let mut open = Vec::new();
        for did in sources.dids() {
            if Mirror::new(&*self.store).account(&did)?.is_none() {
                open.push((did, NO_NUMBER));
            }
        }
        let mut filled = Filled::default();
        let count = open.len() as u64;
        let mut prepared = Box::pin(self.prepare_all(open, &sources));
        while let Some(prepared) = prepared.next().await {
            let input = filled.take(prepared?);
            applier.apply(vec![input], self.clock.now())?;
            shown.accounts(filled.accounts, count, filled.records);
        }
        let refilled = self.refilled(&sources, id, log).await?;
        applier.apply(vec![Input::Refilled(Box::new(refilled))], self.clock.now())?;
        Ok(filled)
    }

    fn prepare_all<'s>(
        self: &'s Arc<Self>,
        open: Vec<(Did, u64)>,
        sources: &'s Arc<Sources>,
    ) -> impl futures_util::Stream<Item = Result<Prepared, FillError>> + 's {
        stream::iter(open)
            .map(move |(did, from)| self.prepare(did, Arc::clone(sources), from))
            .buffer_unordered(AT_ONCE)
    }

    /// The hosts as they stood, and where the log goes on.
    async fn refilled(&self, sources: &Sources, id: &str, log: LogRow) -> Result<Refilled, FillError> {
        let now = self.clock.now();
        let hosts = self.hosts.iter().map(|(host, url)| {
            let row = match sources.states.get(host) {
                Some(state) => host_row(state, url, now),
                None => row_of_log(sources.log.seqs.get(host).copied(), url),
            };
            (host.clone(), row)
        });
        let (service, _) = self.reader.service_state().await?;
        let alarms = service.map(|service| service.alarms).unwrap_or_default();
        Ok(Refilled {
            archive: id.to_owned(),
            log,
            next_log: sources.log.next_log,
            hosts: hosts.collect(),
            alarms: alarms.into_iter().collect(),
            told: Vec::new(),
            standings: Vec::new(),
        })
    }
}

impl Filled {
    fn take(&mut self, prepared: Prepared) -> Input {
        let Prepared {
            restored,
            records,
            lacks,
            ..
        } = prepared;
        self.accounts += u64::from(restored.repo.is_some());
        self.records += records;
        if let Some(why) = lacks {
            if self.lacking.len() < NAMED_MAX {
                tracing::warn!(did = %restored.did, why, "this account has to come from its host");
            }
            self.lacking.push((restored.did.clone(), why));
        }
        Input::Restored(Box::new(restored))
    }

    /// Says what came of it.
    pub fn tell(&self) {
        tracing::info!(
            accounts = self.accounts,
            records = self.records,
            from_their_hosts = self.lacking.len(),
            "the mirror is filled from its archive"
        );
    }
}

impl From<FillError> for DaemonError {
    fn from(error: FillError) -> Self {
        Self {
            code: exit::FAILED,
            text: format!("cannot give the mirror back what its archive has: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
