//! When accounts are snapshotted, and what a snapshot covers.

use std::ops::ControlFlow;

use super::super::input::{IdentitySeen, Input, SnapshotStored};
use super::super::keyspace::{self, AlarmKind, Task};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, BlobState, DesyncReason, OutboxEntry, SnapshotMark};
use super::super::store::{Family, StoreError};
use super::{Applier, Group};
use crate::types::{Did, Digest};

impl Applier {
    /// Makes sure that a task will snapshot the account: at once if it has no snapshot; when the interval since
    /// the last one has passed, if its journal has grown; else some day.
    pub(super) fn schedule_snapshot(&self, group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        let grown = row.journal_commits >= self.limits.snapshot_changes
            || row.journal_bytes >= self.limits.snapshot_bytes;
        let due = match row.snapshot {
            None => group.now,
            // What the log lacks waits for nothing.
            Some(_) if row.unlogged.is_some() => group.now,
            Some(last) if grown => last.at.plus(self.limits.snapshot_interval).max(group.now),
            Some(last) => last.at.plus(self.limits.snapshot_latest).max(group.now),
        };
        let known = row.snapshot_at.filter(|_| row.snapshot_due);
        if known.is_some_and(|known| known <= due) {
            return;
        }
        group.stage.repeat_task(known, due, &Task::Snapshot(did.clone()));
        row.snapshot_due = true;
        row.snapshot_at = Some(due);
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
        row.snapshot_due = false;
        // A snapshot of a generation that was replaced meanwhile is no ground for what came since.
        if row.account_number == stored.account_number {
            row.snapshot = Some(SnapshotMark {
                rev: stored.rev,
                commit: stored.commit,
                at: group.now,
                bytes: stored.bytes,
            });
            if let Some(gap) = row.unlogged.take_if(|gap| gap.rev <= stored.rev)
                && !gap.told
            {
                // What comes next builds on this snapshot, and the log does not lead to it.
                group.stage.put_outbox(OutboxEntry::Loaded {
                    did: stored.did.clone(),
                    host: row.host.clone(),
                    rev: stored.rev,
                    commit: stored.commit,
                    received: group.now,
                });
            }
            let behind = |rev| {
                let mut key = keyspace::encode_journal(row.did_number, rev).to_vec();
                key.push(0);
                key
            };
            // What was not shipped yet goes when it is.
            if let Some(shipped) = row.shipped {
                let from = keyspace::encode_number(row.did_number);
                let to = behind(shipped.min(stored.rev));
                group.stage.batch().delete_range(Family::Journal, from, to);
            }
            let (mut commits, mut bytes) = (0, 0);
            let rest = keyspace::number_range(row.did_number).starting_at(&behind(stored.rev));
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
        if row.head.is_some() && !row.is_snapshotted() {
            self.schedule_snapshot(group, &stored.did, &mut row);
        }
        group.stage.put_account(&stored.did, row);
        Ok(())
    }

    /// What stands in the archive in the place of a snapshot or a blob of ours is damaged, or nothing does.
    pub(super) fn on_archive_lost(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        blob: Option<Digest>,
    ) -> Result<(), StoreError> {
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        let Some(digest) = blob else {
            row.snapshot = None;
            if row.head.is_some() {
                self.schedule_snapshot(group, did, &mut row);
            }
            group.stage.put_account(did, row);
            return Ok(());
        };
        if let Some(mut known) = group.stage.blob(row.did_number, &digest)?
            && known.state == BlobState::Archived
        {
            // Its bytes are no longer here: its host gives them again.
            known.state = BlobState::Wanted;
            known.tries = 0;
            group.stage.put_blob(row.did_number, &digest, known);
            group
                .stage
                .put_task(group.now, &Task::FetchBlob(did.clone(), digest));
        }
        Ok(())
    }

    /// What the directory says of an account stands in the archive.
    pub(super) fn on_identity_archived(
        &self,
        group: &mut Group<'_>,
        archived: Input,
    ) -> Result<(), StoreError> {
        let Input::IdentityArchived {
            did,
            digest,
            seen,
            task,
        } = archived
        else {
            return Ok(());
        };
        group.stage.delete_task(&task);
        if let Some(mut row) = self.account(group, &did)? {
            row.identity_archived = Some(digest);
            if let Some(IdentitySeen { log, changed }) = seen {
                row.log_seen = Some(log);
                if let Some(changed) = changed {
                    let (host, kind) = (row.host.clone(), AlarmKind::IdentityChanged);
                    Self::raise_more(group, &host, kind, did.as_str(), changed)?;
                }
            }
            group.stage.put_account(&did, row);
        }
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
                let known = row.snapshot_at.filter(|_| row.snapshot_due);
                group
                    .stage
                    .repeat_task(known, group.now, &Task::Snapshot(did.clone()));
                row.snapshot_due = true;
                row.snapshot_at = Some(group.now);
                group.stage.put_account(&did, row);
            }
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
        row.snapshot_due = false;
        if row.account_number == account_number {
            Self::want(group, did, &mut row, DesyncReason::CopyDamaged, None);
        } else if row.head.is_some() && !row.is_snapshotted() {
            // It was replaced while it was read: the task that is gone was the new one's too.
            self.schedule_snapshot(group, did, &mut row);
        }
        group.stage.put_account(did, row);
        Ok(())
    }
}
