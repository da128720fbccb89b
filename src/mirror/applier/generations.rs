//! What goes by account number: generations that nothing points at, and marks that belong to an archive.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::super::keyspace::{self, META_ARCHIVE_ID, NUMBER_BYTES, Task};
use super::super::reader::Mirror;
use super::super::rows::{BlobState, Row as _};
use super::super::store::{Batch, Family, KeyRange, Store, StoreError};
use super::{Applier, Group, Stage};

/// What goes by a number that only an account's row names.
const FAMILIES: [Family; 3] = [Family::Records, Family::BlobRefs, Family::BlobData];

impl Applier {
    /// Deletes the rows of every account number that no account's row names: what a fetch had loaded when the
    /// process died. Returns how many numbers. Only before any fetch of this process begins.
    ///
    /// # Errors
    /// When the store fails.
    pub fn drop_orphans(&mut self) -> Result<u64, StoreError> {
        let mut named = BTreeSet::new();
        Mirror::new(&*self.store).each_account(|_, row| {
            named.insert(row.account_number);
            // Blobs go by this one, and kept CARs by theirs.
            named.insert(row.did_number);
            named.extend(row.kept_car.map(|car| car.number));
            named.extend(row.pins.iter().filter_map(|pin| pin.generation));
            ControlFlow::Continue(())
        })?;
        let mut orphans = BTreeSet::new();
        for family in FAMILIES {
            orphans.extend(numbers_in(&*self.store, family)?.difference(&named));
        }
        let mut batch = Batch::new();
        for number in &orphans {
            let (from, to) = keyspace::number_bounds(*number);
            for family in FAMILIES {
                batch.delete_range(family, from, to);
            }
        }
        if !batch.is_empty() {
            self.store.write_durable(batch)?.into_inner();
        }
        Ok(orphans.len() as u64)
    }

    /// Remembers which archive the marks belong to. With another one than before they all go: every account is
    /// snapshotted again, every blob archived again, from here where its bytes still are, else from its host.
    pub(super) fn on_archive_linked(&mut self, group: &mut Group<'_>, id: &str) -> Result<(), StoreError> {
        let before = group.stage.store().get(Family::Meta, META_ARCHIVE_ID)?;
        if before.as_deref() == Some(id.as_bytes()) {
            return Ok(());
        }
        if before.is_some() {
            self.forget_archive(group)?;
            // Last, and with the new id: should this be cut short, the log still fits the archive of before.
            Self::forget_log(group)?;
        }
        group
            .stage
            .batch()
            .put(Family::Meta, META_ARCHIVE_ID, id.as_bytes());
        Ok(())
    }

    fn forget_archive(&mut self, group: &mut Group<'_>) -> Result<(), StoreError> {
        let store = group.stage.store();
        let mut accounts = Vec::new();
        Mirror::new(store).each_account(|did, _| {
            accounts.push(did);
            ControlFlow::Continue(())
        })?;
        for did in accounts {
            let Some(mut row) = self.account(group, &did)? else {
                continue;
            };
            row.snapshot = None;
            row.shipped = None;
            row.identity_archived = None;
            if row.identity.is_some() {
                group
                    .stage
                    .put_task(group.now, &Task::ArchiveIdentity(did.clone()));
            }
            row.unlogged = None;
            if row.head.is_some() {
                self.schedule_snapshot(group, &did, &mut row);
            }
            if let Some(car) = &mut row.kept_car {
                car.archived = false;
                row.car_at = Some(group.now);
                group.stage.put_task(group.now, &Task::ArchiveCar(did.clone()));
            }
            let mut archived = Vec::new();
            let blobs = keyspace::number_range(row.did_number);
            store.scan(Family::Blobs, &blobs, &mut |key, value| {
                if let (Ok((_, digest)), Ok(blob)) = (
                    keyspace::decode_blob(key),
                    super::super::rows::BlobRow::decode(value),
                ) && blob.state == BlobState::Archived
                {
                    archived.push((digest, blob));
                }
                ControlFlow::Continue(())
            })?;
            for (digest, _) in archived {
                let Some(mut blob) = group.stage.blob(row.did_number, &digest)? else {
                    continue;
                };
                blob.state = BlobState::Wanted;
                blob.tries = 0;
                group.stage.put_blob(row.did_number, &digest, blob);
                group
                    .stage
                    .put_task(group.now, &Task::FetchBlob(did.clone(), digest));
            }
            group.stage.put_account(&did, row);
            // The marks of a large mirror do not fit into one batch; each batch is whole, and a crash in between
            // begins again, for the new id is written last.
            if group.stage.bytes() >= self.limits.batch_bytes {
                let full = std::mem::replace(&mut group.stage, Stage::new(store));
                self.write(full)?;
            }
        }
        Ok(())
    }
}

/// The account numbers that a family has rows of: one step a number.
fn numbers_in(store: &dyn Store, family: Family) -> Result<BTreeSet<u64>, StoreError> {
    let mut numbers = BTreeSet::new();
    let mut range = KeyRange::all();
    loop {
        let mut first = None;
        let mut short = None;
        store.scan(family, &range, &mut |key, _| {
            match key.first_chunk::<NUMBER_BYTES>() {
                Some(number) => first = Some(u64::from_be_bytes(*number)),
                None => short = Some(key.to_vec()),
            }
            ControlFlow::Break(())
        })?;
        if let Some(key) = short {
            return Err(StoreError::bad_row(family, &key, "its key is too short"));
        }
        let Some(number) = first else { return Ok(numbers) };
        numbers.insert(number);
        range = KeyRange::all().starting_at(&keyspace::number_bounds(number).1);
    }
}
