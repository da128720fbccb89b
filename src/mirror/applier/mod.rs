//! The applier: the one owner of the mirror's rows.
//!
//! Takes a group of [`Input`]s in order, stages one atomic batch for all of them — records, account rows,
//! journal, blob wants, tasks **and each host's cursor** — and writes it with one sync. Nothing here waits
//! for the network, reads a clock or draws a random number, so the same inputs on the same store give the
//! same batch.
//!
//! Never does: verify (that is `verify`'s, which alone makes the proofs it takes), fetch, or delete the
//! last good copy of anything because a host said so.

mod alarms;
mod asked;
#[cfg(test)]
mod asked_tests;
mod behind;
mod blobs;
#[cfg(test)]
mod blob_tests;
mod commit;
mod connected;
mod erased;
#[cfg(test)]
mod erased_tests;
#[cfg(test)]
mod crash_tests;
pub mod epochs;
mod events;
mod fetched;
mod gates;
mod generations;
mod gone;
mod listing;
mod log;
pub mod note;
#[cfg(test)]
mod rollback_tests;
mod moved;
#[cfg(test)]
pub(crate) mod moved_tests;
mod quarantine;
pub mod restored;
#[cfg(test)]
mod restored_tests;
mod snapshots;
mod stage;
#[cfg(test)]
mod standing_tests;
#[cfg(test)]
pub(crate) mod tests;
mod totals;
#[cfg(test)]
mod waiting_tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

pub use note::Note;
pub use totals::Totals;

use self::stage::Stage;
use super::erased::ErasedMark;
use super::input::Input;
use super::keyspace::{self, Task};
use super::numbers::Numbers;
use super::rows::{AccountRow, DesyncReason, HostRow, Scope, SyncState};
use super::store::{Family, KeyRange, Store, StoreError};
use crate::types::{Did, HostName, Rev, Timestamp};

/// Bounds of the applier's work. Reaching one is a normal case.
#[derive(Debug, Clone, Copy)]
pub struct ApplierLimits {
    /// Frames parked for one account, at most.
    pub parked_frames_max: u64,
    /// Bytes of frames parked for one account, at most.
    pub parked_bytes_max: u64,
    /// Accounts whose rows are kept in memory.
    pub cached_accounts_max: usize,
    /// A batch is written when it has grown to this many bytes.
    pub batch_bytes: usize,
    /// An account that changes is snapshotted at most this often.
    pub snapshot_interval: Duration,
    /// An account is snapshotted this long after it changed, at the latest; or sooner, when its journal has grown
    /// to one of the next two.
    pub snapshot_latest: Duration,
    /// Changes in the journal.
    pub snapshot_changes: u64,
    /// Bytes of the journal.
    pub snapshot_bytes: u64,
    /// Up to so many records an account's tree is rebuilt, or a record looked for, to judge one commit: half a
    /// microsecond a record, and a read of the row, while the others wait. Beyond it is fetched.
    pub rebuild_records_max: u64,
    /// And so many for all commits that are applied in one go, such as those that waited for a fetch.
    pub rebuild_records_per_group_max: u64,
    /// A host's accounts are listed again this long after the last listing: for what its stream never said.
    pub listing_interval: Duration,
    /// An account is compared with its host this often.
    pub audit_interval: Duration,
    /// When this share of a host's accounts goes off or vanishes within a day, an alarm is raised.
    pub gone_percent: u64,
    /// When this share of an account's records goes within a day, an alarm is raised, and what was is pinned.
    pub deleted_percent: u64,
    /// When so many bytes wait to be shipped, no more changes are queued.
    pub spool_bytes_max: u64,
}

impl Default for ApplierLimits {
    fn default() -> Self {
        Self {
            parked_frames_max: 2048,
            parked_bytes_max: 16 << 20,
            cached_accounts_max: 20_000,
            batch_bytes: 4 << 20,
            snapshot_interval: Duration::from_secs(3600),
            snapshot_latest: Duration::from_secs(7 * 24 * 3600),
            snapshot_changes: 1000,
            snapshot_bytes: 4 << 20,
            rebuild_records_max: 200_000,
            rebuild_records_per_group_max: 2_000_000,
            listing_interval: Duration::from_secs(6 * 3600),
            audit_interval: Duration::from_secs(24 * 3600),
            gone_percent: 10,
            deleted_percent: 50,
            spool_bytes_max: 10 << 30,
        }
    }
}

/// What a group of inputs led to, once it is durable.
#[derive(Debug)]
pub struct Outcome {
    /// What happened, in order.
    pub notes: Vec<Note>,
    /// Whether tasks were added.
    pub tasks: bool,
}

/// The applier's state: all of it can be read again from the store.
pub struct Applier {
    store: Arc<dyn Store>,
    numbers: Arc<Numbers>,
    limits: ApplierLimits,
    cache: HashMap<Did, AccountRow>,
    totals: Totals,
    next_arrival: u64,
    next_log: u64,
    /// The accounts that the listing under way has named, by host: DID numbers. A listing that was taken up in
    /// the middle has none.
    listed: BTreeMap<HostName, BTreeSet<u64>>,
    /// When what waits for a host was last taken up again because it connected.
    woken: BTreeMap<HostName, Timestamp>,
}

/// What the steps of one group share.
struct Group<'a> {
    stage: Stage<'a>,
    now: Timestamp,
    notes: Vec<Note>,
    /// Records that were read to judge commits.
    rebuilt: u64,
    /// Accounts that went off or vanished in this step.
    gone: Vec<Did>,
    /// So much waits for the archive that no more changes are queued.
    outbox_full: bool,
}

impl Applier {
    /// Opens the applier on a store: counts its rows.
    ///
    /// # Errors
    /// When the store cannot be read, or a row cannot.
    pub fn open(
        store: Arc<dyn Store>,
        numbers: Arc<Numbers>,
        limits: ApplierLimits,
    ) -> Result<Self, StoreError> {
        let totals = totals::count(&*store)?;
        let next_arrival = next_arrival(&*store)?;
        let next_log = log::next_log(&*store)?;
        Ok(Self {
            store,
            numbers,
            limits,
            cache: HashMap::new(),
            totals,
            next_arrival,
            next_log,
            listed: BTreeMap::new(),
            woken: BTreeMap::new(),
        })
    }

    /// Totals over all rows, as of the last durable batch.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Makes sure that a host has a row. Durable when it returns.
    ///
    /// # Errors
    /// When the store fails.
    pub fn ensure_host(&mut self, host: &HostName, url: &str) -> Result<HostRow, StoreError> {
        self.ensure_host_within(host, url, Scope::All)
    }

    /// The same of a host of which perhaps only some accounts are followed.
    ///
    /// # Errors
    /// When the store fails.
    pub fn ensure_host_within(
        &mut self,
        host: &HostName,
        url: &str,
        scope: Scope,
    ) -> Result<HostRow, StoreError> {
        let store = Arc::clone(&self.store);
        let mut stage = Stage::new(&*store);
        let row = match stage.host(host)? {
            Some(row) if row.url == url && row.scope == scope => return Ok(row),
            Some(mut row) => {
                url.clone_into(&mut row.url);
                // What was passed over is listed when the host connects.
                asked::set_scope(&mut row, scope);
                row
            }
            None => HostRow {
                scope,
                ..HostRow::new(url)
            },
        };
        stage.put_host(host, row.clone());
        self.write(stage)?;
        Ok(row)
    }

    /// Applies inputs in order; everything is durable when it returns.
    ///
    /// # Errors
    /// When the store fails or is damaged. Then a prefix of the inputs is durable, and the applier must not
    /// be used again.
    pub fn apply(&mut self, inputs: Vec<Input>, now: Timestamp) -> Result<Outcome, StoreError> {
        let store = Arc::clone(&self.store);
        let mut group = Group {
            stage: Stage::new(&*store),
            now,
            notes: Vec::new(),
            rebuilt: 0,
            gone: Vec::new(),
            outbox_full: self.is_outbox_full(),
        };
        let mut tasks = false;
        for input in inputs {
            // Inputs that read ranges must not miss what this group has staged.
            if needs_own_batch(&input) || group.stage.bytes() >= self.limits.batch_bytes {
                let full = std::mem::replace(&mut group.stage, Stage::new(&*store));
                tasks |= self.write(full)?;
                group.outbox_full = self.is_outbox_full();
            }
            self.step(&mut group, input)?;
            self.count_gone(&mut group)?;
        }
        tasks |= self.write(group.stage)?;
        Ok(Outcome {
            notes: group.notes,
            tasks,
        })
    }

    fn step(&mut self, group: &mut Group<'_>, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Event(event) => self.on_event(group, event),
            Input::Gap { host, gap } => self.on_gap(group, &host, gap),
            Input::Listed(page) => self.on_listed(group, page),
            Input::Fetched(fetched) => self.on_fetched(group, *fetched),
            Input::FetchFailed {
                did,
                host,
                failure,
                asked_at,
                task,
                retry_at,
            } => self.on_fetch_failed(group, &did, &host, &failure, asked_at, (&task, retry_at)),
            Input::Identity {
                did,
                resolved,
                task,
                retry_at,
            } => self.on_identity(group, &did, resolved, &task, retry_at),
            Input::BlobStored {
                blob,
                size,
                mime,
                task,
            } => self.on_blob_stored(group, &blob, size, mime, &task),
            Input::BlobFailed {
                blob,
                failure,
                task,
                retry_at,
            } => self.on_blob_failed(group, &blob, failure, &task, retry_at),
            Input::Asked(ask) => self.on_asked(group, ask),
            Input::Erase(erase) => self.on_erase(group, &erase),
            Input::BlobDropped { blob, before } => self.on_blob_dropped(group, &blob, before),
            Input::BlobLost { blob, task } => self.on_blob_lost(group, &blob, &task),
            Input::BlobArchived { blob, task } => self.on_blob_archived(group, &blob, &task),
            Input::BlobsListed {
                did,
                digests,
                complete,
            } => self.on_blobs_listed(group, &did, &digests, complete),
            Input::BlobsSwept {
                host,
                verdicts,
                mark,
                task,
            } => self.on_blobs_swept(group, &host, verdicts, mark, &task),
            Input::BlobAsked { host, verdict, task } => {
                group.stage.delete_task(&task);
                self.on_blob_verdict(group, &host, &verdict).map(drop)
            }
            Input::Connected { host } => self.on_connected(group, &host),
            Input::Audited {
                did,
                host,
                status,
                head,
                asked_at,
                task,
            } => self.on_audited(group, &did, &host, (status, head), asked_at, &task),
            Input::Acknowledge { alarm, by } => Self::on_acknowledged(group, &alarm, by),
            Input::ArchiveLinked { id } => self.on_archive_linked(group, &id),
            Input::CarArchived { did, number, task } => self.on_car_archived(group, &did, number, &task),
            archived @ Input::IdentityArchived { .. } => self.on_identity_archived(group, archived),
            Input::Restored(restored) => self.on_restored(group, *restored),
            Input::Refilled(refilled) => self.on_refilled(group, *refilled),
            Input::CarDamaged { did, number, task } => self.on_car_damaged(group, &did, number, &task),
            Input::SnapshotStored(stored) => self.on_snapshot_stored(group, &stored),
            Input::SegmentCut { first, last } => Self::on_segment_cut(group, first, last),
            Input::SegmentShipped(shipped) => self.on_segment_shipped(group, &shipped),
            Input::LogClaimed(log) => Self::on_log_claimed(group, &log),
            Input::SnapshotAll => self.on_snapshot_all(group),
            Input::OwnAlarm { kind, message } => Self::raise_own(group, kind, message),
            Input::HostAlarm { host, kind, message } => Self::raise_at(group, &host, kind, message),
            Input::ArchiveLost { did, blob } => self.on_archive_lost(group, &did, blob),
            Input::Damaged {
                did,
                account_number,
                task,
            } => self.on_damaged(group, &did, account_number, &task),
            Input::TaskDone { task } => {
                group.stage.delete_task(&task);
                Ok(())
            }
            Input::TaskDelayed { key, task, retry_at } => {
                group.stage.delete_task(&key);
                group.stage.put_task(retry_at, &task);
                Ok(())
            }
        }
    }

    /// Writes a stage durably and takes its rows into the cache. Returns whether it added tasks.
    fn write(&mut self, stage: Stage<'_>) -> Result<bool, StoreError> {
        let finished = stage.finish(self.totals.clone(), &mut self.next_log);
        if !finished.batch.is_empty() {
            self.store.write_durable(finished.batch)?.into_inner();
        }
        self.totals = finished.totals;
        if self.cache.len() + finished.accounts.len() > self.limits.cached_accounts_max {
            self.cache.clear();
        }
        self.cache.extend(finished.accounts);
        Ok(finished.tasks)
    }

    const fn is_outbox_full(&self) -> bool {
        self.totals.unshipped_bytes >= self.limits.spool_bytes_max
    }

    /// An account's row.
    fn account(&self, group: &mut Group<'_>, did: &Did) -> Result<Option<AccountRow>, StoreError> {
        group.stage.account(did, || self.cache.get(did).cloned())
    }

    /// An account's row; a new one, to be fetched, if there is none.
    fn account_or_new(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
    ) -> Result<AccountRow, StoreError> {
        let scope = match group.stage.host(host)? {
            Some(row) => row.scope,
            None => Scope::All,
        };
        if let Some(mut row) = self.account(group, did)? {
            if row.unfollowed && scope == Scope::All {
                // It was passed over, there or at another host.
                row.host = host.clone();
                Self::follow_now(group, did, &mut row);
                group.stage.put_account(did, row.clone());
            }
            return Ok(row);
        }
        let mut row = AccountRow::new(self.numbers.next()?, host.clone(), group.now);
        let erased = super::reader::Mirror::new(group.stage.store()).erased(did)?;
        row.erased = erased.map(|erased| erased.mark());
        if row.erased == Some(ErasedMark::Whole) {
            row.sync = SyncState::Live;
            group.stage.put_account(did, row.clone());
            return Ok(row);
        }
        if scope == Scope::Listed {
            (row.unfollowed, row.sync) = (true, SyncState::Live);
            group.stage.put_account(did, row.clone());
            return Ok(row);
        }
        group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
        group.stage.put_account(did, row.clone());
        Ok(row)
    }

    /// Marks an account as one to be fetched, unless it is already.
    fn want(
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        reason: DesyncReason,
        least_rev: Option<Rev>,
    ) {
        // Kept whatever state the account is in: only other rows put it right.
        row.damaged |= reason == DesyncReason::CopyDamaged;
        row.min_rev = row.min_rev.max(least_rev);
        if row.erased == Some(ErasedMark::Whole) || row.unfollowed {
            return;
        }
        // What moved away cannot be fetched here.
        if let SyncState::Moved { .. } = row.sync {
            return;
        }
        if let SyncState::Quarantined { .. } = row.sync {
            Self::want_quarantined(group, did, row, reason);
            return;
        }
        if let SyncState::Wanted { reason: known, .. } = &mut row.sync {
            // A damaged copy is not put right by the host's head being ours: it has to be fetched whole.
            if reason == DesyncReason::CopyDamaged {
                *known = reason;
            }
            return;
        }
        row.diverged_before_fetch |= matches!(row.sync, SyncState::Diverged { .. });
        row.sync = SyncState::Wanted {
            reason,
            since: group.now,
            tries: 0,
        };
        group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
        group.notes.push(Note::Desynchronized {
            did: did.clone(),
            reason,
        });
    }
}

const fn needs_own_batch(input: &Input) -> bool {
    matches!(
        input,
        Input::Fetched(_)
            | Input::Identity { .. }
            | Input::BlobFailed { .. }
            | Input::Connected { .. }
            | Input::SnapshotStored(_)
            | Input::SnapshotAll
            | Input::SegmentCut { .. }
            | Input::SegmentShipped(_)
            | Input::LogClaimed(_)
            | Input::Restored(_)
            | Input::Refilled(_)
            | Input::ArchiveLinked { .. }
            | Input::Erase(_)
            | Input::BlobDropped { .. }
    )
}

/// One past the highest arrival of any parked frame.
fn next_arrival(store: &dyn Store) -> Result<u64, StoreError> {
    let mut next = 1;
    let mut bad = None;
    store.scan(
        Family::Parked,
        &KeyRange::all(),
        &mut |key, _| match keyspace::decode_parked(key) {
            Ok((_, arrival)) => {
                next = next.max(arrival.saturating_add(1));
                ControlFlow::Continue(())
            }
            Err(error) => {
                bad = Some(StoreError::bad_row(Family::Parked, key, error));
                ControlFlow::Break(())
            }
        },
    )?;
    bad.map_or(Ok(next), Err)
}
