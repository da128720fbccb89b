//! What keeps a backup from being protected, and how bad each thing is: closed sets, for they label metrics.

/// The answer in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything that can be is safe, off this machine, and proven.
    Protected,
    /// All of it is held, and nothing of it is off this machine.
    Mirrored,
    /// There is no account to keep.
    Empty,
    /// On the way; nothing is wrong.
    CatchingUp,
    /// Something is wrong.
    AtRisk,
}

impl Level {
    /// Every level.
    pub const ALL: [Self; 5] = [
        Self::Protected,
        Self::Mirrored,
        Self::Empty,
        Self::CatchingUp,
        Self::AtRisk,
    ];

    /// For programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Mirrored => "mirrored",
            Self::Empty => "empty",
            Self::CatchingUp => "catching_up",
            Self::AtRisk => "at_risk",
        }
    }

    /// For people.
    #[must_use]
    pub const fn headline(self) -> &'static str {
        match self {
            Self::Protected => "Protected",
            Self::Mirrored => "Mirrored, not off this machine",
            Self::Empty => "Nothing to protect yet",
            Self::CatchingUp => "Catching up",
            Self::AtRisk => "At risk",
        }
    }
}

/// Why it is not protected. Closed, for it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A part of Firekeep ended, or does nothing.
    TaskStalled,
    /// A host cannot be reached.
    HostAway,
    /// What was read is not applied.
    Lag,
    /// The archive cannot be reached, or refuses.
    ArchiveAway,
    /// Changes wait too long for the archive.
    OffMachineAge,
    /// More waited than there is room for.
    SpoolFull,
    /// Blobs that records refer to are not held.
    BlobsMissing,
    /// Accounts do not rebuild to their signed roots.
    Quarantined,
    /// A host is behind what is held of it.
    Diverged,
    /// What stands in the archive, or here, is damaged.
    Damaged,
    /// A trial restore failed.
    DrillFailed,
    /// None went well for too long.
    DrillOld,
    /// The archive was not read to its end for too long.
    ScrubOld,
    /// A host is being connected to.
    Connecting,
    /// Not every account is known yet.
    NotListed,
    /// Accounts are to be fetched.
    Filling,
    /// Events wait for a key or a fetch.
    EventsParked,
    /// Blobs are to be fetched, or put into the archive.
    BlobsOpen,
    /// Accounts have no snapshot in the archive.
    NotSnapshotted,
    /// No trial restore was done yet.
    DrillPending,
    /// The archive was not read to its end yet.
    ScrubPending,
    /// There is no account.
    NoAccounts,
    /// The archive is a folder of this machine.
    SameMachine,
}

impl Reason {
    /// Every reason, the worst first.
    pub const ALL: [Self; 23] = [
        Self::TaskStalled,
        Self::HostAway,
        Self::Lag,
        Self::ArchiveAway,
        Self::OffMachineAge,
        Self::SpoolFull,
        Self::BlobsMissing,
        Self::Quarantined,
        Self::Diverged,
        Self::Damaged,
        Self::DrillFailed,
        Self::DrillOld,
        Self::ScrubOld,
        Self::Connecting,
        Self::NotListed,
        Self::Filling,
        Self::EventsParked,
        Self::BlobsOpen,
        Self::NotSnapshotted,
        Self::DrillPending,
        Self::ScrubPending,
        Self::NoAccounts,
        Self::SameMachine,
    ];

    /// How bad it is.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            Self::TaskStalled
            | Self::HostAway
            | Self::Lag
            | Self::ArchiveAway
            | Self::OffMachineAge
            | Self::SpoolFull
            | Self::BlobsMissing
            | Self::Quarantined
            | Self::Diverged
            | Self::Damaged
            | Self::DrillFailed
            | Self::DrillOld
            | Self::ScrubOld => Level::AtRisk,
            Self::Connecting
            | Self::NotListed
            | Self::Filling
            | Self::EventsParked
            | Self::BlobsOpen
            | Self::NotSnapshotted
            | Self::DrillPending
            | Self::ScrubPending => Level::CatchingUp,
            Self::NoAccounts => Level::Empty,
            Self::SameMachine => Level::Mirrored,
        }
    }

    /// For programs, and as a label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskStalled => "task_stalled",
            Self::HostAway => "host_away",
            Self::Lag => "lag",
            Self::ArchiveAway => "archive_away",
            Self::OffMachineAge => "off_machine_age",
            Self::SpoolFull => "spool_full",
            Self::BlobsMissing => "blobs_missing",
            Self::Quarantined => "quarantined",
            Self::Diverged => "diverged",
            Self::Damaged => "damaged",
            Self::DrillFailed => "drill_failed",
            Self::DrillOld => "drill_old",
            Self::ScrubOld => "scrub_old",
            Self::Connecting => "connecting",
            Self::NotListed => "not_listed",
            Self::Filling => "filling",
            Self::EventsParked => "events_parked",
            Self::BlobsOpen => "blobs_open",
            Self::NotSnapshotted => "not_snapshotted",
            Self::DrillPending => "drill_pending",
            Self::ScrubPending => "scrub_pending",
            Self::NoAccounts => "no_accounts",
            Self::SameMachine => "same_machine",
        }
    }
}
