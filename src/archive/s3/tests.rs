//! A store that misbehaves: each answer is written by hand, so that each check is seen to fire.

use fake::{FakeStore, STALL, Seen, answer, head_of, object, refusal};

use super::super::bucket::Bucket;
use super::super::settings::{ArchiveConfig, S3Input};
use super::*;

pub(in super::super) mod fake;

fn md5_hex(text: &str) -> String {
    HEXLOWER.encode(&Md5::digest(text.as_bytes()))
}

fn kind<T>(outcome: Result<T, BucketError>) -> Option<BucketErrorKind> {
    outcome.err().map(|error| error.kind)
}

#[tokio::test]
async fn a_write_carries_what_it_should_and_nothing_that_stores_refuse() {
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => head_of("hello", 5, &md5_hex("hello")),
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(store.create("hello").await, Ok(PutOutcome::Created));
    let put = store.seen().remove(0);
    assert!(put.is("PUT", "/bucket/prefix/v1/x"), "{put:?}");
    assert_eq!(put.body, b"hello");
    let digest = HEXLOWER.encode(&sha256(b"hello"));
    for line in [
        "if-none-match: *".to_owned(),
        "content-type: application/json".to_owned(),
        format!("x-amz-meta-sha256: {digest}"),
        format!("x-amz-content-sha256: {digest}"),
    ] {
        assert!(
            put.head.lines().any(|found| found == line),
            "{line} in {}",
            put.head
        );
    }
    assert!(
        !put.head.contains("x-amz-checksum") && !put.head.contains("chunked"),
        "{}",
        put.head
    );
}

#[tokio::test]
async fn a_store_without_conditional_writes_is_remembered() {
    let store = FakeStore::new(|seen, before| match &*seen.method {
        "HEAD" if before == 0 => answer(404, "", ""),
        "HEAD" => head_of("hello", 5, &md5_hex("hello")),
        "PUT" if seen.head.contains("if-none-match") => refusal(501, "NotImplemented"),
        _ => answer(200, "", "<ListBucketResult/>"),
    })
    .await;
    assert!(store.bucket.create_only_is_atomic());
    assert_eq!(store.create("hello").await, Ok(PutOutcome::Created));
    assert!(!store.bucket.create_only_is_atomic());
    assert_eq!(store.create("other").await, Ok(PutOutcome::AlreadyThere));
    let writes: Vec<_> = store
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PUT")
        .collect();
    assert_eq!(
        writes.len(),
        2,
        "refused, then plain; the second object is only looked up"
    );
    assert!(!writes[1].head.contains("if-none-match"));
}

#[tokio::test]
async fn a_412_means_already_there_and_a_409_means_again() {
    let store = FakeStore::new(|_, _| refusal(412, "PreconditionFailed")).await;
    assert_eq!(store.create("hello").await, Ok(PutOutcome::AlreadyThere));
    let store = FakeStore::new(|seen, before| match &*seen.method {
        "PUT" if before < 2 => refusal(409, "ConditionalRequestConflict"),
        "HEAD" => head_of("hello", 5, ""),
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(store.create("hello").await, Ok(PutOutcome::Created));
    assert_eq!(store.count("PUT", "v1/x"), 3);
    let store = FakeStore::new(|_, _| refusal(409, "ConditionalRequestConflict")).await;
    let error = store.create("hello").await.expect_err("never ends");
    assert_eq!(error.kind, BucketErrorKind::Conflict);
    assert!(error.is_transient());
    assert_eq!(store.count("PUT", "v1/x"), CONFLICTS_MAX + 1);
}

#[tokio::test]
async fn what_comes_back_with_another_length_is_removed() {
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => head_of("hello", 4, ""),
        _ => answer(200, "", ""),
    })
    .await;
    let error = store.create("hello").await.expect_err("too short");
    assert_eq!(error.kind, BucketErrorKind::Corrupt);
    assert!(
        error
            .to_string()
            .contains("5 bytes were sent, and the store has 4"),
        "{error}"
    );
    assert_eq!(store.count("DELETE", "v1/x"), 1);
}

#[tokio::test]
async fn what_may_be_another_writers_is_not_removed() {
    // Another digest: another writer's, on a store that ignored the condition.
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => head_of("other", 5, &md5_hex("other")),
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(store.create("hello").await, Ok(PutOutcome::AlreadyThere));
    assert_eq!(store.count("DELETE", ""), 0);
    // The same where it may be replaced: somebody else did so.
    let mut options = PutOptions::create(ContentType::json());
    options.create_only = false;
    let put = store
        .bucket
        .put("v1/x", Body::Bytes("hello".into()), &options)
        .await;
    assert_eq!(kind(put), Some(BucketErrorKind::Conflict));
    // No digest: who knows.
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => answer(200, "content-length: 4\r\n", ""),
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(kind(store.create("hello").await), Some(BucketErrorKind::Corrupt));
    assert_eq!(store.count("DELETE", ""), 0);
}

#[tokio::test]
async fn what_the_store_took_but_does_not_have_is_an_error() {
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => answer(404, "", ""),
        _ => answer(200, "", ""),
    })
    .await;
    let error = store.create("hello").await.expect_err("not there");
    assert_eq!(error.kind, BucketErrorKind::Corrupt);
    assert!(error.to_string().contains("does not have it"), "{error}");
}

#[tokio::test]
async fn an_object_that_shows_late_is_fine() {
    let store = FakeStore::new(|seen, before| match &*seen.method {
        "HEAD" if before < 2 => answer(404, "", ""),
        "HEAD" => head_of("hello", 5, ""),
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(store.create("hello").await, Ok(PutOutcome::Created));
}

#[tokio::test]
async fn etags_that_are_no_md5s_are_found_out_once() {
    let odd = "00000000000000000000000000000000";
    let store = FakeStore::new(move |seen, _| match &*seen.method {
        "HEAD" => head_of("hello", 5, odd),
        "GET" => object("hello", odd, ""),
        _ => answer(200, "", ""),
    })
    .await;
    for _ in 0..3 {
        assert_eq!(store.create("hello").await, Ok(PutOutcome::Created));
    }
    assert_eq!(store.count("GET", "v1/x"), 1);
}

#[tokio::test]
async fn other_bytes_with_the_right_length_are_found_out() {
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => head_of("hello", 5, &md5_hex("hellO")),
        "GET" => answer(200, "", "hellO"),
        _ => answer(200, "", ""),
    })
    .await;
    let error = store.create("hello").await.expect_err("other bytes");
    assert!(
        error.to_string().contains("other bytes than were sent"),
        "{error}"
    );
    assert_eq!(store.count("DELETE", "v1/x"), 1);
}

#[tokio::test]
async fn etags_of_encrypted_objects_are_not_compared() {
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => {
            let headers = "content-length: 5\r\netag: \"00000000000000000000000000000000\"\r\n\
                           x-amz-server-side-encryption: aws:kms\r\n";
            answer(200, headers, "")
        }
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(store.create("hello").await, Ok(PutOutcome::Created));
    assert_eq!(store.count("GET", ""), 0);
}

#[tokio::test]
async fn reads_that_end_early_or_differ_or_stall_fail() {
    let cut = FakeStore::new(|_, _| answer(200, "content-length: 9\r\n", "hello")).await;
    let error = cut.get().await.expect_err("cut off");
    assert_eq!(error.kind, BucketErrorKind::Unreachable, "{error}");
    assert!(error.is_transient());

    let digest = HEXLOWER.encode(&sha256(b"hello"));
    let wrong =
        FakeStore::new(move |_, _| answer(200, &format!("x-amz-meta-sha256: {digest}\r\n"), "hellO")).await;
    assert_eq!(kind(wrong.get().await), Some(BucketErrorKind::Corrupt));

    let stalled =
        FakeStore::new(|_, _| [answer(200, "content-length: 9\r\n", "hello"), STALL.into()].concat()).await;
    let get = tokio::time::timeout(Duration::from_secs(10), stalled.get());
    let error = get.await.expect("the idle timeout is 0.5 s").expect_err("stalls");
    assert_eq!(error.kind, BucketErrorKind::Unreachable, "{error}");

    let unknown = FakeStore::new(|_, _| b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\nhello".to_vec()).await;
    assert_eq!(
        kind(unknown.get().await),
        Some(BucketErrorKind::Corrupt),
        "no length"
    );

    let sound = FakeStore::new(|_, _| object("hello", "", "content-type: text/plain\r\n")).await;
    assert_eq!(sound.get().await, Ok(Some("hello".into())));
}

#[tokio::test]
async fn refusals_say_what_to_do_in_one_line() {
    use BucketErrorKind as K;
    for (status, code, want, part) in [
        (
            403,
            "InvalidAccessKeyId",
            K::Credentials,
            "check the S3 credentials",
        ),
        (
            403,
            "SignatureDoesNotMatch",
            K::Credentials,
            "check the S3 credentials",
        ),
        (
            403,
            "AccessDenied",
            K::Refused,
            "the right to read, write and list",
        ),
        (403, "RequestTimeTooSkewed", K::ClockSkew, "clock"),
        (404, "NoSuchBucket", K::NoBucket, "create the bucket"),
        (301, "PermanentRedirect", K::WrongRegion, "s3.region"),
        (507, "InsufficientStorage", K::Full, "free some space"),
    ] {
        let store = FakeStore::new(move |_, _| refusal(status, code)).await;
        for error in [
            store.create("hello").await.expect_err(code),
            store.get().await.expect_err(code),
            store.bucket.list("", None).await.expect_err(code),
        ] {
            let text = error.to_string();
            assert_eq!(error.kind, want, "{text}");
            assert!(!error.is_transient());
            assert!(
                text.contains(part) && text.contains(code) && text.contains("it is so indeed"),
                "{text}"
            );
            assert!(!text.contains('\n'));
        }
    }
}

#[tokio::test]
async fn a_store_in_trouble_is_tried_again_a_few_times() {
    let store = FakeStore::new(|seen, before| match before {
        0 | 1 => refusal(503, "SlowDown"),
        _ if seen.method == "GET" => answer(200, "", "hello"),
        _ => answer(200, "", ""),
    })
    .await;
    assert_eq!(store.get().await, Ok(Some("hello".into())));
    for (status, body) in [(503, "SlowDown"), (502, "<html>Bad gateway</html>")] {
        let store = FakeStore::new(move |_, _| answer(status, "", body)).await;
        let error = store.get().await.expect_err("never ends");
        assert_eq!(error.kind, BucketErrorKind::Busy, "{error}");
        assert!(error.is_transient());
        assert_eq!(store.count("GET", "v1/x"), 4);
    }
}

#[tokio::test]
async fn a_store_that_says_nothing_is_left() {
    let store = FakeStore::new(|_, _| STALL.to_vec()).await;
    let get = tokio::time::timeout(Duration::from_secs(20), store.get());
    let error = get.await.expect("4 attempts of 2 s").expect_err("no answer");
    assert_eq!(error.kind, BucketErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("no answer in time"), "{error}");
}

#[tokio::test]
async fn a_404_without_a_code_does_not_hide_a_missing_bucket() {
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => answer(404, "", ""),
        _ => refusal(404, "NoSuchBucket"),
    })
    .await;
    assert_eq!(
        kind(store.bucket.head("v1/x").await),
        Some(BucketErrorKind::NoBucket)
    );
    let store = FakeStore::new(|seen, _| match seen.target.contains("list-type") {
        true => refusal(404, "NoSuchBucket"),
        false => answer(404, "", ""),
    })
    .await;
    assert_eq!(kind(store.get().await), Some(BucketErrorKind::NoBucket));
    let deleted = store.bucket.delete("v1/x").await;
    assert_eq!(kind(deleted), Some(BucketErrorKind::NoBucket));
    let store = FakeStore::new(|seen, _| match &*seen.method {
        "HEAD" => answer(404, "", ""),
        _ => answer(200, "", "<ListBucketResult/>"),
    })
    .await;
    for _ in 0..3 {
        assert_eq!(store.bucket.head("v1/x").await, Ok(None));
    }
    assert_eq!(
        store.count("GET", "list-type"),
        1,
        "a bucket that was seen once is believed"
    );
}

#[tokio::test]
async fn lists_that_go_in_circles_are_refused() {
    let page = |key: &str| {
        let body = format!(
            "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>{key}</Key><Size>1</Size></Contents>\
             </ListBucketResult>"
        );
        answer(200, "content-type: application/xml\r\n", &body)
    };
    let store = FakeStore::new(move |_, _| page("prefix/v1/x")).await;
    let first = store.bucket.list("v1/", None).await.expect("new names");
    assert_eq!(first.next.as_deref(), Some("v1/x"));
    let again = store.bucket.list("v1/", Some("v1/x")).await;
    assert_eq!(kind(again), Some(BucketErrorKind::Corrupt));
    let store = FakeStore::new(move |_, _| page("elsewhere/x")).await;
    assert_eq!(
        kind(store.bucket.list("v1/", None).await),
        Some(BucketErrorKind::Corrupt)
    );
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_named_but_not_shown() {
    let store = FakeStore::new(|_, _| answer(404, "", "")).await;
    let path = store.folder.path().join("secret");
    for text in ["", "two words", "two\nlines"] {
        std::fs::write(&path, text).expect("writes");
        let input = S3Input {
            endpoint: Some("http://127.0.0.1:1".into()),
            access_key_id_file: Some(store.folder.path().join("id")),
            secret_access_key_file: Some(path.clone()),
            ..S3Input::default()
        };
        let config = ArchiveConfig::parse("s3://bucket", &input).expect("valid");
        let error = Bucket::open(&config).await.map(drop).expect_err("no line");
        assert_eq!(error.kind, BucketErrorKind::Credentials);
        assert!(
            error
                .to_string()
                .contains("secret: the file must hold exactly one line"),
            "{error}"
        );
        assert!(text.is_empty() || !error.to_string().contains(text));
    }
    // Gone after the bucket was opened: the first request reads them.
    std::fs::remove_file(&path).expect("removes");
    let error = store.bucket.head("v1/x").await.expect_err("no credentials");
    assert_eq!(error.kind, BucketErrorKind::Credentials, "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
    assert_eq!(store.seen().len(), 0);
}

/// Answers to an upload in parts; what it makes of the end of it is the test's.
fn parts(seen: &Seen, end: impl Fn() -> Vec<u8>) -> Vec<u8> {
    if seen.is("POST", "uploads") {
        let body = "<InitiateMultipartUploadResult><UploadId>up</UploadId></InitiateMultipartUploadResult>";
        return answer(200, "content-type: application/xml\r\n", body);
    }
    match &*seen.method {
        "PUT" => answer(200, "etag: \"part\"\r\n", ""),
        "POST" => end(),
        "DELETE" => answer(204, "", ""),
        "HEAD" => answer(404, "", ""),
        _ => answer(200, "", "<ListBucketResult/>"),
    }
}

#[tokio::test]
async fn an_upload_whose_end_fails_is_aborted() {
    // S3 may find an error after it has begun to answer with 200.
    let late = || refusal(200, "InternalError");
    let store = FakeStore::new(move |seen, _| parts(seen, late)).await;
    let error = store.create_large().await.expect_err("fails");
    assert_eq!(error.kind, BucketErrorKind::Busy, "{error}");
    assert_eq!(store.count("PUT", "uploadId=up"), 3);
    assert_eq!(store.count("DELETE", "uploadId=up"), 1);
    let end = store
        .seen()
        .into_iter()
        .find(|seen| seen.is("POST", "uploadId=up"))
        .expect("was sent");
    assert!(end.head.contains("if-none-match: *"), "{}", end.head);

    let there = || refusal(412, "PreconditionFailed");
    let store = FakeStore::new(move |seen, _| parts(seen, there)).await;
    assert_eq!(store.create_large().await, Ok(PutOutcome::AlreadyThere));
    assert_eq!(store.count("DELETE", "uploadId=up"), 1);
}

#[tokio::test]
async fn a_file_that_is_not_what_it_was_is_not_stored() {
    let done = || answer(200, "", "<CompleteMultipartUploadResult/>");
    let store = FakeStore::new(move |seen, _| parts(seen, done)).await;
    let path = store.folder.path().join("changed");
    std::fs::write(&path, vec![8; 17 << 20]).expect("writes");
    let mut options = PutOptions::create(ContentType::zstd());
    options.sha256 = Some(sha256(&vec![7; 17 << 20]));
    let error = store
        .bucket
        .put("v1/x", Body::File(path), &options)
        .await
        .expect_err("other bytes");
    assert_eq!(error.kind, BucketErrorKind::Corrupt, "{error}");
    assert_eq!(
        (
            store.count("POST", "uploadId=up"),
            store.count("DELETE", "uploadId=up")
        ),
        (0, 1)
    );
}

#[tokio::test]
async fn an_upload_that_meets_another_begins_again() {
    let store = FakeStore::new(|seen, before| {
        if before == 0 && seen.is("POST", "uploadId=up") {
            return refusal(409, "ConditionalRequestConflict");
        }
        if seen.method == "HEAD" && before > 0 {
            let digest = HEXLOWER.encode(&sha256(&vec![7; 17 << 20]));
            let size = 17 << 20;
            let headers = format!("content-length: {size}\r\nx-amz-meta-sha256: {digest}\r\n");
            return answer(200, &headers, "");
        }
        let done = || answer(200, "", "<CompleteMultipartUploadResult/>");
        parts(seen, done)
    })
    .await;
    assert_eq!(store.create_large().await, Ok(PutOutcome::Created));
    assert_eq!(store.count("POST", "uploads"), 2);
    assert_eq!(store.count("PUT", "uploadId=up"), 6);
    assert_eq!(store.count("DELETE", "uploadId=up"), 1);
}

#[tokio::test]
async fn a_store_without_uploads_to_list_has_none_to_abort() {
    let store = FakeStore::new(|_, _| refusal(501, "NotImplemented")).await;
    assert_eq!(store.bucket.clean_up(Some(Timestamp::default())).await, Ok(None));
    let circle = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>\
                  <NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>";
    let store = FakeStore::new(move |_, _| answer(200, "content-type: application/xml\r\n", circle)).await;
    let cleaned = store.bucket.clean_up(Some(Timestamp::default())).await;
    assert_eq!(kind(cleaned), Some(BucketErrorKind::Corrupt));
}
