//! A PDS's private state: what no stream tells, and no user can be given back without.
//!
//! The databases of accounts and of the sequence, each account's signing key and preferences, and the PDS's own
//! settings. It is opt-in, and it never leaves memory in plain: [`read`] takes consistent copies of what runs, [`crypt`]
//! encrypts them to the admin's recipients, and only then [`drop_box`] writes them where the daemon, which cannot read
//! them, picks them up and ships them. Only what changed is written again, one object a part and one an account, so
//! that an account can be erased.
//!
//! Shell: all but [`private`].

pub mod private;

#[cfg(feature = "daemon")]
pub mod crypt;
#[cfg(feature = "daemon")]
pub mod drop_box;
#[cfg(feature = "daemon")]
pub mod held;
#[cfg(feature = "daemon")]
pub mod read;

/// Why private state cannot be read, encrypted or written. Never holds any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub String);

impl StateError {
    /// With this text.
    pub fn new(text: impl ToString) -> Self {
        Self(text.to_string())
    }
}

/// Largest part, in bytes: it is held in memory.
pub const PART_BYTES_MAX: u64 = 1 << 30;
/// The parts of a PDS, and the files of its data folder that they are: databases.
pub const DATABASES: [(&str, &str); 3] = [
    ("account", "account.sqlite"),
    ("sequencer", "sequencer.sqlite"),
    ("did-cache", "did_cache.sqlite"),
];
/// The part that is the PDS's settings, and its file.
pub const SETTINGS: (&str, &str) = ("pds-env", "pds.env");
