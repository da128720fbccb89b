//! Typed reads, and that damage is an error and never an absence.

use super::*;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{BlobState, SyncState};
use crate::mirror::{Batch, Store};
use crate::repo::export::prove;
use crate::repo::mst::tree_root;
use crate::types::cid::sha256;
use crate::types::{Cid, Rev, Timestamp};

fn did(name: &str) -> Did {
    format!("did:web:{name}.example").parse().unwrap()
}

fn rev(bits: u64) -> Rev {
    Rev::from_bits(bits).unwrap()
}

fn account(number: u64) -> AccountRow {
    AccountRow {
        account_number: number,
        sync: SyncState::Live,
        records: 10,
        record_bytes: 100,
        parked: 1,
        parked_bytes: 50,
        ..AccountRow::new(number, "pds.example".parse().unwrap(), Timestamp::default())
    }
}

fn store_with(fill: impl FnOnce(&mut Batch)) -> MemoryStore {
    let store = MemoryStore::new();
    let mut batch = Batch::new();
    fill(&mut batch);
    store.write(batch).unwrap();
    store
}

fn put_record(batch: &mut Batch, number: u64, path: &str, bytes: &[u8]) {
    let value = RecordValue {
        rev: rev(9),
        digest: sha256(bytes),
        bytes,
    };
    batch.put(
        Family::Records,
        keyspace::encode_record(number, path.as_bytes()),
        value.encode(),
    );
}

fn paths(mirror: Mirror<'_>, number: u64, from: Option<&[u8]>) -> Vec<String> {
    let mut paths = Vec::new();
    let scanned = mirror.scan_records(number, from, &mut |path, record| {
        assert_eq!(record.digest, sha256(record.bytes));
        paths.push(String::from_utf8(path.to_vec()).unwrap());
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    paths
}

#[test]
fn accounts_come_in_pages_and_sums() {
    let store = store_with(|batch| {
        for (number, name) in [(1, "a"), (2, "b"), (0, "c")] {
            batch.put(
                Family::Accounts,
                keyspace::encode_account(&did(name)),
                account(number).encode(),
            );
        }
    });
    let mirror = Mirror::new(&store);
    assert_eq!(mirror.account(&did("b")), Ok(Some(account(2))));
    assert_eq!(mirror.account(&did("x")), Ok(None));
    let names = |after: Option<&str>, limit| {
        let page = mirror.accounts(after, limit).unwrap();
        page.into_iter().map(|(did, _)| did).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 2), [did("a"), did("b")]);
    assert_eq!(names(Some("did:web:b.example"), 2), [did("c")]);
    assert!(names(Some("did:web:c.example"), 2).is_empty() && names(None, 0).is_empty());
}

#[test]
fn records_of_one_generation_come_in_tree_order() {
    let store = store_with(|batch| {
        for path in [
            "com.example.b/1",
            "com.example.b.c/1",
            "com.example.b-c.d/1",
            "com.example.b/0",
        ] {
            put_record(batch, 2, path, path.as_bytes());
        }
        put_record(batch, 1, "com.example.z/1", b"before");
        put_record(batch, 3, "com.example.a/1", b"after");
    });
    let mirror = Mirror::new(&store);
    let all = [
        "com.example.b-c.d/1",
        "com.example.b.c/1",
        "com.example.b/0",
        "com.example.b/1",
    ];
    assert_eq!(paths(mirror, 2, None), all);
    assert_eq!(paths(mirror, 2, Some(b"com.example.b/0")), all[2..]);
    assert_eq!(paths(mirror, 2, Some(b"com.example.b/00")), all[3..]);
    assert!(paths(mirror, 2, Some(b"com.example.c")).is_empty() && paths(mirror, 4, None).is_empty());
    let record = mirror.record(2, b"com.example.b/1").unwrap().unwrap();
    assert_eq!((record.rev, &record.bytes[..]), (rev(9), &b"com.example.b/1"[..]));
    assert!(record.cid.matches(&record.bytes));
    assert_eq!(mirror.record(2, b"com.example.b/2"), Ok(None));
    assert_eq!(mirror.record(3, b"com.example.b/1"), Ok(None));
}

#[test]
fn the_rows_of_a_generation_prove_and_export_it() {
    let paths = [
        "com.example.b/1",
        "com.example.b.c/1",
        "com.example.b-c.d/1",
        "com.example.b/0",
    ];
    let store = store_with(|batch| {
        for path in paths {
            put_record(batch, 2, path, path.as_bytes());
        }
        put_record(batch, 3, "com.example.b/1", b"of another generation");
    });
    let mut sorted = paths;
    sorted.sort_unstable();
    let pairs = sorted
        .iter()
        .map(|path| (path.as_bytes(), Cid::of_block(path.as_bytes())));
    let root = tree_root(pairs).unwrap();
    let rows = Mirror::new(&store).rows(2);
    let proven = prove(&rows, root).unwrap();
    assert_eq!(proven.records(), 4);
    let commit = b"the signed commit";
    let mut car = Vec::new();
    let stats = proven
        .write_car(&rows, Cid::of_block(commit), commit, &mut car)
        .unwrap();
    assert_eq!((stats.records, stats.bytes), (4, car.len() as u64));
    let other = Mirror::new(&store).rows(3);
    assert!(prove(&other, root).is_err());
    // A record whose stored digest is not that of its bytes proves nothing.
    let mut batch = Batch::new();
    let value = RecordValue {
        rev: rev(9),
        digest: [7; 32],
        bytes: b"x",
    };
    batch.put(
        Family::Records,
        keyspace::encode_record(3, b"com.example.b/1"),
        value.encode(),
    );
    store.write(batch).unwrap();
    assert!(prove(&other, root).is_err());
}

#[test]
fn blob_references_are_paged_by_blob() {
    let digests = [[0; 32], [7; 32], [0xff; 32]];
    let store = store_with(|batch| {
        for digest in digests {
            for path in ["com.example.a/1", "com.example.a/2", "com.example.b/1"] {
                batch.put(
                    Family::BlobRefs,
                    keyspace::encode_blob_ref(5, &digest, path.as_bytes()),
                    [],
                );
            }
        }
        for number in [4, 6] {
            batch.put(
                Family::BlobRefs,
                keyspace::encode_blob_ref(number, &[9; 32], b"com.example.a/1"),
                [],
            );
        }
    });
    let mirror = Mirror::new(&store);
    assert_eq!(mirror.blob_refs_page(5, None, 10).as_deref(), Ok(&digests[..]));
    assert_eq!(mirror.blob_refs_page(5, None, 2).as_deref(), Ok(&digests[..2]));
    assert_eq!(
        mirror.blob_refs_page(5, Some(&digests[1]), 2).as_deref(),
        Ok(&digests[2..])
    );
    assert_eq!(
        mirror.blob_refs_page(5, Some(&digests[2]), 2).as_deref(),
        Ok(&[][..])
    );
    assert_eq!(
        mirror.blob_refs_page(5, Some(&[3; 32]), 1).as_deref(),
        Ok(&digests[1..2])
    );
    assert_eq!(mirror.blob_is_referenced(5, &digests[0]), Ok(true));
    assert_eq!(mirror.blob_is_referenced(5, &[9; 32]), Ok(false));
    assert_eq!(mirror.blob_is_referenced(7, &digests[0]), Ok(false));
    let referrers = mirror.blob_referrers(5, &digests[1], 2).unwrap();
    let referrers: Vec<_> = referrers.iter().map(RepoPath::as_str).collect();
    assert_eq!(referrers, ["com.example.a/1", "com.example.a/2"]);
}

#[test]
fn blobs_and_their_chunks() {
    let (whole, torn) = ([1; 32], [2; 32]);
    let row = BlobRow {
        state: BlobState::Held,
        size: Some(5),
        mime: None,
        first_seen: Timestamp::from_micros(1),
        tries: 0,
        withheld_since: None,
        needed_at: None,
    };
    let store = store_with(|batch| {
        batch.put(Family::Blobs, keyspace::encode_blob(3, &whole), row.encode());
        batch.put(Family::Blobs, keyspace::encode_blob(4, &torn), row.encode());
        for (digest, chunk, bytes) in [
            (whole, 0, "abc"),
            (whole, 1, "de"),
            (torn, 0, "abc"),
            (torn, 2, "de"),
        ] {
            batch.put(
                Family::BlobData,
                keyspace::encode_blob_data(3, &digest, chunk),
                bytes,
            );
        }
    });
    let mirror = Mirror::new(&store);
    assert_eq!(mirror.blob(3, &whole), Ok(Some(row.clone())));
    assert_eq!(mirror.blob(3, &torn), Ok(None));
    assert_eq!(mirror.blobs_page(3, None, 9), Ok(vec![(whole, row)]));
    assert_eq!(mirror.blobs_page(3, Some(&whole), 9), Ok(vec![]));
    let read = |digest: &Digest| {
        let mut bytes = Vec::new();
        let read = mirror.blob_chunks(3, digest, |chunk| {
            bytes.extend_from_slice(chunk);
            ControlFlow::Continue(())
        });
        read.map(|count| (count, bytes))
    };
    assert_eq!(read(&whole), Ok((5, b"abcde".to_vec())));
    assert_eq!(read(&[3; 32]), Ok((0, vec![])));
    assert!(matches!(
        read(&torn),
        Err(StoreError::BadRow {
            family: Family::BlobData,
            ..
        })
    ));
}

#[test]
fn work_comes_in_order() {
    let tasks = [
        Task::FetchRepo(did("z")),
        Task::Snapshot(did("a")),
        Task::DropGeneration(4),
    ];
    let task_row = TaskRow {
        tries: 2,
        last_error: Some("timed out".to_owned()),
    };
    let frame = ParkedFrame {
        host: "pds.example".parse().unwrap(),
        epoch: 0,
        seq: 1,
        received: Timestamp::from_micros(1),
        rev: rev(1),
        frame: vec![1],
    };
    let entry = OutboxEntry::Change {
        did: did("a"),
        host: "pds.example".parse().unwrap(),
        did_number: 1,
        rev: rev(2),
        bytes: 3,
    };
    let journalled = JournalEntry {
        commit_block: vec![],
        since: rev(1),
        swap: false,
        ops: vec![],
        time: Timestamp::from_micros(1),
        received: Timestamp::from_micros(1),
        seq: 1,
        host: None,
    };
    let store = store_with(|batch| {
        for (due, task) in [300, 10, 20].into_iter().zip(&tasks) {
            batch.put(Family::Tasks, keyspace::encode_task(due, task), task_row.encode());
        }
        for arrival in [256, 1] {
            batch.put(
                Family::Parked,
                keyspace::encode_parked(5, arrival),
                frame.encode(),
            );
            batch.put(Family::Outbox, keyspace::encode_outbox(arrival), entry.encode());
            batch.put(
                Family::Journal,
                keyspace::encode_journal(1, rev(arrival)),
                journalled.encode(),
            );
        }
        batch.put(
            Family::Meta,
            keyspace::META_NEXT_NUMBER,
            keyspace::encode_number(77),
        );
    });
    let mirror = Mirror::new(&store);
    let due = |now, limit| {
        let due = mirror.due_tasks(now, limit).unwrap();
        due.into_iter()
            .map(|due| (due.due_ms, due.task))
            .collect::<Vec<_>>()
    };
    assert_eq!(due(9, 5), []);
    assert_eq!(due(299, 5), [(10, tasks[1].clone()), (20, tasks[2].clone())]);
    assert_eq!(due(u64::MAX, 5).len(), 3);
    assert_eq!(due(u64::MAX, 1), [(10, tasks[1].clone())]);
    assert_eq!(mirror.next_task_due(), Ok(Some(10)));
    assert_eq!(Mirror::new(&MemoryStore::new()).next_task_due(), Ok(None));
    let arrivals = |limit| {
        let parked = mirror.parked(5, limit).unwrap();
        parked.into_iter().map(|(arrival, _)| arrival).collect::<Vec<_>>()
    };
    assert_eq!((arrivals(9), arrivals(1)), (vec![1, 256], vec![1]));
    assert_eq!(mirror.outbox(2, 9), Ok(vec![(256, entry)]));
    assert_eq!(mirror.journal_entry(1, rev(256)), Ok(Some(journalled)));
    let mut revs = Vec::new();
    let each = mirror.each_journal_entry(1, Some(rev(1)), |rev, _| {
        revs.push(rev);
        ControlFlow::Continue(())
    });
    assert_eq!((each, revs), (Ok(()), vec![rev(1), rev(256)]));
    assert_eq!(mirror.number(keyspace::META_NEXT_NUMBER), Ok(Some(77)));
    assert_eq!(mirror.number(keyspace::META_NEXT_LOG), Ok(None));
}

#[test]
fn damaged_rows_are_errors() {
    let good = encode_good();
    let store = store_with(|batch| {
        batch.put(
            Family::Accounts,
            keyspace::encode_account(&did("a")),
            good.clone(),
        );
        batch.put(Family::Accounts, keyspace::encode_account(&did("b")), &good[1..]);
        batch.put(Family::Accounts, "no DID", good.clone());
        batch.put(
            Family::Records,
            keyspace::encode_record(1, b"com.example.a/1"),
            [0; 39],
        );
        batch.put(Family::Meta, keyspace::META_NEXT_NUMBER, "7");
        batch.put(Family::Tasks, "?", []);
    });
    let mirror = Mirror::new(&store);
    let bad = |result: Result<(), StoreError>, family: Family| {
        assert!(
            matches!(&result, Err(StoreError::BadRow { family: at, .. }) if *at == family),
            "{result:?}"
        );
    };
    bad(mirror.account(&did("b")).map(drop), Family::Accounts);
    bad(mirror.accounts(None, 9).map(drop), Family::Accounts);
    bad(
        mirror.accounts(Some("did:web:b.example"), 9).map(drop),
        Family::Accounts,
    );
    bad(
        mirror.each_account(|_, _| ControlFlow::Continue(())),
        Family::Accounts,
    );
    bad(mirror.record(1, b"com.example.a/1").map(drop), Family::Records);
    bad(
        mirror.scan_records(1, None, &mut |_, _| ControlFlow::Continue(())),
        Family::Records,
    );
    bad(mirror.number(keyspace::META_NEXT_NUMBER).map(drop), Family::Meta);
    bad(mirror.next_task_due().map(drop), Family::Tasks);
    assert_eq!(
        mirror.accounts(None, 1).unwrap().len(),
        1,
        "what was asked for is fine"
    );
}

fn encode_good() -> Vec<u8> {
    account(1).encode()
}

#[test]
fn hosts_and_alarms() {
    let host: HostName = "pds.example".parse().unwrap();
    let row = HostRow {
        rolled_back_at: None,
        listed: 0,
        next_listing: None,
        gone: vec![],
        withheld: vec![],
        sweep: None,
        scope: crate::mirror::rows::Scope::All,
        added: false,
        url: "https://pds.example".to_owned(),
        epoch: 0,
        cursor: None,
        highest_seq: 0,
        listing: crate::mirror::rows::Listing::Unfinished { cursor: None },
        last_event: None,
        ring: vec![],
    };
    let id = AlarmId {
        host: Some(host.clone()),
        kind: keyspace::AlarmKind::Rollback,
        subject: "did:web:a.example".to_owned(),
    };
    let alarm = AlarmRow {
        since: Timestamp::from_micros(1),
        message: String::new(),
        pinned: vec![],
        acknowledged: None,
    };
    let store = store_with(|batch| {
        batch.put(Family::Hosts, keyspace::encode_host(&host), row.encode());
        batch.put(Family::Alarms, keyspace::encode_alarm(&id), alarm.encode());
    });
    let mirror = Mirror::new(&store);
    assert_eq!(mirror.host(&host), Ok(Some(row.clone())));
    assert_eq!(mirror.hosts(), Ok(vec![(host, row)]));
    assert_eq!(mirror.alarms(), Ok(vec![(id, alarm)]));
}
