//! Proofs from a part of a tree: undoing a commit's operations, and looking one record up.
//!
//! A commit on the stream carries the nodes that its operations touched. Undoing the operations on
//! that partial tree, last one first, must lead to the root before: then the operations are all that
//! changed. Nodes are decoded when they are needed; a subtree that nothing touches stays a link.
//! A node that is needed and not there makes the answer [`ProofError::Incomplete`], never another root.
//! Paths are checked for their shape only, as in the tree; that they are record paths is the caller's to see.
//!
//! Source: <https://atproto.com/specs/sync#commit-validation-mst-operation-inversion>.

mod partial;

use crate::types::Cid;

use super::mst::{BlockSource, MstError, NodeFault, Place, check_key_shape, layer_of, load_node};
use partial::PartialTree;

/// What a commit did at one path, by record CIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordOp<'a> {
    /// The record's path.
    pub path: &'a [u8],
    /// The record after; `None` when it was deleted.
    pub cid: Option<Cid>,
    /// The record before; `None` when it was created.
    pub prev: Option<Cid>,
}

/// Why a partial tree does not prove what it should.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// A block that the proof needs is not there. Nothing is known, good or bad.
    #[error("the proof is incomplete: block {0} is missing")]
    Incomplete(Cid),
    /// A created record is not in the tree, or another one is.
    #[error("an operation creates a record that is not in the tree")]
    CreateNotThere,
    /// An updated record is not in the tree, or another one is.
    #[error("an operation updates a record, but the tree holds another or none")]
    UpdateMismatch,
    /// A deleted record is still in the tree.
    #[error("an operation deletes a record that is still in the tree")]
    DeleteStillThere,
    /// An operation says neither what was there before nor what is there now.
    #[error("an operation has neither a new nor an old record")]
    EmptyOp,
    /// The operations do not lead back to the expected root.
    #[error("undoing the operations leads to root {found}, not to the root before")]
    OtherRoot {
        /// Where they lead.
        found: Cid,
    },
    /// A node or path breaks a rule of the tree.
    #[error(transparent)]
    Malformed(MstError),
}

impl From<MstError> for ProofError {
    fn from(error: MstError) -> Self {
        match error {
            MstError::Missing(cid) => Self::Incomplete(cid),
            other => Self::Malformed(other),
        }
    }
}

/// Undoes `ops`, last one first, on the tree with root `data`, and returns the root before them.
///
/// Where the top of the tree before is a node that the operations did not touch and `source` lacks, its
/// CID is returned unseen; [`prove_prev_data`] tells that case apart, so prefer it when the root is known.
///
/// # Errors
/// See [`ProofError`]; all but `OtherRoot` can occur.
pub fn invert<S: BlockSource + ?Sized>(
    source: &S,
    data: Cid,
    ops: &[RecordOp<'_>],
) -> Result<Cid, ProofError> {
    Ok(undo_all(source, data, ops)?.cid)
}

/// Proves that undoing `ops`, last one first, on the tree with root `data` leads to `prev_data`.
///
/// # Errors
/// See [`ProofError`]; all can occur.
pub fn prove_prev_data<S: BlockSource + ?Sized>(
    source: &S,
    data: Cid,
    ops: &[RecordOp<'_>],
    prev_data: Cid,
) -> Result<(), ProofError> {
    let root = undo_all(source, data, ops)?;
    if root.cid == prev_data {
        Ok(())
    } else if root.unseen {
        // It could be keyless, and the root before somewhere below it.
        Err(ProofError::Incomplete(root.cid))
    } else {
        Err(ProofError::OtherRoot { found: root.cid })
    }
}

/// The root of a tree after operations were undone.
struct UndoneRoot {
    cid: Cid,
    /// Whether the root's block was needed to be sure, and not there.
    unseen: bool,
}

fn undo_all<S: BlockSource + ?Sized>(
    source: &S,
    data: Cid,
    ops: &[RecordOp<'_>],
) -> Result<UndoneRoot, ProofError> {
    if ops.is_empty() {
        return Ok(UndoneRoot {
            cid: data,
            unseen: false,
        });
    }
    let mut tree = PartialTree::load(source, data)?;
    for op in ops.iter().rev() {
        check_key_shape(op.path).map_err(|error| MstError::node(data, error.into()))?;
        match (op.cid, op.prev) {
            (Some(cid), None) => tree.remove(op.path, cid)?,
            (Some(cid), Some(prev)) => tree.replace(op.path, cid, prev)?,
            (None, Some(prev)) => tree.insert(op.path, prev)?,
            (None, None) => return Err(ProofError::EmptyOp),
        }
    }
    tree.into_root()
}

/// Looks a path up in a tree of which perhaps only a part is there.
///
/// `None` is a proof too: the key's place in the tree was seen, and it is not there.
///
/// # Errors
/// [`ProofError::Incomplete`] when a node on the way is missing, [`ProofError::Malformed`] when one
/// breaks a rule.
pub fn prove_record<S: BlockSource + ?Sized>(
    source: &S,
    data: Cid,
    path: &[u8],
) -> Result<Option<Cid>, ProofError> {
    check_key_shape(path).map_err(|error| MstError::node(data, error.into()))?;
    let key_layer = layer_of(path);
    let (mut cid, mut place) = (data, Place::Root);
    // The keys between which the node hangs.
    let (mut low, mut high) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let (node, layer, _) = load_node(source, cid, place)?;
        let inside =
            |key: &[u8]| key > low.as_slice() && high.as_ref().is_none_or(|high| key < high.as_slice());
        if !node.entries().all(|entry| inside(entry.key)) {
            return Err(MstError::node(cid, NodeFault::KeyOrder).into());
        }
        let number = match node.find(path) {
            Ok(at) => return Ok(node.entry(at).map(|entry| entry.value)),
            Err(number) => number,
        };
        if layer <= key_layer {
            return Ok(None);
        }
        let Some(child) = node.subtree(number) else {
            return Ok(None);
        };
        if let Some(entry) = number.checked_sub(1).and_then(|before| node.entry(before)) {
            low = entry.key.to_vec();
        }
        if let Some(entry) = node.entry(number) {
            high = Some(entry.key.to_vec());
        }
        place = Place::below(layer).map_err(|fault| MstError::node(cid, fault))?;
        cid = child;
    }
}

#[cfg(test)]
mod tests;
