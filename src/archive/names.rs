//! The names of the archive's objects. The names are the index: whoever can list the bucket can restore from it.
//!
//! A name is built only from parsed types, never from input text, and a parser takes exactly what a builder
//! makes: [`ObjectName`] parsed from a text always displays as that text. What is not canonical (a number
//! without its leading zeros, a host in upper case, a blob under a dag-cbor CID) is refused.
//!
//! **DIDs and hosts as folder names.** A DID stands in names literally: a PDS's own blobstore does the same, so
//! one copy of `v1/blocks/` fills a new PDS's bucket, and an escape would break that. This is safe because of what
//! [`Did`] allows: it begins with `did:`, so it is never `.` or `..` and never hidden, and it holds only letters,
//! digits and `. _ : % -`, so no separator, no NUL and no space. `%` is an ordinary character in a file name and
//! in an S3 key, and nothing here decodes it. Two DIDs that differ only in case are two folders: the archive
//! needs a case-sensitive file system. What is left is length: file systems take 255 bytes a component, so a DID
//! or host longer than [`FOLDER_BYTES_MAX`] is refused ([`DidFolder`], [`HostFolder`]), in S3 as well, for an
//! archive must be able to move to a folder. A `did:plc` has 32 bytes; only a `did:web` of a domain name close to
//! DNS's own limit can reach ours, and its account is then reported, not archived.
//!
//! Numbers are decimal with 20 digits (any `u64`), times RFC 3339 in UTC with milliseconds, so the order of the
//! names is the order of what they name. A shard is a plain number.

use std::fmt;
use std::str::FromStr;

use crate::types::{Cid, Codec, Did, Digest, HostName, Rev, SyntaxError, Timestamp};

/// The object that says whose bucket this is.
pub const ARCHIVE: &str = "v1/archive.json";
/// Everything that this format version writes lies below.
pub const ROOT: &str = "v1/";
/// Snapshots and deltas, a folder each DID.
pub const REPOS: &str = "v1/repos/";
/// Segments, a folder each shard.
pub const LOG: &str = "v1/log/";
/// Blobs, a folder each DID.
pub const BLOBS: &str = "v1/blocks/";
/// Followed DIDs, pins and alarms.
pub const SERVICE: &str = "v1/service/";
/// Private state of PDSes, encrypted.
pub const STATE: &str = "v1/state/";
/// Notes of erasures.
pub const ERASED: &str = "v1/erased/";
/// What a probe of the store writes and removes again: no objects of an archive.
pub const PROBE: &str = "v1/probe/";
/// A folder archive's unfinished writes: no objects, never listed.
pub const TEMPORARY: &str = "v1/.tmp/";
/// A folder archive's content types, where the bytes do not tell them: no objects, never listed.
pub const TYPES: &str = "v1/types/";

/// Longest DID or host that can be a folder name, in bytes: a file system's 255, less the longest ending that
/// is put behind it.
pub const FOLDER_BYTES_MAX: usize = 240;
/// Longest object name, in bytes. S3 takes 1024 with the archive's own prefix, which may have 256.
pub const NAME_BYTES_MAX: usize = 768;
/// Most components that an object name may have.
pub const NAME_PARTS_MAX: usize = 8;

/// Why there is no such name. Never carries the text, which may be hostile and long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A DID or host that no file system takes as a folder name.
    #[error(
        "this {what} has {bytes} bytes; a folder of the archive is named by it and may have at most {FOLDER_BYTES_MAX}"
    )]
    FolderTooLong {
        /// `DID` or `host`.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A delta whose first rev is not older than its last.
    #[error("a delta must run from an older rev to a newer one")]
    RevsOutOfOrder,
    /// The folders or the ending are those of no known kind of object.
    #[error("not the name of any object of a v1 archive")]
    Unknown,
    /// It can be read, but would be written differently.
    #[error("not in its canonical form")]
    NotCanonical,
    /// It names an object of another kind than was asked for.
    #[error("names an object of another kind: wanted a {wanted}")]
    OtherKind {
        /// The kind that was asked for.
        wanted: &'static str,
    },
    /// A part of it is not a valid identifier.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// Not a safe object name at all ([`check_object_name`]).
    #[error("not an object name: {0}")]
    Unsafe(&'static str),
}

/// Checks what every object name must be, of whatever kind: below [`ROOT`], at most [`NAME_BYTES_MAX`] bytes of
/// visible ASCII without `\`, in at most [`NAME_PARTS_MAX`] components of 1 to 255 bytes, none beginning with a
/// dot, and not in a folder archive's own folders.
///
/// # Errors
/// [`NameError::Unsafe`], with the rule.
pub fn check_object_name(name: &str) -> Result<(), NameError> {
    let bad = |rule| Err(NameError::Unsafe(rule));
    if name.len() > NAME_BYTES_MAX {
        return bad("must be at most 768 bytes");
    }
    if !name.starts_with(ROOT) {
        return bad("must begin with v1/");
    }
    if !name.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return bad("must be visible ASCII without backslashes");
    }
    if name.split('/').count() > NAME_PARTS_MAX {
        return bad("must have at most 8 components");
    }
    for part in name.split('/') {
        if part.is_empty() || part.len() > 255 {
            return bad("components must be 1 to 255 bytes");
        }
        if part.starts_with('.') {
            return bad("components must not begin with a dot");
        }
    }
    if name.starts_with(TYPES) || name == TYPES.trim_end_matches('/') {
        return bad("v1/types is the folder archive's own");
    }
    Ok(())
}

/// A DID that can be a folder name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DidFolder(Did);

impl DidFolder {
    /// The DID.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.0
    }
}

impl TryFrom<&Did> for DidFolder {
    type Error = NameError;

    fn try_from(did: &Did) -> Result<Self, NameError> {
        check_folder("DID", did.as_str())?;
        Ok(Self(did.clone()))
    }
}

impl fmt::Display for DidFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A host that can be a folder name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostFolder(HostName);

impl HostFolder {
    /// The host.
    #[must_use]
    pub const fn host(&self) -> &HostName {
        &self.0
    }
}

impl TryFrom<&HostName> for HostFolder {
    type Error = NameError;

    fn try_from(host: &HostName) -> Result<Self, NameError> {
        check_folder("host", host.as_str())?;
        Ok(Self(host.clone()))
    }
}

impl fmt::Display for HostFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

const fn check_folder(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.len() > FOLDER_BYTES_MAX {
        return Err(NameError::FolderTooLong {
            what,
            bytes: text.len(),
        });
    }
    Ok(())
}

/// Who writes a shard: `v1/writers/<shard>/<generation>.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterName {
    /// The shard; one node writes shard 0.
    pub shard: u32,
    /// Rises with each writer that takes over.
    pub generation: u64,
}

/// A whole repository at one rev: `v1/repos/<did>/<rev>-<commit CID>.car.zst`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// Whose repository.
    pub did: DidFolder,
    /// The rev of the head commit.
    pub rev: Rev,
    /// The digest of the commit block. (Its CID is always dag-cbor, so only the digest is free.)
    pub commit: Digest,
    /// How often it was written again because something was erased from it: `….erased-1.car.zst`. The highest counts.
    pub edition: u32,
}

impl SnapshotName {
    /// Below which an account's snapshots and deltas lie, in rev order.
    #[must_use]
    pub fn prefix(did: &DidFolder) -> String {
        format!("{REPOS}{did}/")
    }
}

/// A repository that does not rebuild to its signed root, as its host sent it:
/// `v1/repos/<did>/<rev>-<commit CID>.car.quarantined.zst`. Its ending is none of a snapshot's, for programs that
/// look for `*.car.zst` as much as for us: it is proven to be signed and all there, and no more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuarantinedName {
    /// Whose repository.
    pub did: DidFolder,
    /// The rev of the head commit.
    pub rev: Rev,
    /// The digest of the commit block.
    pub commit: Digest,
    /// As of a snapshot.
    pub edition: u32,
}

/// Every commit between two snapshots: `v1/repos/<did>/<from>..<to>-<commit CID>.delta.car.zst`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeltaName {
    did: DidFolder,
    from: Rev,
    to: Rev,
    commit: Digest,
    edition: u32,
}

impl DeltaName {
    /// The commits after `from`, up to and with `to`, whose commit block has the digest `commit`.
    ///
    /// # Errors
    /// [`NameError::RevsOutOfOrder`] unless `from < to`.
    pub fn new(did: DidFolder, from: Rev, to: Rev, commit: Digest) -> Result<Self, NameError> {
        if from < to {
            Ok(Self {
                did,
                from,
                to,
                commit,
                edition: 0,
            })
        } else {
            Err(NameError::RevsOutOfOrder)
        }
    }

    /// Whose repository.
    #[must_use]
    pub const fn did(&self) -> &DidFolder {
        &self.did
    }

    /// The rev that it applies to.
    #[must_use]
    pub const fn from(&self) -> Rev {
        self.from
    }

    /// The rev that it leads to.
    #[must_use]
    pub const fn to(&self) -> Rev {
        self.to
    }

    /// The digest of the commit block of the last rev.
    #[must_use]
    pub const fn commit(&self) -> &Digest {
        &self.commit
    }

    /// As of a snapshot.
    #[must_use]
    pub const fn edition(&self) -> u32 {
        self.edition
    }

    /// The same commits, written again.
    #[must_use]
    pub const fn with_edition(mut self, edition: u32) -> Self {
        self.edition = edition;
        self
    }
}

/// What was applied in some seconds: `v1/log/<shard>/<generation>-<number>.car.zst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The shard.
    pub shard: u32,
    /// The generation of its writer.
    pub generation: u64,
    /// Dense, from the writer's first.
    pub number: u64,
    /// As of a snapshot. The same index, so the log hangs together as before.
    pub edition: u32,
}

impl SegmentName {
    /// Below which a shard's segments lie, in order of generation, then number.
    #[must_use]
    pub fn prefix(shard: u32) -> String {
        format!("{LOG}{shard}/")
    }
}

/// Where the log begins, since what stood before was removed: `v1/log/<shard>/<generation>-<number>.boundary.json`.
/// The newest one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoundaryName {
    /// The shard.
    pub shard: u32,
    /// The generation of the first segment that is kept.
    pub generation: u64,
    /// Its number.
    pub number: u64,
}

/// A blob: `v1/blocks/<did>/<cid>`, the bytes as they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobName {
    /// Whose blob.
    pub did: DidFolder,
    /// The digest of its bytes. (Its CID is always raw.)
    pub blob: Digest,
}

impl BlobName {
    /// Below which an account's blobs lie.
    #[must_use]
    pub fn prefix(did: &DidFolder) -> String {
        format!("{BLOBS}{did}/")
    }
}

/// A DID document and PLC audit log as they were at a time: `v1/identity/<did>/<time>.json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityName {
    /// Whose identity.
    pub did: DidFolder,
    /// When it was read; the name keeps whole milliseconds.
    pub time: Timestamp,
}

impl IdentityName {
    /// Below which an account's identities lie, in order of time.
    #[must_use]
    pub fn prefix(did: &DidFolder) -> String {
        format!("v1/identity/{did}/")
    }
}

/// A host's epoch and accounts at a time: `v1/hosts/<host>/<time>.json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostStateName {
    /// Which host.
    pub host: HostFolder,
    /// When; the name keeps whole milliseconds.
    pub time: Timestamp,
}

impl HostStateName {
    /// Below which a host's states lie, in order of time.
    #[must_use]
    pub fn prefix(host: &HostFolder) -> String {
        format!("v1/hosts/{host}/")
    }
}

/// What a new machine needs: `v1/service/<time>.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// When; the name keeps whole milliseconds.
    pub time: Timestamp,
}

/// What was erased: `v1/erased/<did>.json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErasedName {
    /// Whose data.
    pub did: DidFolder,
}

/// A piece of a PDS's private state, encrypted: `v1/state/<host>/<time>/<part or did>.age`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateName {
    /// Which PDS.
    pub host: HostFolder,
    /// When it was read; the name keeps whole milliseconds.
    pub time: Timestamp,
    /// Which piece.
    pub part: StatePart,
}

/// A piece of a PDS's private state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatePart {
    /// One that belongs to the whole PDS.
    Named(PartName),
    /// One account's.
    Account(DidFolder),
}

/// The name of a part of a PDS's state: 1 to 64 lower-case letters, digits and inner hyphens. Never a DID, which
/// has colons.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName(Box<str>);

impl PartName {
    /// As it stands in names.
    #[must_use]
    pub const fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PartName {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let ok = (1..=64).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !ok {
            let rule = "must be 1 to 64 lower-case letters, digits and inner hyphens";
            return Err(SyntaxError::new("state part", rule));
        }
        Ok(Self(text.into()))
    }
}

/// The name of any object of the archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// [`ARCHIVE`].
    Archive,
    /// A writer's claim.
    Writer(WriterName),
    /// A whole repository.
    Snapshot(SnapshotName),
    /// A repository that does not rebuild, as it came.
    Quarantined(QuarantinedName),
    /// The commits between two snapshots.
    Delta(DeltaName),
    /// A piece of the log.
    Segment(SegmentName),
    /// Where the log begins.
    Boundary(BoundaryName),
    /// A blob.
    Blob(BlobName),
    /// A DID document and its log.
    Identity(IdentityName),
    /// A host's state.
    HostState(HostStateName),
    /// Firekeep's own state.
    Service(ServiceName),
    /// A PDS's private state.
    State(StateName),
    /// A note of an erasure.
    Erased(ErasedName),
}

mod text;

#[cfg(test)]
mod tests;
