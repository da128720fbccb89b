//! `com.atproto.sync.getBlob`: a blob, from the mirror or from the archive.
//!
//! Blobs are hostile content: every answer, errors and HEAD included, carries the headers with which the
//! reference PDS keeps a browser from running them, and a media type that is one. The bytes are hashed before
//! they count as sent: those of the mirror before the answer begins, those of the archive before their last
//! piece goes out, so that a caller never holds the full length of something else.

#![allow(clippy::disallowed_methods, reason = "shell: blocking reads and timers")]

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use hyper::Response;
use hyper::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::export::{PIECE_BYTES, PIECES_WAITING_MAX};
use super::lookup;
use super::params::{ParamError, Params};
use super::response::{self, Body, Piece, XrpcError};
use super::xrpc::Xrpc;
use crate::archive::bucket::Bucket;
use crate::archive::names::{BlobName, DidFolder};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::BlobState;
use crate::mirror::{Store, StoreError};
use crate::types::{Cid, Did};

/// How long the archive may take for the next bytes of a blob.
const ARCHIVE_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Longest media type that is given on, in bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// Blobs that are in the archive, whole and named by account and CID.
pub trait BlobArchive: Send + Sync + 'static {
    /// Opens a blob; `None` when the archive has none of this name.
    fn open<'a>(&'a self, did: &'a Did, cid: &'a Cid) -> OpenBlob<'a>;
}

/// A blob that is being opened.
pub type OpenBlob<'a> = Pin<Box<dyn Future<Output = io::Result<Option<ArchivedBlob>>> + Send + 'a>>;

/// A blob in the archive.
pub struct ArchivedBlob {
    /// Its size, in bytes.
    pub size: u64,
    /// Its bytes, in order. They need not be checked.
    pub chunks: BoxStream<'static, io::Result<Bytes>>,
}

impl BlobArchive for Bucket {
    fn open<'a>(&'a self, did: &'a Did, cid: &'a Cid) -> OpenBlob<'a> {
        Box::pin(async move {
            // A DID that no folder can be named after was never archived.
            let Ok(did) = DidFolder::try_from(did) else {
                return Ok(None);
            };
            let name = BlobName {
                did,
                blob: *cid.digest(),
            };
            let object = self.get(&name.to_string()).await.map_err(io::Error::other)?;
            Ok(object.map(|object| ArchivedBlob {
                size: object.size,
                chunks: object.stream.map(|chunk| chunk.map_err(io::Error::other)).boxed(),
            }))
        })
    }
}

/// An archive that holds no blob.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoBlobArchive;

impl BlobArchive for NoBlobArchive {
    fn open<'a>(&'a self, _: &'a Did, _: &'a Cid) -> OpenBlob<'a> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// Answers `getBlob`, errors included.
pub(super) async fn get_blob(
    xrpc: &Xrpc,
    params: Result<Params, ParamError>,
    request: &HeaderMap,
    head: bool,
) -> Response<Body> {
    let asked = params.and_then(|params| Ok((params.did()?, params.cid()?)));
    let cid = asked.as_ref().ok().map(|(_, cid)| *cid);
    let answered = match asked {
        Ok((did, cid)) => send(xrpc, did, cid, request, head).await,
        Err(error) => Err(error.into()),
    };
    let mut response = answered.unwrap_or_else(|error| error.response());
    let disposition = cid.map_or_else(
        || HeaderValue::from_static("attachment"),
        |cid| {
            let text = format!("attachment; filename=\"{cid}\"");
            HeaderValue::try_from(text).expect("a CID is base32")
        },
    );
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_DISPOSITION, disposition);
    let policy = HeaderValue::from_static("default-src 'none'; sandbox");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    response
}

async fn send(
    xrpc: &Xrpc,
    did: Did,
    cid: Cid,
    request: &HeaderMap,
    head: bool,
) -> Result<Response<Body>, XrpcError> {
    let wanted = did.clone();
    let (account, row) = xrpc
        .look_up(move |mirror| lookup::served_blob(mirror, &wanted, &cid))
        .await?;
    let etag = response::etag(&cid);
    if response::not_modified(request, &etag) {
        return Ok(response::unchanged(etag));
    }
    let body = match row.size.filter(|_| head) {
        Some(size) => Body::absent(Some(size)),
        None => {
            let place = xrpc.place(&xrpc.blob_streams).await?;
            match from_mirror(xrpc, account.did_number, cid, place).await? {
                Found::Here(body) => body,
                Found::NotHere(place) if row.state == BlobState::Archived => {
                    from_archive(xrpc, &did, cid, place).await?
                }
                Found::NotHere(_) => {
                    tracing::error!(%did, %cid, "a blob that is held has no bytes");
                    xrpc.metrics.blob_serve_failures.inc();
                    return Err(XrpcError::BlobNotFound);
                }
            }
        }
    };
    let mut response = response::with_type(body, media_type(row.mime.as_deref()));
    response.headers_mut().insert(header::ETAG, etag);
    Ok(response)
}

/// The media type that a record claims, if it is one; else that of mere bytes.
fn media_type(claimed: Option<&str>) -> HeaderValue {
    let token = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        !text.is_empty() && text.bytes().all(allowed)
    };
    let parameter = |text: &str| {
        text.trim_start()
            .split_once('=')
            .is_some_and(|(n, v)| token(n) && token(v))
    };
    let is_media_type = |text: &&str| {
        let mut parts = text.split(';');
        let essence = parts.next().and_then(|essence| essence.split_once('/'));
        text.len() <= MEDIA_TYPE_BYTES_MAX
            && essence.is_some_and(|(kind, subtype)| token(kind) && token(subtype))
            && parts.all(parameter)
    };
    claimed
        .filter(is_media_type)
        .and_then(|text| HeaderValue::from_str(text).ok())
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// Whether the mirror has a blob's bytes.
enum Found {
    /// They were proven and are on their way.
    Here(Body),
    /// None of them; the place is given back.
    NotHere(OwnedSemaphorePermit),
}

async fn from_mirror(
    xrpc: &Xrpc,
    did_number: u64,
    cid: Cid,
    place: OwnedSemaphorePermit,
) -> Result<Found, XrpcError> {
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let (begin, begun) = oneshot::channel();
    let deadline = Instant::now() + xrpc.limits.transfer_time_max;
    let sending = Sending {
        store: Arc::clone(&xrpc.store),
        did_number,
        cid,
        sender,
        deadline,
        place,
    };
    tokio::task::spawn_blocking(move || sending.run(begin));
    match begun.await {
        Ok(Proof::Proven(size)) => Ok(Found::Here(Body::pieces(pieces, size))),
        Ok(Proof::NotHere(place)) => Ok(Found::NotHere(place)),
        Ok(Proof::Failed(error)) => {
            tracing::error!(%cid, %error, "a blob that is held cannot be served");
            xrpc.metrics.blob_serve_failures.inc();
            Err(XrpcError::Internal)
        }
        // Nobody answers only if the thread panicked.
        Err(_) => Err(XrpcError::Internal),
    }
}

/// What the mirror's copy of a blob is worth.
enum Proof {
    Proven(u64),
    NotHere(OwnedSemaphorePermit),
    Failed(BlobError),
}

#[derive(Debug, thiserror::Error)]
enum BlobError {
    #[error("its bytes do not hash to its CID")]
    OtherBytes,
    #[error("its time was up, or nobody waits for it")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One blob out of the mirror, on a thread for blocking work. Both passes read one view.
struct Sending {
    store: Arc<dyn Store>,
    did_number: u64,
    cid: Cid,
    sender: mpsc::Sender<Piece>,
    deadline: Instant,
    place: OwnedSemaphorePermit,
}

impl Sending {
    fn run(self, begin: oneshot::Sender<Proof>) {
        let Self {
            store,
            did_number,
            cid,
            sender,
            deadline,
            place,
        } = self;
        let view = store.view();
        let mirror = Mirror::new(&*view);
        let stop = || sender.is_closed() || Instant::now() > deadline;
        let proof = match prove(&mirror, did_number, &cid, stop) {
            Ok(None) => Proof::NotHere(place),
            Ok(Some(size)) => {
                if begin.send(Proof::Proven(size)).is_ok() {
                    let mut out = |piece| {
                        if stop() {
                            Err(())
                        } else {
                            sender.blocking_send(piece).map_err(|_| ())
                        }
                    };
                    let sent = send_chunks(&mirror, did_number, &cid, &mut out);
                    // A caller that is gone, or out of time, is cut by the sender's end.
                    if let Ok(last) = sent {
                        sender.blocking_send(last).ok();
                    }
                }
                drop(place);
                return;
            }
            Err(error) => Proof::Failed(error),
        };
        begin.send(proof).ok();
    }
}

/// Hashes a blob in the mirror. Its size, or none if there are no bytes of it.
fn prove(
    mirror: &Mirror<'_>,
    did_number: u64,
    cid: &Cid,
    stop: impl Fn() -> bool,
) -> Result<Option<u64>, BlobError> {
    let (mut hash, mut chunks, mut stopped) = (Sha256::new(), 0u64, false);
    let size = mirror.blob_chunks(did_number, cid.digest(), |chunk| {
        hash.update(chunk);
        chunks += 1;
        stopped = stop();
        if stopped {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    // No chunk at all is nothing, or all of the empty blob.
    match hash.finalize().as_slice() == cid.digest() {
        true => Ok(Some(size)),
        false if chunks == 0 => Ok(None),
        false if stopped => Err(BlobError::Stopped),
        false => Err(BlobError::OtherBytes),
    }
}

/// Sends a blob's chunks in pieces; gives the piece that ends the body.
fn send_chunks(
    mirror: &Mirror<'_>,
    did_number: u64,
    cid: &Cid,
    out: &mut dyn FnMut(Piece) -> Result<(), ()>,
) -> Result<Piece, ()> {
    let mut taken = Ok(());
    let read = mirror.blob_chunks(did_number, cid.digest(), |chunk| {
        taken = chunk
            .chunks(PIECE_BYTES)
            .try_for_each(|piece| out(Piece::Data(Bytes::copy_from_slice(piece))));
        if taken.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    taken?;
    Ok(match read {
        Ok(_) => Piece::End,
        Err(error) => {
            tracing::error!(%cid, %error, "a blob was cut off");
            Piece::Cut(io::Error::other("blob cannot be read"))
        }
    })
}

async fn from_archive(
    xrpc: &Xrpc,
    did: &Did,
    cid: Cid,
    place: OwnedSemaphorePermit,
) -> Result<Body, XrpcError> {
    let opened = tokio::time::timeout(ARCHIVE_SILENCE_MAX, xrpc.blobs.open(did, &cid)).await;
    let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match opened {
        Ok(Some(blob)) => {
            let (size, deadline) = (blob.size, Instant::now() + xrpc.limits.transfer_time_max);
            Ok(Body::pulled(checked(blob, cid, deadline, place), size))
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

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
