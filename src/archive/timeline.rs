//! What the archive can say of one account: its moments, and how each is put together again.
//!
//! A *moment* is a rev that the account's copy stood at. Most come from an entry of a delta or a segment; one may be
//! known by its snapshot alone. An entry applies to the rev before it, so that a missing piece shows as an entry
//! that applies to nothing. A moment can be rebuilt if unbroken entries lead to it from a snapshot.
//!
//! **Time.** An entry says when its host says that it happened (`time`) and when it reached us (`received`). A
//! host's clock is not ours and may be wrong: a moment's time is never later than when it reached us, and never
//! earlier than that of the moment before it. What was fetched whole has no such time; its rev, which is a time on
//! every host that follows the rules, stands in for it where it is plausible.
//!
//! The state at a time T is that of the last moment at or before T. Where moments may be missing behind it, it is
//! given with a doubt: the reader says "this, or something newer".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::log_file::{Change, Entry};
use super::names::SnapshotName;
use crate::types::{AccountStatus, Cid, Did, Digest, HostName, RepoPath, Rev, Timestamp};

/// A rev's time is taken for one from 2020 on: the protocol is not older.
const REV_TIME_MIN: Timestamp = Timestamp::from_micros(1_577_836_800_000_000);

/// Ways that are known to one moment, besides the first.
const OTHERS_MAX: usize = 8;

/// An object of the archive that holds entries. [`Timeline::source_name`] names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(usize);

/// A rev that the account's copy stood at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The rev.
    pub rev: Rev,
    /// Its commit.
    pub commit: Cid,
    /// When it was so, by the host's clock as far as it can be.
    pub time: Timestamp,
    /// When it reached us; of one that is known by its snapshot alone: then at the earliest.
    pub received: Timestamp,
    /// How it came.
    pub kind: MomentKind,
    /// The rev that its entry applies to.
    pub since: Option<Rev>,
    /// Who said it.
    pub host: Option<HostName>,
    /// The host's number for it; none: it was fetched.
    pub seq: Option<u64>,
    /// Records put, and deleted.
    pub ops: (u64, u64),
    /// Whether a snapshot of it stands in the archive.
    pub snapshot: bool,
    source: Option<Source>,
    /// Other revs that entries lead here from, and the objects that hold those: a mirror that fell back told them.
    others: Vec<(Rev, Source)>,
    /// Where in the log it stands, if it was read there.
    place: Option<u64>,
}

/// How a moment came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentKind {
    /// By a commit.
    Commit,
    /// The account was fetched whole; the difference to what was held is known.
    Swap,
    /// The account was fetched whole.
    Loaded,
    /// By its snapshot alone.
    Snapshot,
}

impl MomentKind {
    /// The name, for people and programs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Swap => "resync",
            Self::Loaded => "fetched",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Something of the archive that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The object, or what is missing.
    pub object: String,
    /// What is wrong.
    pub detail: String,
    /// What it may hide.
    pub hides: Hides,
}

/// Which moments may be unknown because of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hides {
    /// None: it is foreign, or holds what others hold too.
    Nothing,
    /// Those between two revs.
    Revs(Rev, Rev),
    /// Those at this place of the log.
    Log(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.detail)
    }
}

/// Where moments are not in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last moment before.
    pub after: Rev,
    /// The first one behind.
    pub before: Rev,
    /// An entry applies to a rev that is not there: something is lost. Else retention may have thinned it out.
    pub broken: bool,
}

/// An account's standing as its host gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// When we learned it.
    pub received: Timestamp,
    /// Who said so.
    pub host: HostName,
    /// Its standing from then on.
    pub status: AccountStatus,
}

/// Which moment is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Newest,
    /// The one with this rev.
    Rev(Rev),
    /// The last one at or before this time.
    Time(Timestamp),
    /// The last one that had reached us by this time.
    Received(Timestamp),
}

/// A moment that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Which of [`Timeline::moments`].
    pub index: usize,
    /// Why a newer one may have been meant that is not known.
    pub doubt: Option<String>,
}

/// Why there is no such moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoMoment {
    /// Nothing is known of the account.
    #[error("the archive holds nothing of it")]
    Nothing,
    /// The time is before the first moment.
    #[error("the archive's first moment of it is {first} (rev {rev})")]
    TooEarly {
        /// That moment's time.
        first: Timestamp,
        /// Its rev.
        rev: Rev,
    },
    /// There is no moment with that rev.
    #[error("no moment has the rev {0}; `firekeep history` lists them")]
    NoSuchRev(Rev),
}

/// How a moment is rebuilt: a snapshot, and the entries that lead on from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where it begins.
    pub snapshot: SnapshotName,
    /// The entries to apply, in order, each with the object that holds it.
    pub steps: Vec<(Source, Rev)>,
}

/// Everything that the archive says of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Its moments, by rev.
    pub moments: Vec<Moment>,
    /// What is not as it should be.
    pub faults: Vec<Fault>,
    /// Its standings, as they came.
    pub standings: Vec<Standing>,
    /// What happened to the path that was watched: by rev, the record from then on, if any.
    pub versions: BTreeMap<Rev, Option<Cid>>,
    /// Records that are withheld, whether an object still holds them or not.
    pub erased: BTreeSet<Cid>,
    /// And blobs.
    pub erased_blobs: BTreeSet<Digest>,
    snapshots: BTreeMap<Rev, SnapshotName>,
    sources: Vec<String>,
}

/// Takes what was read from the archive, and makes a [`Timeline`] of it.
#[derive(Debug)]
pub struct TimelineBuilder {
    did: Did,
    watch: Option<RepoPath>,
    snapshots: Vec<SnapshotName>,
    drafts: BTreeMap<Rev, Moment>,
    line: Timeline,
}

impl TimelineBuilder {
    /// A builder for this account. What happens to the record at `watch` is noted.
    #[must_use]
    pub fn new(did: Did, watch: Option<RepoPath>) -> Self {
        Self {
            did,
            watch,
            snapshots: Vec::new(),
            drafts: BTreeMap::new(),
            line: Timeline::default(),
        }
    }

    /// A snapshot that stands in the archive.
    pub fn snapshot(&mut self, name: SnapshotName) {
        self.snapshots.push(name);
    }

    /// Something that is not as it should be.
    pub fn fault(&mut self, fault: Fault) {
        self.line.faults.push(fault);
    }

    /// An object that was read. `place`: where in the log it stands, if it is a segment.
    pub fn entries(&mut self, object: String, place: Option<u64>, entries: &[Entry]) {
        let source = Source(self.line.sources.len());
        let mut conflicts = Vec::new();
        for entry in entries.iter().filter(|entry| *entry.did() == self.did) {
            let (mut moment, change) = match entry {
                Entry::Commit(change) => (of_change(change, MomentKind::Commit), Some(change)),
                Entry::Swap(change) => (of_change(change, MomentKind::Swap), Some(change)),
                Entry::Loaded {
                    host,
                    rev,
                    commit,
                    received,
                    ..
                } => (loaded(*rev, *commit, host, *received), None),
                Entry::Account {
                    host,
                    status,
                    received,
                    ..
                } => {
                    self.line.standings.push(Standing {
                        received: *received,
                        host: host.clone(),
                        status: status.clone(),
                    });
                    continue;
                }
            };
            (moment.source, moment.place) = (Some(source), place);
            let rev = moment.rev;
            match self.drafts.get_mut(&rev) {
                Some(known) if known.commit != moment.commit => {
                    conflicts.push(rev);
                    continue;
                }
                // The same entry may stand in a delta and in a segment, which goes first.
                Some(known) if known.since.is_some() || moment.since.is_none() => {
                    if place.is_none() && known.since == moment.since {
                        known.source = moment.source;
                    }
                    known.place = known.place.or(place);
                    if let Some(since) = moment.since.filter(|since| known.since != Some(*since))
                        && known.others.len() < OTHERS_MAX
                    {
                        known.others.push((since, source));
                    }
                    continue;
                }
                _ => drop(self.drafts.insert(rev, moment)),
            }
            if let (Some(watch), Some(change)) = (&self.watch, change)
                && let Some(op) = change.ops.iter().rev().find(|op| op.path == *watch)
            {
                self.line.versions.insert(rev, op.cid);
            }
        }
        for rev in conflicts {
            self.fault(Fault {
                object: object.clone(),
                detail: format!("its entry of rev {rev} names another commit than the one before it did"),
                hides: Hides::Nothing,
            });
        }
        self.line.sources.push(object);
    }

    /// Everything was given.
    #[must_use]
    pub fn finish(mut self) -> Timeline {
        self.snapshots.sort_unstable();
        for name in std::mem::take(&mut self.snapshots) {
            self.place_snapshot(name);
        }
        self.line.moments = self.drafts.into_values().collect();
        self.line.standings.sort_by_key(|standing| standing.received);
        self.line.standings.dedup();
        clamp(&mut self.line.moments);
        self.line
    }

    fn place_snapshot(&mut self, name: SnapshotName) {
        let commit = Cid::dag_cbor(name.commit);
        let moment = self.drafts.entry(name.rev).or_insert_with(|| Moment {
            rev: name.rev,
            commit,
            time: name.rev.time(),
            received: name.rev.time(),
            kind: MomentKind::Snapshot,
            since: None,
            host: None,
            seq: None,
            ops: (0, 0),
            snapshot: false,
            source: None,
            others: Vec::new(),
            place: None,
        });
        if moment.commit == commit {
            moment.snapshot = true;
            self.line.snapshots.insert(name.rev, name);
        } else {
            self.line.faults.push(Fault {
                object: name.to_string(),
                detail: "another commit has its rev".to_owned(),
                hides: Hides::Nothing,
            });
        }
    }
}

fn of_change(change: &Change, kind: MomentKind) -> Moment {
    let puts = change.ops.iter().filter(|op| op.cid.is_some()).count() as u64;
    let time = match kind {
        MomentKind::Commit => change.time,
        _ => fetched_time(change.rev, change.time),
    };
    Moment {
        rev: change.rev,
        commit: change.commit,
        time,
        received: change.received,
        kind,
        since: Some(change.since),
        host: Some(change.host.clone()),
        seq: (kind == MomentKind::Commit).then_some(change.seq),
        ops: (puts, change.ops.len() as u64 - puts),
        snapshot: false,
        source: None,
        others: Vec::new(),
        place: None,
    }
}

fn loaded(rev: Rev, commit: Cid, host: &HostName, received: Timestamp) -> Moment {
    Moment {
        rev,
        commit,
        time: fetched_time(rev, received),
        received,
        kind: MomentKind::Loaded,
        since: None,
        host: Some(host.clone()),
        seq: None,
        ops: (0, 0),
        snapshot: false,
        source: None,
        others: Vec::new(),
        place: None,
    }
}

/// Since when what was fetched had been so: its head's rev, if that is a time.
fn fetched_time(rev: Rev, fetched: Timestamp) -> Timestamp {
    if (REV_TIME_MIN..=fetched).contains(&rev.time()) {
        rev.time()
    } else {
        fetched
    }
}

/// Makes times rise with rev, and none later than when it reached us.
fn clamp(moments: &mut [Moment]) {
    // What a snapshot alone says of its time is not later than what comes behind it.
    let mut latest = Timestamp::from_micros(u64::MAX);
    for moment in moments.iter_mut().rev() {
        if moment.kind == MomentKind::Snapshot {
            if moment.time < REV_TIME_MIN && latest.micros() != u64::MAX {
                moment.time = latest;
            }
            moment.time = moment.time.min(latest);
            moment.received = moment.time;
        }
        moment.time = moment.time.min(moment.received);
        latest = moment.time;
    }
    let (mut time, mut received) = (Timestamp::default(), Timestamp::default());
    for moment in moments {
        // Stored times are whole milliseconds, and so is what people give.
        let whole = |time: Timestamp| Timestamp::from_micros(time.millis() * 1000);
        time = time.max(whole(moment.time));
        received = received.max(whole(moment.received)).max(time);
        (moment.time, moment.received) = (time, received);
    }
}

mod ask;

#[cfg(test)]
mod tests;
