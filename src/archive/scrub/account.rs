#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! One account: its identity, its snapshots and deltas, what they lead through, its blobs, and whether every blob that
//! its newest snapshot refers to is there.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, stream};

use super::content::{check_delta, check_snapshot, read_log_file, read_snapshot};
use super::inventory::{Account, gaps};
use super::log_chain::Stretch;
use super::read::Outcome;
use super::replay::Replay;
use super::report::{Fault, shown};
use super::run::{NAMED_MAX, Scrub, ScrubError};
use crate::archive::identity_file::{IDENTITY_BYTES_MAX, IdentityFile};
use crate::archive::log_file::Entry;
use crate::archive::names::{BlobName, DeltaName, DidFolder, IdentityName, ObjectName, SnapshotName};
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, Digest, Rev};

/// Blobs that are read at once: a store answers slowly, and most blobs are small.
const BLOBS_AT_ONCE: usize = 8;
/// Blobs of one snapshot that are looked for.
const REFERENCES_MAX: usize = 2_000_000;

/// The blobs that a snapshot refers to, each with the first path that does.
#[derive(Default)]
struct References {
    blobs: BTreeMap<Digest, Box<str>>,
    /// There were more.
    cut: bool,
}

impl References {
    fn add(&mut self, path: &[u8], record: &[u8]) {
        for blob in scan_record(record).blobs {
            if self.blobs.len() >= REFERENCES_MAX {
                self.cut = true;
                return;
            }
            let digest = *blob.cid.digest();
            let path = || String::from_utf8_lossy(path).into();
            self.blobs.entry(digest).or_insert_with(path);
        }
    }
}

/// The objects of an account's repository, as they are listed when its turn comes.
#[derive(Default)]
pub(super) struct Objects {
    /// Newest first.
    pub(super) snapshots: Vec<SnapshotName>,
    pub(super) deltas: Vec<DeltaName>,
    /// Those that the log adds nothing to: whatever else stands there.
    others: u64,
}

impl Scrub<'_> {
    /// Account after account, by DID.
    pub(super) async fn accounts(&mut self) -> Result<(), ScrubError> {
        let logged = self.state.log.dids().filter_map(|did| did.parse::<Did>().ok());
        let mut dids: BTreeSet<Did> = logged.collect();
        dids.extend(self.inventory.accounts.keys().cloned());
        let told = self.told.iter().filter(|(_, (_, snapshot))| snapshot.is_some());
        dids.extend(told.map(|(did, _)| did.clone()));
        for did in dids {
            if self
                .state
                .account
                .as_ref()
                .is_some_and(|done| did.as_str() <= done.as_str())
            {
                let account = self.inventory.accounts.get(&did);
                self.done(account.map_or(0, |account| {
                    (account.snapshots.len() + account.deltas.len()) as u64 + account.blobs
                }));
                continue;
            }
            self.account(&did).await?;
            self.state.account = Some(did.to_string());
            self.state.blob = None;
            self.keep()?;
        }
        Ok(())
    }

    async fn account(&mut self, did: &Did) -> Result<(), ScrubError> {
        let Ok(folder) = DidFolder::try_from(did) else {
            // In the log alone: no object can be named by it.
            return Ok(());
        };
        // Taken up again within its blobs: the rest of it was checked, and its references are needed again.
        let again = self.state.blob.is_some();
        if !again {
            self.check_identities(did).await?;
        }
        let objects = self.objects(&folder).await?;
        let keys = self.keys(did).await?;
        let (references, bad) = self.snapshots(did, &objects, &keys, again).await?;
        if !again {
            let loaded = self.deltas(did, &objects).await?;
            self.check_told(did, &folder, &objects).await;
            self.check_history(did, &objects, &bad, &loaded);
        }
        self.blobs(did, &folder, references).await
    }

    async fn objects(&mut self, folder: &DidFolder) -> Result<Objects, ScrubError> {
        let (prefix, mut after) = (SnapshotName::prefix(folder), None);
        let mut objects = Objects::default();
        loop {
            let page = self.reader.bucket.list(&prefix, after.as_deref()).await?;
            for object in &page.objects {
                match object.name.parse() {
                    Ok(ObjectName::Snapshot(name)) => objects.snapshots.push(name),
                    Ok(ObjectName::Delta(name)) => objects.deltas.push(name),
                    Ok(_) => objects.others += 1,
                    // Said when the names were read.
                    Err(_) => {}
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        objects.snapshots.sort_by_key(|name| std::cmp::Reverse(name.rev));
        objects.deltas.sort_by_key(|name| (name.from(), name.to()));
        Ok(objects)
    }

    async fn check_identities(&mut self, did: &Did) -> Result<(), ScrubError> {
        for name in self.identities(did).await? {
            if !self.state.sample.takes(&name.to_string()) {
                continue;
            }
            let outcome = self.read_identity(&name).await;
            let affects = || "commits that only its keys signed are not checked, and it cannot be shown who the account was";
            self.judge(&ObjectName::Identity(name), Some(did), outcome, || {
                affects().to_owned()
            })?;
        }
        Ok(())
    }

    pub(super) async fn read_identity(&self, name: &IdentityName) -> Outcome<Vec<SigningKey>> {
        let read = self.reader.bytes(&name.to_string(), IDENTITY_BYTES_MAX).await;
        read.and_then(|bytes| {
            let file = IdentityFile::decode(&bytes, name)?;
            Ok(file.keys()?)
        })
    }

    /// Every snapshot, newest first. Returns what the newest sound one refers to, with its rev; and the revs of those
    /// that nothing can build on.
    async fn snapshots(
        &mut self,
        did: &Did,
        objects: &Objects,
        keys: &std::sync::Arc<[SigningKey]>,
        again: bool,
    ) -> Result<(Option<(Rev, References)>, BTreeSet<Rev>), ScrubError> {
        let mut newest: Option<(Rev, References)> = None;
        let mut bad = BTreeSet::new();
        for (index, name) in objects.snapshots.iter().enumerate() {
            if !again {
                self.done(1);
            }
            let text = name.to_string();
            if !self.state.sample.takes(&text) {
                continue;
            }
            if again && newest.is_some() {
                break;
            }
            let (of, keys, wanted) = (name.clone(), std::sync::Arc::clone(keys), newest.is_none());
            let note = self.erased.get(did).cloned();
            let outcome = self.reader.check(&text, move |file| {
                let mut references = References::default();
                let withheld = |cid: &Cid| note.as_ref().is_some_and(|note| note.withholds(cid));
                let tally = check_snapshot(file, &of, &keys, &withheld, |path, record| {
                    if wanted {
                        references.add(path, record);
                    }
                });
                Ok((tally?, references))
            });
            let outcome = outcome.await;
            if again {
                // It was counted, or found bad, before.
                if let Outcome::Sound((_, references)) = outcome {
                    newest = Some((name.rev, references));
                }
                continue;
            }
            if matches!(outcome, Outcome::Bad(_) | Outcome::Gone) {
                bad.insert(name.rev);
            }
            let affects = || snapshot_affects(did, objects, index);
            let read = self.judge(&ObjectName::Snapshot(name.clone()), Some(did), outcome, affects)?;
            if let Some((tally, references)) = read {
                self.state.counts.add(tally);
                newest = newest.or(Some((name.rev, references)));
            }
        }
        Ok((newest, bad))
    }

    /// Every delta. Returns those that begin with a fetched repository.
    async fn deltas(&mut self, did: &Did, objects: &Objects) -> Result<Vec<DeltaName>, ScrubError> {
        let mut loaded = Vec::new();
        let mut replay = Replay::default();
        for name in &objects.deltas {
            self.done(1);
            let text = name.to_string();
            if !self.state.sample.takes(&text) {
                continue;
            }
            let read = self.reader.check(&text, read_log_file).await;
            let named = read.and_then(|file| check_delta(&file, name).map(|()| file));
            let checked = self.check_entries(named).await?;
            if matches!(checked, Outcome::Sound(_)) && !replay.stands_at(name.from()) {
                replay = self.base(objects, name.from()).await;
            }
            let told = replay.stands_at(name.from());
            let outcome = checked.and_then(|(file, tally)| match told {
                true => replay.tell(&file).map(|()| (file, tally)),
                false => Ok((file, tally)),
            });
            let affects = || {
                format!(
                    "moments of {did} between rev {} and rev {}, and what only builds on it",
                    name.from(),
                    name.to()
                )
            };
            let judged = self.judge(&ObjectName::Delta(name.clone()), Some(did), outcome, affects)?;
            if let Some((file, tally)) = judged {
                self.state.counts.add(tally);
                self.state.counts.deltas_told += u64::from(told);
                if matches!(file.index.entries.first(), Some(Entry::Loaded { .. })) {
                    loaded.push(name.clone());
                }
            }
        }
        Ok(loaded)
    }

    /// The records of the snapshot at a rev, if there is a sound one.
    async fn base(&self, objects: &Objects, rev: Rev) -> Replay {
        let Some(name) = objects.snapshots.iter().find(|name| name.rev == rev) else {
            return Replay::default();
        };
        let (of, text) = (name.clone(), name.to_string());
        let note = self.erased.get(name.did.did()).cloned();
        let read = self.reader.check(&text, move |file| {
            let mut replay = Replay::of(of.rev);
            let withheld = |cid: &Cid| note.as_ref().is_some_and(|note| note.withholds(cid));
            read_snapshot(file, &of, &[], &withheld, |path, cid, _| replay.add(path, cid))?;
            Ok(replay)
        });
        match read.await {
            Outcome::Sound(replay) => replay,
            _ => Replay::default(),
        }
    }

    /// What the account's objects and the log lead through, and what they build on.
    fn check_history(&mut self, did: &Did, objects: &Objects, bad: &BTreeSet<Rev>, loaded: &[DeltaName]) {
        if self.is_let_go(did, objects) {
            return;
        }
        let usable = objects
            .snapshots
            .iter()
            .map(|name| name.rev)
            .filter(|rev| !bad.contains(rev));
        let mut snapshots: Vec<Rev> = usable.collect();
        snapshots.reverse();
        let held = self.inventory.accounts.get(did);
        let account = Account {
            snapshots,
            deltas: objects
                .deltas
                .iter()
                .map(|name| (name.from(), name.to()))
                .collect(),
            blobs: held.map_or(0, |held| held.blobs),
            others: objects.others,
        };
        let folder = format!("{}{did}/", crate::archive::names::REPOS);
        for delta in &objects.deltas {
            if !account.leans_on(delta.from(), delta.to()) && !loaded.contains(delta) {
                let detail = format!(
                    "it builds on rev {}, which no snapshot and no other delta holds",
                    delta.from()
                );
                let affects = format!("moments of {did} from there to its next snapshot");
                self.find(Fault::NoSnapshot, &delta.to_string(), Some(did), detail, affects);
            }
        }
        let listed = self.inventory.accounts.get(did);
        let findings = &mut self.state.findings;
        let to_come = self.state.log.check_account(did, listed, &account, findings);
        let nothing = objects.snapshots.is_empty() && account.deltas.is_empty() && objects.others == 0;
        if nothing && account.blobs > 0 && !to_come {
            let detail = "there are blobs of it, and no repository".to_owned();
            let affects = format!(
                "{did} cannot be restored; if its host was only just added, its first snapshot may be on its way"
            );
            self.find(Fault::NoSnapshot, &folder, Some(did), detail, affects);
        }
        if !self.state.sample.is_all() {
            return;
        }
        let of_deltas = objects
            .deltas
            .iter()
            .map(|delta| (delta.from(), delta.to(), loaded.contains(delta)));
        let mut stretches: Vec<(Rev, Rev, bool)> = of_deltas.collect();
        stretches.extend(self.state.log.stretches(did).iter().map(Stretch::span));
        let mut newest = account.newest_snapshot();
        if account.deltas.is_empty() {
            // Between its stretches the log was judged already. The snapshot behind it must have been there before
            // the log was read: a newer one is ahead of it.
            let ends = |of: fn(&(Rev, Rev, bool)) -> Rev| stretches.iter().map(of);
            let span = ends(|of| of.0).min().zip(ends(|of| of.1).max());
            stretches = span.map(|(from, to)| (from, to, false)).into_iter().collect();
            let held = self.inventory.accounts.get(did);
            let before = held.map_or(&[][..], |held| &held.snapshots);
            newest = newest.filter(|newest| before.binary_search(newest).is_ok());
        }
        // What stands behind a gap and builds on nothing was said already.
        let gaps = gaps(&stretches, newest).into_iter();
        for (from, to) in gaps.filter(|(_, to)| account.is_anchor(*to)) {
            let detail =
                format!("what changed between rev {from} and rev {to} is in no delta and no segment");
            let affects = format!("moments of {did} in between; both ends can be restored");
            self.find(Fault::Gap, &folder, Some(did), detail, affects);
        }
    }

    /// Every blob, and every one that should be.
    async fn blobs(
        &mut self,
        did: &Did,
        folder: &DidFolder,
        references: Option<(Rev, References)>,
    ) -> Result<(), ScrubError> {
        let (
            rev,
            References {
                blobs: mut wanted,
                cut,
            },
        ) = match references {
            Some((rev, references)) => (Some(rev), references),
            None => (None, References::default()),
        };
        let all_wanted = wanted.len() as u64;
        let (prefix, mut after) = (BlobName::prefix(folder), None);
        loop {
            let page = self.reader.bucket.list(&prefix, after.as_deref()).await?;
            let names = page
                .objects
                .iter()
                .filter_map(|object| object.name.parse::<BlobName>().ok());
            let names: Vec<BlobName> = names.collect();
            self.done(names.len() as u64);
            self.blob_page(did, &names, &mut wanted).await?;
            match page.next {
                Some(next) => {
                    // Never back: a store taken up again is listed from its beginning.
                    self.state.blob = self.state.blob.take().max(Some(next.clone()));
                    self.keep()?;
                    after = Some(next);
                }
                None => break,
            }
        }
        let Some(rev) = rev else { return Ok(()) };
        self.state.counts.accounts += 1;
        self.state.counts.blobs_referenced += all_wanted;
        if cut {
            let detail = format!("its newest snapshot refers to more than {REFERENCES_MAX} blobs");
            self.find(
                Fault::Unread,
                &prefix,
                Some(did),
                detail,
                "whether the rest is there is not known".to_owned(),
            );
        }
        self.missing_blobs(did, folder, rev, wanted).await
    }

    /// A page of blobs: each is hashed, and none is looked for any more.
    async fn blob_page(
        &mut self,
        did: &Did,
        names: &[BlobName],
        wanted: &mut BTreeMap<Digest, Box<str>>,
    ) -> Result<(), ScrubError> {
        let resumed = self.state.blob.clone();
        let mut paths: BTreeMap<Digest, Option<Box<str>>> = BTreeMap::new();
        let mut to_read = Vec::new();
        for name in names {
            let path = wanted.remove(&name.blob);
            let text = name.to_string();
            if resumed.as_ref().is_none_or(|done| text > *done) && self.state.sample.takes(&text) {
                paths.insert(name.blob, path);
                to_read.push((name.clone(), text, self.reader.clone()));
            }
        }
        let reads = to_read.into_iter().map(|(name, text, reader)| async move {
            let outcome = reader.sha256(&text).await;
            (name, outcome)
        });
        let mut reads = stream::iter(reads).buffer_unordered(BLOBS_AT_ONCE);
        while let Some((name, outcome)) = reads.next().await {
            let digest = name.blob;
            let outcome = outcome.and_then(|found| match found == digest {
                true => Ok(()),
                false => Err(super::content::Bad::Other(
                    "its bytes do not hash to the CID in its name".to_owned(),
                )),
            });
            let affects = || match paths.get(&digest).and_then(Option::as_ref) {
                Some(path) => format!(
                    "record {} of {did}, and every other that refers to it",
                    shown(path)
                ),
                None => {
                    format!("no record of the newest snapshot of {did} that was read; perhaps older ones")
                }
            };
            self.judge(&ObjectName::Blob(name), Some(did), outcome, affects)?;
        }
        Ok(())
    }

    /// Blobs that no list showed are asked for one by one.
    async fn missing_blobs(
        &mut self,
        did: &Did,
        folder: &DidFolder,
        rev: Rev,
        wanted: BTreeMap<Digest, Box<str>>,
    ) -> Result<(), ScrubError> {
        let total = wanted.len();
        for (number, (digest, path)) in wanted.into_iter().enumerate() {
            if number >= NAMED_MAX {
                let more = (total - number) as u64;
                self.state.findings.count_more(Fault::MissingBlob, more);
                break;
            }
            let name = BlobName {
                did: folder.clone(),
                blob: digest,
            };
            let erased = self.erased.get(did);
            if erased.is_some_and(|note| note.withholds_blob(&digest))
                || self.reader.bucket.head(&name.to_string()).await?.is_some()
            {
                continue;
            }
            let detail = format!(
                "the newest sound snapshot (rev {rev}) refers to blob {}, and it is not there: it was removed, or \
                 never archived because its host did not have it",
                Cid::raw(digest)
            );
            let affects = format!("record {} of {did}", shown(&path));
            self.find(Fault::MissingBlob, &name.to_string(), Some(did), detail, affects);
        }
        Ok(())
    }
}

/// What a bad snapshot means: whether there is an older or a newer one.
fn snapshot_affects(did: &Did, objects: &Objects, index: usize) -> String {
    let rev = objects.snapshots[index].rev;
    let led_to = objects.deltas.iter().any(|delta| delta.to() == rev);
    let by_deltas = match led_to {
        true => "; a delta leads there too",
        false => "",
    };
    match (index, objects.snapshots.get(index + 1)) {
        (0, Some(older)) => format!(
            "the newest state of {did} (rev {rev}); the snapshot before it has rev {}{by_deltas}",
            older.rev
        ),
        (0, None) => format!("all of {did}: it is its only snapshot{by_deltas}"),
        _ => format!("{did} as it was at rev {rev}{by_deltas}; its newer snapshots do not need it"),
    }
}
