//! Verification: the only place that makes a `Verified…` value.
//!
//! Everything here is stateless and pure: it needs the bytes, the account's key and `now`, so it runs on
//! every core at once. What needs state (rev order, the `prevData` chain, account status) is checked by
//! the one applier in `mirror`.
//!
//! Sources: <https://atproto.com/specs/sync#message-validation>, <https://atproto.com/specs/repository>.

pub mod commit;
pub mod event;
pub mod evidence;
pub mod full_repo;
pub mod lax_repo;
pub mod reason;
pub mod rows;

pub use commit::{check_commit, check_sync};
pub use event::{Checked, CheckedEvent, EventBody, FrameContent, KeyLookup, Notice, check_frame};
pub use evidence::{
    CommitProof, LegacyOp, PutRecord, SignedCommit, VerifiedCommit, VerifiedLegacy, VerifiedOp, VerifiedSync,
};
pub use full_repo::{HeadKey, KeyStanding, RepoFault, VerifiedRepo, check_repo};
pub use lax_repo::{LaxRepo, check_lax_repo};
pub use reason::{RejectReason, Remedy};
pub use rows::{RowsFault, check_rows};

#[cfg(test)]
mod tests;
