//! Tests of blobs over real sockets: who may have them, what goes along, and that wrong bytes never count.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream;

use super::*;
use crate::archive::bucket::{Body as ObjectBytes, PutOptions, PutOutcome};
use crate::archive::content_type::ContentType;
use crate::archive::folder::FolderBucket;
use crate::mirror::memory::MemoryStore;
use crate::mirror::reader::BLOB_CHUNK_BYTES;
use crate::mirror::rows::{AccountStatus, BlobFailure};
use crate::mirror::{Batch, Family, keyspace};
use crate::serve::ServeLimits;
use crate::serve::fixture::{Account, Answer, Server, record};

fn uri(account: &Account, cid: &Cid) -> String {
    format!("/xrpc/com.atproto.sync.getBlob?did={}&cid={cid}", account.did)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

fn assert_guarded(answer: &Answer) {
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(
        answer.header("content-security-policy"),
        "default-src 'none'; sandbox"
    );
    assert!(answer.header("content-disposition").starts_with("attachment"));
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}

/// An archive with these objects, each in chunks of a few bytes.
#[derive(Default)]
struct Objects {
    /// What is announced and what comes, by account and CID.
    blobs: BTreeMap<(String, Cid), (u64, Vec<u8>)>,
    refuses: bool,
    breaks_off: bool,
}

impl Objects {
    fn with(did: &Did, cid: Cid, size: u64, bytes: &[u8]) -> Self {
        let blobs = BTreeMap::from([((did.to_string(), cid), (size, bytes.to_vec()))]);
        Self {
            blobs,
            ..Self::default()
        }
    }
}

impl BlobArchive for Objects {
    fn open<'a>(&'a self, did: &'a Did, cid: &'a Cid) -> OpenBlob<'a> {
        if self.refuses {
            return Box::pin(std::future::ready(Err(io::Error::other(
                "no credentials: secret-canary",
            ))));
        }
        let found = self.blobs.get(&(did.to_string(), *cid)).map(|(size, bytes)| {
            let chunks = bytes.chunks(10).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
            let broken = self
                .breaks_off
                .then(|| Err(io::ErrorKind::ConnectionReset.into()));
            let chunks = chunks.chain(broken).chain([Ok(Bytes::new())]).collect::<Vec<_>>();
            ArchivedBlob {
                size: *size,
                chunks: stream::iter(chunks).boxed(),
            }
        });
        Box::pin(std::future::ready(Ok(found)))
    }
}

#[tokio::test]
async fn a_held_blob_comes_as_it_was_with_the_guards_of_the_pds() {
    let store = MemoryStore::new();
    for (number, length) in [0, 1, 70_000, BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES * 2 + 12345]
        .into_iter()
        .enumerate()
    {
        let blob = bytes(length);
        let account =
            Account::new("alice", 1 + number as u64).blob("a", 1, &blob, "image/png", BlobState::Held);
        account.save(&store);
        let server = Server::start(&store).await;
        let cid = Cid::of_blob(&blob);
        let answer = server.get(&uri(&account, &cid)).await;
        assert_eq!(answer.status, 200, "{length}");
        assert!(answer.is_whole() && answer.body == blob, "{length}");
        assert_guarded(&answer);
        assert_eq!(answer.header("content-type"), "image/png");
        assert_eq!(
            answer.header("content-disposition"),
            format!("attachment; filename=\"{cid}\"")
        );
        assert_eq!(answer.header("etag"), format!("\"{cid}\""));
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        assert_eq!(answer.header("vary"), "Authorization, Accept-Encoding");
        assert_eq!(answer.header("accept-ranges"), "bytes");
        let head = server.ask("HEAD", &uri(&account, &cid), "").await;
        assert_guarded(&head);
        assert_eq!((head.status, head.body.len()), (200, 0));
        for name in ["content-length", "content-type", "etag", "content-disposition"] {
            assert_eq!(head.header(name), answer.header(name), "{name}");
        }
        let range = server
            .ask("GET", &uri(&account, &cid), "Range: bytes=0-0,1-1\r\n")
            .await;
        assert_eq!((range.status, range.body.len()), (200, length));
        let known = format!("If-None-Match: \"{cid}\"\r\n");
        let unchanged = server.ask("GET", &uri(&account, &cid), &known).await;
        assert_eq!(
            (unchanged.status, unchanged.header("etag")),
            (304, answer.header("etag"))
        );
        assert_guarded(&unchanged);
    }
}

#[tokio::test]
async fn a_blob_is_served_only_while_a_record_of_that_account_refers_to_it() {
    let store = MemoryStore::new();
    let blob = bytes(100);
    let cid = Cid::of_blob(&blob);
    let with = |name, number, state| Account::new(name, number).blob("a", 1, &blob, "image/png", state);
    let owner = with("owner", 1, BlobState::Held);
    let stranger = Account::new("stranger", 2).record("a", 1, &record("x"));
    let deleted = with("deleted", 3, BlobState::Held).without_record("a");
    let missing = BlobState::Missing {
        reason: BlobFailure::NotFound,
        tries: 3,
    };
    let rows = [
        (&owner, cid, (200, "")),
        (&stranger, cid, (400, "BlobNotFound")),
        (&deleted, cid, (400, "BlobNotFound")),
        (&owner, Cid::dag_cbor(*cid.digest()), (400, "BlobNotFound")),
        (&owner, Cid::of_blob(b"other"), (400, "BlobNotFound")),
        (&with("wanted", 4, BlobState::Wanted), cid, (400, "BlobNotFound")),
        (&with("missing", 5, missing), cid, (400, "BlobNotFound")),
        (
            &with("withdrawn", 6, BlobState::Withdrawn),
            cid,
            (400, "BlobNotFound"),
        ),
        (&Account::new("nobody", 7), cid, (400, "BlobNotFound")),
        (
            &with("withheld", 10, BlobState::Held).withheld(),
            cid,
            (400, "BlobNotFound"),
        ),
        (
            &with("archived", 11, BlobState::Archived).withheld(),
            cid,
            (400, "BlobNotFound"),
        ),
        (
            &Account::new("unloaded", 8).unloaded(),
            cid,
            (400, "RepoNotFound"),
        ),
        (
            &with("gone", 9, BlobState::Held).status(AccountStatus::Takendown),
            cid,
            (400, "RepoTakendown"),
        ),
    ];
    for (account, ..) in &rows {
        account.save(&store);
    }
    let server = Server::start(&store).await;
    for (account, cid, (status, name)) in &rows {
        for method in ["GET", "HEAD"] {
            let answer = server.ask(method, &uri(account, cid), "").await;
            assert_guarded(&answer);
            assert_eq!(answer.status, *status, "{} {cid}", account.did);
            if method == "GET" && *status != 200 {
                assert_eq!(answer.error(), (*status, (*name).to_owned()), "{}", account.did);
            }
        }
    }
    let answer = server.get(&uri(&stranger, &cid)).await;
    assert_eq!(
        answer.json(),
        serde_json::json!({ "error": "BlobNotFound", "message": "Blob not found" })
    );
    for bad in ["", "?did=x", "?did=did:plc:a&cid=..%2F..%2Fetc", "?cid=%"] {
        let answer = server.get(&format!("/xrpc/com.atproto.sync.getBlob{bad}")).await;
        assert_guarded(&answer);
        assert_eq!(answer.error(), (400, "InvalidRequest".to_owned()), "{bad}");
    }
}

#[test]
fn a_media_type_that_is_none_becomes_mere_bytes() {
    for text in [
        "image/png",
        "text/vtt",
        "text/plain;charset=utf-8",
        "text/plain; charset=utf-8",
        "a/b+c",
    ] {
        assert_eq!(media_type(Some(text)), text);
    }
    let long = format!("a/{}", "b".repeat(MEDIA_TYPE_BYTES_MAX));
    for text in [
        "",
        "image",
        "/",
        "image/",
        "/png",
        "image/png/x",
        "image/png\r\nX: y",
        "image/png\n",
        "image/png; x",
        "image/png;",
        "image/png; a=\"b\"",
        "imäge/png",
        "image/p ng",
        "image/png\0",
        &long,
    ] {
        assert_eq!(media_type(Some(text)), "application/octet-stream", "{text:?}");
    }
    assert_eq!(media_type(None), "application/octet-stream");
}

fn put_chunk(store: &MemoryStore, account: &Account, cid: &Cid, chunk: u32, bytes: Option<&[u8]>) {
    let key = keyspace::encode_blob_data(account.number, cid.digest(), chunk);
    let mut batch = Batch::new();
    match bytes {
        Some(bytes) => batch.put(Family::BlobData, key, bytes),
        None => batch.delete(Family::BlobData, key),
    }
    crate::mirror::Store::write(store, batch).expect("written");
}

#[tokio::test]
async fn held_bytes_that_are_others_are_an_error_before_the_first_byte() {
    let blob = bytes(BLOB_CHUNK_BYTES * 2 + 1);
    let cid = Cid::of_blob(&blob);
    let rows: [(&str, u32, Option<&[u8]>); 4] = [
        ("other bytes at the end", 2, Some(b"x")),
        ("a chunk too many", 3, Some(b"x")),
        ("the last chunk gone", 2, None),
        ("a chunk between gone", 1, None),
    ];
    for (what, chunk, bytes) in rows {
        let store = MemoryStore::new();
        let account = Account::new("alice", 1).blob("a", 1, &blob, "image/png", BlobState::Held);
        account.save(&store);
        put_chunk(&store, &account, &cid, chunk, bytes);
        let server = Server::start(&store).await;
        let answer = server.get(&uri(&account, &cid)).await;
        assert_guarded(&answer);
        assert_eq!(answer.error(), (500, "InternalServerError".to_owned()), "{what}");
        assert_eq!(server.metrics.blob_serve_failures.get(), 1, "{what}");
    }
}

#[tokio::test]
async fn a_held_blob_without_any_bytes_is_not_found_and_counted() {
    let (store, cid) = (MemoryStore::new(), Cid::of_blob(b"lost"));
    let account = Account::new("alice", 1).blob_without_bytes("a", 1, cid, "image/png", BlobState::Held);
    account.save(&store);
    let server = Server::start(&store).await;
    assert_eq!(
        server.get(&uri(&account, &cid)).await.error(),
        (400, "BlobNotFound".to_owned())
    );
    assert_eq!(server.metrics.blob_serve_failures.get(), 1);
}

async fn from_archive_of(objects: impl FnOnce(&Did, Cid, &[u8]) -> Objects) -> (Server, Answer, Vec<u8>) {
    let (store, blob) = (MemoryStore::new(), bytes(1005));
    let account = Account::new("alice", 1).blob("a", 1, &blob, "video/mp4", BlobState::Archived);
    account.save(&store);
    let cid = Cid::of_blob(&blob);
    let objects = objects(&account.did, cid, &blob);
    let server = Server::start_with(&store, objects, ServeLimits::default()).await;
    let answer = server.get(&uri(&account, &cid)).await;
    assert_guarded(&answer);
    (server, answer, blob)
}

#[tokio::test]
async fn an_archived_blob_comes_from_the_archive() {
    let (_, answer, blob) = from_archive_of(|did, cid, blob| Objects::with(did, cid, 1005, blob)).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "video/mp4"));
    assert!(answer.is_whole() && answer.body == blob);
}

#[tokio::test]
async fn wrong_bytes_of_the_archive_never_become_a_whole_answer() {
    type Make = fn(&Did, Cid, &[u8]) -> Objects;
    let rows: [(&str, Make); 5] = [
        ("a flipped bit", |did, cid, blob| {
            let mut other = blob.to_vec();
            other[3] ^= 1;
            Objects::with(did, cid, 1005, &other)
        }),
        ("cut short", |did, cid, blob| {
            Objects::with(did, cid, 1005, &blob[..1000])
        }),
        ("announced too short", |did, cid, blob| {
            Objects::with(did, cid, 1000, blob)
        }),
        ("announced too long", |did, cid, blob| {
            Objects::with(did, cid, 1010, blob)
        }),
        ("a connection that breaks", |did, cid, blob| Objects {
            breaks_off: true,
            ..Objects::with(did, cid, 1005, blob)
        }),
    ];
    for (what, make) in rows {
        let (_, answer, _) = from_archive_of(make).await;
        assert!(
            answer.status == 200 && !answer.is_whole(),
            "{what}: {}",
            answer.body.len()
        );
    }
}

#[tokio::test]
async fn an_archive_that_fails_is_not_a_blob_that_is_missing() {
    let (server, answer, _) = from_archive_of(|_, _, _| Objects::default()).await;
    assert_eq!(answer.error(), (400, "BlobNotFound".to_owned()));
    assert_eq!(server.metrics.blob_serve_failures.get(), 1);
    let refusing = |_: &Did, _, _: &[u8]| Objects {
        refuses: true,
        ..Objects::default()
    };
    let (_, answer, _) = from_archive_of(refusing).await;
    assert_eq!(answer.error(), (503, "ServiceUnavailable".to_owned()));
    assert!(!String::from_utf8_lossy(&answer.body).contains("canary"));
}

#[tokio::test]
async fn an_archived_blob_that_is_still_here_needs_no_archive() {
    let (store, blob) = (MemoryStore::new(), bytes(100));
    let cid = Cid::of_blob(&blob);
    let account = Account::new("alice", 1).blob("a", 1, &blob, "image/png", BlobState::Archived);
    account.save(&store);
    put_chunk(&store, &account, &cid, 0, Some(&blob));
    let answer = Server::start(&store).await.get(&uri(&account, &cid)).await;
    assert!(answer.is_whole() && answer.body == blob);
}

#[tokio::test]
async fn blobs_at_once_are_limited_and_a_caller_that_leaves_makes_room() {
    let (store, blob) = (MemoryStore::new(), bytes(8 << 20));
    let cid = Cid::of_blob(&blob);
    let account = Account::new("alice", 1).blob("a", 1, &blob, "image/png", BlobState::Held);
    account.save(&store);
    let queue_timeout = Duration::from_millis(100);
    let limits = ServeLimits {
        blob_streams_max: 1,
        queue_timeout,
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, crate::serve::NoBlobArchive, limits).await;
    let mut first = server.open_narrow(&uri(&account, &cid)).await;
    tokio::io::AsyncReadExt::read_exact(&mut first, &mut [0; 1])
        .await
        .expect("begun");
    let second = server.get(&uri(&account, &cid)).await;
    assert_guarded(&second);
    assert_eq!(second.error(), (503, "ServiceUnavailable".to_owned()));
    drop(first);
    let mut third = server.get(&uri(&account, &cid)).await;
    while third.status == 503 {
        third = server.get(&uri(&account, &cid)).await;
    }
    assert!(third.is_whole() && third.body == blob);
}

#[tokio::test]
async fn a_folder_archive_gives_its_blobs() {
    let folder = tempfile::tempdir().expect("a folder");
    let bucket = Bucket::Folder(FolderBucket::open(folder.path()).await.expect("opened"));
    let (store, blob) = (MemoryStore::new(), bytes(300_000));
    let (here, lost) = (Cid::of_blob(&blob), Cid::of_blob(b"lost"));
    let account = Account::new("alice", 1)
        .blob("a", 1, &blob, "image/png", BlobState::Archived)
        .blob_without_bytes("b", 1, lost, "image/png", BlobState::Archived);
    account.save(&store);
    let did = DidFolder::try_from(&account.did).expect("short");
    let name = BlobName {
        did,
        blob: *here.digest(),
    }
    .to_string();
    let options = PutOptions::create(ContentType::or_binary(Some("image/png")));
    let stored = bucket
        .put(&name, ObjectBytes::Bytes(blob.clone().into()), &options)
        .await
        .expect("stored");
    assert_eq!(stored, PutOutcome::Created);
    let server = Server::start_with(&store, bucket, ServeLimits::default()).await;
    let answer = server.get(&uri(&account, &here)).await;
    assert!(answer.is_whole() && answer.body == blob);
    assert_eq!(
        server.get(&uri(&account, &lost)).await.error(),
        (400, "BlobNotFound".to_owned())
    );
    std::fs::write(folder.path().join(&name), &blob[..299_999]).expect("damaged");
    let answer = server.get(&uri(&account, &here)).await;
    assert!(answer.status == 200 && !answer.is_whole());
}

#[tokio::test]
async fn one_range_is_given_from_the_mirror_and_from_the_archive_and_only_when_all_is_proven() {
    let content = bytes(2 * BLOB_CHUNK_BYTES + 77);
    let small = bytes(100);
    let (held, archived) = (Cid::of_blob(&content), Cid::of_blob(&small));
    let account = Account::new("ranges", 1)
        .blob("held", 1, &content, "video/mp4", BlobState::Held)
        .blob("archived", 1, &small, "video/mp4", BlobState::Archived);
    let store = MemoryStore::new();
    account.save(&store);
    let objects = Objects::with(&account.did, archived, 100, &small);
    let server = Server::start_with(&store, objects, ServeLimits::default()).await;
    for (cid, whole) in [(held, &content), (archived, &small)] {
        let size = whole.len();
        for (range, from, to) in [
            ("0-0".to_owned(), 0, 1),
            ("5-24".to_owned(), 5, 25),
            (format!("{}-", size - 3), size - 3, size),
            ("-20".to_owned(), size - 20, size),
            (format!("7-{}", 3 * size), 7, size),
            ("0-".to_owned(), 0, size),
        ] {
            let asked = format!("Range: bytes={range}\r\n");
            let answer = server.ask("GET", &uri(&account, &cid), &asked).await;
            assert_eq!(answer.status, 206, "{range}");
            assert!(answer.body == whole[from..to], "{range} of {size}");
            assert!(answer.is_whole());
            let want = format!("bytes {from}-{}/{size}", to - 1);
            assert_eq!(answer.header("content-range"), want);
            assert_eq!(answer.header("etag"), format!("\"{cid}\""));
            assert_guarded(&answer);
            let head = server.ask("HEAD", &uri(&account, &cid), &asked).await;
            assert_eq!(
                (head.status, head.header("content-length")),
                (200, size.to_string().as_str())
            );
        }
        let past = format!("Range: bytes={size}-\r\n");
        let answer = server.ask("GET", &uri(&account, &cid), &past).await;
        assert_eq!(answer.error(), (416, "InvalidRequest".to_owned()));
        assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
        for whole_asked in [
            "Range: bytes=0-1,4-5\r\n",
            "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n",
            "Range: pages=1-2\r\nAccept-Encoding: gzip\r\n",
        ] {
            let answer = server.ask("GET", &uri(&account, &cid), whole_asked).await;
            assert!(answer.status == 200 && answer.body == *whole, "{whole_asked}");
            assert_eq!(answer.header("content-encoding"), "", "a blob is never coded");
        }
    }

    // A range of something else: its first bytes are right, and still it is not given whole.
    let large = bytes(1_000_000);
    let mut other = large.clone();
    other[999_999] ^= 1;
    let cid = Cid::of_blob(&large);
    let account = Account::new("damaged", 2).blob("archived", 1, &large, "video/mp4", BlobState::Archived);
    account.save(&store);
    let objects = Objects::with(&account.did, cid, 1_000_000, &other);
    let server = Server::start_with(&store, objects, ServeLimits::default()).await;
    let asked = "Range: bytes=0-899999\r\n";
    let answer = server.ask("GET", &uri(&account, &cid), asked).await;
    assert!(
        answer.status == 206 && !answer.is_whole(),
        "{} bytes came",
        answer.body.len()
    );
}
