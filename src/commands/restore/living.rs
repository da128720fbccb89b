#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "shell: files, the network, the terminal"
)]
//! `firekeep restore records` and `restore blobs`: what an account that lives has lost, out of a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;

use serde_json::{Value, json};

use super::{
    Known, Origin, backup, confirmed, directory, endpoint, failed, known, password_or_ask, print, usage,
};
use crate::archive::block_file::BlockFile;
use crate::cli::{LivingArgs, RestoreBlobsArgs, RestoreRecordsArgs};
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::repo::json::record_to_json;
use crate::repo::mst::BlockSource as _;
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::restore::RestoreError;
use crate::restore::pds::Pds;
use crate::restore::records::{Difference, difference, is_wanted, portion, write_of};
use crate::restore::source::{Backup, Fetched, Repo, read_car};
use crate::types::{Cid, Did};

/// Largest repository that is read.
const CAR_BYTES_MAX: u64 = 16 << 30;
/// What could not be brought back, that a text lists.
const LEFT_MAX: usize = 100;

/// An account that lives, and a backup of it.
struct Living {
    did: Did,
    known: Known,
    backup: Backup,
    /// The backup may not be of the moment that was asked for.
    short: bool,
    pds: Pds,
}

impl Living {
    async fn open(config: &Config, args: &LivingArgs) -> Result<Self, DaemonError> {
        let did: Did = args
            .did
            .parse()
            .map_err(|_| usage(format!("{:?} is no DID", args.did)))?;
        let from = args.from.as_deref().unwrap_or_default().trim_end_matches('/');
        let named = args.pds.as_deref().unwrap_or_default();
        let looking = directory(config, &[named, from])?;
        let known = known(&looking, &did).await?;
        let url = args.pds.as_deref().or(known.pds.as_deref());
        let url =
            url.ok_or_else(|| failed(format!("the identity of {did} names no PDS; name one with --pds")))?;
        let url = endpoint(config, "--pds", url)?;
        let origin = Origin {
            from: args.from.as_deref(),
            at: args.at.as_deref(),
            blobs: args.blobs.as_deref(),
            keys: &args.keys,
        };
        let (backup, short) = backup(config, &origin, &looking, &did, &known, None).await?;
        let question = format!("password of {did} at {url} (it is not shown): ");
        let password = password_or_ask(args.password_file.as_deref(), &question)?;
        let pds = Pds::new(looking.http.clone(), &url, &did, password);
        Ok(Self {
            did,
            known,
            backup,
            short,
            pds,
        })
    }

    /// The repository as it is now, proven.
    async fn now(&self, temp_dir: &Path) -> Result<Repo, DaemonError> {
        let file =
            tempfile::tempfile_in(temp_dir).map_err(|error| failed(format!("a temporary file: {error}")))?;
        let file = self.pds.read_back(file, CAR_BYTES_MAX, false).await?;
        let keys: Vec<SigningKey> = self.known.key.iter().cloned().collect();
        let file = BufReader::with_capacity(1 << 20, file);
        Ok(read_car(
            file,
            &self.pds.url,
            &self.did,
            &keys,
            &std::collections::BTreeSet::new(),
            temp_dir,
        )?)
    }

    /// Uploads a blob of the backup; a text says why it cannot.
    async fn upload(&self, cid: &Cid, temp_dir: &Path) -> Result<Option<String>, DaemonError> {
        let (file, size) = match self.backup.blobs.fetch(cid, temp_dir).await? {
            Fetched::Whole(file, size) => (file, size),
            Fetched::Missing => return Ok(Some("it is not in the backup".to_owned())),
            Fetched::Damaged(why) => return Ok(Some(format!("it is damaged in the backup: {why}"))),
        };
        let blob = self.backup.facts.blobs.get(cid);
        let mime = blob.map_or("application/octet-stream", |blob| blob.mime.as_str());
        match self.pds.upload(&file, size, mime).await {
            Ok(got) if got == cid.to_string() => Ok(None),
            Ok(got) => Err(failed(format!(
                "{} gave blob {cid} the CID {got:?}: it does not store what it is sent",
                self.pds.url
            ))),
            Err(RestoreError::Refused(why)) => Ok(Some(why)),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is about to be written back.
struct Records {
    /// Path, value, whether it is created.
    writes: Vec<(String, Cid, Value)>,
    /// Blobs that the PDS needs before.
    blobs: BTreeMap<Cid, Vec<String>>,
    /// What cannot be, and why.
    left: Vec<(String, String)>,
}

impl Records {
    fn of(difference: &Difference, blocks: &BlockFile, there: &BTreeSet<Cid>) -> Result<Self, DaemonError> {
        let mut records = Self {
            writes: Vec::new(),
            blobs: BTreeMap::new(),
            left: Vec::new(),
        };
        let deleted = difference.deleted.iter().map(|one| (one, true));
        let changed = difference.changed.iter().map(|one| (one, false));
        for ((path, cid), create) in deleted.chain(changed) {
            let block = blocks
                .block(cid)
                .map_err(|error| failed(format!("a temporary file: {error}")))?;
            let Some(bytes) = block else {
                let why = "its bytes were erased from the backup, and stay erased";
                records.left.push((path.clone(), why.to_owned()));
                continue;
            };
            match record_to_json(&bytes) {
                Ok(value) => records
                    .writes
                    .push((path.clone(), *cid, write_of(path, value, create))),
                Err(error) => {
                    records.left.push((path.clone(), error.to_string()));
                    continue;
                }
            }
            for blob in scan_record(&bytes).blobs {
                if !there.contains(&blob.cid) {
                    records.blobs.entry(blob.cid).or_default().push(path.clone());
                }
            }
        }
        Ok(records)
    }

    /// Gives up the records that refer to a blob which cannot be had: the PDS would refuse all that go with them.
    fn without(&mut self, blob: &Cid, why: &str) {
        for path in self.blobs.remove(blob).unwrap_or_default() {
            self.writes.retain(|(other, ..)| *other != path);
            self.left.push((path, format!("blob {blob}: {why}")));
        }
    }
}

/// `firekeep restore records`
///
/// # Errors
/// When it cannot be done, with what to do.
pub async fn records(config: &Config, args: &RestoreRecordsArgs, as_json: bool) -> Result<u8, DaemonError> {
    let living = Living::open(config, &args.living).await?;
    let temp_dir = std::env::temp_dir();
    let now = living.now(&temp_dir).await?;
    let facts = &living.backup.facts;
    let found = difference(&living.backup.records, &now.records, |path| {
        is_wanted(path, &args.collections)
    });
    let blocks = living.backup.blocks(&temp_dir)?;
    let there = living.pds.blobs().await?;
    let mut records = Records::of(&found, &blocks, &there)?;
    let plan = format!(
        "{} at {}, rev {}\n  backup: {} at rev {}, proven\n{}  upload before: {} blobs that the PDS no longer has\n",
        living.did,
        living.pds.url,
        now.rev,
        facts.place,
        facts.rev,
        found.text(),
        records.blobs.len()
    );
    let notes: String = facts
        .notes
        .iter()
        .map(|note| format!("  note: {note}\n"))
        .collect();
    let names = |list: &[(String, Cid)]| -> Value { list.iter().map(|(path, _)| json!(path)).collect() };
    let mut said = json!({
        "did": living.did.as_str(), "pds": living.pds.url, "backup_rev": facts.rev.to_string(),
        "deleted": names(&found.deleted), "changed": names(&found.changed), "equal": found.equal, "newer": found.newer,
        "blobs": records.blobs.len(), "written": 0,
    });
    if !args.living.dry_run {
        eprint!("{plan}{notes}");
        if records.writes.is_empty() && records.left.is_empty() {
            eprintln!("firekeep: nothing to do");
        } else if !args.living.yes && !confirmed()? {
            return Err(failed("nothing was changed".to_owned()));
        } else {
            let written = write_back(&living, &mut records, now.commit, &temp_dir).await?;
            said["written"] = written.into();
        }
    }
    let left = records
        .left
        .iter()
        .map(|(path, why)| json!({ "path": path, "why": why }));
    said["left"] = left.collect();
    let mut text = match args.living.dry_run {
        true => plan + &notes,
        false => format!("{}: {} records written back\n", living.did, said["written"]),
    };
    for (path, why) in records.left.iter().take(LEFT_MAX) {
        text.push_str(&format!("not written back: {path}: {why}\n"));
    }
    print(&if as_json { format!("{said:#}\n") } else { text })?;
    Ok(match records.left.is_empty() && !living.short {
        true => 0,
        false => exit::INCOMPLETE,
    })
}

/// Uploads the blobs, then writes; how many records are there as they were.
async fn write_back(
    living: &Living,
    records: &mut Records,
    commit: Cid,
    temp_dir: &Path,
) -> Result<u64, DaemonError> {
    let blobs: Vec<Cid> = records.blobs.keys().copied().collect();
    for cid in &blobs {
        if let Some(why) = living.upload(cid, temp_dir).await? {
            records.without(cid, &why);
        }
    }
    let (mut onto, mut written, mut rest) = (commit.to_string(), 0, &records.writes[..]);
    let mut otherwise = Vec::new();
    while !rest.is_empty() {
        let values: Vec<Value> = rest.iter().map(|(.., value)| value.clone()).collect();
        let (now, later) = rest.split_at(portion(&values));
        let done = living
            .pds
            .write(&values[..now.len()], &onto)
            .await
            .map_err(|error| {
                let error = DaemonError::from(error);
                let text = format!("{}\n  {written} records were written back before", error.text);
                DaemonError { text, ..error }
            })?;
        for (place, (path, cid, _)) in now.iter().enumerate() {
            match done.cids.get(place) {
                Some(got) if *got == cid.to_string() => written += 1,
                got => otherwise.push((
                    path.clone(),
                    format!(
                        "it was written, and the PDS made {} of it, not {cid}",
                        got.map_or("nothing", |got| got)
                    ),
                )),
            }
        }
        (onto, rest) = (done.commit, later);
    }
    records.left.extend(otherwise);
    Ok(written)
}

/// `firekeep restore blobs`
///
/// # Errors
/// When it cannot be done, with what to do.
pub async fn blobs(config: &Config, args: &RestoreBlobsArgs, as_json: bool) -> Result<u8, DaemonError> {
    let living = Living::open(config, &args.living).await?;
    let temp_dir = std::env::temp_dir();
    let mut wanted: BTreeSet<Cid> = BTreeSet::new();
    let mut cursor: Option<String> = None;
    loop {
        let (page, next) = living.pds.missing_blobs(cursor.as_deref()).await?;
        let known = wanted.len();
        wanted.extend(page);
        match next {
            // A PDS that says nothing new would be asked for ever.
            Some(next) if wanted.len() > known => cursor = Some(next),
            _ => break,
        }
    }
    let held = |cid: &&Cid| {
        living
            .backup
            .facts
            .blobs
            .get(cid)
            .is_some_and(|blob| blob.held.is_some())
    };
    let plan = format!(
        "{} at {}\n  it misses {} blobs that its records refer to; {} of them are among those of the backup's records\n",
        living.did,
        living.pds.url,
        wanted.len(),
        wanted.iter().filter(held).count()
    );
    let (mut uploaded, mut left) = (0u64, Vec::new());
    if !args.living.dry_run {
        eprint!("{plan}");
        if !wanted.is_empty() && !args.living.yes && !confirmed()? {
            return Err(failed("nothing was changed".to_owned()));
        }
        for cid in &wanted {
            match living.upload(cid, &temp_dir).await? {
                None => uploaded += 1,
                Some(why) => left.push((cid.to_string(), why)),
            }
        }
    }
    let said = json!({
        "did": living.did.as_str(), "pds": living.pds.url, "missing": wanted.len(), "uploaded": uploaded,
        "left": left.iter().map(|(cid, why)| json!({ "cid": cid, "why": why })).collect::<Vec<_>>(),
    });
    let mut text = match args.living.dry_run {
        true => plan,
        false => format!("{}: {uploaded} of {} blobs uploaded\n", living.did, wanted.len()),
    };
    for (cid, why) in left.iter().take(LEFT_MAX) {
        text.push_str(&format!("missing: blob {cid}: {why}\n"));
    }
    print(&if as_json { format!("{said:#}\n") } else { text })?;
    Ok(if left.is_empty() { 0 } else { exit::INCOMPLETE })
}
