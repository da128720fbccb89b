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
        let when = match error.wait().filter(|_| error.is_transient()) {
            Some(pause) => format!(
                " in {} minutes, for so long the directory wants to be left alone",
                pause.as_secs().div_ceil(60)
            ),
            None => String::new(),
        };
        Err(RestoreError::Failed(format!(
            "the PLC directory did not take the operation: {error}. The identity of {did} is as before; run the same \
             command again to go on{when}"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::address::AddressPolicy;
    use crate::http::test_server::{Step, serve};
    use crate::identity::plc_log::fixtures::{LogMaker, key, secret};
    use crate::restore::operation::Draft;
    use crate::types::Timestamp;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn directory(plc_url: String) -> Directory {
        let clock = Clock::system();
        Directory {
            http: Upstream::new(AddressPolicy::new(true, []), clock.clone()).expect("roots"),
            plc_url,
            dev_mode: true,
            clock,
        }
    }

    fn answer(status: &str, header: &str, body: &str) -> Vec<Step> {
        let length = body.len();
        let text = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{header}connection: close\r\n\r\n{body}"
        );
        vec![Step::Send(text.into_bytes())]
    }

    fn world() -> (Did, Signed, String) {
        let mut maker = LogMaker::new(Timestamp::from_micros(1_700_000_000_000_000));
        maker.push(LogMaker::operation(&[2], &key(20), "old.test", None), 2);
        let log = PlcLog::parse(&maker.did(), &maker.answer()).expect("verifies");
        let signed = Draft::after(&log)
            .and_then(|draft| draft.sign(&secret(2)))
            .expect("signs");
        (
            maker.did(),
            signed,
            String::from_utf8(maker.answer()).expect("text"),
        )
    }

    #[tokio::test]
    async fn a_directory_that_is_busy_is_asked_again() {
        let (did, signed, _) = world();
        let count = AtomicUsize::new(0);
        let server = serve(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => answer("429 Too Many Requests", "retry-after: 0\r\n", ""),
            _ => answer("200 OK", "", ""),
        });
        let server = server.await;
        assert_eq!(directory(server.url("")).submit(&did, &signed).await, Ok(()));
        assert_eq!(server.requests(), 2);
    }

    #[tokio::test]
    async fn a_directory_that_refuses_is_quoted_and_nothing_was_changed() {
        let (did, signed, log) = world();
        let server = serve(move |head| match head.starts_with("POST") {
            true => answer(
                "400 Bad Request",
                "",
                "{\"message\":\"Proposed prev does not match\"}",
            ),
            false => answer("200 OK", "", &log),
        });
        let server = server.await;
        let error = directory(server.url(""))
            .submit(&did, &signed)
            .await
            .expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains("Proposed prev does not match") && text.contains("is as before"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_directory_that_asks_for_too_long_a_wait_ends_the_run() {
        let (did, signed, log) = world();
        let server = serve(move |head| match head.starts_with("POST") {
            true => answer("429 Too Many Requests", "retry-after: 3000\r\n", ""),
            false => answer("200 OK", "", &log),
        });
        let server = server.await;
        let error = directory(server.url(""))
            .submit(&did, &signed)
            .await
            .expect_err("refused");
        assert!(
            error
                .to_string()
                .contains("run the same command again to go on in 50 minutes"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_log_that_does_not_verify_is_no_log() {
        let (did, _, log) = world();
        let server = serve(move |_| answer("200 OK", "", &log.replace("old.test", "evil.test"))).await;
        let error = directory(server.url(""))
            .log(&did)
            .await
            .expect_err("does not verify");
        assert!(
            matches!(&error, RestoreError::Unproven(text) if text.contains("does not verify")),
            "{error}"
        );
    }
}
