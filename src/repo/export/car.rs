//! CAR framing for the export. To be replaced by `repo::car` when both are merged.

use std::io::{self, Write};

use crate::types::Cid;
use crate::types::cid::CID_BYTES;

use super::ExportStats;

/// Length of the header with its own length before it: one byte and `{roots: [cid], version: 1}`.
pub(super) const HEADER_BYTES: u64 = 59;

/// Appends the header of a CAR with one root.
pub(super) fn encode_header(out: &mut Vec<u8>, root: Cid) {
    out.extend_from_slice(b"\x3a\xa2\x65roots\x81\xd8\x2a\x58\x25\x00");
    out.extend_from_slice(&root.to_bytes());
    out.extend_from_slice(b"\x67version\x01");
}

/// Appends what stands before a block's bytes: the length of CID and bytes, and the CID.
fn encode_frame_head(out: &mut Vec<u8>, cid: Cid, block_bytes: usize) {
    let mut rest = (CID_BYTES + block_bytes) as u64;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.extend_from_slice(&cid.to_bytes());
}

/// Bytes that a block of this length takes in a CAR.
#[must_use]
pub const fn frame_bytes(block_bytes: usize) -> u64 {
    let section = (CID_BYTES + block_bytes) as u64;
    let varint = (64 - section.leading_zeros()).div_ceil(7) as u64;
    varint + section
}

/// Writes a CAR and counts what it holds.
pub(super) struct Writer<'w, W> {
    out: &'w mut W,
    head: Vec<u8>,
    pub(super) stats: ExportStats,
}

impl<'w, W: Write> Writer<'w, W> {
    pub(super) fn begin(out: &'w mut W, root: Cid) -> io::Result<Self> {
        let mut head = Vec::with_capacity(64);
        encode_header(&mut head, root);
        out.write_all(&head)?;
        let stats = ExportStats {
            bytes: head.len() as u64,
            ..ExportStats::default()
        };
        Ok(Self { out, head, stats })
    }

    pub(super) fn block(&mut self, cid: Cid, bytes: &[u8]) -> io::Result<()> {
        self.head.clear();
        encode_frame_head(&mut self.head, cid, bytes.len());
        self.out.write_all(&self.head)?;
        self.out.write_all(bytes)?;
        self.stats.blocks += 1;
        self.stats.bytes += (self.head.len() + bytes.len()) as u64;
        Ok(())
    }

    pub(super) fn node(&mut self, cid: Cid, bytes: &[u8]) -> io::Result<()> {
        self.stats.nodes += 1;
        self.block(cid, bytes)
    }

    pub(super) fn record(&mut self, cid: Cid, bytes: &[u8]) -> io::Result<()> {
        self.stats.records += 1;
        self.block(cid, bytes)
    }

    pub(super) fn finish(self) -> ExportStats {
        self.stats
    }
}
