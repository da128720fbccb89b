//! The values of the mirror.
//!
//! Rows are DAG-CBOR maps, so that a later version can add a field: it carries `#[serde(default)]`, and the
//! rows of every earlier version still open. Unknown fields and unknown variants are refused: they are of a
//! newer version, which `store::FORMAT_VERSION` should have kept out. Records alone, the mass of the data,
//! have a fixed head instead of a map ([`RecordValue`]).
//!
//! Names of fields and variants are persisted: keep stable.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{Cid, Did, Digest, HostName, RepoPath, Rev, SyntaxError, Timestamp};

mod codec;
mod status;

pub use status::{DesyncReason, HeadSigner, SyncState};

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
    /// How much of it is erased, and not taken again ([`super::erased`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<super::erased::ErasedMark>,
}

impl AccountRow {
    /// A row of an account of which nothing is loaded yet, and which has to be fetched.
    #[must_use]
    pub const fn new(did_number: u64, host: HostName, now: Timestamp) -> Self {
        Self {
            did_number,
            account_number: super::keyspace::NO_NUMBER,
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
            erased: None,
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
}

/// Deletions of an account within a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteWindow {
    /// Its beginning.
    #[serde(with = "codec::value")]
    pub since: Timestamp,
    /// Records at its beginning.
    pub records: u64,
    /// Records deleted since.
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

/// Row of `parked`: a frame that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParkedFrame {
    /// Who sent it.
    #[serde(with = "codec::text")]
    pub host: HostName,
    /// The host's numbering that `seq` counts in.
    pub epoch: u64,
    /// The host's number for it.
    pub seq: u64,
    /// When it reached us.
    #[serde(with = "codec::value")]
    pub received: Timestamp,
    /// The rev that it claims.
    #[serde(with = "codec::value")]
    pub rev: Rev,
    /// The whole frame, header and body, byte for byte.
    #[serde(with = "serde_bytes")]
    pub frame: Vec<u8>,
}

/// Row of `tasks`: the key says what and when, this says how often it failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRow {
    /// Tries that failed.
    pub tries: u32,
    /// How the last one failed, for people.
    pub last_error: Option<String>,
}

/// Row of `alarms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlarmRow {
    /// Since when.
    #[serde(with = "codec::value")]
    pub since: Timestamp,
    /// What happened, for people.
    pub message: String,
    /// The generations that are kept because of it.
    pub pinned: Vec<u64>,
    /// Who said that it was seen, and when.
    pub acknowledged: Option<Acknowledged>,
}

/// Who acknowledged an alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledged {
    /// Who.
    pub by: String,
    /// When.
    #[serde(with = "codec::value")]
    pub at: Timestamp,
}

impl Row for AccountRow {}
impl Row for HostRow {}
impl Row for BlobRow {}
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
