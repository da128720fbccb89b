#![allow(
    clippy::disallowed_methods,
    reason = "shell: owns every task, the clock and the disk"
)]
//! The daemon: build, run, close.
//!
//! [`start::build`] opens everything and refuses with one clear line what cannot be: nothing is followed before
//! data folder, ports, hosts and archive were looked at. [`run`] owns every task. Closing goes the way of the
//! data: stop reading, apply what was read, archive what is open, stop serving, close the store.

pub mod account_page;
pub mod archive_link;
pub mod archive_watch;
pub mod care;
pub mod cold_start;
pub mod control;
pub mod drill;
pub mod follow;
pub mod history;
pub mod hosts;
pub mod inspect;
pub mod manager;
pub mod notify;
pub mod observe;
pub mod offers;
pub mod overview;
pub mod probe;
pub mod progress;
pub mod proof;
pub mod protection;
pub mod readiness;
pub mod retain;
pub mod standing;
pub mod start;
pub mod state_link;
pub mod states;
pub mod supervise;
pub mod upstream;
pub mod work;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::control::DaemonControl;
use self::start::Daemon;
use self::supervise::Rhythm;
use crate::archive::shipper::{ShipError, Shipper};
use crate::cli::Said;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::labels::TaskLabel;
use crate::mirror::reader::Mirror;
use crate::serve::Readiness;

/// Time for applying what was read before a stop.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for archiving what is open before a stop.
const SHIP_TIMEOUT: Duration = Duration::from_secs(18);
/// Time for the last steps of a stop. All three together stay below the promised 30 s.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// Whether the archive is open is looked at this often.
const LINK_LOOK: Duration = Duration::from_millis(200);
/// How often sizes and lags are measured for metrics.
const GAUGE_INTERVAL: Duration = Duration::from_secs(5);

/// Exit codes, as documented.
pub mod exit {
    /// Something failed.
    pub const FAILED: u8 = 1;
    /// What was asked for makes no sense.
    pub const USAGE: u8 = 2;
    /// Done, but something is missing.
    pub const INCOMPLETE: u8 = 3;
    /// What is stored does not prove.
    pub const UNVERIFIED: u8 = 4;
    /// There is no backup of it.
    pub const NO_BACKUP: u8 = 10;
    /// Another process owns what is needed.
    pub const OWNED: u8 = 11;
    /// The configuration cannot be used.
    pub const CONFIG: u8 = 78;
    /// A second signal cut a stop short.
    pub const INTERRUPTED: u8 = 130;
}

/// Why the daemon did not start, or ended: a line for a person, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct DaemonError {
    /// The exit code.
    pub code: u8,
    /// What happened, to whom, and what to do.
    pub text: String,
}

impl DaemonError {
    fn config(text: impl Into<String>) -> Self {
        Self {
            code: exit::CONFIG,
            text: text.into(),
        }
    }

    fn failed(text: impl Into<String>) -> Self {
        Self {
            code: exit::FAILED,
            text: text.into(),
        }
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or the mirror fails.
pub async fn run(config: Config, said: Said) -> Result<(), DaemonError> {
    let mut terminate = listen_for(SignalKind::terminate())?;
    let mut interrupt = listen_for(SignalKind::interrupt())?;
    let daemon = tokio::select! {
        biased;
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        daemon = start::build(config, said, Clock::system()) => daemon?,
    };
    let running = Running::start(daemon);
    let ended = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = running.failed() => Some(error),
    };
    if ended.is_none() {
        tracing::info!("stopping: what was read is applied, what is open is archived");
    }
    tokio::select! {
        biased;
        () = running.close(ended.is_some()) => {}
        _ = terminate.recv() => return Err(interrupted()),
        _ = interrupt.recv() => return Err(interrupted()),
    }
    ended.map_or(Ok(()), Err)
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, DaemonError> {
    signal(kind).map_err(|error| DaemonError::failed(format!("cannot listen for signals: {error}")))
}

fn interrupted() -> DaemonError {
    let text = "stopped at once by a second signal; what was acknowledged is durable, the rest comes again"
        .to_owned();
    DaemonError {
        code: exit::INTERRUPTED,
        text,
    }
}

/// A task as it is spawned.
type Task = std::pin::Pin<Box<dyn Future<Output = Result<(), DaemonError>> + Send>>;

/// A daemon whose tasks run.
struct Running {
    daemon: Daemon,
    tasks: tokio::sync::Mutex<JoinSet<Result<(), DaemonError>>>,
    followers: tokio::sync::Mutex<JoinSet<Result<(), DaemonError>>>,
    /// No more reading from hosts.
    stop_reading: CancellationToken,
    /// No more new work but archiving.
    stop_work: CancellationToken,
    /// No more work at all.
    stop_archiving: CancellationToken,
    /// No more answers to callers.
    stop_serving: CancellationToken,
}

impl Running {
    #[expect(clippy::too_many_lines, reason = "one task after the other")]
    fn start(mut daemon: Daemon) -> Self {
        let token = CancellationToken::new;
        let running = (token(), token(), token(), token());
        let (stop_reading, stop_work, stop_archiving, stop_serving) = running;
        let mut tasks = JoinSet::new();
        let mut followers = JoinSet::new();

        let failed = |error: &dyn std::fmt::Display| DaemonError::failed(error.to_string());
        let supervisor = Arc::clone(&daemon.control.supervisor);
        let watch = |label, rhythm, told: &CancellationToken, task: Task| {
            let (supervisor, told) = (Arc::clone(&supervisor), told.clone());
            async move {
                supervisor
                    .watch(label, rhythm, told, task)
                    .await
                    .unwrap_or(Ok(()))
            }
        };

        for host in daemon.take_hosts() {
            let cancel = stop_reading.clone();
            let (subscriber, queue, start) = (host.subscriber, host.queue, host.start);
            let task = async move {
                subscriber.run(start, cancel).await;
                Ok(())
            };
            followers.spawn(watch(
                TaskLabel::Subscribe,
                Rhythm::Waits,
                &stop_reading,
                Box::pin(task),
            ));
            // Ends when the subscriber's queue does, so that what was read is handed over.
            let follow = Arc::new(host.follow);
            let task = async move {
                let done = follow.run(queue, CancellationToken::new()).await;
                done.map_err(|error| failed(&error))
            };
            followers.spawn(watch(
                TaskLabel::Follow,
                Rhythm::Waits,
                &stop_reading,
                Box::pin(task),
            ));
        }

        if let Some(late) = daemon.late.take() {
            followers.spawn(hosts::follow_late(late, stop_reading.clone()));
        }
        tasks.spawn(Arc::clone(&daemon.control).remove_when_due(stop_work.clone()));

        let (resolver, cancel) = (daemon.resolver.clone(), stop_work.clone());
        let task = async move {
            resolver.run(cancel).await;
            Ok(())
        };
        tasks.spawn(watch(
            TaskLabel::Resolve,
            Rhythm::Waits,
            &stop_work,
            Box::pin(task),
        ));
        let work = work::run(
            Arc::clone(&daemon.workshop),
            stop_work.clone(),
            stop_archiving.clone(),
        );
        let task = async move { work.await.map_err(|error| failed(&error)) };
        tasks.spawn(watch(
            TaskLabel::Work,
            Rhythm::Own,
            &stop_archiving,
            Box::pin(task),
        ));
        if let Some(link) = daemon.archive_link.take() {
            let task = link.run(stop_archiving.clone());
            tasks.spawn(watch(
                TaskLabel::ArchiveLink,
                Rhythm::Waits,
                &stop_archiving,
                Box::pin(task),
            ));
        }
        let task = ship(
            Arc::clone(&daemon.shipper),
            stop_work.clone(),
            stop_archiving.clone(),
        );
        let rhythm = if daemon.control.config.flush_interval < supervise::STALL_AFTER / 2 {
            Rhythm::Own
        } else {
            Rhythm::Waits
        };
        tasks.spawn(watch(TaskLabel::Ship, rhythm, &stop_archiving, Box::pin(task)));
        let (proof, cancel) = (Arc::clone(&daemon.proof), stop_work.clone());
        let task = async move { proof.run(cancel).await.map_err(|error| failed(&error)) };
        tasks.spawn(watch(TaskLabel::Prove, Rhythm::Own, &stop_work, Box::pin(task)));
        if let Some(states) = daemon.states.take() {
            let cancel = stop_archiving.clone();
            let task = async move { states.run(cancel).await.map_err(|error| failed(&error)) };
            tasks.spawn(watch(
                TaskLabel::States,
                Rhythm::Own,
                &stop_archiving,
                Box::pin(task),
            ));
        }
        if let Some(private) = daemon.private_state.take() {
            let cancel = stop_archiving.clone();
            tasks.spawn(async move { private.run(cancel).await });
        }
        if let Some((service, xrpc, admin)) = daemon.service.take() {
            let cancel = stop_serving.clone();
            let task = async move {
                service.run(xrpc, admin, cancel).await;
                Ok(())
            };
            tasks.spawn(watch(
                TaskLabel::Serve,
                Rhythm::Waits,
                &stop_serving,
                Box::pin(task),
            ));
        }
        let (retain, cancel) = (Arc::clone(&daemon.control.retain), stop_work.clone());
        let task = async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => retain.cancel.cancel(),
                () = Arc::clone(&retain).run() => {}
            }
            Ok(())
        };
        tasks.spawn(watch(
            TaskLabel::Retain,
            Rhythm::Waits,
            &stop_work,
            Box::pin(task),
        ));
        let task = measure(Arc::clone(&daemon.control), stop_serving.clone());
        tasks.spawn(watch(
            TaskLabel::Measure,
            Rhythm::Own,
            &stop_serving,
            Box::pin(task),
        ));
        if let Some(notify) = daemon.notify.take() {
            let cancel = stop_work.clone();
            let task = async move {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => Ok(()),
                    done = notify.run() => done.map_err(|error| failed(&error)),
                }
            };
            tasks.spawn(watch(TaskLabel::Notify, Rhythm::Own, &stop_work, Box::pin(task)));
        }
        // It has nothing to do once the mirror is filled.
        let (control, cancel) = (Arc::clone(&daemon.control), stop_work.clone());
        tasks.spawn(async move {
            progress::show(control, cancel).await;
            Ok(())
        });
        let (health, cancel) = (Arc::clone(&daemon.health), stop_serving.clone());
        tasks.spawn(async move {
            // Busy or without its archive it lives; a part that ended ends all of it.
            manager::watch(|| health.get() != Readiness::Starting, cancel).await;
            Ok(())
        });
        daemon.health.set(Readiness::Ready);
        manager::ready();
        Self {
            daemon,
            tasks: tokio::sync::Mutex::new(tasks),
            followers: tokio::sync::Mutex::new(followers),
            stop_reading,
            stop_work,
            stop_archiving,
            stop_serving,
        }
    }

    /// Resolves when a task ends that should not, or the applier does.
    async fn failed(&self) -> DaemonError {
        let (mut tasks, mut followers) = (self.tasks.lock().await, self.followers.lock().await);
        loop {
            let ended = tokio::select! {
                biased;
                reason = self.daemon.applier_ended() => return reason,
                Some(ended) = followers.join_next() => ended,
                Some(ended) = tasks.join_next() => ended,
            };
            match ended {
                // A subscriber or the archive's link may end when it has nothing left to do.
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    // The applier's own word, if it has one, says why.
                    return timeout(Duration::from_secs(1), self.daemon.applier_ended())
                        .await
                        .unwrap_or(error);
                }
                Err(panic) => {
                    return DaemonError::failed(format!(
                        "a part of Firekeep failed ({panic}); what was acknowledged is durable; please report this"
                    ));
                }
            }
        }
    }

    /// Closes in the order of the data's flow, each step within its time.
    async fn close(self, broken: bool) {
        self.daemon.health.set(Readiness::Stopping);
        manager::stopping();
        self.stop_reading.cancel();
        let mut followers = self.followers.into_inner();
        if timeout(APPLY_TIMEOUT, async {
            while followers.join_next().await.is_some() {}
        })
        .await
        .is_err()
        {
            tracing::warn!(
                "not all that was read could be applied in time; it comes again after the next start"
            );
            followers.abort_all();
        }
        self.stop_work.cancel();
        if !broken {
            match timeout(SHIP_TIMEOUT, self.daemon.control.drain()).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::warn!("not everything is archived: {why}"),
                Err(_) => tracing::warn!(
                    "not everything could be archived in time; it is done after the next start"
                ),
            }
        }
        self.stop_archiving.cancel();
        self.stop_serving.cancel();
        let mut tasks = self.tasks.into_inner();
        if timeout(CLOSE_TIMEOUT, async {
            while tasks.join_next().await.is_some() {}
        })
        .await
        .is_err()
        {
            tasks.abort_all();
        }
        self.daemon.close(CLOSE_TIMEOUT / 2).await;
        tracing::info!("stopped");
    }
}

/// Ships the log, from when the archive is open.
async fn ship(
    shipper: Arc<OnceLock<Arc<Shipper>>>,
    hurry: CancellationToken,
    cancel: CancellationToken,
) -> Result<(), DaemonError> {
    let shipper = loop {
        if let Some(shipper) = shipper.get() {
            break Arc::clone(shipper);
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            () = sleep(LINK_LOOK) => {}
        }
    };
    shipper.run(hurry, cancel).await.map_err(|error| {
        let code = match error {
            ShipError::Superseded(_) | ShipError::Copied(_) => exit::OWNED,
            ShipError::Store(_) | ShipError::Stopped(_) => exit::FAILED,
        };
        DaemonError {
            code,
            text: error.to_string(),
        }
    })
}

/// Keeps gauges up to date that nobody else sets.
async fn measure(control: Arc<DaemonControl>, cancel: CancellationToken) -> Result<(), DaemonError> {
    loop {
        let this = Arc::clone(&control);
        let measured = tokio::task::spawn_blocking(move || this.measure()).await;
        match measured {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(DaemonError::failed(error.to_string())),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            () = sleep(GAUGE_INTERVAL) => {}
        }
    }
}

/// The hosts that the mirror knows, for commands that need no daemon.
///
/// # Errors
/// When the mirror cannot be read.
pub fn known_hosts(
    view: &dyn crate::mirror::store::View,
) -> Result<Vec<(crate::types::HostName, crate::mirror::rows::HostRow)>, crate::mirror::store::StoreError> {
    Mirror::new(view).hosts()
}
