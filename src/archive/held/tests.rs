#![allow(clippy::disallowed_methods, reason = "tests")]
//! What the mirror says of what may go, and lets go of.

use std::time::Duration;

use super::*;
use crate::archive::names::{DidFolder, SnapshotName};
use crate::archive::test_archive::{Churn, TestArchive, blob};
use crate::clock::Clock;
use crate::mirror::applier::{Applier, ApplierLimits};
use crate::mirror::handle;
use crate::mirror::keyspace;
use crate::mirror::memory::MemoryStore;
use crate::mirror::numbers::Numbers;
use crate::mirror::rows::{
    BlobRow, Head, JournalEntry, JournalOp, KeptCar, Pin, PinReason, Row as _, SnapshotMark,
};
use crate::mirror::store::Batch;
use crate::sim::account::post_with_blob;

struct Case {
    side: MirrorSide,
    archive: TestArchive,
    churn: Churn,
}

impl Case {
    async fn new() -> Self {
        let (churn, archive) = (Churn::new(1).run(3), TestArchive::new().await);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let numbers = Arc::new(Numbers::open(Arc::clone(&store)).expect("opens"));
        let applier = Applier::open(Arc::clone(&store), numbers, ApplierLimits::default()).expect("opens");
        let (applier, _) = handle::start(applier, Clock::system(), |_, _| {}).expect("starts");
        let side = MirrorSide {
            store,
            applier,
            bucket: archive.bucket.clone(),
            gate: Gate::default(),
        };
        let case = Self { side, archive, churn };
        case.put(&case.fresh());
        case
    }

    /// An account that is held, follows, and has a snapshot of its head.
    fn fresh(&self) -> AccountRow {
        let then = self.churn.last();
        let now = then.received;
        let mut row = AccountRow::new(1, "pds.example.com".parse().expect("a host"), now);
        row.account_number = 2;
        row.sync = SyncState::Live;
        row.head = Some(Head {
            rev: then.rev,
            commit: then.commit.0,
            commit_block: then.commit.1.clone(),
            data: Cid::of_block(b"data"),
        });
        row.snapshot = Some(SnapshotMark {
            rev: then.rev,
            commit: then.commit.0,
            at: now,
            bytes: 1,
        });
        row
    }

    fn put(&self, row: &AccountRow) {
        let mut batch = Batch::new();
        let key = keyspace::encode_account(self.churn.did());
        batch.put(Family::Accounts, key, row.encode());
        self.side.store.write(batch).expect("memory");
    }

    fn row(&self) -> AccountRow {
        let row = Mirror::new(&*self.side.store).account(self.churn.did());
        row.expect("reads").expect("known")
    }
}

#[tokio::test]
async fn what_may_refer_to_a_blob() {
    let case = Case::new().await;
    let digest = *Cid::of_blob(&blob(1)).digest();
    let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
    let known = |row: &AccountRow, needed: Option<Timestamp>| {
        case.put(row);
        let mut batch = Batch::new();
        let mut blob = BlobRow::wanted(None, None, at(1));
        (blob.state, blob.needed_at) = (BlobState::Archived, needed);
        batch.put(Family::Blobs, keyspace::encode_blob(1, &digest), blob.encode());
        case.side.store.write(batch).expect("memory");
        case.side.blob(case.churn.did(), &digest).expect("reads")
    };
    let mut row = case.fresh();
    assert_eq!(
        known(&row, Some(at(5))),
        KnownBlob::Referenced,
        "its host never said what it has"
    );
    row.blobs_listed_at = Some(at(5));
    assert_eq!(
        known(&row, Some(at(5))),
        KnownBlob::Referenced,
        "it was needed as its host said so"
    );
    assert_eq!(
        known(&row, None),
        KnownBlob::Referenced,
        "when it was needed is not known"
    );
    assert_eq!(known(&row, Some(at(4))), KnownBlob::Unreferenced(at(4)));
    let car = KeptCar {
        number: 9,
        rev: case.churn.last().rev,
        commit: Cid::of_block(b"kept"),
        bytes: 1,
        sha256: [0; 32],
        since: at(1),
        archived: true,
        damaged: false,
    };
    row.kept_car = Some(car);
    assert_eq!(known(&row, Some(at(4))), KnownBlob::Referenced);
    row.kept_car = None;
    row.pins.push(Pin {
        generation: None,
        head: None,
        snapshot: None,
        since: at(1),
        reason: PinReason::Rollback,
    });
    assert_eq!(known(&row, Some(at(4))), KnownBlob::Referenced);
    row.pins.clear();
    let mut batch = Batch::new();
    let path: crate::types::RepoPath = "app.bsky.feed.post/a".parse().expect("a path");
    batch.put(
        Family::BlobRefs,
        keyspace::encode_blob_ref(2, &digest, path.as_bytes()),
        Vec::new(),
    );
    case.side.store.write(batch).expect("memory");
    assert_eq!(known(&row, Some(at(4))), KnownBlob::Referenced);

    // A change that waits for the archive.
    let did = case.churn.did();
    assert_eq!(case.side.waiting_blobs(did).expect("reads"), BTreeSet::new());
    let record = post_with_blob("picture", &Cid::of_blob(&blob(1)), 6);
    let entry = JournalEntry {
        commit_block: Vec::new(),
        since: case.churn.states[0].rev,
        swap: false,
        ops: vec![JournalOp {
            path,
            cid: Some(Cid::of_block(&record)),
            bytes: Some(record),
        }],
        time: at(1),
        received: at(1),
        seq: 1,
        host: None,
    };
    let mut batch = Batch::new();
    let key = keyspace::encode_journal(1, case.churn.last().rev);
    batch.put(Family::Journal, key, entry.encode());
    case.side.store.write(batch).expect("memory");
    assert_eq!(
        case.side.waiting_blobs(did).expect("reads"),
        BTreeSet::from([digest])
    );
}

#[tokio::test]
async fn a_snapshot_that_does_not_prove_is_made_again_and_alarms() {
    let case = Case::new().await;
    let (older, newest) = (case.churn.states[1].rev, case.churn.last().rev);
    let alarms = || Mirror::new(&*case.side.store).alarms().expect("reads");
    assert_eq!(alarms(), []);
    case.side
        .snapshot_lost(case.churn.did(), older)
        .await
        .expect("tells");
    assert!(case.row().snapshot.is_some(), "the newest one is another");
    assert!(
        alarms()
            .iter()
            .any(|(id, _)| id.kind == AlarmKind::ArchiveDamaged)
    );
    case.side
        .snapshot_lost(case.churn.did(), newest)
        .await
        .expect("tells");
    let row = case.row();
    assert!(row.snapshot.is_none() && row.snapshot_due, "{row:?}");
    let pinned = case
        .side
        .account(case.churn.did())
        .expect("reads")
        .expect("known")
        .pinned;
    assert!(!pinned, "our own loss holds no account");
}

#[tokio::test]
async fn an_account_goes_only_while_it_is_deleted() {
    let case = Case::new().await;
    assert!(!case.side.drop_account(case.churn.did()).await.expect("asks"));
    assert_eq!(case.row(), case.fresh());
    let mut deleted = case.fresh();
    deleted.upstream = AccountStatus::Deleted;
    assert!(case.side.deleted_accounts().expect("reads").is_empty());
    case.put(&deleted);
    assert!(
        !case.side.drop_account(case.churn.did()).await.expect("asks"),
        "not confirmed"
    );
    deleted.deletion_confirmed_at = Some(case.churn.last().received);
    case.put(&deleted);
    assert_eq!(
        case.side.deleted_accounts().expect("reads"),
        [case.churn.did().clone()]
    );
    // Another process: the rows were put behind the applier's back.
    let side = MirrorSide {
        applier: {
            let numbers = Arc::new(Numbers::open(Arc::clone(&case.side.store)).expect("opens"));
            let limits = ApplierLimits::default();
            let applier = Applier::open(Arc::clone(&case.side.store), numbers, limits).expect("opens");
            handle::start(applier, Clock::system(), |_, _| {})
                .expect("starts")
                .0
        },
        ..case.side.clone()
    };
    assert!(side.drop_account(case.churn.did()).await.expect("asks"));
    let known = side.account(case.churn.did()).expect("reads").expect("known");
    assert!(known.empty && known.deleted.is_some());
}

/// A snapshot is on its way into the archive under the name that is to go, and meanwhile the account comes back.
#[tokio::test]
async fn nothing_goes_while_it_is_put_there() {
    let case = Case::new().await;
    let then = case.churn.last();
    let name = SnapshotName {
        did: DidFolder::try_from(case.churn.did()).expect("short"),
        rev: then.rev,
        commit: *then.commit.0.digest(),
        edition: 0,
    };
    case.archive.snapshot(case.churn.did(), then).await;
    let mut row = case.fresh();
    row.upstream = AccountStatus::Deleted;
    row.deletion_confirmed_at = Some(then.received);
    case.put(&row);
    for (what, comes_back) in [
        (Going::Blobs, true),
        (Going::Repositories, true),
        (Going::Blobs, false),
    ] {
        case.put(&row);
        let at_work = case.side.gate.at_work(what).await;
        let (side, did, object) = (case.side.clone(), case.churn.did().clone(), name.to_string());
        let removing = tokio::spawn(async move {
            let may = |known: &Known| known.deleted.is_some();
            side.remove_while(&did, &object, &may).await.expect("asks")
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!removing.is_finished());
        if comes_back {
            case.put(&case.fresh());
        }
        drop(at_work);
        assert_eq!(removing.await.expect("ends"), !comes_back);
        let there = case.archive.bucket.head(&name.to_string()).await.expect("asks");
        assert_eq!(there.is_some(), comes_back);
    }
}
