//! Tests of validators and the error table.

use http_body_util::BodyExt as _;

use super::*;
use crate::types::Cid;

fn did() -> Did {
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid")
}

fn values(name: HeaderName, texts: &[&'static str]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for text in texts {
        map.append(&name, HeaderValue::from_static(text));
    }
    map
}

#[expect(clippy::too_many_lines, reason = "one row an error")]
#[tokio::test]
async fn each_error_has_its_status_name_and_text() {
    use XrpcError as E;
    let repo = |text: &str| format!("{text}: {}", did());
    let rows = [
        (
            E::RepoNotFound(did()),
            400,
            "RepoNotFound",
            repo("Could not find repo for DID"),
        ),
        (
            E::RepoTakendown(did()),
            400,
            "RepoTakendown",
            repo("Repo has been takendown"),
        ),
        (
            E::RepoSuspended(did()),
            400,
            "RepoSuspended",
            repo("Repo has been suspended"),
        ),
        (
            E::RepoDeactivated(did()),
            400,
            "RepoDeactivated",
            repo("Repo has been deactivated"),
        ),
        (E::BlobNotFound, 400, "BlobNotFound", "Blob not found".into()),
        (
            E::MethodNotImplemented,
            501,
            "MethodNotImplemented",
            "Method Not Implemented".into(),
        ),
        (
            E::Params(ParamError::Missing("did")),
            400,
            "InvalidRequest",
            "Params must have the property \"did\"".into(),
        ),
        (E::Path, 400, "InvalidRequest", "invalid xrpc path".into()),
        (
            E::HttpMethod,
            405,
            "InvalidRequest",
            "Incorrect HTTP method, expected GET".into(),
        ),
        (
            E::Body,
            400,
            "InvalidRequest",
            "A request body was provided when none was expected".into(),
        ),
        (
            E::UriTooLong,
            414,
            "InvalidRequest",
            "Request URI is too long".into(),
        ),
        (
            E::Busy,
            503,
            "ServiceUnavailable",
            "Too many requests at once, try again later".into(),
        ),
        (
            E::Unavailable,
            503,
            "ServiceUnavailable",
            "The archive cannot be reached, try again later".into(),
        ),
        (
            E::Internal,
            500,
            "InternalServerError",
            "Internal Server Error".into(),
        ),
    ];
    for (error, status, name, message) in rows {
        let response = finish(error.response(), false);
        assert_eq!(response.status().as_u16(), status, "{name}");
        let header = |name: HeaderName| response.headers().get(name).cloned();
        assert_eq!(header(header::CACHE_CONTROL), Some(CACHE_NEVER));
        assert_eq!(header(header::ALLOW).is_some(), status == 405);
        assert_eq!(header(header::RETRY_AFTER).is_some(), status == 503);
        assert_eq!(
            header(header::CONTENT_TYPE).expect("typed"),
            "application/json; charset=utf-8"
        );
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body, serde_json::json!({ "error": name, "message": message }));
    }
}

#[test]
fn a_validator_matches_in_any_list_and_weakly() {
    let tag = etag(&Cid::of_block(b"commit"));
    let text: &'static str = tag.to_str().expect("ASCII").to_owned().leak();
    let weak: &'static str = format!("W/{text}").leak();
    let matches = |texts: &[&'static str]| not_modified(&values(header::IF_NONE_MATCH, texts), &tag);
    assert!(matches(&[text]) && matches(&[weak]) && matches(&["*"]));
    assert!(matches(&["\"a\", \"b\"", "\"c\"", text]));
    assert!(!matches(&[]) && !matches(&["\"a\""]) && !matches(&[text.trim_matches('"')]));
}

#[test]
fn a_preflight_gives_back_the_headers_that_were_asked_for() {
    let allowed = |text: &'static str| {
        let request = values(header::ACCESS_CONTROL_REQUEST_HEADERS, &[text]);
        preflight(&request)
            .headers()
            .get(header::ACCESS_CONTROL_ALLOW_HEADERS)
            .cloned()
    };
    let wanted = "authorization, atproto-accept-labelers";
    assert_eq!(allowed(wanted).expect("given back"), wanted);
    assert_eq!(allowed("x: y"), None);
    assert_eq!(allowed("<script>"), None);
    assert_eq!(allowed("a".repeat(PREFLIGHT_HEADERS_BYTES_MAX + 1).leak()), None);
    assert_eq!(preflight(&HeaderMap::new()).status(), StatusCode::NO_CONTENT);
}

#[test]
fn a_head_answer_keeps_its_length_and_loses_its_body() {
    let response = finish(text(StatusCode::OK, "twelve bytes"), true);
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "12");
    assert!(response.body().is_end_stream());
    for (body, length) in [(Body::absent(None), None), (Body::absent(Some(7)), Some("7"))] {
        let response = finish(Response::new(body), true);
        let got = response
            .headers()
            .get(header::CONTENT_LENGTH)
            .map(|value| value.to_str().expect("ASCII"));
        assert_eq!((got, response.body().is_end_stream()), (length, true));
    }
    let unchanged = finish(unchanged(etag(&Cid::of_block(b"commit"))), true);
    assert!(!unchanged.headers().contains_key(header::CONTENT_LENGTH));
}
