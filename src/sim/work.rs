//! A model of the dispatcher and of the work that it starts (`daemon/work.rs`, `mirror/listing.rs`,
//! `mirror/blobs.rs`, `archive/keeper.rs`).
//!
//! A piece of work looks at its row when it starts, talks to the network some time later, and its result
//! reaches the applier later still: everything else happens in between.

use std::time::Duration;

use super::asked::ask_again;
use super::bucket;
use super::daemon::Daemon;
use super::faults::Fault;
use super::pds::{Network, Refusal};
use super::world::{Event, World};
use crate::mirror::input::{BlobKey, Input, ListedPage, ListedRepo};
use crate::mirror::keyspace::{self, Task, TaskKind};
use crate::mirror::reader::{DueTask, Mirror};
use crate::mirror::rows::{AccountRow, BlobFailure, BlobState, Listing, SyncState};
use crate::mirror::store::{Batch, Family, Store as _, StoreError};
use crate::types::{Did, Digest, Timestamp};

/// As in `daemon/work.rs`.
const LIMITS: [(TaskKind, usize); 8] = [
    (TaskKind::FetchRepo, 4),
    (TaskKind::FetchBlob, 6),
    (TaskKind::ResolveIdentity, 8),
    (TaskKind::ListRepos, 2),
    (TaskKind::AuditAccount, 2),
    (TaskKind::SweepBlobs, 4),
    (TaskKind::ArchiveBlob, 4),
    (TaskKind::Snapshot, 2),
];
const UNFOLLOWED_RETRY: Duration = Duration::from_secs(3600);
const AUDIT_RETRY: Duration = Duration::from_secs(300);
/// As in `mirror/listing.rs`.
const LIST_RETRY: Duration = Duration::from_secs(15);
/// Accounts on a page.
const LIST_LIMIT: usize = 2;
/// As in `mirror/blobs.rs`.
const BLOB_RETRIES: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(24 * 3600),
];

/// A piece of work under way.
pub struct Work {
    pub(super) key: Vec<u8>,
    pub(super) task: Task,
    /// Its account's row when it began.
    pub(super) row: Option<AccountRow>,
    /// When it began.
    pub(super) begun: Timestamp,
    /// Where a listing goes on.
    cursor: Option<String>,
    /// What the network said: for the applier, in this order.
    results: Vec<Input>,
    /// Another page follows.
    more: bool,
}

impl Daemon {
    /// Schedules the next look at the tasks.
    pub(super) fn plan(&mut self, world: &mut World) {
        let Ok(tasks) = Mirror::new(&self.store).due_tasks(u64::MAX - 1, usize::MAX) else {
            return;
        };
        let waiting = tasks.iter().find(|due| !self.busy.contains(&due.task));
        let Some(due_ms) = waiting.map(|due| due.due_ms) else {
            return;
        };
        let at = Timestamp::from_micros(due_ms * 1000).max(world.now.plus(Duration::from_millis(5)));
        if self.work_at.is_some_and(|planned| planned <= at.micros()) {
            return;
        }
        self.work_at = Some(at.micros());
        world.at(at, Event::Work { life: self.life });
    }

    /// Starts what is due, within the limits.
    ///
    /// # Errors
    /// When the store fails.
    pub fn look(&mut self, world: &mut World) -> Result<(), StoreError> {
        // A look that an earlier one took the place of.
        if self.work_at != Some(world.now.micros()) {
            return Ok(());
        }
        self.work_at = None;
        let tasks = Mirror::new(&self.store).due_tasks(world.now.millis(), usize::MAX)?;
        let mut left = false;
        for DueTask { due_ms, task, .. } in tasks {
            let running = self
                .busy
                .iter()
                .filter(|other| other.kind() == task.kind())
                .count();
            let limit = LIMITS.iter().find(|(kind, _)| *kind == task.kind());
            if self.busy.contains(&task) {
                continue;
            }
            if limit.is_some_and(|(_, limit)| running >= *limit) {
                left = true;
                continue;
            }
            self.busy.insert(task.clone());
            self.start_work(world, keyspace::encode_task(due_ms, &task), task)?;
        }
        if left {
            // The end of what runs leads to another look.
            return Ok(());
        }
        self.plan(world);
        Ok(())
    }

    fn start_work(&mut self, world: &mut World, key: Vec<u8>, task: Task) -> Result<(), StoreError> {
        let mirror = Mirror::new(&self.store);
        let mut cursor = None;
        let row = match &task {
            Task::FetchRepo(did)
            | Task::FetchBlob(did, _)
            | Task::ResolveIdentity(did)
            | Task::AuditAccount(did)
            | Task::ArchiveBlob(did, _)
            | Task::ArchiveCar(did)
            | Task::ArchiveIdentity(did)
            | Task::Snapshot(did) => mirror.account(did)?,
            Task::ListRepos(host) => {
                cursor = mirror.host(host)?.map(|row| match row.listing {
                    Listing::Unfinished { cursor } => cursor.unwrap_or_default(),
                    Listing::Finished { .. } => String::new(),
                });
                None
            }
            Task::DropGeneration(_) | Task::SweepBlobs(_) => None,
        };
        let id = self.next_work;
        self.next_work += 1;
        let work = Work {
            key,
            task,
            row,
            begun: world.now,
            cursor,
            results: Vec::new(),
            more: false,
        };
        self.works.insert(id, work);
        let wait = world.net_rng.millis(1, 1_500);
        world.after(
            wait,
            Event::Talk {
                life: self.life,
                work: id,
            },
        );
        Ok(())
    }

    /// A piece of work talks to the network.
    ///
    /// # Errors
    /// When the store fails.
    pub fn talk(&mut self, world: &mut World, net: &Network, id: u64) -> Result<(), StoreError> {
        let Some(mut work) = self.works.remove(&id) else {
            return Ok(());
        };
        let done = Input::TaskDone {
            task: work.key.clone(),
        };
        let hosted = matches!(
            work.task,
            Task::FetchRepo(_) | Task::FetchBlob(..) | Task::AuditAccount(_)
        );
        if hosted
            && work
                .row
                .as_ref()
                .is_some_and(|row| matches!(row.sync, SyncState::Moved { .. }))
        {
            // Its host is not followed any more.
            work.results = vec![Input::TaskDelayed {
                key: work.key.clone(),
                task: work.task.clone(),
                retry_at: world.now.plus(UNFOLLOWED_RETRY),
            }];
            self.works.insert(id, work);
            world.after(
                Duration::from_millis(1),
                Event::Result {
                    life: self.life,
                    work: id,
                },
            );
            return Ok(());
        }
        work.results = match work.task.clone() {
            Task::FetchRepo(did) => vec![self.fetch_repo(world, net, &did, &work)?],
            Task::FetchBlob(did, digest) => vec![self.fetch_blob(world, net, did, digest, &work)?],
            Task::ResolveIdentity(did) => vec![self.resolve_task(world, net, did, &work)],
            Task::ListRepos(_) => vec![self.list(world, net, &mut work)],
            Task::AuditAccount(did) => audit(net, did, &work, world.now),
            Task::ArchiveBlob(did, digest) => vec![self.archive_blob(world, did, digest, &work)?],
            Task::Snapshot(did) => vec![self.snapshot(world, did, &work)?],
            Task::ArchiveCar(did) => vec![self.archive_car(world, did, &work)?],
            // The directory's own words are not simulated.
            Task::ArchiveIdentity(_) | Task::DropGeneration(_) => vec![done],
            Task::SweepBlobs(host) => vec![self.sweep(world, net, host, &work)?],
        };
        let wait = match work.task {
            Task::ArchiveBlob(..) | Task::ArchiveCar(_) | Task::Snapshot(_) => bucket::duration(world),
            _ => world.net_rng.millis(1, 1_500),
        };
        self.works.insert(id, work);
        world.after(
            wait,
            Event::Result {
                life: self.life,
                work: id,
            },
        );
        Ok(())
    }

    /// The result of a piece of work reaches the applier.
    pub fn result(&mut self, world: &mut World, id: u64) {
        let Some(mut work) = self.works.remove(&id) else {
            return;
        };
        let count = work.results.len();
        for (index, input) in std::mem::take(&mut work.results).into_iter().enumerate() {
            let last = index + 1 == count && !work.more;
            self.send(world, input, last.then(|| work.task.clone()));
        }
        if work.more {
            self.works.insert(id, work);
            let wait = world.net_rng.millis(1, 500);
            world.after(
                wait,
                Event::Talk {
                    life: self.life,
                    work: id,
                },
            );
        }
    }

    // listings

    fn list(&self, world: &mut World, net: &Network, work: &mut Work) -> Input {
        let task = work.key.clone();
        work.more = false;
        let Task::ListRepos(host) = work.task.clone() else {
            return Input::TaskDone { task };
        };
        let Some(cursor) = work.cursor.take() else {
            return Input::TaskDone { task };
        };
        let pds = net
            .hosts
            .iter()
            .find(|pds| pds.name == host)
            .expect("every host is followed");
        let cursor = Some(cursor.as_str()).filter(|cursor| !cursor.is_empty());
        let page = if world.strikes(Fault::ServerError, 100) {
            Err(Refusal::Unreachable)
        } else {
            pds.list(cursor, LIST_LIMIT)
        };
        let Ok((repos, next)) = page else {
            return Input::TaskDelayed {
                key: task,
                task: work.task.clone(),
                retry_at: world.now.plus(LIST_RETRY),
            };
        };
        let repos = repos.into_iter().map(|(did, head, status)| ListedRepo {
            did,
            head: Some(head),
            status,
        });
        work.more = next.is_some();
        work.cursor.clone_from(&next);
        Input::Listed(ListedPage {
            host,
            repos: repos.collect(),
            asked_at: world.now,
            listing: match next {
                Some(next) => Listing::Unfinished { cursor: Some(next) },
                None => Listing::Finished { at: world.now },
            },
            task: (!work.more).then_some(task),
        })
    }

    // blobs and the archive

    pub(super) fn blob_key(&self, did: &Did, digest: Digest) -> Result<Option<BlobKey>, StoreError> {
        let row = Mirror::new(&self.store).account(did)?;
        Ok(row.map(|row| BlobKey {
            did: did.clone(),
            did_number: row.did_number,
            digest,
        }))
    }

    fn fetch_blob(
        &self,
        world: &mut World,
        net: &Network,
        did: Did,
        digest: Digest,
        work: &Work,
    ) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let Some(blob) = self.blob_key(&did, digest)? else {
            return Ok(Input::TaskDone { task });
        };
        let row = match Mirror::new(&self.store).blob(blob.did_number, &digest)? {
            Some(row) if row.state.is_stored() && row.withheld_since.is_some() => {
                return Ok(ask_again(world, net, blob, work));
            }
            Some(row) if !row.state.is_stored() && row.state != BlobState::Withdrawn => row,
            _ => return Ok(Input::TaskDone { task }),
        };
        let host = work
            .row
            .as_ref()
            .and_then(|row| net.hosts.iter().find(|pds| pds.name == row.host));
        let answer = match host {
            _ if world.strikes(Fault::ServerError, 150) => Err(BlobFailure::HostError),
            None => Err(BlobFailure::Unreachable),
            Some(pds) => pds
                .blob(&did, &digest, world.now)
                .map_err(|refusal| match refusal {
                    Refusal::Unreachable => BlobFailure::Unreachable,
                    Refusal::NotFound => BlobFailure::NotFound,
                    Refusal::Inactive(_) => BlobFailure::Refused,
                }),
        };
        let answer = answer.and_then(|bytes| {
            let good = *crate::types::Cid::of_blob(&bytes).digest() == digest;
            if good {
                Ok(bytes)
            } else {
                Err(BlobFailure::WrongBytes)
            }
        });
        Ok(match answer {
            Ok(bytes) => {
                let mut batch = Batch::new();
                let size = bytes.len() as u64;
                let chunk = keyspace::encode_blob_data(blob.did_number, &digest, 0);
                batch.put(Family::BlobData, chunk, bytes);
                self.store.write(batch)?;
                Input::BlobStored {
                    blob,
                    size,
                    mime: None,
                    task,
                }
            }
            Err(failure) => {
                let wait = BLOB_RETRIES[(row.tries as usize).min(BLOB_RETRIES.len() - 1)];
                let jitter = Duration::from_millis(world.daemon_rng.below(wait.as_secs() * 250 + 1));
                Input::BlobFailed {
                    blob,
                    failure,
                    task,
                    retry_at: world.now.plus(wait).plus(jitter),
                }
            }
        })
    }
}

pub(super) fn delayed(world: &mut World, key: Vec<u8>, task: Task, wait: Duration) -> Input {
    let jitter = world.daemon_rng.millis(0, 5_000);
    let retry_at = world.now.plus(wait).plus(jitter);
    Input::TaskDelayed { key, task, retry_at }
}

fn audit(net: &Network, did: Did, work: &Work, now: Timestamp) -> Vec<Input> {
    let task = work.key.clone();
    let host = work
        .row
        .as_ref()
        .and_then(|row| net.hosts.iter().find(|pds| pds.name == row.host));
    let Some(pds) = host.filter(|pds| !pds.down) else {
        return vec![Input::TaskDelayed {
            key: task,
            task: Task::AuditAccount(did),
            retry_at: now.plus(AUDIT_RETRY),
        }];
    };
    let held = pds.books.accounts.get(&did).filter(|held| !held.forgotten);
    let status = held.map(|held| held.status.clone());
    let shown = held.filter(|held| held.status.is_active());
    let audited = Input::Audited {
        did: did.clone(),
        host: pds.name.clone(),
        status,
        head: shown.map(|held| held.head().1),
        asked_at: now,
        task,
    };
    let Some(held) = shown else { return vec![audited] };
    let listed = Input::BlobsListed {
        did,
        digests: held.blobs.keys().copied().collect(),
        complete: Some(now),
    };
    vec![listed, audited]
}
