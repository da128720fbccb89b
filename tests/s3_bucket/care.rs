//! Retention and erasure on an archive, in whatever store.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use firekeep::archive::bucket::Bucket;
use firekeep::archive::erase::note::What;
use firekeep::archive::erase::run::{Erased, Eraser};
use firekeep::archive::held::{Letting, Visit};
use firekeep::archive::names::ObjectName;
use firekeep::archive::probe::old_versions;
use firekeep::archive::prune::{
    Answered, Held, Known, KnownBlob, May, Memory, PruneError, Pruned, Pruner, Right,
};
use firekeep::archive::retention::Keep;
use firekeep::archive::scrub::run::Options;
use firekeep::archive::scrub::{Report, Sample};
use firekeep::archive::writer;
use firekeep::mirror::StoreError;
use firekeep::mirror::input::Erase;
use firekeep::types::{Cid, Did, Digest, Rev, Timestamp};
use tokio_util::sync::CancellationToken;

use super::archive::{NOW, fill, sample};
use super::server;

const DAY: Duration = Duration::from_secs(86_400);

/// A mirror that knows every account, and holds nothing.
struct Mirror {
    erased: Mutex<Vec<Erase>>,
    bucket: Bucket,
}

impl Mirror {
    fn of(bucket: &Bucket) -> Self {
        Self {
            erased: Mutex::default(),
            bucket: bucket.clone(),
        }
    }
}

impl Held for Mirror {
    fn account(&self, _: &Did) -> Result<Option<Known>, StoreError> {
        Ok(Some(Known::default()))
    }

    fn blob(&self, _: &Did, _: &Digest) -> Result<KnownBlob, StoreError> {
        Ok(KnownBlob::Unknown)
    }

    fn waiting_blobs(&self, _: &Did) -> Result<BTreeSet<Digest>, StoreError> {
        Ok(BTreeSet::new())
    }

    fn deleted_accounts(&self) -> Result<Vec<Did>, StoreError> {
        Ok(Vec::new())
    }

    fn remove_blob<'a>(&'a self, _: &'a Did, _: Digest, _: &'a str, _: Timestamp) -> Answered<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn remove_while<'a>(&'a self, did: &'a Did, name: &'a str, may: May<'a>) -> Answered<'a, bool> {
        Box::pin(async move {
            let may_go = self.account(did)?.is_some_and(|known| may(&known));
            if may_go {
                self.bucket.delete(name).await?;
            }
            Ok(may_go)
        })
    }

    fn drop_account<'a>(&'a self, _: &'a Did) -> Answered<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn snapshot_lost<'a>(&'a self, _: &'a Did, _: Rev) -> Answered<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

impl Letting for Mirror {
    fn each_record(&self, _: &Did, _: &mut Visit<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    fn kept_car_holds(&self, _: &Did, _: &[Cid]) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn erase(&self, erase: Erase) -> Answered<'_, ()> {
        self.erased.lock().expect("one thread").push(erase);
        Box::pin(async { Ok(()) })
    }
}

fn right() -> Right {
    Right {
        generation: 2,
        instance: "us".to_owned(),
    }
}

/// The sample, and the claim of the writer that it ends with.
async fn prepare(bucket: &Bucket) {
    fill(bucket, &sample()).await;
    for (instance, take_over) in [("one before", false), ("us", true)] {
        writer::claim(bucket, instance, None, take_over, NOW)
            .await
            .expect("free, or taken over");
    }
}

async fn prune(bucket: &Bucket, temp: &std::path::Path) -> Result<Pruned, PruneError> {
    let pruner = Pruner {
        bucket,
        held: &Mirror::of(bucket),
        right: right(),
        keep: Keep {
            last: 1,
            hours: 0,
            days: 0,
            weeks: 0,
            months: 0,
            window: Duration::ZERO,
            deleted: DAY,
            withdrawn: DAY,
        },
        now: NOW.plus(DAY * 9),
        pause: Duration::ZERO,
        temp_dir: temp.to_owned(),
        cancel: CancellationToken::new(),
    };
    let mut pruned = Pruned::default();
    let done = pruner.run(&mut Memory::default(), &mut pruned).await;
    done.map(|()| pruned)
}

async fn report(bucket: &Bucket) -> Report {
    let options = Options {
        sample: Sample::all(),
        rate: None,
    };
    super::verify::run(bucket, options).await
}

async fn names(bucket: &Bucket) -> Vec<ObjectName> {
    let page = bucket.list("", None).await.expect("lists");
    assert_eq!(page.next, None);
    let names = page.objects.iter().map(|object| object.name.parse());
    names.collect::<Result<_, _>>().expect("names")
}

pub async fn what_is_no_longer_needed_goes_and_the_rest_verifies(bucket: &Bucket) {
    let temp = tempfile::tempdir().expect("a folder");
    prepare(bucket).await;
    assert_eq!(report(bucket).await.exit_code(), 0);
    let first = prune(bucket, temp.path()).await.expect("prunes");
    // Of six segments the two newest stay; of each account the newest snapshot, and what was moved from the log.
    assert_eq!(first.removed["segments"].0, 4, "{first:?}");
    assert_eq!(
        (first.removed["snapshots"].0, first.removed["deltas"].0),
        (6, 6),
        "{first:?}"
    );
    assert_eq!((first.moved, first.held_up.clone()), (2, None));
    let report_now = report(bucket).await;
    assert_eq!(report_now.exit_code(), 0, "{}", report_now.text());
    let left = names(bucket).await;
    let count = |is: fn(&ObjectName) -> bool| left.iter().filter(|name| is(name)).count();
    assert_eq!(count(|name| matches!(name, ObjectName::Boundary(_))), 1);
    assert_eq!(count(|name| matches!(name, ObjectName::Snapshot(_))), 2);
    let second = prune(bucket, temp.path()).await.expect("prunes");
    assert_eq!(second.objects(), 0, "{second:?}");
    assert_eq!(names(bucket).await, left);
}

pub async fn what_is_erased_is_gone_everywhere(bucket: &Bucket) {
    let temp = tempfile::tempdir().expect("a folder");
    prepare(bucket).await;
    let mirror = Mirror::of(bucket);
    let eraser = Eraser {
        bucket,
        mirror: &mirror,
        right: right(),
        now: NOW,
        by: "an admin".to_owned(),
        pause: Duration::ZERO,
        temp_dir: temp.path().to_owned(),
        cancel: CancellationToken::new(),
    };
    let alice: Did = "did:web:alice.example.com".parse().expect("a DID");
    // With a picture, in a delta and in every snapshot since.
    let what = What::Record("app.bsky.feed.post/k001".parse().expect("a path"));
    let scope = eraser.scope(&alice, &what).await.expect("reads");
    assert_eq!(
        (scope.records.len(), scope.blobs.len(), scope.found),
        (1, 1, true)
    );
    let done = eraser.erase(&alice, &what, &scope).await.expect("erases");
    assert_eq!((done.rewritten, done.removed), (4, 5));
    let names_now: Vec<String> = names(bucket).await.iter().map(ToString::to_string).collect();
    assert_eq!(
        names_now
            .iter()
            .filter(|name| name.contains(".erased-1."))
            .count(),
        4
    );
    let again = eraser.finish(&alice).await.expect("looks again");
    assert_eq!(again, Erased::default(), "nothing of it is left");
    let report = report(bucket).await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
    assert!(report.counts.erased_records > 0);
    assert!(mirror.erased.lock().expect("one thread")[0].records.len() == 1);

    let scope = eraser.scope(&alice, &What::Account).await.expect("reads");
    eraser
        .erase(&alice, &What::Account, &scope)
        .await
        .expect("erases");
    let of_alice = |name: &String| name.contains("alice") && !name.starts_with("v1/erased/");
    let left: Vec<String> = names(bucket)
        .await
        .iter()
        .map(ToString::to_string)
        .filter(of_alice)
        .collect();
    assert_eq!(left, Vec::<String>::new());
    let report = super::care::report(bucket).await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
}

/// A bucket that keeps old versions says so, and one that does not says nothing.
#[tokio::test]
async fn a_bucket_that_keeps_old_versions_is_told_of() {
    use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
    let Some(server) = server::running() else { return };
    assert_eq!(old_versions(&server.open("plain").await).await, None);
    let (client, name) = (super::own::client(&server), "keeps-versions");
    client
        .create_bucket()
        .bucket(name)
        .send()
        .await
        .expect("a bucket");
    let on = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .build();
    let set = client
        .put_bucket_versioning()
        .bucket(name)
        .versioning_configuration(on);
    set.send().await.expect("sets");
    let bucket = super::own::open(&format!("s3://{name}/x"), &server, None).await;
    // This server does not say it in a form that the client reads; what was removed tells.
    prepare(&bucket).await;
    bucket.delete("v1/archive.json").await.expect("deletes");
    let told = old_versions(&bucket).await.expect("it keeps them");
    assert!(
        told.contains("keeps old versions") && told.contains(name),
        "{told}"
    );

    let (client, name) = (super::own::client(&server), "locks-objects");
    let made = client
        .create_bucket()
        .bucket(name)
        .object_lock_enabled_for_bucket(true);
    made.send().await.expect("a bucket");
    let retention = aws_sdk_s3::types::DefaultRetention::builder()
        .mode(aws_sdk_s3::types::ObjectLockRetentionMode::Governance)
        .days(1)
        .build();
    let rule = aws_sdk_s3::types::ObjectLockRule::builder()
        .default_retention(retention)
        .build();
    let lock = aws_sdk_s3::types::ObjectLockConfiguration::builder()
        .object_lock_enabled(aws_sdk_s3::types::ObjectLockEnabled::Enabled)
        .rule(rule)
        .build();
    let set = client
        .put_object_lock_configuration()
        .bucket(name)
        .object_lock_configuration(lock);
    set.send().await.expect("sets");
    let bucket = super::own::open(&format!("s3://{name}/x"), &server, None).await;
    let told = old_versions(&bucket).await.expect("it locks them");
    assert!(told.contains("locked") && told.contains(name), "{told}");
}
