//! What a verification reads, and how far it came: so that it can be stopped and taken up again.

use serde::{Deserialize, Serialize};

use super::log_chain::LogChain;
use super::report::{Counts, Findings};
use crate::types::cid::sha256;

/// The form of a checkpoint.
const FORMAT: u32 = 1;
/// All of a million.
const ALL: u32 = 1_000_000;

/// Which objects are read. Names are always all checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// How many in a million, on average.
    pub per_million: u32,
    /// Chooses them: the same seed, the same objects.
    pub seed: u64,
}

impl Sample {
    /// Every object.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            per_million: ALL,
            seed: 0,
        }
    }

    /// Whether every object is read.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.per_million >= ALL
    }

    /// Whether the object of this name is read.
    #[must_use]
    pub fn takes(self, name: &str) -> bool {
        if self.is_all() {
            return true;
        }
        let hash = sha256(&[&self.seed.to_be_bytes(), name.as_bytes()].concat());
        let number = u64::from_be_bytes(*hash.first_chunk().expect("a digest has 32 bytes"));
        number % u64::from(ALL) < u64::from(self.per_million)
    }
}

/// How far a verification came, and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    format: u32,
    /// Which archive: its id, or nothing if it does not say.
    pub archive: Option<String>,
    /// What is read.
    pub sample: Sample,
    /// The small objects are done.
    pub others_done: bool,
    /// The last segment that is done.
    pub segment: Option<String>,
    /// The rest of this shard's generation is no part of the log.
    pub stale: Option<(u32, u64)>,
    /// The log up to there.
    pub log: LogChain,
    /// The last account that is done.
    pub account: Option<String>,
    /// Within the next one, the last blob that is done.
    pub blob: Option<String>,
    /// What was checked.
    pub counts: Counts,
    /// What is wrong.
    pub findings: Findings,
}

impl Checkpoint {
    /// The beginning.
    #[must_use]
    pub fn new(archive: Option<String>, sample: Sample) -> Self {
        Self {
            format: FORMAT,
            archive,
            sample,
            others_done: false,
            segment: None,
            stale: None,
            log: LogChain::default(),
            account: None,
            blob: None,
            counts: Counts::default(),
            findings: Findings::default(),
        }
    }

    /// As it is kept.
    ///
    /// # Panics
    /// Never: everything in it has a JSON form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("everything in it has a JSON form")
    }

    /// Reads one that was kept.
    ///
    /// # Errors
    /// When it is none of this version's.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match read.format {
            FORMAT => Ok(read),
            other => Err(format!("it has format {other}, and this version knows {FORMAT}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_same_again_and_about_as_large_as_asked() {
        let names: Vec<String> = (0..20_000).map(|n| format!("v1/blocks/{n}")).collect();
        let taken = |per_million, seed| {
            let sample = Sample { per_million, seed };
            let taken = names.iter().filter(|name| sample.takes(name));
            taken.cloned().collect::<Vec<_>>()
        };
        assert_eq!(taken(0, 1).len(), 0);
        assert_eq!(taken(ALL, 1).len(), names.len());
        let tenth = taken(100_000, 7);
        assert!((1700..2300).contains(&tenth.len()), "{}", tenth.len());
        assert_eq!(tenth, taken(100_000, 7));
        assert_ne!(tenth, taken(100_000, 8));
    }

    #[test]
    fn checkpoints_round_trip() {
        let mut point = Checkpoint::new(Some("id".to_owned()), Sample::all());
        point.account = Some("did:web:a.b".to_owned());
        assert_eq!(Checkpoint::decode(&point.encode()), Ok(point.clone()));
        point.format = 2;
        assert!(Checkpoint::decode(&point.encode()).is_err());
        assert!(Checkpoint::decode(b"{}").is_err());
    }
}
