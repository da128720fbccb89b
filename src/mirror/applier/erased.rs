//! What a person wants gone: out of every row, and not taken again.
//!
//! Rows of the log that are not shipped yet stay, without the bytes: their order and numbers are fixed.

use std::ops::ControlFlow;

use super::super::erased::{self, ErasedMark, ErasedRow, is_withheld};
use super::super::input::{BlobKey, Erase};
use super::super::keyspace::{self, NO_NUMBER};
use super::super::reader::{Mirror, Record};
use super::super::rows::{AccountRow, BlobState, DesyncReason, JournalOp, Row as _, SyncState};
use super::super::store::{Family, StoreError};
use super::{Applier, Group};
use crate::repo::record::scan_record;
use crate::types::{AccountStatus, Cid, Did, RepoPath, Rev, Timestamp};

impl Applier {
    /// What is erased of an account, if anything is.
    pub(super) fn erased_of(
        group: &Group<'_>,
        did: &Did,
        row: &AccountRow,
    ) -> Result<Option<ErasedRow>, StoreError> {
        match row.erased {
            Some(_) => Mirror::new(group.stage.store()).erased(did),
            None => Ok(None),
        }
    }

    /// Lets go of what is to be erased.
    pub(super) fn on_erase(&mut self, group: &mut Group<'_>, erase: &Erase) -> Result<(), StoreError> {
        let did = &erase.did;
        if !erase.lasting && erase.whole && !self.is_long_gone(group, did)? {
            return Ok(());
        }
        let mut known = Mirror::new(group.stage.store()).erased(did)?.unwrap_or_default();
        known.whole |= erase.whole && erase.lasting;
        known.add(&erase.records, &erase.blobs);
        if erase.lasting {
            group
                .stage
                .batch()
                .put(Family::Meta, erased::key(did), known.encode());
        }
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        if erase.lasting {
            row.erased = Some(known.mark());
        }
        Self::blank_journal(group, &mut row, |cid| erase.whole || known.withholds(cid))?;
        if (erase.kept_car || erase.whole)
            && let Some(car) = row.kept_car.take()
        {
            Self::drop_number(group, car.number);
        }
        if row.parked > 0 {
            Self::drop_parked(group, did, &mut row)?;
        }
        if erase.whole {
            Self::drop_all(group, &mut row)?;
        } else {
            let mut numbers: Vec<u64> = row.pins.iter().filter_map(|pin| pin.generation).collect();
            numbers.push(row.account_number);
            numbers.sort_unstable();
            numbers.dedup();
            for number in numbers.into_iter().filter(|number| *number != NO_NUMBER) {
                let blanked = Self::blank_records(group, number, &known)?;
                if number == row.account_number {
                    row.record_bytes = row.record_bytes.saturating_sub(blanked);
                }
            }
        }
        for digest in &erase.blobs {
            Self::erase_blob(group, row.did_number, digest)?;
        }
        group.stage.put_account(did, row);
        Ok(())
    }

    /// Whether an account is deleted still, and nothing holds it: it may have come back since somebody looked.
    fn is_long_gone(&self, group: &mut Group<'_>, did: &Did) -> Result<bool, StoreError> {
        let Some(row) = self.account(group, did)? else {
            return Ok(false);
        };
        let deleted = row.upstream == AccountStatus::Deleted && row.deletion_confirmed_at.is_some();
        Ok(deleted && !Mirror::new(group.stage.store()).is_pinned(did, &row)?)
    }

    /// Takes the bytes out of a generation's rows, with what they referred to. Returns how many bytes.
    pub(super) fn blank_records(
        group: &mut Group<'_>,
        number: u64,
        known: &ErasedRow,
    ) -> Result<u64, StoreError> {
        let mut found: Vec<(RepoPath, Record)> = Vec::new();
        let mut bad = None;
        Mirror::new(group.stage.store()).scan_records(number, None, &mut |path, record| {
            let cid = record.cid();
            if known.withholds(&cid) && !is_withheld(&cid, record.bytes) {
                match RepoPath::from_bytes(path) {
                    Ok(path) => found.push((
                        path,
                        Record {
                            rev: record.rev,
                            cid,
                            bytes: record.bytes.to_vec(),
                        },
                    )),
                    Err(error) => bad = Some(StoreError::bad_row(Family::Records, path, error)),
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = bad {
            return Err(error);
        }
        let mut bytes = 0;
        for (path, mut record) in found {
            bytes += record.bytes.len() as u64;
            for blob in scan_record(&record.bytes).blobs {
                group.stage.delete_blob_ref(number, blob.cid.digest(), &path);
            }
            record.bytes.clear();
            group.stage.put_record(number, &path, record);
        }
        Ok(bytes)
    }

    /// Takes the bytes out of operations.
    pub(super) fn blank_ops(ops: &mut [JournalOp], known: &ErasedRow) {
        for op in ops {
            if op.cid.is_some_and(|cid| known.withholds(&cid)) {
                op.bytes = None;
            }
        }
    }

    fn blank_journal(
        group: &mut Group<'_>,
        row: &mut AccountRow,
        gone: impl Fn(&Cid) -> bool,
    ) -> Result<(), StoreError> {
        let mut changed: Vec<(Rev, _)> = Vec::new();
        let mirror = Mirror::new(group.stage.store());
        mirror.each_journal_entry(row.did_number, None, |rev, mut entry| {
            let mut any = false;
            for op in &mut entry.ops {
                if op.bytes.is_some() && op.cid.is_some_and(|cid| gone(&cid)) {
                    (op.bytes, any) = (None, true);
                }
            }
            if any {
                changed.push((rev, entry));
            }
            ControlFlow::Continue(())
        })?;
        for (rev, entry) in changed {
            group.stage.put_journal(row.did_number, rev, &entry);
        }
        Ok(())
    }

    /// Frames that wait hold what they bring. The account is fetched instead.
    fn drop_parked(group: &mut Group<'_>, did: &Did, row: &mut AccountRow) -> Result<(), StoreError> {
        let parked = Mirror::new(group.stage.store()).parked(row.did_number, usize::MAX)?;
        let newest = parked.iter().map(|(_, frame)| frame.rev).max();
        let (from, to) = keyspace::number_bounds(row.did_number);
        group
            .stage
            .batch()
            .delete_range(Family::Parked, from.to_vec(), to.to_vec());
        (row.parked, row.parked_bytes) = (0, 0);
        row.awaiting_identity = false;
        Self::want(group, did, row, DesyncReason::ParkedOverflow, newest);
        Ok(())
    }

    fn drop_number(group: &mut Group<'_>, number: u64) {
        if number == NO_NUMBER {
            return;
        }
        let (from, to) = keyspace::number_bounds(number);
        for family in [Family::Records, Family::BlobRefs, Family::BlobData] {
            group
                .stage
                .batch()
                .delete_range(family, from.to_vec(), to.to_vec());
        }
    }

    /// Everything of an account but its row, and what the log has still to tell of it.
    fn drop_all(group: &mut Group<'_>, row: &mut AccountRow) -> Result<(), StoreError> {
        Self::drop_number(group, row.account_number);
        for generation in row.pins.drain(..).filter_map(|pin| pin.generation) {
            Self::drop_number(group, generation);
        }
        let mut blobs = Vec::new();
        let mut after = None;
        loop {
            let page = Mirror::new(group.stage.store()).blobs_page(row.did_number, after.as_ref(), 1024)?;
            after = page.last().map(|(digest, _)| *digest);
            blobs.extend(page.iter().map(|(digest, _)| *digest));
            if page.len() < 1024 {
                break;
            }
        }
        let lasting = row.erased == Some(ErasedMark::Whole);
        for digest in blobs {
            Self::erase_blob(group, row.did_number, &digest)?;
            if !lasting && let Some(mut blob) = group.stage.blob(row.did_number, &digest)? {
                // Should the account come back, its blobs may too.
                blob.state = BlobState::Withdrawn;
                group.stage.put_blob(row.did_number, &digest, blob);
            }
        }
        row.account_number = NO_NUMBER;
        row.head = None;
        // Should it come back, what the directory says of it is archived again.
        row.identity_archived = None;
        (row.records, row.record_bytes) = (0, 0);
        (row.snapshot, row.min_rev) = (None, None);
        row.sync = SyncState::Live;
        Ok(())
    }

    fn erase_blob(group: &mut Group<'_>, did_number: u64, digest: &[u8; 32]) -> Result<(), StoreError> {
        let range = keyspace::blob_data_range(did_number, digest);
        if let Some(to) = range.to() {
            group
                .stage
                .batch()
                .delete_range(Family::BlobData, range.from().to_vec(), to.to_vec());
        }
        let blob = group.stage.blob(did_number, digest)?;
        let mut blob = blob.unwrap_or_else(|| super::super::rows::BlobRow::wanted(None, None, group.now));
        blob.state = BlobState::Erased;
        blob.withheld_since = None;
        group.stage.put_blob(did_number, digest, blob);
        Ok(())
    }

    /// A blob that came after all, though it is erased.
    pub(super) fn refuse_blob(group: &mut Group<'_>, blob: &BlobKey) -> Result<(), StoreError> {
        Self::erase_blob(group, blob.did_number, &blob.digest)
    }

    /// The archive is to lose a blob to which nothing refers: should a record refer to it again, it is fetched. What was
    /// needed since `before`, when the search for what refers to it began, is not let go of.
    pub(super) fn on_blob_dropped(
        &mut self,
        group: &mut Group<'_>,
        blob: &BlobKey,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let (Some(account), Some(mut row)) = (
            self.account(group, &blob.did)?,
            group.stage.blob(blob.did_number, &blob.digest)?,
        ) else {
            return Ok(());
        };
        let referenced =
            Mirror::new(group.stage.store()).blob_is_referenced(account.account_number, &blob.digest)?;
        let pinned = Mirror::new(group.stage.store()).is_pinned(&blob.did, &account)?;
        let needed = account.kept_car.is_some() || row.needed_at.is_none_or(|at| at >= before);
        let listed = row.needed_at >= account.blobs_listed_at;
        if referenced || pinned || needed || listed || row.state == BlobState::Erased {
            return Ok(());
        }
        row.state = BlobState::Withdrawn;
        row.withheld_since = None;
        let range = keyspace::blob_data_range(blob.did_number, &blob.digest);
        if let Some(to) = range.to() {
            group
                .stage
                .batch()
                .delete_range(Family::BlobData, range.from().to_vec(), to.to_vec());
        }
        group.stage.put_blob(blob.did_number, &blob.digest, row);
        Ok(())
    }
}
