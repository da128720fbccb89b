//! What owners and admins ask for, and hosts of which only some accounts are followed.
//!
//! An account that is not followed has at most a row, from its host's listing, so that it can be told which there
//! are: what the stream says of it is passed over, and nothing of it is fetched.

use super::super::input::Ask;
use super::super::keyspace::Task;
use super::super::rows::{
    AccountRow, DesyncReason, HostRow, Listing, Owner, Pin, PinReason, Scope, SyncState,
};
use super::super::store::StoreError;
use super::{Applier, ErasedMark, Group};
use crate::types::{AccountStatus, Did, HostName};

/// So many accounts of a host are listed that are not followed; the others have no row.
const UNFOLLOWED_MAX: u64 = 10_000;

impl Applier {
    pub(super) fn on_asked(&mut self, group: &mut Group<'_>, ask: Ask) -> Result<(), StoreError> {
        match ask {
            Ask::SignUp { did, host, key } => self.on_sign_up(group, &did, &host, key),
            Ask::Removal { did, due } => self.change(group, &did, |_, row| {
                let mut owner = row.owner.take().unwrap_or_default();
                owner.removal_due = due;
                row.owner = (owner != Owner::default()).then_some(owner);
            }),
            Ask::Snapshot { did } => self.change(group, &did, |group, row| {
                if row.head.is_some() && !row.is_snapshotted() {
                    let known = row.snapshot_at.filter(|_| row.snapshot_due);
                    group
                        .stage
                        .repeat_task(known, group.now, &Task::Snapshot(did.clone()));
                    (row.snapshot_due, row.snapshot_at) = (true, Some(group.now));
                }
            }),
            Ask::Pin { did } => self.change(group, &did, |group, row| {
                if row.pins.iter().all(|pin| pin.reason != PinReason::Asked) {
                    row.pins.push(Pin {
                        generation: None,
                        head: None,
                        snapshot: row.snapshot,
                        since: group.now,
                        reason: PinReason::Asked,
                    });
                }
            }),
            Ask::Unpin { did } => self.change(group, &did, |_, row| {
                row.pins.retain(|pin| pin.reason != PinReason::Asked);
            }),
            Ask::Host {
                host,
                url,
                scope,
                added,
            } => Self::on_host_asked(group, &host, &url, scope, added),
        }
    }

    fn change(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        change: impl FnOnce(&mut Group<'_>, &mut AccountRow),
    ) -> Result<(), StoreError> {
        if let Some(mut row) = self.account(group, did)? {
            change(group, &mut row);
            group.stage.put_account(did, row);
        }
        Ok(())
    }

    fn on_sign_up(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
        key: Option<String>,
    ) -> Result<(), StoreError> {
        let mut row = self.account_or_new(group, did, host)?;
        if row.unfollowed {
            row.host = host.clone();
            Self::follow_now(group, did, &mut row);
        } else if row.host != *host || matches!(row.sync, SyncState::Moved { .. }) {
            // Where it is followed its document decides.
            Self::ask_identity(group, did, &row);
        }
        let owner = row.owner.get_or_insert_default();
        owner.signed_up = owner.signed_up.or(Some(group.now));
        owner.pinned_key = key.or(owner.pinned_key.take());
        owner.removal_due = None;
        group.stage.put_account(did, row);
        Ok(())
    }

    /// From now on an account of a host is followed.
    pub(super) fn follow_now(group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        row.unfollowed = false;
        if row.erased == Some(ErasedMark::Whole) {
            return;
        }
        row.sync = SyncState::Wanted {
            reason: DesyncReason::New,
            since: group.now,
            tries: 0,
        };
        group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
    }

    fn on_host_asked(
        group: &mut Group<'_>,
        host: &HostName,
        url: &str,
        scope: Scope,
        added: bool,
    ) -> Result<(), StoreError> {
        let mut row = group.stage.host(host)?.unwrap_or_else(|| HostRow::new(url));
        url.clone_into(&mut row.url);
        row.added = added;
        if set_scope(&mut row, scope) {
            group.stage.put_task(group.now, &Task::ListRepos(host.clone()));
        }
        group.stage.put_host(host, row);
        Ok(())
    }

    /// Whether what a host says of an account is taken: all of it, or only of those that are followed.
    pub(super) fn is_followed(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        scope: Scope,
    ) -> Result<bool, StoreError> {
        if scope == Scope::All {
            return Ok(true);
        }
        let row = self.account(group, did)?;
        Ok(row.is_some_and(|row| !row.unfollowed))
    }

    /// An account that a host lists and that is not followed. Returns whether it is passed over.
    pub(super) fn list_unfollowed(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
        status: &AccountStatus,
    ) -> Result<bool, StoreError> {
        let Some(host_row) = group.stage.host(host)?.filter(|row| row.scope == Scope::Listed) else {
            return Ok(false);
        };
        match self.account(group, did)? {
            Some(row) if !row.unfollowed => Ok(false),
            Some(mut row) => {
                if row.host == *host && row.upstream != *status {
                    row.upstream = status.clone();
                    group.stage.put_account(did, row);
                }
                Ok(true)
            }
            None => {
                if host_row.listed < UNFOLLOWED_MAX {
                    let mut row = self.account_or_new(group, did, host)?;
                    row.upstream = status.clone();
                    group.stage.put_account(did, row);
                }
                Ok(true)
            }
        }
    }
}

/// Returns whether the host is to be listed anew, for accounts that were passed over.
pub(super) fn set_scope(row: &mut HostRow, scope: Scope) -> bool {
    let wider = row.scope == Scope::Listed && scope == Scope::All;
    row.scope = scope;
    if wider {
        row.listing = Listing::Unfinished { cursor: None };
    }
    wider
}
