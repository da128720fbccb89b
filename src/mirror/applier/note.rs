//! What the applier tells of its work, for metrics and logs.

use super::super::input::FetchFailure;
use super::super::keyspace::AlarmKind;
use super::super::rows::{BlobFailure, DesyncReason};
use crate::types::{Cid, Did, HostName, Rev, Timestamp};
use crate::verify::RejectReason;

/// What happened, for metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A commit was applied.
    Applied {
        /// From which host.
        host: HostName,
        /// Its sequence number.
        seq: u64,
        /// When the host says that it happened.
        time: Option<Timestamp>,
        /// When it reached us.
        received: Timestamp,
    },
    /// An event changed nothing because it was seen before.
    Replayed {
        /// From which host.
        host: HostName,
    },
    /// An event of an account that its host says is not active.
    Inactive {
        /// From which host.
        host: HostName,
    },
    /// An event waits for a key or a fetch.
    Parked {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
    },
    /// A queue of parked frames was dropped because it grew past its bound; the fetch makes up for it.
    ParkedDropped {
        /// Whose.
        did: Did,
    },
    /// Records were taken in that are not strict DAG-CBOR: kept byte for byte, and counted.
    Noncanonical {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// How many.
        records: u64,
    },
    /// An event was not accepted.
    Rejected {
        /// From which host.
        host: HostName,
        /// Whose, if known.
        did: Option<Did>,
        /// Why.
        reason: RejectReason,
    },
    /// An account has to be fetched.
    Desynchronized {
        /// Whose.
        did: Did,
        /// Why.
        reason: DesyncReason,
    },
    /// A fetched repository became the account's head.
    Swapped {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// Why it was fetched.
        reason: DesyncReason,
        /// Its rev.
        rev: Rev,
        /// How many records it has.
        records: u64,
    },
    /// A fetched repository does not rebuild to its signed root: its CAR is kept as it came.
    Quarantined {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// Why it was fetched.
        reason: DesyncReason,
        /// Its rev.
        rev: Rev,
        /// What is wrong with it.
        fault: String,
    },
    /// An event of a quarantined account changed nothing: its repository is fetched again instead.
    SkippedInQuarantine {
        /// From which host.
        host: HostName,
    },
    /// The host's head is the one that we hold.
    Unchanged {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// Why it was compared.
        reason: DesyncReason,
    },
    /// A repository could not be fetched.
    FetchFailed {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// Why it was to be fetched.
        reason: DesyncReason,
        /// Why it was not.
        failure: FetchFailure,
    },
    /// An account's standing at its host changed.
    Status {
        /// Whose.
        did: Did,
        /// The new standing, as the metric label.
        status: &'static str,
    },
    /// The host's head is older than ours: ours stays.
    HostBehind {
        /// Whose.
        did: Did,
        /// Our rev.
        ours: Rev,
        /// The host's.
        theirs: Rev,
    },
    /// An account's DID document names another host than before.
    Moved {
        /// Whose.
        did: Did,
        /// The host that it was followed at.
        from: HostName,
        /// The host that the document names.
        to: HostName,
        /// Whether that one is followed.
        followed: bool,
    },
    /// A blob that records refer to cannot be had, or now for another reason.
    BlobMissing {
        /// From which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// Which.
        cid: Cid,
        /// Why.
        failure: BlobFailure,
    },
    /// A host gives a blob no longer that records of it refer to, or gives it again.
    BlobWithheld {
        /// Which host.
        host: HostName,
        /// Whose.
        did: Did,
        /// Which.
        cid: Cid,
        /// Whether it is withheld now.
        withheld: bool,
    },
    /// An alarm was raised.
    Alarm {
        /// Which host it concerns.
        host: HostName,
        /// What kind it is.
        kind: AlarmKind,
        /// For people.
        message: String,
    },
    /// A listing ended.
    Listed {
        /// Which host.
        host: HostName,
    },
    /// A host lost events between our cursor and now.
    Gap {
        /// Which host.
        host: HostName,
    },
}
