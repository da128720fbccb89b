//! Tests of exports over real sockets: whole, proven, bounded, and never torn.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::*;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{RecordValue, Row as _};
use crate::mirror::{Batch, Family, View as _, keyspace};
use crate::repo::car::parse_car;
use crate::repo::mst::{MstError, WalkLimits, walk};
use crate::serve::fixture::{Account, Answer, Server, path, record, rev};
use crate::serve::{NoBlobArchive, ServeLimits};
use crate::types::Digest;

const METHOD: &str = "/xrpc/com.atproto.sync.getRepo?did=";

fn uri(account: &Account) -> String {
    format!("{METHOD}{}", account.did)
}

fn count(server: &Server, result: ExportResult) -> u64 {
    server.metrics.exports.of(result).get()
}

fn small() -> Account {
    Account::new("alice", 1)
        .records(300, 40)
        .record("one", 9, &record("newest"))
}

/// Larger than all buffers between a server and a client that does not read.
fn large() -> Account {
    Account::new("large", 2).records(200, 30_000)
}

#[tokio::test]
async fn an_export_is_the_whole_repository_in_streamable_order() {
    let (store, account) = (MemoryStore::new(), small());
    account.save(&store);
    let server = Server::start(&store).await;
    let head = account.head();
    for query in ["", "&unknown=1"] {
        let answer = server.get(&format!("{}{query}", uri(&account))).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/vnd.ipld.car");
        assert_eq!(answer.header("etag"), format!("\"{}\"", head.commit));
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        assert_eq!(answer.header("vary"), "Authorization, Accept-Encoding");
        assert!(answer.is_whole());
        let car = parse_car(&answer.body).expect("a CAR");
        assert_eq!(car.roots, [head.commit]);
        assert_eq!(car.blocks[0], (head.commit, &head.commit_block[..]));
        assert_eq!(car.blocks[1].0, head.data);
        let blocks: BTreeMap<Digest, &[u8]> = car.blocks.iter().map(|(cid, b)| (*cid.digest(), *b)).collect();
        let mut records = BTreeMap::new();
        walk(&blocks, head.data, &WalkLimits::default(), |path, cid| {
            records.insert(
                String::from_utf8(path.to_vec()).expect("ASCII"),
                blocks[cid.digest()].to_vec(),
            );
            Ok::<_, MstError>(())
        })
        .expect("a whole tree");
        assert_eq!(records.len(), 301);
        assert_eq!(records[&path("one")], record("newest"));
    }
    server
        .until("counted", |server| count(server, ExportResult::Complete) == 2)
        .await;
}

/// Gives an account a CAR that is kept as it came, of two chunks.
fn keep_car(store: &MemoryStore, account: &Account, sent: &[u8], chunks: &[&[u8]]) -> Cid {
    let (number, commit) = (77, Cid::of_block(b"the lax head"));
    let mut row = account.row();
    row.kept_car = Some(crate::mirror::rows::KeptCar {
        number,
        rev: rev(50),
        commit,
        bytes: sent.len() as u64,
        sha256: crate::types::cid::sha256(sent),
        since: crate::types::Timestamp::default(),
        archived: false,
        damaged: false,
    });
    let mut batch = Batch::new();
    batch.put(
        Family::Accounts,
        keyspace::encode_account(&account.did),
        row.encode(),
    );
    for (index, chunk) in chunks.iter().enumerate() {
        let index = u32::try_from(index).expect("few");
        batch.put(
            Family::BlobData,
            keyspace::encode_blob_data(number, commit.digest(), index),
            *chunk,
        );
    }
    crate::mirror::Store::write(store, batch).expect("writes");
    commit
}

#[tokio::test]
async fn what_does_not_rebuild_is_served_as_it_came_where_nothing_proven_is_held() {
    let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (first, rest) = sent.split_at(150_000);
    let (store, account) = (MemoryStore::new(), Account::new("lax", 1).unloaded());
    account.save(&store);
    let commit = keep_car(&store, &account, &sent, &[first, rest]);
    let server = Server::start(&store).await;
    let answer = server.get(&uri(&account)).await;
    assert_eq!((answer.status, answer.is_whole()), (200, true));
    assert!(answer.body == sent, "not what came");
    assert_eq!(answer.header("content-type"), "application/vnd.ipld.car");
    assert_eq!(answer.header("etag"), format!("\"{commit}\""));
    assert_eq!(answer.header("firekeep-quarantined"), "true");
    // It is no head of ours.
    let head = format!("/xrpc/com.atproto.sync.getLatestCommit?did={}", account.did);
    assert_eq!(server.get(&head).await.status, 400);

    // One bit of it went bad, or a part of it is gone.
    let damaged = [&[first[0] ^ 1], &first[1..]].concat();
    for chunks in [&[&damaged[..], rest][..], &[first][..]] {
        let store = MemoryStore::new();
        keep_car(&store, &account, &sent, chunks);
        let server = Server::start(&store).await;
        assert_eq!(server.get(&uri(&account)).await.status, 500);
        assert_eq!(count(&server, ExportResult::Unproven), 1);
    }
    // What is hidden stays hidden.
    let hidden = Account::new("lax", 1)
        .unloaded()
        .status(crate::types::AccountStatus::Takendown);
    let store = MemoryStore::new();
    keep_car(&store, &hidden, &sent, &[first, rest]);
    let answer = Server::start(&store).await.get(&uri(&hidden)).await;
    assert_eq!(answer.error(), (400, "RepoTakendown".to_owned()));

    // A proven copy goes before it.
    let (store, account) = (MemoryStore::new(), small());
    account.save(&store);
    keep_car(&store, &account, &sent, &[first, rest]);
    let answer = Server::start(&store).await.get(&uri(&account)).await;
    assert_eq!(
        parse_car(&answer.body).expect("a CAR").roots,
        [account.head().commit]
    );
    assert_eq!(answer.header("firekeep-quarantined"), "");
}

#[tokio::test]
async fn an_empty_repository_exports() {
    let (store, account) = (MemoryStore::new(), Account::new("empty", 1));
    account.save(&store);
    let answer = Server::start(&store).await.get(&uri(&account)).await;
    assert_eq!((answer.status, answer.is_whole()), (200, true));
    assert_eq!(parse_car(&answer.body).expect("a CAR").blocks.len(), 2);
}

#[tokio::test]
async fn a_head_costs_no_export_and_a_known_version_none_either() {
    let (store, account) = (MemoryStore::new(), small());
    account.save(&store);
    let server = Server::start(&store).await;
    let answer = server.ask("HEAD", &uri(&account), "").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "application/vnd.ipld.car")
    );
    assert!(answer.body.is_empty() && !answer.headers.contains_key("content-length"));
    let etag = answer.header("etag").to_owned();
    for method in ["GET", "HEAD"] {
        let known = format!("If-None-Match: \"x\", W/{etag}\r\n");
        let answer = server.ask(method, &uri(&account), &known).await;
        assert_eq!((answer.status, answer.header("etag")), (304, &*etag));
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(answer.body.is_empty());
    }
    assert_eq!(count(&server, ExportResult::Complete), 0);
    let other = server
        .ask("GET", &uri(&account), "If-None-Match: \"x\"\r\n")
        .await;
    assert_eq!(other.status, 200);
}

/// Damages the saved rows in one way.
type Damage = fn(&MemoryStore, &Account);

fn put(store: &MemoryStore, family: Family, key: Vec<u8>, value: Vec<u8>) {
    let mut batch = Batch::new();
    batch.put(family, key, value);
    store.write(batch).expect("written");
}

fn record_key(account: &Account, rkey: &str) -> Vec<u8> {
    keyspace::encode_record(account.account_number(), path(rkey).as_bytes())
}

fn with_head(store: &MemoryStore, account: &Account, change: impl FnOnce(&mut Head)) {
    let mut row = account.row();
    change(row.head.as_mut().expect("loaded"));
    put(
        store,
        Family::Accounts,
        keyspace::encode_account(&account.did),
        row.encode(),
    );
}

const DAMAGES: [(&str, Damage); 10] = [
    ("one bit of a record", |store, account| {
        let key = record_key(account, "many000150");
        let mut value = store.get(Family::Records, &key).expect("read").expect("there");
        *value.last_mut().expect("not empty") ^= 1;
        put(store, Family::Records, key, value);
    }),
    ("a record that hashes, but is another", |store, account| {
        let bytes = record("forged");
        let value = RecordValue {
            rev: rev(1),
            digest: *Cid::of_block(&bytes).digest(),
            bytes: &bytes,
        };
        put(
            store,
            Family::Records,
            record_key(account, "many000150"),
            value.encode(),
        );
    }),
    ("a record too many", |store, account| {
        let bytes = record("extra");
        let value = RecordValue {
            rev: rev(1),
            digest: *Cid::of_block(&bytes).digest(),
            bytes: &bytes,
        };
        put(store, Family::Records, record_key(account, "zzz"), value.encode());
    }),
    ("a record too few", |store, account| {
        let mut batch = Batch::new();
        batch.delete(Family::Records, record_key(account, "many000299"));
        store.write(batch).expect("written");
    }),
    ("a record row that does not decode", |store, account| {
        put(
            store,
            Family::Records,
            record_key(account, "many000150"),
            vec![1, 2, 3],
        );
    }),
    ("another root in the row", |store, account| {
        with_head(store, account, |head| head.data = Cid::of_block(b"other"));
    }),
    (
        "rows and root of one repository, the commit of another",
        |store, account| {
            let other = small().record("one", 9, &record("forged"));
            other.save(store);
            with_head(store, account, |head| head.data = other.head().data);
        },
    ),
    ("a flipped bit in the commit's signature", |store, account| {
        with_head(store, account, |head| {
            let sig = Commit::decode(&head.commit_block).expect("a commit").sig;
            let at = head
                .commit_block
                .windows(64)
                .position(|window| window == sig)
                .expect("there");
            head.commit_block[at] ^= 1;
        });
    }),
    ("a commit block that is none", |store, account| {
        with_head(store, account, |head| {
            head.commit_block = record("no commit");
            head.commit = Cid::of_block(&head.commit_block);
        });
    }),
    ("the commit of another account", |store, account| {
        let mut other = small();
        other.did = "did:web:other.example.com".parse().expect("valid");
        with_head(store, account, |head| *head = other.head());
    }),
];

#[tokio::test]
async fn what_does_not_prove_is_an_error_and_not_one_byte_of_a_car() {
    for (number, (what, damage)) in DAMAGES.iter().enumerate() {
        let (store, account) = (MemoryStore::new(), small());
        account.save(&store);
        damage(&store, &account);
        let server = Server::start(&store).await;
        let answer = server.get(&uri(&account)).await;
        assert_eq!(
            answer.error(),
            (500, "InternalServerError".to_owned()),
            "{number}: {what}"
        );
        assert_eq!(count(&server, ExportResult::Unproven), 1, "{what}");
        assert_eq!(count(&server, ExportResult::Complete), 0, "{what}");
    }
}

#[tokio::test]
async fn an_account_row_that_does_not_decode_is_an_error() {
    let (store, account) = (MemoryStore::new(), small());
    put(
        &store,
        Family::Accounts,
        keyspace::encode_account(&account.did),
        b"garbage".to_vec(),
    );
    let server = Server::start(&store).await;
    assert_eq!(
        server.get(&uri(&account)).await.error(),
        (500, "InternalServerError".to_owned())
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_gives_its_place_to_the_next() {
    let (store, account) = (MemoryStore::new(), large());
    account.save(&store);
    let limits = ServeLimits {
        exports_max: 1,
        queue_timeout: Duration::from_millis(100),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    let mut first = server.open_narrow(&uri(&account)).await;
    first
        .read_exact(&mut [0; 12])
        .await
        .expect("the export has begun");
    let second = server.get(&uri(&account)).await;
    assert_eq!(second.error(), (503, "ServiceUnavailable".to_owned()));
    assert_eq!(second.header("retry-after"), "5");
    assert_eq!(count(&server, ExportResult::Busy), 1);
    // Other answers do not wait for exports.
    let status = server
        .get(&uri(&account).replace("getRepo", "getRepoStatus"))
        .await;
    assert_eq!(status.status, 200);
    drop(first);
    server
        .until("aborted", |server| count(server, ExportResult::Aborted) == 1)
        .await;
    let third = server.get(&uri(&account)).await;
    assert_eq!((third.status, third.is_whole()), (200, true));
    server
        .until("counted", |server| count(server, ExportResult::Complete) == 1)
        .await;
}

#[tokio::test]
async fn a_place_that_is_given_back_in_time_serves_who_waits() {
    let (store, account) = (MemoryStore::new(), large());
    account.save(&store);
    let limits = ServeLimits {
        exports_max: 1,
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    let path = uri(&account);
    let (one, two, three) = tokio::join!(server.get(&path), server.get(&path), server.get(&path));
    assert!(
        [one, two, three]
            .iter()
            .all(|answer| answer.status == 200 && answer.is_whole())
    );
}

#[tokio::test]
async fn a_reader_that_stands_still_loses_its_export() {
    let (store, account) = (MemoryStore::new(), large());
    account.save(&store);
    let limits = ServeLimits {
        reader_bytes_per_second_min: 16 << 20,
        reader_patience: Duration::from_millis(200),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    let mut stream = server.open_narrow(&uri(&account)).await;
    server
        .until("aborted", |server| count(server, ExportResult::Aborted) == 1)
        .await;
    assert!(!Answer::read(&mut stream).await.is_whole());
}

#[tokio::test]
async fn an_export_past_its_time_is_cut_and_cannot_be_taken_for_whole() {
    let (store, account) = (MemoryStore::new(), large());
    account.save(&store);
    let limits = ServeLimits {
        transfer_time_max: Duration::from_millis(1500),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits.clone()).await;
    let mut stream = server.open_narrow(&uri(&account)).await;
    stream
        .read_exact(&mut [0; 1])
        .await
        .expect("the export has begun");
    tokio::time::sleep(limits.transfer_time_max).await;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.ok();
    assert!(rest.len() < 200 * 30_000, "{}", rest.len());
    server
        .until("cut", |server| count(server, ExportResult::Cut) == 1)
        .await;

    let none = ServeLimits {
        transfer_time_max: Duration::ZERO,
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, none).await;
    assert_eq!(
        server.get(&uri(&account)).await.error(),
        (500, "InternalServerError".to_owned())
    );
}

#[tokio::test]
async fn a_shutdown_ends_while_an_export_is_stuck() {
    let (store, account) = (MemoryStore::new(), large());
    account.save(&store);
    let limits = ServeLimits {
        drain_timeout: Duration::from_millis(200),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    let mut stream = server.open_narrow(&uri(&account)).await;
    stream
        .read_exact(&mut [0; 1])
        .await
        .expect("the export has begun");
    server.shutdown.cancel();
    server.until("ended", |server| server.task.is_finished()).await;
    server
        .until("aborted", |server| count(server, ExportResult::Aborted) == 1)
        .await;
}
