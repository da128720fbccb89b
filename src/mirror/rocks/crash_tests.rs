//! What survives: the log is cut and damaged in copies of a mirror's folder, and opened again.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

const SYNCED: usize = 12;
const WRITTEN: usize = 20;

/// A mirror with [`WRITTEN`] batches, of which [`SYNCED`] are synced, as the disk shows it at that moment.
struct Crashed {
    folder: TempDir,
    /// Length of the log after the last sync.
    synced_bytes: u64,
    log: PathBuf,
}

impl Crashed {
    fn new() -> Self {
        let live = tempfile::tempdir().unwrap();
        let store = RocksStore::open(live.path(), &RocksOptions::default()).unwrap();
        let mut synced_bytes = 0;
        for number in 0..WRITTEN {
            let batch = batch(number);
            if number + 1 == SYNCED {
                let _durable = store.write_durable(batch).unwrap();
                synced_bytes = newest_log(&live.path().join("mirror")).metadata().unwrap().len();
            } else {
                store.write(batch).unwrap();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        copy(&live.path().join("mirror"), folder.path());
        let log = newest_log(folder.path());
        assert!(
            log.metadata().unwrap().len() > synced_bytes,
            "there is a tail to lose"
        );
        Self {
            folder,
            synced_bytes,
            log: log.file_name().unwrap().into(),
        }
    }

    /// Opens a copy whose log was changed, and says which batches it has.
    fn open_with(&self, change: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<usize>, StoreError> {
        let data_dir = tempfile::tempdir().unwrap();
        let mirror = data_dir.path().join("mirror");
        copy(self.folder.path(), &mirror);
        let log = mirror.join(&self.log);
        let mut bytes = fs::read(&log).unwrap();
        change(&mut bytes);
        fs::write(&log, bytes).unwrap();
        let store = RocksStore::open(data_dir.path(), &RocksOptions::default())?;
        Ok((0..WRITTEN).filter(|number| has(&store, *number)).collect())
    }

    fn log_bytes(&self) -> u64 {
        self.folder.path().join(&self.log).metadata().unwrap().len()
    }
}

/// Two rows in two families: a torn batch would show as one without the other.
fn batch(number: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put(Family::Records, format!("{number:08}"), [b'r'; 40]);
    batch.put(Family::Hosts, format!("{number:08}"), [b'h'; 40]);
    batch
}

fn has(store: &RocksStore, number: usize) -> bool {
    let key = format!("{number:08}");
    let [record, host] =
        [Family::Records, Family::Hosts].map(|family| store.get(family, key.as_bytes()).unwrap().is_some());
    assert_eq!(record, host, "batch {number} is whole or not at all");
    record
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn newest_log(folder: &Path) -> PathBuf {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "log"))
        .collect();
    logs.sort();
    logs.pop().unwrap()
}

#[test]
fn an_untouched_log_loses_nothing() {
    let crashed = Crashed::new();
    assert_eq!(crashed.open_with(|_| {}), Ok((0..WRITTEN).collect()));
}

#[test]
fn a_torn_log_leaves_a_prefix_and_never_less_than_was_synced() {
    let crashed = Crashed::new();
    let (synced, end) = (crashed.synced_bytes, crashed.log_bytes());
    let mut lengths = Vec::new();
    // 13 is no divisor of a log entry's length, so the cuts fall everywhere in one.
    for cut in (synced..end).step_by(13).chain([synced, end - 1]) {
        let survived = crashed
            .open_with(|log| log.truncate(usize::try_from(cut).unwrap()))
            .unwrap();
        assert_eq!(
            survived,
            (0..survived.len()).collect::<Vec<_>>(),
            "a prefix, cut at {cut}"
        );
        assert!(survived.len() >= SYNCED, "what was synced is there, cut at {cut}");
        lengths.push(survived.len());
    }
    assert!(
        lengths.contains(&SYNCED) && lengths.contains(&(WRITTEN - 1)),
        "{lengths:?}"
    );
}

#[test]
fn measure_flips() {
    let crashed = Crashed::new();
    let end = crashed.log_bytes();
    let mut lost = Vec::new();
    let mut fine = 0;
    for at in (0..end).step_by(7) {
        match crashed.open_with(|log| log[at as usize] ^= 1 << (at % 8)) {
            Err(StoreError::Corrupt { .. }) => {}
            Err(error) => eprintln!("{at}: {error}"),
            Ok(rows) if rows.len() == WRITTEN => fine += 1,
            Ok(rows) => lost.push((at, rows.len())),
        }
    }
    eprintln!(
        "end {end} synced {} fine {fine} lost {lost:?}",
        crashed.synced_bytes
    );
}

#[test]
fn measure_manifest() {
    let live = tempfile::tempdir().unwrap();
    let store = RocksStore::open(live.path(), &RocksOptions::default()).unwrap();
    for number in 0..WRITTEN {
        let _ = store.write_durable(batch(number)).unwrap();
        store.engine.flush().unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&live.path().join("mirror"), folder.path());
    let name = fs::read_to_string(folder.path().join("CURRENT"))
        .unwrap()
        .trim()
        .to_owned();
    let len = folder.path().join(&name).metadata().unwrap().len();
    let crashed = Crashed {
        folder,
        synced_bytes: 0,
        log: name.into(),
    };
    let mut lost = Vec::new();
    let mut fine = 0;
    for at in (0..len).step_by(7) {
        match crashed.open_with(|log| log[at as usize] ^= 1 << (at % 8)) {
            Err(StoreError::Corrupt { .. }) => {}
            Err(error) => eprintln!("{at}: {error}"),
            Ok(rows) if rows.len() == WRITTEN => fine += 1,
            Ok(rows) => lost.push((at, rows.len())),
        }
    }
    eprintln!("MANIFEST {len} fine {fine} lost {lost:?}");
}
