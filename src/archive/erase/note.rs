//! `v1/erased/<did>.json`: what of an account was erased, when, and because of whom. Restores obey it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::names::ErasedName;
use super::super::sealed::{self, Seal};
use crate::types::{Cid, Did, Digest, RepoPath, SyntaxError, Timestamp};

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

    /// Whether nothing of the account need be there: it was erased, or deleted and its time of grace was over.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let all = |erasure: &Erasure| matches!(erasure.what, What::Account | What::Deleted);
        self.erasures.iter().any(all)
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
        note.erasure(&What::Deleted, Timestamp::from_micros(2_000), "retention");
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

        let mut bad = bytes.clone();
        bad[30] ^= 1;
        assert!(Note::decode(&bad, &name).is_err());
        let elsewhere = ErasedName {
            did: DidFolder::try_from(&"did:web:b.example.com".parse().expect("valid")).expect("short"),
        };
        assert!(Note::decode(&bytes, &elsewhere).is_err());
    }
}
