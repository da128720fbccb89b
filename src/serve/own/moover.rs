#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! `com.pdsmoover.backup`: the shapes of PDS MOover's own backup service, so that its page works here.
//!
//! They are what our own methods say, under that service's names.

use hyper::{Response, StatusCode};
use serde_json::json;

use super::status::{Blobs, stored_blobs};
use super::subject;
use crate::metrics::labels::Endpoint;
use crate::serve::lookup;
use crate::serve::params::Params;
use crate::serve::response::{self, Body, XrpcError};
use crate::serve::who::Who;
use crate::serve::xrpc::Xrpc;

impl Xrpc {
    pub(super) async fn moover_describe_server(&self) -> Result<Response<Body>, XrpcError> {
        let status = self.ask_daemon("status", &[]).await?;
        let (stored, _) = stored_blobs(&status);
        let mut described = json!({
            "totalRepos": status["accounts"]["held"],
            "totalBlobs": stored,
            "estimatedReposSizeOnDisk": status["accounts"]["record_bytes"],
            "estimatedBlobsSizeOnDisk": status["blobs"]["stored_bytes"],
            "statusLastUpdated": self.gate.now().to_string(),
        });
        let newest = status["hosts"].as_array().into_iter().flatten();
        if let Some(at) = newest.filter_map(|host| host["last_event"].as_str()).max() {
            described["lastBackupAt"] = at.into();
        }
        Ok(response::json(&described))
    }

    pub(super) async fn moover_repo_status(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let did = params.did()?;
        let told = self
            .look_up(move |mirror| {
                let row = mirror
                    .account(&did)?
                    .filter(|row| !row.unfollowed)
                    .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
                let (_, head) = lookup::known(mirror, &did)?;
                let blobs = Blobs::of(mirror, &row)?;
                // It is not kept when an account was first seen: the oldest thing that is known of it.
                let created = row.owner.as_ref().and_then(|owner| owner.signed_up);
                let created = created.or(row.verified_at).unwrap_or(head.rev.time());
                let mut told = json!({
                    "did": did.as_str(),
                    "active": row.upstream.is_active(),
                    "createdAt": created.to_string(),
                    "source": row.host.as_str(),
                    "blobCount": blobs.stored,
                    "missingBlobCount": blobs.missing,
                    "estimatedBackupSize": row.record_bytes + blobs.stored_bytes,
                });
                if row.upstream.is_active() {
                    told["rev"] = head.rev.to_string().into();
                }
                if let Some(mark) = &row.snapshot {
                    told["lastBackup"] = mark.at.to_string().into();
                }
                Ok(told)
            })
            .await?;
        Ok(response::json(&told))
    }

    pub(super) async fn moover_ask(
        &self,
        endpoint: Endpoint,
        who: &Who,
    ) -> Result<Response<Body>, XrpcError> {
        let did = subject(who, None)?;
        match endpoint {
            Endpoint::MooverSignUp => {
                let wanted = did.clone();
                let row = self.look_up(move |mirror| Ok(mirror.account(&wanted)?)).await?;
                let owner = row.and_then(|row| row.owner);
                if owner.is_some_and(|owner| owner.signed_up.is_some() && owner.removal_due.is_none()) {
                    return Err(XrpcError::AlreadyRegistered);
                }
                self.sign_up(who, did).await?;
            }
            Endpoint::MooverRequestBackup => {
                self.request_snapshot(&did).await?;
            }
            Endpoint::MooverRemoveRepo => {
                self.remove_account(who, &did, false, false).await?;
            }
            _ => return Err(XrpcError::MethodNotImplemented),
        }
        let mut done = Response::new(Body::whole(bytes::Bytes::new()));
        *done.status_mut() = StatusCode::OK;
        Ok(done)
    }
}
