#![allow(clippy::disallowed_methods, reason = "shell: tasks")]
//! The one door to the store of the archive: a local folder or an S3 bucket, with the same promises.
//!
//! - An object is there whole or not at all, and durable once [`Bucket::put`] returns.
//! - A `create_only` put never changes an object that is there: of many at once, one makes it, and the others are
//!   told. (On the few S3 stores without conditional writes this is checked, not enforced:
//!   [`Bucket::create_only_is_atomic`].)
//! - What is read is as long as it was, else the stream ends with an error, and it hashes to the digest that was
//!   stored beside it, where one was.
//! - [`Bucket::list`] gives names in byte order. A list is for finding things; a missing name in it proves nothing.

// Shell: sockets and files are reached through `folder` and `s3`.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use super::content_type::ContentType;
use super::folder::FolderBucket;
use super::names::{self, NameError};
use super::s3::S3Bucket;
use super::settings::{ArchiveConfig, ArchiveUrl};
use crate::types::{Digest, Timestamp};

/// Most names on a page of a list.
pub const LIST_NAMES_MAX: usize = 1000;

/// A bucket that is open. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Bucket {
    /// A local folder.
    Folder(FolderBucket),
    /// A bucket in S3 or a store like it.
    S3(S3Bucket),
}

/// What to store.
#[derive(Debug, Clone)]
pub enum Body {
    /// These bytes, sent as one piece. What may have more than 16 MiB belongs into a file.
    Bytes(Bytes),
    /// A file's content. The file must not change until the put has returned, and stays where it is.
    File(PathBuf),
}

/// How to store it.
#[derive(Debug, Clone)]
pub struct PutOptions {
    /// The object's type.
    pub content_type: ContentType,
    /// Refuse to replace an object.
    pub create_only: bool,
    /// The SHA-256 of the body, where it is known already: the put fails if the body is another.
    pub sha256: Option<Digest>,
}

impl PutOptions {
    /// For an object that is written once: almost every one.
    #[must_use]
    pub const fn create(content_type: ContentType) -> Self {
        Self {
            content_type,
            create_only: true,
            sha256: None,
        }
    }
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is stored, and durable.
    Created,
    /// There was one of this name already, and it stays: perhaps from an earlier try of ours, so compare.
    AlreadyThere,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Its length in bytes.
    pub size: u64,
    /// Its type.
    pub content_type: ContentType,
    /// The digest that was stored beside it. A folder stores none.
    pub sha256: Option<Digest>,
}

/// An object that is being read.
pub struct ObjectBody {
    /// Its length in bytes.
    pub size: u64,
    /// Its type.
    pub content_type: ContentType,
    /// Its bytes. Ends with an error if they are fewer or more than `size`, or hash to another digest than the
    /// one stored beside them.
    pub stream: BoxStream<'static, Result<Bytes, BucketError>>,
    /// For errors.
    place: String,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// At most [`LIST_NAMES_MAX`], in byte order.
    pub objects: Vec<ListedObject>,
    /// Give this as `after` for the next page; `None`: there is none.
    pub next: Option<String>,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its name, perhaps not one of ours ([`names::ObjectName`] tells).
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Bucket {
    /// Opens the bucket. For a folder, its last component is made if need be; for S3, nothing is sent yet.
    ///
    /// # Errors
    /// When the folder cannot be opened, or credentials or region are missing.
    pub async fn open(config: &ArchiveConfig) -> Result<Self, BucketError> {
        match &config.url {
            ArchiveUrl::Folder(path) => FolderBucket::open(path).await.map(Self::Folder),
            ArchiveUrl::S3 { bucket, prefix } => {
                S3Bucket::open(bucket, prefix, &config.s3).await.map(Self::S3)
            }
        }
    }

    /// Opens a bucket for reading what is in it: a folder that is not there is not made. `None`: there is none.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_existing(config: &ArchiveConfig) -> Result<Option<Self>, BucketError> {
        match &config.url {
            ArchiveUrl::Folder(path) if !path.exists() => Ok(None),
            _ => Self::open(config).await.map(Some),
        }
    }

    /// Stores an object.
    ///
    /// # Errors
    /// See [`BucketErrorKind`]. After an error the object may or may not be there; trying again is safe.
    pub async fn put(&self, name: &str, body: Body, options: &PutOptions) -> Result<PutOutcome, BucketError> {
        self.check_name("write", name)?;
        match self {
            Self::Folder(folder) => folder.put(name, body, options).await,
            Self::S3(s3) => s3.put(name, body, options).await,
        }
    }

    /// Opens an object for reading; `None` if there is none.
    ///
    /// # Errors
    /// See [`BucketErrorKind`].
    pub async fn get(&self, name: &str) -> Result<Option<ObjectBody>, BucketError> {
        self.check_name("read", name)?;
        match self {
            Self::Folder(folder) => folder.get(name).await,
            Self::S3(s3) => s3.get(name).await,
        }
    }

    /// What is known of an object; `None` if there is none.
    ///
    /// # Errors
    /// See [`BucketErrorKind`].
    pub async fn head(&self, name: &str) -> Result<Option<ObjectHead>, BucketError> {
        self.check_name("look up", name)?;
        match self {
            Self::Folder(folder) => folder.head(name).await,
            Self::S3(s3) => s3.head(name).await,
        }
    }

    /// The names that begin with `prefix` and sort behind `after`, as many as fit on a page.
    ///
    /// # Errors
    /// See [`BucketErrorKind`].
    pub async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, BucketError> {
        match self {
            Self::Folder(folder) => folder.list(prefix, after).await,
            Self::S3(s3) => s3.list(prefix, after).await,
        }
    }

    /// Removes an object; fine if there is none.
    ///
    /// # Errors
    /// See [`BucketErrorKind`].
    pub async fn delete(&self, name: &str) -> Result<(), BucketError> {
        self.check_name("delete", name)?;
        match self {
            Self::Folder(folder) => folder.delete(name).await,
            Self::S3(s3) => s3.delete(name).await,
        }
    }

    /// Removes what writers left unfinished more than a day before `now`, below the archive's own prefix; without
    /// `now` however young, but for what this process is at. For whoever writes the archive, at its start and when
    /// bytes must be gone. Returns how many; none: the store cannot say what there is.
    ///
    /// # Errors
    /// See [`BucketErrorKind`].
    pub async fn clean_up(&self, now: Option<Timestamp>) -> Result<Option<u64>, BucketError> {
        match self {
            Self::Folder(folder) => folder.clean_up(now).await.map(Some),
            Self::S3(s3) => s3.clean_up(now).await,
        }
    }

    /// Whether the store itself decides who of two creators was first. `false` once an S3 store has said that it
    /// has no conditional writes, or was seen to ignore them: then only one process may write.
    #[must_use]
    pub fn create_only_is_atomic(&self) -> bool {
        match self {
            Self::Folder(_) => true,
            Self::S3(s3) => s3.create_only_is_atomic(),
        }
    }

    /// The store was seen to replace an object that must not be replaced: from now on we look first.
    pub fn distrust_create_only(&self) {
        match self {
            Self::Folder(_) => {}
            Self::S3(s3) => s3.distrust_create_only(),
        }
    }

    fn check_name(&self, action: &'static str, name: &str) -> Result<(), BucketError> {
        names::check_object_name(name).map_err(|error: NameError| BucketError {
            kind: BucketErrorKind::BadName,
            action,
            place: self.to_string(),
            detail: error.to_string(),
        })
    }
}

impl fmt::Display for Bucket {
    /// The bucket's URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.fmt(f),
            Self::S3(s3) => s3.fmt(f),
        }
    }
}

impl ObjectBody {
    /// Wraps a stream so that it ends with an error unless it is `size` bytes long and hashes to `sha256`.
    pub(super) fn checked(
        place: String,
        head: ObjectHead,
        stream: impl futures_util::Stream<Item = Result<Bytes, BucketError>> + Send + 'static,
    ) -> Self {
        let check = StreamCheck {
            place: place.clone(),
            size: head.size,
            read: 0,
            wanted: head.sha256,
            hash: Sha256::new(),
        };
        let state = Some((check, stream.boxed()));
        let stream = stream::unfold(state, |state| async {
            let (mut check, mut stream) = state?;
            match stream.next().await {
                Some(Ok(bytes)) => match check.pass(&bytes) {
                    Ok(()) => Some((Ok(bytes), Some((check, stream)))),
                    Err(error) => Some((Err(error), None)),
                },
                Some(Err(error)) => Some((Err(error), None)),
                None => check.end().err().map(|error| (Err(error), None)),
            }
        });
        Self {
            size: head.size,
            content_type: head.content_type,
            stream: stream.boxed(),
            place,
        }
    }

    /// All of the object, if it has at most `bytes_max`.
    ///
    /// # Errors
    /// [`BucketErrorKind::TooLarge`], or the stream's.
    pub async fn bytes(mut self, bytes_max: usize) -> Result<Bytes, BucketError> {
        let size = usize::try_from(self.size).ok().filter(|size| *size <= bytes_max);
        let size = size.ok_or_else(|| BucketError {
            kind: BucketErrorKind::TooLarge,
            action: "read",
            place: self.place.clone(),
            detail: format!("it has {} bytes; at most {bytes_max} are read", self.size),
        })?;
        let mut out = Vec::with_capacity(size);
        while let Some(bytes) = self.stream.next().await {
            // The stream never gives more than `size`.
            out.extend_from_slice(&bytes?);
        }
        Ok(out.into())
    }

    /// The object as a blocking reader, for code that is not async. Only for a thread that may block: not for
    /// one of the runtime's own.
    #[must_use]
    pub fn into_reader(self, runtime: Handle) -> ObjectReader {
        ObjectReader {
            stream: self.stream,
            runtime,
            rest: Bytes::new(),
        }
    }
}

impl fmt::Debug for ObjectBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, content_type) = (&self.size, &self.content_type);
        write!(f, "ObjectBody {{ size: {size}, content_type: {content_type} }}")
    }
}

struct StreamCheck {
    place: String,
    size: u64,
    read: u64,
    wanted: Option<Digest>,
    hash: Sha256,
}

impl StreamCheck {
    fn pass(&mut self, bytes: &[u8]) -> Result<(), BucketError> {
        self.read += bytes.len() as u64;
        if self.read > self.size {
            return Err(self.corrupt(format!(
                "more than the {} bytes it should have came back",
                self.size
            )));
        }
        if self.wanted.is_some() {
            self.hash.update(bytes);
        }
        Ok(())
    }

    fn end(self) -> Result<(), BucketError> {
        if self.read < self.size {
            // A connection that broke, mostly: reading again may help.
            return Err(BucketError {
                kind: BucketErrorKind::Unreachable,
                action: "read",
                detail: format!("only {} of {} bytes came back", self.read, self.size),
                place: self.place,
            });
        }
        let found: Digest = self.hash.clone().finalize().into();
        if self.wanted.is_some_and(|wanted| wanted != found) {
            return Err(
                self.corrupt("its bytes do not hash to the SHA-256 that was stored beside them".into())
            );
        }
        Ok(())
    }

    fn corrupt(&self, detail: String) -> BucketError {
        BucketError {
            kind: BucketErrorKind::Corrupt,
            action: "read",
            place: self.place.clone(),
            detail,
        }
    }
}

/// An object as a blocking reader ([`ObjectBody::into_reader`]).
pub struct ObjectReader {
    stream: BoxStream<'static, Result<Bytes, BucketError>>,
    runtime: Handle,
    rest: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// What went wrong with the store, for a person: what was tried, on what, why it failed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} {place}: {detail}{}", kind.remedy())]
pub struct BucketError {
    /// What to do about it.
    pub kind: BucketErrorKind,
    /// What was tried: "read", "write", …
    pub action: &'static str,
    /// The bucket, folder or object.
    pub place: String,
    /// Why it failed. One line.
    pub detail: String,
}

impl BucketError {
    /// Whether the same call may succeed later without anybody doing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        use BucketErrorKind as K;
        matches!(self.kind, K::Unreachable | K::Busy | K::Conflict)
    }
}

/// What to do about a [`BucketError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BucketErrorKind {
    /// The store does not know the credentials, or there are none.
    Credentials,
    /// The store or the operating system forbids it.
    Refused,
    /// There is no such bucket.
    NoBucket,
    /// The bucket lies in another region.
    WrongRegion,
    /// What should be a folder (or a plain file) is none.
    NotAFolder,
    /// Something in the folder archive is a symbolic link.
    Symlink,
    /// The disk is full, or a quota reached.
    Full,
    /// The store cannot be reached, or the connection broke.
    Unreachable,
    /// The store asks to be left alone for a while, or has an inner error.
    Busy,
    /// Another writer was at the same object.
    Conflict,
    /// This machine's clock and the store's are too far apart.
    ClockSkew,
    /// What is stored is not what should be.
    Corrupt,
    /// The store cannot do that.
    Unsupported,
    /// The object is larger than it may be.
    TooLarge,
    /// The name is none for an object.
    BadName,
    /// A setting is missing.
    Setting,
    /// Something else.
    Other,
}

impl BucketErrorKind {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Credentials => "; check the S3 credentials (s3.access_key_id_file, or the AWS_… variables)",
            Self::Refused => "; give Firekeep's user or key the right to read, write and list there",
            Self::NoBucket => {
                "; create the bucket, or correct archive = \"s3://…\" (Firekeep makes no buckets)"
            }
            Self::WrongRegion => "; correct s3.region",
            Self::NotAFolder => "; correct archive = \"file://…\", or make room at that path",
            Self::Symlink => {
                "; an archive holds no symbolic links: mount the other disk there, or move the archive"
            }
            Self::Full => "; free some space there",
            Self::Unreachable => "; it is tried again; check s3.endpoint and the network if it stays so",
            Self::Busy => "; it is tried again",
            Self::Conflict => "; it is tried again",
            Self::ClockSkew => "; set this machine's clock (NTP)",
            Self::Corrupt => "; do not trust this object: run `firekeep verify`",
            Self::Unsupported => "; choose another store for the archive",
            Self::Setting | Self::TooLarge | Self::BadName | Self::Other => "",
        }
    }
}

#[cfg(test)]
mod tests;
