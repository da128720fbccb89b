#![allow(clippy::disallowed_methods, reason = "tests")]
//! What retention must not lose, whatever happened to mirror and archive before, and happens meanwhile.

use super::super::names::{DidFolder, IdentityName, ObjectName, QuarantinedName};
use super::super::retention::superseded;
use super::super::test_archive::{Churn, TestArchive, Then, blob};
use super::tests::{Case, DAY, NOTHING, is_segment, is_snapshot};
use super::*;
use crate::types::Cid;

fn damage(case: &Case, name: &str) {
    let path = case.archive.path(name);
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).expect("writes");
}

async fn is_whole(case: &Case) {
    let report = case.report().await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
}

fn digest(number: u64) -> Digest {
    *Cid::of_blob(&blob(number)).digest()
}

const fn is_blob(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Blob(_))
}

const fn is_kept(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Quarantined(_))
}

/// A mirror was put back to an older copy, fetched the account whole, and made a delta over what the archive has step
/// by step.
#[tokio::test]
async fn a_delta_counts_for_what_it_holds_and_not_for_what_it_leads_over() {
    for far in [false, true] {
        let churn = Churn::new(11).run(60);
        let archive = TestArchive::new().await;
        archive.snapshot(churn.did(), &churn.states[0]).await;
        archive.snapshot(churn.did(), &churn.states[40]).await;
        archive.delta_of(&churn, 0..40, &[churn.swap(0, 40)]).await;
        if far {
            // And once more, over all of it.
            archive.delta_of(&churn, 0..60, &[churn.swap(0, 60)]).await;
        }
        archive.segments(&[&churn], 0..60, (1, 1, None)).await;
        let mut case = Case::of(archive, churn).await;
        case.now = case.churn.last().received.plus(Duration::from_secs(60));
        case.prune().await.expect("prunes");
        case.each_moment_is_there_from(0, 1).await;
        assert_eq!(
            case.count(is_segment).await,
            20,
            "what only the log tells is young"
        );
        case.now = case.now.plus(DAY * 3);
        let pruned = case.prune().await.expect("prunes");
        assert_eq!((pruned.held_up, pruned.removed["segments"].0), (None, 18));
        // One by one, for the name that they would have together is taken.
        assert!(pruned.moved >= 40, "{}", pruned.moved);
        is_whole(&case).await;
        case.each_moment_is_there_from(0, 1).await;
    }
}

#[tokio::test]
async fn a_damaged_delta_stands_for_nothing_and_is_replaced_by_what_the_log_tells() {
    let churn = Churn::new(12).run(60);
    let archive = TestArchive::new().await;
    for mark in [0, 40] {
        archive.snapshot(churn.did(), &churn.states[mark]).await;
    }
    let name = archive.delta(&churn, 0..40).await;
    archive.segments(&[&churn], 0..60, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    damage(&case, &name);
    case.now = case.churn.last().received.plus(Duration::from_secs(60));
    assert_eq!(case.prune().await.expect("prunes").objects(), 0);
    case.now = case.now.plus(DAY * 3);
    let pruned = case.prune().await.expect("prunes");
    assert_eq!(pruned.removed["segments"].0, 18);
    is_whole(&case).await;
    case.each_moment_is_there_from(0, 1).await;
}

#[tokio::test]
async fn no_moment_is_needless_before_a_snapshot_that_does_not_prove() {
    let churn = Churn::new(13).run(100);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    let name = archive.snapshot(churn.did(), &churn.states[80]).await;
    archive.segments(&[&churn], 0..100, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    case.keep = NOTHING;
    damage(&case, &name);
    let pruned = case.prune().await;
    assert!(pruned.is_ok(), "{pruned:?}");
    assert!(case.count(is_segment).await < 34);
    case.each_moment_is_there_from(0, 3).await;
    // A whole one: what was before it goes.
    let churn = Churn::new(13).run(100);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    archive.snapshot(churn.did(), &churn.states[80]).await;
    archive.segments(&[&churn], 0..100, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    case.keep = NOTHING;
    case.prune().await.expect("prunes");
    case.each_moment_is_there_from(80, 1).await;
    assert_eq!(case.count(is_snapshot).await, 1);
}

/// Blobs 0 to 8, none of which the mirror's head refers to; only the newest snapshot is to stay.
async fn unreferenced() -> Case {
    let mut case = Case::new().await;
    case.keep = NOTHING;
    let known = (0..9).map(|number| (digest(number), KnownBlob::Unreferenced(Timestamp::default())));
    case.held.blobs.lock().expect("one thread").extend(known);
    case
}

/// The account as it was once, kept as it came.
async fn keep_car(case: &Case, then: &Then) -> QuarantinedName {
    let did = case.churn.did();
    let name = case.archive.snapshot(did, then).await;
    let kept = QuarantinedName {
        did: DidFolder::try_from(did).expect("short"),
        rev: then.rev,
        commit: *then.commit.0.digest(),
        edition: 0,
    };
    let to = case.archive.path(&kept.to_string());
    std::fs::rename(case.archive.path(&name), to).expect("renames");
    kept
}

fn blobs_of(then: &Then) -> BTreeSet<Digest> {
    let all = then.records.values();
    let all = all.flat_map(|record| crate::repo::record::scan_record(record).blobs);
    all.map(|blob| *blob.cid.digest()).collect()
}

#[tokio::test]
async fn a_blob_stays_while_a_change_that_waits_or_a_kept_car_refers_to_it() {
    let left = |names: Vec<ObjectName>| -> BTreeSet<Digest> {
        let blobs = names.into_iter().filter_map(|name| match name {
            ObjectName::Blob(name) => Some(name.blob),
            _ => None,
        });
        blobs.collect()
    };
    let mut case = unreferenced().await;
    case.prune().await.expect("prunes");
    let usual = left(case.names().await);
    let gone: Vec<u64> = (0..9)
        .filter(|number| !usual.contains(&digest(*number)))
        .collect();
    assert!(!gone.is_empty(), "the churn leaves some");

    let mut case = unreferenced().await;
    let waiting = BTreeSet::from([digest(gone[0])]);
    case.held.waiting.lock().expect("one thread").clone_from(&waiting);
    case.prune().await.expect("prunes");
    assert_eq!(left(case.names().await), &usual | &waiting);

    // An old state of the account, of which none of the kept snapshots tells.
    let mut case = unreferenced().await;
    let then = case.churn.states[..150].iter().rev().find(|then| {
        let more = &blobs_of(then) - &usual;
        !more.is_empty()
    });
    let then = then.expect("one that refers to more").clone();
    keep_car(&case, &then).await;
    case.prune().await.expect("prunes");
    assert_eq!(left(case.names().await), &usual | &blobs_of(&then));

    // One that cannot be read may refer to anything.
    let mut case = unreferenced().await;
    let kept = keep_car(&case, &then).await;
    damage(&case, &kept.to_string());
    case.prune().await.expect("prunes");
    assert_eq!(left(case.names().await).len(), 9);
}

#[tokio::test]
async fn a_deleted_account_that_comes_back_keeps_what_is_left_of_it() {
    let long_deleted = |case: &Case| Known {
        deleted: Some(case.now.minus(DAY * 2)),
        ..Known::default()
    };
    let mine = |name: &ObjectName| !is_segment(name) && !matches!(name, ObjectName::Boundary(_));
    // Before the mirror let go; and behind each of the first objects.
    for step in 0..4 {
        let mut case = Case::new().await;
        case.keep = NOTHING;
        case.know(long_deleted(&case));
        let before = case.count(mine).await;
        *case.held.returns_after.lock().expect("one thread") = Some(step);
        case.prune().await.expect("prunes");
        let notes = case.count(|name| matches!(name, ObjectName::Erased(_))).await;
        assert_eq!(notes, usize::from(step > 0), "nothing is noted that was not done");
        let gone = before + notes - case.count(mine).await;
        assert_eq!(gone, step.saturating_sub(1), "returned after {step}");
        let dropped = case.held.dropped.lock().expect("one thread").len();
        assert_eq!(dropped, usize::from(step > 0));
    }
    // What is put after it was listed stays, too, until the next run.
    let mut case = Case::new().await;
    case.keep = NOTHING;
    case.know(long_deleted(&case));
    let name = super::super::names::BlobName {
        did: DidFolder::try_from(case.churn.did()).expect("short"),
        blob: digest(77),
    };
    let meanwhile = vec![(name.to_string(), blob(77))];
    *case.held.put_meanwhile.lock().expect("one thread") = meanwhile;
    *case.held.returns_after.lock().expect("one thread") = Some(100);
    let mut pruned = Pruned::default();
    let did = DidFolder::try_from(case.churn.did()).expect("short");
    let held = &case.held;
    let pruner = Pruner {
        bucket: &case.archive.bucket,
        held,
        right: Right {
            generation: 1,
            instance: "us".to_owned(),
        },
        keep: case.keep,
        now: case.now,
        pause: Duration::ZERO,
        temp_dir: case.archive.folder.path().to_owned(),
        cancel: CancellationToken::new(),
    };
    pruner
        .deleted(&did, &mut case.memory, &mut pruned)
        .await
        .expect("removes");
    assert_eq!(case.count(is_blob).await, 1, "it came behind the list");
    assert_eq!(case.count(is_snapshot).await, 0);
    case.prune().await.expect("prunes");
    assert_eq!(case.count(is_blob).await, 0);
}

#[tokio::test]
async fn a_deleted_account_goes_though_it_has_no_snapshot() {
    let churn = Churn::new(14).run(30);
    let archive = TestArchive::new().await;
    archive.segments(&[&churn], 0..30, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    let did = DidFolder::try_from(case.churn.did()).expect("short");
    let identity = IdentityName { did, time: case.now };
    case.archive.put(&identity.to_string(), b"{}".to_vec()).await;
    let kept = case.churn.states[9].clone();
    let head = case.churn.states.last().expect("some").rev;
    case.keep = NOTHING;
    for with_car in [false, true] {
        if with_car {
            keep_car(&case, &kept).await;
        }
        case.know(Known {
            deleted: Some(case.now.minus(DAY / 2)),
            ..Known::default()
        });
        let pruned = case.prune().await.expect("prunes");
        assert_eq!(pruned.objects(), 0, "its grace is not over");
        case.know(Known {
            deleted: Some(case.now.minus(DAY * 2)),
            head: Some(head),
            ..Known::default()
        });
        case.prune().await.expect("prunes");
        let is_left =
            |name: &ObjectName| is_blob(name) || is_kept(name) || matches!(name, ObjectName::Identity(_));
        assert_eq!(case.count(is_left).await, 0, "{:?}", case.names().await);
    }
    // What the log told of it goes as well, and nothing is asked for again and again.
    case.prune().await.expect("prunes");
    assert_eq!(case.count(is_segment).await, 2);
    let dropped = case.held.dropped.lock().expect("one thread").len();
    case.prune().await.expect("prunes");
    assert_eq!(case.held.dropped.lock().expect("one thread").len(), dropped);
    assert_ne!(
        case.report().await.exit_code(),
        4,
        "{}",
        case.report().await.text()
    );
}

#[test]
fn a_car_that_is_kept_goes_when_it_is_history_for_longer_than_the_window() {
    let now = Timestamp::from_micros(1_800_000_000_000_000);
    let kept = |days: u32| (Rev::from_time(now.minus(DAY * days), 0), [7; 32]);
    let keep = Keep {
        window: DAY * 30,
        ..NOTHING
    };
    let gone = |all: &[u32], current: Option<u32>, followed: Option<u32>| {
        let all: Vec<_> = all.iter().map(|days| kept(*days)).collect();
        let over = (current.map(kept), followed.map(|days| now.minus(DAY * days)));
        superseded(&all, over, &keep, now)
    };
    let none = BTreeSet::new();
    // The only one, for as long as the host has nothing better.
    assert_eq!(gone(&[90], Some(90), None), none);
    assert_eq!(
        gone(&[90], None, None),
        none,
        "since when it follows is not known"
    );
    assert_eq!(
        gone(&[90], None, Some(29)),
        none,
        "it was what the host had within the window"
    );
    assert_eq!(gone(&[90], None, Some(30)), BTreeSet::from([kept(90)]));
    // A later one takes its place, once that is as old as the window.
    assert_eq!(gone(&[90, 20], Some(20), None), none);
    assert_eq!(gone(&[90, 40, 20], Some(20), None), BTreeSet::from([kept(90)]));
    assert_eq!(
        gone(&[90, 40], Some(90), None),
        none,
        "the one that the host went back to"
    );
    // It follows again, though not for as long.
    assert_eq!(gone(&[29, 90], None, Some(40)), BTreeSet::from([kept(90)]));
    // A rev that is no time.
    let odd = (Rev::from_bits(1 << 20).expect("a rev"), [7; 32]);
    assert_eq!(
        superseded(&[odd], (None, Some(now.minus(DAY * 40))), &keep, now),
        none
    );
}

#[tokio::test]
async fn cars_that_are_kept_go_by_what_the_mirror_knows() {
    let mut case = Case::new().await;
    case.keep = NOTHING;
    let (first, second) = (case.churn.states[20].clone(), case.churn.states[30].clone());
    let current = keep_car(&case, &first).await;
    keep_car(&case, &second).await;
    for (known, left) in [
        (
            Known {
                pinned: true,
                followed_again: Some(Timestamp::default()),
                ..Known::default()
            },
            2,
        ),
        (
            Known {
                deleted: Some(case.now),
                followed_again: Some(Timestamp::default()),
                ..Known::default()
            },
            2,
        ),
        (Known::default(), 1),
        (
            Known {
                kept_car: Some((second.rev, *second.commit.0.digest())),
                ..Known::default()
            },
            1,
        ),
        (
            Known {
                followed_again: Some(Timestamp::default()),
                ..Known::default()
            },
            0,
        ),
    ] {
        case.know(known);
        case.prune().await.expect("prunes");
        assert_eq!(case.count(is_kept).await, left, "{known:?}");
    }
    assert!(!case.names().await.contains(&ObjectName::Quarantined(current)));
    is_whole(&case).await;
}

#[tokio::test]
async fn a_damaged_segment_keeps_what_goes_on_from_it_and_nothing_else() {
    let mut case = unreferenced().await;
    let segments: Vec<_> = case.names().await.into_iter().filter(is_segment).collect();
    damage(&case, &segments[30].to_string());
    let error = case.prune().await.expect_err("it says so").to_string();
    assert!(error.contains(&segments[30].to_string()), "{error}");
    assert_eq!(case.count(is_segment).await, 67 - 29);
    // The account's snapshots and deltas went, but for what the window needs.
    assert_eq!(case.count(is_snapshot).await, 1);
    case.each_moment_from_the_last().await;
    // Blobs that may stand in it were needed since the log begins, or later.
    let then = |state: usize| case.churn.states[state].received;
    let (before, within) = (then(80), then(100));
    for (number, needed) in [(77, before), (78, within)] {
        case.archive.blob(case.churn.did(), &blob(number)).await;
        let known = KnownBlob::Unreferenced(needed);
        case.held
            .blobs
            .lock()
            .expect("one thread")
            .insert(digest(number), known);
    }
    assert_eq!(
        case.count(is_blob).await,
        11,
        "what is left of the log refers to the others"
    );
    drop(case.prune().await);
    let left = case.names().await;
    let is = |number: u64| {
        left.iter()
            .any(|name| matches!(name, ObjectName::Blob(name) if name.blob == digest(number)))
    };
    assert_eq!((is(77), is(78), is(1)), (false, true, true));
    assert_eq!(case.report().await.exit_code(), 4, "it is told as before");

    // The first of all: nothing of the log goes, and no blob, for it may tell of any.
    let mut case = unreferenced().await;
    damage(&case, &segments[0].to_string());
    case.prune().await.expect_err("it says so");
    assert_eq!(
        (case.count(is_segment).await, case.count(is_snapshot).await),
        (67, 1)
    );
    assert_eq!(case.count(is_blob).await, 9);
}
