#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Reads an archive with nothing but the bucket: no mirror, no daemon, and nothing is written.
//!
//! One broken object costs what it held and no more: it becomes a [`Fault`] of the timeline, with its name. What
//! stops a reading is only a store that cannot be reached, or refuses.
//!
//! A daemon may be at work on the same archive. Segments are read before snapshots and deltas are listed, so that what
//! moves from the former to the latter meanwhile is seen at least once: a segment that is gone when it is read, and
//! stood before the boundary that is there then, was covered. Where anything else is gone, everything is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::boundary::{Listed, check_begin, listed};
use super::bucket::{Bucket, BucketError, BucketErrorKind, ObjectBody};
use super::erase::note::Note;
use super::identity::{self, IdentityError};
use super::identity_file::{IDENTITY_BYTES_MAX, IdentityFile};
use super::log_chain::{Link, SegmentHead, chain};
use super::log_file::{Entry, LogFile, LogIndex, Origin, PLAIN_BYTES_MAX};
use super::names::{
    self, BlobName, BoundaryName, DeltaName, DidFolder, IdentityName, NameError, ObjectName, SegmentName,
    SnapshotName,
};
use super::settings::ArchiveConfig;
use super::snapshot_file::SnapshotDecoder;
use super::timeline::{Fault, Hides, Timeline, TimelineBuilder};
use crate::types::{Cid, Did, RepoPath, Timestamp};

mod sizes;
mod whole;

/// Largest segment or delta that is read, in bytes, as it is stored.
const LOG_OBJECT_BYTES_MAX: usize = PLAIN_BYTES_MAX as usize + (1 << 20);
/// Objects that are fetched at the same time.
const FETCHES: usize = 8;
/// Most objects of one kind that are listed.
const OBJECTS_MAX: usize = 2_000_000;
/// Identity objects of an account that are read, at most: the newest.
const IDENTITIES_MAX: usize = 64;
/// Tries to see an archive that changes meanwhile, and to read an object over a bad connection.
const TRIES: u32 = 4;

mod notes;

use notes::foreign;

/// An archive that is open for reading. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ArchiveReader {
    pub(super) bucket: Bucket,
    /// Where temporary files are made.
    pub(super) temp_dir: PathBuf,
    /// What is wrong with `archive.json`, if anything.
    head_fault: Option<Fault>,
}

/// Why an archive gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("no archive at {place}: {detail}; check --archive (and that its disk is mounted)")]
    NoArchive {
        /// Where it was looked for.
        place: String,
        /// What is there instead.
        detail: &'static str,
    },
    /// It holds nothing of this account.
    #[error("no backup of {did} in {place}")]
    NoBackup {
        /// The account.
        did: Did,
        /// The archive.
        place: String,
    },
    /// A person had all of it erased.
    #[error("{did} was erased from {place} on {since}: nothing of it is given")]
    Erased {
        /// The account.
        did: Did,
        /// The archive.
        place: String,
        /// When that was asked for.
        since: Timestamp,
    },
    /// What was erased is not known, so nothing is given.
    #[error(
        "{object} cannot be read ({detail}): what was erased of this account is not known; run `firekeep verify`"
    )]
    Note {
        /// The note of it.
        object: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The archive as a whole cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The DID cannot be an object's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Objects came and went faster than they could be read.
    #[error("{0} vanished from the archive while it was read; try again")]
    Vanished(String),
    /// More objects than any archive of ours has.
    #[error("more than {OBJECTS_MAX} objects below {0}")]
    TooMany(String),
    /// A temporary file.
    #[error("cannot use a temporary file in {}: {error}; set TMPDIR to a folder with room", dir.display())]
    Temporary {
        /// Where it was to be.
        dir: PathBuf,
        /// What went wrong.
        error: std::io::Error,
    },
}

impl ArchiveReader {
    /// Opens an archive. Temporary files go into `temp_dir`.
    ///
    /// # Errors
    /// When there is none, it is of a newer version, or the store does not answer.
    pub async fn open(config: &ArchiveConfig, temp_dir: &Path) -> Result<Self, ReadError> {
        let Some(bucket) = Bucket::open_existing(config).await? else {
            let (place, detail) = (config.url.to_string(), "there is no such folder");
            return Err(ReadError::NoArchive { place, detail });
        };
        Self::of_bucket(bucket, temp_dir).await
    }

    /// As [`Self::open`], for a bucket that is open.
    ///
    /// # Errors
    /// As there.
    pub async fn of_bucket(bucket: Bucket, temp_dir: &Path) -> Result<Self, ReadError> {
        let fault = |detail: String| Fault {
            object: names::ARCHIVE.to_owned(),
            detail,
            hides: Hides::Nothing,
        };
        let head_fault = match identity::read(&bucket).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(fault("it is missing".to_owned())),
            Err(IdentityError::Damaged { detail, .. }) => Some(fault(detail)),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            bucket,
            temp_dir: temp_dir.to_owned(),
            head_fault,
        })
    }

    /// The archive's URL.
    #[must_use]
    pub fn place(&self) -> String {
        self.bucket.to_string()
    }

    /// Everything that the archive says of an account, and what happened to the record at `watch`.
    ///
    /// # Errors
    /// When it holds nothing of it, or cannot be read. What is broken in it is no error, but a fault of the timeline.
    pub async fn timeline(&self, did: &Did, watch: Option<&RepoPath>) -> Result<Timeline, ReadError> {
        let mut tries = 1;
        loop {
            match self.read_timeline(did, watch).await {
                Err(ReadError::Vanished(_)) if tries < TRIES => tries += 1,
                read => return read,
            }
        }
    }

    async fn read_timeline(&self, did: &Did, watch: Option<&RepoPath>) -> Result<Timeline, ReadError> {
        let folder = DidFolder::try_from(did)?;
        let note = self.note(&folder).await?;
        if let Some(since) = note.as_ref().and_then(Note::account_erased) {
            let (did, place) = (did.clone(), self.place());
            return Err(ReadError::Erased { did, place, since });
        }
        let mut builder = TimelineBuilder::new(did.clone(), watch.cloned());
        let mut shards: BTreeMap<u32, (Vec<SegmentName>, Vec<BoundaryName>)> = BTreeMap::new();
        let mut deltas = Vec::new();
        for text in self.list(names::LOG).await? {
            match text.parse() {
                Ok(ObjectName::Segment(name)) => shards.entry(name.shard).or_default().0.push(name),
                Ok(ObjectName::Boundary(name)) => shards.entry(name.shard).or_default().1.push(name),
                other => builder.fault(foreign(&text, other.err())),
            }
        }
        let mut place = 0;
        for (segments, boundaries) in shards.into_values() {
            let listed = listed(segments, boundaries);
            self.read_segments(did, listed, &mut builder, &mut place).await?;
        }
        let owned = self.list(&SnapshotName::prefix(&folder)).await?;
        for text in &owned {
            match text.parse() {
                Ok(ObjectName::Snapshot(name)) => builder.snapshot(name),
                Ok(ObjectName::Delta(name)) => deltas.push(name),
                other => builder.fault(foreign(text, other.err())),
            }
        }
        self.read_deltas(deltas, &mut builder).await?;
        let mut line = builder.finish();
        if line.moments.is_empty() && line.standings.is_empty() && owned.is_empty() {
            let place = self.place();
            return Err(match &self.head_fault {
                Some(fault) if fault.detail == "it is missing" => ReadError::NoArchive {
                    place,
                    detail: "there is no v1/archive.json in it",
                },
                _ => {
                    let did = did.clone();
                    ReadError::NoBackup { did, place }
                }
            });
        }
        line.faults.extend(self.head_fault.clone());
        if let Some(note) = note {
            (line.erased, line.erased_blobs) = (note.records(), note.blobs());
        }
        Ok(line)
    }

    /// Reads the segments of one shard. `place` counts the segments of the log.
    async fn read_segments(
        &self,
        did: &Did,
        listed: Listed,
        builder: &mut TimelineBuilder,
        place: &mut u64,
    ) -> Result<(), ReadError> {
        let boundary = self.boundary(did, listed.boundary, builder).await?;
        let names = listed.segments;
        let (mut heads, mut read) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len()));
        let mut files = self.log_files(names.iter().map(SegmentName::to_string).collect());
        let mut vanished = Vec::new();
        for name in names {
            let file = match files.next().await.expect("as many files as names") {
                Err(ReadError::Vanished(_)) => {
                    vanished.push(name);
                    heads.push(SegmentHead { name, link: None });
                    read.push(Ok(Vec::new()));
                    continue;
                }
                file => file?,
            };
            let checked = file.and_then(|file| {
                let prev = segment_prev(&name, &file.index)?;
                let root = file.root;
                let entries = file.index.entries.into_iter().filter(|entry| entry.did() == did);
                Ok((Link { root, prev }, entries.collect::<Vec<Entry>>()))
            });
            let link = checked.as_ref().ok().map(|(link, _)| *link);
            heads.push(SegmentHead { name, link });
            read.push(checked.map(|(_, entries)| entries));
        }
        if let Some(first) = vanished.first() {
            let texts = self.list(&SegmentName::prefix(first.shard)).await?;
            let begin = texts.iter().filter_map(|text| text.parse().ok()).max();
            let there: BTreeSet<String> = texts.into_iter().collect();
            for name in vanished {
                if there.contains(&name.to_string()) {
                    let at = heads.iter().position(|head| head.name == name);
                    read[at.expect("it is among them")] = Err("it is listed, but not there".to_owned());
                } else if begin.is_none_or(|begin: BoundaryName| name.place() >= begin) {
                    // Not removed behind a boundary: it was written again, or is lost.
                    return Err(ReadError::Vanished(name.to_string()));
                }
            }
        }
        let chain = chain(&heads);
        let begin = listed.boundary.map(|name| (name, boundary.as_ref()));
        if let Some(detail) = check_begin(&heads, &chain, begin) {
            builder.fault(Fault {
                object: names::LOG.to_owned(),
                detail,
                hides: Hides::Log(*place),
            });
        }
        let mut places = BTreeMap::new();
        for at in chain.order {
            let object = heads[at].name.to_string();
            places.insert(heads[at].name, *place);
            match std::mem::replace(&mut read[at], Ok(Vec::new())) {
                Ok(entries) if entries.is_empty() => {}
                Ok(entries) => builder.entries(object, Some(*place), &entries),
                Err(detail) => builder.fault(Fault {
                    object,
                    detail,
                    hides: Hides::Log(*place),
                }),
            }
            *place += 1;
        }
        for gap in chain.gaps {
            builder.fault(Fault {
                object: SegmentName::prefix(gap.before.shard),
                detail: gap.to_string(),
                hides: Hides::Log(places[&gap.before]),
            });
        }
        Ok(())
    }

    async fn read_deltas(
        &self,
        names: Vec<DeltaName>,
        builder: &mut TimelineBuilder,
    ) -> Result<(), ReadError> {
        let mut files = self.log_files(names.iter().map(DeltaName::to_string).collect());
        for name in names {
            let file = files.next().await.expect("as many files as names")?;
            match file.and_then(|file| check_delta(&name, &file.index).map(|()| file)) {
                Ok(file) => builder.entries(name.to_string(), None, &file.index.entries),
                Err(detail) => builder.fault(Fault {
                    object: name.to_string(),
                    detail,
                    hides: Hides::Revs(name.from(), name.to()),
                }),
            }
        }
        Ok(())
    }

    /// Reads segments or deltas, a few at a time, in the order of their names. What is wrong with one is a text.
    pub(super) fn log_files(
        &self,
        names: Vec<String>,
    ) -> impl futures_util::Stream<Item = Result<Result<LogFile, String>, ReadError>> + Unpin + '_ {
        let files = stream::iter(names).map(move |name| async move { self.log_file(&name).await });
        Box::pin(files.buffered(FETCHES))
    }

    /// Reads a segment or delta.
    pub(super) async fn log_file(&self, name: &str) -> Result<Result<LogFile, String>, ReadError> {
        let object = self.object(name, LOG_OBJECT_BYTES_MAX).await?;
        let Some(bytes) = object else {
            return Err(ReadError::Vanished(name.to_owned()));
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        let decoded = tokio::task::spawn_blocking(move || {
            let decoder =
                SnapshotDecoder::new(&*bytes, PLAIN_BYTES_MAX).map_err(|error| error.to_string())?;
            LogFile::decode(decoder).map_err(|error| error.to_string())
        });
        Ok(decoded
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())))
    }

    /// An object's bytes; `None` if there is none, a text if it is not what it should be.
    pub(super) async fn object(
        &self,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<Result<Bytes, String>>, ReadError> {
        let mut tries = 1;
        loop {
            let read = async {
                match self.bucket.get(name).await? {
                    Some(body) => body.bytes(bytes_max).await.map(Some),
                    None => Ok(None),
                }
            };
            match read.await {
                Ok(bytes) => return Ok(bytes.map(Ok)),
                Err(error) if is_of_object(error.kind) => return Ok(Some(Err(error.to_string()))),
                Err(error) if error.is_transient() && tries < TRIES => {
                    tokio::time::sleep(Duration::from_millis(250 << tries)).await;
                    tries += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// An account's blob, to be read and hashed; `None` if the archive does not have it.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn blob(&self, did: &Did, cid: &Cid) -> Result<Option<ObjectBody>, ReadError> {
        let name = BlobName {
            did: DidFolder::try_from(did)?,
            blob: *cid.digest(),
        };
        Ok(self.bucket.get(&name.to_string()).await?)
    }

    /// What the archive holds of who an account is, oldest first: the newest of it, and what cannot be used.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn identities(&self, did: &Did) -> Result<(Vec<IdentityFile>, Vec<String>), ReadError> {
        let names = self
            .list(&IdentityName::prefix(&DidFolder::try_from(did)?))
            .await?;
        let (mut files, mut unusable) = (Vec::new(), Vec::new());
        let newest = names.len().saturating_sub(IDENTITIES_MAX);
        for text in &names[newest..] {
            let Ok(ObjectName::Identity(name)) = text.parse() else {
                continue;
            };
            let read = match self.object(text, IDENTITY_BYTES_MAX).await? {
                Some(Ok(bytes)) => IdentityFile::decode(&bytes, &name).map_err(|error| error.to_string()),
                Some(Err(error)) => Err(error),
                None => continue,
            };
            match read {
                Ok(file) => files.push(file),
                Err(error) => unusable.push(format!("{text}: {error}")),
            }
        }
        Ok((files, unusable))
    }

    /// Every name that begins with `prefix`.
    pub(in crate::archive) async fn list(&self, prefix: &str) -> Result<Vec<String>, ReadError> {
        let mut names: Vec<String> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.bucket.list(prefix, after.as_deref()).await?;
            names.extend(page.objects.into_iter().map(|object| object.name));
            if names.len() > OBJECTS_MAX {
                return Err(ReadError::TooMany(prefix.to_owned()));
            }
            // A store that does not go on would be listed for ever.
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => return Ok(names),
            }
        }
    }

    pub(super) fn temporary(&self, error: std::io::Error) -> ReadError {
        let dir = self.temp_dir.clone();
        ReadError::Temporary { dir, error }
    }
}

/// Whether such an error concerns one object, and not the store.
pub(super) const fn is_of_object(kind: BucketErrorKind) -> bool {
    use BucketErrorKind as K;
    matches!(
        kind,
        K::Corrupt | K::TooLarge | K::Symlink | K::NotAFolder | K::BadName
    )
}

fn segment_prev(name: &SegmentName, index: &LogIndex) -> Result<Option<Cid>, String> {
    match &index.origin {
        Origin::Segment {
            shard,
            generation,
            number,
            prev,
            ..
        } if (*shard, *generation, *number) == (name.shard, name.generation, name.number) => Ok(*prev),
        _ => Err("it says that it is another object: it was renamed".to_owned()),
    }
}

pub(super) fn check_delta(name: &DeltaName, index: &LogIndex) -> Result<(), String> {
    let did = name.did().did();
    match &index.origin {
        Origin::Delta { did: of, from, to } if of == did && (*from, *to) == (name.from(), name.to()) => {}
        _ => return Err("it says that it is another object: it was renamed".to_owned()),
    }
    if index.entries.iter().any(|entry| entry.did() != did) {
        return Err("it holds entries of another account".to_owned());
    }
    let commits = index.entries.iter().filter_map(|entry| match entry {
        Entry::Commit(change) | Entry::Swap(change) => Some((change.rev, change.commit)),
        Entry::Loaded { rev, commit, .. } => Some((*rev, *commit)),
        Entry::Account { .. } => None,
    });
    match commits.max_by_key(|(rev, _)| *rev) {
        Some((rev, commit)) if rev == name.to() && commit.digest() == name.commit() => Ok(()),
        _ => Err("its last entry is not the one that its name tells".to_owned()),
    }
}
