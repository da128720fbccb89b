//! When accounts are snapshotted, and what a snapshot covers.

use std::ops::ControlFlow;

use super::super::input::SnapshotStored;
use super::super::keyspace::{self, Task};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, DesyncReason, SnapshotMark};
use super::super::store::{Family, StoreError};
use super::{Applier, Group};
use crate::types::Did;

impl Applier {
    /// Makes sure that a task will snapshot the account: at once if it has no snapshot, else when the interval
    /// since the last one has passed.
    pub(super) fn schedule_snapshot(&self, group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        if row.snapshot_due {
            return;
        }
        let due = row
            .snapshot
            .map_or(group.now, |last| last.at.plus(self.limits.snapshot_interval));
        group
            .stage
            .put_task(due.max(group.now), &Task::Snapshot(did.clone()));
        row.snapshot_due = true;
    }

    /// A snapshot covers the journal up to its rev.
    pub(super) fn on_snapshot_stored(
        &mut self,
        group: &mut Group<'_>,
        stored: &SnapshotStored,
    ) -> Result<(), StoreError> {
        group.stage.delete_task(&stored.task);
        let Some(mut row) = self.account(group, &stored.did)? else {
            return Ok(());
        };
        row.snapshot = Some(SnapshotMark {
            rev: stored.rev,
            commit: stored.commit,
            at: group.now,
            bytes: stored.bytes,
        });
        row.snapshot_due = false;
        if row.account_number == stored.account_number {
            let mut covered_to = keyspace::encode_journal(row.account_number, stored.rev).to_vec();
            covered_to.push(0);
            let from = keyspace::encode_number(row.account_number);
            group
                .stage
                .batch()
                .delete_range(Family::Journal, from, covered_to.clone());
            let (mut commits, mut bytes) = (0, 0);
            let rest = keyspace::number_range(row.account_number).starting_at(&covered_to);
            group
                .stage
                .store()
                .scan(Family::Journal, &rest, &mut |_, value| {
                    commits += 1;
                    bytes += value.len() as u64;
                    ControlFlow::Continue(())
                })?;
            (row.journal_commits, row.journal_bytes) = (commits, bytes);
        }
        if !row.is_snapshotted() {
            self.schedule_snapshot(group, &stored.did, &mut row);
        }
        group.stage.put_account(&stored.did, row);
        Ok(())
    }

    /// Brings every snapshot that is due some time forward to now.
    pub(super) fn on_snapshot_all(&mut self, group: &mut Group<'_>) -> Result<(), StoreError> {
        let mut behind = Vec::new();
        Mirror::new(group.stage.store()).each_account(|did, row| {
            if row.head.is_some() && !row.is_snapshotted() {
                behind.push(did);
            }
            ControlFlow::Continue(())
        })?;
        for did in behind {
            if let Some(mut row) = self.account(group, &did)? {
                row.snapshot_due = true;
                group.stage.put_account(&did, row);
            }
            group.stage.put_task(group.now, &Task::Snapshot(did));
        }
        Ok(())
    }

    /// The rows of an account do not prove its head.
    pub(super) fn on_damaged(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        account_number: u64,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        if row.account_number == account_number {
            row.snapshot_due = false;
            Self::want(group, did, &mut row, DesyncReason::CopyDamaged, None);
            group.stage.put_account(did, row);
        }
        Ok(())
    }
}
