#![allow(clippy::disallowed_methods, reason = "shell: makes bodies")]
//! Answers: errors, and the headers that every answer carries.
//!
//! Sources: <https://atproto.com/specs/xrpc>; the headers of `getBlob` are those of the reference PDS.

use bytes::Bytes;
use http_body::Body as _;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

pub use super::body::Body;
pub(super) use super::body::Piece;
use super::params::ParamError;
use crate::types::{Did, HostName};

/// Cache rule of an answer that holds while the account's state does: ask again each time.
pub(super) const CACHE_REVALIDATE: HeaderValue = HeaderValue::from_static("private, no-cache");
/// Cache rule of errors and of what changes by the second.
pub(super) const CACHE_NEVER: HeaderValue = HeaderValue::from_static("private, no-store");
/// Headers that a script of another origin may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Content-Length, Content-Range, Content-Disposition, ETag, Accept-Ranges, Retry-After, RateLimit-Limit, RateLimit-Remaining, \
     RateLimit-Reset, RateLimit-Policy",
);
/// Longest list of headers in a preflight that is given back.
const PREFLIGHT_HEADERS_BYTES_MAX: usize = 1024;

/// An error as callers see it: a status, a name that clients compare, and a fixed text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XrpcError {
    /// A parameter is missing or malformed.
    #[error("{0}")]
    Params(#[from] ParamError),
    /// The path below `/xrpc/` is no method name.
    #[error("invalid xrpc path")]
    Path,
    /// No account of this name is mirrored, or it has been deleted.
    #[error("Could not find repo for DID: {0}")]
    RepoNotFound(Did),
    /// Taken down by its host.
    #[error("Repo has been takendown: {0}")]
    RepoTakendown(Did),
    /// Suspended by its host.
    #[error("Repo has been suspended: {0}")]
    RepoSuspended(Did),
    /// Deactivated by its owner.
    #[error("Repo has been deactivated: {0}")]
    RepoDeactivated(Did),
    /// No live record of the account refers to the blob, or its bytes were never had.
    #[error("Blob not found")]
    BlobNotFound,
    /// No account of this handle is mirrored and served.
    #[error("Could not find repo for DID: {0}")]
    RepoNotNamed(String),
    /// No such record, or not in this version.
    #[error("Could not locate record: {0}")]
    RecordNotFound(String),
    /// Some blocks are not in the repository.
    #[error("Could not find cids: {0}")]
    BlocksNotFound(String),
    /// More than one answer may hold.
    #[error("These blocks are too large together: ask for fewer at once")]
    BlocksTooLarge,
    /// A record that JSON cannot say.
    #[error("This record has no JSON form: com.atproto.sync.getRecord gives it as it is")]
    NoJson,
    /// No account claims the handle, or several do.
    #[error("Unable to resolve handle")]
    HandleNotFound,
    /// Not a host that is followed.
    #[error("Host not found")]
    HostNotFound,
    /// The account would have to be told by a token, which this server does not take.
    #[error("Authentication Required: without it, give the parameter did")]
    AuthMissing,
    /// Nothing of the range that is asked for is in the blob, which has so many bytes.
    #[error("Range Not Satisfiable")]
    Range(u64),
    /// A method of another kind of server.
    #[error("Method Not Implemented")]
    MethodNotImplemented,
    /// A query asked for with another HTTP method.
    #[error("Incorrect HTTP method, expected GET")]
    HttpMethod,
    /// A query with a body.
    #[error("A request body was provided when none was expected")]
    Body,
    /// Path and query are longer than allowed.
    #[error("Request URI is too long")]
    UriTooLong,
    /// The archive, where the bytes are, does not answer.
    #[error("The archive cannot be reached, try again later")]
    Unavailable,
    /// Every place is taken.
    #[error("Too many requests at once, try again later")]
    Busy,
    /// A token that does not count.
    #[error("The token does not count: {0}")]
    InvalidToken(String),
    /// A password that does not count.
    #[error("Basic authentication failed: {0}")]
    Password(&'static str),
    /// Wrong passwords came too fast.
    #[error("Too many wrong passwords, try again in a minute")]
    TooManyTries,
    /// Who it is has to be proven.
    #[error("Authentication Required: {0}")]
    Unauthenticated(&'static str),
    /// Who it is may not.
    #[error("{0}")]
    Forbidden(String),
    /// An identity cannot be looked up now.
    #[error("The identity of {0} cannot be looked up now, try again later")]
    Unresolved(Did),
    /// Which keys a host holds cannot be told now.
    #[error(
        "Which rotation keys {0} holds cannot be told now: its accounts are not listed yet, or their identities cannot \
         be read"
    )]
    HostKeysUnknown(HostName),
    /// An error of one of our own methods, as its lexicon has it.
    #[error("{1}")]
    Own(&'static str, String),
    /// The same, of what is to be tried again later.
    #[error("{1}")]
    OwnTooSoon(&'static str, String),
    /// It is there already.
    #[error("This account is signed up already")]
    AlreadyRegistered,
    /// A method that changes something, asked for as if it were a query.
    #[error("Incorrect HTTP method, expected POST")]
    HttpMethodPost,
    /// The input of a procedure is not as its lexicon says.
    #[error("{0}")]
    Input(String),
    /// Something failed here; the log says what.
    #[error("Internal Server Error")]
    Internal,
}

/// When a caller that found every place taken should come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

impl XrpcError {
    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::HttpMethod | Self::HttpMethodPost => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::MethodNotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::AuthMissing | Self::InvalidToken(_) | Self::Password(_) | Self::Unauthenticated(_) => {
                StatusCode::UNAUTHORIZED
            }
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::AlreadyRegistered => StatusCode::CONFLICT,
            Self::TooManyTries | Self::OwnTooSoon(..) => StatusCode::TOO_MANY_REQUESTS,
            Self::Range(_) => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Busy | Self::Unavailable | Self::Unresolved(_) | Self::HostKeysUnknown(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The name that clients compare.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Params(_)
            | Self::Path
            | Self::HttpMethod
            | Self::HttpMethodPost
            | Self::Input(_)
            | Self::Body
            | Self::UriTooLong
            | Self::BlocksNotFound(_)
            | Self::BlocksTooLarge
            | Self::Range(_)
            | Self::NoJson => "InvalidRequest",
            Self::RepoNotFound(_) | Self::RepoNotNamed(_) => "RepoNotFound",
            Self::RecordNotFound(_) => "RecordNotFound",
            Self::HandleNotFound => "HandleNotFound",
            Self::HostNotFound => "HostNotFound",
            Self::AuthMissing | Self::Unauthenticated(_) => "AuthMissing",
            Self::InvalidToken(_) => "InvalidToken",
            Self::Password(_) => "AuthenticationRequired",
            Self::TooManyTries => "RateLimitExceeded",
            Self::Forbidden(_) => "Forbidden",
            Self::AlreadyRegistered => "AlreadyRegistered",
            Self::Own(name, _) | Self::OwnTooSoon(name, _) => name,
            Self::RepoTakendown(_) => "RepoTakendown",
            Self::RepoSuspended(_) => "RepoSuspended",
            Self::RepoDeactivated(_) => "RepoDeactivated",
            Self::BlobNotFound => "BlobNotFound",
            Self::MethodNotImplemented => "MethodNotImplemented",
            Self::Busy | Self::Unavailable | Self::Unresolved(_) | Self::HostKeysUnknown(_) => {
                "ServiceUnavailable"
            }
            Self::Internal => "InternalServerError",
        }
    }

    /// Whether it says that an account is hidden, which it may not be from everybody.
    pub(super) const fn hides(&self) -> bool {
        matches!(
            self,
            Self::RepoNotFound(_)
                | Self::RepoTakendown(_)
                | Self::RepoSuspended(_)
                | Self::RepoDeactivated(_)
        )
    }

    /// The answer: JSON, never to be cached.
    pub(super) fn response(&self) -> Response<Body> {
        #[derive(Serialize)]
        struct ErrorBody {
            error: &'static str,
            message: String,
        }
        let mut response = json(&ErrorBody {
            error: self.name(),
            message: self.to_string(),
        });
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, CACHE_NEVER);
        match self {
            Self::HttpMethod => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            }
            Self::HttpMethodPost => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
            }
            Self::Busy | Self::Unavailable | Self::Unresolved(_) | Self::HostKeysUnknown(_) => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            Self::TooManyTries | Self::OwnTooSoon(..) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            }
            // A browser would ask its user.
            Self::Password(_) | Self::Unauthenticated(_) => {
                let schemes = HeaderValue::from_static("Bearer, Basic realm=\"firekeep\"");
                headers.insert(header::WWW_AUTHENTICATE, schemes);
            }
            Self::Range(size) => {
                let size = HeaderValue::try_from(format!("bytes */{size}")).expect("digits");
                headers.insert(header::CONTENT_RANGE, size);
            }
            // What is left of the request must not be taken for the next one.
            Self::Body | Self::Input(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// A JSON answer with status 200.
pub(super) fn json(value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("values made of texts and numbers serialize");
    with_type(
        Body::whole(bytes),
        HeaderValue::from_static("application/json; charset=utf-8"),
    )
}

/// A plain-text answer.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = with_type(
        Body::whole(text),
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    *response.status_mut() = status;
    response
}

/// An answer with status 200 and this media type.
pub(super) fn with_type(body: Body, media_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

/// The strong validator of an object that is named by its hash.
pub(super) fn etag(cid: &crate::types::Cid) -> HeaderValue {
    etag_text(&cid.to_string())
}

/// The same, of a text of base32, digits and dots.
pub(super) fn etag_text(text: &str) -> HeaderValue {
    HeaderValue::try_from(format!("\"{text}\"")).expect("base32, digits and dots")
}

/// Whether the caller has this version already (RFC 9110 §13.1.2, weak comparison).
pub(super) fn not_modified(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let mut tags = request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    // A gzipped answer is the same version.
    let plain = |tag: &str| super::coding::uncoded(tag.strip_prefix("W/").unwrap_or(tag));
    tags.any(|tag| tag == "*" || plain(tag).as_bytes() == etag.as_bytes())
}

/// The answer to a caller that has this version already.
pub(super) fn unchanged(etag: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::whole(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(header::ETAG, etag);
    response
}

/// The answer to a preflight: any header that is asked for may be sent. `*` would not cover `Authorization`,
/// so the request's own list is given back.
pub(super) fn preflight(request: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, HEAD, POST, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    headers.insert(
        header::VARY,
        HeaderValue::from_static("Access-Control-Request-Headers"),
    );
    if let Some(wanted) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        && is_header_list(wanted.as_bytes())
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}

fn is_header_list(value: &[u8]) -> bool {
    value.len() <= PREFLIGHT_HEADERS_BYTES_MAX
        && value
            .iter()
            .all(|&b| b.is_ascii_alphanumeric() || b"-_, ".contains(&b))
}

/// Marks an answer that no other origin's script may read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Private;

/// Puts on every answer of the public listener what all of them carry, and takes the body from the answer to a
/// HEAD.
pub(super) fn finish(mut response: Response<Body>, head: bool) -> Response<Body> {
    let failed = response.status().is_client_error() || response.status().is_server_error();
    let is_private = response.extensions().get::<Private>().is_some();
    let headers = response.headers_mut();
    let mut default = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    default(
        header::CACHE_CONTROL,
        if failed { CACHE_NEVER } else { CACHE_REVALIDATE },
    );
    default(
        header::VARY,
        HeaderValue::from_static("Authorization, Accept-Encoding"),
    );
    default(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    default(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if !is_private {
        default(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        default(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    if head {
        response = without_body(response);
    }
    response
}

/// The answer to a HEAD: the length without the bytes.
pub(super) fn without_body(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact()
        && !matches!(parts.status, StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT)
    {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(parts, Body::absent(None))
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
