#![allow(clippy::disallowed_methods, reason = "shell: files, the archive, the network")]
//! Where a restore takes the account from: an archive, a CAR file with a folder or tar of blobs, or a running Firekeep.
//!
//! Whatever it is, it is proven before anything is done with it: every block hashed, the tree walked and built again,
//! the commit of this account, signed by a key of its. What is imported is written anew from the proven records.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write as _};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::RestoreError;
use super::plan::{BackupFacts, Blob};
use crate::archive::block_file::BlockFile;
use crate::archive::reader::ArchiveReader;
use crate::archive::rebuild::{Rebuilt, Records};
use crate::archive::snapshot_file::SnapshotDecoder;
use crate::http::client::Upstream;
use crate::http::request::{FetchError, Limits};
use crate::mirror::blobs::query_value;
use crate::repo::car::CarReader;
use crate::repo::commit::Commit;
use crate::repo::export::{RecordRows, RowVisitor, prove};
use crate::repo::mst::{BlockSource as _, MstError, WalkLimits, walk};
use crate::repo::record::scan_record;
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, Digest, Rev};

mod blobs;
mod bytes;

/// Largest CAR that is read, in bytes.
const CAR_BYTES_MAX: u64 = 16 << 30;
/// Largest blob that is read, in bytes.
const BLOB_BYTES_MAX: u64 = 4 << 30;
/// Most blobs of one account.
const BLOBS_MAX: usize = 2_000_000;
/// Largest page of a list of blobs.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// A proven backup of an account.
pub struct Backup {
    /// What it holds.
    pub facts: BackupFacts,
    /// Every record.
    pub records: Records,
    /// The CAR to import, from its beginning.
    pub car: File,
    /// Where its blobs are.
    pub blobs: BlobStore,
}

/// Where blobs are.
pub enum BlobStore {
    /// Nowhere.
    None,
    /// In an archive.
    Archive(Box<ArchiveReader>, Did),
    /// As files named by their CID.
    Folder(PathBuf),
    /// In a tar file, from where and how long.
    Tar(PathBuf, HashMap<Digest, (u64, u64)>),
    /// At a running Firekeep, or whatever else answers `getBlob`.
    Host(Upstream, String, Did),
}

/// A blob that was asked for.
pub enum Fetched {
    /// It is here, and hashes to its CID.
    Whole(File, u64),
    /// It is not there.
    Missing,
    /// What is there is not it, or cannot be read.
    Damaged(String),
}

/// A repository of a CAR file, proven.
pub struct Repo {
    /// The rev.
    pub rev: Rev,
    /// The commit.
    pub commit: Cid,
    /// Who signed it; none: no key was given.
    pub signed_by: Option<String>,
    /// Its records.
    pub records: Records,
    commit_block: Vec<u8>,
    data: Cid,
    blocks: BlockFile,
}

fn unproven(place: &str, what: impl std::fmt::Display) -> RestoreError {
    RestoreError::Unproven(format!("{place}: {what}"))
}

fn temporary(dir: &Path, error: &io::Error) -> RestoreError {
    RestoreError::Failed(format!(
        "cannot use a temporary file in {}: {error}; set TMPDIR to a folder with room",
        dir.display()
    ))
}

/// Reads and proves a CAR, which lacks no bytes but those of `withheld`. With keys, one of them must have signed it.
///
/// # Errors
/// When it is not the whole repository of this account.
pub fn read_car(
    source: impl Read,
    place: &str,
    did: &Did,
    keys: &[SigningKey],
    withheld: &BTreeSet<Cid>,
    temp_dir: &Path,
) -> Result<Repo, RestoreError> {
    let bad = |error: &dyn std::fmt::Display| unproven(place, error);
    let mut car = CarReader::new(source.take(CAR_BYTES_MAX)).map_err(|error| bad(&error))?;
    let commit = *car.roots().first().ok_or_else(|| bad(&"it has no root"))?;
    let mut blocks = BlockFile::new(temp_dir).map_err(|error| temporary(temp_dir, &error))?;
    let mut block = Vec::new();
    while let Some((cid, _)) = car.next_block(&mut block).map_err(|error| bad(&error))? {
        blocks
            .put(&cid, &block)
            .map_err(|error| temporary(temp_dir, &error))?;
    }
    let read = |cid: &Cid| blocks.block(cid).map_err(|error| temporary(temp_dir, &error));
    let commit_block = read(&commit)?
        .ok_or_else(|| bad(&"its commit is missing"))?
        .into_owned();
    let head = Commit::decode(&commit_block).map_err(|error| bad(&error))?;
    if head.did != *did {
        return Err(bad(&format!(
            "it is the repository of {}, not of {did}",
            head.did
        )));
    }
    let mut records = Records::new();
    let walked = walk(&blocks, head.data, &WalkLimits::default(), |path, cid| {
        let path = std::str::from_utf8(path).expect("the walk checks paths");
        records.insert(path.into(), cid);
        Ok::<(), MstError>(())
    });
    walked.map_err(|error| bad(&error))?;
    if let Some((path, cid)) = records
        .iter()
        .find(|(_, cid)| !blocks.holds(cid) && !withheld.contains(cid))
    {
        return Err(bad(&format!("the record {path} ({cid}) is not in it")));
    }
    let made = |key: &&SigningKey| key.verify(head.unsigned_bytes(), &head.sig).is_ok();
    let signed_by = keys.iter().find(made).map(SigningKey::to_did_key);
    if signed_by.is_none() && !keys.is_empty() {
        return Err(bad(&format!(
            "its commit was not signed by any key that {did} ever had"
        )));
    }
    Ok(Repo {
        rev: head.rev,
        commit,
        signed_by,
        records,
        data: head.data,
        commit_block,
        blocks,
    })
}

impl RecordRows for Repo {
    type Error = io::Error;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> io::Result<()> {
        let from = match from {
            Some(path) => Bound::Included(std::str::from_utf8(path).map_err(io::Error::other)?),
            None => Bound::Unbounded,
        };
        for (path, cid) in self.records.range::<str, _>((from, Bound::Unbounded)) {
            let bytes = self.blocks.block(cid)?;
            let bytes = bytes.ok_or_else(|| io::Error::other(format!("{path} is gone")))?;
            if let ControlFlow::Break(()) = visit(path.as_bytes(), *cid, &bytes) {
                break;
            }
        }
        Ok(())
    }
}

/// A temporary file with what `write` writes, from its beginning.
fn car_file(
    temp_dir: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<(), RestoreError>,
) -> Result<(File, u64), RestoreError> {
    let failed = |error: io::Error| temporary(temp_dir, &error);
    let mut file = tempfile::tempfile_in(temp_dir).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, &mut file);
    write(&mut out)?;
    out.flush().map_err(failed)?;
    drop(out);
    let size = file.stream_position().map_err(failed)?;
    file.rewind().map_err(failed)?;
    Ok((file, size))
}

/// The blobs that records refer to, and the type that each is said to have.
fn wanted<'a>(
    records: &Records,
    record: impl Fn(&Cid) -> io::Result<Option<Cow<'a, [u8]>>>,
) -> io::Result<BTreeMap<Cid, (String, Option<u64>)>> {
    let mut wanted: BTreeMap<Cid, (String, Option<u64>)> = BTreeMap::new();
    for cid in records.values() {
        let Some(bytes) = record(cid)? else { continue };
        for blob in scan_record(&bytes).blobs {
            let mime = blob.mime.unwrap_or_else(|| "application/octet-stream".to_owned());
            wanted.entry(blob.cid).or_insert((mime, blob.size));
        }
    }
    Ok(wanted)
}

impl Backup {
    /// From a moment that an archive gave.
    ///
    /// # Errors
    /// When the archive or a temporary file cannot be read.
    pub async fn of_archive(
        rebuilt: Rebuilt,
        reader: ArchiveReader,
        notes: Vec<String>,
        temp_dir: &Path,
    ) -> Result<Self, RestoreError> {
        let (car, car_bytes) = car_file(temp_dir, |out| {
            let written = rebuilt.write_car(out);
            written
                .map(drop)
                .map_err(|error| unproven(&reader.place(), error))
        })?;
        let wanted = wanted(&rebuilt.records, |cid| rebuilt.record(cid));
        let wanted = wanted.map_err(|error| temporary(temp_dir, &error))?;
        let sizes = reader
            .blob_sizes(&rebuilt.did)
            .await
            .map_err(RestoreError::failed)?;
        let held = |cid: &Cid, _| sizes.get(cid.digest()).copied();
        Ok(Self {
            facts: BackupFacts {
                place: reader.place(),
                rev: rebuilt.rev,
                commit: rebuilt.commit,
                signed_by: rebuilt.signed_by.clone(),
                records: rebuilt.records.len() as u64,
                withheld: rebuilt.withheld.clone(),
                car_bytes,
                blobs: judged(wanted, held),
                notes,
            },
            records: rebuilt.records.clone(),
            car,
            blobs: BlobStore::Archive(Box::new(reader), rebuilt.did.clone()),
        })
    }

    /// From a CAR file, packed with zstd or not, and blobs in a folder or tar file.
    ///
    /// # Errors
    /// When one cannot be read, or is not what it should be.
    pub fn of_file(
        path: &Path,
        blobs: Option<&Path>,
        did: &Did,
        keys: &[SigningKey],
        temp_dir: &Path,
    ) -> Result<Self, RestoreError> {
        let place = path.display().to_string();
        let failed = |error: io::Error| RestoreError::Failed(format!("cannot read {place}: {error}"));
        let mut file = File::open(path).map_err(failed)?;
        let mut magic = [0; 4];
        let packed = file.read_exact(&mut magic).is_ok() && magic == [0x28, 0xb5, 0x2f, 0xfd];
        file.rewind().map_err(failed)?;
        let file = BufReader::with_capacity(1 << 20, file);
        let whole = BTreeSet::new();
        let repo = if packed {
            let decoder = SnapshotDecoder::new(file, CAR_BYTES_MAX).map_err(failed)?;
            read_car(decoder, &place, did, keys, &whole, temp_dir)?
        } else {
            read_car(file, &place, did, keys, &whole, temp_dir)?
        };
        let store = match blobs {
            None => BlobStore::None,
            Some(path) if path.is_dir() => {
                let below = path.join("blobs");
                BlobStore::Folder(if below.is_dir() { below } else { path.to_owned() })
            }
            Some(path) => {
                let index = tar_index(path);
                let index = index.map_err(|error| {
                    RestoreError::Failed(format!("cannot read {}: {error}", path.display()))
                })?;
                BlobStore::Tar(path.to_owned(), index)
            }
        };
        let (mut backup, wanted) = Self::of_repo(repo, place, store, temp_dir)?;
        let held = |cid: &Cid, _| match &backup.blobs {
            BlobStore::Folder(dir) => {
                let meta = dir.join(cid.to_string()).metadata().ok();
                meta.filter(std::fs::Metadata::is_file).map(|meta| meta.len())
            }
            BlobStore::Tar(_, index) => index.get(cid.digest()).map(|(_, size)| *size),
            _ => None,
        };
        backup.facts.blobs = judged(wanted, held);
        Ok(backup)
    }

    /// From a running Firekeep, or any host that gives repositories and blobs.
    ///
    /// # Errors
    /// When it does not answer, or what it gives is not what it should be.
    pub async fn of_host(
        http: Upstream,
        url: &str,
        did: &Did,
        keys: &[SigningKey],
        temp_dir: &Path,
    ) -> Result<Self, RestoreError> {
        let failed = |error: FetchError| match error.xrpc_error() {
            Some("RepoNotFound") => RestoreError::NoBackup(format!("{url} has no backup of {did}")),
            _ => RestoreError::failed(error),
        };
        let address = format!(
            "{url}/xrpc/com.atproto.sync.getRepo?did={}",
            query_value(did.as_str())
        );
        let answer = http
            .get(&address, &Limits::download(CAR_BYTES_MAX))
            .await
            .map_err(failed)?;
        let mut body = answer.body;
        let mut file = tempfile::tempfile_in(temp_dir).map_err(|error| temporary(temp_dir, &error))?;
        while let Some(bytes) = body.chunk().await.map_err(failed)? {
            file.write_all(&bytes)
                .map_err(|error| temporary(temp_dir, &error))?;
        }
        file.rewind().map_err(|error| temporary(temp_dir, &error))?;
        let file = BufReader::with_capacity(1 << 20, file);
        let repo = read_car(file, url, did, keys, &BTreeSet::new(), temp_dir)?;
        let listed = list_blobs(&http, url, did).await.map_err(failed)?;
        let store = BlobStore::Host(http, url.to_owned(), did.clone());
        let (mut backup, wanted) = Self::of_repo(repo, url.to_owned(), store, temp_dir)?;
        let held = |cid: &Cid, size: Option<u64>| listed.contains_key(cid).then(|| size.unwrap_or_default());
        backup.facts.blobs = judged(wanted, held);
        Ok(backup)
    }

    #[allow(clippy::type_complexity, reason = "it goes to the next line alone")]
    fn of_repo(
        repo: Repo,
        place: String,
        blobs: BlobStore,
        temp_dir: &Path,
    ) -> Result<(Self, BTreeMap<Cid, (String, Option<u64>)>), RestoreError> {
        let (car, car_bytes) = car_file(temp_dir, |out| {
            let proven = prove(&repo, repo.data).map_err(|error| unproven(&place, error))?;
            let written = proven.write_car(&repo, repo.commit, &repo.commit_block, out);
            written.map(drop).map_err(|error| unproven(&place, error))
        })?;
        let wanted = wanted(&repo.records, |cid| repo.blocks.block(cid));
        let wanted = wanted.map_err(|error| temporary(temp_dir, &error))?;
        let backup = Self {
            facts: BackupFacts {
                place,
                rev: repo.rev,
                commit: repo.commit,
                signed_by: repo.signed_by,
                records: repo.records.len() as u64,
                withheld: Vec::new(),
                car_bytes,
                blobs: BTreeMap::new(),
                notes: Vec::new(),
            },
            records: repo.records,
            car,
            blobs,
        };
        Ok((backup, wanted))
    }
}

fn judged(
    wanted: BTreeMap<Cid, (String, Option<u64>)>,
    held: impl Fn(&Cid, Option<u64>) -> Option<u64>,
) -> BTreeMap<Cid, Blob> {
    let blob = |(cid, (mime, size))| {
        let held = held(&cid, size);
        (cid, Blob { mime, held })
    };
    wanted.into_iter().map(blob).collect()
}

/// Where each blob of a tar file is. Files are named by their CID, in whatever folder.
fn tar_index(path: &Path) -> io::Result<HashMap<Digest, (u64, u64)>> {
    let mut tar = tar::Archive::new(BufReader::new(File::open(path)?));
    let mut index = HashMap::new();
    for entry in tar.entries_with_seek()? {
        let entry = entry?;
        let name = entry.path()?;
        let cid = name
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse::<Cid>().ok());
        if let (Some(cid), true) = (cid, entry.header().entry_type().is_file()) {
            if index.len() >= BLOBS_MAX {
                return Err(io::Error::other(format!("it holds more than {BLOBS_MAX} blobs")));
            }
            index.insert(*cid.digest(), (entry.raw_file_position(), entry.size()));
        }
    }
    Ok(index)
}

#[derive(Deserialize)]
struct BlobPage {
    cids: Vec<String>,
    cursor: Option<String>,
}

async fn list_blobs(http: &Upstream, url: &str, did: &Did) -> Result<BTreeMap<Cid, ()>, FetchError> {
    let mut all = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let did = query_value(did.as_str());
        let page = format!("{url}/xrpc/com.atproto.sync.listBlobs?did={did}&limit=1000{cursor}");
        let page: BlobPage = http.get_json(&page, PAGE_BYTES_MAX).await?;
        let known = all.len();
        all.extend(page.cids.iter().filter_map(|cid| Some((cid.parse().ok()?, ()))));
        match page.cursor {
            // A host that says nothing new would be asked for ever.
            Some(next) if all.len() > known && all.len() < BLOBS_MAX => {
                cursor = format!("&cursor={}", query_value(&next))
            }
            _ => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests;
