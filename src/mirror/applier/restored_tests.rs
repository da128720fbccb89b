//! Accounts that come from the archive.

use super::tests::{NOW, World};
use super::*;
use crate::mirror::input::{Refilled, Restored, RestoredRepo};
use crate::mirror::keyspace::{META_ARCHIVE_ID, META_COLD_START, META_NEXT_LOG, NO_NUMBER};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{
    BlobRow, BlobState, HostRow, Listing, LogRow, OutboxEntry, RecordValue, SnapshotMark,
};
use crate::mirror::store::{Batch, View as _};
use crate::sim::SimAccount;
use crate::sim::account::post;
use crate::types::{AccountStatus, Cid, Rev};
use crate::verify::check_rows;

/// Loads an account's records under a number, and proves them.
fn loaded(world: &World, account: &SimAccount, writes: &[(String, Vec<u8>)], number: u64) -> RestoredRepo {
    let mut batch = Batch::new();
    for (path, bytes) in writes {
        let value = RecordValue {
            rev: account.rev(),
            digest: *Cid::of_block(bytes).digest(),
            bytes,
        };
        let key = keyspace::encode_record(number, path.as_bytes());
        batch.put(Family::Records, key, value.encode());
    }
    world.store.write(batch).expect("writes");
    let rows = Mirror::new(&*world.store).rows(number);
    let key = account.key();
    let repo = check_rows(&rows, account.commit_block(), account.did(), &key, NOW).expect("whole");
    RestoredRepo {
        account_number: number,
        snapshot: Some(SnapshotMark {
            rev: repo.rev(),
            commit: repo.cid(),
            at: NOW,
            bytes: 1,
        }),
        repo,
        journal: Vec::new(),
    }
}

fn restored(world: &World, account: &SimAccount, repo: Option<RestoredRepo>, from: u64) -> Input {
    let blob = |state| {
        let mut row = BlobRow::wanted(Some(3), None, NOW);
        row.state = state;
        row
    };
    Input::Restored(Box::new(Restored {
        did: account.did().clone(),
        did_number: 900,
        from_number: from,
        host: world.host.clone(),
        identity: None,
        identity_archived: Some([1; 32]),
        status: AccountStatus::Takendown,
        deleted_at: None,
        moved_to: None,
        repo,
        whole: true,
        pins: Vec::new(),
        blobs: vec![
            (*Cid::of_blob(b"there").digest(), blob(BlobState::Archived)),
            (*Cid::of_blob(b"never").digest(), blob(BlobState::Wanted)),
        ],
    }))
}

fn account() -> (SimAccount, Vec<(String, Vec<u8>)>) {
    let mut account = SimAccount::new(5, NOW);
    let writes: Vec<_> = (0..10)
        .map(|i| (format!("app.bsky.feed.post/r{i}"), post(&format!("text {i}"))))
        .collect();
    let put: Vec<_> = writes
        .iter()
        .map(|(path, bytes)| (path.clone(), Some(bytes.clone())))
        .collect();
    account.commit(1, &put, NOW);
    (account, writes)
}

fn tasks(world: &World) -> Vec<Task> {
    let due = Mirror::new(&*world.store).due_tasks(u64::MAX - 1, usize::MAX);
    due.expect("reads").into_iter().map(|due| due.task).collect()
}

#[test]
fn an_account_from_the_archive_stands_there_hidden_as_it_was_and_nothing_of_it_is_fetched() {
    let mut world = World::new();
    let (account, writes) = account();
    let repo = loaded(&world, &account, &writes, 901);
    let input = restored(&world, &account, Some(repo), NO_NUMBER);
    world.apply(input);
    let row = world.row(account.did()).expect("known");
    assert_eq!((row.did_number, row.account_number, row.records), (900, 901, 10));
    assert_eq!(
        (row.sync.clone(), row.upstream.clone()),
        (SyncState::Live, AccountStatus::Takendown)
    );
    assert!(row.is_archived() && row.is_snapshotted());
    let totals = world.applier.totals();
    assert_eq!((totals.with_head, totals.archived, totals.records), (1, 1, 10));
    assert_eq!(totals.blobs.get("archived"), Some(&1));
    let tasks = tasks(&world);
    assert!(!tasks.iter().any(|task| matches!(
        task,
        Task::FetchRepo(_) | Task::Snapshot(_) | Task::ArchiveIdentity(_)
    )));
    let fetches = tasks.iter().filter(|task| matches!(task, Task::FetchBlob(..)));
    assert_eq!(fetches.count(), 1, "only what the archive lacks");
    assert_eq!(
        super::totals::count(&*world.store).expect("reads"),
        *world.applier.totals()
    );
}

#[test]
fn what_does_not_prove_is_asked_for_at_its_host() {
    let mut world = World::new();
    let (account, _) = account();
    let input = restored(&world, &account, None, NO_NUMBER);
    world.apply(input);
    let row = world.row(account.did()).expect("known");
    assert!(row.head.is_none());
    assert!(matches!(
        row.sync,
        SyncState::Wanted {
            reason: DesyncReason::New,
            ..
        }
    ));
    assert!(tasks(&world).contains(&Task::FetchRepo(account.did().clone())));
}

#[test]
fn a_mirror_that_is_no_older_keeps_what_it_has() {
    let mut world = World::new();
    let (account, writes) = account();
    let repo = loaded(&world, &account, &writes, 901);
    let input = restored(&world, &account, Some(repo), NO_NUMBER);
    world.apply(input);
    for from in [901, 7] {
        let repo = loaded(&world, &account, &writes, 950);
        let input = restored(&world, &account, Some(repo), from);
        world.apply(input);
        let row = world.row(account.did()).expect("known");
        assert_eq!(row.account_number, 901, "from {from}");
        let mut left = 0;
        let rows = Mirror::new(&*world.store).rows(950);
        rows.scan(None, &mut |_, _| {
            left += 1;
            ControlFlow::Continue(())
        })
        .expect("reads");
        assert_eq!(left, 0, "nothing is left of what was loaded");
    }
}

#[test]
fn a_damaged_copy_is_replaced_by_the_same_head_out_of_the_archive() {
    let mut world = World::new();
    let (account, writes) = account();
    let repo = loaded(&world, &account, &writes, 901);
    let input = restored(&world, &account, Some(repo), NO_NUMBER);
    world.apply(input);
    world.apply(Input::Damaged {
        did: account.did().clone(),
        account_number: 901,
        task: Vec::new(),
    });
    assert!(world.row(account.did()).expect("known").damaged);
    let repo = loaded(&world, &account, &writes, 950);
    let input = restored(&world, &account, Some(repo), 901);
    world.apply(input);
    let row = world.row(account.did()).expect("known");
    assert_eq!(
        (row.account_number, row.damaged, row.sync),
        (950, false, SyncState::Live)
    );
}

#[test]
fn numbers_go_on_and_what_the_archive_does_not_tell_is_told_again() {
    let mut world = World::new();
    let (account, _) = account();
    let did = account.did().clone();
    let rev = |n| Rev::from_bits(n).expect("a rev");
    let on = world.host.clone();
    let entry = |n| OutboxEntry::Loaded {
        did: did.clone(),
        host: on.clone(),
        rev: rev(n),
        commit: Cid::of_block(b"commit"),
        received: NOW,
    };
    let mut batch = Batch::new();
    for number in 1..=4u64 {
        batch.put(
            Family::Outbox,
            keyspace::encode_outbox(number).to_vec(),
            crate::mirror::rows::Row::encode(&entry(number)),
        );
    }
    batch.put(Family::Meta, META_NEXT_LOG, keyspace::encode_number(5));
    world.store.write(batch).expect("writes");
    let store: Arc<dyn Store> = Arc::clone(&world.store) as Arc<dyn Store>;
    let numbers = Arc::new(Numbers::open(Arc::clone(&store)).expect("opens"));
    world.applier = Applier::open(store, numbers, ApplierLimits::default()).expect("opens");
    world.applier.begin_cold_start("one").expect("writes");
    let mut host = HostRow::new("https://pds.test");
    host.cursor = Some(77);
    host.listing = Listing::Finished { at: NOW };
    host.next_listing = Some(NOW.plus(restored::LISTED_AFTER));
    let name = world.host.clone();
    world.apply(Input::Refilled(Box::new(Refilled {
        archive: "one".to_owned(),
        log: LogRow {
            generation: 3,
            number: 9,
            prev: None,
            cut: None,
            shipped: None,
        },
        next_log: 40,
        hosts: vec![(name.clone(), host)],
        alarms: Vec::new(),
        told: vec![(did.clone(), rev(2))],
    })));
    let mirror = Mirror::new(&*world.store);
    let left = mirror.outbox(0, 100).expect("reads");
    assert_eq!(left, [(40, entry(3)), (41, entry(4))]);
    assert_eq!(mirror.number(META_NEXT_LOG).expect("reads"), Some(42));
    assert_eq!(mirror.log().expect("reads").number, 9);
    assert_eq!(
        mirror.host(&name).expect("reads").and_then(|row| row.cursor),
        Some(77)
    );
    let meta = |key: &[u8]| world.store.get(Family::Meta, key).expect("reads");
    assert_eq!(meta(META_ARCHIVE_ID).as_deref(), Some(&b"one"[..]));
    assert_eq!(meta(META_COLD_START), None);
    assert_eq!(world.applier.totals().unshipped, 2);
    assert!(tasks(&world).contains(&Task::ListRepos(name)));
}
