//! A verified commit that chains: its rows.

use super::super::input::BlobMention;
use super::super::keyspace::Task;
use super::super::reader::Record;
use super::super::rows::{
    AccountRow, BlobRow, BlobState, DesyncReason, Head, HeadSigner, JournalEntry, JournalOp,
};
use super::super::store::StoreError;
use super::events::Arrival;
use super::{Applier, Group, Note};
use crate::repo::record::scan_record;
use crate::types::Did;
use crate::verify::{VerifiedCommit, VerifiedOp};

impl Applier {
    /// Applies a commit whose `prevData` is the head's data. The rows that it replaces are compared with
    /// what it says they were: if they differ, the mirror is not what its head says, and is fetched again.
    pub(super) fn apply_commit(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        arrival: &Arrival,
        commit: &VerifiedCommit,
    ) -> Result<(), StoreError> {
        let Some(replaced) = replaced_records(group, row.account_number, commit)? else {
            Self::want(group, did, &mut row, DesyncReason::CopyDamaged, None);
            group.stage.put_account(did, row);
            return Ok(());
        };
        let number = row.account_number;
        let deleted = commit
            .ops()
            .iter()
            .filter(|op| matches!(op, VerifiedOp::Delete { .. }))
            .count() as u64;
        let before = row.records;
        Self::count_deletes(group, did, &mut row, deleted, before)?;
        let mut journal_ops = Vec::with_capacity(commit.ops().len());
        for (op, old) in commit.ops().iter().zip(replaced) {
            if let Some(old) = old {
                row.records = row.records.saturating_sub(1);
                row.record_bytes = row.record_bytes.saturating_sub(old.bytes.len() as u64);
                for blob in scan_record(&old.bytes).blobs {
                    group.stage.delete_blob_ref(number, blob.cid.digest(), op.path());
                }
            }
            match op {
                VerifiedOp::Put { path, cid, bytes, .. } => {
                    row.records += 1;
                    row.record_bytes += bytes.len() as u64;
                    for blob in scan_record(bytes).blobs {
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
                    journal_ops.push(JournalOp {
                        path: path.clone(),
                        cid: Some(*cid),
                        bytes: Some(bytes.to_vec()),
                    });
                }
                VerifiedOp::Delete { path, .. } => {
                    group.stage.delete_record(number, path);
                    journal_ops.push(JournalOp {
                        path: path.clone(),
                        cid: None,
                        bytes: None,
                    });
                }
            }
        }
        let entry = JournalEntry {
            commit_block: commit.block().to_vec(),
            ops: journal_ops,
            time: arrival.time.unwrap_or(arrival.received),
            received: arrival.received,
            seq: arrival.seq,
        };
        row.journal_bytes += group.stage.put_journal(number, commit.rev(), &entry) as u64;
        row.journal_commits += 1;
        row.head = Some(Head {
            rev: commit.rev(),
            commit: commit.cid(),
            commit_block: commit.block().to_vec(),
            data: commit.data(),
        });
        row.head_signed_by = HeadSigner::Current;
        self.schedule_snapshot(group, did, &mut row);
        group.stage.put_account(did, row);
        group.notes.push(Note::Applied {
            host: arrival.host.clone(),
            seq: arrival.seq,
            time: arrival.time,
        });
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
            None => BlobRow::wanted(blob.size, blob.mime.clone(), group.now),
            // It was given up or gone; a record refers to it (again), so it may be there (again).
            Some(mut row) if matches!(row.state, BlobState::Missing { .. } | BlobState::Withdrawn) => {
                row.state = BlobState::Wanted;
                row.tries = 0;
                row
            }
            Some(_) => return Ok(()),
        };
        group.stage.put_blob(did_number, &blob.digest, row);
        group
            .stage
            .put_task(group.now, &Task::FetchBlob(did.clone(), blob.digest));
        Ok(())
    }
}

/// The records that a commit's operations replace or delete, in the order of its operations; `None` when
/// the mirror does not hold what the commit says was there.
fn replaced_records(
    group: &Group<'_>,
    account_number: u64,
    commit: &VerifiedCommit,
) -> Result<Option<Vec<Option<Record>>>, StoreError> {
    let mut replaced = Vec::with_capacity(commit.ops().len());
    for op in commit.ops() {
        let (VerifiedOp::Put { prev: Some(prev), .. } | VerifiedOp::Delete { prev, .. }) = op else {
            replaced.push(None);
            continue;
        };
        match group.stage.record(account_number, op.path())? {
            Some(record) if record.cid == *prev => replaced.push(Some(record)),
            _ => return Ok(None),
        }
    }
    Ok(Some(replaced))
}
