#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! The new PDS, asked as its admin: what only its admin may do. The password goes to that PDS alone.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::RestoreError;
use super::directory::wait;
use crate::http::client::{Sent, Upstream};
use crate::http::request::Limits;
use crate::types::Did;

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Tries of a request that may go better later.
const TRIES: u32 = 7;
/// The name of every PDS's admin.
const NAME: &str = "admin";

/// A PDS's admin.
pub struct Admin {
    http: Upstream,
    url: String,
    password: Zeroizing<String>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// The admin of this PDS.
    #[must_use]
    pub fn new(http: Upstream, url: &str, password: Zeroizing<String>) -> Self {
        let url = url.to_owned();
        Self { http, url, password }
    }

    /// Takes an account down. One that is taken down already stays so.
    ///
    /// # Errors
    /// When the PDS refuses.
    pub async fn take_down(&self, did: &Did) -> Result<(), RestoreError> {
        let body = json!({
            "subject": { "$type": "com.atproto.admin.defs#repoRef", "did": did.as_str() },
            "takedown": { "applied": true, "ref": "restored" },
        });
        let method = "com.atproto.admin.updateSubjectStatus";
        self.post(method, &body).await.map(drop)
    }

    /// An invite code that can be used so often.
    ///
    /// # Errors
    /// When the PDS refuses.
    pub async fn invite(&self, uses: u64) -> Result<Zeroizing<String>, RestoreError> {
        let method = "com.atproto.server.createInviteCode";
        let answer = self.post(method, &json!({ "useCount": uses })).await?;
        match answer["code"].as_str() {
            Some(code) => Ok(Zeroizing::new(code.to_owned())),
            None => Err(RestoreError::Failed(format!("{} gives no invite code", self.url))),
        }
    }

    async fn post(&self, method: &str, body: &Value) -> Result<Value, RestoreError> {
        let address = format!("{}/xrpc/{method}", self.url);
        let limits = Limits::json(ANSWER_BYTES_MAX);
        let mut tries = 1;
        let bytes = loop {
            let sent = Sent::json(body).basic(NAME, &self.password);
            let answer = match self.http.send(&address, sent, &limits).await {
                Ok(answer) => answer.body.collect().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(bytes) => break bytes,
                Err(error) if tries < TRIES && wait(&error, tries).await => tries += 1,
                Err(error) => {
                    return Err(RestoreError::Failed(format!(
                        "{method}, as the admin of {}: {error}",
                        self.url
                    )));
                }
            }
        };
        // Where there is nothing to say, nothing is said.
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }
}
