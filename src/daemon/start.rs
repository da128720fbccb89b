#![allow(clippy::disallowed_methods, reason = "shell: opens everything")]
//! Opening everything, in an order in which nothing is changed before the mistakes of a configuration show.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::archive_link::{ArchiveLink, check_archive, open_archive};
use super::archive_watch::ArchiveWatch;
use super::cold_start;
use super::control::DaemonControl;
use super::follow::Follow;
use super::history::History as LagHistory;
use super::hosts::{Follower, Hosts, Late};
use super::notify::Notify;
use super::probe::probe_hosts;
use super::proof::Proof;
use super::state_link::StateLink;
use super::states::States;
use super::supervise::Supervisor;
use super::upstream::upstream;
use super::work::Workshop;
use super::{DaemonError, exit, observe};
use crate::archive::keeper::Keeper;
use crate::archive::shipper::Shipper;
use crate::cli::Said;
use crate::clock::Clock;
use crate::config::{Config, HostConfig};
use crate::http::client::Upstream;
use crate::identity::resolver::{Resolver, ResolverConfig};
use crate::metrics::Metrics;
use crate::mirror::applier::{Applier, ApplierLimits};
use crate::mirror::blobs::BlobFetcher;
use crate::mirror::handle::{self, ApplierHandle};
use crate::mirror::numbers::Numbers;
use crate::mirror::resync::Fetcher;
use crate::mirror::resync::quarantine::KEPT_CAR_BYTES_MAX;
use crate::mirror::rocks::{RocksOptions, RocksStore};
use crate::mirror::store::{Store, StoreError};
use crate::serve::{self, Health, Service, SignUps};
use crate::stream::session::Start;
use crate::stream::subscriber::{Subscriber, SubscriberEvent};

mod serving;

use serving::{notify, service};

/// A host that is about to be followed.
pub struct HostParts {
    /// Reads the socket.
    pub subscriber: Subscriber,
    /// What it read.
    pub queue: mpsc::Receiver<SubscriberEvent>,
    /// Where the stream is taken up.
    pub start: Box<dyn Fn() -> Option<Start> + Send>,
    /// Verifies and hands over.
    pub follow: Follow,
}

/// Everything, opened.
pub struct Daemon {
    hosts: Vec<HostParts>,
    /// Those that are added later.
    pub late: Option<mpsc::UnboundedReceiver<Late>>,
    /// DID documents.
    pub resolver: Resolver,
    /// Persisted work.
    pub workshop: Arc<Workshop>,
    /// Opens the archive later, if it could not be reached, and looks after it.
    pub archive_link: Option<ArchiveLink>,
    /// Ships the log; empty while the archive cannot be reached.
    pub shipper: Arc<OnceLock<Arc<Shipper>>>,
    /// Proves archive and mirror in the background.
    pub proof: Arc<Proof>,
    /// Writes the states of hosts into the archive.
    pub states: Option<States>,
    /// Tells people.
    pub notify: Option<Notify>,
    /// Ships private state.
    pub private_state: Option<StateLink>,
    /// The listeners.
    pub service: Option<(Service, TcpListener, TcpListener)>,
    /// What commands and the status need.
    pub control: Arc<DaemonControl>,
    /// What the health endpoints say.
    pub health: Arc<Health>,
    applier_result: watch::Receiver<Option<String>>,
    applier_thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Daemon {
    /// The hosts, once.
    pub fn take_hosts(&mut self) -> Vec<HostParts> {
        std::mem::take(&mut self.hosts)
    }

    /// Resolves when the applier has ended, with its reason.
    pub async fn applier_ended(&self) -> DaemonError {
        let mut result = self.applier_result.clone();
        let reason = match result.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        DaemonError::failed(reason.unwrap_or_else(|| "the mirror's applier has stopped".to_owned()))
    }

    /// Gives the applier up and waits for its thread.
    pub async fn close(self, within: Duration) {
        let thread = self
            .applier_thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Self {
            workshop,
            control,
            service,
            hosts,
            archive_link,
            shipper,
            states,
            proof,
            notify,
            ..
        } = self;
        drop((
            workshop,
            control,
            service,
            hosts,
            archive_link,
            shipper,
            states,
            proof,
            notify,
        ));
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join().is_ok());
            match tokio::time::timeout(within, joined).await {
                Ok(Ok(true)) => {}
                _ => tracing::warn!("the applier did not end in time; what was acknowledged is durable"),
            }
        }
    }
}

/// Opens everything.
///
/// # Errors
/// One line for a person, with the exit code that goes with it.
pub async fn build(config: Config, said: Said, clock: Clock) -> Result<Daemon, DaemonError> {
    must_follow(&config)?;
    let Base {
        upstream,
        store,
        temp_dir,
        xrpc,
        admin,
    } = open_base(&config, &clock, said.take_over).await?;
    let metrics = Arc::new(Metrics::new());
    let (mut applier, numbers) = open_applier(&config, &store)?;
    let directory = ResolverConfig::new(&config.plc_url, config.dev_mode);
    let resolver = Resolver::new(upstream.clone(), clock.clone(), directory);
    let archive = open_archive(&config, &*store, said.new_archive, &clock).await?;
    let (mirror, around) = (
        (&config, &store, &numbers),
        (&resolver, &clock, temp_dir.as_path()),
    );
    let opened = archive.as_ref().ok();
    let filled = cold_start::fill_if_empty(&mut applier, opened, mirror, around, said.take_over).await?;
    let (applier, thread, applier_result) = start_applier(applier, &clock, &metrics)?;

    let watch: Arc<ArchiveWatch> = Arc::default();
    let health = Arc::new(Health::default());
    let link = ArchiveLink {
        config: config.clone(),
        numbers: Arc::clone(&numbers),
        resolver: resolver.clone(),
        store: Arc::clone(&store),
        applier: applier.clone(),
        keeper: Arc::default(),
        bucket: Arc::default(),
        shipper: Arc::default(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
        temp_dir: temp_dir.clone(),
        new_archive: said.new_archive,
        // Who was just filled from it has taken it over already.
        take_over: said.take_over && !filled,
        watch: Arc::clone(&watch),
        health: Arc::clone(&health),
    };
    link.adopt_at_start(archive).await?;
    let (keeper, shipper) = (Arc::clone(&link.keeper), Arc::clone(&link.shipper));
    let fetcher = fetcher(&store, numbers, (&upstream, &resolver, &clock), temp_dir);
    let around = (&upstream, &metrics, &clock);
    let (follower, late) = follower(&config, &store, &applier, around);
    let hosts = host_parts(&config, &follower)?;
    follower.take_up().map_err(store_error)?;
    let mut workshop = workshop(&config, &fetcher, &applier, (&keeper, &watch), &metrics);
    workshop.urls = Arc::clone(&follower.hosts);
    let workshop = Arc::new(workshop);
    let proof = proof(&config, &workshop, fetcher.spool_dir.clone());
    let supervisor = Arc::new(Supervisor::new(Arc::clone(&metrics), Arc::clone(&health)));
    let control = Arc::new(DaemonControl {
        supervisor,
        history: Mutex::new(LagHistory::new(clock.now())),
        proof: Arc::new(proof),
        store: Arc::clone(&store),
        applier: applier.clone(),
        fetcher,
        metrics: Arc::clone(&metrics),
        clock: clock.clone(),
        keeper,
        shipper: Arc::clone(&shipper),
        archive: watch,
        retain: Arc::new(super::retain::Retain::new(&link, &config)),
        follower,
        private_state: Arc::default(),
        config: config.clone(),
        listen: xrpc.local_addr().unwrap_or(config.listen),
        admin_listen: admin.local_addr().unwrap_or(config.admin_listen),
    });
    let service = service(&control, &link, &resolver)?;
    Ok(Daemon {
        hosts,
        late: Some(late),
        resolver,
        notify: Some(notify(&control, upstream)),
        states: Some(states(&workshop, &control)),
        private_state: Some(private_state(&link, &control)),
        proof: Arc::clone(&control.proof),
        workshop,
        archive_link: Some(link),
        shipper,
        service: Some((service, xrpc, admin)),
        control,
        health,
        applier_result,
        applier_thread: Mutex::new(Some(thread)),
    })
}

fn proof(config: &Config, workshop: &Workshop, temp_dir: PathBuf) -> Proof {
    Proof {
        store: Arc::clone(&workshop.store),
        numbers: Arc::clone(&workshop.fetcher.numbers),
        applier: workshop.applier.clone(),
        keeper: Arc::clone(&workshop.keeper),
        archive: Arc::clone(&workshop.archive),
        scrub_interval: config.scrub_interval,
        drill_interval: config.drill_interval,
        dev_mode: config.dev_mode,
        data_dir: config.data_dir.clone(),
        temp_dir,
        clock: workshop.clock.clone(),
        metrics: Arc::clone(&workshop.metrics),
        drilling: tokio::sync::Mutex::default(),
    }
}

fn private_state(link: &ArchiveLink, control: &DaemonControl) -> StateLink {
    StateLink {
        folder: link.config.state_drop.clone(),
        bucket: Arc::clone(&link.bucket),
        archive: Arc::clone(&control.archive),
        store: Arc::clone(&control.store),
        newest: Arc::clone(&control.private_state),
    }
}

fn states(workshop: &Workshop, control: &DaemonControl) -> States {
    States {
        store: Arc::clone(&control.store),
        keeper: Arc::clone(&control.keeper),
        shipper: Arc::clone(&control.shipper),
        archive: Arc::clone(&control.archive),
        hosts: workshop.urls.clone(),
        interval: control.config.snapshot_interval,
        clock: control.clock.clone(),
    }
}

fn must_follow(config: &Config) -> Result<(), DaemonError> {
    if config.hosts.is_empty() && config.sign_up != SignUps::Open {
        return Err(DaemonError::config(
            "no PDS to follow: give one with --host https://pds.example.com, or set hosts in firekeep.toml",
        ));
    }
    Ok(())
}

fn workshop(
    config: &Config,
    fetcher: &Fetcher,
    applier: &ApplierHandle,
    (keeper, archive): (&Arc<OnceLock<Arc<Keeper>>>, &Arc<ArchiveWatch>),
    metrics: &Arc<Metrics>,
) -> Workshop {
    Workshop {
        store: Arc::clone(&fetcher.store),
        applier: applier.clone(),
        fetcher: fetcher.clone(),
        blobs: BlobFetcher {
            store: Arc::clone(&fetcher.store),
            upstream: fetcher.upstream.clone(),
            clock: fetcher.clock.clone(),
            bytes_max: config.blob_bytes_max,
        },
        resolver: fetcher.resolver.clone(),
        keeper: Arc::clone(keeper),
        archive: Arc::clone(archive),
        sweep_interval: config.blob_sweep_interval,
        held_bytes_max: config.spool_bytes_max,
        urls: Arc::default(),
        clock: fetcher.clock.clone(),
        metrics: Arc::clone(metrics),
    }
}

/// What everything else stands on.
struct Base {
    upstream: Upstream,
    store: Arc<dyn Store>,
    temp_dir: PathBuf,
    xrpc: TcpListener,
    admin: TcpListener,
}

async fn open_base(config: &Config, clock: &Clock, take_over: bool) -> Result<Base, DaemonError> {
    let upstream = upstream(config, clock)?;
    let temp_dir = config.data_dir.join("tmp");
    let listeners = || {
        Ok::<_, DaemonError>((
            bind(config.listen, "listen")?,
            bind(config.admin_listen, "admin_listen")?,
        ))
    };
    // A mirror that is not there yet knows no host, and is not made for a mistake.
    let (store, (xrpc, admin)) = if RocksStore::is_in(&config.data_dir) {
        let store = open_store(&config.data_dir, &temp_dir)?;
        let listeners = listeners()?;
        probe_hosts(config, &upstream, Some(&*store)).await?;
        (store, listeners)
    } else {
        probe_hosts(config, &upstream, None).await?;
        let listeners = listeners()?;
        check_archive(config, take_over).await?;
        (open_store(&config.data_dir, &temp_dir)?, listeners)
    };
    Ok(Base {
        upstream,
        store,
        temp_dir,
        xrpc,
        admin,
    })
}

fn open_applier(config: &Config, store: &Arc<dyn Store>) -> Result<(Applier, Arc<Numbers>), DaemonError> {
    let numbers = Arc::new(Numbers::open(Arc::clone(store)).map_err(store_error)?);
    let limits = ApplierLimits {
        snapshot_interval: config.snapshot_interval,
        audit_interval: config.audit_interval,
        gone_percent: config.accounts_gone_percent,
        deleted_percent: config.records_gone_percent,
        spool_bytes_max: config.spool_bytes_max,
        ..ApplierLimits::default()
    };
    let mut applier = Applier::open(Arc::clone(store), Arc::clone(&numbers), limits).map_err(store_error)?;
    let orphans = applier.drop_orphans().map_err(store_error)?;
    if orphans > 0 {
        tracing::info!(orphans, "removed what an interrupted fetch had left");
    }
    for host in &config.hosts {
        let ensured = applier.ensure_host_within(&host.name, &host.url, config.follow);
        ensured.map_err(store_error)?;
    }
    Ok((applier, numbers))
}

pub(super) fn open_store(data_dir: &Path, temp_dir: &Path) -> Result<Arc<dyn Store>, DaemonError> {
    let store = RocksStore::open(data_dir, &RocksOptions::default()).map_err(store_error)?;
    // Left over from a process that was killed; nobody refers to it.
    if let Err(error) = std::fs::remove_dir_all(temp_dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(DaemonError::failed(format!(
            "cannot clear {}: {error}",
            temp_dir.display()
        )));
    }
    std::fs::create_dir_all(temp_dir)
        .map_err(|error| DaemonError::failed(format!("cannot make {}: {error}", temp_dir.display())))?;
    Ok(Arc::new(store))
}

/// The exit code of a store that cannot be opened or used.
#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
pub fn store_error(error: StoreError) -> DaemonError {
    let code = match error {
        StoreError::Locked { .. } => exit::OWNED,
        StoreError::NotWritable { .. } | StoreError::NotFound { .. } => exit::CONFIG,
        _ => exit::FAILED,
    };
    DaemonError {
        code,
        text: error.to_string(),
    }
}

fn bind(address: std::net::SocketAddr, setting: &'static str) -> Result<TcpListener, DaemonError> {
    serve::bind(address, setting).map_err(|error| DaemonError::config(error.to_string()))
}

type StartedApplier = (
    ApplierHandle,
    std::thread::JoinHandle<()>,
    watch::Receiver<Option<String>>,
);

fn start_applier(
    applier: Applier,
    clock: &Clock,
    metrics: &Arc<Metrics>,
) -> Result<StartedApplier, DaemonError> {
    let failed = |error: std::io::Error| DaemonError::failed(format!("cannot start a thread: {error}"));
    let (said, result) = watch::channel(None);
    let mut observer = observe::Observer::new(Arc::clone(metrics));
    let now = clock.clone();
    let watching = move |notes: &[_], totals: &_| observer.observe(notes, totals, now.now());
    let (handle, thread) = handle::start(applier, clock.clone(), watching).map_err(failed)?;
    let waiter = std::thread::Builder::new().name("applier-end".to_owned());
    let thread = waiter.spawn(move || {
        let reason = match thread.join() {
            Ok(Ok(())) => "the mirror's applier has stopped".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                "the mirror's applier failed; what was acknowledged is durable; please report this".to_owned()
            }
        };
        said.send_replace(Some(reason));
    });
    Ok((handle, thread.map_err(failed)?, result))
}

fn fetcher(
    store: &Arc<dyn Store>,
    numbers: Arc<Numbers>,
    (upstream, resolver, clock): (&Upstream, &Resolver, &Clock),
    spool_dir: PathBuf,
) -> Fetcher {
    Fetcher {
        store: Arc::clone(store),
        numbers,
        upstream: upstream.clone(),
        resolver: resolver.clone(),
        clock: clock.clone(),
        spool_dir,
        counts: Arc::default(),
        kept_car_bytes_max: KEPT_CAR_BYTES_MAX,
    }
}

fn follower(
    config: &Config,
    store: &Arc<dyn Store>,
    applier: &ApplierHandle,
    (upstream, metrics, clock): (&Upstream, &Arc<Metrics>, &Clock),
) -> (Follower, mpsc::UnboundedReceiver<Late>) {
    let configured = config
        .hosts
        .iter()
        .map(|host| (host.name.clone(), host.url.clone()));
    Follower::new(
        Arc::new(Hosts::new(configured.collect())),
        config.dev_mode,
        upstream.clone(),
        (Arc::clone(store), applier.clone()),
        (Arc::clone(metrics), clock.clone()),
    )
}

fn host_parts(config: &Config, follower: &Follower) -> Result<Vec<HostParts>, DaemonError> {
    let part = |host: &HostConfig| {
        let parts = follower.parts(&host.name, &host.url);
        parts.map_err(|error| DaemonError::config(format!("hosts = \"{}\": {error}", host.url)))
    };
    config.hosts.iter().map(part).collect()
}
