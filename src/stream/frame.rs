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

use crate::repo::cbor::{CborError, Decoder};
use crate::types::repo_path::check_repo_path;
use crate::types::{Cid, Codec, Did, Rev, SyntaxError, Timestamp};

use super::field::{Body, Field, Header, Op, Ops};

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

/// What a [`FrameError`] means for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The two sides no longer agree on the bytes: close, and begin again from the cursor.
    DropConnection,
    /// This one event is refused; the stream goes on.
    RejectEvent,
}

/// Why a frame is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Over [`FRAME_BYTES_MAX`].
    #[error("frame is {0} bytes long; at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The first item is not strict DAG-CBOR.
    #[error("frame header is not strict DAG-CBOR: {0}")]
    HeaderCbor(CborError),
    /// The first item is not a map.
    #[error("frame header is not a map")]
    HeaderNotMap,
    /// `op` is absent or not an integer.
    #[error("frame header has no integer \"op\"")]
    HeaderOp,
    /// `op` is 1, and `t` is absent or not a text.
    #[error("frame header has no text \"t\"")]
    HeaderType,
    /// Nothing follows the header.
    #[error("frame ends after its header")]
    NoBody,
    /// The second item is not strict DAG-CBOR.
    #[error("frame payload is not strict DAG-CBOR: {0}")]
    BodyCbor(CborError),
    /// The second item is not a map.
    #[error("frame payload is not a map")]
    BodyNotMap,
    /// Something follows the payload.
    #[error("{0} bytes follow the frame's payload")]
    TrailingBytes(usize),
    /// The payload breaks a rule of the lexicon.
    #[error("{0}")]
    Event(Box<BadEvent>),
}

impl FrameError {
    /// What it means for the connection.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Event(_) => Severity::RejectEvent,
            _ => Severity::DropConnection,
        }
    }
}

/// An event that breaks a rule of the lexicon, and what could still be read of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("#{} event refused: {error}", kind.as_str())]
pub struct BadEvent {
    /// What kind of event.
    pub kind: FrameKind,
    /// Its place in the stream, if that is readable.
    pub seq: Option<u64>,
    /// Whose event, if that is readable.
    pub did: Option<Did>,
    /// The rule.
    pub error: FieldError,
}

/// The rule of the lexicon that a payload breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// A required field is not there.
    #[error("field \"{0}\" is missing")]
    Missing(&'static str),
    /// A field is of another type.
    #[error("field \"{0}\" must be {1}")]
    Type(&'static str, &'static str),
    /// `seq` is not in 1..=2^53.
    #[error("seq {0} is out of range")]
    SeqRange(i64),
    /// An identifier is malformed.
    #[error("field \"{0}\": {1}")]
    Syntax(&'static str, SyntaxError),
    /// A link is not to a DAG-CBOR block.
    #[error("field \"{0}\" must link to a DAG-CBOR block")]
    NotABlock(&'static str),
    /// A text or byte string is too long.
    #[error("field \"{field}\" has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// Over [`OPS_MAX`].
    #[error("{0} operations; at most {OPS_MAX} are allowed")]
    TooManyOps(usize),
    /// An entry of `ops` is no map.
    #[error("an operation is not a map")]
    OpNotMap,
    /// An action that we do not know, and so cannot apply.
    #[error("an operation's action is none of create, update, delete")]
    UnknownAction,
    /// A creation or an update without the record's CID.
    #[error("a {0} has no cid")]
    OpCidMissing(&'static str),
    /// A deletion with a CID.
    #[error("a delete has a cid")]
    DeleteWithCid,
    /// A creation of a record that was there before.
    #[error("a create has a prev")]
    CreateWithPrev,
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

fn required<'a>(name: &'static str, field: Field<'a>) -> Result<Field<'a>, FieldError> {
    match field {
        Field::Absent => Err(FieldError::Missing(name)),
        present => Ok(present),
    }
}

fn optional<'a, T>(
    field: Field<'a>,
    check: impl FnOnce(Field<'a>) -> Result<T, FieldError>,
) -> Result<Option<T>, FieldError> {
    match field {
        Field::Absent | Field::Null => Ok(None),
        present => check(present).map(Some),
    }
}

fn seq(field: Field<'_>) -> Result<u64, FieldError> {
    match required("seq", field)? {
        Field::Int(seq) => match u64::try_from(seq) {
            Ok(seq @ 1..=SEQ_MAX) => Ok(seq),
            _ => Err(FieldError::SeqRange(seq)),
        },
        _ => Err(FieldError::Type("seq", "an integer")),
    }
}

fn text<'a>(name: &'static str, field: Field<'a>, bytes_max: usize) -> Result<&'a str, FieldError> {
    match required(name, field)? {
        Field::Text(text) if text.len() > bytes_max => Err(FieldError::TooLong {
            field: name,
            bytes: text.len(),
            bytes_max,
        }),
        Field::Text(text) => Ok(text),
        _ => Err(FieldError::Type(name, "a text")),
    }
}

fn bytes<'a>(name: &'static str, field: Field<'a>, bytes_max: usize) -> Result<&'a [u8], FieldError> {
    match required(name, field)? {
        Field::Bytes(bytes) if bytes.len() > bytes_max => Err(FieldError::TooLong {
            field: name,
            bytes: bytes.len(),
            bytes_max,
        }),
        Field::Bytes(bytes) => Ok(bytes),
        _ => Err(FieldError::Type(name, "a byte string")),
    }
}

fn did(name: &'static str, field: Field<'_>) -> Result<Did, FieldError> {
    text(name, field, usize::MAX)?
        .parse()
        .map_err(|error| FieldError::Syntax(name, error))
}

fn rev(name: &'static str, field: Field<'_>) -> Result<Rev, FieldError> {
    text(name, field, usize::MAX)?
        .parse()
        .map_err(|error| FieldError::Syntax(name, error))
}

fn block_link(name: &'static str, field: Field<'_>) -> Result<Cid, FieldError> {
    let Field::Link(link) = required(name, field)? else {
        return Err(FieldError::Type(name, "a link"));
    };
    let cid = Cid::from_bytes(link).map_err(|error| FieldError::Syntax(name, error))?;
    match cid.codec() {
        Codec::DagCbor => Ok(cid),
        Codec::Raw => Err(FieldError::NotABlock(name)),
    }
}

/// The time is a hint; one that cannot be read is no reason to lose an event.
fn time(field: Field<'_>) -> Option<Timestamp> {
    match field {
        Field::Text(text) => text.parse().ok(),
        _ => None,
    }
}

fn message(field: Field<'_>) -> Option<&str> {
    match field {
        Field::Text(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
