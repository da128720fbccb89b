#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! What is asked of the PDS of an account that lives: records written back, and operations that only it can sign.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ANSWER_BYTES_MAX, Pds, read};
use crate::http::client::Sent;
use crate::http::request::Limits;
use crate::restore::RestoreError;
use crate::types::Cid;

/// Blobs of one account that are listed.
const BLOBS_MAX: usize = 2_000_000;

/// What the PDS made of some writes.
#[derive(Debug)]
pub struct Written {
    /// The commit that holds them.
    pub commit: String,
    /// The CID of each record, in order.
    pub cids: Vec<String>,
}

#[derive(Deserialize)]
struct BlobPage {
    cids: Vec<String>,
    cursor: Option<String>,
}

impl Pds {
    /// Has the PDS mail the user a token, with which it signs an operation.
    ///
    /// # Errors
    /// When it does not.
    pub async fn mail_token(&self) -> Result<(), RestoreError> {
        self.post("com.atproto.identity.requestPlcOperationSignature", None)
            .await
    }

    /// Has the PDS sign an operation with its own rotation key: what it should say, and the token that it mailed.
    ///
    /// # Errors
    /// When it does not.
    pub async fn sign(
        &self,
        operation: &Map<String, Value>,
        token: &str,
    ) -> Result<Map<String, Value>, RestoreError> {
        let mut body = json!({ "token": token });
        for part in ["rotationKeys", "alsoKnownAs", "verificationMethods", "services"] {
            body[part] = operation.get(part).cloned().unwrap_or_default();
        }
        let limits = Limits::json(ANSWER_BYTES_MAX);
        let make = || Ok(Sent::json(&body));
        let method = "com.atproto.identity.signPlcOperation";
        let answer = self.ask(method, &[], &limits, make).await?;
        let answer: Value = read(answer).await.map_err(RestoreError::failed)?;
        let signed = answer["operation"].as_object().cloned();
        signed.ok_or_else(|| RestoreError::Failed(format!("{} gives no operation back", self.url)))
    }

    /// Writes records in one commit, if the repository still stands at this commit.
    ///
    /// # Errors
    /// When somebody wrote meanwhile, or the PDS refuses.
    pub async fn write(&self, writes: &[Value], onto: &str) -> Result<Written, RestoreError> {
        let body = json!({
            "repo": self.did.as_str(), "validate": false, "writes": writes, "swapCommit": onto,
        });
        let limits = Limits::json(ANSWER_BYTES_MAX);
        let make = || Ok(Sent::json(&body));
        let answer = self.ask("com.atproto.repo.applyWrites", &[], &limits, make).await;
        let answer = answer.map_err(|error| match error.to_string().contains("InvalidSwap") {
            true => RestoreError::failed(
                "somebody wrote to the account meanwhile; what was written until then stays. Run the same command again",
            ),
            false => error,
        })?;
        let answer: Value = read(answer).await.map_err(RestoreError::failed)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let results = answer["results"].as_array().into_iter().flatten();
        Ok(Written {
            commit: text(&answer["commit"]["cid"]),
            cids: results.map(|result| text(&result["cid"])).collect(),
        })
    }

    /// Every blob that it has of the account.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn blobs(&self) -> Result<BTreeSet<Cid>, RestoreError> {
        let mut all = BTreeSet::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut parameters = vec![("did", self.did.as_str()), ("limit", "1000")];
            parameters.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: BlobPage = self.query("com.atproto.sync.listBlobs", &parameters).await?;
            let known = all.len();
            all.extend(page.cids.iter().filter_map(|cid| cid.parse::<Cid>().ok()));
            match page.cursor {
                // A PDS that says nothing new would be asked for ever.
                Some(next) if all.len() > known && all.len() < BLOBS_MAX => cursor = Some(next),
                _ => return Ok(all),
            }
        }
    }
}
