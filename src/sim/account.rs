//! A simulated account: keys, records, signed commits, frames and exports.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::repo::car::{encode_block, encode_header};
use crate::repo::commit::build_commit;
use crate::repo::mst::TreeBuilder;
use crate::repo::signing_key::{Curve, SecretKey, SigningKey};
use crate::stream::encode::encode_frame;
use crate::stream::frame::{Action, CommitFrame, Frame, FrameOp, SyncFrame};
use crate::types::{Cid, Did, Rev, Timestamp};

/// One account at one host. A clone is the account in another timeline.
#[derive(Clone)]
pub struct SimAccount {
    did: Did,
    secret: Arc<SecretKey>,
    records: BTreeMap<String, Vec<u8>>,
    rev: Rev,
    data: Cid,
    commit: (Cid, Vec<u8>),
}

/// A write of a commit: `None` deletes.
pub type Write = (String, Option<Vec<u8>>);

impl SimAccount {
    /// A new account with an empty repository. `number` makes its DID and key.
    #[must_use]
    pub fn new(number: u64, now: Timestamp) -> Self {
        Self::on_curve(Curve::K256, number, now)
    }

    /// As [`SimAccount::new`], with a key on this curve.
    #[must_use]
    pub fn on_curve(curve: Curve, number: u64, now: Timestamp) -> Self {
        let mut seed = [0x42; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        let secret = Arc::new(SecretKey::from_bytes(curve, &seed).expect("below the group order"));
        let id: String = (0..24)
            .map(|i| char::from(b'a' + ((number >> (i * 2)) & 3) as u8))
            .collect();
        let did: Did = format!("did:plc:{id}").parse().expect("24 letters");
        let records = BTreeMap::new();
        let data = tree(&records, |_, _| {});
        let rev = Rev::from_time(now, 0);
        let commit = sign(&secret, &did, rev, data);
        Self {
            did,
            secret,
            records,
            rev,
            data,
            commit,
        }
    }

    /// The same account under another DID.
    #[must_use]
    pub fn with_did(mut self, did: Did) -> Self {
        self.did = did;
        self.commit = sign(&self.secret, &self.did, self.rev, self.data);
        self
    }

    /// Its DID.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }

    /// Its public key.
    #[must_use]
    pub fn key(&self) -> SigningKey {
        self.secret.public()
    }

    /// Signs with its key, for commits that are not what they should be.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.secret.sign(message)
    }

    /// Replaces its key: the next commit is signed by the new one.
    pub fn rotate_key(&mut self, number: u64) {
        let mut seed = [0x43; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        self.secret = Arc::new(SecretKey::from_bytes(Curve::K256, &seed).expect("below the group order"));
    }

    /// What it holds.
    #[must_use]
    pub const fn records(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.records
    }

    /// Its head's rev.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.rev
    }

    /// Its head commit.
    #[must_use]
    pub const fn head(&self) -> Cid {
        self.commit.0
    }

    /// The root of its tree.
    #[must_use]
    pub const fn data(&self) -> Cid {
        self.data
    }

    /// Applies writes and returns the `#commit` frame that a host would send with `seq`.
    pub fn commit(&mut self, seq: u64, writes: &[Write], now: Timestamp) -> Vec<u8> {
        self.write(writes, now).frame(seq, now)
    }

    /// Applies writes and returns the parts of its `#commit`.
    pub fn write(&mut self, writes: &[Write], now: Timestamp) -> CommitParts {
        let next = Timestamp::from_micros(now.micros().max((self.rev.to_bits() >> 10) + 1));
        self.write_as(writes, Rev::from_time(next, 0))
    }

    /// Applies writes under this rev, which need not be newer than the head's.
    pub fn write_as(&mut self, writes: &[Write], rev: Rev) -> CommitParts {
        let (since, prev_data) = (self.rev, self.data);
        let mut ops = Vec::new();
        for (path, record) in writes {
            let prev = self.records.get(path).map(|bytes| Cid::of_block(bytes));
            let cid = record.as_ref().map(|bytes| Cid::of_block(bytes));
            let action = match (&prev, &cid) {
                (None, _) => Action::Create,
                (Some(_), Some(_)) => Action::Update,
                (Some(_), None) => Action::Delete,
            };
            match record {
                Some(bytes) => drop(self.records.insert(path.clone(), bytes.clone())),
                None => drop(self.records.remove(path)),
            }
            ops.push(PartOp {
                action,
                path: path.clone(),
                cid,
                prev,
            });
        }
        self.rev = rev;
        let mut nodes = Vec::new();
        self.data = tree(&self.records, |cid, bytes| nodes.push((cid, bytes.to_vec())));
        self.commit = sign(&self.secret, &self.did, self.rev, self.data);
        let records = writes.iter().filter_map(|(_, record)| record.as_ref());
        CommitParts {
            did: self.did.clone(),
            root: self.commit.0,
            commit: self.commit.clone(),
            rev: self.rev,
            since: Some(since),
            prev_data: Some(prev_data),
            ops,
            nodes,
            records: records
                .map(|bytes| (Cid::of_block(bytes), bytes.clone()))
                .collect(),
        }
    }

    /// A commit over any root, signed by this account: not its head.
    #[must_use]
    pub fn sign_over(&self, rev: Rev, data: Cid) -> (Cid, Vec<u8>) {
        sign(&self.secret, &self.did, rev, data)
    }

    /// A commit whose signature is the same in the form that the protocol forbids.
    #[must_use]
    pub fn sign_high(&self, rev: Rev, data: Cid) -> (Cid, Vec<u8>) {
        let block = build_commit(&self.did, rev, data, None, |message| {
            let mut sig = self.secret.sign(message);
            negate_k256(sig.last_chunk_mut().expect("64 bytes"));
            sig
        });
        (Cid::of_block(&block), block)
    }

    /// The signed head.
    #[must_use]
    pub fn commit_block(&self) -> &[u8] {
        &self.commit.1
    }

    /// The `#sync` frame of its head.
    #[must_use]
    pub fn sync_frame(&self, seq: u64, now: Timestamp) -> Vec<u8> {
        self.sync_frame_of(seq, self.rev, self.commit.0, &self.commit.1, now)
    }

    /// The `#sync` frame of another head of it.
    #[must_use]
    pub fn sync_frame_of(&self, seq: u64, rev: Rev, head: Cid, block: &[u8], now: Timestamp) -> Vec<u8> {
        let mut blocks = encode_header(&[head]);
        encode_block(&mut blocks, &head, block);
        encode_frame(&Frame::Sync(SyncFrame {
            seq,
            did: self.did.clone(),
            blocks: &blocks,
            rev,
            time: Some(now),
        }))
    }

    /// What `getRepo` returns: records first, then nodes, the commit last — an order as bad as any.
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        let mut car = encode_header(&[self.commit.0]);
        for (cid, bytes) in self.export_blocks() {
            encode_block(&mut car, &cid, &bytes);
        }
        car
    }

    /// The same records as a lax host would sign and send them under this rev: in one node, whatever their layers,
    /// and without shared prefixes. The head, and the blocks: the node first, the commit last.
    #[must_use]
    pub fn lax_blocks(&self, rev: Rev) -> (Cid, Vec<(Cid, Vec<u8>)>) {
        use crate::repo::cbor::encode;

        let mut node = Vec::new();
        encode::map(&mut node, 2);
        encode::text(&mut node, "e");
        encode::array(&mut node, self.records.len());
        for (path, bytes) in &self.records {
            encode::map(&mut node, 4);
            encode::text(&mut node, "k");
            encode::bytes(&mut node, path.as_bytes());
            encode::text(&mut node, "p");
            encode::integer(&mut node, 0);
            encode::text(&mut node, "t");
            encode::null(&mut node);
            encode::text(&mut node, "v");
            encode::link(&mut node, &Cid::of_block(bytes));
        }
        encode::text(&mut node, "l");
        encode::null(&mut node);
        let (data, commit) = (Cid::of_block(&node), self.sign_over(rev, Cid::of_block(&node)));
        let records = self
            .records
            .values()
            .map(|bytes| (Cid::of_block(bytes), bytes.clone()));
        let blocks = [(data, node)].into_iter().chain(records);
        (commit.0, blocks.chain([commit.clone()]).collect())
    }

    /// The blocks of an export, in its order.
    #[must_use]
    pub fn export_blocks(&self) -> Vec<(Cid, Vec<u8>)> {
        let records = self.records.values();
        let mut blocks: Vec<_> = records
            .map(|bytes| (Cid::of_block(bytes), bytes.clone()))
            .collect();
        tree(&self.records, |cid, bytes| blocks.push((cid, bytes.to_vec())));
        blocks.push(self.commit.clone());
        blocks
    }
}

/// The parts of a `#commit`, before they are a frame: what a fault changes.
#[derive(Debug, Clone)]
pub struct CommitParts {
    /// The envelope's DID.
    pub did: Did,
    /// The CAR's root.
    pub root: Cid,
    /// The signed commit.
    pub commit: (Cid, Vec<u8>),
    /// The envelope's rev.
    pub rev: Rev,
    /// The rev before.
    pub since: Option<Rev>,
    /// The root of the tree before.
    pub prev_data: Option<Cid>,
    /// What changed.
    pub ops: Vec<PartOp>,
    /// Nodes of the tree, all of them.
    pub nodes: Vec<(Cid, Vec<u8>)>,
    /// New records.
    pub records: Vec<(Cid, Vec<u8>)>,
}

/// One operation of [`CommitParts`].
#[derive(Debug, Clone)]
pub struct PartOp {
    /// What happened.
    pub action: Action,
    /// Where.
    pub path: String,
    /// The record afterwards.
    pub cid: Option<Cid>,
    /// The record before.
    pub prev: Option<Cid>,
}

impl CommitParts {
    /// The CAR of its blocks.
    #[must_use]
    pub fn car(&self) -> Vec<u8> {
        let mut car = encode_header(&[self.root]);
        let blocks = [&self.commit].into_iter().chain(&self.nodes).chain(&self.records);
        for (cid, bytes) in blocks.filter(|(_, bytes)| !bytes.is_empty()) {
            encode_block(&mut car, cid, bytes);
        }
        car
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self, seq: u64, now: Timestamp) -> Vec<u8> {
        self.frame_with(&self.car(), seq, now)
    }

    /// The frame with other blocks.
    #[must_use]
    pub fn frame_with(&self, blocks: &[u8], seq: u64, now: Timestamp) -> Vec<u8> {
        let ops = self.ops.iter().map(|op| FrameOp {
            action: op.action,
            path: &op.path,
            cid: op.cid,
            prev: op.prev,
        });
        encode_frame(&Frame::Commit(CommitFrame {
            seq,
            did: self.did.clone(),
            commit: self.commit.0,
            rev: self.rev,
            since: self.since,
            blocks,
            ops: ops.collect(),
            prev_data: self.prev_data,
            too_big: false,
            time: Some(now),
        }))
    }
}

/// `order - s`, for an s below the order of secp256k1.
fn negate_k256(s: &mut [u8; 32]) {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba,
        0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
    ];
    let mut borrow = 0;
    for (digit, order) in s.iter_mut().zip(ORDER).rev() {
        let difference = i16::from(order) - i16::from(*digit) - borrow;
        borrow = i16::from(difference < 0);
        *digit = difference.rem_euclid(256) as u8;
    }
}

fn tree(records: &BTreeMap<String, Vec<u8>>, mut sink: impl FnMut(Cid, &[u8])) -> Cid {
    let mut builder = TreeBuilder::new(|_, cid, bytes: &[u8]| sink(cid, bytes));
    for (path, bytes) in records {
        builder
            .push(path.as_bytes(), Cid::of_block(bytes))
            .expect("a map is sorted and its keys are paths");
    }
    builder.finish()
}

fn sign(secret: &SecretKey, did: &Did, rev: Rev, data: Cid) -> (Cid, Vec<u8>) {
    let block = build_commit(did, rev, data, None, |message| secret.sign(message));
    (Cid::of_block(&block), block)
}

/// A record with a text: a canonical DAG-CBOR map.
#[must_use]
pub fn post(text: &str) -> Vec<u8> {
    record(text, None)
}

/// A record with a text and a picture.
#[must_use]
pub fn post_with_blob(text: &str, blob: &Cid, size: u64) -> Vec<u8> {
    record(text, Some((blob, size)))
}

fn record(text: &str, blob: Option<(&Cid, u64)>) -> Vec<u8> {
    use crate::repo::cbor::encode;

    let mut out = Vec::new();
    encode::map(&mut out, if blob.is_some() { 3 } else { 2 });
    encode::text(&mut out, "text");
    encode::text(&mut out, text);
    encode::text(&mut out, "$type");
    encode::text(&mut out, "app.bsky.feed.post");
    if let Some((cid, size)) = blob {
        encode::text(&mut out, "picture");
        encode::map(&mut out, 4);
        encode::text(&mut out, "ref");
        encode::link(&mut out, cid);
        encode::text(&mut out, "size");
        encode::integer(&mut out, i64::try_from(size).unwrap_or(i64::MAX));
        encode::text(&mut out, "$type");
        encode::text(&mut out, "blob");
        encode::text(&mut out, "mimeType");
        encode::text(&mut out, "image/png");
    }
    out
}
