#![allow(clippy::disallowed_methods, reason = "shell: the network, files")]
//! Requests that carry something: headers, JSON, a file.
//!
//! They are sent once: no redirect is followed, for what they carry is meant for one host alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use hyper::header::{self, HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::{Answer, SHOWN_CHARS_MAX, Target, Upstream};
use crate::http::request::{FetchError, Limits};
use crate::http::text::printable;

/// Bytes of a file that are read at once.
const PIECE_BYTES: u64 = 1 << 16;

/// The body of a request.
pub type Payload = UnsyncBoxBody<Bytes, io::Error>;

/// What a request carries.
#[derive(Debug)]
pub struct Sent {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Payload,
}

impl Sent {
    /// Nothing.
    #[must_use]
    pub fn bare(method: Method) -> Self {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        Self {
            method,
            headers: HeaderMap::new(),
            body,
        }
    }

    /// JSON, by POST.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        let body = Full::new(Bytes::from(value.to_string()));
        let mut sent = Self::bare(Method::POST);
        sent.body = body.map_err(|never| match never {}).boxed_unsync();
        let json = HeaderValue::from_static("application/json");
        sent.headers.insert(header::CONTENT_TYPE, json);
        sent
    }

    /// The first bytes of a file, by POST. Where the file stands does not matter, and stays.
    ///
    /// # Errors
    /// When the file cannot be shared.
    pub fn file(file: &File, size: u64, content_type: &str) -> io::Result<Self> {
        let mut sent = Self::bare(Method::POST);
        let pieces = stream::try_unfold((file.try_clone()?, 0u64), move |(file, at)| async move {
            let length = PIECE_BYTES.min(size - at) as usize;
            if length == 0 {
                return Ok(None);
            }
            let mut piece = vec![0; length];
            file.read_exact_at(&mut piece, at)?;
            Ok(Some((
                Frame::data(Bytes::from(piece)),
                (file, at + length as u64),
            )))
        });
        sent.body = StreamBody::new(pieces).boxed_unsync();
        let plain = HeaderValue::from_static("application/octet-stream");
        let content_type = HeaderValue::from_str(content_type).unwrap_or(plain);
        sent.headers.insert(header::CONTENT_TYPE, content_type);
        sent.headers
            .insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        Ok(sent)
    }

    /// With a user's name and password, as an admin has them.
    #[must_use]
    pub fn basic(mut self, user: &str, password: &str) -> Self {
        let both = zeroize::Zeroizing::new(format!("{user}:{password}"));
        let text = zeroize::Zeroizing::new(data_encoding::BASE64.encode(both.as_bytes()));
        if let Ok(mut value) = HeaderValue::from_str(&format!("Basic {}", *text)) {
            value.set_sensitive(true);
            self.headers.insert(header::AUTHORIZATION, value);
        }
        self
    }

    /// With a bearer token; one that no header can hold is left out, and refused by the host then.
    #[must_use]
    pub fn bearer(mut self, token: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}")) {
            value.set_sensitive(true);
            self.headers.insert(header::AUTHORIZATION, value);
        }
        self
    }
}

impl Upstream {
    /// Sends a request once.
    ///
    /// # Errors
    /// As [`FetchError`] lists them; any status but 2xx is one.
    pub async fn send(&self, url: &str, sent: Sent, limits: &Limits) -> Result<Answer, FetchError> {
        let deadline = Instant::now() + limits.total;
        let target = Target::parse(url)?;
        let answer = self.ask_once(sent, &target, limits, deadline).await?;
        if (300..400).contains(&answer.status) {
            let location = answer.headers.get(header::LOCATION);
            let location = location.and_then(|value| value.to_str().ok()).unwrap_or_default();
            return Err(FetchError::Redirected {
                host: target.authority,
                location: printable(location, SHOWN_CHARS_MAX),
            });
        }
        self.judge(answer).await
    }
}
