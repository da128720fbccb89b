//! What a person wants gone and kept out: by account, a row of its own in `meta`, so that most accounts cost nothing.
//!
//! A withheld record keeps its row, with its CID and without its bytes: trees go on to prove.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use crate::repo::export::is_withheld;

use super::reader::Mirror;
use super::rows::Row;
use super::store::StoreError;
use crate::types::{Cid, Did, Digest};

/// How much of an account is erased. Persisted: keep the names stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasedMark {
    /// Some records or blobs.
    Parts,
    /// All of it: nothing of it is taken any more.
    Whole,
}

/// Row of `meta`, under [`key`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErasedRow {
    /// Nothing of the account is held or taken.
    pub whole: bool,
    /// Digests of records whose bytes are not held.
    pub records: BTreeSet<serde_bytes::ByteArray<32>>,
    /// Digests of blobs that are not held.
    pub blobs: BTreeSet<serde_bytes::ByteArray<32>>,
}

impl Row for ErasedRow {}

impl ErasedRow {
    /// Whether a record's bytes are withheld.
    #[must_use]
    pub fn withholds(&self, record: &Cid) -> bool {
        self.whole
            || self
                .records
                .contains(&serde_bytes::ByteArray::new(*record.digest()))
    }

    /// Whether a blob is not held.
    #[must_use]
    pub fn withholds_blob(&self, blob: &Digest) -> bool {
        self.whole || self.blobs.contains(&serde_bytes::ByteArray::new(*blob))
    }

    /// Adds to it.
    pub fn add(&mut self, records: &[Cid], blobs: &[Digest]) {
        let records = records
            .iter()
            .map(|cid| serde_bytes::ByteArray::new(*cid.digest()));
        self.records.extend(records);
        self.blobs
            .extend(blobs.iter().map(|blob| serde_bytes::ByteArray::new(*blob)));
    }

    /// How much is erased: it only grows, and each erasure adds to it that adds anything.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.whole) + self.records.len() + self.blobs.len()
    }

    /// What the account's row says of it.
    #[must_use]
    pub const fn mark(&self) -> ErasedMark {
        match self.whole {
            true => ErasedMark::Whole,
            false => ErasedMark::Parts,
        }
    }
}

/// The key of an account's row.
#[must_use]
pub fn key(did: &Did) -> Vec<u8> {
    [b"erased\0", did.as_str().as_bytes()].concat()
}

impl Mirror<'_> {
    /// What is erased of an account.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn erased(&self, did: &Did) -> Result<Option<ErasedRow>, StoreError> {
        self.meta(&key(did))
    }
}
