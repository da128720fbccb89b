//! What verification proves. The gates of this module's siblings alone make these values.

use bytes::Bytes;

use crate::types::{Cid, Did, RepoPath, Rev};

/// A commit block of the account that the event is about, signed by its key.
#[derive(Debug, Clone)]
pub struct SignedCommit {
    pub(super) did: Did,
    pub(super) rev: Rev,
    pub(super) since: Option<Rev>,
    pub(super) cid: Cid,
    pub(super) block: Bytes,
    pub(super) data: Cid,
}

impl SignedCommit {
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
    /// The rev of the commit before, as the event claims. None for a `#sync`, which does not say.
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
}

/// A commit whose every block was hashed, whose signature is by the account's key, and whose operations
/// lead from `prev_data` to `data`.
#[derive(Debug, Clone)]
pub struct VerifiedCommit {
    pub(super) signed: SignedCommit,
    pub(super) prev_data: Cid,
    pub(super) ops: Vec<VerifiedOp>,
}

impl VerifiedCommit {
    /// The commit.
    #[must_use]
    pub const fn signed(&self) -> &SignedCommit {
        &self.signed
    }
    /// The root of the tree after it.
    #[must_use]
    pub const fn data(&self) -> Cid {
        self.signed.data
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

/// One operation of a [`VerifiedCommit`].
#[derive(Debug, Clone)]
pub enum VerifiedOp {
    /// The record at `path` becomes the one with `cid`; `prev` is what it was, if it was there.
    Put {
        /// Where.
        path: RepoPath,
        /// The new record's CID.
        cid: Cid,
        /// The old record's CID; none for a create.
        prev: Option<Cid>,
        /// The new record, which hashes to `cid`. None when the event left it out, as some hosts do with a
        /// record that the account has already: only a copy of it that is held will do.
        bytes: Option<Bytes>,
    },
    /// The record at `path`, `prev`, goes.
    Delete {
        /// Where.
        path: RepoPath,
        /// The old record's CID.
        prev: Cid,
    },
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

/// A commit of a host that speaks the protocol of before: without `prevData`, or without `prev` where a record
/// is replaced or deleted. Every block was hashed, the signature is by the account's key, and what is put
/// stands in the signed tree; that nothing *else* changed is not proven. Who applies it has to rebuild the tree
/// from all records and arrive at `data`.
#[derive(Debug, Clone)]
pub struct VerifiedLegacy {
    pub(super) signed: SignedCommit,
    pub(super) prev_data: Option<Cid>,
    pub(super) ops: Vec<LegacyOp>,
}

impl VerifiedLegacy {
    /// The commit.
    #[must_use]
    pub const fn signed(&self) -> &SignedCommit {
        &self.signed
    }
    /// The root of the tree before it, if the event claims one.
    #[must_use]
    pub const fn prev_data(&self) -> Option<Cid> {
        self.prev_data
    }
    /// Its operations, in the order of the event; no path twice.
    #[must_use]
    pub fn ops(&self) -> &[LegacyOp] {
        &self.ops
    }
}

/// One operation of a [`VerifiedLegacy`].
#[derive(Debug, Clone)]
pub struct LegacyOp {
    pub(super) path: RepoPath,
    pub(super) put: Option<PutRecord>,
}

/// A record that a commit puts somewhere: its CID, and its bytes unless the event left them out.
pub type PutRecord = (Cid, Option<Bytes>);

impl LegacyOp {
    /// Where.
    #[must_use]
    pub const fn path(&self) -> &RepoPath {
        &self.path
    }
    /// The record that stands there now; none: it is deleted.
    #[must_use]
    pub const fn put(&self) -> Option<&PutRecord> {
        self.put.as_ref()
    }
}

/// What a `#commit` proves.
#[derive(Debug, Clone)]
pub enum CommitProof {
    /// The change from one tree to the next.
    Inverted(Box<VerifiedCommit>),
    /// The next tree, and a part of the change.
    Legacy(Box<VerifiedLegacy>),
}

impl CommitProof {
    /// The commit.
    #[must_use]
    pub const fn signed(&self) -> &SignedCommit {
        match self {
            Self::Inverted(commit) => &commit.signed,
            Self::Legacy(commit) => &commit.signed,
        }
    }
}

/// What a `#sync` proves: that this signed commit is the account's.
#[derive(Debug, Clone)]
pub struct VerifiedSync {
    pub(super) signed: SignedCommit,
    pub(super) event_rev: Rev,
}

impl VerifiedSync {
    /// The commit.
    #[must_use]
    pub const fn signed(&self) -> &SignedCommit {
        &self.signed
    }
    /// The rev that the event claims. After a migration it is newer than the commit's own.
    #[must_use]
    pub const fn event_rev(&self) -> Rev {
        self.event_rev
    }
}
