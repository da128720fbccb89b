//! One batch in the making: the changes of a group of inputs, and reads that see them.
//!
//! Account, host and blob rows are written through here alone, so the totals that metrics and the status
//! page show cannot drift from the rows.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;

use super::super::keyspace::{self, AlarmId, Task};
use super::super::reader::{Mirror, Record};
use super::super::rows::{
    AccountRow, AlarmRow, BlobRow, BlobState, HostRow, JournalEntry, OutboxEntry, RecordValue, Row as _,
    TaskRow,
};
use super::super::store::{Batch, Family, Store, StoreError};
use super::totals::Totals;
use crate::repo::mst::TreeBuilder;
use crate::types::{Cid, Did, Digest, HostName, RepoPath, Rev, Timestamp};

/// The staged batch. Dropping it changes nothing.
pub(super) struct Stage<'s> {
    store: &'s dyn Store,
    batch: Batch,
    accounts: BTreeMap<Did, Loaded<AccountRow>>,
    hosts: BTreeMap<HostName, Loaded<HostRow>>,
    blobs: BTreeMap<(u64, Digest), Loaded<BlobRow>>,
    records: BTreeMap<Vec<u8>, Option<Record>>,
    /// References to blobs that were added, or removed.
    blob_refs: BTreeMap<Vec<u8>, bool>,
    alarms: BTreeMap<Vec<u8>, AlarmRow>,
    /// To be numbered when the batch is written.
    outbox: Vec<OutboxEntry>,
    /// Entries that leave the outbox, and their bytes.
    taken: (u64, u64),
    /// Accounts that went in this stage: the totals have them still.
    gone: BTreeMap<HostName, u64>,
    tasks: bool,
}

/// A row as it was read, and as it will be written.
struct Loaded<R> {
    before: Option<R>,
    now: Option<R>,
    dirty: bool,
}

impl<R: Clone> Loaded<R> {
    fn read(row: Option<R>) -> Self {
        Self {
            now: row.clone(),
            before: row,
            dirty: false,
        }
    }
}

/// What a finished stage hands over.
pub(super) struct Finished {
    pub(super) batch: Batch,
    pub(super) totals: Totals,
    /// Whether tasks were added that may be due now.
    pub(super) tasks: bool,
    /// Rows to keep in the cache.
    pub(super) accounts: Vec<(Did, AccountRow)>,
}

impl<'s> Stage<'s> {
    pub(super) fn new(store: &'s dyn Store) -> Self {
        Self {
            store,
            batch: Batch::new(),
            accounts: BTreeMap::new(),
            hosts: BTreeMap::new(),
            blobs: BTreeMap::new(),
            records: BTreeMap::new(),
            blob_refs: BTreeMap::new(),
            alarms: BTreeMap::new(),
            outbox: Vec::new(),
            taken: (0, 0),
            gone: BTreeMap::new(),
            tasks: false,
        }
    }

    /// The store as it is without this stage: for ranges, which inputs read in a batch of their own.
    pub(super) fn store(&self) -> &'s dyn Store {
        self.store
    }

    fn mirror(&self) -> Mirror<'s> {
        Mirror::new(self.store)
    }

    pub(super) const fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Changes of families that have no rows of their own here (parked frames, ranges).
    pub(super) const fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    // accounts

    /// The account's row, from `cached` or the store.
    pub(super) fn account(
        &mut self,
        did: &Did,
        cached: impl FnOnce() -> Option<AccountRow>,
    ) -> Result<Option<AccountRow>, StoreError> {
        if let Some(loaded) = self.accounts.get(did) {
            return Ok(loaded.now.clone());
        }
        let row = match cached() {
            Some(row) => Some(row),
            None => self.mirror().account(did)?,
        };
        self.accounts.insert(did.clone(), Loaded::read(row.clone()));
        Ok(row)
    }

    /// Writes an account's row. It must have been read through [`Stage::account`] before.
    pub(super) fn put_account(&mut self, did: &Did, row: AccountRow) {
        let loaded = self
            .accounts
            .entry(did.clone())
            .or_insert_with(|| Loaded::read(None));
        loaded.now = Some(row);
        loaded.dirty = true;
    }

    /// The accounts whose rows this stage has seen.
    pub(super) fn seen_accounts(&self) -> Vec<Did> {
        self.accounts.keys().cloned().collect()
    }

    // hosts

    /// Counts an account that went; how many did in this stage.
    pub(super) fn count_gone(&mut self, host: &HostName) -> u64 {
        let count = self.gone.entry(host.clone()).or_default();
        *count += 1;
        *count
    }

    pub(super) fn host(&mut self, host: &HostName) -> Result<Option<HostRow>, StoreError> {
        let mirror = self.mirror();
        match self.hosts.entry(host.clone()) {
            Entry::Occupied(entry) => Ok(entry.get().now.clone()),
            Entry::Vacant(entry) => {
                let row = mirror.host(host)?;
                Ok(entry.insert(Loaded::read(row)).now.clone())
            }
        }
    }

    pub(super) fn put_host(&mut self, host: &HostName, row: HostRow) {
        let loaded = self
            .hosts
            .entry(host.clone())
            .or_insert_with(|| Loaded::read(None));
        loaded.now = Some(row);
        loaded.dirty = true;
    }

    // blobs

    pub(super) fn blob(&mut self, did_number: u64, digest: &Digest) -> Result<Option<BlobRow>, StoreError> {
        let mirror = self.mirror();
        match self.blobs.entry((did_number, *digest)) {
            Entry::Occupied(entry) => Ok(entry.get().now.clone()),
            Entry::Vacant(entry) => {
                let row = mirror.blob(did_number, digest)?;
                Ok(entry.insert(Loaded::read(row)).now.clone())
            }
        }
    }

    pub(super) fn put_blob(&mut self, did_number: u64, digest: &Digest, row: BlobRow) {
        let loaded = self
            .blobs
            .entry((did_number, *digest))
            .or_insert_with(|| Loaded::read(None));
        loaded.now = Some(row);
        loaded.dirty = true;
    }

    // records

    pub(super) fn record(&self, account_number: u64, path: &RepoPath) -> Result<Option<Record>, StoreError> {
        let key = keyspace::encode_record(account_number, path.as_bytes());
        if let Some(staged) = self.records.get(&key) {
            return Ok(staged.clone());
        }
        self.mirror().record(account_number, path.as_bytes())
    }

    /// The root of the account's tree as staged, with changes `(path, record or deleted)` on top; `None` when
    /// they build no tree. Reads every row of the account.
    pub(super) fn root_with<'c>(
        &self,
        account_number: u64,
        changes: impl Iterator<Item = (&'c RepoPath, Option<Cid>)>,
    ) -> Result<Option<Cid>, StoreError> {
        let mut over: BTreeMap<&[u8], Option<Cid>> = self
            .staged_records(account_number)
            .map(|(key, row)| (&key[keyspace::NUMBER_BYTES..], row.as_ref().map(|row| row.cid)))
            .collect();
        over.extend(changes.map(|(path, cid)| (path.as_bytes(), cid)));

        let mut over = over.into_iter().peekable();
        let mut builder = TreeBuilder::new(|_, _, _: &[u8]| {});
        let mut built = Ok(());
        self.mirror()
            .scan_records(account_number, None, &mut |path, record| {
                while let Some((before, cid)) = over.next_if(|(key, _)| *key < path) {
                    built = cid.map_or(Ok(()), |cid| builder.push(before, cid));
                    if built.is_err() {
                        return ControlFlow::Break(());
                    }
                }
                let cid = match over.next_if(|(key, _)| *key == path) {
                    Some((_, cid)) => cid,
                    None => Some(record.cid()),
                };
                built = cid.map_or(Ok(()), |cid| builder.push(path, cid));
                if built.is_err() {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        for (path, cid) in over {
            built = built.and_then(|()| cid.map_or(Ok(()), |cid| builder.push(path, cid)));
        }
        Ok(built.is_ok().then(|| builder.finish()))
    }

    /// The bytes of some record of the account that is, or was before this stage, under this CID. Reads up to
    /// every row of the account.
    pub(super) fn find_record(&self, account_number: u64, cid: Cid) -> Result<Option<Vec<u8>>, StoreError> {
        let staged = self
            .staged_records(account_number)
            .filter_map(|(_, row)| row.as_ref());
        if let Some(row) = staged.into_iter().find(|row| row.cid == cid) {
            return Ok(Some(row.bytes.clone()));
        }
        let mut found = None;
        self.mirror()
            .scan_records(account_number, None, &mut |_, record| {
                if record.cid() == cid {
                    found = Some(record.bytes.to_vec());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        Ok(found)
    }

    fn staged_records(&self, account_number: u64) -> impl Iterator<Item = (&Vec<u8>, &Option<Record>)> {
        let (from, to) = keyspace::number_bounds(account_number);
        self.records.range(from.to_vec()..to.to_vec())
    }

    pub(super) fn put_record(&mut self, account_number: u64, path: &RepoPath, row: Record) {
        let key = keyspace::encode_record(account_number, path.as_bytes());
        let value = RecordValue {
            rev: row.rev,
            digest: *row.cid.digest(),
            bytes: &row.bytes,
        };
        self.batch.put(Family::Records, key.clone(), value.encode());
        self.records.insert(key, Some(row));
    }

    pub(super) fn delete_record(&mut self, account_number: u64, path: &RepoPath) {
        let key = keyspace::encode_record(account_number, path.as_bytes());
        self.batch.delete(Family::Records, key.clone());
        self.records.insert(key, None);
    }

    pub(super) fn put_blob_ref(&mut self, account_number: u64, digest: &Digest, path: &RepoPath) {
        let key = keyspace::encode_blob_ref(account_number, digest, path.as_bytes());
        self.batch.put(Family::BlobRefs, key.clone(), Vec::new());
        self.blob_refs.insert(key, true);
    }

    pub(super) fn delete_blob_ref(&mut self, account_number: u64, digest: &Digest, path: &RepoPath) {
        let key = keyspace::encode_blob_ref(account_number, digest, path.as_bytes());
        self.batch.delete(Family::BlobRefs, key.clone());
        self.blob_refs.insert(key, false);
    }

    /// Whether a record of the generation refers to a blob, as staged.
    pub(super) fn blob_is_referenced(
        &self,
        account_number: u64,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let range = keyspace::blob_ref_range(account_number, digest);
        let staged = self.blob_refs.range(range.from().to_vec()..);
        let mut added = staged
            .take_while(|(key, _)| range.to().is_none_or(|to| key.as_slice() < to))
            .filter(|(_, added)| **added);
        let mut found = added.next().is_some();
        if !found {
            self.store.scan(Family::BlobRefs, &range, &mut |key, _| {
                found = self.blob_refs.get(key) != Some(&false);
                if found {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        Ok(found)
    }

    pub(super) fn put_journal(&mut self, did_number: u64, rev: Rev, entry: &JournalEntry) -> usize {
        let value = entry.encode();
        let bytes = value.len();
        self.batch
            .put(Family::Journal, keyspace::encode_journal(did_number, rev), value);
        bytes
    }

    // the log

    /// Queues an entry for the archive's log.
    pub(super) fn put_outbox(&mut self, entry: OutboxEntry) {
        self.outbox.push(entry);
    }

    /// Removes an entry that waited for the archive.
    pub(super) fn take_outbox(&mut self, number: u64, bytes: u64) {
        self.batch
            .delete(Family::Outbox, keyspace::encode_outbox(number).to_vec());
        self.taken = (self.taken.0 + 1, self.taken.1 + bytes);
    }

    // alarms

    pub(super) fn alarm(&self, id: &AlarmId) -> Result<Option<AlarmRow>, StoreError> {
        let key = keyspace::encode_alarm(id);
        if let Some(row) = self.alarms.get(&key) {
            return Ok(Some(row.clone()));
        }
        let Some(value) = self.store.get(Family::Alarms, &key)? else {
            return Ok(None);
        };
        let row =
            AlarmRow::decode(&value).map_err(|error| StoreError::bad_row(Family::Alarms, &key, error))?;
        Ok(Some(row))
    }

    /// Alarms of a host that this batch adds.
    pub(super) fn new_alarms(&self, host: &HostName) -> usize {
        let range = keyspace::alarm_range(Some(host));
        let of_host = |key: &&Vec<u8>| {
            key.as_slice() >= range.from() && range.to().is_none_or(|to| key.as_slice() < to)
        };
        let absent = |key: &&Vec<u8>| self.store.get(Family::Alarms, key).is_ok_and(|row| row.is_none());
        self.alarms.keys().filter(of_host).filter(absent).count()
    }

    /// Removes an alarm, unless this batch has put it anew.
    pub(super) fn drop_alarm(&mut self, key: Vec<u8>) -> bool {
        if self.alarms.contains_key(&key) {
            return false;
        }
        self.batch.delete(Family::Alarms, key);
        true
    }

    pub(super) fn put_alarm(&mut self, id: &AlarmId, row: AlarmRow) {
        let key = keyspace::encode_alarm(id);
        self.batch.put(Family::Alarms, key.clone(), row.encode());
        self.alarms.insert(key, row);
    }

    // tasks

    pub(super) fn put_task(&mut self, due: Timestamp, task: &Task) {
        self.batch.put(
            Family::Tasks,
            keyspace::encode_task(due.millis(), task),
            TaskRow::default().encode(),
        );
        self.tasks = true;
    }

    /// Moves a task that repeats to its next time; `last` is the time that it had before.
    pub(super) fn repeat_task(&mut self, last: Option<Timestamp>, next: Timestamp, task: &Task) {
        if let Some(last) = last.filter(|last| last.millis() != next.millis()) {
            self.batch
                .delete(Family::Tasks, keyspace::encode_task(last.millis(), task));
        }
        self.put_task(next, task);
    }

    pub(super) fn delete_task(&mut self, key: &[u8]) {
        self.batch.delete(Family::Tasks, key.to_vec());
    }

    /// The rows that changed, encoded. Entries of the log get the numbers from `next_log` on.
    pub(super) fn finish(mut self, mut totals: Totals, next_log: &mut u64) -> Finished {
        let queued = self.outbox.iter().map(OutboxEntry::bytes).sum();
        totals.log_changed((self.outbox.len() as u64, queued), self.taken);
        if !self.outbox.is_empty() {
            for entry in self.outbox {
                self.batch
                    .put(Family::Outbox, keyspace::encode_outbox(*next_log), entry.encode());
                *next_log += 1;
            }
            self.batch.put(
                Family::Meta,
                keyspace::META_NEXT_LOG,
                keyspace::encode_number(*next_log),
            );
        }
        let mut accounts = Vec::with_capacity(self.accounts.len());
        for (did, loaded) in self.accounts {
            let Some(row) = loaded.now else { continue };
            if loaded.dirty {
                totals.account_changed(loaded.before.as_ref(), &row);
                if let Some(read_at) = identity_changed(loaded.before.as_ref(), &row) {
                    let task = Task::ArchiveIdentity(did.clone());
                    self.batch.put(
                        Family::Tasks,
                        keyspace::encode_task(read_at.millis(), &task),
                        TaskRow::default().encode(),
                    );
                    self.tasks = true;
                }
                self.batch
                    .put(Family::Accounts, keyspace::encode_account(&did), row.encode());
            }
            accounts.push((did, row));
        }
        for (host, loaded) in self.hosts {
            if let (true, Some(row)) = (loaded.dirty, loaded.now) {
                self.batch
                    .put(Family::Hosts, keyspace::encode_host(&host), row.encode());
            }
        }
        for ((did_number, digest), loaded) in self.blobs {
            if let (true, Some(row)) = (loaded.dirty, loaded.now) {
                totals.blob_changed(loaded.before.as_ref(), &row);
                if row.state == BlobState::Archived {
                    let range = keyspace::blob_data_range(did_number, &digest);
                    if let Some(to) = range.to() {
                        self.batch
                            .delete_range(Family::BlobData, range.from().to_vec(), to.to_vec());
                    }
                }
                self.batch.put(
                    Family::Blobs,
                    keyspace::encode_blob(did_number, &digest),
                    row.encode(),
                );
            }
        }
        Finished {
            batch: self.batch,
            totals,
            tasks: self.tasks,
            accounts,
        }
    }
}

/// When the account's document was read, if it was read again for a reason, or says something else than before: then
/// it belongs into the archive.
fn identity_changed(before: Option<&AccountRow>, now: &AccountRow) -> Option<Timestamp> {
    let identity = now.identity.as_ref()?;
    // It came from there.
    if before.is_none() && now.identity_archived.is_some() {
        return None;
    }
    let known = before.and_then(|row| row.identity.as_ref());
    let same = known.is_some_and(|known| known.key == identity.key && known.host == identity.host);
    (!same).then_some(identity.read_at)
}
