//! The power goes at each batch in turn, and another archive takes the place of the first.

use super::tests::{NOW, World, delete, write};
use super::*;
use crate::mirror::input::{BlobKey, SnapshotStored};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::BlobState;
use crate::mirror::store::View as _;
use crate::sim::SimAccount;
use crate::sim::account::post_with_blob;
use crate::types::Cid;

/// What a world holds, all of it.
fn rows(world: &World) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.push((family, key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        world.store.scan(family, &KeyRange::all(), visit).expect("reads");
    }
    rows
}

/// Does something whose only durable moment is one batch, with power for ever fewer batches: either all of it is
/// there after the crash, or nothing.
fn all_or_nothing(prepare: impl Fn() -> (World, Input), what: &str) {
    let (mut whole, input) = prepare();
    whole.applier.apply(vec![input], NOW).expect("power");
    let after = rows(&whole);
    let mut cut = 0;
    loop {
        let (mut world, input) = prepare();
        let before = rows(&world);
        assert_ne!(before, after, "{what}: it changes something");
        world.store.lose_power_after(cut);
        let done = world.applier.apply(vec![input], NOW).is_ok();
        world.store.crash(0);
        let found = rows(&world);
        if done {
            assert_eq!(found, after, "{what}: what was acknowledged is there");
            return;
        }
        assert_eq!(found, before, "{what}: after {cut} batches");
        cut += 1;
        assert!(cut < 100, "{what}: it never ends");
    }
}

#[test]
fn the_cursor_and_what_it_stands_for_are_one_batch() {
    all_or_nothing(
        || {
            let mut world = World::new();
            let mut account = world.live(1);
            let seq = world.seq();
            let frame = account.commit(seq, &[write("b", "second"), delete("a")], NOW);
            let event = world.event(frame);
            (world, event)
        },
        "a commit",
    );
    all_or_nothing(
        || {
            let mut world = World::new();
            let mut account = SimAccount::new(5, NOW);
            let seq = world.seq();
            // The number of the account is reserved by a batch of its own.
            world.live(1);
            let frame = account.commit(seq, &[write("a", "first")], NOW);
            let event = world.event(frame);
            (world, event)
        },
        "an event that waits",
    );
}

#[test]
fn a_swap_and_what_waited_for_it_are_one_batch() {
    all_or_nothing(
        || {
            let mut world = World::new();
            let mut account = world.live(1);
            account.commit(1, &[write("lost", "nobody saw this")], NOW);
            world.commit(&mut account, &[write("b", "second")]);
            let fetched = world.load(&account);
            world.commit(&mut account, &[write("c", "waits")]);
            (world, fetched)
        },
        "a swap",
    );
}

#[test]
fn another_archive_forgets_what_the_first_one_has() {
    let mut world = World::new();
    let mut account = world.live(1);
    let link = |world: &mut World, id: &str| {
        world.apply(Input::ArchiveLinked { id: id.to_owned() });
    };
    link(&mut world, "first");
    let cid = Cid::of_blob(b"one");
    let path = "app.bsky.feed.post/p".to_owned();
    world.commit(&mut account, &[(path, Some(post_with_blob("picture", &cid, 3)))]);
    let row = world.row(account.did()).expect("known");
    let blob = BlobKey {
        did: account.did().clone(),
        did_number: row.did_number,
        digest: *cid.digest(),
    };
    let task = Vec::new;
    world.apply(Input::BlobStored {
        blob: blob.clone(),
        size: 3,
        mime: None,
        task: task(),
    });
    world.apply(Input::BlobArchived { blob, task: task() });
    let head = row.head.expect("loaded");
    world.apply(Input::SnapshotStored(SnapshotStored {
        did: account.did().clone(),
        account_number: row.account_number,
        rev: head.rev,
        commit: head.commit,
        bytes: 100,
        task: task(),
    }));
    let archived = |world: &World| {
        let row = world.row(account.did()).expect("known");
        let blob = Mirror::new(&*world.store).blob(row.did_number, cid.digest());
        let blob = blob.expect("reads").expect("known");
        (row.is_snapshotted(), blob.state)
    };
    link(&mut world, "first");
    assert_eq!(archived(&world), (true, BlobState::Archived));
    link(&mut world, "second");
    assert_eq!(archived(&world), (false, BlobState::Wanted));
    assert!(world.tasks().contains(&Task::Snapshot(account.did().clone())));
    assert_eq!(world.applier.totals().archived, 0);
}
