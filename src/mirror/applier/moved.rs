//! Accounts that move from host to host, as their DID documents say.
//!
//! The document decides who speaks for an account, nothing else. Followed hosts pass an account on to each
//! other under the same DID number, with its history; when it goes where nobody is followed, what we hold
//! stays as it was. What a host says of an account that is not its own changes nothing, but it may be the
//! first sign of a move, so the document is read again then, at most once a minute.

use std::time::Duration;

use super::super::keyspace::{self, Task};
use super::super::rows::{AccountRow, DesyncReason, StoredIdentity, SyncState};
use super::super::store::{Family, StoreError};
use super::{Applier, Group, Note};
use crate::types::{AccountStatus, Did, HostName, Timestamp};
use crate::verify::RejectReason;

/// Because a host contradicts it, a document is read again once in this time.
const ASK_INTERVAL: Duration = Duration::from_secs(60);
/// A little more, so that the resolver does not think it too soon.
const ASK_SLACK: Duration = Duration::from_secs(1);
/// After it could not be.
const ASK_RETRY: Duration = Duration::from_secs(3600);

/// What a DID document meant for where an account is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// Nothing: it names the host that we have, or none.
    AsBefore,
    /// The account is another host's now, or nobody's that we follow.
    Elsewhere,
}

impl Applier {
    /// Whether a host is not the one to speak for an account, or nobody is. Then its event is refused, and the
    /// account's document is read again, for the account may have moved there.
    pub(super) fn is_foreign(group: &mut Group<'_>, did: &Did, row: &AccountRow, host: &HostName) -> bool {
        if row.host == *host && !matches!(row.sync, SyncState::Moved { .. }) {
            return false;
        }
        group.notes.push(Note::Rejected {
            host: host.clone(),
            did: Some(did.clone()),
            reason: RejectReason::WrongHost,
        });
        Self::ask_identity(group, did, row);
        true
    }

    /// Has an account's document read again, once a minute at most. Nothing waits for it.
    pub(super) fn ask_identity(group: &mut Group<'_>, did: &Did, row: &AccountRow) {
        if row.awaiting_identity {
            return;
        }
        // What was read within the minute may be from just before the move: it is read again after that minute.
        let again = row
            .identity
            .as_ref()
            .map(|read| read.read_at.plus(ASK_INTERVAL).plus(ASK_SLACK));
        match again.filter(|at| *at > group.now) {
            // However many events ask, it is one task: all of them know the same reading.
            Some(at) => group.stage.put_task(at, &Task::ResolveIdentity(did.clone())),
            None => Self::ask_identity_at(group, did, group.now.minus(ASK_INTERVAL)),
        }
    }

    /// An account's document could not be read, and nothing waits for it.
    pub(super) fn ask_identity_later(group: &mut Group<'_>, did: &Did, row: &AccountRow) {
        if row.upstream != AccountStatus::Deleted {
            Self::ask_identity_at(group, did, group.now.plus(ASK_RETRY));
        }
    }

    /// In whole minutes: however many events ask, it is one task.
    fn ask_identity_at(group: &mut Group<'_>, did: &Did, earliest: Timestamp) {
        let minute = ASK_INTERVAL.as_micros() as u64;
        let due = Timestamp::from_micros(earliest.micros().next_multiple_of(minute));
        group.stage.put_task(due, &Task::ResolveIdentity(did.clone()));
    }

    /// Takes over what a document says, and follows the account to the host that it names.
    pub(super) fn take_identity(
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        identity: StoredIdentity,
    ) -> Result<Placed, StoreError> {
        let named = identity.host.as_deref().and_then(|host| host.parse().ok());
        row.identity = Some(identity);
        row.awaiting_identity = false;
        let Some(named) = named else {
            return Ok(Placed::AsBefore);
        };
        let was_away = matches!(row.sync, SyncState::Moved { .. });
        if named == row.host && !was_away {
            return Ok(Placed::AsBefore);
        }
        if named == row.host || group.stage.host(&named)?.is_some() {
            Self::follow_at(group, did, row, named);
        } else {
            Self::move_away(group, did, row, named);
        }
        Ok(Placed::Elsewhere)
    }

    /// The account goes on at a followed host: it is compared there, and fetched unless our head is its head.
    fn follow_at(group: &mut Group<'_>, did: &Did, row: &mut AccountRow, host: HostName) {
        let from = std::mem::replace(&mut row.host, host);
        // Nobody has said yet that what was hidden may be shown: it stays hidden until the new host is asked.
        // A deletion is the old host's own, and must not be confirmed by one that has nothing yet.
        if !row.upstream.is_active() {
            if row.upstream == AccountStatus::Deleted {
                row.upstream = AccountStatus::Deactivated;
                Self::log_status(group, did, row);
            }
            group.stage.put_task(group.now, &Task::AuditAccount(did.clone()));
        }
        // How far the old host's stream had got says nothing here.
        row.status_seq = 0;
        row.status_at = None;
        row.min_rev = None;
        row.deletion_confirmed_at = None;
        row.diverged_before_fetch |= matches!(row.sync, SyncState::Diverged { .. });
        let reason = DesyncReason::Moved;
        row.sync = SyncState::Wanted {
            reason,
            since: group.now,
            tries: 0,
        };
        group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
        group.notes.push(Note::Moved {
            did: did.clone(),
            from,
            to: row.host.clone(),
            followed: true,
        });
        group.notes.push(Note::Desynchronized {
            did: did.clone(),
            reason,
        });
    }

    /// The account is at a host that is not followed. What waits for it came from where it no longer is.
    fn move_away(group: &mut Group<'_>, did: &Did, row: &mut AccountRow, to: HostName) {
        if matches!(&row.sync, SyncState::Moved { to: known, .. } if *known == to) {
            return;
        }
        let (first, last) = keyspace::number_bounds(row.did_number);
        group
            .stage
            .batch()
            .delete_range(Family::Parked, first.to_vec(), last.to_vec());
        (row.parked, row.parked_bytes) = (0, 0);
        row.diverged_before_fetch |= matches!(row.sync, SyncState::Diverged { .. });
        row.sync = SyncState::Moved {
            to: to.clone(),
            since: group.now,
        };
        group.notes.push(Note::Moved {
            did: did.clone(),
            from: row.host.clone(),
            to,
            followed: false,
        });
    }
}
