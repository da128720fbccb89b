//! What waits for a host that failed, blobs that nobody misses any more, and what is kept of mass deletions.

use super::tests::{ASKED, NOW, World, delete, write};
use super::*;
use crate::mirror::input::{BlobKey, FetchFailure};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{BlobFailure, BlobRow, BlobState, PinReason};
use crate::sim::SimAccount;
use crate::sim::account::{Write, post_with_blob};
use crate::types::Cid;

const HOUR: Duration = Duration::from_secs(3600);

fn with_blob(rkey: &str, bytes: &[u8]) -> Write {
    let post = post_with_blob("picture", &Cid::of_blob(bytes), 3);
    (format!("app.bsky.feed.post/{rkey}"), Some(post))
}

fn key(world: &World, account: &SimAccount, bytes: &[u8]) -> BlobKey {
    BlobKey {
        did: account.did().clone(),
        did_number: world.row(account.did()).expect("known").did_number,
        digest: *Cid::of_blob(bytes).digest(),
    }
}

fn blob_row(world: &World, blob: &BlobKey) -> BlobRow {
    let row = Mirror::new(&*world.store).blob(blob.did_number, &blob.digest);
    row.expect("reads").expect("known")
}

/// When a task is due, and its key.
fn due(world: &World, task: &Task) -> Vec<Timestamp> {
    let tasks = Mirror::new(&*world.store)
        .due_tasks(u64::MAX - 1, 1000)
        .expect("reads");
    let mine = tasks.into_iter().filter(|due| due.task == *task);
    mine.map(|due| Timestamp::from_micros(due.due_ms * 1000))
        .collect()
}

fn failed_fetch(world: &World, account: &SimAccount) -> Input {
    Input::FetchFailed {
        did: account.did().clone(),
        host: world.row(account.did()).expect("known").host,
        failure: FetchFailure::Unreachable("connection refused".to_owned()),
        asked_at: ASKED,
        task: world.fetch_task(account.did()),
        retry_at: NOW.plus(HOUR),
    }
}

/// A blob that could not be had; its next try is in an hour.
fn failed_blob(blob: &BlobKey, failure: BlobFailure) -> Input {
    let task = Task::FetchBlob(blob.did.clone(), blob.digest);
    Input::BlobFailed {
        blob: blob.clone(),
        failure,
        task: keyspace::encode_task(NOW.millis(), &task),
        retry_at: NOW.plus(HOUR),
    }
}

/// An account that has to be fetched, and could not be.
fn failing(world: &mut World, number: u64) -> SimAccount {
    let mut account = world.live(number);
    account.commit(0, &[write("lost", "x")], NOW);
    world.commit(&mut account, &[write("b", "y")]);
    let failed = failed_fetch(world, &account);
    world.apply(failed);
    account
}

fn tries(world: &World, account: &SimAccount) -> u32 {
    match world.row(account.did()).expect("known").sync {
        SyncState::Wanted { tries, .. } => tries,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waits_for_a_host_is_tried_at_once_when_it_is_there_again() {
    let mut world = World::new();
    let account = failing(&mut world, 1);
    let fetch = Task::FetchRepo(account.did().clone());
    assert_eq!(
        (due(&world, &fetch), tries(&world, &account)),
        (vec![NOW.plus(HOUR)], 1)
    );
    let other: HostName = "other.test".parse().expect("valid");
    world
        .applier
        .ensure_host(&other, "https://other.test")
        .expect("writes");
    world.apply(Input::Connected { host: other });
    assert_eq!(due(&world, &fetch), [NOW.plus(HOUR)], "another host is no reason");
    let connected = Input::Connected {
        host: world.host.clone(),
    };
    world.apply(connected);
    assert_eq!((due(&world, &fetch), tries(&world, &account)), (vec![NOW], 0));

    // A connection that comes and goes does not make us hammer.
    let failed = failed_fetch(&world, &account);
    world.apply(failed);
    let again = |world: &mut World, at: Timestamp| {
        let host = world.host.clone();
        world
            .applier
            .apply(vec![Input::Connected { host }], at)
            .expect("applies");
    };
    again(&mut world, NOW.plus(Duration::from_secs(59)));
    assert_eq!(due(&world, &fetch), [NOW.plus(HOUR)]);
    again(&mut world, NOW.plus(Duration::from_secs(60)));
    assert_eq!(due(&world, &fetch), [NOW.plus(Duration::from_secs(60))]);
}

#[test]
fn only_blobs_that_the_host_could_not_give_are_tried_at_once() {
    let mut world = World::new();
    let mut account = world.live(1);
    let writes = [
        with_blob("p1", b"away"),
        with_blob("p2", b"gone"),
        with_blob("p3", b"error"),
    ];
    world.commit(&mut account, &writes);
    let (away, gone, error) = (
        key(&world, &account, b"away"),
        key(&world, &account, b"gone"),
        key(&world, &account, b"error"),
    );
    // Once each: still wanted; five times: missing.
    world.apply(failed_blob(&away, BlobFailure::Unreachable));
    world.apply(failed_blob(&gone, BlobFailure::NotFound));
    for _ in 0..5 {
        world.apply(failed_blob(&error, BlobFailure::HostError));
    }
    assert_eq!(blob_row(&world, &away).state, BlobState::Wanted);
    assert!(matches!(
        blob_row(&world, &error).state,
        BlobState::Missing { .. }
    ));
    let connected = Input::Connected {
        host: world.host.clone(),
    };
    world.apply(connected);
    let when = |blob: &BlobKey| due(&world, &Task::FetchBlob(blob.did.clone(), blob.digest));
    assert_eq!((when(&away), when(&error)), (vec![NOW], vec![NOW]));
    assert_eq!(when(&gone), [NOW.plus(HOUR)]);
    assert_eq!(
        (blob_row(&world, &error).tries, blob_row(&world, &gone).tries),
        (0, 1)
    );
}

#[test]
fn a_blob_that_cannot_be_had_is_told_once_for_each_reason() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[with_blob("p1", b"one")]);
    let blob = key(&world, &account, b"one");
    let told = |world: &mut World, failure| {
        let notes = world.apply(failed_blob(&blob, failure));
        let mine = notes
            .iter()
            .filter(|note| matches!(note, Note::BlobMissing { .. }));
        mine.count()
    };
    let passing: Vec<_> = (0..6)
        .map(|_| told(&mut world, BlobFailure::Unreachable))
        .collect();
    assert_eq!(passing, [0, 0, 0, 0, 1, 0], "when it counts as missing");
    assert_eq!(told(&mut world, BlobFailure::NotFound), 1, "another reason");
    assert_eq!(told(&mut world, BlobFailure::NotFound), 0);
    world.commit(&mut account, &[delete("p1")]);
    assert_eq!(told(&mut world, BlobFailure::NotFound), 0, "nobody misses it");
}

#[test]
fn a_missing_blob_is_withdrawn_with_its_last_reference() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[with_blob("p1", b"one"), with_blob("p2", b"one")]);
    let blob = key(&world, &account, b"one");
    world.apply(failed_blob(&blob, BlobFailure::NotFound));
    let is_missing = |world: &World| matches!(blob_row(world, &blob).state, BlobState::Missing { .. });
    world.commit(&mut account, &[delete("p1")]);
    assert!(is_missing(&world), "another record refers to it");
    // Replaced in one commit by another record that refers to it.
    world.commit(&mut account, &[delete("p2"), with_blob("p3", b"one")]);
    assert_eq!(
        blob_row(&world, &blob).state,
        BlobState::Wanted,
        "a new record asks for it anew"
    );
    world.apply(failed_blob(&blob, BlobFailure::NotFound));
    assert!(is_missing(&world));
    world.commit(&mut account, &[delete("p3")]);
    assert_eq!(blob_row(&world, &blob).state, BlobState::Withdrawn);

    // A record and its deletion in one batch.
    let seq = world.seq();
    let add = account.commit(seq, &[with_blob("p4", b"one")], NOW);
    let added = world.event(add);
    world.apply(added);
    world.apply(failed_blob(&blob, BlobFailure::NotFound));
    let seq = world.seq();
    let second = account.commit(seq, &[with_blob("p5", b"one")], NOW);
    let seq = world.seq();
    let third = account.commit(seq, &[delete("p4"), delete("p5")], NOW);
    let both = vec![world.event(second), world.event(third)];
    world.applier.apply(both, NOW).expect("applies");
    assert!(!is_missing(&world));
    let row = world.row(account.did()).expect("known");
    assert!(
        !Mirror::new(&*world.store)
            .blob_is_referenced(row.account_number, &blob.digest)
            .expect("reads")
    );
}

#[test]
fn a_swap_withdraws_what_it_no_longer_mentions() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[with_blob("p1", b"one"), with_blob("p2", b"two")]);
    let (one, two) = (key(&world, &account, b"one"), key(&world, &account, b"two"));
    for blob in [&one, &two] {
        world.apply(failed_blob(blob, BlobFailure::NotFound));
    }
    account.commit(0, &[delete("p1")], NOW);
    world.commit(&mut account, &[write("x", "chain broken")]);
    world.fetch(&account);
    world.check_equal(&account);
    assert_eq!(blob_row(&world, &one).state, BlobState::Withdrawn);
    assert_eq!(blob_row(&world, &two).state, BlobState::Wanted);
}

/// Writes two hundred records, then deletes some of them, so long after the beginning.
fn wave(world: &mut World, account: &mut SimAccount, name: &str, deleted: u64, after: Duration) {
    let path = |number: u64| format!("{name}{number}");
    for from in [0, 100] {
        let writes: Vec<_> = (from..from + 100)
            .map(|number| write(&path(number), "x"))
            .collect();
        world.commit(account, &writes);
    }
    let deletes: Vec<_> = (0..deleted).map(|number| delete(&path(number))).collect();
    let seq = world.seq();
    let event = account.commit(seq, &deletes, NOW);
    let event = world.event(event);
    world
        .applier
        .apply(vec![event], NOW.plus(after))
        .expect("applies");
}

fn mass_pins(world: &World, account: &SimAccount) -> usize {
    let row = world.row(account.did()).expect("known");
    let mine = row.pins.iter().filter(|pin| pin.reason == PinReason::MassDelete);
    mine.inspect(|pin| assert_eq!((pin.generation, pin.snapshot), (None, row.snapshot)))
        .count()
}

#[test]
fn each_mass_deletion_pins_the_snapshot_of_before_up_to_a_bound() {
    let mut world = World::new();
    let mut account = world.live(1);
    let day = HOUR * 25;
    let mut pins = Vec::new();
    for number in 0..6 {
        // All of the two hundred: the rest is one record.
        wave(
            &mut world,
            &mut account,
            &format!("w{number}x"),
            200,
            day * number,
        );
        pins.push(mass_pins(&world, &account));
        world.check_equal(&account);
    }
    assert_eq!(pins, [1, 2, 3, 4, 4, 4], "the oldest ones stay");
}

#[test]
fn few_deletions_or_a_small_share_or_many_days_pin_nothing() {
    let mut world = World::new();
    let mut account = world.live(1);
    // 99 of 201, and three hours later one more: a hundred, of 201 less than half.
    wave(&mut world, &mut account, "a", 99, Duration::ZERO);
    assert_eq!(mass_pins(&world, &account), 0, "99 are not many");
    world.commit(&mut account, &[delete("a150")]);
    assert_eq!(mass_pins(&world, &account), 0, "100 of 201 are less than half");
    world.commit(&mut account, &[delete("a151")]);
    assert_eq!(mass_pins(&world, &account), 1, "101 are half of 201");

    // The same in two halves, more than a day apart.
    let mut account = world.live(2);
    wave(&mut world, &mut account, "b", 90, Duration::ZERO);
    let seq = world.seq();
    let deletes: Vec<_> = (100..150).map(|number| delete(&format!("b{number}"))).collect();
    let event = account.commit(seq, &deletes, NOW);
    let event = world.event(event);
    world
        .applier
        .apply(vec![event], NOW.plus(HOUR * 25))
        .expect("applies");
    assert_eq!(mass_pins(&world, &account), 0);
}
