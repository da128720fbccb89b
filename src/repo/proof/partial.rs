//! A tree of which only some nodes are loaded, and the three edits that undo operations.
//!
//! Nodes sit in one arena and refer to each other by index; whatever was never needed stays a link.
//! An edited node loses its CID, and so does every node above it; the rest keep theirs, so that
//! computing the new root encodes only what changed.

use crate::types::Cid;

use super::super::mst::{BlockSource, MstError, NodeEncoder, NodeFault, Place, layer_of, load_node};
use super::{ProofError, UndoneRoot};

/// A subtree: not loaded, or a node of the arena.
#[derive(Debug, Clone, Copy)]
enum Link {
    Stub(Cid),
    Loaded(usize),
}

/// A key and its record. The key's bytes lie in the tree's buffer.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    start: usize,
    end: usize,
    value: Cid,
}

/// A loaded node: `subtrees[n]` hangs between `leaves[n - 1]` and `leaves[n]`.
#[derive(Debug, Default)]
struct Part {
    layer: u32,
    leaves: Vec<Leaf>,
    subtrees: Vec<Option<Link>>,
    /// The CID, as long as neither the node nor anything below it was edited.
    cid: Option<Cid>,
}

impl Part {
    fn keyless(layer: u32, subtree: Option<Link>) -> Self {
        Self {
            layer,
            leaves: Vec::new(),
            subtrees: vec![subtree],
            cid: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.subtrees.iter().all(Option::is_none)
    }
}

pub(super) struct PartialTree<'s, S: ?Sized> {
    source: &'s S,
    /// Every key that was loaded or inserted.
    keys: Vec<u8>,
    parts: Vec<Part>,
    root: usize,
    /// The way down to the node being edited: each node above it, and the number of the subtree taken.
    trail: Vec<(usize, usize)>,
}

impl<'s, S: BlockSource + ?Sized> PartialTree<'s, S> {
    pub(super) fn load(source: &'s S, data: Cid) -> Result<Self, ProofError> {
        let mut tree = Self {
            source,
            keys: Vec::new(),
            parts: Vec::new(),
            root: 0,
            trail: Vec::new(),
        };
        tree.root = tree.load_part(data, Place::Root)?;
        Ok(tree)
    }

    /// Undoes a create: takes the leaf out and joins the subtrees on both sides of it.
    pub(super) fn remove(&mut self, path: &[u8], cid: Cid) -> Result<(), ProofError> {
        let (at, number) = self.find(path)?.ok_or(ProofError::CreateNotThere)?;
        if self.parts[at].leaves[number].value != cid {
            return Err(ProofError::CreateNotThere);
        }
        let joined = self.join(at, number)?;
        let part = &mut self.parts[at];
        part.leaves.remove(number);
        part.subtrees.remove(number);
        part.subtrees[number] = joined;
        self.mark_edited(at);
        self.prune(at);
        Ok(())
    }

    /// Undoes an update: puts the old record back.
    pub(super) fn replace(&mut self, path: &[u8], cid: Cid, prev: Cid) -> Result<(), ProofError> {
        let (at, number) = self.find(path)?.ok_or(ProofError::UpdateMismatch)?;
        let leaf = &mut self.parts[at].leaves[number];
        if leaf.value != cid {
            return Err(ProofError::UpdateMismatch);
        }
        leaf.value = prev;
        self.mark_edited(at);
        Ok(())
    }

    /// Undoes a delete: splits the subtree that spans the key and puts the leaf between the halves.
    pub(super) fn insert(&mut self, path: &[u8], prev: Cid) -> Result<(), ProofError> {
        let layer = layer_of(path);
        if self.parts[self.root].is_empty() {
            self.root = self.add(Part::keyless(layer, None));
        }
        while self.parts[self.root].layer < layer {
            let above = Part::keyless(self.parts[self.root].layer + 1, Some(Link::Loaded(self.root)));
            self.root = self.add(above);
        }
        let at = self.descend_making(path, layer)?;
        let number = match self.search(at, path) {
            Ok(_) => return Err(ProofError::DeleteStillThere),
            Err(number) => number,
        };
        let (left, right) = self.split(at, number, path)?;
        let start = self.keys.len();
        self.keys.extend_from_slice(path);
        let leaf = Leaf {
            start,
            end: self.keys.len(),
            value: prev,
        };
        let part = &mut self.parts[at];
        part.leaves.insert(number, leaf);
        part.subtrees[number] = left;
        part.subtrees.insert(number + 1, right);
        self.mark_edited(at);
        Ok(())
    }

    /// Trims the top and computes the root's CID.
    pub(super) fn into_root(mut self) -> Result<UndoneRoot, ProofError> {
        let mut root = self.root;
        while self.parts[root].leaves.is_empty() {
            match self.parts[root].subtrees[0] {
                None => break,
                Some(Link::Loaded(below)) => root = below,
                Some(Link::Stub(cid)) => match self.subtree(root, 0) {
                    Ok(Some(below)) => root = below,
                    Ok(None) => break,
                    Err(ProofError::Incomplete(_)) => return Ok(UndoneRoot { cid, unseen: true }),
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(UndoneRoot {
            cid: self.compute_cid(root),
            unseen: false,
        })
    }

    fn key(&self, leaf: &Leaf) -> &[u8] {
        &self.keys[leaf.start..leaf.end]
    }

    fn search(&self, at: usize, path: &[u8]) -> Result<usize, usize> {
        self.parts[at]
            .leaves
            .binary_search_by(|leaf| self.key(leaf).cmp(path))
    }

    fn add(&mut self, part: Part) -> usize {
        self.parts.push(part);
        self.parts.len() - 1
    }

    fn load_part(&mut self, cid: Cid, place: Place) -> Result<usize, MstError> {
        let (node, layer, _) = load_node(self.source, cid, place)?;
        let mut part = Part {
            layer,
            leaves: Vec::with_capacity(node.len()),
            subtrees: Vec::with_capacity(node.len() + 1),
            cid: Some(cid),
        };
        part.subtrees.push(node.left().map(Link::Stub));
        for entry in node.entries() {
            let start = self.keys.len();
            self.keys.extend_from_slice(entry.key);
            part.leaves.push(Leaf {
                start,
                end: self.keys.len(),
                value: entry.value,
            });
            part.subtrees.push(entry.right.map(Link::Stub));
        }
        Ok(self.add(part))
    }

    /// The node of a subtree, loaded if it was not yet. Its keys must lie between its neighbours'.
    fn subtree(&mut self, at: usize, number: usize) -> Result<Option<usize>, ProofError> {
        let cid = match self.parts[at].subtrees[number] {
            None => return Ok(None),
            Some(Link::Loaded(below)) => return Ok(Some(below)),
            Some(Link::Stub(cid)) => cid,
        };
        let place = Place::below(self.parts[at].layer).map_err(|fault| MstError::node(cid, fault))?;
        let below = self.load_part(cid, place)?;
        let leaves = &self.parts[at].leaves;
        let after = number.checked_sub(1).map(|before| &leaves[before]);
        self.check_order(cid, after, self.parts[below].leaves.first())?;
        self.check_order(cid, self.parts[below].leaves.last(), leaves.get(number))?;
        self.parts[at].subtrees[number] = Some(Link::Loaded(below));
        Ok(Some(below))
    }

    fn check_order(&self, cid: Cid, left: Option<&Leaf>, right: Option<&Leaf>) -> Result<(), MstError> {
        match (left, right) {
            (Some(left), Some(right)) if self.key(left) >= self.key(right) => {
                Err(MstError::node(cid, NodeFault::KeyOrder))
            }
            _ => Ok(()),
        }
    }

    /// Goes down to the path's layer; `None` when no subtree leads there. The trail says how.
    fn descend(&mut self, path: &[u8], layer: u32) -> Result<Option<usize>, ProofError> {
        self.trail.clear();
        let mut at = self.root;
        while self.parts[at].layer > layer {
            let number = self.search(at, path).unwrap_or_else(|number| number);
            self.trail.push((at, number));
            match self.subtree(at, number)? {
                Some(below) => at = below,
                None => return Ok(None),
            }
        }
        Ok((self.parts[at].layer == layer).then_some(at))
    }

    /// As [`Self::descend`], adding keyless nodes where no subtree leads on.
    fn descend_making(&mut self, path: &[u8], layer: u32) -> Result<usize, ProofError> {
        loop {
            if let Some(at) = self.descend(path, layer)? {
                return Ok(at);
            }
            let &(above, number) = self
                .trail
                .last()
                .expect("the root is on the path's layer or above");
            // The whole chain at once; the next turn finds its end.
            let mut below = self.add(Part::keyless(layer, None));
            for between in layer + 1..self.parts[above].layer {
                below = self.add(Part::keyless(between, Some(Link::Loaded(below))));
            }
            self.parts[above].subtrees[number] = Some(Link::Loaded(below));
        }
    }

    fn find(&mut self, path: &[u8]) -> Result<Option<(usize, usize)>, ProofError> {
        let Some(at) = self.descend(path, layer_of(path))? else {
            return Ok(None);
        };
        Ok(self.search(at, path).ok().map(|number| (at, number)))
    }

    fn mark_edited(&mut self, at: usize) {
        self.parts[at].cid = None;
        for &(above, _) in &self.trail {
            self.parts[above].cid = None;
        }
    }

    /// Takes the edited node out if nothing is left in it, and so on upwards.
    fn prune(&mut self, mut at: usize) {
        while self.parts[at].is_empty() {
            let Some((above, number)) = self.trail.pop() else {
                return;
            };
            self.parts[above].subtrees[number] = None;
            at = above;
        }
    }

    /// Joins the subtrees on both sides of a leaf that is about to go, along their seam.
    fn join(&mut self, at: usize, number: usize) -> Result<Option<Link>, ProofError> {
        let mut pairs = Vec::new();
        let mut places = ((at, number), (at, number + 1));
        let mut joined = loop {
            let (left, right) = places;
            match (
                self.parts[left.0].subtrees[left.1],
                self.parts[right.0].subtrees[right.1],
            ) {
                (Some(_), Some(_)) => {}
                (one, None) | (None, one) => break one,
            }
            let left = self
                .subtree(left.0, left.1)?
                .expect("the link was seen to be there");
            let right = self
                .subtree(right.0, right.1)?
                .expect("the link was seen to be there");
            pairs.push((left, right));
            places = ((left, self.parts[left].leaves.len()), (right, 0));
        };
        while let Some((left, right)) = pairs.pop() {
            let right = std::mem::take(&mut self.parts[right]);
            let left_part = &mut self.parts[left];
            left_part.subtrees.pop();
            left_part.subtrees.push(joined);
            left_part.subtrees.extend_from_slice(&right.subtrees[1..]);
            left_part.leaves.extend_from_slice(&right.leaves);
            left_part.cid = None;
            joined = Some(Link::Loaded(left));
        }
        Ok(joined)
    }

    /// Splits a subtree into the keys before and after a path that is in none of its nodes.
    fn split(
        &mut self,
        at: usize,
        number: usize,
        path: &[u8],
    ) -> Result<(Option<Link>, Option<Link>), ProofError> {
        let mut halves = Vec::new();
        let mut next = self.subtree(at, number)?;
        while let Some(at) = next {
            let number = self.search(at, path).unwrap_or_else(|number| number);
            next = self.subtree(at, number)?;
            let mut left = std::mem::take(&mut self.parts[at]);
            let right = Part {
                layer: left.layer,
                leaves: left.leaves.split_off(number),
                subtrees: left.subtrees.split_off(number),
                cid: None,
            };
            left.subtrees.push(None);
            left.cid = None;
            halves.push((left, right));
        }
        let (mut before, mut after) = (None, None);
        while let Some((mut left, mut right)) = halves.pop() {
            left.subtrees[left.leaves.len()] = before;
            right.subtrees[0] = after;
            before = (!left.is_empty()).then(|| Link::Loaded(self.add(left)));
            after = (!right.is_empty()).then(|| Link::Loaded(self.add(right)));
        }
        Ok((before, after))
    }

    /// Encodes the edited nodes below and including this one, children first.
    fn compute_cid(&mut self, root: usize) -> Cid {
        let mut encoder = NodeEncoder::default();
        let mut block = Vec::new();
        let mut stack = vec![(root, 0)];
        while let Some((at, number)) = stack.last_mut() {
            let part = &self.parts[*at];
            if part.cid.is_none()
                && let Some(subtree) = part.subtrees.get(*number)
            {
                *number += 1;
                if let &Some(Link::Loaded(below)) = subtree {
                    stack.push((below, 0));
                }
                continue;
            }
            let at = *at;
            stack.pop();
            if part.cid.is_none() {
                self.encode(at, &mut encoder);
                encoder.finish(&mut block);
                self.parts[at].cid = Some(Cid::of_block(&block));
            }
        }
        self.parts[root].cid.expect("the root was encoded last")
    }

    fn encode(&self, at: usize, encoder: &mut NodeEncoder) {
        let part = &self.parts[at];
        let cid_of = |link: Link| match link {
            Link::Stub(cid) => cid,
            Link::Loaded(below) => self.parts[below]
                .cid
                .expect("children are encoded before their parents"),
        };
        if let Some(left) = part.subtrees[0] {
            encoder.attach(cid_of(left));
        }
        for (leaf, right) in part.leaves.iter().zip(&part.subtrees[1..]) {
            encoder.push(self.key(leaf), leaf.value);
            if let &Some(right) = right {
                encoder.attach(cid_of(right));
            }
        }
    }
}
