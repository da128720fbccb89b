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

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use archived::from_archive;

use super::export::{PIECE_BYTES, PIECES_WAITING_MAX};
use super::lookup;
use super::params::{ParamError, Params};
use super::range::{Asked, Window};
use super::response::{self, Body, Piece, XrpcError};
use super::xrpc::Xrpc;
use crate::archive::bucket::Bucket;
use crate::archive::names::{BlobName, DidFolder};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::BlobState;
use crate::mirror::{Store, StoreError};
use crate::types::{Cid, Did};

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
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

async fn send(
    xrpc: &Xrpc,
    did: Did,
    cid: Cid,
    request: &HeaderMap,
    head: bool,
) -> Result<Response<Body>, XrpcError> {
    let (wanted, sight) = (did.clone(), xrpc.sight());
    let (account, row) = xrpc
        .look_up(move |mirror| lookup::served_blob(mirror, &wanted, &cid, &sight))
        .await?;
    let etag = response::etag(&cid);
    if response::not_modified(request, &etag) {
        return Ok(response::unchanged(etag));
    }
    // Ranges are of GET alone.
    let asked = Asked::of(request, &etag).filter(|_| !head);
    let (body, size, window) = match row.size.filter(|_| head) {
        Some(size) => (Body::absent(Some(size)), size, Window::whole(size)),
        None => {
            let place = xrpc.place(&xrpc.blob_streams).await?;
            match from_mirror(xrpc, account.did_number, cid, asked, place).await? {
                Found::Here(body, size, window) => (body, size, window),
                Found::NotHere(place) if row.state == BlobState::Archived => {
                    from_archive(xrpc, &did, cid, asked, place).await?
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
    if asked.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = window.content_range(size);
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// The part that is asked for.
fn window_of(asked: Option<Asked>, size: u64) -> Result<Window, XrpcError> {
    match asked {
        None => Ok(Window::whole(size)),
        Some(asked) => asked.within(size).ok_or(XrpcError::Range(size)),
    }
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
    /// They were proven and are on their way: the body, the blob's size, and which part of it is sent.
    Here(Body, u64, Window),
    /// None of them; the place is given back.
    NotHere(OwnedSemaphorePermit),
}

async fn from_mirror(
    xrpc: &Xrpc,
    did_number: u64,
    cid: Cid,
    asked: Option<Asked>,
    place: OwnedSemaphorePermit,
) -> Result<Found, XrpcError> {
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let (begin, begun) = oneshot::channel();
    let deadline = Instant::now() + xrpc.limits.transfer_time_max;
    let sending = Sending {
        store: Arc::clone(&xrpc.store),
        did_number,
        cid,
        asked,
        sender,
        deadline,
        place,
    };
    tokio::task::spawn_blocking(move || sending.run(begin));
    match begun.await {
        Ok(Proof::Proven(size)) => {
            let window = window_of(asked, size)?;
            Ok(Found::Here(Body::pieces(pieces, window.length), size, window))
        }
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
    asked: Option<Asked>,
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
            asked,
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
                if begin.send(Proof::Proven(size)).is_ok()
                    && let Ok(window) = window_of(asked, size)
                {
                    let mut out = |piece| {
                        if stop() {
                            Err(())
                        } else {
                            sender.blocking_send(piece).map_err(|_| ())
                        }
                    };
                    let sent = send_chunks(&mirror, did_number, &cid, window, &mut out);
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

/// Sends the part of a blob's chunks that lies in the window, in pieces; gives the piece that ends the body.
fn send_chunks(
    mirror: &Mirror<'_>,
    did_number: u64,
    cid: &Cid,
    window: Window,
    out: &mut dyn FnMut(Piece) -> Result<(), ()>,
) -> Result<Piece, ()> {
    let (mut taken, mut at) = (Ok(()), 0);
    let read = mirror.blob_chunks(did_number, cid.digest(), |chunk| {
        let bytes = chunk.len() as u64;
        let part = &chunk[window.of_chunk(at, bytes)];
        at += bytes;
        taken = part
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

mod archived;
#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
