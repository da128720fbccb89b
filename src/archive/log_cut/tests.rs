//! What the log says, told again by itself, is what the mirror held at every step.

use std::collections::BTreeMap;

use super::*;
use crate::mirror::applier::Note;
use crate::mirror::applier::moved_tests::account_event;
use crate::mirror::applier::tests::{ASKED, NOW, World, delete, write};
use crate::mirror::input::{Input, ListedPage, ListedRepo, SegmentShipped, SnapshotStored};
use crate::mirror::keyspace;
use crate::mirror::rows::{AccountRow, Listing};
use crate::mirror::store::{Batch, Store as _};
use crate::repo::commit::Commit;
use crate::repo::mst::tree_root;
use crate::sim::SimAccount;
use crate::types::AccountStatus;

/// An archive: what was shipped, as it is read again.
#[derive(Default)]
struct Shipped {
    files: Vec<LogFile>,
}

impl Shipped {
    /// Ships whatever waits, as the shipper does.
    fn drain(&mut self, world: &mut World) {
        loop {
            let log = Mirror::new(&*world.store).log().expect("reads");
            let Some(segment) = next_segment(&Mirror::new(&*world.store), &log).expect("sound") else {
                return;
            };
            let (first, last) = (segment.first, segment.last);
            world.apply(Input::SegmentCut { first, last });
            // What is fixed stays what it is, whatever comes meanwhile.
            let log = Mirror::new(&*world.store).log().expect("reads");
            let again = next_segment(&Mirror::new(&*world.store), &log).expect("sound");
            assert_eq!(again.map(|again| again.file), Some(segment.file.clone()));
            world.apply(Input::SegmentShipped(SegmentShipped {
                number: log.number,
                first,
                last,
                index: segment.file.root,
            }));
            let read = LogFile::decode(&*segment.file.encode_car()).expect("reads again");
            self.files.push(read);
        }
    }

    fn entries(&self) -> impl Iterator<Item = (&LogFile, &Entry)> {
        let files = self.files.iter();
        files.flat_map(|file| file.index.entries.iter().map(move |entry| (file, entry)))
    }
}

/// Applies a change to a state, and proves what comes out.
fn replay(state: &mut BTreeMap<String, Bytes>, file: &LogFile, change: &Change) {
    for op in &change.ops {
        match op.cid {
            Some(cid) => {
                let bytes = file.blocks.get(&cid).expect("nothing was erased").clone();
                state.insert(op.path.to_string(), bytes);
            }
            None => assert!(state.remove(op.path.as_str()).is_some(), "{} was there", op.path),
        }
    }
    let commit = Commit::decode(&file.blocks[&change.commit]).expect("a commit");
    let pairs = state
        .iter()
        .map(|(path, bytes)| (path.as_bytes(), Cid::of_block(bytes)));
    assert_eq!(tree_root(pairs), Ok(commit.data), "at rev {}", change.rev);
    assert_eq!(commit.rev, change.rev);
}

fn state_of(account: &SimAccount) -> BTreeMap<String, Bytes> {
    let records = account.records().iter();
    records
        .map(|(path, bytes)| (path.clone(), Bytes::from(bytes.clone())))
        .collect()
}

/// Another commit, which does not chain, and then the whole repository.
fn refetch(world: &mut World, account: &mut SimAccount) {
    world.commit(account, &[write("z", "does not chain")]);
    world.fetch(account);
    world.check_equal(account);
}

fn snapshot(world: &mut World, account: &SimAccount) {
    let row = world.row(account.did()).expect("known");
    let head = row.head.expect("loaded");
    world.apply(Input::SnapshotStored(SnapshotStored {
        did: account.did().clone(),
        account_number: row.account_number,
        rev: head.rev,
        commit: head.commit,
        bytes: 1,
        task: Vec::new(),
    }));
}

/// Every delta behind a snapshot, as the keeper makes them.
fn deltas(mirror: &Mirror<'_>, account: &SimAccount, row: &AccountRow, base: Rev) -> Vec<LogFile> {
    let (mut made, mut at) = (Vec::new(), base);
    while let Some((file, reached)) = next_delta(
        mirror,
        account.did(),
        row.did_number,
        &row.host,
        (at, account.rev()),
    )
    .expect("reads")
    {
        made.push(file);
        at = reached;
    }
    made
}

fn journal(world: &World, account: &SimAccount) -> usize {
    let row = world.row(account.did()).expect("known");
    let mut rows = 0;
    let mirror = Mirror::new(&*world.store);
    mirror
        .each_journal_entry(row.did_number, None, |_, _| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .expect("reads");
    rows
}

#[test]
fn the_log_tells_again_what_the_mirror_held() {
    let mut world = World::new();
    let mut accounts = [world.live(1), world.live(2)];
    let mut states = accounts.each_ref().map(state_of);
    let (mut shipped, mut seen) = (Shipped::default(), [0_u32; 2]);
    for step in 0..120_u32 {
        let which = (step % 2) as usize;
        let account = &mut accounts[which];
        let keys = [format!("k{}", step % 17), format!("m{}", step % 5)];
        let mut writes = vec![write(&keys[0], &format!("text {step}"))];
        if step % 3 == 0 {
            writes.push(write(&keys[1], "another"));
        } else if account
            .records()
            .contains_key(&format!("app.bsky.feed.post/{}", keys[1]))
        {
            writes.push(delete(&keys[1]));
        }
        if step % 11 == 10 {
            // Written unseen, then fetched whole.
            account.write(&writes, NOW);
            refetch(&mut world, account);
        } else {
            world.commit(account, &writes);
        }
        world.check_equal(account);
        if step % 7 == 0 {
            shipped.drain(&mut world);
        }
    }
    shipped.drain(&mut world);
    assert_eq!(world.applier.totals().unshipped, 0);

    let (mut swaps, mut commits) = (0, 0);
    for (file, entry) in shipped.entries() {
        let Some(change) = entry.change() else { continue };
        let which = usize::from(change.did == *accounts[1].did());
        replay(&mut states[which], file, change);
        seen[which] += 1;
        match entry {
            Entry::Swap(_) => swaps += 1,
            _ => commits += 1,
        }
    }
    assert_eq!(states, accounts.each_ref().map(state_of));
    assert_eq!((swaps, commits), (10, 110));
    assert_eq!(seen, [60, 60]);
    // One chain, without a gap.
    let (mut prev, mut next) = (None, 1);
    for (at, file) in shipped.files.iter().enumerate() {
        let Origin::Segment {
            number,
            prev: named,
            first,
            ..
        } = file.index.origin
        else {
            panic!("a segment")
        };
        assert_eq!((number, named, first), (at as u64, prev, next));
        prev = Some(file.root);
        next = first + file.index.entries.len() as u64;
    }
}

#[test]
fn what_has_nothing_to_build_on_is_told_by_a_snapshot() {
    let mut world = World::new();
    let account = world.live(1);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    let entries: Vec<&Entry> = shipped.entries().map(|(_, entry)| entry).collect();
    let [Entry::Loaded { rev, commit, .. }] = *entries else {
        panic!("{entries:?}");
    };
    assert_eq!((*rev, *commit), (account.rev(), account.head()));
    // The log has it, and still it is not in the archive.
    assert!(!world.row(account.did()).expect("known").is_archived());
    snapshot(&mut world, &account);
    assert!(world.row(account.did()).expect("known").is_archived());
}

#[test]
fn a_swap_to_the_head_that_is_held_leaves_its_change_in_the_log() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut states = state_of(&account);
    snapshot(&mut world, &account);
    world.commit(&mut account, &[write("b", "second")]);
    // Asked for again, it gives the very head that is held.
    let seq = world.seq();
    let frame = account.sync_frame(seq + 1, NOW);
    world.frame(frame);
    world.want_again(account.did());
    world.fetch(&account);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    for (file, entry) in shipped.entries() {
        if let Some(change) = entry.change() {
            assert!(change.since < change.rev);
            replay(&mut states, file, change);
        }
    }
    assert_eq!(states, state_of(&account));
}

#[test]
fn no_index_outgrows_its_block() {
    let mut world = World::new();
    for n in 0..1200 {
        let did = format!("did:web:{}.{n}.example", "a".repeat(1900));
        let mut account = SimAccount::new(n + 1, NOW).with_did(did.parse().expect("a DID"));
        account.commit(0, &[], NOW);
        account_event(&mut world, &account, false, Some("takendown"));
    }
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    assert!(shipped.files.len() > 1, "{}", shipped.files.len());
}

#[test]
fn a_swap_that_changes_too_much_is_told_by_a_snapshot() {
    let mut world = World::new();
    let mut account = world.live(1);
    snapshot(&mut world, &account);
    for n in 0..16 {
        let writes: Vec<_> = (0..100).map(|k| write(&format!("n{n}-{k}"), "x")).collect();
        account.write(&writes, NOW);
    }
    refetch(&mut world, &mut account);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    let last = shipped.entries().last().map(|(_, entry)| entry.clone());
    assert!(matches!(last, Some(Entry::Loaded { .. })), "{last:?}");
    let row = world.row(account.did()).expect("known");
    assert!(row.snapshot.is_none() && !row.is_archived());
}

#[test]
fn the_journal_goes_when_it_is_shipped_and_covered() {
    let mut world = World::new();
    let mut account = world.live(1);
    snapshot(&mut world, &account);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    let base = account.rev();
    world.commit(&mut account, &[write("b", "second")]);
    world.commit(&mut account, &[write("c", "third")]);
    assert_eq!(journal(&world, &account), 2);
    assert!(!world.row(account.did()).expect("known").is_archived());

    // Shipped, not covered: it stays, for a delta is to be made of it.
    shipped.drain(&mut world);
    assert_eq!(journal(&world, &account), 2);
    let row = world.row(account.did()).expect("known");
    assert!(row.is_archived() && !row.is_snapshotted());
    let mirror = Mirror::new(&*world.store);
    let made = deltas(&mirror, &account, &row, base);
    let [delta] = &*made else { panic!("{made:?}") };
    let mut state = state_of(&account);
    state.retain(|path, _| !path.ends_with("/b") && !path.ends_with("/c"));
    for change in delta.index.entries.iter().filter_map(Entry::change) {
        replay(&mut state, delta, change);
    }
    assert_eq!(state, state_of(&account));

    // Covered, but the newest is not shipped: that one stays.
    world.commit(&mut account, &[write("d", "fourth")]);
    snapshot(&mut world, &account);
    assert_eq!(journal(&world, &account), 1);
    assert_eq!(world.row(account.did()).expect("known").journal_commits, 0);
    shipped.drain(&mut world);
    assert_eq!(journal(&world, &account), 0);
}

#[test]
fn a_delta_names_the_host_that_each_change_came_from() {
    let mut world = World::new();
    let mut account = world.live(1);
    let base = account.rev();
    world.commit(&mut account, &[write("b", "second")]);
    // It moved since.
    let mut row = world.row(account.did()).expect("known");
    let came_from = std::mem::replace(&mut row.host, "b.test".parse().expect("a host"));
    world.put_row(account.did(), &row);
    let made = deltas(&Mirror::new(&*world.store), &account, &row, base);
    let hosts: Vec<&HostName> = made
        .iter()
        .flat_map(|file| &file.index.entries)
        .filter_map(|entry| entry.change().map(|change| &change.host))
        .collect();
    assert_eq!(hosts, [&came_from]);
}

#[test]
fn deltas_end_where_their_chain_does() {
    let mut world = World::new();
    let mut account = world.live(1);
    let base = account.rev();
    world.commit(&mut account, &[write("b", "second")]);
    let before = account.rev();
    for n in 0..16 {
        let writes: Vec<_> = (0..100).map(|k| write(&format!("n{n}-{k}"), "x")).collect();
        account.write(&writes, NOW);
    }
    refetch(&mut world, &mut account);
    world.commit(&mut account, &[write("c", "third")]);
    let row = world.row(account.did()).expect("known");
    let mirror = Mirror::new(&*world.store);
    let made = deltas(&mirror, &account, &row, base);
    let [delta] = &*made else { panic!("{made:?}") };
    let did = account.did().clone();
    let (from, to) = (base, before);
    assert_eq!(delta.index.origin, Origin::Delta { did, from, to });
}

#[test]
fn many_changes_are_cut_into_files_that_fit() {
    let mut world = World::new();
    let mut account = world.live(1);
    let base = account.rev();
    for n in 0..30 {
        let writes: Vec<_> = (0..100).map(|k| write(&format!("n{n}-{k}"), "x")).collect();
        world.commit(&mut account, &writes);
    }
    let row = world.row(account.did()).expect("known");
    let mirror = Mirror::new(&*world.store);
    let made = deltas(&mirror, &account, &row, base);
    assert_eq!(made.len(), 2);
    let mut at = base;
    for file in &made {
        let items: usize = file.index.entries.iter().map(Entry::items).sum();
        assert!(items <= ITEMS_MAX);
        let Origin::Delta { from, to, .. } = file.index.origin else {
            panic!("a delta")
        };
        assert_eq!(from, at);
        at = to;
    }
    assert_eq!(at, account.rev());
    let first = next_segment(&Mirror::new(&*world.store), &LogRow::default()).expect("sound");
    assert!(first.expect("something").is_full);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    assert_eq!(shipped.files.len(), 2);
}

#[test]
fn what_was_shipped_is_not_looked_for_again() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut shipped = Shipped::default();
    for round in 1..4 {
        world.commit(&mut account, &[write("b", &format!("text {round}"))]);
        shipped.drain(&mut world);
        let log = Mirror::new(&*world.store).log().expect("reads");
        let last = shipped.files.last().expect("a segment");
        let Origin::Segment { first, .. } = last.index.origin else {
            panic!("a segment");
        };
        assert_eq!(log.shipped, Some(first + last.index.entries.len() as u64 - 1));
        assert_eq!(last.index.entries.len(), if round == 1 { 2 } else { 1 });
    }
}

#[test]
fn a_change_that_the_journal_lacks_is_damage() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[write("b", "second")]);
    let row = world.row(account.did()).expect("known");
    let mut batch = Batch::new();
    let key = keyspace::encode_journal(row.did_number, account.rev());
    batch.delete(Family::Journal, key.to_vec());
    world.store.write(batch).expect("writes");
    let mirror = Mirror::new(&*world.store);
    let cut = next_segment(&mirror, &LogRow::default());
    assert!(matches!(cut, Err(StoreError::BadRow { .. })), "{cut:?}");
}

#[test]
fn a_cut_that_the_outbox_does_not_hold_is_damage() {
    let mut world = World::new();
    world.live(1);
    let log = LogRow {
        cut: Some((1, 9)),
        ..LogRow::default()
    };
    let cut = next_segment(&Mirror::new(&*world.store), &log);
    assert!(matches!(cut, Err(StoreError::BadRow { .. })), "{cut:?}");
}

#[test]
fn another_archive_starts_a_log_of_its_own() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.apply(Input::ArchiveLinked { id: "one".into() });
    snapshot(&mut world, &account);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    world.commit(&mut account, &[write("b", "second")]);
    world.apply(Input::ArchiveLinked { id: "two".into() });
    let mirror = Mirror::new(&*world.store);
    assert_eq!(mirror.log().expect("reads"), LogRow::default());
    assert_eq!(mirror.outbox(0, 9).expect("reads"), []);
    assert_eq!(world.applier.totals().unshipped, 0);
    let row = world.row(account.did()).expect("known");
    assert_eq!((row.shipped, row.is_archived()), (None, false));
    // What is left of the journal goes with the next that is shipped and covered.
    world.commit(&mut account, &[write("c", "third")]);
    Shipped::default().drain(&mut world);
    snapshot(&mut world, &account);
    assert_eq!(journal(&world, &account), 0);
}

#[test]
fn a_changed_status_is_in_the_log() {
    let mut world = World::new();
    let account = world.live(1);
    account_event(&mut world, &account, false, Some("takendown"));
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    let last = shipped.entries().last().map(|(_, entry)| entry.clone());
    let Some(Entry::Account { status, did, .. }) = last else {
        panic!("{last:?}");
    };
    assert_eq!((status, &did), (AccountStatus::Takendown, account.did()));
}

fn statuses(world: &World) -> Vec<(AccountStatus, HostName)> {
    let waiting = Mirror::new(&*world.store).outbox(0, 99).expect("reads");
    let told = waiting.into_iter().filter_map(|(_, entry)| match entry {
        OutboxEntry::Account { status, host, .. } => Some((status, host)),
        _ => None,
    });
    told.collect()
}

#[test]
fn the_status_that_an_account_is_first_seen_with_is_in_the_log() {
    let mut world = World::new();
    for (number, status) in [
        (1, AccountStatus::Active),
        (2, AccountStatus::Deactivated),
        (3, AccountStatus::Takendown),
    ] {
        let account = SimAccount::new(number, NOW);
        world.apply(Input::Listed(ListedPage {
            host: world.host.clone(),
            repos: vec![ListedRepo {
                did: account.did().clone(),
                head: None,
                status,
            }],
            listing: Listing::Finished { at: NOW },
            asked_at: ASKED,
            task: None,
        }));
    }
    let host = world.host.clone();
    assert_eq!(
        statuses(&world),
        [
            (AccountStatus::Deactivated, host.clone()),
            (AccountStatus::Takendown, host)
        ],
        "active is what nobody has to say"
    );
}

#[test]
fn a_deletion_that_was_the_old_hosts_own_is_taken_back_in_the_log() {
    let mut world = World::new();
    let other: HostName = "b.test".parse().expect("a host");
    world
        .applier
        .ensure_host(&other, "https://b.test")
        .expect("writes");
    let account = world.live(1);
    account_event(&mut world, &account, false, Some("deleted"));
    let mut identity = world.identity(&account);
    identity.host = Some(other.to_string());
    world.apply(Input::Identity {
        did: account.did().clone(),
        resolved: Some(identity),
        task: Vec::new(),
        retry_at: NOW,
    });
    let row = world.row(account.did()).expect("known");
    assert_eq!((&row.upstream, &row.host), (&AccountStatus::Deactivated, &other));
    let host = world.host.clone();
    assert_eq!(
        statuses(&world),
        [
            (AccountStatus::Deleted, host),
            (AccountStatus::Deactivated, other)
        ]
    );
}

#[test]
fn what_does_not_fit_into_the_queue_is_told_by_a_snapshot_and_never_claimed() {
    let mut world = World::new();
    let mut account = world.live(1);
    snapshot(&mut world, &account);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    let did = account.did().clone();
    let archived = |world: &World| {
        let row = world.row(&did).expect("known");
        (row.is_archived(), row.unlogged.map(|gap| gap.told))
    };
    assert_eq!(archived(&world), (true, None));
    world.set_spool(1);
    let mut write_one = |world: &mut World, key: &str| world.commit(&mut account, &[write(key, "text")]);
    write_one(&mut world, "b");
    assert_eq!(world.applier.totals().unlogged, 0, "the first fits");
    let queued = world.applier.totals().unshipped_bytes;
    for key in ["c", "d"] {
        let notes = write_one(&mut world, key);
        let alarmed = notes.iter().any(|note| matches!(note, Note::Alarm { .. }));
        assert_eq!(alarmed, key == "c", "once");
    }
    let totals = world.applier.totals();
    assert_eq!(
        (totals.unshipped_bytes, totals.unlogged),
        (queued, 1),
        "no more is queued"
    );
    shipped.drain(&mut world);
    assert_eq!(world.applier.totals().unshipped_bytes, 0);
    assert_eq!(
        archived(&world),
        (false, Some(false)),
        "what is shipped is not its head"
    );

    // There is room again: the log says that it goes on from here, and what comes is in it.
    write_one(&mut world, "e");
    world.set_spool(u64::MAX);
    write_one(&mut world, "f");
    shipped.drain(&mut world);
    assert_eq!(
        archived(&world),
        (false, Some(true)),
        "only with a snapshot does the log tell it"
    );
    let entries: Vec<&Entry> = shipped.entries().map(|(_, entry)| entry).collect();
    let [.., Entry::Loaded { rev: from, .. }, Entry::Commit(last)] = &*entries else {
        panic!("{entries:?}");
    };
    assert_eq!(last.since, *from);
    snapshot(&mut world, &account);
    assert_eq!(archived(&world), (true, None));
    world.check_equal(&account);
}

#[test]
fn a_snapshot_over_a_gap_is_where_the_log_goes_on() {
    let mut world = World::new();
    let mut account = world.live(1);
    snapshot(&mut world, &account);
    let mut shipped = Shipped::default();
    shipped.drain(&mut world);
    world.set_spool(1);
    for key in ["b", "c", "d"] {
        world.commit(&mut account, &[write(key, "text")]);
    }
    let gap = account.rev();
    shipped.drain(&mut world);
    // It is snapshotted before anything else comes.
    snapshot(&mut world, &account);
    world.set_spool(u64::MAX);
    world.commit(&mut account, &[write("e", "behind the gap")]);
    shipped.drain(&mut world);
    let entries: Vec<&Entry> = shipped.entries().map(|(_, entry)| entry).collect();
    let [.., Entry::Loaded { rev, .. }, Entry::Commit(last)] = &*entries else {
        panic!("{entries:?}");
    };
    assert_eq!((*rev, last.since), (gap, gap));
    let row = world.row(account.did()).expect("known");
    assert!(row.is_archived() && row.unlogged.is_none());
}
