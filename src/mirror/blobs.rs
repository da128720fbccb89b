#![allow(clippy::disallowed_methods, reason = "shell: the network and the clock")]
//! Fetching blobs: streamed into the mirror in chunks, counted as held only once their hash is the CID.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::input::{BlobKey, BlobVerdict, Input};
use super::keyspace::{self, Task};
use super::reader::{BLOB_CHUNK_BYTES, Mirror};
use super::rows::{BlobFailure, BlobState};
use super::store::{Batch, Family, Store, StoreError};
use super::sweep::Answer;
use crate::clock::Clock;
use crate::http::client::Upstream;
use crate::http::request::{FetchError, Limits};
use crate::types::{Cid, Codec, Did, Digest, HostName, Timestamp};

/// Waits between tries; the last one repeats.
const RETRIES: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(24 * 3600),
];
/// CIDs on a page of `listBlobs`.
const LIST_LIMIT: usize = 1000;
/// Pages of one account's `listBlobs` that are read: a million blobs.
pub const LIST_PAGES_MAX: usize = 1000;
/// A host that is asked whether it still gives a blob must answer within this time.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest MIME type that is kept.
const MIME_BYTES_MAX: usize = 255;

/// What fetching blobs needs.
#[derive(Clone)]
pub struct BlobFetcher {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// The way to hosts.
    pub upstream: Upstream,
    /// The clock.
    pub clock: Clock,
    /// The largest blob that is fetched, in bytes.
    pub bytes_max: u64,
}

/// A received blob: its chunks are in the mirror, under its digest.
struct Received {
    size: u64,
    mime: Option<String>,
}

/// How long a host wants to be left alone.
struct Wait {
    least: Duration,
    /// Nothing was asked: it is not the turn of this host.
    paced: bool,
}

impl Wait {
    fn of(error: &FetchError) -> Option<Self> {
        let paced = matches!(error, FetchError::Paced { .. });
        error.wait().map(|least| Self { least, paced })
    }
}

impl BlobFetcher {
    /// Fetches a blob that is wanted. `url` is the base URL of the account's host.
    ///
    /// # Errors
    /// When our own store fails.
    pub async fn fetch(
        &self,
        host: &HostName,
        blob: BlobKey,
        task: Vec<u8>,
        url: &str,
    ) -> Result<Input, StoreError> {
        let row = Mirror::new(&*self.store).blob(blob.did_number, &blob.digest)?;
        let row = match row {
            Some(row) if row.state.is_stored() && row.withheld_since.is_some() => {
                return Ok(self.ask_again(host, blob, task, url).await);
            }
            Some(row)
                if !row.state.is_stored()
                    && !matches!(row.state, BlobState::Withdrawn | BlobState::Erased) =>
            {
                row
            }
            _ => return Ok(Input::TaskDone { task }),
        };
        Ok(match self.receive(&blob, url).await? {
            Ok(Received { size, mime }) => Input::BlobStored {
                blob,
                size,
                mime,
                task,
            },
            // No try of its own: it is moved to when the host may be asked.
            Err((_, Some(wait))) if wait.paced => Input::TaskDelayed {
                key: task,
                task: Task::FetchBlob(blob.did, blob.digest),
                retry_at: self.clock.later(wait.least),
            },
            Err((failure, wait)) => {
                let wait = wait.map(|wait| wait.least);
                let retry_at = self.retry_at(row.tries, wait);
                Input::BlobFailed {
                    blob,
                    failure,
                    task,
                    retry_at,
                }
            }
        })
    }

    /// Asks for a blob that is held, to know whether the host still gives it.
    pub async fn ask(&self, blob: &BlobKey, url: &str) -> Answer {
        let url = blob_url(blob, url);
        let limits = Limits {
            first_byte: ASK_TIMEOUT,
            redirects_max: 3,
            ..Limits::json(u64::MAX)
        };
        let refused = match self.upstream.head(&url, &limits).await {
            Ok(()) => return Answer::Served,
            Err(error) => error,
        };
        if let away @ Answer::Away(_) = Answer::of(&refused) {
            return away;
        }
        // The answer to HEAD has no words, and not every host knows it. Of what GET brings, the head is enough.
        match self.upstream.get(&url, &limits).await {
            Ok(_) => Answer::Served,
            Err(error) => Answer::of(&error),
        }
    }

    async fn ask_again(&self, host: &HostName, blob: BlobKey, task: Vec<u8>, url: &str) -> Input {
        let verdict = |served| Input::BlobAsked {
            host: host.clone(),
            verdict: BlobVerdict {
                blob: blob.clone(),
                served,
            },
            task: task.clone(),
        };
        match self.ask(&blob, url).await {
            Answer::Served => verdict(true),
            Answer::Withheld => verdict(false),
            Answer::AccountOff => Input::TaskDone { task },
            Answer::Unclear => self.delayed(blob, task, None),
            Answer::Away(wait) => self.delayed(blob, task, wait),
        }
    }

    fn delayed(&self, blob: BlobKey, key: Vec<u8>, wait: Option<Duration>) -> Input {
        let wait = wait.unwrap_or_default().clamp(RETRIES[2], RETRIES[4]);
        Input::TaskDelayed {
            key,
            task: Task::FetchBlob(blob.did, blob.digest),
            retry_at: self.clock.now().plus(wait),
        }
    }

    fn retry_at(&self, tries: u32, wait: Option<Duration>) -> Timestamp {
        let backoff = RETRIES[(tries as usize).min(RETRIES.len() - 1)];
        let wait = wait.unwrap_or_default().min(RETRIES[4]).max(backoff);
        self.clock.now().plus(wait).plus(self.clock.jitter(wait / 4))
    }

    async fn receive(
        &self,
        blob: &BlobKey,
        url: &str,
    ) -> Result<Result<Received, (BlobFailure, Option<Wait>)>, StoreError> {
        let url = blob_url(blob, url);
        let limits = Limits {
            redirects_max: 3,
            ..Limits::download(self.bytes_max)
        };
        let answer = match self.upstream.get(&url, &limits).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err((failure_of(&error), Wait::of(&error)))),
        };
        let mime = answer
            .headers
            .get(hyper::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let mime = mime
            .filter(|mime| mime.len() <= MIME_BYTES_MAX)
            .map(str::to_owned);
        let mut body = answer.body;
        let (mut hasher, mut size, mut chunk_number) = (Sha256::new(), 0u64, 0u32);
        let mut pending: Vec<u8> = Vec::new();
        let failed = loop {
            match body.chunk().await {
                Ok(Some(bytes)) => {
                    hasher.update(&bytes);
                    size += bytes.len() as u64;
                    pending.extend_from_slice(&bytes);
                    while pending.len() >= BLOB_CHUNK_BYTES {
                        let rest = pending.split_off(BLOB_CHUNK_BYTES);
                        self.put_chunk(blob, chunk_number, std::mem::replace(&mut pending, rest))
                            .await?;
                        chunk_number += 1;
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some((failure_of(&error), Wait::of(&error))),
            }
        };
        if failed.is_none() && <[u8; 32]>::from(hasher.finalize()) == blob.digest {
            if !pending.is_empty() {
                self.put_chunk(blob, chunk_number, pending).await?;
            }
            return Ok(Ok(Received { size, mime }));
        }
        self.drop_chunks(blob)?;
        Ok(Err(failed.unwrap_or((BlobFailure::WrongBytes, None))))
    }

    /// Chunks are not synced by themselves: the batch that marks the blob as held comes after them.
    async fn put_chunk(&self, blob: &BlobKey, number: u32, bytes: Vec<u8>) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put(
            Family::BlobData,
            keyspace::encode_blob_data(blob.did_number, &blob.digest, number),
            bytes,
        );
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || store.write(batch)).await;
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn drop_chunks(&self, blob: &BlobKey) -> Result<(), StoreError> {
        let range = keyspace::blob_data_range(blob.did_number, &blob.digest);
        let mut batch = Batch::new();
        if let Some(to) = range.to() {
            batch.delete_range(Family::BlobData, range.from(), to);
        }
        self.store.write(batch)
    }

    /// Asks the host which blobs it holds for an account: one page, and where the next one begins.
    ///
    /// # Errors
    /// When the host does not answer as it should.
    pub async fn list_page(
        &self,
        did: &Did,
        url: &str,
        cursor: Option<&str>,
    ) -> Result<(Vec<Digest>, Option<String>), FetchError> {
        let mut page_url = format!(
            "{url}/xrpc/com.atproto.sync.listBlobs?did={}&limit={LIST_LIMIT}",
            did_value(did)
        );
        if let Some(cursor) = cursor {
            page_url.push_str("&cursor=");
            page_url.extend(query_value(cursor));
        }
        let page: BlobPage = self.upstream.get_json(&page_url, 1 << 20).await?;
        let cids = page.cids.iter().filter_map(|text| text.parse::<Cid>().ok());
        let digests = cids
            .filter(|cid| cid.codec() == Codec::Raw)
            .map(|cid| *cid.digest())
            .collect();
        // The reference PDS gives a cursor on the last page too; then an empty page follows.
        let next = page
            .cursor
            .filter(|next| !page.cids.is_empty() && Some(next.as_str()) != cursor);
        Ok((digests, next))
    }
}

fn blob_url(blob: &BlobKey, url: &str) -> String {
    format!(
        "{url}/xrpc/com.atproto.sync.getBlob?did={}&cid={}",
        blob.did,
        blob.cid()
    )
}

#[derive(Deserialize)]
struct BlobPage {
    cids: Vec<String>,
    cursor: Option<String>,
}

/// A value of a query: everything but unreserved characters is escaped.
pub fn query_value(text: &str) -> percent_encoding::PercentEncode<'_> {
    const RESERVED: percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    percent_encoding::utf8_percent_encode(text, &RESERVED)
}

/// A DID in a query: the port of a did:web of this machine is escaped already, and has to arrive so.
pub(super) fn did_value(did: &Did) -> String {
    did.as_str().replace('%', "%25")
}

fn failure_of(error: &FetchError) -> BlobFailure {
    match error {
        FetchError::TooLarge { .. } => BlobFailure::TooLarge,
        FetchError::Status {
            status: 400 | 404,
            error,
            message,
            ..
        } => {
            // The reference PDS says InvalidRequest "Blob not found"; others use the lexicon's name.
            let gone = error == "BlobNotFound" || message.to_ascii_lowercase().contains("not found");
            if error.starts_with("Repo") {
                BlobFailure::Refused
            } else if gone || error.is_empty() {
                BlobFailure::NotFound
            } else {
                BlobFailure::HostError
            }
        }
        FetchError::Status {
            status: 401 | 403, ..
        } => BlobFailure::Refused,
        FetchError::Status { .. } | FetchError::Redirected { .. } => BlobFailure::HostError,
        _ => BlobFailure::Unreachable,
    }
}

#[cfg(test)]
mod tests;
