#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! A folder as the archive's store.
//!
//! **Writing.** An object's bytes go to a file of their own in `v1/.tmp/`, which is synced; then that file gets the
//! object's name: by a hard link where no object may be replaced (it fails where the name is taken, and unlike a
//! look and a rename it cannot race), by a rename else; then the folder is synced, and each folder above it whose
//! own entry this process has not seen synced. So a name never stands for half an object, not even after a power
//! cut. Leftovers in `v1/.tmp/` are never listed and are removed when they are a day old.
//!
//! **Content types.** `v1/blocks/<did>/<cid>` holds a blob's plain bytes and nothing else, so its type has to be
//! somewhere else. Extended attributes are lost by most tools that copy files; a file beside each blob doubles
//! the files and syncs of an archive. But most types can be told from the ending or from the first bytes
//! ([`content_type::implied`](super::content_type::implied)), and only where the declared type is another one is
//! it written down, as a line of text in `v1/types/` under the object's own name
//! (`v1/types/blocks/<did>/<cid>`), before the object appears. Where such a file is lost nothing but the type is,
//! and for a blob that stands in the records that refer to it too.
//!
//! **Symbolic links** are refused anywhere below the root, with an error of their own, so that no name leads out of
//! it. The root itself may be one. File systems without hard links (FAT) cannot hold an archive.
//!
//! Folders are made with mode 0700 and files with 0600: the archive holds what was deleted, too.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio_util::io::ReaderStream;

use super::bucket::{
    Body, BucketError, BucketErrorKind, ListPage, ObjectBody, ObjectHead, PutOptions, PutOutcome,
};
use super::names;
use crate::types::Timestamp;

mod read;
mod write;

/// As much of a file as is read at once, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// A folder that is open as an archive. Cheap to clone.
#[derive(Clone)]
pub struct FolderBucket(Arc<Folder>);

/// What the blocking half works with.
struct Folder {
    /// Absolute, without symbolic links.
    root: PathBuf,
    /// Folders whose entry in the folder above is known to be synced. Locked while folders are made or removed.
    synced: Mutex<HashSet<PathBuf>>,
    /// Makes names of temporary files differ.
    temporaries: AtomicU64,
}

impl FolderBucket {
    /// Opens a folder; makes it if only its last component is missing. (Not more: a missing mount must not become a
    /// new, empty archive on the wrong disk.)
    ///
    /// # Errors
    /// When it is not a folder, or may not be opened or made.
    pub async fn open(path: &Path) -> Result<Self, BucketError> {
        let path = path.to_owned();
        let root = run_blocking(move || open_root(&path)).await?;
        Ok(Self(Arc::new(Folder {
            root,
            synced: Mutex::default(),
            temporaries: AtomicU64::new(0),
        })))
    }

    /// See [`Bucket::put`](super::bucket::Bucket::put).
    pub(super) async fn put(
        &self,
        name: &str,
        body: Body,
        options: &PutOptions,
    ) -> Result<PutOutcome, BucketError> {
        let (folder, name, options) = (Arc::clone(&self.0), name.to_owned(), options.clone());
        run_blocking(move || folder.put(&name, &body, &options)).await
    }

    /// See [`Bucket::get`](super::bucket::Bucket::get).
    pub(super) async fn get(&self, name: &str) -> Result<Option<ObjectBody>, BucketError> {
        let (folder, of) = (Arc::clone(&self.0), name.to_owned());
        let Some((file, head)) = run_blocking(move || folder.open_object(&of)).await? else {
            return Ok(None);
        };
        let path = self.0.root.join(name);
        let place = place_of(&path);
        let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
        let chunks = futures_util::StreamExt::map(chunks, move |chunk| {
            chunk.map_err(|error| io_error("read", &path, &error))
        });
        Ok(Some(ObjectBody::checked(place, head, chunks)))
    }

    /// See [`Bucket::head`](super::bucket::Bucket::head).
    pub(super) async fn head(&self, name: &str) -> Result<Option<ObjectHead>, BucketError> {
        let (folder, name) = (Arc::clone(&self.0), name.to_owned());
        let opened = run_blocking(move || folder.open_object(&name)).await?;
        Ok(opened.map(|(_, head)| head))
    }

    /// See [`Bucket::list`](super::bucket::Bucket::list).
    pub(super) async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, BucketError> {
        let (folder, prefix, after) = (Arc::clone(&self.0), prefix.to_owned(), after.map(str::to_owned));
        run_blocking(move || folder.list(&prefix, after.as_deref())).await
    }

    /// See [`Bucket::delete`](super::bucket::Bucket::delete).
    pub(super) async fn delete(&self, name: &str) -> Result<(), BucketError> {
        let (folder, name) = (Arc::clone(&self.0), name.to_owned());
        run_blocking(move || folder.delete(&name)).await
    }

    /// See [`Bucket::clean_up`](super::bucket::Bucket::clean_up).
    pub(super) async fn clean_up(&self, now: Option<Timestamp>) -> Result<u64, BucketError> {
        let folder = Arc::clone(&self.0);
        run_blocking(move || folder.clean_up(now)).await
    }
}

impl fmt::Display for FolderBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.0.root.display())
    }
}

impl fmt::Debug for FolderBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Runs file work off the runtime's threads. It runs to its end even if the caller goes away.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BucketError> + Send + 'static,
) -> Result<T, BucketError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BucketError {
                kind: BucketErrorKind::Other,
                action: "use",
                place: "the archive".into(),
                detail: "Firekeep is shutting down".into(),
            }),
        },
    }
}

fn open_root(path: &Path) -> Result<PathBuf, BucketError> {
    let error = |error: &io::Error| io_error("open", path, error);
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            sync_folder(parent).map_err(|e| error(&e))?;
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(BucketError {
                kind: BucketErrorKind::NotAFolder,
                action: "open",
                place: place_of(path),
                detail: "the folder that it should lie in does not exist".into(),
            });
        }
        // A folder that is there may still be one that we may use.
        Err(_) if path.is_dir() => (),
        Err(e) => return Err(error(&e)),
    }
    let root = fs::canonicalize(path).map_err(|e| error(&e))?;
    // Fails here, not at the first object, if it is no folder or may not be read.
    fs::read_dir(&root).map_err(|e| error(&e))?;
    Ok(root)
}

impl Folder {
    /// The path of a name, none of whose folders is a symbolic link or a file. It need not exist.
    fn path_of(&self, action: &'static str, name: &str) -> Result<PathBuf, BucketError> {
        let mut path = self.root.clone();
        let mut parts = name.split('/').peekable();
        while let Some(part) = parts.next() {
            path.push(part);
            if parts.peek().is_none() {
                break;
            }
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => (),
                Ok(found) if found.is_symlink() => return Err(symlink(action, &path)),
                Ok(_) => {
                    let not_a_folder = io::Error::from(io::ErrorKind::NotADirectory);
                    return Err(io_error(action, &path, &not_a_folder));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.root.join(name)),
                Err(error) => return Err(io_error(action, &path, &error)),
            }
        }
        Ok(path)
    }

    /// The length and identity of the plain file at a path; `None` if there is nothing.
    fn plain_file(&self, action: &'static str, path: &Path) -> Result<Option<fs::Metadata>, BucketError> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => Ok(Some(found)),
            Ok(found) if found.is_symlink() => Err(symlink(action, path)),
            Ok(_) => {
                let folder = io::Error::from(io::ErrorKind::IsADirectory);
                Err(io_error(action, path, &folder))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(action, path, &error)),
        }
    }
}

/// Where the type of an object is written down, if it is.
fn type_name(name: &str) -> String {
    let rest = name.strip_prefix(names::ROOT).unwrap_or(name);
    format!("{}{rest}", names::TYPES)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn place_of(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn symlink(action: &'static str, path: &Path) -> BucketError {
    BucketError {
        kind: BucketErrorKind::Symlink,
        action,
        place: place_of(path),
        detail: "it is a symbolic link".into(),
    }
}

fn io_error(action: &'static str, path: &Path, error: &io::Error) -> BucketError {
    use io::ErrorKind as E;
    let kind = match error.kind() {
        E::PermissionDenied | E::ReadOnlyFilesystem => BucketErrorKind::Refused,
        E::StorageFull | E::QuotaExceeded => BucketErrorKind::Full,
        E::NotADirectory | E::IsADirectory => BucketErrorKind::NotAFolder,
        E::FileTooLarge => BucketErrorKind::TooLarge,
        E::TimedOut | E::StaleNetworkFileHandle | E::HostUnreachable | E::NetworkUnreachable => {
            BucketErrorKind::Unreachable
        }
        _ => BucketErrorKind::Other,
    };
    BucketError {
        kind,
        action,
        place: place_of(path),
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
