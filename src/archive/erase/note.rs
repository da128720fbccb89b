//! `v1/erased/<did>.json`: what of an account was erased, when, and because of whom. Restores obey it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::names::ErasedName;
use super::super::sealed::{self, Seal};
use crate::types::{Cid, Did, Digest, RepoPath, Rev, SyntaxError, Timestamp};

/// The format that this version writes, and the newest that it reads.
const FORMAT: u64 = 1;
/// Longest note that is read, in bytes.
pub const NOTE_BYTES_MAX: usize = 64 << 20;
/// Most erasures of one account that are told apart.
pub const ERASURES_MAX: usize = 10_000;

/// What was to be erased.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// All of the account.
    Account,
    /// Whatever ever stood at a path.
    Record(RepoPath),
    /// A record or blob, wherever it stands.
    Cid(Cid),
    /// The account, by retention: its host deleted it, and its time of grace was over.
    Deleted,
}

impl What {
    fn text(&self) -> String {
        match self {
            Self::Account => "account".to_owned(),
            Self::Record(path) => path.to_string(),
            Self::Cid(cid) => cid.to_string(),
            Self::Deleted => "deleted".to_owned(),
        }
    }

    fn read(text: &str) -> Result<Self, SyntaxError> {
        match text {
            "account" => Ok(Self::Account),
            "deleted" => Ok(Self::Deleted),
            path if path.contains('/') => path.parse().map(Self::Record),
            cid => cid.parse().map(Self::Cid),
        }
    }
}

/// One erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// What a person asked for.
    pub what: What,
    /// Records whose bytes are gone.
    pub records: BTreeSet<Cid>,
    /// Blobs that are gone.
    pub blobs: BTreeSet<Digest>,
    /// When it was asked for.
    pub asked: Timestamp,
    /// By whom.
    pub by: String,
    /// When nothing of it was found any more for the first time.
    pub done: Option<Timestamp>,
    /// And once more, at least a day later.
    pub confirmed: Option<Timestamp>,
    /// Objects that were removed or written again for it.
    pub objects: u64,
    /// Of a deleted account: the newest rev that was held of it. If it came back, what is newer has to be there.
    pub through: Option<Rev>,
}

/// Everything that was erased of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whose.
    pub did: Did,
    /// What, oldest first.
    pub erasures: Vec<Erasure>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ErasureFile {
    what: String,
    records: Vec<String>,
    blobs: Vec<String>,
    asked: String,
    by: String,
    done: Option<String>,
    confirmed: Option<String>,
    objects: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    through: Option<String>,
}

impl Erasure {
    /// One that was just asked for.
    #[must_use]
    pub const fn new(what: What, asked: Timestamp, by: String) -> Self {
        Self {
            what,
            records: BTreeSet::new(),
            blobs: BTreeSet::new(),
            asked,
            by,
            done: None,
            confirmed: None,
            objects: 0,
            through: None,
        }
    }
}

impl Note {
    /// A note that says nothing yet.
    #[must_use]
    pub const fn new(did: Did) -> Self {
        Self {
            did,
            erasures: Vec::new(),
        }
    }

    /// Since when a person wants nothing of the account to be given.
    #[must_use]
    pub fn account_erased(&self) -> Option<Timestamp> {
        let all = self
            .erasures
            .iter()
            .filter(|erasure| erasure.what == What::Account);
        all.map(|erasure| erasure.asked).min()
    }

    /// The removal of the account, deleted as it was, if there was one: the last.
    fn deleted(&self) -> Option<&Erasure> {
        let deleted = self
            .erasures
            .iter()
            .filter(|erasure| erasure.what == What::Deleted);
        deleted.max_by_key(|erasure| erasure.asked)
    }

    /// Whether what led to this rev need not be there: the account was erased, or it was deleted, its time of grace was
    /// over, and the rev is none from after it came back.
    #[must_use]
    pub fn lets_go(&self, rev: Rev) -> bool {
        let through = self.deleted().and_then(|erasure| erasure.through);
        self.account_erased().is_some() || through.is_some_and(|through| rev <= through)
    }

    /// Whether what was held at a time need not be there, for it was removed since.
    #[must_use]
    pub fn let_go_since(&self, time: Timestamp) -> bool {
        self.account_erased().is_some() || self.deleted().is_some_and(|erasure| time <= erasure.asked)
    }

    /// A deleted account is removed, of which commits up to this rev are held; none: nothing is any more. Returns
    /// whether the note says something else now.
    pub fn removed(&mut self, through: Option<Rev>, now: Timestamp, by: &str) -> bool {
        if through.is_none() && self.deleted().is_some() {
            return false;
        }
        let erasure = self.erasure(&What::Deleted, now, by);
        (erasure.asked, erasure.done) = (now, Some(now));
        erasure.through = erasure.through.max(through);
        true
    }

    /// Whether a record's bytes must not be given.
    #[must_use]
    pub fn withholds(&self, record: &Cid) -> bool {
        self.account_erased().is_some()
            || self
                .erasures
                .iter()
                .any(|erasure| erasure.records.contains(record))
    }

    /// Whether a blob must not be given.
    #[must_use]
    pub fn withholds_blob(&self, blob: &Digest) -> bool {
        self.account_erased().is_some() || self.erasures.iter().any(|erasure| erasure.blobs.contains(blob))
    }

    /// Every record that is withheld by name.
    #[must_use]
    pub fn records(&self) -> BTreeSet<Cid> {
        self.erasures
            .iter()
            .flat_map(|erasure| erasure.records.iter().copied())
            .collect()
    }

    /// Every blob that is withheld by name.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.erasures
            .iter()
            .flat_map(|erasure| erasure.blobs.iter().copied())
            .collect()
    }

    /// The erasure of this, to be filled in; a new one if there is none.
    pub fn erasure(&mut self, what: &What, now: Timestamp, by: &str) -> &mut Erasure {
        let at = self.erasures.iter().position(|erasure| erasure.what == *what);
        let at = at.unwrap_or_else(|| {
            self.erasures.push(Erasure::new(what.clone(), now, by.to_owned()));
            self.erasures.len() - 1
        });
        &mut self.erasures[at]
    }

    /// The file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let erasures = self.erasures.iter().map(|erasure| {
            serde_json::json!(ErasureFile {
                what: erasure.what.text(),
                records: erasure.records.iter().map(Cid::to_string).collect(),
                blobs: erasure
                    .blobs
                    .iter()
                    .map(|blob| Cid::raw(*blob).to_string())
                    .collect(),
                asked: erasure.asked.to_string(),
                by: erasure.by.clone(),
                done: erasure.done.map(|at| at.to_string()),
                confirmed: erasure.confirmed.map(|at| at.to_string()),
                objects: erasure.objects,
                through: erasure.through.map(|rev| rev.to_string()),
            })
        });
        sealed::seal(Map::from_iter([
            ("format".to_owned(), Value::from(FORMAT)),
            ("did".to_owned(), Value::String(self.did.to_string())),
            ("erasures".to_owned(), erasures.collect()),
        ]))
    }

    /// Reads a file, and checks it against its name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8], name: &ErasedName) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            format: u64,
            did: String,
            erasures: Vec<ErasureFile>,
            #[expect(dead_code, reason = "checked as a whole")]
            sha256: String,
        }
        if sealed::check(bytes) != Seal::Sound {
            return Err("its own checksum does not fit its bytes".to_owned());
        }
        let file: File =
            serde_json::from_slice(bytes).map_err(|error| format!("it is malformed: {error}"))?;
        if file.format > FORMAT {
            return Err(format!(
                "it has format {}, and this version knows format {FORMAT}; use a newer version",
                file.format
            ));
        }
        if file.did != name.did.did().as_str() {
            return Err("it is of another account than its name says".to_owned());
        }
        let erasures = file.erasures.into_iter().map(|file| {
            let blobs = file
                .blobs
                .iter()
                .map(|cid| cid.parse::<Cid>().map(|cid| *cid.digest()));
            Ok(Erasure {
                what: What::read(&file.what)?,
                records: file
                    .records
                    .iter()
                    .map(|cid| cid.parse())
                    .collect::<Result<_, _>>()?,
                blobs: blobs.collect::<Result<_, _>>()?,
                asked: file.asked.parse()?,
                by: file.by,
                done: file.done.map(|at| at.parse()).transpose()?,
                confirmed: file.confirmed.map(|at| at.parse()).transpose()?,
                objects: file.objects,
                through: file.through.map(|rev| rev.parse()).transpose()?,
            })
        });
        let erasures = erasures.collect::<Result<_, SyntaxError>>();
        Ok(Self {
            did: name.did.did().clone(),
            erasures: erasures.map_err(|error| format!("it is malformed: {error}"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::names::DidFolder;
    use super::*;

    #[test]
    fn notes_round_trip_and_say_what_is_withheld() {
        let did: Did = "did:web:a.example.com".parse().expect("valid");
        let name = ErasedName {
            did: DidFolder::try_from(&did).expect("short"),
        };
        let (record, other) = (Cid::of_block(b"record"), Cid::of_block(b"other"));
        let blob = *Cid::of_blob(b"blob").digest();
        let path: RepoPath = "app.bsky.feed.post/3k2yihcrp6f2c".parse().expect("a path");
        let mut note = Note::new(did);
        let erasure = note.erasure(
            &What::Record(path.clone()),
            Timestamp::from_micros(1_000),
            "an admin",
        );
        erasure.records.insert(record);
        erasure.blobs.insert(blob);
        note.erasure(&What::Cid(other), Timestamp::from_micros(2_000), "an admin")
            .done = Some(Timestamp::from_micros(3_000));
        let rev = |n: u64| Rev::from_bits(n << 20).expect("a rev");
        let at = Timestamp::from_micros;
        assert!(note.removed(Some(rev(5)), at(2_000), "retention"));
        assert!(!note.removed(None, at(3_000), "retention"), "taken up again");
        assert!(note.lets_go(rev(5)) && !note.lets_go(rev(6)), "it came back");
        assert!(note.let_go_since(at(2_000)) && !note.let_go_since(at(2_001)));
        // Deleted once more.
        assert!(note.removed(Some(rev(7)), at(4_000), "retention"));
        assert!(note.lets_go(rev(7)) && note.let_go_since(at(4_000)));
        let bytes = note.encode();
        assert_eq!(Note::decode(&bytes, &name), Ok(note.clone()));
        assert!(
            note.withholds(&record) && !note.withholds(&other),
            "asked for, and not found yet"
        );
        assert!(note.withholds_blob(&blob) && !note.withholds_blob(record.digest()));
        assert_eq!(note.account_erased(), None);
        // Asked for again, it is the same one.
        note.erasure(&What::Record(path), Timestamp::from_micros(9_000), "another");
        assert_eq!(note.erasures.len(), 3);
        note.erasure(&What::Account, Timestamp::from_micros(4_000), "an admin");
        assert!(note.withholds(&other) && note.withholds_blob(record.digest()));
        assert!(note.lets_go(rev(9)) && note.let_go_since(at(9_000)));

        let mut bad = bytes.clone();
        bad[30] ^= 1;
        assert!(Note::decode(&bad, &name).is_err());
        let elsewhere = ErasedName {
            did: DidFolder::try_from(&"did:web:b.example.com".parse().expect("valid")).expect("short"),
        };
        assert!(Note::decode(&bytes, &elsewhere).is_err());
    }
}
