#![allow(clippy::disallowed_methods, reason = "shell: waits for the network")]
//! What a directory says of a DID, word for word: so that an archive can say it when no directory does.

use super::super::document::{DOCUMENT_BYTES_MAX, DocumentError, Identity, document_url};
use super::super::plc_log::{LOG_BYTES_MAX, PlcLog};
use super::{ResolveError, Resolver};
use crate::types::{Did, DidMethod, Timestamp};

/// What a directory says of a DID, as it came.
#[derive(Debug, Clone)]
pub struct Testimony {
    /// The DID document.
    pub document: serde_json::Value,
    /// The audit log of a `did:plc`, if it verifies.
    pub plc_log: Option<serde_json::Value>,
    /// When.
    pub read_at: Timestamp,
}

impl Resolver {
    /// What the directory says of a DID, as it came: for the archive. Nothing of it is remembered here. A log that
    /// does not verify is left out.
    ///
    /// # Errors
    /// When it cannot be fetched now, or the document is not of this DID.
    pub async fn testimony(&self, did: &Did) -> Result<Testimony, ResolveError> {
        let (inner, config) = (&self.0, &self.0.config);
        let url = document_url(did, &config.plc_url, config.dev_mode).map_err(ResolveError::Unresolvable)?;
        let is_plc = did.method() == DidMethod::Plc;
        let bytes = inner.get(&url, is_plc, DOCUMENT_BYTES_MAX).await?;
        let read_at = inner.clock.now();
        Identity::from_document(did, &bytes, config.dev_mode, read_at).map_err(ResolveError::Document)?;
        let json = |bytes: &[u8]| serde_json::from_slice(bytes);
        let document = json(&bytes).map_err(|_| ResolveError::Document(DocumentError::NotAnObject))?;
        let mut plc_log = None;
        if is_plc {
            let url = format!("{}/{did}/log/audit", config.plc_url);
            let bytes = inner.get(&url, true, LOG_BYTES_MAX).await?;
            match PlcLog::parse(did, &bytes) {
                Ok(_) => plc_log = json(&bytes).ok(),
                Err(error) => {
                    tracing::warn!(%did, %error, "the DID's audit log does not verify; it is not archived")
                }
            }
        }
        Ok(Testimony {
            document,
            plc_log,
            read_at,
        })
    }
}
