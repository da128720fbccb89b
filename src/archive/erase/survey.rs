//! What an erasure comes to: which records stood at a path, and which blobs only they refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::note::What;
use crate::repo::record::scan_record;
use crate::types::{Cid, Codec, Digest};

/// Records that are remembered of each blob: one that stays is enough to keep it.
const REFERRERS_MAX: usize = 64;

/// What was read of an account, object by object.
#[derive(Debug, Default)]
pub struct Survey {
    /// Whatever stood at the path.
    at_path: BTreeSet<Cid>,
    /// Records that refer to each blob.
    referrers: BTreeMap<Digest, BTreeSet<Cid>>,
    /// The CID that is asked for was seen, as a record.
    seen: bool,
}

impl Survey {
    /// A place and its record.
    pub fn place(&mut self, what: &What, path: &[u8], cid: Cid) {
        match what {
            What::Record(wanted) if wanted.as_bytes() == path => drop(self.at_path.insert(cid)),
            What::Cid(wanted) if *wanted == cid => self.seen = true,
            _ => {}
        }
    }

    /// A record's bytes.
    pub fn record(&mut self, cid: Cid, bytes: &[u8]) {
        for blob in scan_record(bytes).blobs {
            let known = self.referrers.entry(*blob.cid.digest()).or_default();
            if known.len() < REFERRERS_MAX {
                known.insert(cid);
            }
        }
    }

    /// The records whose bytes go.
    #[must_use]
    pub fn records(&self, what: &What) -> BTreeSet<Cid> {
        match what {
            What::Record(_) => self.at_path.clone(),
            What::Cid(cid) if cid.codec() == Codec::DagCbor => BTreeSet::from([*cid]),
            What::Cid(_) | What::Account | What::Deleted => BTreeSet::new(),
        }
    }

    /// The blobs that go: the one that was asked for, or those to which no record refers that stays.
    #[must_use]
    pub fn blobs(&self, what: &What) -> BTreeSet<Digest> {
        if let What::Cid(cid) = what
            && cid.codec() == Codec::Raw
        {
            return BTreeSet::from([*cid.digest()]);
        }
        let records = self.records(what);
        // As many as are remembered may not be all.
        let only_ours =
            |of: &BTreeSet<Cid>| of.len() < REFERRERS_MAX && of.iter().all(|cid| records.contains(cid));
        let ours = self
            .referrers
            .iter()
            .filter(|(_, of)| !of.is_empty() && only_ours(of));
        ours.map(|(blob, _)| *blob).collect()
    }

    /// Whether anything was found that the erasure concerns.
    #[must_use]
    pub fn found(&self) -> bool {
        self.seen || !self.at_path.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::account::{post, post_with_blob};

    #[test]
    fn a_record_takes_the_blobs_with_it_that_are_its_alone() {
        let (mine, shared, others) = (
            Cid::of_blob(b"mine"),
            Cid::of_blob(b"shared"),
            Cid::of_blob(b"others"),
        );
        let what = What::Record("app.bsky.feed.post/a".parse().expect("a path"));
        let mut survey = Survey::default();
        let versions = [post_with_blob("old", &mine, 4), post_with_blob("new", &shared, 6)];
        for bytes in &versions {
            survey.place(&what, b"app.bsky.feed.post/a", Cid::of_block(bytes));
            survey.record(Cid::of_block(bytes), bytes);
        }
        for bytes in [
            post_with_blob("b", &shared, 6),
            post_with_blob("c", &others, 6),
            post("d"),
        ] {
            survey.place(&what, b"app.bsky.feed.post/b", Cid::of_block(&bytes));
            survey.record(Cid::of_block(&bytes), &bytes);
        }
        assert!(survey.found());
        assert_eq!(
            survey.records(&what),
            versions.iter().map(|bytes| Cid::of_block(bytes)).collect()
        );
        assert_eq!(survey.blobs(&what), BTreeSet::from([*mine.digest()]));
        // A blob by name goes whoever refers to it.
        assert_eq!(
            survey.blobs(&What::Cid(shared)),
            BTreeSet::from([*shared.digest()])
        );
        assert_eq!(survey.records(&What::Cid(shared)), BTreeSet::new());
        // With more referrers than are remembered, it stays.
        for number in 0..REFERRERS_MAX {
            let bytes = post_with_blob(&number.to_string(), &mine, 4);
            survey.place(&what, b"app.bsky.feed.post/a", Cid::of_block(&bytes));
            survey.record(Cid::of_block(&bytes), &bytes);
        }
        assert_eq!(survey.blobs(&what), BTreeSet::new());
    }
}
