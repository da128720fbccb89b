#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! The PLC directory, or for a `did:web` its host: what an identity says at this moment, never from a cache.

use std::time::Duration;

use serde_json::Value;

use super::RestoreError;
use super::operation::Signed;
use crate::clock::Clock;
use crate::http::client::{Sent, Upstream};
use crate::http::request::{FetchError, Limits};
use crate::identity::document::{DOCUMENT_BYTES_MAX, Identity, document_url};
use crate::identity::plc_log::{LOG_BYTES_MAX, PlcLog};
use crate::types::Did;

/// Tries of a request that may go better later.
const TRIES: u32 = 5;
/// Longest wait that a directory may ask for and still get within one run.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Where identities are looked up and changed.
#[derive(Debug, Clone)]
pub struct Directory {
    /// The client.
    pub http: Upstream,
    /// The PLC directory, without a slash at the end.
    pub plc_url: String,
    /// Plain http is allowed.
    pub dev_mode: bool,
    /// The clock.
    pub clock: Clock,
}

impl Directory {
    /// The audit log of a did:plc, verified from its first operation to its last.
    ///
    /// # Errors
    /// When it cannot be fetched, or does not verify.
    pub async fn log(&self, did: &Did) -> Result<PlcLog, RestoreError> {
        let url = format!("{}/{did}/log/audit", self.plc_url);
        let answer = self.get(&url, LOG_BYTES_MAX).await;
        let answer = answer.map_err(|error| RestoreError::Failed(format!("the log of {did}: {error}")))?;
        PlcLog::parse(did, &answer)
            .map_err(|error| RestoreError::Unproven(format!("{did} at {}: {error}", self.plc_url)))
    }

    /// The DID document.
    ///
    /// # Errors
    /// When it cannot be fetched, or is not of this DID.
    pub async fn document(&self, did: &Did) -> Result<Identity, RestoreError> {
        let failed = |error: &dyn std::fmt::Display| {
            RestoreError::Failed(format!("the DID document of {did}: {error}"))
        };
        let url = document_url(did, &self.plc_url, self.dev_mode).map_err(|error| failed(&error))?;
        let document = self
            .get(&url, DOCUMENT_BYTES_MAX)
            .await
            .map_err(|error| failed(&error))?;
        Identity::from_document(did, &document, self.dev_mode, self.clock.now())
            .map_err(|error| failed(&error))
    }

    async fn get(&self, url: &str, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let mut tries = 1;
        loop {
            let got = match self.http.get(url, &Limits::document(bytes_max)).await {
                Ok(answer) => answer.body.collect().await,
                Err(error) => Err(error),
            };
            match got {
                Err(error) if tries < TRIES && wait(&error, tries).await => tries += 1,
                got => return got,
            }
        }
    }

    /// Sends an operation. One that is there already is no error.
    ///
    /// # Errors
    /// When the directory does not take it: nothing was changed then.
    pub async fn submit(&self, did: &Did, signed: &Signed) -> Result<(), RestoreError> {
        let url = format!("{}/{did}", self.plc_url);
        let body = Value::Object(signed.json.clone());
        let mut tries = 1;
        let error = loop {
            match self
                .http
                .send(&url, Sent::json(&body), &Limits::json(1 << 16))
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if tries < TRIES && wait(&error, tries).await => tries += 1,
                Err(error) => break error,
            }
        };
        // An answer may have been lost on the way.
        if let Ok(log) = self.log(did).await
            && log.last().cid == signed.cid
        {
            return Ok(());
        }
        Err(RestoreError::Failed(format!(
            "the PLC directory did not take the operation: {error}. The identity of {did} is as before; run the same \
             command again to go on"
        )))
    }
}

/// Waits until it makes sense to try again; false: it does not.
pub(super) async fn wait(error: &FetchError, tries: u32) -> bool {
    let pause = error.wait().unwrap_or(Duration::from_millis(250 << tries.min(7)));
    if !error.is_transient() || pause > WAIT_MAX {
        return false;
    }
    tokio::time::sleep(pause).await;
    true
}
