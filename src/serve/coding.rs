#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! What a caller has already, and in which coding it takes the rest: validators and gzip.
//!
//! Every 200 with a body that is there already gets a strong validator, the hash of its bytes; what is large carries
//! the CID that it stands for. A gzipped answer is another representation, so its validator says so. Blobs are never
//! coded: most are compressed already, and their ranges count bytes.
//!
//! Sources: RFC 9110 §8.8.3, §12.5.3, §13.1.2.

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::response::{self, Body};
use crate::types::Cid;

/// Smaller bodies are not worth a header.
const GZIP_BYTES_MIN: u64 = 1024;
/// What stands at the end of the validator of a gzipped answer.
const GZIP_SUFFIX: &str = ".gzip";
/// Media types that are coded.
const CODED: [&str; 3] = ["application/json", "application/vnd.ipld.car", "text/plain"];

/// Validates and codes an answer.
pub(super) fn apply(request: &HeaderMap, mut response: Response<Body>) -> Response<Body> {
    if response.status() == StatusCode::OK
        && !response.headers().contains_key(header::ETAG)
        && !response.headers().contains_key(header::CACHE_CONTROL)
        && let Some(bytes) = response.body().bytes()
    {
        let etag = response::etag(&Cid::of_blob(bytes));
        if response::not_modified(request, &etag) {
            response = response::unchanged(etag);
        } else {
            response.headers_mut().insert(header::ETAG, etag);
        }
    }
    match response.status() {
        StatusCode::NOT_MODIFIED => name_the_one_that_is_held(request, response),
        StatusCode::OK if takes_gzip(request) && is_worth_it(&response) => gzip(response),
        _ => response,
    }
}

fn is_worth_it(response: &Response<Body>) -> bool {
    let media_type = response.headers().get(header::CONTENT_TYPE);
    let essence = media_type.and_then(|value| value.to_str().ok()?.split(';').next());
    essence.is_some_and(|essence| CODED.contains(&essence))
        && !response.headers().contains_key(header::CONTENT_DISPOSITION)
        && response
            .body()
            .length()
            .is_none_or(|length| length >= GZIP_BYTES_MIN)
}

fn gzip(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let headers = &mut parts.headers;
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    if let Some(coded) = headers.get(header::ETAG).and_then(coded_etag) {
        headers.insert(header::ETAG, coded);
    }
    Response::from_parts(parts, body.gzipped())
}

/// `"x"` as `"x.gzip"`.
fn coded_etag(etag: &HeaderValue) -> Option<HeaderValue> {
    let text = etag.to_str().ok()?.strip_suffix('"')?;
    HeaderValue::try_from(format!("{text}{GZIP_SUFFIX}\"")).ok()
}

/// A validator without the coding.
pub(super) fn uncoded(tag: &str) -> String {
    let bare = tag
        .strip_suffix('"')
        .and_then(|tag| tag.strip_suffix(GZIP_SUFFIX));
    bare.map_or_else(|| tag.to_owned(), |bare| format!("{bare}\""))
}

/// A 304 names the representation that the caller has.
fn name_the_one_that_is_held(request: &HeaderMap, mut response: Response<Body>) -> Response<Body> {
    let coded = response.headers().get(header::ETAG).and_then(coded_etag);
    let held = |coded: &HeaderValue| {
        let mut values = request.get_all(header::IF_NONE_MATCH).iter();
        let text = coded.to_str().unwrap_or_default();
        values.any(|value| value.to_str().is_ok_and(|value| value.contains(text)))
    };
    if let Some(coded) = coded.filter(held) {
        response.headers_mut().insert(header::ETAG, coded);
    }
    response
}

/// Whether the caller takes gzip. Not said at all is no: many a client cannot.
fn takes_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(header::ACCEPT_ENCODING).iter();
    let codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let mut any = false;
    for coding in codings {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = parts.any(|part| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0))
        });
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return !refused;
        }
        any |= name == "*" && !refused;
    }
    any
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::BodyExt as _;

    use super::*;

    fn asking(lines: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (value, takes) in [
            ("gzip", true),
            ("GZIP", true),
            ("br, gzip;q=0.5", true),
            ("gzip, deflate, br, zstd", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("gzip; q=0.0", false),
            ("*;q=0", false),
            ("identity", false),
            ("zstd", false),
            ("", false),
        ] {
            assert_eq!(
                takes_gzip(&asking(&[(header::ACCEPT_ENCODING, value)])),
                takes,
                "{value}"
            );
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_large_answer_is_coded_and_validated_as_what_it_is() {
        let value = serde_json::json!({ "text": "again and ".repeat(1000) });
        let plain = apply(&HeaderMap::new(), response::json(&value));
        let tag = plain.headers()[header::ETAG].clone();
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        let coded = apply(
            &asking(&[(header::ACCEPT_ENCODING, "gzip")]),
            response::json(&value),
        );
        assert_eq!(coded.headers()[header::CONTENT_ENCODING], "gzip");
        let coded_tag = coded.headers()[header::ETAG].clone();
        assert_ne!(coded_tag, tag);
        assert_eq!(coded.body().length(), None);
        let bytes = coded.into_body().collect().await.expect("whole").to_bytes();
        assert!(bytes.len() < 1000);
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_end(&mut text)
            .expect("gzip");
        assert_eq!(text, serde_json::to_vec(&value).expect("JSON"));
        // Either validator is that of what is here, and each is answered by itself.
        for tag in [tag, coded_tag] {
            let mut held = HeaderMap::new();
            held.insert(header::IF_NONE_MATCH, tag.clone());
            let unchanged = apply(&held, response::json(&value));
            assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(unchanged.headers()[header::ETAG], tag);
            let changed = apply(&held, response::json(&"other"));
            assert_eq!(changed.status(), StatusCode::OK);
        }
    }

    #[test]
    fn what_is_small_failed_or_a_blob_is_not_coded() {
        let gzip = asking(&[(header::ACCEPT_ENCODING, "gzip")]);
        let is_coded = |response| {
            apply(&gzip, response)
                .headers()
                .contains_key(header::CONTENT_ENCODING)
        };
        let large = "x".repeat(5000);
        assert!(is_coded(response::text(StatusCode::OK, large.clone())));
        assert!(!is_coded(response::text(StatusCode::OK, "x")));
        assert!(!is_coded(response::text(StatusCode::BAD_REQUEST, large.clone())));
        let image = HeaderValue::from_static("image/svg+xml");
        assert!(!is_coded(response::with_type(Body::whole(large.clone()), image)));
        let mut blob = response::text(StatusCode::OK, large);
        let attachment = HeaderValue::from_static("attachment");
        blob.headers_mut().insert(header::CONTENT_DISPOSITION, attachment);
        assert!(!is_coded(blob));
    }
}
