#![allow(clippy::disallowed_methods, reason = "tests")]
//! Erasures on an archive in a folder: nothing of it is left, everything else proves, and each step can be the last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::note::{Note, What};
use super::run::{Erased, Eraser, Scope};
use crate::archive::held::{Letting, Visit};
use crate::archive::names::{DidFolder, ErasedName, ObjectName, WriterName};
use crate::archive::prune::{Answered, PruneError, Right, read_note};
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::archive::scrub::run::{Options, Progress, verify};
use crate::archive::scrub::{Report, Sample};
use crate::archive::snapshot_file::SnapshotDecoder;
use crate::archive::test_archive::{Churn, TestArchive, claimed_by};
use crate::archive::timeline::At;
use crate::mirror::StoreError;
use crate::mirror::input::Erase;
use crate::sim::account::{post, post_with_blob};
use crate::types::{Cid, Did, Timestamp};

const SECRET: &str = "what a person wants gone";
const PATH: &str = "app.bsky.feed.post/secret";

/// A mirror that holds nothing, and remembers what it was told.
#[derive(Default)]
struct Fake(Mutex<Vec<Erase>>);

impl Letting for Fake {
    fn each_record(&self, _: &Did, _: &mut Visit<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    fn kept_car_holds(&self, _: &Did, _: &[Cid]) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn erase(&self, erase: Erase) -> Answered<'_, ()> {
        self.0.lock().expect("one thread").push(erase);
        Box::pin(async { Ok(()) })
    }
}

struct Case {
    archive: TestArchive,
    churn: Churn,
    other: Churn,
    /// The versions that stood at [`PATH`], and the state from which on none does.
    versions: Vec<Cid>,
    blob: Cid,
    mirror: Fake,
    now: Timestamp,
}

impl Case {
    /// Two accounts in one log. The first has a secret from its 10th to its 50th commit, twice rewritten, with a
    /// picture of its own: it stands in snapshots, deltas and segments.
    async fn new() -> Self {
        let (mut churn, other) = (Churn::new(7).run(10), Churn::new(8).run(60));
        let picture = b"a picture".to_vec();
        let blob = Cid::of_blob(&picture);
        let mut versions = Vec::new();
        for number in 0..3 {
            let record = match number {
                0 => post_with_blob(SECRET, &blob, picture.len() as u64),
                n => post(&format!("{SECRET} {n}")),
            };
            versions.push(Cid::of_block(&record));
            let now = churn.last().received.plus(Duration::from_millis(5));
            churn.write(&[(PATH.to_owned(), Some(record))], now, now);
            churn = churn.run(13);
        }
        let now = churn.last().received.plus(Duration::from_millis(5));
        churn.write(&[(PATH.to_owned(), None)], now, now);
        let churn = churn.run(9);
        let archive = TestArchive::new().await;
        for mark in [0, 20, 40, 60] {
            archive.snapshot(churn.did(), &churn.states[mark]).await;
        }
        archive.snapshot(other.did(), &other.states[0]).await;
        archive.snapshot(other.did(), &other.states[60]).await;
        for mark in [0, 20, 40] {
            archive.delta(&churn, mark..mark + 20).await;
        }
        archive.segments(&[&churn, &other], 0..60, (1, 1, None)).await;
        archive.blob(churn.did(), &picture).await;
        for number in 0..9 {
            for did in [churn.did(), other.did()] {
                archive
                    .blob(did, &crate::archive::test_archive::blob(number))
                    .await;
            }
        }
        let claim = WriterName {
            shard: 0,
            generation: 1,
        };
        archive.put(&claim.to_string(), claimed_by("us")).await;
        Self {
            archive,
            now: churn.last().received,
            churn,
            other,
            versions,
            blob,
            mirror: Fake::default(),
        }
    }

    fn eraser(&self, cancel: CancellationToken) -> Eraser<'_> {
        Eraser {
            bucket: &self.archive.bucket,
            mirror: &self.mirror,
            right: Right {
                generation: 1,
                instance: "us".to_owned(),
            },
            now: self.now,
            by: "an admin".to_owned(),
            pause: Duration::ZERO,
            temp_dir: self.archive.folder.path().to_owned(),
            cancel,
        }
    }

    async fn erase(&self, what: &What) -> Result<(Scope, Erased), PruneError> {
        let eraser = self.eraser(CancellationToken::new());
        let scope = eraser.scope(self.churn.did(), what).await?;
        let done = eraser.erase(self.churn.did(), what, &scope).await?;
        Ok((scope, done))
    }

    async fn names(&self) -> Vec<String> {
        let page = self.archive.bucket.list("v1/", None).await.expect("lists");
        page.objects.into_iter().map(|object| object.name).collect()
    }

    /// Objects in which a text stands, unpacked where they are packed.
    async fn with_text(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.names().await {
            let mut bytes = std::fs::read(self.archive.path(&name)).expect("reads");
            if name.ends_with(".zst") {
                let mut plain = Vec::new();
                let mut decoder = SnapshotDecoder::new(&*bytes, 1 << 30).expect("memory");
                decoder.read_to_end(&mut plain).expect("unpacks");
                bytes = plain;
            }
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(name);
            }
        }
        found
    }

    async fn note(&self) -> Note {
        let name = ErasedName {
            did: DidFolder::try_from(self.churn.did()).expect("short"),
        };
        read_note(&self.archive.bucket, &name)
            .await
            .expect("reads")
            .expect("there")
    }

    async fn report(&self) -> Report {
        let options = Options {
            sample: Sample::all(),
            rate: None,
        };
        let progress = Arc::new(Progress::default());
        let mut keep = |_: &_| Ok(());
        let report = verify(&self.archive.bucket, options, None, progress, &mut keep);
        report.await.expect("verifies")
    }

    async fn reader(&self) -> ArchiveReader {
        let reader = ArchiveReader::of_bucket(self.archive.bucket.clone(), self.archive.folder.path());
        reader.await.expect("opens")
    }

    /// Every moment proves, says what is withheld of it, and gives the rest.
    async fn each_moment(&self, of: &Churn, withheld: &BTreeSet<Cid>) {
        let reader = self.reader().await;
        let line = reader.timeline(of.did(), None).await.expect("reads");
        assert_eq!(line.faults, []);
        let mut partial = 0;
        for then in of.states.iter().step_by(3) {
            let choice = line.choose(At::Rev(then.rev)).expect("the moment");
            let rebuilt = reader.rebuild(of.did(), &line, choice.index, &[]).await;
            let rebuilt = rebuilt.unwrap_or_else(|error| panic!("rev {}: {error}", then.rev));
            let held: BTreeMap<String, Cid> = rebuilt
                .records
                .iter()
                .map(|(path, cid)| (path.to_string(), *cid))
                .collect();
            let was: BTreeMap<String, Cid> = then
                .records
                .iter()
                .map(|(path, bytes)| (path.clone(), Cid::of_block(bytes)))
                .collect();
            assert_eq!(held, was, "rev {}", then.rev);
            let lacks: Vec<&str> = rebuilt.withheld.iter().map(|path| &**path).collect();
            let should: Vec<&str> = was
                .iter()
                .filter(|(_, cid)| withheld.contains(cid))
                .map(|(path, _)| path.as_str())
                .collect();
            assert_eq!(lacks, should, "rev {}", then.rev);
            partial += usize::from(!lacks.is_empty());
            let mut car = Vec::new();
            rebuilt.write_car(&mut car).expect("writes");
            assert!(
                !car.windows(SECRET.len())
                    .any(|window| window == SECRET.as_bytes())
                    || withheld.is_empty()
            );
        }
        assert_eq!(partial > 0, !withheld.is_empty() && of.did() == self.churn.did());
    }
}

#[tokio::test]
async fn a_record_goes_from_every_object_and_each_moment_proves_and_says_so() {
    let case = Case::new().await;
    let what = What::Record(PATH.parse().expect("a path"));
    let before = case.with_text(SECRET).await;
    let kinds = |end: &str| before.iter().filter(|name| name.ends_with(end)).count();
    assert_eq!((kinds(".delta.car.zst"), before.len()), (2, 7), "{before:?}");
    case.each_moment(&case.churn, &BTreeSet::new()).await;

    let (scope, done) = case.erase(&what).await.expect("erases");
    assert_eq!(scope.records, case.versions.iter().copied().collect());
    assert_eq!(
        scope.blobs,
        BTreeSet::from([*case.blob.digest()]),
        "its picture goes with it"
    );
    assert_eq!(
        (done.rewritten as usize, done.removed as usize),
        (before.len(), before.len() + 1)
    );
    assert_eq!(case.with_text(SECRET).await, Vec::<String>::new());
    assert!(
        !case
            .names()
            .await
            .iter()
            .any(|name| name.contains(&case.blob.to_string()))
    );
    // Each under a new name, and the old one gone.
    for name in &before {
        let (stem, end) = name
            .split_once(if name.contains(".delta.") {
                ".delta"
            } else {
                ".car"
            })
            .expect("an ending");
        let new = format!(
            "{stem}.erased-1.{}{end}",
            if name.contains(".delta.") { "delta" } else { "car" }
        );
        assert!(
            case.names().await.contains(&new) && !case.names().await.contains(name),
            "{new}"
        );
    }
    let told = case.mirror.0.lock().expect("one thread").clone();
    assert_eq!(told.len(), 1);
    assert!(!told[0].whole && told[0].lasting && told[0].records.len() == 3 && told[0].blobs.len() == 1);

    let withheld: BTreeSet<Cid> = case.versions.iter().copied().collect();
    case.each_moment(&case.churn, &withheld).await;
    case.each_moment(&case.other, &BTreeSet::new()).await;
    let report = case.report().await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
    assert!(report.counts.erased_records > 0);
}

#[tokio::test]
async fn what_a_killed_writer_was_about_to_put_goes_too() {
    let case = Case::new().await;
    let folder = case.archive.path("v1/.tmp");
    std::fs::create_dir_all(&folder).expect("a folder");
    let leftover = folder.join("1-1");
    std::fs::write(&leftover, SECRET).expect("writes");
    let what = What::Record(PATH.parse().expect("a path"));
    let (_, done) = case.erase(&what).await.expect("erases");
    assert!(!leftover.exists());
    assert_eq!(
        case.note().await.erasures[0].objects,
        done.removed + done.rewritten
    );
    // Nor is it done while it stays there: here a folder stands in its place, which cannot be removed.
    std::fs::create_dir(&leftover).expect("a folder");
    let other = What::Record("app.bsky.feed.post/other".parse().expect("a path"));
    assert!(case.erase(&other).await.is_err());
    assert_eq!(case.note().await.erasures[1].done, None);
}

#[tokio::test]
async fn it_is_looked_for_again_a_day_later() {
    let mut case = Case::new().await;
    let what = What::Record(PATH.parse().expect("a path"));
    case.erase(&what).await.expect("erases");
    let note = case.note().await;
    assert_eq!(
        (note.erasures[0].done, note.erasures[0].confirmed),
        (Some(milliseconds(case.now)), None)
    );
    // A copy of the mirror puts an old object back.
    case.now = case.now.plus(Duration::from_secs(25 * 3600));
    case.archive.delta(&case.churn, 0..20).await;
    assert_eq!(case.with_text(SECRET).await.len(), 1);
    let eraser = case.eraser(CancellationToken::new());
    let done = eraser.finish(case.churn.did()).await.expect("looks again");
    assert_eq!((done.rewritten, done.removed), (1, 1));
    assert_eq!(case.with_text(SECRET).await, Vec::<String>::new());
    let note = case.note().await;
    assert_eq!(note.erasures[0].confirmed, Some(milliseconds(case.now)));
}

/// As a note keeps it.
fn milliseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_micros(time.millis() * 1000)
}

#[tokio::test]
async fn restores_obey_the_note_before_any_object_is_written_again() {
    let case = Case::new().await;
    let what = What::Record(PATH.parse().expect("a path"));
    let cancel = CancellationToken::new();
    cancel.cancel();
    let scope = case
        .eraser(CancellationToken::new())
        .scope(case.churn.did(), &what)
        .await
        .expect("reads");
    let stopped = case.eraser(cancel).erase(case.churn.did(), &what, &scope).await;
    assert!(matches!(stopped, Err(PruneError::Cancelled)));
    assert!(
        !case.with_text(SECRET).await.is_empty(),
        "nothing is written again yet"
    );
    case.each_moment(&case.churn, &scope.records).await;
    assert_eq!(case.report().await.exit_code(), 0);
    // A note that cannot be read: nothing is given.
    let name = format!("v1/erased/{}.json", case.churn.did());
    std::fs::write(case.archive.path(&name), b"{}").expect("writes");
    let read = case.reader().await.timeline(case.churn.did(), None).await;
    assert!(matches!(read, Err(ReadError::Note { .. })));
    assert!(
        case.eraser(CancellationToken::new())
            .finish(case.churn.did())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn cut_short_at_every_step_it_goes_on_where_it_was() {
    let what = What::Record(PATH.parse().expect("a path"));
    let case = Case::new().await;
    let withheld: BTreeSet<Cid> = case.versions.iter().copied().collect();
    let mut runs = 0;
    loop {
        let cancel = CancellationToken::new();
        // Ends once one more object is written again, or is removed.
        let (bucket, stop) = (case.archive.bucket.clone(), cancel.clone());
        let before = case.names().await;
        let watch = tokio::spawn(async move {
            loop {
                let page = bucket.list("v1/", None).await.expect("lists");
                let names: Vec<String> = page.objects.into_iter().map(|object| object.name).collect();
                let changed = names.iter().filter(|name| !before.contains(name)).count();
                if changed > runs % 2 || names.len() < before.len() {
                    stop.cancel();
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        let eraser = case.eraser(cancel);
        let ended = match eraser.scope(case.churn.did(), &what).await {
            Ok(scope) => eraser.erase(case.churn.did(), &what, &scope).await,
            Err(error) => Err(error),
        };
        watch.abort();
        let report = case.report().await;
        assert_ne!(report.exit_code(), 4, "after run {runs}: {}", report.text());
        case.each_moment(&case.churn, &withheld).await;
        runs += 1;
        match ended {
            Ok(_) => break,
            Err(PruneError::Cancelled) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(runs < 300, "it does not end");
    }
    assert!(runs > 3, "{runs} runs");
    assert_eq!(case.with_text(SECRET).await, Vec::<String>::new());
    assert!(case.note().await.erasures[0].done.is_some());
}

#[tokio::test]
async fn an_account_goes_with_all_that_is_its_own_and_the_others_stay() {
    let case = Case::new().await;
    let (scope, _) = case.erase(&What::Account).await.expect("erases");
    assert!(scope.found);
    assert_eq!(case.with_text(SECRET).await, Vec::<String>::new());
    let own = |name: &String| name.contains(case.churn.did().as_str()) && !name.starts_with("v1/erased/");
    assert_eq!(case.names().await.iter().filter(|name| own(name)).count(), 0);
    assert!(case.mirror.0.lock().expect("one thread")[0].whole);
    let read = case.reader().await.timeline(case.churn.did(), None).await;
    assert!(
        matches!(read, Err(ReadError::Erased { .. })),
        "a restore obeys it"
    );
    case.each_moment(&case.other, &BTreeSet::new()).await;
    let report = case.report().await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
}

#[tokio::test]
async fn a_blob_or_a_record_goes_by_its_cid() {
    let case = Case::new().await;
    // A blob that the head refers to: verify does not miss it.
    let head = &case.churn.last().records;
    let blobs = head
        .values()
        .flat_map(|record| crate::repo::record::scan_record(record).blobs);
    let blob = blobs
        .map(|blob| blob.cid)
        .next()
        .expect("the head refers to some");
    let (scope, done) = case.erase(&What::Cid(blob)).await.expect("erases");
    assert_eq!((scope.records.len(), scope.blobs.len(), done.removed), (0, 1, 1));
    let kept = |did: &Did| format!("v1/blocks/{did}/{blob}");
    assert!(!case.names().await.contains(&kept(case.churn.did())));
    assert!(
        case.names().await.contains(&kept(case.other.did())),
        "another account's copy is its own"
    );
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );

    let (scope, _) = case.erase(&What::Cid(case.versions[1])).await.expect("erases");
    assert_eq!((scope.records.len(), scope.blobs.len()), (1, 0));
    assert_eq!(case.with_text(&format!("{SECRET} 1")).await, Vec::<String>::new());
    assert!(
        !case.with_text(&format!("{SECRET} 2")).await.is_empty(),
        "the other versions stay"
    );
    assert_eq!(case.note().await.erasures.len(), 2);
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );

    // Again from what was written again: the next edition.
    case.erase(&What::Cid(case.versions[2])).await.expect("erases");
    assert!(case.names().await.iter().any(|name| name.contains(".erased-2.")));
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );
    let withheld = BTreeSet::from([case.versions[1], case.versions[2]]);
    case.each_moment_withholds(&withheld).await;
    let nothing = case.eraser(CancellationToken::new());
    let scope = nothing
        .scope(case.churn.did(), &What::Cid(Cid::of_block(b"never")))
        .await
        .expect("reads");
    assert!(!scope.found);
}

impl Case {
    async fn each_moment_withholds(&self, withheld: &BTreeSet<Cid>) {
        let reader = self.reader().await;
        let line = reader.timeline(self.churn.did(), None).await.expect("reads");
        for index in (0..line.moments.len()).step_by(7) {
            let rebuilt = reader
                .rebuild(self.churn.did(), &line, index, &[])
                .await
                .expect("proves");
            for (path, cid) in &rebuilt.records {
                assert_eq!(rebuilt.withheld.contains(path), withheld.contains(cid), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn without_a_note_a_missing_record_is_damage() {
    let case = Case::new().await;
    case.erase(&What::Cid(case.versions[1])).await.expect("erases");
    assert_eq!(case.report().await.exit_code(), 0);
    let name = format!("v1/erased/{}.json", case.churn.did());
    case.archive.bucket.delete(&name).await.expect("deletes");
    assert_eq!(case.report().await.exit_code(), 4);
}

#[tokio::test]
async fn only_the_writer_erases_and_nothing_damaged_is_written_again() {
    let case = Case::new().await;
    let newer = WriterName {
        shard: 0,
        generation: 2,
    };
    case.archive.put(&newer.to_string(), claimed_by("them")).await;
    let before = case.names().await;
    let what = What::Cid(case.versions[1]);
    assert!(matches!(case.erase(&what).await, Err(PruneError::NotOurs(_))));
    assert_eq!(case.names().await, before);

    let case = Case::new().await;
    let damaged = case.names().await.into_iter().find(|name| {
        matches!(name.parse(), Ok(ObjectName::Snapshot(_))) && name.contains(case.churn.did().as_str())
    });
    let damaged = damaged.expect("a snapshot");
    let bytes = std::fs::read(case.archive.path(&damaged)).expect("reads");
    std::fs::write(case.archive.path(&damaged), &bytes[..bytes.len() / 2]).expect("writes");
    // It cannot be told whether it holds some of it: that is said, and it is not claimed to be done.
    assert!(matches!(case.erase(&what).await, Err(PruneError::Damaged(_))));
}
