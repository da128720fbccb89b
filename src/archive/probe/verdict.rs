//! What a store was seen to do, and what may rest on it.

use serde::Serialize;

/// What becomes of a put that must not replace an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CreateOnly {
    /// One creator makes the object, every other is told so, also when all come at once.
    Honoured,
    /// The store says that it cannot do that.
    Unsupported,
    /// The store takes the condition and replaces the object all the same.
    Ignored,
    /// One after the other is honoured; at once, several are told that they made it.
    Racy,
    /// It was not tried.
    Untried,
}

/// Whether the store keeps old versions of its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Versions {
    /// It does not.
    Off,
    /// It does: what is deleted or erased stays there as an old version.
    On,
    /// It did: old versions may still be there.
    Suspended,
    /// It does not say.
    Unknown,
}

/// Whether objects are locked against deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lock {
    /// They are not.
    Off,
    /// They can be, and are not by default.
    Possible,
    /// New objects are, for some time, by default.
    ByDefault,
    /// It does not say.
    Unknown,
}

/// What may rest on a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The store itself decides who of two writers was first: a second one is kept out.
    SeveralWriters,
    /// A second writer is noticed afterwards, not kept out: only one may be started.
    OneWriter,
    /// It does not keep what it takes: no place for a backup.
    Refused,
}

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// The bucket's URL.
    pub archive: String,
    /// Objects that must not be replaced.
    pub create_only: CreateOnly,
    /// The same for large objects, which go in parts.
    pub create_only_in_parts: CreateOnly,
    /// Most creators of one object that were told that they made it.
    pub winners_max: u32,
    /// Rounds of creators at once.
    pub races: u32,
    /// A list showed only after a while what had been written before it.
    pub lists_late: bool,
    /// Whether a body is refused that is not the announced one; none: not tried. Firekeep reads back in any case.
    pub refuses_bad_bodies: Option<bool>,
    /// Old versions.
    pub versions: Versions,
    /// Locks.
    pub lock: Lock,
    /// What a store must never do.
    pub lies: Vec<String>,
    /// Objects of the probe that could not be removed.
    pub left_behind: u64,
}

impl Probed {
    /// What may rest on this store.
    #[must_use]
    pub fn class(&self) -> Class {
        if !self.lies.is_empty() {
            Class::Refused
        } else if self.create_only == CreateOnly::Honoured && !self.lists_late {
            Class::SeveralWriters
        } else {
            Class::OneWriter
        }
    }

    /// 0: safe for several writers; 3: for one; 4: for none.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.class() {
            Class::SeveralWriters => 0,
            Class::OneWriter => 3,
            Class::Refused => 4,
        }
    }

    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.archive);
        let mut line = |name: &str, value: &str| out.push_str(&format!("  {name:<13} {value}\n"));
        let races = format!(
            "honoured, one after the other and in {} races: exactly one creator won",
            self.races
        );
        let racy = format!(
            "RACY: of creators at once up to {} were told that they won",
            self.winners_max
        );
        let of = |mode| match mode {
            CreateOnly::Honoured => races.as_str(),
            CreateOnly::Unsupported => "not offered: the store says so",
            CreateOnly::Ignored => "IGNORED: the store takes the condition and replaces the object",
            CreateOnly::Racy => racy.as_str(),
            CreateOnly::Untried => "not tried",
        };
        line("create only", of(self.create_only));
        let in_parts = match self.create_only_in_parts {
            CreateOnly::Honoured => "honoured",
            other => of(other),
        };
        line("… in parts", in_parts);
        line(
            "lists",
            if self.lists_late {
                "LATE: what was just written is missing at first"
            } else {
                "show what was just written"
            },
        );
        line(
            "bad bodies",
            match self.refuses_bad_bodies {
                Some(true) => "refused by the store",
                Some(false) => "not refused by the store; Firekeep reads back what it writes",
                None => "not tried",
            },
        );
        line(
            "versions",
            match self.versions {
                Versions::Off => "not kept",
                Versions::On => {
                    "kept: what is erased stays as an old version until a lifecycle rule removes it"
                }
                Versions::Suspended => "no longer kept; old ones may be there",
                Versions::Unknown => "the store does not say",
            },
        );
        line(
            "object lock",
            match self.lock {
                Lock::Off => "none",
                Lock::Possible => "possible, not by default",
                Lock::ByDefault => "by default: nothing can be deleted or erased before its time is up",
                Lock::Unknown => "the store does not say",
            },
        );
        for lie in &self.lies {
            line("LIES", lie);
        }
        if self.left_behind > 0 {
            let left = format!(
                "{} objects below v1/probe/ could not be removed",
                self.left_behind
            );
            line("left behind", &left);
        }
        out.push_str(match self.class() {
            Class::SeveralWriters => "\nSAFE: the store itself keeps a second writer out\n",
            Class::OneWriter => {
                "\nFOR ONE WRITER: the store does not keep a second daemon out; one is noticed, afterwards. Start only \
                 one on this archive\n"
            }
            Class::Refused => "\nREFUSED: it does not keep what it takes; choose another store\n",
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Probed {
        Probed {
            archive: "s3://b".to_owned(),
            create_only: CreateOnly::Honoured,
            create_only_in_parts: CreateOnly::Unsupported,
            winners_max: 1,
            races: 10,
            lists_late: false,
            refuses_bad_bodies: Some(false),
            versions: Versions::Off,
            lock: Lock::Off,
            lies: Vec::new(),
            left_behind: 0,
        }
    }

    #[test]
    fn what_was_seen_decides() {
        assert_eq!((sound().class(), sound().exit_code()), (Class::SeveralWriters, 0));
        for create_only in [
            CreateOnly::Unsupported,
            CreateOnly::Ignored,
            CreateOnly::Racy,
            CreateOnly::Untried,
        ] {
            let probed = Probed {
                create_only,
                ..sound()
            };
            assert_eq!((probed.class(), probed.exit_code()), (Class::OneWriter, 3));
        }
        let late = Probed {
            lists_late: true,
            ..sound()
        };
        assert_eq!(late.class(), Class::OneWriter);
        let lies = Probed {
            lies: vec!["it lost an object".to_owned()],
            ..sound()
        };
        assert_eq!((lies.class(), lies.exit_code()), (Class::Refused, 4));
        assert!(lies.text().contains("it lost an object"));
    }
}
