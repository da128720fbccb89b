//! A model of fetching repositories and reading DID documents (`mirror/resync.rs`, `identity/resolver.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::daemon::Daemon;
use super::faults::Fault;
use super::pds::{HostAccount, Network, Refusal};
use super::work::Work;
use super::world::World;
use crate::identity::plc_log::PlcLog;
use crate::mirror::input::{BlobMention, FetchFailure, Fetched, FetchedContent, Input};
use crate::mirror::keyspace;
use crate::mirror::rows::{AccountRow, DesyncReason, KeptCar, RecordValue, StoredIdentity, SyncState};
use crate::mirror::store::{Batch, Family, Store as _, StoreError};
use crate::repo::car::{encode_block, encode_header, parse_car};
use crate::repo::commit::Commit;
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, Digest, HostName, Rev, Timestamp};
use crate::verify::{HeadKey, VerifiedRepo, check_lax_repo, check_repo};

const IDENTITY_RETRY: Duration = Duration::from_secs(10);
/// As in `mirror/resync.rs`.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LONGEST: Duration = Duration::from_secs(3600);
const INACTIVE_RETRY: Duration = Duration::from_secs(6 * 3600);
/// As in `identity/resolver.rs`.
const FRESH_FOR: Duration = Duration::from_secs(24 * 3600);
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
const FAILURE_FOR: Duration = Duration::from_secs(15);
/// How a fault says that nothing but the key is wrong.
const OTHER_KEY: &str = "bad_signature";
/// As in `mirror/resync.rs`.
const EARLIER_KEYS_MAX: usize = 16;

/// What the resolver remembers of a DID.
#[derive(Debug, Clone, Default)]
pub struct Cached {
    identity: Option<StoredIdentity>,
    failed_until: Option<Timestamp>,
    refreshed_at: Option<Timestamp>,
}

impl Daemon {
    // repositories

    pub(super) fn fetch_repo(
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
        let (reason, tries) = match row.sync {
            SyncState::Wanted { reason, tries, .. } => (reason, tries),
            SyncState::Quarantined { tries, .. } => (DesyncReason::Quarantined, tries),
            SyncState::Diverged { .. } => (DesyncReason::HeadDiffers, 0),
            _ => return Ok(Input::TaskDone { task }),
        };
        let did = did.clone();
        if !row.upstream.is_active() {
            return Ok(Input::FetchFailed {
                did,
                host: row.host.clone(),
                failure: FetchFailure::Inactive(row.upstream.clone()),
                asked_at: work.begun,
                task,
                retry_at: world.now.plus(INACTIVE_RETRY),
            });
        }
        Ok(match self.attempt(world, net, &did, row, reason)? {
            Ok((identity, content)) => Input::Fetched(Box::new(Fetched {
                did,
                from_number: row.account_number,
                from_erased: 0,
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
                    asked_at: work.begun,
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
        let announced = row.identity.is_none() && row.head.is_some();
        let refresh = announced || matches!(reason, DesyncReason::BadSignature | DesyncReason::Moved);
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
        let (_, commit) = held.head();
        let known = [row.head.as_ref().map(|head| head.commit), row.kept_head()];
        if reason != DesyncReason::CopyDamaged && known.contains(&Some(commit)) {
            return Ok(Ok((identity, FetchedContent::Unchanged { commit })));
        }
        let car = export(world, held);
        let ours = row.head.as_ref().map(|head| (head.rev, head.commit));
        let (mut identity, mut key) = (identity, key);
        let mut loaded = self.check_and_load(&car, did, HeadKey::Current(&key), ours, world.now)?;
        if is_other_key(&loaded)
            && let Some(newer) = self.newer_key(net, did, &row.host, &key, world.now)
        {
            (identity, key) = newer;
            loaded = self.check_and_load(&car, did, HeadKey::Current(&key), ours, world.now)?;
        }
        if is_other_key(&loaded) {
            let Some(log) = net.plc.audit_log(did) else {
                let text = "its key history: the directory does not answer".to_owned();
                return Ok(Err(FetchFailure::NoIdentity(text)));
            };
            let log = PlcLog::parse(did, &log).expect("the directory gives good logs");
            for earlier in log.earlier_keys(&key, EARLIER_KEYS_MAX) {
                loaded = self.check_and_load(&car, did, HeadKey::Earlier(&earlier), ours, world.now)?;
                if !is_other_key(&loaded) {
                    world.reason("head", "signed by a key of before");
                    break;
                }
            }
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
        key: HeadKey<'_>,
        ours: Option<(Rev, Cid)>,
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
        let behind = |repo: &VerifiedRepo, (rev, head): (Rev, Cid)| repo.rev() <= rev && repo.cid() != head;
        match checked {
            Ok(repo) if ours.is_some_and(|ours| behind(&repo, ours)) => {
                self.unload(account_number)?;
                let car = self.keep(account_number, repo.rev(), repo.cid(), car, now)?;
                Ok(Ok(FetchedContent::Behind {
                    car: Some(car),
                    repo,
                    blobs: blobs.into_values().collect(),
                }))
            }
            Ok(repo) => Ok(Ok(FetchedContent::Loaded {
                account_number,
                repo,
                blobs: blobs.into_values().collect(),
            })),
            Err(fault) if fault.is_lax() => {
                self.unload(account_number)?;
                let visit = |_, _: &[u8]| Ok::<(), StoreError>(());
                let Ok(repo) = check_lax_repo(&blocks, root, did, key, now, visit) else {
                    return unproven("lax, and not all there");
                };
                let car = self.keep(account_number, repo.rev(), repo.cid(), car, now)?;
                Ok(Ok(FetchedContent::Kept {
                    car,
                    repo,
                    reason: fault.to_string(),
                    blobs: Vec::new(),
                }))
            }
            Err(fault) => {
                self.unload(account_number)?;
                unproven(&fault.to_string())
            }
        }
    }

    fn unload(&self, account_number: u64) -> Result<(), StoreError> {
        let (from, to) = keyspace::number_bounds(account_number);
        let mut batch = Batch::new();
        for family in [Family::Records, Family::BlobRefs] {
            batch.delete_range(family, from, to);
        }
        self.store.write(batch)
    }

    /// Keeps a CAR as it came, in unsynced chunks.
    fn keep(
        &self,
        number: u64,
        rev: Rev,
        commit: Cid,
        car: &[u8],
        now: Timestamp,
    ) -> Result<KeptCar, StoreError> {
        for (index, chunk) in (0..).zip(car.chunks(300)) {
            let mut batch = Batch::new();
            let key = keyspace::encode_blob_data(number, commit.digest(), index);
            batch.put(Family::BlobData, key, chunk);
            self.store.write(batch)?;
        }
        Ok(KeptCar {
            number,
            rev,
            commit,
            bytes: car.len() as u64,
            sha256: crate::types::cid::sha256(car),
            since: now,
            archived: false,
            damaged: false,
        })
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
        let found = read(net, did, now);
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

    pub(super) fn resolve_task(&mut self, world: &mut World, net: &Network, did: Did, work: &Work) -> Input {
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
}

fn read(net: &Network, did: &Did, now: Timestamp) -> Option<StoredIdentity> {
    let document = net.plc.read(did, now)?;
    Some(StoredIdentity {
        key: Some(document.key.clone()),
        host: Some(document.host.to_string()),
        handle: None,
        read_at: now,
    })
}

fn is_other_key(loaded: &Result<FetchedContent, FetchFailure>) -> bool {
    matches!(loaded, Err(FetchFailure::Unproven(text)) if text.contains(OTHER_KEY))
}

fn failure_of(refusal: Refusal) -> FetchFailure {
    match refusal {
        Refusal::Unreachable => FetchFailure::Unreachable("no answer".to_owned()),
        Refusal::NotFound => FetchFailure::NotFound,
        Refusal::Inactive(status) => FetchFailure::Inactive(status),
    }
}

/// What `getRepo` sends: blocks in some order, and sometimes not what it should be.
fn export(world: &mut World, held: &HostAccount) -> Vec<u8> {
    let (_, head) = held.head();
    let account = &held.account;
    let mut blocks = match &held.lax {
        Some(lax) => lax.blocks.clone(),
        None => account.export_blocks(),
    };
    for at in (1..blocks.len()).rev() {
        let other = world.net_rng.index(at + 1);
        blocks.swap(at, other);
    }
    if world.strikes(Fault::ExportTruncated, 150) {
        blocks.truncate(world.net_rng.index(blocks.len()));
    }
    if !blocks.is_empty() && world.strikes(Fault::ExportPadded, 150) {
        let twice = blocks[world.net_rng.index(blocks.len())].clone();
        let foreign = super::account::post("of nobody");
        blocks.extend([twice, (crate::types::Cid::of_block(&foreign), foreign)]);
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
    let mut car = encode_header(&[head]);
    for (cid, bytes) in &blocks {
        encode_block(&mut car, cid, bytes);
    }
    if world.strikes(Fault::ExportFlipped, 150) {
        let at = world.net_rng.index(car.len());
        car[at] ^= 1 << world.net_rng.below(8);
    }
    car
}
