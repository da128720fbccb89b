//! A simulated account: keys, records, signed commits, frames and exports.

use std::collections::BTreeMap;

use crate::repo::car::{encode_block, encode_header};
use crate::repo::commit::build_commit;
use crate::repo::mst::TreeBuilder;
use crate::repo::signing_key::{Curve, SecretKey, SigningKey};
use crate::stream::encode::encode_frame;
use crate::stream::frame::{Action, CommitFrame, Frame, FrameOp, SyncFrame};
use crate::types::{Cid, Did, Rev, Timestamp};

/// One account at one host.
pub struct SimAccount {
    did: Did,
    secret: SecretKey,
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
        let secret = SecretKey::from_bytes(curve, &seed).expect("below the group order");
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
        self.secret = SecretKey::from_bytes(Curve::K256, &seed).expect("below the group order");
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
            ops.push(FrameOp {
                action,
                path,
                cid,
                prev,
            });
        }
        self.rev = Rev::from_time(
            Timestamp::from_micros(now.micros().max((since.to_bits() >> 10) + 1)),
            0,
        );
        let mut nodes = Vec::new();
        self.data = tree(&self.records, |cid, bytes| nodes.push((cid, bytes.to_vec())));
        self.commit = sign(&self.secret, &self.did, self.rev, self.data);
        let mut blocks = encode_header(&[self.commit.0]);
        encode_block(&mut blocks, &self.commit.0, &self.commit.1);
        for (cid, bytes) in &nodes {
            encode_block(&mut blocks, cid, bytes);
        }
        for bytes in writes.iter().filter_map(|(_, record)| record.as_ref()) {
            encode_block(&mut blocks, &Cid::of_block(bytes), bytes);
        }
        encode_frame(&Frame::Commit(CommitFrame {
            seq,
            did: self.did.clone(),
            commit: self.commit.0,
            rev: self.rev,
            since: Some(since),
            blocks: &blocks,
            ops,
            prev_data: Some(prev_data),
            too_big: false,
            time: Some(now),
        }))
    }

    /// The `#sync` frame of its head.
    #[must_use]
    pub fn sync_frame(&self, seq: u64, now: Timestamp) -> Vec<u8> {
        let mut blocks = encode_header(&[self.commit.0]);
        encode_block(&mut blocks, &self.commit.0, &self.commit.1);
        encode_frame(&Frame::Sync(SyncFrame {
            seq,
            did: self.did.clone(),
            blocks: &blocks,
            rev: self.rev,
            time: Some(now),
        }))
    }

    /// What `getRepo` returns: records first, then nodes, the commit last — an order as bad as any.
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        let mut car = encode_header(&[self.commit.0]);
        for bytes in self.records.values() {
            encode_block(&mut car, &Cid::of_block(bytes), bytes);
        }
        tree(&self.records, |cid, bytes| encode_block(&mut car, &cid, bytes));
        encode_block(&mut car, &self.commit.0, &self.commit.1);
        car
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
