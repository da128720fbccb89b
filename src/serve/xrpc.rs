//! The XRPC methods of `com.atproto.sync` that a backup can answer, the health check, and two pages.
//!
//! Reads are open to all and `Authorization` is not looked at: tools send their PDS's token along. Names and
//! texts of errors are those that clients compare. A caller's identifiers are parsed before anything is
//! looked up, and nothing is ever fetched upstream for a caller.
//!
//! Sources: <https://atproto.com/specs/xrpc>, the lexicons `com.atproto.sync.*`.

#![allow(clippy::disallowed_methods, reason = "shell: blocking reads and timers")]

use std::sync::Arc;

use atrium_api::com::atproto::sync;
use atrium_api::types::string as lexicon;
use hyper::body::{Body as _, Incoming};
use hyper::header;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::blob::{self, BlobArchive};
use super::export;
use super::health::Health;
use super::limits::ServeLimits;
use super::listener::Answer;
use super::lookup::{self, Failure, Listed};
use super::params::Params;
use super::response::{self, Body, XrpcError};
use crate::metrics::Metrics;
use crate::metrics::labels::{Endpoint, HttpMethod};
use crate::mirror::Store;
use crate::mirror::reader::Mirror;
use crate::types::{Cid, Did, Nsid, Rev};

/// What crawlers are told: there is nothing to index.
const ROBOTS: &str = "User-agent: *\nDisallow: /\n";

/// The public listener's answers.
pub(super) struct Xrpc {
    pub(super) store: Arc<dyn Store>,
    pub(super) blobs: Arc<dyn BlobArchive>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) limits: Arc<ServeLimits>,
    pub(super) lookups: Arc<Semaphore>,
    pub(super) exports: Arc<Semaphore>,
    pub(super) blob_streams: Arc<Semaphore>,
}

impl Answer for Xrpc {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let endpoint = endpoint(request.uri().path());
        let answered = self
            .route(endpoint, &request)
            .await
            .unwrap_or_else(|error| error.response());
        let response = response::finish(answered, request.method() == Method::HEAD);
        let method = match *request.method() {
            Method::GET => HttpMethod::Get,
            Method::HEAD => HttpMethod::Head,
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

fn endpoint(path: &str) -> Endpoint {
    let Some(method) = path.strip_prefix("/xrpc/") else {
        return match path {
            "/" | "/robots.txt" => Endpoint::Page,
            _ => Endpoint::Other,
        };
    };
    match method {
        sync::get_repo::NSID => Endpoint::GetRepo,
        sync::get_blob::NSID => Endpoint::GetBlob,
        sync::get_latest_commit::NSID => Endpoint::GetLatestCommit,
        sync::get_repo_status::NSID => Endpoint::GetRepoStatus,
        sync::list_repos::NSID => Endpoint::ListRepos,
        sync::list_blobs::NSID => Endpoint::ListBlobs,
        "_health" => Endpoint::Health,
        _ => Endpoint::UnknownMethod,
    }
}

impl Xrpc {
    async fn route(
        &self,
        endpoint: Endpoint,
        request: &Request<Incoming>,
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
            Endpoint::Health => Ok(self.health().await),
            Endpoint::Page => Ok(page(uri.path())),
            Endpoint::UnknownMethod | Endpoint::Other => {
                Ok(response::text(StatusCode::NOT_FOUND, "Not found\n"))
            }
        }
    }

    async fn get_latest_commit(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let did = params.did()?;
        let head = self
            .look_up(move |mirror| Ok(lookup::served(mirror, &did)?.head))
            .await?;
        let (cid, rev) = (lexicon_cid(&head.commit.to_string()), lexicon_rev(head.rev));
        Ok(response::json(&sync::get_latest_commit::OutputData { cid, rev }))
    }

    async fn get_repo_status(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let did = params.did()?;
        let wanted = did.clone();
        let (row, head) = self.look_up(move |mirror| lookup::known(mirror, &wanted)).await?;
        let active = row.upstream.is_active();
        Ok(response::json(&sync::get_repo_status::OutputData {
            active,
            did: lexicon_did(&did),
            rev: active.then(|| lexicon_rev(head.rev)),
            status: row.upstream.wire_name().map(str::to_owned),
        }))
    }

    async fn list_repos(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (limit, cursor) = (params.limit()?, params.cursor::<Did>()?);
        let (page, more) = self
            .look_up(move |mirror| lookup::accounts_page(mirror, cursor, limit))
            .await?;
        let cursor = page.last().filter(|_| more).map(|last| last.did.to_string());
        let repo = |listed: &Listed| sync::list_repos::RepoData {
            active: Some(listed.status.is_active()),
            did: lexicon_did(&listed.did),
            head: lexicon_cid(&listed.head.commit.to_string()),
            rev: lexicon_rev(listed.head.rev),
            status: listed.status.wire_name().map(str::to_owned),
        };
        let repos = page.iter().map(|listed| repo(listed).into()).collect();
        Ok(response::json(&sync::list_repos::OutputData { cursor, repos }))
    }

    async fn list_blobs(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (did, since) = (params.did()?, params.since()?);
        let (limit, cursor) = (params.limit()?, params.cursor::<Cid>()?);
        let (page, more) = self
            .look_up(move |mirror| {
                let account = lookup::served(mirror, &did)?;
                lookup::blobs_page(mirror, account.account_number, since, cursor, limit)
            })
            .await?;
        let cursor = page.last().filter(|_| more).cloned();
        let cids = page.iter().map(|text| lexicon_cid(text)).collect();
        Ok(response::json(&sync::list_blobs::OutputData { cids, cursor }))
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

/// The pages that are not XRPC.
fn page(path: &str) -> Response<Body> {
    if path == "/robots.txt" {
        return response::text(StatusCode::OK, ROBOTS);
    }
    response::text(
        StatusCode::OK,
        format!(
            "Firekeep {}\n\n\
             This is a backup of AT Protocol repositories and their blobs. It follows its PDSes and gives back\n\
             what they published: records and blobs, not passwords, preferences or messages.\n\n\
             \x20 /xrpc/com.atproto.sync.listRepos\n\
             \x20 /xrpc/com.atproto.sync.getRepoStatus?did=…\n\
             \x20 /xrpc/com.atproto.sync.getLatestCommit?did=…\n\
             \x20 /xrpc/com.atproto.sync.getRepo?did=…\n\
             \x20 /xrpc/com.atproto.sync.listBlobs?did=…\n\
             \x20 /xrpc/com.atproto.sync.getBlob?did=…&cid=…\n\
             \x20 /xrpc/_health\n\n\
             https://atproto.com\n",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

/// Our types are at least as strict as the lexicon's, so that none of these can fail.
fn lexicon_did(did: &Did) -> lexicon::Did {
    lexicon::Did::new(did.to_string()).expect("a DID of ours is one of the lexicon's")
}

fn lexicon_cid(text: &str) -> lexicon::Cid {
    text.parse().expect("a CID of ours is one of the lexicon's")
}

fn lexicon_rev(rev: Rev) -> lexicon::Tid {
    lexicon::Tid::new(rev.to_string()).expect("a rev of ours is a TID of the lexicon's")
}

#[cfg(test)]
#[path = "xrpc_tests.rs"]
mod tests;
