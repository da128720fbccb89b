//! An account's standing at its host, as `#account` events and `listRepos` give it.
//!
//! Source: <https://atproto.com/specs/account>, lexicon `com.atproto.sync.subscribeRepos#account`. The set of
//! names is open. It is hop-by-hop and unauthenticated: it describes the host that says it.

use serde::{Deserialize, Serialize};

/// An account's status at its host.
///
/// Source: lexicon `com.atproto.sync.subscribeRepos#account`; the set of strings is open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountStatus {
    /// Active.
    Active,
    /// The user deactivated it, or it is moving.
    Deactivated,
    /// The host suspended it for a time.
    Suspended,
    /// The host took it down.
    Takendown,
    /// It is deleted.
    Deleted,
    /// Active, but the host lost track of it.
    Desynchronized,
    /// Active, but the host limits it.
    Throttled,
    /// Inactive, with a reason that we do not know.
    Other(String),
}

/// Longest unknown status that is kept, in bytes; the rest is cut off.
pub const STATUS_BYTES_MAX: usize = 128;

impl AccountStatus {
    /// From the two fields of an event or of a listing. An active account with a status that we do not know
    /// is active; an inactive one always comes out hidden.
    #[must_use]
    pub fn from_wire(active: bool, status: Option<&str>) -> Self {
        match (active, status) {
            (true, Some("desynchronized")) => Self::Desynchronized,
            (true, Some("throttled")) => Self::Throttled,
            (true, _) => Self::Active,
            (false, Some("deactivated")) => Self::Deactivated,
            (false, Some("suspended")) => Self::Suspended,
            (false, Some("takendown")) => Self::Takendown,
            (false, Some("deleted")) => Self::Deleted,
            (false, Some(other)) => Self::Other(cut(other).to_owned()),
            (false, None) => Self::Other(String::new()),
        }
    }

    /// The `status` of an event or an answer; none where the field is left out.
    #[must_use]
    pub fn wire_name(&self) -> Option<&str> {
        match self {
            Self::Active => None,
            Self::Deactivated => Some("deactivated"),
            Self::Suspended => Some("suspended"),
            Self::Takendown => Some("takendown"),
            Self::Deleted => Some("deleted"),
            Self::Desynchronized => Some("desynchronized"),
            Self::Throttled => Some("throttled"),
            Self::Other(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
        }
    }

    /// The `active` of an event or an answer: whether the account may be seen by the public.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        matches!(self, Self::Active | Self::Desynchronized | Self::Throttled)
    }

    /// The name, for metrics (a closed set) and people.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deactivated => "deactivated",
            Self::Suspended => "suspended",
            Self::Takendown => "takendown",
            Self::Deleted => "deleted",
            Self::Desynchronized => "desynchronized",
            Self::Throttled => "throttled",
            Self::Other(_) => "other",
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(STATUS_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_decides_over_the_name() {
        assert_eq!(AccountStatus::from_wire(true, None), AccountStatus::Active);
        assert_eq!(
            AccountStatus::from_wire(true, Some("deleted")),
            AccountStatus::Active
        );
        assert!(!AccountStatus::from_wire(false, None).is_active());
        assert!(!AccountStatus::from_wire(false, Some("throttled")).is_active());
        assert!(AccountStatus::from_wire(true, Some("throttled")).is_active());
    }

    #[test]
    fn unknown_names_are_kept_and_bounded() {
        let status = AccountStatus::from_wire(false, Some("held-by-moderator"));
        assert_eq!(status.wire_name(), Some("held-by-moderator"));
        let long = AccountStatus::from_wire(false, Some(&"é".repeat(100)));
        assert!(
            long.wire_name()
                .is_some_and(|name| name.len() <= STATUS_BYTES_MAX)
        );
    }
}
