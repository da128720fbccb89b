//! Segments and deltas: what was applied, as CARs that tell it again.
//!
//! Both are the same file: a CAR in a zstd frame ([`super::snapshot_file`]) whose first block, its only root, is a
//! DAG-CBOR *index*, and whose other blocks are the commit blocks and records that the index names, each once, in
//! the order of their first mention. A segment holds what was applied to all accounts within a second or so, and
//! names the index of the segment before it; a delta holds the commits of one account between two snapshots.
//! Tree nodes are in neither: they are derived, and the commit's signature proves what was derived.
//!
//! A record's block may be missing (it was erased): the index still says which record stood where, so trees still
//! prove. A commit's block may not.
//!
//! Times are RFC 3339 texts, revs and paths are texts, CIDs are links: any DAG-CBOR reader shows them. Names of
//! fields and variants are persisted: keep stable.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::snapshot_file::SnapshotFileError;
use crate::repo::car::{self, CAR_BLOCK_BYTES_MAX, CarError, CarReader};
use crate::types::{AccountStatus, Cid, Did, HostName, RepoPath, Rev, Timestamp};

mod codec;
#[cfg(test)]
mod tests;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Entries and operations of one file together, at most: keeps the index within one block of a CAR.
pub const ITEMS_MAX: usize = 2000;
/// Bytes of one file before it is packed, at most. An entry by itself is never more: a frame has 5 MB.
pub const PLAIN_BYTES_MAX: u64 = 24 << 20;
/// Bytes of the entries in one index, at most. An entry by itself is never more; with what stands around the entries
/// the index stays within one block of a CAR.
pub const ENTRIES_BYTES_MAX: usize = CAR_BLOCK_BYTES_MAX - (16 << 10);

/// What a segment or delta says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogIndex {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Which file this is.
    pub origin: Origin,
    /// What was applied, in order.
    pub entries: Vec<Entry>,
}

/// Which file an index belongs to: what its name says too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A segment.
    Segment {
        /// The shard; one node writes shard 0.
        shard: u32,
        /// The generation of its writer.
        generation: u64,
        /// Its number; dense within the chain.
        number: u64,
        /// The index of the segment before it, of whatever generation; none: it is the first of the log.
        #[serde(with = "codec::option")]
        prev: Option<Cid>,
        /// The log number of its first entry; the others follow it one by one.
        first: u64,
    },
    /// A delta.
    Delta {
        /// Whose.
        #[serde(with = "codec::text")]
        did: Did,
        /// The rev that it applies to.
        #[serde(with = "codec::text")]
        from: Rev,
        /// The rev that it leads to.
        #[serde(with = "codec::text")]
        to: Rev,
    },
}

/// Something that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// A commit of the account's host.
    Commit(Change),
    /// The account was fetched whole: the difference to what was held before.
    Swap(Change),
    /// The account was fetched whole, and the difference is too large, or there was nothing before: the snapshot
    /// at this rev, or the next one after it, says what it held. Nothing later of this account builds on what the
    /// log said before.
    Loaded {
        /// Whose.
        #[serde(with = "codec::text")]
        did: Did,
        /// Where it came from.
        #[serde(with = "codec::text")]
        host: HostName,
        /// The rev of the head.
        #[serde(with = "codec::text")]
        rev: Rev,
        /// The head's commit.
        #[serde(with = "codec::value")]
        commit: Cid,
        /// When it was loaded.
        #[serde(with = "codec::text")]
        received: Timestamp,
    },
    /// An account's standing at its host changed.
    Account {
        /// Whose.
        #[serde(with = "codec::text")]
        did: Did,
        /// Who says so.
        #[serde(with = "codec::text")]
        host: HostName,
        /// Its standing now.
        status: AccountStatus,
        /// When we learned it.
        #[serde(with = "codec::text")]
        received: Timestamp,
    },
}

/// What a commit, or a swap, did to an account's records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Whose.
    #[serde(with = "codec::text")]
    pub did: Did,
    /// Where it came from.
    #[serde(with = "codec::text")]
    pub host: HostName,
    /// The host's number for it; 0 for a swap, which has none.
    pub seq: u64,
    /// The rev that it applies to: what was held before.
    #[serde(with = "codec::text")]
    pub since: Rev,
    /// The rev that it leads to.
    #[serde(with = "codec::text")]
    pub rev: Rev,
    /// When the host says that it happened; of a swap: when it was loaded.
    #[serde(with = "codec::text")]
    pub time: Timestamp,
    /// When it reached us.
    #[serde(with = "codec::text")]
    pub received: Timestamp,
    /// The signed commit.
    #[serde(with = "codec::value")]
    pub commit: Cid,
    /// Its operations, each path at most once in a swap; in a commit in the frame's order.
    pub ops: Vec<Op>,
}

/// What happened to one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Op {
    /// The path.
    #[serde(with = "codec::text")]
    pub path: RepoPath,
    /// The record that stands there now; none: deleted.
    #[serde(with = "codec::option")]
    pub cid: Option<Cid>,
}

impl Entry {
    /// Whose it is.
    #[must_use]
    pub const fn did(&self) -> &Did {
        match self {
            Self::Commit(change) | Self::Swap(change) => &change.did,
            Self::Loaded { did, .. } | Self::Account { did, .. } => did,
        }
    }

    /// The change, if it is one.
    #[must_use]
    pub const fn change(&self) -> Option<&Change> {
        match self {
            Self::Commit(change) | Self::Swap(change) => Some(change),
            Self::Loaded { .. } | Self::Account { .. } => None,
        }
    }

    /// What it takes in an index.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let mut counted = Counted(0);
        serde_ipld_dagcbor::to_writer(&mut counted, self).map_or(usize::MAX, |()| counted.0)
    }

    /// What it counts against [`ITEMS_MAX`].
    #[must_use]
    pub fn items(&self) -> usize {
        1 + self.change().map_or(0, |change| change.ops.len())
    }
}

/// Counts what is written, and keeps nothing.
struct Counted(usize);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LogIndex {
    /// The block.
    ///
    /// # Panics
    /// Never: the index holds only what DAG-CBOR can.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_ipld_dagcbor::to_vec(self).expect("an index holds only what DAG-CBOR can")
    }

    /// The blocks that the index names, each once, in the order of their first mention; `true`: a commit.
    #[must_use]
    pub fn links(&self) -> Vec<(Cid, bool)> {
        let mut seen = BTreeSet::new();
        let mut links = Vec::new();
        for change in self.entries.iter().filter_map(Entry::change) {
            let records = change.ops.iter().filter_map(|op| op.cid.map(|cid| (cid, false)));
            for (cid, is_commit) in std::iter::once((change.commit, true)).chain(records) {
                if seen.insert(cid) {
                    links.push((cid, is_commit));
                }
            }
        }
        links
    }
}

/// A whole file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// What it says.
    pub index: LogIndex,
    /// The CID of the index block: what the next segment names.
    pub root: Cid,
    /// Commit blocks and records. Every commit of the index is there; a record that is not was erased.
    pub blocks: BTreeMap<Cid, Bytes>,
}

/// Why a file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The CAR is damaged.
    #[error(transparent)]
    Car(CarError),
    /// The zstd frame around it is.
    #[error(transparent)]
    File(SnapshotFileError),
    /// The index does not decode.
    #[error("its index does not decode: {0}")]
    Index(String),
    /// A newer version wrote it.
    #[error("it has format {0}, and this version knows format {FORMAT}; use a newer version")]
    TooNew(u32),
    /// A commit's block is missing.
    #[error("the block of commit {0} is missing")]
    CommitMissing(Cid),
    /// Blocks that the index does not name.
    #[error("it holds block {0}, which its index does not name")]
    Stray(Cid),
    /// More in it than a file may hold.
    #[error("it holds more than {ITEMS_MAX} entries and operations, or more than {PLAIN_BYTES_MAX} bytes")]
    TooLarge,
}

impl From<CarError> for LogFileError {
    fn from(error: CarError) -> Self {
        match error {
            // What the frame around it has wrong arrives as the source's error.
            CarError::Io(error) => Self::File(error.into()),
            other => Self::Car(other),
        }
    }
}

impl LogFile {
    /// A file of this index, with those of `blocks` that the index names.
    #[must_use]
    pub fn new(index: LogIndex, mut blocks: BTreeMap<Cid, Bytes>) -> Self {
        let named: BTreeSet<Cid> = index.links().into_iter().map(|(cid, _)| cid).collect();
        blocks.retain(|cid, _| named.contains(cid));
        Self {
            root: Cid::of_block(&index.encode()),
            index,
            blocks,
        }
    }

    /// The CAR, to be packed.
    #[must_use]
    pub fn encode_car(&self) -> Vec<u8> {
        let mut out = car::encode_header(&[self.root]);
        car::encode_block(&mut out, &self.root, &self.index.encode());
        for (cid, _) in self.index.links() {
            if let Some(bytes) = self.blocks.get(&cid) {
                car::encode_block(&mut out, &cid, bytes);
            }
        }
        out
    }

    /// Reads a CAR (unpacked: `car` is the inside of the zstd frame, bounded by its reader), checking the hash of
    /// every block, and that it holds what the index names and nothing else.
    ///
    /// # Errors
    /// See [`LogFileError`].
    pub fn decode(car: impl Read) -> Result<Self, LogFileError> {
        let mut reader = CarReader::new(car)?;
        let root = match reader.roots() {
            [root] => *root,
            _ => return Err(LogFileError::Index("the CAR must have one root".to_owned())),
        };
        let mut block = Vec::new();
        match reader.next_block(&mut block)? {
            Some((cid, _)) if cid == root => {}
            _ => return Err(LogFileError::Index("the first block is not the root".to_owned())),
        }
        let index = decode_index(&block)?;
        let links: BTreeMap<Cid, bool> = index.links().into_iter().collect();
        let mut blocks = BTreeMap::new();
        while let Some((cid, _)) = reader.next_block(&mut block)? {
            if !links.contains_key(&cid) {
                return Err(LogFileError::Stray(cid));
            }
            if reader.position() > PLAIN_BYTES_MAX {
                return Err(LogFileError::TooLarge);
            }
            blocks.insert(cid, Bytes::copy_from_slice(&block));
        }
        let missing = links
            .iter()
            .find(|(cid, commit)| **commit && !blocks.contains_key(*cid));
        if let Some((cid, _)) = missing {
            return Err(LogFileError::CommitMissing(*cid));
        }
        Ok(Self { index, root, blocks })
    }

    /// Records whose blocks were erased.
    pub fn erased(&self) -> impl Iterator<Item = Cid> {
        self.index
            .links()
            .into_iter()
            .filter(|(cid, _)| !self.blocks.contains_key(cid))
            .map(|(cid, _)| cid)
    }
}

fn decode_index(block: &[u8]) -> Result<LogIndex, LogFileError> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head =
        serde_ipld_dagcbor::from_slice(block).map_err(|error| LogFileError::Index(error.to_string()))?;
    if head.format > FORMAT {
        return Err(LogFileError::TooNew(head.format));
    }
    let index: LogIndex =
        serde_ipld_dagcbor::from_slice(block).map_err(|error| LogFileError::Index(error.to_string()))?;
    if index.entries.iter().map(Entry::items).sum::<usize>() > ITEMS_MAX {
        return Err(LogFileError::TooLarge);
    }
    Ok(index)
}

/// How many bytes a file of these entries has before it is packed, at most: for whoever cuts the log.
#[must_use]
pub fn block_bytes(bytes: usize) -> u64 {
    debug_assert!(bytes <= CAR_BLOCK_BYTES_MAX, "no reader takes a larger block");
    car::block_frame_len(bytes) as u64
}
