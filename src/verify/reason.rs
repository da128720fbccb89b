//! Why an event was not applied: a closed list, which is also the label of the metric and the field of
//! the log line.

/// Why an event or a fetched repository is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// A field of the event is missing or malformed.
    Field,
    /// The rev lies more than five minutes in the future.
    FutureRev,
    /// The CAR slice is larger than 2 MB.
    BlocksTooLarge,
    /// More than 200 operations.
    TooManyOps,
    /// Two operations name the same path.
    DuplicatePath,
    /// An operation lacks a CID that its action needs, has one that it must not have, or has an unknown action.
    OpShape,
    /// An operation's path is not a collection and a record key.
    OpPath,
    /// A link of the event is not the CID of a DAG-CBOR block.
    CidForm,
    /// The CAR slice cannot be parsed.
    CarMalformed,
    /// A block does not hash to its CID.
    BlockHash,
    /// The CAR's first root is not the commit that the event names.
    RootMismatch,
    /// The commit block is not in the slice.
    CommitMissing,
    /// The commit block is not a version 3 commit in strict DAG-CBOR.
    CommitMalformed,
    /// The commit is another account's.
    DidMismatch,
    /// The commit's rev is not the event's.
    RevMismatch,
    /// The signature is not by the account's key.
    BadSignature,
    /// The signature is not in low-S form.
    HighS,
    /// The account's DID document names another PDS.
    WrongHost,
    /// A created or updated record's block is neither in the slice nor among the account's records here.
    RecordMissing,
    /// A record is larger than 1 MB.
    RecordTooLarge,
    /// A tree node is malformed.
    TreeMalformed,
    /// A block that is needed to undo the operations is not in the slice: nothing is proven either way.
    ProofIncomplete,
    /// An operation contradicts the tree.
    OpMismatch,
    /// Undoing the operations does not arrive at `prevData`.
    PrevDataMismatch,
    /// No `prevData`, or no `prev` in an operation, and our own records with the operations do not rebuild to
    /// the signed tree, or are too many to try.
    Legacy,
    /// The commit does not follow the one that the mirror holds.
    ChainBroken,
    /// The commit is proven, and another than the one that the mirror holds under the same rev.
    Forked,
}

/// What to do after an event was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the event is counted and changes nothing.
    Ignore,
    /// The account's key may have changed: resolve its identity again, then verify once more.
    RefreshIdentity,
    /// The account's state is no longer known: fetch the repository.
    Resync,
}

impl RejectReason {
    /// Every reason, for metrics.
    pub const ALL: [Self; 27] = [
        Self::Field,
        Self::FutureRev,
        Self::BlocksTooLarge,
        Self::TooManyOps,
        Self::DuplicatePath,
        Self::OpShape,
        Self::OpPath,
        Self::CidForm,
        Self::CarMalformed,
        Self::BlockHash,
        Self::RootMismatch,
        Self::CommitMissing,
        Self::CommitMalformed,
        Self::DidMismatch,
        Self::RevMismatch,
        Self::BadSignature,
        Self::HighS,
        Self::WrongHost,
        Self::RecordMissing,
        Self::RecordTooLarge,
        Self::TreeMalformed,
        Self::ProofIncomplete,
        Self::OpMismatch,
        Self::PrevDataMismatch,
        Self::Legacy,
        Self::ChainBroken,
        Self::Forked,
    ];

    /// The metric label and log field.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Field => "field",
            Self::FutureRev => "future_rev",
            Self::BlocksTooLarge => "blocks_too_large",
            Self::TooManyOps => "too_many_ops",
            Self::DuplicatePath => "duplicate_path",
            Self::OpShape => "op_shape",
            Self::OpPath => "op_path",
            Self::CidForm => "cid_form",
            Self::CarMalformed => "car_malformed",
            Self::BlockHash => "block_hash",
            Self::RootMismatch => "root_mismatch",
            Self::CommitMissing => "commit_missing",
            Self::CommitMalformed => "commit_malformed",
            Self::DidMismatch => "did_mismatch",
            Self::RevMismatch => "rev_mismatch",
            Self::BadSignature => "bad_signature",
            Self::HighS => "high_s",
            Self::WrongHost => "wrong_host",
            Self::RecordMissing => "record_missing",
            Self::RecordTooLarge => "record_too_large",
            Self::TreeMalformed => "tree_malformed",
            Self::ProofIncomplete => "proof_incomplete",
            Self::OpMismatch => "op_mismatch",
            Self::PrevDataMismatch => "prev_data_mismatch",
            Self::Legacy => "legacy",
            Self::ChainBroken => "chain_broken",
            Self::Forked => "forked",
        }
    }

    /// Whether the account did not sign this: for sure, or once its key was read again (`key_is_fresh`).
    #[must_use]
    pub const fn is_foreign_signature(self, key_is_fresh: bool) -> bool {
        match self {
            Self::HighS => true,
            Self::BadSignature => key_is_fresh,
            _ => false,
        }
    }

    /// What follows from it.
    ///
    /// A commit that fails a check may be the host's fault or a forger's; in both cases the account's own
    /// repository, fetched and proven whole, settles it. Only what says nothing about the account at all
    /// (a rev from the future, another host's account) is ignored.
    #[must_use]
    pub const fn remedy(self) -> Remedy {
        match self {
            Self::FutureRev | Self::WrongHost => Remedy::Ignore,
            Self::BadSignature => Remedy::RefreshIdentity,
            _ => Remedy::Resync,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_distinct() {
        let labels: BTreeSet<_> = RejectReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), RejectReason::ALL.len());
    }
}
