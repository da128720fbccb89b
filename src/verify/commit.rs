//! The gates that a `#commit` or `#sync` event passes before it may be applied.
//!
//! Always verifies: size and count limits, the hash of every block, the commit's fields against the
//! envelope, the signature (low-S), each operation against the tree, and that undoing the operations
//! arrives at `prevData`, where the host says what that was. Does not check: that `prevData` and `rev` follow
//! what the mirror holds, that records which were left out are held, account status, and which host may speak
//! for the account: those need state.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

use super::evidence::{
    CommitProof, LegacyOp, SignedCommit, VerifiedCommit, VerifiedLegacy, VerifiedOp, VerifiedSync,
};
use super::reason::RejectReason;
use crate::repo::car::{Car, CarError, parse_car};
use crate::repo::commit::Commit;
use crate::repo::mst::BlockSource;
use crate::repo::proof::{ProofError, RecordOp, prove_prev_data, prove_record};
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

/// Passes a `#commit` through every gate that needs no state, in order of cost.
///
/// # Errors
/// The reason of the first gate that it fails.
pub fn check_commit(
    frame: &CommitFrame<'_>,
    key: &SigningKey,
    now: Timestamp,
) -> Result<CommitProof, RejectReason> {
    if frame.blocks.len() > BLOCKS_BYTES_MAX {
        return Err(RejectReason::BlocksTooLarge);
    }
    if frame.ops.len() > OPS_MAX {
        return Err(RejectReason::TooManyOps);
    }
    check_not_future(frame.rev, now)?;
    check_op_shapes(&frame.ops)?;

    let slice = Slice::new(
        &parse_car(frame.blocks).map_err(|e| car_reason(&e))?,
        &frame.commit,
    )?;
    let (commit, block) = slice.signed_commit(&frame.commit, &frame.did, key)?;
    if commit.rev != frame.rev {
        return Err(RejectReason::RevMismatch);
    }
    let signed = SignedCommit {
        did: commit.did,
        rev: commit.rev,
        since: frame.since,
        cid: frame.commit,
        block: Bytes::copy_from_slice(block),
        data: commit.data,
    };
    let says_prev = |op: &FrameOp<'_>| op.action == Action::Create || op.prev.is_some();
    match frame.prev_data {
        Some(prev_data) if frame.ops.iter().all(says_prev) => prove_change(frame, &slice, signed, prev_data),
        _ => prove_new_records(frame, &slice, signed),
    }
}

/// Undoes the operations: they, and nothing else, lead from `prev_data` to the signed tree.
fn prove_change(
    frame: &CommitFrame<'_>,
    slice: &Slice<'_>,
    signed: SignedCommit,
    prev_data: Cid,
) -> Result<CommitProof, RejectReason> {
    let ops: Vec<RecordOp<'_>> = frame
        .ops
        .iter()
        .map(|op| RecordOp {
            path: op.path.as_bytes(),
            cid: op.cid,
            prev: op.prev,
        })
        .collect();
    prove_prev_data(slice, signed.data, &ops, prev_data).map_err(|e| proof_reason(&e))?;
    let verified = |op: &FrameOp<'_>| {
        let path = repo_path(op)?;
        match (op.cid, op.prev) {
            (Some(cid), prev) => Ok(VerifiedOp::Put {
                path,
                cid,
                prev,
                bytes: slice.record(&cid)?,
            }),
            (None, Some(prev)) => Ok(VerifiedOp::Delete { path, prev }),
            (None, None) => Err(RejectReason::OpShape),
        }
    };
    Ok(CommitProof::Inverted(Box::new(VerifiedCommit {
        ops: frame.ops.iter().map(verified).collect::<Result<_, _>>()?,
        signed,
        prev_data,
    })))
}

/// What can be said of an older host's commit: what is put stands in the signed tree, what is deleted does not.
fn prove_new_records(
    frame: &CommitFrame<'_>,
    slice: &Slice<'_>,
    signed: SignedCommit,
) -> Result<CommitProof, RejectReason> {
    let verified = |op: &FrameOp<'_>| {
        match (op.cid, prove_record(slice, signed.data, op.path.as_bytes())) {
            (cid, Ok(found)) if cid == found => {}
            // The way to where a deleted record stood may lead through a node that did not change, and is
            // not here. Rebuilding the whole tree will tell.
            (None, Err(ProofError::Incomplete(_))) => {}
            (_, Ok(_)) => return Err(RejectReason::OpMismatch),
            (_, Err(error)) => return Err(proof_reason(&error)),
        }
        let put = match op.cid {
            Some(cid) => Some((cid, slice.record(&cid)?)),
            None => None,
        };
        let path = repo_path(op)?;
        Ok(LegacyOp { path, put })
    };
    Ok(CommitProof::Legacy(Box::new(VerifiedLegacy {
        ops: frame.ops.iter().map(verified).collect::<Result<_, _>>()?,
        signed,
        prev_data: frame.prev_data,
    })))
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
        signed: SignedCommit {
            did: commit.did,
            rev: commit.rev,
            since: None,
            cid: root,
            block: Bytes::copy_from_slice(block),
            data: commit.data,
        },
        event_rev: frame.rev,
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

    /// A record's bytes, if they are here.
    fn record(&self, cid: &Cid) -> Result<Option<Bytes>, RejectReason> {
        match self.get(cid) {
            Some(bytes) if bytes.len() > RECORD_BYTES_MAX => Err(RejectReason::RecordTooLarge),
            bytes => Ok(bytes.map(Bytes::copy_from_slice)),
        }
    }
}

impl BlockSource for Slice<'_> {
    fn block(&self, cid: &Cid) -> Result<Option<Cow<'_, [u8]>>, std::io::Error> {
        Ok(self.get(cid).map(Cow::Borrowed))
    }
}

fn repo_path(op: &FrameOp<'_>) -> Result<RepoPath, RejectReason> {
    op.path.parse().map_err(|_| RejectReason::OpPath)
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
