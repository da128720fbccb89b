//! What a host's state tells of snapshots, and what the note of a removed account excuses.
#![allow(clippy::disallowed_methods, reason = "tests of a shell")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::report::{Fault, Report};
use super::run::{Options, verify};
use super::state::Sample;
use crate::archive::boundary::Boundary;
use crate::archive::erase::note::{Note, What};
use crate::archive::names::{DidFolder, ErasedName, HostFolder, HostStateName, SegmentName};
use crate::archive::state_file::{AccountState, HostState};
use crate::archive::test_archive::{Churn, START, TestArchive};
use crate::types::{AccountStatus, Did, HostName, Timestamp};

const DAY: Duration = Duration::from_secs(86_400);

async fn report(archive: &TestArchive) -> Report {
    let options = Options {
        sample: Sample::all(),
        rate: None,
    };
    let (progress, mut keep) = (Arc::new(super::run::Progress::default()), |_: &_| Ok(()));
    verify(&archive.bucket, options, None, progress, &mut keep)
        .await
        .expect("verifies")
}

/// What it found of kind `no_snapshot`, as text.
async fn lost(archive: &TestArchive) -> Vec<String> {
    let report = report(archive).await;
    let found = report
        .findings
        .kept()
        .iter()
        .filter(|of| of.fault == Fault::NoSnapshot);
    let found: Vec<String> = found.map(|of| format!("{} {}", of.object, of.detail)).collect();
    assert!(found.is_empty() || report.exit_code() == 4, "{}", report.text());
    found
}

async fn tell(archive: &TestArchive, did: &Did, snapshot: Option<crate::types::Rev>, time: Timestamp) {
    let host: HostName = "pds.example.com".parse().expect("a host");
    let account = AccountState {
        status: AccountStatus::Active,
        sync: "live".to_owned(),
        moved_to: None,
        deleted_at: None,
        snapshot,
        withheld: Vec::new(),
    };
    let state = HostState {
        host: host.clone(),
        time,
        url: "https://pds.example.com".to_owned(),
        epoch: 0,
        cursor: Some(1),
        highest_seq: 1,
        listed: None,
        last_event: None,
        rolled_back_at: None,
        ring: Vec::new(),
        log_next: 1,
        accounts: BTreeMap::from([(did.clone(), account)]),
    };
    let host = HostFolder::try_from(&host).expect("short");
    let name = HostStateName { host, time }.to_string();
    archive.put(&name, state.encode()).await;
}

async fn put_note(archive: &TestArchive, note: &Note) {
    let did = DidFolder::try_from(&note.did).expect("short");
    let name = ErasedName { did }.to_string();
    archive.bucket.delete(&name).await.ok();
    archive.put(&name, note.encode()).await;
}

#[tokio::test]
async fn the_newest_snapshot_of_a_quiet_account_is_missed() {
    let churn = Churn::new(3).run(2);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[1]).await;
    let newest = archive.snapshot(churn.did(), &churn.states[2]).await;
    tell(&archive, churn.did(), Some(churn.states[2].rev), START).await;
    assert_eq!(lost(&archive).await, [""; 0]);
    archive.bucket.delete(&newest).await.expect("removed");
    // No log and no blob speaks of it any more: only the host's state does.
    let found = lost(&archive).await;
    assert!(
        found.len() == 1 && found[0].contains(churn.did().as_str()),
        "{found:?}"
    );
    // A newer state that says that there is none takes it back.
    tell(&archive, churn.did(), None, START.plus(DAY)).await;
    assert_eq!(lost(&archive).await, [""; 0]);
    // So does a note that the account was erased.
    tell(
        &archive,
        churn.did(),
        Some(churn.states[2].rev),
        START.plus(DAY * 2),
    )
    .await;
    assert_eq!(lost(&archive).await.len(), 1);
    let mut note = Note::new(churn.did().clone());
    note.erasure(&What::Account, START.plus(DAY * 3), "an admin");
    put_note(&archive, &note).await;
    assert_eq!(lost(&archive).await, [""; 0]);
}

#[tokio::test]
async fn a_removed_account_that_came_back_is_missed_like_any_other() {
    let churn = Churn::new(4).run(60);
    let archive = TestArchive::new().await;
    let (segments, _) = archive.segments(&[&churn], 0..40, (1, 1, None)).await;
    let mut note = Note::new(churn.did().clone());
    note.removed(Some(churn.states[40].rev), START.plus(DAY), "retention");
    assert!(
        !lost(&archive).await.is_empty(),
        "nothing says why it is not there"
    );
    put_note(&archive, &note).await;
    tell(&archive, churn.did(), Some(churn.states[40].rev), START).await;
    assert_eq!(lost(&archive).await, [""; 0]);
    // Back, at the very rev at which it went.
    tell(
        &archive,
        churn.did(),
        Some(churn.states[40].rev),
        START.plus(DAY * 2),
    )
    .await;
    assert_eq!(lost(&archive).await.len(), 1);
    let snapshot = archive.snapshot(churn.did(), &churn.states[40]).await;
    assert_eq!(lost(&archive).await, [""; 0]);
    archive.bucket.delete(&snapshot).await.expect("removed");
    // Removed once more.
    note.removed(Some(churn.states[40].rev), START.plus(DAY * 3), "retention");
    put_note(&archive, &note).await;
    assert_eq!(lost(&archive).await, [""; 0]);
    // Back with newer commits, of which the log tells, and no snapshot; then of which a boundary tells.
    let archive = TestArchive::new().await;
    put_note(&archive, &note).await;
    let (more, _) = archive.segments(&[&churn], 0..60, (1, 1, None)).await;
    assert!(more.len() > segments.len());
    assert!(!lost(&archive).await.is_empty());
    let last: SegmentName = more.last().expect("some").parse().expect("a segment");
    let name = last.place();
    for (rev, missed) in [(40, false), (41, true)] {
        let mut boundary = Boundary::at(name, None, None, START);
        boundary.led_to.insert(churn.did().clone(), churn.states[rev].rev);
        archive.bucket.delete(&name.to_string()).await.ok();
        archive.put(&name.to_string(), boundary.encode()).await;
        let found = lost(&archive).await;
        let claimed = found.iter().any(|of| of.starts_with(&name.to_string()));
        assert_eq!(claimed, missed, "{found:?}");
    }
}
