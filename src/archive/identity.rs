#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! `v1/archive.json`: whose bucket this is, and who may read it.
//!
//! The object is made once, as the first of all, and never changes. What the mirror knows to be archived is known
//! of one archive's id; another id (another bucket behind the same name, an emptied folder, a mount that is not
//! there) means that nothing is. A bucket that holds anything but has no such object is refused: it is somebody
//! else's, or an archive that lost its head, and writing into either would do harm.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde_json::Map;

use super::bucket::{Body, Bucket, BucketError, PutOptions, PutOutcome};
use super::content_type::ContentType;
use super::names;
use super::sealed::{self, Seal};
use crate::types::{SyntaxError, Timestamp};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The oldest format version whose readers can read what this version writes.
const LEAST_READER: u32 = 1;
/// Longest `archive.json` that is read, in bytes.
const BYTES_MAX: usize = 64 * 1024;

/// What tells one archive from another: 16 random bytes, shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArchiveId([u8; 16]);

impl ArchiveId {
    /// From random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ArchiveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ArchiveId {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(SyntaxError::new(
            "archive id",
            "must be 32 lower-case hexadecimal digits",
        ))
    }
}

/// What `archive.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// Which archive this is.
    pub id: ArchiveId,
    /// The format of whoever made it.
    pub format: u32,
    /// The oldest format version whose readers can read it.
    pub least_reader: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Made by a later version, in a way that this one cannot read.
    #[error(
        "{place} was written by a newer Firekeep: reading it needs format {least_reader}, and this version knows \
         format {FORMAT}; use a newer version"
    )]
    TooNew {
        /// The bucket.
        place: String,
        /// What it asks for.
        least_reader: u32,
    },
    /// Made by a later version: can be read, but not written to.
    #[error(
        "{place} has format {format}, and this version knows format {FORMAT}: it can read that archive, but must \
         not write to it; use a newer version"
    )]
    ReadOnly {
        /// The bucket.
        place: String,
        /// Its format.
        format: u32,
    },
    /// It holds something, but is no archive.
    #[error(
        "{place} is not empty and holds no archive (there is no {}, but {found:?}); \
         give Firekeep an empty folder or a prefix of its own",
        names::ARCHIVE
    )]
    NotAnArchive {
        /// The bucket.
        place: String,
        /// Something that it holds.
        found: String,
    },
    /// `archive.json` makes no sense.
    #[error(
        "{place}/{} is damaged: {detail}; nothing is written while it cannot be read",
        names::ARCHIVE
    )]
    Damaged {
        /// The bucket.
        place: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The bucket cannot be used.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Opens the archive in a bucket for writing. An empty bucket becomes one, with the id `new_id`.
///
/// # Errors
/// When the bucket holds something else, or an archive that this version must not write to, or cannot be used.
pub async fn open_or_create(
    bucket: &Bucket,
    new_id: ArchiveId,
    now: Timestamp,
) -> Result<ArchiveId, IdentityError> {
    let info = match read(bucket).await? {
        Some(info) => info,
        None => create(bucket, new_id, now).await?,
    };
    must_be_known(bucket, &info)?;
    Ok(info.id)
}

/// Reads what an archive says of itself; `None` if the bucket has no `archive.json`.
///
/// # Errors
/// When this version cannot read the archive, or the bucket cannot be used.
pub async fn read(bucket: &Bucket) -> Result<Option<ArchiveInfo>, IdentityError> {
    let Some(object) = bucket.get(names::ARCHIVE).await? else {
        return Ok(None);
    };
    let bytes = object.bytes(BYTES_MAX).await?;
    let info = decode(&bytes).map_err(|detail| IdentityError::Damaged {
        place: bucket.to_string(),
        detail,
    })?;
    if info.least_reader > FORMAT {
        let (place, least_reader) = (bucket.to_string(), info.least_reader);
        return Err(IdentityError::TooNew { place, least_reader });
    }
    Ok(Some(info))
}

/// Whether a bucket holds an archive, or nothing: then it can become one. Writes nothing.
///
/// # Errors
/// As [`open_or_create`].
pub async fn check(bucket: &Bucket) -> Result<(), IdentityError> {
    match read(bucket).await? {
        Some(info) => must_be_known(bucket, &info),
        None => must_be_empty(bucket).await,
    }
}

fn must_be_known(bucket: &Bucket, info: &ArchiveInfo) -> Result<(), IdentityError> {
    if info.format > FORMAT {
        let (place, format) = (bucket.to_string(), info.format);
        return Err(IdentityError::ReadOnly { place, format });
    }
    Ok(())
}

async fn must_be_empty(bucket: &Bucket) -> Result<(), IdentityError> {
    let mut listed = bucket.list("", None).await?.objects.into_iter();
    // A probe that was cut off leaves nothing of anybody's.
    if let Some(found) = listed.find(|object| !object.name.starts_with(names::PROBE))
        && found.name != names::ARCHIVE
    {
        let (place, found) = (bucket.to_string(), found.name);
        return Err(IdentityError::NotAnArchive { place, found });
    }
    Ok(())
}

async fn create(bucket: &Bucket, id: ArchiveId, created: Timestamp) -> Result<ArchiveInfo, IdentityError> {
    must_be_empty(bucket).await?;
    let (format, least_reader) = (FORMAT, LEAST_READER);
    let info = ArchiveInfo {
        id,
        format,
        least_reader,
        created,
    };
    let options = PutOptions::create(ContentType::json());
    let put = bucket.put(names::ARCHIVE, Body::Bytes(encode(&info).into()), &options);
    match put.await? {
        // To the millisecond, as everybody else will read it.
        PutOutcome::Created => Ok(info),
        // Somebody was quicker, or it was us before a connection broke. Theirs counts.
        PutOutcome::AlreadyThere => read(bucket).await?.ok_or_else(|| IdentityError::Damaged {
            place: bucket.to_string(),
            detail: "it appears and disappears".into(),
        }),
    }
}

#[derive(Deserialize)]
struct Json {
    id: String,
    format: u32,
    least_reader: u32,
    created: String,
}

fn encode(info: &ArchiveInfo) -> Vec<u8> {
    sealed::seal(Map::from_iter([
        ("id".to_owned(), info.id.to_string().into()),
        ("format".to_owned(), info.format.into()),
        ("least_reader".to_owned(), info.least_reader.into()),
        ("created".to_owned(), info.created.to_string().into()),
    ]))
}

/// Later formats may add fields, which are not ours to judge.
fn decode(bytes: &[u8]) -> Result<ArchiveInfo, String> {
    if sealed::check(bytes) == Seal::Broken {
        return Err("its own checksum does not fit its bytes".to_owned());
    }
    let json: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let bad = |error: SyntaxError| error.to_string();
    Ok(ArchiveInfo {
        id: json.id.parse().map_err(bad)?,
        format: json.format,
        least_reader: json.least_reader,
        created: json.created.parse().map_err(bad)?,
    })
}

#[cfg(test)]
mod tests;
