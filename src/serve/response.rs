#![allow(clippy::disallowed_methods, reason = "shell: streams bodies")]
//! Answers: bodies, errors and the headers that every answer carries.
//!
//! A streamed body ends well only when its producer says so (`Piece::End`). If the producer fails, or just
//! goes away, the connection is cut, so no caller can take half of a repository for all of it.
//!
//! Sources: <https://atproto.com/specs/xrpc>; the headers of `getBlob` are those of the reference PDS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::params::ParamError;
use crate::metrics::Metrics;
use crate::metrics::labels::Endpoint;
use crate::types::Did;

/// Cache rule of an answer that holds while the account's state does: ask again each time.
pub(super) const CACHE_REVALIDATE: HeaderValue = HeaderValue::from_static("private, no-cache");
/// Cache rule of errors and of what changes by the second.
pub(super) const CACHE_NEVER: HeaderValue = HeaderValue::from_static("private, no-store");
/// Headers that a script of another origin may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Content-Length, Content-Disposition, ETag, Retry-After, RateLimit-Limit, RateLimit-Remaining, \
     RateLimit-Reset, RateLimit-Policy",
);
/// Longest list of headers in a preflight that is given back.
const PREFLIGHT_HEADERS_BYTES_MAX: usize = 1024;

/// A part of a streamed body.
pub(super) enum Piece {
    /// Some bytes, not empty.
    Data(Bytes),
    /// All bytes were sent.
    End,
    /// The rest cannot be sent.
    Cut(io::Error),
}

/// The body of an answer.
pub struct Body {
    source: Source,
    tally: Option<Tally>,
}

enum Source {
    Whole(Bytes),
    Pieces {
        pieces: mpsc::Receiver<Piece>,
        length: u64,
    },
    Pulled {
        chunks: BoxStream<'static, io::Result<Bytes>>,
        length: u64,
    },
    /// No bytes; the length that they would have, if it is known. For HEAD.
    Absent(Option<u64>),
    Ended,
}

/// Counts the bytes and the time of one answer, and reports when the body is dropped.
struct Tally {
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    started: Instant,
    bytes: u64,
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.metrics
            .http_duration
            .of(self.endpoint)
            .observe(self.started.elapsed().as_secs_f64());
        self.metrics
            .http_response_bytes
            .of(self.endpoint)
            .inc_by(self.bytes);
    }
}

impl Body {
    /// A body that is there already.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self {
            source: Source::Whole(bytes.into()),
            tally: None,
        }
    }

    /// A body of this length that a producer sends.
    pub(super) fn pieces(pieces: mpsc::Receiver<Piece>, length: u64) -> Self {
        Self {
            source: Source::Pieces { pieces, length },
            tally: None,
        }
    }

    /// A body of this length that is pulled out of a stream.
    pub(super) fn pulled(chunks: BoxStream<'static, io::Result<Bytes>>, length: u64) -> Self {
        Self {
            source: Source::Pulled { chunks, length },
            tally: None,
        }
    }

    /// No body, in the answer to a HEAD; the length that it would have, if it is known.
    pub(super) fn absent(length: Option<u64>) -> Self {
        Self {
            source: Source::Absent(length),
            tally: None,
        }
    }

    /// Reports this body's bytes and time to the metrics when it is done or dropped.
    pub(super) fn tallied(mut self, metrics: &Arc<Metrics>, endpoint: Endpoint, started: Instant) -> Self {
        let metrics = Arc::clone(metrics);
        self.tally = Some(Tally {
            metrics,
            endpoint,
            started,
            bytes: 0,
        });
        self
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let next = match &mut self.source {
            Source::Whole(bytes) => Some(std::mem::take(bytes))
                .filter(|bytes| !bytes.is_empty())
                .map(Ok),
            Source::Pieces { pieces, .. } => match ready!(pieces.poll_recv(cx)) {
                Some(Piece::Data(bytes)) => Some(Ok(bytes)),
                Some(Piece::End) => None,
                Some(Piece::Cut(error)) => Some(Err(error)),
                None => Some(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "producer stopped",
                ))),
            },
            Source::Pulled { chunks, .. } => ready!(chunks.poll_next_unpin(cx)),
            Source::Absent(_) | Source::Ended => None,
        };
        match (&next, &mut self.source) {
            (Some(Ok(bytes)), Source::Pieces { length, .. } | Source::Pulled { length, .. }) => {
                *length = length.saturating_sub(bytes.len() as u64);
            }
            _ => self.source = Source::Ended,
        }
        Poll::Ready(next)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = ready!(self.poll_data(cx));
        if let (Some(Ok(bytes)), Some(tally)) = (&next, &mut self.tally) {
            tally.bytes += bytes.len() as u64;
        }
        Poll::Ready(next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        // A stream is over only once its end was read, even if every byte of its length was.
        match &self.source {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Pieces { .. } | Source::Pulled { .. } => false,
            Source::Absent(_) | Source::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Pieces { length, .. } | Source::Pulled { length, .. } => SizeHint::with_exact(*length),
            Source::Absent(length) => length.map_or_else(SizeHint::default, SizeHint::with_exact),
            Source::Ended => SizeHint::with_exact(0),
        }
    }
}

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
            Self::HttpMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::MethodNotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Busy | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The name that clients compare.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Params(_) | Self::Path | Self::HttpMethod | Self::Body | Self::UriTooLong => {
                "InvalidRequest"
            }
            Self::RepoNotFound(_) => "RepoNotFound",
            Self::RepoTakendown(_) => "RepoTakendown",
            Self::RepoSuspended(_) => "RepoSuspended",
            Self::RepoDeactivated(_) => "RepoDeactivated",
            Self::BlobNotFound => "BlobNotFound",
            Self::MethodNotImplemented => "MethodNotImplemented",
            Self::Busy | Self::Unavailable => "ServiceUnavailable",
            Self::Internal => "InternalServerError",
        }
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
            Self::Busy | Self::Unavailable => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            // What is left of the request must not be taken for the next one.
            Self::Body => {
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
    HeaderValue::try_from(format!("\"{cid}\"")).expect("a CID is base32")
}

/// Whether the caller has this version already (RFC 9110 §13.1.2, weak comparison).
pub(super) fn not_modified(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let mut tags = request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes())
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

/// Puts on every answer of the public listener what all of them carry, and takes the body from the answer to a
/// HEAD.
pub(super) fn finish(mut response: Response<Body>, head: bool) -> Response<Body> {
    let failed = response.status().is_client_error() || response.status().is_server_error();
    let headers = response.headers_mut();
    let mut default = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    default(
        header::CACHE_CONTROL,
        if failed { CACHE_NEVER } else { CACHE_REVALIDATE },
    );
    default(header::VARY, HeaderValue::from_static("Authorization"));
    default(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    default(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    default(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    default(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
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
