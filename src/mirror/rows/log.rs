//! The log: what is journalled, what waits for the archive, and how far that has it.

use serde::{Deserialize, Serialize};

use super::codec;
use crate::types::{AccountStatus, Cid, Did, Digest, HostName, RepoPath, Rev, Timestamp};

/// Row of `journal`: a commit as it was applied, or what a fetched repository changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalEntry {
    /// The signed commit, byte for byte.
    #[serde(with = "serde_bytes")]
    pub commit_block: Vec<u8>,
    /// What it was applied to.
    #[serde(with = "codec::value")]
    pub since: Rev,
    /// Whether the repository was fetched whole: then the operations are the difference that this made.
    pub swap: bool,
    /// Its operations, in the frame's order.
    pub ops: Vec<JournalOp>,
    /// When the host says that it happened.
    #[serde(with = "codec::value")]
    pub time: Timestamp,
    /// When it reached us.
    #[serde(with = "codec::value")]
    pub received: Timestamp,
    /// The host's number for it; 0 for what was fetched.
    pub seq: u64,
    /// The host that it came from: the account may be at another one since. None: written before this was kept.
    #[serde(
        default,
        with = "codec::optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub host: Option<HostName>,
}

/// What a commit did to one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalOp {
    /// The path.
    #[serde(with = "codec::text")]
    pub path: RepoPath,
    /// The record that stands there now; none: deleted.
    #[serde(with = "codec::option")]
    pub cid: Option<Cid>,
    /// Its bytes; none when it was deleted, or erased since.
    #[serde(with = "serde_bytes")]
    pub bytes: Option<Vec<u8>>,
}

/// Row of `outbox`: what the next segment says, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OutboxEntry {
    /// A change; the rest stands in the journal.
    Change {
        /// Whose.
        #[serde(with = "codec::text")]
        did: Did,
        /// Where it came from.
        #[serde(with = "codec::text")]
        host: HostName,
        /// First half of the journal key.
        did_number: u64,
        /// Second half.
        #[serde(with = "codec::value")]
        rev: Rev,
        /// The length of what stands there.
        #[serde(default)]
        bytes: u64,
    },
    /// A repository was fetched whole, and what it changed is not in the journal: a snapshot says it.
    Loaded {
        /// Whose.
        #[serde(with = "codec::text")]
        did: Did,
        /// Where it came from.
        #[serde(with = "codec::text")]
        host: HostName,
        /// Its rev.
        #[serde(with = "codec::value")]
        rev: Rev,
        /// Its commit.
        #[serde(with = "codec::value")]
        commit: Cid,
        /// When it was swapped in.
        #[serde(with = "codec::value")]
        received: Timestamp,
    },
    /// An account's status changed.
    Account {
        /// Whose.
        #[serde(with = "codec::text")]
        did: Did,
        /// Who says so.
        #[serde(with = "codec::text")]
        host: HostName,
        /// The status now.
        status: AccountStatus,
        /// When we learned it.
        #[serde(with = "codec::value")]
        received: Timestamp,
    },
}

/// The `meta` row of the log: how far the archive has it. All of it belongs to one archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRow {
    /// The generation that this mirror claimed as the writer; 0: none yet.
    pub generation: u64,
    /// The number of the next segment.
    pub number: u64,
    /// The index of the last one.
    #[serde(with = "codec::option")]
    pub prev: Option<Cid>,
    /// What the next one holds, once that is fixed: first and last log number. Fixed before the upload, so that
    /// every try writes the same entries.
    pub cut: Option<(u64, u64)>,
    /// The log number of the last entry that was shipped: none up to it is in the outbox any more. Numbers rise, so
    /// looking begins behind it, and not among the marks of what was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipped: Option<u64>,
}

/// A `meta` row: which state of a host, or of our own, the archive has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateMark {
    /// Which archive.
    pub archive: String,
    /// What tells the state from others.
    #[serde(with = "codec::value")]
    pub digest: Digest,
    /// When it was so.
    #[serde(with = "codec::value")]
    pub at: Timestamp,
}

impl OutboxEntry {
    /// About what it takes here until it is shipped.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        const ROW: u64 = 256;
        match self {
            Self::Change { bytes, .. } => ROW + *bytes,
            Self::Loaded { .. } | Self::Account { .. } => ROW,
        }
    }
}
