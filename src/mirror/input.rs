//! What the applier is told, and what it asks for in return. Values only.

use bytes::Bytes;

use super::keyspace::{AlarmId, AlarmKind, Task};
use super::rows::{BlobFailure, KeptCar, Listing, LogRow, LogSeen, StoredIdentity, SweepMark};
use crate::types::{AccountStatus, Cid, Did, Digest, HostName, Rev, Timestamp};
use crate::verify::{CheckedEvent, LaxRepo, VerifiedRepo};

mod asked;
mod restored;

pub use asked::Ask;
pub use restored::{Refilled, Restored, RestoredRepo, Standing};

/// One thing for the applier to do. Inputs are applied in the order in which they come.
#[derive(Debug)]
pub enum Input {
    /// An event of a host's stream.
    Event(HostEvent),
    /// A host said that events between our cursor and now are lost.
    Gap {
        /// Which host.
        host: HostName,
        /// Why we think so.
        gap: Gap,
    },
    /// A page of a host's `listRepos`.
    Listed(ListedPage),
    /// A repository was fetched and loaded under an account number of its own, or was found unchanged.
    Fetched(Box<Fetched>),
    /// A repository could not be fetched.
    FetchFailed {
        /// Whose.
        did: Did,
        /// The host that was asked.
        host: HostName,
        /// Why.
        failure: FetchFailure,
        /// When the host was asked.
        asked_at: Timestamp,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
        /// Not before this time again.
        retry_at: Timestamp,
    },
    /// An account's identity was resolved, or could not be.
    Identity {
        /// Whose.
        did: Did,
        /// What the DID document says; `None` when it could not be had.
        resolved: Option<StoredIdentity>,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
        /// If not: when to try again.
        retry_at: Timestamp,
    },
    /// A blob is complete in `blob_data`.
    BlobStored {
        /// Whose and which.
        blob: BlobKey,
        /// Its size in bytes.
        size: u64,
        /// The MIME type that the host gave.
        mime: Option<String>,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// A blob could not be fetched.
    BlobFailed {
        /// Whose and which.
        blob: BlobKey,
        /// Why.
        failure: BlobFailure,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
        /// When to try again.
        retry_at: Timestamp,
    },
    /// A blob stands in the archive.
    BlobArchived {
        /// Whose and which.
        blob: BlobKey,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// An owner or an admin asks for something.
    Asked(Ask),
    /// Something is to be gone, and not to come again.
    Erase(Box<Erase>),
    /// The archive is to lose a blob to which nothing refers.
    BlobDropped {
        /// Whose and which.
        blob: BlobKey,
        /// It was found that nothing which is kept refers to it, as far as it was not needed from then on.
        before: Timestamp,
    },
    /// A held blob's bytes turned out to be damaged: fetch it again.
    BlobLost {
        /// Whose and which.
        blob: BlobKey,
        /// The key of the task row that found it.
        task: Vec<u8>,
    },
    /// A page of a host's `listBlobs`: blobs that the host holds for an account.
    BlobsListed {
        /// Whose.
        did: Did,
        /// The blobs.
        digests: Vec<Digest>,
        /// With the last page: when the host was asked for the first.
        complete: Option<Timestamp>,
    },
    /// A host was asked again for some of the blobs that we hold of it.
    BlobsSwept {
        /// Which host.
        host: HostName,
        /// What it said, blob by blob.
        verdicts: Vec<BlobVerdict>,
        /// How far the round is now.
        mark: SweepMark,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// A host was asked again for one blob that it withheld.
    BlobAsked {
        /// Which host.
        host: HostName,
        /// What it said.
        verdict: BlobVerdict,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// A host's stream is open: if its listing is not finished, it is (again) due.
    Connected {
        /// Which host.
        host: HostName,
    },
    /// The archive is open. If it is another than the one that "archived" marks belong to, they all go.
    ArchiveLinked {
        /// Its id.
        id: String,
    },
    /// An account was compared with its host.
    Audited {
        /// Whose.
        did: Did,
        /// The host that was asked.
        host: HostName,
        /// Its standing there; none if the host does not know it.
        status: Option<AccountStatus>,
        /// The commit that the host says is its head; none if it gives none.
        head: Option<Cid>,
        /// When the host was asked.
        asked_at: Timestamp,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// A person has seen an alarm.
    Acknowledge {
        /// Which.
        alarm: AlarmId,
        /// Who.
        by: String,
    },
    /// A CAR that is kept as it came stands in the archive.
    CarArchived {
        /// Whose.
        did: Did,
        /// Its number.
        number: u64,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// What the directory says of an account stands in the archive.
    IdentityArchived {
        /// Whose.
        did: Did,
        /// SHA-256 of what it says.
        digest: Digest,
        /// Its audit log; none: it has none, or it does not verify.
        seen: Option<IdentitySeen>,
        /// The key of the task row that asked for it.
        task: Vec<u8>,
    },
    /// An account was put together from the archive.
    Restored(Box<Restored>),
    /// All accounts of the archive were put together, or those that the mirror had fallen behind with.
    Refilled(Box<Refilled>),
    /// A CAR that is kept as it came is damaged here: fetch the repository again.
    CarDamaged {
        /// Whose.
        did: Did,
        /// Its number.
        number: u64,
        /// The key of the task row that found it.
        task: Vec<u8>,
    },
    /// A snapshot stands in the archive.
    SnapshotStored(SnapshotStored),
    /// What the next segment holds is fixed.
    SegmentCut {
        /// Its first log number.
        first: u64,
        /// Its last.
        last: u64,
    },
    /// A segment stands in the archive.
    SegmentShipped(SegmentShipped),
    /// This mirror is the writer of the archive's log, from this place on.
    LogClaimed(LogRow),
    /// Something of our own is not as it should be, and of no host's doing.
    OwnAlarm {
        /// What it is about.
        kind: AlarmKind,
        /// For people.
        message: String,
    },
    /// Something that concerns a host is not as it should be, and no event told of it.
    HostAlarm {
        /// The host.
        host: HostName,
        /// What it is about.
        kind: AlarmKind,
        /// For people.
        message: String,
    },
    /// What the mirror took for archived is damaged there, or gone: it is put there again.
    ArchiveLost {
        /// Whose.
        did: Did,
        /// A blob; none: the account's newest snapshot.
        blob: Option<Digest>,
    },
    /// Every account whose head is not in the archive is to be snapshotted at once.
    SnapshotAll,
    /// What the mirror holds of an account does not prove its head: fetch it again.
    Damaged {
        /// Whose.
        did: Did,
        /// The account number that was read.
        account_number: u64,
        /// The key of the task row that found it.
        task: Vec<u8>,
    },
    /// A piece of work is done, or there is nothing to do.
    TaskDone {
        /// The key of its task row.
        task: Vec<u8>,
    },
    /// A piece of work failed for now.
    TaskDelayed {
        /// The key of its task row.
        key: Vec<u8>,
        /// What it is.
        task: Task,
        /// When to try again.
        retry_at: Timestamp,
    },
}

/// What is to be gone of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erase {
    /// Whose.
    pub did: Did,
    /// All of it.
    pub whole: bool,
    /// It is not taken again either. Else, should the account come back, it is a new one.
    pub lasting: bool,
    /// Records, wherever they stand.
    pub records: Vec<Cid>,
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// The CAR that is kept as it came holds some of it.
    pub kept_car: bool,
}

/// A segment that stands in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentShipped {
    /// Its number.
    pub number: u64,
    /// The log number of its first entry.
    pub first: u64,
    /// And of its last.
    pub last: u64,
    /// Its index block: what the next one names.
    pub index: Cid,
}

/// An event with where and when it came, and its bytes, should it have to wait.
#[derive(Debug)]
pub struct HostEvent {
    /// From which host.
    pub host: HostName,
    /// When it came.
    pub received: Timestamp,
    /// The frame as it was on the wire.
    pub frame: Bytes,
    /// What it says.
    pub event: CheckedEvent,
}

/// How events came to be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Our cursor is older than what the host keeps.
    CursorOutdated,
    /// Our cursor is ahead of the host's sequence: it was reset or rolled back.
    CursorFromFuture,
    /// What the host sent was no proper stream: what it said before may be incomplete too.
    Garbled,
}

/// A page of `listRepos`.
#[derive(Debug)]
pub struct ListedPage {
    /// Which host.
    pub host: HostName,
    /// Its accounts.
    pub repos: Vec<ListedRepo>,
    /// When the host was asked.
    pub asked_at: Timestamp,
    /// How the listing stands after this page.
    pub listing: Listing,
    /// After the last page: the key of the task row that asked for it.
    pub task: Option<Vec<u8>>,
}

/// A snapshot that stands in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStored {
    /// Whose.
    pub did: Did,
    /// The account number that it was taken from.
    pub account_number: u64,
    /// Its head's rev.
    pub rev: Rev,
    /// Its head's commit.
    pub commit: Cid,
    /// Size of the object, in bytes.
    pub bytes: u64,
    /// The key of the task row that asked for it.
    pub task: Vec<u8>,
}

/// One account of a `listRepos` page.
#[derive(Debug)]
pub struct ListedRepo {
    /// Whose.
    pub did: Did,
    /// The commit that the host says is the head.
    pub head: Option<Cid>,
    /// Its standing at the host.
    pub status: AccountStatus,
}

/// A repository that was asked for and came.
#[derive(Debug)]
pub struct Fetched {
    /// Whose.
    pub did: Did,
    /// The account number that the row had when the fetch began.
    pub from_number: u64,
    /// How much of the account was erased when the fetch began ([`crate::mirror::erased::ErasedRow::count`]).
    pub from_erased: usize,
    /// The identity that it was verified with.
    pub identity: StoredIdentity,
    /// What came.
    pub content: FetchedContent,
    /// The key of the task row that asked for it.
    pub task: Vec<u8>,
}

/// What a fetch brought.
#[derive(Debug)]
pub enum FetchedContent {
    /// The host's head is the one that we hold.
    Unchanged {
        /// That head.
        commit: Cid,
    },
    /// A whole repository, its records and blob references loaded under `account_number`.
    Loaded {
        /// Its own number.
        account_number: u64,
        /// The proof.
        repo: VerifiedRepo,
        /// Every blob that its records refer to.
        blobs: Vec<BlobMention>,
    },
    /// A proven repository that is older than ours, or another one at the same rev: the host went back. Its CAR is
    /// kept beside ours.
    Behind {
        /// Its CAR, which stands in `blob_data`; none: it is larger than what is kept.
        car: Option<KeptCar>,
        /// The proof.
        repo: VerifiedRepo,
        /// Every blob that its records refer to.
        blobs: Vec<BlobMention>,
    },
    /// A repository that does not rebuild to its signed root, but is signed and all there: its CAR is kept.
    Kept {
        /// Its CAR, which stands in `blob_data`.
        car: KeptCar,
        /// What was checked of it.
        repo: LaxRepo,
        /// What is wrong with it, for people.
        reason: String,
        /// Every blob that its records refer to.
        blobs: Vec<BlobMention>,
    },
}

/// A blob that a record refers to.
#[derive(Debug, Clone)]
pub struct BlobMention {
    /// Its digest.
    pub digest: Digest,
    /// MIME type, as the record says.
    pub mime: Option<String>,
    /// Size, as the record says.
    pub size: Option<u64>,
}

/// A blob of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobKey {
    /// Whose.
    pub did: Did,
    /// Its account's DID number.
    pub did_number: u64,
    /// Its digest.
    pub digest: Digest,
}

impl BlobKey {
    /// The blob's CID.
    #[must_use]
    pub const fn cid(&self) -> Cid {
        Cid::raw(self.digest)
    }
}

/// Whether a host still gives a blob that we hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobVerdict {
    /// Whose and which.
    pub blob: BlobKey,
    /// Whether it does. A host that failed to say has given no verdict.
    pub served: bool,
}

/// Why a repository could not be fetched: the metric label and what `accounts` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchFailure {
    /// The host does not answer, or not in time.
    #[error("the host does not answer as it should: {0}")]
    Unreachable(String),
    /// The host says that the account is not active.
    #[error("the host says that the account is not active")]
    Inactive(AccountStatus),
    /// The host does not know the repository. Our copy stays.
    #[error("the host does not know the repository")]
    NotFound,
    /// What came is not a complete, proven repository.
    #[error("what the host sent is not a complete, proven repository: {0}")]
    Unproven(String),
    /// The account's identity could not be resolved.
    #[error("its identity cannot be resolved: {0}")]
    NoIdentity(String),
    /// The DID document names another host, or none.
    #[error("its DID document names another host")]
    NotThisHost(StoredIdentity),
}

impl FetchFailure {
    /// The metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Inactive(_) => "inactive",
            Self::NotFound => "not_found",
            Self::Unproven(_) => "unproven",
            Self::NoIdentity(_) => "no_identity",
            Self::NotThisHost(_) => "not_this_host",
        }
    }
}

/// What an audit log said when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySeen {
    /// Where it stands now.
    pub log: LogSeen,
    /// What somebody did to the identity since it was read before, for a person.
    pub changed: Option<String>,
}
