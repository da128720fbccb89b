//! The public listener: which method a request asks for, and what all methods share.
//!
//! Reads are open to all, and `Authorization` is looked at only where an account is hidden: tools send their PDS's
//! token along, and what does not count opens nothing and is no error. Names and texts of errors are those that
//! clients compare. A caller's identifiers are parsed before anything is
//! looked up, and nothing is ever fetched upstream for a caller.
//!
//! Source: <https://atproto.com/specs/xrpc>.

#![allow(clippy::disallowed_methods, reason = "shell: blocking reads and timers")]

use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::admin::Control;
use super::blob::{self, BlobArchive};
use super::coding;
use super::directory::Directory;
use super::export;
use super::health::Health;
use super::limits::ServeLimits;
use super::listener::Answer;
use super::lookup::Failure;
use super::methods::{self, Access};
use super::own::{Asked, History, SignUps};
use super::page::Branding;
use super::params::Params;
use super::response::{self, Body, XrpcError};
use super::who::{Gate, SIGHT};
use crate::metrics::Metrics;
use crate::metrics::labels::{Endpoint, HttpMethod, Label as _};
use crate::mirror::Store;
use crate::mirror::reader::Mirror;
use crate::types::Nsid;

/// Bytes of a procedure's input.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// The public listener's answers.
pub(super) struct Xrpc {
    pub(super) store: Arc<dyn Store>,
    pub(super) blobs: Arc<dyn BlobArchive>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) limits: Arc<ServeLimits>,
    /// The DID of this server.
    pub(super) did: String,
    pub(super) public_url: Option<String>,
    pub(super) directory: Arc<Directory>,
    pub(super) control: Arc<dyn Control>,
    pub(super) gate: Gate,
    pub(super) history: History,
    pub(super) sign_ups: SignUps,
    pub(super) branding: Branding,
    /// The address of this server: `public_url`, or one of this machine.
    pub(super) base_url: String,
    pub(super) lookups: Arc<Semaphore>,
    pub(super) exports: Arc<Semaphore>,
    pub(super) blob_streams: Arc<Semaphore>,
}

impl Answer for Xrpc {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let endpoint = methods::endpoint(request.uri().path());
        let answered = self
            .route(endpoint, &mut request)
            .await
            .unwrap_or_else(|error| error.response());
        let answered = coding::apply(request.headers(), answered);
        let response = response::finish(answered, request.method() == Method::HEAD);
        let method = match *request.method() {
            Method::GET => HttpMethod::Get,
            Method::HEAD => HttpMethod::Head,
            Method::POST => HttpMethod::Post,
            Method::OPTIONS => HttpMethod::Options,
            _ => HttpMethod::Other,
        };
        self.metrics
            .count_http_request(method, endpoint, response.status().as_u16());
        response.map(|body| body.tallied(&self.metrics, endpoint, started))
    }

    fn refusal(&self) -> Response<Body> {
        response::finish(XrpcError::Busy.response(), false)
    }
}

impl Xrpc {
    /// As [`Self::answer_to`]; where an account is hidden from the public and the caller may see it, as the caller
    /// sees it.
    async fn route(
        &self,
        endpoint: Endpoint,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, XrpcError> {
        let answered = self.answer_to(endpoint, request).await;
        let open = methods::of(endpoint).is_some_and(|method| method.access == Access::Open);
        let hides = match &answered {
            Ok(answer) => match endpoint {
                // Its errors are answers already.
                Endpoint::GetBlob => answer.status() == StatusCode::BAD_REQUEST,
                endpoint => endpoint == Endpoint::BackupGetAccountStatus,
            },
            Err(error) => error.hides(),
        };
        if !open || !hides || !self.claims_more(request.headers()) {
            return answered;
        }
        match self.who(request.headers(), endpoint.text(), false).await {
            Ok(who) => SIGHT.scope(who.sight(), self.answer_to(endpoint, request)).await,
            // What does not count opens nothing, and is no error: see the head of this file.
            Err(error) => {
                tracing::debug!(%error, "what a caller brought opens nothing");
                answered
            }
        }
    }

    async fn answer_to(
        &self,
        endpoint: Endpoint,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, XrpcError> {
        let uri = request.uri();
        if uri
            .path_and_query()
            .is_some_and(|whole| whole.as_str().len() > self.limits.uri_bytes_max)
        {
            return Err(XrpcError::UriTooLong);
        }
        if *request.method() == Method::OPTIONS {
            return Ok(response::preflight(request.headers()));
        }
        if endpoint == Endpoint::UnknownMethod {
            let name = uri.path().strip_prefix("/xrpc/").unwrap_or_default();
            return Err(name
                .parse::<Nsid>()
                .map_or(XrpcError::Path, |_| XrpcError::MethodNotImplemented));
        }
        if let Some(method) = methods::of(endpoint).filter(|method| method.is_own()) {
            return self.answer_own(method, request).await;
        }
        let head = *request.method() == Method::HEAD;
        if !head && *request.method() != Method::GET {
            return Err(XrpcError::HttpMethod);
        }
        if !request.body().is_end_stream() {
            return Err(XrpcError::Body);
        }
        let params = || Params::parse(uri.query().unwrap_or_default());
        match endpoint {
            Endpoint::GetRepo => export::get_repo(self, &params()?, request.headers(), head).await,
            Endpoint::GetBlob => Ok(blob::get_blob(self, params(), request.headers(), head).await),
            Endpoint::GetLatestCommit => self.get_latest_commit(&params()?).await,
            Endpoint::GetRepoStatus => self.get_repo_status(&params()?).await,
            Endpoint::ListRepos => self.list_repos(&params()?).await,
            Endpoint::ListBlobs => self.list_blobs(&params()?).await,
            Endpoint::GetRecordProof => export::get_record(self, &params()?, request.headers()).await,
            Endpoint::GetBlocks => export::get_blocks(self, &params()?, request.headers()).await,
            Endpoint::ListHosts => self.list_hosts(&params()?).await,
            Endpoint::GetHostStatus => self.get_host_status(&params()?).await,
            Endpoint::DescribeRepo => self.describe_repo(&params()?).await,
            Endpoint::GetRecord => self.get_record(&params()?).await,
            Endpoint::ListRecords => self.list_records(&params()?).await,
            Endpoint::ListMissingBlobs => self.list_missing_blobs(&params()?).await,
            Endpoint::DescribeServer => Ok(self.describe_server()),
            Endpoint::ResolveHandle => self.resolve_handle(&params()?).await,
            Endpoint::Health => Ok(self.health().await),
            Endpoint::Page => self.page(request).await,
            _ => Ok(response::text(StatusCode::NOT_FOUND, "Not found\n")),
        }
    }

    async fn answer_own(
        &self,
        method: &methods::Method,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, XrpcError> {
        let params = Params::parse(request.uri().query().unwrap_or_default())?;
        let input = if method.input.is_some() {
            if *request.method() != Method::POST {
                return Err(XrpcError::HttpMethodPost);
            }
            self.input(request).await?
        } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(XrpcError::HttpMethod);
        } else if !request.body().is_end_stream() {
            return Err(XrpcError::Body);
        } else {
            serde_json::Map::new()
        };
        let asked = Asked {
            endpoint: method.endpoint,
            params,
            input,
            headers: request.headers(),
            method: request.method(),
        };
        self.own(asked).await
    }

    /// The input of a procedure: a JSON object, or nothing.
    async fn input(
        &self,
        request: &mut Request<Incoming>,
    ) -> Result<serde_json::Map<String, serde_json::Value>, XrpcError> {
        let bad = |text: &str| XrpcError::Input(text.to_owned());
        if request.body().is_end_stream() {
            return Ok(serde_json::Map::new());
        }
        let media = request.headers().get(header::CONTENT_TYPE);
        let media = media.and_then(|media| media.to_str().ok()).unwrap_or_default();
        let is_json = media
            .split(';')
            .next()
            .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"));
        let body = Limited::new(request.body_mut(), INPUT_BYTES_MAX).collect();
        let body = tokio::time::timeout(self.limits.header_timeout, body).await;
        let body = body
            .map_err(|_| bad("The request body did not come in time"))?
            .map_err(|_| bad("The request body is larger than 16 KiB, or was cut off"))?
            .to_bytes();
        if body.is_empty() {
            return Ok(serde_json::Map::new());
        }
        if !is_json {
            return Err(bad("The request body must be application/json"));
        }
        serde_json::from_slice(&body).map_err(|_| bad("The request body must be a JSON object"))
    }

    /// As the PDS: the version, and an error when the stores cannot be read.
    async fn health(&self) -> Response<Body> {
        #[derive(Serialize)]
        struct HealthBody {
            version: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<&'static str>,
        }
        let readable = self
            .look_up(|mirror| Ok(mirror.number(crate::mirror::store::META_VERSION)?))
            .await;
        let error = self
            .health
            .trouble()
            .or(readable.err().map(|_| "the mirror cannot be read"));
        let mut answer = response::json(&HealthBody {
            version: env!("CARGO_PKG_VERSION"),
            error,
        });
        if error.is_some() {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        answer
            .headers_mut()
            .insert(header::CACHE_CONTROL, response::CACHE_NEVER);
        answer
    }

    /// Reads the mirror as it is at one moment, on a thread for blocking work. Few look-ups run at once, so that
    /// callers cannot take all such threads.
    pub(super) async fn look_up<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Mirror<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, XrpcError> {
        let place = self.place(&self.lookups).await?;
        let store = Arc::clone(&self.store);
        let looked_up = tokio::task::spawn_blocking(move || {
            let _place = place;
            read(&Mirror::new(&*store.view()))
        });
        match looked_up.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(Failure::Told(error))) => Err(error),
            Ok(Err(Failure::Store(error))) => {
                tracing::error!(%error, "the mirror cannot be read");
                Err(XrpcError::Internal)
            }
            Err(error) => {
                tracing::error!(%error, "a look-up failed");
                Err(XrpcError::Internal)
            }
        }
    }

    /// A place among few, or [`XrpcError::Busy`] after the time that a request may wait.
    pub(super) async fn place(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, XrpcError> {
        let place = Arc::clone(places).acquire_owned();
        match tokio::time::timeout(self.limits.queue_timeout, place).await {
            Ok(Ok(place)) => Ok(place),
            // The semaphores are never closed.
            Ok(Err(_)) | Err(_) => Err(XrpcError::Busy),
        }
    }
}

#[cfg(test)]
#[path = "xrpc_tests.rs"]
mod tests;
