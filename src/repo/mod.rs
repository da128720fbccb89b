//! Repository objects: the tree of records, proofs about it, and whole-repository exports.

pub mod export;
pub mod mst;
pub mod proof;
