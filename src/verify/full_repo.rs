//! A fetched repository: accepted only when the whole of it is proven.
//!
//! Always verifies: the commit's fields and signature, that every node and every record of the tree is
//! there (each block was hashed when it was read), node form, key order, layers and sizes. A CAR cut
//! between two blocks parses cleanly and fails here. Extra blocks are ignored.

use bytes::Bytes;

use super::RejectReason;
use super::commit::{RECORD_BYTES_MAX, check_not_future, check_signature};
use crate::identity::plc_log::LoggedKey;
use crate::repo::cbor::check_canonical;
use crate::repo::commit::Commit;
use crate::repo::mst::{BlockSource, MstError, WalkLimits, walk};
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, Rev, Timestamp};

/// A key that a head is held against.
#[derive(Debug, Clone, Copy)]
pub enum HeadKey<'a> {
    /// The one that the account's identity names now.
    Current(&'a SigningKey),
    /// One that the account's verified audit log names as the key of before. Until its first write after a
    /// migration an account's head is signed by it; it proves nothing else, and never a `#commit`.
    Earlier(&'a LoggedKey),
}

impl<'a> From<&'a SigningKey> for HeadKey<'a> {
    fn from(key: &'a SigningKey) -> Self {
        Self::Current(key)
    }
}

impl<'a> From<&'a LoggedKey> for HeadKey<'a> {
    fn from(key: &'a LoggedKey) -> Self {
        Self::Earlier(key)
    }
}

/// What the key that signed a head was when the head was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStanding {
    /// The account's current key.
    Current,
    /// A key of before, from the audit log.
    Earlier(LoggedKey),
}

/// A repository that was walked from its signed root to its last record, or rebuilt to it. Only [`check_repo`] and
/// [`super::check_rows`] make one.
#[derive(Debug, Clone)]
pub struct VerifiedRepo {
    did: Did,
    rev: Rev,
    cid: Cid,
    block: Bytes,
    data: Cid,
    records: u64,
    record_bytes: u64,
    noncanonical: u64,
    signed_by: KeyStanding,
}

impl VerifiedRepo {
    /// For [`super::rows`] alone: counts are records, their bytes, and those that are not strict.
    pub(super) fn of_rows(
        commit: Commit,
        cid: Cid,
        block: Bytes,
        (records, record_bytes, noncanonical): (u64, u64, u64),
        signed_by: KeyStanding,
    ) -> Self {
        Self {
            did: commit.did,
            rev: commit.rev,
            cid,
            block,
            data: commit.data,
            records,
            record_bytes,
            noncanonical,
            signed_by,
        }
    }

    /// The account.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }
    /// The head's rev.
    #[must_use]
    pub const fn rev(&self) -> Rev {
        self.rev
    }
    /// The head commit's CID.
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
    /// How many records.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }
    /// Bytes of all records.
    #[must_use]
    pub const fn record_bytes(&self) -> u64 {
        self.record_bytes
    }
    /// How many records are not strict DAG-CBOR. They are kept byte for byte all the same.
    #[must_use]
    pub const fn noncanonical(&self) -> u64 {
        self.noncanonical
    }
    /// What the key that signed the head was to the account.
    #[must_use]
    pub const fn signed_by(&self) -> &KeyStanding {
        &self.signed_by
    }
}

/// Why a fetched repository is not accepted. `E` is the visitor's own failure.
#[derive(Debug, thiserror::Error)]
pub enum RepoFault<E> {
    /// The head does not pass a gate.
    #[error("its head does not verify: {}", .0.label())]
    Head(RejectReason),
    /// A node of the tree is missing or not as it must be.
    #[error("a node of its tree is missing or malformed: {0}")]
    Tree(#[from] MstError),
    /// A record's block is not in the CAR: cut short, or torn by a commit during the export.
    #[error("the record {path} is missing from it")]
    RecordMissing {
        /// Which record.
        path: String,
    },
    /// A record is larger than 1 MiB.
    #[error("the record {path} is larger than 1 MiB")]
    RecordTooLarge {
        /// Which record.
        path: String,
    },
    /// A block that the tree links to as a node is none, in any form.
    #[error("the block {0} of its tree cannot be read as a node")]
    NotANode(Cid),
    /// The blocks could not be read back.
    #[error("cannot read it back: {0}")]
    Read(#[source] std::io::Error),
    /// The visitor failed: our store, not the repository.
    #[error(transparent)]
    Visit(E),
}

impl<E> RepoFault<E> {
    /// The same with the visitor's failure told otherwise.
    pub fn map_visit<F>(self, of: impl FnOnce(E) -> F) -> RepoFault<F> {
        match self {
            Self::Visit(error) => RepoFault::Visit(of(error)),
            Self::Head(reason) => RepoFault::Head(reason),
            Self::Tree(error) => RepoFault::Tree(error),
            Self::RecordMissing { path } => RepoFault::RecordMissing { path },
            Self::RecordTooLarge { path } => RepoFault::RecordTooLarge { path },
            Self::NotANode(cid) => RepoFault::NotANode(cid),
            Self::Read(error) => RepoFault::Read(error),
        }
    }

    /// Whether it says that a rule of the tree is broken, and not that anything is missing or forged: what is
    /// all there all the same may be kept as it is.
    #[must_use]
    pub const fn is_lax(&self) -> bool {
        matches!(
            self,
            Self::Tree(MstError::Node { .. }) | Self::RecordTooLarge { .. }
        )
    }
}

/// Walks a whole repository from its root commit, handing every record to `visit` in tree order.
/// What the visitor stored counts only if the walk succeeds. The signature is checked before the visitor sees
/// anything.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check_repo<'k, S: BlockSource, E>(
    source: &S,
    root: Cid,
    did: &Did,
    key: impl Into<HeadKey<'k>>,
    now: Timestamp,
    mut visit: impl FnMut(&[u8], Cid, &[u8]) -> Result<(), E>,
) -> Result<VerifiedRepo, RepoFault<E>> {
    let SignedHead {
        commit,
        block,
        signed_by,
    } = check_head(source, root, did, key.into(), now)?;

    let (mut records, mut record_bytes, mut noncanonical) = (0u64, 0u64, 0u64);
    walk(source, commit.data, &WalkLimits::default(), |path, cid| {
        let path_text = || String::from_utf8_lossy(path).into_owned();
        let Some(bytes) = source.block(&cid).map_err(RepoFault::Read)? else {
            return Err(RepoFault::RecordMissing { path: path_text() });
        };
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RepoFault::RecordTooLarge { path: path_text() });
        }
        records += 1;
        record_bytes += bytes.len() as u64;
        noncanonical += u64::from(check_canonical(&bytes).is_err());
        visit(path, cid, &bytes).map_err(RepoFault::Visit)
    })?;
    Ok(VerifiedRepo {
        did: commit.did,
        rev: commit.rev,
        cid: root,
        block,
        data: commit.data,
        records,
        record_bytes,
        noncanonical,
        signed_by,
    })
}

/// A head whose signature is the account's.
pub(super) struct SignedHead {
    pub(super) commit: Commit,
    pub(super) block: Bytes,
    pub(super) signed_by: KeyStanding,
}

/// Checks the root commit of a fetched repository: its fields, whose it is, its time and its signature.
pub(super) fn check_head<S: BlockSource, E>(
    source: &S,
    root: Cid,
    did: &Did,
    key: HeadKey<'_>,
    now: Timestamp,
) -> Result<SignedHead, RepoFault<E>> {
    let head = RepoFault::Head;
    let block = source
        .block(&root)
        .map_err(RepoFault::Read)?
        .ok_or(head(RejectReason::CommitMissing))?;
    let commit = Commit::decode(&block).map_err(|_| head(RejectReason::CommitMalformed))?;
    if commit.did != *did {
        return Err(head(RejectReason::DidMismatch));
    }
    check_not_future(commit.rev, now).map_err(head)?;
    let (key, signed_by) = match key {
        HeadKey::Earlier(logged) if logged.did() != did => return Err(head(RejectReason::DidMismatch)),
        HeadKey::Current(key) => (key, KeyStanding::Current),
        HeadKey::Earlier(logged) => (logged.key(), KeyStanding::Earlier(logged.clone())),
    };
    check_signature(&commit, key).map_err(head)?;
    Ok(SignedHead {
        block: Bytes::copy_from_slice(&block),
        commit,
        signed_by,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;
    use crate::sim::SimAccount;
    use crate::sim::account::post;
    use crate::types::Digest;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    #[test]
    fn a_repository_that_lacks_any_of_its_blocks_is_refused() {
        let mut account = SimAccount::new(1, NOW);
        let writes = (0..40).map(|i| {
            (
                format!("app.bsky.feed.post/r{i}"),
                Some(post(&format!("text {i}"))),
            )
        });
        account.commit(1, &writes.collect::<Vec<_>>(), NOW);
        let blocks = account.export_blocks();
        let check = |without: Option<usize>| {
            let held = blocks.iter().enumerate().filter(|(at, _)| Some(*at) != without);
            let held: BTreeMap<Digest, &[u8]> = held
                .map(|(_, (cid, bytes))| (*cid.digest(), bytes.as_slice()))
                .collect();
            let key = account.key();
            check_repo(&held, account.head(), account.did(), &key, NOW, |_, _, _| {
                Ok::<(), Infallible>(())
            })
        };
        assert_eq!(check(None).expect("whole").records(), 40);
        let mut faults = [0; 3];
        for at in 0..blocks.len() {
            match check(Some(at)) {
                Err(RepoFault::Head(RejectReason::CommitMissing)) => faults[0] += 1,
                Err(RepoFault::Tree(MstError::Missing(_))) => faults[1] += 1,
                Err(RepoFault::RecordMissing { .. }) => faults[2] += 1,
                other => panic!("without block {at}: {other:?}"),
            }
        }
        assert_eq!(faults, [1, blocks.len() - 41, 40]);
    }
}
