#![allow(
    clippy::disallowed_methods,
    reason = "shell: the archive, a store of its own, the clock"
)]
//! Drills: accounts are restored from the archive alone into an empty store, as a new machine would have to, and
//! compared with the mirror where there is one. A backup that nobody restored is a hope.
//!
//! Nothing is asked of a PDS or a directory: an archive that cannot say who may sign for an account fails here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::cold_start::{ColdStart, FillError};
use crate::archive::bucket::Bucket;
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::archive::scrub::report::shown;
use crate::clock::Clock;
use crate::mirror::keyspace::NO_NUMBER;
use crate::mirror::reader::Mirror;
use crate::mirror::rocks::{RocksOptions, RocksStore};
use crate::mirror::rows::{BlobRow, BlobState};
use crate::mirror::store::{Store, StoreError};
use crate::types::cid::sha256;
use crate::types::{Cid, Did, Digest, Rev};

/// Accounts of a drill, where nothing else is said.
pub const ACCOUNTS: usize = 5;
/// Blobs of an account that are read and hashed, at most.
const BLOBS_MAX: usize = 200;
/// Problems of an account that are named.
const PROBLEMS_MAX: usize = 20;
/// Memory of the store that is filled.
const STORE_BYTES: usize = 8 << 20;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many accounts.
    pub accounts: usize,
    /// Chooses them.
    pub seed: u64,
}

/// What came of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The archive.
    pub archive: String,
    /// When it began.
    pub began: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What chose the accounts.
    pub seed: u64,
    /// Accounts that the archive has.
    pub accounts_in_archive: u64,
    /// Those that were restored.
    pub accounts: Vec<Account>,
}

/// One account of a drill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Whose.
    pub did: String,
    /// The rev that came out.
    pub rev: Option<String>,
    /// Its records.
    pub records: u64,
    /// Their bytes.
    pub record_bytes: u64,
    /// Blobs that were read and hashed.
    pub blobs: u64,
    /// Whether every record was compared with the mirror's.
    pub compared: bool,
    /// What is not as it must be.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether every account came out as it must.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.accounts.is_empty() && self.accounts.iter().all(|account| account.problems.is_empty())
    }

    /// 0: good. 4: something could not be restored as it was.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.is_good() {
            0
        } else {
            super::exit::UNVERIFIED
        }
    }

    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.archive);
        for account in &self.accounts {
            let rev = account.rev.as_deref().unwrap_or("-");
            let how = match (account.problems.is_empty(), account.compared) {
                (true, true) => "restored, and the same as the mirror's",
                (true, false) => "restored and proven",
                (false, _) => "NOT AS IT MUST BE",
            };
            out.push_str(&format!(
                "  {}  rev {rev}  {} records, {} blobs  {how}\n",
                account.did, account.records, account.blobs
            ));
            for problem in &account.problems {
                out.push_str(&format!("      {}\n", shown(problem)));
            }
        }
        let (count, of) = (self.accounts.len(), self.accounts_in_archive);
        let failed = self
            .accounts
            .iter()
            .filter(|account| !account.problems.is_empty());
        let took = self.took_ms as f64 / 1000.0;
        out.push_str(&match failed.count() {
            0 => format!(
                "\nGOOD: {count} of {of} accounts restored from the archive alone in {took:.1} s (seed {})\n",
                self.seed
            ),
            n => format!(
                "\nFAILED: {n} of the {count} accounts that were tried (of {of}) did not come out as they must (seed \
                 {})\n",
                self.seed
            ),
        });
        out
    }
}

/// Why a drill came to no result.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The archive cannot be read.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// There is nothing to restore.
    #[error("{0} has no account to restore")]
    Empty(String),
    /// No place for it.
    #[error("cannot use a temporary folder: {0}")]
    Temporary(#[from] std::io::Error),
}

impl From<ReadError> for DrillError {
    fn from(error: ReadError) -> Self {
        Self::Fill(error.into())
    }
}

impl From<StoreError> for DrillError {
    fn from(error: StoreError) -> Self {
        Self::Fill(error.into())
    }
}

/// What the mirror said of an account before the archive was read.
struct Before {
    rev: Rev,
    archived: bool,
}

/// Restores some accounts from an archive, and compares them with `mirror`.
///
/// # Errors
/// When the archive cannot be read at all, or there is no place to restore to.
pub async fn drill(
    bucket: Bucket,
    mirror: Option<&Arc<dyn Store>>,
    options: Options,
    (clock, temp_dir): (&Clock, &Path),
    dev_mode: bool,
) -> Result<Report, DrillError> {
    let began = clock.now();
    let folder = tempfile::Builder::new().prefix("drill-").tempdir_in(temp_dir)?;
    let rocks = RocksOptions {
        cache_bytes: STORE_BYTES,
        write_buffer_bytes: STORE_BYTES,
        ..RocksOptions::default()
    };
    let path = folder.path().join("store");
    let store: Arc<dyn Store> = Arc::new(RocksStore::open(&path, &rocks)?);
    let reader = ArchiveReader::of_bucket(bucket, folder.path()).await?;
    let place = reader.place();
    let mut before = BTreeMap::new();
    if let Some(mirror) = mirror {
        Mirror::new(&**mirror).each_account(|did, row| {
            if let Some(head) = &row.head {
                let archived = row.is_archived();
                before.insert(
                    did,
                    Before {
                        rev: head.rev,
                        archived,
                    },
                );
            }
            ControlFlow::Continue(())
        })?;
    }
    let alone = ColdStart::alone(Arc::clone(&store), reader, clock, dev_mode)?;
    let sources = alone.all_sources().await?;
    let mut dids: Vec<&Did> = sources.restorable().collect();
    let count = dids.len() as u64;
    dids.sort_by_key(|did| sha256(format!("{} {did}", options.seed).as_bytes()));
    let chosen: Vec<Did> = dids.into_iter().take(options.accounts.max(1)).cloned().collect();
    if chosen.is_empty() {
        return Err(DrillError::Empty(place));
    }
    let mut accounts = Vec::with_capacity(chosen.len());
    for did in chosen {
        let prepared = alone
            .prepare(did.clone(), Arc::clone(&sources), NO_NUMBER)
            .await?;
        let mut account = Account {
            did: did.to_string(),
            problems: prepared.lacks.into_iter().chain(prepared.damaged).collect(),
            ..Account::default()
        };
        if let Some(repo) = &prepared.restored.repo {
            account.rev = Some(repo.repo.rev().to_string());
            (account.records, account.record_bytes) = (repo.repo.records(), repo.repo.record_bytes());
            if let Some(mirror) = mirror {
                let (rev, number) = (repo.repo.rev(), repo.account_number);
                compare(
                    &**mirror,
                    &*store,
                    &did,
                    (rev, number),
                    before.get(&did),
                    &mut account,
                )?;
            }
        }
        blobs(
            &alone.reader,
            mirror,
            &did,
            &prepared.restored.blobs,
            &mut account,
        )
        .await?;
        account.problems.truncate(PROBLEMS_MAX);
        accounts.push(account);
    }
    Ok(Report {
        archive: place,
        began: began.to_string(),
        took_ms: u64::try_from(clock.now().since(began).as_millis()).unwrap_or(u64::MAX),
        seed: options.seed,
        accounts_in_archive: count,
        accounts,
    })
}

/// Holds what was restored against the mirror.
fn compare(
    mirror: &dyn Store,
    restored: &dyn Store,
    did: &Did,
    (rev, number): (Rev, u64),
    before: Option<&Before>,
    account: &mut Account,
) -> Result<(), StoreError> {
    if let Some(before) = before.filter(|before| before.archived && rev < before.rev) {
        account.problems.push(format!(
            "the mirror takes rev {} for archived, and the archive gives no more than rev {rev}",
            before.rev
        ));
    }
    let view = mirror.view();
    let mirror = Mirror::new(&*view);
    let Some(row) = mirror.account(did)? else {
        return Ok(());
    };
    let Some(head) = row.head.as_ref().filter(|head| head.rev <= rev) else {
        // It went on meanwhile: what came out is proven all the same.
        return Ok(());
    };
    if head.rev < rev {
        account.problems.push(format!(
            "the archive has rev {rev}, and the mirror stands at {}: it fell back, or another one writes there",
            head.rev
        ));
        return Ok(());
    }
    account.compared = true;
    if content(&mirror, row.account_number)? != content(&Mirror::new(restored), number)? {
        account.problems.push(format!(
            "its records at rev {rev} are not those of the mirror, whose copy is damaged"
        ));
    }
    Ok(())
}

/// A hash over every path and record.
fn content(mirror: &Mirror<'_>, number: u64) -> Result<[u8; 32], StoreError> {
    let mut hash = Sha256::new();
    mirror.scan_records(number, None, &mut |path, record| {
        hash.update((path.len() as u64).to_be_bytes());
        hash.update(path);
        hash.update(sha256(record.bytes));
        ControlFlow::Continue(())
    })?;
    Ok(hash.finalize().into())
}

/// Reads and hashes blobs; those that are not there are a problem, unless the mirror knows that nobody has them.
async fn blobs(
    reader: &ArchiveReader,
    mirror: Option<&Arc<dyn Store>>,
    did: &Did,
    rows: &[(Digest, BlobRow)],
    account: &mut Account,
) -> Result<(), DrillError> {
    for (digest, row) in rows {
        let cid = Cid::raw(*digest);
        if row.state != BlobState::Archived {
            if is_expected(mirror, did, digest)? {
                account.problems.push(format!("blob {cid} is not in the archive"));
            }
            continue;
        }
        if account.blobs as usize >= BLOBS_MAX {
            continue;
        }
        let Some(mut body) = reader.blob(did, &cid).await? else {
            account
                .problems
                .push(format!("blob {cid} is listed, but not there"));
            continue;
        };
        let mut hash = Sha256::new();
        let mut failed = None;
        while let Some(chunk) = body.stream.next().await {
            match chunk {
                Ok(bytes) => hash.update(&bytes),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        match failed {
            Some(error) => account
                .problems
                .push(format!("blob {cid} cannot be read: {error}")),
            None if <[u8; 32]>::from(hash.finalize()) != *digest => {
                account
                    .problems
                    .push(format!("blob {cid}: its bytes are not those of its CID"));
            }
            None => account.blobs += 1,
        }
    }
    Ok(())
}

/// Whether the archive should have it: not where its host never gave it.
fn is_expected(mirror: Option<&Arc<dyn Store>>, did: &Did, digest: &Digest) -> Result<bool, StoreError> {
    let Some(mirror) = mirror else { return Ok(true) };
    let mirror = Mirror::new(&**mirror);
    let Some(account) = mirror.account(did)? else {
        return Ok(true);
    };
    let row = mirror.blob(account.did_number, digest)?;
    Ok(row.is_some_and(|row| row.state == BlobState::Archived))
}
