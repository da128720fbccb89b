//! Accounts whose host is lax: what is kept of them beside the last good copy, and how they get well again.

use std::time::Duration;

use super::super::tests::{NOW, World, write};
use super::*;
use crate::mirror::input::{FetchFailure, Fetched, FetchedContent, Input};
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Batch, KeyRange, Store as _, View as _};
use crate::sim::SimAccount;
use crate::types::{Cid, Digest};
use crate::verify::check_lax_repo;

const MINUTE: u64 = 60_000;

impl World {
    /// What a fetch brings of a lax host that has this account's records, with their CAR in the store.
    fn lax(&mut self, account: &SimAccount, number: u64) -> Vec<Note> {
        self.lax_of(account, number, 7)
    }

    /// The same, with a CAR that is said to be so large.
    fn lax_of(&mut self, account: &SimAccount, number: u64, size: u64) -> Vec<Note> {
        let (root, blocks) = account.lax_blocks(account.rev());
        let blocks: std::collections::BTreeMap<Digest, Vec<u8>> = blocks
            .into_iter()
            .map(|(cid, bytes)| (*cid.digest(), bytes))
            .collect();
        let visit = |_, _: &[u8]| Ok::<(), std::convert::Infallible>(());
        let repo = check_lax_repo(&blocks, root, account.did(), &account.key(), NOW, visit);
        let repo = repo.expect("all there");
        let mut batch = Batch::new();
        let key = keyspace::encode_blob_data(number, root.digest(), 0);
        batch.put(Family::BlobData, key, b"the CAR");
        self.store.write(batch).expect("writes");
        let car = KeptCar {
            number,
            rev: repo.rev(),
            commit: root,
            bytes: size,
            sha256: crate::types::cid::sha256(b"the CAR"),
            since: NOW,
            archived: false,
            damaged: false,
        };
        let content = FetchedContent::Kept {
            car,
            repo,
            reason: "a key of layer 0 in a node of layer 3".to_owned(),
            blobs: vec![BlobMention {
                digest: *Cid::of_blob(b"picture").digest(),
                mime: None,
                size: None,
            }],
        };
        let fetched = self.fetched(account, content);
        self.apply(fetched)
    }

    fn fetched(&self, account: &SimAccount, content: FetchedContent) -> Input {
        Input::Fetched(Box::new(Fetched {
            did: account.did().clone(),
            from_number: self.row(account.did()).map_or(0, |row| row.account_number),
            from_erased: self.erased_when_fetched,
            identity: self.identity(account),
            content,
            task: self.fetch_task(account.did()),
        }))
    }

    /// The host still has this head.
    fn unchanged(&mut self, account: &SimAccount, commit: Cid) {
        let fetched = self.fetched(account, FetchedContent::Unchanged { commit });
        self.apply(fetched);
    }

    /// A live account whose host makes one commit too many that does not reach us, so that it is wanted.
    fn lost_one(&mut self, number: u64) -> SimAccount {
        let mut account = self.live(number);
        account.commit(0, &[write("lost", "never seen")], NOW);
        self.commit(&mut account, &[write("b", "does not chain")]);
        assert_eq!(self.state(&account), "wanted");
        account
    }

    fn of(&self, account: &SimAccount) -> AccountRow {
        self.row(account.did()).expect("known")
    }

    fn state(&self, account: &SimAccount) -> &'static str {
        self.of(account).sync.label()
    }

    /// The numbers that something stands under in `blob_data`.
    fn kept_numbers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        let scanned = self
            .store
            .scan(Family::BlobData, &KeyRange::all(), &mut |key, _| {
                numbers.push(keyspace::decode_blob_data(key).expect("a key").0);
                std::ops::ControlFlow::Continue(())
            });
        scanned.expect("scans");
        numbers
    }

    /// When the account is fetched next, in milliseconds after [`NOW`].
    fn fetches(&self, account: &SimAccount) -> Vec<u64> {
        let due = Mirror::new(&*self.store)
            .due_tasks(u64::MAX - 1, 1000)
            .expect("reads");
        let wanted = Task::FetchRepo(account.did().clone());
        let due = due.into_iter().filter(|due| due.task == wanted);
        due.map(|due| due.due_ms - NOW.millis()).collect()
    }

    fn alarm_kinds(&self) -> Vec<AlarmKind> {
        let alarms = Mirror::new(&*self.store).alarms().expect("reads");
        alarms.into_iter().map(|(id, _)| id.kind).collect()
    }

    fn archived(&mut self, account: &SimAccount, number: u64) {
        self.apply(Input::CarArchived {
            did: account.did().clone(),
            number,
            task: Vec::new(),
        });
    }
}

#[test]
fn the_last_good_copy_stays_and_the_car_stands_beside_it() {
    let mut world = World::new();
    let account = world.lost_one(1);
    let before = world.of(&account);
    let notes = world.lax(&account, 900);
    assert!(
        notes.iter().any(|note| matches!(note, Note::Quarantined { .. })),
        "{notes:?}"
    );
    let row = world.of(&account);
    let SyncState::Quarantined {
        reason, rev, tries, ..
    } = &row.sync
    else {
        panic!("{:?}", row.sync);
    };
    assert_eq!(
        (reason.as_str(), *rev, *tries),
        ("a key of layer 0 in a node of layer 3", Some(account.rev()), 0)
    );
    assert_eq!(
        (&row.head, row.account_number),
        (&before.head, before.account_number)
    );
    assert_eq!(
        (row.records, row.kept_car.as_ref().map(|car| car.number)),
        (1, Some(900))
    );
    assert_eq!(
        (world.kept_numbers(), world.alarm_kinds()),
        (vec![900], vec![AlarmKind::Quarantine])
    );
    let tasks = world.tasks();
    assert!(tasks.contains(&Task::ArchiveCar(account.did().clone())));
    assert!(tasks.contains(&Task::FetchBlob(
        account.did().clone(),
        *Cid::of_blob(b"picture").digest()
    )));
    assert_eq!(world.fetches(&account), [0; 0]);
    let totals = world.applier.totals();
    assert_eq!((totals.sync["quarantined"], totals.open_cars), (1, 1));
    world.archived(&account, 900);
    let totals = world.applier.totals();
    assert_eq!((totals.sync["quarantined"], totals.open_cars), (1, 0));
    assert_eq!(
        world.kept_numbers(),
        [900],
        "it is served from here as long as it is quarantined"
    );
}

#[test]
fn events_of_a_quarantined_account_fetch_it_again_at_a_bounded_pace() {
    let mut world = World::new();
    let mut account = world.lost_one(1);
    world.lax(&account, 900);
    let (kept, _) = account.lax_blocks(account.rev());
    for number in 0..20 {
        let notes = world.commit(&mut account, &[write(&format!("{number}"), "more")]);
        assert!(
            matches!(notes[..], [Note::SkippedInQuarantine { .. }]),
            "{notes:?}"
        );
        assert_eq!(world.fetches(&account), [MINUTE]);
    }
    assert_eq!((world.of(&account).parked, world.of(&account).records), (0, 1));
    // The host gives what is kept already: the next wait is longer, and again, up to a bound.
    for wait in [2, 4, 8, 16, 32, 64, 128, 256, 360, 360] {
        world.unchanged(&account, kept);
        assert_eq!(world.fetches(&account), [wait * MINUTE]);
    }
    // It is lax still, but new; and a large one waits longer.
    world.lax(&account, 901);
    assert_eq!(world.kept_numbers(), [901]);
    assert_eq!(world.fetches(&account), [0; 0]);
    world.commit(&mut account, &[write("a", "changed")]);
    assert_eq!(world.fetches(&account), [MINUTE]);
    let mut large = world.lost_one(2);
    world.lax_of(&large, 902, 300 * REFETCH_BYTES_PER_SECOND);
    world.commit(&mut large, &[write("c", "more")]);
    assert_eq!(world.fetches(&large), [5 * MINUTE]);
    // A `#sync` says that the repository may be another one.
    account.commit(0, &[write("c", "more")], NOW);
    let seq = world.seq();
    let sync = account.sync_frame(seq, NOW);
    world.frame(sync);
    assert_eq!(world.fetches(&account), [MINUTE]);
    // What it said before its CAR was fetched is old.
    world.lax(&account, 2000);
    let seq = world.seq();
    let sync = account.sync_frame(seq, NOW);
    assert!(matches!(world.frame(sync)[..], [Note::Replayed { .. }]));
    assert_eq!(world.fetches(&account), [0; 0]);
}

#[test]
fn a_state_that_rebuilds_takes_its_place() {
    for archived in [false, true] {
        let mut world = World::new();
        let mut account = world.lost_one(1);
        world.lax(&account, 900);
        if archived {
            world.archived(&account, 900);
        }
        world.commit(&mut account, &[write("c", "healed")]);
        world.fetch(&account);
        world.check_equal(&account);
        assert_eq!(world.state(&account), "live");
        // It goes, but not before it stands in the archive.
        let kept: &[u64] = if archived { &[] } else { &[900] };
        assert_eq!(
            (
                world.kept_numbers().as_slice(),
                world.of(&account).kept_car.is_some()
            ),
            (kept, !archived)
        );
        world.archived(&account, 900);
        assert_eq!(
            (world.kept_numbers(), world.of(&account).kept_car),
            (vec![], None)
        );
        world.commit(&mut account, &[write("d", "followed")]);
        world.check_equal(&account);
    }
}

#[test]
fn what_came_during_the_fetch_that_heals_is_fetched_too() {
    let mut world = World::new();
    let mut account = world.lost_one(1);
    world.lax(&account, 900);
    let mut healed = account.clone();
    healed.commit(0, &[write("c", "healed")], NOW);
    account = healed.clone();
    world.commit(&mut account, &[write("d", "while it is fetched")]);
    world.fetch(&healed);
    world.check_equal(&healed);
    let row = world.of(&account);
    assert!(matches!(
        row.sync,
        SyncState::Wanted {
            reason: DesyncReason::Quarantined,
            ..
        }
    ));
    assert_eq!(
        (row.min_rev, world.fetches(&account)),
        (Some(account.rev()), vec![0])
    );
    world.fetch(&account);
    world.check_equal(&account);
    assert_eq!(world.state(&account), "live");

    // The same when it is lax still: one fetch more, at its pace.
    let mut other = world.lost_one(2);
    world.lax(&other, 901);
    let (root, _) = other.lax_blocks(other.rev());
    world.commit(&mut other, &[write("d", "while it is compared")]);
    world.unchanged(&other, root);
    assert_eq!(
        (world.state(&other), world.fetches(&other)),
        ("quarantined", vec![2 * MINUTE])
    );
}

#[test]
fn a_fetch_that_fails_changes_nothing_else() {
    let mut world = World::new();
    let account = world.lost_one(1);
    world.lax(&account, 900);
    let before = world.of(&account);
    world.apply(Input::FetchFailed {
        did: account.did().clone(),
        host: world.host.clone(),
        failure: FetchFailure::Unproven("a record is missing".to_owned()),
        asked_at: crate::mirror::applier::tests::ASKED,
        task: Vec::new(),
        retry_at: NOW.plus(Duration::from_secs(300)),
    });
    let after = world.of(&account);
    assert_eq!((&after.head, &after.kept_car), (&before.head, &before.kept_car));
    assert_eq!(
        (world.state(&account), world.fetches(&account)),
        ("quarantined", vec![5 * MINUTE])
    );
    assert_eq!(world.kept_numbers(), [900]);
}

#[test]
fn an_account_that_was_never_proven_is_quarantined_without_a_head() {
    let mut world = World::new();
    let account = SimAccount::new(5, NOW);
    let seq = world.seq();
    let sync = account.sync_frame(seq, NOW);
    world.frame(sync);
    world.lax(&account, 900);
    let row = world.of(&account);
    assert_eq!(
        (row.sync.label(), row.head.is_none(), row.parked),
        ("quarantined", true, 0)
    );
    assert!(world.tasks().contains(&Task::AuditAccount(account.did().clone())));
    world.fetch(&account);
    world.check_equal(&account);
    assert_eq!(world.state(&account), "live");
}

#[test]
fn what_is_older_than_ours_is_kept_beside_it() {
    let mut world = World::new();
    let old = world.live(1);
    let mut account = old.clone();
    world.commit(&mut account, &[write("b", "newer")]);
    // A state that the host does not have any more when it is asked.
    let mut ahead = account.clone();
    ahead.commit(0, &[write("lost", "never seen")], NOW);
    let seq = world.seq();
    let sync = ahead.sync_frame(seq, NOW);
    world.frame(sync);
    world.lax(&old, 900);
    assert_eq!(
        (world.state(&account), world.kept_numbers()),
        ("diverged", vec![900])
    );
    assert_eq!(world.alarm_kinds(), [AlarmKind::Rollback]);
    world.check_equal(&account);
}

#[test]
fn a_host_that_goes_back_does_not_take_what_is_kept_along() {
    // Among states that do not rebuild: what is in no archive yet is not replaced by an older one.
    for archived in [false, true] {
        let mut world = World::new();
        let older = world.lost_one(1);
        let mut account = older.clone();
        account.commit(0, &[write("c", "newer")], NOW);
        world.lax(&account, 900);
        if archived {
            world.archived(&account, 900);
        }
        world.lax(&older, 901);
        assert_eq!(world.kept_numbers(), [if archived { 901 } else { 900 }]);
        assert_eq!(world.state(&account), "quarantined");
        assert_eq!(world.alarm_kinds(), [AlarmKind::Rollback, AlarmKind::Quarantine]);
    }
    // And back to what we hold.
    let mut world = World::new();
    let account = world.lost_one(1);
    world.lax(&account, 900);
    let head = world.of(&account).head.expect("held").commit;
    world.unchanged(&account, head);
    assert_eq!((world.state(&account), world.kept_numbers()), ("live", vec![900]));
    assert!(world.alarm_kinds().contains(&AlarmKind::Rollback));
}

#[test]
fn a_car_that_was_judged_before_an_erasure_is_not_kept() {
    let mut world = World::new();
    let account = world.lost_one(1);
    let erase = |record: &[u8]| {
        Input::Erase(Box::new(crate::mirror::input::Erase {
            did: account.did().clone(),
            whole: false,
            lasting: true,
            records: vec![Cid::of_block(record)],
            blobs: Vec::new(),
            kept_car: false,
        }))
    };
    // It was fetched and looked through; then somebody wants a record gone; then it is to be kept.
    world.apply(erase(b"a record that may be in it"));
    world.lax(&account, 900);
    assert_eq!(
        (world.of(&account).kept_car, world.kept_numbers()),
        (None, vec![])
    );
    assert_eq!(
        world.fetches(&account).len(),
        1,
        "it is fetched again, and judged anew"
    );
    let mut judged = |erased: usize, number: u64| {
        world.erased_when_fetched = erased;
        world.lax(&account, number);
        world.of(&account).kept_car.map(|car| car.number)
    };
    assert_eq!(judged(2, 901), None);
    assert_eq!(judged(1, 902), Some(902));
}

#[test]
fn cars_that_no_row_names_go_at_the_start() {
    let mut world = World::new();
    let account = world.lost_one(1);
    world.lax(&account, 900);
    let mut batch = Batch::new();
    let digest = Cid::of_block(b"x");
    // Left behind by a fetch that did not come to its end; and a blob.
    let did_number = world.of(&account).did_number;
    for number in [901, did_number] {
        batch.put(
            Family::BlobData,
            keyspace::encode_blob_data(number, digest.digest(), 0),
            b"chunk",
        );
    }
    world.store.write(batch).expect("writes");
    assert_eq!(world.applier.drop_orphans(), Ok(1));
    assert_eq!(world.kept_numbers(), [did_number, 900]);
}

#[test]
fn another_archive_gets_it_too() {
    let mut world = World::new();
    let account = world.lost_one(1);
    world.lax(&account, 900);
    for id in ["one", "two"] {
        world.apply(Input::ArchiveLinked { id: id.to_owned() });
        assert_eq!(
            world.of(&account).kept_car.map(|car| car.archived),
            Some(false),
            "{id}"
        );
        world.archived(&account, 900);
        assert_eq!(world.applier.totals().open_cars, 0);
    }
    // An answer that came too late is about another one.
    world.lax(&account, 901);
    world.archived(&account, 900);
    assert_eq!(world.of(&account).kept_car.map(|car| car.archived), Some(false));
}

#[test]
fn a_kept_car_that_is_damaged_is_fetched_again_and_given_up_when_another_comes() {
    let mut world = World::new();
    let account = world.lost_one(1);
    world.lax(&account, 90);
    assert_eq!(world.applier.totals().open_cars, 1);
    world.apply(Input::CarDamaged {
        did: account.did().clone(),
        number: 90,
        task: Vec::new(),
    });
    let totals = world.applier.totals();
    assert_eq!((totals.open_cars, totals.damaged_cars), (0, 1));
    assert_eq!(world.kept_numbers(), [90], "nothing better is there yet");
    assert_eq!(world.fetches(&account), [MINUTE]);
    // The host's head is the one whose CAR was kept: all of it has to come all the same.
    assert!(matches!(
        world.of(&account).sync,
        SyncState::Quarantined { commit: None, .. }
    ));
    world.lax(&account, 91);
    assert_eq!(world.kept_numbers(), [91]);
    let totals = world.applier.totals();
    assert_eq!((totals.open_cars, totals.damaged_cars), (1, 0));
    // What is said of one that is gone says nothing.
    world.apply(Input::CarDamaged {
        did: account.did().clone(),
        number: 90,
        task: Vec::new(),
    });
    assert_eq!(world.applier.totals().damaged_cars, 0);
}

#[test]
fn an_account_that_left_its_quarantine_and_is_wanted_does_not_lose_its_task() {
    let mut world = World::new();
    let mut account = world.lost_one(1);
    world.lax(&account, 900);
    let mut healed = account.clone();
    healed.commit(0, &[write("c", "healed")], NOW);
    // An event of a rev that the host does not give when it is asked.
    account = healed.clone();
    world.commit(&mut account, &[write("d", "after it")]);
    world.fetch(&healed);
    assert_eq!(world.state(&account), "wanted");
    world.apply(Input::FetchFailed {
        did: account.did().clone(),
        host: world.host.clone(),
        failure: FetchFailure::Unreachable("500".to_owned()),
        asked_at: crate::mirror::applier::tests::ASKED,
        task: world.fetch_task(account.did()),
        retry_at: NOW.plus(Duration::from_secs(60)),
    });
    assert_eq!(world.fetches(&account), [MINUTE], "it is tried again");
    // The host never gives so new a state: after some tries what it has is taken, once.
    for _ in 0..20 {
        if world.state(&account) != "wanted" {
            break;
        }
        world.fetch(&healed);
    }
    assert_eq!(world.state(&account), "live");
    world.check_equal(&healed);
}
