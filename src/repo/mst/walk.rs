//! The complete walk: every node of a tree, every key in order, every rule checked.
//!
//! A walk that ends without an error proves that all nodes are there and that the tree is the
//! canonical one. It does not fetch records: the visitor asks for them if it must.

use crate::types::Cid;
use crate::types::repo_path::check_repo_path;

use super::{BlockSource, LAYER_MAX, MstError, NODE_ENTRIES_MAX, Node, NodeFault};

/// What a key must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRule {
    /// A record path: a full NSID and a record key.
    RepoPath,
    /// Anything of the shape `a/b`, as other implementations accept and published test trees use.
    Shape,
}

/// How large a tree may be.
#[derive(Debug, Clone, Copy)]
pub struct WalkLimits {
    /// Highest layer that the root may have; the depth is one more.
    pub layer_max: u32,
    /// Most entries of one node, at most [`NODE_ENTRIES_MAX`].
    pub node_entries_max: usize,
    /// Most records in all.
    pub records_max: u64,
    /// What each key must be.
    pub keys: KeyRule,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self {
            layer_max: LAYER_MAX,
            node_entries_max: NODE_ENTRIES_MAX,
            records_max: u64::MAX,
            keys: KeyRule::RepoPath,
        }
    }
}

/// What a walk saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalkStats {
    /// Nodes.
    pub nodes: u64,
    /// Their bytes.
    pub node_bytes: u64,
    /// Records, one for each path.
    pub records: u64,
}

/// Walks a whole tree in key order and calls `visit(path, record)` for each record.
///
/// # Errors
/// A [`MstError`] for the first node that is missing or breaks a rule, or whatever `visit` returns.
/// Records visited before an error stand in the tree, but the tree is not to be trusted.
pub fn walk<S, E>(
    source: &S,
    root: Cid,
    limits: &WalkLimits,
    mut visit: impl FnMut(&[u8], Cid) -> Result<(), E>,
) -> Result<WalkStats, E>
where
    S: BlockSource + ?Sized,
    E: From<MstError>,
{
    let mut walk = Walk {
        source,
        limits,
        stack: Vec::new(),
        stats: WalkStats::default(),
        last_key: Vec::new(),
    };
    walk.enter(root, Place::Root)?;
    while let Some(frame) = walk.stack.last_mut() {
        let number = frame.next;
        // Each turn goes down into subtree `number`, after the entry before it was visited.
        if number > 0 {
            let Some(entry) = frame.node.entry(number - 1) else {
                walk.stack.pop();
                continue;
            };
            check_visit(limits, frame.cid, entry.key, &mut walk.last_key, &mut walk.stats)?;
            visit(entry.key, entry.value)?;
        }
        frame.next += 1;
        if let Some(child) = frame.node.subtree(number) {
            let place = Place::below(frame.layer).map_err(|fault| MstError::node(frame.cid, fault))?;
            walk.enter(child, place)?;
        }
    }
    Ok(walk.stats)
}

struct Walk<'a, S: ?Sized> {
    source: &'a S,
    limits: &'a WalkLimits,
    stack: Vec<Frame>,
    stats: WalkStats,
    last_key: Vec<u8>,
}

struct Frame {
    cid: Cid,
    node: Node,
    layer: u32,
    next: usize,
}

impl<S: BlockSource + ?Sized> Walk<'_, S> {
    fn enter(&mut self, cid: Cid, place: Place) -> Result<(), MstError> {
        let (node, layer, bytes) = load_node(self.source, cid, place)?;
        if node.len() > self.limits.node_entries_max {
            return Err(MstError::node(
                cid,
                NodeFault::TooManyEntries {
                    max: self.limits.node_entries_max,
                },
            ));
        }
        if layer > self.limits.layer_max {
            return Err(MstError::node(
                cid,
                NodeFault::TooDeep {
                    found: layer,
                    max: self.limits.layer_max,
                },
            ));
        }
        self.stats.nodes += 1;
        self.stats.node_bytes += bytes as u64;
        self.stack.push(Frame {
            cid,
            node,
            layer,
            next: 0,
        });
        Ok(())
    }
}

pub(super) fn check_visit(
    limits: &WalkLimits,
    cid: Cid,
    key: &[u8],
    last_key: &mut Vec<u8>,
    stats: &mut WalkStats,
) -> Result<(), MstError> {
    if key <= last_key.as_slice() {
        return Err(MstError::node(cid, NodeFault::KeyOrder));
    }
    if limits.keys == KeyRule::RepoPath {
        let text = std::str::from_utf8(key).expect("a key's shape is ASCII");
        check_repo_path(text).map_err(|error| MstError::node(cid, error.into()))?;
    }
    if stats.records >= limits.records_max {
        return Err(MstError::TooManyRecords(limits.records_max));
    }
    stats.records += 1;
    last_key.clear();
    last_key.extend_from_slice(key);
    Ok(())
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the top: its layer is that of its keys.
    Root,
    /// Below a parent, on this layer.
    Layer(u32),
}

impl Place {
    /// The place below a node of this layer.
    pub(crate) fn below(layer: u32) -> Result<Self, NodeFault> {
        layer
            .checked_sub(1)
            .map(Self::Layer)
            .ok_or(NodeFault::BelowLayerZero)
    }
}

/// Loads a node and checks that it may stand at this place. Returns its layer (0 for the empty tree)
/// and the length of its block.
pub(crate) fn load_node<S: BlockSource + ?Sized>(
    source: &S,
    cid: Cid,
    place: Place,
) -> Result<(Node, u32, usize), MstError> {
    let block = source
        .block(&cid)
        .map_err(|error| MstError::Source { cid, error })?
        .ok_or(MstError::Missing(cid))?;
    let node = Node::decode(&block).map_err(|fault| MstError::node(cid, fault))?;
    let layer = match (place, node.layer(), node.left()) {
        (Place::Root, Some(layer), _) => Ok(layer),
        (Place::Root, None, None) => Ok(0),
        (Place::Root, None, Some(_)) => Err(NodeFault::NotTrimmed),
        (Place::Layer(expected), Some(found), _) if found != expected => {
            Err(NodeFault::Layer { expected, found })
        }
        (Place::Layer(_), None, None) => Err(NodeFault::Empty),
        (Place::Layer(expected), ..) => Ok(expected),
    };
    let layer = layer.map_err(|fault| MstError::node(cid, fault))?;
    if layer == 0 && (0..=node.len()).any(|number| node.subtree(number).is_some()) {
        return Err(MstError::node(cid, NodeFault::BelowLayerZero));
    }
    Ok((node, layer, block.len()))
}
