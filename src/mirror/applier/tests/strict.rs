//! What the applier makes of evidence that is not what it should be.

use super::*;
use crate::repo::car::{encode_block, encode_header};
use crate::stream::encode::encode_frame;
use crate::stream::frame::{CommitFrame, Frame, decode_frame};
use crate::verify::RejectReason;

fn rejected(notes: &[Note]) -> Vec<RejectReason> {
    let reasons = notes.iter().filter_map(|note| match note {
        Note::Rejected { reason, .. } => Some(*reason),
        _ => None,
    });
    reasons.collect()
}

fn resolve(world: &mut World, account: &SimAccount) -> Vec<Note> {
    let resolved = Some(world.identity(account));
    world.apply(Input::Identity {
        did: account.did().clone(),
        resolved,
        task: Vec::new(),
        retry_at: NOW,
    })
}

#[test]
fn a_sync_with_a_foreign_signature_does_not_make_us_fetch() {
    let mut world = World::new();
    let account = world.live(1);
    let mut forger = SimAccount::new(1, NOW);
    forger.rotate_key(77);
    let later = NOW.plus(Duration::from_secs(60));
    forger.commit(0, &[write("x", "forged")], later);
    let seq = world.seq();
    let notes = world.frame(forger.sync_frame(seq, later));
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    let notes = resolve(&mut world, &account);
    assert_eq!(rejected(&notes), [RejectReason::BadSignature]);
    let row = world.row(account.did()).expect("known");
    assert_eq!((row.sync, row.parked), (SyncState::Live, 0));
    world.check_equal(&account);
}

#[test]
fn a_commit_under_a_new_number_is_no_news() {
    let mut world = World::new();
    let mut account = world.live(1);
    let parts = account.write(&[write("b", "second")], NOW);
    let seq = world.seq();
    world.frame(parts.frame(seq, NOW));
    let seq = world.seq();
    let notes = world.frame(parts.frame(seq, NOW));
    assert!(matches!(notes[..], [Note::Replayed { .. }]), "{notes:?}");
    assert_eq!(
        world.row(account.did()).expect("known").sync,
        SyncState::Live,
        "it is not fetched for that"
    );
    assert_eq!(world.cursor(), Some(seq));
    world.check_equal(&account);
}

#[test]
fn a_host_that_never_reaches_its_own_stream_is_taken_at_its_word_in_the_end() {
    let mut world = World::new();
    let mut account = world.live(1);
    // A commit that the account signed, on a state that its host does not have and never will.
    let mut twin = SimAccount::new(1, NOW);
    let later = NOW.plus(Duration::from_secs(60));
    twin.commit(0, &[write("elsewhere", "x")], later);
    let seq = world.seq();
    let notes = world.frame(twin.commit(seq, &[write("elsewhere2", "x")], later));
    assert_eq!(rejected(&notes), [RejectReason::ChainBroken]);
    account.commit(0, &[write("b", "second")], NOW);
    let mut tries = 0;
    while world.row(account.did()).expect("known").sync != SyncState::Live {
        assert!(tries < 100, "it must not be asked for ever");
        world.fetch(&account);
        tries += 1;
    }
    assert!(tries > 1, "the host gets time to catch up");
    world.check_equal(&account);
    world.commit(&mut account, &[write("c", "third")]);
    world.check_equal(&account);
}

/// A frame as a host of before sends it: without `prevData`, without `prev`; spoiled by `change`.
fn older(frame: &[u8], change: impl FnOnce(&mut CommitFrame<'_>)) -> Vec<u8> {
    let Ok(Frame::Commit(mut commit)) = decode_frame(frame) else {
        panic!("a commit");
    };
    commit.prev_data = None;
    for op in &mut commit.ops {
        op.prev = None;
    }
    change(&mut commit);
    encode_frame(&Frame::Commit(commit))
}

/// A frame without one of its blocks.
fn without(frame: &[u8], left_out: Cid) -> Vec<u8> {
    let Ok(Frame::Commit(commit)) = decode_frame(frame) else {
        panic!("a commit");
    };
    let car = parse_car(commit.blocks).expect("a CAR");
    let mut blocks = encode_header(&car.roots);
    for (cid, bytes) in car.blocks.iter().filter(|(cid, _)| *cid != left_out) {
        encode_block(&mut blocks, cid, bytes);
    }
    encode_frame(&Frame::Commit(CommitFrame {
        blocks: &blocks,
        ..commit
    }))
}

fn live_with_records(world: &mut World, count: usize) -> SimAccount {
    let mut account = world.live(1);
    let writes: Vec<Write> = (0..count)
        .map(|i| write(&format!("r{i:03}"), &format!("record {i}")))
        .collect();
    world.commit(&mut account, &writes);
    world.check_equal(&account);
    account
}

#[test]
fn a_commit_of_an_older_host_is_applied_when_our_rows_rebuild_its_tree() {
    let mut world = World::new();
    let mut account = live_with_records(&mut world, 60);
    let steps: [&[Write]; 6] = [
        &[write("new", "x"), write("r003", "changed"), delete("r004")],
        &[write("new", "again"), delete("r000"), delete("r059")],
        &[],
        &[delete("new")],
        &[write("0first", "x"), write("zlast", "x")],
        &[delete("a")],
    ];
    // All in one group, so that each is judged by rows that are staged only.
    let mut inputs = Vec::new();
    for writes in steps {
        let seq = world.seq();
        let frame = older(&account.commit(seq, writes, NOW), |_| {});
        inputs.push(world.event(frame));
    }
    let outcome = world.applier.apply(inputs, NOW).expect("applies");
    assert_eq!(outcome.notes.len(), steps.len());
    for note in outcome.notes {
        assert!(matches!(note, Note::Applied { .. }), "{note:?}");
    }
    world.check_equal(&account);
    let row = world.row(account.did()).expect("known");
    assert_eq!(row.journal_commits, 1 + steps.len() as u64);

    // Half old, half new: prevData without prev.
    let prev_data = account.data();
    let seq = world.seq();
    let frame = account.commit(seq, &[write("r005", "changed"), delete("r006")], NOW);
    world.frame(older(&frame, |commit| commit.prev_data = Some(prev_data)));
    world.check_equal(&account);
}

#[test]
fn a_commit_of_an_older_host_that_does_not_rebuild_changes_nothing() {
    type Spoil = fn(&mut CommitFrame<'_>);
    let cases: [(RejectReason, Spoil); 4] = [
        // A deletion, an update, a creation is hidden.
        (RejectReason::Legacy, |commit| _ = commit.ops.remove(2)),
        (RejectReason::Legacy, |commit| _ = commit.ops.remove(1)),
        (RejectReason::Legacy, |commit| _ = commit.ops.remove(0)),
        (RejectReason::ChainBroken, |commit| {
            commit.prev_data = Some(Cid::of_block(b"another tree"));
        }),
    ];
    for (reason, spoil) in cases {
        let mut world = World::new();
        let mut account = live_with_records(&mut world, 60);
        let before = world.row(account.did()).expect("known");
        let records = world.records();
        let seq = world.seq();
        let writes = [write("new", "x"), write("r003", "changed"), delete("r004")];
        let frame = older(&account.commit(seq, &writes, NOW), spoil);
        let notes = world.frame(frame);
        assert_eq!(rejected(&notes), [reason]);
        let row = world.row(account.did()).expect("known");
        assert!(matches!(row.sync, SyncState::Wanted { .. }));
        assert_eq!(
            (row.head, row.records, row.journal_commits),
            (before.head, before.records, before.journal_commits)
        );
        assert_eq!(world.records(), records);
        assert_eq!(world.cursor(), Some(seq));
        world.fetch(&account);
        world.check_equal(&account);
    }
}

#[test]
fn too_many_records_are_not_rebuilt_for_one_commit() {
    let mut world = World::new();
    let mut account = live_with_records(&mut world, 60);
    for (limit, expected) in [(62, vec![]), (61, vec![RejectReason::Legacy])] {
        world.applier.limits.rebuild_records_max = limit;
        let records = world.row(account.did()).expect("known").records;
        let seq = world.seq();
        let name = format!("new{records}");
        let frame = older(&account.commit(seq, &[write(&name, "x")], NOW), |_| {});
        assert_eq!(rejected(&world.frame(frame)), expected, "{records} of {limit}");
    }
}

#[test]
fn many_commits_in_one_go_do_not_rebuild_without_end() {
    let mut world = World::new();
    let mut account = live_with_records(&mut world, 60);
    world.applier.limits.rebuild_records_per_group_max = 61 + 62 + 63;
    let mut inputs = Vec::new();
    for i in 0..5 {
        let seq = world.seq();
        let frame = older(
            &account.commit(seq, &[write(&format!("new{i}"), "x")], NOW),
            |_| {},
        );
        inputs.push(world.event(frame));
    }
    let notes = world.applier.apply(inputs, NOW).expect("applies").notes;
    let applied = notes.iter().filter(|note| matches!(note, Note::Applied { .. }));
    assert_eq!(applied.count(), 3, "{notes:?}");
    assert_eq!(rejected(&notes), [RejectReason::Legacy]);
    world.fetch(&account);
    world.check_equal(&account);
}

#[test]
fn a_commit_of_an_older_host_waits_like_any_other() {
    let mut world = World::new();
    let mut account = SimAccount::new(5, NOW);
    let seq = world.seq();
    let notes = world.frame(account.commit(seq, &[write("a", "first")], NOW));
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    let fetched = world.load(&account);
    for text in ["second", "third"] {
        let seq = world.seq();
        let frame = older(
            &account.commit(seq, &[write("a", text), write(text, "x")], NOW),
            |_| {},
        );
        world.frame(frame);
    }
    world.apply(fetched);
    world.check_equal(&account);
}

#[test]
fn a_record_that_was_left_out_is_taken_from_our_rows() {
    let record = |text: &str| Cid::of_block(&post(text));
    let mut world = World::new();
    let mut account = live_with_records(&mut world, 60);
    let mut step = |world: &mut World, writes: &[Write], text: &str| {
        let seq = world.seq();
        let frame = account.commit(seq, writes, NOW);
        let notes = world.frame(without(&frame, record(text)));
        (rejected(&notes), account.did().clone())
    };
    // Moved in one commit; copied; written anew as it was; and one that is held nowhere.
    let moved = [delete("r010"), write("moved", "record 10")];
    assert_eq!(step(&mut world, &moved, "record 10").0, []);
    let copied = [write("copied", "record 11")];
    assert_eq!(step(&mut world, &copied, "record 11").0, []);
    let same = [write("r012", "record 12")];
    assert_eq!(step(&mut world, &same, "record 12").0, []);
    let (missing, did) = step(&mut world, &[write("new", "unseen")], "unseen");
    assert_eq!(missing, [RejectReason::RecordMissing]);
    assert!(matches!(
        world.row(&did).expect("known").sync,
        SyncState::Wanted {
            reason: DesyncReason::Unproven,
            ..
        }
    ));
    world.fetch(&account);
    world.check_equal(&account);
}

/// What is held under a CID need not hash to it any more: then it does not stand in for the record.
#[test]
fn a_damaged_row_does_not_stand_in_for_a_record() {
    let mut world = World::new();
    let mut account = live_with_records(&mut world, 3);
    let row = world.row(account.did()).expect("known");
    let value = crate::mirror::rows::RecordValue {
        rev: account.rev(),
        digest: *Cid::of_block(&post("record 1")).digest(),
        bytes: &post("rotten 1"),
    };
    let mut batch = crate::mirror::store::Batch::new();
    let key = keyspace::encode_record(row.account_number, b"app.bsky.feed.post/r001");
    batch.put(Family::Records, key, value.encode());
    world.store.write(batch).expect("writes");
    let seq = world.seq();
    let frame = account.commit(seq, &[write("copied", "record 1")], NOW);
    let notes = world.frame(without(&frame, Cid::of_block(&post("record 1"))));
    assert_eq!(rejected(&notes), [RejectReason::RecordMissing]);
}

#[test]
fn a_malformed_event_counts_with_its_gate_and_only_from_the_accounts_host() {
    let mut world = World::new();
    let mut account = world.live(1);
    let seq = world.seq();
    let frame = account.commit(seq, &[write("b", "x")], NOW);
    let bad = older(&frame, |commit| commit.ops[0].path = "app.bsky.feed.post/..");
    let other: HostName = "other.test".parse().expect("valid");
    world
        .applier
        .ensure_host(&other, "https://other.test")
        .expect("writes");
    let Input::Event(mut event) = world.event(bad.clone()) else {
        panic!("an event");
    };
    event.host = other;
    let notes = world.apply(Input::Event(event));
    assert_eq!(rejected(&notes), [RejectReason::WrongHost]);
    assert_eq!(world.row(account.did()).expect("known").sync, SyncState::Live);
    let notes = world.frame(bad);
    assert_eq!(rejected(&notes), [RejectReason::OpPath]);
    assert_ne!(world.row(account.did()).expect("known").sync, SyncState::Live);
}

#[test]
fn a_sync_that_signs_the_tree_we_hold_is_taken_over_without_a_fetch() {
    let mut world = World::new();
    let mut account = live_with_records(&mut world, 3);
    account.commit(0, &[], NOW.plus(Duration::from_secs(1)));
    let seq = world.seq();
    let notes = world.frame(account.sync_frame(seq, NOW));
    assert!(matches!(notes[..], [Note::Applied { .. }]), "{notes:?}");
    world.check_equal(&account);
    world.commit(&mut account, &[write("b", "x")]);
    world.check_equal(&account);
    // Another tree is fetched.
    account.commit(0, &[write("c", "x")], NOW);
    let seq = world.seq();
    let notes = world.frame(account.sync_frame(seq, NOW));
    assert!(matches!(notes[..], [Note::Desynchronized { .. }]), "{notes:?}");
}

#[test]
fn records_that_are_no_strict_cbor_are_kept_and_counted() {
    let mut world = World::new();
    let mut account = world.live(1);
    let odd = |rkey: &str, bytes: &[u8]| (format!("app.bsky.feed.post/{rkey}"), Some(bytes.to_vec()));
    // An overlong integer, a float, and no CBOR at all.
    let writes = [
        odd("x", b"\x18\x01"),
        odd("y", b"\xf9\x3c\x00"),
        odd("z", b"\xff"),
        write("b", "good"),
    ];
    let count = |notes: &[Note]| {
        notes.iter().find_map(|note| match note {
            Note::Noncanonical { records, .. } => Some(*records),
            _ => None,
        })
    };
    let notes = world.commit(&mut account, &writes);
    assert_eq!(count(&notes), Some(3), "{notes:?}");
    world.check_equal(&account);
    assert_eq!(count(&world.commit(&mut account, &[delete("x")])), None);
    account.commit(0, &[write("lost", "x")], NOW);
    world.commit(&mut account, &[write("c", "x")]);
    assert_eq!(count(&world.fetch(&account)), Some(2));
    world.check_equal(&account);
}

#[test]
fn a_proven_event_changes_nothing_when_it_comes_from_another_host_or_for_an_account_that_is_off() {
    let mut world = World::new();
    let mut account = world.live(1);
    let before = world.row(account.did());
    let seq = world.seq();
    let frames = [
        account.commit(seq, &[write("b", "x")], NOW),
        account.sync_frame(seq + 1, NOW),
    ];
    let other: HostName = "other.test".parse().expect("valid");
    world
        .applier
        .ensure_host(&other, "https://other.test")
        .expect("writes");
    for frame in &frames {
        // Both hosts are ours, and the proof is as good from either.
        let Input::Event(mut event) = world.event(frame.clone()) else {
            panic!("an event");
        };
        event.host = other.clone();
        let notes = world.apply(Input::Event(event));
        assert_eq!(rejected(&notes), [RejectReason::WrongHost]);
        assert_eq!(world.row(account.did()), before);
    }

    let standing = encode_frame(&Frame::Account(crate::stream::frame::AccountFrame {
        seq: 1,
        did: account.did().clone(),
        active: false,
        status: Some("takendown"),
        time: None,
    }));
    let mut world = World::new();
    let mut account = world.live(1);
    world.frame(standing);
    world.seq = 1;
    let before = world.row(account.did());
    let seq = world.seq();
    for frame in [
        account.commit(seq, &[write("b", "x")], NOW),
        account.sync_frame(seq + 1, NOW),
    ] {
        let notes = world.frame(frame);
        assert!(matches!(notes[..], [Note::Inactive { .. }]), "{notes:?}");
        assert_eq!(world.row(account.did()), before);
    }
}

#[test]
fn another_commit_under_our_rev_is_looked_into() {
    for as_sync in [false, true] {
        let mut world = World::new();
        let mut account = world.live(1);
        let mut twin = SimAccount::new(1, NOW);
        twin.commit(0, &[write("a", "first")], NOW);
        world.commit(&mut account, &[write("b", "ours")]);
        let seq = world.seq();
        let mut frame = twin.commit(seq, &[write("b", "theirs")], NOW);
        if as_sync {
            frame = twin.sync_frame(seq, NOW);
        }
        assert_eq!(
            (twin.rev(), twin.head() == account.head()),
            (account.rev(), false)
        );
        assert_eq!(rejected(&world.frame(frame)), [RejectReason::Forked]);
        let row = world.row(account.did()).expect("known");
        assert!(matches!(
            row.sync,
            SyncState::Wanted {
                reason: DesyncReason::HeadDiffers,
                ..
            }
        ));
        // The host has the other one indeed: ours stays, with an alarm.
        let notes = world.fetch(&twin);
        assert!(
            notes.iter().any(|note| matches!(note, Note::Alarm { .. })),
            "{notes:?}"
        );
        world.check_equal(&account);
    }
}

/// An event that breaks a rule tells no rev. One that comes while the account is fetched may be of after the fetch
/// began: then what the fetch brings is not the end of it.
#[test]
fn what_breaks_a_rule_while_its_account_is_fetched_has_it_compared_once_more() {
    let malformed = |world: &mut World, did: &Did| {
        let seq = world.seq();
        world.apply(Input::Event(HostEvent {
            host: world.host.clone(),
            received: NOW,
            frame: bytes::Bytes::new(),
            event: crate::verify::CheckedEvent {
                seq,
                time: None,
                fingerprint: seq,
                body: crate::verify::EventBody::Malformed {
                    did: Some(did.clone()),
                    reason: RejectReason::OpShape,
                },
            },
        }))
    };
    let is_wanted = |world: &World, did: &Did| {
        let row = world.row(did).expect("known");
        matches!(row.sync, SyncState::Wanted { .. })
    };
    let mut world = World::new();
    let mut account = world.live(1);
    let did = account.did().clone();
    malformed(&mut world, &did);
    assert!(is_wanted(&world, &did), "it may have changed anything");
    let fetched = world.load(&account);
    world.apply(fetched);
    assert!(!is_wanted(&world, &did), "the fetch began after it");

    malformed(&mut world, &did);
    let early = world.load(&account);
    account.commit(0, &[write("b", "told by a malformed event")], NOW);
    malformed(&mut world, &did);
    world.apply(early);
    assert!(is_wanted(&world, &did), "the fetch began before it");
    let late = world.load(&account);
    world.apply(late);
    assert!(!is_wanted(&world, &did));
    world.check_equal(&account);
}

#[test]
fn a_damaged_copy_that_is_wanted_for_another_reason_is_fetched_whole_too() {
    let mut world = World::new();
    let account = world.live(1);
    let did = account.did().clone();
    let mut row = world.row(&did).expect("known");
    // It was found damaged, and moved before it was fetched.
    row.damaged = true;
    row.sync = SyncState::Wanted {
        reason: DesyncReason::Moved,
        since: NOW,
        tries: 0,
    };
    let mut batch = crate::mirror::store::Batch::new();
    batch.put(Family::Accounts, keyspace::encode_account(&did), row.encode());
    world.store.write(batch).expect("writes");
    let (store, numbers): (Arc<dyn Store>, _) = (Arc::clone(&world.store) as _, Arc::clone(&world.numbers));
    world.applier = Applier::open(store, numbers, ApplierLimits::default()).expect("opens");
    world.apply(Input::Fetched(Box::new(Fetched {
        did: did.clone(),
        from_number: row.account_number,
        from_erased: 0,
        identity: world.identity(&account),
        content: FetchedContent::Unchanged {
            commit: account.head(),
        },
        task: Vec::new(),
    })));
    let wanted = world.row(&did).expect("known").sync;
    let whole = matches!(
        wanted,
        SyncState::Wanted {
            reason: DesyncReason::CopyDamaged,
            ..
        }
    );
    assert!(whole, "the next fetch would stop at the same head: {wanted:?}");
    world.fetch(&account);
    world.check_equal(&account);
    assert!(!world.row(&did).expect("known").damaged);
}
