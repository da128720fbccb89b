//! An account's standing at its host, as `#account` events and `listRepos` give it.
//!
//! Source: <https://atproto.com/specs/account>. The set is open: an unknown status is kept as it is.

use std::fmt;

/// What a host says of an account. Hop-by-hop and unauthenticated: it describes that host alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum AccountStatus {
    /// In good standing.
    #[default]
    Active,
    /// Switched off by its owner, or not yet activated.
    Deactivated,
    /// Switched off by the host for a time.
    Suspended,
    /// Taken down by the host.
    Takendown,
    /// Deleted.
    Deleted,
    /// The emitting service lost track of it. Visible all the same when `active`.
    Desynchronized {
        /// Whether it is served.
        active: bool,
    },
    /// The emitting service slows it down. Visible all the same when `active`.
    Throttled {
        /// Whether it is served.
        active: bool,
    },
    /// A status that this version does not know.
    Other {
        /// Its name, at most 64 bytes of it.
        name: String,
        /// Whether it is served.
        active: bool,
    },
}

const NAME_BYTES_MAX: usize = 64;

impl AccountStatus {
    /// From the two fields on the wire. `active` decides; a status without a name is `Deactivated` when not
    /// active, for the lexicon leaves the reason optional.
    #[must_use]
    pub fn from_wire(active: bool, status: Option<&str>) -> Self {
        match status {
            None | Some("") => {
                if active {
                    Self::Active
                } else {
                    Self::Deactivated
                }
            }
            Some("deactivated") if !active => Self::Deactivated,
            Some("suspended") if !active => Self::Suspended,
            Some("takendown") if !active => Self::Takendown,
            Some("deleted") if !active => Self::Deleted,
            Some("desynchronized") => Self::Desynchronized { active },
            Some("throttled") => Self::Throttled { active },
            Some(name) => {
                let end = (0..=NAME_BYTES_MAX.min(name.len()))
                    .rev()
                    .find(|&at| name.is_char_boundary(at));
                Self::Other {
                    name: name[..end.unwrap_or(0)].to_owned(),
                    active,
                }
            }
        }
    }

    /// Whether its content may be shown to the public.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        match self {
            Self::Active => true,
            Self::Desynchronized { active } | Self::Throttled { active } | Self::Other { active, .. } => {
                *active
            }
            Self::Deactivated | Self::Suspended | Self::Takendown | Self::Deleted => false,
        }
    }

    /// The `status` field of the wire; none for an account in good standing.
    #[must_use]
    pub fn wire_name(&self) -> Option<&str> {
        match self {
            Self::Active => None,
            Self::Deactivated => Some("deactivated"),
            Self::Suspended => Some("suspended"),
            Self::Takendown => Some("takendown"),
            Self::Deleted => Some("deleted"),
            Self::Desynchronized { .. } => Some("desynchronized"),
            Self::Throttled { .. } => Some("throttled"),
            Self::Other { name, .. } => Some(name),
        }
    }

    /// The metric label: a closed set.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deactivated => "deactivated",
            Self::Suspended => "suspended",
            Self::Takendown => "takendown",
            Self::Deleted => "deleted",
            Self::Desynchronized { .. } => "desynchronized",
            Self::Throttled { .. } => "throttled",
            Self::Other { .. } => "other",
        }
    }
}

impl fmt::Display for AccountStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wire_name().unwrap_or("active"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_decides_over_the_name() {
        assert_eq!(AccountStatus::from_wire(true, None), AccountStatus::Active);
        assert_eq!(AccountStatus::from_wire(false, None), AccountStatus::Deactivated);
        assert!(!AccountStatus::from_wire(false, Some("takendown")).is_active());
        assert!(AccountStatus::from_wire(true, Some("throttled")).is_active());
        // A contradiction is kept as it came; `active` decides what is shown.
        let odd = AccountStatus::from_wire(true, Some("deleted"));
        assert!(odd.is_active());
        assert_eq!(odd.wire_name(), Some("deleted"));
    }

    #[test]
    fn unknown_names_are_kept_and_bounded() {
        let status = AccountStatus::from_wire(false, Some("quarantined-by-moderator"));
        assert_eq!(status.wire_name(), Some("quarantined-by-moderator"));
        let long = AccountStatus::from_wire(false, Some(&"é".repeat(100)));
        assert!(long.wire_name().is_some_and(|name| name.len() <= 64));
    }
}
