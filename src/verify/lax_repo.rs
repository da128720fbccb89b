//! A fetched repository that breaks the rules of its tree, but is signed and all there: a lax PDS made it.
//!
//! It cannot be rebuilt from its records, so it is never taken for a proven one; its CAR is kept as it came. What
//! it takes: the head passes every gate that a proven repository's head passes, every block that the tree links
//! to as a node can be read as one in some form, and all nodes and records are there. A block that does not hash,
//! a signature that fails, a node or a record that is missing: all that is refused as ever.

use super::full_repo::{HeadKey, KeyStanding, RepoFault, SignedHead, check_head};
use crate::repo::mst::{BlockSource, LaxFault, walk_lax};
use crate::types::{Cid, Did, Rev, Timestamp};

/// A repository whose head is signed and whose blocks are all there, though they are no proper tree. Only
/// [`check_lax_repo`] makes one.
#[derive(Debug, Clone)]
pub struct LaxRepo {
    did: Did,
    rev: Rev,
    cid: Cid,
    records: u64,
    signed_by: KeyStanding,
}

impl LaxRepo {
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
    /// How many links to records its nodes hold.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }
    /// What the key that signed the head was to the account.
    #[must_use]
    pub const fn signed_by(&self) -> &KeyStanding {
        &self.signed_by
    }
}

/// Follows every link from the root commit on, in whatever form the nodes are, and hands each record to `visit`.
///
/// # Errors
/// The first thing that is forged, missing or unreadable.
pub fn check_lax_repo<'k, S: BlockSource, E>(
    source: &S,
    root: Cid,
    did: &Did,
    key: impl Into<HeadKey<'k>>,
    now: Timestamp,
    mut visit: impl FnMut(Cid, &[u8]) -> Result<(), E>,
) -> Result<LaxRepo, RepoFault<E>> {
    let SignedHead {
        commit, signed_by, ..
    } = check_head(source, root, did, key.into(), now)?;
    let mut records = 0u64;
    walk_lax(source, commit.data, |cid| {
        let Some(bytes) = source.block(&cid).map_err(RepoFault::Read)? else {
            return Err(RepoFault::RecordMissing {
                path: cid.to_string(),
            });
        };
        records += 1;
        visit(cid, &bytes).map_err(RepoFault::Visit)
    })?;
    Ok(LaxRepo {
        did: commit.did,
        rev: commit.rev,
        cid: root,
        records,
        signed_by,
    })
}

impl<E> From<LaxFault> for RepoFault<E> {
    fn from(fault: LaxFault) -> Self {
        match fault {
            LaxFault::Tree(error) => Self::Tree(error),
            LaxFault::NotANode(cid) => Self::NotANode(cid),
        }
    }
}
