//! The Merkle search tree of a repository: a pure function of its sorted (path, record CID) pairs.
//!
//! A key's layer is the number of leading zero bits of its SHA-256, halved. Keys of one layer that no
//! higher key separates share a node; the subtree between two of them hangs one layer below, through
//! keyless nodes where a layer is skipped. The top is trimmed, so only the empty tree has an empty node.
//! Since every map has exactly one tree, everything here is strict: a node in any other form, a key on
//! another layer, an order broken across nodes is an error, never a tree read leniently.
//!
//! This module holds no blocks: it reads them from a [`BlockSource`] and hands built ones to a sink.
//! Nothing recurses, and no allocation follows a length that is only declared.
//!
//! Source: <https://atproto.com/specs/repository#mst-structure>.

mod build;
mod encode;
mod lax;
mod node;
mod streamed;
mod walk;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::io;

use crate::types::cid::sha256;
use crate::types::repo_path::REPO_PATH_BYTES_MAX;
use crate::types::{Cid, Digest, SyntaxError};

pub use build::{BuildError, TreeBuilder, tree_root};
pub use encode::common_prefix_len;
pub use lax::{LaxFault, walk_lax};
pub use node::{Entry, Node, NodeFault};
pub use streamed::{STREAM_HELD_BYTES_MAX, StreamFault, StreamedTree};
pub use walk::{KeyRule, WalkLimits, WalkStats, walk};

pub(crate) use encode::NodeEncoder;
pub(crate) use walk::{Place, load_node};

/// Most entries that one node may have. Four are usual; accounts can mine keys to make more.
pub const NODE_ENTRIES_MAX: usize = 4096;

/// Highest layer that a key can have: all 256 bits of its hash are zero.
pub const LAYER_MAX: u32 = 128;

/// The layer of a key: leading zero bits of its SHA-256, two to a layer.
#[must_use]
pub fn layer_of(path: &[u8]) -> u32 {
    let mut zero_bits = 0;
    for byte in sha256(path) {
        zero_bits += byte.leading_zeros();
        if byte != 0 {
            break;
        }
    }
    zero_bits / 2
}

/// Checks that a key has the shape every tree demands: `collection/rkey` with both parts, letters,
/// digits and `. _ : ~ -` only, 3 to 1024 bytes. The collection need not be a full NSID here; where it
/// must be, [`KeyRule::RepoPath`] says so.
///
/// # Errors
/// The rule that the key breaks.
pub fn check_key_shape(key: &[u8]) -> Result<(), SyntaxError> {
    const fn bad(rule: &'static str) -> SyntaxError {
        SyntaxError::new("tree key", rule)
    }
    if key.len() > REPO_PATH_BYTES_MAX {
        return Err(bad("must be at most 1024 bytes"));
    }
    let mut slash = None;
    for (at, &byte) in key.iter().enumerate() {
        if byte == b'/' {
            if slash.is_some() {
                return Err(bad("must hold one slash"));
            }
            slash = Some(at);
        } else if !KEY_BYTES[usize::from(byte)] {
            return Err(bad("may hold only letters, digits and . _ : ~ -"));
        }
    }
    match slash {
        Some(at) if at > 0 && at + 1 < key.len() => Ok(()),
        _ => Err(bad("must be collection/rkey")),
    }
}

/// The bytes that a key may hold beside its slash.
const KEY_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'~' | b'-');
        byte += 1;
    }
    table
};

/// Where blocks are looked up.
///
/// The tree code does not hash: an implementation hands out only bytes that it has checked against
/// the CID (a parsed CAR, blocks that were hashed on loading).
pub trait BlockSource {
    /// The bytes of a DAG-CBOR block, or `None` when it is not there.
    ///
    /// # Errors
    /// When looking failed, which says nothing about whether the block is there.
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>>;
}

impl<S: BlockSource + ?Sized> BlockSource for &S {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        (**self).block(cid)
    }
}

impl<B: AsRef<[u8]>> BlockSource for BTreeMap<Digest, B> {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        Ok(self.get(cid.digest()).map(|bytes| Cow::Borrowed(bytes.as_ref())))
    }
}

impl<B: AsRef<[u8]>, H: BuildHasher> BlockSource for HashMap<Digest, B, H> {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        Ok(self.get(cid.digest()).map(|bytes| Cow::Borrowed(bytes.as_ref())))
    }
}

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MstError {
    /// A block that the tree needs is not in the source.
    #[error("block {0} of the tree is missing")]
    Missing(Cid),
    /// The source could not be read.
    #[error("read block {cid} of the tree: {error}")]
    Source {
        /// The block that was looked up.
        cid: Cid,
        /// What the source said.
        #[source]
        error: io::Error,
    },
    /// A node breaks a rule.
    #[error("tree node {cid}: {fault}")]
    Node {
        /// The node.
        cid: Cid,
        /// The rule.
        #[source]
        fault: NodeFault,
    },
    /// The tree holds more records than the caller's limit.
    #[error("the tree holds more than {0} records")]
    TooManyRecords(u64),
}

impl MstError {
    pub(crate) const fn node(cid: Cid, fault: NodeFault) -> Self {
        Self::Node { cid, fault }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
