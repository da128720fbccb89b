#![allow(clippy::disallowed_methods, reason = "shell: blocking reads")]
//! Parts of a repository: `getRecord`, `getBlocks`, and `getRepo` with `since`.
//!
//! Each rebuilds the tree of the account, so each takes a place among the exports.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use hyper::Response;
use hyper::header::HeaderMap;
use tokio::sync::{mpsc, oneshot};

use super::super::lookup::{self, Served};
use super::super::params::Params;
use super::super::response::{self, Body, XrpcError};
use super::super::xrpc::Xrpc;
use super::{
    Begun, Export, PIECE_BYTES, PieceWriter, ProofError, RowsError, WatchedRows, car_response, check_head,
};
use crate::metrics::labels::ExportResult;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::Head;
use crate::repo::car::{encode_block, encode_header};
use crate::repo::export::{self, ExportError};
use crate::types::{Cid, Did, Rev};

/// Bytes of the blocks of one answer.
const BLOCKS_BYTES_MAX: usize = 8 << 20;

/// What a part comes to: its CAR, or what the caller is told.
type Part = Result<Vec<u8>, XrpcError>;

/// Answers `com.atproto.sync.getRecord`: the proof of a record, or that there is none.
pub(in crate::serve) async fn get_record(
    xrpc: &Xrpc,
    params: &Params,
    request: &HeaderMap,
) -> Result<Response<Body>, XrpcError> {
    let (did, path) = (params.did()?, params.path()?);
    let asked = Cid::of_block(path.as_bytes());
    answer(xrpc, did, asked, request, move |rows, head| {
        let proof = export::prove_path(rows, head.data, path.as_bytes())?;
        let mut car = encode_header(&[head.commit]);
        encode_block(&mut car, &head.commit, &head.commit_block);
        for (cid, bytes) in proof.nodes.iter().chain(&proof.record) {
            encode_block(&mut car, cid, bytes);
        }
        Ok(Ok(car))
    })
    .await
}

/// Answers `com.atproto.sync.getBlocks`: all of them, or none.
pub(in crate::serve) async fn get_blocks(
    xrpc: &Xrpc,
    params: &Params,
    request: &HeaderMap,
) -> Result<Response<Body>, XrpcError> {
    let (did, cids) = (params.did()?, params.cids()?);
    let mut texts = String::new();
    cids.iter().for_each(|cid| texts.push_str(&cid.to_string()));
    let asked = Cid::of_block(texts.as_bytes());
    answer(xrpc, did, asked, request, move |rows, head| {
        let mut wanted: BTreeSet<Cid> = cids.iter().copied().collect();
        let mut car = encode_header(&[]);
        let with_commit = wanted.remove(&head.commit);
        if with_commit {
            encode_block(&mut car, &head.commit, &head.commit_block);
        }
        if wanted.is_empty() {
            return Ok(Ok(car));
        }
        let Some(blocks) = export::find_blocks(rows, head.data, &wanted, BLOCKS_BYTES_MAX)? else {
            return Ok(Err(XrpcError::BlocksTooLarge));
        };
        let missing: Vec<String> = cids
            .iter()
            .filter(|cid| wanted.contains(cid) && !blocks.contains_key(cid))
            .map(Cid::to_string)
            .collect();
        if !missing.is_empty() {
            return Ok(Err(XrpcError::BlocksNotFound(missing.join(","))));
        }
        for (cid, bytes) in &blocks {
            encode_block(&mut car, cid, bytes);
        }
        Ok(Ok(car))
    })
    .await
}

/// `asked` names the part, for the validator.
async fn answer(
    xrpc: &Xrpc,
    did: Did,
    asked: Cid,
    request: &HeaderMap,
    read: impl FnOnce(&WatchedRows<'_, '_>, &Head) -> Result<Part, ExportError<RowsError>> + Send + 'static,
) -> Result<Response<Body>, XrpcError> {
    let (wanted, sight) = (did.clone(), xrpc.sight());
    let commit = xrpc
        .look_up(move |mirror| Ok(lookup::served(mirror, &wanted, &sight)?.head.commit))
        .await?;
    let validator = |commit: &Cid| response::etag_text(&format!("{commit}.{asked}"));
    if response::not_modified(request, &validator(&commit)) {
        return Ok(response::unchanged(validator(&commit)));
    }
    // Nothing is sent over this channel: that its other end is gone says that the caller is.
    let (sender, _pieces) = mpsc::channel(1);
    let export = Export::new(xrpc, did, None, sender).await?;
    let (begin, begun) = oneshot::channel();
    tokio::task::spawn_blocking(move || begin.send(export.run_part(read)).ok());
    let (commit, car) = begun.await.map_err(|_| XrpcError::Internal)??;
    Ok(car_response(Body::whole(car), validator(&commit)))
}

impl Export {
    fn run_part(
        self,
        read: impl FnOnce(&WatchedRows<'_, '_>, &Head) -> Result<Part, ExportError<RowsError>>,
    ) -> Result<(Cid, Vec<u8>), XrpcError> {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let Served {
            account_number, head, ..
        } = lookup::served(&mirror, &self.did, &self.sight).map_err(|failure| self.told(failure))?;
        let rows = WatchedRows {
            rows: mirror.rows(account_number),
            export: &self,
        };
        check_head(&self.did, &head).map_err(|error| self.unproven(&error))?;
        let part = read(&rows, &head).map_err(|error| self.unproven(&ProofError::Rows(error)))?;
        self.ended(ExportResult::Complete);
        Ok((head.commit, part?))
    }

    /// What a copy of rev `since` lacks. Nothing, if that is where ours stands or is behind.
    pub(super) fn run_since(
        &self,
        mirror: &Mirror<'_>,
        served: &Served,
        since: Rev,
        begin: oneshot::Sender<Result<Begun, XrpcError>>,
    ) {
        let head = &served.head;
        let rows = WatchedRows {
            rows: mirror.rows(served.account_number),
            export: self,
        };
        let each = |out: &mut dyn FnMut(Cid, &[u8]) -> io::Result<()>| -> Result<(), ProofError> {
            if since >= head.rev {
                return Ok(());
            }
            check_head(&self.did, head)?;
            out(head.commit, &head.commit_block).map_err(ExportError::Write)?;
            let scan = |visit: &mut export::RevVisitor<'_>| {
                rows.watched(None, &mut |path, record| {
                    visit(path, record.cid(), record.rev, record.bytes)
                })
            };
            Ok(export::each_newer_block(scan, head.data, since, out)?)
        };
        let header = encode_header(&[head.commit]);
        let mut length = header.len() as u64;
        let counted = each(&mut |_, bytes| {
            length += export::frame_bytes(bytes.len());
            Ok(())
        });
        if let Err(error) = counted {
            begin.send(Err(self.unproven(&error))).ok();
            return;
        }
        let answer = Begun {
            commit: head.commit,
            length,
            as_it_came: false,
        };
        if begin.send(Ok(answer)).is_err() {
            return self.ended(ExportResult::Aborted);
        }
        let mut out = PieceWriter {
            export: self,
            piece: Vec::with_capacity(PIECE_BYTES),
        };
        let mut frame = Vec::new();
        let written = out
            .write_all(&header)
            .map_err(|error| ProofError::Rows(ExportError::Write(error)))
            .and_then(|()| {
                each(&mut |cid, bytes| {
                    frame.clear();
                    encode_block(&mut frame, &cid, bytes);
                    out.write_all(&frame)
                })
            })
            .and_then(|()| {
                out.flush()
                    .map_err(|error| ProofError::Rows(ExportError::Write(error)))
            });
        self.finish(written);
    }
}

#[cfg(test)]
#[path = "part_tests.rs"]
mod tests;
