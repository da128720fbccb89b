#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! Catching up with `getRepo?since=`: what is newer than our head comes over the network, the rest is ours already.
//!
//! What the host sends is laid over an export of our own copy, and the two together have to pass the very walk
//! that a whole repository passes: every node and every record of the signed tree is there, in one or the other,
//! and hashes. So it does not matter what a host makes of `since`. One that does not know it sends everything;
//! one that was restored, that tears its export under a commit, or that leaves out too much sends what does not
//! prove, and then the repository is fetched whole, as if nothing had been asked.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::load::is_behind;
use super::{Failed, Fetcher, blocking};
use crate::mirror::input::{FetchFailure, FetchedContent};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, DesyncReason, Head, SyncState};
use crate::mirror::spool::{IndexedCar, Spool, SpoolWriter};
use crate::mirror::store::StoreError;
use crate::repo::export::{ExportError, prove};
use crate::repo::mst::BlockSource;
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did};
use crate::verify::HeadKey;

/// What fetching repositories cost, and what catching up spared. Only ever grows.
#[derive(Debug, Default)]
pub struct FetchCounts {
    /// Catch-ups that proved.
    pub caught_up: AtomicU64,
    /// Catch-ups after which the repository was fetched whole.
    pub fell_back: AtomicU64,
    /// Bytes received for catch-ups.
    pub since_bytes: AtomicU64,
    /// Bytes received of whole repositories.
    pub whole_bytes: AtomicU64,
}

impl FetchCounts {
    pub(super) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

/// Two CARs as one: what is newer, and what is ours.
struct Overlay<'c> {
    newer: &'c IndexedCar,
    ours: &'c IndexedCar,
}

impl BlockSource for Overlay<'_> {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        match self.newer.block(cid)? {
            Some(block) => Ok(Some(block)),
            None => self.ours.block(cid),
        }
    }
}

impl Fetcher {
    /// Whether there is something to catch up from.
    pub(super) fn base_of(row: &AccountRow, reason: DesyncReason) -> Option<&Head> {
        let behind = row.diverged_before_fetch || matches!(row.sync, SyncState::Diverged { .. });
        let usable = reason != DesyncReason::CopyDamaged && !behind;
        row.head.as_ref().filter(|_| usable)
    }

    /// Fetches what is newer than our head, and loads what it makes together with ours. `None`: it makes nothing
    /// that proves, and the repository has to be fetched whole.
    pub(super) async fn catch_up(
        &self,
        did: &Did,
        row: &AccountRow,
        head: &Head,
        key: &SigningKey,
        url: &str,
    ) -> Result<Result<Option<FetchedContent>, Failed>, StoreError> {
        let spool = match self.download(did, url, Some(head.rev)).await {
            Ok(spool) => spool,
            // What says that nothing at all is to be had now, or that we ask too much.
            Err(failed) if failed.wait.is_some() => return Ok(Err(failed)),
            Err(failed) if matches!(failed.failure, FetchFailure::Inactive(_) | FetchFailure::NotFound) => {
                return Ok(Err(failed));
            }
            // Some hosts refuse `since`.
            Err(_) => return Ok(Ok(self.fell_back(did, "the host does not answer it"))),
        };
        FetchCounts::add(&self.counts.since_bytes, spool.bytes());
        let (this, owner, key) = (self.clone(), did.clone(), key.clone());
        let (base, from_number) = (head.clone(), row.account_number);
        let now = self.clock.now();
        let number = self.numbers.next()?;
        let laid = blocking(move || {
            let newer = match spool.index() {
                Ok(newer) => newer,
                Err(error) => return Ok(Err(error.to_string())),
            };
            let Some(root) = newer.roots().first().copied() else {
                return Ok(Err("its CAR has no root".to_owned()));
            };
            let ours = match this.own_export(from_number, &base)? {
                Ok(ours) => ours,
                Err(why) => return Ok(Err(why)),
            };
            let both = Overlay {
                newer: &newer,
                ours: &ours,
            };
            let loaded = this.load(&both, root, number, &owner, HeadKey::Current(&key), now);
            match this.loaded_or_unloaded(loaded, number)? {
                Ok(FetchedContent::Loaded { repo, .. }) if is_behind(&repo, (base.rev, base.commit)) => {
                    this.unload(number)?;
                    Ok(Err("the host is behind us".to_owned()))
                }
                loaded => Ok(loaded.map_err(|fault| fault.to_string())),
            }
        })
        .await?;
        Ok(Ok(match laid {
            Ok(content) => {
                FetchCounts::add(&self.counts.caught_up, 1);
                Some(content)
            }
            Err(why) => self.fell_back(did, &why),
        }))
    }

    fn fell_back(&self, did: &Did, why: &str) -> Option<FetchedContent> {
        tracing::debug!(%did, why, "what is newer does not prove with what we hold; the repository is fetched whole");
        FetchCounts::add(&self.counts.fell_back, 1);
        None
    }

    /// Our own copy as a CAR, if it proves.
    fn own_export(&self, number: u64, head: &Head) -> Result<Result<IndexedCar, String>, StoreError> {
        let mut out = SpoolWriter {
            spool: Spool::new(),
            dir: &self.spool_dir,
        };
        let view = self.store.view();
        let rows = Mirror::new(&*view).rows(number);
        let written = prove(&rows, head.data)
            .and_then(|proven| proven.write_car(&rows, head.commit, &head.commit_block, &mut out));
        match written {
            Ok(_) => Ok(out.spool.index().map_err(|error| error.to_string())),
            // Our own damage is found and said where the copy is served or snapshotted; here it is only no base.
            Err(ExportError::Rows(StoreError::BadRow { .. } | StoreError::Corrupt { .. })) => {
                Ok(Err("our own copy cannot be read".to_owned()))
            }
            Err(ExportError::Rows(error)) => Err(error),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}
