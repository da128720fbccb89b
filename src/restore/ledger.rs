#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! The ledger of a restore: how far it came, in a file that survives it.
//!
//! It is written anew as a whole, synced, before and after whatever cannot be taken back; signed operations stand in
//! it before they are sent. It holds no secret.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::RestoreError;
use super::operation::Signed;
use crate::types::Timestamp;

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// Longest ledger that is read, in bytes.
const BYTES_MAX: u64 = 16 << 20;

/// What cannot be taken back, or need not be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The new PDS can be shown that we speak for the account.
    Proven,
    /// The account is there, deactivated.
    Account,
    /// It has the repository.
    Imported,
    /// It has every blob that it can get.
    Blobs,
    /// The identity points there.
    Identity,
    /// What it has was compared; from now on it may be active.
    Activating,
    /// It is active.
    Active,
    /// It was left hidden, as it was.
    Left,
    /// A commit by its new key went out.
    Written,
    /// What it gives was read back and compared.
    Compared,
}

/// A signed operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// What for.
    pub purpose: String,
    /// Its CID.
    pub cid: String,
    /// The operation.
    pub operation: Map<String, Value>,
    /// When it was signed.
    pub time: String,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Which version of the format it has.
    pub format: u32,
    /// The account.
    pub did: String,
    /// The new PDS.
    pub pds: String,
    /// Its DID.
    pub pds_did: String,
    /// The handle there.
    pub handle: String,
    /// The rev that is restored.
    pub rev: String,
    /// Its commit.
    pub commit: String,
    /// What was done, in order, and when.
    pub steps: Vec<(Step, String)>,
    /// Operations, in the order in which they were signed.
    pub operations: Vec<Kept>,
    /// Blobs that could not be brought, and why.
    pub blobs_missing: Vec<(String, String)>,
}

/// A ledger that is open. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    state: State,
    _lock: File,
}

fn cannot(what: &str, path: &Path, error: &dyn std::fmt::Display) -> RestoreError {
    RestoreError::Failed(format!("cannot {what} the ledger {}: {error}", path.display()))
}

/// Reads a ledger; none if there is none.
///
/// # Errors
/// When it cannot be read, or is none of ours.
pub fn read(path: &Path) -> Result<Option<State>, RestoreError> {
    let bytes = match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, BYTES_MAX), &mut bytes)
                .map_err(|error| cannot("read", path, &error))?;
            bytes
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read", path, &error)),
    };
    let state: State = serde_json::from_slice(&bytes).map_err(|error| cannot("read", path, &error))?;
    if state.format != FORMAT {
        return Err(cannot("read", path, &format!("it has format {}", state.format)));
    }
    Ok(Some(state))
}

/// The state of a restore that begins.
#[must_use]
pub fn begin(did: &str, pds: (&str, &str), handle: &str, rev: &str, commit: &str) -> State {
    State {
        format: FORMAT,
        did: did.to_owned(),
        pds: pds.0.to_owned(),
        pds_did: pds.1.to_owned(),
        handle: handle.to_owned(),
        rev: rev.to_owned(),
        commit: commit.to_owned(),
        steps: Vec::new(),
        operations: Vec::new(),
        blobs_missing: Vec::new(),
    }
}

impl State {
    /// Whether a step was done.
    #[must_use]
    pub fn has(&self, step: Step) -> bool {
        self.steps.iter().any(|(done, _)| *done == step)
    }

    /// Whether this is the ledger of the same restore.
    ///
    /// # Errors
    /// What it is of instead.
    pub fn check(&self, other: &Self) -> Result<(), String> {
        for (what, own, others) in [
            ("account", &self.did, &other.did),
            ("PDS", &self.pds_did, &other.pds_did),
            ("backup", &self.commit, &other.commit),
        ] {
            if own != others {
                return Err(format!("it is of another {what}: {own}, not {others}"));
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// Opens the ledger of this restore, or begins it.
    ///
    /// # Errors
    /// When another process has it open, it is of another restore, or cannot be written.
    pub fn open(path: &Path, begun: State) -> Result<Self, RestoreError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|error| cannot("write", path, &error))?;
        }
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path);
        let lock = lock.map_err(|error| cannot("lock", path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(cannot("lock", path, &"another restore is at work with it"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", path, &error)),
        }
        let state = match read(path)? {
            Some(mut state) => {
                let same = state.check(&begun);
                same.map_err(|why| cannot("use", path, &format!("{why}; name another with --ledger")))?;
                state.handle = begun.handle;
                state
            }
            None => begun,
        };
        let ledger = Self {
            path: path.to_owned(),
            state,
            _lock: lock,
        };
        ledger.save()?;
        Ok(ledger)
    }

    /// What it says.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A step was done.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn done(&mut self, step: Step, now: Timestamp) -> Result<(), RestoreError> {
        if !self.state.has(step) {
            self.state.steps.push((step, now.to_string()));
        }
        self.save()
    }

    /// An operation is about to be sent.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&mut self, purpose: &str, signed: &Signed, now: Timestamp) -> Result<(), RestoreError> {
        self.state.operations.push(Kept {
            purpose: purpose.to_owned(),
            cid: signed.cid.to_string(),
            operation: signed.json.clone(),
            time: now.to_string(),
        });
        self.save()
    }

    /// These blobs could not be brought.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn missing(&mut self, blobs: Vec<(String, String)>) -> Result<(), RestoreError> {
        self.state.blobs_missing = blobs;
        self.save()
    }

    fn save(&self) -> Result<(), RestoreError> {
        let write = || -> io::Result<()> {
            let folder = match self.path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let mut file = tempfile::NamedTempFile::with_prefix_in(".firekeep-", folder)?;
            serde_json::to_writer_pretty(&mut file, &self.state)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| cannot("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn state() -> State {
        begin(
            "did:plc:a",
            ("https://new.test", "did:web:new.test"),
            "a.new.test",
            "rev",
            "commit",
        )
    }

    #[test]
    fn what_was_done_is_there_after_a_crash() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("below").join("a.json");
        assert_eq!(read(&path), Ok(None));
        let mut ledger = Ledger::open(&path, state()).expect("begins");
        ledger.done(Step::Account, NOW).expect("writes");
        let json = Map::from_iter([("sig".to_owned(), "x".into())]);
        let cid = crate::types::Cid::of_block(b"x");
        ledger
            .keep("identity", &Signed { json, cid }, NOW)
            .expect("writes");
        ledger
            .missing(vec![("cid".to_owned(), "lost".to_owned())])
            .expect("writes");
        let then = ledger.state().clone();
        // Killed: nothing is closed or written on the way out. A write that was cut off leaves its own file behind.
        std::mem::forget(ledger);
        std::fs::write(path.with_file_name(".firekeep-cut"), b"{\"form").expect("writes");
        assert_eq!(read(&path), Ok(Some(then.clone())));
        assert!(then.has(Step::Account) && !then.has(Step::Imported));
    }

    #[test]
    fn one_restore_at_a_time_and_only_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        let ledger = Ledger::open(&path, state()).expect("begins");
        let error = Ledger::open(&path, state()).expect_err("is open");
        assert!(error.to_string().contains("another restore"), "{error}");
        drop(ledger);
        assert!(Ledger::open(&path, state()).is_ok());
        for (change, what) in [
            (
                (|s: &mut State| s.did = "did:plc:b".into()) as fn(&mut State),
                "account",
            ),
            (|s| s.pds_did = "did:web:x.test".into(), "PDS"),
            (|s| s.commit = "other".into(), "backup"),
        ] {
            let mut other = state();
            change(&mut other);
            let error = Ledger::open(&path, other).expect_err(what);
            assert!(error.to_string().contains(&format!("another {what}")), "{error}");
        }
    }

    #[test]
    fn a_damaged_ledger_is_not_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        let whole = serde_json::to_string(&state()).expect("JSON");
        for text in [
            "",
            "{",
            &whole[..whole.len() / 2],
            &whole.replace("\"format\":1", "\"format\":2"),
        ] {
            std::fs::write(&path, text).expect("writes");
            assert!(Ledger::open(&path, state()).is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), text);
        }
    }
}
