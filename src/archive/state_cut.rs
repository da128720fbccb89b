//! What the mirror says of its hosts and of itself, as the archive keeps it ([`super::state_file`]).
//!
//! Pure: reads a consistent view and builds.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::state_file::{ACCOUNTS_MAX, AccountState, HostState, PinState, ServiceState};
use crate::mirror::keyspace::META_NEXT_LOG;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, HostRow, Listing, Pin, SyncState};
use crate::mirror::store::StoreError;
use crate::types::{Cid, Did, HostName, Timestamp};

/// Blobs of an account that are read at a time.
const PAGE: usize = 1024;

/// How a host stands; `None` while nothing was heard of it.
///
/// # Errors
/// When the mirror cannot be read.
pub fn host_state(
    mirror: &Mirror<'_>,
    host: &HostName,
    now: Timestamp,
) -> Result<Option<HostState>, StoreError> {
    let Some(row) = mirror.host(host)? else {
        return Ok(None);
    };
    let listed = match &row.listing {
        Listing::Finished { at } => Some(*at),
        Listing::Unfinished { .. } => None,
    };
    if row.cursor.is_none() && listed.is_none() {
        return Ok(None);
    }
    let (mut accounts, mut bad) = (BTreeMap::new(), None);
    mirror.each_account(|did, account| {
        // What is not followed is in no backup, and missing from none.
        if account.host != *host || account.unfollowed {
            return ControlFlow::Continue(());
        }
        match withheld(mirror, account.did_number) {
            Ok(withheld) => drop(accounts.insert(did, account_state(&account, withheld))),
            Err(error) => bad = Some(error),
        }
        match bad.is_some() || accounts.len() >= ACCOUNTS_MAX {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    if let Some(error) = bad {
        return Err(error);
    }
    let HostRow {
        url,
        epoch,
        cursor,
        highest_seq,
        last_event,
        ring,
        rolled_back_at,
        ..
    } = row;
    Ok(Some(HostState {
        host: host.clone(),
        time: now,
        url,
        epoch,
        cursor,
        highest_seq,
        listed,
        last_event,
        rolled_back_at,
        ring,
        log_next: mirror.number(META_NEXT_LOG)?.unwrap_or(1),
        accounts,
    }))
}

fn account_state(row: &AccountRow, withheld: Vec<Cid>) -> AccountState {
    // What waits here is not in the archive: whoever goes on from there has to ask the host.
    let waits =
        row.parked > 0 || row.awaiting_identity || row.fetch_again || row.damaged || row.unlogged.is_some();
    AccountState {
        status: row.upstream.clone(),
        sync: match &row.sync {
            SyncState::Live if waits => "wanted".to_owned(),
            state => state.label().to_owned(),
        },
        moved_to: match &row.sync {
            SyncState::Moved { to, .. } => Some(to.clone()),
            _ => None,
        },
        deleted_at: row.deletion_confirmed_at,
        withheld,
    }
}

fn withheld(mirror: &Mirror<'_>, did_number: u64) -> Result<Vec<Cid>, StoreError> {
    let (mut blobs, mut after) = (Vec::new(), None);
    loop {
        let page = mirror.blobs_page(did_number, after.as_ref(), PAGE)?;
        let hidden = page.iter().filter(|(_, row)| row.withheld_since.is_some());
        blobs.extend(hidden.map(|(digest, _)| Cid::raw(*digest)));
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(*last),
            _ => return Ok(blobs),
        }
    }
}

/// What this Firekeep is: which hosts it follows, its alarms, and what is pinned.
///
/// # Errors
/// When the mirror cannot be read.
pub fn service_state(
    mirror: &Mirror<'_>,
    hosts: &BTreeMap<HostName, String>,
    now: Timestamp,
) -> Result<ServiceState, StoreError> {
    let mut pins: BTreeMap<Did, Vec<PinState>> = BTreeMap::new();
    mirror.each_account(|did, row| {
        if !row.pins.is_empty() {
            pins.insert(did, row.pins.iter().map(pin_state).collect());
        }
        ControlFlow::Continue(())
    })?;
    Ok(ServiceState {
        time: now,
        hosts: hosts.clone(),
        alarms: mirror.alarms()?.into_iter().collect(),
        pins,
    })
}

fn pin_state(pin: &Pin) -> PinState {
    PinState {
        since: pin.since,
        reason: pin.reason,
        head: pin.head.as_ref().map(|head| (head.rev, head.commit)),
        snapshot: pin.snapshot.map(|mark| (mark.rev, mark.commit)),
    }
}
