//! An account: where our copy stands, and what is kept of it beside the head.

use serde::{Deserialize, Serialize};

use super::super::keyspace;
use super::codec;
use super::status::{DesyncReason, HeadSigner, SyncState};
use crate::types::{AccountStatus, Cid, Digest, HostName, Rev, Timestamp};

/// Row of `accounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountRow {
    /// One for the life of the DID here; key of its blobs and parked frames.
    pub did_number: u64,
    /// One a generation; key of its records, journal and blob references. `keyspace::NO_NUMBER`: nothing is
    /// loaded yet.
    pub account_number: u64,
    /// The host that it is followed at.
    #[serde(with = "codec::text")]
    pub host: HostName,
    /// Its status at that host.
    pub upstream: AccountStatus,
    /// Whether our copy follows.
    pub sync: SyncState,
    /// The commit that our copy stands at; none before the first load.
    pub head: Option<Head>,
    /// Which key signed that commit.
    #[serde(default)]
    pub head_signed_by: HeadSigner,
    /// Records held.
    pub records: u64,
    /// Bytes of those records.
    pub record_bytes: u64,
    /// Changes in the journal since the last snapshot.
    pub journal_commits: u64,
    /// Bytes of those journal entries.
    pub journal_bytes: u64,
    /// The newest snapshot in the archive.
    pub snapshot: Option<SnapshotMark>,
    /// A fetched repository must be at least at this rev, for frames up to it were dropped.
    #[serde(with = "codec::option")]
    pub min_rev: Option<Rev>,
    /// Frames parked.
    pub parked: u64,
    /// Bytes of those frames.
    pub parked_bytes: u64,
    /// The host's seq of the newest account event.
    pub status_seq: u64,
    /// When that event came: what the host answers to a question of before says nothing.
    #[serde(default, with = "codec::option")]
    pub status_at: Option<Timestamp>,
    /// Since when its host says that it is off, or does not know it.
    #[serde(default, with = "codec::option")]
    pub away_since: Option<Timestamp>,
    /// When the whole repository was last proven, by rebuilding its tree.
    #[serde(with = "codec::option")]
    pub verified_at: Option<Timestamp>,
    /// What its DID document said when it was last read; none: not read, or no longer to be relied on.
    pub identity: Option<StoredIdentity>,
    /// Events are parked until the DID document was read again; a task does it.
    pub awaiting_identity: bool,
    /// Its rows were found not to be what its head says, and have not been replaced since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
    /// Up to which rev the archive's log has it; none: nothing of it since it is archived.
    #[serde(default, with = "codec::option")]
    pub shipped: Option<Rev>,
    /// SHA-256 of what the archive's newest identity object says of it; none: it has none.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub identity_archived: Option<Digest>,
    /// The audit log of its did:plc when it was last read; none: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_seen: Option<LogSeen>,
    /// What of it is not in the log, because too much waited for the archive: only a snapshot tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlogged: Option<Unlogged>,
    /// A task will snapshot it.
    pub snapshot_due: bool,
    /// When: the time of that task.
    #[serde(default, with = "codec::option")]
    pub snapshot_at: Option<Timestamp>,
    /// What is kept of it beside the head because something was lost upstream. Retention passes it over.
    pub pins: Vec<Pin>,
    /// The host's head was older than ours when this fetch was asked for.
    pub diverged_before_fetch: bool,
    /// Something came while it was fetched that the fetch need not have seen: then it is compared once more.
    #[serde(default)]
    pub fetch_again: bool,
    /// When it is compared with its host again: the time of that task.
    #[serde(with = "codec::option")]
    pub next_audit: Option<Timestamp>,
    /// Deletions of the last day.
    pub deletes: Option<DeleteWindow>,
    /// When its host confirmed that it is deleted: from then on the time of grace runs.
    #[serde(with = "codec::option")]
    pub deletion_confirmed_at: Option<Timestamp>,
    /// The CAR of a repository that does not rebuild to its signed root, or is behind ours, as the host sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_car: Option<KeptCar>,
    /// When it is archived, or one was last: the time of that task.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub car_at: Option<Timestamp>,
    /// When its host was asked for all its blobs and listed them to the end: those that it named were needed then.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub blobs_listed_at: Option<Timestamp>,
    /// Since when it follows again what was kept beside it or in its place: from then on CARs of before are history.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub followed_again_at: Option<Timestamp>,
    /// How much of it is erased, and not taken again ([`crate::mirror::erased`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<super::super::erased::ErasedMark>,
    /// What its owner asked for, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Its host is followed for other accounts: nothing of this one is fetched or stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfollowed: bool,
}

/// What an account's owner asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// When the account was signed up; none: it is here because its host is followed.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub signed_up: Option<Timestamp>,
    /// The key, as did:key, that opens its history whatever becomes of its identity. Its host does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_key: Option<String>,
    /// When all of it is to be erased, unless that is taken back.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub removal_due: Option<Timestamp>,
}

impl AccountRow {
    /// A row of an account of which nothing is loaded yet, and which has to be fetched.
    #[must_use]
    pub const fn new(did_number: u64, host: HostName, now: Timestamp) -> Self {
        Self {
            did_number,
            account_number: keyspace::NO_NUMBER,
            host,
            upstream: AccountStatus::Active,
            sync: SyncState::Wanted {
                reason: DesyncReason::New,
                since: now,
                tries: 0,
            },
            head: None,
            head_signed_by: HeadSigner::Current,
            records: 0,
            record_bytes: 0,
            journal_commits: 0,
            journal_bytes: 0,
            snapshot: None,
            damaged: false,
            shipped: None,
            identity_archived: None,
            log_seen: None,
            unlogged: None,
            min_rev: None,
            parked: 0,
            parked_bytes: 0,
            status_seq: 0,
            status_at: None,
            away_since: None,
            verified_at: None,
            identity: None,
            awaiting_identity: false,
            snapshot_due: false,
            snapshot_at: None,
            pins: Vec::new(),
            diverged_before_fetch: false,
            fetch_again: false,
            next_audit: None,
            deletes: None,
            deletion_confirmed_at: None,
            kept_car: None,
            car_at: None,
            blobs_listed_at: None,
            followed_again_at: None,
            erased: None,
            owner: None,
            unfollowed: false,
        }
    }

    /// Whether the host spoke of the account's standing on its stream since it was asked.
    #[must_use]
    pub fn is_outdated(&self, asked_at: Timestamp) -> bool {
        self.status_at.is_some_and(|known| asked_at <= known)
    }

    /// What is kept of a host that is behind us.
    #[must_use]
    pub fn kept_beside(&self) -> Option<&KeptCar> {
        let behind = self.diverged_before_fetch || matches!(self.sync, SyncState::Diverged { .. });
        self.kept_car.as_ref().filter(|car| behind && !car.damaged)
    }

    /// The head of what is kept as it came, while that is what the host has: it does not rebuild, or is behind ours.
    #[must_use]
    pub fn kept_head(&self) -> Option<Cid> {
        match self.sync {
            SyncState::Quarantined { commit, .. } => commit.filter(|_| self.kept_car.is_some()),
            _ => self.kept_beside().map(|car| car.commit),
        }
    }

    /// Whether the head stands in the archive as a snapshot.
    #[must_use]
    pub fn is_snapshotted(&self) -> bool {
        match (&self.head, &self.snapshot) {
            (Some(head), Some(snapshot)) => head.commit == snapshot.commit,
            _ => false,
        }
    }

    /// Whether the head stands in the archive: as a snapshot, or as an older one with all that the log says
    /// since.
    #[must_use]
    pub fn is_archived(&self) -> bool {
        match (&self.head, &self.snapshot) {
            (Some(head), Some(snapshot)) => {
                let told = self
                    .unlogged
                    .is_none_or(|gap| gap.told && snapshot.rev >= gap.rev);
                head.commit == snapshot.commit
                    || (told && self.shipped.is_some_and(|shipped| shipped >= head.rev))
            }
            _ => false,
        }
    }
}

/// A gap in the log: the changes that lead to a rev are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unlogged {
    /// The last of them: a snapshot at this rev, or a later one, makes up for all.
    #[serde(with = "codec::value")]
    pub rev: Rev,
    /// Whether the log says so: then what comes after it stands in the log again.
    pub told: bool,
}

/// A CAR that is kept whole, byte for byte, because its tree does not rebuild or its host is behind us: never taken
/// for the account's copy.
/// Its bytes stand in `blob_data` under a number of its own and the digest of its commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptCar {
    /// Its number, which is no account's and no DID's.
    pub number: u64,
    /// The rev of its head.
    #[serde(with = "codec::value")]
    pub rev: Rev,
    /// Its head.
    #[serde(with = "codec::value")]
    pub commit: Cid,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it.
    #[serde(with = "serde_bytes")]
    pub sha256: Digest,
    /// When it came.
    #[serde(with = "codec::value")]
    pub since: Timestamp,
    /// Whether it stands in the archive.
    pub archived: bool,
    /// Whether its bytes here are no longer those that came: it is not archived as if they were.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// Something of an account that is kept until a person says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// A generation whose rows are kept in the mirror.
    pub generation: Option<u64>,
    /// Where that generation stands.
    pub head: Option<Head>,
    /// The newest snapshot of before.
    pub snapshot: Option<SnapshotMark>,
    /// Since when.
    #[serde(with = "codec::value")]
    pub since: Timestamp,
    /// Why.
    pub reason: PinReason,
}

/// Why something is kept. Persisted: keep the names stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinReason {
    /// The host went back to an older state.
    Rollback,
    /// A large part was deleted at once.
    MassDelete,
    /// Many accounts of its host went at once.
    MassTakedown,
    /// An admin wants it.
    Asked,
}

/// Deletions of an account within a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteWindow {
    /// Its beginning.
    #[serde(with = "codec::value")]
    pub since: Timestamp,
    /// The rev at its beginning.
    #[serde(default, with = "codec::option", skip_serializing_if = "Option::is_none")]
    pub rev: Option<Rev>,
    /// The most records that there were since.
    pub records: u64,
    /// Records deleted since that were there at its beginning.
    pub deleted: u64,
    /// Whether an alarm was raised.
    pub alarmed: bool,
}

/// What a DID document says that the verification of commits needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredIdentity {
    /// The signing key, as `did:key`; none if the document has none that is usable.
    pub key: Option<String>,
    /// The PDS that it names; none if it names none.
    pub host: Option<String>,
    /// The handle that it claims; nobody has checked that the handle agrees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// When it was read.
    #[serde(with = "codec::value")]
    pub read_at: Timestamp,
}

impl StoredIdentity {
    /// Whether the document names this host.
    #[must_use]
    pub fn speaks_at(&self, host: &HostName) -> bool {
        self.host.as_deref() == Some(host.as_str())
    }
}

/// Where our copy of an account stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The commit's rev.
    #[serde(with = "codec::value")]
    pub rev: Rev,
    /// The commit's CID.
    #[serde(with = "codec::value")]
    pub commit: Cid,
    /// The signed commit, byte for byte.
    #[serde(with = "serde_bytes")]
    pub commit_block: Vec<u8>,
    /// Root of the tree.
    #[serde(with = "codec::value")]
    pub data: Cid,
}

/// Where the audit log of a did:plc stood, and who could change the identity then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSeen {
    /// The last operation that stood.
    #[serde(with = "codec::value")]
    pub head: Cid,
    /// Its rotation keys, the strongest first; none: the identity is given up.
    pub rotation_keys: Vec<String>,
}

/// A snapshot that stands in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMark {
    /// Its rev.
    #[serde(with = "codec::value")]
    pub rev: Rev,
    /// Its commit's CID.
    #[serde(with = "codec::value")]
    pub commit: Cid,
    /// When it was there.
    #[serde(with = "codec::value")]
    pub at: Timestamp,
    /// Its size in the archive.
    pub bytes: u64,
}
