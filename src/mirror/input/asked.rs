//! What owners and admins ask for.

use crate::mirror::rows::Scope;
use crate::types::{Did, HostName, Timestamp};

/// What is asked for. Who may is settled before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// An account is to be followed, whatever else of its host is.
    SignUp {
        /// Whose.
        did: Did,
        /// Its host, which is followed.
        host: HostName,
        /// The key that is to open its history from now on, as did:key.
        key: Option<String>,
    },
    /// All of an account is to be erased at this time; none: no longer.
    Removal {
        /// Whose.
        did: Did,
        /// When.
        due: Option<Timestamp>,
    },
    /// An account is to be snapshotted now.
    Snapshot {
        /// Whose.
        did: Did,
    },
    /// Nothing of an account is to go from the archive.
    Pin {
        /// Whose.
        did: Did,
    },
    /// It may again, by the rules.
    Unpin {
        /// Whose.
        did: Did,
    },
    /// A host is followed, and which of its accounts.
    Host {
        /// Which.
        host: HostName,
        /// Its base URL.
        url: String,
        /// Which accounts.
        scope: Scope,
        /// Whether it stays without being in the configuration.
        added: bool,
    },
}
