//! What can go wrong: a closed list, so that a sweep can tell which of it never did.

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The power of our own machine goes.
    Crash,
    /// A connection breaks in the middle of a frame.
    CutConnection,
    /// A frame comes twice.
    DuplicateFrame,
    /// Two frames come in the wrong order.
    ReorderedFrames,
    /// Bytes that are no frame.
    GarbageFrame,
    /// A frame of a type that nobody knows.
    UnknownFrame,
    /// The host finds us too slow.
    ConsumerTooSlow,
    /// A host does not answer.
    HostDown,
    /// An event that the host never sends.
    SwallowedFrame,
    /// The host forgot what follows our cursor.
    OutdatedCursor,
    /// The host went back to an older copy, and says so by `FutureCursor`.
    RollbackLoud,
    /// The host went back to an older copy, and its numbers have passed our cursor again.
    RollbackSilent,
    /// The host's numbers begin again; its accounts are whole.
    SequenceReset,
    /// A commit that deletes every record.
    MassDelete,
    /// The host does not know a repository for a while.
    RepoNotFound,
    /// The host lists no accounts.
    EmptyList,
    /// Another commit under the rev of the head.
    Fork,
    /// The host signs a tree that does not rebuild from its records.
    LaxTree,
    /// A commit whose signature is not in low-S form.
    HighS,
    /// A commit that a stranger signed.
    WrongKey,
    /// A commit from the future.
    FutureRev,
    /// A commit without `prevData`.
    LegacyCommit,
    /// A host speaks for the account of another.
    ForeignAccount,
    /// A frame whose field breaks a rule of the lexicon.
    BadField,
    /// A frame that changes one path twice.
    DuplicatePath,
    /// A frame whose blocks end in the middle.
    BlocksCut,
    /// A frame with a flipped bit in a block.
    BlockFlipped,
    /// A frame whose CAR names another root.
    RootSwapped,
    /// A frame without its commit block.
    CommitDropped,
    /// A frame whose commit block is none.
    CommitGarbage,
    /// A frame under another account's DID.
    DidSwapped,
    /// A frame that claims another rev than its commit.
    RevSwapped,
    /// A frame without a record's block.
    RecordDropped,
    /// A frame with a record of more than 1 MiB.
    RecordTooLarge,
    /// A frame without a node of the tree.
    NodeDropped,
    /// A signed commit over something that is no tree.
    NodeGarbage,
    /// A frame whose operation is not what the tree says.
    OpChanged,
    /// A frame with another `prevData`.
    PrevDataChanged,
    /// An account gets a new key.
    KeyRotated,
    /// The PLC directory does not answer.
    PlcDown,
    /// A host's repository replaced as by `importRepo`: a `#sync`, and no commit.
    Imported,
    /// An account is deactivated.
    Deactivated,
    /// An account is suspended.
    Suspended,
    /// An account is taken down.
    Takendown,
    /// An account is deleted, and its events vanish from the host's stream.
    Deleted,
    /// An account is inactive for a reason that nobody knows.
    UnknownStatus,
    /// An export that ends between two blocks.
    ExportTruncated,
    /// An export with a flipped bit.
    ExportFlipped,
    /// An export that a commit tore apart.
    ExportTorn,
    /// A host answers with an error of its own.
    ServerError,
    /// A blob that the host does not give.
    BlobMissing,
    /// A blob whose bytes are others.
    BlobWrong,
    /// A blob that the host gives only later.
    BlobLate,
    /// More commits than may be parked.
    Burst,
    /// A bit of our own copy rots.
    BitRot,
    /// The power goes between two writes of one step.
    CrashMidStep,
    /// An account moves to another host that is followed.
    Moved,
    /// An account moves where nobody follows it.
    MovedAway,
    /// An account comes from where nobody followed it.
    MovedHere,
    /// The directory gives a DID's document of before for a while.
    PlcStale,
    /// A host leaves accounts out of its listing.
    ListHalf,
    /// An export with blocks that do not belong there, and some twice.
    ExportPadded,
    /// The bucket answers with an error.
    BucketError,
    /// The bucket takes minutes.
    BucketSlow,
    /// The bucket takes an object, and the answer is lost.
    BucketAnswerLost,
    /// Somebody empties the bucket.
    BucketEmptied,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 66] = [
        Self::Crash,
        Self::CutConnection,
        Self::DuplicateFrame,
        Self::ReorderedFrames,
        Self::GarbageFrame,
        Self::UnknownFrame,
        Self::ConsumerTooSlow,
        Self::HostDown,
        Self::SwallowedFrame,
        Self::OutdatedCursor,
        Self::RollbackLoud,
        Self::RollbackSilent,
        Self::SequenceReset,
        Self::MassDelete,
        Self::RepoNotFound,
        Self::EmptyList,
        Self::Fork,
        Self::HighS,
        Self::WrongKey,
        Self::FutureRev,
        Self::LegacyCommit,
        Self::ForeignAccount,
        Self::BadField,
        Self::DuplicatePath,
        Self::BlocksCut,
        Self::BlockFlipped,
        Self::RootSwapped,
        Self::CommitDropped,
        Self::CommitGarbage,
        Self::DidSwapped,
        Self::RevSwapped,
        Self::RecordDropped,
        Self::RecordTooLarge,
        Self::NodeDropped,
        Self::NodeGarbage,
        Self::OpChanged,
        Self::PrevDataChanged,
        Self::KeyRotated,
        Self::PlcDown,
        Self::Imported,
        Self::Deactivated,
        Self::Suspended,
        Self::Takendown,
        Self::Deleted,
        Self::UnknownStatus,
        Self::ExportTruncated,
        Self::ExportFlipped,
        Self::ExportTorn,
        Self::ServerError,
        Self::BlobMissing,
        Self::BlobWrong,
        Self::Burst,
        Self::BitRot,
        Self::BlobLate,
        Self::CrashMidStep,
        Self::Moved,
        Self::MovedAway,
        Self::MovedHere,
        Self::PlcStale,
        Self::ListHalf,
        Self::ExportPadded,
        Self::BucketError,
        Self::BucketSlow,
        Self::BucketAnswerLost,
        Self::BucketEmptied,
        Self::LaxTree,
    ];

    /// The name, for tables.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CutConnection => "cut_connection",
            Self::DuplicateFrame => "duplicate_frame",
            Self::ReorderedFrames => "reordered_frames",
            Self::GarbageFrame => "garbage_frame",
            Self::UnknownFrame => "unknown_frame",
            Self::ConsumerTooSlow => "consumer_too_slow",
            Self::HostDown => "host_down",
            Self::SwallowedFrame => "swallowed_frame",
            Self::OutdatedCursor => "outdated_cursor",
            Self::RollbackLoud => "rollback_loud",
            Self::RollbackSilent => "rollback_silent",
            Self::SequenceReset => "sequence_reset",
            Self::MassDelete => "mass_delete",
            Self::RepoNotFound => "repo_not_found",
            Self::EmptyList => "empty_list",
            Self::Fork => "fork",
            Self::LaxTree => "lax_tree",
            Self::HighS => "high_s",
            Self::WrongKey => "wrong_key",
            Self::FutureRev => "future_rev",
            Self::LegacyCommit => "legacy_commit",
            Self::ForeignAccount => "foreign_account",
            Self::BadField => "bad_field",
            Self::DuplicatePath => "duplicate_path",
            Self::BlocksCut => "blocks_cut",
            Self::BlockFlipped => "block_flipped",
            Self::RootSwapped => "root_swapped",
            Self::CommitDropped => "commit_dropped",
            Self::CommitGarbage => "commit_garbage",
            Self::DidSwapped => "did_swapped",
            Self::RevSwapped => "rev_swapped",
            Self::RecordDropped => "record_dropped",
            Self::RecordTooLarge => "record_too_large",
            Self::NodeDropped => "node_dropped",
            Self::NodeGarbage => "node_garbage",
            Self::OpChanged => "op_changed",
            Self::PrevDataChanged => "prev_data_changed",
            Self::KeyRotated => "key_rotated",
            Self::PlcDown => "plc_down",
            Self::Imported => "imported",
            Self::Deactivated => "deactivated",
            Self::Suspended => "suspended",
            Self::Takendown => "takendown",
            Self::Deleted => "deleted",
            Self::UnknownStatus => "unknown_status",
            Self::ExportTruncated => "export_truncated",
            Self::ExportFlipped => "export_flipped",
            Self::ExportTorn => "export_torn",
            Self::ServerError => "server_error",
            Self::BlobMissing => "blob_missing",
            Self::BlobWrong => "blob_wrong",
            Self::Burst => "burst",
            Self::BitRot => "bit_rot",
            Self::BlobLate => "blob_late",
            Self::CrashMidStep => "crash_mid_step",
            Self::Moved => "moved",
            Self::MovedAway => "moved_away",
            Self::MovedHere => "moved_here",
            Self::PlcStale => "plc_stale",
            Self::ListHalf => "list_half",
            Self::ExportPadded => "export_padded",
            Self::BucketError => "bucket_error",
            Self::BucketSlow => "bucket_slow",
            Self::BucketAnswerLost => "bucket_answer_lost",
            Self::BucketEmptied => "bucket_emptied",
        }
    }
}
