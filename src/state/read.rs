#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! Reads a PDS's data folder while the PDS runs, and changes nothing in it. (SQLite marks who reads in the memory that
//! the users of a database share, its `-shm` file, where it may write that.)
//!
//! A database is copied into memory with SQLite's online backup, so that the copy is of one moment, and the copy is
//! checked. One of a PDS that does not run has no log beside it, and is opened as a file that nobody writes: SQLite
//! would make files beside it otherwise.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, MAIN_DB, OpenFlags, OptionalExtension as _};
use zeroize::Zeroizing;

use super::private::Private;
use super::{PART_BYTES_MAX, StateError};
use crate::types::Did;

/// Largest key file or file of settings.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Pages that are copied at once: the PDS may write between two turns.
const PAGES: i32 = 1000;
/// Tries to copy a database that changes faster than it can be read.
const TRIES: u32 = 200;
/// Between two turns, if the database is being written.
const PAUSE: Duration = Duration::from_millis(50);
/// Most accounts of a PDS.
const ACCOUNTS_MAX: usize = 1_000_000;

fn cannot(path: &Path, error: &dyn std::fmt::Display) -> StateError {
    StateError(format!("cannot read {}: {error}", path.display()))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

/// When a file was changed last, and how long it is; none: it is not there.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = path.metadata().ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// Opens a database to be read. True: as a file that nobody writes.
fn open(path: &Path) -> Result<(Connection, bool), StateError> {
    let still = !beside(path, "-wal").exists() && !beside(path, "-journal").exists();
    let text = path
        .to_str()
        .ok_or_else(|| cannot(path, &"its name is no UTF-8"))?;
    let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let uri = format!(
        "file:{escaped}?mode=ro{}",
        if still { "&immutable=1" } else { "" }
    );
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags).map_err(|error| cannot(path, &error))?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .map_err(|error| cannot(path, &error))?;
    Ok((connection, still))
}

/// A consistent copy of a database, as the file that it would be; none: there is no such file.
///
/// # Errors
/// When it cannot be read, is damaged, or is too large.
pub fn database(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    for _ in 0..TRIES {
        let Some(before) = stamp(path) else {
            return Ok(None);
        };
        if before.1 > PART_BYTES_MAX {
            return Err(cannot(path, &format!("it is larger than {PART_BYTES_MAX} bytes")));
        }
        let (source, still) = open(path)?;
        let copied = copy(path, &source)?;
        // Somebody began to write it meanwhile.
        if still && (stamp(path) != Some(before) || beside(path, "-wal").exists()) {
            std::thread::sleep(PAUSE);
            continue;
        }
        return Ok(Some(copied));
    }
    Err(cannot(path, &"it changes faster than it can be read"))
}

fn copy(path: &Path, source: &Connection) -> Result<Zeroizing<Vec<u8>>, StateError> {
    let failed = |error: rusqlite::Error| cannot(path, &error);
    let mut memory = Connection::open_in_memory().map_err(failed)?;
    {
        let backup = Backup::new(source, &mut memory).map_err(failed)?;
        let mut tries = 0;
        loop {
            match backup.step(PAGES).map_err(failed)? {
                StepResult::Done => break,
                StepResult::More => {}
                _ if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                _ => return Err(cannot(path, &"it is locked")),
            }
        }
    }
    check(&memory).map_err(|error| cannot(path, &error))?;
    let data = memory.serialize(MAIN_DB).map_err(failed)?;
    let mut bytes = Zeroizing::new(data.to_vec());
    // The header's two versions: that of a file with no log beside it. Who opens it as the PDS does makes one again.
    if let Some(versions) = bytes.get_mut(18..20) {
        versions.fill(1);
    }
    Ok(bytes)
}

/// Whether a database is whole, by SQLite's own check.
fn check(connection: &Connection) -> Result<(), String> {
    let said = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match said {
        Ok(said) if said == "ok" => Ok(()),
        Ok(said) => Err(format!("it is damaged: {said}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Checks the bytes of a database; how many tables it has.
///
/// # Errors
/// When they are none, or damaged.
pub fn check_database(bytes: &[u8]) -> Result<i64, StateError> {
    let failed = |error: rusqlite::Error| StateError(format!("it is no database: {error}"));
    let mut connection = Connection::open_in_memory().map_err(failed)?;
    connection
        .deserialize_read_exact(MAIN_DB, bytes, bytes.len(), true)
        .map_err(failed)?;
    check(&connection).map_err(StateError)?;
    let count = "SELECT count(*) FROM sqlite_master WHERE type = 'table'";
    let tables: i64 = connection
        .query_row(count, [], |row| row.get(0))
        .map_err(failed)?;
    match tables {
        0 => Err(StateError::new("it is empty")),
        tables => Ok(tables),
    }
}

/// A small file, whole; none: there is none.
///
/// # Errors
/// When it cannot be read, or is too large.
pub fn small(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(path, &error)),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(SMALL_BYTES_MAX as usize + 1));
    file.take(SMALL_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot(path, &error))?;
    if bytes.len() as u64 > SMALL_BYTES_MAX {
        return Err(cannot(
            path,
            &format!("it is larger than {SMALL_BYTES_MAX} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// Every account that has a folder below `actors`.
///
/// # Errors
/// When the folders cannot be listed.
pub fn accounts(data: &Path) -> Result<Vec<(Did, PathBuf)>, StateError> {
    let actors = data.join("actors");
    let list = |folder: &Path| {
        std::fs::read_dir(folder)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .map_err(|error| cannot(folder, &error))
    };
    let mut accounts = Vec::new();
    for shard in list(&actors)? {
        if !shard.path().is_dir() {
            continue;
        }
        for account in list(&shard.path())? {
            let did = account
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Did>().ok());
            accounts.extend(did.map(|did| (did, account.path())));
        }
        if accounts.len() > ACCOUNTS_MAX {
            return Err(cannot(
                &actors,
                &format!("it has more than {ACCOUNTS_MAX} accounts"),
            ));
        }
    }
    accounts.sort();
    Ok(accounts)
}

/// What is private of an account; none: it was deleted meanwhile.
///
/// # Errors
/// When it cannot be read.
pub fn private(did: &Did, folder: &Path) -> Result<Option<Private>, StateError> {
    let store = folder.join("store.sqlite");
    let key = small(&folder.join("key"))?;
    if key.is_none() && !store.exists() {
        return Ok(None);
    }
    let mut preferences = Vec::new();
    if store.exists() {
        let failed = |error: rusqlite::Error| cannot(&store, &error);
        let (connection, _) = open(&store)?;
        let known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'account_pref'";
        let known: Option<i64> = connection
            .query_row(known, [], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        if known.is_some() {
            let ask = "SELECT name, valueJson FROM account_pref ORDER BY id";
            let mut ask = connection.prepare(ask).map_err(failed)?;
            let rows = ask
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                .map_err(failed)?;
            for row in rows {
                preferences.push(row.map_err(failed)?);
            }
        }
    }
    let did = did.clone();
    Ok(Some(Private {
        did,
        key,
        preferences,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("lists");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_database_is_copied_while_it_is_written_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("account.sqlite");
        assert_eq!(database(&path), Ok(None));
        let writer = Connection::open(&path).expect("opens");
        let mode: String = writer
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
            .expect("sets");
        assert_eq!(mode, "wal");
        writer
            .execute_batch("CREATE TABLE a (b); INSERT INTO a VALUES (1);")
            .expect("writes");
        // What is not committed is not copied.
        writer
            .execute_batch("BEGIN; INSERT INTO a VALUES (2);")
            .expect("writes");
        let copied = database(&path).expect("reads").expect("is there");
        assert_eq!(check_database(&copied), Ok(1));
        let again = database(&path).expect("reads").expect("is there");
        assert_eq!(copied, again, "the same is the same");
        writer.execute_batch("COMMIT").expect("writes");
        let then = database(&path).expect("reads").expect("is there");
        assert_ne!(copied, then);
        drop(writer);
        let before = names(folder.path());
        assert_eq!(before, ["account.sqlite"]);
        let still = database(&path).expect("reads").expect("is there");
        assert_eq!(check_database(&still), Ok(1));
        assert_eq!(names(folder.path()), before);
        let count = |bytes: &[u8]| -> i64 {
            let mut memory = Connection::open_in_memory().expect("opens");
            memory
                .deserialize_read_exact(MAIN_DB, bytes, bytes.len(), true)
                .expect("is one");
            memory
                .query_row("SELECT count(*) FROM a", [], |row| row.get(0))
                .expect("counts")
        };
        assert_eq!((count(&copied), count(&then), count(&still)), (1, 2, 2));
    }

    #[test]
    fn what_is_damaged_is_no_backup() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("account.sqlite");
        let writer = Connection::open(&path).expect("opens");
        writer
            .execute_batch("CREATE TABLE a (b); INSERT INTO a SELECT randomblob(3000) FROM (SELECT 1 UNION SELECT 2 UNION SELECT 3)")
            .expect("writes");
        drop(writer);
        let whole = std::fs::read(&path).expect("reads");
        let mut broken = whole.clone();
        let half = broken.len() / 2;
        broken[4096..half].fill(0x55);
        std::fs::write(&path, &broken).expect("writes");
        let error = database(&path).expect_err("damaged");
        assert!(error.to_string().contains("account.sqlite"), "{error}");
        assert!(check_database(&broken).is_err());
        assert!(check_database(b"no database at all").is_err());
        assert!(check_database(b"").is_err());
        assert!(check_database(&whole).is_ok());
    }

    #[test]
    fn an_account_s_key_and_preferences() {
        let folder = tempfile::tempdir().expect("a folder");
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID");
        let own = folder.path().join("actors").join("ab").join(did.as_str());
        std::fs::create_dir_all(&own).expect("makes");
        std::fs::create_dir_all(folder.path().join("actors").join("ab").join("lost+found")).expect("makes");
        let found = accounts(folder.path()).expect("lists");
        assert_eq!(found, [(did.clone(), own.clone())]);
        assert_eq!(private(&did, &own), Ok(None), "deleted meanwhile");
        std::fs::write(own.join("key"), [7; 32]).expect("writes");
        let store = Connection::open(own.join("store.sqlite")).expect("opens");
        store
            .execute_batch(
                "CREATE TABLE account_pref (id INTEGER PRIMARY KEY, name TEXT, valueJson TEXT);
                 INSERT INTO account_pref (name, valueJson) VALUES ('a#b', '{}'), ('a#c', '{\"x\":1}');",
            )
            .expect("writes");
        let read = private(&did, &own).expect("reads").expect("is there");
        assert_eq!(read.key.as_ref().map(|key| key.len()), Some(32));
        let wanted = [("a#b", "{}"), ("a#c", "{\"x\":1}")];
        let wanted = wanted.map(|(name, json)| (name.to_owned(), json.to_owned()));
        assert_eq!(read.preferences, wanted);
        std::fs::write(own.join("key"), vec![7; SMALL_BYTES_MAX as usize + 1]).expect("writes");
        assert!(private(&did, &own).is_err(), "no key is so long");
    }
}
