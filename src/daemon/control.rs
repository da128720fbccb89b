#![allow(clippy::disallowed_methods, reason = "shell: waits and reads the clock")]
//! What the daemon tells of itself, and what it can be asked to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};

use super::archive_watch::ArchiveWatch;
use super::care::Forget;
use super::drill::Options;
use super::history::History;
use super::hosts::Follower;
use super::inspect::parse_alarm;
use super::proof::Proof;
use super::retain::Retain;
use super::standing::{Standing, Surroundings};
use super::state_link::Newest;
use super::supervise::Supervisor;

use crate::archive::keeper::Keeper;
use crate::archive::shipper::Shipper;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::metrics::labels::{CatchUpResult, Outcome, RepoPart, SeqStage};
use crate::mirror::applier::Totals;
use crate::mirror::handle::ApplierHandle;
use crate::mirror::input::Input;
use crate::mirror::reader::Mirror;
use crate::mirror::resync::Fetcher;
use crate::mirror::rows::{Listing, SyncState};
use crate::mirror::store::{Store, StoreError};
use crate::serve::{Control, Controlled};
use crate::types::{Did, Rev};

/// Between two looks at work that is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Snapshots that do not come on count as stuck after this long.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// What commands and the status need.
pub struct DaemonControl {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// Restores for a trial.
    pub proof: Arc<Proof>,
    /// Fetches what is compared.
    pub fetcher: Fetcher,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The clock.
    pub clock: Clock,
    /// There while the archive is open.
    pub keeper: Arc<OnceLock<Arc<Keeper>>>,
    /// There while the archive is open.
    pub shipper: Arc<OnceLock<Arc<Shipper>>>,
    /// What the newest look at the archive found.
    pub archive: Arc<ArchiveWatch>,
    /// Prunes and erases.
    pub retain: Arc<Retain>,
    /// Follows hosts.
    pub follower: Follower,
    /// Watches the tasks.
    pub supervisor: Arc<Supervisor>,
    /// What the last day was like.
    pub history: Mutex<History>,
    /// What is known of private state.
    pub private_state: Arc<Newest>,
    /// The configuration in force.
    pub config: Config,
    /// Where XRPC listens.
    pub listen: SocketAddr,
    /// Where this is answered.
    pub admin_listen: SocketAddr,
}

impl DaemonControl {
    /// Where the backup stands.
    #[must_use]
    pub fn standing(&self, totals: &Totals) -> Standing {
        Standing::judge(
            totals,
            &Surroundings {
                listed: self.hosts_listed().unwrap_or(false),
                archive_is_folder: self.config.archive.url.is_folder(),
                archive_works: self.archive_works(),
            },
        )
    }

    /// Whether the archive is open, and took what was last put there.
    pub(super) fn archive_works(&self) -> bool {
        let (keeper, shipper) = (self.keeper.get(), self.shipper.get());
        keeper.is_some_and(|keeper| !keeper.is_failing())
            && shipper.is_some_and(|shipper| !shipper.is_failing())
            && self.archive.is_good()
    }

    pub(super) fn hosts_listed(&self) -> Result<bool, StoreError> {
        let hosts = Mirror::new(&*self.store).hosts()?;
        Ok(self.follower.hosts.all().keys().all(|followed| {
            let row = hosts.iter().find(|(name, _)| name == followed);
            row.is_some_and(|(_, row)| matches!(row.listing, Listing::Finished { .. }))
        }))
    }

    /// Whether every account was fetched at least once, or failed to be.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        let mut waiting = false;
        let scanned = Mirror::new(&*self.store).each_account(|_, row| {
            waiting = matches!(row.sync, SyncState::Wanted { tries: 0, .. }) && row.upstream.is_active();
            if waiting {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let totals = self.applier.totals();
        let wanted_blobs = totals.blobs.get("wanted").copied().unwrap_or(0);
        scanned.is_ok() && !waiting && wanted_blobs == 0 && self.hosts_listed().unwrap_or(false)
    }

    /// Sets the gauges that are measured from time to time.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn measure(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let stats = self.store.stats();
        self.metrics
            .mirror_bytes
            .set(i64::try_from(stats.disk_bytes).unwrap_or(i64::MAX));
        if let Ok(free) = free_bytes(&self.config.data_dir) {
            self.metrics
                .data_dir_free
                .set(i64::try_from(free).unwrap_or(i64::MAX));
        }
        let looks = self.fetcher.resolver.counts();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (outcome, total) in [
            (Outcome::Ok, count(&looks.fetched)),
            (
                Outcome::Error,
                count(&looks.failed_transient) + count(&looks.failed_lasting),
            ),
        ] {
            let shown = self.metrics.identity_fetches.of(outcome);
            shown.inc_by(total.saturating_sub(shown.get()));
        }
        let fetched = &self.fetcher.counts;
        for (shown, total) in [
            (
                self.metrics.catch_ups.of(CatchUpResult::CaughtUp),
                &fetched.caught_up,
            ),
            (
                self.metrics.catch_ups.of(CatchUpResult::FellBack),
                &fetched.fell_back,
            ),
            (self.metrics.repo_bytes.of(RepoPart::Newer), &fetched.since_bytes),
            (self.metrics.repo_bytes.of(RepoPart::Whole), &fetched.whole_bytes),
        ] {
            shown.inc_by(count(total).saturating_sub(shown.get()));
        }
        for (name, row) in Mirror::new(&*self.store).hosts()? {
            let host = self.metrics.host(&name);
            let cursor = row.cursor.unwrap_or(0);
            host.last_seq
                .of(SeqStage::Applied)
                .set(i64::try_from(cursor).unwrap_or(i64::MAX));
            let received = u64::try_from(host.last_seq.of(SeqStage::Received).get()).unwrap_or(0);
            let behind = received > cursor;
            let lag = row
                .last_event
                .filter(|_| behind)
                .map_or(0.0, |at| now.since(at).as_secs_f64());
            host.replication_lag.set(lag);
            if let Some(at) = row.sweep.and_then(|mark| mark.finished) {
                host.blob_sweep.set(at.seconds_f64());
            }
            if let Some(at) = row.last_event {
                host.last_event.set(at.seconds_f64());
            }
        }
        self.look_at_all(now)
    }

    /// The status as data.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn report(&self) -> Result<Value, StoreError> {
        let totals = self.applier.totals();
        let standing = self.standing(&totals);
        let now = self.clock.now();
        let mut hosts = Vec::new();
        for (name, row) in Mirror::new(&*self.store).hosts()? {
            let Some(url) = self.follower.hosts.get(&name) else {
                continue;
            };
            hosts.push(json!({
                "host": name.as_str(),
                "url": url,
                "follow": row.scope.label(),
                "connected": self.metrics.host(&name).connected.get() == 1,
                "cursor": row.cursor,
                "highest_seq": row.highest_seq,
                "epoch": row.epoch,
                "listed": matches!(row.listing, Listing::Finished { .. }),
                "last_event": row.last_event.map(|at| at.to_string()),
                "active": totals.active.get(&name),
                "lag_seconds": self.metrics.host(&name).replication_lag.get(),
                "off_machine_seconds": self.metrics.host(&name).undurable_age.get(),
                "away_seconds": self.away_for(&name, now).map(|away| away.as_secs_f64()),
            }));
        }
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now": now.to_string(),
            "up_seconds": self.up(now).as_secs_f64(),
            "protection": self.protection(&totals, now).json(),
            "off_machine_seconds": self.metrics.log_oldest.get(),
            "proof": self.proof_json(),
            "disk": {
                "free": self.metrics.data_dir_free.get(),
                "mirror": self.metrics.mirror_bytes.get(),
            },
            "bill": self.bill_json(now),
            "standing": standing.name(),
            "summary": standing.sentence(),
            "private_state": self.private_state.json(self.config.state_drop.is_some()),
            "hosts": hosts,
            "alarms": self.open_alarms()?,
            "accounts": {
                "by_status": totals.accounts,
                "by_sync": totals.sync,
                "held": totals.with_head,
                "records": totals.records,
                "record_bytes": totals.record_bytes,
                "parked_events": totals.parked,
            },
            "blobs": {
                "by_state": totals.blobs,
                "stored_bytes": totals.blob_bytes,
                "withheld": totals.blobs_withheld,
            },
            "archive": {
                "url": self.config.archive.url.to_string(),
                "on_this_machine": self.config.archive.url.is_folder(),
                "open": self.archive_works(),
                "accounts_archived": totals.archived,
                "accounts_due": totals.with_head.saturating_sub(totals.archived),
                "changes_due": totals.unshipped,
                "changes_due_bytes": totals.unshipped_bytes,
                "blobs_due_bytes": totals.held_bytes,
                "spool_bytes_max": self.config.spool_bytes_max,
                "accounts_unlogged": totals.unlogged,
                "trouble": self.archive.trouble(),
                "keeps_others_out": self.keeper.get().map(|keeper| keeper.bucket.create_only_is_atomic()),
            },
            "data_dir": self.config.data_dir.display().to_string(),
            "xrpc": format!("http://{}/", self.listen),
            "metrics": format!("http://{}/metrics", self.admin_listen),
        }))
    }

    /// Restores some accounts for a trial.
    async fn drill(&self, query: &BTreeMap<String, String>) -> Result<Value, String> {
        let number = |key: &str| query.get(key).and_then(|text| text.parse::<u64>().ok());
        let options = Options {
            accounts: usize::try_from(number("accounts").unwrap_or(5)).unwrap_or(usize::MAX),
            seed: number("seed").unwrap_or_else(|| self.clock.random() >> 12),
        };
        let done = self.proof.drill(options).await;
        let report = done.map_err(|error| error.to_string())?;
        let report = report.map_err(|error| error.to_string())?;
        Ok(json!({ "good": report.is_good(), "text": report.text(), "report": report }))
    }

    /// Alarms that nobody has acknowledged.
    fn open_alarms(&self) -> Result<usize, StoreError> {
        let alarms = Mirror::new(&*self.store).alarms()?;
        Ok(alarms
            .iter()
            .filter(|(_, row)| row.acknowledged.is_none())
            .count())
    }

    /// Waits until every change and every held blob is in the archive.
    ///
    /// # Errors
    /// When the archive is not open, or makes no progress.
    pub async fn drain(&self) -> Result<(), String> {
        if self.keeper.get().is_none() {
            return Err("the archive is not open".to_owned());
        }
        let (mut least, mut since) = (u64::MAX, self.clock.now());
        loop {
            let totals = self.applier.totals();
            let held = totals.blobs.get("held").copied().unwrap_or(0);
            let accounts = totals.with_head.saturating_sub(totals.archived);
            let left = totals.unshipped + held + accounts + totals.open_cars;
            if left == 0 {
                return Ok(());
            }
            if left < least {
                (least, since) = (left, self.clock.now());
            } else if self.clock.now().since(since) > STUCK_AFTER {
                return Err(format!(
                    "{accounts} accounts, {} changes, {held} blobs and {} quarantined repositories are not archived: the \
                     archive takes nothing",
                    totals.unshipped, totals.open_cars
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Archives every head that is not there, and every held blob. Returns how many accounts were snapshotted.
    ///
    /// # Errors
    /// When the archive is not open, or makes no progress.
    pub async fn ship(&self) -> Result<u64, String> {
        if self.keeper.get().is_none() {
            return Err("the archive is not open".to_owned());
        }
        if !self.archive.may_write() {
            return Err("the archive is gone, refuses, or is another one; the log says which".to_owned());
        }
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        self.applier
            .apply(Input::SnapshotAll)
            .await
            .map_err(|error| failed(&error))?;
        // Accounts may be many: no scan of them holds up what else this thread does.
        let mut open = self
            .blocking(|mirror| behind(&mirror))
            .await
            .map_err(|error| failed(&error))?;
        let count = open.len() as u64;
        let (mut least, mut since) = (usize::MAX, self.clock.now());
        loop {
            open = self
                .blocking(|mirror| still_behind(&mirror, open))
                .await
                .map_err(|error| failed(&error))?;
            let held = self.applier.totals().blobs.get("held").copied().unwrap_or(0);
            let left = open.len() + usize::try_from(held).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(count);
            }
            if left < least {
                (least, since) = (left, self.clock.now());
            } else if self.clock.now().since(since) > STUCK_AFTER {
                return Err(format!(
                    "{} accounts and {held} blobs are not archived: the archive takes nothing",
                    open.len()
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads the mirror on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(Mirror<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || read(Mirror::new(&*store)));
        read.await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

/// Those of them whose snapshots are not at that rev yet.
fn still_behind(mirror: &Mirror<'_>, mut open: Vec<(Did, Rev)>) -> Result<Vec<(Did, Rev)>, StoreError> {
    let mut error = None;
    open.retain(|(did, rev)| match mirror.account(did) {
        Ok(row) => row
            .and_then(|row| row.snapshot)
            .is_none_or(|mark| mark.rev < *rev),
        Err(why) => {
            error = Some(why);
            false
        }
    });
    error.map_or(Ok(open), Err)
}

/// Accounts whose head is not in the archive, and the rev that has to get there.
fn behind(mirror: &Mirror<'_>) -> Result<Vec<(Did, Rev)>, StoreError> {
    let mut behind = Vec::new();
    mirror.each_account(|did, row| {
        if !row.is_snapshotted()
            && let Some(head) = &row.head
        {
            behind.push((did, head.rev));
        }
        ControlFlow::Continue(())
    })?;
    Ok(behind)
}

/// Free bytes of the file system that holds a folder, from `df`'s own source: the kernel's statistics.
fn free_bytes(path: &std::path::Path) -> std::io::Result<u64> {
    let stats = rustix::fs::statvfs(path)?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

impl Control for DaemonControl {
    fn ask<'a>(&'a self, name: &str, query: BTreeMap<String, String>) -> Option<Controlled<'a>> {
        let text = |error: StoreError| error.to_string();
        Some(match name {
            "status" => Box::pin(async move { self.report().map_err(text) }),
            "overview" => Box::pin(async move { self.overview().map_err(text) }),
            "account" => Box::pin(async move {
                let did = query.get("did").map(String::as_str).unwrap_or_default();
                let did: Did = did.parse().map_err(|error| format!("{did:?} is {error}"))?;
                self.account_page(&did).await
            }),
            "accounts" => Box::pin(async move {
                self.accounts(query.get("after").map(String::as_str))
                    .map_err(text)
            }),
            "alarms" => Box::pin(async move { self.alarms().map_err(text) }),
            "about" => Box::pin(async move { Ok(self.about()) }),
            "followed" => Box::pin(async move { self.is_followed(&query) }),
            "diff" => Box::pin(async move {
                let did = query.get("did").map(String::as_str).unwrap_or_default();
                let did: Did = did.parse().map_err(|error| format!("{did:?} is {error}"))?;
                self.diff_live(&did).await
            }),
            _ => return None,
        })
    }

    fn command<'a>(&'a self, name: &str, query: BTreeMap<String, String>) -> Option<Controlled<'a>> {
        Some(match name {
            "snapshot" => Box::pin(async move {
                let accounts = self.ship().await?;
                Ok(json!({ "accounts": accounts, "archive": self.config.archive.url.to_string() }))
            }),
            "prune" => Box::pin(async move { self.retain.prune_now().await }),
            "forget" => Box::pin(async move {
                let value = |key: &str| query.get(key).map(String::as_str).unwrap_or_default();
                let forget = Forget::parse(value("subject"), Some(value("account")))?;
                // Only what is plainly not a dry run erases.
                let dry_run = value("dry_run") != "false";
                let by = value("by").to_owned();
                self.retain.forget(forget, by, dry_run).await
            }),
            "drill" => Box::pin(async move { self.drill(&query).await }),
            "follow" | "unfollow" | "sign-up" | "removal" | "snapshot-account" | "pin" | "unpin" => {
                let name = name.to_owned();
                Box::pin(async move { self.offer(&name, &query).await })
            }
            "break-task" if self.config.dev_mode => Box::pin(async move { self.break_task(&query) }),
            "acknowledge" => Box::pin(async move {
                let alarm = parse_alarm(&query).ok_or_else(|| "no alarm is named like that".to_owned())?;
                let by = query.get("by").cloned().unwrap_or_else(|| "an admin".to_owned());
                let acknowledge = Input::Acknowledge { alarm, by };
                self.applier
                    .apply(acknowledge)
                    .await
                    .map_err(|error| error.to_string())?;
                self.alarms().map_err(|error| error.to_string())
            }),
            _ => return None,
        })
    }
}
