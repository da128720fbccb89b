#![allow(clippy::disallowed_methods, reason = "shell: the archive, the clock")]
//! Prunes and erases: for the daemon, and for a command where none runs.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::archive_link::NotAdopted;
use super::{DaemonError, start};
use crate::archive::bucket::Bucket;
use crate::archive::erase::note::What;
use crate::archive::erase::run::{Erased, Eraser, Scope};
use crate::archive::held::{Gate, MirrorSide, noted_elsewhere};
use crate::archive::identity;
use crate::archive::names::{DidFolder, ERASED, ErasedName, ObjectName};
use crate::archive::probe::old_versions;
use crate::archive::prune::{Memory, PruneError, Pruned, Pruner, Right, read_note};
use crate::archive::retention::Keep;
use crate::archive::writer::ClaimError;
use crate::clock::Clock;
use crate::config::Config;
use crate::mirror::applier::{Applier, ApplierLimits};
use crate::mirror::handle::{self, ApplierHandle};
use crate::mirror::input::Input;
use crate::mirror::keyspace::{META_ARCHIVE_ID, META_INSTANCE};
use crate::mirror::numbers::Numbers;
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Family, Store};
use crate::types::{Cid, Codec, Did, RepoPath};

/// Between two requests that remove something: others use the store too.
const PAUSE: Duration = Duration::from_millis(10);
/// What was erased is looked for once more after this long.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Accounts that a CID without an account is looked for in.
const ACCOUNTS_MAX: usize = 1_000_000;

/// The archive, the mirror, and what stays.
#[derive(Clone)]
pub struct Caretaker {
    /// The mirror and the archive.
    pub side: MirrorSide,
    /// This mirror's name in its claim.
    pub instance: String,
    /// What stays.
    pub keep: Keep,
    /// The clock.
    pub clock: Clock,
    /// Where temporary files are made.
    pub temp_dir: PathBuf,
    /// The applier's thread, where it is this one's own: dropped last, after the handles that keep it going.
    pub(super) _last: Option<Arc<Joined>>,
}

/// What a person wants gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Whose; none: whoever has it.
    pub did: Option<Did>,
    /// What of it.
    pub what: What,
}

impl Forget {
    /// A DID, an `at://` address of a record, or a CID, perhaps of a named account.
    ///
    /// # Errors
    /// A line for a person.
    pub fn parse(subject: &str, account: Option<&str>) -> Result<Self, String> {
        let did = |text: &str| {
            text.parse::<Did>()
                .map_err(|error| format!("{text:?} is {error}"))
        };
        let account = account.filter(|text| !text.is_empty()).map(did).transpose()?;
        if let Some(rest) = subject.strip_prefix("at://") {
            let Some((owner, path)) = rest.split_once('/') else {
                return Self::parse(rest, None);
            };
            let path: RepoPath = path
                .parse()
                .map_err(|_| format!("{subject:?} names no record: give at://DID/collection/rkey"))?;
            let (did, what) = (Some(did(owner)?), What::Record(path));
            return Ok(Self { did, what });
        }
        if subject.starts_with("did:") {
            let (did, what) = (Some(did(subject)?), What::Account);
            return Ok(Self { did, what });
        }
        let cid: Cid = subject
            .parse()
            .map_err(|_| format!("{subject:?} is no DID, no at:// address and no CID"))?;
        let (did, what) = (account, What::Cid(cid));
        Ok(Self { did, what })
    }
}

/// A thread that has to end before the process does: it closes the mirror.
pub(super) struct Joined(Option<std::thread::JoinHandle<Result<(), crate::mirror::StoreError>>>);

impl Drop for Joined {
    fn drop(&mut self) {
        drop(self.0.take().map(std::thread::JoinHandle::join));
    }
}

impl Caretaker {
    /// Opens mirror and archive where no daemon runs: the mirror's lock sees to that.
    ///
    /// # Errors
    /// When a daemon runs, there is no mirror, or the archive is not the one that it writes.
    pub async fn alone(config: &Config) -> Result<Self, DaemonError> {
        if !config.data_dir.exists() {
            return Err(DaemonError::failed(format!(
                "no daemon answers on {}, and there is no mirror at {}: what is pinned, and who may write to the archive, \
                 only the mirror knows. Name the daemon with --admin-listen, or its data folder with --data-dir",
                config.admin_listen,
                config.data_dir.display()
            )));
        }
        let temp_dir = config.data_dir.join("tmp");
        let store = start::open_store(&config.data_dir, &temp_dir)?;
        let failed = |error: &dyn std::fmt::Display| DaemonError::failed(error.to_string());
        let meta = |key: &[u8]| {
            let value = store.get(Family::Meta, key).map_err(|error| failed(&error))?;
            Ok::<_, DaemonError>(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let (known, instance) = (meta(META_ARCHIVE_ID)?, meta(META_INSTANCE)?);
        let bucket = Bucket::open_existing(&config.archive)
            .await
            .map_err(|error| failed(&error))?;
        let bucket =
            bucket.ok_or_else(|| DaemonError::failed(format!("no archive at {}", config.archive.url)))?;
        let found = identity::read(&bucket).await.map_err(|error| failed(&error))?;
        let found = found.map(|info| info.id.to_string());
        let (Some(instance), true) = (instance, found.is_some() && found == known) else {
            return Err(DaemonError::failed(format!(
                "{} is not the archive that the mirror at {} writes",
                config.archive.url,
                config.data_dir.display()
            )));
        };
        let clock = Clock::system();
        let numbers = Numbers::open(Arc::clone(&store)).map_err(|error| failed(&error))?;
        let limits = ApplierLimits::default();
        let applier = Applier::open(Arc::clone(&store), Arc::new(numbers), limits);
        let applier = applier.map_err(|error| failed(&error))?;
        let (applier, thread) =
            handle::start(applier, clock.clone(), |_, _| {}).map_err(|error| failed(&error))?;
        Ok(Self {
            side: MirrorSide {
                store,
                applier,
                bucket,
                gate: Gate::default(),
            },
            instance,
            keep: config.keep,
            clock,
            temp_dir,
            _last: Some(Arc::new(Joined(Some(thread)))),
        })
    }

    fn right(&self) -> Result<Right, PruneError> {
        let generation = Mirror::new(&*self.side.store).log()?.generation;
        let instance = self.instance.clone();
        Ok(Right { generation, instance })
    }

    /// Applies retention once. What was removed before an error stands in the first.
    pub async fn prune(
        &self,
        memory: &mut Memory,
        cancel: CancellationToken,
    ) -> (Pruned, Option<PruneError>) {
        let mut pruned = Pruned::default();
        let right = match self.right() {
            Ok(right) => right,
            Err(error) => return (pruned, Some(error)),
        };
        let pruner = Pruner {
            bucket: &self.side.bucket,
            held: &self.side,
            right,
            keep: self.keep,
            now: self.clock.now(),
            pause: PAUSE,
            temp_dir: self.temp_dir.clone(),
            cancel,
        };
        let ended = pruner.run(memory, &mut pruned).await;
        (pruned, ended.err())
    }

    fn eraser(&self, by: &str, cancel: CancellationToken) -> Result<Eraser<'_>, PruneError> {
        Ok(Eraser {
            bucket: &self.side.bucket,
            mirror: &self.side,
            right: self.right()?,
            now: self.clock.now(),
            by: by.to_owned(),
            pause: PAUSE,
            temp_dir: self.temp_dir.clone(),
            cancel,
        })
    }

    /// Takes up erasures that were cut short, and looks again for what was erased a day ago. Returns how many
    /// accounts that concerned, and how many are still open.
    ///
    /// # Errors
    /// See [`PruneError`].
    pub async fn look_again(&self, cancel: CancellationToken) -> Result<(u64, u64), PruneError> {
        let (mut done, mut open, mut after) = (0, 0, None::<String>);
        loop {
            let page = self.side.bucket.list(ERASED, after.as_deref()).await?;
            for object in &page.objects {
                let Ok(ObjectName::Erased(name)) = object.name.parse() else {
                    continue;
                };
                if self.is_due(&name).await? {
                    let erased = self.eraser("", cancel.clone())?.finish(name.did.did()).await?;
                    tell(name.did.did(), &erased);
                    done += 1;
                }
                open += u64::from(!self.is_confirmed(&name).await?);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok((done, open)),
            }
        }
    }

    async fn is_due(&self, name: &ErasedName) -> Result<bool, PruneError> {
        let note = read_note(&self.side.bucket, name).await?;
        let now = self.clock.now();
        let mut open = note.into_iter().flat_map(|note| note.erasures);
        Ok(open.any(|erasure| {
            let asked = erasure.what != What::Deleted;
            let again = erasure.confirmed.is_none() && erasure.done.is_some_and(|at| now.since(at) >= AGAIN);
            asked && (erasure.done.is_none() || again)
        }))
    }

    async fn is_confirmed(&self, name: &ErasedName) -> Result<bool, PruneError> {
        let note = read_note(&self.side.bucket, name).await?;
        let mut all = note.into_iter().flat_map(|note| note.erasures);
        Ok(all.all(|erasure| erasure.what == What::Deleted || erasure.confirmed.is_some()))
    }

    /// What a person wants gone goes; with `dry_run` it is only said what that is.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn forget(
        &self,
        forget: &Forget,
        by: &str,
        dry_run: bool,
        cancel: CancellationToken,
    ) -> Result<Value, String> {
        let text = |error: PruneError| error.to_string();
        let dids = match &forget.did {
            Some(did) => BTreeSet::from([did.clone()]),
            None => self.who_has(&forget.what).await.map_err(text)?,
        };
        let eraser = self.eraser(by, cancel).map_err(text)?;
        let mut accounts = Vec::new();
        for did in dids {
            let scope = eraser.scope(&did, &forget.what).await.map_err(text)?;
            if !scope.found {
                continue;
            }
            let live = self.live(&did, forget, &scope).map_err(text)?;
            let mut account = json!({
                "did": did.as_str(),
                "records": scope.records.iter().map(Cid::to_string).collect::<Vec<_>>(),
                "blobs": scope.blobs.iter().map(|blob| Cid::raw(*blob).to_string()).collect::<Vec<_>>(),
                "still_live": live,
            });
            if !dry_run {
                let done = eraser.erase(&did, &forget.what, &scope).await.map_err(text)?;
                tell(&did, &done);
                account["rewritten"] = done.rewritten.into();
                account["removed"] = done.removed.into();
            }
            accounts.push(account);
        }
        Ok(json!({
            "archive": self.side.bucket.to_string(),
            "dry_run": dry_run,
            "accounts": accounts,
            "old_versions": old_versions(&self.side.bucket).await,
        }))
    }

    /// Accounts that have a record or blob, as far as the mirror knows, and the archive's blobs.
    async fn who_has(&self, what: &What) -> Result<BTreeSet<Did>, PruneError> {
        let What::Cid(cid) = what else {
            return Ok(BTreeSet::new());
        };
        let store = &self.side.store;
        let mut all = Vec::new();
        Mirror::new(&**store).each_account(|did, row| {
            all.push((did, row.account_number));
            match all.len() < ACCOUNTS_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        let mut found = BTreeSet::new();
        for (did, number) in all {
            let has = match cid.codec() {
                Codec::Raw => {
                    let Ok(folder) = DidFolder::try_from(&did) else {
                        continue;
                    };
                    let blob = *cid.digest();
                    let name = crate::archive::names::BlobName { did: folder, blob };
                    self.side.bucket.head(&name.to_string()).await?.is_some()
                        || match Mirror::new(&**store).account(&did)? {
                            Some(row) => Mirror::new(&**store).blob(row.did_number, &blob)?.is_some(),
                            None => false,
                        }
                }
                Codec::DagCbor => {
                    let mut has = false;
                    Mirror::new(&**store).scan_records(number, None, &mut |_, record| {
                        has = record.cid() == *cid;
                        match has {
                            true => ControlFlow::Break(()),
                            false => ControlFlow::Continue(()),
                        }
                    })?;
                    has
                }
            };
            if has {
                found.insert(did);
            }
        }
        Ok(found)
    }

    /// How many of the records that go are live at the account's host, as far as is known; of an account, whether it is.
    fn live(&self, did: &Did, forget: &Forget, scope: &Scope) -> Result<u64, PruneError> {
        let mirror = Mirror::new(&*self.side.store);
        let Some(row) = mirror.account(did)? else {
            return Ok(0);
        };
        if forget.what == What::Account {
            return Ok(u64::from(row.upstream.is_active()));
        }
        let mut live = 0;
        if row.head.is_some() {
            mirror.scan_records(row.account_number, None, &mut |_, record| {
                live += u64::from(scope.records.contains(&record.cid()));
                ControlFlow::Continue(())
            })?;
        }
        Ok(live)
    }
}

/// What was erased from an archive is kept out of a mirror that is linked to it.
///
/// # Errors
/// When the archive does not answer, or the mirror fails.
pub async fn obey(
    bucket: &Bucket,
    store: &Arc<dyn Store>,
    applier: &ApplierHandle,
) -> Result<(), NotAdopted> {
    match noted_elsewhere(bucket, store).await {
        Ok(erasures) => {
            if !erasures.is_empty() {
                let accounts = erasures.len();
                tracing::info!(
                    accounts,
                    "what was erased from the archive is kept out of this mirror"
                );
            }
            for erase in erasures {
                applier.apply(Input::Erase(Box::new(erase))).await?;
            }
        }
        Err(PruneError::Bucket(error)) => return Err(ClaimError::Bucket(error).into()),
        Err(PruneError::Store(error)) => return Err(error.into()),
        Err(error) => tracing::error!("{error}"),
    }
    Ok(())
}

fn tell(did: &Did, erased: &Erased) {
    tracing::info!(
        %did,
        rewritten = erased.rewritten,
        removed = erased.removed,
        "what was to be erased of this account is not in the archive any more"
    );
}

/// Shared by whoever prunes or erases: one at a time.
pub type OneAtATime = Arc<tokio::sync::Mutex<Memory>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects() {
        let parsed = |text: &str| Forget::parse(text, None);
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid");
        assert_eq!(
            parsed(did.as_str()),
            Ok(Forget {
                did: Some(did.clone()),
                what: What::Account
            })
        );
        assert_eq!(parsed(&format!("at://{did}")), parsed(did.as_str()));
        let record = parsed(&format!("at://{did}/app.bsky.feed.post/3k2yihcrp6f2c")).expect("a record");
        assert_eq!(record.did, Some(did.clone()));
        assert!(
            matches!(record.what, What::Record(path) if path.as_str() == "app.bsky.feed.post/3k2yihcrp6f2c")
        );
        let cid = Cid::of_blob(b"x");
        let of_one = Forget::parse(&cid.to_string(), Some(did.as_str())).expect("a CID");
        assert_eq!((of_one.did, of_one.what), (Some(did.clone()), What::Cid(cid)));
        assert_eq!(parsed(&cid.to_string()).expect("a CID").did, None);
        for bad in [
            "",
            "alice.test",
            "at://alice.test/a.b.c/d",
            &format!("at://{did}/app.bsky.feed.post"),
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
