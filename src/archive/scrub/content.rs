//! What an object holds, held against its name.
//!
//! Everything here reads from a stream within fixed memory: a frame's window, a CAR's block and a tree's depth have
//! limits, and a file of the log is at most 24 MiB of blocks.

use std::io::Read;

use crate::archive::identity_file::IdentityFileError;
use crate::archive::log_file::{Change, Entry, LogFile, LogFileError, Origin, PLAIN_BYTES_MAX};
use crate::archive::names::{DeltaName, QuarantinedName, SegmentName, SnapshotName};
use crate::archive::snapshot_file::{SnapshotDecoder, SnapshotFileError};
use crate::repo::car::{CarError, CarReader};
use crate::repo::commit::{Commit, CommitError};
use crate::repo::mst::{StreamFault, StreamedTree};
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, Rev};

/// Largest CAR that a snapshot is read as.
pub const SNAPSHOT_BYTES_MAX: u64 = 16 << 30;
/// Largest CAR of a segment or delta: its blocks, and room for the index.
pub const LOG_FILE_BYTES_MAX: u64 = PLAIN_BYTES_MAX + (4 << 20);

/// Why an object is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// The frame around it.
    #[error(transparent)]
    File(#[from] SnapshotFileError),
    /// The CAR in it.
    #[error(transparent)]
    Car(CarError),
    /// A segment or delta.
    #[error(transparent)]
    Log(LogFileError),
    /// A commit that is none.
    #[error("commit {cid}: {error}")]
    Commit {
        /// Which.
        cid: Cid,
        /// What is wrong.
        error: CommitError,
    },
    /// The tree does not rebuild to what the commit signs.
    #[error("it does not rebuild to the root that its commit signs: {0}")]
    Tree(#[from] StreamFault),
    /// It holds something else than its name says.
    #[error("its name says something else than it holds: {0}")]
    Misnamed(String),
    /// None of the account's keys made the signature.
    #[error("commit {0} is signed by none of the keys that the archive's identity objects name")]
    Signature(Cid),
    /// The entries do not follow each other.
    #[error("its entries do not follow each other: {0}")]
    Order(String),
    /// The entries do not lead to what is signed.
    #[error("told again, it does not come to what is signed: {0}")]
    Replay(String),
    /// An identity.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<CarError> for Bad {
    fn from(error: CarError) -> Self {
        match error {
            // What the frame around it has wrong arrives as the source's error.
            CarError::Io(error) => Self::File(error.into()),
            other => Self::Car(other),
        }
    }
}

impl From<LogFileError> for Bad {
    fn from(error: LogFileError) -> Self {
        match error {
            LogFileError::File(error) => Self::File(error),
            LogFileError::Car(error) => error.into(),
            other => Self::Log(other),
        }
    }
}

/// What was read, in counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Blocks that were hashed.
    pub blocks: u64,
    /// Records of rebuilt trees.
    pub records: u64,
    /// Commits whose signature was checked.
    pub signed: u64,
    /// Commits whose signature could not be checked: the archive names no key.
    pub unsigned: u64,
    /// Records whose bytes were erased, and noted as such.
    pub erased: u64,
}

/// Reads a snapshot: its commit is the one in the name, signed by one of `keys` (where any are known), and the tree
/// rebuilds to the signed root with every record in place, but for those that are `withheld`. Hands each record to
/// `visit` by its path.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check_snapshot(
    file: impl Read,
    name: &SnapshotName,
    keys: &[SigningKey],
    withheld: &dyn Fn(&Cid) -> bool,
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<Tally, Bad> {
    let read = read_snapshot(file, name, keys, withheld, |path, _, record| {
        if let Some(record) = record {
            visit(path, record);
        }
    });
    read.map(|(tally, _)| tally)
}

/// As [`check_snapshot`]; tells of the records too that are withheld, and gives the commit's block.
///
/// # Errors
/// As there.
pub fn read_snapshot(
    file: impl Read,
    name: &SnapshotName,
    keys: &[SigningKey],
    withheld: &dyn Fn(&Cid) -> bool,
    mut visit: impl FnMut(&[u8], Cid, Option<&[u8]>),
) -> Result<(Tally, Vec<u8>), Bad> {
    let mut tally = Tally::default();
    let mut decoder = SnapshotDecoder::new(file, SNAPSHOT_BYTES_MAX).map_err(SnapshotFileError::from)?;
    let mut car = CarReader::new(&mut decoder)?;
    let wanted = Cid::dag_cbor(name.commit);
    if car.roots() != [wanted] {
        return Err(Bad::Misnamed(format!("its root is not commit {wanted}")));
    }
    let mut block = Vec::new();
    match car.next_block(&mut block)? {
        Some((cid, _)) if cid == wanted => tally.blocks += 1,
        _ => return Err(Bad::Misnamed(format!("its first block is not commit {wanted}"))),
    }
    let data = check_commit(&block, wanted, name.did.did(), name.rev, keys, &mut tally)?;
    let commit = block.clone();
    let mut tree = StreamedTree::new(data);
    while let Some((cid, _)) = car.next_block(&mut block)? {
        tally.blocks += 1;
        tally.erased += pass_withheld(&mut tree, Some(cid), withheld, &mut visit)?;
        if let Some(path) = tree.push(cid, &block)? {
            visit(path, cid, Some(&block));
        }
    }
    tally.erased += pass_withheld(&mut tree, None, withheld, &mut visit)?;
    tally.records = tree.finish()?.records;
    decoder.finish()?;
    Ok((tally, commit))
}

/// Passes over the withheld records that should stand before this block. Returns how many.
fn pass_withheld(
    tree: &mut StreamedTree,
    next: Option<Cid>,
    withheld: &dyn Fn(&Cid) -> bool,
    visit: &mut impl FnMut(&[u8], Cid, Option<&[u8]>),
) -> Result<u64, StreamFault> {
    let mut passed = 0;
    while let Some(wanted) = tree
        .wanted_record()
        .filter(|wanted| Some(*wanted) != next && withheld(wanted))
    {
        if let Some(path) = tree.pass_over()? {
            visit(path, wanted, None);
        }
        passed += 1;
    }
    Ok(passed)
}

/// Reads a CAR that is kept as it came: every block hashes to its CID, and the commit of the name is its root.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check_quarantined(file: impl Read, name: &QuarantinedName) -> Result<(), Bad> {
    let mut decoder = SnapshotDecoder::new(file, SNAPSHOT_BYTES_MAX).map_err(SnapshotFileError::from)?;
    let mut car = CarReader::new(&mut decoder)?;
    let wanted = Cid::dag_cbor(name.commit);
    if car.roots().first() != Some(&wanted) {
        return Err(Bad::Misnamed(format!("its root is not commit {wanted}")));
    }
    let (mut block, mut found) = (Vec::new(), false);
    while let Some((cid, _)) = car.next_block(&mut block)? {
        found |= cid == wanted;
    }
    if !found {
        return Err(Bad::Misnamed(format!("commit {wanted} is not in it")));
    }
    decoder.finish()?;
    Ok(())
}

/// Checks a commit block: whose, which rev, and by whom it is signed. Returns the root that it signs.
fn check_commit(
    block: &[u8],
    cid: Cid,
    did: &Did,
    rev: Rev,
    keys: &[SigningKey],
    tally: &mut Tally,
) -> Result<Cid, Bad> {
    let commit = Commit::decode(block).map_err(|error| Bad::Commit { cid, error })?;
    if commit.did != *did {
        return Err(Bad::Misnamed(format!("commit {cid} is of another account")));
    }
    if commit.rev != rev {
        return Err(Bad::Misnamed(format!("commit {cid} has rev {}", commit.rev)));
    }
    if keys.is_empty() {
        tally.unsigned += 1;
    } else if keys
        .iter()
        .any(|key| key.verify(commit.unsigned_bytes(), &commit.sig).is_ok())
    {
        tally.signed += 1;
    } else {
        return Err(Bad::Signature(cid));
    }
    Ok(commit.data)
}

/// Reads a segment or delta, every block hashed.
///
/// # Errors
/// When it is damaged.
pub fn read_log_file(file: impl Read) -> Result<LogFile, Bad> {
    let mut decoder = SnapshotDecoder::new(file, LOG_FILE_BYTES_MAX).map_err(SnapshotFileError::from)?;
    let log = LogFile::decode(&mut decoder)?;
    decoder.finish()?;
    Ok(log)
}

/// Checks the commits of a segment or delta. `keys` gives an account's.
///
/// # Errors
/// The first commit that is not as its entry says, or does not fit any key.
pub fn check_commits<'k>(
    file: &LogFile,
    mut keys: impl FnMut(&Did) -> &'k [SigningKey],
) -> Result<Tally, Bad> {
    let mut tally = Tally {
        blocks: 1 + file.blocks.len() as u64,
        ..Tally::default()
    };
    for change in file.index.entries.iter().filter_map(Entry::change) {
        let block = file.blocks.get(&change.commit);
        let block = block.ok_or_else(|| Bad::Other(format!("commit {} is not in it", change.commit)))?;
        check_commit(
            block,
            change.commit,
            &change.did,
            change.rev,
            keys(&change.did),
            &mut tally,
        )?;
    }
    Ok(tally)
}

/// Whether a segment is the one that its name says.
///
/// # Errors
/// When it is not.
pub fn check_segment_name(file: &LogFile, name: SegmentName) -> Result<(), Bad> {
    match file.index.origin {
        Origin::Segment {
            shard,
            generation,
            number,
            ..
        } if (shard, generation, number) == (name.shard, name.generation, name.number) => Ok(()),
        Origin::Segment {
            shard,
            generation,
            number,
            ..
        } => {
            let says = SegmentName {
                shard,
                generation,
                number,
                edition: 0,
            };
            Err(Bad::Misnamed(format!("it is {says}")))
        }
        Origin::Delta { .. } => Err(Bad::Misnamed("it is a delta".to_owned())),
    }
}

/// Whether a delta is the one that its name says, and its entries lead from the one rev to the other.
///
/// # Errors
/// When it is not.
pub fn check_delta(file: &LogFile, name: &DeltaName) -> Result<(), Bad> {
    let Origin::Delta { did, from, to } = &file.index.origin else {
        return Err(Bad::Misnamed("it is a segment".to_owned()));
    };
    if (did, *from, *to) != (name.did().did(), name.from(), name.to()) {
        return Err(Bad::Misnamed(format!("it is the delta {from}..{to} of {did}")));
    }
    let (mut at, mut commit) = (*from, None);
    for entry in &file.index.entries {
        if entry.did() != did {
            return Err(Bad::Order(format!("an entry is of {}", entry.did())));
        }
        match entry {
            Entry::Commit(change) | Entry::Swap(change) => {
                if change.since != at {
                    let Change { since, rev, .. } = change;
                    return Err(Bad::Order(format!(
                        "rev {rev} builds on {since}, and stands behind {at}"
                    )));
                }
                (at, commit) = (change.rev, Some(change.commit));
            }
            Entry::Loaded {
                rev, commit: head, ..
            } => (at, commit) = (*rev, Some(*head)),
            Entry::Account { .. } => {}
        }
    }
    if at != *to || commit != Some(Cid::dag_cbor(*name.commit())) {
        return Err(Bad::Misnamed(format!(
            "its last rev is {at}, or of another commit"
        )));
    }
    Ok(())
}
