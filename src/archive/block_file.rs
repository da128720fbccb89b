#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! Blocks on the way from the archive to whoever wants them: in an unlinked temporary file, by hash.
//!
//! Memory holds about 64 bytes a block. A block that comes again is not stored again, so a small object that unpacks
//! to the same block over and over costs time, not space.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::repo::mst::BlockSource;
use crate::types::{Cid, Digest};

/// Most blocks that one file takes: ten times the largest repositories that are known.
pub const BLOCKS_MAX: usize = 20_000_000;
/// Most bytes that one file takes.
pub const BYTES_MAX: u64 = 32 << 30;
/// What is gathered before it is written.
const BUFFER_BYTES: usize = 1 << 20;

/// A store of blocks that lives as long as this value.
pub struct BlockFile {
    file: File,
    /// Where each block begins, and its length.
    places: HashMap<Digest, (u64, u32)>,
    /// What is not written yet: it begins at `written`.
    buffer: Vec<u8>,
    written: u64,
    blocks_max: usize,
}

impl BlockFile {
    /// An empty one in this folder.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile_in(folder)?,
            places: HashMap::new(),
            buffer: Vec::with_capacity(BUFFER_BYTES),
            written: 0,
            blocks_max: BLOCKS_MAX,
        })
    }

    /// Adds a block that hashes to `cid`.
    ///
    /// # Errors
    /// When there are too many, or the file cannot be written.
    pub fn put(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<()> {
        if self.places.contains_key(cid.digest()) {
            return Ok(());
        }
        let at = self.written + self.buffer.len() as u64;
        if self.places.len() >= self.blocks_max || at + bytes.len() as u64 > BYTES_MAX {
            return Err(io::Error::other(format!(
                "more than {} blocks or {} GiB of one repository",
                self.blocks_max,
                BYTES_MAX >> 30
            )));
        }
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.places.insert(*cid.digest(), (at, length));
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            self.file.write_all_at(&self.buffer, self.written)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Whether a block is here.
    #[must_use]
    pub fn holds(&self, cid: &Cid) -> bool {
        self.places.contains_key(cid.digest())
    }
}

impl BlockSource for BlockFile {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        let Some((at, length)) = self.places.get(cid.digest()) else {
            return Ok(None);
        };
        let bytes = if let Some(at) = at.checked_sub(self.written) {
            let at = usize::try_from(at).map_err(io::Error::other)?;
            Cow::Borrowed(&self.buffer[at..at + *length as usize])
        } else {
            let mut bytes = vec![0; *length as usize];
            self.file.read_exact_at(&mut bytes, *at)?;
            Cow::Owned(bytes)
        };
        if !cid.matches(&bytes) {
            return Err(io::Error::other("a temporary file changed while it was in use"));
        }
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_from_memory_and_from_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut blocks = BlockFile::new(folder.path()).expect("a file");
        let block = |n: u32| vec![u8::try_from(n % 251).expect("small"); 1000 + n as usize];
        for n in 0..1500 {
            let bytes = block(n);
            blocks.put(&Cid::of_block(&bytes), &bytes).expect("room");
            blocks.put(&Cid::of_block(&bytes), &bytes).expect("there already");
        }
        assert!(blocks.written > 0 && !blocks.buffer.is_empty());
        for n in 0..1500 {
            let bytes = block(n);
            let found = blocks.block(&Cid::of_block(&bytes)).expect("reads");
            assert_eq!(found.as_deref(), Some(&*bytes), "{n}");
        }
        let absent = Cid::of_block(b"absent");
        assert!(!blocks.holds(&absent));
        assert_eq!(blocks.block(&absent).expect("reads"), None);
    }

    #[test]
    fn there_is_a_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut blocks = BlockFile::new(folder.path()).expect("a file");
        blocks.blocks_max = 2;
        let put = |blocks: &mut BlockFile, bytes: &[u8]| blocks.put(&Cid::of_block(bytes), bytes);
        put(&mut blocks, b"a").expect("room");
        put(&mut blocks, b"b").expect("room");
        put(&mut blocks, b"a").expect("there already");
        assert!(put(&mut blocks, b"c").is_err());
    }
}
