//! What became of blobs.

use std::collections::BTreeSet;

use super::super::input::{BlobKey, BlobMention, BlobVerdict};
use super::super::keyspace::{AlarmKind, Task};
use super::super::reader::Mirror;
use super::super::rows::{BlobFailure, BlobState, SweepMark, SyncState};
use super::super::store::StoreError;
use super::gone::count_by_hour;
use super::{Applier, Group, Note};
use crate::types::{Did, Digest, HostName, Timestamp};

/// A host that does not answer is given this many tries before a blob counts as missing.
const PASSING_TRIES: u32 = 5;

/// Blobs of an account that are read at a time.
const BLOBS_PAGE: usize = 1024;
/// So many blobs, and this share of a host's, that it gives no longer within a day raise an alarm.
const WITHHELD_MIN: u64 = 10;
const WITHHELD_PERCENT: u64 = 10;

impl Applier {
    /// Blobs that are missing, and that the new generation does not mention, are missed no longer.
    pub(super) fn withdraw_unmentioned(
        group: &mut Group<'_>,
        did_number: u64,
        blobs: &[BlobMention],
    ) -> Result<(), StoreError> {
        let mentioned: BTreeSet<&Digest> = blobs.iter().map(|blob| &blob.digest).collect();
        let mut after: Option<Digest> = None;
        loop {
            let page = Mirror::new(group.stage.store()).blobs_page(did_number, after.as_ref(), BLOBS_PAGE)?;
            for (digest, row) in &page {
                if matches!(row.state, BlobState::Missing { .. }) && !mentioned.contains(digest) {
                    Self::withdraw_missing(group, did_number, digest)?;
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == BLOBS_PAGE => after = Some(*last),
                _ => return Ok(()),
            }
        }
    }

    /// A blob's bytes are in the mirror, and hashed to its CID.
    pub(super) fn on_blob_stored(
        &mut self,
        group: &mut Group<'_>,
        blob: &BlobKey,
        size: u64,
        mime: Option<String>,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = group.stage.blob(blob.did_number, &blob.digest)? else {
            return Ok(());
        };
        if row.state == BlobState::Archived {
            return Ok(());
        }
        if row.state == BlobState::Erased {
            return Self::refuse_blob(group, blob);
        }
        row.state = BlobState::Held;
        row.withheld_since = None;
        row.size = Some(size);
        row.mime = row.mime.or(mime);
        group.stage.put_blob(blob.did_number, &blob.digest, row);
        group
            .stage
            .put_task(group.now, &Task::ArchiveBlob(blob.did.clone(), blob.digest));
        Ok(())
    }

    /// A blob could not be had. If a record still refers to it, it is missing and tried again; if none does,
    /// the race with its deletion was lost, and there is nothing to miss.
    pub(super) fn on_blob_failed(
        &mut self,
        group: &mut Group<'_>,
        blob: &BlobKey,
        failure: BlobFailure,
        task: &[u8],
        retry_at: Timestamp,
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = group.stage.blob(blob.did_number, &blob.digest)? else {
            return Ok(());
        };
        if row.state == BlobState::Erased {
            return Self::refuse_blob(group, blob);
        }
        if row.state.is_stored() {
            return Ok(());
        }
        row.tries = row.tries.saturating_add(1);
        let gone = matches!(failure, BlobFailure::NotFound | BlobFailure::Refused);
        let passing = matches!(failure, BlobFailure::Unreachable | BlobFailure::HostError);
        if gone && !self.is_referenced(group, blob)? {
            row.state = BlobState::Withdrawn;
        } else if passing && row.tries < PASSING_TRIES {
            group
                .stage
                .put_task(retry_at, &Task::FetchBlob(blob.did.clone(), blob.digest));
        } else {
            let known = matches!(row.state, BlobState::Missing { reason, .. } if reason == failure);
            if !known && let Some(account) = self.account(group, &blob.did)? {
                group.notes.push(Note::BlobMissing {
                    host: account.host,
                    did: blob.did.clone(),
                    cid: blob.cid(),
                    failure,
                });
            }
            row.state = BlobState::Missing {
                reason: failure,
                tries: row.tries,
            };
            group
                .stage
                .put_task(retry_at, &Task::FetchBlob(blob.did.clone(), blob.digest));
        }
        group.stage.put_blob(blob.did_number, &blob.digest, row);
        Ok(())
    }

    fn is_referenced(&self, group: &mut Group<'_>, blob: &BlobKey) -> Result<bool, StoreError> {
        let Some(account) = self.account(group, &blob.did)? else {
            return Ok(false);
        };
        Mirror::new(group.stage.store()).blob_is_referenced(account.account_number, &blob.digest)
    }

    /// A held blob is damaged: what is left of it goes, and it is fetched again.
    pub(super) fn on_blob_lost(
        &mut self,
        group: &mut Group<'_>,
        blob: &BlobKey,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = group.stage.blob(blob.did_number, &blob.digest)? else {
            return Ok(());
        };
        if row.state == BlobState::Held {
            row.state = BlobState::Wanted;
            row.tries = 0;
            group.stage.put_blob(blob.did_number, &blob.digest, row);
            group
                .stage
                .put_task(group.now, &Task::FetchBlob(blob.did.clone(), blob.digest));
        }
        Ok(())
    }

    /// A blob stands in the archive: its chunks here may go.
    pub(super) fn on_blob_archived(
        &mut self,
        group: &mut Group<'_>,
        blob: &BlobKey,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = group.stage.blob(blob.did_number, &blob.digest)? else {
            return Ok(());
        };
        if row.state == BlobState::Held {
            row.state = BlobState::Archived;
            group.stage.put_blob(blob.did_number, &blob.digest, row);
        }
        Ok(())
    }

    /// A host was asked again for some of the blobs that we hold of it.
    pub(super) fn on_blobs_swept(
        &mut self,
        group: &mut Group<'_>,
        host: &HostName,
        verdicts: Vec<BlobVerdict>,
        mark: SweepMark,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let mut withheld = 0;
        for verdict in verdicts {
            withheld += u64::from(self.on_blob_verdict(group, host, &verdict)?);
        }
        let Some(mut row) = group.stage.host(host)? else {
            return Ok(());
        };
        group.stage.put_task(mark.next, &Task::SweepBlobs(host.clone()));
        let stored = mark.stored;
        row.sweep = Some(mark);
        let mut sum = 0;
        if withheld > 0 {
            sum = count_by_hour(&mut row.withheld, group.now, withheld);
        }
        let many = sum >= WITHHELD_MIN && sum.saturating_mul(100) >= stored.saturating_mul(WITHHELD_PERCENT);
        if many {
            row.withheld.clear();
        }
        group.stage.put_host(host, row);
        if many {
            let message = format!(
                "{host} gives {sum} of {stored} blobs no longer that it gave a day ago: taken down, or lost there. They \
                 are kept here, and not served until it gives them again"
            );
            Self::raise(group, host, AlarmKind::BlobsWithheld, "", message, Vec::new())?;
        }
        Ok(())
    }

    /// What a host gives no longer is kept, and not served until it gives it again. Returns whether it is withheld
    /// from now on.
    pub(super) fn on_blob_verdict(
        &mut self,
        group: &mut Group<'_>,
        host: &HostName,
        verdict: &BlobVerdict,
    ) -> Result<bool, StoreError> {
        let BlobVerdict { blob, served } = verdict;
        // Meanwhile it may have moved, or been turned off: then this says nothing of the blob.
        let speaks = self.account(group, &blob.did)?.is_some_and(|account| {
            let away = matches!(account.sync, SyncState::Moved { .. });
            account.host == *host && account.upstream.is_active() && !away
        });
        let row = group.stage.blob(blob.did_number, &blob.digest)?;
        let Some(mut row) = row.filter(|row| speaks && row.state.is_stored()) else {
            return Ok(false);
        };
        if row.withheld_since.is_none() == *served {
            return Ok(false);
        }
        row.withheld_since = (!served).then_some(group.now);
        group.stage.put_blob(blob.did_number, &blob.digest, row);
        group.notes.push(Note::BlobWithheld {
            host: host.clone(),
            did: blob.did.clone(),
            cid: blob.cid(),
            withheld: !served,
        });
        Ok(!served)
    }

    /// The host lists blobs of an account. One that no record mentions, as far as we can read records, is
    /// fetched all the same. `complete`: these were the last, and it was asked for the first at this time.
    pub(super) fn on_blobs_listed(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        digests: &[Digest],
        complete: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let Some(mut account) = self.account(group, did)? else {
            return Ok(());
        };
        let (number, did_number) = (account.account_number, account.did_number);
        if account.blobs_listed_at < complete {
            account.blobs_listed_at = complete;
            group.stage.put_account(did, account);
        }
        for digest in digests {
            if group.stage.blob(did_number, digest)?.is_some() {
                if !group.stage.blob_is_referenced(number, digest)? {
                    Self::note_needed(group, did_number, digest)?;
                }
            } else {
                let mention = BlobMention {
                    digest: *digest,
                    mime: None,
                    size: None,
                };
                Self::want_blob(group, did, did_number, &mention)?;
            }
        }
        Ok(())
    }
}
