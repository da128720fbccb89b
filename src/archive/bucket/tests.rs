//! Streams that are not what they should be end with an error.

use super::*;
use crate::types::cid::sha256;

fn head(size: u64, sha256: Option<Digest>) -> ObjectHead {
    let content_type = ContentType::binary();
    ObjectHead {
        size,
        content_type,
        sha256,
    }
}

fn body(size: u64, sha256: Option<Digest>, parts: &[&'static [u8]]) -> ObjectBody {
    let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part))).collect();
    ObjectBody::checked("x".into(), head(size, sha256), stream::iter(parts))
}

async fn kind(body: ObjectBody) -> Result<Bytes, BucketErrorKind> {
    body.bytes(100).await.map_err(|error| error.kind)
}

#[tokio::test]
async fn sound_streams_pass() {
    let wanted = Some(sha256(b"onetwo"));
    assert_eq!(
        kind(body(6, wanted, &[b"one", b"two"])).await,
        Ok(Bytes::from("onetwo"))
    );
    assert_eq!(kind(body(0, None, &[])).await, Ok(Bytes::new()));
}

#[tokio::test]
async fn short_long_and_wrong_streams_fail() {
    let cut = body(6, None, &[b"one"]);
    assert_eq!(kind(cut).await, Err(BucketErrorKind::Unreachable));
    let long = body(4, None, &[b"one", b"two"]);
    assert_eq!(kind(long).await, Err(BucketErrorKind::Corrupt));
    let wrong = body(6, Some(sha256(b"onetwo")), &[b"one", b"twO"]);
    assert_eq!(kind(wrong).await, Err(BucketErrorKind::Corrupt));
}

#[tokio::test]
async fn an_object_above_the_limit_is_not_read() {
    let error = body(101, None, &[]).bytes(100).await.expect_err("too large");
    assert_eq!(error.kind, BucketErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "cannot read x: it has 101 bytes; at most 100 are read"
    );
}

#[tokio::test]
async fn a_blocking_reader_gives_the_bytes_and_the_error() {
    let (sound, cut) = (body(6, None, &[b"one", b"", b"two"]), body(6, None, &[b"one"]));
    let runtime = Handle::current();
    let read = move || {
        let mut out = String::new();
        sound.into_reader(runtime.clone()).read_to_string(&mut out)?;
        let error = cut
            .into_reader(runtime)
            .read_to_end(&mut Vec::new())
            .expect_err("cut off");
        Ok::<_, io::Error>((out, error))
    };
    let (out, error) = tokio::task::spawn_blocking(read)
        .await
        .expect("no panic")
        .expect("sound");
    assert_eq!(out, "onetwo");
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<BucketError>())
        .expect("ours");
    assert!(inner.is_transient());
}

#[test]
fn errors_speak_to_a_person() {
    let error = BucketError {
        kind: BucketErrorKind::Full,
        action: "write",
        place: "file:///srv/archive/v1/archive.json".into(),
        detail: "no space left on device".into(),
    };
    assert_eq!(
        error.to_string(),
        "cannot write file:///srv/archive/v1/archive.json: no space left on device; free some space there"
    );
    assert!(!error.is_transient());
}
