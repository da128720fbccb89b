#![allow(clippy::disallowed_methods, reason = "shell: the bucket, temporary files")]
//! An erasure, step by step. Each step can be done again: what is done already is passed over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::bucket::{Body, Bucket, ListedObject, PutOptions};
use super::super::content_type::ContentType;
use super::super::held::Letting;
use super::super::names::{
    BlobName, DidFolder, ErasedName, IdentityName, ObjectName, SegmentName, SnapshotName,
};
use super::super::prune::{PruneError, Right, read_note};
use super::super::writer::{self, SHARD};
use super::note::{ERASURES_MAX, Note, What};
use super::survey::Survey;
use crate::mirror::input::Erase;
use crate::types::{Cid, Did, Digest, Timestamp};

/// Rounds of looking for what is left, and removing it, before it is said that something puts it there again.
const ROUNDS_MAX: u32 = 3;

/// What erases from an archive and its mirror.
pub struct Eraser<'a> {
    /// The archive.
    pub bucket: &'a Bucket,
    /// The mirror.
    pub mirror: &'a dyn Letting,
    /// This mirror's claim.
    pub right: Right,
    /// Now.
    pub now: Timestamp,
    /// Who asks.
    pub by: String,
    /// Between two requests that change something.
    pub pause: Duration,
    /// Where objects are made before they are put.
    pub temp_dir: PathBuf,
    /// Ends it between two steps.
    pub cancel: CancellationToken,
}

/// What an erasure comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Records whose bytes go.
    pub records: BTreeSet<Cid>,
    /// Blobs that go.
    pub blobs: BTreeSet<Digest>,
    /// Whether the archive or the mirror hold any of it, or held it.
    pub found: bool,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// Objects that were written again without something.
    pub rewritten: u64,
    /// Objects that were removed.
    pub removed: u64,
}

/// What is gone of an account, for whoever looks through objects.
pub(super) struct Gone {
    pub(super) did: Did,
    pub(super) whole: bool,
    pub(super) records: BTreeSet<Cid>,
    pub(super) blobs: BTreeSet<Digest>,
}

impl Gone {
    /// Whether a block of the account's own must not be in an object.
    pub(super) fn has(&self, cid: &Cid) -> bool {
        self.records.contains(cid)
    }
}

impl Eraser<'_> {
    /// Finds out what an erasure comes to. Changes nothing.
    ///
    /// # Errors
    /// When the archive or the mirror cannot be read.
    pub async fn scope(&self, did: &Did, what: &What) -> Result<Scope, PruneError> {
        let folder = folder(did)?;
        let mut scope = Scope::default();
        if *what == What::Account {
            let objects = self.list(&SnapshotName::prefix(&folder)).await?.len()
                + self.list(&BlobName::prefix(&folder)).await?.len()
                + self.list(&IdentityName::prefix(&folder)).await?.len();
            let mut records = 0;
            self.mirror.each_record(did, &mut |_, _, _| records += 1)?;
            scope.found = objects + records > 0;
            return Ok(scope);
        }
        let mut survey = Survey::default();
        self.mirror.each_record(did, &mut |path, cid, bytes| {
            survey.place(what, path, cid);
            survey.record(cid, bytes);
        })?;
        self.survey_archive(&folder, what, &mut survey).await?;
        scope.records = survey.records(what);
        scope.blobs = survey.blobs(what);
        scope.found = survey.found();
        for blob in &scope.blobs {
            scope.found |= self.bucket.head(&blob_name(&folder, *blob)).await?.is_some();
        }
        // What was noted before is of this erasure too, though nothing of it may be left.
        if let Some(note) = self.note(&folder).await?
            && let Some(known) = note.erasures.into_iter().find(|erasure| erasure.what == *what)
        {
            scope.records.extend(known.records);
            scope.blobs.extend(known.blobs);
            scope.found = true;
        }
        Ok(scope)
    }

    /// Erases: the note, the mirror, the archive; then looks for what is left, until nothing is.
    ///
    /// # Errors
    /// See [`PruneError`]. Asked for again, it goes on where it was.
    pub async fn erase(&self, did: &Did, what: &What, scope: &Scope) -> Result<Erased, PruneError> {
        self.check_right().await?;
        let folder = folder(did)?;
        let mut note = self
            .note(&folder)
            .await?
            .unwrap_or_else(|| Note::new(did.clone()));
        if note.erasures.len() >= ERASURES_MAX {
            return Err(PruneError::Damaged(format!(
                "{did} has more than {ERASURES_MAX} erasures; erase the account, or by CID"
            )));
        }
        let erasure = note.erasure(what, self.now, &self.by);
        erasure.records.extend(&scope.records);
        erasure.blobs.extend(&scope.blobs);
        (erasure.done, erasure.confirmed) = (None, None);
        self.put_note(&folder, &note).await?;
        self.finish(did).await
    }

    /// Does what the account's note says: takes up what was cut short, and looks again for what must not be there.
    ///
    /// # Errors
    /// As [`Self::erase`].
    pub async fn finish(&self, did: &Did) -> Result<Erased, PruneError> {
        self.check_right().await?;
        let folder = folder(did)?;
        let Some(mut note) = self.note(&folder).await? else {
            return Ok(Erased::default());
        };
        let gone = Gone {
            did: did.clone(),
            whole: note.account_erased().is_some(),
            records: note.records(),
            blobs: note.blobs(),
        };
        let records: Vec<Cid> = gone.records.iter().copied().collect();
        let erase = Erase {
            did: did.clone(),
            whole: gone.whole,
            lasting: true,
            kept_car: gone.whole || self.mirror.kept_car_holds(did, &records)?,
            records,
            blobs: gone.blobs.iter().copied().collect(),
        };
        self.mirror.erase(erase).await?;
        let mut done = Erased::default();
        for _ in 0..ROUNDS_MAX {
            let before = done.clone();
            self.leftovers(&mut done).await?;
            self.account_objects(&folder, &gone, &mut done).await?;
            self.segments(&gone, &mut done).await?;
            if done == before {
                // Nothing of it was found in a whole round.
                self.mark_done(&mut note, &done);
                self.put_note(&folder, &note).await?;
                return Ok(done);
            }
        }
        Err(PruneError::Damaged(format!(
            "what was erased of {did} is put into {} again and again: does another Firekeep write there?",
            self.bucket
        )))
    }

    /// What processes that died were about to put. From when the mirror has let go nothing of it is put any more.
    async fn leftovers(&self, done: &mut Erased) -> Result<(), PruneError> {
        match self.bucket.clean_up(None).await? {
            Some(count) => done.removed += count,
            None => tracing::warn!(
                bucket = %self.bucket,
                "this store does not tell of unfinished uploads: if it keeps any, remove them there, for they may hold \
                 bytes that were erased"
            ),
        }
        Ok(())
    }

    fn mark_done(&self, note: &mut Note, done: &Erased) {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        for erasure in note
            .erasures
            .iter_mut()
            .filter(|erasure| erasure.what != What::Deleted)
        {
            match erasure.done {
                None => {
                    erasure.done = Some(self.now);
                    erasure.objects += done.rewritten + done.removed;
                }
                Some(first) if self.now.since(first) >= DAY => {
                    erasure.confirmed = erasure.confirmed.or(Some(self.now));
                }
                Some(_) => {}
            }
        }
    }

    /// The account's own objects.
    async fn account_objects(
        &self,
        folder: &DidFolder,
        gone: &Gone,
        done: &mut Erased,
    ) -> Result<(), PruneError> {
        for blob in &gone.blobs {
            let name = blob_name(folder, *blob);
            if self.bucket.head(&name).await?.is_some() {
                self.remove(&name, done).await?;
            }
        }
        if !gone.whole {
            return self.rewrite_account(folder, gone, done).await;
        }
        let mut objects = self.list(&BlobName::prefix(folder)).await?;
        objects.extend(self.list(&IdentityName::prefix(folder)).await?);
        let mut repository = self.list(&SnapshotName::prefix(folder)).await?;
        // Deltas before what they lean on.
        repository.sort_by_key(|object| !object.name.contains(".delta."));
        objects.extend(repository);
        let private = format!("/{folder}.age");
        let state = self.list("v1/state/").await?.into_iter();
        objects.extend(state.filter(|object| object.name.ends_with(&private)));
        for object in objects {
            if object.name.parse::<ObjectName>().is_ok() {
                self.remove(&object.name, done).await?;
            }
        }
        Ok(())
    }

    /// This mirror's claim stands there, and no newer one.
    async fn check_right(&self) -> Result<(), PruneError> {
        let Right { generation, instance } = &self.right;
        let ours = writer::is_claimed_by(self.bucket, *generation, instance).await?
            && !writer::is_superseded(self.bucket, *generation).await?;
        if ours {
            Ok(())
        } else {
            Err(PruneError::NotOurs(self.bucket.to_string()))
        }
    }

    pub(super) async fn remove(&self, name: &str, done: &mut Erased) -> Result<(), PruneError> {
        self.stop_if_asked()?;
        self.bucket.delete(name).await?;
        if self.bucket.head(name).await?.is_some() {
            return Err(PruneError::Damaged(format!(
                "{name} cannot be removed from {}: it is there after it was deleted; is it locked?",
                self.bucket
            )));
        }
        tracing::info!(object = name, "erased from the archive");
        done.removed += 1;
        tokio::time::sleep(self.pause).await;
        Ok(())
    }

    pub(super) fn stop_if_asked(&self) -> Result<(), PruneError> {
        if self.cancel.is_cancelled() {
            return Err(PruneError::Cancelled);
        }
        Ok(())
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, PruneError> {
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

    /// Every segment, whichever edition, whether part of the log or not any more.
    pub(super) async fn all_segments(&self) -> Result<Vec<SegmentName>, PruneError> {
        let objects = self.list(&SegmentName::prefix(SHARD)).await?;
        Ok(objects
            .into_iter()
            .filter_map(|object| object.name.parse().ok())
            .collect())
    }

    async fn note(&self, folder: &DidFolder) -> Result<Option<Note>, PruneError> {
        let name = ErasedName { did: folder.clone() };
        read_note(self.bucket, &name).await
    }

    async fn put_note(&self, folder: &DidFolder, note: &Note) -> Result<(), PruneError> {
        let name = ErasedName { did: folder.clone() };
        let options = PutOptions {
            create_only: false,
            ..PutOptions::create(ContentType::json())
        };
        let body = Body::Bytes(note.encode().into());
        self.bucket.put(&name.to_string(), body, &options).await?;
        Ok(())
    }
}

fn folder(did: &Did) -> Result<DidFolder, PruneError> {
    DidFolder::try_from(did).map_err(|error| PruneError::Damaged(error.to_string()))
}

fn blob_name(folder: &DidFolder, blob: Digest) -> String {
    BlobName {
        did: folder.clone(),
        blob,
    }
    .to_string()
}
