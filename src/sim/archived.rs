//! The oracle's look at the archive: what the mirror says stands there does, and is what it should be.
//!
//! Names are put together by hand, snapshots unpacked with zstd alone, and their CARs read here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::bucket::Archive;
use super::oracle::{Oracle, Verdict, Version};
use super::slow_tree;
use crate::mirror::rows::{AccountRow, BlobRow, BlobState, Row as _};
use crate::mirror::store::{Family, View};
use crate::types::{Cid, Did};

/// What the mirror says of the archive that it knows.
const ARCHIVE_ID: &[u8] = b"archive_id";

impl Oracle {
    /// G12: every snapshot and every blob that the mirror calls archived stands in the archive, whole. Nothing is
    /// said while the mirror has not noticed that the archive is another one.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check_archived(&mut self, view: &dyn View, archive: &Archive) -> Verdict {
        let known = view
            .get(Family::Meta, ARCHIVE_ID)
            .map_err(|error| error.to_string())?;
        if known.as_deref() != Some(archive.id.as_bytes()) {
            self.proven_objects.clear();
            return Ok(());
        }
        let mut dids = BTreeMap::new();
        for (did, bytes) in rows(view, Family::Accounts)? {
            let did: Did = String::from_utf8_lossy(&did).parse().map_err(|_| "G7: no DID")?;
            let row = AccountRow::decode(&bytes).map_err(|error| error.to_string())?;
            if let Some(mark) = row.snapshot {
                let name = format!("v1/repos/{did}/{}-{}.car.zst", mark.rev, mark.commit);
                let version = self.version(&did, &mark.commit);
                let version =
                    version.ok_or_else(|| format!("G12: {name} is of a commit that was never made"))?;
                if !self.proven_objects.contains(&name) {
                    let file = archive
                        .objects
                        .get(&name)
                        .ok_or(format!("G12: {name} is not there"))?;
                    check_snapshot(file, &mark.commit, version)
                        .map_err(|why| format!("G12: {name}: {why}"))?;
                    self.proven_objects.insert(name);
                }
            }
            if let Some(car) = row.kept_car.filter(|car| car.archived) {
                let name = format!("v1/repos/{did}/{}-{}.car.quarantined.zst", car.rev, car.commit);
                // A host may send the same head in another order: what came first stands there.
                let bytes = archive.objects.get(&name);
                let bytes = bytes.ok_or_else(|| format!("G12: {name} is not there"))?;
                let blocks = blocks_of(bytes, &car.commit).map_err(|why| format!("G12: {name}: {why}"))?;
                if !blocks.contains_key(&car.commit.to_bytes()[..]) {
                    return Err(format!("G12: {name}: the commit is not in it"));
                }
            }
            dids.insert(row.did_number, did);
        }
        for (key, value) in rows(view, Family::Blobs)? {
            let row = BlobRow::decode(&value).map_err(|error| error.to_string())?;
            if row.state != BlobState::Archived {
                continue;
            }
            let (number, digest) = key.split_first_chunk::<8>().ok_or("G7: a short key")?;
            let did = dids
                .get(&u64::from_be_bytes(*number))
                .ok_or("G7: a blob of nobody")?;
            let cid = Cid::raw(digest.try_into().map_err(|_| "G7: a short key")?);
            let bytes = archive.objects.get(&format!("v1/blocks/{did}/{cid}"));
            if bytes.is_none_or(|bytes| Cid::of_blob(bytes) != cid) {
                return Err(format!(
                    "G12: blob {cid} of {did} is not in the archive, or not whole"
                ));
            }
        }
        Ok(())
    }
}

/// Every row of a family, by key.
fn rows(view: &dyn View, family: Family) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let mut rows = BTreeMap::new();
    let range = crate::mirror::store::KeyRange::all();
    view.scan(family, &range, &mut |key, value| {
        rows.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    })
    .map_err(|error| error.to_string())?;
    Ok(rows)
}

/// The file unpacks to a CAR of exactly this commit, the records of that time, and blocks that hash to their CIDs.
fn check_snapshot(file: &[u8], commit: &Cid, version: &Version) -> Result<(), String> {
    let car = zstd::stream::decode_all(file).map_err(|error| error.to_string())?;
    let blocks = blocks_of(&car, commit)?;
    if blocks.get(&commit.to_bytes()[..]).copied() != Some(&version.block[..]) {
        return Err("the commit is not in it".to_owned());
    }
    let records: BTreeSet<_> = version.records.values().map(|bytes| bytes.as_slice()).collect();
    for bytes in &records {
        if !blocks.contains_key(&Cid::of_block(bytes).to_bytes()[..]) {
            return Err("a record is not in it".to_owned());
        }
    }
    let nodes = slow_tree::nodes(&version.records);
    let wanted = 1 + records.len() + nodes.len();
    if nodes
        .iter()
        .any(|node| !blocks.contains_key(&Cid::of_block(node).to_bytes()[..]))
    {
        return Err("a node of the tree is not in it".to_owned());
    }
    if blocks.len() == wanted {
        Ok(())
    } else {
        Err(format!(
            "{} blocks stand in it, and {wanted} belong there",
            blocks.len()
        ))
    }
}

/// The blocks of a CAR of this root, each of which hashes to its CID.
fn blocks_of<'c>(car: &'c [u8], root: &Cid) -> Result<BTreeMap<Vec<u8>, &'c [u8]>, String> {
    let mut rest = car;
    let header = section(&mut rest)?;
    if !header.windows(36).any(|window| window == root.to_bytes()) {
        return Err("its root is another commit".to_owned());
    }
    let mut blocks = BTreeMap::new();
    while !rest.is_empty() {
        let section = section(&mut rest)?;
        let (cid, bytes) = section.split_at_checked(36).ok_or("a short section")?;
        if Cid::of_block(bytes).to_bytes() != cid {
            return Err("a block does not hash to its CID".to_owned());
        }
        blocks.insert(cid.to_vec(), bytes);
    }
    Ok(blocks)
}

fn section<'c>(rest: &mut &'c [u8]) -> Result<&'c [u8], String> {
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let (byte, after) = rest.split_first().ok_or("cut off")?;
        *rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let (section, after) = rest.split_at_checked(length).ok_or("cut off")?;
    *rest = after;
    Ok(section)
}

#[cfg(test)]
mod tests {
    use super::super::account::{SimAccount, post};
    use super::super::bucket;
    use super::*;
    use crate::mirror::keyspace;
    use crate::mirror::memory::MemoryStore;
    use crate::mirror::rows::{Head, RecordValue, SnapshotMark};
    use crate::mirror::store::{Batch, Store as _};
    use crate::sim::world::START;

    /// An account whose head is said to stand in the archive, and its object.
    fn archived() -> (Oracle, MemoryStore, Archive, String) {
        let mut account = SimAccount::new(1, START);
        account.write(&[("app.bsky.feed.post/a".to_owned(), Some(post("text")))], START);
        let mut oracle = Oracle::default();
        oracle.committed(&account);
        let (store, mut archive, mut batch) = (MemoryStore::new(), Archive::default(), Batch::new());
        let mut row = AccountRow::new(1, "pds1.test".parse().expect("a host"), START);
        row.account_number = 2;
        let head = Head {
            rev: account.rev(),
            commit: account.head(),
            commit_block: account.commit_block().to_vec(),
            data: account.data(),
        };
        row.head = Some(head.clone());
        row.snapshot = Some(SnapshotMark {
            rev: head.rev,
            commit: head.commit,
            at: START,
            bytes: 1,
        });
        for (path, bytes) in account.records() {
            let value = RecordValue {
                rev: head.rev,
                digest: *Cid::of_block(bytes).digest(),
                bytes,
            };
            let key = keyspace::encode_record(2, path.as_bytes());
            batch.put(Family::Records, key, value.encode());
        }
        batch.put(
            Family::Accounts,
            keyspace::encode_account(account.did()),
            row.encode(),
        );
        batch.put(Family::Meta, ARCHIVE_ID, archive.id.as_bytes());
        store.write(batch).expect("memory");
        let (name, file) = bucket::snapshot(&store, account.did(), &row, &head).expect("proves");
        archive.objects.insert(name.clone(), file);
        (oracle, store, archive, name)
    }

    #[test]
    fn a_missing_a_damaged_and_a_foreign_snapshot_are_found() {
        let (mut oracle, store, mut archive, name) = archived();
        assert_eq!(oracle.check_archived(&store, &archive), Ok(()));
        let good = archive.objects[&name].clone();
        let said = |archive: &Archive| {
            let (mut oracle, ..) = archived();
            oracle
                .check_archived(&store, archive)
                .expect_err("it is not right")
        };
        archive.objects.remove(&name);
        assert!(said(&archive).contains("is not there"));
        archive
            .objects
            .insert(name.clone(), good[..good.len() - 5].to_vec());
        said(&archive);
        let car = zstd::stream::decode_all(&good[..]).expect("its own file");
        for (at, what) in [(car.len() - 1, "does not hash"), (40, "")] {
            let mut bad = car.clone();
            bad[at] ^= 1;
            let file = zstd::stream::encode_all(&bad[..], 1).expect("memory");
            archive.objects.insert(name.clone(), file);
            assert!(said(&archive).contains(what), "{}", said(&archive));
        }
        // Without its last block, the record.
        let file = zstd::stream::encode_all(&car[..car.len() - 37 - post("text").len()], 1).expect("memory");
        archive.objects.insert(name, file);
        assert!(
            said(&archive).contains("a record is not in it"),
            "{}",
            said(&archive)
        );
        // Of another archive it says nothing.
        archive.empty(1);
        assert_eq!(oracle.check_archived(&store, &archive), Ok(()));
    }
}
