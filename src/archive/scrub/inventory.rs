//! What the list of names alone says: which objects there are, which names are none, and, for each account, what its
//! snapshots and deltas span.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Counts, Fault, Finding, Findings};
use crate::archive::boundary::listed;
use crate::archive::names::{self, BoundaryName, DeltaName, ObjectName, SegmentName, SnapshotName};
use crate::types::{Did, Rev};

/// Everything that the list of an archive says. Grows with accounts, snapshots, deltas and segments; not with blobs.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Whether there is an `archive.json`.
    pub has_archive: bool,
    /// What there is of each account.
    pub accounts: BTreeMap<Did, Account>,
    /// Segments, in order: those that are part of the log.
    pub segments: BTreeSet<SegmentName>,
    /// Where each log begins; among them older ones that will be removed.
    pub boundaries: Vec<BoundaryName>,
    /// Segments before the beginning, and editions of before: they are to be removed, and count for nothing.
    pub leftover_segments: u64,
    /// The other objects, which are read whole and one by one.
    pub others: Vec<ObjectName>,
    /// Objects and bytes, by kind.
    pub counts: Counts,
    /// Names that are none.
    pub findings: Findings,
    /// All objects, and their bytes.
    pub objects: u64,
    /// All bytes.
    pub bytes: u64,
}

/// What there is of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Revs that have a snapshot, rising.
    pub snapshots: Vec<Rev>,
    /// From and to of each delta, rising.
    pub deltas: Vec<(Rev, Rev)>,
    /// How many blobs.
    pub blobs: u64,
    /// How many other objects of its repository, of kinds that say nothing of revs.
    pub others: u64,
}

impl Account {
    /// Whether a change that builds on this rev has something to build on: a snapshot, or a delta's end.
    #[must_use]
    pub fn is_anchor(&self, rev: Rev) -> bool {
        self.snapshots.binary_search(&rev).is_ok() || self.deltas.iter().any(|(_, to)| *to == rev)
    }

    /// Whether a delta is of use: it begins at an anchor, or leads on from a snapshot within it.
    #[must_use]
    pub fn leans_on(&self, from: Rev, to: Rev) -> bool {
        self.is_anchor(from) || self.snapshots.iter().any(|rev| from < *rev && *rev < to)
    }

    /// The newest rev that has a snapshot.
    #[must_use]
    pub fn newest_snapshot(&self) -> Option<Rev> {
        self.snapshots.last().copied()
    }
}

/// The label of a kind, in counts.
#[must_use]
pub fn kind_of(name: &ObjectName) -> &'static str {
    match name {
        ObjectName::Archive => "archive",
        ObjectName::Writer(_) => "writers",
        ObjectName::Snapshot(_) => "snapshots",
        ObjectName::Delta(_) => "deltas",
        ObjectName::Segment(_) => "segments",
        ObjectName::Boundary(_) => "boundaries",
        ObjectName::Blob(_) => "blobs",
        ObjectName::Identity(_) => "identities",
        ObjectName::HostState(_) => "hosts",
        ObjectName::Service(_) => "service",
        ObjectName::State(_) => "state",
        ObjectName::Erased(_) => "erased",
        ObjectName::Quarantined(_) => "quarantined",
    }
}

impl Inventory {
    /// Takes the next object of the list.
    pub fn add(&mut self, text: &str, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if text.starts_with(names::PROBE) {
            self.counts.probe_leftovers += 1;
            return;
        }
        let name: ObjectName = match text.parse() {
            Ok(name) => name,
            Err(error) => {
                self.findings.add(Finding {
                    fault: Fault::UnknownName,
                    object: text.to_owned(),
                    did: None,
                    detail: format!("{error}"),
                    affects: "nothing restores from it; an object of another name may be missing".to_owned(),
                });
                return;
            }
        };
        let kind = self.counts.kind(kind_of(&name));
        kind.listed += 1;
        kind.bytes = kind.bytes.saturating_add(bytes);
        match name {
            ObjectName::Archive => {
                self.has_archive = true;
                self.others.push(ObjectName::Archive);
            }
            ObjectName::Snapshot(SnapshotName { did, rev, .. }) => {
                self.account(did.did()).snapshots.push(rev);
            }
            ObjectName::Delta(delta) => self.add_delta(&delta),
            ObjectName::Segment(segment) => {
                self.segments.insert(segment);
            }
            ObjectName::Boundary(boundary) => self.boundaries.push(boundary),
            ObjectName::Blob(blob) => self.account(blob.did.did()).blobs += 1,
            // Read together with the account whose it is.
            ObjectName::Identity(identity) => {
                self.account(identity.did.did());
            }
            other => self.others.push(other),
        }
    }

    fn add_delta(&mut self, delta: &DeltaName) {
        self.account(delta.did().did())
            .deltas
            .push((delta.from(), delta.to()));
    }

    fn account(&mut self, did: &Did) -> &mut Account {
        if !self.accounts.contains_key(did) {
            self.accounts.insert(did.clone(), Account::default());
        }
        self.accounts.get_mut(did).expect("it was just put there")
    }

    /// After the last name.
    pub fn finish(&mut self) {
        for account in self.accounts.values_mut() {
            account.snapshots.sort_unstable();
            account.deltas.sort_unstable();
        }
        let all = std::mem::take(&mut self.segments);
        let shards: BTreeSet<u32> = all.iter().map(|segment| segment.shard).collect();
        for shard in shards {
            let of = all.iter().copied().filter(|segment| segment.shard == shard);
            let begins = self
                .boundaries
                .iter()
                .copied()
                .filter(|begin| begin.shard == shard);
            let listed = listed(of, begins);
            self.leftover_segments += (listed.removed.len() + listed.replaced.len()) as u64;
            self.segments.extend(listed.segments);
        }
    }

    /// Where the log of a shard begins.
    #[must_use]
    pub fn boundary(&self, shard: u32) -> Option<BoundaryName> {
        let of = self.boundaries.iter().filter(|begin| begin.shard == shard);
        of.max().copied()
    }

    /// The segments that must be there between those that are: missing numbers within a writer's generation, at
    /// most `max` of them, and how many in all.
    #[must_use]
    pub fn missing_segments(&self, max: usize) -> (Vec<SegmentName>, u64) {
        let (mut missing, mut count) = (Vec::new(), 0_u64);
        let mut last: Option<SegmentName> = None;
        for segment in &self.segments {
            if let Some(last) = last
                && (last.shard, last.generation) == (segment.shard, segment.generation)
            {
                let between = last.number + 1..segment.number;
                count = count.saturating_add(between.end - between.start);
                let room = max.saturating_sub(missing.len());
                missing.extend(
                    between
                        .take(room)
                        .map(|number| SegmentName { number, ..*segment }),
                );
            }
            last = Some(*segment);
        }
        (missing, count)
    }
}

/// What of an account's history cannot be restored, by the names of its deltas and the stretches of the log:
/// stretches of revs that nothing leads through, between the oldest delta and the newest snapshot.
///
/// `stretches` are from and to, rising. A stretch that begins with a fetched repository builds on nothing (`true`):
/// before it there is no gap that anybody could have filled.
#[must_use]
pub fn gaps(stretches: &[(Rev, Rev, bool)], newest_snapshot: Option<Rev>) -> Vec<(Rev, Rev)> {
    let mut sorted = stretches.to_vec();
    sorted.sort_unstable();
    let mut gaps = Vec::new();
    let Some((_, mut reach, _)) = sorted.first().copied() else {
        return gaps;
    };
    for (from, to, loaded) in sorted {
        if from > reach && !loaded {
            gaps.push((reach, from));
        }
        reach = reach.max(to);
    }
    if let Some(newest) = newest_snapshot
        && newest > reach
    {
        gaps.push((reach, newest));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rev(n: u64) -> Rev {
        Rev::from_bits(n).expect("a rev")
    }

    #[test]
    fn names_that_are_none_are_found_and_nothing_else_is() {
        let mut inventory = Inventory::default();
        let cid = "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua";
        let sound = [
            "v1/archive.json".to_owned(),
            format!("v1/repos/did:web:a.b/3k2yihcrp6f2c-{cid}.car.zst"),
            format!("v1/repos/did:web:a.b/3k2yihcrp6f2c..3k2yihcrp6f2d-{cid}.delta.car.zst"),
            "v1/service/2026-01-02T03:04:05.678Z.json".to_owned(),
        ];
        for name in &sound {
            inventory.add(name, 7);
        }
        assert_eq!(inventory.findings.bad(), 0);
        let hostile = [
            "v1/../../etc/passwd",
            "v1/repos/did:web:../x",
            "v1/blocks/did:web:a.b/nothing",
            "v1/.tmp/x",
            "v1/log/0/1-1.car.zst",
            "v1/repos/DID:web:a.b/x.car.zst",
            "\u{1b}[31m",
            "",
            &"v1/".repeat(1000),
        ];
        for name in hostile {
            inventory.add(name, u64::MAX);
        }
        inventory.finish();
        assert_eq!(inventory.findings.bad(), hostile.len() as u64);
        assert!(inventory.has_archive);
        let account = &inventory.accounts[&"did:web:a.b".parse().expect("valid")];
        assert_eq!((account.snapshots.len(), account.deltas.len()), (1, 1));
        let (snapshot, later) = (account.snapshots[0], account.deltas[0].1);
        assert!(account.is_anchor(snapshot) && account.is_anchor(later) && !account.is_anchor(rev(1)));
    }

    #[test]
    fn missing_numbers_are_named_within_a_generation() {
        let mut inventory = Inventory::default();
        let segment = |generation, number| SegmentName {
            shard: 0,
            generation,
            number,
            edition: 0,
        };
        for (generation, number) in [(1, 5), (1, 6), (1, 9), (3, 2), (3, u64::MAX)] {
            inventory.add(&segment(generation, number).to_string(), 1);
        }
        let (missing, count) = inventory.missing_segments(3);
        assert_eq!(missing, [segment(1, 7), segment(1, 8), segment(3, 3)]);
        assert_eq!(count, 2 + (u64::MAX - 3));
    }

    #[test]
    fn gaps_are_between_what_is_held() {
        let r = rev;
        assert_eq!(gaps(&[], Some(r(9))), []);
        assert_eq!(gaps(&[(r(1), r(3), false), (r(3), r(5), false)], Some(r(5))), []);
        assert_eq!(gaps(&[(r(3), r(5), false), (r(1), r(4), false)], Some(r(4))), []);
        assert_eq!(
            gaps(&[(r(1), r(3), false), (r(4), r(5), false)], None),
            [(r(3), r(4))]
        );
        assert_eq!(gaps(&[(r(1), r(3), false), (r(4), r(5), true)], None), []);
        assert_eq!(gaps(&[(r(1), r(3), false)], Some(r(7))), [(r(3), r(7))]);
    }
}
