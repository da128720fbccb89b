//! A mirror out of an archive, and trial restores, against what simulated accounts held; and with damage.

use std::path::PathBuf;

use super::*;
use crate::archive::identity_file::IdentityFile;
use crate::archive::names::{DidFolder, IdentityName};
use crate::archive::test_archive::{Churn, START, TestArchive, blob};
use crate::daemon::drill::{self, Options, Report};
use crate::mirror::applier::ApplierLimits;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{BlobState, SyncState};
use crate::types::Timestamp;

/// An archive of one account, with its identity and all its blobs; the last changes stand in the log alone.
struct Scene {
    churn: Churn,
    archive: TestArchive,
    now: Timestamp,
}

impl Scene {
    async fn new(number: u64) -> Self {
        let churn = Churn::new(number).run(95);
        let archive = TestArchive::of(&churn).await;
        for number in 0..9 {
            archive.blob(churn.did(), &blob(number)).await;
        }
        let now = churn.last().received.plus(Duration::from_secs(60));
        let scene = Self { churn, archive, now };
        for name in scene.objects(".car.zst").await {
            scene.in_order(&name);
        }
        scene.put_identity(&scene.churn.account.key()).await;
        scene
    }

    /// A snapshot as the keeper writes it: in the order that can be streamed.
    fn in_order(&self, name: &str) {
        let Ok(crate::archive::names::ObjectName::Snapshot(snapshot)) = name.parse() else {
            return;
        };
        let mut states = self.churn.states.iter();
        let then = states.find(|then| then.rev == snapshot.rev).expect("a moment");
        let rows = Rows(&then.records);
        let data = crate::repo::commit::Commit::decode(&then.commit.1)
            .expect("a commit")
            .data;
        let mut car = Vec::new();
        crate::repo::export::prove(&rows, data)
            .and_then(|proven| proven.write_car(&rows, then.commit.0, &then.commit.1, &mut car))
            .expect("proves");
        std::fs::write(self.archive.path(name), crate::archive::test_archive::pack(&car)).expect("writes");
    }

    async fn put_identity(&self, key: &crate::repo::signing_key::SigningKey) {
        let did = self.churn.did();
        let method = serde_json::json!({
            "id": "#atproto",
            "type": "Multikey",
            "controller": did.as_str(),
            "publicKeyMultibase": key.to_multikey(),
        });
        let file = IdentityFile {
            did: did.clone(),
            time: Timestamp::from_micros(START.millis() * 1000),
            document: Some(serde_json::json!({ "id": did.as_str(), "verificationMethod": [method] })),
            plc_log: None,
        };
        let name = IdentityName {
            did: DidFolder::try_from(did).expect("short"),
            time: file.time,
        };
        let path = self.archive.path(&name.to_string());
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        std::fs::write(path, file.encode()).expect("writes");
    }

    async fn cold(&self, store: &Arc<dyn Store>) -> Arc<ColdStart> {
        let reader = ArchiveReader::of_bucket(self.archive.bucket.clone(), self.archive.folder.path());
        let clock = Clock::manual(self.now);
        let cold = ColdStart::alone(Arc::clone(store), reader.await.expect("opens"), &clock, true);
        cold.expect("opens")
    }

    /// Fills a store from the archive.
    async fn fill(&self, store: &Arc<dyn Store>) -> Filled {
        let cold = self.cold(store).await;
        let numbers = Arc::new(Numbers::open(Arc::clone(store)).expect("opens"));
        let mut applier = Applier::open(Arc::clone(store), numbers, ApplierLimits::default()).expect("opens");
        applier.drop_orphans().expect("drops");
        let log = LogRow {
            generation: u64::MAX,
            number: u64::MAX,
            prev: None,
            cut: None,
            shipped: None,
        };
        cold.fill(&mut applier, "an archive", log).await.expect("fills")
    }

    async fn drill(&self, mirror: Option<&Arc<dyn Store>>) -> Report {
        let place = self.archive.folder.path();
        let options = Options { accounts: 3, seed: 7 };
        let clock = Clock::manual(self.now);
        let drilled = drill::drill(
            self.archive.bucket.clone(),
            mirror,
            options,
            (&clock, place),
            true,
        );
        drilled.await.expect("reads")
    }

    fn flip(&self, name: &str) {
        let path = self.archive.path(name);
        let mut bytes = std::fs::read(&path).expect("there");
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
        std::fs::write(path, bytes).expect("writes");
    }

    async fn objects(&self, end: &str) -> Vec<String> {
        let objects = self.archive.objects().await.into_iter();
        objects.filter(|name| name.ends_with(end)).collect()
    }

    async fn newest_snapshot(&self) -> String {
        let snapshots = self.objects(".car.zst").await.into_iter();
        let snapshots = snapshots.filter(|name| name.starts_with("v1/repos/") && !name.contains(".."));
        snapshots.max().expect("one")
    }
}

/// Records as an export scans them.
struct Rows<'r>(&'r BTreeMap<String, Vec<u8>>);

impl crate::repo::export::RecordRows for Rows<'_> {
    type Error = std::convert::Infallible;

    fn scan(
        &self,
        from: Option<&[u8]>,
        visit: &mut crate::repo::export::RowVisitor<'_>,
    ) -> Result<(), Self::Error> {
        for (path, bytes) in self.0 {
            let path = path.as_bytes();
            if from.is_none_or(|from| path >= from)
                && visit(path, crate::types::Cid::of_block(bytes), bytes).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

/// What a store holds of the churn's account.
fn held(store: &Arc<dyn Store>, churn: &Churn) -> (Option<Rev>, BTreeMap<String, Vec<u8>>, SyncState) {
    let mirror = Mirror::new(&**store);
    let row = mirror.account(churn.did()).expect("reads").expect("known");
    let mut records = BTreeMap::new();
    mirror
        .scan_records(row.account_number, None, &mut |path, record| {
            let path = String::from_utf8_lossy(path).into_owned();
            records.insert(path, record.bytes.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .expect("reads");
    (row.head.map(|head| head.rev), records, row.sync)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_delta_tells_since_the_newest_snapshot_is_there_too() {
    // Segments go once deltas hold what they told.
    let scene = Scene::new(36).await;
    scene.archive.delta(&scene.churn, 80..95).await;
    for name in scene.objects(".car.zst").await {
        if name.starts_with("v1/log/") {
            std::fs::remove_file(scene.archive.path(&name)).expect("there");
        }
    }
    let store = memory();
    let filled = scene.fill(&store).await;
    assert_eq!(
        (filled.accounts, filled.lacking.len()),
        (1, 0),
        "{:?}",
        filled.lacking
    );
    let last = scene.churn.last();
    assert_eq!(
        held(&store, &scene.churn),
        (Some(last.rev), last.records.clone(), SyncState::Live)
    );

    // Where the delta is damaged, what it would tell is known to be lacking.
    let delta = scene
        .objects(".delta.car.zst")
        .await
        .into_iter()
        .max()
        .expect("one");
    scene.flip(&delta);
    let store = memory();
    let filled = scene.fill(&store).await;
    assert_eq!(filled.lacking.len(), 1, "{filled:?}");
    let (rev, _, sync) = held(&store, &scene.churn);
    assert!(
        rev < Some(last.rev) && matches!(sync, SyncState::Wanted { .. }),
        "{rev:?} {sync:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_mirror_gets_what_the_account_held_and_asks_for_nothing() {
    let scene = Scene::new(31).await;
    let store = memory();
    let filled = scene.fill(&store).await;
    assert_eq!(
        (filled.accounts, filled.lacking.len()),
        (1, 0),
        "{:?}",
        filled.lacking
    );
    let last = scene.churn.last();
    assert_eq!(
        held(&store, &scene.churn),
        (Some(last.rev), last.records.clone(), SyncState::Live)
    );
    let mirror = Mirror::new(&*store);
    let row = mirror.account(scene.churn.did()).expect("reads").expect("known");
    assert!(row.is_archived() && !row.is_snapshotted());
    assert_eq!(row.journal_commits, 15, "what a delta is made of next");
    let mut states = BTreeMap::new();
    mirror
        .each_blob_of(row.did_number, |blob| {
            *states.entry(blob.state.label()).or_insert(0) += 1;
            std::ops::ControlFlow::Continue(())
        })
        .expect("reads");
    assert_eq!(states, BTreeMap::from([(BlobState::Archived.label(), 9)]));
    // Log numbers go on.
    let next = mirror
        .number(crate::mirror::keyspace::META_NEXT_LOG)
        .expect("reads");
    assert!(next > Some(300), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn power_lost_at_any_moment_costs_nothing_but_time() {
    let scene = Scene::new(32).await;
    for writes in [0, 1, 2, 3, 4, 5, 7, 9] {
        let memory = Arc::new(MemoryStore::new());
        let store: Arc<dyn Store> = Arc::clone(&memory) as Arc<dyn Store>;
        let cold = scene.cold(&store).await;
        let numbers = Arc::new(Numbers::open(Arc::clone(&store)).expect("opens"));
        let mut applier =
            Applier::open(Arc::clone(&store), numbers, ApplierLimits::default()).expect("opens");
        memory.lose_power_after(writes);
        let log = LogRow::default();
        let log = LogRow {
            generation: u64::MAX,
            number: u64::MAX,
            ..log
        };
        let cut = cold.fill(&mut applier, "an archive", log).await;
        drop((applier, cold));
        memory.crash(0);
        let mirror = Mirror::new(&*store);
        if let Some(row) = mirror.account(scene.churn.did()).expect("reads") {
            assert_eq!(
                row.head.map(|head| head.rev),
                Some(scene.churn.last().rev),
                "whole, or not at all"
            );
        } else {
            assert!(cut.is_err(), "after {writes} writes");
        }
        scene.fill(&store).await;
        let last = scene.churn.last();
        assert_eq!(
            held(&store, &scene.churn),
            (Some(last.rev), last.records.clone(), SyncState::Live),
            "after {writes} writes"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_costs_nothing_where_deltas_lead_on_and_a_drill_says_so() {
    let scene = Scene::new(33).await;
    let good = scene.drill(None).await;
    assert_eq!((good.exit_code(), good.accounts.len()), (0, 1), "{good:?}");
    assert!(good.text().contains("GOOD: 1 of 1"), "{}", good.text());
    assert_eq!(good.accounts[0].blobs, 9);

    let newest = scene.newest_snapshot().await;
    scene.flip(&newest);
    let store = memory();
    let filled = scene.fill(&store).await;
    assert_eq!(filled.lacking.len(), 0, "{:?}", filled.lacking);
    let last = scene.churn.last();
    let (rev, records, _) = held(&store, &scene.churn);
    assert_eq!((rev, records), (Some(last.rev), last.records.clone()));
    let row = Mirror::new(&*store)
        .account(scene.churn.did())
        .expect("reads")
        .expect("known");
    assert!(
        row.snapshot.is_none() && row.snapshot_due,
        "it is snapshotted anew"
    );

    let bad = scene.drill(None).await;
    assert_eq!(bad.exit_code(), 4, "{bad:?}");
    assert!(bad.accounts[0].problems[0].contains(&newest), "{bad:?}");
    assert!(bad.text().contains("FAILED"), "{}", bad.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_prove_is_named_and_left_to_the_host() {
    // The middle of the log: what is there leads to an older rev than the log speaks of.
    let scene = Scene::new(34).await;
    let segments = scene.objects(".car.zst").await.into_iter();
    let segments: Vec<_> = segments.filter(|name| name.starts_with("v1/log/")).collect();
    scene.flip(&segments[segments.len() - 2]);
    let store = memory();
    let filled = scene.fill(&store).await;
    assert_eq!(filled.lacking.len(), 1);
    let (rev, records, sync) = held(&store, &scene.churn);
    let then = scene
        .churn
        .states
        .iter()
        .find(|then| Some(then.rev) == rev)
        .expect("a moment");
    assert_eq!(records, then.records, "a moment that was");
    assert!(matches!(sync, SyncState::Wanted { .. }), "{sync:?}");
    assert_eq!(scene.drill(None).await.exit_code(), 4);

    // Somebody else's key: nothing of it is taken for proven.
    let scene = Scene::new(35).await;
    scene
        .put_identity(&crate::sim::SimAccount::new(99, START).key())
        .await;
    let store = memory();
    let filled = scene.fill(&store).await;
    assert_eq!((filled.accounts, filled.lacking.len()), (0, 1));
    assert_eq!(held(&store, &scene.churn).0, None);
    assert_eq!(scene.drill(None).await.exit_code(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_holds_the_archive_against_the_mirror_and_looks_at_every_blob() {
    let scene = Scene::new(36).await;
    let mirror = memory();
    scene.fill(&mirror).await;
    let good = scene.drill(Some(&mirror)).await;
    assert_eq!(
        (good.exit_code(), good.accounts[0].compared),
        (0, true),
        "{good:?}"
    );

    // A rotten blob, and one that is gone.
    let folder: PathBuf = scene.archive.path(&format!("v1/blocks/{}", scene.churn.did()));
    let mut blobs: Vec<_> = std::fs::read_dir(folder).expect("there").collect();
    let first = blobs.pop().expect("one").expect("an entry").path();
    let bytes = std::fs::read(&first).expect("reads");
    std::fs::write(&first, b"other bytes").expect("writes");
    let bad = scene.drill(Some(&mirror)).await;
    assert_eq!(bad.exit_code(), 4);
    assert!(
        bad.accounts[0].problems[0].contains("not those of its CID"),
        "{bad:?}"
    );
    std::fs::write(&first, bytes).expect("writes");
    assert_eq!(scene.drill(Some(&mirror)).await.exit_code(), 0);

    // A record of the mirror that is not what it was.
    let row = Mirror::new(&*mirror)
        .account(scene.churn.did())
        .expect("reads")
        .expect("known");
    let (path, _) = scene.churn.last().records.iter().next().expect("a record");
    let key = crate::mirror::keyspace::encode_record(row.account_number, path.as_bytes());
    let mut value = mirror.get(Family::Records, &key).expect("reads").expect("there");
    *value.last_mut().expect("bytes") ^= 1;
    let mut batch = crate::mirror::store::Batch::new();
    batch.put(Family::Records, key, value);
    mirror.write(batch).expect("writes");
    let bad = scene.drill(Some(&mirror)).await;
    assert!(
        bad.accounts[0].problems[0].contains("not those of the mirror"),
        "{bad:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_damaged_here_comes_back_out_of_the_archive() {
    let scene = Scene::new(37).await;
    let mirror = memory();
    scene.fill(&mirror).await;
    let row = Mirror::new(&*mirror)
        .account(scene.churn.did())
        .expect("reads")
        .expect("known");
    let (from, to) = crate::mirror::keyspace::number_bounds(row.account_number);
    let mut batch = crate::mirror::store::Batch::new();
    batch.delete_range(Family::Records, from, to);
    mirror.write(batch).expect("writes");

    let numbers = Arc::new(Numbers::open(Arc::clone(&mirror)).expect("opens"));
    let clock = Clock::manual(scene.now);
    let around = (scene.archive.bucket.clone(), scene.archive.folder.path(), &clock);
    let which = (scene.churn.did(), row.account_number);
    let one = ColdStart::one(&mirror, &numbers, around, which, true).await;
    let given = one.expect("reads").expect("the archive has it");
    let mut applier = Applier::open(
        Arc::clone(&mirror),
        Arc::clone(&numbers),
        ApplierLimits::default(),
    )
    .expect("opens");
    let damaged = Input::Damaged {
        did: scene.churn.did().clone(),
        account_number: row.account_number,
        task: Vec::new(),
    };
    applier.apply(vec![damaged, given], scene.now).expect("applies");
    let last = scene.churn.last();
    assert_eq!(
        held(&mirror, &scene.churn),
        (Some(last.rev), last.records.clone(), SyncState::Live)
    );
}
