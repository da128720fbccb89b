//! `com.atproto.sync.getRepo`: a repository out of the mirror, proven before its first byte goes out.
//!
//! The mirror holds records and no tree, so an export first rebuilds the tree from the rows and compares its
//! root with the one that the account signed. Only then is the answer begun; whatever fails before is a clean
//! 500, whatever fails after cuts the connection. Where there is no copy that proves, but a CAR that its host gave
//! and that does not rebuild, that goes out as it came, with a header that says so. Both passes read one view, on a thread for blocking work, and
//! stop when the caller is gone or the time is up.

#![allow(clippy::disallowed_methods, reason = "shell: blocking reads and timers")]

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::lookup::{self, Exported, Failure, Sight};
use super::params::Params;
use super::response::{self, Body, Piece, XrpcError};
use super::xrpc::Xrpc;
use crate::metrics::Metrics;
use crate::metrics::labels::ExportResult;
use crate::mirror::reader::{Mirror, Rows};
use crate::mirror::rows::{Head, RecordValue};
use crate::mirror::{Store, StoreError};
use crate::repo::commit::{Commit, CommitError};
use crate::repo::export::{self, ExportError, RecordRows, RowVisitor};
use crate::types::{Cid, Did, Rev};

pub(super) use part::{get_blocks, get_record};

/// The media type of a CAR.
const CAR_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.ipld.car");
/// Stands on an answer that is the CAR of a quarantined repository, as its host sent it: it does not prove.
const QUARANTINED_HEADER: &str = "firekeep-quarantined";
/// Bytes of one piece of the body.
pub(super) const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that may wait for the socket.
pub(super) const PIECES_WAITING_MAX: usize = 4;
/// Records between two looks at the caller and the clock.
const RECORDS_BETWEEN_LOOKS: u32 = 256;

/// Answers `getRepo`: the whole repository, or what a copy of rev `since` lacks.
pub(super) async fn get_repo(
    xrpc: &Xrpc,
    params: &Params,
    request: &HeaderMap,
    head: bool,
) -> Result<Response<Body>, XrpcError> {
    let did = params.did()?;
    let since = params.since()?;
    let (wanted, sight) = (did.clone(), xrpc.sight());
    let commit = xrpc
        .look_up(move |mirror| Ok(lookup::exported(mirror, &wanted, &sight)?.commit()))
        .await?;
    let etag = |commit: &Cid| match since {
        Some(since) => response::etag_text(&format!("{commit}.{since}")),
        None => response::etag(commit),
    };
    let now = etag(&commit);
    if response::not_modified(request, &now) {
        return Ok(response::unchanged(now));
    }
    if head {
        return Ok(car_response(Body::absent(None), now));
    }
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let (begin, begun) = oneshot::channel();
    let export = Export::new(xrpc, did, since, sender).await?;
    tokio::task::spawn_blocking(move || export.run(begin));
    // Nobody answers only if the export panicked.
    let begun = begun.await.map_err(|_| XrpcError::Internal)??;
    let mut response = car_response(Body::pieces(pieces, begun.length), etag(&begun.commit));
    if begun.as_it_came {
        let name = HeaderName::from_static(QUARANTINED_HEADER);
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn car_response(body: Body, etag: HeaderValue) -> Response<Body> {
    let mut response = response::with_type(body, CAR_TYPE);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::ETAG, etag);
    response
}

/// An answer that can begin.
struct Begun {
    /// The commit that is sent.
    commit: Cid,
    /// The exact length of its CAR.
    length: u64,
    /// Whether it is the host's own CAR, which does not rebuild.
    as_it_came: bool,
}

/// One export, on its own thread. Its place is free again when it is dropped.
struct Export {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    did: Did,
    sight: Sight,
    since: Option<Rev>,
    sender: mpsc::Sender<Piece>,
    deadline: Instant,
    _place: OwnedSemaphorePermit,
}

impl Export {
    /// Waits for a place.
    async fn new(
        xrpc: &Xrpc,
        did: Did,
        since: Option<Rev>,
        sender: mpsc::Sender<Piece>,
    ) -> Result<Self, XrpcError> {
        let Ok(place) = xrpc.place(&xrpc.exports).await else {
            xrpc.metrics.exports.of(ExportResult::Busy).inc();
            return Err(XrpcError::Busy);
        };
        Ok(Self {
            store: Arc::clone(&xrpc.store),
            metrics: Arc::clone(&xrpc.metrics),
            did,
            sight: xrpc.sight(),
            since,
            sender,
            deadline: Instant::now() + xrpc.limits.transfer_time_max,
            _place: place,
        })
    }

    fn run(self, begin: oneshot::Sender<Result<Begun, XrpcError>>) {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let served = match lookup::exported(&mirror, &self.did, &self.sight) {
            Ok(Exported::Proven(served)) => served,
            Ok(Exported::AsItCame(car)) => return self.run_as_it_came(&mirror, &car, begin),
            Err(failure) => {
                // The caller may be gone; then nobody has to be told.
                begin.send(Err(self.told(failure))).ok();
                return;
            }
        };
        if let Some(since) = self.since {
            return self.run_since(&mirror, &served, since, begin);
        }
        let rows = WatchedRows {
            rows: mirror.rows(served.account_number),
            export: &self,
        };
        let proven = match prove(&rows, &self.did, &served.head) {
            Ok(proven) => proven,
            Err(error) => {
                begin.send(Err(self.unproven(&error))).ok();
                return;
            }
        };
        let Head {
            commit, commit_block, ..
        } = &served.head;
        let answer = Begun {
            commit: *commit,
            length: proven.car_bytes(commit_block.len()),
            as_it_came: false,
        };
        if begin.send(Ok(answer)).is_err() {
            return self.ended(ExportResult::Aborted);
        }
        let mut out = PieceWriter {
            export: &self,
            piece: Vec::with_capacity(PIECE_BYTES),
        };
        let written = proven
            .write_car(&rows, *commit, commit_block, &mut out)
            .and_then(|_| Ok(io::Write::flush(&mut out)?));
        self.finish(written);
    }

    /// Ends the body, well or not.
    fn finish<E: std::fmt::Display>(&self, written: Result<(), E>) {
        let (result, last) = match written {
            Ok(()) => (ExportResult::Complete, Piece::End),
            Err(_) if self.sender.is_closed() => return self.ended(ExportResult::Aborted),
            Err(error) => {
                tracing::error!(did = %self.did, %error, "an export was cut off");
                (ExportResult::Cut, Piece::Cut(io::Error::other("export failed")))
            }
        };
        // The body may be dropped already: its length is known, so its end need not be read.
        self.sender.blocking_send(last).ok();
        self.ended(result);
    }

    fn unproven(&self, error: &ProofError) -> XrpcError {
        if let ProofError::Rows(ExportError::Rows(RowsError::Gone | RowsError::Late)) = error {
            self.ended(ExportResult::Aborted);
        } else {
            tracing::error!(did = %self.did, %error, "what is held of an account does not prove: not served");
            self.ended(ExportResult::Unproven);
        }
        XrpcError::Internal
    }

    fn told(&self, failure: Failure) -> XrpcError {
        match failure {
            Failure::Told(error) => error,
            Failure::Store(error) => {
                tracing::error!(did = %self.did, %error, "the mirror cannot be read");
                XrpcError::Internal
            }
        }
    }

    fn ended(&self, result: ExportResult) {
        self.metrics.exports.of(result).inc();
    }

    /// Why to stop, if there is a reason.
    fn stop(&self) -> Option<RowsError> {
        if self.sender.is_closed() {
            Some(RowsError::Gone)
        } else if Instant::now() > self.deadline {
            Some(RowsError::Late)
        } else {
            None
        }
    }
}

/// Why an account's rows are not its repository.
#[derive(Debug, thiserror::Error)]
enum ProofError {
    #[error("the stored commit block is not that of its CID {0}")]
    CommitHash(Cid),
    #[error("the stored commit is malformed: {0}")]
    Commit(#[from] CommitError),
    #[error("the stored commit is of {0}")]
    OtherAccount(Did),
    #[error("the stored commit signs the root {signed}, but the account's row names {named}")]
    OtherData { signed: Cid, named: Cid },
    #[error(transparent)]
    Rows(#[from] ExportError<RowsError>),
}

/// Proves that the rows are the repository that the head's commit signs. The signature itself was checked when
/// the commit was taken in.
fn prove(rows: &WatchedRows<'_, '_>, did: &Did, head: &Head) -> Result<export::Proven, ProofError> {
    check_head(did, head)?;
    Ok(export::prove(rows, head.data)?)
}

/// Whether the stored commit is the account's, and signs the root that its row names.
fn check_head(did: &Did, head: &Head) -> Result<(), ProofError> {
    if !head.commit.matches(&head.commit_block) {
        return Err(ProofError::CommitHash(head.commit));
    }
    let commit = Commit::decode(&head.commit_block)?;
    if commit.did != *did {
        return Err(ProofError::OtherAccount(commit.did));
    }
    if commit.data != head.data {
        return Err(ProofError::OtherData {
            signed: commit.data,
            named: head.data,
        });
    }
    Ok(())
}

/// Why a scan of an export ended early.
#[derive(Debug, thiserror::Error)]
enum RowsError {
    #[error("the caller is gone")]
    Gone,
    #[error("the time for an export is up")]
    Late,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The account's records, as long as somebody waits for them.
struct WatchedRows<'v, 'e> {
    rows: Rows<'v>,
    export: &'e Export,
}

impl RecordRows for WatchedRows<'_, '_> {
    type Error = RowsError;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), RowsError> {
        self.watched(from, &mut |path, record| visit(path, record.cid(), record.bytes))
    }
}

impl WatchedRows<'_, '_> {
    fn watched(
        &self,
        from: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], RecordValue<'_>) -> ControlFlow<()>,
    ) -> Result<(), RowsError> {
        let (mut until_look, mut stopped) = (0, None);
        self.rows.scan(from, &mut |path, record| {
            if until_look == 0 {
                until_look = RECORDS_BETWEEN_LOOKS;
                stopped = self.export.stop();
                if stopped.is_some() {
                    return ControlFlow::Break(());
                }
            }
            until_look -= 1;
            visit(path, record)
        })?;
        stopped.map_or(Ok(()), Err)
    }
}

/// Cuts what is written into pieces and sends them.
struct PieceWriter<'e> {
    export: &'e Export,
    piece: Vec<u8>,
}

impl io::Write for PieceWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE_BYTES {
            self.flush()?;
        }
        let taken = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(why) = self.export.stop() {
            return Err(io::Error::other(why));
        }
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let gone = |_| io::Error::other(RowsError::Gone);
        self.export
            .sender
            .blocking_send(Piece::Data(piece.into()))
            .map_err(gone)
    }
}

mod as_it_came;
mod part;
#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
