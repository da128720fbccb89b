//! The closed sets that metric labels are drawn from, and families with one ready-made series for each.
//!
//! A series exists from the start, at zero: an alert on an absent series never fires. No label is ever made
//! from what a host or a caller sent, so the number of series is bounded by this file (and by the hosts).

pub use super::by::{By, By2};
pub use crate::mirror::keyspace::AlarmKind;
pub use crate::mirror::rows::DesyncReason as ResyncReason;
pub use crate::verify::RejectReason;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// The text of the label.
    fn text(self) -> &'static str;
    /// Where the value stands in [`Label::ALL`].
    fn index(self) -> usize;

    /// The value with this text, for a caller whose own closed set has the same texts.
    fn named(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|label| label.text() == text)
    }
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

mod served;

pub use served::{CloseReason, Endpoint, ExportResult, HttpMethod};

labels! {
    /// What a stream event is.
    EventKind {
        /// A commit to a repository.
        Commit = "commit",
        /// The state of a repository, without a difference.
        Sync = "sync",
        /// A change of a DID document.
        Identity = "identity",
        /// A change of an account's status.
        Account = "account",
        /// A message about the stream itself.
        Info = "info",
        /// A type that this version does not know: counted, passed over.
        Unknown = "unknown",
    }

    /// How far a sequence number has come.
    SeqStage {
        /// Read from the socket.
        Received = "received",
        /// In the mirror, synced, with the cursor.
        Applied = "applied",
        /// In the archive, and all before it.
        Durable = "durable",
    }

    /// Why an event was passed over, legitimately.
    SkipReason {
        /// Its rev is not above the one that is held.
        Replayed = "replayed",
        /// The account is not active at this host.
        Inactive = "inactive",
        /// The account is quarantined: its repository is fetched again instead.
        Quarantined = "quarantined",
        /// The account lives at another host.
        ForeignHost = "foreign_host",
        /// The repository is what it was before.
        Unchanged = "unchanged",
        /// A type that this version does not know.
        UnknownType = "unknown_type",
    }

    /// Why a frame could not be read at all.
    FrameReason {
        /// Larger than a frame may be.
        Oversize = "oversize",
        /// Not binary.
        NotBinary = "not_binary",
        /// Not strict DAG-CBOR.
        Cbor = "cbor",
        /// The header is not one.
        Header = "header",
        /// The body lacks a field, or a field breaks its syntax.
        Body = "body",
        /// The sequence number does not rise.
        Sequence = "sequence",
    }

    /// Why a stream had to be opened again.
    ReconnectReason {
        /// It could not be opened.
        Connect = "connect",
        /// The host closed it.
        Closed = "closed",
        /// The connection broke.
        Broken = "broken",
        /// Nothing was heard for too long.
        Silent = "silent",
        /// The host sent an error frame.
        ErrorFrame = "error_frame",
        /// The host broke the protocol.
        Protocol = "protocol",
    }

    /// How a fetch of a repository ended.
    ResyncResult {
        /// Loaded and proven.
        Loaded = "loaded",
        /// What is held is already that.
        Unchanged = "unchanged",
        /// Fetched, but it does not prove.
        Refused = "refused",
        /// Fetched; it does not rebuild to its signed root, and its CAR is kept as it came.
        Quarantined = "quarantined",
        /// Not fetched: will be tried again.
        Failed = "failed",
        /// The host does not have it or does not give it.
        Gone = "gone",
    }

    /// How a fetch of what is newer than our copy ended.
    CatchUpResult {
        /// It proves together with what is held.
        CaughtUp = "caught_up",
        /// It does not: the repository was fetched whole.
        FellBack = "fell_back",
    }

    /// What of a repository was received.
    RepoPart {
        /// What is newer than what is held.
        Newer = "newer",
        /// All of it.
        Whole = "whole",
    }

    /// How a fetch of a blob ended.
    FetchResult {
        /// Held.
        Ok = "ok",
        /// The host does not have it.
        NotFound = "not_found",
        /// The bytes are not those of the CID.
        Mismatch = "mismatch",
        /// Larger than a blob may be.
        TooLarge = "too_large",
        /// Anything else: will be tried again.
        Failed = "failed",
    }

    /// The status of an account at its host.
    AccountLabel {
        /// Active.
        Active = "active",
        /// Deactivated by its owner.
        Deactivated = "deactivated",
        /// Suspended by its host.
        Suspended = "suspended",
        /// Taken down.
        Takendown = "takendown",
        /// Deleted.
        Deleted = "deleted",
        /// Its host could not keep up.
        Desynchronized = "desynchronized",
        /// Slowed by its host.
        Throttled = "throttled",
        /// A status that this version does not know.
        Other = "other",
    }

    /// How well an account is mirrored.
    SyncLabel {
        /// Waits for a fetch.
        Wanted = "wanted",
        /// Follows the stream.
        Live = "live",
        /// The host's copy is older than ours.
        Diverged = "diverged",
        /// Lives at a host that is not followed.
        Moved = "moved",
        /// Does not prove: its CAR is kept whole.
        Quarantined = "quarantined",
    }

    /// Where a blob's bytes are.
    BlobLabel {
        /// Not fetched yet.
        Wanted = "wanted",
        /// In the mirror only.
        Held = "held",
        /// In the archive.
        Archived = "archived",
        /// Could not be fetched.
        Missing = "missing",
        /// No longer referred to.
        Withdrawn = "withdrawn",
        /// A person wants it gone.
        Erased = "erased",
    }

    /// Whether something worked.
    Outcome {
        /// It did.
        Ok = "ok",
        /// It did not.
        Error = "error",
    }

    /// Where the backup stands.
    ProtectionLabel {
        /// Everything is safe.
        Protected = "protected",
        /// Held, and not off this machine.
        Mirrored = "mirrored",
        /// There is nothing.
        Empty = "empty",
        /// On the way.
        CatchingUp = "catching_up",
        /// Something is wrong.
        AtRisk = "at_risk",
    }

    /// Why it is not protected; the daemon's `protection` says what each means.
    UnprotectedLabel {
        /// `task_stalled`
        TaskStalled = "task_stalled",
        /// `host_away`
        HostAway = "host_away",
        /// `lag`
        Lag = "lag",
        /// `archive_away`
        ArchiveAway = "archive_away",
        /// `off_machine_age`
        OffMachineAge = "off_machine_age",
        /// `spool_full`
        SpoolFull = "spool_full",
        /// `blobs_missing`
        BlobsMissing = "blobs_missing",
        /// `quarantined`
        Quarantined = "quarantined",
        /// `diverged`
        Diverged = "diverged",
        /// `damaged`
        Damaged = "damaged",
        /// `drill_failed`
        DrillFailed = "drill_failed",
        /// `drill_old`
        DrillOld = "drill_old",
        /// `scrub_old`
        ScrubOld = "scrub_old",
        /// `connecting`
        Connecting = "connecting",
        /// `not_listed`
        NotListed = "not_listed",
        /// `filling`
        Filling = "filling",
        /// `events_parked`
        EventsParked = "events_parked",
        /// `blobs_open`
        BlobsOpen = "blobs_open",
        /// `not_snapshotted`
        NotSnapshotted = "not_snapshotted",
        /// `drill_pending`
        DrillPending = "drill_pending",
        /// `scrub_pending`
        ScrubPending = "scrub_pending",
        /// `no_accounts`
        NoAccounts = "no_accounts",
        /// `same_machine`
        SameMachine = "same_machine",
    }

    /// A part of the daemon that runs by itself.
    TaskLabel {
        /// Reads a host's stream.
        Subscribe = "subscribe",
        /// Verifies it and hands it over.
        Follow = "follow",
        /// Writes the mirror.
        Apply = "apply",
        /// Reads DID documents.
        Resolve = "resolve",
        /// Does what is due: fetches, snapshots.
        Work = "work",
        /// Looks after the archive.
        ArchiveLink = "archive_link",
        /// Ships the log.
        Ship = "ship",
        /// Reads and restores for a trial.
        Prove = "prove",
        /// Writes the states of hosts.
        States = "states",
        /// Answers callers.
        Serve = "serve",
        /// Prunes and looks for what was erased.
        Retain = "retain",
        /// Measures.
        Measure = "measure",
        /// Sends alarms and heartbeats.
        Notify = "notify",
    }

    /// Which proof.
    ProofKind {
        /// All of the archive was read.
        Archive = "archive",
        /// Accounts were restored for a trial.
        Drill = "drill",
    }

    /// A request to the archive's store.
    StoreOp {
        /// Store an object.
        Put = "put",
        /// Read an object.
        Get = "get",
        /// Look at an object.
        Head = "head",
        /// List objects.
        List = "list",
        /// Remove an object.
        Delete = "delete",
    }

    /// Which way bytes went.
    Direction {
        /// From here.
        Sent = "sent",
        /// To here.
        Received = "received",
    }
}

impl Label for RejectReason {
    const ALL: &'static [Self] = &Self::ALL;

    fn text(self) -> &'static str {
        self.label()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for AlarmKind {
    const ALL: &'static [Self] = &Self::ALL;

    fn text(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        // Codes are kept in rows and have gaps.
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or(0)
    }
}

impl Label for ResyncReason {
    const ALL: &'static [Self] = &Self::ALL;

    fn text(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}
