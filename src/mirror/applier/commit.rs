//! A verified commit that chains: its rows.

use bytes::Bytes;

use super::super::input::BlobMention;
use super::super::keyspace::Task;
use super::super::reader::{Mirror, Record};
use super::super::rows::{
    AccountRow, BlobRow, BlobState, DesyncReason, Head, HeadSigner, JournalEntry, JournalOp, SyncState,
};
use super::super::store::StoreError;
use super::events::Arrival;
use super::{Applier, Group, Note};
use crate::repo::record::scan_record;
use crate::types::{Cid, Did, Digest, HostName, RepoPath};
use crate::verify::{
    CommitProof, PutRecord, RejectReason, SignedCommit, VerifiedCommit, VerifiedLegacy, VerifiedOp,
    VerifiedSync,
};

/// What one operation does to the rows of an account.
struct RowChange<'c> {
    path: &'c RepoPath,
    /// Our row, which it replaces or deletes.
    old: Option<Record>,
    /// What stands there then; the bytes hash to the CID.
    new: Option<(Cid, Bytes)>,
}

/// Why a proven commit cannot be applied: what to do about the row, or the gate that it fails after all.
enum Unfit {
    /// Our rows are not what our head says.
    CopyDamaged,
    Gate(RejectReason),
}

impl Applier {
    /// Applies a commit that builds on the head. The rows that it replaces are compared with what it says they
    /// were: if they differ, the mirror is not what its head says, and is fetched again. A commit of an older
    /// host says less, so its tree is rebuilt from all rows first.
    ///
    /// Returns the row and the gate, if it fails one for which our own records were needed.
    pub(super) fn apply_commit(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        arrival: &Arrival,
        proof: &CommitProof,
    ) -> Result<Result<(), (AccountRow, RejectReason)>, StoreError> {
        let (signed, changes) = match proof {
            CommitProof::Inverted(commit) => (commit.signed(), self.proven_changes(group, &row, commit)?),
            CommitProof::Legacy(commit) => (commit.signed(), self.rebuilt_changes(group, &row, commit)?),
        };
        match changes {
            Ok(changes) => self.write_changes(group, did, row, arrival, signed, changes)?,
            Err(Unfit::CopyDamaged) => {
                Self::want(group, did, &mut row, DesyncReason::CopyDamaged, None);
                group.stage.put_account(did, row);
            }
            Err(Unfit::Gate(reason)) => return Ok(Err((row, reason))),
        }
        Ok(Ok(()))
    }

    /// Takes over a newer commit that signs the tree which we hold.
    pub(super) fn apply_same_tree(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        row: AccountRow,
        arrival: &Arrival,
        sync: &VerifiedSync,
    ) -> Result<(), StoreError> {
        debug_assert_eq!(
            row.head.as_ref().map(|head| head.data),
            Some(sync.signed().data())
        );
        self.write_changes(group, did, row, arrival, sync.signed(), Vec::new())
    }

    /// The changes of a commit whose operations were undone; our rows must be what it says that it replaces.
    fn proven_changes<'c>(
        &self,
        group: &mut Group<'_>,
        row: &AccountRow,
        commit: &'c VerifiedCommit,
    ) -> Result<Result<Vec<RowChange<'c>>, Unfit>, StoreError> {
        let (mut olds, mut news) = (Vec::new(), Vec::new());
        for op in commit.ops() {
            let (prev, new) = match op {
                VerifiedOp::Put { cid, prev, bytes, .. } => (*prev, Some((*cid, bytes.clone()))),
                VerifiedOp::Delete { prev, .. } => (Some(*prev), None),
            };
            let old = match prev {
                Some(_) => group.stage.record(row.account_number, op.path())?,
                None => None,
            };
            if old.as_ref().map(|old| old.cid) != prev {
                return Ok(Err(Unfit::CopyDamaged));
            }
            olds.push(old);
            news.push((op.path(), new));
        }
        self.complete(group, row, olds, news)
    }

    /// The changes of an older host's commit, if our rows with them build the tree that it signs.
    fn rebuilt_changes<'c>(
        &self,
        group: &mut Group<'_>,
        row: &AccountRow,
        commit: &'c VerifiedLegacy,
    ) -> Result<Result<Vec<RowChange<'c>>, Unfit>, StoreError> {
        let unproven = Ok(Err(Unfit::Gate(RejectReason::Legacy)));
        let same_tree = row
            .head
            .as_ref()
            .is_some_and(|head| head.data == commit.signed().data());
        if !(commit.ops().is_empty() && same_tree) {
            if !self.may_read_all(group, row) {
                return unproven;
            }
            let changes = commit
                .ops()
                .iter()
                .map(|op| (op.path(), op.put().map(|(cid, _)| *cid)));
            let root = group.stage.root_with(row.account_number, changes)?;
            if root != Some(commit.signed().data()) {
                return unproven;
            }
        }
        let (mut olds, mut news) = (Vec::new(), Vec::new());
        for op in commit.ops() {
            olds.push(group.stage.record(row.account_number, op.path())?);
            news.push((op.path(), op.put().cloned()));
        }
        self.complete(group, row, olds, news)
    }

    /// Gives records that the event left out the bytes that are held of them.
    fn complete<'c>(
        &self,
        group: &mut Group<'_>,
        row: &AccountRow,
        olds: Vec<Option<Record>>,
        news: Vec<(&'c RepoPath, Option<PutRecord>)>,
    ) -> Result<Result<Vec<RowChange<'c>>, Unfit>, StoreError> {
        let mut held = Vec::with_capacity(news.len());
        for (_, new) in &news {
            let Some((cid, bytes)) = new else {
                held.push(None);
                continue;
            };
            let bytes = match bytes {
                Some(bytes) => Some(bytes.clone()),
                None => self.held_record(group, row, &olds, *cid)?,
            };
            let Some(bytes) = bytes else {
                return Ok(Err(Unfit::Gate(RejectReason::RecordMissing)));
            };
            held.push(Some((*cid, bytes)));
        }
        let changes = news.into_iter().zip(olds).zip(held);
        Ok(Ok(changes
            .map(|(((path, _), old), new)| RowChange { path, old, new })
            .collect()))
    }

    /// Whether all records of an account may be read to judge one commit: the others wait meanwhile.
    const fn may_read_all(&self, group: &mut Group<'_>, row: &AccountRow) -> bool {
        let sum = group.rebuilt.saturating_add(row.records);
        if row.records > self.limits.rebuild_records_max || sum > self.limits.rebuild_records_per_group_max {
            return false;
        }
        group.rebuilt = sum;
        true
    }

    /// The bytes of a record that this account holds under this CID, or that this very commit replaces.
    fn held_record(
        &self,
        group: &mut Group<'_>,
        row: &AccountRow,
        replaced: &[Option<Record>],
        cid: Cid,
    ) -> Result<Option<Bytes>, StoreError> {
        let replaced = replaced.iter().flatten().find(|old| old.cid == cid);
        let found = match replaced {
            Some(old) => Some(old.bytes.clone()),
            None if self.may_read_all(group, row) => group.stage.find_record(row.account_number, cid)?,
            None => None,
        };
        Ok(found.filter(|bytes| cid.matches(bytes)).map(Bytes::from))
    }

    fn write_changes(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        arrival: &Arrival,
        commit: &SignedCommit,
        changes: Vec<RowChange<'_>>,
    ) -> Result<(), StoreError> {
        let number = row.account_number;
        let deleted = changes.iter().filter(|change| change.new.is_none()).count() as u64;
        let before = row.records;
        self.count_deletes(group, did, &mut row, deleted, before)?;
        let erased = Self::erased_of(group, did, &row)?;
        let mut noncanonical = 0;
        let mut released = Vec::new();
        let mut journal_ops = Vec::with_capacity(changes.len());
        for RowChange { path, old, new } in changes {
            if let Some(old) = old {
                row.records = row.records.saturating_sub(1);
                row.record_bytes = row.record_bytes.saturating_sub(old.bytes.len() as u64);
                for blob in scan_record(&old.bytes).blobs {
                    group.stage.delete_blob_ref(number, blob.cid.digest(), path);
                    released.push(*blob.cid.digest());
                }
            }
            // What was erased is told again: its place is taken note of, and not its bytes.
            let gone = |(cid, _): &(Cid, Bytes)| erased.as_ref().is_some_and(|known| known.withholds(cid));
            let is_gone = new.as_ref().is_some_and(gone);
            let new = match new {
                Some((cid, _)) if is_gone => Some((cid, Bytes::new())),
                new => new,
            };
            match &new {
                Some((cid, bytes)) => {
                    row.records += 1;
                    row.record_bytes += bytes.len() as u64;
                    let scan = scan_record(bytes);
                    noncanonical += u64::from(!scan.canonical && !is_gone);
                    for blob in scan.blobs {
                        group.stage.put_blob_ref(number, blob.cid.digest(), path);
                        let mention = BlobMention {
                            digest: *blob.cid.digest(),
                            mime: blob.mime,
                            size: blob.size,
                        };
                        Self::want_blob(group, did, row.did_number, &mention)?;
                    }
                    let record = Record {
                        rev: commit.rev(),
                        cid: *cid,
                        bytes: bytes.to_vec(),
                    };
                    group.stage.put_record(number, path, record);
                }
                None => group.stage.delete_record(number, path),
            }
            journal_ops.push(JournalOp {
                path: path.clone(),
                cid: new.as_ref().map(|(cid, _)| *cid),
                bytes: new.filter(|_| !is_gone).map(|(_, bytes)| bytes.to_vec()),
            });
        }
        for digest in released {
            if !group.stage.blob_is_referenced(number, &digest)? {
                Self::withdraw_missing(group, row.did_number, &digest)?;
                Self::note_needed(group, row.did_number, &digest)?;
            }
        }
        let entry = JournalEntry {
            commit_block: commit.block().to_vec(),
            since: row.head.as_ref().map_or(commit.rev(), |head| head.rev),
            swap: false,
            ops: journal_ops,
            time: arrival.time.unwrap_or(arrival.received),
            received: arrival.received,
            seq: arrival.seq,
            host: Some(arrival.host.clone()),
        };
        Self::log_change(group, did, &arrival.host, &mut row, commit.rev(), &entry)?;
        row.head = Some(Head {
            rev: commit.rev(),
            commit: commit.cid(),
            commit_block: commit.block().to_vec(),
            data: commit.data(),
        });
        row.head_signed_by = HeadSigner::Current;
        if let SyncState::Diverged { .. } = row.sync {
            // It builds on ours, so the host has ours again.
            row.sync = SyncState::Live;
            Self::leave_quarantine(group, did, &mut row, None)?;
        }
        self.schedule_snapshot(group, did, &mut row);
        group.stage.put_account(did, row);
        Self::note_noncanonical(group, did, &arrival.host, noncanonical);
        group.notes.push(Note::Applied {
            host: arrival.host.clone(),
            seq: arrival.seq,
            time: arrival.time,
            received: arrival.received,
        });
        Ok(())
    }

    pub(super) fn note_noncanonical(group: &mut Group<'_>, did: &Did, host: &HostName, records: u64) {
        if records > 0 {
            group.notes.push(Note::Noncanonical {
                host: host.clone(),
                did: did.clone(),
                records,
            });
        }
    }

    /// Nobody misses a blob to which no record refers any more.
    pub(super) fn withdraw_missing(
        group: &mut Group<'_>,
        did_number: u64,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        if let Some(mut row) = group.stage.blob(did_number, digest)?
            && let BlobState::Missing { .. } = row.state
        {
            row.state = BlobState::Withdrawn;
            group.stage.put_blob(did_number, digest, row);
        }
        Ok(())
    }

    /// Something refers to a blob, or ceases to: it is needed for every moment up to now.
    pub(super) fn note_needed(
        group: &mut Group<'_>,
        did_number: u64,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        if let Some(mut row) = group.stage.blob(did_number, digest)?
            && row.needed_at < Some(group.now)
        {
            row.needed_at = Some(group.now);
            group.stage.put_blob(did_number, digest, row);
        }
        Ok(())
    }

    /// Makes sure that a blob which a live record refers to is fetched.
    pub(super) fn want_blob(
        group: &mut Group<'_>,
        did: &Did,
        did_number: u64,
        blob: &BlobMention,
    ) -> Result<(), StoreError> {
        let row = match group.stage.blob(did_number, &blob.digest)? {
            None => {
                let mut row = BlobRow::wanted(blob.size, blob.mime.clone(), group.now);
                // Erased before anything of it was known here.
                let erased = Mirror::new(group.stage.store()).erased(did)?;
                if erased.is_some_and(|erased| erased.withholds_blob(&blob.digest)) {
                    row.state = BlobState::Erased;
                    group.stage.put_blob(did_number, &blob.digest, row);
                    return Ok(());
                }
                row
            }
            // It was given up or gone; a record refers to it (again), so it may be there (again).
            Some(mut row) if matches!(row.state, BlobState::Missing { .. } | BlobState::Withdrawn) => {
                row.state = BlobState::Wanted;
                row.tries = 0;
                row.needed_at = Some(group.now);
                row
            }
            // Withheld when it was asked for last: perhaps because no record referred to it there.
            Some(mut row) if row.withheld_since.is_some() => {
                row.needed_at = Some(group.now);
                row
            }
            Some(_) => return Self::note_needed(group, did_number, &blob.digest),
        };
        group.stage.put_blob(did_number, &blob.digest, row);
        group
            .stage
            .put_task(group.now, &Task::FetchBlob(did.clone(), blob.digest));
        Ok(())
    }
}
