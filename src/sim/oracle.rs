//! What the mirror promises, checked from the outside.
//!
//! Keeps every state that every account ever had, told by the accounts themselves before anybody else hears
//! of it, and reads the store's keys and record values by hand. Says the first promise that is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::rc::Rc;

use super::account::SimAccount;
use super::pds::{BlobGiven, Network, Said, SimPds};
use super::slow_tree;
use crate::mirror::keyspace;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, BlobState, HeadSigner, KeptCar, Listing, Row as _, SyncState};
use crate::mirror::store::{Family, KeyRange, View};
use crate::types::{Cid, Did, Digest, HostName, Rev, Timestamp};

/// Most frames parked for one account in a simulation.
pub const PARKED_FRAMES_MAX: u64 = 6;
/// Most bytes of them.
pub const PARKED_BYTES_MAX: u64 = 1 << 20;

/// A state that an account really had.
pub(super) struct Version {
    rev: Rev,
    pub(super) block: Vec<u8>,
    root: Digest,
    pub(super) records: Rc<BTreeMap<String, Vec<u8>>>,
    /// The key that signed it.
    signer: String,
}

/// What was seen of an account in the mirror.
struct Seen {
    row: Vec<u8>,
    head: Option<Rev>,
}

/// The oracle.
#[derive(Default)]
pub struct Oracle {
    versions: BTreeMap<Did, BTreeMap<Cid, Version>>,
    seen: BTreeMap<Did, Seen>,
    /// Hosts whose numbers went back, with the epoch that the mirror was in then.
    went_back: BTreeMap<HostName, u64>,
    /// Accounts whose copy rots, by the account number of that copy.
    rotten: BTreeMap<Did, u64>,
    accounts: u64,
    steps: u64,
    /// Objects of the archive that were found whole: none is written twice.
    pub(super) proven_objects: BTreeSet<String>,
}

/// A broken promise: which, and how.
pub type Verdict = Result<(), String>;

/// Every how many steps all accounts are looked at, changed or not.
const FULL_EVERY: u64 = 16;

impl Oracle {
    /// A number that no account and no key had.
    pub const fn next_account(&mut self) -> u64 {
        self.accounts += 1;
        self.accounts
    }

    /// An account made this commit.
    pub fn committed(&mut self, account: &SimAccount) {
        let records = Rc::new(account.records().clone());
        let version = Version {
            rev: account.rev(),
            block: account.commit_block().to_vec(),
            root: slow_tree::root(&records),
            records,
            signer: account.key().to_did_key(),
        };
        let versions = self.versions.entry(account.did().clone()).or_default();
        versions.insert(account.head(), version);
    }

    /// The state of an account under this commit, if it ever had it.
    pub(super) fn version(&self, did: &Did, commit: &Cid) -> Option<&Version> {
        self.versions.get(did)?.get(commit)
    }

    /// A host's numbers went back while the mirror was in this epoch of it.
    pub fn went_back(&mut self, host: &HostName, epoch: u64) {
        self.went_back.insert(host.clone(), epoch);
    }

    /// The copy under this account number rots.
    pub fn rots(&mut self, did: &Did, account_number: u64) {
        self.rotten.insert(did.clone(), account_number);
    }

    /// G2, G4, G7 and G10, after a step: of the accounts whose row changed, and now and then of all.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check_step(&mut self, view: &dyn View) -> Verdict {
        self.steps += 1;
        let full = self.steps.is_multiple_of(FULL_EVERY);
        self.check_accounts(view, full)
    }

    /// G2, G4, G7 and G10 of every account: after a crash, nothing that was acknowledged is gone.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check_all(&mut self, view: &dyn View) -> Verdict {
        self.check_accounts(view, true)
    }

    fn check_accounts(&mut self, view: &dyn View, full: bool) -> Verdict {
        let mut rows: BTreeMap<Did, Vec<u8>> = BTreeMap::new();
        let mut bad = None;
        let scanned = view.scan(Family::Accounts, &KeyRange::all(), &mut |key, value| {
            match std::str::from_utf8(key).ok().and_then(|text| text.parse().ok()) {
                Some(did) => drop(rows.insert(did, value.to_vec())),
                None => bad = Some(format!("G7: an account key is no DID: {key:?}")),
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| error.to_string())?;
        bad.map_or(Ok(()), Err)?;
        for did in self.seen.keys() {
            if !rows.contains_key(did) {
                return Err(format!("G7: the row of {did} is gone"));
            }
        }
        for (did, bytes) in rows {
            if !full && self.seen.get(&did).is_some_and(|seen| seen.row == bytes) {
                continue;
            }
            let row = AccountRow::decode(&bytes).map_err(|error| error.to_string())?;
            self.check_account(view, &did, &row)?;
            let head = row.head.map(|head| head.rev);
            self.seen.insert(did, Seen { row: bytes, head });
        }
        Ok(())
    }

    fn check_account(&self, view: &dyn View, did: &Did, row: &AccountRow) -> Verdict {
        let before = self.seen.get(did).and_then(|seen| seen.head);
        let head = row.head.as_ref();
        match (before, head) {
            (Some(_), None) => return Err(format!("G7: {did} lost its head")),
            (Some(before), Some(head)) if head.rev < before => {
                return Err(format!("G4: {did} went from rev {before} to {}", head.rev));
            }
            _ => {}
        }
        check_parked(view, did, row)?;
        if let Some(car) = &row.kept_car {
            check_car(view, did, car)?;
        }
        let Some(head) = head else {
            return match row.account_number {
                keyspace::NO_NUMBER => Ok(()),
                number => Err(format!("G2: {did} has account number {number} and no head")),
            };
        };
        let Some(version) = self.version(did, &head.commit) else {
            return Err(format!(
                "G2: {did} stands at {}, which it never made",
                head.commit
            ));
        };
        if version.rev != head.rev || version.block != head.commit_block {
            return Err(format!("G2: the head of {did} is not what it signed"));
        }
        if let HeadSigner::Earlier { key } = &row.head_signed_by
            && *key != version.signer
        {
            return Err(format!("G2: the head of {did} is not signed by {key}"));
        }
        if version.root != *head.data.digest() {
            return Err(format!("G2: the root of {did} is not that of its records"));
        }
        if self.rotten.get(did) == Some(&row.account_number) {
            return Ok(());
        }
        check_rows(view, did, row, &version.records)
    }

    /// G3, after a crash: what the cursor has passed is there, waits, or is to be fetched.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check_cursors(&self, view: &dyn View, net: &Network) -> Verdict {
        let mirror = Mirror::new(view);
        for pds in &net.hosts {
            let row = mirror.host(&pds.name).map_err(|error| error.to_string())?;
            let Some(row) = row else { continue };
            let (Some(cursor), Listing::Finished { .. }) = (row.cursor, &row.listing) else {
                continue;
            };
            // Until the mirror has noticed, its cursor counts in numbers that mean something else now.
            if self.went_back.get(&pds.name) == Some(&row.epoch) {
                continue;
            }
            let passed = |seq: u64| seq <= cursor && !pds.overtaken.contains(&seq);
            for event in pds.books.log.iter().filter(|event| passed(event.seq)) {
                let (Said::Commit(rev) | Said::Sync(rev)) = event.said else {
                    continue;
                };
                Self::check_passed(&mirror, pds, &event.did, event.seq, rev)?;
            }
        }
        Ok(())
    }

    fn check_passed(mirror: &Mirror<'_>, pds: &SimPds, did: &Did, seq: u64, rev: Rev) -> Verdict {
        let row = mirror.account(did).map_err(|error| error.to_string())?;
        let Some(row) = row else {
            return Err(format!("G3: the cursor passed {seq}, and {did} is unknown"));
        };
        let applied = row.head.as_ref().is_some_and(|head| head.rev >= rev);
        let unfollowed = matches!(row.sync, SyncState::Wanted { .. } | SyncState::Moved { .. });
        let kept = row.kept_car.as_ref().map(|car| car.rev).max(row.min_rev) >= Some(rev);
        let quarantined =
            matches!(row.sync, SyncState::Quarantined { next_try, .. } if kept || next_try.is_some());
        // What its host does not know has an alarm, and is compared when it is there again.
        let away = row.away_since.is_some() || !row.upstream.is_active();
        let flagged = unfollowed || quarantined || away;
        if applied || flagged || row.host != pds.name {
            return Ok(());
        }
        let parked = mirror
            .parked(row.did_number, usize::MAX)
            .map_err(|error| error.to_string())?;
        if parked.iter().any(|(_, frame)| frame.seq == seq) {
            return Ok(());
        }
        Err(format!(
            "G3: the cursor of {} passed {seq} ({did} at {rev}), which is nowhere",
            pds.name
        ))
    }

    /// G1 (and the blobs): what the mirror holds of every account is what its host holds.
    ///
    /// # Errors
    /// What is not.
    pub fn check_converged(&self, view: &dyn View, net: &Network, now: Timestamp) -> Verdict {
        let mirror = Mirror::new(view);
        for (host, pds) in net.hosts.iter().enumerate() {
            for (did, held) in &pds.books.accounts {
                // The host that an account left holds it still; it counts for nothing.
                if !net.is_home(host, did) {
                    continue;
                }
                let row = mirror.account(did).map_err(|error| error.to_string())?;
                if !pds.followed {
                    check_away(net, did, row.as_ref())?;
                    continue;
                }
                let row = row.ok_or_else(|| format!("G1: {did} is unknown"))?;
                if row.host != pds.name {
                    return Err(format!(
                        "G1: {did} moved to {}, and is followed at {}",
                        pds.name, row.host
                    ));
                }
                if row.upstream.label() != held.status.label() {
                    return Err(format!(
                        "G1: {did} is {} here and {} there",
                        row.upstream.label(),
                        held.status.label()
                    ));
                }
                if !held.status.is_active() {
                    continue;
                }
                let head = row.head.as_ref();
                if head.is_none() && held.lax.is_some() {
                    check_kept(did, &row, held.head().1, false)?;
                    continue;
                }
                let head = head.ok_or_else(|| format!("G1: {did} was never loaded ({:?})", row.sync))?;
                let (theirs, their_head) = held.head();
                let behind = theirs <= head.rev && their_head != head.commit;
                if behind || held.lax.is_some() {
                    // The host went back and the account has not written since, or its tree does not rebuild: ours
                    // stays, and what the host has is kept beside it.
                    check_kept(did, &row, their_head, behind)?;
                    continue;
                }
                if head.commit != held.account.head() {
                    return Err(format!(
                        "G1: {did} stands at rev {} here and {} there ({:?}, {} parked, awaiting identity: {})",
                        head.rev,
                        held.account.rev(),
                        row.sync,
                        row.parked,
                        row.awaiting_identity
                    ));
                }
                if !matches!(row.sync, SyncState::Live | SyncState::Diverged { .. })
                    || row.awaiting_identity
                    || row.parked > 0
                {
                    return Err(format!(
                        "G1: {did} is whole, but {:?}, awaiting identity: {}, {} parked",
                        row.sync, row.awaiting_identity, row.parked
                    ));
                }
                if !row.is_snapshotted() {
                    return Err(format!("G1: {did} is not in the archive as it is"));
                }
                check_blobs(&mirror, did, &row, &held.blobs, held.account.records(), now)?;
            }
        }
        Ok(())
    }
}

/// G1 of an account of which the host has something that takes not the place of ours: it is kept, and archived.
fn check_kept(did: &Did, row: &AccountRow, theirs: Cid, behind: bool) -> Verdict {
    let state = match row.sync {
        SyncState::Diverged { .. } => behind,
        SyncState::Quarantined { .. } => !behind,
        _ => false,
    };
    match &row.kept_car {
        Some(car) if state && car.commit == theirs && car.archived => Ok(()),
        kept => Err(format!(
            "G1: {did} has {theirs} at its host, and here it is {:?} and keeps {kept:?}",
            row.sync
        )),
    }
}

/// What is kept as it came is whole.
fn check_car(view: &dyn View, did: &Did, car: &KeptCar) -> Verdict {
    let mut bytes = Vec::new();
    let read = Mirror::new(view).car_chunks(car, |chunk| {
        bytes.extend_from_slice(chunk);
        ControlFlow::Continue(())
    });
    read.map_err(|error| error.to_string())?;
    if crate::types::cid::sha256(&bytes) == car.sha256 {
        Ok(())
    } else {
        Err(format!(
            "G2: what is kept of {did} as it came ({}) is not whole",
            car.commit
        ))
    }
}

/// G1 of an account that is where nobody follows it: it is marked so, unless the host that it left says (wrongly)
/// that it is still there.
fn check_away(net: &Network, did: &Did, row: Option<&AccountRow>) -> Verdict {
    let Some(row) = row else { return Ok(()) };
    let left = net.hosts.iter().find(|pds| pds.name == row.host);
    let kept = left.and_then(|pds| pds.books.accounts.get(did));
    let claimed = kept.is_some_and(|held| held.status.is_active());
    if claimed || matches!(row.sync, SyncState::Moved { .. }) {
        return Ok(());
    }
    Err(format!(
        "G1: {did} went where nobody follows it, and is {:?}",
        row.sync
    ))
}

/// G10: the queue is within its bounds, and the row counts it rightly.
fn check_parked(view: &dyn View, did: &Did, row: &AccountRow) -> Verdict {
    let (mut frames, mut bytes) = (0, 0);
    let range = keyspace::number_range(row.did_number);
    view.scan(Family::Parked, &range, &mut |_, value| {
        frames += 1;
        bytes += value.len() as u64;
        ControlFlow::Continue(())
    })
    .map_err(|error| error.to_string())?;
    if (frames, bytes) != (row.parked, row.parked_bytes) {
        return Err(format!(
            "G10: {did} has {frames} frames of {bytes} bytes parked, its row says {} of {}",
            row.parked, row.parked_bytes
        ));
    }
    if frames > PARKED_FRAMES_MAX || bytes > PARKED_BYTES_MAX {
        return Err(format!("G10: {did} has {frames} frames of {bytes} bytes parked"));
    }
    Ok(())
}

/// G2: the rows of a copy are the records of its head, and the references are theirs.
fn check_rows(view: &dyn View, did: &Did, row: &AccountRow, records: &BTreeMap<String, Vec<u8>>) -> Verdict {
    let mut held = BTreeMap::new();
    let mut bad = None;
    let range = keyspace::number_range(row.account_number);
    view.scan(Family::Records, &range, &mut |key, value| {
        let path = String::from_utf8_lossy(&key[8..]).into_owned();
        let (digest, bytes) = (&value[8..40], &value[40..]);
        if *Cid::of_block(bytes).digest() != *digest {
            bad = Some(format!(
                "G2: {did} {path}: the bytes are not what their digest says"
            ));
        }
        held.insert(path, bytes.to_vec());
        ControlFlow::Continue(())
    })
    .map_err(|error| error.to_string())?;
    bad.map_or(Ok(()), Err)?;
    if held != *records {
        let missing: Vec<_> = records.keys().filter(|path| !held.contains_key(*path)).collect();
        let extra: Vec<_> = held.keys().filter(|path| !records.contains_key(*path)).collect();
        return Err(format!(
            "G2: {did} misses {missing:?}, has {extra:?} besides, or holds other bytes"
        ));
    }
    let bytes: u64 = held.values().map(|bytes| bytes.len() as u64).sum();
    if (row.records, row.record_bytes) != (held.len() as u64, bytes) {
        return Err(format!(
            "G2: {did} holds {} records of {bytes} bytes, its row says {} of {}",
            held.len(),
            row.records,
            row.record_bytes
        ));
    }
    let want: BTreeSet<Vec<u8>> = records
        .iter()
        .flat_map(|(path, bytes)| blobs_in(bytes).map(|digest| [&digest[..], path.as_bytes()].concat()))
        .collect();
    let mut have = BTreeSet::new();
    view.scan(Family::BlobRefs, &range, &mut |key, _| {
        have.insert(key[8..].to_vec());
        ControlFlow::Continue(())
    })
    .map_err(|error| error.to_string())?;
    if have != want {
        return Err(format!(
            "G2: the blob references of {did} are {} and should be {}",
            have.len(),
            want.len()
        ));
    }
    Ok(())
}

/// The blobs that a record's bytes name: every raw SHA-256 CID behind a tag 42.
fn blobs_in(record: &[u8]) -> impl Iterator<Item = Digest> {
    const LINK: [u8; 9] = [0xd8, 42, 0x58, 37, 0x00, 0x01, 0x55, 0x12, 0x20];
    record.windows(LINK.len() + 32).filter_map(|window| {
        window
            .strip_prefix(&LINK)
            .map(|digest| digest.try_into().expect("32 bytes"))
    })
}

fn check_blobs(
    mirror: &Mirror<'_>,
    did: &Did,
    row: &AccountRow,
    given: &BTreeMap<Digest, super::pds::SimBlob>,
    records: &BTreeMap<String, Vec<u8>>,
    now: Timestamp,
) -> Verdict {
    let wanted: BTreeSet<Digest> = records.values().flat_map(|bytes| blobs_in(bytes)).collect();
    for digest in wanted {
        let blob = mirror
            .blob(row.did_number, &digest)
            .map_err(|error| error.to_string())?;
        let blob = blob.ok_or_else(|| format!("G1: {did} misses a blob's row"))?;
        let there = given.get(&digest).map_or(BlobGiven::Missing, |blob| blob.given);
        let good = match there {
            BlobGiven::Whole => blob.state.is_stored(),
            BlobGiven::Late(at) => blob.state.is_stored() || now < at,
            // Before the host went back it may have given it.
            BlobGiven::Missing | BlobGiven::Wrong => true,
        };
        if !good {
            return Err(format!(
                "G1: a blob of {did} is {:?} here and {there:?} there",
                blob.state
            ));
        }
        if there == BlobGiven::Whole && blob.withheld_since.is_some() {
            return Err(format!(
                "G1: a blob that the host of {did} gives counts as withheld"
            ));
        }
        if blob.state == BlobState::Held {
            let mut bytes = Vec::new();
            let read = mirror.blob_chunks(row.did_number, &digest, |chunk| {
                bytes.extend_from_slice(chunk);
                ControlFlow::Continue(())
            });
            read.map_err(|error| error.to_string())?;
            if *Cid::of_blob(&bytes).digest() != digest {
                return Err(format!("G2: a held blob of {did} is not what its CID says"));
            }
        }
    }
    Ok(())
}
