//! A host: how far its stream is applied, its listings, and the rounds of asking again for its blobs.

use serde::{Deserialize, Serialize};

use super::codec;
use crate::types::{Did, Digest, Timestamp};

/// Row of `hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRow {
    /// Base URL, `https://pds.example.com`.
    pub url: String,
    /// Which unbroken numbering of the host `cursor` counts in; rises when its seq starts over.
    pub epoch: u64,
    /// The last seq that is applied or parked; none before the first frame.
    pub cursor: Option<u64>,
    /// The highest seq ever seen, in this epoch or before.
    pub highest_seq: u64,
    /// How far the first listing of its accounts is.
    pub listing: Listing,
    /// When the newest event arrived.
    #[serde(with = "codec::option")]
    pub last_event: Option<Timestamp>,
    /// The last applied events, oldest first: seq and fingerprint. At most [`RING_MAX`].
    pub ring: Vec<(u64, u64)>,
    /// When it was last seen to have gone back: what its accounts lose afterwards is kept.
    #[serde(with = "codec::option")]
    pub rolled_back_at: Option<Timestamp>,
    /// Accounts seen in the listing that is under way.
    pub listed: u64,
    /// When it is listed again: the time of that task.
    #[serde(with = "codec::option")]
    pub next_listing: Option<Timestamp>,
    /// Accounts that went off or vanished in the last day, hour by hour since 1970.
    #[serde(default)]
    pub gone: Vec<(u64, u64)>,
    /// Blobs that it gave no longer in the last day, likewise.
    #[serde(default)]
    pub withheld: Vec<(u64, u64)>,
    /// How far its blobs are asked for again; none before the first connection.
    #[serde(default)]
    pub sweep: Option<SweepMark>,
    /// Which of its accounts are followed.
    #[serde(default, skip_serializing_if = "Scope::is_all")]
    pub scope: Scope,
    /// It was not named in the configuration but added while the daemon ran, and is followed until it is taken out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub added: bool,
}

/// Which of a host's accounts are followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All of them.
    #[default]
    All,
    /// Those that were signed up.
    Listed,
}

impl Scope {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// As the configuration writes it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Listed => "listed",
        }
    }
}

/// How far a host was asked again for the blobs that we hold of it: takedowns of blobs are no events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepMark {
    /// When this round began.
    #[serde(with = "codec::value")]
    pub began: Timestamp,
    /// What is settled of it; none: nothing yet.
    pub after: Option<SweepPoint>,
    /// Blobs that it passed.
    pub passed: u64,
    /// Blobs of the host when they were last counted.
    pub stored: u64,
    /// When that was.
    #[serde(with = "codec::value")]
    pub counted_at: Timestamp,
    /// Times in a row that nothing could be settled.
    pub failures: u32,
    /// When it goes on: the time of its task.
    #[serde(with = "codec::value")]
    pub next: Timestamp,
    /// When the last round ended.
    #[serde(with = "codec::option")]
    pub finished: Option<Timestamp>,
}

/// A place in the order of accounts and their blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepPoint {
    /// The account.
    #[serde(with = "codec::text")]
    pub did: Did,
    /// The last blob of it that is settled; none: all of them are.
    #[serde(with = "codec::option")]
    pub digest: Option<Digest>,
}

impl HostRow {
    /// A row of a host that was never heard.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            epoch: 0,
            cursor: None,
            highest_seq: 0,
            listing: Listing::Unfinished { cursor: None },
            last_event: None,
            ring: Vec::new(),
            rolled_back_at: None,
            listed: 0,
            next_listing: None,
            gone: Vec::new(),
            withheld: Vec::new(),
            sweep: None,
            scope: Scope::All,
            added: false,
        }
    }
}

/// How many events [`HostRow::ring`] remembers.
pub const RING_MAX: usize = 256;

/// Whether all accounts of a host were listed once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Listing {
    /// Not yet.
    Unfinished {
        /// Where to go on; none: at the beginning.
        cursor: Option<String>,
    },
    /// Yes.
    Finished {
        /// When.
        #[serde(with = "codec::value")]
        at: Timestamp,
    },
}
