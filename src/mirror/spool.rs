#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! A fetched CAR while it is being checked: in memory while it is small, in an unlinked file beyond.
//!
//! Blocks may come in any order, so the whole is received first; the index holds 48 bytes a block.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::repo::car::{CarError, CarReader};
use crate::repo::mst::BlockSource;
use crate::types::{Cid, Digest};

/// Up to here a spool stays in memory.
pub const SPOOL_MEMORY_BYTES_MAX: usize = 8 << 20;

/// Bytes that are being received.
pub struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
    bytes: u64,
}

impl Spool {
    /// An empty one. `dir` must exist when it outgrows memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            memory: Vec::new(),
            file: None,
            bytes: 0,
        }
    }

    /// Adds bytes. Blocks while it writes.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    pub fn write(&mut self, bytes: &[u8], dir: &Path) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        if let Some(file) = &mut self.file {
            return file.write_all(bytes);
        }
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > SPOOL_MEMORY_BYTES_MAX {
            let mut file = tempfile::tempfile_in(dir)?;
            file.write_all(&self.memory)?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        Ok(())
    }

    /// How many bytes came.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hashes every block and indexes them.
    ///
    /// # Errors
    /// When it is no CAR, a block does not hash to its CID, or it has no root.
    pub fn index(self) -> Result<IndexedCar, CarError> {
        let content = match self.file {
            Some(mut file) => {
                file.seek(SeekFrom::Start(0))?;
                Content::File(file)
            }
            None => Content::Memory(self.memory),
        };
        let (roots, mut blocks) = match &content {
            Content::Memory(bytes) => read_index(Cursor::new(bytes))?,
            Content::File(file) => read_index(BufReader::with_capacity(256 << 10, file))?,
        };
        blocks.sort_unstable_by_key(|block| block.digest);
        blocks.dedup_by_key(|block| block.digest);
        Ok(IndexedCar {
            content,
            bytes: self.bytes,
            roots,
            blocks,
        })
    }
}

/// Writes into a spool, for what is made here and not received.
pub struct SpoolWriter<'d> {
    /// What was written.
    pub spool: Spool,
    /// Where it goes when it outgrows memory.
    pub dir: &'d Path,
}

impl io::Write for SpoolWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.spool.write(bytes, self.dir)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self::new()
    }
}

fn read_index(source: impl io::Read) -> Result<(Vec<Cid>, Vec<Place>), CarError> {
    let mut reader = CarReader::new(source)?;
    let roots = reader.roots().to_vec();
    let mut blocks = Vec::new();
    let mut block = Vec::new();
    while let Some((cid, offset)) = reader.next_block(&mut block)? {
        let bytes = u32::try_from(block.len()).expect("blocks are at most 2 MiB");
        blocks.push(Place {
            digest: *cid.digest(),
            offset,
            bytes,
        });
    }
    Ok((roots, blocks))
}

enum Content {
    Memory(Vec<u8>),
    File(File),
}

struct Place {
    digest: Digest,
    offset: u64,
    bytes: u32,
}

/// A whole CAR whose every block was hashed.
pub struct IndexedCar {
    content: Content,
    bytes: u64,
    roots: Vec<Cid>,
    blocks: Vec<Place>,
}

impl IndexedCar {
    /// Its roots.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// Its length in bytes, as it came.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Visits it byte for byte, as it came, in chunks of this size and a rest, until `visit` says no.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn each_chunk(&self, size: usize, mut visit: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        let file = match &self.content {
            Content::Memory(bytes) => {
                bytes.chunks(size).all(visit);
                return Ok(());
            }
            Content::File(file) => file,
        };
        let (mut chunk, mut at) = (vec![0; size], 0);
        while at < self.bytes {
            let length = size.min(usize::try_from(self.bytes - at).unwrap_or(size));
            file.read_exact_at(&mut chunk[..length], at)?;
            if !visit(&chunk[..length]) {
                break;
            }
            at += length as u64;
        }
        Ok(())
    }
}

impl BlockSource for IndexedCar {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        let Ok(found) = self
            .blocks
            .binary_search_by_key(cid.digest(), |block| block.digest)
        else {
            return Ok(None);
        };
        let place = &self.blocks[found];
        match &self.content {
            Content::Memory(bytes) => {
                let start = usize::try_from(place.offset).expect("it is in memory");
                Ok(bytes.get(start..start + place.bytes as usize).map(Cow::Borrowed))
            }
            Content::File(file) => {
                let mut bytes = vec![0; place.bytes as usize];
                file.read_exact_at(&mut bytes, place.offset)?;
                // What was hashed once may have rotted on the disk since.
                if !cid.matches(&bytes) {
                    return Err(io::Error::other("the spool file changed while it was read"));
                }
                Ok(Some(Cow::Owned(bytes)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimAccount;
    use crate::types::Timestamp;

    #[test]
    fn memory_and_file_give_the_same_blocks() {
        let dir = tempfile::tempdir().expect("a folder");
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let mut account = SimAccount::new(1, now);
        let big = vec![b'x'; 900_000];
        let text = String::from_utf8(big).expect("ASCII");
        for i in 0..12 {
            let path = format!("app.bsky.feed.post/r{i}");
            account.commit(
                0,
                &[(path, Some(crate::sim::account::post(&format!("{i}{text}"))))],
                now,
            );
        }
        let car = account.export();
        assert!(car.len() > SPOOL_MEMORY_BYTES_MAX);
        let mut spool = Spool::new();
        for chunk in car.chunks(100_000) {
            spool.write(chunk, dir.path()).expect("writes");
        }
        assert_eq!(spool.bytes(), car.len() as u64);
        let indexed = spool.index().expect("a CAR");
        assert!(matches!(indexed.content, Content::File(_)));
        assert_eq!(indexed.roots(), [account.head()]);
        for bytes in account.records().values() {
            let block = indexed.block(&Cid::of_block(bytes)).expect("reads");
            assert_eq!(block.as_deref(), Some(bytes.as_slice()));
        }
        let mut again = Vec::new();
        indexed
            .each_chunk(1 << 20, |chunk| {
                again.extend_from_slice(chunk);
                true
            })
            .expect("reads");
        assert!(again == car, "not what came");
        assert_eq!(indexed.block(&Cid::of_block(b"absent")).expect("reads"), None);

        let mut cut = Spool::new();
        cut.write(&car[..car.len() - 1], dir.path()).expect("writes");
        assert!(cut.index().is_err());
    }
}
