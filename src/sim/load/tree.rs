//! A repository's tree that is kept, and changed in place: what a host has.
//!
//! A commit costs the way from the root to its key, whatever the size of the repository; the rest keeps its CIDs.
//! [`SimAccount`](crate::sim::SimAccount) builds the whole tree anew for each commit, and is the check on this one.

use crate::repo::mst::{NodeEncoder, layer_of};
use crate::types::Cid;

/// The tree, with its records.
#[derive(Default)]
pub struct Tree {
    root: Option<Box<Node>>,
    records: u64,
}

struct Node {
    layer: u32,
    /// As long as nothing in it or below it changed.
    cid: Option<Cid>,
    left: Option<Box<Node>>,
    entries: Vec<Entry>,
}

struct Entry {
    key: Box<str>,
    cid: Cid,
    bytes: Box<[u8]>,
    right: Option<Box<Node>>,
}

/// A block of the tree or a record.
pub type Block = (Cid, Vec<u8>);

impl Node {
    const fn keyless(layer: u32, left: Option<Box<Self>>) -> Self {
        Self {
            layer,
            cid: None,
            left,
            entries: Vec::new(),
        }
    }

    /// Where a key stands, or would.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| (*entry.key).cmp(key))
    }

    /// The subtree before the entry of this number.
    fn child(&mut self, number: usize) -> &mut Option<Box<Self>> {
        match number.checked_sub(1) {
            None => &mut self.left,
            Some(before) => &mut self.entries[before].right,
        }
    }

    const fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.left.is_none()
    }

    fn some(self: Box<Self>) -> Option<Box<Self>> {
        (!self.is_empty()).then_some(self)
    }

    fn encode(&self) -> Vec<u8> {
        let mut encoder = NodeEncoder::default();
        let cid = |node: &Self| node.cid.expect("computed from the leaves up");
        if let Some(left) = &self.left {
            encoder.attach(cid(left));
        }
        for entry in &self.entries {
            encoder.push(entry.key.as_bytes(), entry.cid);
            if let Some(right) = &entry.right {
                encoder.attach(cid(right));
            }
        }
        let mut block = Vec::new();
        encoder.finish(&mut block);
        block
    }
}

impl Tree {
    /// How many records there are.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Puts a record; returns the CID of the one that it replaces.
    pub fn put(&mut self, key: &str, bytes: Vec<u8>) -> Option<Cid> {
        let layer = layer_of(key.as_bytes());
        let mut root = match self.root.take() {
            Some(root) => root,
            None => Box::new(Node::keyless(layer, None)),
        };
        while root.layer < layer {
            root = Box::new(Node::keyless(root.layer + 1, Some(root)));
        }
        let entry = Entry {
            key: key.into(),
            cid: Cid::of_block(&bytes),
            bytes: bytes.into(),
            right: None,
        };
        let replaced = put(&mut root, layer, entry);
        self.root = Some(root);
        self.records += u64::from(replaced.is_none());
        replaced
    }

    /// Deletes a record; returns its CID.
    pub fn delete(&mut self, key: &str) -> Option<Cid> {
        let deleted = delete(self.root.as_mut()?, key)?;
        while let Some(node) = self.root.take() {
            if !node.entries.is_empty() {
                self.root = Some(node);
                break;
            }
            self.root = node.left;
        }
        self.records -= 1;
        Some(deleted)
    }

    /// The root's CID; hands the nodes that are new since the last call to `sink`, children first.
    pub fn root(&mut self, mut sink: impl FnMut(Cid, Vec<u8>)) -> Cid {
        match &mut self.root {
            Some(root) => compute(root, &mut sink),
            None => {
                let block = Node::keyless(0, None).encode();
                let cid = Cid::of_block(&block);
                sink(cid, block);
                cid
            }
        }
    }

    /// The nodes on the way to where a key is, or would be: what a host sends with a commit beside what is new.
    pub fn way(&self, key: &str, mut sink: impl FnMut(Cid, Vec<u8>)) {
        let mut next = self.root.as_deref();
        while let Some(node) = next {
            sink(node.cid.expect("computed"), node.encode());
            next = match node.find(key) {
                Ok(_) => None,
                Err(0) => node.left.as_deref(),
                Err(number) => node.entries[number - 1].right.as_deref(),
            };
        }
    }

    /// Every block in pre-order, records right after the entry that names them: an export that can be streamed.
    /// The CIDs must be computed ([`Tree::root`]).
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        let empty = self.root.is_none().then(|| {
            let block = Node::keyless(0, None).encode();
            (Cid::of_block(&block), block)
        });
        let mut stack = Vec::new();
        stack.extend(self.root.as_deref().map(Step::Node));
        let rest = std::iter::from_fn(move || match stack.pop()? {
            Step::Node(node) => {
                for entry in node.entries.iter().rev() {
                    stack.extend(entry.right.as_deref().map(Step::Node));
                    stack.push(Step::Record(entry));
                }
                stack.extend(node.left.as_deref().map(Step::Node));
                Some((node.cid.expect("computed"), node.encode()))
            }
            Step::Record(entry) => Some((entry.cid, entry.bytes.to_vec())),
        });
        empty.into_iter().chain(rest)
    }

    /// The key of some record, by a number that is drawn.
    #[must_use]
    pub fn some_key(&self, mut drawn: u64) -> Option<String> {
        let mut node = self.root.as_deref()?;
        loop {
            let number = usize::try_from(drawn % (node.entries.len() as u64 + 1)).ok()?;
            drawn = drawn.rotate_right(7) ^ 0x9e37;
            let below = match number.checked_sub(1) {
                None => node.left.as_deref(),
                Some(before) => node.entries[before].right.as_deref(),
            };
            match below {
                Some(below) => node = below,
                None => {
                    let entry = node.entries.get(number.saturating_sub(1))?;
                    return Some(entry.key.to_string());
                }
            }
        }
    }
}

enum Step<'t> {
    Node(&'t Node),
    Record(&'t Entry),
}

fn put(node: &mut Node, layer: u32, entry: Entry) -> Option<Cid> {
    node.cid = None;
    let number = match node.find(&entry.key) {
        Ok(at) => {
            let old = &mut node.entries[at];
            old.bytes = entry.bytes;
            return Some(std::mem::replace(&mut old.cid, entry.cid));
        }
        Err(number) => number,
    };
    let node_layer = node.layer;
    if node_layer > layer {
        let below = node
            .child(number)
            .get_or_insert_with(|| Box::new(Node::keyless(node_layer - 1, None)));
        return put(below, layer, entry);
    }
    let (left, right) = split(node.child(number).take(), &entry.key);
    *node.child(number) = left;
    node.entries.insert(number, Entry { right, ..entry });
    None
}

/// Parts a subtree at a key that is not in it. A part that is whole keeps its CIDs.
fn split(node: Option<Box<Node>>, key: &str) -> (Option<Box<Node>>, Option<Box<Node>>) {
    let Some(mut node) = node else {
        return (None, None);
    };
    let number = node.find(key).unwrap_or_else(|number| number);
    let (before, after) = split(node.child(number).take(), key);
    if number == node.entries.len() && after.is_none() {
        *node.child(number) = before;
        return (Some(node), None);
    }
    if number == 0 && before.is_none() {
        node.left = after;
        return (None, Some(node));
    }
    let right = Node {
        layer: node.layer,
        cid: None,
        left: after,
        entries: node.entries.split_off(number),
    };
    *node.child(number) = before;
    node.cid = None;
    (node.some(), Box::new(right).some())
}

fn delete(node: &mut Node, key: &str) -> Option<Cid> {
    match node.find(key) {
        Ok(at) => {
            node.cid = None;
            let entry = node.entries.remove(at);
            let before = node.child(at).take();
            *node.child(at) = merge(before, entry.right);
            Some(entry.cid)
        }
        Err(number) => {
            let below = node.child(number).as_mut()?;
            let deleted = delete(below, key)?;
            if below.is_empty() {
                *node.child(number) = None;
            }
            node.cid = None;
            Some(deleted)
        }
    }
}

fn merge(left: Option<Box<Node>>, right: Option<Box<Node>>) -> Option<Box<Node>> {
    let (mut left, mut right) = match (left, right) {
        (Some(left), Some(right)) => (left, right),
        (one, other) => return one.or(other),
    };
    let end = left.entries.len();
    let seam = merge(left.child(end).take(), right.left.take());
    *left.child(end) = seam;
    left.entries.append(&mut right.entries);
    left.cid = None;
    Some(left)
}

fn compute(node: &mut Node, sink: &mut impl FnMut(Cid, Vec<u8>)) -> Cid {
    if let Some(cid) = node.cid {
        return cid;
    }
    for child in node
        .left
        .iter_mut()
        .chain(node.entries.iter_mut().filter_map(|entry| entry.right.as_mut()))
    {
        compute(child, sink);
    }
    let block = node.encode();
    let cid = Cid::of_block(&block);
    node.cid = Some(cid);
    sink(cid, block);
    cid
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::repo::mst::tree_root;
    use crate::sim::world::Rng;

    #[test]
    fn after_every_change_the_root_is_that_of_a_tree_built_anew() {
        let mut rng = Rng::new(1, "tree");
        let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
        for step in 0..3000_u64 {
            let key = format!("com.example.thing/k{}", rng.below(400));
            if rng.chance(450) {
                let deleted = tree.delete(&key);
                assert_eq!(deleted, map.remove(&key), "step {step}");
            } else {
                let bytes = step.to_be_bytes().to_vec();
                let replaced = map.insert(key.clone(), Cid::of_block(&bytes));
                assert_eq!(tree.put(&key, bytes), replaced, "step {step}");
            }
            let built = tree_root(map.iter().map(|(key, cid)| (key.as_bytes(), *cid))).expect("sorted");
            assert_eq!(tree.root(|_, _| {}), built, "step {step}");
            assert_eq!(tree.records(), map.len() as u64);
            if let Some(key) = tree.some_key(rng.next()) {
                assert!(map.contains_key(&key));
            }
        }
    }
}
