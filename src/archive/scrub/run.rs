#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! The way through an archive: names, then the small objects, then the log, then account after account.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::content::{Bad, check_quarantined};
use super::inventory::{Inventory, kind_of};
pub use super::read::Progress;
use super::read::{Outcome, Reader};
use super::report::{Fault, Finding, Report};
use super::state::{Checkpoint, Sample};
use crate::archive::bucket::{Bucket, BucketError};
use crate::archive::erase::note::{NOTE_BYTES_MAX, Note};
use crate::archive::identity::{self, IdentityError};
use crate::archive::names::{self, ErasedName, HostStateName, IdentityName, ObjectName};
use crate::archive::sealed::{self, Seal};
use crate::archive::state_file::{HostState, STATE_BYTES_MAX, ServiceState, StateFileError};
use crate::repo::signing_key::SigningKey;
use crate::types::{Did, HostName, Rev, Timestamp};

/// Largest other JSON object that is read.
const JSON_BYTES_MAX: usize = 4 << 20;
/// Missing objects of a kind that are named one by one.
pub(super) const NAMED_MAX: usize = 1000;
/// As many objects in a row that cannot be read end the verification: the store is away.
const UNREAD_MAX: u32 = 20;
/// States of a host that are tried, newest first.
const STATES_TRIED: usize = 3;
/// Accounts whose keys are remembered.
const KEYS_MAX: usize = 1000;

/// What to verify, and how.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which objects are read.
    pub sample: Sample,
    /// At most so many bytes a second.
    pub rate: Option<u64>,
}

/// Why a verification came to no result.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The store cannot be used.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// It is no archive of this version.
    #[error(transparent)]
    Archive(IdentityError),
    /// There is nothing.
    #[error("{0} is empty: no backup is there")]
    Empty(String),
    /// The checkpoint belongs to something else.
    #[error("cannot go on from there: {0}")]
    OtherCheckpoint(String),
    /// The checkpoint cannot be kept.
    #[error("cannot keep how far it came: {0}")]
    Checkpoint(#[from] std::io::Error),
}

/// Keeps how far a verification came. Called after each step; not every call needs to write.
pub type Keep<'k> = &'k mut (dyn FnMut(&Checkpoint) -> std::io::Result<()> + Send + Sync);

/// Verifies an archive, from `from` on if it was begun before.
///
/// # Errors
/// When the store cannot be used, holds nothing, or `from` belongs to another archive or sample.
pub async fn verify(
    bucket: &Bucket,
    options: Options,
    from: Option<Checkpoint>,
    progress: Arc<Progress>,
    keep: Keep<'_>,
) -> Result<Report, ScrubError> {
    let id = match identity::read(bucket).await {
        Ok(info) => info.map(|info| info.id.to_string()),
        // Said when the object's turn comes.
        Err(IdentityError::Damaged { .. }) => None,
        Err(IdentityError::Bucket(error)) => return Err(error.into()),
        Err(error) => return Err(ScrubError::Archive(error)),
    };
    let mut inventory = list(bucket, &progress).await?;
    let state = begin(from, id.clone(), options.sample)?;
    if !inventory.has_archive {
        let affects = "no daemon takes this for its archive; what is in it can be read all the same";
        inventory.findings.add(Finding {
            fault: Fault::MissingObject,
            object: names::ARCHIVE.to_owned(),
            did: None,
            detail: "the archive's first object is not there".to_owned(),
            affects: affects.to_owned(),
        });
    }
    let mut scrub = Scrub {
        reader: Reader::new(bucket.clone(), options.rate, progress),
        erased: BTreeMap::new(),
        told: BTreeMap::new(),
        inventory,
        state,
        keys: BTreeMap::new(),
        unread: 0,
        keep,
    };
    scrub.notes().await;
    scrub.states().await;
    scrub.missing_segments().await?;
    if !scrub.state.others_done {
        scrub.beginnings().await?;
    }
    scrub.others().await?;
    scrub.log().await?;
    scrub.accounts().await?;
    Ok(scrub.report(id))
}

/// Reads the list of everything.
async fn list(bucket: &Bucket, progress: &Progress) -> Result<Inventory, ScrubError> {
    let mut inventory = Inventory::default();
    let mut after: Option<String> = None;
    loop {
        let page = bucket.list("", after.as_deref()).await?;
        Progress::add(&progress.objects, page.objects.len() as u64);
        for object in &page.objects {
            inventory.add(&object.name, object.size);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if inventory.objects == 0 {
        return Err(ScrubError::Empty(bucket.to_string()));
    }
    inventory.finish();
    Ok(inventory)
}

fn begin(from: Option<Checkpoint>, id: Option<String>, sample: Sample) -> Result<Checkpoint, ScrubError> {
    let other = |what: &str| Err(ScrubError::OtherCheckpoint(what.to_owned()));
    match from {
        None => Ok(Checkpoint::new(id, sample)),
        Some(state) if state.archive != id => other("it was begun on another archive"),
        Some(state) if state.sample != sample => other("it was begun with another --sample or --seed"),
        Some(state) => Ok(state),
    }
}

pub(super) struct Scrub<'k> {
    pub(super) reader: Reader,
    /// What was erased, by account.
    pub(super) erased: BTreeMap<Did, Note>,
    /// The newest snapshot of each account, and when it was so, by its host's newest state.
    pub(super) told: BTreeMap<Did, (Timestamp, Option<Rev>)>,
    pub(super) inventory: Inventory,
    pub(super) state: Checkpoint,
    keys: BTreeMap<Did, Arc<[SigningKey]>>,
    /// Objects in a row that could not be read.
    unread: u32,
    keep: Keep<'k>,
}

impl Scrub<'_> {
    /// Keeps how far it came.
    pub(super) fn keep(&mut self) -> Result<(), ScrubError> {
        let found = self.state.findings.kept().len() + self.inventory.findings.kept().len();
        let progress = &self.reader.progress;
        progress
            .findings
            .store(found as u64, std::sync::atomic::Ordering::Relaxed);
        Ok((self.keep)(&self.state)?)
    }

    pub(super) fn done(&self, count: u64) {
        Progress::add(&self.reader.progress.done, count);
    }

    pub(super) fn find(
        &mut self,
        fault: Fault,
        object: &str,
        did: Option<&Did>,
        detail: String,
        affects: String,
    ) {
        self.state.findings.add(Finding {
            fault,
            object: object.to_owned(),
            did: did.map(Did::to_string),
            detail,
            affects,
        });
    }

    /// Judges what became of reading an object. `Some` if it is sound.
    pub(super) fn judge<T>(
        &mut self,
        name: &ObjectName,
        did: Option<&Did>,
        outcome: Outcome<T>,
        affects: impl FnOnce() -> String,
    ) -> Result<Option<T>, ScrubError> {
        if !matches!(outcome, Outcome::Unread(_)) {
            self.unread = 0;
        }
        match outcome {
            Outcome::Sound(value) => {
                self.state.counts.kind(kind_of(name)).sound += 1;
                return Ok(Some(value));
            }
            Outcome::Bad(bad) => {
                self.find(
                    Fault::of(&bad),
                    &name.to_string(),
                    did,
                    bad.to_string(),
                    affects(),
                );
            }
            Outcome::Gone => self.state.counts.vanished += 1,
            Outcome::Unread(error) => {
                self.unread += 1;
                if self.unread >= UNREAD_MAX {
                    return Err(error.into());
                }
                let detail = error.to_string();
                self.find(
                    Fault::Unread,
                    &name.to_string(),
                    did,
                    detail,
                    "not known".to_owned(),
                );
            }
        }
        Ok(None)
    }

    /// What was erased. A note that cannot be read excuses nothing; its turn as an object comes.
    async fn notes(&mut self) {
        let names = self.inventory.others.iter().filter_map(|name| match name {
            ObjectName::Erased(name) => Some(name.clone()),
            _ => None,
        });
        for name in names.collect::<Vec<_>>() {
            if let Outcome::Sound(note) = self.read_erased(&name).await {
                self.erased.insert(note.did.clone(), note);
            }
        }
    }

    pub(super) async fn read_erased(&self, name: &ErasedName) -> Outcome<Note> {
        let read = self.reader.bytes(&name.to_string(), NOTE_BYTES_MAX).await;
        read.and_then(|bytes| Note::decode(&bytes, name).map_err(Bad::Other))
    }

    /// Which snapshots there must be. A state that cannot be read is said when its turn comes; an older one serves.
    async fn states(&mut self) {
        let mut of_host: BTreeMap<&HostName, Vec<&HostStateName>> = BTreeMap::new();
        for name in &self.inventory.others {
            if let ObjectName::HostState(name) = name {
                of_host.entry(name.host.host()).or_default().push(name);
            }
        }
        for mut names in of_host.into_values() {
            names.sort_by_key(|name| std::cmp::Reverse(name.time));
            for name in names.into_iter().take(STATES_TRIED) {
                let read = self.reader.bytes(&name.to_string(), STATE_BYTES_MAX).await;
                let state =
                    read.and_then(|bytes| HostState::decode(&bytes, name).map_err(|error| bad_state(&error)));
                let Outcome::Sound(state) = state else { continue };
                for (did, account) in state.accounts {
                    let of = self.told.entry(did).or_insert((state.time, account.snapshot));
                    if of.0 < state.time {
                        *of = (state.time, account.snapshot);
                    }
                }
                break;
            }
        }
    }

    /// The objects that are read whole.
    async fn others(&mut self) -> Result<(), ScrubError> {
        let others = std::mem::take(&mut self.inventory.others);
        self.done(others.len() as u64);
        if self.state.others_done {
            return Ok(());
        }
        for name in &others {
            let text = name.to_string();
            if !self.state.sample.takes(&text) {
                continue;
            }
            let outcome = match name {
                ObjectName::State(_) => {
                    let checked = self.reader.check(&text, check_age).await;
                    checked.and_then(|()| Ok(Seal::Sound))
                }
                ObjectName::Quarantined(kept) => {
                    let kept = kept.clone();
                    let checked = self
                        .reader
                        .check(&text, move |file| check_quarantined(file, &kept));
                    checked.await.and_then(|()| Ok(Seal::Sound))
                }
                ObjectName::Erased(note) => self.read_erased(note).await.and_then(|_| Ok(Seal::Sound)),
                ObjectName::HostState(name) => {
                    let read = self.reader.bytes(&text, STATE_BYTES_MAX).await;
                    read.and_then(|bytes| match HostState::decode(&bytes, name) {
                        Ok(_) => Ok(Seal::Sound),
                        Err(error) => Err(bad_state(&error)),
                    })
                }
                ObjectName::Service(name) => {
                    let read = self.reader.bytes(&text, STATE_BYTES_MAX).await;
                    read.and_then(|bytes| match ServiceState::decode(&bytes, name) {
                        Ok(_) => Ok(Seal::Sound),
                        Err(error) => Err(bad_state(&error)),
                    })
                }
                _ => {
                    let read = self.reader.bytes(&text, JSON_BYTES_MAX).await;
                    let must_be_sealed = matches!(name, ObjectName::Archive | ObjectName::Writer(_));
                    read.and_then(|bytes| check_json(&bytes, must_be_sealed))
                }
            };
            let affects = || match name {
                ObjectName::Archive => "no daemon opens this archive; what is in it can be read all the same",
                ObjectName::Quarantined(_) => {
                    "what the host had, and could not prove, is not held as it came"
                }
                ObjectName::Erased(_) => {
                    "what was erased of this account is not known: nothing of it is restored"
                }
                ObjectName::State(_) => "what it holds of the PDS's private state cannot be restored from it",
                _ => "what it says cannot be relied on; an older one of its kind may serve",
            };
            let seal = self.judge(name, None, outcome, || affects().to_owned())?;
            self.state.counts.unsealed += u64::from(seal == Some(Seal::None));
        }
        self.state.others_done = true;
        self.keep()
    }

    /// The keys that could sign an account's commits, by the archive's identity objects.
    pub(super) async fn keys(&mut self, did: &Did) -> Result<Arc<[SigningKey]>, ScrubError> {
        if let Some(keys) = self.keys.get(did) {
            return Ok(Arc::clone(keys));
        }
        let mut keys: Vec<SigningKey> = Vec::new();
        for name in self.identities(did).await? {
            if let Outcome::Sound(found) = self.read_identity(&name).await {
                keys.extend(
                    found
                        .into_iter()
                        .filter(|key| !keys.contains(key))
                        .collect::<Vec<_>>(),
                );
            }
        }
        if self.keys.len() >= KEYS_MAX {
            self.keys.clear();
        }
        let keys: Arc<[SigningKey]> = keys.into();
        self.keys.insert(did.clone(), Arc::clone(&keys));
        Ok(keys)
    }

    fn report(self, id: Option<String>) -> Report {
        let mut counts = self.state.counts;
        for (kind, listed) in &self.inventory.counts.objects {
            let of = counts.kind(kind);
            (of.listed, of.bytes) = (listed.listed, listed.bytes);
        }
        counts.probe_leftovers = self.inventory.counts.probe_leftovers;
        counts.leftover_segments = self.inventory.leftover_segments;
        counts.bytes_read = self
            .reader
            .progress
            .bytes
            .load(std::sync::atomic::Ordering::Relaxed);
        let mut findings = self.inventory.findings;
        findings.extend(self.state.findings);
        Report {
            archive: self.reader.bucket.to_string(),
            id,
            sample_per_million: self.state.sample.per_million,
            seed: self.state.sample.seed,
            counts,
            findings,
        }
    }

    /// The names of an account's identity objects.
    pub(super) async fn identities(&self, did: &Did) -> Result<Vec<IdentityName>, ScrubError> {
        let Ok(folder) = names::DidFolder::try_from(did) else {
            return Ok(Vec::new());
        };
        let (prefix, mut after) = (IdentityName::prefix(&folder), None);
        let mut found = Vec::new();
        loop {
            let page = self.reader.bucket.list(&prefix, after.as_deref()).await?;
            found.extend(page.objects.iter().filter_map(|object| object.name.parse().ok()));
            match page.next {
                Some(next) if found.len() < NAMED_MAX => after = Some(next),
                _ => return Ok(found),
            }
        }
    }
}

fn bad_state(error: &StateFileError) -> Bad {
    match error {
        StateFileError::Misnamed => Bad::Misnamed(error.to_string()),
        _ => Bad::Other(error.to_string()),
    }
}

fn check_json(bytes: &[u8], must_be_sealed: bool) -> Result<Seal, Bad> {
    let seal = sealed::check(bytes);
    if seal == Seal::Broken || must_be_sealed && seal == Seal::None {
        return Err(Bad::Other("its own checksum does not fit its bytes".to_owned()));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => Ok(seal),
        Err(error) => Err(Bad::Other(format!("it is no JSON: {error}"))),
    }
}

/// Encrypted for keys that are not ours: only its head can be looked at, and that it can be read to its end.
fn check_age(mut file: impl std::io::Read) -> Result<(), Bad> {
    const HEAD: &[u8] = b"age-encryption.org/v1\n";
    let bad = |error: std::io::Error| Bad::Other(format!("it cannot be read: {error}"));
    let mut head = [0; HEAD.len()];
    file.read_exact(&mut head).map_err(bad)?;
    if head != HEAD {
        return Err(Bad::Other("it is not encrypted by age".to_owned()));
    }
    std::io::copy(&mut file, &mut std::io::sink()).map_err(bad)?;
    Ok(())
}
