#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! `dev.firekeep.backup`: what only a backup can be asked. `lexicons/dev/firekeep/backup` says each method's shape.
//!
//! What stands now is open to all, as far as an account is: `status`. What was, is for its owner and the admin:
//! `history`. What changes something is asked by POST: `asks`.

mod asks;
mod history;
mod moover;
mod status;
#[cfg(test)]
mod tests;

pub use asks::SignUps;
pub use history::History;

use hyper::header::HeaderMap;
use hyper::{Method, Response};

use super::params::Params;
use super::response::{Body, XrpcError};
use super::who::Who;
use super::xrpc::Xrpc;
use crate::metrics::labels::{Endpoint, Label as _};
use crate::types::Did;

/// A request to one of these methods.
pub(super) struct Asked<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) params: Params,
    /// The input of a procedure, an object.
    pub(super) input: serde_json::Map<String, serde_json::Value>,
    pub(super) headers: &'a HeaderMap,
    pub(super) method: &'a Method,
}

impl Xrpc {
    /// Answers one of these methods.
    pub(super) async fn own(&self, asked: Asked<'_>) -> Result<Response<Body>, XrpcError> {
        let params = &asked.params;
        match asked.endpoint {
            Endpoint::BackupDescribeServer => self.describe_backup().await,
            Endpoint::BackupGetAccountStatus => self.account_status(params).await,
            Endpoint::BackupListHosts => self.list_backup_hosts(params).await,
            Endpoint::BackupGetHostStatus => self.backup_host_status(params).await,
            Endpoint::BackupListMissingBlobs => self.list_lacking_blobs(params).await,
            Endpoint::MooverDescribeServer => self.moover_describe_server().await,
            Endpoint::MooverGetRepoStatus => self.moover_repo_status(params).await,
            _ => {
                let may_be_new = matches!(asked.endpoint, Endpoint::BackupSignUp | Endpoint::MooverSignUp);
                let nsid = asked.endpoint.text();
                let who = self.who(asked.headers, nsid, may_be_new).await?;
                if asked.method == Method::POST {
                    self.ask(&asked, who).await
                } else {
                    self.history(&asked, &who).await
                }
            }
        }
    }
}

/// Whether an account's history is open to a caller.
fn check_owner(who: &Who, did: &Did) -> Result<(), XrpcError> {
    match who {
        Who::Admin => Ok(()),
        Who::Owner(own, _) if own == did => Ok(()),
        Who::Account(own, weak) if own == did => Err(XrpcError::Forbidden(match weak {
            None => "A token that the account's PDS can make opens no history and destroys nothing: sign with one of \
                     the account's rotation keys, named as did:key in kid"
                .to_owned(),
            Some(weak) => format!("This rotation key opens no history and destroys nothing: {weak}"),
        })),
        Who::Owner(..) | Who::Account(..) => Err(other_account()),
        Who::Nobody => Err(XrpcError::Unauthenticated(
            "this is for the account's owner, by a token that a rotation key signs, or for the admin",
        )),
    }
}

fn other_account() -> XrpcError {
    XrpcError::Forbidden("The token is of another account".to_owned())
}

/// Whether a caller is the admin.
fn check_admin(who: &Who) -> Result<(), XrpcError> {
    match who {
        Who::Admin => Ok(()),
        Who::Nobody => Err(XrpcError::Unauthenticated("this is for the admin")),
        Who::Account(..) | Who::Owner(..) => Err(XrpcError::Forbidden("This is for the admin".to_owned())),
    }
}

/// The account that is meant: the caller's own, or for the admin the one that is named.
fn subject(who: &Who, named: Option<Did>) -> Result<Did, XrpcError> {
    match (who, named) {
        (Who::Account(own, _) | Who::Owner(own, _), named) => match named {
            Some(named) if named != *own => Err(other_account()),
            _ => Ok(own.clone()),
        },
        (Who::Admin, Some(named)) => Ok(named),
        (Who::Admin, None) => Err(XrpcError::Input(
            "Input must have the property \"did\"".to_owned(),
        )),
        (Who::Nobody, _) => Err(XrpcError::Unauthenticated(
            "this is for the account itself, by a token of its PDS or of a rotation key, or for the admin",
        )),
    }
}
