//! Running totals over all rows, for metrics and the status page.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::super::reader::Mirror;
use super::super::rows::{AccountRow, BlobRow, BlobState, OutboxEntry, Row as _, SyncState};
use super::super::store::{Family, KeyRange, Store, StoreError};
use crate::types::HostName;

/// Counts over the whole mirror. Kept by differences, and counted once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accounts by their standing at their host ([`crate::types::AccountStatus::label`]).
    pub accounts: BTreeMap<&'static str, u64>,
    /// Accounts by sync state ([`SyncState::label`]).
    pub sync: BTreeMap<&'static str, u64>,
    /// Accounts of each host that are on, and of which something is held.
    pub active: BTreeMap<HostName, u64>,
    /// Records of current heads.
    pub records: u64,
    /// Bytes of these records.
    pub record_bytes: u64,
    /// Accounts whose current head stands in the archive: as a snapshot, or in the log since one.
    pub archived: u64,
    /// Entries of the log that are not in the archive yet.
    pub unshipped: u64,
    /// About what these take on the disk.
    pub unshipped_bytes: u64,
    /// Accounts that the log does not tell, for too much waited: only a snapshot makes up for it.
    pub unlogged: u64,
    /// Bytes of blobs that are held here and not in the archive.
    pub held_bytes: u64,
    /// Accounts that are on at their hosts, and wait for a fetch.
    pub wanted_active: u64,
    /// Accounts with a head.
    pub with_head: u64,
    /// Of those, the ones of which no snapshot stands in the archive.
    pub without_snapshot: u64,
    /// Blobs by state ([`super::super::rows::BlobState::label`]).
    pub blobs: BTreeMap<&'static str, u64>,
    /// Bytes of blobs that are held here or in the archive.
    pub blob_bytes: u64,
    /// CARs that are kept as they came and do not stand in the archive yet.
    pub open_cars: u64,
    /// Those that never will as they are, for they are damaged here, and that nothing took the place of.
    pub damaged_cars: u64,
    /// Blobs that are held here or in the archive, and withheld by their hosts.
    pub blobs_withheld: u64,
    /// Frames that wait for a key or a fetch.
    pub parked: u64,
}

impl Totals {
    /// An account's row was written.
    pub fn account_changed(&mut self, before: Option<&AccountRow>, after: &AccountRow) {
        if let Some(row) = before {
            self.add_account(row, false);
        }
        self.add_account(after, true);
    }

    /// A blob's row was written.
    pub fn blob_changed(&mut self, before: Option<&BlobRow>, after: &BlobRow) {
        if let Some(row) = before {
            self.add_blob(row, false);
        }
        self.add_blob(after, true);
    }

    /// Entries were queued for the log, and others left the queue.
    pub(super) fn log_changed(&mut self, queued: (u64, u64), taken: (u64, u64)) {
        self.unshipped = (self.unshipped + queued.0).saturating_sub(taken.0);
        self.unshipped_bytes = (self.unshipped_bytes + queued.1).saturating_sub(taken.1);
    }

    fn add_account(&mut self, row: &AccountRow, plus: bool) {
        step(self.accounts.entry(row.upstream.label()).or_default(), 1, plus);
        step(self.sync.entry(row.sync.label()).or_default(), 1, plus);
        step(&mut self.records, row.records, plus);
        step(&mut self.record_bytes, row.record_bytes, plus);
        step(&mut self.parked, row.parked, plus);
        if let Some(car) = row.kept_car.as_ref().filter(|car| !car.archived) {
            match (car.damaged, &row.sync) {
                (false, _) => step(&mut self.open_cars, 1, plus),
                (true, SyncState::Quarantined { .. } | SyncState::Diverged { .. }) => {
                    step(&mut self.damaged_cars, 1, plus)
                }
                // A proven copy took its place.
                (true, _) => {}
            }
        }
        if row.unlogged.is_some() {
            step(&mut self.unlogged, 1, plus);
        }
        if matches!(row.sync, SyncState::Wanted { .. }) && row.upstream.is_active() {
            step(&mut self.wanted_active, 1, plus);
        }
        if row.head.is_some() {
            step(&mut self.with_head, 1, plus);
            step(
                &mut self.without_snapshot,
                u64::from(row.snapshot.is_none()),
                plus,
            );
        }
        if row.head.is_some() && row.upstream.is_active() {
            match self.active.get_mut(&row.host) {
                Some(count) => step(count, 1, plus),
                None => step(self.active.entry(row.host.clone()).or_default(), 1, plus),
            }
        }
        if row.is_archived() {
            step(&mut self.archived, 1, plus);
        }
    }

    fn add_blob(&mut self, row: &BlobRow, plus: bool) {
        step(self.blobs.entry(row.state.label()).or_default(), 1, plus);
        if row.state.is_stored() {
            step(&mut self.blob_bytes, row.size.unwrap_or(0), plus);
            if row.state == BlobState::Held {
                step(&mut self.held_bytes, row.size.unwrap_or(0), plus);
            }
            step(
                &mut self.blobs_withheld,
                u64::from(row.withheld_since.is_some()),
                plus,
            );
        }
    }

    /// How many accounts are in this sync state.
    #[must_use]
    pub fn in_sync_state(&self, state: &SyncState) -> u64 {
        self.sync.get(state.label()).copied().unwrap_or(0)
    }
}

/// Counts never go below zero: a total that would is a bug, and shows as a wrong count, not as a crash.
fn step(value: &mut u64, by: u64, plus: bool) {
    *value = if plus {
        value.saturating_add(by)
    } else {
        value.saturating_sub(by)
    };
}

/// Counts all rows of a store.
pub(super) fn count(store: &dyn Store) -> Result<Totals, StoreError> {
    let view = store.view();
    let mirror = Mirror::new(&*view);
    let mut totals = Totals::default();
    mirror.each_account(|_, row| {
        totals.account_changed(None, &row);
        ControlFlow::Continue(())
    })?;
    let mut bad = None;
    view.scan(Family::Outbox, &KeyRange::all(), &mut |key, value| {
        match OutboxEntry::decode(value) {
            Ok(entry) => totals.log_changed((1, entry.bytes()), (0, 0)),
            Err(error) => bad = Some(StoreError::bad_row(Family::Outbox, key, error)),
        }
        if bad.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    bad.map_or(Ok(()), Err)?;
    mirror.each_blob(|row| {
        totals.blob_changed(None, &row);
        ControlFlow::Continue(())
    })?;
    Ok(totals)
}
