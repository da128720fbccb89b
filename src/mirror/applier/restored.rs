//! What the archive gives back: a new machine's mirror, or what a mirror lacks that is an older copy of itself.
//!
//! Each account comes proven ([`crate::verify::VerifiedRepo`]) and loaded under a number of its own, and one batch
//! points the DID at it, with its blobs and its journal. The hosts' cursors come last, with the place where the log goes
//! on: until then nothing is followed, and what was killed in between is taken up again account by account.

use std::ops::ControlFlow;
use std::time::Duration;

use super::super::erased::ErasedMark;
use super::super::input::{Refilled, Restored, RestoredRepo};
use super::super::keyspace::{
    self, META_ARCHIVE_ID, META_COLD_START, META_LOG, META_NEXT_LOG, NO_NUMBER, Task,
};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, BlobState, DesyncReason, OutboxEntry, Row as _, SyncState};
use super::super::store::{Family, StoreError};
use super::fetched::{drop_generation, stand_at};
use super::{Applier, Group};
use crate::types::Rev;

/// Entries of the outbox that are read at once.
const PAGE: usize = 1024;

impl Applier {
    pub(super) fn on_restored(
        &mut self,
        group: &mut Group<'_>,
        restored: Restored,
    ) -> Result<(), StoreError> {
        let known = self.account(group, &restored.did)?;
        let loaded = restored
            .repo
            .as_ref()
            .map_or(NO_NUMBER, |repo| repo.account_number);
        if let Some(row) = &known {
            let ours = row.head.as_ref().map(|head| head.rev);
            let theirs = restored.repo.as_ref().map(|repo| repo.repo.rev());
            // It went on by itself, or is no older than the archive; but a damaged copy is worth nothing.
            let better = theirs > ours || (row.damaged && theirs == ours);
            if row.account_number != restored.from_number || !better {
                drop_generation(group, loaded);
                return Ok(());
            }
        }
        let is_new = known.is_none();
        let mut row =
            known.unwrap_or_else(|| AccountRow::new(restored.did_number, restored.host.clone(), group.now));
        let did = restored.did;
        if is_new {
            row.identity = restored.identity;
            row.identity_archived = restored.identity_archived;
            row.upstream = restored.status;
            row.deletion_confirmed_at = restored.deleted_at;
            row.pins = restored.pins;
            // Since when is not known here.
            row.followed_again_at = Some(group.now);
            self.audit_some_time(group, &did, &mut row);
        }
        let held = restored.repo.is_some();
        // What was backed up goes on to be.
        row.unfollowed &= !held;
        if let Some(repo) = restored.repo {
            Self::point_at(group, &mut row, repo);
            if !row.is_snapshotted() {
                self.schedule_snapshot(group, &did, &mut row);
            }
        }
        for (digest, blob) in restored.blobs {
            let known = group.stage.blob(row.did_number, &digest)?;
            if known.is_some_and(|known| known.state.is_stored()) {
                continue;
            }
            if blob.state == BlobState::Wanted {
                group
                    .stage
                    .put_task(group.now, &Task::FetchBlob(did.clone(), digest));
            }
            group.stage.put_blob(row.did_number, &digest, blob);
        }
        let erased = Mirror::new(group.stage.store()).erased(&did)?;
        row.erased = erased.map(|erased| erased.mark());
        match restored.moved_to {
            _ if row.erased == Some(ErasedMark::Whole) => row.sync = SyncState::Live,
            Some(to) if is_new => {
                let since = group.now;
                row.sync = SyncState::Moved { to, since };
            }
            _ if restored.whole && held => row.sync = SyncState::Live,
            _ => {
                row.sync = SyncState::Wanted {
                    reason: if held {
                        DesyncReason::HeadDiffers
                    } else {
                        DesyncReason::New
                    },
                    since: group.now,
                    tries: 0,
                };
                group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
            }
        }
        group.stage.put_account(&did, row);
        Ok(())
    }

    /// Points the DID at what was loaded of it.
    fn point_at(group: &mut Group<'_>, row: &mut AccountRow, restored: RestoredRepo) {
        let RestoredRepo {
            account_number,
            repo,
            snapshot,
            journal,
        } = restored;
        let pinned = row
            .pins
            .iter()
            .any(|pin| pin.generation == Some(row.account_number));
        if !pinned {
            drop_generation(group, row.account_number);
        }
        stand_at(row, account_number, &repo, group.now);
        row.snapshot = snapshot;
        // All of it came from there.
        row.shipped = Some(repo.rev());
        row.unlogged = None;
        (row.journal_commits, row.journal_bytes) = (0, 0);
        for (rev, entry) in journal {
            row.journal_bytes += group.stage.put_journal(row.did_number, rev, &entry) as u64;
            row.journal_commits += 1;
        }
    }

    /// Spread over the interval: a new machine does not ask about all accounts at once.
    fn audit_some_time(&self, group: &mut Group<'_>, did: &crate::types::Did, row: &mut AccountRow) {
        let share = u32::try_from(row.did_number % 97).unwrap_or(0) + 1;
        let at = group.now.plus(self.limits.audit_interval / 98 * share);
        group
            .stage
            .repeat_task(None, at, &Task::AuditAccount(did.clone()));
        row.next_audit = Some(at);
    }

    pub(super) fn on_refilled(
        &mut self,
        group: &mut Group<'_>,
        refilled: Refilled,
    ) -> Result<(), StoreError> {
        for (host, row) in refilled.hosts {
            group.stage.host(&host)?;
            if let Some(at) = row.next_listing {
                group.stage.put_task(at, &Task::ListRepos(host.clone()));
            }
            if let Some(mark) = &row.sweep {
                group.stage.put_task(mark.next, &Task::SweepBlobs(host.clone()));
            }
            group.stage.put_host(&host, row);
        }
        for (id, row) in refilled.alarms {
            group.stage.put_alarm(&id, row);
        }
        self.next_log = self.next_log.max(refilled.next_log);
        self.requeue(group, refilled.next_log, &refilled.told)?;
        let next = keyspace::encode_number(self.next_log);
        let batch = group.stage.batch();
        batch.put(Family::Meta, META_NEXT_LOG, next);
        batch.put(Family::Meta, META_LOG, refilled.log.encode());
        batch.put(Family::Meta, META_ARCHIVE_ID, refilled.archive.as_bytes());
        batch.delete(Family::Meta, META_COLD_START);
        Ok(())
    }

    /// What waits under log numbers that the archive has already: what the archive tells goes, the rest is told
    /// under later numbers.
    fn requeue(
        &self,
        group: &mut Group<'_>,
        next_log: u64,
        told: &[(crate::types::Did, Rev)],
    ) -> Result<(), StoreError> {
        let is_told = |did: &crate::types::Did, rev: Rev| {
            let at = told.binary_search_by(|(known, _)| known.cmp(did));
            at.is_ok_and(|at| rev <= told[at].1)
        };
        let mut from = 0;
        loop {
            let page = Mirror::new(group.stage.store()).outbox(from, PAGE)?;
            for (number, entry) in &page {
                if *number >= next_log {
                    return Ok(());
                }
                group.stage.take_outbox(*number, entry.bytes());
                let told = match entry {
                    OutboxEntry::Change { did, rev, .. } | OutboxEntry::Loaded { did, rev, .. } => {
                        is_told(did, *rev)
                    }
                    OutboxEntry::Account { .. } => false,
                };
                if !told {
                    group.stage.put_outbox(entry.clone());
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => from = last + 1,
                _ => return Ok(()),
            }
        }
    }

    /// Begins to fill an empty mirror from an archive: from here on it belongs to that one. Durable when it returns.
    ///
    /// # Errors
    /// When the store fails.
    pub fn begin_cold_start(&mut self, archive: &str) -> Result<(), StoreError> {
        let mut batch = super::super::store::Batch::new();
        batch.put(Family::Meta, META_COLD_START, archive.as_bytes());
        self.store.write_durable(batch)?.into_inner();
        Ok(())
    }

    /// Whether nothing was ever held here.
    ///
    /// # Errors
    /// When the store fails.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        let mut empty = self.store.get(Family::Meta, META_ARCHIVE_ID)?.is_none();
        Mirror::new(&*self.store).each_account(|_, _| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }
}

/// After a cold start a host's accounts are listed when its stream has had this long to catch up: what no event tells
/// is found then.
pub const LISTED_AFTER: Duration = Duration::from_secs(60);
