//! An account of the load generator: a tree that is kept, so that a commit costs the same at any size.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::world::Rng;
use super::record;
use super::tree::Tree;
use crate::repo::car::{encode_block, encode_header};
use crate::repo::commit::build_commit;
use crate::repo::signing_key::{Curve, SecretKey};
use crate::stream::encode::encode_commit_frame;
use crate::stream::frame::{Action, CommitFrame, FrameOp};
use crate::types::{Cid, Did, Rev, Timestamp};

/// Of a thousand commits, so many delete a record, and so many change the profile.
const DELETES: u64 = 60;
const UPDATES: u64 = 10;
/// Between two writes of one account, in microseconds, at most.
const STEP_MICROS: u64 = 4000;
/// A picture has between these many bytes.
const PICTURE_BYTES: (u64, u64) = (8 << 10, 64 << 10);

/// One account.
pub struct LoadAccount {
    did: Did,
    secret: Arc<SecretKey>,
    rng: Rng,
    /// Its own clock: when it last wrote.
    now: Timestamp,
    tree: Tree,
    rev: Rev,
    data: Cid,
    commit: (Cid, Vec<u8>),
    picture: Option<(u64, Cid, u64)>,
}

/// How an export's blocks are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockOrder {
    /// As they can be streamed: each node before what hangs on it.
    Streamable,
    /// By their hashes: none in particular, as the reference PDS's.
    #[default]
    Hashed,
}

impl LoadAccount {
    /// The secret key of the account of this number.
    #[must_use]
    pub fn secret(seed: u64, number: u64, curve: Curve) -> SecretKey {
        let mut rng = Rng::new(seed ^ number.rotate_left(32), "key");
        let mut bytes = [0x11; 32];
        for part in bytes[8..].chunks_exact_mut(8) {
            part.copy_from_slice(&rng.next().to_be_bytes());
        }
        SecretKey::from_bytes(curve, &bytes).expect("below the group order")
    }

    /// An account with so many records, the profile among them, whose last was written before `until`.
    #[must_use]
    pub fn new(
        did: Did,
        secret: SecretKey,
        seed: u64,
        records: u64,
        picture: bool,
        until: Timestamp,
    ) -> Self {
        let mut rng = Rng::new(seed, did.as_str());
        let began = until.micros() - (records + 2) * STEP_MICROS;
        let mut account = Self {
            picture: picture.then(|| {
                let bytes = PICTURE_BYTES.0 + rng.below(PICTURE_BYTES.1 - PICTURE_BYTES.0);
                let drawn = rng.next();
                (drawn, Cid::of_blob(&picture_bytes(drawn, bytes)), bytes)
            }),
            did,
            secret: Arc::new(secret),
            rng,
            now: Timestamp::from_micros(began),
            tree: Tree::default(),
            rev: Rev::from_time(Timestamp::from_micros(began), 0),
            data: Cid::of_block(&[]),
            commit: (Cid::of_block(&[]), Vec::new()),
        };
        let (path, bytes) = account.next_profile();
        account.tree.put(&path, bytes);
        for _ in 1..records {
            let (path, bytes) = account.next_record();
            account.tree.put(&path, bytes);
        }
        account.sign(|_, _| {});
        account
    }

    /// Its DID.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> crate::repo::signing_key::SigningKey {
        self.secret.public()
    }

    /// Its head: rev, commit, and the commit block.
    #[must_use]
    pub fn head(&self) -> (Rev, Cid, &[u8]) {
        (self.rev, self.commit.0, &self.commit.1)
    }

    /// The root of its tree.
    #[must_use]
    pub const fn data(&self) -> Cid {
        self.data
    }

    /// How many records it has.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.tree.records()
    }

    /// Its picture: CID and bytes.
    #[must_use]
    pub fn picture(&self) -> Option<(Cid, Vec<u8>)> {
        let (drawn, cid, bytes) = self.picture?;
        Some((cid, picture_bytes(drawn, bytes)))
    }

    /// The CID of its picture.
    #[must_use]
    pub fn picture_cid(&self) -> Option<Cid> {
        self.picture.map(|(_, cid, _)| cid)
    }

    /// Writes once as its owner's client would, and returns the `#commit` frame.
    pub fn write(&mut self, seq: u64) -> Vec<u8> {
        let draw = self.rng.below(1000);
        let (since, prev_data) = (self.rev, self.data);
        let gone = (draw < DELETES).then(|| self.some_key()).flatten();
        let mut record = None;
        let (action, path, prev) = match gone {
            Some(path) => {
                let prev = self.tree.delete(&path);
                (Action::Delete, path, prev)
            }
            None => {
                let (path, bytes) = if draw < DELETES + UPDATES {
                    self.next_profile()
                } else {
                    self.next_record()
                };
                let prev = self.tree.put(&path, bytes.clone());
                record = Some((Cid::of_block(&bytes), bytes));
                let action = if prev.is_some() {
                    Action::Update
                } else {
                    Action::Create
                };
                (action, path, prev)
            }
        };
        // New nodes, and those on the way to the key: together they prove the change.
        let mut nodes = BTreeMap::new();
        self.sign(|cid, block| drop(nodes.insert(cid, block)));
        self.tree.way(&path, |cid, block| drop(nodes.insert(cid, block)));

        let (head, block) = &self.commit;
        let mut car = encode_header(&[*head]);
        encode_block(&mut car, head, block);
        for (cid, bytes) in &nodes {
            encode_block(&mut car, cid, bytes);
        }
        if let Some((cid, bytes)) = &record {
            encode_block(&mut car, cid, bytes);
        }
        encode_commit_frame(&CommitFrame {
            seq,
            did: self.did.clone(),
            commit: *head,
            rev: self.rev,
            since: Some(since),
            blocks: &car,
            ops: vec![FrameOp {
                action,
                path: &path,
                cid: record.as_ref().map(|(cid, _)| *cid),
                prev,
            }],
            prev_data: Some(prev_data),
            too_big: false,
            time: Some(self.now),
        })
    }

    /// What `getRepo` sends.
    #[must_use]
    pub fn export(&self, order: BlockOrder) -> Vec<u8> {
        let (head, block) = &self.commit;
        let mut car = encode_header(&[*head]);
        encode_block(&mut car, head, block);
        match order {
            BlockOrder::Streamable => {
                for (cid, bytes) in self.tree.blocks() {
                    encode_block(&mut car, &cid, &bytes);
                }
            }
            BlockOrder::Hashed => {
                let mut blocks: Vec<_> = self.tree.blocks().collect();
                blocks.sort_unstable_by_key(|(cid, _)| *cid);
                for (cid, bytes) in blocks {
                    encode_block(&mut car, &cid, &bytes);
                }
            }
        }
        car
    }

    fn tick(&mut self) {
        self.now = Timestamp::from_micros(self.now.micros() + 1 + self.rng.below(STEP_MICROS));
    }

    fn next_profile(&mut self) -> record::Record {
        self.tick();
        let avatar = self.picture.map(|(_, cid, bytes)| (cid, bytes));
        let avatar = avatar.as_ref().map(|(cid, bytes)| (cid, *bytes));
        record::profile(&mut self.rng, self.now, avatar)
    }

    fn next_record(&mut self) -> record::Record {
        self.tick();
        record::next_record(&mut self.rng, self.now)
    }

    /// Some record that may go: the profile stays.
    fn some_key(&mut self) -> Option<String> {
        let drawn = self.rng.next();
        self.tree.some_key(drawn).filter(|key| !key.ends_with("/self"))
    }

    fn sign(&mut self, sink: impl FnMut(Cid, Vec<u8>)) {
        self.tick();
        self.data = self.tree.root(sink);
        self.rev = Rev::from_time(self.now, 0);
        let block = build_commit(&self.did, self.rev, self.data, None, |message| {
            self.secret.sign(message)
        });
        self.commit = (Cid::of_block(&block), block);
    }
}

/// A picture's bytes: they do not compress, like any.
fn picture_bytes(drawn: u64, bytes: u64) -> Vec<u8> {
    let mut rng = Rng::new(drawn, "picture");
    let mut out = Vec::with_capacity(bytes as usize + 8);
    while (out.len() as u64) < bytes {
        out.extend_from_slice(&rng.next().to_le_bytes());
    }
    out.truncate(bytes as usize);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::car::parse_car;
    use crate::sim::world::START;
    use crate::stream::frame::{Frame, decode_frame};
    use crate::verify::{CommitProof, VerifiedOp, check_commit, check_repo};

    fn account(records: u64, curve: Curve) -> LoadAccount {
        let did = "did:plc:abcdefghijklmnopqrstuvwx".parse().expect("a DID");
        LoadAccount::new(did, LoadAccount::secret(1, 2, curve), 1, records, true, START)
    }

    #[test]
    fn every_commit_proves_and_chains_and_the_export_is_the_last_head() {
        for curve in [Curve::K256, Curve::P256] {
            let mut account = account(300, curve);
            let (mut data, mut deletes) = (account.data(), 0);
            for seq in 1..=300 {
                let frame = account.write(seq);
                let Ok(Frame::Commit(frame)) = decode_frame(&frame) else {
                    panic!("no commit");
                };
                assert_eq!(frame.prev_data, Some(data));
                let proof = check_commit(&frame, &account.key(), START).expect("it verifies");
                let CommitProof::Inverted(proof) = proof else {
                    panic!("not inverted");
                };
                deletes += proof
                    .ops()
                    .iter()
                    .filter(|op| matches!(op, VerifiedOp::Delete { .. }))
                    .count();
                data = account.data();
            }
            assert!(deletes > 5, "{deletes}");
            for order in [BlockOrder::Hashed, BlockOrder::Streamable] {
                let export = account.export(order);
                let car = parse_car(&export).expect("a CAR");
                let blocks: BTreeMap<_, _> = car
                    .blocks
                    .iter()
                    .map(|(cid, bytes)| (*cid.digest(), *bytes))
                    .collect();
                let key = account.key();
                let repo = check_repo(&blocks, car.roots[0], account.did(), &key, START, |_, _, _| {
                    Ok::<(), std::convert::Infallible>(())
                })
                .expect("it proves");
                assert_eq!(
                    (repo.cid(), repo.records()),
                    (account.head().1, account.records())
                );
            }
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_bytes() {
        let (mut one, mut other) = (account(50, Curve::K256), account(50, Curve::K256));
        for seq in 1..50 {
            assert_eq!(one.write(seq), other.write(seq));
        }
        assert_eq!(one.picture(), other.picture());
    }
}
