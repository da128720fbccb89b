//! A model of the dispatcher and of the work that it starts (`daemon/work.rs`, `mirror/resync.rs`,
//! `mirror/listing.rs`, `mirror/blobs.rs`, `archive/keeper.rs`, `identity/resolver.rs`).
//!
//! A piece of work looks at its row when it starts, talks to the network some time later, and its result
//! reaches the applier later still: everything else happens in between.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::daemon::Daemon;
use super::faults::Fault;
use super::pds::{Network, Refusal};
use super::world::{Event, World};
use crate::mirror::input::{
    BlobKey, BlobMention, FetchFailure, Fetched, FetchedContent, Input, ListedPage, ListedRepo,
    SnapshotStored,
};
use crate::mirror::keyspace::{self, Task, TaskKind};
use crate::mirror::reader::{DueTask, Mirror};
use crate::mirror::rows::{
    AccountRow, BlobFailure, BlobState, DesyncReason, Listing, RecordValue, StoredIdentity, SyncState,
};
use crate::mirror::store::{Batch, Family, Store as _, StoreError};
use crate::repo::car::{encode_block, encode_header, parse_car};
use crate::repo::commit::Commit;
use crate::repo::export::prove;
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::types::{Did, Digest, HostName, Timestamp};
use crate::verify::check_repo;

/// As in `daemon/work.rs`.
const LIMITS: [(TaskKind, usize); 7] = [
    (TaskKind::FetchRepo, 4),
    (TaskKind::FetchBlob, 6),
    (TaskKind::ResolveIdentity, 8),
    (TaskKind::ListRepos, 2),
    (TaskKind::AuditAccount, 2),
    (TaskKind::ArchiveBlob, 4),
    (TaskKind::Snapshot, 2),
];
const IDENTITY_RETRY: Duration = Duration::from_secs(10);
const UNFOLLOWED_RETRY: Duration = Duration::from_secs(3600);
const AUDIT_RETRY: Duration = Duration::from_secs(300);
/// As in `mirror/listing.rs`.
const LIST_RETRY: Duration = Duration::from_secs(15);
/// Accounts on a page.
const LIST_LIMIT: usize = 2;
/// As in `mirror/resync.rs`.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LONGEST: Duration = Duration::from_secs(3600);
const INACTIVE_RETRY: Duration = Duration::from_secs(6 * 3600);
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
/// As in `identity/resolver.rs`.
const FRESH_FOR: Duration = Duration::from_secs(24 * 3600);
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
const FAILURE_FOR: Duration = Duration::from_secs(15);

/// How a fault says that nothing but the key is wrong.
const OTHER_KEY: &str = "bad_signature";

/// What the resolver remembers of a DID.
#[derive(Debug, Clone, Default)]
pub struct Cached {
    identity: Option<StoredIdentity>,
    failed_until: Option<Timestamp>,
    refreshed_at: Option<Timestamp>,
}

/// The archive: blobs by account.
#[derive(Debug, Default)]
pub struct Archive {
    /// What stands there.
    pub blobs: BTreeMap<(Did, Digest), Vec<u8>>,
}

/// A piece of work under way.
pub struct Work {
    key: Vec<u8>,
    task: Task,
    /// Its account's row when it began.
    row: Option<AccountRow>,
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
            | Task::Snapshot(did) => mirror.account(did)?,
            Task::ListRepos(host) => {
                cursor = mirror.host(host)?.map(|row| match row.listing {
                    Listing::Unfinished { cursor } => cursor.unwrap_or_default(),
                    Listing::Finished { .. } => String::new(),
                });
                None
            }
            Task::DropGeneration(_) => None,
        };
        let id = self.next_work;
        self.next_work += 1;
        let work = Work {
            key,
            task,
            row,
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
            Task::ArchiveBlob(did, digest) => vec![self.archive_blob(did, digest, &work)?],
            Task::Snapshot(did) => vec![self.snapshot(did, &work)?],
            Task::DropGeneration(_) => vec![done],
        };
        self.works.insert(id, work);
        let wait = world.net_rng.millis(1, 1_500);
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

    // repositories

    fn fetch_repo(
        &mut self,
        world: &mut World,
        net: &Network,
        did: &Did,
        work: &Work,
    ) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let Some(row) = &work.row else {
            return Ok(Input::TaskDone { task });
        };
        let SyncState::Wanted { reason, tries, .. } = row.sync else {
            return Ok(Input::TaskDone { task });
        };
        let did = did.clone();
        if !row.upstream.is_active() {
            return Ok(Input::FetchFailed {
                did,
                host: row.host.clone(),
                failure: FetchFailure::Inactive(row.upstream.clone()),
                task,
                retry_at: world.now.plus(INACTIVE_RETRY),
            });
        }
        Ok(match self.attempt(world, net, &did, row, reason)? {
            Ok((identity, content)) => Input::Fetched(Box::new(Fetched {
                did,
                from_number: row.account_number,
                identity,
                content,
                task,
            })),
            Err(failure) => {
                let wait = match failure {
                    FetchFailure::Inactive(_) => INACTIVE_RETRY,
                    _ => RETRY_FIRST.saturating_mul(1 << tries.min(12)).min(RETRY_LONGEST),
                };
                let jitter = Duration::from_millis(world.daemon_rng.below(wait.as_secs() * 250 + 1));
                Input::FetchFailed {
                    did,
                    host: row.host.clone(),
                    failure,
                    task,
                    retry_at: world.now.plus(wait).plus(jitter),
                }
            }
        })
    }

    fn attempt(
        &mut self,
        world: &mut World,
        net: &Network,
        did: &Did,
        row: &AccountRow,
        reason: DesyncReason,
    ) -> Result<Result<(StoredIdentity, FetchedContent), FetchFailure>, StoreError> {
        let refresh =
            row.identity.is_none() || matches!(reason, DesyncReason::BadSignature | DesyncReason::Moved);
        let identity = match self.resolve(net, did, refresh, world.now) {
            Err("too soon") => self.resolve(net, did, false, world.now),
            resolved => resolved,
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => return Ok(Err(FetchFailure::NoIdentity(error.to_owned()))),
        };
        let key = identity
            .key
            .as_deref()
            .and_then(|text| SigningKey::from_did_key(text).ok());
        let Some(key) = key else {
            return Ok(Err(FetchFailure::NoIdentity("no usable key".to_owned())));
        };
        let host = net.hosts.iter().find(|pds| pds.name == row.host);
        let Some(host) = host.filter(|_| identity.speaks_at(&row.host)) else {
            return Ok(Err(FetchFailure::NotThisHost(identity)));
        };
        if world.strikes(Fault::ServerError, 200) {
            return Ok(Err(FetchFailure::Unreachable("500".to_owned())));
        }
        let held = match host.served(did) {
            Ok(held) => held,
            Err(refusal) => return Ok(Err(failure_of(refusal))),
        };
        if let Some(head) = &row.head
            && reason != DesyncReason::CopyDamaged
            && held.account.head() == head.commit
        {
            return Ok(Ok((identity, FetchedContent::Unchanged { commit: head.commit })));
        }
        let car = export(world, &held.account);
        let loaded = self.check_and_load(&car, did, &key, world.now)?;
        // The keys of before, from the audit log, are not modelled.
        let other_key = matches!(&loaded, Err(FetchFailure::Unproven(text)) if text.contains(OTHER_KEY));
        if other_key && let Some((identity, key)) = self.newer_key(net, did, &row.host, &key, world.now) {
            let loaded = self.check_and_load(&car, did, &key, world.now)?;
            return Ok(loaded.map(|content| (identity, content)));
        }
        Ok(loaded.map(|content| (identity, content)))
    }

    fn newer_key(
        &mut self,
        net: &Network,
        did: &Did,
        host: &HostName,
        known: &SigningKey,
        now: Timestamp,
    ) -> Option<(StoredIdentity, SigningKey)> {
        let identity = self.resolve(net, did, true, now).ok()?;
        let key = identity
            .key
            .as_deref()
            .and_then(|text| SigningKey::from_did_key(text).ok())?;
        (key != *known && identity.speaks_at(host)).then_some((identity, key))
    }

    /// Proves a CAR and loads it under a number of its own, in small unsynced batches.
    fn check_and_load(
        &self,
        car: &[u8],
        did: &Did,
        key: &SigningKey,
        now: Timestamp,
    ) -> Result<Result<FetchedContent, FetchFailure>, StoreError> {
        let unproven = |text: &str| Ok(Err(FetchFailure::Unproven(text.to_owned())));
        let Ok(parsed) = parse_car(car) else {
            return unproven("no CAR");
        };
        let blocks: BTreeMap<Digest, &[u8]> = parsed
            .blocks
            .iter()
            .map(|(cid, bytes)| (*cid.digest(), *bytes))
            .collect();
        let Some(root) = parsed.roots.first().copied() else {
            return unproven("no root");
        };
        let commit = blocks
            .get(root.digest())
            .and_then(|block| Commit::decode(block).ok());
        let Some(rev) = commit.map(|commit| commit.rev) else {
            return unproven("no commit");
        };
        let account_number = self.numbers.next()?;
        let mut blobs = BTreeMap::new();
        let checked = check_repo(&blocks, root, did, key, now, |path, cid, bytes| {
            let mut batch = Batch::new();
            let value = RecordValue {
                rev,
                digest: *cid.digest(),
                bytes,
            };
            batch.put(
                Family::Records,
                keyspace::encode_record(account_number, path),
                value.encode(),
            );
            for blob in scan_record(bytes).blobs {
                let digest = *blob.cid.digest();
                let reference = keyspace::encode_blob_ref(account_number, &digest, path);
                batch.put(Family::BlobRefs, reference, Vec::new());
                blobs.entry(digest).or_insert(BlobMention {
                    digest,
                    mime: blob.mime,
                    size: blob.size,
                });
            }
            self.store.write(batch)
        });
        match checked {
            Ok(repo) => Ok(Ok(FetchedContent::Loaded {
                account_number,
                repo,
                blobs: blobs.into_values().collect(),
            })),
            Err(fault) => {
                let (from, to) = keyspace::number_bounds(account_number);
                let mut batch = Batch::new();
                for family in [Family::Records, Family::BlobRefs] {
                    batch.delete_range(family, from, to);
                }
                self.store.write(batch)?;
                unproven(&fault.to_string())
            }
        }
    }

    // identities

    fn resolve(
        &mut self,
        net: &Network,
        did: &Did,
        refresh: bool,
        now: Timestamp,
    ) -> Result<StoredIdentity, &'static str> {
        let cached = self.resolver.entry(did.clone()).or_default();
        let failed = cached.failed_until.is_some_and(|until| now < until);
        if refresh {
            if failed {
                return Err("failed a moment ago");
            }
            if cached
                .refreshed_at
                .is_some_and(|last| now.since(last) < REFRESH_INTERVAL)
            {
                return Err("too soon");
            }
        } else if let Some(identity) = &cached.identity {
            if !net.plc.down && now.since(identity.read_at) >= FRESH_FOR {
                cached.identity = read(net, did, now);
            }
            return cached.identity.clone().ok_or("gone");
        } else if failed {
            return Err("failed a moment ago");
        }
        if refresh {
            cached.refreshed_at = Some(now);
        }
        let found = if net.plc.down { None } else { read(net, did, now) };
        match found {
            Some(identity) => {
                cached.identity = Some(identity.clone());
                cached.failed_until = None;
                Ok(identity)
            }
            None => {
                cached.failed_until = Some(now.plus(FAILURE_FOR));
                Err("the directory does not answer")
            }
        }
    }

    fn resolve_task(&mut self, world: &mut World, net: &Network, did: Did, work: &Work) -> Input {
        let jitter = world.daemon_rng.millis(0, 10_000);
        let resolved = match self.resolve(net, &did, true, world.now) {
            Ok(identity) => Some(identity),
            Err("too soon") => self.resolver.get(&did).and_then(|cached| cached.identity.clone()),
            Err(_) => None,
        };
        Input::Identity {
            did,
            resolved,
            task: work.key.clone(),
            retry_at: world.now.plus(IDENTITY_RETRY).plus(jitter),
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
            listing: match next {
                Some(next) => Listing::Unfinished { cursor: Some(next) },
                None => Listing::Finished { at: world.now },
            },
            task: (!work.more).then_some(task),
        })
    }

    // blobs and the archive

    fn blob_key(&self, did: &Did, digest: Digest) -> Result<Option<BlobKey>, StoreError> {
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
            Some(row) if !row.state.is_stored() => row,
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

    fn archive_blob(&mut self, did: Did, digest: Digest, work: &Work) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let Some(blob) = self.blob_key(&did, digest)? else {
            return Ok(Input::TaskDone { task });
        };
        match Mirror::new(&self.store).blob(blob.did_number, &digest)? {
            Some(row) if row.state == BlobState::Held => {}
            _ => return Ok(Input::TaskDone { task }),
        }
        let mut bytes = Vec::new();
        Mirror::new(&self.store).blob_chunks(blob.did_number, &digest, |chunk| {
            bytes.extend_from_slice(chunk);
            ControlFlow::Continue(())
        })?;
        if *crate::types::Cid::of_blob(&bytes).digest() != digest {
            return Ok(Input::BlobLost { blob, task });
        }
        self.archive.blobs.insert((did, digest), bytes);
        Ok(Input::BlobArchived { blob, task })
    }

    fn snapshot(&self, did: Did, work: &Work) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let row = mirror.account(&did)?;
        let Some((row, head)) = row.and_then(|row| row.head.clone().map(|head| (row, head))) else {
            return Ok(Input::TaskDone { task });
        };
        if let Some(mark) = row.snapshot.filter(|_| row.is_snapshotted()) {
            return Ok(Input::SnapshotStored(SnapshotStored {
                did,
                account_number: row.account_number,
                rev: mark.rev,
                commit: mark.commit,
                bytes: mark.bytes,
                task,
            }));
        }
        Ok(match prove(&mirror.rows(row.account_number), head.data) {
            Ok(proven) => Input::SnapshotStored(SnapshotStored {
                did,
                account_number: row.account_number,
                rev: head.rev,
                commit: head.commit,
                bytes: proven.record_bytes(),
                task,
            }),
            Err(_) => Input::Damaged {
                did,
                account_number: row.account_number,
                task,
            },
        })
    }
}

fn read(net: &Network, did: &Did, now: Timestamp) -> Option<StoredIdentity> {
    let document = net.plc.documents.get(did)?;
    Some(StoredIdentity {
        key: Some(document.key.clone()),
        host: Some(document.host.to_string()),
        read_at: now,
    })
}

fn failure_of(refusal: Refusal) -> FetchFailure {
    match refusal {
        Refusal::Unreachable => FetchFailure::Unreachable("no answer".to_owned()),
        Refusal::NotFound => FetchFailure::NotFound,
        Refusal::Inactive(status) => FetchFailure::Inactive(status),
    }
}

/// What `getRepo` sends: blocks in some order, and sometimes not what it should be.
fn export(world: &mut World, account: &super::SimAccount) -> Vec<u8> {
    let mut blocks = account.export_blocks();
    for at in (1..blocks.len()).rev() {
        let other = world.net_rng.index(at + 1);
        blocks.swap(at, other);
    }
    if world.strikes(Fault::ExportTruncated, 150) {
        blocks.truncate(world.net_rng.index(blocks.len()));
    }
    if world.strikes(Fault::ExportTorn, 150) {
        // A commit went by while the tree was read: the head is the new one, some of the rest is not there.
        let mut later = account.clone();
        later.write(
            &[(
                "app.bsky.feed.post/torn".to_owned(),
                Some(super::account::post("torn")),
            )],
            world.now,
        );
        let mut car = encode_header(&[later.head()]);
        encode_block(&mut car, &later.head(), later.commit_block());
        for (cid, bytes) in &blocks {
            encode_block(&mut car, cid, bytes);
        }
        return car;
    }
    let mut car = encode_header(&[account.head()]);
    for (cid, bytes) in &blocks {
        encode_block(&mut car, cid, bytes);
    }
    if world.strikes(Fault::ExportFlipped, 150) {
        let at = world.net_rng.index(car.len());
        car[at] ^= 1 << world.net_rng.below(8);
    }
    car
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
        head: shown.map(|held| held.account.head()),
        task,
    };
    let Some(held) = shown else { return vec![audited] };
    let listed = Input::BlobsListed {
        did,
        digests: held.blobs.keys().copied().collect(),
        task: None,
    };
    vec![listed, audited]
}
