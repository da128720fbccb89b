#![allow(clippy::disallowed_methods, reason = "shell: the network and the clock")]
//! The HTTP client: GET, with a limit on everything.
//!
//! Each request says how long and how much ([`Limits`]); each failure has its own [`FetchError`], which
//! knows whether trying again makes sense. Redirects are refused unless asked for, and each hop obeys
//! the same rules as the first. Bodies arrive as a stream; nothing here holds a whole repository.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;

use super::address::AddressPolicy;
use super::advice::{self, XrpcError};
use super::connect::{self, Connector, TlsSetupError, authority, default_port};
use super::pace::{self, Pacing};
use super::request::{FetchError, Limits, Stage};
use super::text::printable;

mod errors;
mod send;

use errors::client_error;
pub use send::{Payload, Sent};

/// Longest JSON error body that is read.
const ERROR_BODY_BYTES_MAX: u64 = 16 * 1024;
/// Time for reading an error body.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept per host, and for how long.
const IDLE_CONNECTIONS_MAX: usize = 4;
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Characters of a URL or a foreign error that errors show.
const SHOWN_CHARS_MAX: usize = 200;

/// The client. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    client: Client<HttpsConnector<Connector>, Payload>,
    connector: Connector,
    tls: Arc<rustls::ClientConfig>,
    clock: Clock,
    pacing: Pacing,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("connector", &self.0.connector)
            .finish_non_exhaustive()
    }
}

/// A good answer (2xx), its body still to be read.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
}

impl Upstream {
    /// A client that contacts whom the policy allows.
    ///
    /// # Errors
    /// When the system has no root certificates.
    pub fn new(policy: AddressPolicy, clock: Clock) -> Result<Self, TlsSetupError> {
        Self::with_pacing(Connector::new(policy), clock, Pacing::default())
    }

    /// A client with its own way to connect, which keeps to these paces.
    ///
    /// # Errors
    /// When the system has no root certificates.
    pub fn with_pacing(connector: Connector, clock: Clock, pacing: Pacing) -> Result<Self, TlsSetupError> {
        let tls = connect::tls_config(connector.policy().dev_mode())?;
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector.clone());
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(https);
        Ok(Self(Arc::new(Inner {
            client,
            connector,
            tls: Arc::new(tls),
            clock,
            pacing,
        })))
    }

    /// The way it connects, for other protocols under the same rules.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// Its TLS settings, for other protocols.
    #[must_use]
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.0.tls)
    }

    /// Gets and parses JSON, within [`Limits::json`].
    ///
    /// # Errors
    /// As [`FetchError`] lists them.
    pub async fn get_json<T: DeserializeOwned>(&self, url: &str, bytes_max: u64) -> Result<T, FetchError> {
        self.get_json_within(url, &Limits::json(bytes_max)).await
    }

    /// Gets and parses JSON within these limits.
    ///
    /// # Errors
    /// As [`FetchError`] lists them.
    pub async fn get_json_within<T: DeserializeOwned>(
        &self,
        url: &str,
        limits: &Limits,
    ) -> Result<T, FetchError> {
        let answer = self.get(url, limits).await?;
        let host = answer.body.host.clone();
        let bytes = answer.body.collect().await?;
        serde_json::from_slice(&bytes).map_err(|error| FetchError::Json {
            host,
            reason: printable(&error.to_string(), SHOWN_CHARS_MAX),
        })
    }

    /// Gets a body to be read piece by piece.
    ///
    /// # Errors
    /// As [`FetchError`] lists them; any status but 2xx is one.
    pub async fn get(&self, url: &str, limits: &Limits) -> Result<Answer, FetchError> {
        self.ask(Method::GET, url, limits).await
    }

    /// Asks for the head of an answer alone. A refusal has no words then.
    ///
    /// # Errors
    /// As [`FetchError`] lists them; any status but 2xx is one.
    pub async fn head(&self, url: &str, limits: &Limits) -> Result<(), FetchError> {
        self.ask(Method::HEAD, url, limits).await.map(drop)
    }

    async fn ask(&self, method: Method, url: &str, limits: &Limits) -> Result<Answer, FetchError> {
        let deadline = Instant::now() + limits.total;
        let mut target = Target::parse(url)?;
        let mut redirects_left = limits.redirects_max;
        loop {
            let sent = Sent::bare(method.clone());
            let answer = self.ask_once(sent, &target, limits, deadline).await?;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return self.judge(answer).await;
            }
            let location = answer
                .headers
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            if redirects_left == 0 {
                return Err(FetchError::Redirected {
                    host: target.authority,
                    location: printable(location, SHOWN_CHARS_MAX),
                });
            }
            redirects_left -= 1;
            target = target.redirected(location)?;
        }
    }

    async fn ask_once(
        &self,
        sent: Sent,
        target: &Target,
        limits: &Limits,
        deadline: Instant,
    ) -> Result<Answer, FetchError> {
        // Connections are pooled, so the connector alone would not see every request.
        self.0
            .connector
            .policy()
            .check_host(&target.authority, target.https)
            .map_err(FetchError::Refused)?;
        let inner = &self.0;
        let turn = inner.pacing.turn(&target.authority, inner.clock.now());
        let wait = turn.map_err(|wait| FetchError::Paced {
            host: target.authority.clone(),
            wait,
        })?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let mut request = Request::builder()
            .method(sent.method)
            .uri(target.uri.clone())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, HeaderValue::from_static("*/*"))
            .body(sent.body)
            .expect("a parsed URI and fixed headers make a request");
        request.headers_mut().extend(sent.headers);
        // Each hop of a redirect comes by here: the key goes to its own host alone, and never in the clear.
        let may_carry = target.https || inner.connector.policy().dev_mode();
        if let Some(key) = inner.pacing.bypass_key(&target.authority).filter(|_| may_carry) {
            let mut value = HeaderValue::from_str(key.secret()).expect("visible ASCII");
            value.set_sensitive(true);
            request.headers_mut().insert(pace::BYPASS_HEADER, value);
        }
        let limit = deadline.min(Instant::now() + limits.first_byte);
        let response = timeout_at(limit, self.0.client.request(request))
            .await
            .map_err(|_| FetchError::Timeout {
                host: target.authority.clone(),
                stage: Stage::FirstByte,
            })?
            .map_err(|error| client_error(&target.authority, &error))?;
        let (parts, incoming) = response.into_parts();
        let said = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let (status, now) = (parts.status.as_u16(), inner.clock.now());
        inner.pacing.heard(&target.authority, status, said, now);
        let body = Body {
            incoming,
            host: target.authority.clone(),
            limits: *limits,
            deadline,
            bytes_read: 0,
            window: Window::default(),
        };
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    /// Turns every answer but a good one into an error.
    async fn judge(&self, answer: Answer) -> Result<Answer, FetchError> {
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        if (200..300).contains(&answer.status) {
            if let Some(encoding) = header("content-encoding").filter(|e| !e.eq_ignore_ascii_case("identity"))
            {
                return Err(FetchError::Encoding {
                    encoding: printable(encoding, SHOWN_CHARS_MAX),
                    host: answer.body.host,
                });
            }
            let declared = header("content-length").and_then(|length| length.parse::<u64>().ok());
            if declared.is_some_and(|length| length > answer.body.limits.bytes_max) {
                return Err(answer.body.too_large());
            }
            return Ok(answer);
        }
        let now = self.0.clock.now();
        let retry_after = header("retry-after").and_then(|value| advice::retry_after(value, now));
        let ratelimit_reset =
            header("ratelimit-reset").and_then(|value| advice::rate_limit_reset(value, now));
        let host = answer.body.host.clone();
        let xrpc = XrpcError::parse(&answer.body.into_error_body().await);
        Err(FetchError::Status {
            host,
            status: answer.status,
            error: xrpc.error,
            message: xrpc.message,
            retry_after,
            ratelimit_reset,
        })
    }
}

/// Who we are.
pub const USER_AGENT: &str = concat!("firekeep/", env!("CARGO_PKG_VERSION"));

/// A URL that may be asked, if the policy agrees.
#[derive(Debug)]
struct Target {
    uri: Uri,
    https: bool,
    /// Host and, where it is not the scheme's own, port.
    authority: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, FetchError> {
        let bad = |why| FetchError::BadUrl {
            url: printable(url, SHOWN_CHARS_MAX),
            why,
        };
        let uri: Uri = url.parse().map_err(|_| bad("malformed"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("must begin with https:// or http://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(bad("no host"))?;
        if uri.authority().is_some_and(|part| part.as_str().contains('@')) {
            return Err(bad("must not hold a user"));
        }
        let port = uri.port_u16().unwrap_or(default_port(https));
        let authority = authority(&host.to_ascii_lowercase(), port, https);
        Ok(Self {
            uri,
            https,
            authority,
        })
    }

    /// Where a `Location` leads from here: another URL, or a path on the same host.
    fn redirected(&self, location: &str) -> Result<Self, FetchError> {
        let bad = |why| FetchError::BadUrl {
            url: printable(location, SHOWN_CHARS_MAX),
            why,
        };
        let next = if location.starts_with('/') && !location.starts_with("//") {
            let scheme = if self.https { "https" } else { "http" };
            Self::parse(&format!("{scheme}://{}{location}", self.authority))?
        } else {
            Self::parse(location)?
        };
        if self.https && !next.https {
            return Err(bad("redirect from https to http"));
        }
        Ok(next)
    }
}

/// A body on its way.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    host: String,
    limits: Limits,
    deadline: Instant,
    bytes_read: u64,
    window: Window,
}

/// How much came in how much waiting.
#[derive(Debug, Default)]
struct Window {
    waited: Duration,
    bytes: u64,
}

impl Body {
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// When a limit is reached or the connection breaks; the body is of no use then.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let began = Instant::now();
            let limit = self.deadline.min(began + self.limits.idle);
            let frame = timeout_at(limit, self.incoming.frame()).await;
            self.window.waited += began.elapsed();
            let frame = match frame {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    let reason = error
                        .source()
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    return Err(FetchError::Body {
                        host: self.host.clone(),
                        reason: printable(&reason, SHOWN_CHARS_MAX),
                    });
                }
                Err(_) => {
                    let stage = if limit == self.deadline {
                        Stage::Total
                    } else {
                        Stage::Idle
                    };
                    return Err(FetchError::Timeout {
                        host: self.host.clone(),
                        stage,
                    });
                }
            };
            // Trailers are no part of the body.
            let Ok(chunk) = frame.into_data() else { continue };
            self.count(chunk.len() as u64)?;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), FetchError> {
        self.bytes_read += bytes;
        if self.bytes_read > self.limits.bytes_max {
            return Err(self.too_large());
        }
        self.window.bytes += bytes;
        let least = self.limits.bytes_per_second_min;
        if self.window.waited >= self.limits.throughput_window {
            if u128::from(self.window.bytes) * 1000 < u128::from(least) * self.window.waited.as_millis() {
                return Err(FetchError::TooSlow {
                    host: self.host.clone(),
                    bytes_per_second_min: least,
                });
            }
            self.window = Window::default();
        }
        Ok(())
    }

    fn too_large(&self) -> FetchError {
        FetchError::TooLarge {
            host: self.host.clone(),
            bytes_max: self.limits.bytes_max,
        }
    }

    /// Bytes read so far.
    #[must_use]
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Reads all of it into memory.
    ///
    /// # Errors
    /// As [`Body::chunk`].
    pub async fn collect(mut self) -> Result<Vec<u8>, FetchError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// The pieces as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, FetchError>> + Send {
        futures_util::stream::unfold(Some(self), |body| async {
            let mut body = body?;
            match body.chunk().await {
                Ok(None) => None,
                Ok(Some(chunk)) => Some((Ok(chunk), Some(body))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The beginning of an error's body; whatever came in a short while.
    async fn into_error_body(mut self) -> Vec<u8> {
        self.deadline = self.deadline.min(Instant::now() + ERROR_BODY_TIMEOUT);
        self.limits.bytes_max = ERROR_BODY_BYTES_MAX;
        self.collect().await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
