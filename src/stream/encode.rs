//! Making frames: the inverse of [`frame`](super::frame), for tests, simulated hosts and load generators.
//!
//! Nothing in the daemon sends a frame. What is written is strict DAG-CBOR in the wire's field order (shorter
//! keys first); a value outside the lexicon's limits is written as it stands, so that a test can be nasty.

use crate::types::{Cid, Timestamp};

use super::frame::{AccountFrame, CommitFrame, Frame, FrameOp, IdentityFrame, SyncFrame};

/// Encodes a frame: header and payload.
#[must_use]
pub fn encode_frame(frame: &Frame<'_>) -> Vec<u8> {
    match frame {
        Frame::Commit(frame) => message("#commit", commit(frame)),
        Frame::Sync(frame) => message("#sync", sync(frame)),
        Frame::Identity(frame) => message("#identity", identity(frame)),
        Frame::Account(frame) => message("#account", account(frame)),
        Frame::Info(frame) => message(
            "#info",
            [
                Some(("name", Item::text(frame.name))),
                optional("message", frame.message.map(Item::text)),
            ],
        ),
        Frame::Error(frame) => [
            map([Some(("op", Item::Int(-1)))]),
            map([
                Some(("error", Item::text(frame.error))),
                optional("message", frame.message.map(Item::text)),
            ]),
        ]
        .concat(),
        Frame::Unknown(frame) => [
            map([
                optional("t", frame.t.map(Item::text)),
                Some(("op", Item::Int(frame.op))),
            ]),
            map([optional("seq", frame.seq.map(Item::seq))]),
        ]
        .concat(),
    }
}

/// Encodes a `#commit`.
#[must_use]
pub fn encode_commit_frame(frame: &CommitFrame<'_>) -> Vec<u8> {
    message("#commit", commit(frame))
}

type Entry = Option<(&'static str, Item)>;

fn message<const N: usize>(t: &str, body: [Entry; N]) -> Vec<u8> {
    let mut out = map([Some(("t", Item::text(t))), Some(("op", Item::Int(1)))]);
    out.extend_from_slice(&map(body));
    out
}

fn commit(frame: &CommitFrame<'_>) -> [Entry; 12] {
    [
        Some(("ops", Item::List(frame.ops.iter().map(op).collect()))),
        Some(("rev", Item::text(&frame.rev.to_string()))),
        Some(("seq", Item::seq(frame.seq))),
        Some(("repo", Item::text(frame.did.as_str()))),
        optional("time", frame.time.map(Item::time)),
        Some(("blobs", Item::List(Vec::new()))),
        Some((
            "since",
            frame.since.map_or(Item::Null, |rev| Item::text(&rev.to_string())),
        )),
        Some(("blocks", Item::Bytes(frame.blocks.to_vec()))),
        Some(("commit", Item::Link(frame.commit))),
        Some(("rebase", Item::Bool(false))),
        Some(("tooBig", Item::Bool(frame.too_big))),
        optional("prevData", frame.prev_data.map(Item::Link)),
    ]
}

fn op(op: &FrameOp<'_>) -> Item {
    Item::Map(map([
        Some(("cid", op.cid.map_or(Item::Null, Item::Link))),
        Some(("path", Item::text(op.path))),
        optional("prev", op.prev.map(Item::Link)),
        Some(("action", Item::text(op.action.as_str()))),
    ]))
}

fn sync(frame: &SyncFrame<'_>) -> [Entry; 5] {
    [
        Some(("did", Item::text(frame.did.as_str()))),
        Some(("rev", Item::text(&frame.rev.to_string()))),
        Some(("seq", Item::seq(frame.seq))),
        optional("time", frame.time.map(Item::time)),
        Some(("blocks", Item::Bytes(frame.blocks.to_vec()))),
    ]
}

fn identity(frame: &IdentityFrame<'_>) -> [Entry; 4] {
    [
        Some(("did", Item::text(frame.did.as_str()))),
        Some(("seq", Item::seq(frame.seq))),
        optional("time", frame.time.map(Item::time)),
        optional("handle", frame.handle.map(Item::text)),
    ]
}

fn account(frame: &AccountFrame<'_>) -> [Entry; 5] {
    [
        Some(("did", Item::text(frame.did.as_str()))),
        Some(("seq", Item::seq(frame.seq))),
        optional("time", frame.time.map(Item::time)),
        Some(("active", Item::Bool(frame.active))),
        optional("status", frame.status.map(Item::text)),
    ]
}

fn optional(key: &'static str, item: Option<Item>) -> Entry {
    item.map(|item| (key, item))
}

enum Item {
    Null,
    Bool(bool),
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    Link(Cid),
    List(Vec<Self>),
    /// Already encoded.
    Map(Vec<u8>),
}

impl Item {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn seq(seq: u64) -> Self {
        Self::Int(i64::try_from(seq).unwrap_or(i64::MAX))
    }

    fn time(time: Timestamp) -> Self {
        Self::Text(time.to_string())
    }
}

fn map<const N: usize>(entries: [Entry; N]) -> Vec<u8> {
    let entries: Vec<_> = entries.into_iter().flatten().collect();
    assert!(
        entries.is_sorted_by_key(|(key, _)| (key.len(), *key)),
        "entries stand in DAG-CBOR order"
    );
    let mut out = Vec::new();
    head(&mut out, 5, entries.len() as u64);
    for (key, item) in &entries {
        head(&mut out, 3, key.len() as u64);
        out.extend_from_slice(key.as_bytes());
        write(&mut out, item);
    }
    out
}

fn write(out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::Null => out.push(0xf6),
        Item::Bool(false) => out.push(0xf4),
        Item::Bool(true) => out.push(0xf5),
        Item::Int(value) if *value < 0 => head(out, 1, (-1 - value).unsigned_abs()),
        Item::Int(value) => head(out, 0, value.unsigned_abs()),
        Item::Text(text) => {
            head(out, 3, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        Item::Bytes(bytes) => {
            head(out, 2, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        Item::Link(cid) => {
            out.extend_from_slice(&[0xd8, 42, 0x58, 37, 0]);
            out.extend_from_slice(&cid.to_bytes());
        }
        Item::List(items) => {
            head(out, 4, items.len() as u64);
            for item in items {
                write(out, item);
            }
        }
        Item::Map(encoded) => out.extend_from_slice(encoded),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "each arm's range fits the width that it writes"
)]
fn head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}
