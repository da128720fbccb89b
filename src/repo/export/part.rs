//! Parts of a repository: the proof of one record or of its absence, single blocks, and what is newer than a rev.
//!
//! The store holds no tree, so each is a scan of all records that rebuilds it, and gives nothing unless it arrives at
//! the signed root. Memory is the depth of the tree and what is asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;

use crate::types::{Cid, Rev};

use super::super::mst::{TreeBuilder, layer_of};
use super::{ExportError, RecordRows, show};

/// The nodes from the root to the place of a record, and the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordProof {
    /// The root first.
    pub nodes: Vec<(Cid, Vec<u8>)>,
    /// None: it is not there, which the nodes prove too.
    pub record: Option<(Cid, Vec<u8>)>,
}

/// Proves what stands at a path of the tree with the root `data`.
///
/// # Errors
/// When the rows are not those of that tree, or could not be read.
pub fn prove_path<R: RecordRows + ?Sized>(
    rows: &R,
    data: Cid,
    path: &[u8],
) -> Result<RecordProof, ExportError<R::Error>> {
    let found = RefCell::new(Found::default());
    let mut record = None;
    let mut before = None;
    let root = build(
        rows,
        |layer, cid, block| found.borrow_mut().node(layer, cid, block),
        |at, cid, bytes| {
            if at < path {
                // Only the last key before the path counts, so its layer is told when that is known.
                let last: &mut Vec<u8> = before.get_or_insert_default();
                last.clear();
                last.extend_from_slice(at);
            } else if found.borrow().lowest.is_none() {
                let here = layer_of(at);
                let lowest = match &before {
                    Some(before) if at != path => here.min(layer_of(before)),
                    _ => here,
                };
                found.borrow_mut().lowest = Some(lowest);
                if at == path {
                    check_record(at, cid, bytes)?;
                    record = Some((cid, bytes.to_vec()));
                }
            }
            Ok(())
        },
        // The path is behind the last key: its place is at the right edge.
        |before| {
            let mut found = found.borrow_mut();
            if found.lowest.is_none() {
                found.lowest = Some(before.map_or(0, layer_of));
            }
        },
    )?;
    if root != data {
        return Err(ExportError::OtherRoot {
            rebuilt: root,
            signed: data,
        });
    }
    let nodes = found.into_inner().nodes.into_values().rev().collect();
    Ok(RecordProof { nodes, record })
}

/// The nodes that stand between a path and the root: once its place was passed, the first of each layer that is
/// complete, down to the lower one of the layers of its neighbours.
#[derive(Default)]
struct Found {
    /// None until the place was passed.
    lowest: Option<u32>,
    nodes: BTreeMap<u32, (Cid, Vec<u8>)>,
}

impl Found {
    fn node(&mut self, layer: u32, cid: Cid, block: &[u8]) {
        if self.lowest.is_some_and(|lowest| layer >= lowest) {
            self.nodes.entry(layer).or_insert_with(|| (cid, block.to_vec()));
        }
    }
}

/// Blocks by their CIDs.
pub type Blocks = BTreeMap<Cid, Vec<u8>>;

/// The blocks of a repository with these CIDs: records and nodes of the tree with the root `data`. What is not in it
/// is not in the answer. None: together they are larger than `bytes_max`.
///
/// # Errors
/// As [`prove_path`].
pub fn find_blocks<R: RecordRows + ?Sized>(
    rows: &R,
    data: Cid,
    wanted: &BTreeSet<Cid>,
    bytes_max: usize,
) -> Result<Option<Blocks>, ExportError<R::Error>> {
    let found = RefCell::new(BTreeMap::new());
    let bytes = RefCell::new(0usize);
    let take = |cid: Cid, block: &[u8]| {
        if wanted.contains(&cid) && !found.borrow().contains_key(&cid) {
            *bytes.borrow_mut() += block.len();
            if *bytes.borrow() <= bytes_max {
                found.borrow_mut().insert(cid, block.to_vec());
            }
        }
    };
    let root = build(
        rows,
        |_, cid, block| take(cid, block),
        |path, cid, block| {
            if wanted.contains(&cid) {
                check_record(path, cid, block)?;
                take(cid, block);
            }
            Ok(())
        },
        |_| {},
    )?;
    if root != data {
        return Err(ExportError::OtherRoot {
            rebuilt: root,
            signed: data,
        });
    }
    let fits = *bytes.borrow() <= bytes_max;
    Ok(fits.then(|| found.into_inner()))
}

/// Takes a row with the rev that it was written at: `(path, cid, rev, record bytes)`.
pub type RevVisitor<'v> = dyn FnMut(&[u8], Cid, Rev, &[u8]) -> ControlFlow<()> + 'v;

/// Gives out all that a copy of rev `since` lacks of the tree with the root `data`: every record that is newer, and
/// every node, for which of them are newer is not known. A node comes after what hangs below it.
///
/// # Errors
/// As [`prove_path`], and when `out` refuses. What it was given by then is worth nothing.
pub fn each_newer_block<E: std::error::Error + Send + Sync + 'static>(
    scan: impl FnOnce(&mut RevVisitor<'_>) -> Result<(), E>,
    data: Cid,
    since: Rev,
    out: impl FnMut(Cid, &[u8]) -> io::Result<()>,
) -> Result<(), ExportError<E>> {
    let out = RefCell::new(out);
    let refused = RefCell::new(None);
    let give = |cid: Cid, block: &[u8]| {
        if refused.borrow().is_none()
            && let Err(error) = (out.borrow_mut())(cid, block)
        {
            *refused.borrow_mut() = Some(error);
        }
    };
    let mut builder = TreeBuilder::new(|_, cid, block: &[u8]| give(cid, block));
    let mut failed = None;
    scan(&mut |path, cid, rev, bytes| {
        let step = builder.push(path, cid).map_err(ExportError::Build);
        let step = step.and_then(|()| {
            if rev > since {
                check_record(path, cid, bytes)
            } else {
                Ok(())
            }
        });
        if let Err(error) = step {
            failed = Some(error);
        } else if rev > since {
            give(cid, bytes);
        }
        match failed.is_some() || refused.borrow().is_some() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .map_err(ExportError::Rows)?;
    if let Some(error) = failed {
        return Err(error);
    }
    // A scan that was broken off builds another tree: only a whole one is finished.
    if refused.borrow().is_none() {
        let rebuilt = builder.finish();
        if rebuilt != data {
            return Err(ExportError::OtherRoot {
                rebuilt,
                signed: data,
            });
        }
    }
    match refused.into_inner() {
        Some(error) => Err(ExportError::Write(error)),
        None => Ok(()),
    }
}

/// Builds the whole tree. `row` sees a row before it is added, `end` the last path before the right edge is closed.
fn build<R: RecordRows + ?Sized>(
    rows: &R,
    node: impl FnMut(u32, Cid, &[u8]),
    mut row: impl FnMut(&[u8], Cid, &[u8]) -> Result<(), ExportError<R::Error>>,
    end: impl FnOnce(Option<&[u8]>),
) -> Result<Cid, ExportError<R::Error>> {
    let mut builder = TreeBuilder::new(node);
    let (mut last, mut failed) = (None::<Vec<u8>>, None);
    rows.scan(None, &mut |path, cid, bytes| {
        let step = row(path, cid, bytes).and_then(|()| Ok(builder.push(path, cid)?));
        if let Err(error) = step {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        let last = last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(path);
        ControlFlow::Continue(())
    })
    .map_err(ExportError::Rows)?;
    if let Some(error) = failed {
        return Err(error);
    }
    end(last.as_deref());
    Ok(builder.finish())
}

fn check_record<E: std::error::Error + 'static>(
    path: &[u8],
    cid: Cid,
    bytes: &[u8],
) -> Result<(), ExportError<E>> {
    if cid.matches(bytes) {
        return Ok(());
    }
    Err(ExportError::RecordHash {
        path: show(path),
        cid,
    })
}

#[cfg(test)]
#[path = "part_tests.rs"]
mod tests;
