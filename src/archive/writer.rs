#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! Who writes the archive's log: `v1/writers/<shard>/<generation>.json`, one create-only claim for each writer.
//!
//! The newest claim is the writer; whoever finds a newer one than its own stops. A writer looks for that behind
//! every segment and before it tells anybody that the segment is archived, so a segment of a writer that was taken
//! over is never taken for archived, whatever the clocks say. A new writer goes on from the last segment that it
//! finds *after* its claim; readers follow that chain, so what a stale writer adds later is not read.
//!
//! A list may be late, so no decision rests on one alone: what it ends with is gone on from by name. A store may take
//! a condition and ignore it, so the claim is put once more, and a store that takes it then is not trusted to keep a
//! second writer out: one is noticed there, afterwards.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::bucket::{Body, Bucket, BucketError, PutOptions, PutOutcome};
use super::content_type::ContentType;
use super::log_file::{LogFile, PLAIN_BYTES_MAX};
use super::names::{self, ObjectName, SegmentName, WriterName};
use super::sealed::{self, Seal};
use super::snapshot_file::SnapshotDecoder;
use crate::mirror::rows::LogRow;
use crate::types::{Cid, Timestamp};

/// One node writes this shard.
pub const SHARD: u32 = 0;
/// Longest claim that is read, in bytes.
const CLAIM_BYTES_MAX: usize = 64 * 1024;
/// Generations of writers that may be missing in a late list.
const LATE_MAX: u64 = 16;
/// How often a claim is tried when others claim at the same time.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// A claim, as it stands in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Claim {
    /// The mirror that claims: its own random name.
    instance: String,
    /// When, for people.
    claimed: String,
}

/// Why this mirror must not write to the archive.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another mirror does.
    #[error(
        "{place} is written by another Firekeep (mirror {instance}, since {since}); stop that one, or, if it is gone \
         for good, start this one once with --take-over"
    )]
    Taken {
        /// The bucket.
        place: String,
        /// Which mirror.
        instance: String,
        /// Since when.
        since: String,
    },
    /// Something in the archive is not as it must be.
    #[error("{name} in {place} is damaged: {detail}; nothing is written while it cannot be read")]
    Damaged {
        /// The bucket.
        place: String,
        /// The object.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The bucket cannot be used.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// This mirror's right to write, and where its log goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Where the log goes on.
    pub log: LogRow,
    /// How it was come by.
    pub how: How,
}

/// How a mirror came to be the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was already.
    GoesOn,
    /// It is the first.
    First,
    /// From another mirror, because a person said so.
    TookOver,
    /// The archive has more of this mirror's log than the mirror itself: the mirror is an older copy.
    FellBack,
}

/// Makes this mirror the writer of the archive, or finds that it is. `log` is what the mirror knows of this
/// archive's log, if it knows the archive.
///
/// # Errors
/// When another mirror is the writer and `take_over` is not said, or the bucket cannot be used.
pub async fn claim(
    bucket: &Bucket,
    instance: &str,
    log: Option<&LogRow>,
    take_over: bool,
    now: Timestamp,
) -> Result<Claimed, ClaimError> {
    for _ in 0..TRIES {
        let newest = newest_claim(bucket, log.map_or(0, |log| log.generation)).await?;
        let (generation, how) = match &newest {
            None => (1, How::First),
            Some((generation, claim)) if claim.instance == instance && !take_over => {
                let generation = *generation;
                match log.filter(|log| log.generation == generation) {
                    Some(log) if !is_ahead(bucket, log).await? => {
                        let (log, how) = (log.clone(), How::GoesOn);
                        return Ok(Claimed { log, how });
                    }
                    // Claimed, and gone before that was noted here.
                    None if !has_segments(bucket, generation).await? => {
                        let log = after(generation, tail(bucket, generation).await?);
                        if !is_ahead(bucket, &log).await? {
                            return Ok(Claimed { log, how: How::First });
                        }
                        (generation + 1, How::FellBack)
                    }
                    _ => (generation + 1, How::FellBack),
                }
            }
            Some((generation, _)) if take_over => (generation + 1, How::TookOver),
            Some((_, claim)) => return Err(taken(bucket, claim)),
        };
        // What cannot be gone on from is not claimed.
        tail(bucket, generation).await?;
        if create(bucket, generation, instance, now).await? {
            let log = after(generation, tail(bucket, generation).await?);
            return Ok(Claimed { log, how });
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(ClaimError::Taken {
        place: bucket.to_string(),
        instance: "several at once".to_owned(),
        since: now.to_string(),
    })
}

/// Whether a mirror that is not there yet could become the writer. Writes nothing.
///
/// # Errors
/// As [`claim`].
pub async fn must_be_free(bucket: &Bucket) -> Result<(), ClaimError> {
    match newest_claim(bucket, 0).await? {
        None => Ok(()),
        Some((_, claim)) => Err(taken(bucket, &claim)),
    }
}

fn taken(bucket: &Bucket, claim: &Claim) -> ClaimError {
    ClaimError::Taken {
        place: bucket.to_string(),
        instance: claim.instance.clone(),
        since: claim.claimed.clone(),
    }
}

/// Where the log of a new generation begins.
fn after(generation: u64, tail: Option<(u64, Cid)>) -> LogRow {
    LogRow {
        generation,
        number: tail.map_or(1, |(number, _)| number + 1),
        prev: tail.map(|(_, index)| index),
        cut: None,
        shipped: None,
    }
}

/// Whether a generation has written anything.
async fn has_segments(bucket: &Bucket, generation: u64) -> Result<bool, BucketError> {
    let mut found = false;
    each_name(bucket, &SegmentName::prefix(SHARD), |name| {
        found |= matches!(name, ObjectName::Segment(segment) if segment.generation == generation);
    })
    .await?;
    Ok(found)
}

/// Whether somebody claimed the log after this generation.
///
/// # Errors
/// When the bucket cannot be used.
pub async fn is_superseded(bucket: &Bucket, generation: u64) -> Result<bool, BucketError> {
    let next = WriterName {
        shard: SHARD,
        generation: generation + 1,
    };
    // Not by its head alone: that cannot tell a missing object from a missing bucket.
    Ok(bucket.get(&next.to_string()).await?.is_some())
}

/// Whether the store keeps what must not be replaced: this writer's claim is put again as it is. A store that takes
/// it is not believed from then on.
///
/// # Errors
/// When the claim is damaged, or the bucket cannot be used.
pub async fn honours_create_only(bucket: &Bucket, generation: u64) -> Result<bool, ClaimError> {
    if bucket.create_only_is_atomic() {
        let shard = SHARD;
        let name = WriterName { shard, generation };
        let bytes = read_claim_bytes(bucket, &name).await?;
        let options = PutOptions::create(ContentType::json());
        let name = name.to_string();
        let put = bucket.put(&name, Body::Bytes(bytes.into()), &options);
        if put.await? == PutOutcome::Created {
            bucket.distrust_create_only();
        }
    }
    Ok(bucket.create_only_is_atomic())
}

/// Whether this mirror's claim stands there. It does not where a disk is not mounted, or in another archive: what is
/// put there is not archived.
///
/// # Errors
/// When the claim is damaged, or the bucket cannot be used.
pub async fn is_claimed_by(bucket: &Bucket, generation: u64, instance: &str) -> Result<bool, ClaimError> {
    let shard = SHARD;
    let name = WriterName { shard, generation };
    if bucket.head(&name.to_string()).await?.is_none() {
        return Ok(false);
    }
    Ok(read_claim(bucket, &name).await?.instance == instance)
}

/// Whether the archive has segments of this generation that the mirror does not know of: they are there, or were, and
/// the log begins behind them by now. The one that is being written may be there already.
async fn is_ahead(bucket: &Bucket, log: &LogRow) -> Result<bool, BucketError> {
    let name = SegmentName {
        shard: SHARD,
        generation: log.generation,
        number: log.number + u64::from(log.cut.is_some()),
        edition: 0,
    };
    // A list may be late.
    Ok(bucket.get(&name.to_string()).await?.is_some()
        || is_told_from(bucket, name.generation, name.number).await?)
}

/// Whether the log has something of this generation from this number on.
async fn is_told_from(bucket: &Bucket, generation: u64, number: u64) -> Result<bool, BucketError> {
    let shard = SHARD;
    let before = SegmentName {
        shard,
        generation,
        number: number.saturating_sub(1),
        edition: u32::MAX,
    };
    let mut found = false;
    each_name_after(
        bucket,
        &SegmentName::prefix(shard),
        Some(before.to_string()),
        |name| {
            let place = match name {
                ObjectName::Segment(segment) => segment.place(),
                ObjectName::Boundary(boundary) => boundary,
                _ => return,
            };
            found |= place.generation == generation && place.number >= number;
        },
    )
    .await?;
    Ok(found)
}

/// Whether another process has gone on under this name. The two newest segments are never removed, so the one before
/// the next is there, unless somebody else is far ahead, and has removed it. The first of a generation has none of
/// its own.
///
/// # Errors
/// When the bucket cannot be used.
pub async fn is_left_behind(bucket: &Bucket, name: &SegmentName) -> Result<bool, BucketError> {
    let before = SegmentName {
        number: name.number.saturating_sub(1),
        edition: 0,
        ..*name
    };
    if bucket.head(&before.to_string()).await?.is_some() {
        return Ok(false);
    }
    is_told_from(bucket, name.generation, name.number.saturating_add(1)).await
}

async fn create(
    bucket: &Bucket,
    generation: u64,
    instance: &str,
    now: Timestamp,
) -> Result<bool, ClaimError> {
    let writer = WriterName {
        shard: SHARD,
        generation,
    };
    let name = writer.to_string();
    let text = sealed::seal(Map::from_iter([
        ("instance".to_owned(), Value::from(instance)),
        ("claimed".to_owned(), Value::from(now.to_string())),
    ]));
    let options = PutOptions::create(ContentType::json());
    let put = bucket.put(&name, Body::Bytes(text.into()), &options);
    match put.await? {
        PutOutcome::Created => Ok(true),
        // Perhaps ours, from before a connection broke.
        PutOutcome::AlreadyThere => Ok(read_claim(bucket, &writer).await?.instance == instance),
    }
}

/// The newest claim, from `known` on, which is there if it is not 0.
async fn newest_claim(bucket: &Bucket, known: u64) -> Result<Option<(u64, Claim)>, ClaimError> {
    let writer = |generation| WriterName {
        shard: SHARD,
        generation,
    };
    let mut newest = known;
    each_name(bucket, &format!("v1/writers/{SHARD}/"), |name| {
        if let ObjectName::Writer(writer) = name {
            newest = newest.max(writer.generation);
        }
    })
    .await?;
    while bucket.get(&writer(newest + 1).to_string()).await?.is_some() {
        newest += 1;
    }
    // What the mirror knows may be of an archive that was emptied.
    if newest == known && (newest == 0 || bucket.get(&writer(newest).to_string()).await?.is_none()) {
        return Ok(None);
    }
    Ok(Some((newest, read_claim(bucket, &writer(newest)).await?)))
}

async fn read_claim(bucket: &Bucket, name: &WriterName) -> Result<Claim, ClaimError> {
    let bytes = read_claim_bytes(bucket, name).await?;
    if sealed::check(&bytes) != Seal::Sound {
        return Err(damaged(
            bucket,
            name,
            "its own checksum does not fit its bytes".to_owned(),
        ));
    }
    serde_json::from_slice(&bytes).map_err(|error| damaged(bucket, name, error.to_string()))
}

async fn read_claim_bytes(bucket: &Bucket, name: &WriterName) -> Result<Vec<u8>, ClaimError> {
    match bucket.get(&name.to_string()).await? {
        Some(body) => Ok(body.bytes(CLAIM_BYTES_MAX).await?.to_vec()),
        None => Err(damaged(bucket, name, "it vanished".to_owned())),
    }
}

fn damaged(bucket: &Bucket, name: &impl ToString, detail: String) -> ClaimError {
    ClaimError::Damaged {
        place: bucket.to_string(),
        name: name.to_string(),
        detail,
    }
}

/// The last segment before a generation: its number and index.
async fn tail(bucket: &Bucket, before: u64) -> Result<Option<(u64, Cid)>, ClaimError> {
    let mut last: Option<SegmentName> = None;
    each_name(bucket, &SegmentName::prefix(SHARD), |name| {
        if let ObjectName::Segment(segment) = name
            && segment.generation < before
        {
            last = last.max(Some(segment));
        }
    })
    .await?;
    let mut file = None;
    while let Some(name) = behind(bucket, last, before).await? {
        file = Some(read_segment(bucket, &name).await?);
        last = Some(name);
    }
    let Some(name) = last else { return Ok(None) };
    let file = match file {
        Some(file) => file,
        None => read_segment(bucket, &name).await?,
    };
    Ok(Some((name.number, file.root)))
}

/// The segment behind the last one of a list, which may be late: of the same writer, or of one that took over.
async fn behind(
    bucket: &Bucket,
    last: Option<SegmentName>,
    before: u64,
) -> Result<Option<SegmentName>, ClaimError> {
    let number = last.map_or(1, |last| last.number + 1);
    let oldest = last.map_or(1, |last| last.generation);
    for generation in (oldest.max(before.saturating_sub(LATE_MAX))..before).rev() {
        let name = SegmentName {
            shard: SHARD,
            generation,
            number,
            edition: 0,
        };
        if bucket.get(&name.to_string()).await?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A segment of the archive.
///
/// # Errors
/// When it is not there, or damaged, or the bucket cannot be used.
pub async fn read_segment(bucket: &Bucket, name: &SegmentName) -> Result<LogFile, ClaimError> {
    let damaged = |detail: String| damaged(bucket, name, detail);
    let bytes = match bucket.get(&name.to_string()).await? {
        // A packed file is no longer than its content, but for a few bytes a block of zstd.
        Some(body) => body.bytes(PLAIN_BYTES_MAX as usize + (1 << 20)).await?,
        None => return Err(damaged("it is not there".to_owned())),
    };
    let decoder =
        SnapshotDecoder::new(&*bytes, PLAIN_BYTES_MAX).map_err(|error| damaged(error.to_string()))?;
    LogFile::decode(decoder).map_err(|error| damaged(error.to_string()))
}

async fn each_name(bucket: &Bucket, prefix: &str, visit: impl FnMut(ObjectName)) -> Result<(), BucketError> {
    each_name_after(bucket, prefix, None, visit).await
}

async fn each_name_after(
    bucket: &Bucket,
    prefix: &str,
    mut after: Option<String>,
    mut visit: impl FnMut(ObjectName),
) -> Result<(), BucketError> {
    debug_assert!(
        prefix.starts_with(names::ROOT),
        "all of an archive is below its root"
    );
    loop {
        let page = bucket.list(prefix, after.as_deref()).await?;
        page.objects
            .iter()
            .filter_map(|object| object.name.parse().ok())
            .for_each(&mut visit);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
