//! What is erased is nowhere, and does not come back, whatever its host goes on to say.

use super::tests::{NOW, World};
use super::*;
use crate::archive::log_cut::next_segment;
use crate::mirror::erased::ErasedMark;
use crate::mirror::input::{BlobKey, Erase};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{BlobState, LogRow};
use crate::repo::export::prove;
use crate::sim::SimAccount;
use crate::sim::account::{Write, post, post_with_blob};
use crate::types::{AccountStatus, Cid};

/// A text that stands in no other record.
const SECRET: &str = "a secret that must not stay";

fn write(rkey: &str, record: Vec<u8>) -> Write {
    (format!("app.bsky.feed.post/{rkey}"), Some(record))
}

fn erase(account: &SimAccount) -> Erase {
    Erase {
        did: account.did().clone(),
        whole: false,
        lasting: true,
        records: Vec::new(),
        blobs: Vec::new(),
        kept_car: false,
    }
}

/// Families in which the bytes stand anywhere.
fn found(world: &World, bytes: &[u8]) -> Vec<Family> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let visit = &mut |_: &[u8], value: &[u8]| {
            if value.windows(bytes.len()).any(|window| window == bytes) {
                found.push(family);
            }
            ControlFlow::Continue(())
        };
        crate::mirror::store::View::scan(&*world.store, family, &KeyRange::all(), visit).expect("reads");
    }
    found.dedup();
    found
}

/// The running totals are those that a restart would count.
fn check_totals(world: &World) {
    let mut counted = super::totals::count(&*world.store).expect("reads");
    let mut running = world.applier.totals().clone();
    for totals in [&mut counted, &mut running] {
        totals.sync.retain(|_, count| *count > 0);
        totals.blobs.retain(|_, count| *count > 0);
    }
    assert_eq!(counted, running);
}

/// What the next segment holds of the account's records.
fn shipped_blocks(world: &World) -> Vec<u8> {
    let log = LogRow {
        generation: 1,
        number: 1,
        ..LogRow::default()
    };
    let segment = next_segment(&Mirror::new(&*world.store), &log).expect("reads");
    segment.map_or_else(Vec::new, |segment| segment.file.encode_car())
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The mirror's own export, and how many records it says that it has.
fn export(world: &World, account: &SimAccount) -> (Vec<u8>, u64) {
    let row = world.row(account.did()).expect("known");
    let head = row.head.expect("held");
    let mirror = Mirror::new(&*world.store);
    let rows = mirror.rows(row.account_number);
    let proven = prove(&rows, head.data).expect("it proves");
    let mut out = Vec::new();
    let stats = proven
        .write_car(&rows, head.commit, &head.commit_block, &mut out)
        .expect("writes");
    assert_eq!(stats.bytes, out.len() as u64);
    assert_eq!(
        proven.car_bytes(head.commit_block.len()),
        stats.bytes,
        "the length that is announced"
    );
    (out, proven.records())
}

#[test]
fn an_erased_record_keeps_its_place_and_nothing_else() {
    let mut world = World::new();
    let mut account = world.live(1);
    let secret = post(SECRET);
    world.commit(
        &mut account,
        &[write("a", post("one")), write("s", secret.clone())],
    );
    assert_eq!(
        found(&world, SECRET.as_bytes()),
        [Family::Records, Family::Journal]
    );
    let records = world.row(account.did()).expect("known").records;
    world.apply(Input::Erase(Box::new(Erase {
        records: vec![Cid::of_block(&secret)],
        ..erase(&account)
    })));
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    assert_eq!(
        world.row(account.did()).expect("known").erased,
        Some(ErasedMark::Parts)
    );
    let (car, held) = export(&world, &account);
    assert!(!contains(&car, SECRET) && contains(&car, "one"));
    assert_eq!(held, records, "its place is proven");
    let segment = shipped_blocks(&world);
    assert!(!contains(&segment, SECRET) && contains(&segment, "one"));

    // The account goes on: other commits, the same record at another place, and at last its deletion.
    world.commit(
        &mut account,
        &[write("b", post("two")), write("t", secret.clone())],
    );
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    let (car, _) = export(&world, &account);
    assert!(contains(&car, "two") && !contains(&car, SECRET));
    world.commit(&mut account, &[("app.bsky.feed.post/s".to_owned(), None)]);
    world.commit(&mut account, &[("app.bsky.feed.post/t".to_owned(), None)]);
    world.check_equal(&account);
}

#[test]
fn a_record_that_is_still_live_upstream_is_kept_out_of_every_fetch() {
    let mut world = World::new();
    let mut account = world.live(1);
    let secret = post(SECRET);
    world.commit(&mut account, &[write("s", secret.clone())]);
    world.want_again(account.did());
    // Loaded before it is erased, and swapped in behind it.
    let loaded = world.load(&account);
    assert_eq!(
        found(&world, SECRET.as_bytes()),
        [Family::Records, Family::Journal]
    );
    world.apply(Input::Erase(Box::new(Erase {
        records: vec![Cid::of_block(&secret)],
        ..erase(&account)
    })));
    world.apply(loaded);
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    let (car, _) = export(&world, &account);
    assert!(!contains(&car, SECRET));
    // With more that came meanwhile, so that the swap is told to the log.
    account.commit(99, &[write("n", post("meanwhile"))], NOW);
    world.want_again(account.did());
    world.fetch(&account);
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    assert!(contains(&export(&world, &account).0, "meanwhile"));
    assert!(!contains(&shipped_blocks(&world), SECRET));
}

#[test]
fn no_frame_of_such_an_account_waits_with_its_bytes() {
    let mut world = World::new();
    let mut account = world.live(1);
    let secret = post(SECRET);
    world.apply(Input::Erase(Box::new(Erase {
        records: vec![Cid::of_block(&secret)],
        ..erase(&account)
    })));
    world.want_again(account.did());
    world.commit(&mut account, &[write("s", secret)]);
    let row = world.row(account.did()).expect("known");
    assert_eq!(
        (row.parked, row.min_rev),
        (0, Some(account.rev())),
        "it is fetched up to there instead"
    );
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    world.fetch(&account);
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    assert_eq!(
        world
            .row(account.did())
            .and_then(|row| row.head)
            .map(|head| head.rev),
        Some(account.rev())
    );
}

#[test]
fn an_erased_blob_is_not_taken_again() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(
        &mut account,
        &[write("p", post_with_blob("picture", &Cid::of_blob(b"one"), 3))],
    );
    let blob = BlobKey {
        did: account.did().clone(),
        did_number: world.row(account.did()).expect("known").did_number,
        digest: *Cid::of_blob(b"one").digest(),
    };
    let state = |world: &World| {
        let row = Mirror::new(&*world.store).blob(blob.did_number, &blob.digest);
        row.expect("reads").expect("known").state
    };
    let put = |world: &World| {
        let mut batch = crate::mirror::store::Batch::new();
        batch.put(
            Family::BlobData,
            keyspace::encode_blob_data(blob.did_number, &blob.digest, 0),
            SECRET.as_bytes(),
        );
        world.store.write(batch).expect("writes");
    };
    let stored = || Input::BlobStored {
        blob: blob.clone(),
        size: 3,
        mime: None,
        task: Vec::new(),
    };
    put(&world);
    world.apply(stored());
    assert_eq!(
        (state(&world), found(&world, SECRET.as_bytes()).len()),
        (BlobState::Held, 1)
    );
    world.apply(Input::Erase(Box::new(Erase {
        blobs: vec![blob.digest],
        ..erase(&account)
    })));
    assert_eq!(
        (state(&world), found(&world, SECRET.as_bytes())),
        (BlobState::Erased, vec![])
    );
    // One that was being fetched comes after all; another record refers to it; the host lists it; a fetch fails.
    put(&world);
    world.apply(stored());
    assert_eq!(
        (state(&world), found(&world, SECRET.as_bytes())),
        (BlobState::Erased, vec![])
    );
    world.commit(
        &mut account,
        &[write("q", post_with_blob("again", &Cid::of_blob(b"one"), 3))],
    );
    world.apply(Input::BlobsListed {
        did: account.did().clone(),
        digests: vec![blob.digest],
        complete: None,
    });
    world.apply(Input::BlobFailed {
        blob: blob.clone(),
        failure: crate::mirror::rows::BlobFailure::NotFound,
        task: Vec::new(),
        retry_at: NOW,
    });
    assert_eq!(state(&world), BlobState::Erased);
    check_totals(&world);
}

/// A mirror that is linked to an archive with notes learns of them before it knows the accounts.
#[test]
fn what_was_erased_before_the_account_was_known_is_kept_out_too() {
    let mut world = World::new();
    let mut account = SimAccount::new(1, NOW);
    let (secret, picture) = (post(SECRET), Cid::of_blob(b"one"));
    for (number, record) in [
        secret.clone(),
        post_with_blob("picture", &picture, 3),
        post("other"),
    ]
    .into_iter()
    .enumerate()
    {
        account.commit(number as u64 + 1, &[write(&format!("k{number}"), record)], NOW);
    }
    world.apply(Input::Erase(Box::new(Erase {
        records: vec![Cid::of_block(&secret)],
        blobs: vec![*picture.digest()],
        ..erase(&account)
    })));
    assert_eq!(world.row(account.did()), None);
    let seq = world.seq();
    let frame = account.commit(seq, &[write("again", secret)], NOW);
    world.frame(frame);
    assert_eq!(
        world.row(account.did()).and_then(|row| row.erased),
        Some(ErasedMark::Parts)
    );
    world.fetch(&account);
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    assert!(contains(&export(&world, &account).0, "other"));
    let number = world.row(account.did()).expect("known").did_number;
    let blob = Mirror::new(&*world.store)
        .blob(number, picture.digest())
        .expect("reads");
    assert_eq!(blob.map(|row| row.state), Some(BlobState::Erased));
    assert!(
        !world
            .tasks()
            .contains(&Task::FetchBlob(account.did().clone(), *picture.digest()))
    );
}

#[test]
fn an_erased_account_is_gone_and_nothing_of_it_is_taken() {
    let mut world = World::new();
    let (mut account, other) = (world.live(1), world.live(2));
    world.commit(&mut account, &[write("s", post(SECRET))]);
    world.apply(Input::Erase(Box::new(Erase {
        whole: true,
        ..erase(&account)
    })));
    let gone = |world: &World| {
        let row = world.row(account.did()).expect("its row stays");
        assert_eq!((row.head, row.account_number, row.records), (None, 0, 0));
        assert_eq!(found(world, SECRET.as_bytes()), []);
    };
    gone(&world);
    let did = account.did().clone();
    let seq = world.seq();
    let frame = account.commit(seq, &[write("t", post(SECRET))], NOW);
    world.frame(frame);
    let loaded = world.load(&account);
    world.apply(loaded);
    let row = world.row(&did).expect("its row stays");
    assert_eq!(
        (row.head, found(&world, SECRET.as_bytes()), row.parked),
        (None, vec![], 0)
    );
    assert!(
        !world.tasks().contains(&Task::FetchRepo(did.clone())),
        "{:?}",
        world.tasks()
    );
    // What the log has still to tell keeps its number, without the record.
    assert!(!shipped_blocks(&world).is_empty());
    assert!(!contains(&shipped_blocks(&world), SECRET));
    world.check_equal(&other);
    check_totals(&world);
}

#[test]
fn an_account_that_was_deleted_for_long_may_come_back() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[write("s", post(SECRET))]);
    let did = account.did().clone();
    let mut row = world.row(&did).expect("known");
    let gone = || {
        Input::Erase(Box::new(Erase {
            whole: true,
            lasting: false,
            ..erase(&account)
        }))
    };
    // It is not deleted, or not any more; somebody has it pinned: nothing of it goes.
    let pin = crate::mirror::rows::Pin {
        generation: None,
        head: None,
        snapshot: None,
        since: NOW,
        reason: crate::mirror::rows::PinReason::MassTakedown,
    };
    for (upstream, confirmed, pins) in [
        (AccountStatus::Active, None, vec![]),
        (AccountStatus::Active, Some(NOW), vec![]),
        (AccountStatus::Deleted, None, vec![]),
        (AccountStatus::Deleted, Some(NOW), vec![pin]),
    ] {
        (row.upstream, row.deletion_confirmed_at, row.pins) = (upstream, confirmed, pins);
        world.put_row(&did, &row);
        world.apply(gone());
        assert_eq!(world.row(&did), Some(row.clone()));
        world.check_equal(&account);
    }
    (row.upstream, row.deletion_confirmed_at) = (AccountStatus::Deleted, Some(NOW));
    row.pins.clear();
    row.identity_archived = Some([1; 32]);
    world.put_row(&did, &row);
    world.apply(gone());
    assert_eq!(found(&world, SECRET.as_bytes()), []);
    let mut row = world.row(&did).expect("known");
    assert_eq!((row.erased, row.head.is_none()), (None, true));
    assert_eq!(
        row.identity_archived, None,
        "it is archived again when it comes back"
    );
    row.upstream = AccountStatus::Active;
    world.put_row(&did, &row);
    world.want_again(&did);
    world.fetch(&account);
    world.check_equal(&account);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one blob, and everything that holds it")]
fn a_blob_is_dropped_only_while_nothing_refers_to_it() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(
        &mut account,
        &[write("p", post_with_blob("picture", &Cid::of_blob(b"one"), 3))],
    );
    let blob = BlobKey {
        did: account.did().clone(),
        did_number: world.row(account.did()).expect("known").did_number,
        digest: *Cid::of_blob(b"one").digest(),
    };
    world.apply(Input::BlobStored {
        blob: blob.clone(),
        size: 3,
        mime: None,
        task: Vec::new(),
    });
    world.apply(Input::BlobArchived {
        blob: blob.clone(),
        task: Vec::new(),
    });
    let state = |world: &World| {
        let row = Mirror::new(&*world.store).blob(blob.did_number, &blob.digest);
        row.expect("reads").expect("known").state
    };
    let later = |seconds| NOW.plus(std::time::Duration::from_secs(seconds));
    let listed = |digests: Vec<_>, complete| Input::BlobsListed {
        did: account.did().clone(),
        digests,
        complete,
    };
    let (without, with) = (
        listed(Vec::new(), Some(later(600))),
        listed(vec![blob.digest], None),
    );
    let drop_it = |world: &mut World, before| {
        let blob = blob.clone();
        world.apply(Input::BlobDropped { blob, before });
    };
    world.apply(without);
    drop_it(&mut world, later(900));
    assert_eq!(state(&world), BlobState::Archived, "a record refers to it");
    world.commit(&mut account, &[("app.bsky.feed.post/p".to_owned(), None)]);
    drop_it(&mut world, NOW);
    assert_eq!(
        state(&world),
        BlobState::Archived,
        "it was needed since it was looked for"
    );
    let row = |world: &World| world.row(&blob.did).expect("known");
    let change = |world: &mut World, change: &dyn Fn(&mut crate::mirror::rows::AccountRow)| {
        let mut changed = row(world);
        change(&mut changed);
        world.put_row(&blob.did, &changed);
    };
    change(&mut world, &|row| row.blobs_listed_at = Some(NOW));
    drop_it(&mut world, later(900));
    assert_eq!(
        state(&world),
        BlobState::Archived,
        "its host did not say since that it is gone"
    );
    change(&mut world, &|row| row.blobs_listed_at = None);
    drop_it(&mut world, later(900));
    assert_eq!(state(&world), BlobState::Archived, "its host was never asked");
    change(&mut world, &|row| row.blobs_listed_at = Some(later(600)));
    change(&mut world, &|row| {
        row.kept_car = Some(crate::mirror::rows::KeptCar {
            number: 99,
            rev: row.head.as_ref().expect("held").rev,
            commit: Cid::of_block(b"kept"),
            bytes: 1,
            sha256: [0; 32],
            since: NOW,
            archived: true,
            damaged: false,
        });
    });
    drop_it(&mut world, later(900));
    assert_eq!(
        state(&world),
        BlobState::Archived,
        "what is kept as it came may refer to it"
    );
    change(&mut world, &|row| row.kept_car = None);
    world.applier.apply(vec![with], later(700)).expect("applies");
    drop_it(&mut world, later(900));
    assert_eq!(state(&world), BlobState::Archived, "its host lists it");
    change(&mut world, &|row| row.blobs_listed_at = Some(later(800)));
    drop_it(&mut world, later(900));
    assert_eq!(state(&world), BlobState::Withdrawn);
    // It is fetched again when a record does.
    world.commit(
        &mut account,
        &[write("q", post_with_blob("again", &Cid::of_blob(b"one"), 3))],
    );
    assert_eq!(state(&world), BlobState::Wanted);
    assert!(
        world
            .tasks()
            .contains(&Task::FetchBlob(blob.did.clone(), blob.digest))
    );
}
