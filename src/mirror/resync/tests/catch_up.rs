//! What is newer than our head, laid over what we hold: taken where it proves, fetched whole where it does not.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::*;
use crate::mirror::rows::Head;
use crate::sim::account::Write;

fn path(rkey: &str) -> String {
    format!("app.bsky.feed.post/{rkey}")
}

/// The blocks that one state has and the other has not: what a PDS sends with `since`.
fn newer(before: &SimAccount, after: &SimAccount) -> Vec<(Cid, Vec<u8>)> {
    let known: BTreeMap<Cid, Vec<u8>> = before.export_blocks().into_iter().collect();
    let blocks = after.export_blocks().into_iter();
    blocks.filter(|(cid, _)| !known.contains_key(cid)).collect()
}

fn car(root: Cid, blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
    let mut car = encode_header(&[root]);
    for (cid, bytes) in blocks {
        encode_block(&mut car, cid, bytes);
    }
    car
}

impl World {
    /// A world that holds the account as it is now, and wants what comes next.
    async fn holding(account: &SimAccount, log: &LogMaker) -> Self {
        let world = Self::new(log, account.export(), &signing_key(10)).await;
        let repo = world.fetch().await.expect("taken");
        let mut row = Mirror::new(&*world.store)
            .account(&world.did)
            .expect("reads")
            .expect("known");
        row.account_number = world.numbers_of_records()[0];
        row.head = Some(Head {
            rev: repo.rev(),
            commit: repo.cid(),
            commit_block: repo.block().to_vec(),
            data: repo.data(),
        });
        row.sync = SyncState::Wanted {
            reason: DesyncReason::ChainBroken,
            since: NOW,
            tries: 0,
        };
        world.put_row(&row);
        world
    }

    fn put_row(&self, row: &AccountRow) {
        let mut batch = Batch::new();
        batch.put(
            Family::Accounts,
            keyspace::encode_account(&self.did),
            row.encode(),
        );
        self.store.write(batch).expect("writes");
    }

    /// The host goes on to this state.
    fn host_has(&self, account: &SimAccount, since: Option<Vec<u8>>) {
        self.set(|answers| {
            answers.latest = Some(account.head());
            answers.car = account.export();
            answers.since = since;
        });
    }

    fn numbers_of_records(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        let scanned = self.store.scan(Family::Records, &KeyRange::all(), &mut |key, _| {
            numbers.push(keyspace::split_record(key).expect("a key").0);
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("scans");
        numbers.dedup();
        numbers
    }

    /// What was loaded last is exactly what the account holds.
    fn check_loaded(&self, account: &SimAccount) {
        let number = *self.numbers_of_records().last().expect("loaded");
        let mut held = BTreeMap::new();
        let scanned = Mirror::new(&*self.store).scan_records(number, None, &mut |path, record| {
            held.insert(String::from_utf8_lossy(path).into_owned(), record.bytes.to_vec());
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("scans");
        assert_eq!(&held, account.records());
    }

    /// Catch-ups that proved, and those that did not; bytes of the ones and of whole repositories.
    fn counts(&self) -> (u64, u64, u64, u64) {
        let counts = &self.fetcher.counts;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        (
            read(&counts.caught_up),
            read(&counts.fell_back),
            read(&counts.since_bytes),
            read(&counts.whole_bytes),
        )
    }
}

/// An account of so many records, and its state some commits later.
fn before_and_after(records: usize) -> (LogMaker, SimAccount, SimAccount) {
    let (log, mut before) = account(&[10], 10);
    let writes: Vec<Write> = (0..records)
        .map(|number| {
            (
                path(&format!("r{number:06}")),
                Some(post(&format!("record {number}"))),
            )
        })
        .collect();
    before.commit(0, &writes, NOW.minus(HOUR));
    let mut after = before.clone();
    let (update, delete) = (path("r000003"), path("r000007"));
    after.commit(0, &[(path("s"), Some(post("created")))], NOW.minus(HOUR));
    after.commit(
        0,
        &[(update, Some(post("updated"))), (delete, None)],
        NOW.minus(HOUR),
    );
    (log, before, after)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_newer_proves_together_with_ours() {
    let (log, before, after) = before_and_after(5_000);
    let world = World::holding(&before, &log).await;
    let whole = world.counts().3;
    assert_eq!(whole, before.export().len() as u64);
    world.host_has(&after, Some(car(after.head(), &newer(&before, &after))));
    let repo = world.fetch().await.expect("taken");
    assert_eq!(
        (repo.rev(), repo.cid(), repo.records()),
        (after.rev(), after.head(), 5_001)
    );
    world.check_loaded(&after);
    let (caught_up, fell_back, since_bytes, whole_bytes) = world.counts();
    assert_eq!((caught_up, fell_back, whole_bytes), (1, 0, whole));
    println!("{since_bytes} bytes instead of {}", after.export().len());
    assert!(since_bytes * 50 < after.export().len() as u64, "{since_bytes}");
    world.set(|answers| assert_eq!(answers.sinces, [before.rev().to_string()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_ignores_since_is_believed_as_much() {
    let (log, before, after) = before_and_after(50);
    let world = World::holding(&before, &log).await;
    world.host_has(&after, Some(after.export()));
    assert_eq!(world.fetch().await.expect("taken").cid(), after.head());
    world.check_loaded(&after);
    assert_eq!((world.counts().0, world.counts().1), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_prove_with_ours_is_fetched_whole() {
    let (log, before, after) = before_and_after(300);
    let blocks = newer(&before, &after);
    let full = car(after.head(), &blocks);
    let mut flipped = full.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    // A commit that went by while the rest was read; one of another key; the host's state of before.
    let mut later = after.clone();
    later.commit(0, &[(path("t"), Some(post("torn")))], NOW.minus(HOUR));
    let torn = [&blocks[..], &[(later.head(), later.commit_block().to_vec())]].concat();
    let mut foreign = before.clone();
    foreign.rotate_key(66);
    foreign.commit(0, &[(path("f"), Some(post("forged")))], NOW.minus(HOUR));
    let mut cases = vec![
        None,
        Some(Vec::new()),
        Some(flipped),
        Some(full[..full.len() - 1].to_vec()),
        Some(car(later.head(), &torn)),
        Some(car(foreign.head(), &newer(&before, &foreign))),
        Some(encode_header(&[])),
        Some(car(after.head(), &[])),
    ];
    // Any block that is missing: a new record, a new node, the commit.
    for index in 0..blocks.len() {
        let mut fewer = blocks.clone();
        fewer.remove(index);
        cases.push(Some(car(after.head(), &fewer)));
    }
    assert!(cases.len() > 10);
    for (index, since) in cases.into_iter().enumerate() {
        let world = World::holding(&before, &log).await;
        world.host_has(&after, since);
        let repo = world.fetch().await.expect("taken");
        assert_eq!((repo.cid(), repo.records()), (after.head(), 301), "case {index}");
        world.check_loaded(&after);
        assert_eq!((world.counts().0, world.counts().1), (0, 1), "case {index}");
        // Ours, and the one that was fetched whole: nothing is left of what did not prove.
        assert_eq!(world.numbers_of_records().len(), 2, "case {index}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_way_takes_what_does_not_prove() {
    let (log, before, after) = before_and_after(20);
    let mut fewer = newer(&before, &after);
    fewer.remove(0);
    let world = World::holding(&before, &log).await;
    world.host_has(&after, Some(car(after.head(), &fewer)));
    world.set(|answers| answers.car = car(after.head(), &newer(&before, &after)));
    assert!(matches!(world.fetch().await, Err(FetchFailure::Unproven(_))));
    assert_eq!(world.numbers_of_records().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_ours_that_is_damaged_is_no_base() {
    let (log, before, after) = before_and_after(20);
    for damage in 0..3 {
        let world = World::holding(&before, &log).await;
        let number = world.numbers_of_records()[0];
        let key = keyspace::encode_record(number, path("r000001").as_bytes());
        let mut batch = Batch::new();
        match damage {
            0 => batch.delete(Family::Records, key),
            1 => {
                let value = RecordValue {
                    rev: before.rev(),
                    digest: *Cid::of_block(&post("record 1")).digest(),
                    bytes: &post("rotten"),
                };
                batch.put(Family::Records, key, value.encode());
            }
            _ => batch.put(Family::Records, key, b"no row".to_vec()),
        }
        world.store.write(batch).expect("writes");
        world.host_has(&after, Some(car(after.head(), &newer(&before, &after))));
        assert_eq!(world.fetch().await.expect("taken").cid(), after.head());
        world.check_loaded(&after);
        assert_eq!((world.counts().0, world.counts().1), (0, 1), "damage {damage}");
    }
    // Where that is known already, nothing is asked.
    let world = World::holding(&before, &log).await;
    let mut row = Mirror::new(&*world.store)
        .account(&world.did)
        .expect("reads")
        .expect("known");
    world.host_has(&after, Some(car(after.head(), &newer(&before, &after))));
    for diverged in [false, true] {
        row.diverged_before_fetch = diverged;
        row.sync = SyncState::Wanted {
            reason: if diverged {
                DesyncReason::HeadDiffers
            } else {
                DesyncReason::CopyDamaged
            },
            since: NOW,
            tries: 0,
        };
        world.put_row(&row);
        assert_eq!(world.fetch().await.expect("taken").cid(), after.head());
        world.set(|answers| assert_eq!(answers.sinces, [""; 0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_went_back_gives_what_it_has() {
    let (log, before, after) = before_and_after(20);
    let world = World::holding(&after, &log).await;
    let held = world.loaded_records();
    // Nothing of it is newer than ours; or it gives all that it has, whatever it is asked for.
    for (tries, since) in (1..).zip([car(before.head(), &[]), before.export()]) {
        world.host_has(&before, Some(since));
        let Ok(FetchedContent::Behind {
            car: Some(_), repo, ..
        }) = world.fetch_any().await
        else {
            panic!("not kept beside ours");
        };
        assert_eq!((repo.cid(), repo.rev()), (before.head(), before.rev()));
        assert_eq!((world.counts().0, world.counts().1), (0, tries));
        assert_eq!(world.loaded_records(), held);
    }
}
