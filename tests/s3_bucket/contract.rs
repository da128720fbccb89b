//! What every kind of store must do. Each check gets an empty bucket.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use firekeep::archive::bucket::{Body, Bucket, BucketErrorKind, LIST_NAMES_MAX, PutOptions, PutOutcome};
use firekeep::archive::content_type::ContentType;
use firekeep::archive::identity::{self, ArchiveId};
use firekeep::archive::names;
use firekeep::archive::snapshot_file::{SnapshotDecoder, SnapshotEncoder};
use firekeep::types::cid::sha256;
use futures_util::{StreamExt as _, stream};

const NAME: &str = "v1/blocks/did:plc:ewvi7nxzyoun6zhxrhs64oiz/some-object";

fn options(kind: &str) -> PutOptions {
    PutOptions::create(kind.parse().expect("a content type"))
}

async fn create(bucket: &Bucket, name: &str, bytes: impl Into<Bytes>) -> PutOutcome {
    let body = Body::Bytes(bytes.into());
    bucket
        .put(name, body, &options("text/plain"))
        .await
        .expect("writes")
}

async fn read(bucket: &Bucket, name: &str) -> Option<Bytes> {
    let object = bucket.get(name).await.expect("readable")?;
    Some(object.bytes(64 << 20).await.expect("whole"))
}

async fn list(bucket: &Bucket, prefix: &str) -> Vec<String> {
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = bucket.list(prefix, after.as_deref()).await.expect("readable");
        assert!(page.objects.len() <= LIST_NAMES_MAX);
        names.extend(page.objects.into_iter().map(|object| object.name));
        let Some(next) = page.next else { return names };
        assert_eq!(names.last(), Some(&next));
        after = Some(next);
    }
}

/// Bytes that do not repeat.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(length).collect()
}

fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("writes");
    file
}

pub async fn what_is_put_can_be_read(bucket: &Bucket) {
    assert_eq!(bucket.head(NAME).await, Ok(None));
    assert!(bucket.get(NAME).await.expect("readable").is_none());
    let put = bucket
        .put(NAME, Body::Bytes("hello".into()), &options("text/x-odd; a=b"))
        .await;
    assert_eq!(put, Ok(PutOutcome::Created));
    let head = bucket.head(NAME).await.expect("readable").expect("there");
    assert_eq!((head.size, head.content_type.as_str()), (5, "text/x-odd; a=b"));
    if let Some(stored) = head.sha256 {
        assert_eq!(stored, sha256(b"hello"));
    }
    let object = bucket.get(NAME).await.expect("readable").expect("there");
    assert_eq!(
        (object.size, object.content_type.as_str()),
        (5, "text/x-odd; a=b")
    );
    assert_eq!(object.bytes(5).await.expect("whole"), "hello");
    let object = bucket.get(NAME).await.expect("readable").expect("there");
    let error = object.bytes(4).await.expect_err("longer than allowed");
    assert_eq!(error.kind, BucketErrorKind::TooLarge);
}

pub async fn created_objects_are_never_replaced(bucket: &Bucket) {
    assert_eq!(create(bucket, NAME, "first").await, PutOutcome::Created);
    for second in ["second", "first", ""] {
        let put = bucket
            .put(NAME, Body::Bytes(second.into()), &options("image/x-odd"))
            .await;
        assert_eq!(put, Ok(PutOutcome::AlreadyThere));
    }
    let file = file_of(&noise(20 << 20, 1));
    let put = bucket
        .put(NAME, Body::File(file.path().into()), &options("image/x-odd"))
        .await;
    assert_eq!(put, Ok(PutOutcome::AlreadyThere));
    assert_eq!(read(bucket, NAME).await.expect("there"), "first");
    let head = bucket.head(NAME).await.expect("readable").expect("there");
    assert_eq!(head.content_type.as_str(), "text/plain");
    assert!(bucket.create_only_is_atomic());
}

pub async fn others_are_replaced_whole(bucket: &Bucket) {
    let mut options = options("text/plain");
    options.create_only = false;
    for (text, kind) in [("a longer first text", "text/plain"), ("second", "image/x-odd")] {
        options.content_type = kind.parse().expect("a content type");
        let put = bucket.put(NAME, Body::Bytes(text.into()), &options).await;
        assert_eq!(put, Ok(PutOutcome::Created));
        assert_eq!(read(bucket, NAME).await.expect("there"), text);
        let head = bucket.head(NAME).await.expect("readable").expect("there");
        assert_eq!(head.content_type.as_str(), kind);
    }
}

pub async fn odd_names_are_kept(bucket: &Bucket) {
    let mut all = vec![
        "v1/erased/did:web:localhost%3A2583.json".to_owned(),
        "v1/erased/did:web:%2e%2e%2Fx.json".to_owned(),
        "v1/erased/did:web:...json".to_owned(),
        "v1/odd/+=&?#[]{}()!*'\",;$@^`|<>~-_".to_owned(),
        "v1/odd/a..b".to_owned(),
        "v1/odd/UPPER".to_owned(),
        "v1/odd/upper".to_owned(),
        "v1/repos/did:m:a/3k2yihcrp6f2c..3k2yihcrp6f2d-x.delta.car.zst".to_owned(),
        "v1/hosts/localhost:2583/2026-01-02T03:04:05.678Z.json".to_owned(),
        format!("v1/odd/{}", "n".repeat(255)),
    ];
    for name in &all {
        assert_eq!(
            create(bucket, name, name.clone()).await,
            PutOutcome::Created,
            "{name}"
        );
    }
    for name in &all {
        assert_eq!(read(bucket, name).await.expect("there"), *name);
        assert_eq!(list(bucket, name).await, [name.as_str()]);
    }
    all.sort();
    assert_eq!(list(bucket, "").await, all);
    for name in &all {
        bucket.delete(name).await.expect("deletes");
    }
    assert_eq!(list(bucket, "").await, Vec::<String>::new());
}

pub async fn empty_objects_are_objects(bucket: &Bucket) {
    assert_eq!(create(bucket, NAME, "").await, PutOutcome::Created);
    assert_eq!(create(bucket, NAME, "x").await, PutOutcome::AlreadyThere);
    assert_eq!(
        bucket.head(NAME).await.expect("readable").map(|head| head.size),
        Some(0)
    );
    assert_eq!(read(bucket, NAME).await.expect("there"), "");
    let page = bucket.list("", None).await.expect("readable");
    assert_eq!(
        page.objects.iter().map(|object| object.size).collect::<Vec<_>>(),
        [0]
    );
}

pub async fn large_files_go_whole(bucket: &Bucket) {
    let bytes = noise(20 << 20, 2);
    let file = file_of(&bytes);
    let mut options = options("application/zstd");
    options.sha256 = Some(sha256(&bytes));
    let put = bucket.put(NAME, Body::File(file.path().into()), &options).await;
    assert_eq!(put, Ok(PutOutcome::Created));
    let put = bucket.put(NAME, Body::File(file.path().into()), &options).await;
    assert_eq!(put, Ok(PutOutcome::AlreadyThere));
    let head = bucket.head(NAME).await.expect("readable").expect("there");
    assert_eq!(
        (head.size, head.content_type.as_str()),
        (20 << 20, "application/zstd")
    );
    assert_eq!(sha256(&read(bucket, NAME).await.expect("there")), sha256(&bytes));
    assert_eq!(
        std::fs::read(file.path()).expect("still there").len(),
        bytes.len()
    );
}

pub async fn files_of_any_length_go_whole(bucket: &Bucket) {
    // Around the limits of a part and of a whole object.
    for length in [0, 1, 8 << 20, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, 24 << 20] {
        let bytes = noise(length, length as u64);
        let file = file_of(&bytes);
        let name = format!("v1/lengths/{length}");
        let put = bucket
            .put(&name, Body::File(file.path().into()), &options("text/plain"))
            .await;
        assert_eq!(put, Ok(PutOutcome::Created), "{length}");
        assert_eq!(
            sha256(&read(bucket, &name).await.expect("there")),
            sha256(&bytes),
            "{length}"
        );
    }
    let error = bucket
        .put(
            "v1/none",
            Body::File("/nowhere/at/all".into()),
            &options("text/plain"),
        )
        .await
        .expect_err("no such file");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

pub async fn lists_page_in_byte_order(bucket: &Bucket) {
    let mut all: Vec<String> = (0..1005).map(|n| format!("v1/many/{n}")).collect();
    // '-' and '.' sort before '/', letters after it: the order of names is not that of folders.
    all.extend(
        [
            "v1/many-x",
            "v1/many.x",
            "v1/many0",
            "v1/man",
            "v1/many/5/below",
            "v1/other/x",
        ]
        .map(String::from),
    );
    all.retain(|name| name != "v1/many/5");
    let (first, bucket_ref) = (all.clone(), bucket);
    let puts = stream::iter(first).map(|name| async move { create(bucket_ref, &name, name.clone()).await });
    let outcomes: Vec<_> = puts.buffer_unordered(16).collect().await;
    assert!(outcomes.iter().all(|outcome| *outcome == PutOutcome::Created));
    all.sort();
    assert_eq!(list(bucket, "").await, all);
    let below = |prefix: &str| -> Vec<String> {
        all.iter()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect()
    };
    for prefix in [
        "v1/many/",
        "v1/many",
        "v1/many/99",
        "v1/many/5/",
        "v1/x",
        "v1/many/1004",
        "x",
    ] {
        assert_eq!(list(bucket, prefix).await, below(prefix), "{prefix}");
    }
    let page = bucket.list("v1/many/", None).await.expect("readable");
    assert_eq!(page.objects.len(), LIST_NAMES_MAX);
    let first = &page.objects[0];
    assert_eq!(first.size, first.name.len() as u64);
    // A place to go on from need not exist.
    let page = bucket.list("v1/", Some("v1/many/990x")).await.expect("readable");
    let names: Vec<_> = page.objects.into_iter().map(|object| object.name).collect();
    assert_eq!(
        names,
        all[all.partition_point(|name| name.as_str() <= "v1/many/990x")..]
    );
    assert_eq!(page.next, None);
}

pub async fn deletes_are_final_and_may_be_repeated(bucket: &Bucket) {
    bucket.delete(NAME).await.expect("nothing to do");
    create(bucket, NAME, "x").await;
    for _ in 0..2 {
        bucket.delete(NAME).await.expect("deletes");
        assert_eq!(bucket.head(NAME).await, Ok(None));
    }
    assert_eq!(list(bucket, "").await, Vec::<String>::new());
    assert_eq!(create(bucket, NAME, "y").await, PutOutcome::Created);
    assert_eq!(read(bucket, NAME).await.expect("there"), "y");
}

async fn race(
    bucket: &Bucket,
    name: &str,
    writers: usize,
    body: impl Fn(usize) -> Body,
) -> (Vec<usize>, Bytes) {
    let options = options("text/plain");
    let tries = (0..writers).map(|n| {
        let (bucket, options, body) = (bucket.clone(), options.clone(), body(n));
        async move { (n, bucket.put(name, body, &options).await.expect("writes")) }
    });
    let outcomes: Vec<_> = stream::iter(tries).buffer_unordered(writers).collect().await;
    let created = outcomes
        .into_iter()
        .filter(|(_, outcome)| *outcome == PutOutcome::Created);
    let winners = created.map(|(n, _)| n).collect();
    (winners, read(bucket, name).await.expect("there"))
}

pub async fn of_racing_creators_one_wins(bucket: &Bucket) {
    for round in 0..20 {
        let name = format!("v1/race/{round}/object");
        let (winners, stored) = race(bucket, &name, 16, |n| Body::Bytes(format!("writer {n}").into())).await;
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(stored, format!("writer {}", winners[0]));
    }
}

pub async fn of_racing_large_creators_one_wins(bucket: &Bucket) {
    let files: Vec<_> = (0..6).map(|n| file_of(&noise((16 << 20) + 1, n))).collect();
    let (winners, stored) = race(bucket, NAME, files.len(), |n| Body::File(files[n].path().into())).await;
    let is_stored = |n: &usize| std::fs::read(files[*n].path()).expect("still there") == stored;
    assert!(winners.iter().any(is_stored), "a winner's bytes are stored");
    // moto looks whether there is an object, and then puts the parts together, without a lock around both. So now
    // and then a second writer is told that it was the first.
    if matches!(bucket, Bucket::Folder(_)) {
        assert_eq!(winners.len(), 1, "{winners:?}");
    }
}

pub async fn other_bytes_than_announced_are_refused(bucket: &Bucket) {
    let mut options = options("text/plain");
    options.sha256 = Some(sha256(b"announced"));
    let (small, large) = (file_of(b"other"), file_of(&noise(17 << 20, 3)));
    for body in [
        Body::Bytes("other".into()),
        Body::File(small.path().into()),
        Body::File(large.path().into()),
    ] {
        let error = bucket.put(NAME, body, &options).await.expect_err("other bytes");
        assert_eq!(error.kind, BucketErrorKind::Corrupt, "{error}");
        assert_eq!(bucket.head(NAME).await, Ok(None));
    }
    let put = bucket.put(NAME, Body::Bytes("announced".into()), &options).await;
    assert_eq!(put, Ok(PutOutcome::Created));
}

pub async fn names_that_could_be_tricks_are_refused(bucket: &Bucket) {
    for name in [
        "",
        "/etc/passwd",
        "v1/../x",
        "v1//x",
        "v1/.tmp/x",
        "v1/types/x",
        "v2/x",
        "v1/a b",
        "v1/\u{e4}",
    ] {
        let kinds = [
            bucket
                .put(name, Body::Bytes("x".into()), &options("text/plain"))
                .await
                .map(drop),
            bucket.get(name).await.map(drop),
            bucket.head(name).await.map(drop),
            bucket.delete(name).await,
        ];
        for outcome in kinds {
            let error = outcome.expect_err(name);
            assert_eq!(error.kind, BucketErrorKind::BadName, "{error}");
        }
    }
}

pub async fn an_empty_bucket_becomes_an_archive(bucket: &Bucket) {
    let now = "2026-01-02T03:04:05.678Z".parse().expect("valid");
    let ids = (0..4).map(|n| identity::open_or_create(bucket, ArchiveId::from_bytes([n; 16]), now));
    let ids: Vec<_> = stream::iter(ids).buffer_unordered(4).collect().await;
    let first = *ids[0].as_ref().expect("opens");
    assert!(ids.iter().all(|id| *id.as_ref().expect("opens") == first));
    let info = identity::read(bucket).await.expect("readable").expect("there");
    assert_eq!((info.id, info.created), (first, now));

    bucket.delete(names::ARCHIVE).await.expect("deletes");
    create(bucket, "v1/service/x.json", "{}").await;
    let error = identity::open_or_create(bucket, first, now)
        .await
        .expect_err("not empty");
    assert!(error.to_string().contains("v1/service/x.json"), "{error}");
}

pub async fn a_probe_finds_it_safe_and_leaves_nothing(bucket: &Bucket) {
    use firekeep::archive::probe::verdict::{Class, CreateOnly, Lock, Versions};
    let probed = firekeep::archive::probe::probe(bucket, &firekeep::clock::Clock::system()).await;
    let probed = probed.expect("usable");
    assert_eq!(probed.lies, [""; 0]);
    assert_eq!(
        (probed.class(), probed.exit_code()),
        (Class::SeveralWriters, 0),
        "{}",
        probed.text()
    );
    assert_eq!(
        (probed.create_only, probed.winners_max),
        (CreateOnly::Honoured, 1)
    );
    assert_eq!(probed.create_only_in_parts, CreateOnly::Honoured);
    assert_eq!(
        (probed.versions, probed.lock, probed.left_behind),
        (Versions::Off, Lock::Off, 0)
    );
    assert_eq!(list(bucket, "").await, Vec::<String>::new());
}

/// A snapshot's way: packed into a file, put, read as it streams, unpacked within limits.
pub async fn snapshots_stream_through(bucket: &Bucket) {
    let content = noise(18 << 20, 4);
    let length = content.len() as u64;
    let mut encoder =
        SnapshotEncoder::new(tempfile::NamedTempFile::new().expect("a file"), Some(length)).expect("memory");
    encoder.write_all(&content).expect("writes");
    let (file, written) = encoder.finish().expect("as announced");
    let mut options = PutOptions::create(ContentType::zstd());
    options.sha256 = Some(written.sha256);
    let name = "v1/repos/did:m:a/snapshot.car.zst";
    let put = bucket.put(name, Body::File(file.path().into()), &options).await;
    assert_eq!(put, Ok(PutOutcome::Created));

    let object = bucket.get(name).await.expect("readable").expect("there");
    assert_eq!(object.size, written.file_bytes);
    let reader = object.into_reader(tokio::runtime::Handle::current());
    let unpack = move || {
        let mut decoder = SnapshotDecoder::new(reader, length).expect("memory");
        let mut content = Vec::new();
        decoder.read_to_end(&mut content).expect("sound");
        let (_, stats) = decoder.finish().expect("read to the end");
        (content, stats)
    };
    let (unpacked, stats) = tokio::task::spawn_blocking(unpack).await.expect("no panic");
    assert_eq!(stats, written);
    assert!(unpacked == content);
}
