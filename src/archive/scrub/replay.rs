//! A delta told again: what it does to the snapshot that it builds on leads to the root that its last commit signs.

use std::collections::BTreeMap;

use super::content::Bad;
use crate::archive::log_file::{Entry, LogFile};
use crate::repo::commit::Commit;
use crate::repo::mst::tree_root;
use crate::types::{Cid, Rev};

/// Records of an account whose deltas are told again, at most: about 200 bytes each in memory.
pub const REPLAY_RECORDS_MAX: usize = 500_000;

/// An account's records at a rev: which stands where, without their bytes.
#[derive(Debug, Default)]
pub struct Replay {
    at: Option<Rev>,
    records: BTreeMap<Box<[u8]>, Cid>,
    cut: bool,
}

impl Replay {
    /// From nothing, for a snapshot to be read into.
    #[must_use]
    pub fn of(rev: Rev) -> Self {
        Self {
            at: Some(rev),
            ..Self::default()
        }
    }

    /// A record of the snapshot.
    pub fn add(&mut self, path: &[u8], record: Cid) {
        if self.records.len() >= REPLAY_RECORDS_MAX {
            self.cut = true;
        } else {
            self.records.insert(path.into(), record);
        }
    }

    /// Whether it stands at this rev, and can be told on.
    #[must_use]
    pub fn stands_at(&self, rev: Rev) -> bool {
        self.at == Some(rev) && !self.cut
    }

    /// Tells a delta that builds on where this stands, and compares where that leads with what is signed.
    ///
    /// # Errors
    /// When it leads elsewhere. Then this stands nowhere.
    pub fn tell(&mut self, delta: &LogFile) -> Result<(), Bad> {
        self.at = None;
        let mut last = None;
        for entry in &delta.index.entries {
            match entry {
                Entry::Commit(change) | Entry::Swap(change) => {
                    for op in &change.ops {
                        let path = op.path.as_str().as_bytes();
                        match op.cid {
                            Some(cid) => drop(self.records.insert(path.into(), cid)),
                            None => drop(self.records.remove(path)),
                        }
                    }
                    last = Some(change);
                }
                // What it held before does not count, and what it holds now a snapshot says.
                Entry::Loaded { .. } => return Ok(()),
                Entry::Account { .. } => {}
            }
        }
        let Some(last) = last else { return Ok(()) };
        let block = delta.blocks.get(&last.commit).map_or(&[][..], |block| block);
        let commit = Commit::decode(block).map_err(|error| Bad::Commit {
            cid: last.commit,
            error,
        })?;
        let pairs = self.records.iter().map(|(path, cid)| (&**path, *cid));
        let root = tree_root(pairs).map_err(|error| Bad::Replay(error.to_string()))?;
        if root != commit.data {
            return Err(Bad::Replay(format!(
                "from the snapshot that it builds on its changes lead to root {root}, and commit {} signs {}",
                last.commit, commit.data
            )));
        }
        self.at = Some(last.rev);
        Ok(())
    }
}
