//! A whole PDS: what is done with each of its accounts, judged before anything is changed.

use std::collections::BTreeMap;

use super::plan::Ending;
use crate::types::{AccountStatus, Did, DidMethod};

/// Longest line of a table.
const LINE_BYTES_MAX: usize = 4096;
/// Addresses at this domain reach nobody, and never will (RFC 2606).
const NOWHERE: &str = "restored.invalid";

/// What is done with an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Treatment {
    /// It is restored, and stands like this in the end.
    Restore(Ending),
    /// It is left out.
    Skip(Skipped),
}

/// Why an account is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skipped {
    /// It was not asked for.
    NotAskedFor,
    /// Its data was erased at somebody's wish, and stays erased.
    Erased,
    /// Its old PDS said that it is deleted.
    Deleted,
    /// Its identity points to another PDS.
    Moved(String),
    /// Its owner gave the identity up.
    GivenUp,
    /// The archive has nothing of it.
    NothingHeld,
    /// Its owner publishes its identity, and has to act first.
    OwnerFirst,
    /// It was taken down, and only the new PDS's admin can keep it so.
    NeedsAdmin,
}

impl Skipped {
    /// Whether somebody may miss it: it is none of those that are meant to be gone.
    #[must_use]
    pub const fn is_a_lack(&self) -> bool {
        matches!(self, Self::NothingHeld | Self::OwnerFirst | Self::NeedsAdmin)
    }

    /// The name, for programs.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotAskedFor => "not_asked_for",
            Self::Erased => "erased",
            Self::Deleted => "deleted",
            Self::Moved(_) => "moved",
            Self::GivenUp => "given_up",
            Self::NothingHeld => "nothing_held",
            Self::OwnerFirst => "owner_first",
            Self::NeedsAdmin => "needs_admin",
        }
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAskedFor => f.write_str("not asked for"),
            Self::Erased => f.write_str("erased, and stays so"),
            Self::Deleted => f.write_str("deleted at its old PDS"),
            Self::Moved(to) => write!(f, "moved to {to}"),
            Self::GivenUp => f.write_str("its identity was given up by its owner (a tombstone)"),
            Self::NothingHeld => f.write_str("the archive holds no repository of it"),
            Self::OwnerFirst => f.write_str("its owner publishes its identity, and has to act first"),
            Self::NeedsAdmin => {
                f.write_str("taken down at its old PDS; give --admin-password-file, so that it stays so")
            }
        }
    }
}

/// What is known of an account.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The account.
    pub did: &'a Did,
    /// Its standing at the old PDS; none: nobody said.
    pub status: Option<&'a AccountStatus>,
    /// It was erased.
    pub erased: bool,
    /// The archive has something of it.
    pub held: bool,
}

/// What the identity says, if it was asked.
#[derive(Debug, Clone, Copy)]
pub enum Points<'a> {
    /// To this PDS; none: to none.
    To(Option<&'a str>),
    /// It was given up.
    Nowhere,
}

/// The accounts that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Only these; empty: all.
    pub only: Vec<Did>,
    /// Not these.
    pub except: Vec<Did>,
}

impl Known<'_> {
    /// Whether it is clear without its identity that it is left out.
    #[must_use]
    pub fn left_out(&self, asked: &Asked) -> Option<Skipped> {
        let only = asked.only.is_empty() || asked.only.contains(self.did);
        if !only || asked.except.contains(self.did) {
            return Some(Skipped::NotAskedFor);
        }
        if self.erased {
            return Some(Skipped::Erased);
        }
        if self.status == Some(&AccountStatus::Deleted) {
            return Some(Skipped::Deleted);
        }
        (!self.held).then_some(Skipped::NothingHeld)
    }

    /// What is done with it. `ours` are the old PDS and the new one; `admin`: the new one's admin is at hand.
    #[must_use]
    pub fn treatment(&self, points: Points<'_>, ours: &[&str], admin: bool) -> Treatment {
        let to = match points {
            Points::Nowhere => return Treatment::Skip(Skipped::GivenUp),
            Points::To(to) => to,
        };
        // An identity that names no PDS was made so by nobody who hosts it now.
        if let Some(to) = to.filter(|to| !ours.iter().any(|own| authority(own) == authority(to))) {
            return Treatment::Skip(Skipped::Moved(to.to_owned()));
        }
        if self.did.method() != DidMethod::Plc {
            return Treatment::Skip(Skipped::OwnerFirst);
        }
        match self.status {
            Some(status) if status.is_active() => Treatment::Restore(Ending::Active),
            Some(AccountStatus::Takendown | AccountStatus::Suspended) if admin => {
                Treatment::Restore(Ending::TakenDown)
            }
            Some(AccountStatus::Takendown | AccountStatus::Suspended) => Treatment::Skip(Skipped::NeedsAdmin),
            // Nothing becomes more public than it is known to have been.
            Some(_) | None => Treatment::Restore(Ending::Deactivated),
        }
    }
}

/// The host and port of a URL, or a host as it is.
fn authority(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_ascii_lowercase()
}

/// What the admin knows of an account: handle and e-mail address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// The handle at the new PDS.
    pub handle: Option<String>,
    /// The e-mail address.
    pub email: Option<String>,
}

/// Reads a table: a line each account, `DID HANDLE EMAIL`, where `-` stands for what is not known. Lines that begin
/// with `#` say nothing.
///
/// # Errors
/// Which line is none.
pub fn read_table(text: &str) -> Result<BTreeMap<Did, Row>, String> {
    let mut table = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |what: &str| format!("line {}: {what}", number + 1);
        if line.len() > LINE_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [did, rest @ ..] = &parts[..] else {
            continue;
        };
        let did: Did = did.parse().map_err(|_| bad("it does not begin with a DID"))?;
        let known = |at: usize| {
            rest.get(at)
                .filter(|part| **part != "-")
                .map(|part| (*part).to_owned())
        };
        let row = Row {
            handle: known(0),
            email: known(1),
        };
        if rest.len() > 2 || row.email.as_ref().is_some_and(|email| !email.contains('@')) {
            return Err(bad("it is not DID HANDLE EMAIL, with - for what is not known"));
        }
        if table.insert(did, row).is_some() {
            return Err(bad("this account stands there twice"));
        }
    }
    Ok(table)
}

/// An address for an account whose own is not known: it reaches nobody.
#[must_use]
pub fn placeholder_email(did: &Did) -> String {
    let name = did.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let name = &name[..name.len().min(64)];
    format!("{}@{NOWHERE}", name.trim_matches('-'))
}

/// A handle of the same name below a domain that the new PDS serves.
#[must_use]
pub fn below(handle: &str, domain: &str) -> String {
    let name = handle.split('.').next().unwrap_or_default();
    format!("{name}.{}", domain.trim_start_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(text: &str) -> Did {
        text.parse().expect("a DID")
    }

    const OURS: [&str; 2] = ["https://old.test", "https://new.test"];

    #[test]
    fn nothing_becomes_more_public_than_it_was() {
        use AccountStatus as S;
        let plc = did("did:plc:ewvi7nxzyoun6zhxrhs64oiz");
        let cases: [(Option<S>, bool, Treatment); 8] = [
            (Some(S::Active), false, Treatment::Restore(Ending::Active)),
            (Some(S::Throttled), false, Treatment::Restore(Ending::Active)),
            (
                Some(S::Deactivated),
                true,
                Treatment::Restore(Ending::Deactivated),
            ),
            (
                Some(S::Other("x".into())),
                true,
                Treatment::Restore(Ending::Deactivated),
            ),
            (None, true, Treatment::Restore(Ending::Deactivated)),
            (Some(S::Takendown), true, Treatment::Restore(Ending::TakenDown)),
            (Some(S::Suspended), true, Treatment::Restore(Ending::TakenDown)),
            (Some(S::Takendown), false, Treatment::Skip(Skipped::NeedsAdmin)),
        ];
        for (status, admin, wanted) in cases {
            let known = Known {
                did: &plc,
                status: status.as_ref(),
                erased: false,
                held: true,
            };
            let got = known.treatment(Points::To(Some("http://OLD.test/")), &OURS, admin);
            assert_eq!(got, wanted, "{status:?}");
        }
    }

    #[test]
    fn what_is_gone_or_elsewhere_is_left_out() {
        let plc = did("did:plc:ewvi7nxzyoun6zhxrhs64oiz");
        let asked = Asked::default();
        let known = Known {
            did: &plc,
            status: Some(&AccountStatus::Active),
            erased: false,
            held: true,
        };
        assert_eq!(known.left_out(&asked), None);
        let deleted = Some(&AccountStatus::Deleted);
        for (known, asked, why) in [
            (
                Known {
                    erased: true,
                    ..known
                },
                &asked,
                Skipped::Erased,
            ),
            (
                Known {
                    status: deleted,
                    ..known
                },
                &asked,
                Skipped::Deleted,
            ),
            (Known { held: false, ..known }, &asked, Skipped::NothingHeld),
            (
                known,
                &Asked {
                    only: vec![did("did:web:a.test")],
                    except: vec![],
                },
                Skipped::NotAskedFor,
            ),
            (
                known,
                &Asked {
                    only: vec![],
                    except: vec![plc.clone()],
                },
                Skipped::NotAskedFor,
            ),
        ] {
            assert_eq!(known.left_out(asked), Some(why));
        }
        let moved = known.treatment(Points::To(Some("https://third.test")), &OURS, true);
        assert_eq!(
            moved,
            Treatment::Skip(Skipped::Moved("https://third.test".into()))
        );
        let gone = known.treatment(Points::Nowhere, &OURS, true);
        assert_eq!(gone, Treatment::Skip(Skipped::GivenUp));
        let web = did("did:web:a.test");
        let owned = Known { did: &web, ..known }.treatment(Points::To(Some(OURS[0])), &OURS, true);
        assert_eq!(owned, Treatment::Skip(Skipped::OwnerFirst));
    }

    #[test]
    fn tables() {
        let text =
            "# of the admin\n\ndid:plc:a alice.test alice@mail.test\n  did:plc:b - b@mail.test\ndid:plc:c\n";
        let table = read_table(text).expect("a table");
        let row = |handle: Option<&str>, email: Option<&str>| Row {
            handle: handle.map(str::to_owned),
            email: email.map(str::to_owned),
        };
        assert_eq!(
            table[&did("did:plc:a")],
            row(Some("alice.test"), Some("alice@mail.test"))
        );
        assert_eq!(table[&did("did:plc:b")], row(None, Some("b@mail.test")));
        assert_eq!(table[&did("did:plc:c")], row(None, None));
        for bad in [
            "alice.test did:plc:a",
            "did:plc:a x y",
            "did:plc:a x a@b c",
            "did:plc:a\ndid:plc:a",
        ] {
            assert!(read_table(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_for_those_who_have_none() {
        assert_eq!(
            placeholder_email(&did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")),
            "did-plc-ewvi7nxzyoun6zhxrhs64oiz@restored.invalid"
        );
        assert_eq!(below("alice.old.test", ".new.test"), "alice.new.test");
        assert_eq!(below("alice.old.test", "new.test"), "alice.new.test");
    }
}
