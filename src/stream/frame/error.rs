//! How a frame may be wrong, and what that means for the connection.

use crate::repo::cbor::CborError;
use crate::types::{Did, SyntaxError};

use super::{FRAME_BYTES_MAX, FrameKind, OPS_MAX};

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
