#![allow(clippy::disallowed_methods, reason = "shell: the archive")]
//! A moment of an account, for a restore.

use super::Account;
use crate::archive::reader::ArchiveReader;
use crate::archive::rebuild::Rebuilt;
use crate::cli::JudgeArgs;
use crate::config::Config;
use crate::daemon::DaemonError;
use crate::repo::signing_key::SigningKey;
use crate::types::Did;

/// A moment, proven, with its signature by one of these keys or of those that the archive knows; what to know about
/// it; and whether it may not be what was asked for.
///
/// # Errors
/// When there is no such moment in the archive, or it does not prove.
pub(in crate::commands) async fn moment(
    config: &Config,
    did: &Did,
    at: Option<&str>,
    keys: &[SigningKey],
) -> Result<(ArchiveReader, Rebuilt, Vec<String>, bool), DaemonError> {
    let mut account = Account::open(config, did, None, &JudgeArgs::default()).await?;
    account.keys = [keys, &account.archived_keys].concat();
    let found = account.find(at).await?;
    let notes = [account.faults(), found.notes].concat();
    Ok((account.reader, found.rebuilt, notes, found.short))
}
