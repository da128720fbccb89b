//! Hosts and accounts that go back, and what is kept of them.

use std::time::Duration;

use super::tests::{ASKED, NOW, World, delete, write};
use super::*;
use crate::mirror::input::{FetchFailure, Fetched, FetchedContent, Gap, ListedPage, ListedRepo};
use crate::mirror::keyspace::{AlarmId, AlarmKind};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AlarmRow, Listing, PinReason, Row as _};
use crate::mirror::store::Batch;
use crate::sim::SimAccount;
use crate::types::AccountStatus;

fn alarms(world: &World) -> Vec<(AlarmId, AlarmRow)> {
    Mirror::new(&*world.store).alarms().expect("reads")
}

fn kinds(world: &World) -> Vec<AlarmKind> {
    alarms(world).into_iter().map(|(id, _)| id.kind).collect()
}

fn records_of(world: &World, number: u64) -> u64 {
    let mut count = 0;
    Mirror::new(&*world.store)
        .scan_records(number, None, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })
        .expect("scans");
    count
}

/// Two accounts with the same DID and key: what the host has, and what it had.
fn twin(number: u64) -> SimAccount {
    let mut twin = SimAccount::new(number, NOW);
    twin.commit(0, &[write("a", "first")], NOW);
    twin
}

#[test]
fn the_same_number_with_another_event_begins_a_new_epoch() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut other = world.live(2);
    world.commit(&mut account, &[write("b", "lost by the host")]);
    world.commit(&mut other, &[write("b", "also lost")]);
    // The host was restored from before both, and has numbered other events since.
    let mut restored = twin(2);
    let later = NOW.plus(Duration::from_secs(5));
    let frame = restored.commit(2, &[write("c", "new history")], later);
    let notes = world.frame(frame);
    assert!(
        notes.iter().any(|note| matches!(note, Note::Gap { .. })),
        "{notes:?}"
    );
    assert_eq!(kinds(&world), [AlarmKind::SequenceReset]);
    let row = Mirror::new(&*world.store)
        .host(&world.host)
        .expect("reads")
        .expect("known");
    assert_eq!((row.epoch, row.cursor, row.highest_seq), (1, Some(2), 2));
    assert_eq!(row.listing, Listing::Unfinished { cursor: None });
    assert!(world.tasks().contains(&Task::ListRepos(world.host.clone())));
    world.check_equal(&account);

    // The account of that event does not chain: it is fetched, followed, and what it lost is kept.
    world.fetch(&restored);
    world.check_equal(&restored);
    let row = world.row(other.did()).expect("known");
    let [pin] = &row.pins[..] else {
        panic!("one pin: {:?}", row.pins)
    };
    assert_eq!(pin.reason, PinReason::Rollback);
    assert_eq!(pin.head.as_ref().map(|head| head.commit), Some(other.head()));
    assert_eq!(records_of(&world, pin.generation.expect("kept")), 2);
    assert_eq!(kinds(&world), [AlarmKind::SequenceReset, AlarmKind::Rollback]);
    // And it survives a restart.
    assert_eq!(world.applier.drop_orphans().expect("deletes"), 0);
    assert_eq!(records_of(&world, pin.generation.expect("kept")), 2);
}

#[test]
fn the_same_events_again_begin_nothing() {
    let mut world = World::new();
    let mut account = world.live(1);
    let frames: Vec<_> = (0..5)
        .map(|i| {
            let seq = world.seq();
            account.commit(seq, &[write(&format!("r{i}"), "x")], NOW)
        })
        .collect();
    for frame in frames.iter().chain(&frames) {
        world.frame(frame.clone());
    }
    assert_eq!(kinds(&world), []);
    assert_eq!(world.cursor(), Some(5));
    world.check_equal(&account);
}

#[test]
fn a_stream_that_is_no_proper_one_has_its_host_listed_soon_and_once() {
    let mut world = World::new();
    let mut account = world.live(1);
    let seq = world.seq();
    world.frame(account.commit(seq, &[write("a", "x")], NOW));
    let garbled = |world: &World| Input::Gap {
        host: world.host.clone(),
        gap: Gap::Garbled,
    };
    let next = |world: &World| {
        let row = Mirror::new(&*world.store).host(&world.host).expect("reads");
        row.expect("known").next_listing
    };
    let lists = |world: &World| {
        let list = Task::ListRepos(world.host.clone());
        world.tasks().iter().filter(|task| **task == list).count()
    };
    let listed = Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: vec![ListedRepo {
            did: account.did().clone(),
            head: None,
            status: AccountStatus::Active,
        }],
        listing: Listing::Finished { at: NOW },
        asked_at: NOW,
        task: None,
    });
    world.apply(listed);
    let before = (next(&world), lists(&world));
    world.apply(garbled(&world));
    let soon = next(&world);
    assert!(soon < before.0, "{soon:?} {before:?}");
    assert_eq!(lists(&world), before.1, "the same task, moved");
    // A host that garbles without end is not listed without end.
    world.apply(garbled(&world));
    assert_eq!((next(&world), lists(&world)), (soon, before.1));
    assert_eq!(kinds(&world), [], "nothing to alarm anybody with");
}

#[test]
fn a_cursor_from_the_future_begins_a_new_epoch() {
    let mut world = World::new();
    let mut account = world.live(1);
    for i in 0..4 {
        world.commit(&mut account, &[write(&format!("r{i}"), "x")]);
    }
    world.apply(Input::Gap {
        host: world.host.clone(),
        gap: Gap::CursorFromFuture,
    });
    assert_eq!(kinds(&world), [AlarmKind::SequenceReset]);
    assert_eq!(world.cursor(), None);
    world.check_equal(&account);
    let alarm = &alarms(&world)[0].1;
    assert!(
        alarm.message.contains("ever seen there is 4"),
        "{}",
        alarm.message
    );
}

#[test]
fn an_account_that_went_back_keeps_ours_until_it_goes_on() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut restored = twin(1);
    world.commit(&mut account, &[write("b", "lost by the host")]);
    // Asked to compare, the host gives its old state.
    let did = account.did().clone();
    world.apply(Input::Gap {
        host: world.host.clone(),
        gap: Gap::CursorOutdated,
    });
    let notes = want_and_fetch(&mut world, &restored);
    assert!(
        notes.iter().any(|note| matches!(note, Note::HostBehind { .. })),
        "{notes:?}"
    );
    world.check_equal(&account);
    assert!(matches!(
        world.row(&did).expect("known").sync,
        SyncState::Diverged { .. }
    ));
    assert_eq!(kinds(&world), [AlarmKind::Rollback]);

    // A commit of the new history with a rev above ours is followed; ours is kept beside it.
    let seq = world.seq();
    let frame = restored.commit(seq, &[write("c", "goes on")], NOW.plus(Duration::from_secs(9)));
    world.frame(frame);
    world.fetch(&restored);
    world.check_equal(&restored);
    let row = world.row(&did).expect("known");
    assert_eq!(row.pins.len(), 1);
    assert_eq!(records_of(&world, row.pins[0].generation.expect("kept")), 2);
}

#[test]
fn a_record_that_went_back_is_kept_though_its_path_is_still_there_and_a_seen_alarm_opens_again() {
    let mut world = World::new();
    let mut account = world.live(1);
    let did = account.did().clone();
    let seq = world.seq();
    world.commit(&mut account, &[write("b", "before")]);
    let mut restored = twin(1);
    restored.commit(seq, &[write("b", "before")], NOW);
    world.commit(&mut account, &[write("b", "lost by the host")]);
    want_and_fetch(&mut world, &restored);
    let (id, _) = alarms(&world)[0].clone();
    world.apply(Input::Acknowledge {
        alarm: id,
        by: "admin".to_owned(),
    });
    assert!(alarms(&world)[0].1.acknowledged.is_some());

    // Every path of ours is in the new history, with another record at one of them.
    let seq = world.seq();
    let frame = restored.commit(seq, &[write("c", "goes on")], NOW.plus(Duration::from_secs(9)));
    world.frame(frame);
    world.fetch(&restored);
    world.check_equal(&restored);
    let row = world.row(&did).expect("known");
    assert_eq!(row.pins.len(), 1);
    assert_eq!(records_of(&world, row.pins[0].generation.expect("kept")), 2);
    let alarm = &alarms(&world)[0].1;
    assert!(alarm.acknowledged.is_none());
    assert!(
        alarm.message.contains("lacks 0 records") && alarm.message.contains("1 are not"),
        "{}",
        alarm.message
    );
}

#[test]
fn an_audit_finds_what_went_on_unheard_after_going_back() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut restored = twin(1);
    world.commit(&mut account, &[write("b", "lost by the host")]);
    want_and_fetch(&mut world, &restored);
    let did = account.did().clone();
    let diverged = |world: &World| matches!(world.row(&did).expect("known").sync, SyncState::Diverged { .. });
    assert!(diverged(&world));

    // Still behind, and kept as it is: nothing changes.
    let audit = |world: &mut World, head: &SimAccount| {
        world.apply(Input::Audited {
            did: did.clone(),
            host: world.host.clone(),
            status: Some(crate::types::AccountStatus::Active),
            head: Some(head.head()),
            asked_at: ASKED,
            task: Vec::new(),
        });
    };
    let kept = world.row(&did).expect("known").kept_car;
    assert_eq!(kept.as_ref().map(|car| car.commit), Some(restored.head()));
    audit(&mut world, &restored);
    assert!(diverged(&world));
    assert!(!world.tasks().contains(&Task::FetchRepo(did.clone())));
    assert_eq!(world.row(&did).expect("known").kept_car, kept);
    world.check_equal(&account);

    // The host goes on, and nobody hears of it.
    restored.commit(0, &[write("c", "goes on")], NOW.plus(Duration::from_secs(9)));
    audit(&mut world, &restored);
    world.fetch(&restored);
    world.check_equal(&restored);
    assert_eq!(world.row(&did).expect("known").pins.len(), 1);
}

/// Has the account compared through a listing, and the host answer with this state.
fn want_and_fetch(world: &mut World, host_state: &SimAccount) -> Vec<Note> {
    use crate::mirror::input::{ListedPage, ListedRepo};
    use crate::types::AccountStatus;

    world.apply(Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: vec![ListedRepo {
            did: host_state.did().clone(),
            head: Some(host_state.head()),
            status: AccountStatus::Active,
        }],
        listing: Listing::Finished { at: NOW },
        asked_at: ASKED,
        task: None,
    }));
    world.fetch(host_state)
}

#[test]
fn another_commit_under_the_same_rev_never_replaces_ours() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut forked = twin(1);
    let seq = world.seq();
    let frame = account.commit(seq, &[write("b", "ours")], NOW);
    world.frame(frame);
    forked.commit(0, &[write("b", "theirs")], NOW);
    assert_eq!(account.rev(), forked.rev());
    want_and_fetch(&mut world, &forked);
    world.check_equal(&account);
    assert_eq!(kinds(&world), [AlarmKind::Rollback]);
}

#[test]
fn a_repository_that_is_gone_is_kept() {
    let mut world = World::new();
    let mut account = world.live(1);
    let held = account.clone();
    account.commit(0, &[write("lost", "x")], NOW);
    world.commit(&mut account, &[write("b", "second")]);
    let failed = Input::FetchFailed {
        host: world.host.clone(),
        did: account.did().clone(),
        failure: FetchFailure::NotFound,
        asked_at: ASKED,
        task: world.fetch_task(account.did()),
        retry_at: NOW,
    };
    world.apply(failed);
    assert_eq!(kinds(&world), [AlarmKind::RepoNotFound]);
    world.check_equal(&held);
}

#[test]
fn many_deletions_by_commit_raise_one_alarm() {
    let mut world = World::new();
    let mut account = world.live(1);
    for chunk in 0..2 {
        let writes: Vec<_> = (0..100).map(|i| write(&format!("r{chunk}x{i}"), "x")).collect();
        world.commit(&mut account, &writes);
    }
    let gone = |range: std::ops::Range<i32>| range.map(|i| delete(&format!("r0x{i}"))).collect::<Vec<_>>();
    world.commit(&mut account, &gone(0..99));
    assert_eq!(kinds(&world), [], "99 are not many");
    world.commit(&mut account, &gone(99..100));
    world.commit(&mut account, &[delete("r1x0"), delete("r1x1")]);
    assert_eq!(kinds(&world), [AlarmKind::MassDelete]);
    let row = world.row(account.did()).expect("known");
    assert_eq!(row.pins.len(), 1);
    let said = alarms(&world)[0].1.message.clone();
    assert!(said.contains("no snapshot of it was archived"), "{said}");
    // Deletions are followed all the same.
    world.check_equal(&account);
}

#[test]
fn which_share_counts_as_many_is_set() {
    let mut world = World::new();
    world.applier.limits.deleted_percent = 60;
    let mut account = world.live(1);
    for chunk in 0..2 {
        let writes: Vec<_> = (0..100).map(|i| write(&format!("r{chunk}x{i}"), "x")).collect();
        world.commit(&mut account, &writes);
    }
    let gone = |chunk, count| {
        (0..count)
            .map(|i| delete(&format!("r{chunk}x{i}")))
            .collect::<Vec<_>>()
    };
    world.commit(&mut account, &gone(0, 100));
    world.commit(&mut account, &gone(1, 20));
    assert_eq!(kinds(&world), [], "120 of 201 are less than 60 %");
    world.commit(&mut account, &[delete("a")]);
    assert_eq!(kinds(&world), [AlarmKind::MassDelete]);
}

#[test]
fn a_swap_to_a_nearly_empty_repository_keeps_what_was_there() {
    let mut world = World::new();
    let mut account = world.live(1);
    let writes: Vec<_> = (0..150).map(|i| write(&format!("r{i}"), "x")).collect();
    world.commit(&mut account, &writes);
    let all: Vec<_> = (0..150).map(|i| delete(&format!("r{i}"))).collect();
    account.commit(0, &all, NOW);
    let seq = world.seq();
    let frame = account.sync_frame(seq, NOW);
    world.frame(frame);
    world.fetch(&account);
    world.check_equal(&account);
    assert_eq!(kinds(&world), [AlarmKind::MassDelete]);
    let row = world.row(account.did()).expect("known");
    assert_eq!(records_of(&world, row.pins[0].generation.expect("kept")), 151);
}

#[test]
fn an_ordinary_swap_keeps_nothing() {
    let mut world = World::new();
    let mut account = world.live(1);
    let old = world.row(account.did()).expect("known").account_number;
    account.commit(0, &[write("b", "x"), delete("a")], NOW);
    let seq = world.seq();
    let frame = account.sync_frame(seq, NOW);
    world.frame(frame);
    world.fetch(&account);
    world.check_equal(&account);
    assert_eq!(kinds(&world), []);
    assert_eq!(records_of(&world, old), 0);
    let stale = Fetched {
        did: account.did().clone(),
        from_number: old,
        identity: world.identity(&account),
        content: FetchedContent::Unchanged {
            commit: account.head(),
        },
        task: Vec::new(),
    };
    world.apply(Input::Fetched(Box::new(stale)));
    world.check_equal(&account);
}

fn listing_of(world: &mut World, listed: &[&SimAccount]) {
    use crate::mirror::input::{ListedPage, ListedRepo};
    use crate::types::AccountStatus;

    let repos = listed.iter().map(|account| ListedRepo {
        did: account.did().clone(),
        head: Some(account.head()),
        status: AccountStatus::Active,
    });
    world.apply(Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: repos.collect(),
        listing: Listing::Finished { at: NOW },
        asked_at: ASKED,
        task: None,
    }));
}

#[test]
fn an_empty_listing_deletes_nothing_and_alarms() {
    let mut world = World::new();
    let accounts: Vec<_> = (1..=3).map(|number| world.live(number)).collect();
    listing_of(&mut world, &accounts.iter().collect::<Vec<_>>());
    assert_eq!(kinds(&world), []);
    listing_of(&mut world, &[]);
    assert_eq!(kinds(&world), [AlarmKind::EmptyList]);
    for account in &accounts {
        world.check_equal(account);
        assert!(
            world.tasks().contains(&Task::AuditAccount(account.did().clone())),
            "each is asked for"
        );
    }
}

#[test]
fn repeated_audits_and_listings_leave_one_task_each() {
    use crate::types::AccountStatus;

    let mut world = World::new();
    let account = world.live(1);
    for _ in 0..3 {
        world.apply(Input::Audited {
            host: world.host.clone(),
            did: account.did().clone(),
            status: Some(AccountStatus::Active),
            head: Some(account.head()),
            asked_at: ASKED,
            task: Vec::new(),
        });
        listing_of(&mut world, &[&account]);
    }
    let later = |task: &&Task| matches!(task, Task::ListRepos(_) | Task::AuditAccount(_));
    // One audit of the first fetch is due at once; one of each is due later.
    assert_eq!(
        world.tasks().iter().filter(later).count(),
        3,
        "{:?}",
        world.tasks()
    );
    assert_eq!(kinds(&world), []);
}

#[test]
fn an_account_that_was_never_loaded_is_not_deleted_because_its_host_does_not_know_it() {
    use crate::types::AccountStatus;

    let mut world = World::new();
    let mut account = SimAccount::new(1, NOW);
    world.commit(&mut account, &[write("a", "x")]);
    world.apply(Input::Audited {
        host: world.host.clone(),
        did: account.did().clone(),
        status: None,
        head: None,
        asked_at: ASKED,
        task: Vec::new(),
    });
    let row = world.row(account.did()).expect("known");
    assert_eq!(
        (row.upstream, row.deletion_confirmed_at),
        (AccountStatus::Active, None)
    );
    assert_eq!(kinds(&world), []);
}

#[test]
fn a_deletion_counts_only_when_the_host_confirms_it() {
    use crate::stream::encode::encode_frame;
    use crate::stream::frame::{AccountFrame, Frame};
    use crate::types::AccountStatus;

    let mut world = World::new();
    let account = world.live(1);
    let did = account.did().clone();
    let seq = world.seq();
    let frame = AccountFrame {
        seq,
        did: did.clone(),
        active: false,
        status: Some("deleted"),
        time: None,
    };
    world.frame(encode_frame(&Frame::Account(frame)));
    assert!(world.tasks().contains(&Task::AuditAccount(did.clone())));
    let row = world.row(&did).expect("known");
    assert_eq!(
        (row.upstream, row.deletion_confirmed_at),
        (AccountStatus::Deleted, None)
    );

    let host = world.host.clone();
    let audited = |status| Input::Audited {
        host: host.clone(),
        did: did.clone(),
        status,
        head: None,
        asked_at: ASKED,
        task: Vec::new(),
    };
    world.apply(audited(None));
    assert_eq!(
        world.row(&did).and_then(|row| row.deletion_confirmed_at),
        Some(NOW)
    );
    assert_eq!(kinds(&world), [], "a deletion that was announced is no alarm");
    world.check_equal(&account);
    world.apply(audited(Some(AccountStatus::Active)));
    let row = world.row(&did).expect("known");
    assert_eq!(
        (row.upstream, row.deletion_confirmed_at),
        (AccountStatus::Active, None)
    );

    // Unannounced, it is one.
    world.apply(audited(None));
    assert_eq!(kinds(&world), [AlarmKind::RepoNotFound]);
}

#[test]
fn a_host_of_which_no_event_ever_came_is_listed_again_at_each_connection() {
    let mut world = World::new();
    world.live(1);
    let list = Task::ListRepos(world.host.clone());
    let due = |world: &World| {
        let due = Mirror::new(&*world.store)
            .due_tasks(NOW.millis(), 100)
            .expect("reads");
        due.into_iter().any(|due| due.task == list)
    };
    let host = world.host.clone();
    let connected = || Input::Connected { host: host.clone() };
    assert!(!due(&world), "it was listed");
    // What it says of a cursor that is too old is no news: there is none.
    world.apply(Input::Gap {
        host: host.clone(),
        gap: Gap::CursorOutdated,
    });
    assert!(!due(&world));
    world.apply(connected());
    assert!(due(&world));

    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[write("b", "an event")]);
    world.apply(connected());
    assert!(!due(&world));
}

#[test]
fn alarms_of_a_host_are_bounded_and_what_was_seen_makes_room() {
    let mut world = World::new();
    let host = world.host.clone();
    let id = |subject: &str| AlarmId {
        host: Some(host.clone()),
        kind: AlarmKind::RepoNotFound,
        subject: subject.to_owned(),
    };
    let row = AlarmRow {
        since: NOW,
        message: "one".to_owned(),
        pinned: Vec::new(),
        acknowledged: None,
    };
    let mut batch = Batch::new();
    for number in 0..1000 {
        let key = keyspace::encode_alarm(&id(&format!("did:plc:{number:04}")));
        batch.put(Family::Alarms, key, row.encode());
    }
    world.store.write(batch).expect("written");
    let raise = |world: &mut World, kind| {
        world.apply(Input::HostAlarm {
            host: world.host.clone(),
            kind,
            message: "it says nothing".to_owned(),
        });
    };
    let of = |world: &World, kind| alarms(world).into_iter().find(|(id, _)| id.kind == kind);
    raise(&mut world, AlarmKind::HostSilent);
    raise(&mut world, AlarmKind::HostSilent);
    let (_, full) = of(&world, AlarmKind::HostSilent).expect("one for all");
    assert!(full.message.contains("more than 1000 alarms"), "{}", full.message);
    assert_eq!(alarms(&world).len(), 1001);
    // What a person has seen makes room for what is new.
    for subject in ["did:plc:0007", "did:plc:0009"] {
        let (alarm, by) = (id(subject), "an admin".to_owned());
        world.apply(Input::Acknowledge { alarm, by });
    }
    raise(&mut world, AlarmKind::EmptyList);
    let (_, new) = of(&world, AlarmKind::EmptyList).expect("raised");
    assert_eq!(new.message, "it says nothing");
    let left = alarms(&world);
    assert_eq!(left.len(), 1001);
    assert!(
        !left.iter().any(|(known, _)| *known == id("did:plc:0007")),
        "the oldest that was seen"
    );
    assert!(left.iter().any(|(known, _)| *known == id("did:plc:0009")));
}
