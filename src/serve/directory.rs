#![allow(clippy::disallowed_methods, reason = "shell: measures time")]
//! Who goes by which handle, and how many accounts each host has: from one scan of the accounts, kept for a while.
//!
//! A handle is what an account's DID document claims; nobody has asked the handle's own domain. So one that several
//! accounts claim leads to none of them.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, AccountStatus};
use crate::mirror::{StoreError, keyspace};
use crate::types::{Did, HostName};

use super::params::Handle;

/// Handles that are remembered, about 80 bytes each; the accounts behind them are scanned for each question.
const HANDLES_MAX: usize = 250_000;
/// After this time a new scan is made for the next question...
const AGE_MAX: Duration = Duration::from_secs(60);
/// ...and after this one, if the question had no answer.
const AGE_OF_ABSENCE_MAX: Duration = Duration::from_secs(10);

/// The last scan.
pub(super) struct Directory {
    known: Mutex<Option<Arc<Known>>>,
    /// One scan at a time.
    scanning: Mutex<()>,
    hasher: RandomState,
    handles_max: usize,
}

struct Known {
    at: Instant,
    /// Hash of a handle, and who claimed it; in the order of hashes.
    handles: Vec<(u64, Did)>,
    /// The last account whose handle is remembered, where there are more.
    remembered_to: Option<Did>,
    accounts: BTreeMap<HostName, u64>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            scanning: Mutex::default(),
            hasher: RandomState::new(),
            handles_max: HANDLES_MAX,
        }
    }
}

/// The handle that an account's document claimed when it was last read.
pub(super) fn handle_of(row: &AccountRow) -> Option<&str> {
    row.identity.as_ref()?.handle.as_deref()
}

/// Whether an account is among those that can be found by their handle.
fn is_findable(row: &AccountRow) -> bool {
    row.upstream.is_active() && row.account_number != keyspace::NO_NUMBER
}

impl Directory {
    /// The one account that goes by a handle, if it is active and something of it is held. Blocks while it scans.
    pub(super) fn resolve(&self, mirror: &Mirror<'_>, handle: &Handle) -> Result<Option<Did>, StoreError> {
        let known = self.known(mirror, AGE_MAX)?;
        let found = self.among(&known, mirror, handle)?;
        if found.is_some() || known.at.elapsed() < AGE_OF_ABSENCE_MAX {
            return Ok(found);
        }
        let known = self.known(mirror, AGE_OF_ABSENCE_MAX)?;
        self.among(&known, mirror, handle)
    }

    /// How many accounts a host has here, deleted ones not counted. Blocks while it scans.
    pub(super) fn accounts(&self, mirror: &Mirror<'_>) -> Result<BTreeMap<HostName, u64>, StoreError> {
        Ok(self.known(mirror, AGE_MAX)?.accounts.clone())
    }

    fn among(&self, known: &Known, mirror: &Mirror<'_>, handle: &Handle) -> Result<Option<Did>, StoreError> {
        let hash = self.hasher.hash_one(&handle.0);
        let from = known.handles.partition_point(|(other, _)| *other < hash);
        let same = known.handles[from..]
            .iter()
            .take_while(|(other, _)| *other == hash);
        let mut found = Vec::new();
        for (_, did) in same {
            // What the account claims by now.
            let row = mirror.account(did)?;
            if row.is_some_and(|row| is_findable(&row) && handle_of(&row) == Some(&handle.0)) {
                found.push(did.clone());
            }
        }
        if let Some(last) = &known.remembered_to {
            let mut after = Some(last.clone());
            while let Some(last) = after.take() {
                let page = mirror.accounts(Some(last.as_str()), 256)?;
                after = page.last().map(|(did, _)| did.clone());
                let claims = |row: &AccountRow| is_findable(row) && handle_of(row) == Some(&handle.0);
                found.extend(
                    page.into_iter()
                        .filter(|(_, row)| claims(row))
                        .map(|(did, _)| did),
                );
            }
        }
        Ok(if found.len() == 1 { found.pop() } else { None })
    }

    /// A scan that is not older than this, or one that somebody is just about to renew.
    fn known(&self, mirror: &Mirror<'_>, age_max: Duration) -> Result<Arc<Known>, StoreError> {
        let last = || self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let young = |known: &Arc<Known>| known.at.elapsed() < age_max;
        let old = last();
        if let Some(known) = old.as_ref().filter(|known| young(known)) {
            return Ok(Arc::clone(known));
        }
        let _scanning = match (self.scanning.try_lock(), old) {
            (Ok(scanning), _) => scanning,
            (Err(_), Some(old)) => return Ok(old),
            (Err(_), None) => self.scanning.lock().unwrap_or_else(PoisonError::into_inner),
        };
        if let Some(known) = last().filter(young) {
            return Ok(known);
        }
        let known = Arc::new(self.scan(mirror)?);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&known));
        Ok(known)
    }

    fn scan(&self, mirror: &Mirror<'_>) -> Result<Known, StoreError> {
        let mut known = Known {
            at: Instant::now(),
            handles: Vec::new(),
            remembered_to: None,
            accounts: BTreeMap::new(),
        };
        mirror.each_account(|did, row| {
            if known.handles.len() < self.handles_max
                && let Some(handle) = handle_of(&row)
            {
                known.handles.push((self.hasher.hash_one(handle), did.clone()));
                if known.handles.len() == self.handles_max {
                    known.remembered_to = Some(did);
                }
            }
            if row.upstream != AccountStatus::Deleted {
                *known.accounts.entry(row.host).or_default() += 1;
            }
            ControlFlow::Continue(())
        })?;
        known.handles.sort_unstable_by_key(|(hash, _)| *hash);
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::memory::MemoryStore;
    use crate::serve::fixture::Account;

    fn handle(text: &str) -> Handle {
        text.parse().expect("a handle")
    }

    #[test]
    fn a_handle_leads_to_the_one_active_account_that_claims_it() {
        let store = MemoryStore::new();
        let alice = Account::new("alice", 1).handle("alice.test");
        alice.save(&store);
        for (name, number) in [("mallory", 2), ("trudy", 3)] {
            Account::new(name, number).handle("both.test").save(&store);
        }
        Account::new("gone", 4)
            .handle("gone.test")
            .status(AccountStatus::Takendown)
            .save(&store);
        Account::new("empty", 5)
            .handle("empty.test")
            .unloaded()
            .save(&store);
        Account::new("none", 6).save(&store);
        let mirror = Mirror::new(&store);
        // Few are remembered: the rest is scanned, and the answers are the same.
        for handles_max in [HANDLES_MAX, 1, 2, 5] {
            let directory = Directory {
                handles_max,
                ..Directory::default()
            };
            let resolve = |text: &str| directory.resolve(&mirror, &handle(text)).expect("read");
            assert_eq!(resolve("alice.test"), Some(alice.did.clone()));
            assert_eq!(resolve("Alice.Test"), Some(alice.did.clone()));
            for other in ["both.test", "gone.test", "empty.test", "nobody.test"] {
                assert_eq!(resolve(other), None, "{other}, {handles_max} remembered");
            }
            let accounts = directory.accounts(&mirror).expect("read");
            assert_eq!(accounts.into_values().collect::<Vec<_>>(), [6]);
        }
    }

    #[test]
    fn what_changed_since_the_scan_is_not_told_wrongly() {
        let store = MemoryStore::new();
        Account::new("alice", 1).handle("alice.test").save(&store);
        let mirror = Mirror::new(&store);
        let directory = Directory::default();
        assert!(
            directory
                .resolve(&mirror, &handle("alice.test"))
                .expect("read")
                .is_some()
        );
        Account::new("alice", 1).handle("alicia.test").save(&store);
        assert_eq!(
            directory.resolve(&mirror, &handle("alice.test")).expect("read"),
            None
        );
        // A new one is found once the scan is old.
        let renewed = Directory::default();
        assert!(
            renewed
                .resolve(&mirror, &handle("alicia.test"))
                .expect("read")
                .is_some()
        );
    }
}
