#![allow(clippy::disallowed_methods, reason = "tests")]
//! Retention on an archive in a folder: what must stay does, whatever goes, and each step can be the last.

use std::sync::Mutex;

use super::super::names::{ObjectName, WriterName};
use super::super::reader::ArchiveReader;
use super::super::scrub::run::{Options, Progress, verify};
use super::super::scrub::{Report, Sample};
use super::super::test_archive::{Churn, START, TestArchive, blob, claimed_by};
use super::super::timeline::At;
use super::*;
use crate::archive::names::BlobName;
use crate::types::Cid;

pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// What a mirror would know.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) accounts: Mutex<BTreeMap<Did, Known>>,
    pub(super) blobs: Mutex<BTreeMap<Digest, KnownBlob>>,
    pub(super) waiting: Mutex<BTreeSet<Digest>>,
    pub(super) dropped: Mutex<Vec<Did>>,
    pub(super) lost: Mutex<Vec<Rev>>,
    /// Deletions after which a deleted account comes back.
    pub(super) returns_after: Mutex<Option<usize>>,
    /// What is put while the mirror lets go of an account.
    pub(super) put_meanwhile: Mutex<Vec<(String, Vec<u8>)>>,
    pub(super) bucket: Option<Bucket>,
}

impl Fake {
    /// Whether the account came back just now.
    fn step(&self, did: &Did) {
        let mut left = self.returns_after.lock().expect("one thread");
        match *left {
            Some(0) => {
                let mut accounts = self.accounts.lock().expect("one thread");
                accounts.insert(did.clone(), Known::default());
            }
            Some(more) => *left = Some(more - 1),
            None => {}
        }
    }
}

impl Held for Fake {
    fn account(&self, did: &Did) -> Result<Option<Known>, StoreError> {
        Ok(self.accounts.lock().expect("one thread").get(did).copied())
    }

    fn blob(&self, _: &Did, digest: &Digest) -> Result<KnownBlob, StoreError> {
        let blobs = self.blobs.lock().expect("one thread");
        Ok(blobs.get(digest).copied().unwrap_or(KnownBlob::Unknown))
    }

    fn waiting_blobs(&self, _: &Did) -> Result<BTreeSet<Digest>, StoreError> {
        Ok(self.waiting.lock().expect("one thread").clone())
    }

    fn deleted_accounts(&self) -> Result<Vec<Did>, StoreError> {
        let accounts = self.accounts.lock().expect("one thread");
        let deleted = accounts.iter().filter(|(_, known)| known.deleted.is_some());
        Ok(deleted.map(|(did, _)| did.clone()).collect())
    }

    fn remove_blob<'a>(&'a self, _: &'a Did, _: Digest, name: &'a str, _: Timestamp) -> Answered<'a, bool> {
        Box::pin(async move {
            self.bucket.as_ref().expect("a bucket").delete(name).await?;
            Ok(true)
        })
    }

    fn remove_while<'a>(&'a self, did: &'a Did, name: &'a str, may: May<'a>) -> Answered<'a, bool> {
        Box::pin(async move {
            self.step(did);
            let may_go = self.account(did)?.is_some_and(|known| may(&known));
            if may_go {
                self.bucket.as_ref().expect("a bucket").delete(name).await?;
            }
            Ok(may_go)
        })
    }

    fn drop_account<'a>(&'a self, did: &'a Did) -> Answered<'a, bool> {
        Box::pin(async move {
            self.step(did);
            let put = std::mem::take(&mut *self.put_meanwhile.lock().expect("one thread"));
            for (name, bytes) in put {
                let options =
                    super::super::bucket::PutOptions::create(super::super::content_type::ContentType::zstd());
                let body = super::super::bucket::Body::Bytes(bytes.into());
                let bucket = self.bucket.as_ref().expect("a bucket");
                bucket.put(&name, body, &options).await?;
            }
            let mut accounts = self.accounts.lock().expect("one thread");
            let known = accounts.get_mut(did).expect("known");
            if known.deleted.is_none() || known.pinned {
                return Ok(false);
            }
            known.empty = true;
            self.dropped.lock().expect("one thread").push(did.clone());
            Ok(true)
        })
    }

    fn snapshot_lost<'a>(&'a self, _: &'a Did, rev: Rev) -> Answered<'a, ()> {
        self.lost.lock().expect("one thread").push(rev);
        Box::pin(async { Ok(()) })
    }
}

pub(super) struct Case {
    pub(super) archive: TestArchive,
    pub(super) churn: Churn,
    pub(super) held: Fake,
    pub(super) keep: Keep,
    pub(super) now: Timestamp,
    pub(super) memory: Memory,
}

pub(super) const NOTHING: Keep = Keep {
    last: 1,
    hours: 0,
    days: 0,
    weeks: 0,
    months: 0,
    window: Duration::ZERO,
    deleted: DAY,
    withdrawn: Duration::ZERO,
};

impl Case {
    /// 200 commits, a snapshot of every fortieth with deltas between them, and the whole log.
    pub(super) async fn new() -> Self {
        let churn = Churn::new(7).run(200);
        let archive = TestArchive::new().await;
        for mark in (0..=200).step_by(40) {
            archive.snapshot(churn.did(), &churn.states[mark]).await;
        }
        for mark in (0..200).step_by(40) {
            archive.delta(&churn, mark..mark + 40).await;
        }
        archive.segments(&[&churn], 0..200, (1, 1, None)).await;
        Self::of(archive, churn).await
    }

    pub(super) async fn of(archive: TestArchive, churn: Churn) -> Self {
        let claim = WriterName {
            shard: 0,
            generation: 1,
        };
        archive.put(&claim.to_string(), claimed_by("us")).await;
        for number in 0..9 {
            archive.blob(churn.did(), &blob(number)).await;
        }
        let held = Fake {
            bucket: Some(archive.bucket.clone()),
            ..Fake::default()
        };
        held.accounts
            .lock()
            .expect("one thread")
            .insert(churn.did().clone(), Known::default());
        let now = churn.last().received.plus(DAY * 10);
        Self {
            archive,
            churn,
            held,
            keep: Keep {
                window: DAY * 365,
                ..NOTHING
            },
            now,
            memory: Memory::default(),
        }
    }

    pub(super) fn know(&self, known: Known) {
        let did = self.churn.did().clone();
        self.held.accounts.lock().expect("one thread").insert(did, known);
    }

    pub(super) async fn prune(&mut self) -> Result<Pruned, PruneError> {
        let mut pruned = Pruned::default();
        self.prune_until(CancellationToken::new(), &mut pruned)
            .await
            .map(|()| pruned)
    }

    pub(super) async fn prune_until(
        &mut self,
        cancel: CancellationToken,
        pruned: &mut Pruned,
    ) -> Result<(), PruneError> {
        let pruner = Pruner {
            bucket: &self.archive.bucket,
            held: &self.held,
            right: Right {
                generation: 1,
                instance: "us".to_owned(),
            },
            keep: self.keep,
            now: self.now,
            pause: Duration::ZERO,
            temp_dir: self.archive.folder.path().to_owned(),
            cancel,
        };
        pruner.run(&mut self.memory, pruned).await
    }

    pub(super) async fn names(&self) -> Vec<ObjectName> {
        let page = self.archive.bucket.list("v1/", None).await.expect("lists");
        assert_eq!(page.next, None);
        page.objects
            .iter()
            .map(|object| object.name.parse().expect("a name"))
            .collect()
    }

    pub(super) async fn count(&self, is: impl Fn(&ObjectName) -> bool) -> usize {
        self.names().await.iter().filter(|name| is(name)).count()
    }

    pub(super) async fn report(&self) -> Report {
        let options = Options {
            sample: Sample::all(),
            rate: None,
        };
        let progress = std::sync::Arc::new(Progress::default());
        let mut keep = |_: &_| Ok(());
        let report = verify(&self.archive.bucket, options, None, progress, &mut keep);
        report.await.expect("verifies")
    }

    /// The newest state is there, though the log is damaged.
    pub(super) async fn each_moment_from_the_last(&self) {
        let reader = ArchiveReader::of_bucket(self.archive.bucket.clone(), self.archive.folder.path())
            .await
            .expect("opens");
        let line = reader.timeline(self.churn.did(), None).await.expect("reads");
        let choice = line.choose(At::Rev(self.churn.last().rev)).expect("the moment");
        let rebuilt = reader.rebuild(self.churn.did(), &line, choice.index, &[]).await;
        assert_eq!(
            rebuilt.expect("it proves").records.len(),
            self.churn.last().records.len()
        );
    }

    /// Every moment from a state on is what it was, rebuilt from the archive alone.
    pub(super) async fn each_moment_is_there_from(&self, first: usize, step: usize) {
        let reader = ArchiveReader::of_bucket(self.archive.bucket.clone(), self.archive.folder.path())
            .await
            .expect("opens");
        let line = reader.timeline(self.churn.did(), None).await.expect("reads");
        assert_eq!(line.faults, []);
        for then in self.churn.states[first..].iter().step_by(step) {
            let choice = line.choose(At::Rev(then.rev)).expect("the moment");
            let rebuilt = reader.rebuild(self.churn.did(), &line, choice.index, &[]).await;
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
            assert!(rebuilt.withheld.is_empty());
        }
    }
}

pub(super) const fn is_segment(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Segment(_))
}

pub(super) const fn is_snapshot(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Snapshot(_))
}

#[tokio::test]
async fn covered_segments_go_behind_a_boundary_and_no_moment_is_lost() {
    let mut case = Case::new().await;
    assert_eq!(case.count(is_segment).await, 67);
    let pruned = case.prune().await.expect("prunes");
    // The two newest stay, whatever stands elsewhere.
    assert_eq!(pruned.removed["segments"].0, 65);
    assert_eq!(
        (case.count(is_segment).await, pruned.moved, pruned.held_up),
        (2, 0, None)
    );
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );
    case.each_moment_is_there_from(0, 7).await;
    // Again, and nothing happens.
    let before = case.names().await;
    assert_eq!(case.prune().await.expect("prunes").objects(), 0);
    assert_eq!(case.names().await, before);
}

#[tokio::test]
async fn what_no_snapshot_covers_stays_while_it_is_young_and_moves_to_a_delta_when_it_is_old() {
    let churn = Churn::new(3).run(60);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    archive.segments(&[&churn], 0..60, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    case.now = case.churn.last().received.plus(Duration::from_secs(60));
    assert_eq!(case.prune().await.expect("prunes").objects(), 0);
    assert_eq!(case.count(is_segment).await, 20);

    case.now = case.now.plus(DAY * 3);
    let pruned = case.prune().await.expect("prunes");
    assert_eq!((pruned.removed["segments"].0, pruned.moved), (18, 1));
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );
    case.each_moment_is_there_from(0, 1).await;
}

#[tokio::test]
async fn what_builds_on_nothing_and_what_was_fetched_without_a_snapshot_hold_the_log_up() {
    let churn = Churn::new(4).run(30);
    let archive = TestArchive::new().await;
    archive.segments(&[&churn], 0..30, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    let pruned = case.prune().await.expect("prunes");
    assert_eq!(pruned.objects(), 0);
    assert!(pruned.held_up.expect("said").contains("builds on nothing"));

    let mut churn = Churn::new(5).run(30);
    churn.entries[3] = (churn.loaded(4), BTreeMap::new());
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    archive.segments(&[&churn], 0..30, (1, 1, None)).await;
    let mut case = Case::of(archive, churn).await;
    let pruned = case.prune().await.expect("prunes");
    assert_eq!(pruned.removed["segments"].0, 1, "up to the one that tells of it");
    assert!(pruned.held_up.expect("said").contains("fetched whole"));
    assert_ne!(
        case.report().await.exit_code(),
        4,
        "{}",
        case.report().await.text()
    );
}

#[tokio::test]
async fn a_broken_log_is_not_removed_beyond_the_break() {
    let mut case = Case::new().await;
    let name = case
        .names()
        .await
        .into_iter()
        .filter(is_segment)
        .nth(30)
        .expect("there");
    case.archive
        .bucket
        .delete(&name.to_string())
        .await
        .expect("deletes");
    let pruned = case.prune().await.expect("prunes");
    assert_eq!(pruned.removed["segments"].0, 29);
    assert!(pruned.held_up.expect("said").contains("broken"));
    // The damage is as visible as it was.
    assert_eq!(case.report().await.exit_code(), 4);
}

#[tokio::test]
async fn a_boundary_that_claims_too_much_is_found() {
    use super::super::boundary::Boundary;
    // Segments went, and nothing else holds what they told.
    let churn = Churn::new(6).run(60);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    archive.delta(&churn, 0..30).await;
    let (names, _) = archive.segments(&[&churn], 0..60, (1, 1, None)).await;
    let case = Case::of(archive, churn).await;
    let mut files = Vec::new();
    for name in &names {
        files.push(read_segment_of(&case, name).await);
    }
    let put = |kept: usize| {
        let crate::archive::log_file::Origin::Segment { prev, .. } = files[kept].index.origin else {
            panic!("a segment")
        };
        let name: crate::archive::names::SegmentName = names[kept].parse().expect("a segment");
        let mut boundary = Boundary::at(name.place(), prev, None, START);
        for file in &files[..kept] {
            boundary.pass(&file.index, |_| false);
        }
        (name.place().to_string(), boundary)
    };
    // As far as the delta leads, all is well.
    let (name, boundary) = put(10);
    case.archive.put(&name, boundary.encode()).await;
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );
    let (name, boundary) = put(15);
    case.archive.put(&name, boundary.encode()).await;
    let text = case.report().await.text();
    assert!(
        case.report().await.exit_code() == 4 && text.contains(&name),
        "{text}"
    );
    // One that names a segment which is not there.
    let (name, _) = put(15);
    case.archive.bucket.delete(&name).await.expect("deletes");
    let mut missing = boundary.clone();
    missing.name.number = 99;
    case.archive
        .put(&missing.name.to_string(), missing.encode())
        .await;
    assert_eq!(case.report().await.exit_code(), 4);
}

async fn read_segment_of(case: &Case, name: &str) -> crate::archive::log_file::LogFile {
    let name = name.parse().expect("a segment");
    super::writer::read_segment(&case.archive.bucket, &name)
        .await
        .expect("reads")
}

#[tokio::test]
async fn cut_short_anywhere_the_archive_verifies_and_the_next_run_goes_on() {
    let mut case = Case::new().await;
    case.keep = NOTHING;
    let mut runs = 0;
    // Each run is ended by a bucket that fails after one more removal.
    loop {
        let cancel = CancellationToken::new();
        let (stop, bucket) = (cancel.clone(), case.archive.bucket.clone());
        let most = case.names().await.len() - 1 - runs % 3;
        let watch = tokio::spawn(async move {
            loop {
                let page = bucket.list("v1/", None).await.expect("lists");
                if page.objects.len() <= most {
                    stop.cancel();
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        let mut pruned = Pruned::default();
        let ended = case.prune_until(cancel, &mut pruned).await;
        watch.abort();
        let report = case.report().await;
        assert_ne!(report.exit_code(), 4, "after run {runs}: {}", report.text());
        case.each_moment_is_there_from(200, 1).await;
        runs += 1;
        if ended.is_ok() && pruned.objects() == 0 {
            break;
        }
        assert!(runs < 500, "it does not end");
    }
    assert!(runs > 2, "{runs} runs");
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );
    assert_eq!(
        (case.count(is_segment).await, case.count(is_snapshot).await),
        (2, 1)
    );
}

#[tokio::test]
async fn the_window_keeps_each_of_its_moments_when_retention_runs_twice() {
    let mut case = Case::new().await;
    let from = &case.churn.states[100];
    case.now = case.churn.last().received;
    case.keep = Keep {
        window: case.now.since(from.received.min(from.time)),
        ..NOTHING
    };
    let first = case.prune().await.expect("prunes");
    assert!(
        first.removed["snapshots"].0 > 0 && first.removed["deltas"].0 > 0,
        "{first:?}"
    );
    let second = case.prune().await.expect("prunes");
    assert_eq!(second.objects(), 0, "{second:?}");
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );
    case.each_moment_is_there_from(100, 3).await;
}

#[tokio::test]
async fn nothing_goes_of_what_is_pinned_unknown_or_leans_on_a_snapshot_that_does_not_prove() {
    let mut case = Case::new().await;
    case.keep = NOTHING;
    let all = case.names().await;
    let not_log = |names: Vec<ObjectName>| -> Vec<ObjectName> {
        let of_log = |name: &ObjectName| is_segment(name) || matches!(name, ObjectName::Boundary(_));
        names.into_iter().filter(|name| !of_log(name)).collect()
    };
    case.know(Known {
        pinned: true,
        deleted: Some(Timestamp::default()),
        ..Known::default()
    });
    case.prune().await.expect("prunes");
    assert_eq!(not_log(case.names().await), not_log(all.clone()), "pinned");
    case.held.accounts.lock().expect("one thread").clear();
    case.prune().await.expect("prunes");
    assert_eq!(not_log(case.names().await), not_log(all.clone()), "unknown");

    // The newest snapshot is damaged: an older one that proves stays, with all that leads on from it.
    case.know(Known::default());
    let newest = all
        .iter()
        .filter(|name| is_snapshot(name))
        .max_by_key(|name| match name {
            ObjectName::Snapshot(name) => name.rev,
            _ => unreachable!("snapshots alone"),
        });
    let path = case.archive.path(&newest.expect("there").to_string());
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).expect("writes");
    case.prune().await.expect("prunes");
    case.each_moment_is_there_from(160, 5).await;
    // And it is told, so that it is made again.
    let newest = case.churn.last().rev;
    assert!(case.held.lost.lock().expect("one thread").contains(&newest));

    // None proves: nothing goes.
    let mut case = Case::new().await;
    case.keep = NOTHING;
    for name in case.names().await.iter().filter(|name| is_snapshot(name)) {
        let path = case.archive.path(&name.to_string());
        std::fs::write(&path, b"no snapshot").expect("writes");
    }
    let all = case.names().await;
    let pruned = case.prune().await.expect("prunes");
    assert_eq!(pruned.unproven, [case.churn.did().to_string()]);
    assert_eq!(not_log(case.names().await), not_log(all));
}

#[tokio::test]
async fn only_the_writer_prunes() {
    let mut case = Case::new().await;
    case.keep = NOTHING;
    let newer = WriterName {
        shard: 0,
        generation: 2,
    };
    case.archive.put(&newer.to_string(), claimed_by("them")).await;
    let before = case.names().await;
    assert!(matches!(case.prune().await, Err(PruneError::NotOurs(_))));
    assert_eq!(case.names().await, before);
}

#[tokio::test]
async fn a_deleted_account_goes_after_its_grace_with_all_that_is_its_own() {
    let mut case = Case::new().await;
    let deleted = case.now.minus(DAY / 2);
    case.know(Known {
        deleted: Some(deleted),
        ..Known::default()
    });
    case.keep = NOTHING;
    let repository = |name: &ObjectName| {
        matches!(
            name,
            ObjectName::Snapshot(_) | ObjectName::Delta(_) | ObjectName::Blob(_)
        )
    };
    let before = case.count(repository).await;
    case.prune().await.expect("prunes");
    assert_eq!(case.count(repository).await, before, "its grace is not over");
    case.now = case.now.plus(DAY);
    case.prune().await.expect("prunes");
    assert_eq!(case.count(repository).await, 0);
    assert_eq!(
        *case.held.dropped.lock().expect("one thread"),
        [case.churn.did().clone()]
    );
    assert_eq!(case.count(|name| matches!(name, ObjectName::Erased(_))).await, 1);
    assert_ne!(
        case.report().await.exit_code(),
        4,
        "{}",
        case.report().await.text()
    );
}

#[tokio::test]
async fn blobs_go_when_nothing_that_is_kept_refers_to_them() {
    let mut case = Case::new().await;
    // Before the log is pruned it refers to them all; so do the deltas of the window.
    let digests: Vec<Digest> = (0..9).map(|n| *Cid::of_blob(&blob(n)).digest()).collect();
    let head = case.churn.last().records.clone();
    let referenced = |digest: &Digest| {
        let mut blobs = head
            .values()
            .flat_map(|record| crate::repo::record::scan_record(record).blobs);
        blobs.any(|blob| blob.cid.digest() == digest)
    };
    for digest in &digests {
        let known = match referenced(digest) {
            true => KnownBlob::Referenced,
            false => KnownBlob::Unreferenced(Timestamp::default()),
        };
        case.held.blobs.lock().expect("one thread").insert(*digest, known);
    }
    let unreferenced = digests.iter().filter(|digest| !referenced(digest)).count();
    assert!(unreferenced > 0, "the churn leaves some");
    let is_blob = |name: &ObjectName| matches!(name, ObjectName::Blob(_));
    case.prune().await.expect("prunes");
    assert_eq!(case.count(is_blob).await, 9, "kept moments refer to them");
    // Only the newest snapshot stays, and two segments.
    case.keep = NOTHING;
    let pruned = case.prune().await.expect("prunes");
    let gone = pruned.removed.get("blobs").map_or(0, |(objects, _)| *objects) as usize;
    assert!(gone > 0 && gone <= unreferenced, "{gone} of {unreferenced}");
    assert_eq!(case.count(is_blob).await, 9 - gone);
    for name in case.names().await {
        if let ObjectName::Blob(BlobName { blob, .. }) = name {
            // What stays is referred to by the head, or by the two segments.
            assert!(referenced(&blob) || pruned.removed["segments"].0 > 0);
        }
    }
    assert_eq!(
        case.report().await.exit_code(),
        0,
        "{}",
        case.report().await.text()
    );

    // One that came up after everything that is kept began stays, and so does one that nobody knows.
    let mut case = Case::new().await;
    case.keep = NOTHING;
    let newer = KnownBlob::Unreferenced(case.now);
    let known = digests.iter().take(4).map(|digest| (*digest, newer));
    case.held.blobs.lock().expect("one thread").extend(known);
    case.prune().await.expect("prunes");
    assert_eq!(case.count(is_blob).await, 9);
}
