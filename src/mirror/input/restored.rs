//! What the archive gives back.

use super::super::keyspace::AlarmId;
use super::super::rows::{
    AlarmRow, BlobRow, HostRow, JournalEntry, LogRow, Pin, SnapshotMark, StoredIdentity,
};
use crate::types::{AccountStatus, Did, Digest, HostName, Rev, Timestamp};
use crate::verify::VerifiedRepo;

/// An account as the archive has it.
#[derive(Debug)]
pub struct Restored {
    /// Whose.
    pub did: Did,
    /// The DID number that it gets if it has none.
    pub did_number: u64,
    /// The account number that its row had when this began.
    pub from_number: u64,
    /// The host that it is followed at.
    pub host: HostName,
    /// What its DID document said.
    pub identity: Option<StoredIdentity>,
    /// What tells the identity in the archive from others.
    pub identity_archived: Option<Digest>,
    /// Its standing at its host.
    pub status: AccountStatus,
    /// When its host confirmed that it is deleted.
    pub deleted_at: Option<Timestamp>,
    /// The host that it left for, if that is not followed.
    pub moved_to: Option<HostName>,
    /// Its repository; none: the archive has none that proves.
    pub repo: Option<RestoredRepo>,
    /// Whether the repository is all that the archive knows of. Else its host is asked.
    pub whole: bool,
    /// What is pinned of it.
    pub pins: Vec<Pin>,
    /// Its blobs.
    pub blobs: Vec<(Digest, BlobRow)>,
}

/// A repository that was put together from the archive, and loaded under an account number of its own.
#[derive(Debug)]
pub struct RestoredRepo {
    /// Its own number.
    pub account_number: u64,
    /// The proof.
    pub repo: VerifiedRepo,
    /// The newest snapshot of it that can be read; none: one is to be made.
    pub snapshot: Option<SnapshotMark>,
    /// What the log says since then.
    pub journal: Vec<(Rev, JournalEntry)>,
}

/// What the archive says besides its accounts.
#[derive(Debug, Default)]
pub struct Refilled {
    /// The archive's id.
    pub archive: String,
    /// Where this mirror's log goes on.
    pub log: LogRow,
    /// The next log number.
    pub next_log: u64,
    /// The hosts, as far as the archive has them.
    pub hosts: Vec<(HostName, HostRow)>,
    /// The alarms.
    pub alarms: Vec<(AlarmId, AlarmRow)>,
    /// The accounts that the log had more of than the mirror, and up to which rev.
    pub told: Vec<(Did, Rev)>,
    /// The accounts' standings that the log told since.
    pub standings: Vec<Standing>,
}

/// What the log told of an account's standing.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Whose.
    pub did: Did,
    /// By which host.
    pub host: HostName,
    /// What.
    pub status: AccountStatus,
    /// When it came.
    pub received: Timestamp,
}
