//! Tests of proofs, single blocks and what is newer than a rev, over real sockets.
#![allow(clippy::disallowed_methods, reason = "shell: timers")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::mirror::memory::MemoryStore;
use crate::mirror::{Batch, Family, Store as _, keyspace};
use crate::repo::car::parse_car;
use crate::repo::proof::prove_record;
use crate::serve::fixture::{Account, Answer, Server, large_record, path, record, rev};
use crate::serve::{NoBlobArchive, ServeLimits};
use crate::types::{Cid, Digest};

fn account() -> Account {
    let mut account = Account::new("proofs", 1);
    for number in 0..60 {
        account = account.record(
            &format!("k{number:02}"),
            number,
            &record(&format!("text {number}")),
        );
    }
    account
}

fn get_record(account: &Account, rkey: &str) -> String {
    format!(
        "/xrpc/com.atproto.sync.getRecord?did={}&collection=com.example.thing&rkey={rkey}",
        account.did
    )
}

fn get_blocks(account: &Account, cids: &[Cid]) -> String {
    let cids: String = cids.iter().map(|cid| format!("&cids={cid}")).collect();
    format!("/xrpc/com.atproto.sync.getBlocks?did={}{cids}", account.did)
}

fn since(account: &Account, number: u64) -> String {
    format!(
        "/xrpc/com.atproto.sync.getRepo?did={}&since={}",
        account.did,
        rev(number)
    )
}

/// Roots and blocks, each of which hashes to its CID.
fn read(answer: &Answer) -> (Vec<Cid>, BTreeMap<Digest, Vec<u8>>) {
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), "application/vnd.ipld.car");
    assert!(answer.is_whole());
    let car = parse_car(&answer.body).expect("a CAR");
    let blocks = car.blocks.iter().map(|(cid, bytes)| {
        assert!(cid.matches(bytes));
        (*cid.digest(), bytes.to_vec())
    });
    (car.roots.clone(), blocks.collect())
}

#[tokio::test]
async fn a_record_and_its_absence_are_proven() {
    let store = MemoryStore::new();
    let account = account();
    account.save(&store);
    let server = Server::start(&store).await;
    let head = account.head();
    for rkey in ["k00", "k31", "k59", "absent", "zz"] {
        let answer = server.get(&get_record(&account, rkey)).await;
        let (roots, blocks) = read(&answer);
        assert_eq!(roots, [head.commit]);
        assert_eq!(blocks[head.commit.digest()], head.commit_block);
        let proven = prove_record(&blocks, head.data, path(rkey).as_bytes()).expect("a whole proof");
        match proven {
            Some(cid) => assert!(
                rkey.starts_with('k') && blocks.contains_key(cid.digest()),
                "{rkey}"
            ),
            None => assert!(!rkey.starts_with('k'), "{rkey}"),
        }
        assert!(blocks.len() < 12, "not the whole tree");
        let tag = answer.header("etag").to_owned();
        let again = server
            .ask(
                "GET",
                &get_record(&account, rkey),
                &format!("If-None-Match: {tag}\r\n"),
            )
            .await;
        assert_eq!((again.status, again.header("etag")), (304, tag.as_str()));
        let head_only = server.ask("HEAD", &get_record(&account, rkey), "").await;
        assert_eq!(head_only.header("content-length"), answer.body.len().to_string());
        assert!(head_only.body.is_empty());
    }
}

#[tokio::test]
async fn blocks_are_given_all_or_none() {
    let store = MemoryStore::new();
    let account = account();
    account.save(&store);
    let server = Server::start(&store).await;
    let head = account.head();
    let record_cid = Cid::of_block(&record("text 7"));
    let cids = [head.data, record_cid, head.commit, record_cid];
    let (roots, blocks) = read(&server.get(&get_blocks(&account, &cids)).await);
    assert!(roots.is_empty());
    let want: BTreeSet<Digest> = cids.iter().map(|cid| *cid.digest()).collect();
    assert_eq!(blocks.keys().copied().collect::<BTreeSet<_>>(), want);
    read(&server.get(&get_blocks(&account, &[head.commit])).await);
    let (one, other) = (Cid::of_block(b"one"), Cid::of_blob(b"other"));
    let answer = server.get(&get_blocks(&account, &[one, record_cid, other])).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".to_owned()));
    assert_eq!(
        answer.json()["message"],
        format!("Could not find cids: {one},{other}")
    );
    for bad in ["", "&cids=", "&cids=nonsense"] {
        let path = format!("{}{bad}", get_blocks(&account, &[]));
        assert_eq!(
            server.get(&path).await.error(),
            (400, "InvalidRequest".to_owned()),
            "{bad}"
        );
    }
    let large = Account::new("large", 2).large_records();
    large.save(&store);
    let all: Vec<Cid> = (0..12)
        .map(|number| Cid::of_block(&large_record(number)))
        .collect();
    let answer = server.get(&get_blocks(&large, &all)).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".to_owned()));
    read(&server.get(&get_blocks(&large, &all[..3])).await);
}

#[tokio::test]
async fn since_gives_what_an_older_copy_lacks() {
    let store = MemoryStore::new();
    let account = account();
    account.save(&store);
    let server = Server::start(&store).await;
    let head = account.head();
    let whole = server
        .get(&format!("/xrpc/com.atproto.sync.getRepo?did={}", account.did))
        .await;
    let (_, all) = read(&whole);
    for number in [0, 30, 58] {
        let answer = server.get(&since(&account, number)).await;
        let (roots, blocks) = read(&answer);
        assert_eq!(roots, [head.commit]);
        let has = |cid: &Cid| blocks.contains_key(cid.digest());
        assert!(has(&head.commit) && has(&head.data));
        for at in 0..60 {
            let cid = Cid::of_block(&record(&format!("text {at}")));
            assert_eq!(has(&cid), at > number, "record of {at} since {number}");
        }
        // Together with the older records it is the whole.
        assert!(all.iter().all(|(digest, _)| {
            blocks.contains_key(digest)
                || (0..=number).any(|at| Cid::of_block(&record(&format!("text {at}"))).digest() == digest)
        }));
        assert!(answer.body.len() < whole.body.len());
        assert_ne!(answer.header("etag"), whole.header("etag"));
    }
    for number in [59, 1000] {
        let (roots, blocks) = read(&server.get(&since(&account, number)).await);
        assert_eq!((roots, blocks.len()), (vec![head.commit], 0), "nothing is newer");
    }
}

#[tokio::test]
async fn rows_that_do_not_prove_give_no_part() {
    let store = MemoryStore::new();
    let account = account();
    account.save(&store);
    let mut batch = Batch::new();
    batch.delete(
        Family::Records,
        keyspace::encode_record(account.account_number(), path("k20").as_bytes()),
    );
    store.write(batch).expect("written");
    let server = Server::start(&store).await;
    for path in [
        get_record(&account, "k01"),
        get_blocks(&account, &[Cid::of_block(&record("text 1"))]),
        since(&account, 10),
    ] {
        assert_eq!(
            server.get(&path).await.error(),
            (500, "InternalServerError".to_owned()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn proofs_count_among_the_exports() {
    let store = MemoryStore::new();
    let large = Account::new("large", 2).large_records();
    large.save(&store);
    let account = account();
    account.save(&store);
    let limits = ServeLimits {
        exports_max: 1,
        queue_timeout: Duration::from_millis(100),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    // A reader who does not read holds the one place.
    let held = server
        .open_narrow(&format!("/xrpc/com.atproto.sync.getRepo?did={}", large.did))
        .await;
    let proof = get_record(&account, "k01");
    let mut answer = server.get(&proof).await;
    for _ in 0..100 {
        if answer.status == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = server.get(&proof).await;
    }
    assert_eq!(answer.error(), (503, "ServiceUnavailable".to_owned()));
    assert_eq!(answer.header("retry-after"), "5");
    drop(held);
    for _ in 0..200 {
        if answer.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = server.get(&proof).await;
    }
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn blocks_keep_their_place_until_they_are_sent() {
    let store = MemoryStore::new();
    let large = Account::new("large", 2).large_records();
    large.save(&store);
    let account = account();
    account.save(&store);
    let limits = ServeLimits {
        exports_max: 1,
        queue_timeout: Duration::from_millis(100),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    let cids: Vec<Cid> = (0..8)
        .map(|number| Cid::of_block(&large_record(number)))
        .collect();
    let small = get_blocks(&account, &[account.head().commit]);
    let mut held = server.open_narrow(&get_blocks(&large, &cids)).await;
    let mut refused = 0;
    for _ in 0..100 {
        let answer = server.get(&small).await;
        refused = if answer.status == 503 { refused + 1 } else { 0 };
        if refused == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(refused, 3, "while nobody reads them, nobody else has the place");
    let (_, blocks) = read(&Answer::read(&mut held).await);
    assert_eq!(blocks.len(), cids.len());
    read(&server.get(&small).await);
}
