//! A small archive, as a daemon writes it, made with nothing but the public parts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write as _;

use bytes::Bytes;
use firekeep::archive::boundary::Boundary;
use firekeep::archive::bucket::{Body, Bucket, PutOptions, PutOutcome};
use firekeep::archive::content_type::ContentType;
use firekeep::archive::identity::{self, ArchiveId};
use firekeep::archive::identity_file::IdentityFile;
use firekeep::archive::log_file::{Change, Entry, FORMAT, LogFile, LogIndex, Op, Origin};
use firekeep::archive::names::{
    BlobName, BoundaryName, DeltaName, DidFolder, IdentityName, SegmentName, SnapshotName,
};
use firekeep::archive::snapshot_file::SnapshotEncoder;
use firekeep::archive::state_file::{HostState, ServiceState};
use firekeep::repo::cbor::encode;
use firekeep::repo::commit::build_commit;
use firekeep::repo::export::{RecordRows, RowVisitor, prove};
use firekeep::repo::mst::tree_root;
use firekeep::repo::signing_key::{Curve, SecretKey};
use firekeep::types::{Cid, Did, Rev, Timestamp};

pub const NOW: Timestamp = Timestamp::from_micros(1_780_000_000_000_000);

/// An account that writes, and what it did last.
pub struct Writer {
    pub did: Did,
    secret: SecretKey,
    records: BTreeMap<String, Vec<u8>>,
    number: u64,
    pub rev: Rev,
    pub commit: (Cid, Vec<u8>),
}

struct Rows<'a>(&'a BTreeMap<String, Vec<u8>>);

impl RecordRows for Rows<'_> {
    type Error = Infallible;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Infallible> {
        for (path, bytes) in self.0 {
            let before = from.is_some_and(|from| path.as_bytes() < from);
            if !before && visit(path.as_bytes(), Cid::of_block(bytes), bytes).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Writer {
    pub fn new(did: &str) -> Self {
        Self::with_key(did, 9)
    }

    /// One with another key than the account's.
    pub fn forged(did: &str) -> Self {
        Self::with_key(did, 10)
    }

    fn with_key(did: &str, key: u8) -> Self {
        let did: Did = did.parse().expect("a DID");
        let secret = SecretKey::from_bytes(Curve::K256, &[key; 32]).expect("in range");
        let mut writer = Self {
            did,
            secret,
            records: BTreeMap::new(),
            number: 0,
            rev: Rev::from_time(NOW, 0),
            commit: (Cid::of_block(b""), Vec::new()),
        };
        writer.sign();
        writer
    }

    fn sign(&mut self) {
        let pairs = self
            .records
            .iter()
            .map(|(path, bytes)| (path.as_bytes(), Cid::of_block(bytes)));
        let data = tree_root(pairs).expect("sorted paths");
        let block = build_commit(&self.did, self.rev, data, None, |message| {
            self.secret.sign(message)
        });
        self.commit = (Cid::of_block(&block), block);
    }

    /// Writes a post, perhaps with a picture, and deletes one now and then. Returns the change and its blocks.
    pub fn write(&mut self, picture: Option<&Cid>) -> (Change, BTreeMap<Cid, Bytes>) {
        self.number += 1;
        let path = format!("app.bsky.feed.post/k{:03}", self.number);
        let record = post(self.number, picture);
        let cid = Cid::of_block(&record);
        self.records.insert(path.clone(), record.clone());
        let mut ops = vec![Op {
            path: path.parse().expect("a path"),
            cid: Some(cid),
        }];
        if self.number.is_multiple_of(4) {
            let gone = format!("app.bsky.feed.post/k{:03}", self.number - 2);
            self.records.remove(&gone);
            ops.push(Op {
                path: gone.parse().expect("a path"),
                cid: None,
            });
        }
        let since = self.rev;
        self.rev = Rev::from_bits(since.to_bits() + (1 << 20)).expect("a rev");
        self.sign();
        let change = Change {
            did: self.did.clone(),
            host: "pds.example.com".parse().expect("a host"),
            seq: self.number,
            since,
            rev: self.rev,
            time: NOW,
            received: NOW,
            commit: self.commit.0,
            ops,
        };
        let blocks = [(self.commit.0, self.commit.1.clone()), (cid, record)];
        (
            change,
            blocks
                .into_iter()
                .map(|(cid, bytes)| (cid, bytes.into()))
                .collect(),
        )
    }

    pub fn folder(&self) -> DidFolder {
        DidFolder::try_from(&self.did).expect("short")
    }

    pub fn snapshot_name(&self) -> SnapshotName {
        SnapshotName {
            did: self.folder(),
            rev: self.rev,
            commit: *self.commit.0.digest(),
            edition: 0,
        }
    }

    /// The snapshot of what it holds.
    pub fn snapshot(&self) -> (String, Vec<u8>) {
        let rows = Rows(&self.records);
        let pairs = self
            .records
            .iter()
            .map(|(path, bytes)| (path.as_bytes(), Cid::of_block(bytes)));
        let proven = prove(&rows, tree_root(pairs).expect("sorted")).expect("proves");
        let mut car = Vec::new();
        let (cid, block) = &self.commit;
        proven.write_car(&rows, *cid, block, &mut car).expect("writes");
        (self.snapshot_name().to_string(), pack(&car))
    }

    pub fn identity(&self) -> (String, Vec<u8>) {
        let method = serde_json::json!({
            "id": "#atproto", "type": "Multikey", "controller": self.did.as_str(),
            "publicKeyMultibase": self.secret.public().to_multikey(),
        });
        let file = IdentityFile {
            did: self.did.clone(),
            time: NOW,
            document: Some(serde_json::json!({ "id": self.did.as_str(), "verificationMethod": [method] })),
            plc_log: None,
        };
        let name = IdentityName {
            did: self.folder(),
            time: NOW,
        };
        (name.to_string(), file.encode())
    }
}

fn post(number: u64, picture: Option<&Cid>) -> Vec<u8> {
    let mut out = Vec::new();
    encode::map(&mut out, if picture.is_some() { 3 } else { 2 });
    encode::text(&mut out, "text");
    encode::text(&mut out, &format!("post {number}"));
    encode::text(&mut out, "$type");
    encode::text(&mut out, "app.bsky.feed.post");
    if let Some(cid) = picture {
        encode::text(&mut out, "picture");
        encode::map(&mut out, 4);
        encode::text(&mut out, "ref");
        encode::link(&mut out, cid);
        encode::text(&mut out, "size");
        encode::integer(&mut out, 9);
        encode::text(&mut out, "$type");
        encode::text(&mut out, "blob");
        encode::text(&mut out, "mimeType");
        encode::text(&mut out, "image/png");
    }
    out
}

/// A zstd frame as the daemon writes it.
pub fn pack(content: &[u8]) -> Vec<u8> {
    let mut encoder = SnapshotEncoder::new(Vec::new(), Some(content.len() as u64)).expect("memory");
    encoder.write_all(content).expect("a Vec takes all");
    encoder.finish().expect("as announced").0
}

/// A log that is being written.
#[derive(Default)]
pub struct Log {
    pub generation: u64,
    pub number: u64,
    pub prev: Option<Cid>,
    pub first: u64,
}

impl Log {
    pub fn segment(&mut self, entries: Vec<Entry>, blocks: BTreeMap<Cid, Bytes>) -> (String, Vec<u8>) {
        let name = SegmentName {
            shard: 0,
            generation: self.generation,
            number: self.number,
            edition: 0,
        };
        let count = entries.len() as u64;
        let origin = Origin::Segment {
            shard: 0,
            generation: self.generation,
            number: self.number,
            prev: self.prev,
            first: self.first,
        };
        let file = file(origin, entries, blocks);
        (self.number, self.first, self.prev) = (self.number + 1, self.first + count, Some(file.root));
        (name.to_string(), pack(&file.encode_car()))
    }
}

fn file(origin: Origin, entries: Vec<Entry>, blocks: BTreeMap<Cid, Bytes>) -> LogFile {
    let index = LogIndex {
        format: FORMAT,
        origin,
        entries,
    };
    LogFile::new(index, blocks)
}

pub fn delta(changes: Vec<(Change, BTreeMap<Cid, Bytes>)>) -> (String, Vec<u8>) {
    let (first, last) = (&changes[0].0, &changes[changes.len() - 1].0);
    let (did, from, to) = (first.did.clone(), first.since, last.rev);
    let folder = DidFolder::try_from(&did).expect("short");
    let name = DeltaName::new(folder, from, to, *last.commit.digest()).expect("in order");
    let blocks = changes.iter().flat_map(|(_, blocks)| blocks.clone()).collect();
    let entries = changes
        .into_iter()
        .map(|(change, _)| Entry::Commit(change))
        .collect();
    let file = file(Origin::Delta { did, from, to }, entries, blocks);
    (name.to_string(), pack(&file.encode_car()))
}

/// Objects by name.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// Two accounts: snapshots, deltas between them, and a log over two writers that goes on behind the newest.
pub fn sample() -> Objects {
    let mut objects = Objects::new();
    let mut log = Log {
        generation: 1,
        number: 7,
        prev: Some(Cid::of_block(b"removed")),
        first: 100,
    };
    let begins = BoundaryName {
        shard: 0,
        generation: log.generation,
        number: log.number,
    };
    let boundary = Boundary::at(begins, log.prev, None, NOW);
    objects.insert(begins.to_string(), boundary.encode());
    let mut writers = [
        Writer::new("did:web:alice.example.com"),
        Writer::new("did:plc:ewvi7nxzyoun6zhxrhs64oiz"),
    ];
    for writer in &mut writers {
        objects.extend([writer.identity(), writer.snapshot()]);
        for _ in 0..3 {
            let mut changes = Vec::new();
            for number in 0..3 {
                let blob = format!("blob {} {}", writer.did, writer.number).into_bytes();
                let cid = Cid::of_blob(&blob);
                let picture = (number == 0).then_some(&cid);
                if picture.is_some() {
                    let name = BlobName {
                        did: writer.folder(),
                        blob: *cid.digest(),
                    };
                    objects.insert(name.to_string(), blob);
                }
                changes.push(writer.write(picture));
            }
            objects.extend([delta(changes), writer.snapshot()]);
        }
    }
    for round in 0..6 {
        if round == 3 {
            log.generation = 2;
        }
        let [alice, bob] = &mut writers;
        let writer = if round % 2 == 0 { alice } else { bob };
        let (change, blocks) = writer.write(None);
        objects.extend([log.segment(vec![Entry::Commit(change)], blocks)]);
    }
    let time = "2026-01-02T03:04:05.678Z".parse().expect("a time");
    let service = ServiceState {
        time,
        ..ServiceState::default()
    };
    let host = HostState {
        host: "pds.test".parse().expect("a host"),
        time,
        url: "https://pds.test".to_owned(),
        epoch: 0,
        cursor: Some(7),
        highest_seq: 7,
        listed: Some(time),
        last_event: None,
        rolled_back_at: None,
        ring: vec![(7, 1)],
        log_next: 1,
        accounts: BTreeMap::new(),
    };
    objects.insert(
        format!("v1/service/{}.json", "2026-01-02T03:04:05.678Z"),
        service.encode(),
    );
    objects.insert(
        format!("v1/hosts/pds.test/{}.json", "2026-01-02T03:04:05.678Z"),
        host.encode(),
    );
    objects
}

/// Puts objects into an empty bucket, which becomes an archive.
pub async fn fill(bucket: &Bucket, objects: &Objects) {
    identity::open_or_create(bucket, ArchiveId::from_bytes([3; 16]), NOW)
        .await
        .expect("an empty bucket");
    for (name, bytes) in objects {
        replace(bucket, name, bytes).await;
    }
}

/// Puts an object, whether there is one or not.
pub async fn replace(bucket: &Bucket, name: &str, bytes: &[u8]) {
    let mut options = PutOptions::create(ContentType::binary());
    options.create_only = false;
    let body = Body::Bytes(Bytes::copy_from_slice(bytes));
    assert_eq!(
        bucket.put(name, body, &options).await,
        Ok(PutOutcome::Created),
        "{name}"
    );
}
