//! A blob: where its bytes are, and why not where they should be.

use serde::{Deserialize, Serialize};

use super::codec;
use crate::types::Timestamp;

/// Row of `blobs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRow {
    /// Where it is.
    pub state: BlobState,
    /// Its size in bytes: what a record claims while it is wanted, what it is once it is held.
    pub size: Option<u64>,
    /// The MIME type that a record claims.
    pub mime: Option<String>,
    /// When a record first referred to it.
    #[serde(with = "codec::value")]
    pub first_seen: Timestamp,
    /// Fetches tried.
    pub tries: u32,
    /// Since when its host withholds it, though records refer to it: it was taken down there, or lost. It is kept,
    /// and not served.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub withheld_since: Option<Timestamp>,
    /// When it was needed last: a record came to refer to it or ceased to, a CAR that is kept does, or its host listed
    /// it though no record is known that does. Nothing removes it from the archive as long as that is not long ago.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub needed_at: Option<Timestamp>,
}

impl BlobRow {
    /// A row of a blob that is to be fetched.
    #[must_use]
    pub const fn wanted(size: Option<u64>, mime: Option<String>, now: Timestamp) -> Self {
        Self {
            state: BlobState::Wanted,
            size,
            mime,
            first_seen: now,
            tries: 0,
            withheld_since: None,
            needed_at: Some(now),
        }
    }
}

impl BlobState {
    /// Every label, for metrics.
    pub const LABELS: [&'static str; 6] = ["wanted", "held", "archived", "missing", "withdrawn", "erased"];

    /// The name, for metrics and people.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Held => "held",
            Self::Archived => "archived",
            Self::Missing { .. } => "missing",
            Self::Withdrawn => "withdrawn",
            Self::Erased => "erased",
        }
    }

    /// Whether we have its bytes, here or in the archive.
    #[must_use]
    pub const fn is_stored(&self) -> bool {
        matches!(self, Self::Held | Self::Archived)
    }
}

/// Where a blob is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BlobState {
    /// To be fetched; a task says when.
    Wanted,
    /// Its bytes are in `blob_data`.
    Held,
    /// Its bytes are in the archive, and may be gone from here.
    Archived,
    /// Given up for now.
    Missing {
        /// Why.
        reason: BlobFailure,
        /// Rounds of fetching that ended here.
        tries: u32,
    },
    /// No record refers to it any more.
    Withdrawn,
    /// A person wants it gone: it is not held, and not fetched.
    Erased,
}

/// Why a blob could not be had. Persisted: keep the names stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobFailure {
    /// The host says that it has no such blob.
    NotFound,
    /// The host refuses: the account is deactivated, suspended or taken down, or the blob is.
    Refused,
    /// What the host sent does not hash to the CID.
    WrongBytes,
    /// It is larger than a blob may be.
    TooLarge,
    /// The host cannot be reached, or is too slow.
    Unreachable,
    /// The host answers with errors.
    HostError,
}

impl BlobFailure {
    /// For people.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotFound => "the host says that it has no such blob",
            Self::Refused => "the host refuses it",
            Self::WrongBytes => "what the host sent does not hash to its CID",
            Self::TooLarge => "it is larger than `blob_bytes_max`",
            Self::Unreachable => "the host cannot be reached, or is too slow",
            Self::HostError => "the host answers with errors",
        }
    }
}
