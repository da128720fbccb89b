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
                store.write_durable(batch).unwrap();
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

/// Every bit of the heads of a few entries (7 bytes each: checksum, length, type), and bits all over the
/// rest.
#[test]
fn a_flipped_bit_in_the_log_is_refused() {
    let crashed = Crashed::new();
    let end = usize::try_from(crashed.log_bytes()).unwrap();
    let entry_bytes = (end - usize::try_from(crashed.synced_bytes).unwrap()) / (WRITTEN - SYNCED);
    let heads = [0, SYNCED - 1, WRITTEN - 1].map(|number| end - (WRITTEN - number) * entry_bytes);
    let in_heads = heads
        .into_iter()
        .flat_map(|head| (0..56).map(move |bit| (head + bit / 8, bit % 8)));
    let elsewhere = (0..end).step_by(29).map(|at| (at, at % 8));
    for (at, bit) in in_heads.chain(elsewhere) {
        let opened = crashed.open_with(|log| log[at] ^= 1 << bit);
        assert!(
            matches!(opened, Err(StoreError::Corrupt { .. })),
            "bit {bit} of byte {at}: {opened:?}"
        );
    }
}

#[test]
fn a_lost_sector_in_the_log_is_refused() {
    let crashed = Crashed::new();
    for at in (0..1024).step_by(256) {
        let opened = crashed.open_with(|log| log[at..at + 512].fill(0));
        assert!(
            matches!(opened, Err(StoreError::Corrupt { .. })),
            "at {at}: {opened:?}"
        );
    }
}

#[test]
fn a_missing_or_damaged_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    {
        let live = tempfile::tempdir().unwrap();
        let store = RocksStore::open(live.path(), &RocksOptions::default()).unwrap();
        for number in 0..WRITTEN {
            store.write_durable(batch(number)).unwrap();
        }
        store.engine.flush().unwrap();
        copy(&live.path().join("mirror"), folder.path());
    }
    let current = fs::read_to_string(folder.path().join("CURRENT")).unwrap();
    let crashed = Crashed {
        folder,
        synced_bytes: 0,
        log: current.trim().into(),
    };
    assert_eq!(crashed.open_with(|_| {}), Ok((0..WRITTEN).collect()));
    let end = usize::try_from(crashed.log_bytes()).unwrap();
    for at in (0..end).step_by(61).chain(end - 8..end) {
        let opened = crashed.open_with(|log| log[at] ^= 1 << (at % 8));
        assert!(
            matches!(opened, Err(StoreError::Corrupt { .. })),
            "byte {at}: {opened:?}"
        );
    }
    let (manifest, current) = (crashed.log.as_path(), Path::new("CURRENT"));
    let log = newest_log(crashed.folder.path());
    let log = Path::new(log.file_name().unwrap());
    // The last case is the worst: RocksDB would make a new database, and clear away the files of the old.
    for missing in [
        vec![manifest],
        vec![current],
        vec![manifest, current],
        vec![manifest, current, log],
    ] {
        let data_dir = tempfile::tempdir().unwrap();
        let mirror = data_dir.path().join("mirror");
        copy(crashed.folder.path(), &mirror);
        for name in &missing {
            fs::remove_file(mirror.join(name)).unwrap();
        }
        let opened = RocksStore::open(data_dir.path(), &RocksOptions::default());
        assert!(
            matches!(opened, Err(StoreError::Corrupt { .. })),
            "without {missing:?}"
        );
    }
}

/// A first start that was killed half-way is completed by the next.
#[test]
fn an_unfinished_creation_is_finished() {
    let data_dir = tempfile::tempdir().unwrap();
    let mirror = data_dir.path().join("mirror");
    fs::create_dir(&mirror).unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let mut db = DB::open(&options, &mirror).unwrap();
    db.create_cf(Family::Meta.name(), &options).unwrap();
    db.create_cf(Family::Hosts.name(), &options).unwrap();
    drop(db);
    let store = RocksStore::open(data_dir.path(), &RocksOptions::default()).unwrap();
    store.write(batch(0)).unwrap();
    assert!(has(&store, 0));
}

#[test]
fn a_bulk_load_is_on_disk_when_it_returns() {
    let live = tempfile::tempdir().unwrap();
    let store = RocksStore::open(live.path(), &RocksOptions::default()).unwrap();
    store.engine.flush().unwrap();
    store.write(batch(0)).unwrap();
    let mut rows = (0..1000u32).map(|row| ([b"bulk ", &row.to_be_bytes()[..]].concat(), vec![7; 100]));
    assert_eq!(store.bulk_load(Family::Records, &mut rows), Ok(1000));
    let data_dir = tempfile::tempdir().unwrap();
    let mirror = data_dir.path().join("mirror");
    copy(&live.path().join("mirror"), &mirror);
    // Without any of the log: loaded rows never were in it.
    fs::write(newest_log(&mirror), b"").unwrap();
    let store = RocksStore::open(data_dir.path(), &RocksOptions::default()).unwrap();
    let mut rows = 0;
    let count = &mut |_: &[u8], _: &[u8]| {
        rows += 1;
        std::ops::ControlFlow::Continue(())
    };
    store
        .scan(Family::Records, &KeyRange::prefix("bulk "), count)
        .unwrap();
    assert_eq!(rows, 1000);
}
