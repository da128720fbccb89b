//! Shipping into a folder archive, from a mirror that simulated accounts fill.

use std::path::PathBuf;

use super::*;
use crate::archive::folder::FolderBucket;
use crate::archive::log_file::{Entry, LogFile};
use crate::archive::snapshot_file::SnapshotDecoder;
use crate::mirror::applier::tests::{ASKED, NOW, World, write};
use crate::mirror::handle;
use crate::mirror::input::{ListedPage, ListedRepo};
use crate::mirror::rows::Listing;
use crate::types::{AccountStatus, Did};

struct Fixture {
    shipper: Arc<Shipper>,
    root: PathBuf,
    did: Did,
    _keep: tempfile::TempDir,
}

/// A mirror with an account of this many commits, whose log is claimed.
async fn holding(commits: u32) -> Fixture {
    let keep = tempfile::tempdir().expect("a folder");
    let root = keep.path().join("archive");
    let bucket = Bucket::Folder(FolderBucket::open(&root).await.expect("opens"));
    let mut world = World::new();
    let mut account = world.live(1);
    for n in 0..commits {
        world.commit(&mut account, &[write(&format!("k{n}"), "text")]);
    }
    let claimed = writer::claim(&bucket, "one", None, false, NOW)
        .await
        .expect("free");
    world.apply(Input::LogClaimed(claimed.log));
    let clock = Clock::manual(NOW);
    let store: Arc<dyn Store> = world.store.clone();
    let (applier, _thread) = handle::start(world.applier, clock.clone(), |_, _| {}).expect("a thread");
    Fixture {
        shipper: Arc::new(Shipper {
            store,
            applier,
            bucket,
            instance: "one".to_owned(),
            clock,
            metrics: Arc::new(Metrics::new()),
            flush_interval: Duration::from_millis(1),
            failures: AtomicU32::new(0),
            gate: crate::archive::held::Gate::default(),
            paused: AtomicBool::new(false),
            last: Mutex::new(None),
        }),
        root,
        did: account.did().clone(),
        _keep: keep,
    }
}

impl Fixture {
    fn object(&self, generation: u64, number: u64) -> PathBuf {
        let name = SegmentName {
            shard: SHARD,
            generation,
            number,
            edition: 0,
        };
        self.root.join(name.to_string())
    }

    fn unshipped(&self) -> u64 {
        self.shipper.applier.totals().unshipped
    }

    async fn step(&self) -> Result<Step, ShipError> {
        self.shipper.ship_next().await
    }
}

#[tokio::test]
async fn what_was_applied_stands_in_the_archive() {
    let fixture = holding(3).await;
    assert_eq!(fixture.unshipped(), 4);
    assert!(matches!(fixture.step().await, Ok(Step::Shipped { more: false })));
    assert_eq!(fixture.unshipped(), 0);
    assert!(
        matches!(fixture.step().await, Ok(Step::Nothing)),
        "nothing costs no request"
    );
    let packed = std::fs::read(fixture.object(1, 1)).expect("there");
    let decoder = SnapshotDecoder::new(&*packed, 1 << 20).expect("memory");
    let file = LogFile::decode(decoder).expect("sound");
    let entries = &file.index.entries;
    assert!(matches!(
        entries[..],
        [
            Entry::Loaded { .. },
            Entry::Commit(_),
            Entry::Commit(_),
            Entry::Commit(_)
        ]
    ));
}

#[tokio::test]
async fn an_earlier_try_of_ours_is_recognised() {
    let fixture = holding(2).await;
    let Built { segment, body, .. } = fixture.shipper.build().expect("reads").expect("something");
    let path = fixture.object(1, 1);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
    std::fs::write(&path, body).expect("writes");
    assert!(matches!(fixture.step().await, Ok(Step::Shipped { more: false })));
    let log = Mirror::new(&*fixture.shipper.store).log().expect("reads");
    assert_eq!(
        (log.number, log.prev, log.cut),
        (2, Some(segment.file.root), None)
    );
}

#[tokio::test]
async fn a_number_that_somebody_else_took_stops_us() {
    let (ours, theirs) = (holding(2).await, holding(1).await);
    let Built { body, .. } = theirs.shipper.build().expect("reads").expect("something");
    let path = ours.object(1, 1);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
    std::fs::write(&path, body).expect("writes");
    assert!(matches!(ours.step().await, Err(ShipError::Copied(_))));
    assert_eq!(
        ours.unshipped(),
        3,
        "what is not in the archive is not taken for archived"
    );
}

#[tokio::test]
async fn who_was_taken_over_stops_and_acknowledges_nothing() {
    let fixture = holding(2).await;
    let taken = writer::claim(&fixture.shipper.bucket, "two", None, true, NOW).await;
    assert_eq!(taken.expect("takes over").log.number, 1);
    assert!(matches!(fixture.step().await, Err(ShipError::Superseded(_))));
    assert_eq!(fixture.unshipped(), 3);
}

#[tokio::test]
async fn nothing_is_acknowledged_where_our_own_claim_is_not() {
    let fixture = holding(2).await;
    std::fs::remove_dir_all(fixture.root.join("v1")).expect("as if it were not mounted");
    assert!(matches!(fixture.step().await, Ok(Step::Failed(_))));
    assert_eq!(fixture.unshipped(), 3);
    assert!(!fixture.object(1, 1).exists());
}

#[tokio::test]
async fn nothing_goes_into_the_place_of_the_archive() {
    let fixture = holding(1).await;
    fixture.shipper.paused.store(true, Ordering::Relaxed);
    assert!(matches!(fixture.step().await, Ok(Step::Nothing)));
    assert!(!fixture.object(1, 1).exists());
    fixture.shipper.paused.store(false, Ordering::Relaxed);
    assert!(matches!(fixture.step().await, Ok(Step::Shipped { more: false })));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_interval() {
    let mut fixture = holding(1).await;
    let shipper = Arc::get_mut(&mut fixture.shipper).expect("not shared yet");
    shipper.flush_interval = Duration::from_secs(3600);
    let (hurry, cancel) = (CancellationToken::new(), CancellationToken::new());
    assert!(matches!(fixture.step().await, Ok(Step::Shipped { .. })));
    let running = tokio::spawn(Arc::clone(&fixture.shipper).run(hurry.clone(), cancel.clone()));
    // Asleep until the next flush: the first look finds nothing.
    sleep(Duration::from_millis(50)).await;
    let off = ListedRepo {
        did: fixture.did.clone(),
        head: None,
        status: AccountStatus::Takendown,
    };
    let listed = Input::Listed(ListedPage {
        host: "pds.test".parse().expect("a host"),
        repos: vec![off],
        listing: Listing::Finished { at: NOW },
        asked_at: ASKED,
        task: None,
    });
    fixture.shipper.applier.apply(listed).await.expect("applies");
    assert_eq!(fixture.unshipped(), 1);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(fixture.unshipped(), 1, "it waits for the interval");
    hurry.cancel();
    while fixture.unshipped() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!running.is_finished(), "it goes on until it is cancelled");
    cancel.cancel();
    running.await.expect("ends").expect("well");
}

#[tokio::test]
async fn nothing_is_lost_while_the_archive_is_away() {
    let fixture = holding(5).await;
    let away = fixture.root.with_extension("away");
    std::fs::rename(&fixture.root, &away).expect("renames");
    std::fs::write(&fixture.root, b"not a folder").expect("writes");
    let cancel = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&fixture.shipper).run(CancellationToken::new(), cancel.clone()));
    while !fixture.shipper.is_failing() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.unshipped(), 6);
    std::fs::remove_file(&fixture.root).expect("removes");
    std::fs::rename(&away, &fixture.root).expect("renames");
    while fixture.unshipped() > 0 || fixture.shipper.is_failing() {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(fixture.object(1, 1).exists());
    cancel.cancel();
    running.await.expect("ends").expect("well");
}

/// Nobody has noticed yet that a disk is not mounted any more, or that another archive stands there.
#[tokio::test]
async fn what_is_put_elsewhere_is_not_taken_for_archived() {
    let fixture = holding(2).await;
    let away = fixture.root.with_extension("away");
    std::fs::rename(&fixture.root, &away).expect("renames");
    std::fs::create_dir(&fixture.root).expect("makes");
    for other in [None, Some("two")] {
        if let Some(other) = other {
            let claimed = writer::claim(&fixture.shipper.bucket, other, None, false, NOW).await;
            assert_eq!(claimed.expect("free").log.generation, 1, "the same name");
        }
        let step = fixture.step().await;
        assert!(
            matches!(&step, Ok(Step::Failed(why)) if why.contains("its claim is not there")),
            "{other:?}"
        );
        assert!(!fixture.object(1, 1).exists(), "{other:?}: nothing is put there");
        assert_eq!(fixture.unshipped(), 3, "{other:?}");
    }
    std::fs::remove_dir_all(&fixture.root).expect("removes");
    std::fs::rename(&away, &fixture.root).expect("renames");
    assert!(matches!(fixture.step().await, Ok(Step::Shipped { more: false })));
    assert_eq!(fixture.unshipped(), 0);
}
