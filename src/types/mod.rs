//! The vocabulary: values that are parsed once and valid from then on.
//!
//! Every identifier that comes from a host passes through one of these constructors; the rest of
//! the code never sees an unchecked one. No type here can represent an illegal value.

pub mod account_status;
pub mod cid;
pub mod did;
pub mod host;
pub mod repo_path;
pub mod rev;
pub mod timestamp;

pub use account_status::AccountStatus;
pub use cid::{Cid, Codec, Digest};
pub use did::{Did, DidMethod};
pub use host::HostName;
pub use repo_path::{Nsid, RecordKey, RepoPath};
pub use rev::Rev;
pub use timestamp::Timestamp;

/// Why a text is not a valid identifier. Carries the rule that it breaks, never the text itself,
/// which may be hostile and long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}: {rule}")]
pub struct SyntaxError {
    /// The kind of identifier that was expected.
    pub what: &'static str,
    /// The rule that the text breaks.
    pub rule: &'static str,
}

impl SyntaxError {
    pub(crate) const fn new(what: &'static str, rule: &'static str) -> Self {
        Self { what, rule }
    }
}
