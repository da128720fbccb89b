//! Pass 1: builds the tree of a range of rows and keeps its upper nodes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::types::{Cid, Digest};

use super::super::mst::TreeBuilder;
use super::{ExportError, RecordRows, car, is_withheld, show};

/// What holding a node costs beside its bytes: its place in the map and the allocator's share, about.
const NODE_OVERHEAD_BYTES: usize = 96;

/// A range of paths: from the first (inclusive) to the last (exclusive), or open.
#[derive(Debug, Clone, Default)]
pub(super) struct Range {
    pub(super) from: Option<Vec<u8>>,
    pub(super) until: Option<Vec<u8>>,
}

impl Range {
    pub(super) fn ends_before(&self, path: &[u8]) -> bool {
        self.until.as_ref().is_some_and(|until| path >= until.as_slice())
    }
}

/// What a tree comes to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) records: u64,
    pub(super) record_bytes: u64,
    /// All nodes and records as CAR blocks.
    pub(super) car_bytes: u64,
}

/// The upper nodes of a tree.
#[derive(Debug)]
pub(super) struct Kept {
    nodes: BTreeMap<Digest, KeptNode>,
    /// Nodes of this layer and above are kept.
    from_layer: u32,
    bytes: usize,
    root: Cid,
    root_layer: u32,
    totals: Totals,
}

#[derive(Debug)]
struct KeptNode {
    layer: u32,
    block: Box<[u8]>,
}

impl Kept {
    /// Scans a range, checks each record's hash and builds the tree. Keeps nodes from `from_layer` on,
    /// or from a higher layer when they would take more than `bytes_max`.
    pub(super) fn build<R: RecordRows + ?Sized>(
        rows: &R,
        range: &Range,
        from_layer: u32,
        bytes_max: usize,
    ) -> Result<Self, ExportError<R::Error>> {
        Self::build_on(rows, range, from_layer, bytes_max, 0)
    }

    /// As [`Self::build`], for a subtree that hangs on this layer or a whole tree (layer 0).
    pub(super) fn build_on<R: RecordRows + ?Sized>(
        rows: &R,
        range: &Range,
        from_layer: u32,
        bytes_max: usize,
        layer: u32,
    ) -> Result<Self, ExportError<R::Error>> {
        let mut kept = Self::new(from_layer);
        let mut records = Totals::default();
        let mut builder = TreeBuilder::new(|layer, cid, block: &[u8]| kept.add(layer, cid, block, bytes_max));
        let mut failed = None;
        rows.scan(range.from.as_deref(), &mut |path, cid, bytes| {
            if range.ends_before(path) {
                return ControlFlow::Break(());
            }
            let withheld = is_withheld(&cid, bytes);
            let step = if withheld || cid.matches(bytes) {
                builder.push(path, cid).map_err(ExportError::Build)
            } else {
                Err(ExportError::RecordHash {
                    path: show(path),
                    cid,
                })
            };
            if let Err(error) = step {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            records.records += 1;
            records.record_bytes += bytes.len() as u64;
            if !withheld {
                records.car_bytes += car::frame_bytes(bytes.len());
            }
            ControlFlow::Continue(())
        })
        .map_err(ExportError::Rows)?;
        if let Some(error) = failed {
            return Err(error);
        }
        builder.finish_on(layer);
        kept.totals.records = records.records;
        kept.totals.record_bytes = records.record_bytes;
        kept.totals.car_bytes += records.car_bytes;
        Ok(kept)
    }

    pub(super) const fn new(from_layer: u32) -> Self {
        Self {
            nodes: BTreeMap::new(),
            from_layer,
            bytes: 0,
            root: Cid::dag_cbor([0; 32]),
            root_layer: 0,
            totals: Totals {
                records: 0,
                record_bytes: 0,
                car_bytes: 0,
            },
        }
    }

    /// Takes the next node of a build; the last one is the root.
    pub(super) fn add(&mut self, layer: u32, cid: Cid, block: &[u8], bytes_max: usize) {
        (self.root, self.root_layer) = (cid, layer);
        self.totals.car_bytes += car::frame_bytes(block.len());
        if layer < self.from_layer {
            return;
        }
        self.bytes += block.len() + NODE_OVERHEAD_BYTES;
        self.nodes.insert(
            *cid.digest(),
            KeptNode {
                layer,
                block: block.into(),
            },
        );
        while self.bytes > bytes_max && !self.nodes.is_empty() {
            self.from_layer += 1;
            let from_layer = self.from_layer;
            self.nodes.retain(|_, node| node.layer >= from_layer);
            self.bytes = self
                .nodes
                .values()
                .map(|node| node.block.len() + NODE_OVERHEAD_BYTES)
                .sum();
        }
    }

    pub(super) fn get(&self, cid: Cid) -> Option<&[u8]> {
        self.nodes.get(cid.digest()).map(|node| &*node.block)
    }

    pub(super) const fn root(&self) -> Cid {
        self.root
    }

    pub(super) const fn root_layer(&self) -> u32 {
        self.root_layer
    }

    #[cfg(test)]
    pub(super) const fn lowest_layer(&self) -> u32 {
        self.from_layer
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) const fn totals(&self) -> &Totals {
        &self.totals
    }
}
