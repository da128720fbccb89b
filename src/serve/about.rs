#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! What this server says of itself: its DID, its methods, and who goes by a handle.

use std::sync::Arc;

use hyper::{Response, StatusCode};
use serde_json::json;

use super::methods::METHODS;
use super::params::Params;
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
    pub(super) fn page(&self, path: &str) -> Response<Body> {
        match path {
            "/robots.txt" => response::text(StatusCode::OK, ROBOTS),
            "/.well-known/did.json" => self.did_document(),
            _ => response::text(StatusCode::OK, front_page()),
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

fn front_page() -> String {
    let mut methods = String::new();
    for method in METHODS {
        let params = method.params.join("=…&");
        let query = if params.is_empty() {
            String::new()
        } else {
            format!("?{params}=…")
        };
        methods.push_str(&format!("  /xrpc/{}{query}\n", method.nsid()));
    }
    format!(
        "Firekeep {}\n\n\
         This is a backup of AT Protocol repositories and their blobs. It follows its PDSes and gives back\n\
         what they published: records and blobs, not passwords, preferences or messages.\n\n\
         {methods}  /xrpc/_health\n\n\
         https://atproto.com\n",
        env!("CARGO_PKG_VERSION")
    )
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
