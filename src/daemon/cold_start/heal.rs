#![allow(clippy::disallowed_methods, reason = "shell: the archive")]
//! A mirror that fell behind its own archive.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::super::archive_link::Opened;
use super::progress::Shown;
use super::{ColdStart, FillError, Filled};
use crate::archive::log_pass::LogRange;
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::resolver::Resolver;
use crate::mirror::handle::ApplierHandle;
use crate::mirror::input::{Input, Refilled, Standing};
use crate::mirror::keyspace::NO_NUMBER;
use crate::mirror::numbers::Numbers;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::LogRow;
use crate::mirror::store::Store;

/// Gives a mirror back what its archive has more of: it is an older copy of itself, or another one wrote meanwhile.
/// `before` is where the mirror's log stood.
///
/// # Errors
/// When the archive cannot be read, or the mirror fails.
pub async fn heal(
    applier: &ApplierHandle,
    opened: &Opened,
    (config, store, numbers): (&Config, &Arc<dyn Store>, &Arc<Numbers>),
    (resolver, clock, temp_dir): (&Resolver, &Clock, &Path),
    (before, log): (&LogRow, LogRow),
) -> Result<Filled, FillError> {
    let cold = ColdStart::new(opened, (config, store, numbers), (resolver, clock, temp_dir)).await?;
    let cold = Arc::new(cold);
    let mut shown = Shown::new(clock);
    let range = LogRange {
        from: before.number,
        until: (log.generation, log.number),
    };
    let sources = Arc::new(cold.sources(range, &mut shown).await?);
    let (mut behind, mut told, mut standings) = (Vec::new(), Vec::new(), Vec::new());
    for (did, account) in &sources.log.accounts {
        let row = Mirror::new(&**store).account(did)?;
        let ours = row
            .as_ref()
            .and_then(|row| row.head.as_ref())
            .map(|head| head.rev);
        if let (Some((received, status)), Some(host)) = (&account.status, &account.host) {
            standings.push(Standing {
                did: did.clone(),
                host: host.clone(),
                status: status.clone(),
                received: *received,
            });
            if row.is_none() && account.newest.is_none() {
                behind.push((did.clone(), NO_NUMBER));
            }
        }
        if let Some(newest) = account.newest {
            told.push((did.clone(), newest));
            if Some(newest) > ours {
                behind.push((did.clone(), row.map_or(NO_NUMBER, |row| row.account_number)));
            }
        }
    }
    let count = behind.len() as u64;
    let mut filled = Filled::default();
    let mut prepared = Box::pin(cold.prepare_all(behind, &sources));
    while let Some(prepared) = prepared.next().await {
        let input = filled.take(prepared?);
        applier.apply(input).await?;
        shown.accounts(filled.accounts, count, filled.records);
    }
    let refilled = Refilled {
        archive: opened.id.to_string(),
        log,
        next_log: sources.log.next_log,
        told,
        standings,
        ..Refilled::default()
    };
    applier.apply(Input::Refilled(Box::new(refilled))).await?;
    Ok(filled)
}
