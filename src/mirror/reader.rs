//! Typed reads of the mirror, over any [`View`]: a store, or one moment of it.
//!
//! Every row that does not decode is an error that names it ([`StoreError::BadRow`]): damage is never
//! read as "nothing there".

use std::ops::ControlFlow;

use crate::types::{Did, Digest, HostName, RepoPath, SyntaxError};

use super::keyspace::{self, AlarmId, Task};
use super::rows::{
    AccountRow, AlarmRow, BlobRow, HostRow, JournalEntry, KeptCar, LogRow, OutboxEntry, ParkedFrame,
    RecordValue, Row, TaskRow,
};
use super::store::{Family, KeyRange, StoreError, View};

mod collection;
mod pinned;
mod rows;

pub use collection::Direction;
pub use rows::Rows;

/// The mirror as a view shows it. Cheap to make and to copy.
#[derive(Clone, Copy)]
pub struct Mirror<'v>(&'v dyn View);

/// Bytes of blobs in one chunk of `blob_data`, the last of a blob excepted.
pub const BLOB_CHUNK_BYTES: usize = 1024 * 1024;

/// A record with the bytes that the mirror holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The rev that put it there.
    pub rev: crate::types::Rev,
    /// Its CID.
    pub cid: crate::types::Cid,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A task whose time has come. Its key is `keyspace::encode_task(due_ms, &task)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueTask {
    /// Since when, in milliseconds since 1970.
    pub due_ms: u64,
    /// What to do.
    pub task: Task,
    /// How it went before.
    pub row: TaskRow,
}

impl<'v> Mirror<'v> {
    /// Reads through this view.
    #[must_use]
    pub const fn new(view: &'v dyn View) -> Self {
        Self(view)
    }

    /// A number of the `meta` family; none where it was never written.
    ///
    /// # Errors
    /// When the store cannot read, or the row is bad.
    pub fn number(&self, name: &[u8]) -> Result<Option<u64>, StoreError> {
        let value = self.0.get(Family::Meta, name)?;
        value
            .map(|value| keyspace::decode_number(&value))
            .transpose()
            .map_err(|error| StoreError::bad_row(Family::Meta, name, error))
    }

    /// An account's row.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn account(&self, did: &Did) -> Result<Option<AccountRow>, StoreError> {
        self.row(Family::Accounts, &keyspace::encode_account(did))
    }

    /// Accounts in the order of their DIDs: those after `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn accounts(&self, after: Option<&str>, limit: usize) -> Result<Vec<(Did, AccountRow)>, StoreError> {
        let range = after.map_or_else(KeyRange::all, |after| KeyRange::all().after(after.as_bytes()));
        self.page(Family::Accounts, &range, limit, keyspace::decode_account)
    }

    /// Visits every account, in the order of their DIDs.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn each_account(
        &self,
        mut visit: impl FnMut(Did, AccountRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.each(Family::Accounts, &KeyRange::all(), |key, value| {
            let did = decode_key(Family::Accounts, key, keyspace::decode_account)?;
            Ok(visit(did, decode_row(Family::Accounts, key, value)?))
        })
    }

    /// Visits every blob's row.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn each_blob(&self, mut visit: impl FnMut(BlobRow) -> ControlFlow<()>) -> Result<(), StoreError> {
        self.each(Family::Blobs, &KeyRange::all(), |key, value| {
            Ok(visit(decode_row(Family::Blobs, key, value)?))
        })
    }

    /// Visits the rows of an account's blobs.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn each_blob_of(
        &self,
        did_number: u64,
        mut visit: impl FnMut(BlobRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.each(
            Family::Blobs,
            &keyspace::number_range(did_number),
            |key, value| Ok(visit(decode_row(Family::Blobs, key, value)?)),
        )
    }

    /// One record. `path` as in [`keyspace::encode_record`].
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn record(&self, account_number: u64, path: &[u8]) -> Result<Option<Record>, StoreError> {
        let key = keyspace::encode_record(account_number, path);
        let Some(value) = self.0.get(Family::Records, &key)? else {
            return Ok(None);
        };
        let record = decode_record(&key, &value)?;
        Ok(Some(Record {
            rev: record.rev,
            cid: record.cid(),
            bytes: record.bytes.to_vec(),
        }))
    }

    /// Visits the records of a generation in tree order, from a path (inclusive) or from the first.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn scan_records(
        &self,
        account_number: u64,
        from: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], RecordValue<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let first = keyspace::encode_record(account_number, from.unwrap_or_default());
        let range = keyspace::number_range(account_number).starting_at(&first);
        self.each(Family::Records, &range, |key, value| {
            let (_, path) = decode_key(Family::Records, key, keyspace::split_record)?;
            Ok(visit(path, decode_record(key, value)?))
        })
    }

    /// The records of a generation, to export or to rebuild its tree.
    #[must_use]
    pub const fn rows(&self, account_number: u64) -> Rows<'v> {
        Rows {
            mirror: *self,
            account_number,
        }
    }

    /// A blob's row.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn blob(&self, did_number: u64, digest: &Digest) -> Result<Option<BlobRow>, StoreError> {
        self.row(Family::Blobs, &keyspace::encode_blob(did_number, digest))
    }

    /// The blobs of an account: those after `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn blobs_page(
        &self,
        did_number: u64,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, BlobRow)>, StoreError> {
        let mut range = keyspace::number_range(did_number);
        if let Some(after) = after {
            range = range.after(&keyspace::encode_blob(did_number, after));
        }
        let decode = |key: &[u8]| keyspace::decode_blob(key).map(|(_, digest)| digest);
        self.page(Family::Blobs, &range, limit, decode)
    }

    /// Whether a record of this generation refers to a blob.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn blob_is_referenced(&self, account_number: u64, digest: &Digest) -> Result<bool, StoreError> {
        let mut found = false;
        let range = keyspace::blob_ref_range(account_number, digest);
        self.0.scan(Family::BlobRefs, &range, &mut |_, _| {
            found = true;
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The records of this generation that refer to a blob, at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn blob_referrers(
        &self,
        account_number: u64,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<RepoPath>, StoreError> {
        let mut paths = Vec::new();
        let range = keyspace::blob_ref_range(account_number, digest);
        self.each(Family::BlobRefs, &range, |key, _| {
            if paths.len() >= limit {
                return Ok(ControlFlow::Break(()));
            }
            let (_, _, path) = decode_key(Family::BlobRefs, key, keyspace::decode_blob_ref)?;
            paths.push(path);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(paths)
    }

    /// The blobs that this generation refers to, each once, in the order of their digests: those after
    /// `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn blob_refs_page(
        &self,
        account_number: u64,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<Digest>, StoreError> {
        let mut page: Vec<Digest> = Vec::new();
        let mut next = match after {
            None => Some(keyspace::number_range(account_number)),
            Some(after) => past_blob(account_number, after),
        };
        // One seek a blob, not one step a reference: an avatar may be referred to by thousands of records.
        while page.len() < limit
            && let Some(range) = next.take()
        {
            self.each(Family::BlobRefs, &range, |key, _| {
                let (_, digest, _) = decode_key(Family::BlobRefs, key, keyspace::split_blob_ref)?;
                page.push(digest);
                next = past_blob(account_number, &digest);
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(page)
    }

    /// Visits a blob's chunks in order; returns how many bytes they are. A blob that is not here visits none.
    ///
    /// # Errors
    /// As [`Mirror::number`]; a chunk that is not there although a later one is, is a bad row.
    pub fn blob_chunks(
        &self,
        did_number: u64,
        digest: &Digest,
        mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        let (mut expected, mut bytes) = (0u32, 0u64);
        let range = keyspace::blob_data_range(did_number, digest);
        self.each(Family::BlobData, &range, |key, value| {
            let (_, _, chunk) = decode_key(Family::BlobData, key, keyspace::decode_blob_data)?;
            if chunk != expected {
                let reason = format!("chunk {expected} of this blob is not there");
                return Err(StoreError::bad_row(Family::BlobData, key, reason));
            }
            expected = expected.saturating_add(1);
            bytes += value.len() as u64;
            Ok(visit(value))
        })?;
        Ok(bytes)
    }

    /// Visits the chunks of a CAR that is kept as it came; as [`Mirror::blob_chunks`].
    ///
    /// # Errors
    /// As [`Mirror::blob_chunks`].
    pub fn car_chunks(
        &self,
        car: &KeptCar,
        visit: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        self.blob_chunks(car.number, car.commit.digest(), visit)
    }

    /// A host's row.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn host(&self, host: &HostName) -> Result<Option<HostRow>, StoreError> {
        self.row(Family::Hosts, &keyspace::encode_host(host))
    }

    /// Every host.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn hosts(&self) -> Result<Vec<(HostName, HostRow)>, StoreError> {
        self.page(Family::Hosts, &KeyRange::all(), usize::MAX, keyspace::decode_host)
    }

    /// A journalled change.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn journal_entry(
        &self,
        did_number: u64,
        rev: crate::types::Rev,
    ) -> Result<Option<JournalEntry>, StoreError> {
        self.row(Family::Journal, &keyspace::encode_journal(did_number, rev))
    }

    /// Visits an account's journal in the order of revs, from one (inclusive) or from the first.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn each_journal_entry(
        &self,
        did_number: u64,
        from: Option<crate::types::Rev>,
        mut visit: impl FnMut(crate::types::Rev, JournalEntry) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut range = keyspace::number_range(did_number);
        if let Some(from) = from {
            range = range.starting_at(&keyspace::encode_journal(did_number, from));
        }
        self.each(Family::Journal, &range, |key, value| {
            let (_, rev) = decode_key(Family::Journal, key, keyspace::decode_journal)?;
            Ok(visit(rev, decode_row(Family::Journal, key, value)?))
        })
    }

    /// How far the archive's log is.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn log(&self) -> Result<LogRow, StoreError> {
        Ok(self.row(Family::Meta, keyspace::META_LOG)?.unwrap_or_default())
    }

    /// What waits for the next segments, in order: from a log number (inclusive), at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn outbox(&self, from: u64, limit: usize) -> Result<Vec<(u64, OutboxEntry)>, StoreError> {
        let range = KeyRange::all().starting_at(&keyspace::encode_outbox(from));
        self.page(Family::Outbox, &range, limit, keyspace::decode_outbox)
    }

    /// An account's parked frames in the order of their arrival, at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn parked(&self, did_number: u64, limit: usize) -> Result<Vec<(u64, ParkedFrame)>, StoreError> {
        let decode = |key: &[u8]| keyspace::decode_parked(key).map(|(_, arrival)| arrival);
        self.page(Family::Parked, &keyspace::number_range(did_number), limit, decode)
    }

    /// The tasks that are due, the longest due first, at most `limit`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn due_tasks(&self, now_ms: u64, limit: usize) -> Result<Vec<DueTask>, StoreError> {
        let due = self.page(
            Family::Tasks,
            &keyspace::due_range(now_ms),
            limit,
            keyspace::decode_task,
        )?;
        let due = due.into_iter();
        Ok(due
            .map(|((due_ms, task), row)| DueTask { due_ms, task, row })
            .collect())
    }

    /// When the next task is due, in milliseconds since 1970; none when there is no task.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn next_task_due(&self) -> Result<Option<u64>, StoreError> {
        let mut due = None;
        self.each(Family::Tasks, &KeyRange::all(), |key, _| {
            due = Some(decode_key(Family::Tasks, key, keyspace::decode_task)?.0);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(due)
    }

    /// Every alarm.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn alarms(&self) -> Result<Vec<(AlarmId, AlarmRow)>, StoreError> {
        self.page(
            Family::Alarms,
            &KeyRange::all(),
            usize::MAX,
            keyspace::decode_alarm,
        )
    }

    /// A row of `meta`.
    pub(super) fn meta<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.row(Family::Meta, key)
    }

    fn row<R: Row>(&self, family: Family, key: &[u8]) -> Result<Option<R>, StoreError> {
        let value = self.0.get(family, key)?;
        value.map(|value| decode_row(family, key, &value)).transpose()
    }

    /// At most `limit` rows of a range.
    fn page<K, R: Row>(
        &self,
        family: Family,
        range: &KeyRange,
        limit: usize,
        decode: impl Fn(&[u8]) -> Result<K, SyntaxError>,
    ) -> Result<Vec<(K, R)>, StoreError> {
        let mut page = Vec::new();
        self.each(family, range, |key, value| {
            if page.len() >= limit {
                return Ok(ControlFlow::Break(()));
            }
            page.push((decode_key(family, key, &decode)?, decode_row(family, key, value)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(page)
    }

    /// A scan whose visitor may fail.
    fn each(
        &self,
        family: Family,
        range: &KeyRange,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        let mut failed = Ok(());
        self.0.scan(family, range, &mut |key, value| {
            visit(key, value).unwrap_or_else(|error| {
                failed = Err(error);
                ControlFlow::Break(())
            })
        })?;
        failed
    }
}

/// The references of a generation behind one blob's; none behind the last possible digest.
fn past_blob(account_number: u64, digest: &Digest) -> Option<KeyRange> {
    let past = keyspace::blob_ref_range(account_number, digest);
    let range = keyspace::number_range(account_number);
    let range = range.starting_at(past.to()?);
    (!range.is_empty()).then_some(range)
}

fn decode_key<'k, K>(
    family: Family,
    key: &'k [u8],
    decode: impl Fn(&'k [u8]) -> Result<K, SyntaxError>,
) -> Result<K, StoreError> {
    decode(key).map_err(|error| StoreError::bad_row(family, key, error))
}

fn decode_row<R: Row>(family: Family, key: &[u8], value: &[u8]) -> Result<R, StoreError> {
    R::decode(value).map_err(|error| StoreError::bad_row(family, key, error))
}

fn decode_record<'r>(key: &[u8], value: &'r [u8]) -> Result<RecordValue<'r>, StoreError> {
    RecordValue::decode(value).map_err(|error| StoreError::bad_row(Family::Records, key, error))
}

#[cfg(test)]
mod tests;
