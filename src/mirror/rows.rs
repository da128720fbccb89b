//! The values of the mirror.
//!
//! Rows are DAG-CBOR maps, so that a later version can add a field: it carries `#[serde(default)]`, and the
//! rows of every earlier version still open. Unknown fields and unknown variants are refused: they are of a
//! newer version, which `store::FORMAT_VERSION` should have kept out. Records alone, the mass of the data,
//! have a fixed head instead of a map ([`RecordValue`]).
//!
//! Names of fields and variants are persisted: keep stable.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::{Cid, Digest, Rev, SyntaxError};

mod account;
mod blob;
mod codec;
mod host;
mod log;
mod status;
mod waiting;

pub use account::{
    AccountRow, DeleteWindow, Head, KeptCar, LogSeen, Owner, Pin, PinReason, SnapshotMark, StoredIdentity,
    Unlogged,
};
pub use blob::{BlobFailure, BlobRow, BlobState};
pub use host::{HostRow, Listing, RING_MAX, Scope, SweepMark, SweepPoint};
pub use log::{JournalEntry, JournalOp, LogRow, OutboxEntry, StateMark};
pub use status::{DesyncReason, HeadSigner, SyncState};
pub use waiting::{Acknowledged, AlarmRow, ParkedFrame, TaskRow};

pub use crate::types::AccountStatus;

/// A value that does not decode. Says what is wrong, never what the value holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RowError(String);

impl From<SyntaxError> for RowError {
    fn from(error: SyntaxError) -> Self {
        Self(error.to_string())
    }
}

/// A row: encoded to and decoded from DAG-CBOR.
pub trait Row: Serialize + DeserializeOwned {
    /// The value to store.
    fn encode(&self) -> Vec<u8> {
        serde_ipld_dagcbor::to_vec(self)
            .expect("rows hold only what DAG-CBOR can, and memory does not run out")
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// When it is not the DAG-CBOR of such a row.
    fn decode(value: &[u8]) -> Result<Self, RowError> {
        serde_ipld_dagcbor::from_slice(value).map_err(|error| RowError(error.to_string()))
    }
}

impl Row for AccountRow {}
impl Row for HostRow {}
impl Row for BlobRow {}

impl Row for JournalEntry {}
impl Row for OutboxEntry {}
impl Row for LogRow {}
impl Row for StateMark {}
impl Row for ParkedFrame {}
impl Row for TaskRow {}
impl Row for AlarmRow {}

/// Value of `records`: rev (8 bytes) ‖ digest (32 bytes) ‖ record bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordValue<'a> {
    /// The rev that put it there: the commit's, or that of the swap it was loaded by.
    pub rev: Rev,
    /// SHA-256 of the bytes: the record's CID.
    pub digest: Digest,
    /// The record, byte for byte.
    pub bytes: &'a [u8],
}

/// Bytes of a record's value before the record.
pub const RECORD_HEAD_BYTES: usize = 8 + 32;

impl<'a> RecordValue<'a> {
    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(RECORD_HEAD_BYTES + self.bytes.len());
        value.extend_from_slice(&self.rev.to_bits().to_be_bytes());
        value.extend_from_slice(&self.digest);
        value.extend_from_slice(self.bytes);
        value
    }

    /// Reads a stored value. The bytes are not hashed here: whoever serves or ships them does.
    ///
    /// # Errors
    /// When it is shorter than its head, or its rev is none.
    pub fn decode(value: &'a [u8]) -> Result<Self, RowError> {
        let short = || {
            RowError(format!(
                "a record's value must have {RECORD_HEAD_BYTES} bytes of head"
            ))
        };
        let (rev, rest) = value.split_first_chunk::<8>().ok_or_else(short)?;
        let (digest, bytes) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        Ok(Self {
            rev: Rev::from_bits(u64::from_be_bytes(*rev))?,
            digest: *digest,
            bytes,
        })
    }

    /// The record's CID.
    #[must_use]
    pub const fn cid(&self) -> Cid {
        Cid::dag_cbor(self.digest)
    }
}

#[cfg(test)]
mod tests;
