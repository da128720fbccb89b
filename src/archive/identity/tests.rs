//! An empty bucket becomes an archive once; what is not ours to write to is refused.

use futures_util::StreamExt as _;

use super::super::settings::{ArchiveConfig, S3Input};
use super::*;

const ID: ArchiveId = ArchiveId::from_bytes([0xab; 16]);
const OTHER: ArchiveId = ArchiveId::from_bytes([0xcd; 16]);

fn now() -> Timestamp {
    "2026-01-02T03:04:05.678Z".parse().expect("valid")
}

async fn empty() -> (Bucket, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("file://{}", folder.path().display());
    let config = ArchiveConfig::parse(&url, &S3Input::default()).expect("valid");
    (Bucket::open(&config).await.expect("opens"), folder)
}

async fn put(bucket: &Bucket, name: &str, text: &str) {
    let body = Body::Bytes(text.to_owned().into());
    let put = bucket
        .put(name, body, &PutOptions::create(ContentType::json()))
        .await;
    assert_eq!(put, Ok(PutOutcome::Created));
}

/// What becomes of an archive with this `archive.json`.
async fn with_json(text: &str) -> Result<ArchiveId, IdentityError> {
    let (bucket, _folder) = empty().await;
    put(&bucket, names::ARCHIVE, text).await;
    open_or_create(&bucket, ID, now()).await
}

#[tokio::test]
async fn an_empty_bucket_becomes_an_archive_once() {
    let (bucket, folder) = empty().await;
    assert_eq!(read(&bucket).await.expect("readable"), None);
    assert_eq!(open_or_create(&bucket, ID, now()).await.expect("empty"), ID);
    assert_eq!(open_or_create(&bucket, OTHER, now()).await.expect("ours"), ID);
    let info = ArchiveInfo {
        id: ID,
        format: 1,
        least_reader: 1,
        created: now(),
    };
    assert_eq!(read(&bucket).await.expect("readable"), Some(info));
    let text = std::fs::read_to_string(folder.path().join(names::ARCHIVE)).expect("there");
    let (fields, seal) = text.split_once("  \"sha256\": ").expect("sealed");
    assert_eq!(
        fields,
        "{\n  \"created\": \"2026-01-02T03:04:05.678Z\",\n  \"format\": 1,\n  \
         \"id\": \"abababababababababababababababab\",\n  \"least_reader\": 1,\n"
    );
    assert_eq!(seal.len(), 66 + "\n}\n".len());
    assert_eq!(sealed::check(text.as_bytes()), Seal::Sound);
    let damaged = text.replace("05.678Z", "05.679Z");
    let error = with_json(&damaged).await.expect_err("changed");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[tokio::test]
async fn of_many_at_once_one_id_wins() {
    let (bucket, _folder) = empty().await;
    let ids = (0..8).map(|n| open_or_create(&bucket, ArchiveId::from_bytes([n; 16]), now()));
    let ids: Vec<_> = ids
        .collect::<futures_util::stream::FuturesUnordered<_>>()
        .collect()
        .await;
    let first = *ids[0].as_ref().expect("opens");
    assert!(ids.iter().all(|id| *id.as_ref().expect("opens") == first));
    assert_eq!(ids.len(), 8);
}

#[tokio::test]
async fn a_bucket_of_somebody_else_is_refused() {
    for name in ["v1/service/x.json", "v1/blocks/a/b"] {
        let (bucket, folder) = empty().await;
        put(&bucket, name, "{}").await;
        let error = open_or_create(&bucket, ID, now()).await.expect_err("not empty");
        assert!(
            matches!(&error, IdentityError::NotAnArchive { found, .. } if found == name),
            "{error}"
        );
        assert!(!folder.path().join(names::ARCHIVE).exists());
    }
    let (bucket, folder) = empty().await;
    std::fs::write(folder.path().join("holiday picture.jpg"), "x").expect("writes");
    let error = open_or_create(&bucket, ID, now())
        .await
        .expect_err("not empty")
        .to_string();
    assert!(
        error.contains("holiday picture.jpg") && error.contains("a prefix of its own"),
        "{error}"
    );
    // Not what a file system brings along itself.
    let (bucket, folder) = empty().await;
    std::fs::create_dir(folder.path().join("lost+found")).expect("makes");
    assert!(open_or_create(&bucket, ID, now()).await.is_ok());
}

#[tokio::test]
async fn newer_archives_are_refused() {
    let json = |format: u32, least_reader: u32| {
        format!(
            "{{\"id\":\"{ID}\",\"format\":{format},\"least_reader\":{least_reader},\"new\":[1],\
             \"created\":\"2026-01-02T03:04:05.678Z\"}}"
        )
    };
    assert_eq!(with_json(&json(1, 1)).await.expect("ours, with a field more"), ID);
    let error = with_json(&json(2, 1)).await.expect_err("newer");
    assert!(
        matches!(error, IdentityError::ReadOnly { format: 2, .. }),
        "{error}"
    );
    let error = with_json(&json(3, 2)).await.expect_err("newer");
    assert!(
        matches!(error, IdentityError::TooNew { least_reader: 2, .. }),
        "{error}"
    );
    // Reading alone is fine where it is allowed.
    let (bucket, _folder) = empty().await;
    put(&bucket, names::ARCHIVE, &json(2, 1)).await;
    assert_eq!(
        read(&bucket).await.expect("readable").map(|info| info.format),
        Some(2)
    );
}

#[tokio::test]
async fn damaged_ones_are_refused() {
    let id = ID.to_string();
    for text in [
        String::new(),
        "{}".into(),
        format!(
            "{{\"id\":\"{}\",\"format\":1,\"least_reader\":1,\"created\":\"2026-01-02T03:04:05Z\"}}",
            &id[1..]
        ),
        format!("{{\"id\":\"{id}\",\"format\":1,\"least_reader\":1,\"created\":\"yesterday\"}}"),
        format!("{{\"id\":\"{id}\",\"format\":-1,\"least_reader\":1,\"created\":\"2026-01-02T03:04:05Z\"}}"),
    ] {
        let error = with_json(&text).await.expect_err("damaged");
        assert!(matches!(error, IdentityError::Damaged { .. }), "{text}: {error}");
    }
    let error = with_json(&" ".repeat(BYTES_MAX + 1)).await.expect_err("too long");
    assert!(matches!(error, IdentityError::Bucket(_)), "{error}");
}
