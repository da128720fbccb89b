//! Restoring an account at a new PDS, from a backup and a rotation key, with nothing of its old PDS.
//!
//! The order is what makes it safe ([`account`]): the account is made deactivated, its repository and blobs are
//! brought and compared, only then does the identity point there, and only after that is it activated. A [`ledger`]
//! says how far it came, and every step finds out by itself whether it was done, so that the same command goes on
//! after any interruption.
//!
//! Keys stay on this machine: [`secret`] reads them, [`operation`] signs with them, and neither the ledger nor any
//! text of ours ever holds one.
//!
//! A whole PDS is its accounts, one by one: [`whole`] says what is done with each, [`book`] keeps what came of it,
//! [`passwords`] what they log in with.
//!
//! Pure: [`secret`], [`operation`], [`token`], [`plan`], [`whole`], [`records`]. Shell: [`ledger`], [`source`], [`pds`],
//! [`directory`], [`account`], [`admin`], [`book`], [`passwords`].

pub mod operation;
pub mod plan;
pub mod records;
pub mod secret;
pub mod token;
pub mod whole;

#[cfg(feature = "daemon")]
pub mod account;
#[cfg(feature = "daemon")]
pub mod admin;
#[cfg(feature = "daemon")]
pub mod book;
#[cfg(feature = "daemon")]
mod crash;
#[cfg(feature = "daemon")]
pub mod directory;
#[cfg(feature = "daemon")]
pub mod ledger;
#[cfg(feature = "daemon")]
pub mod passwords;
#[cfg(feature = "daemon")]
pub mod pds;
#[cfg(feature = "daemon")]
pub mod source;

/// Erased records that are named one by one.
pub const WITHHELD_MAX: usize = 100;

/// Why a restore stopped. What was done until then stays, and the same command goes on from there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Something could not be done.
    #[error("{0}")]
    Failed(String),
    /// The new PDS takes everything but this: it is too large, or of a type that it does not want.
    #[error("{0}")]
    Refused(String),
    /// The backup, or what the new PDS holds, is not what it should be.
    #[error("{0}")]
    Unproven(String),
    /// There is no backup of it.
    #[error("{0}")]
    NoBackup(String),
}

impl RestoreError {
    /// Something could not be done.
    pub fn failed(text: impl ToString) -> Self {
        Self::Failed(text.to_string())
    }

    /// Somebody else has done something meanwhile.
    #[cfg(feature = "daemon")]
    fn account_changed() -> Self {
        Self::failed("the account changed at the new PDS since the plan was made")
    }

    /// A restore was begun, and what it began with is no longer there.
    #[cfg(feature = "daemon")]
    fn account_gone() -> Self {
        Self::failed(
            "the ledger says that this account was made at the new PDS, and the PDS does not know it: it lost it, or was \
             rebuilt. To restore it anew, remove the ledger or name another one with --ledger",
        )
    }
}
