//! A host that is there (again): what it is asked for now, without waiting any longer.

use std::ops::ControlFlow;
use std::time::Duration;

use super::super::keyspace::{self, Task};
use super::super::rows::{BlobFailure, BlobState, Listing, SweepMark, SyncState};
use super::super::store::{Family, KeyRange, StoreError};
use super::{Applier, Group};
use crate::types::{Did, Digest, HostName};

/// A host whose connection comes and goes takes up again what waits for it once in this time.
const WAKE_INTERVAL: Duration = Duration::from_secs(60);
/// Tasks that are looked at for it, at most; the others come at their own time.
const WAKE_TASKS_MAX: usize = 200_000;

impl Applier {
    /// A host's stream is open.
    pub(super) fn on_connected(&mut self, group: &mut Group<'_>, host: &HostName) -> Result<(), StoreError> {
        let Some(mut row) = group.stage.host(host)? else {
            return Ok(());
        };
        // Without a cursor nothing tells what was missed since the last listing: no event has ever come.
        if matches!(row.listing, Listing::Unfinished { .. }) || row.cursor.is_none() {
            group.stage.put_task(group.now, &Task::ListRepos(host.clone()));
        }
        if row.sweep.is_none() {
            row.sweep = Some(SweepMark::new(group.now));
            group.stage.put_task(group.now, &Task::SweepBlobs(host.clone()));
            group.stage.put_host(host, row);
        }
        let woken = self.woken.get(host);
        if woken.is_none_or(|at| group.now.since(*at) >= WAKE_INTERVAL) {
            self.woken.insert(host.clone(), group.now);
            self.wake(group, host)?;
        }
        Ok(())
    }

    /// What could not be fetched of this host is tried again now, and its waits begin anew.
    fn wake(&self, group: &mut Group<'_>, host: &HostName) -> Result<(), StoreError> {
        let (mut later, mut looked, mut bad) = (Vec::new(), 0, None);
        let from = keyspace::encode_number(group.now.millis().saturating_add(1));
        let range = KeyRange::all().starting_at(&from);
        group.stage.store().scan(Family::Tasks, &range, &mut |key, _| {
            looked += 1;
            match keyspace::decode_task(key) {
                Ok((_, task @ (Task::FetchRepo(_) | Task::FetchBlob(..)))) => {
                    later.push((key.to_vec(), task))
                }
                Ok(_) => {}
                Err(error) => bad = Some(StoreError::bad_row(Family::Tasks, key, error)),
            }
            if looked < WAKE_TASKS_MAX && bad.is_none() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = bad {
            return Err(error);
        }
        for (key, task) in later {
            let now = match &task {
                Task::FetchRepo(did) => self.wake_repo(group, host, did)?,
                Task::FetchBlob(did, digest) => self.wake_blob(group, host, did, digest)?,
                _ => false,
            };
            if now {
                group.stage.delete_task(&key);
                group.stage.put_task(group.now, &task);
            }
        }
        Ok(())
    }

    fn wake_repo(&self, group: &mut Group<'_>, host: &HostName, did: &Did) -> Result<bool, StoreError> {
        let Some(mut row) = self.account(group, did)? else {
            return Ok(false);
        };
        let here = row.host == *host && row.upstream.is_active();
        let SyncState::Wanted { tries, .. } = &mut row.sync else {
            return Ok(false);
        };
        if !here {
            return Ok(false);
        }
        *tries = 0;
        group.stage.put_account(did, row);
        Ok(true)
    }

    /// A blob that the host did not give is asked for at its own time; one that it could not give, now.
    fn wake_blob(
        &self,
        group: &mut Group<'_>,
        host: &HostName,
        did: &Did,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let Some(account) = self.account(group, did)? else {
            return Ok(false);
        };
        let here = account.host == *host && account.upstream.is_active();
        let row = group.stage.blob(account.did_number, digest)?;
        let Some(mut row) = row.filter(|_| here) else {
            return Ok(false);
        };
        let passing = match row.state {
            BlobState::Wanted => true,
            BlobState::Missing { reason, .. } => {
                matches!(reason, BlobFailure::Unreachable | BlobFailure::HostError)
            }
            BlobState::Held | BlobState::Archived | BlobState::Withdrawn | BlobState::Erased => false,
        };
        if passing {
            row.tries = 0;
            group.stage.put_blob(account.did_number, digest, row);
        }
        Ok(passing)
    }
}
