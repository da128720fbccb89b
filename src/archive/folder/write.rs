#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! Writing to and deleting from a folder archive.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use super::super::bucket::{Body, BucketError, BucketErrorKind, PutOptions, PutOutcome};
use super::super::content_type::{self, ContentType, HEAD_BYTES};
use super::super::names;
use super::{Folder, READ_BYTES, io_error, place_of, sync_folder, type_name};
use crate::types::{Digest, Timestamp};

/// Most folders whose synced entries are remembered.
const SYNCED_MAX: usize = 10_000;
/// As often a folder may be removed under a writer before it gives up.
const RACES_MAX: usize = 5;
/// How old a temporary file must be to count as left behind.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The temporary files that this process is at.
static AT_WORK: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn at_work() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A synced file without a name of its own yet. Goes with its owner.
struct Temporary {
    path: PathBuf,
    /// The first bytes.
    head: Vec<u8>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // If this fails, or it has become an object by a rename: leftovers are removed later.
        drop(fs::remove_file(&self.path));
        at_work().remove(&self.path);
    }
}

impl Folder {
    pub(super) fn put(
        &self,
        name: &str,
        body: &Body,
        options: &PutOptions,
    ) -> Result<PutOutcome, BucketError> {
        let path = self.path_of("write", name)?;
        if self.plain_file("write", &path)?.is_some() && options.create_only {
            return self.already_there(&path);
        }
        let temporary = self.write_temporary(&path, body, options.sha256)?;
        for _ in 0..RACES_MAX {
            self.make_parents(&path)?;
            self.keep_type(name, &temporary, &options.content_type)?;
            match self.publish(&temporary, &path, options.create_only) {
                Ok(PutOutcome::AlreadyThere) => return self.already_there(&path),
                Ok(outcome) => return Ok(outcome),
                // A delete removed the folder, which it had just emptied.
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(self.publish_error(&path, &error)),
            }
        }
        Err(BucketError {
            kind: BucketErrorKind::Conflict,
            action: "write",
            place: place_of(&path),
            detail: "its folder is being removed all the time".into(),
        })
    }

    /// Whoever made the object may have died before it synced the folders, and we are about to rely on it.
    fn already_there(&self, path: &Path) -> Result<PutOutcome, BucketError> {
        self.make_parents(path)?;
        self.sync_parent(path).map_err(|e| io_error("sync", path, &e))?;
        Ok(PutOutcome::AlreadyThere)
    }

    /// Gives a temporary file its name.
    fn publish(&self, temporary: &Temporary, path: &Path, create_only: bool) -> io::Result<PutOutcome> {
        if create_only {
            match fs::hard_link(&temporary.path, path) {
                Ok(()) => (),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(PutOutcome::AlreadyThere),
                Err(e) => return Err(e),
            }
        } else {
            fs::rename(&temporary.path, path)?;
        }
        self.sync_parent(path)?;
        Ok(PutOutcome::Created)
    }

    fn publish_error(&self, path: &Path, error: &io::Error) -> BucketError {
        const EPERM: i32 = 1;
        // The temporary file could be made in this very file system, so what is not permitted is the link.
        if error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(EPERM) {
            return BucketError {
                kind: BucketErrorKind::Unsupported,
                action: "write",
                place: place_of(path),
                detail: format!("the file system has no hard links ({error})"),
            };
        }
        io_error("write", path, error)
    }

    fn write_temporary(
        &self,
        for_path: &Path,
        body: &Body,
        wanted: Option<Digest>,
    ) -> Result<Temporary, BucketError> {
        let folder = self.root.join(names::TEMPORARY);
        self.make_parents(&folder.join("x"))?;
        let error = |error: &io::Error| io_error("write", for_path, error);
        let (mut file, path) = loop {
            let count = self.temporaries.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}-{count}", std::process::id()));
            // Held until it is made: nobody looks for leftovers in between.
            let mut at_work = at_work();
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
            {
                Ok(file) => {
                    at_work.insert(path.clone());
                    break (file, path);
                }
                // Left behind by an earlier process of the same id.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (),
                Err(e) => return Err(error(&e)),
            }
        };
        let mut temporary = Temporary {
            path,
            head: Vec::new(),
        };
        let found = match body {
            Body::Bytes(bytes) => {
                temporary.head = bytes[..bytes.len().min(HEAD_BYTES)].to_vec();
                file.write_all(bytes).map_err(|e| error(&e))?;
                wanted.map(|_| Sha256::digest(bytes).into())
            }
            Body::File(source) => {
                let read_error = |e: io::Error| io_error("read", source, &e);
                let mut source = File::open(source).map_err(read_error)?;
                copy(&mut source, &mut file, &mut temporary.head, wanted.is_some()).map_err(|failed| {
                    match failed {
                        CopyError::Source(e) => read_error(e),
                        CopyError::Sink(e) => error(&e),
                    }
                })?
            }
        };
        if found != wanted {
            return Err(BucketError {
                kind: BucketErrorKind::Corrupt,
                action: "write",
                place: place_of(for_path),
                detail: "the bytes to store do not hash to the SHA-256 that was announced for them".into(),
            });
        }
        file.sync_all().map_err(|e| error(&e))?;
        Ok(temporary)
    }

    /// Writes the type down where it cannot be told, and removes one that an earlier try left.
    fn keep_type(
        &self,
        name: &str,
        temporary: &Temporary,
        declared: &ContentType,
    ) -> Result<(), BucketError> {
        let name_of_type = type_name(name);
        let path = self.path_of("write", &name_of_type)?;
        if *declared == content_type::implied(name, &temporary.head) {
            return match fs::remove_file(&path) {
                Ok(()) => self.sync_parent(&path).map_err(|e| io_error("sync", &path, &e)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(io_error("write", &path, &e)),
            };
        }
        let line = Body::Bytes(format!("{declared}\n").into());
        let temporary = self.write_temporary(&path, &line, None)?;
        self.make_parents(&path)?;
        self.publish(&temporary, &path, false)
            .map_err(|e| io_error("write", &path, &e))?;
        Ok(())
    }

    /// Makes the folders above a path, and sees to it that each one's entry is on the disk. The lock is held
    /// all the while, so that nobody relies on a folder that another thread has made but not synced.
    fn make_parents(&self, path: &Path) -> Result<(), BucketError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let folders = path.strip_prefix(&self.root).ok().and_then(Path::parent);
        let mut folder = self.root.clone();
        for part in folders.into_iter().flatten() {
            let above = folder.clone();
            folder.push(part);
            let made = match DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                Err(e) => return Err(io_error("make", &folder, &e)),
            };
            if made || !synced.contains(&folder) {
                sync_folder(&above).map_err(|e| io_error("sync", &above, &e))?;
                if synced.len() >= SYNCED_MAX {
                    synced.clear();
                }
                synced.insert(folder.clone());
            }
        }
        Ok(())
    }

    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        sync_folder(path.parent().unwrap_or(&self.root))
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), BucketError> {
        // The object first: a type without an object does no harm, the other way round one would change.
        for name in [name, &type_name(name)] {
            let path = self.path_of("delete", name)?;
            if self.plain_file("delete", &path)?.is_none() {
                continue;
            }
            let error = |e: io::Error| io_error("delete", &path, &e);
            match fs::remove_file(&path) {
                Ok(()) => self.sync_parent(&path).map_err(error)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => (),
                Err(e) => return Err(error(e)),
            }
            self.remove_empty_parents(&path);
        }
        Ok(())
    }

    /// An erased account leaves no folder behind. Best effort: an empty folder holds nothing but its name.
    fn remove_empty_parents(&self, path: &Path) {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let top = self.root.join(names::ROOT);
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != top) {
            if fs::remove_dir(folder).is_err() || self.sync_parent(folder).is_err() {
                return;
            }
            synced.remove(folder);
        }
    }

    pub(super) fn clean_up(&self, now: Option<Timestamp>) -> Result<u64, BucketError> {
        let folder = self.root.join(names::TEMPORARY);
        let error = |e: io::Error| io_error("clean up", &folder, &e);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(error(e)),
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry.map_err(error)?;
            // One that is gone was another writer's, at work.
            let Ok(changed) = entry.metadata().and_then(|found| found.modified()) else {
                continue;
            };
            let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
            let age = now.map(|now| now.since(Timestamp::default().plus(changed)));
            let goes = match age {
                Some(age) => age > LEFTOVER_AGE,
                None => !at_work().contains(&entry.path()),
            };
            if !goes {
                continue;
            }
            match fs::remove_file(entry.path()) {
                Ok(()) => removed += 1,
                Err(e) if age.is_none() && e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
                Err(_) => {}
            }
        }
        Ok(removed)
    }
}

enum CopyError {
    Source(io::Error),
    Sink(io::Error),
}

/// Copies a file, keeps its first bytes, and hashes it if it is asked to.
fn copy(
    source: &mut File,
    sink: &mut File,
    head: &mut Vec<u8>,
    hashing: bool,
) -> Result<Option<Digest>, CopyError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Source(e)),
        };
        let bytes = &buffer[..count];
        head.extend_from_slice(&bytes[..count.min(HEAD_BYTES - head.len())]);
        if hashing {
            hash.update(bytes);
        }
        sink.write_all(bytes).map_err(CopyError::Sink)?;
    }
    Ok(hashing.then(|| hash.finalize().into()))
}
