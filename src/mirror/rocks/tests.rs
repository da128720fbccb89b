//! What RocksDB adds to the contract: locks, refusals, readers beside a writer, files on disk.

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::mirror::keyspace::{encode_number, number_bounds, number_range};
use crate::mirror::store::{FORMAT_VERSION, META_VERSION};

fn open(data_dir: &Path) -> Result<RocksStore, StoreError> {
    RocksStore::open(data_dir, &RocksOptions::default())
}

fn read(data_dir: &Path) -> Result<RocksReader, StoreError> {
    RocksReader::open(data_dir, &RocksOptions::default())
}

fn put(store: &RocksStore, family: Family, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(family, key, value);
    store.write(batch).unwrap();
}

fn count(view: &dyn View, family: Family) -> usize {
    let mut rows = 0;
    view.scan(family, &KeyRange::all(), &mut |_, _| {
        rows += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

#[test]
fn rows_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3u8 {
        let store = open(folder.path()).unwrap();
        assert_eq!(count(&store, Family::Hosts), usize::from(round));
        put(&store, Family::Hosts, &[round], b"x");
        assert_eq!(
            store.get(Family::Meta, META_VERSION),
            Ok(Some(encode_number(FORMAT_VERSION).to_vec()))
        );
    }
}

#[test]
fn a_second_store_in_this_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).unwrap();
    let refused = open(folder.path()).err().unwrap();
    assert!(
        matches!(&refused, StoreError::Locked { path, .. } if path == first.path()),
        "{refused:?}"
    );
    drop(first);
    assert!(open(folder.path()).is_ok());
}

const LOCK_DIR: &str = "FIREKEEP_TEST_LOCK_DIR";

/// Not a test by itself: the other process of the test below.
#[test]
fn holds_the_lock_for_another_test() {
    let Some(data_dir) = std::env::var_os(LOCK_DIR) else {
        return;
    };
    let _store = open(Path::new(&data_dir)).unwrap();
    println!("locked");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_store_of_another_process_is_refused_by_name_and_can_be_read() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().unwrap();
    put(&open(folder.path()).unwrap(), Family::Hosts, b"key", b"value");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "mirror::rocks::tests::holds_the_lock_for_another_test",
        ])
        .env(LOCK_DIR, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let locked = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.ends_with("locked"));
    let refused = open(folder.path()).err();
    let value = read(folder.path()).and_then(|reader| reader.get(Family::Hosts, b"key"));
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    assert!(locked);
    let Some(StoreError::Locked { holder, .. }) = &refused else {
        panic!("{refused:?}");
    };
    if cfg!(target_os = "linux") {
        assert_eq!(*holder, Some(child.id()));
        assert!(
            refused
                .unwrap()
                .to_string()
                .contains(&format!("process {}", child.id()))
        );
    }
    assert_eq!(value, Ok(Some(b"value".to_vec())));
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let refused = open(&file).err().unwrap();
    assert!(matches!(refused, StoreError::NotWritable { .. }), "{refused:?}");
    assert!(refused.to_string().contains("data_dir"), "{refused}");
    let locked_up = folder.path().join("locked up");
    fs::create_dir(&locked_up).unwrap();
    let mut permissions = fs::metadata(&locked_up).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked_up, permissions).unwrap();
    // The superuser may write all the same.
    let refused = open(&locked_up).err();
    let may_write = fs::write(locked_up.join("probe"), b"").is_ok();
    assert!(
        may_write || matches!(refused, Some(StoreError::NotWritable { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    put(
        &open(folder.path()).unwrap(),
        Family::Meta,
        META_VERSION,
        &encode_number(FORMAT_VERSION + 1),
    );
    for refused in [
        open(folder.path()).err(),
        open(folder.path()).err(),
        read(folder.path()).err(),
    ] {
        let found = FORMAT_VERSION + 1;
        assert!(
            matches!(refused, Some(StoreError::Newer { found: it, .. }) if it == found),
            "{refused:?}"
        );
    }
}

#[test]
fn families_of_a_newer_format_are_told_from_foreign_ones() {
    for (version, newer) in [(FORMAT_VERSION + 1, true), (FORMAT_VERSION, false)] {
        let folder = tempfile::tempdir().unwrap();
        put(
            &open(folder.path()).unwrap(),
            Family::Meta,
            META_VERSION,
            &encode_number(version),
        );
        let mirror = folder.path().join("mirror");
        let names = DB::list_cf(&rocksdb::Options::default(), &mirror).unwrap();
        let mut db = DB::open_cf(&rocksdb::Options::default(), &mirror, names).unwrap();
        db.create_cf("of_the_future", &rocksdb::Options::default())
            .unwrap();
        drop(db);
        for refused in [
            open(folder.path()).err().unwrap(),
            read(folder.path()).err().unwrap(),
        ] {
            match refused {
                StoreError::Newer { found, .. } => assert!(newer && found == version),
                StoreError::Corrupt { detail, .. } => assert!(!newer && detail.contains("of_the_future")),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_database_of_somebody_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let mut batch = Batch::new();
    batch.delete(Family::Meta, META_VERSION);
    batch.put(Family::Hosts, "key", "value");
    store.write(batch).unwrap();
    drop(store);
    assert!(matches!(
        open(folder.path()).err(),
        Some(StoreError::Corrupt { .. })
    ));
}

#[test]
fn damaged_data_files_are_errors_and_never_wrong_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let blob = random(1, 5000);
    for number in 0..200u64 {
        put(
            &store,
            Family::Records,
            &encode_number(number),
            &random(number, 100),
        );
    }
    put(&store, Family::BlobData, b"blob", &blob);
    store.engine.flush().unwrap();
    drop(store);
    for entry in fs::read_dir(folder.path().join("mirror")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "sst" || it == "blob")
            && path.metadata().unwrap().len() > 4000
        {
            let mut bytes = fs::read(&path).unwrap();
            bytes[2000] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let store = open(folder.path()).unwrap();
    let corrupt = |error: &StoreError| matches!(error, StoreError::Corrupt { .. });
    assert!(
        store
            .get(Family::BlobData, b"blob")
            .is_err_and(|error| corrupt(&error))
    );
    let scanned = store.scan(Family::Records, &KeyRange::all(), &mut |_, _| {
        ControlFlow::Continue(())
    });
    assert!(scanned.is_err_and(|error| corrupt(&error)));
    let mut refused = 0;
    for number in 0..200u64 {
        match store.get(Family::Records, &encode_number(number)) {
            Ok(value) => assert_eq!(value, Some(random(number, 100))),
            Err(error) => refused += usize::from(corrupt(&error)),
        }
    }
    assert!(refused > 0);
}

#[test]
fn readers_see_what_was_written_before_they_came() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        read(folder.path()).err(),
        Some(StoreError::NotFound { .. })
    ));
    assert!(!folder.path().join("mirror").exists(), "reading makes nothing");
    let store = open(folder.path()).unwrap();
    put(&store, Family::Hosts, b"a", b"in the log");
    let first = read(folder.path()).unwrap();
    store.engine.flush().unwrap();
    put(&store, Family::Hosts, b"b", b"later");
    let second = read(folder.path()).unwrap();
    // The writer goes on, and rewrites what the readers have open.
    store.compact_range(Family::Hosts, &KeyRange::all()).unwrap();
    put(&store, Family::Hosts, b"c", b"latest");
    assert_eq!(
        (count(&first, Family::Hosts), count(&second, Family::Hosts)),
        (1, 2)
    );
    assert_eq!(first.get(Family::Hosts, b"a"), Ok(Some(b"in the log".to_vec())));
    assert_eq!(count(&store, Family::Hosts), 3);
    drop(store);
    assert_eq!(count(&read(folder.path()).unwrap(), Family::Hosts), 3);
}

/// Files, logs and manifests come and go under a reader that is opening them: it misses no row that was there
/// before it came, whatever the daemon does meanwhile.
#[test]
fn readers_open_while_a_writer_rewrites_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let (written, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                put(&store, Family::Hosts, &encode_number(round), &random(round, 100));
                written.fetch_add(1, Ordering::SeqCst);
                if round % 40 == 0 {
                    store.compact_range(Family::Hosts, &KeyRange::all()).unwrap();
                }
                std::thread::sleep(Duration::from_millis(1));
                if stop.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        let opened: Vec<_> = (0..40)
            .map(|_| {
                let before = written.load(Ordering::SeqCst);
                (
                    before,
                    read(folder.path()).map(|reader| count(&reader, Family::Hosts)),
                )
            })
            .collect();
        stop.store(true, Ordering::SeqCst);
        // On a machine that has no time for it a reader may give up; none sees less than there was.
        let mut busy = 0;
        for (before, rows) in opened {
            match rows {
                Ok(rows) => assert!(rows >= before, "{rows}, and {before} before"),
                Err(StoreError::Busy { .. }) => busy += 1,
                Err(error) => panic!("{error}, and {before} before"),
            }
        }
        assert!(busy < 20, "{busy} of 40 readers gave up");
    });
}

#[test]
fn a_reader_gives_up_on_what_never_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let stop = AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mirror = folder.path().join("mirror");
            let current = fs::read_to_string(mirror.join("CURRENT")).unwrap();
            let manifest = fs::OpenOptions::new()
                .append(true)
                .open(mirror.join(current.trim()));
            let mut manifest = manifest.unwrap();
            while !stop.load(Ordering::SeqCst) {
                manifest.write_all(&[0]).unwrap();
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let refused = read(folder.path()).err();
        stop.store(true, Ordering::SeqCst);
        refused
    });
    assert!(
        matches!(&refused, Some(error @ StoreError::Busy { .. }) if error.is_transient()),
        "{refused:?}"
    );
    drop(store);
}

#[test]
fn bulk_loads_of_many_files_leave_none_behind() {
    let folder = tempfile::tempdir().unwrap();
    let waiting = || fs::read_dir(folder.path().join(bulk::FOLDER)).unwrap().count();
    let mut store = open(folder.path()).unwrap();
    store.loader.set_file_bytes(10_000);
    let rows = |account: u64| {
        (0..500u64).map(move |row| {
            (
                [encode_number(account), encode_number(row)].concat(),
                random(row, 200),
            )
        })
    };
    assert_eq!(store.bulk_load(Family::Records, &mut rows(1)), Ok(500));
    assert_eq!(count(&store, Family::Records), 500);
    assert!(store.engine.db.live_files().unwrap().len() > 5, "there were many");
    assert_eq!(waiting(), 0);
    let unsorted = &mut rows(2).chain(rows(2));
    let refused = store.bulk_load(Family::Records, unsorted);
    assert!(
        matches!(refused, Err(StoreError::Unsorted { row: 500, .. })),
        "{refused:?}"
    );
    assert_eq!((waiting(), count(&store, Family::Records)), (0, 500));
    // What a killed load left goes at the next start.
    drop(store);
    fs::write(folder.path().join(bulk::FOLDER).join("0.sst"), b"half a file").unwrap();
    let store = open(folder.path()).unwrap();
    assert_eq!((waiting(), count(&store, Family::Records)), (0, 500));
}

/// Rows that come while a load is under way are not covered up.
#[test]
fn bulk_loads_look_again_before_they_go_in() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let mut rows = (0..3u8).map(|row| {
        if row == 2 {
            put(&store, Family::Records, &[1], b"old");
        }
        (vec![row], b"new".to_vec())
    });
    let refused = store.bulk_load(Family::Records, &mut rows);
    assert!(matches!(refused, Err(StoreError::NotEmpty { .. })), "{refused:?}");
    assert_eq!(store.get(Family::Records, &[1]), Ok(Some(b"old".to_vec())));
    assert_eq!(count(&store, Family::Records), 1);
}

#[test]
fn blobs_live_in_blob_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    put(&store, Family::BlobData, b"large", &random(1, 100_000));
    put(&store, Family::BlobData, b"small", b"x");
    store.engine.flush().unwrap();
    assert!(store.engine.sum("rocksdb.total-blob-file-size") > 100_000);
    assert!(store.stats().disk_bytes > 100_000);
    assert_eq!(
        store.get(Family::BlobData, b"large"),
        Ok(Some(random(1, 100_000)))
    );
}

/// Bytes that no compression shortens, so that a search of the files finds them.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// Whether any file below a folder has these bytes.
fn is_on_disk(folder: &Path, needle: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_on_disk(&path, needle);
        }
        let bytes = fs::read(&path).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

const BY_NUMBER: [Family; 6] = [
    Family::Records,
    Family::Parked,
    Family::Journal,
    Family::BlobRefs,
    Family::Blobs,
    Family::BlobData,
];

/// Rows of three accounts that share files: in two families bulk-loaded, in two flushed, in two still in the
/// log, beside a row that keeps the log alive. Account 2 is the one to erase.
fn three_accounts(store: &RocksStore) {
    let [loaded, flushed, logged] = [
        [Family::Parked, Family::Blobs],
        [Family::Journal, Family::BlobData],
        [Family::Records, Family::BlobRefs],
    ];
    let row = |family, account| {
        let key = [encode_number(account).as_slice(), b"key"].concat();
        (key, marker(family, account))
    };
    for family in loaded {
        store
            .bulk_load(family, &mut (1..=3).map(|account| row(family, account)))
            .unwrap();
    }
    let put_all = |families: [Family; 2]| {
        for (family, account) in families
            .into_iter()
            .flat_map(|family| (1..=3).map(move |it| (family, it)))
        {
            let (key, value) = row(family, account);
            put(store, family, &key, &value);
        }
    };
    put_all(flushed);
    store.engine.flush().unwrap();
    put_all(logged);
    put(store, Family::Hosts, b"host", b"in the same log");
}

fn marker(family: Family, account: u64) -> Vec<u8> {
    random(account * 100 + family as u64, 6000)
}

fn erase(store: &RocksStore, account: u64) {
    let (from, to) = number_bounds(account);
    let mut batch = Batch::new();
    for family in BY_NUMBER {
        batch.delete_range(family, from, to);
    }
    store.write_durable(batch).unwrap();
    for family in BY_NUMBER {
        store.compact_range(family, &number_range(account)).unwrap();
    }
}

fn on_disk(folder: &Path, account: u64) -> Vec<Family> {
    // The middle of a value: blocks may cut off its ends.
    let is_there = |family: &Family| is_on_disk(folder, &marker(*family, account)[3000..3032]);
    BY_NUMBER.into_iter().filter(is_there).collect()
}

#[test]
fn erased_accounts_leave_no_byte_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    three_accounts(&store);
    for account in 1..=3 {
        assert_eq!(
            on_disk(folder.path(), account),
            BY_NUMBER,
            "the search finds them"
        );
    }
    erase(&store, 2);
    assert_eq!(on_disk(folder.path(), 2), []);
    for account in [1, 3] {
        assert_eq!(on_disk(folder.path(), account), BY_NUMBER);
        for family in BY_NUMBER {
            let key = [encode_number(account).as_slice(), b"key"].concat();
            assert_eq!(store.get(family, &key), Ok(Some(marker(family, account))));
        }
    }
}

/// Several data files refer to one blob file: rewriting only the range of the erased account would leave it.
#[test]
fn a_blob_file_that_accounts_share_is_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let blob = |account| random(account, 6000);
    for account in 1..=3 {
        put(&store, Family::BlobData, &encode_number(account), &blob(account));
        // Small rows, so that each account has data files of its own.
        for row in 0..40 {
            let key = [encode_number(account), encode_number(row)].concat();
            put(&store, Family::BlobData, &key, &random(account * 100 + row, 2000));
        }
    }
    store.engine.flush().unwrap();
    store
        .engine
        .set_blob_options(&[("target_file_size_base", "1")])
        .unwrap();
    store.engine.compact(Family::BlobData, &KeyRange::all()).unwrap();
    let files = store.engine.db.live_files().unwrap();
    assert!(
        files
            .iter()
            .filter(|file| file.column_family_name == "blob_data")
            .count()
            > 6
    );
    erase(&store, 2);
    let is_there = |account| is_on_disk(folder.path(), &blob(account)[3000..3032]);
    assert_eq!([1, 2, 3].map(is_there), [true, false, true]);
}

#[test]
fn an_open_view_keeps_what_it_sees() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    three_accounts(&store);
    let view = store.view();
    erase(&store, 2);
    assert_eq!(on_disk(folder.path(), 2), BY_NUMBER);
    let key = [encode_number(2).as_slice(), b"key"].concat();
    assert_eq!(
        view.get(Family::Records, &key),
        Ok(Some(marker(Family::Records, 2)))
    );
    drop(view);
    erase(&store, 2);
    assert_eq!(on_disk(folder.path(), 2), []);
}

#[test]
fn erased_keys_are_off_the_disk_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [b"did:web:erased.example".as_slice(), b"did:web:kept.example"];
    let store = open(folder.path()).unwrap();
    for key in keys {
        put(&store, Family::Accounts, key, b"row");
        store.engine.flush().unwrap();
    }
    let mut batch = Batch::new();
    batch.delete(Family::Accounts, keys[0]);
    store.write(batch).unwrap();
    store
        .compact_range(Family::Accounts, &KeyRange::prefix(keys[0]))
        .unwrap();
    drop(store);
    let _store = open(folder.path()).unwrap();
    assert_eq!(keys.map(|key| is_on_disk(folder.path(), key)), [false, true]);
}

#[test]
fn a_first_start_that_was_killed_leaves_nothing_that_stops_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = folder.path().join("mirror");
    fs::create_dir_all(&mirror).unwrap();
    fs::write(mirror.join("000004.log"), b"").unwrap();
    drop(open(folder.path()).unwrap());

    // One that holds something may be all that is left of a mirror.
    let other = tempfile::tempdir().unwrap();
    let mirror = other.path().join("mirror");
    fs::create_dir_all(&mirror).unwrap();
    fs::write(mirror.join("000004.log"), b"something").unwrap();
    let refused = open(other.path()).map(drop);
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    assert_eq!(fs::read(mirror.join("000004.log")).unwrap(), b"something");
}
