//! What an account is upstream, and how well our copy follows.

use serde::{Deserialize, Serialize};

use crate::types::{Cid, HostName, Rev, Timestamp};
use crate::verify::RejectReason;

use super::codec;

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
    /// The host's head is older than ours, or another one at the same rev: it was restored from an older copy,
    /// say. Ours stays, and a later commit of the host is followed. Until then what the host has is kept beside ours,
    /// whole, as often as it changes.
    Diverged {
        /// Since when.
        #[serde(with = "codec::value")]
        since: Timestamp,
        /// The host's rev when it was last fetched.
        #[serde(with = "codec::value")]
        theirs: Rev,
        /// The highest rev that its stream has named since it went back.
        #[serde(default, with = "codec::option")]
        heard: Option<Rev>,
        /// When it was last fetched, or tried to be.
        #[serde(default, with = "codec::option")]
        tried_at: Option<Timestamp>,
        /// When it is fetched again: the time of that task; none until there is a reason.
        #[serde(default, with = "codec::option")]
        next_try: Option<Timestamp>,
    },
    /// Its DID document names a host that is not followed. Our copy stays as it was; nothing is fetched, and
    /// events change nothing, until the document names a followed host again.
    Moved {
        /// The host that the document names.
        #[serde(with = "codec::text")]
        to: HostName,
        /// Since when we know.
        #[serde(with = "codec::value")]
        since: Timestamp,
    },
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
        /// Fetches since then that brought nothing better.
        #[serde(default)]
        tries: u32,
        /// When it was last fetched, or tried to be.
        #[serde(with = "codec::option", default)]
        tried_at: Option<Timestamp>,
        /// When it is fetched again: the time of that task; none until there is a reason.
        #[serde(with = "codec::option", default)]
        next_try: Option<Timestamp>,
    },
}

/// Which of the account's keys signed the head that we hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HeadSigner {
    /// The one that was current when we took it.
    #[default]
    Current,
    /// One of before, which its audit log names: it moved or changed its key, and has not written since.
    Earlier {
        /// The key, as `did:key`.
        key: String,
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
    /// What the host gave before does not rebuild and is kept as it came: a later state may be whole.
    Quarantined,
}

impl DesyncReason {
    /// Every reason, for metrics.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::ChainBroken,
        Self::Unproven,
        Self::ProofFailed,
        Self::BadSignature,
        Self::SyncEvent,
        Self::ParkedOverflow,
        Self::StreamGap,
        Self::HeadDiffers,
        Self::Reactivated,
        Self::Moved,
        Self::CopyDamaged,
        Self::Requested,
        Self::Quarantined,
    ];

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
            Self::Quarantined => "quarantined",
        }
    }
}

impl From<RejectReason> for DesyncReason {
    fn from(reason: RejectReason) -> Self {
        match reason {
            RejectReason::BadSignature | RejectReason::HighS => Self::BadSignature,
            RejectReason::ChainBroken => Self::ChainBroken,
            RejectReason::Forked => Self::HeadDiffers,
            RejectReason::Legacy | RejectReason::ProofIncomplete | RejectReason::RecordMissing => {
                Self::Unproven
            }
            _ => Self::ProofFailed,
        }
    }
}

impl SyncState {
    /// The name, for metrics and people.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Wanted { .. } => "wanted",
            Self::Live => "live",
            Self::Diverged { .. } => "diverged",
            Self::Moved { .. } => "moved",
            Self::Quarantined { .. } => "quarantined",
        }
    }
}
