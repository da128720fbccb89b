#![allow(clippy::disallowed_methods, reason = "shell: waits for requests")]
//! The private listener: metrics for Prometheus, health for whoever starts and stops the daemon, and the
//! commands of `firekeep` itself.
//!
//! What changes something is a POST with [`CONTROL_HEADER`], which no web page can send to another origin, to a
//! host that is an address or `localhost`, which keeps out names that were rebound to this machine. No other
//! origin's script may read anything.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::health::Health;
use super::listener::Answer;
use super::response::{self, Body};
use crate::metrics::{EXPOSITION_TYPE, Metrics};

/// The header that a command carries; its value does not matter.
pub const CONTROL_HEADER: &str = "x-firekeep-control";

/// The future of a command.
pub type Controlled<'a> = Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send + 'a>>;

/// What the private listener can ask of the daemon.
pub trait Control: Send + Sync + 'static {
    /// Answers a question by its name, the last part of the path, with the query's values. `None`: there is no
    /// such question.
    fn ask<'a>(&'a self, name: &str, query: BTreeMap<String, String>) -> Option<Controlled<'a>>;

    /// Does something by its name. `None`: there is no such thing.
    fn command<'a>(&'a self, name: &str, query: BTreeMap<String, String>) -> Option<Controlled<'a>>;
}

/// The private listener's answers.
pub(super) struct Admin {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) control: Arc<dyn Control>,
}

impl Answer for Admin {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let head = *request.method() == Method::HEAD;
        let mut response = if request.uri().path().starts_with("/control/") {
            self.command(&request).await
        } else if head || *request.method() == Method::GET {
            self.page(request.uri().path())
        } else {
            let mut refused = response::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            refused
        };
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, response::CACHE_NEVER);
        let nosniff = HeaderValue::from_static("nosniff");
        response
            .headers_mut()
            .insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        if head {
            response::without_body(response)
        } else {
            response
        }
    }

    fn refusal(&self) -> Response<Body> {
        response::text(StatusCode::SERVICE_UNAVAILABLE, "too many connections\n")
    }
}

impl Admin {
    async fn command(&self, request: &Request<Incoming>) -> Response<Body> {
        let fetched_by_a_page = request.headers().contains_key(header::ORIGIN);
        if fetched_by_a_page || !request.headers().contains_key(CONTROL_HEADER) || !host_is_plain(request) {
            return response::text(StatusCode::FORBIDDEN, "commands come from firekeep itself\n");
        }
        let name = request.uri().path().strip_prefix("/control/").unwrap_or_default();
        let query = query_values(request.uri().query().unwrap_or_default());
        let called = match *request.method() {
            Method::GET => self.control.ask(name, query),
            Method::POST => self.control.command(name, query),
            _ => None,
        };
        let Some(called) = called else {
            return response::text(StatusCode::NOT_FOUND, "no such command\n");
        };
        let result = called.await;
        let (status, body) = match result {
            Ok(value) => (StatusCode::OK, value),
            Err(message) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                serde_json::json!({ "error": message }),
            ),
        };
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        let mut response = response::with_type(Body::whole(body.to_string().into_bytes()), json);
        *response.status_mut() = status;
        response
    }

    fn page(&self, path: &str) -> Response<Body> {
        match path {
            "/metrics" => response::with_type(
                Body::whole(self.metrics.exposition()),
                HeaderValue::from_static(EXPOSITION_TYPE),
            ),
            // That this is answered is the whole message.
            "/livez" => response::text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.health.trouble() {
                None => response::text(StatusCode::OK, "ok\n"),
                Some(why) => response::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            _ => response::text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"),
        }
    }
}

/// The values of a query; of a name that comes twice, the last.
fn query_values(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Whether the request was made to an address or to `localhost`, not to a name that anybody could point here.
fn host_is_plain(request: &Request<Incoming>) -> bool {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    is_plain(host)
}

pub(super) fn is_plain(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<std::net::IpAddr>().is_ok()
}
