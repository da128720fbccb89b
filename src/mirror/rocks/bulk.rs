#![allow(clippy::disallowed_methods, reason = "shell: the mirror's files")]
//! The sorted bulk load: rows go into table files beside the database, which RocksDB then takes over in one
//! step. They never pass through the log or a write buffer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{IngestExternalFileOptions, Options, SstFileWriter};

use crate::mirror::store::{Family, KeyRange, StoreError};

use super::{Engine, open, options};

/// Folder for files that are not part of the database yet, inside the data directory.
pub(super) const FOLDER: &str = "tmp-sst";
/// A file is closed once it has this many bytes.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Loads sorted rows.
pub(super) struct Loader {
    folder: PathBuf,
    next_file: AtomicU64,
    file_bytes: u64,
}

impl Loader {
    /// Makes the folder, and removes what an interrupted load left in it.
    pub(super) fn new(data_dir: &Path) -> Result<Self, StoreError> {
        let folder = data_dir.join(FOLDER);
        clear(&folder).map_err(|error| open::classify_io(&folder, &error))?;
        Ok(Self {
            folder,
            next_file: AtomicU64::new(0),
            file_bytes: FILE_BYTES,
        })
    }

    #[cfg(test)]
    pub(super) const fn set_file_bytes(&mut self, bytes: u64) {
        self.file_bytes = bytes;
    }

    pub(super) fn load(
        &self,
        engine: &Engine,
        family: Family,
        rows: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<u64, StoreError> {
        let mut files = Files(Vec::new());
        let failed = |error: rocksdb::Error| engine.failed(&error);
        let file_options = options::family(family, &engine.cache);
        let mut gap = Gap::default();
        let mut rows = (0u64..).zip(rows).peekable();
        while rows.peek().is_some() {
            let mut writer = self.new_file(&file_options, &mut files).map_err(failed)?;
            for (row, (key, value)) in rows.by_ref() {
                gap.admit(engine, family, row, &key)?;
                writer.put(key, value).map_err(failed)?;
                if writer.file_size() >= self.file_bytes {
                    break;
                }
            }
            writer.finish().map_err(failed)?;
        }
        // The rows took a while: look again before they go in.
        gap.check_still_free(engine, family)?;
        files.ingest(engine, family).map_err(failed)?;
        Ok(gap.rows)
    }

    fn new_file<'o>(
        &self,
        file_options: &'o Options,
        files: &mut Files,
    ) -> Result<SstFileWriter<'o>, rocksdb::Error> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{number}.sst"));
        let writer = SstFileWriter::create(file_options);
        files.0.push(path.clone());
        writer.open(path)?;
        Ok(writer)
    }
}

fn clear(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The files of one load. Whatever is still there is removed at the end, in success and failure.
struct Files(Vec<PathBuf>);

impl Files {
    fn ingest(&self, engine: &Engine, family: Family) -> Result<(), rocksdb::Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let family = engine.family(family);
        engine
            .db
            .ingest_external_file_cf_opts(family, &options, self.0.clone())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            // A file that was taken over is gone; one that cannot be removed is at the next start.
            let _gone_or_later = fs::remove_file(path);
        }
    }
}

/// The free part of the family that the rows go into.
#[derive(Default)]
struct Gap {
    rows: u64,
    first: Option<Vec<u8>>,
    last: Option<Vec<u8>>,
    /// The first key that was there at or above `first`.
    end: Option<Vec<u8>>,
}

impl Gap {
    fn admit(&mut self, engine: &Engine, family: Family, row: u64, key: &[u8]) -> Result<(), StoreError> {
        match &mut self.last {
            None => {
                self.end = next_key(engine, family, key)?;
                self.first = Some(key.to_vec());
                self.last = Some(key.to_vec());
            }
            Some(last) if key <= last.as_slice() => return Err(StoreError::Unsorted { family, row }),
            Some(last) => {
                last.clear();
                last.extend_from_slice(key);
            }
        }
        if self.end.as_ref().is_some_and(|end| key >= end.as_slice()) {
            return Err(StoreError::NotEmpty { family, row });
        }
        self.rows += 1;
        Ok(())
    }

    fn check_still_free(&self, engine: &Engine, family: Family) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return Ok(());
        };
        match next_key(engine, family, first)? {
            Some(key) if key <= *last => Err(StoreError::NotEmpty {
                family,
                row: self.rows - 1,
            }),
            _ => Ok(()),
        }
    }
}

fn next_key(engine: &Engine, family: Family, from: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let mut found = None;
    engine.scan(family, &KeyRange::all().starting_at(from), None, &mut |key, _| {
        found = Some(key.to_vec());
        std::ops::ControlFlow::Break(())
    })?;
    Ok(found)
}
