//! A good frame taken apart, so that a test can spoil one thing and put it together again.

use std::time::Duration;

use crate::repo::car::{encode_block, encode_header, parse_car};
use crate::repo::cbor::encode;
use crate::repo::commit::Commit;
use crate::repo::mst::Node;
use crate::repo::signing_key::Curve;
use crate::sim::SimAccount;
use crate::sim::account::{Write, post};
use crate::stream::encode::encode_frame;
use crate::stream::frame::{Action, CommitFrame, Frame, FrameOp, SyncFrame, decode_frame};
use crate::types::{Cid, Rev, Timestamp};

pub const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
pub const OTHER_DID: &str = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb";

/// One operation of a draft.
#[derive(Debug, Clone)]
pub struct Op {
    pub action: Action,
    pub path: String,
    pub cid: Option<Cid>,
    pub prev: Option<Cid>,
}

impl Op {
    pub fn new(action: Action, path: &str, cid: Option<Cid>, prev: Option<Cid>) -> Self {
        let path = path.to_owned();
        Self {
            action,
            path,
            cid,
            prev,
        }
    }
}

/// A `#commit` in its parts.
pub struct Draft {
    pub curve: Curve,
    pub account: SimAccount,
    pub commit: Cid,
    pub rev: Rev,
    pub since: Option<Rev>,
    pub roots: Vec<Cid>,
    pub blocks: Vec<Vec<u8>>,
    /// The CAR itself, instead of roots and blocks.
    pub car: Option<Vec<u8>>,
    pub ops: Vec<Op>,
    pub prev_data: Option<Cid>,
    pub too_big: bool,
    pub time: Option<Timestamp>,
    /// Whether the account's document names the host.
    pub may_speak: bool,
    patches: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A commit about to be signed.
pub struct Unsigned {
    pub did: String,
    pub rev: Rev,
    pub data: Cid,
    pub prev: Option<Cid>,
    pub version: i64,
    pub with_prev: bool,
    pub with_extra: bool,
    pub sorted: bool,
    pub sig_bytes: usize,
    /// Sign this rev instead of the one that is written.
    pub signed_rev: Option<Rev>,
    pub change_sig: fn(&mut [u8; 64], Curve),
}

impl Draft {
    /// A create, an update and a delete in a repository of 40 records.
    pub fn good(curve: Curve) -> Self {
        let write = |rkey: &str, text: &str| (format!("app.bsky.feed.post/{rkey}"), Some(post(text)));
        let writes = [
            write("new", "created"),
            write("r3", "updated"),
            ("app.bsky.feed.post/r4".to_owned(), None),
        ];
        Self::with_writes(curve, &writes)
    }

    /// One record created.
    pub fn with_record(curve: Curve, record: Vec<u8>) -> Self {
        Self::with_writes(curve, &[("app.bsky.feed.post/big".to_owned(), Some(record))])
    }

    /// Many records created.
    pub fn with_creates(curve: Curve, creates: usize) -> Self {
        let writes: Vec<Write> = (0..creates)
            .map(|i| (format!("app.bsky.feed.like/c{i}"), Some(post("like"))))
            .collect();
        Self::with_writes(curve, &writes)
    }

    fn with_writes(curve: Curve, writes: &[Write]) -> Self {
        let before = NOW.minus(Duration::from_secs(3600));
        let mut account = SimAccount::on_curve(curve, 1, before);
        let first: Vec<Write> = (0..40)
            .map(|i| {
                (
                    format!("app.bsky.feed.post/r{i}"),
                    Some(post(&format!("record {i}"))),
                )
            })
            .collect();
        account.commit(1, &first, before);
        let frame = account.commit(2, writes, before);
        let Ok(Frame::Commit(frame)) = decode_frame(&frame) else {
            panic!("a commit");
        };
        let car = parse_car(frame.blocks).expect("a CAR");
        Self {
            curve,
            commit: frame.commit,
            rev: frame.rev,
            since: frame.since,
            roots: car.roots.clone(),
            blocks: car.blocks.iter().map(|(_, bytes)| bytes.to_vec()).collect(),
            car: None,
            ops: frame
                .ops
                .iter()
                .map(|op| Op::new(op.action, op.path, op.cid, op.prev))
                .collect(),
            prev_data: frame.prev_data,
            too_big: false,
            time: frame.time,
            may_speak: true,
            patches: Vec::new(),
            account,
        }
    }

    pub fn car(&self) -> Vec<u8> {
        if let Some(car) = &self.car {
            return car.clone();
        }
        let mut car = encode_header(&self.roots);
        for block in &self.blocks {
            encode_block(&mut car, &Cid::of_block(block), block);
        }
        car
    }

    pub fn commit_frame<'a>(&'a self, car: &'a [u8]) -> CommitFrame<'a> {
        let ops = self.ops.iter().map(|op| FrameOp {
            action: op.action,
            path: &op.path,
            cid: op.cid,
            prev: op.prev,
        });
        CommitFrame {
            seq: 2,
            did: self.account.did().clone(),
            commit: self.commit,
            rev: self.rev,
            since: self.since,
            blocks: car,
            ops: ops.collect(),
            prev_data: self.prev_data,
            too_big: self.too_big,
            time: self.time,
        }
    }

    /// The frame, with its first occurrences patched.
    pub fn frame(&self) -> Vec<u8> {
        let car = self.car();
        let mut frame = encode_frame(&Frame::Commit(self.commit_frame(&car)));
        for (from, to) in &self.patches {
            let at = frame.windows(from.len()).position(|window| window == from);
            let at = at.expect("what is patched is there");
            frame[at..at + to.len()].copy_from_slice(to);
        }
        frame
    }

    /// The same state as a `#sync`.
    pub fn sync_frame(&self) -> Vec<u8> {
        encode_frame(&Frame::Sync(SyncFrame {
            seq: 2,
            did: self.account.did().clone(),
            blocks: &self.car(),
            rev: self.rev,
            time: self.time,
        }))
    }

    /// Replaces bytes of the frame by as many others.
    pub fn patch(&mut self, from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        self.patches.push((from.to_vec(), to.to_vec()));
    }

    pub fn drop_block(&mut self, cid: &Cid) {
        let before = self.blocks.len();
        self.blocks.retain(|block| !cid.matches(block));
        assert!(self.blocks.len() < before, "it was there");
    }

    /// The nodes of the tree that are here.
    pub fn node_cids(&self) -> Vec<Cid> {
        let nodes = self.blocks.iter().filter(|block| Node::decode(block).is_ok());
        nodes.map(|block| Cid::of_block(block)).collect()
    }

    /// Signs the commit anew, after `change`; the event names it.
    pub fn sign_with(&mut self, change: impl FnOnce(&mut Unsigned)) {
        let old = self.commit;
        let place = self.blocks.iter().position(|block| old.matches(block));
        let place = place.expect("the commit is there");
        let commit = Commit::decode(&self.blocks[place]).expect("a good commit");
        let mut unsigned = Unsigned {
            did: commit.did.to_string(),
            rev: commit.rev,
            data: commit.data,
            prev: commit.prev,
            version: 3,
            with_prev: true,
            with_extra: false,
            sorted: true,
            sig_bytes: 64,
            signed_rev: None,
            change_sig: |_, _| {},
        };
        change(&mut unsigned);
        let message = unsigned.write(None, unsigned.signed_rev.unwrap_or(unsigned.rev));
        let mut sig = self.account.sign(&message);
        (unsigned.change_sig)(&mut sig, self.curve);
        let block = unsigned.write(Some(&sig[..unsigned.sig_bytes]), unsigned.rev);
        self.commit = Cid::of_block(&block);
        self.blocks[place] = block;
        for root in &mut self.roots {
            if *root == old {
                *root = self.commit;
            }
        }
    }

    /// Signs a tree whose root is this block.
    pub fn replace_root(&mut self, block: &[u8]) {
        self.blocks.push(block.to_vec());
        self.sign_with(|commit| commit.data = Cid::of_block(block));
    }
}

impl Unsigned {
    fn write(&self, sig: Option<&[u8]>, rev: Rev) -> Vec<u8> {
        let mut fields: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut field = |name, write: &dyn Fn(&mut Vec<u8>)| {
            let mut value = Vec::new();
            write(&mut value);
            fields.push((name, value));
        };
        field("did", &|out| encode::text(out, &self.did));
        field("rev", &|out| encode::text(out, &rev.to_string()));
        if let Some(sig) = sig {
            field("sig", &|out| encode::bytes(out, sig));
        }
        field("data", &|out| encode::link(out, &self.data));
        if self.with_prev {
            field("prev", &|out| encode::optional_link(out, self.prev.as_ref()));
        }
        if self.with_extra {
            field("zzzz", &|out| encode::text(out, "of a later time"));
        }
        field("version", &|out| encode::integer(out, self.version));
        if !self.sorted {
            fields.reverse();
        }
        let mut out = Vec::new();
        encode::map(&mut out, fields.len());
        for (name, value) in fields {
            encode::text(&mut out, name);
            out.extend_from_slice(&value);
        }
        out
    }
}

/// The commit's CID, and the root of its tree.
pub fn blocks_of(draft: &Draft) -> (Cid, Cid) {
    let block = draft.blocks.iter().find(|block| draft.commit.matches(block));
    let commit = Commit::decode(block.expect("the commit is there")).expect("a good commit");
    (draft.commit, commit.data)
}

/// The other form of a signature: s replaced by the group's order less s.
pub fn high_s(sig: &mut [u8; 64], curve: Curve) {
    let order = match curve {
        Curve::K256 => "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
        Curve::P256 => "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    };
    let order = data_encoding::HEXLOWER.decode(order.as_bytes()).expect("hex");
    let mut borrow = 0;
    for (digit, order) in sig[32..].iter_mut().zip(order).rev() {
        let difference = i16::from(order) - i16::from(*digit) - borrow;
        *digit = difference.rem_euclid(256) as u8;
        borrow = i16::from(difference < 0);
    }
}
