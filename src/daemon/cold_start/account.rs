#![allow(
    clippy::disallowed_methods,
    reason = "shell: the archive, the directory, threads that may block"
)]
//! One account, from the archive into the mirror: its snapshot is loaded, what the log says since is applied, and what
//! comes out is proven against the account's key before any row points at it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::rows::{BATCH_BYTES, RowWriter};
use super::{ColdStart, FillError, Sources};
use crate::archive::identity_file::IdentityFile;
use crate::archive::keeper::state::testimony_digest;
use crate::archive::names::SnapshotName;
use crate::archive::reader::ReadError;
use crate::archive::rebuild::{RebuildError, Rebuilt};
use crate::archive::scrub::content::read_snapshot;
use crate::identity::document::Identity;
use crate::identity::plc_log::{LoggedKey, PlcLog};
use crate::mirror::input::{BlobMention, Restored, RestoredRepo};
use crate::mirror::keyspace;
use crate::mirror::reader::Mirror;
use crate::mirror::resync::stored_identity;
use crate::mirror::rows::{JournalEntry, Pin, SnapshotMark, StoredIdentity, SyncState};
use crate::mirror::store::{Batch, Family};
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::types::{AccountStatus, Cid, Did, DidMethod, Digest, Rev};
use crate::verify::{HeadKey, RejectReason, RowsFault, VerifiedRepo, check_rows};

/// Keys of before that a head is held against, at most.
const EARLIER_KEYS_MAX: usize = 16;
/// Older moments that are tried where the newest does not prove.
const OLDER_TRIES: usize = 16;
/// Where nothing says which host an account is at, and none is followed.
const UNKNOWN_HOST: &str = "host.invalid";
/// Between two tries while the archive does not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// An account that is ready for the applier, and what to say of it.
pub(in crate::daemon) struct Prepared {
    pub(in crate::daemon) restored: Restored,
    pub(super) records: u64,
    /// What could not be had from the archive.
    pub(in crate::daemon) lacks: Option<String>,
    /// What of the archive is damaged, though the account came out of it.
    pub(in crate::daemon) damaged: Option<String>,
}

/// Who may have signed.
#[derive(Default)]
struct Keys {
    stored: Option<StoredIdentity>,
    archived: Option<Digest>,
    current: Option<SigningKey>,
    earlier: Vec<LoggedKey>,
}

/// What came of trying to put an account together.
enum Tried {
    Proven(Box<RestoredRepo>, Vec<BlobMention>, Option<String>),
    /// For a person.
    Not(String),
}

impl ColdStart {
    /// Puts an account together; waits for an archive that does not answer.
    pub(in crate::daemon) async fn prepare(
        self: &Arc<Self>,
        did: Did,
        sources: Arc<Sources>,
        from_number: u64,
    ) -> Result<Prepared, FillError> {
        loop {
            match self.try_prepare(&did, &sources, from_number).await {
                Err(FillError::Read(error)) if is_passing(&error) => {
                    tracing::warn!(%did, "the archive does not answer ({error}); waiting for it");
                    tokio::time::sleep(PAUSE).await;
                }
                prepared => return prepared,
            }
        }
    }

    async fn try_prepare(
        self: &Arc<Self>,
        did: &Did,
        sources: &Arc<Sources>,
        from_number: u64,
    ) -> Result<Prepared, FillError> {
        let keys = self.keys(did).await?;
        let tried = self.put_together(did, sources, &keys).await?;
        let known = sources.state_of(did);
        let told = sources.log.accounts.get(did);
        let newest = told.and_then(|told| told.newest);
        let (repo, mentions, mut lacks, damaged) = match tried {
            Tried::Proven(repo, mentions, damaged) => (Some(*repo), mentions, None, damaged),
            Tried::Not(why) => (None, Vec::new(), Some(why), None),
        };
        let rev = repo.as_ref().map(|repo| repo.repo.rev());
        if let (Some(rev), Some(newest)) = (rev, newest)
            && rev < newest
        {
            lacks = Some(format!(
                "the log speaks of rev {newest}, and rev {rev} is the newest that can be put together"
            ));
        }
        let follows = known
            .is_none_or(|(_, state)| state.sync == (SyncState::Live).label() || state.moved_to.is_some());
        let now = self.clock.now();
        let blobs = self.blobs(
            did,
            mentions,
            known.map(|(_, state)| state.withheld.as_slice()),
            now,
        );
        let blobs = blobs.await?;
        let host = sources
            .host_of(did)
            .or_else(|| {
                keys.stored
                    .as_ref()
                    .and_then(|stored| stored.host.as_deref()?.parse().ok())
            })
            .or_else(|| self.hosts.keys().next().cloned())
            .unwrap_or_else(|| UNKNOWN_HOST.parse().expect("a host's name"));
        let status = sources.status_of(did);
        let pins = sources.pins.get(did).into_iter().flatten().map(|pin| Pin {
            // Its rows were in the mirror.
            generation: None,
            head: None,
            snapshot: pin.snapshot.map(|(rev, commit)| SnapshotMark {
                rev,
                commit,
                at: pin.since,
                bytes: 0,
            }),
            since: pin.since,
            reason: pin.reason,
        });
        Ok(Prepared {
            records: repo.as_ref().map_or(0, |repo| repo.repo.records()),
            restored: Restored {
                did: did.clone(),
                did_number: self.numbers.next()?,
                from_number,
                host,
                identity: keys.stored,
                identity_archived: keys.archived,
                status,
                deleted_at: known.and_then(|(_, state)| state.deleted_at),
                moved_to: known.and_then(|(_, state)| state.moved_to.clone()),
                whole: lacks.is_none() && follows,
                repo,
                pins: pins.collect(),
                blobs,
            },
            lacks,
            damaged,
        })
    }

    /// Who may sign for the account: by the archive, or where that does not say, by the directory.
    async fn keys(&self, did: &Did) -> Result<Keys, FillError> {
        let (files, unusable) = self.reader.identities(did).await?;
        for fault in unusable {
            tracing::warn!(%did, "an identity object cannot be used: {fault}");
        }
        if let Some(keys) = files.last().and_then(|file| self.keys_of(file)) {
            return Ok(keys);
        }
        let Some(resolver) = &self.resolver else {
            return Ok(Keys::default());
        };
        let Ok(identity) = resolver.resolve(did, false).await else {
            return Ok(Keys::default());
        };
        let mut keys = Keys {
            stored: Some(stored_identity(&identity)),
            current: identity.key.clone(),
            ..Keys::default()
        };
        if let (DidMethod::Plc, Some(current)) = (did.method(), &keys.current)
            && let Ok(log) = resolver.audit_log(did).await
        {
            keys.earlier = log.earlier_keys(current, EARLIER_KEYS_MAX);
        }
        Ok(keys)
    }

    fn keys_of(&self, file: &IdentityFile) -> Option<Keys> {
        let document = file.document.as_ref()?;
        let bytes = document.to_string().into_bytes();
        let identity = Identity::from_document(&file.did, &bytes, self.dev_mode, file.time).ok()?;
        let current = identity.key.clone()?;
        let log = file
            .plc_log
            .as_ref()
            .and_then(|log| PlcLog::parse(&file.did, log.to_string().as_bytes()).ok());
        Some(Keys {
            stored: Some(stored_identity(&identity)),
            archived: Some(testimony_digest(document, file.plc_log.as_ref())),
            earlier: log.map_or_else(Vec::new, |log| log.earlier_keys(&current, EARLIER_KEYS_MAX)),
            current: Some(current),
        })
    }

    /// The newest that can be put together: from the newest snapshot; where that does not do, from whatever else
    /// leads there.
    async fn put_together(
        self: &Arc<Self>,
        did: &Did,
        sources: &Arc<Sources>,
        keys: &Keys,
    ) -> Result<Tried, FillError> {
        let Some((snapshot, size)) = sources.snapshots.get(did) else {
            return Ok(Tried::Not("the archive has no snapshot of it".to_owned()));
        };
        let Some(current) = keys.current.clone() else {
            let text = match self.resolver {
                Some(_) => "neither the archive nor the directory says who may sign for it",
                None => "the archive does not say who may sign for it",
            };
            let text = text.to_owned();
            return Ok(Tried::Not(text));
        };
        let mark = SnapshotMark {
            rev: snapshot.rev,
            commit: Cid::dag_cbor(snapshot.commit),
            at: snapshot.rev.time().min(self.clock.now()),
            bytes: *size,
        };
        let first = match self.reader.object_body(&snapshot.to_string()).await? {
            None => Err("it vanished".to_owned()),
            Some(body) => {
                let (this, name, told) = (Arc::clone(self), snapshot.clone(), Arc::clone(sources));
                let (current, earlier) = (current.clone(), keys.earlier.clone());
                let reader = body.into_reader(Handle::current());
                blocking(move || this.load_snapshot(reader, &name, &told, mark, &current, &earlier)).await?
            }
        };
        let why = match first {
            Ok((repo, mentions)) => {
                let newest = sources.log.accounts.get(did).and_then(|told| told.newest);
                let rev = repo.repo.rev();
                if newest.is_none_or(|newest| newest <= rev) {
                    return Ok(Tried::Proven(Box::new(repo), mentions, None));
                }
                // Deltas lead on from there, and the segments that told the same are gone.
                let why = "deltas lead on from its newest snapshot".to_owned();
                let further = self.try_older(did, current, keys.earlier.clone(), why).await?;
                return Ok(match further {
                    Tried::Proven(newer, mentions, _) if newer.repo.rev() > rev => {
                        self.unload(repo.account_number)?;
                        Tried::Proven(newer, mentions, None)
                    }
                    other => {
                        if let Tried::Proven(other, ..) = other {
                            self.unload(other.account_number)?;
                        }
                        Tried::Proven(Box::new(repo), mentions, None)
                    }
                });
            }
            Err(why) => why,
        };
        // Whether it is the object or the store is told by asking for something that must be there.
        self.reader.must_answer().await?;
        tracing::warn!(%did, object = %snapshot, why, "the newest snapshot does not do; an older one is tried");
        let why = format!("{snapshot}: {why}");
        self.try_older(did, current, keys.earlier.clone(), why).await
    }

    /// Loads a snapshot, applies what came since, and proves it. The inner error is for a person.
    fn load_snapshot(
        &self,
        file: impl std::io::Read,
        name: &SnapshotName,
        sources: &Sources,
        mark: SnapshotMark,
        current: &SigningKey,
        earlier: &[LoggedKey],
    ) -> Result<Result<(RestoredRepo, Vec<BlobMention>), String>, FillError> {
        let (did, number) = (name.did.did(), self.numbers.next()?);
        let erased = Mirror::new(&*self.store).erased(did)?;
        let withheld = |cid: &Cid| erased.as_ref().is_some_and(|erased| erased.withholds(cid));
        let mut rows = RowWriter::new(self, number, erased.clone());
        let read = read_snapshot(file, name, &[], &withheld, |path, cid, bytes| {
            rows.put(path, cid, bytes.unwrap_or_default(), name.rev);
        });
        let mut block = match read {
            Ok((_, block)) => block,
            Err(bad) => {
                rows.finish()?;
                self.unload(number)?;
                return Ok(Err(bad.to_string()));
            }
        };
        let mut journal = sources.log.changes(did).map_err(FillError::Temporary)?;
        for op in journal.iter_mut().flat_map(|(_, entry)| &mut entry.ops) {
            if op.cid.as_ref().is_some_and(withheld) {
                op.bytes = None;
            }
        }
        let (mut at, mut broken) = (name.rev, None);
        for (rev, entry) in &journal {
            if entry.since != at {
                broken = Some(format!(
                    "its change of rev {rev} builds on rev {}, and not on {at}",
                    entry.since
                ));
                break;
            }
            if let Err(path) = rows.apply(*rev, entry) {
                broken = Some(format!("the record {path} of rev {rev} was erased from the log"));
                break;
            }
            at = *rev;
            block.clone_from(&entry.commit_block);
        }
        rows.finish()?;
        if let Some(broken) = broken {
            self.unload(number)?;
            return Ok(Err(broken));
        }
        self.prove(number, did, &block, (current, earlier), Some(mark), journal)
    }

    /// Proves what was loaded under a number, and looks for the blobs that it refers to.
    fn prove(
        &self,
        number: u64,
        did: &Did,
        block: &[u8],
        (current, earlier): (&SigningKey, &[LoggedKey]),
        snapshot: Option<SnapshotMark>,
        journal: Vec<(Rev, JournalEntry)>,
    ) -> Result<Result<(RestoredRepo, Vec<BlobMention>), String>, FillError> {
        let now = self.clock.now();
        let view = self.store.view();
        let rows = Mirror::new(&*view).rows(number);
        let candidates = std::iter::once(HeadKey::Current(current));
        let mut proven: Result<VerifiedRepo, String> = Err(String::new());
        for key in candidates.chain(earlier.iter().map(HeadKey::Earlier)) {
            match check_rows(&rows, block, did, key, now) {
                Ok(repo) => {
                    proven = Ok(repo);
                    break;
                }
                Err(fault @ RowsFault::Head(RejectReason::BadSignature | RejectReason::HighS)) => {
                    proven = Err(fault.to_string());
                }
                Err(fault) => {
                    proven = Err(fault.to_string());
                    break;
                }
            }
        }
        let repo = match proven {
            Ok(repo) => repo,
            Err(why) => {
                drop(view);
                self.unload(number)?;
                return Ok(Err(why));
            }
        };
        let mut mentions = BTreeMap::new();
        let mut batch = Batch::new();
        let mut failed = None;
        rows.scan(None, &mut |path, record| {
            for blob in scan_record(record.bytes).blobs {
                let digest = *blob.cid.digest();
                let key = keyspace::encode_blob_ref(number, &digest, path);
                batch.put(Family::BlobRefs, key, Vec::new());
                mentions.entry(digest).or_insert(BlobMention {
                    digest,
                    mime: blob.mime,
                    size: blob.size,
                });
            }
            if batch.bytes() >= BATCH_BYTES
                && let Err(error) = self.store.write(std::mem::take(&mut batch))
            {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.store.write(batch)?;
        let restored = RestoredRepo {
            account_number: number,
            repo,
            snapshot,
            journal,
        };
        Ok(Ok((restored, mentions.into_values().collect())))
    }

    /// The slow way, for one account whose newest snapshot is damaged or leads nowhere: all that the archive says of
    /// it is read, and the newest moment taken that can be put together.
    async fn try_older(
        self: &Arc<Self>,
        did: &Did,
        current: SigningKey,
        earlier: Vec<LoggedKey>,
        why: String,
    ) -> Result<Tried, FillError> {
        let line = match self.reader.timeline(did, None).await {
            Ok(line) => line,
            Err(ReadError::NoBackup { .. }) => return Ok(Tried::Not(why)),
            Err(error) => return Err(error.into()),
        };
        let rebuildable = line.rebuildable();
        let indexes = (0..line.moments.len()).rev().filter(|index| rebuildable[*index]);
        for index in indexes.take(OLDER_TRIES) {
            let rebuilt = match self.reader.rebuild(did, &line, index, &[]).await {
                Ok(rebuilt) if rebuilt.withheld.is_empty() => rebuilt,
                Ok(_) | Err(RebuildError::Unreachable(_) | RebuildError::Unproven { .. }) => continue,
                Err(RebuildError::Read(error)) => return Err(error.into()),
            };
            let (this, current, earlier) = (Arc::clone(self), current.clone(), earlier.clone());
            let tried = blocking(move || this.load_rebuilt(&rebuilt, &current, &earlier)).await?;
            if let Ok((repo, mentions)) = tried {
                return Ok(Tried::Proven(Box::new(repo), mentions, Some(why)));
            }
        }
        Ok(Tried::Not(why))
    }

    fn load_rebuilt(
        &self,
        rebuilt: &Rebuilt,
        current: &SigningKey,
        earlier: &[LoggedKey],
    ) -> Result<Result<(RestoredRepo, Vec<BlobMention>), String>, FillError> {
        let number = self.numbers.next()?;
        let erased = Mirror::new(&*self.store).erased(&rebuilt.did)?;
        let mut rows = RowWriter::new(self, number, erased);
        for (path, cid) in &rebuilt.records {
            let bytes = rebuilt.record(cid).map_err(FillError::Temporary)?;
            // One that is not there, and of which no note says why, does not prove.
            rows.put(path.as_bytes(), *cid, &bytes.unwrap_or_default(), rebuilt.rev);
            if rebuilt.withheld.contains(path) && !rows.withholds(cid) {
                rows.finish()?;
                self.unload(number)?;
                return Ok(Err(format!("the record {path} was erased from the archive")));
            }
        }
        rows.finish()?;
        let block = &rebuilt.commit_block;
        self.prove(number, &rebuilt.did, block, (current, earlier), None, Vec::new())
    }
}

/// Whether it may be over when it is tried again.
pub(super) fn is_passing(error: &ReadError) -> bool {
    match error {
        ReadError::Bucket(error) => error.is_transient(),
        ReadError::Vanished(_) => true,
        _ => false,
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// The status of an account of which nothing is said: it is shown when its host has said so.
pub(super) const UNTOLD: AccountStatus = AccountStatus::Active;
