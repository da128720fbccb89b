//! The gates that a `#commit` or `#sync` event passes before it may be applied.
//!
//! Always verifies: size and count limits, the hash of every block, the commit's fields against the
//! envelope, the signature (low-S), each operation against the tree, and that undoing the operations
//! arrives at `prevData`. Does not check: that `prevData` and `rev` follow what the mirror holds, account
//! status, and which host may speak for the account: those need state.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

use super::RejectReason;
use crate::repo::car::{Car, CarError, parse_car};
use crate::repo::commit::Commit;
use crate::repo::mst::BlockSource;
use crate::repo::proof::{ProofError, RecordOp, prove_prev_data};
use crate::repo::signing_key::{SignatureError, SigningKey};
use crate::stream::frame::{Action, CommitFrame, FrameOp, SyncFrame};
use crate::types::{Cid, Did, Digest, RepoPath, Rev, Timestamp};

/// How far a rev may lie in the future. A later one would freeze the account until then.
pub const FUTURE_REV_MAX: Duration = Duration::from_secs(5 * 60);
/// Largest CAR slice of a `#commit`, in bytes.
pub const BLOCKS_BYTES_MAX: usize = 2_000_000;
/// Largest CAR of a `#sync`, in bytes.
pub const SYNC_BLOCKS_BYTES_MAX: usize = 10_000;
/// Most operations in one commit.
pub const OPS_MAX: usize = 200;
/// Largest record, in bytes (1 MiB; the specification says 1 MB, its guide 1 MiB).
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// A commit whose every block was hashed, whose signature is by the account's key, and whose operations
/// lead from `prev_data` to `data`. Only [`check_commit`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedCommit {
    did: Did,
    rev: Rev,
    since: Option<Rev>,
    cid: Cid,
    block: Bytes,
    data: Cid,
    prev_data: Cid,
    ops: Vec<VerifiedOp>,
}

/// One operation of a [`VerifiedCommit`].
#[derive(Debug, Clone)]
pub enum VerifiedOp {
    /// The record at `path` becomes `bytes`, which hash to `cid`; `prev` is what it was, if it was there.
    Put {
        /// Where.
        path: RepoPath,
        /// The new record's CID.
        cid: Cid,
        /// The old record's CID; none for a create.
        prev: Option<Cid>,
        /// The new record.
        bytes: Bytes,
    },
    /// The record at `path`, `prev`, goes.
    Delete {
        /// Where.
        path: RepoPath,
        /// The old record's CID.
        prev: Cid,
    },
}

impl VerifiedCommit {
    /// The account.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }
    /// The commit's rev.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.rev
    }
    /// The rev of the commit before, as the event claims.
    #[must_use]
    pub const fn since(&self) -> Option<Rev> {
        self.since
    }
    /// The commit's CID.
    #[must_use]
    pub const fn cid(&self) -> Cid {
        self.cid
    }
    /// The signed commit block.
    #[must_use]
    pub const fn block(&self) -> &Bytes {
        &self.block
    }
    /// The root of the tree after it.
    #[must_use]
    pub const fn data(&self) -> Cid {
        self.data
    }
    /// The root of the tree before it, proven by undoing the operations.
    #[must_use]
    pub const fn prev_data(&self) -> Cid {
        self.prev_data
    }
    /// Its operations, in the order of the event.
    #[must_use]
    pub fn ops(&self) -> &[VerifiedOp] {
        &self.ops
    }
}

impl VerifiedOp {
    /// Where.
    #[must_use]
    pub const fn path(&self) -> &RepoPath {
        match self {
            Self::Put { path, .. } | Self::Delete { path, .. } => path,
        }
    }
}

/// Passes a `#commit` through every gate that needs no state, in order of cost.
///
/// # Errors
/// The reason of the first gate that it fails.
pub fn check_commit(
    frame: &CommitFrame<'_>,
    key: &SigningKey,
    now: Timestamp,
) -> Result<VerifiedCommit, RejectReason> {
    if frame.blocks.len() > BLOCKS_BYTES_MAX {
        return Err(RejectReason::BlocksTooLarge);
    }
    if frame.ops.len() > OPS_MAX {
        return Err(RejectReason::TooManyOps);
    }
    check_not_future(frame.rev, now)?;
    check_op_shapes(&frame.ops)?;
    let prev_data = frame.prev_data.ok_or(RejectReason::Legacy)?;
    if frame
        .ops
        .iter()
        .any(|op| op.action != Action::Create && op.prev.is_none())
    {
        return Err(RejectReason::Legacy);
    }

    let slice = Slice::new(
        &parse_car(frame.blocks).map_err(|e| car_reason(&e))?,
        &frame.commit,
    )?;
    let (commit, block) = slice.signed_commit(&frame.commit, &frame.did, key)?;
    if commit.rev != frame.rev {
        return Err(RejectReason::RevMismatch);
    }

    let ops: Vec<RecordOp<'_>> = frame
        .ops
        .iter()
        .map(|op| RecordOp {
            path: op.path.as_bytes(),
            cid: op.cid,
            prev: op.prev,
        })
        .collect();
    prove_prev_data(&slice, commit.data, &ops, prev_data).map_err(|e| proof_reason(&e))?;
    Ok(VerifiedCommit {
        ops: slice.records(&frame.ops)?,
        did: commit.did,
        rev: commit.rev,
        since: frame.since,
        cid: frame.commit,
        block: Bytes::copy_from_slice(block),
        data: commit.data,
        prev_data,
    })
}

/// What a `#sync` proves: that this signed commit is the account's. Only [`check_sync`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedSync {
    did: Did,
    event_rev: Rev,
    commit_rev: Rev,
    cid: Cid,
    block: Bytes,
    data: Cid,
}

impl VerifiedSync {
    /// The account.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }
    /// The rev that the event claims. After a migration it is newer than the commit's own.
    #[must_use]
    pub const fn event_rev(&self) -> Rev {
        self.event_rev
    }
    /// The rev in the signed commit.
    #[must_use]
    pub const fn commit_rev(&self) -> Rev {
        self.commit_rev
    }
    /// The commit's CID.
    #[must_use]
    pub const fn cid(&self) -> Cid {
        self.cid
    }
    /// The signed commit block.
    #[must_use]
    pub const fn block(&self) -> &Bytes {
        &self.block
    }
    /// The root of the tree.
    #[must_use]
    pub const fn data(&self) -> Cid {
        self.data
    }
}

/// Passes a `#sync` through the gates that need no state.
///
/// # Errors
/// The reason of the first gate that it fails.
pub fn check_sync(
    frame: &SyncFrame<'_>,
    key: &SigningKey,
    now: Timestamp,
) -> Result<VerifiedSync, RejectReason> {
    if frame.blocks.len() > SYNC_BLOCKS_BYTES_MAX {
        return Err(RejectReason::BlocksTooLarge);
    }
    check_not_future(frame.rev, now)?;
    let car = parse_car(frame.blocks).map_err(|e| car_reason(&e))?;
    let root = *car.roots.first().ok_or(RejectReason::RootMismatch)?;
    let (commit, block) = Slice::new(&car, &root)?.signed_commit(&root, &frame.did, key)?;
    Ok(VerifiedSync {
        did: commit.did,
        event_rev: frame.rev,
        commit_rev: commit.rev,
        cid: root,
        block: Bytes::copy_from_slice(block),
        data: commit.data,
    })
}

/// Refuses a rev from the future.
pub(super) fn check_not_future(rev: Rev, now: Timestamp) -> Result<(), RejectReason> {
    if rev.time() > now.plus(FUTURE_REV_MAX) {
        Err(RejectReason::FutureRev)
    } else {
        Ok(())
    }
}

fn check_op_shapes(ops: &[FrameOp<'_>]) -> Result<(), RejectReason> {
    let mut paths: Vec<&[u8]> = ops.iter().map(|op| op.path.as_bytes()).collect();
    paths.sort_unstable();
    if paths.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(RejectReason::DuplicatePath);
    }
    let shaped = ops.iter().all(|op| match op.action {
        Action::Create => op.cid.is_some() && op.prev.is_none(),
        Action::Update => op.cid.is_some(),
        Action::Delete => op.cid.is_none(),
    });
    if shaped {
        Ok(())
    } else {
        Err(RejectReason::OpShape)
    }
}

/// The hashed blocks of one event, by digest.
struct Slice<'a> {
    blocks: Vec<(Digest, &'a [u8])>,
}

impl<'a> Slice<'a> {
    fn new(car: &Car<'a>, root: &Cid) -> Result<Self, RejectReason> {
        if car.roots.first() != Some(root) {
            return Err(RejectReason::RootMismatch);
        }
        let mut blocks: Vec<_> = car
            .blocks
            .iter()
            .map(|(cid, bytes)| (*cid.digest(), *bytes))
            .collect();
        blocks.sort_unstable_by_key(|(digest, _)| *digest);
        Ok(Self { blocks })
    }

    fn get(&self, cid: &Cid) -> Option<&'a [u8]> {
        let found = self
            .blocks
            .binary_search_by_key(cid.digest(), |(digest, _)| *digest);
        found.ok().map(|index| self.blocks[index].1)
    }

    /// The commit block, decoded, this account's, and signed by `key`.
    fn signed_commit(
        &self,
        cid: &Cid,
        did: &Did,
        key: &SigningKey,
    ) -> Result<(Commit, &'a [u8]), RejectReason> {
        let block = self.get(cid).ok_or(RejectReason::CommitMissing)?;
        let commit = Commit::decode(block).map_err(|_| RejectReason::CommitMalformed)?;
        if commit.did != *did {
            return Err(RejectReason::DidMismatch);
        }
        check_signature(&commit, key)?;
        Ok((commit, block))
    }

    /// The operations with their record bytes.
    fn records(&self, ops: &[FrameOp<'_>]) -> Result<Vec<VerifiedOp>, RejectReason> {
        let verified = |op: &FrameOp<'_>| {
            let path: RepoPath = op.path.parse().map_err(|_| RejectReason::Field)?;
            let Some(cid) = op.cid else {
                return Ok(VerifiedOp::Delete {
                    path,
                    prev: op.prev.ok_or(RejectReason::Legacy)?,
                });
            };
            let bytes = self.get(&cid).ok_or(RejectReason::RecordMissing)?;
            if bytes.len() > RECORD_BYTES_MAX {
                return Err(RejectReason::RecordTooLarge);
            }
            Ok(VerifiedOp::Put {
                path,
                cid,
                prev: op.prev,
                bytes: Bytes::copy_from_slice(bytes),
            })
        };
        ops.iter().map(verified).collect()
    }
}

impl BlockSource for Slice<'_> {
    fn block(&self, cid: &Cid) -> Result<Option<Cow<'_, [u8]>>, std::io::Error> {
        Ok(self.get(cid).map(Cow::Borrowed))
    }
}

/// Checks a commit's signature, telling high-S from a wrong key.
pub(super) fn check_signature(commit: &Commit, key: &SigningKey) -> Result<(), RejectReason> {
    key.verify(commit.unsigned_bytes(), &commit.sig)
        .map_err(|error| match error {
            SignatureError::HighS => RejectReason::HighS,
            _ => RejectReason::BadSignature,
        })
}

const fn car_reason(error: &CarError) -> RejectReason {
    match error {
        CarError::Hash { .. } => RejectReason::BlockHash,
        _ => RejectReason::CarMalformed,
    }
}

const fn proof_reason(error: &ProofError) -> RejectReason {
    match error {
        ProofError::Incomplete(_) => RejectReason::ProofIncomplete,
        ProofError::OtherRoot { .. } => RejectReason::PrevDataMismatch,
        ProofError::Malformed(_) => RejectReason::TreeMalformed,
        _ => RejectReason::OpMismatch,
    }
}
