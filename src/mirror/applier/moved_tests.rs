//! Accounts that move, and heads that a key of before signed.

use crate::verify::RejectReason;
use std::time::Duration;

use super::super::input::{FetchFailure, Fetched, FetchedContent, Input};
use super::super::keyspace::Task;
use super::super::reader::Mirror;
use super::super::rows::{DesyncReason, HeadSigner, Listing, StoredIdentity, SyncState};
use super::tests::{ASKED, NOW, World, write};
use super::*;
use crate::identity::plc_log::fixtures::{LogMaker, secret};
use crate::identity::plc_log::{LoggedKey, PlcLog};
use crate::mirror::input::{ListedPage, ListedRepo};
use crate::repo::car::{encode_block, encode_header, parse_car};
use crate::sim::SimAccount;
use crate::stream::encode::encode_frame;
use crate::stream::frame::{AccountFrame, Frame, IdentityFrame, SyncFrame};
use crate::types::{AccountStatus, Digest, Rev};
use crate::verify::{HeadKey, KeyStanding, VerifiedRepo, check_repo};

fn name(host: &str) -> HostName {
    host.parse().expect("valid")
}

/// A world that follows `pds.test` and `b.test`.
fn two_hosts() -> World {
    let mut world = World::new();
    world
        .applier
        .ensure_host(&name("b.test"), "https://b.test")
        .expect("writes");
    world
}

/// What the account's document says: this host, read `age` ago.
fn document(account: &SimAccount, host: &str, age: Duration) -> StoredIdentity {
    StoredIdentity {
        key: Some(account.key().to_did_key()),
        host: Some(host.to_owned()),
        handle: None,
        read_at: NOW.minus(age),
    }
}

fn resolve(world: &mut World, account: &SimAccount, host: &str, age: Duration) -> Vec<Note> {
    world.apply(Input::Identity {
        did: account.did().clone(),
        resolved: Some(document(account, host, age)),
        task: Vec::new(),
        retry_at: NOW,
    })
}

pub(crate) fn account_event(
    world: &mut World,
    account: &SimAccount,
    active: bool,
    status: Option<&'static str>,
) {
    let seq = world.seq();
    let did = account.did().clone();
    world.frame(encode_frame(&Frame::Account(AccountFrame {
        seq,
        did,
        active,
        status,
        time: None,
    })));
}

fn identity_event(world: &mut World, account: &SimAccount) -> Vec<Note> {
    let seq = world.seq();
    world.frame(encode_frame(&Frame::Identity(IdentityFrame {
        seq,
        did: account.did().clone(),
        handle: None,
        time: None,
    })))
}

fn unchanged(world: &World, account: &SimAccount, host: &str) -> Input {
    Input::Fetched(Box::new(Fetched {
        did: account.did().clone(),
        from_number: world.row(account.did()).expect("known").account_number,
        from_erased: 0,
        identity: document(account, host, Duration::ZERO),
        content: FetchedContent::Unchanged {
            commit: account.head(),
        },
        task: world.fetch_task(account.did()),
    }))
}

fn row(world: &World, account: &SimAccount) -> AccountRow {
    world.row(account.did()).expect("known")
}

fn resolve_tasks(world: &World) -> usize {
    let tasks = world.tasks();
    tasks
        .iter()
        .filter(|task| matches!(task, Task::ResolveIdentity(_)))
        .count()
}

/// The tasks that are due.
fn due_now(world: &World) -> Vec<Task> {
    let due = Mirror::new(&*world.store).due_tasks(NOW.millis(), 1000);
    due.expect("reads").into_iter().map(|due| due.task).collect()
}

fn clear_tasks(world: &World) {
    let mut batch = super::super::store::Batch::new();
    for due in Mirror::new(&*world.store)
        .due_tasks(u64::MAX - 1, 1000)
        .expect("reads")
    {
        batch.delete(Family::Tasks, keyspace::encode_task(due.due_ms, &due.task));
    }
    world.store.write(batch).expect("writes");
}

/// A `#sync` of the account's head with a rev of its own, as a host sends one after a migration.
fn sync_frame(account: &SimAccount, seq: u64, rev: Rev) -> Vec<u8> {
    let export = account.export();
    let car = parse_car(&export).expect("a CAR");
    let root = car.roots[0];
    let (_, commit) = car.blocks.iter().find(|(cid, _)| *cid == root).expect("the head");
    let mut blocks = encode_header(&[root]);
    encode_block(&mut blocks, &root, commit);
    encode_frame(&Frame::Sync(SyncFrame {
        seq,
        did: account.did().clone(),
        blocks: &blocks,
        rev,
        time: None,
    }))
}

fn listed(world: &mut World, account: &SimAccount, status: AccountStatus) {
    world.apply(Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: vec![ListedRepo {
            did: account.did().clone(),
            head: Some(account.head()),
            status,
        }],
        listing: Listing::Finished { at: NOW },
        asked_at: ASKED,
        task: None,
    }));
}

#[test]
fn an_account_is_followed_to_the_host_that_its_document_names() {
    let mut world = two_hosts();
    let mut account = world.live(1);
    let before = row(&world, &account);
    account_event(&mut world, &account, false, Some("deactivated"));
    let notes = resolve(&mut world, &account, "b.test", Duration::ZERO);
    assert!(
        matches!(
            &notes[..],
            [Note::Moved { followed: true, .. }, Note::Desynchronized { .. }]
        ),
        "{notes:?}"
    );
    // Hidden by the old host, it stays hidden until the new one says what it is there.
    let moved = row(&world, &account);
    assert_eq!(
        (&moved.host, &moved.upstream),
        (&name("b.test"), &AccountStatus::Deactivated)
    );
    assert!(due_now(&world).contains(&Task::AuditAccount(account.did().clone())));
    assert_eq!(
        (moved.did_number, moved.account_number, &moved.head),
        (before.did_number, before.account_number, &before.head)
    );
    let reason = DesyncReason::Moved;
    assert!(matches!(moved.sync, SyncState::Wanted { reason: found, .. } if found == reason));
    assert!(world.tasks().contains(&Task::FetchRepo(account.did().clone())));

    world.apply(Input::Audited {
        did: account.did().clone(),
        host: name("b.test"),
        status: Some(AccountStatus::Active),
        head: Some(account.head()),
        asked_at: ASKED,
        task: Vec::new(),
    });
    assert_eq!(row(&world, &account).upstream, AccountStatus::Active);

    // The new host has the very head that we hold; what it writes next is applied.
    let fetched = unchanged(&world, &account, "b.test");
    world.apply(fetched);
    world.host = name("b.test");
    world.commit(&mut account, &[write("b", "second")]);
    world.check_equal(&account);

    // The old host's late farewell, and what it still writes, change nothing.
    world.host = name("pds.test");
    world.seq = 100;
    account_event(&mut world, &account, false, Some("deactivated"));
    listed(&mut world, &account, AccountStatus::Deactivated);
    let mut twin = SimAccount::new(1, NOW);
    twin.commit(0, &[write("a", "first")], NOW);
    twin.commit(0, &[write("b", "second")], NOW);
    let notes = world.commit(&mut twin, &[write("c", "old host")]);
    let refused = RejectReason::WrongHost;
    assert!(
        matches!(&notes[..], [Note::Rejected { reason, .. }] if *reason == refused),
        "{notes:?}"
    );
    let after = row(&world, &account);
    assert_eq!(
        (after.upstream, after.sync),
        (AccountStatus::Active, SyncState::Live)
    );
    world.check_equal(&account);
}

#[test]
fn a_deletion_at_the_host_of_before_is_not_confirmed_by_a_host_that_has_nothing_yet() {
    let mut world = two_hosts();
    let account = world.live(1);
    account_event(&mut world, &account, false, Some("deleted"));
    resolve(&mut world, &account, "b.test", Duration::ZERO);
    world.apply(Input::Audited {
        did: account.did().clone(),
        host: name("b.test"),
        status: None,
        head: None,
        asked_at: ASKED,
        task: Vec::new(),
    });
    let moved = row(&world, &account);
    assert_eq!(moved.upstream, AccountStatus::Deactivated);
    assert_eq!(moved.deletion_confirmed_at, None);
}

#[test]
fn what_moves_out_of_sight_is_kept_as_it_was() {
    let mut world = World::new();
    let mut account = world.live(1);
    // A frame that waits comes from where the account no longer is.
    identity_event(&mut world, &account);
    let mut other = SimAccount::new(1, NOW);
    other.commit(0, &[write("a", "first")], NOW);
    world.commit(&mut other, &[write("b", "second")]);
    assert_eq!(row(&world, &account).parked, 1);
    let notes = resolve(&mut world, &account, "far.test", Duration::from_secs(3600));
    assert!(
        matches!(&notes[..], [Note::Moved { followed: false, .. }]),
        "{notes:?}"
    );
    let moved = row(&world, &account);
    let away = SyncState::Moved {
        to: name("far.test"),
        since: NOW,
    };
    assert_eq!((&moved.sync, moved.parked, moved.parked_bytes), (&away, 0, 0));
    let parked = Mirror::new(&*world.store)
        .parked(moved.did_number, 10)
        .expect("reads");
    assert_eq!(parked.len(), 0);

    clear_tasks(&world);
    // Whatever its old host says: a write, a state, a farewell, a listing with another head.
    world.commit(&mut other, &[write("c", "third")]);
    let seq = world.seq();
    world.frame(other.sync_frame(seq, NOW));
    account_event(&mut world, &account, false, Some("deleted"));
    account_event(&mut world, &account, true, None);
    identity_event(&mut world, &account);
    listed(&mut world, &other, AccountStatus::Active);
    let audited = Input::Audited {
        did: account.did().clone(),
        host: world.host.clone(),
        status: None,
        head: None,
        asked_at: ASKED,
        task: Vec::new(),
    };
    world.apply(audited);
    assert_eq!(row(&world, &account), moved);
    assert!(!world.tasks().contains(&Task::FetchRepo(account.did().clone())));
    assert_eq!(resolve_tasks(&world), 1, "but its document is read again, once");
    world.check_equal(&account);

    // Read again, it says the same; later it names the old host.
    resolve(&mut world, &account, "far.test", Duration::ZERO);
    assert_eq!(row(&world, &account).sync, away);
    resolve(&mut world, &account, "pds.test", Duration::ZERO);
    let wanted = row(&world, &account).sync;
    assert!(matches!(
        wanted,
        SyncState::Wanted {
            reason: DesyncReason::Moved,
            ..
        }
    ));
    let fetched = unchanged(&world, &account, "pds.test");
    world.apply(fetched);
    world.commit(&mut account, &[write("b", "back")]);
    world.check_equal(&account);
}

#[test]
fn a_host_that_speaks_for_anothers_account_has_the_document_read_once_a_minute() {
    let mut world = two_hosts();
    let mut account = world.live(1);
    let mut twin = SimAccount::new(1, NOW);
    twin.commit(0, &[write("a", "first")], NOW);
    resolve(&mut world, &account, "pds.test", Duration::from_secs(3600));
    clear_tasks(&world);
    world.host = name("b.test");
    for _ in 0..3 {
        world.commit(&mut twin, &[write("x", "at b")]);
        identity_event(&mut world, &twin);
        account_event(&mut world, &twin, false, Some("takendown"));
    }
    let now = row(&world, &account);
    assert_eq!((now.parked, now.awaiting_identity), (0, false));
    assert_eq!(
        (&now.upstream, &now.sync),
        (&AccountStatus::Active, &SyncState::Live)
    );
    assert!(now.identity.is_some(), "the key on file stays");
    assert_eq!(resolve_tasks(&world), 1);
    assert_eq!(due_now(&world).len(), 1);

    // The account's own host is not held up meanwhile.
    world.host = name("pds.test");
    world.seq = 100;
    world.commit(&mut account, &[write("b", "second")]);
    world.check_equal(&account);

    // It was just read: then the next time is a minute later.
    clear_tasks(&world);
    resolve(&mut world, &account, "pds.test", Duration::from_secs(1));
    world.host = name("b.test");
    world.seq = 200;
    identity_event(&mut world, &twin);
    identity_event(&mut world, &twin);
    assert_eq!((resolve_tasks(&world), due_now(&world).len()), (1, 0));
    let due_in = |seconds| {
        let at = NOW.plus(Duration::from_secs(seconds)).millis();
        Mirror::new(&*world.store)
            .due_tasks(at, 1000)
            .expect("reads")
            .len()
    };
    assert_eq!((due_in(59), due_in(61)), (0, 1), "a minute, and no longer");

    // The directory is down: it is asked again later, but for what its host has deleted.
    clear_tasks(&world);
    let failed = |account: &SimAccount| Input::Identity {
        did: account.did().clone(),
        resolved: None,
        task: Vec::new(),
        retry_at: NOW,
    };
    world.apply(failed(&account));
    assert_eq!((resolve_tasks(&world), due_now(&world).len()), (1, 0));
    world.host = name("pds.test");
    world.seq = 300;
    account_event(&mut world, &account, false, Some("deleted"));
    clear_tasks(&world);
    world.apply(failed(&account));
    assert_eq!(resolve_tasks(&world), 0);
}

#[test]
fn a_fetch_that_finds_the_document_elsewhere_moves_the_account() {
    for (host, followed) in [("b.test", true), ("far.test", false)] {
        let mut world = two_hosts();
        // Never held: known from the stream of the wrong host alone.
        let mut account = SimAccount::new(7, NOW);
        world.commit(&mut account, &[write("a", "first")]);
        let task = world.fetch_task(account.did());
        world.apply(Input::FetchFailed {
            did: account.did().clone(),
            host: name("pds.test"),
            failure: FetchFailure::NotThisHost(document(&account, host, Duration::ZERO)),
            asked_at: ASKED,
            task,
            retry_at: NOW.plus(Duration::from_secs(60)),
        });
        let found = row(&world, &account);
        assert_eq!(found.host == name("b.test"), followed);
        assert_eq!(matches!(found.sync, SyncState::Wanted { .. }), followed);
        assert_eq!(matches!(found.sync, SyncState::Moved { .. }), !followed);
        let due = due_now(&world);
        assert_eq!(due.contains(&Task::FetchRepo(account.did().clone())), followed);
    }
}

#[test]
fn the_document_of_an_account_that_is_off_is_read_again_whenever_its_host_is_asked() {
    let mut world = two_hosts();
    let account = world.live(1);
    account_event(&mut world, &account, false, Some("deactivated"));
    // The directory gave the document of before: nothing says that the account has moved.
    resolve(&mut world, &account, "pds.test", Duration::from_secs(120));
    let asked = |world: &mut World, input: Input| {
        clear_tasks(world);
        world.apply(input);
        resolve_tasks(world)
    };
    let audited = |status| Input::Audited {
        did: account.did().clone(),
        host: name("pds.test"),
        status,
        head: None,
        asked_at: super::tests::ASKED,
        task: Vec::new(),
    };
    let failed = |status| Input::FetchFailed {
        did: account.did().clone(),
        host: name("pds.test"),
        failure: FetchFailure::Inactive(status),
        asked_at: super::tests::ASKED,
        task: Vec::new(),
        retry_at: NOW,
    };
    let off = AccountStatus::Deactivated;
    assert_eq!(asked(&mut world, audited(Some(off.clone()))), 1);
    assert_eq!(asked(&mut world, failed(off)), 1);
    assert_eq!(asked(&mut world, audited(None)), 1);
    // What is deleted is not asked for.
    account_event(&mut world, &account, false, Some("deleted"));
    assert_eq!(asked(&mut world, audited(Some(AccountStatus::Deleted))), 0);
    assert_eq!(asked(&mut world, failed(AccountStatus::Deleted)), 0);
}

#[test]
fn a_document_without_a_host_moves_nothing() {
    let mut world = World::new();
    let account = world.live(1);
    world.apply(Input::Identity {
        did: account.did().clone(),
        resolved: Some(StoredIdentity {
            host: None,
            ..document(&account, "pds.test", Duration::ZERO)
        }),
        task: Vec::new(),
        retry_at: NOW,
    });
    let row = row(&world, &account);
    assert_eq!((row.sync, row.host), (SyncState::Live, name("pds.test")));
}

#[test]
fn results_that_the_old_host_gave_while_the_account_moved_count_for_nothing() {
    let mut world = two_hosts();
    let account = world.live(1);
    account_event(&mut world, &account, false, Some("deactivated"));
    account_event(&mut world, &account, true, None);
    let late = world.load(&account);
    resolve(&mut world, &account, "b.test", Duration::ZERO);
    let moved = row(&world, &account);

    world.apply(late);
    world.apply(Input::FetchFailed {
        did: account.did().clone(),
        host: name("pds.test"),
        failure: FetchFailure::Inactive(AccountStatus::Deactivated),
        asked_at: ASKED,
        task: Vec::new(),
        retry_at: NOW,
    });
    world.apply(Input::Audited {
        did: account.did().clone(),
        host: name("pds.test"),
        status: Some(AccountStatus::Deactivated),
        head: None,
        asked_at: ASKED,
        task: Vec::new(),
    });
    assert_eq!(row(&world, &account), moved);
    assert!(due_now(&world).contains(&Task::FetchRepo(account.did().clone())));
    world.check_equal(&account);
}

// Keys of before.

/// An account whose head is signed by the key that its log names as the one of before.
fn rotated() -> (SimAccount, LoggedKey) {
    let mut account = SimAccount::new(1, NOW);
    account.commit(0, &[write("a", "first")], NOW);
    let mut log = LogMaker::new(NOW.minus(Duration::from_secs(7200)));
    log.push(
        LogMaker::operation(&[1], &account.key().to_did_key(), "old.test", None),
        1,
    );
    log.later(Duration::from_secs(3600));
    let mut successor = SimAccount::new(1, NOW);
    successor.rotate_key(11);
    let current = successor.key().to_did_key();
    let last = log.last_cid();
    log.push(LogMaker::operation(&[1], &current, "pds.test", Some(&last)), 1);
    let account = account.with_did(log.did());
    let parsed = PlcLog::parse(&log.did(), &log.answer()).expect("verifies");
    let earlier = parsed.earlier_keys(&successor.key(), 16).remove(0);
    (account, earlier)
}

fn check<'k>(account: &SimAccount, key: impl Into<HeadKey<'k>>) -> Result<VerifiedRepo, String> {
    let car = account.export();
    let parsed = parse_car(&car).expect("a CAR");
    let blocks: std::collections::BTreeMap<Digest, &[u8]> = parsed
        .blocks
        .iter()
        .map(|(cid, bytes)| (*cid.digest(), *bytes))
        .collect();
    let root = parsed.roots[0];
    check_repo(&blocks, root, account.did(), key, NOW, |_, _, _| {
        Ok::<(), std::convert::Infallible>(())
    })
    .map_err(|fault| fault.to_string())
}

#[test]
fn a_head_signed_by_a_key_of_before_is_taken_and_flagged() {
    let (mut account, earlier) = rotated();
    let mut world = World::new();
    listed(&mut world, &account, AccountStatus::Active);
    let proven = check(&account, &earlier).expect("signed by the key of before");
    assert_eq!(proven.signed_by(), &KeyStanding::Earlier(earlier.clone()));
    let Input::Fetched(mut fetched) = world.load(&account) else {
        panic!("a fetch")
    };
    let FetchedContent::Loaded { repo, .. } = &mut fetched.content else {
        panic!("loaded")
    };
    *repo = proven;
    let mut successor = SimAccount::new(1, NOW);
    successor.rotate_key(11);
    fetched.identity.key = Some(successor.key().to_did_key());
    world.apply(Input::Fetched(fetched));
    let flagged = HeadSigner::Earlier {
        key: earlier.key().to_did_key(),
    };
    let held = row(&world, &account);
    assert_eq!((&held.sync, &held.head_signed_by), (&SyncState::Live, &flagged));
    world.check_equal(&account);

    // The key of before proves no commit, not even the next one.
    let seq = world.seq();
    let mut forger = SimAccount::new(1, NOW).with_did(account.did().clone());
    forger.commit(0, &[write("a", "first")], NOW);
    let notes = world.frame(forger.commit(seq, &[write("b", "old key")], NOW));
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    let notes = resolve(
        &mut world,
        &successor.with_did(account.did().clone()),
        "pds.test",
        Duration::ZERO,
    );
    let bad = RejectReason::BadSignature;
    assert!(
        notes
            .iter()
            .any(|note| matches!(note, Note::Rejected { reason, .. } if *reason == bad)),
        "{notes:?}"
    );
    assert_eq!(row(&world, &account).head, held.head);
    let mut fetched = unchanged(&world, &account, "pds.test");
    account.rotate_key(11);
    if let Input::Fetched(fetched) = &mut fetched {
        fetched.identity.key = Some(account.key().to_did_key());
    }
    world.apply(fetched);
    assert_eq!(row(&world, &account).head_signed_by, flagged);

    // The first write with the current key ends it.
    world.commit(&mut account, &[write("b", "new key")]);
    world.check_equal(&account);
    assert_eq!(row(&world, &account).head_signed_by, HeadSigner::Current);
}

#[test]
fn only_the_accounts_own_standing_keys_prove_a_head() {
    let (account, earlier) = rotated();
    let current = SimAccount::new(1, NOW).key();
    assert!(check(&account, &current).is_ok());
    let foreign = secret(4).public();
    let error = check(&account, &foreign).expect_err("another key");
    assert!(error.contains("bad_signature"), "{error}");
    // Another account's log, though it names the same key.
    let elsewhere = SimAccount::new(2, NOW).did().clone();
    let mut other = SimAccount::new(1, NOW).with_did(elsewhere);
    other.commit(0, &[write("a", "first")], NOW);
    let error = check(&other, &earlier).expect_err("another log");
    assert!(error.contains("did_mismatch"), "{error}");
}

#[test]
fn the_key_of_a_nullified_operation_is_none_of_the_keys_of_before() {
    let key_of = |number| secret(number).public();
    let operation = |rotation: &[u8], signing, prev| {
        LogMaker::operation(rotation, &key_of(signing).to_did_key(), "pds.test", prev)
    };
    let mut log = LogMaker::new(NOW);
    log.push(operation(&[1, 2], 6, None), 1);
    let first = log.last_cid();
    log.push(operation(&[2], 4, Some(&first)), 2);
    let rogue = |log: &LogMaker| {
        let parsed = PlcLog::parse(&log.did(), &log.answer()).expect("verifies");
        let keys = parsed.earlier_keys(&key_of(8), 16);
        let keys: Vec<_> = keys.iter().map(|logged| logged.key().clone()).collect();
        keys
    };
    assert_eq!(rogue(&log), [key_of(4), key_of(6)]);
    log.entries[1]["nullified"] = true.into();
    log.push(operation(&[1], 8, Some(&first)), 1);
    assert_eq!(rogue(&log), [key_of(6)]);
}

#[test]
fn a_sync_of_the_head_that_we_hold_is_nothing_whatever_its_rev() {
    let mut world = World::new();
    let account = world.live(1);
    let before = row(&world, &account);
    let later = NOW.plus(Duration::from_secs(100));
    let seq = world.seq();
    let frame = sync_frame(&account, seq, Rev::from_time(later, 0));
    let notes = world.frame(frame);
    assert_eq!(notes, []);
    assert_eq!(row(&world, &account), before);
    assert_eq!(before.sync, SyncState::Live);

    // A state whose own rev is not newer than ours, under a newer rev: it is fetched, found older, and the
    // account goes on with its next write.
    let mut imported = SimAccount::new(1, NOW);
    imported.commit(0, &[write("z", "imported")], NOW.minus(Duration::from_secs(1000)));
    let seq = world.seq();
    let frame = sync_frame(&imported, seq, Rev::from_time(later, 1));
    let notes = world.frame(frame);
    let wanted = Note::Desynchronized {
        did: account.did().clone(),
        reason: DesyncReason::SyncEvent,
    };
    assert!(notes.contains(&wanted), "{notes:?}");
    world.fetch(&imported);
    assert!(matches!(row(&world, &account).sync, SyncState::Diverged { .. }));
    world.check_equal(&account);
    let seq = world.seq();
    let at = later.plus(Duration::from_secs(1));
    world.frame(imported.commit(seq, &[write("y", "after")], at));
    world.fetch(&imported);
    world.check_equal(&imported);
}
