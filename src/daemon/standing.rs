//! Where the backup stands, in one line of truth: pure, for it must be right.

use std::collections::BTreeMap;

use crate::mirror::applier::Totals;

/// What the standing depends on besides what is held.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    /// Whether every followed host was listed to its end.
    pub listed: bool,
    /// Whether the archive is a folder of this machine.
    pub archive_is_folder: bool,
    /// Whether the archive is open, and took what was last put there.
    pub archive_works: bool,
}

/// One line of truth about where the backup stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Accounts are still being fetched.
    Filling,
    /// Everything is mirrored, nothing of it is off this machine.
    NotOffMachine,
    /// The archive cannot be reached, or refuses.
    ArchiveAway,
    /// Mirrored; the newest changes are not in the archive yet.
    Archiving,
    /// Every head and every blob that its host gave stands in an archive that is not on this machine.
    OffMachine,
}

impl Standing {
    /// For programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::NotOffMachine => "not_off_machine",
            Self::ArchiveAway => "archive_away",
            Self::Archiving => "archiving",
            Self::OffMachine => "off_machine",
        }
    }

    /// For people.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Filling => "NOT YET PROTECTED: accounts are still being fetched for the first time.",
            Self::NotOffMachine => {
                "MIRRORED, BUT NOT OFF THIS MACHINE: the archive is a folder here; if this disk dies, so does the \
                 backup. Point `archive` at s3://bucket/prefix."
            }
            Self::ArchiveAway => {
                "NOT OFF THIS MACHINE: the archive cannot be reached, or refuses; archiving goes on when it works."
            }
            Self::Archiving => "MIRRORED; the newest changes are still on their way to the archive.",
            Self::OffMachine => {
                "OFF THIS MACHINE: every account's head and every blob that the host gave stand in the archive."
            }
        }
    }

    /// Judges from what is held and what is around it. Doubt is never safe.
    #[must_use]
    pub fn judge(totals: &Totals, around: &Surroundings) -> Self {
        let count = |map: &BTreeMap<&'static str, u64>, name: &str| map.get(name).copied().unwrap_or(0);
        let wanted = count(&totals.sync, "wanted");
        let open_blobs = count(&totals.blobs, "wanted") + count(&totals.blobs, "held");
        if !around.listed || (wanted > 0 && totals.archived == 0) {
            Self::Filling
        } else if !around.archive_works {
            Self::ArchiveAway
        } else if around.archive_is_folder {
            Self::NotOffMachine
        } else if totals.archived < totals.with_head
            || totals.unshipped > 0
            || open_blobs > 0
            || totals.open_cars > 0
            || totals.damaged_cars > 0
            || totals.parked > 0
            || wanted > 0
        {
            Self::Archiving
        } else {
            Self::OffMachine
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: Surroundings = Surroundings {
        listed: true,
        archive_is_folder: false,
        archive_works: true,
    };

    fn archived() -> Totals {
        Totals {
            sync: BTreeMap::from([("live", 3)]),
            blobs: BTreeMap::from([("archived", 5)]),
            archived: 3,
            with_head: 3,
            ..Totals::default()
        }
    }

    #[test]
    fn whatever_is_open_is_not_off_this_machine() {
        type Spoil = (fn(&mut Totals, &mut Surroundings), Standing);
        assert_eq!(Standing::judge(&archived(), &SAFE), Standing::OffMachine);
        let spoils: [Spoil; 13] = [
            (|_, around| around.listed = false, Standing::Filling),
            (
                |_, around| around.archive_is_folder = true,
                Standing::NotOffMachine,
            ),
            (|_, around| around.archive_works = false, Standing::ArchiveAway),
            (|totals, _| totals.archived = 2, Standing::Archiving),
            (|totals, _| totals.unshipped = 1, Standing::Archiving),
            (
                |_, around| (around.archive_is_folder, around.archive_works) = (true, false),
                Standing::ArchiveAway,
            ),
            (|totals, _| totals.parked = 1, Standing::Archiving),
            (|totals, _| totals.open_cars = 1, Standing::Archiving),
            (|totals, _| totals.damaged_cars = 1, Standing::Archiving),
            (
                |totals, _| totals.blobs = BTreeMap::from([("wanted", 1)]),
                Standing::Archiving,
            ),
            (
                |totals, _| totals.blobs = BTreeMap::from([("held", 1)]),
                Standing::Archiving,
            ),
            (
                |totals, _| totals.sync = BTreeMap::from([("wanted", 1)]),
                Standing::Archiving,
            ),
            (
                |totals, _| {
                    totals.sync = BTreeMap::from([("wanted", 3)]);
                    totals.archived = 0;
                },
                Standing::Filling,
            ),
        ];
        for (index, (spoil, expected)) in spoils.into_iter().enumerate() {
            let (mut totals, mut around) = (archived(), SAFE);
            spoil(&mut totals, &mut around);
            assert_eq!(Standing::judge(&totals, &around), expected, "case {index}");
        }
    }
}
