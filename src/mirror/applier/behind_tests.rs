//! Accounts whose host went back: what it has meanwhile is kept beside ours, at a bounded pace.

use std::ops::ControlFlow;

use super::super::tests::{NOW, World, write};
use super::*;
use crate::mirror::input::{FetchFailure, Fetched, FetchedContent, Input};
use crate::mirror::keyspace;
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Family, KeyRange, View as _};
use crate::sim::SimAccount;
use crate::types::Timestamp;

const SECOND: u64 = 1000;
const MINUTE: Duration = Duration::from_secs(60);

impl World {
    /// An account that we hold a minute further than its host, which begins again from its first commit: what the
    /// host has, and what we hold.
    fn went_back(&mut self) -> (SimAccount, SimAccount) {
        let mut ours = self.live(1);
        let seq = self.seq();
        let frame = ours.commit(seq, &[write("b", "lost by the host")], NOW.plus(MINUTE));
        self.frame(frame);
        let mut theirs = SimAccount::new(1, NOW);
        theirs.commit(0, &[write("a", "first")], NOW);
        let did = ours.did().clone();
        self.apply(Input::Audited {
            did,
            host: self.host.clone(),
            status: Some(crate::types::AccountStatus::Active),
            head: Some(theirs.head()),
            asked_at: NOW,
            task: Vec::new(),
        });
        self.fetch(&theirs);
        (theirs, ours)
    }

    /// The host's account writes, with a rev that ours is beyond.
    fn behind_commit(&mut self, theirs: &mut SimAccount, rkey: &str, millis: u64) -> Vec<Note> {
        let seq = self.seq();
        let frame = theirs.commit(seq, &[write(rkey, "new there")], NOW.plus_ms(millis));
        self.frame(frame)
    }

    fn row_of(&self, account: &SimAccount) -> AccountRow {
        self.row(account.did()).expect("known")
    }

    fn kept(&self, account: &SimAccount) -> KeptCar {
        self.row_of(account).kept_car.expect("something is kept")
    }

    /// When the account is fetched next, in milliseconds after [`NOW`].
    fn due(&self, account: &SimAccount) -> Vec<u64> {
        let due = Mirror::new(&*self.store)
            .due_tasks(u64::MAX - 1, 1000)
            .expect("reads");
        let wanted = Task::FetchRepo(account.did().clone());
        let due = due.into_iter().filter(|due| due.task == wanted);
        due.map(|due| due.due_ms - NOW.millis()).collect()
    }

    fn cars(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        let scanned = self
            .store
            .scan(Family::BlobData, &KeyRange::all(), &mut |key, _| {
                numbers.push(keyspace::decode_blob_data(key).expect("a key").0);
                ControlFlow::Continue(())
            });
        scanned.expect("scans");
        numbers
    }

    fn rollback_alarms(&self) -> usize {
        let alarms = Mirror::new(&*self.store).alarms().expect("reads");
        alarms
            .into_iter()
            .filter(|(id, _)| id.kind == AlarmKind::Rollback)
            .count()
    }
}

trait Later {
    fn plus_ms(self, ms: u64) -> Self;
}

impl Later for Timestamp {
    fn plus_ms(self, ms: u64) -> Self {
        self.plus(Duration::from_millis(ms))
    }
}

#[test]
fn what_a_host_writes_on_its_old_numbers_is_fetched_and_kept_beside_ours() {
    let mut world = World::new();
    let (mut theirs, ours) = world.went_back();
    world.check_equal(&ours);
    assert_eq!(world.kept(&ours).commit, theirs.head());
    assert_eq!(world.due(&ours), [0u64; 0], "nothing new, nothing to fetch");
    assert!(world.tasks().contains(&Task::ArchiveCar(ours.did().clone())));
    assert_eq!(world.rollback_alarms(), 1);

    // Two commits, one fetch, not before its time.
    world.behind_commit(&mut theirs, "c", 10 * SECOND);
    world.behind_commit(&mut theirs, "d", 11 * SECOND);
    assert_eq!(world.due(&ours), [30 * SECOND]);
    let before = world.kept(&ours);
    world.fetch(&theirs);
    let kept = world.kept(&ours);
    assert_eq!((kept.rev, kept.commit), (theirs.rev(), theirs.head()));
    assert_eq!(
        world.cars(),
        [kept.number],
        "the state of before ({}) is gone",
        before.number
    );
    world.check_equal(&ours);
    assert_eq!(world.due(&ours), [0u64; 0]);

    // It survives a restart, and the state that is kept is known to the next fetch.
    assert_eq!(world.applier.drop_orphans().expect("deletes"), 0);
    assert_eq!(world.row_of(&ours).kept_beside(), Some(&kept));

    // Past ours: followed, ours kept, and what was kept beside goes once it stands in the archive.
    world.behind_commit(&mut theirs, "e", 120 * SECOND);
    world.fetch(&theirs);
    world.check_equal(&theirs);
    let row = world.row_of(&ours);
    assert_eq!((row.sync, row.pins.len()), (SyncState::Live, 1));
    assert_eq!(world.cars(), [kept.number]);
    world.apply(Input::CarArchived {
        did: ours.did().clone(),
        number: kept.number,
        task: Vec::new(),
    });
    assert_eq!(world.cars(), [0u64; 0]);
}

#[test]
fn an_event_that_was_kept_already_or_comes_while_all_is_well_has_nothing_fetched() {
    let mut world = World::new();
    let (mut theirs, ours) = world.went_back();
    let seq = world.seq();
    let old = theirs.commit(seq, &[write("c", "new there")], NOW.plus_ms(SECOND));
    world.frame(old.clone());
    assert_eq!(world.due(&ours).len(), 1);
    world.fetch(&theirs);
    world.frame(old);
    assert_eq!(world.due(&ours), [0u64; 0], "that one is kept");

    let mut well = World::new();
    let mut account = well.live(2);
    let seq = well.seq();
    let old = account.commit(seq, &[write("b", "x")], NOW.plus_ms(SECOND));
    well.frame(old.clone());
    well.frame(old);
    assert_eq!(well.due(&account), [0u64; 0]);
    assert_eq!(well.row_of(&account).sync, SyncState::Live);
}

#[test]
fn a_state_that_is_kept_is_not_replaced_by_an_older_one_before_it_is_archived() {
    let mut world = World::new();
    let (mut theirs, ours) = world.went_back();
    world.behind_commit(&mut theirs, "c", 10 * SECOND);
    world.fetch(&theirs);
    let kept = world.kept(&ours);
    let mut older = SimAccount::new(1, NOW);
    older.commit(0, &[write("z", "begun again")], NOW.plus_ms(2 * SECOND));
    world.fetch(&older);
    assert_eq!(world.kept(&ours), kept, "not in the archive yet");
    assert_eq!(world.cars(), [kept.number]);
    assert_eq!(world.due(&ours).len(), 1, "it is tried again");

    world.apply(Input::CarArchived {
        did: ours.did().clone(),
        number: kept.number,
        task: Vec::new(),
    });
    assert_eq!(
        world.cars(),
        [kept.number],
        "still the newest of what the host had"
    );
    world.fetch(&older);
    assert_eq!(world.kept(&ours).commit, older.head());
    world.check_equal(&ours);
}

#[test]
fn a_fetch_that_fails_is_tried_again_and_what_comes_too_large_is_said() {
    let mut world = World::new();
    let (mut theirs, ours) = world.went_back();
    world.behind_commit(&mut theirs, "c", 10 * SECOND);
    let task = world.fetch_task(ours.did());
    world.apply(Input::FetchFailed {
        did: ours.did().clone(),
        host: world.host.clone(),
        failure: FetchFailure::Unreachable("no answer".to_owned()),
        asked_at: NOW,
        task,
        retry_at: NOW.plus(MINUTE),
    });
    assert_eq!(
        world.due(&ours),
        [60 * SECOND],
        "as its host asked, or as the pace is"
    );
    assert!(matches!(world.row_of(&ours).sync, SyncState::Diverged { .. }));
    world.behind_commit(&mut theirs, "d", 11 * SECOND);
    assert_eq!(world.due(&ours), [60 * SECOND], "no event makes it sooner");

    let kept = world.kept(&ours);
    let Input::Fetched(mut fetched) = world.load(&theirs) else {
        panic!("a fetch")
    };
    let Fetched { content, .. } = &mut *fetched;
    let FetchedContent::Behind { car, .. } = content else {
        panic!("{content:?}")
    };
    *car = None;
    world.apply(Input::Fetched(fetched));
    assert_eq!(world.kept(&ours), kept, "better than nothing");
    world.check_equal(&ours);
}

#[test]
fn a_host_that_has_our_head_again_is_followed_from_there() {
    let mut world = World::new();
    let (_, mut ours) = world.went_back();
    let seq = world.seq();
    let frame = ours.commit(seq, &[write("c", "on ours")], NOW.plus(2 * MINUTE));
    world.frame(frame);
    world.check_equal(&ours);
    assert_eq!(world.row_of(&ours).sync, SyncState::Live);
}

#[test]
fn what_was_fetched_before_ours_went_on_replaces_nothing() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut other = account.clone();
    other.commit(0, &[write("b", "of another chain")], NOW.plus_ms(SECOND));
    let late = world.load(&other);
    let seq = world.seq();
    let frame = account.commit(seq, &[write("c", "ours goes on")], NOW.plus(MINUTE));
    world.frame(frame);
    world.commit(&mut account.clone(), &[write("x", "lost")]);
    world.apply(Input::Audited {
        did: account.did().clone(),
        host: world.host.clone(),
        status: Some(crate::types::AccountStatus::Active),
        head: Some(other.head()),
        asked_at: NOW,
        task: Vec::new(),
    });
    let before = world.row_of(&account);
    world.apply(late);
    let after = world.row_of(&account);
    assert_eq!(
        (&after.head, after.account_number),
        (&before.head, before.account_number)
    );
    assert!(matches!(after.sync, SyncState::Wanted { .. }));
    assert!(
        world.due(&account).contains(&5000),
        "it is fetched again: {:?}",
        world.due(&account)
    );
}

#[test]
fn the_archive_gets_what_is_kept_at_a_bounded_pace_and_the_newest_in_the_end() {
    let mut world = World::new();
    let (mut theirs, ours) = world.went_back();
    let tasks = |world: &World| {
        let due = Mirror::new(&*world.store)
            .due_tasks(u64::MAX - 1, 1000)
            .expect("reads");
        let wanted = Task::ArchiveCar(ours.did().clone());
        let due = due.into_iter().filter(|due| due.task == wanted);
        due.map(|due| (due.due_ms - NOW.millis()) / SECOND)
            .collect::<Vec<_>>()
    };
    let archived = |world: &mut World, number: u64, at: u64| {
        world.apply(Input::CarArchived {
            did: ours.did().clone(),
            number,
            task: keyspace::encode_task(NOW.millis() + at * SECOND, &Task::ArchiveCar(ours.did().clone())),
        });
    };
    assert_eq!(tasks(&world), [0], "the first at once");
    let first = world.kept(&ours).number;
    // One that waits leaves its task to the newer one; what is put meanwhile does not take it along.
    world.behind_commit(&mut theirs, "c", 10 * SECOND);
    world.fetch(&theirs);
    assert_eq!(tasks(&world), [0]);
    archived(&mut world, first, 0);
    assert_eq!(tasks(&world).len(), 1, "the newer one is still to come");
    assert!(!world.kept(&ours).archived);
    let newer = world.kept(&ours).number;
    let at = tasks(&world)[0];
    archived(&mut world, newer, at);
    assert_eq!(tasks(&world), [0u64; 0]);
    assert!(world.kept(&ours).archived);

    // A large one waits: a KiB a second, and a day at most.
    let mut last = at;
    for (megabytes, wait) in [(1u64, 1024), (4096, 24 * 3600)] {
        world.behind_commit(&mut theirs, &format!("m{megabytes}"), 20 * SECOND + megabytes);
        let Input::Fetched(mut fetched) = world.load(&theirs) else {
            panic!("a fetch")
        };
        let FetchedContent::Behind { car: Some(car), .. } = &mut fetched.content else {
            panic!("not behind")
        };
        car.bytes = megabytes << 20;
        let number = car.number;
        world.apply(Input::Fetched(fetched));
        assert_eq!(tasks(&world), [last + wait]);
        last += wait;
        archived(&mut world, number, last);
    }
}
