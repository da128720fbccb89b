#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! The ledger of a whole PDS: what came of each account, a line each, synced as it comes. How far an account came
//! that is not done stands in a ledger of its own ([`super::ledger`]). It holds no secret.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::types::{Did, Timestamp};

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 30;
/// Its name.
const NAME: &str = "accounts.jsonl";

/// Which restore this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The format.
    pub format: u32,
    /// The host that is restored.
    pub host: String,
    /// The new PDS's DID.
    pub pds_did: String,
}

impl Head {
    /// The restore of this host at that PDS.
    #[must_use]
    pub fn new(host: impl ToString, pds_did: &str) -> Self {
        Self {
            format: FORMAT,
            host: host.to_string(),
            pds_did: pds_did.to_owned(),
        }
    }
}

/// What came of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The account.
    pub did: String,
    /// It is there as it should be, though blobs may be missing; else it is tried again.
    pub done: bool,
    /// How it stands, or that it failed.
    pub state: String,
    /// Its handle there.
    pub handle: Option<String>,
    /// The handle that it had, if that is another.
    pub handle_before: Option<String>,
    /// Its e-mail address reaches nobody.
    #[serde(default)]
    pub placeholder_email: bool,
    /// The backup does not have all of it.
    #[serde(default)]
    pub incomplete: bool,
    /// Records.
    #[serde(default)]
    pub records: u64,
    /// Blobs that are there.
    #[serde(default)]
    pub blobs: u64,
    /// Blobs that are not.
    #[serde(default)]
    pub blobs_missing: u64,
    /// What to know.
    pub detail: String,
    /// When.
    pub time: String,
}

impl Outcome {
    /// One that went wrong.
    #[must_use]
    pub fn failed(did: &Did, state: &str, detail: String, now: Timestamp) -> Self {
        Self {
            did: did.to_string(),
            done: false,
            state: state.to_owned(),
            handle: None,
            handle_before: None,
            placeholder_email: false,
            incomplete: false,
            records: 0,
            blobs: 0,
            blobs_missing: 0,
            detail,
            time: now.to_string(),
        }
    }
}

/// The ledger, open. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    file: File,
    outcomes: BTreeMap<String, Outcome>,
}

fn cannot(what: &str, path: &Path, error: &dyn std::fmt::Display) -> RestoreError {
    RestoreError::Failed(format!("cannot {what} the ledger {}: {error}", path.display()))
}

impl Book {
    /// Opens the ledger in a folder, or begins it.
    ///
    /// # Errors
    /// When another process has it open, it is of another restore, or is damaged.
    pub fn open(folder: &Path, head: &Head) -> Result<Self, RestoreError> {
        let path = folder.join(NAME);
        std::fs::create_dir_all(folder).map_err(|error| cannot("write", &path, &error))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = file.map_err(|error| cannot("open", &path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(cannot("lock", &path, &"another restore is at work with it"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", &path, &error)),
        }
        let mut text = String::new();
        let read = (&mut file).take(BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| cannot("read", &path, &error))?;
        // A line that was cut off is of an account that is looked at again.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].lines();
        let mut outcomes = BTreeMap::new();
        let begun = match lines.next() {
            None => false,
            Some(line) => {
                let of: Head = serde_json::from_str(line).map_err(|error| cannot("read", &path, &error))?;
                if of != *head {
                    let text = format!(
                        "it is of {} at {} (format {}); name another folder with --ledger",
                        of.host, of.pds_did, of.format
                    );
                    return Err(cannot("use", &path, &text));
                }
                true
            }
        };
        for line in lines {
            let outcome: Outcome =
                serde_json::from_str(line).map_err(|error| cannot("read", &path, &error))?;
            outcomes.insert(outcome.did.clone(), outcome);
        }
        let cut = file.set_len(whole as u64);
        cut.and_then(|()| file.seek(SeekFrom::End(0)).map(drop))
            .map_err(|error| cannot("write", &path, &error))?;
        let mut book = Self { path, file, outcomes };
        if !begun {
            book.append(head)?;
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|error| cannot("write", &book.path, &error))?;
        }
        Ok(book)
    }

    /// What came of an account, by the newest run that got to it.
    #[must_use]
    pub fn of(&self, did: &Did) -> Option<&Outcome> {
        self.outcomes.get(did.as_str())
    }

    /// Takes down what came of an account.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take(&mut self, outcome: Outcome) -> Result<(), RestoreError> {
        self.append(&outcome)?;
        self.outcomes.insert(outcome.did.clone(), outcome);
        Ok(())
    }

    fn append(&mut self, line: &impl Serialize) -> Result<(), RestoreError> {
        let mut write = || -> io::Result<()> {
            let mut text = serde_json::to_vec(line)?;
            text.push(b'\n');
            self.file.write_all(&text)?;
            self.file.sync_all()
        };
        write().map_err(|error| cannot("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    #[test]
    fn what_was_done_is_there_after_a_crash() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("below");
        let head = Head::new("old.test", "did:web:new.test");
        let (a, b): (Did, Did) = (
            "did:plc:a".parse().expect("a DID"),
            "did:plc:b".parse().expect("a DID"),
        );
        let mut book = Book::open(&folder, &head).expect("opens");
        let failed = Outcome::failed(&a, "failed", "it was away".to_owned(), NOW);
        book.take(failed.clone()).expect("writes");
        let done = Outcome { done: true, ..failed };
        book.take(done.clone()).expect("writes");
        let error = Book::open(&folder, &head).expect_err("is open");
        assert!(error.to_string().contains("another restore"), "{error}");
        drop(book);
        let path = folder.join(NAME);
        let mut text = std::fs::read_to_string(&path).expect("reads");
        text.push_str("{\"did\":\"did:plc:b\",\"do");
        std::fs::write(&path, &text).expect("writes");
        let mut book = Book::open(&folder, &head).expect("opens");
        assert_eq!((book.of(&a), book.of(&b)), (Some(&done), None));
        book.take(Outcome::failed(&b, "failed", String::new(), NOW))
            .expect("writes");
        drop(book);
        assert!(Book::open(&folder, &head).expect("opens").of(&b).is_some());
        let other = Head::new("old.test", "did:web:third.test");
        let error = Book::open(&folder, &other).expect_err("of another PDS");
        assert!(error.to_string().contains("it is of old.test"), "{error}");
        std::fs::write(&path, text.replacen("{\"did\"", "{\"die\"", 1)).expect("writes");
        assert!(
            Book::open(&folder, &head).is_err(),
            "a damaged one is not gone over"
        );
    }
}
