//! An archive in a folder, for tests: what a simulated account did, written as the shipper and the keeper write it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;

use super::boundary::Boundary;
use super::bucket::{Body, Bucket, PutOptions};
use super::content_type::ContentType;
use super::folder::FolderBucket;
use super::identity::{ArchiveId, open_or_create};
use super::log_file::{Change, Entry, FORMAT, LogFile, LogIndex, Op, Origin};
use super::names::{BlobName, BoundaryName, DeltaName, DidFolder, SegmentName, SnapshotName};
use super::snapshot_file::SnapshotEncoder;
use crate::repo::car::{encode_block, encode_header};
use crate::repo::mst::{Node, TreeBuilder};
use crate::sim::SimAccount;
use crate::sim::account::{Write, post, post_with_blob};
use crate::types::{Cid, Did, Rev, Timestamp};

/// When every churn begins.
pub(crate) const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// What an account held from a moment on.
#[derive(Clone)]
pub(crate) struct Then {
    pub(crate) rev: Rev,
    /// When it was so, clamped by the plainest reading of the rule.
    pub(crate) time: Timestamp,
    pub(crate) received: Timestamp,
    pub(crate) records: BTreeMap<String, Vec<u8>>,
    pub(crate) commit: (Cid, Vec<u8>),
}

/// The history of one account.
pub(crate) struct Churn {
    pub(crate) account: SimAccount,
    /// The state before the first entry, and behind each.
    pub(crate) states: Vec<Then>,
    /// Entry `n` leads from state `n` to state `n + 1`.
    pub(crate) entries: Vec<(Entry, BTreeMap<Cid, Bytes>)>,
    dice: u64,
}

impl Churn {
    pub(crate) fn new(number: u64) -> Self {
        let account = SimAccount::new(number, START);
        let first = Then {
            rev: account.rev(),
            time: START,
            received: START,
            records: BTreeMap::new(),
            commit: (account.head(), account.commit_block().to_vec()),
        };
        Self {
            account,
            states: vec![first],
            entries: Vec::new(),
            dice: number,
        }
    }

    pub(crate) fn did(&self) -> &Did {
        self.account.did()
    }

    /// A number below `below` (splitmix64).
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    pub(crate) fn last(&self) -> &Then {
        self.states.last().expect("one at least")
    }

    /// Random writes for a while.
    pub(crate) fn run(mut self, commits: usize) -> Self {
        for _ in 0..commits {
            let now = self
                .last()
                .received
                .plus(std::time::Duration::from_millis(1 + self.roll(9000)));
            let mut writes: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
            for _ in 0..=self.roll(4) {
                let path = format!(
                    "app.bsky.feed.{}/key{}",
                    ["post", "like"][self.roll(2) as usize],
                    self.roll(40)
                );
                let number = self.roll(1 << 30);
                let record = match self.roll(4) {
                    0 if self.last().records.contains_key(&path) => None,
                    1 => Some(post_with_blob("picture", &Cid::of_blob(&blob(number % 9)), 8)),
                    _ => Some(post(&format!("text {number}"))),
                };
                writes.insert(path, record);
            }
            let skew = [0, 0, 0, 0, 20_000, 7000][self.roll(6) as usize];
            let host = match self.roll(2) {
                0 => now.plus(std::time::Duration::from_millis(skew)),
                _ => now.minus(std::time::Duration::from_millis(skew)),
            };
            self.write(&writes.into_iter().collect::<Vec<_>>(), host, now);
        }
        self
    }

    /// One commit. `time` is by the host's clock.
    pub(crate) fn write(&mut self, writes: &[Write], time: Timestamp, received: Timestamp) {
        let whole = |time: Timestamp| Timestamp::from_micros(time.millis() * 1000);
        let (time, received) = (whole(time), whole(received));
        let before = self.last().clone();
        let parts = self.account.write(writes, received);
        let change = Change {
            did: self.did().clone(),
            host: "pds.example.com".parse().expect("a host"),
            seq: self.entries.len() as u64 + 1,
            since: before.rev,
            rev: parts.rev,
            time,
            received,
            commit: parts.commit.0,
            ops: parts
                .ops
                .iter()
                .map(|op| Op {
                    path: op.path.parse().expect("a path"),
                    cid: op.cid,
                })
                .collect(),
        };
        let blocks = std::iter::once(parts.commit.clone()).chain(parts.records.iter().cloned());
        let blocks = blocks.map(|(cid, bytes)| (cid, Bytes::from(bytes))).collect();
        self.entries.push((Entry::Commit(change), blocks));
        let time = before.time.max(time.min(received));
        self.states.push(Then {
            rev: parts.rev,
            time,
            received: before.received.max(received).max(time),
            records: self.account.records().clone(),
            commit: parts.commit,
        });
    }

    /// The account was fetched whole, at this state.
    pub(crate) fn loaded(&self, state: usize) -> Entry {
        let then = &self.states[state];
        Entry::Loaded {
            did: self.did().clone(),
            host: "pds.example.com".parse().expect("a host"),
            rev: then.rev,
            commit: then.commit.0,
            received: then.received,
        }
    }

    /// The account was fetched whole: the difference of two states.
    pub(crate) fn swap(&self, from: usize, to: usize) -> (Entry, BTreeMap<Cid, Bytes>) {
        let (from, to) = (&self.states[from], &self.states[to]);
        let mut blocks = BTreeMap::from([(to.commit.0, Bytes::from(to.commit.1.clone()))]);
        let mut ops = Vec::new();
        let mut op = |path: &str, cid| {
            let path = path.parse().expect("a path");
            ops.push(Op { path, cid });
        };
        for (path, bytes) in to
            .records
            .iter()
            .filter(|(path, bytes)| from.records.get(*path) != Some(*bytes))
        {
            let cid = Cid::of_block(bytes);
            op(path, Some(cid));
            blocks.insert(cid, Bytes::from(bytes.clone()));
        }
        for path in from.records.keys().filter(|path| !to.records.contains_key(*path)) {
            op(path, None);
        }
        let change = Change {
            did: self.did().clone(),
            host: "pds.example.com".parse().expect("a host"),
            seq: 0,
            since: from.rev,
            rev: to.rev,
            time: to.received,
            received: to.received,
            commit: to.commit.0,
            ops,
        };
        (Entry::Swap(change), blocks)
    }

    /// The state at a time, looked up in the plainest way.
    pub(crate) fn at(&self, time: Timestamp) -> Option<&Then> {
        self.states.iter().rev().find(|state| state.time <= time)
    }
}

/// A small blob.
pub(crate) fn blob(number: u64) -> Vec<u8> {
    format!("blob {number}").into_bytes()
}

/// An archive.
pub(crate) struct TestArchive {
    pub(crate) bucket: Bucket,
    pub(crate) root: PathBuf,
    pub(crate) folder: tempfile::TempDir,
}

impl TestArchive {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("archive");
        let bucket = Bucket::Folder(FolderBucket::open(&root).await.expect("opens"));
        open_or_create(&bucket, ArchiveId::from_bytes([7; 16]), START)
            .await
            .expect("makes");
        Self { bucket, root, folder }
    }

    /// The usual one: a snapshot of the first state and then of every fortieth, deltas between them, and segments
    /// that begin before the last snapshot.
    pub(crate) async fn of(churn: &Churn) -> Self {
        let archive = Self::new().await;
        let commits = churn.entries.len();
        let marks: Vec<usize> = (0..=commits).step_by(40).collect();
        for mark in &marks {
            archive.snapshot(churn.did(), &churn.states[*mark]).await;
        }
        for pair in marks.windows(2) {
            archive.delta(churn, pair[0]..pair[1]).await;
        }
        let from = marks.last().copied().unwrap_or(0).saturating_sub(10);
        let gone = Some(Cid::of_block(b"gone"));
        let (names, _) = archive.segments(&[churn], from..commits, (1, 100, gone)).await;
        if !names.is_empty() {
            archive.boundary((1, 100), gone).await;
        }
        archive
    }

    /// The log begins at this segment, which names this index as the one before it.
    pub(crate) async fn boundary(&self, (generation, number): (u64, u64), prev: Option<Cid>) -> String {
        let name = BoundaryName {
            shard: 0,
            generation,
            number,
        };
        let boundary = Boundary::at(name, prev, None, START);
        self.put(&name.to_string(), boundary.encode()).await;
        name.to_string()
    }

    pub(crate) async fn put(&self, name: &str, bytes: Vec<u8>) {
        let options = PutOptions::create(ContentType::zstd());
        self.bucket
            .put(name, Body::Bytes(bytes.into()), &options)
            .await
            .expect("puts");
    }

    pub(crate) async fn blob(&self, did: &Did, bytes: &[u8]) -> String {
        let name = BlobName {
            did: DidFolder::try_from(did).expect("short"),
            blob: *Cid::of_blob(bytes).digest(),
        };
        self.put(&name.to_string(), bytes.to_vec()).await;
        name.to_string()
    }

    pub(crate) async fn snapshot(&self, did: &Did, then: &Then) -> String {
        self.snapshot_without(did, then, None).await
    }

    /// A snapshot that lacks the bytes of one record.
    pub(crate) async fn snapshot_without(&self, did: &Did, then: &Then, erased: Option<Cid>) -> String {
        let mut car = encode_header(&[then.commit.0]);
        encode_block(&mut car, &then.commit.0, &then.commit.1);
        let mut nodes = BTreeMap::new();
        let mut builder = TreeBuilder::new(|_, cid, bytes: &[u8]| drop(nodes.insert(cid, bytes.to_vec())));
        for (path, bytes) in &then.records {
            builder
                .push(path.as_bytes(), Cid::of_block(bytes))
                .expect("sorted paths");
        }
        let root = builder.finish();
        let records = then.records.values().map(|bytes| (Cid::of_block(bytes), bytes));
        let records: BTreeMap<Cid, &Vec<u8>> = records.filter(|(cid, _)| Some(*cid) != erased).collect();
        // In the order that readers can stream: a node, and behind it what it points to.
        let mut next = vec![root];
        while let Some(cid) = next.pop() {
            let Some(block) = nodes.get(&cid) else {
                records
                    .get(&cid)
                    .iter()
                    .for_each(|bytes| encode_block(&mut car, &cid, bytes));
                continue;
            };
            encode_block(&mut car, &cid, block);
            let node = Node::decode(block).expect("a node");
            for number in (0..=node.len()).rev() {
                next.extend(node.entry(number).map(|entry| entry.value));
                next.extend(node.subtree(number));
            }
        }
        let name = SnapshotName {
            did: DidFolder::try_from(did).expect("short"),
            rev: then.rev,
            commit: *then.commit.0.digest(),
            edition: 0,
        };
        self.put(&name.to_string(), pack(&car)).await;
        name.to_string()
    }

    /// The entries `range` of a churn, as a delta.
    pub(crate) async fn delta(&self, churn: &Churn, range: Range<usize>) -> String {
        let entries = &churn.entries[range.clone()];
        self.delta_of(churn, range, entries).await
    }

    /// These entries, as a delta from one state to another.
    pub(crate) async fn delta_of(
        &self,
        churn: &Churn,
        range: Range<usize>,
        entries: &[(Entry, BTreeMap<Cid, Bytes>)],
    ) -> String {
        let (from, to) = (&churn.states[range.start], &churn.states[range.end]);
        let name = DeltaName::new(
            DidFolder::try_from(churn.did()).expect("short"),
            from.rev,
            to.rev,
            *to.commit.0.digest(),
        );
        let name = name.expect("revs rise").to_string();
        let origin = Origin::Delta {
            did: churn.did().clone(),
            from: from.rev,
            to: to.rev,
        };
        let file = log_file(origin, entries.iter());
        self.put(&name, pack(&file.encode_car())).await;
        name
    }

    /// The entries `range` of several churns, three to a segment: writer, first number, and what went before.
    /// Returns their names and the last index.
    pub(crate) async fn segments(
        &self,
        churns: &[&Churn],
        range: Range<usize>,
        (generation, first, mut prev): (u64, u64, Option<Cid>),
    ) -> (Vec<String>, Option<Cid>) {
        let entries = range.flat_map(|n| churns.iter().filter_map(move |churn| churn.entries.get(n)));
        let entries: Vec<_> = entries.collect();
        let mut names = Vec::new();
        for (number, entries) in (first..).zip(entries.chunks(3)) {
            let origin = Origin::Segment {
                shard: 0,
                generation,
                number,
                prev,
                first: number * 3,
            };
            let file = log_file(origin, entries.iter().copied());
            let name = SegmentName {
                shard: 0,
                generation,
                number,
                edition: 0,
            };
            self.put(&name.to_string(), pack(&file.encode_car())).await;
            names.push(name.to_string());
            prev = Some(file.root);
        }
        (names, prev)
    }

    /// Every object that holds a repository or entries.
    pub(crate) async fn objects(&self) -> Vec<String> {
        let mut names = Vec::new();
        for prefix in ["v1/repos/", "v1/log/"] {
            let page = self.bucket.list(prefix, None).await.expect("lists");
            names.extend(page.objects.into_iter().map(|object| object.name));
        }
        names.retain(|name| name.ends_with(".zst"));
        names
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

fn log_file<'a>(
    origin: Origin,
    entries: impl Iterator<Item = &'a (Entry, BTreeMap<Cid, Bytes>)> + Clone,
) -> LogFile {
    let blocks = entries.clone().flat_map(|(_, blocks)| blocks.clone()).collect();
    let index = LogIndex {
        format: FORMAT,
        origin,
        entries: entries.map(|(entry, _)| entry.clone()).collect(),
    };
    LogFile::new(index, blocks)
}

/// In a zstd frame.
pub(crate) fn pack(plain: &[u8]) -> Vec<u8> {
    let mut encoder = SnapshotEncoder::new(Vec::new(), Some(plain.len() as u64)).expect("memory");
    encoder.write_all(plain).expect("a Vec takes all");
    encoder.finish().expect("as announced").0
}

/// A writer's claim, as its object holds it.
pub(crate) fn claimed_by(instance: &str) -> Vec<u8> {
    let text = |text: &str| serde_json::Value::from(text);
    super::sealed::seal(serde_json::Map::from_iter([
        ("instance".to_owned(), text(instance)),
        ("claimed".to_owned(), text("2026-01-01T00:00:00.000Z")),
    ]))
}
