//! Fetched repositories: the swap, and what waited for it. Identities, and what waited for them.
//!
//! A repository was loaded under an account number of its own. One batch points the DID at it, drops the
//! old generation, and applies the frames that were parked in the meantime: no reader ever sees less than
//! a proven head, or more than one.

use super::super::input::{BlobMention, FetchFailure, Fetched, FetchedContent};
use super::super::keyspace::{self, AlarmKind, NO_NUMBER, Task};
use super::super::reader::Mirror;
use super::super::rows::{
    AccountRow, DesyncReason, Head, HeadSigner, OutboxEntry, Row as _, StoredIdentity, SyncState,
};
use super::super::store::{Family, StoreError};
use super::events::{Arrival, Fate, Turn};
use super::log::Logged;
use super::moved::Placed;
use super::quarantine::Kept;
use super::{Applier, Group, Note};
use crate::repo::signing_key::SigningKey;
use crate::types::{AccountStatus, Cid, Did, HostName, Rev, Timestamp};
use crate::verify::{EventBody, FrameContent, KeyLookup, KeyStanding, VerifiedRepo, check_frame};

impl Applier {
    pub(super) fn on_fetched(&mut self, group: &mut Group<'_>, fetched: Fetched) -> Result<(), StoreError> {
        let Fetched {
            did,
            from_number,
            from_erased,
            identity,
            content,
            task,
        } = fetched;
        group.stage.delete_task(&task);
        let loaded_number = match &content {
            FetchedContent::Loaded { account_number, .. } => *account_number,
            FetchedContent::Kept { car, .. } => car.number,
            FetchedContent::Behind { car, .. } => car.as_ref().map_or(NO_NUMBER, |car| car.number),
            FetchedContent::Unchanged { .. } => NO_NUMBER,
        };
        let Some(mut row) = self.account(group, &did)? else {
            drop_generation(group, loaded_number);
            return Ok(());
        };
        let wanted = match row.sync {
            SyncState::Wanted { reason, .. } => Some(reason),
            SyncState::Quarantined { .. } => Some(DesyncReason::Quarantined),
            SyncState::Diverged { .. } => Some(DesyncReason::HeadDiffers),
            _ => None,
        };
        // A CAR that is kept as it came was looked through for what had been erased by then.
        let judged = match &content {
            FetchedContent::Loaded { .. } | FetchedContent::Unchanged { .. } => true,
            _ => Self::erased_of(group, &did, &row)?.map_or(0, |erased| erased.count()) == from_erased,
        };
        let current = row.account_number == from_number && identity.speaks_at(&row.host) && judged;
        let Some(reason) = wanted.filter(|_| current) else {
            // Something else settled it while the fetch was under way.
            drop_generation(group, loaded_number);
            if matches!(row.sync, SyncState::Quarantined { .. }) {
                Self::retry_quarantined(group, &did, row, group.now);
            } else if matches!(row.sync, SyncState::Diverged { .. }) {
                Self::retry_behind(group, &did, row, group.now);
            } else if wanted.is_some() {
                group.stage.put_task(group.now, &Task::FetchRepo(did));
            }
            return Ok(());
        };
        row.identity = Some(identity);
        row.awaiting_identity = false;
        match content {
            FetchedContent::Kept {
                car,
                repo,
                reason: fault,
                blobs,
            } => {
                if is_behind_its_stream(&row, repo.rev()) {
                    drop_generation(group, loaded_number);
                    Self::retry_fetch(group, &did, row, group.now.plus(TOO_OLD_RETRY));
                    return Ok(());
                }
                let kept = Kept {
                    car,
                    repo,
                    fault,
                    blobs,
                    asked: reason,
                };
                self.on_kept(group, &did, row, kept)
            }
            FetchedContent::Behind { car, repo, blobs } => {
                self.on_behind(group, &did, row, (car, repo.rev()), &blobs)
            }
            FetchedContent::Unchanged { commit } => self.on_unchanged(group, &did, row, commit, reason),
            FetchedContent::Loaded { repo, blobs, .. } => {
                self.on_loaded(group, &did, row, loaded_number, &repo, &blobs, reason)
            }
        }
    }

    /// The host's head is one that is held, or kept.
    fn on_unchanged(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        commit: Cid,
        reason: DesyncReason,
    ) -> Result<(), StoreError> {
        if matches!(row.sync, SyncState::Quarantined { commit: Some(kept), .. } if kept == commit) {
            return self.stay_quarantined(group, did, row);
        }
        if let Some(rev) = row
            .kept_beside()
            .filter(|car| car.commit == commit)
            .map(|car| car.rev)
            && row.head.as_ref().is_some_and(|head| head.commit != commit)
        {
            return self.stay_behind(group, did, row, rev);
        }
        // The same head does not put right a copy that was found damaged while it was asked for.
        let damaged = reason == DesyncReason::CopyDamaged || row.damaged;
        if damaged || row.head.as_ref().map(|head| head.commit) != Some(commit) {
            if damaged {
                // Else the next fetch would stop at the same head, and the one after it.
                row.sync = SyncState::Wanted {
                    reason: DesyncReason::CopyDamaged,
                    since: group.now,
                    tries: 0,
                };
            }
            group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
            group.stage.put_account(did, row);
            return Ok(());
        }
        if let Some(head) = &row.head
            && is_behind_its_stream(&row, head.rev)
        {
            Self::retry_fetch(group, did, row, group.now.plus(TOO_OLD_RETRY));
            return Ok(());
        }
        let quarantined = matches!(row.sync, SyncState::Quarantined { .. });
        row.sync = SyncState::Live;
        row.diverged_before_fetch = false;
        let seen = row.min_rev.take().filter(|_| quarantined);
        Self::leave_quarantine(group, did, &mut row, seen)?;
        group.notes.push(Note::Unchanged {
            host: row.host.clone(),
            did: did.clone(),
            reason,
        });
        self.caught_up(group, did, row)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one fetch and its account: a struct would only rename them"
    )]
    fn on_loaded(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        number: u64,
        repo: &VerifiedRepo,
        blobs: &[BlobMention],
        reason: DesyncReason,
    ) -> Result<(), StoreError> {
        if row.head.as_ref().is_some_and(|head| {
            repo.rev() < head.rev || (repo.rev() == head.rev && repo.cid() != head.commit)
        }) {
            // Ours went on while it was fetched.
            drop_generation(group, number);
            match row.sync {
                SyncState::Diverged { .. } => Self::retry_behind(group, did, row, group.now),
                _ => Self::retry_fetch(group, did, row, group.now.plus(TOO_OLD_RETRY)),
            }
            return Ok(());
        }
        if is_behind_its_stream(&row, repo.rev()) {
            drop_generation(group, number);
            Self::retry_fetch(group, did, row, group.now.plus(TOO_OLD_RETRY));
            return Ok(());
        }
        let quarantined = matches!(row.sync, SyncState::Quarantined { .. });
        let seen = row.min_rev.filter(|_| quarantined);
        let sound = reason != DesyncReason::CopyDamaged && !row.damaged;
        // It may have been loaded before it was said what is not to be taken.
        if let Some(known) = Self::erased_of(group, did, &row)? {
            Self::blank_records(group, number, &known)?;
        }
        let logged = Self::log_swap(group, did, &mut row, number, repo, sound)?;
        self.swap(group, did, &mut row, number, (repo, logged, sound), blobs)?;
        Self::leave_quarantine(group, did, &mut row, seen)?;
        group.notes.push(Note::Swapped {
            host: row.host.clone(),
            did: did.clone(),
            reason,
            rev: repo.rev(),
            records: repo.records(),
        });
        self.caught_up(group, did, row)
    }

    /// What waited is judged; and what broke a rule while the fetch was under way has the account compared again.
    fn caught_up(&mut self, group: &mut Group<'_>, did: &Did, mut row: AccountRow) -> Result<(), StoreError> {
        let again = std::mem::take(&mut row.fetch_again);
        group.stage.put_account(did, row);
        self.replay_parked(group, did)?;
        if again && let Some(mut row) = self.account(group, did)? {
            Self::want(group, did, &mut row, DesyncReason::HeadDiffers, None);
            group.stage.put_account(did, row);
        }
        Ok(())
    }

    /// Points the DID at the loaded generation.
    fn swap(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        number: u64,
        (repo, logged, sound): (&VerifiedRepo, Logged, bool),
        blobs: &[BlobMention],
    ) -> Result<(), StoreError> {
        Self::note_noncanonical(group, did, &row.host, repo.noncanonical());
        let first = row.head.is_none();
        let was_diverged = row.diverged_before_fetch || matches!(row.sync, SyncState::Diverged { .. });
        if !self.pin_if_lost(group, did, row, number, was_diverged, sound)? {
            drop_generation(group, row.account_number);
        }
        row.diverged_before_fetch = false;
        stand_at(row, number, repo, group.now);
        row.sync = SyncState::Live;
        if logged == Logged::NeedsSnapshot {
            // Not before its snapshot stands there is it in the archive: no waiting for the interval.
            row.snapshot = None;
        }
        self.schedule_snapshot(group, did, row);
        for blob in blobs {
            Self::want_blob(group, did, row.did_number, blob)?;
        }
        Self::withdraw_unmentioned(group, row.did_number, blobs)?;
        if first {
            group.stage.put_task(group.now, &Task::AuditAccount(did.clone()));
        }
        Ok(())
    }

    pub(super) fn on_fetch_failed(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
        failure: &FetchFailure,
        asked_at: Timestamp,
        (task, retry_at): (&[u8], Timestamp),
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        if row.host != *host {
            // It moved meanwhile; the new host's fetch has a task of its own.
            return Ok(());
        }
        let mut retry_at = retry_at;
        if let FetchFailure::Inactive(status) = failure
            && row.upstream.is_active()
        {
            if row.is_outdated(asked_at) {
                // It was turned on while it was asked for.
                retry_at = group.now.plus(TOO_OLD_RETRY);
            } else {
                group.notes.push(Note::Status {
                    did: did.clone(),
                    status: status.label(),
                });
                Self::note_away(group, did, &mut row, false);
                row.upstream = status.clone();
                group.stage.put_outbox(OutboxEntry::Account {
                    did: did.clone(),
                    host: row.host.clone(),
                    status: status.clone(),
                    received: group.now,
                });
            }
        }
        if let FetchFailure::Inactive(_) = failure
            && row.upstream != AccountStatus::Deleted
        {
            // It may have moved, and the directory may have given the document of before when that was asked.
            Self::ask_identity(group, did, &row);
            self.audit_if_never(group, did, &mut row);
            group.stage.put_account(did, row.clone());
        }
        if *failure == FetchFailure::NotFound && row.head.is_some() {
            let message = format!("{did}: the host says that it has no such repository; ours is kept");
            Self::note_away(group, did, &mut row, false);
            group.stage.put_account(did, row.clone());
            let (host, number) = (row.host.clone(), row.account_number);
            Self::raise(
                group,
                &host,
                AlarmKind::RepoNotFound,
                did.as_str(),
                message,
                vec![number],
            )?;
        }
        let reason = match row.sync {
            SyncState::Wanted { reason, .. } => Some(reason),
            SyncState::Quarantined { .. } => Some(DesyncReason::Quarantined),
            SyncState::Diverged { .. } => Some(DesyncReason::HeadDiffers),
            _ => None,
        };
        if let Some(reason) = reason {
            group.notes.push(Note::FetchFailed {
                host: row.host.clone(),
                did: did.clone(),
                reason,
                failure: failure.clone(),
            });
            if let FetchFailure::NotThisHost(identity) = failure
                && Self::take_identity(group, did, &mut row, identity.clone())? == Placed::Elsewhere
            {
                group.stage.put_account(did, row);
                return Ok(());
            }
            if matches!(row.sync, SyncState::Quarantined { .. }) {
                Self::retry_quarantined(group, did, row, retry_at);
            } else if matches!(row.sync, SyncState::Diverged { .. }) {
                Self::retry_behind(group, did, row, retry_at);
            } else {
                Self::retry_fetch(group, did, row, retry_at);
            }
        }
        Ok(())
    }

    pub(super) fn retry_fetch(group: &mut Group<'_>, did: &Did, mut row: AccountRow, at: Timestamp) {
        if let SyncState::Wanted { tries, .. } = &mut row.sync {
            *tries = tries.saturating_add(1);
        }
        group.stage.put_task(at, &Task::FetchRepo(did.clone()));
        group.stage.put_account(did, row);
    }

    pub(super) fn on_identity(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        resolved: Option<StoredIdentity>,
        task: &[u8],
        retry_at: Timestamp,
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        let Some(identity) = resolved else {
            if row.awaiting_identity {
                group
                    .stage
                    .put_task(retry_at, &Task::ResolveIdentity(did.clone()));
            } else {
                Self::ask_identity_later(group, did, &row);
            }
            return Ok(());
        };
        Self::take_identity(group, did, &mut row, identity)?;
        let fetching = matches!(row.sync, SyncState::Wanted { .. });
        group.stage.put_account(did, row);
        if fetching {
            Ok(())
        } else {
            self.replay_parked(group, did)
        }
    }

    /// Judges the frames that were parked, in the order of their arrival, as if they came now; stops when
    /// the account has to be fetched again.
    pub(super) fn replay_parked(&mut self, group: &mut Group<'_>, did: &Did) -> Result<(), StoreError> {
        let Some(row) = self.account(group, did)? else {
            return Ok(());
        };
        if row.parked == 0 {
            return Ok(());
        }
        let key = row.identity.as_ref().and_then(|identity| identity.key.as_deref());
        let key = key
            .and_then(|text| SigningKey::from_did_key(text).ok())
            .map(std::sync::Arc::new);
        let parked = Mirror::new(group.stage.store()).parked(row.did_number, usize::MAX)?;
        for (at, frame) in parked {
            let Some(mut row) = self.account(group, did)? else {
                return Ok(());
            };
            if matches!(row.sync, SyncState::Wanted { .. }) {
                return Ok(());
            }
            row.parked = row.parked.saturating_sub(1);
            row.parked_bytes = row.parked_bytes.saturating_sub(frame.encode().len() as u64);
            group.stage.put_account(did, row.clone());
            group.stage.batch().delete(
                Family::Parked,
                keyspace::encode_parked(row.did_number, at).to_vec(),
            );

            let ours = row
                .identity
                .as_ref()
                .is_some_and(|identity| identity.speaks_at(&frame.host));
            let lookup = |_: &Did| match &key {
                Some(key) if ours => KeyLookup::Key(std::sync::Arc::clone(key)),
                _ => KeyLookup::NotThisHost,
            };
            // A frame that was parked decoded once; if it does not now, the store is damaged, and the
            // account's repository settles what it said.
            let Ok(FrameContent::Event(event)) = check_frame(&frame.frame, lookup, frame.received) else {
                let mut row = row;
                Self::want(group, did, &mut row, DesyncReason::CopyDamaged, None);
                group.stage.put_account(did, row);
                return Ok(());
            };
            let arrival = Arrival {
                host: frame.host,
                seq: frame.seq,
                received: frame.received,
                time: event.time,
            };
            let fate = match event.body {
                EventBody::Commit { rev, checked, .. } => {
                    self.judge_commit(group, did, row, &arrival, rev, checked, Turn::Replayed)?
                }
                EventBody::Sync { rev, checked, .. } => {
                    self.judge_sync(group, did, row, &arrival, rev, checked, Turn::Replayed)?
                }
                _ => Fate::Done,
            };
            debug_assert!(
                matches!(fate, Fate::Done),
                "a replayed frame has its key, so it never waits again"
            );
        }
        Ok(())
    }
}

/// A host that has not caught up with its own stream is asked again after this long.
const TOO_OLD_RETRY: std::time::Duration = std::time::Duration::from_secs(5);
/// And so many times. Then what it serves is taken: it is proven, and no older than ours. Should the commit
/// that was seen come to be its head after all, the next one does not chain, and it is fetched again.
const TOO_OLD_TRIES: u32 = 6;

/// Whether what a host serves is older than what its stream has sent: frames that were dropped, or a commit
/// that did not chain.
fn is_behind_its_stream(row: &AccountRow, rev: Rev) -> bool {
    let SyncState::Wanted { tries, .. } = row.sync else {
        return false;
    };
    row.min_rev.is_some_and(|least| rev < least) && tries < TOO_OLD_TRIES
}

/// The row stands at a proven repository, loaded under this number.
pub(super) fn stand_at(row: &mut AccountRow, number: u64, repo: &VerifiedRepo, now: Timestamp) {
    row.account_number = number;
    row.head = Some(Head {
        rev: repo.rev(),
        commit: repo.cid(),
        commit_block: repo.block().to_vec(),
        data: repo.data(),
    });
    row.head_signed_by = match repo.signed_by() {
        KeyStanding::Current => HeadSigner::Current,
        KeyStanding::Earlier(logged) => HeadSigner::Earlier {
            key: logged.key().to_did_key(),
        },
    };
    (row.records, row.record_bytes) = (repo.records(), repo.record_bytes());
    row.verified_at = Some(now);
    row.damaged = false;
    row.min_rev = None;
}

/// Removes every row of a generation that nothing points at.
pub(super) fn drop_generation(group: &mut Group<'_>, number: u64) {
    if number == NO_NUMBER {
        return;
    }
    let (from, to) = keyspace::number_bounds(number);
    // What was loaded of a repository, or its CAR.
    for family in [Family::Records, Family::BlobRefs, Family::BlobData] {
        group
            .stage
            .batch()
            .delete_range(family, from.to_vec(), to.to_vec());
    }
}
