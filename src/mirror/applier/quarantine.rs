//! Repositories that do not rebuild to their signed root: what a lax host gave is kept as it came.
//!
//! The proven copy of before stays what it was: it alone is snapshotted, and served where there is one. The CAR
//! stands beside it under a number of its own, and is archived under a name of its own. While an account is
//! quarantined its events change nothing: they are a reason to fetch it again, at a bounded pace. The first state
//! that rebuilds takes its place; the CAR goes then, but not before it stands in the archive.

use std::time::Duration;

use super::super::input::BlobMention;
use super::super::keyspace::{self, AlarmKind, Task};
use super::super::rows::{AccountRow, DesyncReason, KeptCar, SyncState};
use super::super::store::{Family, StoreError};
use super::behind::REFETCH_BYTES_PER_SECOND;
use super::events::Fate;
use super::{Applier, Group, Note};
use crate::types::{Did, HostName, Rev, Timestamp};
use crate::verify::LaxRepo;

/// An event has a quarantined account fetched again this long after the last time (longer, if it is large), and
/// twice as long each time that brings nothing new.
const REFETCH_FIRST: Duration = Duration::from_secs(60);
const REFETCH_LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Of an account's kept CARs so many bytes a second go into the archive, on average, for each of them stays there; but
/// one a day in any case.
const ARCHIVED_BYTES_PER_SECOND: u64 = 1 << 10;
const ARCHIVE_LATEST: Duration = Duration::from_secs(24 * 3600);
/// What says that the repository may be another one, such as a `#sync`, waits this long only.
const REFETCH_SOON: Duration = Duration::from_secs(60);

/// How soon a quarantined account is fetched again.
#[derive(Clone, Copy)]
enum Pace {
    /// It may be another one now.
    Soon,
    /// It went on, and need not be better for that.
    Bounded,
}

/// A repository that was fetched and kept.
pub(super) struct Kept {
    pub(super) car: KeptCar,
    pub(super) repo: LaxRepo,
    /// What is wrong with it.
    pub(super) fault: String,
    pub(super) blobs: Vec<BlobMention>,
    /// Why it was fetched.
    pub(super) asked: DesyncReason,
}

impl Applier {
    /// A fetch brought a repository that is signed and all there, but does not rebuild.
    pub(super) fn on_kept(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        kept: Kept,
    ) -> Result<(), StoreError> {
        let (host, rev) = (row.host.clone(), kept.repo.rev());
        if row.head.as_ref().is_some_and(|head| rev <= head.rev) {
            return self.on_behind(group, did, row, (Some(kept.car), rev), &kept.blobs);
        }
        if let Some(before) = row.kept_car.clone().filter(|before| rev < before.rev) {
            let (newer, archived) = (before.rev, before.archived);
            let place = match (archived, before.damaged) {
                (true, _) => "in the archive",
                (false, true) => "damaged, and given up",
                (false, false) => "kept",
            };
            let message = format!(
                "{did}: the host went back from rev {newer} to rev {rev}, and neither rebuilds to its signed root; the \
                 newer one is {place}"
            );
            Self::raise(
                group,
                &host,
                AlarmKind::Rollback,
                did.as_str(),
                message,
                Vec::new(),
            )?;
            if !archived && !before.damaged {
                // Nothing makes up for it yet: it is not replaced before it stands in the archive.
                drop_car(group, kept.car.number);
                return self.stay_quarantined(group, did, row);
            }
        }
        let first = row.head.is_none() && row.kept_car.is_none();
        let since = match row.sync {
            SyncState::Quarantined { since, .. } => since,
            _ => {
                let ours = match &row.head {
                    Some(head) => format!("our proven copy of rev {} stays", head.rev),
                    None => "there is no proven copy of it".to_owned(),
                };
                let message = format!(
                    "{did}: its repository at rev {rev} does not rebuild to its signed root ({}); it is kept as it \
                     came, and {ours}",
                    kept.fault
                );
                Self::raise(
                    group,
                    &host,
                    AlarmKind::Quarantine,
                    did.as_str(),
                    message,
                    Vec::new(),
                )?;
                group.now
            }
        };
        row.sync = SyncState::Quarantined {
            reason: kept.fault.clone(),
            since,
            rev: Some(rev),
            commit: Some(kept.repo.cid()),
            tries: 0,
            tried_at: Some(group.now),
            next_try: None,
        };
        Self::keep_car(group, did, &mut row, kept.car);
        for blob in &kept.blobs {
            Self::want_blob(group, did, row.did_number, blob)?;
        }
        if first {
            group.stage.put_task(group.now, &Task::AuditAccount(did.clone()));
        }
        group.notes.push(Note::Quarantined {
            host,
            did: did.clone(),
            reason: kept.asked,
            rev,
            fault: kept.fault,
        });
        self.after_fetch(group, did, row, rev)
    }

    /// A CAR takes the place of the one that was kept, and is to be archived: the first at once, later ones at a
    /// bounded pace, for each stays in the archive.
    pub(super) fn keep_car(group: &mut Group<'_>, did: &Did, row: &mut AccountRow, car: KeptCar) {
        let pace = archive_pace(car.bytes);
        let before = row.kept_car.replace(car);
        row.followed_again_at = None;
        let due = match (&before, row.car_at) {
            // One that waits for its task gives that to the newer one.
            (Some(before), Some(last)) if !before.archived => last,
            (_, Some(last)) => last.plus(pace).max(group.now),
            (_, None) => group.now,
        };
        if let Some(before) = before {
            drop_car(group, before.number);
        }
        row.car_at = Some(due);
        group.stage.put_task(due, &Task::ArchiveCar(did.clone()));
    }

    /// The host gives nothing better than what is kept.
    pub(super) fn stay_quarantined(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
    ) -> Result<(), StoreError> {
        let SyncState::Quarantined {
            rev: Some(rev),
            tries,
            tried_at,
            next_try,
            ..
        } = &mut row.sync
        else {
            // It moved in the meantime, say: what is wanted of it has a task of its own.
            Self::retry_fetch(group, did, row, group.now.plus(REFETCH_FIRST));
            return Ok(());
        };
        *tries = tries.saturating_add(1);
        (*tried_at, *next_try) = (Some(group.now), None);
        let rev = *rev;
        self.after_fetch(group, did, row, rev)
    }

    /// What came while the fetch was under way is a reason for the next one.
    fn after_fetch(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        rev: Rev,
    ) -> Result<(), StoreError> {
        row.min_rev = row.min_rev.filter(|least| *least > rev);
        if std::mem::take(&mut row.fetch_again) || row.min_rev.is_some() {
            Self::refetch_later(group, did, &mut row, Pace::Bounded);
        }
        group.stage.put_account(did, row);
        self.replay_parked(group, did)
    }

    /// A fetch of a quarantined account failed.
    pub(super) fn retry_quarantined(group: &mut Group<'_>, did: &Did, mut row: AccountRow, at: Timestamp) {
        if let SyncState::Quarantined {
            tries,
            tried_at,
            next_try,
            ..
        } = &mut row.sync
        {
            *tries = tries.saturating_add(1);
            (*tried_at, *next_try) = (Some(group.now), Some(at));
            group.stage.put_task(at, &Task::FetchRepo(did.clone()));
        }
        group.stage.put_account(did, row);
    }

    /// What becomes of an event of a quarantined account; `None` if it is not quarantined.
    pub(super) fn quarantine_gate(
        group: &mut Group<'_>,
        did: &Did,
        row: &AccountRow,
        host: &HostName,
        rev: Rev,
        reason: DesyncReason,
    ) -> Option<Fate> {
        let SyncState::Quarantined { rev: kept, .. } = row.sync else {
            return None;
        };
        if kept.is_some_and(|kept| rev <= kept) {
            group.notes.push(Note::Replayed { host: host.clone() });
            return Some(Fate::Done);
        }
        let mut row = row.clone();
        Self::want(group, did, &mut row, reason, Some(rev));
        group.stage.put_account(did, row);
        group.notes.push(Note::SkippedInQuarantine { host: host.clone() });
        Some(Fate::Done)
    }

    /// There is a reason to fetch a quarantined account again.
    pub(super) fn want_quarantined(
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        reason: DesyncReason,
    ) {
        let soon = matches!(
            reason,
            DesyncReason::SyncEvent | DesyncReason::Reactivated | DesyncReason::Requested
        );
        Self::refetch_later(group, did, row, if soon { Pace::Soon } else { Pace::Bounded });
    }

    /// Sees to it that there is a task, no sooner than the pace allows. The pace slows down while nothing better
    /// comes, unless the reason is a good one.
    fn refetch_later(group: &mut Group<'_>, did: &Did, row: &mut AccountRow, pace: Pace) {
        let size = row.kept_car.as_ref().map_or(0, |car| car.bytes);
        let SyncState::Quarantined {
            tries,
            tried_at,
            next_try,
            ..
        } = &mut row.sync
        else {
            return;
        };
        let wait = match pace {
            Pace::Soon => REFETCH_SOON,
            Pace::Bounded => {
                let once = REFETCH_FIRST.max(Duration::from_secs(size / REFETCH_BYTES_PER_SECOND));
                once.saturating_mul(1 << (*tries).min(10)).min(REFETCH_LONGEST)
            }
        };
        let due = tried_at.map_or(group.now, |at| at.plus(wait)).max(group.now);
        if next_try.is_none_or(|next| due < next) {
            group
                .stage
                .repeat_task(*next_try, due, &Task::FetchRepo(did.clone()));
            *next_try = Some(due);
        }
    }

    /// A proven state took the place of what is kept: that goes, if it stands in the archive. `seen` is the rev of
    /// an event that changed nothing because the account was quarantined: it has to be fetched up to there.
    pub(super) fn leave_quarantine(
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        seen: Option<Rev>,
    ) -> Result<(), StoreError> {
        let now = row.head.as_ref().map(|head| head.rev);
        if let Some(car) = row.kept_car.clone() {
            row.followed_again_at = Some(group.now);
            if now.is_some_and(|now| now < car.rev) {
                let place = if car.archived { "in the archive" } else { "kept" };
                let message = format!(
                    "{did}: the host went back from rev {}, which did not rebuild to its signed root; that one is {place}",
                    car.rev
                );
                let host = row.host.clone();
                Self::raise(
                    group,
                    &host,
                    AlarmKind::Rollback,
                    did.as_str(),
                    message,
                    Vec::new(),
                )?;
            }
            if car.archived {
                row.kept_car = None;
                drop_car(group, car.number);
            }
        }
        if seen > now {
            Self::want(group, did, row, DesyncReason::Quarantined, seen);
        }
        Ok(())
    }

    /// A kept CAR stands in the archive.
    pub(super) fn on_car_archived(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        number: u64,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        let Some(car) = row.kept_car.as_mut() else {
            return Ok(());
        };
        if car.number == number {
            car.archived = true;
            if row.sync == SyncState::Live {
                row.kept_car = None;
                drop_car(group, number);
            }
        } else if !car.archived && !car.damaged {
            // Another one came while that one was put, and its task may have been this one.
            let due = group.now.plus(archive_pace(car.bytes));
            row.car_at = Some(due);
            group.stage.put_task(due, &Task::ArchiveCar(did.clone()));
        }
        group.stage.put_account(did, row);
        Ok(())
    }

    /// The bytes of a kept CAR are not those that came: they are left where they are, and the repository is fetched
    /// again, also if its head is the same still.
    pub(super) fn on_car_damaged(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        number: u64,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        let Some(car) = row.kept_car.as_mut().filter(|car| car.number == number) else {
            return Ok(());
        };
        car.damaged = true;
        let rev = car.rev;
        if let SyncState::Quarantined { commit, .. } = &mut row.sync {
            *commit = None;
        }
        let next = match row.sync {
            SyncState::Quarantined { .. } | SyncState::Diverged { .. } => {
                Self::want(group, did, &mut row, DesyncReason::Requested, None);
                "it is fetched again"
            }
            _ => "a newer copy of the account took its place already",
        };
        let message = format!(
            "{did}: the CAR that was kept of it as it came, at rev {rev}, is damaged on this machine's disk, and was not archived; {next}"
        );
        let host = row.host.clone();
        Self::raise(
            group,
            &host,
            AlarmKind::Quarantine,
            did.as_str(),
            message,
            Vec::new(),
        )?;
        group.stage.put_account(did, row);
        Ok(())
    }
}

/// How long the archive waits between two CARs of an account.
fn archive_pace(bytes: u64) -> Duration {
    Duration::from_secs(bytes / ARCHIVED_BYTES_PER_SECOND).min(ARCHIVE_LATEST)
}

/// Removes a kept CAR that no row names any more.
pub(super) fn drop_car(group: &mut Group<'_>, number: u64) {
    let (from, to) = keyspace::number_bounds(number);
    group.stage.batch().delete_range(Family::BlobData, from, to);
}

#[cfg(test)]
#[path = "quarantine_tests.rs"]
mod tests;
