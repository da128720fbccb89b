#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! The temporary passwords of restored accounts: in one file that only its owner can read, and nowhere else.
//!
//! A password stands in the file, synced, before an account is made with it, so that a restore that was killed can
//! log in again. A line each: the DID, a tab, the password.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

use super::RestoreError;
use crate::types::Did;

/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;
/// Bytes of randomness in a password.
const RANDOM_BYTES: usize = 20;

/// The file. Nobody else can open it meanwhile.
pub struct Passwords {
    path: PathBuf,
    file: File,
    known: BTreeMap<Did, Zeroizing<String>>,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Passwords {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When others may read it, another restore has it open, or a line is none of ours.
    pub fn open(path: &Path) -> Result<Self, RestoreError> {
        let cannot =
            |what: &str| RestoreError::Failed(format!("the file of passwords {}: {what}", path.display()));
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let mut file = opened.map_err(|error| cannot(&error.to_string()))?;
        let meta = file.metadata().map_err(|error| cannot(&error.to_string()))?;
        if !meta.is_file() {
            return Err(cannot("it is no file"));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(cannot("others can read it; chmod 600 it, or name a new one"));
        }
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(cannot("it belongs to another user"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(cannot("another restore is at work with it")),
            Err(TryLockError::Error(error)) => return Err(cannot(&error.to_string())),
        }
        if meta.len() > BYTES_MAX {
            return Err(cannot("it is too long"));
        }
        let mut text = Zeroizing::new(String::with_capacity(meta.len() as usize + 1));
        let read = (&mut file).take(BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| cannot(&error.to_string()))?;
        let mut known = BTreeMap::new();
        // What was cut off in the middle was never used.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        for (number, line) in text[..whole].lines().enumerate() {
            let parts = line.split_once('\t');
            let parts = parts.and_then(|(did, password)| Some((did.parse::<Did>().ok()?, password)));
            let Some((did, password)) = parts.filter(|(_, password)| !password.is_empty()) else {
                return Err(cannot(&format!(
                    "line {} is none of ours; name a new file",
                    number + 1
                )));
            };
            known.insert(did, Zeroizing::new(password.to_owned()));
        }
        let cut = file.set_len(whole as u64);
        cut.and_then(|()| file.seek(SeekFrom::End(0)).map(drop))
            .map_err(|error| cannot(&error.to_string()))?;
        let path = path.to_owned();
        Ok(Self { path, file, known })
    }

    /// The password of an account: that of an earlier run, or a new one, which is in the file then.
    ///
    /// # Errors
    /// When there is no randomness, or the file cannot be written.
    pub fn of(&mut self, did: &Did) -> Result<Zeroizing<String>, RestoreError> {
        if let Some(password) = self.known.get(did) {
            return Ok(password.clone());
        }
        let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
        let filled = aws_lc_rs::rand::fill(&mut *bytes);
        filled.map_err(|_| RestoreError::failed("the system gives no randomness"))?;
        let password = Zeroizing::new(BASE32_NOPAD.encode(&*bytes).to_ascii_lowercase());
        let line = Zeroizing::new(format!("{did}\t{}\n", *password));
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_all());
        written.map_err(|error| self.unwritable(&error))?;
        self.known.insert(did.clone(), password.clone());
        Ok(password)
    }

    fn unwritable(&self, error: &io::Error) -> RestoreError {
        RestoreError::Failed(format!(
            "cannot write the file of passwords {}: {error}",
            self.path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_in_its_file_before_it_is_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("passwords");
        let (a, b): (Did, Did) = (
            "did:plc:a".parse().expect("a DID"),
            "did:plc:b".parse().expect("a DID"),
        );
        let mut passwords = Passwords::open(&path).expect("opens");
        let first = passwords.of(&a).expect("a password");
        assert_eq!(passwords.of(&a), Ok(first.clone()));
        assert_ne!(passwords.of(&b), Ok(first.clone()));
        assert!(first.len() >= 32 && !format!("{passwords:?}").contains(&**first));
        let mode = path.metadata().expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = Passwords::open(&path).expect_err("is open");
        assert!(error.to_string().contains("another restore"), "{error}");
        drop(passwords);
        // Cut off while the next one was written.
        let mut text = std::fs::read_to_string(&path).expect("reads");
        text.push_str("did:plc:c\tabc");
        std::fs::write(&path, text).expect("writes");
        let mut again = Passwords::open(&path).expect("opens");
        assert_eq!(again.of(&a), Ok(first));
        let c = "did:plc:c".parse().expect("a DID");
        assert_ne!(again.of(&c).expect("a new one").as_str(), "abc");
        drop(again);
        assert_eq!(Passwords::open(&path).expect("opens").known.len(), 3);
    }

    #[test]
    fn a_file_that_others_read_or_that_is_another_s_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("passwords");
        std::fs::write(&path, "").expect("writes");
        let permissions = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(&path, permissions).expect("sets");
        let error = Passwords::open(&path).expect_err("open to others");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        let permissions = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, permissions).expect("sets");
        std::fs::write(&path, "a shopping list\n").expect("writes");
        let error = Passwords::open(&path).expect_err("none of ours");
        assert!(error.to_string().contains("line 1"), "{error}");
        let left = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(left, "a shopping list\n", "and it is as it was");
        assert!(Passwords::open(folder.path()).is_err());
    }
}
