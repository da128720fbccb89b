//! Making frames: the inverse of [`frame`](super::frame), for tests, simulated hosts and load generators.
//!
//! Nothing in the daemon sends a frame. What is written is strict DAG-CBOR in the wire's field order (shorter
//! keys first); a value outside the lexicon's limits is written as it stands, so that a test can be nasty.

use crate::repo::cbor::encode;
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
    encode::map(&mut out, entries.len());
    for (key, item) in &entries {
        encode::text(&mut out, key);
        write(&mut out, item);
    }
    out
}

fn write(out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::Null => encode::null(out),
        Item::Bool(value) => encode::boolean(out, *value),
        Item::Int(value) => encode::integer(out, *value),
        Item::Text(value) => encode::text(out, value),
        Item::Bytes(value) => encode::bytes(out, value),
        Item::Link(cid) => encode::link(out, cid),
        Item::List(items) => {
            encode::array(out, items.len());
            for item in items {
                write(out, item);
            }
        }
        Item::Map(encoded) => out.extend_from_slice(encoded),
    }
}
