//! Whether an account could be restored today, and by whom: pure, for it must be right before it is needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::mirror::rows::{AccountRow, AccountStatus, SyncState};
use crate::types::{Did, DidMethod, HostName};

/// What it depends on, of one account.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// How its identity is changed.
    pub method: DidMethod,
    /// Its rotation keys, the strongest first; none: its log was not read yet.
    pub rotation_keys: Option<&'a [String]>,
    /// Those that are its PDS's.
    pub pds_keys: &'a BTreeSet<String>,
    /// It is deleted at its host, or lives elsewhere.
    pub gone: bool,
    /// A snapshot of it stands in the archive.
    pub snapshotted: bool,
    /// Its repository does not rebuild, or is damaged here.
    pub unsound: bool,
    /// The archive is on this machine.
    pub archive_here: bool,
    /// Blobs that its records refer to and that nobody has; none: not counted.
    pub blobs_missing: Option<u64>,
}

/// Who could sign for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Nobody needs to: it is deleted, or lives elsewhere.
    NotNeeded,
    /// Its owner, who publishes its DID document.
    Owner,
    /// Its user, with a key that stands above its PDS's.
    User,
    /// Its user or its PDS, of which the PDS's key is the stronger: it can undo what the user does.
    UserBelowPds,
    /// Its PDS alone: without that key nobody.
    PdsOnly,
    /// Nobody: the identity was given up.
    Nobody,
    /// Not known: its log was not read yet.
    Unknown,
}

impl Who {
    /// Judges.
    #[must_use]
    pub fn of(facts: &Facts<'_>) -> Self {
        if facts.gone {
            return Self::NotNeeded;
        }
        if facts.method != DidMethod::Plc {
            return Self::Owner;
        }
        let Some(keys) = facts.rotation_keys else {
            return Self::Unknown;
        };
        let is_user = |key: &String| !facts.pds_keys.contains(key);
        match (keys.first(), keys.iter().any(is_user)) {
            (None, _) => Self::Nobody,
            (Some(first), _) if is_user(first) => Self::User,
            (Some(_), true) => Self::UserBelowPds,
            (Some(_), false) => Self::PdsOnly,
        }
    }

    /// For programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not_needed",
            Self::Owner => "owner",
            Self::User => "user",
            Self::UserBelowPds => "user_below_pds",
            Self::PdsOnly => "pds_only",
            Self::Nobody => "nobody",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether it could be restored today, and what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Who could sign for it.
    pub who: Who,
    /// It could be, by whoever that is.
    pub ready: bool,
    /// What is lacking, a line each, with the command that mends it where there is one.
    pub lacks: Vec<String>,
}

/// Judges it all. Doubt is never ready.
#[must_use]
pub fn judge(did: &Did, facts: &Facts<'_>) -> Readiness {
    let who = Who::of(facts);
    let mut lacks = Vec::new();
    let mut ready = true;
    if who == Who::NotNeeded {
        return Readiness { who, ready, lacks };
    }
    let mut lack = |text: String, stops: bool| {
        lacks.push(text);
        ready &= !stops;
    };
    if !facts.snapshotted {
        lack(
            "no snapshot of it stands in the archive yet: firekeep snapshot".to_owned(),
            true,
        );
    }
    if facts.unsound {
        let text = "its newest state does not prove; what was archived before does: firekeep history";
        lack(format!("{text} {did}"), false);
    }
    if facts.archive_here {
        let text = "the archive is on this machine: point `archive` at s3://bucket/prefix";
        lack(text.to_owned(), true);
    }
    match facts.blobs_missing {
        Some(0) => {}
        Some(count) => lack(
            format!("{count} of its blobs are missing, and would be after a restore"),
            false,
        ),
        None => lack("its missing blobs were not counted".to_owned(), false),
    }
    match who {
        Who::PdsOnly => lack(
            format!(
                "nobody but its PDS holds a rotation key; its user adds one with: firekeep plc add-key {did} KEY"
            ),
            false,
        ),
        Who::UserBelowPds => lack(
            "its user's rotation key stands below its PDS's, which can undo what it signs".to_owned(),
            false,
        ),
        Who::Nobody => lack(
            "its identity was given up (a tombstone); nothing brings it back".to_owned(),
            true,
        ),
        Who::Unknown => lack(format!("its log was not read yet: firekeep plc log {did}"), true),
        Who::NotNeeded | Who::Owner | Who::User => {}
    }
    Readiness { who, ready, lacks }
}

/// The rotation keys of each host: those that more than half of its accounts have, two at least. Of a host with one
/// account, which tells nothing, the weakest of that.
#[derive(Debug, Default)]
pub struct PdsKeys {
    accounts: BTreeMap<HostName, Vec<Vec<String>>>,
}

impl PdsKeys {
    /// Counts an account in.
    pub fn add(&mut self, row: &AccountRow) {
        if let Some(seen) = row.log_seen.as_ref().filter(|_| !is_gone(row)) {
            let host = self.accounts.entry(row.host.clone()).or_default();
            host.push(seen.rotation_keys.clone());
        }
    }

    /// Those of each host.
    #[must_use]
    pub fn found(self) -> BTreeMap<HostName, BTreeSet<String>> {
        let of = |accounts: Vec<Vec<String>>| -> BTreeSet<String> {
            if let [only] = &accounts[..] {
                return only.last().cloned().into_iter().collect();
            }
            let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
            for keys in &accounts {
                keys.iter()
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .for_each(|key| *counts.entry(key).or_default() += 1);
            }
            let most = counts
                .into_iter()
                .filter(|(_, count)| *count >= 2 && count * 2 > accounts.len());
            most.map(|(key, _)| key.clone()).collect()
        };
        self.accounts
            .into_iter()
            .map(|(host, accounts)| (host, of(accounts)))
            .collect()
    }
}

/// Whether an account is deleted at its host, or lives elsewhere.
#[must_use]
pub fn is_gone(row: &AccountRow) -> bool {
    row.upstream == AccountStatus::Deleted || matches!(row.sync, SyncState::Moved { .. })
}

/// Whether its newest state cannot be relied on.
#[must_use]
pub const fn is_unsound(row: &AccountRow) -> bool {
    row.damaged || matches!(row.sync, SyncState::Quarantined { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::rows::LogSeen;
    use crate::types::{Cid, Timestamp};

    fn did() -> Did {
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid")
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn judged(keys: &[&str], change: impl Fn(&mut Facts<'_>)) -> Readiness {
        let (keys, pds) = (names(keys), names(&["pds"]).into_iter().collect());
        let mut facts = Facts {
            method: DidMethod::Plc,
            rotation_keys: Some(&keys),
            pds_keys: &pds,
            gone: false,
            snapshotted: true,
            unsound: false,
            archive_here: false,
            blobs_missing: Some(0),
        };
        change(&mut facts);
        judge(&did(), &facts)
    }

    #[test]
    fn each_case_has_its_verdict_and_its_words() {
        let none = |_: &mut Facts<'_>| {};
        let good = judged(&["user", "pds"], none);
        assert_eq!((good.who, good.ready, good.lacks.len()), (Who::User, true, 0));
        let cases: [(Readiness, Who, bool, &str); 10] = [
            (judged(&["pds"], none), Who::PdsOnly, true, "plc add-key"),
            (
                judged(&["pds", "user"], none),
                Who::UserBelowPds,
                true,
                "stands below",
            ),
            (judged(&[], none), Who::Nobody, false, "given up"),
            (
                judged(&["user"], |f| f.rotation_keys = None),
                Who::Unknown,
                false,
                "plc log",
            ),
            (
                judged(&["user"], |f| f.snapshotted = false),
                Who::User,
                false,
                "firekeep snapshot",
            ),
            (
                judged(&["user"], |f| f.archive_here = true),
                Who::User,
                false,
                "on this machine",
            ),
            (
                judged(&["user"], |f| f.unsound = true),
                Who::User,
                true,
                "firekeep history",
            ),
            (
                judged(&["user"], |f| f.blobs_missing = Some(3)),
                Who::User,
                true,
                "3 of its blobs",
            ),
            (
                judged(&["user"], |f| f.blobs_missing = None),
                Who::User,
                true,
                "not counted",
            ),
            (
                judged(&["pds"], |f| f.method = DidMethod::Web).with("-"),
                Who::Owner,
                true,
                "-",
            ),
        ];
        for (readiness, who, ready, words) in cases {
            assert_eq!((readiness.who, readiness.ready), (who, ready), "{words}");
            assert!(
                readiness.lacks.len() == 1 && readiness.lacks[0].contains(words),
                "{readiness:?}"
            );
        }
        let gone = judged(&[], |facts| facts.gone = true);
        assert_eq!(
            (gone.who, gone.ready, gone.lacks.len()),
            (Who::NotNeeded, true, 0)
        );
    }

    impl Readiness {
        fn with(mut self, text: &str) -> Self {
            self.lacks.push(text.to_owned());
            self
        }
    }

    #[test]
    fn a_key_is_the_pdss_when_most_accounts_have_it() {
        let row = |host: &str, keys: &[&str]| {
            let mut row = AccountRow::new(1, host.parse().expect("a host"), Timestamp::default());
            row.log_seen = Some(LogSeen {
                head: Cid::of_block(b"head"),
                rotation_keys: names(keys),
            });
            row
        };
        let mut keys = PdsKeys::default();
        for list in [
            &["alice", "pds"][..],
            &["pds", "recovery"],
            &["bob", "pds"],
            &["bob", "elsewhere"],
        ] {
            keys.add(&row("a.test", list));
        }
        keys.add(&row("b.test", &["carol", "other"]));
        let mut gone = row("b.test", &["gone"]);
        gone.upstream = AccountStatus::Deleted;
        keys.add(&gone);
        let found = keys.found();
        let of = |host: &str| {
            found[&host.parse().expect("a host")]
                .iter()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of("a.test"),
            ["pds"],
            "a user's two accounts make his key no PDS's"
        );
        assert_eq!(of("b.test"), ["other"]);
    }
}
