#![allow(clippy::disallowed_methods, reason = "shell: the mirror, the bucket")]
//! Puts what led from one snapshot to the next into the archive: the journal's changes, as deltas.

use std::sync::Arc;

use super::super::bucket::{Body, PutOptions};
use super::super::content_type::ContentType;
use super::super::log_cut::next_delta;
use super::super::log_file::{Entry, LogFile};
use super::super::names::{DeltaName, DidFolder};
use super::super::shipper::pack;
use super::super::snapshot_file::FileStats;
use super::{Failed, Keeper};
use crate::mirror::reader::Mirror;
use crate::mirror::store::StoreError;
use crate::types::{Did, HostName, Rev};

/// A stretch of an account's journal.
#[derive(Clone)]
pub(super) struct Behind {
    pub(super) did: Did,
    pub(super) did_number: u64,
    /// The account's host now: of changes that do not name theirs.
    pub(super) host: HostName,
    pub(super) from: Rev,
    pub(super) to: Rev,
}

/// A delta that is to be put.
struct MadeDelta {
    name: String,
    body: Vec<u8>,
    stats: FileStats,
    /// The rev that it leads to.
    reached: Rev,
}

impl Keeper {
    /// Puts what led to a snapshot: one delta after the other, so that a long journal takes no more memory than a
    /// short one.
    pub(super) async fn put_deltas(
        self: &Arc<Self>,
        folder: &DidFolder,
        mut behind: Behind,
    ) -> Result<(), Failed> {
        loop {
            let (this, folder, stretch) = (Arc::clone(self), folder.clone(), behind.clone());
            let made = tokio::task::spawn_blocking(move || this.make_delta(folder, &stretch)).await;
            let made = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            let Some(delta) = made? else { return Ok(()) };
            let options = PutOptions {
                sha256: Some(delta.stats.sha256),
                ..PutOptions::create(ContentType::zstd())
            };
            // One that is there is an earlier try of ours: the name says which commits it leads over.
            let body = Body::Bytes(delta.body.into());
            self.put(&delta.name, body, delta.stats.file_bytes, &options)
                .await?;
            behind.from = delta.reached;
        }
    }

    /// The next delta of a stretch; none at its end.
    fn make_delta(&self, folder: DidFolder, behind: &Behind) -> Result<Option<MadeDelta>, Failed> {
        let Behind {
            did,
            did_number,
            host,
            from,
            to,
        } = behind;
        let view = self.store.view();
        let made = next_delta(&Mirror::new(&*view), did, *did_number, host, (*from, *to));
        let (file, reached) = match made {
            Ok(Some(made)) => made,
            Ok(None) => return Ok(None),
            // The snapshot stands for itself; the moments before it stay in the segments.
            Err(error @ (StoreError::BadRow { .. } | StoreError::Corrupt { .. })) => {
                tracing::error!(%did, %from, "the journal of this account is damaged ({error}); no delta is made of it");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let Some(Entry::Commit(last) | Entry::Swap(last)) = file.index.entries.last() else {
            return Ok(None);
        };
        let name = DeltaName::new(folder, *from, reached, *last.commit.digest())
            .map_err(|error| Failed::Name(error.to_string()))?
            .to_string();
        let car = file.encode_car();
        // What nobody could read again must not stand for what the journal holds.
        if let Err(error) = LogFile::decode(&*car) {
            tracing::error!(%did, "{name} could not be read again ({error}); it is not archived, please report this");
            return Ok(None);
        }
        let (body, stats) = pack(&car);
        Ok(Some(MadeDelta {
            name,
            body,
            stats,
            reached,
        }))
    }
}
