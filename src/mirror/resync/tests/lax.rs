//! What a lax host sends: kept whole where it is signed and all there, refused as ever where it is not.

use super::*;
use crate::mirror::rows::KeptCar;
use crate::sim::account::post_with_blob;

fn car(root: Cid, blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
    let mut car = encode_header(&[root]);
    for (cid, bytes) in blocks {
        encode_block(&mut car, cid, bytes);
    }
    car
}

/// An account of some records that its host keeps in a tree of its own making, and the blocks that it sends.
fn lax() -> (LogMaker, SimAccount, Cid, Vec<(Cid, Vec<u8>)>) {
    let (log, mut account) = account(&[10], 10);
    let blob = Cid::of_blob(b"picture");
    let path = |rkey: &str| format!("app.bsky.feed.post/{rkey}");
    account.commit(
        0,
        &[
            (path("b"), Some(post_with_blob("second", &blob, 7))),
            (path("c"), Some(post("third"))),
        ],
        NOW.minus(HOUR),
    );
    let (root, blocks) = account.lax_blocks(account.rev());
    (log, account, root, blocks)
}

impl World {
    pub(super) async fn fetch_any(&self) -> Result<FetchedContent, FetchFailure> {
        let url = self.server.url("");
        match self.fetcher.fetch(self.did.clone(), Vec::new(), &url).await {
            Ok(Input::Fetched(fetched)) => Ok(fetched.content),
            Ok(Input::FetchFailed { failure, .. }) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    fn kept_bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let scanned = self
            .store
            .scan(Family::BlobData, &KeyRange::all(), &mut |_, value| {
                all.extend_from_slice(value);
                std::ops::ControlFlow::Continue(())
            });
        scanned.expect("scans");
        all
    }

    fn read_back(&self, car: &KeptCar) -> Vec<u8> {
        let mut all = Vec::new();
        let read = Mirror::new(&*self.store).car_chunks(car, |chunk| {
            all.extend_from_slice(chunk);
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(read, Ok(car.bytes));
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_does_not_rebuild_is_kept_byte_for_byte() {
    let (log, account, root, blocks) = lax();
    let sent = car(root, &blocks);
    let world = World::new(&log, sent.clone(), &signing_key(10)).await;
    let FetchedContent::Kept {
        car,
        repo,
        reason,
        blobs,
    } = world.fetch_any().await.expect("kept")
    else {
        panic!("not kept");
    };
    assert!(reason.contains("tree"), "{reason}");
    assert_eq!((car.rev, car.commit), (account.rev(), root));
    assert_eq!((repo.rev(), repo.cid(), repo.records()), (account.rev(), root, 3));
    assert_eq!(car.sha256, crate::types::cid::sha256(&sent));
    assert!(!car.archived);
    assert_eq!(world.read_back(&car), sent);
    assert_eq!(world.loaded_records(), 0, "nothing of it counts as a record");
    let digests: Vec<_> = blobs.iter().map(|blob| blob.digest).collect();
    assert_eq!(digests, [*Cid::of_blob(b"picture").digest()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forged_or_not_all_there_is_never_kept() {
    let (log, account, root, blocks) = lax();
    let world = World::new(&log, car(root, &blocks), &signing_key(10)).await;
    let without = |index: usize| {
        let mut fewer = blocks.clone();
        fewer.remove(index);
        car(root, &fewer)
    };
    let mut flipped = car(root, &blocks);
    let text = flipped
        .windows(5)
        .position(|bytes| bytes == b"third")
        .expect("there");
    flipped[text] ^= 1;
    // A record where the root of the tree should be; a tree that lies in the future; another account's.
    let (record, bytes) = blocks[1].clone();
    let (no_tree, commit) = account.sign_over(account.rev(), record);
    let no_tree = car(no_tree, &[(record, bytes), (no_tree, commit)]);
    let (future_root, future) = account.lax_blocks(crate::types::Rev::from_time(NOW.plus(HOUR), 0));
    let (other_root, other) = SimAccount::new(77, NOW.minus(HOUR)).lax_blocks(account.rev());
    let mut foreign = account.clone();
    foreign.rotate_key(66);
    let (foreign_root, foreign) = foreign.lax_blocks(account.rev());
    let cases = [
        (without(0), "missing"),
        (without(2), "missing"),
        (without(blocks.len() - 1), "commit_missing"),
        (flipped, "do not match its CID"),
        (no_tree, "cannot be read as a node"),
        (car(future_root, &future), "future_rev"),
        (car(other_root, &other), "did_mismatch"),
        (car(foreign_root, &foreign), "bad_signature"),
    ];
    for (index, (sent, why)) in cases.into_iter().enumerate() {
        world.set(|answers| answers.car = sent);
        let failure = world.fetch_any().await.map(|content| format!("{content:?}"));
        let Err(FetchFailure::Unproven(text)) = failure else {
            panic!("case {index}: {failure:?}");
        };
        assert!(text.contains(why), "case {index}: {text}");
        assert_eq!(
            (world.kept_bytes().len(), world.loaded_records()),
            (0, 0),
            "case {index}"
        );
    }
    world.set(|answers| answers.car = car(root, &blocks));
    assert!(world.fetch_any().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_one_is_kept_from_its_file_and_one_too_large_is_not() {
    let (log, mut account) = account(&[10], 10);
    let big = "x".repeat(900_000);
    for number in 0..12 {
        let path = format!("app.bsky.feed.post/{number}");
        account.commit(
            0,
            &[(path, Some(post(&format!("{number}{big}"))))],
            NOW.minus(HOUR),
        );
    }
    let (root, blocks) = account.lax_blocks(account.rev());
    let sent = car(root, &blocks);
    assert!(sent.len() > crate::mirror::spool::SPOOL_MEMORY_BYTES_MAX);
    let mut world = World::new(&log, sent.clone(), &signing_key(10)).await;
    world.fetcher.kept_car_bytes_max = sent.len() as u64 - 1;
    let Err(FetchFailure::Unproven(text)) = world.fetch_any().await else {
        panic!("kept");
    };
    assert!(text.contains("are more than"), "{text}");
    assert!(world.kept_bytes().is_empty());

    world.fetcher.kept_car_bytes_max += 1;
    let Ok(FetchedContent::Kept { car, .. }) = world.fetch_any().await else {
        panic!("not kept");
    };
    assert!(world.read_back(&car) == sent, "not what came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_already_is_not_fetched_again() {
    let (log, _, root, blocks) = lax();
    let world = World::new(&log, car(root, &blocks), &signing_key(10)).await;
    let Ok(FetchedContent::Kept { car, .. }) = world.fetch_any().await else {
        panic!("not kept");
    };
    let host: HostName = world.server.address.to_string().parse().expect("a host");
    let mut row = AccountRow::new(1, host, NOW);
    row.sync = SyncState::Quarantined {
        reason: String::new(),
        since: NOW,
        rev: Some(car.rev),
        commit: Some(root),
        tries: 0,
        tried_at: None,
        next_try: None,
    };
    row.kept_car = Some(car);
    let mut batch = Batch::new();
    batch.put(
        Family::Accounts,
        keyspace::encode_account(&world.did),
        row.encode(),
    );
    world.store.write(batch).expect("writes");
    world.set(|answers| {
        answers.latest = Some(root);
        answers.car = Vec::new();
    });
    let content = world.fetch_any().await.expect("compared");
    assert!(matches!(content, FetchedContent::Unchanged { commit } if commit == root));
    // Another head is fetched: here there is nothing to be had.
    world.set(|answers| answers.latest = Some(Cid::of_block(b"another")));
    assert!(world.fetch_any().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_behind_ours_is_kept_as_it_came_unless_it_is_too_large() {
    let (log, account, ..) = lax();
    let sent = account.export();
    let mut world = World::new(&log, sent.clone(), &signing_key(10)).await;
    // Ours went on: the same rev with another commit, or a later rev.
    let forked = (account.rev(), Cid::of_block(b"another commit"));
    let later = (
        crate::types::Rev::from_time(NOW.plus(HOUR), 0),
        Cid::of_block(b"a later commit"),
    );
    for (rev, commit) in [forked, later] {
        let host: HostName = world.server.address.to_string().parse().expect("a host");
        let mut row = AccountRow::new(1, host, NOW);
        row.head = Some(crate::mirror::rows::Head {
            rev,
            commit,
            commit_block: Vec::new(),
            data: Cid::of_block(b"a tree"),
        });
        row.sync = SyncState::Diverged {
            since: NOW,
            theirs: account.rev(),
            heard: None,
            tried_at: None,
            next_try: None,
        };
        let mut batch = Batch::new();
        let key = keyspace::encode_account(&world.did);
        batch.put(Family::Accounts, key.clone(), row.encode());
        world.store.write(batch).expect("writes");
        world.set(|answers| answers.latest = Some(account.head()));

        world.fetcher.kept_car_bytes_max = sent.len() as u64 - 1;
        let Ok(FetchedContent::Behind { car: None, .. }) = world.fetch_any().await else {
            panic!("kept, or loaded");
        };
        assert!(world.kept_bytes().is_empty());
        world.fetcher.kept_car_bytes_max += 1;
        let Ok(FetchedContent::Behind {
            car: Some(car), repo, ..
        }) = world.fetch_any().await
        else {
            panic!("not kept");
        };
        assert_eq!((car.rev, car.commit), (repo.rev(), account.head()));
        assert_eq!(world.read_back(&car), sent);
        assert_eq!(world.loaded_records(), 0, "nothing of it counts as a record");

        // Once it is kept it is known, and not fetched again.
        row.kept_car = Some(car);
        let mut batch = Batch::new();
        batch.put(Family::Accounts, key, row.encode());
        world.store.write(batch).expect("writes");
        let content = world.fetch_any().await.expect("compared");
        assert!(matches!(content, FetchedContent::Unchanged { commit } if commit == account.head()));
        let sinces = world
            .answers
            .lock()
            .expect("no test panics with it")
            .sinces
            .clone();
        assert!(sinces.is_empty(), "what is behind is no catching up");
        let mut batch = Batch::new();
        let (from, to) = keyspace::number_bounds(row.kept_car.expect("kept").number);
        batch.delete_range(Family::BlobData, from, to);
        world.store.write(batch).expect("deletes");
    }
}
