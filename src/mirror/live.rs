#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! What a host has of an account just now, for a comparison: read whole, loaded nowhere.

use crate::repo::commit::Commit;
use crate::repo::mst::{BlockSource as _, MstError, WalkLimits, walk};
use crate::types::{Cid, Did, Rev};

use super::resync::Fetcher;

/// What a host's export holds.
pub struct LivePaths {
    /// The rev of its head.
    pub rev: Rev,
    /// Its head.
    pub commit: Cid,
    /// Every path and its record.
    pub paths: std::collections::BTreeMap<String, Cid>,
}

impl Fetcher {
    /// What the host's export holds now: paths and CIDs. Complete, but its signature is not looked at.
    ///
    /// # Errors
    /// One line for a person.
    pub async fn live_paths(&self, did: &Did, url: &str) -> Result<LivePaths, String> {
        let spool = self
            .download(did, url, None)
            .await
            .map_err(|failed| failed.failure.to_string())?;
        let read = tokio::task::spawn_blocking(move || {
            let car = spool.index().map_err(|error| error.to_string())?;
            let commit = *car.roots().first().ok_or("the CAR has no root")?;
            let block = car.block(&commit).map_err(|error| error.to_string())?;
            let block = block.ok_or("the CAR lacks its commit")?;
            let head = Commit::decode(&block).map_err(|error| error.to_string())?;
            let mut paths = std::collections::BTreeMap::new();
            walk(&car, head.data, &WalkLimits::default(), |path, cid| {
                paths.insert(String::from_utf8_lossy(path).into_owned(), cid);
                Ok::<(), MstError>(())
            })
            .map_err(|error| error.to_string())?;
            Ok(LivePaths {
                rev: head.rev,
                commit,
                paths,
            })
        });
        read.await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}
