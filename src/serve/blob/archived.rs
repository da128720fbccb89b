#![allow(clippy::disallowed_methods, reason = "shell: timers")]
//! A blob out of the archive: hashed on its way, and its last bytes go out only when all of it is proven.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::super::range::{Asked, Window};
use super::super::response::{Body, XrpcError};
use super::super::xrpc::Xrpc;
use super::{ArchivedBlob, window_of};
use crate::types::{Cid, Did};

/// How long the archive may take for the next bytes of a blob.
const ARCHIVE_SILENCE_MAX: Duration = Duration::from_secs(30);

pub(super) async fn from_archive(
    xrpc: &Xrpc,
    did: &Did,
    cid: Cid,
    asked: Option<Asked>,
    place: OwnedSemaphorePermit,
) -> Result<(Body, u64, Window), XrpcError> {
    let opened = tokio::time::timeout(ARCHIVE_SILENCE_MAX, xrpc.blobs.open(did, &cid)).await;
    let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match opened {
        Ok(Some(blob)) => {
            let (size, deadline) = (blob.size, Instant::now() + xrpc.limits.transfer_time_max);
            let window = window_of(asked, size)?;
            let chunks = checked(blob, cid, deadline, place);
            let chunks = if asked.is_some() {
                cut(chunks, window)
            } else {
                chunks
            };
            Ok((Body::pulled(chunks, window.length), size, window))
        }
        Ok(None) => {
            tracing::error!(%did, %cid, "a blob that is archived is not in the archive");
            xrpc.metrics.blob_serve_failures.inc();
            Err(XrpcError::BlobNotFound)
        }
        Err(error) => {
            tracing::warn!(%did, %cid, %error, "the archive cannot be read");
            Err(XrpcError::Unavailable)
        }
    }
}

/// A blob of the archive on its way.
struct Passing {
    blob: ArchivedBlob,
    cid: Cid,
    hash: Sha256,
    passed: u64,
    /// The last chunk that came: it goes out when the next one is here, or the whole is proven.
    withheld: Bytes,
    ended: bool,
    deadline: Instant,
    _place: OwnedSemaphorePermit,
}

/// The blob's bytes; the last of them only once all of them hash to the CID.
fn checked(
    blob: ArchivedBlob,
    cid: Cid,
    deadline: Instant,
    place: OwnedSemaphorePermit,
) -> BoxStream<'static, io::Result<Bytes>> {
    let passing = Passing {
        blob,
        cid,
        hash: Sha256::new(),
        passed: 0,
        withheld: Bytes::new(),
        ended: false,
        deadline,
        _place: place,
    };
    stream::try_unfold(passing, |mut passing| async move {
        let next = passing.next().await.inspect_err(|error| {
            tracing::error!(cid = %passing.cid, %error, "a blob of the archive was cut off");
        })?;
        Ok(next.map(|bytes| (bytes, passing)))
    })
    .boxed()
}

/// The part of a blob that lies in the window. All of the blob is read, so that it can be proven, and the last bytes of
/// the part go out when it is.
fn cut(
    chunks: BoxStream<'static, io::Result<Bytes>>,
    window: Window,
) -> BoxStream<'static, io::Result<Bytes>> {
    let begun = (chunks, 0, Bytes::new());
    stream::try_unfold(begun, move |(mut chunks, mut at, mut withheld)| async move {
        while let Some(chunk) = chunks.next().await.transpose()? {
            let bytes = chunk.len() as u64;
            let part = chunk.slice(window.of_chunk(at, bytes));
            at += bytes;
            if part.is_empty() {
                continue;
            }
            let before = std::mem::replace(&mut withheld, part);
            if !before.is_empty() {
                return Ok(Some((before, (chunks, at, withheld))));
            }
        }
        let last = std::mem::take(&mut withheld);
        Ok((!last.is_empty()).then_some((last, (chunks, at, withheld))))
    })
    .boxed()
}

impl Passing {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.ended {
            let until = self.deadline.min(Instant::now() + ARCHIVE_SILENCE_MAX);
            let chunk = tokio::time::timeout_at(until, self.blob.chunks.next()).await?;
            let Some(chunk) = chunk.transpose()? else {
                self.ended = true;
                self.check()?;
                break;
            };
            if chunk.is_empty() {
                continue;
            }
            self.hash.update(&chunk);
            self.passed += chunk.len() as u64;
            // Before the withheld bytes could complete a body of the announced length.
            if self.passed > self.blob.size {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is longer than it was said to be",
                ));
            }
            let before = std::mem::replace(&mut self.withheld, chunk);
            if !before.is_empty() {
                return Ok(Some(before));
            }
        }
        let last = std::mem::take(&mut self.withheld);
        Ok((!last.is_empty()).then_some(last))
    }

    fn check(&self) -> io::Result<()> {
        let digest = self.hash.clone().finalize();
        if self.passed != self.blob.size || digest.as_slice() != self.cid.digest() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its bytes do not hash to its CID",
            ));
        }
        Ok(())
    }
}
