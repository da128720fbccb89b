//! Builds the tree of a sorted run of (path, record CID) pairs, bottom-up, in one pass.
//!
//! Only the nodes on the right edge are open, one a layer: memory is the depth times a node. A node is
//! complete, hashed and handed to the sink when a key of a higher layer arrives, so children come
//! before their parents and the root last.

use crate::types::{Cid, Codec, SyntaxError};

use super::{NODE_ENTRIES_MAX, NodeEncoder, check_key_shape, layer_of};

/// Why a key could not be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The key is not greater than the one before it.
    #[error("record paths are not in rising order")]
    NotSorted,
    /// The key is not a tree key.
    #[error("bad record path: {0}")]
    Key(#[from] SyntaxError),
    /// The value is not the CID of a DAG-CBOR block.
    #[error("a record must be a DAG-CBOR block")]
    NotARecord,
    /// A node would have more than [`NODE_ENTRIES_MAX`] entries: keys were mined.
    #[error("more than {NODE_ENTRIES_MAX} entries in one tree node")]
    NodeFull,
}

/// Builds a tree from sorted pairs and hands each node to a sink `(layer, cid, block)`.
pub struct TreeBuilder<F> {
    sink: F,
    /// The open node of each layer, from layer 0.
    layers: Vec<NodeEncoder>,
    last_key: Vec<u8>,
    block: Vec<u8>,
}

impl<F: FnMut(u32, Cid, &[u8])> TreeBuilder<F> {
    /// A builder of an empty tree.
    pub const fn new(sink: F) -> Self {
        Self {
            sink,
            layers: Vec::new(),
            last_key: Vec::new(),
            block: Vec::new(),
        }
    }

    /// Adds the next record.
    ///
    /// # Errors
    /// When the path does not come after the last one, the pair is not valid, or a node gets too large.
    pub fn push(&mut self, path: &[u8], record: Cid) -> Result<(), BuildError> {
        check_key_shape(path)?;
        if path <= self.last_key.as_slice() {
            return Err(BuildError::NotSorted);
        }
        if record.codec() != Codec::DagCbor {
            return Err(BuildError::NotARecord);
        }
        let layer = layer_of(path);
        let index = layer as usize;
        if self.layers.len() <= index {
            self.layers.resize_with(index + 1, NodeEncoder::default);
        }
        self.close_below(layer);
        let node = &mut self.layers[index];
        if node.len() >= NODE_ENTRIES_MAX {
            return Err(BuildError::NodeFull);
        }
        node.push(path, record);
        self.last_key.clear();
        self.last_key.extend_from_slice(path);
        Ok(())
    }

    /// Closes the tree and returns its root.
    pub fn finish(self) -> Cid {
        self.finish_on(0)
    }

    /// Closes a subtree whose place is at this layer: where its keys are all lower, keyless nodes lead
    /// down to them.
    pub(crate) fn finish_on(mut self, layer: u32) -> Cid {
        let top = layer.max((self.layers.len() as u32).saturating_sub(1));
        self.layers.resize_with(top as usize + 1, NodeEncoder::default);
        self.close_below(top);
        self.close(top)
    }

    /// Closes the open nodes below a layer, each into the one above it.
    fn close_below(&mut self, layer: u32) {
        for below in 0..layer {
            if !self.layers[below as usize].is_empty() {
                let cid = self.close(below);
                self.layers[below as usize + 1].attach(cid);
            }
        }
    }

    fn close(&mut self, layer: u32) -> Cid {
        self.layers[layer as usize].finish(&mut self.block);
        let cid = Cid::of_block(&self.block);
        (self.sink)(layer, cid, &self.block);
        cid
    }
}

/// The root of the tree of these sorted pairs.
///
/// # Errors
/// As [`TreeBuilder::push`].
pub fn tree_root<'a>(pairs: impl IntoIterator<Item = (&'a [u8], Cid)>) -> Result<Cid, BuildError> {
    let mut builder = TreeBuilder::new(|_, _, _: &[u8]| {});
    for (path, record) in pairs {
        builder.push(path, record)?;
    }
    Ok(builder.finish())
}
