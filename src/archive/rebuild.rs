#![allow(clippy::disallowed_methods, reason = "shell: the bucket, temporary files")]
//! Puts a moment of an account together again, and proves it.
//!
//! A snapshot is read, every block of it hashed, its tree walked; then the entries that lead on from it are applied
//! in order. What comes out is the moment only if its records build the tree that its commit signs. Where a snapshot
//! is damaged, or does not lead there, an older one is tried.
//!
//! Memory holds the paths and CIDs; the records lie in a temporary file. A record that was erased from the archive
//! is still in the tree: it is withheld, and named.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::block_file::BlockFile;
use super::bucket::BucketError;
use super::log_file::{Change, Entry, LogFile};
use super::names::SnapshotName;
use super::reader::{ArchiveReader, ReadError, is_of_object};
use super::snapshot_file::SnapshotDecoder;
use super::timeline::{Moment, Plan, Timeline};
use crate::repo::car::{self, CarError, CarReader};
use crate::repo::commit::Commit;
use crate::repo::export::{ExportError, ExportStats, RecordRows, RowVisitor, prove};
use crate::repo::mst::{BlockSource, MstError, Node, TreeBuilder, WalkLimits, tree_root, walk};
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, Rev};

/// Largest CAR that a snapshot is read as, in bytes.
const CAR_BYTES_MAX: u64 = 16 << 30;

/// The records of a moment: path and CID, in the order of the tree.
pub type Records = BTreeMap<Box<str>, Cid>;

/// A moment, proven: its records build the tree that its commit names.
pub struct Rebuilt {
    /// The account.
    pub did: Did,
    /// The rev.
    pub rev: Rev,
    /// The commit.
    pub commit: Cid,
    /// The signed commit, byte for byte.
    pub commit_block: Bytes,
    /// The root of the tree.
    pub data: Cid,
    /// What it holds.
    pub records: Records,
    /// Records whose bytes the archive no longer has.
    pub withheld: Vec<Box<str>>,
    /// The key that the signature was checked with; none: no key was at hand.
    pub signed_by: Option<String>,
    /// Objects that were of no use on the way.
    pub warnings: Vec<String>,
    /// Withheld, whether an object still holds them or not.
    erased: BTreeSet<Cid>,
    blocks: BlockFile,
    reader: ArchiveReader,
}

/// Why a moment could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// No unbroken way leads to it.
    #[error("rev {0} cannot be put together: no snapshot in the archive leads to it without a gap")]
    Unreachable(Rev),
    /// What leads to it is damaged, or does not prove.
    #[error("rev {rev} cannot be proven: {detail}")]
    Unproven {
        /// The rev.
        rev: Rev,
        /// What is wrong.
        detail: String,
    },
    /// The archive cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// How a try with one snapshot ended.
enum Failed {
    /// The archive cannot be read.
    Read(ReadError),
    /// With this snapshot it does not work.
    Here(String),
    /// With no other snapshot it would work either.
    Everywhere(String),
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// What is being put together.
struct State {
    records: Records,
    blocks: BlockFile,
    commit_block: Bytes,
}

impl ArchiveReader {
    /// Rebuilds a moment of a timeline that this reader read. Its signature is checked with `keys`, of which one
    /// must have made it, unless there are none.
    ///
    /// # Errors
    /// When it cannot be put together, or does not prove.
    pub async fn rebuild(
        &self,
        did: &Did,
        line: &Timeline,
        index: usize,
        keys: &[SigningKey],
    ) -> Result<Rebuilt, RebuildError> {
        let moment = &line.moments[index];
        let (rev, mut without, mut warnings) = (moment.rev, BTreeSet::new(), Vec::new());
        loop {
            let Some(plan) = line.plan(index, &without) else {
                return Err(match warnings.pop() {
                    Some(detail) => RebuildError::Unproven { rev, detail },
                    None => RebuildError::Unreachable(rev),
                });
            };
            match self.follow(did, line, &plan, moment, keys).await {
                Ok(rebuilt) => return Ok(Rebuilt { warnings, ..rebuilt }),
                Err(Failed::Read(error)) => return Err(error.into()),
                Err(Failed::Everywhere(detail)) => return Err(RebuildError::Unproven { rev, detail }),
                Err(Failed::Here(detail)) => {
                    warnings.push(format!("{}: {detail}", plan.snapshot));
                    without.insert(plan.snapshot.rev);
                }
            }
        }
    }

    async fn follow(
        &self,
        did: &Did,
        line: &Timeline,
        plan: &Plan,
        moment: &Moment,
        keys: &[SigningKey],
    ) -> Result<Rebuilt, Failed> {
        let mut state = self.read_snapshot(&plan.snapshot).await?;
        for steps in plan.steps.chunk_by(|a, b| a.0 == b.0) {
            let name = line.source_name(steps[0].0);
            let file = self.log_file(name).await?;
            let file = file.map_err(|detail| Failed::Everywhere(format!("{name}: {detail}")))?;
            for (_, rev) in steps {
                let change = change_of(&file, did, *rev).ok_or_else(|| {
                    Failed::Everywhere(format!("{name} changed while it was read: rev {rev} is gone"))
                })?;
                apply(&mut state, change, &file).map_err(|error| self.temporary(error))?;
            }
        }
        let (did, moment, keys, reader) = (did.clone(), moment.clone(), keys.to_vec(), self.clone());
        let erased = line.erased.clone();
        blocking(move || check(state, did, &moment, &keys, (erased, reader))).await
    }

    async fn read_snapshot(&self, name: &SnapshotName) -> Result<State, Failed> {
        let text = name.to_string();
        let body = match self.bucket.get(&text).await {
            Ok(Some(body)) => body,
            Ok(None) => return Err(Failed::Here("it vanished".to_owned())),
            Err(error) => return Err(of_bucket(error)),
        };
        let source = body.into_reader(Handle::current());
        let (name, reader) = (name.clone(), self.clone());
        blocking(move || {
            let blocks =
                BlockFile::new(&reader.temp_dir).map_err(|error| Failed::Read(reader.temporary(error)))?;
            unpack(source, &name, blocks, &reader)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn of_bucket(error: BucketError) -> Failed {
    if is_of_object(error.kind) {
        Failed::Here(error.to_string())
    } else {
        Failed::Read(error.into())
    }
}

/// Reads a snapshot: every block hashed, the tree walked.
fn unpack(
    source: impl Read,
    name: &SnapshotName,
    mut blocks: BlockFile,
    reader: &ArchiveReader,
) -> Result<State, Failed> {
    let here = |error: &dyn std::fmt::Display| Failed::Here(error.to_string());
    let decoder = SnapshotDecoder::new(source, CAR_BYTES_MAX).map_err(|error| here(&error))?;
    let mut car = CarReader::new(decoder).map_err(of_car)?;
    let commit = Cid::dag_cbor(name.commit);
    if car.roots() != [commit] {
        return Err(here(&"its root is not the commit that its name tells"));
    }
    let mut block = Vec::new();
    while let Some((cid, _)) = car.next_block(&mut block).map_err(of_car)? {
        let put = blocks.put(&cid, &block);
        put.map_err(|error| Failed::Read(reader.temporary(error)))?;
    }
    let commit_block = blocks.block(&commit).map_err(|error| here(&error))?;
    let commit_block = commit_block.ok_or_else(|| here(&"its commit is missing"))?;
    let commit_block = Bytes::copy_from_slice(&commit_block);
    let head = Commit::decode(&commit_block).map_err(|error| here(&error))?;
    if head.did != *name.did.did() || head.rev != name.rev {
        return Err(here(&"its commit is not the one that its name tells"));
    }
    let mut records = Records::new();
    let walked = walk(&blocks, head.data, &WalkLimits::default(), |path, cid| {
        let path = std::str::from_utf8(path).expect("the walk checks paths");
        records.insert(path.into(), cid);
        Ok::<(), MstError>(())
    });
    walked.map_err(|error| here(&error))?;
    Ok(State {
        records,
        blocks,
        commit_block,
    })
}

/// Tells what the file has wrong from a store that does not answer, which comes through the same reader.
fn of_car(error: CarError) -> Failed {
    match error {
        CarError::Io(error) => match error.downcast::<BucketError>() {
            Ok(error) => of_bucket(error),
            Err(error) => Failed::Here(error.to_string()),
        },
        error => Failed::Here(error.to_string()),
    }
}

fn change_of<'a>(file: &'a LogFile, did: &Did, rev: Rev) -> Option<&'a Change> {
    let changes = file.index.entries.iter().filter_map(Entry::change);
    changes
        .into_iter()
        .find(|change| change.did == *did && change.rev == rev)
}

fn apply(state: &mut State, change: &Change, file: &LogFile) -> io::Result<()> {
    for op in &change.ops {
        match op.cid {
            None => drop(state.records.remove(op.path.as_str())),
            Some(cid) => {
                state.records.insert(op.path.as_str().into(), cid);
                if let Some(bytes) = file.blocks.get(&cid) {
                    state.blocks.put(&cid, bytes)?;
                }
            }
        }
    }
    if let Some(block) = file.blocks.get(&change.commit) {
        state.commit_block = block.clone();
    }
    Ok(())
}

/// Proves what was put together.
fn check(
    state: State,
    did: Did,
    moment: &Moment,
    keys: &[SigningKey],
    (erased, reader): (BTreeSet<Cid>, ArchiveReader),
) -> Result<Rebuilt, Failed> {
    let State {
        records,
        blocks,
        commit_block,
    } = state;
    let everywhere = |detail: String| Failed::Everywhere(detail);
    if !moment.commit.matches(&commit_block) {
        return Err(everywhere(format!(
            "the block of commit {} is another",
            moment.commit
        )));
    }
    let commit = Commit::decode(&commit_block).map_err(|error| everywhere(error.to_string()))?;
    if commit.did != did || commit.rev != moment.rev {
        return Err(everywhere(format!(
            "commit {} is not of this account and rev",
            moment.commit
        )));
    }
    let rebuilt = tree_root(records.iter().map(|(path, cid)| (path.as_bytes(), *cid)));
    let rebuilt = rebuilt.map_err(|error| Failed::Here(error.to_string()))?;
    if rebuilt != commit.data {
        let signed = commit.data;
        return Err(Failed::Here(format!(
            "what it and the entries after it hold builds a tree with root {rebuilt}, but the commit signs {signed}"
        )));
    }
    let withheld = records
        .iter()
        .filter(|(_, cid)| erased.contains(*cid) || !blocks.holds(cid));
    let withheld = withheld.map(|(path, _)| path.clone()).collect();
    let made = |key: &&SigningKey| key.verify(commit.unsigned_bytes(), &commit.sig).is_ok();
    let signed_by = match keys.iter().find(made) {
        Some(key) => Some(key.to_did_key()),
        None if keys.is_empty() => None,
        None => {
            return Err(everywhere(
                "its commit was not signed by any of the keys that were given".to_owned(),
            ));
        }
    };
    Ok(Rebuilt {
        did,
        rev: moment.rev,
        commit: moment.commit,
        data: commit.data,
        commit_block,
        records,
        withheld,
        signed_by,
        warnings: Vec::new(),
        erased,
        blocks,
        reader,
    })
}

impl Rebuilt {
    /// Holds the commit against keys that were not known to be all: whether one of them signed it.
    ///
    /// # Panics
    /// Never: the commit was decoded when this was made.
    pub fn hold_against(&mut self, keys: &[SigningKey]) -> bool {
        let commit = Commit::decode(&self.commit_block).expect("it was decoded before");
        let signer = keys
            .iter()
            .find(|key| key.verify(commit.unsigned_bytes(), &commit.sig).is_ok());
        self.signed_by = signer.map(SigningKey::to_did_key);
        signer.is_some()
    }

    /// A record's bytes; `None` if they are withheld.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn record(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        if self.erased.contains(cid) {
            return Ok(None);
        }
        self.blocks.block(cid)
    }

    /// Writes it as a CAR in the order that readers can stream. Withheld records are left out.
    ///
    /// # Errors
    /// When the temporary file cannot be read, or `out` refuses.
    pub fn write_car(&self, out: &mut impl Write) -> Result<ExportStats, ExportError<io::Error>> {
        if !self.withheld.is_empty() {
            return self.write_partial_car(out);
        }
        prove(self, self.data)?.write_car(self, self.commit, &self.commit_block, out)
    }

    /// As the export writes it, but for the records that are not there.
    fn write_partial_car(&self, out: &mut impl Write) -> Result<ExportStats, ExportError<io::Error>> {
        enum Next {
            Node(Cid),
            Record(Cid),
        }
        let mut nodes = BlockFile::new(&self.reader.temp_dir)?;
        let mut failed = Ok(());
        let mut builder = TreeBuilder::new(|_, cid, block: &[u8]| {
            if failed.is_ok() {
                failed = nodes.put(&cid, block);
            }
        });
        for (path, cid) in &self.records {
            builder.push(path.as_bytes(), *cid)?;
        }
        let rebuilt = builder.finish();
        failed?;
        if rebuilt != self.data {
            let signed = self.data;
            return Err(ExportError::OtherRoot { rebuilt, signed });
        }
        let mut writer = Writer {
            out,
            frame: Vec::new(),
            stats: ExportStats::default(),
        };
        writer.bytes(&car::encode_header(&[self.commit]))?;
        writer.block(&self.commit, &self.commit_block)?;
        let mut next = vec![Next::Node(rebuilt)];
        while let Some(place) = next.pop() {
            match place {
                Next::Record(cid) => {
                    if let Some(bytes) = self.record(&cid)? {
                        writer.block(&cid, &bytes)?;
                        writer.stats.records += 1;
                    }
                }
                Next::Node(cid) => {
                    let block = nodes.block(&cid)?;
                    let block = block.ok_or_else(|| io::Error::other("a tree node is gone"))?;
                    writer.block(&cid, &block)?;
                    writer.stats.nodes += 1;
                    let node = Node::decode(&block).map_err(io::Error::other)?;
                    for entry in (0..node.len()).rev().filter_map(|index| node.entry(index)) {
                        next.extend(entry.right.map(Next::Node));
                        next.push(Next::Record(entry.value));
                    }
                    next.extend(node.left().map(Next::Node));
                }
            }
        }
        Ok(writer.stats)
    }
}

struct Writer<'w, W> {
    out: &'w mut W,
    frame: Vec<u8>,
    stats: ExportStats,
}

impl<W: Write> Writer<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stats.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn block(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        car::encode_block(&mut frame, cid, bytes);
        let written = self.bytes(&frame);
        self.frame = frame;
        self.stats.blocks += 1;
        written
    }
}

impl RecordRows for Rebuilt {
    type Error = io::Error;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> io::Result<()> {
        let from = match from {
            Some(path) => Bound::Included(std::str::from_utf8(path).map_err(io::Error::other)?),
            None => Bound::Unbounded,
        };
        for (path, cid) in self.records.range::<str, _>((from, Bound::Unbounded)) {
            let bytes = self.record(cid)?;
            let bytes = bytes.ok_or_else(|| io::Error::other(format!("{path} is withheld")))?;
            if let ControlFlow::Break(()) = visit(path.as_bytes(), *cid, &bytes) {
                break;
            }
        }
        Ok(())
    }
}
