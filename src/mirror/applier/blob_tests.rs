//! Blobs that their hosts withhold.

use super::tests::{NOW, World, delete};
use super::*;
use crate::mirror::input::{BlobKey, BlobVerdict};
use crate::mirror::keyspace::AlarmKind;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{BlobRow, BlobState, SweepMark};
use crate::sim::SimAccount;
use crate::sim::account::{Write, post_with_blob};
use crate::types::{AccountStatus, Cid};

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

fn row(world: &World, blob: &BlobKey) -> BlobRow {
    let row = Mirror::new(&*world.store).blob(blob.did_number, &blob.digest);
    row.expect("reads").expect("known")
}

/// A live account with one archived blob.
fn archived(world: &mut World) -> (SimAccount, BlobKey) {
    let mut account = world.live(1);
    world.commit(&mut account, &[with_blob("p1", b"one")]);
    let blob = key(world, &account, b"one");
    world.apply(Input::BlobStored {
        blob: blob.clone(),
        size: 3,
        mime: None,
        task: keyspace::encode_task(NOW.millis(), &Task::FetchBlob(blob.did.clone(), blob.digest)),
    });
    world.apply(Input::BlobArchived {
        blob: blob.clone(),
        task: Vec::new(),
    });
    (account, blob)
}

fn swept(world: &World, blob: &BlobKey, served: bool) -> Input {
    Input::BlobsSwept {
        host: world.host.clone(),
        verdicts: vec![BlobVerdict {
            blob: blob.clone(),
            served,
        }],
        mark: SweepMark::new(NOW),
        task: Vec::new(),
    }
}

#[test]
fn what_a_host_withholds_is_marked_kept_and_comes_back() {
    let mut world = World::new();
    let (_, blob) = archived(&mut world);
    let withheld = |notes: &[Note]| match notes {
        [Note::BlobWithheld { withheld, .. }] => Some(*withheld),
        _ => None,
    };
    assert_eq!(world.apply(swept(&world, &blob, true)), [], "nothing changes");
    let notes = world.apply(swept(&world, &blob, false));
    assert_eq!(withheld(&notes), Some(true));
    let marked = row(&world, &blob);
    assert_eq!(
        (marked.state, marked.withheld_since),
        (BlobState::Archived, Some(NOW))
    );
    assert_eq!(world.applier.totals().blobs_withheld, 1);
    assert_eq!(world.applier.totals().blob_bytes, 3, "it is still held");
    let recounted = super::totals::count(&*world.store).expect("reads");
    assert_eq!(
        (recounted.blobs_withheld, recounted.blob_bytes),
        (1, 3),
        "also after a restart"
    );
    assert_eq!(world.apply(swept(&world, &blob, false)), [], "said once");
    let notes = world.apply(swept(&world, &blob, true));
    assert_eq!(withheld(&notes), Some(false));
    assert_eq!(row(&world, &blob).withheld_since, None);
    assert_eq!(world.applier.totals().blobs_withheld, 0);
}

#[test]
fn whoever_does_not_speak_for_the_account_withholds_nothing() {
    let mut world = World::new();
    let (account, blob) = archived(&mut world);
    let other: HostName = "other.test".parse().expect("valid");
    world
        .applier
        .ensure_host(&other, "https://other.test")
        .expect("writes");
    world.apply(Input::BlobsSwept {
        host: other,
        verdicts: vec![BlobVerdict {
            blob: blob.clone(),
            served: false,
        }],
        mark: SweepMark::new(NOW),
        task: Vec::new(),
    });
    assert_eq!(row(&world, &blob).withheld_since, None, "another host's word");
    let mut off = world.row(account.did()).expect("known");
    off.upstream = AccountStatus::Deactivated;
    world.put_row(account.did(), &off);
    world.apply(swept(&world, &blob, false));
    assert_eq!(
        row(&world, &blob).withheld_since,
        None,
        "a host gives nothing of what is off"
    );
}

#[test]
fn a_new_reference_to_what_is_withheld_asks_again_at_once() {
    let mut world = World::new();
    let (mut account, blob) = archived(&mut world);
    // The record went, and the host with it gave up the blob, before we heard of it.
    world.apply(swept(&world, &blob, false));
    world.commit(&mut account, &[delete("p1")]);
    let fetches = |world: &World| {
        let mine = |task: &&Task| matches!(task, Task::FetchBlob(_, digest) if *digest == blob.digest);
        world.tasks().iter().filter(mine).count()
    };
    assert_eq!(fetches(&world), 0);
    world.commit(&mut account, &[with_blob("p2", b"one")]);
    assert_eq!(
        row(&world, &blob).withheld_since,
        Some(NOW),
        "hidden until it says so"
    );
    assert_eq!(fetches(&world), 1, "it is asked for");
    world.apply(Input::BlobAsked {
        host: world.host.clone(),
        verdict: BlobVerdict {
            blob: blob.clone(),
            served: true,
        },
        task: Vec::new(),
    });
    assert_eq!(row(&world, &blob).withheld_since, None);
}

#[test]
fn a_sweep_is_planned_once_and_goes_on_as_its_mark_says() {
    let mut world = World::new();
    let connected = Input::Connected {
        host: world.host.clone(),
    };
    world.apply(connected);
    let sweeps = |world: &World| {
        let tasks = Mirror::new(&*world.store)
            .due_tasks(u64::MAX - 1, 100)
            .expect("reads");
        let mine = tasks
            .into_iter()
            .filter(|due| matches!(due.task, Task::SweepBlobs(_)));
        mine.map(|due| due.due_ms).collect::<Vec<_>>()
    };
    assert_eq!(sweeps(&world), [NOW.millis()]);
    let mut mark = SweepMark::new(NOW);
    mark.next = NOW.plus(Duration::from_secs(60));
    let task = Task::SweepBlobs(world.host.clone());
    world.apply(Input::BlobsSwept {
        host: world.host.clone(),
        verdicts: Vec::new(),
        mark: mark.clone(),
        task: keyspace::encode_task(NOW.millis(), &task),
    });
    world.apply(Input::Connected {
        host: world.host.clone(),
    });
    assert_eq!(
        sweeps(&world),
        [mark.next.millis()],
        "a reconnect plans no second one"
    );
    let stored = Mirror::new(&*world.store).host(&world.host).expect("reads");
    assert_eq!(stored.and_then(|row| row.sweep), Some(mark));
}

/// A host that has lost its blobs looks like one that took them down; a person should know.
#[test]
fn many_blobs_that_are_withheld_raise_an_alarm() {
    for (held, withheld, alarmed) in [(20, 9, false), (20, 10, true), (101, 10, false), (100, 10, true)] {
        let mut world = World::new();
        let mut account = world.live(1);
        let bytes = |number: u64| format!("blob {number}").into_bytes();
        let writes: Vec<_> = (0..held)
            .map(|n| with_blob(&format!("p{n}"), &bytes(n)))
            .collect();
        world.commit(&mut account, &writes);
        let keys: Vec<_> = (0..held).map(|n| key(&world, &account, &bytes(n))).collect();
        for blob in &keys {
            world.apply(Input::BlobStored {
                blob: blob.clone(),
                size: 3,
                mime: None,
                task: Vec::new(),
            });
        }
        // Two by two, each of them told twice.
        for pair in keys[..withheld].chunks(2).chain(keys[..withheld].chunks(2)) {
            let verdict = |blob: &BlobKey| BlobVerdict {
                blob: blob.clone(),
                served: false,
            };
            let mut mark = SweepMark::new(NOW);
            mark.stored = held;
            world.apply(Input::BlobsSwept {
                host: world.host.clone(),
                verdicts: pair.iter().map(verdict).collect(),
                mark,
                task: Vec::new(),
            });
        }
        let alarms = Mirror::new(&*world.store).alarms().expect("reads");
        let mine = alarms
            .iter()
            .filter(|(id, _)| id.kind == AlarmKind::BlobsWithheld);
        assert_eq!(mine.count(), usize::from(alarmed), "{withheld} of {held}");
        assert_eq!(world.applier.totals().blobs_withheld, withheld as u64);
        world.check_equal(&account);
    }
}

#[test]
fn an_identity_goes_into_the_archive_when_it_is_first_read_and_when_it_changed() {
    let mut world = World::new();
    let account = world.live(1);
    let due = |world: &World| {
        let tasks = Mirror::new(&*world.store).due_tasks(u64::MAX - 1, usize::MAX);
        let tasks = tasks.expect("reads").into_iter();
        tasks
            .filter(|due| matches!(due.task, Task::ArchiveIdentity(_)))
            .map(|due| keyspace::encode_task(due.due_ms, &due.task))
            .collect::<Vec<_>>()
    };
    let first = due(&world);
    assert_eq!(first.len(), 1);
    world.apply(Input::IdentityArchived {
        did: account.did().clone(),
        digest: [9; 32],
        seen: None,
        task: first[0].clone(),
    });
    assert_eq!(due(&world).len(), 0);
    assert_eq!(
        world.row(account.did()).expect("known").identity_archived,
        Some([9; 32])
    );

    let mut identity = world
        .row(account.did())
        .and_then(|row| row.identity)
        .expect("read");
    let read = |world: &mut World, identity: &crate::mirror::rows::StoredIdentity| {
        world.apply(Input::Identity {
            did: account.did().clone(),
            resolved: Some(identity.clone()),
            task: Vec::new(),
            retry_at: NOW,
        });
    };
    identity.read_at = NOW.plus(Duration::from_secs(60));
    read(&mut world, &identity);
    assert_eq!(due(&world).len(), 0, "the same, read again");
    identity.key = Some("did:key:zQ3shother".to_owned());
    read(&mut world, &identity);
    assert_eq!(due(&world).len(), 1, "another key");

    // In another archive it does not stand.
    world.apply(Input::ArchiveLinked { id: "one".to_owned() });
    world.apply(Input::ArchiveLinked { id: "two".to_owned() });
    assert_eq!(world.row(account.did()).expect("known").identity_archived, None);
    assert!(!due(&world).is_empty());
}
