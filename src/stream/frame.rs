//! One WebSocket message of `com.atproto.sync.subscribeRepos`, decoded and checked field by field.
//!
//! A frame is two DAG-CBOR items, header and payload, and nothing behind them. Both must be strict; what is
//! not says that the two sides no longer agree on where things begin, and the connection is dropped. A
//! payload that is sound CBOR but breaks a rule of the lexicon is refused alone: its `seq` and its DID
//! are still reported where they can be read, so that the cursor goes on and the account is fetched again.
//! What a frame *claims* (signature, tree, authority) is not looked at here.
//!
//! Sources: <https://atproto.com/specs/event-stream>, <https://atproto.com/specs/sync>, lexicon
//! `com.atproto.sync.subscribeRepos`.

pub mod error;

use crate::repo::cbor::Decoder;
use crate::types::repo_path::check_repo_path;
use crate::types::{Cid, Did, Rev, Timestamp};

use super::field::{
    Body, Field, Header, Op, Ops, block_link, bytes, did, message, optional, required, rev, seq, text, time,
};

pub use error::{BadEvent, FieldError, FrameError, Severity};

/// Longest frame, in bytes (sync specification: 5 MB).
pub const FRAME_BYTES_MAX: usize = 5_000_000;
/// Longest `#commit.blocks`, in bytes (lexicon).
pub const COMMIT_BLOCKS_BYTES_MAX: usize = 2_000_000;
/// Longest `#sync.blocks`, in bytes (lexicon).
pub const SYNC_BLOCKS_BYTES_MAX: usize = 10_000;
/// Most operations of a commit (lexicon).
pub const OPS_MAX: usize = 200;
/// Largest sequence number (event-stream specification: a positive integer that JavaScript can hold).
pub const SEQ_MAX: u64 = 1 << 53;
/// Longest account status, error name or info name that is kept, in bytes. Ours: the lexicon names no limit,
/// the longest known name has 15.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest handle, in bytes (handle specification: a domain name).
const HANDLE_BYTES_MAX: usize = 253;
/// The method's NSID: a type may be written in full instead of as `#name`.
const NSID: &str = "com.atproto.sync.subscribeRepos";

/// One decoded frame; texts and blocks are borrowed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Records of a repository changed.
    Commit(CommitFrame<'a>),
    /// The state of a repository, without what changed.
    Sync(SyncFrame<'a>),
    /// An identity may have changed: look it up again.
    Identity(IdentityFrame<'a>),
    /// The status of an account at this host.
    Account(AccountFrame<'a>),
    /// A word about the stream itself, such as `OutdatedCursor`.
    Info(InfoFrame<'a>),
    /// The host ends the stream, with a reason such as `FutureCursor`.
    Error(ErrorFrame<'a>),
    /// An operation or a type that we do not know: to be ignored.
    Unknown(UnknownFrame<'a>),
}

impl Frame<'_> {
    /// The sequence number, of the kinds that have one in our books.
    #[must_use]
    pub const fn seq(&self) -> Option<u64> {
        match self {
            Self::Commit(frame) => Some(frame.seq),
            Self::Sync(frame) => Some(frame.seq),
            Self::Identity(frame) => Some(frame.seq),
            Self::Account(frame) => Some(frame.seq),
            Self::Info(_) | Self::Error(_) | Self::Unknown(_) => None,
        }
    }

    /// The account that the frame is about.
    #[must_use]
    pub const fn did(&self) -> Option<&Did> {
        match self {
            Self::Commit(frame) => Some(&frame.did),
            Self::Sync(frame) => Some(&frame.did),
            Self::Identity(frame) => Some(&frame.did),
            Self::Account(frame) => Some(&frame.did),
            Self::Info(_) | Self::Error(_) | Self::Unknown(_) => None,
        }
    }

    /// The kind, for metrics and logs.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Commit(_) => FrameKind::Commit,
            Self::Sync(_) => FrameKind::Sync,
            Self::Identity(_) => FrameKind::Identity,
            Self::Account(_) => FrameKind::Account,
            Self::Info(_) => FrameKind::Info,
            Self::Error(_) => FrameKind::Error,
            Self::Unknown(_) => FrameKind::Unknown,
        }
    }
}

/// What kind of frame it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// `#commit`
    Commit,
    /// `#sync`
    Sync,
    /// `#identity`
    Identity,
    /// `#account`
    Account,
    /// `#info`
    Info,
    /// An error frame.
    Error,
    /// Anything else.
    Unknown,
}

impl FrameKind {
    /// A short name, as metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Sync => "sync",
            Self::Identity => "identity",
            Self::Account => "account",
            Self::Info => "info",
            Self::Error => "error",
            Self::Unknown => "unknown",
        }
    }
}

/// A `#commit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitFrame<'a> {
    /// Its place in the host's stream.
    pub seq: u64,
    /// The repository (the wire's `repo`).
    pub did: Did,
    /// CID of the signed commit; to be the first root of `blocks`.
    pub commit: Cid,
    /// The revision that it claims.
    pub rev: Rev,
    /// The revision before it; none for the first, and none from hosts that never say it.
    pub since: Option<Rev>,
    /// A CAR with the commit, the new nodes and records, and the nodes that are needed to undo the operations.
    /// At most [`COMMIT_BLOCKS_BYTES_MAX`].
    pub blocks: &'a [u8],
    /// What changed, at most [`OPS_MAX`], in the host's order; paths may still repeat.
    pub ops: Vec<FrameOp<'a>>,
    /// Root of the tree before it; none from hosts older than sync 1.1.
    pub prev_data: Option<Cid>,
    /// The deprecated flag. Consumers ignore it.
    pub too_big: bool,
    /// When the host says that it was; not to be trusted. None if it cannot be read.
    pub time: Option<Timestamp>,
}

/// One operation of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameOp<'a> {
    /// What happened.
    pub action: Action,
    /// The record's path; well-formed.
    pub path: &'a str,
    /// The record's CID afterwards: there unless it was deleted.
    pub cid: Option<Cid>,
    /// The record's CID before: never for a creation, and not from hosts older than sync 1.1.
    pub prev: Option<Cid>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A record appears.
    Create,
    /// A record is replaced.
    Update,
    /// A record goes.
    Delete,
}

impl Action {
    /// The wire's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// A `#sync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncFrame<'a> {
    /// Its place in the host's stream.
    pub seq: u64,
    /// The repository.
    pub did: Did,
    /// A CAR with the commit block. At most [`SYNC_BLOCKS_BYTES_MAX`].
    pub blocks: &'a [u8],
    /// The revision that it claims. After a migration it may differ from the commit's own.
    pub rev: Rev,
    /// When the host says that it was.
    pub time: Option<Timestamp>,
}

/// An `#identity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFrame<'a> {
    /// Its place in the host's stream.
    pub seq: u64,
    /// Whose identity.
    pub did: Did,
    /// A handle that nobody vouches for: for logs at best.
    pub handle: Option<&'a str>,
    /// When the host says that it was.
    pub time: Option<Timestamp>,
}

/// An `#account`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountFrame<'a> {
    /// Its place in the host's stream.
    pub seq: u64,
    /// The account.
    pub did: Did,
    /// Whether the host serves it.
    pub active: bool,
    /// Why not, or what else is the matter; an open set. At most [`NAME_BYTES_MAX`].
    pub status: Option<&'a str>,
    /// When the host says that it was.
    pub time: Option<Timestamp>,
}

/// An `#info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfoFrame<'a> {
    /// Such as `OutdatedCursor`. At most [`NAME_BYTES_MAX`].
    pub name: &'a str,
    /// For people.
    pub message: Option<&'a str>,
}

/// An error frame; the stream ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// Such as `FutureCursor` or `ConsumerTooSlow`; empty if the host named none.
    pub error: &'a str,
    /// For people.
    pub message: Option<&'a str>,
}

/// A frame that we do not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownFrame<'a> {
    /// The header's operation.
    pub op: i64,
    /// The header's type, if it has one.
    pub t: Option<&'a str>,
    /// The payload's `seq`, if it has a number there. What it counts is unknown: it is no cursor.
    pub seq: Option<u64>,
}

/// Decodes one WebSocket message.
///
/// # Errors
/// See [`FrameError`]; [`FrameError::severity`] says whether the connection can go on.
pub fn decode_frame(frame: &[u8]) -> Result<Frame<'_>, FrameError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(frame.len()));
    }
    let mut decoder = Decoder::new(frame);
    let header = Header::read(&mut decoder)
        .map_err(FrameError::HeaderCbor)?
        .ok_or(FrameError::HeaderNotMap)?;
    let Field::Int(op) = header.op else {
        return Err(FrameError::HeaderOp);
    };
    let t = match header.t {
        Field::Text(t) => Some(t),
        _ if op == 1 => return Err(FrameError::HeaderType),
        _ => None,
    };
    if decoder.rest().is_empty() {
        return Err(FrameError::NoBody);
    }
    let body = Body::read(&mut decoder)
        .map_err(FrameError::BodyCbor)?
        .ok_or(FrameError::BodyNotMap)?;
    match decoder.rest().len() {
        0 => {}
        trailing => return Err(FrameError::TrailingBytes(trailing)),
    }
    decode_body(op, t, &body)
}

fn decode_body<'a>(op: i64, t: Option<&'a str>, body: &Body<'a>) -> Result<Frame<'a>, FrameError> {
    let unknown = Frame::Unknown(UnknownFrame {
        op,
        t,
        seq: seq(body.seq).ok(),
    });
    let (op, name) = (op, t.map(|t| t.strip_prefix(NSID).unwrap_or(t)));
    let (kind, decoded) = match (op, name) {
        (1, Some("#commit")) => (FrameKind::Commit, commit(body).map(Frame::Commit)),
        (1, Some("#sync")) => (FrameKind::Sync, sync(body).map(Frame::Sync)),
        (1, Some("#identity")) => (FrameKind::Identity, identity(body).map(Frame::Identity)),
        (1, Some("#account")) => (FrameKind::Account, account(body).map(Frame::Account)),
        (1, Some("#info")) => (FrameKind::Info, info(body).map(Frame::Info)),
        (-1, _) => return Ok(Frame::Error(error(body))),
        _ => return Ok(unknown),
    };
    decoded.map_err(|error| {
        let owner = if kind == FrameKind::Commit {
            body.repo
        } else {
            body.did
        };
        FrameError::Event(Box::new(BadEvent {
            kind,
            seq: seq(body.seq).ok(),
            did: did("did", owner).ok(),
            error,
        }))
    })
}

fn commit<'a>(body: &Body<'a>) -> Result<CommitFrame<'a>, FieldError> {
    Ok(CommitFrame {
        seq: seq(body.seq)?,
        did: did("repo", body.repo)?,
        commit: block_link("commit", body.commit)?,
        rev: rev("rev", body.rev)?,
        since: optional(body.since, |field| rev("since", field))?,
        blocks: bytes("blocks", body.blocks, COMMIT_BLOCKS_BYTES_MAX)?,
        ops: ops(&body.ops)?,
        prev_data: optional(body.prev_data, |field| block_link("prevData", field))?,
        too_big: body.too_big == Field::Bool(true),
        time: time(body.time),
    })
}

fn sync<'a>(body: &Body<'a>) -> Result<SyncFrame<'a>, FieldError> {
    Ok(SyncFrame {
        seq: seq(body.seq)?,
        did: did("did", body.did)?,
        blocks: bytes("blocks", body.blocks, SYNC_BLOCKS_BYTES_MAX)?,
        rev: rev("rev", body.rev)?,
        time: time(body.time),
    })
}

fn identity<'a>(body: &Body<'a>) -> Result<IdentityFrame<'a>, FieldError> {
    Ok(IdentityFrame {
        seq: seq(body.seq)?,
        did: did("did", body.did)?,
        // A prod to look the identity up: a handle that is not one must not lose the prod.
        handle: text("handle", body.handle, HANDLE_BYTES_MAX).ok(),
        time: time(body.time),
    })
}

fn account<'a>(body: &Body<'a>) -> Result<AccountFrame<'a>, FieldError> {
    Ok(AccountFrame {
        seq: seq(body.seq)?,
        did: did("did", body.did)?,
        active: match body.active {
            Field::Bool(active) => active,
            Field::Absent => return Err(FieldError::Missing("active")),
            _ => return Err(FieldError::Type("active", "a boolean")),
        },
        status: optional(body.status, |field| text("status", field, NAME_BYTES_MAX))?,
        time: time(body.time),
    })
}

fn info<'a>(body: &Body<'a>) -> Result<InfoFrame<'a>, FieldError> {
    Ok(InfoFrame {
        name: text("name", body.name, NAME_BYTES_MAX)?,
        message: message(body.message),
    })
}

fn error<'a>(body: &Body<'a>) -> ErrorFrame<'a> {
    ErrorFrame {
        error: text("error", body.error, NAME_BYTES_MAX).unwrap_or(""),
        message: message(body.message),
    }
}

fn ops<'a>(list: &Ops<'a>) -> Result<Vec<FrameOp<'a>>, FieldError> {
    match list {
        Ops::Absent => Err(FieldError::Missing("ops")),
        Ops::NotAList => Err(FieldError::Type("ops", "a list")),
        Ops::TooMany(count) => Err(FieldError::TooManyOps(*count)),
        Ops::List(list) => list.iter().map(op).collect(),
    }
}

fn op<'a>(op: &Op<'a>) -> Result<FrameOp<'a>, FieldError> {
    if op.not_a_map {
        return Err(FieldError::OpNotMap);
    }
    let action = match required("action", op.action)? {
        Field::Text("create") => Action::Create,
        Field::Text("update") => Action::Update,
        Field::Text("delete") => Action::Delete,
        Field::Text(_) => return Err(FieldError::UnknownAction),
        _ => return Err(FieldError::Type("action", "a text")),
    };
    let path = text("path", op.path, usize::MAX)?;
    check_repo_path(path).map_err(|error| FieldError::Syntax("path", error))?;
    let cid = optional(op.cid, |field| block_link("cid", field))?;
    let prev = optional(op.prev, |field| block_link("prev", field))?;
    match (action, cid, prev) {
        (Action::Create | Action::Update, None, _) => Err(FieldError::OpCidMissing(action.as_str())),
        (Action::Delete, Some(_), _) => Err(FieldError::DeleteWithCid),
        (Action::Create, _, Some(_)) => Err(FieldError::CreateWithPrev),
        _ => Ok(FrameOp {
            action,
            path,
            cid,
            prev,
        }),
    }
}

#[cfg(test)]
mod tests;
