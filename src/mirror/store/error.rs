//! What a store reports: which folder, what happened, what to do.

use std::path::PathBuf;

use super::Family;

/// Why the store could not do it, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error(
        "the mirror in {path} is in use by {}: one Firekeep at a time may write to a data directory; \
         stop it, or give this one another data_dir", holder_text(*holder)
    )]
    Locked {
        /// The mirror's folder.
        path: PathBuf,
        /// The process that holds the lock, where the system tells.
        holder: Option<u32>,
    },
    /// The folder cannot be made, or written to.
    #[error(
        "cannot write to {path}: {detail}; let the user that runs Firekeep own it, or set data_dir to a folder \
         that may be written"
    )]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// There is no mirror to read.
    #[error("there is no mirror in {path}: check data_dir, or start `firekeep run` once")]
    NotFound {
        /// Where it should be.
        path: PathBuf,
    },
    /// A daemon changes it under the reader.
    #[error("the mirror in {path} changed faster than it could be read: try again")]
    Busy {
        /// The mirror's folder.
        path: PathBuf,
    },
    /// A newer Firekeep wrote it.
    #[error(
        "the mirror in {path} has format {found}, and this Firekeep knows formats up to {supported}: run the \
         newer Firekeep that wrote it, or set data_dir to a new folder and let it fill again"
    )]
    Newer {
        /// The mirror's folder.
        path: PathBuf,
        /// The format that it is in.
        found: u64,
        /// The newest format that this binary knows.
        supported: u64,
    },
    /// What is on disk is not what was written.
    #[error(
        "the mirror in {path} is damaged: {detail}; nothing was changed. Check the disk, move the folder aside, \
         and start again: the mirror is filled from the archive and the hosts"
    )]
    Corrupt {
        /// The mirror's folder.
        path: PathBuf,
        /// Where, and how it shows.
        detail: String,
    },
    /// No space is left.
    #[error(
        "the disk that holds {path} is full: {detail}; free some space, and writing goes on. Nothing that was \
         acknowledged is lost"
    )]
    Full {
        /// The mirror's folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// Rows for a bulk load were not in strictly ascending order.
    #[error(
        "rows to load into {family} are not in ascending order: row {row} is not above the one before it"
    )]
    Unsorted {
        /// The family.
        family: Family,
        /// Which row, counted from 0.
        row: u64,
    },
    /// A bulk load would meet rows that are there already.
    #[error(
        "rows to load into {family} meet rows that are there already: row {row} is not below the next old key"
    )]
    NotEmpty {
        /// The family.
        family: Family,
        /// Which row to load, counted from 0.
        row: u64,
    },
    /// A key or a value does not decode.
    #[error(
        "a row of {family} is not valid: {reason} (key {key}); please report this with the Firekeep versions \
         used"
    )]
    BadRow {
        /// The family.
        family: Family,
        /// The key, in hexadecimal, shortened.
        key: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// Anything else that the engine reports.
    #[error("the mirror in {path} failed: {detail}")]
    Failed {
        /// The mirror's folder.
        path: PathBuf,
        /// What the engine said.
        detail: String,
    },
}

impl StoreError {
    /// A row that does not decode. The key is shown as hexadecimal, its first 64 bytes at most.
    #[must_use]
    pub fn bad_row(family: Family, key: &[u8], reason: impl ToString) -> Self {
        let mut shown = data_encoding::HEXLOWER.encode(&key[..key.len().min(64)]);
        if key.len() > 64 {
            shown.push('…');
        }
        Self::BadRow {
            family,
            key: shown,
            reason: reason.to_string(),
        }
    }

    /// Whether the same call may succeed later without anybody restarting Firekeep.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Busy { .. })
    }
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
