#![allow(clippy::disallowed_methods, reason = "shell: the bucket, pauses")]
//! Applies retention to an archive: segments behind a boundary, then account after account.
//!
//! A plan is made from what is listed and what the mirror knows, and made again right before anything of it is
//! removed: only what both say goes. Before anything of an account goes, the snapshots that stay in its place are
//! read and proven. Nothing goes of an account that an alarm pins or that this mirror does not know, and nothing at
//! all while this mirror is not the archive's writer. Every step leaves an archive that verifies, and can be cut short.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::bucket::{Bucket, BucketError, ListedObject};
use super::erase::note::{NOTE_BYTES_MAX, Note};
use super::names::{DidFolder, ErasedName};
use super::retention::Keep;
use super::writer::{self, ClaimError};
use crate::mirror::StoreError;
use crate::types::{Did, Digest, Rev, Timestamp};

mod account;
mod blobs;
mod cover;
mod log;
mod moving;
mod small;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod tests;

/// Facts that are remembered from one run to the next, at most of each kind.
const MEMORY_MAX: usize = 500_000;

/// What the mirror knows of an account that the archive's list does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// An alarm pins it.
    pub pinned: bool,
    /// Since when it is deleted at its host.
    pub deleted: Option<Timestamp>,
    /// The mirror holds nothing of it but its row.
    pub empty: bool,
    /// The newest snapshot, which was proven before it was put.
    pub snapshot: Option<Rev>,
    /// The CAR that is kept of it as it came, by rev and digest of its commit.
    pub kept_car: Option<(Rev, Digest)>,
    /// Since when it follows its host again, where one was kept before.
    pub followed_again: Option<Timestamp>,
}

/// What the mirror knows of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBlob {
    /// A record of the head refers to it, or of something that is kept beside it; or its host has not said yet that it
    /// has it no longer.
    Referenced,
    /// None does. It was needed last at this time.
    Unreferenced(Timestamp),
    /// Nothing.
    Unknown,
}

/// The future of an answer.
pub type Answered<'a, T> = Pin<Box<dyn Future<Output = Result<T, PruneError>> + Send + 'a>>;

/// What pruning asks of the mirror.
pub trait Held: Send + Sync {
    /// What is known of an account; none: it is not known here.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    fn account(&self, did: &Did) -> Result<Option<Known>, StoreError>;

    /// What is known of a blob.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    fn blob(&self, did: &Did, digest: &Digest) -> Result<KnownBlob, StoreError>;

    /// Blobs to which changes refer that wait here for the archive, and those that lately did.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    fn waiting_blobs(&self, did: &Did) -> Result<BTreeSet<Digest>, StoreError>;

    /// Accounts that are deleted at their hosts.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    fn deleted_accounts(&self) -> Result<Vec<Did>, StoreError>;

    /// Removes a blob's object, if no record refers to the blob and it was not needed since `before`: from then on the
    /// mirror knows that the archive does not have it, and nobody puts it there meanwhile. Whether it is gone.
    fn remove_blob<'a>(
        &'a self,
        did: &'a Did,
        digest: Digest,
        name: &'a str,
        before: Timestamp,
    ) -> Answered<'a, bool>;

    /// Removes an object of an account while `may` says of what is known then that it may go, and nobody puts anything
    /// there meanwhile. Whether it is gone.
    fn remove_while<'a>(&'a self, did: &'a Did, name: &'a str, may: May<'a>) -> Answered<'a, bool>;

    /// Everything of an account goes from the mirror, if it is deleted still and nothing holds it. Whether it is gone.
    fn drop_account<'a>(&'a self, did: &'a Did) -> Answered<'a, bool>;

    /// A snapshot in the archive does not prove: it is made again, if it is the newest, and an alarm is raised.
    fn snapshot_lost<'a>(&'a self, did: &'a Did, rev: Rev) -> Answered<'a, ()>;
}

/// Whether something of an account may go.
pub type May<'a> = &'a (dyn Fn(&Known) -> bool + Send + Sync);

/// The right to write: generation and instance of the mirror's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// The generation.
    pub generation: u64,
    /// The mirror's name in its claim.
    pub instance: String,
}

/// What prunes an archive.
pub struct Pruner<'a> {
    /// The archive.
    pub bucket: &'a Bucket,
    /// What the mirror knows.
    pub held: &'a dyn Held,
    /// This mirror's claim.
    pub right: Right,
    /// What stays.
    pub keep: Keep,
    /// Now.
    pub now: Timestamp,
    /// Between two requests that remove something.
    pub pause: Duration,
    /// Where temporary files are made.
    pub temp_dir: PathBuf,
    /// Ends it between two steps.
    pub cancel: CancellationToken,
}

/// What was found out in earlier runs, so that it is not read again.
#[derive(Debug, Default)]
pub struct Memory {
    /// Snapshots that were read and proven in this run.
    proven: BTreeSet<String>,
    /// A kept object that refers to a blob which the head does not.
    referenced: BTreeMap<(Did, Digest), String>,
    /// Which steps a delta leads, as read in this run.
    steps: BTreeMap<String, Vec<(Rev, Rev)>>,
    /// Deleted accounts of which nothing is there any more.
    removed: BTreeSet<Did>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Objects and bytes, by kind.
    pub removed: BTreeMap<&'static str, (u64, u64)>,
    /// Deltas that were made of entries which no snapshot covers.
    pub moved: u64,
    /// Accounts that were looked at.
    pub accounts: u64,
    /// Why the log is not removed any further, where that is not because it is young.
    pub held_up: Option<String>,
    /// Accounts with a snapshot that was to stand in for others, and does not prove: what it was to stand in for stays.
    pub unproven: Vec<String>,
    /// What is damaged: what depends on it stays, and the rest was gone through.
    pub damaged: Vec<String>,
}

/// Why pruning ended.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The mirror cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This mirror is not the writer.
    #[error("{0} is not written by this mirror (any more): nothing is removed from it")]
    NotOurs(String),
    /// A claim cannot be read.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Something stands in the way.
    #[error("{0}")]
    Damaged(String),
    /// It was asked to stop.
    #[error("it was stopped; what is left is done the next time")]
    Cancelled,
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] crate::mirror::handle::Stopped),
}

impl Pruned {
    fn count(&mut self, kind: &'static str, bytes: u64) {
        let (objects, sum) = self.removed.entry(kind).or_default();
        *objects += 1;
        *sum = sum.saturating_add(bytes);
    }

    /// How many objects.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.removed.values().map(|(objects, _)| objects).sum()
    }
}

impl Pruner<'_> {
    /// Prunes once. What was removed before an error is in `pruned`.
    ///
    /// # Errors
    /// See [`PruneError`].
    pub async fn run(&self, memory: &mut Memory, pruned: &mut Pruned) -> Result<(), PruneError> {
        self.check_right().await?;
        // What proved the last time may have rotted since.
        memory.proven.clear();
        memory.steps.clear();
        if memory.referenced.len() + memory.removed.len() > MEMORY_MAX {
            *memory = Memory::default();
        }
        match self.log(memory, pruned).await {
            // The accounts do not wait for that.
            Err(PruneError::Damaged(why)) => pruned.damaged.push(why),
            done => done?,
        }
        self.accounts(memory, pruned).await?;
        self.small(pruned).await?;
        match &pruned.damaged[..] {
            [] => Ok(()),
            [one] => Err(PruneError::Damaged(one.clone())),
            [first, rest @ ..] => Err(PruneError::Damaged(format!("{first}; and {} more", rest.len()))),
        }
    }

    /// Whether an account is deleted, its time of grace is over, and nothing holds it.
    fn is_long_gone(&self, known: &Known) -> bool {
        let since = known.deleted.map(|at| self.now.since(at));
        !known.pinned && since.is_some_and(|since| since >= self.keep.deleted)
    }

    /// This mirror's claim stands there, and no newer one.
    async fn check_right(&self) -> Result<(), PruneError> {
        if self.cancel.is_cancelled() {
            return Err(PruneError::Cancelled);
        }
        let Right { generation, instance } = &self.right;
        let ours = writer::is_claimed_by(self.bucket, *generation, instance).await?
            && !writer::is_superseded(self.bucket, *generation).await?;
        if ours {
            Ok(())
        } else {
            Err(PruneError::NotOurs(self.bucket.to_string()))
        }
    }

    async fn remove(
        &self,
        name: &str,
        kind: &'static str,
        bytes: u64,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        if self.cancel.is_cancelled() {
            return Err(PruneError::Cancelled);
        }
        self.bucket.delete(name).await?;
        tracing::debug!(object = name, "removed from the archive: no longer needed");
        pruned.count(kind, bytes);
        tokio::time::sleep(self.pause).await;
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, PruneError> {
        let (mut objects, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self.bucket.list(prefix, after.as_deref()).await?;
            objects.extend(page.objects);
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => return Ok(objects),
            }
        }
    }

    /// What was erased of an account.
    async fn note(&self, did: &DidFolder) -> Result<Option<Note>, PruneError> {
        let name = ErasedName { did: did.clone() };
        read_note(self.bucket, &name).await
    }
}

/// Reads the note of what was erased of an account.
///
/// # Errors
/// When the store does not answer, or the note is damaged: then nothing may be done that it might forbid.
pub async fn read_note(bucket: &Bucket, name: &ErasedName) -> Result<Option<Note>, PruneError> {
    let text = name.to_string();
    let Some(body) = bucket.get(&text).await? else {
        return Ok(None);
    };
    let bytes = body.bytes(NOTE_BYTES_MAX).await?;
    match Note::decode(&bytes, name) {
        Ok(note) => Ok(Some(note)),
        Err(detail) => Err(PruneError::Damaged(format!("{text} in {bucket}: {detail}"))),
    }
}
