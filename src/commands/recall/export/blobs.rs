#![allow(clippy::disallowed_methods, reason = "shell: files, the archive")]
//! An account's blobs, as `blobs/<cid>` in a folder or a tar file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::output::{NewFile, cannot};
use super::super::{Account, DaemonError, failed, unread};
use super::NAMES_MAX;
use crate::archive::bucket::{BucketError, BucketErrorKind};
use crate::archive::reader::ReadError;
use crate::daemon::exit;
use crate::types::Cid;

/// Tries to read a blob over a bad connection.
const TRIES: u32 = 4;
/// Blobs that are fetched at the same time.
const FETCHES: usize = 8;

/// Where the blobs go.
pub(super) enum Target {
    /// Into `blobs/` in this folder. What is there already, and is that blob, stays.
    Folder {
        /// `blobs/`.
        dir: PathBuf,
        /// Replace what is there and is another.
        force: bool,
    },
    /// Into a tar file.
    Tar {
        /// The file.
        file: NewFile,
        /// Where it will be.
        path: PathBuf,
    },
}

/// What became of the blobs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BlobReport {
    written: u64,
    bytes: u64,
    /// They were in the folder already.
    kept: u64,
    missing: Vec<Cid>,
    damaged: Vec<(Cid, String)>,
    in_the_way: Vec<Cid>,
}

impl Target {
    /// A name that ends in `.tar` is a tar file, any other a folder, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn create(path: &Path, force: bool) -> Result<Self, DaemonError> {
        if path.extension().is_some_and(|ending| ending == "tar") {
            let file = NewFile::create(path, force)?;
            let path = path.to_owned();
            return Ok(Self::Tar { file, path });
        }
        let dir = path.join("blobs");
        std::fs::create_dir_all(&dir).map_err(|error| cannot("make", &dir, &error))?;
        Ok(Self::Folder { dir, force })
    }

    /// Fetches the blobs, a few at a time, hashes each and puts it in its place.
    ///
    /// # Errors
    /// When the archive cannot be read or the target not be written. A blob that is missing or damaged is no error.
    pub(super) async fn fill(
        &mut self,
        account: &Account,
        wanted: &BTreeSet<Cid>,
    ) -> Result<BlobReport, DaemonError> {
        let mut report = BlobReport::default();
        match self {
            Self::Folder { dir, force } => {
                let (dir, force) = (&*dir, *force);
                let blobs = stream::iter(wanted).map(|cid| into_folder(account, cid, dir, force));
                let mut blobs = Box::pin(blobs.buffered(FETCHES));
                while let Some(done) = blobs.next().await {
                    let (cid, got) = done?;
                    report.take(*cid, got);
                }
            }
            Self::Tar { file, path } => {
                let path = path.clone();
                let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file.file()));
                let blobs = stream::iter(wanted).map(|cid| into_temporary(account, cid, &path));
                let mut blobs = Box::pin(blobs.buffered(FETCHES));
                while let Some(done) = blobs.next().await {
                    let (cid, file, got) = done?;
                    if let Got::Whole(size) = got {
                        append(&mut tar, cid, file, size).map_err(|error| cannot("write", &path, &error))?;
                    }
                    report.take(*cid, got);
                }
                let out = tar.into_inner().and_then(|mut out| out.flush());
                out.map_err(|error| cannot("write", &path, &error))?;
            }
        }
        Ok(report)
    }

    /// It is complete.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub(super) fn finish(self) -> Result<(), DaemonError> {
        match self {
            Self::Tar { file, .. } => file.finish(),
            Self::Folder { dir, .. } => {
                let synced = File::open(&dir).and_then(|dir| dir.sync_all());
                synced.map_err(|error| cannot("sync", &dir, &error))
            }
        }
    }
}

impl BlobReport {
    fn take(&mut self, cid: Cid, got: Got) {
        match got {
            Got::Whole(size) => {
                self.written += 1;
                self.bytes += size;
            }
            Got::Kept => self.kept += 1,
            Got::Missing => self.missing.push(cid),
            Got::Damaged(why) => self.damaged.push((cid, why)),
            Got::InTheWay => self.in_the_way.push(cid),
        }
    }

    pub(super) fn json(&self) -> Value {
        let names = |cids: &mut dyn Iterator<Item = &Cid>| -> Value {
            cids.map(|cid| json!(cid.to_string())).collect()
        };
        json!({
            "written": self.written,
            "bytes": self.bytes,
            "kept": self.kept,
            "missing": names(&mut self.missing.iter()),
            "damaged": names(&mut self.damaged.iter().map(|(cid, _)| cid)),
            "in_the_way": names(&mut self.in_the_way.iter()),
        })
    }

    pub(super) fn text(&self) -> String {
        let kept = match self.kept {
            0 => String::new(),
            kept => format!(", {kept} there already"),
        };
        format!(
            "{} blobs ({} bytes){kept}, {} missing, {} damaged\n",
            self.written,
            self.bytes,
            self.missing.len(),
            self.damaged.len()
        )
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let missing = self
            .missing
            .iter()
            .map(|cid| format!("blob {cid} is missing from the archive"));
        let damaged = self
            .damaged
            .iter()
            .map(|(cid, why)| format!("blob {cid} is damaged in the archive: {why}"));
        let others = self.in_the_way.iter().map(|cid| {
            format!("blobs/{cid} is there already and is something else; replace it with --force")
        });
        missing.chain(damaged).chain(others).take(NAMES_MAX).collect()
    }

    pub(super) fn code(&self, code: u8) -> u8 {
        if !self.damaged.is_empty() {
            exit::UNVERIFIED
        } else if !self.missing.is_empty() || !self.in_the_way.is_empty() {
            exit::INCOMPLETE
        } else {
            code
        }
    }
}

/// What became of one blob.
enum Got {
    /// It is there, with this many bytes.
    Whole(u64),
    /// It was there already.
    Kept,
    /// Something else is there.
    InTheWay,
    /// The archive does not have it.
    Missing,
    /// What the archive has is not it.
    Damaged(String),
}

async fn into_folder<'a>(
    account: &Account,
    cid: &'a Cid,
    dir: &Path,
    force: bool,
) -> Result<(&'a Cid, Got), DaemonError> {
    let path = dir.join(cid.to_string());
    if path.symlink_metadata().is_ok() {
        if hash_of(&path).map_err(|error| cannot("read", &path, &error))? == Some(*cid.digest()) {
            return Ok((cid, Got::Kept));
        }
        if !force {
            return Ok((cid, Got::InTheWay));
        }
    }
    let mut file = NewFile::create(&path, force)?;
    let got = fetch(account, cid, file.file()).await?;
    if let Got::Whole(_) = got {
        file.finish()?;
    }
    Ok((cid, got))
}

/// A tar says how long a file is before it says what is in it: nothing unproven may get that far.
async fn into_temporary<'a>(
    account: &Account,
    cid: &'a Cid,
    tar: &Path,
) -> Result<(&'a Cid, File, Got), DaemonError> {
    let folder = tar.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::tempfile_in(folder.unwrap_or(Path::new(".")));
    let mut file = file.map_err(|error| cannot("write", tar, &error))?;
    let got = fetch(account, cid, &mut file).await?;
    Ok((cid, file, got))
}

fn append(tar: &mut tar::Builder<impl Write>, cid: &Cid, mut file: File, size: u64) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, format!("blobs/{cid}"), file.take(size))
}

/// Reads a blob into an empty file.
async fn fetch(account: &Account, cid: &Cid, file: &mut File) -> Result<Got, DaemonError> {
    let mut tries = 1;
    loop {
        match fetch_once(account, cid, file).await {
            Ok(got) => return Ok(got),
            Err(Failed::Archive(ReadError::Bucket(error))) if of_this_blob(&error) => {
                return Ok(Got::Damaged(error.to_string()));
            }
            Err(Failed::Archive(ReadError::Bucket(error))) if error.is_transient() && tries < TRIES => {
                tokio::time::sleep(Duration::from_millis(250 << tries)).await;
                tries += 1;
            }
            Err(Failed::Archive(error)) => return Err(unread(&error)),
            Err(Failed::File(error)) => return Err(failed(format!("cannot write blob {cid}: {error}"))),
        }
    }
}

fn of_this_blob(error: &BucketError) -> bool {
    matches!(
        error.kind,
        BucketErrorKind::Corrupt | BucketErrorKind::Symlink | BucketErrorKind::NotAFolder
    )
}

enum Failed {
    Archive(ReadError),
    File(std::io::Error),
}

async fn fetch_once(account: &Account, cid: &Cid, file: &mut File) -> Result<Got, Failed> {
    file.set_len(0)
        .and_then(|()| file.rewind())
        .map_err(Failed::File)?;
    if account.line.erased_blobs.contains(cid.digest()) {
        return Ok(Got::Missing);
    }
    let body = account
        .reader
        .blob(&account.did, cid)
        .await
        .map_err(Failed::Archive)?;
    let Some(mut body) = body else {
        return Ok(Got::Missing);
    };
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(bytes) = body.stream.next().await {
        let bytes = bytes.map_err(|error| Failed::Archive(error.into()))?;
        hash.update(&bytes);
        size += bytes.len() as u64;
        file.write_all(&bytes).map_err(Failed::File)?;
    }
    let found: [u8; 32] = hash.finalize().into();
    Ok(if found == *cid.digest() {
        Got::Whole(size)
    } else {
        Got::Damaged("its bytes do not hash to its CID".to_owned())
    })
}

/// The hash of a plain file; none if it is none.
fn hash_of(path: &Path) -> std::io::Result<Option<[u8; 32]>> {
    if !path.symlink_metadata()?.is_file() {
        return Ok(None);
    }
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hash.finalize().into())),
            count => hash.update(&buffer[..count]),
        }
    }
}
