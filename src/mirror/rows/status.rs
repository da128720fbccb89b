//! What an account is upstream, and how well our copy follows.

use serde::{Deserialize, Serialize};

use crate::types::{Cid, Rev, Timestamp};

use super::codec;

/// An account's status at its host.
///
/// Source: lexicon `com.atproto.sync.subscribeRepos#account`; the set of strings is open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountStatus {
    /// Active.
    Active,
    /// The user deactivated it, or it is moving.
    Deactivated,
    /// The host suspended it for a time.
    Suspended,
    /// The host took it down.
    Takendown,
    /// It is deleted.
    Deleted,
    /// Active, but the host lost track of it.
    Desynchronized,
    /// Active, but the host limits it.
    Throttled,
    /// Inactive, with a reason that we do not know.
    Other(String),
}

/// Longest unknown status that is kept, in bytes; the rest is cut off.
pub const STATUS_BYTES_MAX: usize = 128;

impl AccountStatus {
    /// From the two fields of an event or of a listing. An active account with a status that we do not know
    /// is active; an inactive one always comes out hidden.
    #[must_use]
    pub fn from_event(active: bool, status: Option<&str>) -> Self {
        match (active, status) {
            (true, Some("desynchronized")) => Self::Desynchronized,
            (true, Some("throttled")) => Self::Throttled,
            (true, _) => Self::Active,
            (false, Some("deactivated")) => Self::Deactivated,
            (false, Some("suspended")) => Self::Suspended,
            (false, Some("takendown")) => Self::Takendown,
            (false, Some("deleted")) => Self::Deleted,
            (false, Some(other)) => Self::Other(cut(other).to_owned()),
            (false, None) => Self::Other(String::new()),
        }
    }

    /// The `status` of an event or an answer; none where the field is left out.
    #[must_use]
    pub fn status(&self) -> Option<&str> {
        match self {
            Self::Active => None,
            Self::Deactivated => Some("deactivated"),
            Self::Suspended => Some("suspended"),
            Self::Takendown => Some("takendown"),
            Self::Deleted => Some("deleted"),
            Self::Desynchronized => Some("desynchronized"),
            Self::Throttled => Some("throttled"),
            Self::Other(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
        }
    }

    /// The `active` of an event or an answer: whether the account may be seen by the public.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        matches!(self, Self::Active | Self::Desynchronized | Self::Throttled)
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(STATUS_BYTES_MAX)]
}

/// How well our copy follows its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SyncState {
    /// It does not: a fetch is due (a task says when). What we hold is the last good copy.
    Wanted {
        /// Why.
        reason: DesyncReason,
        /// Since when.
        #[serde(with = "codec::value")]
        since: Timestamp,
        /// Fetches that failed since.
        tries: u32,
    },
    /// It does.
    Live,
    /// What the host gives cannot be rebuilt from its records: its CAR is kept whole, and what we held
    /// before stays.
    Quarantined {
        /// What is wrong with it, for people.
        reason: String,
        /// Since when.
        #[serde(with = "codec::value")]
        since: Timestamp,
        /// The rev that it claims.
        #[serde(with = "codec::option")]
        rev: Option<Rev>,
        /// Its commit.
        #[serde(with = "codec::option")]
        commit: Option<Cid>,
    },
}

/// Why a repository has to be fetched whole. Closed, so that it can label a metric. Persisted: keep the names
/// stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesyncReason {
    /// Never fetched yet.
    New,
    /// A commit does not build on the one that we hold.
    ChainBroken,
    /// A commit lacks what proves it: blocks, or the fields of today's protocol.
    Unproven,
    /// A commit's proof fails.
    ProofFailed,
    /// A commit's signature does not verify.
    BadSignature,
    /// The host says that the repository is at a state that it does not send as a commit.
    SyncEvent,
    /// Too many frames were parked.
    ParkedOverflow,
    /// The stream has a gap, or started over.
    StreamGap,
    /// A listing names another head.
    HeadDiffers,
    /// It was inactive, and is active again.
    Reactivated,
    /// It moved to another host.
    Moved,
    /// Our copy does not rebuild to its signed root.
    CopyDamaged,
    /// An operator asked for it.
    Requested,
}

impl DesyncReason {
    /// The name, for metrics and people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::ChainBroken => "chain_broken",
            Self::Unproven => "unproven",
            Self::ProofFailed => "proof_failed",
            Self::BadSignature => "bad_signature",
            Self::SyncEvent => "sync_event",
            Self::ParkedOverflow => "parked_overflow",
            Self::StreamGap => "stream_gap",
            Self::HeadDiffers => "head_differs",
            Self::Reactivated => "reactivated",
            Self::Moved => "moved",
            Self::CopyDamaged => "copy_damaged",
            Self::Requested => "requested",
        }
    }
}
