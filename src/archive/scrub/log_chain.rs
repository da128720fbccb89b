//! Whether the log is whole: segments that follow each other by number, by log number and by hash, within a
//! writer's generation and from one to the next; and, for each account, changes that build on each other and on
//! something that the archive holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::inventory::Account;
use super::report::{Fault, Finding, Findings};
use crate::archive::log_file::{Entry, LogFile, Origin};
use crate::archive::names::SegmentName;
use crate::types::{Cid, Did, Rev};

/// Most stretches of one account that are remembered; more are a writer gone wild, and said as such.
const STRETCHES_MAX: usize = 1000;

/// The log as far as it was read. Kept between runs, so everything in it has a text form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChain {
    last: Option<Last>,
    /// Stretches of changes that build on each other, by account.
    accounts: BTreeMap<String, Vec<Stretch>>,
}

/// The last segment of the log so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    shard: u32,
    generation: u64,
    number: u64,
    /// Its index; none if it could not be read.
    root: Option<String>,
    /// The log number that the next entry must have; none if it could not be read.
    next: Option<u64>,
}

/// Changes of one account, each of which builds on the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    since: u64,
    last: u64,
    /// It begins with a fetched repository, and builds on nothing.
    loaded: bool,
    /// One of its revs stands in a snapshot, or at the end of a delta.
    anchored: bool,
}

impl Stretch {
    /// From and to, and whether it begins with a fetched repository.
    #[must_use]
    pub fn span(&self) -> (Rev, Rev, bool) {
        (rev(self.since), rev(self.last), self.loaded)
    }
}

fn rev(bits: u64) -> Rev {
    Rev::from_bits(bits).unwrap_or_else(|_| Rev::from_bits(0).expect("zero has no top bit"))
}

impl LogChain {
    /// Takes the next segment, which is the one that its name says. `held` tells what else there is of an account.
    pub fn push<'a>(
        &mut self,
        name: SegmentName,
        file: &LogFile,
        held: impl Fn(&Did) -> Option<&'a Account>,
        findings: &mut Findings,
    ) {
        let Origin::Segment { prev, first, .. } = file.index.origin else {
            return;
        };
        self.check_place(name, prev, first, findings);
        self.last = Some(Last {
            shard: name.shard,
            generation: name.generation,
            number: name.number,
            root: Some(file.root.to_string()),
            next: Some(first.saturating_add(file.index.entries.len() as u64)),
        });
        for entry in &file.index.entries {
            self.entry(name, entry, &held, findings);
        }
    }

    /// The next segment is there, but cannot be read.
    pub fn push_unreadable(&mut self, name: SegmentName) {
        self.last = Some(Last {
            shard: name.shard,
            generation: name.generation,
            number: name.number,
            root: None,
            next: None,
        });
    }

    fn check_place(&self, name: SegmentName, prev: Option<Cid>, first: u64, findings: &mut Findings) {
        let broken = |detail: String| Finding {
            fault: Fault::BrokenChain,
            object: name.to_string(),
            did: None,
            detail,
            affects:
                "what was applied between it and the segment before it; accounts that were snapshotted since \
                      are whole again from there"
                    .to_owned(),
        };
        let Some(last) = self.last.as_ref().filter(|last| last.shard == name.shard) else {
            // The oldest of the shard: what it names may have been removed, as it stands in snapshots.
            return;
        };
        let same_writer = last.generation == name.generation;
        if same_writer && last.number.checked_add(1) != Some(name.number) {
            // Named as missing from the list of names already; the hash cannot fit.
            return;
        }
        if let Some(root) = &last.root
            && prev.map(|prev| prev.to_string()).as_ref() != Some(root)
        {
            let before = SegmentName {
                shard: last.shard,
                generation: last.generation,
                number: last.number,
                edition: 0,
            };
            findings.add(broken(format!("it does not name {before} as the one before it")));
        } else if let Some(next) = last.next
            && same_writer
            && next != first
        {
            findings.add(broken(format!(
                "its first entry has log number {first}, and {next} is next"
            )));
        }
    }

    fn entry<'a>(
        &mut self,
        name: SegmentName,
        entry: &Entry,
        held: &impl Fn(&Did) -> Option<&'a Account>,
        findings: &mut Findings,
    ) {
        let did = entry.did();
        let anchors = |rev: Rev| held(did).is_some_and(|account| account.is_anchor(rev));
        let (since, to, loaded) = match entry {
            Entry::Commit(change) | Entry::Swap(change) => (change.since, change.rev, false),
            Entry::Loaded { rev, .. } => (*rev, *rev, true),
            Entry::Account { .. } => return,
        };
        let stretches = self.accounts.entry(did.to_string()).or_default();
        let mut told_anchor = false;
        if let Some(open) = stretches.last_mut()
            && !loaded
        {
            let last_span = open.span();
            if open.last == since.to_bits() {
                open.last = to.to_bits();
                open.anchored |= anchors(to);
                return;
            }
            // A mirror that fell back, or another one, tells again what the log has told.
            let told = stretches
                .iter()
                .find(|told| (told.since..=told.last).contains(&since.to_bits()));
            told_anchor = told.is_some_and(|told| told.anchored);
            // Deltas and snapshots may lead over what is missing in the log.
            let bridged = told.is_some()
                || held(did).is_some_and(|account| {
                    let spans = account.deltas.iter().map(|(from, to)| (*from, *to, false));
                    let mut spans: Vec<_> = spans.collect();
                    spans.extend([last_span, (since, to, false)]);
                    super::inventory::gaps(&spans, None).is_empty()
                });
            if !bridged {
                findings.add(Finding {
                    fault: Fault::BrokenChain,
                    object: name.to_string(),
                    did: Some(did.to_string()),
                    detail: format!(
                        "its change of rev {to} builds on rev {since}, and the log stood at {}",
                        last_span.1
                    ),
                    affects: format!("moments of {did} from there to its next snapshot"),
                });
            }
        }
        if stretches.len() >= STRETCHES_MAX {
            stretches.remove(0);
        }
        stretches.push(Stretch {
            since: since.to_bits(),
            last: to.to_bits(),
            loaded,
            anchored: told_anchor || anchors(since) || anchors(to),
        });
    }

    /// An account's stretches.
    #[must_use]
    pub fn stretches(&self, did: &Did) -> &[Stretch] {
        self.accounts.get(did.as_str()).map_or(&[], Vec::as_slice)
    }

    /// Every account of the log.
    pub fn dids(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// What an account's stretches build on. `listed` is what was there before the log was read, `account` what is
    /// there now. Returns whether its newest repository is still to be snapshotted.
    pub fn check_account(
        &self,
        did: &Did,
        listed: Option<&Account>,
        account: &Account,
        findings: &mut Findings,
    ) -> bool {
        let newest = account.newest_snapshot();
        let is_new = |rev: &&Rev| listed.is_none_or(|listed| listed.snapshots.binary_search(rev).is_err());
        let newest_new = account.snapshots.iter().rev().find(is_new);
        let mut to_come = false;
        let count = self.stretches(did).len();
        for (index, stretch) in self.stretches(did).iter().enumerate() {
            let (since, last, loaded) = stretch.span();
            // What a later snapshot holds may build on anything.
            if stretch.anchored || newest.is_some_and(|newest| newest >= last) {
                continue;
            }
            // It came while the log was read.
            if newest_new.is_some_and(|rev| *rev >= since) {
                continue;
            }
            let affects = match newest {
                Some(newest) => format!("{did} can be restored up to rev {newest}, and not behind it"),
                None => format!("{did} cannot be restored"),
            };
            let (fault, detail) = if loaded && index + 1 == count {
                to_come = true;
                let detail = format!(
                    "its repository was fetched at rev {since}, and no snapshot of that rev or a later one is \
                     there: it is still to come, or was removed"
                );
                (Fault::NotYet, detail)
            } else {
                let detail = format!(
                    "the log's changes from rev {since} to rev {last} build on rev {since}, which no snapshot or \
                     delta holds"
                );
                (Fault::NoSnapshot, detail)
            };
            findings.add(Finding {
                fault,
                object: did_folder(did),
                did: Some(did.to_string()),
                detail,
                affects,
            });
        }
        to_come
    }
}

fn did_folder(did: &Did) -> String {
    format!("{}{did}/", crate::archive::names::REPOS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::archive::log_file::{Change, FORMAT, LogIndex};
    use crate::types::Timestamp;

    fn r(n: u64) -> Rev {
        Rev::from_bits(n << 20).expect("a rev")
    }

    fn did() -> Did {
        "did:web:a.example.com".parse().expect("valid")
    }

    fn change(since: u64, to: u64) -> Entry {
        Entry::Commit(Change {
            did: did(),
            host: "pds.example.com".parse().expect("valid"),
            seq: 1,
            since: r(since),
            rev: r(to),
            time: Timestamp::default(),
            received: Timestamp::default(),
            commit: Cid::of_block(b"commit"),
            ops: Vec::new(),
        })
    }

    fn loaded(rev: u64) -> Entry {
        Entry::Loaded {
            did: did(),
            host: "pds.example.com".parse().expect("valid"),
            rev: r(rev),
            commit: Cid::of_block(b"commit"),
            received: Timestamp::default(),
        }
    }

    fn account(snapshots: &[u64]) -> Account {
        Account {
            snapshots: snapshots.iter().map(|n| r(*n)).collect(),
            ..Account::default()
        }
    }

    /// A log of one segment an entry. Returns the faults of the chain, and those of the account, with what is to
    /// come.
    fn run(entries: Vec<Entry>, held: &Account, now: &Account) -> (Vec<Fault>, bool) {
        let (mut chain, mut findings) = (LogChain::default(), Findings::default());
        let (mut prev, mut first) = (None, 5);
        for (index, entry) in entries.into_iter().enumerate() {
            let number = index as u64 + 1;
            let origin = Origin::Segment {
                shard: 0,
                generation: 1,
                number,
                prev,
                first,
            };
            let index = LogIndex {
                format: FORMAT,
                origin,
                entries: vec![entry],
            };
            let file = LogFile::new(index, BTreeMap::new());
            let name = SegmentName {
                shard: 0,
                generation: 1,
                number,
                edition: 0,
            };
            chain.push(name, &file, |_| Some(held), &mut findings);
            (prev, first) = (Some(file.root), first + 1);
        }
        let kept = serde_json::to_vec(&chain).expect("JSON");
        assert_eq!(serde_json::from_slice::<LogChain>(&kept).expect("JSON"), chain);
        let to_come = chain.check_account(&did(), Some(held), now, &mut findings);
        (
            findings.kept().iter().map(|finding| finding.fault).collect(),
            to_come,
        )
    }

    #[test]
    fn changes_build_on_each_other_and_on_something_held() {
        let held = account(&[1]);
        let log = |pairs: &[(u64, u64)]| pairs.iter().map(|(a, b)| change(*a, *b)).collect::<Vec<_>>();
        let sound = (Vec::new(), false);
        assert_eq!(run(log(&[(1, 2), (2, 3)]), &held, &held), sound);
        // A snapshot in the middle is as good, and one behind it all.
        for snapshot in [3, 9] {
            let held = account(&[snapshot]);
            assert_eq!(run(log(&[(2, 3), (3, 4)]), &held, &held), sound);
        }
        assert_eq!(
            run(log(&[(2, 3)]), &held, &held),
            (vec![Fault::NoSnapshot], false)
        );
        // One that came while this ran.
        assert_eq!(run(log(&[(2, 3)]), &held, &account(&[1, 2])), sound);
        let broken = run(log(&[(1, 2), (3, 4)]), &held, &held).0;
        assert_eq!(broken, [Fault::BrokenChain, Fault::NoSnapshot]);
        // Told again from an earlier place.
        assert_eq!(run(log(&[(1, 2), (2, 3), (2, 3), (3, 4)]), &held, &held), sound);
    }

    #[test]
    fn a_fetched_repository_waits_for_its_snapshot() {
        let none = Account::default();
        let entries = || vec![loaded(5), change(5, 6)];
        assert_eq!(run(entries(), &none, &none), (vec![Fault::NotYet], true));
        for snapshot in [5, 6, 7] {
            let held = account(&[snapshot]);
            assert_eq!(run(entries(), &held, &held), (Vec::new(), false), "{snapshot}");
        }
        // One from before it is fetched again does not do.
        let held = account(&[1]);
        let again = vec![change(1, 2), loaded(5)];
        assert_eq!(run(again, &held, &held), (vec![Fault::NotYet], true));
    }
}
