#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! What this server says of itself: its DID, its methods, and who goes by a handle.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use super::access::{self, Peer};
use super::lookup;
use super::methods::METHODS;
use super::page;
use super::params::{AtIdentifier, Params};
use super::response::{self, Body, XrpcError};
use super::xrpc::Xrpc;

/// What crawlers are told: there is nothing to index.
const ROBOTS: &str = "User-agent: *\nDisallow: /\n";

/// The `did:web` of a base URL, such as `https://backup.example.com`.
pub(super) fn service_did(base_url: &str) -> String {
    let host = base_url.split_once("://").map_or(base_url, |(_, host)| host);
    format!("did:web:{}", host.trim_end_matches('/').replace(':', "%3A"))
}

impl Xrpc {
    /// A server where nobody can make an account.
    pub(super) fn describe_server(&self) -> Response<Body> {
        response::json(&json!({
            "did": self.did,
            "availableUserDomains": [],
            "inviteCodeRequired": true,
        }))
    }

    pub(super) async fn resolve_handle(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let handle = params.handle()?;
        let directory = Arc::clone(&self.directory);
        let did = self
            .look_up(move |mirror| {
                let did = directory.resolve(mirror, &handle)?;
                Ok(did.ok_or(XrpcError::HandleNotFound)?)
            })
            .await?;
        Ok(response::json(&json!({ "did": did.as_str() })))
    }

    /// The pages that are not XRPC.
    pub(super) async fn page(&self, request: &Request<Incoming>) -> Result<Response<Body>, XrpcError> {
        let path = request.uri().path();
        match path {
            "/robots.txt" => return Ok(response::text(StatusCode::OK, ROBOTS)),
            "/.well-known/did.json" => return Ok(self.did_document()),
            _ => {}
        }
        let peer = request.extensions().get::<Peer>().copied();
        let private = access::is_local(peer, request.headers(), self.public_url.is_some());
        let (status, html) = match account_of(path, request.uri().query()) {
            None if private => (StatusCode::OK, self.status_page().await),
            None => (StatusCode::OK, self.front_page()),
            Some(asked) => match self.account_page(&asked, private, request).await? {
                Some(html) => (StatusCode::OK, html),
                None => {
                    let what = "No account of that name is held and served here.";
                    (StatusCode::NOT_FOUND, page::not_here(&self.branding, what))
                }
            },
        };
        Ok(self.html(status, html, private))
    }

    fn html(&self, status: StatusCode, html: String, private: bool) -> Response<Body> {
        let mut answer = response::with_type(
            Body::whole(html.into_bytes()),
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        let policy = HeaderValue::try_from(self.branding.policy()).expect("checked texts and base64");
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::CACHE_CONTROL, response::CACHE_NEVER);
        if private {
            // No other origin's script reads it, whatever else this listener lets them read.
            let same = HeaderValue::from_static("same-origin");
            headers.insert("cross-origin-resource-policy", same.clone());
            headers.insert("cross-origin-opener-policy", same);
            answer.extensions_mut().insert(response::Private);
        }
        answer
    }

    async fn status_page(&self) -> String {
        let asked = self.control.ask("overview", BTreeMap::new());
        let report = match asked {
            Some(asked) => asked.await,
            None => Err("there is no such report".to_owned()),
        };
        match report {
            Ok(report) => page::status(&self.branding, &report),
            Err(why) => page::not_here(&self.branding, &format!("The state cannot be told: {why}")),
        }
    }

    fn front_page(&self) -> String {
        let methods: Vec<_> = METHODS
            .iter()
            .map(|method| (method.nsid(), method.params))
            .collect();
        page::front(&self.branding, &self.base_url, &methods)
    }

    /// None: nobody of that name, or nobody that the public may see.
    async fn account_page(
        &self,
        asked: &AtIdentifier,
        private: bool,
        request: &Request<Incoming>,
    ) -> Result<Option<String>, XrpcError> {
        let (directory, asked) = (Arc::clone(&self.directory), asked.clone());
        let did = self
            .look_up(move |mirror| match asked {
                AtIdentifier::Did(did) => Ok(Some(did)),
                AtIdentifier::Handle(handle) => Ok(directory.resolve(mirror, &handle)?),
            })
            .await?;
        let Some(did) = did else { return Ok(None) };
        if private {
            let query = BTreeMap::from([("did".to_owned(), did.to_string())]);
            let account = match self.control.ask("account", query) {
                Some(asked) => asked.await,
                None => return Ok(None),
            };
            let host = request
                .headers()
                .get(header::HOST)
                .and_then(|host| host.to_str().ok());
            let base = host.map_or_else(|| self.base_url.clone(), |host| format!("http://{host}"));
            return Ok(match account {
                Ok(account) if account.is_null() => None,
                Ok(account) => Some(page::private_account(&self.branding, &account, &base)),
                Err(why) => Some(page::not_here(
                    &self.branding,
                    &format!("It cannot be told: {why}"),
                )),
            });
        }
        let known = did.clone();
        let found = self
            .look_up(move |mirror| {
                let served = lookup::served(mirror, &known, &lookup::Sight::Public)?;
                let row = mirror.account(&known)?;
                let handle = row
                    .as_ref()
                    .and_then(super::directory::handle_of)
                    .map(str::to_owned);
                Ok(json!({ "did": known.as_str(), "handle": handle, "rev": served.head.rev.to_string() }))
            })
            .await;
        match found {
            Ok(account) => Ok(Some(page::public_account(
                &self.branding,
                &account,
                &self.base_url,
            ))),
            Err(error) if error.status().is_server_error() => Err(error),
            // Hidden, or not here: no page tells which.
            Err(_) => Ok(None),
        }
    }

    /// The document of our own DID: where the service is. It holds no key, for nothing is signed here.
    fn did_document(&self) -> Response<Body> {
        let Some(public_url) = &self.public_url else {
            return response::text(StatusCode::NOT_FOUND, "this server has no public_url\n");
        };
        response::json(&json!({
            "@context": ["https://www.w3.org/ns/did/v1"],
            "id": self.did,
            "service": [{
                "id": "#repo_backup",
                "type": "RepoBackupService",
                "serviceEndpoint": public_url,
            }],
        }))
    }
}

/// The account that a path or a query names. A name that is none is nobody's.
fn account_of(path: &str, query: Option<&str>) -> Option<AtIdentifier> {
    let named = match path {
        "/account" => {
            let pairs = query.unwrap_or_default().split('&');
            pairs
                .rev()
                .find_map(|pair| pair.strip_prefix("account="))
                .unwrap_or_default()
        }
        _ => path.strip_prefix("/account/")?,
    };
    let decoded = percent_encoding::percent_decode_str(named).decode_utf8_lossy();
    let name = decoded.trim().trim_start_matches('@');
    // No handle is this one, so that nobody is found.
    let nobody = || AtIdentifier::Handle(super::params::Handle(String::new()));
    Some(name.parse().unwrap_or_else(|()| nobody()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_did_is_that_of_its_host() {
        for (url, did) in [
            ("https://backup.example.com", "did:web:backup.example.com"),
            ("http://localhost:2585", "did:web:localhost%3A2585"),
        ] {
            assert_eq!(service_did(url), did);
            assert!(did.parse::<crate::types::Did>().is_ok());
        }
    }
}
