#![allow(clippy::disallowed_methods, reason = "shell: the mirror's files")]
//! Opening: the order of the checks, and what RocksDB's errors mean to a person.
//!
//! Nothing is changed in a store before its format is known to be ours.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rocksdb::{Cache, DB, Error, WriteBufferManager};

use crate::mirror::keyspace::encode_number;
use crate::mirror::store::{
    Batch, FORMAT_VERSION, Family, Format, KeyRange, META_VERSION, StoreError, check_format,
};

use super::{Engine, RocksOptions, log_check, options};

/// Folder of the database inside the data directory.
pub(super) const FOLDER: &str = "mirror";
/// The family that RocksDB always has and that we do not use.
const UNUSED_FAMILY: &str = "default";
/// How often a reader opens a database that changes meanwhile. A daemon changes it every few seconds at most.
const READER_TRIES: u32 = 20;
/// How long it waits in between.
const READER_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn open(data_dir: &Path, options: &RocksOptions) -> Result<Engine, StoreError> {
    let path = data_dir.join(FOLDER);
    fs::create_dir_all(&path).map_err(|error| classify_io(&path, &error))?;
    let there = families_there(&path)?;
    if there.is_empty() {
        clear_leftovers(&path)?;
    }
    let mut engine = Builder::new(path, options).open(&there, Access::Write)?;
    let format = engine.check_format(&there)?;
    let missing = Family::ALL.into_iter().filter(|family| !there.contains(family));
    let cache = engine.cache.clone();
    for family in missing {
        let created = engine
            .db
            .create_cf(family.name(), &options::family(family, &cache));
        created.map_err(|error| engine.failed(&error))?;
    }
    if format == Format::Fresh {
        let mut batch = Batch::new();
        batch.put(Family::Meta, META_VERSION, encode_number(FORMAT_VERSION));
        engine.write(batch, true)?;
    }
    Ok(engine)
}

/// Opens what a daemon may be writing to. RocksDB first reads which files and logs there are, and then opens
/// them; what a flush moves from a log to a file in between would be in neither, without an error. So the
/// state has to be the same after opening as before.
pub(super) fn open_read_only(data_dir: &Path, options: &RocksOptions) -> Result<Engine, StoreError> {
    let path = data_dir.join(FOLDER);
    for _ in 0..READER_TRIES {
        let before = state(&path);
        let tried = try_read_only(&path, options);
        if state(&path) == before {
            return tried;
        }
        std::thread::sleep(READER_PAUSE);
    }
    Err(StoreError::Busy { path })
}

/// Names the state of a database: its manifest, which only grows. Nothing is deleted that the state needs.
fn state(path: &Path) -> Option<(String, u64)> {
    let manifest = fs::read_to_string(path.join("CURRENT")).ok()?;
    let length = fs::metadata(path.join(manifest.trim())).ok()?.len();
    Some((manifest, length))
}

fn try_read_only(path: &Path, options: &RocksOptions) -> Result<Engine, StoreError> {
    let there = families_there(path)?;
    // A daemon that has just been started for the first time may not be through making them.
    if there.len() < Family::ALL.len() {
        return Err(StoreError::NotFound {
            path: path.to_owned(),
        });
    }
    let engine = Builder::new(path.to_owned(), options).open(&there, Access::Read)?;
    engine.check_format(&there)?;
    Ok(engine)
}

/// The families of an existing database; empty when there is none.
fn families_there(path: &Path) -> Result<Vec<Family>, StoreError> {
    if !path.join("CURRENT").exists() {
        return Ok(Vec::new());
    }
    refuse_damaged_logs(path)?;
    let names = DB::list_cf(&rocksdb::Options::default(), path).map_err(|error| classify(path, &error))?;
    let mut there = Vec::new();
    for name in names {
        if let Some(family) = Family::ALL.into_iter().find(|family| family.name() == name) {
            there.push(family);
        } else if name != UNUSED_FAMILY {
            return Err(foreign_family(path, &name));
        }
    }
    Ok(there)
}

/// A family that we do not know is of a newer format, or no family of ours at all. The version row is read
/// without opening the database for writing, which would need to know every family.
fn foreign_family(path: &Path, name: &str) -> StoreError {
    let db_options = rocksdb::Options::default();
    let version = DB::open_cf_for_read_only(&db_options, path, [Family::Meta.name()], false).and_then(|db| {
        let meta = db.cf_handle(Family::Meta.name()).expect("opened just now");
        db.get_cf(meta, META_VERSION)
    });
    match version.map(|version| check_format(path, version.as_deref(), true)) {
        Ok(Err(error)) => error,
        Ok(Ok(_)) => StoreError::Corrupt {
            path: path.to_owned(),
            detail: format!("it has a family {name:?}, which its format {FORMAT_VERSION} does not have"),
        },
        Err(error) => classify(path, &error),
    }
}

/// Data files without the file that names them: making a new database there would hide a lost one. An empty log
/// goes: a process that is killed while it makes the first database leaves one, and nothing was written yet.
fn clear_leftovers(path: &Path) -> Result<(), StoreError> {
    let entries = fs::read_dir(path).map_err(|error| classify_io(path, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| classify_io(path, &error))?;
        let name = entry.file_name();
        let extension = Path::new(&name)
            .extension()
            .and_then(|extension| extension.to_str());
        if extension == Some("log") && entry.metadata().is_ok_and(|file| file.len() == 0) {
            fs::remove_file(entry.path()).map_err(|error| classify_io(path, &error))?;
            continue;
        }
        if matches!(extension, Some("sst" | "blob" | "log")) {
            return Err(StoreError::Corrupt {
                path: path.to_owned(),
                detail: format!("there is {}, but the file CURRENT is missing", name.display()),
            });
        }
    }
    Ok(())
}

/// Damage that RocksDB would not see, or not get past: see [`log_check`].
fn refuse_damaged_logs(path: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(path).map_err(|error| classify_io(path, &error))? {
        let file = entry.map_err(|error| classify_io(path, &error))?.path();
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !name.ends_with(".log") && !name.starts_with("MANIFEST-") {
            continue;
        }
        let log = match fs::File::open(&file) {
            Ok(log) => log,
            // A daemon that is running has just deleted it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(classify_io(&file, &error)),
        };
        if let Some(damage) = log_check::find_damage(log).map_err(|error| classify_io(&file, &error))? {
            return Err(StoreError::Corrupt {
                path: path.to_owned(),
                detail: format!("the entry at byte {} of {name} {}", damage.at, damage.what),
            });
        }
    }
    Ok(())
}

/// What a database is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Opens a database, with what it shares between its families.
struct Builder<'o> {
    path: PathBuf,
    options: &'o RocksOptions,
    cache: Cache,
    buffers: WriteBufferManager,
}

impl<'o> Builder<'o> {
    fn new(path: PathBuf, options: &'o RocksOptions) -> Self {
        Self {
            path,
            options,
            cache: options::cache(options.cache_bytes),
            buffers: WriteBufferManager::new_write_buffer_manager(options.write_buffer_bytes, false),
        }
    }

    fn open(self, families: &[Family], access: Access) -> Result<Engine, StoreError> {
        let mut database = options::database(self.options, &self.buffers);
        // The unused one, too: RocksDB's own options would give it a cache, and a write buffer so large that
        // after a full disk writing would wait for 64 MiB of free space.
        let unused = (UNUSED_FAMILY, options::family(Family::Meta, &self.cache));
        let ours = families
            .iter()
            .map(|family| (family.name(), options::family(*family, &self.cache)));
        let families = ours.chain([unused]);
        let opened = match access {
            Access::Read => {
                // All files, and now: the daemon deletes those that it replaces.
                database.set_max_open_files(-1);
                DB::open_cf_with_opts_for_read_only(&database, &self.path, families, false)
            }
            Access::Write => {
                database.create_if_missing(!self.path.join("CURRENT").exists());
                DB::open_cf_with_opts(&database, &self.path, families)
            }
        };
        match opened {
            Ok(db) => Ok(Engine {
                db,
                access,
                path: self.path,
                cache: self.cache,
                buffers: self.buffers,
            }),
            Err(error) => Err(classify(&self.path, &error)),
        }
    }
}

impl Engine {
    fn check_format(&self, families: &[Family]) -> Result<Format, StoreError> {
        let version = match families.contains(&Family::Meta) {
            true => self.get(Family::Meta, META_VERSION, None)?,
            false => None,
        };
        // Rows are looked at in doubt only: a damaged block of one account must not keep all others shut.
        let has_rows = version.is_none() && self.has_rows(families)?;
        check_format(&self.path, version.as_deref(), has_rows)
    }

    fn has_rows(&self, families: &[Family]) -> Result<bool, StoreError> {
        let mut has_rows = false;
        for family in families {
            self.scan(*family, &KeyRange::all(), None, &mut |_, _| {
                has_rows = true;
                ControlFlow::Break(())
            })?;
        }
        Ok(has_rows)
    }
}

/// What an error of RocksDB means.
pub(super) fn classify(path: &Path, error: &Error) -> StoreError {
    judge(path, error.as_ref())
}

/// RocksDB reports text, which names the kind first and the system's words last.
fn judge(path: &Path, detail: &str) -> StoreError {
    let says = |texts: &[&str]| texts.iter().any(|text| detail.contains(text));
    let (path, text) = (path.to_owned(), detail.to_owned());
    if is_lock(detail) {
        let holder = lock_holder(&path.join("LOCK"));
        StoreError::Locked { path, holder }
    } else if says(&["No space left on device", "Disk quota exceeded"]) {
        StoreError::Full { path, detail: text }
    } else if says(&[
        "Permission denied",
        "Read-only file system",
        "Operation not permitted",
    ]) {
        StoreError::NotWritable { path, detail: text }
    } else if detail.starts_with("Corruption") || names_missing_file(detail) {
        StoreError::Corrupt { path, detail: text }
    } else {
        StoreError::Failed { path, detail: text }
    }
}

fn is_lock(detail: &str) -> bool {
    detail.contains("lock hold by current process")
        || (detail.contains("While lock file") && detail.contains("Resource temporarily unavailable"))
}

pub(super) fn names_missing_file(detail: &str) -> bool {
    detail.contains("No such file or directory")
}

/// What an error of the file system means.
pub(super) fn classify_io(path: &Path, error: &io::Error) -> StoreError {
    let path = path.to_owned();
    let detail = error.to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path, detail },
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::NotFound => StoreError::NotWritable { path, detail },
        _ => StoreError::Failed { path, detail },
    }
}

/// The process that holds a lock on a file, where Linux tells.
#[cfg(target_os = "linux")]
fn lock_holder(lock: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = fs::metadata(lock).ok()?.ino();
    holder_in(&fs::read_to_string("/proc/locks").ok()?, inode)
}

#[cfg(not(target_os = "linux"))]
fn lock_holder(_: &Path) -> Option<u32> {
    None
}

/// Finds the holder of an inode's lock in the text of `/proc/locks`, whose lines are
/// `1: POSIX  ADVISORY  WRITE 4711 fe:00:131084 0 EOF` (proc(5)).
#[cfg(target_os = "linux")]
fn holder_in(locks: &str, inode: u64) -> Option<u32> {
    let inode = format!(":{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(4);
        let pid = words.next()?.parse().ok()?;
        words.next()?.ends_with(&inode).then_some(pid)
    })
}

#[cfg(test)]
mod tests;
