//! The complete walk over a repository that comes as a stream: tree nodes in pre-order, each record right behind
//! the entry that points to it, as exports and snapshots are written.
//!
//! Holds only the nodes between the root and where it stands, so memory does not grow with the repository, and
//! says after each block which one must come next. Any other block, or none, is an error: what a walk accepts is
//! the whole tree and every record, and nothing else.

use std::borrow::Cow;
use std::io;

use crate::types::Cid;

use super::walk::check_visit;
use super::{BlockSource, LAYER_MAX, MstError, Node, NodeFault, Place, WalkLimits, WalkStats, load_node};

/// Most bytes of nodes that are held at once. A tree's own have a few KiB; mined keys make larger ones.
pub const STREAM_HELD_BYTES_MAX: usize = 16 << 20;

/// Why a stream is not a whole repository in order.
#[derive(Debug, thiserror::Error)]
pub enum StreamFault {
    /// A node breaks a rule.
    #[error(transparent)]
    Tree(#[from] MstError),
    /// Another block than the next of the tree.
    #[error("block {found} stands where {wanted} should: blocks are missing, too many, or out of order")]
    OutOfOrder {
        /// The next of the tree.
        wanted: Cid,
        /// What came.
        found: Cid,
    },
    /// The stream ends too early.
    #[error("it ends before block {wanted} of its tree")]
    Cut {
        /// The next of the tree.
        wanted: Cid,
    },
    /// A block behind the last one of the tree.
    #[error("block {0} stands behind the end of its tree")]
    Extra(Cid),
    /// The nodes of one path are too large together.
    #[error("the nodes from its root to one record have more than {STREAM_HELD_BYTES_MAX} bytes")]
    TooDeep,
}

/// What comes next.
enum Wanted {
    Node(Cid, Place),
    Record(Cid),
    Nothing,
}

struct Frame {
    cid: Cid,
    node: Node,
    layer: u32,
    bytes: usize,
    /// Where the walk stands: an even number is the subtree before an entry, an odd one the entry.
    next: usize,
}

/// A walk that is fed block by block. The blocks must have been hashed.
pub struct StreamedTree {
    stack: Vec<Frame>,
    held: usize,
    wanted: Wanted,
    last_key: Vec<u8>,
    stats: WalkStats,
}

/// One block, as a source.
struct One<'a>(Cid, &'a [u8]);

impl BlockSource for One<'_> {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        Ok((self.0 == *cid).then_some(Cow::Borrowed(self.1)))
    }
}

impl StreamedTree {
    /// A walk of the tree with this root, which is the first block that it wants.
    #[must_use]
    pub fn new(root: Cid) -> Self {
        Self {
            stack: Vec::new(),
            held: 0,
            wanted: Wanted::Node(root, Place::Root),
            last_key: Vec::new(),
            stats: WalkStats::default(),
        }
    }

    /// Takes the next block. Returns the path if it is a record.
    ///
    /// # Errors
    /// When it is not the block that must come, or a node that breaks a rule. The walk is of no further use then.
    pub fn push(&mut self, cid: Cid, block: &[u8]) -> Result<Option<&[u8]>, StreamFault> {
        let is_record = match self.wanted {
            Wanted::Nothing => return Err(StreamFault::Extra(cid)),
            Wanted::Node(wanted, _) | Wanted::Record(wanted) if wanted != cid => {
                return Err(StreamFault::OutOfOrder { wanted, found: cid });
            }
            Wanted::Record(_) => {
                self.visit()?;
                true
            }
            Wanted::Node(_, place) => {
                self.enter(cid, place, block)?;
                false
            }
        };
        self.advance()?;
        Ok(is_record.then_some(&self.last_key))
    }

    /// The record that must come next, if one must.
    #[must_use]
    pub const fn wanted_record(&self) -> Option<Cid> {
        match self.wanted {
            Wanted::Record(cid) => Some(cid),
            Wanted::Node(..) | Wanted::Nothing => None,
        }
    }

    /// Goes on without the record that must come next: it is known to be withheld. Returns its path.
    ///
    /// # Errors
    /// As [`Self::push`]; also when no record must come.
    pub fn pass_over(&mut self) -> Result<Option<&[u8]>, StreamFault> {
        match self.wanted {
            Wanted::Record(_) => {
                self.visit()?;
                self.advance()?;
                Ok(Some(&self.last_key))
            }
            Wanted::Node(wanted, _) => Err(StreamFault::Cut { wanted }),
            Wanted::Nothing => Ok(None),
        }
    }

    /// Checks the path of the record that was wanted.
    fn visit(&mut self) -> Result<(), StreamFault> {
        let frame = self.stack.last().expect("a record is wanted by a node");
        let entry = frame
            .node
            .entry((frame.next - 1) / 2)
            .expect("its entry wants it");
        let limits = WalkLimits::default();
        check_visit(&limits, frame.cid, entry.key, &mut self.last_key, &mut self.stats)?;
        Ok(())
    }

    fn enter(&mut self, cid: Cid, place: Place, block: &[u8]) -> Result<(), StreamFault> {
        self.held += block.len();
        if self.held > STREAM_HELD_BYTES_MAX {
            return Err(StreamFault::TooDeep);
        }
        let (node, layer, bytes) = load_node(&One(cid, block), cid, place)?;
        if layer > LAYER_MAX {
            let fault = NodeFault::TooDeep {
                found: layer,
                max: LAYER_MAX,
            };
            return Err(MstError::node(cid, fault).into());
        }
        self.stats.nodes += 1;
        self.stats.node_bytes += bytes as u64;
        self.stack.push(Frame {
            cid,
            node,
            layer,
            bytes,
            next: 0,
        });
        Ok(())
    }

    /// Finds what comes next.
    fn advance(&mut self) -> Result<(), StreamFault> {
        while let Some(frame) = self.stack.last_mut() {
            let (number, at_entry) = (frame.next / 2, frame.next % 2 == 1);
            frame.next += 1;
            if !at_entry {
                if let Some(child) = frame.node.subtree(number) {
                    let place =
                        Place::below(frame.layer).map_err(|fault| MstError::node(frame.cid, fault))?;
                    self.wanted = Wanted::Node(child, place);
                    return Ok(());
                }
            } else if let Some(entry) = frame.node.entry(number) {
                self.wanted = Wanted::Record(entry.value);
                return Ok(());
            } else {
                self.held -= frame.bytes;
                self.stack.pop();
            }
        }
        self.wanted = Wanted::Nothing;
        Ok(())
    }

    /// Ends the walk.
    ///
    /// # Errors
    /// When blocks are still to come.
    pub fn finish(self) -> Result<WalkStats, StreamFault> {
        match self.wanted {
            Wanted::Nothing => Ok(self.stats),
            Wanted::Node(wanted, _) | Wanted::Record(wanted) => Err(StreamFault::Cut { wanted }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{Map, any_map, build};
    use super::*;

    /// A repository as a stream: the tree in pre-order, a record behind each entry.
    fn stream(map: &Map) -> (Cid, Vec<(Cid, Vec<u8>)>) {
        let (root, blocks) = build(map);
        let mut out = Vec::new();
        fn go(blocks: &impl BlockSource, cid: Cid, out: &mut Vec<(Cid, Vec<u8>)>) {
            let block = blocks.block(&cid).unwrap().unwrap().into_owned();
            let node = Node::decode(&block).unwrap();
            out.push((cid, block));
            for number in 0..=node.len() {
                if let Some(child) = node.subtree(number) {
                    go(blocks, child, out);
                }
                if let Some(entry) = node.entry(number) {
                    out.push((entry.value, Vec::new()));
                }
            }
        }
        go(&blocks, root, &mut out);
        (root, out)
    }

    fn run(root: Cid, blocks: &[(Cid, Vec<u8>)]) -> Result<(Vec<String>, WalkStats), StreamFault> {
        let mut walk = StreamedTree::new(root);
        let mut paths = Vec::new();
        for (cid, block) in blocks {
            let path = walk.push(*cid, block)?;
            paths.extend(path.map(|path| String::from_utf8(path.to_vec()).unwrap()));
        }
        Ok((paths, walk.finish()?))
    }

    proptest! {
        #[test]
        fn the_whole_tree_passes_and_nothing_else(map in any_map(60), at in any::<prop::sample::Index>()) {
            let (root, blocks) = stream(&map);
            let (paths, stats) = run(root, &blocks).unwrap();
            prop_assert!(paths.iter().eq(map.keys()));
            prop_assert_eq!(stats.records, map.len() as u64);
            prop_assert_eq!(stats.nodes + stats.records, blocks.len() as u64);

            // Cut anywhere, one block left out, doubled, or swapped with the next: never the whole tree.
            let at = at.index(blocks.len());
            let cut = matches!(run(root, &blocks[..at]), Err(StreamFault::Cut { .. }));
            prop_assert!(cut);
            let mut without = blocks.clone();
            without.remove(at);
            // Two equal records in a row are one and the same block.
            let next_is_equal = blocks.get(at + 1).is_some_and(|next| next.0 == blocks[at].0);
            let left_out = run(root, &without);
            prop_assert!(left_out.is_err() || next_is_equal);
            let mut doubled = blocks.clone();
            doubled.push(blocks[at].clone());
            prop_assert!(matches!(run(root, &doubled), Err(StreamFault::Extra(_))));
            if at + 1 < blocks.len() && !next_is_equal {
                let mut swapped = blocks.clone();
                swapped.swap(at, at + 1);
                let refused = matches!(run(root, &swapped), Err(StreamFault::OutOfOrder { .. }));
                prop_assert!(refused);
            }
        }
    }

    #[test]
    fn records_are_passed_over_and_nodes_are_not() {
        let keys = ["app.bsky.feed.post/aaa", "app.bsky.feed.post/bbb"];
        let map: Map = keys
            .iter()
            .map(|key| ((*key).to_owned(), Cid::of_block(key.as_bytes())))
            .collect();
        let (root, blocks) = stream(&map);
        let withheld = map[keys[1]];
        let mut walk = StreamedTree::new(root);
        assert!(
            matches!(walk.pass_over(), Err(StreamFault::Cut { .. })),
            "the root is no record"
        );
        for (cid, block) in blocks.iter().filter(|(cid, _)| *cid != withheld) {
            if walk.wanted_record() == Some(withheld) {
                walk.pass_over().unwrap();
            }
            walk.push(*cid, block).unwrap();
        }
        if walk.wanted_record() == Some(withheld) {
            walk.pass_over().unwrap();
        }
        assert_eq!(walk.finish().unwrap().records, 2);
    }

    #[test]
    fn a_malformed_node_is_refused() {
        let block = vec![0xa0];
        let root = Cid::of_block(&block);
        assert!(matches!(run(root, &[(root, block)]), Err(StreamFault::Tree(_))));
    }

    #[test]
    fn what_is_held_has_a_limit() {
        let block = vec![0; STREAM_HELD_BYTES_MAX + 1];
        let root = Cid::of_block(&block);
        assert!(matches!(run(root, &[(root, block)]), Err(StreamFault::TooDeep)));
    }
}
