//! Hosts that went back: our copy stays, and what the host has meanwhile is kept beside it.
//!
//! A host that was restored from an older copy, or begins its revs anew, has a head that is older than ours. Its
//! chain takes the place of ours when its rev has passed ours, and ours is pinned then. Until that day its events
//! cannot be laid onto our rows: each is a reason to fetch the repository again, at a bounded pace, and the proven
//! CAR is kept whole and archived like one of a quarantined repository.

use std::time::Duration;

use super::super::input::BlobMention;
use super::super::keyspace::{AlarmKind, Task};
use super::super::rows::{AccountRow, KeptCar, SyncState};
use super::super::store::StoreError;
use super::quarantine::drop_car;
use super::{Applier, Group, Note};
use crate::types::{Did, Rev, Timestamp};

/// What a host that is behind says is fetched no oftener than this,
const REFETCH_FIRST: Duration = Duration::from_secs(30);
/// and, of a large repository, at no more bytes a second than these.
pub(super) const REFETCH_BYTES_PER_SECOND: u64 = 256 << 10;

impl Applier {
    /// A fetch brought a state that is older than ours, or another one at the same rev.
    pub(super) fn on_behind(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        (car, theirs): (Option<KeptCar>, Rev),
        blobs: &[BlobMention],
    ) -> Result<(), StoreError> {
        let Some(ours) = row.head.as_ref().map(|head| head.rev) else {
            // Nothing of ours is older than it: it is fetched as any other.
            if let Some(car) = car {
                drop_car(group, car.number);
            }
            Self::retry_fetch(group, did, row, group.now.plus(REFETCH_FIRST));
            return Ok(());
        };
        let before = row.kept_car.clone();
        let goes_on = row.kept_beside().is_some_and(|before| before.rev <= theirs);
        let fate = match &car {
            None => "what it has is too large to be kept beside ours until its rev has passed ours",
            Some(_) => "what it has is kept beside ours until its rev has passed ours",
        };
        let mut again = false;
        match (car, before) {
            (None, _) => {}
            // It went back once more: the state of before is not replaced until it stands in the archive.
            (Some(car), Some(before)) if theirs < before.rev && !before.archived && !before.damaged => {
                drop_car(group, car.number);
                again = true;
            }
            (Some(car), _) => {
                Self::keep_car(group, did, &mut row, car);
                for blob in blobs {
                    Self::want_blob(group, did, row.did_number, blob)?;
                }
            }
        }
        row.min_rev = None;
        Self::set_behind(group, &mut row, theirs);
        group.notes.push(Note::HostBehind {
            did: did.clone(),
            ours,
            theirs,
        });
        if !goes_on {
            let (host, number) = (row.host.clone(), row.account_number);
            let message = format!(
                "{did}: the host went back to rev {theirs}, we hold rev {ours}; ours stays, and {fate}"
            );
            let kind = AlarmKind::Rollback;
            Self::raise(group, &host, kind, did.as_str(), message, vec![number])?;
        }
        if again {
            Self::fetch_behind_later(group, did, &mut row);
        }
        Self::fetch_if_heard(group, did, &mut row);
        group.stage.put_account(did, row);
        self.replay_parked(group, did)
    }

    /// The host still has what is kept beside ours.
    pub(super) fn stay_behind(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        theirs: Rev,
    ) -> Result<(), StoreError> {
        row.min_rev = None;
        Self::set_behind(group, &mut row, theirs);
        if let SyncState::Diverged { heard, .. } = &mut row.sync {
            // What its stream said beyond that is gone there.
            *heard = None;
        }
        group.stage.put_account(did, row);
        self.replay_parked(group, did)
    }

    fn set_behind(group: &Group<'_>, row: &mut AccountRow, theirs: Rev) {
        let (since, heard) = match row.sync {
            SyncState::Diverged { since, heard, .. } => (since, heard),
            _ => (group.now, None),
        };
        row.sync = SyncState::Diverged {
            since,
            theirs,
            heard: heard.filter(|heard| *heard > theirs),
            tried_at: Some(group.now),
            next_try: None,
        };
        row.diverged_before_fetch = false;
    }

    /// An event of a rev that is not beyond ours: of a host that is behind it says that there is something new.
    pub(super) fn hear_behind(group: &mut Group<'_>, did: &Did, row: &AccountRow, rev: Rev) {
        let mut row = row.clone();
        match &mut row.sync {
            SyncState::Diverged { theirs, heard, .. } if rev > *theirs => *heard = (*heard).max(Some(rev)),
            _ => return,
        }
        Self::fetch_if_heard(group, did, &mut row);
        group.stage.put_account(did, row);
    }

    fn fetch_if_heard(group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        if matches!(row.sync, SyncState::Diverged { heard: Some(_), .. }) {
            Self::fetch_behind_later(group, did, row);
        }
    }

    /// Sees to it that there is a task, no sooner than the pace allows.
    pub(super) fn fetch_behind_later(group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        // What is too large to be kept is about as large as ours.
        let kept = row.kept_car.as_ref().map_or(0, |car| car.bytes);
        let bytes = kept.max(row.record_bytes);
        let wait = REFETCH_FIRST.max(Duration::from_secs(bytes / REFETCH_BYTES_PER_SECOND));
        if let SyncState::Diverged {
            tried_at, next_try, ..
        } = &mut row.sync
            && next_try.is_none()
        {
            let due = tried_at.map_or(group.now, |at| at.plus(wait)).max(group.now);
            *next_try = Some(due);
            group.stage.put_task(due, &Task::FetchRepo(did.clone()));
        }
    }

    /// A fetch of an account whose host is behind failed, or came to nothing: it is tried again, not before `at`.
    pub(super) fn retry_behind(group: &mut Group<'_>, did: &Did, mut row: AccountRow, at: Timestamp) {
        if let SyncState::Diverged {
            tried_at, next_try, ..
        } = &mut row.sync
        {
            let due = at.max(group.now.plus(REFETCH_FIRST));
            (*tried_at, *next_try) = (Some(group.now), Some(due));
            group.stage.put_task(due, &Task::FetchRepo(did.clone()));
        }
        group.stage.put_account(did, row);
    }
}

#[cfg(test)]
#[path = "behind_tests.rs"]
mod tests;
