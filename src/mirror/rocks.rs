#![allow(clippy::disallowed_methods, reason = "shell: the mirror's files")]
//! The mirror on disk: RocksDB behind the [`Store`] seam.
//!
//! One database in `<data_dir>/mirror`, one column family a [`Family`], one log for all of them, so that a
//! batch is atomic across families and whatever survives a crash is what was synced, and possibly more.
//! Recovery tolerates a torn end of the log, which a power cut leaves, and refuses a damaged middle, which
//! RocksDB's default would cut off silently together with everything behind it.
//!
//! [`RocksStore`] writes, and holds the lock: one a data directory. [`RocksReader`] shows commands what was
//! written up to the moment it was opened, while a daemon runs or not.
//!
//! Gotchas
//! - After a power cut (not after a kill) in the moment in which RocksDB changes to a new log file, a batch
//!   that was not synced may survive although an older one, not synced either, is lost.
//! - A manifest names the first and last keys of data files. Compacting a range leaves no value of a deleted
//!   row on disk, but its key may stay in the manifest until that is rewritten: past 1 MiB, or at the next
//!   start.
//! - After a full disk RocksDB takes writes again by itself, once there is room for the largest write buffer
//!   (16 MiB); it looks every few seconds. After a failed sync it takes none, and never syncs again.
//! - Blobs live in blob files that accounts share, so [`Store::compact_range`] on `blob_data` rewrites the
//!   whole family.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rocksdb::{
    BottommostLevelCompaction, Cache, ColumnFamily, CompactOptions, DB, DBRawIterator, FlushOptions,
    ReadOptions, Snapshot, WriteBatch, WriteBufferManager, WriteOptions,
};

use super::store::{Batch, Durable, Family, KeyRange, Op, Store, StoreError, StoreStats, View, Visit};

mod bulk;
mod log_check;
mod open;
mod options;

pub use options::RocksOptions;

/// The mirror of a data directory, to read and to write. One process at a time has it.
pub struct RocksStore {
    engine: Engine,
    loader: bulk::Loader,
    /// Compactions that must leave nothing behind change options for their time: one after the other.
    compacting: Mutex<()>,
}

/// The mirror of a data directory as it was when this was opened, to read only. Takes no lock, and never sees
/// what is written later.
pub struct RocksReader {
    engine: Engine,
}

/// An open database.
struct Engine {
    db: DB,
    access: open::Access,
    path: PathBuf,
    cache: Cache,
    buffers: WriteBufferManager,
}

impl RocksStore {
    /// Whether a data directory has a mirror, or the beginning of one.
    #[must_use]
    pub fn is_in(data_dir: &Path) -> bool {
        data_dir.join(open::FOLDER).exists()
    }

    /// Opens the mirror of a data directory, and makes both if they do not exist.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::NotWritable`], [`StoreError::Newer`], [`StoreError::Corrupt`],
    /// [`StoreError::Full`], or [`StoreError::Failed`] for the rest.
    pub fn open(data_dir: &Path, options: &RocksOptions) -> Result<Self, StoreError> {
        let engine = open::open(data_dir, options)?;
        let loader = bulk::Loader::new(data_dir)?;
        Ok(Self {
            engine,
            loader,
            compacting: Mutex::new(()),
        })
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.engine.path
    }
}

impl RocksReader {
    /// Opens the mirror of a data directory for reading, whether or not a daemon has it open.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Busy`], and as [`RocksStore::open`] but for the lock.
    pub fn open(data_dir: &Path, options: &RocksOptions) -> Result<Self, StoreError> {
        open::open_read_only(data_dir, options).map(|engine| Self { engine })
    }
}

impl Engine {
    fn family(&self, family: Family) -> &ColumnFamily {
        self.db
            .cf_handle(family.name())
            .expect("opening opens every family")
    }

    fn failed(&self, error: &rocksdb::Error) -> StoreError {
        if self.access == open::Access::Read && open::names_missing_file(error.as_ref()) {
            // The daemon deleted a blob file that was not opened yet.
            let path = self.path.clone();
            return StoreError::Busy { path };
        }
        open::classify(&self.path, error)
    }

    fn read_options(&self, at: Option<&Snapshot<'_>>) -> ReadOptions {
        let mut options = ReadOptions::default();
        if let Some(at) = at {
            options.set_snapshot(at);
        }
        options
    }

    fn get(
        &self,
        family: Family,
        key: &[u8],
        at: Option<&Snapshot<'_>>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self
            .db
            .get_cf_opt(self.family(family), key, &self.read_options(at));
        value.map_err(|error| self.failed(&error))
    }

    fn iterator(
        &self,
        family: Family,
        range: &KeyRange,
        at: Option<&Snapshot<'_>>,
        forward: bool,
    ) -> DBRawIterator<'_> {
        let mut read = self.read_options(at);
        read.set_iterate_lower_bound(range.from());
        if let Some(to) = range.to() {
            read.set_iterate_upper_bound(to);
        }
        let one_prefix = options::prefix_bytes(family).is_some_and(|bytes| range.within_prefix(bytes));
        read.set_total_order_seek(!(forward && one_prefix));
        // A whole repository must not push everything else out of a small cache.
        read.fill_cache(!matches!(
            family,
            Family::Records | Family::Journal | Family::BlobData
        ));
        self.db.raw_iterator_cf_opt(self.family(family), read)
    }

    fn scan(
        &self,
        family: Family,
        range: &KeyRange,
        at: Option<&Snapshot<'_>>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut rows = self.iterator(family, range, at, true);
        rows.seek(range.from());
        while let Some((key, value)) = rows.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| self.failed(&error))
    }

    fn scan_reverse(
        &self,
        family: Family,
        range: &KeyRange,
        at: Option<&Snapshot<'_>>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut rows = self.iterator(family, range, at, false);
        rows.seek_to_last();
        while let Some((key, value)) = rows.item() {
            if visit(key, value).is_break() {
                return Ok(());
            }
            rows.prev();
        }
        rows.status().map_err(|error| self.failed(&error))
    }

    fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        let mut rows = WriteBatch::default();
        for op in batch.into_ops() {
            match op {
                Op::Put { family, key, value } => rows.put_cf(self.family(family), key, value),
                Op::Delete { family, key } => rows.delete_cf(self.family(family), key),
                Op::DeleteRange { family, from, to } => rows.delete_range_cf(self.family(family), from, to),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db
            .write_opt(rows, &options)
            .map_err(|error| self.failed(&error))
    }

    /// Sum of a property over the families.
    fn sum(&self, property: &str) -> u64 {
        let of = |family| self.db.property_int_value_cf(self.family(family), property);
        Family::ALL
            .into_iter()
            .filter_map(|family| of(family).ok().flatten())
            .sum()
    }

    fn property(&self, property: &str) -> u64 {
        self.db.property_int_value(property).ok().flatten().unwrap_or(0)
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            disk_bytes: self.sum("rocksdb.total-sst-files-size") + self.sum("rocksdb.total-blob-file-size"),
            memory_bytes: (self.cache.get_usage() + self.buffers.get_usage()) as u64,
            compaction_debt_bytes: self.sum("rocksdb.estimate-pending-compaction-bytes"),
            stalled: self.property("rocksdb.is-write-stopped") != 0
                || self.property("rocksdb.actual-delayed-write-rate") != 0,
            background_errors: self.property("rocksdb.background-errors"),
        }
    }

    /// Moves what is in memory to data files. The log that held it is deleted by that.
    fn flush(&self) -> Result<(), StoreError> {
        let families: Vec<_> = Family::ALL
            .into_iter()
            .map(|family| self.family(family))
            .collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db
            .flush_cfs_opt(&families, &options)
            .map_err(|error| self.failed(&error))
    }

    fn compact(&self, family: Family, range: &KeyRange) -> Result<(), StoreError> {
        self.flush()?;
        let errors_before = self.property("rocksdb.background-errors");
        let mut compaction = CompactOptions::default();
        compaction.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        let (from, to) = match family {
            Family::BlobData => (None, None),
            _ => (Some(range.from()), range.to()),
        };
        self.db
            .compact_range_cf_opt(self.family(family), from, to, &compaction);
        if self.property("rocksdb.background-errors") == errors_before {
            Ok(())
        } else {
            Err(StoreError::Failed {
                path: self.path.clone(),
                detail: format!("compacting {family} did not succeed; the log says why"),
            })
        }
    }

    fn set_blob_options(&self, options: &[(&str, &str)]) -> Result<(), StoreError> {
        let result = self.db.set_options_cf(self.family(Family::BlobData), options);
        result.map_err(|error| self.failed(&error))
    }
}

impl View for RocksStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.engine.get(family, key, None)
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.engine.scan(family, range, None, visit)
    }

    fn scan_reverse(
        &self,
        family: Family,
        range: &KeyRange,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        self.engine.scan_reverse(family, range, None, visit)
    }
}

impl View for RocksReader {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.engine.get(family, key, None)
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.engine.scan(family, range, None, visit)
    }

    fn scan_reverse(
        &self,
        family: Family,
        range: &KeyRange,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        self.engine.scan_reverse(family, range, None, visit)
    }
}

/// One moment of a [`RocksStore`].
struct Moment<'s> {
    engine: &'s Engine,
    at: Snapshot<'s>,
}

impl View for Moment<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.engine.get(family, key, Some(&self.at))
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.engine.scan(family, range, Some(&self.at), visit)
    }

    fn scan_reverse(
        &self,
        family: Family,
        range: &KeyRange,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        self.engine.scan_reverse(family, range, Some(&self.at), visit)
    }
}

impl Store for RocksStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.engine.write(batch, false)
    }

    fn write_durable(&self, batch: Batch) -> Result<Durable<()>, StoreError> {
        if batch.is_empty() {
            let synced = self.engine.db.flush_wal(true);
            synced.map_err(|error| self.engine.failed(&error))?;
        } else {
            self.engine.write(batch, true)?;
        }
        Ok(Durable::synced())
    }

    fn view(&self) -> Box<dyn View + '_> {
        Box::new(Moment {
            engine: &self.engine,
            at: self.engine.db.snapshot(),
        })
    }

    fn bulk_load(
        &self,
        family: Family,
        rows: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<u64, StoreError> {
        self.loader.load(&self.engine, family, rows)
    }

    fn compact_range(&self, family: Family, range: &KeyRange) -> Result<(), StoreError> {
        let one = self.compacting.lock().expect("nobody panics while compacting");
        if family == Family::BlobData {
            self.engine.set_blob_options(&options::BLOB_GC_EVERYTHING)?;
        }
        let compacted = self.engine.compact(family, range);
        if family == Family::BlobData {
            self.engine.set_blob_options(&options::BLOB_GC_USUAL)?;
        }
        drop(one);
        compacted
    }

    fn stats(&self) -> StoreStats {
        self.engine.stats()
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
