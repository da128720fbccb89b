//! Segments and deltas round trip, and what is wrong with one has a name.

use super::*;
use crate::archive::snapshot_file::{SnapshotDecoder, SnapshotEncoder};
use std::io::Write as _;

fn rev(n: u64) -> Rev {
    Rev::from_bits((1 << 40) + (n << 10)).expect("a rev")
}

fn commit_block(n: u8) -> Bytes {
    Bytes::from(vec![0x41, n])
}

fn record(n: u8) -> Bytes {
    Bytes::from(vec![0x42, n, 7])
}

fn change(n: u8) -> Change {
    let path = |key: &str| format!("app.bsky.feed.post/{key}{n}").parse().expect("a path");
    Change {
        did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID"),
        host: "pds.example.com".parse().expect("a host"),
        seq: u64::from(n),
        since: rev(u64::from(n)),
        rev: rev(u64::from(n) + 1),
        time: Timestamp::from_micros(1_700_000_000_000_000),
        received: Timestamp::from_micros(1_700_000_000_100_000),
        commit: Cid::of_block(&commit_block(n)),
        ops: vec![
            Op {
                path: path("new"),
                cid: Some(Cid::of_block(&record(n))),
            },
            Op {
                path: path("gone"),
                cid: None,
            },
        ],
    }
}

fn file() -> LogFile {
    let first = change(1);
    let entries = vec![
        Entry::Loaded {
            did: first.did.clone(),
            host: first.host.clone(),
            rev: first.since,
            commit: Cid::of_block(b"earlier"),
            received: first.received,
        },
        Entry::Commit(first.clone()),
        Entry::Swap(change(2)),
        Entry::Account {
            did: first.did,
            host: first.host,
            status: AccountStatus::Takendown,
            received: first.received,
        },
    ];
    let origin = Origin::Segment {
        shard: 0,
        generation: 3,
        number: 17,
        prev: Some(Cid::of_block(b"before")),
        first: 99,
    };
    let blocks = [commit_block(1), commit_block(2), record(1), record(2), record(9)];
    let blocks = blocks.into_iter().map(|block| (Cid::of_block(&block), block));
    let index = LogIndex {
        format: FORMAT,
        origin,
        entries,
    };
    LogFile::new(index, blocks.collect())
}

#[test]
fn files_round_trip_through_zstd() {
    let file = file();
    assert_eq!(file.blocks.len(), 4, "what the index does not name is left out");
    let car = file.encode_car();
    let mut encoder = SnapshotEncoder::new(Vec::new(), Some(car.len() as u64)).expect("memory");
    encoder.write_all(&car).expect("a Vec takes all");
    let (packed, _) = encoder.finish().expect("as announced");
    let decoder = SnapshotDecoder::new(&*packed, PLAIN_BYTES_MAX).expect("memory");
    assert_eq!(LogFile::decode(decoder).expect("sound"), file);
    assert_eq!(file.erased().count(), 0);
}

#[test]
fn a_delta_round_trips() {
    let only = change(1);
    let index = LogIndex {
        format: FORMAT,
        origin: Origin::Delta {
            did: only.did.clone(),
            from: only.since,
            to: only.rev,
        },
        entries: vec![Entry::Commit(only)],
    };
    let blocks = [commit_block(1), record(1)].map(|block| (Cid::of_block(&block), block));
    let file = LogFile::new(index, blocks.into());
    assert_eq!(LogFile::decode(&*file.encode_car()).expect("sound"), file);
}

#[test]
fn an_erased_record_keeps_the_root() {
    let mut erased = file();
    let cid = Cid::of_block(&record(1));
    erased.blocks.remove(&cid);
    let read = LogFile::decode(&*erased.encode_car()).expect("sound");
    assert_eq!(read.root, file().root);
    assert_eq!(read.erased().collect::<Vec<_>>(), [cid]);
}

#[test]
fn a_commit_may_not_be_missing() {
    let mut bad = file();
    let cid = Cid::of_block(&commit_block(2));
    bad.blocks.remove(&cid);
    let read = LogFile::decode(&*bad.encode_car());
    assert!(
        matches!(read, Err(LogFileError::CommitMissing(found)) if found == cid),
        "{read:?}"
    );
}

#[test]
fn stray_blocks_are_refused() {
    let mut bytes = file().encode_car();
    let stray = record(9);
    car::encode_block(&mut bytes, &Cid::of_block(&stray), &stray);
    let read = LogFile::decode(&*bytes);
    assert!(matches!(read, Err(LogFileError::Stray(_))), "{read:?}");
}

#[test]
fn every_flipped_byte_is_noticed() {
    let sound = file().encode_car();
    for at in 0..sound.len() {
        let mut bad = sound.clone();
        bad[at] ^= 1;
        // A flipped length may still frame the same bytes only if the hash says so.
        assert!(LogFile::decode(&*bad).is_err(), "byte {at}");
    }
    assert!(LogFile::decode(&sound[..sound.len() - 1]).is_err());
}

#[test]
fn newer_formats_and_nonsense_are_told_apart() {
    let mut newer = file();
    newer.index.format = FORMAT + 1;
    newer = LogFile::new(newer.index, newer.blocks);
    let read = LogFile::decode(&*newer.encode_car());
    assert!(matches!(read, Err(LogFileError::TooNew(2))), "{read:?}");

    let block = vec![0xa0];
    let root = Cid::of_block(&block);
    let mut bytes = car::encode_header(&[root]);
    car::encode_block(&mut bytes, &root, &block);
    assert!(matches!(LogFile::decode(&*bytes), Err(LogFileError::Index(_))));
}

#[test]
fn the_number_of_items_is_limited() {
    let mut large = file();
    let op = Op {
        path: "a.b.c/d".parse().expect("a path"),
        cid: None,
    };
    let Entry::Commit(change) = &mut large.index.entries[1] else {
        panic!("the second is a commit");
    };
    change.ops = vec![op; ITEMS_MAX];
    let large = LogFile::new(large.index, large.blocks);
    assert!(large.index.encode().len() < CAR_BLOCK_BYTES_MAX);
    assert!(matches!(
        LogFile::decode(&*large.encode_car()),
        Err(LogFileError::TooLarge)
    ));
}

#[test]
fn the_largest_index_fits_into_a_block() {
    // The longest path and the longest names, as often as is allowed.
    let path = format!(
        "{}/{}",
        ["a".repeat(63).as_str(); 4].join(".").split_at(253).0,
        "k".repeat(512)
    );
    let Ok(path) = path.parse::<RepoPath>() else {
        panic!("{path} is a path");
    };
    let mut large = file();
    let op = Op {
        path,
        cid: Some(Cid::of_block(b"")),
    };
    large.index.entries.truncate(2);
    let Entry::Commit(change) = &mut large.index.entries[1] else {
        panic!("the second is a commit");
    };
    change.ops = vec![op; ITEMS_MAX - 2];
    let bytes = large.index.encode().len();
    assert!(bytes <= CAR_BLOCK_BYTES_MAX, "{bytes}");
}
