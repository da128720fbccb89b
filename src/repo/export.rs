//! A whole repository as a streamable CAR, in bounded memory, proven before its first byte.
//!
//! The store holds records and no tree. Pass 1 scans them, checks every record against its CID, builds
//! the tree and compares its root with the signed one; of the nodes it keeps those of layer 1 and
//! above, about 30 bytes a record. Pass 2 scans again and writes commit, nodes in pre-order, and each
//! record right after the entry that points to it. A run of records below the kept nodes waits in a
//! buffer until its end is seen, for its nodes come first; each rebuilt node must be the one that
//! pass 1 proved, and each record is hashed again, so nothing unproven is written even if the rows
//! change in between.
//!
//! Both stores are bounded ([`ExportLimits`]). When the kept nodes pass their limit, the lowest kept
//! layer is given up; when a run passes its limit, it is exported like a small repository of its own,
//! with two scans of its range. So memory does not grow with the repository, only the number of scans.
//!
//! The order is the one that readers can stream: <https://atproto.com/specs/repository#car-file-serialization>.
//! A record that two paths share is written at both. One whose bytes were erased is written nowhere.

mod car;
mod kept;
mod level;
mod part;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::types::Cid;

use super::mst::BuildError;
use kept::{Kept, Range};
use level::Level;

pub use car::frame_bytes;
pub use part::{Blocks, RecordProof, RevVisitor, each_newer_block, find_blocks, prove_path};

/// Takes a row `(path, cid, record bytes)` and says whether to go on.
pub type RowVisitor<'v> = dyn FnMut(&[u8], Cid, &[u8]) -> ControlFlow<()> + 'v;

/// A sorted scan of one repository's records that can be started again, always over the same rows: a
/// consistent read view.
pub trait RecordRows {
    /// Why a scan failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Calls `visit(path, cid, record bytes)` for each record in rising path order, from `from` on
    /// (inclusive) or from the first, until it breaks.
    ///
    /// # Errors
    /// When the rows could not be read; a visitor's break is not an error.
    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Self::Error>;
}

/// How much an export may hold in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportLimits {
    /// Most bytes of kept tree nodes, what holding them costs included. Must allow one node.
    pub kept_bytes_max: usize,
    /// Most bytes of records and paths that wait for the end of their run.
    pub run_bytes_max: usize,
}

impl Default for ExportLimits {
    /// 32 MiB of nodes, which is about a million records before the lowest layer goes; 4 MiB of records.
    fn default() -> Self {
        Self {
            kept_bytes_max: 32 << 20,
            run_bytes_max: 4 << 20,
        }
    }
}

/// Why a repository was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError<E: std::error::Error + 'static> {
    /// The rows could not be read.
    #[error("read the records: {0}")]
    Rows(#[source] E),
    /// A record's bytes do not hash to its CID.
    #[error("the stored bytes of record {path:?} are not those of its CID {cid}")]
    RecordHash {
        /// Where it stands.
        path: String,
        /// What its bytes should hash to.
        cid: Cid,
    },
    /// The commit block does not hash to its CID.
    #[error("the stored commit block is not that of its CID {0}")]
    CommitHash(Cid),
    /// The records are not those that the commit signs.
    #[error("the stored records build a tree with root {rebuilt}, but the commit signs {signed}")]
    OtherRoot {
        /// The root of the stored records.
        rebuilt: Cid,
        /// The root that was asked for.
        signed: Cid,
    },
    /// The rows are not those of a tree.
    #[error("the stored records build no tree: {0}")]
    Build(#[from] BuildError),
    /// The second scan gave other records than the first: not a consistent view, or failing memory.
    #[error("the records changed while they were exported, near {path:?}")]
    Changed {
        /// Where it was seen.
        path: String,
    },
    /// A single node is larger than the memory that the limits allow for all.
    #[error("a tree node does not fit into {0} bytes of kept nodes")]
    NodeTooLarge(usize),
    /// The CAR could not be written.
    #[error("write the CAR: {0}")]
    Write(#[from] io::Error),
}

/// What an export wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportStats {
    /// Bytes of the whole CAR.
    pub bytes: u64,
    /// Blocks: the commit, nodes and records.
    pub blocks: u64,
    /// Tree nodes.
    pub nodes: u64,
    /// Records, one for each path.
    pub records: u64,
}

/// The evidence that a set of rows is the repository with this root, and the upper part of its tree.
#[derive(Debug, Clone)]
pub struct Proven {
    data: Cid,
    kept: Arc<Kept>,
    limits: ExportLimits,
}

/// Pass 1 with the default limits: see [`prove_within`].
///
/// # Errors
/// As [`prove_within`].
pub fn prove<R: RecordRows + ?Sized>(rows: &R, data: Cid) -> Result<Proven, ExportError<R::Error>> {
    prove_within(rows, data, ExportLimits::default())
}

/// Pass 1: proves that the rows are the repository whose tree has the root `data`.
///
/// # Errors
/// When they are not, or could not be read.
pub fn prove_within<R: RecordRows + ?Sized>(
    rows: &R,
    data: Cid,
    limits: ExportLimits,
) -> Result<Proven, ExportError<R::Error>> {
    let kept = Kept::build(rows, &Range::default(), 1, limits.kept_bytes_max)?;
    if kept.root() != data {
        return Err(ExportError::OtherRoot {
            rebuilt: kept.root(),
            signed: data,
        });
    }
    Ok(Proven {
        data,
        kept: Arc::new(kept),
        limits,
    })
}

impl Proven {
    /// The root that was proven.
    #[must_use]
    pub const fn data(&self) -> Cid {
        self.data
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.kept.totals().records
    }

    /// Bytes of all records, as often as a path points to them.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        self.kept.totals().record_bytes
    }

    /// Bytes that this value holds in memory, about.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept.bytes()
    }

    /// The exact length of the CAR, for a commit block of this length.
    #[must_use]
    pub fn car_bytes(&self, commit_block_bytes: usize) -> u64 {
        car::HEADER_BYTES + car::frame_bytes(commit_block_bytes) + self.kept.totals().car_bytes
    }

    /// Pass 2: writes the CAR. The rows must be those of pass 1; `commit_block` must be the commit whose
    /// `data` was proven.
    ///
    /// # Errors
    /// When the rows changed or could not be read, or `out` refuses. What was written by then is a
    /// truncated file.
    pub fn write_car<R: RecordRows + ?Sized>(
        &self,
        rows: &R,
        commit_cid: Cid,
        commit_block: &[u8],
        out: &mut impl io::Write,
    ) -> Result<ExportStats, ExportError<R::Error>> {
        if !commit_cid.matches(commit_block) {
            return Err(ExportError::CommitHash(commit_cid));
        }
        let mut writer = car::Writer::begin(out, commit_cid)?;
        writer.block(commit_cid, commit_block)?;
        let mut levels = vec![Level::new(Arc::clone(&self.kept), Range::default(), self.limits)];
        while let Some(level) = levels.last_mut() {
            match level.advance(rows, &mut writer)? {
                Some(run) => levels.push(Level::of_run(rows, run, self.limits)?),
                None => {
                    levels.pop();
                }
            }
        }
        Ok(writer.finish())
    }
}

/// Whether a row stands without its record's bytes, which were erased: its place is proven, and it is not written.
/// (An empty record hashes to its own CID.)
#[must_use]
pub fn is_withheld(cid: &Cid, bytes: &[u8]) -> bool {
    bytes.is_empty() && !cid.matches(bytes)
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests;
