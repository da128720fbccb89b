//! The private listener: metrics for Prometheus, and health for whoever starts and stops the daemon.
//!
//! Nothing here changes anything, and no other origin's script may read it.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::health::Health;
use super::listener::Answer;
use super::response::{self, Body};
use crate::metrics::{EXPOSITION_TYPE, Metrics};

/// The private listener's answers.
pub(super) struct Admin {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
}

impl Answer for Admin {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let head = *request.method() == Method::HEAD;
        let mut response = if head || *request.method() == Method::GET {
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
